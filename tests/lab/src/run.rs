//! A command in a host: what it will be, while it runs, and what came of it.
//!
//! Every command has a bound. A test that hangs is killed, and shows what the command printed.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::namespaces::{Namespaces, start_afresh};

const BOUND: Duration = Duration::from_secs(30);

/// How long the output of a command that ended may stay open: a daemon that it left may hold it for ever. On a busy machine the
/// reader may come later than the end; half a second was too short for that.
const LAST_WORDS: Duration = Duration::from_secs(2);

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command to be run in a host by its root, in a session of its own and with a small, clean environment.
#[must_use = "nothing runs until .run(), .ok(), .fails(), .text() or .spawn()"]
pub struct Run<'h> {
    inside: &'h Namespaces,
    /// The program and its options, to which [`Run::arg`] adds.
    words: Vec<OsString>,
    /// What comes after the options.
    operands: Vec<OsString>,
    environment: BTreeMap<OsString, OsString>,
    stdin: Vec<u8>,
    bound: Duration,
}

impl<'h> Run<'h> {
    pub(crate) fn new<S: AsRef<OsStr>>(inside: &'h Namespaces, words: impl IntoIterator<Item = S>) -> Self {
        Self {
            inside,
            words: words.into_iter().map(|word| word.as_ref().to_owned()).collect(),
            operands: Vec::new(),
            environment: BTreeMap::new(),
            stdin: Vec::new(),
            bound: BOUND,
        }
    }

    pub(crate) fn then<S: AsRef<OsStr>>(mut self, operands: impl IntoIterator<Item = S>) -> Self {
        self.operands.extend(operands.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// An option for an SSH client, such as `-A` or `-oBatchMode=no`; `$1` and so on for a shell command.
    pub fn arg(mut self, word: impl AsRef<OsStr>) -> Self {
        self.words.push(word.as_ref().to_owned());
        self
    }

    /// Asks OpenSSH for a terminal at the other end, though there is none at this one.
    pub fn tty(self) -> Self {
        self.arg("-tt")
    }

    /// One more environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// What it reads; nothing if not said.
    pub fn stdin(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.stdin = bytes.as_ref().to_owned();
        self
    }

    /// How long it may take, instead of 30 seconds.
    pub fn within(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// Runs to its end, whatever that is.
    #[track_caller]
    pub fn run(mut self) -> Output {
        let stdin = std::mem::take(&mut self.stdin);
        let mut running = self.spawn();
        if let Some(mut pipe) = running.stdin.take().filter(|_| !stdin.is_empty()) {
            // Apart, since the command may want to be read before it reads. It may also not read at all.
            thread::spawn(move || pipe.write_all(&stdin));
        }
        running.finish()
    }

    /// Runs, and must succeed.
    #[track_caller]
    pub fn ok(self) -> Output {
        self.run().ok()
    }

    /// Runs, and must fail.
    #[track_caller]
    pub fn fails(self) -> Output {
        self.run().fails()
    }

    /// Runs, must succeed, and gives standard output without the space around it.
    #[track_caller]
    pub fn text(self) -> String {
        self.ok().text()
    }

    /// Starts it, and goes on with the test. Its standard input stays open.
    #[track_caller]
    pub fn spawn(self) -> Running<'h> {
        let words = [self.words, self.operands].concat();
        let said = words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .current_dir("/root")
            .env_clear()
            .envs([
                ("PATH", PATH),
                ("HOME", "/root"),
                ("USER", "root"),
                ("TERM", "dumb"),
                ("LANG", "C.UTF-8"),
            ])
            .envs(self.environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        start_afresh(&mut command);

        let started = Instant::now();
        let mut child = self
            .inside
            .enter(|| command.spawn())
            .unwrap_or_else(|error| panic!("cannot run {said}: {error}"));
        let mut running = Running {
            said,
            started,
            bound: self.bound,
            stdin: child.stdin.take(),
            stdout: Gathered::from(child.stdout.take().expect("it was asked for")),
            stderr: Gathered::from(child.stderr.take().expect("it was asked for")),
            child,
            _host: self.inside,
        };
        if !self.stdin.is_empty() {
            running.write(&self.stdin);
        }
        running
    }
}

/// A command that runs. It ends with [`Running::finish`] or [`Running::kill`], at the latest when dropped.
pub struct Running<'h> {
    said: String,
    started: Instant,
    bound: Duration,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Gathered,
    stderr: Gathered,
    /// A host waits for its processes when it ends, so this one must end first.
    _host: &'h Namespaces,
}

impl Running<'_> {
    /// Writes to its standard input.
    #[track_caller]
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let stdin = self.stdin.as_mut().expect("its standard input is closed already");
        if let Err(error) = stdin.write_all(bytes.as_ref()) {
            panic!("{} does not read any more: {error}\n{}", self.said, self.shown());
        }
    }

