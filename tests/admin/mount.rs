//! `ojail mount` and `ojail umount`.

use lab::{Host, Output, User};

use crate::common::points::Point;
use crate::common::{SOON, config, corner, host, init, jail, logged, runs, sessions, until};

const AT: &str = "/srv/jails/alice";

/// The lines of the host's mount table that are below `/srv/jails`.
fn mounts(host: &Host) -> Vec<String> {
    host.mountinfo().lines().filter(|line| line.contains(" /srv/jails")).map(str::to_owned).collect()
}

/// Where `ojail list` says that it is mounted.
fn told(host: &Host) -> Option<String> {
    jail(host, "alice").and_then(|jail| jail["mounted"].as_str().map(str::to_owned))
}

/// A host where alice has a jail, and `keep_warm` ends it at once.
fn impatient() -> Host {
    let host = host("keep_warm = \"0\"\nroot = true");
    host.ssh("alice", "echo kept > /var/tmp/kept").ok();
    until("the jail has ended", SOON, || !runs(&host, "alice"));
    host
}

#[track_caller]
fn refused(output: Output, why: &str) {
    let output = output.fails();
    assert_eq!(output.code(), Some(1), "{output}");
    assert!(output.stderr.contains(why), "{output}\nlacks: {why}");
    assert_eq!(output.stderr.lines().count(), 1, "{output}");
}

#[test]
fn both_sides_see_the_same_and_what_the_other_writes() {
    lab::require_root!();
    let host = host("root = true");
    host.ssh(
        "alice",
        "sudo sh -c 'rm -r /usr/share/doc/bash; echo changed > /etc/issue; chmod 604 /etc/motd'",
    )
    .ok();
    host.root("ojail mount alice").ok();

    assert_eq!(
        host.root(&format!("stat -c %d {AT}")).text(),
        host.ssh("alice", "stat -c %d /").text(),
        "it is not the same overlay"
    );
    // Names, kinds, modes, sizes and contents of two whole trees; owners differ by the first id.
    let tree = "cd \"$1\" && find etc usr/share/doc var/lib -xdev -printf '%p %y %m %l\\n' | LC_ALL=C sort | sha256sum; \
                find etc -xdev -type f -print0 | LC_ALL=C sort -z | xargs -0 cat | sha256sum";
    let outside = host.root(tree).arg(AT).text();
    assert_eq!(
        outside,
        host.ssh("alice", &format!("sudo sh -c '{}' sh /", tree.replace('\'', "'\\''"))).text()
    );

    // From outside: a file changed, one removed. From inside: one that is new.
    host.root(&format!("echo more >> {AT}/etc/issue; rm {AT}/etc/motd")).ok();
    assert_eq!(
        host.ssh("alice", "cat /etc/issue; test -e /etc/motd || echo gone").text(),
        "changed\nmore\ngone"
    );
    host.ssh("alice", "echo new > /var/tmp/new").ok();
    assert_eq!(host.root(&format!("cat {AT}/var/tmp/new")).text(), "new");
    // It goes where all changes go.
    assert_eq!(host.root("cat /srv/overlay/upperdirs/alice/etc/issue").text(), "changed\nmore");
}

#[test]
fn owners_are_the_ids_outside_and_new_files_need_one_of_them() {
    lab::require_root!();
    let host = host("");
    host.root("ojail mount alice").ok();
    let status = host.root("ojail status alice --json").text();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let first = status["ids"][0].as_u64().unwrap().to_string();
    assert_eq!(host.root(&format!("stat -c '%u %g' {AT}/etc/passwd")).text(), format!("{first} {first}"));
    host.ssh("alice", "touch /var/tmp/own").ok();
    assert_eq!(host.root(&format!("stat -c %U {AT}/var/tmp/own")).text(), "alice");
    // uid 0 of the host is nobody in there.
    let new = host.root(&format!("touch {AT}/var/tmp/roots")).fails();
    assert!(new.stderr.contains("Value too large"), "{new}");
    host.root(&format!(
        "cd {AT}/var/tmp && setpriv --reuid={first} --regid={first} --clear-groups touch new"
    ))
    .ok();
    assert_eq!(host.ssh("alice", "stat -c %U /var/tmp/new").text(), "root");
}

