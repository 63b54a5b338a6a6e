//! Completions, by real shells.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use clap::{Arg, Command as Clap};
use manual::{SHELLS, Shell, completions_of};
use tempfile::TempDir;

/// Stands for the installed command, of which only the names are asked.
const OJAIL: &str = r#"#!/bin/sh
case "$*" in
"complete users") printf 'alice\nbob\n' ;;
"complete profiles") printf 'debian\nnginx\n' ;;
*) exit 2 ;;
esac
"#;

/// Prints what bash would offer, a word a line.
const BASH: &str = r#"
    source ojail
    read -ra COMP_WORDS <<< "$1"
    [[ $1 != *" " ]] || COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _ojail ojail "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
    printf '%s\n' "${COMPREPLY[@]}"
"#;

/// The same by fish, which can be asked.
const FISH: &str = "source ojail.fish; complete -C $argv[1] | cut -f1";

/// Types the line and the tabulator key in a zsh on a terminal, and prints what stands there then.
const ZSH: &str = r#"
    zmodload zsh/zpty
    zpty z zsh -f -i
    zpty -w z "fpath=($PWD \$fpath); autoload -U compinit; compinit -u -D"
    zpty -w z "show() { print -r -- \"<\$BUFFER>\" }; zle -N show; bindkey '^X' show; bindkey '^I' complete-word"
    zpty -w z "print READ''Y"
    zpty -r -m z seen '*READY*'
    zpty -w -n z "$1"$'\t\x18'
    zpty -r -m z seen '*<*>*'
    print -r -- "${${seen##*<}%%>*}"
    zpty -d z
"#;

fn directory() -> TempDir {
    directory_of(&ojail::admin::command())
}

fn directory_of(command: &Clap) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("program");
    fs::write(&program, OJAIL).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    for (shell, name) in SHELLS {
        fs::write(
            directory.path().join(name),
            completions_of(command, shell, program.to_str().unwrap()).unwrap(),
        )
        .unwrap();
    }
    directory
}

/// What a shell makes of a line.
#[track_caller]
fn complete(directory: &TempDir, shell: Shell, line: &str) -> Vec<String> {
    let words: &[&str] = match shell {
        Shell::Bash => &["bash", "--norc", "-c", BASH, "bash", line],
        Shell::Zsh => &["timeout", "60", "zsh", "-f", "-c", ZSH, "zsh", line],
        _ => &["fish", "-N", "-c", FISH, line],
    };
    let output = Command::new(words[0])
        .args(&words[1..])
        .current_dir(directory.path())
        .env("HOME", directory.path())
        .env("TERM", "dumb")
        .output()
        .unwrap_or_else(|error| panic!("{shell}: {error}; see tests/lab/install-needs"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{shell}: {line:?}: {errors}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_and_fish_offer_verbs_flags_and_the_names_of_users_and_profiles() {
    let directory = directory();
    for shell in [Shell::Bash, Shell::Fish] {
        for (line, offered, not) in [
            ("ojail ", &["check", "reset"][..], &["complete", "alice"][..]),
            ("ojail res", &["reset"], &["check"]),
            ("ojail reset ", &["alice", "bob"], &["debian", "complete"]),
            ("ojail reset --force b", &["bob"], &["alice", "--force"]),
            ("ojail reset --f", &["--force"], &["alice"]),
            ("ojail reset --all --profile ", &["debian", "nginx"], &["alice", "--force"]),
            ("ojail check al", &["alice"], &["bob"]),
            ("ojail snapshot restore b", &["bob"], &["alice"]),
            ("ojail snapshot al", &["alice"], &["bob"]),
            ("ojail forget al", &["alice"], &["bob"]),
            ("ojail list ", &[], &["alice"]),
        ] {
            let words = complete(&directory, shell, line);
            for word in offered {
                assert!(
                    words.iter().any(|offer| offer == word),
                    "{shell}: {line:?} offers {word}: {words:?}"
                );
            }
            for word in not {
                assert!(
                    words.iter().all(|offer| offer != word),
                    "{shell}: {line:?} offers {word}: {words:?}"
                );
            }
        }
    }
}

#[test]
fn zsh_completes_verbs_flags_and_the_names_of_users_and_profiles() {
    let directory = directory();
    for (line, whole) in [
        ("ojail rese", "ojail reset "),
        ("ojail reset al", "ojail reset alice "),
        ("ojail undo --fo", "ojail undo --force "),
        ("ojail undo --force b", "ojail undo --force bob "),
        ("ojail reset --all --profile ng", "ojail reset --all --profile nginx "),
        ("ojail snapshot restore al", "ojail snapshot restore alice "),
        ("ojail forget al", "ojail forget alice "),
        ("ojail compl", "ojail compl"),
    ] {
        assert_eq!(complete(&directory, Shell::Zsh, line), [whole]);
    }
}

/// With `ojail snapshot list USER` and `ojail snapshot restore USER [NAME]`.
fn nested() -> Clap {
    let user = || Arg::new("user").help("Whose jail").required(true);
    let list = Clap::new("list").about("List").arg(user());
    let restore = Clap::new("restore").about("Restore").arg(user()).arg(Arg::new("name").help("Which"));
    let snapshot =
        Clap::new("snapshot").about("Keep").subcommand_required(true).subcommand(list).subcommand(restore);
    Clap::new("ojail").subcommand(snapshot).subcommand(Clap::new("list").about("List the jails"))
}

#[test]
fn a_verb_below_a_verb_completes_users_too() {
    let directory = directory_of(&nested());
    for (line, whole) in [
        ("ojail snapshot li", "list"),
        ("ojail snapshot list al", "alice"),
        ("ojail snapshot restore al", "alice"),
    ] {
        for shell in [Shell::Bash, Shell::Fish] {
            assert_eq!(complete(&directory, shell, line), [whole], "{shell}: {line}");
        }
        let (start, _) = line.rsplit_once(' ').unwrap();
        assert_eq!(complete(&directory, Shell::Zsh, line), [format!("{start} {whole} ")]);
    }
    let names: Vec<String> = manual::verbs_of(nested()).into_iter().map(|verb| verb.name).collect();
    assert_eq!(names, ["ojail snapshot list", "ojail snapshot restore", "ojail list"]);
}
