//! A command in a jail, with its streams carried: what `ojail enter`, `ojail run` and `ojail layer derive` share.
//!
//! Three processes. This one stays on the host and only carries bytes. Its child joins the jail and is confined like
//! any login process. The grandchild, inside the jail's PID namespace, becomes the user. The administrator's own
//! terminal and files never get into the jail, so nothing in there can push input into the one (TIOCSTI) or open the other anew.
//!
//! The socket between the first two says what the streams cannot: which signals are to be handed on, and, by its end, that the first
//! has died. Then the session is hung up, as a login's is.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, initgroups, setgid, setuid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, recv, recvmsg, sendmsg, socketpair,
};
use rustix::process::{PidfdFlags, pidfd_open};

use super::terminal::{Carrier, Hear, Streams};
use crate::account::Account;
use crate::error::{Act, Error, Result};
use crate::jail::door::House;
use crate::jail::join;
use crate::sys::{self, Forked, OneThread};

/// What is run.
pub(super) struct Job<'a> {
    /// Whom it runs as, with the ids of inside.
    pub(super) account: &'a Account,
    /// A command instead of the user's shell.
    pub(super) command: &'a [OsString],
    /// Whether it gets a terminal of its own.
    pub(super) terminal: bool,
    /// Variables besides the usual ones.
    pub(super) environment: &'a [(OsString, OsString)],
}

/// Which process goes on with the caller's story.
pub(super) enum Side {
    /// The caller's own, with the status to end with.
    Host(ExitCode),
    /// The one that was in the jail: it has nothing to do any more but to end.
    Jail(ExitCode),
}

/// [`Side`], with more to tell.
pub(super) enum Outcome {
    /// The caller's own process.
    Host {
        /// As a shell would tell it.
        status: u8,
        /// The last signal that was handed on to the session.
        signal: Option<Signal>,
    },
    /// The one that was in the jail, with the status to end with.
    Jail(u8),
}

/// Runs it to its end. `enter` moves the child into a jail and confines it.
///
/// # Errors
/// Those of `enter`, and what goes wrong with the streams. Always in the caller's own process.
pub(super) fn run(job: &Job<'_>, enter: impl FnOnce() -> Result<(join::Session, House)>) -> Result<Side> {
    Ok(match carried(job, enter, None)? {
        Outcome::Host { status, .. } => Side::Host(ExitCode::from(status)),
        Outcome::Jail(status) => Side::Jail(ExitCode::from(status)),
    })
}

/// As [`run`], without a terminal; it has nothing to read, and `hear` gets all that it says.
///
/// # Errors
/// As [`run`], and those of `hear`.
pub(super) fn heard(
    job: &Job<'_>,
    enter: impl FnOnce() -> Result<(join::Session, House)>,
    hear: Hear<'_>,
) -> Result<Outcome> {
    carried(job, enter, Some(hear))
}

fn carried(
    job: &Job<'_>,
    enter: impl FnOnce() -> Result<(join::Session, House)>,
    hear: Option<Hear<'_>>,
) -> Result<Outcome> {
    let alone = OneThread::prove().act("fork", "a process with several threads")?;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .act("make", "a socket pair")?;
    match sys::fork_into(alone, CloneFlags::empty()).act("fork", "a process for the jail")? {
        Forked::Child => {
            drop(ours);
            let status = match inside(job, enter, &theirs, alone) {
                Ok(status) => status,
                Err(error) => {
                    let _ = rustix::net::send(&theirs, error.to_string().as_bytes(), SendFlags::NOSIGNAL);
                    1
                }
            };
            Ok(Outcome::Jail(status))
        }
        Forked::Parent(child) => {
            drop(theirs);
            let carried = receive(&ours, job.terminal)
                .and_then(|streams| Carrier::new(streams, child, &ours)?.carry(hear));
            if carried.is_err() {
                // The child sees it as our end, and hangs up.
                let _ = rustix::net::shutdown(&ours, Shutdown::Both);
            }
            let status = waitpid(child, None).act("wait for", "the session")?;
            let signal = carried?;
            // What went wrong after the streams were there.
            let mut text = [0; 4096];
            if let Ok((_, length @ 1..)) = recv(&ours, &mut text[..], RecvFlags::DONTWAIT) {
                return Err(Error::NotRaised(String::from_utf8_lossy(&text[..length]).into_owned()));
            }
            Ok(Outcome::Host { status: code(status), signal })
        }
    }
}

