//! The door of a jail: the socket on which its PID 1 listens, in `/run/ojail`, where only host root comes.
//!
//! One connection is one session: it lives in the login process, and its end of file is the session's end, however
//! that process died. The kernel tells the connecting side who listens ([`SO_PEERCRED`]), so no pid is ever taken
//! from a file, and none can have been reused.
//!
//! [`SO_PEERCRED`]: https://man7.org/linux/man-pages/man7/unix.7.html

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, recv,
    recvmsg, send, sendmsg, socket_with, sockopt,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use super::plan::Terms;
use crate::config::{Network, Publish};
use crate::error::{Act, Error, Result};
use crate::freezer;
use crate::runtime::Corner;
use crate::seccomp::Changes;

/// What one can say at the door.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// A session begins; this connection is its life line.
    Join(Guest),
    /// Who is inside?
    Status,
    /// End the jail.
    Stop,
    /// End the jail unless a session is open. The answer is [`Answer::Closing`], or who is in.
    StopIfEmpty,
    /// The jail is about to be shown to the administrator, and must stay for as long as this connection, at least.
    Hold {
        /// Who the name stands for now.
        uid: u32,
    },
    /// This is a detached clone of the root that is about to be attached on the host. By it PID 1 sees for itself whether it was:
    /// when it is told to look, or at the end of this connection.
    Clone,
    /// The clone is attached now, or never will be.
    Settle,
    /// The jail is not shown any more.
    Release,
}

/// A session, as others see it in `ojail list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// The PAM service, or `enter`.
    pub service: String,
    /// Remote host, empty for a local session.
    pub from: String,
    /// The login process on the host.
    pub pid: u32,
    /// Seconds since 1970.
    pub since: u64,
    /// Who the name stands for now.
    pub uid: u32,
    /// What the configuration says of this user now.
    pub terms: Terms,
}

/// What the jail answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Come in.
    Welcome(House),
    /// The jail is ending. To a session that wanted in: raise a new one.
    Closing,
    /// Not to you: the jail was raised for another uid, and is in use.
    Stranger {
        /// Whose it is.
        owner: u32,
    },
    /// As asked.
    Status(Status),
    /// Whether the jail stays for the sake of a mount of the administrator's.
    Held(bool),
}

/// What a session must know of the jail that it joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct House {
    /// Whether the user may become root of the jail.
    pub root: bool,
    /// The user's groups inside.
    pub groups: Vec<u32>,
    /// The jail's `XDG_RUNTIME_DIR`.
    pub runtime_dir: String,
    /// The user's id, as the host has it.
    pub uid: u32,
    /// Which network it sees.
    pub network: Network,
    /// What the profile changes of the system call filter; `None`: there is no filter.
    pub seccomp: Option<Changes>,
    /// Whether a control group holds its limits, which every login process must join.
    pub limited: bool,
}

/// A running jail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The profile it was raised from.
    pub profile: String,
    /// The terms it was raised on.
    pub terms: Terms,
    /// Seconds since 1970.
    pub since: u64,
    /// Open sessions.
    pub sessions: Vec<Guest>,
    /// Processes inside, PID 1 and the network's not counted.
    pub processes: usize,
    /// Ports of the host that lead inside.
    pub publish: Vec<Publish>,
    /// Whether it stays because the administrator has it mounted.
    #[serde(default)]
    pub held: bool,
}

/// Longest message. A status with thousands of sessions still fits.
const MAX: usize = 1 << 20;

