//! Limits: what the kernel here can hold is tried in `tests/machine`; a host that cannot hold them says so, and lets nobody in.

use lab::User;

use crate::common::{config, host, setup};

#[test]
fn a_limit_that_cannot_be_held_refuses_the_login_and_check_says_it_first() {
    lab::require_root!();
    for (limit, why) in [
        ("memory = \"1G\"", "no cgroup v2 is mounted on this host"),
        ("tasks = 300", "no cgroup v2 is mounted on this host"),
        ("disk = \"2G\"", "without project quotas"),
        ("inodes = 1000", "without project quotas"),
    ] {
        let host = host(&format!("limits = {{ {limit} }}"));
        let check = host.root("ojail check").run();
        assert_eq!(check.code(), Some(2), "{check}");
        let line = check.stdout.lines().find(|line| line.contains("cannot be enforced"));
        assert!(line.is_some_and(|line| line.contains(why)), "{limit}: {check}");
        host.ssh("alice", "true").fails();
        let logged = host.wait_for_log("event=refused");
        assert!(logged.contains(why) && logged.contains("user=alice"), "{limit}: {logged}");
        assert_eq!(
            host.root("ls -A /srv/overlay/upperdirs /srv/overlay/workdirs 2>/dev/null | grep alice")
                .run()
                .text(),
            "",
            "nothing was made"
        );
        // Nobody else is concerned.
        host.ssh("bob", "true").ok();
    }
}

#[test]
fn memory_file_systems_keep_to_the_limit_of_the_disk() {
    lab::require_root!();
    // Where there are no quotas at all, the two are still told apart: the profile's limit is refused, and without it /tmp has
    // the kernel's default, half of the memory.
    let host = setup("").start();
    let [size, memory] =
        ["df -B1 --output=size /tmp | tail -1", "awk '/MemTotal/ { print $2 * 1024 }' /proc/meminfo"]
            .map(|command| host.ssh("alice", command).text().trim().parse::<f64>().unwrap());
    assert!((0.4..0.6).contains(&(size / memory)), "{size} of {memory}");
}

#[test]
fn status_tells_of_a_jail_what_there_is_to_tell() {
    lab::require_root!();
    let host = lab::host()
        .user(User::new("alice").groups(["jailed"]))
        .user("bob")
        .layer("debian")
        .config(&config("hostname = \"box\"\nnetwork = \"none\""))
        .pam("sshd")
        .start();
    let text = host.root("ojail status alice").text();
    assert!(text.contains("not running") && text.contains("network     none"), "{text}");
    let _session = host.ssh("alice", "echo here; exec sleep 300").spawn();
    crate::common::until("the session is open", crate::common::SOON, || {
        crate::common::sessions(&host, "alice") == 1
    });
    let text = host.root("ojail status alice").text();
    for part in
        ["profile     debian", "layers      debian", "running since", "sshd from 127.0.0.1", "/tmp, /run"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&host.root("ojail status alice --json").text()).unwrap();
    assert_eq!(
        (&json["user"], &json["running"], &json["network"]),
        (&"alice".into(), &true.into(), &"none".into())
    );
    assert_eq!(json["sessions"].as_array().unwrap().len(), 1);
    assert!(json["in_memory"]["used"].is_u64() && json["memory"]["most"].is_null(), "{json}");
    let no = host.root("ojail status bob").fails();
    assert!(no.stderr.contains("bob is not jailed"), "{no}");
    let no = host.root("ojail status nobody-of-that-name").fails();
    assert_eq!(no.stderr.trim(), "ojail: user \"nobody-of-that-name\" does not exist");
}