/// The child: joins the jail, makes the streams, and waits for the grandchild. Returns its exit status.
fn inside(
    job: &Job<'_>,
    enter: impl FnOnce() -> Result<(join::Session, House)>,
    to: &OwnedFd,
    alone: OneThread,
) -> Result<u8> {
    // What the terminal sends to the foreground is for the process on the host to hand on; this one must outlive it.
    nix::unistd::setsid().act("start", "a session")?;
    let (session, house) = enter()?;
    // The streams are the jail's from the start, and only their far ends go to the host.
    let (near, far) =
        if job.terminal { Streams::on_a_terminal(job.account.uid)? } else { Streams::on_pipes()? };
    send(to, &far)?;
    drop(far);
    match sys::fork_into(alone, CloneFlags::empty()).act("fork", "a process in the jail")? {
        Forked::Child => {
            let error = become_user(job, &house, near);
            let end = if job.terminal { "\r\n" } else { "\n" };
            // Standard error is the session's by now, or the pipe that leads there.
            let _ = io::Write::write_all(&mut io::stderr(), format!("ojail: {error}{end}").as_bytes());
            // As shells have it.
            let missing = matches!(&error, Error::Act { act: RUN, source, .. } if source.kind() == io::ErrorKind::NotFound);
            Ok(if missing { 127 } else { 126 })
        }
        Forked::Parent(child) => {
            drop(near);
            let status = attend(child, to)?;
            drop(session);
            Ok(code(status))
        }
    }
}

/// How long a session has between a hang-up and its end.
const GRACE: Duration = Duration::from_secs(2);

/// Waits for the grandchild, and hands on signals meanwhile.
fn attend(child: Pid, from: &OwnedFd) -> Result<WaitStatus> {
    let wait = || waitpid(child, None).act("wait for", "the session");
    // A profile may deny this call. Then nothing is handed on, and nothing else is lost.
    let Some(pid) = rustix::process::Pid::from_raw(child.as_raw()) else { return wait() };
    let Ok(ended) = pidfd_open(pid, PidfdFlags::empty()) else { return wait() };
    let mut deadline: Option<Instant> = None;
    loop {
        let mut fds = vec![PollFd::new(&ended, PollFlags::IN)];
        if deadline.is_none() {
            fds.push(PollFd::new(from, PollFlags::IN));
        }
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).act("poll", "the session"),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        if ready.first() == Some(&true) {
            return wait();
        }
        if ready.get(1) == Some(&true) {
            let mut message = [0u8; 1];
            match recv(from, &mut message[..], RecvFlags::DONTWAIT) {
                Ok((_, 1)) => {
                    if let Ok(signal) = Signal::try_from(i32::from(message[0])) {
                        hand_on(child, signal);
                    }
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                // The process on the host is dead, and nobody will read what this session says.
                _ => {
                    for signal in [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGCONT] {
                        hand_on(child, signal);
                    }
                    deadline = Some(Instant::now() + GRACE);
                }
            }
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            hand_on(child, Signal::SIGKILL);
            return wait();
        }
    }
}

/// To the grandchild's process group; to itself alone while it has none yet.
fn hand_on(child: Pid, signal: Signal) {
    if kill(Pid::from_raw(-child.as_raw()), signal).is_err() {
        let _ = kill(child, signal);
    }
}

/// The act of the last step, whose failure has a status of its own.
const RUN: &str = "run";

