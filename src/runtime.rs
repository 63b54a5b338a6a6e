//! `/run/ojail`: who acts on a jail, and whether one may still be mounted. Host root only.
//!
//! Two locks a user, both `flock`, both released by the kernel when their holders die:
//!
//! * `lock` is held by whoever raises, stops or resets the jail, for as long as that takes;
//! * `alive` is held, shared, by everything that may keep the jail's overlay mounted: its PID 1, and each login
//!   process that joined. Raising takes it exclusively first, so one upper never has two overlays.
//!
//! `porch/door` is the socket of the jail's PID 1, see [`crate::jail::door`]. `view` names the place where `ojail mount` shows the
//! jail ([`crate::jail::view`]). Temporary jails ([`crate::jail::temporary`]) have corners of their own, in `runs`.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, StatxAttributes, StatxFlags, flock, statfs, statx};
use serde::{Deserialize, Serialize};

use crate::account::Username;
use crate::error::{Act, Error, IfThere, Result};
use crate::paths;

/// How long a login waits for another act on the same jail.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a raise waits for the processes of the last jail to be gone.
const ENDING: Duration = Duration::from_secs(5);

/// One jail's corner of `/run/ojail`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Corner {
    user: Username,
    dir: PathBuf,
}

impl Corner {
    /// The corner of `user`; nothing is made yet.
    #[must_use]
    pub fn of(user: &Username) -> Self {
        Self { user: user.clone(), dir: Path::new(paths::RUN).join("jails").join(user) }
    }

    /// The corner of a temporary jail; nothing is made yet. `user` owns the ids and the control group that it takes.
    #[must_use]
    pub fn of_run(user: &Username, run: &str) -> Self {
        Self { user: user.clone(), dir: runs().join(run) }
    }

    /// Whose it is.
    #[must_use]
    pub fn user(&self) -> &Username {
        &self.user
    }

    /// The temporary jail's name, if this is the corner of one.
    #[must_use]
    pub fn run(&self) -> Option<&str> {
        (self.dir.parent() == Some(&runs())).then(|| self.dir.file_name()?.to_str()).flatten()
    }

    /// The directory itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory that the running jail's PID 1 owns, so that it can take its door away when it ends.
    #[must_use]
    pub fn porch(&self) -> PathBuf {
        self.dir.join("porch")
    }

    /// The socket of the jail's PID 1.
    #[must_use]
    pub fn door(&self) -> PathBuf {
        self.porch().join("door")
    }

    /// Takes the right to act on this jail; waits for whoever has it.
    ///
    /// # Errors
    /// [`Error::Busy`] after 20 s.
    pub fn lock(&self) -> Result<File> {
        let path = self.dir.join("lock");
        for _ in 0..100 {
            private_dir(&self.dir)?;
            let file = match open_lock(&path) {
                // Removed with its directory, in between.
                Err(Error::Act { source, .. }) if source.kind() == ErrorKind::NotFound => continue,
                file => file?,
            };
            if !wait(&file, FlockOperation::NonBlockingLockExclusive, PATIENCE)? {
                break;
            }
            // While this waited, the corner may have been removed ([`Corner::remove`]): then it is the lock of nothing.
            let is = fs::symlink_metadata(&path).if_there().act("examine", &path)?.map(|meta| meta.ino());
            if is == Some(file.metadata().act("examine", &path)?.ino()) {
                return Ok(file);
            }
        }
        Err(Error::Busy { user: self.user.to_string(), seconds: PATIENCE.as_secs() })
    }

