//! Points in time of what a user changed, also while the user works.

use std::fs;
use std::thread;
use std::time::Duration;

use lab::{Host, User};
use serde_json::Value;

use crate::common::{config, host, init, runs, setup, until};
use crate::{alone, assert_same, everything, whole};

const UPPER: &str = "/srv/overlay/upperdirs/alice";

fn snapshots(host: &Host, user: &str) -> Vec<Value> {
    let list: Value =
        serde_json::from_str(&host.root(&format!("ojail snapshot list {user} --json")).text()).unwrap();
    list["snapshots"].as_array().unwrap().clone()
}

#[test]
fn a_snapshot_is_as_the_upper_was_a_restore_goes_back_to_it_and_undo_forward_again() {
    lab::require_root!();
    let host = host("root = true");
    host.ssh("alice", "sudo sh -c 'rm -r /usr/share/doc/bash; echo old > /etc/issue'").ok();
    everything(&host, "alice");
    let old = whole(&host, UPPER);
    let said = host.root("ojail snapshot alice before-upgrade").text();
    assert!(said.starts_with("\"before-upgrade\" is a snapshot of what alice has changed ("), "{said}");
    assert_same(&whole(&host, UPPER), &old);
    let listed = snapshots(&host, "alice");
    assert_eq!((listed.len(), &listed[0]["name"]), (1, &Value::from("before-upgrade")));
    let copy = listed[0]["upper"].as_str().unwrap();
    assert_same(&whole(&host, copy), &old);

    host.ssh("alice", "sudo sh -c 'echo new > /etc/issue; touch /opt/new'").ok();
    host.root("ojail stop alice").ok();
    let new = whole(&host, UPPER);
    let said = host.root("ojail snapshot restore alice before-upgrade").text();
    assert!(said.contains("`ojail undo alice` puts it back"), "{said}");
    assert_same(&whole(&host, UPPER), &old);
    assert_eq!(
        host.ssh("alice", "cat /etc/issue; ls /opt/new /usr/share/doc/bash 2>&1 | wc -l").text(),
        "old\n2"
    );
    host.root("ojail undo alice").ok();
    assert_same(&whole(&host, UPPER), &new);
    assert_eq!(host.ssh("alice", "cat /etc/issue; ls -d /opt/new").text(), "new\n/opt/new");
    assert_same(&whole(&host, copy), &old);

    // Where there is nothing to go forward to.
    host.root("ojail stop alice; ojail reset alice").ok();
    host.root("ojail snapshot restore alice before-upgrade").ok();
    assert_same(&whole(&host, UPPER), &old);
    host.root("ojail snapshot remove alice before-upgrade").ok();
    assert!(!host.path(copy).exists());
    assert_eq!(host.root("ojail snapshot list alice").text(), "There is no snapshot of alice.");
    assert_eq!(host.root("ls /srv/overlay/asidedirs/.trash").text(), "");
}

#[test]
fn snapshots_without_a_name_are_called_by_the_time_and_outlive_the_retention() {
    lab::require_root!();
    let host = setup("").config(&format!("[reset]\nkeep = \"1s\"\n{}", config(""))).start();
    host.ssh("alice", "echo 1 > /var/tmp/number").ok();
    host.root("ojail stop alice; ojail snapshot alice; touch -d 2001-01-01 /srv/overlay/asidedirs/alice/*")
        .ok();
    let name = snapshots(&host, "alice")[0]["name"].as_str().unwrap().to_owned();
    assert!(name.starts_with("s-20") && name.ends_with('Z'), "{name}");
    thread::sleep(Duration::from_secs(2));
    host.root("ojail tidy").ok();
    assert_eq!(snapshots(&host, "alice").len(), 1);
    // Nor is it what `undo` looks for.
    let refused = host.root("ojail undo alice").fails();
    assert!(refused.stderr.contains("nothing is set aside for alice; there is nothing to undo"), "{refused}");
    let refused = host.root(&format!("ojail undo alice {name}")).fails();
    assert!(
        refused.stderr.contains(&format!("`ojail snapshot restore alice {name}` goes back")),
        "{refused}"
    );
}

