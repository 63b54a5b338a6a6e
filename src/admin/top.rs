//! `ojail top`: the list, live, on the other screen of a terminal, until a key or a signal ends it.
//!
//! Whatever ends it, the terminal is as it was: signals are blocked and read from a descriptor before anything is changed, and
//! the rest is [`Screen`]'s drop. The terminal is never waited for, neither one that is stopped (Ctrl-S) nor a slow one.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

use super::configuration;
use super::list::{Eye, Jail, table};
use crate::account::Username;
use crate::config;
use crate::error::{Act, Error, Result};

/// How long one jail may take to answer, before all others are shown without it.
const PATIENCE: Duration = Duration::from_secs(1);

/// When the second look is, which is the first that can tell what is used meanwhile.
const FIRST: Duration = Duration::from_millis(500);

/// How long a terminal has for what makes it whole again.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// `--every`.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    config::duration(text)
        .filter(|time| (1..=3600).contains(&time.as_secs()))
        .ok_or_else(|| "write it like 2s or 1m, from 1s to 1h".into())
}

pub(super) fn run(every: Duration) -> Result<ExitCode> {
    if !io::stdout().is_terminal() {
        return Err(Error::NoTerminal);
    }
    let signals = Signals::block()?;
    let mut screen = Screen::enter()?;
    let mut top = Top::new(every);
    let ended = top.live(&mut screen, &signals);
    // First of all, so that what has gone wrong is not told on a screen that vanishes.
    drop(screen);
    ended.map(|()| ExitCode::SUCCESS)
}

/// What comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Cpu,
    Memory,
    User,
}

/// What is shown, and what was seen before.
struct Top {
    every: Duration,
    order: Order,
    eye: Eye,
    jails: Vec<Jail>,
    /// In tenths of a per cent of a processor, since the look before.
    cpu: BTreeMap<Username, u64>,
    /// What of each jail was used at the last look, in microseconds.
    used: BTreeMap<Username, u64>,
    looked: Option<Instant>,
    /// What is wrong with the configuration.
    wrong: Option<String>,
}

impl Top {
    fn new(every: Duration) -> Self {
        Self {
            every,
            order: Order::Cpu,
            eye: Eye::with_patience(PATIENCE),
            jails: Vec::new(),
            cpu: BTreeMap::new(),
            used: BTreeMap::new(),
            looked: None,
            wrong: None,
        }
    }

    /// The loop, until somebody ends it.
    fn live(&mut self, screen: &mut Screen, signals: &Signals) -> Result<()> {
        let mut next = Instant::now();
        loop {
            if Instant::now() >= next {
                let first = self.looked.is_none();
                self.look()?;
                // From the end of the look: on a host that is too busy for them, they become fewer.
                next = Instant::now() + if first { FIRST.min(self.every) } else { self.every };
                self.draw(screen);
            }
            let ready = screen.wait(&signals.0, next)?;
            if ready.signal {
                while let Ok(Some(signal)) = signals.0.read_signal() {
                    match i32::try_from(signal.ssi_signo)
                        .ok()
                        .and_then(|number| Signal::try_from(number).ok())
                    {
                        Some(Signal::SIGWINCH) => {
                            screen.clear();
                            self.draw(screen);
                        }
                        Some(Signal::SIGTSTP) => {
                            screen.leave();
                            raise(Signal::SIGSTOP).act("stop", "this process")?;
                        }
                        // After that, or after somebody else's SIGSTOP.
                        Some(Signal::SIGCONT) => {
                            screen.enter_again()?;
                            next = Instant::now();
                        }
                        _ => return Ok(()),
                    }
                }
            }
            if ready.key {
                for key in screen.keys()? {
                    match key {
                        b'q' | b'Q' => return Ok(()),
                        b'c' => self.order = Order::Cpu,
                        b'm' => self.order = Order::Memory,
                        b'u' => self.order = Order::User,
                        _ => continue,
                    }
                    self.draw(screen);
                }
            }
        }
    }

    fn look(&mut self) -> Result<()> {
        let config = configuration();
        self.wrong = config.as_ref().err().map(|e| e.to_string().escape_debug().to_string());
        self.jails = self.eye.look(config.as_ref().ok())?;
        let now = Instant::now();
        let used = self.jails.iter().filter_map(|jail| Some((jail.user.clone(), jail.cpu.used?))).collect();
        let before = std::mem::replace(&mut self.used, used);
        if let Some(looked) = self.looked.replace(now) {
            self.cpu = shares(&before, &self.used, now - looked);
        }
        Ok(())
    }

