//! What a user changed, out of one host and into another.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use lab::{Host, User};
use tar::EntryType;

use crate::common::points::Point;
use crate::common::{config, digest, host};
use crate::{assert_same, whole};

const ALICE: &str = "/srv/overlay/upperdirs/alice";

/// A host with a small layer of its own, and a user who has everything that an upper can have.
fn small() -> Host {
    let host = bare();
    host.exec(["python3", "-c", crate::TREE, "/srv/overlay/lowerdirs/debian"]).ok();
    host.root("mkdir -p -m 755 /srv/overlay/upperdirs/alice; chmod 700 /srv/overlay/upperdirs").ok();
    host.exec(["python3", "-c", crate::TREE, ALICE]).ok();
    host
}

/// A host on which alice has never been.
fn bare() -> Host {
    let host = lab::host()
        .user(User::new("alice").uid(1001).groups(["jailed"]))
        .config(&config(""))
        .pam("sshd")
        .containers()
        .start();
    host.root("mkdir -p -m 755 /srv/overlay/lowerdirs/debian; chmod 700 /srv/overlay/lowerdirs").ok();
    host
}

#[test]
fn a_user_moves_to_another_host() {
    lab::require_root!();
    let from = host("root = true");
    from.ssh(
        "alice",
        "sudo sh -c 'rm -r /usr/share/doc/bash; rm /etc/motd; rm -r /opt; mkdir /opt; echo x > /opt/new; echo mine > /etc/issue; \
         ln /etc/issue /etc/two; cp /bin/true /usr/local/bin/mine; chmod 4755 /usr/local/bin/mine; chown alice /srv; \
         truncate -s 50M /var/holes; echo end >> /var/holes'",
    )
    .ok();
    // No group of its own here, so it cannot be frozen.
    let refused = from.root("ojail export alice /root/alice.tar").fails();
    assert!(refused.stderr.contains("the jail of alice cannot be held still"), "{refused}");
    assert!(!from.path("/root/alice.tar").exists());
    let said = from.root("ojail export alice /root/alice.tar --end --force").text();
    assert!(said.contains("The jail of alice has ended.\nWhat alice has changed ("), "{said}");
    let sha256 = from.root("sha256sum < /root/alice.tar").text();
    let layer = format!("sha256:{}", sha256.trim_end_matches([' ', '-']));
    assert!(said.contains(&layer), "{said}");
    assert_eq!(from.root("stat -c %a /root/alice.tar; ls -A /root | grep alice").text(), "600\nalice.tar");
    let listed = from.root("tar -tf /root/alice.tar").text();
    for name in ["./", "etc/.wh.motd", "opt/.wh..wh..opq", "usr/share/doc/.wh.bash"] {
        assert!(listed.lines().any(|line| line == name), "{name} is not in\n{listed}");
    }

    let to = host("root = true");
    let tar = fs::read(from.path("/root/alice.tar")).unwrap();
    fs::write(to.path("/root/alice.tar"), &tar).unwrap();
    let said = to.root("ojail import alice /root/alice.tar").text();
    assert!(said.contains("alice has the changes of the layer") && said.contains(&layer), "{said}");
    let diff = |host: &Host| host.root("ojail diff alice").text();
    assert_eq!(diff(&to), diff(&from));
    let seen = "cat /etc/issue /etc/two /opt/new; stat -c '%h %U' /etc/two /srv; stat -c %a /usr/local/bin/mine; ls -d /etc/motd \
                /usr/share/doc/bash 2>&1; ls /opt; stat -c '%s %b' /var/holes; tail -c 4 /var/holes";
    let (there, here) = (from.ssh("alice", seen).run(), to.ssh("alice", seen).run());
    assert_eq!(here.text(), there.text());
    assert!(here.text().starts_with("mine\nmine\nx\n2 root\n"), "{here}");
    to.root("ojail stop alice").ok();
    let stream = to.root("ojail export alice -").run();
    // What a login itself leaves behind is the only difference there may be.
    to.write("/root/again.tar", 0o600, "");
    fs::write(to.path("/root/again.tar"), &stream.bytes).unwrap();
    assert!(stream.stderr.starts_with("ojail: What alice has changed"), "{stream}");
    to.root("tar -tf /root/again.tar").ok();
}

