//! Trees to tars and back, and tars that nobody should believe.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write as _};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, mknodat, setxattr, utimensat,
};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::*;
use crate::error::Result;
use crate::lower::attributes;
use crate::oci::packed::Plain;
use crate::walk;

const PLENTY: Allowance = Allowance { entries: 100_000, bytes: 1 << 30 };

/// Where root may do what these do; for everybody else there is no layer to make.
fn root() -> bool {
    rustix::process::geteuid().is_root()
}

fn packed(dir: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let written = write(walk::open(dir).unwrap().as_fd(), &mut bytes).unwrap();
    assert_eq!(written.bytes, bytes.len() as u64);
    bytes
}

fn unpack(bytes: &[u8], dir: &Path) -> Result<Taken> {
    read(&mut &*bytes, walk::open(dir).unwrap().as_fd(), PLENTY)
}

/// The sentence of a refusal.
#[track_caller]
fn refused(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    unpack(bytes, dir.path()).unwrap_err().to_string()
}

/// What a tree has, a line a name; of files with several names, the least at the others.
fn facts(top: &Path) -> BTreeMap<PathBuf, String> {
    let mut facts = BTreeMap::new();
    let mut names: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    let mut all = vec![top.to_owned()];
    while let Some(path) = all.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(top).unwrap().to_owned();
        let mut line =
            format!("{:o} {}:{} {:x} {}", meta.mode(), meta.uid(), meta.gid(), meta.rdev(), meta.mtime());
        let dir = walk::open(path.parent().unwrap()).unwrap();
        let file_name = std::ffi::CString::new(path.file_name().unwrap().as_bytes()).unwrap();
        write!(line, " {:?}", attributes(dir.as_fd(), &file_name).unwrap()).unwrap();
        if meta.is_symlink() {
            write!(line, " to {:?}", fs::read_link(&path).unwrap()).unwrap();
        } else if meta.is_file() {
            let mut sha = Sha256::new();
            let mut file = File::open(&path).unwrap();
            let mut buffer = vec![0; 1 << 16];
            loop {
                match file.read(&mut buffer).unwrap() {
                    0 => break,
                    read => sha.update(&buffer[..read]),
                }
            }
            write!(line, " {} bytes {:?}", meta.len(), sha.finalize()).unwrap();
        } else if meta.is_dir() {
            all.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        if !meta.is_dir() && meta.rdev() != 0 || meta.nlink() > 1 && !meta.is_dir() {
            names.entry(meta.ino()).or_default().push(name.clone());
        }
        facts.insert(name, line);
    }
    // In which order names come is the file system's choice: on a tmpfs it is that in which they were made.
    for mut same in names.into_values() {
        same.sort();
        for name in &same[1..] {
            write!(facts.get_mut(name).unwrap(), " same as {:?}", same[0]).unwrap();
        }
    }
    facts
}

