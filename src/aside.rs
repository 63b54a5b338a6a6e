//! What was cleared or saved of a user's changes, on the uppers' own file system, and the one step in which an upper changes
//! places. Host root only, in `ojail`; nothing here looks below an upper.
//!
//! A user's shelf is `asidedirs/USER`. Each entry on it is a directory:
//!
//! * `upper`: the tree itself;
//! * `record.json`: when and why it came here ([`Record`]);
//! * `next.json`: what `record.json` is about to say, written before the step in which `upper` changes.
//!
//! The bases of an upper go with it ([`crate::bases`]), in the record.
//!
//! That step is one rename, of the user's upper with the entry's if there is one. The record names the upper that it is about
//! by inode number, so after a kill at any moment one look tells on which side of the step it was ([`Shelf::settle`]).

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, Timespec, Timestamps, openat, renameat_with, statat, syncfs,
    utimensat,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::account::Username;
use crate::bases::{self, Base};
use crate::config::Storage;
use crate::error::{Act, Error, IfThere, Result};
use crate::ids::Owner;
use crate::runtime::{lock_file, private_dir};
use crate::{paths, store, walk};

/// Why an upper is on the shelf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// A reset cleared it.
    Reset,
    /// `ojail undo` put another in its place.
    Undo,
    /// A snapshot or a backup was restored in its place, or a layer imported.
    Restore,
    /// `ojail rebase` put what is the user's own on newer layers.
    Rebase,
    /// The user was forgotten.
    Forget,
    /// It is a copy, made by `ojail snapshot`, and stays until it is removed by name.
    Snapshot,
}

/// What `record.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Why it is here.
    pub why: Why,
    /// Seconds since 1970.
    pub at: u64,
    /// The user's profile then, if they had one.
    pub profile: Option<String>,
    /// Paths inside the jail that a reset spared (`--keep`).
    #[serde(default)]
    pub keep: Vec<PathBuf>,
    /// Paths inside the jail that a reset cleared alone (`--only`).
    #[serde(default)]
    pub only: Vec<PathBuf>,
    /// Of who was forgotten: whose it is, and the range of ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// The layers that the upper was on; of a copy, what it is a copy of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<Base>,
    /// Of a step: the layers that the upper was made on which comes in the place of this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<Vec<Base>>,
    /// The inode number of the upper that this is about.
    upper: Option<u64>,
}

impl Record {
    /// A record of now.
    #[must_use]
    pub fn of(why: Why, profile: Option<String>) -> Self {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self {
            why,
            at,
            profile,
            keep: Vec::new(),
            only: Vec::new(),
            owner: None,
            bases: Vec::new(),
            next: None,
            upper: None,
        }
    }
}

/// Something on the shelf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name there: the time, or the snapshot's.
    pub name: String,
    /// What is known of it.
    pub record: Record,
    dir: PathBuf,
}

impl Entry {
    /// The entry itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The tree.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.dir.join(UPPER_NAME)
    }
}

/// The name of the tree in an entry.
pub const UPPER: &CStr = c"upper";
/// The same, as a path takes it.
const UPPER_NAME: &str = "upper";
const RECORD: &str = "record.json";
const NEXT: &str = "next.json";

/// What is about to be deleted, of all users. No user is called so.
const TRASH: &str = ".trash";

/// One user's shelf. All but [`Shelf::entries`] need the user's lock, and the jail to be gone.
#[derive(Debug)]
pub struct Shelf<'a> {
    storage: &'a Storage,
    user: Username,
    dir: PathBuf,
}

impl<'a> Shelf<'a> {
    /// The shelf of `user`; nothing is made yet.
    #[must_use]
    pub fn of(storage: &'a Storage, user: &Username) -> Self {
        Self { storage, user: user.clone(), dir: storage.asidedirs.join(user) }
    }

