//! What a user without `root` in the profile is left with: nothing to gain, whichever way they came.

use crate::common::setup;
use crate::ssh::{INTERNAL_SFTP, WARM, master};

/// The lines of `/proc/PID/status` that say what a process could ever become.
const POWER: &str = "grep -hE '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs):'";

const NONE: &str = "CapAmb:0000000000000000 CapBnd:0000000000000000 CapEff:0000000000000000 \
                    CapInh:0000000000000000 CapPrm:0000000000000000 NoNewPrivs:1";

/// Sorted and on one line, each line once.
fn words(text: &str) -> String {
    let mut lines: Vec<String> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    lines.sort();
    lines.dedup();
    lines.join(" ")
}

#[test]
fn every_process_of_a_session_is_without_privileges_for_good() {
    lab::require_root!();
    for internal in [false, true] {
        let setup = setup(WARM);
        let setup = if internal { setup.file("/etc/ssh/sshd_config", 0o644, INTERNAL_SFTP) } else { setup };
        let host = setup.start();
        let own = format!("{POWER} /proc/self/status");
        assert_eq!(words(&host.ssh("alice", &own).text()), NONE);
        assert_eq!(words(&host.ssh("alice", &own).tty().text()), NONE);
        let mut sftp = host.exec(["sftp", "-q", "-b", "-", "alice@127.0.0.1"]).spawn();
        sftp.write("pwd\n");
        sftp.wait_for("/home/alice");
        let _terminal = host.ssh("alice", "sleep 300").tty().spawn();
        let _idle = host.ssh("alice", "").arg("-N").spawn();
        crate::common::until("three sessions", crate::common::SOON, || {
            crate::common::sessions(&host, "alice") == 3
                && host.root("pgrep -u alice -x sleep").run().code() == Some(0)
                && host.root("test $(pgrep -cu alice) -ge 5").run().code() == Some(0)
        });
        // sshd's own processes that have become the user, sftp's and the shell's alike.
        let all = host.root(&format!("for pid in $(pgrep -u alice); do {POWER} /proc/$pid/status; done"));
        assert_eq!(words(&all.text()), NONE);
    }
}

#[test]
fn sudo_and_new_namespaces_are_refused() {
    lab::require_root!();
    let host = setup("").start();
    let sudo = host.ssh("alice", "sudo -n true").fails();
    assert!(sudo.stderr.contains("no new privileges"), "{sudo}");
    let _master = master(&host, "alice");
    assert_eq!(host.ssh("alice", "cat /proc/sys/user/max_user_namespaces").text(), "0");
    for command in [
        "unshare -U true",
        "unshare -r true",
        "unshare -m true",
        "echo 9 > /proc/sys/user/max_user_namespaces",
        "mount -t tmpfs tmpfs /mnt",
        "mknod /var/tmp/device c 1 3",
        "/usr/sbin/chroot / true",
        "touch /etc/file",
        "kill 1",
    ] {
        let output = host.ssh("alice", command).arg("-S/root/alice").fails();
        assert!(!output.stderr.contains("not found"), "{output}");
    }
    assert_eq!(host.ssh("alice", "cat /proc/1/comm").text(), "ojail-init");
}
