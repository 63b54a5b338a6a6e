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
