//! What the making of a layer leaves in it and no jail needs: caches, lists and logs of packages, and, of a temporary jail, its
//! made-up user. Host root, in a workshop, where nobody else is.
//!
//! Packages of any origin have shaped the tree: everything is found by descriptors, and no link is followed. Where a link is in the
//! way, nothing is cleaned.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, Stat, fstat, openat2, statat, unlinkat};
use rustix::io::Errno;

use crate::error::{Act, Result};
use crate::lower::{self, Lower};
use crate::walk::{self, BENEATH, DIRECTORY, Step, Walk, is_dir};

/// Of these directories everything goes that `apt-get` makes anew.
const EMPTIED: [&str; 6] =
    ["run", "tmp", "var/tmp", "var/cache/apt/archives", "var/lib/apt/lists", "var/log/apt"];

/// These files: caches, the logs of what was installed, and what dpkg and debconf keep of the day before.
const REMOVED: [&str; 12] = [
    "var/cache/apt/pkgcache.bin",
    "var/cache/apt/srcpkgcache.bin",
    "var/cache/ldconfig/aux-cache",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/cache/debconf/passwords.dat-old",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/available-old",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/statoverride-old",
    "var/log/dpkg.log",
    "var/log/alternatives.log",
];

/// And of a build from nothing.
const OF_A_BUILD: [&str; 1] = ["var/log/bootstrap.log"];

/// Files in `/etc` with lines for users and groups.
const ACCOUNTS: [&CStr; 6] = [c"passwd", c"group", c"shadow", c"gshadow", c"subuid", c"subgid"];

/// The same as they were before somebody's last change.
const ACCOUNTS_BEFORE: [&CStr; 6] = [c"passwd-", c"group-", c"shadow-", c"gshadow-", c"subuid-", c"subgid-"];

/// Cleans a Debian that was built from nothing. The host's name and resolvers, which the tools copy, are nobody's business: a jail
/// gets its own.
///
/// # Errors
/// [`crate::Error::Act`].
pub fn base(tree: &Path) -> Result<()> {
    let top = walk::open(tree)?;
    of_packages(&top)?;
    for path in OF_A_BUILD {
        removed(&top, path)?;
    }
    for (name, text) in [(c"hostname", "localhost\n"), (c"resolv.conf", "")] {
        if let Some(etc) = enter(&top, "etc")? {
            walk::remove(etc.as_fd(), name, None)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = openat2(&etc, name, flags, Mode::from_raw_mode(0o644), BENEATH)
                .act("write", "a file in etc")?;
            File::from(file).write_all(text.as_bytes()).act("write", "a file in etc")?;
        }
    }
    Ok(())
}

/// Cleans the upper of a jail in which packages were installed on these layers. `nobody` is the jail's made-up user.
///
/// What is in the upper only because it was touched goes too: account files and empty directories as the layers have them.
///
/// # Errors
/// [`crate::Error::Act`].
pub fn derived(upper: &Path, lower: &Lower, nobody: &str) -> Result<()> {
    let top = walk::open(upper)?;
    of_packages(&top)?;
    removed(&top, &format!("home/{nobody}"))?;
    if let Some(etc) = enter(&top, "etc")? {
        let beneath = lower.root()?.enter(c"etc")?;
        for name in ACCOUNTS.into_iter().chain(ACCOUNTS_BEFORE) {
            let Some((content, stat)) = without(&etc, name, nobody)? else { continue };
            let same = match beneath.find(name)? {
                Some(found) if alike(&found.stat, &stat) => {
                    let mut old = Vec::new();
                    found.open()?.read_to_end(&mut old).act("read", "an account file")?;
                    old == content
                }
                _ => false,
            };
            if same {
                walk::remove(etc.as_fd(), name, None)?;
            }
        }
    }
    prune(&top, lower)
}

