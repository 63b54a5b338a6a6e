//! The caller's part of a raise: starts `ojail-init` with the plan, and hears how it came out.
//!
//! Runs in the login process or in `ojail`, as host root.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::plan::Plan;
use crate::error::{Act, Error, Result};
use crate::{cgroup, paths, quota};

/// How long the caller waits for `ojail-init`. It takes milliseconds, unless a disk or a network home is slow.
const PATIENCE: Duration = Duration::from_secs(30);

/// What `ojail-init` reports, as one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Outcome {
    Ready,
    Failed(String),
}

/// Starts `ojail-init` with the plan, and returns when the jail stands.
///
/// `alive` is the claim on the upper; the jail's PID 1 holds it from now on. The caller holds the user's lock.
///
/// # Errors
/// [`Error::NotRaised`] with `ojail-init`'s own sentence; nothing is left behind then.
pub fn start(plan: &Plan, alive: File) -> Result<()> {
    raise(plan, alive).inspect_err(|_| {
        if let Some(upper) = &plan.upper {
            upper.undo();
        }
        cgroup::tidy(plan.corner.user());
    })
}

fn raise(plan: &Plan, alive: File) -> Result<()> {
    let program = paths::init();
    let (ours, theirs) = UnixStream::pair().act("make", "a socket pair")?;
    // A fresh program with an empty environment: nothing of the login process' memory gets near the jail. The two
    // descriptors that it needs are its standard input and output; it closes whatever else it inherited. Nothing else is run
    // from here: under the limits of a login process it might fail. Whose jail it is it needs to know before it reads the plan.
    let mut init = Command::new(&program)
        .args([plan.corner.user().as_str(), &plan.outside_uid().to_string()])
        .env_clear()
        .current_dir("/")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::from(alive))
        .stderr(Stdio::null())
        .spawn()
        .act("run", &program)?;
    let raised = match converse(&ours, plan) {
        // Before anybody is let in: the lock is held, and whoever is quicker than it finds a megabyte more than theirs.
        Ok(Outcome::Ready) => match &plan.upper {
            Some(upper) => quota::settle(upper, &plan.limits),
            None => Ok(()),
        },
        Ok(Outcome::Failed(why)) => Err(Error::NotRaised(why)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(Error::NotRaised(format!(
            "{program} has not raised the jail within {} s",
            PATIENCE.as_secs()
        ))),
        Err(source) => Err(Error::Act { act: "hear from", what: program.clone(), source }),
    };
    if raised.is_err() {
        // Both halves, for `ojail-init` leads a process group; one of them may have been stopped, and would hold the claim for
        // good. If it has not come so far, there is only the first.
        let group = i32::try_from(init.id()).map(|pid| Pid::from_raw(-pid));
        let _ = group.map(|group| kill(group, Signal::SIGKILL));
        let _ = init.kill();
    }
    // The host half has gone by now, or never will; either way its own exit says nothing that the line does not. In
    // a process that ignores SIGCHLD there is nothing left to wait for.
    let _ = init.wait();
    let Err(why) = raised else { return Ok(()) };
    // A door may have been hung that was never opened.
    plan.corner.sweep()?;
    Err(why)
}

/// Sends the plan, and hears what became of it.
fn converse(mut socket: &UnixStream, plan: &Plan) -> io::Result<Outcome> {
    socket.set_read_timeout(Some(PATIENCE))?;
    // An `ojail-init` that died at once is told by the end of file below, not by this write.
    let _ = socket.write_all(&serde_json::to_vec(plan)?);
    let _ = socket.shutdown(std::net::Shutdown::Write);
    // Lines that are no outcome are systemd-run's. They tell why, if none comes.
    let mut words = Vec::new();
    for line in BufReader::new(socket).lines() {
        let line = match line {
            // Its end with the plan still unread.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => break,
            line => line?,
        };
        match serde_json::from_str(&line) {
            Ok(outcome) => return Ok(outcome),
            Err(_) => words.push(line.trim().to_owned()),
        }
    }
    let mut why = format!("{} ended without a word", paths::init());
    if !words.is_empty() {
        why = format!("{} could not run: {}", paths::init(), words.join("; "));
    }
    Ok(Outcome::Failed(why))
}
