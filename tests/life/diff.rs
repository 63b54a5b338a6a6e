//! What a user changed, as the administrator sees it.

use std::collections::BTreeSet;

use lab::{Host, Output, User};
use serde_json::Value;

use crate::common::{config, digest, host, setup};

const UPPER: &str = "/srv/overlay/upperdirs/alice";
const LAYERS: &str = "/srv/overlay/lowerdirs";

/// Everything that an upper can hold, by root of the jail. What is in the layer `extra` is `LAYER`'s.
const CHANGES: &str = r#"
import os, stat
def remove(path):
    os.system('rm -rf ' + path)
def write(path, text=b"new\n", how="wb"):
    with open(path, how) as file:
        file.write(text)
# Plain ones.
write("/etc/issue")
os.makedirs("/opt/new/deep"); write("/opt/new/deep/file"); write("/opt/empty", b"")
os.unlink("/usr/share/common-licenses/GPL-3"); remove("/usr/share/doc/bash")
# Metadata alone, of files and directories, one attribute each.
os.chmod("/etc/motd", 0o600); os.chmod("/usr/share/doc", 0o751); os.chown("/etc/debian_version", 1, 2)
os.setxattr("/etc/profile", "user.mark", b"x"); os.setxattr("/etc/skel", "user.overlay.opaque", b"y")
acl = (2).to_bytes(4, "little")
for tag, perm, who in [(1, 6, 2**32 - 1), (2, 4, 33), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1), (32, 4, 2**32 - 1)]:
    acl += tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + who.to_bytes(4, "little")
