//! A login over SSH lands in a jail of its own.

use lab::{Host, User};

const CONFIG: &str = r#"
[profiles.debian]
layers = ["debian"]

[[rules]]
group = "jailed"
profile = "debian"
"#;

fn host() -> Host {
    lab::host().user(User::new("alice").groups(["jailed"])).layer("debian").config(CONFIG).pam("sshd").start()
}

#[test]
fn a_command_runs_inside() {
    lab::require_root!();
    let host = host();
    assert_eq!(host.ssh("alice", "cat /proc/1/comm").text(), "ojail-init");
}
