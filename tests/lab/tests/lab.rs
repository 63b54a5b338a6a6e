//! The lab itself: a host does what a Debian server does, keeps to itself, and leaves nothing behind.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use lab::{Host, Setup, User};

fn bare() -> Setup {
    lab::host().without_ojail().user(User::new("alice").uid(1001).groups(["jailed"]))
}

#[test]
fn a_user_logs_in_with_openssh() {
    lab::require_root!();
    let host = bare().start();

    assert_eq!(host.ssh("alice", "id -un; id -u; id -Gn").text(), "alice\n1001\nalice jailed");
    assert_eq!(host.ssh("alice", "tty").tty().text(), "/dev/pts/0");
    assert_eq!(host.ssh("alice", "cat").stdin("through and back").text(), "through and back");
    assert_eq!(host.ssh("alice", "exit 7").run().code(), Some(7));
    host.ssh("nobody-here", "true").fails();
}

#[test]
fn a_user_logs_in_with_dropbear() {
    lab::require_root!();
    let host = bare().start();

    assert_eq!(host.dbclient("alice", "id -u").text(), "1001");
}

#[test]
fn files_go_by_scp_and_sftp_and_rsync() {
    lab::require_root!();
    let host = bare().start();
    let in_alices_home = |name: &str| fs::read_to_string(host.path("/home/alice").join(name)).unwrap();
    host.write("/root/letter", 0o600, "dear alice");

    host.scp("/root/letter", "alice:by-scp").ok();
    host.scp("/root/letter", "alice:by-old-scp").arg("-O").ok();
    host.sftp("alice", "put /root/letter by-sftp\nls\n").ok();
    host.root("rsync /root/letter alice@127.0.0.1:by-rsync").ok();

    for name in ["by-scp", "by-old-scp", "by-sftp", "by-rsync"] {
        assert_eq!(in_alices_home(name), "dear alice", "{name}");
    }
}

#[test]
fn root_becomes_a_user_by_su_and_a_user_becomes_root_by_sudo() {
    lab::require_root!();
    let host = bare().file("/etc/sudoers.d/alice", 0o440, "alice ALL=(ALL) NOPASSWD: ALL\n").start();

    assert_eq!(host.root("su - alice -c 'id -u; pwd'").text(), "1001\n/home/alice");
    assert_eq!(host.ssh("alice", "sudo id -u").text(), "0");
}

#[test]
fn a_user_has_a_password() {
    lab::require_root!();
    let host = bare().start();
    let check = ["pamtester", "login", "alice", "authenticate"];

    host.exec(check).stdin(format!("{}\n", lab::PASSWORD)).ok();
    host.exec(check).stdin("something else\n").fails();
}

#[test]
fn a_pam_line_decides_about_a_login() {
    lab::require_root!();
    let host = bare().pam_line("sshd", "session required pam_deny.so").start();

    host.ssh("alice", "true").fails();
    host.root("su - alice -c true").ok();
}

#[test]
fn extra_lines_for_sshd_win_over_debians() {
    lab::require_root!();
    let host = bare().sshd_config("PermitTTY no").start();

    assert_eq!(
        host.root("sshd -T | grep -i -e permittty -e usepam | sort").text(),
        "permittty no\nusepam yes"
    );
    host.ssh("alice", "true").ok();
}

#[test]
fn what_the_host_logs_can_be_read() {
    lab::require_root!();
    let host = bare().start();

    host.ssh("alice", "true").ok();

    host.wait_for_log("session opened for user alice(uid=1001)");
    host.root("logger -t test 'a line of ours'").ok();
    assert!(host.wait_for_log("a line of ours").contains("test: "));
}