    /// Every entry, the newest first.
    ///
    /// # Errors
    /// [`Error::Act`], [`Error::Unfit`].
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for name in list(&self.dir)? {
            let dir = self.dir.join(&name);
            let (record, file) = match State::of(&dir)? {
                State::Whole(record) => (record, RECORD),
                State::Done(record) => (record, NEXT),
                State::Rubbish => continue,
            };
            // Of two of one second: which was written later. One that is taken away meanwhile is none.
            let file = dir.join(file);
            let Some(meta) = fs::symlink_metadata(&file).if_there().act("examine", &file)? else { continue };
            entries.push(((record.at, (meta.mtime(), meta.mtime_nsec())), Entry { name, record, dir }));
        }
        entries.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        let entries = entries.into_iter().map(|(_, entry)| entry).collect();
        Ok(entries)
    }

    /// An entry by its name.
    ///
    /// # Errors
    /// [`Error::NotAside`] if there is none.
    pub fn entry(&self, name: &str) -> Result<Entry> {
        let found = self.entries()?.into_iter().find(|entry| entry.name == name);
        found.ok_or_else(|| Error::NotAside {
            user: self.user.to_string(),
            name: name.escape_debug().to_string(),
        })
    }

    /// Finishes what a kill interrupted behind its step, and takes away what one interrupted before it.
    ///
    /// # Errors
    /// [`Error::Act`], [`Error::Unfit`].
    pub fn settle(&self) -> Result<()> {
        for name in list(&self.dir)? {
            self.settled(&self.dir.join(&name))?;
        }
        Ok(())
    }

    /// Settles one entry. `None`: nothing is left of it.
    fn settled(&self, dir: &Path) -> Result<Option<Record>> {
        match State::of(dir)? {
            State::Whole(record) => {
                // Of a step that was not made.
                remove(&dir.join(NEXT))?;
                Ok(Some(record))
            }
            State::Done(record) => {
                if let Some(bases) = &record.next {
                    // A note, in nobody's way.
                    let _ = bases::put(&self.user, bases);
                }
                fs::rename(dir.join(NEXT), dir.join(RECORD)).act("complete the record of", dir)?;
                sync(dir)?;
                Ok(Some(record))
            }
            State::Rubbish => self.discard_dir(dir).map(|()| None),
        }
    }

    /// Begins an entry. What is made at [`Draft::upper`] will be the user's upper; nothing: they will have none.
    ///
    /// # Errors
    /// [`Error::Act`], [`Error::Unfit`].
    pub fn draft(&self) -> Result<Draft<'_>> {
        self.ready()?;
        let stamp = stamp()?;
        for number in 1.. {
            if let Some(draft) = self.begin(&numbered(&stamp, number))? {
                return Ok(draft);
            }
        }
        Err(Error::IsAside { user: self.user.to_string(), name: stamp })
    }

    /// Begins an entry of this name, which is kept with [`Draft::keep`].
    ///
    /// # Errors
    /// [`Error::IsAside`] if there is one already; [`Error::Act`], [`Error::Unfit`].
    pub fn draft_called(&self, name: &str) -> Result<Draft<'_>> {
        self.ready()?;
        let is_there = || Error::IsAside { user: self.user.to_string(), name: name.to_owned() };
        self.begin(name)?.ok_or_else(is_there)
    }

    fn begin(&self, name: &str) -> Result<Option<Draft<'_>>> {
        let dir = self.dir.join(name);
        match fs::create_dir(&dir) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(None),
            made => {
                made.act("create", &dir)?;
                Ok(Some(Draft { shelf: self, dir, name: name.to_owned(), done: false }))
            }
        }
    }

    fn ready(&self) -> Result<()> {
        store::check(self.storage)?;
        store::roots_own_way(&self.storage.asidedirs)?;
        private_dir(&self.storage.asidedirs)?;
        private_dir(&self.dir)?;
        self.settle()
    }

    /// Puts an entry back as the user's upper. What it replaces comes on the shelf, if there is anything; that entry is returned.
    ///
    /// # Errors
    /// [`Error::Act`], [`Error::Unfit`]; then nothing has changed.
    pub fn put_back(&self, entry: &Entry, record: Record) -> Result<Option<Entry>> {
        self.ready()?;
        let stamp = stamp()?;
        let Some(record) = self.step(&entry.dir, record, &entry.record.bases)? else { return Ok(None) };
        // Under the name of its own time. If a kill comes first, it only keeps the old one.
        for number in 1.. {
            let name = numbered(&stamp, number);
            let dir = self.dir.join(&name);
            match renameat_with(CWD, &entry.dir, CWD, &dir, RenameFlags::NOREPLACE) {
                Err(rustix::io::Errno::EXIST) => {}
                Ok(()) => {
                    let _ = sync(&self.dir);
                    return Ok(Some(Entry { name, record, dir }));
                }
                Err(_) => {
                    return Ok(Some(Entry { name: entry.name.clone(), record, dir: entry.dir.clone() }));
                }
            }
        }
        Ok(None)
    }

    /// The step: the user's upper and the entry's change places. `None`: there was no upper of the user's, so nothing is left
    /// of the entry. `bases` are those of the upper that the user has then.
    fn step(&self, dir: &Path, mut record: Record, bases: &[Base]) -> Result<Option<Record>> {
        let (upper, other) = (self.storage.upperdirs.join(&self.user), dir.join(UPPER_NAME));
        let (old, new) = (inode(&upper)?, inode(&other)?);
        record.upper = old;
        record.bases = bases::of(&self.user)?;
        record.next = Some(bases.to_vec());
        let next = dir.join(NEXT);
        write(&next, &record)?;
        sync(dir)?;
        sync(&self.dir)?;
        let (from, to, how) = match (old, new) {
            (Some(_), Some(_)) => (&other, &upper, RenameFlags::EXCHANGE),
            (Some(_), None) => (&upper, &other, RenameFlags::NOREPLACE),
            (None, Some(_)) => (&other, &upper, RenameFlags::NOREPLACE),
            (None, None) => return self.discard_dir(dir).map(|()| None),
        };
        // Opened before: behind the rename nothing may fail that can fail here.
        let uppers = File::open(&self.storage.upperdirs).act("open", &self.storage.upperdirs)?;
        let times = [times(&upper), times(&other)];
        let change = |from, to| {
            renameat_with(CWD, from, CWD, to, how)?;
            // xfs takes it for a change of directories that they changed places.
            if how == RenameFlags::EXCHANGE {
                for (path, times) in [&other, &upper].into_iter().zip(&times) {
                    let _ =
                        times.as_ref().map(|times| utimensat(CWD, path, times, AtFlags::SYMLINK_NOFOLLOW));
                }
            }
            Ok::<_, rustix::io::Errno>(())
        };
        change(from, to).act("change places of", format!("{} and {}", upper.display(), other.display()))?;
        if let Err(e) = uppers.sync_all() {
            // Not known to be on the disk: what is reported as failed has not happened.
            // Where even that fails, the record stays: without one the upper would be taken for rubbish.
            if renameat_with(CWD, to, CWD, from, how).is_ok() {
                let _ = remove(&next);
            }
            return Err(e).act("sync", &self.storage.upperdirs);
        }
        // What fails from here on is done by the next act on this shelf.
        if old.is_none() {
            let _ = bases::put(&self.user, bases);
        }
        Ok(match self.settled(dir) {
            Ok(settled) => settled,
            Err(_) => old.map(|_| record),
        })
    }

    /// Takes an entry off the shelf, to be deleted by [`empty`].
    ///
    /// # Errors
    /// [`Error::Act`], [`Error::Unfit`].
    pub fn discard(&self, entry: &Entry) -> Result<()> {
        self.discard_dir(&entry.dir)
    }

    fn discard_dir(&self, dir: &Path) -> Result<()> {
        let trash = self.storage.asidedirs.join(TRASH);
        private_dir(&trash)?;
        let name = format!("{}@{}", self.user, dir.file_name().unwrap_or_default().to_string_lossy());
        for number in 1.. {
            match renameat_with(CWD, dir, CWD, trash.join(numbered(&name, number)), RenameFlags::NOREPLACE) {
                Err(rustix::io::Errno::EXIST) => {}
                Err(rustix::io::Errno::NOENT) => break,
                renamed => return renamed.act("throw away", dir),
            }
        }
        Ok(())
    }
}

