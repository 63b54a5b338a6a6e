//! Many first logins at once: one jail a user, one range a jail.

use std::collections::BTreeSet;
use std::time::Duration;

use lab::User;

use crate::common::{SOON, config, logged, setup, until};

/// sshd drops connections that wait, by default from the tenth on.
const PATIENT: &str = "MaxStartups 500";

const BOUND: Duration = Duration::from_secs(60);

#[test]
fn fifty_first_logins_at_once_are_in_one_jail() {
    lab::require_root!();
    let host = setup("").sshd_config(PATIENT).start();
    let logins: Vec<_> =
        (0..50).map(|_| host.ssh("alice", "readlink /proc/self/ns/pid").within(BOUND).spawn()).collect();
    let jails: BTreeSet<String> = logins.into_iter().map(|login| login.finish().ok().text()).collect();
    assert_eq!(jails.len(), 1, "{jails:?}");
    assert!(jails.first().is_some_and(|jail| jail.starts_with("pid:[")), "{jails:?}");
    until("all are in the log", SOON, || logged(&host, "event=session-start") == 50);
    assert_eq!(logged(&host, "event=jail-raised"), 1);
}

#[test]
fn logins_while_jails_end_all_the_time_are_served_one_jail_at_a_time() {
    lab::require_root!();
    let host = setup("keep_warm = \"0\"").sshd_config(PATIENT).start();
    for round in 0..4 {
        let logins: Vec<_> = (0..6)
            .map(|n| {
                let command =
                    format!("echo {round} >> /var/tmp/count; readlink /proc/self/ns/mnt; sleep 0.0{n}");
                host.ssh("alice", &command).within(BOUND).spawn()
            })
            .collect();
        for login in logins {
            login.finish().ok();
        }
    }
    assert_eq!(host.ssh("alice", "wc -l < /var/tmp/count").text(), "24");
}

#[test]
fn twenty_users_first_logins_at_once_get_ranges_of_their_own() {
    lab::require_root!();
    let users: Vec<String> = (0..20).map(|n| format!("user{n}")).collect();
    let mut setup = lab::host().layer("debian").config(&config("")).pam("sshd").sshd_config(PATIENT);
    for user in &users {
        setup = setup.user(User::new(user).groups(["jailed"]));
    }
    let host = setup.start();
    // From the pool, where they have to be given out.
    host.root(": > /etc/subuid; : > /etc/subgid").ok();
    let logins: Vec<_> = users
        .iter()
        .map(|user| host.ssh(user, "head -n 1 /proc/self/uid_map /proc/self/gid_map").within(BOUND).spawn())
        .collect();
    let mut ranges = BTreeSet::new();
    for login in logins {
        let maps = login.finish().ok();
        let firsts: Vec<u32> =
            maps.stdout.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse().ok()).collect();
        assert_eq!((firsts.len(), firsts.first()), (2, firsts.last()), "{maps}");
        assert_eq!((firsts[0] - 524_288) % 65_536, 0, "{maps}");
        ranges.insert(firsts[0]);
    }
    assert_eq!(ranges.len(), users.len(), "{ranges:?}");
}
