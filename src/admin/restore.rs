//! `ojail restore DIR|- [USER…]`: the jails of a backup, on this host or on a bare one (see [`crate::manifest`]).
//!
//! Everything is read and digested, and everything that is in the way is found, before anything is put in place. Then each layer
//! comes in by one rename, and each upper as an undo would bring it: what it replaces is on the shelf.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::ProgressBar;
use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};

use super::backup::{complain, ending, progress, read_layer};
use super::snapshot::{replace, room, tell_replaced};
use super::{configuration, say, username};
use crate::account::{self, Username};
use crate::archive::{self, Digesting};
use crate::aside::{self, Shelf};
use crate::config::{Config, LayerName};
use crate::error::{Act, Error, IfThere, Result};
use crate::ids::Registry;
use crate::layers;
use crate::layers::generations::{self, Form, How, Made, Record, Workshop};
use crate::log::{Level, Log};
use crate::manifest::{self, Manifest, Part};
use crate::runtime::{Corner, lock_file, private_dir};
use crate::{paths, store, walk};

#[derive(Debug, clap::Args)]
pub(super) struct Restore {
    /// The directory of a backup, or `-` for a tar stream on standard input
    #[arg(value_name = "DIR")]
    from: PathBuf,
    /// Only these users, and the layers that they had
    #[arg(value_name = "USER")]
    users: Vec<String>,
    /// Set aside what is there already and differs; ends the sessions of users whose changes are replaced
    #[arg(long)]
    force: bool,
}

/// Where a stream is kept until it is known to be whole.
const STAGE: &str = ".restore";

/// How a layer is called until it is complete. No layer is.
const NEW: &str = ".restore";

pub(super) fn run(restore: &Restore) -> Result<ExitCode> {
    let config = configuration()?;
    let names = restore.users.iter().map(|name| username(name)).collect::<Result<Vec<_>>>()?;
    // One at a time: they share the places where things are made ready.
    let _lock = lock_file(&Path::new(paths::RUN).join("restore.lock"))?;
    if restore.from.as_os_str() != OsStr::new("-") {
        manifest::roots_own(&restore.from)?;
        let manifest = Manifest::load(&restore.from)?.ok_or_else(|| no_backup(&restore.from))?;
        return put(&config, &restore.from, manifest, &names, restore.force);
    }
    if io::stdin().is_terminal() {
        return Err(Error::Terminal);
    }
    let stage = Stage::make(&config)?;
    let manifest = stage.receive()?;
    put(&config, &stage.0, manifest, &names, restore.force)
}

fn no_backup(path: &Path) -> Error {
    let why = format!("is no backup: there is no {}; was it written to its end?", manifest::NAME);
    Error::Unfit { path: path.to_owned(), why }
}

/// The files of a stream. They go when this does.
struct Stage(PathBuf);

impl Stage {
    fn make(config: &Config) -> Result<Self> {
        let asidedirs = &config.storage.asidedirs;
        store::roots_own_way(asidedirs)?;
        private_dir(asidedirs)?;
        let stage = Self(asidedirs.join(STAGE));
        // Of one that was killed.
        stage.clear()?;
        for dir in [stage.0.clone(), stage.0.join("layers"), stage.0.join("uppers")] {
            fs::DirBuilder::new().mode(0o700).create(&dir).act("create", &dir)?;
        }
        Ok(stage)
    }

    fn clear(&self) -> Result<()> {
        fs::remove_dir_all(&self.0).if_there().act("remove", &self.0).map(drop)
    }

