//! Layers as images: packed, unpacked, damaged, and what jails see of it.

use lab::Host;

use crate::common::{SOON, init, sessions, until};
use crate::generations::{LOWERDIRS, adopted, another, interrupted, kept, listed, refused, target};

fn text(host: &Host) -> String {
    host.ssh("alice", "cat /etc/extra").text()
}

/// Everything a layer may hold that an image must not lose.
const ODD: &str = r#"
import os, struct
os.chdir("/srv/overlay/lowerdirs/extra")
os.mkdir("opaque"); os.setxattr("opaque", "user.overlay.opaque", b"y")
os.mknod("whiteout", 0o020000, os.makedev(0, 0))
os.mknod("fifo", 0o010640)
open("setuid", "w").write("x"); os.chown("setuid", 5, 4000000000); os.chmod("setuid", 0o6755)
open("capable", "w").write("x")
os.setxattr("capable", "security.capability", struct.pack("<5I", 0x02000001, 0x2000, 0, 0, 0))
open("large", "wb").write(os.urandom(300000) + b"x" * 3000000)
with open("holes", "wb") as f:
    f.truncate(1 << 24); f.seek(1 << 23); f.write(b"middle")
open("\xff\n name", "w").write("x")
os.symlink("/" + "x" * 300, "long"); os.link("large", "twice")
for n, p in enumerate(["setuid", "opaque", "fifo", "large", "."]):
    os.utime(p, ns=(1000000000123456789 + n, 1100000000987654321 + 7 * n), follow_symlinks=False)
"#;

#[test]
fn a_layer_is_packed_and_unpacked_and_stays_the_same() {
    lab::require_root!();
    let host = adopted();
    host.root(&format!("rm {LOWERDIRS}/extra; mv {LOWERDIRS}/extra@* /root; mv /root/extra@*[0-9a-f] {LOWERDIRS}/extra; rm -f /root/extra@*.json")).ok();
    host.exec(["python3", "-c", ODD]).ok();
    host.root("ojail layer adopt extra").ok();
    let generation = target(&host);
    for format in ["erofs", "squashfs"] {
        let said = host.root(&format!("ojail layer pack extra --format {format}")).text();
        assert!(said.contains(&format!("is packed as {format}")), "{said}");
        assert_eq!(target(&host), format!("{generation}.{format}"));
        assert!(!host.path(LOWERDIRS).join(&generation).exists(), "the directory is still there");
        host.root("ojail layer verify extra").ok();
        assert_eq!(text(&host), "one");
        assert_eq!(host.ssh("alice", "stat -c '%h %a' /setuid /large").text(), "1 6755\n2 644");
        refused(&host, &format!("ojail layer pack extra --format {format}"), "is packed already");
        host.root("ojail layer unpack extra").ok();
        assert_eq!(target(&host), generation);
        host.root("ojail layer verify extra").ok();
        assert_eq!(text(&host), "one");
        // The jail on the image was empty, and has made way; its mount stays until somebody removes it.
        host.root("ojail stop alice; ojail layer prune").ok();
    }
    refused(&host, "ojail layer unpack extra", "is a directory already");
    // From one kind of image to the other.
    host.root("ojail layer pack extra && ojail layer pack extra --format squashfs").ok();
    assert_eq!(target(&host), format!("{generation}.squashfs"));
    assert!(!host.mountinfo().contains("/.making/"), "something is still mounted");
    for (words, why) in
        [("--compression snappy", "has no compression"), ("--compression lzma", "have not lzma in common")]
    {
        let output = host.root(&format!("ojail layer pack extra {words}")).run();
        // Newer tools and kernels have lzma.
        if !output.status.success() {
            assert!(output.stderr.contains(why), "{output}");
        }
    }
}

#[test]
fn a_layer_without_attributes_goes_from_one_kind_of_image_to_the_other_and_back() {
    lab::require_root!();
    let host = adopted();
    let generation = target(&host);
    // A squashfs without any attribute has no place for one, and says so.
    for format in ["squashfs", "erofs", "squashfs"] {
        host.root(&format!("ojail layer pack extra --format {format}")).ok();
        assert_eq!(target(&host), format!("{generation}.{format}"));
    }
    host.root("ojail layer unpack extra").ok();
    host.root("ojail layer verify extra").ok();
    assert_eq!(text(&host), "one");
}