#[test]
fn a_command_has_a_bound_and_shows_what_it_printed() {
    lab::require_root!();
    let host = bare().start();
    let since = Instant::now();

    let slow = host.root("echo so far; sleep 100").within(Duration::from_millis(300));
    let panic = catch_unwind(AssertUnwindSafe(|| slow.run())).unwrap_err();

    assert!(since.elapsed() < Duration::from_secs(5));
    let said = panic.downcast_ref::<String>().unwrap();
    assert!(said.contains("did not end within 300ms") && said.contains("so far"), "{said}");
    host.root("pgrep -x sleep").fails();
}

#[test]
fn a_daemon_that_keeps_its_output_open_does_not_hold_up_the_test() {
    lab::require_root!();
    let host = bare().start();

    let output = host.root("sleep 100 & echo started").ok();

    assert_eq!(output.text(), "started");
    assert!(output.took < Duration::from_secs(5));
}

#[test]
fn a_command_takes_nothing_along_from_the_test() {
    lab::require_root!();
    let host = bare().start();
    // A descriptor as the standard library never leaves one: open across exec.
    let leak = fs::File::open("/").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();

    // The fourth is the directory itself, read by ls.
    assert_eq!(host.exec(["ls", "/proc/self/fd"]).text(), "0\n1\n2\n3");
    assert_eq!(host.root("umask; pwd; tty").run().stdout, "0022\n/root\nnot a tty\n");
    let names = host.exec(["env"]).ok().stdout;
    assert!(names.lines().all(|line| !line.starts_with("CARGO")), "{names}");
}

#[test]
fn a_long_command_is_talked_to() {
    lab::require_root!();
    let host = bare().start();
    let mut shell = host.ssh("alice", "").tty().spawn();

    shell.write("echo $((6 * 7)) apples\n");
    shell.wait_for("42 apples");
    assert!(shell.is_running());
    shell.write("exit 3\n");

    assert_eq!(shell.finish().code(), Some(3));
}

#[test]
fn the_mount_table_is_small_and_the_hosts_own() {
    lab::require_root!();
    let host = bare().start();
    let table = host.mountinfo();
    let mut places: Vec<&str> = table.lines().map(|line| line.split(' ').nth(4).unwrap()).collect();
    places.sort_unstable();

    let expected = [
        "/",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/home",
        "/proc",
        "/run",
        "/srv/overlay",
        "/sys",
        "/tmp",
        "/var/lib/ojail",
    ];
    assert_eq!(places, expected, "{table}");
    assert_eq!(host.root("findmnt -n -o FSTYPE /").text(), "overlay");
    assert_ne!(host.root("stat -f -c %T /srv/overlay").text(), "overlayfs");
}

#[test]
fn layers_and_images_are_shared_and_read_only() {
    lab::require!(lab::must::loop_devices());
    let host = bare().layer("debian").layer("nginx").image("debian.erofs").image("debian.squashfs").start();

    assert_eq!(host.root("ls /srv/overlay/lowerdirs").text(), "debian\ndebian.erofs\ndebian.squashfs\nnginx");
    host.root("chroot /srv/overlay/lowerdirs/debian sudo --version").ok();
    host.root("test -x /srv/overlay/lowerdirs/nginx/usr/sbin/nginx").ok();
    host.root("touch /srv/overlay/lowerdirs/debian/mine").fails();
    host.root("echo >> /srv/overlay/lowerdirs/debian.erofs").fails();
    for kind in ["erofs", "squashfs"] {
        host.root(&format!("mount -o loop,ro /srv/overlay/lowerdirs/debian.{kind} /mnt")).ok();
        host.root("test -x /mnt/usr/bin/sudo && umount /mnt").ok();
    }
}

#[test]
fn a_layer_fits_an_overlay_as_jails_mount_it() {
    lab::require_root!();
    let host = bare().layer("debian").layer("tools").start();

    host.root(
        "cd /srv/overlay/lowerdirs; mkdir ../upper ../work
         mount -t overlay -o userxattr,lowerdir=tools:debian,upperdir=../upper,workdir=../work overlay /mnt",
    )
    .ok();

    host.root("chroot /mnt git --version").ok();
    // Nothing of how it was made.
    let traces =
        "usr/sbin/policy-rc.d run/* tmp/* proc/* etc/resolv.conf var/cache/apt/*.bin var/lib/apt/lists/*_*";
    assert_eq!(host.root(&format!("cd /srv/overlay/lowerdirs/tools; ls -d {traces}")).run().stdout, "");
}

