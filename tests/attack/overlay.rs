//! What can be left in an upper: marks of an overlay, devices, programs that would gain something.

use crate::common::{digest, init};
use crate::probe::host;

/// Marks files as only an overlay may, by all the names there are; says which of the calls were taken.
const MARK: &str = r#"
import os
os.makedirs("/var/tmp/marked/d", exist_ok=True)
open("/var/tmp/marked/f", "w").close()
for space in ("user", "trusted"):
    for path in ("/var/tmp/marked/d", "/var/tmp/marked/f"):
        for name, value in (("redirect", b"/../../secret"), ("opaque", b"y"), ("opaque", b"x"), ("metacopy", b""), ("whiteout", b"y"),
                            ("whiteouts", b"y"), ("origin", b"\0" * 29), ("impure", b"y"), ("upper", b"x"), ("nlink", b"U+5")):
            try:
                os.setxattr(path, space + ".overlay." + name, value)
                print(space)
            except OSError:
                pass
"#;

/// The marks that there are on disk, outside of the jail.
const MARKS: &str = r#"
import os
for path, directories, files in os.walk("/srv/overlay/upperdirs/alice/var/tmp/marked"):
    for name in [path] + [os.path.join(path, name) for name in files]:
        for mark in os.listxattr(name):
            if ".overlay." in mark:
                print(name.rsplit("/", 1)[1], mark)
"#;

/// Marks that an overlay makes itself, and that lead nowhere.
fn is_harmless(line: &str) -> bool {
    // What was set inside is stored behind a prefix, for overlays that are mounted inside.
    let own = [
        "user.overlay.origin",
        "user.overlay.impure",
        "user.overlay.nlink",
        "user.overlay.uuid",
        "user.overlay.protattr",
    ];
    let Some((_, mark)) = line.split_once(' ') else { return false };
    own.contains(&mark) || mark.starts_with("user.overlay.overlay.")
}

#[test]
fn nothing_inside_marks_a_file_of_the_upper_as_only_an_overlay_may() {
    lab::require_root!();
    for (keys, command) in [("", "python3 -"), ("root = true", "sudo -n python3 -")] {
        let host = host(keys);
        let said = host.ssh("alice", command).stdin(MARK).text();
        assert!(!said.contains("trusted"), "{keys}: {said}");
        let marks = host.exec(["python3", "-c", MARKS]).text();
        let bad: Vec<&str> = marks.lines().filter(|line| !is_harmless(line)).collect();
        assert!(bad.is_empty(), "{keys}: {bad:#?}");
        // The next raise takes them for what they are.
        let layers = digest(&host, "/srv/overlay/lowerdirs/debian/var");
        host.root("ojail stop alice").ok();
        host.ssh("alice", "ls -A /var/tmp/marked/d; cat /proc/1/comm /var/tmp/marked/f").ok();
        assert_eq!(digest(&host, "/srv/overlay/lowerdirs/debian/var"), layers);
    }
}

#[test]
fn a_device_in_the_upper_cannot_be_opened() {
    lab::require_root!();
    for keys in ["", "root = true"] {
        let host = host(keys);
        host.ssh("alice", "mkdir -p /var/tmp/planted").ok();
        host.root("ojail stop alice").ok();
        // Root of the jail could not make them; an upper from elsewhere may have them.
        host.root("cd /srv/overlay/upperdirs/alice/var/tmp/planted; mknod -m 666 null c 1 3; mknod -m 666 disk b 7 0; mknod -m 666 memory c 1 1").ok();
        let sudo = if keys.is_empty() { "" } else { "sudo -n " };
        for device in ["null", "disk", "memory"] {
            for open in ["exec 3<", "exec 3>"] {
                let path = format!("/var/tmp/planted/{device}");
                let output = host.ssh("alice", &format!("{sudo}sh -c '{open}{path}'")).fails();
                assert!(output.stderr.contains("Permission denied"), "{open}{path}: {output}");
            }
        }
        // One of the jail's own can.
        host.ssh("alice", "echo x > /dev/null").ok();
    }
}

