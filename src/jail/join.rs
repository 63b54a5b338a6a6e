//! Joining: the login process moves itself into a running jail. It runs inside sshd, su, cron or `ojail enter`.
//!
//! There is no way back from the first step on, and none is wanted: after an error the process is in the jail, or on
//! the host and still about to be refused by its caller.

use std::fs::File;
use std::os::fd::OwnedFd;

use nix::sched::CloneFlags;

use super::confine;
use super::door::{Door, House};
use crate::error::{Act, Result};
use crate::runtime::Corner;
use crate::{cgroup, sys};

/// A session: as long as this value (or a copy of its descriptors in a child) lives, the jail counts it.
#[derive(Debug)]
pub struct Session {
    _line: OwnedFd,
    _alive: File,
}

/// What of a join needs no answer of the jail's: steps 1 to 3, done.
#[derive(Debug)]
pub struct Ready(File);

/// Makes this process ready to join, while PID 1 makes up its answer.
///
/// # Errors
/// [`crate::Error::Act`]; the login must be refused.
pub fn ready(corner: &Corner) -> Result<Ready> {
    // 1. One thread only: setns moves the calling thread, and a second one would stay on the host.
    sys::OneThread::prove().act("join the jail from", "a process with several threads")?;

    // 2. Hold the claim on the upper. This process keeps the jail's mounts in being even if PID 1 dies, and is not in
    //    the jail's PID namespace, so nothing else would tell the next raise. Opened while /run/ojail is in reach.
    let alive = corner.hold()?;

    // 3. Leave the host's keys: a session keyring of its own, made while this is host root, whose quota of keys no user
    //    can use up. A kernel without keyrings has nothing to leave.
    match sys::new_session_keyring() {
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => {}
        made => made.act("make", "a session keyring")?,
    }
    Ok(Ready(alive))
}

/// Moves this process into the jail behind the door, as its root. The caller confines it next.
///
/// # Errors
/// [`crate::Error::Act`] or [`crate::Error::Surprise`]; the login must be refused.
pub fn join(corner: &Corner, door: Door, house: &House, ready: Ready) -> Result<Session> {
    // 4. Come under the limits of the jail, with all that this process will start. While the host's control groups are in
    //    reach; whatever way the user came in by, nothing of theirs is left out.
    if house.limited {
        cgroup::join(corner.user(), house.uid, door.pid())?;
    }

    // 5. Nothing that is open now survives an exec: no directory of the host's reaches the user's shell.
    sys::cloexec_from(3).act("mark to be closed", "the descriptors of the login process")?;

    // 6. Enter all namespaces at once, by a descriptor of the very process that answered the door. The kernel takes
    //    the user namespace first, checks the others against the host's root that we still are, and moves root and
    //    working directory to the jail's. Children will be in its PID namespace; this process stays in its own.
    let all = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET;
    nix::sched::setns(door.init(), all).act("join", "the namespaces of the jail")?;

    // 7. Become root of the jail, with the user's groups: until here this process is uid 0 of the host, which has no
    //    name inside. `su` sets no groups after this, sshd does.
    confine::become_root(&house.groups)?;
    Ok(Session { _line: door.into_session(), _alive: ready.0 })
}
