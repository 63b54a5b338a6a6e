//! The furniture of a jail: the few files in which the user and the host must appear, and the mount points.
//!
//! It is the topmost lower layer, on a tmpfs of the jail's own. So nothing of it takes space in an upper, a read-only
//! jail has it too, and the user may change all of it (`useradd`, `apt`): the change goes to the upper as usual. Only
//! where an upper already has such a file does the raise see to it that the user's line is in there.
//! Runs in `ojail-init`, as root of the jail and nobody outside.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use super::plan::Plan;
use super::tree::Tree;
use crate::config::Home;
use crate::error::{Act, Result};
use crate::paths;

/// What goes into the top layer.
pub(super) struct Furniture {
    files: Vec<Piece>,
    /// Mount points and homes: path, mode, owner.
    dirs: Vec<(String, u32, (u32, u32))>,
    /// Empty files to mount on.
    points: Vec<String>,
}

/// One file.
struct Piece {
    path: &'static str,
    content: Vec<u8>,
    mode: u32,
    group: u32,
    /// Whether a login fails without it, so that an upper's own version is mended too.
    needed: bool,
}

/// Group `shadow` in Debian (base-passwd).
const SHADOW: u32 = 42;

impl Furniture {
    /// Decides what this jail needs, from what it would show without furniture.
    ///
    /// `bind_is_dir` tells of each bind what host root found its source to be.
    pub(super) fn choose(plan: &Plan, preview: &OwnedFd, bind_is_dir: &[bool]) -> Result<Self> {
        let preview = preview.try_clone().act("copy", "a descriptor")?;
        let inside = Tree::at(preview, plan.user.as_str());
        let content = |path: &str| inside.content(path).map(Option::unwrap_or_default);
        let piece = |path, content, needed| Piece { path, content, mode: 0o644, group: 0, needed };
        let mut files = vec![
            piece("etc/passwd", passwd(&content("etc/passwd")?, plan), true),
            piece("etc/group", group(&content("etc/group")?, plan), true),
            Piece {
                mode: 0o640,
                group: SHADOW,
                ..piece("etc/shadow", shadow(&content("etc/shadow")?, plan), true)
            },
        ];
        // What a login does not need is left alone where it is something else than a plain file.
        if let Ok(old) = content("etc/hosts") {
            files.push(piece("etc/hosts", hosts(&old, &plan.host), false));
        }
        if let Some(text) = &plan.resolv_conf {
            files.push(piece("etc/resolv.conf", text.clone().into_bytes(), false));
        }
        if plan.root && inside.exists("etc/sudoers") {
            let text = format!("{} ALL=(ALL:ALL) NOPASSWD: ALL\n", plan.user);
            files.push(Piece { mode: 0o440, ..piece("etc/sudoers.d/ojail", text.into_bytes(), false) });
        }

        let root = (0, 0);
        let mut dirs: Vec<(String, u32, (u32, u32))> = ["proc", "dev", "tmp", "run", "sys"]
            .iter()
            .map(|path| ((*path).to_owned(), 0o755, root))
            .collect();
        let home = relative(&plan.home);
        // With a home in the upper, the upper itself must have it: `settle` makes it there.
        if plan.home_from == Home::Host || plan.upper.is_none() {
            dirs.push((home, 0o700, (plan.uid, plan.gid)));
        }
        let mut points = vec![relative(Path::new(&paths::shell()))];
        for (bind, is_dir) in plan.binds.iter().zip(bind_is_dir) {
            if *is_dir {
                dirs.push((relative(&bind.target), 0o755, root));
            } else {
                points.push(relative(&bind.target));
            }
        }
        // Where the jail has something else than a directory in the way (usually a symbolic link, like /home to
        // another place), the furniture must not hide it: the mount will be refused, with a sentence.
        dirs.retain(|(path, ..)| !in_the_way(&inside, path));
        points.retain(|path| !in_the_way(&inside, path));
        Ok(Self { files, dirs, points })
    }

