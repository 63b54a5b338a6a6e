//! Detached mounts: clones of the host's, new ones of the kernel's, and overlays; and how they are attached.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2, statat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::error::{Act, Error, Result};
use crate::store::Upper;

/// Whether links in a path are followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Links {
    /// No: an administrator's path that is a link is a surprise.
    Refuse,
    /// Yes: the path is our own, and only root can change it.
    Follow,
}

/// A detached clone of the mount at `path`, that directory or file being its root.
pub(super) fn clone_tree(path: &Path, links: Links) -> Result<OwnedFd> {
    let resolve = ResolveFlags::NO_MAGICLINKS
        | if links == Links::Refuse { ResolveFlags::NO_SYMLINKS } else { ResolveFlags::empty() };
    let place = openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
    let place = place.map_err(|e| match e {
        rustix::io::Errno::LOOP => Error::Unfit {
            path: path.to_owned(),
            why: "has a symbolic link in it; name the real path in the configuration".into(),
        },
        e => Error::Act { act: "open", what: path.display().to_string(), source: e.into() },
    })?;
    clone_place(&place, path)
}

pub(super) fn clone_place(place: &OwnedFd, path: &Path) -> Result<OwnedFd> {
    // Without what is mounted below it: no directory brings more of the host than the configuration names.
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(place, "", flags).act("clone the mount of", path)
}

/// A new, detached file system of the kernel's.
pub(super) fn new_mount(
    kind: &'static str,
    options: &[(&str, &str)],
    flags: MountAttrFlags,
) -> Result<OwnedFd> {
    let mount = || -> rustix::io::Result<OwnedFd> {
        let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in options {
            if value.is_empty() {
                fsconfig_set_flag(&fs, *key)?
            } else {
                fsconfig_set_string(&fs, *key, *value)?
            }
        }
        fsconfig_create(&fs)?;
        fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, flags)
    };
    mount().act("mount a new", kind)
}

/// A detached overlay of the directories `lowers`, topmost first, and of an upper and its work directory if there is one.
/// All paths are relative to the working directory, those of the upper too. Without `suid`, setuid programs and file capabilities have
/// no effect.
pub(super) fn overlay(lowers: &[String], upper: Option<&Upper>, suid: bool) -> Result<OwnedFd> {
    let mount = || -> rustix::io::Result<OwnedFd> {
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&fs, "source", "ojail")?;
        fsconfig_set_string(&fs, "lowerdir", lowers.join(":"))?;
        if let Some(upper) = upper {
            fsconfig_set_string(&fs, "upperdir", upper.upper.as_path())?;
            fsconfig_set_string(&fs, "workdir", upper.work.as_path())?;
            if upper.volatile {
                fsconfig_set_flag(&fs, "volatile")?;
            }
        }
        // user.overlay.* instead of trusted.*: what the jail's root may write, and all that it may plant.
        fsconfig_set_flag(&fs, "userxattr")?;
        fsconfig_create(&fs)?;
        let mut flags = MountAttrFlags::MOUNT_ATTR_NODEV;
        flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, upper.is_none());
        flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, !suid);
        fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, flags)
    };
    mount().act("mount", "the overlay of the jail")
}

pub(super) fn attach(mount: &OwnedFd, place: &OwnedFd) -> rustix::io::Result<()> {
    move_mount(
        mount,
        "",
        place,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// Makes a directory of the working directory and attaches the mount there.
pub(super) fn attach_at(mount: &OwnedFd, name: &str) -> Result<()> {
    if statat(CWD, name, AtFlags::SYMLINK_NOFOLLOW).is_err() {
        mkdirat(CWD, name, Mode::from_raw_mode(0o755)).act("create", name)?;
    }
    move_mount(mount, "", CWD, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).act("attach", name)
}
