//! What the README and the documents show of the command is what it takes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

#[path = "common/mod.rs"]
mod common;

use std::fs;
use std::path::Path;

use clap::error::ErrorKind;

const DOCUMENTS: [&str; 2] = ["README.md", "docs/administration.md"];

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Lines of blocks of code, without the prompt; and what stands between backquotes elsewhere.
fn code(text: &str) -> (Vec<String>, Vec<String>) {
    let (mut lines, mut words) = (Vec::new(), String::new());
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced || line.starts_with("    ") {
            let line = line.trim_start();
            let line = ["# ", "$ "].iter().find_map(|prompt| line.strip_prefix(prompt)).unwrap_or(line);
            lines.push(line.to_owned());
        } else {
            words.push_str(line);
            words.push(' ');
        }
    }
    let spans = words.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    (lines, spans)
}

#[test]
fn every_command_line_in_a_block_is_one() {
    for name in DOCUMENTS {
        let (lines, _) = code(&read(name));
        let calls: usize = lines.iter().map(|line| common::calls(line).len()).sum();
        assert!(calls > 2, "{name}: only {calls} were found");
        for line in lines {
            common::parses(&line);
        }
    }
}

/// In a sentence a command may be named without all that it needs, and what may be left out stands in brackets.
#[test]
fn every_command_in_a_sentence_or_a_table_is_one() {
    for name in DOCUMENTS {
        let (_, spans) = code(&read(name));
        for span in spans.iter().filter(|span| span.starts_with("ojail ")) {
            let example =
                span.replace(['[', ']', '…'], "").replace("\\|-", "").replace("REGISTRY/REPO", "a.example/b");
            for words in common::calls(&example.replace(" IMAGE", " oci:DIR")) {
                let whole = ojail::admin::command().try_get_matches_from(&words);
                let wrong = whole.err().filter(|error| {
                    let short = [
                        ErrorKind::MissingRequiredArgument,
                        ErrorKind::MissingSubcommand,
                        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
                    ];
                    !short.contains(&error.kind())
                });
                assert!(wrong.is_none(), "{name}: `{span}`: {}", wrong.unwrap());
            }
        }
    }
}

#[test]
fn the_readme_tells_every_verb() {
    let readme = read("README.md");
    for verb in manual::verbs() {
        let short = verb.name.trim_start_matches("ojail ");
        let told = readme.contains(&format!("`{}", verb.name)) || readme.contains(&format!("`{short} "));
        assert!(told, "the README does not tell `{}`", verb.name);
    }
}
