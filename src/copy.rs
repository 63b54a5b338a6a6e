//! Faithful copies of what an upper holds, by Debian's `cp`. Host root.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Act, Result};

/// Copies `name` in one directory to `new` in another, where nothing is yet, with all below it: links as links, devices and
/// whiteouts as such, with owners, modes, times, attributes and hard links. Blocks are shared where the file system can.
///
/// # Errors
/// [`crate::Error::Act`] with what `cp` says; part of the copy is there then.
pub fn tree(from: BorrowedFd<'_>, name: &CStr, to: BorrowedFd<'_>, new: &CStr) -> Result<()> {
    let said = Command::new("/bin/cp")
        .env_clear()
        .args(["-dR", "--preserve=mode,ownership,timestamps,links,xattr", "--reflink=auto", "-T", "--"])
        .args([place(from, name), place(to, new)])
        .stdin(Stdio::null())
        .output()
        .act("run", "cp")?;
    if said.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&said.stderr).lines().next().unwrap_or_default().to_owned();
    Err(io::Error::other(why)).act("copy", name.to_string_lossy().escape_debug().to_string())
}

/// By our own descriptor, which is what it is whatever happens to the path.
fn place(dir: BorrowedFd<'_>, name: &CStr) -> PathBuf {
    let dir = format!("/proc/{}/fd/{}", std::process::id(), dir.as_raw_fd());
    Path::new(&dir).join(OsStr::from_bytes(name.to_bytes()))
}
