//! A tool of the host's that fills a tree, as root of the host: `mmdebstrap`, `debootstrap`.
//!
//! It runs in mount and PID namespaces of its own: what it mounts is in nobody's mount table, and nothing of it outlives it. It ends
//! with `ojail`, however that ends (prctl(2), `PR_SET_PDEATHSIG`), and each of its processes holds the workshop for as long as it
//! lives, so that nobody clears a directory in which one still writes.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd};

use super::super::terminal::hold;
use super::journal::Journal;
use crate::error::{Act, Result};

/// How an errand came to its end.
#[derive(Debug)]
pub(super) enum Ended {
    /// By itself.
    Itself(ExitStatus),
    /// It was killed, because `ojail` was told to end.
    Interrupted(Signal),
}

/// Runs a tool to its end. `held` is a descriptor with the lock of the workshop; what the tool writes elsewhere goes to `scratch`.
///
/// # Errors
/// [`crate::Error::Act`].
pub(super) fn run(words: &[String], held: &File, scratch: &Path, journal: &mut Journal) -> Result<Ended> {
    journal.note(&words.join(" "))?;
    // They stay held: what comes after the tool is short, and comes to its end.
    let told = SignalFd::with_flags(&hold()?, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .act("watch", "signals")?;
    // Whose parent ends before them are ours to wait for.
    set_child_subreaper(true).act("become", "the reaper of the tool's processes")?;
    let (mut child, said) = start(words, held, scratch)?;
    attend(&mut child, said, &told, journal).inspect_err(|_| end(&mut child))
}

fn start(words: &[String], held: &File, scratch: &Path) -> Result<(Child, File)> {
    // setpriv(1) and unshare(1) are util-linux', which is essential in Debian.
    let mut command = Command::new("setpriv");
    command
        .args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--",
        ])
        .args(words);
    // Not that of a terminal's foreground, which gets the signals of its keys: those are ours to hear.
    command.process_group(0).stdin(Stdio::null());
    command.env_clear();
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.envs([("HOME", "/root"), ("LANG", "C.UTF-8"), ("DEBIAN_FRONTEND", "noninteractive")]);
    command.env("TMPDIR", scratch);
    command.envs(super::proxies());
    let (said, to) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).act("make", "a pipe")?;
    let copy = to.try_clone().act("copy", "a descriptor")?;
    command.stdout(copy).stderr(to);
    // A copy that is not closed when a program is executed. No other program is started while it is there.
    let held = held.try_clone().act("copy", "a descriptor")?;
    fcntl_setfd(&held, FdFlags::empty()).act("hand on", "the lock of the workshop")?;
    let child = command.spawn().act("run", "setpriv")?;
    Ok((child, said.into()))
}

/// Takes in what the tool says, until it has ended.
fn attend(child: &mut Child, mut said: File, told: &SignalFd, journal: &mut Journal) -> Result<Ended> {
    let mut buffer = [0; 16 * 1024];
    loop {
        let mut fds =
            [PollFd::new(&said, PollFlags::IN), PollFd::from_borrowed_fd(told.as_fd(), PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).act("poll", "what the tool says"),
        }
        let [heard, interrupted] = fds.map(|fd| !fd.revents().is_empty());
        if interrupted {
            if let Ok(Some(signal)) = told.read_signal() {
                end(child);
                let signal =
                    i32::try_from(signal.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
                return Ok(Ended::Interrupted(signal.unwrap_or(Signal::SIGTERM)));
            }
        }
        if heard {
            match said.read(&mut buffer) {
                // The end of all its processes: each has the other end.
                Ok(0) => return reap(child).act("wait for", "the tool").map(Ended::Itself),
                Ok(length) => journal.hear(&buffer[..length])?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).act("read", "what the tool says"),
            }
        }
    }
}

/// Kills the tool, and waits until nothing of it is left. unshare(1) takes its child along, and that is PID 1 of all the others; the
/// signal goes to both, should unshare(1) not have come to arranging that.
fn end(child: &mut Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = reap(child);
}

/// Waits for unshare(1), and for the PID 1 that it leaves if it is killed: that has ended when all its namespace has
/// (pid_namespaces(7)), and only then the tree is no one's.
fn reap(child: &mut Child) -> io::Result<ExitStatus> {
    let status = child.wait()?;
    loop {
        match waitpid(None, None) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(nix::Error::ECHILD) => return Ok(status),
            Err(e) => return Err(e.into()),
        }
    }
}
