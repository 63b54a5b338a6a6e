//! A walk over a directory tree that a user may have shaped: by descriptors, following no link, crossing no mount. Host root.
//!
//! One descriptor is open at a time, however deep the tree: the way up is `..`, and what is found there must be what was left.
//! In a tree that changes meanwhile, what has gone is passed over; a directory that was moved away ends the walk with an error.

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use rustix::fs::{
    AtFlags, Dir, FileType, IFlags, Mode, OFlags, ResolveFlags, Stat, fstat, ioctl_getflags, ioctl_setflags,
    openat2, statat, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A walk, depth first, the names of a directory in the order of their bytes.
#[derive(Debug)]
pub struct Walk {
    /// The directory whose names come next.
    dir: OwnedFd,
    levels: Vec<Level>,
    /// Of what was told last, relative to the top.
    path: Vec<u8>,
    /// The name of what was told last.
    name: CString,
    /// Whether that is a directory which is entered next.
    enter: bool,
}

#[derive(Debug)]
struct Level {
    names: std::vec::IntoIter<CString>,
    /// Device and inode of the directory above, to be found again on the way up; those of the top's own are not asked for.
    above: (u64, u64),
    /// This directory's own name.
    name: CString,
    /// How long its path is.
    path: usize,
}

/// What a walk comes by.
#[derive(Debug)]
pub enum Step<'a> {
    /// Something in a directory. If it is a directory itself, it is entered next, unless [`Walk::pass`] is called.
    Found(Place<'a>, Stat),
    /// A directory whose entries have all been told.
    Left(Place<'a>),
    /// A directory on which something is mounted. It is not entered.
    Mount(Place<'a>),
}

/// Where the walk is.
#[derive(Debug)]
pub struct Place<'a> {
    /// The directory that it is in.
    pub dir: BorrowedFd<'a>,
    /// Its name there.
    pub name: &'a CStr,
    /// Its path, relative to the top. Too long for a system call in a deep tree: for people only.
    pub path: &'a Path,
    /// How many directories are between it and the top.
    pub depth: usize,
}

/// What a tree takes on its file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Bytes allocated.
    pub bytes: u64,
    /// Files, directories and the rest, hard links once.
    pub inodes: u64,
}

/// Only inside of the directory, through no link of any kind, and onto no other mount.
const INSIDE: ResolveFlags =
    ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

/// What is below the directory, however it is named, and only that.
pub(crate) const BENEATH: ResolveFlags = INSIDE.union(ResolveFlags::BENEATH);

/// A directory, to be listed, and no link to one.
pub(crate) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Whether this is a whiteout: overlayfs' mark that a name of the layers below is deleted, a character device 0/0.
#[must_use]
pub fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether this is a directory.
#[must_use]
pub fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

impl Walk {
    /// Begins below this directory; the top itself is not told.
    ///
    /// # Errors
    /// [`Error::Act`] if it cannot be listed.
    pub fn below(top: OwnedFd) -> Result<Self> {
        let mut walk =
            Self { dir: top, levels: Vec::new(), path: Vec::new(), name: CString::default(), enter: false };
        let names = names(&walk.dir).map_err(|e| walk.failed("list", e))?;
        walk.levels.push(Level { names, above: (0, 0), name: CString::default(), path: 0 });
        Ok(walk)
    }

    /// Does not enter the directory that was told last.
    pub fn pass(&mut self) {
        self.enter = false;
    }

    /// The next step; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Act`] with the path.
    pub fn step(&mut self) -> Result<Option<Step<'_>>> {
        if std::mem::take(&mut self.enter) {
            match self.descend() {
                // Gone, or something else by now.
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(Errno::XDEV) => return Ok(Some(Step::Mount(self.place()))),
                Err(e) => return Err(self.failed("list", e)),
            }
        }
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            self.path.truncate(level.path);
            let Some(name) = level.names.next() else { return self.ascend() };
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend(name.to_bytes());
            self.name = name;
            match statat(&self.dir, &*self.name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    self.enter = is_dir(&stat);
                    return Ok(Some(Step::Found(self.place(), stat)));
                }
                Err(Errno::NOENT) => {}
                Err(e) => return Err(self.failed("examine", e)),
            }
        }
    }

    fn descend(&mut self) -> rustix::io::Result<()> {
        let stat = fstat(&self.dir)?;
        let below = openat2(&self.dir, &*self.name, DIRECTORY, Mode::empty(), INSIDE)?;
        let names = names(&below)?;
        self.dir = below;
        let level = Level {
            names,
            above: (stat.st_dev, stat.st_ino),
            name: self.name.clone(),
            path: self.path.len(),
        };
        self.levels.push(level);
        Ok(())
    }

    /// Out of a directory, which is told then.
    fn ascend(&mut self) -> Result<Option<Step<'_>>> {
        let Some(level) = self.levels.pop() else { return Ok(None) };
        if self.levels.is_empty() {
            return Ok(None);
        }
        // No RESOLVE_BENEATH, which refuses `..`; that it leads where it should is seen by its identity.
        let up = || -> io::Result<OwnedFd> {
            let dir = openat2(&self.dir, "..", DIRECTORY, Mode::empty(), INSIDE)?;
            let stat = fstat(&dir)?;
            if (stat.st_dev, stat.st_ino) == level.above {
                return Ok(dir);
            }
            Err(io::Error::other("it was moved while it was read"))
        };
        self.dir = up().map_err(|e| self.failed("go up from", e))?;
        self.name = level.name;
        Ok(Some(Step::Left(self.place())))
    }

    fn place(&self) -> Place<'_> {
        Place {
            dir: self.dir.as_fd(),
            name: &self.name,
            path: Path::new(OsStr::from_bytes(&self.path)),
            depth: self.levels.len().saturating_sub(1),
        }
    }

    fn failed(&self, act: &'static str, source: impl Into<io::Error>) -> Error {
        failed(act, Path::new(OsStr::from_bytes(&self.path)), source)
    }
}

