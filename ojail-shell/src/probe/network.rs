//! The host's network: abstract sockets and ports that answer, and whether the host's interfaces can be changed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self as unix, UnixDatagram, UnixStream};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::kernel::errno;
use super::processes::OVERFLOW;
use super::raw::{call, in_child};
use super::report::{Outcome, Report};
use super::{Network, Setting};

/// How long a port may take to answer on a loopback.
const SOON: Duration = Duration::from_secs(2);

pub(super) fn attack(report: &mut Report, setting: &Setting) {
    report.add("connect to abstract sockets of the host's", abstract_sockets(setting));
    report.add("connect to services of the host's by their paths", services(setting));
    let interfaces = interfaces();
    match setting.network {
        Network::Host => {
            report.add("change an interface of the host's", in_child(change_interface));
            report.add("a raw socket in the host's network", in_child(raw_socket));
            report.add("a low port of the host's", low_port());
        }
        Network::None => {
            let strange: Vec<String> = interfaces.into_iter().filter(|name| name != "lo").collect();
            report.add("interfaces besides the loopback", Outcome::nothing(&strange));
        }
        Network::Private => {}
    }
    if setting.network != Network::Host {
        for port in &setting.host_ports {
            for address in addresses() {
                let place = SocketAddr::new(address, *port);
                let outcome = match TcpStream::connect_timeout(&place, SOON) {
                    Ok(_) => Outcome::reached("it answers"),
                    Err(e) => Outcome::contained(e.kind().to_string()),
                };
                report.add(format!("connect to {place}"), outcome);
            }
        }
    }
}

/// Where the host's loopback could answer: ours, and the way out.
fn addresses() -> Vec<IpAddr> {
    let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    // proc_pid_net(5): interface, destination, gateway, …; numbers in hexadecimal, as they lie in memory.
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    for fields in routes.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()) {
        let gateway = fields.get(2).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        if let Some(gateway) = gateway.filter(|gateway| *gateway != 0) {
            addresses.push(IpAddr::V4(Ipv4Addr::from(gateway.to_ne_bytes())));
        }
    }
    addresses.dedup();
    addresses
}

fn interfaces() -> Vec<String> {
    let table = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

/// Whoever listens there is none of the jail's if they are in no sight: their pid is 0 then, or their uid nobody's.
fn is_foreign(socket: &UnixStream, setting: &Setting) -> bool {
    getsockopt(socket, PeerCredentials).map_or(true, |peer| {
        peer.pid() == 0 || peer.uid() == OVERFLOW || !setting.root && peer.uid() != setting.uid
    })
}

fn abstract_sockets(setting: &Setting) -> Outcome {
    let table = fs::read("/proc/net/unix").unwrap_or_default();
    let (mut reached, mut tried) = (Vec::new(), 0);
    // Once each: what is connected has the name of what listens.
    let name = |line: &[u8]| Some(line[line.windows(2).position(|two| two == b" @")? + 2..].to_owned());
    let names: BTreeSet<Vec<u8>> = table.split(|byte| *byte == b'\n').filter_map(name).collect();
    for shown in &names {
        // A NUL within the name is shown as @.
        let with_nul: Vec<u8> = shown.iter().map(|byte| if *byte == b'@' { 0 } else { *byte }).collect();
        for name in [shown, &with_nul] {
            let Ok(address) = unix::SocketAddr::from_abstract_name(name) else { continue };
            tried += 1;
            if reaches(&address, setting) {
                reached.push(format!("@{}", String::from_utf8_lossy(shown)));
                break;
            }
        }
    }
    let outcome = Outcome::nothing(&reached);
    Outcome { answer: format!("{} ({tried} tried)", outcome.answer), ..outcome }
}

fn reaches(address: &unix::SocketAddr, setting: &Setting) -> bool {
    match UnixStream::connect_addr(address) {
        Ok(stream) => is_foreign(&stream, setting),
        // Of a kind that has no connections; nobody can tell whose it is.
        Err(e) if errno(&e) == Errno::EPROTOTYPE => {
            UnixDatagram::unbound().is_ok_and(|socket| socket.connect_addr(address).is_ok())
        }
        Err(_) => false,
    }
}

/// The sockets by which hosts are run, should a directory of the host's be in sight.
fn services(setting: &Setting) -> Outcome {
    let paths = [
        "/dev/log",
        "/run/containerd/containerd.sock",
        "/run/dbus/system_bus_socket",
        "/run/docker.sock",
        "/run/snapd.socket",
        "/run/systemd/journal/stdout",
        "/run/systemd/private",
        "/run/udev/control",
        "/tmp/.X11-unix/X0",
    ];
    let bus = format!("/run/user/{}/bus", setting.uid);
    let is_reached = |path: &&str| match UnixStream::connect(path) {
        Ok(stream) => is_foreign(&stream, setting),
        Err(e) if errno(&e) == Errno::EPROTOTYPE => {
            UnixDatagram::unbound().and_then(|socket| socket.connect(path)).is_ok()
        }
        Err(_) => false,
    };
    let all = paths.into_iter().chain([bus.as_str()]);
    Outcome::nothing(&all.filter(is_reached).map(String::from).collect::<Vec<_>>())
}

/// Sets the flags of the loopback to what they are.
fn change_interface() -> Outcome {
    let change = || -> Result<(), Errno> {
        let socket = UnixDatagram::unbound().map_err(|e| errno(&e))?;
        // struct ifreq: a name of 16 bytes, and the flags.
        let mut request = [0; 40];
        request[..2].copy_from_slice(b"lo");
        let fd = || socket.as_raw_fd().into();
        call(libc::SYS_ioctl, [fd(), libc::SIOCGIFFLAGS.into(), request.as_mut_slice().into()])?;
        call(libc::SYS_ioctl, [fd(), libc::SIOCSIFFLAGS.into(), request.as_slice().into()]).map(drop)
    };
    Outcome::of(change())
}

fn raw_socket() -> Outcome {
    let arguments = [libc::AF_INET.into(), libc::SOCK_RAW.into(), libc::IPPROTO_ICMP.into()];
    Outcome::of(call(libc::SYS_socket, arguments))
}

fn low_port() -> Outcome {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if first.trim() == "0" {
        return Outcome::contained("this host gives all ports to everybody");
    }
    match TcpListener::bind((Ipv4Addr::LOCALHOST, 1)) {
        Ok(_) => Outcome::reached("bound"),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Outcome::contained("EACCES"),
        Err(e) => Outcome::reached(e.to_string()),
    }
}
