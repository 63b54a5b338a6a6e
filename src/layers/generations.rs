//! Making, listing and removing generations of layers. Host root only, in `ojail`.
//!
//! What is being made, and what is being removed, is in a workshop: a directory of its own in `.making`, beside the layers, held by
//! a lock for as long as its maker lives. A generation becomes one by two renames: of its record, then of its content; the layer
//! becomes that generation by a third, of its link. After a kill each of them is done or not, and the next workshop clears what is
//! left over ([`Workshop::open`]).

use std::collections::HashMap;
use std::ffi::{CString, OsString};
use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use indicatif::ProgressBar;
use rustix::fs::{CWD, RenameFlags, renameat_with, syncfs};
use rustix::mount::{UnmountFlags, unmount as unmount_at};
use serde::{Deserialize, Serialize};

use super::{Format, IMAGES, Layer, images_lock, is_mounted, mount_point, parse, stored, target};
use crate::archive::Digesting;
use crate::bases;
use crate::config::{Config, GENERATION, LayerName, Storage};
use crate::conflicts;
use crate::error::{Act, Error, IfThere, Result};
use crate::jail::temporary;
use crate::runtime::{self, Corner, Ground, Layers, Tried, private_dir, try_lock};
use crate::store;
use crate::walk::{self, Size};

/// Where workshops are, in the directory of layers. No layer is called so.
const MAKING: &str = ".making";

/// What a workshop has put beside the layers: the name of a file there. Once a layer is that, it says nothing any more.
const PUT: &str = "put";

/// The version of [`Record`] that this program writes and reads.
const FORMAT: u32 = 1;

/// How a generation came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// By `ojail layer build`.
    Build,
    /// By `ojail layer derive`.
    Derive,
    /// By `ojail layer promote`.
    Promote,
    /// By `ojail layer import`.
    Import,
    /// By `ojail layer pull`.
    Pull,
    /// Somebody made it by hand, and `ojail layer adopt` took it over.
    Adopt,
    /// By `ojail restore`, over a layer that had generations.
    Restore,
}

/// What `NAME@GENERATION.json` says of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The version of this layout.
    pub format: u32,
    /// SHA-256 of the content as an uncompressed layer tar ([`digest`]), in hexadecimal; the generation is its beginning.
    pub digest: String,
    /// When it was made, in seconds since 1970.
    pub at: u64,
    /// How.
    pub how: How,
    /// The command that made it, word by word; empty if there was none to tell.
    #[serde(default)]
    pub command: Vec<String>,
    /// The layers that it was made on, topmost first, with their generations where they have one.
    #[serde(default)]
    pub from: Vec<LayerName>,
    /// What its content takes as a directory.
    pub size: Size,
    /// The version of ojail that made it.
    pub ojail: String,
}

/// What a maker tells of a generation; the rest is found out.
#[derive(Debug, Clone)]
pub struct Made {
    /// How.
    pub how: How,
    /// The command, word by word.
    pub command: Vec<String>,
    /// The layers below, topmost first.
    pub from: Vec<LayerName>,
}

impl Made {
    /// The record of what is made now.
    fn record(self, digest: &str, size: Size) -> Record {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let Self { how, command, from } = self;
        let ojail = env!("CARGO_PKG_VERSION").into();
        Record { format: FORMAT, digest: digest.to_owned(), at, how, command, from, size, ojail }
    }
}

/// A layer's generation of this content.
fn generation(name: &LayerName, digest: &str) -> LayerName {
    name.at(digest.get(..GENERATION).unwrap_or_default())
}

/// One generation, as it lies in the directory of layers.
#[derive(Debug, Clone)]
pub struct Generation {
    /// Name and generation.
    pub name: LayerName,
    /// `None`: there is no record, or none that can be read.
    pub record: Option<Record>,
    /// What there is of it, of the same content: the form that its layer's link names first.
    pub forms: Vec<Form>,
    /// Whether the layer is this one now.
    pub current: bool,
    /// When its record was written, in seconds and nanoseconds: of two that were made in one second, which one is newer.
    written: (i64, i64),
}

/// A directory or an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// Where it is.
    pub path: PathBuf,
    /// The image's file system; `None` for a directory.
    pub image: Option<Format>,
}

impl Generation {
    /// The layer, as a raise would take it; `None` if there is only a record.
    #[must_use]
    pub fn layer(&self) -> Option<Layer> {
        let form = self.forms.first()?;
        let generation = self.name.generation().map(str::to_owned);
        Some(Layer { name: self.name.clone(), generation, path: form.path.clone(), image: form.image })
    }

    /// Where its forms are.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.forms.iter().map(|form| &*form.path)
    }
}

