//! Ending a jail from outside: `ojail stop`, and the first half of a reset. Host root.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::door::{Door, Request};
use crate::error::{Act, Error, Result};
use crate::runtime::Corner;

/// How long a jail has to end by itself: its own grace between SIGTERM and SIGKILL, and some more.
const PATIENCE: Duration = Duration::from_secs(6);

/// Ends the jail and everything in it; returns when nothing of it is left. The caller holds the user's lock, so that
/// no login raises a new one meanwhile. `Ok(false)`: there was none.
///
/// # Errors
/// [`Error::StillEnding`] if even SIGKILL did not help.
pub fn end(corner: &Corner) -> Result<bool> {
    let Some(door) = Door::knock(corner)? else {
        // PID 1 may be dead and its login processes not yet.
        return if corner.gone(PATIENCE)? { Ok(false) } else { Err(still(corner)) };
    };
    let namespace = user_namespace(door.pid()).act("examine", "the user namespace of the jail")?;
    door.tell(&Request::Stop)?;
    if !door.wait_for_end(PATIENCE)? {
        // It did not listen (or was stopped). The kernel ends every process of the namespace with its PID 1.
        let _ = pidfd_send_signal(door.init(), Signal::KILL);
        if !door.wait_for_end(PATIENCE)? {
            return Err(still(corner));
        }
    }
    // Login processes are on the host's side of the PID namespace. Most end with their child; the rest is ended here.
    if !corner.gone(Duration::from_millis(500))? {
        kill_members(namespace);
        if !corner.gone(PATIENCE)? {
            return Err(still(corner));
        }
    }
    // A PID 1 that had to be killed could not take its door away.
    corner.sweep()?;
    Ok(true)
}

fn still(corner: &Corner) -> Error {
    Error::StillEnding { user: corner.user().to_string() }
}

/// The identity of a process' user namespace: device and inode of its file in /proc.
fn user_namespace(pid: i32) -> std::io::Result<(u64, u64)> {
    let meta = fs::metadata(format!("/proc/{pid}/ns/user"))?;
    Ok((meta.dev(), meta.ino()))
}

/// Kills every process that is in this user namespace. Membership is asked again after the pidfd is open, so a pid that
/// was reused meanwhile is left alone.
fn kill_members(namespace: (u64, u64)) {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let member = || user_namespace(pid).is_ok_and(|ns| ns == namespace);
        if !member() {
            continue;
        }
        if let Some(pidfd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
            if member() {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
    }
}
