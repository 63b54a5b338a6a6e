//! `ojail layer promote`.

use lab::{Host, User};

use crate::{LOWERDIRS, complaint, failed, killed, layer, record, refused, remains, state};

const CONFIG: &str = r#"
[profiles.debian]
layers = ["debian"]
root = true
home = "jail"

[profiles.more]
layers = ["new", "debian"]

[[rules]]
user = "bob"
profile = "more"

[[rules]]
group = "jailed"
profile = "debian"
"#;

const UPPER: &str = "/srv/overlay/upperdirs/alice";

/// A host where alice has changed what an administrator may want, and what nobody else should get.
fn host() -> Host {
    let host = lab::host()
        .user(User::new("alice").groups(["jailed"]))
        .user(User::new("bob").groups(["jailed"]))
        .layer("debian")
        .config(CONFIG)
        .pam("sshd")
        .start();
    host.ssh(
        "alice",
        "sudo sh -c 'mkdir -p /etc/tool /opt/x && echo one > /etc/tool/conf && echo run > /opt/x/run && chmod 4755 /opt/x/run && \
         rm /etc/issue && rm -r /usr/share/doc/bash && mkdir /usr/share/doc/bash && echo mine > /usr/share/doc/bash/mine'",
    )
    .ok();
    host
}

#[test]
fn what_a_user_changed_becomes_a_layer_that_another_one_has() {
    lab::require_root!();
    let host = host();
    let before = crate::common::digest(&host, UPPER);
    let was = state(&host);
    let shown = host.root("ojail layer promote alice new --dry-run").text();
    for line in [
        "A /etc/tool/conf (",
        "D /etc/issue",
        "A /usr/share/doc/bash/mine",
        "With the rights of their owner or group run: /opt/x/run.",
        "Nothing was made",
    ] {
        assert!(shown.contains(line), "{shown}\nlacks: {line}");
    }
    assert_eq!((state(&host), remains(&host).lines().count()), (was, 1), "nothing but alice's own jail");

    // Her jail runs meanwhile, and goes on.
    let said = host.root("ojail layer promote alice new --end --force").ok();
    assert!(said.stdout.contains("\nnew is new@"), "{said}");
    assert!(said.stdout.contains("With the rights of their owner or group run: /opt/x/run."), "{said}");
    assert_eq!(crate::common::digest(&host, UPPER), before, "alice's own changes");
    let made = record(&host, "new");
    assert_eq!((&made["how"], &made["from"]), (&"promote".into(), &serde_json::json!(["debian"])));
    assert_eq!(
        host.ssh("bob", "cat /etc/tool/conf /opt/x/run; ls /etc/issue /usr/share/doc/bash").run().text(),
        "one\nrun\n/usr/share/doc/bash:\nmine"
    );
    assert_eq!(host.ssh("alice", "cat /etc/tool/conf").text(), "one");
    host.root("ojail layer verify new").ok();
}

#[test]
fn a_part_is_taken_alone() {
    lab::require_root!();
    let host = host();
    host.root("ojail stop alice").ok();
    let shown = host
        .root("ojail layer promote alice part --path /etc/tool --path /usr/share/doc/bash --dry-run")
        .text();
    assert!(
        shown.contains("/etc/tool/conf") && !shown.contains("/opt") && !shown.contains("/etc/issue"),
        "{shown}"
    );
    host.root("ojail layer promote alice part --path /etc/tool --path /usr/share/doc/bash").ok();
    let found = host.root(&format!("cd {LOWERDIRS}/part/ && find . -mindepth 1 | sort")).text();
    assert_eq!(
        found,
        "./etc\n./etc/tool\n./etc/tool/conf\n./usr\n./usr/share\n./usr/share/doc\n./usr/share/doc/bash\n./usr/share/doc/bash/mine"
    );
    // What she had deleted with the old directory does not come back through the layer.
    assert_eq!(host.root("python3 -c 'import os, sys; print(os.getxattr(sys.argv[1], \"user.overlay.opaque\"))' /srv/overlay/lowerdirs/part/usr/share/doc/bash").text(), "b'y'");
    for (paths, why) in [
        ("--path etc", "--path etc is not absolute"),
        ("--path /etc/../root", "leads out of the jail"),
        ("--path /", "--path / is everything"),
        ("--path /etc/passwd-nothing", "alice has changed nothing there"),
        ("--path /bin/x", "symbolic link inside"),
    ] {
        refused(&host, &format!("ojail layer promote alice x {paths}"), why);
    }
}

