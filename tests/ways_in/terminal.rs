//! A terminal session, driven as a person would: through a terminal on this side too.

use lab::{Host, Running};

use crate::common::{SOON, setup, until};

/// An SSH client, in a terminal of the host's with 33 lines of 101 columns.
fn terminal<'h>(host: &'h Host, client: &str) -> Running<'h> {
    let client = format!("stty rows 33 cols 101; exec {client}");
    host.exec(["script", "-qec", &client, "/dev/null"]).spawn()
}

#[test]
fn a_terminal_is_the_jails_own_and_has_the_clients_size() {
    lab::require_root!();
    let host = setup("").start();
    let mut session = terminal(&host, "ssh alice@127.0.0.1");
    session.write("echo tty=$(tty) size=$(stty size) owner=$(stat -c %U:%G:%a $(tty))\n");
    session.wait_for("tty=/dev/pts/0 size=33 101 owner=alice:tty:620");
    session.write("echo shell=$0 and $(ls /dev/pts)\n");
    session.wait_for("shell=-bash and 0 ptmx");
    // The host has the client's terminal and no other.
    assert_eq!(host.root("ls /dev/pts").text(), "0\nptmx");

    host.root("stty -F /dev/pts/0 rows 50 cols 120").ok();
    session.write("until [ \"$(stty size)\" = '50 120' ]; do sleep 0.05; done; echo resized=$((1+1))\n");
    session.wait_for("resized=2");

    session.write("exit 7\n");
    assert_eq!(session.finish().code(), Some(7));
}

#[test]
fn job_control_and_interrupts_work() {
    lab::require_root!();
    let host = setup("").start();
    let mut session = terminal(&host, "ssh alice@127.0.0.1");
    // Only when the job runs: a key that comes earlier is the shell's.
    session.write("sh -c 'echo running=$((1+1)); exec sleep 300'\n");
    session.wait_for("running=2");
    assert_eq!(
        host.ssh("alice", "pgrep -c sleep; cat /proc/1/comm").text(),
        "1\nojail-init",
        "it is in the jail"
    );
    session.write("\x1a");
    session.wait_for("Stopped");
    session.write("jobs -p | xargs ps -o stat= -p | sed s/^/state=/\n");
    session.wait_for("state=T");
    session.write("fg\n");
    let running = || host.ssh("alice", "ps -o stat= -C sleep").text().starts_with("S+");
    until("the job is in the foreground", SOON, running);
    session.write("\x03");
    session.write("echo status=$?\n");
    let printed = session.wait_for("status=130");
    for complaint in ["job control", "process group", "ioctl"] {
        assert!(!printed.contains(complaint), "{printed}");
    }
    session.write("\x04");
    session.finish();
}

#[test]
fn hanging_up_ends_the_foreground_job() {
    lab::require_root!();
    let host = setup("keep_warm = \"5m\"").start();
    let mut session = terminal(&host, "ssh alice@127.0.0.1");
    session.write("sh -c 'echo running=$((1+1)); exec sleep 300'\n");
    session.wait_for("running=2");
    assert_eq!(
        host.ssh("alice", "pgrep -c sleep; cat /proc/1/comm").text(),
        "1\nojail-init",
        "it is in the jail"
    );
    session.kill();
    until("the job is gone", SOON, || host.ssh("alice", "pgrep sleep").run().code() == Some(1));
}

#[test]
fn without_a_terminal_there_is_none() {
    lab::require_root!();
    let host = setup("").start();
    assert_eq!(host.ssh("alice", "cat /proc/1/comm; tty").run().text(), "ojail-init\nnot a tty");
    host.ssh("alice", "exec 3<>/dev/tty").fails();
}
