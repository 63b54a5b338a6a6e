//! The Debian package that `make deb` makes, in the hands of dpkg. Above all: its removal locks nobody out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

#[path = "common/mod.rs"]
mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use lab::{Host, Output, User};

use common::{config, digest, runs};

fn changed(path: &Path) -> SystemTime {
    let meta = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    meta.modified().unwrap()
}

/// The package, not older than what it is made of.
fn package() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let target = workspace.join(target);
    let entries = fs::read_dir(target.join("debian")).expect("`make deb` has not been run");
    let mut packages =
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension() == Some("deb".as_ref()));
    let package = packages.next().expect("`make deb` has not been run");
    assert_eq!(packages.next(), None, "one package");
    let scripts = fs::read_dir(workspace.join("debian")).unwrap().map(|entry| entry.unwrap().path());
    for path in scripts.filter(|path| path.is_file()).chain([target.join("release/ojail")]) {
        assert!(changed(&package) >= changed(&path), "{} is newer: run `make deb`", path.display());
    }
    package
}

/// A host that has never seen ojail, with the package on it, not installed.
fn host() -> Host {
    let host = lab::host()
        .user(User::new("alice").groups(["jailed"]))
        .user("bob")
        .layer("debian")
        .without_ojail()
        .sshd_config("PermitRootLogin yes")
        .start();
    host.root("cp /root/.ssh/id_ed25519.pub /root/.ssh/authorized_keys").ok();
    fs::copy(package(), host.path("/root/ojail.deb")).unwrap();
    host
}

fn dpkg(host: &Host, arguments: &str) -> Output {
    host.root(&format!("DEBIAN_FRONTEND=noninteractive dpkg {arguments}")).run()
}

#[track_caller]
fn dpkg_does(host: &Host, arguments: &str) -> Output {
    let output = dpkg(host, arguments);
    assert_eq!(output.code(), Some(0), "dpkg {arguments}: {output}");
    output
}

/// A host where the package is installed and alice is jailed, as the README says it, by pam-auth-update.
fn installed() -> Host {
    let host = host();
    dpkg_does(&host, "-i /root/ojail.deb");
    host.write("/etc/ojail/ojail.toml", 0o644, &config(""));
    host.root("DEBIAN_FRONTEND=noninteractive pam-auth-update --enable ojail").ok();
    host
}

/// Whether a way in leads into a jail.
fn is_jailed(output: Output) -> bool {
    output.ok().text() == "ojail-init"
}

/// Everybody gets in by ssh and su, and whether alice is jailed.
#[track_caller]
fn everybody_gets_in(host: &Host, alice_is_jailed: bool) {
    let look = "cat /proc/1/comm";
    for user in ["root", "bob"] {
        assert!(!is_jailed(host.ssh(user, look).run()), "{user}");
        assert!(!is_jailed(host.root(&format!("su - {user} -c '{look}'")).run()), "{user}");
    }
    assert_eq!(is_jailed(host.ssh("alice", look).run()), alice_is_jailed);
    assert_eq!(is_jailed(host.root(&format!("su - alice -c '{look}'")).run()), alice_is_jailed);
    // Root by way of an ordinary user, which is the last resort.
    assert_eq!(host.root("su bob -c 'echo lab | su root -c \"id -u\" 2>/dev/null'").run().code(), Some(1));
    host.root("echo root:lab | chpasswd").ok();
    assert_eq!(host.root("su bob -c 'echo lab | su root -c \"id -u\"'").text(), "0");
    host.root("passwd -l root").ok();
}

/// Whether a line of PAM's names the module.
fn is_wired(host: &Host) -> bool {
    host.root("grep -rqs '^[^#]*pam_ojail' /etc/pam.d /etc/pam.conf").run().code() == Some(0)
}

#[test]
fn it_installs_wires_nobody_and_jails_when_asked_to() {
    lab::require_root!();
    let host = host();
    dpkg_does(&host, "-i /root/ojail.deb");
    assert!(!is_wired(&host), "the profile is off until somebody turns it on");
    everybody_gets_in(&host, false);
    assert_eq!(host.root("dpkg --verify ojail; dpkg --audit").text(), "");
    assert_eq!(
        host.root("dpkg-query -W -f '${Conffiles}' ojail | awk '{print $1}'").text(),
        "/etc/ojail/ojail.toml"
    );
    host.root("grep -qx /usr/bin/ojail-shell /etc/shells").ok();
    host.root(
        "ls /usr/lib/*/security/pam_ojail.so /usr/share/man/man8/ojail.8.gz /usr/lib/tmpfiles.d/ojail.conf",
    )
    .ok();
    host.root("ls /usr/share/man/man5/ojail.toml.5.gz /usr/lib/systemd/system/ojail-tidy.timer").ok();

    host.write("/etc/ojail/ojail.toml", 0o644, &config(""));
    host.root("DEBIAN_FRONTEND=noninteractive pam-auth-update --enable ojail").ok();
    everybody_gets_in(&host, true);
    let checked = host.root("ojail check alice").run().stdout;
    assert!(checked.contains("alice is jailed in profile debian"), "{checked}");
    assert_eq!(host.root("ojail complete users").text(), "alice");
    assert_eq!(host.root("su bob -s /bin/sh -c '/usr/sbin/ojail complete profiles'").text(), "debian");

    // The same again is an upgrade: what the administrator chose stays.
    dpkg_does(&host, "-i /root/ojail.deb");
    everybody_gets_in(&host, true);
}

