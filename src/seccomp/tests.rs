//! The filter as the kernel would run it: every number there is, on both architectures, against the policy file itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, HashMap};

use super::*;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
const EPERM: u32 = program::errno(libc::EPERM);
const ENOSYS: u32 = program::errno(libc::ENOSYS);
const EAFNOSUPPORT: u32 = program::errno(libc::EAFNOSUPPORT);

const ARCHES: [Arch; 2] = [X86_64_ARCH, AARCH64_ARCH];
/// `AUDIT_ARCH_I386` and `AUDIT_ARCH_ARM` of linux/audit.h.
const FOREIGN: [u32; 2] = [0x4000_0003, 0x4000_0028];
const X32: u32 = 0x4000_0000;
/// Above the low half of an argument.
const HIGH: u64 = 1 << 32;

/// What came of a run.
#[derive(Debug, PartialEq)]
struct Run {
    answer: u32,
    steps: usize,
    /// Whether more than architecture and number was looked at. The kernel knows such an answer in advance for none.
    arguments: bool,
}

/// The kernel's machine, as far as filters of ours use it.
fn run(program: &[Instruction], arch: u32, number: u32, arguments: [u64; 6]) -> Run {
    let mut data = [number, arch, 0, 0].map(u32::to_le_bytes).concat();
    data.extend(arguments.map(u64::to_le_bytes).concat());
    let (mut accumulator, mut at, mut steps, mut looked) = (0, 0, 0, false);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        let jump = |condition| usize::from(if condition { jt } else { jf });
        steps += 1;
        at += 1;
        match code {
            0x20 => {
                let k = usize::try_from(k).unwrap();
                assert!(k % 4 == 0, "the kernel refuses to load from between");
                accumulator = u32::from_le_bytes(data[k..k + 4].try_into().unwrap());
                looked |= k > 4;
            }
            0x54 => accumulator &= k,
            0x05 => at += usize::try_from(k).unwrap(),
            0x15 => at += jump(accumulator == k),
            0x35 => at += jump(accumulator >= k),
            0x06 => return Run { answer: k, steps, arguments: looked },
            _ => panic!("not one of ours: {code:#x}"),
        }
    }
}

/// Sections, groups, names.
fn policy() -> BTreeMap<String, BTreeMap<String, Vec<String>>> {
    toml::from_str(include_str!("../../conf/seccomp.toml")).unwrap()
}

/// The section that each name is in, but for `[vital]`, which is no answer.
fn sections() -> HashMap<String, String> {
    let mut sections = HashMap::new();
    for (section, groups) in policy().into_iter().filter(|(section, _)| section != "vital") {
        for name in groups.into_values().flatten() {
            let before = sections.insert(name.clone(), section.clone());
            assert_eq!(before, None, "{name} stands in one place");
        }
    }
    sections
}

/// Names by number, from the table, apart from what was built.
fn numbers(arch: &Arch) -> HashMap<u32, &'static str> {
    let table = include_str!("../../conf/syscalls.tbl").lines().filter(|line| !line.starts_with('#'));
    let at = if arch.audit == X86_64_ARCH.audit { 1 } else { 2 };
    let call = |line: &'static str| {
        let call: Vec<_> = line.split_whitespace().collect();
        Some((call[at].parse().ok()?, call[0]))
    };
    table.filter_map(call).collect()
}