fn of_packages(top: &OwnedFd) -> Result<()> {
    for path in EMPTIED {
        let Some(dir) = enter(top, path)? else { continue };
        for name in names(&dir).act("list", path)? {
            walk::remove(dir.as_fd(), &name, None)?;
        }
    }
    REMOVED.iter().try_for_each(|path| removed(top, path))
}

/// Removes something and all below it, if it is there.
fn removed(top: &OwnedFd, path: &str) -> Result<()> {
    let (above, name) = path.rsplit_once('/').unwrap_or((".", path));
    let name = CString::new(name).map_err(std::io::Error::from).act("name", path)?;
    match enter(top, above)? {
        Some(dir) => walk::remove(dir.as_fd(), &name, None).map(drop),
        None => Ok(()),
    }
}

/// A directory of the tree; `None` if there is none of this path, or a link leads there.
fn enter(top: &OwnedFd, path: &str) -> Result<Option<OwnedFd>> {
    match openat2(top, path, DIRECTORY, Mode::empty(), BENEATH) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        dir => dir.act("open", path).map(Some),
    }
}

fn names(dir: &OwnedFd) -> rustix::io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_owned();
        if name.as_c_str() != c"." && name.as_c_str() != c".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// Takes the lines of a user out of an account file of the upper. Returns what it is then; `None` if there is no plain file of this
/// name.
fn without(etc: &OwnedFd, name: &CStr, user: &str) -> Result<Option<(Vec<u8>, Stat)>> {
    const WHAT: &str = "an account file";
    let mut file = match lower::open(etc.as_fd(), name) {
        Err(Errno::NOENT | Errno::LOOP | Errno::INVAL) => return Ok(None),
        file => file.act("open", WHAT)?,
    };
    let mut old = Vec::new();
    file.read_to_end(&mut old).act("read", WHAT)?;
    let stat = fstat(&file).act("examine", WHAT)?;
    let own = |line: &&[u8]| line.split(|byte| *byte == b':').next() == Some(user.as_bytes());
    let new: Vec<u8> =
        old.split_inclusive(|byte| *byte == b'\n').filter(|line| !own(line)).flatten().copied().collect();
    if new != old {
        // Owner and mode stay.
        let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat2(etc, name, flags, Mode::empty(), BENEATH).act("open", WHAT)?;
        File::from(file).write_all(&new).act("write", WHAT)?;
    }
    Ok(Some((new, stat)))
}

/// Removes empty directories of the upper that are in the layers just so.
pub(crate) fn prune(top: &OwnedFd, lower: &Lower) -> Result<()> {
    let mut way = lower.way()?;
    let mut walk = Walk::below(top.try_clone().act("copy", "a descriptor")?)?;
    // Of each directory that the walk is in, whether it hides what the layers have in it.
    let mut hidden: Vec<bool> = Vec::new();
    while let Some(step) = walk.step()? {
        match step {
            Step::Found(place, stat) if is_dir(&stat) => {
                let opaque = openat2(place.dir, place.name, DIRECTORY, Mode::empty(), BENEATH)
                    .and_then(lower::is_opaque)
                    .map_err(|e| walk::failed("examine", place.path, e))?;
                hidden.push(opaque || hidden.last() == Some(&true));
                way.enter(place.name)?;
            }
            Step::Left(place) => {
                way.leave()?;
                if hidden.pop() == Some(true) {
                    continue;
                }
                let stat = statat(place.dir, place.name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|e| walk::failed("examine", place.path, e))?;
                let beneath = way.here().find(place.name)?;
                if beneath.is_some_and(|beneath| is_dir(&beneath.stat) && alike(&beneath.stat, &stat)) {
                    match unlinkat(place.dir, place.name, AtFlags::REMOVEDIR) {
                        Ok(()) | Err(Errno::NOTEMPTY) => {}
                        Err(e) => return Err(walk::failed("remove", place.path, e)),
                    }
                }
            }
            Step::Found(..) => {}
            Step::Mount(place) => {
                let mounted = std::io::Error::other("something is mounted on it");
                return Err(walk::failed("clean", place.path, mounted));
            }
        }
    }
    Ok(())
}

