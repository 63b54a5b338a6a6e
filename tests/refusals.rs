//! A jail that cannot be made exactly as configured is refused: nothing runs on the host, the user reads one calm
//! line, the administrator the whole reason, and nothing half made is left.

#[path = "common/mod.rs"]
mod common;

use std::fs;
use std::time::Duration;

use lab::{Host, Output, Setup, User};

use common::{SOON, config, corner, digest, logged, namespaces, remains, runs, setup, until};

/// What the user reads.
const REFUSAL: &str = "This host could not open your session. Please tell its administrator.";

/// One key for everybody, root too, that is not in any home: some tests take homes away.
fn keyed(setup: Setup) -> Host {
    let host = setup
        .user("mallory")
        .sshd_config("AuthorizedKeysFile /etc/ssh/authorized_keys\nMaxStartups 100")
        .start();
    host.root("cp /root/.ssh/id_ed25519.pub /etc/ssh/authorized_keys").ok();
    host
}

/// Tries a login that must be refused, with all of these words in the log. Returns the line.
#[track_caller]
fn is_refused(host: &Host, user: &str, words: &[&str], case: &str) -> String {
    let upper = host.path("/srv/overlay/upperdirs").join(user);
    let had_upper = upper.exists();
    let mounts = host.mountinfo();
    let running = namespaces(host);
    let before = refusals(host).len();

    let output = host
        .exec(["ssh", "-l", user, "127.0.0.1", "touch /tmp/ran /var/tmp/ran; echo ran"])
        .within(Duration::from_secs(20))
        .run();
    assert_eq!(output.code(), Some(254), "{case}: {output}");
    assert!(output.text().ends_with(REFUSAL) && !output.stdout.contains("ran\n"), "{case}: {output}");
    for path in ["/tmp/ran", "/var/tmp/ran"] {
        assert!(!host.path(path).exists(), "{case}: the command ran on the host");
    }

    until("the refusal is in the log", SOON, || refusals(host).len() > before);
    let lines = refusals(host).split_off(before);
    assert_eq!(lines.len(), 1, "{case}: {lines:#?}");
    for word in words {
        assert!(lines[0].contains(word), "{case}: {word:?} is not in {}", lines[0]);
    }
    // And no further: the reason is the administrator's.
    assert!(!output.stdout.contains(words[0]), "{case}: {output}");

    assert_eq!(host.mountinfo(), mounts, "{case}: the host's mount table has changed");
    // The jail half was killed, if it had come so far, and takes its moment to end.
    until(&format!("{case}: no process is left"), SOON, || namespaces(host) == running);
    assert_eq!(corner(host, user), "", "{case}");
    // Where the raise itself fails there may be an upper already, but nothing in it.
    let made = fs::read_dir(&upper).is_ok_and(|mut entries| entries.next().is_some());
    assert!(had_upper || !made, "{case}: something is in the upper");
    lines.into_iter().next().unwrap_or_default()
}

fn refusals(host: &Host) -> Vec<String> {
    host.log().into_iter().filter(|line| line.contains("event=refused")).collect()
}

#[track_caller]
fn works(host: &Host, user: &str) {
    assert_eq!(host.ssh(user, "cat /proc/1/comm").text(), "ojail-init");
    host.root("ojail stop $1").arg(user).ok();
}

