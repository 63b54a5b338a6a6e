//! What an administrator does to jails that nobody has to log in for: looks into them, runs something in them, keeps what they are, moves
//! it elsewhere, and lets go.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]
#![allow(clippy::print_stderr, reason = "how much was tried is told, not asserted")]

#[path = "../common/mod.rs"]
mod common;

mod backup;
mod errors;
mod forget;
mod kills;
mod mount;
mod run;
mod snapshot;

use lab::Host;

/// Fills a directory with everything that an upper can hold.
const EVERYTHING: &str = r#"
import os, socket, struct, sys
os.chdir(sys.argv[1])
def write(path, text=b""):
    with open(path, "wb") as f:
        f.write(text or path)
for d in b"closed", b"closed/in", b"opaque", b"listed", b"sticky", b"empty":
    os.mkdir(d)
for f in b"closed/in/file", b"setuid", b"capable", b"listed/file", b"beagle", b"odd", b"new\nline \x1b[31m", b"\xff\xfe", b"-rf", b"twice":
    write(f)
os.chown("setuid", 5, 60); os.chmod("setuid", 0o6755)
os.chown("sticky", 1000, 1000); os.chmod("sticky", 0o3777)
os.chown("odd", 65534, 4000000000); os.chmod("odd", 0)
os.chown("capable", 7, 7); os.chmod("capable", 0o755)
os.setxattr("capable", "security.capability", struct.pack("<5I", 0x02000001, 0x2000, 0, 0, 0))
def acl(user):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in
        [(1, 7, 0xffffffff), (2, 6, user), (4, 0, 0xffffffff), (16, 6, 0xffffffff), (32, 0, 0xffffffff)])
os.setxattr("listed", "system.posix_acl_access", acl(7))
os.setxattr("listed", "system.posix_acl_default", acl(1000))
os.setxattr("listed/file", "system.posix_acl_access", acl(8))
os.setxattr("opaque", "user.overlay.opaque", b"y")
os.setxattr("beagle", "user.Beagle.index", b"not for cp")
os.setxattr("beagle", "user.large", b"\x07" * 3000)
os.setxattr("beagle", "user.empty", b"")
os.mknod("whiteout", 0o020000, os.makedev(0, 0))
os.mknod("fifo", 0o010640)
socket.socket(socket.AF_UNIX).bind("socket")
for a, b in ("setuid", "closed/linked"), ("whiteout", "closed/whiteout"), ("twice", "closed/in/twice"):
    os.link(a, b)
os.symlink("/", "root"); os.symlink("../../../../etc/passwd", "closed/out"); os.symlink("x" * 300, "long")
deep = "deep"
for i in range(40):
    os.mkdir(deep); deep += "/" + "d" * 60
write((deep + "file").encode())
with open("sparse", "wb") as f:
    f.truncate(1 << 38); f.seek(1 << 37); f.write(b"middle")
os.chmod("closed/in", 0); os.chown("closed", 1000, 33); os.chmod("closed", 0o2000)
for n, p in enumerate(["setuid", "whiteout", "root", "socket", "sparse", "closed/in", "closed", "sticky", "twice", "fifo", "."]):
    os.utime(p, ns=(1000000000123456789 + n, 1100000000987654321 + 7 * n), follow_symlinks=False)
"#;

/// A line for everything in a directory, the top too, sorted: all that stat(2), attributes and content tell, and which names are of
/// one file.
const WHOLE: &str = r#"
import hashlib, os, stat, sys
top = sys.argv[1].encode()
first = {}
def tell(path):
    full = os.path.join(top, path)
    s = os.lstat(full)
    attributes = [(a, os.getxattr(full, a, follow_symlinks=False)) for a in sorted(os.listxattr(full, follow_symlinks=False))]
    line = [path, oct(s.st_mode), s.st_uid, s.st_gid, s.st_rdev, s.st_mtime_ns, attributes]
    if not stat.S_ISDIR(s.st_mode):
        # Not how many names there are: overlayfs has some of whiteouts in its work directory.
        line += [s.st_size, first.setdefault(s.st_ino, path)]
    if stat.S_ISLNK(s.st_mode):
        line.append(os.readlink(full))
    if stat.S_ISREG(s.st_mode):
        line.append(hashlib.sha256(open(full, "rb").read()).hexdigest() if s.st_size < 1 << 20 else s.st_blocks < 1000)
    print(line)
    if stat.S_ISDIR(s.st_mode):
        for name in sorted(os.listdir(full)):
            tell(os.path.join(path, name))
tell(b".")
"#;

/// Gives a user an upper with everything, more than any session could make.
fn everything(host: &Host, user: &str) {
    host.root("ojail stop \"$1\"").arg(user).ok();
    host.exec(["python3", "-c", EVERYTHING]).arg(format!("/srv/overlay/upperdirs/{user}")).ok();
}

/// Waits until the sessions of a user have ended: sshd takes a moment for that.
fn alone(host: &Host, user: &str) {
    common::until("no session is open", common::SOON, || common::sessions(host, user) == 0);
}

/// All that there is to know of a tree.
#[track_caller]
fn whole(host: &Host, directory: &str) -> String {
    host.exec(["python3", "-c", WHOLE, directory]).text()
}

/// Fails with the lines in which two trees differ.
#[track_caller]
fn assert_same(is: &str, was: &str) {
    let lines: Vec<&str> = is
        .lines()
        .filter(|line| !was.contains(line))
        .chain(was.lines().filter(|line| !is.contains(line)))
        .collect();
    assert!(is == was, "{}", lines.join("\n"));
}
