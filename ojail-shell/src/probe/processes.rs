//! Other processes: whose are in sight, and what can be got of those that are not ours.
//!
//! A process is ours if the kernel lists its `/proc/PID/environ` as ours. One that gave up privileges and has not executed
//! anything since, as a login process, is not, whatever its uid.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use nix::errno::Errno;
use nix::libc;

use super::Setting;
use super::kernel::{bytes, errno};
use super::raw::{address, call, in_child};
use super::report::{Outcome, Report};

/// What ids without a name in here look like (`kernel.overflowuid`).
pub(super) const OVERFLOW: u32 = 65_534;

/// What a process may be gone between: no answer about anything.
pub(super) const GONE: [Errno; 2] = [Errno::ESRCH, Errno::ENOENT];

/// An attack on a pid.
type Attack = fn(i32) -> Result<(), Errno>;

/// The ways to get hold of another process.
pub(super) const ATTACKS: [(&str, Attack); 15] = [
    ("open /proc/PID/exe", |pid| open(pid, "exe", 0)),
    ("read the link /proc/PID/exe", |pid| link(pid, "exe")),
    ("open /proc/PID/root", |pid| open(pid, "root", libc::O_DIRECTORY)),
    ("open /proc/PID/cwd", |pid| open(pid, "cwd", libc::O_DIRECTORY)),
    ("list /proc/PID/fd", |pid| fs::read_dir(format!("/proc/{pid}/fd")).map(drop).map_err(|e| errno(&e))),
    ("open /proc/PID/fd/0", |pid| open(pid, "fd/0", 0)),
    ("open /proc/PID/mem", |pid| open(pid, "mem", 0)),
    ("open /proc/PID/maps", |pid| open(pid, "maps", 0)),
    ("open /proc/PID/environ", |pid| open(pid, "environ", 0)),
    ("open /proc/PID/ns/mnt", |pid| open(pid, "ns/mnt", 0)),
    ("ptrace", ptrace),
    ("process_vm_readv", process_vm_readv),
    ("process_vm_writev", process_vm_writev),
    ("pidfd_getfd", pidfd_getfd),
    ("kcmp", kcmp),
];

fn open(pid: i32, name: &str, flags: i32) -> Result<(), Errno> {
    // Not waiting: a descriptor may be a fifo.
    let flags = flags | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(format!("/proc/{pid}/{name}"));
    file.map(drop).map_err(|e| errno(&e))
}

fn link(pid: i32, name: &str) -> Result<(), Errno> {
    fs::read_link(format!("/proc/{pid}/{name}")).map(drop).map_err(|e| errno(&e))
}

/// Does not stop it, and lets go of it when this process ends.
fn ptrace(pid: i32) -> Result<(), Errno> {
    call(libc::SYS_ptrace, [u64::from(libc::PTRACE_SEIZE).into(), pid.into(), 0.into(), 0.into()]).map(drop)
}

/// One byte at an address where nothing is: the right is asked first, and who has it is told of the address.
fn process_vm(number: libc::c_long, pid: i32) -> Result<(), Errno> {
    let byte = [0_u8];
    let ours = bytes(&[address(byte.as_ptr()), 1]);
    let theirs = bytes(&[8, 1]);
    let arguments =
        [pid.into(), ours.as_slice().into(), 1.into(), theirs.as_slice().into(), 1.into(), 0.into()];
    match call(number, arguments) {
        Err(Errno::EFAULT) => Ok(()),
        done => done.map(drop),
    }
}

fn process_vm_readv(pid: i32) -> Result<(), Errno> {
    process_vm(libc::SYS_process_vm_readv, pid)
}

fn process_vm_writev(pid: i32) -> Result<(), Errno> {
    process_vm(libc::SYS_process_vm_writev, pid)
}

fn pidfd_getfd(pid: i32) -> Result<(), Errno> {
    // As many as a login process has at least.
    const NUMBERS: std::ops::Range<i32> = 0..8;
    let pidfd = call(libc::SYS_pidfd_open, [pid.into(), 0.into()])? as u64;
    let mut outcome = Err(Errno::ESRCH);
    for number in NUMBERS {
        outcome = call(libc::SYS_pidfd_getfd, [pidfd.into(), number.into(), 0.into()]).map(|fd| {
            let _ = call(libc::SYS_close, [(fd as u64).into()]);
        });
        // It has none of this number, which only those hear who might have it.
        if outcome != Err(Errno::EBADF) {
            break;
        }
    }
    let _ = call(libc::SYS_close, [pidfd.into()]);
    outcome
}

/// KCMP_VM: whether the two share their memory.
fn kcmp(pid: i32) -> Result<(), Errno> {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    call(libc::SYS_kcmp, [own.into(), pid.into(), 1.into(), 0.into(), 0.into()]).map(drop)
}

