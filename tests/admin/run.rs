//! `ojail run`.

use std::time::Duration;

use lab::{Host, Output, Running};
use serde_json::Value;

use crate::common::{SOON, host, jail, logged, namespaces, runs, sessions, until};

/// Everything that a temporary jail could leave: on the disk, in `/run`, in the register of ids, among the mounts and processes.
#[track_caller]
fn remains(host: &Host) -> String {
    let files = host.root(
        "find /srv/overlay/asidedirs/.run /srv/overlay/asidedirs/.trash /run/ojail/runs -mindepth 1 2>/dev/null; \
         find /var/lib/ojail -name '*0jail*'; find /sys/fs/cgroup -name '0jail*' 2>/dev/null; true",
    );
    format!("{}{}", files.text(), namespaces(host))
}

/// Starts a command in a shell that puts its number into /tmp/pid, and waits for its first words.
fn start<'h>(host: &'h Host, command: &str) -> Running<'h> {
    let running = host.root(&format!("echo $$ > /tmp/pid; exec {command}")).spawn();
    running.wait_for("ready");
    running
}

fn kill(host: &Host, signal: &str) {
    host.root(&format!("kill -{signal} $(cat /tmp/pid)")).ok();
}

#[track_caller]
fn refused(output: Output, code: i32, why: &str) {
    assert_eq!(output.code(), Some(code), "{output}");
    assert!(output.stderr.contains(why), "{output}\nlacks: {why}");
}

#[test]
fn a_command_runs_in_the_users_own_jail_and_its_status_is_passed_on() {
    lab::require_root!();
    let host = host("");
    let output = host
        .root("ojail run alice -- sh -c 'id -un; tty; cat /proc/1/comm; pwd; echo wrong >&2; echo x > /var/tmp/x; exit 7'")
        .run();
    assert_eq!(output.code(), Some(7), "{output}");
    assert_eq!(output.text(), "alice\nnot a tty\nojail-init\n/home/alice");
    assert_eq!(output.stderr, "wrong\n");
    assert_eq!(sessions(&host, "alice"), 0);
    assert_eq!(host.ssh("alice", "cat /var/tmp/x").text(), "x");
    for (command, code) in [
        ("sh -c 'kill -9 $$'", 137),
        ("sh -c 'kill -TERM $$'", 143),
        ("nonsense", 127),
        ("/etc/passwd", 126),
        ("true", 0),
    ] {
        assert_eq!(host.root(&format!("ojail run alice -- {command}")).run().code(), Some(code), "{command}");
    }
    // Without a terminal also where there is one, and what it says is one line as it came.
    let output = host.root("script -qec 'ojail run alice -- tty' /dev/null").run();
    assert_eq!((output.code(), output.text().as_str()), (Some(1), "not a tty"));
}

#[test]
fn nothing_waits_for_the_disk_in_an_upper_that_is_thrown_away_and_in_no_other() {
    lab::require_root!();
    let host = host("");
    let root =
        |words: &str| host.root(&format!("ojail run {words} -- grep -m1 ' / overlay ' /proc/mounts")).text();
    for thrown_away in ["alice --ephemeral", "--profile debian"] {
        assert!(root(thrown_away).contains("volatile"), "{thrown_away}");
    }
    assert!(root("alice").contains("upperdir=") && !root("alice").contains("volatile"));
}

#[test]
fn a_command_has_a_clean_environment_and_is_a_session_while_it_runs() {
    lab::require_root!();
    let host = host("");
    let names = host
        .root("SECRET=1 LD_PRELOAD=/nowhere.so ojail run alice -- sh -c 'env | cut -d= -f1 | sort | xargs'")
        .env("LANG", "C.UTF-8");
    assert_eq!(names.text(), "HOME LANG LOGNAME PATH PWD SHELL TERM USER XDG_RUNTIME_DIR");
    let fds = host.root("exec 7< /etc/shadow; ojail run alice -- sh -c 'ls /proc/self/fd | xargs'").text();
    assert_eq!(fds, "0 1 2 3");
    let mut running = start(
        &host,
        "ojail run alice -- sh -c 'grep -E \"^(NoNewPrivs|CapBnd|Seccomp):\" /proc/self/status; echo ready; read x || true'",
    );
    let jail = jail(&host, "alice").unwrap();
    assert_eq!(jail["sessions"][0]["service"], "run", "{jail}");
    running.write("\n");
    let said = running.finish().ok().text();
    assert!(
        said.contains("NoNewPrivs:\t1")
            && said.contains("CapBnd:\t0000000000000000")
            && said.contains("Seccomp:\t2"),
        "{said}"
    );
}