#[test]
fn a_small_disk_fills_up() {
    lab::require!(lab::must::loop_devices());
    let host = bare().small_disk("16M").start();

    host.root("head -c 8M /dev/zero > /srv/overlay/half").ok();
    let full = host.root("head -c 16M /dev/zero > /srv/overlay/rest").fails();
    assert!(full.stderr.contains("No space left"), "{full}");
}

#[test]
fn hosts_run_side_by_side() {
    lab::require_root!();
    let start = |uid: u32| move || bare().user(User::new("bob").uid(uid)).start();
    let (one, two) = thread::scope(|scope| {
        let (one, two) = (scope.spawn(start(2001)), scope.spawn(start(2002)));
        (one.join().unwrap(), two.join().unwrap())
    });

    one.root("touch /run/of-one /home/of-one").ok();
    assert_eq!(one.ssh("bob", "id -u").text(), "2001");
    assert_eq!(two.ssh("bob", "id -u").text(), "2002");
    two.root("ls /run/of-one").fails();
    two.root("ls /home/of-one").fails();
}

#[test]
fn a_host_is_on_no_network() {
    lab::require_root!();
    let host = bare().start();

    assert_eq!(host.root("ip -o link | wc -l").text(), "1");
    assert!(host.inside(|| TcpStream::connect("127.0.0.1:22").is_ok()));
    assert_eq!(host.root("hostname").text(), "lab");
}

#[test]
fn a_host_with_a_network_is_in_a_world_of_its_own() {
    lab::require_root!();
    let hosts = [bare().network().start(), bare().network().start()];
    for (number, host) in hosts.iter().enumerate() {
        // By name, over both kinds of addresses.
        let found = host.root("getent ahosts far.example.test | cut -d ' ' -f 1 | sort -u").text();
        assert_eq!(found.lines().collect::<Vec<_>>(), lab::world::FAR, "{found}");
        host.root("getent ahosts near.example.test").fails();
        for (own, far) in lab::world::HOST.iter().zip(lab::world::FAR) {
            for protocol in ["tcp", "udp"] {
                let ask = "exec 3<>/dev/$0/$1/7; echo hello >&3; timeout 10 head -n 1 <&3";
                let answer = host.exec(["bash", "-c", ask, protocol, far]).text();
                assert_eq!(answer, format!("heard hello from {own}"), "{protocol}");
            }
        }
        let page =
            host.root("printf 'GET /page HTTP/1.0\\r\\n\\r\\n' | socat - TCP:far.example.test:80").text();
        assert!(page.starts_with("HTTP/1.1 200 OK") && page.contains("/page for "), "{page}");
        // And the other way round. Nobody else is there.
        let greeting = host.world("socat -u TCP:192.0.2.2:22,readbytes=4 STDOUT").text();
        assert_eq!(greeting, "SSH-");
        host.root("touch /etc/of-one").ok();
        host.world("test ! -e /etc/of-one && ! pgrep sshd").ok();
        assert_eq!(host.world("hostname; ip -o link | wc -l").text(), "lab\n2", "{number}");
    }
}

#[test]
fn a_host_serves_what_it_is_told_to() {
    lab::require_root!();
    let host = bare().network().start();
    host.serve(&["dns@127.0.0.53", "here.example.test=127.0.0.53", "echo@127.0.0.53"]);
    host.write("/etc/resolv.conf", 0o644, "nameserver 127.0.0.53\noptions use-vc\n");
    assert_eq!(host.root("getent hosts here.example.test | cut -d ' ' -f 1").text(), "127.0.0.53");
    host.root("getent hosts far.example.test").fails();
}

