//! A kill at any system call of what changes places, copies, restores and forgets: all is as it was or as it should be, nothing is lost,
//! and the next call comes to the end.

use lab::{Host, User};

use crate::common::points::Act;
use crate::common::{belongings, config, host, rubbish};

pub(crate) const UPPER: &str = "/srv/overlay/upperdirs/alice";
const FRESH: &str = "rm -rf /srv/overlay/upperdirs/alice /srv/overlay/asidedirs/alice /srv/overlay/workdirs/alice; \
                     cp -a /srv/overlay/kept/tree /srv/overlay/upperdirs/alice; cp -a /srv/overlay/kept/work /srv/overlay/workdirs/alice; \
                     cp -a /srv/overlay/kept/alice.toml /var/lib/ojail/users";

/// A host where alice has changed something.
pub(crate) fn one() -> Host {
    let host = host("root = true");
    host.root(": > /etc/subuid; : > /etc/subgid").ok();
    host.ssh(
        "alice",
        "sudo sh -c 'rm -r /usr/share/doc/bash; echo x > /etc/issue; ln /etc/issue /etc/two; chmod 600 /etc/motd'",
    )
    .ok();
    host.root(&format!(
        "set -e; ojail stop alice; mkdir /srv/overlay/kept; cd /srv/overlay/kept; cp -a {UPPER} tree; \
         cp -a /srv/overlay/workdirs/alice work; cp -a /var/lib/ojail/users/alice.toml ."
    ))
    .ok();
    host
}

/// What is done to alice's upper, and what comes before, when all is as in [`one`].
pub(crate) const ONE_STEP: [(&str, &str); 6] = [
    ("ojail reset alice", "true"),
    // Where there is none.
    ("ojail undo alice", "ojail reset alice"),
    // Where there is one again.
    (
        "ojail undo alice",
        "ojail reset alice; mkdir /srv/overlay/upperdirs/alice; echo 2 > /srv/overlay/upperdirs/alice/second",
    ),
    (
        "ojail reset alice",
        "ojail reset alice; mkdir /srv/overlay/upperdirs/alice; echo 2 > /srv/overlay/upperdirs/alice/second",
    ),
    ("ojail snapshot alice two", "ojail snapshot alice one"),
    (
        "ojail snapshot restore alice one",
        "ojail snapshot alice one; echo new > /srv/overlay/upperdirs/alice/new",
    ),
];
pub(crate) const FORGET: (&str, &str) = ("ojail forget alice --force", "ojail snapshot alice one");

/// One of these, to be interrupted.
pub(crate) fn act<'a>(
    host: &'a Host,
    (command, prepare): (&'a str, &str),
    state: &'a dyn Fn() -> String,
) -> Act<'a> {
    Act { host, command, begin: format!("{FRESH}; {prepare}"), state }
}

/// A host with a layer, the changes of two users, and a backup of these; and what [`OTHER`] takes.
pub(crate) fn two() -> Host {
    two_of("true", "true")
}

/// The same with a layer that has generations, where [`OTHER`] has one of the same name that somebody made by hand; or the same
/// generation, but with something added by hand.
pub(crate) fn generations(by_hand: bool) -> Host {
    let other = if by_hand {
        "cd lowerdirs; mv debian@*[0-9a-f] new; rm debian*; mv new debian; cd .."
    } else {
        "true"
    };
    two_of("ojail layer adopt debian", other)
}

