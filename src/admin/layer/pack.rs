//! `ojail layer pack` and `unpack`: a layer as an image, and back.

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::super::snapshot::room;
use super::super::status::bytes;
use super::super::{configuration, say};
use super::reading;
use crate::config::{LayerName, Storage};
use crate::error::Result;
use crate::layers::Format;
use crate::layers::generations::{self, Generation, Workshop};
use crate::layers::pack::Turned;
use crate::walk;

/// What to pack, and how.
#[derive(Debug, Args)]
pub(in crate::admin) struct Pack {
    /// Which; LAYER@GENERATION for one that the layer is not now
    #[arg(value_name = "LAYER")]
    name: String,
    /// What the image is
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "erofs")]
    format: Kind,
    /// Not the best that the installed tool and this kernel both have, but this one (such as `zstd`, `lz4hc`, `xz` or `none`)
    #[arg(long, value_name = "NAME")]
    compression: Option<String>,
}

/// What an image can be.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Erofs,
    Squashfs,
}

pub(super) fn pack(pack: &Pack) -> Result<ExitCode> {
    let name = super::parse(&pack.name)?;
    let format = match pack.format {
        Kind::Erofs => Format::Erofs,
        Kind::Squashfs => Format::Squashfs,
    };
    let config = configuration()?;
    let generation = generations::one(&config.storage, &name)?;
    let workshop = Workshop::open(&config.storage)?;
    let compression = workshop.compression(&name, format, pack.compression.as_deref())?;
    // How small it gets nobody knows before; what does not halve is seldom worth the packing.
    fits(&config.storage, &generation, 2)?;
    let bar = reading();
    bar.set_message(format!("packing {name} as {} ({})", format.name(), compression.name));
    let turned = workshop.pack(&generation, format, compression, &bar)?;
    bar.finish_and_clear();
    say(format_args!(
        "{} is packed as {} ({}): {}.",
        turned.generation,
        format.name(),
        compression.name,
        sizes(&generation, &turned)
    ));
    tell_left(&turned);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn unpack(name: &LayerName) -> Result<ExitCode> {
    let config = configuration()?;
    let generation = generations::one(&config.storage, name)?;
    let workshop = Workshop::open(&config.storage)?;
    fits(&config.storage, &generation, 1)?;
    let bar = reading();
    bar.set_message(format!("unpacking {name}"));
    let turned = workshop.unpack(&generation, &bar)?;
    bar.finish_and_clear();
    say(format_args!("{} is a directory again, of {}.", turned.generation, bytes(turned.bytes)));
    tell_left(&turned);
    Ok(ExitCode::SUCCESS)
}

/// Asks for the room that a part of the content takes.
fn fits(storage: &Storage, generation: &Generation, part: u64) -> Result<()> {
    let Some(record) = &generation.record else { return Ok(()) };
    room(&storage.lowerdirs, walk::open(&storage.lowerdirs)?, record.size.bytes / part)
}

fn sizes(generation: &Generation, turned: &Turned) -> String {
    match &generation.record {
        Some(record) => format!("{} instead of {}", bytes(turned.bytes), bytes(record.size.bytes)),
        None => bytes(turned.bytes),
    }
}

fn tell_left(turned: &Turned) {
    if let Some((path, users)) = &turned.left {
        say(format_args!(
            "{} stays for now: {} on it. `ojail layer prune` removes it when no jail does any more.",
            path.display(),
            match users.as_slice() {
                [] => "something stands".to_owned(),
                [one] => format!("the jail of {one} stands"),
                more => format!("the jails of {} stand", more.join(", ")),
            }
        ));
    }
}
