//! What systemd, cron and at would run for a jailed user.

use crate::{MACHINE, bring, until};

#[test]
fn no_unit_of_a_jailed_user_is_run_by_systemd() {
    lab::require!(lab::must::machines());
    let machine = MACHINE.get();
    // As by scp, which puts files where the host looks for them.
    let plant = r#"
        mkdir -p .config/systemd/user/default.target.wants
        printf '[Service]\nExecStart=/bin/touch /home/ursula/escaped\n' > .config/systemd/user/out.service
        ln -s ../out.service .config/systemd/user/default.target.wants/
    "#;
    machine.ssh("ursula", plant).ok();

    // A login and linger both ask for a manager.
    machine.ssh("ursula", "true").ok();
    machine.root("loginctl enable-linger ursula").ok();
    machine.root("systemctl start user@1005.service").fails();
    assert_eq!(machine.root("systemctl is-failed user@1005.service").text(), "failed");
    assert_eq!(machine.root("pgrep -u ursula -x systemd || true").text(), "");
    let refused = machine.wait_for_log("event=refused user=ursula");
    assert!(refused.contains("systemd --user"), "{refused}");
    machine.root("loginctl disable-linger ursula").ok();

    // The tool itself, which the layer does not have.
    bring(&machine, "systemd-run", "/home/ursula/sd");
    let run = "cd; export LD_LIBRARY_PATH=$PWD/sd XDG_RUNTIME_DIR=/run/user/1005; exec sd/systemd-run";
    let enter = "exec ojail enter ursula -- sh -c \"$1\"";
    machine.root(enter).arg(format!("{run} --version")).ok();
    for how in ["--user", "--user --scope", "--system", "--machine=ursula@ --user"] {
        let command = format!("{run} {how} touch /home/ursula/escaped");
        let output = machine.root(enter).arg(command).fails();
        // "… to bus", "… to user scope bus via local transport".
        assert!(output.stderr.contains("Failed to connect to"), "{output}");
    }
    machine.root("test -e ~ursula/escaped").fails();
    // That it would have run is shown by a user who is not jailed.
    let plant = plant.replace("ursula", "bob");
    machine
        .ssh("bob", &format!("{plant}\nsystemctl --user daemon-reload && systemctl --user start out"))
        .ok();
    until("bob's unit ran", || machine.root("test -e ~bob/escaped").run().status.success());
}

#[test]
fn a_crontab_runs_in_the_jail_and_cron_may_be_restarted_meanwhile() {
    lab::require!(lab::must::machines());
    let machine = MACHINE.get();
    let job = "@reboot (cat /proc/1/comm; id -un) > ~/new; mv ~/new ~/by-cron; exec sleep 300\n";
    machine.root("crontab -u carl -").stdin(job).ok();
    // It knows by this file that the machine's start is over.
    machine.root("rm /run/crond.reboot && systemctl restart cron").ok();
    let did = || machine.root("cat ~carl/by-cron").run().text();
    until("the job ran", || !did().is_empty());
    assert_eq!(did(), "ojail-init\ncarl");

    machine.root("systemctl restart cron").ok();
    assert_eq!(machine.ssh("carl", "pgrep -x sleep | wc -l").text(), "1");
}

#[test]
fn a_job_of_at_runs_in_the_jail() {
    lab::require!(lab::must::machines());
    let machine = MACHINE.get();
    // By hand on the host, for `at` inside has no spool to write to.
    let job = "(cat /proc/1/comm; id -un) > ~/new; mv ~/new ~/by-at\n";
    let hand_in = "cd ~atta && exec setpriv --reuid=atta --regid=atta --init-groups \
                   env HOME=/home/atta LOGNAME=atta USER=atta at now";
    let did = || machine.root("cat ~atta/by-at").run().text();
    machine.root(hand_in).stdin(job).ok();
    until("the job ran", || !did().is_empty());
    assert_eq!(did(), "ojail-init\natta");
}
