//! The world around a host with a network: the other end of its cable, and what is far behind it.
//!
//! It is a second bare host, with the cable's end, addresses that look far away, and a few servers. All addresses are of
//! those that are reserved for examples (RFC 5737, RFC 3849), and the names end in `.test` (RFC 6761): were anything to
//! get out of here, it would lead nowhere.
//!
//! The host is [`HOST`] on its `eth0`. Its default route leads to [`GATEWAY`], where DNS answers for [`FAR_NAME`]. Behind it
//! is [`FAR`], with a web server (80) that answers with what it was asked and by whom, and an echo (7, TCP and UDP).

use std::fs::File;
use std::process::Command;

use crate::host::Host;
use crate::namespaces::start_afresh;

/// The host's own addresses.
pub const HOST: [&str; 2] = ["192.0.2.2", "2001:db8:1::2"];

/// The world's addresses on the cable. DNS answers there, and the host's `resolv.conf` names the first.
pub const GATEWAY: [&str; 2] = ["192.0.2.1", "2001:db8:1::1"];

/// Addresses that nobody has a cable to.
pub const FAR: [&str; 2] = ["198.51.100.1", "2001:db8:2::1"];

/// Who has both of [`FAR`].
pub const FAR_NAME: &str = "far.example.test";

/// See the file.
const SERVERS: &str = include_str!("world.py");

/// Both ends: link-local addresses are there at once, and nobody listens to routers.
const PREPARE: &str = "
    for setting in accept_dad accept_ra; do
        echo 0 > /proc/sys/net/ipv6/conf/all/$setting
        echo 0 > /proc/sys/net/ipv6/conf/default/$setting
    done";

/// IPv6 addresses are of use when the kernel has got to them; the link-local one comes by itself, up to a second later.
const SETTLED: &str = "
    until ip -6 address show dev eth0 scope link | grep -q inet6 && ! ip -6 address show tentative | grep -q inet6; do
        sleep 0.01
    done";

/// Raises the world and plugs the host in.
pub(crate) fn around(host: &Host) -> Host {
    let world = Host::furnished(&crate::host().without_ojail(), "host");
    for end in [host, &world] {
        end.root(PREPARE).ok();
    }
    cable(host, &world);
    // The host last: a cable is up when both ends are.
    for (end, [v4, v6]) in [(&world, GATEWAY), (host, HOST)] {
        end.root(
            "ip address add $1/24 dev eth0 && ip address add $2/64 dev eth0 nodad && ip link set eth0 up",
        )
        .arg(v4)
        .arg(v6)
        .ok();
    }
    let [v4, v6] = FAR;
    world.root("ip address add $1/32 dev lo && ip address add $2/128 dev lo").arg(v4).arg(v6).ok();
    for end in [&world, host] {
        end.root(SETTLED).ok();
    }
    let [v4, v6] = GATEWAY;
    host.root("ip route add default via $1 && ip -6 route add default via $2").arg(v4).arg(v6).ok();
    host.write("/etc/resolv.conf", 0o644, &format!("nameserver {v4}\n"));

    let mut servers: Vec<String> = GATEWAY.map(|address| format!("dns@{address}")).into();
    for address in FAR {
        servers.extend(["http", "echo"].map(|service| format!("{service}@{address}")));
        servers.push(format!("{FAR_NAME}={address}"));
    }
    serve(&world, &servers);
    world
}

/// Starts the world's servers in any host.
pub(crate) fn serve<S: AsRef<str>>(host: &Host, what: &[S]) {
    host.exec(["python3", "-c", SERVERS]).then(what.iter().map(AsRef::as_ref)).ok();
}

/// Makes a pair of interfaces, one here and one there.
fn cable(host: &Host, world: &Host) {
    // Its PID means nothing inside the host, where `ip` runs; a descriptor does.
    let there = File::open(format!("/proc/{}/ns/net", world.pid())).expect("the world's PID 1 is alive");
    let output = host.inside(|| {
        let mut ip = Command::new("/usr/sbin/ip");
        ip.args(["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", "/proc/self/fd/0"]);
        start_afresh(&mut ip).stdin(there).output()
    });
    let output = output.expect("every host has ip");
    assert!(output.status.success(), "no cable: {}", String::from_utf8_lossy(&output.stderr));
}
