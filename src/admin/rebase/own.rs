//! What of an upper is the user's own, and what dpkg put there: the first comes along to newer layers, the second is brought by the
//! layers or installed again. Host root; a user has shaped all of it, and nothing is followed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use md5::{Digest, Md5};
use rustix::fs::{AtFlags, Mode, OFlags, Stat, fremovexattr, openat2, renameat, statat, unlinkat};
use rustix::io::Errno;

use super::accounts::{self, Merged};
use crate::admin::conflicts::{DATABASES, Findings, GENERATED, is_within};
use crate::conflicts::{self, Known, Owners, read, read_lower};
use crate::copy;
use crate::error::{Act, Error, Result};
use crate::layers::clean;
use crate::lower;
use crate::packages::{self, INFO};
use crate::walk::{self, BENEATH, DIRECTORY, Step, Walk, failed, is_dir, is_whiteout};

/// What of an upper stays behind.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    /// Paths of what dpkg put there or took away, without the slash in front.
    pub(super) behind: BTreeSet<Vec<u8>>,
    /// Files of configuration and others that the user has edited, in packages.
    pub(super) edited: Vec<Vec<u8>>,
    /// What the user changed, and what a package brings anew that is installed again.
    pub(super) lost: Vec<Vec<u8>>,
    /// How many things come along.
    pub(super) own: u64,
    /// Account files, with their text on the new layers.
    pub(super) accounts: Vec<(&'static str, Merged)>,
}

/// The largest file that is compared with what a package had, in bytes.
const LARGEST: i64 = 4 << 30;

/// The most that the sums of all packages may have together, in bytes: those of a Debian of 3000 packages have 40 MB.
const MOST_SUMS: usize = 256 << 20;

/// Where Python's compiled files are that packages make.
const COMPILED: [&str; 2] = ["usr/lib/python3", "usr/share"];

/// Sorts a user's upper. `again`: the packages that are installed again.
///
/// # Errors
/// [`crate::Error::Act`].
pub(super) fn sort(findings: &Findings<'_>, known: &Known, again: &BTreeSet<&str>) -> Result<Sorted> {
    let mut sorter = Sorter::of(findings, known, again)?;
    let mut sorted = Sorted::default();
    let mut walk = Walk::below(reopened(&findings.upper)?)?;
    while let Some(step) = walk.step()? {
        let Step::Found(place, stat) = step else { continue };
        let path = place.path.as_os_str().as_bytes();
        let database = is_within(path, &DATABASES) || is_within(path, &GENERATED) || compiled(path);
        if is_dir(&stat) {
            if database {
                sorted.behind.insert(path.to_vec());
                walk.pass();
            }
            continue;
        }
        let whose =
            if database { Whose::Packages } else { sorter.whose(place.dir, place.name, path, &stat)? };
        match whose {
            Whose::Packages => drop(sorted.behind.insert(path.to_vec())),
            Whose::Own => sorted.own += 1,
            Whose::Edited => {
                sorted.own += 1;
                sorted.edited.push(path.to_vec());
            }
            Whose::Lost => {
                sorted.behind.insert(path.to_vec());
                sorted.lost.push(path.to_vec());
            }
        }
    }
    sorted.accounts = merged_accounts(findings)?;
    Ok(sorted)
}

fn compiled(path: &[u8]) -> bool {
    is_within(path, &COMPILED) && path.split(|byte| *byte == b'/').any(|part| part == b"__pycache__")
}

enum Whose {
    /// dpkg's work.
    Packages,
    /// The user's own.
    Own,
    /// The user's version of a package's file.
    Edited,
    /// The user's version of a file that a package brings anew.
    Lost,
}

struct Sorter<'a> {
    findings: &'a Findings<'a>,
    known: &'a Known,
    /// Packages whose files dpkg has put into the upper: no layer had this version.
    by_dpkg: BTreeSet<&'a str>,
    /// Of these, what is installed again.
    again: &'a BTreeSet<&'a str>,
    /// Whose the files are of packages that the user has upgraded or removed, in the layers that these come from.
    replaced: Vec<Owners>,
    /// The MD5 of each file of a package that was asked for.
    sums: BTreeMap<String, BTreeMap<Vec<u8>, String>>,
    /// How many bytes of sums may still be read: one file can be those of a thousand packages.
    left: usize,
    merged: conflicts::Merged,
}