#[test]
fn jails_keep_the_directory_that_they_stand_on_and_it_goes_later() {
    lab::require_root!();
    let host = adopted();
    let generation = target(&host);
    let alice = host.ssh("alice", "echo in; cat").spawn();
    until("a session is open", SOON, || sessions(&host, "alice") == 1);
    let pid = init(&host, "alice");
    let said = host.root("ojail layer pack extra").text();
    assert!(said.contains("the jail of alice stands on it"), "{said}");
    assert_eq!(target(&host), format!("{generation}.erofs"));
    assert_eq!(text(&host), "one");
    assert_eq!(init(&host, "alice"), pid);
    assert_eq!(host.ssh("carl", "cat /etc/extra").text(), "one");
    assert_eq!(listed(&host, "extra")[0]["forms"], serde_json::json!(["erofs", "directory"]));
    assert_eq!(listed(&host, "extra")[0]["jails"], serde_json::json!(["carl", "alice"]));
    host.root("ojail layer prune").ok();
    assert!(host.path(LOWERDIRS).join(&generation).exists(), "taken from under a jail");
    drop(alice);
    host.root("ojail stop alice").ok();
    // A second form goes only if the first is good.
    let image = format!("{LOWERDIRS}/{generation}.erofs");
    host.root(&format!("ojail stop carl; cp -a {image} /root/good; : > {image}")).ok();
    let output = host.root("ojail layer prune").fails();
    assert!(output.stderr.contains("cannot be mounted") || output.stderr.contains("cut short"), "{output}");
    assert!(host.path(LOWERDIRS).join(&generation).exists(), "the only good form is gone");
    host.root(&format!("cp -a /root/good {image}; ojail layer prune")).ok();
    assert!(!host.path(LOWERDIRS).join(&generation).exists());
    assert_eq!(text(&host), "one");
}

#[test]
fn an_image_that_was_cut_short_or_changed_is_told() {
    lab::require_root!();
    let host = adopted();
    let generation = target(&host);
    host.root(&format!("head -c 3000000 /dev/urandom > {LOWERDIRS}/{generation}/etc/large")).ok();
    host.root(&format!(
        "rm {LOWERDIRS}/extra {LOWERDIRS}/*.json; mv {LOWERDIRS}/{generation} {LOWERDIRS}/extra"
    ))
    .ok();
    host.root("ojail layer adopt extra").ok();
    let generation = target(&host);
    for format in ["erofs", "squashfs"] {
        let image = format!("{LOWERDIRS}/{generation}.{format}");
        host.root(&format!("ojail layer pack extra --format {format}; cp -a {image} /root/good")).ok();
        let broken = |how: &str| {
            host.root(&format!("ojail stop alice; cp -a /root/good {image}; {how}; touch {image}")).ok();
            host.root("ojail layer verify extra").fails().stdout
        };
        let said = broken(&format!("truncate -s 1000000 {image}"));
        assert!(said.contains("is cut short: it has 1000000 of"), "{said}");
        host.ssh("alice", "true").fails();
        host.wait_for_log("is cut short: it has 1000000 of");
        let said = broken(&format!("truncate -s 100 {image}"));
        assert!(said.contains("is cut short: 100 bytes"), "{said}");
        let said =
            broken(&format!("printf changed | dd status=none conv=notrunc bs=1 seek=1500000 of={image}"));
        assert!(said.contains("CHANGED") || said.contains("CANNOT BE READ"), "{said}");
        // Neither becomes a directory.
        let output = host.root("ojail layer unpack extra").fails();
        assert_eq!(output.stderr.lines().count(), 1, "{output}");
        host.root(&format!("cp -a /root/good {image}; ojail layer unpack extra")).ok();
        host.root("ojail layer verify extra").ok();
    }
}

