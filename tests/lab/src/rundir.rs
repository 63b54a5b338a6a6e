//! A host's directory on a real file system: overlay upper, storage, homes. It goes with the host.
//!
//! A test process that was killed leaves its directory behind. The next host to start sweeps it: a
//! directory is alive as long as its lock is held, and the kernel lets go of a dead process's locks.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::files::{self, say};

pub(crate) struct RunDir {
    path: PathBuf,
    lock: PathBuf,
    _alive: File,
}

impl RunDir {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        let all = files::directory("OJAIL_LAB_RUN", "run");
        let lock = all.join("lock");
        // Between the making of a directory and its lock, nobody else may sweep.
        let _no_sweep = files::lock(&lock);
        sweep(&all);
        let path = all.join(format!("{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        files::make_directory(&path);
        let alive = files::lock(&path.join("alive"));
        Self { path, lock, _alive: alive }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A directory inside, made at once.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        files::make_directory(&path);
        path
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // A directory half removed has lost its lock file, and would look dead to a sweep.
        let _no_sweep = files::lock(&self.lock);
        remove(&self.path);
    }
}

fn sweep(all: &Path) {
    let entries = fs::read_dir(all).expect("the directory of the hosts can be read");
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() && files::try_lock(&path.join("alive")).is_some() {
            say(&format!("lab: sweeping {}, left by a killed test", path.display()));
            remove(&path);
        }
    }
}

/// `rm` copes with trees that are too deep for the standard library, and attacks leave such trees.
fn remove(path: &Path) {
    let rm = || Command::new("rm").arg("-rf").arg(path).output().is_ok_and(|output| output.status.success());
    if rm() {
        return;
    }
    // Files that a test made immutable.
    let _ = Command::new("chattr").args(["-R", "-f", "-i", "-a"]).arg(path).output();
    if !rm() {
        say(&format!("lab: cannot remove {}", path.display()));
    }
}
