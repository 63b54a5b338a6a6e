//! What a careless caller has open or has lost does not get into a session.

use lab::Host;

use crate::probe::{Attempts, PROBE, host};

/// Opens directories of the host's at almost all numbers up to `$1`, then becomes the command.
const OPENS: &str =
    r#"ulimit -n 2048; for n in $(seq 3 "$1"); do eval "exec $n</etc" 2>/dev/null; done; shift; exec "$@""#;

fn wired(keys: &str) -> Host {
    let host = host(keys);
    host.root("echo session required pam_ojail.so >> /etc/pam.d/su").ok();
    host
}

#[test]
fn directories_of_the_hosts_that_a_caller_has_open_do_not_reach_the_session() {
    lab::require_root!();
    let host = wired("");
    let probe = format!("{PROBE} --only descriptors");
    let su = format!("su - alice -c '{probe}'");
    let after_opening = |most: &str, words: &[&str]| {
        let words = ["bash", "-c", OPENS, "bash", most].iter().chain(words).copied().collect::<Vec<_>>();
        host.exec(words)
    };
    assert!(after_opening("1023", &["ls", "/proc/self/fd"]).text().lines().count() > 1000);
    let output =
        after_opening("1023", &["ojail", "enter", "alice", "--", PROBE, "--only", "descriptors"]).run();
    Attempts::of(&output).are_contained(2, "enter");
    // su itself needs some, of the thousand that pam_limits leaves it.
    let output = after_opening("900", &["sh", "-c", &su]).run();
    Attempts::of(&output).are_contained(2, "su");
    // sshd closes what it inherits, its own sessions have none.
    Attempts::of(&host.ssh("alice", &probe).run()).are_contained(2, "ssh");
}

#[test]
fn what_a_login_process_keeps_of_the_hosts_files_can_only_be_read() {
    lab::require_root!();
    let host = host("");
    let session = host.ssh("alice", "echo inside; exec sleep 300").spawn();
    session.wait_for("inside");
    // sshd's process that has become the user, and the one above it; OpenSSH of Debian 13 calls them sshd-session.
    let kept = r#"
        for pid in $(pgrep -x 'sshd(-session)?' -u alice) $(ps -o ppid= -p $(pgrep -x 'sshd(-session)?' -u alice)); do
            for fd in /proc/$pid/fd/*; do
                case $(readlink $fd) in
                    /dev/*|/proc/*) ;;
                    /*) echo "$(readlink $fd) $(sed -n 's/^flags:.*\(.\)$/\1/p' /proc/$pid/fdinfo/${fd##*/})" ;;
                esac
            done
        done
    "#;
    let kept = host.root(kept).text();
    let lines: Vec<&str> = kept.lines().collect();
    assert!(!lines.is_empty(), "the claim on the upper is kept");
    // The last digit of the flags: O_RDONLY is 0, O_WRONLY 1, O_RDWR 2.
    assert!(lines.iter().all(|line| *line == "/run/ojail/jails/alice/alive 0"), "{kept}");
}
