//! `ojail diff USER`: what a user changed, a line each, as it is found. Reads the upper and the layers, and changes neither.

use std::ffi::CStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Read, StdoutLock, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use clap::Args;
use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;

use super::status::bytes;
use super::{configuration, jailed, username};
use crate::account::{self, Username};
use crate::changes::{self, Change, Differences, Entry, Kind, Sum, What, shown};
use crate::config::{Config, Profile};
use crate::error::{Act, Error, IfThere, Result};
use crate::lower::{self, Lower};
use crate::{layers, store};

/// The arguments.
#[derive(Debug, Args)]
pub(super) struct Diff {
    /// Whose jail
    user: String,
    /// Only this path inside the jail, and what is below it
    path: Option<PathBuf>,
    /// Also show how text files differ, as `diff -u` does; not of files over 1 MiB
    #[arg(long, conflicts_with = "json")]
    content: bool,
    /// Print JSON, one object a line: each change, and last the sum; what is no UTF-8 in hexadecimal, as `path_hex`
    #[arg(long)]
    json: bool,
    /// Compare with the layers of this profile instead of the user's
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
}

/// The most of a file that `--content` compares.
const MOST: u64 = 1 << 20;

pub(super) fn run(arguments: &Diff) -> Result<ExitCode> {
    match tell(arguments) {
        // Whoever reads has seen enough.
        Err(Error::Act { source, .. }) if source.kind() == ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        told => told.map(|()| ExitCode::SUCCESS),
    }
}

fn tell(arguments: &Diff) -> Result<()> {
    let user = username(&arguments.user)?;
    let config = configuration()?;
    store::look(&config.storage)?;
    let upper = config.storage.upperdirs.join(&user);
    let upper = fs::symlink_metadata(&upper).if_there().act("examine", &upper)?.map(|_| upper);
    let profile = profile(&config, &user, arguments.profile.as_deref(), upper.is_some())?;
    let lower = Lower::of(&layers::resolve(&config.storage, &profile.layers)?)?;
    let upper = upper.map(|upper| lower::view(&upper)).transpose()?;

    let mut out = Out::new(arguments.content);
    let below = arguments.path.as_deref();
    if arguments.json {
        let sum = changes::tell(upper, &lower, below, |change| out.json(&record(change)?))?;
        out.json(&Last { user: user.as_str(), profile: &profile.name, sum })?;
    } else {
        let sum = changes::tell(upper, &lower, below, |change| out.change(change))?;
        out.sum(&user, below, &sum)?;
    }
    out.flush()
}

/// Prints what an upper changes, everywhere or at these paths. For `ojail layer promote`.
pub(super) fn show(user: &Username, upper: &Path, lower: &Lower, paths: &[PathBuf]) -> Result<()> {
    let mut out = Out::new(false);
    let places =
        if paths.is_empty() { vec![None] } else { paths.iter().map(|path| Some(path.as_path())).collect() };
    for below in places {
        let sum = changes::tell(Some(lower::view(upper)?), lower, below, |change| out.change(change))?;
        out.sum(user, below, &sum)?;
    }
    out.flush()
}

/// The profile whose layers the upper is of.
pub(super) fn profile<'a>(
    config: &'a Config,
    user: &Username,
    named: Option<&str>,
    upper: bool,
) -> Result<&'a Profile> {
    if let Some(name) = named {
        if !upper {
            account::lookup(user.as_str())?;
        }
        let none = || Error::NoSuchProfile(shown(name.as_bytes()));
        return config.profiles.get(name).ok_or_else(none);
    }
    match jailed(config, user.as_str()) {
        Ok((_, profile)) => Ok(profile),
        Err(e @ (Error::NoSuchUser(_) | Error::NotJailed { .. })) if upper => {
            Err(Error::NoProfile { user: user.to_string(), why: e.to_string() })
        }
        Err(e) => Err(e),
    }
}

/// Standard output.
struct Out {
    out: BufWriter<StdoutLock<'static>>,
    terminal: bool,
    colours: bool,
    content: bool,
}