    fn draw(&mut self, screen: &mut Screen) {
        let (order, cpu) = (self.order, &self.cpu);
        self.jails.sort_by_cached_key(|jail| {
            let first = match order {
                Order::Cpu => cpu.get(&jail.user).copied(),
                Order::Memory => jail.memory.used,
                Order::User => None,
            };
            (Reverse(first), order != Order::User && !jail.running, jail.user.clone())
        });
        let Size { rows, columns } = screen.size();
        // A line above and one below the table, and its own head.
        let fit = self.jails.len().min(rows.saturating_sub(3));
        let share = |jail: &Jail| {
            cpu.get(&jail.user).map(|share| format!("{}.{} %", share / 10, share % 10)).unwrap_or_default()
        };
        let mut lines = vec![self.headline()];
        lines.extend(table(self.jails.get(..fit).unwrap_or_default(), share, screen.colours, columns));
        let below = match &self.wrong {
            Some(wrong) => format!(" {wrong}"),
            None => " c cpu   m memory   u user   q quit".to_owned(),
        };
        let more = self.jails.len() - fit;
        lines.push(if more > 0 { format!("{below}   {more} more") } else { below });
        lines.truncate(rows);
        screen.show(&lines, columns);
    }

    fn headline(&self) -> String {
        let offset = UtcOffset::current_local_offset().unwrap_or(UtcOffset::UTC);
        let clock = OffsetDateTime::now_utc().to_offset(offset);
        let clock = clock.format(format_description!("[hour]:[minute]:[second]")).unwrap_or_default();
        let running = self.jails.iter().filter(|jail| jail.running).count();
        let sessions: usize = self.jails.iter().map(|jail| jail.sessions.len()).sum();
        let by = match self.order {
            Order::Cpu => "cpu",
            Order::Memory => "memory",
            Order::User => "user",
        };
        let jails = self.jails.len();
        format!(
            " {clock}   jails {jails}   running {running}   sessions {sessions}   by {by}, every {} s",
            self.every.as_secs()
        )
    }
}

/// What was used of a processor between two looks, in tenths of a per cent. A group that was made anew
/// began at nothing; of one that was not there before, nothing is known.
fn shares(
    before: &BTreeMap<Username, u64>,
    now: &BTreeMap<Username, u64>,
    passed: Duration,
) -> BTreeMap<Username, u64> {
    let passed = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX).max(1);
    let share = |(user, used): (&Username, &u64)| {
        let meanwhile = before.get(user).map_or(0, |before| used.checked_sub(*before).unwrap_or(*used));
        (user.clone(), meanwhile.saturating_mul(1000) / passed)
    };
    now.iter().map(share).collect()
}

/// The signals that end, stop or redraw it.
struct Signals(SignalFd);

impl Signals {
    fn block() -> Result<Self> {
        let mut set = SigSet::empty();
        for signal in [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
            Signal::SIGWINCH,
            Signal::SIGTSTP,
            Signal::SIGCONT,
        ] {
            set.add(signal);
        }
        set.thread_block().act("block", "signals")?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        fd.map(Self).act("watch", "signals")
    }
}

/// What a terminal shows.
#[derive(Debug, Clone, Copy)]
struct Size {
    rows: usize,
    columns: usize,
}

/// What `poll` told.
struct Ready {
    signal: bool,
    key: bool,
}

/// The terminal, on its other screen and without an echo.
struct Screen {
    /// A description of our own, which does not block; that of standard output is shared with the shell.
    tty: OwnedFd,
    /// As it was; `None` while it is so.
    before: Option<Termios>,
    /// What it has not taken yet.
    pending: Vec<u8>,
    colours: bool,
}