#[test]
fn programs_that_would_gain_something_gain_nothing_without_root_in_the_profile() {
    lab::require_root!();
    let host = host("");
    host.ssh("alice", "mkdir -p /var/tmp/planted").ok();
    host.root("ojail stop alice").ok();
    // As an upper may have them whose profile had root once.
    let plant = r#"
        cd /srv/overlay/upperdirs/alice/var/tmp/planted
        install -m 4755 /srv/overlay/lowerdirs/debian/usr/bin/id root
        install -m 755 /srv/overlay/lowerdirs/debian/usr/bin/cat capable
        python3 -c 'import os; os.setxattr("capable", "security.capability", b"".join(w.to_bytes(4, "little") for w in (0x02000001, 2, 0, 0, 0)))'
    "#;
    host.root(plant).ok();
    let uid = host.root("id -u alice").text();
    assert_eq!(host.ssh("alice", "/var/tmp/planted/root -u").text(), uid);
    let output = host.ssh("alice", "/var/tmp/planted/capable /etc/shadow").fails();
    assert!(!output.stdout.contains("root:"), "{output}");
    // Of the layer's own neither.
    for command in ["su -c id </dev/null", "sudo -n id", "/usr/bin/passwd -l root", "chsh -s /bin/sh root"] {
        let output = host.ssh("alice", command).fails();
        assert!(!output.stderr.contains("not found") && !output.stdout.contains("uid=0"), "{output}");
    }
}

#[test]
fn a_hard_link_to_a_file_of_the_layers_changes_no_layer() {
    lab::require_root!();
    let host = host("root = true");
    let before = digest(&host, "/srv/overlay/lowerdirs/debian/etc");
    host.ssh("alice", "sudo ln /etc/shadow /var/tmp/linked && sudo sh -c 'echo planted >> /var/tmp/linked' && sudo chmod 666 /var/tmp/linked").ok();
    assert_eq!(digest(&host, "/srv/overlay/lowerdirs/debian/etc"), before);
    host.ssh("bob", "cat /srv/overlay/upperdirs/alice/var/tmp/linked").fails();
    host.root("grep planted /etc/shadow").fails();
}

/// A library that writes down, each time that it is loaded, with which rights: the first line of the id map, the effective
/// capabilities, and whether the host's files are in sight.
const LIBRARY: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
__attribute__((constructor)) static void note(void) {
    char map[4096] = "", line[256];
    unsigned inside = 1, outside = 0, header[2] = {0x20080522, 0}, sets[6] = {0};
    int file = open("/proc/self/uid_map", O_RDONLY);
    if (file >= 0) { (void) !read(file, map, sizeof map - 1); close(file); }
    sscanf(map, "%u %u", &inside, &outside);
    syscall(SYS_capget, header, sets);
    snprintf(line, sizeof line, "%u:%u %x%08x %d\n", inside, outside, sets[3], sets[0], access("/srv/overlay", F_OK) == 0);
    file = open("/tmp/loaded", O_WRONLY | O_APPEND);
    if (file >= 0) { (void) !write(file, line, strlen(line)); close(file); }
}
"#;

/// What root of a jail can have at most (`src/jail/confine.rs`).
const MOST: u64 = 0xa004_25fb;

#[test]
fn libraries_that_root_of_a_jail_plants_are_loaded_by_nobody_outside() {
    lab::require_root!();
    let host = host("root = true");
    host.root("echo session required pam_ojail.so >> /etc/pam.d/su").ok();
    let [source, library] = ["planted.c", "planted.so"].map(|name| host.path("/home/alice").join(name));
    std::fs::write(&source, LIBRARY).unwrap();
    let cc =
        std::process::Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(cc.is_ok_and(|status| status.success()), "cc works");
    let plant = r#"
        set -e
        umask 0
        : > /tmp/loaded
        sudo cp planted.so "$(dirname "$(ldd /bin/true | sed -n 's|.* => \(/.*/\)libc.so.6.*|\1libc|p')")/libnss_planted.so.2"
        sudo sed -i -E 's/^(passwd|group|shadow|hosts):.*/\1: planted files/' /etc/nsswitch.conf
        echo "$PWD/planted.so" | sudo tee /etc/ld.so.preload
    "#;
    host.ssh("alice", plant).ok();
    for _ in 0..2 {
        host.ssh("alice", "id").ok();
        host.ssh("alice", "id").tty().ok();
        host.sftp("alice", "ls\n").ok();
        host.root("su - alice -c id").ok();
        host.root("ojail enter alice -- id").ok();
    }
    let loaded = host.ssh("alice", "cat /tmp/loaded").text();
    assert!(loaded.lines().count() > 10, "{loaded}");
    let first = host.root("sed -n 's/^alice:\\([0-9]*\\):.*/\\1/p' /etc/subuid").text();
    // A login process itself is in the host's PID namespace and has no /proc/self in here.
    let maps = [format!("0:{first}"), "1:0".to_owned()];
    for line in loaded.lines() {
        let [map, capabilities, outside] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        assert!(maps.iter().any(|known| known == map), "{line}");
        assert_eq!(u64::from_str_radix(capabilities, 16).unwrap() & !MOST, 0, "{line}");
        assert_eq!(outside, "0", "{line}");
    }
    assert!(!host.path("/tmp/loaded").exists(), "it was loaded on the host");
    assert!(init(&host, "alice") > 0);
}
