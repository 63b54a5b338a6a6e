//! What a user with root in the jail may have left in the upper: the next raise walks over all of it, as root of the
//! jail and never outside.

use std::thread;
use std::time::Duration;

use lab::{Host, User};

use crate::common::{SOON, corner, digest, host, logged, setup};

/// What can be in the place of something else; `$1` is the place.
const KINDS: [(&str, &str); 7] = [
    ("a link to /", "ln -s / $1"),
    ("a link up", "ln -s ../../../../../../etc $1"),
    ("a fifo", "mkfifo $1"),
    ("a file", "echo planted > $1"),
    ("a directory", "mkdir $1"),
    ("a hole", "mknod $1 c 0 0"),
    (
        "a socket",
        "python3 -c 'import os, socket, sys; os.chdir(os.path.dirname(sys.argv[1])); socket.socket(socket.AF_UNIX).bind(os.path.basename(sys.argv[1]))' $1",
    ),
];

const PLACES: [&str; 12] = [
    "/dev",
    "/proc",
    "/sys",
    "/tmp",
    "/run",
    "/home",
    "/home/alice",
    "/etc",
    "/etc/passwd",
    "/etc/resolv.conf",
    "/usr/bin",
    "/usr/bin/ojail-shell",
];

/// The places on the host where something could have been put by mistake.
const LISTING: &str = "find / /dev /usr/bin -maxdepth 1 -printf '%p %M %u %g %l\\n' | sort";

/// Plants one kind of thing in every place of one user's upper, and logs in after each. Returns where it worked.
fn plant_everywhere(host: &Host, user: &str, kind: &str, how: &str) -> Vec<&'static str> {
    // An absolute link leads nowhere from here: only the shell in the host sees it, and it does not follow.
    let plant = format!("set -e; cd /srv/overlay/upperdirs/{user}; set -- $PWD$1; mkdir -p ${{1%/*}}; {how}");
    let clear = format!("ojail stop {user}; cd /srv/overlay/upperdirs; rm -rf {user}; mkdir {user}");
    let refused = || logged(host, &format!("event=refused user={user} "));
    // sudo reads some of the places and would wait for a writer of the fifo; that is the user's own doing.
    let write = if kind == "a fifo" { "true" } else { "sudo -n touch /etc/made-inside /root/made-inside" };
    host.ssh(user, "true").ok();
    let mut worked = Vec::new();
    for place in PLACES {
        host.root(&clear).ok();
        host.root(&plant).arg(place.replace("alice", user)).ok();
        let before = refused();
        let output =
            host.ssh(user, &format!("cat /proc/1/comm; {write}")).within(Duration::from_secs(10)).run();
        let last = output.stdout.lines().next_back().unwrap_or_default();
        if refused() == before {
            // A jail without a shell or a library is the user's own doing; but it is a jail.
            assert!(last == "ojail-init" || !output.status.success(), "{place} is {kind}: {output}");
            worked.push(place);
        } else {
            assert_eq!(output.code(), Some(254), "{place} is {kind}: {output}");
            assert!(last.starts_with("This host could not open your session."), "{output}");
        }
        host.root(&clear).ok();
        assert_eq!(corner(host, user), "", "{place} is {kind}");
    }
    worked
}

#[test]
fn whatever_is_planted_a_login_works_or_is_refused_and_the_host_is_untouched() {
    lab::require_root!();
    let users: Vec<String> = (0..KINDS.len()).map(|number| format!("alice{number}")).collect();
    let mut setup = setup("root = true");
    for user in &users {
        setup = setup.user(User::new(user).groups(["jailed"]));
    }
    let host = setup.start();
    let seen =
        || (host.mountinfo(), digest(&host, "/etc"), digest(&host, "/home"), host.root(LISTING).text());
    let before = seen();

    // Side by side: most of a login is waiting.
    let worked: Vec<Vec<&str>> = thread::scope(|scope| {
        let all: Vec<_> = users
            .iter()
            .zip(KINDS)
            .map(|(user, (kind, how))| {
                let host = &host;
                scope.spawn(move || plant_everywhere(host, user, kind, how))
            })
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });

    assert!(seen() == before, "the host's mounts, /etc, homes, / or /dev have changed");
    assert!(!host.path("/root/made-inside").exists());
    for line in host.log().iter().filter(|line| line.contains("event=refused")) {
        assert!(line.contains("is unusable as a mount point") || line.contains("cannot be read"), "{line}");
    }
    // What the jail replaces or mounts anyway does no harm.
    for place in ["/sys", "/etc/resolv.conf"] {
        assert!(worked.iter().all(|worked| worked.contains(&place)), "{place}: {worked:?}");
    }
    assert!(worked.iter().any(|worked| !worked.contains(&"/proc")), "nothing was refused: {worked:?}");
}

