//! Is `pam_ojail` in each PAM service by which users come in, and does its place in the stack hold?

use std::fs;

use super::{Report, Setting};

const SUBJECT: &str = "PAM";

/// The module, as PAM files name it.
const OURS: &str = "pam_ojail.so";

/// Services that let users in, where they exist. Those that only root uses to become a user (`sudo`, `runuser`) are not
/// among them.
const WAYS_IN: [&str; 19] = [
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
    "lightdm",
    "sddm",
    "xrdp-sesman",
    "cockpit",
    "vsftpd",
    "proftpd",
    "samba",
    "rlogin",
];

/// Modules that do nothing in which it matters whose files they read.
const HARMLESS: [&str; 4] = ["pam_permit.so", "pam_deny.so", "pam_selinux.so", "pam_warn.so"];

/// One line of a session stack, with includes followed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    control: String,
    module: String,
}

pub(super) fn check(report: &mut Report, setting: &Setting) {
    let read = |name: &str| fs::read_to_string(format!("/etc/pam.d/{name}")).ok();
    let mut open = Vec::new();
    for service in WAYS_IN {
        let Some(stack) = session_stack(service, &read) else { continue };
        if !service_is_wired(report, service, &stack) {
            open.push(service);
        }
    }
    if !setting.jails() {
        return;
    }
    if open.contains(&"sshd") {
        report.error(
            SUBJECT,
            "sshd: pam_ojail is not in its session stack: nobody who logs in over SSH is jailed",
            "put `session required pam_ojail.so` at the end of /etc/pam.d/sshd",
        );
    }
    open.retain(|service| *service != "sshd");
    if !open.is_empty() {
        let units = if open.contains(&"systemd-user") {
            " (systemd-user: users' units run outside the jail)"
        } else {
            ""
        };
        report.warn(
            SUBJECT,
            format!("these ways in stay open to jailed users: {}{units}", open.join(", ")),
            "put `session required pam_ojail.so` at the end of each of these files in /etc/pam.d",
        );
    }
}

/// Whether the service has the module; findings about its place and its control.
fn service_is_wired(report: &mut Report, service: &str, stack: &[Line]) -> bool {
    let Some(place) = stack.iter().position(|line| line.module == OURS) else { return false };
    let control = &stack[place].control;
    if control != "required" && control != "requisite" {
        report.error(
            SUBJECT,
            format!(
                "{service}: pam_ojail is `{control}`: a user whose jail cannot be raised stays on the host"
            ),
            format!("write `session required {OURS}`"),
        );
        return true;
    }
    if let Some(line) =
        stack[..place].iter().enumerate().find(|(at, line)| may_skip(line, place - at)).map(|(_, l)| l)
    {
        report.error(
            SUBJECT,
            format!(
                "{service}: `{} {}` before pam_ojail may end the stack without it",
                line.control, line.module
            ),
            "put the line of pam_ojail before it",
        );
        return true;
    }
    let mut after: Vec<&str> = stack[place..].iter().map(|line| line.module.as_str()).collect();
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
            format!("put `session required {OURS}` at the end of /etc/pam.d/{service}, and nowhere before"),
        );
    }
    true
}

/// Whether this line can lead past the one that is `distance` lines below it.
fn may_skip(line: &Line, distance: usize) -> bool {
    if line.control == "sufficient" {
        return true;
    }
    let actions =
        line.control.trim_matches(['[', ']']).split_whitespace().filter_map(|pair| pair.split_once('='));
    actions
        .map(|(_, action)| action)
        .any(|action| action == "done" || action.parse::<usize>().is_ok_and(|jump| jump >= distance))
}

/// The session lines of a service in their order; `None` if there is no such service.
fn session_stack(service: &str, read: &dyn Fn(&str) -> Option<String>) -> Option<Vec<Line>> {
    let mut stack = Vec::new();
    add(&read(service)?, read, &mut stack, 0);
    Some(stack)
}

/// Deeper than anybody nests; a circle of includes ends here.
const DEEPEST: usize = 16;

fn add(text: &str, read: &dyn Fn(&str) -> Option<String>, stack: &mut Vec<Line>, depth: usize) {
    if depth > DEEPEST {
        return;
    }
    let include = |name: &str, stack: &mut Vec<Line>| {
        if let Some(text) = read(name.trim_start_matches("/etc/pam.d/")) {
            add(&text, read, stack, depth + 1);
        }
    };
    // A backslash at its end continues a line.
    for line in text.replace("\\\n", " ").lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let (kind, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        if kind.eq_ignore_ascii_case("@include") {
            include(rest.trim(), stack);
            continue;
        }
        if !kind.trim_start_matches('-').eq_ignore_ascii_case("session") {
            continue;
        }
        let rest = rest.trim_start();
        // A control is a word, or words in brackets.
        let end = if rest.starts_with('[') {
            rest.find(']').map(|at| at + 1)
        } else {
            rest.find(char::is_whitespace)
        };
        let Some(end) = end else { continue };
        let (control, rest) = rest.split_at(end);
        let module = rest.split_whitespace().next().unwrap_or_default();
        if control == "include" || control == "substack" {
            include(module, stack);
        } else {
            let module = module.rsplit('/').next().unwrap_or(module);
            stack.push(Line { control: control.to_owned(), module: module.to_owned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMON: &str = "session [default=1] pam_permit.so\nsession requisite pam_deny.so\n\
                          session required pam_permit.so\nsession required pam_unix.so # and more\n";

    fn stack(sshd: &str) -> Vec<Line> {
        let read = |name: &str| match name {
            "sshd" => Some(sshd.to_owned()),
            "common-session" => Some(COMMON.to_owned()),
            "circle" => Some("session include circle\n".to_owned()),
            _ => None,
        };
        session_stack("sshd", &read).unwrap()
    }

    fn findings(sshd: &str) -> (bool, Report) {
        let mut report = Report::default();
        let wired = service_is_wired(&mut report, "sshd", &stack(sshd));
        (wired, report)
    }

    #[test]
    fn includes_continuations_and_controls_are_read() {
        let stack = stack(
            "auth required pam_unix.so\n@include common-session\n-session \\\n optional /lib/x/pam_systemd.so a b\n\
             session include circle\nsession include none\n",
        );
        let modules: Vec<&str> = stack.iter().map(|line| line.module.as_str()).collect();
        assert_eq!(
            modules,
            ["pam_permit.so", "pam_deny.so", "pam_permit.so", "pam_unix.so", "pam_systemd.so"]
        );
        assert_eq!(stack[0].control, "[default=1]");
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
            "session [success=1 default=ignore] pam_x.so\nsession required pam_ojail.so\n",
            "session [success=done default=ignore] pam_x.so\nsession required pam_ojail.so\n",
        ] {
            assert_eq!(findings(sshd).1.status(), 2, "{sshd}");
        }
    }

    #[test]
    fn a_stack_without_it_is_not_wired() {
        assert!(!findings("@include common-session\naccount required pam_ojail.so\n").0);
    }
}
