//! One line an event, to syslog's `authpriv`, as `key=value`. Works, in silence, where no syslog listens.
//!
//! Not openlog(3): that is one per process, and sshd's. A connected socket of our own also goes on working after the
//! login process, or a jail's PID 1, has left the host's file system.

use std::fmt::Write as _;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

/// How long a line waits for a syslog daemon that is late, because fifty logins came at once.
const PATIENCE: Duration = Duration::from_secs(1);

/// The same after a line that waited in vain: a daemon that hangs must not hang the logins, nor a jail's PID 1, which has a line for
/// every session's end.
const IMPATIENCE: Duration = Duration::from_millis(1);

/// Where events go.
pub struct Log {
    to: Option<Logger<LoggerBackend, Formatter3164>>,
    /// Whether the last line was dropped.
    dropped: bool,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Log").field(&self.to.is_some()).finish()
    }
}

/// How grave an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// All is as it should be.
    Info,
    /// Somebody was refused, or something failed.
    Error,
}

impl Log {
    /// Connects to `/dev/log`; every line will bear the program's name.
    #[must_use]
    pub fn open(program: &str) -> Self {
        let connect = || -> std::io::Result<_> {
            let socket = UnixDatagram::unbound()?;
            socket.connect("/dev/log")?;
            Ok(socket)
        };
        connect().and_then(|socket| Self::to(socket, program)).unwrap_or_else(|_| Self::none())
    }

    fn to(socket: UnixDatagram, program: &str) -> std::io::Result<Self> {
        socket.set_write_timeout(Some(PATIENCE))?;
        let formatter = Formatter3164 {
            facility: Facility::LOG_AUTHPRIV,
            hostname: None,
            process: program.to_owned(),
            pid: std::process::id(),
        };
        Ok(Self { to: Some(Logger::new(LoggerBackend::Unix(socket), formatter)), dropped: false })
    }

    /// A log that goes nowhere.
    #[must_use]
    pub fn none() -> Self {
        Self { to: None, dropped: false }
    }

    /// Writes one event. A line that cannot be delivered is dropped: logging never decides about a login.
    pub fn event(&mut self, level: Level, event: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
        let Some(logger) = &mut self.to else { return };
        let line = line(event, fields);
        let sent = match level {
            Level::Info => logger.info(line),
            Level::Error => logger.err(line),
        };
        if std::mem::replace(&mut self.dropped, sent.is_err()) != sent.is_err() {
            if let LoggerBackend::Unix(socket) = &logger.backend {
                let _ = socket.set_write_timeout(Some(if self.dropped { IMPATIENCE } else { PATIENCE }));
            }
        }
    }
}

/// `event=… key=value key="value with spaces"`: one line whatever is in the values.
fn line(event: &str, fields: &[(&str, &dyn std::fmt::Display)]) -> String {
    let mut line = format!("event={event}");
    for (key, value) in fields {
        let value = value.to_string();
        let plain = |c: char| c.is_ascii_graphic() && !"\"=\\".contains(c);
        if !value.is_empty() && value.chars().all(plain) {
            let _ = write!(line, " {key}={value}");
        } else {
            let _ = write!(line, " {key}={value:?}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line_and_can_be_parsed() {
        let text = line("refused", &[("user", &"eve"), ("why", &"a \"b\"\nevent=forged"), ("from", &"")]);
        assert_eq!(text, r#"event=refused user=eve why="a \"b\"\nevent=forged" from="""#);
    }

    #[test]
    fn a_daemon_that_hangs_is_waited_for_once_until_it_goes_on() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        let mut log = Log::to(ours, "test").unwrap();
        let patience = |log: &Log| match log.to.as_ref().map(|logger| &logger.backend) {
            Some(LoggerBackend::Unix(socket)) => socket.write_timeout().unwrap().unwrap(),
            _ => panic!("it goes to a socket"),
        };
        // The queue takes some, and then none.
        let mut lines = 0;
        while !log.dropped {
            assert!(patience(&log) >= PATIENCE && lines < 10_000);
            log.event(Level::Info, "x", &[]);
            lines += 1;
        }
        assert!(patience(&log) < PATIENCE / 10);
        log.event(Level::Info, "x", &[]);
        assert!(log.dropped && patience(&log) < PATIENCE / 10);
        let mut buffer = [0; 1000];
        for _ in 1..lines {
            assert!(theirs.recv(&mut buffer).unwrap() > 0);
        }
        log.event(Level::Info, "x", &[]);
        assert!(!log.dropped && patience(&log) >= PATIENCE);
    }

    #[test]
    fn no_syslog_is_no_trouble() {
        Log::none().event(Level::Info, "x", &[]);
    }
}
