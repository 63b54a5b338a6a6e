//! Project quotas: how much a user's upper may take on its file system. Host root, in `ojail-init`, while no jail of this
//! user is mounted, so nothing moves below.
//!
//! Everything in the upper and in its work directory belongs to one project, and new files inherit it. Nobody inside can
//! change that: the kernel takes a new project only from the initial user namespace (`fileattr_set_prepare`). The work
//! directory is in the same project, or overlayfs could not rename from there (`EXDEV`).

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Timespec, Timestamps, chownat, fstat, fstatfs, mknodat,
    openat, readlinkat, renameat, statat, symlinkat, utimensat,
};
use serde::Serialize;

use crate::account::Username;
use crate::config::{Limits, Storage};
use crate::error::{Act, Error, Result};
use crate::runtime::lock_file;
use crate::store::{self, Upper};
use crate::{paths, sys};

/// What an upper takes at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Use {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Files, directories and the rest.
    pub inodes: u64,
}

/// File systems with project quotas, by magic number (linux/magic.h).
const FIT: [(i64, &str); 2] = [(0xef53, "ext4"), (0x5846_5342, "xfs")];

/// Whether the file system of the uppers can hold these limits. Changes nothing.
///
/// # Errors
/// [`Error::Limit`] with the mend.
pub fn look(storage: &Storage, limits: &Limits) -> Result<()> {
    if !limits.of_upper() {
        return Ok(());
    }
    // The deepest directory that exists: the first login makes the rest on the same file system.
    let there = storage.upperdirs.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let dir = open(there)?;
    let magic = fstatfs(&dir).act("examine the file system of", there)?.f_type;
    #[allow(clippy::unnecessary_cast, reason = "f_type has another width on some architectures")]
    let name = FIT.iter().find(|(fit, _)| *fit == magic as i64).map(|(_, name)| *name);
    let Some(name) = name else {
        return Err(refuse(
            there,
            "is on a file system without project quotas; put it on ext4 or xfs, or take the limit out of the profile",
        ));
    };
    let why = match sys::project_quotas_hold(&dir) {
        Ok(true) => return Ok(()),
        Ok(false) => format!("is on {name}, where project quotas are counted and not enforced"),
        Err(e) => format!("is on {name} without project quotas ({e})"),
    };
    let prepare = if name == "ext4" { " (after `tune2fs -O project,quota`, unmounted)" } else { "" };
    Err(refuse(there, &format!("{why}; mount it with `prjquota`{prepare}")))
}

fn refuse(path: &Path, why: &str) -> Error {
    Error::Limit { why: format!("limits.disk and limits.inodes: {} {why}", path.display()) }
}

/// What a raise may take beyond the limits, in bytes and inodes: overlayfs makes its work directory anew. Without it, a user who has
/// used up everything could not log in to remove anything.
const RESERVE: (u64, u64) = (1 << 20, 64);

/// Puts the upper and its work directory under these limits and a small reserve, or lifts those of an earlier raise. `first` is the
/// first of the 65536 ids that belong to this user alone, and as many project ids with them. [`settle`] takes the reserve back.
///
/// # Errors
/// [`Error::Limit`], [`Error::Act`].
pub fn apply(upper: &Upper, user: &Username, storage: &Storage, limits: &Limits, first: u32) -> Result<()> {
    let paths = [upper.base.join(&upper.upper), upper.base.join(&upper.work)];
    let dirs = [open(&paths[0])?, open(&paths[1])?];
    let own = |project: u32| project.checked_sub(first).is_some_and(|number| number < 65_536);
    // Not every file system knows projects, which matters only where there is a limit.
    let now = sys::project(&dirs[0]).map(|(project, _)| project).unwrap_or_default();
    if !limits.of_upper() {
        if own(now) && sys::project_quota(&dirs[0], now).is_ok_and(|quota| quota.limits() != (0, 0)) {
            sys::set_project_quota(&dirs[0], now, 0, 0).act("lift the quota of", &paths[0])?;
        }
        return Ok(());
    }
    look(storage, limits)?;
    let project = if own(now) {
        now
    } else {
        // Of two jails of one user that are raised at once, a temporary one and theirs, each needs its own.
        let _lock = lock_file(&Path::new(paths::RUN).join("quota.lock"))?;
        let project = unused(storage, user, first)?;
        sys::set_project(&dirs[0], project).act("give to its project", &paths[0])?;
        project
    };
    let (bytes, inodes) =
        (limits.disk.map_or(0, |most| most + RESERVE.0), limits.inodes.map_or(0, |most| most + RESERVE.1));
    sys::set_project_quota(&dirs[0], project, bytes, inodes).act("set the quota of", &paths[0])?;
    let mut right = true;
    for (dir, path) in dirs.iter().zip(&paths) {
        right &= sys::project(dir).act("ask for the project of", path)? == (project, true);
    }
    if !right {
        // The work directory last: as long as it is not right, the walk over the upper was not finished.
        for (dir, path) in dirs.iter().zip(&paths) {
            adopt(dir, project).act("give to its project", path)?;
        }
    }
    Ok(())
}

