//! Namespaces, and the calls that are for those who run the machine, or that open more of the kernel than a jail needs.

use std::ffi::CStr;
use std::fs::File;
#[cfg(target_arch = "aarch64")]
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::libc::{self, c_int, c_long};
#[cfg(target_arch = "aarch64")]
use nix::sys::memfd::{MFdFlags, memfd_create};
#[cfg(target_arch = "aarch64")]
use nix::unistd::fexecve;

use super::Setting;
use super::raw::{Arg, address, call, call_to_fork, in_child};
use super::report::{Outcome, Report};

/// The namespaces: the name in `/proc/PID/ns`, the flag's name, the flag.
const NAMESPACES: [(&str, &str, c_int); 8] = [
    ("user", "CLONE_NEWUSER", libc::CLONE_NEWUSER),
    ("mnt", "CLONE_NEWNS", libc::CLONE_NEWNS),
    ("pid", "CLONE_NEWPID", libc::CLONE_NEWPID),
    ("net", "CLONE_NEWNET", libc::CLONE_NEWNET),
    ("ipc", "CLONE_NEWIPC", libc::CLONE_NEWIPC),
    ("uts", "CLONE_NEWUTS", libc::CLONE_NEWUTS),
    ("cgroup", "CLONE_NEWCGROUP", libc::CLONE_NEWCGROUP),
    // linux/sched.h; unshare(2) and clone3(2) only, for clone(2) has signals in these bits.
    ("time", "CLONE_NEWTIME", 0x80),
];

/// What the kernel says where the number of namespaces is limited to none (`user_namespaces(7)`).
const NONE_LEFT: [Errno; 2] = [Errno::ENOSPC, Errno::EUSERS];

pub(super) fn namespaces(report: &mut Report, _setting: &Setting) {
    let there: Vec<_> = NAMESPACES
        .into_iter()
        .filter(|(file, ..)| std::path::Path::new("/proc/self/ns").join(file).exists())
        .map(|(_, name, flag)| (name.to_owned(), flag))
        .chain([
            ("CLONE_NEWUSER|CLONE_NEWNS".to_owned(), libc::CLONE_NEWUSER | libc::CLONE_NEWNS),
            ("CLONE_NEWUSER|CLONE_NEWNET".to_owned(), libc::CLONE_NEWUSER | libc::CLONE_NEWNET),
        ])
        .collect();
    for (name, flag) in &there {
        let unshare = || Outcome::of_or(call(libc::SYS_unshare, [(*flag).into()]), &NONE_LEFT);
        report.add(format!("unshare({name})"), in_child(unshare));
        if *flag & 0xff == 0 {
            report.add(format!("clone({name})"), in_child(|| Outcome::of_or(clone(*flag), &NONE_LEFT)));
        }
        report.add(format!("clone3({name})"), in_child(|| Outcome::of_or(clone3(*flag), &NONE_LEFT)));
    }
    // Its flags are in memory, where no filter can look: it must be answered as if it were not there, then libraries take
    // the old one.
    report.add("clone3() at all", in_child(|| Outcome::of(clone3(0))));

    for (file, name, flag) in NAMESPACES {
        let path = format!("/proc/1/ns/{file}");
        let join = |path: &str| match File::open(path) {
            Ok(ns) => Outcome::of(call(libc::SYS_setns, [ns.as_raw_fd().into(), flag.into()])),
            Err(e) => Outcome::of_or::<()>(Err(errno(&e)), &[Errno::ENOENT]),
        };
        report.add(format!("setns({path}, {name})"), in_child(|| join(&path)));
    }
    let pidfd = || {
        let pidfd = match call(libc::SYS_pidfd_open, [1.into(), 0.into()]) {
            Ok(pidfd) => pidfd,
            Err(e) => return Outcome::of::<()>(Err(e)),
        };
        let all = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWIPC;
        Outcome::of(call(libc::SYS_setns, [(pidfd as u64).into(), all.into()]))
    };
    report.add("setns(pidfd of PID 1)", in_child(pidfd));
    // One's own can be opened; entering it again takes SYS_ADMIN all the same.
    let own = || match File::open("/proc/self/ns/mnt") {
        Ok(ns) => Outcome::of(call(libc::SYS_setns, [ns.as_raw_fd().into(), libc::CLONE_NEWNS.into()])),
        Err(e) => Outcome::of::<()>(Err(errno(&e))),
    };
    report.add("setns(/proc/self/ns/mnt)", in_child(own));
}