    /// Claims the upper for a new jail: nothing of an old one can write to it any more.
    ///
    /// The kernel closes the descriptors of a dying process, and so lets go of the claim, a moment before its mounts. In
    /// that moment the old overlay can only write back what was written; whoever can, waits for PID 1 itself
    /// ([`crate::jail::door::Door::wait_for_end`]).
    ///
    /// # Errors
    /// [`Error::StillEnding`] if processes of the last jail are still there after 5 s.
    pub fn claim(&self) -> Result<File> {
        let file = open_lock(&self.dir.join("alive"))?;
        if !wait(&file, FlockOperation::NonBlockingLockExclusive, ENDING)? {
            return Err(Error::StillEnding { user: self.user.to_string() });
        }
        // Shared from here on, so that logins can hold it too. `lock` keeps other raises away meanwhile.
        flock(&file, FlockOperation::LockShared).act("lock", self.dir.join("alive").as_path())?;
        Ok(file)
    }

    /// Holds the upper for a login process that joined a running jail.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn hold(&self) -> Result<File> {
        let path = self.dir.join("alive");
        // What is kept can be read only: sshd's own child, which becomes the user and executes nothing, keeps it too, and
        // there have been kernels that let the user have it.
        let mut read = File::options();
        read.read(true).custom_flags(libc::O_NOFOLLOW);
        let file = match read.open(&path) {
            // Somebody cleared /run.
            Err(e) if e.kind() == ErrorKind::NotFound => {
                drop(open_lock(&path)?);
                read.open(&path)
            }
            opened => opened,
        };
        let file = file.act("open", &path)?;
        patient(&file, FlockOperation::NonBlockingLockShared, &path)?;
        Ok(file)
    }

    /// Makes the porch ready for a new jail, or for none: root's own, and without a door that a killed PID 1 left. The
    /// caller holds the lock, and no jail is running.
    ///
    /// # Errors
    /// [`Error::Act`], [`Error::Unfit`].
    pub fn sweep(&self) -> Result<()> {
        let porch = self.porch();
        match fs::symlink_metadata(&porch) {
            // What an ended jail owned is root's again, until the next one takes it over.
            Ok(meta) if meta.uid() != 0 => {
                std::os::unix::fs::lchown(&porch, Some(0), None).act("take back", &porch)?
            }
            _ => private_dir(&porch)?,
        }
        fs::remove_file(self.door()).if_there().act("remove", &self.door()).map(drop)
    }

    /// Where the jail is shown to the administrator, if it is: the overlay is mounted there, whether or not its jail still runs.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn view(&self) -> Result<Option<PathBuf>> {
        match self.place_of_view()? {
            Some(path) if is_overlay(&path)? => Ok(Some(path)),
            _ => Ok(None),
        }
    }

    /// Where it would be shown, mounted or not.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn place_of_view(&self) -> Result<Option<PathBuf>> {
        let file = self.dir.join("view");
        let Some(text) = fs::read_to_string(&file).if_there().act("read", &file)? else { return Ok(None) };
        // Cut short, it was written by one who did not come to mount anything.
        Ok(text.strip_suffix('\n').map(PathBuf::from))
    }

    /// Notes where the jail is about to be shown. Before it is: what is mounted must be known to whoever raises the next jail.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn note_view(&self, path: &Path) -> Result<()> {
        let file = self.dir.join("view");
        let mut options = File::options();
        let mut note = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&file)
            .act("create", &file)?;
        note.write_all(format!("{}\n", path.display()).as_bytes()).act("write", &file)
    }

    /// Forgets the place; nothing is mounted there.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn forget_view(&self) -> Result<()> {
        let file = self.dir.join("view");
        fs::remove_file(&file).if_there().act("remove", &file).map(drop)
    }

    /// Notes which layers the jail stands on that is about to be raised, by what they are, not where. The caller has the lock on all
    /// layers ([`layers`]) since before it looked for them.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn note_layers(&self, paths: &[&Path]) -> Result<()> {
        let mut text = String::new();
        for path in paths {
            let meta = fs::symlink_metadata(path).act("examine", *path)?;
            text.push_str(&format!("{} {}\n", meta.dev(), meta.ino()));
        }
        let file = self.dir.join("layers");
        let note = File::options().write(true).create(true).truncate(true).mode(0o600).open(&file);
        note.and_then(|mut note| note.write_all(text.as_bytes())).act("write", &file)
    }

    /// What the jail stands on, whether it still runs or only its overlay is left.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn layers(&self) -> Result<Ground> {
        if self.gone(Duration::ZERO)? && self.view()?.is_none() {
            return Ok(Ground::Nothing);
        }
        let file = self.dir.join("layers");
        let Some(text) = fs::read_to_string(&file).if_there().act("read", &file)? else {
            // Raised by a version that took no note.
            return Ok(Ground::Unknown);
        };
        let numbers = |line: &str| {
            let (dev, ino) = line.split_once(' ')?;
            Some((dev.parse().ok()?, ino.parse().ok()?))
        };
        Ok(text.lines().map(numbers).collect::<Option<_>>().map_or(Ground::Unknown, Ground::Layers))
    }

    /// Removes the corner of somebody who is gone. The caller holds the lock, and no jail is running.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn remove(&self) -> Result<()> {
        self.sweep()?;
        if self.view()?.is_none() {
            self.forget_view()?;
        }
        fs::remove_dir(self.porch()).act("remove", &self.porch())?;
        for name in ["layers", "alive", "lock"] {
            let path = self.dir.join(name);
            fs::remove_file(&path).if_there().act("remove", &path)?;
        }
        // Whoever waited for the lock may be making it anew.
        let _ = fs::remove_dir(&self.dir);
        Ok(())
    }

    /// Whether there is a corner.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.dir.exists()
    }

    /// Waits until nothing of the jail is left.
    ///
    /// # Errors
    /// [`Error::Act`]. `Ok(false)`: something is still there.
    pub fn gone(&self, patience: Duration) -> Result<bool> {
        let path = self.dir.join("alive");
        let Some(file) = File::open(&path).if_there().act("open", &path)? else { return Ok(true) };
        wait(&file, FlockOperation::NonBlockingLockExclusive, patience)
    }
}

