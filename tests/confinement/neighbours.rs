//! What the host's other processes offer, and a jail must not reach: abstract sockets, keys, memory.

use crate::common::{SOON, config, setup, until};
use lab::{Host, Setup, User};

/// A host with python3 in its jails.
fn with_python(keys: &str) -> Setup {
    lab::host()
        .user(User::new("alice").groups(["jailed"]))
        .layer("debian")
        .layer("tools")
        .config(&config(keys).replace("[\"debian\"]", "[\"tools\", \"debian\"]"))
        .pam("sshd")
}

const ABSTRACT: &str = "socat -u ABSTRACT-CONNECT:secret STDOUT";

fn listens(host: &Host) -> bool {
    host.root(ABSTRACT).run().text() == "from the host"
}

#[test]
fn the_hosts_abstract_sockets_are_out_of_reach() {
    lab::require_root!();
    lab::require!(lab::must::landlock_scopes());
    for keys in ["network = \"host\"", "network = \"host\"\nroot = true", "network = \"none\""] {
        let host = with_python(keys).start();
        let _listener =
            host.root("exec socat ABSTRACT-LISTEN:secret,fork 'SYSTEM:echo from the host'").spawn();
        until("it listens", SOON, || listens(&host));
        let refused = host.ssh("alice", ABSTRACT).fails();
        let expected = if keys.contains("none") { "Connection refused" } else { "Operation not permitted" };
        assert!(refused.stderr.contains(expected), "{keys}: {refused}");
        if keys.contains("root") {
            host.ssh("alice", &format!("sudo {ABSTRACT}")).fails();
        }
        // One's own still work.
        let own = "socat ABSTRACT-LISTEN:own 'SYSTEM:echo mine' & \
                   until socat -u ABSTRACT-CONNECT:own STDOUT 2>/dev/null; do sleep 0.05; done";
        assert_eq!(host.ssh("alice", own).text(), "mine", "{keys}");
    }
}

#[test]
fn a_session_is_for_nobody_to_look_into() {
    lab::require_root!();
    let host = setup("root = true").start();
    let _session = host.ssh("alice", "exec sleep 300").spawn();
    until("the session is open", SOON, || crate::common::sessions(&host, "alice") == 1);
    // sshd's process that has become the user, and the login process itself.
    let own =
        host.root("for pid in $(pgrep -x sshd); do stat -c '%u' /proc/$pid/environ; done | sort -u").text();
    assert_eq!(own, "0", "an undumpable process' files belong to host root");
}
