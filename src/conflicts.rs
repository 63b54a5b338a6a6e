//! What of an upper stands in the way of newer layers: things of the user's over things that are other than they were when the user's
//! came. Host root, for `ojail conflicts` and `ojail rebase`; reads, and changes nothing.
//!
//! What a file was made on is told by the time of its last change and the bases of the upper ([`crate::bases`]). A copy of an upper,
//! restored, has new times: its files are judged by the last base that the copied one had.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags, Stat, fstat, openat2};
use rustix::io::Errno;
use serde::Serialize;

use crate::bases::Base;
use crate::changes::compare;
use crate::config::{LayerName, Storage};
use crate::error::{Act, Error, Result};
use crate::layers;
use crate::lower::{self, Found, Level, Lower, Way};
use crate::packages::{self, Packages};
use crate::walk::{BENEATH, DIRECTORY, Step, Walk, is_dir, is_whiteout};

/// Layers that an upper was on.
#[derive(Debug)]
pub struct Stand {
    /// Which, and since when.
    pub base: Base,
    /// As a tree; `None` if one of them is not there any more.
    pub lower: Option<Lower>,
}

/// Layers that an upper was on, and those that it comes to be on.
#[derive(Debug)]
pub struct Stands {
    /// The oldest first.
    pub old: Vec<Stand>,
    /// The layers of now, topmost first.
    pub layers: Vec<LayerName>,
    /// As a tree.
    pub now: Lower,
}

/// What the user did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mine {
    /// Changed, or made, where the layers have something.
    Changed,
    /// Deleted.
    Deleted,
    /// Deleted a directory and made another: nothing of the layers is seen in it.
    Replaced,
}

/// What became of the layers since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Theirs {
    /// They have another one there.
    Changed,
    /// They have something there, and had nothing.
    Added,
    /// They have nothing there, and had something.
    Removed,
}

/// Something of the user's over something that has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Where in the jail, without the slash in front. Any bytes but NUL.
    pub path: Vec<u8>,
    /// What the user did.
    pub mine: Mine,
    /// What became of the layers.
    pub theirs: Theirs,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In the order of a walk.
    pub conflicts: Vec<Conflict>,
    /// Of these it cannot be told: what they were made on is not there any more, or was never noted.
    pub untold: Vec<Vec<u8>>,
}

impl Stands {
    /// The layers of now, and those of these bases as far as they are still there.
    ///
    /// # Errors
    /// [`Error::Layer`], [`Error::Act`] about the layers of now.
    pub fn of(storage: &Storage, bases: Vec<Base>, names: &[LayerName]) -> Result<Self> {
        let resolved = layers::resolve(storage, names)?;
        let now = Lower::of(&resolved)?;
        let layers: Vec<LayerName> = resolved.iter().map(layers::Layer::full).collect();
        let mut old = Vec::new();
        for base in bases {
            let lower = match layers::resolve(storage, &base.layers).and_then(|layers| Lower::of(&layers)) {
                Err(Error::Layer { .. }) => None,
                lower => Some(lower?),
            };
            old.push(Stand { base, lower });
        }
        Ok(Self { old, layers, now })
    }

    /// The bases that can be looked at and are not the layers of now.
    pub fn others(&self) -> impl Iterator<Item = &Lower> {
        self.old
            .iter()
            .filter(|stand| stand.base.layers != self.layers)
            .filter_map(|stand| stand.lower.as_ref())
    }

    /// Which stand something was made on that was last changed then.
    fn at(&self, changed: u64) -> Option<usize> {
        let last = self.old.iter().rposition(|stand| stand.base.since <= changed);
        // Older than all that is noted: of the first, rather than of none.
        last.or(if self.old.is_empty() { None } else { Some(0) })
    }
}

