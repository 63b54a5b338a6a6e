//! From answers to classic BPF.
//!
//! When a filter is installed, the kernel translates it, and runs it once for each number there is, to know in advance what is
//! always allowed. So it is short, and a balanced search over ranges of numbers: seven comparisons, where a list takes two
//! hundred, and more than ten times as long to install.
//!
//! Jumps go forwards only, so a program is put together from its end: where a jump goes is then there already.

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

const ALLOW: Target = Target::Return(libc::SECCOMP_RET_ALLOW);
const EPERM: Target = Target::Return(errno(libc::EPERM));
const ENOSYS: Target = Target::Return(errno(libc::ENOSYS));

/// To answer with an error.
pub(super) const fn errno(error: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | error as u32
}

/// The filter of an architecture.
pub(super) fn of(arch: &Arch, changes: &Changes) -> Vec<Instruction> {
    let mut program = Program { reversed: Vec::with_capacity(256), returns: Vec::with_capacity(8) };
    let search = program.search(&ranges(arch, changes));
    program.reach(search);
    program.add(LOAD, offset_of!(seccomp_data, nr) as u32);
    // Another's numbers would mean other calls. No error to be handled: it is in the wrong place.
    program.add(RETURN, libc::SECCOMP_RET_KILL_PROCESS);
    program.reversed.push(Instruction { code: IF_EQUAL, jt: 1, jf: 0, k: arch.audit });
    program.add(LOAD, offset_of!(seccomp_data, arch) as u32);
    program.reversed.reverse();
    program.reversed
}

/// Numbers with the same answer, up to the next range. The last one has no end: x32's numbers and those below zero, which
/// are large without their sign, are in it.
#[derive(Debug)]
struct Range {
    first: u32,
    answer: Answer,
    /// One number among them with another answer: one comparison, where three ranges would take two.
    but: Option<(u32, Answer)>,
}

fn ranges(arch: &Arch, changes: &Changes) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::with_capacity(128);
    let mut next = 0;
    let mut from = |first, answer| match ranges.as_mut_slice() {
        [.., last] if last.answer == answer => {}
        [.., before, Range { first: one, answer: other, but: None }]
            if before.answer == answer && before.but.is_none() && *one + 1 == first =>
        {
            before.but = Some((*one, *other));
            ranges.pop();
        }
        _ => ranges.push(Range { first, answer, but: None }),
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

/// Where a jump goes.
#[derive(Debug, Clone, Copy)]
enum Target {
    /// To an instruction that is there already, by its place from the end.
    Place(usize),
    /// To a return of this value; to any.
    Return(u32),
}

/// A program, last instruction first.
struct Program {
    reversed: Vec<Instruction>,
    /// The latest return of each value, and its place.
    returns: Vec<(u32, usize)>,
}

impl Program {
    fn add(&mut self, code: u16, k: u32) -> usize {
        self.reversed.push(Instruction { code, jt: 0, jf: 0, k });
        self.reversed.len() - 1
    }

    /// With the number loaded, finds the answer of the range that it is in.
    fn search(&mut self, ranges: &[Range]) -> Target {
        let (below, above) = ranges.split_at(ranges.len() / 2);
        match (below, above) {
            ([], [range]) => {
                let all = self.answer(range.answer);
                let Some((number, answer)) = range.but else { return all };
                let one = self.answer(answer);
                self.branch(IF_EQUAL, number, one, all)
            }
            (_, [Range { first, .. }, ..]) => {
                let above = self.search(above);
                let below = self.search(below);
                self.branch(IF_AT_LEAST, *first, above, below)
            }
            (_, []) => ENOSYS,
        }
    }

    fn answer(&mut self, answer: Answer) -> Target {
        match answer {
            Answer::Allow => ALLOW,
            Answer::Refuse => EPERM,
            Answer::Absent => ENOSYS,
            Answer::Check(rule) => self.check(rule),
        }
    }

    /// One case after the other; in a case, one condition after the other, and at the first that does not hold on to the
    /// next case.
    fn check(&mut self, rule: Rule) -> Target {
        let rule = rule.terms();
        let mut next_case = Target::Return(rule.otherwise.value());
        for case in rule.cases.iter().rev() {
            let mut next = Target::Return(rule.then.value());
            for condition in case.iter().rev() {
                let mut no = next_case;
                for value in condition.values.iter().rev() {
                    no = self.branch(IF_EQUAL, *value, next, no);
                }
                if condition.mask != u32::MAX {
                    self.add(AND, condition.mask);
                }
                next = Target::Place(self.add(LOAD, condition.offset() as u32));
            }
            next_case = next;
        }
        next_case
    }

    fn branch(&mut self, code: u16, k: u32, yes: Target, no: Target) -> Target {
        let (yes, no) = (self.reach(yes), self.reach(no));
        // What is reached is near enough, also if reaching the other took one more instruction.
        let over = |place| (self.reversed.len() - place - 1) as u8;
        let branch = Instruction { code, jt: over(yes), jf: over(no), k };
        self.reversed.push(branch);
        Target::Place(self.reversed.len() - 1)
    }

    /// The place of a target, or of something that leads there, to which the next branches can jump: they have one byte to
    /// say how far.
    fn reach(&mut self, target: Target) -> usize {
        let place = match target {
            Target::Place(place) => Some(place),
            Target::Return(value) => {
                self.returns.iter().find(|(is, _)| *is == value).map(|(_, place)| *place)
            }
        };
        let end = self.reversed.len();
        match (place, target) {
            (Some(place), _) if end - place < 250 => place,
            (_, Target::Place(place)) => self.add(JUMP, (end - place - 1) as u32),
            (_, Target::Return(value)) => {
                self.returns.retain(|(is, _)| *is != value);
                self.returns.push((value, end));
                self.add(RETURN, value)
            }
        }
    }
}
