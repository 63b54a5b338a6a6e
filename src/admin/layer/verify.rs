//! `ojail layer verify`: content against digest.

use std::process::ExitCode;

use serde::Serialize;

use super::super::{configuration, say};
use super::list::kind;
use super::reading;
use crate::config::LayerName;
use crate::error::Result;
use crate::layers::generations::{self, Form, Generation, Workshop};

#[derive(Debug, Serialize)]
struct Verdict {
    name: LayerName,
    /// `directory`, `erofs`, `squashfs`, `nothing`.
    form: &'static str,
    good: bool,
    /// What is wrong.
    why: Option<String>,
}

#[derive(Debug, Serialize)]
struct Verdicts {
    layers: Vec<Verdict>,
}

pub(super) fn run(name: Option<&LayerName>, json: bool) -> Result<ExitCode> {
    let config = configuration()?;
    // Images are mounted in there. It clears what a kill left, before that is looked at.
    let workshop = Workshop::open(&config.storage)?;
    let wanted = match name {
        Some(name) => generations::of(&config.storage, name)?,
        None => generations::all(&config.storage)?,
    };
    let bar = reading();
    let layers: Vec<Verdict> =
        wanted.iter().flat_map(|generation| verdicts(&workshop, generation, &bar)).collect();
    bar.finish_and_clear();
    let good = layers.iter().all(|verdict| verdict.good);
    if json {
        say(serde_json::to_string_pretty(&Verdicts { layers }).unwrap_or_default());
    } else {
        for Verdict { name, form, why, .. } in &layers {
            say(format_args!("{name} ({form}): {}", why.as_deref().unwrap_or("as it was made")));
        }
        if wanted.is_empty() {
            say("No layer has generations.");
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn verdicts(workshop: &Workshop<'_>, generation: &Generation, bar: &indicatif::ProgressBar) -> Vec<Verdict> {
    let verdict = |form: &Form| {
        let why = match &generation.record {
            None => Some("there is no record to compare it with".to_owned()),
            Some(record) => match workshop.examine(form, bar) {
                Ok((digest, _)) if digest == record.digest => None,
                Ok((digest, _)) => Some(format!("CHANGED: its digest is {digest}, not {}", record.digest)),
                Err(e) => Some(format!("CANNOT BE READ: {e}")),
            },
        };
        Verdict { name: generation.name.clone(), form: kind(form.image), good: why.is_none(), why }
    };
    if generation.forms.is_empty() {
        let why = Some("MISSING: there is only its record".to_owned());
        return vec![Verdict { name: generation.name.clone(), form: "nothing", good: false, why }];
    }
    generation.forms.iter().map(verdict).collect()
}
