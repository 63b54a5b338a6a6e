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

use super::processes::{ATTACKS, GONE, all};
use super::raw::in_child;
use super::report::{Outcome, Report};

/// What is known of a process' program.
#[derive(Debug, PartialEq, Eq)]
enum Program {
    /// A file that is at its place in here.
    Ours,
    /// Some other file.
    Foreign(String),
    /// It is not for us to know.
    Hidden,
    Gone,
}

fn program(pid: i32) -> Program {
    let path = format!("/proc/{pid}/exe");
    match (File::open(&path).and_then(|file| file.metadata()), fs::read_link(&path)) {
        (Ok(file), Ok(target)) => {
            let id = |file: &fs::Metadata| (file.dev(), file.ino());
            match fs::metadata(&target) {
                Ok(here) if id(&here) == id(&file) => Program::Ours,
                _ => Program::Foreign(target.display().to_string()),
            }
        }
        _ if fs::metadata(format!("/proc/{pid}")).is_ok() => Program::Hidden,
        _ => Program::Gone,
    }
}

pub(super) fn attack(report: &mut Report) {
    // Those that are there already have been tried by the other attacks.
    let mut known: BTreeSet<i32> = all().into_iter().collect();
    let mut open: BTreeSet<i32> = BTreeSet::new();
    let mut tried = 0_u64;
    let mut hidden = BTreeSet::new();
    let mut reached: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    while !ended() {
        let now: BTreeSet<i32> = all().into_iter().collect();
        open.extend(now.difference(&known));
        known = now;
        open.retain(|pid| {
            match program(*pid) {
                Program::Ours | Program::Gone => return false,
                Program::Foreign(path) => {
                    reached.entry("its program").or_default().push(format!("{pid}: {path}"));
                }
                Program::Hidden => {}
            }
            hidden.insert(*pid);
            for (name, attack) in ATTACKS {
                tried += 1;
                // A process of its own lets go of what it traces.
                let done = match name {
                    "ptrace" => !in_child(|| Outcome::of_or(attack(*pid), &GONE)).contained,
                    _ => attack(*pid).is_ok(),
                };
                // It may have executed a program of the jail just before, and is ours then.
                if done && matches!(program(*pid), Program::Hidden | Program::Foreign(_)) {
                    reached.entry(name).or_default().push(pid.to_string());
                }
            }
            true
        });
    }
    let seen = format!("{tried} attempts on {} processes", hidden.len());
    for name in ATTACKS.iter().map(|(name, _)| *name).chain(["its program"]) {
        let outcome = match reached.get(name) {
            Some(pids) => Outcome::reached(format!("{} ({seen})", pids.join(", "))),
            None => Outcome::contained(&*seen),
        };
        report.add(name, outcome);
    }
}

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
