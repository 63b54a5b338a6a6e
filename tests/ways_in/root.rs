//! `root = true`: a Debian of one's own, to be changed at will, by a root that is nobody outside.

use std::os::unix::fs::MetadataExt;

use lab::{Host, User};

use crate::common::config;
use crate::ssh::master;

/// A host where alice is root of her jail, which has python3.
fn host() -> Host {
    lab::host()
        .user(User::new("alice").groups(["jailed"]).shell("/usr/bin/ojail-shell"))
        .layer("debian")
        .layer("tools")
        .config(&config("root = true\nkeep_warm = \"5m\"").replace("[\"debian\"]", "[\"tools\", \"debian\"]"))
        .pam("sshd")
        .start()
}

#[test]
fn sudo_asks_nothing_and_makes_root_of_the_jail_only() {
    lab::require_root!();
    let host = host();
    assert_eq!(host.ssh("alice", "sudo -n id -u").text(), "0");
    let output = host.ssh("alice", "sudo -n true").ok();
    assert_eq!(output.stderr, "", "no warning, about names or else");
    assert_eq!(host.ssh("alice", "sudo grep ^alice: /etc/shadow | cut -d: -f2").text(), "*");
    // With a terminal, as a login shell, and to another user.
    assert_eq!(host.ssh("alice", "sudo -i id -un; sudo -u www-data id -un").tty().text(), "root\r\nwww-data");

    // Outside, this root has an id that is nobody's, and the host's files are not its own.
    host.ssh("alice", "sudo touch /home/alice/by-root").ok();
    let by_root = host.path("/home/alice/by-root").metadata().expect("the home is the host's");
    assert!(by_root.uid() > 65_535 && by_root.gid() > 65_535, "{}:{}", by_root.uid(), by_root.gid());
    host.root("echo host > /home/alice/of-host-root; chmod 600 /home/alice/of-host-root").ok();
    host.ssh("alice", "sudo cat /home/alice/of-host-root").fails();
    // In the upper it is uid 0, so that the upper can be moved, packed and promoted.
    host.ssh("alice", "sudo touch /etc/by-root").ok();
    let stored = host.path("/srv/overlay/upperdirs/alice/etc/by-root").metadata().expect("it is stored");
    assert_eq!((stored.uid(), stored.gid()), (0, 0));
}

#[test]
fn packages_users_and_owners_can_be_changed() {
    lab::require_root!();
    let host = host();
    let package = r"
        set -e
        cd $(mktemp -d)
        mkdir -p hello/DEBIAN hello/usr/bin hello/etc
        printf 'Package: hello-lab\nVersion: 1\nArchitecture: all\nMaintainer: a <a@a>\nDescription: d\n' > hello/DEBIAN/control
        printf '#!/bin/sh\nset -e\nadduser --system --group _hello 2>/dev/null || useradd -r _hello\nchown _hello /etc/hello\n' > hello/DEBIAN/postinst
        chmod 755 hello/DEBIAN/postinst
        printf '#!/bin/sh\necho hello\n' > hello/usr/bin/hello-lab; chmod 755 hello/usr/bin/hello-lab
        echo conf > hello/etc/hello
        dpkg-deb --root-owner-group -b hello >/dev/null
        sudo dpkg -i hello.deb >/dev/null
        hello-lab
        stat -c %U /etc/hello /usr/bin/hello-lab
    ";
    assert_eq!(host.ssh("alice", package).text(), "hello\n_hello\nroot");
    let users =
        "sudo useradd -m erin && sudo chown erin:users /srv && stat -c %U:%G /srv && sudo -u erin id -un";
    assert_eq!(host.ssh("alice", users).text(), "erin:users\nerin");
    host.ssh(
        "alice",
        "sudo dpkg -r hello-lab && sudo rm -r /usr/share/doc && sudo sh -c 'echo x > /etc/motd'",
    )
    .ok();

    // It is all still so when the jail was down, and none of it is on the host.
    host.root("ojail stop alice").ok();
    assert_eq!(host.ssh("alice", "id -un erin; cat /etc/motd; ls -d /usr/share/doc").run().text(), "erin\nx");
    host.root("getent passwd erin").fails();
    assert_ne!(host.root("cat /etc/motd").run().text(), "x");
}

