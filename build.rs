//! Turns `conf/seccomp.toml` and `conf/syscalls.tbl` into the tables that `src/seccomp` is compiled with, so that nothing is
//! parsed when a user logs in: each system call's number, name and answer, and what cannot be denied.

#![allow(clippy::print_stdout, reason = "how a build script speaks to cargo")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{env, fs};

const POLICY: &str = "conf/seccomp.toml";
const CALLS: &str = "conf/syscalls.tbl";

/// Section, group, names.
type Policy = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// The system calls of an architecture, by number.
type Calls<'a> = BTreeMap<u16, &'a str>;

fn main() {
    for file in ["build.rs", POLICY, CALLS] {
        println!("cargo::rerun-if-changed={file}");
    }
    if let Err(mistake) = generate() {
        for line in mistake.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn generate() -> Result<(), String> {
    let variable = |name: &str| env::var(name).map_err(|error| format!("{name}: {error}"));
    let target =
        ["ARCH", "ENDIAN", "POINTER_WIDTH"].map(|part| variable(&format!("CARGO_CFG_TARGET_{part}")));
    let [arch, endian, width] = target;
    match (arch?.as_str(), endian?.as_str(), width?.as_str()) {
        ("x86_64" | "aarch64", "little", "64") => {}
        (arch, ..) => {
            return Err(format!("the system call filter knows x86_64 and aarch64, not {arch} as it is here"));
        }
    }

    let read = |file| fs::read_to_string(file).map_err(|error| format!("{file}: {error}"));
    let [policy, calls] = [read(POLICY)?, read(CALLS)?];
    let policy: Policy = toml::from_str(&policy).map_err(|error| format!("{POLICY}: {error}"))?;
    let (mut x86_64, mut aarch64) = (Calls::new(), Calls::new());
    let mut names = BTreeSet::new();
    for line in calls.lines().filter(|line| !line.starts_with('#')) {
        let call = line.split_whitespace().collect::<Vec<_>>();
        let new = match *call.as_slice() {
            [name, x86, arm] => {
                names.insert(name) && add(&mut x86_64, x86, name) && add(&mut aarch64, arm, name)
            }
            _ => false,
        };
        if !new {
            return Err(format!("{CALLS}: no name and two new numbers, or - for none: {line:?}"));
        }
    }
    let Judged { answers, vital } =
        judge(&policy, &names).map_err(|mistake| format!("{POLICY}: {mistake}"))?;

    // One text, and places in it: a pointer a name would be for the loader of every login process to mend.
    let mut text = String::new();
    let mut starts = BTreeMap::new();
    for name in names {
        if !text.is_empty() {
            text += " ";
        }
        starts.insert(name, text.len());
        text += name;
    }
    let mut code = format!("static NAMES: &str = {text:?};\n");
    code += &format!("static VITAL: [(&str, &str); {}] = {vital:?};\n", vital.len());
    for (arch, calls) in [("x86_64", x86_64), ("aarch64", aarch64)] {
        // The tests look at both.
        code += &format!("#[cfg(any(test, target_arch = {arch:?}))]\n");
        code += &format!("static {}: [Call; {}] = [\n", arch.to_uppercase(), calls.len());
        for (number, name) in calls {
            let answer = answers.get(name).ok_or_else(|| format!("{POLICY}: {name:?} stands nowhere"))?;
            let start = starts.get(name).copied().unwrap_or(0);
            code += &format!("    Call {{ number: {number}, name: {start}, answer: {answer} }}, // {name}\n");
        }
        code += "];\n";
    }
    let out = Path::new(&variable("OUT_DIR")?).join("seccomp.rs");
    fs::write(&out, code).map_err(|error| format!("{}: {error}", out.display()))
}

/// Adds a call, unless its number is no number or another's. `-` is for none.
fn add<'a>(calls: &mut Calls<'a>, number: &str, name: &'a str) -> bool {
    number == "-" || number.parse().is_ok_and(|number| calls.insert(number, name).is_none())
}

/// The policy by name.
struct Judged<'a> {
    /// The answer to each call, as code.
    answers: BTreeMap<&'a str, String>,
    /// Reasons, and what cannot be denied for each, as one text.
    vital: Vec<(&'a str, String)>,
}

fn judge<'a>(policy: &'a Policy, known: &BTreeSet<&str>) -> Result<Judged<'a>, String> {
    let mut judged = Judged { answers: BTreeMap::new(), vital: Vec::new() };
    for (section, groups) in policy {
        for (group, names) in groups {
            if section == "vital" {
                judged.vital.push((group, names.join(" ")));
            }
            for name in names {
                if !known.contains(name.as_str()) {
                    return Err(format!("{name:?} in [{section}] is no system call of {CALLS}"));
                }
                let answer = match section.as_str() {
                    "allow" => "Answer::Allow".into(),
                    "refuse" => "Answer::Refuse".into(),
                    "absent" => "Answer::Absent".into(),
                    // The group is the rule: an unknown one does not compile.
                    "check" => format!("Answer::Check(Rule::{})", capitalised(group)),
                    "vital" => continue,
                    _ => {
                        return Err(format!(
                            "[{section}] is none of [allow], [check], [refuse], [absent], [vital]"
                        ));
                    }
                };
                if judged.answers.insert(name, answer).is_some() {
                    return Err(format!("{name:?} stands in two places"));
                }
            }
        }
    }
    Ok(judged)
}

fn capitalised(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
