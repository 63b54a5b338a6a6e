//! Debian trees and layers, built once and cached in `$OJAIL_LAB_CACHE` or the workspace's `target/lab`.
//!
//! Below the cache there is a directory for each suite: the one that the machine runs, or `$OJAIL_LAB_SUITE`.
//! Beside each thing, `NAME.made-of` says from what it was made; when the recipe here changes, it is made
//! again. Test processes run side by side, so each thing is made under a lock, under another name, and
//! renamed when it is complete.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::MountFlags;
use rustix::thread::UnshareFlags;

use crate::files::{self, say};
use crate::namespaces;
use crate::root::mount_at;

/// How something in the cache is made.
#[derive(Debug)]
enum Recipe {
    /// A whole Debian: the packages besides the essential ones, and a script to finish it, run with the
    /// tree as `$1`.
    Debian {
        packages: &'static str,
        finish: &'static str,
    },
    /// What installing packages adds to another tree, as overlayfs writes it.
    Layer {
        on: &'static str,
        packages: &'static str,
    },
    /// Another tree, packed into a file.
    Erofs {
        of: &'static str,
    },
    Squashfs {
        of: &'static str,
    },
}

const RECIPES: [(&str, Recipe); 6] = [
    (
        "host",
        Recipe::Debian {
            packages: "openssh-server openssh-client openssh-sftp-server sudo cron login passwd pamtester \
                       dropbear-bin rsync git netcat-openbsd socat iproute2 procps libpam-modules libpam-runtime \
                       util-linux mount strace uidmap bubblewrap python3-minimal",
            finish: HOST,
        },
    ),
    (
        "debian",
        Recipe::Debian { packages: "openssh-sftp-server sudo procps", finish: NOTHING_OF_THE_MACHINE },
    ),
    ("nginx", Recipe::Layer { on: "debian", packages: "nginx-light" }),
    (
        "tools",
        Recipe::Layer {
            on: "debian",
            packages: "rsync git netcat-openbsd iproute2 strace python3-minimal socat tmux util-linux-extra",
        },
    ),
    ("debian.erofs", Recipe::Erofs { of: "debian" }),
    ("debian.squashfs", Recipe::Squashfs { of: "debian" }),
];

/// mmdebstrap copies the machine's host name and resolver, which are nobody's business.
const NOTHING_OF_THE_MACHINE: &str = r#"
    echo debian > "$1/etc/hostname"
    : > "$1/etc/resolv.conf"
"#;

/// Hosts are many and short-lived, so they share their SSH keys. They are on no network.
const HOST: &str = r#"
    echo lab > "$1/etc/hostname"
    : > "$1/etc/resolv.conf"
    printf '127.0.0.1 localhost\n127.0.1.1 lab\n' > "$1/etc/hosts"
    mkdir -p -m 700 "$1/root/.ssh"
    chroot "$1" ssh-keygen -q -t ed25519 -N '' -C lab -f /root/.ssh/id_ed25519
    chroot "$1" dropbearconvert openssh dropbear /root/.ssh/id_ed25519 /root/.ssh/id_dropbear
    cat > "$1/root/.ssh/config" <<END
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
BatchMode yes
LogLevel ERROR
END
"#;

/// Installs its arguments, starts no service, and leaves no trace but the packages.
const INSTALL: &str = r#"
    set -e
    mount -t proc proc /proc
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
    apt-get update -q
    apt-get install -y -q --no-install-recommends "$@"
    apt-get clean
    rm /usr/sbin/policy-rc.d
    find /var/lib/apt/lists /var/cache/apt -type f ! -name lock -delete
"#;

/// The tree, layer or packed image of that name: `host`, `debian`, `nginx`, `tools`, `debian.erofs` or
/// `debian.squashfs`. Built first if need be, which takes some seconds and the network.
pub fn tree(name: &str) -> PathBuf {
    let suite = suite();
    let path = files::directory("OJAIL_LAB_CACHE", "").join(&suite).join(name);
    let made_of = beside(&path, "made-of");
    let recipe = key(&suite, name);
    let is_fresh = || fs::read_to_string(&made_of).is_ok_and(|was| was == recipe);
    if is_fresh() {
        return path;
    }

    files::make_directory(path.parent().expect("the suite's directory is above"));
    let _building = files::lock(&beside(&path, "lock"));
    // Somebody else may have built it while this process waited.
    if is_fresh() {
        return path;
    }
    let new = beside(&path, "new");
    remove(&new);
    Build { suite: &suite, name, path: &new, log: beside(&path, "log") }.run();
    let _ = fs::remove_file(&made_of);
    remove(&path);
    fs::rename(&new, &path).expect("both names are in one directory");
    files::write(&made_of, recipe);
    path
}

fn suite() -> String {
    if let Ok(suite) = std::env::var("OJAIL_LAB_SUITE") {
        return suite;
    }
    let release = fs::read_to_string("/etc/os-release").expect("every Debian has /etc/os-release");
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.expect("this is no Debian release; set OJAIL_LAB_SUITE").trim_matches('"').to_owned()
}

