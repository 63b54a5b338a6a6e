//! A faithful copy of a tree that a user may have shaped: `ojail snapshot`, and what a reset spares. Host root.
//!
//! Everything that a file system tells of a file comes along: kind, content and holes, owner, mode with its set-id bits, access lists,
//! capabilities and every other extended attribute, times, hard links (those of whiteouts too), and the flags of chattr(1) that
//! [`FLAGS`] has. Content is shared with the original where the file system can (btrfs, xfs), and copied where it cannot.
//!
//! Not by cp(1), which leaves out what `/etc/xattr.conf` names and the flags, and takes names from the root down, so that
//! a tree of ten thousand levels is too deep for it. Both trees are walked by descriptors: nothing is followed, no mount is crossed,
//! and one descriptor a tree is open, however deep.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, IFlags, Mode, OFlags, ResolveFlags, SeekFrom, Stat, Timespec, Timestamps, Uid,
    XattrFlags, chmodat, chownat, fstat, ftruncate, ioctl_ficlone, ioctl_getflags, ioctl_setflags, linkat,
    lremovexattr, lsetxattr, mkdirat, mknodat, openat, openat2, readlinkat, renameat, seek, statat,
    symlinkat, utimensat,
};
use rustix::io::Errno;

use crate::error::Result;
use crate::lower::attributes;
use crate::walk::{self, Step, Walk, failed, is_dir};

/// What of chattr(1) comes along. A copy's top stays without: what is immutable cannot be renamed.
const FLAGS: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND).union(IFlags::NODUMP).union(IFlags::NOATIME);

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Only inside of the directory, through no link of any kind, and onto no other mount.
const INSIDE: ResolveFlags =
    ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

/// Copies `name` in `from`, and all below it, to `new` in `to`, where nothing is yet. Nobody writes to either meanwhile.
///
/// After an error a part of the copy is there; it is the caller's to remove.
///
/// # Errors
/// [`Error::Act`](crate::Error::Act) with the path: what cannot be copied as it is, is not copied otherwise. A mount point in the
/// tree is refused.
pub fn tree(from: BorrowedFd<'_>, name: &CStr, to: BorrowedFd<'_>, new: &CStr) -> Result<()> {
    watched(from, name, to, new, &mut |_| Ok(()))
}

/// As [`tree`]; `each` hears of everything that is about to be copied, and can stop it.
///
/// # Errors
/// As [`tree`], and those of `each`.
pub fn watched(
    from: BorrowedFd<'_>,
    name: &CStr,
    to: BorrowedFd<'_>,
    new: &CStr,
    each: &mut dyn FnMut(&Stat) -> Result<()>,
) -> Result<()> {
    let mut copy = Copy { links: Links::default(), clone: true };
    let done = copy.all(from, name, to, new, each);
    let swept = copy.links.sweep(to);
    done.and(swept)
}

/// Whether files in this directory can share their content.
#[must_use]
pub fn shares(dir: BorrowedFd<'_>) -> bool {
    let file = || openat(dir, c".", OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC, Mode::RUSR);
    let try_it = || -> rustix::io::Result<()> {
        let (one, other) = (file()?, file()?);
        rustix::io::write(&one, &[1; 4096])?;
        ioctl_ficlone(&other, &one)
    };
    try_it().is_ok()
}

/// A copy in the making.
struct Copy {
    links: Links,
    /// Whether sharing content is still worth a try.
    clone: bool,
}

/// A directory that the walk is in.
struct Level {
    /// The copy of the directory above, to be found again on the way up.
    above: (u64, u64),
    /// As the original was found: to read it has touched its times.
    stat: Stat,
}

