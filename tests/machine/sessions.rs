//! Logins under pam_systemd and logind, and whose the jail is when they end.

use crate::{MACHINE, init, jail, known_to_logind, lasting, sessions, until};

#[test]
fn ojail_check_is_content_with_a_machine_that_is_wired_as_it_should_be() {
    lab::require!(lab::must::machines());
    let machine = MACHINE.get();

    let check = machine.root("ojail check").run();

    // What this kernel lacks is no matter of wiring: Landlock has scopes from 6.12 on.
    let scopes = check.stdout.contains("Landlock has no scopes");
    let expected = if scopes { "0 errors, 1 warning." } else { "All is well." };
    assert_eq!(
        (check.code(), check.stdout.lines().last()),
        (Some(i32::from(scopes)), Some(expected)),
        "{check}"
    );
}

#[test]
fn a_login_over_ssh_lands_in_the_jail_and_logind_knows_of_it() {
    lab::require!(lab::must::machines());
    let machine = MACHINE.get();
    let stack = machine.root("cat /etc/pam.d/sshd /etc/pam.d/common-session").text();
    assert!(stack.contains("pam_systemd.so") && stack.contains("pam_ojail.so"), "{stack}");

    let session = lasting(&machine, "alice");
    assert_eq!(known_to_logind(&machine, "alice").len(), 1);
    assert_eq!(sessions(&machine, "alice"), 1);
    let inside =
        machine.ssh("alice", "cat /proc/1/comm /proc/self/cgroup; id -un; echo $XDG_RUNTIME_DIR").text();
    let lines: Vec<&str> = inside.lines().collect();
    assert_eq!([lines[0], lines[2], lines[3]], ["ojail-init", "alice", "/run/user/1001"], "{inside}");
    let scope = "0::/user.slice/user-1001.slice/session-";
    assert!(lines[1].starts_with(scope) && lines[1].ends_with(".scope"), "{inside}");
    // A user's files are in their home, in and out.
    machine.client().write("/root/letter", 0o600, "dear alice");
    machine.scp("/root/letter", "alice:by-scp").ok();
    machine.scp("/root/letter", "alice:by-old-scp").arg("-O").ok();
    machine.sftp("alice", "put /root/letter by-sftp\nput /root/letter /var/tmp/deep\n").ok();
    let all = machine.ssh("alice", "cat by-scp by-old-scp by-sftp /var/tmp/deep").text();
    assert_eq!(all, "dear alice".repeat(4));
    assert_eq!(machine.root("cat /srv/overlay/upperdirs/alice/var/tmp/deep").text(), "dear alice");
    machine.root("test -e /var/tmp/deep").fails();

    session.kill();
    until("the session is over", || sessions(&machine, "alice") == 0);
    assert!(init(&machine, "alice") > 0, "the jail stays warm");
    // Who is exempt stays outside.
    assert_eq!(machine.ssh("bob", "cat /proc/1/comm").text(), "systemd");
}

#[test]
fn a_jail_outlives_the_session_that_raised_it_also_where_logind_kills_what_sessions_leave() {
    lab::require!(lab::must::machines());
    let machine = MACHINE.get();
    let first = lasting(&machine, "kelly");
    let pid = init(&machine, "kelly");
    let mut second = lasting(&machine, "kelly");
    let scopes = "systemctl list-units --plain --no-legend 'session-*.scope' | grep -c 'of User kelly'";
    assert_eq!(machine.root(scopes).text(), "2");

    first.kill();
    until("the first session's scope is gone", || machine.root(scopes).run().text() != "2");

    assert_eq!(jail(&machine, "kelly").map(|jail| jail["pid"].clone()), Some(pid.into()));
    assert!(second.is_running());
    assert_eq!(machine.ssh("kelly", "cat /proc/1/comm").text(), "ojail-init");
    second.kill();
    until("all sessions are over", || known_to_logind(&machine, "kelly").is_empty());
    assert_eq!(init(&machine, "kelly"), pid, "the jail stays warm");
}

#[test]
fn a_jail_that_stays_warm_keeps_no_session_of_logind_open() {
    lab::require!(lab::must::machines());
    let machine = MACHINE.get();
    machine.ssh("gwen", "true").ok();
    let pid = init(&machine, "gwen");

    until("logind has closed the session", || known_to_logind(&machine, "gwen").is_empty());

    assert_eq!(init(&machine, "gwen"), pid);
}

#[test]
fn what_pam_limits_leaves_a_user_does_not_keep_their_jail_from_being_raised() {
    lab::require!(lab::must::machines());
    let machine = MACHINE.get();
    let look = "cat /proc/1/comm; ulimit -n; ulimit -f; ulimit -u; ulimit -v; cat /proc/self/cgroup";

    // The record of a user's ids is a file, which the first login of all writes under its own limits.
    machine.root("ojail enter nora -- true && ojail stop nora").ok();

    let inside = machine.root("exec su nora -c \"$1\"").arg(look).text();

    let lines: Vec<&str> = inside.lines().collect();
    assert_eq!(lines[..5], ["ojail-init", "16", "0", "20", "15000"], "{inside}");
    assert!(lines[5].starts_with("0::/user.slice/user-1010.slice/"), "{inside}");
    // The jail has none of them, and the limits of its profile.
    let pid = init(&machine, "nora");
    let group = machine.root(&format!("cat /proc/{pid}/cgroup")).text();
    assert!(group.starts_with("0::/user.slice/user-1010.slice/ojail-nora-"), "{group}");
    assert_eq!(machine.root("cat /sys/fs/cgroup/user.slice/user-1010.slice/pids.max").text(), "50");
    let limits = machine.root(&format!("prlimit --noheadings --output=SOFT --as --fsize --pid {pid}")).text();
    assert_eq!(limits.split_whitespace().collect::<Vec<_>>(), ["unlimited"; 2]);
}

#[test]
fn what_systemd_has_against_a_jail_is_in_the_log() {
    lab::require!(lab::must::machines());
    let machine = MACHINE.get();
    machine.root("systemctl mask --runtime user-1011.slice").ok();

    machine.root("su mira -c true").fails();

    let refused = machine.wait_for_log("event=refused user=mira why=\"/usr");
    assert!(refused.contains("ojail-init could not run: "), "{refused}");
    assert!(refused.contains("masked"), "{refused}");
    machine.root("systemctl unmask --runtime user-1011.slice").ok();
    assert_eq!(machine.root("su mira -c 'cat /proc/1/comm'").text(), "ojail-init");
}
