//! `ojail enter`: a session without SSH.

use crate::common::{host, jail, runs, sessions};

#[test]
fn enter_gives_the_commands_output_and_status() {
    lab::require_root!();
    let host = host("");
    assert!(!runs(&host, "alice"));
    let output = host
        .root("ojail enter alice -- sh -c 'id -un; tty; cat /proc/1/comm; pwd; echo wrong >&2; exit 7'")
        .run();
    assert_eq!(output.code(), Some(7), "{output}");
    assert_eq!(output.text(), "alice\nnot a tty\nojail-init\n/home/alice");
    assert_eq!(output.stderr, "wrong\n");
    assert!(runs(&host, "alice"), "enter raises a jail");
    assert_eq!(sessions(&host, "alice"), 0);
    assert_eq!(host.root("ojail enter alice -- sh -c 'kill -9 $$'").run().code(), Some(137));
    assert_eq!(host.root("ojail enter alice -- nonsense").run().code(), Some(127));
}

#[test]
fn enter_carries_standard_input_through() {
    lab::require_root!();
    let host = host("");
    assert_eq!(host.root("echo hi | ojail enter alice -- cat").text(), "hi");
    let much = "0123456789abcdef".repeat(1 << 16);
    let counted = host.root("ojail enter alice -- sha256sum").stdin(&much).text();
    assert_eq!(counted, host.exec(["sha256sum"]).stdin(&much).text());
    assert_eq!(host.root("ojail enter alice -- head -c 100000000 /dev/zero | wc -c").text(), "100000000");
}

#[test]
fn enter_is_a_session_like_any_other() {
    lab::require_root!();
    let host = host("");
    let session = host.root("ojail enter alice -- sh -c 'echo inside; grep -E \"^(NoNewPrivs|CapBnd)\" /proc/self/status; read x'").spawn();
    let said = session.wait_for("CapBnd");
    let jail = jail(&host, "alice").expect("the jail runs");
    assert_eq!(jail["sessions"][0]["service"], "enter", "{jail}");
    assert_eq!(host.ssh("alice", "pgrep -c -x sh").text(), "1", "not in the jail of the other sessions");
    let said = said + &session.finish().stdout;
    assert!(said.contains("NoNewPrivs:\t1") && said.contains("CapBnd:\t0000000000000000"), "{said}");
}

#[test]
fn enter_on_a_terminal_has_one_of_the_jails() {
    lab::require_root!();
    let host = host("");
    let output = host.root("script -qec 'ojail enter alice -- sh -c \"tty; test -t 0 && test -t 2 && echo terminal; exit 7\"' /dev/null").run();
    assert_eq!(output.code(), Some(7), "{output}");
    assert!(output.stdout.contains("/dev/pts/0\r\nterminal\r\n"), "{output}");
    // A login shell that is typed into.
    let mut shell = host.root("script -qec 'ojail enter alice' /dev/null").spawn();
    shell.write("echo $((6*7)) $0; exit\n");
    shell.wait_for("42 -bash");
    shell.finish().ok();
}

#[test]
fn enter_refuses_who_is_not_jailed() {
    lab::require_root!();
    let host = host("");
    for (user, why) in [
        ("bob", "is not jailed: no rule matches"),
        ("root", "uid 0 is always exempt"),
        ("alcie", "does not exist"),
    ] {
        let output = host.root(&format!("ojail enter {user} -- touch /tmp/ran-on-host")).fails();
        assert!(output.stderr.contains(why), "{output}");
        assert_eq!(output.code(), Some(1));
    }
    assert!(!host.path("/tmp/ran-on-host").exists());
    let output = host.ssh("bob", "/usr/sbin/ojail enter alice -- id").fails();
    assert!(output.stderr.contains("needs root"), "{output}");
}

#[test]
fn much_input_and_much_output_do_not_wait_for_each_other() {
    lab::require_root!();
    let host = host("");
    host.root("head -c 3000000 /dev/zero > /tmp/zeros").ok();
    // It writes eighteen bytes for each six that it reads, and so fills the pipe that leads back long before the end.
    let bytes = host.root("ojail enter alice -- od -v -An -tx1 < /tmp/zeros | wc -c").text();
    assert_eq!(bytes, "9187500");
    let writes_first = "ojail enter alice -- sh -c 'head -c 3000000 /dev/zero; cat | wc -c >&2' < /tmp/zeros";
    let output = host.root(writes_first).ok();
    assert_eq!((output.bytes.len(), output.stderr.trim()), (3_000_000, "3000000"));
    // And who reads nothing holds nobody.
    host.root("ojail enter alice -- true < /tmp/zeros").ok();
}