/// All processes in sight.
pub(super) fn all() -> Vec<i32> {
    let names = fs::read_dir("/proc").into_iter().flatten().flatten();
    names.filter_map(|name| name.file_name().to_str()?.parse().ok()).collect()
}

/// Whether the kernel takes the process for one of ours, to be looked into: the directory itself would only tell its uid.
/// All that have an owner in here are those of root of the jail.
pub(super) fn is_ours(pid: i32, setting: &Setting) -> bool {
    fs::metadata(format!("/proc/{pid}/environ"))
        .is_ok_and(|meta| meta.uid() == setting.uid || setting.am_root && meta.uid() != OVERFLOW)
}

fn command(pid: i32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{pid} ({})", name.trim_end())
}

/// The numbers of a line of `/proc/PID/status`.
pub(super) fn status(pid: i32, key: &str) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_default().split_whitespace().map(String::from).collect()
}

pub(super) fn attack(report: &mut Report, setting: &Setting) {
    let init = fs::read_to_string("/proc/1/comm").unwrap_or_default();
    let outcome =
        if init == "ojail-init\n" { Outcome::contained("ojail-init") } else { Outcome::reached(init.trim()) };
    report.add("a PID 1 that is not the jail's", outcome);

    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let others: Vec<i32> = all().into_iter().filter(|pid| *pid != own && *pid != 1).collect();
    // The real uid: the saved one of PID 1 is the overflow id itself.
    let foreign = |pid: &&i32| status(**pid, "Uid").first().is_some_and(|uid| *uid == OVERFLOW.to_string());
    let strangers: Vec<String> = others.iter().filter(foreign).map(|pid| command(*pid)).collect();
    report.add("processes of nobody in this jail", Outcome::nothing(&strangers));
    report.add("processes that /proc does not list", Outcome::nothing(&unlisted()));

    let targets: Vec<i32> = others.into_iter().filter(|pid| !is_ours(*pid, setting)).collect();
    for (name, attack) in ATTACKS {
        report.add(format!("{name} of PID 1"), in_child(|| Outcome::of_or(attack(1), &GONE)));
        let got = |pid: &&i32| !in_child(|| Outcome::of_or(attack(**pid), &GONE)).contained;
        let reached: Vec<String> = targets.iter().filter(got).map(|pid| command(*pid)).collect();
        let outcome = Outcome::nothing(&reached);
        let tried = format!("{} of {} others", outcome.answer, targets.len());
        report.add(format!("{name} of others"), Outcome { answer: tried, ..outcome });
    }
    report.add("write /proc/1/oom_score_adj", in_child(|| write("/proc/1/oom_score_adj")));
    report.add("set the limits of PID 1", in_child(limits));
    report.add("kill PID 1", kill(init == "ojail-init\n"));
}

fn write(path: &str) -> Outcome {
    Outcome::of_or(OpenOptions::new().write(true).open(path).map_err(|e| errno(&e)), &[Errno::EROFS])
}

/// To what they are.
fn limits() -> Outcome {
    let mut limits = [0; 16];
    let arguments = [1.into(), (libc::RLIMIT_NOFILE as u64).into(), 0.into(), limits.as_mut_slice().into()];
    if let Err(e) = call(libc::SYS_prlimit64, arguments) {
        return Outcome::of::<()>(Err(e));
    }
    let arguments = [1.into(), (libc::RLIMIT_NOFILE as u64).into(), limits.as_slice().into(), 0.into()];
    Outcome::of(call(libc::SYS_prlimit64, arguments))
}

/// Processes that can be signalled but are in no sight: those of a PID namespace above.
fn unlisted() -> Vec<String> {
    // Numbers of processes that were just made are in this range, unless a host is very old or very busy.
    const MANY: i32 = 65_536;
    let answers = |pid: &i32| {
        let said = call(libc::SYS_kill, [(*pid).into(), 0.into()]);
        said != Err(Errno::ESRCH) && fs::metadata(format!("/proc/{pid}")).is_err()
    };
    // Once more, for those that ended in between.
    (1..MANY).filter(answers).filter(answers).map(|pid| pid.to_string()).collect()
}

/// Root of the jail may send PID 1 signals, of which the kernel drops these. (SIGTERM ends the jail, which it may.) Of
/// another PID 1 it is only asked whether one might.
fn kill(is_jail: bool) -> Outcome {
    let signals = if is_jail { vec![libc::SIGKILL, libc::SIGSTOP] } else { vec![0] };
    for signal in signals {
        match call(libc::SYS_kill, [1.into(), signal.into()]) {
            Err(e) => return Outcome::of::<()>(Err(e)),
            Ok(_) if !is_jail => return Outcome::reached("it may be sent signals"),
            Ok(_) => {}
        }
    }
    match status(1, "State").first().map(String::as_str) {
        Some("S" | "R") => Outcome::contained("it is deaf to them"),
        state => Outcome::reached(format!("its state is {state:?}")),
    }
}