/// A user has chosen the path: no control character of it reaches a terminal, and no more of it than one can read.
pub(crate) fn failed(act: &'static str, path: &Path, source: impl Into<io::Error>) -> Error {
    let mut what: String = path.to_string_lossy().escape_debug().take(300).collect();
    if what.is_empty() {
        what.push('.');
    }
    Error::Act { act, what, source: source.into() }
}

/// What is in a directory, sorted.
fn names(dir: &OwnedFd) -> rustix::io::Result<std::vec::IntoIter<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names.into_iter())
}

/// Opens a directory, which is no link, to walk over it. The path up to it is root's own.
///
/// # Errors
/// [`Error::Act`].
pub fn open(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(|e| failed("open", path, e))
}

/// What a tree takes, its top included. What is mounted in it is not counted.
///
/// # Errors
/// [`Error::Act`].
pub fn size(top: OwnedFd) -> Result<Size> {
    let mut size = Size::default();
    let mut linked = HashSet::new();
    let mut count = |stat: &Stat| {
        if is_dir(stat) || stat.st_nlink < 2 || linked.insert(stat.st_ino) {
            // st_blocks counts in 512 bytes, whatever the file system's own blocks are (stat(2)).
            size.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            size.inodes += 1;
        }
    };
    count(&fstat(&top).map_err(|e| failed("examine", Path::new(""), e))?);
    let mut walk = Walk::below(top)?;
    while let Some(step) = walk.step()? {
        if let Step::Found(_, stat) = step {
            count(&stat);
        }
    }
    Ok(size)
}

