//! What an upper changes: the tree that a user sees, compared with the layers, as a stream in the order of a walk. Host root, for
//! `ojail diff`.
//!
//! Nothing is mounted and nothing written: the upper is walked by descriptors, and what it covers is looked up in [`Lower`]. It may
//! be in use. What vanishes meanwhile is passed over, and what changes meanwhile is told as it was or as it is.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::iter::Peekable;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2, readlinkat, statat};
use rustix::io::Errno;
use serde::Serialize;

use crate::error::{Act, Error, Result};
use crate::lower::{self, Found, Lower, Way};
use crate::walk::{Place, Step, Walk, is_dir, is_whiteout};

/// One change.
#[derive(Debug)]
pub struct Change<'a> {
    /// What became of it.
    pub what: What<'a>,
    /// Where in the jail, without the slash in front; empty for the root itself. Any bytes but NUL.
    pub path: &'a [u8],
}

/// What became of a path.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one at a time, and it is never moved")]
pub enum What<'a> {
    /// It is not in the layers.
    Added {
        /// What is there.
        new: Entry<'a>,
    },
    /// It is in the layers, and is another thing now.
    Changed {
        /// What is there now.
        new: Entry<'a>,
        /// What the layers have.
        old: Option<Entry<'a>>,
        /// In what they differ; at least in one respect.
        differs: Differences,
    },
    /// It is in the layers, and cannot be seen any more. Of a directory, what was in it is not told.
    Deleted {
        /// What the layers have. `None`: nothing, so the upper only hides furniture of the jail, or what a layer once had.
        old: Option<Entry<'a>>,
    },
}

/// Something on disk.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// What it is.
    pub stat: Stat,
    /// Of a plain file with several names: the first of them that was told, in the jail.
    pub same_as: Option<&'a [u8]>,
    dir: BorrowedFd<'a>,
    name: &'a CStr,
}

/// What something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A plain file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A block or character device.
    Device,
}

/// In what the old and the new differ: old first, `None` or nothing where they do not.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Their kinds; then nothing else is compared.
    pub kind: Option<(Kind, Kind)>,
    /// The bytes of a plain file.
    pub content: bool,
    /// Where a link leads, or a device's number.
    pub target: Option<(Vec<u8>, Vec<u8>)>,
    /// Permissions with setuid, setgid and sticky.
    pub mode: Option<(u32, u32)>,
    /// uid and gid.
    pub owner: Option<((u32, u32), (u32, u32))>,
    /// Extended attributes, by the names that they have in the jail, access lists and capabilities among them.
    pub attributes: Vec<CString>,
    /// The time of the last change of the content, though the content is the same. Never of a directory.
    pub time: bool,
}

