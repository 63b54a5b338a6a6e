//! Threads in namespaces of their own: the lab's one trick.
//!
//! A thread can leave its process's namespaces by itself, and what it spawns is born where it is. So the
//! lab needs no `unshare`, no `nsenter` and no helper binary: a host is raised by a thread in fresh
//! namespaces, and entered later by a short-lived thread that joins them. The threads of the test
//! itself stay where they are.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::process::{Child, Command};
use std::thread;

use rustix::fs::Mode;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Pid, PidfdFlags, pidfd_open, setsid, umask};
use rustix::thread::{
    ThreadNameSpaceType as Kind, UnshareFlags, move_into_thread_name_spaces, unshare_unsafe,
};

/// Runs `act` on a thread with a new mount namespace, cut off from the machine's, and the others named.
pub(crate) fn in_new<T: Send>(others: UnshareFlags, act: impl FnOnce() -> T + Send) -> T {
    on_a_thread(|| {
        unshare(UnshareFlags::NEWNS | others);
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .expect("a new mount namespace can be made private");
        act()
    })
}

/// The next process that this thread spawns is PID 1 of a new PID namespace. When that one has ended, the
/// thread can spawn no more, so whatever helps to prepare must run before.
pub(crate) fn next_is_pid_1() {
    unshare(UnshareFlags::NEWPID);
}

/// The namespaces of a running host, held by its PID 1.
pub(crate) struct Namespaces {
    pid_1: OwnedFd,
}

impl Namespaces {
    pub(crate) fn of(pid_1: &Child) -> Self {
        let pid_1 = pidfd_open(Pid::from_child(pid_1), PidfdFlags::empty()).expect("a child has a pidfd");
        Self { pid_1 }
    }

    /// Runs `act` on a thread inside: files, network and host name are the host's, and so is every
    /// process that it spawns.
    pub(crate) fn enter<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let all = Kind::MOUNT
            | Kind::PROCESS_ID
            | Kind::HOST_NAME_AND_NIS_DOMAIN_NAME
            | Kind::INTER_PROCESS_COMMUNICATION
            | Kind::NETWORK;
        self.enter_some(all, act)
    }

    /// Runs `act` on a thread beside the host: files are the machine's, but the network is the host's, and what it
    /// spawns ends with the host.
    pub(crate) fn enter_beside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        self.enter_some(Kind::PROCESS_ID | Kind::NETWORK, act)
    }

    fn enter_some<T: Send>(&self, which: Kind, act: impl FnOnce() -> T + Send) -> T {
        on_a_thread(|| {
            // Root and working directory are shared by the threads of a process, unless one asks.
            unshare(UnshareFlags::FS);
            move_into_thread_name_spaces(self.pid_1.as_fd(), which)
                .unwrap_or_else(|error| panic!("cannot enter the host, its PID 1 may be dead: {error}"));
            act()
        })
    }
}

/// Lets a process of a host take nothing along from the test: no terminal, no umask, no signals that are ignored (nohup, a job in the
/// background of a script), no descriptors but its standard ones. It leads a session and a process group of its own.
pub(crate) fn start_afresh(command: &mut Command) -> &mut Command {
    let afresh = || {
        setsid()?;
        umask(Mode::WGRP | Mode::WOTH);
        for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
            // SAFETY: SIG_DFL installs no handler.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        // Not closed now, for the standard library still needs one of them to report a failed exec.
        // SAFETY: takes three numbers, and touches no memory.
        let done =
            unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; these are bare system calls.
    unsafe { command.pre_exec(afresh) }
}

fn unshare(what: UnshareFlags) {
    assert!(!what.contains(UnshareFlags::FILES));
    // SAFETY: what makes this call unsafe is a descriptor table of one thread's own; it is not asked for.
    unsafe { unshare_unsafe(what) }
        .unwrap_or_else(|error| panic!("cannot unshare {what:?}: {error}; is this root?"));
}

fn on_a_thread<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(act).join()).unwrap_or_else(|panic| resume_unwind(panic))
}
