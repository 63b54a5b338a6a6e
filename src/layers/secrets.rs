//! What must not come from one user's changes into a layer that everybody gets: keys, password hashes, histories, credentials. Found
//! by name and by content; host root, by descriptors, following no link.
//!
//! It finds what programs write by themselves and by habit. A password that somebody wrote into a file of their own it cannot know.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::error::Result;
use crate::lower;
use crate::walk::{self, Place, Step, Walk, is_dir};

/// What a tree has in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// What is secret, and as what; paths begin with `/`.
    pub secrets: Vec<(PathBuf, &'static str)>,
    /// Programs that run with the rights of their owner or group.
    pub setid: Vec<PathBuf>,
    /// How much there is of everything, without directories.
    pub entries: u64,
    /// Bytes on disk, hard links once.
    pub bytes: u64,
}

/// How much of a file is searched for a key.
const SEARCHED: u64 = 64 << 10;

/// Files with password hashes, in the second field of a line (shadow(5), gshadow(5)).
const HASHES: [&str; 4] = ["/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-"];

/// Names of files that are secret wherever they are.
const NAMES: [(&str, &str); 18] = [
    ("authorized_keys", "says who may log in"),
    ("authorized_keys2", "says who may log in"),
    (".netrc", "credentials"),
    (".pgpass", "credentials"),
    (".my.cnf", "credentials"),
    (".git-credentials", "credentials"),
    (".vault-token", "credentials"),
    (".pypirc", "credentials"),
    ("krb5.keytab", "a Kerberos key"),
    ("opasswd", "password hashes"),
    ("secring.gpg", "a private key"),
    (".lesshst", "a history"),
    (".viminfo", "a history"),
    (".histfile", "a history"),
    (".xauthority", "credentials"),
    (".wget-hsts", "a history"),
    (".recently-used", "a history"),
    ("fish_history", "a history"),
];

/// The same with the directory that they are in.
const IN_DIRECTORIES: [(&str, &str); 4] = [
    (".aws/credentials", "credentials"),
    (".docker/config.json", "credentials"),
    ("containers/auth.json", "credentials"),
    (".config/gh/hosts.yml", "credentials"),
];

/// What a file with a private key has in it: PEM (RFC 7468, section 10 and 11, and what OpenSSH and PGP make of it), PuTTY's and age's.
const KEYS: [&[u8]; 4] =
    [b"PRIVATE KEY-----", b"PRIVATE KEY BLOCK-----", b"PuTTY-User-Key-File-", b"AGE-SECRET-KEY-1"];

/// Looks at a tree, or at what is at these paths of it and below.
///
/// # Errors
/// [`crate::Error::Act`].
pub fn look(top: OwnedFd, within: &[PathBuf]) -> Result<Look> {
    let mut look = Look::default();
    let mut linked = HashSet::new();
    let mut walk = Walk::below(top)?;
    while let Some(step) = walk.step()? {
        let (place, stat) = match step {
            Step::Found(place, stat) => (place, stat),
            Step::Left(_) | Step::Mount(_) => continue,
        };
        let path = Path::new("/").join(place.path);
        if !within.is_empty() && !within.iter().any(|wanted| path.starts_with(wanted)) {
            // On the way to one it goes on.
            if is_dir(&stat) && !within.iter().any(|wanted| wanted.starts_with(&path)) {
                walk.pass();
            }
            continue;
        }
        if stat.st_nlink < 2 || is_dir(&stat) || linked.insert(stat.st_ino) {
            // st_blocks counts in 512 bytes (stat(2)).
            look.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        }
        if is_dir(&stat) {
            continue;
        }
        look.entries += 1;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            continue;
        }
        let why = match by_name(&path) {
            Some(why) => Some(why),
            None => by_content(&place, &path, &stat)?,
        };
        if let Some(why) = why {
            look.secrets.push((path.clone(), why));
        }
        if stat.st_mode & 0o6000 != 0 && stat.st_mode & 0o111 != 0 {
            look.setid.push(path);
        }
    }
    Ok(look)
}

fn by_name(path: &Path) -> Option<&'static str> {
    let name = path.file_name().and_then(OsStr::to_str)?.to_lowercase();
    if let Some((_, why)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(why);
    }
    if let Some((_, why)) = IN_DIRECTORIES.iter().find(|(known, _)| path.ends_with(known)) {
        return Some(why);
    }
    if name.starts_with('.') && name.ends_with("_history") {
        return Some("a history");
    }
    let host_key = (name.starts_with("ssh_host_") && name.ends_with("_key"))
        || (name.starts_with("dropbear_") && name.ends_with("_host_key"));
    if host_key {
        return Some("a host key");
    }
    let above = path.parent().and_then(Path::file_name).and_then(OsStr::to_str)?;
    // GnuPG's.
    (above == "private-keys-v1.d").then_some("a private key")
}

