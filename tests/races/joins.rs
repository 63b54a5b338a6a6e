//! Flips inside of a running jail, and sessions that join it meanwhile by every way in.

use std::collections::BTreeMap;
use std::time::Duration;

use lab::Host;

use crate::common::setup;
use crate::flips::{Flipper, Seen, comes_to_rest, perl, root_of, root_of_host, start};
use crate::{JOINS, rounds};

/// Where the links point: what would be worth reading, writing, mounting on or giving away.
const TARGETS: [&str; 5] =
    ["/srv/secret/secret", "/etc/shadow", "../../../../../../root", "/proc/1/root", "/var/lib/ojail"];

fn against_the_host(places: &[&str]) -> Vec<String> {
    places.iter().zip(TARGETS.iter().cycle()).map(|(place, target)| format!("{place}={target}")).collect()
}

/// What the user may exchange: in the home, which is the host's, and in what is everybody's.
const OF_THE_USER: [&str; 10] = [
    "/home/alice/.ssh",
    "/home/alice/.bashrc",
    "/home/alice/.profile",
    "/home/alice/.hushlogin",
    "/home/alice/.Xauthority",
    "/home/alice/.pam_environment",
    "/home/alice/inbox",
    "/tmp/inbox",
    "/var/tmp/inbox",
    "/dev/shm/inbox",
];

/// What only root of the jail may: all that a login reads, writes or mounts on.
const OF_ROOT: [&str; 16] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/shadow",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/environment",
    "/etc/profile",
    "/etc/pam.d",
    "/etc/security",
    "/var/log/lastlog",
    "/var/log/wtmp",
    "/run/utmp",
    "/run/user",
    "/run/ojail/jail.json",
    "/dev/ptmx",
];

/// Makes what is not there.
const PREPARE: &str = "cd; touch .bashrc .profile .hushlogin .Xauthority .pam_environment
    for d in /home/alice /tmp /var/tmp /dev/shm; do mkdir -p $d/inbox; done";

/// Directories of the layers cannot be renamed in an overlay; these copies can.
const PREPARE_ROOT: &str = "set -e
    for d in /etc/pam.d /etc/security; do cp -a $d $d.new; rm -rf $d; mv $d.new $d; done
    touch /var/log/lastlog /var/log/wtmp /run/utmp /etc/environment /etc/nsswitch.conf /etc/profile /etc/resolv.conf";

/// One session of another kind than `ojail enter`. Whatever came of it, what it says comes from the jail.
fn another(host: &Host, number: usize, root: &str, tally: &mut BTreeMap<String, usize>) {
    let stat = "/usr/bin/stat -c %d:%i /";
    // Of a file that the host does not have, and this one alone tells nothing if it is being flipped.
    let marker = "/run/ojail/jail.json";
    let bound = Duration::from_secs(60);
    let (kind, output) = match number % 6 {
        0 => ("exec", host.ssh("alice", stat).within(bound).run()),
        1 => ("terminal", host.ssh("alice", stat).tty().within(bound).run()),
        2 => ("su", host.root(&format!("su alice -c '{stat}'")).within(bound).run()),
        3 => (
            "sftp",
            host.sftp(
                "alice",
                &format!("ls {marker}\n-put /etc/hostname inbox/up\n-put /etc/hostname /tmp/inbox/up\n"),
            )
            .within(bound)
            .run(),
        ),
        4 => ("scp", host.scp(&format!("alice:{marker}"), "/dev/null").within(bound).run()),
        _ => ("scp up", host.scp("/etc/hostname", "alice:/var/tmp/inbox/up").arg("-O").within(bound).run()),
    };
    if number % 6 < 3 {
        let said = output.text();
        let last = said.lines().map(str::trim).find(|line| {
            line.split_once(':').is_some_and(|(a, b)| a.parse::<u64>().is_ok() && b.parse::<u64>().is_ok())
        });
        assert!(last.is_none_or(|last| last == root), "{kind} landed elsewhere: {output}");
        assert!(!output.status.success() || last.is_some(), "{kind} succeeded and said nothing: {output}");
    }
    let how = if output.status.success() { "works" } else { "fails" };
    *tally.entry(format!("{kind} {how}")).or_default() += 1;
}

