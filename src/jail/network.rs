//! A network of the jail's own that reaches the world: `network = "private"`.
//!
//! `pasta` (Debian's package `passt`) carries it: a process that has one foot in the jail's network namespace and the other in
//! the host's, where it does what any unprivileged user may. It runs as root of the jail, which is nobody on the host, and in
//! the jail's PID namespace: it ends with the jail, and PID 1 ends the jail if it ends first, so a jail without its network
//! never falls back to the host's.

use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sched::CloneFlags;
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};

use super::confine;
use super::door::{Answer, Door, Request};
use super::plan::Plan;
use crate::account::Username;
use crate::config::{Profile, Protocol, Publish, Reach};
use crate::error::{Act, Error, Result};
use crate::runtime;

/// Where Debian's package `passt` has it.
const PASTA: &str = "/usr/bin/pasta";

/// Where Debian's package `nftables` has it.
const NFT: &str = "/usr/sbin/nft";

/// Where the jail asks for names if the host's own resolver is out of its reach, by IPv4 and by IPv6: pasta answers there with
/// what the host's first resolver of that family says. A link-local address, the one that podman uses, and a unique local one.
const RESOLVERS: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(169, 254, 1, 1), Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x53));

/// The network's device, which must be for everybody, as udev makes it: pasta is nobody on the host.
const TUN: &str = "/dev/net/tun";

/// Whether the host can carry private networks: the programs are there.
///
/// # Errors
/// [`Error::Network`] with the mend.
pub fn look() -> Result<()> {
    for (program, package) in [(PASTA, "passt"), (NFT, "nftables")] {
        if !Path::new(program).exists() {
            return Err(Error::Network { why: format!("{program} is missing; `apt-get install {package}`") });
        }
    }
    let why = match std::fs::metadata(TUN) {
        Ok(meta) if meta.mode() & 0o006 == 0o006 => return Ok(()),
        Ok(meta) => {
            let mode = meta.mode() & 0o7777;
            format!("is not for everybody (mode {mode:04o}), as udev makes it; `chmod 0666 {TUN}`")
        }
        Err(e) => format!("cannot be had ({e}); `modprobe tun`"),
    };
    Err(Error::Network { why: format!("{TUN}, which pasta needs, {why}") })
}

/// The host's `resolv.conf` as it is right inside. A resolver on the host's loopback is out of reach there, and one at an address
/// of the host's own would be looked for in the jail, which has the same addresses: both are replaced.
///
/// `own`: the host's addresses.
#[must_use]
pub fn resolv_conf(host: &str, own: &[IpAddr]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in host.lines() {
        let mut words = line.split_whitespace();
        let server = if words.next() == Some("nameserver") { words.next() } else { None };
        let server = server.and_then(|text| text.parse::<IpAddr>().ok());
        let replaced = match server {
            Some(ip) if ip.is_loopback() || ip.is_unspecified() || own.contains(&ip) => match ip {
                IpAddr::V4(_) => Some(format!("nameserver {}", RESOLVERS.0)),
                IpAddr::V6(_) => Some(format!("nameserver {}", RESOLVERS.1)),
            },
            _ => None,
        };
        // Two of the host's may have become one.
        match replaced {
            Some(line) if lines.contains(&line) => {}
            Some(line) => lines.push(line),
            None => lines.push(line.to_owned()),
        }
    }
    // Debian 12's pasta forwards datagrams only; with this, hardly an answer needs more.
    if !lines.is_empty() && !lines.iter().any(|line| line.starts_with("options")) {
        lines.push("options edns0".into());
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// The host's own addresses.
///
/// # Errors
/// [`Error::Act`].
pub fn own_addresses() -> Result<Vec<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs().act("list", "the host's addresses")?;
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    Ok(interfaces.filter_map(address).collect())
}

/// Whether the ports that a profile publishes are free on this host. They may be taken a moment later: then pasta refuses. Asked
/// first for the sake of the sentence.
///
/// # Errors
/// [`Error::Published`] with whoever has the port.
pub fn ports_are_free(profile: &Profile, user: &Username) -> Result<()> {
    for publish in &profile.publish {
        if is_free(publish) {
            continue;
        }
        return Err(Error::Published {
            port: format!("{}/{}", publish.host, publish.protocol),
            profile: profile.name.clone(),
            by: match holder(publish, user)? {
                Some(other) => format!("by the jail of {other}"),
                None => "by another program".to_owned(),
            },
        });
    }
    Ok(())
}

fn is_free(publish: &Publish) -> bool {
    let addresses: [SocketAddr; 2] =
        [(Ipv4Addr::UNSPECIFIED, publish.host).into(), (Ipv6Addr::UNSPECIFIED, publish.host).into()];
    let taken = |address: &SocketAddr| {
        let bound = match publish.protocol {
            Protocol::Tcp => TcpListener::bind(address).map(drop),
            Protocol::Udp => UdpSocket::bind(address).map(drop),
        };
        bound.is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse)
    };
    !addresses.iter().any(taken)
}