#[test]
fn signals_are_handed_on_and_ignored_ones_are_not() {
    lab::require_root!();
    let host = host("");
    for whose in ["alice", "alice --ephemeral", "--profile debian"] {
        for signal in ["INT", "TERM", "HUP", "QUIT"] {
            let command = format!(
                "ojail run {whose} -- sh -c 'trap \"echo heard; exit 3\" {signal}; echo ready; while :; do sleep 0.1; done'"
            );
            let running = start(&host, &command);
            kill(&host, signal);
            let output = running.finish();
            assert_eq!(
                (output.code(), output.text().as_str()),
                (Some(3), "ready\nheard"),
                "{whose}: {signal}"
            );
        }
        // One that it does not catch.
        let running = start(&host, &format!("ojail run {whose} -- sh -c 'echo ready; exec sleep 100'"));
        kill(&host, "TERM");
        assert_eq!(running.finish().code(), Some(143), "{whose}");
    }
    let mut running = start(&host, "nohup ojail run alice -- sh -c 'echo ready; read x; echo still'");
    kill(&host, "HUP");
    running.write("\n");
    assert_eq!(running.finish().ok().text(), "ready\nstill");
    assert_eq!(remains(&host).lines().count(), 1, "more is left than alice's own jail: {}", remains(&host));
}

#[test]
fn much_goes_through_pipes_and_a_reader_that_leaves_ends_the_writer() {
    lab::require_root!();
    let host = host("");
    host.root("head -c 8000000 /dev/urandom > /tmp/random").ok();
    let sum = host.root("sha256sum < /tmp/random").text();
    for whose in ["alice", "alice --ephemeral", "--profile debian"] {
        let through = format!("cat /tmp/random | ojail run {whose} -- cat | sha256sum");
        assert_eq!(host.root(&through).text(), sum, "{whose}");
        assert_eq!(
            host.root(&format!("ojail run {whose} -- sha256sum < /tmp/random")).text(),
            sum,
            "{whose}"
        );
        assert_eq!(host.root(&format!("ojail run {whose} -- yes | head -1")).text(), "y", "{whose}");
        host.root(&format!("ojail run {whose} -- true < /tmp/random")).ok();
        // As cron and a supervisor may start it.
        assert_eq!(
            host.root(&format!("ojail run {whose} -- sh -c 'cat; echo end' <&- 2>&-")).text(),
            "end",
            "{whose}"
        );
    }
    // What the command leaves behind does not hold the caller.
    host.root("ojail run alice -- sh -c 'sleep 300 &'").within(Duration::from_secs(20)).ok();
}

#[test]
fn an_ephemeral_jail_is_the_users_in_all_but_its_upper_and_leaves_nothing() {
    lab::require_root!();
    let host = host("root = true");
    let session = host.ssh("alice", "echo own > /var/tmp/own; echo there; cat").spawn();
    session.wait_for("there");
    let before = remains(&host);
    let look = "cat /proc/self/uid_map /proc/self/gid_map; id; sudo id -u; grep Cap /proc/self/status; hostname; pwd";
    let own = host.root(&format!("ojail run alice -- sh -c '{look}'")).text();
    assert_eq!(host.root(&format!("ojail run alice --ephemeral -- sh -c '{look}'")).text(), own);
    // The layers as they are, not the user's changes; and what is changed is gone.
    let output = host.root(
        "ojail run alice --ephemeral -- sh -c 'ls /var/tmp; pgrep -c . ; sudo sh -c \"rm -r /etc/apt; echo x > /var/tmp/x; ls /var/tmp\"'",
    );
    assert_eq!(output.text().lines().last(), Some("x"), "the user's changes are in sight");
    assert_eq!(host.ssh("alice", "ls -d /var/tmp/* /etc/apt").text(), "/etc/apt\n/var/tmp/own");
    assert_eq!(remains(&host), before);
    assert_eq!(sessions(&host, "alice"), 1);
    session.finish().ok();
    // Of what it did there is a trace in the log, which tells it from the user's own jail.
    assert!(logged(&host, "event=jail-raised user=alice run=") >= 2);
    assert!(logged(&host, "event=jail-ended user=alice run=") >= 2);
}