#[test]
fn everything_comes_through_and_gives_the_same_bytes_again() {
    lab::require_root!();
    let host = small();
    let before = whole(&host, ALICE);
    host.root("ojail export alice /one.tar").ok();
    assert_same(&whole(&host, ALICE), &before);
    for (number, import) in [
        "ojail import alice /one.tar --force",
        "gzip < /one.tar > /one.tgz; ojail import alice /one.tgz --force",
        "zstd -q < /one.tar | ojail import alice - --force",
        "cat /one.tar | ojail import alice - --force",
    ]
    .iter()
    .enumerate()
    {
        host.root(import).ok();
        assert_same(&whole(&host, ALICE), &before);
        host.root(&format!("ojail export alice /{number}.tar; cmp /one.tar /{number}.tar")).ok();
        host.root("ojail export alice - | cmp /one.tar").ok();
    }
    let other = bare();
    other.root("ojail import alice -").stdin(fs::read(host.path("/one.tar")).unwrap()).ok();
    assert_same(&whole(&other, ALICE), &before);
    other.root("ojail export alice /two.tar").ok();
    assert_eq!(fs::read(other.path("/two.tar")).unwrap(), fs::read(host.path("/one.tar")).unwrap());
    assert_eq!(
        other.root("ls -A /srv/overlay/asidedirs/.trash; stat -c %a /srv/overlay/*dirs | sort -u").text(),
        "700"
    );
}

#[test]
fn what_a_user_has_is_kept_unless_by_force_and_undo_brings_it_back() {
    lab::require_root!();
    let host = small();
    host.root("ojail export alice /one.tar; echo new > /srv/overlay/upperdirs/alice/new").ok();
    let changed = whole(&host, ALICE);
    let refused = host.root("ojail import alice /one.tar").fails();
    assert!(
        refused.stderr.contains("alice has changed something already; `--force` sets that aside"),
        "{refused}"
    );
    assert_same(&whole(&host, ALICE), &changed);
    let said = host.root("ojail import alice /one.tar --force").text();
    assert!(said.contains("`ojail undo alice` puts it back"), "{said}");
    assert!(!host.path(format!("{ALICE}/new")).exists());
    host.root("ojail undo alice").ok();
    assert_same(&whole(&host, ALICE), &changed);
    // A file that is there is not written over.
    let refused = host.root("ojail export alice /one.tar").fails();
    assert!(refused.stderr.contains("/one.tar: is there already; `--force` overwrites it"), "{refused}");
    host.root("cp /one.tar /old.tar; ojail export alice /one.tar --force; ! cmp -s /one.tar /old.tar").ok();
    for (command, why) in [
        ("ojail export alice /dev/null --force", "/dev/null: is there already, and no plain file"),
        ("ojail export alice / --force", "/: is no name of a file"),
        ("ojail export alice /none/x", "cannot open /none"),
        ("ojail export nobody-here /x", "user \"nobody-here\" does not exist"),
        ("ojail export root /x", "root has changed nothing"),
        ("ojail import nobody-here /one.tar", "user \"nobody-here\" does not exist"),
        ("ojail import alice /none", "cannot open /none"),
        ("ojail import alice / --force", "cannot read a layer"),
    ] {
        let refused = host.root(command).fails();
        assert!(refused.stderr.contains(why) && refused.stderr.lines().count() == 1, "{command}: {refused}");
    }
}

/// A tar of entries: kind, name, target.
fn tar(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, name, target) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        // As they are: the crate would refuse most of them.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        header.set_device_major(8).unwrap();
        header.set_device_minor(0).unwrap();
        header.set_cksum();
        tar.append(&header, std::io::empty()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// Tars that should not be believed, each by a name.
fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let (file, link, hard, disk) =
        (EntryType::Regular, EntryType::Symlink, EntryType::Link, EntryType::Block);
    let many: Vec<String> = (0..2000).map(|number| format!("d{number}/f")).collect();
    let mut late: Vec<_> = many.iter().map(|name| (file, name.as_str(), "")).collect();
    late.push((file, "../x", ""));
    let mut zeros = tar(&[(file, "z", "")]);
    zeros.truncate(512);
    let mut header = tar::Header::from_byte_slice(&zeros).clone();
    header.set_size(1 << 43);
    header.set_cksum();
    zeros.copy_from_slice(header.as_bytes());
    zeros.extend(vec![0; 1 << 20]);
    vec![
        ("up", tar(&[(file, "../../../../../root/owned", "")])),
        ("absolute", tar(&[(file, "/root/owned", "")])),
        ("through", tar(&[(link, "l", "/root"), (file, "l/owned", "")])),
        ("hard", tar(&[(hard, "h", "../../../../../root/secret")])),
        ("disk", tar(&[(disk, "sda", "")])),
        ("late", tar(&late)),
        ("zeros", zeros),
    ]
}

