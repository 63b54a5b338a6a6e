//! From a directory to a tar. The walk is by descriptors: no mount is crossed, no link followed.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, major, minor, openat2, readlinkat};
use tar::{EntryType, Header};

use super::{BLOCK, HEADER, HOLES, OPAQUE, WHITEOUT, XATTR, belongs, shown};
use crate::error::{Act, Error, Result};
use crate::lower::{self, attributes};
use crate::walk::{Step, Walk, failed, is_dir, is_whiteout};

/// The name that extended headers have themselves.
const PAX: &[u8] = b"././@PaxHeader";

/// How much a name may have, in bytes, to stand in a plain header.
const NAME: usize = 100;

/// The largest number of an id in a plain header (seven octal digits).
const ID: u64 = 0o777_7777;

/// The largest size and time in a plain header (eleven octal digits).
const LARGE: u64 = 0o777_7777_7777;

/// The first names of files with several are kept, up to this many bytes of all of them together: a user may have chosen long ones.
const NAMES: usize = 256 << 20;

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Files, directories and the rest, each name once, the root too.
    pub entries: u64,
    /// Bytes of the tar.
    pub bytes: u64,
}

/// Writes a directory and all below it as the tar of one layer. Nobody writes there meanwhile.
///
/// # Errors
/// [`Error::Unfit`] for what such a tar cannot say: a name that begins with `.wh.`, an extended header of more than 1 MiB, holes of
/// more than 1 TiB together, something mounted in the tree. [`Error::Act`] for what cannot be read, or written to `to`.
pub fn write(dir: BorrowedFd<'_>, to: &mut impl Write) -> Result<Written> {
    write_in_parts(dir, to, u64::MAX, &mut |_| Ok(()))
}

/// As [`write()`], but when `most` bytes are written the archive ends before the next entry, and `cut` is called, behind which another
/// begins. Read one after the other into one tree ([`super::Tree::add`]), the parts are the same as the whole; a hard link may be to
/// what an earlier part has.
///
/// # Errors
/// As [`write()`], and those of `cut`.
pub fn write_in_parts<W: Write>(
    dir: BorrowedFd<'_>,
    to: &mut W,
    most: u64,
    cut: &mut dyn FnMut(&mut W) -> Result<()>,
) -> Result<Written> {
    let top = openat2(dir, ".", DIRECTORY, Mode::empty(), INSIDE).act("open", "the top of a tree")?;
    let mut writer = Writer {
        to,
        done: Written::default(),
        part: 0,
        most,
        cut,
        holes: 0,
        first: HashMap::new(),
        kept: 0,
        buffer: vec![0; 1 << 16],
    };
    let stat = fstat(&top).act("examine", "the top of a tree")?;
    // Whether the root is opaque is nothing that overlayfs asks.
    writer.directory(top.as_fd(), c".", b"./", &stat)?;
    let mut walk = Walk::below(top)?;
    while let Some(step) = walk.step()? {
        match step {
            Step::Found(place, stat) => {
                let path = std::os::unix::ffi::OsStrExt::as_bytes(place.path.as_os_str());
                writer.one(place.dir, place.name, path, &stat)?;
            }
            Step::Left(_) => {}
            Step::Mount(place) => {
                return Err(failed(
                    "pack",
                    place.path,
                    io::Error::other("something is mounted on it; unmount it"),
                ));
            }
        }
    }
    writer.put(&END)?;
    Ok(writer.done)
}

/// The end of an archive.
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Through no link of any kind, and onto no other mount.
const INSIDE: ResolveFlags =
    ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);

struct Writer<'a, W> {
    to: &'a mut W,
    done: Written,
    /// Bytes of this part.
    part: u64,
    /// After how many of them the next part begins.
    most: u64,
    cut: &'a mut dyn FnMut(&mut W) -> Result<()>,
    /// Bytes of holes so far.
    holes: u64,
    /// Of files with several names: the first, by device and inode.
    first: HashMap<(u64, u64), Box<[u8]>>,
    kept: usize,
    buffer: Vec<u8>,
}

