//! Errors of the disk, of memory and of descriptors in the midst of an act: a sentence, and nothing has changed.

use crate::common::points::Act;
use crate::common::{SOON, belongings, host, namespaces, rubbish, runs, until};
use crate::kills::{BACKUPS, FORGET, ONE_STEP, OTHER, RESTORES, act, fail_steps, generations, one, two};

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
        // Of dora nothing is there any more, and so nothing in the new backup.
        let uppers = |state: &str| {
            state.lines().filter(|line| line.starts_with("backup uppers/alice-")).collect::<String>()
        };
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

#[test]
fn an_error_in_the_midst_of_forget_loses_nothing_and_the_next_comes_to_the_end() {
    lab::require_root!();
    let host = one();
    let state = || belongings(&host);
    fail_steps(&act(&host, FORGET, &state));
    host.root("ojail undo alice").ok();
    host.ssh("alice", "cat /etc/two").ok();
}

#[test]
fn an_error_in_the_midst_of_a_restore_loses_nothing_and_the_next_comes_to_the_end() {
    lab::require_root!();
    let host = two();
    let state = || belongings(&host);
    for (command, begin) in RESTORES {
        fail_steps(&Act { host: &host, command, begin: begin.into(), state: &state });
    }
    // Of a layer with generations, where somebody made one of that name by hand.
    let host = generations(true);
    let state = || belongings(&host);
    fail_steps(&Act { host: &host, command: RESTORES[2].0, begin: OTHER.into(), state: &state });
    host.root("ojail layer verify").ok();
}

#[test]
fn an_error_in_the_midst_of_a_mount_or_umount_is_told_and_has_changed_nothing() {
    lab::require_root!();
    let host = host("");
    // What is in the host's mount table, and what is known of it.
    let state = || {
        host.root(
            "grep -c ' /srv/jails/alice ' /proc/1/mountinfo; ls /srv/jails; ojail list --json | grep -o '\"mounted\":[^,}]*'; true",
        )
        .text()
    };
    let unmount = "umount /srv/jails/alice 2>/dev/null || true; ojail umount alice";
    for begin in ["ojail run alice -- true", "ojail stop alice"] {
        // Where the jail runs, and where it does not.
        let begin = format!("{unmount}; {begin}");
        assert!(Act { host: &host, command: "ojail mount alice", begin, state: &state }.fail() > 20);
    }
    let begin = format!("{unmount}; ojail mount alice");
    // An empty directory may stay.
    let state = || state().replace("\nalice", "");
    let act = Act { host: &host, command: "ojail umount alice", begin, state: &state };
    let (old, new) = act.states();
    let mut half = 0;
    let errors = act.fail_and(|at, output| {
        let now = state();
        if output.status.success() {
            assert_eq!(now, new, "{at}: {output}");
        } else if now != old {
            // What was unmounted cannot be mounted again; what is left to do is told, and done by the next.
            assert!(now.starts_with("0\n"), "{at}: {output}{now}");
            half += 1;
        }
        host.root(act.command).ok();
        assert_eq!(state(), new, "{at}, and once more");
        host.root("ojail stop alice").ok();
    });
    eprintln!("{}: half done after {half}", act.command);
    assert!(errors > 10 && half < errors / 2, "{errors} errors, {half} half done");
    // Nothing of it keeps the jail from its end.
    host.root("ojail umount alice; ojail stop alice").ok();
    assert_eq!(namespaces(&host), "");
}

#[test]
fn an_error_in_the_midst_of_a_temporary_jail_is_told_and_leaves_nothing() {
    lab::require_root!();
    let host = host("root = true");
    let remains = || {
        host.root("ls -A /run/ojail/runs 2>/dev/null; find /var/lib/ojail -name '*0jail*'").text()
            + &rubbish(&host)
    };
    for command in ["ojail run alice --ephemeral -- echo in", "ojail run --profile debian -- echo in"] {
        let act = Act { host: &host, command, begin: "true".into(), state: &remains };
        let mut left = 0;
        let errors = act.fail_and(|at, output| {
            until(&format!("{at}: the jail has ended"), SOON, || namespaces(&host).is_empty());
            // An error in the midst of ending it, when the command has run, leaves the rest to the next.
            let is_left = remains();
            left += usize::from(!is_left.is_empty());
            assert!(is_left.is_empty() || output.text() == "in", "{at}: {output}{is_left}");
            host.root("ojail tidy").ok();
            assert_eq!(remains(), "", "{at}, and a tidy");
        });
        eprintln!("{command}: {left} left something to the next");
        assert!(errors > 20);
    }
    assert!(!runs(&host, "alice"));
}
