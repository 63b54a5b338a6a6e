//! What a user changes, where it is kept, and what they can see.

use std::fs;

use lab::{Host, User};

use crate::common::{config, digest, host, init, setup};

fn stop(host: &Host) {
    host.root("ojail stop alice").ok();
}

#[test]
fn changes_are_shared_by_sessions_and_survive_a_stop() {
    lab::require_root!();
    let host = host("");
    let layer = "/srv/overlay/lowerdirs/debian/var";
    let before = digest(&host, layer);
    host.ssh("alice", "echo mine > /var/tmp/file").ok();
    assert_eq!(host.ssh("alice", "cat /var/tmp/file").text(), "mine");
    stop(&host);
    assert_eq!(host.ssh("alice", "cat /var/tmp/file").text(), "mine");
    assert_eq!(fs::read_to_string(host.path("/srv/overlay/upperdirs/alice/var/tmp/file")).unwrap(), "mine\n");
    assert_eq!(digest(&host, layer), before, "a layer has changed");
}

#[test]
fn what_every_jail_has_fresh_is_fresh_after_a_stop() {
    lab::require_root!();
    let host = host("");
    host.ssh("alice", "touch /tmp/file /dev/shm/file $XDG_RUNTIME_DIR/file").ok();
    stop(&host);
    assert_eq!(host.ssh("alice", "ls -A /tmp /dev/shm $XDG_RUNTIME_DIR | grep file || true").text(), "");
    assert!(!host.path("/srv/overlay/upperdirs/alice/tmp").exists(), "/tmp is in the upper");
}

#[test]
fn the_hosts_home_is_the_jails_home() {
    lab::require_root!();
    let host = host("home = \"host\"");
    host.ssh("alice", "pwd; echo mine > file").ok();
    assert_eq!(host.root("stat -c %U /home/alice/file; cat /home/alice/file").text(), "alice\nmine");
    host.root("echo from outside > /home/alice/other").ok();
    assert_eq!(host.ssh("alice", "cat other").text(), "from outside");
    assert!(!host.path("/srv/overlay/upperdirs/alice/home").exists(), "the home is in the upper");
    // And nobody else's.
    assert_eq!(host.ssh("alice", "ls /home").text(), "alice");
}

#[test]
fn a_home_in_the_jail_is_made_from_its_skeleton_and_goes_with_a_reset() {
    lab::require_root!();
    let host = host("home = \"jail\"");
    let before = digest(&host, "/home/alice");
    let made =
        host.ssh("alice", "cmp .bashrc /etc/skel/.bashrc && ls -A && stat -c '%U %a' . .bashrc").text();
    assert_eq!(made, ".bash_logout\n.bashrc\n.profile\nalice 700\nalice 644");
    host.ssh("alice", "echo mine > file; rm .bash_logout").ok();
    stop(&host);
    assert_eq!(host.ssh("alice", "ls -A").text(), ".bashrc\n.profile\nfile");
    assert_eq!(digest(&host, "/home/alice"), before, "the host's home has changed");

    host.root("ojail reset --force alice").ok();
    assert_eq!(host.ssh("alice", "ls -A").text(), ".bash_logout\n.bashrc\n.profile");
}