#[test]
fn the_mount_has_no_power_on_the_host_and_brings_nothing_of_what_is_mounted_inside() {
    lab::require_root!();
    let host = host("root = true");
    host.root("ojail mount alice").ok();
    let [line] = &mounts(&host)[..] else { panic!("{:?}", mounts(&host)) };
    let options = line.split(' ').nth(5).unwrap();
    assert!(line.contains(" - overlay "), "{line}");
    for option in ["rw", "nosuid", "nodev"] {
        assert!(options.split(',').any(|is| is == option), "{option} is missing: {line}");
    }
    for empty in ["proc", "dev/pts", "tmp", "home/alice"] {
        assert_eq!(host.root(&format!("ls -A {AT}/{empty} 2>/dev/null || true")).text(), "", "{empty}");
    }
    // For nobody but root.
    let output = host.ssh("bob", &format!("ls {AT}")).fails();
    assert!(output.stderr.contains("Permission denied"), "{output}");
    // Not from inside either.
    assert_eq!(host.ssh("alice", "ls -A /srv").text(), "");
    let table = host.ssh("alice", "cat /proc/self/mountinfo").text();
    assert!(!table.contains("/srv/jails"), "{table}");
}

#[test]
fn a_read_only_mount_lets_nothing_be_written_and_the_jail_goes_on() {
    lab::require_root!();
    let host = host("");
    let said = host.root("ojail mount alice --read-only").text();
    assert_eq!(said, "The jail of alice is mounted at /srv/jails/alice, read-only.");
    let output = host.root(&format!("echo x >> {AT}/etc/issue")).fails();
    assert!(output.stderr.contains("Read-only"), "{output}");
    host.ssh("alice", "echo x > /var/tmp/x").ok();
    assert_eq!(host.root(&format!("cat {AT}/var/tmp/x")).text(), "x");
    // The other mode is another mount.
    assert_eq!(
        host.root("ojail mount alice --read-only").text(),
        "The jail of alice is mounted at /srv/jails/alice, read-only already."
    );
    refused(
        host.root("ojail mount alice").run(),
        "mounted at /srv/jails/alice already, read-only; `ojail umount alice` first",
    );
    assert_eq!(mounts(&host).len(), 1);
}

#[test]
fn it_is_raised_without_a_session_and_stays_as_long_as_it_is_mounted() {
    lab::require_root!();
    let host = impatient();
    let before = host.mountinfo();
    let said = host.root("ojail mount alice").text();
    assert_eq!(said, "The jail of alice is mounted at /srv/jails/alice.");
    assert_eq!(told(&host).as_deref(), Some(AT));
    assert_eq!(sessions(&host, "alice"), 0);
    let pid = init(&host, "alice");
    let ends = logged(&host, "event=session-end");
    host.ssh("alice", "cat /var/tmp/kept").ok();
    until("the session is over", SOON, || logged(&host, "event=session-end") > ends);
    // Twice: mounted already is no error, and no second mount.
    assert!(host.root("ojail mount alice").text().contains("already"));
    assert_eq!(mounts(&host).len(), 1);
    // It ends at once where it is not held.
    host.root("sleep 1").ok();
    assert_eq!(init(&host, "alice"), pid, "the jail has ended");
    assert_eq!(host.root(&format!("cat {AT}/var/tmp/kept")).text(), "kept");

    let said = host.root("ojail umount alice").text();
    assert_eq!(said, "The jail of alice is not mounted at /srv/jails/alice any more.");
    until("the jail has ended", SOON, || !runs(&host, "alice"));
    assert_eq!(host.mountinfo(), before);
    assert_eq!(host.root("ls -A /srv/jails").text(), "");
    until("nothing is left", SOON, || corner(&host, "alice").is_empty());
    let said = host.root("ojail umount alice").text();
    assert_eq!(said, "The jail of alice is not mounted; there was nothing to unmount.");
}

