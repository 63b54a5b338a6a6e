//! Clearing a part, putting back, keeping for a while.

use std::fs;
use std::thread;
use std::time::Duration;

use lab::{Host, User};
use serde_json::Value;

use crate::common::{SOON, digest, host, runs, sessions, setup, until};

const UPPER: &str = "/srv/overlay/upperdirs/alice";

/// As root of the jail.
fn changes(host: &Host, script: &str) {
    host.ssh("alice", "sudo sh").stdin(format!("set -e\n{script}")).ok();
}

/// Everything that the merged jail shows below these paths, with all that `stat` and attributes tell. Inode numbers aside.
fn seen(host: &Host, paths: &str) -> String {
    let script = format!(
        "cd /; find {paths} -xdev -printf '%p %y %m %U %G %s %n %T@ %l\\n' 2>&1 | sort; \
         find {paths} -xdev -type f 2>/dev/null | sort | xargs -r sha256sum; \
         getfattr -Rhd -m - {paths} 2>/dev/null | sort"
    );
    host.ssh("alice", "sudo sh").stdin(&script).ok().text()
}

fn aside(host: &Host, user: &str) -> Vec<Value> {
    let list: Value =
        serde_json::from_str(&host.root(&format!("ojail reset --list {user} --json")).text()).unwrap();
    list["aside"].as_array().unwrap().clone()
}

const LIVED_IN: &str = r#"
    rm -r /usr/share/doc/bash
    rm -rf /usr/share/menu; mkdir -m 2750 /usr/share/menu; echo new > /usr/share/menu/new; chgrp games /usr/share/menu
    echo changed > /etc/issue; chmod 711 /etc
    mkdir -p /opt/app/data /opt/app/cache; echo 1 > /opt/app/data/one; ln /opt/app/data/one /opt/app/data/two
    chmod 4755 /opt/app/data/one; echo c > /opt/app/cache/c; ln -s / /opt/app/root; mkfifo /opt/app/fifo
    mkdir -p /var/lib/mine; chown games /var/lib/mine; touch -d 2001-01-01 /var/lib/mine
    rm /usr/share/common-licenses/GPL-3; touch -d 2002-02-02 /usr/share/common-licenses
"#;

#[test]
fn what_is_kept_looks_as_before_and_the_rest_as_the_layers_have_it() {
    lab::require_root!();
    let host = host("root = true");
    let layers = seen(&host, "/etc /opt /usr/share/doc /usr/share/menu /usr/share/common-licenses /var/lib");
    let of_layers = |path: &str| -> Vec<String> {
        layers.lines().filter(|line| line.contains(path)).map(str::to_owned).collect()
    };
    changes(&host, LIVED_IN);
    let kept = "/opt/app/data /usr/share/menu /var/lib/mine";
    let before = seen(&host, kept);
    let upper = digest(&host, UPPER);
    let said = host
        .root(
            "ojail reset --force alice --keep /opt/app/data --keep /usr/share/menu --keep /var/lib/mine \
               --keep /usr/share/doc/bash --keep /usr/share/nothing",
        )
        .text();
    assert!(said.contains("alice has not changed /usr/share/nothing."), "{said}");
    assert!(said.contains("but for /opt/app/data, /usr/share/menu, /var/lib/mine"), "{said}");
    assert_eq!(seen(&host, kept), before);
    host.ssh("alice", "ls /usr/share/doc/bash").fails();
    host.ssh("alice", "ls /opt/app/cache /opt/app/root").fails();
    let now = seen(&host, "/etc /usr/share/common-licenses");
    for path in [" /etc/issue", "etc/issue", "/usr/share/common-licenses"] {
        for line in of_layers(path) {
            assert!(now.contains(&line), "{line} is not as in the layers:\n{now}");
        }
    }
    assert!(now.lines().any(|line| line.starts_with("/etc d 755")), "{now}");

    // And back to the very upper that there was.
    host.root("ojail undo --force alice").ok();
    assert_eq!(digest(&host, UPPER), upper);
    let entries = aside(&host, "alice");
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0]["record"]["why"], "undo");
}

