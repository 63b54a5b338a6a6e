//! The doors of a private network: `reach`, `publish`, and SSH's own forwarding.

use lab::Host;
use lab::world::{FAR, HOST};

use crate::common::{SOON, until};
use crate::{Ask, ask, asking, heard, lines, nobody_answers, setup, tcp, udp};

/// Servers in alice's jail, for as long as the session that this returns.
fn servers<'h>(host: &'h Host, sudo: &str, port: u16) -> lab::Running<'h> {
    let listen = format!(
        "{sudo}socat TCP6-LISTEN:{port},ipv6only=0,fork,reuseaddr EXEC:cat & \
         {sudo}socat UDP6-RECVFROM:{port},ipv6only=0,fork EXEC:cat & wait"
    );
    let running = host.ssh("alice", &listen).spawn();
    let own = [tcp("127.0.0.1", port), udp("127.0.0.1", port)];
    until("they listen", SOON, || ask(host, "alice", &own) == ["hello", "hello"]);
    running
}

#[test]
fn root_of_the_jail_serves_on_low_ports() {
    lab::require!(lab::must::tunnels());
    let host = setup("root = true").start();
    let _servers = servers(&host, "sudo ", 80);
    // Nobody else sees it.
    let from_outside = [tcp(HOST[0], 80), udp(HOST[0], 80), tcp(HOST[1], 80)];
    assert_eq!(lines(&host.world(&asking(&from_outside)).ok().stdout).concat(), "");
    assert_eq!(lines(&host.root(&asking(&[tcp("127.0.0.1", 80)])).ok().stdout).concat(), "");
}

#[test]
fn exactly_the_ports_that_reach_names_lead_to_the_hosts_loopback() {
    lab::require!(lab::must::tunnels());
    let host = setup("reach = [\"7001/tcp\", \"7002/udp\", \"700/tcp\"]").start();
    host.serve(&["echo@127.0.0.1#7001", "echo@127.0.0.1#7002", "echo@127.0.0.1#700", "echo@127.0.0.1#7003"]);
    let open = [tcp("127.0.0.1", 7001), udp("127.0.0.1", 7002), tcp("127.0.0.1", 700)];
    let answers = ask(&host, "alice", &open);
    assert_eq!(answers, vec![heard("127.0.0.1"); 3]);
    let closed = [
        udp("127.0.0.1", 7001),
        tcp("127.0.0.1", 7002),
        udp("127.0.0.1", 700),
        tcp("127.0.0.1", 7003),
        udp("127.0.0.1", 7003),
        tcp("127.0.0.1", 22),
        tcp("169.254.1.1", 7001),
        tcp("192.0.2.1", 7001),
        tcp("192.0.2.2", 7003),
    ];
    nobody_answers(&host, "alice", &closed);
    // While nobody serves there, nobody is reached; whoever comes later is.
    host.root("pkill -f '[e]cho@127.0.0.1#7001'").ok();
    nobody_answers(&host, "alice", &[tcp("127.0.0.1", 7001)]);
    host.serve(&["echo@127.0.0.1#7001"]);
    assert_eq!(ask(&host, "alice", &[tcp("127.0.0.1", 7001)]), [heard("127.0.0.1")]);
}

/// What most programs are configured with, and try as `::1` first.
#[test]
fn a_port_in_reach_is_reached_by_the_name_of_localhost() {
    lab::require!(lab::must::tunnels());
    let host = setup("reach = [\"7001/tcp\"]").start();
    host.serve(&["echo@127.0.0.1#7001"]);
    assert_eq!(host.ssh("alice", "getent ahosts localhost | grep -c ^::1").run().text(), "3");
    assert_eq!(ask(&host, "alice", &[tcp("localhost", 7001)]), [heard("127.0.0.1")]);
}

#[test]
fn two_jails_reach_the_same_port() {
    lab::require!(lab::must::tunnels());
    let host = setup("reach = [\"7001/tcp\"]").start();
    host.serve(&["echo@127.0.0.1#7001"]);
    for user in ["alice", "carol", "dave", "alice"] {
        assert_eq!(ask(&host, user, &[tcp("127.0.0.1", 7001)]), [heard("127.0.0.1")], "{user}");
    }
}

#[test]
fn a_published_port_leads_from_the_host_and_the_world_into_the_jail() {
    lab::require!(lab::must::tunnels());
    let host = setup("root = true\npublish = [\"8080:80/tcp\", \"8053:80/udp\"]").start();
    let _servers = servers(&host, "sudo ", 80);
    let there: Vec<Ask<'_>> = HOST.into_iter().flat_map(|own| [tcp(own, 8080), udp(own, 8053)]).collect();
    // IPv6 needs a second: the pasta of 2023 learns the jail's address only when it has seen it.
    until("it is published to the world", SOON, || {
        lines(&host.world(&asking(&there)).ok().stdout) == vec!["hello"; 4]
    });
    let here = ["127.0.0.1", "::1", HOST[0], HOST[1]].map(|own| tcp(own, 8080));
    until("it is published to the host", SOON, || {
        lines(&host.root(&asking(&here)).ok().stdout) == vec!["hello"; 4]
    });
    // The numbers of the jail are not those of the host, nor is one protocol the other.
    let closed = [tcp(HOST[0], 80), udp(HOST[0], 80), udp(HOST[0], 8080), tcp(HOST[0], 8053)];
    assert_eq!(lines(&host.world(&asking(&closed)).ok().stdout).concat(), "");

    host.root("ojail stop alice").ok();
    assert_eq!(lines(&host.world(&asking(&there)).ok().stdout).concat(), "");
    assert_eq!(host.root("ss -Hltun | grep -E ':(8080|8053) '").run().text(), "", "the ports are free again");
}

#[test]
fn forwarded_ports_end_inside_and_reach_the_world() {
    lab::require!(lab::must::tunnels());
    let host = setup("").start();
    host.serve(&["echo@127.0.0.1#7001", "echo@127.0.0.1#7002"]);
    let session = host
        .ssh("alice", "socat TCP-LISTEN:7001,fork,reuseaddr EXEC:cat & echo inside; wait")
        .arg("-oExitOnForwardFailure=yes")
        .arg("-L7100:127.0.0.1:7001")
        .arg("-L7101:127.0.0.1:7002")
        .arg("-L7102:far.example.test:7")
        .arg("-L7103:127.0.0.1:22")
        .arg("-R7300:127.0.0.1:7002")
        .spawn();
    session.wait_for("inside");
    let here = |port| lines(&host.root(&asking(&[tcp("127.0.0.1", port)])).ok().stdout).concat();
    until("what the jail serves is what -L leads to", SOON, || here(7100) == "hello");
    assert_eq!(here(7101), "", "-L reached what only the host serves");
    assert_eq!(here(7103), "", "-L reached the host's sshd");
    // By name, which takes as long as it takes.
    let far = (0..5).map(|_| here(7102)).find(|far| !far.is_empty()).unwrap_or_default();
    assert!(HOST.iter().any(|own| far == heard(own)), "{far}");
    // The other way round the listener is in the jail, and the client's side is the host.
    assert_eq!(ask(&host, "alice", &[tcp("127.0.0.1", 7300)]), [heard("127.0.0.1")]);
    assert_eq!(here(7300), "", "-R listens on the host");
    assert_eq!(ask(&host, "alice", &[tcp(FAR[0], 7)]), [heard(HOST[0])]);
}