#[test]
fn secrets_are_refused_by_name_and_allowed_by_name() {
    lab::require_root!();
    let host = host();
    host.ssh(
        "alice",
        "sudo sh -c 'mkdir -p /etc/ssh /etc/keys && echo x > /etc/ssh/ssh_host_rsa_key && printf \"%s\\n\" \"-----BEGIN PRIVATE KEY-----\" > /etc/keys/a.pem && \
         echo \"eve:\\$y\\$j9T\\$x:1::::::\" >> /etc/shadow'; mkdir -p .ssh; echo k > .ssh/authorized_keys; echo ls > .bash_history",
    )
    .ok();
    host.root("ojail stop alice").ok();
    let all = [
        "/etc/keys/a.pem (a private key)",
        "/etc/shadow (password hashes)",
        "/etc/ssh/ssh_host_rsa_key (a host key)",
        "/home/alice/.bash_history (a history)",
        "/home/alice/.ssh/authorized_keys (says who may log in)",
    ];
    for dry in ["", "--dry-run"] {
        refused(
            &host,
            &format!("ojail layer promote alice x {dry}"),
            &format!("there are secrets in what alice has changed: {}; `--path`", all.join(", ")),
        );
    }
    let allow = "--allow /etc/keys --allow /etc/shadow --allow /home/alice";
    refused(
        &host,
        &format!("ojail layer promote alice x {allow}"),
        "changed: /etc/ssh/ssh_host_rsa_key (a host key); `--path`",
    );
    refused(
        &host,
        "ojail layer promote alice x --path /etc/keys --allow /etc/keysx",
        "/etc/keys/a.pem (a private key)",
    );
    host.root("ojail layer promote alice x --path /etc/tool").ok();
    host.root(&format!("ojail layer promote alice y {allow} --allow /etc/ssh/ssh_host_rsa_key")).ok();
    assert!(layer(&host, "y").is_some());
}

#[test]
fn what_cannot_be_promoted_is_refused() {
    lab::require_root!();
    let host = host();
    host.root("ojail stop alice; mkdir /srv/overlay/lowerdirs/hand").ok();
    for (command, why) in [
        ("ojail layer promote alice hand", "\"hand\": is there already, made by hand"),
        ("ojail layer promote alice a/b", "\"a/b\": a layer's name has letters"),
        ("ojail layer promote alice x@0123456789ab", "named without \"@\""),
        ("ojail layer promote nobody-here x", "\"nobody-here\" does not exist"),
        ("ojail layer promote bob x", "bob has changed nothing"),
        ("ojail layer promote alice x --profile none", "there is no profile \"none\""),
    ] {
        refused(&host, command, why);
    }
    host.root("mkdir -p /srv/overlay/upperdirs/bob").ok();
    refused(&host, "ojail layer promote bob x --profile debian", "bob has not changed anything");
    // Another mount, too small for it.
    host.root("mount -t tmpfs -o size=1M,mode=700 none /srv/overlay/lowerdirs; head -c 2M /dev/urandom > /srv/overlay/upperdirs/alice/big; mkdir /srv/overlay/lowerdirs/debian").ok();
    let output = host.root("ojail layer promote alice x").fails();
    assert!(complaint(&output).contains("are needed; make room first"), "{output}");
}

#[test]
fn a_kill_or_an_error_at_any_moment_of_a_promotion_leaves_the_old_or_the_new() {
    lab::require_root!();
    let host = host();
    host.root("ojail layer promote alice t --path /etc/tool --end --force").ok();
    let before = crate::common::digest(&host, UPPER);
    let first = layer(&host, "t").unwrap();
    let begin = format!("ojail layer rollback t --to {}", first["generation"].as_str().unwrap());
    host.root("ojail layer promote alice t --path /opt").ok();
    killed(&host, "ojail layer promote alice t --path /opt", &begin, &|| state(&host));
    killed(&host, "ojail layer promote alice t", &begin, &|| state(&host));
    failed(&host, "ojail layer promote alice t --path /opt", &begin, &|| state(&host));
    failed(&host, "ojail layer promote alice t", &begin, &|| state(&host));
    assert_eq!(crate::common::digest(&host, UPPER), before, "alice's own changes");
}
