//! What several tests share: the usual configuration, and what an administrator sees of jails.

#![allow(dead_code, reason = "each test program uses some of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use lab::{Host, Setup, User};
use serde_json::Value;

/// How long what takes milliseconds may take on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// One profile with these keys, for the members of one group.
pub(crate) fn config(keys: &str) -> String {
    format!(
        "[profiles.debian]\nlayers = [\"debian\"]\n{keys}\n\n[[rules]]\ngroup = \"jailed\"\nprofile = \"debian\"\n"
    )
}

/// A host where alice is jailed, bob is not, and the profile has these keys.
pub(crate) fn setup(keys: &str) -> Setup {
    lab::host()
        .user(User::new("alice").groups(["jailed"]))
        .user("bob")
        .layer("debian")
        .config(&config(keys))
        .pam("sshd")
}

/// [`setup`], started.
pub(crate) fn host(keys: &str) -> Host {
    setup(keys).start()
}

/// A user's line of `ojail list --json`.
#[track_caller]
pub(crate) fn jail(host: &Host, user: &str) -> Option<Value> {
    let list = host.root("ojail list --json").text();
    let list: Value = serde_json::from_str(&list).expect("--json prints JSON");
    let jails = list["jails"].as_array().expect("jails is a list");
    jails.iter().find(|jail| jail["user"] == user).cloned()
}

/// Whether a jail of this user is running.
#[track_caller]
pub(crate) fn runs(host: &Host, user: &str) -> bool {
    jail(host, user).is_some_and(|jail| jail["running"] == true)
}

/// How many sessions are open in a user's jail.
#[track_caller]
pub(crate) fn sessions(host: &Host, user: &str) -> usize {
    jail(host, user).map_or(0, |jail| jail["sessions"].as_array().map_or(0, Vec::len))
}

/// PID 1 of a running jail, as the host counts.
#[track_caller]
pub(crate) fn init(host: &Host, user: &str) -> u64 {
    let jail = jail(host, user).unwrap_or_else(|| panic!("{user} has no jail"));
    jail["pid"].as_u64().unwrap_or_else(|| panic!("the jail of {user} is not running: {jail}"))
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn until(what: &str, limit: Duration, so: impl Fn() -> bool) {
    let since = Instant::now();
    while !so() {
        assert!(since.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// How many lines of the log have this text.
pub(crate) fn logged(host: &Host, text: &str) -> usize {
    host.log().iter().filter(|line| line.contains(text)).count()
}

/// The mount namespaces of jails, with a process of each. Not those of zombies, which have none any more.
#[track_caller]
pub(crate) fn namespaces(host: &Host) -> String {
    host.root(
        "lsns -n -t mnt -o NS,PID,COMMAND | grep -v \"^$(readlink /proc/1/ns/mnt | tr -dc 0-9) \" || true",
    )
    .text()
}

/// What is left of a user's jail in `/run/ojail`, in words. Empty, if it is gone.
#[track_caller]
pub(crate) fn corner(host: &Host, user: &str) -> String {
    host.root(
        r#"
        cd "/run/ojail/jails/$1" 2>/dev/null || exit 0
        ls -A porch 2>/dev/null
        for lock in lock alive; do
            flock -n $lock true || echo "$lock is held"
        done
        "#,
    )
    .arg(user)
    .text()
}

/// What is left of the only jail that there was: processes, the door, locks. Empty, if it is gone.
#[track_caller]
pub(crate) fn remains(host: &Host, user: &str) -> String {
    format!("{}{}", namespaces(host), corner(host, user))
}

/// A digest of everything below a directory of the host: names, kinds, modes, owners, sizes, links, extended
/// attributes and contents.
#[track_caller]
pub(crate) fn digest(host: &Host, directory: &str) -> String {
    const DIGEST: &str = r#"
import hashlib, os, stat, sys
sha = hashlib.sha256()
for path, directories, files in os.walk(sys.argv[1].encode()):
    directories.sort()
    for name in [b"."] + sorted(directories + files):
        full = os.path.join(path, name)
        s = os.lstat(full)
        attributes = [(a, os.getxattr(full, a, follow_symlinks=False))
                      for a in sorted(os.listxattr(full, follow_symlinks=False))]
        sha.update(repr((os.path.relpath(full, sys.argv[1].encode()), s.st_mode, s.st_uid, s.st_gid, s.st_rdev, attributes)).encode())
        if stat.S_ISLNK(s.st_mode):
            sha.update(os.readlink(full))
        if stat.S_ISREG(s.st_mode):
            sha.update(open(full, "rb").read())
print(sha.hexdigest())
"#;
    host.exec(["python3", "-c", DIGEST, directory]).text()
}

/// Every system call of a command, by name and number among those of its name. Those of its start (linking, memory) are in it.
#[track_caller]
pub(crate) fn calls(host: &Host, command: &str) -> Vec<(String, usize)> {
    host.root(&format!("strace -o /root/calls {command}")).ok();
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    let mut calls = Vec::new();
    for line in fs::read_to_string(host.path("/root/calls")).unwrap().lines() {
        // "openat(AT_FDCWD, …) = 3"; what else there is begins with "+++" or "---".
        let Some((name, _)) = line.split_once('(') else { continue };
        if name.starts_with(['+', '-']) {
            continue;
        }
        let number = numbers.entry(name.to_owned()).or_default();
        *number += 1;
        calls.push((name.to_owned(), *number));
    }
    assert!(calls.len() > 100, "{command} has {} system calls only", calls.len());
    calls
}
