//! Where a command can be interrupted: by a kill or by an error at one of its system calls, as strace(1) injects them.
//!
//! A kill is tried at each call that may change something: between two of these it leaves the same. One error is tried at each of them
//! that can fail for lack of space, descriptors or a sound disk, and at every fourth other. `OJAIL_EVERY=1` tries all calls and all
//! errors.

#![allow(clippy::print_stderr, reason = "how much was tried is told, not asserted")]

use std::collections::BTreeMap;
use std::fmt;
use std::fs;

use lab::{Host, Output};

/// One system call of a command.
pub(crate) struct Point {
    pub(crate) call: String,
    /// Which it is of those of its name.
    number: usize,
    /// As strace shows it.
    line: String,
}

/// What changes nothing that would outlive the command.
const IDLE: &[&str] = &[
    "access",
    "arch_prctl",
    "brk",
    "clock_nanosleep",
    "close",
    "dup",
    "exit_group",
    "fadvise64",
    "fcntl",
    "fgetxattr",
    "flistxattr",
    "flock",
    "fstat",
    "fstatfs",
    "futex",
    "getcwd",
    "getdents64",
    "geteuid",
    "getpid",
    "getppid",
    "getrandom",
    "getuid",
    "lgetxattr",
    "llistxattr",
    "lseek",
    "madvise",
    "memfd_create",
    "mmap",
    "mprotect",
    "munmap",
    "newfstatat",
    "pipe2",
    "poll",
    "ppoll",
    "prctl",
    "pread64",
    "prlimit64",
    "read",
    "readlink",
    "readlinkat",
    "recvfrom",
    "recvmsg",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "sched_getaffinity",
    "set_robust_list",
    "set_tid_address",
    "sigaltstack",
    "socket",
    "statfs",
    "statx",
    "sysinfo",
    "uname",
    "wait4",
    "waitid",
];

/// Whether all is to be tried.
fn every() -> bool {
    std::env::var_os("OJAIL_EVERY").is_some_and(|value| value == "1")
}

impl Point {
    /// Every system call of a command, of its start (linking, memory) too.
    #[track_caller]
    pub(crate) fn all(host: &Host, command: &str) -> Vec<Self> {
        host.root(&format!("strace -y -o /root/calls {command}")).ok();
        let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
        let mut points = Vec::new();
        for line in fs::read_to_string(host.path("/root/calls")).unwrap().lines() {
            // "openat(AT_FDCWD, …) = 3"; what else there is begins with "+++" or "---".
            let Some((name, _)) = line.split_once('(').filter(|(name, _)| !name.starts_with(['+', '-']))
            else {
                continue;
            };
            let number = numbers.entry(name.to_owned()).or_default();
            *number += 1;
            points.push(Self { call: name.to_owned(), number: *number, line: line.to_owned() });
        }
        assert!(points.len() > 100, "{command} has {} system calls only", points.len());
        points
    }

    /// Whether it comes to something of ojail's: what is before is the start of the program.
    pub(crate) fn begins(&self) -> bool {
        self.line.contains("ojail.toml") || self.line.contains("/run/ojail/")
    }

    fn changes(&self) -> bool {
        let opens = ["open", "openat", "openat2"].contains(&&*self.call);
        if opens { self.line.contains("O_CREAT") } else { !IDLE.contains(&&*self.call) }
    }

    /// What it may fail with.
    fn errors(&self) -> &'static [&'static str] {
        match &*self.call {
            // No pipe has such errors, and the standard library does not expect any.
            "read" if self.line.contains("<pipe:[") => &[],
            "mkdir" | "mkdirat" | "mknodat" | "linkat" | "symlink" | "symlinkat" | "write" | "ftruncate"
            | "rename" | "renameat" | "renameat2" | "setxattr" | "fsetxattr" | "lsetxattr"
            | "copy_file_range" => &["ENOSPC", "EIO", "EROFS"],
            "open" | "openat" | "openat2" | "open_tree" | "memfd_create" => &["EMFILE", "EIO", "ENOSPC"],
            "pipe2" | "socket" | "socketpair" | "accept4" | "pidfd_open" | "dup" => &["EMFILE"],
            "fchown" | "fchownat" | "fchmod" | "fchmodat" | "chmod" | "utimensat" | "unlink" | "unlinkat"
            | "rmdir" => &["EIO", "EROFS"],
            "fsync" | "fdatasync" | "syncfs" | "getdents64" | "flock" | "statx" | "newfstatat" | "fstat"
            | "read" | "pread64" | "readlink" | "readlinkat" | "lgetxattr" | "llistxattr" => &["EIO"],
            "clone" | "clone3" | "vfork" | "fork" => &["EAGAIN"],
            _ => &[],
        }
    }

    fn inject(&self, host: &Host, command: &str, what: &str) -> Output {
        let (call, number) = (&self.call, self.number);
        // To decode all others as well takes a quarter of the time.
        let inject = format!("-e trace={call} -e 'inject={call}:{what}:when={number}'");
        host.root(&format!("strace -qq -o /dev/null {inject} {command}")).run()
    }

    /// Runs the command, and kills it here.
    pub(crate) fn kill(&self, host: &Host, command: &str) -> Output {
        self.inject(host, command, "signal=KILL")
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} number {}", self.call, self.number)
    }
}

