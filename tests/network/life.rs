//! A private network lives and ends with its jail, and the jail with its network.

use lab::world::{FAR, HOST};

use crate::common::{SOON, init, jail, logged, namespaces, remains, runs, until};
use crate::{ask, heard, pasta, pastas, setup, tcp};

#[test]
fn the_jail_ends_with_its_network_and_the_next_login_raises_another() {
    lab::require!(lab::must::tunnels());
    let host = setup("").start();
    let session = host.ssh("alice", "echo inside; exec sleep 300").spawn();
    session.wait_for("inside");
    let first = init(&host, "alice");

    host.root(&format!("kill -KILL {}", pasta(&host))).ok();

    assert!(!session.finish().status.success(), "the session outlived the network");
    until("the jail has ended", SOON, || remains(&host, "alice").is_empty());
    assert!(host.wait_for_log("event=jail-ended").contains("network"), "{:#?}", host.log());
    assert_eq!(ask(&host, "alice", &[tcp(FAR[0], 7)]), [heard(HOST[0])]);
    assert_ne!(init(&host, "alice"), first);
}

#[test]
fn nothing_is_left_of_a_network_when_the_jail_is_stopped() {
    lab::require!(lab::must::tunnels());
    let host = setup("").start();
    let session = host.ssh("alice", "echo inside; exec sleep 300").spawn();
    session.wait_for("inside");
    host.ssh("carol", "true").ok();
    assert_eq!(pastas(&host).len(), 2);
    host.root("ojail stop alice").ok();
    until("one is left, carol's", SOON, || pastas(&host).len() == 1);
    assert_eq!(ask(&host, "carol", &[tcp(FAR[0], 7)]), [heard(HOST[0])]);
    host.root("ojail stop carol").ok();
    assert_eq!(pastas(&host), [0; 0]);
    assert_eq!(remains(&host, "alice"), "");
}

#[test]
fn nothing_is_left_of_a_network_when_the_jails_pid_1_is_killed() {
    lab::require!(lab::must::tunnels());
    let host = setup("publish = [\"8080:80/tcp\"]").start();
    host.ssh("alice", "true").ok();
    assert_eq!(pastas(&host).len(), 1);
    host.root(&format!("kill -KILL {}", init(&host, "alice"))).ok();
    until("all has ended", SOON, || namespaces(&host).is_empty());
    assert_eq!(pastas(&host), [0; 0]);
    // The port is free, too.
    host.ssh("alice", "true").ok();
}

#[test]
fn the_network_is_nobodys_process() {
    lab::require!(lab::must::tunnels());
    let host = setup("keep_warm = \"2s\"").start();
    host.ssh("alice", "true").ok();
    until("nothing else is counted", SOON, || jail(&host, "alice").is_none_or(|jail| jail["processes"] == 0));
    // An empty jail ends, and the network does not keep it.
    until("it has ended", SOON, || !runs(&host, "alice"));
    assert!(host.wait_for_log("event=jail-ended").contains("it was empty"), "{:#?}", host.log());
}

#[test]
fn what_is_cleared_after_the_last_session_is_not_the_network() {
    lab::require!(lab::must::tunnels());
    let host = setup("linger = false").start();
    // One that obeys and one that must be killed.
    host.ssh("alice", "setsid sleep 4711 >/dev/null 2>&1 & setsid sh -c 'trap \"\" TERM HUP; sleep 4711; sleep 4711' >/dev/null 2>&1 &")
        .ok();
    let first = init(&host, "alice");
    until("they have ended", SOON, || host.root("pgrep -f '^sleep 4711'").run().code() == Some(1));
    assert_eq!(ask(&host, "alice", &[tcp(FAR[0], 7)]), [heard(HOST[0])]);
    assert_eq!(init(&host, "alice"), first, "the jail was raised anew");
    assert_eq!(logged(&host, "event=jail-ended"), 0, "{:#?}", host.log());
}

#[test]
fn a_change_of_the_ports_takes_effect_when_the_jail_is_empty() {
    lab::require!(lab::must::tunnels());
    let host = setup("").start();
    host.serve(&["echo@127.0.0.1#7001"]);
    assert_eq!(ask(&host, "alice", &[tcp("127.0.0.1", 7001)]), [""]);
    host.write("/etc/ojail/ojail.toml", 0o644, &crate::config("reach = [\"7001/tcp\"]"));
    until("a login finds the port open", SOON, || {
        ask(&host, "alice", &[tcp("127.0.0.1", 7001)]) == [heard("127.0.0.1")]
    });
}
