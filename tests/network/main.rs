//! Jails with a network of their own: what they reach of the world, what they do not reach of the host, which ports lead in
//! and out, and how such a network begins and ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

#[path = "../common/mod.rs"]
mod common;

mod attacks;
mod life;
mod ports;
mod refused;
mod world;

use lab::{Host, Setup, User};

/// A host in a world, where alice, carol and dave are jailed, each with the same profile, and have socat and python3.
fn setup(keys: &str) -> Setup {
    ["alice", "carol", "dave"]
        .into_iter()
        .fold(lab::host(), |host, user| host.user(User::new(user).groups(["jailed"])))
        .layer("debian")
        .layer("tools")
        .config(&config(keys))
        .pam("sshd")
        .network()
}

fn config(keys: &str) -> String {
    common::config(&format!("network = \"private\"\n{keys}"))
        .replace("[\"debian\"]", "[\"tools\", \"debian\"]")
}

/// One line to somebody, and the line that comes back. `bash` opens the connection.
#[derive(Debug, Clone, Copy)]
struct Ask<'a> {
    protocol: &'a str,
    address: &'a str,
    port: u16,
}

fn tcp(address: &str, port: u16) -> Ask<'_> {
    Ask { protocol: "tcp", address, port }
}

fn udp(address: &str, port: u16) -> Ask<'_> {
    Ask { protocol: "udp", address, port }
}

/// The command that asks all of these at once, for a shell anywhere, and prints a line for each: the answer, or nothing. Where
/// nobody answers, it takes five seconds.
fn asking(all: &[Ask<'_>]) -> String {
    let mut command = String::from(
        "answers=$(mktemp -d); ask() { timeout 5 bash -c \
         'exec 3<>/dev/$0/$1/$2 && echo hello >&3 && head -n 1 <&3' \"$@\" 2>/dev/null; }; ",
    );
    for (number, Ask { protocol, address, port }) in all.iter().enumerate() {
        command.push_str(&format!("ask {protocol} {address} {port} > $answers/{number} & "));
    }
    command.push_str("wait; ");
    for number in 0..all.len() {
        command.push_str(&format!("cat $answers/{number} | tr -d '\\n'; echo; "));
    }
    command + "rm -r $answers"
}

/// Asks from within a jail.
#[track_caller]
fn ask(host: &Host, user: &str, all: &[Ask<'_>]) -> Vec<String> {
    lines(&host.ssh(user, &asking(all)).ok().stdout)
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(String::from).collect()
}

/// Nobody answers any of these.
#[track_caller]
fn nobody_answers(host: &Host, user: &str, all: &[Ask<'_>]) {
    for (ask, answer) in all.iter().zip(ask(host, user, all)) {
        assert_eq!(answer, "", "{user} reached {ask:?}");
    }
}

/// What the echo says to `hello`.
fn heard(from: &str) -> String {
    format!("heard hello from {from}")
}

/// The pasta processes of the host, as it counts.
fn pastas(host: &Host) -> Vec<u32> {
    let found = host.root("pgrep -f '^/usr/bin/pasta '").run().text();
    found.lines().map(|pid| pid.parse().expect("pgrep prints numbers")).collect()
}

/// The only one.
#[track_caller]
fn pasta(host: &Host) -> u32 {
    let all = pastas(host);
    assert_eq!(all.len(), 1, "{all:?}");
    all[0]
}
