//! What every jail has fresh: `/proc`, `/sys`, `/dev`, `/tmp`, `/run`; and what of them is hidden from it.
//!
//! Used while a jail is raised, by its own root, in the staging directory. Nothing here is taken from the jail's file
//! system, so nothing that is mounted can be a file that the user put in its place.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::mount::MountAttrFlags;

use super::mounts::{Links, attach_at, clone_tree, new_mount};
use super::plan::Plan;
use super::tree::Tree;
use crate::config::Network;
use crate::error::{Act, Error, Result};
use crate::sys::{self, MountAttributes};

/// Group `tty` in Debian (base-passwd).
const TTY: &str = "5";

/// How many terminals one jail may open: the host has 4096 (`kernel.pty.max`), which all jails share.
const TERMINALS: &str = "256";

/// What has been mounted.
pub(super) struct Fresh {
    sysfs: bool,
}

/// Mounts it. Mount points are found without following any link: the user may have planted one.
pub(super) fn mount(plan: &Plan, tree: &Tree, devices: &[(&'static str, OwnedFd)]) -> Result<Fresh> {
    let nothing = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let noexec = nothing | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    tree.mount(&new_mount("proc", &[], noexec)?, "proc")?;
    let sysfs = plan.network != Network::Host && sysfs(tree, noexec)?;
    let dev = [("mode", "0755"), ("size", "1m"), ("nr_inodes", "1k")];
    tree.mount(&new_mount("tmpfs", &dev, MountAttrFlags::MOUNT_ATTR_NOSUID)?, "dev")?;
    for (name, device) in devices {
        tree.file(&format!("dev/{name}"))?;
        tree.mount_on(device, &format!("dev/{name}"), OFlags::empty())?;
    }
    let pts = [("mode", "0620"), ("ptmxmode", "0666"), ("gid", TTY), ("max", TERMINALS), ("newinstance", "")];
    tree.mount(&new_mount("devpts", &pts, noexec & !MountAttrFlags::MOUNT_ATTR_NODEV)?, "dev/pts")?;
    tree.mount(&new_mount("mqueue", &[], noexec)?, "dev/mqueue")?;
    for (link, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
    ] {
        tree.link(&format!("dev/{link}"), target)?;
    }
    for (place, mount) in in_memory(plan, nothing)? {
        tree.mount(&mount, place)?;
    }
    Ok(Fresh { sysfs })
}

/// A read-only view of the kernel's devices and settings. A network of one's own has its own `/sys/class/net`, which is
/// what programs look for. Where only a part of the host's `/sys` is in sight (as in a container) the kernel gives no
/// full one, and the jail does without.
fn sysfs(tree: &Tree, flags: MountAttrFlags) -> Result<bool> {
    match new_mount("sysfs", &[], flags | MountAttrFlags::MOUNT_ATTR_RDONLY) {
        Err(Error::Act { source, .. }) if source.raw_os_error() == Some(libc::EPERM) => Ok(false),
        mount => tree.mount(&mount?, "sys").map(|()| true),
    }
}

/// `/tmp`, `/run` and `/dev/shm`, on one file system in memory, so that one limit covers them.
fn in_memory(plan: &Plan, flags: MountAttrFlags) -> Result<[(&'static str, OwnedFd); 3]> {
    let size = plan.limits.disk.map(|bytes| bytes.to_string());
    let inodes = plan.limits.inodes.map(|number| number.to_string());
    let mut options = vec![("mode", "0755")];
    options.extend(size.as_deref().map(|size| ("size", size)));
    options.extend(inodes.as_deref().map(|inodes| ("nr_inodes", inodes)));
    attach_at(&new_mount("tmpfs", &options, flags)?, "v")?;
    let dir = |name: &str, mode| -> Result<OwnedFd> {
        let path = Path::new("v").join(name);
        fs::create_dir(&path).act("create", &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).act("set the mode of", &path)?;
        clone_tree(&path, Links::Refuse)
    };
    Ok([("tmp", dir("tmp", 0o1777)?), ("run", dir("run", 0o755)?), ("dev/shm", dir("shm", 0o1777)?)])
}

/// Files and directories that tell too much of the host or reach beyond the jail: empty inside. Those that runc masks by
/// default (`libcontainer/SPEC.md`), and the kernel's log and symbols; not every kernel has all of them.
const MASKED: [&str; 13] = [
    "proc/acpi",
    "proc/asound",
    "proc/interrupts",
    "proc/kallsyms",
    "proc/kcore",
    "proc/key-users",
    "proc/keys",
    "proc/kmsg",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/scsi",
    "proc/timer_list",
    "proc/timer_stats",
];

/// The same, where there is a `/sys`.
const MASKED_SYS: [&str; 2] = ["sys/devices/virtual/powercap", "sys/firmware"];

/// What may be read and not written, again as runc has it.
const READ_ONLY: [&str; 5] = ["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"];

impl Fresh {
    /// Hides what runs in the jail before anybody is in it: the network's process has one foot in the host's network, and its
    /// `/proc/PID/net` would show it to everybody. After [`Self::mask`].
    #[allow(clippy::unused_self, reason = "it is what `mask` has made that is mounted")]
    pub(super) fn hide_processes(&self, tree: &Tree) -> Result<()> {
        for name in tree.dirs("proc")?.iter().filter(|name| name.parse::<u32>().is_ok_and(|pid| pid != 1)) {
            let path = format!("proc/{name}");
            tree.mount_on(&clone_tree(Path::new("masks/empty"), Links::Refuse)?, &path, OFlags::DIRECTORY)?;
        }
        Ok(())
    }

    /// Mounts nothing over what is masked, and a read-only view over what is read-only.
    pub(super) fn mask(&self, tree: &Tree) -> Result<()> {
        let readonly = MountAttributes { readonly: true, nosuid: true, nodev: true, idmap: None };
        fs::create_dir("masks").act("create", "the mount point of the masks")?;
        fs::write("nothing", "").act("create", "an empty file")?;
        // A read-only view of the staging: what is cloned from it is read-only too.
        let view = clone_tree(Path::new("."), Links::Refuse)?;
        sys::mount_setattr(&view, readonly).act("set the flags of", "the masks")?;
        attach_at(&view, "masks")?;
        let sys: &[&str] = if self.sysfs { &MASKED_SYS } else { &[] };
        for path in MASKED.iter().chain(sys) {
            let Some(is_dir) = tree.is_there(path)? else { continue };
            let source = Path::new("masks").join(if is_dir { "empty" } else { "nothing" });
            tree.mount_on(&clone_tree(&source, Links::Refuse)?, path, OFlags::empty())?;
        }
        for path in READ_ONLY {
            if tree.is_there(path)?.is_none() {
                continue;
            }
            let view = tree.clone_of(path)?;
            sys::mount_setattr(&view, readonly).act("set the flags of", path)?;
            tree.mount_on(&view, path, OFlags::empty())?;
        }
        Ok(())
    }
}