#[test]
fn a_hostile_or_damaged_layer_changes_nothing() {
    lab::require_root!();
    let host = small();
    host.root("ojail export alice /good.tar; mkdir /bad; echo secret > /root/secret").ok();
    for (name, content) in hostile() {
        fs::write(host.path(format!("/bad/{name}")), content).unwrap();
    }
    host.root(
        "cd /bad; head -c 9000 /good.tar > short; gzip < /good.tar > whole.gz; head -c -20 whole.gz > short.gz; \
         zstd -q < /good.tar > whole.zst; head -c -20 whole.zst > short.zst; \
         cp whole.gz changed.gz; printf XXXX | dd of=changed.gz bs=1 seek=3000 conv=notrunc status=none; \
         cp /good.tar changed; printf X | dd of=changed bs=1 seek=10 conv=notrunc status=none; : > empty; \
         head -c 100000 /dev/urandom > noise",
    )
    .ok();
    let state = || {
        let shelf = host.root("ls -AR /srv/overlay/asidedirs /root /bad").text();
        format!("{}{shelf}", whole(&host, "/srv/overlay/upperdirs"))
    };
    // The first makes the shelf.
    host.root("ojail import alice /bad/up --force").fails();
    let before = state();
    for (file, why) in [
        ("up", "\"../../../../../root/owned\" leads out of the tree"),
        ("absolute", "\"/root/owned\" is an absolute name"),
        ("through", "\"l/owned\" is below \"l\", which is a symbolic link"),
        ("hard", "leads out of the tree"),
        ("disk", "is a block device (8, 0)"),
        ("late", "\"../x\" leads out of the tree"),
        ("zeros", "it is cut short"),
        ("short", "it is cut short"),
        ("short.gz", "it is cut short"),
        ("short.zst", "it is cut short"),
        ("changed.gz", "is refused"),
        ("changed", "the checksum of a header is wrong"),
        ("empty", "it is cut short, or no tar"),
        ("noise", "is no tar, or damaged"),
    ] {
        let refused = host.root(&format!("ojail import alice /bad/{file} --force")).fails();
        assert!(refused.stderr.contains(why), "{file}: {refused}");
        assert!(
            refused.stderr.starts_with(&format!("ojail: /bad/{file}: is refused: ")),
            "{file}: {refused}"
        );
        assert_eq!(refused.stderr.lines().count(), 1, "{file}: {refused}");
        assert_same(&state(), &before);
    }
}

#[test]
fn a_bomb_is_refused_before_it_fills_the_disk() {
    lab::require_root!();
    lab::require!(lab::must::loop_devices());
    let host = lab::host()
        .user(User::new("alice").uid(1001).groups(["jailed"]))
        .config(&config(""))
        .small_disk("64M")
        .start();
    host.root("mkdir -p -m 755 /srv/overlay/lowerdirs/debian; chmod 700 /srv/overlay/lowerdirs").ok();
    // A gigabyte, and a million files, of which little is to be sent.
    let block = noise(1 << 20);
    let bytes = |tar: &mut tar::Builder<Gzip>| {
        for number in 0..200 {
            entry(tar, &format!("f{number}"), &block);
        }
    };
    let files = |tar: &mut tar::Builder<Gzip>| {
        for number in 0..1_000_000 {
            entry(tar, &format!("f{number}"), b"");
        }
    };
    let bombs: [(Bomb<'_>, &str); 2] = [
        (&bytes, "bytes, which is what is left on this file system less a tenth"),
        (&files, "files, which is what is left"),
    ];
    for (bomb, why) in bombs {
        let mut tar = tar::Builder::new(Gzip::to(&host.path("/bomb.tgz")));
        bomb(&mut tar);
        tar.into_inner().unwrap().end();
        let refused = host.root("ojail import alice /bomb.tgz").fails();
        assert!(refused.stderr.contains(why), "{refused}");
        let left = host
            .root("ls -A /srv/overlay/upperdirs /srv/overlay/asidedirs/alice /srv/overlay/asidedirs/.trash")
            .run();
        assert!(!left.text().contains("f1"), "{left}");
        let free: u64 =
            host.root("df --output=avail -k /srv/overlay | tail -1").text().trim().parse().unwrap();
        assert!(free > 40_000, "{free} KiB are free");
    }
}

#[test]
fn what_is_larger_than_the_disk_is_not_begun() {
    lab::require_root!();
    let host = small();
    // It takes nothing on the disk, and all of that in an archive.
    host.root(&format!("truncate -s 15T {ALICE}/hole")).ok();
    for command in ["ojail export alice /alice.tar", "ojail export alice - > /alice.tar"] {
        let refused = host.root(command).fails();
        assert!(refused.stderr.contains("TiB are needed; make room first"), "{refused}");
        assert_eq!(host.root("stat -c %s /alice.tar 2>/dev/null || echo 0").text(), "0");
    }
}

/// Bytes that do not compress (xorshift of Marsaglia).
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length / 8)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect()
}

