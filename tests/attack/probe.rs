//! The probe at work in a test: where it lies, how it is run, what it printed.

use lab::{Host, Output, Setup, User};
use serde_json::Value;

use crate::common::config;

/// Where the probe is for a user who is jailed or not: the home is the host's, and is in both.
pub(crate) const PROBE: &str = "./ojail-probe";

/// A host with alice, who is jailed with these keys and has python3 and socat, and bob, who is not. Both have the probe.
pub(crate) fn host(keys: &str) -> Host {
    with_probe(setup(keys))
}

pub(crate) fn setup(keys: &str) -> Setup {
    lab::host()
        .user(User::new("alice").groups(["jailed"]))
        .user("bob")
        .layer("debian")
        .layer("tools")
        .config(
            &config(&format!("keep_warm = \"5m\"\n{keys}"))
                .replace("[\"debian\"]", "[\"tools\", \"debian\"]"),
        )
        .pam("sshd")
}

pub(crate) fn with_probe(setup: Setup) -> Host {
    let host = setup.start();
    host.root("for home in /home/*; do install -m 755 /usr/libexec/ojail/ojail-probe $home; done").ok();
    host
}

/// What a probe printed.
#[derive(Debug)]
pub(crate) struct Attempts(Vec<Attempt>);

#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    pub(crate) attack: String,
    pub(crate) contained: bool,
    pub(crate) answer: String,
}

impl Attempts {
    #[track_caller]
    pub(crate) fn of(output: &Output) -> Self {
        // A terminal shows what was pushed into it before.
        let start = output.stdout.find('{').unwrap_or_default();
        let printed: Value = serde_json::from_str(&output.stdout[start..])
            .unwrap_or_else(|e| panic!("no report ({e}): {output}"));
        let attempts = printed["attempts"].as_array().unwrap_or_else(|| panic!("no report: {output}"));
        let attempts: Vec<Attempt> = attempts.iter().map(Attempt::of).collect();
        let reached = attempts.iter().filter(|attempt| !attempt.contained).count();
        assert_eq!(printed["reached"], reached, "{output}");
        assert_eq!(output.code(), Some(i32::from(reached > 0)), "{output}");
        Self(attempts)
    }

    /// Nothing was reached, of at least so many attacks.
    #[track_caller]
    pub(crate) fn are_contained(&self, at_least: usize, case: &str) {
        let reached: Vec<String> = self.reached().map(Attempt::shown).collect();
        assert!(
            reached.is_empty(),
            "{case}: {} of {} reached what they should not:\n{}",
            reached.len(),
            self.0.len(),
            reached.join("\n")
        );
        assert!(self.0.len() >= at_least, "{case}: only {} attacks", self.0.len());
    }

    pub(crate) fn reached(&self) -> impl Iterator<Item = &Attempt> {
        self.0.iter().filter(|attempt| !attempt.contained)
    }

    pub(crate) fn all(&self) -> &[Attempt] {
        &self.0
    }

    /// The attack of this name, without its group.
    #[track_caller]
    pub(crate) fn named(&self, name: &str) -> &Attempt {
        let found =
            self.0.iter().find(|attempt| attempt.attack.split_once(": ").is_some_and(|(_, a)| a == name));
        found.unwrap_or_else(|| panic!("{name:?} was not tried: {self:#?}"))
    }
}

impl Attempt {
    fn of(value: &Value) -> Self {
        let word = |key: &str| value[key].as_str().unwrap().to_owned();
        Self {
            attack: format!("{}: {}", word("group"), word("attack")),
            contained: value["contained"].as_bool().unwrap(),
            answer: word("answer"),
        }
    }

    pub(crate) fn shown(&self) -> String {
        format!("{}: {}", self.attack, self.answer)
    }
}
