//! Lies in wait for processes that appear, which is how a login process could be had before it has become the user
//! (CVE-2019-5736), until standard input ends.
//!
//! What is sought is a process that runs a file of the host's. Such a one must not be had at all; what it becomes
//! when it executes a program of the jail is the user's own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Setting;
use super::processes::{ATTACKS, GONE, all, is_ours};
use super::raw::in_child;
use super::report::{Outcome, Report};

/// What is known of a process.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// It runs a file that is at its place in here, or may be looked into by its uid.
    Ours,
    /// It runs some other file, which could be opened.
    Foreign(String),
    /// It is not for us to know.
    Hidden,
    /// It has ended, or has begun to: it has no program any more.
    Ending,
}

fn kind(pid: i32, setting: &Setting) -> Kind {
    let path = format!("/proc/{pid}/exe");
    match (File::open(&path).and_then(|file| file.metadata()), fs::read_link(&path)) {
        (Ok(file), Ok(target)) => {
            let id = |file: &fs::Metadata| (file.dev(), file.ino());
            match fs::metadata(&target) {
                Ok(here) if id(&here) == id(&file) => Kind::Ours,
                _ => Kind::Foreign(target.display().to_string()),
            }
        }
        _ => {
            // Asked in this order: the files of a process that ends are its uid's, whatever it was.
            let is_ours = is_ours(pid, setting);
            match (is_ending(pid), is_ours) {
                (true, _) => Kind::Ending,
                // One that has executed a program of the jail, in a session that this one may not look into.
                (false, true) => Kind::Ours,
                (false, false) => Kind::Hidden,
            }
        }
    }
}

/// PF_EXITING of linux/sched.h, the seventh field of proc_pid_stat(5) after the name; or it is gone.
fn is_ending(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let flags =
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_none_or(|flags| flags & 4 != 0)
}

fn name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default()
}

/// What gives something of a process that has no memory any more. The kernel then lists the numbers of its descriptors to
/// whoever has its uid, which are nothing to hold.
const OF_THE_DYING: [&str; 4] =
    ["open /proc/PID/root", "open /proc/PID/cwd", "open /proc/PID/fd/0", "pidfd_getfd"];

pub(super) fn attack(report: &mut Report, setting: &Setting) {
    // Those that are there already have been tried by the other attacks.
    let mut known: BTreeSet<i32> = all().into_iter().collect();
    let mut open: BTreeSet<i32> = BTreeSet::new();
    // Processes that were seen at work and hidden, by their names, which an exec changes.
    let mut hidden: BTreeMap<i32, String> = BTreeMap::new();
    let mut tried = 0_u64;
    let mut reached: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    while !ended() {
        let now: BTreeSet<i32> = all().into_iter().collect();
        open.extend(now.difference(&known));
        known = now;
        open.retain(|pid| {
            let mut get = |what, pid: i32, more: &str| {
                reached.entry(what).or_default().insert(format!("{pid}{more}"));
            };
            match kind(*pid, setting) {
                Kind::Ours => return false,
                Kind::Foreign(path) => get(PROGRAM, *pid, &format!(" {path}")),
                Kind::Hidden => {
                    hidden.entry(*pid).or_insert_with(|| name(*pid));
                }
                // The kernel may forget then that it was hidden; what was ours is ours.
                Kind::Ending => match hidden.get(pid) {
                    Some(was) if *was == name(*pid) => {}
                    _ => return false,
                },
            }
            for (name, attack) in ATTACKS {
                tried += 1;
                // A process of its own lets go of what it traces.
                let done = match name {
                    "ptrace" => !in_child(|| Outcome::of_or(attack(*pid), &GONE)).contained,
                    _ => attack(*pid).is_ok(),
                };
                match kind(*pid, setting) {
                    // It has executed a program of the jail just before.
                    Kind::Ours => break,
                    Kind::Ending if !OF_THE_DYING.contains(&name) => {}
                    Kind::Ending if hidden.get(pid) != Some(&self::name(*pid)) => {}
                    _ if done => get(name, *pid, ""),
                    _ => {}
                }
            }
            true
        });
        open.retain(|pid| known.contains(pid));
    }
    let seen = format!("{tried} attempts on {} processes", hidden.len());
    for name in ATTACKS.iter().map(|(name, _)| *name).chain([PROGRAM]) {
        let outcome = match reached.get(name) {
            Some(found) => {
                let found: Vec<String> = found.iter().cloned().collect();
                Outcome::reached(format!("{} ({seen})", Outcome::nothing(&found).answer))
            }
            None => Outcome::contained(&*seen),
        };
        report.add(name, outcome);
    }
}

/// The attack of looking what a process runs.
const PROGRAM: &str = "its program";

/// Whether standard input has come to its end.
fn ended() -> bool {
    let stdin = std::io::stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(0) => false,
        Ok(_) => std::io::Read::read(&mut stdin.lock(), &mut [0; 64]).unwrap_or(0) == 0,
        Err(_) => true,
    }
}
