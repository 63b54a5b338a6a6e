//! Where the lab keeps things, and the lock that parallel test processes share.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// The project's root directory.
pub(crate) fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.ancestors().nth(2).expect("the lab lies two directories below the workspace");
    root.to_path_buf()
}

/// The directory named by the environment variable, or else `name` in the workspace's `target/lab`.
pub(crate) fn directory(variable: &str, name: &str) -> PathBuf {
    let path = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => workspace().join("target/lab").join(name),
    };
    make_directory(&path);
    // The trees have setuid root programs in them, which are for nobody else on this machine.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
        .expect("a directory of our own takes a mode");
    let path = path.canonicalize().expect("a directory just made has a path");
    // These paths become overlay options, where both have a meaning.
    let text = path.to_str().unwrap_or_else(|| panic!("{} is not UTF-8", path.display()));
    assert!(!text.contains([':', ',']), "{variable}: a path without ':' and ',' is needed, not {text}");
    path
}

/// Makes the directory and those above it, for everybody to read whatever the umask.
pub(crate) fn make_directory(path: &Path) {
    if path.is_dir() {
        return;
    }
    make_directory(path.parent().expect("the root is a directory"));
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o755))
            .expect("a directory of our own takes a mode"),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => panic!("cannot make {}: {error}", path.display()),
    }
}

pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) {
    fs::write(path, content).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}

/// Locks the file, made if need be, until the result is dropped.
pub(crate) fn lock(path: &Path) -> File {
    let file = open_lock(path);
    flock(&file, FlockOperation::LockExclusive).expect("flock on a file of our own works");
    file
}

/// Locks the file, unless somebody else has.
pub(crate) fn try_lock(path: &Path) -> Option<File> {
    let file = open_lock(path);
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(file)
}

fn open_lock(path: &Path) -> File {
    File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(path)
        .unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()))
}

/// Tells the person at the terminal, past the test harness, which would keep it until the test fails.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