/// What a jail stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ground {
    /// Nothing of a jail is left.
    Nothing,
    /// Device and inode of each layer, topmost first.
    Layers(Vec<(u64, u64)>),
    /// There is a jail, and no note that could be read: it may be any layer.
    Unknown,
}

/// How layers are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layers {
    /// What is found stays where it is: for raising a jail, until it is noted what it stands on.
    Stay,
    /// One is about to be changed or removed. Not for long: no jail can be raised meanwhile.
    Change,
}

/// Locks all layers for as long as the value lives; waits for it, for 20 s at most.
///
/// # Errors
/// [`Error::Act`].
pub fn layers(how: Layers) -> Result<File> {
    let path = Path::new(paths::RUN).join("layers.lock");
    private_dir(Path::new(paths::RUN))?;
    let file = open_lock(&path)?;
    let operation = match how {
        Layers::Stay => FlockOperation::NonBlockingLockShared,
        Layers::Change => FlockOperation::NonBlockingLockExclusive,
    };
    patient(&file, operation, &path)?;
    Ok(file)
}

/// Where temporary jails have their corners.
#[must_use]
pub fn runs() -> PathBuf {
    Path::new(paths::RUN).join("runs")
}

/// Whether an overlay is mounted at this very place.
fn is_overlay(path: &Path) -> Result<bool> {
    let stat = match statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::TYPE) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(false),
        stat => stat.act("examine", path)?,
    };
    // Linux 5.8; what is not told by an older one is told by nobody.
    if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(false);
    }
    #[allow(clippy::unnecessary_cast, reason = "f_type has another width on some architectures")]
    Ok(statfs(path).act("examine the file system of", path)?.f_type as i64 == OVERLAY)
}

/// overlayfs (linux/magic.h).
pub(crate) const OVERLAY: i64 = 0x794c_7630;