/// What a header says.
struct Entry<'a> {
    kind: EntryType,
    path: &'a [u8],
    link: &'a [u8],
    size: u64,
    mode: u32,
    owner: (u32, u32),
    time: i64,
    device: u64,
    /// Records of the extended header, by keyword.
    records: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl<W: Write> Writer<'_, W> {
    fn one(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: &[u8], stat: &Stat) -> Result<()> {
        let refused = |why: &str| Err(Error::Unfit { path: shown(path).into(), why: why.into() });
        if name.to_bytes().starts_with(WHITEOUT) {
            return refused(
                "begins with `.wh.`, which in an OCI layer means that something else is deleted; rename it",
            );
        }
        if is_whiteout(stat) {
            let (above, name) = path.split_at(path.len() - name.to_bytes().len());
            return self.mark(&[above, WHITEOUT, name].concat());
        }
        if is_dir(stat) {
            let path = [path, b"/"].concat();
            self.directory(dir, name, &path, stat)?;
            let below = openat2(dir, name, DIRECTORY, Mode::empty(), INSIDE);
            let opaque = below.and_then(lower::is_opaque).map_err(|e| told("examine", &path, e))?;
            return if opaque { self.mark(&[&path, OPAQUE].concat()) } else { Ok(()) };
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Socket {
            return Ok(());
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.first.get(&(stat.st_dev, stat.st_ino)) {
                let link = first.clone();
                // All else is said where the first is.
                return self.entry(Entry { kind: EntryType::Link, link: &link, ..of(path, stat) });
            }
            self.kept += path.len();
            if self.kept > NAMES {
                return refused("is one of too many hard links, whose names do not fit into memory");
            }
            self.first.insert((stat.st_dev, stat.st_ino), path.into());
        }
        let records = xattrs(dir, name, path)?;
        let entry = Entry { records, ..of(path, stat) };
        match kind {
            FileType::RegularFile => self.file(dir, name, entry, stat),
            FileType::Symlink => {
                let target = readlinkat(dir, name, Vec::new()).map_err(|e| told("read the link", path, e))?;
                self.entry(Entry { kind: EntryType::Symlink, link: target.to_bytes(), ..entry })
            }
            FileType::Fifo => self.entry(Entry { kind: EntryType::Fifo, ..entry }),
            FileType::CharacterDevice => {
                self.entry(Entry { kind: EntryType::Char, device: stat.st_rdev, ..entry })
            }
            FileType::BlockDevice => {
                self.entry(Entry { kind: EntryType::Block, device: stat.st_rdev, ..entry })
            }
            _ => refused("is of a kind that no tar has"),
        }
    }

    fn directory(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: &[u8], stat: &Stat) -> Result<()> {
        let records = xattrs(dir, name, path)?;
        self.entry(Entry { kind: EntryType::Directory, records, ..of(path, stat) })
    }

    /// A whiteout, or the mark of an opaque directory. What a file system says of those of its own has no meaning.
    fn mark(&mut self, path: &[u8]) -> Result<()> {
        self.entry(Entry {
            kind: EntryType::Regular,
            path,
            link: b"",
            size: 0,
            mode: 0,
            owner: (0, 0),
            time: 0,
            device: 0,
            records: BTreeMap::new(),
        })
    }

    fn file(&mut self, dir: BorrowedFd<'_>, name: &CStr, entry: Entry<'_>, stat: &Stat) -> Result<()> {
        let path = entry.path;
        let changed = || told("pack", path, io::Error::other("it was changed while it was read"));
        let mut file = lower::open(dir, name).map_err(|e| told("open", path, e))?;
        let is = fstat(&file).map_err(|e| told("examine", path, e))?;
        if (is.st_dev, is.st_ino, is.st_size) != (stat.st_dev, stat.st_ino, stat.st_size) {
            return Err(changed());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        // st_blocks counts in 512 bytes (stat(2)).
        self.holes += size.saturating_sub(u64::try_from(stat.st_blocks).unwrap_or(0) * 512);
        if self.holes > HOLES {
            let why = "and what is before it have holes of more than 1 TiB, which a layer's tar has in full; \
                       make it smaller, with truncate(1) for example";
            return Err(Error::Unfit { path: shown(path).into(), why: why.into() });
        }
        self.entry(Entry { kind: EntryType::Regular, size, ..entry })?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut left = size;
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            match file.read(&mut buffer[..most]) {
                Ok(0) => return Err(changed()),
                Ok(read) => {
                    self.put(&buffer[..read])?;
                    left -= read as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(told("read", path, e)),
            }
        }
        self.buffer = buffer;
        self.fill(size)
    }

    /// A header, with an extended one before it if need be.
    fn entry(&mut self, mut entry: Entry<'_>) -> Result<()> {
        if self.part >= self.most {
            self.put(&END)?;
            (self.cut)(self.to)?;
            self.part = 0;
        }
        let mut plain = Header::new_ustar();
        plain.set_entry_type(entry.kind);
        plain.set_mode(entry.mode & 0o7777);
        let mut extended = |keyword: &str, value: Vec<u8>| entry.records.insert(keyword.into(), value);
        let mut number = |keyword: &str, value: u64, most: u64| {
            if value > most {
                extended(keyword, value.to_string().into_bytes());
            }
            value.min(most)
        };
        plain.set_uid(number("uid", entry.owner.0.into(), ID));
        plain.set_gid(number("gid", entry.owner.1.into(), ID));
        plain.set_size(number("size", entry.size, LARGE));
        match u64::try_from(entry.time) {
            Ok(time) => plain.set_mtime(number("mtime", time, LARGE)),
            Err(_) => {
                plain.set_mtime(0);
                extended("mtime", entry.time.to_string().into_bytes());
            }
        }
        for (keyword, name) in [("path", entry.path), ("linkpath", entry.link)] {
            if name.len() > NAME || !name.is_ascii() {
                extended(keyword, name.to_vec());
            }
        }
        let old = plain.as_old_mut();
        for (name, field) in [(entry.path, &mut old.name), (entry.link, &mut old.linkname)] {
            let most = name.len().min(NAME);
            field[..most].copy_from_slice(&name[..most]);
        }
        if matches!(entry.kind, EntryType::Char | EntryType::Block) {
            if let Some(ustar) = plain.as_ustar_mut() {
                ustar.set_device_major(major(entry.device));
                ustar.set_device_minor(minor(entry.device));
            }
        }
        if !entry.records.is_empty() {
            self.records(entry.path, &entry.records)?;
        }
        plain.set_cksum();
        self.done.entries += 1;
        self.put(plain.as_bytes())
    }

    fn records(&mut self, path: &[u8], records: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<()> {
        let mut text = Vec::new();
        for (keyword, value) in records {
            // A blank, an equals sign, a newline; and the length, which counts itself.
            let rest = keyword.len() + value.len() + 3;
            let mut length = rest + 1;
            while rest + length.to_string().len() != length {
                length = rest + length.to_string().len();
            }
            text.extend(length.to_string().bytes());
            text.push(b' ');
            text.extend(keyword);
            text.push(b'=');
            text.extend(value);
            text.push(b'\n');
        }
        let size = text.len() as u64;
        if size > HEADER {
            let why = "has a name and extended attributes of more than 1 MiB together, which no reader of OCI layers takes";
            return Err(Error::Unfit { path: shown(path).into(), why: why.into() });
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.as_old_mut().name[..PAX.len()].copy_from_slice(PAX);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.set_cksum();
        self.put(header.as_bytes())?;
        self.put(&text)?;
        self.fill(size)
    }

    /// The rest of the last block.
    fn fill(&mut self, size: u64) -> Result<()> {
        let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        if over == 0 { Ok(()) } else { self.put(&[0; BLOCK][over..]) }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.done.bytes += bytes.len() as u64;
        self.part += bytes.len() as u64;
        self.to.write_all(bytes).act("write", "a layer")
    }
}

fn of<'a>(path: &'a [u8], stat: &Stat) -> Entry<'a> {
    Entry {
        kind: EntryType::Regular,
        path,
        link: b"",
        size: 0,
        mode: stat.st_mode,
        owner: (stat.st_uid, stat.st_gid),
        time: stat.st_mtime,
        device: 0,
        records: BTreeMap::new(),
    }
}

/// As records of an extended header.
fn xattrs(dir: BorrowedFd<'_>, name: &CStr, path: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let all = attributes(dir, name).map_err(|e| told("read the attributes of", path, e))?;
    let mut records = BTreeMap::new();
    for (name, value) in all.into_iter().filter(|(name, _)| belongs(name.to_bytes())) {
        let mut keyword = XATTR.to_vec();
        for byte in name.to_bytes() {
            match byte {
                b'%' => keyword.extend(b"%25"),
                b'=' => keyword.extend(b"%3D"),
                other => keyword.push(*other),
            }
        }
        records.insert(keyword, value);
    }
    Ok(records)
}

fn told(act: &'static str, path: &[u8], source: impl Into<io::Error>) -> Error {
    failed(act, Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(path)), source)
}
