//! `ojail usage`: what layers save.
//!
//! Three sums over all users who have changes on disk: a whole copy of the jail for each; each layer once, as a directory, and the
//! changes; each layer once, as an image, and the changes. All is counted, nothing estimated: where a layer is not there in a form,
//! and that form cannot be counted from the other, the sum is not known.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::object::Columns;
use tabled::settings::{Alignment, Padding, Style};

use super::status::{bytes, measured};
use super::{configuration, jailed, say};
use crate::account::Username;
use crate::config::{Config, LayerName, Storage};
use crate::error::Result;
use crate::layers::generations::{self, Form, Names, Workshop};
use crate::layers::{self, Format};
use crate::runtime::{Corner, Ground};
use crate::store;
use crate::walk;

/// As `--json` prints it; all numbers are of bytes on disk, `null` where they are not known.
#[derive(Debug, Default, Serialize)]
struct Usage {
    /// Every jail as a whole copy: its layers and its changes.
    one_by_one: Option<u64>,
    /// Each layer once, as a directory, and all changes.
    shared: Option<u64>,
    /// Of `one_by_one`.
    shared_percent: Option<f64>,
    /// Each layer once, as an image, and all changes.
    packed: Option<u64>,
    /// Of `one_by_one`.
    packed_percent: Option<f64>,
    /// What layers and changes take now, in the forms that are there.
    now: u64,
    layers: Vec<Layer>,
    users: Vec<User>,
}

/// A layer on which somebody's jail stands.
#[derive(Debug, Serialize)]
struct Layer {
    /// With the generation.
    name: String,
    /// As a directory.
    directory: Option<u64>,
    /// As an image.
    image: Option<u64>,
    /// `erofs` or `squashfs`.
    image_format: Option<&'static str>,
    /// How many jails stand on it.
    jails: u64,
}

/// Somebody who has changes on disk.
#[derive(Debug, Serialize)]
struct User {
    user: Username,
    /// `null`: not jailed any more, or gone. Only the changes count then.
    profile: Option<String>,
    /// Topmost first.
    layers: Vec<String>,
    /// The changes.
    upper: Option<u64>,
    /// A whole copy of the jail.
    one_by_one: Option<u64>,
}

pub(super) fn run(json: bool) -> Result<ExitCode> {
    let config = configuration()?;
    let usage = usage(&config)?;
    if json {
        say(serde_json::json!(usage));
    } else if usage.users.is_empty() {
        say("No jails: nobody has changes on disk yet.");
    } else {
        say(text(&usage));
    }
    Ok(ExitCode::SUCCESS)
}

fn usage(config: &Config) -> Result<Usage> {
    let storage = &config.storage;
    let owners = store::owners(storage)?;
    let names = Names::look(storage)?;
    // The walks over uppers are what takes time: disks and processors have room for several.
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(owners.len().max(1));
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(owner) = owners.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let one = user(config, &names, owner);
                    // Who has panicked has its own words.
                    found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(one);
                }
            });
        }
    });
    let mut users = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    users.sort_by(|(a, _), (b, _)| a.user.cmp(&b.user));

    let mut sizes: BTreeMap<String, Layer> = BTreeMap::new();
    let mut workshop = None;
    for (_, layers) in &users {
        for name in layers {
            if let Some(layer) = sizes.get_mut(name.as_str()) {
                layer.jails += 1;
                continue;
            }
            let layer = layer(storage, name, &mut workshop)?;
            sizes.insert(layer.name.clone(), layer);
        }
    }
    let directory = |name: &String| sizes.get(name).and_then(|layer| layer.directory);
    let users: Vec<User> = users
        .into_iter()
        .map(|(mut user, _)| {
            let below: Option<u64> = user.layers.iter().map(directory).sum();
            user.one_by_one = below.zip(user.upper).map(|(below, upper)| below + upper);
            user
        })
        .collect();
    let uppers: Option<u64> = users.iter().map(|user| user.upper).sum();
    let sum = |size: fn(&Layer) -> Option<u64>| -> Option<u64> {
        Some(sizes.values().map(size).sum::<Option<u64>>()? + uppers?)
    };
    let one_by_one: Option<u64> = users.iter().map(|user| user.one_by_one).sum();
    let (shared, packed) = (sum(|layer| layer.directory), sum(|layer| layer.image));
    // With one decimal.
    let percent = |part: Option<u64>| match (part, one_by_one) {
        (Some(part), Some(whole)) if whole > 0 => Some((part as f64 * 1000.0 / whole as f64).round() / 10.0),
        _ => None,
    };
    Ok(Usage {
        one_by_one,
        shared,
        shared_percent: percent(shared),
        packed,
        packed_percent: percent(packed),
        now: now(storage, sizes.keys())? + uppers.unwrap_or(0),
        layers: sizes.into_values().collect(),
        users,
    })
}