impl Copy {
    fn all(
        &mut self,
        from: BorrowedFd<'_>,
        name: &CStr,
        to: BorrowedFd<'_>,
        new: &CStr,
        each: &mut dyn FnMut(&Stat) -> Result<()>,
    ) -> Result<()> {
        let top = Path::new("");
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| failed("examine", top, e))?;
        each(&stat)?;
        if !is_dir(&stat) {
            self.links.hold(to)?;
            return self
                .one(from, name, &stat, to, new, true)
                .map_err(|e| failed("copy", Path::new(&*name.to_string_lossy()), e));
        }
        let open = |dir: BorrowedFd<'_>, name: &CStr| {
            openat2(dir, name, DIRECTORY, Mode::empty(), INSIDE).map_err(|e| failed("open", top, e))
        };
        let mut walk = Walk::below(open(from, name)?)?;
        mkdirat(to, new, Mode::RWXU)
            .and_then(|()| bare(to, new))
            .map_err(|e| failed("create the copy of", top, e))?;
        self.links.hold(to)?;
        let mut at = open(to, new)?;
        let mut levels: Vec<Level> = Vec::new();
        // A directory that was told and made, and is entered if it has anything in it; with the length of its path.
        let mut told: Option<(CString, usize, Stat)> = None;
        while let Some(step) = walk.step()? {
            match step {
                Step::Found(place, stat) => {
                    if let Some((name, length, above)) = told.take() {
                        if bytes(place.path).get(length) != Some(&b'/') {
                            return Err(failed("copy", place.path, changed()));
                        }
                        (|| {
                            let id = fstat(&at)?;
                            at = openat2(&at, &*name, DIRECTORY, Mode::empty(), INSIDE)?;
                            levels.push(Level { above: (id.st_dev, id.st_ino), stat: above });
                            Ok::<_, Errno>(())
                        })()
                        .map_err(|e| failed("enter the copy of", place.path, e))?;
                    }
                    each(&stat)?;
                    if is_dir(&stat) {
                        mkdirat(&at, place.name, Mode::RWXU)
                            .map_err(|e| failed("create the copy of", place.path, e))?;
                        told = Some((place.name.to_owned(), bytes(place.path).len(), stat));
                    } else {
                        self.one(place.dir, place.name, &stat, at.as_fd(), place.name, false)
                            .map_err(|e| failed("copy", place.path, e))?;
                    }
                }
                Step::Left(place) => {
                    let stat = match told.take() {
                        Some((_, length, stat)) if length == bytes(place.path).len() => stat,
                        Some(_) => return Err(failed("copy", place.path, changed())),
                        None => {
                            let Some(level) = levels.pop() else {
                                return Err(failed("copy", place.path, changed()));
                            };
                            at = up(&at, level.above).map_err(|e| failed("go up from", place.path, e))?;
                            level.stat
                        }
                    };
                    let dress = || -> io::Result<()> {
                        liken(place.dir, place.name, &stat, at.as_fd(), place.name)?;
                        let original = openat2(place.dir, place.name, DIRECTORY, Mode::empty(), INSIDE)?;
                        Ok(flags(&original, &openat2(&at, place.name, DIRECTORY, Mode::empty(), INSIDE)?)?)
                    };
                    dress().map_err(|e| failed("copy the attributes of", place.path, e))?;
                }
                Step::Mount(place) => {
                    return Err(failed(
                        "copy",
                        place.path,
                        io::Error::other("something is mounted on it; unmount it"),
                    ));
                }
            }
        }
        if told.is_some() {
            return Err(failed("copy", top, changed()));
        }
        liken(from, name, &stat, to, new).map_err(|e| failed("copy the attributes of", top, e))
    }

    /// Anything but a directory. `first`: what the directory gives to everything made in it is not wanted.
    fn one(
        &mut self,
        from: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
        to: BorrowedFd<'_>,
        new: &CStr,
        first: bool,
    ) -> io::Result<()> {
        let last = match self.links.linked(stat, to, new)? {
            Some(last) => {
                if last && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                    flags(&open_file(from, name)?, &open_file(to, new)?)?;
                }
                return Ok(());
            }
            None => stat.st_nlink < 2,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let original = open_file(from, name)?;
                let is = fstat(&original)?;
                if (is.st_dev, is.st_ino) != (stat.st_dev, stat.st_ino) {
                    return Err(changed());
                }
                let how = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let copy = openat(to, new, how, Mode::RUSR | Mode::WUSR)?;
                self.content(&original, &copy, &is)?;
                if first {
                    bare(to, new)?;
                }
                liken(from, name, stat, to, new)?;
                // What is immutable can get no further names.
                if last {
                    flags(&original, &copy)?;
                }
            }
            kind => {
                if kind == FileType::Symlink {
                    symlinkat(&*readlinkat(from, name, Vec::new())?, to, new)?;
                } else {
                    mknodat(to, new, kind, Mode::empty(), stat.st_rdev)?;
                }
                if first {
                    bare(to, new)?;
                }
                liken(from, name, stat, to, new)?;
            }
        }
        Ok(self.links.remember(stat, to, new)?)
    }

    fn content(&mut self, original: &OwnedFd, copy: &OwnedFd, stat: &Stat) -> io::Result<()> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if self.clone && size > 0 {
            match ioctl_ficlone(copy, original) {
                Ok(()) => return Ok(()),
                Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::NOSYS) => self.clone = false,
                // Of this file only.
                Err(_) => {}
            }
        }
        let (mut reader, mut writer) =
            (std::fs::File::from(original.try_clone()?), std::fs::File::from(copy.try_clone()?));
        let mut at = 0;
        while at < size {
            let data = match seek(original, SeekFrom::Data(at)) {
                // A hole to the end.
                Err(Errno::NXIO) => break,
                data => data?,
            };
            let hole = seek(original, SeekFrom::Hole(data))?;
            seek(original, SeekFrom::Start(data))?;
            seek(copy, SeekFrom::Start(data))?;
            // The kernel copies, where it can.
            if io::copy(&mut Read::by_ref(&mut reader).take(hole - data), &mut writer)? < hole - data {
                return Err(changed());
            }
            at = hole;
        }
        Ok(ftruncate(copy, size)?)
    }
}

