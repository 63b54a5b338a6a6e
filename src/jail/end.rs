//! Ending a jail from outside: `ojail stop`, and the first half of a reset. Host root.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::door::{Answer, Door, Guest, Request};
use super::view;
use crate::cgroup;
use crate::error::{Error, Result};
use crate::runtime::Corner;

/// How long a jail has to end by itself: its own grace between SIGTERM and SIGKILL, and some more.
const PATIENCE: Duration = Duration::from_secs(6);

/// What came of [`end_if_empty`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It has ended, and nothing of it is left.
    Now,
    /// There was none.
    Before,
    /// It lives on, because of these sessions.
    Not(Vec<Guest>),
}

/// Ends the jail and everything in it; returns when nothing of it is left. The caller holds the user's lock, so that
/// no login raises a new one meanwhile. `Ok(false)`: there was none.
///
/// # Errors
/// [`Error::StillEnding`] if even SIGKILL did not help; [`Error::ViewOpen`] while the administrator has it mounted.
pub fn end(corner: &Corner) -> Result<bool> {
    not_mounted(corner)?;
    let Some(door) = Door::knock(corner)? else { return nothing_left(corner).map(|()| false) };
    let members = Members::of(&door);
    door.tell(&Request::Stop)?;
    finish(corner, &door, members).map(|()| true)
}

/// As [`end`], but only if no session is open. PID 1 itself decides, and is the one who lets sessions in: each either began
/// before, and is named here, or finds a jail that is ending, and waits for the caller's lock to raise another. What
/// lingers without a session is ended.
///
/// # Errors
/// [`Error::StillEnding`] if even SIGKILL did not help. [`Error::Door`], [`Error::Act`] if PID 1 cannot be asked: somebody
/// may be in. Should it hear of this later, it will decide then. [`Error::ViewOpen`].
pub fn end_if_empty(corner: &Corner) -> Result<Ended> {
    not_mounted(corner)?;
    let Some(door) = Door::knock(corner)? else { return nothing_left(corner).map(|()| Ended::Before) };
    let members = Members::of(&door);
    let unknown = |answer: String| Err(Error::Door { user: corner.user().to_string(), answer });
    match door.ask(&Request::StopIfEmpty)? {
        Some(Answer::Closing) => {}
        Some(Answer::Status(status)) => return Ok(Ended::Not(status.sessions)),
        Some(answer) => return unknown(format!("{answer:?}")),
        // It ended by itself, or is of a version that hangs up on what it does not understand.
        None if door.wait_for_end(PATIENCE)? => {}
        None => return unknown("none".into()),
    }
    finish(corner, &door, members).map(|()| Ended::Now)
}

/// Refuses while the administrator has the jail mounted: its overlay would stay, and with it the upper in use. The caller holds the
/// user's lock.
///
/// # Errors
/// [`Error::ViewOpen`].
pub fn not_mounted(corner: &Corner) -> Result<()> {
    match corner.view()? {
        Some(path) => Err(Error::ViewOpen { user: corner.user().to_string(), path }),
        None => view::forget(corner),
    }
}

/// PID 1 may be dead and its login processes not yet.
fn nothing_left(corner: &Corner) -> Result<()> {
    if corner.gone(PATIENCE)? { Ok(()) } else { Err(still(corner)) }
}

/// Sees to it that nothing is left of a jail that was told to end.
fn finish(corner: &Corner, door: &Door, members: Option<Members>) -> Result<()> {
    if !door.wait_for_end(PATIENCE)? {
        // It did not listen (or was stopped). The kernel ends every process of the namespace with its PID 1.
        let _ = pidfd_send_signal(door.init(), Signal::KILL);
        if !door.wait_for_end(PATIENCE)? {
            return Err(still(corner));
        }
    }
    // Login processes are on the host's side of the PID namespace. Most end with their child. The rest is ended here, and
    // so is what was executed by one without a fork: it is in the jail's mounts, but has let go of the claim on them.
    corner.gone(Duration::from_millis(500))?;
    if let Some(members) = members {
        members.kill();
    }
    if !corner.gone(PATIENCE)? {
        return Err(still(corner));
    }
    // A PID 1 that had to be killed could not take its door away.
    corner.sweep()?;
    cgroup::tidy(corner.user());
    Ok(())
}

/// Every process of the jail behind this door, as the host counts: login processes too. `None` if it has just ended, or is not told
/// apart from the host.
#[must_use]
pub fn members(door: &Door) -> Option<Vec<i32>> {
    Members::of(door).map(|members| members.pids().collect())
}

fn still(corner: &Corner) -> Error {
    Error::StillEnding { user: corner.user().to_string() }
}

/// The processes of one user namespace.
struct Members {
    /// Kept open, so that its inode number cannot become another namespace's.
    _namespace: fs::File,
    id: (u64, u64),
}

impl Members {
    /// The members of the jail behind this door. `None` if it has just ended, or is not told apart from the host.
    fn of(door: &Door) -> Option<Self> {
        let namespace = fs::File::open(format!("/proc/{}/ns/user", door.pid())).ok()?;
        let id = identity(&namespace.metadata().ok()?);
        let own = identity(&fs::metadata("/proc/self/ns/user").ok()?);
        // If PID 1 still lives, the number was still its own when the file was opened.
        let lives = !door.wait_for_end(Duration::ZERO).ok()?;
        (lives && id != own).then_some(Self { _namespace: namespace, id })
    }

    fn has(&self, pid: i32) -> bool {
        fs::metadata(format!("/proc/{pid}/ns/user")).is_ok_and(|meta| identity(&meta) == self.id)
    }

    /// Their numbers, as the host counts.
    fn pids(&self) -> impl Iterator<Item = i32> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| self.has(*pid))
    }

    /// Kills them. Membership is asked again after each pidfd is open, so a pid that was reused is left alone.
    fn kill(&self) {
        for pid in self.pids() {
            if let Some(pidfd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            {
                if self.has(pid) {
                    let _ = pidfd_send_signal(&pidfd, Signal::KILL);
                }
            }
        }
    }
}

/// What tells one namespace from another: device and inode of its file in /proc.
fn identity(meta: &fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}
