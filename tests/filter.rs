//! The system call filter on the kernel itself: every rule, in both directions.
//!
//! A child process makes one call and tells what came of it, once with the filter and once without. What is allowed is
//! answered alike; what is refused is answered as the policy says, and otherwise without. Each call gets arguments that it
//! refuses before it does anything, which is what tells the kernel's answer from the filter's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Instant;

use libc::{c_int, c_long};
use ojail::seccomp::{self, Changes, Instruction};
use ojail::sys;
use rustix::thread::SecureComputingMode;

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It was made, and returned something.
    Done,
    /// It returned this error.
    Error(c_int),
    /// It was the end of the process: by a signal, or with a status.
    Killed(c_int),
    Exited(c_int),
}

use Outcome::{Done, Error, Exited, Killed};

const REFUSED: Outcome = Error(libc::EPERM);
const ABSENT: Outcome = Error(libc::ENOSYS);
const NO_FAMILY: Outcome = Error(libc::EAFNOSUPPORT);

type Arguments = [c_long; 6];

/// No descriptor, no readable address, no known flag, and far too large.
const NONSENSE: Arguments = [-1; 6];

/// How a child makes a call.
type How<'a> = &'a dyn Fn() -> c_long;

/// What comes of a call in a child process.
fn child(how: How) -> Outcome {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    // SAFETY: the child only makes system calls, none of which needs what another thread may have locked at the fork.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: these take numbers, and a buffer that lives across the call; __errno_location gives the address of this
        // thread's own errno. The child leaves without returning, so nothing is dropped twice.
        unsafe {
            // Should it wait for something after all.
            libc::alarm(60);
            let child = libc::getpid();
            let done = how();
            if libc::getpid() == child {
                let told = if done == -1 { *libc::__errno_location() } else { 0 }.to_ne_bytes();
                libc::write(writer.as_raw_fd(), told.as_ptr().cast(), told.len());
            }
            // Else the call has forked, and this is its child.
            libc::_exit(0);
        }
    }
    assert!(pid > 0, "{}", io::Error::last_os_error());
    drop(writer);
    let mut told = [0; 4];
    let told = fs::File::from(reader).read_exact(&mut told).map(|()| c_int::from_ne_bytes(told));
    let mut status = 0;
    // SAFETY: `status` lives across the call, and the child is ours and was not waited for.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    match told {
        Ok(0) => Done,
        Ok(error) => Error(error),
        Err(_) if libc::WIFSIGNALED(status) => Killed(libc::WTERMSIG(status)),
        Err(_) => Exited(libc::WEXITSTATUS(status)),
    }
}

/// What comes of a call with or without a filter, in either case without new privileges.
fn outcome(filter: Option<&[Instruction]>, how: How) -> Outcome {
    let not_installed = 99;
    let outcome = child(&|| {
        // SAFETY: both take numbers only.
        unsafe {
            let confined = libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && filter.is_none_or(|filter| sys::seccomp(filter).is_ok());
            if !confined {
                libc::_exit(not_installed);
            }
        }
        how()
    });
    assert_ne!(outcome, Exited(not_installed), "the filter could not be installed");
    outcome
}

/// A system call as it is.
fn raw(number: c_long, arguments: Arguments) -> c_long {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the numbers and arguments of these tests are refused by the kernel, or change nothing but the child.
    unsafe { libc::syscall(number, a, b, c, d, e, f) }
}

/// vfork's child runs on its parent's stack, so it must not even return from a function.
#[cfg(target_arch = "x86_64")]
fn vfork() -> c_long {
    let result: c_long;
    // SAFETY: the child, in which the call returns 0, makes exit_group(0) and touches neither stack nor memory.
    unsafe {
        std::arch::asm!(
            "syscall", "test rax, rax", "jnz 2f", "mov eax, 231", "xor edi, edi", "syscall", "2:",
            inout("rax") libc::SYS_vfork => result, out("rdi") _, out("rcx") _, out("r11") _,
        );
    }
    if result < 0 { fail(result) } else { result }
}

#[cfg(target_arch = "x86_64")]
fn fail(result: c_long) -> c_long {
    // SAFETY: the address of this thread's own errno.
    unsafe { *libc::__errno_location() = -result as c_int };
    -1
}

