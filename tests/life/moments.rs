//! A session begins in the very moment in which an administrator clears the jail, without `--force`.

use std::fs;

use crate::common::{SOON, host, runs, until};

/// What a session says that nobody has ended.
const WHOLE: &str = "in\nout";

#[test]
fn a_session_that_begins_between_the_look_and_the_end_is_not_ended() {
    lab::require_root!();
    for command in ["ojail reset alice", "ojail undo alice"] {
        let host = host("");
        host.ssh("alice", "echo 1 > /var/tmp/changed").ok();
        host.root("ojail reset --force alice").ok();
        host.ssh("alice", "echo 2 > /var/tmp/changed").ok();
        // Each word to the jail's PID 1 takes three seconds: whatever was heard before is old by then.
        let act = host
            .root(&format!("strace -o /root/said -s 200 -e inject=sendto:delay_enter=3000000 {command}"))
            .spawn();
        let has_looked =
            |line: &str| (line.contains("Status") && line.contains(" = ")) || line.contains("Stop");
        until("it has looked, or is about to decide", SOON, || {
            fs::read_to_string(host.path("/root/said")).is_ok_and(|said| said.lines().any(has_looked))
        });
        let session = host.ssh("alice", "echo in; read line; echo out").spawn();
        session.wait_for("in");
        let refused = act.finish().fails();
        assert!(refused.stderr.contains("sessions of alice are open (sshd from 127.0.0.1"), "{refused}");
        assert!(runs(&host, "alice"));
        assert_eq!(session.finish().stdout.trim(), WHOLE, "{command} has ended a session");
        assert_eq!(host.ssh("alice", "cat /var/tmp/changed").text(), "2");
    }
}

#[test]
fn of_many_logins_against_many_resets_none_is_ended() {
    lab::require_root!();
    let host = host("");
    let resets = host
        .root(
            "done=0 refused=0
             until [ -e /root/enough ]; do
                 if ojail reset alice 2>>/root/why; then done=$((done + 1)); else refused=$((refused + 1)); fi
             done >/dev/null
             echo $done $refused >&2",
        )
        .within(std::time::Duration::from_secs(120))
        .spawn();
    for number in 0..60 {
        let output = host.ssh("alice", "echo in; echo x > /var/tmp/changed; sleep 0.1; echo out").run();
        assert_eq!(output.text(), WHOLE, "login {number}: {output}");
        assert_eq!(output.code(), Some(0), "login {number}: {output}");
    }
    host.root("touch /root/enough").ok();
    let counts = resets.finish().ok().stderr;
    let counts: Vec<u32> = counts.split_whitespace().map(|number| number.parse().unwrap()).collect();
    assert!(counts[0] > 10 && counts[1] > 10, "resets done and refused: {counts:?}");
    let why = fs::read_to_string(host.path("/root/why")).unwrap();
    assert!(why.lines().all(|line| line.starts_with("ojail: sessions of alice are open (")), "{why}");
    eprintln!("60 logins against {} resets, and {} that were refused", counts[0], counts[1]);
}
