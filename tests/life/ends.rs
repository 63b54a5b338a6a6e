//! How a jail ends, and that nothing of it is left.

use std::time::Duration;

use crate::common::{SOON, host, init, remains, runs, sessions, until};

/// Nothing is left of a jail that ended but its upper.
#[track_caller]
fn is_gone(host: &lab::Host, mounts: &str) {
    assert_eq!(remains(host, "alice"), "", "something is left");
    assert_eq!(host.mountinfo(), mounts, "the host's mount table has changed");
    let upper = std::fs::read_to_string(host.path("/srv/overlay/upperdirs/alice/var/tmp/kept"));
    assert_eq!(upper.ok().as_deref(), Some("kept\n"), "the upper is gone");
}

#[test]
fn without_keep_warm_nothing_is_left_of_an_empty_jail() {
    lab::require_root!();
    let host = host("keep_warm = \"0\"");
    let mounts = host.mountinfo();
    host.ssh("alice", "echo kept > /var/tmp/kept").ok();
    until("the jail has ended", SOON, || !runs(&host, "alice"));
    until("nothing is left", SOON, || remains(&host, "alice").is_empty());
    is_gone(&host, &mounts);
    host.wait_for_log("why=\"it was empty\"");
}

#[test]
fn a_jail_in_which_something_lingers_is_not_empty() {
    lab::require_root!();
    let host = host("keep_warm = \"0\"");
    host.ssh("alice", "nohup sleep 2 >/dev/null 2>&1 &").ok();
    until("the session is over", SOON, || sessions(&host, "alice") == 0);
    assert!(runs(&host, "alice"), "the jail did not wait for what lingers");
    until("the jail has ended", SOON, || !runs(&host, "alice"));
}

#[test]
fn a_stop_ends_open_sessions_and_returns_when_nothing_is_left() {
    lab::require_root!();
    let host = host("");
    let mounts = host.mountinfo();
    let plain = host.ssh("alice", "echo kept > /var/tmp/kept; echo inside; sleep 300").spawn();
    plain.wait_for("inside");
    // One that hears no signal, and one on a terminal.
    let deaf = host.ssh("alice", "trap '' HUP TERM INT; echo inside; while :; do sleep 1; done").spawn();
    deaf.wait_for("inside");
    let terminal = host.ssh("alice", "echo inside; sleep 300").tty().spawn();
    terminal.wait_for("inside");

    let said = host.root("ojail stop alice").text();
    is_gone(&host, &mounts);
    assert!(said.contains("has ended"), "{said}");
    for session in [plain, deaf, terminal] {
        session.finish().fails();
    }
    assert_eq!(host.ssh("alice", "cat /var/tmp/kept").text(), "kept");
}

#[test]
fn a_stop_works_on_a_jail_whose_pid_1_is_stopped() {
    lab::require_root!();
    let host = host("");
    let mounts = host.mountinfo();
    host.ssh("alice", "echo kept > /var/tmp/kept").ok();
    let pid = init(&host, "alice");
    host.root(&format!("kill -STOP {pid}")).ok();
    host.root("ojail stop alice").within(Duration::from_secs(40)).ok();
    is_gone(&host, &mounts);
}

#[test]
fn a_stop_of_what_does_not_run_says_so() {
    lab::require_root!();
    let host = host("");
    let said = host.root("ojail stop alice").text();
    assert!(said.contains("no running jail"), "{said}");
    let output = host.root("ojail stop alcie").fails();
    assert_eq!(output.code(), Some(1));
    assert_eq!(output.stderr, "ojail: user \"alcie\" does not exist\n");
}

#[test]
fn after_a_kill_of_pid_1_the_next_login_raises_anew_on_the_same_upper() {
    lab::require_root!();
    let host = host("");
    let mounts = host.mountinfo();
    let session = host.ssh("alice", "echo kept > /var/tmp/kept; echo inside; sleep 300").spawn();
    session.wait_for("inside");
    let first = init(&host, "alice");
    host.root(&format!("kill -9 {first}")).ok();
    assert_eq!(host.ssh("alice", "cat /var/tmp/kept").text(), "kept");
    assert_ne!(init(&host, "alice"), first);
    session.finish().fails();
    host.root("ojail stop alice").ok();
    is_gone(&host, &mounts);
}

#[test]
fn a_kill_of_pid_1_that_no_login_follows_leaves_nothing_but_the_porch() {
    lab::require_root!();
    let host = host("");
    let mounts = host.mountinfo();
    host.ssh("alice", "echo kept > /var/tmp/kept").ok();
    until("the session is over", SOON, || sessions(&host, "alice") == 0);
    let pid = init(&host, "alice");
    host.root(&format!("kill -9 {pid}")).ok();
    until("the jail has ended", SOON, || !runs(&host, "alice"));
    // Nobody is there to take the door away; it is dead, and the next raise hangs another.
    assert_eq!(remains(&host, "alice"), "door");
    assert_eq!(host.mountinfo(), mounts);
    assert_eq!(host.ssh("alice", "cat /var/tmp/kept").text(), "kept");
}