fn recipe(name: &str) -> &'static Recipe {
    let found = RECIPES.iter().find(|(known, _)| *known == name);
    &found.unwrap_or_else(|| panic!("there is no recipe for {name}")).1
}

/// Everything that decides what comes out.
fn key(suite: &str, name: &str) -> String {
    let recipe = recipe(name);
    let below = match recipe {
        Recipe::Debian { .. } => format!("{suite}\n"),
        Recipe::Layer { on, .. } => format!("{}{INSTALL}\n", key(suite, on)),
        Recipe::Erofs { of } | Recipe::Squashfs { of } => key(suite, of),
    };
    format!("{below}{recipe:?}\n")
}

/// `path.end`, also where the path has a dot already.
fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(end);
    name.into()
}

fn remove(path: &Path) {
    let status = Command::new("rm").arg("-rf").arg(path).status();
    assert!(status.is_ok_and(|status| status.success()), "cannot remove {}", path.display());
}

struct Build<'a> {
    suite: &'a str,
    name: &'a str,
    path: &'a Path,
    log: PathBuf,
}

impl Build<'_> {
    fn run(&self) {
        // Before the lower tree is built, which says so itself.
        let below = match recipe(self.name) {
            Recipe::Debian { .. } => None,
            Recipe::Layer { on: below, .. }
            | Recipe::Erofs { of: below }
            | Recipe::Squashfs { of: below } => Some(tree(below)),
        };
        say(&format!("lab: building {} ({}), once …", self.name, self.suite));
        let log = File::create(&self.log).expect("the cache can be written");
        let below = below.as_deref();
        match (recipe(self.name), below) {
            (Recipe::Debian { packages, finish }, _) => self.debian(packages, finish, &log),
            (Recipe::Layer { packages, .. }, Some(below)) => self.layer(below, packages, &log),
            (Recipe::Erofs { .. }, Some(below)) => {
                // Clusters of 64 KiB pack twice as tight as the default.
                let mut mkfs = Command::new("mkfs.erofs");
                self.call(mkfs.args(["-zlz4hc", "-C65536"]).arg(self.path).arg(below), &log);
            }
            (Recipe::Squashfs { .. }, Some(below)) => {
                let mut mksquashfs = Command::new("mksquashfs");
                self.call(mksquashfs.arg(below).arg(self.path).args(["-comp", "zstd", "-no-progress"]), &log);
            }
            (_, None) => unreachable!("only a whole Debian stands on nothing"),
        }
    }

    fn debian(&self, packages: &str, finish: &str, log: &File) {
        let packages = packages.split_whitespace().collect::<Vec<_>>().join(",");
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap.args(["--variant=minbase", &format!("--include={packages}")]);
        self.call(mmdebstrap.arg(self.suite).arg(self.path), log);
        let mut sh = Command::new("/bin/sh");
        self.call(sh.args(["-e", "-c", finish, "sh"]).arg(self.path), log);
    }

    /// In a temporary overlay, whose upper becomes the layer. With `userxattr`, because jails mount it so:
    /// another kind of overlay would not understand the marks in it.
    fn layer(&self, below: &Path, packages: &str, log: &File) {
        let work = beside(self.path, "work");
        let root = beside(self.path, "root");
        remove(&work);
        for path in [self.path, &work, &root] {
            files::make_directory(path);
        }
        let mut install = Command::new("chroot");
        install.arg(&root).args(["/bin/sh", "-c", INSTALL, "sh"]).args(packages.split_whitespace());
        install
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DEBIAN_FRONTEND", "noninteractive");
        namespaces::in_new(UnshareFlags::NEWPID | UnshareFlags::NEWIPC, || {
            let options = format!(
                "lowerdir={},upperdir={},workdir={},userxattr",
                below.display(),
                self.path.display(),
                work.display()
            );
            mount_at("overlay", &root, "overlay", MountFlags::empty(), &options);
            // The machine's resolver, for as long as packages are fetched; it is no part of the layer.
            mount_bind(Path::new("/etc/resolv.conf"), &root.join("etc/resolv.conf"));
            self.call(&mut install, log);
        });
        remove(&work);
        remove(&root);
    }

    /// Runs a tool whose words go to the log, of which the end is shown if it fails.
    fn call(&self, tool: &mut Command, log: &File) {
        let stream = || log.try_clone().expect("a descriptor can be copied");
        let name = tool.get_program().to_string_lossy().into_owned();
        let status = tool.stdin(Stdio::null()).stdout(stream()).stderr(stream()).status();
        let status =
            status.unwrap_or_else(|error| panic!("cannot run {name}: {error}; see tests/lab/install-needs"));
        if !status.success() {
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            let end = lines[lines.len().saturating_sub(25)..].join("\n");
            panic!("{name} failed ({status}) for {}; the end of {}:\n{end}", self.name, self.log.display());
        }
    }
}

fn mount_bind(source: &Path, target: &Path) {
    if !target.exists() {
        return;
    }
    rustix::mount::mount_bind(source, target)
        .unwrap_or_else(|error| panic!("cannot bind {} to {}: {error}", source.display(), target.display()));
}
