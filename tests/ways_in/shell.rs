//! `ojail-shell` as the account's login shell: inside nobody notices it, outside it lets nobody in.

use lab::{Host, Output, Setup, User};

use crate::common::{config, host as plain_host};
use crate::ssh::{INTERNAL_SFTP, master, quiet};

/// alice has ojail-shell, dave has bash; both are in a jail of the same profile.
fn setup(keys: &str) -> Setup {
    quiet(lab::host())
        .user(User::new("alice").shell("/usr/bin/ojail-shell").groups(["jailed"]))
        .user(User::new("dave").groups(["jailed"]))
        .layer("debian")
        .config(&config(&format!("keep_warm = \"5m\"\n{keys}")))
        .pam("sshd")
}

/// Any command, not read as options by the client.
fn say<'h>(host: &'h Host, user: &str, command: &str) -> lab::Run<'h> {
    host.exec(["ssh", &format!("-S/root/{user}"), &format!("{user}@127.0.0.1"), "--", command])
}

/// What the user would notice of a command.
fn seen(output: &Output) -> (Option<i32>, String, String) {
    (output.code(), output.stdout.clone(), output.stderr.clone())
}

#[test]
fn commands_come_out_as_with_the_real_shell() {
    lab::require_root!();
    let host = setup("").start();
    let _masters = ["alice", "dave"].map(|user| master(&host, user));
    let commands = [
        "printf '%s|' \"a  b\" 'c\"d' \\$HOME \"$0\" \"$-\" \"$#\"",
        "echo one\necho two\n\nexit 3",
        "--help",
        "--version",
        "-x",
        "-l",
        "-",
        "--",
        "--reset alice",
        "--reset",
        "exit 77",
        "kill -9 $$",
        "no-such-command",
        "if then",
        "shopt login_shell",
        "echo $SHELL; readlink /proc/$$/exe; tr '\\0' ' ' < /proc/$$/cmdline",
        "printf 'caf\\xc3\\xa9' ; printf '\\xff\\n' | od -c",
        "echo to-stderr >&2; cat; echo $?",
        "umask; ulimit -n; pwd; trap",
    ];
    for command in commands {
        let [ours, real] = ["alice", "dave"].map(|user| say(&host, user, command).stdin("input\n").run());
        let [ours, mut real] = [ours, real].map(|output| seen(&output));
        real.1 = real.1.replace("dave", "alice");
        assert_eq!(ours, real, "{command:?}");
    }
    // Something of it must have worked, or the comparison says nothing.
    assert_eq!(say(&host, "alice", "exit 77").run().code(), Some(77));
    assert_eq!(say(&host, "alice", "echo one\necho two").text(), "one\ntwo");
}

#[test]
fn a_command_of_100_kib_comes_through() {
    lab::require_root!();
    let host = setup("").start();
    let long = "x".repeat(100 << 10);
    assert_eq!(host.ssh("alice", &format!("text={long}; echo ${{#text}}")).text(), "102400");
}

#[test]
fn without_a_command_it_is_a_login_shell() {
    lab::require_root!();
    let host = setup("").start();
    host.write("/home/alice/.profile", 0o644, "PROFILE=read\n");
    let ask = "echo $0 $(shopt login_shell) $PROFILE $SHELL\n";
    let login = "-bash login_shell on read /bin/bash";
    assert_eq!(host.ssh("alice", "").stdin(ask).text(), login, "a script on standard input");
    let mut terminal = host.ssh("alice", "").tty().spawn();
    terminal.write(ask);
    terminal.wait_for(login);
    terminal.write("exit 5\n");
    assert_eq!(terminal.finish().code(), Some(5));
    assert_eq!(host.ssh("alice", ask).text(), "bash login_shell off /bin/bash");
    // Called by name, as su and other programs do.
    let by_name = "ojail-shell -l -c 'shopt login_shell'; exec -a -sh ojail-shell -c 'shopt login_shell'";
    assert_eq!(host.ssh("alice", by_name).text(), "login_shell    \ton\nlogin_shell    \ton");
    // More than one script's worth of lines, and an exit status at the end.
    let script: String =
        (0..1000).map(|number| format!("echo {number}\n")).chain(["exit 4\n".into()]).collect();
    let output = host.ssh("alice", "").stdin(script).run();
    assert_eq!((output.code(), output.stdout.lines().count()), (Some(4), 1000));
}

#[test]
fn scp_and_sftp_work_through_it() {
    lab::require_root!();
    let host = setup("").start();
    for (protocol, name) in [("-s", "one"), ("-O", "two")] {
        host.scp("/etc/hostname", &format!("alice:/var/tmp/{name}")).arg(protocol).ok();
        assert_eq!(host.ssh("alice", &format!("cat /var/tmp/{name}")).text(), "lab");
    }
    host.sftp("alice", "get /var/tmp/one /root/back\n").ok();
    assert_eq!(host.root("cat back").text(), "lab");
}