/// How long either side waits for the other: PID 1 answers in microseconds unless it was stopped.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Binds the door's socket. It listens only when PID 1 says so, and then bears PID 1's credentials.
///
/// # Errors
/// What bind(2) says.
pub fn hang(path: &Path) -> io::Result<OwnedFd> {
    let socket = seqpacket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Opens the door: from here on logins can knock.
///
/// # Errors
/// What listen(2) says.
pub fn open(socket: &OwnedFd) -> io::Result<()> {
    Ok(listen(socket, 4096)?)
}

fn seqpacket(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// A connection to a jail's PID 1.
#[derive(Debug)]
pub struct Door {
    corner: Corner,
    socket: OwnedFd,
    pid: Pid,
    init: OwnedFd,
}

impl Door {
    /// Knocks. `None` if no jail of this user is running.
    ///
    /// # Errors
    /// [`Error::Act`] for anything but the absence of a jail.
    pub fn knock(corner: &Corner) -> Result<Option<Self>> {
        let path = corner.door();
        let socket = seqpacket(SocketFlags::CLOEXEC).act("make", "a socket")?;
        be_patient(&socket, PATIENCE)?;
        let connected = connect(&socket, &SocketAddrUnix::new(&path).act("name", &path)?);
        // Not before: to connect needs nobody awake, and PID 1 wakes up meanwhile.
        freezer::thaw_abandoned(corner);
        match connected {
            Ok(()) => {}
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => return Ok(None),
            Err(e) => return Err(e).act("connect to", &path),
        }
        let pid = sockopt::socket_peercred(&socket).act("ask who listens at", &path)?.pid;
        let init = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            init => init.act("open", "PID 1 of the jail")?,
        };
        // The pid was PID 1's when it opened the door. If the connection still stands, PID 1 lives, so its number
        // cannot have gone to another process before it was opened above.
        if within(&socket, Duration::ZERO).act("poll", "the jail's door")? {
            return Ok(None);
        }
        Ok(Some(Self { corner: corner.clone(), socket, pid, init }))
    }

    /// Waits for answers this long, instead of [`PATIENCE`].
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn set_patience(&self, patience: Duration) -> Result<()> {
        be_patient(&self.socket, patience)
    }

    /// Says something to which there is no answer.
    ///
    /// # Errors
    /// [`Error::Act`]. That PID 1 has gone meanwhile is none.
    pub fn tell(&self, request: &Request) -> Result<()> {
        match say(&self.socket, request) {
            Err(e) if !matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Err(e).act("talk to PID 1 of the jail of", self.user())
            }
            _ => Ok(()),
        }
    }

    /// Says something and waits for the answer. `None` if the jail ended meanwhile.
    ///
    /// # Errors
    /// [`Error::Door`] if the answer is no answer; [`Error::Act`] if there was none in time.
    pub fn ask(&self, request: &Request) -> Result<Option<Answer>> {
        self.answered(say(&self.socket, request).and_then(|()| hear(&self.socket)))
    }

    /// As [`Door::ask`], and does something of this process' own while PID 1 makes up its answer. `None` also if that was done in
    /// vain.
    ///
    /// # Errors
    /// As [`Door::ask`], and what `meanwhile` says.
    pub fn ask_and<T>(
        &self,
        request: &Request,
        meanwhile: impl FnOnce() -> Result<T>,
    ) -> Result<Option<(Answer, T)>> {
        let said = say(&self.socket, request);
        let done = meanwhile()?;
        Ok(self.answered(said.and_then(|()| hear(&self.socket)))?.map(|answer| (answer, done)))
    }

    fn answered(&self, answer: io::Result<Option<Answer>>) -> Result<Option<Answer>> {
        match answer {
            Ok(answer) => Ok(answer),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                Err(Error::Door { user: self.user().to_owned(), answer: e.to_string() })
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Ok(None)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && freezer::is_frozen(&self.corner) => {
                Err(Error::Frozen { user: self.user().to_owned() })
            }
            Err(e) => Err(e).act("talk to PID 1 of the jail of", self.user()),
        }
    }

    /// As [`Door::ask`], with a descriptor for PID 1.
    ///
    /// # Errors
    /// As [`Door::ask`].
    pub fn hand(&self, request: &Request, fd: BorrowedFd<'_>) -> Result<Option<Answer>> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let bytes = serde_json::to_vec(request).map_err(io::Error::from).act("write", "a request")?;
        let sent = sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL);
        self.answered(sent.map_err(io::Error::from).and_then(|_| hear(&self.socket)))
    }

    fn user(&self) -> &str {
        self.corner.user().as_str()
    }

    /// A descriptor of the jail's PID 1, proven to be the process behind this door.
    #[must_use]
    pub fn init(&self) -> &OwnedFd {
        &self.init
    }

    /// PID 1 of the jail, as the host counts.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits for PID 1 to have ended. The kernel closes a process' descriptors, and so the door and the claim on the
    /// upper, before it lets go of its mounts: only the end of the process says that the overlay is gone too.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn wait_for_end(&self, patience: Duration) -> Result<bool> {
        within(&self.init, patience).act("wait for", "PID 1 of the jail")
    }

    /// Keeps the connection, which is the session.
    #[must_use]
    pub fn into_session(self) -> OwnedFd {
        self.socket
    }
}

fn be_patient(socket: &OwnedFd, patience: Duration) -> Result<()> {
    for timeout in [sockopt::Timeout::Recv, sockopt::Timeout::Send] {
        sockopt::set_socket_timeout(socket, timeout, Some(patience)).act("set the timeout of", "a socket")?;
    }
    Ok(())
}

/// Whether there is something to read, or an end, within that time.
fn within(fd: &OwnedFd, patience: Duration) -> rustix::io::Result<bool> {
    let mut fds = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
    let timeout = rustix::event::Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: patience.subsec_nanos().into(),
    };
    Ok(rustix::event::poll(&mut fds, Some(&timeout))? > 0)
}

/// Sends one message.
///
/// # Errors
/// What send(2) says; `BrokenPipe` if the other side is gone.
pub fn say(socket: impl AsFd, message: &impl Serialize) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let sent = send(socket, &bytes, SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives one message; `None` is end of file.
///
/// # Errors
/// What recv(2) says; `InvalidData` for what is no message.
pub fn hear<T: for<'a> Deserialize<'a>>(socket: impl AsFd) -> io::Result<Option<T>> {
    let mut buffer = room_for_next(&socket)?;
    let (_, length) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
    if length == 0 {
        return Ok(None);
    }
    understood(&buffer).map(Some)
}

/// As [`hear`], with the descriptor that came along, if one did.
///
/// # Errors
/// As [`hear`].
pub fn hear_with<T: for<'a> Deserialize<'a>>(socket: impl AsFd) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut buffer = room_for_next(&socket)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut buffer)];
    let got = recvmsg(&socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fd = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut rights) = message {
            fd = rights.next();
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    Ok(Some((understood(&buffer[..got.bytes])?, fd)))
}

/// The next message's length first, so that the usual small one needs no large buffer.
fn room_for_next(socket: impl AsFd) -> io::Result<Vec<u8>> {
    let (_, length) = recv(&socket, &mut [0u8; 0][..], RecvFlags::PEEK | RecvFlags::TRUNC)?;
    if length > MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is too long"));
    }
    Ok(vec![0; length])
}

fn understood<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, String::from_utf8_lossy(bytes).into_owned()))
}
