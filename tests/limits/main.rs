//! Limits, where they can be held: on a whole machine with systemd, cgroup v2 and project quotas.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]
#![allow(clippy::print_stderr, reason = "a measure that is told, not asserted")]

mod load;

use std::time::{Duration, Instant};

use lab::{FileSystem, Hardware, Machine, Setup, User};

const CONFIG: &str = r#"
[profiles.small]
layers = ["debian"]
root = true
limits = { memory = "200M", tasks = 80, cpu = "90%", io = "200M", disk = "24M", inodes = 500 }

[profiles.plain]
layers = ["debian"]

[[rules]]
group = "jailed"
profile = "small"
[[rules]]
group = "others"
profile = "plain"
"#;

fn setup() -> Setup {
    lab::host()
        .user(User::new("alice").uid(1001).groups(["jailed"]))
        .user(User::new("bob").uid(1002).groups(["jailed"]))
        .user(User::new("carol").uid(1003).groups(["others"]))
        .layer("debian")
        .config(CONFIG)
        .pam("sshd")
        .pam("cron")
}

fn slice(machine: &Machine, file: &str) -> String {
    machine.root(&format!("cat /sys/fs/cgroup/user.slice/user-1001.slice/{file}")).text()
}

fn status(machine: &Machine) -> serde_json::Value {
    serde_json::from_str(&machine.root("ojail status alice --json").text()).expect("--json prints JSON")
}

