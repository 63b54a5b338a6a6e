//! Carrying bytes between the administrator's streams and those of a session in a jail.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, pidfd_open};
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::error::{Act, Result};

/// The two sides of a session's standard streams: what its process gets, and what the carrier holds.
#[derive(Debug)]
pub(super) struct Streams;

type Ends = (Vec<OwnedFd>, Vec<OwnedFd>);

impl Streams {
    /// A new pty of the jail that this process is in, owned by the user. The far side is its master.
    pub(super) fn on_a_terminal(uid: u32) -> Result<Ends> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .act("open", "/dev/ptmx")?;
        unlockpt(&master).act("unlock", "the terminal")?;
        let name = ptsname(&master, Vec::new()).act("name", "the terminal")?;
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        let slave = rustix::fs::open(&*name, flags, rustix::fs::Mode::empty()).act("open", "the terminal")?;
        // Owned by the user, so that `mesg` and tmux work; the group and mode come from how devpts is mounted.
        nix::unistd::fchown(&slave, Some(uid.into()), None).act("give away", "the terminal")?;
        let copy = || slave.try_clone().act("copy", "a descriptor");
        Ok((vec![copy()?, copy()?, slave], vec![master]))
    }

    /// Three pipes. The far side is: where to write input, where to read output, where to read errors.
    pub(super) fn on_pipes() -> Result<Ends> {
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).act("make", "a pipe");
        let ((stdin, input), (output, stdout), (errors, stderr)) = (pipe()?, pipe()?, pipe()?);
        Ok((vec![stdin, stdout, stderr], vec![input, output, errors]))
    }
}

/// What takes the words of a session that are not for the administrator's own streams.
pub(super) type Hear<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;

/// Carries bytes until the session's process has ended.
pub(super) struct Carrier<'a> {
    far: Vec<OwnedFd>,
    child: OwnedFd,
    /// Takes the signals that the session is to have.
    session: &'a OwnedFd,
    signals: SignalFd,
    /// The administrator's terminal as it was; restored at the end.
    before: Option<Termios>,
}

impl<'a> Carrier<'a> {
    /// Takes the far ends of a session whose process on the host is `child`, and hears `session`.
    pub(super) fn new(far: Vec<OwnedFd>, child: Pid, session: &'a OwnedFd) -> Result<Self> {
        let child =
            rustix::process::Pid::from_raw(child.as_raw()).ok_or(Errno::SRCH).act("find", "the session")?;
        let child = pidfd_open(child, PidfdFlags::empty()).act("watch", "the session")?;
        let mut signals = hold()?;
        signals.add(Signal::SIGWINCH);
        signals.thread_block().act("block", "the signals of the session")?;
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .act("watch", "the signals of the session")?;
        // A session that does not read must not hold this process.
        for end in &far {
            rustix::io::ioctl_fionbio(end, true).act("prepare", "the streams of the session")?;
        }
        let mut carrier = Self { far, child, session, signals, before: None };
        if carrier.on_a_terminal() {
            carrier.resize();
            let before = tcgetattr(io::stdin()).act("read the settings of", "the terminal")?;
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(io::stdin(), OptionalActions::Now, &raw)
                .act("change the settings of", "the terminal")?;
            carrier.before = Some(before);
        }
        Ok(carrier)
    }

    fn on_a_terminal(&self) -> bool {
        self.far.len() == 1
    }

    fn resize(&self) {
        if let Ok(size) = tcgetwinsize(io::stdin()) {
            let _ = tcsetwinsize(&self.far[0], size);
        }
    }

    /// Returns the signal that was handed on, if one was.
    fn told(&self, number: u32) -> Option<Signal> {
        let signal = i32::try_from(number).ok().and_then(|number| Signal::try_from(number).ok())?;
        if signal == Signal::SIGWINCH {
            self.resize();
            return None;
        }
        if let Ok(number) = u8::try_from(number) {
            // A session that is over hears nothing.
            let _ = rustix::net::send(self.session, &[number], rustix::net::SendFlags::NOSIGNAL);
        }
        Some(signal)
    }

    /// Gives up one direction: the session's own process is told by the kernel.
    fn close(far: &mut OwnedFd) -> Result<()> {
        *far = rustix::fs::open("/dev/null", rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())
            .act("open", "/dev/null")?;
        Ok(())
    }