/// Gives that copy of cat `cap_dac_override=ep`: version 2 of the attribute, as `setcap` writes it
/// (`VFS_CAP_REVISION_2` and the effective bit, then permitted and inheritable, low and high).
const SET_CAPABILITY: &str = r#"
import os
words = [0x02000001, 1 << 1, 0, 0, 0]
os.setxattr("/usr/local/bin/capcat", "security.capability", b"".join(w.to_bytes(4, "little") for w in words))
"#;

#[test]
fn file_capabilities_work_inside() {
    lab::require_root!();
    let host = host();
    host.ssh("alice", "cat /etc/shadow").fails();
    host.ssh("alice", "sudo cp /bin/cat /usr/local/bin/capcat && sudo python3 -").stdin(SET_CAPABILITY).ok();
    assert!(host.ssh("alice", "capcat /etc/shadow").text().contains("\nalice:"));
    host.root("ojail stop alice").ok();
    assert!(host.ssh("alice", "capcat /etc/shadow").text().contains("\nalice:"), "after a restart");
    // What it can do, it can do to the jail's files only.
    host.root("echo secret > /home/alice/of-host-root; chmod 600 /home/alice/of-host-root").ok();
    host.ssh("alice", "capcat /home/alice/of-host-root").fails();
}

#[test]
fn mounts_devices_and_namespaces_are_refused_to_root_too() {
    lab::require_root!();
    let host = host();
    let _master = master(&host, "alice");
    for command in [
        "mount -t tmpfs tmpfs /mnt",
        "mount --bind /etc /mnt",
        "mount -o remount,rw /usr/bin/ojail-shell",
        "umount /proc",
        "mknod /var/tmp/device c 1 3",
        "mknod /var/tmp/device b 8 0",
        "unshare -m true",
        "unshare -U true",
        "unshare -p true",
        "hostname other",
        "sh -c 'echo 9 > /proc/sys/user/max_user_namespaces'",
        "sh -c 'echo x > /usr/bin/ojail-shell'",
        "nsenter -t 1 -m true",
        "ip link set lo down",
    ] {
        let output = host.ssh("alice", &format!("sudo -n {command}")).arg("-S/root/alice").fails();
        assert!(!output.stderr.contains("command not found"), "{output}");
    }
    // The kernel takes this signal and drops it: PID 1 is deaf to what its own namespace sends.
    let init = crate::common::init(&host, "alice");
    host.ssh("alice", "sudo -n kill -9 1; sudo -n kill -STOP 1").run();
    assert_eq!(host.ssh("alice", "cat /proc/1/comm").text(), "ojail-init");
    assert_eq!(crate::common::init(&host, "alice"), init);
    let bounding = host.ssh("alice", "sudo grep CapBnd /proc/self/status").text();
    assert_eq!(bounding.split_whitespace().nth(1), Some("00000000a00425fb"), "{bounding}");
}

#[test]
fn a_shell_that_the_user_chose_stays_chosen() {
    lab::require_root!();
    let host = host();
    let shell = || host.ssh("alice", "readlink /proc/$$/exe; echo $SHELL").text();
    assert_eq!(shell(), "/usr/bin/bash\n/bin/bash");
    host.ssh("alice", "sudo usermod -s /bin/dash alice").ok();
    assert_eq!(shell(), "/usr/bin/dash\n/bin/dash");
    host.root("ojail stop alice").ok();
    assert_eq!(shell(), "/usr/bin/dash\n/bin/dash", "after a restart");
    host.ssh("alice", "sudo chsh -s /bin/bash alice").ok();
    assert_eq!(shell(), "/usr/bin/bash\n/bin/bash");
    // The host knows nothing of it.
    assert_eq!(host.root("getent passwd alice | cut -d: -f7").text(), "/usr/bin/ojail-shell");
}

#[test]
fn root_of_the_jail_sets_no_limits_of_its_pid_1() {
    lab::require_root!();
    let host = crate::common::host("root = true");
    let said = host.ssh("alice", "sudo prlimit --pid 1 --nofile=4:4").fails();
    assert!(said.stderr.contains("not permitted"), "{said}");
    assert_eq!(host.ssh("alice", "cat /proc/1/comm").text(), "ojail-init");
}