impl<'a> Sorter<'a> {
    fn of(findings: &'a Findings<'a>, known: &'a Known, again: &'a BTreeSet<&'a str>) -> Result<Self> {
        let in_layers = || known.old.iter().chain([&known.now]);
        let foreign = |name: &String, version: &String| {
            in_layers().all(|layers| layers.get(name).is_none_or(|package| package.version != *version))
        };
        let by_dpkg = known
            .inside
            .iter()
            .filter(|(name, package)| foreign(name, &package.version))
            .map(|(name, _)| name.as_str())
            .collect();
        // What inside is not there, or not so: dpkg has deleted files of it.
        let gone: BTreeSet<&String> = in_layers()
            .flatten()
            .filter(|(name, package)| {
                known.inside.get(*name).is_none_or(|inside| inside.version != package.version)
            })
            .map(|(name, _)| name)
            .collect();
        let lowers = findings.stands.others().chain([&findings.stands.now]);
        let replaced =
            lowers.map(|lower| Owners::of(None, lower, gone.iter().copied())).collect::<Result<_>>()?;
        let merged = conflicts::Merged::of(&findings.stands.now)?;
        Ok(Self { findings, known, by_dpkg, again, replaced, sums: BTreeMap::new(), left: MOST_SUMS, merged })
    }

    fn whose(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: &[u8], stat: &Stat) -> Result<Whose> {
        let Some(package) = self.findings.owners.of_path(path) else {
            let dpkgs =
                is_whiteout(stat) && self.replaced.iter().any(|owners| owners.of_path(path).is_some());
            return Ok(if dpkgs { Whose::Packages } else { Whose::Own });
        };
        let (by_dpkg, again) = (self.by_dpkg.contains(package), self.again.contains(package));
        // dpkg lists what is there: it was deleted by hand, and a package that is installed again brings it.
        if is_whiteout(stat) {
            return Ok(if again { Whose::Lost } else { Whose::Own });
        }
        let text = String::from_utf8_lossy(path);
        let conffile =
            self.known.inside.get(package).and_then(|package| package.conffiles.get(text.as_ref())).cloned();
        let configuration = conffile.is_some();
        let packed = match conffile {
            Some(sum) => Some(sum),
            None => self.sums(package)?.get(path).cloned(),
        };
        let Some(packed) = packed else {
            return Ok(if by_dpkg { Whose::Packages } else { Whose::Own });
        };
        let is = match lower::open(dir, name) {
            // No package has such a file, and it would take long to read it.
            _ if stat.st_size > LARGEST => None,
            // A link or something else in its place.
            Err(Errno::LOOP | Errno::INVAL) => None,
            file => Some(
                md5(file.map_err(|e| failed("open", std::path::Path::new(text.as_ref()), e))?)
                    .act("read", text.as_ref())?,
            ),
        };
        Ok(match (is == Some(packed), again, configuration) {
            (true, ..) => Whose::Packages,
            // dpkg is told to leave what is there.
            (false, _, true) | (false, false, _) => Whose::Edited,
            (false, true, false) => Whose::Lost,
        })
    }

    /// The sums of a package's files, from where its version is.
    fn sums(&mut self, package: &str) -> Result<&BTreeMap<Vec<u8>, String>> {
        if !self.sums.contains_key(package) {
            let path = format!("{INFO}/{package}.md5sums");
            let version = self.known.inside.get(package).map(|package| &package.version);
            let mut text = None;
            // A name that is a path is none.
            if !package.contains('/') {
                text = read(self.findings.upper.as_fd(), &path)?;
                let stands = &self.findings.stands;
                let old = stands.old.iter().filter_map(|stand| stand.lower.as_ref()).zip(&self.known.old);
                let all = old.chain([(&stands.now, &self.known.now)]);
                for (lower, packages) in all {
                    if text.is_none() && packages.get(package).map(|package| &package.version) == version {
                        text = read_lower(lower, &path)?;
                    }
                }
            }
            let text = text.unwrap_or_default();
            self.left = self.left.checked_sub(text.len()).ok_or_else(|| Error::Unfit {
                path: INFO.into(),
                why: format!("has sums of more than {MOST_SUMS} bytes, which no Debian has"),
            })?;
            let sums = packages::sums(&text).into_iter();
            let sums = sums.map(|(path, sum)| (self.merged.real(path), sum)).collect();
            self.sums.insert(package.to_owned(), sums);
        }
        Ok(&self.sums[package])
    }
}

