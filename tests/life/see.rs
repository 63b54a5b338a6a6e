//! What an administrator sees of jails: `ojail list` and `ojail status`.

use std::time::Duration;

use serde_json::Value;

use crate::common::{SOON, host, jail, sessions, setup, until};

fn status(host: &lab::Host, user: &str) -> Value {
    let text = host.root(&format!("ojail status {user} --json")).within(Duration::from_secs(60)).text();
    serde_json::from_str(&text).expect("--json prints JSON")
}

#[test]
fn status_names_the_terminal_of_each_session_as_its_user_does() {
    lab::require_root!();
    let host = setup("").pam("su").pam("su-l").start();
    let first = host.ssh("alice", "echo at=$(tty)=; sleep 300").tty().spawn();
    first.wait_for("at=/dev/pts/0=");
    let second = host.ssh("alice", "echo at=$(tty)=; sleep 300").tty().spawn();
    second.wait_for("at=/dev/pts/1=");
    let enter = host
        .root("script -qec 'ojail enter alice -- sh -c \"echo at=\\$(tty)=; sleep 300\"' /dev/null")
        .spawn();
    enter.wait_for("at=/dev/pts/2=");
    // A terminal that a program of the user's has made is not the session's.
    let pipes = host.ssh("alice", "script -qc 'echo at=$(tty)=; sleep 300' /dev/null; true").spawn();
    pipes.wait_for("at=/dev/pts/3=");
    // This one is at the host's first terminal that is free, whatever there is of that number in the jail.
    let su = host
        .root("script -qec 'echo tty=$(tty)=; su -l alice -c \"echo inside; sleep 300\"' /dev/null")
        .spawn();
    let said = su.wait_for("inside");
    let of_the_host = said.split('=').nth(1).unwrap().trim_start_matches("/dev/").to_owned();

    let seen = status(&host, "alice");
    let mut terminals: Vec<String> = seen["sessions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|session| format!("{} {}", session["service"].as_str().unwrap(), session["terminals"]))
        .collect();
    terminals.sort();
    assert_eq!(
        terminals,
        [
            "enter [\"pts/2\"]".to_owned(),
            "sshd [\"pts/0\"]".into(),
            "sshd [\"pts/1\"]".into(),
            "sshd []".into(),
            format!("su-l [\"{of_the_host} of the host\"]"),
        ]
    );
    let text = host.root("ojail status alice").text();
    assert!(text.contains("session     sshd from 127.0.0.1 on pts/1, since "), "{text}");
    let refused = host.root("ojail reset alice").fails();
    assert!(refused.stderr.contains("sshd from 127.0.0.1 on pts/0, since "), "{refused}");
}

#[test]
fn status_tells_the_size_of_an_upper_as_du_does_and_when_it_was_reset() {
    lab::require_root!();
    let host = host("");
    let seen = status(&host, "alice");
    assert!(seen["disk"]["used"].is_null() && seen["last_reset"].is_null(), "{seen}");
    host.ssh("alice", "cd /var/tmp; head -c 3000000 /dev/urandom > a; ln a b; truncate -s 1G hole; ln -s / root; mkdir -m 0 closed")
        .ok();
    let du = |option: &str| -> u64 {
        let text = host.root(&format!("du -s {option} /srv/overlay/upperdirs/alice")).text();
        text.split_whitespace().next().unwrap().parse().unwrap()
    };
    let is_as_du_says = || {
        let seen = status(&host, "alice");
        assert_eq!(seen["disk"]["used"], du("--block-size=1"), "{seen}");
        assert_eq!(seen["inodes"]["used"], du("--inodes"), "{seen}");
    };
    is_as_du_says();
    let text = host.root("ojail status alice").text();
    assert!(text.contains("  upper       2.") && text.contains(" MiB, no limit"), "{text}");

    // As deep as a user can dig, and the names of all levels together longer than any path may be.
    let dig = "import os\nos.chdir('/srv/overlay/upperdirs/alice/var/tmp')\nfor _ in range(10000):\n    os.mkdir('x'*50); os.chdir('x'*50)\n";
    host.exec(["python3", "-c", dig]).ok();
    is_as_du_says();

    let listed = |option: &str| {
        let text = host.root(&format!("ojail list {option} --json")).within(Duration::from_secs(60)).text();
        serde_json::from_str::<Value>(&text).unwrap()["jails"][0].clone()
    };
    let quick = listed("");
    assert!(quick["upper"] == true && quick["disk"]["used"].is_null(), "{quick}");
    let sized = listed("--sizes");
    assert_eq!(
        (&sized["disk"]["used"], &sized["inodes"]["used"]),
        (&du("--block-size=1").into(), &du("--inodes").into())
    );
    let table = host.root("ojail list --sizes").text();
    assert!(table.contains("UPPER") && table.contains("MiB") && !table.contains("MEMORY"), "{table}");
    assert!(!host.root("ojail list").text().contains("UPPER"));

    host.root("ojail reset alice").ok();
    let now: u64 = host.root("date +%s").text().parse().unwrap();
    let seen = status(&host, "alice");
    let reset = seen["last_reset"].as_u64().unwrap();
    assert!((now - 20..=now).contains(&reset), "{reset} and now {now}");
    assert!(seen["disk"]["used"].is_null(), "{seen}");
    assert!(host.root("ojail status alice").text().contains("last reset  20"));
}

#[test]
fn list_keeps_within_a_terminal_and_leaves_out_what_is_empty() {
    lab::require_root!();
    let host = host("");
    host.ssh("alice", "true").ok();
    until("the session is over", SOON, || sessions(&host, "alice") == 0);
    let resting = host.root("ojail list").text();
    let head = resting.lines().next().unwrap();
    assert_eq!(
        head.split_whitespace().collect::<Vec<_>>(),
        ["USER", "PROFILE", "STATE", "SESSIONS", "PROCESSES", "SINCE", "LAYERS"],
        "{resting}"
    );
    let session = host.ssh("alice", "echo inside; sleep 300").spawn();
    session.wait_for("inside");
    let busy = host.root("ojail list").text();
    assert!(busy.lines().next().unwrap().contains(" FROM ") && busy.contains("127.0.0.1"), "{busy}");
    assert!(busy.lines().all(|line| line.chars().count() <= 120), "{busy}");
    let json = jail(&host, "alice").unwrap();
    for key in ["memory", "cpu", "disk", "inodes"] {
        assert!(json[key].is_object(), "{key}: {json}");
    }
}
