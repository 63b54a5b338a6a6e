//! What a path was before the user changed it: the layers of a profile as one read-only tree. Host root.
//!
//! Looked up directory by directory, as overlayfs does with `userxattr` (Documentation/filesystems/overlayfs.rst), without
//! mounting one: a directory is a stack of the layers' directories of that name, topmost first. Below a file, a whiteout or an
//! opaque directory (`user.overlay.opaque` is `y`) nothing more of the stack is seen.
//!
//! All by descriptors: every name is one part of a path, links are told as links and never followed. The layers are detached,
//! read-only clones of their mounts, as the jail has them: what is mounted on a layer is not in sight, and no time of access
//! changes. The jail's furniture (account lines, mount points) is on a tmpfs of the jail's own and not in here.
//!
//! Not known are the whiteouts that newer kernels also take, `user.overlay.whiteout` on empty files: a jail makes none, and what a
//! user writes by that name is stored by another (docs/facts.md).

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags, fgetxattr, fsetxattr, fstat,
    lgetxattr, llistxattr, openat2, statat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::{Act, Error, Result};
use crate::layers::Layer;
use crate::sys::{self, MountAttributes};
use crate::walk::{is_dir, is_whiteout};

/// The layers of a profile, merged.
///
/// ```no_run
/// # fn main() -> ojail::Result<()> {
/// # let layers: Vec<ojail::layers::Layer> = Vec::new();
/// let lower = ojail::lower::Lower::of(&layers)?;
/// if let Some(found) = lower.root()?.enter(c"etc")?.find(c"passwd")? {
///     println!("mode {:o}, from the layer {}", found.stat.st_mode, layers[found.layer].name);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Lower {
    layers: Vec<OwnedFd>,
}

/// One directory of the merged tree. Where there is none, it is empty: nothing is found in it.
#[derive(Debug, Default)]
pub struct Level {
    /// Topmost first.
    parts: Vec<Part>,
}

/// A layer's share in a level.
#[derive(Debug)]
struct Part {
    layer: usize,
    dir: OwnedFd,
}

/// Something in the merged tree.
#[derive(Debug)]
pub struct Found<'a> {
    /// What it is: of a merged directory, the topmost one. Never a whiteout.
    pub stat: Stat,
    /// The layer that it is from, counted from the topmost, which is 0.
    pub layer: usize,
    /// The directory in which that layer has it.
    pub dir: BorrowedFd<'a>,
    /// Its name there.
    pub name: &'a CStr,
}

/// A way down the merged tree and up again, with no more open descriptors than there are layers, however deep it goes.
#[derive(Debug)]
pub struct Way {
    here: Level,
    above: Vec<Vec<Kept>>,
}

/// What is needed to be back in the level above.
#[derive(Debug)]
enum Kept {
    /// The layer has nothing further down.
    Open(Part),
    /// The layer's directory below leads back to it: device and inode.
    Behind(usize, (u64, u64)),
}

/// Only inside of the directory, through no link of any kind, and onto no other mount.
const UP: ResolveFlags =
    ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);
const DOWN: ResolveFlags = UP.union(ResolveFlags::BENEATH);

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A directory with this is all that is seen of its name.
pub const OPAQUE: &CStr = c"user.overlay.opaque";

impl Lower {
    /// Of these layers, topmost first, as [`crate::layers::resolve`] finds them. Mounts images that are not mounted yet.
    ///
    /// # Errors
    /// [`Error::Layer`], [`Error::Act`], [`Error::Unfit`] if there is a link in a layer's path.
    pub fn of(layers: &[Layer]) -> Result<Self> {
        Ok(Self::over(layers.iter().map(|layer| view(&layer.content()?)).collect::<Result<_>>()?))
    }

    /// Of these directories, topmost first.
    #[must_use]
    pub fn over(layers: Vec<OwnedFd>) -> Self {
        Self { layers }
    }