fn entry(tar: &mut tar::Builder<Gzip>, name: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, name, content).unwrap();
}

/// What puts entries into a tar.
type Bomb<'a> = &'a dyn Fn(&mut tar::Builder<Gzip>);

/// gzip(1) on the way to a file.
struct Gzip(Child);

impl Gzip {
    fn to(path: &Path) -> Self {
        let mut gzip = Command::new("gzip");
        gzip.arg("-1").stdin(Stdio::piped()).stdout(File::create(path).unwrap());
        Self(gzip.spawn().unwrap())
    }

    fn end(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Write for Gzip {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.stdin.as_mut().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Calls that leave something behind; between two of them a kill finds the same.
pub(crate) const CHANGES: [&str; 22] = [
    "mkdir",
    "mkdirat",
    "openat",
    "openat2",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "symlinkat",
    "mknodat",
    "fchownat",
    "fchmodat",
    "lsetxattr",
    "setxattr",
    "utimensat",
    "write",
    "fsync",
    "syncfs",
    "ftruncate",
];

#[test]
fn a_kill_at_any_change_leaves_the_old_or_the_new() {
    lab::require_root!();
    let host = bare();
    host.root(&format!(
        "umask 022; mkdir -p -m 755 {ALICE}; chmod 700 /srv/overlay/upperdirs; cd {ALICE}; mkdir d; echo 1 > d/f; ln d/f g; mknod w c 0 0; \
         mknod d/v c 0 0; ln -s x l; setfattr -n user.x -v 1 d 2>/dev/null; ojail export alice /one.tar; cp -a {ALICE} /srv/overlay/tree"
    ))
    .ok();
    host.root("echo old > /srv/overlay/tree/old").ok();
    let begin = || {
        host.root(&format!("rm -rf {ALICE} /srv/overlay/asidedirs; cp -a /srv/overlay/tree {ALICE}")).ok();
    };
    begin();
    let old = digest(&host, ALICE);
    host.root("ojail import alice /one.tar --force").ok();
    let new = digest(&host, ALICE);
    assert_ne!(old, new);
    for command in ["ojail import alice /one.tar --force", "ojail export alice /two.tar"] {
        begin();
        host.root("rm -f /two.tar").ok();
        let points: Vec<_> =
            Point::all(&host, command).into_iter().filter(|point| CHANGES.contains(&&*point.call)).collect();
        let (mut before, mut behind) = (0, 0);
        for point in &points {
            begin();
            host.root("rm -f /two.tar").ok();
            point.kill(&host, command);
            let at = format!("{command}: a kill at {point}");
            if command.contains("export") {
                // Whole, or not there; and nothing beside it.
                let there = host.root("cd /; ls -A | grep -v '^one.tar$' | grep tar; [ ! -e two.tar ] || tar -tf two.tar | tail -1").run();
                assert!(
                    there.text().is_empty()
                        || there.text() == "two.tar\nw"
                        || there.text() == "two.tar\n.wh.w",
                    "{at}: {there}"
                );
                if there.text().is_empty() {
                    before += 1
                } else {
                    behind += 1
                }
                host.root("rm -f /two.tar; ojail export alice /two.tar").ok();
                assert_eq!(digest(&host, ALICE), old, "{at}");
                continue;
            }
            let now = digest(&host, ALICE);
            assert!(now == old || now == new, "{at}");
            if now == old {
                before += 1;
                host.root("ojail tidy").ok();
                let left = host
                    .root("ls -A /srv/overlay/asidedirs/.trash /srv/overlay/asidedirs/alice 2>/dev/null")
                    .run();
                assert!(!left.text().contains("upper"), "{at}: {left}");
            } else {
                behind += 1;
                host.root("ojail undo alice").ok();
                assert_eq!(digest(&host, ALICE), old, "{at}, undone");
            }
            host.root("ojail import alice /one.tar --force").ok();
            assert_eq!(digest(&host, ALICE), new, "{at}, and once more");
        }
        eprintln!("{command}: {} points, {before} before the step and {behind} behind it", points.len());
        assert!(before > 20 && behind > 1, "{command}: {before} before, {behind} behind");
    }
}

/// What a user may do to a tree, by names of `TREE`.
const CHANGE: &str = r#"
cd "$1"
rm setuid; rm -r many; mkdir many; echo new > many/new; chown 1000 many
rm -r sticky; echo file > sticky
rm odd; mkdir odd; echo in > odd/in
echo more >> capable; mv closed/in/file closed/moved; chmod 700 closed
ln capable hard; ln -s zz soft; rm far; echo far > far
rm -r opaque; mkdir -p deep/er; echo x > deep/er/x
# Whole seconds: umoci rounds times.
find . -newermt @1200000000 -exec touch -h -d @1300000000 {} +
"#;

#[test]
fn umoci_sees_what_the_user_sees_and_the_other_way_round() {
    lab::require_root!();
    let host = bare();
    host.exec(["python3", "-c", crate::TREE, "/srv/overlay/lowerdirs/debian"]).ok();
    // What the tree has of overlayfs' own is of no layer below all others.
    host.root("cd /srv/overlay/lowerdirs/debian; setfattr -x user.overlay.opaque opaque 2>/dev/null || python3 -c 'import os; os.removexattr(\"opaque\", \"user.overlay.opaque\")'; rm -f whiteout null opaque/null").ok();
    let upper = |upper: &str| {
        format!(
            "mkdir -p /srv/overlay/w /merged; mount -t overlay overlay -o userxattr,lowerdir=/srv/overlay/lowerdirs/debian,upperdir={upper},workdir=/srv/overlay/w /merged"
        )
    };
    host.root(&format!("mkdir -p -m 755 {ALICE}; chmod 700 /srv/overlay/upperdirs; {}", upper(ALICE))).ok();
    host.root(CHANGE).arg("/merged").ok();
    let seen = whole(&host, "/merged");
    host.root("umount /merged; ojail export alice /alice.tar").ok();
    host.root(
        "set -e; tar --numeric-owner --xattrs --xattrs-include='*' -cf /base.tar -C /srv/overlay/lowerdirs/debian .; cd /; umoci init --layout image; \
         umoci new --image image:one; umoci raw add-layer --image image:one base.tar; umoci raw add-layer --image image:one alice.tar; \
         umoci unpack --image image:one bundle",
    )
    .ok();
    assert_same(&timeless(&whole(&host, "/bundle/rootfs")), &timeless(&seen));
    // And what umoci finds changed.
    host.root("cd /; umoci new --image image:two; umoci raw add-layer --image image:two base.tar; umoci unpack --image image:two other").ok();
    host.root(CHANGE).arg("/other/rootfs").ok();
    let seen = whole(&host, "/other/rootfs");
    host.root(
        "set -e; cd /; umoci repack --image image:two other; skopeo inspect oci:image:two --format '{{range .Layers}}{{println .}}{{end}}' > /layers; \
         blob=$(grep . /layers | tail -1 | cut -d: -f2); ojail import alice /image/blobs/sha256/$blob --force",
    )
    .ok();
    let listed = host.root("find /srv/overlay/upperdirs/alice -type c | wc -l").text();
    assert!(listed.parse::<u32>().unwrap() > 3, "{listed} whiteouts");
    host.root(&upper(ALICE)).ok();
    assert_same(&timeless(&whole(&host, "/merged")), &timeless(&seen));
    host.root("umount /merged").ok();
}

/// Without the times of directories, which change with what is in them, and without holes.
fn timeless(whole: &str) -> String {
    let lines: BTreeSet<&str> = whole.lines().collect();
    lines
        .into_iter()
        .map(|line| {
            let line = if line.contains("'d'") { line.split(" time ").next().unwrap() } else { line };
            // umoci makes none.
            line.replace("'holes'", "''") + "\n"
        })
        .collect()
}