#[test]
fn only_what_is_named_is_cleared() {
    lab::require_root!();
    let host = host("root = true");
    let all = "/etc/issue /opt /usr/share/common-licenses /usr/share/doc/bash /usr/share/menu /var/lib/mine";
    let layers = seen(&host, "/usr/share/common-licenses /usr/share/doc/bash");
    changes(&host, LIVED_IN);
    let rest = "/etc/issue /usr/share/menu /var/lib/mine /opt/app/data /opt/app/fifo";
    let before = seen(&host, rest);
    let upper = digest(&host, UPPER);
    let said = host
        .root("ojail reset --force alice --only /usr/share/common-licenses --only /usr/share/doc/bash --only /opt/app/cache")
        .text();
    assert!(said.contains("at /usr/share/common-licenses, /usr/share/doc/bash, /opt/app/cache"), "{said}");
    assert_eq!(seen(&host, rest), before);
    assert_eq!(seen(&host, "/usr/share/common-licenses /usr/share/doc/bash"), layers);
    host.ssh("alice", "ls /opt/app/cache").fails();

    // What is inside of a directory made anew cannot come back alone.
    let two = seen(&host, all);
    let why = host.root("ojail reset --force alice --only /usr/share/menu/README").run();
    // The layer's directory may be empty: then there is nothing to be cleared, which is told.
    assert!(!why.status.success() || why.stdout.contains("has not changed"), "{why}");
    assert_eq!(
        seen(&host, "/usr/share/menu"),
        two.lines()
            .filter(|l| l.contains("/usr/share/menu"))
            .map(|l| format!("{l}\n"))
            .collect::<String>()
            .trim_end()
    );
    host.root("ojail undo --force alice").ok();
    let newest = &aside(&host, "alice")[0];
    assert_eq!(newest["record"]["why"], "undo");
    if aside(&host, "alice").len() == 1 {
        assert_eq!(digest(&host, UPPER), upper);
    }
}

#[test]
fn a_directory_that_was_made_anew_is_cleared_as_a_whole_or_not_at_all() {
    lab::require_root!();
    let host = host("root = true");
    changes(
        &host,
        "rm -rf /usr/share/common-licenses; mkdir /usr/share/common-licenses; echo own > /usr/share/common-licenses/GPL-3; echo o > /usr/share/common-licenses/own",
    );
    host.root("ojail stop alice").ok();
    let upper = digest(&host, UPPER);
    let why = host.root("ojail reset alice --only /usr/share/common-licenses/GPL-3").fails();
    assert!(
        why.stderr.contains(
            "--only /usr/share/common-licenses/GPL-3 cannot be cleared alone: the user has deleted \
                             /usr/share/common-licenses or made it anew; clear that"
        ),
        "{why}"
    );
    assert_eq!(digest(&host, UPPER), upper);
    assert!(aside(&host, "alice").is_empty());
    // One file of it is kept, and what is not in the layers is not made up.
    host.root(
        "ojail reset alice --keep /usr/share/common-licenses/GPL-3 --keep /usr/share/common-licenses/BSD",
    )
    .ok();
    assert_eq!(host.ssh("alice", "cat /usr/share/common-licenses/GPL-3").text(), "own");
    // Deleted with its directory, and still deleted.
    host.ssh("alice", "ls /usr/share/common-licenses/BSD").fails();
    host.ssh("alice", "ls /usr/share/common-licenses/GPL-2").ok();
    host.ssh("alice", "ls /usr/share/common-licenses/own").fails();
}

