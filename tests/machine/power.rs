//! The machine goes down, and comes back.

use crate::{init, jail, lasting, setup};

#[test]
fn after_a_power_failure_and_after_a_shutdown_the_next_login_finds_what_was_kept() {
    lab::require!(lab::must::machines());
    let mut machine = setup().boot();
    let session = lasting(&machine, "alice");
    machine.ssh("alice", "echo synced > /var/tmp/synced; sync; touch /tmp/of-this-boot").ok();
    assert!(init(&machine, "alice") > 0);
    drop(session);

    let _open = machine.ssh("alice", "sleep 300").arg("-f").run();
    machine.crash();
    assert_eq!(machine.root("ls /run/ojail/jails 2> /dev/null || true").text(), "");
    let found =
        machine.ssh("alice", "cat /proc/1/comm /var/tmp/synced; ls /tmp/of-this-boot || echo gone").text();
    assert_eq!(found, "ojail-init\nsynced\ngone");

    machine.ssh("alice", "echo unsynced > /var/tmp/unsynced").ok();
    let _open = machine.ssh("alice", "sleep 300").arg("-f").run();
    machine.reboot();
    assert!(jail(&machine, "alice").is_none_or(|jail| jail["running"] == false));
    assert_eq!(machine.ssh("alice", "cat /var/tmp/synced /var/tmp/unsynced").text(), "synced\nunsynced");
}
