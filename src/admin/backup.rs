//! `ojail backup DIR|- [USER…]`: layers once, and what users changed each time, as files (see [`crate::manifest`]).
//!
//! Until the new manifest is in its place, in one rename, the last backup is whole: files are called after their content, so
//! nothing that it names is overwritten, and what nothing names any more is removed only afterwards.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use super::snapshot::room;
use super::status::bytes;
use super::still::Choice;
use super::{configuration, jailed, username};
use crate::account::{self, Username};
use crate::archive::{self, Digesting};
use crate::aside::{Record, Why};
use crate::config::{Config, LayerName};
use crate::error::{Act, Error, Result};
use crate::layers::{self, Layer, generations};
use crate::log::{Level, Log};
use crate::manifest::{self, Manifest, Part};
use crate::runtime::{Corner, private_dir};
use crate::{bases, ids, paths, store, walk};

#[derive(Debug, clap::Args)]
pub(super) struct Backup {
    /// A directory, made if need be, or `-` for a tar stream on standard output
    #[arg(value_name = "DIR")]
    to: PathBuf,
    /// Only these users, and the layers of their profiles; what the directory has of others stays
    #[arg(value_name = "USER")]
    users: Vec<String>,
    #[command(flatten)]
    choice: Choice,
}

/// What an entry takes in an archive beside its content: two headers of 512 bytes and as much for times and attributes.
const HEADERS: u64 = 2048;

/// A file that is not a part of anything yet.
const NEW: &str = ".new";