os.setxattr("/etc/bash.bashrc", "system.posix_acl_access", acl)
# Times; copied up and as it was; of the same size.
os.utime("/etc/debconf.conf", (1, 1))
write("/etc/deluser.conf", b"", "ab")
text = open("/etc/adduser.conf", "rb").read(); write("/etc/adduser.conf", text.replace(b"a", b"b"))
before = os.stat("/etc/pam.conf"); text = open("/etc/pam.conf", "rb").read(); write("/etc/pam.conf", text)
os.utime("/etc/pam.conf", ns=(before.st_atime_ns, before.st_mtime_ns))
with open("/etc/shells", "rb+"): pass
# One kind for another.
os.unlink("/etc/host.conf"); os.mkdir("/etc/host.conf"); write("/etc/host.conf/in")
remove("/usr/share/menu"); os.makedirs("/usr/share/menu"); write("/usr/share/menu/new")
remove("/etc/terminfo"); write("/etc/terminfo")
os.unlink("/etc/rmt"); write("/etc/rmt")
os.unlink("/etc/localtime"); os.symlink("/usr/share/zoneinfo/Etc/GMT", "/etc/localtime")
# Opaque: made anew with some of the old, one as it was, one other, and a level further down.
keep = open("/opt/extra/dir/same", "rb").read(); times = os.stat("/opt/extra/dir/same")
remove("/opt/extra/dir"); os.makedirs("/opt/extra/dir/sub/more")
write("/opt/extra/dir/same", keep); os.utime("/opt/extra/dir/same", ns=(times.st_atime_ns, times.st_mtime_ns))
write("/opt/extra/dir/other", b"other\n"); write("/opt/extra/dir/sub/own", b"own\n"); write("/opt/extra/dir/a", b"")
# Hard links, of the layer's and of one's own.
os.link("/usr/share/common-licenses/GPL-2", "/opt/hard"); os.link("/opt/new/deep/file", "/opt/hard2")
# Other kinds.
os.mkfifo("/opt/fifo"); os.mknod("/opt/socket", stat.S_IFSOCK | 0o644); os.symlink("/", "/opt/root")
os.symlink(b"to\x1b[31m\xff", "/opt/odd link")
os.mkdir("/opt/closed", 0o000); os.chmod("/opt/closed", 0)
with open("/opt/sparse", "wb") as file: file.truncate(1 << 24)
write("/opt/setuid", open("/bin/true", "rb").read()); os.chmod("/opt/setuid", 0o4755)
os.setxattr("/opt/setuid", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
os.chmod("/opt/extra/capable", 0o500)
# Names.
for name in [b"new\nline", b"\x1b[2Jesc", b"no\xffutf8", "\u202egnp".encode(), b"back\\slash", b" ", b"-rf", "漢".encode(), b"x" * 255]:
    os.makedirs(b"/opt/names/" + name); write(b"/opt/names/" + name + b"/f")
os.unlink(b"/opt/extra/od\nd"); write(b"/opt/extra/back\\slash")
# What is hidden of the layer below by the layer above, made again; and what shines through it.
write("/opt/extra/whited"); write("/opt/extra/opaque/below"); os.unlink("/opt/extra/merged/low")
os.unlink("/opt/extra/merged/both")
os.chmod("/", 0o711)
"#;

/// A layer over `debian` that has whiteouts and opaque directories in it, and `low` below that.
const LAYER: &str = r#"
import os, stat
os.chdir("/srv/overlay/lowerdirs")
def write(path, text="layer\n"):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    open(path, "w").write(text)
for name in ["whited", "opaque/below", "opaque/sub/below", "merged/low", "merged/both", "dir/low", "dir/sub/low", "gone/x"]:
    write("low/opt/extra/" + name)
for name in ["opaque/top", "merged/top", "merged/both", "dir/same", "dir/other", "dir/sub/z", "dir/tree/a/b", "capable", "od\nd", "back\\slash"]:
    write("extra/opt/extra/" + name)
os.mknod("extra/opt/extra/whited", stat.S_IFCHR, 0)
os.mknod("extra/opt/extra/gone", stat.S_IFCHR, 0)
os.setxattr("extra/opt/extra/opaque", "user.overlay.opaque", b"y")
os.setxattr("extra/opt/extra/capable", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
os.makedirs("extra/usr/share", exist_ok=True)
os.mknod("extra/usr/share/bug", stat.S_IFCHR, 0)
for top in ["extra", "low"]:
    for path, _, _ in os.walk(top): os.chmod(path, 0o755)
"#;

/// What the kernel's own overlays show, with the upper and without, compared name by name: independent of all that is ours. A line
/// of JSON each.
const JUDGE: &str = r#"
import os, stat, sys
new, old = [path.encode() for path in sys.argv[1:3]]
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
def look(path):
    try: return os.lstat(path)
    except FileNotFoundError: return None
def attributes(path):
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
            if name.startswith(("user.", "system.posix_acl", "security.capability"))}
def shown(value):
    if isinstance(value, list): return "[" + ",".join(map(shown, value)) + "]"
    return '"' + value + '"' if isinstance(value, str) else str(value).lower()
def tell(change, path, kind, **more):
    words = [key + "=" + shown(more[key]) for key in ["was", "content", "mode", "owner", "attributes", "time"] if key in more]
    print(change, path.hex(), kind, *words)
def compare(path):
    names = set(os.listdir(old + path)) if os.path.isdir(old + path) and not os.path.islink(old + path) else set()
    for name in sorted(names | set(os.listdir(new + path))):
        here = path + b"/" + name
        o, n = look(old + here) if name in names else None, look(new + here)
        if n is None:
            tell("D", here, kind=KINDS[stat.S_IFMT(o.st_mode)])
            continue
        kind = KINDS[stat.S_IFMT(n.st_mode)]
        if o is None:
            tell("A", here, kind=kind)
        else:
            was, d = KINDS[stat.S_IFMT(o.st_mode)], {}
            if was != kind: d["was"] = was
            else:
                if o.st_mode != n.st_mode: d["mode"] = ["%o" % (s.st_mode & 0o7777) for s in (o, n)]
                if (o.st_uid, o.st_gid) != (n.st_uid, n.st_gid): d["owner"] = [[s.st_uid, s.st_gid] for s in (o, n)]
                a, b = attributes(old + here), attributes(new + here)
                changed = sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))
                if changed: d["attributes"] = changed
                if kind == "file" and (o.st_size != n.st_size or open(old + here, "rb").read() != open(new + here, "rb").read()): d["content"] = True
                if kind == "link" and os.readlink(old + here) != os.readlink(new + here): d["content"] = True
                if kind != "directory" and not d.get("content") and o.st_mtime_ns != n.st_mtime_ns: d["time"] = True
            if d: tell("M", here, kind=kind, **d)
        if kind == "directory": compare(here)