/// Looks at the whole upper.
///
/// # Errors
/// [`Error::Act`].
pub fn find(upper: OwnedFd, stands: &Stands) -> Result<Report> {
    let old = stands.old.iter().map(|stand| stand.lower.as_ref().map(Lower::way).transpose());
    let mut ways =
        Ways { now: stands.now.way()?, old: old.collect::<Result<_>>()?, entered: 0, buffers: buffers() };
    let mut report = Report::default();
    let mut walk = Walk::below(upper)?;
    while let Some(step) = walk.step()? {
        match step {
            Step::Found(place, stat) => {
                ways.back_to(place.depth)?;
                let path = place.path.as_os_str().as_bytes();
                match ways.judge(stands, place.dir, place.name, &stat, path)? {
                    Verdict::Good => {}
                    Verdict::Untold => report.untold.push(path.to_vec()),
                    Verdict::Conflict(mine, theirs) => {
                        report.conflicts.push(Conflict { path: path.to_vec(), mine, theirs });
                    }
                }
                if is_dir(&stat) {
                    ways.enter(place.name)?;
                }
            }
            Step::Left(place) => ways.back_to(place.depth)?,
            Step::Mount(_) => {}
        }
    }
    Ok(report)
}

enum Verdict {
    Good,
    Untold,
    Conflict(Mine, Theirs),
}

/// Where the walk is, in all trees.
struct Ways {
    now: Way,
    old: Vec<Option<Way>>,
    entered: usize,
    buffers: [Vec<u8>; 2],
}

fn buffers() -> [Vec<u8>; 2] {
    [vec![0; 1 << 16], vec![0; 1 << 16]]
}

impl Ways {
    fn enter(&mut self, name: &CStr) -> Result<()> {
        self.now.enter(name)?;
        self.old.iter_mut().flatten().try_for_each(|way| way.enter(name))?;
        self.entered += 1;
        Ok(())
    }

    /// Out of directories, those included that the walk could not enter because they had vanished.
    fn back_to(&mut self, depth: usize) -> Result<()> {
        while self.entered > depth {
            self.now.leave()?;
            self.old.iter_mut().flatten().try_for_each(Way::leave)?;
            self.entered -= 1;
        }
        Ok(())
    }

    fn judge(
        &mut self,
        stands: &Stands,
        dir: BorrowedFd<'_>,
        name: &CStr,
        stat: &Stat,
        path: &[u8],
    ) -> Result<Verdict> {
        let whiteout = is_whiteout(stat);
        let mut changed = nanoseconds(stat.st_ctime, stat.st_ctime_nsec);
        if whiteout {
            // The whiteouts of a mount are names of one file (ovl_whiteout in fs/overlayfs/dir.c), whose time is that of the last. None
            // was made behind the last change of its directory.
            let dir = fstat(dir).act("examine", "a directory of the upper")?;
            changed = changed.min(nanoseconds(dir.st_mtime, dir.st_mtime_nsec));
        }
        let stand = stands.at(changed);
        if stand.is_some_and(|number| stands.old[number].base.layers == stands.layers) {
            return Ok(Verdict::Good);
        }
        let now = self.now.here().find(name)?;
        let mut opaque = false;
        // What is as the layers have it now is in nobody's way.
        if let (Some(now), false) = (&now, whiteout) {
            match compare(now, dir, name, stat, path, &mut self.buffers)? {
                None => return Ok(Verdict::Good),
                Some((mut differs, hides)) => {
                    differs.time = false;
                    opaque = hides;
                    if differs.is_empty() && !opaque {
                        return Ok(Verdict::Good);
                    }
                }
            }
        }
        let Some(old) = stand.and_then(|number| self.old[number].as_ref()) else {
            return Ok(if now.is_some() { Verdict::Untold } else { Verdict::Good });
        };
        let was = old.here().find(name)?;
        if opaque {
            let other = beneath(&self.now.here().enter(name)?, &old.here().enter(name)?, &mut self.buffers)?;
            return Ok(if other {
                Verdict::Conflict(Mine::Replaced, Theirs::Changed)
            } else {
                Verdict::Good
            });
        }
        let theirs = match (&was, &now) {
            (None, None) => return Ok(Verdict::Good),
            // It is hidden or changed, and gone: of a directory and of what is deleted nothing is left to say.
            (Some(_), None) if whiteout || is_dir(stat) => return Ok(Verdict::Good),
            (Some(_), None) => Theirs::Removed,
            (None, Some(_)) => Theirs::Added,
            (Some(was), Some(now)) if same(was, now, path, &mut self.buffers)? => return Ok(Verdict::Good),
            (Some(_), Some(_)) => Theirs::Changed,
        };
        Ok(Verdict::Conflict(if whiteout { Mine::Deleted } else { Mine::Changed }, theirs))
    }
}