#[test]
fn what_squashfs_cannot_hold_stays_a_directory() {
    lab::require_root!();
    let host = adopted();
    let generation = target(&host);
    let acl = "import os, struct\n\
               os.setxattr('/srv/overlay/lowerdirs/extra/etc', 'system.posix_acl_access', struct.pack('<I', 2) + b''.join(\
               struct.pack('<HHI', *e) for e in [(1, 7, 0xffffffff), (2, 6, 7), (4, 0, 0xffffffff), (16, 6, 0xffffffff), (32, 0, 0xffffffff)]))";
    host.root(&format!("cd {LOWERDIRS}; rm extra *.json; mv {generation} extra")).ok();
    host.exec(["python3", "-c", acl]).ok();
    host.root("ojail layer adopt extra").ok();
    refused(&host, "ojail layer pack extra --format squashfs", "cannot hold all that is in it");
    host.root("ojail layer pack extra --format erofs && ojail layer verify").ok();
}

#[test]
fn there_must_be_room_before_it_begins() {
    lab::require_root!();
    let host = crate::generations::setup().small_disk("24M").start();
    host.root(&format!(
        "install -d -m 700 {LOWERDIRS}; mkdir -m 755 {LOWERDIRS}/extra; head -c 6000000 /dev/urandom > {LOWERDIRS}/extra/large"
    ))
    .ok();
    host.root("ojail layer adopt extra && ojail layer pack extra").ok();
    let free = || host.root("df -k --output=avail /srv/overlay | tail -1").text();
    // All but so many KiB.
    let fill = |left: u32| {
        host.root(&format!(
            "rm -f /srv/overlay/full; a=$(df -k --output=avail /srv/overlay | tail -1); head -c $(((a - {left}) * 1024)) /dev/zero > /srv/overlay/full"
        ))
        .ok();
    };
    fill(5000);
    let before = free();
    refused(&host, "ojail layer unpack extra", "are needed; make room first");
    assert_eq!(free(), before);
    host.root("rm /srv/overlay/full; ojail layer unpack extra").ok();
    fill(2000);
    refused(&host, "ojail layer pack extra", "are needed; make room first");
    // What nobody can know before is told when it comes.
    fill(4000);
    refused(&host, "ojail layer pack extra", "layer \"extra@");
    host.root("ojail layer verify").ok();
}

#[test]
fn without_the_tool_it_is_told_which_package_has_it() {
    lab::require_root!();
    let host = adopted();
    host.root("rm /usr/bin/mkfs.erofs /usr/bin/mksquashfs").ok();
    refused(&host, "ojail layer pack extra", "apt-get install erofs-utils");
    refused(&host, "ojail layer pack extra --format squashfs", "apt-get install squashfs-tools");
}

#[test]
fn a_kill_or_an_error_at_any_moment_of_pack_unpack_and_their_prune_leaves_the_old_or_the_new() {
    lab::require_root!();
    let host = adopted();
    let directory = kept(&host, "directory");
    host.root("ojail layer pack extra").ok();
    let image = kept(&host, "image");
    let state = || {
        let script = format!(
            "cd {LOWERDIRS}; readlink extra; for f in extra*; do [ -L $f ] || echo $f; done; cat extra@*.json | grep digest"
        );
        host.root(&script).run().stdout
    };
    // Whatever the link names is whole; that it is what it should be is verified behind each kill.
    let usable = |at: &str| {
        let there = host.root(&format!(
            "test -d {LOWERDIRS}/extra/etc || dump.erofs {LOWERDIRS}/$(readlink {LOWERDIRS}/extra)"
        ));
        assert!(there.run().status.success(), "{at}: there is no layer");
    };
    interrupted(&host, "ojail layer pack extra", &directory, &state, &usable);
    interrupted(&host, "ojail layer unpack extra", &image, &state, &usable);
    let both = format!("{directory}; {image}");
    host.root(&format!("rm -rf {LOWERDIRS}/extra*; {both}")).ok();
    interrupted(&host, "ojail layer prune", &both, &state, &usable);
    let _ = another;
}