impl Out {
    fn new(content: bool) -> Self {
        let out = io::stdout().lock();
        let terminal = out.is_terminal();
        let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { out: BufWriter::with_capacity(1 << 16, out), terminal, colours, content }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).act("write to", "standard output")
    }

    fn flush(&mut self) -> Result<()> {
        self.out.flush().act("write to", "standard output")
    }

    fn json(&mut self, value: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(value).map_err(io::Error::from).act("write", "JSON")?;
        self.write(line.as_bytes())?;
        self.write(b"\n")
    }

    fn change(&mut self, change: &Change<'_>) -> Result<()> {
        let (letter, colour) = match change.what {
            What::Added { .. } => ("A", 32),
            What::Changed { .. } => ("M", 33),
            What::Deleted { .. } => ("D", 31),
        };
        let mut line =
            if self.colours { format!("\x1b[{colour}m{letter}\x1b[0m /") } else { format!("{letter} /") };
        line.push_str(&shown(change.path));
        let notes = notes(&change.what)?;
        if !notes.is_empty() {
            let _ = write!(line, " ({})", notes.join(", "));
        }
        line.push('\n');
        self.write(line.as_bytes())?;
        if self.content { self.content(change) } else { Ok(()) }
    }

    fn content(&mut self, change: &Change<'_>) -> Result<()> {
        let (old, new) = match &change.what {
            What::Added { new } if new.same_as.is_none() => (None, new),
            What::Changed { new, old, differs } if differs.content => (old.as_ref(), new),
            What::Changed { new, differs, .. } if differs.kind.is_some() => (None, new),
            _ => return Ok(()),
        };
        if new.kind() != Kind::File {
            return Ok(());
        }
        let old = match old {
            None => Side::Text(None),
            Some(old) => Side::of(old)?,
        };
        let text = match (old, Side::of(new)?) {
            (Side::Text(old), Side::Text(Some(new))) => unified(old.as_ref(), &new, change.path)?,
            // Vanished meanwhile.
            (_, Side::Text(None)) => return Ok(()),
            (Side::TooLarge, _) | (_, Side::TooLarge) => b"  (more than 1 MiB: not shown)\n".to_vec(),
            (Side::Binary, _) | (_, Side::Binary) => b"  (not text: not shown)\n".to_vec(),
        };
        let text = if self.terminal { harmless(&text).into_bytes() } else { text };
        self.write(&text)
    }

    fn sum(&mut self, user: &Username, below: Option<&Path>, sum: &Sum) -> Result<()> {
        let below = match below.map(|path| shown(path.as_os_str().as_encoded_bytes())) {
            Some(path) if path != "/" => format!(" at {path} or below"),
            _ => String::new(),
        };
        let mut line = if (sum.added, sum.changed, sum.deleted) == (0, 0, 0) {
            format!("{user} has changed nothing{below}")
        } else {
            let Sum { added, changed, deleted, .. } = sum;
            let (size, disk) = (bytes(sum.bytes), bytes(sum.disk));
            format!(
                "{added} added, {changed} changed, {deleted} deleted{below}: {size} in files, {disk} on disk"
            )
        };
        match sum.unchanged {
            0 => {}
            1 => line.push_str("; 1 file is in the upper and unchanged"),
            many => {
                let _ = write!(line, "; {many} files are in the upper and unchanged");
            }
        }
        self.write(format!("{line}\n").as_bytes())
    }
}

/// What is said of a change besides its path.
fn notes(what: &What<'_>) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    match what {
        What::Added { new } => notes.push(described(new)?),
        What::Deleted { old: None } => notes.push("not in the layers".into()),
        What::Deleted { old: Some(old) } if old.kind() == Kind::File => {}
        What::Deleted { old: Some(old) } => notes.push(name(old.kind()).into()),
        What::Changed { new, old, differs } => {
            if let Some((was, _)) = differs.kind {
                notes.push(format!("{} → {}", name(was), described_as(new)?));
            }
            if differs.content {
                let size = |entry: &Entry<'_>| u64::try_from(entry.stat.st_size).unwrap_or(0);
                let (was, is) = (old.as_ref().map_or(0, size), size(new));
                notes.push(if was == is {
                    format!("content, {}", bytes(is))
                } else {
                    format!("content, {} → {}", bytes(was), bytes(is))
                });
            }
            if let Some((was, is)) = &differs.target {
                notes.push(format!("target {} → {}", shown(was), shown(is)));
            }
            notes.extend(metadata(differs));
            if let Some(path) = new.same_as {
                notes.push(format!("hard link to /{}", shown(path)));
            }
        }
    }
    Ok(notes)
}

