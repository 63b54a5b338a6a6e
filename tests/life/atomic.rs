//! What changes places does so in one step: whatever happens in between, all is as it was, or as it should be.

use std::fmt::Write as _;

use lab::Host;

use crate::common::{calls, digest, host};

const UPPER: &str = "/srv/overlay/upperdirs/alice";
const SHELF: &str = "/srv/overlay/asidedirs/alice";

/// All that there is of alice's: a line for her upper and one for each on the shelf that `ojail` knows of, by what is in them.
fn state(host: &Host) -> String {
    let mut state = String::new();
    if host.path(UPPER).exists() {
        writeln!(state, "upper {}", digest(host, UPPER)).unwrap();
    }
    let list = host.root("ojail reset --list alice --json").text();
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    for entry in list["aside"].as_array().unwrap() {
        writeln!(state, "aside {}", digest(host, entry["upper"].as_str().unwrap())).unwrap();
    }
    state
}

/// Something to be cleared, and a way back to it.
struct Act {
    name: &'static str,
    command: &'static str,
    prepare: &'static str,
}

/// In `/srv/overlay/tree` is an upper's content; each preparation puts it where the act begins.
const ACTS: [Act; 4] = [
    Act {
        name: "reset",
        command: "ojail reset alice",
        prepare: "cp -a /srv/overlay/tree /srv/overlay/upperdirs/alice",
    },
    Act {
        name: "undo, where there is an upper again",
        command: "ojail undo alice",
        prepare: "cp -a /srv/overlay/tree /srv/overlay/upperdirs/alice; ojail reset alice; \
                  mkdir /srv/overlay/upperdirs/alice; echo 2 > /srv/overlay/upperdirs/alice/second",
    },
    Act {
        name: "undo, where there is none",
        command: "ojail undo alice",
        prepare: "cp -a /srv/overlay/tree /srv/overlay/upperdirs/alice; ojail reset alice",
    },
    Act {
        name: "the reset after a reset",
        command: "ojail reset alice",
        prepare: "cp -a /srv/overlay/tree /srv/overlay/upperdirs/alice; ojail reset alice; \
                  mkdir /srv/overlay/upperdirs/alice; echo 2 > /srv/overlay/upperdirs/alice/second",
    },
];

/// A host where alice has logged in once, and a copy of what she changed.
fn ready() -> Host {
    let host = host("root = true");
    host.ssh("alice", "sudo sh -c 'rm -r /usr/share/doc/bash; echo x > /etc/issue; chmod 600 /etc/motd'")
        .ok();
    host.root("ojail stop alice; cp -a /srv/overlay/upperdirs/alice /srv/overlay/tree").ok();
    host
}

impl Act {
    fn begin(&self, host: &Host) {
        host.root(&format!("set -e; rm -rf {UPPER} {SHELF}; {{ {}; }} >/dev/null", self.prepare)).ok();
    }

    /// The states before and after.
    fn states(&self, host: &Host) -> (String, String) {
        self.begin(host);
        let old = state(host);
        host.root(self.command).ok();
        (old, state(host))
    }
}

#[test]
fn a_kill_at_any_system_call_of_reset_and_undo_leaves_the_old_or_the_new() {
    lab::require_root!();
    let host = ready();
    for act in &ACTS {
        let (old, new) = act.states(&host);
        assert_ne!(old, new);
        act.begin(&host);
        let calls = calls(&host, act.command);
        let (mut before, mut behind) = (0, 0);
        for (call, number) in &calls {
            act.begin(&host);
            let kill = format!(
                "strace -qq -o /dev/null -e 'inject={call}:signal=KILL:when={number}' {}",
                act.command
            );
            host.root(&kill).run();
            let now = state(&host);
            let at = format!("{}: a kill at {call} number {number}", act.name);
            assert!(now == old || now == new, "{at}:\n{now}\nis neither\n{old}\nnor\n{new}");
            if now == old {
                before += 1
            } else {
                behind += 1
            }
            // The next act finds its way from there, and what was begun is not in anybody's way.
            host.root("ojail tidy").ok();
            assert_eq!(state(&host), now, "{at}, and a tidy");
            let left = host.root("ls /srv/overlay/asidedirs/.trash 2>/dev/null").run().text();
            assert_eq!(left, "", "{at}: the trash is not empty");
        }
        eprintln!("{}: {} points, {before} before the step and {behind} behind it", act.name, calls.len());
        assert!(before > 50 && behind > 3, "{}: {before} before, {behind} behind", act.name);
        assert_eq!(before + behind, calls.len());
    }
    // And a login after all of it.
    host.ssh("alice", "cat /proc/1/comm").ok();
}

#[test]
fn an_error_of_the_disk_in_reset_and_undo_is_told_and_has_changed_nothing() {
    lab::require_root!();
    let host = ready();
    let errors = |call: &str| -> &[&str] {
        match call {
            "mkdir" | "write" | "rename" | "renameat2" => &["ENOSPC", "EIO", "EROFS"],
            "openat" | "openat2" | "open" => &["EMFILE", "ENOSPC", "EIO"],
            "fsync" | "fdatasync" | "syncfs" | "unlink" | "getdents64" | "flock" | "statx" | "newfstatat" => {
                &["EIO"]
            }
            _ => &[],
        }
    };
    let mut points = 0;
    for act in &ACTS {
        let (old, new) = act.states(&host);
        act.begin(&host);
        for (call, number) in calls(&host, act.command) {
            for error in errors(&call) {
                act.begin(&host);
                let inject = format!(
                    "strace -qq -o /dev/null -e 'inject={call}:error={error}:when={number}' {}",
                    act.command
                );
                let output = host.root(&inject).run();
                let at = format!("{}: {error} at {call} number {number}: {output}", act.name);
                let now = state(&host);
                if output.status.success() {
                    assert_eq!(now, new, "{at}");
                } else {
                    assert_eq!(now, old, "{at}");
                    // Of the start of a program: not ours to phrase.
                    let told = output.stderr.lines().count() == 1;
                    assert!(told || output.status.code() == Some(127), "{at}");
                }
                points += 1;
            }
        }
    }
    eprintln!("{points} errors");
    assert!(points > 100);
}
