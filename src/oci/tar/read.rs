//! From a tar to a directory. A stranger may have made the tar: nothing is believed of it, and what no layer needs is refused.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat,
    chownat, fgetxattr, fstat, fstatvfs, ftruncate, linkat, lremovexattr, lsetxattr, makedev, mkdirat,
    mknodat, openat, seek, statat, symlinkat, utimensat,
};
use rustix::io::Errno;
use tar::Header;

use super::place::{Place, is_mark, parts, refused};
use super::{BLOCK, HEADER, HOLES, OPAQUE, WHITEOUT, XATTR, belongs, shown};
use crate::error::{Act, Error, Result};
use crate::lower::{self, attributes};
use crate::walk::{self, Step, Walk, failed, is_dir, is_whiteout};

/// How much a tree may take that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Files, directories and the rest.
    pub entries: u64,
    /// Bytes on disk: of content that is not zeros, in blocks of 4 KiB, and one of these for each directory.
    pub bytes: u64,
}

/// Where a file system does not say how many inodes it has left (btrfs).
const ENTRIES: u64 = 10_000_000;

impl Allowance {
    /// Nine tenths of what the file system of this directory has left: whoever else is on it goes on.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn of(dir: impl AsFd) -> Result<Self> {
        let stat = fstatvfs(dir).act("ask for the room in", "the directory of a layer")?;
        let entries = if stat.f_files == 0 { ENTRIES } else { stat.f_favail / 10 * 9 };
        Ok(Self { entries, bytes: (stat.f_bavail / 10 * 9).saturating_mul(stat.f_frsize) })
    }
}

/// What becomes of whiteouts and opaque directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marks {
    /// They are made as overlayfs has them: the tree is a layer.
    Kept,
    /// What they hide is removed from what was read before: the tree becomes what several layers show together.
    Applied,
}

/// What was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Entries of the archives; those that replace an earlier one count again.
    pub entries: u64,
    /// Bytes, as in [`Allowance::bytes`].
    pub bytes: u64,
}

/// Reads the tar of one layer to its end, into an empty directory of which nobody else knows.
///
/// After an error a part of it is there; it is the caller's to remove.
///
/// # Errors
/// As [`Tree::add`].
pub fn read(from: &mut impl Read, into: BorrowedFd<'_>, allowance: Allowance) -> Result<Taken> {
    let mut tree = Tree::new(into, allowance)?;
    tree.add(from, Marks::Kept)?;
    tree.finish()
}

/// A tree that is made of the tars of one or more layers. [`Tree::finish`] completes it.
pub struct Tree {
    top: OwnedFd,
    /// Where the next entry goes.
    place: Place,
    /// Where the target of the next hard link is.
    target: Place,
    allowance: Allowance,
    taken: Taken,
    holes: u64,
    /// The times of directories, by inode: what is made in one changes them, so they are set at the end.
    times: HashMap<u64, Timespec>,
    /// What the layer that is read has, by a digest of the path, with [`Marks::Applied`]: its whiteouts do not mean that.
    made: HashSet<u128>,
    hashers: [RandomState; 2],
    /// Whether a directory may give an access list to what is made in it.
    lists: bool,
    buffer: Vec<u8>,
}

/// An entry of an archive.
struct Entry {
    kind: u8,
    path: Vec<u8>,
    link: Vec<u8>,
    size: u64,
    mode: u32,
    owner: (u32, u32),
    time: Timespec,
    device: (u32, u32),
    xattrs: BTreeMap<CString, Vec<u8>>,
}

/// What came before an entry to say more of it.
#[derive(Default)]
struct Before {
    records: Option<BTreeMap<Vec<u8>, Vec<u8>>>,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

/// Devices that the runtimes of containers make in every one (runtime-spec of OCI, config-linux.md, "Default Devices"), and that
/// `mmdebstrap` makes in a tree: null, zero, full, random, urandom, tty, console, ptmx.
const DEVICES: [(u32, u32); 8] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];

/// On most file systems.
const DISK_BLOCK: usize = 4096;

const EPOCH: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

