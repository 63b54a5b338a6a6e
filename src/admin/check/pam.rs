//! Is `pam_ojail` in each PAM service by which users come in, and does its place in the stack hold?

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use super::stack::{Entry, Stack, Trouble, session};
use super::{Report, Setting, sshd};

const SUBJECT: &str = "PAM";

/// The module, as PAM files name it.
const OURS: &str = "pam_ojail.so";

/// Services that let users in, where they exist. Those that only root uses to become a user (`sudo`, `runuser`) are not
/// among them.
const WAYS_IN: [&str; 24] = [
    "sshd",
    "login",
    "remote",
    "su",
    "su-l",
    "cron",
    "crond",
    "atd",
    "systemd-user",
    "dropbear",
    "gdm-password",
    "gdm-autologin",
    "gdm-fingerprint",
    "gdm-smartcard",
    "lightdm",
    "lightdm-autologin",
    "sddm",
    "xdm",
    "xrdp-sesman",
    "cockpit",
    "vsftpd",
    "proftpd",
    "samba",
    "rlogin",
];

/// Services that open sessions and let nobody in who is not root, or the same user, already.
const NO_WAYS_IN: [&str; 11] = [
    "chfn",
    "chpasswd",
    "chsh",
    "newusers",
    "passwd",
    "polkit-1",
    "runuser",
    "runuser-l",
    "sudo",
    "sudo-i",
    "userdel",
];

/// Modules that do nothing in which it matters whose files they read.
const HARMLESS: [&str; 4] = ["pam_permit.so", "pam_deny.so", "pam_selinux.so", "pam_warn.so"];

pub(super) fn check(report: &mut Report, setting: &Setting) {
    let mut open = Vec::new();
    for service in WAYS_IN {
        let stack = match session(service, &read) {
            // sshd asks PAM even if nobody told PAM about it.
            None if service == "sshd" && sshd::program().is_some() => session("other", &read),
            // The user manager is PID 1's own: without systemd as PID 1 (sd_booted(3)) nobody starts it.
            Some(_) if service == "systemd-user" && !Path::new("/run/systemd/system").is_dir() => continue,
            stack => stack,
        };
        let Some(stack) = stack else {
            if service == "sshd" && sshd::program().is_some() {
                open.push(service);
            }
            continue;
        };
        if troubled(report, service, &stack) {
            continue;
        }
        if !service_is_wired(report, service, &stack, true) {
            open.push(service);
        }
    }
    for service in others() {
        // Whoever wires more than the ways in means it: there too it must not let a refused user through.
        if let Some(stack) = session(&service, &read) {
            service_is_wired(report, &service, &stack, false);
        }
    }
    if setting.jails() {
        ways_that_stay_open(report, open);
    }
}

/// A PAM service that opens sessions, for `ojail prove`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::admin) struct Service {
    pub(in crate::admin) name: String,
    /// Whether users come in by it. By the others, root becomes a user, or a user changes their own entry.
    pub(in crate::admin) way_in: bool,
}

/// All services that open sessions, the ways in first.
pub(in crate::admin) fn services() -> Vec<Service> {
    let booted = Path::new("/run/systemd/system").is_dir();
    let asks = |name: &str| name == "sshd" && sshd::program().is_some() || session(name, &read).is_some();
    let ways = WAYS_IN.into_iter().filter(|name| asks(name)).map(|name| Service {
        name: name.to_owned(),
        // As in `check`.
        way_in: name != "systemd-user" || booted,
    });
    // What nobody has heard of may be a way in.
    let others = others()
        .into_iter()
        .filter(|name| has_own_session(name))
        .map(|name| Service { way_in: !NO_WAYS_IN.contains(&name.as_str()), name });
    let mut all: Vec<Service> = ways.chain(others).collect();
    all.sort_by_key(|service| !service.way_in);
    all
}

/// Whether the service has session lines, and not only those of `other`, which every service has.
fn has_own_session(name: &str) -> bool {
    session(name, &read).is_some_and(|stack| {
        stack.file.file_name().is_some_and(|file| file == name)
            && !(stack.entries.is_empty() && stack.troubles.is_empty())
    })
}

fn read(path: &Path) -> io::Result<String> {
    // Bytes of other encodings stand in comments only, if anywhere.
    Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())
}

fn ways_that_stay_open(report: &mut Report, mut open: Vec<&str>) {
    if open.contains(&"sshd") {
        let (why, mend) = if session("sshd", &read).is_some() {
            ("pam_ojail is not in its session stack", "put `session required pam_ojail.so` at the end of")
        } else {
            (
                "there is no such file in /etc/pam.d, and PAM's `other` has no pam_ojail",
                "restore the file, and put `session required pam_ojail.so` at its end:",
            )
        };
        report.error(
            SUBJECT,
            format!("sshd: {why}: nobody who logs in over SSH is jailed"),
            format!("{mend} /etc/pam.d/sshd"),
        );
    }
    open.retain(|service| *service != "sshd");
    if open.is_empty() {
        return;
    }
    let units = if open.contains(&"systemd-user") {
        " (systemd-user: users' units run outside the jail)"
    } else {
        ""
    };
    let mut mend = format!("put `session required {OURS}` at the end of each of these files in /etc/pam.d");
    let elsewhere: Vec<String> = open
        .iter()
        .filter(|service| !Path::new("/etc/pam.d").join(service).exists())
        .map(|service| format!("`cp /usr/lib/pam.d/{service} /etc/pam.d/`"))
        .collect();
    if !elsewhere.is_empty() {
        mend = format!("{mend}; before that, {}", elsewhere.join(", "));
    }
    report.warn(
        SUBJECT,
        format!("these ways in stay open to jailed users: {}{units}", open.join(", ")),
        mend,
    );
}