pub(super) fn run(backup: &Backup) -> Result<ExitCode> {
    let config = configuration()?;
    let users = chosen(&config, &backup.users)?;
    let layers = used(&config, &backup.users)?;
    let stream = backup.to.as_os_str() == OsStr::new("-");
    if stream && io::stdout().is_terminal() {
        return Err(Error::Terminal);
    }
    let mut to = if stream { Target::stream(&config)? } else { Target::dir(&backup.to)? };
    let old = to.old()?;
    let mut manifest = Manifest::new(Record::of(Why::Snapshot, None).at);
    let bar = progress();

    // Told before anything is written: what is there, and whether the rest fits.
    let mut missing = Vec::new();
    let mut needed = 0;
    for layer in &layers {
        bar.set_message(format!("reading layer {}", layer.name));
        let part = read_layer(layer, &bar)?;
        if !to.has(&part) {
            needed += part.size;
            missing.push((layer, part.clone()));
        }
        let record = generations::record_of(&config.storage, layer)?;
        manifest.layers.push(manifest::Layer {
            name: layer.name.to_string(),
            image: ending(layer),
            record,
            part,
        });
    }
    let mut most = 0;
    for user in &users {
        let size = walk::size(walk::open(&config.storage.upperdirs.join(user))?)?;
        let size = size.bytes + size.inodes * HEADERS;
        needed += size;
        most = most.max(size);
    }
    to.room(needed, most)?;
    bar.reset();
    bar.set_length(needed);

    for (layer, part) in missing {
        bar.set_message(format!("layer {}", layer.name));
        to.layer(layer, &part, &bar)?;
    }
    let mut refused = 0;
    for user in &users {
        bar.set_message(user.to_string());
        match to.upper(&config, user, &backup.choice, &bar) {
            Ok(packed) => manifest.users.push(packed),
            // The target's fault: no backup at all.
            Err((e, true)) => return Err(e),
            Err((e, false)) => {
                refused += 1;
                let earlier = old
                    .as_ref()
                    .and_then(|old| old.users.iter().find(|earlier| earlier.name == user.as_str()).cloned());
                let stays = if earlier.is_some() { "; what the last backup has of them stays" } else { "" };
                bar.suspend(|| complain(&format_args!("{user}: {e}{stays}")));
                manifest.users.extend(earlier);
            }
        }
    }
    manifest.configuration =
        Some(to.bytes("configuration", "toml", &fs::read(paths::CONFIG).act("read", paths::CONFIG)?)?);
    if let Some(old) = old.filter(|_| !backup.users.is_empty()) {
        keep_others(&mut manifest, old);
    }
    let size = manifest.parts().map(|part| part.size).sum();
    to.finish(&manifest)?;
    bar.finish_and_clear();
    let done = format!(
        "{} of {} users and {} layers are in the backup ({}); {refused} refused.",
        users.len() - refused,
        users.len(),
        layers.len(),
        bytes(size)
    );
    // Standard output may be the backup.
    if stream {
        complain(&done)
    } else {
        super::say(done)
    }
    Log::open("ojail").event(
        if refused == 0 { Level::Info } else { Level::Error },
        "backup",
        &[("to", &backup.to.display()), ("users", &(users.len() - refused)), ("refused", &refused)],
    );
    Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whose changes: those named, or everybody's who has any.
fn chosen(config: &Config, names: &[String]) -> Result<Vec<Username>> {
    let owners = store::owners(&config.storage)?;
    if names.is_empty() {
        return Ok(owners);
    }
    let mut users = Vec::new();
    for name in names {
        let user = username(name)?;
        super::stop::known(&user)?;
        if !owners.contains(&user) {
            return Err(Error::NoUpper {
                path: config.storage.upperdirs.join(&user),
                user: user.to_string(),
            });
        }
        if !users.contains(&user) {
            users.push(user);
        }
    }
    Ok(users)
}

/// The layers of the named users' profiles, or of all profiles.
fn used(config: &Config, names: &[String]) -> Result<Vec<Layer>> {
    let mut used: Vec<LayerName> = Vec::new();
    let mut add = |layers: &[LayerName]| {
        for layer in layers {
            if !used.contains(layer) {
                used.push(layer.clone());
            }
        }
    };
    if names.is_empty() {
        config.profiles.values().for_each(|profile| add(&profile.layers));
    }
    for name in names {
        // Who is not jailed any more has none.
        if let Ok((_, profile)) = jailed(config, name) {
            add(&profile.layers);
        }
    }
    used.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    layers::resolve(&config.storage, &used)
}

/// What a directory's last backup has of those who were not asked for.
fn keep_others(manifest: &mut Manifest, old: Manifest) {
    for user in old.users {
        if !manifest.users.iter().any(|new| new.name == user.name) {
            manifest.users.push(user);
        }
    }
    for layer in old.layers {
        if !manifest.layers.iter().any(|new| new.name == layer.name) {
            manifest.layers.push(layer);
        }
    }
    manifest.users.sort_by(|a, b| a.name.cmp(&b.name));
    manifest.layers.sort_by(|a, b| a.name.cmp(&b.name));
}

/// The ending of a layer's image.
pub(super) fn ending(layer: &Layer) -> Option<String> {
    layer.image?;
    layer.path.extension().map(|ending| ending.to_string_lossy().into_owned())
}

/// What a layer would be in a backup. It is read, and nothing is written.
pub(super) fn read_layer(layer: &Layer, bar: &ProgressBar) -> Result<Part> {
    let (sha256, size) = match layer.image {
        Some(_) => archive::digest(&layer.path, bar)?,
        None => {
            let mut nowhere = Digesting::new(io::sink(), bar);
            archive::pack(&walk::open(&layer.path)?, &mut nowhere)?;
            nowhere.end()
        }
    };
    let ending = ending(layer).unwrap_or_else(|| "tar".into());
    Ok(Part { file: format!("layers/{}-{sha256}.{ending}", layer.name), sha256, size })
}

/// Writes a layer's content.
fn write_layer(layer: &Layer, part: &Part, to: impl Write, bar: &ProgressBar) -> Result<()> {
    let mut to = Digesting::new(to, bar);
    match layer.image {
        Some(_) => {
            let mut file = File::open(&layer.path).act("open", &layer.path)?;
            io::copy(&mut file, &mut to).act("copy", &layer.path)?;
        }
        None => archive::pack(&walk::open(&layer.path)?, &mut to)?,
    }
    if to.end() == (part.sha256.clone(), part.size) {
        return Ok(());
    }
    Err(Error::Layer {
        name: layer.name.to_string(),
        why: "it was changed while it was read; try again".into(),
    })
}

/// Where a backup goes.
enum Target {
    Dir {
        path: PathBuf,
        /// Keeps another backup away.
        _lock: File,
    },
    Stream {
        /// Standard output.
        tar: tar::Builder<io::Stdout>,
        /// Where an upper waits until its size is known.
        spool: PathBuf,
    },
}

impl Target {
    fn dir(path: &Path) -> Result<Self> {
        // Every user's files are in it, and setuid programs.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).act("create", path)?;
        manifest::roots_own(path)?;
        let lock = File::open(path).act("open", path)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::Unfit {
                path: path.to_owned(),
                why: "is in use by another backup; wait for its end".into(),
            });
        }
        let last = Manifest::load(path)?;
        for name in ["layers", "uppers"] {
            let dir = path.join(name);
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).act("create", &dir)?;
        }
        // A stranger's directory would be swept at the end.
        if last.is_none() {
            for entry in fs::read_dir(path).act("list", path)? {
                let name = entry.act("list", path)?.file_name();
                let name = name.to_string_lossy();
                if !["layers", "uppers", NEW, "lost+found"].contains(&&*name) && !is_called_by_content(&name)
                {
                    let why = format!("is no backup, and not empty: it has {name:?}; name another directory");
                    return Err(Error::Unfit { path: path.to_owned(), why });
                }
            }
        }
        // What one that came to no end has left. Its layers are whole, and are needed again.
        sweep(&path.join("uppers"), path, last.as_ref());
        for place in ["", "layers"] {
            let _ = fs::remove_file(path.join(place).join(NEW));
        }
        Ok(Self::Dir { path: path.to_owned(), _lock: lock })
    }

    fn stream(config: &Config) -> Result<Self> {
        let spool = config.storage.asidedirs.clone();
        store::roots_own_way(&spool)?;
        private_dir(&spool)?;
        Ok(Self::Stream { tar: tar::Builder::new(io::stdout()), spool })
    }

    /// The last backup in this place.
    fn old(&self) -> Result<Option<Manifest>> {
        match self {
            Self::Dir { path, .. } => Manifest::load(path),
            Self::Stream { .. } => Ok(None),
        }
    }

    fn has(&self, part: &Part) -> bool {
        match self {
            Self::Dir { path, .. } => fs::metadata(part.path(path)).is_ok_and(|meta| meta.len() == part.size),
            Self::Stream { .. } => false,
        }
    }

    /// `all` is what is written; `most` the largest of the uppers.
    fn room(&self, all: u64, most: u64) -> Result<()> {
        match self {
            Self::Dir { path, .. } => room(path, File::open(path).act("open", path)?, all),
            Self::Stream { spool, .. } => room(spool, File::open(spool).act("open", spool)?, most),
        }
    }

    fn layer(&mut self, layer: &Layer, part: &Part, bar: &ProgressBar) -> Result<()> {
        match self {
            Self::Dir { path, .. } => {
                let (temporary, file) = new_file(&path.join("layers"))?;
                write_layer(layer, part, &file, bar)?;
                settle(&temporary, &file, &part.path(path))
            }
            Self::Stream { tar, spool } => {
                // The header with the size comes first, and the size is known.
                if layer.image.is_some() {
                    let file = File::open(&layer.path).act("open", &layer.path)?;
                    return append(tar, part, Digesting::new(file, bar));
                }
                let mut file = spooled(spool)?;
                write_layer(layer, part, &file, bar)?;
                file.rewind().act("read", spool.as_path())?;
                append(tar, part, file)
            }
        }
    }

    /// Packs an upper. With an error comes whether the target is to blame.
    fn upper(
        &mut self,
        config: &Config,
        user: &Username,
        choice: &Choice,
        bar: &ProgressBar,
    ) -> Result<manifest::User, (Error, bool)> {
        let ours = |e| (e, true);
        let (temporary, mut file) = match self {
            Self::Dir { path, .. } => {
                let (temporary, file) = new_file(&path.join("uppers")).map_err(ours)?;
                (Some(temporary), file)
            }
            Self::Stream { spool, .. } => (None, spooled(spool).map_err(ours)?),
        };
        let mut to = Digesting::new(&file, bar);
        let packed = pack_upper(config, user, choice, &mut to);
        let failed = to.failed;
        let (sha256, size) = to.end();
        let packed = packed.map_err(|e| {
            if let Some(temporary) = &temporary {
                let _ = fs::remove_file(temporary);
            }
            (e, failed)
        })?;
        let part = Part { file: format!("uppers/{user}-{sha256}.tar"), sha256, size };
        match self {
            Self::Dir { path, .. } => {
                settle(&temporary.unwrap_or_default(), &file, &part.path(path)).map_err(ours)?;
            }
            Self::Stream { tar, spool } => {
                file.rewind().act("read", spool.as_path()).map_err(ours)?;
                append(tar, &part, file).map_err(ours)?;
            }
        }
        Ok(manifest::User { part, ..packed })
    }

    /// A small file.
    fn bytes(&mut self, name: &str, ending: &str, text: &[u8]) -> Result<Part> {
        let mut digesting = Digesting::new(text, &ProgressBar::hidden());
        io::copy(&mut digesting, &mut io::sink()).act("read", name)?;
        let (sha256, size) = digesting.end();
        let part = Part { file: format!("{name}-{sha256}.{ending}"), sha256, size };
        match self {
            Self::Dir { path, .. } => {
                let (temporary, mut file) = new_file(path)?;
                file.write_all(text).act("write", &temporary)?;
                settle(&temporary, &file, &part.path(path))?;
            }
            Self::Stream { tar, .. } => append(tar, &part, text)?,
        }
        Ok(part)
    }

    fn finish(self, manifest: &Manifest) -> Result<()> {
        match self {
            Self::Dir { path, .. } => {
                manifest.save(&path)?;
                for place in [path.join("layers"), path.join("uppers"), path.clone()] {
                    sweep(&place, &path, Some(manifest));
                }
                Ok(())
            }
            Self::Stream { mut tar, .. } => {
                let text = manifest.text()?;
                let part =
                    Part { file: manifest::NAME.into(), sha256: String::new(), size: text.len() as u64 };
                append(&mut tar, &part, &*text)?;
                tar.into_inner().and_then(|mut out| out.flush()).act("write", "standard output")
            }
        }
    }
}