#[test]
fn what_would_end_a_mounted_jail_is_refused_or_takes_the_mount_along() {
    lab::require_root!();
    let host = host("");
    host.ssh("alice", "echo kept > /var/tmp/kept").ok();
    host.root("ojail mount alice").ok();
    let pid = init(&host, "alice");
    let why = "the jail of alice is mounted at /srv/jails/alice; `ojail umount alice` first";
    refused(host.root("ojail stop alice").run(), why);
    refused(host.root("ojail reset alice").run(), why);
    assert_eq!((init(&host, "alice"), mounts(&host).len()), (pid, 1), "a refused act has changed something");
    assert_eq!(host.root("ls -A /srv/overlay/asidedirs/alice").text(), "");

    // Also what takes it along does not end somebody's work on it unasked.
    let user = host.root(&format!("cd {AT}/etc && echo there && cat")).spawn();
    user.wait_for("there");
    refused(host.root("ojail stop alice --force").run(), "/srv/jails/alice is in use: process ");
    assert!(runs(&host, "alice"));
    user.finish();

    let said = host.root("ojail stop alice --force").text();
    assert!(
        said.contains("not mounted at /srv/jails/alice any more") && said.contains("has ended"),
        "{said}"
    );
    assert_eq!((mounts(&host).len(), runs(&host, "alice")), (0, false));
    assert_eq!(host.ssh("alice", "cat /var/tmp/kept").text(), "kept");

    host.root("ojail mount alice && ojail reset alice --force").ok();
    assert_eq!((mounts(&host).len(), runs(&host, "alice")), (0, false));
    host.ssh("alice", "cat /var/tmp/kept").fails();
    host.root("ojail mount alice").ok();
    refused(host.root("ojail undo alice").run(), why);
    host.root("ojail undo alice --force").ok();
    assert_eq!(host.ssh("alice", "cat /var/tmp/kept").text(), "kept");
}

#[test]
fn a_mount_in_use_is_not_unmounted_and_who_uses_it_is_named() {
    lab::require_root!();
    let host = host("");
    // Somebody inside, at a path of the same name, is not in the way.
    let inside = host.ssh("alice", "mkdir -p ~/x; cd ~/x; echo there; cat").spawn();
    inside.wait_for("there");
    host.root("ojail mount alice").ok();
    let user = host.root(&format!("exec 7< {AT}/etc/passwd; echo $$; cat")).spawn();
    let pid = user.wait_for("\n").trim().to_owned();
    let output = host.root("ojail umount alice").run();
    assert!(output.stderr.contains(&format!("process {pid} (sh)")), "{output}");
    refused(output, "; end what uses it, then `ojail umount alice` again");
    host.root(&format!("mount -t tmpfs none {AT}/mnt")).ok();
    refused(host.root("ojail umount alice").run(), "/srv/jails/alice/mnt is mounted in it");
    assert!(told(&host).is_some());
    user.finish();
    host.root(&format!("umount {AT}/mnt && ojail umount alice")).ok();
    assert_eq!(sessions(&host, "alice"), 1);
    inside.finish().ok();
}

#[test]
fn after_a_kill_of_pid_1_the_mount_stands_in_the_way_of_a_second_overlay_until_it_is_gone() {
    lab::require_root!();
    let host = host("");
    host.ssh("alice", "echo kept > /var/tmp/kept").ok();
    host.root("ojail mount alice").ok();
    let pid = init(&host, "alice");
    host.root(&format!("kill -9 {pid}")).ok();
    until("the jail has ended", SOON, || !runs(&host, "alice"));
    let why = "the last jail of alice has ended, but is still mounted at /srv/jails/alice; `ojail umount alice` lets go of it";
    host.ssh("alice", "true").fails();
    host.wait_for_log(why);
    refused(host.root("ojail enter alice -- true").run(), why);
    refused(host.root("ojail mount alice").run(), why);
    refused(host.root("ojail stop alice").run(), "`ojail umount alice` first");
    assert_eq!(told(&host).as_deref(), Some(AT));
    let list = host.root("ojail list").text();
    assert!(list.contains("ended, but mounted"), "{list}");
    let check = host.root("ojail check").run();
    assert!(check.code() == Some(2) && check.stdout.contains(why), "{check}");
    // What is written to it now is not lost.
    host.root(&format!("echo more >> {AT}/var/tmp/kept; ojail umount alice")).ok();
    assert_eq!(host.ssh("alice", "cat /var/tmp/kept").text(), "kept\nmore");
}