fn number(arch: &Arch, name: &str) -> u32 {
    *numbers(arch).iter().find(|(_, known)| **known == name).expect(name).0
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<Name> {
    names.map(|text| name(text).unwrap()).into()
}

#[test]
fn every_call_of_both_architectures_stands_in_exactly_one_list() {
    let sections = sections();
    let known: BTreeSet<_> = ARCHES.iter().flat_map(|arch| numbers(arch).into_values()).collect();
    assert!(known.len() > 380, "{}", known.len());
    let missing: Vec<_> = known.iter().filter(|name| !sections.contains_key(**name)).collect();
    assert!(missing.is_empty(), "conf/seccomp.toml does not judge {missing:?}");
    assert_eq!(sections.len(), known.len());
    assert_eq!(Vec::from_iter(names().map(Name::as_str)), Vec::from_iter(known), "all are known by name");
}

/// The headers' numbers, which may be of an older kernel than the table's: Debian's linux-libc-dev, which libc6-dev needs.
#[test]
fn the_numbers_are_those_of_the_kernels_headers() {
    // aarch64's are the generic ones, which every architecture has.
    let headers = [
        (X86_64_ARCH, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        (AARCH64_ARCH, "/usr/include/asm-generic/unistd.h"),
    ];
    for (arch, header) in headers.into_iter().skip(usize::from(cfg!(not(target_arch = "x86_64")))) {
        lab::require!(std::fs::metadata(header).map_err(|error| format!("{header}: {error}")));
        let numbers = numbers(&arch);
        let text = std::fs::read_to_string(header).unwrap();
        let mut found = 0;
        for line in text.lines().filter_map(|line| line.strip_prefix("#define __NR")) {
            // "_name number"; or "3264_name number", where a 32-bit architecture has the same number by another name.
            let Some((name, number)) =
                line.split_once('_').and_then(|(_, call)| call.split_once(char::is_whitespace))
            else {
                continue;
            };
            let Ok(number) = number.trim().parse::<u32>() else { continue };
            match (name, number) {
                ("syscalls" | "arch_specific_syscall" | "sync_file_range2", _) | (_, 403..=423) => {}
                ("fstatat", _) => assert_eq!(numbers.get(&number), Some(&"newfstatat")),
                _ => assert_eq!(numbers.get(&number), Some(&name), "{number} in {header}"),
            }
            found += 1;
        }
        assert!(found > 300, "{header} has {found}");
    }
}

#[test]
fn every_number_gets_the_answer_of_the_file_and_arguments_are_looked_at_where_it_says_so() {
    let sections = sections();
    for arch in ARCHES {
        let (program, numbers) = (program::of(&arch, &Changes::default()), numbers(&arch));
        for number in 0..=600 {
            let run = run(&program, arch.audit, number, [0; 6]);
            let name = numbers.get(&number);
            match name.map_or("absent", |name| sections[*name].as_str()) {
                "allow" => assert_eq!((run.answer, run.arguments), (ALLOW, false), "{number} {name:?}"),
                "refuse" => assert_eq!((run.answer, run.arguments), (EPERM, false), "{number} {name:?}"),
                "absent" => assert_eq!((run.answer, run.arguments), (ENOSYS, false), "{number} {name:?}"),
                "check" => assert!(run.arguments, "{number} {name:?}"),
                other => panic!("{other}"),
            }
        }
    }
}

#[test]
fn other_architectures_are_killed_and_x32_and_negative_numbers_do_not_exist() {
    for arch in ARCHES {
        let program = program::of(&arch, &Changes::default());
        let other = ARCHES.map(|arch| arch.audit).into_iter().filter(|audit| *audit != arch.audit);
        for audit in FOREIGN.into_iter().chain(other) {
            for number in (0..=600).chain([X32, u32::MAX]) {
                assert_eq!(run(&program, audit, number, [0; 6]).answer, KILL, "{audit:#x} {number}");
            }
        }
        for number in (0..=600).map(|number| number | X32).chain([601, i32::MAX as u32, 1 << 31, u32::MAX]) {
            assert_eq!(run(&program, arch.audit, number, [0; 6]).answer, ENOSYS, "{number:#x}");
        }
    }
}

#[test]
fn the_filter_is_short_and_balanced_and_the_kernel_takes_it() {
    for arch in ARCHES {
        let program = program::of(&arch, &Changes::default());
        assert!(program.len() < 255, "no far jumps: {}", program.len());
        for number in 0..=600 {
            let run = run(&program, arch.audit, number, [0; 6]);
            assert!(run.steps <= if run.arguments { 24 } else { 11 }, "{number}: {run:?}");
        }
        assert_valid(&program);
    }
}

/// What `bpf_check_classic` and `seccomp_check_filter` of the kernel ask for.
fn assert_valid(program: &[Instruction]) {
    assert!(program.len() <= 4096);
    assert_eq!(program.last().unwrap().code, 0x06, "it ends with an answer");
    for (at, one) in program.iter().enumerate() {
        let farthest = match one.code {
            0x05 => one.k as usize,
            0x15 | 0x35 => usize::from(one.jt.max(one.jf)),
            0x20 => {
                assert!(one.k % 4 == 0 && one.k < 64);
                0
            }
            0x06 | 0x54 => 0,
            _ => panic!("not one of ours: {:#x}", one.code),
        };
        assert!(
            at + 1 + farthest <= program.len() - usize::from(one.code != 0x06),
            "{at}: out of the program"
        );
    }
}

/// Checks a rule on both architectures, each time also with rubbish in the arguments that do not matter.
fn check(name: &str, cases: &[(&[u64], u32)]) {
    for arch in ARCHES {
        let program = program::of(&arch, &Changes::default());
        let number = number(&arch, name);
        for (given, wanted) in cases {
            for rest in [0, u64::MAX, 0x5412, 10] {
                let mut arguments = [rest; 6];
                arguments[..given.len()].copy_from_slice(given);
                let answer = run(&program, arch.audit, number, arguments).answer;
                assert_eq!(answer, *wanted, "{name} {given:x?} and {rest:x}");
            }
        }
    }
}

#[test]
fn clone_makes_processes_and_threads_but_no_namespaces() {
    let thread =
        libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
    let settid = libc::CLONE_PARENT_SETTID | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
    check("clone", &[(&[0], ALLOW), (&[libc::SIGCHLD as u64], ALLOW), (&[HIGH], ALLOW), (&[0xff], ALLOW)]);
    check("clone", &[(&[(thread | settid | libc::CLONE_SYSVSEM | libc::CLONE_SETTLS) as u64], ALLOW)]);
    check(
        "clone",
        &[(&[(libc::CLONE_VFORK | libc::CLONE_VM | libc::CLONE_PIDFD | libc::SIGCHLD) as u64], ALLOW)],
    );
    for flag in NAMESPACES {
        let alike =
            [flag, flag | HIGH, flag | u64::MAX << 32, flag | libc::SIGCHLD as u64, flag | thread as u64];
        for flags in alike {
            check("clone", &[(&[flags], EPERM)]);
        }
    }
}

/// As linux/sched.h has them: CGROUP, IPC, NET, NS, PID, USER, UTS.
const NAMESPACES: [u64; 7] =
    [0x0200_0000, 0x0800_0000, 0x4000_0000, 0x0002_0000, 0x2000_0000, 0x1000_0000, 0x0400_0000];

#[test]
fn unshare_takes_no_namespace_apart_nor_what_is_not_invented_yet() {
    let known = libc::CLONE_FILES | libc::CLONE_FS | libc::CLONE_SYSVSEM | libc::CLONE_THREAD;
    check("unshare", &[(&[0], ALLOW), (&[libc::CLONE_FS as u64], ALLOW), (&[known as u64], ALLOW)]);
    let (time, empty_mount_namespace) = (0x80, 0x0010_0000);
    for flag in NAMESPACES.into_iter().chain([time, empty_mount_namespace, HIGH, 1 << 63, 1]) {
        check("unshare", &[(&[flag], EPERM), (&[flag | HIGH], EPERM), (&[flag | known as u64], EPERM)]);
    }
}

#[test]
fn ioctl_pushes_nothing_into_terminals_whatever_the_high_half_is() {
    for request in [0x5412, 0x541c, 0x5423] {
        for high in [0, HIGH, 1 << 63, u64::MAX << 32] {
            check("ioctl", &[(&[0, request | high], EPERM), (&[request, request | high], EPERM)]);
        }
    }
    let (tcgets, tiocgwinsz, fionread, tiocgptn) = (0x5401, 0x5413, 0x541b, 0x8004_5430);
    for request in [0, tcgets, tiocgwinsz, fionread, tiocgptn, 0x1_5412, 0x5412 << 16, 0x5412 << 32] {
        check("ioctl", &[(&[0, request], ALLOW), (&[0x5412, request], ALLOW)]);
    }
}

#[test]
fn sockets_are_of_four_families_only_and_netlink_of_four_protocols() {
    let (stream, datagram, raw, rdm, seqpacket, dccp, packet) = (1, 2, 3, 4, 5, 6, 10);
    let flags = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;
    let (unix, inet, inet6, netlink) = (1, 2, 10, 16);
    for call in ["socket", "socketpair"] {
        check(call, &[(&[unix], ALLOW), (&[unix | HIGH], ALLOW)]);
        for family in [inet, inet6] {
            for kind in [stream, datagram, raw, seqpacket] {
                check(call, &[(&[family, kind], ALLOW), (&[family | HIGH, kind | flags | HIGH], ALLOW)]);
            }
            // SOCK_PACKET would make it AF_PACKET.
            for kind in [0, rdm, dccp, packet, 15] {
                check(
                    call,
                    &[(&[family, kind], EAFNOSUPPORT), (&[family, kind | flags | HIGH], EAFNOSUPPORT)],
                );
            }
        }
        for family in (0..=64).chain([u64::from(u32::MAX)]) {
            if ![unix, inet, inet6, netlink].contains(&family) {
                check(call, &[(&[family], EAFNOSUPPORT), (&[family | HIGH, stream], EAFNOSUPPORT)]);
            }
        }
    }
    for protocol in 0..=64 {
        // ROUTE, SOCK_DIAG, AUDIT, KOBJECT_UEVENT.
        let wanted = if [0, 4, 9, 15].contains(&protocol) { ALLOW } else { EAFNOSUPPORT };
        check("socket", &[(&[netlink, raw, protocol], wanted), (&[netlink, raw, protocol | HIGH], wanted)]);
        check("socketpair", &[(&[netlink, raw, protocol], EAFNOSUPPORT)]);
    }
}

#[test]
fn personality_switches_no_protection_off() {
    let question = u64::from(u32::MAX);
    check("personality", &[(&[question], ALLOW), (&[u64::MAX], ALLOW), (&[question | HIGH], ALLOW)]);
    for fine in [0, 0x8, 0x2_0000, 0x4_0000, 0x2_0008, 0x4_0008, 0x6_0008] {
        check("personality", &[(&[fine], ALLOW), (&[fine | HIGH], ALLOW)]);
    }
    for bit in (0..32).map(|bit| 1 << bit).filter(|bit| bit & 0x6_0008 == 0) {
        check("personality", &[(&[bit], EPERM), (&[bit | 0x8], EPERM), (&[question ^ bit], EPERM)]);
    }
}

#[test]
fn what_a_profile_allows_or_denies_is_so_for_all_arguments_and_nothing_else_changes() {
    for arch in ARCHES {
        let numbers = numbers(&arch);
        // Arguments that most rules refuse.
        let answers = |changes: &Changes| -> BTreeMap<_, _> {
            let program = program::of(&arch, changes);
            let answer = |number| run(&program, arch.audit, number, [0x0200_5412; 6]).answer;
            numbers.iter().map(|(number, name)| (*name, answer(*number))).collect()
        };
        let policy = answers(&Changes::default());
        for changed in names() {
            let allowing = Changes { allow: [changed].into(), ..Changes::default() };
            let denying = Changes { deny: [changed].into(), ..Changes::default() };
            for (changes, wanted) in [(allowing, ALLOW), (denying, EPERM)] {
                let mut now = policy.clone();
                now.entry(changed.as_str()).and_modify(|answer| *answer = wanted);
                assert_eq!(answers(&changes), now, "{changes:?}");
            }
        }
    }
}

#[test]
fn the_filter_is_right_also_where_it_is_so_long_that_jumps_must_go_far() {
    let answers = [Answer::Allow, Answer::Refuse, Answer::Check(Rule::Socket), Answer::Absent];
    for length in [0, 1, 2, 3, 20, 100, 101, 250, 600] {
        let calls =
            (0..length).map(|number| Call { number, name: 0, answer: answers[usize::from(number) % 4] });
        let arch = Arch { audit: 1, calls: calls.collect::<Vec<_>>().leak() };
        let program = program::of(&arch, &Changes::default());
        assert_valid(&program);
        assert_eq!(length >= 100, program.iter().any(|one| one.code == 0x05), "jumps of {length}");
        for number in 0..u32::from(length) {
            let answer = |family| run(&program, 1, number, [family, 0, 0, 0, 0, 0]).answer;
            let wanted = [(ALLOW, ALLOW), (EPERM, EPERM), (ALLOW, EAFNOSUPPORT), (ENOSYS, ENOSYS)]
                [number as usize % 4];
            assert_eq!((answer(1), answer(38)), wanted, "{number} of {length}");
        }
        assert_eq!(run(&program, 1, length.into(), [0; 6]).answer, ENOSYS);
    }
}

#[test]
fn a_name_of_another_architecture_is_known_and_changes_nothing() {
    for foreign in ["ioperm", "fork", "epoll_wait_old"] {
        let changes = Changes { allow: set([foreign]), ..Changes::default() };
        assert!(!numbers(&AARCH64_ARCH).values().any(|name| *name == foreign));
        let [with, without] =
            [changes, Changes::default()].map(|changes| program::of(&AARCH64_ARCH, &changes));
        assert!(with == without, "{foreign}");
    }
}

#[test]
fn an_unknown_name_is_refused_with_those_that_may_be_meant() {
    assert_eq!(name("mount").unwrap().as_str(), "mount");
    for (wrong, sentence) in [
        ("umount", r#"there is no system call "umount"; is it umount2?"#),
        ("mout", r#"there is no system call "mout"; is it mount?"#),
        ("kyectl", r#"there is no system call "kyectl"; is it keyctl?"#),
        (
            "io_uring",
            r#"there is no system call "io_uring"; is it io_uring_enter or io_uring_setup or io_uring_register?"#,
        ),
        ("frobnicate", r#"there is no system call "frobnicate""#),
        ("", r#"there is no system call """#),
        ("Mount ", r#"there is no system call "Mount "; is it mount?"#),
    ] {
        assert_eq!(name(wrong).unwrap_err(), sentence);
    }
}

#[test]
fn changes_that_cannot_be_meant_are_told() {
    let check = |allow, deny| Changes { allow, deny }.check();
    assert_eq!(check(set(["mount", "bpf"]), set(["ptrace", "clone3"])), Ok(()));
    assert_eq!(
        check(set(["mount", "bpf"]), set(["ptrace", "bpf"])).unwrap_err(),
        "the system call bpf is both allowed and denied"
    );
    assert_eq!(
        check(set([]), set(["bpf", "execve"])).unwrap_err(),
        "the system call execve cannot be denied: no program runs without it"
    );
}

#[test]
fn what_no_profile_can_deny_the_policy_does_not_refuse_either() {
    let sections = sections();
    for name in policy()["vital"].values().flatten() {
        assert!(["allow", "check"].contains(&sections[name].as_str()), "{name}");
        let deny = [super::name(name).unwrap()].into();
        assert!(Changes { deny, ..Changes::default() }.check().is_err(), "{name}");
    }
}

#[test]
fn changes_are_read_and_written_by_name() {
    let text = r#"{"allow":["bpf","mount"],"deny":["ptrace"]}"#;
    let changes: Changes = serde_json::from_str(text).unwrap();
    assert_eq!(changes, Changes { allow: set(["mount", "bpf"]), deny: set(["ptrace"]) });
    assert_eq!(serde_json::to_string(&changes).unwrap(), text);
    assert_eq!(toml::from_str::<Changes>("deny = ['ptrace']").unwrap().deny, set(["ptrace"]));
    let unknown = toml::from_str::<Changes>("allow = ['mout']").unwrap_err().to_string();
    assert!(unknown.contains("is it mount?"), "{unknown}");
    assert!(toml::from_str::<Changes>("alow = []").is_err());
}
