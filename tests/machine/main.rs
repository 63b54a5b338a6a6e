//! What only a whole machine can show: ojail under Debian's own kernel, with systemd, logind and cgroups.
//!
//! All tests share one machine, since a boot is dear, and each has a user of its own. Only who pulls the plug has a
//! machine for themselves.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

mod freeze;
mod limits;
mod network;
mod power;
mod services;
mod sessions;
mod view;

use std::thread;
use std::time::{Duration, Instant};

use lab::{Machine, Running, Setup, Shared, User};
use serde_json::Value;

/// How long what takes milliseconds may take on an emulated machine that others are busy on.
const SOON: Duration = Duration::from_secs(60);

static MACHINE: Shared = Shared::new(|| setup().boot());

/// What pam_limits leaves nora. In 15000 KiB of addresses there is room for a shell, and none for systemd-run.
const NEXT_TO_NOTHING: &str = "nora - nofile 16\nnora - fsize 0\nnora - nproc 20\nnora - as 15000\n";

/// Everything wired as an administrator should, for jailed users and an exempt one.
fn setup() -> Setup {
    let users = [
        ("alice", 1001, "jailed"),
        ("carl", 1002, "jailed"),
        ("gwen", 1003, "jailed"),
        ("kelly", 1004, "jailed"),
        ("ursula", 1005, "jailed"),
        ("tess", 1006, "jailed"),
        ("quinn", 1007, "rooted"),
        ("atta", 1008, "jailed"),
        ("paula", 1009, "private"),
        ("nora", 1010, "limited"),
        ("mira", 1011, "jailed"),
        ("frida", 1012, "jailed"),
        ("vera", 1013, "jailed"),
    ];
    let mut setup = lab::host();
    for (name, uid, group) in users {
        setup = setup.user(User::new(name).uid(uid).groups([group]).shell("/usr/bin/ojail-shell"));
    }
    for service in ["sshd", "su", "su-l", "login", "cron", "atd", "systemd-user"] {
        setup = setup.pam(service);
    }
    setup
        .user(User::new("bob").uid(1100))
        .layer("debian")
        .file("/etc/shells", 0o644, "/bin/sh\n/bin/bash\n/usr/bin/ojail-shell\n")
        // For one user, so that the others see Debian's default.
        .file(
            "/etc/systemd/logind.conf.d/kelly.conf",
            0o644,
            "[Login]\nKillUserProcesses=yes\nKillOnlyUsers=kelly\n",
        )
        .file("/etc/security/limits.d/nora.conf", 0o644, NEXT_TO_NOTHING)
        .config(
            r#"
            [profiles.debian]
            layers = ["debian"]

            [profiles.rooted]
            layers = ["debian"]
            root = true

            [[rules]]
            group = "jailed"
            profile = "debian"

            [profiles.private]
            layers = ["debian"]
            network = "private"

            [[rules]]
            group = "private"
            profile = "private"

            [profiles.limited]
            layers = ["debian"]
            limits = { tasks = 50 }

            [[rules]]
            group = "limited"
            profile = "limited"

            [[rules]]
            group = "rooted"
            profile = "rooted"
            "#,
        )
}

/// A session that lasts, once its command runs inside.
fn lasting<'m>(machine: &'m Machine, user: &str) -> Running<'m> {
    let session = machine.ssh(user, "echo inside; exec sleep 300").within(Duration::from_secs(300)).spawn();
    session.wait_for("inside");
    session
}

/// Puts a program with its libraries where a jail sees it, for layers that have none.
#[track_caller]
fn bring(machine: &Machine, program: &str, place: &str) {
    let copy = r#"mkdir "$2" && p=$(command -v "$1") && cp "$p" $(ldd "$p" | grep -o '/[^ ]*') "$2""#;
    machine.root(copy).arg(program).arg(place).ok();
}

/// A user's line of `ojail list --json`.
#[track_caller]
fn jail(machine: &Machine, user: &str) -> Option<Value> {
    let list: Value = serde_json::from_str(&machine.root("ojail list --json").text()).unwrap();
    list["jails"].as_array().unwrap().iter().find(|jail| jail["user"] == user).cloned()
}

/// PID 1 of a running jail, as the machine counts.
#[track_caller]
fn init(machine: &Machine, user: &str) -> u64 {
    let jail = jail(machine, user).unwrap_or_else(|| panic!("{user} has no jail"));
    jail["pid"].as_u64().unwrap_or_else(|| panic!("the jail of {user} is not running: {jail}"))
}

/// How many sessions are open in a user's jail.
#[track_caller]
fn sessions(machine: &Machine, user: &str) -> usize {
    jail(machine, user).map_or(0, |jail| jail["sessions"].as_array().map_or(0, Vec::len))
}

/// What logind knows of a user's sessions, closing ones and all.
#[track_caller]
fn known_to_logind(machine: &Machine, user: &str) -> Vec<String> {
    let all = machine.root("loginctl list-sessions --no-legend").text();
    all.lines().filter(|line| line.split_whitespace().nth(2) == Some(user)).map(String::from).collect()
}

/// Waits until something is so.
#[track_caller]
fn until(what: &str, so: impl Fn() -> bool) {
    let since = Instant::now();
    while !so() {
        assert!(since.elapsed() < SOON, "not within {SOON:?}: {what}");
        thread::sleep(Duration::from_millis(200));
    }
}