    /// The merged root. That of a layer is never opaque: overlayfs does not ask.
    ///
    /// # Errors
    /// [`Error::Act`] if there is no descriptor to be had.
    pub fn root(&self) -> Result<Level> {
        let part = |(layer, dir): (usize, &OwnedFd)| Ok(Part { layer, dir: again(dir)? });
        let parts = self.layers.iter().enumerate().map(part).collect::<rustix::io::Result<_>>();
        Ok(Level { parts: parts.act("open", "the root of a layer")? })
    }

    /// A way that begins at the root.
    ///
    /// # Errors
    /// As [`Lower::root`].
    pub fn way(&self) -> Result<Way> {
        Ok(Way { here: self.root()?, above: Vec::new() })
    }
}

impl Level {
    /// Whether there is no such directory.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        self.parts.is_empty()
    }

    /// The metadata of the directory itself: mode, owner, times. `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn stat(&self) -> Result<Option<Stat>> {
        self.dir().map(fstat).transpose().act("examine", "a directory of a layer")
    }

    /// The directory whose metadata the merged one has. `None` if there is none.
    #[must_use]
    pub fn dir(&self) -> Option<BorrowedFd<'_>> {
        self.parts.first().map(|part| part.dir.as_fd())
    }

    /// What has this name; `None` if nothing has.
    ///
    /// # Errors
    /// [`Error::Act`]; `EINVAL` if it is no name but a path.
    pub fn find<'a>(&'a self, name: &'a CStr) -> Result<Option<Found<'a>>> {
        for part in &self.parts {
            match part.stat(name).map_err(|e| failed("examine", name, e))? {
                None => {}
                Some(stat) if is_whiteout(&stat) => return Ok(None),
                Some(stat) => {
                    return Ok(Some(Found { stat, layer: part.layer, dir: part.dir.as_fd(), name }));
                }
            }
        }
        Ok(None)
    }

    /// The directory of this name; an empty level if there is none.
    ///
    /// # Errors
    /// As [`Level::find`].
    pub fn enter(&self, name: &CStr) -> Result<Self> {
        let mut below = Self::default();
        for part in &self.parts {
            match part.stat(name).map_err(|e| failed("examine", name, e))? {
                None => continue,
                Some(stat) if !is_dir(&stat) => break,
                Some(_) => {}
            }
            let dir = openat2(&part.dir, name, DIRECTORY, Mode::empty(), DOWN);
            let dir = dir.map_err(|e| failed("open", name, e))?;
            let opaque = is_opaque(&dir).map_err(|e| failed("examine", name, e))?;
            below.parts.push(Part { layer: part.layer, dir });
            if opaque {
                break;
            }
        }
        Ok(below)
    }

    /// The names in it, sorted by their bytes.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn names(&self) -> Result<Vec<CString>> {
        // Whether a name is there is said by the topmost layer that has it.
        let mut names = BTreeMap::new();
        let mut read = || -> rustix::io::Result<()> {
            for part in &self.parts {
                for entry in Dir::read_from(&part.dir)? {
                    let entry = entry?;
                    let name = entry.file_name();
                    if name == c"." || name == c".." || names.contains_key(name) {
                        continue;
                    }
                    let kind = entry.file_type();
                    let there = match kind {
                        FileType::CharacterDevice | FileType::Unknown => {
                            part.stat(name)?.is_some_and(|stat| !is_whiteout(&stat))
                        }
                        _ => true,
                    };
                    names.insert(name.to_owned(), there);
                }
            }
            Ok(())
        };
        read().act("list", "a directory of a layer")?;
        Ok(names.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect())
    }
}

impl Part {
    fn stat(&self, name: &CStr) -> rustix::io::Result<Option<Stat>> {
        if name.is_empty() || name == c"." || name == c".." || name.to_bytes().contains(&b'/') {
            return Err(Errno::INVAL);
        }
        match statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            stat => stat.map(Some),
        }
    }
}

impl Found<'_> {
    /// A plain file, for reading.
    ///
    /// # Errors
    /// [`Error::Act`]; `ELOOP` for a link, `EINVAL` for anything else that is no plain file.
    pub fn open(&self) -> Result<File> {
        open(self.dir, self.name).map_err(|e| failed("open", self.name, e))
    }
}

impl Way {
    /// The level that it has come to.
    #[must_use]
    pub fn here(&self) -> &Level {
        &self.here
    }