/// Of posix_acl_xattr.h: a version, then tag, permissions and id of each entry.
fn acl(user: u32) -> Vec<u8> {
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in
        [(1u16, 7u16, u32::MAX), (2, 6, user), (4, 0, u32::MAX), (16, 6, u32::MAX), (32, 0, u32::MAX)]
    {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

/// Everything that a layer can have, with owners, modes and times that do not depend on the day.
fn furnish(top: &Path) {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let at = |name: &str| top.join(name);
    let set = |name: &str, key: &str, value: &[u8]| {
        setxattr(at(name), key, value, XattrFlags::empty()).unwrap();
    };
    let node = |name: &str, kind: FileType, device: u64| {
        mknodat(CWD, at(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    };
    for dir in
        ["closed", "closed/in", "opaque", "listed", "listed/below", "sticky", "empty", "a", "a-b", "a.d"]
    {
        fs::create_dir(at(dir)).unwrap();
    }
    for file in [
        "closed/in/file",
        "setuid",
        "capable",
        "listed/file",
        "marked",
        "odd",
        "a/z",
        "a-b/y",
        "-rf",
        "opaque/!x",
    ] {
        fs::write(at(file), file).unwrap();
    }
    fs::write(at("new\nline \x1b[31m"), "x").unwrap();
    fs::write(at("größe"), "y").unwrap();
    fs::write(top.join(OsStr::from_bytes(b"\xff\xfe")), "").unwrap();
    let long = at(&"d".repeat(200)).join("e".repeat(200));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("f".repeat(100)), vec![7; 1000]).unwrap();
    fs::write(at(&"n".repeat(100)), vec![8; 512]).unwrap();
    fs::write(at(&"m".repeat(101)), vec![9; 513]).unwrap();
    for (name, mode) in [("setuid", 0o6755), ("sticky", 0o3777), ("odd", 0o000), ("capable", 0o755)] {
        fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
    }
    for (name, uid, gid, mode) in
        [("setuid", 5, 60, 0o6755), ("sticky", 1000, 1000, 0o3777), ("odd", 65_534, 4_000_000_000, 0)]
    {
        lchown(at(name), Some(uid), Some(gid)).unwrap();
        fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
    }
    // VFS_CAP_REVISION_2 of linux/capability.h, effective, CAP_NET_RAW.
    set("capable", "security.capability", &[[1, 0, 0, 2], [0, 32, 0, 0], [0; 4], [0; 4], [0; 4]].concat());
    set("listed", "system.posix_acl_access", &acl(7));
    set("listed/file", "system.posix_acl_access", &acl(8));
    set("listed", "system.posix_acl_default", &acl(1000));
    set("opaque", "user.overlay.opaque", b"y");
    set("marked", "user.empty", b"");
    set("marked", "user.a=b%c", b"one=two\nthree");
    set("marked", "user.large", &[7; 1000]);
    set("marked", "trusted.mine", b"\0\n\0");
    set("marked", "user.overlay.overlay.opaque", b"y");
    node("whiteout", FileType::CharacterDevice, 0);
    node("a/gone", FileType::CharacterDevice, 0);
    node("null", FileType::CharacterDevice, 0x103);
    node("fifo", FileType::Fifo, 0);
    for (old, new) in [("setuid", "closed/linked"), ("setuid", "zz"), ("fifo", "empty/fifo"), ("null", "nul")]
    {
        fs::hard_link(at(old), at(new)).unwrap();
    }
    symlink("/", at("root")).unwrap();
    symlink("../../../../etc/passwd", at("closed/out")).unwrap();
    symlink("x".repeat(300), at("far")).unwrap();
    fs::hard_link(at("root"), at("root2")).unwrap();
    lsetxattr(at("root"), "trusted.of.a.link", b"1", XattrFlags::empty()).unwrap();
    let sparse = File::create(at("sparse")).unwrap();
    sparse.set_len(2 << 20).unwrap();
    sparse.write_all_at(b"middle", 1 << 20).unwrap();
    fs::set_permissions(at("closed/in"), Permissions::from_mode(0o000)).unwrap();
    let mut all = vec![top.to_owned()];
    let mut number = 0;
    while let Some(path) = all.pop() {
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            let mut below: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            below.sort();
            all.extend(below);
        }
        number += 1;
        let time = Timespec { tv_sec: 1_000_000_000 + number, tv_nsec: 999_999_999 };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    // Behind the directory of what it is in: the time of that is set.
    let early = Timespec { tv_sec: -1_000, tv_nsec: 0 };
    let times = Timestamps { last_access: early, last_modification: early };
    utimensat(CWD, at("odd"), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn furnished() -> TempDir {
    let top = tempfile::tempdir().unwrap();
    furnish(top.path());
    fs::set_permissions(top.path(), Permissions::from_mode(0o751)).unwrap();
    top
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn what_is_written_is_read_and_written_again_as_the_same_bytes() {
    if !root() {
        return;
    }
    let (old, new) = (furnished(), tempfile::tempdir().unwrap());
    let bytes = packed(old.path());
    unpack(&bytes, new.path()).unwrap();
    let (before, mut after) = (facts(old.path()), facts(new.path()));
    for marks in ["whiteout", "a/gone"] {
        // Of a whiteout nothing is kept but that it is one.
        after.insert(marks.into(), before[Path::new(marks)].clone());
        assert!(walk::is_whiteout(&rustix::fs::lstat(new.path().join(marks)).unwrap()));
    }
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (path, line) in &before {
        assert_eq!(line, &after[path], "{}", path.display());
    }
    assert!(fs::metadata(new.path().join("sparse")).unwrap().blocks() < 100, "a hole was filled");
    assert_eq!(sha256(&packed(new.path())), sha256(&bytes));
    // Everybody's tar agrees on what is in it.
    let copy = new.path().join("copy");
    fs::write(&copy, &bytes).unwrap();
    let listed = std::process::Command::new("tar").arg("-tf").arg(&copy).output().unwrap();
    assert!(listed.status.success() && listed.stderr.is_empty(), "{listed:?}");
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.starts_with("./\n-rf\na/\na/.wh.gone\na/z\na-b/\na-b/y\na.d/\n"), "{listed}");
    assert!(listed.contains("opaque/\nopaque/.wh..wh..opq\nopaque/!x\n"), "{listed}");
}

/// What these bytes are decides how every layer is called: that they change must not go unnoticed.
#[test]
fn the_bytes_of_a_tree_are_these_and_no_others() {
    if !root() {
        return;
    }
    let top = furnished();
    assert_eq!(
        sha256(&packed(top.path())),
        "d96d71b45ad3345a71159ddea3c4d45fb005d8d0135c8bc69e659ee8f66f6539"
    );
}

#[test]
fn the_same_tree_made_in_another_order_gives_the_same_bytes() {
    if !root() {
        return;
    }
    let make = |names: &[&str]| {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("first"), "1").unwrap();
        for name in names {
            if *name != "first" {
                fs::hard_link(top.path().join("first"), top.path().join(name)).unwrap();
            }
        }
        for attribute in names {
            let key = format!("user.{attribute}");
            setxattr(top.path().join("first"), &*key, b"", XattrFlags::empty()).unwrap();
        }
        let time = Timespec { tv_sec: 5, tv_nsec: 0 };
        for path in [top.path().to_owned(), top.path().join("first")] {
            utimensat(
                CWD,
                &path,
                &Timestamps { last_access: time, last_modification: time },
                AtFlags::empty(),
            )
            .unwrap();
        }
        packed(top.path())
    };
    assert_eq!(make(&["first", "b", "c", "z"]), make(&["z", "c", "first", "b"]));
}

#[test]
fn what_a_layer_cannot_say_is_refused_and_what_is_not_its_own_is_left_out() {
    if !root() {
        return;
    }
    let top = tempfile::tempdir().unwrap();
    let plain = packed(top.path());
    for (key, value) in [
        ("user.overlay.origin", &b"\0\xfb\x1d\0"[..]),
        ("user.overlay.impure", b"y"),
        ("user.overlay.opaque", b"y"),
        ("trusted.overlay.origin", b"x"),
    ] {
        setxattr(top.path(), key, value, XattrFlags::empty()).unwrap();
    }
    let time = fs::metadata(top.path()).unwrap().mtime();
    mknodat(CWD, top.path().join("socket"), FileType::Socket, Mode::RUSR, 0).unwrap();
    let time = Timespec { tv_sec: time, tv_nsec: 0 };
    utimensat(CWD, top.path(), &Timestamps { last_access: time, last_modification: time }, AtFlags::empty())
        .unwrap();
    assert_eq!(packed(top.path()), plain);
    let refused = || write(walk::open(top.path()).unwrap().as_fd(), &mut io::sink()).unwrap_err().to_string();
    fs::write(top.path().join(".wh.\x1b[x"), "").unwrap();
    let why = refused();
    assert!(why.starts_with("\".wh.\\u{1b}[x\": begins with `.wh.`"), "{why}");
    fs::remove_file(top.path().join(".wh.\x1b[x")).unwrap();
    File::create(top.path().join("huge")).unwrap().set_len(1 << 42).unwrap();
    let why = refused();
    assert!(why.contains("\"huge\": and what is before it have holes of more than 1 TiB"), "{why}");
}

/// An archive, by hand.
#[derive(Default)]
struct Hand(Vec<u8>);

impl Hand {
    fn entry(mut self, kind: u8, path: &str, link: &str, content: &[u8]) -> Self {
        let mut header = ::tar::Header::new_ustar();
        header.as_mut_bytes()[156] = kind;
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        header.set_device_major(8).unwrap();
        header.set_device_minor(1).unwrap();
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    fn file(self, path: &str) -> Self {
        self.entry(b'0', path, "", path.as_bytes())
    }

    fn dir(self, path: &str) -> Self {
        self.entry(b'5', path, "", b"")
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (keyword, value) in records {
            let rest = keyword.len() + value.len() + 3;
            let length = (rest..).find(|length| *length == rest + length.to_string().len()).unwrap();
            text.extend(format!("{length} {keyword}=").bytes());
            text.extend(*value);
            text.push(b'\n');
        }
        self.entry(b'x', "pax", "", &text)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

fn hand() -> Hand {
    Hand::default()
}

#[test]
fn nothing_of_a_hostile_archive_gets_out_of_the_tree() {
    if !root() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let out = outside.path().to_str().unwrap();
    for (archive, why) in [
        (hand().file("../x"), "\"../x\" leads out of the tree"),
        (hand().file("a/../../x"), "leads out of the tree"),
        (hand().file("/etc/x"), "\"/etc/x\" is an absolute name"),
        (hand().pax(&[("path", b"../x")]).file("x"), "leads out of the tree"),
        (hand().entry(b'L', "@", "", b"../x\0").file("x"), "leads out of the tree"),
        (hand().pax(&[("path", b"a\0b")]).file("x"), "has a byte in it that no name has"),
        (hand().pax(&[("path", b"")]).file("x"), "is no name"),
        (hand().entry(b'2', "l", out, b"").file("l/x"), "is below \"l\", which is a symbolic link"),
        (hand().entry(b'2', "l", "..", b"").dir("l/d/"), "is below \"l\", which is a symbolic link"),
        (hand().entry(b'2', "l", out, b"").file("l/.wh.x"), "is below \"l\", which is a symbolic link"),
        (
            hand().entry(b'2', "l", out, b"").file("l/.wh..wh..opq"),
            "is below \"l\", which is a symbolic link",
        ),
        (hand().entry(b'2', "l", out, b"").entry(b'1', "h", "l/secret", b""), "which is no file before it"),
        (hand().entry(b'1', "h", "../../etc/passwd", b""), "leads out of the tree"),
        (hand().entry(b'1', "h", "/etc/passwd", b""), "is an absolute name"),
        (hand().entry(b'1', "h", "none", b""), "is a hard link to \"none\", which is no file before it"),
        (hand().dir("d").entry(b'1', "h", "d", b""), "which is no file before it"),
        (hand().file(".wh.d").entry(b'1', "h", "d", b""), "which is no file before it"),
        (hand().file("f").file("f/x"), "is below \"f\", which is a file"),
        (
            hand().entry(b'3', "sda", "", b""),
            "is a character device (8, 1); of devices, a layer may have null",
        ),
        (hand().entry(b'4', "sda", "", b""), "is a block device (8, 1)"),
        (hand().entry(b'S', "s", "", b""), "has sparse records"),
        (hand().pax(&[("GNU.sparse.major", b"1")]).file("s"), "has sparse records"),
        (hand().entry(b'V', "label", "", b""), "is of a kind that no layer has ('V')"),
        (hand().entry(b'2', "l", "", b""), "is a symbolic link to nothing"),
        (hand().file("./"), "is the root of the tree, and no directory"),
        (hand().file(".wh..wh..opq"), "hides all of the layers below"),
        (hand().file("d/.wh."), "is a whiteout of no name"),
        (hand().file("d/.wh..."), "is a whiteout of no name"),
        (hand().file("d/.wh.."), "is a whiteout of no name"),
        (hand().file(".wh..wh.plnk"), "is AUFS' own"),
        (hand().file(".wh.d/x"), "is below a whiteout"),
        (hand().entry(b'2', ".wh.d", "x", b""), "is called like a whiteout, and no plain file"),
        (hand().dir(".wh.d"), "is called like a whiteout, and no plain file"),
        (hand().pax(&[("uid", b"4294967295")]).file("x"), "has a uid that nobody can have"),
        (hand().pax(&[("gid", b"-1")]).file("x"), "has a gid that is no number"),
        (hand().pax(&[("mtime", b"soon")]).file("x"), "has an mtime that is no number"),
        (hand().pax(&[("size", b"99999999999999999999")]).file("x"), "has a size that is no number"),
        (hand().pax(&[("mtime", b"1")]).pax(&[("mtime", b"1")]).file("x"), "has two extended headers"),
        (hand().entry(b'x', "pax", "", b"99 path=x\n").file("x"), "has a damaged extended header"),
        (hand().entry(b'g', "pax", "", b"10 path=x\n").file("x"), "has a header for all entries"),
        (
            hand().entry(b'x', "pax", "", &vec![b'1'; (1 << 20) + 1]).file("x"),
            "has an extended header of 1048577 bytes",
        ),
        (
            hand().entry(b'L', "@", "", &vec![b'x'; (1 << 20) + 1]).file("x"),
            "has an extended header of 1048577 bytes",
        ),
    ] {
        let said = refused(&archive.end());
        assert!(said.starts_with("the layer's tar is refused: ") && said.contains(why), "{why}: {said}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "{why}");
    }
    // A header that says it has 8 GiB and more of them is believed only as far as they come.
    let mut huge = hand().file("x").0;
    let mut header = ::tar::Header::new_ustar();
    header.clone_from(::tar::Header::from_byte_slice(&huge[..BLOCK]));
    header.set_size(u64::MAX / 2);
    header.set_cksum();
    huge[..BLOCK].copy_from_slice(header.as_bytes());
    assert!(refused(&huge).contains("cut short"));
}

#[test]
fn an_archive_that_is_cut_short_anywhere_or_changed_in_a_header_is_refused() {
    if !root() {
        return;
    }
    let top = tempfile::tempdir().unwrap();
    fs::write(top.path().join("file"), vec![1; 700]).unwrap();
    setxattr(top.path().join("file"), "user.x", b"1", XattrFlags::empty()).unwrap();
    fs::write(top.path().join("zz"), "").unwrap();
    let whole = packed(top.path());
    for length in (0..whole.len() - 1023).step_by(97).chain((0..=whole.len() - 1024).step_by(512)) {
        let said = refused(&whole[..length]);
        assert!(said.contains("it is cut short"), "{length}: {said}");
    }
    for place in [0, 100, 150, 300] {
        let mut changed = whole.clone();
        changed[place] ^= 1;
        let said = refused(&changed);
        assert!(
            said.contains("the checksum of a header is wrong") || said.contains("damaged"),
            "{place}: {said}"
        );
    }
    assert!(refused(b"").contains("cut short"));
    assert!(refused(&[b'x'; 4096]).contains("is no tar, or damaged"));
}

#[test]
fn more_than_is_allowed_is_refused_with_the_figure() {
    if !root() {
        return;
    }
    let read = |archive: &[u8], entries: u64, bytes: u64| {
        let dir = tempfile::tempdir().unwrap();
        let mut from = archive;
        super::read(&mut from, walk::open(dir.path()).unwrap().as_fd(), Allowance { entries, bytes })
    };
    let mut many = hand();
    for number in 0..20 {
        many = many.file(&format!("f{number}"));
    }
    let many = many.end();
    assert_eq!(read(&many, 20, 1 << 20).unwrap(), Taken { entries: 20, bytes: 20 * 4096 });
    let said = read(&many, 19, 1 << 20).unwrap_err().to_string();
    assert!(said.contains("it has more than 19 files"), "{said}");
    let said = read(&many, 20, 19 * 4096).unwrap_err().to_string();
    assert!(said.contains("\"f19\" and what is before it take more than 77824 bytes"), "{said}");
    // Of zeros nothing is written.
    let zeros = hand().entry(b'0', "zeros", "", &vec![0; 10 << 20]).end();
    assert_eq!(read(&zeros, 1, 0).unwrap(), Taken { entries: 1, bytes: 0 });
    let deep = hand().dir(&"d/".repeat(49)).end();
    let said = read(&deep, 20, 10 * 4096).unwrap_err().to_string();
    assert!(said.contains("take more than 40960 bytes"), "{said}");
}

#[test]
fn the_last_of_a_name_is_the_one_that_holds() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let archive = hand()
        .dir("d")
        .file("d/in")
        .entry(b'2', "d", "elsewhere", b"")
        .entry(b'2', "e", "elsewhere", b"")
        .dir("e")
        .file("e/in")
        .entry(b'0', "f", "", b"one")
        .entry(b'1', "g", "f", b"")
        .entry(b'0', "f", "", b"two")
        .entry(b'1', "g", "g", b"")
        .dir("h")
        .file("h/in")
        .pax(&[("SCHILY.xattr.user.x", b"1")])
        .dir("h")
        .dir("h")
        .entry(b'7', "old", "", b"contiguous")
        .entry(0, "v7/", "", b"");
    unpack(&archive.end(), dir.path()).unwrap();
    let at = |name: &str| dir.path().join(name);
    assert_eq!(fs::read_link(at("d")).unwrap(), Path::new("elsewhere"));
    assert_eq!(fs::read_to_string(at("e/in")).unwrap(), "e/in");
    assert_eq!(
        (fs::read_to_string(at("f")).unwrap(), fs::read_to_string(at("g")).unwrap()),
        ("two".into(), "one".into())
    );
    assert_eq!(fs::read_to_string(at("h/in")).unwrap(), "h/in");
    let top = walk::open(dir.path()).unwrap();
    assert!(attributes(top.as_fd(), c"h").unwrap().is_empty());
    assert!(at("v7").is_dir() && fs::read_to_string(at("old")).unwrap() == "contiguous");
}

#[test]
fn whiteouts_mean_what_is_below_the_layer_whatever_their_order() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let archive = hand()
        .file(".wh.before")
        .dir("before")
        .dir("behind")
        .file("behind/in")
        .file(".wh.behind")
        .file("file")
        .file(".wh.file")
        .file(".wh.other")
        .file("other")
        .file(".wh.implied")
        .file("implied/in")
        .file("o/in")
        .file("o/.wh..wh..opq")
        .dir("o");
    unpack(&archive.end(), dir.path()).unwrap();
    for name in ["before", "behind", "implied", "o"] {
        assert!(lower_opaque(&dir.path().join(name)), "{name}");
    }
    assert_eq!(fs::read_to_string(dir.path().join("file")).unwrap(), "file");
    assert_eq!(fs::read_to_string(dir.path().join("other")).unwrap(), "other");
}

fn lower_opaque(dir: &Path) -> bool {
    crate::lower::is_opaque(walk::open(dir).unwrap()).unwrap()
}

#[test]
fn layers_are_squashed_as_an_overlay_would_show_them() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut tree = Tree::new(walk::open(dir.path()).unwrap().as_fd(), PLENTY).unwrap();
    let first = hand()
        .dir("etc")
        .file("etc/gone")
        .file("etc/kept")
        .file("etc/new")
        .dir("opaque")
        .dir("opaque/deep")
        .file("opaque/deep/old")
        .dir("opaque/gone")
        .file("opaque/gone/x")
        .dir("replaced")
        .file("replaced/old")
        .file("was a file")
        .dir("whole")
        .file("whole/x");
    let second = hand()
        .file("etc/.wh.gone")
        .file("etc/.wh.never")
        .entry(b'0', "etc/new", "", b"2")
        .file("etc/.wh.new")
        .dir("opaque/deep")
        .file("opaque/deep/new")
        .file("opaque/.wh..wh..opq")
        .dir("replaced")
        .file("replaced/new")
        .file(".wh.replaced")
        .dir("was a file")
        .file(".wh.whole");
    for layer in [first.end(), second.end()] {
        tree.add(&mut &*layer, Marks::Applied).unwrap();
    }
    tree.finish().unwrap();
    let names: Vec<String> = facts(dir.path()).keys().map(|path| path.display().to_string()).collect();
    let expected = [
        "",
        "etc",
        "etc/kept",
        "etc/new",
        "opaque",
        "opaque/deep",
        "opaque/deep/new",
        "replaced",
        "replaced/new",
        "was a file",
    ];
    assert_eq!(names, expected);
    assert_eq!(fs::read_to_string(dir.path().join("etc/new")).unwrap(), "2");
    assert_eq!(fs::metadata(dir.path().join("etc")).unwrap().mtime(), 1);
}

#[test]
fn a_tree_in_parts_is_the_same_tree() {
    if !root() {
        return;
    }
    let (old, new) = (furnished(), tempfile::tempdir().unwrap());
    let (mut parts, mut part) = (Vec::new(), Vec::new());
    write_in_parts(walk::open(old.path()).unwrap().as_fd(), &mut part, 3000, &mut |part: &mut Vec<u8>| {
        parts.push(std::mem::take(part));
        Ok(())
    })
    .unwrap();
    parts.push(part);
    assert!(parts.len() > 10, "{}", parts.len());
    let mut tree = Tree::new(walk::open(new.path()).unwrap().as_fd(), PLENTY).unwrap();
    for part in &parts {
        tree.add(&mut &**part, Marks::Kept).unwrap();
    }
    tree.finish().unwrap();
    assert!(packed(new.path()) == packed(old.path()));
}

#[test]
fn access_lists_are_given_to_nothing_that_has_none() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    setxattr(dir.path(), "system.posix_acl_default", &acl(5), XattrFlags::empty()).unwrap();
    let archive =
        hand().file("file").dir("dir").entry(b'6', "fifo", "", b"").file("implied/in").file(".wh.gone");
    unpack(&archive.end(), dir.path()).unwrap();
    let top = walk::open(dir.path()).unwrap();
    for name in [c"file", c"dir", c"fifo", c"implied", c"gone"] {
        assert!(attributes(top.as_fd(), name).unwrap().is_empty(), "{name:?}");
    }
    assert_eq!(fs::metadata(dir.path().join("implied")).unwrap().mode() & 0o777, 0o755);
}

#[test]
fn what_gnu_tar_packs_is_read() {
    if !root() {
        return;
    }
    let old = furnished();
    fs::remove_file(old.path().join("whiteout")).unwrap();
    fs::remove_file(old.path().join("a/gone")).unwrap();
    for format in ["posix", "gnu"] {
        let new = tempfile::tempdir().unwrap();
        let mut tar = std::process::Command::new("tar");
        tar.args([
            "-C",
            old.path().to_str().unwrap(),
            "--numeric-owner",
            &format!("--format={format}"),
            "-cf",
            "-",
        ]);
        if format == "posix" {
            tar.args(["--xattrs", "--xattrs-include=*"]);
        }
        let packed = tar.arg(".").output().unwrap();
        assert!(packed.status.success(), "{packed:?}");
        unpack(&packed.stdout, new.path()).unwrap();
        let (before, after) = (facts(old.path()), facts(new.path()));
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        for (path, line) in &before {
            let name = path.to_str().unwrap_or_default();
            // It links plain files only.
            if ["fifo", "empty/fifo", "null", "nul"].contains(&name) {
                continue;
            }
            // GNU's own format has no attributes, and so no opaque directories either.
            let other =
                ["marked", "listed", "listed/file", "capable", "opaque", "root", "root2", "listed/below"];
            if format == "posix" && name != "opaque" || !other.contains(&name) {
                assert_eq!(line, &after[path], "{format}: {}", path.display());
            }
        }
    }
}

#[test]
fn what_is_compressed_is_recognised_and_a_damaged_one_refused() {
    let text = b"layer ".repeat(10_000);
    for program in ["gzip", "zstd", "cat"] {
        let mut child = std::process::Command::new(program)
            .arg(if program == "cat" { "-" } else { "-c" })
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&text).unwrap();
        let packed = child.wait_with_output().unwrap().stdout;
        let mut plain = Plain::of(io::Cursor::new(packed.clone())).unwrap();
        let mut read = Vec::new();
        plain.read_to_end(&mut read).unwrap();
        assert_eq!(read, text, "{program}");
        assert_eq!(plain.end().unwrap().position(), packed.len() as u64);
        if program == "cat" {
            continue;
        }
        let mut plain = Plain::of(io::Cursor::new(packed[..packed.len() - 5].to_vec())).unwrap();
        plain.read_to_end(&mut Vec::new()).unwrap();
        let said = plain.end().unwrap_err().to_string();
        assert!(said.contains(&format!("{program} cannot unpack it")), "{said}");
    }
}

#[test]
fn a_tree_of_a_thousand_levels_goes_there_and_back() {
    if !root() {
        return;
    }
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(old.path().join("old")).unwrap();
    let mut dir = walk::open(&old.path().join("old")).unwrap();
    for _ in 0..1_000 {
        rustix::fs::mkdirat(&dir, "x", Mode::RWXU).unwrap();
        rustix::fs::symlinkat("a", &dir, "y").unwrap();
        dir = rustix::fs::openat(&dir, "x", rustix::fs::OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let top = walk::open(&old.path().join("old")).unwrap();
    let mut bytes = Vec::new();
    write(top.as_fd(), &mut bytes).unwrap();
    fs::create_dir(new.path().join("new")).unwrap();
    let top = walk::open(&new.path().join("new")).unwrap();
    read(&mut &*bytes, top.as_fd(), PLENTY).unwrap();
    let mut again = Vec::new();
    write(top.as_fd(), &mut again).unwrap();
    assert!(again == bytes, "{} and {} bytes", bytes.len(), again.len());
    walk::remove(walk::open(old.path()).unwrap().as_fd(), c"old", None).unwrap();
    walk::remove(walk::open(new.path()).unwrap().as_fd(), c"new", None).unwrap();
}
