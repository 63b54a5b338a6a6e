//! `ojail check` finds what is wrong, says how to mend it, and changes nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

#[path = "common/mod.rs"]
mod common;

use lab::{Host, Setup};
use serde_json::Value;

use common::{config, digest, setup};

/// A host on which there is nothing to find.
fn well(setup: Setup) -> Host {
    let host = setup.pam("su").pam("login").pam("cron").start();
    host.root("add-shell /usr/bin/ojail-shell; usermod -s /usr/bin/ojail-shell alice").ok();
    host
}

/// What it says, and its exit status.
fn check(host: &Host, arguments: &str) -> (String, i32) {
    let output = host.root(&format!("ojail check {arguments}")).run();
    assert_eq!(output.stderr, "");
    (output.stdout.clone(), output.code().unwrap_or(-1))
}

#[track_caller]
fn finds(host: &Host, status: i32, words: &[&str]) {
    let (text, code) = check(host, "alice");
    assert_eq!(code, status, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in:\n{text}");
    }
}

#[test]
fn on_a_host_that_is_well_it_says_so_and_leaves_no_trace() {
    lab::require_root!();
    let host = well(setup(""));
    let before = (
        host.mountinfo(),
        digest(&host, "/etc"),
        host.root("find /srv/overlay /run /var/lib/ojail -xdev").text(),
    );
    let (text, code) = check(&host, "");
    assert_eq!(code, 0, "{text}");
    assert!(text.ends_with("All is well.\n"), "{text}");
    assert!(text.contains("raised and ended a jail of profile debian"), "{text}");
    finds(&host, 0, &["alice is jailed in profile debian, by the rule at line", "has the login shell"]);
    let after = (
        host.mountinfo(),
        digest(&host, "/etc"),
        host.root("find /srv/overlay /run /var/lib/ojail -xdev").text(),
    );
    assert_eq!(before, after);
    assert_eq!(host.root("pgrep ojail-init").run().text(), "", "the jail that it tried is gone");
}

#[test]
fn json_says_the_same() {
    lab::require_root!();
    let host = well(setup(""));
    let json =
        |user: &str| -> Value { serde_json::from_str(&check(&host, &format!("{user} --json")).0).unwrap() };
    let alice = json("alice");
    assert_eq!((&alice["errors"], &alice["warnings"]), (&0.into(), &0.into()));
    assert_eq!(alice["user"]["jailed"], true);
    assert_eq!(alice["user"]["profile"], "debian");
    assert!(alice["findings"].as_array().unwrap().iter().all(|finding| finding["severity"] == "ok"));
    assert_eq!(json("bob")["user"]["why"], "no rule matches");
    assert_eq!(json("root")["user"]["why"], "uid 0 is always exempt");
    assert_eq!(json("nobody-of-this-name")["errors"], 1);
}

#[test]
fn what_refuses_every_login_is_an_error() {
    lab::require_root!();
    let host = well(setup(""));
    let good = config("");
    for (toml, word) in [
        ("", "is empty"),
        (
            "[profiles.a]\nlayers = [\"none\"]\n[[rules]]\nuser = \"*\"\nprofile = \"a\"\n",
            "layer \"none\": there is no",
        ),
        (&good.replace("profile = \"debian\"", "profile = \"debain\""), "there is no profile \"debain\""),
        (&good.replace("layers", "groups = [\"nogroup-here\"]\nlayers"), "which does not exist on this host"),
        (&good.replace("layers", "binds = [{ source = \"/none\", target = \"/x\" }]\nlayers"), "/none"),
    ] {
        host.write("/etc/ojail/ojail.toml", 0o644, toml);
        finds(&host, 2, &[word]);
    }
    host.write("/etc/ojail/ojail.toml", 0o644, &good);
    for (broken, mended, word) in [
        ("chmod 666 /etc/ojail/ojail.toml", "chmod 644 /etc/ojail/ojail.toml", "can be written by others"),
        ("chmod 755 /srv/overlay/lowerdirs", "chmod 700 /srv/overlay/lowerdirs", "can be entered by others"),
        ("chmod 600 /usr/libexec/ojail/ojail-init", "chmod 755 /usr/libexec/ojail/ojail-init", "ojail-init"),
        ("mv /usr/bin/ojail-shell /x", "mv /x /usr/bin/ojail-shell", "ojail-shell"),
        ("chown bob /home/alice", "chown alice /home/alice", "the home /home/alice belongs to uid"),
    ] {
        host.root(broken).ok();
        finds(&host, 2, &[word]);
        host.root(mended).ok();
    }
    finds(&host, 0, &["All is well."]);
}