/// Makes a timer of this process go off soon, and waits for a signal.
fn pause() -> c_long {
    let soon = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 1000 },
        it_value: libc::timeval { tv_sec: 0, tv_usec: 1000 },
    };
    // SAFETY: `soon` lives across the call.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const soon, std::ptr::null_mut()) };
    raw(number("pause").unwrap(), NONSENSE)
}

/// Of a session without a terminal, where it has nothing to hang up.
fn vhangup() -> c_long {
    // SAFETY: takes nothing.
    unsafe { libc::setsid() };
    raw(libc::SYS_vhangup, NONSENSE)
}

/// A system call by name, with arguments, with and without the filter.
fn both(filter: &[Instruction], name: &str, arguments: Arguments) -> Option<(Outcome, Outcome)> {
    let number = number(name)?;
    let plain = || raw(number, arguments);
    let how: How = match name {
        #[cfg(target_arch = "x86_64")]
        "vfork" => &vfork,
        "pause" => &pause,
        "vhangup" => &vhangup,
        _ => &plain,
    };
    Some((outcome(Some(filter), how), outcome(None, how)))
}

/// `None` if this architecture has none of that name.
fn number(name: &str) -> Option<c_long> {
    let column = if cfg!(target_arch = "x86_64") { 1 } else { 2 };
    let table = include_str!("../conf/syscalls.tbl").lines().map(|line| line.split_whitespace());
    table.filter(|call| call.clone().next() == Some(name)).find_map(|mut call| call.nth(column)?.parse().ok())
}

/// The names of a section of the policy that this architecture has.
fn section(section: &str) -> Vec<String> {
    let text = include_str!("../conf/seccomp.toml");
    let mut policy: BTreeMap<String, BTreeMap<String, Vec<String>>> = toml::from_str(text).unwrap();
    policy.remove(section).unwrap().into_values().flatten().filter(|name| number(name).is_some()).collect()
}

fn filter() -> Vec<Instruction> {
    seccomp::program(&Changes::default())
}

/// Arguments for calls that nonsense would make do something, or that answer nonsense like a filter would.
fn arguments(name: &str) -> Arguments {
    let (nobody, unaligned) = (c_long::from(c_int::MAX), 1);
    match name {
        "kill" => [nobody, 0, 0, 0, 0, 0],
        // With all flags, it would make a queue.
        "msgget" => [0x6f6a_6169, 0, 0, 0, 0, 0],
        // An operation that there is: FUTEX_WAKE.
        "futex" => [unaligned, 1, 0, 0, 0, 0],
        _ => NONSENSE,
    }
}

/// Newer than Linux 6.1, or a matter of how a kernel was built and booted: it may have no such call.
const MAY_BE_MISSING: &str = "\
    cachestat fchmodat2 file_getattr file_setattr futex_requeue futex_wait futex_wake getxattrat \
    listmount listxattrat lsm_get_self_attr lsm_list_modules lsm_set_self_attr map_shadow_stack \
    memfd_secret mseal pkey_alloc pkey_free pkey_mprotect removexattrat rseq_slice_yield setxattrat statmount uprobe \
    uretprobe landlock_add_rule landlock_create_ruleset";

#[test]
fn what_is_allowed_is_answered_by_the_kernel() {
    // Of whom the kernel refuses less itself.
    lab::require_root!();
    let filter = filter();
    let names = section("allow");
    assert!(names.len() > 250, "{}", names.len());
    for name in names {
        let (with, without) = both(&filter, &name, arguments(&name)).unwrap();
        assert_eq!(with, without, "{name}");
        let missing = without == ABSENT && MAY_BE_MISSING.split(' ').any(|one| one == name);
        assert!(
            missing || ![REFUSED, ABSENT].contains(&without),
            "{name}: {without:?} may be anybody's answer"
        );
    }
}

/// What a host can refuse to its root as well: modules, kexec and io_uring can be switched off, and lockdown exists.
const MAY_BE_REFUSED_OUTSIDE: &str = "\
    bpf delete_module finit_module init_module io_uring_enter io_uring_register io_uring_setup \
    kexec_file_load kexec_load";

#[test]
fn what_is_refused_is_refused_and_by_nobody_else() {
    lab::require_root!();
    let filter = filter();
    let names = section("refuse");
    assert!(names.len() > 50, "{}", names.len());
    for name in names {
        let (with, without) = both(&filter, &name, NONSENSE).unwrap();
        assert_eq!(with, REFUSED, "{name}");
        let same = MAY_BE_REFUSED_OUTSIDE.split(' ').any(|one| one == name);
        assert!(same || without != REFUSED, "{name}: root is refused it also without the filter");
    }
}