#[test]
fn paths_that_are_none_are_refused_and_change_nothing() {
    lab::require_root!();
    let host = host("root = true");
    changes(&host, "mkdir -p /opt/real; echo x > /opt/real/x; ln -s real /opt/link");
    host.root("ojail stop alice").ok();
    let upper = digest(&host, UPPER);
    for (arguments, words) in [
        ("--keep etc", "--keep etc is not absolute"),
        ("--only /etc/../..", "leads out of the jail"),
        ("--keep /", "--keep / is everything; there would be nothing to clear"),
        ("--only /", "--only / is everything; leave --only out"),
        ("--keep /opt/link/x", "leads over \"link\", which is a symbolic link inside; name the real path"),
        ("--only /opt/link/x", "leads over \"link\""),
        ("--only /bin/sh", "leads over \"bin\""),
    ] {
        let said = host.root(&format!("ojail reset alice {arguments}")).fails();
        assert!(said.stderr.contains(words) && said.stderr.lines().count() == 1, "{arguments}: {said}");
        assert_eq!(digest(&host, UPPER), upper, "{arguments}");
        assert!(aside(&host, "alice").is_empty(), "{arguments}");
    }
    for arguments in ["--keep /a --only /b", "--all", "--profile debian", "--list --force", "--json"] {
        assert_eq!(
            host.root(&format!("ojail reset alice {arguments}")).run().status.code(),
            Some(2),
            "{arguments}"
        );
    }
    assert!(
        host.root("ojail reset --all --profile nginx")
            .fails()
            .stderr
            .contains("there is no profile \"nginx\"")
    );
    assert!(host.root("ojail reset ../alice").fails().stderr.contains("cannot have a jail"));
    assert!(host.root("ojail undo alice").fails().stderr.contains("nothing is set aside for alice"));
    assert!(host.root("ojail undo alice yesterday").fails().stderr.contains("nothing called \"yesterday\""));
    assert!(host.root("ojail undo bob").fails().stderr.contains("nothing is set aside for bob"));
}

#[test]
fn a_dry_run_tells_and_does_nothing() {
    lab::require_root!();
    let host = host("");
    host.ssh("alice", "head -c 3000000 /dev/zero > /var/tmp/big").ok();
    let session = host.ssh("alice", "echo in; sleep 300").spawn();
    session.wait_for("in");
    let said = host.root("ojail reset --dry-run alice").text();
    assert!(said.contains("Refused at the moment: sessions of alice are open"), "{said}");
    assert!(said.contains("Would clear the changes in /srv/overlay/upperdirs/alice (2.8 MiB,"), "{said}");
    assert!(runs(&host, "alice") && aside(&host, "alice").is_empty());
    drop(session);
    assert!(host.root("ojail reset --dry-run bob").text().contains("bob has changed nothing"));
}

#[test]
fn all_of_a_profile_are_reset_and_one_who_is_in_does_not_stop_the_others() {
    lab::require_root!();
    let users = ["carol", "dave", "erin"];
    let mut setup = setup("");
    for user in users {
        setup = setup.user(User::new(user).groups(["jailed"]));
    }
    let host = setup.start();
    for user in ["alice", "carol", "dave", "erin"] {
        host.ssh(user, "echo x > /var/tmp/x").ok();
    }
    let session = host.ssh("dave", "echo in; sleep 300").spawn();
    session.wait_for("in");
    // sshd ends a moment after its client.
    until("the others have left", SOON, || {
        ["alice", "carol", "erin"].iter().all(|user| sessions(&host, user) == 0)
    });
    let said = host.root("ojail reset --all --profile debian").fails();
    assert_eq!(said.stdout.trim(), "3 cleared, 0 had changed nothing, 1 refused.", "{said}");
    assert!(said.stderr.starts_with("ojail: dave: sessions of dave are open"), "{said}");
    assert!(host.path("/srv/overlay/upperdirs/dave/var/tmp/x").exists());
    for user in ["alice", "carol", "erin"] {
        host.ssh(user, "ls /var/tmp/x").fails();
        assert_eq!(aside(&host, user).len(), 1);
    }
    drop(session);
}

