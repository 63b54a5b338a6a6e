//! A host's root file system: what it sees as `/`, and nothing else of the machine.
//!
//! Built from outside by a thread in the host's new mount namespace, then pivoted to, so that the host's
//! mount table begins at its own root and the machine's mounts are out of reach.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};
use rustix::process::{chdir, pivot_root};

use crate::files;
use crate::rundir::RunDir;
use crate::setup::Setup;

const LOWERDIRS: &str = "srv/overlay/lowerdirs";

/// As many as losetup could ask for in one test, on a machine that runs some.
const LOOP_DEVICES: u32 = 64;

/// The character devices of any Linux: name, major, minor.
const DEVICES: [(&str, u32, u32); 8] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
    ("loop-control", 10, 237),
    ("net/tun", 10, 200),
];

/// Leaves the calling thread in the host's root. `/proc` is still missing: only PID 1 can mount it.
pub(crate) fn raise(setup: &Setup, tree: &Path, run: &RunDir) {
    let root = stack(tree, run);
    storage(setup, &root, run);
    layers(setup, &root);
    temporary(&root);
    sys(&root);
    devices(&root.join("dev"));
    pivot(&root);
}

/// The cached tree, with the host's own changes on top.
fn stack(tree: &Path, run: &RunDir) -> PathBuf {
    let root = run.directory("root");
    let upper = run.directory("upper");
    let work = run.directory("work");
    // Volatile: nobody will want these changes after a crash, so nobody waits for the disk.
    let options = format!(
        "lowerdir={},upperdir={},workdir={},volatile",
        tree.display(),
        upper.display(),
        work.display()
    );
    mount_at("overlay", &root, "overlay", MountFlags::empty(), &options);
    root
}

/// What must not lie on an overlay, or should not: jails' storage, homes, ojail's state.
fn storage(setup: &Setup, root: &Path, run: &RunDir) {
    for name in ["srv/overlay", "home", "var/lib/ojail"] {
        let target = root.join(name);
        files::make_directory(&target);
        match &setup.small_disk {
            Some(size) if name == "srv/overlay" => small_disk(size, &run.path().join("disk.ext4"), &target),
            _ => bind(&run.directory(&name.replace('/', "-")), &target),
        }
    }
    let private = Permissions::from_mode(0o700);
    files::make_directory(&root.join(LOWERDIRS));
    for name in ["var/lib/ojail", LOWERDIRS] {
        fs::set_permissions(root.join(name), private.clone()).expect("a directory just made is ours");
    }
}

fn small_disk(size: &str, image: &Path, target: &Path) {
    // A loop device made by mount ends with the mount.
    for (tool, before, after) in
        [("mkfs.ext4", ["-q", "-F"], size.as_ref()), ("mount", ["-o", "loop"], target)]
    {
        let output = Command::new(tool).args(before).arg(image).arg(after).output();
        let output =
            output.unwrap_or_else(|error| panic!("cannot run {tool}: {error}; see tests/lab/install-needs"));
        assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Shared with the cache and all other hosts, therefore read-only; or copied.
fn layers(setup: &Setup, root: &Path) {
    for (name, content) in &setup.own_layers {
        let target = root.join(LOWERDIRS).join(name);
        let copied = Command::new("cp").args(["-a", "--reflink=auto"]).arg(content).arg(&target).status();
        assert!(copied.is_ok_and(|status| status.success()), "cannot copy the layer {name}");
    }
    for (name, content) in &setup.layers {
        let target = root.join(LOWERDIRS).join(name);
        if content.is_dir() {
            files::make_directory(&target);
        } else {
            files::write(&target, "");
        }
        bind(content, &target);
        mount_remount(&target, MountFlags::BIND | MountFlags::RDONLY, "")
            .unwrap_or_else(|error| panic!("cannot make the layer {name} read-only: {error}"));
    }
}

fn temporary(root: &Path) {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount_at("tmpfs", &root.join("run"), "tmpfs", flags, "mode=755");
    mount_at("tmpfs", &root.join("tmp"), "tmpfs", flags, "mode=1777");
    // sshd insists on it, and is started without the unit that would make it.
    files::make_directory(&root.join("run/sshd"));
}

/// Whole, for the kernel shows a jail no more of it than the host has; and read-only, for it is the machine's.
fn sys(root: &Path) {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    mount_at("sysfs", &root.join("sys"), "sysfs", flags, "");
}

fn devices(dev: &Path) {
    mount_at("tmpfs", dev, "tmpfs", MountFlags::NOSUID, "mode=755");
    files::make_directory(&dev.join("net"));
    for (name, major, minor) in DEVICES {
        device(&dev.join(name), FileType::CharacterDevice, major, minor);
    }
    for minor in 0..LOOP_DEVICES {
        device(&dev.join(format!("loop{minor}")), FileType::BlockDevice, 7, minor);
    }
    for name in ["pts", "shm"] {
        files::make_directory(&dev.join(name));
    }
    let nothing_runs = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_at("devpts", &dev.join("pts"), "devpts", nothing_runs, "newinstance,ptmxmode=666,mode=620,gid=5");
    mount_at("tmpfs", &dev.join("shm"), "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, "mode=1777");
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, dev.join(name)).expect("a new tmpfs takes a link");
    }
}

fn device(path: &Path, kind: FileType, major: u32, minor: u32) {
    mknodat(CWD, path, kind, Mode::empty(), makedev(major, minor))
        .unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
    // Apart from mknod, which would leave out what the umask holds.
    let mode = if kind == FileType::BlockDevice { 0o660 } else { 0o666 };
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("a device just made is ours");
}

fn pivot(root: &Path) {
    chdir(root).expect("the host's root is a directory");
    // Stacks the old root on the new one, so that one unmount leaves nothing of it.
    pivot_root(".", ".").unwrap_or_else(|error| panic!("cannot pivot to the host's root: {error}"));
    unmount(".", UnmountFlags::DETACH).expect("the old root can be detached");
    chdir("/").expect("there is a root");
}

fn bind(source: &Path, target: &Path) {
    mount_bind(source, target)
        .unwrap_or_else(|error| panic!("cannot bind {} to {}: {error}", source.display(), target.display()));
}

/// Mounts, or tells what couldn't be. Also for [`crate::image`], which stacks trees to add packages.
pub(crate) fn mount_at(source: &str, target: &Path, kind: &str, flags: MountFlags, options: &str) {
    let options = std::ffi::CString::new(options).expect("mount options have no NUL");
    mount(source, target, kind, flags, options.as_c_str())
        .unwrap_or_else(|error| panic!("cannot mount {kind} on {} ({options:?}): {error}", target.display()));
}
