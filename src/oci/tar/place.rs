//! Where in a new tree the next entry of an archive goes. A stranger wrote its name: every part of it is looked up by itself, in a
//! directory that is held open, and no link is followed.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;

use super::{WHITEOUT, shown};
use crate::error::{Error, Result};

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Through no link of any kind, and onto no other mount.
const INSIDE: ResolveFlags =
    ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

/// What an archive says against a name or an entry.
pub(super) fn refused(name: &[u8], why: &str) -> Error {
    Error::LayerTar { why: format!("{} {why}", shown(name)) }
}

/// The parts of a name, from the root of the tree down; none for the root itself.
///
/// # Errors
/// [`Error::LayerTar`] if it leads out of the tree, or cannot be a name.
pub(super) fn parts(name: &[u8]) -> Result<Vec<CString>> {
    if name.starts_with(b"/") {
        return Err(refused(name, "is an absolute name"));
    }
    if name.is_empty() {
        return Err(refused(name, "is no name"));
    }
    let mut parts = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(refused(name, "leads out of the tree")),
            part => {
                parts.push(
                    CString::new(part).map_err(|_| refused(name, "has a byte in it that no name has"))?,
                );
            }
        }
    }
    Ok(parts)
}

/// A directory of the new tree, and the way to it. One descriptor is open, however deep it is.
pub(super) struct Place {
    dir: OwnedFd,
    levels: Vec<Level>,
}

struct Level {
    name: CString,
    /// Device and inode of the directory above, to be found again.
    above: (u64, u64),
}

impl Place {
    /// The top.
    pub(super) fn top(dir: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        Ok(Self { dir: openat2(dir, ".", DIRECTORY, Mode::empty(), INSIDE)?, levels: Vec::new() })
    }

    /// The directory that it is at.
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The directory alone.
    pub(super) fn into_dir(self) -> OwnedFd {
        self.dir
    }

    /// How many directories are between it and the top.
    pub(super) fn depth(&self) -> usize {
        self.levels.len()
    }

    /// Goes up until it is on the way to `parts`, and returns those that are still to go down.
    pub(super) fn toward<'a>(&mut self, parts: &'a [CString]) -> io::Result<&'a [CString]> {
        let same = self.levels.iter().zip(parts).take_while(|(level, part)| level.name == **part).count();
        while self.levels.len() > same {
            let Some(level) = self.levels.pop() else { break };
            // What is found there must be what was left.
            let dir = openat2(&self.dir, "..", DIRECTORY, Mode::empty(), INSIDE)?;
            let stat = fstat(&dir)?;
            if (stat.st_dev, stat.st_ino) != level.above {
                return Err(io::Error::other("somebody else changes the tree"));
            }
            self.dir = dir;
        }
        Ok(&parts[same..])
    }

    /// Down into a directory.
    pub(super) fn enter(&mut self, name: &CStr) -> rustix::io::Result<()> {
        let stat = fstat(&self.dir)?;
        let below = openat2(&self.dir, name, DIRECTORY, Mode::empty(), INSIDE.union(ResolveFlags::BENEATH));
        self.dir = below?;
        self.levels.push(Level { name: name.to_owned(), above: (stat.st_dev, stat.st_ino) });
        Ok(())
    }

    /// To a directory that must be there: of a hard link's target.
    ///
    /// # Errors
    /// `None`: it is not.
    pub(super) fn to(&mut self, parts: &[CString]) -> io::Result<Option<()>> {
        for part in self.toward(parts)? {
            match self.enter(part) {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                entered => entered?,
            }
        }
        Ok(Some(()))
    }
}

/// Whether a name is one of those that mean something else in a layer.
pub(super) fn is_mark(name: &CStr) -> bool {
    name.to_bytes().starts_with(WHITEOUT)
}
