//! What several tests share: the usual configuration, and what an administrator sees of jails.

#![allow(dead_code, reason = "each test program uses some of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

pub(crate) mod points;

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

/// The mount namespaces of jails, with a process of each. Not those of zombies, which have none any more. Not by lsns(8): if a process
/// ends while it looks, it may show nothing at all.
#[track_caller]
pub(crate) fn namespaces(host: &Host) -> String {
    host.root(
        r#"find /proc/[0-9]*/ns/mnt -maxdepth 0 -printf '%l %p\n' 2>/dev/null | grep '^mnt:' | tr / ' ' |
        while read -r namespace _ pid _; do
            [ "$namespace" = "$(readlink /proc/1/ns/mnt)" ] || echo "$namespace $pid $(tr '\0' ' ' < /proc/$pid/cmdline)"
        done 2>/dev/null | sort -k1,1 -k2,2n | sort -s -u -k1,1"#,
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

/// In Python: a digest of everything below a directory: names, kinds, modes, owners, sizes, links, extended attributes and contents.
const DIGEST: &str = r#"
import hashlib, os, stat, sys
def digest(top):
    sha = hashlib.sha256()
    top = os.fsencode(top)
    for path, directories, files in os.walk(top):
        directories.sort()
        for name in [b"."] + sorted(directories + files):
            full = os.path.join(path, name)
            s = os.lstat(full)
            attributes = [(a, os.getxattr(full, a, follow_symlinks=False))
                          for a in sorted(os.listxattr(full, follow_symlinks=False))]
            sha.update(repr((os.path.relpath(full, top), s.st_mode, s.st_uid, s.st_gid, s.st_rdev, attributes)).encode())
            if stat.S_ISLNK(s.st_mode):
                sha.update(os.readlink(full))
            if stat.S_ISREG(s.st_mode):
                sha.update(open(full, "rb").read())
    return sha.hexdigest()
"#;

/// [`DIGEST`] of a directory of the host.
#[track_caller]
pub(crate) fn digest(host: &Host, directory: &str) -> String {
    host.exec(["python3", "-c", &format!("{DIGEST}print(digest(sys.argv[1]))"), directory]).text()
}

/// All that there is of everybody's, a line each with the digest of what is in it: layers and what of them is set aside, uppers, what
/// `ojail` knows to be on shelves, what is kept of ids, work directories, and the backup in `/backup`, whose every file must be whole.
#[track_caller]
pub(crate) fn belongings(host: &Host) -> String {
    const BELONGINGS: &str = r#"
import glob, re, subprocess
def parse(json):
    # The host's Python is minimal, and has no parser of its own.
    return eval(json, {"null": None, "true": True, "false": False})
def file(path):
    return hashlib.sha256(open(path, "rb").read()).hexdigest()
lines = []
names = lambda path: [os.path.basename(name) for name in glob.glob(path)]
for name in names("/srv/overlay/lowerdirs/*"):
    path = "/srv/overlay/lowerdirs/" + name
    # A whole Debian takes too long.
    if not os.path.exists(path + "/usr/bin/dpkg"):
        what = re.sub(r"-2\d\d\d-[^.]*\.\d\d\.\d\dZ(-\d+)?", " aside", name)
        lines.append(f"layer {what} {digest(path) if os.path.isdir(path) else file(path)}")
for user in names("/srv/overlay/upperdirs/*"):
    lines.append(f"upper {user} {digest('/srv/overlay/upperdirs/' + user)}")
for user in names("/srv/overlay/asidedirs/*"):
    said = subprocess.run(["ojail", "reset", "--list", user, "--json"], stdout=subprocess.PIPE, check=True).stdout
    for entry in parse(said)["aside"]:
        lines.append(f"{entry['record']['why']} {user} {digest(entry['upper'])}")
for path in glob.glob("/var/lib/ojail/users/*"):
    lines.append(f"ids {os.path.basename(path)} {open(path).read().split()}")
for user in names("/srv/overlay/workdirs/*"):
    lines.append(f"work {user}")
if os.path.exists("/backup/manifest.json"):
    manifest = parse(open("/backup/manifest.json").read())
    for part in manifest["layers"] + manifest["users"] + [manifest["configuration"]]:
        whole = file("/backup/" + part["file"]) == part["sha256"]
        lines.append(f"backup {part['file']}" + ("" if whole else " DAMAGED"))
print("\n".join(sorted(lines)))
"#;
    host.exec(["python3", "-c", &format!("{DIGEST}{BELONGINGS}")]).text()
}

/// What an act that came to its end leaves nowhere: things half made, and things thrown away.
#[track_caller]
pub(crate) fn rubbish(host: &Host) -> String {
    host.root(
        "cd /srv/overlay 2>/dev/null || exit 0
         for name in asidedirs/.restore lowerdirs/.restore asidedirs/.trash/* asidedirs/.run/*; do
             [ ! -e $name ] || echo $name
         done
         find /backup -name .new 2>/dev/null || true",
    )
    .text()
}
