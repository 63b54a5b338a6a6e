//! Who a name stands for, when the account data base is away or says something else than before.

use crate::common::{init, runs};
use crate::probe::host;

#[test]
fn two_names_that_differ_in_case_have_jails_of_their_own() {
    lab::require_root!();
    let host = host("");
    let add = r"
        sed -n 's/^alice:x:[0-9]*:\([0-9]*\):.*/Alice:x:4000:\1::\/home\/Alice:\/bin\/bash/p' /etc/passwd >> /etc/passwd
        echo 'Alice:*:20000:0:99999:7:::' >> /etc/shadow
        sed -i 's/^jailed:.*/&,Alice/' /etc/group
        cp -r /home/alice /home/Alice; chown -R 4000 /home/Alice
    ";
    host.root(add).ok();
    for (user, other) in [("alice", "Alice"), ("Alice", "alice")] {
        assert_eq!(host.ssh(user, "echo $USER > /var/tmp/$USER; id -un").text(), user);
        assert!(!host.path(format!("/srv/overlay/upperdirs/{other}/var/tmp/{user}")).exists());
        assert!(host.path(format!("/srv/overlay/upperdirs/{user}/var/tmp/{user}")).exists());
    }
    let ranges = ["alice", "Alice"].map(|user| host.ssh(user, "head -n 1 /proc/self/uid_map").text());
    assert_ne!(ranges[0], ranges[1]);
}

#[test]
fn while_the_data_base_of_groups_is_away_nobody_passes_for_exempt() {
    lab::require_root!();
    let host = host("");
    for away in ["s/^group:.*/group: away/", "s/^group:.*/group: away [UNAVAIL=return] files/"] {
        host.root("cp /etc/nsswitch.conf /root; sed -i \"$1\" /etc/nsswitch.conf").arg(away).ok();
        for user in ["alice", "bob"] {
            let output = host.ssh(user, "touch /tmp/ran").fails();
            assert!(!host.path("/tmp/ran").exists(), "{away}: {output}");
        }
        host.root("cp /root/nsswitch.conf /etc").ok();
        assert_eq!(host.ssh("alice", "cat /proc/1/comm").text(), "ojail-init");
        host.ssh("bob", "true").ok();
    }
}

#[test]
fn a_running_jail_lets_in_nobody_who_got_the_name_since() {
    lab::require_root!();
    let host = host("");
    let session = host.ssh("alice", "echo secret > /tmp/secret; echo inside; exec sleep 300").spawn();
    session.wait_for("inside");
    let pid = init(&host, "alice");
    host.root("sed -i 's/^alice:x:[0-9]*:/alice:x:4321:/' /etc/passwd; chown -R 4321 /home/alice").ok();
    let output = host.ssh("alice", "cat /tmp/secret").fails();
    assert!(!output.stdout.contains("secret"), "{output}");
    host.wait_for_log("belongs to uid 1000, but alice has uid 4321 now");
    assert!(runs(&host, "alice") && init(&host, "alice") == pid, "the one who is inside stays");
}