impl Differences {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How many changes there are, and what they take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Sum {
    /// Paths that are new.
    pub added: u64,
    /// Paths that are other than in the layers.
    pub changed: u64,
    /// Paths that are gone; a directory counts as one.
    pub deleted: u64,
    /// What was copied into the upper and is as in the layers all the same. Directories are not counted: they are there for what is
    /// in them.
    pub unchanged: u64,
    /// Bytes in the plain files that are new or changed, hard links once.
    pub bytes: u64,
    /// Bytes that all that was looked at takes on disk, hard links once.
    pub disk: u64,
}

/// Of files with several names, the first is remembered, up to this many bytes of all of them together: a user may have chosen long
/// ones.
const NAMES: usize = 16 << 20;

/// Tells each change of the whole upper, or of `below` it: a path inside the jail.
///
/// Without an upper there are none; the path must be one all the same.
///
/// # Errors
/// [`Error::BadPath`]; what `tell` says; [`Error::Act`] for what cannot be read.
pub fn tell(
    upper: Option<OwnedFd>,
    lower: &Lower,
    below: Option<&Path>,
    tell: impl FnMut(&Change<'_>) -> Result<()>,
) -> Result<Sum> {
    let mut reader = Reader {
        way: lower.way()?,
        levels: Vec::new(),
        top: Vec::new(),
        linked: HashMap::new(),
        kept: 0,
        buffers: [vec![0; 1 << 16], vec![0; 1 << 16]],
        sum: Sum::default(),
        tell,
    };
    match below {
        None => reader.root(upper)?,
        Some(path) => reader.below(upper, path)?,
    }
    Ok(reader.sum)
}

/// What root of the host makes an upper with: before the user changes it, the root of a jail is so, whatever the layers have.
const ROOT: (u32, (u32, u32)) = (0o755, (0, 0));

struct Reader<F> {
    /// Where the walk is, in the layers.
    way: Way,
    /// One for each directory of the upper that the walk is in, the top included.
    levels: Vec<Level>,
    /// The path of the top in the jail; empty for the root.
    top: Vec<u8>,
    /// Inodes with several names, and the first of these.
    linked: HashMap<u64, Option<Box<[u8]>>>,
    kept: usize,
    buffers: [Vec<u8>; 2],
    sum: Sum,
    tell: F,
}

/// A directory of the upper.
struct Level {
    /// Whether nothing of the layers is seen in it, because it or one above it is opaque.
    hides: bool,
    /// What it hides, and is not told yet.
    hidden: Peekable<std::vec::IntoIter<CString>>,
}

impl<F: FnMut(&Change<'_>) -> Result<()>> Reader<F> {
    fn root(&mut self, upper: Option<OwnedFd>) -> Result<()> {
        let Some(upper) = upper else { return Ok(()) };
        let stat = fstat(&upper).act("examine", "the upper")?;
        self.sum.disk += allocated(&stat);
        let mut differs = Differences::default();
        (differs.mode, differs.owner) = metadata(ROOT, of(&stat));
        differs.attributes =
            inside(read(upper.as_fd(), c".", b"")?.unwrap_or_default()).into_keys().collect();
        if !differs.is_empty() {
            self.sum.changed += 1;
            let new = Entry { stat, same_as: None, dir: upper.as_fd(), name: c"." };
            (self.tell)(&Change { what: What::Changed { new, old: None, differs }, path: b"" })?;
        }
        self.levels.push(Level { hides: false, hidden: Vec::new().into_iter().peekable() });
        self.walk(upper)
    }

    fn below(&mut self, upper: Option<OwnedFd>, path: &Path) -> Result<()> {
        let unknown = |why: &str| {
            Err(Error::BadPath {
                option: "PATH",
                path: shown(path.as_os_str().as_bytes()),
                why: why.to_owned(),
            })
        };
        let names = match names(path) {
            Ok(names) => names,
            Err(why) => return unknown(why),
        };
        let Some((last, above)) = names.split_last() else { return self.root(upper) };
        let link = "leads through a symbolic link, which is not followed; name the real path";
        let mut place = upper;
        // Whether what the layers have here can be seen.
        let mut hides = false;
        for name in above {
            let in_lower = self.way.here().find(name)?.map(|found| found.stat);
            let is_link = |stat: &Stat| kind(stat) == Kind::Link;
            if let Some(dir) = &place {
                match look(dir.as_fd(), name)? {
                    Some(stat) if is_link(&stat) => return unknown(link),
                    Some(stat) if is_dir(&stat) => {
                        let Some(below) = enter(dir.as_fd(), name)? else {
                            return unknown("has vanished");
                        };
                        hides |= lower::is_opaque(&below).act("examine", shown(name.to_bytes()))?;
                        place = Some(below);
                    }
                    upper => {
                        hides |= upper.is_some();
                        place = None;
                    }
                }
            }
            if place.is_none() && !hides && in_lower.as_ref().is_some_and(is_link) {
                return unknown(link);
            }
            self.way.enter(name)?;
            self.top.extend(name.to_bytes());
            self.top.push(b'/');
        }
        self.top.extend(last.to_bytes());
        let stat = match &place {
            Some(dir) => look(dir.as_fd(), last)?,
            None => None,
        };
        let (Some(dir), Some(stat)) = (place, stat) else {
            let old = self.way.here().find(last)?;
            return match old {
                None => unknown("is neither in the layers nor in the upper"),
                Some(old) if hides => {
                    self.sum.deleted += 1;
                    let what = What::Deleted { old: Some(entry(&old)) };
                    (self.tell)(&Change { what, path: &self.top })
                }
                Some(_) => Ok(()),
            };
        };
        let path = std::mem::take(&mut self.top);
        let opaque = self.one(dir.as_fd(), last, &path, stat)?;
        self.top = path;
        if is_dir(&stat) {
            if let Some(dir) = enter(dir.as_fd(), last)? {
                self.enter(last, hides || opaque)?;
                self.walk(dir)?;
            }
        }
        Ok(())
    }

    /// All below a directory of the upper, whose level is there already.
    fn walk(&mut self, top: OwnedFd) -> Result<()> {
        let mut walk = Walk::below(top)?;
        while let Some(step) = walk.step()? {
            match step {
                Step::Found(Place { dir, name, path, depth }, stat) => {
                    self.back_to(depth + 1)?;
                    let path = self.path(path);
                    let above = path.len() - name.to_bytes().len();
                    self.hidden(&path[..above], Some(name))?;
                    let opaque = self.one(dir, name, &path, stat)?;
                    if is_dir(&stat) {
                        let hides = self.levels.last().is_some_and(|level| level.hides);
                        self.enter(name, hides || opaque)?;
                    }
                }
                Step::Left(place) => {
                    self.back_to(place.depth + 2)?;
                    let mut path = self.path(place.path);
                    path.push(b'/');
                    self.hidden(&path, None)?;
                    self.back_to(place.depth + 1)?;
                }
                // A view has none.
                Step::Mount(_) => {}
            }
        }
        self.back_to(1)?;
        let mut path = self.top.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        self.hidden(&path, None)
    }

    /// Into a directory, in the layers too.
    fn enter(&mut self, name: &CStr, hides: bool) -> Result<()> {
        self.way.enter(name)?;
        let hidden = if hides { self.way.here().names()? } else { Vec::new() };
        self.levels.push(Level { hides, hidden: hidden.into_iter().peekable() });
        Ok(())
    }

    /// Out of directories, those included that the walk could not enter because they had vanished.
    fn back_to(&mut self, count: usize) -> Result<()> {
        while self.levels.len() > count {
            self.levels.pop();
            self.way.leave()?;
        }
        Ok(())
    }

    fn path(&self, below: &Path) -> Vec<u8> {
        let below = below.as_os_str().as_bytes();
        if self.top.is_empty() { below.to_vec() } else { [&self.top, &b"/"[..], below].concat() }
    }

    /// Tells what the directory hides that comes before `name`, or all.
    fn hidden(&mut self, above: &[u8], name: Option<&CStr>) -> Result<()> {
        let Some(level) = self.levels.last_mut() else { return Ok(()) };
        while let Some(next) = level.hidden.next_if(|next| name.is_none_or(|name| next.as_c_str() <= name)) {
            if name == Some(&next) {
                break;
            }
            if let Some(old) = self.way.here().find(&next)? {
                self.sum.deleted += 1;
                let path = [above, next.to_bytes()].concat();
                (self.tell)(&Change { what: What::Deleted { old: Some(entry(&old)) }, path: &path })?;
            }
        }
        Ok(())
    }

    /// Compares something of the upper with what the layers have. Says whether it is a directory that hides theirs.
    fn one(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: &[u8], stat: Stat) -> Result<bool> {
        let old = self.way.here().find(name)?;
        if is_whiteout(&stat) {
            self.sum.deleted += 1;
            let what = What::Deleted { old: old.as_ref().map(entry) };
            (self.tell)(&Change { what, path })?;
            return Ok(false);
        }
        let (mut opaque, mut differs) = (false, None);
        if let Some(old) = &old {
            let Some(found) = compare(old, dir, name, &stat, path, &mut self.buffers)? else {
                return Ok(false);
            };
            opaque = found.1;
            differs = Some(found.0);
        }
        let first = stat.st_nlink < 2 || is_dir(&stat) || !self.linked.contains_key(&stat.st_ino);
        if first {
            self.sum.disk += allocated(&stat);
            if stat.st_nlink > 1 && !is_dir(&stat) {
                let name = (self.kept + path.len() <= NAMES).then(|| Box::from(path));
                self.kept += name.as_deref().map_or(0, <[u8]>::len);
                self.linked.insert(stat.st_ino, name);
            }
        }
        if differs.as_ref().is_some_and(Differences::is_empty) {
            self.sum.unchanged += u64::from(!is_dir(&stat));
            return Ok(opaque);
        }
        if first && kind(&stat) == Kind::File {
            self.sum.bytes += u64::try_from(stat.st_size).unwrap_or(0);
        }
        let same_as = if first { None } else { self.linked.get(&stat.st_ino).and_then(Option::as_deref) };
        let new = Entry { stat, same_as, dir, name };
        let what = match differs {
            None => {
                self.sum.added += 1;
                What::Added { new }
            }
            Some(differs) => {
                self.sum.changed += 1;
                What::Changed { new, old: old.as_ref().map(entry), differs }
            }
        };
        (self.tell)(&Change { what, path })?;
        Ok(opaque)
    }
}

impl Entry<'_> {
    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        kind(&self.stat)
    }