/// Names of files that have several: each under its number, in a directory beside the copy, so that it is found however deep the
/// first of its names lies.
#[derive(Default)]
struct Links {
    dir: Option<(OwnedFd, CString)>,
    /// How many names each file has got so far.
    placed: HashMap<(u64, u64), u64>,
}

impl Links {
    /// Makes the directory.
    fn hold(&mut self, to: BorrowedFd<'_>) -> Result<()> {
        let mut make = || -> io::Result<()> {
            for number in 0.. {
                let name = CString::new(format!(".ojail.links.{number}"))?;
                match mkdirat(to, &*name, Mode::RWXU) {
                    // The user's own, or of a copy that was cut short.
                    Err(Errno::EXIST) => {}
                    made => {
                        made?;
                        let dir = openat2(to, &*name, DIRECTORY, Mode::empty(), INSIDE)?;
                        self.dir = Some((dir, name));
                        break;
                    }
                }
            }
            Ok(())
        };
        make().map_err(|e| failed("create a directory for", Path::new("hard links"), e))
    }

    /// Makes a further name of a file that was copied before. `None`: it was not; else whether this was the last of its names.
    fn linked(&mut self, stat: &Stat, to: BorrowedFd<'_>, new: &CStr) -> rustix::io::Result<Option<bool>> {
        let Some((dir, _)) = &self.dir else { return Ok(None) };
        let Some(placed) = self.placed.get_mut(&(stat.st_dev, stat.st_ino)) else { return Ok(None) };
        *placed += 1;
        let name = stat.st_ino.to_string();
        #[allow(clippy::useless_conversion, reason = "st_nlink is smaller on some architectures")]
        let last = *placed >= u64::from(stat.st_nlink);
        if last {
            // Which also fits where a file has as many names as it may have.
            renameat(dir, name, to, new)?;
        } else {
            linkat(dir, name, to, new, AtFlags::empty())?;
        }
        Ok(Some(last))
    }

    fn remember(&mut self, stat: &Stat, to: BorrowedFd<'_>, new: &CStr) -> rustix::io::Result<()> {
        if stat.st_nlink > 1 {
            if let Some((dir, _)) = &self.dir {
                linkat(to, new, dir, stat.st_ino.to_string(), AtFlags::empty())?;
                self.placed.insert((stat.st_dev, stat.st_ino), 1);
            }
        }
        Ok(())
    }

    fn sweep(&self, to: BorrowedFd<'_>) -> Result<()> {
        match &self.dir {
            Some((_, name)) => walk::remove(to, name, None).map(drop),
            None => Ok(()),
        }
    }
}

