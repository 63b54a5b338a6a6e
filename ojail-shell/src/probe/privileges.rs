//! Becoming more than one is: ids, capabilities, priorities, limits, sudo.

use std::fs::OpenOptions;
use std::io::Write;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

use super::Setting;
use super::kernel::errno;
use super::processes::status;
use super::raw::{call, in_child};
use super::report::{Outcome, Report};

/// What programs of a jail with `root = true` can have at most (`src/jail/confine.rs`): chown, dac_override, fowner, fsetid,
/// kill, setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot, audit_write, setfcap.
const ROOT: u64 = 0xa004_25fb;

/// linux/securebits.h: no ambient capabilities, and locked.
const AMBIENT: u64 = 0xc0;
/// … and uid 0 means nothing, and locked; and "keep capabilities" locked.
const NO_ROOT: u64 = 0x23;

/// linux/capability.h.
const SYS_ADMIN: u32 = 21;

pub(super) fn attack(report: &mut Report, setting: &Setting) {
    let most = if setting.root { ROOT } else { 0 };
    for (key, most) in [
        ("CapBnd", most),
        ("CapInh", 0),
        ("CapAmb", 0),
        ("CapPrm", if setting.am_root { most } else { 0 }),
        ("CapEff", if setting.am_root { most } else { 0 }),
    ] {
        let text = own(key);
        let outcome = match u64::from_str_radix(&text, 16) {
            Ok(set) if set & !most == 0 => Outcome::contained(text),
            _ => Outcome::reached(text),
        };
        report.add(format!("capabilities in {key}"), outcome);
    }
    let is = |key, wanted: &str| {
        let text = own(key);
        if text == wanted { Outcome::contained(text) } else { Outcome::reached(text) }
    };
    if !setting.root {
        report.add("new privileges by an exec", is("NoNewPrivs", "1"));
    }
    report.add("system calls without a filter", is("Seccomp", "2"));
    let wanted = if setting.root { AMBIENT } else { AMBIENT | NO_ROOT };
    let bits = call(libc::SYS_prctl, [libc::PR_GET_SECUREBITS.into()]).unwrap_or_default() as u64;
    let outcome = format!("{bits:#x}");
    let outcome =
        if bits & wanted == wanted { Outcome::contained(outcome) } else { Outcome::reached(outcome) };
    report.add("securebits that let go", outcome);
    let zero = || Outcome::of(call(libc::SYS_prctl, [libc::PR_SET_SECUREBITS.into(), 0.into()]));
    report.add("prctl: no securebits", in_child(zero));
    let raise = || {
        // PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_CHOWN.
        Outcome::of(call(libc::SYS_prctl, [47.into(), 2.into(), 0.into(), 0.into(), 0.into()]))
    };
    report.add("prctl: raise an ambient capability", in_child(raise));
    report.add("capset: SYS_ADMIN", in_child(capset));

    if !setting.am_root {
        let all = || [0.into(), 0.into(), 0.into()];
        report.add("setresuid to root", in_child(|| Outcome::of(call(libc::SYS_setresuid, all()))));
        report.add("setresgid to root", in_child(|| Outcome::of(call(libc::SYS_setresgid, all()))));
        let groups = || Outcome::of(call(libc::SYS_setgroups, [1.into(), [0_u8; 4].as_slice().into()]));
        report.add("setgroups to root's", in_child(groups));
    }
    if !setting.root {
        report.add("sudo", sudo());
    }
    for file in ["uid_map", "gid_map", "setgroups"] {
        report.add(format!("write /proc/self/{file}"), in_child(|| write(file)));
    }
    report.add("oom_score_adj of -1000", in_child(safe));
    let nice = || Outcome::of(call(libc::SYS_setpriority, [0.into(), 0.into(), (-20).into()]));
    report.add("setpriority of -20", in_child(nice));
    // SCHED_FIFO, and a struct sched_param of priority 1.
    let parameter = 1_i32.to_ne_bytes();
    let real_time = || {
        let arguments = [0.into(), 1.into(), parameter.as_slice().into()];
        Outcome::of(call(libc::SYS_sched_setscheduler, arguments))
    };
    report.add("sched_setscheduler: real time", in_child(real_time));
    report.add("setrlimit: more descriptors", in_child(more_descriptors));
}

fn own(key: &str) -> String {
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    status(own, key).into_iter().next().unwrap_or_default()
}

fn capset() -> Outcome {
    // _LINUX_CAPABILITY_VERSION_3, and this process.
    let header: Vec<u8> = [0x2008_0522_u32, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let mut sets = [0; 24];
    if let Err(e) = call(libc::SYS_capget, [header.as_slice().into(), sets.as_mut_slice().into()]) {
        return Outcome::of::<()>(Err(e));
    }
    // Effective and permitted, each in its first word of 32.
    for at in [0, 4] {
        sets[at + 2] |= 1 << (SYS_ADMIN - 16);
    }
    Outcome::of(call(libc::SYS_capset, [header.as_slice().into(), sets.as_slice().into()]))
}

fn sudo() -> Outcome {
    let quiet = || Stdio::null();
    let done =
        Command::new("sudo").args(["-n", "true"]).stdin(quiet()).stdout(quiet()).stderr(quiet()).status();
    match done {
        Ok(status) if status.success() => Outcome::reached("root"),
        Ok(status) => Outcome::contained(status.to_string()),
        Err(e) => Outcome::contained(e.kind().to_string()),
    }
}

/// What it says already, or the widest.
fn write(file: &str) -> Outcome {
    let text = if file == "setgroups" { "allow" } else { "0 0 4294967295" };
    let file = OpenOptions::new().write(true).open(format!("/proc/self/{file}"));
    let done = file.and_then(|mut file| file.write_all(text.as_bytes()));
    // The groups of a user namespace whose map is set cannot be changed any more, not even to what they are.
    Outcome::of_or(done.map_err(|e| errno(&e)), &[Errno::EINVAL])
}

fn safe() -> Outcome {
    let file = OpenOptions::new().write(true).open("/proc/self/oom_score_adj");
    Outcome::of(file.and_then(|mut file| file.write_all(b"-1000")).map_err(|e| errno(&e)))
}

fn more_descriptors() -> Outcome {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, RLIM_INFINITY)) => Outcome::contained("there is no limit"),
        Ok((soft, hard)) => Outcome::of(setrlimit(Resource::RLIMIT_NOFILE, soft, hard + 1)),
        Err(e) => Outcome::of::<()>(Err(e)),
    }
}
