//! Sessions that begin under odd conditions, and odd ways to call the login shell: refused or right, and nothing between.

use std::time::Duration;

use lab::Host;

use crate::common::{SOON, remains, until};
use crate::probe::{PROBE, host};

fn wired(keys: &str) -> Host {
    let host = host(keys);
    host.root("echo session required pam_ojail.so >> /etc/pam.d/su").ok();
    host
}

#[test]
fn with_streams_closed_a_directory_gone_or_signals_ignored_a_session_is_right_or_refused() {
    lab::require_root!();
    let host = wired("");
    host.ssh("alice", "true").ok();
    let command = format!(
        "{{ cat /proc/1/comm; pwd; {PROBE} --only descriptors; }} > ~/said.new 2>&1; mv ~/said.new ~/said"
    );
    let su = format!("su alice -c 'cd; {command}'");
    for (case, script) in [
        ("no input", format!("exec <&-; {su}")),
        ("no streams", format!("exec <&- >&- 2>&-; {su}")),
        ("a directory that is gone", format!("mkdir /tmp/gone; cd /tmp/gone; rmdir /tmp/gone; {su}")),
        ("ignored signals", format!("trap '' HUP INT QUIT TERM PIPE CHLD USR1; {su}")),
        ("three descriptors", format!("ulimit -n 3; {su}")),
        ("ten descriptors", format!("ulimit -n 10; {su}")),
        ("no files of any size", format!("ulimit -f 0; {su}")),
        ("an umask of nothing", format!("umask 0; {su}")),
    ] {
        for cold in [false, true] {
            if cold {
                host.root("ojail stop alice").ok();
            }
            host.root("rm -f /home/alice/said*").ok();
            let output = host.exec(["bash", "-c", &script]).run();
            let said = std::fs::read_to_string(host.path("/home/alice/said")).unwrap_or_default();
            if said.is_empty() {
                // Whatever it was, it was not the host.
                assert!(
                    !host.path("/home/alice/said.new").metadata().is_ok_and(|meta| meta.len() > 0),
                    "{case}"
                );
                continue;
            }
            assert!(said.starts_with("ojail-init\n/home/alice\n"), "{case}, cold: {cold}: {said} {output}");
            assert!(said.contains("\"reached\":0"), "{case}, cold: {cold}: {said}");
        }
    }
    host.root("rm -f /home/alice/said*").ok();
    host.root(&su).ok();
    assert!(host.path("/home/alice/said").exists(), "without any of it the session is right");
}

#[test]
fn a_command_of_a_mebibyte_is_refused_or_runs_inside() {
    lab::require_root!();
    let host = host("");
    host.root("usermod -s /usr/bin/ojail-shell alice").ok();
    // The client joins its arguments, of which each may have 128 KiB.
    let words: Vec<String> =
        ["touch /tmp/ran;".to_owned()].into_iter().chain((0..11).map(|_| ":".repeat(100 << 10))).collect();
    let output = host.exec(["ssh", "alice@127.0.0.1", "--"].into_iter().map(String::from).chain(words)).run();
    assert!(!host.path("/tmp/ran").exists(), "{}", output.status);
    assert_eq!(host.ssh("alice", "cat /proc/1/comm").text(), "ojail-init");
}

#[test]
fn the_login_shell_takes_any_name_or_none() {
    lab::require_root!();
    let host = host("");
    // Without any argument, not even a name; only a program in C can do that.
    let source = host.path("/home/alice/nameless.c");
    let program = host.path("/home/alice/nameless");
    std::fs::write(
        &source,
        "#include <unistd.h>\nextern char **environ;\nint main(void) { char *none[] = {0}; \
         return execve(\"/usr/bin/ojail-shell\", none, environ); }\n",
    )
    .unwrap();
    let cc = std::process::Command::new("cc").args(["-static", "-o"]).args([&program, &source]).status();
    assert!(cc.is_ok_and(|status| status.success()), "cc works");
    for (call, says) in [
        ("echo 'cat /proc/1/comm; exit 7' | ./nameless", "ojail-init"),
        ("bash -c 'exec -a -x ojail-shell -c \"cat /proc/1/comm; exit 7\"'", "ojail-init"),
        ("bash -c 'exec -a --reset ojail-shell -c \"cat /proc/1/comm; exit 7\"'", "ojail-init"),
        ("bash -c 'exec -a \"\" ojail-shell -c \"cat /proc/1/comm; exit 7\"'", "ojail-init"),
    ] {
        let output = host.ssh("alice", call).run();
        assert_eq!((output.text().as_str(), output.code()), (says, Some(7)), "{call}: {output}");
        // On the host it lets nobody in, by whatever name.
        host.root("cp /home/alice/nameless /home/bob/").ok();
        let output = host.ssh("bob", call).run();
        assert_eq!((output.text().as_str(), output.code()), ("", Some(1)), "{call}: {output}");
    }
}

#[test]
fn an_ojail_init_that_is_stopped_on_its_way_is_given_up() {
    lab::require_root!();
    // Side by side: a login waits half a minute for it.
    std::thread::scope(|scope| {
        for number in [40, 120] {
            scope.spawn(move || stopped_at(number));
        }
    });
}

/// A login whose ojail-init gets a SIGSTOP at one of its system calls, and what is left of it.
fn stopped_at(number: u32) {
    let host = host("");
    host.ssh("alice", "echo kept > /var/tmp/kept").ok();
    host.root("ojail stop alice; cd /usr/libexec/ojail; mkdir real; cp ojail-init real").ok();
    let mounts = host.mountinfo();
    let script = format!(
        "#!/bin/sh\nexec /usr/bin/strace -D -f -qq -o /dev/null -e trace=all -e inject=all:signal=SIGSTOP:when={number} /usr/libexec/ojail/real/ojail-init\n"
    );
    host.write("/usr/libexec/ojail/ojail-init", 0o755, &script);
    let login =
        || host.ssh("alice", "cat /proc/1/comm; touch /tmp/ran").within(Duration::from_secs(60)).run();
    // The second finds nothing of the first that holds the upper.
    for output in [login(), login()] {
        assert_eq!(output.code(), Some(254), "{number}: {output}");
        assert!(!host.path("/tmp/ran").exists(), "{number}: it ran on the host");
        assert_eq!(host.mountinfo(), mounts, "{number}");
    }
    host.root("cd /usr/libexec/ojail; cp real/ojail-init new; mv new ojail-init").ok();
    // Whoever waited for it in vain has ended it.
    until("it has ended", SOON, || host.exec(["pgrep", "-x", "ojail-init"]).run().code() == Some(1));
    assert_eq!(host.ssh("alice", "cat /proc/1/comm /var/tmp/kept").text(), "ojail-init\nkept", "{number}");
    assert!(host.root("ojail stop alice").run().status.success());
    assert_eq!(remains(&host, "alice"), "", "{number}");
}