#[test]
fn what_is_absent_does_not_exist() {
    let filter = filter();
    for name in section("absent") {
        let (with, without) = both(&filter, &name, NONSENSE).unwrap();
        assert_eq!(with, ABSENT, "{name}");
        // The others are absent because no kernel has them, which the filter's unit tests tell apart.
        assert!(name != "clone3" || without != ABSENT, "there is a clone3");
    }
    // Nor are numbers of the future, and x32's: getpid is 39.
    for number in [472, 999, 0x4000_0000 + 39, c_long::from(c_int::MIN)] {
        assert_eq!(outcome(Some(&filter), &|| raw(number, NONSENSE)), ABSENT, "{number:#x}");
    }
}

/// Checks the rule of a call: with these arguments it is made, as without the filter; with those it is not.
fn rule(name: &str, made: &[Arguments], refusal: Outcome, refused: &[Arguments]) {
    let filter = filter();
    for arguments in made {
        let (with, without) = both(&filter, name, *arguments).unwrap();
        assert_eq!(with, without, "{name} {arguments:x?}");
        assert!(![refusal, ABSENT].contains(&with), "{name} {arguments:x?}: {with:?} may be the filter's");
    }
    for arguments in refused {
        let (with, without) = both(&filter, name, *arguments).unwrap();
        assert_eq!(with, refusal, "{name} {arguments:x?}");
        assert_ne!(without, refusal, "{name} {arguments:x?}: root is refused it also without the filter");
    }
}

/// One argument, and none else.
fn first(argument: c_int) -> Arguments {
    [argument.into(), 0, 0, 0, 0, 0]
}

/// Beyond the half of an argument that the kernel looks at.
const HIGH: c_long = 1 << 40;