    /// Down into a directory, which may be missing.
    ///
    /// # Errors
    /// As [`Level::enter`].
    pub fn enter(&mut self, name: &CStr) -> Result<()> {
        let below = self.here.enter(name)?;
        let goes_on = |part: &Part| below.parts.iter().any(|below| below.layer == part.layer);
        let mut kept = Vec::new();
        for part in std::mem::take(&mut self.here.parts) {
            kept.push(if goes_on(&part) {
                let stat = fstat(&part.dir).map_err(|e| failed("examine", name, e))?;
                Kept::Behind(part.layer, (stat.st_dev, stat.st_ino))
            } else {
                Kept::Open(part)
            });
        }
        self.above.push(kept);
        self.here = below;
        Ok(())
    }

    /// Up again; at the root it stays there.
    ///
    /// # Errors
    /// [`Error::Act`] if a layer's directory was moved meanwhile.
    pub fn leave(&mut self) -> Result<()> {
        let Some(kept) = self.above.pop() else { return Ok(()) };
        let mut below = std::mem::take(&mut self.here.parts).into_iter();
        for kept in kept {
            self.here.parts.push(match kept {
                Kept::Open(part) => part,
                Kept::Behind(layer, above) => {
                    let mut up = || -> io::Result<OwnedFd> {
                        // No RESOLVE_BENEATH, which refuses `..`; that it leads where it should is seen by its identity.
                        let below = below.next().ok_or(Errno::BADF)?;
                        let dir = openat2(&below.dir, "..", DIRECTORY, Mode::empty(), UP)?;
                        let stat = fstat(&dir)?;
                        if (stat.st_dev, stat.st_ino) == above {
                            return Ok(dir);
                        }
                        Err(io::Error::other("it was moved while it was read"))
                    };
                    Part { layer, dir: up().act("go up from", "a directory of a layer")? }
                }
            });
        }
        Ok(())
    }
}

/// A directory as a jail has it: a detached, read-only clone of its mount, without what is mounted below it. Reading through it
/// changes nothing on disk, not even times of access.
///
/// # Errors
/// [`Error::Act`]; [`Error::Unfit`] if there is a link in the path.
pub fn view(path: &Path) -> Result<OwnedFd> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = openat2(CWD, path, flags, Mode::empty(), resolve).map_err(|e| match e {
        Errno::LOOP => Error::Unfit {
            path: path.to_owned(),
            why: "has a symbolic link in it; name the real path in the configuration".into(),
        },
        e => Error::Act { act: "open", what: path.display().to_string(), source: e.into() },
    })?;
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(&place, "", flags).act("clone the mount of", path)?;
    let attributes = MountAttributes { readonly: true, nosuid: true, nodev: true, idmap: None };
    sys::mount_setattr(&mount, attributes).act("set the flags of", path)?;
    again(&mount).act("open", path)
}

/// A plain file in a directory, for reading. What it was taken for may have been exchanged meanwhile: a fifo does not hold us, and
/// a device is never opened for more than a look at its kind, in a [`view`] not even for that.
///
/// # Errors
/// `ELOOP` for a link, `EINVAL` for anything else that is no plain file.
pub fn open(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let is_file = |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    match openat2(dir, name, flags, Mode::empty(), DOWN) {
        Ok(file) if is_file(fstat(&file)?) => Ok(file.into()),
        Ok(_) => Err(Errno::INVAL),
        // What a device (a whiteout is one) or a socket says to that is no word about files.
        Err(Errno::ACCESS | Errno::NXIO) if !is_file(statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?) => {
            Err(Errno::INVAL)
        }
        Err(e) => Err(e),
    }
}

