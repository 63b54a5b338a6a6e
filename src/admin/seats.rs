//! At which terminals the sessions of jails sit, as the host's `/proc` tells. Host root, who may read it.
//!
//! A process' terminal is told as a device number only, and each devpts counts for itself: number 0 is `/dev/pts/0` of the host
//! or of a jail. A login process that has a terminal of its own (su, login) had it from the host, and so have its children. One
//! that has none (sshd) makes those of its sessions after it has joined, and they are the jail's.

use std::collections::{BTreeSet, HashMap};
use std::fs;

use rustix::fs::{major, minor};

/// A terminal of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Terminal {
    /// `/dev/pts/N` of the jail.
    Jail(u32),
    /// `/dev/pts/N` of the host.
    Host(u32),
    /// `/dev/ttyN` of the host.
    Console(u32),
}

/// As people say it: without `/dev`.
impl std::fmt::Display for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Jail(number) => write!(f, "pts/{number}"),
            Self::Host(number) => write!(f, "pts/{number} of the host"),
            Self::Console(number) => write!(f, "tty{number} of the host"),
        }
    }
}

/// The major number of all pseudo terminals (Documentation/admin-guide/devices.txt).
pub(super) const PTS: u32 = 136;

/// The major number of the consoles.
pub(super) const TTY: u32 = 4;

/// Consoles are the minor numbers up to this one; above are serial lines.
const CONSOLES: u32 = 63;

/// sshd's child becomes the user, and the child's child is the shell. Deeper are programs of the user's, which may have made
/// terminals of their own.
const DEPTH: u32 = 2;

/// The processes of the host at one moment.
#[derive(Debug, Default)]
pub(super) struct Processes {
    terminals: HashMap<u32, u64>,
    children: HashMap<u32, Vec<u32>>,
}

impl Processes {
    /// Those of now. What cannot be read has ended.
    pub(super) fn look() -> Self {
        let mut processes = Self::default();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Ok(stat) = fs::read(entry.path().join("stat")) else { continue };
            if let Some((parent, terminal)) = parse(&stat) {
                processes.terminals.insert(pid, terminal);
                processes.children.entry(parent).or_default().push(pid);
            }
        }
        processes
    }

    /// The terminals of the session whose login process this is. There are several if it has several channels, and none if it
    /// has only pipes.
    pub(super) fn terminals(&self, login: u32, service: &str) -> BTreeSet<Terminal> {
        let own = self.terminals.get(&login).copied().unwrap_or(0);
        // `ojail enter` has the administrator's, and makes another for the session.
        if own != 0 && service != "enter" {
            let number = minor(own);
            return match major(own) {
                PTS => Some(Terminal::Host(number)),
                TTY if (1..=CONSOLES).contains(&number) => Some(Terminal::Console(number)),
                _ => None,
            }
            .into_iter()
            .collect();
        }
        let mut found = BTreeSet::new();
        let mut generation = vec![login];
        for _ in 0..DEPTH {
            generation = generation
                .iter()
                .flat_map(|pid| self.children.get(pid).into_iter().flatten().copied())
                .collect();
            let terminals = generation.iter().filter_map(|pid| self.terminals.get(pid));
            found.extend(
                terminals
                    .filter(|terminal| major(**terminal) == PTS)
                    .map(|terminal| Terminal::Jail(minor(*terminal))),
            );
        }
        found
    }
}

/// Parent and terminal of `/proc/PID/stat`. The name, in brackets, is the user's choice, and may have brackets in it.
fn parse(stat: &[u8]) -> Option<(u32, u64)> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(stat.get(end + 1..)?).ok()?.split_ascii_whitespace();
    // State, parent, process group, session, terminal (proc_pid_stat(5)).
    let parent = fields.nth(1)?.parse().ok()?;
    let terminal: i32 = fields.nth(2)?.parse().ok()?;
    // Signed in print only.
    Some((parent, u32::from_ne_bytes(terminal.to_ne_bytes()).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_pretend_to_be_the_rest_of_the_line() {
        assert_eq!(parse(b"7 (sh) S 3 7 7 34816 7 0"), Some((3, 34816)));
        assert_eq!(parse(b"7 (a) S 1 1 1 1 (\xff) S 3 7 7 0 -1 0"), Some((3, 0)));
        assert_eq!(parse(b"7 (sh"), None);
    }

    #[test]
    fn large_numbers_of_terminals_are_told() {
        // new_encode_dev of the kernel: the minor's low byte, the major, and the rest of the minor above.
        let (_, terminal) = parse(b"7 (sh) S 3 7 7 1083440 7 0").unwrap();
        assert_eq!((major(terminal), minor(terminal)), (136, 304));
    }

    /// Processes as (pid, parent, terminal).
    fn processes(list: &[(u32, u32, u32)]) -> Processes {
        let mut processes = Processes::default();
        for (pid, parent, terminal) in list {
            processes.terminals.insert(*pid, u64::from(*terminal));
            processes.children.entry(*parent).or_default().push(*pid);
        }
        processes
    }

    const PTS_0: u32 = 136 << 8;

    #[test]
    fn the_terminals_of_a_session_are_those_that_the_login_made() {
        let two = processes(&[(10, 1, 0), (11, 10, 0), (12, 11, PTS_0), (13, 11, PTS_0 + 1)]);
        let all: Vec<_> = two.terminals(10, "sshd").into_iter().collect();
        assert_eq!(all, [Terminal::Jail(0), Terminal::Jail(1)]);
        // What a user's program made is not the session's.
        let deep = processes(&[(10, 1, 0), (11, 10, 0), (12, 11, 0), (13, 12, PTS_0)]);
        assert_eq!(deep.terminals(10, "sshd").len(), 0);
    }

    #[test]
    fn a_terminal_that_was_there_before_the_login_is_the_hosts() {
        let su = processes(&[(10, 1, PTS_0 + 3), (11, 10, PTS_0 + 3)]);
        assert_eq!(su.terminals(10, "su").into_iter().collect::<Vec<_>>(), [Terminal::Host(3)]);
        let console = processes(&[(10, 1, (4 << 8) + 1)]);
        assert_eq!(console.terminals(10, "login").into_iter().collect::<Vec<_>>(), [Terminal::Console(1)]);
        let serial = processes(&[(10, 1, (4 << 8) + 64)]);
        assert_eq!(serial.terminals(10, "login").len(), 0);
        let enter = processes(&[(10, 1, PTS_0 + 3), (11, 10, PTS_0)]);
        assert_eq!(enter.terminals(10, "enter").into_iter().collect::<Vec<_>>(), [Terminal::Jail(0)]);
    }
}
