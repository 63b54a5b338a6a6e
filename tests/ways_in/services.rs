//! The other doors of a host: whatever opens a PAM session as a user leads to the same jail, or is refused.

use crate::common::setup;
use crate::place::{WHERE, inside, outside};
use crate::ssh::WARM;

#[test]
fn su_and_sudo_to_a_jailed_user_lead_to_the_jail() {
    lab::require_root!();
    let host = setup(WARM).pam("su").pam("sudo").start();
    let inside = inside(&host, "alice");
    for way in ["su - alice -c \"$1\"", "su alice -c \"$1\"", "sudo -u alice sh -c \"$1\""] {
        assert_eq!(host.root(way).arg(WHERE).text(), inside, "{way}");
        let who = host.root(way).arg("id -un; grep NoNewPrivs /proc/self/status").text();
        assert_eq!(who, "alice\nNoNewPrivs:\t1", "{way}");
        assert_eq!(host.root(way).arg("exit 6").run().code(), Some(6), "{way}");
    }
    assert_eq!(
        host.root("su - alice").stdin(format!("{WHERE}; pwd\n")).text(),
        format!("{inside}\n/home/alice")
    );
    // From one user to the other, with the password.
    let output = host.ssh("bob", &format!("su alice -c '{WHERE}'")).stdin("lab\n").ok();
    assert_eq!(output.text(), inside);
    // Who is exempt stays where they are.
    assert_eq!(host.root("su - bob -c \"$1\"").arg(WHERE).text(), outside(&host));
    assert_eq!(host.root("sudo -u bob sh -c \"$1\"").arg(WHERE).text(), outside(&host));
    host.wait_for_log("service=su-l");
}

#[test]
fn a_console_login_leads_to_the_jail_or_is_refused() {
    lab::require_root!();
    let host = setup(WARM).pam("login").start();
    let places = [("alice", inside(&host, "alice")), ("bob", outside(&host))];
    for (user, place) in places {
        host.write(format!("/home/{user}/.profile"), 0o644, &format!("{WHERE} > ~/console; exit 0\n"));
        // As getty does it: login leads the terminal's session.
        host.exec(["script", "-qec", &format!("exec login -f {user}"), "/dev/null"]).run();
        // After the session is open, login insists on giving the terminal away. It is root of the jail then, which
        // cannot do that to a terminal of the host's, so the login ends there.
        match std::fs::read_to_string(host.path(format!("/home/{user}/console"))) {
            Ok(console) => assert_eq!(console.trim(), place, "{user}"),
            Err(_) => assert_eq!(user, "alice", "bob is not jailed"),
        }
        host.wait_for_log(&format!("session opened for user {user}"));
    }
    host.wait_for_log("service=login");
}

#[test]
fn a_crontab_runs_in_the_jail() {
    lab::require_root!();
    let host = setup("").pam("cron").start();
    // @reboot jobs are run at cron's start, the others at the next full minute: the way in is the same.
    let job = "@reboot (cat /proc/1/comm; stat -c \\%d:\\%i /; id -un) > ~/by-cron.new; mv ~/by-cron.new ~/by-cron; exec sleep 300\n";
    host.root("crontab -u alice -").stdin(job).ok();
    host.root("cron").ok();
    let done = host.path("/home/alice/by-cron");
    crate::common::until("the job ran", crate::common::SOON, || done.exists());
    let said = std::fs::read_to_string(&done).expect("it is there");
    assert_eq!(said, format!("ojail-init\n{}\nalice\n", inside(&host, "alice")));
}

#[test]
fn any_other_service_with_the_line_leads_to_the_jail() {
    lab::require_root!();
    let host = setup("").pam("console-like").start();
    for user in ["alice", "bob", "root"] {
        host.exec(["pamtester", "console-like", user, "open_session", "close_session"]).ok();
    }
    host.wait_for_log("service=console-like");
    let log = host.log();
    let starts: Vec<&String> = log.iter().filter(|line| line.contains("session-start")).collect();
    assert!(starts.len() == 1 && starts[0].contains("user=alice"), "{starts:?}");
}

#[test]
fn the_systemd_user_manager_is_refused_to_jailed_users() {
    lab::require_root!();
    let host = setup("").pam("systemd-user").start();
    // It would run the user's own units on the host.
    host.exec(["pamtester", "systemd-user", "alice", "open_session"]).fails();
    host.exec(["pamtester", "systemd-user", "bob", "open_session"]).ok();
    let refused = host.wait_for_log("event=refused");
    assert!(refused.contains("user=alice") && refused.contains("systemd --user"), "{refused}");
    assert!(!crate::common::runs(&host, "alice"), "a jail was raised for it");
}

#[test]
fn an_ordinary_user_who_becomes_a_jailed_one_raises_the_same_jail() {
    lab::require_root!();
    // With an image, which only real root can mount: su keeps the real uid of its caller.
    let host = lab::host()
        .user(lab::User::new("alice").groups(["jailed"]))
        .user("bob")
        .image("debian.erofs")
        .config(&crate::common::config(""))
        .pam("sshd")
        .pam("su")
        .start();
    host.root("sed -i '1i auth sufficient pam_permit.so' /etc/pam.d/su").ok();
    assert_eq!(host.ssh("bob", "su alice -c 'cat /proc/1/comm'").text(), "ojail-init");
}
