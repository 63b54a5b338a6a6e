//! What was tried and what came of it, and how it is printed. Pure.

use nix::errno::Errno;
use serde_json::{Value, json};

/// What the kernel answers to somebody who may not, or to a call that is not there for them.
const REFUSALS: [Errno; 3] = [Errno::EPERM, Errno::EACCES, Errno::ENOSYS];

/// How one attack came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) contained: bool,
    /// An error's name, or some words.
    pub(super) answer: String,
}

impl Outcome {
    pub(super) fn contained(answer: impl Into<String>) -> Self {
        Self { contained: true, answer: answer.into() }
    }

    pub(super) fn reached(answer: impl Into<String>) -> Self {
        Self { contained: false, answer: answer.into() }
    }

    /// Contained if the kernel refused. Any other error means that the call got past the question who may.
    pub(super) fn of<T>(result: Result<T, Errno>) -> Self {
        Self::of_or(result, &[])
    }

    /// The same, where these errors are refusals too.
    pub(super) fn of_or<T>(result: Result<T, Errno>, more: &[Errno]) -> Self {
        match result {
            Ok(_) => Self::reached("done"),
            Err(e) if REFUSALS.contains(&e) || more.contains(&e) => Self::contained(format!("{e:?}")),
            Err(e) => Self::reached(format!("{e:?}")),
        }
    }

    /// Contained if there is nothing in the list of what was found.
    pub(super) fn nothing(found: &[String]) -> Self {
        const SHOWN: usize = 8;
        match found.len() {
            0 => Self::contained("nothing"),
            count => {
                let shown = found[..count.min(SHOWN)].join(", ");
                let more = if count > SHOWN { format!(" and {} more", count - SHOWN) } else { String::new() };
                Self::reached(format!("{shown}{more}"))
            }
        }
    }
}

/// An attack with its outcome.
#[derive(Debug)]
struct Attempt {
    group: String,
    attack: String,
    outcome: Outcome,
}

/// All attacks so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    group: &'static str,
    attempts: Vec<Attempt>,
}

impl Report {
    /// What follows is of this group.
    pub(super) fn begin(&mut self, group: &'static str) {
        self.group = group;
    }

    pub(super) fn add(&mut self, attack: impl Into<String>, outcome: Outcome) {
        self.attempts.push(Attempt { group: self.group.into(), attack: attack.into(), outcome });
    }

    /// Takes over what a probe that ran as root of the jail printed. `None`, if it is not that.
    pub(super) fn add_printed(&mut self, prefix: &str, text: &str) -> Option<()> {
        let printed: Value = serde_json::from_str(text).ok()?;
        for attempt in printed["attempts"].as_array()? {
            let word = |key: &str| attempt[key].as_str().map(String::from);
            let outcome = Outcome { contained: attempt["contained"].as_bool()?, answer: word("answer")? };
            let attack = format!("{prefix}{}", word("attack")?);
            self.attempts.push(Attempt { group: word("group")?, attack, outcome });
        }
        Some(())
    }

    /// How many attacks were not contained.
    pub(super) fn reached(&self) -> usize {
        self.attempts.iter().filter(|attempt| !attempt.outcome.contained).count()
    }

    pub(super) fn json(&self) -> Value {
        let attempt = |attempt: &Attempt| {
            json!({
                "group": attempt.group,
                "attack": attempt.attack,
                "contained": attempt.outcome.contained,
                "answer": attempt.outcome.answer,
            })
        };
        let attempts: Vec<Value> = self.attempts.iter().map(attempt).collect();
        json!({ "ojail_probe": 1, "attempts": attempts, "reached": self.reached() })
    }

    /// For people: a line each.
    pub(super) fn text(&self) -> String {
        let line = |attempt: &Attempt| {
            let mark = if attempt.outcome.contained { "✓" } else { "✗" };
            format!("{mark} {}: {}: {}\n", attempt.group, attempt.attack, attempt.outcome.answer)
        };
        let lines: String = self.attempts.iter().map(line).collect();
        format!("{lines}{} of {} attacks reached what they should not\n", self.reached(), self.attempts.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_contained_and_any_other_answer_is_not() {
        assert!(Outcome::of::<()>(Err(Errno::EPERM)).contained);
        assert!(!Outcome::of::<()>(Err(Errno::EINVAL)).contained);
        assert!(Outcome::of_or::<()>(Err(Errno::EINVAL), &[Errno::EINVAL]).contained);
        assert_eq!(Outcome::of(Ok(7)), Outcome::reached("done"));
    }

    #[test]
    fn what_another_probe_printed_is_taken_over_with_a_prefix() {
        let mut inner = Report::default();
        inner.begin("kernel");
        inner.add("a", Outcome::reached("done"));
        let mut outer = Report::default();
        outer.add_printed("as root: ", &inner.json().to_string()).unwrap();
        assert_eq!(
            (outer.reached(), outer.json()["attempts"][0]["attack"].as_str()),
            (1, Some("as root: a"))
        );
        assert_eq!(outer.add_printed("", "sudo: no"), None);
    }

    #[test]
    fn a_long_list_is_shown_in_part() {
        let found: Vec<String> = (0..10).map(|n| n.to_string()).collect();
        assert_eq!(Outcome::nothing(&found).answer, "0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
        assert!(Outcome::nothing(&[]).contained);
    }
}