/// Every generation of every layer, by name, the newest of each first. What somebody made by hand has none.
///
/// # Errors
/// [`Error::Act`] if the directory of layers cannot be read.
pub fn all(storage: &Storage) -> Result<Vec<Generation>> {
    let mut found: Vec<Generation> = Vec::new();
    for file in files(&storage.lowerdirs)? {
        let record = file.strip_suffix(".json");
        let (name, image) =
            match record.map_or_else(|| parse(&file), |name| Some((LayerName::parse(name).ok()?, None))) {
                Some((name, image)) if name.generation().is_some() => (name, image),
                _ => continue,
            };
        let number = found.iter().position(|other| other.name == name).unwrap_or_else(|| {
            found.push(Generation {
                name: name.clone(),
                record: None,
                forms: Vec::new(),
                current: false,
                written: (0, 0),
            });
            found.len() - 1
        });
        let generation = &mut found[number];
        if record.is_some() {
            let path = storage.lowerdirs.join(&file);
            generation.record = read(&path)?;
            let meta = fs::metadata(&path).if_there().act("examine", &path)?;
            generation.written = meta.map_or((0, 0), |meta| (meta.mtime(), meta.mtime_nsec()));
        } else {
            match stored(storage, &name, &name, image) {
                Ok(layer) => {
                    let form = layer.map(|layer| Form { path: layer.path, image: layer.image });
                    generation.forms.extend(form);
                }
                // What cannot be used is none.
                Err(Error::Layer { .. }) => {}
                Err(e) => return Err(e),
            }
        }
    }
    for generation in &mut found {
        let target = target(storage, generation.name.name())?.map(|target| storage.lowerdirs.join(target));
        let named = |form: &Form| target.as_ref() == Some(&form.path);
        generation.current = generation.forms.iter().any(named);
        generation.forms.sort_by_key(|form| (!named(form), form.image.map(Format::name)));
    }
    let at = |generation: &Generation| {
        (generation.record.as_ref().map_or(0, |record| record.at), generation.written)
    };
    found.sort_by(|a, b| {
        (a.name.name(), at(b), a.name.as_str()).cmp(&(b.name.name(), at(a), b.name.as_str()))
    });
    Ok(found)
}

/// The generations of one layer, the newest first; those of a generation alone if `name` names one.
///
/// # Errors
/// [`Error::Layer`] if there is none of this name.
pub fn of(storage: &Storage, name: &LayerName) -> Result<Vec<Generation>> {
    let mut found = all(storage)?;
    found.retain(|generation| {
        generation.name == *name || (name.generation().is_none() && generation.name.name() == name.name())
    });
    if !found.is_empty() {
        return Ok(found);
    }
    let why = if name.generation().is_none() && super::exists(storage, name)? {
        format!(
            "somebody made it by hand, so it has no generations; `ojail layer adopt {name}` gives it its first"
        )
    } else {
        "there is none of this name; `ojail layer list` shows what there is".into()
    };
    Err(Error::Layer { name: name.to_string(), why })
}

/// The generation that a layer is now, or the one that `name` names.
///
/// # Errors
/// [`Error::Layer`].
pub fn one(storage: &Storage, name: &LayerName) -> Result<Generation> {
    let pinned = name.generation().is_some();
    let found = of(storage, name)?.into_iter().find(|generation| pinned || generation.current);
    let why = || "its link leads nowhere; `ojail layer rollback` points it to a generation".into();
    found.ok_or_else(|| Error::Layer { name: name.to_string(), why: why() })
}

/// The generation to which the link of a layer leads.
fn pointed_to(storage: &Storage, name: &str) -> Result<Option<LayerName>> {
    let target = target(storage, name)?;
    Ok(target.and_then(|target| parse(target.to_str()?)).map(|(generation, _)| generation))
}

/// The record of a generation, if there is a good one.
fn read(path: &Path) -> Result<Option<Record>> {
    let text = fs::read(path).if_there().act("read", path)?;
    let record: Option<Record> = text.and_then(|text| serde_json::from_slice(&text).ok());
    Ok(record.filter(|record| record.format == FORMAT))
}

/// What is known of the generation that a layer is; `None` if it has none, or no good record.
///
/// # Errors
/// [`Error::Act`] if that cannot be told.
pub fn record_of(storage: &Storage, layer: &Layer) -> Result<Option<Record>> {
    if layer.generation.is_none() {
        return Ok(None);
    }
    read(&storage.lowerdirs.join(format!("{}.json", layer.full())))
}

/// Names in a directory that are text; none if it is not there.
fn files(dir: &Path) -> Result<Vec<String>> {
    let Some(entries) = fs::read_dir(dir).if_there().act("list", dir)? else { return Ok(Vec::new()) };
    let mut files = Vec::new();
    for entry in entries {
        files.extend(entry.act("list", dir)?.file_name().into_string().ok());
    }
    files.sort();
    Ok(files)
}

/// Digest and size of a layer's content. The digest is that of the layer tar of the OCI image specification which
/// `oci::tar::write` writes: the same for a directory and for every image of it, on every host.
///
/// # Errors
/// [`Error::Act`].
pub fn digest(content: &Path, progress: &ProgressBar) -> Result<(String, Size)> {
    let dir = walk::open(content)?;
    let size = walk::size(walk::open(content)?)?;
    let mut to = Digesting::new(std::io::sink(), progress);
    crate::oci::tar::write(dir.as_fd(), &mut to)?;
    Ok((to.end().0, size))
}

/// A jail that runs or is mounted, and what it stands on.
pub type Standing = (Corner, Ground);

/// Who stands on what.
///
/// # Errors
/// [`Error::Act`].
pub fn in_use() -> Result<Vec<Standing>> {
    let mut used = Vec::new();
    for corner in runtime::corners()?.into_iter().chain(temporary::corners()?) {
        let ground = corner.layers()?;
        if ground != Ground::Nothing {
            used.push((corner, ground));
        }
    }
    Ok(used)
}

/// The jails that stand on any of these directories and images, for people: users, and temporary jails by number.
///
/// # Errors
/// [`Error::Act`] if that cannot be told.
pub fn users_of<'a>(used: &[Standing], paths: impl IntoIterator<Item = &'a Path>) -> Result<Vec<String>> {
    let mut users = Vec::new();
    for path in paths {
        let Some(meta) = fs::symlink_metadata(path).if_there().act("examine", path)? else { continue };
        let stands = used.iter().filter(|(_, ground)| match ground {
            Ground::Layers(layers) => layers.contains(&(meta.dev(), meta.ino())),
            // Rather one too many than a layer taken from under a jail.
            Ground::Unknown => true,
            Ground::Nothing => false,
        });
        users.extend(stands.map(|(corner, _)| {
            corner.run().map_or_else(|| corner.user().to_string(), |run| format!("run {run}"))
        }));
    }
    Ok(users)
}