#[test]
fn a_jail_that_is_mounted_lets_its_user_in_also_after_a_change_of_the_configuration() {
    lab::require_root!();
    let host = host("keep_warm = \"0\"");
    host.root("ojail mount alice").ok();
    let pid = init(&host, "alice");
    host.write("/etc/ojail/ojail.toml", 0o644, &config("keep_warm = \"0\"\nroot = true"));
    host.ssh("alice", "true").ok();
    assert_eq!(init(&host, "alice"), pid);
    assert_eq!(jail(&host, "alice").unwrap()["outdated"], true);
    host.root("ojail umount alice").ok();
    host.ssh("alice", "sudo true").ok();
}

#[test]
fn a_jail_without_an_upper_is_shown_as_what_it_is() {
    lab::require_root!();
    let host = host("writable = false");
    // It is read-only in either mode.
    host.root("ojail mount alice && ojail mount alice && ojail mount alice --read-only").ok();
    assert_eq!(mounts(&host).len(), 1);
    let output = host.root(&format!("echo x >> {AT}/etc/issue")).fails();
    assert!(output.stderr.contains("Read-only"), "{output}");
    host.root("ojail umount alice").ok();
}

#[test]
fn what_cannot_be_mounted_is_told_and_nothing_is_changed() {
    lab::require_root!();
    let host = host("");
    let before = host.mountinfo();
    for (command, why) in [
        ("ojail mount bob", "bob is not jailed: no rule matches"),
        ("ojail mount root", "uid 0 is always exempt"),
        ("ojail mount alcie", "user \"alcie\" does not exist"),
        ("ojail umount alcie", "user \"alcie\" does not exist"),
        ("ojail mount ../alice", "does not exist"),
        (
            "mkdir -p /srv/jails/alice; chmod 700 /srv/jails; touch /srv/jails/alice/x; ojail mount alice",
            "is not empty",
        ),
        ("rm -r /srv/jails/alice; touch /srv/jails/alice; ojail mount alice", "is not a directory"),
        ("rm /srv/jails/alice; ln -s /etc /srv/jails/alice; ojail mount alice", "is not a directory"),
        (
            "rm /srv/jails/alice; chmod 755 /srv/jails; ojail mount alice",
            "can be entered by others than root",
        ),
        ("rmdir /srv/jails; ln -s /opt /srv/jails; ojail mount alice", "is a symbolic link"),
        ("rm /srv/jails; install -d -m 700 -o bob /srv/jails; ojail mount alice", "belongs to uid"),
        ("rmdir /srv/jails; unshare -m ojail mount alice", "a mount namespace of its own"),
    ] {
        refused(host.root(command).run(), why);
        assert_eq!(host.mountinfo(), before, "{command}");
        assert!(!runs(&host, "alice"), "{command}: a jail was raised");
    }
    host.root("mkdir -m 700 /srv/jails && mkdir /srv/jails/alice && mount -t tmpfs none /srv/jails/alice")
        .ok();
    refused(host.root("ojail mount alice").run(), "has something else mounted on it");
    let output = host.ssh("bob", "/usr/sbin/ojail mount alice").fails();
    assert!(output.stderr.contains("needs root"), "{output}");
    // And a jail is not in the way of anything of this.
    host.ssh("alice", "true").ok();
    // An empty directory will do.
    host.root("umount /srv/jails/alice && ojail mount alice && ojail umount alice").ok();
    let output = host.root("ojail mount").fails();
    assert_eq!(output.code(), Some(2), "{output}");
}

#[test]
fn mounts_of_several_users_and_at_once_are_one_each() {
    lab::require_root!();
    let host = lab::host()
        .user(User::new("alice").groups(["jailed"]))
        .user(User::new("carol").groups(["jailed"]))
        .layer("debian")
        .config(&config(""))
        .pam("sshd")
        .start();
    let all = "for n in 1 2 3 4; do for user in alice carol; do ojail mount $user & done; done; wait";
    let said = host.root(all).ok();
    assert_eq!(said.stderr, "");
    assert_eq!(said.stdout.matches("already").count(), 6, "{said}");
    assert_eq!(mounts(&host).len(), 2);
    // Neither is in the other's way, nor of a login.
    host.root("ojail umount carol").ok();
    host.ssh("carol", "true").ok();
    host.root("ojail stop carol && ojail umount alice && ojail stop alice").ok();
    assert_eq!(mounts(&host).len(), 0);
}