impl Tree {
    /// Begins in an empty directory.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn new(into: BorrowedFd<'_>, allowance: Allowance) -> Result<Self> {
        let open = || Place::top(into).act("open", "the directory of a new tree");
        let (place, target) = (open()?, open()?);
        let top = into.try_clone_to_owned().act("open", "the directory of a new tree")?;
        let lists = fgetxattr(&top, c"system.posix_acl_default", &mut [0; 0][..]).is_ok();
        Ok(Self {
            top,
            place,
            target,
            allowance,
            taken: Taken::default(),
            holes: 0,
            times: HashMap::new(),
            made: HashSet::new(),
            hashers: [RandomState::new(), RandomState::new()],
            lists,
            buffer: vec![0; 1 << 16],
        })
    }

    /// Reads the tar of one layer to its end.
    ///
    /// # Errors
    /// [`Error::LayerTar`], if the archive is cut short or damaged, or has a name that leads out of the tree or through a symbolic
    /// link, a hard link to what it does not have, a device that is not one of the usual ones, a file with sparse records, a header
    /// of more than 1 MiB, or more than is allowed. [`Error::Act`] if it cannot be read, or the tree not be written.
    pub fn add(&mut self, from: &mut impl Read, marks: Marks) -> Result<()> {
        self.made.clear();
        let mut before = Before::default();
        loop {
            let Some(block) = block(from)? else { return Err(cut()) };
            if block.iter().all(|byte| *byte == 0) {
                break;
            }
            let header = Header::from_byte_slice(&block);
            check(header)?;
            let size = field(&block, 124..136).and_then(|size| u64::try_from(size).ok());
            let size = size.ok_or_else(|| damaged("has a size that is no number"))?;
            match block[156] {
                b'x' if before.records.is_none() => before.records = Some(records(&small(from, size)?)?),
                b'L' if before.path.is_none() => before.path = Some(text(small(from, size)?)),
                b'K' if before.link.is_none() => before.link = Some(text(small(from, size)?)),
                b'x' | b'L' | b'K' => {
                    return Err(damaged("has two extended headers of a kind for one entry"));
                }
                b'g' => {
                    // git writes the commit's name so. All else would change the meaning of what follows.
                    if records(&small(from, size)?)?.keys().any(|keyword| keyword != b"comment") {
                        return Err(damaged("has a header for all entries (pax, `g`), which no layer has"));
                    }
                }
                _ => {
                    let entry = entry(header, size, std::mem::take(&mut before))?;
                    self.taken.entries += 1;
                    if self.taken.entries > self.allowance.entries {
                        let why = format!(
                            "it has more than {} files, which is what is left on this file system less a tenth",
                            self.allowance.entries
                        );
                        return Err(Error::LayerTar { why });
                    }
                    self.one(from, &entry, marks)?;
                }
            }
        }
        // Whoever digests what is read gets all of it; and after the end there are only zeros.
        io::copy(&mut from.take(HOLES), &mut io::sink()).act("read", "a layer")?;
        Ok(())
    }

    /// Sets what could not be set before all was there.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn finish(self) -> Result<Taken> {
        let fail = |path: &std::path::Path, e: Errno| failed("set the time of", path, e);
        let time = |stat: &Stat| {
            // Of directories that no entry was about.
            let time = self.times.get(&stat.st_ino).copied().unwrap_or(EPOCH);
            Timestamps { last_access: time, last_modification: time }
        };
        let top = self.top.try_clone().act("open", "the directory of a new tree")?;
        let mut walk = Walk::below(top)?;
        while let Some(step) = walk.step()? {
            if let Step::Left(place) = step {
                statat(place.dir, place.name, AtFlags::SYMLINK_NOFOLLOW)
                    .and_then(|stat| {
                        utimensat(place.dir, place.name, &time(&stat), AtFlags::SYMLINK_NOFOLLOW)
                    })
                    .map_err(|e| fail(place.path, e))?;
            }
        }
        let root = std::path::Path::new("");
        let stat = fstat(&self.top).map_err(|e| fail(root, e))?;
        rustix::fs::futimens(&self.top, &time(&stat)).map_err(|e| fail(root, e))?;
        Ok(self.taken)
    }

    fn one(&mut self, from: &mut impl Read, entry: &Entry, marks: Marks) -> Result<()> {
        let path = parts(&entry.path)?;
        let Some((name, above)) = path.split_last() else {
            if entry.kind != b'5' {
                return Err(refused(&entry.path, "is the root of the tree, and no directory"));
            }
            skip(from, entry.size)?;
            let top = self.top.try_clone().act("open", "the directory of a new tree")?;
            return self.dress_dir(top.as_fd(), c".", entry);
        };
        if above.iter().any(|part| is_mark(part)) {
            return Err(refused(&entry.path, "is below a whiteout"));
        }
        self.go(above, entry, marks)?;
        if is_mark(name) {
            if !matches!(entry.kind, b'0' | 0) {
                return Err(refused(&entry.path, "is called like a whiteout, and no plain file"));
            }
            skip(from, entry.size)?;
            return self.mark(&path, entry, marks);
        }
        if marks == Marks::Applied {
            self.remember(&path);
        }
        match entry.kind {
            // '7' is a file that was contiguous once (POSIX).
            b'0' | 0 | b'7' => self.file(from, name, entry)?,
            b'5' => {
                skip(from, entry.size)?;
                self.dir(name, entry, marks)?;
                return Ok(());
            }
            b'1' => {
                skip(from, entry.size)?;
                return self.link(name, &path, entry);
            }
            b'2' => {
                skip(from, entry.size)?;
                let target = CString::new(&*entry.link).map_err(|_| no_target(entry))?;
                if target.is_empty() {
                    return Err(no_target(entry));
                }
                self.clear(name, entry)?;
                symlinkat(&*target, self.place.dir(), name).map_err(|e| made(entry, e))?;
            }
            b'6' => {
                skip(from, entry.size)?;
                self.clear(name, entry)?;
                mknodat(self.place.dir(), name, FileType::Fifo, Mode::RUSR, 0).map_err(|e| made(entry, e))?;
            }
            b'3' | b'4' => {
                skip(from, entry.size)?;
                if entry.kind == b'4' || !DEVICES.contains(&entry.device) {
                    let kind = if entry.kind == b'4' { "block" } else { "character" };
                    let (major, minor) = entry.device;
                    let why = format!(
                        "is a {kind} device ({major}, {minor}); of devices, a layer may have null, zero, full, random, urandom, tty, console and ptmx"
                    );
                    return Err(refused(&entry.path, &why));
                }
                self.clear(name, entry)?;
                let device = makedev(entry.device.0, entry.device.1);
                mknodat(self.place.dir(), name, FileType::CharacterDevice, Mode::RUSR, device)
                    .map_err(|e| made(entry, e))?;
            }
            b'S' => return Err(sparse(entry)),
            _ => {
                let why = format!("is of a kind that no layer has ({:?})", char::from(entry.kind));
                return Err(refused(&entry.path, &why));
            }
        }
        self.dress(self.place.dir(), name, entry)
    }

    /// To the directory of an entry. Those that no entry is about are made: with mode 755, of root.
    fn go(&mut self, above: &[CString], entry: &Entry, marks: Marks) -> Result<()> {
        for part in self.place.toward(above).map_err(|e| made(entry, e))? {
            match self.place.enter(part) {
                Err(Errno::NOENT) => {}
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let stat = statat(self.place.dir(), &**part, AtFlags::SYMLINK_NOFOLLOW);
                    let stat = stat.map_err(|e| made(entry, e))?;
                    if !is_whiteout(&stat) {
                        let what = if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
                            "symbolic link"
                        } else {
                            "file"
                        };
                        let why = format!("is below {}, which is a {what}", shown(part.to_bytes()));
                        return Err(refused(&entry.path, &why));
                    }
                }
                entered => {
                    entered.map_err(|e| made(entry, e))?;
                    continue;
                }
            }
            self.make_dir(part, marks).map_err(|e| made(entry, e))?;
            self.count(1, entry)?;
            self.place.enter(part).map_err(|e| made(entry, e))?;
        }
        if marks == Marks::Applied {
            self.remember(above);
        }
        Ok(())
    }

    /// A directory where none is: nothing, or a whiteout, which it then has in it.
    fn make_dir(&mut self, name: &CStr, marks: Marks) -> rustix::io::Result<()> {
        let dir = self.place.dir();
        let hides = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_whiteout(&stat) && marks == Marks::Kept => {
                rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
                true
            }
            _ => false,
        };
        mkdirat(dir, name, Mode::RWXU)?;
        chmodat(dir, name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
        self.bare(dir, name)?;
        // The number may have been another's.
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        self.times.remove(&stat.st_ino);
        if hides {
            lsetxattr(&path_of(self.place.dir(), name)?, lower::OPAQUE, b"y", XattrFlags::empty())?;
        }
        Ok(())
    }

    fn dir(&mut self, name: &CStr, entry: &Entry, marks: Marks) -> Result<()> {
        let there = statat(self.place.dir(), name, AtFlags::SYMLINK_NOFOLLOW);
        match there {
            Ok(stat) if is_dir(&stat) => {}
            Ok(stat) if !is_whiteout(&stat) => {
                self.clear(name, entry)?;
                self.make_dir(name, marks).map_err(|e| made(entry, e))?;
            }
            Ok(_) | Err(Errno::NOENT) => self.make_dir(name, marks).map_err(|e| made(entry, e))?,
            Err(e) => return Err(made(entry, e)),
        }
        self.count(1, entry)?;
        // A second descriptor of the same: the place is needed while it is dressed.
        let dir = self.place.dir().try_clone_to_owned().map_err(|e| made(entry, e))?;
        self.dress_dir(dir.as_fd(), name, entry)
    }

    fn dress_dir(&mut self, dir: BorrowedFd<'_>, name: &CStr, entry: &Entry) -> Result<()> {
        let bare = || -> rustix::io::Result<()> {
            let path = path_of(dir, name)?;
            for attribute in attributes(dir, name)?.keys() {
                if attribute.as_c_str() != lower::OPAQUE {
                    lremovexattr(&path, attribute)?;
                }
            }
            Ok(())
        };
        bare().map_err(|e| made(entry, e))?;
        self.dress(dir, name, entry)?;
        self.lists |= entry.xattrs.contains_key(c"system.posix_acl_default");
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| made(entry, e))?;
        self.times.insert(stat.st_ino, entry.time);
        Ok(())
    }

    /// Content, with holes where whole blocks are zeros.
    fn file(&mut self, from: &mut impl Read, name: &CStr, entry: &Entry) -> Result<()> {
        self.clear(name, entry)?;
        let how = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            openat(self.place.dir(), name, how, Mode::RUSR | Mode::WUSR).map_err(|e| made(entry, e))?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut at = 0;
        // Where the file's own position is.
        let mut position = 0;
        while at < entry.size {
            let most = buffer.len().min(usize::try_from(entry.size - at).unwrap_or(usize::MAX));
            whole(from, &mut buffer[..most])?;
            for piece in buffer[..most].chunks(DISK_BLOCK) {
                if piece.iter().all(|byte| *byte == 0) {
                    self.holes += piece.len() as u64;
                    if self.holes > HOLES {
                        return Err(refused(
                            &entry.path,
                            "and what is before it have more than 1 TiB of zeros",
                        ));
                    }
                } else {
                    self.count(1, entry)?;
                    if position != at {
                        seek(&file, SeekFrom::Start(at)).map_err(|e| made(entry, e))?;
                    }
                    io::Write::write_all(&mut Writing(&file), piece).map_err(|e| made(entry, e))?;
                    position = at + piece.len() as u64;
                }
                at += piece.len() as u64;
            }
        }
        self.buffer = buffer;
        if position < entry.size {
            ftruncate(&file, entry.size).map_err(|e| made(entry, e))?;
        }
        drop(file);
        skip_to_block(from, entry.size)
    }

    fn link(&mut self, name: &CStr, path: &[CString], entry: &Entry) -> Result<()> {
        let none = || {
            let why = format!("is a hard link to {}, which is no file before it", shown(&entry.link));
            refused(&entry.path, &why)
        };
        let target = parts(&entry.link)?;
        if target == path {
            return Ok(());
        }
        let Some((last, above)) = target.split_last() else { return Err(none()) };
        if self.target.to(above).map_err(|e| made(entry, e))?.is_none() {
            return Err(none());
        }
        match statat(self.target.dir(), &**last, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if !is_dir(&stat) && !is_whiteout(&stat) => {}
            Ok(_) | Err(Errno::NOENT) => return Err(none()),
            Err(e) => return Err(made(entry, e)),
        }
        self.clear(name, entry)?;
        linkat(self.target.dir(), &**last, self.place.dir(), name, AtFlags::empty()).map_err(|e| match e {
            // What was cleared had the target in it.
            Errno::NOENT => none(),
            e => made(entry, e),
        })
    }

    /// A whiteout, or the mark of an opaque directory.
    fn mark(&mut self, path: &[CString], entry: &Entry, marks: Marks) -> Result<()> {
        let Some((name, above)) = path.split_last() else { return Ok(()) };
        let hidden = &name.to_bytes()[WHITEOUT.len()..];
        if name.to_bytes() == OPAQUE {
            if marks == Marks::Applied {
                let dir = self.place.dir().try_clone_to_owned().map_err(|e| made(entry, e))?;
                return self.purge(dir, above);
            }
            if self.place.depth() == 0 {
                return Err(refused(
                    &entry.path,
                    "hides all of the layers below, which the root of a layer cannot",
                ));
            }
            return lower::set_opaque(self.place.dir()).map_err(|e| made(entry, e));
        }
        if hidden.starts_with(WHITEOUT) {
            return Err(refused(&entry.path, "is AUFS' own, which has no meaning here"));
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refused(&entry.path, "is a whiteout of no name"));
        }
        let hidden = CString::new(hidden).map_err(|e| made(entry, io::Error::from(e)))?;
        let there = match statat(self.place.dir(), &*hidden, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => None,
            stat => Some(stat.map_err(|e| made(entry, e))?),
        };
        match (marks, there) {
            (Marks::Kept, None) => {
                mknodat(self.place.dir(), &*hidden, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(|e| made(entry, e))?;
                chownat(
                    self.place.dir(),
                    &*hidden,
                    Some(Uid::ROOT),
                    Some(Gid::ROOT),
                    AtFlags::SYMLINK_NOFOLLOW,
                )
                .and_then(|()| self.bare(self.place.dir(), &hidden))
                .and_then(|()| {
                    let times = Timestamps { last_access: EPOCH, last_modification: EPOCH };
                    utimensat(self.place.dir(), &*hidden, &times, AtFlags::SYMLINK_NOFOLLOW)
                })
                .map_err(|e| made(entry, e))
            }
            // It hides what is below this layer, and what is in it hides that already, a directory if it is opaque.
            (Marks::Kept, Some(stat)) if is_dir(&stat) => path_of(self.place.dir(), &hidden)
                .and_then(|path| lsetxattr(&path, lower::OPAQUE, b"y", XattrFlags::empty()))
                .map_err(|e| made(entry, e)),
            (Marks::Kept, Some(_)) | (Marks::Applied, None) => Ok(()),
            (Marks::Applied, Some(stat)) => {
                let mut path = above.to_vec();
                path.push(hidden);
                let Some(hidden) = path.last() else { return Ok(()) };
                if !self.made.contains(&self.digest(&path)) {
                    return walk::remove(self.place.dir(), hidden, None).map(drop);
                }
                if !is_dir(&stat) {
                    return Ok(());
                }
                let below = |mut place: Place| {
                    place.enter(hidden)?;
                    Ok(place.into_dir())
                };
                let dir = Place::top(self.place.dir()).and_then(below).map_err(|e| made(entry, e))?;
                self.purge(dir, &path)
            }
        }
    }

    /// Removes from a directory what earlier layers have put there.
    fn purge(&mut self, dir: OwnedFd, path: &[CString]) -> Result<()> {
        let mut walk = Walk::below(dir)?;
        let mut below = path.to_vec();
        let mut remove = None;
        loop {
            // The walk holds what it tells of.
            match walk.step()? {
                None => return Ok(()),
                Some(Step::Found(place, stat)) => {
                    below.truncate(path.len() + place.depth);
                    below.push(place.name.to_owned());
                    if !self.made.contains(&self.digest(&below)) {
                        if is_dir(&stat) {
                            remove = Some((
                                place
                                    .dir
                                    .try_clone_to_owned()
                                    .map_err(|e| failed("remove", place.path, e))?,
                                place.name.to_owned(),
                            ));
                        } else {
                            walk::remove(place.dir, place.name, None)?;
                        }
                    }
                }
                Some(Step::Left(_) | Step::Mount(_)) => {}
            }
            if let Some((dir, name)) = remove.take() {
                walk.pass();
                walk::remove(dir.as_fd(), &name, None)?;
            }
        }
    }

    /// Makes room for an entry: the last of a name is the one that holds.
    fn clear(&mut self, name: &CStr, entry: &Entry) -> Result<()> {
        match statat(self.place.dir(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(made(entry, e)),
            Ok(stat) => {
                if is_dir(&stat) {
                    // It may lead to a target that is about to go.
                    self.target = Place::top(self.top.as_fd()).map_err(|e| made(entry, e))?;
                }
                walk::remove(self.place.dir(), name, None).map(drop)
            }
        }
    }

    /// Owner, mode, attributes, times: in an order in which none takes another away.
    fn dress(&self, dir: BorrowedFd<'_>, name: &CStr, entry: &Entry) -> Result<()> {
        let dress = || -> rustix::io::Result<()> {
            let (uid, gid) = (Uid::from_raw(entry.owner.0), Gid::from_raw(entry.owner.1));
            // Takes set-id bits and capabilities away, so before them.
            chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            if entry.kind != b'5' {
                self.bare(dir, name)?;
            }
            if entry.kind != b'2' {
                // It was made just now, and is no link.
                chmodat(dir, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
            }
            if !entry.xattrs.is_empty() {
                let path = path_of(dir, name)?;
                for (attribute, value) in &entry.xattrs {
                    lsetxattr(&path, attribute, value, XattrFlags::empty())?;
                }
            }
            let times = Timestamps { last_access: entry.time, last_modification: entry.time };
            utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        };
        dress().map_err(|e| failed("set the attributes of", &lossy(&entry.path), e))
    }

    /// Takes away the access lists that a directory has given to what was made in it.
    fn bare(&self, dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
        if !self.lists {
            return Ok(());
        }
        let path = path_of(dir, name)?;
        for attribute in attributes(dir, name)?.keys() {
            if attribute.to_bytes().starts_with(b"system.posix_acl_") {
                lremovexattr(&path, attribute)?;
            }
        }
        Ok(())
    }

    /// So many blocks more.
    fn count(&mut self, blocks: u64, entry: &Entry) -> Result<()> {
        self.taken.bytes += blocks * DISK_BLOCK as u64;
        if self.taken.bytes <= self.allowance.bytes {
            return Ok(());
        }
        let why = format!(
            "and what is before it take more than {} bytes, which is what is left on this file system less a tenth",
            self.allowance.bytes
        );
        Err(refused(&entry.path, &why))
    }

    /// That the layer has this, and so the directories above it.
    fn remember(&mut self, path: &[CString]) {
        for length in (1..=path.len()).rev() {
            let digest = self.digest(&path[..length]);
            if !self.made.insert(digest) {
                break;
            }
        }
    }

    /// Of 128 bits, with keys that nobody knows: two paths of one digest are not to be found.
    fn digest(&self, path: &[CString]) -> u128 {
        let [high, low] = self.hashers.each_ref().map(|hasher| u128::from(hasher.hash_one(path)));
        high << 64 | low
    }
}

/// Writes to a descriptor.
struct Writing<'a>(&'a OwnedFd);

