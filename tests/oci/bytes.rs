//! The bytes of a tree are the same wherever it lies.

use std::fmt::Write as _;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use sha2::{Digest, Sha256};

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
    let host = lab::host().without_ojail().start();
    host.root("mkdir /srv/overlay/tree").ok();
    host.exec(["python3", "-c", crate::TREE, "/srv/overlay/tree"]).ok();
    let work = tempfile::tempdir().unwrap();
    let at = |name: &str| work.path().join(name).to_str().unwrap().to_owned();
    // The machine's tools pack it.
    let tree = at("tree");
    run("cp", &["-a", host.path("/srv/overlay/tree").to_str().unwrap(), &tree]);
    for name in ["erofs", "squashfs", "layers"] {
        fs::create_dir(at(name)).unwrap();
    }
    run("mkfs.erofs", &["-zlz4hc", &at("tree.erofs"), &tree]);
    run("mksquashfs", &[&tree, &at("tree.squashfs"), "-noappend", "-quiet"]);
    let expected = digest(Path::new(&tree));
    assert_eq!(digest(&host.path("/srv/overlay/tree")), expected, "as cp(1) copies it");
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
            let tree = ojail::walk::open(Path::new(&tree)).unwrap();
            ojail::oci::tar::write(tree.as_fd(), &mut packed).unwrap();
            let into = ojail::walk::open(Path::new(&at("layers"))).unwrap();
            let allowance = ojail::oci::tar::Allowance::of(&into).unwrap();
            ojail::oci::tar::read(&mut &*packed, into.as_fd(), allowance).unwrap();
            assert_eq!(digest(Path::new(&at("layers"))), expected);
        });
        tried.join().unwrap();
    });
}
