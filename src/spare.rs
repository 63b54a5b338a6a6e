//! What a reset spares of an upper: `--keep` builds a new one of a few paths, `--only` one of all but a few. Host root, while no
//! jail of this user is mounted.
//!
//! A path is one inside the jail; what it names there is looked for in the upper, by descriptors and through no link, and in the
//! layers below. What is spared looks afterwards as it did before, also where it depended on something that is cleared: below a
//! directory that the user had deleted and made anew, a spared directory still hides what the layers have there, and what was
//! deleted stays deleted.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, fsetxattr,
    fstat, futimens, mkdirat, mknodat, openat2, statat,
};
use rustix::io::Errno;

use crate::copy;
use crate::error::{Act, Error, Result};
use crate::lower::{self, Level, Lower};
use crate::walk::{self, BENEATH, DIRECTORY, is_dir};

/// Fills the empty directory `new` with what `old` has at these paths. Returns those at which it has nothing.
///
/// # Errors
/// [`Error::BadPath`] if a path leads over a link; [`Error::Act`].
pub fn keep(old: &OwnedFd, new: &OwnedFd, lower: &Lower, paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut unchanged = Vec::new();
    // Directories on the way, whose times change with each thing that is put into them.
    let mut made = Vec::new();
    for path in topmost(paths) {
        if !keep_one(old, new, lower, path, &mut made)? {
            unchanged.push(path.clone());
        }
    }
    for (dir, stat) in made.iter().rev() {
        set_times(dir, stat).act("set the times of", "a directory")?;
    }
    Ok(unchanged)
}

fn keep_one(
    old: &OwnedFd,
    new: &OwnedFd,
    lower: &Lower,
    path: &Path,
    made: &mut Vec<(OwnedFd, Stat)>,
) -> Result<bool> {
    let names = names(path);
    let Some((last, parents)) = names.split_last() else { return Ok(false) };
    let mut from = Some(enter(old.as_fd(), c".").act("open", path)?);
    let mut below = lower.root()?;
    let mut hidden = false;
    // What has to be made in the new upper, if there is anything to be put there.
    let mut way: Vec<(&CString, Likeness)> = Vec::new();
    for name in parents {
        let is = match &from {
            Some(from) => stat(from.as_fd(), name).act("examine", path)?,
            None => None,
        };
        over_no_link(path, is.as_ref(), &below, name, hidden)?;
        match is {
            Some(stat) if is_dir(&stat) => {
                let dir = match &from {
                    Some(from) => enter(from.as_fd(), name).act("open", path)?,
                    None => return Ok(false),
                };
                hidden |= lower::is_opaque(&dir).act("examine", path)?;
                from = Some(dir);
            }
            // A whiteout, or a file in the place of a directory.
            Some(_) => (from, hidden) = (None, true),
            None => from = None,
        }
        if from.is_none() && !hidden {
            return Ok(false);
        }
        below = below.enter(name)?;
        way.push((name, Likeness::of(&below, from.as_ref()).act("examine", path)?));
    }
    let is = match &from {
        Some(from) => stat(from.as_fd(), last).act("examine", path)?,
        None => None,
    };
    let beneath = below.find(last)?.map(|found| found.stat);
    if is.is_none() && !(hidden && beneath.is_some()) {
        return Ok(false);
    }
    let mut to = enter(new.as_fd(), c".").act("open", "the new upper")?;
    for (name, likeness) in way {
        match mkdirat(&to, name, Mode::from_raw_mode(0o700)) {
            Err(Errno::EXIST) => to = enter(to.as_fd(), name).act("open", path)?,
            done => {
                done.act("create the directory of", path)?;
                to = enter(to.as_fd(), name).act("open", path)?;
                likeness.give(&to).act("create the directory of", path)?;
                made.push((enter(to.as_fd(), c".").act("open", path)?, likeness.stat));
            }
        }
    }
    match (&from, is) {
        (Some(from), Some(stat)) => {
            copy::tree(from.as_fd(), last, to.as_fd(), last)?;
            if hidden && is_dir(&stat) && beneath.as_ref().is_some_and(is_dir) {
                let dir = enter(to.as_fd(), last).act("open", path)?;
                lower::set_opaque(&dir).act("keep opaque", path)?;
                set_times(&dir, &stat).act("set the times of", path)?;
            }
        }
        _ => whiteout(to.as_fd(), last).act("keep deleted", path)?,
    }
    Ok(true)
}