#[test]
fn what_cannot_be_is_refused_with_one_sentence() {
    lab::require_root!();
    let host = setup("").user(User::new("remove").groups(["jailed"])).start();
    host.ssh("alice", "touch /var/tmp/x").ok();
    host.ssh("remove", "touch /var/tmp/x").ok();
    host.root("ojail stop alice; ojail stop remove; ojail snapshot alice one").ok();
    let before = whole(&host, "/srv/overlay/asidedirs");
    for (command, why) in [
        ("ojail snapshot alcie", "user \"alcie\" does not exist"),
        ("ojail snapshot ../alice", "cannot have a jail"),
        ("ojail snapshot bob", "bob has changed nothing: there is no /srv/overlay/upperdirs/bob"),
        (
            "ojail snapshot alice one",
            "something called \"one\" is there already for alice; choose another name",
        ),
        ("ojail snapshot alice ../../x", "a snapshot cannot be called \"../../x\""),
        ("ojail snapshot alice 2026-11-24T09.54.46Z", "not like a time"),
        ("ojail snapshot restore alice two", "alice has no snapshot \"two\"; `ojail snapshot list alice`"),
        ("ojail snapshot restore bob one", "bob has no snapshot \"one\""),
        ("ojail snapshot remove alice ../one", "alice has no snapshot \"../one\""),
    ] {
        let refused = host.root(command).fails();
        assert_eq!(refused.code(), Some(1), "{command}: {refused}");
        assert!(refused.stderr.contains(why), "{command}: {refused}");
        assert_eq!(refused.stderr.lines().count(), 1, "{command}: {refused}");
    }
    for wrong in [
        "ojail snapshot",
        "ojail snapshot list",
        "ojail snapshot alice x --force",
        "ojail snapshot restore alice",
    ] {
        assert_eq!(host.root(wrong).run().code(), Some(2), "{wrong}");
    }
    assert_eq!(whole(&host, "/srv/overlay/asidedirs"), before);
    // What a reset cleared has a name, and is no snapshot.
    host.root("ojail reset alice").ok();
    let name = host.root("ls /srv/overlay/asidedirs/alice | grep Z$").text();
    host.root(&format!("ojail snapshot remove alice {name}")).fails();
    // A user who is called like a verb.
    host.root("ojail snapshot -- remove two").ok();
    assert_eq!(snapshots(&host, "remove").len(), 1);
    host.ssh("bob", "PATH=$PATH:/usr/sbin; ojail snapshot alice").fails();
}

#[test]
fn a_disk_that_has_no_room_for_a_copy_is_left_as_it_is() {
    lab::require_root!();
    lab::require!(lab::must::loop_devices());
    let host = setup("").small_disk("64M").start();
    host.ssh("alice", "head -c 30M /dev/urandom > /var/tmp/large").ok();
    host.root("ojail stop alice").ok();
    let refused = host.root("ojail snapshot alice").fails();
    assert!(refused.stderr.contains(" left, and 30 MiB are needed; make room first"), "{refused}");
    assert_eq!(host.root("ls -A /srv/overlay/asidedirs/alice").text(), "");
    assert!(snapshots(&host, "alice").is_empty());
    // What is full by the time is no different.
    host.ssh("alice", "rm /var/tmp/large; echo fits > /var/tmp/small").ok();
    host.root("ojail stop alice").ok();
    for call in ["copy_file_range", "mkdir", "mkdirat", "syncfs", "fsync"] {
        let inject =
            format!("strace -qq -o /dev/null -e inject={call}:error=ENOSPC:when=1+ ojail snapshot alice");
        let refused = host.root(&inject).fails();
        assert!(refused.stderr.contains("No space left on device"), "{call}: {refused}");
        assert_eq!(refused.stderr.lines().count(), 1, "{call}: {refused}");
        assert!(snapshots(&host, "alice").is_empty(), "{call}");
    }
    host.root("ojail snapshot alice").ok();
}

#[test]
fn a_running_jail_is_ended_only_when_asked_and_with_sessions_only_by_force() {
    lab::require_root!();
    let host = host("");
    let session = host.ssh("alice", "echo 1 > /var/tmp/x; echo inside; sleep 300").spawn();
    session.wait_for("inside");
    // Here is no systemd, and no limit: the jail is in no group that could be frozen.
    let refused = host.root("ojail snapshot alice").fails();
    assert!(refused.stderr.contains("the jail of alice cannot be held still"), "{refused}");
    assert!(refused.stderr.contains("`--end` ends it instead"), "{refused}");
    let refused = host.root("ojail snapshot alice --end").fails();
    assert!(refused.stderr.contains("sessions of alice are open (sshd from 127.0.0.1"), "{refused}");
    let refused = host.root("ojail snapshot alice --end --freeze").run();
    assert_eq!(refused.code(), Some(2), "{refused}");
    assert!(snapshots(&host, "alice").is_empty() && runs(&host, "alice"));
    host.root("ojail snapshot alice one --end --force").ok();
    assert!(!runs(&host, "alice"));
    session.finish().fails();
    // Without a session, a word is enough.
    host.ssh("alice", "echo 2 > /var/tmp/x").ok();
    alone(&host, "alice");
    host.root("ojail snapshot alice two --end").ok();
    for (name, number) in [("one", "1"), ("two", "2")] {
        let kept =
            fs::read_to_string(host.path(format!("/srv/overlay/asidedirs/alice/{name}/upper/var/tmp/x")));
        assert_eq!(kept.unwrap(), format!("{number}\n"));
    }
    // A restore ends sessions by force only, too.
    let session = host.ssh("alice", "echo inside; sleep 300").spawn();
    session.wait_for("inside");
    host.root("ojail snapshot restore alice one").fails();
    assert!(runs(&host, "alice"));
    host.root("ojail snapshot restore alice one --force").ok();
    session.finish().fails();
    assert_eq!(host.ssh("alice", "cat /var/tmp/x").text(), "1");
}