#[test]
fn a_broken_configuration_refuses_everybody_but_root() {
    lab::require_root!();
    let host = keyed(setup(""));
    let good = config("");
    let storage = |line: &str| format!("[storage]\n{line}\n{good}");
    let profile = |line: &str| config(line);
    let file = "/etc/ojail/ojail.toml";
    for (case, text, words) in [
        ("empty", String::new(), vec!["is empty"]),
        ("cut short", good[..good.len() - 4].to_owned(), vec!["ojail.toml:7"]),
        (
            "a missing layer",
            good.replace("[\"debian\"]", "[\"debain\"]"),
            vec!["layer \\\"debain\\\"", "/srv/overlay/lowerdirs/debain"],
        ),
        (
            "a layer twice",
            good.replace("[\"debian\"]", "[\"debian\", \"debian\"]"),
            vec!["ojail.toml:2: profiles.debian.layers", "named twice"],
        ),
        ("a colon", storage("upperdirs = '/srv/a:b'"), vec!["ojail.toml:2: storage.upperdirs", "':'"]),
        ("a comma", storage("workdirs = '/srv/a,b'"), vec!["ojail.toml:2: storage.workdirs", "','"]),
        (
            "a backslash",
            storage("lowerdirs = '/srv/a\\b'"),
            vec!["ojail.toml:2: storage.lowerdirs", "overlayfs would misread"],
        ),
        (
            "a relative path",
            storage("upperdirs = 'srv/up'"),
            vec!["ojail.toml:2: storage.upperdirs", "not an absolute path"],
        ),
        (
            "a path with dots",
            storage("upperdirs = '/srv/../up'"),
            vec!["ojail.toml:2: storage.upperdirs", "write the path out"],
        ),
        (
            "overlapping directories",
            storage("workdirs = '/srv/overlay/upperdirs/work'"),
            vec!["storage", "overlap"],
        ),
        (
            "an unknown key",
            profile("hmoe = \"host\""),
            vec!["ojail.toml:3: profiles.debian.hmoe", "unknown key `hmoe`"],
        ),
        (
            "a limit of nothing",
            profile("limits = { memory = \"0\" }"),
            vec!["ojail.toml:3", "is too little to log in with"],
        ),
        (
            "an unknown system call",
            profile("seccomp = { deny = [\"ptraec\"] }"),
            vec!["ojail.toml:3", "is it ptrace?"],
        ),
        ("an unknown network", profile("network = \"bridge\""), vec!["ojail.toml:3", "unknown network"]),
        (
            "a low port",
            profile("network = \"private\"\npublish = [\"80:80/tcp\"]"),
            vec!["ojail.toml:4", "the host's port 80"],
        ),
        ("a name with a bell", profile("hostname = \"a\\u0007\""), vec!["ojail.toml:3", "is no host name"]),
        (
            "a retention in a profile",
            profile("reset = { keep = \"7d\" }"),
            vec!["ojail.toml:3", "unknown key `reset`"],
        ),
        ("a wrong type", profile("root = \"yes\""), vec!["ojail.toml:3: profiles.debian.root"]),
        (
            "a wrong duration",
            profile("keep_warm = \"5\""),
            vec!["ojail.toml:3: profiles.debian.keep_warm", "no duration"],
        ),
        (
            "an unknown profile",
            good.replace("profile = \"debian\"", "profile = \"debain\""),
            vec!["ojail.toml:7", "no profile \\\"debain\\\""],
        ),
        (
            "a rule without a verdict",
            good.replace("profile = \"debian\"", ""),
            vec!["ojail.toml:5", "either `profile` or `exempt"],
        ),
        (
            "an unknown group",
            profile("groups = [\"nosuch\"]"),
            vec!["profile debian", "\\\"nosuch\\\"", "does not exist"],
        ),
        (
            "a missing bind source",
            profile("binds = [{ source = '/srv/none', target = '/data' }]"),
            vec!["/srv/none"],
        ),
        (
            "a bind source that is a link",
            profile("binds = [{ source = '/bin', target = '/data' }]"),
            vec!["/bin", "symbolic link"],
        ),
        (
            "a bind over the root",
            profile("binds = [{ source = '/srv', target = '/' }]"),
            vec!["ojail.toml:3", "root of the jail"],
        ),
        (
            "an upper on an overlay",
            storage("upperdirs = '/opt/u'\nworkdirs = '/opt/w'"),
            vec!["/opt/u", "is on an overlay"],
        ),
    ] {
        host.write(file, 0o644, &text);
        // Side by side, since most of a login is waiting.
        let root = host.ssh("root", "cat /proc/1/comm").spawn();
        is_refused(&host, "alice", &words, case);
        assert_eq!(root.finish().ok().text(), "sh", "{case}");
    }
    host.write(file, 0o644, "nonsense");
    is_refused(&host, "bob", &["ojail.toml:1"], "a user who is not jailed, but who knows that?");
    host.write(file, 0o644, &good);
    assert_eq!(host.ssh("bob", "cat /proc/1/comm").text(), "sh");
    works(&host, "alice");
}

