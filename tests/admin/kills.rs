//! A kill at any system call of what copies, restores and forgets: nothing is lost, and the next call comes to the end.

use std::fmt::Write as _;

use lab::Host;
use serde_json::Value;

use crate::common::{calls, digest, host};

const UPPER: &str = "/srv/overlay/upperdirs/alice";
const SHELF: &str = "/srv/overlay/asidedirs/alice";

/// All that there is of alice's: a line for her upper and one for each on the shelf that `ojail` knows of, by what is in them.
fn state(host: &Host) -> String {
    let mut state = String::new();
    if host.path(UPPER).exists() {
        writeln!(state, "upper {}", digest(host, UPPER)).unwrap();
    }
    let list = host.root("ojail reset --list alice --json").run().text();
    let list: Value = serde_json::from_str(&list).unwrap_or_default();
    for entry in list["aside"].as_array().into_iter().flatten() {
        let why = entry["record"]["why"].as_str().unwrap();
        writeln!(state, "{why} {}", digest(host, entry["upper"].as_str().unwrap())).unwrap();
    }
    state
}

/// A host where alice has changed something, and a copy of that and of what she had, to begin each time anew.
fn ready() -> Host {
    let host = host("root = true");
    host.root(": > /etc/subuid; : > /etc/subgid").ok();
    host.ssh("alice", "sudo sh -c 'rm -r /usr/share/doc/bash; echo x > /etc/issue; ln /etc/issue /etc/two'")
        .ok();
    host.root("ojail stop alice; cp -a /srv/overlay/upperdirs/alice /srv/overlay/tree").ok();
    host.root("cp /var/lib/ojail/users/alice.toml /srv/overlay/alice.toml; cp -a /srv/overlay/workdirs/alice /srv/overlay/work").ok();
    host
}

/// What is before, and the command.
struct Act {
    command: &'static str,
    prepare: &'static str,
    /// Whether each state must be the one before or the one behind; else only nothing may be lost.
    one_step: bool,
}

const ACTS: [Act; 3] = [
    Act { command: "ojail snapshot alice two", prepare: "ojail snapshot alice one", one_step: true },
    Act {
        command: "ojail snapshot restore alice one",
        prepare: "ojail snapshot alice one; echo new > /srv/overlay/upperdirs/alice/new",
        one_step: true,
    },
    Act { command: "ojail forget alice --force", prepare: "ojail snapshot alice one", one_step: false },
];

impl Act {
    fn begin(&self, host: &Host) {
        let prepare = format!(
            "set -e; rm -rf {UPPER} {SHELF} /srv/overlay/workdirs/alice; cp -a /srv/overlay/tree {UPPER}; \
             cp -a /srv/overlay/work /srv/overlay/workdirs/alice; cp -a /srv/overlay/alice.toml /var/lib/ojail/users; \
             {{ {}; }} >/dev/null",
            self.prepare
        );
        host.root(&prepare).ok();
    }
}

#[test]
fn a_kill_at_any_system_call_loses_nothing_and_the_next_call_comes_to_the_end() {
    lab::require_root!();
    let host = ready();
    let traces = || {
        host.root("ls -d /srv/overlay/workdirs/alice /var/lib/ojail/users/alice.toml /run/ojail/jails/alice 2>/dev/null")
            .run()
            .text()
    };
    for act in &ACTS {
        act.begin(&host);
        let old = state(&host);
        host.root(act.command).ok();
        let new = state(&host);
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
            let at = format!("{}: a kill at {call} number {number}", act.command);
            assert!(now == old || now == new, "{at}:\n{now}\nis neither\n{old}\nnor\n{new}");
            if now == old {
                before += 1
            } else {
                behind += 1
            }
            if act.one_step {
                host.root("ojail tidy").ok();
                assert_eq!(state(&host), now, "{at}, and a tidy");
                let left = host.root("ls /srv/overlay/asidedirs/.trash 2>/dev/null").run().text();
                assert_eq!(left, "", "{at}: the trash is not empty");
            } else {
                host.root(act.command).ok();
                assert_eq!(state(&host), new, "{at}, and once more");
                assert_eq!(traces(), "", "{at}, and once more");
            }
        }
        eprintln!("{}: {} points, {before} before the step and {behind} behind it", act.command, calls.len());
        assert!(before > 50 && behind > 3, "{}: {before} before, {behind} behind", act.command);
    }
    host.root("ojail undo alice").ok();
    host.ssh("alice", "cat /etc/two").ok();
}
