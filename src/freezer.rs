//! Holds everything in a running jail still, while its upper is copied, and lets go of it whatever happens. Host root, in `ojail`.
//!
//! By the freezer of cgroup v2, on the group that [`crate::cgroup`] has put the jail into. What would lift it is a process of its own,
//! the guard (`ojail` again, as [`guard`]): it freezes, and thaws when its standard input ends, however the one who held the other
//! end ended, and also when the time is up. A file in the user's corner, `frozen`, names the group, and the guard holds a lock on
//! it. Should somebody kill the guard too, the file is there and the lock is not: whoever next has to do with the jail
//! ([`crate::jail::door::Door::knock`]) thaws it.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};

use crate::cgroup::Tree;
use crate::error::{Act, Error, Result};
use crate::runtime::Corner;

/// The longest that a jail is held still.
pub const MOST: Duration = Duration::from_secs(600);

/// How long the kernel may take to stop everything: until the last system call that cannot be interrupted has returned.
const STOPPING: Duration = Duration::from_secs(10);

/// The verb by which `ojail` becomes the guard.
pub const GUARD: &str = "hold-still";

/// A jail that is held still. Dropped, it goes on.
#[derive(Debug)]
pub struct Frozen {
    corner: Corner,
    guard: Child,
    words: BufReader<std::process::ChildStdout>,
}

/// Holds the jail of this corner still, whose PID 1 is `init`. `members` tells every process of the jail, and is asked when nothing
/// can be added any more. The caller holds the user's lock.
///
/// # Errors
/// [`Error::Freeze`] if the jail is in no group of its own, or not all of it; [`Error::Act`].
pub fn freeze(corner: &Corner, init: i32, members: impl Fn() -> Option<Vec<i32>>) -> Result<Frozen> {
    let refuse = |why: String| Error::Freeze { user: corner.user().to_string(), why };
    let tree = Tree::find()?.ok_or_else(|| refuse("no cgroup v2 is mounted on this host".into()))?;
    let group = tree.around(corner.user(), init)?.ok_or_else(|| {
        refuse("it is in no control group of its own (that takes systemd, or a limit in the profile)".into())
    })?;
    if tree.holds(&group, std::process::id().try_into().unwrap_or(0))? {
        return Err(refuse(
            "this command itself runs in the user's control group; run it from another session".into(),
        ));
    }
    let program = fs::read_link("/proc/self/exe").act("find", "the program of ojail")?;
    let mut guard = Command::new(&program)
        .args([GUARD, corner.user().as_str()])
        .arg(&group)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .act("run", &program)?;
    let Some(words) = guard.stdout.take() else { return Err(refuse("its guard has no voice".into())) };
    let mut frozen = Frozen { corner: corner.clone(), guard, words: BufReader::new(words) };
    match frozen.word().as_str() {
        "frozen" => {}
        why => return Err(refuse(why.to_owned())),
    }
    // Nobody in the group can start anything now. Who is outside of it came in by a way that has no group, like `ojail enter`.
    for pid in members().ok_or_else(|| refuse("its processes cannot be told apart from the host's".into()))? {
        // One that has ended meanwhile writes nothing.
        if matches!(tree.holds(&group, pid), Ok(false)) {
            return Err(refuse(format!(
                "process {pid} of it is not in its control group, {}",
                group.display()
            )));
        }
    }
    Ok(frozen)
}

impl Frozen {
    /// Lets the jail go on. Only after this is it known that it was still all the time.
    ///
    /// # Errors
    /// [`Error::Freeze`] if it was not.
    pub fn thaw(mut self) -> Result<()> {
        drop(self.guard.stdin.take());
        let why = match self.word().as_str() {
            "thawed" => return Ok(()),
            "late" => format!("that took longer than {} minutes", MOST.as_secs() / 60),
            "" => "its guard was killed".to_owned(),
            why => why.to_owned(),
        };
        Err(Error::Freeze { user: self.corner.user().to_string(), why })
    }

    /// A line of the guard's.
    fn word(&mut self) -> String {
        let mut line = String::new();
        let _ = self.words.read_line(&mut line);
        line.trim_end().to_owned()
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
        // If it was killed.
        thaw_abandoned(&self.corner);
    }
}

fn marker(corner: &Corner) -> PathBuf {
    corner.dir().join("frozen")
}

/// Whether the jail is held still at the moment.
#[must_use]
pub fn is_frozen(corner: &Corner) -> bool {
    marker(corner).exists()
}

/// Lets a jail go on that nobody holds still any more: whoever did was killed, and the guard too. Costs one look for a file.
pub fn thaw_abandoned(corner: &Corner) {
    let path = marker(corner);
    let Ok(mut file) = File::options().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(&path)
    else {
        return;
    };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return;
    }
    let mut group = String::new();
    if file.read_to_string(&mut group).is_ok() && !group.is_empty() {
        // It may have gone together with all that was in it.
        let _ = fs::write(Path::new(&group).join("cgroup.freeze"), "0");
    }
    let _ = fs::remove_file(&path);
}