/// The other user whose running jail publishes this port.
fn holder(publish: &Publish, user: &Username) -> Result<Option<Username>> {
    for corner in runtime::corners()? {
        if corner.user() == user {
            continue;
        }
        // A jail that cannot be asked is no reason to refuse a login; who has the port stays unknown.
        let Ok(Some(door)) = Door::knock(&corner) else { continue };
        let Ok(Some(Answer::Status(status))) = door.ask(&Request::Status) else { continue };
        let same = |other: &Publish| (other.host, other.protocol) == (publish.host, publish.protocol);
        if status.publish.iter().any(same) {
            return Ok(Some(corner.user().clone()));
        }
    }
    Ok(None)
}

/// In the host half of `ojail-init`, as the last that it does: goes into the jail's user and PID namespaces and starts pasta
/// there. Returns when the network is up. From here on this process is root of the jail, and nobody on the host.
///
/// # Errors
/// [`Error::Network`] in pasta's own words.
pub(super) fn start(plan: &Plan, jail: Pid) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(jail.as_raw())
        .ok_or(rustix::io::Errno::SRCH)
        .act("name", "PID 1 of the jail")?;
    let init: OwnedFd = pidfd_open(pid, PidfdFlags::empty()).act("open", "PID 1 of the jail")?;
    // Opened as host root: root of the jail may not look at what its PID 1 still is.
    let netns =
        File::open(format!("/proc/{jail}/ns/net")).act("open", "the network namespace of the jail")?;
    nix::sched::setns(&init, CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID)
        .act("join", "the user and PID namespaces of the jail")?;
    confine::become_root(&[])?;

    // It goes to the background when the network is up, and answers to PID 1 of the jail then.
    let output = Command::new(PASTA)
        .args(arguments(plan))
        .env_clear()
        .current_dir("/")
        .stdin(netns)
        .output()
        .act("run", PASTA)?;
    succeeded(&output, "pasta")
}