#[test]
fn ways_around_the_jail_are_found() {
    lab::require_root!();
    let host = well(setup(""));
    let pam = |script: &str| host.root(&format!("sed -i '{script}' /etc/pam.d/sshd")).ok();
    pam("s/required *pam_ojail/optional pam_ojail/");
    finds(&host, 2, &["pam_ojail is `optional`", "write `session required pam_ojail.so`"]);
    pam("/pam_ojail/d");
    finds(&host, 2, &["nobody who logs in over SSH is jailed"]);
    pam("1i session required pam_ojail.so");
    finds(&host, 1, &["pam_limits.so", "come after pam_ojail", "at the end of /etc/pam.d/sshd"]);
    pam("1d;$a session required pam_ojail.so");
    finds(&host, 0, &[]);
    host.root("sed -i /pam_ojail/d /etc/pam.d/cron").ok();
    finds(&host, 1, &["stay open to jailed users: cron"]);
    host.root("echo session required pam_ojail.so >> /etc/pam.d/cron; usermod -s /bin/bash alice").ok();
    finds(&host, 1, &["alice has the login shell /bin/bash", "usermod -s /usr/bin/ojail-shell alice"]);
    host.write("/etc/ssh/sshd_config.d/lab.conf", 0o644, "UsePAM no\n");
    finds(&host, 2, &["UsePAM no"]);
}

#[test]
fn without_root_it_says_what_it_could_not_look_at() {
    lab::require_root!();
    let host = well(setup(""));
    let output = host.root("su bob -s /bin/sh -c 'ojail check bob'").run();
    assert_eq!(output.code(), Some(1), "{output}");
    assert!(output.stdout.contains("could not be looked at"), "{output}");
    assert!(output.stdout.contains("bob is not jailed: no rule matches"), "{output}");
}

#[test]
fn what_looks_well_and_is_not_is_found() {
    lab::require_root!();
    let member = "usermod -a -G jailed bob";
    let same = "printf 'alice:100000:65536\\nbob:100000:65536\\n' | tee /etc/subuid > /etc/subgid";
    let swallowed = r"sed -i '/pam_ojail/d' /etc/pam.d/sshd
        printf 'session optional pam_permit.so a \\ \nsession required pam_ojail.so\n' >> /etc/pam.d/sshd";
    let forgets = "echo 'session [default=reset] pam_permit.so' >> /etc/pam.d/sshd";
    for (script, status, words) in [
        ("rm /etc/pam.d/sshd", 2, "nobody who logs in over SSH is jailed"),
        (swallowed, 2, "nobody who logs in over SSH is jailed"),
        (forgets, 2, "forget that it refused"),
        ("sed -i '1i session include none' /etc/pam.d/sshd", 2, "/etc/pam.d/none, which is not there"),
        ("echo session optional pam_ojail.so >> /etc/pam.d/sudo", 2, "sudo: pam_ojail is `optional`"),
        ("chmod 666 /usr/lib/*/security/pam_ojail.so", 2, "can be changed by others"),
        ("echo garbage >> /etc/subuid", 2, "not of the form NAME:FIRST:COUNT"),
        (same, 2, "no jail for alice"),
        ("usermod -g root alice", 2, "it is root's group"),
        (
            "install -d -m 700 /srv/overlay/upperdirs; mkdir -m 755 /srv/overlay/workdirs",
            2,
            "entered by others",
        ),
        (member, 1, "usermod -s /usr/bin/ojail-shell bob"),
        (
            "echo 'Match User alice\n ChrootDirectory /srv' > /etc/ssh/sshd_config.d/m.conf",
            1,
            "/srv for alice",
        ),
    ] {
        let host = well(setup(""));
        host.root(script).ok();
        finds(&host, status, &[words]);
    }
}

#[test]
fn what_is_missing_is_not_made() {
    lab::require_root!();
    let host = well(setup(""));
    host.root("umount /srv/overlay/lowerdirs/debian; rm -r /srv/overlay/lowerdirs").ok();
    finds(&host, 2, &["there is no directory /srv/overlay/lowerdirs"]);
    assert_eq!(host.root("ls -A /srv/overlay").text(), "");
}
