//! One session of one PAM service, in a process of its own, with a probe in it.
//!
//! The process opens the session as a login program does, as host root. If PAM lets it, it asks this side whether it is in
//! the jail, and only then forks the process that becomes the user and executes the probe.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{
    Gid, Pid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, fexecve, initgroups, setgid, setsid, setuid,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Attempt, Outcome};
use crate::account::{Account, Username};
use crate::error::{Act, Result};
use crate::jail::door::Door;
use crate::pam::{Application, Item};
use crate::paths;
use crate::runtime::Corner;
use crate::sys::{self, Forked, OneThread};

/// How long PAM's modules may take. pam_systemd waits for logind half a minute where there is a bus and nobody on it.
const OPENING: Duration = Duration::from_secs(60);

/// How long a probe may take, which is done in half a second on an idle machine.
const PROBING: Duration = Duration::from_secs(120);

/// What a process says when its session is open.
const OPEN: &str = "open";

/// Services that do not say from which host somebody comes.
const LOCAL: [&str; 8] = ["login", "su", "su-l", "sudo", "sudo-i", "runuser", "runuser-l", "systemd-user"];

/// Services that run jobs; pam_systemd knows them by this terminal.
const JOBS: [&str; 3] = ["cron", "crond", "atd"];

/// Opens the session and has the probe run in it. `None`: this is the session's own process, at its end.
pub(super) fn prove(account: &Account, service: &str, arguments: &[String]) -> Result<Option<Outcome>> {
    let path = paths::probe();
    let probe = File::open(&path).act("open", &path)?;
    let terminal = terminal();
    let alone = OneThread::prove().act("fork", "a process with several threads")?;
    let (ours, theirs) = UnixStream::pair().act("make", "a socket pair")?;
    let (output, input) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).act("make", "a pipe")?;
    match sys::fork_into(alone, CloneFlags::empty()).act("fork", "a process for the session")? {
        Forked::Child => {
            drop((ours, output));
            let session = Session { account, service, terminal, arguments, probe, alone };
            session.run(theirs, input);
            Ok(None)
        }
        Forked::Parent(child) => {
            drop((theirs, input));
            let outcome = watch(account, child, ours, output);
            let _ = kill(child, Signal::SIGKILL);
            waitpid(child, None).act("wait for", "the session")?;
            outcome.map(Some)
        }
    }
}

/// The name of the administrator's terminal, as `su` would tell it.
fn terminal() -> Option<String> {
    let path = rustix::termios::ttyname(io::stdin(), Vec::new()).ok()?;
    path.into_string().ok()
}

/// This side: hears how the session came out, judges where it is, and hears the probe.
fn watch(account: &Account, child: Pid, mut line: UnixStream, output: OwnedFd) -> Result<Outcome> {
    let said = match read_line(&line, OPENING) {
        Ok(said) => said,
        Err(why) => return Ok(Outcome::Unknown { why: format!("its PAM session: {why}") }),
    };
    if said != OPEN {
        return Ok(Outcome::Refused { why: said });
    }
    if let Err(why) = is_in_jail(account, child)? {
        // The end of the line tells it to close the session.
        drop(line);
        let _ = read_to_end(output, OPENING);
        return Ok(Outcome::Host { why });
    }
    line.write_all(b"go\n").act("talk to", "the session")?;
    let printed = match read_to_end(output, PROBING) {
        Ok(printed) => printed,
        Err(e) => return Ok(Outcome::Unknown { why: format!("the probe: {e}") }),
    };
    // Until the session is closed.
    let _ = read_line(&line, OPENING);
    Ok(understand(&printed))
}

/// What the probe printed, or why it printed nothing of the kind.
fn understand(printed: &str) -> Outcome {
    #[derive(serde::Deserialize)]
    struct Printed {
        attempts: Vec<Attempt>,
    }
    match serde_json::from_str::<Printed>(printed) {
        Ok(Printed { attempts }) if !attempts.is_empty() => {
            let reached = attempts.iter().filter(|attempt| !attempt.contained).count();
            Outcome::Jailed { attempts, reached }
        }
        _ => Outcome::Unknown { why: format!("the probe said {:?}", printed.trim()) },
    }
}

/// Whether the process is in the namespaces of this user's jail. In words, if it is not.
fn is_in_jail(account: &Account, pid: Pid) -> Result<std::result::Result<(), String>> {
    let here = namespaces("self")?;
    let there = namespaces(&pid.to_string())?;
    if let Some((name, _)) = here.iter().zip(&there).find(|(here, there)| here == there).map(|(both, _)| both)
    {
        return Ok(Err(format!("the session has the host's {name} namespace")));
    }
    let corner = Corner::of(&Username::parse(&account.name)?);
    let Some(door) = Door::knock(&corner)? else {
        return Ok(Err(format!("no jail of {} is running", account.name)));
    };
    if namespaces(&door.pid().to_string())? == there {
        return Ok(Ok(()));
    }
    Ok(Err(format!("the session is in other namespaces than the jail of {}", account.name)))
}

/// The namespaces that every jail has of its own, with their numbers.
fn namespaces(pid: &str) -> Result<Vec<(&'static str, std::path::PathBuf)>> {
    let read = |name| {
        let path = Path::new("/proc").join(pid).join("ns").join(name);
        Ok((name, fs::read_link(&path).act("read", &path)?))
    };
    ["user", "mnt", "pid_for_children", "ipc", "uts"].into_iter().map(read).collect()
}