/// In the jail half, while it has the host's programs and the rights of root in its network: lets nothing out that pasta might take
/// for the host's loopback.
///
/// # Errors
/// [`Error::Network`] in nft's own words.
pub(super) fn shield(plan: &Plan) -> Result<()> {
    let mut nft = Command::new(NFT)
        .args(["-f", "-"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .act("run", NFT)?;
    if let Some(mut input) = nft.stdin.take() {
        // If it did not read to the end, its own words say why.
        let _ = input.write_all(rules(&plan.reach).as_bytes());
    }
    succeeded(&nft.wait_with_output().act("wait for", NFT)?, "nft")
}

/// What must not leave the jail: addresses that mean the host itself once pasta sends to them. Its version of 2023 (Debian 12's)
/// relays datagrams for the loopback, which anybody inside can send out of the jail's interface (`SO_BINDTODEVICE`).
///
/// And what must not be asked of pasta: it takes connections to `::1` for ports in `reach` before it knows whether somebody
/// listens there on the host, and programs that try `localhost` would not go on to `127.0.0.1`.
fn rules(reach: &[Reach]) -> String {
    let ports: Vec<String> = reach
        .iter()
        .filter(|reach| reach.protocol == Protocol::Tcp)
        .map(|reach| reach.port.to_string())
        .collect();
    let localhost = match ports.as_slice() {
        [] => String::new(),
        ports => format!("ip6 daddr ::1 tcp dport {{ {} }} reject with tcp reset", ports.join(", ")),
    };
    format!(
        "table inet ojail {{
            chain output {{
                type filter hook output priority 0; policy accept;
                {localhost}
                oifname \"lo\" accept
                ip daddr {{ 0.0.0.0/8, 127.0.0.0/8 }} drop
                ip6 daddr {{ ::/96, ::ffff:0.0.0.0/96 }} drop
            }}
        }}\n"
    )
}

fn succeeded(output: &Output, name: &str) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    // pasta complains about a missing syslog too; what ended it comes last.
    let why = text.lines().map(str::trim).rfind(|line| !line.is_empty() && !line.contains("syslog"));
    Err(Error::Network { why: format!("{name}: {}", why.unwrap_or("failed without a word")) })
}

fn arguments(plan: &Plan) -> Vec<String> {
    // Nothing of the host's loopback by way of the gateway's address, which is pasta's default.
    let fixed = ["--config-net", "--ns-ifname", "eth0", "--no-map-gw", "--quiet"];
    let mut arguments: Vec<String> = fixed.map(String::from).into();
    // Only for what `resolv_conf` replaced: without a resolver of that family on the host it would be port 53 of its loopback.
    let text = plan.resolv_conf.as_deref().unwrap_or_default();
    for resolver in [RESOLVERS.0.to_string(), RESOLVERS.1.to_string()] {
        if text.lines().any(|line| line == format!("nameserver {resolver}")) {
            arguments.extend(["--dns-forward".into(), resolver]);
        }
    }
    for (option, protocol) in [("-t", Protocol::Tcp), ("-u", Protocol::Udp)] {
        let ports: Vec<String> = plan
            .publish
            .iter()
            .filter(|publish| publish.protocol == protocol)
            .map(|publish| format!("{}:{}", publish.host, publish.jail))
            .collect();
        arguments.extend([option.into(), or_none(&ports)]);
    }
    for (option, protocol) in [("-T", Protocol::Tcp), ("-U", Protocol::Udp)] {
        let ports: Vec<String> = plan
            .reach
            .iter()
            .filter(|reach| reach.protocol == protocol)
            .map(|reach| reach.port.to_string())
            .collect();
        arguments.extend([option.into(), or_none(&ports)]);
    }
    // The jail has a user namespace already: none is made for pasta. Its network namespace is the standard input, which has no
    // name that could go away.
    arguments.extend(["--netns-only", "--netns", "/proc/self/fd/0", "--no-netns-quit"].map(String::from));
    arguments
}

fn or_none(ports: &[String]) -> String {
    if ports.is_empty() { "none".into() } else { ports.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resolver_out_of_the_jails_reach_is_replaced_once() {
        let own = ["192.0.2.2".parse().unwrap()];
        let host =
            "# stub\nnameserver 127.0.0.53\nnameserver 192.0.2.2\nnameserver ::1\nnameserver 192.0.2.1\n";
        assert_eq!(
            resolv_conf(host, &own),
            "# stub\nnameserver 169.254.1.1\nnameserver fd00::53\nnameserver 192.0.2.1\noptions edns0\n"
        );
        let kept = "nameserver 2001:db8::1\noptions ndots:2\n";
        assert_eq!(resolv_conf(kept, &own), kept);
        assert_eq!(resolv_conf("", &own), "");
    }
}
