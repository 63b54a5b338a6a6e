//! The only `unsafe` of the probe: system calls by their numbers, which is what attackers use too, and forks.
//!
//! Called by all groups of attacks, as whoever the probe runs as. Kept sound by what can be passed: numbers, and
//! buffers that the caller owns.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Write};

use nix::errno::Errno;
use nix::libc::{self, c_long};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, pipe};

use super::report::Outcome;

/// How long one attack may take. What blocks has not been refused.
const PATIENCE: u32 = 10;

/// One argument of a system call.
pub(super) enum Arg<'a> {
    /// A number, a descriptor, flags.
    Number(u64),
    /// A path or a name.
    Text(&'a CStr),
    /// A structure that the kernel reads.
    Read(&'a [u8]),
    /// A structure that the kernel may write, not more than this.
    Write(&'a mut [u8]),
}

impl From<i32> for Arg<'_> {
    fn from(number: i32) -> Self {
        // The sign goes on, as C has it.
        Self::Number(i64::from(number) as u64)
    }
}

impl From<u64> for Arg<'_> {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl<'a> From<&'a CStr> for Arg<'a> {
    fn from(text: &'a CStr) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a [u8]> for Arg<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Read(bytes)
    }
}

impl<'a> From<&'a mut [u8]> for Arg<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        Self::Write(bytes)
    }
}

impl Arg<'_> {
    fn word(&mut self) -> u64 {
        match self {
            Self::Number(number) => *number,
            Self::Text(text) => address(text.as_ptr()),
            Self::Read(bytes) => address(bytes.as_ptr()),
            Self::Write(bytes) => address(bytes.as_mut_ptr()),
        }
    }
}

/// Where something is, for structures that hold pointers.
pub(super) fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

fn words<const N: usize>(mut arguments: [Arg<'_>; N]) -> [u64; 6] {
    let mut words = [0; 6];
    for (word, argument) in words.iter_mut().zip(&mut arguments) {
        *word = argument.word();
    }
    words
}

/// A system call by its number.
pub(super) fn call<const N: usize>(number: c_long, arguments: [Arg<'_>; N]) -> Result<c_long, Errno> {
    let [a, b, c, d, e, f] = words(arguments);
    // SAFETY: each pointer is that of a buffer which the caller lends for the call, and every caller passes the size of
    // the buffer where the kernel writes. No caller asks for calls that change the memory or the threads of this process.
    Errno::result(unsafe { libc::syscall(number, a, b, c, d, e, f) })
}

/// A system call that makes a process, which ends at once.
pub(super) fn call_to_fork<const N: usize>(number: c_long, arguments: [Arg<'_>; N]) -> Result<(), Errno> {
    let [a, b, c, d, e, f] = words(arguments);
    // SAFETY: as `call`. Callers ask neither for shared memory nor for another stack, so that the new process is a copy of
    // this one; it has one thread, and does nothing but end.
    match Errno::result(unsafe { libc::syscall(number, a, b, c, d, e, f) })? {
        // SAFETY: _exit(2) ends the new process, and runs nothing of ours.
        0 => unsafe { libc::_exit(0) },
        pid => {
            let _ = waitpid(nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap_or(-1)), None);
            Ok(())
        }
    }
}

/// Calls the kernel as a program of 32 bits does; getpid(2) and the like, without pointers.
#[cfg(target_arch = "x86_64")]
pub(super) fn call_i386(number: i32) -> i32 {
    let answer: i32;
    // SAFETY: the numbers that callers pass are of calls that take no pointer and change nothing. The kernel keeps all
    // registers but rax, and in old versions r8 to r11, which are declared.
    unsafe {
        std::arch::asm!(
            "int 0x80",
            inlateout("eax") number => answer,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    answer
}

/// Runs an attack in a process of its own, so that nothing of it lasts: descriptors, namespaces, limits, its life.
pub(super) fn in_child(act: impl FnOnce() -> Outcome) -> Outcome {
    let Ok((read, write)) = pipe() else { return Outcome::reached("not tried: no pipe could be made") };
    // SAFETY: this process has one thread, so the child may go on with all that it has.
    match unsafe { fork() } {
        Err(e) => Outcome::reached(format!("not tried: fork says {e:?}")),
        Ok(ForkResult::Child) => {
            drop(read);
            nix::unistd::alarm::set(PATIENCE);
            let outcome = act();
            let mark = if outcome.contained { "c" } else { "r" };
            let _ = File::from(write).write_all(format!("{mark}{}", outcome.answer).as_bytes());
            // SAFETY: _exit(2) ends the child without running what belongs to the parent.
            unsafe { libc::_exit(0) }
        }
        Ok(ForkResult::Parent { child }) => {
            drop(write);
            let mut said = String::new();
            let _ = File::from(read).read_to_string(&mut said);
            match (waitpid(child, None), said.split_at_checked(1)) {
                (Ok(WaitStatus::Signaled(_, Signal::SIGSYS, _)), _) => Outcome::contained("SIGSYS"),
                (Ok(WaitStatus::Signaled(_, Signal::SIGALRM, _)), _) => {
                    Outcome::reached(format!("no answer in {PATIENCE} s"))
                }
                (Ok(WaitStatus::Signaled(_, signal, _)), _) => Outcome::reached(signal.as_str()),
                (_, Some(("c", answer))) => Outcome::contained(answer),
                (_, Some((_, answer))) => Outcome::reached(answer),
                (status, None) => Outcome::reached(format!("not known: {status:?}")),
            }
        }
    }
}