    /// Reads standard input to its end. Only what a backup can have is taken.
    fn receive(&self) -> Result<Manifest> {
        let stream = Path::new("standard input");
        let unfit = |why: String| Error::Unfit { path: stream.to_owned(), why };
        let mut archive = tar::Archive::new(io::stdin());
        for entry in archive.entries().act("read", stream)? {
            let mut entry = entry.act("read", stream)?;
            let name = entry.path().act("read", stream)?.into_owned();
            let parts: Vec<_> = name.iter().collect();
            let place = match parts.as_slice() {
                [_] => true,
                [dir, _] => *dir == "layers" || *dir == "uppers",
                _ => false,
            };
            let normal = name.components().all(|part| matches!(part, std::path::Component::Normal(_)));
            if !place || !normal || entry.header().entry_type() != tar::EntryType::Regular {
                return Err(unfit(format!("is no backup of ojail's: it has {name:?}")));
            }
            let path = self.0.join(&name);
            let mut file =
                File::options().write(true).create_new(true).mode(0o600).open(&path).act("create", &path)?;
            io::copy(&mut entry, &mut file).act("write", &path)?;
        }
        Manifest::load(&self.0)?.ok_or_else(|| no_backup(stream))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What stays is removed by the next.
        let _ = self.clear();
    }
}

/// What is to be done, once it is known that it can be.
struct Work {
    layers: Vec<manifest::Layer>,
    users: Vec<(Username, manifest::User)>,
    /// Things that are there already and differ, in words.
    differ: Vec<String>,
}