fn metadata(differs: &Differences) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some((was, is)) = differs.mode {
        notes.push(format!("mode {was:o} → {is:o}"));
    }
    if let Some((was, is)) = differs.owner {
        notes.push(format!("owner {}:{} → {}:{}", was.0, was.1, is.0, is.1));
    }
    notes.extend(differs.attributes.iter().map(|name| attribute(name)));
    if differs.time {
        notes.push("time".into());
    }
    notes
}

fn attribute(name: &CStr) -> String {
    match name.to_bytes() {
        b"system.posix_acl_access" => "ACL".into(),
        b"system.posix_acl_default" => "default ACL".into(),
        b"security.capability" => "capabilities".into(),
        other => format!("attribute {}", shown(other)),
    }
}

/// A file by its size, anything else by its kind.
fn described(entry: &Entry<'_>) -> Result<String> {
    Ok(match (entry.same_as, entry.kind()) {
        (Some(path), _) => format!("hard link to /{}", shown(path)),
        (None, Kind::File) => bytes(u64::try_from(entry.stat.st_size).unwrap_or(0)),
        _ => described_as(entry)?,
    })
}

fn described_as(entry: &Entry<'_>) -> Result<String> {
    Ok(match entry.kind() {
        Kind::File => format!("file, {}", bytes(u64::try_from(entry.stat.st_size).unwrap_or(0))),
        Kind::Link => match entry.target()? {
            Some(target) => format!("link to {}", shown(&target)),
            None => "link".into(),
        },
        kind => name(kind).into(),
    })
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Link => "link",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::Device => "device",
    }
}

/// A file for `--content`.
enum Side {
    /// Its text; `None`: there is none.
    Text(Option<Vec<u8>>),
    Binary,
    TooLarge,
}

impl Side {
    /// Read once: the user may be writing to it.
    fn of(entry: &Entry<'_>) -> Result<Self> {
        let Some(file) = entry.open()? else { return Ok(Self::Text(None)) };
        let mut text = Vec::new();
        file.take(MOST + 1).read_to_end(&mut text).act("read", shown(entry.name().to_bytes()))?;
        Ok(if text.len() as u64 > MOST {
            Self::TooLarge
        } else if text.contains(&0) {
            Self::Binary
        } else {
            Self::Text(Some(text))
        })
    }
}

