//! What the administrator reads in the log.

use crate::common::{SOON, host, logged, runs, sessions, until};

/// The part of a line that ojail wrote, without time, program and pid.
fn events(host: &lab::Host) -> Vec<String> {
    host.log().iter().filter_map(|line| Some(line[line.find("event=")?..].to_owned())).collect()
}

#[test]
fn each_event_is_one_line_of_keys_and_values() {
    lab::require_root!();
    let host = host("keep_warm = \"0\"");
    host.ssh("alice", "true").ok();
    until("the jail has ended", SOON, || !runs(&host, "alice"));
    host.wait_for_log("event=jail-ended");
    host.root("ojail reset --force alice").ok();
    host.wait_for_log("event=reset");
    host.root("mv /srv/overlay/workdirs /srv/overlay/moved; touch /srv/overlay/workdirs").ok();
    host.ssh("alice", "true").fails();
    host.wait_for_log("event=refused");

    let mut events = events(&host);
    let aside =
        std::fs::read_dir(host.path("/srv/overlay/asidedirs/alice")).unwrap().next().unwrap().unwrap();
    let reset = format!(
        "event=reset user=alice aside=/srv/overlay/asidedirs/alice/{}/upper",
        aside.file_name().to_str().unwrap()
    );
    // The jail's PID 1 and the login process write side by side.
    events[..4].sort();
    assert_eq!(
        events,
        [
            r#"event=jail-ended user=alice profile=debian why="it was empty""#,
            "event=jail-raised user=alice profile=debian",
            "event=session-end user=alice service=sshd from=127.0.0.1 left=0",
            "event=session-start user=alice profile=debian service=sshd from=127.0.0.1",
            &reset,
            r#"event=refused user=alice why="/srv/overlay/workdirs: is not a directory""#,
        ]
    );
}

#[test]
fn a_login_works_without_a_log() {
    lab::require_root!();
    let host = host("");
    host.root("rm /dev/log").ok();
    assert_eq!(host.ssh("alice", "cat /proc/1/comm").text(), "ojail-init");
    until("the session is over", SOON, || sessions(&host, "alice") == 0);
    host.root("ojail reset --force alice").ok();
    assert_eq!(logged(&host, "event="), 0);
}

#[test]
fn the_lines_of_sshd_and_pam_still_come() {
    lab::require_root!();
    let host = host("");
    host.ssh("alice", "true").ok();
    for line in [
        "Accepted publickey for alice",
        "pam_unix(sshd:session): session opened for user alice",
        "Received disconnect from 127.0.0.1",
        "pam_unix(sshd:session): session closed for user alice",
    ] {
        host.wait_for_log(line);
    }
}
