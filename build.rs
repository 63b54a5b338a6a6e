//! Turns `conf/seccomp.toml` into the tables that `src/seccomp` is compiled with, so that nothing is parsed when a user
//! logs in: each system call's number, name and answer, the names of all architectures, and what cannot be denied.

#![allow(clippy::print_stdout, reason = "how a build script speaks to cargo")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{env, fs};

use syscalls::{aarch64, x86_64};

const POLICY: &str = "conf/seccomp.toml";

/// Section, group, names.
type Policy = BTreeMap<String, BTreeMap<String, Vec<String>>>;

/// The system calls of an architecture, by number.
type Calls = BTreeMap<usize, &'static str>;

fn main() {
    println!("cargo::rerun-if-changed={POLICY}");
    println!("cargo::rerun-if-changed=build.rs");
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

    let policy = fs::read_to_string(POLICY).map_err(|error| format!("{POLICY}: {error}"))?;
    let policy: Policy = toml::from_str(&policy).map_err(|error| format!("{POLICY}: {error}"))?;

    // By number, because `Sysno::iter` leaves out the last one.
    let calls = |last: i32, name: &dyn Fn(usize) -> Option<&'static str>| -> Calls {
        (0..=usize::try_from(last).unwrap_or(0)).filter_map(|number| Some((number, name(number)?))).collect()
    };
    let x86_64 = calls(x86_64::Sysno::last().id(), &|number| Some(x86_64::Sysno::new(number)?.name()));
    let aarch64 = calls(aarch64::Sysno::last().id(), &|number| Some(aarch64::Sysno::new(number)?.name()));
    let names: BTreeSet<&str> = x86_64.values().chain(aarch64.values()).copied().collect();

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
            // What the crate knows and the policy does not is newer than the policy.
            let answer = answers.get(name).map_or("Answer::Absent", String::as_str);
            let start = starts.get(name).copied().unwrap_or(0);
            code += &format!("    Call {{ number: {number}, name: {start}, answer: {answer} }}, // {name}\n");
        }
        code += "];\n";
    }
    let out = Path::new(&variable("OUT_DIR")?).join("seccomp.rs");
    fs::write(&out, code).map_err(|error| format!("{}: {error}", out.display()))
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
                    return Err(format!("{name:?} in [{section}] is no system call of x86-64 or aarch64"));
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