fn by_content(place: &Place<'_>, path: &Path, stat: &Stat) -> Result<Option<&'static str>> {
    if stat.st_size == 0 {
        return Ok(None);
    }
    let file = match lower::open(place.dir, place.name) {
        // Gone meanwhile, or something else by now.
        Err(Errno::NOENT | Errno::LOOP | Errno::INVAL) => return Ok(None),
        file => file.map_err(|e| walk::failed("open", place.path, e))?,
    };
    let mut content = Vec::new();
    let hashes = HASHES.iter().any(|known| path == Path::new(known));
    let most = if hashes { 16 << 20 } else { SEARCHED };
    file.take(most).read_to_end(&mut content).map_err(|e| walk::failed("read", place.path, e))?;
    if hashes {
        return Ok(content.split(|byte| *byte == b'\n').any(has_hash).then_some("password hashes"));
    }
    let has = |key: &&[u8]| content.windows(key.len()).any(|window| window == *key);
    Ok(KEYS.iter().any(has).then_some("a private key"))
}

/// Whether the second field of a line is a hash, locked or not. `*`, `!` and nothing are none (shadow(5)).
fn has_hash(line: &[u8]) -> bool {
    let field = line.split(|byte| *byte == b':').nth(1).unwrap_or_default();
    let hash = field.iter().position(|byte| *byte != b'!').map(|start| &field[start..]).unwrap_or_default();
    !hash.is_empty() && !hash.starts_with(b"*") && hash != b"x"
}

/// For people, one after the other: a stranger chose the names.
#[must_use]
pub fn shown(path: &Path) -> String {
    crate::changes::shown(path.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn look_at(files: &[(&str, &str)], within: &[&str]) -> Look {
        let top = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = top.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            if text.starts_with("setuid") {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
            }
        }
        let within: Vec<PathBuf> = within.iter().map(PathBuf::from).collect();
        look(walk::open(top.path()).unwrap(), &within).unwrap()
    }

    fn secret(look: &Look) -> Vec<String> {
        look.secrets.iter().map(|(path, why)| format!("{} {why}", path.display())).collect()
    }

    #[test]
    fn what_programs_write_by_themselves_is_found() {
        let look = look_at(
            &[
                ("etc/ssh/ssh_host_ed25519_key", "x"),
                ("etc/ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 AAAA"),
                ("etc/shadow", "root:*:1::\nalice:$y$abc:1::\n"),
                ("etc/ssl/site.pem", "-----BEGIN CERTIFICATE-----\nx\n-----BEGIN RSA PRIVATE KEY-----\n"),
                ("home/alice/.bash_history", ""),
                ("home/alice/.ssh/authorized_keys", "ssh-ed25519 AAAA"),
                ("home/alice/.ssh/id_ed25519", "-----BEGIN OPENSSH PRIVATE KEY-----"),
                ("home/alice/.docker/config.json", "{}"),
                ("usr/bin/tool", "setuid"),
                ("etc/nginx/nginx.conf", "user www-data;"),
            ],
            &[],
        );
        assert_eq!(
            secret(&look),
            [
                "/etc/shadow password hashes",
                "/etc/ssh/ssh_host_ed25519_key a host key",
                "/etc/ssl/site.pem a private key",
                "/home/alice/.bash_history a history",
                "/home/alice/.docker/config.json credentials",
                "/home/alice/.ssh/authorized_keys says who may log in",
                "/home/alice/.ssh/id_ed25519 a private key",
            ]
        );
        assert_eq!(look.setid, [PathBuf::from("/usr/bin/tool")]);
        assert_eq!(look.entries, 10);
    }

    #[test]
    fn a_shadow_without_hashes_is_none() {
        for (line, hash) in [
            ("root:*:1::", false),
            ("a:!:1::", false),
            ("a:!*:1::", false),
            ("a::1::", false),
            ("a:!!:1::", false),
            ("a:x:1", false),
            ("", false),
            ("a:$6$x:1", true),
            ("a:!$6$x:1", true),
            ("a:abJnggxhB/yWI:1", true),
        ] {
            assert_eq!(has_hash(line.as_bytes()), hash, "{line}");
        }
    }

    #[test]
    fn only_what_is_taken_is_looked_at() {
        let files = [
            ("etc/nginx/a", "a"),
            ("etc/shadow", "a:$6$x:1"),
            ("etc/nginx-b", "PRIVATE KEY-----"),
            ("srv/x", "x"),
        ];
        let look = look_at(&files, &["/etc/nginx", "/srv/x"]);
        assert_eq!((look.entries, secret(&look)), (2, Vec::new()));
    }
}
