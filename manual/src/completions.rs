//! Completions for bash, zsh and fish: `clap_complete`'s, with names of users, profiles and layers asked of `ojail complete` where
//! an argument is one. What an argument is, its value's name says: `USER`, `PROFILE` or `LAYER`.

use std::io;

use clap::{Arg, Command};
pub use clap_complete::Shell;
use clap_complete::generate;

/// For these, with the file name that each expects.
pub const SHELLS: [(Shell, &str); 3] =
    [(Shell::Bash, "ojail"), (Shell::Zsh, "_ojail"), (Shell::Fish, "ojail.fish")];

/// Stands for `ojail` in the scripts until they are done.
const PROGRAM: &str = "@OJAIL@";

/// What `ojail complete` can be asked for.
const NAMES: [&str; 3] = ["users", "profiles", "layers"];

/// What `ojail complete` is asked for an argument.
fn names(arg: &Arg) -> Option<&'static str> {
    match value(arg).as_str() {
        _ if !arg.get_action().takes_values() => None,
        "USER" => Some("users"),
        "PROFILE" => Some("profiles"),
        "LAYER" => Some("layers"),
        _ => None,
    }
}

/// The name of an argument's value; clap makes one of the argument's own, if there is none.
fn value(arg: &Arg) -> String {
    let name = arg.get_value_names().and_then(<[_]>::first);
    name.map_or_else(|| arg.get_id().as_str().to_uppercase(), ToString::to_string)
}

/// The whole file for a shell. `program` is the path at which `ojail` will be installed: who presses the tabulator key need
/// not have it in `PATH`.
///
/// # Errors
/// If the generated script is not of the shape into which the names can be put, or the shell is none of [`SHELLS`].
pub fn completions(shell: Shell, program: &str) -> io::Result<String> {
    completions_of(&ojail::admin::command(), shell, program)
}

/// The same for any command of that name, for tests.
///
/// # Errors
/// See [`completions`].
pub fn completions_of(command: &Command, shell: Shell, program: &str) -> io::Result<String> {
    let mut command = shown(command, shell);
    command.build();
    let mut bytes = Vec::new();
    generate(shell, &mut command, "ojail", &mut bytes);
    let mut script = String::from_utf8(bytes).map_err(io::Error::other)?;
    if shell == Shell::Zsh {
        let ask = |names| {
            let asked = ask(names);
            format!(
                "\n_ojail_{names}() {{\n    local -a names=(${{(f)\"{asked}\"}})\n    compadd -a names\n}}\n"
            )
        };
        let head = "\nautoload -U is-at-least\n";
        let functions: String = NAMES.iter().map(|names| ask(names)).collect();
        script = replace(&script, head, &format!("{head}{functions}"))?;
    }
    Ok(ask_for_names(&script, shell, &mut Vec::new(), &command)?.replace(PROGRAM, program))
}

/// Without what is hidden, which `clap_complete` would complete too. For zsh it looks for a verb below a verb behind all that may stand
/// in its place (`ojail snapshot USER [NAME]`), where none is ever found; so zsh is told of the verbs only.
fn shown(command: &Command, shell: Shell) -> Command {
    // A name must be there for good, and this is a program of one moment.
    let name: &'static str = Box::leak(command.get_name().to_owned().into_boxed_str());
    let visible = command.get_subcommands().filter(|sub| !sub.is_hide_set()).map(|sub| shown(sub, shell));
    let mut new = Command::new(name).disable_help_subcommand(true).subcommands(visible);
    let verbs_only = shell == Shell::Zsh && command.has_subcommands();
    let told = |arg: &&Arg| !(arg.is_hide_set() || verbs_only && arg.is_positional());
    new = new.args(command.get_arguments().filter(told).cloned());
    if let Some(about) = command.get_about() {
        new = new.about(about.clone());
    }
    match command.get_version() {
        Some(_) => new.version(env!("CARGO_PKG_VERSION")),
        None => new,
    }
}

/// What bash and zsh, which share the sign for it, replace by the names.
fn ask(names: &str) -> String {
    format!("$({PROGRAM} complete {names} 2>/dev/null)")
}