impl io::Write for Writing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn made(entry: &Entry, source: impl Into<io::Error>) -> Error {
    failed("make", &lossy(&entry.path), source)
}

fn lossy(path: &[u8]) -> std::path::PathBuf {
    <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path).into()
}

fn no_target(entry: &Entry) -> Error {
    refused(&entry.path, "is a symbolic link to nothing that could be a name")
}

fn sparse(entry: &Entry) -> Error {
    refused(&entry.path, "has sparse records, which no OCI layer has; pack it without (tar without --sparse)")
}

fn cut() -> Error {
    Error::LayerTar { why: "it is cut short, or no tar".into() }
}

fn damaged(why: &str) -> Error {
    Error::LayerTar { why: format!("it {why}") }
}

/// See [`attributes`].
fn path_of(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<CString> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend(name.to_bytes());
    CString::new(path).map_err(|_| Errno::INVAL)
}

/// The next block; `None` at the end of what there is.
fn block(from: &mut impl Read) -> Result<Option<[u8; BLOCK]>> {
    let mut block = [0; BLOCK];
    let mut length = 0;
    while length < BLOCK {
        match from.read(&mut block[length..]) {
            Ok(0) if length == 0 => return Ok(None),
            Ok(0) => return Err(cut()),
            Ok(read) => length += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e).act("read", "a layer"),
        }
    }
    Ok(Some(block))
}