fn put(config: &Config, dir: &Path, manifest: Manifest, names: &[Username], force: bool) -> Result<ExitCode> {
    let bar = progress();
    let (layers, users) = chosen(dir, manifest, names)?;
    bar.set_length(layers.iter().map(|l| l.part.size).chain(users.iter().map(|u| u.part.size)).sum());
    for part in layers.iter().map(|layer| &layer.part).chain(users.iter().map(|user| &user.part)) {
        bar.set_message(part.file.clone());
        verify(dir, part, &bar)?;
    }
    bar.set_message("comparing");
    let number = layers.len() + users.len();
    let work = compare(config, layers, users)?;
    if !work.differ.is_empty() && !force {
        return Err(Error::Differ { what: work.differ.join(", ") });
    }
    let size = work.layers.iter().map(|l| l.part.size).chain(work.users.iter().map(|(_, u)| u.bytes)).sum();
    if size > 0 {
        private_dir(&config.storage.lowerdirs)?;
        private_dir(&config.storage.asidedirs)?;
        for place in [&config.storage.lowerdirs, &config.storage.asidedirs] {
            room(place, File::open(place).act("open", place)?, size)?;
        }
    }
    bar.reset();
    bar.set_length(
        work.layers.iter().map(|l| l.part.size).chain(work.users.iter().map(|(_, u)| u.part.size)).sum(),
    );
    for layer in &work.layers {
        bar.set_message(format!("layer {}", layer.name));
        let aside = match &layer.record {
            Some(record) => put_generation(config, dir, layer, record, &bar)?,
            None => put_layer(config, dir, layer, &bar)?.into_iter().collect(),
        };
        bar.suspend(|| {
            say(format_args!("Layer {} is restored.", layer.name));
            for aside in &aside {
                say(format_args!("What it replaces is {}.", aside.display()));
            }
        });
    }
    let mut failed = 0;
    for (user, packed) in &work.users {
        bar.set_message(user.to_string());
        if let Err(e) = put_user(config, dir, user, packed, force, &bar) {
            failed += 1;
            bar.suspend(|| complain(&format_args!("{user}: {e}")));
        }
    }
    bar.finish_and_clear();
    // Part of a copy may have filled the disk.
    let _ = aside::empty(&config.storage, None);
    let same = number - work.layers.len() - work.users.len();
    say(format_args!(
        "{} layers and {} users are restored, {same} were there already, {failed} failed.",
        work.layers.len(),
        work.users.len() - failed
    ));
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What of the backup was asked for.
fn chosen(
    dir: &Path,
    manifest: Manifest,
    names: &[Username],
) -> Result<(Vec<manifest::Layer>, Vec<manifest::User>)> {
    if names.is_empty() {
        return Ok((manifest.layers, manifest.users));
    }
    let mut users = Vec::new();
    for name in names {
        let user = manifest.users.iter().find(|user| user.name == name.as_str()).cloned();
        users.push(
            user.ok_or_else(|| Error::Unfit { path: dir.to_owned(), why: format!("has no user {name}") })?,
        );
    }
    let mut layers = manifest.layers;
    layers.retain(|layer| users.iter().any(|user| user.layers.contains(&layer.name)));
    Ok((layers, users))
}

fn verify(dir: &Path, part: &Part, bar: &ProgressBar) -> Result<()> {
    let path = part.path(dir);
    let (sha256, size) = archive::digest(&path, bar)?;
    if (&sha256, size) == (&part.sha256, part.size) {
        return Ok(());
    }
    let why = format!(
        "is damaged: its digest is {sha256}, and the manifest says {}; take another backup",
        part.sha256
    );
    Err(Error::Unfit { path, why })
}

/// Leaves out what is there as the backup has it, and finds what is there otherwise.
fn compare(config: &Config, layers: Vec<manifest::Layer>, users: Vec<manifest::User>) -> Result<Work> {
    let mut work = Work { layers: Vec::new(), users: Vec::new(), differ: Vec::new() };
    let quiet = ProgressBar::hidden();
    for layer in layers {
        if let Some(there) = there(config, &layer.name)? {
            let is = read_layer(&there, &quiet)?;
            if is.sha256 == layer.part.sha256 && ending(&there) == layer.image {
                continue;
            }
            if is_generation(&there, &layer, &quiet) {
                continue;
            }
            work.differ.push(format!("layer {}", layer.name));
        }
        work.layers.push(layer);
    }
    let owners = store::owners(&config.storage)?;
    let registry = Registry::default();
    for packed in users {
        let user = username(&packed.name)?;
        let mut same = false;
        if owners.contains(&user) {
            // Of a jail that is running this is a guess, and a difference the likely one.
            let mut nowhere = Digesting::new(io::sink(), &quiet);
            let upper = config.storage.upperdirs.join(&user);
            same = archive::pack(&walk::open(&upper)?, &mut nowhere).is_ok()
                && nowhere.end().0 == packed.part.sha256;
            if !same {
                work.differ.push(format!("the changes of {user}"));
            }
        }
        if let (Some(own), Some(kept)) = (registry.owner(&user)?, &packed.owner) {
            if own.uid != kept.uid {
                work.differ.push(format!("the owner of the name {user} (uid {}, not {})", own.uid, kept.uid));
                same = false;
            }
        }
        if !same {
            work.users.push((user, packed));
        }
    }
    Ok(work)
}

/// Whether a layer is the generation that a backup has, packed otherwise perhaps, and whole.
fn is_generation(there: &layers::Layer, layer: &manifest::Layer, bar: &ProgressBar) -> bool {
    let Some(record) = &layer.record else { return false };
    let is_called = |id: &String| record.digest.starts_with(id.as_str());
    there.generation.as_ref().is_some_and(is_called)
        && there
            .content()
            .and_then(|content| generations::digest(&content, bar))
            .is_ok_and(|(is, _)| is == record.digest)
}

/// The layer of this name, if there is one.
fn there(config: &Config, name: &str) -> Result<Option<layers::Layer>> {
    let name = layer_name(name)?;
    if !layers::exists(&config.storage, &name)? {
        return Ok(None);
    }
    if let Some(target) = layers::target(&config.storage, name.as_str())? {
        let path = config.storage.lowerdirs.join(target);
        // A link may lead nowhere, or to itself after a kill: then there is none.
        let is = fs::symlink_metadata(&path).if_there().act("examine", &path)?;
        if is.is_none_or(|meta| meta.is_symlink()) {
            return Ok(None);
        }
    }
    Ok(layers::resolve(&config.storage, &[name])?.pop())
}

fn layer_name(name: &str) -> Result<LayerName> {
    LayerName::parse(name)
        .map_err(|why| Error::Layer { name: name.escape_debug().to_string(), why: why.into() })
}

/// Puts a layer in place. Returns where what was there is now.
fn put_layer(
    config: &Config,
    dir: &Path,
    layer: &manifest::Layer,
    bar: &ProgressBar,
) -> Result<Option<PathBuf>> {
    let lowerdirs = &config.storage.lowerdirs;
    store::roots_own_way(lowerdirs)?;
    private_dir(lowerdirs)?;
    let new = lowerdirs.join(NEW);
    clear(&new)?;
    let path = layer.part.path(dir);
    let mut content = Digesting::new(File::open(&path).act("open", &path)?, bar);
    let file_name = match &layer.image {
        Some(ending) => format!("{}.{ending}", layer.name),
        None => layer.name.clone(),
    };
    unpack(&mut content, &new, layer.image.is_some())?;
    // It was verified before; a disk may have changed its mind.
    if rest(content)?.0 != layer.part.sha256 {
        clear(&new)?;
        return Err(Error::Unfit { path, why: "was changed while it was read".into() });
    }
    syncfs(File::open(&new).act("open", &new)?).act("sync", &new)?;
    let name = layer_name(&layer.name)?;
    if layers::target(&config.storage, name.as_str())?.is_some() {
        // It has generations, and gets one more: what it was is an earlier one then, to which `ojail layer rollback` goes back.
        let made = Made { how: How::Restore, command: Vec::new(), from: Vec::new() };
        let workshop = Workshop::open(&config.storage)?;
        match layer.image.as_deref().map(layers::format_of) {
            None => workshop.finish(&name, &new, made, bar)?,
            Some(Some(format)) => workshop.finish_packed(&name, &new, format, made, bar)?,
            Some(None) => {
                let why = "is of no kind of image that is known".into();
                return Err(Error::Layer { name: layer.name.clone(), why });
            }
        };
        // Of the same content as one that is there, it is still here.
        clear(&new)?;
        return Ok(None);
    }
    let place = lowerdirs.join(file_name);
    let mut aside = None;
    if let Some(old) = there(config, &layer.name)? {
        let away = away(lowerdirs, &old)?;
        if old.path == place {
            // At no moment is there none.
            // And a kill in between leaves the new one by the name of the old, never the old one where it would be cleared.
            renameat_with(CWD, &new, CWD, &away, RenameFlags::NOREPLACE).act("set aside", &old.path)?;
            if let Err(e) = renameat_with(CWD, &away, CWD, &place, RenameFlags::EXCHANGE) {
                let _ = renameat_with(CWD, &away, CWD, &new, RenameFlags::NOREPLACE);
                return Err(e).act("put in place", &place);
            }
        } else {
            renameat_with(CWD, &old.path, CWD, &away, RenameFlags::NOREPLACE).act("set aside", &old.path)?;
            renameat_with(CWD, &new, CWD, &place, RenameFlags::NOREPLACE).act("put in place", &place)?;
        }
        aside = Some(away);
    } else {
        renameat_with(CWD, &new, CWD, &place, RenameFlags::NOREPLACE).act("put in place", &place)?;
    }
    File::open(lowerdirs).and_then(|dir| dir.sync_all()).act("sync", lowerdirs)?;
    Ok(aside)
}

/// Puts a generation of a layer in place. Returns where what was in its way is now.
fn put_generation(
    config: &Config,
    dir: &Path,
    layer: &manifest::Layer,
    record: &Record,
    bar: &ProgressBar,
) -> Result<Vec<PathBuf>> {
    let storage = &config.storage;
    let workshop = Workshop::open(storage)?;
    let path = layer.part.path(dir);
    let mut content = Digesting::new(File::open(&path).act("open", &path)?, bar);
    let image = layer.image.as_deref().and_then(layers::format_of);
    let from = Form { path: workshop.place("content"), image };
    unpack(&mut content, &from.path, image.is_some())?;
    // It was verified before; a disk may have changed its mind.
    if rest(content)?.0 != layer.part.sha256 {
        return Err(Error::Unfit { path, why: "was changed while it was read".into() });
    }
    let away = |old: &layers::Layer| away(&storage.lowerdirs, old);
    let (made, aside) = workshop.bring_back(&layer_name(&layer.name)?, &from, record, &away, bar)?;
    let is = made.record.map(|record| record.digest);
    if is.as_ref() != Some(&record.digest) {
        bar.suspend(|| {
            say(format_args!(
                "Layer {} was not what it had been made to be when it was backed up: it is {} here.",
                layer.name, made.name
            ));
        });
    }
    Ok(aside)
}

/// Makes a tree of an archive, or copies an image.
fn unpack(content: &mut Digesting<File>, new: &Path, image: bool) -> Result<()> {
    if image {
        let mut file =
            File::options().write(true).create_new(true).mode(0o644).open(new).act("create", new)?;
        return io::copy(content, &mut file).act("write", new).map(drop);
    }
    fs::DirBuilder::new().mode(0o755).create(new).act("create", new)?;
    archive::unpack(content, &walk::open(new)?)
}

/// The name under which a layer is set aside: with the time, and a number where that is taken.
fn away(lowerdirs: &Path, layer: &layers::Layer) -> Result<PathBuf> {
    let (name, ending) = (format!("{}-{}", layer.name.name(), aside::stamp()?), ending(layer));
    let ending = ending.map(|ending| format!(".{ending}")).unwrap_or_default();
    let mut names = (1..).map(|number| lowerdirs.join(aside::numbered(&name, number) + &ending));
    // The caller renames without replacing, should this look be wrong.
    Ok(names.find(|path| fs::symlink_metadata(path).is_err()).unwrap_or_default())
}

/// Reads what tar has left over, and tells what all of it was.
fn rest<T: Read>(mut content: Digesting<T>) -> Result<(String, u64)> {
    io::copy(&mut content, &mut io::sink()).act("read", "the rest of an archive")?;
    Ok(content.end())
}

fn clear(new: &Path) -> Result<()> {
    let Some(meta) = fs::symlink_metadata(new).if_there().act("examine", new)? else { return Ok(()) };
    if meta.is_dir() { fs::remove_dir_all(new) } else { fs::remove_file(new) }.act("remove", new)
}

fn put_user(
    config: &Config,
    dir: &Path,
    user: &Username,
    packed: &manifest::User,
    force: bool,
    bar: &ProgressBar,
) -> Result<()> {
    let corner = Corner::of(user);
    let _lock = corner.lock()?;
    // A kill of an earlier one may have left a step half told.
    Shelf::of(&config.storage, user).settle()?;
    let replaced = replace(config, user, force, &packed.bases, |draft| {
        let upper = draft.upper();
        store::fresh(&upper)?;
        let path = packed.part.path(dir);
        let mut content = Digesting::new(File::open(&path).act("open", &path)?, bar);
        archive::unpack(&mut content, &walk::open(&upper)?)?;
        if rest(content)?.0 != packed.part.sha256 {
            return Err(Error::Unfit { path, why: "was changed while it was read".into() });
        }
        let Some(owner) = &packed.owner else { return Ok(()) };
        // Before the upper is in its place, which then never is somebody else's.
        if Registry::default().adopt(user, owner)?.pool != owner.pool {
            bar.suspend(|| {
                say(format_args!(
                    "The id range that {user} had is taken here; the next login gives another."
                ));
            });
        }
        Ok(())
    })?;
    bar.suspend(|| {
        say(format_args!("{user} is restored."));
        tell_replaced(user, replaced.as_ref());
        match (account::lookup(user.as_str()), packed.uid) {
            (Err(Error::NoSuchUser(_)), Some(uid)) => say(format_args!(
                "This host has no user {user}; with `useradd --uid {uid} {user}` they have their changes again."
            )),
            (Err(Error::NoSuchUser(_)), None) => say(format_args!("This host has no user {user}.")),
            (Ok(account), Some(uid)) if account.uid != uid => say(format_args!(
                "{user} has uid {} here and had {uid}: files of theirs in the jail belong to {uid}, and a login is refused \
                 until that is settled (`ojail check {user}`).",
                account.uid
            )),
            _ => {}
        }
    });
    Log::open("ojail").event(Level::Info, "restore", &[("user", user), ("from", &dir.display())]);
    Ok(())
}
