//! Uppers on each of the file systems that the manual names, and not only on the one that the tests happen to be on.

use std::fs;

use crate::common::{config, digest, logged, setup};
use crate::reset::CHANGES;

const STORAGE: &str = "[storage]\nupperdirs = \"/srv/disk/upperdirs\"\nworkdirs = \"/srv/disk/workdirs\"\n\
    asidedirs = \"/srv/disk/asidedirs\"\n\n";
const UPPER: &str = "/srv/disk/upperdirs/alice";

#[test]
fn a_jail_lives_on_ext4_on_xfs_and_on_btrfs() {
    lab::require_root!();
    lab::require!(lab::must::loop_devices());
    for (kind, disk_limit) in [
        ("ext4", "without project quotas"),
        ("xfs", "without project quotas"),
        ("btrfs", "without project quotas; put it on ext4 or xfs"),
    ] {
        lab::require!(lab::must::file_system(kind));
        let config = format!("{STORAGE}{}", config("root = true"));
        let host = setup("").disks().config(&config).start();
        host.root("truncate -s 400M /var/lib/ojail/disk; mkfs.$1 -q /var/lib/ojail/disk && mkdir /srv/disk && mount -o loop /var/lib/ojail/disk /srv/disk")
            .arg(kind)
            .ok();
        host.ssh("alice", "sudo sh").stdin(CHANGES).ok();
        host.root("ojail stop --force alice").ok();
        let changed = digest(&host, UPPER);
        let diff = host.root("ojail diff alice").text();
        for line in ["M /etc/issue", "D /usr/share/doc/bash", "A /opt/deep/er/file", "A /opt/fifo"] {
            assert!(diff.lines().any(|is| is.starts_with(line)), "{kind}: no \"{line}\":\n{diff}");
        }
        // What is in the upper is what the next jail shows: owners, a directory instead of another, what was removed.
        let seen = "cat /etc/issue; ls -A /usr/share/menu; stat -c '%U %a' /opt/setuid; ls -d /usr/share/doc/bash 2>/dev/null";
        assert_eq!(host.ssh("alice", seen).run().text(), "changed\nnew\ngames 4755", "{kind}");

        host.root("ojail snapshot alice one --end --force").ok();
        host.ssh("alice", "sudo rm -r /opt/deep; echo more | sudo tee /etc/motd").ok();
        host.root("ojail snapshot restore --force alice one").ok();
        assert_eq!(digest(&host, UPPER), changed, "{kind}: a snapshot restored");
        host.root("ojail reset --force alice").ok();
        assert_eq!(host.ssh("alice", "ls -A /opt").text(), "", "{kind}");
        host.root("ojail undo --force alice").ok();
        assert_eq!(digest(&host, UPPER), changed, "{kind}: a reset undone");

        // Without the quotas that its limit needs, nobody is let in.
        host.root("ojail stop --force alice").ok();
        let limited = config.replace("root = true", "root = true\nlimits = { disk = \"100M\" }");
        fs::write(host.path("/etc/ojail/ojail.toml"), limited).unwrap();
        host.ssh("alice", "true").fails();
        let refused = host.wait_for_log("event=refused");
        assert!(refused.contains(disk_limit), "{kind}: {refused}");
        assert_eq!(logged(&host, "event=refused"), 1, "{kind}");
        host.root("umount /srv/disk").ok();
    }
}
