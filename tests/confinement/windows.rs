//! `/proc`, `/sys`, `/dev`, the host name, memory file systems: what the kernel shows inside.

use crate::common::{config, host, setup};

#[test]
fn dev_has_the_harmless_devices_and_nothing_else() {
    lab::require_root!();
    let host = host("");
    let names = host.ssh("alice", "ls -A /dev | sort | tr '\\n' ' '").text();
    assert_eq!(names.trim(), "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero");
    let kinds = host.ssh(
        "alice",
        "stat -c '%n %F %t:%T' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty",
    );
    let numbers: Vec<String> =
        kinds.text().lines().map(|line| line.rsplit(' ').next().unwrap().to_owned()).collect();
    assert_eq!(numbers, ["1:3", "1:5", "1:7", "1:8", "1:9", "5:0"]);
    assert!(host.ssh("alice", "find /dev -type b | grep .").fails().stdout.is_empty());
}

#[test]
fn what_the_kernel_tells_of_the_host_is_empty() {
    lab::require_root!();
    for keys in ["", "root = true"] {
        let host = host(keys);
        // As the user and, where the profile has it, as root of the jail.
        for before in ["", "sudo "].iter().take(if keys.is_empty() { 1 } else { 2 }) {
            for file in
                ["kcore", "keys", "key-users", "kallsyms", "kmsg", "timer_list", "interrupts", "sched_debug"]
            {
                // What this kernel does not have at all, the jail cannot have either.
                if !std::path::Path::new("/proc").join(file).exists() {
                    continue;
                }
                let read =
                    format!("test -e /proc/{file} && {before}timeout 5 head -c 64 /proc/{file} | wc -c");
                assert_eq!(host.ssh("alice", &read).text(), "0", "{before}{file}");
            }
            for dir in ["acpi", "asound", "scsi"] {
                let list = format!("{before}ls -A /proc/{dir} 2>/dev/null | wc -l");
                assert_eq!(host.ssh("alice", &list).text(), "0", "{before}{dir}");
            }
        }
    }
}

#[test]
fn the_kernels_settings_cannot_be_changed() {
    lab::require_root!();
    let host = host("root = true");
    let settings = "kernel/core_pattern kernel/hostname kernel/shmmax fs/mqueue/msg_max user/max_user_namespaces \
                    net/ipv4/ip_forward vm/overcommit_memory";
    for before in ["", "sudo "] {
        for setting in settings.split_whitespace() {
            let write = format!(
                "{before}sh -c 'cat /proc/sys/{setting} > /tmp/value && cat /tmp/value > /proc/sys/{setting}'"
            );
            let output = host.ssh("alice", &write).fails();
            assert!(
                output.stderr.contains("Read-only file system")
                    || output.stderr.contains("Permission denied"),
                "{before}{setting}: {output}"
            );
        }
        let sysrq = format!("{before}sh -c 'echo h > /proc/sysrq-trigger'");
        host.ssh("alice", &sysrq).fails();
    }
    assert_eq!(
        host.ssh(
            "alice",
            "sudo sh -c 'awk \"\\$5 == \\\"/proc/sys\\\" { print \\$6 }\" /proc/self/mountinfo'"
        )
        .text()
        .split(',')
        .next(),
        Some("ro")
    );
}

#[test]
fn sys_is_absent_on_the_hosts_network() {
    lab::require_root!();
    let host = host("");
    assert_eq!(host.ssh("alice", "ls -A /sys").text(), "");
    // What a user keeps below /sys in their upper is no way to confuse the masks.
    let host = setup("root = true").start();
    host.ssh(
        "alice",
        "sudo sh -c 'mkdir -p /sys/devices && ln -s /etc /sys/firmware && ln -s / /sys/devices/virtual'",
    )
    .ok();
    host.root("ojail stop alice").ok();
    assert_eq!(host.ssh("alice", "readlink /sys/firmware").text(), "/etc");
}

#[test]
fn the_jail_has_the_hosts_name_or_its_own() {
    lab::require_root!();
    let host = setup("hostname = \"box.example\"\nroot = true").start();
    assert_eq!(
        host.ssh("alice", "hostname; uname -n; getent hosts box.example | tr -s ' '").text(),
        "box.example\nbox.example\n127.0.1.1 box.example"
    );
    assert_eq!(host.ssh("alice", "sudo true 2>&1").text(), "", "sudo knows the name");
    assert_eq!(host.root("hostname").text(), "lab");
    for change in ["hostname other", "sudo hostname other"] {
        host.ssh("alice", change).fails();
    }
    assert_eq!(host.ssh("alice", "hostname").text(), "box.example");
    let host = self::host("");
    assert_eq!(host.ssh("alice", "hostname").text(), "lab");
}

#[test]
fn processes_messages_and_shared_memory_of_the_host_are_out_of_sight() {
    lab::require_root!();
    let host = setup("").start();
    host.root("ipcmk -M 4096 -Q -S 1").ok();
    host.root("test $(tail -n +2 /proc/sysvipc/shm | wc -l) = 1").ok();
    assert_eq!(host.ssh("alice", "cat /proc/sysvipc/* | grep -v key | wc -l").text(), "0");
    let _sleeper = host.root("exec sleep 4711").spawn();
    crate::common::until("it sleeps", crate::common::SOON, || {
        host.root("pgrep -f 'sleep 4711'").run().code() == Some(0)
    });
    assert!(!host.ssh("alice", "ps -ef; cat /proc/*/cmdline").run().text().contains("4711"));
}

#[test]
fn what_is_in_memory_is_limited_together() {
    lab::require_root!();
    // No limit of the upper's: on this kernel there may be no quotas. The memory file systems are the same ones.
    let host = setup("writable = true").start();
    let devices = host.ssh("alice", "stat -c %d /tmp /run /dev/shm | sort -u | wc -l");
    assert_eq!(devices.text(), "1", "one file system, one limit");
    assert_eq!(
        host.ssh("alice", "stat -c '%a %U' /tmp /run /dev/shm").text(),
        "1777 root\n755 root\n1777 root"
    );
    let flags =
        host.ssh("alice", "awk '$5 ~ \"^/(tmp|run|dev/shm)$\" { print $6 }' /proc/self/mountinfo").text();
    for line in flags.lines() {
        assert!(line.contains("nosuid") && line.contains("nodev"), "{flags}");
    }
    assert_eq!(flags.lines().count(), 3);
}

#[test]
fn one_jail_cannot_take_all_terminals() {
    lab::require_root!();
    let host = crate::common::setup("")
        .config(&config("").replace("[\"debian\"]", "[\"tools\", \"debian\"]"))
        .layer("tools")
        .start();
    let open = "import os\nheld = []\ntry:\n  while len(held) < 5000: held.append(os.open('/dev/ptmx', os.O_RDWR))\nexcept OSError as e: print(len(held), e.strerror)";
    let said = host.ssh("alice", "python3 -").stdin(open).text();
    assert_eq!(said, "256 No space left on device");
    host.ssh("alice", "true").tty().ok();
}
