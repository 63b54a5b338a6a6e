//! `ojail layer import`, `push` and `pull`: layers from images and registries, and to them. skopeo(1) carries ([`crate::oci::skopeo`]).
//!
//! Everything is unpacked, read back and compared in a workshop ([`Workshop`]) before the layer becomes another: in one rename.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::ProgressBar;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::backup::progress;
use super::super::status::bytes;
use super::super::{configuration, say};
use super::reading;
use crate::config::{Config, LayerName};
use crate::error::{Act, Error, Result};
use crate::layers::generations::{self, Generation, How, Made, Record, Workshop};
use crate::log::{Level, Log};
use crate::oci::layout::{Compression, Draft, Image};
use crate::oci::skopeo::{self, Downloads, Place};
use crate::oci::tar::{Allowance, Marks, Tree, write_in_parts};
use crate::walk;

#[derive(Debug, clap::Args)]
pub(in super::super) struct Import {
    /// What to call the layer
    name: String,
    /// Of what image: oci:DIR, oci-archive:FILE, docker-archive:FILE, each also with :TAG, or REGISTRY/REPO:TAG
    #[arg(value_parser = Place::image)]
    image: Place,
    /// Make a layer of each layer of the image: NAME-1 is the lowest
    #[arg(long)]
    separate: bool,
    /// Speak to a registry without TLS, or without a look at its certificate
    #[arg(long)]
    insecure: bool,
}

#[derive(Debug, clap::Args)]
pub(in super::super) struct Push {
    /// Which layer, or which generation of it (NAME@GENERATION)
    name: String,
    /// Where to
    #[arg(value_name = "REGISTRY/REPO:TAG", value_parser = Place::registry)]
    to: Place,
    /// How to compress it
    #[arg(long, value_enum, default_value = "gzip")]
    compress: Compression,
    /// Speak to a registry without TLS, or without a look at its certificate
    #[arg(long)]
    insecure: bool,
}

#[derive(Debug, clap::Args)]
pub(in super::super) struct Pull {
    /// What to call the layer here
    name: String,
    /// Where from
    #[arg(value_name = "REGISTRY/REPO:TAG", value_parser = Place::registry)]
    from: Place,
    /// Speak to a registry without TLS, or without a look at its certificate
    #[arg(long)]
    insecure: bool,
}

/// Annotations of the manifest: what ojail knows of a layer.
const NAME: &str = "ojail.layer.name";
/// SHA-256 of the content, as [`Record::digest`].
const DIGEST: &str = "ojail.layer.digest";
/// The layers below, topmost first, with blanks between.
const FROM: &str = "ojail.layer.from";
/// How it was made, as in `ojail layer list --json`.
const HOW: &str = "ojail.layer.how";
/// Of OCI (image-spec, annotations.md): when it was made.
const CREATED: &str = "org.opencontainers.image.created";

/// A part of a layer is a blob of its own: as much as is carried again after a cut. In bytes before compression.
const PART: u64 = 32 << 20;

/// The most parts: overlayfs takes no more than 127 layers of an image in containers/storage and Docker.
const PARTS: u64 = 100;

pub(super) fn import(import: &Import) -> Result<ExitCode> {
    let config = configuration()?;
    let name = new_name(&config, &import.name)?;
    let downloads = Downloads::open(&config.storage)?;
    let workshop = Workshop::open(&config.storage)?;
    let image = bring(&downloads, &import.image, import.insecure, &workshop)?;
    let made = imported(&config, &workshop, &image, &name, import);
    // It came whole, so nothing of it is kept for another try.
    image.discard();
    for generation in made? {
        tell(&generation, "layer-import", &import.image);
    }
    Ok(ExitCode::SUCCESS)
}

