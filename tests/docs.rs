//! The documents tell the truth about the code. Needs neither root nor a host.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The numbered steps of a text, where `starts` strips what stands before the number.
fn steps<'a>(text: &'a str, starts: impl Fn(&'a str) -> Option<&'a str>) -> Vec<(u32, &'a str)> {
    let step = |line| {
        let (number, rest) = starts(line)?.split_once(". ")?;
        Some((number.parse().ok()?, rest))
    };
    text.lines().filter_map(step).collect()
}

#[test]
fn order_md_has_the_steps_of_the_code_in_their_order() {
    let document = read("docs/order.md");
    for room in ["login", "raise", "join", "confine"] {
        let code = read(&format!("src/jail/{room}.rs"));
        let code = steps(&code, |line| line.trim_start().strip_prefix("// "));
        let section =
            document.split("\n## ").find(|section| section.starts_with(&format!("{room}\n"))).unwrap();
        let told = steps(section, Some);
        let numbers = |steps: &[(u32, &str)]| steps.iter().map(|(number, _)| *number).collect::<Vec<_>>();
        let count = u32::try_from(code.len()).unwrap();
        assert_eq!(numbers(&code), (1..=count).collect::<Vec<_>>(), "{room}.rs: steps are numbered in order");
        assert_eq!(numbers(&told), numbers(&code), "docs/order.md tells all steps of {room}.rs");
        for ((number, comment), (_, told)) in code.iter().zip(&told) {
            let title =
                told.strip_prefix("**").and_then(|rest| rest.split_once("**")).expect("a title in bold").0;
            let title = title.trim_end_matches('.');
            // A comment breaks its line where the title may go on.
            let same = comment.starts_with(title) || title.starts_with(comment.trim_end());
            assert!(same, "step {number} of {room}: the code says {comment:?}, the document {title:?}");
        }
    }
}

/// Without the comment signs before what is TOML.
fn uncommented(text: &str) -> String {
    let line = |line: &str| {
        let rest = line.strip_prefix("# ").unwrap_or(line).to_owned();
        let is_toml =
            rest.starts_with('[') || rest.split_once('=').is_some_and(|(key, _)| !key.trim().contains(' '));
        if is_toml { rest } else { line.to_owned() }
    };
    text.lines().map(|text| line(text) + "\n").collect()
}

#[test]
fn the_configurations_that_we_show_are_valid() {
    let parse = |name: &str, text: &str| ojail::config::parse(Path::new(name), text);
    let shipped = read("conf/ojail.toml");
    let config = parse("conf/ojail.toml", &shipped).unwrap();
    assert!(config.rules.is_empty(), "as shipped, nobody is jailed");
    let config = parse("conf/ojail.toml", &uncommented(&shipped)).unwrap();
    assert_eq!((config.profiles.len(), config.rules.len()), (2, 2));
    for name in ["README.md", "docs/administration.md"] {
        let text = read(name);
        let blocks: Vec<&str> =
            text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
        assert!(!blocks.is_empty());
        for block in blocks {
            let dedented: String = block.lines().map(|line| line.trim_start().to_owned() + "\n").collect();
            parse(name, &dedented).unwrap();
        }
    }
}

#[test]
fn the_administrators_document_tells_every_key_of_a_profile() {
    let document = read("docs/administration.md");
    let profile = "layers writable home shell root network reach publish hostname limits seccomp linger keep_warm \
                   groups binds";
    for key in profile.split(' ') {
        assert!(document.contains(&format!("| `{key}` |")), "docs/administration.md does not tell `{key}`");
    }
}

/// The anchor of a heading, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-');
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn links_between_documents_lead_somewhere() {
    for name in ["README.md", "SECURITY.md", "docs/administration.md", "docs/threats.md", "docs/order.md"] {
        let text = read(name);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, wanted) = link.split_once('#').unwrap_or((link, ""));
            let above = Path::new(name).parent().unwrap();
            let path = if file.is_empty() { Path::new(name).to_owned() } else { above.join(file) };
            let there = read(path.to_str().unwrap());
            let mut headings = there.lines().filter(|line| line.starts_with('#'));
            let found = headings.any(|line| anchor(line.trim_start_matches('#').trim()) == wanted);
            assert!(wanted.is_empty() || found, "{name}: {link} leads nowhere");
        }
    }
}

#[test]
fn the_contents_of_the_administrators_document_are_its_sections() {
    let document = read("docs/administration.md");
    let told: Vec<&str> = document
        .lines()
        .filter_map(|line| line.strip_prefix("- [")?.split_once("](#").map(|(title, _)| title))
        .collect();
    let sections: Vec<&str> = document.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(told, sections);
}

#[test]
fn every_threat_names_tests_that_exist_or_says_that_it_has_none() {
    let document = read("docs/threats.md");
    let threats: Vec<&str> =
        document.split("\n- ").skip(1).map(|rest| rest.split("\n## ").next().unwrap()).collect();
    assert!(threats.len() > 30);
    for threat in threats {
        let named: Vec<(&str, &str)> =
            threat.split('`').filter_map(|word| word.split_once(".rs::")).collect();
        // "no test yet", at the beginning of a sentence or not, and wherever the line breaks.
        let words = threat.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
        assert!(!named.is_empty() || words.contains("no test yet"), "nothing tests: {threat}");
        for (file, test) in named {
            let source = read(&format!("{file}.rs"));
            let there = source.split("#[test]").skip(1).any(|rest| {
                rest.trim_start()
                    .strip_prefix("fn ")
                    .is_some_and(|rest| rest.starts_with(&format!("{test}(")))
            });
            assert!(there, "{file}.rs has no test {test}");
        }
    }
}
