//! Does sshd ask PAM? What its settings mean for jails.

use std::path::PathBuf;
use std::process::Command;

use super::{Report, Setting};
use crate::account::{self, Username};

const SUBJECT: &str = "sshd";

/// The daemon: where Debian has it, else in PATH.
pub(super) fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from).into_iter();
    // An empty or relative part would be the working directory, which may be anybody's.
    let named = std::env::split_paths(&path).filter(|place| place.is_absolute());
    places.chain(named).map(|place| place.join("sshd")).find(|path| path.is_file())
}

pub(super) fn check(report: &mut Report, setting: &Setting, user: Option<&str>) {
    let Some(program) = program() else {
        report.warn(
            SUBJECT,
            "there is no sshd in /usr/sbin, nor in PATH",
            "apt-get install openssh-server, if users come in by SSH",
        );
        return;
    };
    if !setting.root {
        report.needs_root(SUBJECT, "its configuration");
        return;
    }
    // Only for names that are one word to sshd, and somebody's.
    let user = user.filter(|user| Username::parse(user).is_ok() && account::lookup(user).is_ok());
    // `Match` blocks are applied only if it is said for whom.
    let whom = user.map(|user| format!("user={user},host=localhost,addr=127.0.0.1"));
    let arguments = whom.iter().flat_map(|whom| ["-C", whom.as_str()]);
    match Command::new(&program).arg("-T").args(arguments).output() {
        Ok(output) if output.status.success() => {
            settings(report, &String::from_utf8_lossy(&output.stdout), user);
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            let program = program.display();
            report.warn(SUBJECT, format!("`{program} -T` fails: {said}"), "mend its configuration");
        }
        Err(e) => {
            let program = program.display();
            report.warn(SUBJECT, format!("{program} cannot be run: {e}"), "mend its installation");
        }
    }
}

/// What `sshd -T` prints: a lower-case keyword and its value a line.
fn settings(report: &mut Report, text: &str, user: Option<&str>) {
    let value = |key: &str| {
        let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
        pairs.find(|(name, _)| *name == key).map_or("", |(_, value)| value.trim())
    };
    if value("usepam") == "yes" {
        report.ok(SUBJECT, "it asks PAM (UsePAM yes)");
    } else {
        report.error(
            SUBJECT,
            "it does not ask PAM (UsePAM no): jailed users land on the host, where ojail-shell stops shells, but not sftp and forwarding",
            "set `UsePAM yes` in /etc/ssh/sshd_config",
        );
    }
    let whom = user.map(|user| format!(" for {user}")).unwrap_or_default();
    let root = value("chrootdirectory");
    if !root.is_empty() && root != "none" {
        report.warn(
            SUBJECT,
            format!("ChrootDirectory {root}{whom} is looked up inside the jail"),
            "take ChrootDirectory out for jailed users: the jail replaces it",
        );
    }
    let command = value("forcecommand");
    if !command.is_empty() && command != "none" {
        report.ok(SUBJECT, format!("ForceCommand {command}{whom} runs inside the jail"));
    }
    if value("permituserenvironment") != "no" {
        report.ok(SUBJECT, format!("PermitUserEnvironment{whom} has its effect inside the jail only"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Report {
        let mut report = Report::default();
        settings(&mut report, text, None);
        report
    }

    #[test]
    fn an_sshd_that_asks_pam_is_well() {
        assert_eq!(
            findings(
                "port 22\nusepam yes\nchrootdirectory none\nforcecommand none\npermituserenvironment no\n"
            )
            .status(),
            0
        );
    }

    #[test]
    fn what_runs_inside_is_told_and_is_no_warning() {
        let report = findings("usepam yes\nforcecommand internal-sftp\npermituserenvironment yes\n");
        assert_eq!((report.status(), report.findings.len()), (0, 3), "{report:?}");
    }

    #[test]
    fn one_that_does_not_is_an_error_and_a_chroot_a_warning() {
        assert_eq!(findings("usepam no\n").status(), 2);
        assert_eq!(findings("usepam yes\nchrootdirectory /srv/sftp\n").status(), 1);
    }
}
