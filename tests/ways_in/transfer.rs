//! Copying in and out: what programs build on top of SSH ends in the jail.

use lab::Host;

use crate::common::config;
use crate::ssh::{INTERNAL_SFTP, WARM};

/// A host whose jails have rsync and git.
fn host() -> Host {
    setup().start()
}

fn setup() -> lab::Setup {
    lab::host()
        .user(lab::User::new("alice").groups(["jailed"]))
        .layer("debian")
        .layer("tools")
        .config(&config(WARM).replace("[\"debian\"]", "[\"tools\", \"debian\"]"))
        .pam("sshd")
}

#[test]
fn scp_copies_both_ways_with_either_protocol_and_server() {
    lab::require_root!();
    for server in ["external", "internal"] {
        let setup = setup();
        let host = match server {
            "internal" => setup.file("/etc/ssh/sshd_config", 0o644, INTERNAL_SFTP).start(),
            _ => setup.start(),
        };
        host.root("mkdir -p tree/deep; echo sent > tree/deep/file; chmod 750 tree/deep/file").ok();
        for (number, protocol) in ["-s", "-O"].into_iter().enumerate() {
            let there = format!("/var/tmp/{number}");
            host.scp("tree", &format!("alice:{there}")).arg(protocol).arg("-rp").ok();
            assert_eq!(
                host.ssh("alice", &format!("cat {there}/deep/file; stat -c %a {there}/deep/file")).text(),
                "sent\n750",
                "{server} {protocol}"
            );
            assert!(!host.path(&there).exists(), "{server} {protocol} wrote to the host");
            host.scp(&format!("alice:{there}/deep/file"), "back").arg(protocol).ok();
            assert_eq!(host.root("cat back; rm back").text(), "sent");
            // What is only on the host cannot be fetched.
            host.scp("alice:/etc/ojail/ojail.toml", "stolen").arg(protocol).fails();
        }
    }
}

#[test]
fn rsync_copies_both_ways() {
    lab::require_root!();
    let host = host();
    host.root("mkdir tree; seq 100000 > tree/numbers; ln -s numbers tree/link; chmod 640 tree/numbers").ok();
    host.root("rsync -a tree alice@127.0.0.1:/var/tmp/").ok();
    assert_eq!(
        host.ssh("alice", "cd /var/tmp/tree; tail -n1 numbers; readlink link; stat -c '%a %U' numbers")
            .text(),
        "100000\nnumbers\n640 alice"
    );
    assert!(!host.path("/var/tmp/tree").exists());
    host.ssh("alice", "echo more >> /var/tmp/tree/numbers").ok();
    host.root("rsync -a --delete alice@127.0.0.1:/var/tmp/tree/ tree/").ok();
    assert_eq!(host.root("tail -n1 tree/numbers").text(), "more");
}

#[test]
fn git_clones_from_the_jail_and_pushes_to_it() {
    lab::require_root!();
    let host = host();
    host.ssh("alice", "git init -q -b main /var/tmp/repo && cd /var/tmp/repo && echo one > file && git add file && git -c user.name=a -c user.email=a@a commit -qm one").ok();
    host.root("git clone -q alice@127.0.0.1:/var/tmp/repo clone").ok();
    assert_eq!(host.root("cat clone/file").text(), "one");
    let push = "cd clone && echo two > file && git -c user.name=b -c user.email=b@b commit -qam two && git push -q origin main:other";
    host.root(push).ok();
    assert_eq!(host.ssh("alice", "git -C /var/tmp/repo show other:file").text(), "two");
    assert!(!host.path("/var/tmp/repo").exists());
}

#[test]
fn a_large_stream_comes_through_unchanged() {
    lab::require_root!();
    let host = host();
    host.root("head -c 20M /dev/urandom > noise").ok();
    let sum = host.root("sha256sum < noise").text();
    assert_eq!(host.root("ssh alice@127.0.0.1 'tee /var/tmp/noise | sha256sum' < noise").text(), sum);
    assert!(!host.path("/var/tmp/noise").exists());
    assert_eq!(host.root("ssh alice@127.0.0.1 cat /var/tmp/noise | sha256sum").text(), sum);
}
