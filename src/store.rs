//! The uppers on disk: made, checked, set aside. Host root only; nothing here follows a path below an upper.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statfs, statx};
use serde::{Deserialize, Serialize};

use crate::account::Username;
use crate::config::Storage;
use crate::error::{Act, Error, IfThere, Result};
use crate::runtime::private_dir;

/// Where a user's upper and work directory are: two paths below one base, which is cloned as one mount, because
/// overlayfs wants both on the same mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upper {
    /// Whether the upper was made just now.
    pub fresh: bool,
    /// The deepest directory above both.
    pub base: PathBuf,
    /// The upper, relative to the base.
    pub upper: PathBuf,
    /// The work directory, relative to the base.
    pub work: PathBuf,
    /// Whether nobody inside waits for the disk, whatever they sync. What is to stay is synced after the jail's end then.
    pub volatile: bool,
}

/// File systems on which an upper would be wrong or unsafe, by magic number (linux/magic.h).
const UNFIT: [(i64, &str); 4] =
    [(0x794c_7630, "an overlay"), (0x6969, "NFS"), (0x6573_5546, "FUSE"), (0x4d44, "FAT")];

/// Makes the user's upper and work directory, or checks those that are there.
///
/// # Errors
/// [`Error::Unfit`] if the directories cannot hold uppers, with the mend.
pub fn upper(storage: &Storage, user: &Username) -> Result<Upper> {
    check(storage)?;
    let dirs = (storage.upperdirs.join(user), storage.workdirs.join(user));
    // 0755: this becomes the mode of `/` inside, where everybody must get through.
    let fresh = dir(&dirs.0, 0o755)?;
    dir(&dirs.1, 0o700)?;
    let base = common(&storage.upperdirs, &storage.workdirs);
    let below = |path: &Path| path.strip_prefix(&base).unwrap_or(path).to_owned();
    Ok(Upper { fresh, upper: below(&dirs.0), work: below(&dirs.1), base, volatile: false })
}

/// Makes an upper and a work directory in `base`, a directory of its own on the uppers' file system, for a temporary jail.
///
/// # Errors
/// [`Error::Unfit`], [`Error::Act`].
pub fn upper_at(base: &Path) -> Result<Upper> {
    roots_own_way(base)?;
    private_dir(base)?;
    fit(base)?;
    // As above.
    let fresh = dir(&base.join("upper"), 0o755)?;
    dir(&base.join("work"), 0o700)?;
    Ok(Upper { fresh, base: base.to_owned(), upper: "upper".into(), work: "work".into(), volatile: true })
}

/// Where the uppers of temporary jails are that are thrown away with them. No user is called so.
#[must_use]
pub fn throw_away(storage: &Storage) -> PathBuf {
    storage.asidedirs.join(".run")
}

impl Upper {
    /// The same, with the paths of upper and work directory behind that of a place where the base is mounted.
    #[must_use]
    pub fn mounted_at(&self, base: &str) -> Self {
        let [upper, work] = [&self.upper, &self.work].map(|path| Path::new(base).join(path));
        Self { upper, work, ..self.clone() }
    }

    /// Takes an upper away again that was made for a jail which could not be raised. One in which anything is, or that
    /// was there before, stays.
    pub fn undo(&self) {
        if self.fresh {
            // Removing a directory that is not empty fails, and that is what is wanted.
            let _ = fs::remove_dir(self.base.join(&self.upper));
            let _ = fs::remove_dir(self.base.join(&self.work));
        }
    }
}

/// Whether the directories of uppers can hold any: private, on one mount, on a fit file system. Makes missing ones.
///
/// # Errors
/// [`Error::Unfit`] with the mend.
pub fn check(storage: &Storage) -> Result<()> {
    for path in [&storage.upperdirs, &storage.workdirs] {
        roots_own_way(path)?;
        private_dir(path)?;
        fit(path)?;
    }
    one_mount(storage)
}

