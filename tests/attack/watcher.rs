//! A jailed program that lies in wait for the processes of other logins, before they have become the user (CVE-2019-5736).

use lab::{Host, Run};

use crate::common::{SOON, until};
use crate::probe::{Attempts, PROBE, host};

const LOGINS: usize = 20;

/// A watcher that runs, logins meanwhile, and what the watcher got.
fn watch(host: &Host, watcher: Run<'_>, login: impl Fn(usize)) -> Attempts {
    let watcher = watcher.spawn();
    until("the watcher runs", SOON, || host.root("pgrep -x ojail-probe").run().code() == Some(0));
    (0..LOGINS).for_each(login);
    Attempts::of(&watcher.finish())
}

/// How many processes it tried that were not its own.
fn seen(attempts: &Attempts, prefix: &str) -> usize {
    let words = &attempts.named(&format!("{prefix}ptrace")).answer;
    let number = words.split(" on ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
    number.unwrap_or_else(|| panic!("{words:?}"))
}

/// All kinds of login processes by turns.
fn login(host: &Host, number: usize) {
    match number % 4 {
        0 => host.ssh("alice", "true").ok(),
        1 => host.ssh("alice", "true").tty().ok(),
        2 => host.sftp("alice", "ls\n").ok(),
        _ => host.root("su - alice -c true").ok(),
    };
}

#[test]
fn a_jailed_watcher_gets_nothing_of_a_login_process_as_the_user_or_as_root() {
    lab::require_root!();
    for (keys, option, prefix) in [("", "", ""), ("root = true", "--root", "as root: ")] {
        let host = host(keys);
        host.root("echo session required pam_ojail.so >> /etc/pam.d/su").ok();
        let watcher = host.ssh("alice", &format!("{PROBE} --watch {option}"));
        let attempts = watch(&host, watcher, |number| login(&host, number));
        attempts.are_contained(16, keys);
        assert!(seen(&attempts, prefix) >= LOGINS / 2, "{attempts:#?}");
    }
}

#[test]
fn root_of_the_host_who_watches_so_gets_hold_of_them() {
    lab::require_root!();
    let host = host("");
    // A login process runs a program that is not at its place inside. So does this one, from its first moment, and for longer.
    let hold = "cp /bin/sleep /root/gone; exec 9< /root/gone; rm /root/gone; echo held; exec sleep 300";
    let holder = host.root(hold).spawn();
    holder.wait_for("held");
    let program = format!("/proc/{}/fd/9", host.root("pgrep -f 'sleep 300' | head -1").text());
    let watcher = host.root("/usr/libexec/ojail/ojail-probe --watch");
    let attempts = watch(&host, watcher, |_| {
        host.exec([&*program, "0.3"]).ok();
    });
    for attack in ["ptrace", "pidfd_getfd", "open /proc/PID/exe", "open /proc/PID/root", "open /proc/PID/mem"]
    {
        assert!(!attempts.named(attack).contained, "{attempts:#?}");
    }
}
