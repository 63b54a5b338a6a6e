//! The manual tells the truth: generated and hand-written pages, against the command, the parser of the configuration, the
//! login shell and the module.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

#[path = "common/mod.rs"]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ojail::config::{self, Config, Mistake};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn ojail_8() -> String {
    manual::page(&read("conf/man/ojail.8.in")).unwrap()
}

/// Every page with its name.
fn pages() -> Vec<(&'static str, String)> {
    let mut pages = vec![("ojail.8", ojail_8())];
    for name in ["ojail-shell.8", "ojail.toml.5", "pam_ojail.8"] {
        pages.push((name, read(&format!("conf/man/{name}"))));
    }
    let written = fs::read_dir(workspace().join("conf/man")).unwrap().count();
    assert_eq!(written, pages.len(), "conf/man has a page that is not looked at here");
    pages
}

/// Roff's text as a reader sees it.
fn plain(roff: &str) -> String {
    let mut text = roff.to_owned();
    for (code, letter) in [
        ("\\-", "-"),
        ("\\(dq", "\""),
        ("\\(aq", "'"),
        ("\\(ga", "`"),
        ("\\fB", ""),
        ("\\fI", ""),
        ("\\fR", ""),
        ("\\&", ""),
        ("\\e", "\\"),
    ] {
        text = text.replace(code, letter);
    }
    text
}

/// What stands between `.EX` and `.EE`, as a reader sees it.
fn examples(page: &str) -> Vec<String> {
    let blocks = page.split("\n.EX\n").skip(1);
    blocks.map(|rest| plain(rest.split("\n.EE\n").next().unwrap())).collect()
}

#[test]
fn no_page_has_anything_that_man_complains_of() {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in pages() {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        for program in [&["mandoc", "-Tlint", "-W", "warning"][..], &["groff", "-man", "-ww", "-z"]] {
            let output = Command::new(program[0]).args(&program[1..]).arg(&path).output();
            let output =
                output.unwrap_or_else(|error| panic!("{}: {error}; see tests/lab/install-needs", program[0]));
            let said = [output.stdout, output.stderr].concat();
            assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
        }
    }
}

#[test]
fn ojail_8_has_every_verb_and_every_flag_and_nothing_hidden() {
    let page = plain(&ojail_8());
    let mut sections = page.split("\n.SS ").skip(1).map(|section| section.split("\n.SH ").next().unwrap());
    for verb in manual::verbs() {
        let section = sections.next().unwrap();
        assert!(section.starts_with(&format!("{}\n", verb.name)), "{} is not where it belongs", verb.name);
        for arg in verb.command.get_arguments().filter(|arg| !arg.is_hide_set()) {
            let (Some(help), false) = (arg.get_help(), arg.get_id() == "help") else { continue };
            assert!(section.contains(&help.to_string()), "{}: {help} is not told", verb.name);
        }
        for line in verb.examples() {
            assert!(section.contains(&line), "{}: {line} is not told", verb.name);
        }
    }
    assert_eq!(sections.next(), None);
    assert!(!page.contains("ojail complete"), "{page}");
    for hole in ["@SYNOPSIS@", "@VERBS@"] {
        assert!(!page.contains(hole), "{page}");
    }
}

#[test]
fn a_template_without_its_holes_is_refused() {
    let error = manual::page(".TH X 8\n").unwrap_err().to_string();
    assert!(error.contains("has 0 lines") && error.contains("@SYNOPSIS@"), "{error}");
}

#[test]
fn every_command_line_in_a_page_is_one() {
    let mut number = 0;
    for (_, text) in pages() {
        for line in examples(&text).iter().flat_map(|block| block.lines()) {
            number += common::calls(line).len();
            common::parses(line);
        }
    }
    assert!(number > 10, "only {number} were found");
}

#[test]
fn ojail_shell_8_and_pam_ojail_8_tell_the_options_that_there_are() {
    let options = |text: &str| -> BTreeSet<String> {
        let after = text.split("--").skip(1);
        let word = |rest: &str| rest.chars().take_while(|c| c.is_ascii_lowercase()).collect::<String>();
        after.map(word).filter(|word| !word.is_empty()).collect()
    };
    let code = read("ojail-shell/src/bin/ojail-shell.rs");
    let in_code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let page = plain(&read("conf/man/ojail-shell.8"));
    assert_eq!(options(&in_code), BTreeSet::from(["reset".to_owned()]));
    assert_eq!(options(&page), options(&in_code));

    let page = read("conf/man/pam_ojail.8");
    assert!(page.contains(".SH OPTIONS\nNone.\n"));
    let module = read("pam_ojail/src/lib.rs");
    assert_eq!(module.matches("_args: Vec<&CStr>").count(), module.matches("args: Vec<&CStr>").count());
    for code in module.split("PamResultCode::").skip(1) {
        let code: String = code.chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect();
        assert!(code.is_empty() || page.contains(&code), "pam_ojail(8) does not tell {code}");
    }
}

fn parse(text: &str) -> Result<Config, Mistake> {
    config::parse(Path::new("example"), text)
}