fn md5(mut file: File) -> std::io::Result<String> {
    let mut md5 = Md5::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            length => md5.update(&buffer[..length]),
        }
    }
    Ok(md5.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

/// The account files that the user has of their own.
fn merged_accounts(findings: &Findings<'_>) -> Result<Vec<(&'static str, Merged)>> {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let mut all = Vec::new();
    for (name, number) in accounts::FILES {
        let path = format!("etc/{name}");
        let Some(mine) = read(findings.upper.as_fd(), &path)? else { continue };
        // What is no text, or no such file, is not taken apart.
        if mine.len() > accounts::MOST {
            continue;
        }
        let Ok(mine) = String::from_utf8(mine) else { continue };
        let mut was = Vec::new();
        for lower in findings.stands.old.iter().filter_map(|stand| stand.lower.as_ref()) {
            was.extend(read_lower(lower, &path)?.map(text));
        }
        let now = read_lower(&findings.stands.now, &path)?.map(text).unwrap_or_default();
        all.push((name, accounts::merge(&mine, &was, &now, number)));
    }
    Ok(all)
}

/// Takes what stays behind out of a copy of the upper, and gives it the account files.
///
/// # Errors
/// [`crate::Error::Act`].
pub(super) fn strip(copy: &OwnedFd, findings: &Findings<'_>, sorted: &Sorted) -> Result<()> {
    let mut way = findings.stands.now.way()?;
    let mut walk = Walk::below(reopened(copy)?)?;
    // Of each directory that the walk is in, whether something in it stays behind.
    let mut lightened: Vec<bool> = Vec::new();
    while let Some(step) = walk.step()? {
        match step {
            Step::Found(place, stat) => {
                if sorted.behind.contains(place.path.as_os_str().as_bytes()) {
                    walk::remove(place.dir, place.name, None)?;
                    if let Some(above) = lightened.last_mut() {
                        *above = true;
                    }
                    walk.pass();
                } else if is_dir(&stat) {
                    way.enter(place.name)?;
                    lightened.push(false);
                }
            }
            Step::Left(place) => {
                way.leave()?;
                let less = lightened.pop() == Some(true);
                if let (true, Some(above)) = (less, lightened.last_mut()) {
                    *above = true;
                }
                if findings.owners.of_path(place.path.as_os_str().as_bytes()).is_none() {
                    continue;
                }
                if way.here().find(place.name)?.is_none() {
                    // A package's own directory, when nothing is left in it.
                    match unlinkat(place.dir, place.name, AtFlags::REMOVEDIR) {
                        Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                        Err(e) => return Err(failed("remove", place.path, e)),
                    }
                } else if less {
                    // Removed and installed again, it hides what the layers have in it, which is wanted now.
                    let dir = openat2(place.dir, place.name, DIRECTORY, Mode::empty(), BENEATH);
                    let shown = dir.and_then(|dir| fremovexattr(&dir, lower::OPAQUE));
                    match shown {
                        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                        Err(e) => return Err(failed("make transparent", place.path, e)),
                    }
                }
            }
            Step::Mount(_) => {}
        }
    }
    for (name, merged) in &sorted.accounts {
        give(copy, name, merged, findings)?;
    }
    clean::prune(copy, &findings.stands.now)
}

/// Writes an account file; or removes it, where the layers have just that.
fn give(copy: &OwnedFd, name: &str, merged: &Merged, findings: &Findings<'_>) -> Result<()> {
    let etc = openat2(copy, "etc", DIRECTORY, Mode::empty(), BENEATH).act("open", "etc")?;
    let path = format!("etc/{name}");
    if read_lower(&findings.stands.now, &path)?.as_deref() == Some(merged.text.as_bytes()) {
        return unlinkat(&etc, name, AtFlags::empty()).act("remove", path);
    }
    // Owner and mode stay, and so does another name of the file, with what it has: useradd(8) too makes such a file anew.
    let old = CString::new(name).map_err(io::Error::from).act("name", &path)?;
    let free = |new: &CString| matches!(statat(&etc, new, AtFlags::SYMLINK_NOFOLLOW), Err(Errno::NOENT));
    let new = (0..u32::MAX).filter_map(|number| CString::new(format!(".ojail.{number}")).ok()).find(free);
    let new = new.ok_or(io::Error::from(Errno::EXIST)).act("make a copy of", &path)?;
    copy::tree(etc.as_fd(), &old, etc.as_fd(), &new)?;
    renameat(&etc, &new, &etc, &old).act("put in its place", &path)?;
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat2(&etc, name, flags, Mode::empty(), BENEATH).act("open", &path)?;
    File::from(file).write_all(merged.text.as_bytes()).act("write", path)
}

/// The same directory once more, from its beginning.
fn reopened(dir: &OwnedFd) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(dir, ".", flags, Mode::empty(), BENEATH).act("open", "an upper")
}