/// Services that are no ways in, and no fragments that only others include.
fn others() -> BTreeSet<String> {
    let names = fs::read_dir("/etc/pam.d").into_iter().flatten().flatten();
    names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !WAYS_IN.contains(&name.as_str()) && name != "other" && !name.starts_with("common-"))
        .collect()
}

/// Whether it cannot be told what this stack does; findings of why.
fn troubled(report: &mut Report, service: &str, stack: &Stack) -> bool {
    for trouble in &stack.troubles {
        match trouble {
            Trouble::Broken(what, mend) => report.error(SUBJECT, format!("{service}: {what}"), *mend),
            Trouble::Unread(what) => {
                report.warn(
                    SUBJECT,
                    format!("{service} could not be looked at: {what}"),
                    "run `ojail check` as root",
                );
            }
        }
    }
    !stack.troubles.is_empty()
}

/// Whether the service has the module; findings about its place and its control. `way_in`: also those that are not
/// grave.
fn service_is_wired(report: &mut Report, service: &str, stack: &Stack, way_in: bool) -> bool {
    let Some(wiring) = find(&stack.entries) else { return false };
    if wiring.control != "required" && wiring.control != "requisite" {
        report.error(
            SUBJECT,
            format!(
                "{service}: pam_ojail is `{}`: a user whose jail cannot be raised stays on the host",
                wiring.control
            ),
            format!("write `session required {OURS}`"),
        );
    } else if let Some((control, module)) = wiring.skipped_by {
        report.error(
            SUBJECT,
            format!("{service}: `{control} {module}` before pam_ojail may end the stack without it"),
            "put the line of pam_ojail before it",
        );
    } else if let Some((control, module)) = wiring.forgotten_by {
        report.error(
            SUBJECT,
            format!(
                "{service}: `{control} {module}` after pam_ojail may make PAM forget that it refused: \
                 a user whose jail cannot be raised stays on the host"
            ),
            "take `reset` out of that line, or put the line of pam_ojail behind it",
        );
    } else if way_in {
        let mut after = wiring.after;
        after.retain(|module| *module != OURS && !HARMLESS.contains(module));
        after.dedup();
        if after.is_empty() {
            report.ok(SUBJECT, format!("{service}: pam_ojail is required, and last"));
        } else {
            report.warn(
                SUBJECT,
                format!(
                    "{service}: {} come after pam_ojail, and so run inside the jail, with its files",
                    after.join(", ")
                ),
                format!(
                    "put `session required {OURS}` at the end of {}, and nowhere before",
                    stack.file.display()
                ),
            );
        }
    }
    true
}

/// Where pam_ojail stands, and what around it touches it.
struct Wiring<'a> {
    control: &'a str,
    /// The control and module of a line that can lead past it.
    skipped_by: Option<(&'a str, &'a str)>,
    /// … and of one that can make PAM forget its refusal.
    forgotten_by: Option<(&'a str, &'a str)>,
    after: Vec<&'a str>,
}

/// Looks for the first line of ours, also in substacks. What ends or resets a substack does nothing around it, so a
/// line counts only if it is in the same stack as ours, or in one around.
fn find(entries: &[Entry]) -> Option<Wiring<'_>> {
    let (at, mut wiring) = entries.iter().enumerate().find_map(|(at, entry)| {
        let wiring = match entry {
            Entry::Module { control, module } if module == OURS => {
                Wiring { control, skipped_by: None, forgotten_by: None, after: Vec::new() }
            }
            Entry::Module { .. } => return None,
            Entry::Substack(inner) => find(inner)?,
        };
        Some((at, wiring))
    })?;
    wiring.skipped_by = wiring.skipped_by.or_else(|| {
        let mut before = entries[..at].iter().enumerate();
        before.find_map(|(n, entry)| line(entry, |control| may_skip(control, at - n)))
    });
    let behind = &entries[at + 1..];
    wiring.forgotten_by = wiring.forgotten_by.or_else(|| behind.iter().find_map(|e| line(e, may_forget)));
    modules(behind, &mut wiring.after);
    Some(wiring)
}

/// The line, if it is one of a module and its control is of this kind.
fn line(entry: &Entry, kind: impl Fn(&str) -> bool) -> Option<(&str, &str)> {
    match entry {
        Entry::Module { control, module } if kind(control) => Some((control, module)),
        _ => None,
    }
}

