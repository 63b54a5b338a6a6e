//! What dpkg knows of a tree: `/var/lib/dpkg/status` and the lists beside it (dpkg(1), deb-conffiles(5)). A user with `root = true` has
//! written it: all of it is bytes that may say anything, and none of it is a path that is followed.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use crate::error::{Act, Result};

/// The packages of one tree, by name; of a package in several architectures, each by `NAME:ARCH`.
pub type Packages = BTreeMap<String, Package>;

/// A package that is installed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Package {
    /// The version.
    pub version: String,
    /// Its files of configuration, without the slash in front, and the MD5 of each as it was packed, in hexadecimal.
    pub conffiles: BTreeMap<String, String>,
}

/// Where the database is, in a tree.
pub const STATUS: &str = "var/lib/dpkg/status";

/// Where the lists are of what each package has.
pub const INFO: &str = "var/lib/dpkg/info";

/// Where apt notes which packages came for others.
pub const EXTENDED: &str = "var/lib/apt/extended_states";

/// The packages of a status file. What is removed, or was never unpacked, is not among them.
#[must_use]
pub fn parse(text: &[u8]) -> Packages {
    let text = String::from_utf8_lossy(text);
    let mut packages = Packages::new();
    for paragraph in text.split("\n\n") {
        let fields = fields(paragraph);
        let field = |name: &str| fields.get(name).map_or("", |value| value.trim());
        // "install ok installed": what is wanted, whether there is an error, and what it is (dpkg-query(1)). Half-installed is there.
        let state = field("status").rsplit(' ').next().unwrap_or_default();
        if matches!(state, "not-installed" | "config-files" | "") || field("package").is_empty() {
            continue;
        }
        let conffiles = field("conffiles").lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let (path, md5) = (words.next()?, words.next()?);
            // A third word says that it is not the package's any more.
            (words.next() != Some("obsolete")).then(|| (inside(path).to_owned(), md5.to_owned()))
        });
        let package = Package { version: field("version").to_owned(), conffiles: conffiles.collect() };
        packages.insert(called(field("package"), field("architecture"), field("multi-arch")), package);
    }
    packages
}

/// The packages that nobody asked for by name, of apt's list.
#[must_use]
pub fn automatic(text: &[u8]) -> BTreeSet<String> {
    let text = String::from_utf8_lossy(text);
    let name = |paragraph: &str| {
        let fields = fields(paragraph);
        let asked = fields.get("auto-installed").is_none_or(|value| value.trim() != "1");
        (!asked).then(|| fields.get("package").map(|name| name.trim().to_owned())).flatten()
    };
    text.split("\n\n").filter_map(name).collect()
}

/// The paths in a package's list or, with `sums`, in its sums: without the slash in front, as they are in the tree.
#[must_use]
pub fn list(text: &[u8]) -> Vec<Vec<u8>> {
    let lines = text.split(|byte| *byte == b'\n').filter(|line| line.len() > 1 && *line != b"/.");
    lines.map(|line| line.strip_prefix(b"/").unwrap_or(line).to_vec()).collect()
}

