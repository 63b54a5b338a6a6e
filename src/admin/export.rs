//! `ojail export USER FILE|-`: what a user changed as the tar of one OCI layer ([`crate::oci::tar`]), which `ojail import` makes an
//! upper of on any host, and which goes on top of an image of the layers with any tool for such images.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, linkat, openat, renameat, renameat_with, statat,
    unlinkat,
};
use rustix::io::Errno;

use super::backup::{complain, progress, spooled};
use super::snapshot::room;
use super::status::bytes;
use super::still::{Choice, Still};
use super::{configuration, say, stop, username};
use crate::account::Username;
use crate::archive::Digesting;
use crate::config::Config;
use crate::error::{Act, Error, Result};
use crate::log::{Level, Log};
use crate::runtime::{Corner, private_dir};
use crate::walk;
use crate::{lower, oci, store};

#[derive(Debug, clap::Args)]
pub(super) struct Export {
    /// Whose changes
    user: String,
    /// Where to: a file that is not there yet, or `-` for standard output
    #[arg(value_name = "FILE")]
    to: PathBuf,
    /// Freeze a running jail for as long as it is read (the default)
    #[arg(long, conflicts_with = "end")]
    freeze: bool,
    /// End a running jail first; refused while sessions are open
    #[arg(long)]
    end: bool,
    /// Overwrite FILE; with --end, end open sessions too
    #[arg(long)]
    force: bool,
}

pub(super) fn run(export: &Export) -> Result<ExitCode> {
    let user = username(&export.user)?;
    stop::known(&user)?;
    let config = configuration()?;
    let corner = Corner::of(&user);
    // Held to the end: a jail that is not running stays so, and one that is, is ours alone to let go on.
    let _lock = corner.lock()?;
    let upper = config.storage.upperdirs.join(&user);
    if !store::owners(&config.storage)?.contains(&user) {
        return Err(Error::NoUpper { user: user.to_string(), path: upper });
    }
    let choice = Choice::of(export.end, export.force);
    let size = walk::size(walk::open(&upper)?)?;
    // In a layer, a file with holes is as large as it looks.
    let length = walk::size_as_copied(walk::open(&upper)?)?.bytes.max(size.bytes);
    let (digest, said) = if export.to.as_os_str() == OsStr::new("-") {
        if io::stdout().is_terminal() {
            return Err(Error::Terminal);
        }
        // Nobody is held still for longer than it takes to read, however slow the reader of this is.
        let spool = spool(&config)?;
        room(&spool, walk::open(&spool)?, length)?;
        let mut file = spooled(&spool)?;
        let digest = pack(&corner, &upper, length, &choice, &file, false)?;
        file.rewind().act("read", &spool)?;
        let mut out = io::stdout();
        io::copy(&mut file, &mut out).and_then(|_| out.flush()).act("write", "standard output")?;
        (digest, complain as fn(&dyn std::fmt::Display))
    } else {
        let to = Whole::new(&export.to, export.force)?;
        room(&export.to, &to.dir, length)?;
        let digest = pack(&corner, &upper, length, &choice, &to.file, true)?;
        to.finish()?;
        (digest, (|line| say(line)) as fn(&dyn std::fmt::Display))
    };
    said(&format_args!(
        "What {user} has changed ({}, {} files and directories) is the layer sha256:{digest}; \
         `ojail import` makes a user's changes of it.",
        bytes(size.bytes),
        size.inodes
    ));
    log("export", &user, &export.to);
    Ok(ExitCode::SUCCESS)
}

/// Where a stream waits until all of it is there.
pub(super) fn spool(config: &Config) -> Result<PathBuf> {
    let asidedirs = config.storage.asidedirs.clone();
    store::roots_own_way(&asidedirs)?;
    private_dir(&asidedirs)?;
    Ok(asidedirs)
}

/// Writes the layer while the jail keeps still. Returns its SHA-256.
fn pack(
    corner: &Corner,
    upper: &Path,
    length: u64,
    choice: &Choice,
    to: &File,
    talk: bool,
) -> Result<String> {
    let bar = progress();
    bar.set_length(length);
    let mut to = BufWriter::with_capacity(1 << 16, Digesting::new(to, &bar));
    let still = choice.hold(corner)?;
    if matches!(still, Still::Ended) && talk {
        say(format_args!("The jail of {} has ended.", corner.user()));
    }
    let packed = lower::view(upper).and_then(|dir| oci::tar::write(dir.as_fd(), &mut to));
    // It goes on at once, also if there is something to complain about.
    let held = still.done();
    packed?;
    held?;
    let to = to.into_inner().map_err(io::IntoInnerError::into_error).act("write", "a layer")?;
    bar.finish_and_clear();
    Ok(to.end().0)
}

