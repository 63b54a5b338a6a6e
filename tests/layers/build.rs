//! `ojail layer build`.

use std::time::Duration;

use lab::User;

use crate::{LOWERDIRS, complaint, killed, layer, log_of, record, refused, remains};

/// A build takes some ten seconds, and much longer on a busy machine.
const LONG: Duration = Duration::from_secs(300);

const CONFIG: &str = "[profiles.debian]\nlayers = [\"debian\"]\nroot = true\n\n[[rules]]\ngroup = \"jailed\"\nprofile = \"debian\"\n";

#[test]
fn a_debian_is_built_whole_and_clean_and_somebody_logs_in_to_it() {
    lab::require_root!();
    let host =
        lab::host().user(User::new("alice").groups(["jailed"])).builder().config(CONFIG).pam("sshd").start();
    let mirror = host.mirror();
    let build = format!(
        "ojail layer build debian --suite {} --include cron --mirror '{}'",
        mirror.suite(),
        mirror.line()
    );
    let said = host.root(&build).within(LONG).ok();
    assert!(said.stdout.starts_with("debian is debian@"), "{said}");
    assert_eq!((said.stdout.lines().count(), complaint(&said)), (1, ""), "{said}");

    let generation = layer(&host, "debian").unwrap();
    assert_eq!((&generation["how"], &generation["from"]), (&"build".into(), &serde_json::json!([])));
    let command = record(&host, "debian")["command"].clone();
    assert_eq!(command.as_array().unwrap().len(), 10, "{command}");
    let log = log_of(&host, "debian");
    for words in ["mmdebstrap", "I: extracting archives", "Setting up sudo", "I: success"] {
        assert!(log.contains(words), "{log}\nlacks: {words}");
    }
    let left = host.root(&format!(
        "cd {LOWERDIRS}/debian && find run tmp var/tmp var/lib/apt/lists var/cache/apt var/log -type f ! -empty ; cat etc/hostname etc/resolv.conf"
    ));
    let left = left.text();
    let left: Vec<&str> =
        left.lines().filter(|line| !line.ends_with("/faillog") && !line.ends_with("/lastlog")).collect();
    assert_eq!(left, ["localhost"]);
    assert_eq!(remains(&host), "");
    assert_eq!(
        host.ssh("alice", "sudo id -u; dpkg -s cron | grep ^Status").text(),
        "0\nStatus: install ok installed"
    );
    host.sftp("alice", "ls /usr/bin/sudo").ok();

    // Once more it is another generation; who is in keeps what they have.
    host.root(&build).within(LONG).ok();
    assert_ne!(layer(&host, "debian").unwrap()["generation"], generation["generation"]);
    host.ssh("alice", "true").ok();
}