#[test]
fn what_others_could_have_written_is_not_trusted() {
    lab::require_root!();
    let host = keyed(setup(""));
    let conf = "/etc/ojail/ojail.toml";
    for (case, breaks, mends, words) in [
        (
            "a configuration that the world can write",
            "chmod 666 /etc/ojail/ojail.toml",
            "chmod 644 /etc/ojail/ojail.toml",
            [conf, "can be written by others"],
        ),
        (
            "one that a group can write",
            "chmod 664 /etc/ojail/ojail.toml",
            "chmod 644 /etc/ojail/ojail.toml",
            [conf, "can be written by others"],
        ),
        (
            "one of somebody's",
            "chown alice /etc/ojail/ojail.toml",
            "chown root /etc/ojail/ojail.toml",
            [conf, "belongs to uid"],
        ),
        (
            "its directory open",
            "chmod 777 /etc/ojail",
            "chmod 755 /etc/ojail",
            ["/etc/ojail ", "can be written by others"],
        ),
        (
            "a link",
            "cd /etc/ojail; mv ojail.toml real; ln -s real ojail.toml",
            "cd /etc/ojail; mv real ojail.toml",
            [conf, "is a symbolic link"],
        ),
        (
            "a fifo",
            "cd /etc/ojail; mv ojail.toml real; mkfifo ojail.toml",
            "cd /etc/ojail; mv real ojail.toml",
            [conf, "is not a plain file"],
        ),
        (
            "none",
            "cd /etc/ojail; mv ojail.toml real",
            "cd /etc/ojail; mv real ojail.toml",
            [conf, "cannot be opened"],
        ),
        (
            "layers that all can enter",
            "chmod 755 /srv/overlay/lowerdirs",
            "chmod 700 /srv/overlay/lowerdirs",
            ["/srv/overlay/lowerdirs", "chmod 0700"],
        ),
        (
            "uppers that all can enter",
            "install -d -m 755 /srv/overlay/upperdirs",
            "chmod 700 /srv/overlay/upperdirs",
            ["/srv/overlay/upperdirs", "chmod 0700"],
        ),
        (
            "uppers of somebody's",
            "chown alice /srv/overlay/upperdirs",
            "chown root /srv/overlay/upperdirs",
            ["/srv/overlay/upperdirs", "belongs to uid"],
        ),
        (
            "uppers elsewhere",
            "cd /srv/overlay; mv upperdirs u; ln -s u upperdirs",
            "cd /srv/overlay; rm upperdirs; mv u upperdirs",
            ["/srv/overlay/upperdirs", "is a symbolic link"],
        ),
        (
            "an upper of the user's own",
            "install -d -o alice /srv/overlay/upperdirs/alice",
            "rmdir /srv/overlay/upperdirs/alice",
            ["/srv/overlay/upperdirs/alice", "belongs to uid"],
        ),
        (
            "an upper that is a link",
            "ln -s / /srv/overlay/upperdirs/alice",
            "rm /srv/overlay/upperdirs/alice",
            ["/srv/overlay/upperdirs/alice", "is not a directory"],
        ),
    ] {
        host.root(breaks).ok();
        // Side by side, since most of a login is waiting.
        let root = host.ssh("root", "cat /proc/1/comm").spawn();
        is_refused(&host, "alice", &words, case);
        assert_eq!(root.finish().ok().text(), "sh", "{case}");
        host.root(mends).ok();
    }
    works(&host, "alice");
}

#[test]
fn what_a_jail_needs_and_does_not_find_refuses_it() {
    lab::require_root!();
    let host = keyed(setup(""));
    for (case, breaks, mends, words) in [
        (
            "no ojail-init",
            "cd /usr/libexec/ojail; mv ojail-init x",
            "cd /usr/libexec/ojail; mv x ojail-init",
            vec!["/usr/libexec/ojail/ojail-init"],
        ),
        (
            "another ojail-init",
            "cd /usr/libexec/ojail; mv ojail-init x; cp /bin/true ojail-init",
            "cd /usr/libexec/ojail; mv x ojail-init",
            vec!["/usr/libexec/ojail/ojail-init"],
        ),
        (
            "no ojail-shell",
            "cd /usr/bin; mv ojail-shell x",
            "cd /usr/bin; mv x ojail-shell",
            vec!["/usr/bin/ojail-shell"],
        ),
        ("no home", "mv /home/alice /home/x", "mv /home/x /home/alice", vec!["/home/alice"]),
        (
            "a home of another's",
            "chown bob /home/alice",
            "chown alice /home/alice",
            vec!["/home/alice", "belongs to uid"],
        ),
        (
            "a home that leads to another's",
            "cd /home; mv alice x; ln -s bob alice",
            "cd /home; rm alice; mv x alice",
            vec!["/home/alice", "belongs to uid"],
        ),
        (
            "a device that is another",
            "cd /dev; mv full x; cp -a zero full",
            "cd /dev; rm full; mv x full",
            vec!["/dev/full", "1:7"],
        ),
        (
            "a layer that others can write",
            "mkdir -m 777 /srv/overlay/lowerdirs/open; sed -i s/debian..$/open\\\"]/ /etc/ojail/ojail.toml",
            "sed -i s/open..$/debian\\\"]/ /etc/ojail/ojail.toml",
            vec!["layer \\\"open\\\"", "can be written by others"],
        ),
        (
            "a layer that is no image",
            "cd /srv/overlay/lowerdirs; head -c 1000000 /dev/zero > bad.erofs; sed -i s/debian..$/bad\\\"]/ /etc/ojail/ojail.toml",
            "sed -i s/bad..$/debian\\\"]/ /etc/ojail/ojail.toml",
            vec!["layer \\\"bad\\\"", "is no erofs image"],
        ),
    ] {
        host.root(breaks).ok();
        is_refused(&host, "alice", &words, case);
        host.root(mends).ok();
    }
    works(&host, "alice");
}

