//! `ojail layer prune`: generations that nobody needs any more.

use std::process::ExitCode;

use super::super::status::bytes;
use super::super::{configuration, say};
use super::list::kind;
use super::reading;
use crate::config::LayerName;
use crate::error::{Error, Result};
use crate::layers::generations::{self, Old, Workshop};
use crate::walk;

pub(super) fn run(name: Option<&LayerName>, keep: usize, dry_run: bool) -> Result<ExitCode> {
    let config = configuration()?;
    if let Some(name) = name.filter(|name| name.generation().is_some()) {
        let why = format!("name the layer alone; `ojail layer remove {name}` removes one generation");
        return Err(Error::Layer { name: name.to_string(), why });
    }
    let mut old = generations::old(&config, name, keep)?;
    let workshop = if dry_run { None } else { Some(Workshop::open(&config.storage)?) };
    let mut freed = 0;
    let mut refused = false;
    for old in &mut old {
        for number in (0..old.forms.len()).rev() {
            let form = &old.forms[number];
            let size = walk::taken(&form.path)?;
            let told = format!("{} ({}, {})", old.generation.name, kind(form.image), bytes(size));
            let done = match &workshop {
                None => Ok(()),
                Some(workshop) => stays(workshop, old).and_then(|()| workshop.remove(&old.generation, form)),
            };
            match done {
                Ok(()) => {
                    say(format_args!("{told} {}.", if dry_run { "would be removed" } else { "is removed" }));
                    freed += size;
                }
                // A jail may have been raised on it meanwhile. The others are as old as they were.
                Err(e) => {
                    super::super::backup::complain(&e);
                    refused = true;
                }
            }
        }
    }
    match (freed, dry_run) {
        (0, _) if !refused => say("Nothing is old: all that there is is needed, or kept for a rollback."),
        (freed, true) => say(format_args!("{} would be free.", bytes(freed))),
        (freed, false) => say(format_args!("{} are free.", bytes(freed))),
    }
    Ok(if refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Before a second form goes, the first one must be good.
fn stays(workshop: &Workshop<'_>, old: &Old) -> Result<()> {
    let (Some(first), Some(record)) = (old.generation.forms.first(), &old.generation.record) else {
        return Ok(());
    };
    if old.whole() || workshop.examine(first, &reading())?.0 == record.digest {
        return Ok(());
    }
    let why = format!(
        "{} is not what it was made to be, so its other form stays; remove the bad one by hand",
        first.path.display()
    );
    Err(Error::Layer { name: old.generation.name.to_string(), why })
}
