//! Who the user is inside: ids, groups, home and the lines of the account files.

use std::os::unix::fs::MetadataExt;

use lab::User;

use crate::common::{config, setup};

#[test]
fn groups_of_the_profile_keep_their_ids_and_others_are_left_outside() {
    lab::require_root!();
    let keys = r#"
groups = ["data", "unused"]
binds = [{ source = "/srv/data", target = "/data", writable = true },
         { source = "/srv/secret", target = "/secret", writable = true }]
"#;
    let host = lab::host()
        .user(User::new("alice").groups(["jailed", "data", "secret"]))
        .user(User::new("eve").groups(["unused"]))
        .layer("debian")
        .config(&config(keys))
        .pam("sshd")
        .pam("su")
        .start();
    host.root("for name in data secret; do mkdir -m 2770 /srv/$name; chgrp $name /srv/$name; done").ok();
    let gid = |group: &str| host.root(&format!("getent group {group} | cut -d: -f3")).text();
    let (own, data) = (gid("alice"), gid("data"));

    // By sshd, which sets the groups by itself, and by su, which does not.
    let inside =
        [host.ssh("alice", "id -G; id -Gn").text(), host.root("su - alice -c 'id -G; id -Gn'").text()];
    for groups in inside {
        assert_eq!(groups, format!("{own} {data}\nalice data"));
    }
    host.ssh("alice", "echo x > /data/file").ok();
    let file = host.path("/srv/data/file").metadata().expect("the bind is the host's directory");
    assert_eq!(file.gid().to_string(), data);
    assert_eq!(file.uid().to_string(), host.root("id -u alice").text());
    host.ssh("alice", "ls /secret").fails();
    host.ssh("alice", "getent group secret").fails();
    host.ssh("alice", "getent group unused").fails();
    assert_eq!(host.ssh("alice", "getent group data").text(), format!("data:x:{data}:alice"));
}

#[test]
fn a_home_is_the_hosts_with_its_owner() {
    lab::require_root!();
    let host = setup("").start();
    host.root("echo from outside > /home/alice/note; chown alice: /home/alice/note").ok();
    assert_eq!(host.ssh("alice", "pwd; cat note; ls -A /home").text(), "/home/alice\nfrom outside\nalice");
    host.ssh("alice", "echo from inside > mine; chmod 600 mine; mkdir -m 755 sub; ln -s mine link").ok();
    assert_eq!(
        host.root("cd /home/alice; stat -c '%n %U:%G %a' mine sub link; cat mine").text(),
        "mine alice:alice 600\nsub alice:alice 755\nlink alice:alice 777\nfrom inside"
    );
    // A set-user-id program in the home is worth nothing, inside as outside.
    host.root("cp /usr/bin/id /home/alice/id; chmod 4755 /home/alice/id").ok();
    assert_eq!(host.ssh("alice", "./id -u").text(), host.root("id -u alice").text());
}

#[test]
fn a_home_in_the_jail_leaves_the_hosts_alone() {
    lab::require_root!();
    let host = setup("home = \"jail\"").start();
    host.root("echo from outside > /home/alice/note").ok();
    host.ssh("alice", "test -e note").fails();
    host.ssh("alice", "echo from inside > mine").ok();
    assert_eq!(
        host.ssh("alice", "stat -c '%U %a' .; cat mine; ls -A ~/.bashrc").text(),
        "alice 700\nfrom inside\n/home/alice/.bashrc"
    );
    assert!(!host.path("/home/alice/mine").exists());
}

#[test]
fn uids_above_16_bits_work() {
    lab::require_root!();
    let host = lab::host()
        .user(User::new("alice").uid(70_000).groups(["jailed"]))
        .user(User::new("dave").uid(3_000_000_000).groups(["jailed"]))
        .layer("debian")
        .config(&config(""))
        .pam("sshd")
        .start();
    for (user, uid) in [("alice", 70_000_u32), ("dave", 3_000_000_000)] {
        let said =
            host.ssh(user, "id -u; id -un; touch mine; touch /var/tmp/mine; stat -c %u mine /var/tmp/mine");
        assert_eq!(said.text(), format!("{uid}\n{user}\n{uid}\n{uid}"));
        let mine = host.path(format!("/home/{user}/mine")).metadata().expect("the home is the host's");
        assert_eq!(mine.uid(), uid);
    }
}

#[test]
fn the_account_files_have_the_users_line_and_those_of_the_layer() {
    lab::require_root!();
    let host = setup("").file("/etc/resolv.conf", 0o644, "nameserver 192.0.2.1\n").start();
    host.root("usermod -c 'Alice A.,,,' alice").ok();
    let line = |file: &str| host.ssh("alice", &format!("grep -c . {file}; grep ^alice: {file}")).text();
    let ids = host.root("echo $(id -u alice):$(id -g alice)").text();
    let layer = host.root("grep -c . /srv/overlay/lowerdirs/debian/etc/passwd").text();
    let lines: usize = layer.parse().expect("a number");
    assert_eq!(
        line("/etc/passwd"),
        format!("{}\nalice:x:{ids}:Alice A.,,,:/home/alice:/bin/bash", lines + 1)
    );
    let gid = host.root("id -g alice").text();
    assert!(line("/etc/group").ends_with(&format!("\nalice:x:{gid}:")));
    assert_eq!(host.ssh("alice", "getent passwd bob eve; whoami").run().text(), "alice");

    // A valid line, and no password of the host's. Root's own lines come from the layer.
    assert_eq!(host.ssh("alice", "stat -c '%U:%G %a' /etc/shadow").text(), "root:shadow 640");
    host.ssh("alice", "cat /etc/shadow").fails();
    let session = host.ssh("alice", "echo inside; exec sleep 300").spawn();
    session.wait_for("inside");
    let shadow = host.root("cat /proc/$(pgrep -x ojail-init)/root/etc/shadow").text();
    assert!(shadow.contains("\nalice:*:") && shadow.starts_with("root:*:"), "{shadow}");

    assert_eq!(host.ssh("alice", "cat /etc/resolv.conf").text(), "nameserver 192.0.2.1");
    assert_eq!(host.ssh("alice", "hostname; getent hosts lab | tr -s ' '").text(), "lab\n127.0.1.1 lab");
}

#[test]
fn without_a_network_the_hosts_resolver_is_not_shown() {
    lab::require_root!();
    let host = setup("network = \"none\"").file("/etc/resolv.conf", 0o644, "nameserver 192.0.2.1\n").start();
    assert!(!host.ssh("alice", "cat /etc/resolv.conf").run().stdout.contains("192.0.2.1"));
    assert_eq!(host.ssh("alice", "ls /sys/class/net; grep -c : /proc/net/dev").text(), "lo\n1");
}