    /// Writes it as a layer below `dir`, which is on the jail's own tmpfs, where nobody else can be.
    pub(super) fn place_lower(&self, dir: &str) -> Result<()> {
        let base = Path::new(dir);
        for piece in &self.files {
            let path = base.join(piece.path);
            let place = || -> io::Result<()> {
                fs::create_dir_all(path.parent().unwrap_or(base))?;
                fs::write(&path, &piece.content)?;
                chown(&path, Some(0), Some(piece.group))?;
                fs::set_permissions(&path, fs::Permissions::from_mode(piece.mode))
            };
            place().act("furnish", path.as_path())?;
        }
        for (path, mode, owner) in &self.dirs {
            let path = base.join(path);
            let place = || -> io::Result<()> {
                fs::create_dir_all(&path)?;
                chown(&path, Some(owner.0), Some(owner.1))?;
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode))
            };
            place().act("furnish", path.as_path())?;
        }
        for path in &self.points {
            let path = base.join(path);
            let place = || -> io::Result<()> {
                fs::create_dir_all(path.parent().unwrap_or(base))?;
                fs::write(&path, "")
            };
            place().act("furnish", path.as_path())?;
        }
        Ok(())
    }

    /// Finishes inside the mounted jail: mends needed files that the upper shadows, makes `/run`'s inhabitants and a
    /// home in the upper.
    pub(super) fn settle(&self, plan: &Plan, tree: &Tree) -> Result<()> {
        for piece in self.files.iter().filter(|piece| piece.needed) {
            if tree.content(piece.path)?.as_ref() != Some(&piece.content) {
                tree.replace(piece.path, &piece.content, piece.mode, (0, piece.group))?;
            }
        }
        let own = (plan.uid, plan.gid);
        tree.owned_dir("run/lock", 0o1777, (0, 0))?;
        tree.owned_dir(relative(&plan.runtime_dir()).as_str(), 0o700, own)?;
        let marker = Marker {
            user: plan.user.to_string(),
            profile: plan.profile.clone(),
            shell: plan.profile_shell.clone(),
        };
        let text = serde_json::to_string(&marker).map_err(io::Error::from).act("write", paths::MARKER)?;
        tree.replace(&relative(Path::new(paths::MARKER)), text.as_bytes(), 0o644, (0, 0))?;

        let home = relative(&plan.home);
        if plan.home_from == Home::Jail && plan.upper.is_some() && !tree.exists(&home) {
            tree.owned_dir(&home, 0o700, own)?;
            for (name, mode) in tree.files("etc/skel") {
                if let Ok(Some(content)) = tree.content(&format!("etc/skel/{name}")) {
                    tree.replace(&format!("{home}/{name}"), &content, mode, own)?;
                }
            }
        }
        Ok(())
    }
}

/// What a jail says of itself, in [`paths::MARKER`].
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Marker {
    /// Whose jail.
    pub user: String,
    /// Its profile.
    pub profile: String,
    /// The shell that the profile insists on.
    pub shell: Option<std::path::PathBuf>,
}

fn relative(path: &Path) -> String {
    path.strip_prefix("/").unwrap_or(path).display().to_string()
}

/// Whether the jail has anything but directories on this path.
fn in_the_way(inside: &Tree, path: &str) -> bool {
    let mut sofar = String::new();
    for part in path.split('/') {
        if !sofar.is_empty() {
            sofar.push('/');
        }
        sofar.push_str(part);
        if !inside.exists(&sofar) {
            return false;
        }
        if sofar != path && !inside.is_dir(&sofar) {
            return true;
        }
    }
    // The last part: a link would be followed by nobody, a file may be a mount point.
    inside.is_link(path)
}

/// The content with the line of this key (the first field) replaced or kept, or else appended. In bytes: what others wrote
/// in whatever encoding stays as it is.
fn with_line(content: &[u8], key: &str, line: &str, keep: impl Fn(&[&[u8]]) -> bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut there = false;
    let body = content.strip_suffix(b"\n").unwrap_or(content);
    for old in body.split(|b| *b == b'\n').filter(|_| !content.is_empty()) {
        let fields: Vec<&[u8]> = old.split(|b| *b == b':').collect();
        if fields[0] == key.as_bytes() {
            if there {
                continue;
            }
            there = true;
            out.extend_from_slice(if keep(&fields) { old } else { line.as_bytes() });
        } else {
            out.extend_from_slice(old);
        }
        out.push(b'\n');
    }
    if !there {
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');
    }
    out
}

