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
    text: String,
    mode: u32,
    group: u32,
    /// Whether a login fails without it, so that an upper's own version is mended too.
    needed: bool,
}

/// Group `shadow` in Debian (base-passwd).
const SHADOW: u32 = 42;

impl Furniture {
    /// Decides what this jail needs, from what it would show without furniture.
    pub(super) fn choose(plan: &Plan, preview: &OwnedFd) -> Result<Self> {
        let preview = preview.try_clone().act("copy", "a descriptor")?;
        let inside = Tree::at(preview, plan.user.as_str());
        let text = |path: &str| inside.text(path).unwrap_or_default();
        let piece = |path, text, needed| Piece { path, text, mode: 0o644, group: 0, needed };
        let mut files = vec![
            piece("etc/passwd", passwd(&text("etc/passwd"), plan), true),
            piece("etc/group", group(&text("etc/group"), plan), true),
            Piece {
                mode: 0o640,
                group: SHADOW,
                ..piece("etc/shadow", shadow(&text("etc/shadow"), plan), true)
            },
            piece("etc/hosts", hosts(&text("etc/hosts"), &plan.host), false),
        ];
        if let Some(text) = &plan.resolv_conf {
            files.push(piece("etc/resolv.conf", text.clone(), false));
        }
        if plan.root && inside.exists("etc/sudoers") {
            let text = format!("{} ALL=(ALL:ALL) NOPASSWD: ALL\n", plan.user);
            files.push(Piece { mode: 0o440, ..piece("etc/sudoers.d/ojail", text, false) });
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
        for bind in &plan.binds {
            // What the bind is, file or directory, shows in the mount; a directory is the usual case, and `Tree` makes
            // the mount point where this guess is wrong.
            if fs::metadata(&bind.source).is_ok_and(|meta| meta.is_file()) {
                points.push(relative(&bind.target));
            } else {
                dirs.push((relative(&bind.target), 0o755, root));
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
                fs::write(&path, &piece.text)?;
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
            if tree.text(piece.path).as_deref() != Some(&piece.text) {
                tree.replace(piece.path, &piece.text, piece.mode, (0, piece.group))?;
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
        tree.replace(&relative(Path::new(paths::MARKER)), &text, 0o644, (0, 0))?;

        let home = relative(&plan.home);
        if plan.home_from == Home::Jail && plan.upper.is_some() && !tree.exists(&home) {
            tree.owned_dir(&home, 0o700, own)?;
            for (name, mode) in tree.files("etc/skel") {
                if let Some(text) = tree.text(&format!("etc/skel/{name}")) {
                    tree.replace(&format!("{home}/{name}"), &text, mode, own)?;
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

/// The text with the line of each of these keys (the first field) replaced, or appended.
fn with_line(text: &str, key: &str, line: &str, keep: impl Fn(&str) -> bool) -> String {
    let mut out = String::new();
    let mut there = false;
    for old in text.lines() {
        if old.split(':').next() == Some(key) {
            if there {
                continue;
            }
            there = true;
            out += if keep(old) { old } else { line };
        } else {
            out += old;
        }
        out.push('\n');
    }
    if !there {
        out += line;
        out.push('\n');
    }
    out
}

fn passwd(text: &str, plan: &Plan) -> String {
    let (uid, gid) = (plan.uid.to_string(), plan.gid.to_string());
    let line = format!(
        "{}:x:{uid}:{gid}:{}:{}:{}",
        plan.user,
        plan.gecos,
        plan.home.display(),
        plan.shell.display()
    );
    let text = if text.is_empty() { "root:x:0:0:root:/root:/bin/sh\n" } else { text };
    // A line with the right ids may be the user's own work (`chsh`): it stays.
    with_line(text, plan.user.as_str(), &line, |old| {
        let mut fields = old.split(':').skip(2);
        fields.next() == Some(&uid) && fields.next() == Some(&gid)
    })
}

fn shadow(text: &str, plan: &Plan) -> String {
    let text = if text.is_empty() { "root:*::0:99999:7:::\n" } else { text };
    // No password, never expired: sudo asks for a valid account, not for a password.
    let line = format!("{}:*::0:99999:7:::", plan.user);
    with_line(text, plan.user.as_str(), &line, |_| true)
}

fn group(text: &str, plan: &Plan) -> String {
    let mut text = if text.is_empty() { "root:x:0:\n".to_owned() } else { text.to_owned() };
    for (number, group) in plan.groups.iter().enumerate() {
        let gid = group.gid.to_string();
        // The primary group needs no member list.
        let member = if number == 0 { "" } else { plan.user.as_str() };
        let line = format!("{}:x:{gid}:{member}", group.name);
        text = with_line(&text, &group.name, &line, |old| {
            let fields: Vec<&str> = old.split(':').collect();
            let listed = fields.get(3).is_some_and(|m| m.split(',').any(|m| m == plan.user.as_str()));
            fields.get(2) == Some(&gid.as_str()) && (member.is_empty() || listed)
        });
    }
    text
}

/// The host's name must resolve inside, or sudo waits for DNS each time.
fn hosts(text: &str, host: &str) -> String {
    let known = text
        .lines()
        .filter_map(|line| line.split('#').next())
        .any(|line| line.split_whitespace().skip(1).any(|w| w == host));
    if known {
        return text.to_owned();
    }
    let text = if text.is_empty() {
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    } else {
        text
    };
    let gap = if text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{gap}127.0.1.1\t{host}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_appended_replaced_or_kept() {
        let text = "root:x:0\nbob:x:1\n";
        assert_eq!(with_line(text, "amy", "amy:x:2", |_| true), "root:x:0\nbob:x:1\namy:x:2\n");
        assert_eq!(with_line(text, "bob", "bob:x:2", |_| false), "root:x:0\nbob:x:2\n");
        assert_eq!(with_line(text, "bob", "bob:x:2", |_| true), text);
        assert_eq!(with_line("a\nbob:1\nbob:2", "bob", "bob:3", |_| false), "a\nbob:3\n");
    }

    #[test]
    fn the_hosts_name_is_added_once() {
        assert_eq!(hosts("127.0.1.1 box\n", "box"), "127.0.1.1 box\n");
        assert!(hosts("127.0.0.1 localhost # box", "box").ends_with("\n127.0.1.1\tbox\n"));
        assert!(hosts("", "box").contains("localhost"));
    }
}