fn two_of(layer: &str, other: &str) -> Host {
    let host = lab::host()
        .user(User::new("alice").uid(1001).groups(["jailed"]))
        .user(User::new("dora").uid(1002).groups(["jailed"]))
        .config(&config(""))
        .start();
    host.root(&
        r#"set -e
         umask 022; mkdir -p /srv/overlay/lowerdirs/debian/etc /srv/overlay/upperdirs/alice/etc /srv/overlay/upperdirs/dora /var/lib/ojail/users
         mkdir /srv/overlay/workdirs /srv/overlay/asidedirs
         chmod 700 /srv/overlay/*dirs /var/lib/ojail /var/lib/ojail/users
         cd /srv/overlay/lowerdirs/debian/etc; echo debian > issue; ln -s issue link; mknod pipe p; touch closed; chmod 0 closed
         cd /srv/overlay/upperdirs/alice/etc; echo alice > issue; mknod motd c 0 0; ln issue two; python3 -c 'import os; os.setxattr(".", "user.overlay.opaque", b"y")'
         echo dora > /srv/overlay/upperdirs/dora/dora
         printf 'pool = 524288\nuid = 1001\n' > /var/lib/ojail/users/alice.toml
         printf 'pool = 589824\nuid = 1002\n' > /var/lib/ojail/users/dora.toml
         LAYER
         ojail backup /backup; ojail backup - > /stream
         cd /srv/overlay; mkdir other; cp -a *dirs /var/lib/ojail/users other; cp -a /backup other
         cd other; rm -r upperdirs/dora users/dora.toml; echo new > upperdirs/alice/new; echo new > lowerdirs/debian/etc/new
         OTHER"#.replace("LAYER", layer).replace("OTHER", other),
    )
    .ok();
    host
}

/// As on a host where ojail has just been installed.
const BARE: &str = "rm -rf /srv/overlay/*dirs /var/lib/ojail/* /run/ojail";
/// With everything that the backup has, but other changes of alice's and other content of the layer; dora is not there.
pub(crate) const OTHER: &str = "rm -rf /srv/overlay/*dirs /var/lib/ojail/*; cp -a /srv/overlay/other/*dirs /srv/overlay; \
                                cp -a /srv/overlay/other/users /var/lib/ojail";

/// Of a backup, on a bare host and on another, with what is there before.
pub(crate) const RESTORES: [(&str, &str); 3] = [
    ("ojail restore /backup", BARE),
    ("ojail restore - < /stream", BARE),
    ("ojail restore --force /backup", OTHER),
];

/// The lines of one state that another has not.
fn beyond<'a>(one: &'a str, other: &str) -> Vec<&'a str> {
    let mut rest: Vec<&str> = other.lines().collect();
    one.lines()
        .filter(|line| match rest.iter().position(|other| other == line) {
            Some(place) => {
                rest.remove(place);
                false
            }
            None => true,
        })
        .collect()
}

/// No backup, and another than that of now.
pub(crate) const BACKUPS: [&str; 2] = ["rm -rf /backup", "rm -rf /backup; cp -a /srv/overlay/other/backup /"];

fn kill_one_step(acts: &[(&str, &str)]) {
    let host = one();
    let state = || belongings(&host);
    for what in acts {
        let act = act(&host, *what, &state);
        let (old, new) = act.states();
        let (mut before, mut behind) = (0, 0);
        let points = act.kill(|at| {
            let now = state();
            assert!(now == old || now == new, "{at}:\n{now}\nis neither\n{old}\nnor\n{new}");
            if now == old {
                before += 1;
            } else {
                behind += 1;
            }
            // The next act finds its way from there, and what was begun is in nobody's way.
            host.root("ojail tidy").ok();
            assert_eq!(state(), now, "{at}, and a tidy");
            assert_eq!(rubbish(&host), "", "{at}, and a tidy");
        });
        assert!(points > 20 && before > 10 && behind > 3, "{before} before the step, {behind} behind it");
    }
    host.root("ojail undo alice").ok();
    // And a login after all of it.
    host.ssh("alice", "cat /proc/1/comm").ok();
}

#[test]
fn a_kill_at_any_system_call_of_reset_and_undo_leaves_the_old_or_the_new() {
    lab::require_root!();
    kill_one_step(&ONE_STEP[..4]);
}

#[test]
fn a_kill_at_any_system_call_of_a_snapshot_or_its_restore_leaves_the_old_or_the_new() {
    lab::require_root!();
    kill_one_step(&ONE_STEP[4..]);
}

/// What is left of an act of several steps that did not come to its end. Nothing that was there is lost, and once more is enough.
fn between(act: &Act<'_>, (old, new): (&str, &str), at: &str) {
    let now = (act.state)();
    // By its content alone: it may have come to another place.
    let contents = |state: &str| -> Vec<String> {
        let kept =
            state.lines().filter(|line| !["ids", "work", "backup"].iter().any(|word| line.starts_with(word)));
        kept.filter_map(|line| line.rsplit(' ').next().map(str::to_owned)).collect()
    };
    for content in contents(old) {
        assert!(contents(&now).contains(&content), "{at}: {content} is lost\n{now}\nwas\n{old}");
    }
    assert!(!now.contains("DAMAGED"), "{at}:\n{now}");
    // In each place is what was there before, what should be there, or nothing if nothing was.
    for line in now.lines() {
        let known = [old, new].iter().any(|state| state.lines().any(|other| other == line));
        let copy = line.starts_with("layer ") && contents(new).iter().any(|content| line.ends_with(content));
        assert!(known || copy, "{at}: {line}\nis neither in\n{old}\nnor in\n{new}");
    }
    act.host.root(act.command).ok();
    let end = (act.state)();
    assert_eq!(beyond(new, &end), [""; 0], "{at}, and once more:\n{end}");
    // A copy of the new that was about to change places with the old.
    let more = beyond(&end, new);
    assert!(
        more.is_empty()
            || more.len() == 1
                && more[0].starts_with("layer debian aside ")
                && contents(new).iter().filter(|content| more[0].ends_with(*content)).count() > 0,
        "{at}, and once more: {more:?}"
    );
    assert_eq!(rubbish(act.host), "", "{at}, and once more");
}

fn kill_steps(act: &Act<'_>) {
    let (old, new) = act.states();
    act.kill(|at| between(act, (&old, &new), at));
}

/// As [`Act::fail`], for an act of several steps: what it has not done is as it was, and what it says to have done is.
pub(crate) fn fail_steps(act: &Act<'_>) {
    let (old, new) = act.states();
    let errors = act.fail_and(|at, output| {
        if output.status.success() {
            assert_eq!((act.state)(), new, "{at}: {output}");
        }
        between(act, (&old, &new), &format!("{at}: {output}"));
    });
    assert!(errors > 20, "{}: {errors} errors only", act.command);
}

#[test]
fn a_kill_at_any_system_call_of_forget_loses_nothing_and_the_next_comes_to_the_end() {
    lab::require_root!();
    let host = one();
    kill_steps(&act(&host, FORGET, &|| belongings(&host)));
    host.root("ojail undo alice").ok();
    host.ssh("alice", "cat /etc/two").ok();
}

#[test]
fn a_kill_at_any_system_call_of_a_restore_loses_nothing_and_the_next_comes_to_the_end() {
    lab::require_root!();
    let host = two();
    for (command, begin) in RESTORES {
        kill_steps(&Act { host: &host, command, begin: begin.into(), state: &|| belongings(&host) });
    }
}

#[test]
fn a_kill_at_any_system_call_of_a_restore_of_generations_loses_nothing_and_the_next_comes_to_the_end() {
    lab::require_root!();
    for by_hand in [true, false] {
        let host = generations(by_hand);
        let command = "ojail restore --force /backup";
        kill_steps(&Act { host: &host, command, begin: OTHER.into(), state: &|| belongings(&host) });
        host.root("ojail layer verify; cd /srv/overlay/lowerdirs; test -z \"$(ls -A .making)\"").ok();
    }
}

#[test]
fn a_kill_at_any_system_call_of_a_backup_leaves_a_whole_one() {
    lab::require_root!();
    let host = two();
    for begin in BACKUPS {
        let begin = format!("{OTHER}; {begin}");
        let act = Act { host: &host, command: "ojail backup /backup", begin, state: &|| belongings(&host) };
        let (old, new) = act.states();
        act.kill(|at| {
            let now = belongings(&host);
            assert!(now == old || now == new, "{at}:\n{now}\nis neither\n{old}\nnor\n{new}");
            host.root(act.command).ok();
            assert_eq!(belongings(&host), new, "{at}, and once more");
            assert_eq!(rubbish(&host), "", "{at}, and once more");
            // Nothing that nothing names.
            let files = host.root("find /backup -type f ! -name manifest.json | wc -l").text();
            assert_eq!(
                files,
                new.lines().filter(|line| line.starts_with("backup ")).count().to_string(),
                "{at}"
            );
        });
    }
}
