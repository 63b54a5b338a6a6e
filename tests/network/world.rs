//! The world is in reach, the host's loopback is not.

use lab::world::{FAR, FAR_NAME, GATEWAY, HOST};

use crate::common::{SOON, until};
use crate::{Ask, ask, asking, heard, lines, nobody_answers, setup, tcp, udp};

#[test]
fn far_addresses_are_reached_over_both_protocols_and_by_name() {
    lab::require!(lab::must::tunnels());
    let host = setup("").start();
    let found = host.ssh("alice", &format!("getent ahosts {FAR_NAME} | cut -d ' ' -f 1 | sort -u")).text();
    assert_eq!(lines(&found), FAR);
    let all = [tcp(FAR[0], 7), udp(FAR[0], 7), tcp(FAR[1], 7), udp(FAR[1], 7)];
    let [v4, v6] = HOST.map(heard);
    assert_eq!(ask(&host, "alice", &all), [&*v4, &*v4, &*v6, &*v6]);
    assert!(ask(&host, "alice", &[tcp(FAR_NAME, 7)])[0].starts_with("heard hello from "));
    // In an interactive session, too, and after the host's network has been looked at by nobody.
    host.ssh("alice", "bash -c 'exec 3<>/dev/tcp/far.example.test/80'").tty().ok();
}

#[test]
fn apt_fetches_a_file_by_http() {
    lab::require!(lab::must::tunnels());
    let host = setup("root = true").start();
    let fetch = format!("/usr/lib/apt/apt-helper download-file http://{FAR_NAME}/file");
    host.ssh("alice", &format!("{fetch} /tmp/by-user")).ok();
    // As root, apt lets a user of its own do it.
    host.ssh("alice", &format!("sudo {fetch} /tmp/by-root")).ok();
    let fetched = host.ssh("alice", "cat /tmp/by-user /tmp/by-root").text();
    let fetched = lines(&fetched);
    assert!(fetched.len() == 2 && fetched.iter().all(|line| line.starts_with("/file for ")), "{fetched:?}");
}

#[test]
fn the_hosts_loopback_is_out_of_reach() {
    lab::require!(lab::must::tunnels());
    let host = setup("").start();
    host.serve(&["echo@127.0.0.1", "echo@::1", "echo@127.0.0.2"]);
    let places = ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::", "169.254.1.1"];
    let all: Vec<Ask<'_>> = places
        .into_iter()
        .chain(GATEWAY)
        .chain(HOST)
        .flat_map(|address| [tcp(address, 7), udp(address, 7)])
        .collect();
    // They are there, for the host.
    let own = host.root(&asking(&all)).text();
    assert!(own.starts_with("heard hello from 127.0.0.1\n"), "{own}");
    nobody_answers(&host, "alice", &all);
    // And this is not because nothing works.
    assert_eq!(ask(&host, "alice", &[tcp(FAR[0], 7)]), [heard(HOST[0])]);
}

#[test]
fn two_jails_are_not_on_one_loopback() {
    lab::require!(lab::must::tunnels());
    let host = setup("").start();
    let _listener = host.ssh("alice", "exec socat TCP-LISTEN:7001,fork,reuseaddr EXEC:cat").spawn();
    until("alice reaches her own", SOON, || ask(&host, "alice", &[tcp("127.0.0.1", 7001)]) == ["hello"]);
    let all = ["127.0.0.1", HOST[0], HOST[1], GATEWAY[0], "::1"].map(|address| tcp(address, 7001));
    nobody_answers(&host, "carol", &all);
    assert_eq!(lines(&host.root(&asking(&all)).ok().stdout).concat(), "", "it is on the host, too");
}

#[test]
fn a_resolver_on_the_hosts_loopback_answers_inside() {
    lab::require!(lab::must::tunnels());
    let host = setup("keep_warm = \"1h\"").start();
    host.serve(&["dns@127.0.0.53", "echo@127.0.0.53", "v4.example.test=198.51.100.1"]);
    host.serve(&["dns@::1", "v6.example.test=198.51.100.1"]);
    let far = |name: &str| format!("getent hosts {name} | cut -d ' ' -f 1");
    for (user, resolver, name) in
        [("alice", "127.0.0.53", "v4.example.test"), ("carol", "::1", "v6.example.test")]
    {
        let text = format!(
            "# stub\nnameserver {resolver}\noptions edns0 trust-ad timeout:1 attempts:2\nsearch example.test\n"
        );
        host.write("/etc/resolv.conf", 0o644, &text);
        assert_eq!(host.root(&far(name)).text(), FAR[0], "the host itself, {resolver}");
        assert_eq!(host.ssh(user, &far(name)).text(), FAR[0], "{resolver}");
        let (short, _) = name.split_once('.').unwrap();
        assert_eq!(host.ssh(user, &far(short)).text(), FAR[0], "{resolver}: the search list counts");
        host.ssh(user, "getent hosts other.example.test").fails();
    }
    // That is for names only.
    let all = [udp("127.0.0.53", 7), udp("127.0.0.53", 53), udp("169.254.1.1", 7), tcp("169.254.1.1", 7)];
    nobody_answers(&host, "alice", &all);
}

#[test]
fn without_a_resolver_nothing_answers_in_its_place() {
    lab::require!(lab::must::tunnels());
    let host = setup("").start();
    // What listens on the host's loopback is not for jails: not even where a resolver would be.
    host.serve(&["echo@127.0.0.1#53", "echo@::1#53"]);
    for text in ["", "nameserver 198.51.100.1\n", "nameserver 2001:db8:2::1\n"] {
        host.write("/etc/resolv.conf", 0o644, text);
        let all: Vec<Ask<'_>> = ["169.254.1.1", "fd00::53", GATEWAY[0], "127.0.0.1"]
            .into_iter()
            .flat_map(|address| [udp(address, 53), tcp(address, 53)])
            .collect();
        // The world's own resolver is asked in vain, for this is no question.
        nobody_answers(&host, "alice", &all);
        host.root("ojail stop alice").ok();
    }
}

#[test]
fn a_host_without_ipv6_is_enough() {
    lab::require!(lab::must::tunnels());
    let host = setup("publish = [\"8080:7001/tcp\"]").start();
    host.root("sysctl -qw net.ipv6.conf.all.disable_ipv6=1").ok();
    let _listener = host.ssh("alice", "exec socat TCP-LISTEN:7001,fork,reuseaddr EXEC:cat").spawn();
    let all = [tcp(FAR[0], 7), udp(FAR[0], 7)];
    assert_eq!(ask(&host, "alice", &all), [heard(HOST[0]), heard(HOST[0])]);
    until("it is published", SOON, || host.world(&asking(&[tcp(HOST[0], 8080)])).text() == "hello");
}

#[test]
fn sys_shows_the_jails_own_network_and_cannot_be_written() {
    lab::require!(lab::must::tunnels());
    let host = setup("root = true").start();
    host.root("ip link add only-on-host type veth peer name not-inside").ok();
    let names = host.ssh("alice", "ls /sys/class/net").text();
    assert!(names.lines().any(|name| name == "lo") && names.lines().count() == 2, "{names}");
    assert!(!names.contains("only-on-host"), "{names}");
    for before in ["", "sudo "] {
        host.ssh("alice", &format!("{before}sh -c 'echo 1 > /sys/class/net/lo/mtu'")).fails();
    }
}
