//! `ojail layer derive`: what a command changes in a temporary jail becomes a layer.
//!
//! The command is the administrator's, but it runs as nobody outside: as root of a jail with ids of its own, confined as a user's
//! jail with `root = true` is.

use std::ffi::{CString, OsString};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::super::session::{self, Job, Outcome};
use super::super::snapshot::room;
use super::super::terminal::hold;
use super::super::{configuration, run, say};
use super::journal::Journal;
use super::words;
use crate::config::{Bind, Config, Home, LayerName, Limits, Network, Profile, Storage};
use crate::error::{Act, Error, Result};
use crate::jail::temporary::{Temporary, Whose};
use crate::layers::generations::{self, How, Made, Workshop};
use crate::layers::{self, Layer, clean};
use crate::log::Log;
use crate::lower::Lower;
use crate::seccomp::Changes;
use crate::{copy, paths, walk};

/// What must be free where the changes are made, in bytes: what `apt-get update` and a small package take.
const ROOM: u64 = 64 << 20;

/// What to make, of what, and how.
#[derive(Debug, clap::Args)]
pub(in crate::admin) struct Derive {
    /// What to call the layer
    name: String,
    /// The layers below it, topmost first
    #[arg(long, value_name = "LAYER", value_delimiter = ',', required = true)]
    from: Vec<String>,
    /// What network the command has
    #[arg(long, value_enum, default_value = "host")]
    network: Which,
    /// The command
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// A network.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Which {
    /// The host's
    Host,
    /// A loopback and nothing else
    None,
}

pub(super) fn run(derive: &Derive) -> Result<ExitCode> {
    let config = configuration()?;
    let name = super::parse(&derive.name)?;
    generations::free_for(&config.storage, &name)?;
    let names = from(&config.storage, &name, &derive.from)?;
    let below = layers::resolve(&config.storage, &names)?;
    has_room(&config.storage)?;

    let mut journal = Journal::open(&name, &[])?;
    journal.note(&words().join(" "))?;
    let profile = profile(&name, &below, derive.network);
    // From here on an interruption is the command's to hear, once it is there, and all comes to an end in order.
    hold()?;
    let jail = Temporary::raise(&config, &profile, Whose::Nobody, &mut Log::open("ojail"))
        .map_err(|e| journal.failed(&e.to_string()))?;
    let account = run::root(jail.account());
    let environment = environment();
    let job = Job { account: &account, command: &derive.command, terminal: false, environment: &environment };
    let done = session::heard(&job, || jail.enter("derive"), &mut |bytes| journal.hear(bytes));
    let why = match done {
        // The jail, and all else, is for the other process.
        Ok(Outcome::Jail(status)) => return Ok(ExitCode::from(status)),
        Ok(Outcome::Host { signal: Some(signal), .. }) => format!("interrupted by {signal}"),
        Ok(Outcome::Host { status: 0, .. }) => {
            journal.quiet();
            return keep(&config, &name, &below, jail, &journal).map_err(|e| journal.failed(&e.to_string()));
        }
        Ok(Outcome::Host { status, .. }) => format!("the command failed with status {status}"),
        Err(error) => error.to_string(),
    };
    let error = journal.failed(&why);
    // The first thing that went wrong is the one to tell; what is left is cleared by the next of these commands.
    let _ = jail.end();
    Err(error)
}

/// Makes the jail's upper the layer.
fn keep(
    config: &Config,
    name: &LayerName,
    below: &[Layer],
    jail: Temporary,
    journal: &Journal,
) -> Result<ExitCode> {
    let ready = Lower::of(below).and_then(|lower| Ok((lower, Workshop::open(&config.storage)?)));
    let (lower, workshop) = match ready {
        Ok(ready) => ready,
        Err(error) => {
            let _ = jail.end();
            return Err(error);
        }
    };
    let tree = workshop.place("tree");
    jail.end_and(|upper| take(upper, &tree))?;
    clean::derived(&tree, &lower, Temporary::nobody())?;
    let from = below.iter().map(Layer::full).collect();
    let done = super::finish(&workshop, name, &tree, Made { how: How::Derive, command: words(), from })?;
    say(format_args!("{done} All that was said is in {}.", journal.path().display()));
    Ok(ExitCode::SUCCESS)
}

