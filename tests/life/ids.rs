//! Whose ids a jail has, and that they stay whose they are.

use lab::Host;

use crate::common::{host, setup};

/// The first ids of alice's range, for users and groups, as her jail shows them.
fn range(host: &Host) -> String {
    host.ssh("alice", "awk 'NR==1 {print $2}' /proc/self/uid_map; awk 'NR==1 {print $2}' /proc/self/gid_map")
        .text()
}

fn stop(host: &Host) {
    host.root("ojail stop alice").ok();
}

#[track_caller]
fn is_refused(host: &Host, why: &str) {
    host.ssh("alice", "touch /tmp/ran-on-host").fails();
    host.wait_for_log(why);
    assert!(!host.path("/tmp/ran-on-host").exists());
}

#[test]
fn a_user_with_subordinate_ids_gets_those() {
    lab::require_root!();
    let host = host("");
    host.root("echo alice:300000:65536 > /etc/subuid; echo alice:400000:70000 > /etc/subgid").ok();
    assert_eq!(range(&host), "300000\n400000");
}

#[test]
fn a_user_without_gets_a_range_of_the_pool_for_good() {
    lab::require_root!();
    let host = setup("").config(&format!("[ids]\nfirst = 720896\n{}", crate::common::config(""))).start();
    host.root(": > /etc/subuid; rm /etc/subgid").ok();
    assert_eq!(range(&host), "720896\n720896");
    // Also after a restart of the host, when /run is empty.
    stop(&host);
    host.root("rm -r /run/ojail").ok();
    assert_eq!(range(&host), "720896\n720896");
    // Her own ids keep their numbers.
    let ids = host.ssh("alice", "id -u; id -g").text();
    assert_eq!(ids, host.root("id -u alice; id -g alice").text());
}

#[test]
fn overlapping_ranges_are_refused() {
    lab::require_root!();
    let host = host("");
    for (file, why) in [
        ("/etc/subuid", "/etc/subuid: the ranges of alice and bob overlap at 365535"),
        ("/etc/subgid", "/etc/subgid: the ranges of alice and bob overlap at 365535"),
    ] {
        host.root("printf 'alice:300000:65536\nbob:400000:65536\n' | tee /etc/subuid > /etc/subgid").ok();
        host.root("printf 'alice:300000:65536\nbob:365535:65536\n' > $1").arg(file).ok();
        is_refused(&host, why);
    }
    for (ranges, why) in [
        ("alice:300000:65535\n", "65536"),
        ("alice:0:65536\n", "among the host's own ids"),
        ("alice:4294960000:65536\n", "/etc/subuid"),
        ("alice:300000\n", "/etc/subuid"),
    ] {
        host.root("printf %s \"$1\" | tee /etc/subuid > /etc/subgid").arg(ranges).ok();
        is_refused(&host, why);
    }
    host.root("echo alice:300000:65536 | tee /etc/subuid > /etc/subgid").ok();
    assert_eq!(range(&host), "300000\n300000");
}

#[test]
fn a_damaged_record_refuses_until_it_is_mended() {
    lab::require_root!();
    let host = host("");
    host.root(": > /etc/subuid; : > /etc/subgid").ok();
    let before = range(&host);
    stop(&host);
    let record = host.root("cat /var/lib/ojail/users/alice.toml").text() + "\n";
    for length in (0..record.len()).step_by(3) {
        host.write("/var/lib/ojail/users/alice.toml", 0o600, &record[..length]);
        host.ssh("alice", "touch /tmp/ran-on-host").fails();
    }
    is_refused(&host, "/var/lib/ojail/users/alice.toml: is damaged");
    // Not only the user's own: with one range unknown, none can be called free.
    host.write("/var/lib/ojail/users/alice.toml", 0o600, &record);
    host.write("/var/lib/ojail/users/anna.toml", 0o600, "pool = ");
    is_refused(&host, "/var/lib/ojail/users/anna.toml: is damaged");
    host.root("rm /var/lib/ojail/users/anna.toml").ok();
    assert_eq!(range(&host), before);
}

#[test]
fn another_person_of_the_same_name_does_not_get_the_old_upper() {
    lab::require_root!();
    let host = host("");
    host.ssh("alice", "echo secret > /var/tmp/secret").ok();
    stop(&host);
    host.root("usermod -u 4321 alice").ok();
    is_refused(&host, "the upper of alice belongs to uid 1000, but alice has uid 4321 now");
    assert!(host.path("/srv/overlay/upperdirs/alice/var/tmp/secret").exists());
    // As the sentence says.
    host.root("ojail reset --force alice; rm /var/lib/ojail/users/alice.toml").ok();
    host.ssh("alice", "test ! -e /var/tmp/secret").ok();
}

#[test]
fn two_users_of_one_uid_do_not_both_get_a_jail() {
    lab::require_root!();
    let host = host("");
    host.ssh("alice", "echo first > /var/tmp/file").ok();
    host.root("usermod -o -u 1000 bob && usermod -aG jailed bob && chown -R bob: /home/bob").ok();
    let said = host.ssh("bob", "cat /var/tmp/file").fails();
    assert!(!said.stdout.contains("first"), "{said}");
    host.wait_for_log("bob and alice, who has a jail, are both uid 1000");
    // With the first one gone, the uid is the second one's alone.
    host.root("ojail stop alice; userdel alice").ok();
    assert_eq!(host.ssh("bob", "cat /proc/1/comm; ls /var/tmp").text(), "ojail-init");
}

#[test]
fn a_uid_above_the_usual_ones_is_the_same_inside() {
    lab::require_root!();
    let host = host("");
    host.root("usermod -u 70000 alice && groupmod -g 70001 alice && chown -R 70000:70001 /home/alice").ok();
    assert_eq!(
        host.ssh("alice", "id -u; id -g; touch ~/file /var/tmp/file && stat -c '%u %g' ~/file /var/tmp/file")
            .text(),
        "70000\n70001\n70000 70001\n70000 70001"
    );
    assert_eq!(host.root("stat -c '%u %g' /srv/overlay/upperdirs/alice/var/tmp/file").text(), "70000 70001");
}
