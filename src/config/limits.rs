//! How much a jail may take: the values of `limits = { … }` and how they are written. Pure.

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{Mistake, Source};

/// What all sessions and processes of one user may take together. `None`: as much as the host has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory; as much swap again.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    /// Per cent of one processor: 150 is one and a half.
    pub cpu: Option<u64>,
    /// Bytes a second that are read from the disks of layers and uppers, and as many written.
    pub io: Option<u64>,
    /// Bytes in the upper; and as many in `/tmp`, `/run` and `/dev/shm` together.
    pub disk: Option<u64>,
    /// Files and directories in the upper; and as many in `/tmp`, `/run` and `/dev/shm` together.
    pub inodes: Option<u64>,
}

impl Limits {
    /// Whether a control group must hold any of them.
    #[must_use]
    pub fn of_processes(&self) -> bool {
        self.memory.is_some() || self.tasks.is_some() || self.cpu.is_some() || self.io.is_some()
    }

    /// Whether the upper's file system must hold any of them.
    #[must_use]
    pub fn of_upper(&self) -> bool {
        self.disk.is_some() || self.inodes.is_some()
    }
}

/// The least that lets anybody log in. Less is a typing error (`memory = "1K"`), and would refuse every login.
mod least {
    /// sshd's process, a shell and a pipe of commands.
    pub(super) const TASKS: u64 = 10;
    /// sshd's process and a shell take some 10 MiB.
    pub(super) const MEMORY: u64 = 16 << 20;
    pub(super) const IO: u64 = 64 << 10;
    pub(super) const DISK: u64 = 1 << 20;
    pub(super) const INODES: u64 = 100;
}

/// The least memory with a private network: pasta of Debian 12 takes 29 MiB of it.
pub(super) const WITH_PASTA: u64 = 64 << 20;

/// As written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    memory: Option<Spanned<String>>,
    tasks: Option<Spanned<i64>>,
    cpu: Option<Spanned<String>>,
    io: Option<Spanned<String>>,
    disk: Option<Spanned<String>>,
    inodes: Option<Spanned<i64>>,
}

impl Source<'_> {
    pub(super) fn limits(&self, raw: &RawLimits) -> Result<Limits, Mistake> {
        Ok(Limits {
            memory: self.size("limits.memory", raw.memory.as_ref(), least::MEMORY)?,
            tasks: self.count("tasks", raw.tasks.as_ref(), least::TASKS)?,
            cpu: raw.cpu.as_ref().map(|cpu| self.per_cent(cpu)).transpose()?,
            io: self.size("limits.io", raw.io.as_ref(), least::IO)?,
            disk: self.size("limits.disk", raw.disk.as_ref(), least::DISK)?,
            inodes: self.count("inodes", raw.inodes.as_ref(), least::INODES)?,
        })
    }

    pub(super) fn size(
        &self,
        key: &str,
        value: Option<&Spanned<String>>,
        least: u64,
    ) -> Result<Option<u64>, Mistake> {
        let Some(text) = value else { return Ok(None) };
        let refuse = |why: String| Err(self.mistake(Some(text.span()), format!("{key}: {why}")));
        match bytes(text.get_ref()) {
            None => refuse(format!(
                "\"{}\" is no size; write it like \"512K\", \"300M\", \"2G\" or \"1T\" (powers of 1024)",
                text.get_ref()
            )),
            Some(number) if number < least => {
                refuse(format!("\"{}\" is too little to log in with; at least {least} bytes", text.get_ref()))
            }
            Some(number) => Ok(Some(number)),
        }
    }

    fn count(&self, key: &str, value: Option<&Spanned<i64>>, least: u64) -> Result<Option<u64>, Mistake> {
        let Some(number) = value else { return Ok(None) };
        match u64::try_from(*number.get_ref()) {
            Ok(value) if value >= least => Ok(Some(value)),
            _ => {
                let why = format!(
                    "limits.{key}: {} is too little to log in with; at least {least}",
                    number.get_ref()
                );
                Err(self.mistake(Some(number.span()), why))
            }
        }
    }

    fn per_cent(&self, text: &Spanned<String>) -> Result<u64, Mistake> {
        let number = text.get_ref().strip_suffix('%').filter(|digits| plain(digits));
        match number.and_then(|digits| digits.parse().ok()) {
            Some(value @ 1..=1_000_000) => Ok(value),
            _ => {
                let why = format!(
                    "limits.cpu: \"{}\" is no share of processors; write it like \"50%\", or \"150%\" for one and a half",
                    text.get_ref()
                );
                Err(self.mistake(Some(text.span()), why))
            }
        }
    }
}

fn plain(digits: &str) -> bool {
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

/// Reads `512K`, `300M`, `2G`, `1T`, or plain bytes.
fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'K') => (&text[..at], 10),
        (at, 'M') => (&text[..at], 20),
        (at, 'G') => (&text[..at], 30),
        (at, 'T') => (&text[..at], 40),
        _ => (text, 0),
    };
    let number: u64 = plain(digits).then(|| digits.parse().ok())??;
    // The kernel counts in signed 64 bits.
    number.checked_mul(1 << shift).filter(|bytes| i64::try_from(*bytes).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(bytes("4096"), Some(4096));
        assert_eq!(bytes("512K"), Some(512 << 10));
        assert_eq!(bytes("2G"), Some(2 << 30));
        for bad in ["", "G", "-1G", "1.5G", "1GB", "1g", "1 G", "+1G", "99999999999T", "é"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