fn alike(a: &Stat, b: &Stat) -> bool {
    (a.st_mode, a.st_uid, a.st_gid) == (b.st_mode, b.st_uid, b.st_gid)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(top: &Path, path: &str, text: &str) {
        let path = top.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn paths(top: &Path) -> Vec<String> {
        let mut walk = Walk::below(walk::open(top).unwrap()).unwrap();
        let mut paths = Vec::new();
        while let Some(step) = walk.step().unwrap() {
            if let Step::Found(place, _) = step {
                paths.push(place.path.display().to_string());
            }
        }
        paths
    }

    fn over(layer: &Path) -> Lower {
        Lower::over(vec![walk::open(layer).unwrap()])
    }

    #[test]
    fn what_packages_leave_goes_and_what_they_bring_stays() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path();
        for path in ["var/cache/apt/archives/a.deb", "var/lib/apt/lists/partial/x", "run/pid", "tmp/x/y"] {
            write(top, path, "");
        }
        for path in ["var/log/dpkg.log", "var/log/bootstrap.log", "var/lib/dpkg/status-old", "etc/hostname"] {
            write(top, path, "secret");
        }
        write(top, "usr/bin/tool", "");
        write(top, "var/lib/dpkg/status", "");
        base(top).unwrap();
        let left = paths(top);
        let files: Vec<&String> = left.iter().filter(|path| top.join(path).is_file()).collect();
        assert_eq!(files, ["etc/hostname", "etc/resolv.conf", "usr/bin/tool", "var/lib/dpkg/status"]);
        assert_eq!(fs::read_to_string(top.join("etc/hostname")).unwrap(), "localhost\n");
        assert!(top.join("tmp").is_dir() && top.join("var/lib/apt/lists").is_dir());
    }

    #[test]
    fn no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (top, out) = (dir.path().join("top"), dir.path().join("out"));
        write(&out, "archives/precious", "");
        write(&out, "precious", "");
        fs::create_dir_all(top.join("var/cache")).unwrap();
        symlink(&out, top.join("var/cache/apt")).unwrap();
        symlink(&out, top.join("tmp")).unwrap();
        symlink(&out, top.join("etc")).unwrap();
        base(&top).unwrap();
        assert_eq!(paths(&out), ["archives", "archives/precious", "precious"]);
    }

    #[test]
    fn the_made_up_user_goes_and_what_was_only_touched() {
        let dir = tempfile::tempdir().unwrap();
        let (layer, upper) = (dir.path().join("layer"), dir.path().join("upper"));
        let was = "root:x:0:0::/root:/bin/sh\n";
        for path in ["etc/passwd", "etc/group", "var/lib/apt/lists/lock", "usr/bin/sh", "home/x"] {
            write(&layer, path, was);
        }
        write(&upper, "etc/passwd", &format!("{was}ojail-run:x:59999:59999::/:/bin/sh\nwww:x:33:33::/:\n"));
        write(&upper, "etc/group", &format!("{was}ojail-run:x:59999:\n"));
        write(&upper, "etc/passwd-", "ojail-run:x:1:1::/:\n");
        write(&upper, "home/ojail-run/.profile", "");
        write(&upper, "var/lib/apt/lists/Packages", "");
        fs::create_dir_all(upper.join("usr/bin")).unwrap();
        fs::create_dir_all(upper.join("srv/new")).unwrap();
        derived(&upper, &over(&layer), "ojail-run").unwrap();
        assert_eq!(paths(&upper), ["etc", "etc/passwd", "etc/passwd-", "srv", "srv/new"]);
        let passwd = fs::read_to_string(upper.join("etc/passwd")).unwrap();
        assert_eq!(passwd, format!("{was}www:x:33:33::/:\n"));
        assert_eq!(fs::read_to_string(upper.join("etc/passwd-")).unwrap(), "");
    }
}
