//! What a process does to itself so that it has nothing to offer to whoever takes it over.
//!
//! Only PAM, as root, can do this for the whole login: what is set here is inherited by the shell, sftp and every
//! forwarded channel. Everything is read back; a surprise is an error, and the login is refused.

use caps::Capability;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets, SecureComputingMode};

use super::door::House;
use crate::config::Network;
use crate::error::{Act, Error, Result};
use crate::seccomp::{self, Changes};
use crate::sys;

/// What the programs of a jail with `root = true` can ever have: what `apt`, `dpkg`, `sudo`, `useradd` and daemons on
/// low ports need. Measured: with these, and none of `SYS_ADMIN`, `SYS_MODULE`, `SYS_RAWIO`, `SYS_PTRACE`, `MKNOD` and
/// the like, all of them work and `mount` is refused.
const ROOT: [Capability; 13] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_NET_RAW,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_AUDIT_WRITE,
    Capability::CAP_SETFCAP,
];

/// What the login process itself still needs: to become the user, to give them their terminal, to end their processes.
const LOGIN: [Capability; 9] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_AUDIT_WRITE,
];

/// Confines a login process that has joined a jail. In this order; `docs/order.md` has the reasons too.
///
/// # Errors
/// [`Error::Act`] or [`Error::Surprise`]; the login must then be refused.
pub fn login(house: &House) -> Result<()> {
    let root = house.root;
    let mut bounding = if root { mask(&ROOT) } else { 0 };
    if house.network == Network::Private && packets(house) {
        bounding &= !Capability::CAP_NET_RAW.bitmask();
    }

    // 1. Bounding set: the ceiling of every later exec. Needs SETPCAP, which step 6 drops.
    bound(bounding)?;

    // 2. Securebits: no ambient capabilities ever; without root in the profile, uid 0 means nothing at an exec
    //    either. Locked, so that what root of the jail may do cannot unlock it. Needs SETPCAP too.
    let mut bits =
        CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    if !root {
        bits |= CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::KEEP_CAPS_LOCKED;
    }
    secure(bits)?;

    // 3. no_new_privs, where the profile gives no root: setuid programs and file capabilities of layers and upper
    //    gain nothing. Before the two below, which a process without SYS_ADMIN may only set with it.
    if !root {
        no_new_privs()?;
    }

    // 4. Abstract sockets, which belong to the network namespace: with the host's network all of the host's are in reach.
    if house.network == Network::Host {
        keep_from_abstract_sockets()?;
    }

    // 5. The seccomp filter, on this process and all that it will start. After what it refuses has been done, before the
    //    capabilities go that a profile with root needs for it.
    if let Some(changes) = &house.seccomp {
        filter(changes)?;
    }

    // 6. The login process' own capabilities. It goes on as root of the jail, reading files that the user may have
    //    written (nsswitch.conf, libraries): whoever takes it over that way must find nothing worth having. Nor are its
    //    memory and descriptors for anybody inside.
    keep(mask(&LOGIN))?;
    hide()
}

/// Confines the jail's PID 1: it only ends processes from here on.
///
/// # Errors
/// [`Error::Act`] or [`Error::Surprise`].
pub(super) fn become_init() -> Result<()> {
    // A saved uid of its own: prlimit(2) and the like let one process change another of the same three uids, and root
    // of the jail must not set the limits of PID 1.
    let (root, other) = (Uid::from_raw(0), Uid::from_raw(65_534));
    setresuid(root, root, other).act("set apart", "PID 1")?;
    bound(0)?;
    secure(
        CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
            | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED
            | CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::KEEP_CAPS_LOCKED,
    )?;
    no_new_privs()?;
    keep(mask(&[Capability::CAP_KILL]))?;
    hide()
}

/// Becomes uid 0, gid 0, real, effective and saved, of the user namespace that this process is in.
///
/// # Errors
/// [`Error::Act`] or [`Error::Surprise`].
pub(super) fn become_root(groups: &[u32]) -> Result<()> {
    // Groups first and the uid last: each step needs what the next one gives up.
    let gids: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    setgroups(&gids).act("set the groups to", format!("{groups:?}"))?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).act("become", "gid 0")?;
    setresuid(uid, uid, uid).act("become", "uid 0")?;
    let is = nix::unistd::getresuid().act("ask for", "the uids")?;
    if (is.real, is.effective, is.saved) != (uid, uid, uid) {
        return Err(Error::Surprise { what: "the uid", wanted: "0".into(), is: format!("{is:?}") });
    }
    Ok(())
}