/// The other screen, without a cursor; and back. What xterm, the Linux console, tmux and screen understand.
const OTHER_SCREEN: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[2J";
const BACK: &[u8] = b"\x1b[0m\x1b[?25h\x1b[?1049l";

impl Screen {
    fn enter() -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let tty = rustix::fs::open("/proc/self/fd/1", flags, Mode::empty()).act("open", "the terminal")?;
        let colours = std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let mut screen = Self { tty, before: None, pending: Vec::new(), colours };
        screen.enter_again()?;
        Ok(screen)
    }

    fn enter_again(&mut self) -> Result<()> {
        // In the background this stops, as it should; but what restores the terminal must not, nor what draws.
        let mut background = SigSet::empty();
        background.add(Signal::SIGTTOU);
        background.thread_unblock().act("unblock", "SIGTTOU")?;
        let now = tcgetattr(&self.tty).act("read the settings of", "the terminal")?;
        let mut ours = now.clone();
        // Ctrl-C and Ctrl-Z are still signals.
        ours.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        if self.before.is_none() {
            self.before = Some(now);
        }
        let set = tcsetattr(&self.tty, OptionalActions::Now, &ours);
        background.thread_block().act("block", "SIGTTOU")?;
        set.act("change the settings of", "the terminal")?;
        self.pending = OTHER_SCREEN.to_vec();
        self.flush().act("write to", "the terminal")
    }

    /// Makes the terminal what it was.
    fn leave(&mut self) {
        let Some(before) = self.before.take() else { return };
        // What it has taken of a picture must not swallow this.
        self.pending.splice(.., BACK.iter().copied());
        let until = Instant::now() + LAST_WORDS;
        while self.flush().is_ok() && !self.pending.is_empty() && Instant::now() < until {
            let mut fds = [PollFd::new(&self.tty, PollFlags::OUT)];
            if !matches!(poll(&mut fds, Some(&timeout(until))), Ok(_) | Err(Errno::INTR)) {
                break;
            }
        }
        let _ = tcsetattr(&self.tty, OptionalActions::Now, &before);
    }

    fn size(&self) -> Size {
        // A terminal that does not know (a serial line) says zero.
        let known = tcgetwinsize(&self.tty).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
        known.map_or(Size { rows: 24, columns: 80 }, |size| Size {
            rows: size.ws_row.into(),
            columns: size.ws_col.into(),
        })
    }

    fn clear(&mut self) {
        if self.pending.is_empty() {
            self.pending.extend(b"\x1b[2J");
        }
    }

    /// Shows these lines and nothing else. While the terminal has not taken the last picture, this one is left out.
    fn show(&mut self, lines: &[String], columns: usize) {
        if self.pending.len() > OTHER_SCREEN.len() {
            return;
        }
        for (row, line) in lines.iter().enumerate() {
            let line: String =
                if line.contains('\x1b') { line.clone() } else { line.chars().take(columns).collect() };
            // First the erasing: behind the last column it would take that.
            self.pending.extend(format!("\x1b[{};1H\x1b[K{line}", row + 1).bytes());
        }
        self.pending.extend(b"\x1b[J");
    }

    /// Writes what it takes.
    fn flush(&mut self) -> rustix::io::Result<()> {
        while !self.pending.is_empty() {
            match rustix::io::write(&self.tty, &self.pending) {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Writes what there is, and waits for a key or a signal.
    fn wait(&mut self, signals: &SignalFd, until: Instant) -> Result<Ready> {
        self.flush().act("write to", "the terminal")?;
        let writing = if self.pending.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        let mut fds = [PollFd::new(signals, PollFlags::IN), PollFd::new(&self.tty, PollFlags::IN | writing)];
        match poll(&mut fds, Some(&timeout(until))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).act("poll", "the terminal"),
        }
        let tty = fds[1].revents();
        Ok(Ready { signal: !fds[0].revents().is_empty(), key: !(tty - PollFlags::OUT).is_empty() })
    }

    /// What was typed.
    fn keys(&self) -> Result<Vec<u8>> {
        let mut buffer = [0; 64];
        let gone = || Err(io::Error::from(Errno::IO)).act("read from", "the terminal");
        match rustix::io::read(&self.tty, &mut buffer[..]) {
            // A terminal that was hung up.
            Ok(0) => gone(),
            Ok(length) => Ok(buffer[..length].to_vec()),
            Err(Errno::INTR | Errno::AGAIN) => Ok(Vec::new()),
            Err(e) => Err(e).act("read from", "the terminal"),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.leave();
    }
}

fn timeout(until: Instant) -> Timespec {
    let left = until.saturating_duration_since(Instant::now());
    Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_has_a_unit_and_bounds() {
        assert_eq!(interval("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(interval("1m"), Ok(Duration::from_secs(60)));
        for bad in ["0", "0s", "2", "-1s", "2h", "1.5s", ""] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_share_is_what_was_used_since_the_last_look() {
        let user = |name: &str| Username::parse(name).unwrap();
        let used = |list: &[(&str, u64)]| list.iter().map(|(name, used)| (user(name), *used)).collect();
        let shares = shares(
            &used(&[("alice", 5_000_000), ("bob", 7_000_000), ("gone", 1)]),
            &used(&[("alice", 6_500_000), ("bob", 20_000), ("new", 9_000_000)]),
            Duration::from_secs(1),
        );
        assert_eq!(shares[&user("alice")], 1500, "one and a half processors");
        assert_eq!(shares[&user("bob")], 20, "a group that was made anew");
        assert_eq!(shares[&user("new")], 0, "nothing is known of the time before");
        assert_eq!(shares.len(), 3);
    }
}
