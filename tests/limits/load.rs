//! One user does their worst; the others must hardly notice, and the administrator must be able to clear up.

use std::time::{Duration, Instant};

use lab::{Hardware, Machine, User};

/// The limits that the shipped configuration proposes.
const CONFIG: &str = r#"
[profiles.debian]
layers = ["debian"]
limits = { memory = "1G", tasks = 300, cpu = "150%", disk = "2G", inodes = 200000 }

[[rules]]
group = "jailed"
profile = "debian"
"#;

/// Everything at once, until it is ended: processes that fork, memory, disk, inodes, terminals, descriptors.
const WORST: &str = r#"
    trap '' HUP TERM
    (while :; do dd if=/dev/zero of=/var/tmp/disk bs=1M 2>/dev/null; dd if=/dev/zero of=/tmp/disk bs=1M 2>/dev/null; done) &
    (mkdir -p /var/tmp/inodes; cd /var/tmp/inodes; i=0; while :; do i=$((i + 1)); : > $i; done 2>/dev/null) &
    (while :; do tail /dev/zero; done 2>/dev/null) &
    perl -e 'while (1) { my @held; while (open(my $p, "+<", "/dev/ptmx")) { push @held, $p } sleep 1 }' &
    for i in 1 2 3; do perl -e 'while (1) { my @held; while (open(my $p, "<", "/")) { push @held, $p } sleep 1 }' & done
    echo begun
    bomb() { while :; do bomb & done; }
    bomb 2>/dev/null
"#;

/// How many logins are counted; 100 and more with `OJAIL_LOGINS`.
fn logins() -> usize {
    std::env::var("OJAIL_LOGINS").ok().and_then(|number| number.parse().ok()).unwrap_or(12)
}

fn median(machine: &Machine) -> Duration {
    let mut took: Vec<Duration> = (0..logins())
        .map(|_| {
            let since = Instant::now();
            assert_eq!(machine.ssh("bob", "cat /proc/1/comm").text(), "ojail-init");
            since.elapsed()
        })
        .collect();
    took.sort();
    took[took.len() / 2]
}

#[test]
fn others_log_in_while_one_does_their_worst_and_the_culprit_can_be_reset() {
    lab::require!(lab::must::machines());
    let hardware = Hardware { memory_mib: 2048, disk: "6G".into(), ..Hardware::default() };
    let machine = lab::host()
        .user(User::new("alice").uid(1001).groups(["jailed"]))
        .user(User::new("bob").uid(1002).groups(["jailed"]))
        .layer("debian")
        .config(CONFIG)
        .pam("sshd")
        .hardware(hardware)
        .boot();
    machine.ssh("bob", "true").ok();
    let quiet = median(&machine);

    let worst = machine.ssh("alice", WORST).within(Duration::from_secs(600)).spawn();
    worst.wait_for("begun");
    crate::until(Duration::from_secs(60), "it is at its worst", || {
        crate::slice(&machine, "pids.current").parse::<u32>().is_ok_and(|tasks| tasks > 250)
    });
    let loaded = median(&machine);
    // How long is for the benchmark of the day, and told; that it works is for the test.
    eprintln!(
        "{} logins: median {quiet:?} when quiet, {loaded:?} under load, ratio {:.2}",
        logins(),
        loaded.as_secs_f64() / quiet.as_secs_f64()
    );
    let status = crate::status(&machine);
    assert!(status["tasks"]["used"].as_u64().unwrap() <= 300, "{status}");
    assert!(status["memory"]["used"].as_u64().unwrap() <= 1 << 30, "{status}");
    assert!(status["disk"]["used"].as_u64().unwrap() <= 2 << 30, "{status}");

    // Where it takes long, the kernel may have ended her session, for want of memory in her slice.
    if !status["sessions"].as_array().unwrap().is_empty() {
        machine.root("ojail reset alice").fails();
    }
    machine.root("ojail reset --force alice").ok();
    // systemd's own manager for the user is no process of the jail's.
    let left = "ps -u alice -o comm= | grep -vE '^(systemd|.sd-pam.)$' | wc -l";
    assert_eq!(machine.root(left).text(), "0");
    assert!(
        machine.ssh("alice", "ls -A /var/tmp /tmp | wc -l").text().parse::<u32>().is_ok_and(|left| left < 9)
    );
    drop(worst);
}
