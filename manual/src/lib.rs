//! What people read of the `ojail` command besides its own help: `ojail(8)` and the completions of three shells, made from
//! the one definition of the flags ([`ojail::admin::command`]). Run by `make build`, as whoever builds; part of no
//! installation.

mod completions;
mod page;

use clap::Command;

pub use completions::{SHELLS, Shell, completions, completions_of};
pub use page::page;

/// A verb that does something: `reset`, but of `snapshot` only `snapshot list` and its like.
pub struct Verb {
    /// As it is called, with all words before it: `ojail snapshot list`.
    pub name: String,
    /// Its definition.
    pub command: Command,
}

/// All verbs, in the order of their definition. Hidden ones are for programs, and told nowhere.
#[must_use]
pub fn verbs() -> Vec<Verb> {
    verbs_of(ojail::admin::command())
}

/// The same for any command, for tests.
#[must_use]
pub fn verbs_of(mut command: Command) -> Vec<Verb> {
    // Works out what follows from the definition, like names of values.
    command.build();
    let mut verbs = Vec::new();
    collect(command.get_name(), &command, &mut verbs);
    verbs
}

fn collect(name: &str, command: &Command, verbs: &mut Vec<Verb>) {
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        let name = format!("{name} {}", sub.get_name());
        if sub.has_subcommands() {
            collect(&name, sub, verbs);
        }
        if !sub.is_subcommand_required_set() {
            verbs.push(Verb { name, command: sub.clone() });
        }
    }
}

impl Verb {
    /// The command lines below `Examples:` of its long help.
    #[must_use]
    pub fn examples(&self) -> Vec<String> {
        let text = self.command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
        let lines = text.lines().skip_while(|line| *line != "Examples:").skip(1);
        lines.map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
    }
}
