//! A second SSH client: nothing depends on OpenSSH's.

use crate::common::setup;
use crate::forwarding::{LISTEN_INSIDE, answers, listener};
use crate::place::{WHERE, inside};
use crate::ssh::WARM;

#[test]
fn dropbears_client_gets_a_command_a_terminal_and_forwarding() {
    lab::require_root!();
    let host = setup(WARM).start();
    let inside = inside(&host, "alice");
    assert_eq!(host.dbclient("alice", WHERE).text(), inside);
    assert_eq!(host.dbclient("alice", "exit 9").run().code(), Some(9));

    let client = "stty rows 20 cols 70; exec dbclient -y -y -i /root/.ssh/id_dropbear alice@127.0.0.1";
    let mut session = host.exec(["script", "-qec", client, "/dev/null"]).spawn();
    session.write(format!("echo $({WHERE}) $(tty) $(stty size) $0\n"));
    session.wait_for(&format!("{inside} /dev/pts/0 20 70 -bash"));
    session.write("exit 3\n");
    assert_eq!(session.finish().code(), Some(3));

    // The jail has the host's network here, so what differs is the way: through a process of the jail's.
    let _listener = listener(&host, "TCP-LISTEN:7001,bind=127.0.0.1", "from the host");
    let forward = host
        .dbclient("alice", "echo inside; exec sleep 300")
        .arg("-L7100:127.0.0.1:7001")
        .arg("-R7300:127.0.0.1:7001")
        .spawn();
    forward.wait_for("inside");
    assert_eq!(answers(&host, "TCP:127.0.0.1:7100"), "from the host");
    assert_eq!(answers(&host, "TCP:127.0.0.1:7300"), "from the host");
    assert_eq!(crate::place::of_processes(&host, "alice"), [inside]);
}

#[test]
fn dropbears_client_forwards_to_the_jails_loopback() {
    lab::require_root!();
    let host = crate::forwarding::setup("network = \"none\"").start();
    let _listener = listener(&host, "TCP-LISTEN:7001,bind=127.0.0.1", "from the host");
    let forward = host.dbclient("alice", LISTEN_INSIDE).arg("-L7100:127.0.0.1:7001").spawn();
    forward.wait_for("inside");
    assert_eq!(answers(&host, "TCP:127.0.0.1:7001"), "from the host");
    assert_eq!(answers(&host, "TCP:127.0.0.1:7100"), "from the jail");
}
