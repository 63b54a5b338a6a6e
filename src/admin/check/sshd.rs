//! Does sshd ask PAM? What its settings mean for jails.

use std::path::Path;
use std::process::Command;

use super::{Report, Setting};

const SUBJECT: &str = "sshd";

pub(super) fn check(report: &mut Report, setting: &Setting) {
    let Some(program) =
        ["/usr/sbin/sshd", "/usr/local/sbin/sshd"].into_iter().find(|path| Path::new(path).exists())
    else {
        report.warn(
            SUBJECT,
            "there is no sshd in /usr/sbin",
            "apt-get install openssh-server, if users come in by SSH",
        );
        return;
    };
    if !setting.root {
        report.needs_root(SUBJECT, "its configuration");
        return;
    }
    match Command::new(program).arg("-T").output() {
        Ok(output) if output.status.success() => {
            settings(report, &String::from_utf8_lossy(&output.stdout));
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            report.warn(SUBJECT, format!("`{program} -T` fails: {said}"), "mend its configuration");
        }
        Err(e) => report.warn(SUBJECT, format!("{program} cannot be run: {e}"), "mend its installation"),
    }
}

/// What `sshd -T` prints: a lower-case keyword and its value a line.
fn settings(report: &mut Report, text: &str) {
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
    let root = value("chrootdirectory");
    if !root.is_empty() && root != "none" {
        report.warn(
            SUBJECT,
            format!("ChrootDirectory {root} is looked up inside the jail"),
            "take ChrootDirectory out for jailed users: the jail replaces it",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Report {
        let mut report = Report::default();
        settings(&mut report, text);
        report
    }

    #[test]
    fn an_sshd_that_asks_pam_is_well() {
        assert_eq!(findings("port 22\nusepam yes\nchrootdirectory none\n").status(), 0);
    }

    #[test]
    fn one_that_does_not_is_an_error_and_a_chroot_a_warning() {
        assert_eq!(findings("usepam no\n").status(), 2);
        assert_eq!(findings("usepam yes\nchrootdirectory /srv/sftp\n").status(), 1);
    }
}
