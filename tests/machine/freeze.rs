//! A jail under systemd is frozen with the user's slice, sessions and all, and goes on.

use std::time::Duration;

use crate::{MACHINE, sessions, until};

#[test]
fn a_snapshot_freezes_the_users_slice_and_what_is_killed_leaves_nobody_frozen() {
    lab::require!(lab::must::machines());
    let machine = MACHINE.get();
    let work = "cd /var/tmp; touch $(seq 100); n=0; echo 0 > a; echo 0 > b; echo inside; \
                while :; do n=$((n+1)); echo $n > a.new; mv a.new a; echo $n > b.new; mv b.new b; done";
    let session = machine.ssh("frida", work).within(Duration::from_secs(600)).spawn();
    session.wait_for("inside");
    let number = |path: &str| -> u64 { machine.root(&format!("cat {path}")).text().trim().parse().unwrap() };
    let upper = "/srv/overlay/upperdirs/frida/var/tmp";
    let goes_on = || {
        let before = number(&format!("{upper}/a"));
        until("the user's work goes on", || number(&format!("{upper}/a")) > before + 3);
    };
    let frozen = || {
        machine
            .root("cat /sys/fs/cgroup/user.slice/user-1012.slice/cgroup.events")
            .text()
            .contains("frozen 1")
    };

    machine.root("ojail snapshot frida one").ok();
    let copy = "/srv/overlay/asidedirs/frida/one/upper/var/tmp";
    let (a, b) = (number(&format!("{copy}/a")), number(&format!("{copy}/b")));
    assert!(a == b || a == b + 1, "{a} and {b} were never there together");
    goes_on();
    assert_eq!(sessions(&machine, "frida"), 1);

    // Nobody is left to thaw it; the next command does.
    machine.root("systemctl stop ojail-tidy.timer || true").run();
    let slow = "strace -qq -o /dev/null -e inject=fchownat:delay_enter=200000 ojail snapshot frida two";
    let slow = machine.root(slow).within(Duration::from_secs(600)).spawn();
    until("the slice is frozen", frozen);
    machine
        .root("kill -9 $(pgrep -f '^/usr/sbin/ojail hold-still') $(pgrep -f '^ojail snapshot frida two')")
        .ok();
    slow.finish().fails();
    assert!(frozen());
    machine.root("ojail list").ok();
    assert!(!frozen());
    goes_on();
    machine.ssh("frida", "true").ok();
    session.kill();
}