    /// Its name in its directory.
    #[must_use]
    pub fn name(&self) -> &CStr {
        self.name
    }

    /// A plain file, for reading; `None` if it has vanished.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn open(&self) -> Result<Option<File>> {
        passed_over(lower::open(self.dir, self.name), "open", self.name.to_bytes())
    }

    /// Where a link leads; `None` if it has vanished, or is none.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn target(&self) -> Result<Option<Vec<u8>>> {
        passed_over(target(self.dir, self.name), "read the link", self.name.to_bytes())
    }
}

/// A path inside the jail as names, or what is wrong with it.
fn names(path: &Path) -> std::result::Result<Vec<CString>, &'static str> {
    let mut parts = path.components();
    if parts.next() != Some(Component::RootDir) {
        return Err("is not absolute; name it as it is inside the jail, like /etc/nginx");
    }
    let name = |part| match part {
        Component::Normal(name) => CString::new(OsStr::as_bytes(name)).map_err(|_| "has a NUL byte in it"),
        _ => Err("leads out of the jail; name it without \"..\""),
    };
    parts.map(name).collect()
}

/// As text: control characters and what is no UTF-8 as escapes of Rust's (`\n`, `\u{1b}`, `\xff`), a backslash twice; so it is
/// one line, harmless on a terminal, and the bytes can be told from it.
#[must_use]
pub fn shown(bytes: &[u8]) -> String {
    let plain = |byte: &u8| (b' '..=b'~').contains(byte) && *byte != b'\\';
    let mut shown = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        if chunk.valid().as_bytes().iter().all(plain) {
            shown.push_str(chunk.valid());
        } else {
            for char in chunk.valid().chars() {
                if matches!(char, '\'' | '"') { shown.push(char) } else { shown.extend(char.escape_debug()) }
            }
        }
        for byte in chunk.invalid() {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    shown
}

fn kind(stat: &Stat) -> Kind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Link,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        _ => Kind::Device,
    }
}

