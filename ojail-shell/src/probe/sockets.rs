//! Kinds of sockets that a jail has no use for, each a part of the kernel of its own.

use nix::errno::Errno;
use nix::libc;

use super::Setting;
use super::raw::{call, in_child};
use super::report::{Outcome, Report};

/// The names of linux/socket.h that tell an administrator something. All other numbers are tried too.
const FAMILIES: [(i32, &str); 32] = [
    (3, "AX25"),
    (4, "IPX"),
    (5, "APPLETALK"),
    (6, "NETROM"),
    (8, "ATMPVC"),
    (9, "X25"),
    (11, "ROSE"),
    (15, "KEY"),
    (17, "PACKET"),
    (20, "ATMSVC"),
    (21, "RDS"),
    (23, "IRDA"),
    (24, "PPPOX"),
    (26, "LLC"),
    (27, "IB"),
    (28, "MPLS"),
    (29, "CAN"),
    (30, "TIPC"),
    (31, "BLUETOOTH"),
    (32, "IUCV"),
    (33, "RXRPC"),
    (34, "ISDN"),
    (35, "PHONET"),
    (36, "IEEE802154"),
    (37, "CAIF"),
    (38, "ALG"),
    (39, "NFC"),
    (40, "VSOCK"),
    (41, "KCM"),
    (42, "QIPCRTR"),
    (43, "SMC"),
    (44, "XDP"),
];

/// One more than the last family of linux/socket.h that there is (MCTP is 45).
const END: i32 = 48;

/// Families that a jail has.
const ALLOWED: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// What socket(2) says of a family that is not there.
const ABSENT: [Errno; 1] = [Errno::EAFNOSUPPORT];

pub(super) fn attack(report: &mut Report, _setting: &Setting) {
    for family in (1..END).filter(|family| !ALLOWED.contains(family)) {
        let name = FAMILIES.iter().find(|(number, _)| *number == family);
        let name = name.map_or_else(|| format!("socket family {family}"), |(_, name)| format!("AF_{name}"));
        report.add(name, in_child(|| open(family)));
    }
    // linux/netlink.h: IPsec, packet filters, the kernel's ciphers.
    for (protocol, name) in [(6, "XFRM"), (12, "NETFILTER"), (21, "CRYPTO")] {
        let socket = || {
            let arguments = [libc::AF_NETLINK.into(), libc::SOCK_RAW.into(), protocol.into()];
            Outcome::of_or(call(libc::SYS_socket, arguments), &[Errno::EAFNOSUPPORT, Errno::EPROTONOSUPPORT])
        };
        report.add(format!("NETLINK_{name}"), in_child(socket));
    }
}

/// Of all types: a family that is there refuses only those that it has not.
fn open(family: i32) -> Outcome {
    let mut answers = Vec::new();
    for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW, libc::SOCK_SEQPACKET] {
        let outcome = Outcome::of_or(call(libc::SYS_socket, [family.into(), kind.into(), 0.into()]), &ABSENT);
        if !outcome.contained {
            return outcome;
        }
        answers.push(outcome.answer);
    }
    answers.dedup();
    Outcome::contained(answers.join(" "))
}
