//! What a user can send along or leave in their home has no effect before the jail is entered.

use std::process::Command;

use lab::{Host, User};

use crate::common::setup;
use crate::place::{WHERE, inside};
use crate::ssh::WARM;

/// A directory of the host's that no jail has, where whatever runs outside leaves a mark.
const OUTSIDE: &str = "/srv/outside";

/// A library whose only act is to leave the mark.
const LIBRARY: &str = "
#include <fcntl.h>
__attribute__((constructor)) static void mark(void) { open(\"/srv/outside/mark\", O_CREAT | O_WRONLY, 0666); }
unsigned la_version(unsigned version) { mark(); return version; }
";

/// Puts everything that the variables below point to onto the host.
fn plant(host: &Host) {
    host.root("mkdir -m 1777 /srv/outside").ok();
    host.write("/srv/outside/mark.sh", 0o755, ": > /srv/outside/mark\n");
    host.write("/srv/outside/sitecustomize.py", 0o644, "open('/srv/outside/mark', 'w')\n");
    let [source, library] = ["mark.c", "mark.so"].map(|name| host.path(OUTSIDE).join(name));
    std::fs::write(&source, LIBRARY).expect("the host's directory is ours");
    // The compiler that links the tests themselves.
    let cc = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(cc.is_ok_and(|status| status.success()), "cc works");
}

const VARIABLES: [(&str, &str); 7] = [
    ("LD_PRELOAD", "/srv/outside/mark.so"),
    ("LD_AUDIT", "/srv/outside/mark.so"),
    ("LD_LIBRARY_PATH", "/srv/outside"),
    ("GCONV_PATH", "/srv/outside"),
    ("BASH_ENV", "/srv/outside/mark.sh"),
    ("ENV", "/srv/outside/mark.sh"),
    ("PYTHONPATH", "/srv/outside"),
];

#[test]
fn variables_from_the_client_do_nothing_before_the_jail() {
    lab::require_root!();
    let host = setup(WARM)
        .user(User::new("dave").shell("/usr/bin/ojail-shell").groups(["jailed"]))
        .sshd_config("AcceptEnv *\nPermitUserEnvironment yes")
        .start();
    plant(&host);
    let mark = host.path("/srv/outside/mark");
    let marked = || {
        let was = mark.exists();
        let _ = std::fs::remove_file(&mark);
        was
    };
    // For a user of the host they do what they should, so the mark can be trusted.
    for (name, value) in [VARIABLES[0], VARIABLES[1], VARIABLES[4]] {
        // Debian's bash reads no BASH_ENV where it takes itself for sshd's first shell.
        host.ssh("bob", "/bin/bash -c /bin/true; exit 0").arg(format!("-oSetEnv={name}={value}")).run();
        assert!(marked(), "{name} has no effect on the host");
    }
    let all = |end| VARIABLES.map(|(name, value)| format!("{name}={value}{end}")).concat();
    let sent = format!("-oSetEnv={}", all(" "));
    for user in ["alice", "dave"] {
        let inside = inside(&host, user);
        // They arrive, and it is the jail's loader, shell and so on that hear of them first.
        let output = host.ssh(user, &format!("/usr/bin/{WHERE}; /usr/bin/printenv")).arg(&sent).ok();
        assert!(output.stdout.starts_with(&inside), "{output}");
        for (name, value) in VARIABLES {
            assert!(
                output.stdout.contains(&format!("\n{name}={value}\n")),
                "{name} did not arrive: {output}"
            );
        }
        host.ssh(user, "/bin/bash -c /bin/true; exit 0").arg(&sent).tty().ok();
        host.sftp(user, "ls\n").arg(&sent).ok();
        assert!(!marked(), "what {user} sent ran something on the host");

        // In the user's own files: sshd reads one, and Debian's sshd has pam_env read the other.
        for file in [".ssh/environment", ".pam_environment"] {
            host.write(format!("/home/{user}/{file}"), 0o644, &all("\n"));
        }
        let output = host.ssh(user, &format!("/usr/bin/{WHERE}; /usr/bin/printenv")).ok();
        assert!(output.stdout.starts_with(&inside), "{output}");
        assert!(output.stdout.contains("\nBASH_ENV=/srv/outside/mark.sh\n"), "{output}");
        assert!(!marked(), "what {user} has at home ran something on the host");
    }
    host.ssh("bob", "/bin/true").arg("-oSetEnv=LD_PRELOAD=/srv/outside/mark.so").run();
    assert!(marked(), "the mark still works");
}

#[test]
fn what_the_users_ssh_files_name_runs_inside() {
    lab::require_root!();
    let host = setup(WARM).sshd_config("PermitUserEnvironment yes").start();
    let inside = inside(&host, "alice");
    host.write("/home/alice/.ssh/rc", 0o755, "{ stat -c %d:%i /; id -un; } > ~/by-rc\n");
    host.ssh("alice", "true").ok();
    let by_rc = std::fs::read_to_string(host.path("/home/alice/by-rc")).expect("rc ran");
    assert_eq!(by_rc, format!("{inside}\nalice\n"));

    let keys = "/home/alice/.ssh/authorized_keys";
    let forced = format!(
        "sed -i 's|^|command=\"{WHERE}; echo asked=$SSH_ORIGINAL_COMMAND hue=$HUE\",environment=\"HUE=blue\" |' {keys}"
    );
    host.root(&forced).ok();
    assert_eq!(
        host.ssh("alice", "cat /etc/shadow").text(),
        format!("{inside}\nasked=cat /etc/shadow hue=blue")
    );
    assert_eq!(host.ssh("alice", "").tty().text(), format!("{inside}\r\nasked= hue=blue"));
    host.sftp("alice", "ls /\n").fails();
}

#[test]
fn a_command_that_sshd_forces_runs_inside() {
    lab::require_root!();
    let host = setup(WARM).sshd_config(&format!("Match User alice\nForceCommand {WHERE}; sleep 0")).start();
    let forced = host.ssh("alice", "echo asked").text();
    assert_ne!(forced, crate::place::outside(&host));
    assert_eq!(host.ssh("alice", "echo asked").tty().text(), forced);
    assert_eq!(host.ssh("bob", "echo asked").text(), "asked");
}

#[test]
fn the_runtime_directory_is_the_jails_and_the_hosts_bus_is_unknown() {
    lab::require_root!();
    let host = setup("")
        .file(
            "/etc/environment",
            0o644,
            "DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus\nCOLOUR=red\n",
        )
        .start();
    let show = "echo $COLOUR; printenv DBUS_SESSION_BUS_ADDRESS";
    assert_eq!(host.ssh("bob", show).text(), "red\nunix:path=/run/user/1000/bus");
    assert_eq!(host.ssh("alice", show).run().text(), "red");

    let uid = host.root("id -u alice").text();
    let directory = "echo $XDG_RUNTIME_DIR; stat -c '%F %U %G %a' $XDG_RUNTIME_DIR; touch $XDG_RUNTIME_DIR/x";
    let expected = format!("/run/user/{uid}\ndirectory alice alice 700");
    assert_eq!(host.ssh("alice", directory).text(), expected);
    assert_eq!(host.ssh("alice", directory).tty().text().replace('\r', ""), expected);
    assert!(!host.path(format!("/run/user/{uid}")).exists());
}