/// The profiles of which this is a layer: by the link if it is current, or because they name the generation.
#[must_use]
pub fn profiles_of<'a>(config: &'a Config, generation: &Generation) -> Vec<&'a str> {
    let names = |layer: &LayerName| {
        *layer == generation.name
            || (generation.current && layer.generation().is_none() && layer.name() == generation.name.name())
    };
    let has = |layers: &[LayerName]| layers.iter().any(names);
    config
        .profiles
        .values()
        .filter(|profile| has(&profile.layers))
        .map(|profile| profile.name.as_str())
        .collect()
}

/// What is in the directory of layers, by device and inode, as jails have noted what they stand on.
#[derive(Debug, Default)]
pub struct Names(HashMap<(u64, u64), LayerName>);

impl Names {
    /// Of all generations, and of what somebody made by hand.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn look(storage: &Storage) -> Result<Self> {
        let mut names = HashMap::new();
        let mut note = |path: &Path, name: &LayerName| {
            // What goes meanwhile is nothing that a jail stands on.
            if let Ok(meta) = fs::symlink_metadata(path) {
                names.insert((meta.dev(), meta.ino()), name.clone());
            }
        };
        for generation in all(storage)? {
            generation.forms.iter().for_each(|form| note(&form.path, &generation.name));
        }
        for name in super::by_hand(storage)? {
            for layer in super::resolve(storage, &[name]).unwrap_or_default() {
                note(&layer.path, &layer.full());
            }
        }
        Ok(Self(names))
    }

    /// The layers of a running jail, topmost first; `None` if one of them is not there any more, or not known.
    #[must_use]
    pub fn of(&self, ground: &Ground) -> Option<Vec<LayerName>> {
        match ground {
            Ground::Layers(layers) => layers.iter().map(|layer| self.0.get(layer).cloned()).collect(),
            Ground::Nothing | Ground::Unknown => None,
        }
    }
}

/// The layers of a profile as the next raise takes them, topmost first, with their generations.
///
/// # Errors
/// As [`super::resolve`].
pub fn next(storage: &Storage, names: &[LayerName]) -> Result<Vec<LayerName>> {
    Ok(super::resolve(storage, names)?.iter().map(Layer::full).collect())
}

/// What of a generation is not needed any more.
#[derive(Debug)]
pub struct Old {
    /// The generation.
    pub generation: Generation,
    /// All of its forms, or those besides the one that is taken.
    pub forms: Vec<Form>,
}

impl Old {
    /// Whether the generation goes as a whole.
    #[must_use]
    pub fn whole(&self) -> bool {
        self.forms.len() == self.generation.forms.len()
    }
}

/// What may go: generations that were made before the one that the layer is now, but for the `keep` newest of them, and second forms of
/// those that stay. Not what a profile names or a jail stands on, nor what an upper was last raised on: `ojail conflicts` compares with
/// it; and if packages were installed, nothing that it was ever on. Of a layer without a link nothing: nothing tells what is old.
///
/// # Errors
/// [`Error::Layer`] if `name` names none; [`Error::Act`].
pub fn old(config: &Config, name: Option<&LayerName>, keep: usize) -> Result<Vec<Old>> {
    let generations = match name {
        Some(name) => of(&config.storage, name)?,
        None => all(&config.storage)?,
    };
    let used = in_use()?;
    let free = |form: &Form| Ok::<_, Error>(users_of(&used, [&*form.path])?.is_empty());
    let mut bases: Vec<LayerName> = Vec::new();
    for (user, noted) in bases::all()? {
        // What packages were installed on is needed as long as they are there.
        let path = config.storage.upperdirs.join(&user);
        let upper = fs::symlink_metadata(&path).if_there().act("examine", &path)?;
        let all = upper.is_some() && conflicts::has_database(walk::open(&path)?.as_fd())?;
        let number = if all { noted.len() } else { 1 };
        bases.extend(noted.into_iter().rev().take(number).flat_map(|base| base.layers));
    }
    let mut old = Vec::new();
    // By layer, newest first.
    for layer in generations.chunk_by(|a, b| a.name.name() == b.name.name()) {
        let Some(now) = layer.iter().position(|generation| generation.current) else { continue };
        for (number, generation) in layer.iter().enumerate() {
            let mut forms = Vec::new();
            for form in &generation.forms {
                forms.push((form, free(form)?));
            }
            let stays = number <= now + keep
                || !profiles_of(config, generation).is_empty()
                || bases.contains(&generation.name)
                || !forms.iter().all(|(_, free)| *free);
            let first = if stays { 1 } else { 0 };
            let forms: Vec<Form> = forms
                .into_iter()
                .skip(first)
                .filter(|(_, free)| *free)
                .map(|(form, _)| form.clone())
                .collect();
            if !forms.is_empty() || !stays {
                old.push(Old { generation: generation.clone(), forms });
            }
        }
    }
    Ok(old)
}

/// A place where something is made or removed. What is in it when its maker ends is rubbish.
#[derive(Debug)]
pub struct Workshop<'a> {
    storage: &'a Storage,
    dir: PathBuf,
    lock: File,
}