/// Packs one upper, while its jail keeps still.
fn pack_upper(
    config: &Config,
    user: &Username,
    choice: &Choice,
    to: &mut impl Write,
) -> Result<manifest::User> {
    let corner = Corner::of(user);
    let _lock = corner.lock()?;
    let upper = config.storage.upperdirs.join(user);
    let size = walk::size(walk::open(&upper)?)?;
    let still = choice.hold(&corner)?;
    let at = Record::of(Why::Snapshot, None).at;
    let packed = walk::open(&upper).and_then(|dir| archive::pack(&dir, to));
    let held = still.done();
    packed?;
    held?;
    let profile = jailed(config, user.as_str()).ok().map(|(_, profile)| profile);
    Ok(manifest::User {
        name: user.to_string(),
        uid: account::lookup(user.as_str()).ok().map(|account| account.uid),
        profile: profile.map(|profile| profile.name.clone()),
        layers: profile.map(|p| p.layers.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        owner: ids::Registry::default().owner(user)?,
        bases: bases::of(user)?,
        at,
        part: Part { file: String::new(), sha256: String::new(), size: 0 },
        bytes: size.bytes,
        inodes: size.inodes,
    })
}

fn new_file(dir: &Path) -> Result<(PathBuf, File)> {
    let path = dir.join(NEW);
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
    let file = file.act("create", &path)?;
    Ok((path, file))
}

/// Gives a file that is complete its name, unless there is one of that content already.
fn settle(temporary: &Path, file: &File, path: &Path) -> Result<()> {
    file.sync_all().act("write", temporary)?;
    // The same content, for it has the same name; and this one is known to be whole.
    fs::rename(temporary, path).act("rename to", path)
}

/// A file without a name, which goes with this process.
pub(super) fn spooled(dir: &Path) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR).map(File::from).act("create a file in", dir)
}

