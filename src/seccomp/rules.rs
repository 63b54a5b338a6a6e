//! The rules for arguments. Each is a line of `[check]` in `conf/seccomp.toml`, which says why.
//!
//! The kernel looks at the low half of most arguments only, whatever stands in the high one; so do the rules.

use std::mem::offset_of;

use libc::seccomp_data;

use super::program::errno;

/// Which rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    Clone,
    Unshare,
    Ioctl,
    Socket,
    Socketpair,
    Personality,
}

/// What a rule says.
pub(super) struct Terms {
    /// In each, all conditions must hold.
    pub(super) cases: &'static [&'static [Condition]],
    /// If one of the cases is so.
    pub(super) then: Outcome,
    /// If none is.
    pub(super) otherwise: Outcome,
}

#[derive(Clone, Copy)]
pub(super) enum Outcome {
    Allow,
    Refuse(i32),
}

impl Outcome {
    pub(super) const fn value(self) -> u32 {
        match self {
            Self::Allow => libc::SECCOMP_RET_ALLOW,
            Self::Refuse(error) => errno(error),
        }
    }
}

/// Half an argument, as far as the mask leaves it, is one of the values.
pub(super) struct Condition {
    argument: usize,
    high: bool,
    pub(super) mask: u32,
    pub(super) values: &'static [u32],
}

impl Condition {
    /// Where the kernel puts it. Low half first, on both architectures.
    pub(super) const fn offset(&self) -> usize {
        offset_of!(seccomp_data, args)
            + self.argument * size_of::<u64>()
            + self.high as usize * size_of::<u32>()
    }
}

/// The low half of an argument is one of the values.
const fn is(argument: usize, values: &'static [u32]) -> Condition {
    masked(argument, u32::MAX, values)
}

/// The low half of an argument, without what is not in the mask, is one of the values.
const fn masked(argument: usize, mask: u32, values: &'static [u32]) -> Condition {
    Condition { argument, high: false, mask, values }
}

/// The low half of an argument has none of the bits.
const fn without(argument: usize, bits: i32) -> Condition {
    masked(argument, bits as u32, &[0])
}

/// The high half of an argument is zero.
const fn small(argument: usize) -> Condition {
    Condition { argument, high: true, mask: u32::MAX, values: &[0] }
}

const NAMESPACES: i32 = libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS;

/// What unshare(2) may take apart. Of NEWTIME too nothing is in it.
const UNSHARED: i32 = libc::CLONE_FILES
    | libc::CLONE_FS
    | libc::CLONE_SIGHAND
    | libc::CLONE_SYSVSEM
    | libc::CLONE_THREAD
    | libc::CLONE_VM;

const UNIX: u32 = libc::AF_UNIX as u32;
const INTERNET: &[u32] = &[libc::AF_INET as u32, libc::AF_INET6 as u32];

/// The kernel keeps flags in the bits above (`SOCK_TYPE_MASK` of linux/net.h).
const TYPE: u32 = 0xf;
/// Without `SOCK_PACKET`, which turns `AF_INET` into `AF_PACKET`.
const TYPES: &[u32] =
    &[libc::SOCK_STREAM as u32, libc::SOCK_DGRAM as u32, libc::SOCK_RAW as u32, libc::SOCK_SEQPACKET as u32];

const NETLINK: u32 = libc::AF_NETLINK as u32;
const NETLINKS: &[u32] = &[
    libc::NETLINK_ROUTE as u32,
    libc::NETLINK_SOCK_DIAG as u32,
    libc::NETLINK_KOBJECT_UEVENT as u32,
    libc::NETLINK_AUDIT as u32,
];

/// personality(2) with this asks, and changes nothing.
const QUESTION: u32 = u32::MAX;
/// linux/personality.h: `PER_LINUX32`, `UNAME26`, `ADDR_NO_RANDOMIZE`; `PER_LINUX` is none of them.
const HARMLESS: i32 = 0x8 | 0x2_0000 | 0x4_0000;

const CLONE: Terms = Terms {
    cases: &[&[without(0, NAMESPACES)]],
    then: Outcome::Allow,
    otherwise: Outcome::Refuse(libc::EPERM),
};

// A flag of the future may be in the high half; of clone's, which are all given out, none can.
const UNSHARE: Terms = Terms {
    cases: &[&[without(0, !UNSHARED), small(0)]],
    then: Outcome::Allow,
    otherwise: Outcome::Refuse(libc::EPERM),
};

const IOCTL: Terms = Terms {
    cases: &[&[is(1, &[libc::TIOCSTI as u32, libc::TIOCLINUX as u32, libc::TIOCSETD as u32])]],
    then: Outcome::Refuse(libc::EPERM),
    otherwise: Outcome::Allow,
};

const SOCKET: Terms = Terms {
    cases: &[
        &[is(0, &[UNIX])],
        &[is(0, INTERNET), masked(1, TYPE, TYPES)],
        &[is(0, &[NETLINK]), is(2, NETLINKS)],
    ],
    then: Outcome::Allow,
    otherwise: Outcome::Refuse(libc::EAFNOSUPPORT),
};

const SOCKETPAIR: Terms = Terms {
    cases: &[&[is(0, &[UNIX])], &[is(0, INTERNET), masked(1, TYPE, TYPES)]],
    then: Outcome::Allow,
    otherwise: Outcome::Refuse(libc::EAFNOSUPPORT),
};

const PERSONALITY: Terms = Terms {
    cases: &[&[is(0, &[QUESTION])], &[without(0, !HARMLESS)]],
    then: Outcome::Allow,
    otherwise: Outcome::Refuse(libc::EPERM),
};

impl Rule {
    pub(super) const fn terms(self) -> Terms {
        match self {
            Self::Clone => CLONE,
            Self::Unshare => UNSHARE,
            Self::Ioctl => IOCTL,
            Self::Socket => SOCKET,
            Self::Socketpair => SOCKETPAIR,
            Self::Personality => PERSONALITY,
        }
    }
}
