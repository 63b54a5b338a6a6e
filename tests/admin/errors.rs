//! Errors of the disk, of memory and of descriptors in the midst of an act: a sentence, and nothing has changed.

use crate::common::belongings;
use crate::common::points::Act;
use crate::kills::{BACKUPS, ONE_STEP, OTHER, act, one, two};

#[test]
fn an_error_in_the_midst_of_what_changes_an_upper_is_told_and_has_changed_nothing() {
    lab::require_root!();
    let host = one();
    let state = || belongings(&host);
    for what in ONE_STEP {
        assert!(act(&host, what, &state).fail() > 20);
    }
}

#[test]
fn an_error_in_the_midst_of_a_backup_leaves_the_last_one_or_what_it_has_of_a_user() {
    lab::require_root!();
    let host = two();
    let state = || belongings(&host);
    for begin in BACKUPS {
        let act = Act {
            host: &host,
            command: "ojail backup /backup",
            begin: format!("{OTHER}; {begin}"),
            state: &state,
        };
        let (old, new) = act.states();
        let uppers =
            |state: &str| state.lines().filter(|line| line.starts_with("backup uppers/")).collect::<String>();
        let errors = act.fail_and(|at, output| {
            let now = state();
            assert!(!now.contains("DAMAGED"), "{at}:\n{now}");
            match output.status.success() {
                true => assert_eq!(now, new, "{at}: {output}"),
                // Of one user: the others are in the backup.
                false if output.stderr.starts_with("ojail: alice: ") => {
                    assert_eq!(uppers(&now), uppers(&old), "{at}: {output}")
                }
                false => assert_eq!(now, old, "{at}: {output}"),
            }
        });
        assert!(errors > 20);
    }
}