fn until(limit: Duration, what: &str, so: impl Fn() -> bool) {
    let since = Instant::now();
    while !so() {
        assert!(since.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn all_of_a_user_together_keeps_to_the_limits() {
    lab::require!(lab::must::machines());
    let machine = setup().boot();
    let check = machine.root("ojail check || true").text();
    assert!(check.contains("the limits of profile small can be held"), "{check}");
    machine.ssh("alice", "true").ok();
    assert_eq!(slice(&machine, "memory.max"), (200 << 20).to_string());
    assert_eq!(slice(&machine, "memory.swap.max"), (200 << 20).to_string());
    assert_eq!(slice(&machine, "pids.max"), "80");
    assert_eq!(slice(&machine, "cpu.max"), "90000 100000");
    let io = slice(&machine, "io.max");
    assert!(io.contains("rbps=209715200 wbps=209715200"), "{io}");

    processes(&machine);
    memory(&machine);
    disk(&machine);
    cron(&machine);
    reset(&machine);
    temporary(&machine);
    lifted(&machine);
}

/// The limits of a temporary jail hold, those of its upper for itself, and nothing of them is left.
fn temporary(machine: &Machine) {
    machine.root("ojail reset alice --force").ok();
    machine.ssh("alice", "head -c 10M /dev/zero > /var/tmp/own").ok();
    let before = status(machine)["disk"].clone();
    let fill =
        "sh -c 'head -c 20M /dev/zero > /var/tmp/file && echo twenty; head -c 20M /dev/zero > /var/tmp/more'";
    for whose in ["alice --ephemeral", "--profile small"] {
        let full = machine.root(&format!("ojail run {whose} -- {fill}")).fails();
        // Beside what alice has, and not more than a jail may.
        assert!(full.stdout == "twenty\n" && full.stderr.contains("Disk quota exceeded"), "{whose}: {full}");
        let tasks = "ojail run --profile small -- sh -c 'for i in $(seq 120); do sleep 1 & done; wait'";
        let full = machine.root(tasks).fails();
        assert!(full.stderr.contains("fork"), "{whose}: {full}");
    }
    assert_eq!(status(machine)["disk"], before);
    let left = "ls -d /run/systemd/system.control/user-??????*.slice.d /sys/fs/cgroup/user.slice/user-??????*.slice; \
                ls /srv/overlay/asidedirs/.run /run/ojail/runs; ls /var/lib/ojail/users | grep 0jail";
    until(Duration::from_secs(60), "nothing is left", || {
        !machine.root(left).run().stdout.contains(|c: char| c.is_ascii_digit())
    });
    machine.ssh("alice", "rm /var/tmp/own").ok();
}

fn processes(machine: &Machine) {
    let bomb = machine
        .ssh("alice", "for i in $(seq 120); do sleep 100 & done; wait")
        .within(Duration::from_secs(60))
        .spawn();
    until(Duration::from_secs(60), "the group is full", || {
        slice(machine, "pids.current").parse::<u32>().unwrap() > 75
    });
    let current: u32 = slice(machine, "pids.current").parse().unwrap();
    assert!(current <= 80, "{current}");
    let tasks = &status(machine)["tasks"];
    assert_eq!(tasks["most"], 80);
    assert!(tasks["used"].as_u64().unwrap() > 60, "{tasks}");
    let list: serde_json::Value = serde_json::from_str(&machine.root("ojail list --json").text()).unwrap();
    let alice = &list["jails"][0];
    assert_eq!(
        (&alice["memory"]["most"], &alice["cpu"]["most"], &alice["disk"]["most"], &alice["inodes"]["most"]),
        (&(200 << 20).into(), &90.into(), &(24 << 20).into(), &500.into())
    );
    for what in ["memory", "cpu", "disk", "inodes"] {
        assert!(alice[what]["used"].as_u64().unwrap() > 0, "{what}: {alice}");
    }
    let table = machine.root("ojail list").text();
    let head = table.lines().next().unwrap();
    assert!(["MEMORY", "CPU", "UPPER", "FROM"].iter().all(|column| head.contains(column)), "{table}");
    assert!(table.lines().all(|line| line.chars().count() < 120), "{table}");
    // Nobody else is.
    machine.ssh("carol", "true").ok();
    machine.ssh("bob", "true").ok();
    machine.root("ojail stop alice").ok();
    drop(bomb);
    machine.ssh("alice", "true").ok();
}

fn memory(machine: &Machine) {
    // The shell goes on: what took too much was ended, and not the jail.
    let said = machine
        .ssh("alice", "head -c 500M /dev/zero | tail -c 499M > /dev/null; echo status ${PIPESTATUS[1]}")
        .text();
    assert_eq!(said, "status 137");
    assert_ne!(
        slice(machine, "memory.events").lines().find(|line| line.starts_with("oom_kill ")),
        Some("oom_kill 0")
    );
    assert_eq!(machine.ssh("alice", "cat /proc/1/comm").text(), "ojail-init");
    // What is in /tmp is memory, and has a limit of its own.
    let full = machine.ssh("alice", "head -c 40M /dev/zero > /tmp/file").fails();
    assert!(full.stderr.contains("No space left on device"), "{full}");
    assert_eq!(
        machine.ssh("alice", "rm /tmp/file; df -B1 --output=size /run | tail -1").text().trim(),
        (24 << 20).to_string()
    );
    let full = machine.ssh("alice", "cd /tmp; for i in $(seq 600); do : > $i || exit 1; done").fails();
    assert!(full.stderr.contains("No space left on device"), "{full}");
    machine.ssh("alice", "rm /tmp/*").ok();
}

fn disk(machine: &Machine) {
    for before in ["", "sudo "] {
        machine.ssh("alice", &format!("{before}mkdir -p /var/tmp/d")).ok();
        let full = machine
            .ssh("alice", &format!("{before}dd if=/dev/zero of=/var/tmp/d/file bs=1M count=40 status=none"))
            .fails();
        assert!(full.stderr.contains("Disk quota exceeded"), "{before}: {full}");
        // Whoever has used up everything can still log in to a new jail, and remove it.
        machine.root("ojail stop alice").ok();
        machine.ssh("alice", "true").ok();
        let disk = &status(machine)["disk"];
        let (used, most) = (disk["used"].as_u64().unwrap(), disk["most"].as_u64().unwrap());
        assert!(most == 24 << 20 && used <= most && used > most / 2, "{before}: {disk}");
        machine.ssh("alice", &format!("{before}rm -r /var/tmp/d")).ok();
        let full = machine
            .ssh("alice", &format!("{before}sh -c 'mkdir /var/tmp/d; cd /var/tmp/d; for i in $(seq 600); do : > $i || exit 1; done'"))
            .fails();
        assert!(full.stderr.contains("Disk quota exceeded"), "{before}: {full}");
        machine.root("ojail stop alice").ok();
        machine.ssh("alice", &format!("{before}rm -r /var/tmp/d")).ok();
    }
    // The project is the host's to change (FS_IOC_FSSETXATTR and chattr -p), also for root of the jail.
    machine.ssh("alice", "echo x > /var/tmp/own").ok();
    machine.ssh("alice", "sudo chattr -p 0 /var/tmp/own").fails();
    machine.ssh("alice", "sudo chattr -P /var/tmp").fails();
    let df = machine.ssh("alice", "df -B1 --output=size / | tail -1").text();
    assert_eq!(df.trim(), (24 << 20).to_string(), "df tells the limit");
}

fn cron(machine: &Machine) {
    machine.root("echo '* * * * * alice cat /proc/self/cgroup > /var/tmp/cron.new; mv /var/tmp/cron.new /var/tmp/cron' > /etc/cron.d/alice").ok();
    until(Duration::from_secs(150), "cron ran the job", || {
        machine.ssh("alice", "test -e /var/tmp/cron").run().code() == Some(0)
    });
    let group = machine.ssh("alice", "cat /var/tmp/cron").text();
    assert!(group.contains("/user.slice/user-1001.slice/"), "{group}");
    machine.root("rm /etc/cron.d/alice").ok();
}

/// What is set aside does not count any more.
fn reset(machine: &Machine) {
    machine.ssh("alice", "dd if=/dev/zero of=/var/tmp/file bs=1M count=20 status=none").ok();
    machine.root("ojail reset --force alice").ok();
    machine.ssh("alice", "dd if=/dev/zero of=/var/tmp/file bs=1M count=20 status=none").ok();
    let used = status(machine)["disk"]["used"].as_u64().unwrap();
    assert!((20 << 20..24 << 20).contains(&used), "{used}");
}

fn lifted(machine: &Machine) {
    machine.root("ojail stop alice; sed -i '0,/^limits.*/s///' /etc/ojail/ojail.toml").ok();
    machine.ssh("alice", "dd if=/dev/zero of=/var/tmp/file bs=1M count=40 status=none").ok();
    assert!(slice(machine, "pids.max").parse::<u64>().unwrap_or(u64::MAX) > 80, "the limit is gone");
    assert_eq!(slice(machine, "memory.max"), "max");
}

#[test]
fn an_upper_on_xfs_with_files_from_before_keeps_to_its_limit() {
    lab::require!(lab::must::machines());
    let hardware = Hardware { file_system: FileSystem::Xfs, disk: "512M".into(), ..Hardware::default() };
    let machine = setup().hardware(hardware).boot();
    // Without a limit first; what is there by then counts as soon as there is one.
    machine.root("cp /etc/ojail/ojail.toml /root/; sed -i '/^limits/d' /etc/ojail/ojail.toml").ok();
    machine.ssh("alice", "mkdir -p /var/tmp/a/b; dd if=/dev/zero of=/var/tmp/a/b/file bs=1M count=20 status=none; ln -s x /var/tmp/a/link; mkfifo /var/tmp/a/fifo").ok();
    machine.ssh("alice", "sudo rm -r /usr/share/menu /etc/motd; sudo ln -s there /etc/link").ok();
    let told = machine.ssh("alice", "stat -c '%F %U %y' /var/tmp/a/link /var/tmp/a/fifo /etc/link").text();
    machine.root("ojail stop alice; cp /root/ojail.toml /etc/ojail/").ok();
    let full = machine.ssh("alice", "dd if=/dev/zero of=/var/tmp/more bs=1M count=20 status=none").fails();
    // XFS tells a full project as a full disk.
    assert!(full.stderr.contains("No space left on device"), "{full}");
    let used = status(&machine)["disk"]["used"].as_u64().unwrap();
    assert!((20 << 20..=24 << 20).contains(&used), "{used}");
    machine.ssh("alice", "rm /var/tmp/more").ok();
    // What cannot be opened was made anew, and is as it was; and names move about as before, also over whiteouts.
    assert_eq!(
        machine.ssh("alice", "stat -c '%F %U %y' /var/tmp/a/link /var/tmp/a/fifo /etc/link").text(),
        told
    );
    let rename = "sudo perl -e 'rename(\"/etc/link\", \"/etc/other\") or die $!; mkdir(\"/usr/share/menu\") or die $!; \
                  rename(\"/var/tmp/a/fifo\", \"/var/tmp/a/pipe\") or die $!; open(F, \">\", \"/etc/motd\") or die $!'";
    machine.ssh("alice", rename).ok();
    assert!(!machine.ssh("alice", "ls -A /etc /var/tmp/a").text().contains(".ojail"));
    machine
        .ssh(
            "alice",
            "mv /var/tmp/a /var/tmp/c; mv /var/tmp/c/b/file /var/tmp/file; rm /etc/motd; rm -r /var/tmp/c",
        )
        .ok();
}

#[test]
fn quotas_that_are_counted_and_not_enforced_are_no_limit() {
    lab::require!(lab::must::machines());
    let machine = setup().boot();
    machine.root("sed -i 's/ prjquota / defaults /' /usr/lib/lab/fstab; systemctl stop ssh; umount -R /srv/overlay && mount --all --fstab /usr/lib/lab/fstab; systemctl start ssh").ok();
    let check = machine.root("ojail check").run();
    assert!(check.stdout.contains("counted and not enforced; mount it with `prjquota`"), "{check}");
    machine.ssh("alice", "true").fails();
}