#[test]
fn work_directories_on_another_file_system_refuse() {
    lab::require_root!();
    let host = keyed(setup("").config(&format!("[storage]\nworkdirs = '/mnt/work'\n{}", config(""))));
    host.root("mount -t tmpfs -o mode=700 tmpfs /mnt; mkdir -m 700 /mnt/work").ok();
    is_refused(&host, "alice", &["/mnt/work", "same mount as /srv/overlay/upperdirs"], "another file system");
}

#[test]
fn a_disk_without_space_or_inodes_refuses_until_there_is_some() {
    lab::require_root!();
    lab::require!(lab::must::loop_devices());
    let fills = [
        (
            "no space",
            "dd if=/dev/zero of=/srv/overlay/fill bs=64k 2>/dev/null; while echo x >> /srv/overlay/rest; do :; done 2>/dev/null",
            "No space left",
        ),
        (
            "no inodes",
            "mkdir /srv/overlay/many; cd /srv/overlay/many; i=0; while touch $i.0 $i.1 $i.2 $i.3 $i.4 $i.5 $i.6 $i.7 $i.8 $i.9; do i=$((i+1)); done 2>/dev/null",
            "No space left",
        ),
    ];
    for (case, fill, words) in fills {
        let host = keyed(setup("").user(User::new("anna").groups(["jailed"])).small_disk("16M"));
        host.ssh("anna", "echo kept > /var/tmp/kept").ok();
        let inside = host.ssh("anna", "echo inside; read x; cat /var/tmp/kept").spawn();
        inside.wait_for("inside");
        host.root(fill).run();
        is_refused(&host, "alice", &[words], case);
        // Who is in stays in, and others get in.
        assert_eq!(host.ssh("anna", "cat /var/tmp/kept").text(), "kept", "{case}");
        assert_eq!(inside.finish().ok().text(), "inside\nkept", "{case}");
        // A jail that must be raised may need a little room, or not; half of one is never there.
        host.root("ojail stop anna").ok();
        let output = host.ssh("anna", "cat /proc/1/comm /var/tmp/kept").run();
        assert!(output.text() == "ojail-init\nkept" || output.text().ends_with(REFUSAL), "{case}: {output}");
        // The administrator can clear the victim's changes.
        host.root("ojail stop anna; rm -r /srv/overlay/fill /srv/overlay/rest /srv/overlay/many").run();
        assert_eq!(host.ssh("anna", "cat /var/tmp/kept").text(), "kept", "{case}");
        works(&host, "alice");
    }
}