/// Becomes the user, with the shell or the command. Returns only with the reason why it could not.
fn become_user(job: &Job<'_>, house: &House, near: Vec<OwnedFd>) -> Error {
    match prepare(job, house, near) {
        Ok(mut command) => {
            let what = command.get_program().to_string_lossy().into_owned();
            Error::Act { act: RUN, what, source: command.exec() }
        }
        Err(error) => error,
    }
}

fn prepare(job: &Job<'_>, house: &House, near: Vec<OwnedFd>) -> Result<Command> {
    let account = job.account;
    nix::unistd::setsid().act("start", "a session")?;
    if job.terminal {
        if let Some(tty) = near.first() {
            rustix::process::ioctl_tiocsctty(tty).act("take", "the terminal")?;
        }
    }
    let name = CString::new(account.name.as_str()).map_err(io::Error::from).act("become", &account.name)?;
    // From the jail's own group file: the groups that exist inside.
    let gid = Gid::from_raw(account.gid);
    initgroups(&name, gid).act("set the groups of", &account.name)?;
    setgid(gid).act("become", &account.name)?;
    setuid(Uid::from_raw(account.uid)).act("become", &account.name)?;
    let home =
        if rustix::process::chdir(&account.home).is_ok() { account.home.as_path() } else { Path::new("/") };

    let shell = &account.shell;
    let mut command = match job.command.split_first() {
        Some((program, rest)) => {
            let mut command = Command::new(program);
            command.args(rest);
            command
        }
        None => {
            let mut command = Command::new(shell);
            let name = shell.file_name().unwrap_or(shell.as_os_str());
            command.arg0(OsString::from_iter([OsStr::new("-"), name]));
            command
        }
    };
    command
        .env_clear()
        .env("HOME", home)
        .env("USER", &account.name)
        .env("LOGNAME", &account.name)
        .env("SHELL", shell)
        // As login(1) has it in Debian.
        .env(
            "PATH",
            match account.uid {
                0 => "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                _ => "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games",
            },
        )
        .env("XDG_RUNTIME_DIR", &house.runtime_dir);
    for variable in ["TERM", "LANG"] {
        if let Some(value) = std::env::var_os(variable).filter(|value| value.as_bytes().is_ascii()) {
            command.env(variable, value);
        }
    }
    command.envs(job.environment.iter().map(|(name, value)| (name, value)));
    let mut near = near.into_iter().map(File::from);
    for set in
        [Command::stdin, Command::stdout, Command::stderr] as [fn(&mut Command, Stdio) -> &mut Command; 3]
    {
        if let Some(stream) = near.next() {
            set(&mut command, Stdio::from(stream));
        }
    }
    Ok(command)
}

/// Sends the far ends to the process on the host.
fn send(to: &OwnedFd, far: &[OwnedFd]) -> Result<()> {
    let fds: Vec<_> = far.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    // An empty text: no error.
    sendmsg(to, &[IoSlice::new(b"\0")], &mut control, SendFlags::NOSIGNAL).act("hand over", "the streams")?;
    Ok(())
}

/// Receives the far ends, or the reason why there are none.
fn receive(from: &OwnedFd, terminal: bool) -> Result<Vec<OwnedFd>> {
    let mut text = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(from, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .act("receive", "the streams of the session")?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let wanted = if terminal { 1 } else { 3 };
    if fds.len() == wanted {
        return Ok(fds);
    }
    let text = String::from_utf8_lossy(&text[..got.bytes]).into_owned();
    Err(Error::NotRaised(if text.is_empty() { "the session ended before it began".into() } else { text }))
}

/// As a shell would tell it.
fn code(status: WaitStatus) -> u8 {
    match status {
        WaitStatus::Exited(_, code) => u8::try_from(code & 0xff).unwrap_or(1),
        WaitStatus::Signaled(_, signal, _) => u8::try_from(128 + signal as i32).unwrap_or(1),
        _ => 1,
    }
}
