//! `ojail layer …`: the layers that jails stand on, and their generations ([`crate::layers`]).

mod build;
mod carry;
pub(super) mod derive;
mod errand;
mod inspect;
pub(super) mod journal;
mod list;
mod pack;
mod promote;
mod prune;
mod turn;
mod verify;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::examples;
use super::status::bytes;
use crate::config::LayerName;
use crate::error::{Error, Result};
use crate::layers::generations::{Made, Workshop};

/// What to do with layers.
#[derive(Debug, Subcommand)]
pub(super) enum Layer {
    /// Make a whole Debian, by mmdebstrap or debootstrap, with what an SSH jail needs
    ///
    /// Everything that the tool says is in /var/log/ojail/layer-NAME-TIME.log. If there is a layer of this name, it gets a new
    /// generation.
    #[command(after_long_help = examples(&[
        "ojail layer build debian --suite bookworm",
        "ojail layer build debian --include locales,vim --mirror http://deb.example.test/debian",
        "ojail layer build tools --from-dir /srv/trees/tools",
    ]))]
    Build(build::Build),
    /// Make a layer of what a command changes, as root of a temporary jail on other layers
    ///
    /// Services that the command installs are not started. What packages leave behind (lists, caches, logs) is cleared. What the
    /// command says is in /var/log/ojail/layer-NAME-TIME.log; if it fails, there is no layer.
    #[command(after_long_help = examples(&[
        "ojail layer derive nginx --from debian -- sh -c 'apt-get update && apt-get install -y nginx-light'",
        "ojail layer derive motd --from nginx,debian --network none -- sh -c 'echo Welcome > /etc/motd'",
    ]))]
    Derive(derive::Derive),
    /// Make a layer of what a user changed, or of a part of it
    ///
    /// The user keeps the changes. A running jail is frozen for as long as the copy takes, or with --end ended. Refused while there
    /// are secrets in it (host keys, password hashes, authorized_keys, private keys, histories), unless --allow names them.
    #[command(after_long_help = examples(&[
        "ojail layer promote alice nginx --dry-run",
        "ojail layer promote alice nginx --path /etc/nginx --path /var/www",
        "ojail layer promote alice keys --path /etc/ssl --allow /etc/ssl/private/test.key",
    ]))]
    Promote(promote::Promote),
    /// Show layers, their generations, what they take, and who uses them
    #[command(after_long_help = examples(&[
        "ojail layer list",
        "ojail layer list --json | jq -r '.layers[] | select(.current) | .name'",
    ]))]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give a layer that was made by hand its first generation, where it lies
    ///
    /// Its content gets a digest, its name becomes a link to it. Jails that run on it are not disturbed.
    #[command(after_long_help = examples(&["ojail layer adopt debian"]))]
    Adopt {
        /// Which
        #[arg(value_name = "LAYER")]
        name: String,
    },
    /// Make a layer of an image: of OCI, of Docker, or in a registry
    ///
    /// The layers of the image become one, in which nothing is hidden any more, or with --separate one each. What an image says of
    /// commands, users and ports is not asked for. Refused is an image that is cut short or changed, and one with names that lead out
    /// of it, devices but the usual ones, or more than fits on the disk.
    #[command(after_long_help = examples(&[
        "ojail layer import debian docker-archive:/root/debian.tar",
        "ojail layer import debian oci:/srv/images/debian:12",
        "ojail layer import debian registry.example/library/debian:12",
    ]))]
    Import(carry::Import),
    /// Write a layer to a registry, as an OCI image
    ///
    /// By skopeo(1), with the credentials of its auth.json (`skopeo login`), over TLS. A large layer is several blobs; what the registry
    /// has already is not carried again, so after a cut the same command goes on. Any tool for images reads it.
    #[command(after_long_help = examples(&[
        "ojail layer push debian registry.example/layers/debian:12",
        "ojail layer push nginx@3f2a9c1d0b7e registry.example/layers/nginx:old --compress zstd",
    ]))]
    Push(carry::Push),
    /// Fetch a layer that `ojail layer push` has written to a registry
    ///
    /// The generation is the same as there, or it is refused. After a cut, blobs that had come whole are not fetched again.
    #[command(after_long_help = examples(&["ojail layer pull debian registry.example/layers/debian:12"]))]
    Pull(carry::Pull),
    /// Let a layer be an earlier generation again
    ///
    /// Jails that run keep what they have; the next raise takes it. Without --to it is the one that was made before.
    #[command(after_long_help = examples(&["ojail layer rollback debian", "ojail layer rollback debian --to 3f2a9c1d0b7e"]))]
    Rollback {
        /// Which
        #[arg(value_name = "LAYER")]
        name: String,
        /// The generation; also a later one
        #[arg(long, value_name = "GENERATION")]
        to: Option<String>,
    },
    /// Show what a layer is made of: when, from what, by which command, and which packages
    ///
    /// Packages are what dpkg has noted in the layer; of a layer that was made on another, those that the other has not.
    #[command(after_long_help = examples(&["ojail layer inspect debian", "ojail layer inspect nginx@3f2a9c1d0b7e --json"]))]
    Inspect {
        /// Which; LAYER@GENERATION for one that the layer is not now
        #[arg(value_name = "LAYER")]
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make an image of a layer, in place of its directory
    ///
    /// All jails share one mount of it, and it takes a quarter to a half of the space. The image is compared with the layer's digest
    /// before the directory goes. Jails that run keep the directory. erofs works on every kernel that ojail does, squashfs is
    /// refused where the kernel cannot id-map it.
    #[command(after_long_help = examples(&[
        "ojail layer pack debian",
        "ojail layer pack nginx --format squashfs --compression zstd",
    ]))]
    Pack(pack::Pack),
    /// Make a directory of a layer that is an image, in place of the image
    #[command(after_long_help = examples(&["ojail layer unpack debian"]))]
    Unpack {
        /// Which; LAYER@GENERATION for one that the layer is not now
        #[arg(value_name = "LAYER")]
        name: String,
    },
    /// Compare the content of layers with their digests
    ///
    /// Exit status: 0 all are what they were made to be, 1 one is not.
    #[command(after_long_help = examples(&["ojail layer verify", "ojail layer verify debian"]))]
    Verify {
        /// Which; else all
        #[arg(value_name = "LAYER")]
        name: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove generations that were made before the one that the layer is now
    ///
    /// What a profile names, what a jail stands on, and one more for `rollback` stay. Also goes what a layer was before it was packed,
    /// where jails still stood on that then.
    #[command(after_long_help = examples(&["ojail layer prune --dry-run", "ojail layer prune debian --keep 3"]))]
    Prune {
        /// Which; else all
        #[arg(value_name = "LAYER")]
        name: Option<String>,
        /// How many older ones stay
        #[arg(long, value_name = "N", default_value_t = 1)]
        keep: usize,
        /// Tell what would be removed, and remove nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove a layer with all its generations, or one generation (LAYER@GENERATION)
    ///
    /// Refused while a jail stands on it, or a profile names it.
    #[command(after_long_help = examples(&["ojail layer remove nginx", "ojail layer remove nginx@3f2a9c1d0b7e"]))]
    Remove {
        /// Which
        #[arg(value_name = "LAYER")]
        name: String,
    },
}

pub(super) fn run(layer: &Layer) -> Result<ExitCode> {
    match layer {
        Layer::Build(build) => build::run(build),
        Layer::Derive(derive) => derive::run(derive),
        Layer::Promote(promote) => promote::run(promote),
        Layer::List { json } => list::run(*json),
        Layer::Adopt { name } => turn::adopt(&parse(name)?),
        Layer::Import(import) => carry::import(import),
        Layer::Push(push) => carry::push(push),
        Layer::Pull(pull) => carry::pull(pull),
        Layer::Rollback { name, to } => turn::rollback(&parse(name)?, to.as_deref()),
        Layer::Pack(pack) => pack::pack(pack),
        Layer::Unpack { name } => pack::unpack(&parse(name)?),
        Layer::Verify { name, json } => verify::run(name.as_deref().map(parse).transpose()?.as_ref(), *json),
        Layer::Inspect { name, json } => inspect::run(&parse(name)?, *json),
        Layer::Prune { name, keep, dry_run } => {
            prune::run(name.as_deref().map(parse).transpose()?.as_ref(), *keep, *dry_run)
        }
        Layer::Remove { name } => turn::remove(&parse(name)?),
    }
}

/// A name from the command line.
fn parse(name: &str) -> Result<LayerName> {
    LayerName::parse(name)
        .map_err(|why| Error::Layer { name: name.escape_debug().take(100).collect(), why: why.into() })
}

/// Makes a complete tree the layer, and tells what it is now.
fn finish(workshop: &Workshop<'_>, name: &LayerName, tree: &Path, made: Made) -> Result<String> {
    let bar = reading();
    let finished = workshop.finish(name, tree, made, &bar);
    bar.finish_and_clear();
    let generation = finished?;
    let size = generation.record.as_ref().map(|record| bytes(record.size.bytes)).unwrap_or_default();
    Ok(format!("{name} is {} now ({size}).", generation.name))
}

/// The command as it was given, for records.
fn words() -> Vec<String> {
    let program = std::iter::once("ojail".to_owned());
    program.chain(std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned())).collect()
}

/// The administrator's proxies, by which packages are got where there is no other way. Both spellings are in use.
fn proxies() -> impl Iterator<Item = (OsString, OsString)> {
    let names =
        ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];
    names.into_iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?)))
}

/// How much has been read, on a terminal.
fn reading() -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template("{spinner} {msg} {bytes} read, {bytes_per_sec}");
    ProgressBar::with_draw_target(None, target)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}
