//! The machine goes down, and comes back.

use lab::Machine;

use crate::{jail, sessions, setup, until};

#[test]
fn after_a_power_failure_and_after_a_shutdown_the_next_login_finds_what_was_kept() {
    lab::require!(lab::must::machines());
    let mut machine = setup().boot();
    machine.ssh("alice", "echo synced > /var/tmp/synced; sync; touch /tmp/of-this-boot").ok();

    leave_a_session(&machine);
    machine.crash();
    assert!(jail(&machine, "alice").is_none_or(|jail| jail["running"] == false));
    let look = "cat /proc/1/comm /var/tmp/synced; ls /tmp/of-this-boot || echo gone";
    assert_eq!(machine.ssh("alice", look).text(), "ojail-init\nsynced\ngone");

    machine.ssh("alice", "echo unsynced > /var/tmp/unsynced").ok();
    leave_a_session(&machine);
    machine.reboot();
    assert!(jail(&machine, "alice").is_none_or(|jail| jail["running"] == false));
    assert_eq!(machine.ssh("alice", "cat /var/tmp/synced /var/tmp/unsynced").text(), "synced\nunsynced");
}

/// A session that nobody ends, with a client that goes on by itself.
fn leave_a_session(machine: &Machine) {
    machine.ssh("alice", "exec sleep 300").arg("-f").ok();
    until("the session is open", || sessions(machine, "alice") == 1);
}