#[test]
fn a_read_only_jail_takes_nothing_but_knows_its_user() {
    lab::require_root!();
    for layers in [r#"["debian"]"#, r#"["extra", "debian"]"#] {
        let host = setup("")
            .config(&config("writable = false").replace(r#"["debian"]"#, layers))
            .file("/srv/overlay/lowerdirs/extra/opt/extra", 0o644, "extra\n")
            .start();
        assert_eq!(
            host.ssh("alice", "id -un; touch /tmp/file ~/file && echo written").text(),
            "alice\nwritten"
        );
        for path in ["/file", "/var/tmp/file", "/etc/file"] {
            let output = host.ssh("alice", &format!("touch {path}")).fails();
            assert!(output.stderr.contains("Read-only file system"), "{output}");
        }
        let extra = layers.contains("extra");
        assert_eq!(host.ssh("alice", "cat /opt/extra").run().status.success(), extra, "{layers}");
        assert!(!host.path("/srv/overlay/upperdirs").exists(), "a read-only jail has an upper");
    }
}

#[test]
fn an_image_is_mounted_once_for_all_jails() {
    lab::require_root!();
    lab::require!(lab::must::loop_devices());
    for image in ["debian.erofs", "debian.squashfs"] {
        let host = lab::host()
            .user(User::new("alice").groups(["jailed"]))
            .user(User::new("anna").groups(["jailed"]))
            .image(image)
            .config(&config(""))
            .pam("sshd")
            .start();
        let kind = image.split_once('.').unwrap().1;
        let before = host.mountinfo();
        for user in ["alice", "anna"] {
            let said = host.ssh(user, "echo mine > /var/tmp/file; cat /var/tmp/file /proc/1/comm").text();
            assert_eq!(said, "mine\nojail-init", "{image}");
        }
        let new: Vec<String> =
            host.mountinfo().lines().filter(|line| !before.contains(*line)).map(String::from).collect();
        assert_eq!(new.len(), 1, "{image}: {new:#?}");
        assert!(new[0].contains(&format!(" - {kind} ")), "{new:?}");
        assert!(new[0].contains("/run/ojail/images/") && new[0].contains(" ro,nosuid,nodev"), "{new:?}");
    }
}

#[test]
fn what_is_on_disk_has_the_ids_of_the_inside() {
    lab::require_root!();
    let host = host("root = true");
    host.ssh(
        "alice",
        "sudo sh -c 'echo x > /opt/root; install -o daemon /dev/null /opt/daemon'; echo x > /var/tmp/own",
    )
    .ok();
    let upper = "cd /srv/overlay/upperdirs/alice && stat -c '%u %g' opt/root opt/daemon var/tmp/own";
    let own = host.root("id -u alice; id -g alice").text().replace('\n', " ");
    assert_eq!(host.root(upper).text(), format!("0 0\n1 0\n{own}"));
    // On the host, nobody has these rights: root of the jail is an id of the range.
    let owner = host.root(&format!("stat -c %u /proc/{}", init(&host, "alice"))).text();
    let range = host.root("sed -n 's/^alice:\\([0-9]*\\):.*/\\1/p' /etc/subuid").text();
    assert_eq!(owner, range);
}

#[test]
fn nobody_else_on_the_host_reaches_what_is_in_an_upper() {
    lab::require_root!();
    let host = host("root = true");
    host.ssh("alice", "sudo install -m 4755 /bin/sh /opt/sh; install -m 4755 /bin/sh /var/tmp/sh").ok();
    assert_eq!(host.root("stat -c '%U %a' /srv/overlay/upperdirs/alice/opt/sh").text(), "root 4755");
    for path in
        ["upperdirs/alice/opt/sh", "upperdirs/alice/var/tmp/sh", "lowerdirs/debian/bin/su", "workdirs/alice"]
    {
        let output = host.ssh("bob", &format!("stat /srv/overlay/{path}")).fails();
        assert!(output.stderr.contains("Permission denied"), "{output}");
    }
    let modes =
        host.root("cd /srv/overlay; stat -c '%U %a' upperdirs workdirs lowerdirs /run/ojail /var/lib/ojail");
    assert_eq!(modes.text(), "root 700\n".repeat(5).trim_end());
}

#[test]
fn nothing_of_the_host_is_in_sight() {
    lab::require_root!();
    for keys in ["", "root = true"] {
        let host = host(keys);
        let inside = |command: &str| {
            let command = if keys.is_empty() { command.into() } else { format!("sudo sh -c '{command}'") };
            host.ssh("alice", &command).run()
        };
        let links = inside("ls -la /proc/*/cwd /proc/*/root 2>/dev/null");
        assert!(links.stdout.contains("-> /"), "{links}");
        assert!(!links.stdout.contains("unreachable"), "{links}");
        let root = inside("ls /proc/1/root/ /proc/1/cwd/").fails();
        assert!(root.stderr.contains("Permission denied"), "{root}");

        let table = inside("cat /proc/self/mountinfo").ok();
        let points: Vec<&str> = table.stdout.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        assert_eq!(points.iter().filter(|point| **point == "/").count(), 1, "{table}");
        let expected = ["/", "/proc", "/dev", "/tmp", "/run", "/home/alice", "/usr/bin/ojail-shell"];
        // Devices, and the masks over what the kernel shows.
        let known = |point: &str| {
            expected.contains(&point) || point.starts_with("/dev/") || point.starts_with("/proc/")
        };
        let strange: Vec<_> = points.iter().filter(|point| !known(point)).collect();
        assert!(strange.is_empty(), "{strange:?}");
        assert!(!table.stdout.contains("/srv/overlay"), "{table}");
    }
}

#[test]
fn a_session_has_no_open_descriptors_but_its_streams() {
    lab::require_root!();
    let host = host("");
    for tty in [false, true] {
        let list = host.ssh("alice", "exec bash -c 'echo /proc/$$/fd/*'");
        let list = if tty { list.tty() } else { list }.text();
        let numbers: Vec<&str> = list.split_whitespace().filter_map(|path| path.rsplit('/').next()).collect();
        // bash lists the directory through one of its own, and keeps 255 for a terminal.
        let more: Vec<_> = numbers.iter().filter(|n| !["0", "1", "2", "3", "255"].contains(*n)).collect();
        assert!(numbers.len() >= 3 && more.is_empty(), "{numbers:?}");
        let targets = host.ssh("alice", "exec readlink /proc/self/fd/3").run();
        assert_eq!(targets.text(), "", "{targets}");
    }
}

#[test]
fn a_file_that_only_root_can_reach_can_be_bound() {
    lab::require_root!();
    let binds = r#"binds = [{ source = "/opt/closed/key", target = "/etc/key" }]"#;
    let host = setup(binds).file("/opt/closed/key", 0o644, "open sesame").start();
    host.root("chmod 700 /opt/closed").ok();
    assert_eq!(host.ssh("alice", "cat /etc/key").text(), "open sesame");
    host.ssh("alice", "echo x > /etc/key").fails();
}
