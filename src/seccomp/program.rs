//! From answers to classic BPF.
//!
//! When a filter is installed, the kernel runs it once for each number there is, to know in advance what is always allowed;
//! and before a call that is not, it runs it again. So it is a balanced search over ranges of numbers: seven comparisons,
//! where a list would take two hundred.

use std::mem::offset_of;

use libc::seccomp_data;

use super::rules::Rule;
use super::{Answer, Arch, Changes, Instruction};

const LOAD: u16 = code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS);
const AND: u16 = code(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K);
const JUMP: u16 = code(libc::BPF_JMP | libc::BPF_JA);
const IF_EQUAL: u16 = code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
const IF_AT_LEAST: u16 = code(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K);
const RETURN: u16 = code(libc::BPF_RET | libc::BPF_K);

/// The constants have more bits than the field that they are for.
const fn code(bits: u32) -> u16 {
    bits as u16
}

/// The filter of an architecture.
pub(super) fn of(arch: &Arch, changes: &Changes) -> Vec<Instruction> {
    let mut program = vec![
        load(offset_of!(seccomp_data, arch)),
        Instruction { code: IF_EQUAL, jt: 1, jf: 0, k: arch.audit },
        // Its numbers would mean other calls. Not an error it could handle: it is in the wrong place.
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(offset_of!(seccomp_data, nr)),
    ];
    program.extend(search(&ranges(arch, changes)));
    program
}

/// The first number of each range of numbers with the same answer. The last range has no end: x32's numbers and those
/// below zero, which are large without their sign, are in it.
fn ranges(arch: &Arch, changes: &Changes) -> Vec<(u32, Answer)> {
    let mut ranges = vec![(0, Answer::Absent)];
    let mut next = 0;
    let mut from = |number, answer| match ranges.last_mut() {
        Some((_, last)) if *last == answer => {}
        // Nothing lies between.
        Some((first, last)) if *first == number => *last = answer,
        _ => ranges.push((number, answer)),
    };
    for call in arch.calls {
        let number = u32::from(call.number);
        if number > next {
            from(next, Answer::Absent);
        }
        from(number, changes.answer(call));
        next = number + 1;
    }
    from(next, Answer::Absent);
    ranges
}

/// With the number loaded, the answer of the range that it is in.
fn search(ranges: &[(u32, Answer)]) -> Vec<Instruction> {
    let (below, above) = ranges.split_at(ranges.len() / 2);
    let Some((first, last)) = above.first() else {
        return vec![answer(errno(libc::ENOSYS))];
    };
    if below.is_empty() {
        return leaf(*last);
    }
    let (below, above) = (search(below), search(above));
    // A condition's offset is one byte; an unconditional jump goes as far as it must.
    let mut node = match u8::try_from(below.len()) {
        Ok(over) => vec![Instruction { code: IF_AT_LEAST, jt: over, jf: 0, k: *first }],
        Err(_) => vec![
            Instruction { code: IF_AT_LEAST, jt: 0, jf: 1, k: *first },
            Instruction { code: JUMP, jt: 0, jf: 0, k: below.len() as u32 },
        ],
    };
    node.extend(below);
    node.extend(above);
    node
}

fn leaf(verdict: Answer) -> Vec<Instruction> {
    match verdict {
        Answer::Allow => vec![answer(libc::SECCOMP_RET_ALLOW)],
        Answer::Refuse => vec![answer(errno(libc::EPERM))],
        Answer::Absent => vec![answer(errno(libc::ENOSYS))],
        Answer::Check(rule) => check(rule),
    }
}

/// One case after the other; in a case, one condition after the other, and at the first that does not hold on to the next
/// case.
fn check(rule: Rule) -> Vec<Instruction> {
    let rule = rule.terms();
    let mut program = Vec::new();
    for case in rule.cases {
        let mut later = vec![answer(rule.then.value())];
        for condition in case.iter().rev() {
            let mut one = vec![load(condition.offset())];
            if condition.mask != u32::MAX {
                one.push(Instruction { code: AND, jt: 0, jf: 0, k: condition.mask });
            }
            // Rules are small: these offsets are far below 255, which a test sees to.
            let mut left = condition.values.len() as u8;
            for value in condition.values {
                left -= 1;
                let jf = if left == 0 { later.len() as u8 } else { 0 };
                one.push(Instruction { code: IF_EQUAL, jt: left, jf, k: *value });
            }
            one.append(&mut later);
            later = one;
        }
        program.append(&mut later);
    }
    program.push(answer(rule.otherwise.value()));
    program
}

fn load(offset: usize) -> Instruction {
    // An offset into a struct of 64 bytes.
    Instruction { code: LOAD, jt: 0, jf: 0, k: offset as u32 }
}

fn answer(value: u32) -> Instruction {
    Instruction { code: RETURN, jt: 0, jf: 0, k: value }
}

/// To answer with an error.
pub(super) const fn errno(error: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | error as u32
}