/// When a directory was read and changed; `None` if there is none.
fn times(path: &Path) -> Option<Timestamps> {
    let stat = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let time =
        |seconds, nanoseconds| Some(Timespec { tv_sec: seconds, tv_nsec: i64::try_from(nanoseconds).ok()? });
    Some(Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec)?,
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec)?,
    })
}

/// A name, and others like it while it is taken.
pub(crate) fn numbered(name: &str, number: u32) -> String {
    if number == 1 { name.to_owned() } else { format!("{name}-{number}") }
}

/// An entry that is being made. Dropped before it is done, it is thrown away.
#[derive(Debug)]
pub struct Draft<'a> {
    shelf: &'a Shelf<'a>,
    dir: PathBuf,
    name: String,
    done: bool,
}

impl Draft<'_> {
    /// The entry itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the user's new upper is put together.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.dir.join(UPPER_NAME)
    }

    /// Makes the step: the user has the new upper, which was made on these bases, and the old one is on the shelf. `None`: there was
    /// no old one.
    ///
    /// # Errors
    /// [`Error::Act`]; then nothing has changed.
    pub fn commit(mut self, record: Record, bases: &[Base]) -> Result<Option<Entry>> {
        self.sync()?;
        let record = self.shelf.step(&self.dir, record, bases)?;
        self.done = true;
        Ok(record.map(|record| Entry { name: self.name.clone(), dir: self.dir.clone(), record }))
    }

    /// Keeps what is in the draft as an entry; the user's upper stays as it is.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn keep(mut self, mut record: Record) -> Result<Entry> {
        self.sync()?;
        let upper = self.upper();
        record.upper = Some(fs::symlink_metadata(&upper).act("examine", &upper)?.ino());
        record.bases = bases::of(&self.shelf.user)?;
        let next = self.dir.join(NEXT);
        let kept = write(&next, &record).and_then(|()| sync(&self.dir)).and_then(|()| sync(&self.shelf.dir));
        if let Err(e) = kept {
            // What is refused is not there: with its record it would be.
            remove(&next)?;
            return Err(e);
        }
        self.done = true;
        // It is an entry already; if this fails, the next act on this shelf does it.
        let _ = self.shelf.settled(&self.dir);
        Ok(Entry { name: self.name.clone(), dir: self.dir.clone(), record })
    }

    /// What was put into the draft must be on the disk before anything depends on it.
    fn sync(&self) -> Result<()> {
        if inode(&self.upper())?.is_none() {
            return Ok(());
        }
        syncfs(File::open(&self.dir).act("open", &self.dir)?).act("sync", &self.dir)
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.done && !matches!(State::of(&self.dir), Ok(State::Whole(_) | State::Done(_))) {
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            // If this fails too, the next act on this user's shelf does it.
            let _ = self.shelf.discard_dir(&self.dir);
        }
    }
}