    /// The loop. With `hear` the session has nothing to read, and what it says goes there. Returns the last signal that was handed on.
    pub(super) fn carry(mut self, mut hear: Option<Hear<'_>>) -> Result<Option<Signal>> {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        // On a terminal there is one far end for both directions; else input, output, errors.
        let mut outputs: Vec<(usize, BorrowedFd<'_>)> = if self.on_a_terminal() {
            vec![(0, stdout.as_fd())]
        } else {
            vec![(1, stdout.as_fd()), (2, stderr.as_fd())]
        };
        // Input that the session has not taken yet. While there is some, no more is read, and outputs go on: a session
        // that writes before it reads must not wait for us while we wait for it.
        let mut pending: Vec<u8> = Vec::new();
        let mut input = hear.is_none();
        if !input {
            Self::close(&mut self.far[0])?;
        }
        let mut signal = None;
        let mut ended = false;
        loop {
            let mut fds =
                vec![PollFd::new(&self.child, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
            fds.extend(outputs.iter().map(|(far, _)| PollFd::new(&self.far[*far], PollFlags::IN)));
            if !pending.is_empty() {
                fds.push(PollFd::new(&self.far[0], PollFlags::OUT));
            } else if input {
                fds.push(PollFd::new(&stdin, PollFlags::IN));
            }
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e).act("poll", "the session"),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            let (ours, rest) = ready.split_at(2);
            let (from_session, to_session) = rest.split_at(outputs.len());
            ended |= ours[0];
            if ours[1] {
                while let Ok(Some(told)) = self.signals.read_signal() {
                    signal = self.told(told.ssi_signo).or(signal);
                }
            }
            if to_session == [true] {
                if pending.is_empty() {
                    input = take(stdin.as_fd(), &mut pending);
                }
                if !give(self.far[0].as_fd(), &mut pending) {
                    (input, pending) = (false, Vec::new());
                }
                if !input && pending.is_empty() && !self.on_a_terminal() {
                    // End of file for the session: its only writer goes away.
                    Self::close(&mut self.far[0])?;
                }
            }
            let mut left = Vec::new();
            for ((far, to), ready) in outputs.into_iter().zip(from_session) {
                let from = self.far[far].as_fd();
                let more = !ready
                    || match &mut hear {
                        Some(hear) => hear_some(from, hear)?,
                        None => carry_some(from, to),
                    };
                if more {
                    left.push((far, to));
                } else if !self.on_a_terminal() {
                    // Nobody reads on, as in `… | head`: who writes must not wait for ever.
                    Self::close(&mut self.far[far])?;
                }
            }
            outputs = left;
            // What the process wrote is still carried, but nothing more is waited for: something that it left in the
            // background may keep the streams open for ever.
            if ended && !from_session.contains(&true) {
                return Ok(signal);
            }
        }
    }
}

/// What a session is to have that this process is sent.
const HANDED_ON: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// Keeps the signals that end this process from ending it; they wait until somebody reads them. Returns which.
///
/// # Errors
/// [`crate::Error::Act`].
pub(super) fn hold() -> Result<SigSet> {
    let mut signals = SigSet::empty();
    // What is ignored (`nohup`, a job in the background of a script) stays so: it would be heard if it were blocked.
    let ignored = ignored();
    for signal in HANDED_ON {
        if ignored & (1 << (signal as i32 - 1)) == 0 {
            signals.add(signal);
        }
    }
    signals.thread_block().act("block", "signals")?;
    Ok(signals)
}

/// The signals that this process ignores, as a mask (proc_pid_status(5)).
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

impl Drop for Carrier<'_> {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Reads what is there. `false`: no more will come.
fn take(from: BorrowedFd<'_>, into: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 16 * 1024];
    match rustix::io::read(from, &mut buffer[..]) {
        Ok(0) => false,
        Ok(length) => {
            into.extend_from_slice(&buffer[..length]);
            true
        }
        Err(Errno::INTR | Errno::AGAIN) => true,
        // A pty whose last user is gone says EIO.
        Err(_) => false,
    }
}

/// Writes as much as is taken. `false`: nobody wants it any more.
fn give(to: BorrowedFd<'_>, from: &mut Vec<u8>) -> bool {
    if from.is_empty() {
        return true;
    }
    match rustix::io::write(to, from) {
        Ok(length) => {
            from.drain(..length);
            true
        }
        Err(Errno::INTR | Errno::AGAIN) => true,
        Err(_) => false,
    }
}

/// Hands on what is there. `false`: no more will come.
fn hear_some(from: BorrowedFd<'_>, hear: &mut Hear<'_>) -> Result<bool> {
    let mut some = Vec::new();
    let more = take(from, &mut some);
    if !some.is_empty() {
        hear(&some)?;
    }
    Ok(more)
}

/// Carries what is there to one of the administrator's own streams. `false`: no more will come, or nobody wants it.
fn carry_some(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut rest = Vec::new();
    let more = take(from, &mut rest);
    while !rest.is_empty() {
        if !give(to, &mut rest) {
            return false;
        }
        if !rest.is_empty() {
            let mut fds = [PollFd::new(&to, PollFlags::OUT)];
            let _ = poll(&mut fds, None);
        }
    }
    more
}
