//! `ojail layer list`.

use std::process::ExitCode;

use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::Style;

use super::super::list::local_time;
use super::super::status::bytes;
use super::super::{configuration, say};
use crate::config::{Config, LayerName};
use crate::error::Result;
use crate::layers::generations::{self, Generation, How};
use crate::layers::{self, Format};
use crate::walk;

/// A line of the table.
#[derive(Debug, Serialize)]
struct Line {
    name: String,
    generation: Option<String>,
    /// Whether a profile that names the layer gets this one.
    current: bool,
    /// The kinds of what there is of it: `directory`, `erofs`, `squashfs`; the first is the one that is taken.
    forms: Vec<&'static str>,
    how: Option<How>,
    /// Seconds since 1970.
    made: Option<u64>,
    from: Vec<LayerName>,
    /// Bytes that its files take on disk.
    bytes: u64,
    profiles: Vec<String>,
    jails: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Lines {
    layers: Vec<Line>,
}

pub(super) fn run(json: bool) -> Result<ExitCode> {
    let layers = lines(&configuration()?)?;
    if json {
        say(serde_json::to_string_pretty(&Lines { layers }).unwrap_or_default());
    } else if layers.is_empty() {
        say("There are no layers yet; `ojail layer build debian` makes one.");
    } else {
        say(table(&layers));
    }
    Ok(ExitCode::SUCCESS)
}

fn lines(config: &Config) -> Result<Vec<Line>> {
    let used = generations::in_use()?;
    let mut lines = Vec::new();
    for generation in generations::all(&config.storage)? {
        let jails = generations::users_of(&used, generation.paths())?;
        let profiles =
            generations::profiles_of(config, &generation).iter().map(ToString::to_string).collect();
        lines.push(line(generation, profiles, jails)?);
    }
    for layer in by_hand(config)? {
        let has = |names: &[LayerName]| names.contains(&layer.name);
        let profiles = config.profiles.values().filter(|profile| has(&profile.layers));
        lines.push(Line {
            name: layer.name.to_string(),
            generation: None,
            current: true,
            forms: vec![kind(layer.image)],
            how: None,
            made: None,
            from: Vec::new(),
            bytes: walk::taken(&layer.path)?,
            profiles: profiles.map(|profile| profile.name.clone()).collect(),
            jails: generations::users_of(&used, [&*layer.path])?,
        });
    }
    lines.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(lines)
}

fn line(generation: Generation, profiles: Vec<String>, jails: Vec<String>) -> Result<Line> {
    let mut bytes = 0;
    for form in &generation.forms {
        bytes += walk::taken(&form.path)?;
    }
    Ok(Line {
        name: generation.name.name().to_owned(),
        generation: generation.name.generation().map(str::to_owned),
        current: generation.current,
        forms: generation.forms.iter().map(|form| kind(form.image)).collect(),
        how: generation.record.as_ref().map(|record| record.how),
        made: generation.record.as_ref().map(|record| record.at),
        from: generation.record.map(|record| record.from).unwrap_or_default(),
        bytes,
        profiles,
        jails,
    })
}

/// Layers that somebody made by hand, by name.
fn by_hand(config: &Config) -> Result<Vec<layers::Layer>> {
    let names = layers::by_hand(&config.storage)?;
    // One that cannot be used is not one, nor is what lies beside the link that is taken.
    Ok(names
        .iter()
        .filter_map(|name| layers::resolve(&config.storage, std::slice::from_ref(name)).ok()?.pop())
        .filter(|layer| layer.generation.is_none())
        .collect())
}

pub(super) fn kind(image: Option<Format>) -> &'static str {
    image.map_or("directory", Format::name)
}

fn table(lines: &[Line]) -> String {
    let mut builder = Builder::default();
    builder.push_record(["LAYER", "GENERATION", "NOW", "KIND", "SIZE", "MADE", "FROM", "PROFILES", "JAILS"]);
    for line in lines {
        let from: Vec<&str> = line.from.iter().map(LayerName::as_str).collect();
        builder.push_record([
            line.name.clone(),
            line.generation.clone().unwrap_or_else(|| "(by hand)".into()),
            if line.current { "*" } else { "" }.into(),
            line.forms.join(", "),
            bytes(line.bytes),
            line.made.map(local_time).unwrap_or_default(),
            from.join(" "),
            line.profiles.join(" "),
            line.jails.join(" "),
        ]);
    }
    let table = builder.build().with(Style::blank()).to_string();
    table.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}
