//! `ojail prove`: every PAM service is tried, and says whether it leads to the jail and what holds there.

use lab::{Host, User};
use serde_json::Value;

use crate::common::{SOON, config, runs, sessions, until};

/// A host where every way in is wired.
fn host(keys: &str) -> lab::Setup {
    lab::host()
        .user(User::new("alice").groups(["jailed"]))
        .user("bob")
        .layer("debian")
        .config(&config(keys))
        .pam("sshd")
        .pam("su")
        .pam("login")
        .pam("cron")
}

#[track_caller]
fn prove(host: &Host) -> Value {
    let output = host.root("ojail prove alice --json").run();
    assert_eq!(output.stderr, "", "{output}");
    let proof: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output}"));
    assert_eq!(output.code(), Some(if proof["proven"] == true { 0 } else { 1 }), "{output}");
    proof
}

#[track_caller]
fn service<'a>(proof: &'a Value, name: &str) -> &'a Value {
    let services = proof["services"].as_array().unwrap();
    services
        .iter()
        .find(|service| service["service"] == name)
        .unwrap_or_else(|| panic!("no {name}: {proof:#}"))
}

#[test]
fn every_way_in_is_jailed_and_holds() {
    lab::require_root!();
    for keys in ["", "root = true", "network = \"none\""] {
        let host = host(keys).start();
        let proof = prove(&host);
        for name in ["sshd", "su", "su-l", "login", "cron"] {
            let service = service(&proof, name);
            assert_eq!(service["outcome"], "jailed", "{name}: {service:#}");
            let attempts = service["attempts"].as_array().unwrap();
            assert!(attempts.len() > if keys == "root = true" { 500 } else { 280 }, "{name}: {service:#}");
            let reached: Vec<&Value> =
                attempts.iter().filter(|attempt| attempt["contained"] == false).collect();
            assert!(reached.is_empty(), "{keys}: {name}: {reached:#?}");
        }
        assert_eq!(proof["proven"], true, "{proof:#}");
        let text = host.root("ojail prove alice").text();
        assert!(
            text.starts_with("alice in profile debian\n") && text.contains("5 jailed, 0 refused"),
            "{text}"
        );
        // The sessions are over, and the jail stays as after any login.
        until("the sessions are over", SOON, || sessions(&host, "alice") == 0);
        assert!(runs(&host, "alice"));
    }
}

#[test]
fn a_service_without_a_jail_is_on_the_host() {
    lab::require_root!();
    let host = host("").start();
    host.root("sed -i /pam_ojail/d /etc/pam.d/cron").ok();
    // One that nobody has heard of, and which says something.
    host.write(
        "/etc/pam.d/kiosk",
        0o644,
        "session optional pam_echo.so hello\nsession required pam_permit.so\n",
    );
    let proof = prove(&host);
    assert_eq!(proof["proven"], false);
    for name in ["cron", "kiosk"] {
        let service = service(&proof, name);
        assert_eq!((&service["outcome"], &service["way_in"]), (&"host".into(), &true.into()), "{service:#}");
    }
    assert_eq!(service(&proof, "sshd")["outcome"], "jailed");
    // Root becomes the user by this one, and nobody else.
    let sudo = service(&proof, "sudo");
    assert_eq!((&sudo["outcome"], &sudo["way_in"]), (&"host".into(), &false.into()), "{sudo:#}");
    let text = host.root("ojail prove alice").fails().stdout;
    assert!(
        text.contains("cron") && text.contains("ON THE HOST") && text.contains("2 ways ON THE HOST"),
        "{text}"
    );
}

#[test]
fn a_session_that_is_refused_is_no_way_in() {
    lab::require_root!();
    let host = host("").pam("systemd-user").start();
    host.root("sed -i '/pam_ojail/i session required pam_deny.so' /etc/pam.d/cron").ok();
    host.root("mkdir -p /run/systemd/system").ok();
    let proof = prove(&host);
    for name in ["cron", "systemd-user"] {
        assert_eq!(service(&proof, name)["outcome"], "refused", "{proof:#}");
    }
    // A configuration that refuses everybody is said at once.
    host.write("/etc/ojail/ojail.toml", 0o644, "nonsense");
    let output = host.root("ojail prove alice").fails();
    assert!(output.stderr.starts_with("ojail: /etc/ojail/ojail.toml:1"), "{output}");
}

#[test]
fn a_line_that_is_optional_is_proven_to_let_a_refused_user_stay() {
    lab::require_root!();
    let host = host("").start();
    host.root("sed -i 's/required pam_ojail/optional pam_ojail/' /etc/pam.d/sshd; mv /usr/libexec/ojail/ojail-init /x").ok();
    let proof = prove(&host);
    assert_eq!(service(&proof, "sshd")["outcome"], "host", "{proof:#}");
    assert_eq!(service(&proof, "su")["outcome"], "refused", "{proof:#}");
}

#[test]
fn an_sshd_that_asks_no_pam_is_told_though_no_session_shows_it() {
    lab::require_root!();
    let host = host("").sshd_config("UsePAM no").start();
    let proof = prove(&host);
    assert_eq!(service(&proof, "sshd")["outcome"], "jailed", "{proof:#}");
    assert_eq!(proof["proven"], false);
    let text = host.root("ojail prove alice").fails().stdout;
    assert!(text.contains("UsePAM no"), "{text}");
}

#[test]
fn who_is_not_jailed_has_nothing_to_prove() {
    lab::require_root!();
    let host = host("").start();
    for (user, sentence) in [
        ("bob", "ojail: bob is not jailed: no rule matches\n"),
        ("root", "ojail: root is not jailed: uid 0 is always exempt\n"),
        ("alcie", "ojail: user \"alcie\" does not exist\n"),
    ] {
        let output = host.root(&format!("ojail prove {user}")).fails();
        assert_eq!((output.code(), output.stdout.as_str(), output.stderr.as_str()), (Some(1), "", sentence));
    }
    let output = host.ssh("bob", "/usr/sbin/ojail prove alice").fails();
    assert!(output.stderr.contains("needs root"), "{output}");
}
