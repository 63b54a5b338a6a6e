//! A day's work through `ojail-shell`: jobs on a terminal, files into the home, another user in the account files.

use lab::{Setup, User};

use crate::common::config;
use crate::ssh::{INTERNAL_SFTP, WARM, quiet};

/// A host where alice has ojail-shell, the programs of the layer `tools`, and a profile with these keys.
fn setup(keys: &str) -> Setup {
    let keys = config(&format!("{WARM}\n{keys}")).replace("[\"debian\"]", "[\"tools\", \"debian\"]");
    quiet(lab::host())
        .user(User::new("alice").shell("/usr/bin/ojail-shell").groups(["jailed"]))
        .layer("debian")
        .layer("tools")
        .config(&keys)
        .pam("sshd")
}

#[test]
fn background_jobs_can_be_listed_and_killed_on_a_terminal() {
    lab::require_root!();
    let host = setup("").start();
    let mut session = host.ssh("alice", "").tty().spawn();
    session.write("sleep 4711 &\n");
    session.write("jobs; echo listed=$((1+1)) $(cat /proc/1/comm)\n");
    let listed = session.wait_for("listed=2 ojail-init");
    // On one line: the terminal also echoes what was typed.
    let is_listed = |line: &str| line.contains("Running") && line.contains("sleep 4711");
    assert!(listed.lines().any(is_listed), "{listed}");
    // A group of its own that is not the terminal's: what job control is.
    session.write("ps -o pgid=,tpgid= -p $! | awk '{ print ($1 != $2) \" apart \" ($1 == '$!') }'\n");
    session.wait_for("1 apart 1");
    session.write("kill %1; wait %1; echo ended=$?\n");
    session.wait_for("ended=143");
    session.write("exit 4\n");
    let output = session.finish();
    assert_eq!(output.code(), Some(4), "{output}");
    for complaint in ["no job control", "process group", "ioctl"] {
        assert!(!output.stdout.contains(complaint), "{output}");
    }
    assert_eq!(host.ssh("alice", "pgrep -c -f '^sleep 4711'").run().text(), "0");
}

#[test]
fn what_is_copied_into_the_home_belongs_to_the_user_on_the_host() {
    lab::require_root!();
    for internal in [false, true] {
        let setup = setup("");
        let setup = if internal { setup.file("/etc/ssh/sshd_config", 0o644, INTERNAL_SFTP) } else { setup };
        let host = setup.start();
        host.root("echo sent > file; chmod 640 file").ok();
        host.scp("file", "alice:by-scp").arg("-sp").ok();
        host.scp("file", "alice:by-scp-O").arg("-Op").ok();
        host.sftp("alice", "put -p file by-sftp\n").ok();
        host.root("rsync -a file alice@127.0.0.1:by-rsync").ok();
        host.root("ssh alice@127.0.0.1 'umask 027; cat > by-cat' < file").ok();
        for way in ["scp", "scp-O", "sftp", "rsync", "cat"] {
            let found = host.root("cd /home/alice; stat -c '%U:%G %a' by-$1; cat by-$1").arg(way).text();
            assert_eq!(found, "alice:alice 640\nsent", "{way}, internal: {internal}");
        }
        // None of it is in the upper as well: the home is the host's.
        assert!(!host.path("/srv/overlay/upperdirs/alice/home/alice/by-scp").exists());
    }
}

#[test]
fn the_users_own_line_survives_a_useradd_by_root_of_the_jail() {
    lab::require_root!();
    let host = setup("root = true").start();
    let own = "getent passwd alice; getent group alice; sudo -n getent shadow alice | cut -d: -f1,2";
    let before = host.ssh("alice", own).text();
    assert!(before.starts_with("alice:x:") && before.ends_with("\nalice:*"), "{before}");

    host.ssh("alice", "sudo -n useradd -m erin && sudo -n groupadd crew && sudo -n usermod -aG crew erin")
        .ok();
    let upper = host.path("/srv/overlay/upperdirs/alice/etc/passwd");
    let passwd = std::fs::read_to_string(upper).expect("the change is in the upper");
    assert!(passwd.contains("\nerin:x:"), "{passwd}");
    for state in ["warm", "after a restart"] {
        assert_eq!(host.ssh("alice", own).text(), before, "{state}");
        assert_eq!(
            host.ssh("alice", "grep -c ^alice: /etc/passwd; id -Gn erin").text(),
            "1\nerin crew",
            "{state}"
        );
        assert_eq!(host.ssh("alice", "sudo -n id -un").text(), "root", "{state}");
        host.root("ojail stop alice").ok();
    }
    host.root("getent passwd erin").fails();
}
