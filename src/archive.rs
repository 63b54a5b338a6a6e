//! A tree as one file: by GNU tar, uncompressed, so that tools which keep many backups find what has not changed. Host root, for
//! `ojail backup` and `ojail restore`.
//!
//! What goes in comes out as it was: names of any bytes, owners by number, modes, times, extended attributes, access lists, hard
//! links of files, holes, whiteouts. The same tree gives the same bytes. Left out are sockets, which mean nothing without who
//! listens, and flags of chattr(1): no tar has a place for either. Whiteouts, of which overlayfs makes several names of one, come
//! out as one each.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use indicatif::ProgressBar;
use rustix::fs::{MemfdFlags, memfd_create};
use sha2::{Digest, Sha256};

use crate::error::{Act, Result};

/// For both ways.
const COMMON: [&str; 5] = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", "--file=-"];

/// How a tree becomes the same bytes each time: sorted, and without what reading it changes, or the number of the process, which
/// later versions of sparse files have in a name.
const PACK: [&str; 8] = [
    "--create",
    "--format=posix",
    "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
    "--sort=name",
    "--sparse",
    "--sparse-version=0.0",
    "--one-file-system",
    // To be read leaves no trace.
    "--atime-preserve=system",
];

const UNPACK: [&str; 4] = ["--extract", "--same-owner", "--same-permissions", "--delay-directory-restore"];

/// Writes a directory and all below it. Nobody writes there meanwhile.
///
/// # Errors
/// [`crate::Error::Act`] with what tar says, or what `to` does.
pub fn pack(dir: &OwnedFd, to: &mut impl Write) -> Result<()> {
    let (mut tar, words) = tar(dir)?;
    tar.args(PACK).args(["--warning=no-file-ignored", "."]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = tar.spawn().act("run", "tar")?;
    let copied = match child.stdout.take() {
        Some(mut out) => io::copy(&mut out, to).map(drop),
        None => Ok(()),
    };
    // Our end of the pipe is closed by now, so it ends in either case.
    let status = child.wait().act("wait for", "tar")?;
    copied.act("write", "an archive")?;
    ended(status, words, "pack")
}

/// Puts into an empty directory what [`pack`] wrote.
///
/// # Errors
/// As [`pack`]; part of it is there then.
pub fn unpack(from: &mut impl Read, dir: &OwnedFd) -> Result<()> {
    let (mut tar, words) = tar(dir)?;
    tar.args(UNPACK).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = tar.spawn().act("run", "tar")?;
    let copied = match child.stdin.take() {
        Some(mut into) => io::copy(from, &mut into).map(drop),
        None => Ok(()),
    };
    let status = child.wait().act("wait for", "tar")?;
    match copied {
        // It has said why it would not read on.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        copied => copied.act("read", "an archive")?,
    }
    ended(status, words, "unpack")
}

/// The command, and where its complaints go.
fn tar(dir: &OwnedFd) -> Result<(Command, File)> {
    let words = File::from(memfd_create("words", MemfdFlags::CLOEXEC).act("make", "a file in memory")?);
    let mut tar = Command::new("/bin/tar");
    // By our own descriptor, which is what it is whatever happens to the path.
    let dir = format!("/proc/{}/fd/{}", std::process::id(), dir.as_raw_fd());
    tar.env_clear().env("LC_ALL", "C").args(COMMON).args(["--directory", &dir]);
    tar.stderr(words.try_clone().act("make", "a file in memory")?);
    Ok((tar, words))
}

fn ended(status: ExitStatus, mut words: File, act: &'static str) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    let _ = words.rewind().and_then(|()| words.take(4096).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    // A user may have chosen a name in it.
    let why: String = text.lines().next().unwrap_or("no reason given").escape_debug().take(400).collect();
    Err(io::Error::other(why)).act(act, "a tree")
}

/// Counts and digests what passes through.
#[derive(Debug)]
pub struct Digesting<T> {
    inner: T,
    sha: Sha256,
    size: u64,
    /// What the inner one failed with: whose fault a broken copy is.
    pub failed: bool,
    /// Hears of every piece.
    progress: ProgressBar,
}

impl<T> Digesting<T> {
    /// Nothing has passed yet.
    pub fn new(inner: T, progress: &ProgressBar) -> Self {
        Self { inner, sha: Sha256::new(), size: 0, failed: false, progress: progress.clone() }
    }

    /// What is inside, and the SHA-256 in hexadecimal.
    pub fn into_inner(self) -> (T, String) {
        let digest = self.sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        (self.inner, digest)
    }

    /// The SHA-256 in hexadecimal, and the number of bytes.
    #[must_use]
    pub fn end(self) -> (String, u64) {
        let digest = self.sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        (digest, self.size)
    }

    fn pass(&mut self, piece: &[u8]) {
        self.sha.update(piece);
        self.size += piece.len() as u64;
        self.progress.inc(piece.len() as u64);
    }
}

impl<T: Write> Write for Digesting<T> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(piece).inspect_err(|_| self.failed = true)?;
        self.pass(&piece[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Digesting<T> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(room)?;
        self.pass(&room[..read]);
        Ok(read)
    }
}

/// The digest and size of a file.
///
/// # Errors
/// [`crate::Error::Act`].
pub fn digest(path: &Path, progress: &ProgressBar) -> Result<(String, u64)> {
    let mut file = Digesting::new(File::open(path).act("open", path)?, progress);
    io::copy(&mut file, &mut io::sink()).act("read", path)?;
    Ok(file.end())
}