const NAMESPACES: [c_int; 7] = [
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

#[test]
fn clone_makes_processes_but_no_namespaces() {
    lab::require_root!();
    let made = [0, libc::SIGCHLD, libc::CLONE_FILES | libc::CLONE_FS, libc::CLONE_SYSVSEM];
    let refused = NAMESPACES.map(|flag| first(flag | libc::SIGCHLD));
    let high = NAMESPACES.map(|flag| [c_long::from(flag) | HIGH, 0, 0, 0, 0, 0]);
    rule("clone", &made.map(first), REFUSED, &[refused, high].concat());
}

#[test]
fn unshare_takes_files_apart_but_no_namespaces() {
    lab::require_root!();
    let made =
        [0, libc::CLONE_FILES, libc::CLONE_FS, libc::CLONE_SYSVSEM, libc::CLONE_FS | libc::CLONE_FILES];
    let mut refused = NAMESPACES.map(first).to_vec();
    // A bit that no kernel knows: EINVAL without.
    refused.extend([first(libc::CLONE_NEWTIME), first(libc::CLONE_NEWNS | libc::CLONE_FS), first(0x1000)]);
    refused.push([HIGH, 0, 0, 0, 0, 0]);
    rule("unshare", &made.map(first), REFUSED, &refused);
}

#[test]
fn ioctl_pushes_nothing_into_terminals_whatever_the_high_half_is() {
    let on_nothing = |request: c_long| [-1, request, 0, 0, 0, 0];
    let dangerous = [libc::TIOCSTI, libc::TIOCLINUX, libc::TIOCSETD].map(|request| request as c_long);
    let fine = [libc::TCGETS, libc::TIOCGWINSZ, libc::TIOCSPTLCK, libc::FIONREAD].map(|one| one as c_long);
    let refused = [0, HIGH, c_long::MIN].map(|high| dangerous.map(|one| on_nothing(one | high))).concat();
    rule("ioctl", &fine.map(on_nothing), REFUSED, &refused);
}

/// It makes AF_INET AF_PACKET; libc calls it deprecated, and the kernel still knows it.
const SOCK_PACKET: c_int = 10;

#[test]
fn sockets_are_of_four_families_only_and_netlink_of_four_protocols() {
    lab::require_root!();
    let kind = |family: c_int, kind: c_int, protocol: c_int| {
        [family.into(), (kind | libc::SOCK_CLOEXEC).into(), protocol.into(), 0, 0, 0]
    };
    let netlink = |protocol| kind(libc::AF_NETLINK, libc::SOCK_RAW, protocol);
    let made = [
        kind(libc::AF_UNIX, libc::SOCK_STREAM, 0),
        kind(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK, 0),
        kind(libc::AF_INET, libc::SOCK_STREAM, 0),
        kind(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
        netlink(libc::NETLINK_ROUTE),
        netlink(libc::NETLINK_KOBJECT_UEVENT),
    ];
    // Whether a kernel has these is its own matter, but it is not for the filter to say.
    let optional = [
        kind(libc::AF_INET6, libc::SOCK_DGRAM, 0),
        netlink(libc::NETLINK_SOCK_DIAG),
        netlink(libc::NETLINK_AUDIT),
    ];
    let refused = [
        kind(libc::AF_PACKET, libc::SOCK_RAW, 0),
        kind(libc::AF_INET, SOCK_PACKET, 0),
        netlink(libc::NETLINK_GENERIC),
    ];
    rule("socket", &made, NO_FAMILY, &refused);

    let (filter, number) = (filter(), number("socket").unwrap());
    for arguments in optional {
        let (with, without) = both(&filter, "socket", arguments).unwrap();
        assert_eq!(with, without, "{arguments:x?}");
    }
    let known = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    for family in (0..64).filter(|family| !known.contains(family)) {
        for high in [0, HIGH] {
            let arguments = [c_long::from(family) | high, libc::SOCK_DGRAM.into(), 0, 0, 0, 0];
            assert_eq!(outcome(Some(&filter), &|| raw(number, arguments)), NO_FAMILY, "{family}");
        }
    }
    for protocol in (0..32).filter(|protocol| ![0, 4, 9, 15].contains(protocol)) {
        assert_eq!(
            outcome(Some(&filter), &|| raw(number, netlink(protocol))),
            NO_FAMILY,
            "netlink {protocol}"
        );
    }
}

#[test]
fn socket_pairs_are_of_unix_and_of_what_the_kernel_refuses_itself() {
    let pair = |family: c_int, kind: c_int| [family.into(), kind.into(), 0, -1, 0, 0];
    let made = [pair(libc::AF_UNIX, libc::SOCK_STREAM), pair(libc::AF_INET, libc::SOCK_STREAM)];
    let refused = [pair(libc::AF_NETLINK, libc::SOCK_RAW)];
    rule("socketpair", &made, NO_FAMILY, &refused);
    let filter = filter();
    for arguments in [pair(libc::AF_TIPC, libc::SOCK_STREAM), pair(libc::AF_INET, SOCK_PACKET)] {
        assert_eq!(both(&filter, "socketpair", arguments).unwrap().0, NO_FAMILY, "{arguments:x?}");
    }
}

#[test]
fn personality_switches_no_protection_off() {
    // READ_IMPLIES_EXEC, MMAP_PAGE_ZERO, ADDR_COMPAT_LAYOUT, PER_BSD.
    let refused = [0x40_0000, 0x10_0000, 0x20_0000, 6, 0x44_0000].map(first);
    // The question, PER_LINUX, UNAME26, ADDR_NO_RANDOMIZE.
    rule("personality", &[-1, 0, 0x2_0000, 0x4_0000, 0x6_0000].map(first), REFUSED, &refused);
}

#[test]
fn a_profile_allows_and_denies_by_name() {
    lab::require_root!();
    let changes = Changes {
        allow: ["keyctl", "clone3", "unshare"].map(|name| seccomp::name(name).unwrap()).into(),
        deny: ["ptrace", "socket", "inotify_init1"].map(|name| seccomp::name(name).unwrap()).into(),
    };
    changes.check().unwrap();
    let filter = seccomp::program(&changes);
    for name in ["keyctl", "clone3", "unshare"] {
        let (with, without) = both(&filter, name, NONSENSE).unwrap();
        assert_eq!(with, without, "{name}");
        assert!(![REFUSED, ABSENT].contains(&with), "{name}: {with:?}");
    }
    for name in ["ptrace", "socket", "inotify_init1", "mount"] {
        let (with, without) = both(&filter, name, NONSENSE).unwrap();
        assert_eq!(with, REFUSED, "{name}");
        assert_ne!(without, REFUSED, "{name}");
    }
}

/// getpid by the number that it has for i386.
#[cfg(target_arch = "x86_64")]
fn getpid_of_i386() -> c_long {
    let result: c_int;
    // SAFETY: getpid takes nothing and touches no memory.
    unsafe {
        std::arch::asm!("int 0x80", inout("eax") 20 => result, out("r8") _, out("r9") _, out("r10") _, out("r11") _)
    };
    if result < 0 { fail(result.into()) } else { result.into() }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_call_of_i386_is_the_end_of_the_process() {
    let how: How = &getpid_of_i386;
    // A kernel without emulation ends it itself.
    let without = outcome(None, how);
    assert!([Done, Killed(libc::SIGSEGV)].contains(&without), "{without:?}");
    let wanted = if without == Done { Killed(libc::SIGSYS) } else { without };
    assert_eq!(outcome(Some(&filter()), how), wanted);
}

#[test]
fn a_filter_needs_no_new_privs_or_a_privilege_and_must_be_one() {
    let filter = filter();
    let install = |filter: &[Instruction]| sys::seccomp(filter).map_or(-1, |()| 0);
    let as_nobody = || {
        // The raw call, because libc's would tell other threads, too.
        raw(libc::SYS_setresuid, [65_534, 65_534, 65_534, 0, 0, 0]);
        install(&filter)
    };
    assert_eq!(child(&as_nobody), Error(libc::EACCES));
    assert_eq!(outcome(None, &as_nobody), Done);
    assert_eq!(outcome(None, &|| install(&[])), Error(libc::EINVAL));
    assert_eq!(outcome(None, &|| install(&[filter[0]; 5000])), Error(libc::EINVAL));
    // Not to be cut to what a filter's length can say.
    let much = sys::seccomp(&vec![filter[0]; 70_000]).unwrap_err();
    assert_eq!(much.raw_os_error(), Some(libc::E2BIG));
}

#[test]
fn it_is_read_back_stays_and_covers_what_is_executed() {
    let filter = filter();
    std::thread::spawn(move || {
        assert_eq!(rustix::thread::secure_computing_mode().unwrap(), SecureComputingMode::Disabled);
        rustix::thread::set_no_new_privs(true).unwrap();
        sys::seccomp(&filter).unwrap();
        assert_eq!(rustix::thread::secure_computing_mode().unwrap(), SecureComputingMode::Filter);
        let mut sh = Command::new("sh");
        sh.args(["-c", "ls -d / | tr / j && mount -t tmpfs none /nowhere; unshare -r true"])
            .env("LC_ALL", "C");
        let output = sh.output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "j\n", "{errors}");
        assert!(errors.contains("unshare failed: Operation not permitted"), "{errors}");
    })
    .join()
    .unwrap();
    // The thread's alone.
    assert_eq!(rustix::thread::secure_computing_mode().unwrap(), SecureComputingMode::Disabled);
}

/// `cargo test --release --test filter -- --ignored --nocapture` tells what a login pays.
#[test]
#[ignore = "measures, and finds no fault"]
#[expect(clippy::print_stdout, reason = "what it is for")]
fn what_it_costs() {
    // A filter of one instruction, which allows everything: what any filter costs.
    let least = [Instruction {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: libc::SECCOMP_RET_ALLOW,
    }];
    let sample = move || {
        rustix::thread::set_no_new_privs(true).unwrap();
        let start = Instant::now();
        let filter = filter();
        let made = start.elapsed();
        sys::seccomp(&filter).unwrap();
        let installed = start.elapsed() - made;
        let start = Instant::now();
        sys::seccomp(&least).unwrap();
        [made, installed, start.elapsed()].map(|time| time.as_nanos() / 100)
    };
    // Each in a thread of its own, for which it is the first.
    let samples: Vec<_> = (0..1001).map(|_| std::thread::spawn(sample).join().unwrap()).collect();
    for (at, what) in ["program()", "sys::seccomp()", "… of one instruction"].into_iter().enumerate() {
        let mut times: Vec<_> = samples.iter().map(|times| times[at]).collect();
        times.sort_unstable();
        let [median, high] = [500, 900].map(|at| times[at] as f64 / 10.0);
        println!("{what:22} median {median:6.1} µs, nine of ten below {high:6.1} µs");
    }
    println!("{} instructions", filter().len());
}