fn whole(from: &mut impl Read, room: &mut [u8]) -> Result<()> {
    match from.read_exact(room) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(cut()),
        read => read.act("read", "a layer"),
    }
}

/// Content that nobody wants.
fn skip(from: &mut impl Read, size: u64) -> Result<()> {
    if size > HOLES {
        return Err(damaged("has content of more than 1 TiB where there is none"));
    }
    if io::copy(&mut Read::by_ref(from).take(size), &mut io::sink()).act("read", "a layer")? < size {
        return Err(cut());
    }
    skip_to_block(from, size)
}

fn skip_to_block(from: &mut impl Read, size: u64) -> Result<()> {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    if over == 0 { Ok(()) } else { whole(from, &mut [0; BLOCK][over..]) }
}

/// The content of an extended header.
fn small(from: &mut impl Read, size: u64) -> Result<Vec<u8>> {
    if size > HEADER {
        let why = format!("it has an extended header of {size} bytes, and more than 1 MiB has no use");
        return Err(Error::LayerTar { why });
    }
    let mut content = vec![0; usize::try_from(size).unwrap_or(0)];
    whole(from, &mut content)?;
    skip_to_block(from, size)?;
    Ok(content)
}

/// A name of GNU tar's: up to the byte that ends it.
fn text(mut content: Vec<u8>) -> Vec<u8> {
    if let Some(end) = content.iter().position(|byte| *byte == 0) {
        content.truncate(end);
    }
    content
}

