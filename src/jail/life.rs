//! The life of a jail: what its PID 1 does once it stands. It reaps, counts sessions, and ends the jail.
//!
//! A single loop over one `poll`. It runs as root of the jail with `CAP_KILL` alone, and asks nothing of the host.

use std::fmt::Display;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::net::{SocketFlags, accept_with};

use super::door::{self, Answer, Guest, Request, Status, now};
use super::plan::{Plan, Terms};
use crate::config::Publish;
use crate::log::{Level, Log};

/// How long processes have between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// How often a jail without sessions looks whether what lingers in it has ended. Most ends are told by SIGCHLD; not
/// those of processes whose parent is a login process on the host. Soon after a session, then ever more rarely.
const GLANCES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(15));

/// Whoever raised the jail is about to join it; it must not end before.
const FIRST_KNOCK: Duration = Duration::from_secs(30);

/// What PID 1 knows of its jail.
pub(super) struct House {
    user: String,
    /// The temporary jail that this is.
    run: Option<String>,
    uid: u32,
    profile: String,
    terms: Terms,
    linger: bool,
    keep_warm: Duration,
    welcome: door::House,
    publish: Vec<Publish>,
    /// The processes of the network's, as this PID namespace counts. They are nobody's session, and the jail ends with them.
    network: Vec<i32>,
    since: u64,
    door: OwnedFd,
    /// Holds the claim on the upper; never read.
    _alive: OwnedFd,
}

impl House {
    /// `network`: the pids of what is inside already.
    pub(super) fn new(plan: Plan, network: Vec<i32>, door: OwnedFd, alive: OwnedFd) -> Self {
        Self {
            welcome: door::House {
                root: plan.root,
                groups: plan.groups.iter().map(|group| group.gid).collect(),
                runtime_dir: plan.runtime_dir().display().to_string(),
                uid: plan.outside_uid(),
                network: plan.network,
                seccomp: plan.seccomp,
                limited: plan.limits.of_processes(),
            },
            user: plan.corner.user().to_string(),
            run: plan.corner.run().map(str::to_owned),
            uid: plan.uid,
            profile: plan.profile,
            terms: plan.terms,
            linger: plan.linger,
            keep_warm: Duration::from_secs(plan.keep_warm),
            publish: plan.publish,
            network,
            since: now(),
            door,
            _alive: alive,
        }
    }
}

/// One connection at the door; a session once it has joined.
struct Caller {
    socket: OwnedFd,
    guest: Option<Guest>,
    /// Whether the jail stays for as long as this connection.
    holds: bool,
    /// A clone of the root that this caller may be about to attach on the host. Kept no longer than it has to be: from a mount
    /// that is attached there is a way up, and it could not be unmounted.
    clone: Option<OwnedFd>,
}

/// Where the jail is in its life.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Sessions are open, or something lingers.
    Lived,
    /// Empty, until this moment.
    Warm(Instant),
    /// Empty for longer than that, and held by a mount of the administrator's.
    Held,
    /// The last session ended in a jail without linger: what is left is killed at this moment.
    Clearing(Instant),
    /// It ends: nobody gets in any more, and what is left is killed at this moment.
    Ending(Instant, &'static str),
}

/// Lives until the jail ends. The caller exits then, and with it every process inside.
pub(super) fn run(house: House, porch: &OwnedFd, log: Log) {
    let mut life = Life {
        phase: Phase::Warm(Instant::now() + house.keep_warm.max(FIRST_KNOCK)),
        house,
        held: false,
        callers: Vec::new(),
        glance: GLANCES.0,
        log,
    };
    let why = life.live().unwrap_or("PID 1 cannot go on");
    // Its ports are free when the claim on the upper is, or the next raise would find them in use.
    for pid in &life.house.network {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        let _ = waitpid(Pid::from_raw(*pid), None);
    }
    // Take the door away while it still refuses: a login that knocks now finds nothing, and raises anew.
    let _ = rustix::fs::unlinkat(porch, "door", rustix::fs::AtFlags::empty());
    life.event("jail-ended", &[("profile", &life.house.profile.clone()), ("why", &why)]);
}