/// A host with a control group for the jail of a user, who works: whose name no other host has, for there is one tree of control
/// groups on the machine.
struct Frosty {
    host: Host,
    user: String,
}

impl Frosty {
    fn new(name: &str) -> Self {
        let user = format!("{name}{}", std::process::id());
        let host = lab::host()
            .user(User::new(&user).groups(["jailed"]))
            .layer("debian")
            .config(&config(""))
            .pam("sshd")
            .start();
        host.root("mount -t cgroup2 none /sys/fs/cgroup").ok();
        Self { host, user }
    }

    /// Two files that are always equal, or the first is one ahead; and puts all that runs into the group.
    fn work(&self) -> lab::Running<'_> {
        let count = "cd /var/tmp; touch $(seq 300); n=0; echo 0 > a; echo 0 > b; echo inside; \
                     while :; do n=$((n+1)); echo $n > a.new; mv a.new a; echo $n > b.new; mv b.new b; done";
        let session = self.host.ssh(&self.user, count).within(Duration::from_secs(300)).spawn();
        session.wait_for("inside");
        let gather = r#"
            set -e
            mkdir -p "/sys/fs/cgroup/ojail/$1"
            # Once more for what was started meanwhile.
            for round in 1 2; do
                for p in /proc/[0-9]*; do
                    [ "$(readlink "$p/ns/user")" = "$(readlink "/proc/$2/ns/user")" ] || continue
                    echo "${p#/proc/}" > "/sys/fs/cgroup/ojail/$1/cgroup.procs" || true
                done
            done
        "#;
        let init = init(&self.host, &self.user).to_string();
        self.host.root(gather).arg(&self.user).arg(init).ok();
        session
    }

    fn file(&self, name: &str) -> u64 {
        let path = format!("/srv/overlay/upperdirs/{}/var/tmp/{name}", self.user);
        fs::read_to_string(self.host.path(path)).unwrap().trim().parse().unwrap()
    }

    fn frozen(&self) -> bool {
        let events = format!("cat /sys/fs/cgroup/ojail/{}/cgroup.events", self.user);
        self.host.root(&events).text().contains("frozen 1")
    }

    #[track_caller]
    fn goes_on(&self) {
        let before = self.file("a");
        until("the user's work goes on", crate::common::SOON, || self.file("a") > before + 10);
        assert!(!self.host.path(format!("/run/ojail/jails/{}/frozen", self.user)).exists());
    }

    /// A snapshot that takes some seconds.
    fn slow(&self) -> lab::Running<'_> {
        let slow = format!(
            "strace -qq -o /dev/null -e inject=fchownat:delay_enter=20000 ojail snapshot {} slow",
            self.user
        );
        self.host.root(&slow).spawn()
    }
}

impl Drop for Frosty {
    fn drop(&mut self) {
        let clear = "echo 0 > \"/sys/fs/cgroup/ojail/$1/cgroup.freeze\"; ojail stop \"$1\"; rmdir \"/sys/fs/cgroup/ojail/$1\" /sys/fs/cgroup/ojail";
        self.host.root(clear).arg(&self.user).run();
    }
}

#[test]
fn a_user_who_works_is_frozen_meanwhile_and_the_copy_is_of_one_moment() {
    lab::require_root!();
    let frosty = Frosty::new("frost");
    let mut session = frosty.work();
    for number in 0..5 {
        frosty.host.root(&format!("ojail snapshot {} n{number}", frosty.user)).ok();
        let copy = |name: &str| -> u64 {
            let path = format!("/srv/overlay/asidedirs/{}/n{number}/upper/var/tmp/{name}", frosty.user);
            fs::read_to_string(frosty.host.path(path)).unwrap().trim().parse().unwrap()
        };
        let (a, b) = (copy("a"), copy("b"));
        assert!(a == b || a == b + 1, "{a} and {b} were never there together");
        frosty.goes_on();
    }
    // It is this that makes them equal: what is copied while it goes on is not.
    let slow = frosty.slow();
    until("the jail is frozen", crate::common::SOON, || frosty.frozen());
    let still = (frosty.file("a"), frosty.file("b"));
    // A login waits for its end, or is told; the jail is nobody's else meanwhile.
    let refused = frosty.host.ssh(&frosty.user, "true").run();
    assert!(refused.status.success() || !frosty.frozen() || refused.code() == Some(254), "{refused}");
    if frosty.frozen() {
        assert_eq!((frosty.file("a"), frosty.file("b")), still);
    }
    slow.finish().ok();
    frosty.goes_on();
    assert!(session.is_running());
    frosty.host.ssh(&frosty.user, "cat /proc/1/comm").ok();
    session.kill();
}