/// Not a tar, or a damaged one.
fn check(header: &Header) -> Result<()> {
    let mut is = header.clone();
    is.set_cksum();
    match (is.cksum(), header.cksum()) {
        (Ok(is), Ok(said)) if is == said => Ok(()),
        _ => Err(damaged("is no tar, or damaged: the checksum of a header is wrong")),
    }
}

/// The records of an extended header (POSIX, pax). Their length counts, for a value may have any byte.
fn records(mut content: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut records = BTreeMap::new();
    while !content.is_empty() {
        let record = || -> Option<(&[u8], &[u8], &[u8])> {
            let blank = content.iter().take(20).position(|byte| *byte == b' ')?;
            let length: usize = std::str::from_utf8(&content[..blank]).ok()?.parse().ok()?;
            let (record, rest) = content.split_at_checked(length)?;
            let record = record.get(blank + 1..)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|byte| *byte == b'=')?;
            Some((&record[..equals], &record[equals + 1..], rest))
        };
        let Some((keyword, value, rest)) = record() else {
            return Err(damaged("has a damaged extended header"));
        };
        records.insert(keyword.to_vec(), value.to_vec());
        content = rest;
    }
    Ok(records)
}

fn entry(header: &Header, size: u64, before: Before) -> Result<Entry> {
    let records = before.records.unwrap_or_default();
    let long = |keyword: &[u8], gnu: Option<Vec<u8>>, plain: &[u8]| match records.get(keyword) {
        Some(value) => value.clone(),
        None => gnu.unwrap_or_else(|| plain.to_vec()),
    };
    let path = long(b"path", before.path, &header.path_bytes());
    let link = long(b"linkpath", before.link, &header.link_name_bytes().unwrap_or_default());
    let bad = |why: &str| refused(&path, why);
    let number = |keyword: &[u8], plain: Option<i64>| -> Result<u64> {
        let value = match records.get(keyword) {
            Some(value) => std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()),
            None => plain.and_then(|plain| u64::try_from(plain).ok()),
        };
        value.ok_or_else(|| bad(&format!("has a {} that is no number", String::from_utf8_lossy(keyword))))
    };
    let block = header.as_bytes();
    let id = |keyword: &[u8], place: Range<usize>| -> Result<u32> {
        // The largest means "as it is" to chown(2).
        match u32::try_from(number(keyword, field(block, place))?) {
            Ok(id) if id != u32::MAX => Ok(id),
            _ => Err(bad(&format!("has a {} that nobody can have", String::from_utf8_lossy(keyword)))),
        }
    };
    let mut kind = header.as_bytes()[156];
    // Before there was a kind for directories.
    if kind == 0 && path.ends_with(b"/") {
        kind = b'5';
    }
    let mut xattrs = BTreeMap::new();
    for (keyword, value) in &records {
        if keyword.starts_with(b"GNU.sparse.") {
            return Err(bad(
                "has sparse records, which no OCI layer has; pack it without (tar without --sparse)",
            ));
        }
        let Some(name) = keyword.strip_prefix(XATTR) else { continue };
        let name = plain(name);
        if belongs(&name) {
            let name = CString::new(name).map_err(|_| bad("has an attribute that cannot have that name"))?;
            xattrs.insert(name, value.clone());
        }
    }
    let time = match records.get(b"mtime".as_slice()) {
        Some(value) => seconds(value),
        None => field(block, 136..148).map(|tv_sec| Timespec { tv_sec, tv_nsec: 0 }),
    };
    let device = |place| field(block, place).and_then(|number| u32::try_from(number).ok());
    Ok(Entry {
        kind,
        size: number(b"size", i64::try_from(size).ok())?,
        mode: field(block, 100..108)
            .and_then(|mode| u32::try_from(mode & 0o7777).ok())
            .ok_or_else(|| bad("has a mode that is no number"))?,
        owner: (id(b"uid", 108..116)?, id(b"gid", 116..124)?),
        time: time.ok_or_else(|| bad("has an mtime that is no number"))?,
        device: (device(329..337).unwrap_or(u32::MAX), device(337..345).unwrap_or(u32::MAX)),
        link,
        xattrs,
        path,
    })
}