fn append(tar: &mut tar::Builder<io::Stdout>, part: &Part, content: impl Read) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o600);
    header.set_size(part.size);
    let now = Record::of(Why::Snapshot, None).at;
    header.set_mtime(now);
    tar.append_data(&mut header, &part.file, content).act("write", "standard output")
}

/// Removes from a place what the backup's manifest does not name. Whatever fails, the next backup tries again.
fn sweep(place: &Path, dir: &Path, manifest: Option<&Manifest>) {
    let named: Vec<PathBuf> =
        manifest.iter().flat_map(|manifest| manifest.parts()).map(|part| part.path(dir)).collect();
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if (name == NEW || is_called_by_content(&name)) && !named.contains(&path) {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Whether a file may be one of a backup's: `NAME-SHA256.ENDING`.
fn is_called_by_content(name: &str) -> bool {
    let digest = name.rsplit_once('.').and_then(|(stem, _)| stem.rsplit_once('-'));
    digest.is_some_and(|(_, digest)| digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// A bar of bytes on a terminal, and nothing elsewhere.
pub(super) fn progress() -> ProgressBar {
    let target =
        if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {msg}");
    ProgressBar::with_draw_target(Some(0), target)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

pub(super) fn complain(line: &dyn std::fmt::Display) {
    let _ = writeln!(io::stderr(), "ojail: {line}");
}