    /// Waits until it has printed this on standard output, and gives all that it printed so far.
    #[track_caller]
    pub fn wait_for(&self, text: &str) -> String {
        self.stdout.wait(self.left(), |bytes| String::from_utf8_lossy(bytes).contains(text));
        let so_far = self.stdout.text();
        assert!(so_far.contains(text), "{} did not print {text:?}\n{}", self.said, self.shown());
        so_far
    }

    /// Its process, as the machine numbers it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Closes its standard input and waits for its end.
    #[track_caller]
    pub fn finish(mut self) -> Output {
        drop(self.stdin.take());
        if !self.ends_within(self.left()) {
            self.kill_group();
            panic!("{} did not end within {:?}\n{}", self.said, self.bound, self.shown());
        }
        self.output()
    }

    /// Kills it with all processes of its session's first group.
    pub fn kill(mut self) -> Output {
        self.kill_group();
        self.output()
    }

    fn left(&self) -> Duration {
        self.bound.saturating_sub(self.started.elapsed())
    }

    fn ends_within(&self, limit: Duration) -> bool {
        let pidfd =
            pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty()).expect("a child has a pidfd");
        let limit = Timespec::try_from(limit).expect("a bound is not for ever");
        let mut ended = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
        // Nothing interrupts: the lab installs no signal handler.
        poll(&mut ended, Some(&limit)).expect("a pidfd can be polled") == 1
    }

    fn kill_group(&mut self) {
        // Not once it has been waited for: the number may be somebody else's then.
        if self.is_running() {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
    }

    fn output(mut self) -> Output {
        let status = self.child.wait().expect("a child can be waited for");
        let took = self.started.elapsed();
        for stream in [&self.stdout, &self.stderr] {
            stream.wait(LAST_WORDS, |_| false);
        }
        Output {
            command: std::mem::take(&mut self.said),
            status,
            bytes: self.stdout.bytes(),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
            took,
        }
    }

    fn shown(&self) -> String {
        shown(&self.stdout.text(), &self.stderr.text())
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.kill_group();
        let _ = self.child.wait();
    }
}

/// What came of a command.
#[derive(Debug)]
pub struct Output {
    pub command: String,
    pub status: ExitStatus,
    /// Standard output, where bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard output as it came.
    pub bytes: Vec<u8>,
    pub stderr: String,
    pub took: Duration,
}

impl Output {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status.success(), "should have worked: {self}");
        self
    }

    #[track_caller]
    pub fn fails(self) -> Self {
        assert!(!self.status.success(), "should have failed: {self}");
        self
    }

    /// The exit code, if it was not killed by a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Standard output without the space around it.
    pub fn text(&self) -> String {
        self.stdout.trim().to_owned()
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}\n{}", self.command, self.status, shown(&self.stdout, &self.stderr))
    }
}

fn shown(stdout: &str, stderr: &str) -> String {
    format!("--- standard output\n{stdout}\n--- standard error\n{stderr}")
}

/// One stream of a command, read by a thread as it comes.
struct Gathered(Arc<Stream>);

#[derive(Default)]
struct Stream {
    so_far: Mutex<SoFar>,
    more: Condvar,
}

#[derive(Default)]
struct SoFar {
    bytes: Vec<u8>,
    ended: bool,
}

impl Gathered {
    fn from(mut pipe: impl Read + Send + 'static) -> Self {
        let stream = Arc::<Stream>::default();
        let gathered = Self(Arc::clone(&stream));
        thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            loop {
                let length = pipe.read(&mut buffer).unwrap_or(0);
                let mut so_far = stream.so_far.lock().unwrap();
                so_far.bytes.extend(&buffer[..length]);
                so_far.ended = length == 0;
                stream.more.notify_all();
                if so_far.ended {
                    return;
                }
            }
        });
        gathered
    }

    /// Waits for the end of the stream, or until it is enough.
    fn wait(&self, limit: Duration, enough: impl Fn(&[u8]) -> bool) {
        let so_far = self.0.so_far.lock().unwrap();
        let not_yet = |so_far: &mut SoFar| !so_far.ended && !enough(&so_far.bytes);
        drop(self.0.more.wait_timeout_while(so_far, limit, not_yet).unwrap());
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.so_far.lock().unwrap().bytes.clone()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}