fn imported(
    config: &Config,
    workshop: &Workshop<'_>,
    image: &Image,
    name: &LayerName,
    import: &Import,
) -> Result<Vec<Generation>> {
    let mut command: Vec<String> =
        ["ojail", "layer", "import", name.as_str()].iter().map(ToString::to_string).collect();
    command.push(import.image.to_string());
    if !import.separate {
        let tree = unpacked(workshop, "tree", image, 0..image.layers(), Marks::Applied)?;
        let made = Made { how: How::Import, command, from: Vec::new() };
        return Ok(vec![finish(workshop, name, &tree, made)?]);
    }
    command.push("--separate".into());
    // All are there before the first is a layer.
    let mut ready = Vec::new();
    for number in 0..image.layers() {
        let name = new_name(config, &format!("{name}-{}", number + 1))?;
        let tree = unpacked(workshop, name.as_str(), image, number..number + 1, Marks::Kept)?;
        ready.push((name, tree));
    }
    let (mut made, mut from) = (Vec::new(), Vec::new());
    for (name, tree) in ready {
        let below = Made { how: How::Import, command: command.clone(), from: Vec::clone(&from) };
        let generation = finish(workshop, &name, &tree, below)?;
        from.insert(0, generation.name.clone());
        made.push(generation);
    }
    let names: Vec<String> = made.iter().rev().map(|made| format!("\"{}\"", made.name.name())).collect();
    say(format_args!("A profile has them with `layers = [{}]`.", names.join(", ")));
    Ok(made)
}