/// Joins as quickly as root of the host can; each says where it is, or nothing.
fn quick(host: &Host, root: &str, tally: &mut BTreeMap<String, usize>) {
    let script = "i=0; while [ $i -lt $1 ]; do i=$((i+1))
        timeout -k 5 30 ojail enter alice -- /usr/bin/stat -c %d:%i / 2>/dev/null || echo refused; done";
    let output = host.root(script).arg(JOINS.to_string()).within(Duration::from_secs(300)).ok();
    let mut told = 0;
    for line in output.stdout.lines() {
        told += 1;
        assert!(line == root || line == "refused", "a session landed elsewhere: {line:?} is not {root}");
        *tally.entry(format!("enter {}", if line == root { "works" } else { "fails" })).or_default() += 1;
    }
    assert!(told >= JOINS, "{output}");
}

fn flip_and_join(keys: &str, as_root: bool, places: &[&str]) {
    let host = start(setup(keys), "");
    host.ssh("alice", PREPARE).ok();
    if as_root {
        host.ssh("alice", "sudo -n sh").stdin(PREPARE_ROOT).ok();
    }
    let (of_host, root) = (root_of_host(&host), root_of(&host, "alice").unwrap());
    assert_ne!(of_host, root);
    let before = Seen::of(&host, &["/home/bob"]);
    let places = against_the_host(places);
    let become_root = if as_root { "sudo -n " } else { "" };
    // Which the joins are not: they meet half of the flips in one state and half in the other.
    let mut flipper = Flipper::start(host.ssh("alice", &format!("{become_root}{}", perl(&places))), &places);

    let mut tally = BTreeMap::new();
    for number in 0..rounds() {
        quick(&host, &root, &mut tally);
        another(&host, number, &root, &mut tally);
    }
    // To the end, and it was one jail all the time: `root` was never that of another.
    flipper.runs();
    let flips = flipper.end();
    println!("{keys:?}: {flips} flips, {tally:?}");
    assert!(flips > rounds(), "{flips} flips only");
    assert!(tally.get("enter works").is_some_and(|works| *works > 0), "no login has worked: {tally:?}");

    if !as_root {
        // Nobody took the things of hers for something to be made or given away on the way.
        assert_eq!(host.root("find /home/alice ! -user alice").text(), "");
    }
    comes_to_rest(&host, "alice");
    before.is_the_same(&Seen::of(&host, &["/home/bob"]));
}

#[test]
fn what_a_user_flips_inside_during_joins_moves_no_login_and_nothing_of_the_host() {
    lab::require_root!();
    flip_and_join("", false, &OF_THE_USER);
}

#[test]
fn what_root_of_a_jail_flips_inside_during_joins_moves_no_login_and_nothing_of_the_host() {
    lab::require_root!();
    let all: Vec<&str> = OF_THE_USER.iter().chain(&OF_ROOT).copied().collect();
    flip_and_join("root = true", true, &all);
}

#[test]
fn the_directory_etc_itself_is_flipped_during_joins() {
    lab::require_root!();
    let host = start(setup("root = true\nhome = \"jail\""), "");
    // Renamed as a whole, they can be flipped: what an overlay shows of a layer cannot.
    const PREPARE: &str =
        "set -e; for d in /etc /home /root; do cp -a $d $d.new; rm -rf $d; mv $d.new $d; done";
    host.ssh("alice", "sudo -n sh").stdin(PREPARE).ok();
    let root = root_of(&host, "alice").unwrap();
    let before = Seen::of(&host, &["/home"]);
    let places: Vec<String> =
        ["/etc=/srv/secret", "/home=../../../../root", "/root=/var/lib/ojail"].map(String::from).into();
    let mut flipper = Flipper::start(host.ssh("alice", &format!("sudo -n {}", perl(&places))), &places);
    let mut tally = BTreeMap::new();
    for number in 0..rounds() {
        quick(&host, &root, &mut tally);
        another(&host, number, &root, &mut tally);
    }
    flipper.runs();
    println!("/etc: {} flips, {tally:?}", flipper.end());
    assert!(tally.get("enter works").is_some_and(|works| *works > 0), "no login has worked: {tally:?}");
    comes_to_rest(&host, "alice");
    before.is_the_same(&Seen::of(&host, &["/home"]));
}