/// As [`Base::since`] has it.
fn nanoseconds(seconds: i64, more: u64) -> u64 {
    u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(more)
}

/// Whether two layers have the same there, whenever it was made.
fn same(one: &Found<'_>, other: &Found<'_>, path: &[u8], buffers: &mut [Vec<u8>; 2]) -> Result<bool> {
    let differs = compare(one, other.dir, other.name, &other.stat, path, buffers)?;
    Ok(differs.is_some_and(|(mut differs, _)| {
        differs.time = false;
        differs.is_empty()
    }))
}

/// Whether two directories of layers differ in anything that is in them. A hundred levels are enough to find that out in any Debian;
/// what is below them is taken for other.
fn beneath(one: &Level, other: &Level, buffers: &mut [Vec<u8>; 2]) -> Result<bool> {
    beneath_to(one, other, buffers, 100)
}

fn beneath_to(one: &Level, other: &Level, buffers: &mut [Vec<u8>; 2], levels: usize) -> Result<bool> {
    let names = one.names()?;
    if levels == 0 || names != other.names()? {
        return Ok(true);
    }
    for name in &names {
        let (Some(a), Some(b)) = (one.find(name)?, other.find(name)?) else { return Ok(true) };
        if !same(&a, &b, name.to_bytes(), buffers)? {
            return Ok(true);
        }
        if is_dir(&a.stat) && beneath_to(&one.enter(name)?, &other.enter(name)?, buffers, levels - 1)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The packages of a jail, compared with those of the layers. Names only; each list is sorted.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Differing {
    /// The user installed them on top of the layers.
    pub installed: Vec<Version>,
    /// The user has another version than any of the layers had, and a newer one than they have now.
    pub upgraded: Vec<Version>,
    /// The user removed them; the layers have them.
    pub removed: Vec<Version>,
    /// The layers have them in another version now, or have them at last: dpkg in the jail does not know.
    pub behind: Vec<Version>,
    /// The layers do not have them any more: dpkg in the jail believes that they are there.
    pub dropped: Vec<Version>,
}

/// A package inside and in the layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Version {
    /// Its name.
    pub name: String,
    /// The version that dpkg in the jail believes in.
    pub inside: Option<String>,
    /// The version in the layers.
    pub layers: Option<String>,
}

/// What dpkg believes inside, where the user has a database of their own; and what it knows of the layers.
#[derive(Debug)]
pub struct Known {
    /// Inside.
    pub inside: Packages,
    /// In the layers of now.
    pub now: Packages,
    /// In all layers that the upper was on and that are still there, in the order of [`Stands::old`].
    pub old: Vec<Packages>,
}

/// The most that is read of a file of dpkg's, in bytes: the status of a Debian with everything has some 60 MB, and no list 2.
const MOST: u64 = 128 << 20;
const MOST_OF_A_LIST: u64 = 8 << 20;

/// The most that all lists of a tree may have together, in bytes: those of a Debian of 3000 packages have 30 MB.
const MOST_OF_ALL_LISTS: usize = 256 << 20;

/// The longest path that the kernel takes (PATH_MAX, linux/limits.h).
const LONGEST: usize = 4096;

/// Whether an upper has a database of dpkg's of its own.
///
/// # Errors
/// [`Error::Act`].
pub fn has_database(upper: BorrowedFd<'_>) -> Result<bool> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat2(upper, packages::STATUS, flags, Mode::empty(), BENEATH) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
        found => found.act("look for", packages::STATUS).map(|_| true),
    }
}

