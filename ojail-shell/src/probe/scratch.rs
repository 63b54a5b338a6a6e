//! A directory to work in, which goes with the probe.

use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The directory; removed when dropped.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// In the first of the usual places where one can be made.
    pub(super) fn make() -> Option<Self> {
        ["/tmp", "/var/tmp", "/dev/shm"]
            .into_iter()
            .find_map(|place| Self::make_in(Path::new(place), "probe"))
    }

    /// In this place. Readable for others, since root of a jail has no right in what is only the user's.
    pub(super) fn make_in(place: &Path, name: &str) -> Option<Self> {
        let path = place.join(format!("ojail-{name}.{}", std::process::id()));
        DirBuilder::new().mode(0o755).create(&path).ok()?;
        Some(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The path as system calls take it.
    pub(super) fn c_path(&self) -> CString {
        CString::new(self.0.as_os_str().as_bytes()).unwrap_or_default()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
