//! The last word to users whose jail an administrator ends: a line on the terminal of each session, as write(1) would. Host root.
//!
//! Which terminals is asked of the kernel ([`super::seats`]), and of the user's doing nothing is believed: a terminal is found
//! inside the jail's root by a number, through no link, and is written to only if it is one. Nothing waits for a user: one who
//! has stopped the output of a terminal, or filled it, is told nothing.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::{
    CWD, FileType, Mode, OFlags, ResolveFlags, fstat, fstatfs, major, minor, open, openat, openat2,
};

use super::seats::{self, Processes, Terminal};
use crate::jail::door::{Answer, Door, Request};
use crate::runtime::Corner;

/// Of `ojail stop`.
pub(super) const STOP: &str = "ojail: your jail is being ended by the administrator, and what you have open with it; what you changed stays.";

/// Of `ojail reset --force`.
pub(super) const RESET: &str =
    "ojail: your jail is being reset by the administrator; what you had open is ended.";

/// Of `ojail undo --force`.
pub(super) const UNDO: &str =
    "ojail: a reset of your jail is being undone by the administrator; what you had open is ended.";

/// Of `ojail snapshot` and `ojail backup` with `--end --force`.
pub(super) const COPY: &str = "ojail: your jail is being ended by the administrator, for a copy of what you changed; you can log in again soon.";

/// Of `ojail restore --force` and `ojail snapshot restore --force`.
pub(super) const RESTORE: &str =
    "ojail: your jail is being restored to what it was by the administrator; what you had open is ended.";

/// Of `ojail rebase --force`.
pub(super) const REBASE: &str = "ojail: your jail is being brought to newer layers by the administrator; what you had open is ended, and you can log in again when it is done.";

/// Of `ojail forget --force`.
pub(super) const FORGET: &str =
    "ojail: your jail is being removed by the administrator; what you had open is ended.";

/// How long all of it may take. It takes some milliseconds.
const BOUND: Duration = Duration::from_secs(1);

/// How long sshd has to carry a line to the client, before it is ended with the rest.
const CARRIED: Duration = Duration::from_millis(200);

/// Tells every session of a running jail. Whatever goes wrong, the end of the jail does not wait for it.
pub(super) fn bid(corner: &Corner, line: &'static str) {
    let (done, told) = mpsc::channel();
    let corner = corner.clone();
    // In a thread of its own, so that neither a PID 1 that does not answer nor a terminal can hold the administrator.
    let teller = thread::Builder::new().spawn(move || {
        let _ = done.send(tell(&corner, line).unwrap_or(0));
    });
    let (Ok(teller), Ok(number)) = (teller, told.recv_timeout(BOUND)) else { return };
    // It has sent its last. What follows may want to be the only thread (the local time is told to no other).
    let _ = teller.join();
    if number > 0 {
        thread::sleep(CARRIED);
    }
}

/// Returns how many terminals took the line.
fn tell(corner: &Corner, line: &str) -> Option<usize> {
    let door = Door::knock(corner).ok()??;
    let Ok(Some(Answer::Status(status))) = door.ask(&Request::Status) else { return None };
    if status.sessions.is_empty() {
        return None;
    }
    // What is opened keeps the jail's mounts in being: should this take long after all, no other overlay of the upper is mounted.
    let _held = corner.hold().ok()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let jail = open(format!("/proc/{}/root", door.pid()), flags, Mode::empty()).ok()?;
    // If PID 1 still lives, the number was still its own when its root was opened.
    if door.wait_for_end(Duration::ZERO).ok()? {
        return None;
    }
    let host = open("/", flags, Mode::empty()).ok()?;
    let processes = Processes::look();
    let mut terminals: Vec<Terminal> =
        status.sessions.iter().flat_map(|guest| processes.terminals(guest.pid, &guest.service)).collect();
    terminals.sort_unstable();
    terminals.dedup();
    let text = format!("\r\n{line}\r\n");
    let take = |terminal: &Terminal| {
        let root = if matches!(terminal, Terminal::Jail(_)) { &jail } else { &host };
        seat(root, *terminal).is_ok_and(|seat| rustix::io::write(&seat, text.as_bytes()).is_ok())
    };
    Some(terminals.iter().filter(|terminal| take(terminal)).count())
}

/// The magic number of devpts (linux/magic.h).
const DEVPTS: u32 = 0x1cd1;

/// Opens a terminal below a root, to be written to without waiting. What is there is looked at before it is opened, because to
/// open a device or a pipe may do something.
fn seat(root: &OwnedFd, terminal: Terminal) -> rustix::io::Result<OwnedFd> {
    let (path, device) = match terminal {
        Terminal::Jail(number) | Terminal::Host(number) => {
            (format!("dev/pts/{number}"), (seats::PTS, number))
        }
        Terminal::Console(number) => (format!("dev/tty{number}"), (seats::TTY, number)),
    };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat2(root, path, flags, Mode::empty(), resolve)?;
    let stat = fstat(&found)?;
    let is_terminal = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (major(stat.st_rdev), minor(stat.st_rdev)) == device;
    #[allow(clippy::unnecessary_cast, reason = "f_type has another width on some architectures")]
    let where_it_belongs =
        matches!(terminal, Terminal::Console(_)) || fstatfs(&found)?.f_type as u32 == DEVPTS;
    if !is_terminal || !where_it_belongs {
        return Err(rustix::io::Errno::NOTTY);
    }
    // The very same, by its descriptor: this link is of our own process.
    let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    openat(CWD, format!("/proc/self/fd/{}", found.as_fd().as_raw_fd()), flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root_at(path: &str) -> OwnedFd {
        open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    /// A new terminal, and its number.
    fn terminal() -> (OwnedFd, u32) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        (master, name.rsplit('/').next().unwrap().parse().unwrap())
    }

    #[test]
    fn what_looks_like_a_terminal_and_is_none_is_not_opened() {
        let (_master, number) = terminal();
        let dir = tempfile::tempdir().unwrap();
        let pts = dir.path().join("dev/pts");
        fs::create_dir_all(&pts).unwrap();
        let root = root_at(dir.path().to_str().unwrap());
        let refused = || seat(&root, Terminal::Jail(number)).unwrap_err();
        let place = pts.join(number.to_string());
        symlink(format!("/dev/pts/{number}"), &place).unwrap();
        // The link itself, which is none.
        assert_eq!(refused(), rustix::io::Errno::NOTTY);
        fs::remove_file(&place).unwrap();
        fs::write(&place, "").unwrap();
        assert_eq!(refused(), rustix::io::Errno::NOTTY);
        fs::remove_file(&place).unwrap();
        nix::unistd::mkfifo(&place, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(refused(), rustix::io::Errno::NOTTY);
        fs::remove_dir_all(&pts).unwrap();
        symlink("/dev/pts", &pts).unwrap();
        assert_eq!(refused(), rustix::io::Errno::LOOP);
    }

    #[test]
    fn a_terminal_that_takes_nothing_more_does_not_wait() {
        let (_master, number) = terminal();
        let seat = seat(&root_at("/"), Terminal::Host(number)).unwrap();
        let full = (0..1_000_000).find_map(|_| rustix::io::write(&seat, &[b'x'; 1000]).err());
        assert_eq!(full, Some(rustix::io::Errno::AGAIN));
        rustix::termios::tcflow(&seat, rustix::termios::Action::OOff).unwrap();
        assert_eq!(rustix::io::write(&seat, b"x"), Err(rustix::io::Errno::AGAIN));
    }
}