/// What a tree would take as a directory of ext4's, counted without its being one: whole blocks of 4 KiB, for each directory one, for a
/// link that is longer than 59 bytes one. For trees in an image, of which stat(2) tells what they take packed.
///
/// # Errors
/// [`Error::Act`].
pub fn size_as_copied(top: OwnedFd) -> Result<Size> {
    const BLOCK: u64 = 4096;
    let mut size = Size { bytes: BLOCK, inodes: 1 };
    let mut linked = HashSet::new();
    let mut walk = Walk::below(top)?;
    while let Some(step) = walk.step()? {
        let Step::Found(_, stat) = step else { continue };
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        if !is_dir(&stat) && stat.st_nlink > 1 && !linked.insert(stat.st_ino) {
            continue;
        }
        size.inodes += 1;
        size.bytes += match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => length.div_ceil(BLOCK) * BLOCK,
            FileType::Directory => length.div_ceil(BLOCK).max(1) * BLOCK,
            FileType::Symlink if length > 59 => BLOCK,
            _ => 0,
        };
    }
    Ok(size)
}

/// Bytes on disk: of a file, or of a directory and all below it.
///
/// # Errors
/// [`Error::Act`].
pub fn taken(path: &Path) -> Result<u64> {
    let stat =
        statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| failed("examine", path, e))?;
    if is_dir(&stat) {
        return size(open(path)?).map(|Size { bytes, .. }| bytes);
    }
    // As in `size`.
    Ok(u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
}

/// Removes `name` and all below it. `Ok(false)`: not finished when the time was up; the rest is still there.
///
/// # Errors
/// [`Error::Act`] with the path of what resists: a mount point does.
pub fn remove(dir: BorrowedFd<'_>, name: &CStr, until: Option<Instant>) -> Result<bool> {
    let top = Path::new(OsStr::from_bytes(name.to_bytes()));
    match openat2(dir, name, DIRECTORY, Mode::empty(), INSIDE) {
        Err(Errno::NOENT) => return Ok(true),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return unlink(dir, name, AtFlags::empty()).map(|()| true).map_err(|e| failed("remove", top, e));
        }
        Err(Errno::XDEV) => {
            return Err(failed("remove", top, io::Error::other("something is mounted on it")));
        }
        Err(e) => return Err(failed("open", top, e)),
        Ok(below) => {
            let mut walk = Walk::below(below)?;
            while let Some(step) = walk.step()? {
                if until.is_some_and(|until| Instant::now() >= until) {
                    return Ok(false);
                }
                let (place, flags) = match step {
                    Step::Found(_, stat) if is_dir(&stat) => continue,
                    Step::Found(place, _) => (place, AtFlags::empty()),
                    Step::Left(place) => (place, AtFlags::REMOVEDIR),
                    Step::Mount(place) => {
                        return Err(failed(
                            "remove",
                            place.path,
                            io::Error::other("something is mounted on it"),
                        ));
                    }
                };
                unlink(place.dir, place.name, flags).map_err(|e| failed("remove", place.path, e))?;
            }
        }
    }
    unlink(dir, name, AtFlags::REMOVEDIR).map(|()| true).map_err(|e| failed("remove", top, e))
}

/// Removes a name, also if it or its directory was made immutable or append-only (`chattr +i`, `+a`).
fn unlink(dir: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> rustix::io::Result<()> {
    match unlinkat(dir, name, flags) {
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::PERM) => {
            // Not for links and devices, which have no such flags and cannot be opened to be asked.
            let open = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let kind = FileType::from_raw_mode(statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode);
            if matches!(kind, FileType::RegularFile | FileType::Directory) {
                release(&openat2(dir, name, open, Mode::empty(), INSIDE)?)?;
            }
            release(&openat2(dir, ".", DIRECTORY, Mode::empty(), INSIDE)?)?;
            unlinkat(dir, name, flags)
        }
        removed => removed,
    }
}

