//! `ojail enter USER [-- COMMAND]`: a session in the jail without SSH, on a terminal of the jail's own.
//!
//! Three processes. This one stays on the host and only carries bytes. Its child joins the jail and is confined like
//! any login process. The grandchild, inside the jail's PID namespace, becomes the user. The administrator's own
//! terminal never gets into the jail, so nothing in there can push input into it (TIOCSTI).

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, IsTerminal};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use nix::sched::CloneFlags;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Uid, initgroups, setgid, setuid};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::terminal::{Carrier, Streams};
use super::{configuration, jailed};
use crate::account::Account;
use crate::error::{Act, Error, Result};
use crate::jail::door::House;
use crate::jail::login::{self, Login, Visitor};
use crate::log::Log;
use crate::sys::{self, Forked, OneThread};

pub(super) fn run(user: &str, command: &[OsString]) -> Result<ExitCode> {
    let config = configuration()?;
    let (account, _) = jailed(&config, user)?;
    let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let alone = OneThread::prove().act("fork", "a process with several threads")?;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .act("make", "a socket pair")?;
    match sys::fork_into(alone, CloneFlags::empty()).act("fork", "a process for the jail")? {
        Forked::Child => {
            drop(ours);
            let status = match inside(&account, command, terminal, &theirs, alone) {
                Ok(status) => status,
                Err(error) => {
                    let _ = rustix::net::send(&theirs, error.to_string().as_bytes(), SendFlags::NOSIGNAL);
                    1
                }
            };
            Ok(ExitCode::from(status))
        }
        Forked::Parent(child) => {
            drop(theirs);
            let streams = receive(&ours, terminal)?;
            Carrier::new(streams, child)?.carry()?;
            let status = waitpid(child, None).act("wait for", "the session")?;
            Ok(ExitCode::from(code(status)))
        }
    }
}

/// The child: joins the jail, makes the streams, and waits for the grandchild. Returns its exit status.
fn inside(
    account: &Account,
    command: &[OsString],
    terminal: bool,
    to: &OwnedFd,
    alone: OneThread,
) -> Result<u8> {
    let visitor = Visitor { user: account.name.clone(), service: "enter".into(), from: String::new() };
    let (session, house) = match login::open(&visitor, &mut Log::open("ojail"))? {
        Login::Jailed { session, house } => (session, house),
        Login::Exempt(why) => {
            return Err(Error::NotJailed { user: account.name.clone(), why: why.to_string() });
        }
    };
    // The streams are the jail's from the start, and only their far ends go to the host.
    let (near, far) = if terminal { Streams::on_a_terminal(account.uid)? } else { Streams::on_pipes()? };
    send(to, &far)?;
    drop(far);
    match sys::fork_into(alone, CloneFlags::empty()).act("fork", "a process in the jail")? {
        Forked::Child => {
            let error = become_user(account, command, &house, near, terminal);
            // Standard error is the session's by now, or the pipe that leads there.
            let _ = io::Write::write_all(&mut io::stderr(), format!("ojail: {error}\r\n").as_bytes());
            Ok(127)
        }
        Forked::Parent(child) => {
            drop(near);
            let status = waitpid(child, None).act("wait for", "the session")?;
            drop(session);
            Ok(code(status))
        }
    }
}

/// Becomes the user, with the shell or the command. Returns only with the reason why it could not.
fn become_user(
    account: &Account,
    command: &[OsString],
    house: &House,
    near: Vec<OwnedFd>,
    terminal: bool,
) -> Error {
    match prepare(account, command, house, near, terminal) {
        Ok(mut command) => {
            let what = command.get_program().to_string_lossy().into_owned();
            Error::Act { act: "run", what, source: command.exec() }
        }
        Err(error) => error,
    }
}

fn prepare(
    account: &Account,
    arguments: &[OsString],
    house: &House,
    near: Vec<OwnedFd>,
    terminal: bool,
) -> Result<Command> {
    nix::unistd::setsid().act("start", "a session")?;
    if terminal {
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
    let mut command = match arguments.split_first() {
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
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games")
        .env("XDG_RUNTIME_DIR", &house.runtime_dir);
    for variable in ["TERM", "LANG"] {
        if let Some(value) = std::env::var_os(variable).filter(|value| value.as_bytes().is_ascii()) {
            command.env(variable, value);
        }
    }
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