/// MD5 and path of each line of a package's sums.
#[must_use]
pub fn sums(text: &[u8]) -> BTreeMap<Vec<u8>, String> {
    let line = |line: &[u8]| {
        let (sum, path) = line.split_at_checked(32)?;
        Some((path.strip_prefix(b"  ")?.to_vec(), String::from_utf8(sum.to_vec()).ok()?))
    };
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// Whether one version is newer than another, as dpkg has it (deb-version(7)).
///
/// # Errors
/// [`crate::Error::Act`] if dpkg cannot be run.
pub fn newer(one: &str, other: &str) -> Result<bool> {
    // dpkg takes options in any place: what is no version is not handed to it.
    if !is_version(one) || !is_version(other) {
        return Ok(false);
    }
    let said = Command::new("dpkg").args(["--compare-versions", one, "gt", other]).output();
    Ok(said.act("run", "dpkg")?.status.success())
}

/// Whether it can be a version (Debian Policy 5.6.12).
fn is_version(version: &str) -> bool {
    version.starts_with(|c: char| c.is_ascii_digit())
        && version.chars().all(|c| c.is_ascii_alphanumeric() || ".+:~-".contains(c))
}

/// Whether it can be the name of a package: what goes to a command must not be an option (Debian Policy 5.6.1).
#[must_use]
pub fn is_name(name: &str) -> bool {
    let name = name.split_once(':').map_or(name, |(name, _)| name);
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
    name.len() > 1
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.chars().all(plain)
}

/// The fields of a paragraph, by names in small letters; lines that go on keep their line ends.
fn fields(paragraph: &str) -> BTreeMap<String, String> {
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    let mut last = String::new();
    for line in paragraph.lines() {
        if line.starts_with([' ', '\t']) {
            if let Some(value) = fields.get_mut(&last) {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            last = name.to_ascii_lowercase();
            fields.insert(last.clone(), value.to_owned());
        }
    }
    fields
}

/// As dpkg calls the files of a package: with the architecture where there may be several.
fn called(name: &str, architecture: &str, multi_arch: &str) -> String {
    if multi_arch == "same" { format!("{name}:{architecture}") } else { name.to_owned() }
}

fn inside(path: &str) -> &str {
    path.strip_prefix('/').unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Package: bash\nEssential: yes\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2.15-2\n\
        Conffiles:\n /etc/bash.bashrc 89269e1298235f1b12b4c16e4065ad0d\n /etc/skel/.bashrc ee35a240758f374832e809ae0ea4883a obsolete\n\
        Description: GNU Bourne Again SHell\n Package: not this\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
        Package: libc6\nStatus: install ok installed\nMulti-Arch: same\nArchitecture: amd64\nVersion: 2.36\n";

    #[test]
    fn a_status_file_is_read_as_dpkg_reads_it() {
        let packages = parse(TEXT.as_bytes());
        assert_eq!(packages.keys().collect::<Vec<_>>(), ["bash", "libc6:amd64"]);
        let bash = &packages["bash"];
        assert_eq!(bash.version, "5.2.15-2");
        assert_eq!(
            bash.conffiles.iter().next().unwrap(),
            (&"etc/bash.bashrc".to_owned(), &"89269e1298235f1b12b4c16e4065ad0d".to_owned())
        );
        assert_eq!(bash.conffiles.len(), 1);
        for nonsense in ["", "\n\n\n", "Status\n x", ":", "Package:\nStatus: a b installed"] {
            assert!(parse(nonsense.as_bytes()).is_empty(), "{nonsense:?}");
        }
    }

    #[test]
    fn what_came_for_others_is_told_from_what_was_asked_for() {
        let text = "Package: liba\nArchitecture: amd64\nAuto-Installed: 1\n\nPackage: b\nAuto-Installed: 0\n";
        assert_eq!(automatic(text.as_bytes()), BTreeSet::from(["liba".to_owned()]));
    }

    #[test]
    fn lists_and_sums_have_paths_as_the_tree_has_them() {
        assert_eq!(list(b"/.\n/etc\n/etc/a b\n"), [b"etc".to_vec(), b"etc/a b".to_vec()]);
        let sums = sums(b"d41d8cd98f00b204e9800998ecf8427e  usr/bin/x\nshort\n");
        assert_eq!(sums[&b"usr/bin/x"[..]], "d41d8cd98f00b204e9800998ecf8427e");
        assert_eq!(sums.len(), 1);
    }

    #[test]
    fn what_is_no_version_is_not_newer() {
        assert!(newer("1:2.0~rc1-1", "1.9").unwrap());
        for version in ["--force-help", "-Dh", "", "1 2", "1\0"] {
            assert!(!newer(version, "0").unwrap(), "{version:?}");
        }
    }

    #[test]
    fn what_is_no_name_is_no_word_of_a_command() {
        for name in ["nginx", "g++", "libc6:amd64", "0ad"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["-o", "", "a", "A", "x/y", "x y", "../x", ":x"] {
            assert!(!is_name(name), "{name}");
        }
    }
}
