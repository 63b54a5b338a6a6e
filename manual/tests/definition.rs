//! What stands beside the definition of a verb or flag: there is some, in one style, and its examples are true.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

use clap::Arg;
use manual::{Verb, verbs};

/// Before it, the list of verbs has two spaces, the longest name and two more.
const WIDEST_TITLE: usize = 88;

/// The command's `max_term_width`.
const WIDTH: usize = 100;

fn arguments(verb: &Verb) -> impl Iterator<Item = &Arg> {
    verb.command.get_arguments().filter(|arg| !arg.is_hide_set())
}

/// A title or the help of a flag: it begins like a sentence, and is none.
#[track_caller]
fn is_a_title(what: &str, text: &str) {
    assert!(!text.is_empty(), "{what} has no help: write a doc comment above it");
    assert!(
        !text.starts_with(char::is_lowercase),
        "the help of {what} begins with a capital letter: {text:?}"
    );
    assert!(!text.ends_with('.'), "the first line of the help of {what} has no full stop: {text:?}");
}

#[test]
fn every_verb_has_a_title_that_fits_the_list_of_verbs() {
    for verb in verbs() {
        let about = verb.command.get_about().map(ToString::to_string).unwrap_or_default();
        is_a_title(&format!("`{}`", verb.name), &about);
        assert!(
            about.len() <= WIDEST_TITLE,
            "`{}`: more than {WIDEST_TITLE} characters: {about:?}",
            verb.name
        );
        let long = verb.command.get_long_about().map(ToString::to_string).unwrap_or_default();
        for paragraph in long.split("\n\n").skip(1) {
            let sentence = paragraph.ends_with(['.', ':']) || paragraph.contains('\n');
            assert!(sentence, "`{}`: what follows the title is sentences: {paragraph:?}", verb.name);
        }
    }
}

#[test]
fn every_flag_has_help() {
    for verb in verbs() {
        for arg in arguments(&verb) {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            is_a_title(&format!("{} of `{}`", arg.get_id(), verb.name), &help);
        }
    }
}

#[test]
fn no_help_is_wider_than_it_says() {
    let top = ojail::admin::command().render_help().to_string();
    let of_verbs = verbs().into_iter().flat_map(|mut verb| {
        [verb.command.render_help().to_string(), verb.command.render_long_help().to_string()]
    });
    for text in of_verbs.chain([top]) {
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "more than {WIDTH} columns: {line:?}");
        }
    }
}

#[test]
fn every_verb_has_an_example_that_is_one_of_it() {
    for verb in verbs() {
        let examples = verb.examples();
        assert!(
            !examples.is_empty(),
            "`{}` has no example; write above it: #[command(after_long_help = examples(&[\"{} …\"]))]",
            verb.name,
            verb.name
        );
        for line in examples {
            let calls = common::calls(&line);
            let this = calls.iter().any(|words| words.join(" ").starts_with(&verb.name));
            assert!(this, "an example of `{}` does not call it: {line}", verb.name);
            common::parses(&line);
        }
    }
}

#[test]
fn the_examples_that_are_none_are_found() {
    for wrong in ["ojail rest alice", "ojail list --jsn", "ojail reset", "ojail reset alice --keep"] {
        let words = &common::calls(wrong)[0];
        assert!(ojail::admin::command().try_get_matches_from(words).is_err(), "{wrong}");
    }
    assert_eq!(
        common::calls("tar c 'a b' | ojail list --json # all | ojail x"),
        [["ojail", "list", "--json"].map(String::from)]
    );
}

#[path = "common/mod.rs"]
mod common;
