//! What a tool says while it makes a layer or installs packages: all of it in a file, and the last line of it on a terminal.

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::config::LayerName;
use crate::error::{Act, Error, Result};
use crate::{aside, paths, runtime, store};

/// How much is kept of one run, in bytes; a Debian by mmdebstrap says some 100 KiB.
const MOST: u64 = 16 << 20;

/// How much of a line is kept to be shown.
const SHOWN: usize = 300;

/// How many logs are kept of one kind, of all layers together: enough to look back over a day of tries, and at some 100 KiB each (a
/// Debian by mmdebstrap) nothing that fills a disk. How a generation was made is in its record, which stays.
const KEPT: usize = 20;

/// The log of one run, `WHAT-NAME-TIME.log`.
#[derive(Debug)]
pub(in crate::admin) struct Journal {
    /// What it is about.
    name: String,
    error: fn(String, String) -> Error,
    path: PathBuf,
    file: File,
    /// Texts by which the phases of the tool are known, in their order.
    phases: &'static [&'static str],
    /// Made with the first words: a process that was forked off before has none, and draws nothing.
    bar: Option<ProgressBar>,
    /// Bytes of what was heard, and whether there was more.
    written: u64,
    full: bool,
    /// A line that has not come to its end.
    line: Vec<u8>,
    /// The last line with which a tool of Debian's says what went wrong.
    complaint: Option<String>,
}

impl Journal {
    /// Begins one.
    ///
    /// # Errors
    /// [`Error::Unfit`] if others can get at the directory; [`Error::Act`].
    pub(super) fn open(layer: &LayerName, phases: &'static [&'static str]) -> Result<Self> {
        Self::of("layer", layer.as_str(), phases, |name, why| Error::Layer { name, why })
    }

    /// Begins one of something else than a layer. `error` is made of its name and of a sentence.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub(in crate::admin) fn of(
        what: &str,
        name: &str,
        phases: &'static [&'static str],
        error: fn(String, String) -> Error,
    ) -> Result<Self> {
        let dir = Path::new(paths::LOGS);
        store::roots_own_way(dir)?;
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            made => made.act("create", dir)?,
        }
        runtime::private_dir(dir)?;
        let stamp = aside::stamp()?;
        for number in 1.. {
            let again = if number == 1 { String::new() } else { format!("-{number}") };
            let path = dir.join(format!("{what}-{name}-{stamp}{again}.log"));
            match File::options().append(true).create_new(true).mode(0o600).open(&path) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                file => {
                    let file = file.act("create", &path)?;
                    forget_old(dir, what);
                    return Ok(Self {
                        name: name.to_owned(),
                        error,
                        path,
                        file,
                        phases,
                        bar: None,
                        written: 0,
                        full: false,
                        line: Vec::new(),
                        complaint: None,
                    });
                }
            }
        }
        Err(Error::Unfit { path: dir.to_owned(), why: "is full".into() })
    }

    /// Where it is.
    pub(in crate::admin) fn path(&self) -> &Path {
        &self.path
    }

    /// Notes words of `ojail` itself, such as the command that follows.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub(in crate::admin) fn note(&mut self, text: &str) -> Result<()> {
        self.file.write_all(format!("ojail: {text}\n").as_bytes()).act("write", &self.path)
    }

    /// Takes what a tool says.
    ///
    /// # Errors
    /// [`Error::Act`]: what cannot be logged must not go on.
    pub(in crate::admin) fn hear(&mut self, bytes: &[u8]) -> Result<()> {
        // A stranger may have chosen the words: they do not fill the disk, nor reach a terminal as they are.
        let most = usize::try_from(MOST.saturating_sub(self.written)).unwrap_or(usize::MAX);
        let kept: Vec<u8> = bytes.iter().take(most).map(|byte| harmless(*byte)).collect();
        self.file.write_all(&kept).act("write", &self.path)?;
        self.written += kept.len() as u64;
        if kept.len() < bytes.len() && !std::mem::replace(&mut self.full, true) {
            self.file.write_all(b"\nojail: what follows is not kept\n").act("write", &self.path)?;
        }
        let phases = self.phases;
        let bar = self.bar.get_or_insert_with(|| bar(phases.len()));
        for byte in bytes {
            if !matches!(byte, b'\n' | b'\r') {
                if self.line.len() < SHOWN {
                    self.line.push(*byte);
                }
                continue;
            }
            let line = String::from_utf8_lossy(&self.line).trim().to_owned();
            self.line.clear();
            if line.is_empty() {
                continue;
            }
            if let Some(phase) = self.phases.iter().position(|phase| line.contains(phase)) {
                bar.set_position(bar.position().max(phase as u64 + 1));
            }
            if line.starts_with("E: ") {
                self.complaint = Some(shown(&line));
            }
            bar.set_message(shown(line.strip_prefix("I: ").unwrap_or(&line)));
        }
        bar.tick();
        Ok(())
    }

    /// Ends what is on the terminal.
    pub(in crate::admin) fn quiet(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Notes why it came to nothing, and returns the sentence for the administrator, with the tool's last complaint and the path of all
    /// that it said.
    pub(in crate::admin) fn failed(&mut self, why: &str) -> Error {
        self.quiet();
        let why = match &self.complaint {
            Some(complaint) => format!("{why} ({complaint})"),
            None => why.to_owned(),
        };
        // If even this cannot be written, the sentence is still told.
        let _ = self.note(&why);
        let why = format!("{why}; all that was said is in {}", self.path.display());
        (self.error)(self.name.clone(), why)
    }
}

/// Removes the oldest logs of one kind. One that cannot be removed is in nobody's way.
fn forget_old(dir: &Path, what: &str) {
    let begins = format!("{what}-");
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut logs: Vec<_> = entries
        .filter(|entry| {
            let name = entry.file_name();
            name.to_str().is_some_and(|name| name.starts_with(&begins) && name.ends_with(".log"))
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    logs.sort();
    for (_, path) in logs.iter().rev().skip(KEPT) {
        let _ = fs::remove_file(path);
    }
}

/// A byte of a log: control characters are not what anybody wants to read.
fn harmless(byte: u8) -> u8 {
    if byte.is_ascii_control() && !matches!(byte, b'\n' | b'\r' | b'\t') { b'?' } else { byte }
}

/// For one line of a terminal.
fn shown(line: &str) -> String {
    line.escape_debug().take(SHOWN).collect()
}

/// On a terminal. With known phases a bar, else what turns.
fn bar(phases: usize) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let template =
        if phases == 0 { "{spinner} {elapsed}  {wide_msg}" } else { "{bar:20} {elapsed}  {wide_msg}" };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner());
    let length = (phases > 0).then_some(phases as u64);
    ProgressBar::with_draw_target(length, target).with_style(style)
}