fn release(file: &OwnedFd) -> rustix::io::Result<()> {
    let flags = ioctl_getflags(file)?;
    let free = flags - (IFlags::IMMUTABLE | IFlags::APPEND);
    if free == flags { Ok(()) } else { ioctl_setflags(file, free) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn open(path: &Path) -> OwnedFd {
        super::open(path).unwrap()
    }

    fn told(top: &Path) -> Vec<String> {
        let mut walk = Walk::below(open(top)).unwrap();
        let mut told = Vec::new();
        while let Some(step) = walk.step().unwrap() {
            told.push(match step {
                Step::Found(place, _) => place.path.display().to_string(),
                Step::Left(place) => {
                    format!("left {} ({})", place.path.display(), place.name.to_str().unwrap())
                }
                Step::Mount(place) => format!("mount {}", place.path.display()),
            });
        }
        told
    }

    #[test]
    fn a_walk_is_in_order_goes_deep_and_follows_no_link() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("b/c")).unwrap();
        fs::write(top.path().join("b/c/file"), "").unwrap();
        fs::write(top.path().join("a"), "").unwrap();
        symlink("/", top.path().join("b/root")).unwrap();
        let expected = ["a", "b", "b/c", "b/c/file", "left b/c (c)", "b/root", "left b (b)"];
        assert_eq!(told(top.path()), expected);
    }

    #[test]
    fn what_is_passed_over_is_not_entered() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("a/in")).unwrap();
        fs::create_dir_all(top.path().join("b/in")).unwrap();
        let mut walk = Walk::below(open(top.path())).unwrap();
        let mut told = Vec::new();
        while let Some(step) = walk.step().unwrap() {
            if let Step::Found(place, _) = step {
                told.push(place.path.display().to_string());
                if told.last().unwrap() == "a" {
                    walk.pass();
                }
            }
        }
        assert_eq!(told, ["a", "b", "b/in"]);
    }

    /// As `mkdir x; cd x` ten thousand times: its path is longer than any system call takes.
    fn dig(top: &Path, depth: usize) {
        let mut dir = open(top);
        for _ in 0..depth {
            rustix::fs::mkdirat(&dir, "x", Mode::from_raw_mode(0o000)).unwrap();
            dir = openat2(&dir, "x", DIRECTORY, Mode::empty(), INSIDE).unwrap();
        }
        drop(rustix::fs::openat(&dir, "end", OFlags::CREATE | OFlags::WRONLY, Mode::empty()).unwrap());
    }

    #[test]
    fn a_tree_of_ten_thousand_levels_is_measured_and_removed() {
        if !rustix::process::geteuid().is_root() {
            return; // Mode 000 stops everybody else; the tests of the whole run as root.
        }
        let top = tempfile::tempdir().unwrap();
        let deep = top.path().join("deep");
        fs::create_dir(&deep).unwrap();
        dig(&deep, 10_000);
        assert_eq!(size(open(&deep)).unwrap().inodes, 10_002);
        let removed = remove(open(top.path()).as_fd(), c"deep", None).unwrap();
        assert!(removed && !deep.exists());
    }

    #[test]
    fn a_removal_stops_at_its_time_and_goes_on_the_next() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("d/e")).unwrap();
        let dir = open(top.path());
        assert!(!remove(dir.as_fd(), c"d", Some(Instant::now())).unwrap());
        assert!(top.path().join("d/e").exists());
        assert!(remove(dir.as_fd(), c"d", None).unwrap());
        assert!(remove(dir.as_fd(), c"d", None).unwrap(), "what is gone is removed");
    }

    #[test]
    fn links_are_removed_and_what_they_name_stays() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("d")).unwrap();
        fs::create_dir(top.path().join("kept")).unwrap();
        fs::write(top.path().join("kept/file"), "x").unwrap();
        symlink("../kept", top.path().join("d/link")).unwrap();
        symlink("kept", top.path().join("top")).unwrap();
        let dir = open(top.path());
        assert!(remove(dir.as_fd(), c"d", None).unwrap());
        assert!(remove(dir.as_fd(), c"top", None).unwrap());
        assert!(top.path().join("kept/file").exists());
    }

    #[test]
    fn hard_links_are_counted_once() {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("a"), vec![1; 100_000]).unwrap();
        let one = size(open(top.path())).unwrap();
        fs::hard_link(top.path().join("a"), top.path().join("b")).unwrap();
        assert_eq!(size(open(top.path())).unwrap(), one);
        assert_eq!(one.inodes, 2);
    }
}