fn clone(flag: c_int) -> Result<(), Errno> {
    call_to_fork(libc::SYS_clone, [(flag | libc::SIGCHLD).into(), 0.into(), 0.into(), 0.into(), 0.into()])
}

fn clone3(flag: c_int) -> Result<(), Errno> {
    // struct clone_args of clone(2): flags first, exit_signal fifth.
    let arguments = bytes(&[u64::from(flag.unsigned_abs()), 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0]);
    call_to_fork(libc::SYS_clone3, [arguments.as_slice().into(), (arguments.len() as u64).into()])
}

/// A structure of numbers of 64 bits.
pub(super) fn bytes(fields: &[u64]) -> Vec<u8> {
    fields.iter().flat_map(|field| field.to_ne_bytes()).collect()
}

pub(super) fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// An attack that is one system call.
fn one<const N: usize>(report: &mut Report, attack: &str, number: c_long, arguments: [Arg<'_>; N]) {
    report.add(attack, in_child(|| Outcome::of(call(number, arguments))));
}

/// A path that cannot be: whoever is let through to it hears of it.
const NOWHERE: &CStr = c"/dev/null/nowhere";

pub(super) fn attack(report: &mut Report, setting: &Setting) {
    report.add("mkdir, chroot, fchdir and up", in_child(|| escape(setting)));
    report.add("open_by_handle_at", in_child(|| open_by_handle(setting)));

    // Each so that nothing happens where it is allowed: descriptors of no file, flags that do not exist, nothing to set.
    // The kernel asks who may before it looks at those.
    bpf(report);
    let event = bytes(&[1 | 64 << 32, 1, 0, 0, 0, 1 | 1 << 5 | 1 << 6, 0, 0]);
    let arguments = [event.as_slice().into(), 0.into(), (-1).into(), (-1).into(), 0.into()];
    one(report, "perf_event_open", libc::SYS_perf_event_open, arguments);
    one(report, "kexec_load", libc::SYS_kexec_load, [0.into(), 0.into(), 0.into(), 0xfff0_u64.into()]);
    let arguments = [(-1).into(), (-1).into(), 0.into(), c"".into(), 0xfff0_u64.into()];
    one(report, "kexec_file_load", libc::SYS_kexec_file_load, arguments);
    one(report, "init_module", libc::SYS_init_module, [c"".into(), 0.into(), c"".into()]);
    one(report, "finit_module", libc::SYS_finit_module, [(-1).into(), c"".into(), 0.into()]);
    let module = c"ojail_probe_is_no_module";
    one(report, "delete_module", libc::SYS_delete_module, [module.into(), libc::O_NONBLOCK.into()]);

    let mut ring = [0; 120];
    one(report, "io_uring_setup", libc::SYS_io_uring_setup, [1.into(), ring.as_mut_slice().into()]);
    let arguments = [(-1).into(), 1.into(), 0.into(), 0.into(), 0.into(), 0.into()];
    one(report, "io_uring_enter", libc::SYS_io_uring_enter, arguments);
    let arguments = [(-1).into(), 0.into(), 0.into(), 0.into()];
    one(report, "io_uring_register", libc::SYS_io_uring_register, arguments);
    // UFFD_USER_MODE_ONLY, which needs no privilege.
    one(report, "userfaultfd", libc::SYS_userfaultfd, [(libc::O_CLOEXEC | 1).into()]);
    keys(report);

    one(report, "swapon", libc::SYS_swapon, [NOWHERE.into(), 0.into()]);
    one(report, "swapoff", libc::SYS_swapoff, [NOWHERE.into()]);
    one(report, "acct", libc::SYS_acct, [NOWHERE.into()]);
    one(report, "fanotify_init", libc::SYS_fanotify_init, [4.into(), 0.into()]);
    // In a session of its own, which has no terminal that could be hung up.
    let hang_up = || match nix::unistd::setsid() {
        Ok(_) => Outcome::of(call(libc::SYS_vhangup, [])),
        Err(e) => Outcome::of::<()>(Err(e)),
    };
    report.add("vhangup", in_child(hang_up));
    one(report, "reboot, with numbers that mean nothing", libc::SYS_reboot, [0.into(), 0.into(), 0.into()]);
    one(report, "settimeofday, of nothing", libc::SYS_settimeofday, [0.into(), 0.into()]);
    // struct timex: ADJ_TICK, and a tick of 0, which is out of range.
    let mut timex = bytes(&[0x4000; 1]);
    timex.resize(256, 0);
    one(report, "adjtimex", libc::SYS_adjtimex, [timex.as_mut_slice().into()]);
    let mut log = [0; 256];
    one(
        report,
        "syslog: read the kernel's log",
        libc::SYS_syslog,
        [3.into(), log.as_mut_slice().into(), 256.into()],
    );
    names(report);
    #[cfg(target_arch = "x86_64")]
    {
        one(report, "iopl", libc::SYS_iopl, [3.into()]);
        one(report, "ioperm", libc::SYS_ioperm, [0x80.into(), 1.into(), 1.into()]);
    }
    other_tables(report);
}

/// The classic way out of a chroot. It may be tried where root may call chroot(2), and must end where it began.
fn escape(setting: &Setting) -> Outcome {
    let id = || std::fs::metadata("/").map(|root| (root.dev(), root.ino())).ok();
    let before = id();
    let Ok(out) = File::open("/") else { return Outcome::contained("/ cannot be opened") };
    let path = setting.scratch.c_path();
    if let Err(e) = call(libc::SYS_chroot, [path.as_c_str().into()]) {
        return Outcome::of::<()>(Err(e));
    }
    if let Err(e) = call(libc::SYS_fchdir, [out.as_raw_fd().into()]) {
        return Outcome::of::<()>(Err(e));
    }
    for _ in 0..64 {
        let _ = std::env::set_current_dir("..");
    }
    let _ = call(libc::SYS_chroot, [c".".into()]);
    if id() == before {
        Outcome::contained("it leads to the same root")
    } else {
        Outcome::reached("another root")
    }
}

fn open_by_handle(setting: &Setting) -> Outcome {
    // struct file_handle: the bytes that there are, the kind, and the bytes.
    let mut handle = [0; 8 + 128];
    handle[0] = 128;
    let mut mount = [0; 8];
    let path = setting.scratch.c_path();
    let named = call(
        libc::SYS_name_to_handle_at,
        [
            libc::AT_FDCWD.into(),
            path.as_c_str().into(),
            handle.as_mut_slice().into(),
            mount.as_mut_slice().into(),
            0.into(),
        ],
    );
    if named.is_err() {
        // Any will do: the right is asked first.
        handle[..8].copy_from_slice(&[8, 0, 0, 0, 1, 0, 0, 0]);
    }
    let Ok(place) = File::open(setting.scratch.path()) else {
        return Outcome::contained("no place to try it");
    };
    let arguments = [place.as_raw_fd().into(), handle.as_mut_slice().into(), libc::O_RDONLY.into()];
    Outcome::of(call(libc::SYS_open_by_handle_at, arguments))
}

fn bpf(report: &mut Report) {
    // union bpf_attr for BPF_MAP_CREATE: an array of one number.
    let map: Vec<u8> = [2_u32, 4, 4, 1].iter().flat_map(|field| field.to_ne_bytes()).collect();
    let arguments = [0.into(), map.as_slice().into(), (map.len() as u64).into()];
    one(report, "bpf(BPF_MAP_CREATE)", libc::SYS_bpf, arguments);
    // … and for BPF_PROG_LOAD: a socket filter that returns 0 (`r0 = 0; exit`).
    let code = bytes(&[0xb7, 0x95]);
    let licence = c"GPL";
    let program = bytes(&[1 | 2 << 32, address(code.as_ptr()), address(licence.as_ptr()), 0, 0, 0]);
    let arguments = [5.into(), program.as_slice().into(), (program.len() as u64).into()];
    one(report, "bpf(BPF_PROG_LOAD)", libc::SYS_bpf, arguments);
}

fn keys(report: &mut Report) {
    // KEY_SPEC_PROCESS_KEYRING, which goes with the process, and KEY_SPEC_SESSION_KEYRING.
    let (process, session) = (-2, -3);
    let arguments = [c"user".into(), c"ojail-probe".into(), c"x".into(), 1.into(), process.into()];
    one(report, "add_key", libc::SYS_add_key, arguments);
    let arguments = [c"user".into(), c"ojail-probe-none".into(), 0.into(), 0.into()];
    one(report, "request_key", libc::SYS_request_key, arguments);
    one(report, "keyctl(KEYCTL_GET_KEYRING_ID)", libc::SYS_keyctl, [0.into(), session.into(), 0.into()]);
    one(report, "keyctl(KEYCTL_JOIN_SESSION_KEYRING)", libc::SYS_keyctl, [1.into(), 0.into()]);
}

/// Sets the names to what they are.
fn names(report: &mut Report) {
    let name = |file: &str| {
        let name = std::fs::read_to_string(format!("/proc/sys/kernel/{file}")).unwrap_or_default();
        name.trim_end().to_owned()
    };
    let [host, domain] = [name("hostname"), name("domainname")];
    let arguments = [host.as_bytes().into(), (host.len() as u64).into()];
    one(report, "sethostname", libc::SYS_sethostname, arguments);
    let arguments = [domain.as_bytes().into(), (domain.len() as u64).into()];
    one(report, "setdomainname", libc::SYS_setdomainname, arguments);
}

/// The same calls by other numbers, which a filter for one table would let through.
#[cfg(target_arch = "x86_64")]
fn other_tables(report: &mut Report) {
    // __X32_SYSCALL_BIT of asm/unistd.h.
    let x32 = |number: c_long| number | 0x4000_0000;
    one(report, "x32: getpid", x32(libc::SYS_getpid), []);
    one(report, "x32: unshare", x32(libc::SYS_unshare), [libc::CLONE_NEWUSER.into()]);
    // getpid and getuid of asm/unistd_32.h.
    for (name, number) in [("getpid", 20), ("getuid", 24)] {
        let outcome = in_child(|| match super::raw::call_i386(number) {
            answer if answer < 0 => Outcome::of::<()>(Err(Errno::from_raw(-answer))),
            _ => Outcome::reached("done"),
        });
        // Where the kernel has no such calls, the instruction itself is a fault.
        let outcome = if outcome.answer == "SIGSEGV" { Outcome::contained("SIGSEGV") } else { outcome };
        report.add(format!("i386: {name}"), outcome);
    }
}

/// The same: a program of 32 bits has numbers of its own.
#[cfg(target_arch = "aarch64")]
fn other_tables(report: &mut Report) {
    // elf(5): one segment, at 64 KiB. In it `mov r7, #20; svc 0`, which is getpid, and `mov r0, #0; mov r7, #1; svc 0`, exit.
    const PROGRAM: [u32; 26] = [
        0x464c457f, 0x10101, 0, 0, 0x280002, 1, 0x10054, 52, 0, 0x5000000, 0x200034, 1, 0, 1, 0, 0x10000,
        0x10000, 104, 104, 5, 0x10000, 0xe3a07014, 0xef000000, 0xe3a00000, 0xe3a07001, 0xef000000,
    ];
    let outcome = in_child(|| {
        let run = || {
            let mut file = File::from(memfd_create(c"arm", MFdFlags::MFD_CLOEXEC)?);
            let bytes = PROGRAM.map(u32::to_le_bytes);
            file.write_all(bytes.as_flattened()).map_err(|e| errno(&e))?;
            fexecve(&file, &[c"arm"], &[c""; 0])
        };
        // Where the kernel or the processor has no such programs, it is no program.
        Outcome::of_or(run(), &[Errno::ENOEXEC])
    });
    report.add("arm: getpid", outcome);
}