fn or<'a>(content: &'a [u8], default: &'a str) -> &'a [u8] {
    if content.is_empty() { default.as_bytes() } else { content }
}

fn passwd(content: &[u8], plan: &Plan) -> Vec<u8> {
    let (uid, gid) = (plan.uid.to_string(), plan.gid.to_string());
    let line = format!(
        "{}:x:{uid}:{gid}:{}:{}:{}",
        plan.user,
        plan.gecos,
        plan.home.display(),
        plan.shell.display()
    );
    // A line with the right ids may be the user's own work (`chsh`): it stays.
    with_line(or(content, "root:x:0:0:root:/root:/bin/sh\n"), plan.user.as_str(), &line, |old| {
        old.get(2..4) == Some(&[uid.as_bytes(), gid.as_bytes()])
    })
}

fn shadow(content: &[u8], plan: &Plan) -> Vec<u8> {
    // No password, never expired: sudo asks for a valid account, not for a password.
    let line = format!("{}:*::0:99999:7:::", plan.user);
    with_line(or(content, "root:*::0:99999:7:::\n"), plan.user.as_str(), &line, |_| true)
}

fn group(content: &[u8], plan: &Plan) -> Vec<u8> {
    let mut content = or(content, "root:x:0:\n").to_owned();
    for (number, group) in plan.groups.iter().enumerate() {
        let gid = group.gid.to_string();
        // The primary group needs no member list.
        let member = if number == 0 { "" } else { plan.user.as_str() };
        let line = format!("{}:x:{gid}:{member}", group.name);
        content = with_line(&content, &group.name, &line, |old| {
            let members = old.get(3).copied().unwrap_or_default();
            let listed = members.split(|b| *b == b',').any(|name| name == plan.user.as_str().as_bytes());
            old.get(2) == Some(&gid.as_bytes()) && (member.is_empty() || listed)
        });
    }
    content
}

/// The host's name must resolve inside, or sudo waits for DNS each time.
fn hosts(content: &[u8], host: &str) -> Vec<u8> {
    let text = String::from_utf8_lossy(content);
    let names = text
        .lines()
        .filter_map(|line| line.split('#').next())
        .flat_map(|line| line.split_whitespace().skip(1));
    if names.into_iter().any(|name| name == host) {
        return content.to_owned();
    }
    let mut out = or(content, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n").to_owned();
    if !out.ends_with(b"\n") {
        out.push(b'\n');
    }
    out.extend_from_slice(format!("127.0.1.1\t{host}\n").as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_appended_replaced_or_kept() {
        let with = |text: &str, key, line, keep: bool| {
            String::from_utf8(with_line(text.as_bytes(), key, line, |_| keep)).unwrap()
        };
        let text = "root:x:0\nbob:x:1\n";
        assert_eq!(with(text, "amy", "amy:x:2", true), "root:x:0\nbob:x:1\namy:x:2\n");
        assert_eq!(with(text, "bob", "bob:x:2", false), "root:x:0\nbob:x:2\n");
        assert_eq!(with(text, "bob", "bob:x:2", true), text);
        assert_eq!(with("a\nbob:1\nbob:2", "bob", "bob:3", false), "a\nbob:3\n");
        assert_eq!(with("", "bob", "bob:3", false), "bob:3\n");
    }

    #[test]
    fn bytes_of_other_encodings_stay() {
        assert_eq!(with_line(b"j\xf6rg:x\n\n", "amy", "amy:x", |_| true), b"j\xf6rg:x\n\namy:x\n");
    }

    #[test]
    fn the_hosts_name_is_added_once() {
        let hosts = |text: &str| String::from_utf8(hosts(text.as_bytes(), "box")).unwrap();
        assert_eq!(hosts("127.0.1.1 box\n"), "127.0.1.1 box\n");
        assert!(hosts("127.0.0.1 localhost # box").ends_with("\n127.0.1.1\tbox\n"));
        assert!(hosts("").contains("localhost"));
    }
}