/// Something that can be interrupted.
pub(crate) struct Act<'a> {
    pub(crate) host: &'a Host,
    pub(crate) command: &'a str,
    /// In the shell: what makes all as it is to be before, whatever is there.
    pub(crate) begin: String,
    /// All that the act may change, in words.
    pub(crate) state: &'a dyn Fn() -> String,
}

impl Act<'_> {
    #[track_caller]
    fn begin(&self) {
        self.host.root(&format!("set -e; {{ {}; }} >/dev/null", self.begin)).ok();
    }

    /// What is before it and behind it.
    #[track_caller]
    pub(crate) fn states(&self) -> (String, String) {
        self.begin();
        let old = (self.state)();
        self.host.root(self.command).ok();
        let new = (self.state)();
        assert_ne!(old, new, "{} does nothing", self.command);
        (old, new)
    }

    fn points(&self) -> Vec<Point> {
        self.begin();
        Point::all(self.host, self.command)
    }

    /// Kills it at each point; `look` sees what is left then, and hears at which. Returns at how many.
    pub(crate) fn kill(&self, look: impl FnMut(&str)) -> usize {
        self.kill_at_each(1, look)
    }

    /// As [`Act::kill`], at every so manieth of them, and at all that rename something.
    pub(crate) fn kill_at_each(&self, manieth: usize, mut look: impl FnMut(&str)) -> usize {
        let points = self.points();
        let all = points.len();
        let points = points.into_iter().filter(|point| every() || point.changes()).enumerate();
        let tried = |number: usize, point: &Point| {
            every() || number % manieth == 0 || point.call.starts_with("rename")
        };
        let points: Vec<_> =
            points.filter(|(number, point)| tried(*number, point)).map(|(_, point)| point).collect();
        for point in &points {
            self.begin();
            point.kill(self.host, self.command);
            look(&format!("{}: a kill at {point}", self.command));
        }
        eprintln!("{}: killed at {} of {all} system calls", self.command, points.len());
        points.len()
    }

    /// Has one call after the other fail. Either the act is done nevertheless, or it says why not, in one line, and has changed nothing.
    /// Returns how many errors there were.
    pub(crate) fn fail(&self) -> usize {
        let (old, new) = self.states();
        self.fail_and(|at, output| {
            let now = (self.state)();
            assert_eq!(now, if output.status.success() { &*new } else { &*old }, "{at}: {output}");
        })
    }

    /// As [`Act::fail`], but `look` sees what is left.
    pub(crate) fn fail_and(&self, mut look: impl FnMut(&str, &Output)) -> usize {
        let (mut errors, mut done) = (0, 0);
        let points = self.points();
        // What goes wrong with the start of a program is not ours to phrase.
        let start = points.iter().position(Point::begins).unwrap_or(0);
        for (turn, point) in points[start..].iter().enumerate() {
            let possible = point.errors();
            for (number, error) in possible.iter().enumerate() {
                let tried = number == turn % possible.len() && (point.changes() || turn % 4 == 0);
                if !tried && !every() {
                    continue;
                }
                self.begin();
                let output = point.inject(self.host, self.command, &format!("error={error}"));
                let at = format!("{}: {error} at {point}, {}", self.command, point.line);
                if output.status.success() {
                    done += 1;
                } else {
                    assert_eq!(output.code(), Some(1), "{at}: {output}");
                    assert_eq!(output.stderr.lines().count(), 1, "{at}: {output}");
                }
                look(&at, &output);
                errors += 1;
            }
        }
        eprintln!("{}: {errors} errors, {done} of them were no hindrance", self.command);
        errors
    }
}