/// Puts the names into the script, for every argument of a verb and of those below it.
fn ask_for_names<'a>(
    script: &str,
    shell: Shell,
    path: &mut Vec<&'a str>,
    command: &'a Command,
) -> io::Result<String> {
    let mut script = script.to_owned();
    for (arg, names) in command.get_arguments().filter_map(|arg| Some((arg, names(arg)?))) {
        script = match shell {
            Shell::Bash => bash(&script, path, arg, names)?,
            Shell::Zsh => zsh(&script, arg, names)?,
            Shell::Fish => fish(&script, path, arg, names)?,
            _ => return Err(io::Error::other("the shells are bash, zsh and fish")),
        };
    }
    for sub in command.get_subcommands() {
        path.push(sub.get_name());
        script = ask_for_names(&script, shell, path, sub)?;
        path.pop();
    }
    Ok(script)
}

/// In bash's script each verb has a block, with a list of words that it takes and a branch for every option with a value.
fn bash(script: &str, path: &[&str], arg: &Arg, names: &str) -> io::Result<String> {
    let label = format!("\n        ojail__subcmd__{})\n", path.join("__subcmd__"));
    let (before, block) = halves(script, &label)?;
    let (block, after) = halves(block, "\n            ;;\n")?;
    let asked = ask(names);
    let block = match arg.get_long() {
        Some(long) => {
            let files = format!("--{long})\n                    COMPREPLY=($(compgen -f \"${{cur}}\"))");
            let asks = format!(
                "--{long})\n                    COMPREPLY=($(compgen -W \"{asked}\" -- \"${{cur}}\"))"
            );
            replace(block, &files, &asks)?
        }
        None => {
            let (words, rest) = halves(block.trim_start_matches(' ').trim_start_matches("opts=\""), "\"\n")?;
            format!("            opts=\"{words} {asked}\"\n{rest}")
        }
    };
    Ok([before, &label, &block, "\n            ;;\n", after].concat())
}

/// In zsh's script each argument has a line, which ends with the function that completes it.
fn zsh(script: &str, arg: &Arg, names: &str) -> io::Result<String> {
    let id = format!("{} -- ", arg.get_id());
    let value = value(arg);
    let long = arg.get_long().map(|long| format!("--{long}="));
    let mut found = false;
    let mut line = |line: &str| {
        let is_it = match &long {
            Some(long) => line.contains(long) && line.contains(&format!(":{value}:")),
            None => line.trim_start_matches(['\'', '*', ':']).starts_with(&id),
        };
        let asks = format!(":_ojail_{names}' \\");
        found |= is_it;
        match line.strip_suffix(":_default' \\") {
            Some(start) if is_it => format!("{start}{asks}\n"),
            _ => format!("{line}\n"),
        }
    };
    let new: String = script.lines().map(&mut line).collect();
    if found { Ok(new) } else { Err(shape(&id)) }
}

/// In fish's script each option has a line, and other arguments have none.
fn fish(script: &str, path: &[&str], arg: &Arg, names: &str) -> io::Result<String> {
    let when = match path {
        [verb] => format!("__fish_ojail_using_subcommand {verb}"),
        [verb, sub] => format!("__fish_ojail_using_subcommand {verb}; and __fish_seen_subcommand_from {sub}"),
        _ => return Err(shape(&path.join(" "))),
    };
    let start = format!("complete -c ojail -n \"{when}\"");
    let asks = format!("-f -a \"({PROGRAM} complete {names} 2>/dev/null)\"");
    let Some(long) = arg.get_long() else {
        return Ok(format!("{script}{start} {asks}\n"));
    };
    let option = script
        .lines()
        .find(|line| {
            line.starts_with(&start) && line.contains(&format!(" -l {long} ")) && line.ends_with(" -r")
        })
        .ok_or_else(|| shape(long))?;
    replace(script, &format!("{option}\n"), &format!("{option} {asks}\n"))
}

/// Replaces what stands once in a text.
fn replace(text: &str, old: &str, new: &str) -> io::Result<String> {
    let (before, after) = halves(text, old)?;
    Ok([before, new, after].concat())
}

fn halves<'a>(text: &'a str, middle: &str) -> io::Result<(&'a str, &'a str)> {
    text.split_once(middle).ok_or_else(|| shape(middle))
}

fn shape(what: &str) -> io::Error {
    io::Error::other(format!("clap_complete's script is not as it was: where is {what:?}?"))
}
