//! The lab's machines: one does what a Debian server does, keeps to itself, and leaves nothing behind.

use lab::{Setup, User};

fn bare() -> Setup {
    lab::host().without_ojail().user(User::new("alice").uid(1001).groups(["jailed"]))
}

#[test]
fn a_user_logs_in_to_a_machine() {
    lab::require!(lab::must::machines());
    let machine = bare().boot();
    println!("{}", machine.root("systemd-analyze; systemd-analyze blame | head -40; systemd-analyze critical-chain; findmnt; free -m; uname -a; ip a").run());
    let since = std::time::Instant::now();
    println!("{}", machine.root("true").run().took.as_secs_f64());
    println!("{}", machine.ssh("alice", "id; loginctl").run());
    println!("{:?}", since.elapsed());
    println!("{}", machine.root("journalctl -b | tail -50").run());
}
