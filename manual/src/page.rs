//! `ojail(8)`: the hand-written template `conf/man/ojail.8.in`, with a synopsis and a section for every verb where it
//! says so.

use std::io;

use clap::{Arg, ArgAction, Command};
use clap_mangen::Man;

use crate::{Verb, verbs};

/// Where the template has the synopsis, and where the verbs. Comments to roff.
const SYNOPSIS: &str = ".\\\" @SYNOPSIS@\n";
const VERBS: &str = ".\\\" @VERBS@\n";

/// The whole page, from the template.
///
/// # Errors
/// If a hole is missing in the template, or there is one more.
pub fn page(template: &str) -> io::Result<String> {
    let verbs = verbs();
    let mut synopsis = String::new();
    let mut sections = String::new();
    for verb in &verbs {
        synopsis += &usage(verb);
        sections += &section(verb)?;
    }
    [(SYNOPSIS, synopsis), (VERBS, sections)].into_iter().try_fold(
        template.to_owned(),
        |page, (hole, text)| match page.matches(hole).count() {
            1 => Ok(page.replace(hole, &text)),
            number => {
                let hole = hole.trim_end();
                Err(io::Error::other(format!("the template has {number} lines `{hole}`, where one must be")))
            }
        },
    )
}

fn section(verb: &Verb) -> io::Result<String> {
    let mut text = format!(".SS {}\n{}.PP\n", escape(&verb.name), usage(verb));
    let about = verb.command.get_long_about().or(verb.command.get_about());
    let about = about.map(ToString::to_string).unwrap_or_default();
    for (i, paragraph) in about.split("\n\n").enumerate() {
        if i > 0 {
            text += ".PP\n";
        }
        // A sentence a line, as roff wants it for the space between them.
        text += &escape(paragraph).replace(". ", ".\n");
        // The first is a title, which has no full stop.
        text += if i == 0 && !paragraph.ends_with('.') { ".\n" } else { "\n" };
    }
    text += &options(&verb.command)?;
    let examples = verb.examples();
    if !examples.is_empty() {
        text += ".PP\n.RS 4\n.EX\n";
        for line in examples {
            text += &format!("{}\n", escape(&line));
        }
        text += ".EE\n.RE\n";
    }
    Ok(text)
}

/// Arguments and options as `clap_mangen` has them, below the verb instead of in a section of their own.
fn options(command: &Command) -> io::Result<String> {
    let mut bytes = Vec::new();
    let command = command.clone().mut_args(|arg| match arg.get_action() {
        // Every verb has it.
        ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong => arg.hide(true),
        _ => arg,
    });
    Man::new(command).render_options_section(&mut bytes)?;
    let text = String::from_utf8(bytes).map_err(io::Error::other)?;
    let options = text.split_once(".SH OPTIONS\n").map(|(_, options)| options).unwrap_or_default();
    // A string that it defines where the section begins; and a break before and behind an empty line, which breaks by itself.
    Ok(options.replace("\\*(Aq", "\\(aq").replace("\n.br\n\n.br\n", "\n.sp\n"))
}

/// `ojail reset [--force] [--keep PATH]… [USER]`, in roff.
fn usage(verb: &Verb) -> String {
    let shown = |arg: &&Arg| {
        !arg.is_hide_set()
            && !matches!(
                arg.get_action(),
                ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
            )
    };
    let (positional, options): (Vec<&Arg>, Vec<&Arg>) =
        verb.command.get_arguments().filter(shown).partition(|arg| arg.is_positional());
    let words: Vec<String> = options.into_iter().chain(positional).map(argument).collect();
    format!(".SY \"{}\"\n{}\n.YS\n", escape(&verb.name), words.join("\n"))
}

fn argument(arg: &Arg) -> String {
    let flag = match (arg.get_long(), arg.get_short()) {
        (Some(long), _) => format!("\\fB{}\\fR", escape(&format!("--{long}"))),
        (None, Some(short)) => format!("\\fB{}\\fR", escape(&format!("-{short}"))),
        (None, None) => String::new(),
    };
    let takes = arg.get_num_args().unwrap_or_default();
    let values: Vec<String> = match arg.get_value_names() {
        Some(names) if takes.takes_values() => {
            names.iter().map(|name| format!("\\fI{}\\fR", escape(name))).collect()
        }
        _ => Vec::new(),
    };
    let mut text = [flag, values.join(" ")].join(" ").trim().to_owned();
    let many = if takes.max_values() > values.len().max(1) || matches!(arg.get_action(), ArgAction::Append) {
        "..."
    } else {
        ""
    };
    if arg.is_last_set() {
        text = format!("\\-\\- {text}{many}");
        return if arg.is_required_set() { text } else { format!("[{text}]") };
    }
    if arg.is_required_set() { format!("{text}{many}") } else { format!("[{text}]{many}") }
}

/// Plain text as roff has it. A dash is what a shell takes, to be copied from the page; a dot or an apostrophe at the
/// beginning of a line would be a request.
fn escape(text: &str) -> String {
    let line = |line: &str| {
        let line = line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq").replace('`', "\\(ga");
        if line.starts_with('.') { format!("\\&{line}") } else { line }
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}