/// As [`check`], but makes nothing: what is missing is judged by the directory in which it would be made. Returns what
/// is missing.
///
/// # Errors
/// [`Error::Unfit`] with the mend.
pub fn look(storage: &Storage) -> Result<Vec<PathBuf>> {
    let mut missing = Vec::new();
    for path in [&storage.upperdirs, &storage.workdirs] {
        roots_own_way(path)?;
        if there(path) == path.as_path() {
            private_dir(path)?
        } else {
            missing.push(path.clone())
        }
        fit(path)?;
    }
    one_mount(storage)?;
    Ok(missing)
}

/// The deepest part of a path that exists.
fn there(path: &Path) -> &Path {
    path.ancestors().find(|part| fs::symlink_metadata(part).is_ok()).unwrap_or(Path::new("/"))
}

fn fit(path: &Path) -> Result<()> {
    let magic = statfs(there(path)).act("examine the file system of", path)?.f_type;
    #[allow(clippy::unnecessary_cast, reason = "f_type has another width on some architectures")]
    if let Some((_, name)) = UNFIT.iter().find(|(unfit, _)| *unfit == magic as i64) {
        let why = format!("is on {name}, which cannot hold an upper; put it on ext4, xfs or btrfs");
        return Err(Error::Unfit { path: path.to_owned(), why });
    }
    Ok(())
}

fn one_mount(storage: &Storage) -> Result<()> {
    let base = common(&storage.upperdirs, &storage.workdirs);
    let mount = mount_of(there(&storage.upperdirs))?;
    if mount != mount_of(there(&storage.workdirs))? || mount_of(there(&base))? != mount {
        return Err(Error::Unfit {
            path: storage.workdirs.clone(),
            why: format!(
                "must be on the same mount as {}; overlayfs needs both together",
                storage.upperdirs.display()
            ),
        });
    }
    Ok(())
}

/// Makes an empty upper.
///
/// # Errors
/// [`Error::Act`].
pub fn fresh(path: &Path) -> Result<()> {
    // 0755: this becomes the mode of `/` inside, where everybody must get through.
    dir(path, 0o755).map(drop)
}

/// Where uppers may be whose projects this user has: the own one, those set aside or about to be deleted (`aside` makes them), and
/// those of temporary jails.
///
/// # Errors
/// [`Error::Act`] if a directory cannot be read.
pub fn others(storage: &Storage, user: &Username) -> Result<Vec<PathBuf>> {
    let trash = storage.asidedirs.join(".trash");
    let mut uppers = vec![storage.upperdirs.join(user)];
    let (anybody, own) = (String::new(), format!("{user}@"));
    let places = [(storage.asidedirs.join(user), &anybody), (trash, &own), (throw_away(storage), &anybody)];
    for (dir, whose) in places {
        let Some(entries) = fs::read_dir(&dir).if_there().act("list", &dir)? else { continue };
        for entry in entries {
            let entry = entry.act("list", &dir)?;
            if entry.file_name().to_string_lossy().starts_with(whose) {
                uppers.push(entry.path().join("upper"));
            }
        }
    }
    Ok(uppers)
}

/// Every user who has an upper.
///
/// # Errors
/// [`Error::Act`] if the directory cannot be read.
pub fn owners(storage: &Storage) -> Result<Vec<Username>> {
    let Some(entries) = fs::read_dir(&storage.upperdirs).if_there().act("list", &storage.upperdirs)? else {
        return Ok(Vec::new());
    };
    let mut owners = Vec::new();
    for entry in entries {
        let name = entry.act("list", &storage.upperdirs)?.file_name();
        owners.extend(name.to_str().and_then(|name| Username::parse(name).ok()));
    }
    owners.sort();
    Ok(owners)
}

/// Refuses a path with a symbolic link in it: what root mounts must not depend on where a link points today.
///
/// # Errors
/// [`Error::Unfit`] with the part that is a link.
pub fn no_links(path: &Path) -> Result<()> {
    let mut sofar = PathBuf::new();
    for part in path.components() {
        sofar.push(part);
        let Some(meta) = fs::symlink_metadata(&sofar).if_there().act("examine", &sofar)? else {
            return Ok(());
        };
        if meta.is_symlink() {
            let why = "is a symbolic link; name the real path in the configuration".into();
            return Err(Error::Unfit { path: sofar, why });
        }
    }
    Ok(())
}