/// The packages, if the upper has a database of its own; without one dpkg inside knows what the layers know.
///
/// # Errors
/// [`Error::Act`].
pub fn known(upper: BorrowedFd<'_>, stands: &Stands) -> Result<Option<Known>> {
    let Some(inside) = read(upper, packages::STATUS)? else { return Ok(None) };
    let of = |lower: &Lower| -> Result<Packages> {
        Ok(read_lower(lower, packages::STATUS)?.map_or_else(Packages::new, |text| packages::parse(&text)))
    };
    Ok(Some(Known {
        inside: packages::parse(&inside),
        now: of(&stands.now)?,
        old: stands.old.iter().filter_map(|stand| stand.lower.as_ref()).map(of).collect::<Result<_>>()?,
    }))
}

impl Known {
    /// The database that the one inside began as: the likest of them. A package that came to the layers later is not one that the user
    /// has removed.
    fn origin(&self) -> Option<&Packages> {
        let likeness = |old: &&Packages| {
            let same = |(name, package): &(&String, &packages::Package)| {
                self.inside.get(*name).is_some_and(|inside| inside.version == package.version)
            };
            let missing = old.keys().filter(|name| !self.inside.contains_key(*name)).count();
            (old.iter().filter(same).count() as i64) - missing as i64
        };
        self.old.iter().max_by_key(likeness)
    }

    /// What differs.
    ///
    /// # Errors
    /// [`Error::Act`] if dpkg cannot be asked which of two versions is newer.
    pub fn differing(&self) -> Result<Differing> {
        let mut differing = Differing::default();
        let origin = self.origin();
        let names: BTreeSet<&String> = self.inside.keys().chain(self.now.keys()).collect();
        for name in names {
            let version = |packages: &Packages| packages.get(name).map(|package| package.version.clone());
            let (inside, layers) = (version(&self.inside), version(&self.now));
            if inside == layers {
                continue;
            }
            let before = |inside: &String| self.old.iter().any(|old| version(old).as_ref() == Some(inside));
            let list = match (&inside, &layers) {
                (Some(_), None) if self.old.iter().any(|old| old.contains_key(name)) => {
                    &mut differing.dropped
                }
                (Some(_), None) => &mut differing.installed,
                (Some(inside), Some(layers)) if !before(inside) && packages::newer(inside, layers)? => {
                    &mut differing.upgraded
                }
                (None, Some(_)) if origin.is_some_and(|origin| origin.contains_key(name)) => {
                    &mut differing.removed
                }
                _ => &mut differing.behind,
            };
            list.push(Version { name: name.clone(), inside, layers });
        }
        Ok(differing)
    }
}

/// A file of an upper; `None` if there is none of its own there, or no plain file.
///
/// # Errors
/// [`Error::Act`]; it is refused if it is larger than any of dpkg's.
pub fn read(upper: BorrowedFd<'_>, path: &str) -> Result<Option<Vec<u8>>> {
    let most = if path.starts_with(packages::INFO) { MOST_OF_A_LIST } else { MOST };
    let (above, name) = path.rsplit_once('/').unwrap_or((".", path));
    let dir = match openat2(upper, above, DIRECTORY, Mode::empty(), BENEATH) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        dir => dir.act("open", above)?,
    };
    let name = CString::new(name).map_err(std::io::Error::from).act("name", path)?;
    match lower::open(dir.as_fd(), &name) {
        Err(Errno::NOENT | Errno::LOOP | Errno::INVAL) => Ok(None),
        file => content(file.act("open", path)?, path, most).map(Some),
    }
}