/// A number in a header: octal digits with blanks and zero bytes around them, none for 0; or, as GNU tar has large and negative ones,
/// two's complement, the first bit of which says so. (The crate's own takes neither none nor negative ones.)
fn field(block: &[u8; BLOCK], place: Range<usize>) -> Option<i64> {
    let bytes = block.get(place)?;
    let (first, rest) = bytes.split_first()?;
    if first & 0x80 != 0 {
        // The second bit is the sign.
        let mut value = i128::from(first & 0x7f) - if first & 0x40 != 0 { 0x80 } else { 0 };
        for byte in rest {
            value = value << 8 | i128::from(*byte);
        }
        return i64::try_from(value).ok();
    }
    let text = std::str::from_utf8(bytes).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() { Some(0) } else { i64::from_str_radix(text, 8).ok() }
}

/// The name of an extended attribute, in which GNU tar and we write two characters otherwise.
fn plain(mut name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    while let [first, rest @ ..] = name {
        let (byte, rest) = match name {
            [b'%', b'2', b'5', rest @ ..] => (b'%', rest),
            [b'%', b'3', b'D', rest @ ..] => (b'=', rest),
            _ => (*first, rest),
        };
        plain.push(byte);
        name = rest;
    }
    plain
}

/// A time as pax has it: seconds, and maybe a fraction of one.
fn seconds(value: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let tv_sec: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: i64 = digits.parse().ok()?;
    // -1.25 is a quarter of a second before -1.
    if text.starts_with('-') && nanoseconds > 0 {
        return Some(Timespec {
            tv_sec: tv_sec.checked_sub(1)?,
            tv_nsec: (1_000_000_000 - nanoseconds) as _,
        });
    }
    Some(Timespec { tv_sec, tv_nsec: nanoseconds as _ })
}