/// Fills the missing directory `new` with what `old` has, but for these paths, where the layers are to be seen again. Returns
/// those at which it has nothing.
///
/// # Errors
/// [`Error::BadPath`] if a path leads over a link, or if it cannot be cleared alone; [`Error::Act`].
pub fn all_but(
    (dir, name): (BorrowedFd<'_>, &CStr),
    (new_dir, new): (BorrowedFd<'_>, &CStr),
    lower: &Lower,
    paths: &[PathBuf],
) -> Result<Vec<PathBuf>> {
    let old = enter(dir, name).act("open", "the upper")?;
    let mut unchanged = Vec::new();
    let mut cleared = Vec::new();
    // All are looked at before anything is copied.
    for path in topmost(paths) {
        if clearable(&old, lower, path)? { cleared.push(path) } else { unchanged.push(path.clone()) }
    }
    copy::tree(dir, name, new_dir, new)?;
    for path in cleared {
        let names = names(path);
        let Some((last, parents)) = names.split_last() else { continue };
        let mut at = enter(new_dir, new).act("open", "the new upper")?;
        for name in parents {
            at = enter(at.as_fd(), name).act("open", path)?;
        }
        let before = fstat(&at).act("examine", path)?;
        walk::remove(at.as_fd(), last, None)?;
        set_times(&at, &before).act("set the times of", path)?;
    }
    Ok(unchanged)
}

/// Whether the upper has something at this path whose removal shows the layers.
fn clearable(old: &OwnedFd, lower: &Lower, path: &Path) -> Result<bool> {
    let names = names(path);
    let Some((last, parents)) = names.split_last() else { return Ok(false) };
    let mut at = enter(old.as_fd(), c".").act("open", path)?;
    let mut below = lower.root()?;
    let mut anew: Option<PathBuf> = None;
    let mut sofar = PathBuf::from("/");
    for name in parents {
        sofar.push(std::ffi::OsStr::from_bytes(name.to_bytes()));
        let is = stat(at.as_fd(), name).act("examine", path)?;
        over_no_link(path, is.as_ref(), &below, name, anew.is_some())?;
        below = below.enter(name)?;
        match is {
            None if anew.is_none() => return Ok(false),
            Some(stat) if is_dir(&stat) => {
                at = enter(at.as_fd(), name).act("open", path)?;
                if lower::is_opaque(&at).act("examine", path)? {
                    anew.get_or_insert(sofar.clone());
                }
                continue;
            }
            None => {}
            Some(_) => {
                anew.get_or_insert(sofar.clone());
            }
        }
        break;
    }
    let beneath = below.find(last)?.is_some();
    match anew {
        // What was deleted with the directory would not come back.
        Some(whole) if beneath => {
            let why = format!(
                "cannot be cleared alone: the user has deleted {} or made it anew; clear that",
                whole.display()
            );
            Err(Error::BadPath { option: "--only", path: shown(path), why })
        }
        Some(_) if stat(at.as_fd(), last).act("examine", path)?.is_none() => Ok(false),
        _ => Ok(stat(at.as_fd(), last).act("examine", path)?.is_some()),
    }
}

/// What the administrator wrote may look like a directory inside, and be a link to one, by the layers' or the user's doing.
fn over_no_link(path: &Path, is: Option<&Stat>, below: &Level, name: &CString, hidden: bool) -> Result<()> {
    let is_link = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    let link = match is {
        Some(stat) => is_link(stat),
        None => !hidden && below.find(name)?.is_some_and(|found| is_link(&found.stat)),
    };
    if !link {
        return Ok(());
    }
    let why = format!(
        "leads over \"{}\", which is a symbolic link inside; name the real path",
        name.to_string_lossy().escape_debug()
    );
    Err(Error::BadPath { option: "path", path: shown(path), why })
}

/// How a directory on the way is to look: as the layers have it, or else as the user made it.
struct Likeness {
    stat: Stat,
    attributes: Vec<(CString, Vec<u8>)>,
}

impl Likeness {
    fn of(below: &Level, own: Option<&OwnedFd>) -> rustix::io::Result<Self> {
        let dir = below.dir().or(own.map(AsFd::as_fd)).ok_or(Errno::NOENT)?;
        let mut attributes = lower::attributes(dir, c".")?;
        // What overlayfs noted there is about that upper or layer.
        attributes.retain(|name, _| !name.to_bytes().starts_with(b"user.overlay."));
        Ok(Self { stat: fstat(dir)?, attributes: attributes.into_iter().collect() })
    }

    /// All but the times, which do not last while things are put into it.
    fn give(&self, dir: &OwnedFd) -> rustix::io::Result<()> {
        fchown(dir, Some(Uid::from_raw(self.stat.st_uid)), Some(Gid::from_raw(self.stat.st_gid)))?;
        fchmod(dir, Mode::from_raw_mode(self.stat.st_mode & 0o7777))?;
        for (name, value) in &self.attributes {
            fsetxattr(dir, name, value, XattrFlags::empty())?;
        }
        Ok(())
    }
}

/// Without those that another one covers.
fn topmost(paths: &[PathBuf]) -> impl Iterator<Item = &PathBuf> {
    paths.iter().filter(|path| !paths.iter().any(|other| *path != other && path.starts_with(other)))
}

fn names(path: &Path) -> Vec<CString> {
    let normal = |part| match part {
        Component::Normal(name) => CString::new(name.as_bytes()).ok(),
        _ => None,
    };
    path.components().filter_map(normal).collect()
}

fn stat(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<Option<Stat>> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        stat => stat.map(Some),
    }
}

fn enter(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    openat2(dir, name, DIRECTORY, Mode::empty(), BENEATH)
}

fn whiteout(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
    mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
}

/// Gives a directory the times that another one has.
///
/// # Errors
/// What `futimens(3)` says.
pub fn set_times(dir: &OwnedFd, stat: &Stat) -> rustix::io::Result<()> {
    let time = |tv_sec, tv_nsec: u64| Timespec { tv_sec, tv_nsec: tv_nsec as _ };
    futimens(
        dir,
        &Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec),
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
        },
    )
}

fn shown(path: &Path) -> String {
    path.to_string_lossy().escape_debug().to_string()
}