pub(super) fn log(event: &str, user: &Username, file: &Path) {
    Log::open("ojail").event(Level::Info, event, &[("user", user), ("file", &file.display())]);
}

/// A file that is there when it is whole, and not before.
struct Whole {
    path: PathBuf,
    dir: OwnedFd,
    name: CString,
    file: File,
    /// Its name until then, where a file system has no files without one.
    named: Option<CString>,
    force: bool,
}

impl Whole {
    fn new(path: &Path, force: bool) -> Result<Self> {
        let bad = |why: &str| Error::Unfit { path: path.to_owned(), why: why.into() };
        let name = path.file_name().ok_or_else(|| bad("is no name of a file"))?;
        let above = match path.parent() {
            Some(above) if above != Path::new("") => above,
            _ => Path::new("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, above, flags, Mode::empty()).act("open", above)?;
        let name = CString::new(name.as_bytes()).map_err(io::Error::from).act("name", path)?;
        match statat(&dir, &*name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e).act("examine", path),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile => {
                return Err(bad("is there already, and no plain file"));
            }
            Ok(_) if !force => return Err(bad("is there already; `--force` overwrites it")),
            Ok(_) => {}
        }
        // What a jail has in it is nobody's but root's.
        let mode = Mode::RUSR | Mode::WUSR;
        let (file, named) = match openat(&dir, c".", OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC, mode)
        {
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let named = beside(&name)?;
                let _ = unlinkat(&dir, &*named, AtFlags::empty());
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                (openat(&dir, &*named, flags, mode).act("create", path)?, Some(named))
            }
            file => (file.act("create", path)?, None),
        };
        Ok(Self { path: path.to_owned(), dir, name, file: file.into(), named, force })
    }

    /// Gives it its name, in one step.
    fn finish(mut self) -> Result<()> {
        self.file.sync_all().act("write", &self.path)?;
        let taken = |e| match e {
            Errno::EXIST => Error::Unfit {
                path: self.path.clone(),
                why: "has come there meanwhile; `--force` overwrites it".into(),
            },
            e => Error::Act { act: "create", what: self.path.display().to_string(), source: e.into() },
        };
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        match (&self.named, self.force) {
            (None, false) => {
                linkat(CWD, own, &self.dir, &*self.name, AtFlags::SYMLINK_FOLLOW).map_err(taken)?;
            }
            (None, true) => {
                let named = beside(&self.name)?;
                // Of one that was killed.
                let _ = unlinkat(&self.dir, &*named, AtFlags::empty());
                linkat(CWD, own, &self.dir, &*named, AtFlags::SYMLINK_FOLLOW).map_err(taken)?;
                renameat(&self.dir, &*named, &self.dir, &*self.name).map_err(taken)?;
            }
            (Some(named), true) => {
                renameat(&self.dir, &**named, &self.dir, &*self.name).map_err(taken)?;
            }
            (Some(named), false) => {
                match renameat_with(&self.dir, &**named, &self.dir, &*self.name, RenameFlags::NOREPLACE) {
                    // NFS knows links only.
                    Err(Errno::INVAL) => {
                        linkat(&self.dir, &**named, &self.dir, &*self.name, AtFlags::empty())
                            .map_err(taken)?;
                        unlinkat(&self.dir, &**named, AtFlags::empty()).act("remove", &self.path)?;
                    }
                    renamed => renamed.map_err(taken)?,
                }
            }
        }
        self.named = None;
        rustix::fs::fsync(&self.dir).act("sync the directory of", &self.path)
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        if let Some(named) = &self.named {
            let _ = unlinkat(&self.dir, &**named, AtFlags::empty());
        }
    }
}

/// A name for what is not whole yet, always the same, so that the next one finds what a kill left.
fn beside(name: &CString) -> Result<CString> {
    let name = [b".", name.to_bytes(), b".new"].concat();
    CString::new(name).map_err(io::Error::from).act("name", "a new file")
}