/// Moves a tree, or copies it where the layers are on another file system than the uppers.
fn take(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() == std::io::ErrorKind::CrossesDevices => {}
        moved => return moved.act("move", from),
    }
    let (from_dir, to_dir) =
        (walk::open(from.parent().unwrap_or(from))?, walk::open(to.parent().unwrap_or(to))?);
    room(to, &to_dir, walk::size(walk::open(from)?)?.bytes)?;
    let name = |path: &Path| {
        CString::new(path.file_name().unwrap_or_default().as_bytes())
            .map_err(std::io::Error::from)
            .act("name", path)
    };
    copy::tree(from_dir.as_fd(), &name(from)?, to_dir.as_fd(), &name(to)?)
}

/// The names of the layers below.
fn from(storage: &Storage, name: &LayerName, words: &[String]) -> Result<Vec<LayerName>> {
    let mut names: Vec<LayerName> = Vec::new();
    for word in words {
        let bad = |why: String| Err(Error::Layer { name: word.escape_debug().take(100).collect(), why });
        let uppers = &storage.upperdirs;
        let layer = LayerName::parse(word);
        // By name or by path.
        let is_upper = match &layer {
            Ok(layer) => !layers::exists(storage, layer)? && uppers.join(layer.as_str()).is_dir(),
            Err(_) => Path::new(word).starts_with(uppers),
        };
        if is_upper {
            let user = Path::new(word).strip_prefix(uppers).unwrap_or(Path::new(word)).display();
            return bad(format!(
                "that is what a user changed, and no layer; `ojail layer promote {user} NAME` makes one of it"
            ));
        }
        let layer = super::parse(word)?;
        if names.contains(&layer) {
            return bad("is named twice".into());
        }
        if layer.name() == name.name() {
            return bad(format!(
                "cannot be derived from itself: whoever has it would then have the changes alone; choose another name than {name}"
            ));
        }
        names.push(layer);
    }
    Ok(names)
}

/// Asked for before anything is begun.
fn has_room(storage: &Storage) -> Result<()> {
    for dir in [&storage.upperdirs, &storage.lowerdirs] {
        // What is not there yet is made where the rest is.
        if dir.exists() {
            room(dir, walk::open(dir)?, ROOM)?;
        }
    }
    Ok(())
}

/// What keeps services from being started by packages (invoke-rc.d(8)). As a mount it leaves nothing in the upper.
pub(in crate::admin) fn policy() -> Bind {
    Bind { source: paths::policy().into(), target: PathBuf::from("/usr/sbin/policy-rc.d"), writable: false }
}

/// Nobody is there to answer questions; and the way to packages may be through a proxy of the administrator's.
fn environment() -> Vec<(OsString, OsString)> {
    let mut environment: Vec<(OsString, OsString)> =
        vec![("DEBIAN_FRONTEND".into(), "noninteractive".into())];
    environment.extend(super::proxies());
    environment
}

/// The jail: on these layers, with a root, no limits, and nothing of the host's but its network, if that is wanted.
fn profile(name: &LayerName, below: &[Layer], network: Which) -> Profile {
    // No service is started in what is no place to serve anything.
    Profile {
        name: format!("derive {name}"),
        // What was found, not what its link says a moment later.
        layers: below.iter().map(Layer::full).collect(),
        writable: true,
        home: Home::Jail,
        shell: None,
        root: true,
        network: match network {
            Which::Host => Network::Host,
            Which::None => Network::None,
        },
        reach: Vec::new(),
        publish: Vec::new(),
        hostname: Some("localhost".into()),
        limits: Limits::default(),
        seccomp: Some(Changes::default()),
        linger: false,
        keep_warm: Duration::ZERO,
        groups: Vec::new(),
        binds: vec![policy()],
    }
}