struct Life {
    house: House,
    callers: Vec<Caller>,
    /// Whether the administrator has the jail mounted.
    held: bool,
    phase: Phase,
    /// The next pause between two looks at an empty jail.
    glance: Duration,
    log: Log,
}

impl Life {
    /// The loop. Returns why the jail ends; `None` if the kernel refuses what PID 1 lives by.
    fn live(&mut self) -> Option<&'static str> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
            signals.add(signal);
        }
        // Blocked and read from a descriptor, so that nothing happens in between two lines of this loop.
        signals.thread_block().ok()?;
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).ok()?;
        // What ended before it was listened for.
        self.reap();
        loop {
            if let Some(why) = self.advance() {
                return Some(why);
            }
            let ready = self.wait(&signals)?;
            if ready.signal {
                while let Ok(Some(signal)) = signals.read_signal() {
                    if signal.ssi_signo != Signal::SIGCHLD as u32 {
                        self.end("it was told to by a signal");
                    }
                }
                self.reap();
            }
            let callers = ready.callers.iter().enumerate();
            self.serve(callers.filter(|(_, ready)| **ready).map(|(number, _)| number));
            if ready.door {
                let known = self.callers.len();
                self.admit();
                // What most of them want has been said by now.
                self.serve(known..self.callers.len());
            }
        }
    }

    /// Moves on to the next phase if it is time. Returns why, when the jail is over.
    fn advance(&mut self) -> Option<&'static str> {
        // First, because the end of the network changes the phase.
        self.reap();
        let now = Instant::now();
        match self.phase {
            Phase::Ending(deadline, why) => {
                if !self.occupied() {
                    return Some(why);
                }
                if now >= deadline {
                    signal_all(Signal::SIGKILL);
                }
            }
            Phase::Clearing(deadline) if self.sessions() == 0 => {
                if !self.occupied() {
                    self.phase = Phase::Warm(now + self.house.keep_warm);
                } else if now >= deadline + GRACE {
                    // Whoever forks faster than this kills one by one has the jail ended around them.
                    self.end("what was left would not end");
                } else if now >= deadline {
                    self.signal_guests(Signal::SIGKILL);
                }
            }
            Phase::Lived if self.sessions() == 0 => {
                if self.occupied() {
                    self.glance = (self.glance * 2).min(GLANCES.1);
                } else {
                    self.phase = Phase::Warm(now + self.house.keep_warm);
                    return self.advance();
                }
            }
            Phase::Held if !self.is_held() => self.phase = Phase::Warm(now + self.house.keep_warm),
            Phase::Warm(deadline) if now >= deadline => {
                if self.occupied() {
                    self.phase = Phase::Lived;
                } else if self.is_held() {
                    self.phase = Phase::Held;
                } else {
                    return Some("it was empty");
                }
            }
            Phase::Warm(_) | Phase::Held | Phase::Lived | Phase::Clearing(_) => {}
        }
        None
    }

    fn sessions(&self) -> usize {
        self.callers.iter().filter(|caller| caller.guest.is_some()).count()
    }

    /// How long nothing can happen unless somebody calls.
    fn pause(&self) -> Option<Duration> {
        let soon = Duration::from_millis(20);
        let until = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        match self.phase {
            Phase::Ending(deadline, _) | Phase::Clearing(deadline) => {
                Some(until(deadline).clamp(soon, soon * 5))
            }
            Phase::Warm(deadline) => Some(until(deadline) + Duration::from_millis(1)),
            Phase::Lived if self.sessions() == 0 => Some(self.glance),
            Phase::Lived | Phase::Held => None,
        }
    }

    /// Whether a mount of the administrator's is there, or may be.
    fn is_held(&self) -> bool {
        self.held || self.callers.iter().any(|caller| caller.holds)
    }

    /// Looks whether a clone of the root was attached, and lets go of it.
    fn settle(&mut self, clone: Option<OwnedFd>) {
        self.held |= clone.is_some_and(|clone| is_attached(&clone));
    }

    fn wait(&self, signals: &SignalFd) -> Option<Ready> {
        let timeout = self.pause().map(|pause| Timespec {
            tv_sec: i64::try_from(pause.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: pause.subsec_nanos().into(),
        });
        let mut fds = vec![PollFd::new(signals, PollFlags::IN), PollFd::new(&self.house.door, PollFlags::IN)];
        fds.extend(self.callers.iter().map(|caller| PollFd::new(&caller.socket, PollFlags::IN)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        Some(Ready {
            signal: ready(&fds[0]),
            door: ready(&fds[1]),
            callers: fds[2..].iter().map(ready).collect(),
        })
    }

    /// Hears callers, by their number, ascending, who may have said something or gone away.
    fn serve(&mut self, numbers: impl Iterator<Item = usize>) {
        let mut gone = Vec::new();
        for number in numbers {
            match door::hear_with::<Request>(self.callers[number].socket.as_fd()) {
                Ok(Some((request, with))) => {
                    let answer = self.answer(number, request, with);
                    if let Some(answer) = answer {
                        if door::say(self.callers[number].socket.as_fd(), &answer).is_err() {
                            gone.push(number);
                        }
                    }
                }
                Err(e)
                    if matches!(
                        e.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
                    ) => {}
                // End of file, or nonsense from who should know better: either way this caller is done.
                Ok(None) | Err(_) => gone.push(number),
            }
        }
        for number in gone.into_iter().rev() {
            let caller = self.callers.swap_remove(number);
            self.settle(caller.clone);
            if let Some(guest) = caller.guest {
                self.left(&guest);
            }
        }
    }

    fn answer(&mut self, number: usize, request: Request, with: Option<OwnedFd>) -> Option<Answer> {
        match request {
            Request::Join(guest) => {
                self.reap();
                if matches!(self.phase, Phase::Ending(..)) {
                    return Some(Answer::Closing);
                }
                // Raised on other terms: make way, unless somebody or something is inside, or looks in.
                if guest.terms != self.house.terms
                    && self.sessions() == 0
                    && !self.occupied()
                    && !self.is_held()
                {
                    self.end("its profile or a layer has changed");
                    return Some(Answer::Closing);
                }
                // The name was given to somebody else meanwhile, and what the one before left is still running.
                if guest.uid != self.house.uid {
                    return Some(Answer::Stranger { owner: self.house.uid });
                }
                self.callers[number].guest = Some(guest);
                self.phase = Phase::Lived;
                self.glance = GLANCES.0;
                Some(Answer::Welcome(self.house.welcome.clone()))
            }
            Request::Status => Some(Answer::Status(self.status())),
            // Decided here, where sessions begin: none can come between the look and the end.
            Request::StopIfEmpty => {
                if self.sessions() > 0 && !matches!(self.phase, Phase::Ending(..)) {
                    return Some(Answer::Status(self.status()));
                }
                self.end("it was stopped");
                Some(Answer::Closing)
            }
            Request::Hold { uid } => {
                self.reap();
                if matches!(self.phase, Phase::Ending(..)) {
                    return Some(Answer::Closing);
                }
                if uid != self.house.uid {
                    return Some(Answer::Stranger { owner: self.house.uid });
                }
                self.callers[number].holds = true;
                // Nobody else has to knock first.
                if let Phase::Warm(_) = self.phase {
                    self.phase = Phase::Warm(Instant::now() + self.house.keep_warm);
                }
                Some(Answer::Held(true))
            }
            Request::Clone => {
                self.callers[number].clone = with;
                Some(Answer::Held(self.callers[number].clone.is_some()))
            }
            Request::Settle => {
                let clone = self.callers[number].clone.take();
                self.settle(clone);
                self.callers[number].holds = false;
                Some(Answer::Held(self.held))
            }
            Request::Release => {
                self.held = false;
                Some(Answer::Held(self.is_held()))
            }
            // No answer: the end of the connection is the end of the jail.
            Request::Stop => {
                self.end("it was stopped");
                None
            }
        }
    }

    fn status(&self) -> Status {
        Status {
            profile: self.house.profile.clone(),
            terms: self.house.terms,
            since: self.house.since,
            sessions: self.callers.iter().filter_map(|caller| caller.guest.clone()).collect(),
            processes: self.guests().unwrap_or_default().len(),
            publish: self.house.publish.clone(),
            held: self.is_held(),
        }
    }

    fn left(&mut self, guest: &Guest) {
        let left = self.sessions();
        self.event("session-end", &[("service", &guest.service), ("from", &guest.from), ("left", &left)]);
        if left == 0 && !self.house.linger && self.phase == Phase::Lived {
            self.phase = Phase::Clearing(Instant::now() + GRACE);
            for signal in HANG_UP {
                self.signal_guests(signal);
            }
        }
    }

    fn end(&mut self, why: &'static str) {
        if !matches!(self.phase, Phase::Ending(..)) {
            self.phase = Phase::Ending(Instant::now() + GRACE, why);
            for signal in HANG_UP {
                self.signal_guests(signal);
            }
        }
    }

    fn admit(&mut self) {
        while let Ok(socket) = accept_with(&self.house.door, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            self.callers.push(Caller { socket, guest: None, holds: false, clone: None });
        }
    }

    fn event(&mut self, event: &str, fields: &[(&str, &dyn Display)]) {
        let mut all: Vec<(&str, &dyn Display)> = vec![("user", &self.house.user)];
        all.extend(self.house.run.iter().map(|run| ("run", run as &dyn Display)));
        all.extend(fields);
        self.log.event(Level::Info, event, &all);
    }
}

/// What `poll` told.
struct Ready {
    signal: bool,
    door: bool,
    callers: Vec<bool>,
}

/// As a terminal that goes away and a shutdown would; interactive shells ignore SIGTERM alone, and what was stopped could
/// hear neither.
const HANG_UP: [Signal; 3] = [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGCONT];

impl Life {
    fn reap(&mut self) {
        while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            let Some(pid) = status.pid() else { break };
            if self.house.network.contains(&pid.as_raw()) {
                self.end("its network ended");
            }
        }
    }

    /// Whether anything but PID 1 and its network lives inside. If that cannot be told, something does: a jail never ends by
    /// mistake.
    fn occupied(&self) -> bool {
        self.guests().is_none_or(|guests| !guests.is_empty())
    }

    /// What lives inside because of the user. `None` if it cannot be told.
    fn guests(&self) -> Option<Vec<i32>> {
        let mut pids = others()?;
        pids.retain(|pid| !self.house.network.contains(pid));
        Some(pids)
    }

    /// To every process of this PID namespace but this one and the network's.
    fn signal_guests(&self, signal: Signal) {
        if self.house.network.is_empty() {
            // In one go: nothing can fork between two of these.
            signal_all(signal);
            return;
        }
        for pid in self.guests().unwrap_or_default() {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

/// Whether a mount is attached anywhere: only then there is a way up from its root. If that cannot be told, it is: a jail never
/// ends by mistake.
fn is_attached(clone: &OwnedFd) -> bool {
    let mount = |path: &str, flags| statx(clone, path, flags, StatxFlags::MNT_ID).map(|stat| stat.stx_mnt_id);
    match (mount("", AtFlags::EMPTY_PATH), mount("..", AtFlags::SYMLINK_NOFOLLOW)) {
        (Ok(own), Ok(above)) => own != above,
        _ => true,
    }
}

/// To every process of this PID namespace but this one.
fn signal_all(signal: Signal) {
    let _ = kill(Pid::from_raw(-1), signal);
}

/// The other processes of this PID namespace. Its own /proc is the one place that also knows those whose parent is a login
/// process on the host.
pub(super) fn others() -> Option<Vec<i32>> {
    let pid = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<i32>().ok();
    let pids = std::fs::read_dir("/proc").ok()?.flatten().filter_map(pid);
    Some(pids.filter(|pid| *pid != 1).collect())
}