compare(b"")
"#;

/// The judge's verdict, a line a change. The jail must not be running.
fn judged(host: &Host, layers: &[&str]) -> BTreeSet<String> {
    let lower: Vec<String> = layers.iter().map(|name| format!("{LAYERS}/{name}")).collect();
    let mount = format!(
        r#"
        mkdir -p /mnt/new /mnt/old /mnt/empty
        mount -t overlay new -o ro,userxattr,lowerdir={UPPER}:{0} /mnt/new &&
        mount -t overlay old -o ro,userxattr,lowerdir={0}:/mnt/empty /mnt/old &&
        exec python3 - /mnt/new /mnt/old
        "#,
        lower.join(":")
    );
    let said = host.exec(["unshare", "-m", "sh", "-c", &mount]).stdin(JUDGE).ok();
    said.stdout.lines().map(String::from).collect()
}

/// What `ojail diff --json` told.
fn told(output: &Output) -> Vec<Value> {
    output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// In the judge's words.
fn canonical(change: &Value) -> String {
    let hex = change["path_hex"].as_str().map(String::from);
    let hex =
        hex.unwrap_or_else(|| change["path"].as_str().unwrap().bytes().map(|b| format!("{b:02x}")).collect());
    let word = |key: &str| change[key].as_str().unwrap().to_owned();
    let mut line = format!("{} {hex} {}", word("change"), word("kind"));
    for key in ["was", "content", "mode", "owner", "attributes", "time"] {
        let value = &change[key];
        if !value.is_null() && *value != false && *value != Value::Array(Vec::new()) {
            line.push_str(&format!(" {key}={value}"));
        }
    }
    line
}

fn layered() -> Host {
    let host = setup("")
        .config(&config("root = true").replace(r#"["debian"]"#, r#"["extra", "low", "debian"]"#))
        .file(&format!("{LAYERS}/extra/opt/.keep"), 0o644, "")
        .file(&format!("{LAYERS}/low/opt/.keep"), 0o644, "")
        .start();
    host.exec(["python3", "-"]).stdin(LAYER).ok();
    // The host's Python, for what a shell in the jail cannot do.
    host.root(
        r#"
        set -e
        cd /srv/overlay/lowerdirs/low
        python=$(readlink -f /usr/bin/python3)
        mkdir -p usr/bin usr/lib
        cp "$python" usr/bin/python3
        cp -a "/usr/lib/${python##*/}" usr/lib
        for library in $(ldd "$python" | sed -n 's,.*=> /\(usr/\)*\(lib/[^ ]*\) .*,usr/\2,p'); do
            [ -e "../debian/$library" ] || install -D "/$library" "$library"
        done
        "#,
    )
    .ok();
    host
}

#[test]
fn diff_tells_exactly_what_the_kernels_overlays_show() {
    lab::require_root!();
    let host = layered();
    host.ssh("alice", "sudo python3 -").stdin(CHANGES).ok();
    // While the jail runs, and after.
    let running = host.root("ojail diff alice --json").ok();
    host.root("ojail stop alice").ok();
    let before = digest(&host, UPPER);
    let stopped = host.root("ojail diff alice --json").ok();
    assert_eq!(running.stdout, stopped.stdout);
    assert_eq!(digest(&host, UPPER), before, "the upper has changed");

    let changes = told(&stopped);
    let (sum, changes) = changes.split_last().unwrap();
    let expected = judged(&host, &["extra", "low", "debian"]);
    assert!(expected.len() > 60, "the user did not do much: {expected:#?}");
    let ours: BTreeSet<String> =
        changes.iter().filter(|c| c["path"] != "/" && !c["kind"].is_null()).map(canonical).collect();
    let readable = |line: &String| {
        let (letter, rest) = line.split_once(' ').unwrap();
        let (hex, rest) = rest.split_once(' ').unwrap();
        let byte = |i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
        let path: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        format!("{letter} {} {rest}", path.escape_ascii())
    };
    let missing: Vec<_> = expected.difference(&ours).map(readable).collect();
    let more: Vec<_> = ours.difference(&expected).map(readable).collect();
    assert!(missing.is_empty() && more.is_empty(), "not told: {missing:#?}\nnot so: {more:#?}");
    let count = |letter: &str| changes.iter().filter(|c| c["change"] == letter).count();
    for (key, letter) in [("added", "A"), ("changed", "M"), ("deleted", "D")] {
        assert_eq!(sum["sum"][key], count(letter), "{sum}");
    }
    assert!(changes.iter().any(|c| c["path"] == "/" && c["mode"][1] == "711"));
    let disk = host.root(&format!("du -s -B1 {UPPER} | cut -f1")).text();
    assert_eq!(sum["sum"]["disk"].to_string(), disk);

    // The text has the same changes in the same order, one line each.
    let text = host.root("ojail diff alice").ok();
    let letters: String =
        text.stdout.lines().filter_map(|line| line.split_once(" /")?.0.chars().next()).collect();
    let expected: String = changes.iter().filter_map(|c| c["change"].as_str()).collect();
    assert_eq!(letters, expected, "{text}");
    assert_eq!(text.stdout.lines().count(), changes.len() + 1, "{text}");
    assert!(!text.bytes.iter().any(|b| (*b < 0x20 && *b != b'\n') || *b == 0x7f), "{text}");
}

#[test]
fn every_kind_of_change_is_one_line_that_says_what_it_is() {
    lab::require_root!();
    let host = layered();
    host.ssh("alice", "sudo python3 -").stdin(CHANGES).ok();
    let text = host.root("ojail diff alice").text();
    let rest = r#"/opt/names/back\\slash (directory)"#;
    for line in [
        "M / (mode 755 → 711)",
        "D /usr/share/doc/bash (directory)",
        "D /usr/share/common-licenses/GPL-3",
        "M /etc/motd (mode 644 → 600)",
        "M /etc/debian_version (owner 0:0 → 1:2)",
        "M /etc/profile (attribute user.mark)",
        "M /etc/skel (attribute user.overlay.opaque)",
        "M /etc/bash.bashrc (",
        "M /etc/debconf.conf (time)",
        "M /etc/adduser.conf (content, ",
        "M /etc/host.conf (file → directory)",
        "A /etc/host.conf/in (4 B)",
        "M /etc/terminfo (directory → file, 4 B)",
        "M /etc/rmt (link → file, 4 B)",
        "M /etc/localtime (target ",
        "A /opt/new/deep/file (hard link to /opt/hard2)",
        "A /opt/fifo (fifo)",
        "A /opt/socket (socket)",
        "A /opt/root (link to /)",
        r"A /opt/odd link (link to to\u{1b}[31m\xff)",
        "A /opt/sparse (16 MiB)",
        r"A /opt/names/new\nline (directory)",
        r"A /opt/names/\u{1b}[2Jesc/f (4 B)",
        r"A /opt/names/no\xffutf8 (directory)",
        r"A /opt/names/\u{202e}gnp (directory)",
        rest,
        "A /opt/names/漢/f (4 B)",
        r"D /opt/extra/od\nd",
        "D /opt/extra/dir/tree (directory)",
        "M /opt/extra/dir/other (content, 6 B",
    ] {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
    for path in [
        "/etc ",
        "/usr/share ",
        "/opt/extra/dir/same",
        "/etc/deluser.conf",
        "/etc/pam.conf",
        "/opt/extra/dir/tree/a",
    ] {
        assert!(!text.lines().any(|line| line.contains(path)), "{path} in:\n{text}");
    }
}

fn text(host: &Host, command: &str) -> String {
    host.root(command).text()
}

#[test]
fn content_is_told_as_a_unified_diff_of_text_files() {
    lab::require_root!();
    let host = host("root = true");
    let changes = r#"
        sed -i 's/Debian/Mine/' /etc/issue
        mkdir /opt/d; printf 'one\ntwo\033[31m\n' > "/opt/d/--help"
        printf 'a\0b' > /opt/binary; head -c 2000000 /dev/zero | tr '\0' x > /opt/large
        ln /opt/binary /opt/link
        chmod 600 /etc/debian_version
        rm /etc/host.conf; printf 'no end' > /etc/deluser.conf
    "#;
    host.ssh("alice", "sudo sh").stdin(changes).ok();
    let told = host.root("ojail diff alice --content /etc").ok().stdout;
    let issue =
        "M /etc/issue (content, 27 B → 25 B)\n--- a/etc/issue\n+++ b/etc/issue\n@@ -1,2 +1,2 @@\n-Debian";
    assert!(told.contains(issue), "{told}");
    assert!(told.contains("\n+no end\n\\ No newline at end of file\n"), "{told}");
    assert!(told.contains("D /etc/host.conf\n") && !told.contains("a/etc/host.conf"), "{told}");
    let told = host.root("ojail diff alice --content /opt").ok();
    let new =
        "A /opt/d/--help (13 B)\n--- /dev/null\n+++ b/opt/d/--help\n@@ -0,0 +1,2 @@\n+one\n+two\x1b[31m\n";
    assert!(told.stdout.contains(new), "{told}");
    assert!(told.stdout.contains("A /opt/binary (3 B)\n  (not text: not shown)\n"), "{told}");
    assert!(told.stdout.contains("A /opt/link (hard link to /opt/binary)\n5 added"), "{told}");
    assert!(told.stdout.contains("A /opt/large (1.9 MiB)\n  (more than 1 MiB: not shown)\n"), "{told}");
    assert!(told.stderr.is_empty());
    // On a terminal, nothing that it would obey; with colours unless they are not wanted.
    let on_terminal = |environment: &str| {
        let command = format!("{environment} script -qec 'ojail diff alice --content /opt/d' /dev/null");
        host.root(&command).ok().stdout
    };
    let plain = on_terminal("NO_COLOR=1");
    assert!(plain.contains(r"+two\u{1b}[31m") && !plain.contains('\x1b'), "{plain}");
    let colours = on_terminal("");
    assert!(colours.contains("\x1b[32mA\x1b[0m /opt/d/--help") && !colours.contains("\x1b[31m"), "{colours}");
    host.root("ojail diff alice --content --json").fails();
}

#[test]
fn a_user_at_work_does_not_disturb_it() {
    lab::require_root!();
    let host = host("root = true");
    let work = r#"
        mkdir -p /var/tmp/w; cd /var/tmp/w; : > /etc/issue; echo at work
        while :; do
            mkdir -p a/b/c d; for i in 1 2 3 4 5 6 7 8; do echo $i > a/b/c/$i; ln -sf $i d/$i; done
            mv a/b/c/1 d/9; rm -rf a d; mkdir -p d; rm -rf d; : > d; rm d; ln -s / d; rm d
            : > /etc/issue; rm -f /etc/motd; echo new > /etc/motd
        done
    "#;
    let session = host.ssh("alice", "sudo sh").stdin(work).spawn();
    session.wait_for("at work");
    for _ in 0..100 {
        let told = host.root("ojail diff alice --content").ok();
        assert!(
            told.stdout.contains("A /var/tmp/w (directory)") && told.stdout.contains("/etc/issue"),
            "{told}"
        );
    }
    session.kill();
}

#[test]
fn the_jails_furniture_is_no_change_unless_the_user_changes_it() {
    lab::require_root!();
    for keys in ["root = true", "root = true\nhome = \"jail\""] {
        let host = host(keys);
        host.ssh("alice", "true").ok();
        let expected = if keys.contains("jail") {
            "A /home/alice (directory)\nA /home/alice/.bash_logout (220 B)\nA /home/alice/.bashrc (3.4 KiB)\n\
             A /home/alice/.profile (807 B)\n4 added, 0 changed, 0 deleted: "
        } else {
            "alice has changed nothing"
        };
        let told = text(&host, "ojail diff alice");
        assert!(told.starts_with(expected), "{told}");
        host.ssh(
            "alice",
            "sudo sh -c 'echo \"x:x:3000:3000::/:/bin/sh\" >> /etc/passwd; rm /etc/sudoers.d/ojail'",
        )
        .ok();
        // The next raise finishes the furniture in the upper.
        host.root("ojail stop alice").ok();
        host.ssh("alice", "true").ok();
        let told = text(&host, "ojail diff alice /etc");
        let lines: Vec<&str> = told.lines().collect();
        assert!(lines[0].starts_with("M /etc/passwd (content, "), "{told}");
        assert_eq!(lines[1], "D /etc/sudoers.d/ojail (not in the layers)", "{told}");
        assert!(lines[2].starts_with("0 added, 1 changed, 1 deleted at /etc or below: "), "{told}");
        assert_eq!(lines.len(), 3, "{told}");
    }
}

#[test]
fn who_has_changed_nothing_is_told_so_and_who_is_nobody_is_refused() {
    lab::require_root!();
    let host = setup("")
        .user(User::new("carol").groups(["jailed"]))
        .config(&format!("{}[profiles.still]\nlayers = [\"debian\"]\nwritable = false\n", config("")))
        .start();
    // Never logged in; logged in and changed nothing.
    assert_eq!(text(&host, "ojail diff alice"), "alice has changed nothing");
    host.ssh("alice", "true").ok();
    assert_eq!(text(&host, "ojail diff alice"), "alice has changed nothing");
    assert_eq!(text(&host, "ojail diff alice /etc"), "alice has changed nothing at /etc or below");
    let nothing: Value = serde_json::from_str(&text(&host, "ojail diff carol --json")).unwrap();
    assert_eq!((&nothing["user"], &nothing["sum"]["added"]), (&"carol".into(), &0.into()));
    assert!(!host.path("/srv/overlay/upperdirs/carol").exists(), "looking has made an upper");

    let refused = |command: &str, why: &str| {
        let output = host.root(command).fails();
        assert_eq!(output.code(), Some(1), "{output}");
        assert!(output.stderr.contains(why) && output.stderr.lines().count() == 1, "{output}");
        assert_eq!(output.stdout, "", "{output}");
    };
    refused("ojail diff alcie", "user \"alcie\" does not exist");
    refused("ojail diff alcie --profile debian", "user \"alcie\" does not exist");
    refused("ojail diff bob", "bob is not jailed: no rule matches");
    refused("ojail diff ../etc", "cannot have a jail");
    refused("ojail diff alice etc", "PATH etc is not absolute");
    refused("ojail diff alice /etc/../opt", "without \"..\"");
    refused("ojail diff alice /none", "PATH /none is neither in the layers nor in the upper");
    refused("ojail diff alice /bin/sh", "PATH /bin/sh leads through a symbolic link");
    refused("ojail diff alice --profile none", "there is no profile \"none\"");
    refused("su -s /bin/sh bob -c '/usr/sbin/ojail diff alice'", "this needs root");
    assert_eq!(host.root("ojail diff").fails().code(), Some(2));

    // Gone, exempt by now, or in a profile that has no uppers: what was changed is still there.
    host.ssh("alice", "touch /var/tmp/file").ok();
    host.ssh("carol", "touch /var/tmp/file").ok();
    host.root("ojail stop alice; ojail stop carol; userdel alice; gpasswd -d carol jailed").ok();
    refused("ojail diff alice", "who has an upper (user \"alice\" does not exist); name their profile");
    refused("ojail diff carol", "who has an upper (carol is not jailed: no rule matches)");
    for command in ["ojail diff alice --profile debian", "ojail diff carol --profile still"] {
        let told = text(&host, command);
        assert!(
            told.starts_with("A /var/tmp/file (0 B)\n1 added, 0 changed, 0 deleted: 0 B in files"),
            "{told}"
        );
    }
}

#[test]
fn layers_in_images_are_compared_too() {
    lab::require_root!();
    lab::require!(lab::must::loop_devices());
    for image in ["debian.erofs", "debian.squashfs"] {
        let host = lab::host()
            .user(User::new("alice").groups(["jailed"]))
            .image(image)
            .config(&config("root = true"))
            .pam("sshd")
            .start();
        host.ssh("alice", "sudo sh -c 'echo x > /etc/issue; chmod 600 /etc/motd; rm -r /usr/share/doc; : >> /etc/deluser.conf'").ok();
        let told = text(&host, "ojail diff alice");
        let expected = "M /etc/issue (content, 27 B → 2 B)\nM /etc/motd (mode 644 → 600)\nD /usr/share/doc (directory)\n\
                        0 added, 2 changed, 1 deleted: ";
        assert!(told.starts_with(expected), "{image}: {told}");
        assert!(told.ends_with("; 1 file is in the upper and unchanged"), "{image}: {told}");
        // Not mounted yet, as after a boot.
        host.root("ojail stop alice; umount /run/ojail/images/*").ok();
        assert_eq!(text(&host, "ojail diff alice"), told, "{image}");
    }
}

#[test]
fn a_tree_of_ten_thousand_levels_is_told_to_its_end_on_both_sides() {
    lab::require_root!();
    // Not made by a user: ext4 takes a minute to remove such a tree, and overlayfs to copy one up. No jail is raised for this.
    let host = setup("").config(&config("").replace("\"debian\"]", "\"low\"]")).start();
    let make = r#"
        set -e
        mkdir -p /srv/overlay; mount -t tmpfs -o mode=0755 none /srv/overlay; cd /srv/overlay
        mkdir -m 700 lowerdirs upperdirs workdirs; mkdir -p lowerdirs/low/opt upperdirs/alice/opt
        for top in lowerdirs/low/opt/low upperdirs/alice/opt/low upperdirs/alice/opt/new; do
            perl -e '$top = shift; mkdir $top or die $!; chdir $top or die $!;
                for (1..10000) { mkdir "x" or die $!; chdir "x" or die $! } open F, ">", "end" or die $!' $top
        done
    "#;
    host.root(make).ok();
    // With few descriptors.
    let lines = |arguments: &str| text(&host, &format!("ulimit -n 32; ojail diff alice {arguments} | wc -l"));
    assert_eq!(lines("/opt/new"), "10003");
    assert_eq!(
        lines("/opt/low"),
        "2",
        "the directories are the same, the time of the file at their end is not"
    );
    assert_eq!(lines("/opt --json"), "10004");
    host.root(&format!("cd {UPPER}/opt; mv low /srv/overlay/away; mknod low c 0 0")).ok();
    assert!(text(&host, "ojail diff alice /opt/low").starts_with("D /opt/low (directory)\n0 added"));
    let deepest = format!("/opt/low{}", "/x".repeat(2000));
    assert!(
        text(&host, &format!("ojail diff alice {deepest}"))
            .starts_with(&format!("D {deepest} (directory)\n"))
    );
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    lab::require_root!();
    let host = host("");
    host.ssh("alice", "mkdir /var/tmp/d; cd /var/tmp/d; touch $(seq 20000)").ok();
    for option in ["", "--json", "--content"] {
        let told = host
            .root(&format!("{{ ojail diff alice {option}; echo status $? >&2; }} | head -n 1 >/dev/null"))
            .ok();
        assert_eq!(told.stderr.trim(), "status 0", "{option}");
    }
    let full = host.root("ojail diff alice > /dev/full").fails();
    assert!(full.stderr.contains("cannot write to standard output: No space left on device"), "{full}");
}