#[test]
fn its_removal_and_purge_lock_nobody_out_and_delete_nothing_of_the_users() {
    lab::require_root!();
    for first in ["-r", "-P"] {
        let host = installed();
        let session =
            host.ssh("alice", "echo kept > /var/tmp/kept; echo inside; read line; echo $line").spawn();
        session.wait_for("inside");
        host.root("usermod -s /usr/bin/ojail-shell bob").ok();
        let of_users = || ["/srv/overlay/upperdirs", "/var/lib/ojail"].map(|path| digest(&host, path));
        let before = of_users();

        let said = dpkg_does(&host, &format!("{first} ojail")).stderr;
        assert!(
            said.contains("have the login shell /usr/bin/ojail-shell") && said.contains(": bob\n"),
            "{said}"
        );
        assert!(said.contains("jails that are running go on"), "{said}");
        host.root("usermod -s /bin/bash bob").ok();
        assert!(!is_wired(&host));
        everybody_gets_in(&host, false);
        assert_eq!(
            host.root("cat /proc/*/comm 2>/dev/null | grep -c ojail-init").text(),
            "1",
            "her jail goes on"
        );
        assert_eq!(before, of_users());
        if first == "-r" {
            host.root("test -e /etc/ojail/ojail.toml").ok();
            dpkg_does(&host, "-P ojail");
            everybody_gets_in(&host, false);
        }
        drop(session);
        host.root("grep -q ojail /etc/shells /var/lib/dpkg/status").fails();
        host.root("test -e /etc/ojail").fails();
        assert_eq!(before, of_users());
        assert_eq!(host.root("cat /srv/overlay/upperdirs/alice/var/tmp/kept").text(), "kept");

        // And back again, to the same upper under the same ids.
        dpkg_does(&host, "-i /root/ojail.deb");
        host.write("/etc/ojail/ojail.toml", 0o644, &config(""));
        host.root("DEBIAN_FRONTEND=noninteractive pam-auth-update --enable ojail").ok();
        assert_eq!(host.ssh("alice", "cat /var/tmp/kept /proc/1/comm").text(), "kept\nojail-init");
    }
}

#[test]
fn it_is_not_removed_while_a_line_that_a_person_wrote_names_the_module() {
    lab::require_root!();
    let line = "session required pam_ojail.so";
    for (wire, mend, file) in [
        (
            format!("echo '{line}' >> /etc/pam.d/sshd; echo '{line}' >> /etc/pam.d/su"),
            "sed -i /pam_ojail/d /etc/pam.d/sshd /etc/pam.d/su",
            "/etc/pam.d/sshd /etc/pam.d/su",
        ),
        // Below what pam-auth-update manages, which therefore stays.
        (
            format!("pam-auth-update --enable ojail; echo '{line}' >> /etc/pam.d/common-session"),
            "sed -i '$d' /etc/pam.d/common-session",
            "/etc/pam.d/common-session",
        ),
        // In the middle of it: pam-auth-update keeps its hands off all files then.
        (
            format!("pam-auth-update --enable ojail; sed -i '/pam_unix/i {line}' /etc/pam.d/common-session"),
            "sed -i '0,/pam_ojail/{/pam_ojail/d}' /etc/pam.d/common-session",
            "/etc/pam.d/common-session",
        ),
    ] {
        let host = host();
        dpkg_does(&host, "-i /root/ojail.deb");
        host.write("/etc/ojail/ojail.toml", 0o644, &config(""));
        host.root(&format!("export DEBIAN_FRONTEND=noninteractive; {wire}")).ok();
        everybody_gets_in(&host, true);
        let before = digest(&host, "/etc/pam.d");
        for act in ["-r", "-P"] {
            let refused = dpkg(&host, &format!("{act} ojail"));
            assert_ne!(refused.code(), Some(0), "{refused}");
            assert!(refused.stderr.contains(&format!("Take pam_ojail out of {file}")), "{refused}");
            assert_eq!(digest(&host, "/etc/pam.d"), before, "{wire}");
            assert_eq!(host.root("dpkg-query -W -f '${db:Status-Status}' ojail").text(), "installed");
            everybody_gets_in(&host, true);
        }
        assert!(runs(&host, "alice"));
        host.root(mend).ok();
        dpkg_does(&host, "-r ojail");
        assert!(!is_wired(&host));
        everybody_gets_in(&host, false);
    }
}

/// What all of this is for.
#[test]
fn a_line_that_names_a_module_which_is_not_there_keeps_out_even_root() {
    lab::require_root!();
    let host = lab::host().without_ojail().pam("sshd").pam("su").start();
    host.root("cp /root/.ssh/id_ed25519.pub /root/.ssh/authorized_keys").ok();
    host.ssh("root", "true").fails();
    host.root("su - root -c true").fails();
    host.root("sed -i /pam_ojail/d /etc/pam.d/sshd /etc/pam.d/su").ok();
    host.ssh("root", "true").ok();
    host.root("su - root -c true").ok();
}

#[test]
fn it_is_not_removed_while_it_is_roots_login_shell() {
    lab::require_root!();
    let host = installed();
    host.root("usermod -s /usr/bin/ojail-shell root").ok();
    let refused = dpkg(&host, "-r ojail");
    assert!(refused.code() != Some(0) && refused.stderr.contains("usermod -s /bin/bash root"), "{refused}");
    host.root("usermod -s /bin/bash root").ok();
    everybody_gets_in(&host, true);
}

#[test]
fn lintian_has_nothing_to_warn_of() {
    let output =
        Command::new("lintian").args(["--allow-root", "--fail-on", "error,warning"]).arg(package()).output();
    let output = output.unwrap_or_else(|error| panic!("lintian: {error}; see tests/lab/install-needs"));
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
}