/// The layers are those of the running jail, else those of the profile.
fn user(config: &Config, names: &Names, owner: &Username) -> (User, Vec<LayerName>) {
    let upper = measured(&config.storage.upperdirs.join(owner)).map(|size| size.bytes);
    let profile = jailed(config, owner.as_str()).ok().map(|(_, profile)| profile);
    let ground = Corner::of(owner).layers().unwrap_or(Ground::Nothing);
    let layers = names.of(&ground).or_else(|| {
        let profile = profile?;
        Some(generations::next(&config.storage, &profile.layers).unwrap_or_else(|_| profile.layers.clone()))
    });
    let layers = layers.unwrap_or_default();
    let user = User {
        user: owner.clone(),
        profile: profile.map(|profile| profile.name.clone()),
        layers: layers.iter().map(ToString::to_string).collect(),
        upper,
        one_by_one: None,
    };
    (user, layers)
}

/// The forms of a layer, and what its record says it takes as a directory.
fn forms(storage: &Storage, name: &LayerName) -> (Vec<Form>, Option<u64>) {
    if name.generation().is_some() {
        let one = generations::one(storage, name).ok();
        // Measured when it was made, of what cannot change.
        let size = one.as_ref().and_then(|one| one.record.as_ref()).map(|record| record.size.bytes);
        return (one.map(|one| one.forms).unwrap_or_default(), size);
    }
    let layer = layers::resolve(storage, std::slice::from_ref(name)).ok().and_then(|mut found| found.pop());
    (layer.map(|layer| Form { path: layer.path, image: layer.image }).into_iter().collect(), None)
}

fn layer<'a>(storage: &'a Storage, name: &LayerName, workshop: &mut Option<Workshop<'a>>) -> Result<Layer> {
    let (forms, recorded) = forms(storage, name);
    let image = forms.iter().find(|form| form.image.is_some());
    let directory = match (recorded, forms.iter().find(|form| form.image.is_none()), image) {
        (Some(size), ..) => Some(size),
        (None, Some(form), _) => Some(walk::taken(&form.path)?),
        (None, None, Some(Form { path, image: Some(format) })) => {
            if workshop.is_none() {
                *workshop = Some(Workshop::open(storage)?);
            }
            // One that cannot be read is not known.
            let counted = |shop: &Workshop<'_>| {
                walk::size_as_copied(walk::open(shop.show(path, *format)?.path())?).map(|size| size.bytes)
            };
            workshop.as_ref().and_then(|shop| counted(shop).ok())
        }
        (None, None, _) => None,
    };
    Ok(Layer {
        name: name.to_string(),
        directory,
        image: image.map(|form| walk::taken(&form.path)).transpose()?,
        image_format: image.and_then(|form| form.image).map(Format::name),
        jails: 1,
    })
}

/// What these layers take now, in all their forms.
fn now<'a>(storage: &Storage, names: impl Iterator<Item = &'a String>) -> Result<u64> {
    let mut sum = 0;
    for name in names.filter_map(|name| LayerName::parse(name).ok()) {
        for form in forms(storage, &name).0 {
            sum += walk::taken(&form.path)?;
        }
    }
    Ok(sum)
}

fn text(usage: &Usage) -> String {
    let size = |size: Option<u64>| size.map_or_else(|| "not known".into(), bytes);
    let percent = |part: Option<f64>| part.map(|part| format!("{part:.1} %")).unwrap_or_default();
    let whole = usage.one_by_one.map(|_| 100.0);
    let sums = table(
        &["", "SIZE", "OF ONE BY ONE"],
        &[
            ["one by one".into(), size(usage.one_by_one), percent(whole)],
            ["with shared layers".into(), size(usage.shared), percent(usage.shared_percent)],
            ["packed".into(), size(usage.packed), percent(usage.packed_percent)],
        ],
        1..3,
    );
    let layers: Vec<[String; 4]> = usage
        .layers
        .iter()
        .map(|layer| {
            let image = match (layer.image, layer.image_format) {
                (Some(image), Some(format)) => format!("{} {format}", bytes(image)),
                _ => "not packed".into(),
            };
            [layer.name.clone(), size(layer.directory), image, layer.jails.to_string()]
        })
        .collect();
    let users: Vec<[String; 5]> = usage
        .users
        .iter()
        .map(|user| {
            [
                user.user.to_string(),
                user.profile.clone().unwrap_or_else(|| "(not jailed)".into()),
                size(user.upper),
                size(user.one_by_one),
                user.layers.join(" "),
            ]
        })
        .collect();
    let mut parts = vec![sums, table(&["LAYER", "DIRECTORY", "IMAGE", "JAILS"], &layers, 1..4)];
    parts.push(table(&["USER", "PROFILE", "CHANGES", "ONE BY ONE", "LAYERS"], &users, 2..4));
    let loose: Vec<&str> =
        usage.layers.iter().filter(|layer| layer.image.is_none()).map(|layer| layer.name.as_str()).collect();
    if !loose.is_empty() {
        parts.push(format!(
            "What {} would take packed is known when it is: `ojail layer pack`.",
            loose.join(", ")
        ));
    }
    parts.join("\n\n")
}

fn table<const N: usize>(head: &[&str; N], rows: &[[String; N]], numbers: std::ops::Range<usize>) -> String {
    let mut builder = Builder::default();
    builder.push_record(head.iter().copied());
    for row in rows {
        builder.push_record(row.iter().map(String::as_str));
    }
    let mut table = builder.build();
    table.with(Style::empty()).with(Padding::new(1, 1, 0, 0));
    for column in numbers {
        table.modify(Columns::one(column), Alignment::right());
    }
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}