#[test]
fn a_planted_account_file_never_makes_the_user_somebody_else() {
    lab::require_root!();
    let host = host("root = true");
    let uid = host.root("id -u alice").text();
    for line in [
        "alice:x:0:0::/root:/bin/bash",
        "alice:x:1:1::/:/bin/bash\nalice:x:2:2::/:/bin/sh",
        "",
        ":::::::",
        "alice",
    ] {
        host.ssh("alice", "sudo tee /etc/passwd >/dev/null")
            .stdin(format!("root:x:0:0:root:/root:/bin/bash\n{line}\n"))
            .ok();
        host.root("ojail stop alice").ok();
        assert_eq!(host.ssh("alice", "id -u; id -un").text(), format!("{uid}\nalice"), "{line}");
    }
}

#[test]
fn planted_overlay_attributes_give_nothing() {
    lab::require_root!();
    let host = host("root = true");
    host.ssh("alice", "mkdir /var/tmp/d; touch /var/tmp/d/f /var/tmp/f").ok();
    host.root("ojail stop alice").ok();
    let secret = "only root of the host reads this";
    host.write("/srv/overlay/secret", 0o600, secret);
    const ATTRIBUTES: &str = r#"
import os
os.chdir("/srv/overlay/upperdirs/alice/var/tmp")
for space in ("user", "trusted"):
    for path in ("d", "f", "d/f", "../..", "../../../../workdirs/alice"):
        for name, value in (("redirect", b"/../../secret"), ("opaque", b"y"), ("metacopy", b""), ("origin", b"\0" * 29),
                            ("whiteout", b"y"), ("impure", b"y"), ("upper", b"x"), ("nlink", b"U+5"), ("protattr", b"\xff")):
            os.setxattr(path, space + ".overlay." + name, value)
"#;
    host.exec(["python3", "-c", ATTRIBUTES]).ok();
    let mounts = host.mountinfo();
    let output = host
        .ssh(
            "alice",
            "cat /var/tmp/f /var/tmp/d/f; sudo find /var/tmp; sudo sh -c 'cat /var/tmp/*'; cat /proc/1/comm",
        )
        .within(Duration::from_secs(10))
        .run();
    assert!(!output.stdout.contains(secret), "{output}");
    if logged(&host, "event=refused") == 0 {
        assert!(output.stdout.contains("ojail-init"), "{output}");
    }
    assert_eq!(host.mountinfo(), mounts);
    host.root("ojail reset --force alice").ok();
    assert_eq!(host.ssh("alice", "cat /proc/1/comm").text(), "ojail-init");
}

#[test]
fn a_broken_name_service_in_a_jail_is_its_users_own_trouble() {
    lab::require_root!();
    let host = host("root = true");
    host.ssh("alice", "echo 'passwd: planted' | sudo tee /etc/nsswitch.conf").run();
    host.ssh("alice", "sudo -n cp /bin/true $(echo /lib/*-linux-gnu)/libnss_planted.so.2").run();
    host.root("ojail stop alice").ok();
    let output = host.ssh("alice", "id -u; cat /proc/1/comm").within(SOON).run();
    assert!(!output.status.success() || output.stdout.contains("ojail-init"), "{output}");
    assert_eq!(host.ssh("bob", "id -un").text(), "bob");
    host.root("ojail reset --force alice").ok();
    assert_eq!(host.ssh("alice", "id -un; cat /proc/1/comm").text(), "alice\nojail-init");
}

#[test]
fn account_files_of_any_size_and_encoding_are_kept_to_the_byte() {
    lab::require_root!();
    let host = host("root = true");
    let upper = host.path("/srv/overlay/upperdirs/alice/etc/passwd");
    host.ssh("alice", "sudo useradd carol").ok();
    host.root("ojail stop alice").ok();
    let mut passwd = std::fs::read(&upper).unwrap();
    for number in 0..20_000 {
        passwd.extend(format!("user{number}:x:{}:100:J\u{f6}rg ", 2000 + number).bytes());
        passwd.extend(b"\xf6\xff, with a long name to fill the file:/home/x:/bin/sh\n");
    }
    assert!(passwd.len() > 1 << 20);
    std::fs::write(&upper, &passwd).unwrap();
    assert_eq!(host.ssh("alice", "tail -c 8 /etc/passwd").text(), "/bin/sh");
    assert_eq!(std::fs::read(&upper).unwrap(), passwd, "alice's line was there, so nothing is changed");
    host.root("ojail stop alice").ok();
    // Without her line, it is added, and all others stay.
    let own = passwd.split(|b| *b == b'\n').find(|line| line.starts_with(b"alice:")).unwrap().to_owned();
    let text: Vec<&[u8]> = passwd.split(|b| *b == b'\n').filter(|line| **line != own[..]).collect();
    std::fs::write(&upper, text.join(&b'\n')).unwrap();
    host.ssh("alice", "true").ok();
    let after = std::fs::read(&upper).unwrap();
    assert_eq!(after, [&text.join(&b'\n')[..], &own, b"\n"].concat());
}
