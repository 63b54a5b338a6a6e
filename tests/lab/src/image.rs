//! Debian trees and layers, built once and cached in `$OJAIL_LAB_CACHE` or the workspace's `target/lab`.
//!
//! Below the cache there is a directory for each suite: the one that the machine runs, or `$OJAIL_LAB_SUITE`.
//! Beside each thing, `NAME.made-of` says from what it was made; when the recipe here changes, it is made
//! again. Test processes run side by side, so each thing is made under a lock, under another name, and
//! renamed when it is complete.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use rustix::mount::{MountFlags, mount_bind};
use rustix::thread::UnshareFlags;

use crate::files::{self, say};
use crate::mirror;
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
    /// A whole Debian made from another: more packages, and a script like the one above.
    More {
        than: &'static str,
        packages: &'static str,
        finish: &'static str,
    },
    /// Another tree, packed into a file.
    Erofs {
        of: &'static str,
    },
    Squashfs {
        of: &'static str,
    },
    /// Another tree on a disk, for machines.
    Disk {
        of: &'static str,
    },
    /// The packages that a Debian with these is made of, as a mirror has them.
    Mirror {
        packages: &'static str,
    },
}

impl Recipe {
    /// What must be there first.
    fn below(&self) -> Option<&'static str> {
        match self {
            Self::Debian { .. } | Self::Mirror { .. } => None,
            Self::Layer { on: below, .. }
            | Self::More { than: below, .. }
            | Self::Erofs { of: below }
            | Self::Squashfs { of: below }
            | Self::Disk { of: below } => Some(below),
        }
    }
}

