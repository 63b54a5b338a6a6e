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
        let verified = host.root("findmnt --verify").run();
        // It warns of kinds of file systems that the kernel has not come to know yet.
        let fine = ["0 parse errors, 0 errors", "Success, no errors"];
        assert!(fine.iter().any(|fine| verified.stdout.contains(fine)), "{verified}\n{lines}");
        host.root("for point in $(awk '$3 ~ /erofs|squashfs/ { print $2 }' /etc/fstab); do mount $point; done; mount /srv/jails/alice").ok();
        assert_eq!(
            host.root("cd /srv/jails/alice; cat own etc/extra; readlink bin").text(),
            "hers\ntwo\nusr/bin"
        );
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
