//! What counts as a session, what outlives it, and what the next one finds.

use lab::{Host, Running};

use crate::common::{SOON, host, init, jail, sessions, until};

/// A session that lasts, once its command runs inside.
fn lasting<'h>(host: &'h Host, user: &str) -> Running<'h> {
    let session = host.ssh(user, "echo inside; exec sleep 300").spawn();
    session.wait_for("inside");
    session
}

#[test]
fn a_session_is_counted_for_as_long_as_its_client_is_there() {
    lab::require_root!();
    let host = host("");
    let one = lasting(&host, "alice");
    let two = lasting(&host, "alice");
    let jail = jail(&host, "alice").expect("alice has a jail");
    let session = &jail["sessions"][0];
    assert_eq!(jail["sessions"].as_array().map(Vec::len), Some(2), "{jail}");
    assert_eq!((&session["service"], &session["from"]), (&"sshd".into(), &"127.0.0.1".into()), "{jail}");

    one.kill();
    until("one session is over", SOON, || sessions(&host, "alice") == 1);
    two.kill();
    until("both sessions are over", SOON, || sessions(&host, "alice") == 0);
}

#[test]
fn a_session_ends_when_its_sshd_is_killed() {
    lab::require_root!();
    let host = host("");
    let session = lasting(&host, "alice");
    let monitor = &jail(&host, "alice").expect("alice has a jail")["sessions"][0]["pid"];
    // The monitor, which opened the PAM session, and its child, which is the user.
    let all = format!("kill -9 {monitor} $(ps -o pid= --ppid {monitor})");
    // "sshd-session" since OpenSSH 9.8.
    let name = host.root(&format!("ps -o comm= -p {monitor}")).text();
    assert!(name.starts_with("sshd"), "{name}");
    host.root(&all).ok();
    until("the session is over", SOON, || sessions(&host, "alice") == 0);
    session.kill();
    assert_eq!(host.ssh("alice", "cat /proc/1/comm").text(), "ojail-init");
}

#[test]
fn killing_either_process_of_sshd_never_leaves_a_session_behind() {
    lab::require_root!();
    let host = host("");
    for victim in ["$1", "$(ps -o pid= --ppid $1)"] {
        let session = lasting(&host, "alice");
        let monitor = jail(&host, "alice").expect("alice has a jail")["sessions"][0]["pid"].to_string();
        host.root(&format!("kill -9 {victim}")).arg(&monitor).ok();
        session.kill();
        until(&format!("the session of {victim} is over"), SOON, || sessions(&host, "alice") == 0);
    }
}

#[test]
fn with_linger_a_background_process_outlives_its_session() {
    lab::require_root!();
    let host = host("linger = true");
    for start in ["nohup sleep 301 >/dev/null 2>&1 &", "setsid sleep 302 >/dev/null 2>&1 </dev/null &"] {
        host.ssh("alice", start).ok();
    }
    until("the sessions are over", SOON, || sessions(&host, "alice") == 0);
    assert_eq!(host.ssh("alice", "pgrep -c sleep").text(), "2");
}

#[test]
fn without_linger_what_is_left_ends_with_the_last_session() {
    lab::require_root!();
    let host = host("linger = false");
    let other = lasting(&host, "alice");
    host.ssh("alice", "nohup sleep 301 >/dev/null 2>&1 &").ok();
    // One that will not hear of it, and one that cannot.
    host.ssh(
        "alice",
        r#"setsid sh -c 'trap "" HUP TERM; while :; do sleep 1; done' >/dev/null 2>&1 </dev/null &"#,
    )
    .ok();
    host.ssh(
        "alice",
        "setsid sleep 302 >/dev/null 2>&1 </dev/null & until pkill -STOP -f 'sleep 302$'; do :; done",
    )
    .ok();
    assert_eq!(
        host.ssh("alice", "pgrep -c -f 'sleep 30[12]'").text(),
        "2",
        "the other session is still open"
    );

    other.kill();
    until("everything is over", SOON, || jail(&host, "alice").is_some_and(|jail| jail["processes"] == 0));
    assert!(init(&host, "alice") > 0, "the jail itself stays warm");
}

#[test]
fn a_warm_jail_is_used_again() {
    lab::require_root!();
    let host = host("keep_warm = \"15m\"");
    let first = host.ssh("alice", "touch /tmp/left; readlink /proc/self/ns/pid").text();
    let pid = init(&host, "alice");
    assert_eq!(host.ssh("alice", "ls /tmp; readlink /proc/self/ns/pid").text(), format!("left\n{first}"));
    assert_eq!(init(&host, "alice"), pid);
}

#[test]
fn a_changed_configuration_replaces_an_empty_jail_and_spares_one_in_use() {
    lab::require_root!();
    let host = host("");
    let session = lasting(&host, "alice");
    let first = init(&host, "alice");
    let changed = crate::common::config("network = \"none\"");
    host.write("/etc/ojail/ojail.toml", 0o644, &changed);

    let links = "ls /sys/class/net 2>/dev/null | wc -l; tail -n +3 /proc/net/dev | wc -l";
    host.ssh("alice", links).ok();
    assert_eq!(init(&host, "alice"), first, "the jail in use stays");
    assert_eq!(jail(&host, "alice").map(|jail| jail["outdated"].clone()), Some(true.into()));

    session.kill();
    host.ssh("alice", "pkill sleep").run();
    until("the jail is empty", SOON, || {
        jail(&host, "alice")
            .is_some_and(|jail| jail["processes"] == 0 && jail["sessions"] == serde_json::json!([]))
    });
    host.ssh("alice", "true").ok();
    assert_ne!(init(&host, "alice"), first, "the empty one is replaced");
    assert_eq!(jail(&host, "alice").map(|jail| jail["outdated"].clone()), Some(false.into()));
    host.wait_for_log("why=\"its profile or a layer has changed\"");
}
