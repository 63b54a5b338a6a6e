//! Who sees whom: sessions of one user share a jail, users do not.

use lab::{Host, Running, User};

use crate::common::setup;

/// A session of the user's with a process and a file that others could see.
fn resident<'h>(host: &'h Host, user: &str, number: &str) -> Running<'h> {
    let session =
        host.ssh(user, &format!("echo secret > /tmp/of-{user}; echo inside; exec sleep {number}")).spawn();
    session.wait_for("inside");
    session
}

#[test]
fn sessions_of_one_user_see_each_other_and_nobody_else_does() {
    lab::require_root!();
    let host = setup("").user(User::new("dave").groups(["jailed"])).start();
    let _alice = resident(&host, "alice", "4711");
    let _dave = resident(&host, "dave", "4712");
    let _bob = resident(&host, "bob", "4713");

    let seen = |user: &str| host.ssh(user, "ps -eo args; ls /tmp; ls /home").text();
    let alice = seen("alice");
    for own in ["sleep 4711", "of-alice", "ojail-init"] {
        assert!(alice.contains(own), "{alice}");
    }
    let dave = seen("dave");
    assert!(dave.contains("sleep 4712") && dave.contains("of-dave"), "{dave}");
    for (what, others) in
        [(&alice, ["dave", "bob", "4712", "4713"]), (&dave, ["alice", "bob", "4711", "4713"])]
    {
        for other in others {
            assert!(!what.contains(other), "{other} is seen in:\n{what}");
        }
        assert!(
            !what.contains("sshd -D") && !what.contains("[listener]"),
            "the host's sshd is seen:\n{what}"
        );
    }

    // One user's second session can end what the first one runs.
    host.ssh("dave", "pkill -f '^sleep 4711'").fails();
    host.ssh("alice", "pkill -f '^sleep 4711'").ok();
    // A host user has the host's process list and the host's /tmp.
    let bob = seen("bob");
    assert!(bob.contains("4713") && bob.contains("of-bob") && !bob.contains("of-alice"), "{bob}");
    host.ssh("bob", "pkill -f '^sleep 4712'").fails();
    host.ssh("bob", "cat /proc/$(pgrep -f '^sleep 4712')/root/tmp/of-dave").fails();
}

#[test]
fn users_share_no_files_no_semaphores_and_no_sockets() {
    lab::require_root!();
    let host = setup("").user(User::new("dave").groups(["jailed"])).start();
    let session = host
        .ssh("alice", "umask 0; mkdir /var/tmp/open; echo x > /var/tmp/open/x; echo x > /dev/shm/x; ipcmk -Q -p 666; echo inside; exec sleep 300")
        .spawn();
    session.wait_for("inside");
    assert_eq!(host.ssh("alice", "cat /var/tmp/open/x /dev/shm/x; ipcs -q | grep -c 666").text(), "x\nx\n1");
    for user in ["dave", "bob"] {
        let found =
            host.ssh(user, "ls /var/tmp/open /dev/shm/x 2>/dev/null; ipcs -q | grep -c 666").run().text();
        assert_eq!(found, "0", "{user}");
    }
}