const RECIPES: [(&str, Recipe); 17] = [
    (
        "host",
        Recipe::Debian {
            packages: "openssh-server openssh-client openssh-sftp-server sudo e2fsprogs cron login passwd pamtester \
                       dropbear-bin rsync git netcat-openbsd socat iproute2 procps libpam-modules libpam-runtime \
                       util-linux mount strace uidmap bubblewrap python3-minimal passt nftables \
                       erofs-utils squashfs-tools",
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
    // What people run: programs in Go (fzf), Rust (rg), JavaScript, Java, Python and C, and what debugs them.
    (
        "languages",
        Recipe::Layer {
            on: "debian",
            packages: "gdb strace fzf ripgrep nodejs default-jre-headless python3-minimal libpython3-stdlib",
        },
    ),
    ("debian.erofs", Recipe::Erofs { of: "debian" }),
    ("debian.squashfs", Recipe::Squashfs { of: "debian" }),
    ("nginx.squashfs", Recipe::Squashfs { of: "nginx" }),
    (
        "machine",
        Recipe::More {
            than: "host",
            packages: "systemd-sysv libpam-systemd dbus linux-image-cloud-amd64 at quota xfsprogs apparmor",
            finish: MACHINE,
        },
    ),
    // A registry, and what speaks to it.
    ("containers", Recipe::More { than: "host", packages: "skopeo umoci docker-registry zstd", finish: "" }),
    // What makes file systems, for disks in files.
    ("disks", Recipe::More { than: "host", packages: "xfsprogs btrfs-progs", finish: "" }),
    // What builds layers.
    ("builder", Recipe::More { than: "host", packages: "mmdebstrap debootstrap", finish: "" }),
    (
        "mirror",
        // The last three are for what a test installs with a user, a service and capabilities of its own.
        Recipe::Mirror {
            packages: "openssh-sftp-server,sudo,procps,nginx-light,iputils-ping,libcap2-bin,cron",
        },
    ),
    ("machine.ext4", Recipe::Disk { of: "machine" }),
    ("debian.ext4", Recipe::Disk { of: "debian" }),
    ("nginx.ext4", Recipe::Disk { of: "nginx" }),
    ("tools.ext4", Recipe::Disk { of: "tools" }),
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

/// A machine boots from its disk without an initrd: Debian's cloud kernel has NVMe and ext4 built in. What is one
/// machine's own comes on a second disk, and is copied to the first before systemd starts. All other disks go by their
/// labels. If one is missing, the end of `init` is a panic of the kernel's.
///
/// Root has a way in that no PAM file, `sshd_config` or logind of a test is in the way of.
const MACHINE: &str = r#"
    cd "$1"
    mv boot/vmlinuz-* boot/vmlinuz
    rm -f boot/initrd.img* boot/System.map* initrd.img* vmlinuz*
    cp root/.ssh/id_ed25519.pub root/.ssh/authorized_keys
    cat >> root/.ssh/config <<END
Host machine
HostName 127.0.0.1
Port 2022
ControlPath /run/machine.ssh
END

    mkdir -p usr/lib/lab etc/systemd/journald.conf.d
    cat > usr/lib/lab/init <<'END'
#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t devtmpfs dev /dev
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
modprobe -a virtio_pci virtio_blk virtio_net
if [ ! -e /usr/lib/lab/done ]; then
    mount -r LABEL=changes /mnt || exit
    own() { cp -dR --preserve=mode,ownership,timestamps,links "/mnt/$1/." "$2"; }
    own upper / && own home /home && own var-lib-ojail /var/lib/ojail && : > /usr/lib/lab/done
    umount /mnt
fi
mount --all --fstab /usr/lib/lab/fstab || exit
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2
exec /sbin/init
END
    chmod 755 usr/lib/lab/init
    cat > etc/systemd/system/lab-root.service <<END
[Unit]
Description=The way in for root of the tests
After=network.target
[Service]
RuntimeDirectory=sshd
RuntimeDirectoryPreserve=yes
ExecStart=/usr/sbin/sshd -D -f /dev/null -o Port=2022 -o UsePAM=no -o PidFile=none -o MaxSessions=100 -o UseDNS=no
END
    cat > etc/systemd/system/lab-up.service <<END
[Unit]
Description=Tells the test that the machine is up
After=ssh.service lab-root.service cron.service atd.service systemd-logind.service systemd-user-sessions.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo up > /dev/ttyS1'
END
    for unit in root up; do
        ln -s "../lab-$unit.service" "etc/systemd/system/multi-user.target.wants/lab-$unit.service"
    done
    printf '[Journal]\nStorage=volatile\n' > etc/systemd/journald.conf.d/lab.conf
    # What no test looks at, and takes time under emulation. Above all the look at every device there is.
    for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
        e2scrub_reap.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount systemd-pstore.service \
        systemd-random-seed.service systemd-update-utmp-runlevel.service getty.target serial-getty@.service \
        modprobe@drm.service modprobe@efi_pstore.service modprobe@dm_mod.service modprobe@loop.service \
        modprobe@configfs.service modprobe@fuse.service sys-kernel-config.mount sys-fs-fuse-connections.mount \
        sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount systemd-modules-load.service \
        systemd-udev-trigger.service systemd-sysusers.service systemd-journal-flush.service; do
        ln -sf /dev/null "etc/systemd/system/$unit"
    done
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

/// Makes a disk of a name and a tree. It takes as much of the machine's disk as is in it.
const MAKE_DISK: &str = r#"mkfs.ext4 -F -L "$1" -d "$2" "$3" 2G"#;

/// How much of a log explains a failure.
const SHOWN_LINES: usize = 30;

/// The tree, layer or packed image of that name: `host`, `debian`, `nginx`, `tools`, `machine`, `containers`, `builder`, `mirror`,
/// packed as `debian.erofs`, `debian.squashfs` or `nginx.squashfs`, or a machine's disk: `machine.ext4`,
/// `debian.ext4`, `nginx.ext4` or `tools.ext4`. Built first if need be, which takes some seconds and the network.
pub fn tree(name: &str) -> PathBuf {
    let suite = suite();
    let path = files::directory("OJAIL_LAB_CACHE", "").join(&suite).join(name);
    let made_of = beside(&path, "made-of");
    let key = key(&suite, name);
    let is_fresh = || fs::read_to_string(&made_of).is_ok_and(|was| was == key);
    if is_fresh() {
        return path;
    }

    files::make_directory(path.parent().expect("the suite's directory is above"));
    if let Some(below) = recipe(name).below() {
        tree(below);
    }
    let _building = files::lock(&beside(&path, "lock"));
    // Somebody else may have built it while this process waited.
    if is_fresh() {
        return path;
    }
    let new = beside(&path, "new");
    remove(&new);
    say(&format!("lab: building {name} ({suite}), once …"));
    Build { suite: &suite, path: &new, log: beside(&path, "log") }.run(recipe(name));
    let _ = fs::remove_file(&made_of);
    remove(&path);
    fs::rename(&new, &path).expect("both names are in one directory");
    files::write(&made_of, key);
    path
}

pub(crate) fn suite() -> String {
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
    let below = recipe.below().map(|below| key(suite, below));
    let how = match recipe {
        Recipe::Layer { .. } | Recipe::More { .. } => INSTALL,
        Recipe::Disk { .. } => MAKE_DISK,
        Recipe::Mirror { .. } => mirror::MAKE,
        _ => "",
    };
    format!("{}{recipe:?}{how}\n", below.unwrap_or_else(|| format!("{suite}\n")))
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

/// One thing under way, and where what its tools print goes.
struct Build<'a> {
    suite: &'a str,
    path: &'a Path,
    log: PathBuf,
}

impl Build<'_> {
    fn run(&self, recipe: &Recipe) {
        files::write(&self.log, "");
        match recipe {
            Recipe::Debian { packages, finish } => self.debian(packages, finish),
            Recipe::Layer { on, packages } => self.layer(&tree(on), packages),
            Recipe::More { than, packages, finish } => self.more(&tree(than), packages, finish),
            // Clusters of 64 KiB pack much tighter than the default of one page.
            Recipe::Erofs { of } => {
                self.call(
                    Command::new("mkfs.erofs").args(["-zlz4hc", "-C65536"]).arg(self.path).arg(tree(of)),
                );
            }
            Recipe::Squashfs { of } => {
                self.call(Command::new("mksquashfs").arg(tree(of)).arg(self.path).args(["-comp", "zstd"]));
            }
            Recipe::Mirror { packages } => {
                let make = ["-e", "-c", mirror::MAKE, "sh", self.suite];
                self.call(Command::new("/bin/sh").args(make).arg(self.path).arg(packages));
            }
            Recipe::Disk { of } => {
                self.call(
                    Command::new("/bin/sh").args(["-c", MAKE_DISK, "sh", of]).arg(tree(of)).arg(self.path),
                );
            }
        }
    }

    fn debian(&self, packages: &str, finish: &str) {
        let packages = packages.split_whitespace().collect::<Vec<_>>().join(",");
        let include = format!("--include={packages}");
        self.call(
            Command::new("mmdebstrap").args(["--variant=minbase", &include, self.suite]).arg(self.path),
        );
        self.call(Command::new("/bin/sh").args(["-e", "-c", finish, "sh"]).arg(self.path));
    }

    /// Installs into an overlay, and keeps its upper.
    fn layer(&self, lower: &Path, packages: &str) {
        let scratch = beside(self.path, "scratch");
        let [root, work] = ["root", "work"].map(|name| scratch.join(name));
        for directory in [self.path, &root, &work] {
            files::make_directory(directory);
        }
        namespaces::in_new(UnshareFlags::NEWIPC, || {
            // Jails mount with userxattr too, and would not understand marks that are root's only.
            let options = format!(
                "lowerdir={},upperdir={},workdir={},userxattr",
                lower.display(),
                self.path.display(),
                work.display()
            );
            mount_at("overlay", &root, "overlay", MountFlags::empty(), &options);
            self.install(&root, packages);
        });
        remove(&scratch);
    }

    /// Installs into a copy.
    fn more(&self, than: &Path, packages: &str, finish: &str) {
        self.call(Command::new("cp").args(["-a", "--reflink=auto"]).arg(than).arg(self.path));
        namespaces::in_new(UnshareFlags::NEWIPC, || self.install(self.path, packages));
        self.call(Command::new("/bin/sh").args(["-e", "-c", finish, "sh"]).arg(self.path));
    }

    /// Adds packages to a tree, by a thread in namespaces of its own.
    fn install(&self, root: &Path, packages: &str) {
        // What lands here is not to stay.
        for name in ["run", "tmp"] {
            mount_at("tmpfs", &root.join(name), "tmpfs", MountFlags::empty(), "");
        }
        mount_bind("/etc/resolv.conf", root.join("etc/resolv.conf")).expect("the tree has a resolv.conf");
        // So that a daemon which starts all the same ends with the installation.
        namespaces::next_is_pid_1();
        self.call(
            Command::new("chroot")
                .arg(root)
                .args(["/bin/sh", "-c", INSTALL, "sh"])
                .args(packages.split_whitespace())
                .env("DEBIAN_FRONTEND", "noninteractive"),
        );
    }

    fn call(&self, command: &mut Command) {
        let open = || File::options().append(true).open(&self.log).expect("the cache can be written");
        let status = command.stdin(Stdio::null()).stdout(open()).stderr(open()).status();
        if status.as_ref().is_ok_and(ExitStatus::success) {
            return;
        }
        let tool = command.get_program().to_string_lossy().into_owned();
        let what = match status {
            Ok(status) => format!("{tool} failed ({status})"),
            Err(error) => format!("cannot run {tool} ({error}), see tests/lab/install-needs"),
        };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines = log.lines().collect::<Vec<_>>();
        let tail = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
        panic!("{what}; the end of {}:\n{tail}", self.log.display());
    }
}