/// Whether a directory hides those of its name in the layers below it.
///
/// # Errors
/// What `fgetxattr(2)` says.
pub fn is_opaque(dir: impl AsFd) -> rustix::io::Result<bool> {
    let mut value = [0; 2];
    match fgetxattr(dir, OPAQUE, &mut value) {
        Ok(length) => Ok(value[..length] == *b"y"),
        // ERANGE: another value, of more bytes.
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Makes a directory hide those of its name in the layers below it.
///
/// # Errors
/// What `fsetxattr(2)` says.
pub fn set_opaque(dir: impl AsFd) -> rustix::io::Result<()> {
    fsetxattr(dir, OPAQUE, b"y", XattrFlags::empty())
}

/// The extended attributes of something in a directory, with their values, sorted: access lists (`system.posix_acl_*`) and
/// capabilities among them, and what overlayfs keeps for itself (`user.overlay.*`). Nothing is opened for it, and no link followed.
///
/// # Errors
/// What `llistxattr(2)` and `lgetxattr(2)` say.
pub fn attributes(dir: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<BTreeMap<CString, Vec<u8>>> {
    // No system call takes a descriptor and a name for this before Linux 6.13. The first part is our own descriptor, which is
    // what it is; of the rest, the name, links are not followed.
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend(name.to_bytes());
    let path = CString::new(path).map_err(|_| Errno::INVAL)?;
    let names = match sized(|list| llistxattr(&path, list)) {
        Err(Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        names => names?,
    };
    let mut attributes = BTreeMap::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        match sized(|value| lgetxattr(&path, &name, value)) {
            Ok(value) => drop(attributes.insert(name, value)),
            // Gone meanwhile.
            Err(Errno::NODATA) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(attributes)
}

/// Most attributes fit into a small buffer; the most that the kernel has is 64 KiB (`XATTR_SIZE_MAX`, linux/limits.h).
fn sized(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut small = [0; 256];
    match read(&mut small) {
        Ok(length) => Ok(small[..length].to_vec()),
        Err(Errno::RANGE) => {
            let mut large = vec![0; 1 << 16];
            let length = read(&mut large)?;
            large.truncate(length);
            Ok(large)
        }
        Err(e) => Err(e),
    }
}

/// The same directory, once more.
fn again(dir: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    openat2(dir, ".", DIRECTORY, Mode::empty(), DOWN)
}

/// A user may have chosen the name, in a layer that was an upper.
fn failed(act: &'static str, name: &CStr, source: Errno) -> Error {
    Error::Act { act, what: name.to_string_lossy().escape_debug().to_string(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::{XattrFlags, mknodat, setxattr};

    /// Layers in a directory of their own: `0` is the topmost.
    struct Layers(tempfile::TempDir);

    impl Layers {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn dir(&self, path: &str) -> &Self {
            fs::create_dir_all(self.0.path().join(path)).unwrap();
            self
        }

        fn file(&self, path: &str) -> &Self {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, path.strip_prefix(self.0.path()).unwrap().to_str().unwrap()).unwrap();
            self
        }

        /// Anybody may make one: to the kernel it is no device.
        fn whiteout(&self, path: &str) -> &Self {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
            self
        }

        fn opaque(&self, path: &str, value: &[u8]) -> &Self {
            self.dir(path);
            setxattr(self.0.path().join(path), OPAQUE, value, XattrFlags::empty()).unwrap();
            self
        }

        fn lower(&self, count: usize) -> Lower {
            let open = |number: usize| {
                rustix::fs::open(self.0.path().join(number.to_string()), DIRECTORY, Mode::empty()).unwrap()
            };
            Lower::over((0..count).map(open).collect())
        }
    }

    fn names(level: &Level) -> Vec<String> {
        level.names().unwrap().into_iter().map(|name| name.into_string().unwrap()).collect()
    }

    /// Which layer a name is from.
    fn layer(level: &Level, name: &CStr) -> Option<usize> {
        level.find(name).unwrap().map(|found| found.layer)
    }

    #[test]
    fn directories_are_merged_and_the_topmost_file_is_seen() {
        let layers = Layers::new();
        layers
            .file("0/d/both")
            .file("0/d/top")
            .file("1/d/both")
            .file("1/d/below")
            .dir("2/d/sub")
            .file("2/file");
        fs::set_permissions(layers.0.path().join("0/d"), fs::Permissions::from_mode(0o700)).unwrap();
        let lower = layers.lower(3);
        let root = lower.root().unwrap();
        assert_eq!(names(&root), ["d", "file"]);
        assert_eq!(
            (layer(&root, c"d"), layer(&root, c"file"), layer(&root, c"none")),
            (Some(0), Some(2), None)
        );
        let d = root.enter(c"d").unwrap();
        assert_eq!(names(&d), ["below", "both", "sub", "top"]);
        assert_eq!((layer(&d, c"both"), layer(&d, c"below"), layer(&d, c"sub")), (Some(0), Some(1), Some(2)));
        assert_eq!(d.stat().unwrap().unwrap().st_mode & 0o777, 0o700);
        let mut text = String::new();
        d.find(c"both").unwrap().unwrap().open().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "0/d/both");
        let none = d.enter(c"none").unwrap();
        assert!(none.is_missing() && none.stat().unwrap().is_none() && names(&none).is_empty());
        assert!(none.enter(c"more").unwrap().is_missing() && layer(&none, c"more").is_none());
        assert!(d.enter(c"both").unwrap().is_missing(), "a file is no directory");
    }

    #[test]
    fn a_whiteout_hides_what_is_below_it_and_nothing_above() {
        let layers = Layers::new();
        layers.file("0/a/new").whiteout("1/a").file("2/a/old").file("2/kept");
        layers.dir("0").whiteout("1/b").file("2/b");
        let lower = layers.lower(3);
        let root = lower.root().unwrap();
        assert_eq!(names(&root), ["a", "kept"]);
        assert_eq!(layer(&root, c"b"), None);
        assert!(root.enter(c"b").unwrap().is_missing());
        assert_eq!(names(&root.enter(c"a").unwrap()), ["new"]);
    }

    #[test]
    fn a_directory_is_opaque_only_by_the_value_that_overlayfs_takes() {
        for (value, hides) in [(&b"y"[..], true), (b"x", false), (b"n", false), (b"yes", false), (b"", false)]
        {
            let layers = Layers::new();
            layers.dir("0").opaque("1/d", value).file("1/d/in").file("2/d/below");
            let lower = layers.lower(3);
            let d = lower.root().unwrap().enter(c"d").unwrap();
            assert_eq!(names(&d).contains(&"below".to_owned()), !hides, "{value:?}");
            assert!(names(&d).contains(&"in".to_owned()));
        }
        let layers = Layers::new();
        layers.opaque("0", b"y").file("1/file");
        assert_eq!(names(&layers.lower(2).root().unwrap()), ["file"], "the root of a layer never is");
    }

    #[test]
    fn a_file_between_directories_ends_the_stack() {
        let layers = Layers::new();
        layers.file("0/x/top").file("1/x").file("2/x/hidden");
        layers.file("1/y").file("2/y/hidden");
        let lower = layers.lower(3);
        let root = lower.root().unwrap();
        assert_eq!(names(&root.enter(c"x").unwrap()), ["top"]);
        assert!(root.enter(c"y").unwrap().is_missing());
        assert!(!is_dir(&root.find(c"y").unwrap().unwrap().stat));
    }

    #[test]
    fn links_are_told_and_never_followed() {
        let layers = Layers::new();
        layers.file("0/real/file").file("1/link/below");
        symlink("real", layers.0.path().join("0/link")).unwrap();
        symlink("real/file", layers.0.path().join("0/to file")).unwrap();
        let lower = layers.lower(2);
        let root = lower.root().unwrap();
        let kind = |name| FileType::from_raw_mode(root.find(name).unwrap().unwrap().stat.st_mode);
        assert_eq!((kind(c"link"), kind(c"to file")), (FileType::Symlink, FileType::Symlink));
        assert!(root.enter(c"link").unwrap().is_missing());
        assert!(root.find(c"to file").unwrap().unwrap().open().is_err());
    }

    #[test]
    fn a_path_is_no_name() {
        let layers = Layers::new();
        layers.file("0/d/file");
        let lower = layers.lower(1);
        let root = lower.root().unwrap();
        for name in [c"", c".", c"..", c"d/file", c"/etc", c"d/"] {
            assert!(root.find(name).is_err() && root.enter(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn nothing_but_a_plain_file_is_opened_for_reading() {
        let layers = Layers::new();
        layers.dir("0/dir").whiteout("0/whiteout");
        for (name, kind) in [("fifo", FileType::Fifo), ("socket", FileType::Socket)] {
            mknodat(CWD, layers.0.path().join("0").join(name), kind, Mode::RUSR, 0).unwrap();
        }
        let lower = layers.lower(1);
        let root = lower.root().unwrap();
        for name in [c"fifo", c"socket", c"whiteout", c"dir"] {
            assert_eq!(open(root.dir().unwrap(), name).err(), Some(Errno::INVAL), "{name:?}");
        }
        assert_eq!(open(root.dir().unwrap(), c"none").err(), Some(Errno::NOENT));
    }

    #[test]
    fn a_way_leads_down_and_up_with_a_descriptor_a_layer() {
        let layers = Layers::new();
        // A part of the path ends in each layer at another depth, and one comes in between.
        layers.file("0/a/b/0").file("1/a/b/c/d/1").file("2/a/2").file("2/a/b/c/2").dir("3");
        let deep = vec!["x"; 200].join("/");
        layers.file(&format!("1/a/b/c/d/{deep}/end"));
        let lower = layers.lower(4);
        let mut way = lower.way().unwrap();
        let open = || fs::read_dir("/proc/self/fd").unwrap().count();
        let expected: Vec<Vec<&str>> =
            vec![vec!["a"], vec!["2", "b"], vec!["0", "c"], vec!["2", "d"], vec!["1", "x"]];
        for (name, here) in [c"a", c"b", c"c", c"d"].iter().zip(&expected) {
            assert_eq!(names(way.here()), *here);
            way.enter(name).unwrap();
        }
        let before = open();
        for _ in 0..200 {
            way.enter(c"x").unwrap();
        }
        assert_eq!(names(way.here()), ["end"]);
        for _ in 0..3 {
            way.enter(c"nowhere").unwrap();
        }
        assert!(way.here().is_missing());
        // Other tests of this program open files too, but not a hundred.
        assert!(open() < before + 100, "{before} {}", open());
        for _ in 0..203 {
            way.leave().unwrap();
        }
        for here in expected.iter().rev() {
            assert_eq!(names(way.here()), *here);
            way.leave().unwrap();
        }
        assert_eq!(names(way.here()), ["a"], "at the root it stays");
    }

    #[test]
    fn attributes_are_read_of_everything_and_through_no_link() {
        let layers = Layers::new();
        layers.file("0/file");
        let top = layers.0.path().join("0");
        let long = vec![7; 1000];
        setxattr(top.join("file"), "user.long", &long, XattrFlags::empty()).unwrap();
        setxattr(top.join("file"), "user.none", b"", XattrFlags::empty()).unwrap();
        symlink("file", top.join("link")).unwrap();
        mknodat(CWD, top.join("fifo"), FileType::Fifo, Mode::empty(), 0).unwrap();
        let lower = layers.lower(1);
        let root = lower.root().unwrap();
        let of = |name| attributes(root.dir().unwrap(), name).unwrap();
        let expected = [(c"user.long".to_owned(), long), (c"user.none".to_owned(), Vec::new())];
        assert_eq!(of(c"file").into_iter().collect::<Vec<_>>(), expected);
        assert!(of(c"link").is_empty() && of(c"fifo").is_empty());
    }

    #[test]
    fn a_view_has_nothing_that_is_mounted_in_it_and_changes_nothing() {
        lab::require_root!();
        let layers = Layers::new();
        layers.file("0/file").dir("0/proc");
        let view = view(&layers.0.path().join("0")).unwrap();
        let denied = rustix::fs::openat(&view, "new", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR);
        assert_eq!(denied.err(), Some(Errno::ROFS));
        let of_root = super::view(Path::new("/")).unwrap();
        let lower = Lower::over(vec![of_root]);
        let root = lower.root().unwrap();
        assert!(names(&root.enter(c"proc").unwrap()).is_empty(), "the host's /proc is in sight");
        symlink("0", layers.0.path().join("link")).unwrap();
        assert!(matches!(super::view(&layers.0.path().join("link")), Err(Error::Unfit { .. })));
    }
}
