//! Every attack that a program inside can make, in each kind of jail, over SSH with a terminal and without.

use crate::probe::{Attempts, PROBE, host, setup, with_probe};
use crate::sides::listener;

/// How many attacks a probe makes, and how many more as root of the jail.
const MANY: usize = 280;

#[test]
fn without_root_in_the_profile_every_attack_is_contained() {
    lab::require_root!();
    let host = host("");
    for tty in [false, true] {
        let run = host.ssh("alice", PROBE);
        let output = if tty { run.tty() } else { run }.run();
        Attempts::of(&output).are_contained(MANY, if tty { "on a terminal" } else { "without one" });
    }
}

#[test]
fn with_root_in_the_profile_every_attack_of_the_user_and_of_root_is_contained() {
    lab::require_root!();
    let host = host("root = true");
    for tty in [false, true] {
        let run = host.ssh("alice", &format!("{PROBE} --root"));
        let output = if tty { run.tty() } else { run }.run();
        let attempts = Attempts::of(&output);
        attempts.are_contained(2 * MANY, if tty { "on a terminal" } else { "without one" });
        let as_root = attempts.all().iter().filter(|attempt| attempt.attack.contains(": as root: ")).count();
        assert!(as_root >= MANY, "{as_root} as root");
    }
}

#[test]
fn with_a_network_of_its_own_every_attack_is_contained() {
    lab::require_root!();
    for (network, root) in [("none", false), ("none", true), ("private", false), ("private", true)] {
        let host = with_probe(setup(&format!("network = \"{network}\"\nroot = {root}")).network());
        let _four = listener(&host, "TCP-LISTEN:7001,bind=127.0.0.1");
        let _six = listener(&host, "TCP6-LISTEN:7002,bind=[::1]");
        let option = if root { "--root" } else { "" };
        let command =
            format!("{PROBE} {option} --network {network} --host-port 22 --host-port 7001 --host-port 7002");
        for tty in [false, true] {
            let run = host.ssh("alice", &command);
            let output = if tty { run.tty() } else { run }.run();
            let attempts = Attempts::of(&output);
            attempts.named("connect to 127.0.0.1:7001");
            attempts.named("connect to [::1]:7002");
            attempts.are_contained(MANY, &format!("{network}, root = {root}, terminal: {tty}"));
        }
    }
}
