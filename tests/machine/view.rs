//! A jail for the administrator, under Debian's own kernel and systemd: to look into, and to run something in.

use crate::{MACHINE, init, jail, sessions, until};

#[test]
fn a_mounted_jail_is_the_one_that_runs_and_stays_until_it_is_unmounted() {
    lab::require!(lab::must::machines());
    let machine = MACHINE.get();
    machine.root("ojail mount vera").ok();
    let pid = init(&machine, "vera");
    assert_eq!(sessions(&machine, "vera"), 0);
    machine.ssh("vera", "echo inside > /var/tmp/file; stat -c %d / > /var/tmp/device").ok();
    let seen = machine.root("cd /srv/jails/vera && cat var/tmp/file && stat -c %d . && cat var/tmp/device");
    let seen = seen.text();
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!((lines[0], lines[1]), ("inside", lines[2]), "{seen}");
    // Without O_CREAT, which even root is refused in a directory like this (fs.protected_regular).
    let append =
        "echo outside | dd of=/srv/jails/vera/var/tmp/file oflag=append conv=notrunc,nocreat status=none";
    machine.root(append).ok();
    assert_eq!(machine.ssh("vera", "cat /var/tmp/file").text(), "inside\noutside");
    let line = machine.root("grep /srv/jails/vera /proc/self/mountinfo").text();
    assert!(line.contains(" rw,nosuid,nodev,") && line.contains(" - overlay "), "{line}");
    let refused = machine.root("ojail stop vera").fails();
    assert!(refused.stderr.contains("is mounted at /srv/jails/vera"), "{refused}");
    assert_eq!(init(&machine, "vera"), pid);

    // PID 1 saw that it was attached, and holds nothing of it any more.
    machine.root("ojail umount vera && ojail stop vera").ok();
    let gone = machine.root("grep -c /srv/jails /proc/self/mountinfo; ls -A /srv/jails").run();
    assert_eq!(gone.text(), "0");

    machine.root("ojail mount vera").ok();
    machine.root(&format!("kill -9 {}", init(&machine, "vera"))).ok();
    until("the jail has ended", || jail(&machine, "vera").is_none_or(|jail| jail["running"] == false));
    let refused = machine.root("ojail enter vera -- true").fails();
    assert!(refused.stderr.contains("is still mounted at /srv/jails/vera"), "{refused}");
    machine.root("ojail umount vera").ok();
    assert_eq!(machine.ssh("vera", "cat /var/tmp/file").text(), "inside\noutside");
}

#[test]
fn a_command_runs_in_temporary_jails_in_a_slice_of_the_users_and_leaves_none() {
    lab::require!(lab::must::machines());
    let machine = MACHINE.get();
    let group = "ojail run vera --ephemeral -- sh -c 'cat /proc/1/cgroup; exit 7'";
    let output = machine.root(group).run();
    assert_eq!(output.code(), Some(7), "{output}");
    // Seen from inside, where the control group of the jail is as the host has it.
    assert!(output.stdout.starts_with("0::/user.slice/user-1013.slice/ojail-vera-"), "{output}");
    let output = machine.root("ojail run --profile limited -- cat /proc/1/cgroup").ok();
    assert!(output.stdout.starts_with("0::/user.slice/user-"), "{output}");
    let uid = output.stdout.strip_prefix("0::/user.slice/user-").and_then(|rest| rest.split_once('.'));
    assert!(uid.unwrap().0.parse::<u32>().unwrap() > 65_536, "it is a user's of the host: {output}");
    let left = "ls /srv/overlay/asidedirs/.run /run/ojail/runs; ls /var/lib/ojail/users | grep 0jail; \
                ls -d /run/systemd/system.control/user-??????*.slice.d /sys/fs/cgroup/user.slice/user-??????*.slice";
    until("nothing is left", || !machine.root(left).run().stdout.contains(|c: char| c.is_ascii_digit()));
}