/// What the files of an entry tell.
enum State {
    /// It is what `record.json` says.
    Whole(Record),
    /// The step was made; `next.json` holds.
    Done(Record),
    /// It is nothing: not yet, or not any more.
    Rubbish,
}

impl State {
    fn of(dir: &Path) -> Result<Self> {
        let upper = inode(&dir.join(UPPER_NAME))?;
        let next = read(&dir.join(NEXT))?;
        if let (Some(next), Some(_)) = (next, upper) {
            if next.upper == upper {
                return Ok(Self::Done(next));
            }
        }
        let path = dir.join(RECORD);
        match (read(&path)?, upper) {
            (Some(record), Some(_)) => Ok(Self::Whole(record)),
            // It came here by a rename, whole. Whatever became of it, what it is about is somebody's.
            (None, Some(_)) if inode(&path)?.is_some() => Err(Error::Unfit {
                path,
                why: "is damaged, or of a newer ojail; mend it, or move what lies beside it away".into(),
            }),
            _ => Ok(Self::Rubbish),
        }
    }
}

/// Deletes what was thrown away, and stops at `until`. What cannot be deleted is told in the list that is returned, and left.
///
/// # Errors
/// [`Error::Act`] if the trash itself cannot be read.
pub fn empty(storage: &Storage, until: Option<Instant>) -> Result<Vec<Error>> {
    let trash = storage.asidedirs.join(TRASH);
    let names = list(&trash)?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    store::roots_own_way(&trash)?;
    // Two at once would only get in each other's way.
    let _lock = lock_file(&Path::new(paths::RUN).join("trash.lock"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(CWD, &trash, flags, Mode::empty()).act("open", &trash)?;
    let mut left = Vec::new();
    for name in names {
        let Ok(name) = CString::new(name.as_bytes()) else { continue };
        match walk::remove(dir.as_fd(), &name, until) {
            Ok(true) => {}
            Ok(false) => break,
            Err(e) => left.push(e),
        }
    }
    Ok(left)
}

/// What is older than `keep`, or too much for `most` bytes, newest first: to be discarded. Snapshots are nobody's to discard.
/// `size` tells what an entry takes.
///
/// # Errors
/// Those of `size`.
pub fn expired(
    entries: Vec<Entry>,
    now: u64,
    keep: Duration,
    most: Option<u64>,
    mut size: impl FnMut(&Entry) -> Result<u64>,
) -> Result<Vec<Entry>> {
    let mut sum = 0;
    let mut expired = Vec::new();
    for entry in entries.into_iter().filter(|entry| entry.record.why != Why::Snapshot) {
        let old = now.saturating_sub(entry.record.at) > keep.as_secs();
        if let (false, Some(most)) = (old, most) {
            sum += size(&entry)?;
            if sum > most {
                expired.push(entry);
            }
        } else if old {
            expired.push(entry);
        }
    }
    Ok(expired)
}

/// Takes an empty shelf away. One on which anything is stays.
pub fn tidy(storage: &Storage, user: &Username) {
    let _ = fs::remove_dir(storage.asidedirs.join(user));
}

/// Every user with a shelf.
///
/// # Errors
/// [`Error::Act`].
pub fn owners(storage: &Storage) -> Result<Vec<Username>> {
    Ok(list(&storage.asidedirs)?.iter().filter_map(|name| Username::parse(name).ok()).collect())
}

/// The names in a directory of ours, sorted; none if there is no such directory.
fn list(dir: &Path) -> Result<Vec<String>> {
    let Some(entries) = fs::read_dir(dir).if_there().act("list", dir)? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.act("list", dir)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// A record; `None` if there is none, or one that was cut short while it was written, on which nothing depends yet.
fn read(path: &Path) -> Result<Option<Record>> {
    let text = fs::read(path).if_there().act("read", path)?;
    Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
}

/// The inode number of what is there, if anything is.
fn inode(path: &Path) -> Result<Option<u64>> {
    Ok(fs::symlink_metadata(path).if_there().act("examine", path)?.map(|meta| meta.ino()))
}

fn write(path: &Path, record: &Record) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(&serde_json::to_vec_pretty(record)?)?;
        file.sync_all()
    };
    write().act("write", path)
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).if_there().act("remove", path).map(drop)
}

fn sync(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).act("sync", dir)
}

/// The time as a name: no `:`, which overlayfs and others would misread.
///
/// # Errors
/// [`Error::Act`], if it is no time that can be written.
pub fn stamp() -> Result<String> {
    OffsetDateTime::now_utc()
        .format(format_description!("[year]-[month]-[day]T[hour].[minute].[second]Z"))
        .map_err(std::io::Error::other)
        .act("write", "the time")
}