impl<'a> Workshop<'a> {
    /// Opens one. What others left who did not come to an end is cleared first: it may be the space that this one needs.
    ///
    /// # Errors
    /// [`Error::Unfit`] if the directory of layers is not root's own; [`Error::Act`].
    pub fn open(storage: &'a Storage) -> Result<Self> {
        store::roots_own_way(&storage.lowerdirs)?;
        private_dir(&storage.lowerdirs)?;
        let above = storage.lowerdirs.join(MAKING);
        private_dir(&above)?;
        clear(storage)?;
        for number in 1.. {
            // The number of this process, which no other has while it lives.
            let dir = above.join(format!("{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&dir) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                made => made.act("create", &dir)?,
            }
            // Whoever clears may have taken it for rubbish, before it was locked.
            if let Tried::Locked(lock) = try_lock(&dir)? {
                return Ok(Self { storage, dir, lock });
            }
        }
        Err(Error::Unfit { path: above, why: "is full".into() })
    }

    /// Where to make something of this name. Nothing is there yet.
    #[must_use]
    pub fn place(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The lock by which others know that it is in use. Who inherits it holds it too.
    #[must_use]
    pub fn lock(&self) -> &File {
        &self.lock
    }

    /// Makes a directory, complete and owned by root, a generation of `name`, and the layer this generation. Of the same content as
    /// one that is there already it becomes that one. The directory is in this workshop, and gone afterwards.
    ///
    /// # Errors
    /// [`Error::Layer`] if there is a layer of this name that was made by hand; [`Error::Act`]. The layer is what it was then.
    pub fn finish(
        &self,
        name: &LayerName,
        tree: &Path,
        made: Made,
        progress: &ProgressBar,
    ) -> Result<Generation> {
        free_for(self.storage, name)?;
        fit(tree)?;
        let (digest, size) = digest(tree, progress)?;
        // The content before its name: a generation that is there is whole, also after the power failed.
        syncfs(walk::open(tree)?).act("sync", tree)?;
        let _lock = runtime::layers(Layers::Change)?;
        let generation = self.record(name, &digest, size, made)?;
        self.place_and_point(&generation, tree, generation.as_str())
    }

    /// Gives what is in this workshop its place as this file of its generation, unless that is there in some form, and makes the layer
    /// this generation. After an error it is in the workshop again. The caller has the lock.
    fn place_and_point(&self, generation: &LayerName, from: &Path, file: &str) -> Result<Generation> {
        let forms = self.forms(generation)?;
        let to = self.storage.lowerdirs.join(file);
        if forms.is_empty() {
            self.put(from, file)?;
        }
        let file = forms.first().map_or(file, String::as_str);
        // Looked at before: behind the step nothing may fail that can fail here.
        let pointed = one(self.storage, generation).and_then(|made| {
            self.point(generation, file)?;
            Ok(Generation { current: true, ..made })
        });
        if pointed.is_err() && forms.is_empty() {
            // It would stay for ever as a generation that nobody asked for. Its record goes with the next workshop.
            let _ = renameat_with(CWD, &to, CWD, from, RenameFlags::NOREPLACE);
        }
        pointed
    }

    /// Gives something in this workshop its place beside the layers. Should this process be killed before a layer is that, the next
    /// workshop takes it away again, by the note that is left here.
    fn put(&self, from: &Path, file: &str) -> Result<()> {
        let note = self.place(PUT);
        fs::write(&note, file).act("write", &note)?;
        let to = self.storage.lowerdirs.join(file);
        renameat_with(CWD, from, CWD, &to, RenameFlags::NOREPLACE).map_err(|e| renamed(e, from))
    }

    /// As [`Workshop::finish`], of what is an image already, on the same file system.
    ///
    /// # Errors
    /// As [`Workshop::finish`]; [`Error::Unfit`] if it cannot be mounted.
    pub fn finish_packed(
        &self,
        name: &LayerName,
        image: &Path,
        format: Format,
        made: Made,
        progress: &ProgressBar,
    ) -> Result<Generation> {
        free_for(self.storage, name)?;
        fs::set_permissions(image, std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .act("set the mode of", image)?;
        let (digest, size) = self.examine(&Form { path: image.to_owned(), image: Some(format) }, progress)?;
        File::open(image).and_then(|file| file.sync_all()).act("sync", image)?;
        let _lock = runtime::layers(Layers::Change)?;
        let generation = self.record(name, &digest, size, made)?;
        self.place_and_point(&generation, image, &format!("{generation}.{}", format.name()))
    }

    /// Brings back a generation that a backup has, with the record that it had if its content is still of that; and makes the layer this
    /// generation, unless `name` is the generation's own. What is in the way is renamed as `away` says: a layer that somebody made by
    /// hand, and forms of this generation whose content is not. Those are returned, by their new names.
    ///
    /// # Errors
    /// [`Error::Unfit`] if an image cannot be mounted, or what is in the way cannot be renamed; [`Error::Act`].
    pub fn bring_back(
        &self,
        name: &LayerName,
        from: &Form,
        record: &Record,
        away: &dyn Fn(&Layer) -> Result<PathBuf>,
        progress: &ProgressBar,
    ) -> Result<(Generation, Vec<PathBuf>)> {
        let lowerdirs = &self.storage.lowerdirs;
        fit(&from.path)?;
        let (digest, size) = self.examine(from, progress)?;
        match from.image {
            None => syncfs(walk::open(&from.path)?).act("sync", &from.path)?,
            Some(_) => File::open(&from.path).and_then(|file| file.sync_all()).act("sync", &from.path)?,
        }
        // Before the lock: logins wait for that.
        let own = generation(name, &digest);
        let (mut sound, mut damaged) = (None, Vec::new());
        for layer in self.forms(&own)?.iter().filter_map(|file| self.layer(file)) {
            match self.examine(&Form { path: layer.path.clone(), image: layer.image }, progress) {
                Ok((is, _)) if is == digest => sound = sound.or(Some(layer)),
                _ => damaged.push(layer),
            }
        }

        let _lock = runtime::layers(Layers::Change)?;
        let record = match record.digest == digest {
            true => record.clone(),
            false => Made { how: How::Restore, command: Vec::new(), from: Vec::new() }.record(&digest, size),
        };
        // Looked for before anything changes.
        let by_hand = if name.generation().is_none() { self.by_hand(name)? } else { None };
        let own = self.keep_record(name, record)?;
        let mut aside = Vec::new();
        let ending = from.image.map(|format| format!(".{}", format.name())).unwrap_or_default();
        let file = match &sound {
            Some(layer) => layer.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            None => {
                let file = format!("{own}{ending}");
                let to = lowerdirs.join(&file);
                match damaged.iter().position(|layer| layer.path == to) {
                    // One that is not to be a layer's is not noted to be taken away again.
                    None if name.generation().is_some() => {
                        renameat_with(CWD, &from.path, CWD, &to, RenameFlags::NOREPLACE)
                            .map_err(|e| renamed(e, &from.path))?;
                    }
                    None => self.put(&from.path, &file)?,
                    Some(number) => aside.push(self.exchange(&from.path, &damaged.remove(number), away)?),
                }
                file
            }
        };
        if name.generation().is_none() {
            match by_hand {
                Some(layer) if layer.image.is_none() => {
                    let link = self.place("link");
                    symlink(&file, &link).act("create", &link)?;
                    aside.push(self.exchange(&link, &layer, away)?);
                }
                Some(layer) => {
                    self.point(&own, &file)?;
                    aside.push(set_aside(&layer, away)?);
                }
                None => self.point(&own, &file)?,
            }
        }
        if sound.is_none() {
            for layer in &damaged {
                aside.push(set_aside(layer, away)?);
            }
        }
        sync(lowerdirs)?;
        Ok((one(self.storage, &own)?, aside))
    }

    /// Something in this workshop changes places with a layer, in one step, and that is aside then. At no moment is there none.
    fn exchange(
        &self,
        new: &Path,
        layer: &Layer,
        away: &dyn Fn(&Layer) -> Result<PathBuf>,
    ) -> Result<PathBuf> {
        // First by the name of what is set aside: a kill in between leaves the new one there, never the old one in a workshop, which is
        // cleared.
        let away = away(layer)?;
        renameat_with(CWD, new, CWD, &away, RenameFlags::NOREPLACE).act("put in place", &away)?;
        if let Err(e) = renameat_with(CWD, &away, CWD, &layer.path, RenameFlags::EXCHANGE) {
            let _ = renameat_with(CWD, &away, CWD, new, RenameFlags::NOREPLACE);
            return Err(renamed(e, &layer.path));
        }
        Ok(away)
    }

    /// A form of a generation by its file's name.
    fn layer(&self, file: &str) -> Option<Layer> {
        let (name, ending) = parse(file)?;
        let generation = name.generation().map(str::to_owned);
        let image = ending.and_then(super::format_of);
        Some(Layer { name, generation, path: self.storage.lowerdirs.join(file), image })
    }

    /// Puts an image beside the other forms of its generation, and makes it the one that is taken. It is in this workshop, and has
    /// been compared with the record.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn finish_image(&self, generation: &LayerName, image: &Path, format: Format) -> Result<()> {
        fs::set_permissions(image, std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .act("set the mode of", image)?;
        File::open(image).and_then(|file| file.sync_all()).act("sync", image)?;
        self.finish_form(generation, image, &format!("{generation}.{}", format.name()))
    }

    /// As [`Workshop::finish_image`], for a directory.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn finish_directory(&self, generation: &LayerName, tree: &Path) -> Result<()> {
        syncfs(walk::open(tree)?).act("sync", tree)?;
        self.finish_form(generation, tree, generation.as_str())
    }

    fn finish_form(&self, generation: &LayerName, from: &Path, file: &str) -> Result<()> {
        let _lock = runtime::layers(Layers::Change)?;
        let to = self.storage.lowerdirs.join(file);
        let old = fs::symlink_metadata(&to).if_there().act("examine", &to)?;
        let is_current = self.is_current(generation)?;
        // An image of this name is of the same content, or damaged. A directory is in the way.
        fs::rename(from, &to).act("put in place", &to)?;
        let pointed = sync(&self.storage.lowerdirs)
            .and_then(|()| if is_current { self.point(generation, file) } else { Ok(()) });
        if pointed.is_err() && old.is_none() {
            // It would stay as a form that nobody asked for.
            let _ = renameat_with(CWD, &to, CWD, from, RenameFlags::NOREPLACE);
        }
        pointed
    }

    /// What somebody made by hand and called so; `None`: nothing, or nothing that can be used.
    fn by_hand(&self, name: &LayerName) -> Result<Option<Layer>> {
        match super::resolve(self.storage, std::slice::from_ref(name)) {
            Ok(mut layers) => Ok(layers.pop().filter(|layer| layer.generation.is_none())),
            Err(Error::Layer { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Lets the layer be this form of the generation, if the layer is this generation.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub(super) fn take(&self, generation: &LayerName, form: &Form) -> Result<()> {
        let _lock = runtime::layers(Layers::Change)?;
        let file = form.path.file_name().unwrap_or_default().to_string_lossy();
        if self.is_current(generation)? { self.point(generation, &file) } else { Ok(()) }
    }

    /// Whether the layer is this generation. The caller has the lock.
    fn is_current(&self, generation: &LayerName) -> Result<bool> {
        Ok(pointed_to(self.storage, generation.name())?.as_ref() == Some(generation))
    }

    /// The storage that it works for.
    pub(super) fn storage(&self) -> &Storage {
        self.storage
    }

    /// The workshop's lock once more, for a program that works in it: whoever holds it last lets go of it.
    pub(super) fn hold(&self) -> Result<File> {
        self.lock.try_clone().act("copy", "a lock")
    }

    /// Takes over a layer that somebody made by hand, where it lies. Jails that run on it are not disturbed. Returns its first generation.
    ///
    /// # Errors
    /// [`Error::Layer`], [`Error::Act`]; it is as it was then.
    pub fn adopt(&self, name: &LayerName, made: Made, progress: &ProgressBar) -> Result<LayerName> {
        let layer = super::resolve(self.storage, std::slice::from_ref(name))?.remove(0);
        if layer.generation.is_some() {
            let why = "it has generations already; `ojail layer list` shows them".into();
            return Err(Error::Layer { name: name.to_string(), why });
        }
        // Told before it is read: it may be large.
        if layer.image.is_none() && is_mounted(&layer.path)? {
            return Err(in_its_place(&layer.path));
        }
        let (digest, size) =
            self.examine(&Form { path: layer.path.clone(), image: layer.image }, progress)?;
        let _lock = runtime::layers(Layers::Change)?;
        // Whoever else was at it while this one read.
        if super::resolve(self.storage, std::slice::from_ref(name))?.first() != Some(&layer) {
            let why = "was changed meanwhile; try again".into();
            return Err(Error::Layer { name: name.to_string(), why });
        }
        let generation = self.record(name, &digest, size, made)?;
        let lowerdirs = &self.storage.lowerdirs;
        match layer.path.extension().filter(|_| layer.image.is_some()) {
            None => {
                // A link to itself, which changes places with the directory: one step, and the layer is never away.
                let own = lowerdirs.join(generation.as_str());
                if let Err(e) = symlink(generation.as_str(), &own) {
                    if e.kind() == ErrorKind::AlreadyExists {
                        let why = format!(
                            "{} has the same content already; remove or rename {}, and `ojail layer rollback {name} --to {}`",
                            own.display(),
                            layer.path.display(),
                            generation.generation().unwrap_or_default()
                        );
                        return Err(Error::Layer { name: name.to_string(), why });
                    }
                    return Err(e).act("create", &own);
                }
                if let Err(e) = renameat_with(CWD, &layer.path, CWD, &own, RenameFlags::EXCHANGE) {
                    let _ = fs::remove_file(&own);
                    let _ = fs::remove_file(lowerdirs.join(format!("{generation}.json")));
                    return Err(renamed(e, &layer.path));
                }
                if let Err(e) = sync(lowerdirs) {
                    // What is reported as failed has not happened.
                    let back = renameat_with(CWD, &layer.path, CWD, &own, RenameFlags::EXCHANGE);
                    if back.is_ok() {
                        let _ = fs::remove_file(&own);
                        let _ = fs::remove_file(lowerdirs.join(format!("{generation}.json")));
                    }
                    return Err(e);
                }
            }
            Some(ending) => {
                let file = format!("{generation}.{}", ending.to_string_lossy());
                let own = lowerdirs.join(&file);
                match fs::hard_link(&layer.path, &own) {
                    Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                    Err(e) if matches!(e.raw_os_error(), Some(libc::EXDEV | libc::EBUSY)) => {
                        let _ = fs::remove_file(lowerdirs.join(format!("{generation}.json")));
                        return Err(in_its_place(&layer.path));
                    }
                    linked => linked.act("create", &own)?,
                }
                self.point(&generation, &file)?;
                // Else by the next workshop: it is a second name of the same image.
                let _ = fs::remove_file(&layer.path);
            }
        }
        Ok(generation)
    }

    /// Makes the layer this generation: one rename.
    ///
    /// # Errors
    /// [`Error::Layer`] if nothing of it is there; [`Error::Act`].
    pub fn turn_to(&self, generation: &LayerName) -> Result<()> {
        let _lock = runtime::layers(Layers::Change)?;
        let forms = self.forms(generation)?;
        let why = || "there is no such generation; `ojail layer list` shows what there is".into();
        let file = forms.first().ok_or_else(|| Error::Layer { name: generation.to_string(), why: why() })?;
        self.point(generation, file)
    }

    /// Removes one form of a generation, or with the last one the generation. Refused while a jail stands on it.
    ///
    /// # Errors
    /// [`Error::Layer`] with who uses it; [`Error::Unfit`] if it is a mount point; [`Error::Act`].
    pub fn remove(&self, generation: &Generation, form: &Form) -> Result<()> {
        let gone =
            self.place(&format!("removed-{}", form.path.file_name().unwrap_or_default().to_string_lossy()));
        // Before anything is changed: it could not be renamed then.
        if form.image.is_none() && is_mounted(&form.path)? {
            return Err(in_its_place(&form.path));
        }
        {
            let _lock = runtime::layers(Layers::Change)?;
            let users = users_of(&in_use()?, [&*form.path])?;
            if !users.is_empty() {
                let why = format!("in use by {}; `ojail stop` ends a jail", users.join(", "));
                return Err(Error::Layer { name: generation.name.to_string(), why });
            }
            if form.image.is_some() {
                unmount(generation.name.name(), &form.path)?;
            }
            let forms = self.forms(&generation.name)?;
            let file = form.path.file_name().unwrap_or_default();
            let other = forms.iter().find(|other| file != other.as_str());
            if target(self.storage, generation.name.name())?.as_deref() == Some(Path::new(file)) {
                match other {
                    // The layer stays what it is, in its other form.
                    Some(other) => self.point(&generation.name, other)?,
                    None => {
                        let link = self.storage.lowerdirs.join(generation.name.name());
                        fs::remove_file(&link).act("remove", &link)?;
                    }
                }
            }
            renameat_with(CWD, &form.path, CWD, &gone, RenameFlags::empty())
                .map_err(|e| renamed(e, &form.path))?;
            if other.is_none() {
                let record = self.storage.lowerdirs.join(format!("{}.json", generation.name));
                fs::remove_file(&record).if_there().act("remove", &record)?;
            }
            sync(&self.storage.lowerdirs)?;
        }
        // No jail waits for this.
        discard(&self.dir, &gone)
    }

    /// Writes the record, and returns the name with the generation. An older record of the same content stays. The caller has the
    /// lock.
    fn record(&self, name: &LayerName, digest: &str, size: Size, made: Made) -> Result<LayerName> {
        self.keep_record(name, made.record(digest, size))
    }

    fn keep_record(&self, name: &LayerName, record: Record) -> Result<LayerName> {
        let generation = generation(name, &record.digest);
        let path = self.storage.lowerdirs.join(format!("{generation}.json"));
        if let Some(other) = read(&path)? {
            if other.digest == record.digest {
                return Ok(generation);
            }
            let why = format!(
                "{} is of another content of the same beginning; remove that generation first",
                path.display()
            );
            return Err(Error::Layer { name: generation.to_string(), why });
        }
        let text = serde_json::to_vec_pretty(&record).map_err(std::io::Error::from).act("write", &path)?;
        let new = self.place("record.json");
        let mut options = File::options();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&new).act("create", &new)?;
        file.write_all(&text).and_then(|()| file.sync_all()).act("write", &new)?;
        fs::rename(&new, &path).act("put in place", &path)?;
        Ok(generation)
    }

    /// The files of a generation that are there, the one that the layer's link names first.
    fn forms(&self, generation: &LayerName) -> Result<Vec<String>> {
        let target = target(self.storage, generation.name())?;
        let mut forms = Vec::new();
        for ending in std::iter::once(None).chain(IMAGES.iter().map(|(ending, _)| Some(*ending))) {
            let file =
                ending.map_or_else(|| generation.to_string(), |ending| format!("{generation}.{ending}"));
            let path = self.storage.lowerdirs.join(&file);
            let meta = fs::symlink_metadata(&path).if_there().act("examine", &path)?;
            if meta.is_some_and(|meta| if ending.is_none() { meta.is_dir() } else { meta.is_file() }) {
                forms.push(file);
            }
        }
        forms.sort_by_key(|file| target.as_deref() != Some(Path::new(file)));
        Ok(forms)
    }

    /// Lets the layer's link name this file, in one step. The caller has the lock. After an error the link is what it was.
    fn point(&self, generation: &LayerName, file: &str) -> Result<()> {
        let lowerdirs = &self.storage.lowerdirs;
        let link = lowerdirs.join(generation.name());
        let old = fs::read_link(&link).if_there().act("read", &link)?;
        // Opened before: behind the rename nothing may fail that can fail here.
        let dir = File::open(lowerdirs).act("open", lowerdirs)?;
        self.link(Path::new(file), &link)?;
        let Err(e) = dir.sync_all() else { return Ok(()) };
        // Not known to be on the disk: what is reported as failed has not happened.
        let back = match old {
            Some(target) => self.link(&target, &link),
            None => fs::remove_file(&link).act("remove", &link),
        };
        if back.is_err() {
            let why = format!("is {file} now, but after a power failure may be what it was: {e}");
            return Err(Error::Layer { name: generation.name().to_owned(), why });
        }
        Err(e).act("sync", lowerdirs)
    }

    /// Puts a link in place, over one that is there.
    fn link(&self, target: &Path, link: &Path) -> Result<()> {
        let new = self.place("link");
        fs::remove_file(&new).if_there().act("remove", &new)?;
        symlink(target, &new).act("create", &new)?;
        fs::rename(&new, link).act("put in place", link)
    }
}

impl Drop for Workshop<'_> {
    fn drop(&mut self) {
        // What resists is left to the next one.
        let _ = discard(self.dir.parent().unwrap_or(&self.dir), &self.dir);
    }
}

/// Refuses the name of a layer that somebody made by hand, and what is no name for a new one.
///
/// # Errors
/// [`Error::Layer`].
pub fn free_for(storage: &Storage, name: &LayerName) -> Result<()> {
    let bad = |why: String| Err(Error::Layer { name: name.to_string(), why });
    if name.generation().is_some() {
        return bad("a new layer is named without \"@\": its generation comes of its content".into());
    }
    let is_link =
        fs::symlink_metadata(storage.lowerdirs.join(name.as_str())).is_ok_and(|meta| meta.is_symlink());
    if !is_link && super::exists(storage, name)? {
        return bad(format!(
            "is there already, made by hand; `ojail layer adopt {name}` makes it the first of its generations, or choose another name"
        ));
    }
    Ok(())
}

/// Clears what a kill left: workshops that nobody holds, records of what was never finished, links that lead to themselves or have the
/// name of something set aside, and an adopted image's second name.
///
/// # Errors
/// [`Error::Act`], [`Error::Unfit`].
pub fn clear(storage: &Storage) -> Result<()> {
    let above = storage.lowerdirs.join(MAKING);
    for file in files(&above)? {
        let dir = above.join(&file);
        if let Tried::Locked(_lock) = try_lock(&dir)? {
            unmount_below(&dir)?;
            take_back(storage, &dir)?;
            discard(&above, &dir)?;
        }
    }
    // Nobody is between two steps while this is held.
    let _lock = runtime::layers(Layers::Change)?;
    let mut files = files(&storage.lowerdirs)?;
    let path = |file: &String| storage.lowerdirs.join(file);
    let mut gone = Vec::new();
    for file in &files {
        let Some(target) = target(storage, file)? else { continue };
        // What was about to change places with a layer that a restore sets aside.
        let of = target.to_str().and_then(parse).and_then(|(name, _)| file.strip_prefix(name.name()));
        let half_aside =
            of.is_some_and(|time| time.starts_with("-2") && time.contains('T') && time.contains('Z'));
        if target == Path::new(file) || half_aside {
            fs::remove_file(path(file)).act("remove", path(file).as_path())?;
            gone.push(file.clone());
        }
    }
    // Not taken for content below.
    files.retain(|file| !gone.contains(file));
    for file in &files {
        let of_nothing = match file.strip_suffix(".json").map(LayerName::parse) {
            Some(Ok(name)) if name.generation().is_some() => {
                !files.iter().any(|other| parse(other).is_some_and(|(other, _)| other == name))
            }
            _ => false,
        };
        if of_nothing || is_second_name(storage, file)? {
            fs::remove_file(path(file)).act("remove", path(file).as_path())?;
        }
    }
    Ok(())
}

/// Takes what a killed maker has put beside the layers into its workshop again, if no layer is that and no jail stands on it.
fn take_back(storage: &Storage, workshop: &Path) -> Result<()> {
    let note = workshop.join(PUT);
    let Some(file) = fs::read_to_string(&note).if_there().act("read", &note)? else { return Ok(()) };
    let Some((generation, _)) = parse(&file) else { return Ok(()) };
    let path = storage.lowerdirs.join(&file);
    let _lock = runtime::layers(Layers::Change)?;
    let is_current = pointed_to(storage, generation.name())?.as_ref() == Some(&generation);
    if is_current || !users_of(&in_use()?, [&*path])?.is_empty() {
        return Ok(());
    }
    match renameat_with(CWD, &path, CWD, workshop.join("unfinished"), RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        taken => taken.map_err(|e| renamed(e, &path)),
    }
}

/// Whether this image lies there once more, as the generation that its layer is.
fn is_second_name(storage: &Storage, file: &str) -> Result<bool> {
    let Some((name, ending)) = file.rsplit_once('.') else { return Ok(false) };
    if parse(file).is_some() || !IMAGES.iter().any(|(known, _)| *known == ending) {
        return Ok(false);
    }
    let Some(target) = target(storage, name)? else { return Ok(false) };
    let identity = |path: PathBuf| {
        let meta = fs::symlink_metadata(&path).if_there().act("examine", &path)?;
        Ok::<_, Error>(meta.map(|meta| (meta.dev(), meta.ino())))
    };
    let own = identity(storage.lowerdirs.join(file))?;
    Ok(own.is_some() && own == identity(storage.lowerdirs.join(target))?)
}

/// Takes away what a killed maker had mounted in its workshop.
fn unmount_below(dir: &Path) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").act("read", "the mount table")?;
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| Some(PathBuf::from(unescaped(line.split(' ').nth(4)?))))
        .filter(|point| point.starts_with(dir))
        .collect();
    // Those in others come first.
    points.reverse();
    for point in points {
        unmount_at(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).act("unmount", &point)?;
    }
    Ok(())
}

/// A path as the mount table has it, with the octal escapes of blanks, line ends and backslashes undone (proc(5)).
fn unescaped(text: &str) -> OsString {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..3).filter(|_| *first == b'\\').and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// Makes a tree as a layer must be to be taken, whatever it came out of.
fn fit(tree: &Path) -> Result<()> {
    std::os::unix::fs::lchown(tree, Some(0), Some(0)).act("give to root", tree)?;
    let mode = fs::symlink_metadata(tree).act("examine", tree)?.mode() & 0o7777 & !0o022;
    fs::set_permissions(tree, std::os::unix::fs::PermissionsExt::from_mode(mode)).act("set the mode of", tree)
}

/// Renames a layer to a name that nothing has. Returns it.
fn set_aside(layer: &Layer, away: &dyn Fn(&Layer) -> Result<PathBuf>) -> Result<PathBuf> {
    let away = away(layer)?;
    renameat_with(CWD, &layer.path, CWD, &away, RenameFlags::NOREPLACE)
        .map_err(|e| renamed(e, &layer.path))?;
    Ok(away)
}

/// What rename(2) says of a directory that cannot be taken from its place.
fn renamed(error: rustix::io::Errno, path: &Path) -> Error {
    match error {
        rustix::io::Errno::BUSY | rustix::io::Errno::XDEV => in_its_place(path),
        error => Error::Act { act: "rename", what: path.display().to_string(), source: error.into() },
    }
}

fn in_its_place(path: &Path) -> Error {
    let why = "cannot be renamed: it is a mount point, or the lower layer of an overlay; unmount it, and copy its content \
               (`cp -a`) to a directory of this name"
        .into();
    Error::Unfit { path: path.to_owned(), why }
}

/// Unmounts an image that nobody uses.
fn unmount(name: &str, image: &Path) -> Result<()> {
    let point = mount_point(name, image)?;
    let _lock = images_lock()?;
    if !is_mounted(&point)? {
        return Ok(());
    }
    let said = Command::new("umount").arg(&point).output().act("run", "umount")?;
    if !said.status.success() {
        let why = String::from_utf8_lossy(&said.stderr).trim().replace('\n', "; ");
        return Err(Error::Layer { name: name.to_owned(), why });
    }
    fs::remove_dir(&point).act("remove", &point)
}

/// Removes something in a directory of ours, and all below it.
fn discard(above: &Path, path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default();
    let name = CString::new(name.as_bytes()).map_err(std::io::Error::from).act("name", path)?;
    walk::remove(walk::open(above)?.as_fd(), &name, None).map(drop)
}

fn sync(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).act("sync", dir)
}