/// Sets the very limits, once the jail stands and before anybody is let in, and reads them back.
///
/// # Errors
/// [`Error::Act`], [`Error::Surprise`].
pub fn settle(upper: &Upper, limits: &Limits) -> Result<()> {
    if !limits.of_upper() {
        return Ok(());
    }
    let path = upper.base.join(&upper.upper);
    let dir = open(&path)?;
    let (project, _) = sys::project(&dir).act("ask for the project of", &path)?;
    let (bytes, inodes) = (limits.disk.unwrap_or(0), limits.inodes.unwrap_or(0));
    sys::set_project_quota(&dir, project, bytes, inodes).act("set the quota of", &path)?;
    let is = sys::project_quota(&dir, project).act("read the quota of", &path)?.limits();
    // The kernel counts in blocks of 1 KiB.
    if project != 0 && is == (bytes.div_ceil(1024) * 1024, inodes) {
        return Ok(());
    }
    Err(Error::Surprise {
        what: "the quota",
        wanted: format!("{bytes} bytes, {inodes} inodes"),
        is: format!("{is:?}, of project {project}"),
    })
}

/// Lifts the quota of an upper that is about to be deleted, so that nothing of its project is left. Without a project of its own
/// there is nothing to do.
pub fn forget(upper: &Path) {
    if let Some((dir, project)) = open(upper).ok().and_then(|dir| {
        let (project, inherited) = sys::project(&dir).ok()?;
        (project != 0 && inherited).then_some((dir, project))
    }) {
        let _ = sys::set_project_quota(&dir, project, 0, 0);
    }
}

/// What the upper takes; `None` where it has no project of its own.
#[must_use]
pub fn usage(upper: &Path) -> Option<Use> {
    let dir = open(upper).ok()?;
    let (project, inherited) = sys::project(&dir).ok()?;
    let quota = sys::project_quota(&dir, project).ok().filter(|_| project != 0 && inherited)?;
    Some(Use { bytes: quota.bytes, inodes: quota.inodes })
}

/// A project of this user's that no other upper has: what is set aside must not count.
fn unused(storage: &Storage, user: &Username, first: u32) -> Result<u32> {
    let mut taken = Vec::new();
    for path in store::others(storage, user)? {
        taken.extend(open(&path).ok().and_then(|dir| sys::project(&dir).ok()).map(|(project, _)| project));
    }
    let free = (first..first.saturating_add(65_536)).find(|project| !taken.contains(project));
    free.ok_or_else(|| refuse(&storage.asidedirs.join(user), "has used up all project ids of this user"))
}

/// Gives a whole tree to a project, from the top down. What is right already is passed over, so that a walk that was cut short is
/// sooner done the next time. Two descriptors a level: `ojail-init` has 65536 of them.
fn adopt(top: &OwnedFd, project: u32) -> io::Result<()> {
    let device = fstat(top)?.st_dev;
    let mut levels = vec![enter(top.try_clone()?, project)?];
    while let Some((entries, dir)) = levels.last_mut() {
        let Some(entry) = entries.next() else {
            levels.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match entry.file_type() {
            FileType::Directory => {
                let below = openat(&*dir, name, flags | OFlags::DIRECTORY, Mode::empty())?;
                if fstat(&below)?.st_dev == device {
                    levels.push(enter(below, project)?);
                }
            }
            FileType::RegularFile => {
                sys::set_project(openat(&*dir, name, flags, Mode::empty())?, project)?;
            }
            kind => remake(dir, name, kind)?,
        }
    }
    Ok(())
}

/// A directory in the project, so that what is made in it is too; and its entries.
fn enter(dir: OwnedFd, project: u32) -> io::Result<(Dir, OwnedFd)> {
    sys::set_project(&dir, project)?;
    Ok((Dir::read_from(&dir)?, dir))
}

/// Makes a link, a whiteout or a fifo anew: it cannot be opened to be given a project, and outside of it, it could not be renamed in
/// its directory any more (`EXDEV`), nor could overlayfs put something in the place of a whiteout.
fn remake(dir: &OwnedFd, name: &CStr, kind: FileType) -> io::Result<()> {
    let old = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        // The new name of another, read ahead and renamed since.
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        old => old?,
    };
    let make = |new: &str| match kind {
        FileType::Symlink => symlinkat(readlinkat(dir, name, Vec::new())?.as_c_str(), dir, new),
        _ => mknodat(dir, new, kind, Mode::from_raw_mode(old.st_mode & 0o7777), old.st_rdev),
    };
    let mut number = 0;
    let new = loop {
        let new = format!(".ojail.{number}");
        match make(&new) {
            // The user's own, or of a walk that was cut short: either way it stays.
            Err(rustix::io::Errno::EXIST) => number += 1,
            made => break made.map(|()| new)?,
        }
    };
    let (uid, gid) = (rustix::fs::Uid::from_raw(old.st_uid), rustix::fs::Gid::from_raw(old.st_gid));
    chownat(dir, new.as_str(), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    let time = |tv_sec, tv_nsec: u64| Timespec { tv_sec, tv_nsec: tv_nsec as _ };
    let times = Timestamps {
        last_access: time(old.st_atime, old.st_atime_nsec),
        last_modification: time(old.st_mtime, old.st_mtime_nsec),
    };
    utimensat(dir, new.as_str(), &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(renameat(dir, new.as_str(), dir, name)?)
}

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).act("open", path)
}