/// What Debian's `diff -u` says. It gets copies in memory, by descriptors, and knows no path of the user's.
fn unified(old: Option<&Vec<u8>>, new: &[u8], path: &[u8]) -> Result<Vec<u8>> {
    // Inherited, so not to be closed on exec.
    let copy = |text: &[u8]| -> io::Result<OwnedFd> {
        let copy = memfd_create("diff", MemfdFlags::empty())?;
        let mut file = File::from(copy);
        file.write_all(text)?;
        Ok(file.into())
    };
    let copies = || -> io::Result<_> { Ok((old.map(|old| copy(old)).transpose()?, copy(new)?)) };
    let (old, new) = copies().act("copy", shown(path))?;
    let by_descriptor = |copy: &OwnedFd| format!("/dev/fd/{}", copy.as_raw_fd());
    let shown = shown(path);
    let label = if old.is_some() { format!("a/{shown}") } else { "/dev/null".into() };
    let output = Command::new("diff")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .args(["-u", "--label", &label, "--label", &format!("b/{shown}"), "--"])
        .arg(old.as_ref().map_or_else(|| "/dev/null".into(), by_descriptor))
        .arg(by_descriptor(&new))
        .stdin(Stdio::null())
        .output()
        .act("run diff (`apt-get install diffutils`) on", &shown)?;
    // 0: the same, 1: not (diff(1)).
    if matches!(output.status.code(), Some(0 | 1)) {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(io::Error::other(said)).act("compare by diff", shown)
}

/// Text as a terminal may see it: lines and tabs, all other control characters and what is no UTF-8 as escapes.
fn harmless(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        for char in chunk.valid().chars() {
            match char {
                '\n' | '\t' | '\\' | '\'' | '"' => out.push(char),
                other => out.extend(other.escape_debug()),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// A change, as `--json` prints it. JSON has no bytes, only text: a path or target that is no UTF-8 is told in hexadecimal digits,
/// and then by another key, so that nobody takes a name in which something was replaced for a real one.
#[derive(Debug, Default, Serialize)]
struct Record {
    /// `A`, `M` or `D`.
    change: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    /// What it is, or was if it is deleted; `null` if the layers do not have what is deleted.
    kind: Option<Kind>,
    /// What it was, if that is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    was: Option<Kind>,
    /// Bytes of a plain file that is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    /// Of a plain file with several names, what these have in common.
    #[serde(skip_serializing_if = "Option::is_none")]
    inode: Option<u64>,
    /// Where a link that is there leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_hex: Option<String>,
    /// Only of `M`.
    #[serde(flatten)]
    differs: Option<Differs>,
}

/// In what a path differs from the layers.
#[derive(Debug, Serialize)]
struct Differs {
    /// The bytes of a file; where a link leads, or a device's number.
    content: bool,
    /// Old and new, octal.
    mode: Option<(String, String)>,
    /// Old and new, each uid and gid.
    owner: Option<((u32, u32), (u32, u32))>,
    /// By their names in the jail, escaped as in the text.
    attributes: Vec<String>,
    /// The time of the last change, with the same content.
    time: bool,
}

/// The last line of `--json`.
#[derive(Debug, Serialize)]
struct Last<'a> {
    user: &'a str,
    profile: &'a str,
    sum: Sum,
}

fn record(change: &Change<'_>) -> Result<Record> {
    let (path, path_hex) = text(&[b"/", change.path].concat());
    let mut record = Record { path, path_hex, ..Record::default() };
    let new = match &change.what {
        What::Deleted { old } => {
            record.change = "D";
            record.kind = old.as_ref().map(Entry::kind);
            return Ok(record);
        }
        What::Added { new } => {
            record.change = "A";
            new
        }
        What::Changed { new, differs, .. } => {
            record.change = "M";
            record.was = differs.kind.map(|(was, _)| was);
            record.differs = Some(Differs {
                content: differs.content || differs.target.is_some(),
                mode: differs.mode.map(|(was, is)| (format!("{was:o}"), format!("{is:o}"))),
                owner: differs.owner,
                attributes: differs.attributes.iter().map(|name| shown(name.to_bytes())).collect(),
                time: differs.time,
            });
            new
        }
    };
    record.kind = Some(new.kind());
    match new.kind() {
        Kind::File => {
            record.size = u64::try_from(new.stat.st_size).ok();
            record.inode = (new.stat.st_nlink > 1).then_some(new.stat.st_ino);
        }
        Kind::Link => {
            if let Some(target) = new.target()? {
                (record.target, record.target_hex) = text(&target);
            }
        }
        _ => {}
    }
    Ok(record)
}

fn text(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_text_is_told_in_digits() {
        assert_eq!(text("/é\n".as_bytes()), (Some("/é\n".into()), None));
        assert_eq!(text(b"/a\xff"), (None, Some("2f61ff".into())));
    }

    #[test]
    fn nothing_that_a_terminal_obeys_is_left_in_a_text() {
        let text = "-a\\b\t\u{1b}[2J\r\u{9b}\u{202e}é\n".as_bytes();
        assert_eq!(harmless(text), "-a\\b\t\\u{1b}[2J\\r\\u{9b}\\u{202e}é\n");
        assert_eq!(harmless(b"\xff\n"), "\\xff\n");
    }

    #[test]
    fn a_unified_diff_names_the_path_inside_and_minds_no_odd_name() {
        let told = |old: Option<&str>, new: &str, path: &[u8]| {
            let old = old.map(|old| old.as_bytes().to_vec());
            String::from_utf8(unified(old.as_ref(), new.as_bytes(), path).unwrap()).unwrap()
        };
        assert_eq!(
            told(Some("a\nb\n"), "a\nc\n", b"etc/x"),
            "--- a/etc/x\n+++ b/etc/x\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n"
        );
        let told = told(None, "new\n", b"-r\n$(reboot)/");
        assert!(told.starts_with("--- /dev/null\n+++ b/-r\\n$(reboot)/\n@@"), "{told}");
    }
}