#[test]
fn names_that_are_no_file_names_and_accounts_of_the_system_are_refused() {
    lab::require_root!();
    let host = keyed(setup("").user(User::new("daemonic").uid(150).groups(["jailed"])));
    let gid = host.root("getent group jailed | cut -d: -f3").text();
    let long = "x".repeat(65);
    let names = ["a b", "u@realm", "DOM+u", "%u", "mäx", "..", ".x", &long];
    for (number, name) in names.iter().enumerate() {
        let uid = 3000 + number;
        host.root("echo \"$1:x:$2:$3::/home/alice:/bin/bash\" >> /etc/passwd; echo \"$1:*:20000:0:99999:7:::\" >> /etc/shadow")
            .arg(name)
            .arg(uid.to_string())
            .arg(&gid)
            .ok();
        let line = is_refused(&host, name, &["cannot have a jail"], name);
        assert!(
            line.contains(&name.escape_default().to_string().escape_default().to_string())
                || line.contains(name),
            "{line}"
        );
    }
    let made = host
        .root("find /srv/overlay/upperdirs /var/lib/ojail /run/ojail/jails -mindepth 1 2>/dev/null")
        .run();
    assert_eq!(made.text(), "", "{made}");
    is_refused(&host, "daemonic", &["daemonic has uid 150, below ids.min_uid = 1000"], "a system account");
    // The overflow id is what unmapped ids look like.
    host.root("usermod -u 65534 -o alice; chown -R 65534 /home/alice").ok();
    is_refused(&host, "alice", &["65534", "overflow id"], "nobody's uid");
    host.root("usermod -u 1234 -g 0 alice; chown -R 1234 /home/alice").ok();
    is_refused(&host, "alice", &["gid 0", "root's group"], "root's group");
}

#[test]
fn a_refused_session_forwards_nothing() {
    lab::require_root!();
    let host = keyed(setup(""));
    host.write("/root/secret", 0o600, "of the host's network\n");
    let server =
        host.exec(["socat", "-u", "TCP-LISTEN:7001,bind=127.0.0.1,fork,reuseaddr", "OPEN:/dev/null"]).spawn();
    let answer = host
        .exec(["socat", "TCP-LISTEN:7002,bind=127.0.0.1,fork,reuseaddr", "EXEC:cat /root/secret"])
        .spawn();
    let fetch = |user: &str, port: &str| {
        let forwards = host
            .exec([
                "ssh",
                "-N",
                "-oExitOnForwardFailure=yes",
                "-L",
                &format!("{port}:127.0.0.1:7002"),
                "-R",
                &format!("1{port}:127.0.0.1:7002"),
            ])
            .arg(format!("{user}@127.0.0.1"))
            .spawn();
        let listens = format!("until ss -ltn | grep -q :{port}; do :; done; sleep 0.3");
        host.root(&listens).ok();
        let one = host.root(&format!("timeout 3 socat -u TCP:127.0.0.1:{port} -")).run().text();
        let other = host.root(&format!("timeout 3 socat -u TCP:127.0.0.1:1{port} -")).run().text();
        forwards.kill();
        (one, other)
    };
    let secret = || "of the host's network".to_owned();
    // bob's forwards show that it would be seen.
    assert_eq!(fetch("bob", "7003"), (secret(), secret()));
    host.write("/etc/ojail/ojail.toml", 0o644, "nonsense");
    assert_eq!(fetch("alice", "7004"), (String::new(), String::new()));
    let output = host.ssh("alice", "").arg("-W").arg("127.0.0.1:7002").run();
    assert!(!output.stdout.contains("network"), "{output}");
    host.sftp("alice", "ls /\n").fails();
    server.kill();
    answer.kill();
}

/// A login that may be refused, but not be anything between that and right.
#[track_caller]
fn is_right_or_refused(host: &Host, case: &str) -> Output {
    let output = host
        .ssh("alice", "cat /proc/1/comm && cat /var/tmp/kept && touch /tmp/ran")
        .within(Duration::from_secs(25))
        .run();
    let right = output.status.success() && output.text().ends_with("ojail-init\nkept");
    assert!(right || !output.status.success(), "{case}: {output}");
    assert!(!host.path("/tmp/ran").exists(), "{case}: it ran on the host");
    output
}