fn read_line(mut line: &UnixStream, patience: Duration) -> io::Result<String> {
    line.set_read_timeout(Some(patience))?;
    let mut said = Vec::new();
    let mut byte = [0];
    // A line is short, and what follows it is not for us to take.
    while line.read(&mut byte)? == 1 && byte != *b"\n" {
        said.extend(byte);
    }
    if said.is_empty() {
        return Err(io::Error::other("the process ended without a word"));
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

fn read_to_end(output: OwnedFd, patience: Duration) -> io::Result<String> {
    let end = Instant::now() + patience;
    let mut output = File::from(output);
    let mut said = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut ready = [PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN)];
        if poll(&mut ready, Some(&left))? == 0 {
            return Err(io::Error::other(format!("it did not end within {} s", patience.as_secs())));
        }
        match output.read(&mut buffer)? {
            0 => return Ok(String::from_utf8_lossy(&said).into_owned()),
            length => said.extend(&buffer[..length]),
        }
    }
}

/// The process of a session, and what it needs.
struct Session<'a> {
    account: &'a Account,
    service: &'a str,
    terminal: Option<String>,
    arguments: &'a [String],
    probe: File,
    alone: OneThread,
}

impl Session<'_> {
    /// The whole of it. Whatever goes wrong is said on the line, and the process ends.
    fn run(self, mut line: UnixStream, input: OwnedFd) {
        let told = |mut line: &UnixStream, why: &dyn std::fmt::Display| {
            let why = why.to_string().replace('\n', "; ");
            let _ = line.write_all(format!("{why}\n").as_bytes());
        };
        let application = match self.quiet().map_err(|e| e.to_string()).and_then(|()| self.open()) {
            Ok(application) => application,
            Err(why) => return told(&line, &why),
        };
        told(&line, &OPEN);
        let mut go = [0; 3];
        if line.read_exact(&mut go).is_ok() {
            self.probe(input);
        } else {
            drop(input);
        }
        // The modules close the session, as root of the jail or of the host.
        drop(application);
        told(&line, &"closed");
    }

    /// Modules may print and read. Nothing of the administrator's terminal gets into a session.
    fn quiet(&self) -> io::Result<()> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        dup2_stderr(&null)?;
        setsid()?;
        Ok(())
    }

    fn open(&self) -> std::result::Result<Application, String> {
        let open = || -> io::Result<Application> {
            let mut application = Application::start(self.service, &self.account.name)?;
            application.tell(Item::RemoteUser, "root")?;
            if JOBS.contains(&self.service) {
                application.tell(Item::Terminal, "cron")?;
            } else if LOCAL.contains(&self.service) {
                if let Some(terminal) = &self.terminal {
                    application.tell(Item::Terminal, terminal)?;
                }
            } else {
                // As sshd says it of sessions that may or may not have one.
                application.tell(Item::Terminal, "ssh")?;
                application.tell(Item::RemoteHost, "localhost")?;
            }
            application.open_session()?;
            Ok(application)
        };
        open().map_err(|e| format!("{e} (the log has the reason)"))
    }

    /// In the jail by now. Forks the process that becomes the user, and waits for it.
    fn probe(&self, input: OwnedFd) {
        match sys::fork_into(self.alone, CloneFlags::empty()) {
            Ok(Forked::Child) => {
                let mut words = File::from(match input.try_clone() {
                    Ok(words) => words,
                    Err(_) => return,
                });
                let Err(e) = self.become_probe(&input);
                let _ = words.write_all(e.to_string().as_bytes());
                // Not back into the session's story, which goes on in the parent.
                let _ = nix::sys::signal::raise(Signal::SIGKILL);
            }
            Ok(Forked::Parent(child)) => {
                drop(input);
                let _ = waitpid(child, None);
            }
            Err(e) => {
                let _ = File::from(input).write_all(e.to_string().as_bytes());
            }
        }
    }

    /// As a login program does: group, groups, user; then the probe, by the descriptor that was opened on the host.
    fn become_probe(&self, output: &OwnedFd) -> Result<std::convert::Infallible> {
        let account = self.account;
        let string = |text: String| CString::new(text).map_err(io::Error::from);
        let name = string(account.name.clone()).act("become", &account.name)?;
        let gid = Gid::from_raw(account.gid);
        setgid(gid).act("become", &account.name)?;
        initgroups(&name, gid).act("set the groups of", &account.name)?;
        setuid(Uid::from_raw(account.uid)).act("become", &account.name)?;
        // It ends with the session, should the administrator end that.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).act("tie to the session", "the probe")?;
        let _ = std::env::set_current_dir(&account.home).or_else(|_| std::env::set_current_dir("/"));
        dup2_stdout(output).act("set", "the output of the probe")?;

        let path = paths::probe();
        let words = std::iter::once(path.clone()).chain(self.arguments.iter().cloned());
        let words = words.map(string).collect::<io::Result<Vec<_>>>().act("run", &path)?;
        let environment = [
            format!("HOME={}", account.home.display()),
            format!("USER={}", account.name),
            format!("LOGNAME={}", account.name),
            "PATH=/usr/local/bin:/usr/bin:/bin".to_owned(),
        ];
        let environment =
            environment.into_iter().map(string).collect::<io::Result<Vec<_>>>().act("run", &path)?;
        fexecve(&self.probe, &words, &environment).act("run", &path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_probe_prints_counts_as_a_probe() {
        let printed = r#"{"ojail_probe":1,"attempts":[{"group":"g","attack":"a","contained":false,"answer":"done"}],"reached":0}"#;
        assert!(matches!(understand(printed), Outcome::Jailed { reached: 1, .. }));
        for other in ["", "cannot run it", r#"{"attempts":[]}"#, "{}"] {
            assert!(matches!(understand(other), Outcome::Unknown { .. }), "{other}");
        }
    }
}