#[test]
fn what_has_a_damaged_record_is_told_and_never_thrown_away() {
    lab::require_root!();
    let host = host("");
    host.ssh("alice", "echo precious > /var/tmp/n").ok();
    host.root("ojail reset --force alice").ok();
    let entry =
        format!("/srv/overlay/asidedirs/alice/{}", aside(&host, "alice")[0]["name"].as_str().unwrap());
    host.root(&format!("sed -i 's/\"reset\"/\"of the future\"/' {entry}/record.json")).ok();
    for command in ["ojail reset --list alice", "ojail undo alice", "ojail tidy"] {
        let said = host.root(command).fails();
        assert!(said.stderr.contains("record.json: is damaged, or of a newer ojail"), "{said}");
    }
    assert_eq!(fs::read_to_string(host.path(&entry).join("upper/var/tmp/n")).unwrap(), "precious\n");
}

#[test]
fn two_administrators_at_once_do_one_thing_after_the_other() {
    lab::require_root!();
    let host = host("");
    host.ssh("alice", "echo 1 > /var/tmp/n").ok();
    until("alice has left", SOON, || sessions(&host, "alice") == 0);
    let upper = digest(&host, UPPER);
    let both = [host.root("ojail reset alice").spawn(), host.root("ojail reset alice").spawn()];
    let said = both.map(|reset| reset.finish().ok().text()).join("\n");
    for words in ["alice has changed nothing", "The changes are set aside in"] {
        assert_eq!(said.matches(words).count(), 1, "{said}");
    }
    assert_eq!(aside(&host, "alice").len(), 1);
    // One resets what the other puts back, many times; at the end it is in one place or the other, and whole.
    let acts = ["reset", "undo"]
        .map(|act| host.root(&format!("for i in 1 2 3 4 5 6 7 8; do ojail {act} alice; done")).spawn());
    for act in acts {
        act.finish();
    }
    let places = format!("{UPPER} /srv/overlay/asidedirs/alice/*/upper");
    let there = host.root(&format!("ls -d {places} 2>/dev/null")).run().text();
    assert_eq!(there.lines().count(), 1, "{there}");
    assert_eq!(digest(&host, &there), upper);
}

#[test]
fn undo_after_undo_is_where_one_was() {
    lab::require_root!();
    let host = host("");
    host.ssh("alice", "echo 1 > /var/tmp/n").ok();
    host.root("ojail reset --force alice").ok();
    host.ssh("alice", "echo 2 > /var/tmp/n").ok();
    for wanted in ["1", "2", "1"] {
        host.root("ojail undo --force alice").ok();
        assert_eq!(host.ssh("alice", "cat /var/tmp/n").text(), wanted);
        assert_eq!(aside(&host, "alice").len(), 1);
    }
    let session = host.ssh("alice", "echo in; sleep 300").spawn();
    session.wait_for("in");
    assert!(host.root("ojail undo alice").fails().stderr.contains("sessions of alice are open"));
    host.root("ojail undo --force alice").ok();
    session.finish().fails();
    // By name, and the user may be gone by then.
    host.root("ojail stop alice; userdel alice").ok();
    let name = aside(&host, "alice")[0]["name"].as_str().unwrap().to_owned();
    host.root(&format!("ojail undo alice {name}")).ok();
    assert_eq!(fs::read_to_string(host.path(UPPER).join("var/tmp/n")).unwrap(), "1\n");
}

