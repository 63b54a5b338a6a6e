//! The jail's file system from outside of it: everything is found below its root, and no link is followed.
//!
//! Used while a jail is raised, by its own root, on whatever the user has put there.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::unistd::{Gid, Uid};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, statat};

use super::mounts::{attach, clone_place};
use crate::error::{Act, Error, Result};

/// One jail's file system.
pub(super) struct Tree {
    pub(super) root: OwnedFd,
    user: String,
}

impl Tree {
    /// Never out of the root, never through a link, be it the last part or one on the way.
    const RESOLVE: ResolveFlags =
        ResolveFlags::IN_ROOT.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

    /// A tree for looking only.
    pub(super) fn at(root: OwnedFd, user: &str) -> Self {
        Self { root, user: user.to_owned() }
    }

    fn open(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        let opened = openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), Self::RESOLVE)?;
        // With O_PATH and O_NOFOLLOW the kernel opens a link in last place itself, whatever RESOLVE_NO_SYMLINKS says.
        if flags.contains(OFlags::PATH)
            && FileType::from_raw_mode(fstat(&opened)?.st_mode) == FileType::Symlink
        {
            return Err(rustix::io::Errno::LOOP);
        }
        Ok(opened)
    }

    fn blocked(&self, path: &str, source: impl Into<io::Error>) -> Error {
        Error::Blocked { path: Path::new("/").join(path), user: self.user.clone(), source: source.into() }
    }

    fn unreadable(&self, path: &str, source: impl Into<io::Error>) -> Error {
        Error::Unreadable { path: Path::new("/").join(path), user: self.user.clone(), source: source.into() }
    }

    /// The parent's descriptor and the last part of the path. Missing directories are made.
    fn parent<'a>(&self, path: &'a str) -> Result<(OwnedFd, &'a str)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.dir(parent)?, name))
    }

    /// A directory, made with its parents if it is missing.
    pub(super) fn dir(&self, path: &str) -> Result<OwnedFd> {
        let open = || self.open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW);
        match open() {
            Err(rustix::io::Errno::NOENT) => {
                let (parent, name) = self.parent(path)?;
                match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => open().map_err(|e| self.blocked(path, e)),
                    Err(e) => Err(self.blocked(path, e)),
                }
            }
            dir => dir.map_err(|e| self.blocked(path, e)),
        }
    }

    /// A plain file, made empty if it is missing, for something to be mounted on.
    pub(super) fn file(&self, path: &str) -> Result<()> {
        match self.open(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(self.blocked(path, e)),
        }
        let (parent, name) = self.parent(path)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop).map_err(|e| self.blocked(path, e))
    }

    /// Attaches a mount to a directory, made if it is missing.
    pub(super) fn mount(&self, mount: &OwnedFd, path: &str) -> Result<()> {
        self.dir(path)?;
        self.mount_on(mount, path, OFlags::DIRECTORY)
    }

    /// Attaches a mount to what is there.
    pub(super) fn mount_on(&self, mount: &OwnedFd, path: &str, kind: OFlags) -> Result<()> {
        let place =
            self.open(path, OFlags::PATH | OFlags::NOFOLLOW | kind).map_err(|e| self.blocked(path, e))?;
        attach(mount, &place).map_err(|e| self.blocked(path, e))
    }

    /// Makes a symbolic link.
    pub(super) fn link(&self, path: &str, target: &str) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        rustix::fs::symlinkat(target, &parent, name).map_err(|e| self.blocked(path, e))
    }

    /// The content of a plain file; `None` if there is nothing at this path. What is there and cannot be read (a link, a
    /// fifo, a file of more than 16 MiB) is an error, never taken for empty: somebody would overwrite it.
    pub(super) fn content(&self, path: &str) -> Result<Option<Vec<u8>>> {
        const MOST: u64 = 16 << 20;
        // O_NONBLOCK: a fifo in the place of a file must not hold the login.
        let file = match self.open(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            file => File::from(file.map_err(|e| self.unreadable(path, e))?),
        };
        let meta = file.metadata().map_err(|e| self.unreadable(path, e))?;
        if !meta.is_file() || meta.len() > MOST {
            return Err(self.unreadable(path, io::Error::other("not a plain file of at most 16 MiB")));
        }
        let mut content = Vec::new();
        file.take(MOST).read_to_end(&mut content).map_err(|e| self.unreadable(path, e))?;
        Ok(Some(content))
    }

    /// Whether anything is at this path, a link included.
    pub(super) fn exists(&self, path: &str) -> bool {
        !matches!(self.open(path, OFlags::PATH | OFlags::NOFOLLOW), Err(rustix::io::Errno::NOENT))
    }

    /// Whether something is at this path, and whether it is a directory.
    pub(super) fn is_there(&self, path: &str) -> Result<Option<bool>> {
        match self.open(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Err(rustix::io::Errno::NOENT) => Ok(None),
            place => {
                let stat = place.and_then(fstat).map_err(|e| self.blocked(path, e))?;
                Ok(Some(FileType::from_raw_mode(stat.st_mode) == FileType::Directory))
            }
        }
    }

    /// A detached clone of what is mounted at this path.
    pub(super) fn clone_of(&self, path: &str) -> Result<OwnedFd> {
        let place = self.open(path, OFlags::PATH | OFlags::NOFOLLOW).map_err(|e| self.blocked(path, e))?;
        clone_place(&place, Path::new(path))
    }

    /// Whether there is a directory at this path.
    pub(super) fn is_dir(&self, path: &str) -> bool {
        self.open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW).is_ok()
    }

    /// Whether there is a symbolic link at this path, or on the way.
    pub(super) fn is_link(&self, path: &str) -> bool {
        matches!(self.open(path, OFlags::PATH | OFlags::NOFOLLOW), Err(rustix::io::Errno::LOOP))
    }

    /// Puts a plain file there in one step: whoever reads sees the old one or the new.
    pub(super) fn replace(&self, path: &str, content: &[u8], mode: u32, owner: (u32, u32)) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        let temp = format!(".{name}.ojail");
        let replace = || -> io::Result<()> {
            let _ = rustix::fs::unlinkat(&parent, temp.as_str(), AtFlags::empty());
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(openat(&parent, temp.as_str(), flags, Mode::from_raw_mode(0o600))?);
            file.write_all(content)?;
            nix::unistd::fchown(&file, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))?;
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            Ok(rustix::fs::renameat(&parent, temp.as_str(), &parent, name)?)
        };
        replace().map_err(|e| self.blocked(path, e))
    }

    /// A directory with this mode and owner.
    pub(super) fn owned_dir(&self, path: &str, mode: u32, owner: (u32, u32)) -> Result<()> {
        self.dir(path)?;
        let own = || -> io::Result<()> {
            let dir = File::from(self.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)?);
            nix::unistd::fchown(&dir, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))?;
            dir.set_permissions(fs::Permissions::from_mode(mode))
        };
        own().map_err(|e| self.blocked(path, e))
    }

    /// Names and modes of the plain files in a directory; none if there is no such directory.
    pub(super) fn files(&self, path: &str) -> Vec<(String, u32)> {
        let Ok(dir) = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) else {
            return Vec::new();
        };
        let Ok(entries) = rustix::fs::Dir::read_from(&dir) else { return Vec::new() };
        let mut files = Vec::new();
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().to_str() else { continue };
            if let Ok(stat) = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                    files.push((name.to_owned(), stat.st_mode & 0o777));
                }
            }
        }
        files
    }

    /// Names of the directories in a directory of the kernel's.
    pub(super) fn dirs(&self, path: &str) -> Result<Vec<String>> {
        let dir = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW).act("open", path)?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(dir).act("list", path)? {
            let entry = entry.act("list", path)?;
            if entry.file_type() == FileType::Directory {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }

    /// Writes to a file of the kernel's.
    pub(super) fn write(&self, path: &str, text: &str) -> Result<()> {
        let mut file = File::from(self.open(path, OFlags::WRONLY).act("open", path)?);
        file.write_all(text.as_bytes()).act("write", path)
    }

    /// Reads a file of the kernel's.
    pub(super) fn read(&self, path: &str) -> Result<String> {
        let mut text = String::new();
        let mut file = File::from(self.open(path, OFlags::RDONLY).act("open", path)?);
        file.read_to_string(&mut text).act("read", path)?;
        Ok(text)
    }
}