#[test]
fn a_failure_before_the_command_is_told_and_leaves_nothing() {
    lab::require_root!();
    let host = host("");
    host.root("mv /usr/libexec/ojail/ojail-init /root").ok();
    refused(host.root("ojail run alice --ephemeral -- true").run(), 1, "ojail-init");
    refused(host.root("ojail run --profile debian -- true").run(), 1, "ojail-init");
    assert_eq!(remains(&host), "");
    host.root("mv /root/ojail-init /usr/libexec/ojail/").ok();
    for (command, code, why) in [
        ("ojail run bob -- true", 1, "bob is not jailed: no rule matches"),
        ("ojail run root -- true", 1, "uid 0 is always exempt"),
        ("ojail run alcie --ephemeral -- true", 1, "does not exist"),
        ("ojail run --profile nginx -- true", 1, "there is no profile \"nginx\""),
        ("ojail run alice", 2, "COMMAND"),
        ("ojail run -- true", 2, "USER"),
        ("ojail run alice --profile debian -- true", 2, "cannot be used with"),
        (
            "sed -i 's/\\[\"debian\"\\]/[\"gone\"]/' /etc/ojail/ojail.toml; ojail run --profile debian -- true",
            1,
            "layer \"gone\"",
        ),
    ] {
        refused(host.root(command).run(), code, why);
        assert_eq!(remains(&host), "", "{command}");
    }
}

#[test]
fn in_a_jail_of_a_profile_nobody_of_the_hosts_is_whom_the_command_runs_as() {
    lab::require_root!();
    let host = host("");
    let look = "id -u; id -un; pwd; cat /proc/self/uid_map; touch ~/x && echo home; touch /etc/x 2>/dev/null || echo not root; ls /home";
    let said = host.root(&format!("ojail run --profile debian -- sh -c '{look}'")).text();
    let said: Vec<String> =
        said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        said,
        ["59999", "ojail-run", "/home/ojail-run", "0 524288 65536", "home", "not root", "ojail-run"]
    );
    assert_eq!(remains(&host), "");
    // Two at once have different ids, and neither those of a user who comes meanwhile.
    let map = "sh -c 'cat /proc/self/uid_map; echo ready; read x || true'";
    let first = host.root(&format!("ojail run --profile debian -- {map}")).spawn();
    let second = host.root(&format!("ojail run --profile debian -- {map}")).spawn();
    let ids = |said: String| said.split_whitespace().nth(1).unwrap().parse::<u32>().unwrap();
    let (one, two) = (ids(first.wait_for("ready")), ids(second.wait_for("ready")));
    assert!(one.abs_diff(two) >= 65_536, "{one} and {two}");
    host.root("sed -i /alice/d /etc/subuid /etc/subgid").ok();
    let alice = ids(host.ssh("alice", "cat /proc/self/uid_map").text());
    assert!(alice.abs_diff(one) >= 65_536 && alice.abs_diff(two) >= 65_536, "{alice}, {one} and {two}");
    first.finish().ok();
    second.finish().ok();
    host.root("ojail stop alice").ok();
    assert_eq!(remains(&host), "");
}

#[test]
fn in_a_jail_of_a_profile_with_root_the_command_is_its_root_and_nobody_outside() {
    lab::require_root!();
    let host = host("root = true");
    let said = host.root("ojail run --profile debian -- sh -c 'id -un; pwd; echo $HOME; touch /etc/x && echo root; command -v useradd; cat /proc/self/uid_map'").text();
    let said: Vec<String> =
        said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(said, ["root", "/root", "/root", "root", "/usr/sbin/useradd", "0 524288 65536"]);
    let running = start(&host, "ojail run --profile debian -- sh -c 'echo ready; exec sleep 100'");
    assert_eq!(host.root("ps -C sleep -o uid=").text(), "524288");
    kill(&host, "TERM");
    assert_eq!(running.finish().code(), Some(143));
    // A jail that cannot be written has nothing to throw away.
    assert_eq!(remains(&host), "");
}

#[test]
fn a_read_only_profile_runs_commands_too() {
    lab::require_root!();
    let host = host("writable = false");
    for whose in ["alice --ephemeral", "--profile debian"] {
        let output = host.root(&format!("ojail run {whose} -- sh -c 'touch /var/tmp/x; echo ran'")).run();
        assert!(output.stdout == "ran\n" && output.stderr.contains("Read-only"), "{output}");
    }
    assert_eq!(remains(&host), "");
}

