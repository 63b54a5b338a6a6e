//! The bytes of a tree are the same wherever it lies.

use std::fmt::Write as _;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use sha2::{Digest, Sha256};

/// What a layer can have, but for what squashfs cannot (access lists, times before 1970).
const TREE: &str = r#"
import os, struct, sys
os.umask(0o022)
os.chdir(sys.argv[1])
for d in "closed", "closed/in", "opaque", "sticky", "many":
    os.mkdir(d)
for f in "closed/in/file", "setuid", "capable", "marked", "odd", "opaque/x", "größe", "n" * 120:
    open(f, "w").write(f)
for i in range(300):
    open("many/%d" % (i * 7919 % 1000), "w").write("x" * i)
open("large", "wb").write(os.urandom(1 << 20) + bytes(1 << 20) + b"end")
os.chown("setuid", 5, 60); os.chmod("setuid", 0o6755)
os.chown("sticky", 1000, 1000); os.chmod("sticky", 0o3777)
os.chown("odd", 65534, 4000000000); os.chmod("odd", 0)
os.setxattr("capable", "security.capability", struct.pack("<5I", 0x02000001, 0x2000, 0, 0, 0))
os.setxattr("opaque", "user.overlay.opaque", b"y")
os.setxattr("opaque", "user.overlay.origin", b"\0\xfb\x1d\0")
for key in "user.z", "user.a", "trusted.m", "user.longer.name":
    os.setxattr("marked", key, key.encode() * 9)
os.mknod("whiteout", 0o020000, 0); os.mknod("null", 0o020666, os.makedev(1, 3)); os.mkfifo("fifo")
for a, b in ("setuid", "closed/linked"), ("setuid", "zz"), ("many/0", "aa"):
    os.link(a, b)
os.symlink("../x", "closed/out"); os.symlink("y" * 200, "far")
os.link("fifo", "opaque/fifo"); os.link("null", "opaque/null"); os.link("far", "near", follow_symlinks=False)
os.chmod("closed/in", 0)
n = 0
for top, dirs, files in os.walk(".", topdown=False):
    for name in files + ["."]:
        n += 1
        os.utime(os.path.join(top, name), ns=(1000000000123456789, (1100000000 + n) * 1000000000 + n), follow_symlinks=False)
"#;

#[track_caller]
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn digest(dir: &Path) -> String {
    let mut bytes = Vec::new();
    ojail::oci::tar::write(ojail::walk::open(dir).unwrap().as_fd(), &mut bytes).unwrap();
    Sha256::digest(&bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[test]
fn a_tree_has_the_same_bytes_in_a_directory_in_erofs_and_in_squashfs() {
    lab::require_root!();
    lab::require!(lab::must::loop_devices());
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name).to_str().unwrap().to_owned();
    for name in ["tree", "erofs", "squashfs", "layers"] {
        fs::create_dir(at(name)).unwrap();
    }
    run("python3", &["-c", TREE, &at("tree")]);
    run("mkfs.erofs", &["-zlz4hc", &at("tree.erofs"), &at("tree")]);
    run("mksquashfs", &[&at("tree"), &at("tree.squashfs"), "-noappend", "-quiet"]);
    let expected = digest(Path::new(&at("tree")));
    // Mounts of a thread alone, which go with it.
    std::thread::scope(|scope| {
        let tried = scope.spawn(|| {
            // SAFETY: of what other threads rely on, the table of descriptors is not among these.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
            mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).unwrap();
            for name in ["erofs", "squashfs"] {
                run("mount", &["-t", name, "-o", "loop,ro", &at(&format!("tree.{name}")), &at(name)]);
                assert_eq!(digest(Path::new(&at(name))), expected, "{name}");
                run("umount", &[&at(name)]);
            }
            let mut packed = Vec::new();
            let tree = ojail::walk::open(Path::new(&at("tree"))).unwrap();
            ojail::oci::tar::write(tree.as_fd(), &mut packed).unwrap();
            let into = ojail::walk::open(Path::new(&at("layers"))).unwrap();
            let allowance = ojail::oci::tar::Allowance::of(&into).unwrap();
            ojail::oci::tar::read(&mut &*packed, into.as_fd(), allowance).unwrap();
            assert_eq!(digest(Path::new(&at("layers"))), expected);
        });
        tried.join().unwrap();
    });
}