/// Everyone who has a corner, running or not.
///
/// # Errors
/// [`Error::Act`] if `/run/ojail` cannot be read.
pub fn corners() -> Result<Vec<Corner>> {
    let dir = Path::new(paths::RUN).join("jails");
    let Some(entries) = fs::read_dir(&dir).if_there().act("list", &dir)? else { return Ok(Vec::new()) };
    let mut corners = Vec::new();
    for entry in entries {
        let name = entry.act("list", &dir)?.file_name();
        if let Some(user) = name.to_str().and_then(|name| Username::parse(name).ok()) {
            corners.push(Corner::of(&user));
        }
    }
    corners.sort_by(|a, b| a.user.cmp(&b.user));
    Ok(corners)
}

/// Locks a file of its own for as long as the value lives; waits for it, for 20 s at most.
///
/// # Errors
/// [`Error::Act`].
pub fn lock_file(path: &Path) -> Result<File> {
    if let Some(parent) = path.parent() {
        private_dir(parent)?;
    }
    let file = open_lock(path)?;
    patient(&file, FlockOperation::NonBlockingLockExclusive, path)?;
    Ok(file)
}

/// What came of an attempt to lock what must be there already.
#[derive(Debug)]
pub enum Tried {
    /// It is locked for as long as the value lives.
    Locked(File),
    /// Somebody else has it.
    Busy,
    /// It is not there, or not any more.
    Missing,
}

/// Locks a file or a directory, if it is there and nobody else has it.
///
/// # Errors
/// [`Error::Act`].
pub fn try_lock(path: &Path) -> Result<Tried> {
    let mut options = File::options();
    let Some(file) =
        options.read(true).custom_flags(libc::O_NOFOLLOW).open(path).if_there().act("open", path)?
    else {
        return Ok(Tried::Missing);
    };
    if !wait(&file, FlockOperation::NonBlockingLockExclusive, Duration::ZERO)? {
        return Ok(Tried::Busy);
    }
    // Whoever had it may have removed it, and a third made it anew.
    let own = file.metadata().act("examine", path)?;
    match fs::symlink_metadata(path) {
        Ok(meta) if (meta.dev(), meta.ino()) == (own.dev(), own.ino()) => Ok(Tried::Locked(file)),
        _ => Ok(Tried::Missing),
    }
}

/// Locks within the patience of a login, or says that it could not.
fn patient(file: &File, how: FlockOperation, path: &Path) -> Result<()> {
    if wait(file, how, PATIENCE)? {
        return Ok(());
    }
    let held = std::io::Error::other(format!("another process has held it for {} s", PATIENCE.as_secs()));
    Err(held).act("lock", path)
}

/// Makes a directory (and its parents) that only root can enter; refuses one that others can.
///
/// # Errors
/// [`Error::Unfit`] if it exists and is open to others, or belongs to somebody else.
pub fn private_dir(path: &Path) -> Result<()> {
    let meta = match fs::symlink_metadata(path).if_there().act("examine", path)? {
        Some(meta) => meta,
        None => {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path).act("create", path)?;
            fs::symlink_metadata(path).act("examine", path)?
        }
    };
    let why = if !meta.is_dir() {
        "is not a directory".to_owned()
    } else if meta.mode() & 0o077 != 0 {
        format!(
            "can be entered by others than root (mode {:04o}); `chmod 0700 {}`",
            meta.mode() & 0o7777,
            path.display()
        )
    } else if meta.uid() != rustix::process::geteuid().as_raw() {
        format!("belongs to uid {}; `chown root {}`", meta.uid(), path.display())
    } else {
        return Ok(());
    };
    Err(Error::Unfit { path: path.to_owned(), why })
}

fn open_lock(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .act("open", path)
}

/// Tries a lock until the patience is over. A login must not hang for good behind a process that was stopped.
fn wait(file: &File, how: FlockOperation, patience: Duration) -> Result<bool> {
    let until = Instant::now() + patience;
    let mut pause = Duration::from_micros(200);
    loop {
        match flock(file, how) {
            Ok(()) => return Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) if Instant::now() < until => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(false),
            Err(e) => return Err(e).act("lock", "a file in /run/ojail"),
        }
    }
}