pub(super) fn push(push: &Push) -> Result<ExitCode> {
    let config = configuration()?;
    let generation = generations::one(&config.storage, &super::parse(&push.name)?)?;
    let bad = |why: &str| Error::Layer { name: generation.name.to_string(), why: why.into() };
    let record = generation.record.as_ref();
    let record =
        record.ok_or_else(|| bad("there is no record of it, so nothing tells whether it is whole"))?;
    let layer = generation.layer().ok_or_else(|| bad("there is a record of it and nothing else"))?;
    let content = layer.content()?;
    let bar = reading();
    if generations::digest(&content, &bar)?.0 != record.digest {
        return Err(bad("it is not what it was made to be; `ojail layer verify` tells more"));
    }
    bar.finish_and_clear();
    let workshop = Workshop::open(&config.storage)?;
    let layout = workshop.place("image");
    let mut draft = Draft::begin(&layout, push.compress)?;
    let most = PART.max(record.size.bytes / PARTS);
    let waiting = waiting("packing");
    write_in_parts(walk::open(&content)?.as_fd(), &mut draft, most, &mut Draft::cut)?;
    let (digest, parts) = draft.finish(&created(record)?, "ojail", annotations(&generation, record)?)?;
    waiting.set_message("pushing");
    let carried = skopeo::take(&layout, &push.to, push.insecure, &workshop.place("carry"));
    waiting.finish_and_clear();
    carried?;
    let parts = if parts == 1 { String::new() } else { format!(" ({parts} parts)") };
    say(format_args!("{} is {} now: {digest}{parts}.", generation.name, push.to));
    log("layer-push", &generation.name, &push.to);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn pull(pull: &Pull) -> Result<ExitCode> {
    let config = configuration()?;
    let name = new_name(&config, &pull.name)?;
    let downloads = Downloads::open(&config.storage)?;
    let workshop = Workshop::open(&config.storage)?;
    let image = bring(&downloads, &pull.from, pull.insecure, &workshop)?;
    let made = pulled(&workshop, &image, &name, pull);
    image.discard();
    tell(&made?, "layer-pull", &pull.from);
    Ok(ExitCode::SUCCESS)
}

fn pulled(workshop: &Workshop<'_>, image: &Image, name: &LayerName, pull: &Pull) -> Result<Generation> {
    let bad = |why: String| Error::Image { why };
    let said = image.annotation(DIGEST).ok_or_else(|| {
        bad(format!(
            "was not written by `ojail layer push`; `ojail layer import {name} {}` takes any image",
            pull.from
        ))
    })?;
    let mut from = Vec::new();
    for below in image.annotation(FROM).unwrap_or_default().split_whitespace() {
        from.push(super::parse(below)?);
    }
    // The parts of one tree, and not layers that hide something of each other.
    let tree = unpacked(workshop, "tree", image, 0..image.layers(), Marks::Kept)?;
    let bar = reading();
    let (is, _) = generations::digest(&tree, &bar)?;
    bar.finish_and_clear();
    if is != said {
        let said: String = said.escape_debug().take(80).collect();
        return Err(bad(format!("says that its content has the digest {said}, and it has {is}")));
    }
    let command = ["ojail", "layer", "pull", name.as_str()].into_iter().map(ToString::to_string);
    let command = command.chain([pull.from.to_string()]).collect();
    finish(workshop, name, &tree, Made { how: How::Pull, command, from })
}

/// A name that a new generation can be made of. Asked for before anything is carried.
fn new_name(config: &Config, name: &str) -> Result<LayerName> {
    let name = super::parse(name)?;
    generations::free_for(&config.storage, &name)?;
    Ok(name)
}

fn bring(downloads: &Downloads, from: &Place, insecure: bool, workshop: &Workshop<'_>) -> Result<Image> {
    let waiting = waiting("bringing the image");
    let image = downloads.bring(from, insecure, &workshop.place("carry"));
    waiting.finish_and_clear();
    image
}

/// Unpacks layers of an image into a directory of the workshop.
fn unpacked(
    workshop: &Workshop<'_>,
    name: &str,
    image: &Image,
    layers: std::ops::Range<usize>,
    marks: Marks,
) -> Result<PathBuf> {
    let path = workshop.place(name);
    DirBuilder::new().mode(0o755).create(&path).act("create", &path)?;
    let dir = walk::open(&path)?;
    let bar = progress();
    bar.set_length(image.size());
    bar.set_message("unpacking");
    let mut tree = Tree::new(dir.as_fd(), Allowance::of(&dir)?)?;
    for number in layers {
        image.unpack(number, &mut tree, marks, &bar)?;
    }
    tree.finish()?;
    bar.finish_and_clear();
    Ok(path)
}

fn finish(workshop: &Workshop<'_>, name: &LayerName, tree: &Path, made: Made) -> Result<Generation> {
    let bar = reading();
    let generation = workshop.finish(name, tree, made, &bar);
    bar.finish_and_clear();
    generation
}

fn annotations(generation: &Generation, record: &Record) -> Result<BTreeMap<String, String>> {
    let from: Vec<&str> = record.from.iter().map(LayerName::as_str).collect();
    let how = serde_json::to_value(record.how).map_err(std::io::Error::from).act("write", "an annotation")?;
    let all = [
        (NAME, generation.name.name().to_owned()),
        (DIGEST, record.digest.clone()),
        (FROM, from.join(" ")),
        (HOW, how.as_str().unwrap_or_default().to_owned()),
        (CREATED, created(record)?),
    ];
    Ok(all.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// When a generation was made, as OCI has times.
fn created(record: &Record) -> Result<String> {
    let at = i64::try_from(record.at).ok().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
    at.and_then(|at| at.format(&Rfc3339).ok())
        .ok_or_else(|| std::io::Error::other("it is no time"))
        .act("write", "when the layer was made")
}

fn tell(generation: &Generation, event: &str, from: &Place) {
    let size = generation.record.as_ref().map_or(0, |record| record.size.bytes);
    say(format_args!("{} is {} now ({}).", generation.name.name(), generation.name, bytes(size)));
    log(event, &generation.name, from);
}

fn log(event: &str, name: &LayerName, place: &Place) {
    Log::open("ojail").event(Level::Info, event, &[("layer", name), ("image", place)]);
}

/// Something is under way that does not tell how far it is.
fn waiting(what: &'static str) -> ProgressBar {
    let bar = reading();
    if let Ok(style) = indicatif::ProgressStyle::with_template("{spinner} {msg}, {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
