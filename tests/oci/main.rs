//! Layers as OCI has them: the tar of one, out and in, and what registries and other tools make of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]
#![allow(clippy::print_stderr, reason = "how much was tried is told, not asserted")]

#[path = "../common/mod.rs"]
mod common;

mod bytes;
mod registry;
mod user;

use lab::Host;

/// What a layer can have, but for what squashfs cannot (access lists, times before 1970).
const TREE: &str = r#"
import os, struct, sys
os.umask(0o022)
os.chdir(sys.argv[1])
for d in "closed", "closed/in", "opaque", "sticky", "many":
    os.mkdir(d)
for f in "closed/in/file", "setuid", "capable", "marked", "odd", "opaque/x", "größe", "n" * 120:
    open(f, "w").write(f)
for i in range(300):
    open("many/%d" % (i * 7919 % 1000), "w").write("x" * i)
open("large", "wb").write(os.urandom(1 << 20))
with open("large", "r+b") as f:
    f.seek(3 << 20); f.write(b"end")
os.chown("setuid", 5, 60); os.chmod("setuid", 0o6755)
os.chown("sticky", 1000, 1000); os.chmod("sticky", 0o3777)
os.chown("odd", 65534, 4000000000); os.chmod("odd", 0)
os.setxattr("capable", "security.capability", struct.pack("<5I", 0x02000001, 0x2000, 0, 0, 0))
os.setxattr("opaque", "user.overlay.opaque", b"y")
os.setxattr("opaque", "user.overlay.origin", b"\0\xfb\x1d\0")
for key in "user.z", "user.a", "trusted.m", "user.longer.name":
    os.setxattr("marked", key, key.encode() * 9)
os.mknod("whiteout", 0o020000, 0); os.mknod("null", 0o020666, os.makedev(1, 3)); os.mkfifo("fifo")
for a, b in ("setuid", "closed/linked"), ("setuid", "zz"), ("many/0", "aa"):
    os.link(a, b)
os.symlink("../x", "closed/out"); os.symlink("y" * 200, "far")
os.link("fifo", "opaque/fifo"); os.link("null", "opaque/null"); os.link("far", "near", follow_symlinks=False)
os.chmod("closed/in", 0)
n = 0
for top, dirs, files in os.walk(".", topdown=False):
    for name in files + ["."]:
        n += 1
        os.utime(os.path.join(top, name), ns=(1000000000123456789, (1100000000 + n) * 1000000000 + n), follow_symlinks=False)
"#;

/// A line for everything in a directory, the top too: all that a layer's tar has of it, and which names are of one file.
const WHOLE: &str = r#"
import hashlib, os, stat, sys
top = sys.argv[1].encode()
first = {}
def tell(path):
    full = os.path.join(top, path)
    s = os.lstat(full)
    attributes = [(a, os.getxattr(full, a, follow_symlinks=False)) for a in sorted(os.listxattr(full, follow_symlinks=False))
                  if not a.startswith(("user.overlay.o", "user.overlay.i")) or a == "user.overlay.opaque"]
    whiteout = stat.S_ISCHR(s.st_mode) and s.st_rdev == 0
    kind = "whiteout" if whiteout else chr(b"?pc?d?b?-?l?s"[s.st_mode >> 12])
    line = [path, kind] if whiteout else [path, kind, oct(s.st_mode), s.st_uid, s.st_gid, s.st_rdev, attributes]
    if kind not in ("d", "whiteout"):
        line += [s.st_size, "same as %r" % first[s.st_ino] if first.setdefault(s.st_ino, path) != path else ""]
    if kind == "l":
        line.append(os.readlink(full))
    if kind == "-":
        line += [hashlib.sha256(open(full, "rb").read()).hexdigest(), "holes" if s.st_blocks * 512 < s.st_size - 8192 else ""]
    print(*map(repr, line), "" if whiteout else "time %d" % (s.st_mtime_ns // 10 ** 9))
    if kind == "d":
        for name in sorted(os.listdir(full)):
            tell(os.path.join(path, name))
tell(b".")
"#;

/// All that there is to know of a tree.
#[track_caller]
fn whole(host: &Host, directory: &str) -> String {
    host.exec(["python3", "-c", WHOLE, directory]).text()
}

/// Fails with the lines in which two trees differ.
#[track_caller]
fn assert_same(is: &str, was: &str) {
    let lines: Vec<String> = is
        .lines()
        .filter(|line| !was.contains(line))
        .map(|line| format!("is  {line}"))
        .chain(was.lines().filter(|line| !is.contains(line)).map(|line| format!("was {line}")))
        .collect();
    assert!(is == was, "{}", lines.join("\n"));
}
