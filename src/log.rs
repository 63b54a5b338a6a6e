//! One line an event, to syslog's `authpriv`, as `key=value`. Works, in silence, where no syslog listens.
//!
//! Not openlog(3): that is one per process, and sshd's. A connected socket of our own also goes on working after the
//! login process, or a jail's PID 1, has left the host's file system.

use std::fmt::Write as _;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

/// Where events go.
pub struct Log(Option<Logger<LoggerBackend, Formatter3164>>);

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Log").field(&self.0.is_some()).finish()
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
            // A syslog daemon that hangs must not hang the logins; one that is late, because fifty of them came at once, must
            // not lose any.
            socket.set_write_timeout(Some(Duration::from_secs(1)))?;
            Ok(socket)
        };
        Self(connect().ok().map(|socket| {
            let formatter = Formatter3164 {
                facility: Facility::LOG_AUTHPRIV,
                hostname: None,
                process: program.to_owned(),
                pid: std::process::id(),
            };
            Logger::new(LoggerBackend::Unix(socket), formatter)
        }))
    }

    /// A log that goes nowhere.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Writes one event. A line that cannot be delivered is dropped: logging never decides about a login.
    pub fn event(&mut self, level: Level, event: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
        let Some(logger) = &mut self.0 else { return };
        let line = line(event, fields);
        let _ = match level {
            Level::Info => logger.info(line),
            Level::Error => logger.err(line),
        };
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
    fn no_syslog_is_no_trouble() {
        Log::none().event(Level::Info, "x", &[]);
    }
}
