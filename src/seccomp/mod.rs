//! Which system calls exist in a jail: the policy of `conf/seccomp.toml`, what a profile changes of it, and the filter that
//! the kernel is given. Pure; used by whoever reads a profile and by `jail::confine`, which installs the filter.
//!
//! The policy is resolved when ojail is built (`build.rs`). The filter is a balanced search over ranges of numbers with the
//! same answer (`program`), with the rules for arguments (`rules`) at its leaves.

#![forbid(unsafe_code)]

mod program;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

pub use libc::sock_filter as Instruction;
use rules::Rule;

include!(concat!(env!("OUT_DIR"), "/seccomp.rs"));

/// A system call of this architecture.
struct Call {
    number: u16,
    /// Where its name starts in [`NAMES`].
    name: u16,
    answer: Answer,
}

impl Call {
    fn name(&self) -> Option<Name> {
        NAMES.get(usize::from(self.name)..)?.split(' ').next().map(Name)
    }
}

/// What becomes of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// It is made.
    Allow,
    /// `EPERM`.
    Refuse,
    /// `ENOSYS`.
    Absent,
    /// Its arguments decide.
    Check(Rule),
}

/// An architecture, as the kernel tells filters of it.
struct Arch {
    /// `AUDIT_ARCH_…` of linux/audit.h.
    audit: u32,
    /// By number, ascending.
    calls: &'static [Call],
}

#[cfg(any(test, target_arch = "x86_64"))]
const X86_64_ARCH: Arch = Arch { audit: 0xc000_003e, calls: &X86_64 };
#[cfg(any(test, target_arch = "aarch64"))]
const AARCH64_ARCH: Arch = Arch { audit: 0xc000_00b7, calls: &AARCH64 };

#[cfg(target_arch = "x86_64")]
const NATIVE: Arch = X86_64_ARCH;
#[cfg(target_arch = "aarch64")]
const NATIVE: Arch = AARCH64_ARCH;

/// The name of a system call that x86-64 or aarch64 has. One that only the other has does nothing here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Name(&'static str);

impl Name {
    /// As the manual has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        name(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// All names that there are, in their order.
pub fn names() -> impl Iterator<Item = Name> {
    NAMES.split(' ').map(Name)
}

/// The system call of that name.
///
/// # Errors
/// A sentence, with the names that may have been meant.
pub fn name(text: &str) -> Result<Name, String> {
    if let Some(name) = names().find(|name| name.0 == text) {
        return Ok(name);
    }
    let meant = match meant(text).as_slice() {
        [] => String::new(),
        names => format!("; is it {}?", names.join(" or ")),
    };
    Err(format!("there is no system call {text:?}{meant}"))
}

/// At most three names: the shortest that begin so (`umount` for `umount2`), or else the most alike.
fn meant(text: &str) -> Vec<&'static str> {
    let most = if text.len() < 6 { 1 } else { 2 };
    let longer = |name: &str| (text.len() > 2 && name.starts_with(text)).then_some(name.len());
    let alike = |name: &str| Some(edits(text, name)).filter(|edits| *edits <= most);
    let by = |measure: &dyn Fn(&str) -> Option<usize>| {
        let mut near: Vec<_> = names().filter_map(|name| Some((measure(name.0)?, name.0))).collect();
        near.sort_unstable();
        near.into_iter().map(|(_, name)| name).take(3).collect::<Vec<_>>()
    };
    let near = by(&longer);
    if near.is_empty() { by(&alike) } else { near }
}

/// How many bytes must be put in, taken out or changed to make one of the other.
fn edits(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.bytes().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

/// What a profile changes of the policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Changes {
    /// Made whatever the policy says, and whatever the arguments.
    pub allow: BTreeSet<Name>,
    /// Refused with `EPERM`, whatever the policy says.
    pub deny: BTreeSet<Name>,
}

impl Changes {
    /// Whether they can be meant.
    ///
    /// # Errors
    /// A sentence: a call is both allowed and denied, or no login could be served without one that is denied.
    pub fn check(&self) -> Result<(), String> {
        if let Some(both) = self.allow.intersection(&self.deny).next() {
            return Err(format!("the system call {both} is both allowed and denied"));
        }
        for name in &self.deny {
            let vital = |(_, names): &&(&str, &str)| names.split(' ').any(|vital| vital == name.0);
            if let Some((reason, _)) = VITAL.iter().find(vital) {
                return Err(format!("the system call {name} cannot be denied: {reason}"));
            }
        }
        Ok(())
    }

    /// The answer to a call, as changed. What is denied stays so.
    fn answer(&self, call: &Call) -> Answer {
        let is_in =
            |names: &BTreeSet<_>| !names.is_empty() && call.name().is_some_and(|name| names.contains(&name));
        if is_in(&self.deny) {
            Answer::Refuse
        } else if is_in(&self.allow) {
            Answer::Allow
        } else {
            call.answer
        }
    }
}

/// The filter of a jail, as classic BPF for this architecture.
#[must_use]
pub fn program(changes: &Changes) -> Vec<Instruction> {
    program::of(&NATIVE, changes)
}