fn modules<'a>(entries: &'a [Entry], into: &mut Vec<&'a str>) {
    for entry in entries {
        match entry {
            Entry::Module { module, .. } => into.push(module),
            Entry::Substack(inner) => modules(inner, into),
        }
    }
}

/// The actions of a control in brackets.
fn actions(control: &str) -> impl Iterator<Item = &str> {
    // `success = ok` may have blanks, so what follows a `=` is looked at, not words.
    control.trim_matches(['[', ']']).split('=').skip(1).filter_map(|text| text.split_whitespace().next())
}

/// Whether this control can lead past the line that is `distance` entries below.
fn may_skip(control: &str, distance: usize) -> bool {
    let skips = |action: &str| action == "done" || action.parse::<usize>().is_ok_and(|jump| jump >= distance);
    control == "sufficient" || actions(control).any(skips)
}

/// Whether this control can make PAM forget what came before.
fn may_forget(control: &str) -> bool {
    actions(control).any(|action| action == "reset")
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMON: &str = "session [default=1] pam_permit.so\nsession requisite pam_deny.so\n\
                          session required pam_permit.so\nsession required pam_unix.so # and more\n";

    fn findings(sshd: &str) -> (bool, Report) {
        let read = |path: &Path| match path.to_str().unwrap_or_default() {
            "/etc/pam.d/sshd" => Ok(sshd.to_owned()),
            "/etc/pam.d/common-session" => Ok(COMMON.to_owned()),
            "/etc/pam.d/enough" => Ok("session sufficient pam_x.so\n".to_owned()),
            "/etc/pam.d/two" => Ok("session required pam_permit.so\n".repeat(2)),
            "/etc/pam.d/forget" => Ok("session [default=reset] pam_x.so\n".to_owned()),
            "/etc/pam.d/ours-late" => {
                Ok("session sufficient pam_x.so\nsession required pam_ojail.so\n".to_owned())
            }
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        let mut report = Report::default();
        let stack = session("sshd", &read).unwrap();
        let wired =
            !troubled(&mut report, "sshd", &stack) && service_is_wired(&mut report, "sshd", &stack, true);
        (wired, report)
    }

    #[test]
    fn required_and_last_is_well() {
        let (wired, report) = findings("@include common-session\nsession required pam_ojail.so\n");
        assert!(wired);
        assert_eq!(report.status(), 0, "{report:?}");
    }

    #[test]
    fn what_comes_after_is_a_warning() {
        let (_, report) = findings("session required pam_ojail.so\nsession required pam_limits.so\n");
        assert_eq!(report.status(), 1);
        assert!(report.findings[0].sentence.contains("pam_limits.so come after"));
    }

    #[test]
    fn optional_is_an_error_and_so_is_a_way_around() {
        for sshd in [
            "session optional pam_ojail.so\n",
            "session [success=ok default=ignore] pam_ojail.so\n",
            "session sufficient pam_x.so\nsession required pam_ojail.so\n",
            "session include enough\nsession required pam_ojail.so\n",
            "session [success=1 default=ignore] pam_x.so\nsession required pam_ojail.so\n",
            "session [ success = 1 default = ignore ] pam_x.so\nsession required pam_ojail.so\n",
            "session [success=2 default=ignore] pam_x.so\nsession substack two\nsession required pam_ojail.so\n",
            "session [success=done default=ignore] pam_x.so\nsession required pam_ojail.so\n",
            "session substack ours-late\n",
        ] {
            assert_eq!(findings(sshd).1.status(), 2, "{sshd}");
        }
    }

    #[test]
    fn what_stays_within_a_substack_is_no_way_around() {
        for sshd in [
            "session substack enough\nsession required pam_ojail.so\n",
            "session [success=1 default=ignore] pam_x.so\nsession substack two\nsession required pam_ojail.so\n",
        ] {
            let (wired, report) = findings(sshd);
            assert!(wired && report.status() == 0, "{sshd}: {report:?}");
        }
    }

    #[test]
    fn a_reset_after_it_forgets_a_refusal_but_one_in_a_substack_does_not() {
        let (_, report) = findings("session required pam_ojail.so\nsession [default=reset] pam_permit.so\n");
        assert_eq!(report.status(), 2, "{report:?}");
        assert!(report.findings[0].sentence.contains("forget that it refused"));
        let (_, report) = findings("session required pam_ojail.so\nsession substack forget\n");
        assert_eq!(report.status(), 1, "{report:?}");
    }

    #[test]
    fn a_swallowed_line_does_not_count() {
        assert!(!findings("session optional pam_permit.so a \\ \nsession required pam_ojail.so\n").0);
        assert!(!findings("@include common-session\naccount required pam_ojail.so\n").0);
    }

    #[test]
    fn a_stack_that_pam_refuses_is_an_error() {
        let (_, report) = findings("session include none\nsession required pam_ojail.so\n");
        assert_eq!(report.status(), 2, "{report:?}");
    }
}