/// A file of layers; `None` if there is no plain file.
///
/// # Errors
/// As [`read`].
pub fn read_lower(lower: &Lower, path: &str) -> Result<Option<Vec<u8>>> {
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut level = lower.root()?;
    let named = |part: &str| CString::new(part).map_err(std::io::Error::from).act("name", path);
    for part in above.split('/').filter(|part| !part.is_empty()) {
        level = level.enter(&named(part)?)?;
    }
    let name = named(name)?;
    match level.find(&name)? {
        Some(found) => match found.open() {
            Err(Error::Act { source, .. })
                if source.raw_os_error() == Some(libc::ELOOP) || source.kind() == ErrorKind::InvalidInput =>
            {
                Ok(None)
            }
            file => content(file?, path, MOST).map(Some),
        },
        None => Ok(None),
    }
}

fn content(file: std::fs::File, path: &str, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let length = file.take(most + 1).read_to_end(&mut bytes).act("read", path)?;
    if length as u64 > most {
        let why = format!("has more than {most} bytes, which no such file has");
        return Err(Error::Unfit { path: path.into(), why });
    }
    Ok(bytes)
}

/// Which package has a path, as dpkg inside knows it: of the layers' own where the upper has no lists.
#[derive(Debug, Default)]
pub struct Owners(BTreeMap<Vec<u8>, String>);

impl Owners {
    /// Of these packages, by the lists of an upper, if there is one, and of the layers beneath.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn of<'a>(
        upper: Option<BorrowedFd<'_>>,
        lower: &Lower,
        packages: impl Iterator<Item = &'a String>,
    ) -> Result<Self> {
        let merged = Merged::of(lower)?;
        let mut owners = BTreeMap::new();
        let mut left = MOST_OF_ALL_LISTS;
        for package in packages {
            // A name that is a path is none.
            if package.contains('/') {
                continue;
            }
            let path = format!("{}/{package}.list", packages::INFO);
            let own = upper.map(|upper| read(upper, &path)).transpose()?.flatten();
            let text = if own.is_some() { own } else { read_lower(lower, &path)? };
            let text = text.unwrap_or_default();
            left = left.checked_sub(text.len()).ok_or_else(|| Error::Unfit {
                path: packages::INFO.into(),
                why: format!("has lists of more than {MOST_OF_ALL_LISTS} bytes, which no Debian has"),
            })?;
            for path in packages::list(&text).into_iter().filter(|path| path.len() <= LONGEST) {
                owners.insert(merged.real(path), package.clone());
            }
        }
        Ok(Self(owners))
    }

    /// The package that has this.
    #[must_use]
    pub fn of_path(&self, path: &[u8]) -> Option<&str> {
        self.0.get(path).map(String::as_str)
    }
}

/// The directories of the root that are links into `/usr`, where packages may still have files by the old names (merged /usr).
#[derive(Debug, Default)]
pub struct Merged(Vec<Vec<u8>>);

impl Merged {
    /// Those of layers.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn of(lower: &Lower) -> Result<Self> {
        let root = lower.root()?;
        let mut merged = Vec::new();
        for name in [c"bin", c"sbin", c"lib", c"lib32", c"lib64", c"libx32"] {
            if root.find(name)?.is_some_and(|found| found.stat.st_mode & libc::S_IFMT == libc::S_IFLNK) {
                merged.push(name.to_bytes().to_vec());
            }
        }
        Ok(Self(merged))
    }

    /// Where a path of a package's really is.
    #[must_use]
    pub fn real(&self, path: Vec<u8>) -> Vec<u8> {
        let first = path.split(|byte| *byte == b'/').next().unwrap_or_default();
        let moved = first.len() < path.len() && self.0.iter().any(|name| name == first);
        if moved { [&b"usr/"[..], &path].concat() } else { path }
    }
}
