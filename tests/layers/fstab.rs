//! Jails that are mounted without ojail.

use crate::generations::{LOWERDIRS, adopted, another};

#[test]
fn the_lines_are_right_for_findmnt_and_mount() {
    lab::require_root!();
    let host = adopted();
    another(&host, "two");
    for (user, text) in [("alice", "hers"), ("carl", "his")] {
        host.ssh(user, "true").ok();
        host.root(&format!("echo {text} > /srv/overlay/upperdirs/{user}/own")).ok();
        host.root("ojail stop \"$1\"").arg(user).ok();
    }
    let check = |formats: &[&str]| {
        let lines = host.root("ojail fstab").text();
        assert_eq!(lines.lines().filter(|line| line.starts_with("overlay ")).count(), 2, "{lines}");
        assert!(lines.contains(" overlay noauto,x-systemd.automount,lowerdir="), "{lines}");
        for format in formats {
            assert!(lines.contains(&format!(" {format} loop,ro,nodev 0 0")), "{lines}");
        }
        // What the comment says is to be done first.
        let first = lines.lines().find_map(|line| line.strip_prefix("# First: ")).unwrap();
        host.root(first).ok();
        host.write("/etc/fstab", 0o644, &(lines.clone() + "\n"));
        assert_eq!(host.root("cat /etc/fstab").text(), lines);
        let verified = host.root("findmnt --verify --verbose").run();
        assert_eq!(verified.code(), Some(0), "{verified}\n{lines}");
        // An image is a file, which it finds strange, loop or not; as it does kinds of file systems that the kernel has not come to know
        // yet.
        let strange = |line: &&str| {
            line.trim_start().starts_with("[W] non-bind mount source ")
                || line.contains("unsupported by the current kernel")
        };
        let told: Vec<&str> = verified.stdout.lines().filter(|line| !strange(line)).collect();
        assert!(!told.iter().any(|line| line.contains("[W]") || line.contains("[E]")), "{verified}\n{lines}");
        assert_eq!(told.iter().filter(|line| line.contains("] target exists")).count(), 2 + formats.len());
        host.root("for point in $(awk '$3 ~ /erofs|squashfs/ { print $2 }' /etc/fstab); do mount $point; done; mount /srv/jails/alice").ok();
        assert_eq!(
            host.root("cd /srv/jails/alice; cat own etc/extra; readlink bin").text(),
            "hers\ntwo\nusr/bin"
        );
        // Not the read-only mount that overlayfs makes of an upper that it cannot use.
        host.root("echo new > /srv/jails/alice/var/made && rm /srv/overlay/upperdirs/alice/var/made").ok();
        host.root("umount /srv/jails/alice; for point in $(awk '$3 ~ /erofs|squashfs/ { print $2 }' /etc/fstab); do umount $point; done").ok();
    };
    check(&[]);
    host.root("ojail layer pack extra").ok();
    check(&["erofs"]);
    host.root("ojail layer pack extra --format squashfs").ok();
    check(&["squashfs"]);
    assert_eq!(
        host.root("ojail fstab alice").text().lines().filter(|line| line.starts_with("overlay ")).count(),
        1
    );
    host.root("ojail fstab bob").fails();
    host.root("ojail fstab ../x").fails();
    // And the jail itself, after all of this.
    assert_eq!(host.ssh("alice", "cat /own /etc/extra").text(), "hers\ntwo");
    assert!(host.root(&format!("ls {LOWERDIRS}/.making")).text().is_empty());
}