fn entry<'a>(found: &Found<'a>) -> Entry<'a> {
    Entry { stat: found.stat, same_as: None, dir: found.dir, name: found.name }
}

/// st_blocks counts in 512 bytes, whatever the file system's own blocks are (stat(2)).
fn allocated(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * 512
}

/// What the upper's user may take away between two looks is no error.
fn passed_over<T>(result: Result<T, Errno>, act: &'static str, path: &[u8]) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        // Gone, or something of another kind by now.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::INVAL | Errno::STALE) => Ok(None),
        Err(e) => Err(e).act(act, shown(path)),
    }
}

fn look(dir: BorrowedFd<'_>, name: &CStr) -> Result<Option<Stat>> {
    passed_over(statat(dir, name, AtFlags::SYMLINK_NOFOLLOW), "examine", name.to_bytes())
}

fn enter(dir: BorrowedFd<'_>, name: &CStr) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    passed_over(openat2(dir, name, flags, Mode::empty(), resolve), "open", name.to_bytes())
}

fn target(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<Vec<u8>> {
    Ok(readlinkat(dir, name, Vec::new())?.into_bytes())
}

type Attributes = std::collections::BTreeMap<CString, Vec<u8>>;

fn read(dir: BorrowedFd<'_>, name: &CStr, path: &[u8]) -> Result<Option<Attributes>> {
    passed_over(lower::attributes(dir, name), "read the extended attributes of", path)
}

/// Attributes as the jail has them: those of overlayfs are its own, and what a user called so is kept by a longer name. Of the
/// rest, those that a jail can change.
fn inside(attributes: Attributes) -> Attributes {
    let own = b"user.overlay.";
    let keep = |(name, value): (CString, Vec<u8>)| {
        let bytes = name.to_bytes();
        if let Some(rest) = bytes.strip_prefix(own) {
            let rest = rest.strip_prefix(b"overlay.")?;
            return Some((CString::new([own, rest].concat()).ok()?, value));
        }
        match bytes {
            b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => {
                Some((name, value))
            }
            _ if bytes.starts_with(b"user.") => Some((name, value)),
            _ => None,
        }
    };
    attributes.into_iter().filter_map(keep).collect()
}

fn of(stat: &Stat) -> (u32, (u32, u32)) {
    (stat.st_mode & 0o7777, (stat.st_uid, stat.st_gid))
}

type Pair<T> = Option<(T, T)>;

fn metadata(old: (u32, (u32, u32)), new: (u32, (u32, u32))) -> (Pair<u32>, Pair<(u32, u32)>) {
    ((old.0 != new.0).then_some((old.0, new.0)), (old.1 != new.1).then_some((old.1, new.1)))
}

/// In what they differ, and whether the new one is an opaque directory; `None` if it has vanished.
pub(crate) fn compare(
    old: &Found<'_>,
    dir: BorrowedFd<'_>,
    name: &CStr,
    stat: &Stat,
    path: &[u8],
    buffers: &mut [Vec<u8>; 2],
) -> Result<Option<(Differences, bool)>> {
    let mut differs = Differences::default();
    let (was, is) = (kind(&old.stat), kind(stat));
    let Some(new_attributes) = read(dir, name, path)? else { return Ok(None) };
    let opaque =
        is == Kind::Directory && new_attributes.get(lower::OPAQUE).is_some_and(|value| value == b"y");
    if was != is {
        differs.kind = Some((was, is));
        return Ok(Some((differs, opaque)));
    }
    (differs.mode, differs.owner) = metadata(of(&old.stat), of(stat));
    let old_attributes = lower::attributes(old.dir, old.name);
    let old_attributes =
        inside(old_attributes.act("read the extended attributes in a layer of", shown(path))?);
    let new_attributes = inside(new_attributes);
    let both = || old_attributes.iter().chain(&new_attributes);
    differs.attributes = both()
        .filter(|(name, _)| old_attributes.get(*name) != new_attributes.get(*name))
        .map(|(name, _)| name.clone())
        .collect();
    differs.attributes.sort_unstable();
    differs.attributes.dedup();
    match is {
        Kind::Directory => return Ok(Some((differs, opaque))),
        Kind::File if old.stat.st_size != stat.st_size => differs.content = true,
        Kind::File => {
            let Some(new) = passed_over(lower::open(dir, name), "open", path)? else { return Ok(None) };
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            let same = same_content(old.open()?, new, size, buffers);
            differs.content = !same.act("read", shown(path))?;
        }
        Kind::Link => {
            let Some(new) = passed_over(target(dir, name), "read the link", path)? else { return Ok(None) };
            let old = target(old.dir, old.name).act("read the link in a layer", shown(path))?;
            differs.target = (old != new).then_some((old, new));
        }
        Kind::Device if old.stat.st_rdev != stat.st_rdev => {
            let number = |stat: &Stat| {
                format!("{}:{}", rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
                    .into_bytes()
            };
            differs.target = Some((number(&old.stat), number(stat)));
        }
        _ => {}
    }
    let time = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec);
    differs.time = !differs.content && differs.target.is_none() && time(&old.stat) != time(stat);
    Ok(Some((differs, opaque)))
}

/// Whether the first `left` bytes are the same; files of this size have no more.
fn same_content(mut old: File, mut new: File, mut left: u64, buffers: &mut [Vec<u8>; 2]) -> io::Result<bool> {
    let [one, other] = buffers;
    while left > 0 {
        let next = usize::try_from(left).unwrap_or(usize::MAX).min(one.len());
        let (had, has) = (fill(&mut old, &mut one[..next])?, fill(&mut new, &mut other[..next])?);
        // Less than there was: the user has cut it off meanwhile.
        if had != next || one[..had] != other[..has] {
            return Ok(false);
        }
        left -= next as u64;
    }
    Ok(true)
}

/// As much as fits, or is there.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    use rustix::fs::{CWD, XattrFlags, mknodat, setxattr};

    /// An upper and two layers, `1` being the topmost.
    struct Trees(tempfile::TempDir);

    impl Trees {
        fn new() -> Self {
            let trees = Self(tempfile::tempdir().unwrap());
            for dir in ["u", "1", "2"] {
                trees.dir(dir);
            }
            trees
        }

        fn at(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn dir(&self, path: &str) -> &Self {
            fs::create_dir_all(self.at(path)).unwrap();
            self
        }

        /// All of one time, as a copy by overlayfs has it.
        fn file(&self, path: &str, text: &str) -> &Self {
            self.dir(Path::new(path).parent().unwrap().to_str().unwrap());
            fs::write(self.at(path), text).unwrap();
            let file = File::options().write(true).open(self.at(path)).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
            self
        }

        fn whiteout(&self, path: &str) -> &Self {
            self.dir(Path::new(path).parent().unwrap().to_str().unwrap());
            mknodat(CWD, self.at(path), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
            self
        }

        fn attribute(&self, path: &str, name: &str, value: &[u8]) -> &Self {
            setxattr(self.at(path), name, value, XattrFlags::empty()).unwrap();
            self
        }

        fn open(&self, path: &str) -> OwnedFd {
            rustix::fs::open(self.at(path), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
        }

        fn lower(&self) -> Lower {
            Lower::over(vec![self.open("1"), self.open("2")])
        }

        fn below(&self, path: Option<&str>) -> Result<(Vec<String>, Sum)> {
            // The root belongs to whoever runs this; of its mode alone the tests can say something.
            let mut told = Vec::new();
            let sum = tell(Some(self.open("u")), &self.lower(), path.map(Path::new), |change| {
                let path = shown(change.path);
                match &change.what {
                    What::Added { new } => {
                        let link = new.same_as.map(|path| format!(" = {}", shown(path))).unwrap_or_default();
                        told.push(format!("A {path}{link}"));
                    }
                    What::Deleted { old } => {
                        told.push(format!("D {path}{}", if old.is_some() { "" } else { " (nothing)" }));
                    }
                    What::Changed { .. } if path.is_empty() => {}
                    What::Changed { differs, .. } => {
                        let mut words = Vec::new();
                        let said = [
                            ("kind", differs.kind.is_some()),
                            ("content", differs.content),
                            ("target", differs.target.is_some()),
                            ("mode", differs.mode.is_some()),
                            ("owner", differs.owner.is_some()),
                            ("time", differs.time),
                        ];
                        words.extend(said.iter().filter(|(_, so)| *so).map(|(word, _)| (*word).to_owned()));
                        words.extend(differs.attributes.iter().map(|name| shown(name.to_bytes())));
                        told.push(format!("M {path} {}", words.join(" ")));
                    }
                }
                Ok(())
            })?;
            Ok((told, sum))
        }

        fn told(&self) -> Vec<String> {
            self.below(None).unwrap().0
        }
    }

    #[test]
    fn what_is_new_other_or_gone_is_told_in_order_and_directories_on_the_way_are_not() {
        let trees = Trees::new();
        trees.file("2/etc/a", "old").file("2/etc/b", "old").file("1/etc/c", "old").file("2/etc/c", "older");
        trees.file("u/etc/a", "new").whiteout("u/etc/b").file("u/etc/c", "old").file("u/etc/d/e", "123");
        trees.file("u/etc-x", "");
        let (told, sum) = trees.below(None).unwrap();
        assert_eq!(told, ["M etc/a content", "D etc/b", "A etc/d", "A etc/d/e", "A etc-x"]);
        assert_eq!((sum.added, sum.changed, sum.deleted, sum.unchanged, sum.bytes), (3, 1, 1, 1, 6));
    }

    #[test]
    fn an_opaque_directory_deletes_what_it_does_not_have_itself() {
        let trees = Trees::new();
        for file in ["a", "kept", "sub/gone", "sub/same", "sub/deep/x", "z"] {
            trees.file(&format!("2/d/{file}"), "old");
        }
        trees.file("1/d/b", "old").file("1/d/other/in", "old");
        trees.file("u/d/kept", "old").file("u/d/sub/same", "old").file("u/d/m", "new");
        trees.attribute("u/d", "user.overlay.opaque", b"y");
        let told = trees.told();
        // `sub` is not marked itself; nothing shines through from above all the same.
        assert_eq!(told, ["D d/a", "D d/b", "A d/m", "D d/other", "D d/sub/deep", "D d/sub/gone", "D d/z"]);
        let below = |path| trees.below(Some(path)).unwrap().0;
        assert_eq!(below("/d/sub"), ["D d/sub/deep", "D d/sub/gone"]);
        assert_eq!(below("/d/sub/deep/x"), ["D d/sub/deep/x"]);
        assert_eq!(below("/d/other/in"), ["D d/other/in"]);
        assert_eq!(below("/d/kept"), [""; 0]);
    }

    #[test]
    fn another_kind_is_one_change() {
        let trees = Trees::new();
        trees.file("2/dir/file", "").file("2/file", "").dir("2/to link");
        trees.file("u/dir", "").file("u/file/in", "").file("u/to link", "");
        fs::remove_file(trees.at("u/to link")).unwrap();
        symlink("file", trees.at("u/to link")).unwrap();
        assert_eq!(trees.told(), ["M dir kind", "M file kind", "A file/in", "M to link kind"]);
    }

    #[test]
    fn metadata_alone_is_told_by_its_name_and_a_directorys_time_is_none() {
        let trees = Trees::new();
        for tree in ["u", "2"] {
            trees.file(&format!("{tree}/mode"), "").file(&format!("{tree}/time"), "");
            trees
                .file(&format!("{tree}/none"), "")
                .file(&format!("{tree}/attr"), "")
                .dir(&format!("{tree}/dir"));
            trees.dir(&format!("{tree}/own")).dir(&format!("{tree}/time of dir"));
        }
        fs::set_permissions(trees.at("u/mode"), fs::Permissions::from_mode(0o4600)).unwrap();
        fs::set_permissions(trees.at("u/dir"), fs::Permissions::from_mode(0o700)).unwrap();
        let time = std::time::SystemTime::now();
        File::options().write(true).open(trees.at("u/time")).unwrap().set_modified(time).unwrap();
        trees.attribute("u/attr", "user.new", b"").attribute("2/attr", "user.old", b"");
        trees.attribute("2/attr", "user.same", b"x").attribute("u/attr", "user.same", b"x");
        trees.attribute("2/attr", "user.other", b"x").attribute("u/attr", "user.other", b"y");
        // Overlayfs' own, and one that a user called so.
        trees.attribute("u/own", "user.overlay.impure", b"y");
        trees.attribute("u/own", "user.overlay.overlay.opaque", b"y");
        let expected = [
            "M attr user.new user.old user.other",
            "M dir mode",
            "M mode mode",
            "M own user.overlay.opaque",
            "M time time",
        ];
        let (told, sum) = trees.below(None).unwrap();
        assert_eq!((told, sum.unchanged), (expected.map(String::from).to_vec(), 1));
    }

    #[test]
    fn links_are_compared_by_where_they_lead() {
        let trees = Trees::new();
        for (tree, target) in [("u", "new"), ("2", "old")] {
            symlink(target, trees.at(&format!("{tree}/link"))).unwrap();
        }
        assert_eq!(trees.told(), ["M link target"]);
    }

    #[test]
    fn hard_links_are_told_as_such_and_counted_once() {
        let trees = Trees::new();
        trees.file("u/a", "12345").file("2/c", "x").file("u/d", "");
        for name in ["b", "c"] {
            fs::hard_link(trees.at("u/a"), trees.at(&format!("u/{name}"))).unwrap();
        }
        let (told, sum) = trees.below(None).unwrap();
        assert_eq!(told, ["A a", "A b = a", "M c content", "A d"]);
        assert_eq!(sum.bytes, 5);
    }

    #[test]
    fn a_whiteout_over_nothing_is_told_as_that() {
        let trees = Trees::new();
        trees.whiteout("u/furniture").whiteout("u/dir/x").whiteout("1/y").file("2/y", "").whiteout("u/y");
        assert_eq!(trees.told(), ["A dir", "D dir/x (nothing)", "D furniture (nothing)", "D y (nothing)"]);
    }

    #[test]
    fn a_path_limits_what_is_told_and_must_be_one() {
        let trees = Trees::new();
        trees.file("2/etc/nginx/conf", "old").file("2/etc/other", "old").file("2/gone/sub/file", "");
        trees.file("u/etc/nginx/conf", "new").file("u/etc/other", "new").whiteout("u/gone");
        symlink("etc", trees.at("2/link")).unwrap();
        symlink("etc", trees.at("u/own link")).unwrap();
        let told = |path| trees.below(Some(path)).unwrap().0;
        assert_eq!(told("/etc/nginx"), ["M etc/nginx/conf content"]);
        assert_eq!(told("//etc/./nginx/conf/"), ["M etc/nginx/conf content"]);
        assert_eq!(told("/gone/sub/file"), ["D gone/sub/file"]);
        assert_eq!(told("/gone"), ["D gone"]);
        assert_eq!(told("/own link"), ["A own link"]);
        assert_eq!(told("/"), trees.told());
        for (path, why) in [
            ("etc", "not absolute"),
            ("", "not absolute"),
            ("/etc/../etc", "without \"..\""),
            ("/none", "neither"),
            ("/etc/none", "neither"),
            ("/etc/none/x", "neither"),
            ("/etc/other/x", "neither"),
            ("/gone/none", "neither"),
            ("/link/nginx", "symbolic link"),
            ("/own link/nginx", "symbolic link"),
        ] {
            let refused = trees.below(Some(path)).unwrap_err().to_string();
            assert!(refused.contains(why) && refused.contains(path), "{path}: {refused}");
        }
    }

    #[test]
    fn without_an_upper_nothing_is_told_but_the_path_must_be_one() {
        let trees = Trees::new();
        trees.file("2/etc/x", "");
        let told = |path: Option<&str>| tell(None, &trees.lower(), path.map(Path::new), |_| unreachable!());
        for path in [None, Some("/"), Some("/etc"), Some("/etc/x")] {
            assert_eq!(told(path).unwrap(), Sum::default());
        }
        assert!(told(Some("/etc/y")).is_err());
    }

    #[test]
    fn a_path_as_text_is_one_line_and_can_be_turned_back() {
        for (bytes, text) in [
            (&b"plain \"quoted\" it's"[..], "plain \"quoted\" it's"),
            ("é漢".as_bytes(), "é漢"),
            (b"a\nb\t\x1b[31m", "a\\nb\\t\\u{1b}[31m"),
            (b"back\\n", "back\\\\n"),
            (b"\xff\xc3", "\\xff\\xc3"),
            ("\u{9b}\u{202e}\u{2028}".as_bytes(), "\\u{9b}\\u{202e}\\u{2028}"),
        ] {
            assert_eq!(shown(bytes), text);
        }
    }
}