#[test]
fn after_a_kill_of_ojail_run_the_command_ends_and_the_next_run_clears_what_is_left() {
    lab::require_root!();
    let host = host("root = true");
    let deaf = "sh -c 'trap \"\" HUP TERM INT; echo x > /var/tmp/x; chmod 000 /var/tmp; echo ready; while :; do sleep 0.1; done'";
    for whose in ["alice", "alice --ephemeral", "--profile debian"] {
        let running = start(&host, &format!("ojail run {whose} -- {deaf}"));
        kill(&host, "KILL");
        running.finish().fails();
        until("the command has ended", SOON, || host.root("pgrep -x sleep").run().text().is_empty());
        until("no session is left", SOON, || sessions(&host, "alice") == 0);
        host.root("chmod 755 /srv/overlay/upperdirs/alice/var/tmp 2>/dev/null; ojail stop alice").ok();
        until("the jail has ended", SOON, || namespaces(&host).is_empty());
        host.root("ojail run --profile debian -- true").ok();
        assert_eq!(remains(&host), "", "{whose}");
    }
    // With all that belongs to it, so that nothing is left to clear anything up.
    for whose in ["alice --ephemeral", "--profile debian"] {
        let running = start(&host, &format!("ojail run {whose} -- {deaf}"));
        host.root("pkill -9 -x ojail; pkill -9 -x ojail-init").run();
        running.finish().fails();
        until("the jail has ended", SOON, || namespaces(&host).is_empty());
        assert_ne!(remains(&host), "", "{whose}: this is no test of left-overs");
        host.root("ojail tidy").ok();
        assert_eq!(remains(&host), "", "{whose}");
    }
    // A reboot takes /run.
    let running = start(&host, &format!("ojail run --profile debian -- {deaf}"));
    host.root("pkill -9 -x ojail; pkill -9 -x ojail-init").run();
    running.finish().fails();
    until("the jail has ended", SOON, || namespaces(&host).is_empty());
    host.root("rm -r /run/ojail").ok();
    assert_ne!(remains(&host), "");
    host.root("ojail run alice --ephemeral -- true").ok();
    assert_eq!(remains(&host), "");
}

#[test]
fn what_still_runs_is_not_cleared() {
    lab::require_root!();
    let host = host("");
    let mut running =
        start(&host, "ojail run --profile debian -- sh -c 'echo x > ~/x; echo ready; read x; cat ~/x'");
    host.root("ojail run --profile debian -- true; ojail tidy; ojail reset --all").ok();
    running.write("\n");
    assert_eq!(running.finish().ok().text(), "ready\nx");
}

#[test]
fn the_list_shows_temporary_jails_and_whose_they_are() {
    lab::require_root!();
    let host = host("root = true");
    let temporary = || -> Vec<Value> {
        let list: Value = serde_json::from_str(&host.root("ojail list --json").text()).unwrap();
        list["temporary"].as_array().unwrap().clone()
    };
    assert_eq!(temporary(), Vec::<Value>::new());
    let mut running = Vec::new();
    for (whose, user) in [("alice --ephemeral", "alice"), ("--profile debian", "ojail-run")] {
        running.push(start(&host, &format!("ojail run {whose} -- sh -c 'echo ready; read x || true'")));
        let listed = temporary();
        let newest = listed.iter().find(|jail| jail["user"] == user).unwrap_or_else(|| panic!("{listed:?}"));
        assert_eq!((&newest["profile"], &newest["running"]), (&"debian".into(), &true.into()), "{newest}");
        assert_eq!(newest["layers"], serde_json::json!(["debian"]), "{newest}");
        assert_eq!(newest["sessions"][0]["service"], "run", "{newest}");
        assert!(newest["run"].as_str().is_some_and(|run| !run.is_empty()), "{newest}");
        assert!(newest["pid"].as_u64().is_some() && newest["processes"].as_u64() > Some(0), "{newest}");
    }
    assert_eq!(temporary().len(), 2);
    // Beside the users' own, and not instead of them.
    assert!(jail(&host, "alice").is_none_or(|jail| jail["running"] == false));
    let told = host.root("ojail list").text();
    let lines: Vec<&str> = told.lines().filter(|line| line.contains(" temporary ")).collect();
    assert!(lines.len() == 2 && lines[0].contains(" alice ") && lines[1].contains(" ojail-run "), "{told}");
    for mut running in running {
        running.write("\n");
        running.finish().ok();
    }
    assert_eq!(temporary(), Vec::<Value>::new());
    assert!(host.root("ojail list").text().starts_with("No jails"));
}

#[test]
fn fifty_at_once_are_fifty_jails() {
    lab::require_root!();
    let host = host("");
    let many = |whose: &str| {
        format!(
            "mkdir /tmp/out; for n in $(seq 50); do ojail run {whose} -- sh -c \"ls /var/tmp; echo $n > /var/tmp/$n; cat /var/tmp/*\" > /tmp/out/$n & done; \
             wait; for n in $(seq 50); do [ \"$(cat /tmp/out/$n)\" = $n ] || echo \"$n: $(cat /tmp/out/$n)\"; done; rm -r /tmp/out"
        )
    };
    for whose in ["alice --ephemeral", "--profile debian"] {
        let output = host.root(&many(whose)).within(Duration::from_secs(120)).ok();
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""), "{whose}");
        eprintln!("fifty with {whose}: {:?}", output.took);
        assert_eq!(remains(&host), "", "{whose}");
    }
    assert!(!runs(&host, "alice"));
}