/// Every system call of a command from the first that opens something of ojail's.
fn points(host: &Host, command: &str) -> Vec<Point> {
    Point::all(host, command).into_iter().skip_while(|point| !point.begins()).collect()
}

#[test]
fn after_a_kill_of_ojail_mount_at_any_system_call_it_is_mounted_and_held_or_neither() {
    lab::require_root!();
    // Where the jail runs already, for the sake of speed, and ends when it is not held.
    let host = host("keep_warm = \"1s\"");
    let hold = || {
        let session = host.ssh("alice", "echo there; cat").spawn();
        session.wait_for("there");
        session
    };
    let session = hold();
    let all = points(&host, "ojail mount alice");
    host.root("ojail umount alice").ok();
    let (mut mounted, mut not) = (0, 0);
    for point in &all {
        point.kill(&host, "ojail mount alice");
        let at = format!("a kill at {point}");
        let is_mounted = !mounts(&host).is_empty();
        assert_eq!(told(&host).is_some(), is_mounted, "{at}");
        // PID 1 tells whether it would stay: nothing but a hold keeps it from making way.
        let held = host.root("ojail list --json").text();
        assert!(held.contains("\"running\":true"), "{at}: {held}");
        if is_mounted {
            mounted += 1;
        } else {
            not += 1;
        }
        // The next act finds its way from there.
        host.root("ojail mount alice >/dev/null && ojail umount alice").ok();
        assert_eq!(mounts(&host).len(), 0, "{at}");
    }
    eprintln!("{} points, {not} before the mount and {mounted} behind it", all.len());
    assert!(not > 50 && mounted > 3, "{not} before, {mounted} behind");
    session.finish().ok();
    until("nothing holds the jail", SOON, || !runs(&host, "alice"));

    // And around the mount itself, whether it is held when nobody is in.
    let first = all.iter().position(|point| point.call == "move_mount").expect("it is attached somehow");
    for point in &all[first.saturating_sub(4)..(first + 4).min(all.len())] {
        let session = hold();
        point.kill(&host, "ojail mount alice");
        let ends = logged(&host, "event=session-end");
        session.finish().ok();
        until("the session is over", SOON, || logged(&host, "event=session-end") > ends);
        let at = format!("a kill at {point}");
        if mounts(&host).is_empty() {
            until(&format!("{at}: nothing holds the jail"), SOON, || !runs(&host, "alice"));
        } else {
            host.root("sleep 1.5").ok();
            assert!(runs(&host, "alice"), "{at}: it is mounted and not held");
            host.root("ojail umount alice").ok();
            until(&format!("{at}: nothing holds the jail"), SOON, || !runs(&host, "alice"));
        }
    }
}

#[test]
fn a_hold_that_a_killed_umount_left_is_taken_back_by_the_next_act_or_by_tidy() {
    lab::require_root!();
    let host = impatient();
    host.root("ojail mount alice").ok();
    let all = points(&host, "ojail umount alice");
    until("the jail has ended", SOON, || !runs(&host, "alice"));
    let first = all.iter().position(|point| point.call == "umount2").expect("it is unmounted somehow");
    let mut held = 0;
    for point in &all[first..] {
        for next in [
            "ojail umount alice",
            "ojail tidy",
            "ojail stop alice",
            "ojail mount alice && ojail umount alice",
        ] {
            host.root("ojail mount alice").ok();
            point.kill(&host, "ojail umount alice");
            held += usize::from(mounts(&host).is_empty() && runs(&host, "alice"));
            if next == "ojail tidy" && !mounts(&host).is_empty() {
                host.root("ojail umount alice").ok();
            }
            let after = host.root(next).run();
            // Killed before it was unmounted.
            if next == "ojail stop alice" && after.code() == Some(1) {
                host.root("ojail umount alice").ok();
            }
            until(&format!("a kill at {point}, {next}: the jail has ended"), SOON, || !runs(&host, "alice"));
            assert_eq!((mounts(&host).len(), host.root("ls -A /srv/jails").text().as_str()), (0, ""));
        }
    }
    eprintln!("{held} of {} were held and not mounted", 4 * (all.len() - first));
}