/// The guard's whole life. Says how it came out, a word a line, to who started it.
///
/// # Errors
/// None: they are said.
pub fn guard(corner: &Corner, group: &Path) {
    // Neither the end of a terminal nor a signal to the whole session may end it before its work is done.
    let _ = nix::unistd::setsid();
    let _ = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None);
    let mut out = io::stdout();
    let mut tell = |word: &str| {
        let _ = writeln!(out, "{word}").and_then(|()| out.flush());
    };
    let stdin = io::stdin();
    let said = match hold(&marker(corner), group, stdin.as_fd(), MOST, &mut tell) {
        Ok(word) => word.to_owned(),
        Err(e) => e.to_string().replace('\n', " "),
    };
    tell(&said);
}

/// Freezes, until `held` ends or the time is up, and thaws. Returns which it was.
fn hold(
    marker: &Path,
    group: &Path,
    held: BorrowedFd<'_>,
    most: Duration,
    tell: &mut impl FnMut(&str),
) -> Result<&'static str> {
    let until = Instant::now() + most;
    let mark = mark(marker, group)?;
    let freeze = group.join("cgroup.freeze");
    let word = (|| {
        fs::write(&freeze, "1").act("write", &freeze)?;
        stopped(group)?;
        tell("frozen");
        loop {
            if !readable(held, PollFlags::IN, until)? {
                return Ok("late");
            }
            // Nothing is ever said; this is the end.
            match rustix::io::read(held, &mut [0; 1][..]) {
                Ok(0) => return Ok("thawed"),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e).act("hear from", "ojail"),
            }
        }
    })();
    let thawed = fs::write(&freeze, "0").act("write", &freeze);
    if thawed.is_ok() {
        let _ = fs::remove_file(marker);
    }
    drop(mark);
    let word = word?;
    thawed.map(|()| word)
}

/// Makes the marker, and locks it: first, so that nothing is ever frozen without one.
fn mark(path: &Path, group: &Path) -> Result<File> {
    loop {
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .act("create", path)?;
        flock(&file, FlockOperation::LockExclusive).act("lock", path)?;
        // Somebody who took it for abandoned may have removed it in between.
        let is = fs::symlink_metadata(path).map(|meta| meta.ino()).ok();
        if is == Some(file.metadata().act("examine", path)?.ino()) {
            file.set_len(0).act("write", path)?;
            file.write_all(group.as_os_str().as_encoded_bytes()).act("write", path)?;
            return Ok(file);
        }
    }
}

/// Waits until everything in the group stands still.
fn stopped(group: &Path) -> Result<()> {
    let path = group.join("cgroup.events");
    let until = Instant::now() + STOPPING;
    let mut file = File::open(&path).act("open", &path)?;
    loop {
        let mut text = String::new();
        file.read_to_string(&mut text).act("read", &path)?;
        if text.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        if !readable(file.as_fd(), PollFlags::PRI, until)? {
            let why = format!("not everything in it stood still within {} s", STOPPING.as_secs());
            return Err(io::Error::other(why)).act("freeze", group);
        }
        io::Seek::rewind(&mut file).act("read", &path)?;
    }
}

fn readable(fd: BorrowedFd<'_>, what: PollFlags, until: Instant) -> Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&fd, what)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready.act("wait for", "an event")? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What looks like a control group that has stopped at once.
    fn group() -> tempfile::TempDir {
        let group = tempfile::tempdir().unwrap();
        fs::write(group.path().join("cgroup.freeze"), "0").unwrap();
        fs::write(group.path().join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        group
    }

    #[test]
    fn a_jail_is_held_until_the_other_end_is_gone_or_the_time_is_up() {
        let group = group();
        let marker = group.path().join("marker");
        let state = || fs::read_to_string(group.path().join("cgroup.freeze")).unwrap();
        let hold = |held: BorrowedFd<'_>, most| {
            let mut told = Vec::new();
            let word = hold(&marker, group.path(), held, most, &mut |word: &str| {
                assert_eq!(state(), "1");
                assert_eq!(fs::read_to_string(&marker).unwrap(), group.path().to_str().unwrap());
                told.push(word.to_owned());
            });
            (told, word.unwrap())
        };
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(hold(reader.as_fd(), Duration::from_millis(30)), (vec!["frozen".to_owned()], "late"));
        assert_eq!(state(), "0");
        drop(writer);
        assert_eq!(hold(reader.as_fd(), MOST), (vec!["frozen".to_owned()], "thawed"));
        assert_eq!(state(), "0");
        assert!(!marker.exists());
    }
}