#[test]
fn what_is_set_aside_is_kept_for_as_long_as_configured() {
    lab::require_root!();
    let host = host("");
    let tidy = |keys: &str| -> String {
        let config = crate::common::config("") + keys;
        host.write("/etc/ojail/ojail.toml", 0o644, &config);
        host.root("ojail tidy").text()
    };
    for number in ["1", "2", "3"] {
        host.ssh("alice", &format!("head -c {number}000000 /dev/urandom > /var/tmp/n; chmod 000 /var/tmp/n"))
            .ok();
        host.root("ojail reset --force alice").ok();
    }
    let all = aside(&host, "alice");
    assert_eq!(all.len(), 3);
    assert_eq!(tidy(""), "Nothing is past its retention.");
    // The newest fit, the oldest does not.
    let would = host
        .root("sed -i '$a [reset]\\nmax_size = \"5500K\"' /etc/ojail/ojail.toml; ojail tidy --dry-run")
        .text();
    assert!(would.contains("would delete what was set aside as"), "{would}");
    assert_eq!(aside(&host, "alice").len(), 3);
    tidy("\n[reset]\nmax_size = \"5500K\"\n");
    assert_eq!(aside(&host, "alice"), all[..2]);
    // A clock is not waited for: the record is made older.
    let record = format!("/srv/overlay/asidedirs/alice/{}/record.json", all[1]["name"].as_str().unwrap());
    host.root(&format!("sed -i 's/\"at\": [0-9]*/\"at\": 1000000000/' {record}")).ok();
    tidy("\n[reset]\nkeep = \"7d\"\n");
    assert_eq!(aside(&host, "alice"), all[..1]);
    assert_eq!(host.root("ls /srv/overlay/asidedirs/.trash").text(), "");
    thread::sleep(Duration::from_secs(2));
    tidy("\n[reset]\nkeep = \"0\"\n");
    assert!(aside(&host, "alice").is_empty());
    host.ssh("alice", "cat /proc/1/comm").ok();
}

/// For twenty thousand changes of directories.
const A_SLOW_DISK: Duration = Duration::from_secs(180);

/// What resists `rm -r`: depth, immutable files, mode 000, links to everywhere, and mounts, which are not crossed.
#[test]
fn a_deletion_is_complete_and_touches_nothing_outside() {
    lab::require_root!();
    let host = host("root = true");
    let dig = "import os\nos.chdir('/opt')\nfor i in range(10000):\n os.mkdir('d', 0o700)\n os.chdir('d')\nopen('end', 'w').close()\n";
    host.write("/srv/overlay/dig.py", 0o644, dig);
    changes(
        &host,
        "ln -s / /opt/root; ln -s /etc /opt/etc; mkdir -m 000 /opt/closed; echo x > /opt/fixed; mkdir /opt/mounted /opt/fixedd; echo x > /opt/fixedd/x",
    );
    host.root("ojail stop alice").ok();
    host.root(&format!(
        "set -e; cd {UPPER}/opt; sed -i 's#/opt#{UPPER}/opt#' /srv/overlay/dig.py; python3 /srv/overlay/dig.py; \
         chattr +i fixed fixedd; mkdir -p /srv/precious; echo p > /srv/precious/p"
    ))
    .within(A_SLOW_DISK)
    .ok();
    let outside = |host: &Host| {
        format!("{}{}", digest(host, "/srv/precious"), digest(host, "/srv/overlay/lowerdirs/debian/etc"))
    };
    let before = outside(&host);
    host.root("ojail reset --force alice").ok();
    let upper = aside(&host, "alice")[0]["upper"].as_str().unwrap().to_owned();
    host.root(&format!("mount --bind /srv/precious {upper}/opt/mounted")).ok();
    host.write("/etc/ojail/ojail.toml", 0o644, &(crate::common::config("") + "\n[reset]\nkeep = \"0\"\n"));
    thread::sleep(Duration::from_secs(2));
    // A mount in the way is told, and nothing on it is touched.
    let said = host.root("ojail tidy").within(A_SLOW_DISK).fails();
    assert!(said.stderr.contains("something is mounted on it") && said.stderr.contains("mounted"), "{said}");
    assert_eq!(outside(&host), before);
    host.root("umount /srv/overlay/asidedirs/.trash/*/upper/opt/mounted").ok();
    host.root("ojail tidy").within(A_SLOW_DISK).ok();
    assert_eq!(host.root("ls /srv/overlay/asidedirs/.trash").text(), "");
    assert_eq!(outside(&host), before);
}
