//! `ojail layer adopt`, `rollback` and `remove`: which generation a layer is, and which there are.

use std::process::ExitCode;

use super::super::{configuration, say};
use super::reading;
use crate::config::LayerName;
use crate::error::{Error, Result};
use crate::layers::generations::{self, Generation, How, Made, Workshop};

pub(super) fn adopt(name: &LayerName) -> Result<ExitCode> {
    let config = configuration()?;
    let made = Made { how: How::Adopt, command: Vec::new(), from: Vec::new() };
    let bar = reading();
    let generation = Workshop::open(&config.storage)?.adopt(name, made, &bar)?;
    bar.finish_and_clear();
    say(format_args!("{name} is {generation} now."));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn rollback(name: &LayerName, to: Option<&str>) -> Result<ExitCode> {
    let config = configuration()?;
    let bad = |why: String| Err(Error::Layer { name: name.to_string(), why });
    if name.generation().is_some() {
        return bad("name the layer alone, and the generation behind --to".into());
    }
    let all = generations::of(&config.storage, name)?;
    let now = all.iter().position(|generation| generation.current);
    let wanted = match to {
        Some(id) => super::parse(&format!("{name}@{id}"))?,
        // The list begins with the newest.
        None => match all.get(now.map_or(0, |now| now + 1)) {
            Some(before) => before.name.clone(),
            None => {
                return bad("there is no earlier generation; `ojail layer list` shows what there is".into());
            }
        },
    };
    Workshop::open(&config.storage)?.turn_to(&wanted)?;
    say(format_args!("{name} is {wanted} now. Jails that run keep what they have; the next raise takes it."));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn remove(name: &LayerName) -> Result<ExitCode> {
    let config = configuration()?;
    let mut wanted = generations::of(&config.storage, name)?;
    if name.generation().is_some() && wanted.iter().any(|generation| generation.current) {
        let whole = super::parse(name.name())?;
        if generations::of(&config.storage, &whole)?.len() > 1 {
            let why = format!(
                "is what the layer is now; `ojail layer rollback {whole}` first, or `ojail layer remove {whole}` for all of it"
            );
            return Err(Error::Layer { name: name.to_string(), why });
        }
    }
    // All of them may go, or none goes.
    let used = generations::in_use()?;
    for generation in &wanted {
        let profiles = generations::profiles_of(&config, generation);
        let jails = generations::users_of(&used, generation.paths())?;
        let why = if !profiles.is_empty() {
            format!("profile {} names it; take it out of `layers` there first", profiles.join(", "))
        } else if !jails.is_empty() {
            format!("in use by {}; `ojail stop` ends a jail", jails.join(", "))
        } else {
            continue;
        };
        return Err(Error::Layer { name: generation.name.to_string(), why });
    }
    let workshop = Workshop::open(&config.storage)?;
    // The generation that the layer is goes last: what a kill leaves is still a layer.
    wanted.sort_by_key(|generation| generation.current);
    for generation in &wanted {
        gone(&workshop, generation)?;
        say(format_args!("{} is removed.", generation.name));
    }
    Ok(ExitCode::SUCCESS)
}

fn gone(workshop: &Workshop<'_>, generation: &Generation) -> Result<()> {
    // The form that is taken goes last: until then the layer is whole.
    for form in generation.forms.iter().rev() {
        workshop.remove(generation, form)?;
    }
    Ok(())
}
