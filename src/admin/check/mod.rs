//! `ojail check [USER]`: finds what is wrong before a user does, and says how to mend it. Changes nothing.
//!
//! One file a subject; each adds its findings to the report. What needs root and has none is a finding too.

mod account;
mod configuration;
mod ids;
mod kernel;
mod limits;
pub(super) mod pam;
pub(super) mod people;
mod programs;
mod sshd;
mod stack;
mod views;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::say;
use crate::config::{self, Config};
use crate::error::Result;
use crate::paths;

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// As it should be.
    Ok,
    /// Works, but not as one would wish; or could not be looked at.
    Warning,
    /// Logins are refused, or jailed users are not jailed.
    Error,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    severity: Severity,
    subject: &'static str,
    sentence: String,
    mend: Option<String>,
}

impl Finding {
    /// Whether jailed users are not jailed, or nobody gets in.
    pub(super) fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// What was found.
    pub(super) fn sentence(&self) -> &str {
        &self.sentence
    }
}

/// What sshd's own settings mean for this user, which no PAM session shows. For `ojail prove`, as root.
pub(super) fn of_sshd(user: &str) -> Vec<Finding> {
    let mut report = Report::default();
    sshd::check(&mut report, &Setting { config: None, root: true }, Some(user));
    report.findings
}

/// All that was found, in the order in which it was looked at.
#[derive(Debug, Default)]
pub(super) struct Report {
    findings: Vec<Finding>,
}

impl Report {
    fn ok(&mut self, subject: &'static str, sentence: impl Into<String>) {
        self.add(Severity::Ok, subject, sentence.into(), None);
    }

    fn warn(&mut self, subject: &'static str, sentence: impl Into<String>, mend: impl Into<String>) {
        self.add(Severity::Warning, subject, sentence.into(), Some(mend.into()));
    }

    fn error(&mut self, subject: &'static str, sentence: impl Into<String>, mend: impl Into<String>) {
        self.add(Severity::Error, subject, sentence.into(), Some(mend.into()));
    }

    /// An error of the library's, whose sentence has its mend in it.
    fn fault(&mut self, subject: &'static str, error: &dyn std::error::Error) {
        let sentence = error.to_string();
        // Raising a jail meets the same faults as looking at its parts.
        if !self.findings.iter().any(|finding| finding.sentence == sentence) {
            self.add(Severity::Error, subject, sentence, None);
        }
    }

    fn needs_root(&mut self, subject: &'static str, what: &str) {
        self.warn(subject, format!("{what} could not be looked at"), "run `ojail check` as root");
    }

    fn add(&mut self, severity: Severity, subject: &'static str, sentence: String, mend: Option<String>) {
        self.findings.push(Finding { severity, subject, sentence, mend });
    }

    fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }

    fn status(&self) -> u8 {
        match (self.count(Severity::Error), self.count(Severity::Warning)) {
            (0, 0) => 0,
            (0, _) => 1,
            _ => 2,
        }
    }
}

/// What every subject may want to know.
struct Setting {
    config: Option<Config>,
    root: bool,
}

impl Setting {
    /// Whether any rule jails somebody.
    fn jails(&self) -> bool {
        let jails = |rule: &config::Rule| rule.verdict != config::Verdict::Exempt;
        self.config.as_ref().is_some_and(|config| config.rules.iter().any(jails))
    }
}

pub(super) fn run(user: Option<&str>, json: bool) -> Result<ExitCode> {
    let mut report = Report::default();
    let config = config::load(Path::new(paths::CONFIG));
    let setting = Setting { root: nix::unistd::geteuid().is_root(), config: config.as_ref().ok().cloned() };
    programs::check(&mut report);
    configuration::check(&mut report, &setting, config);
    kernel::check(&mut report, &setting);
    limits::check(&mut report, &setting);
    let people = people::find(&mut report, &setting, user);
    people::shells(&mut report, &people, user);
    ids::check(&mut report, &setting, &people);
    views::check(&mut report, &setting);
    pam::check(&mut report, &setting);
    sshd::check(&mut report, &setting, user);
    let told = user.map(|user| account::check(&mut report, &setting, user));
    if json {
        say(serde_json::json!({
            "findings": report.findings,
            "errors": report.count(Severity::Error),
            "warnings": report.count(Severity::Warning),
            "user": told,
        }));
    } else {
        let colours =
            std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        say(text(&report, colours));
    }
    Ok(ExitCode::from(report.status()))
}

/// For people: a heading a subject, a mark a finding, the mend below it.
fn text(report: &Report, colours: bool) -> String {
    let mut lines = Vec::new();
    let mut subject = "";
    for finding in &report.findings {
        if finding.subject != subject {
            subject = finding.subject;
            lines.push(paint(subject, "1", colours));
        }
        let mark = match finding.severity {
            Severity::Ok => paint("✓", "32", colours),
            Severity::Warning => paint("!", "33", colours),
            Severity::Error => paint("✗", "31", colours),
        };
        lines.push(format!("  {mark} {}", finding.sentence));
        if let Some(mend) = &finding.mend {
            lines.push(format!("      → {mend}"));
        }
    }
    lines.push(String::new());
    lines.push(match (report.count(Severity::Error), report.count(Severity::Warning)) {
        (0, 0) => "All is well.".to_owned(),
        (errors, warnings) => format!("{}, {}.", many(errors, "error"), many(warnings, "warning")),
    });
    lines.join("\n")
}

pub(super) fn paint(text: &str, colour: &str, colours: bool) -> String {
    if colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

pub(super) fn many(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_the_gravest_finding() {
        let mut report = Report::default();
        report.ok("a", "fine");
        assert_eq!(report.status(), 0);
        report.warn("a", "hm", "do this");
        assert_eq!(report.status(), 1);
        report.error("b", "no", "do that");
        assert_eq!(report.status(), 2);
        let text = text(&report, false);
        assert_eq!(
            text,
            "a\n  ✓ fine\n  ! hm\n      → do this\nb\n  ✗ no\n      → do that\n\n1 error, 1 warning."
        );
    }
}
