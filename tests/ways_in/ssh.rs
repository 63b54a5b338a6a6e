//! OpenSSH's kinds of session lead to one jail, the same for all.

use lab::{Host, Running, Setup, User};

use crate::common::setup;
use crate::place::{WHERE, inside, of_processes, outside};

/// Debian's `sshd_config` with the other sftp server. A second `Subsystem` line would be an error.
pub(crate) const INTERNAL_SFTP: &str =
    "Include /etc/ssh/sshd_config.d/*.conf\nUsePAM yes\nAcceptEnv LANG LC_*\nSubsystem sftp internal-sftp\n";

/// A jail that outlives its sessions for the test's time.
pub(crate) const WARM: &str = "keep_warm = \"5m\"";

/// A host that greets nobody: what a login shell prints is the script's.
pub(crate) fn quiet(setup: Setup) -> Setup {
    setup.file("/etc/motd", 0o644, "").file("/etc/update-motd.d/10-uname", 0o644, "")
}

#[test]
fn exec_terminal_and_script_sessions_are_in_one_jail() {
    lab::require_root!();
    let host = quiet(setup(WARM)).start();
    let inside = inside(&host, "alice");
    assert_eq!(host.ssh("alice", "cat /proc/1/comm").text(), "ojail-init");
    assert_eq!(host.ssh("alice", WHERE).tty().text(), inside);
    assert_eq!(host.ssh("alice", WHERE).arg("-T").text(), inside);
    assert_eq!(
        host.ssh("alice", "").stdin(format!("{WHERE}\n")).text(),
        inside,
        "a script on standard input"
    );
    // Root of the file system, not only by its number: what the host has at this path is not there.
    host.root("touch /only-on-the-host").ok();
    host.ssh("alice", "test -e /only-on-the-host").fails();
}

#[test]
fn a_connection_without_any_session_is_in_the_jail_too() {
    lab::require_root!();
    let host = setup(WARM).start();
    let inside = inside(&host, "alice");
    // The master answers when it is connected and authenticated, and has no session then.
    let mut idle = host.ssh("alice", "").arg("-N").arg("-M").arg("-S/root/idle").spawn();
    let connected = || host.root("ssh -S /root/idle -O check x").run().code() == Some(0);
    crate::common::until("the connection is there", crate::common::SOON, connected);
    crate::common::until("it is a session", crate::common::SOON, || {
        crate::common::sessions(&host, "alice") == 1
    });
    assert_eq!(of_processes(&host, "alice"), [inside]);
    assert!(idle.is_running());
}

#[test]
fn ten_channels_of_one_connection_are_in_the_same_jail() {
    lab::require_root!();
    let host = setup(WARM).start();
    let inside = inside(&host, "alice");
    let _master = master(&host, "alice");
    let over_it = |command: &str| host.ssh("alice", command).arg("-S/root/alice");
    let sleepers: Vec<Running<'_>> =
        (0..8).map(|_| over_it(&format!("{WHERE}; exec sleep 300")).spawn()).collect();
    for sleeper in &sleepers {
        assert!(sleeper.wait_for("\n").contains(&inside));
    }
    assert_eq!(over_it(WHERE).tty().text(), inside, "the tenth, with a terminal");
    assert_eq!(host.ssh("alice", "pgrep -c sleep").text(), "9", "all of them see each other");
    assert_eq!(of_processes(&host, "alice"), [inside]);
    assert_eq!(crate::common::sessions(&host, "alice"), 1, "one connection is one session");
}

/// A connection for other sessions to share, by the option `-S/root/USER`; they are quicker than logins.
pub(crate) fn master<'h>(host: &'h Host, user: &str) -> Running<'h> {
    let socket = format!("-S/root/{user}");
    let master = host.ssh(user, "echo inside; exec sleep 300").arg("-M").arg(socket).spawn();
    master.wait_for("inside");
    master
}

#[test]
fn both_sftp_servers_are_in_the_jail() {
    lab::require_root!();
    for internal in [false, true] {
        let setup = setup(WARM);
        let setup = if internal { setup.file("/etc/ssh/sshd_config", 0o644, INTERNAL_SFTP) } else { setup };
        let host = setup.start();
        let inside = inside(&host, "alice");
        host.root("touch /only-on-the-host").ok();
        let mut sftp = host.exec(["sftp", "-q", "-b", "-", "alice@127.0.0.1"]).spawn();
        sftp.write("pwd\nput /etc/hostname /var/tmp/here\n!echo put\n");
        assert!(sftp.wait_for("put\n").contains("Remote working directory: /home/alice"));
        assert_eq!(of_processes(&host, "alice"), [inside], "internal: {internal}");
        // Which of the two it is.
        assert_eq!(host.ssh("alice", "pgrep -c sftp-server").run().text(), if internal { "0" } else { "1" });
        sftp.write("ls /\nget /etc/hostname /root/got\n");
        let listing = sftp.finish().ok().stdout;
        assert!(listing.contains("/etc") && !listing.contains("only-on-the-host"), "{listing}");
        assert_eq!(host.ssh("alice", "cat /var/tmp/here").text(), "lab");
        assert_eq!(host.ssh("alice", "cat /etc/hostname").text(), host.root("cat /root/got").text());
        assert!(!host.path("/var/tmp/here").exists(), "the upload is on the host");
    }
}

#[test]
fn exempt_users_and_root_stay_on_the_host() {
    lab::require_root!();
    let host = setup("").user(User::new("carol").groups(["staff"])).start();
    host.root("cp /root/.ssh/id_ed25519.pub /root/.ssh/authorized_keys").ok();
    let outside = outside(&host);
    for user in ["bob", "carol", "root"] {
        assert_eq!(host.ssh(user, WHERE).text(), outside, "{user}");
        assert_eq!(host.ssh(user, WHERE).tty().text(), outside, "{user}");
        assert_eq!(
            host.ssh(user, "cat /proc/self/uid_map").text(),
            host.root("cat /proc/self/uid_map").text()
        );
        host.sftp(user, "put /etc/hostname /tmp/upload\nrm /tmp/upload\n").ok();
    }
    assert_eq!(host.root("ojail list --json | grep -c '\"user\"'").run().text(), "0");
    let ours: Vec<String> = host.log().into_iter().filter(|line| line.contains("ojail")).collect();
    assert!(ours.is_empty(), "nothing was done, so nothing is said: {ours:?}");
}

#[test]
fn a_broken_configuration_refuses_everybody_but_root() {
    lab::require_root!();
    let host = setup("").start();
    host.root("cp /root/.ssh/id_ed25519.pub /root/.ssh/authorized_keys").ok();
    host.write("/etc/ojail/ojail.toml", 0o644, "[profiles.debian]\nlayers = [\"debian\"\n");
    for user in ["alice", "bob"] {
        let output = host.ssh(user, "echo got in").fails();
        assert!(!output.stdout.contains("got in"), "{output}");
    }
    assert_eq!(host.ssh("root", WHERE).text(), outside(&host));
    host.wait_for_log("/etc/ojail/ojail.toml:2");
}