/// Lines of a table, with what it takes to be a configuration. A table inside a profile is written as a key of one.
fn in_table(table: &str, lines: &str) -> String {
    let profiles = |more: &str| {
        let layers = if more.contains("layers") { "" } else { "layers = [\"debian\"]\n" };
        format!("[profiles.debian]\n{layers}{more}\n")
    };
    match table {
        "profiles" | "limits" | "seccomp" | "binds" => profiles(lines),
        "rules" => format!("{}[[rules]]\n{lines}\n", profiles("")),
        table => format!("[{table}]\n{lines}\n{}", profiles("")),
    }
}

/// The keys that the parser knows in a table, by its own complaint of one that it does not; `None`: it is no table.
fn known(table: &str, lines: &str) -> Option<BTreeSet<String>> {
    let complaint = parse(&in_table(table, lines)).unwrap_err().why;
    let (_, known) = complaint.strip_prefix("unknown key `no-such-key`; known")?.split_once(": ")?;
    Some(known.split('`').skip(1).step_by(2).map(str::to_owned).collect())
}

/// Every table and its keys, found by asking for one that is none: nothing here is a list to be kept.
fn keys_of_the_parser() -> BTreeMap<String, BTreeSet<String>> {
    let top = parse("no-such-key = 1\n").unwrap_err().why;
    let top: Vec<&str> = top.split_once("known here: ").unwrap().1.split('`').skip(1).step_by(2).collect();
    let mut tables = BTreeMap::new();
    for table in top {
        let keys = known(table, "no-such-key = 1").unwrap_or_else(|| panic!("{table} is no table"));
        for key in keys.iter().filter(|_| table == "profiles") {
            let inner = format!("{key} = {{ no-such-key = 1 }}");
            let list = format!("{key} = [{{ no-such-key = 1 }}]");
            if let Some(keys) = known(table, &inner).or_else(|| known(table, &list)) {
                tables.insert(key.clone(), keys);
            }
        }
        tables.insert(table.to_owned(), keys);
    }
    tables
}

/// A key as `ojail.toml(5)` tells it.
struct Told {
    table: String,
    key: String,
    /// What stands in parentheses after the type: `needed`, `optional`, or `default …`.
    default: String,
    example: String,
}

fn told() -> Vec<Told> {
    let page = read("conf/man/ojail.toml.5");
    let mut told = Vec::new();
    for section in page.split("\n.SS ").skip(1) {
        let section = section.split("\n.SH ").next().unwrap();
        let (title, body) = section.split_once('\n').unwrap();
        let table = title.trim_matches(['[', ']']).split(['.', ',']).next().unwrap();
        for entry in format!("\n{body}").split("\n.TP\n").skip(1) {
            let Some((key, rest)) = entry.strip_prefix(".BR ").and_then(|line| line.split_once(" \" ("))
            else {
                continue;
            };
            let kind = plain(rest.lines().next().unwrap());
            let default = kind.trim_end_matches(")\"").split_once(", ").unwrap_or_else(|| {
                panic!("ojail.toml(5): {table}.{key} has a type, and `needed`, `optional` or `default …`")
            });
            let example = examples(&format!("\n{entry}\n"));
            assert_eq!(example.len(), 1, "ojail.toml(5): {table}.{key} has one example");
            let default = default.1.to_owned();
            told.push(Told { table: table.into(), key: key.into(), default, example: example[0].clone() });
        }
    }
    told
}

#[test]
fn ojail_toml_5_tells_the_keys_that_the_parser_knows_and_no_others() {
    let mut page: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for Told { table, key, .. } in told() {
        assert!(page.entry(table).or_default().insert(key.clone()), "{key} is told twice");
    }
    assert_eq!(page, keys_of_the_parser(), "left: conf/man/ojail.toml.5, right: src/config.rs");
}

#[test]
fn every_example_and_every_default_in_ojail_toml_5_is_what_the_parser_takes() {
    for Told { table, key, default, example } in told() {
        assert!(example.contains(&key), "the example of {table}.{key} has it: {example:?}");
        let parsed = parse(&in_table(&table, &example));
        parsed.unwrap_or_else(|mistake| panic!("the example of {table}.{key}: {mistake}\n{example}"));
        let Some(default) = default.strip_prefix("default ") else {
            assert!(["needed", "optional"].contains(&default.as_str()), "{table}.{key}: {default}");
            continue;
        };
        let others = match table.as_str() {
            "rules" => "user = \"*\"\nprofile = \"debian\"\n",
            _ => "",
        };
        let (with, without) = match table.as_str() {
            "limits" | "seccomp" => (format!("{table} = {{ {key} = {default} }}"), String::new()),
            "binds" => {
                let bind = |more: &str| format!("binds = [{{ source = \"/a\", target = \"/b\"{more} }}]");
                (bind(&format!(", {key} = {default}")), bind(""))
            }
            _ => (format!("{others}{key} = {default}"), others.to_owned()),
        };
        let [with, without] = [with, without].map(|lines| parse(&in_table(&table, &lines)).unwrap());
        assert_eq!(with, without, "{table}.{key} is {default} where it is not written");
    }
    let whole = read("conf/man/ojail.toml.5");
    let whole = examples(whole.split("\n.SH EXAMPLES\n").nth(1).unwrap());
    assert_eq!(whole.len(), 3);
    for text in whole {
        let config = parse(&text).unwrap();
        assert!(!config.rules.is_empty());
    }
}