#[test]
fn a_hosts_sys_is_whole_and_read_only() {
    lab::require_root!();
    let host = bare().start();
    assert_eq!(host.root("ls /sys/class/net").text(), "lo");
    host.root("echo 1 > /sys/kernel/uevent_seqnum").fails();
    assert_eq!(host.root("findmnt -n -o FSTYPE,OPTIONS /sys").text().split(' ').next(), Some("sysfs"));
    // A read-only one of a network of one's own, by nobody in particular: what a jail does, and mount(8) does not by itself any more,
    // which since 2.39 makes it writable first.
    host.root("LIBMOUNT_FORCE_MOUNT2=always unshare --user --map-root-user --net --mount sh -c 'mount -t sysfs -o ro,nosuid,nodev,noexec sysfs /mnt && ls /mnt/class/net'").ok();
}

#[test]
fn nothing_is_left_of_a_host() {
    lab::require!(lab::must::loop_devices());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let host = bare().layer("debian").small_disk("16M").network().start();
    let left = Left::of(&host);
    assert!(left.processes() > 2 && left.directory.exists() && left.has_loop_device());
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts);

    // What hosts have been left with: daemons, changed root files, files that cannot be deleted.
    host.root("(setsid sleep 1000 &); touch /etc/changed /home/stays; chattr +i /home/stays").ok();
    drop(host);

    left.has_gone();
}

#[test]
fn nothing_is_left_of_a_host_when_a_test_panics() {
    lab::require_root!();
    let mut left = None;

    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let host = bare().start();
        left = Some(Left::of(&host));
        let _still_running = host.ssh("alice", "sleep 1000").spawn();
        panic!("on purpose");
    }));

    assert!(panicked.is_err());
    left.unwrap().has_gone();
}

/// What there is of a host on the machine.
struct Left {
    /// The host's own, and its world's if it has one.
    pid_namespaces: Vec<PathBuf>,
    directory: PathBuf,
}

impl Left {
    fn of(host: &Host) -> Self {
        let mut pid_namespaces = vec![fs::read_link(format!("/proc/{}/ns/pid", host.pid())).unwrap()];
        if host.root("ip link show eth0").run().code() == Some(0) {
            pid_namespaces.push(host.world("readlink /proc/self/ns/pid").text().into());
        }
        // The bind mount's own root is the way from the machine's file system to the host's directory.
        let home = fs::metadata(host.path("/home")).unwrap();
        let run = lab_run_directory();
        let is_homes =
            |path: &PathBuf| fs::metadata(path.join("home")).is_ok_and(|there| there.ino() == home.ino());
        let mut all = fs::read_dir(run).unwrap().flatten().map(|entry| entry.path());
        Self { pid_namespaces, directory: all.find(is_homes).expect("every host has a directory") }
    }

    fn processes(&self) -> usize {
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.filter(|entry| {
            fs::read_link(entry.path().join("ns/pid")).is_ok_and(|its| self.pid_namespaces.contains(&its))
        })
        .count()
    }

    fn has_loop_device(&self) -> bool {
        let output =
            Command::new("losetup").args(["--list", "--noheadings", "--output", "BACK-FILE"]).output();
        String::from_utf8_lossy(&output.unwrap().stdout).contains(self.directory.to_str().unwrap())
    }

    #[track_caller]
    fn has_gone(&self) {
        assert_eq!(self.processes(), 0);
        assert!(!self.directory.exists());
        // The kernel takes mounts down after the last process, and loop devices after their mounts.
        let since = Instant::now();
        while self.has_loop_device() {
            assert!(since.elapsed() < Duration::from_secs(5), "a loop device is left");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn lab_run_directory() -> PathBuf {
    match std::env::var_os("OJAIL_LAB_RUN") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/lab/run").canonicalize().unwrap(),
    }
}