#[test]
fn the_profile_may_name_the_shell() {
    lab::require_root!();
    let host = setup("shell = \"/bin/dash\"").start();
    let ask = "readlink /proc/$$/exe; echo $0 $SHELL";
    assert_eq!(host.ssh("alice", ask).text(), "/usr/bin/dash\ndash /bin/dash");
    assert_eq!(host.ssh("alice", "").stdin(format!("{ask}\n")).text(), "/usr/bin/dash\n-dash /bin/dash");
    assert_eq!(host.ssh("alice", "getent passwd alice | cut -d: -f7").text(), "/bin/dash");
}

#[test]
fn a_shell_that_the_jail_lacks_is_named() {
    lab::require_root!();
    let host = setup("shell = \"/bin/fish\"").start();
    let output = host.ssh("alice", "true").fails();
    assert_eq!(output.stderr.lines().count(), 1, "{output}");
    assert!(output.stderr.contains("/bin/fish"), "{output}");
}

/// On the host there is one line on standard error, exit status 1, and nothing done.
#[track_caller]
fn refuses(host: &Host) {
    let output = host.ssh("alice", "echo got in; touch /tmp/got-in").run();
    assert_eq!((output.code(), output.stdout.as_str()), (Some(1), ""), "{output}");
    assert!(output.stderr.starts_with("ojail-shell: ") && output.stderr.lines().count() == 1, "{output}");
    let script = host.ssh("alice", "").stdin("touch /tmp/got-in\n").run();
    assert_eq!((script.code(), script.stdout.as_str()), (Some(1), ""), "{script}");
    let terminal = host.ssh("alice", "").tty().stdin("touch /tmp/got-in\n").run();
    assert_eq!(terminal.code(), Some(1), "{terminal}");
    assert_eq!(terminal.stdout.matches("ojail-shell: ").count(), 1, "{terminal}");
    host.sftp("alice", "put /etc/hostname /tmp/got-in\n").fails();
    for protocol in ["-s", "-O"] {
        host.scp("/etc/hostname", "alice:/tmp/got-in").arg(protocol).fails();
    }
    let reset = say(host, "alice", "--reset alice").run();
    assert_eq!((reset.code(), reset.stdout.as_str()), (Some(1), ""), "{reset}");
    assert!(reset.stderr.starts_with("ojail-shell: "), "{reset}");
    assert!(!host.path("/tmp/got-in").exists());
}

#[test]
fn outside_of_a_jail_it_refuses() {
    lab::require_root!();
    // The PAM line is missing.
    let host = quiet(lab::host())
        .user(User::new("alice").shell("/usr/bin/ojail-shell").groups(["jailed"]))
        .layer("debian")
        .config(&config(""))
        .start();
    refuses(&host);
    // A marker that somebody planted on the host does not help.
    host.write("/run/ojail/jail.json", 0o644, r#"{"user":"alice","profile":"debian","shell":"/bin/bash"}"#);
    host.root("chmod 755 /run/ojail").ok();
    refuses(&host);
}

#[test]
fn without_pam_it_refuses() {
    lab::require_root!();
    let host = setup("").sshd_config("UsePAM no").start();
    refuses(&host);
    // A user with a real shell gets in there: nothing but `ojail check` can help that.
    host.ssh("dave", "true").ok();
}

#[test]
fn only_root_on_the_host_may_reset_with_it() {
    lab::require_root!();
    let host = plain_host("");
    host.ssh("alice", "touch /var/tmp/kept").ok();
    let kept = host.path("/srv/overlay/upperdirs/alice/var/tmp/kept");
    assert!(kept.exists());
    let output = host.ssh("bob", "ojail-shell --reset alice").run();
    assert_eq!((output.code(), output.stdout.as_str()), (Some(1), ""), "{output}");
    assert_eq!(output.stderr.lines().count(), 1, "{output}");
    host.ssh("alice", "ojail-shell --reset alice").fails();
    assert!(kept.exists());
}

#[test]
fn internal_sftp_never_runs_it_but_is_jailed_all_the_same() {
    lab::require_root!();
    let host = setup("").file("/etc/ssh/sshd_config", 0o644, INTERNAL_SFTP).start();
    host.sftp("alice", "put /etc/hostname /var/tmp/here\n").ok();
    assert!(!host.path("/var/tmp/here").exists());
    assert_eq!(host.ssh("alice", "cat /var/tmp/here").text(), "lab");
}