#[test]
fn limits_and_umask_of_the_login_process_do_not_reach_the_jails_pid_1() {
    lab::require_root!();
    let host = keyed(
        setup("")
            .pam_line("sshd", "session optional pam_umask.so umask=0000")
            .pam_line("sshd", "session required pam_ojail.so"),
    );
    // The line of pam_ojail that `setup` made comes before the one of pam_umask: away with it.
    host.root("sed -i '0,/pam_ojail/{/pam_ojail/d}' /etc/pam.d/sshd; cat /etc/pam.d/sshd").ok();
    host.ssh("alice", "umask; echo kept > /var/tmp/kept").ok();
    let modes = host.root(
        "stat -c '%a %n' /run/ojail /run/ojail/jails/alice /run/ojail/jails/alice/* /var/lib/ojail/users/* \
         /srv/overlay/upperdirs /srv/overlay/upperdirs/alice /srv/overlay/workdirs /srv/overlay/workdirs/alice",
    );
    for line in modes.text().lines() {
        let (mode, path) = line.split_once(' ').unwrap();
        let expected = match path {
            "/srv/overlay/upperdirs/alice" => "755",
            path if ["alive", "lock", "layers", ".toml"].iter().any(|end| path.ends_with(end)) => "600",
            _ => "700",
        };
        assert_eq!(mode, expected, "{path}");
    }
    // Host root in a container may not be allowed to raise what was lowered.
    let raises = host.root("ulimit -u 100 && ulimit -u unlimited").run().status.success();
    let kept = digest(&host, "/srv/overlay/upperdirs/alice/var");
    for limit in [
        "nofile 64",
        "nofile 8",
        "fsize 0",
        "nproc 1",
        "nproc 0",
        "as 100000",
        "data 1000",
        "core 0",
        "cpu 1",
        "memlock 0",
    ] {
        host.root("ojail stop alice").ok();
        host.write(
            "/etc/security/limits.d/lab.conf",
            0o644,
            &format!("alice hard {limit}\nalice soft {limit}\n"),
        );
        is_right_or_refused(&host, limit);
        if raises && runs(&host, "alice") {
            let pid = common::init(&host, "alice");
            let limits = host.root(&format!("cat /proc/{pid}/limits")).text();
            for name in
                ["Max file size", "Max processes", "Max address space", "Max data size", "Max cpu time"]
            {
                let line = limits.lines().find(|line| line.starts_with(name)).unwrap_or_default();
                assert!(line.contains("unlimited"), "{limit}: {line}");
            }
        }
        host.root("rm /etc/security/limits.d/lab.conf").ok();
        assert_eq!(host.ssh("alice", "cat /var/tmp/kept").text(), "kept", "after {limit}");
        assert_eq!(digest(&host, "/srv/overlay/upperdirs/alice/var"), kept, "after {limit}");
    }
    // Where nothing was kept of the user yet, its first file is written under the limit.
    for limit in ["fsize 0", "nofile 16"] {
        host.root("ojail stop alice; rm -r /srv/overlay/upperdirs/alice /var/lib/ojail/users").ok();
        host.write("/etc/security/limits.d/lab.conf", 0o644, &format!("alice hard {limit}\n"));
        let output = is_right_or_refused(&host, &format!("{limit} at a first login"));
        if !output.stdout.contains("ojail-init") {
            assert!(limit == "nofile 16" || !raises, "{limit}: {output}");
            host.wait_for_log("event=refused user=alice");
        }
        host.root("rm /etc/security/limits.d/lab.conf").ok();
        works(&host, "alice");
        // Whatever became of that login: what is there of the user is as after any other.
        let modes = host.root(
            "stat -c '%a %u' /srv/overlay/upperdirs/alice /srv/overlay/workdirs/alice /var/lib/ojail/users/alice.toml",
        );
        assert_eq!(modes.text(), "755 0\n700 0\n600 0", "{limit}");
    }
}

/// ojail-init, but something happens at one of its system calls.
fn under_strace(host: &Host, what: &str) {
    let script = format!(
        "#!/bin/sh\nexec /usr/bin/strace -D -f -qq -o /dev/null -e trace=all -e '{what}' /usr/libexec/ojail/real/ojail-init\n"
    );
    host.write("/usr/libexec/ojail/ojail-init", 0o755, &script);
}

fn with_something_kept(host: &Host) -> String {
    host.ssh("alice", "echo kept > /var/tmp/kept").ok();
    host.root("ojail stop alice; cd /usr/libexec/ojail; mkdir real; cp ojail-init real").ok();
    digest(host, "/srv/overlay/upperdirs/alice")
}

#[track_caller]
fn is_whole(host: &Host, kept: &str, case: &str) {
    host.root("cd /usr/libexec/ojail; cp real/ojail-init new; mv new ojail-init").ok();
    assert_eq!(
        host.ssh("alice", "cat /proc/1/comm /var/tmp/kept").text(),
        "ojail-init\nkept",
        "after {case}"
    );
    host.root("ojail stop alice").ok();
    assert_eq!(remains(host, "alice"), "", "after {case}");
    assert_eq!(digest(host, "/srv/overlay/upperdirs/alice"), kept, "after {case}");
}

