//! Users who are gone.

use lab::User;

use crate::common::{config, host, runs, setup};
use crate::{alone, assert_same, everything, whole};

const UPPER: &str = "/srv/overlay/upperdirs/alice";

/// Whatever of alice is anywhere, but on the shelf.
const TRACES: &str = "ls -d /srv/overlay/upperdirs/alice /srv/overlay/workdirs/alice /var/lib/ojail/users/alice.toml \
                      /run/ojail/jails/alice 2>/dev/null || true";

#[test]
fn who_is_gone_is_forgotten_and_can_be_remembered_for_a_while() {
    lab::require_root!();
    let host = host("root = true");
    // As where users come from a directory service, which gives no ranges.
    host.root(": > /etc/subuid; : > /etc/subgid").ok();
    host.ssh("alice", "sudo touch /opt/x").ok();
    everything(&host, "alice");
    host.root("ojail snapshot alice kept").ok();
    let upper = whole(&host, UPPER);
    let record = host.root("cat /var/lib/ojail/users/alice.toml").text();
    assert!(record.contains("pool = "), "{record}");

    let refused = host.root("ojail forget alice").fails();
    assert!(
        refused.stderr.contains("alice exists and is jailed (profile debian)")
            && refused.stderr.contains("`userdel alice` first"),
        "{refused}"
    );
    host.ssh("alice", "true").ok();
    alone(&host, "alice");
    assert!(runs(&host, "alice"));
    host.root("cp /etc/passwd /etc/shadow /etc/group /etc/gshadow /root; userdel alice").ok();
    let said = host.root("ojail forget alice").text();
    for part in ["jail of alice has ended", "`ojail undo alice` puts them back", "snapshot \"kept\" stays"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(host.root(TRACES).text(), "");
    assert_eq!(host.root("ojail list").text().lines().filter(|line| line.contains("alice")).count(), 0);
    assert!(host.root("ojail forget alice").text().contains("There is nothing of alice to forget."));

    // The user's again, with the proof of whose it is.
    host.root("ojail undo alice").ok();
    assert_same(&whole(&host, UPPER), &upper);
    assert_eq!(host.root("cat /var/lib/ojail/users/alice.toml").text(), record);
    host.root("useradd -u 4321 -G jailed alice").ok();
    let refused = host.root("ojail enter alice -- true").fails();
    assert!(refused.stderr.contains("belongs to uid"), "{refused}");
    host.root("cp /root/passwd /root/shadow /root/group /root/gshadow /etc").ok();
    host.ssh("alice", "ls /opt/x").ok();

    // For good: the snapshots too, and what is set aside when its time has come, though nobody knows the name any more.
    host.root("ojail stop alice; userdel alice; ojail forget alice --snapshots").ok();
    let shelf = host.root("ls /srv/overlay/asidedirs/alice").text();
    assert!(!shelf.contains("kept") && shelf.ends_with('Z'), "{shelf}");
    host.write("/etc/ojail/ojail.toml", 0o644, &format!("[reset]\nkeep = \"0s\"\n{}", config("")));
    host.root("sed -i 's/\"at\": [0-9]*/\"at\": 1/' /srv/overlay/asidedirs/alice/*/record.json; ojail tidy")
        .ok();
    assert_eq!(host.root(TRACES).text(), "");
    assert_eq!(
        host.root("ls -A /srv/overlay/asidedirs /srv/overlay/asidedirs/.trash").text(),
        "/srv/overlay/asidedirs:\n.trash\n\n/srv/overlay/asidedirs/.trash:"
    );
    let refused = host.root("ojail forget alice").fails();
    assert!(refused.stderr.contains("user \"alice\" does not exist"), "{refused}");
}

#[test]
fn a_range_that_was_let_go_goes_to_the_next_and_one_of_subuid_stays() {
    lab::require_root!();
    let host = setup("").user(User::new("dora").groups(["jailed"])).start();
    host.root(": > /etc/subuid; : > /etc/subgid").ok();
    host.ssh("alice", "touch /var/tmp/x").ok();
    let first = host.root("grep pool /var/lib/ojail/users/alice.toml").text();
    alone(&host, "alice");
    host.root("userdel alice; ojail forget alice").ok();
    host.ssh("dora", "touch /var/tmp/x").ok();
    assert_eq!(host.root("grep pool /var/lib/ojail/users/dora.toml").text(), first);
    // What alice had is dora's by now.
    host.root("ojail undo alice").ok();
    assert_eq!(host.root("cat /var/lib/ojail/users/alice.toml").text().lines().count(), 1);
    alone(&host, "dora");
    host.root("echo dora:900000:65536 | tee -a /etc/subuid >> /etc/subgid; userdel -f dora; echo dora:900000:65536 >> /etc/subuid").ok();
    let said = host.root("ojail forget dora").text();
    assert!(
        said.contains("is not ojail's to take out; `userdel`") && said.contains("/etc/subuid:"),
        "{said}"
    );
}

#[test]
fn who_is_still_there_is_forgotten_only_by_force_and_nobody_by_mistake() {
    lab::require_root!();
    let host = host("");
    let session = host.ssh("alice", "touch /var/tmp/x; echo inside; sleep 300").spawn();
    session.wait_for("inside");
    for (command, why) in [
        ("ojail forget alcie", "user \"alcie\" does not exist"),
        ("ojail forget ../alice", "cannot have a jail"),
        ("ojail forget alice", "exists and is jailed"),
    ] {
        let refused = host.root(command).fails();
        assert!(refused.stderr.contains(why) && refused.stderr.lines().count() == 1, "{command}: {refused}");
    }
    // Not jailed any more, and still in.
    host.root("gpasswd -d alice jailed").ok();
    let refused = host.root("ojail forget alice").fails();
    assert!(refused.stderr.contains("sessions of alice are open"), "{refused}");
    assert!(host.path(UPPER).exists());
    host.root("ojail forget alice --force").ok();
    session.finish().fails();
    assert_eq!(host.root(TRACES).text(), "");
    // Jailed again, she begins anew, and can have all of it back.
    host.root("gpasswd -a alice jailed").ok();
    host.ssh("alice", "ls /var/tmp/x").fails();
    host.root("ojail undo alice").ok();
    host.ssh("alice", "ls /var/tmp/x").ok();
}
