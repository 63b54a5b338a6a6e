//! Users are told why what they had open has ended.

use std::time::{Duration, Instant};

use crate::common::{host, runs, setup};

const STOP: &str = "ojail: your jail is being ended by the administrator, and what you have open with it; what you changed stays.";
const RESET: &str = "ojail: your jail is being reset by the administrator; what you had open is ended.";

#[test]
fn every_terminal_is_told_before_the_jail_ends() {
    lab::require_root!();
    for (command, line) in [("ojail stop alice", STOP), ("ojail reset --force alice", RESET)] {
        let host = setup("").pam("su").pam("su-l").start();
        let mut shell = host.ssh("alice", "PS1= exec bash").tty().spawn();
        shell.write("echo in$((1+1))side > /var/tmp/changed; cat /var/tmp/changed\n");
        shell.wait_for("in2side");
        // Who does not want to be written to by others is told all the same.
        let deaf = host.ssh("alice", "mesg n; echo inside; sleep 300").tty().spawn();
        deaf.wait_for("inside");
        let enter = host
            .root("script -qec 'ojail enter alice -- sh -c \"echo inside; sleep 300\"' /dev/null")
            .spawn();
        enter.wait_for("inside");
        let su = host.root("script -qec 'su -l alice -c \"echo inside; sleep 300\"' /dev/null").spawn();
        su.wait_for("inside");
        let pipes = host.ssh("alice", "echo inside; sleep 300").spawn();
        pipes.wait_for("inside");
        // On the host, and nobody's business.
        let bob = host.ssh("bob", "echo inside; sleep 300").tty().spawn();
        bob.wait_for("inside");

        host.root(command).ok();
        assert!(!runs(&host, "alice"));
        for (who, session) in [("shell", shell), ("deaf", deaf), ("enter", enter), ("su", su)] {
            let output = session.finish();
            let times = output.stdout.matches(line).count();
            assert_eq!(times, 1, "{command}: {who} was told {times} times: {output}");
        }
        assert!(!pipes.finish().stdout.contains("ojail:"), "a line has got into what a program reads");
        assert!(!bob.kill().stdout.contains("ojail:"), "bob was told");
    }
}

#[test]
fn a_terminal_that_is_stopped_and_full_holds_nobody() {
    lab::require_root!();
    let host = host("");
    let mut full = host.ssh("alice", "echo inside; stty ixon; yes").tty().spawn();
    full.wait_for("y\r\ny\r\n");
    full.write("\x13");
    let other = host.ssh("alice", "echo inside; sleep 300").tty().spawn();
    other.wait_for("inside");
    // Until it is full, and its writer sleeps.
    let sleeps = "until grep -q '^State:.S' /proc/$(pgrep -x yes)/status; do sleep 0.1; done";
    host.ssh("alice", sleeps).ok();
    let since = Instant::now();
    host.root("ojail stop alice").ok();
    // The grace of two seconds is for what does not listen to signals.
    assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
    assert!(other.finish().stdout.contains(STOP));
    full.finish().fails();
}

#[test]
fn a_jail_that_does_not_answer_is_ended_without_a_word() {
    lab::require_root!();
    let host = host("");
    let session = host.ssh("alice", "echo inside; sleep 300").tty().spawn();
    session.wait_for("inside");
    let pid = crate::common::init(&host, "alice");
    host.root(&format!("kill -STOP {pid}")).ok();
    let since = Instant::now();
    host.root("ojail stop alice").ok();
    // One second for the word, six for the end by itself.
    assert!(since.elapsed() < Duration::from_secs(12), "{:?}", since.elapsed());
    session.finish().fails();
}