#[test]
fn a_kill_of_ojail_init_at_any_system_call_leaves_the_upper_whole() {
    lab::require_root!();
    let host = keyed(setup(""));
    let kept = with_something_kept(&host);
    let mounts = host.mountinfo();
    let (mut refused, mut right) = (0, 0);
    for number in (1..60).step_by(6).chain((60..420).step_by(15)).chain([2000]) {
        under_strace(&host, &format!("inject=all:signal=SIGKILL:when={number}"));
        let case = format!("a kill at system call {number}");
        if is_right_or_refused(&host, &case).status.success() {
            right += 1;
        } else {
            refused += 1;
        }
        assert_eq!(host.mountinfo(), mounts, "{case}");
        host.root("ojail stop alice").run();
        if number % 2 == 0 {
            is_whole(&host, &kept, &case);
        }
    }
    is_whole(&host, &kept, "all");
    assert!(
        refused > 10 && right > 0,
        "{refused} refused, {right} right: the kills are not where they should be"
    );
}

#[test]
fn an_error_of_the_kernel_at_any_step_refuses_with_a_sentence() {
    lab::require_root!();
    let host = keyed(setup(""));
    let kept = with_something_kept(&host);
    for (call, error, words) in [
        ("clone", "EAGAIN", "Resource temporarily unavailable"),
        ("clone", "ENOSPC", "No space left"),
        ("unshare", "EPERM", "Operation not permitted"),
        ("openat2", "EMFILE", "Too many open files"),
        ("open_tree", "ENFILE", "Too many open files"),
        ("mount_setattr", "EINVAL", "Invalid argument"),
        ("fsopen", "ENOMEM", "Cannot allocate memory"),
        ("fsmount", "EIO", "Input/output error"),
        ("move_mount", "EACCES", "Permission denied"),
        ("mkdirat", "EROFS", "Read-only file system"),
        ("pivot_root", "EBUSY", "Device or resource busy"),
        ("umount2", "EBUSY", "Device or resource busy"),
        ("setresuid", "EAGAIN", "Resource temporarily unavailable"),
        ("setgroups", "EPERM", "Operation not permitted"),
        ("capset", "EPERM", "Operation not permitted"),
        ("bind", "ENOSPC", "No space left"),
        ("listen", "EADDRINUSE", "Address already in use"),
        ("fchown", "EDQUOT", "quota exceeded"),
    ] {
        under_strace(&host, &format!("inject={call}:error={error}"));
        is_refused(&host, "alice", &[words], &format!("{error} from {call}"));
    }
    is_whole(&host, &kept, "all errors");
    assert_eq!(logged(&host, "event=jail-raised"), 2);
}

#[test]
fn a_rule_for_a_group_that_is_not_there_exempts_nobody() {
    lab::require_root!();
    let host = keyed(setup("").config(&config("").replace("group = \"jailed\"", "group = \"jialed\"")));
    for user in ["alice", "bob"] {
        is_refused(&host, user, &["names the group", "jialed"], "a group that does not exist");
    }
    assert_eq!(host.ssh("root", "echo in").text(), "in");
    let said = host.root("ojail check").fails();
    assert!(said.stdout.contains("names the group \"jialed\", which does not exist"), "{said}");

    // Whom a rule before names needs no answer, and a rule for somebody else needs none either.
    let rules = "[[rules]]\nuser = \"mallory\"\ngroup = \"jialed\"\nexempt = true\n\n\
                 [[rules]]\nuser = \"alice\"\nprofile = \"debian\"\n\n[[rules]]\ngroup = \"jialed\"";
    let text = config("").replace("[[rules]]\ngroup = \"jailed\"", rules);
    assert!(text.contains("mallory"), "{text}");
    fs::write(host.path("/etc/ojail/ojail.toml"), text).unwrap();
    works(&host, "alice");
    is_refused(&host, "bob", &["names the group", "jialed"], "a group that does not exist");
    is_refused(&host, "mallory", &["names the group", "jialed"], "a group that does not exist");
}

#[test]
fn of_two_groups_with_one_name_a_rule_is_for_both() {
    lab::require_root!();
    // As a directory service may have a name that the host has for another: by name, only the first is found.
    let host = keyed(setup(""));
    host.root("sed -i '1i jailed:x:4999:' /etc/group && getent group jailed").ok();
    assert_eq!(host.root("getent group jailed").text(), "jailed:x:4999:");
    works(&host, "alice");
    assert_eq!(host.ssh("bob", "cat /proc/1/comm").text(), host.root("cat /proc/1/comm").text());
}