/// Owner, mode, extended attributes, times: in an order in which none takes another away.
fn liken(
    from: BorrowedFd<'_>,
    name: &CStr,
    stat: &Stat,
    to: BorrowedFd<'_>,
    new: &CStr,
) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    // Takes set-id bits and capabilities away, so before them.
    chownat(to, new, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // It was made just now, and is no link.
        chmodat(to, new, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
    }
    let path = path_of(to, new)?;
    for (name, value) in attributes(from, name)? {
        // A signature over the inode's number among others: the kernel's to write.
        if name.as_c_str() != c"security.evm" {
            lsetxattr(&path, &name, &value, XattrFlags::empty())?;
        }
    }
    let time = |tv_sec, tv_nsec: u64| Timespec { tv_sec, tv_nsec: tv_nsec as _ };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    utimensat(to, new, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Takes away the access lists that a directory gives to what is made in it. Only the first thing is made in a directory that
/// has any: all others are given theirs when nothing more is made in them.
fn bare(to: BorrowedFd<'_>, new: &CStr) -> rustix::io::Result<()> {
    let path = path_of(to, new)?;
    for name in attributes(to, new)?.keys() {
        if name.to_bytes().starts_with(b"system.posix_acl_") {
            lremovexattr(&path, name)?;
        }
    }
    Ok(())
}

/// See [`attributes`].
fn path_of(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<CString> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend(name.to_bytes());
    CString::new(path).map_err(|_| Errno::INVAL)
}

fn flags(original: &OwnedFd, copy: &OwnedFd) -> rustix::io::Result<()> {
    let flags = match ioctl_getflags(original) {
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
        flags => flags?.intersection(FLAGS),
    };
    if flags.is_empty() {
        return Ok(());
    }
    ioctl_setflags(copy, ioctl_getflags(copy)? | flags)
}

fn open_file(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    // Reading leaves no trace. A fifo that has come into the file's place does not hold us up.
    let how = OFlags::RDONLY | OFlags::NOATIME | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(dir, name, how, Mode::empty(), INSIDE)
}

fn up(dir: &OwnedFd, above: (u64, u64)) -> io::Result<OwnedFd> {
    let dir = openat2(dir, "..", DIRECTORY, Mode::empty(), INSIDE)?;
    let stat = fstat(&dir)?;
    if (stat.st_dev, stat.st_ino) == above { Ok(dir) } else { Err(changed()) }
}

fn changed() -> io::Error {
    io::Error::other("it was changed while it was copied")
}

fn bytes(path: &Path) -> &[u8] {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::fmt::Write as _;
    use std::fs::{self, File};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    use rustix::fs::{CWD, setxattr};

    /// Where root may do what the tests do; others have no upper to copy.
    fn root() -> Option<tempfile::TempDir> {
        rustix::process::geteuid().is_root().then(|| tempfile::tempdir().unwrap())
    }

    fn copied(top: &Path) -> Result<()> {
        let dir = walk::open(top)?;
        tree(dir.as_fd(), c"old", dir.as_fd(), c"new")
    }

    /// A line for everything in a tree, the top too: what stat(2) tells, attributes, flags, content, and where its other names are.
    fn facts(top: &Path) -> BTreeMap<PathBuf, String> {
        let mut facts = BTreeMap::new();
        let mut first: BTreeMap<u64, PathBuf> = BTreeMap::new();
        let mut tell = |dir: BorrowedFd<'_>, name: &CStr, path: &Path, s: &Stat| {
            let mut line = format!(
                "{:o} {}:{} {:x} {}.{} {} {}",
                s.st_mode, s.st_uid, s.st_gid, s.st_rdev, s.st_mtime, s.st_mtime_nsec, s.st_nlink, s.st_size
            );
            // Whatever looks at a directory or a link leaves a trace there.
            if !is_dir(s) && FileType::from_raw_mode(s.st_mode) != FileType::Symlink {
                write!(line, " atime {}.{}", s.st_atime, s.st_atime_nsec).unwrap();
            }
            write!(line, " {:?}", attributes(dir, name).unwrap()).unwrap();
            match FileType::from_raw_mode(s.st_mode) {
                FileType::Symlink => {
                    write!(line, " to {:?}", readlinkat(dir, name, Vec::new()).unwrap()).unwrap()
                }
                FileType::RegularFile => {
                    let mut file = File::from(open_file(dir, name).unwrap());
                    write!(line, " flags {:?}", ioctl_getflags(&file).unwrap() & FLAGS).unwrap();
                    if s.st_size < 1 << 20 {
                        let mut content = Vec::new();
                        file.read_to_end(&mut content).unwrap();
                        write!(line, " is {content:?}").unwrap();
                    }
                }
                FileType::Directory => {
                    let dir = openat2(dir, name, DIRECTORY, Mode::empty(), INSIDE).unwrap();
                    write!(line, " flags {:?}", ioctl_getflags(&dir).unwrap() & FLAGS).unwrap();
                }
                _ => {}
            }
            if !is_dir(s) {
                write!(line, " same as {:?}", first.entry(s.st_ino).or_insert(path.to_owned())).unwrap();
            }
            facts.insert(path.to_owned(), line);
        };
        let parent = walk::open(top.parent().unwrap()).unwrap();
        let name = CString::new(top.file_name().unwrap().as_encoded_bytes()).unwrap();
        let stat = statat(&parent, &*name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        tell(parent.as_fd(), &name, Path::new(""), &stat);
        let mut walk = Walk::below(walk::open(top).unwrap()).unwrap();
        while let Some(step) = walk.step().unwrap() {
            if let Step::Found(place, stat) = step {
                tell(place.dir, place.name, place.path, &stat);
            }
        }
        facts
    }

    /// Of posix_acl_xattr.h: a version, then tag, permissions and id of each entry.
    fn acl(user: u32) -> Vec<u8> {
        let mut acl = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in
            [(1u16, 7u16, u32::MAX), (2, 6, user), (4, 0, u32::MAX), (16, 6, u32::MAX), (32, 0, u32::MAX)]
        {
            acl.extend(tag.to_le_bytes());
            acl.extend(permissions.to_le_bytes());
            acl.extend(id.to_le_bytes());
        }
        acl
    }

    /// Everything that an upper can hold.
    fn furnish(top: &Path) {
        let at = |name: &str| top.join(name);
        let set = |name: &str, key: &str, value: &[u8]| {
            setxattr(at(name), key, value, XattrFlags::empty()).unwrap();
        };
        let own = |name: &str, uid: u32, gid: u32, mode: u32| {
            std::os::unix::fs::lchown(at(name), Some(uid), Some(gid)).unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        let node = |name: &str, kind: FileType, device: u64| {
            mknodat(CWD, at(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
        };
        for dir in ["", "closed", "closed/in", "opaque", "listed", "sticky", "fixed", "empty"] {
            fs::create_dir(at(dir)).unwrap();
        }
        for file in
            ["closed/in/file", "setuid", "capable", "listed/file", "beagle", "frozen", "growing", "odd"]
        {
            fs::write(at(file), file).unwrap();
        }
        fs::write(at("new\nline \x1b[31m"), "x").unwrap();
        fs::write(top.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff\xfe")), "")
            .unwrap();
        own("setuid", 5, 60, 0o6755);
        own("sticky", 1000, 1000, 0o3777);
        own("odd", 65_534, 4_000_000_000, 0o000);
        // VFS_CAP_REVISION_2 of linux/capability.h, effective, CAP_NET_RAW.
        own("capable", 7, 7, 0o755);
        let capability = [[1, 0, 0, 2], [0, 32, 0, 0], [0; 4], [0; 4], [0; 4]].concat();
        set("capable", "security.capability", &capability);
        set("listed", "system.posix_acl_access", &acl(7));
        set("listed", "system.posix_acl_default", &acl(1000));
        set("listed/file", "system.posix_acl_access", &acl(8));
        set("opaque", "user.overlay.opaque", b"y");
        set("opaque", "user.overlay.origin", b"\0\xfb\x1d\0");
        set("beagle", "user.Beagle.index", b"not for cp");
        set("beagle", "user.large", &[7; 3000]);
        set("beagle", "user.empty", b"");
        set("beagle", "trusted.overlay.metacopy", b"");
        set("growing", "trusted.SGI_ACL_FILE", b"nor this");
        node("whiteout", FileType::CharacterDevice, 0);
        node("null", FileType::CharacterDevice, 0x103);
        node("fifo", FileType::Fifo, 0);
        node("socket", FileType::Socket, 0);
        for (old, new) in [
            ("setuid", "closed/linked"),
            ("setuid", "sticky/linked"),
            ("whiteout", "closed/whiteout"),
            ("fifo", "empty/fifo"),
            ("frozen", "closed/in/frozen"),
        ] {
            fs::hard_link(at(old), at(new)).unwrap();
        }
        symlink("/", at("root")).unwrap();
        symlink("../../../../etc/passwd", at("closed/out")).unwrap();
        fs::hard_link(at("root"), at("root2")).unwrap();
        rustix::fs::lsetxattr(at("root"), "trusted.of.a.link", b"1", XattrFlags::empty()).unwrap();
        let sparse = File::create(at("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 1 << 39).unwrap();
        own("closed/in", 0, 0, 0o000);
        own("closed", 1000, 33, 0o2000);
        for (number, name) in
            ["setuid", "whiteout", "root", "socket", "sparse", "closed/in", "closed", "sticky", "frozen", ""]
                .iter()
                .enumerate()
        {
            let time = |more: u64| Timespec {
                tv_sec: i64::try_from(1_000_000_000 + more).unwrap(),
                tv_nsec: 123_456_789,
            };
            let number = u64::try_from(number).unwrap();
            let times = Timestamps { last_access: time(number), last_modification: time(number * 7) };
            utimensat(CWD, at(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        for (name, flags) in [
            ("frozen", IFlags::IMMUTABLE),
            ("growing", IFlags::APPEND | IFlags::NODUMP),
            ("fixed", IFlags::IMMUTABLE),
        ] {
            let file = File::open(at(name)).unwrap();
            ioctl_setflags(&file, ioctl_getflags(&file).unwrap() | flags).unwrap();
        }
    }

    fn clear(top: tempfile::TempDir) {
        for name in [c"old", c"new"] {
            walk::remove(walk::open(top.path()).unwrap().as_fd(), name, None).unwrap();
        }
    }

    #[test]
    fn everything_that_an_upper_can_hold_comes_through() {
        let Some(top) = root() else { return };
        furnish(&top.path().join("old"));
        let before = facts(&top.path().join("old"));
        copied(top.path()).unwrap();
        let after = facts(&top.path().join("new"));
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        for (path, line) in &before {
            assert_eq!(line, &after[path], "{}", path.display());
        }
        assert_eq!(facts(&top.path().join("old")), before, "the original has changed");
        let sparse = fs::metadata(top.path().join("new/sparse")).unwrap();
        assert!(std::os::unix::fs::MetadataExt::blocks(&sparse) < 1000, "a hole was filled");
        let names = fs::read_dir(top.path()).unwrap().count();
        assert_eq!(names, 2, "something is left beside the copy");
        clear(top);
    }

    #[test]
    fn single_things_are_copied_too_and_take_nothing_from_their_new_directory() {
        let Some(top) = root() else { return };
        furnish(&top.path().join("old"));
        setxattr(top.path(), "system.posix_acl_default", &acl(1234), XattrFlags::empty()).unwrap();
        let old = walk::open(&top.path().join("old")).unwrap();
        let to = walk::open(top.path()).unwrap();
        for (number, name) in
            ["setuid", "capable", "whiteout", "socket", "root", "listed", "closed", "odd"].iter().enumerate()
        {
            let (name, new) = (CString::new(*name).unwrap(), CString::new(format!("n{number}")).unwrap());
            tree(old.as_fd(), &name, to.as_fd(), &new).unwrap();
            let stat = |dir: &OwnedFd, name: &CStr| statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            let (a, b) = (stat(&old, &name), stat(&to, &new));
            assert_eq!((a.st_mode, a.st_uid, a.st_rdev), (b.st_mode, b.st_uid, b.st_rdev), "{name:?}");
            let of = |dir: &OwnedFd, name: &CStr| attributes(dir.as_fd(), name).unwrap();
            assert_eq!(of(&old, &name), of(&to, &new), "{name:?}");
        }
        let already = tree(old.as_fd(), c"setuid", to.as_fd(), c"n0").unwrap_err().to_string();
        assert!(already.contains("setuid"), "{already}");
        clear(top);
    }

    #[test]
    fn a_tree_of_ten_thousand_levels_is_copied_with_links_between_top_and_bottom() {
        let Some(top) = root() else { return };
        fs::create_dir(top.path().join("old")).unwrap();
        fs::write(top.path().join("old/a"), "deep").unwrap();
        let first = walk::open(&top.path().join("old")).unwrap();
        let mut dir = first.try_clone().unwrap();
        for _ in 0..10_000 {
            mkdirat(&dir, "x", Mode::from_raw_mode(0o010)).unwrap();
            dir = openat2(&dir, "x", DIRECTORY, Mode::empty(), INSIDE).unwrap();
        }
        linkat(&first, "a", &dir, "b", AtFlags::empty()).unwrap();
        copied(top.path()).unwrap();
        let size = |name: &str| walk::size(walk::open(&top.path().join(name)).unwrap()).unwrap();
        assert_eq!(size("new"), size("old"));
        assert_eq!(size("new").inodes, 10_002);
        assert_eq!(
            fs::metadata(top.path().join("new/a")).map(|m| m.permissions().mode()).unwrap() & 0o777,
            0o644
        );
        clear(top);
    }

    #[test]
    fn a_copy_can_be_stopped() {
        let Some(top) = root() else { return };
        fs::create_dir_all(top.path().join("old/a/b")).unwrap();
        let dir = walk::open(top.path()).unwrap();
        let mut left = 2;
        let stopped = watched(dir.as_fd(), c"old", dir.as_fd(), c"new", &mut |_| {
            left -= 1;
            if left == 0 { Err(failed("go on with", Path::new("it"), changed())) } else { Ok(()) }
        });
        assert!(stopped.is_err() && !top.path().join("new/a").exists());
        clear(top);
    }
}
