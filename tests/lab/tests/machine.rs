//! The lab's machines: one does what a Debian server does, keeps to itself, and leaves nothing behind.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

use lab::{FileSystem, Hardware, Setup, User};

fn bare() -> Setup {
    lab::host().without_ojail().user(User::new("alice").uid(1001).groups(["jailed"]))
}

#[test]
fn a_machine_is_a_debian_of_its_own_and_survives_a_reboot_and_a_crash() {
    lab::require!(lab::must::machines());
    let mut machine = bare()
        .layer("debian")
        .image("nginx.squashfs")
        .pam_line("sshd", "# the end")
        .file("/etc/motd.lab", 0o640, "hello\n")
        .boot();
    println!("{}", machine.root("systemd-analyze").text());

    // Its own kernel, and systemd.
    assert_eq!(machine.root("cat /proc/1/comm; hostname").text(), "systemd\nlab");
    assert!(machine.root("uname -v").text().contains("Debian"));
    assert_eq!(machine.root("systemctl list-units --failed --plain --no-legend").text(), "");
    assert_eq!(machine.root("stat -f -c %T /sys/fs/cgroup").text(), "cgroup2fs");
    // What the setup asked for.
    assert_eq!(machine.root("stat -c %a /etc/motd.lab; cat /etc/motd.lab").text(), "640\nhello");
    assert_eq!(machine.root("tail -n1 /etc/pam.d/sshd").text(), "# the end");
    assert_eq!(machine.root("printf %s, \"$@\"").arg("a b").arg("it's").text(), "a b,it's,");
    machine.root("exit 3").fails();
    machine.write("/srv/new/file", 0o600, "it's\n");
    assert_eq!(machine.root("stat -c %a /srv/new/file; cat /srv/new/file").text(), "600\nit's");
    // Logins, which logind knows of.
    assert_eq!(machine.ssh("alice", "id -un; id -Gn").text(), "alice\nalice jailed");
    assert!(machine.ssh("alice", "cat /proc/self/cgroup").text().contains("/user.slice/user-1001.slice/"));
    machine.client().write("/root/letter", 0o600, "dear alice");
    machine.scp("/root/letter", "alice:by-scp").ok();
    machine.sftp("alice", "put /root/letter by-sftp\n").ok();
    assert_eq!(machine.root("cat ~alice/by-scp ~alice/by-sftp").text(), "dear alicedear alice");
    machine.wait_for_log("session opened for user alice(uid=1001)");
    // The storage.
    let kinds = "findmnt -n -o FSTYPE,OPTIONS";
    let storage = machine.root(&format!("{kinds} /srv/overlay")).text();
    assert!(storage.starts_with("ext4") && storage.contains("prjquota"), "{storage}");
    let layer = machine.root(&format!("{kinds} /srv/overlay/lowerdirs/debian")).text();
    assert!(layer.starts_with("ext4") && layer.contains("ro,"), "{layer}");
    machine.root("chroot /srv/overlay/lowerdirs/debian sudo --version").ok();
    machine.root("mount -r /srv/overlay/lowerdirs/nginx.squashfs /mnt && test -x /mnt/usr/sbin/nginx").ok();
    assert_eq!(machine.root("stat -c %a /srv/overlay/lowerdirs").text(), "700");
    // The world.
    machine.root("nc -z -w2 10.0.2.2 22").fails();
    machine.root("nc -z -w2 1.1.1.1 53").fails();

    machine.root("echo kept > /srv/overlay/kept; echo gone > /run/gone").ok();
    let boot = "cat /proc/sys/kernel/random/boot_id";
    let first = machine.root(boot).text();
    machine.reboot();
    let second = machine.root(boot).text();
    assert_eq!(machine.root("cat /srv/overlay/kept; ls /run/gone || true").text(), "kept");
    machine.root("echo synced > /srv/overlay/synced; sync; echo lost > /srv/overlay/lost").ok();
    machine.crash();
    let third = machine.root(boot).text();
    assert!(first != second && second != third);
    assert_eq!(machine.root("cd /srv/overlay; cat synced; cat lost || true").text(), "synced");
    assert_eq!(machine.ssh("alice", "cat by-scp").text(), "dear alice");

    let pid = machine.pid();
    let directory = directory(pid);
    assert!(is_running(pid) && directory.exists());
    drop(machine);
    assert!(!is_running(pid) && !directory.exists());
}

#[test]
fn the_storage_of_a_machine_may_be_xfs_of_any_size() {
    lab::require!(lab::must::machines());
    let hardware = Hardware { file_system: FileSystem::Xfs, disk: "512M".into(), ..Hardware::default() };
    let machine = bare().layer("debian").image("debian.erofs").hardware(hardware).boot();

    let storage = machine.root("findmnt -n -o FSTYPE,OPTIONS /srv/overlay").text();
    assert!(storage.starts_with("xfs") && storage.contains("prjquota"), "{storage}");
    assert_eq!(machine.root("stat -c %a /srv/overlay/lowerdirs").text(), "700");
    machine.root("test -x /srv/overlay/lowerdirs/debian/usr/bin/sudo").ok();
    machine.root("mount -r /srv/overlay/lowerdirs/debian.erofs /mnt && test -x /mnt/usr/bin/sudo").ok();
    let full = machine.root("head -c 600M /dev/zero > /srv/overlay/too-much").fails();
    assert!(full.stderr.contains("No space left"), "{full}");
}

#[test]
fn nothing_is_left_of_a_machine_whose_test_was_killed() {
    lab::require!(lab::must::machines());
    // The test begins itself anew, to have a process to kill.
    if env::var_os("LAB_TEST_KILLED").is_some() {
        let machine = bare().boot();
        println!("QEMU is {}", machine.pid());
        loop {
            std::thread::park();
        }
    }
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "nothing_is_left_of_a_machine_whose_test_was_killed", "--nocapture"])
        .env("LAB_TEST_KILLED", "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let said = lines.map_while(Result::ok).find_map(|line| Some(line.split_once("QEMU is ")?.1.to_owned()));
    let pid = said.expect("the machine boots").parse().unwrap();
    let directory = directory(pid);
    assert!(is_running(pid) && directory.exists());

    child.kill().unwrap();
    child.wait().unwrap();

    let since = std::time::Instant::now();
    while is_running(pid) {
        assert!(since.elapsed().as_secs() < 10, "QEMU goes on");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // Its files go when the next host starts.
    drop(bare().start());
    assert!(!directory.exists());
}

fn is_running(pid: u32) -> bool {
    let comm = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    comm.contains("(qemu-system") && !comm.contains(") Z")
}

/// The directory of a machine's disks, as QEMU was told of its console there.
fn directory(qemu: u32) -> PathBuf {
    let words = fs::read(format!("/proc/{qemu}/cmdline")).unwrap();
    let words = String::from_utf8(words).unwrap();
    let console = words.split('\0').find_map(|word| word.strip_prefix("file:")).unwrap();
    PathBuf::from(console).parent().unwrap().to_owned()
}
