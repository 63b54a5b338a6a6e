//! Clearing what a user changed, and nothing else.

use std::fs;

use lab::Host;

use crate::common::{digest, host, remains, runs};

/// Everything that an upper can hold: modes, owners, attributes, links, holes in the layers.
pub(crate) const CHANGES: &str = r#"
    set -e
    rm -r /usr/share/doc/bash /usr/share/common-licenses/GPL-3
    echo changed > /etc/issue
    chmod 600 /etc/motd
    mkdir -m 000 /opt/closed
    mkdir -p /opt/deep/er; echo x > /opt/deep/er/file
    rm -rf /usr/share/menu; mkdir /usr/share/menu; echo new > /usr/share/menu/new
    ln -s / /opt/root; ln /opt/deep/er/file /opt/hard; mkfifo /opt/fifo
    install -o games -m 4755 /bin/true /opt/setuid
"#;

/// A host where alice has changed a lot, as root of the jail, and has a home with something in it.
fn changed() -> Host {
    let host = host("root = true");
    host.ssh("alice", "sudo sh").stdin(CHANGES).ok();
    host.ssh("alice", "mkdir -p d; echo precious > d/file; ln -s /etc/issue link; chmod 400 d/file").ok();
    assert!(host.path("/srv/overlay/upperdirs/alice/usr/share/doc/bash").symlink_metadata().is_ok());
    host
}

/// Where the changes went.
fn aside(host: &Host) -> Vec<String> {
    let shelf = fs::read_dir(host.path("/srv/overlay/asidedirs/alice")).into_iter().flatten();
    shelf.map(|entry| entry.unwrap().path().file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

fn is_cleared(host: &Host) {
    let layer = |path: &str| fs::read(host.path("/srv/overlay/lowerdirs/debian").join(path)).unwrap();
    assert_eq!(host.ssh("alice", "cat /etc/issue").ok().bytes, layer("etc/issue"));
    assert_eq!(
        host.ssh("alice", "cat /usr/share/common-licenses/GPL-3").ok().bytes,
        layer("usr/share/common-licenses/GPL-3")
    );
    host.ssh("alice", "ls -d /usr/share/doc/bash").ok();
    assert_eq!(
        host.ssh("alice", "ls -A /opt; ls /usr/share/menu/new; stat -c %a /etc/motd").run().text(),
        "644"
    );
}

#[test]
fn a_reset_clears_the_changes_sets_them_aside_whole_and_spares_the_home() {
    lab::require_root!();
    for command in ["ojail reset alice", "ojail-shell --reset alice"] {
        let host = changed();
        let layers = digest(&host, "/srv/overlay/lowerdirs/debian/usr/share");
        // The jail runs and a session is open: both must end first.
        let session = host.ssh("alice", "echo inside; sleep 300").spawn();
        session.wait_for("inside");
        let upper = digest(&host, "/srv/overlay/upperdirs/alice");
        let home = digest(&host, "/home/alice");

        let refused = host.root(command).fails();
        assert!(
            refused.stderr.contains("sessions of alice are open (sshd from 127.0.0.1, since"),
            "{refused}"
        );
        assert!(runs(&host, "alice"));
        let said = host.root(&format!("{command} --force")).text();
        assert_eq!(remains(&host, "alice"), "");
        session.finish().fails();
        let aside = aside(&host);
        assert_eq!(aside.len(), 1, "{aside:?}");
        let aside = format!("/srv/overlay/asidedirs/alice/{}/upper", aside[0]);
        assert!(said.contains(&aside), "{said}");
        assert_eq!(digest(&host, &aside), upper, "{command}: what was set aside is not what was there");
        assert!(!host.path("/srv/overlay/upperdirs/alice").exists());
        assert_eq!(digest(&host, "/home/alice"), home, "{command}: the home has changed");

        is_cleared(&host);
        assert_eq!(digest(&host, "/home/alice"), home, "{command}: the home has changed");
        assert_eq!(digest(&host, "/srv/overlay/lowerdirs/debian/usr/share"), layers, "a layer has changed");
        host.ssh("bob", &format!("ls {aside}")).fails();
    }
}

#[test]
fn a_second_reset_keeps_what_the_first_set_aside() {
    lab::require_root!();
    let host = host("");
    for number in ["1", "2", "3"] {
        host.ssh("alice", &format!("echo {number} > /var/tmp/number")).ok();
        host.root("ojail reset --force alice").ok();
    }
    let kept = host.root("cat /srv/overlay/asidedirs/alice/*/upper/var/tmp/number | sort").text();
    assert_eq!(kept, "1\n2\n3");
    let said = host.root("ojail reset alice").text();
    assert!(said.contains("changed nothing"), "{said}");
    host.root("ojail reset alcie").fails();
}

#[test]
fn only_root_of_the_host_resets() {
    lab::require_root!();
    let host = host("root = true");
    host.ssh("alice", "sudo touch /opt/kept").ok();
    for (user, command) in [
        ("bob", "ojail reset alice"),
        ("bob", "ojail-shell --reset alice"),
        ("alice", "ojail-shell --reset alice"),
        ("alice", "sudo ojail-shell --reset alice"),
    ] {
        host.ssh(user, &format!("PATH=$PATH:/usr/sbin; {command}")).fails();
    }
    assert!(runs(&host, "alice"));
    assert!(host.path("/srv/overlay/upperdirs/alice/opt/kept").exists());
}

#[test]
fn a_login_during_a_reset_sees_all_of_the_changes_or_none() {
    lab::require_root!();
    let host = host("");
    host.ssh("alice", "mkdir /var/tmp/d && cd /var/tmp/d && touch $(seq 200)").ok();
    let resets = host.root("for i in 1 2 3; do ojail reset --force alice; done").spawn();
    let look = "n=$(ls /var/tmp/d 2>/dev/null | wc -l); echo $n; mkdir -p /var/tmp/d; cd /var/tmp/d; touch $(seq 200)";
    for _ in 0..12 {
        // A reset may end it in the middle.
        let seen = host.ssh("alice", look).run().text();
        assert!(["", "0", "200"].contains(&seen.as_str()), "{seen}");
    }
    resets.finish().ok();
    host.ssh("alice", "cat /proc/1/comm").ok();
}