#[test]
fn a_snapshot_that_is_killed_lets_the_jail_go_on() {
    lab::require_root!();
    let frosty = Frosty::new("frostier");
    let session = frosty.work();
    let guard = "pgrep -f '^/usr/sbin/ojail hold-still'";
    // The command alone: the guard thaws at once.
    let slow = frosty.slow();
    until("the jail is frozen", crate::common::SOON, || frosty.frozen());
    frosty.host.root(&format!("kill -9 $(pgrep -f '^ojail snapshot {}')", frosty.user)).ok();
    slow.finish().fails();
    frosty.goes_on();
    // The guard alone: the command thaws, and does not believe its copy.
    let slow = frosty.slow();
    until("the jail is frozen", crate::common::SOON, || frosty.frozen());
    frosty.host.root(&format!("kill -9 $({guard})")).ok();
    let refused = slow.finish().fails();
    assert!(refused.stderr.contains("cannot be held still: its guard was killed"), "{refused}");
    frosty.goes_on();
    // Both: whoever comes next thaws.
    for next in ["ojail list".to_owned(), format!("ssh {}@127.0.0.1 true", frosty.user), "ojail tidy".into()]
    {
        let slow = frosty.slow();
        until("the jail is frozen", crate::common::SOON, || frosty.frozen());
        frosty.host.root(&format!("kill -9 $({guard}) $(pgrep -f '^ojail snapshot {}')", frosty.user)).ok();
        slow.finish().fails();
        assert!(frosty.frozen());
        frosty.host.root(&next).ok();
        frosty.goes_on();
    }
    assert!(snapshots(&frosty.host, &frosty.user).is_empty());
    // A process of the jail outside of the group writes on, so there is no moment to be copied.
    let outside =
        frosty.host.root(&format!("ojail enter {} -- sh -c 'echo in; sleep 300'", frosty.user)).spawn();
    outside.wait_for("in");
    let refused = frosty.host.root(&format!("ojail snapshot {}", frosty.user)).fails();
    assert!(refused.stderr.contains("is not in its control group"), "{refused}");
    frosty.goes_on();
    outside.kill();
    session.kill();
}

#[test]
fn a_snapshot_shares_its_blocks_where_the_file_system_can_and_is_a_copy_where_it_cannot() {
    lab::require_root!();
    lab::require!(lab::must::loop_devices());
    lab::require!(lab::must::file_system("xfs"));
    let host = lab::host().disks().user(User::new("alice").groups(["jailed"])).config(&config("")).start();
    for shares in [true, false] {
        let make = "umount /srv/overlay 2>/dev/null; set -e; rm -f /var/lib/ojail/disk; truncate -s 400M /var/lib/ojail/disk; \
            mkfs.xfs -q -m reflink=$1 /var/lib/ojail/disk; mount -o loop /var/lib/ojail/disk /srv/overlay; cd /srv/overlay; \
            mkdir -m 700 lowerdirs upperdirs; mkdir lowerdirs/debian; mkdir -m 755 upperdirs/alice; \
            for i in 1 2 3 4; do head -c 16M /dev/urandom > upperdirs/alice/$i; done";
        host.root(make).arg(if shares { "1" } else { "0" }).ok();
        let used = || -> u64 {
            host.root("sync; df --output=used -B 1M /srv/overlay | tail -1").text().trim().parse().unwrap()
        };
        let before = used();
        let old = whole(&host, UPPER);
        let said = host.root("ojail snapshot alice one").text();
        assert_eq!(said.contains("which shares its space with the changes"), shares, "{said}");
        let taken = used() - before;
        assert_eq!(taken < 8, shares, "the snapshot takes {taken} MiB of 64");
        // What is written behind it is not in it, and going back takes no space either.
        host.root("for i in 1 2 3 4; do echo new > /srv/overlay/upperdirs/alice/$i; done").ok();
        host.root("ojail snapshot restore alice one").ok();
        assert_same(&whole(&host, UPPER), &old);
        assert_eq!(used() - before < 8, shares, "with it and after a restore: {} MiB", used() - before);
    }
    host.root("umount /srv/overlay").ok();
}