/// Refuses a path that anybody but root could bend: a link in it, or a directory in which others may exchange what is named. Of
/// the last part only its kind is asked, for it may be private in its own way.
///
/// # Errors
/// [`Error::Unfit`] with the part that is to blame.
pub fn roots_own_way(path: &Path) -> Result<()> {
    no_links(path)?;
    for part in path.ancestors().skip(1) {
        let Some(meta) = fs::symlink_metadata(part).if_there().act("examine", part)? else { continue };
        let mode = meta.mode();
        // In a sticky directory of root's, only root renames what is root's.
        let mend = if meta.uid() != 0 {
            format!("belongs to uid {}; `chown root {}`", meta.uid(), part.display())
        } else if mode & 0o022 != 0 && mode & 0o1000 == 0 {
            format!(
                "can be written by others than root (mode {:04o}); `chmod go-w {}`",
                mode & 0o7777,
                part.display()
            )
        } else {
            continue;
        };
        let why = format!("is above {}, and {mend}", path.display());
        return Err(Error::Unfit { path: part.to_owned(), why });
    }
    Ok(())
}

/// Makes a directory of root's, or checks the one that is there. Returns whether it was made.
fn dir(path: &Path, mode: u32) -> Result<bool> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        made => {
            made.act("create", path)?;
            // The caller's umask must not decide who gets through `/`.
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            fs::set_permissions(path, mode).act("set the mode of", path)?;
            return Ok(true);
        }
    }
    let meta = fs::symlink_metadata(path).act("examine", path)?;
    let why = if !meta.is_dir() {
        "is not a directory; move it away".to_owned()
    } else if meta.uid() != 0 {
        format!(
            "belongs to uid {}; an upper belongs to root on disk: `chown root:root {}`",
            meta.uid(),
            path.display()
        )
    } else {
        return Ok(false);
    };
    Err(Error::Unfit { path: path.to_owned(), why })
}

/// The deepest directory that is above both.
fn common(a: &Path, b: &Path) -> PathBuf {
    a.components().zip(b.components()).take_while(|(a, b)| a == b).map(|(a, _)| a).collect()
}

fn mount_of(path: &Path) -> Result<u64> {
    let stat = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID).act("examine", path)?;
    Ok(stat.stx_mnt_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_is_the_deepest_directory_above_both() {
        let common = |a, b| common(Path::new(a), Path::new(b)).display().to_string();
        assert_eq!(common("/srv/overlay/upperdirs", "/srv/overlay/workdirs"), "/srv/overlay");
        assert_eq!(common("/a/up", "/b/work"), "/");
    }

    #[test]
    fn looking_makes_nothing_and_judges_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(dir.path()).unwrap();
        let at = |name: &str| real.join(name);
        let storage = Storage {
            lowerdirs: at("lower"),
            upperdirs: at("o/upper"),
            workdirs: at("o/work"),
            asidedirs: at("o/aside"),
            jails: at("jails"),
        };
        // Where the tests run may be an overlay itself, which is told and makes nothing either.
        let looked = look(&storage);
        assert!(looked.is_err() || looked.is_ok_and(|missing| missing == [at("o/upper"), at("o/work")]));
        assert!(!at("o").exists());
        fs::DirBuilder::new().recursive(true).mode(0o755).create(at("o/upper")).unwrap();
        let why = look(&storage).unwrap_err().to_string();
        assert!(
            why.contains("can be entered by others") || why.contains("overlay") || why.contains("belongs to"),
            "{why}"
        );
        assert!(!at("o/work").exists());
    }

    #[test]
    fn a_link_on_the_way_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let real = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(real.join("real")).unwrap();
        std::os::unix::fs::symlink("real", real.join("link")).unwrap();
        assert!(no_links(&real.join("real/sub")).is_ok());
        assert!(
            no_links(&real.join("link/sub")).unwrap_err().to_string().contains("link: is a symbolic link")
        );
    }
}
