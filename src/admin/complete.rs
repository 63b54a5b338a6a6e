//! `ojail complete`: names for the completions of shells, one a line. Hidden, since it is for no person; run by whoever
//! presses the tabulator key, so without root it tells what everybody may read.

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::ValueEnum;

use super::check::people;
use super::{configuration, say};
use crate::account::Username;
use crate::error::Result;
use crate::layers;
use crate::layers::generations;
use crate::store;

/// What can be completed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum What {
    /// Whom a rule may jail, and who has changes on disk.
    Users,
    /// The configuration's profiles.
    Profiles,
    /// Layers, and each of their generations.
    Layers,
}

pub(super) fn run(what: What) -> Result<ExitCode> {
    let config = configuration()?;
    let names: BTreeSet<String> = match what {
        What::Profiles => config.profiles.into_keys().collect(),
        // Only root can look, and what cannot be looked at completes to nothing.
        What::Layers => {
            let by_hand = layers::by_hand(&config.storage).unwrap_or_default();
            let all = generations::all(&config.storage).unwrap_or_default();
            let names = all.iter().flat_map(|one| [one.name.name().to_owned(), one.name.to_string()]);
            by_hand.iter().map(ToString::to_string).chain(names).collect()
        }
        // A user may be gone, or not be jailed any more, and still have an upper. Only root can look.
        What::Users => {
            let owners = store::owners(&config.storage).unwrap_or_default();
            let named = people::names(&config).into_iter().filter(|name| Username::parse(name).is_ok());
            owners.iter().map(Username::to_string).chain(named).collect()
        }
    };
    for name in names {
        say(name);
    }
    Ok(ExitCode::SUCCESS)
}