/// As the kernel counts them: bit n is capability n.
fn mask(capabilities: &[Capability]) -> u64 {
    capabilities.iter().fold(0, |mask, capability| mask | capability.bitmask())
}

fn bound(wanted: u64) -> Result<()> {
    // By number and up to the kernel's own last one: a capability newer than any list must go too.
    let mut is = 0;
    for number in 0..u64::BITS {
        // Unasked, for what is gone can go again; asking first would take as long as all the reading back.
        if wanted & (1 << number) == 0 {
            match sys::drop_from_bounding_set(number) {
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => break,
                dropped => dropped.act("drop from the bounding set", number.to_string())?,
            }
        }
        match sys::bounding_set_has(number) {
            Some(has) => is |= u64::from(has) << number,
            None => break,
        }
    }
    if is & !wanted == 0 {
        return Ok(());
    }
    Err(Error::Surprise { what: "the bounding set", wanted: format!("{wanted:x}"), is: format!("{is:x}") })
}

fn secure(wanted: CapabilitiesSecureBits) -> Result<()> {
    rustix::thread::set_capabilities_secure_bits(wanted).act("set", "the securebits")?;
    let is = rustix::thread::capabilities_secure_bits().act("read", "the securebits")?;
    if is == wanted {
        return Ok(());
    }
    Err(Error::Surprise { what: "the securebits", wanted: format!("{wanted:?}"), is: format!("{is:?}") })
}

fn no_new_privs() -> Result<()> {
    nix::sys::prctl::set_no_new_privs().act("set", "no_new_privs")?;
    if nix::sys::prctl::get_no_new_privs().act("read", "no_new_privs")? {
        return Ok(());
    }
    Err(Error::Surprise { what: "no_new_privs", wanted: "1".into(), is: "0".into() })
}

/// Whether the profile lets packet sockets be made, which the filter of a private network does not see.
fn packets(house: &House) -> bool {
    house.seccomp.as_ref().is_none_or(|changes| changes.allow.iter().any(|name| name.as_str() == "socket"))
}

fn filter(changes: &Changes) -> Result<()> {
    sys::seccomp(&seccomp::program(changes)).act("set", "the system call filter")?;
    let is = rustix::thread::secure_computing_mode().act("read", "the mode of seccomp")?;
    if is == SecureComputingMode::Filter {
        return Ok(());
    }
    Err(Error::Surprise { what: "the mode of seccomp", wanted: "filter".into(), is: format!("{is:?}") })
}

/// Lets this process and what it starts connect to no abstract socket but those of its own session (Landlock's scope, of
/// kernel 6.12). Where the kernel has no such thing the jail does without, and `ojail check` says so.
fn keep_from_abstract_sockets() -> Result<()> {
    use landlock::{Ruleset, RulesetAttr, RulesetCreatedAttr, Scope};
    // Not no_new_privs, which is step 3's business: with root in the profile SYS_ADMIN stands in for it.
    let restrict = || {
        let ruleset = Ruleset::default().scope(Scope::AbstractUnixSocket)?.create()?;
        ruleset.no_new_privs(false).restrict_self()
    };
    restrict().map(drop).map_err(std::io::Error::other).act("keep from", "the host's abstract sockets")
}

/// Whether this kernel can do the above.
#[must_use]
pub fn abstract_sockets_can_be_kept_out() -> bool {
    use landlock::{CompatLevel, Compatible, Ruleset, RulesetAttr, Scope};
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    ruleset.scope(Scope::AbstractUnixSocket).and_then(Ruleset::create).is_ok()
}

/// Memory and descriptors of this process are for host root only, whoever inside has the same uid. Until the next exec.
fn hide() -> Result<()> {
    nix::sys::prctl::set_dumpable(false).act("make", "this process undumpable")?;
    if !nix::sys::prctl::get_dumpable().act("ask whether", "this process is dumpable")? {
        return Ok(());
    }
    Err(Error::Surprise { what: "dumpable", wanted: "0".into(), is: "1".into() })
}

/// Nothing but these, and nothing for the programs that this process executes.
fn keep(wanted: u64) -> Result<()> {
    let wanted = CapabilitySet::from_bits_retain(wanted);
    let wanted = CapabilitySets { effective: wanted, permitted: wanted, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, wanted).act("set", "the capabilities")?;
    let is = rustix::thread::capabilities(None).act("read", "the capabilities")?;
    if is == wanted {
        return Ok(());
    }
    Err(Error::Surprise { what: "the capabilities", wanted: format!("{wanted:?}"), is: format!("{is:?}") })
}
