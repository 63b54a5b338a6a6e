//! Layers: names become directories, images become one mount each for the whole host. Host root only.
//!
//! A layer that ojail made is immutable, and called after its content: `NAME` is a link to the *generation* beside it that the next
//! raise takes, so that one rename changes which one that is.
//!
//! ```text
//! debian                        -> debian@3f2a9c1d0b7e.erofs
//! debian@3f2a9c1d0b7e.erofs     a generation as an image (squashfs too), or as a directory of that name without an ending
//! debian@3f2a9c1d0b7e.json      when it was made, and from what
//! tools                         a layer that somebody made by hand: a directory, or `tools.erofs`
//! ```
//!
//! [`generations`] makes, lists and removes them, [`pack`] makes images of directories and directories of images; here they are found.

#[cfg(feature = "cli")]
pub mod clean;
#[cfg(feature = "cli")]
pub mod generations;
#[cfg(feature = "cli")]
pub mod pack;
#[cfg(feature = "cli")]
pub mod secrets;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use serde::{Deserialize, Serialize};

use crate::config::{GENERATION, LayerName, Storage};
use crate::error::{Act, Error, IfThere, Result};
use crate::{paths, runtime, store};

/// Where a layer comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Its name, as it was asked for.
    pub name: LayerName,
    /// The generation; `None` for what was made by hand.
    pub generation: Option<String>,
    /// The directory or the image.
    pub path: PathBuf,
    /// The image's file system; `None` for a directory.
    pub image: Option<Format>,
}

/// What an image can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// EROFS: can be id-mapped by every kernel that can id-map anything.
    Erofs,
    /// Squashfs: can be id-mapped by newer kernels only (not by 6.1).
    Squashfs,
}

impl Format {
    /// As `mount -t` wants it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Squashfs => "squashfs",
        }
    }
}

/// Endings of images, in the order in which they are looked for. A directory comes before all of them.
pub(crate) const IMAGES: [(&str, Format); 3] =
    [("erofs", Format::Erofs), ("squashfs", Format::Squashfs), ("sqsh", Format::Squashfs)];

/// Finds each layer of a profile, topmost first.
///
/// # Errors
/// [`Error::Layer`] if one is missing or can be changed by others; [`Error::Unfit`] if the directory of layers is open.
pub fn resolve(storage: &Storage, names: &[LayerName]) -> Result<Vec<Layer>> {
    store::roots_own_way(&storage.lowerdirs)?;
    // Closed to others: a layer has setuid root programs in it, and they would be the host's root here.
    runtime::private_dir(&storage.lowerdirs)?;
    names.iter().map(|name| find(storage, name)).collect()
}

/// Where each layer's link leads, unexamined; nothing for what is no link. Cheap: asked at every login.
#[must_use]
pub fn links(storage: &Storage, names: &[LayerName]) -> Vec<Option<PathBuf>> {
    names.iter().map(|name| fs::read_link(storage.lowerdirs.join(name.as_str())).ok()).collect()
}

/// Where the link of this name leads; `None`: there is none, or what is there is no link.
///
/// # Errors
/// [`Error::Act`] if that cannot be told.
pub fn target(storage: &Storage, name: &str) -> Result<Option<PathBuf>> {
    let link = storage.lowerdirs.join(name);
    match fs::read_link(&link) {
        // What readlink(2) says of a file that is no link.
        Err(e) if e.kind() == ErrorKind::InvalidInput => Ok(None),
        target => target.if_there().act("read", &link),
    }
}

/// The names of layers that somebody made by hand, sorted.
///
/// # Errors
/// [`Error::Act`].
pub fn by_hand(storage: &Storage) -> Result<Vec<LayerName>> {
    let Some(entries) = fs::read_dir(&storage.lowerdirs).if_there().act("list", &storage.lowerdirs)? else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.act("list", &storage.lowerdirs)?;
        let (Ok(kind), Ok(file)) = (entry.file_type(), entry.file_name().into_string()) else { continue };
        let name = match file.rsplit_once('.') {
            Some((name, ending)) if kind.is_file() && format_of(ending).is_some() => name,
            _ if kind.is_dir() => file.as_str(),
            _ => continue,
        };
        names.extend(LayerName::parse(name).ok().filter(|name| name.generation().is_none()));
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// Whether there is anything of this name.
///
/// # Errors
/// [`Error::Act`] if that cannot be told.
pub fn exists(storage: &Storage, name: &LayerName) -> Result<bool> {
    let images = IMAGES.iter().map(|(ending, _)| format!("{name}.{ending}"));
    for file in std::iter::once(name.to_string()).chain(images) {
        let path = storage.lowerdirs.join(file);
        if fs::symlink_metadata(&path).if_there().act("examine", &path)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn find(storage: &Storage, name: &LayerName) -> Result<Layer> {
    let bad = |why: String| Err(Error::Layer { name: name.to_string(), why });
    // A generation by its own name; else where the link leads; else what somebody made by hand.
    let mut wanted = name.clone();
    if let Some(target) = target(storage, name.as_str())? {
        match target.to_str().and_then(parse) {
            Some((generation, image)) if generation.name() == name.name() => {
                if let Some(layer) = stored(storage, name, &generation, image)? {
                    return Ok(layer);
                }
                wanted = generation;
            }
            _ => {
                return bad(format!(
                    "{} is a link to {}; a layer is a directory, an image, or a link to a generation beside it",
                    storage.lowerdirs.join(name.as_str()).display(),
                    target.display()
                ));
            }
        }
    }
    let forms = std::iter::once(None).chain(IMAGES.iter().map(|(ending, _)| Some(*ending)));
    for ending in forms {
        if let Some(layer) = stored(storage, name, &wanted, ending)? {
            return Ok(layer);
        }
    }
    let path = storage.lowerdirs.join(wanted.as_str());
    bad(format!(
        "there is no {0}, and no {0}.erofs or {0}.squashfs either; make one (`ojail layer build`), or correct `layers` in {1}",
        path.display(),
        paths::CONFIG
    ))
}

/// What is stored by this name and ending, if anything is.
fn stored(
    storage: &Storage,
    asked: &LayerName,
    name: &LayerName,
    ending: Option<&'static str>,
) -> Result<Option<Layer>> {
    let path = match ending {
        None => storage.lowerdirs.join(name.as_str()),
        Some(ending) => storage.lowerdirs.join(format!("{name}.{ending}")),
    };
    let bad =
        |why: &str| Err(Error::Layer { name: asked.to_string(), why: format!("{} {why}", path.display()) });
    let Some(meta) = fs::symlink_metadata(&path).if_there().act("examine", &path)? else { return Ok(None) };
    match ending {
        None if !meta.is_dir() => return bad("is not a directory"),
        Some(_) if !meta.is_file() => return bad("is not a plain file"),
        _ => {}
    }
    if meta.uid() != 0 || meta.mode() & 0o022 != 0 {
        let mend = format!(
            "can be written by others than root; `chown root: {0} && chmod go-w {0}`",
            path.display()
        );
        return bad(&mend);
    }
    let image = ending.and_then(format_of);
    let generation = name.generation().map(str::to_owned);
    Ok(Some(Layer { name: asked.clone(), generation, path, image }))
}

/// The generation and the ending of an image in a file's name, if it is the name of a generation.
pub(crate) fn parse(file: &str) -> Option<(LayerName, Option<&'static str>)> {
    let at = file.find('@')? + 1 + GENERATION;
    let (name, rest) = (file.get(..at)?, file.get(at..)?);
    let name = LayerName::parse(name).ok()?;
    match rest.strip_prefix('.') {
        None if rest.is_empty() => Some((name, None)),
        None => None,
        Some(ending) => {
            IMAGES.iter().find(|(known, _)| *known == ending).map(|(known, _)| (name, Some(*known)))
        }
    }
}

/// The file system of an image with this ending.
pub(crate) fn format_of(ending: &str) -> Option<Format> {
    IMAGES.iter().find(|(known, _)| *known == ending).map(|(_, format)| *format)
}

impl Layer {
    /// The name with the generation, where there is one.
    #[must_use]
    pub fn full(&self) -> LayerName {
        self.generation.as_deref().map_or_else(|| self.name.clone(), |id| self.name.at(id))
    }

    /// The directory of the layer's content. An image is mounted for this, once for the whole host: all jails share
    /// the mount's page cache, and the host's mount table has one line an image, however many jails there are.
    ///
    /// To be called in the host's mount namespace, before a private one is made.
    ///
    /// # Errors
    /// [`Error::Layer`] if the image cannot be mounted, with what `mount` said.
    pub fn content(&self) -> Result<PathBuf> {
        let Some(format) = self.image else { return Ok(self.path.clone()) };
        // An image that was replaced has another number or time, and so gets a mount of its own; running jails keep
        // the one that they have.
        let point = mount_point(self.name.name(), &self.path)?;
        let _lock = images_lock()?;
        if is_mounted(&point)? {
            return Ok(point);
        }
        runtime::private_dir(&point)?;
        match mount(&self.path, format, &point) {
            Ok(()) => Ok(point),
            Err(why) => {
                let _ = fs::remove_dir(&point);
                Err(Error::Layer { name: self.name.to_string(), why })
            }
        }
    }
}

/// Mounts an image on a directory. The error is a sentence.
fn mount(image: &Path, format: Format, point: &Path) -> Result<(), String> {
    whole(image, format).map_err(|why| format!("{} {why}", image.display()))?;
    let said = Command::new("mount")
        .env_clear()
        .env("PATH", PATH)
        .args(["-t", format.name(), "-o", "loop,ro,nosuid,nodev"])
        .args([image, point])
        .output()
        .map_err(|e| format!("cannot run mount: {e}"))?;
    if said.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said.stderr).trim().replace('\n', "; ");
    Err(format!("{} cannot be mounted as {}: {said}", image.display(), format.name()))
}

/// Where the tools are that are run.
pub(crate) const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Whether an image is as long as it says itself. The kernel does not ask: it mounts what is cut short, and whoever reads behind the
/// end gets an error, at any time later.
fn whole(image: &Path, format: Format) -> Result<(), String> {
    let mut head = [0; 1024 + 128];
    let file = fs::File::open(image).map_err(|e| format!("cannot be opened: {e}"))?;
    let is = file.metadata().map_err(|e| format!("cannot be examined: {e}"))?.len();
    if file.read_exact_at(&mut head, 0).is_err() {
        return Err(format!("is cut short: {is} bytes are no {} image", format.name()));
    }
    let number = |at: usize, length: usize| {
        head[at..at + length].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    };
    // Superblocks, in little endian: struct erofs_super_block (fs/erofs/erofs_fs.h in Linux) begins at byte 1024 and has the binary
    // logarithm of the block size at 12 and the number of blocks at 36; struct squashfs_super_block (fs/squashfs/squashfs_fs.h) is at
    // the beginning and has the number of bytes at 40.
    let (magic, says) = match format {
        Format::Erofs => {
            let blocks = number(1024 + 36, 4);
            (
                number(1024, 4) == 0xe0f5_e1e2,
                blocks.checked_shl(u32::from(head[1024 + 12])).unwrap_or(u64::MAX),
            )
        }
        Format::Squashfs => (number(0, 4) == 0x7371_7368, number(40, 8)),
    };
    if !magic {
        return Err(format!("is no {} image, or was changed", format.name()));
    }
    if is < says {
        return Err(format!(
            "is cut short: it has {is} of {says} bytes; `ojail layer verify` looks at all layers"
        ));
    }
    Ok(())
}

/// Where the image at this path is mounted, if it is.
fn mount_point(name: &str, image: &Path) -> Result<PathBuf> {
    let meta = fs::metadata(image).act("examine", image)?;
    let own = format!("{name}@{:x}.{:x}.{:x}", meta.dev(), meta.ino(), meta.mtime_nsec());
    Ok(images().join(own))
}

fn images() -> PathBuf {
    Path::new(paths::RUN).join("images")
}

/// Held by whoever mounts or unmounts an image.
fn images_lock() -> Result<fs::File> {
    runtime::private_dir(&images())?;
    runtime::lock_file(&images().join(".lock"))
}

/// Whether something is mounted at this very place.
fn is_mounted(point: &Path) -> Result<bool> {
    let stat = match statx(CWD, point, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::TYPE) {
        Err(rustix::io::Errno::NOENT) => return Ok(false),
        stat => stat.act("examine", point)?,
    };
    if stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    // Linux before 5.8 does not tell: it is another device than what is around it.
    let parent = point.parent().unwrap_or(point);
    let device = |path: &Path| fs::symlink_metadata(path).map(|meta| meta.dev()).act("examine", path);
    Ok(device(point)? != device(parent)?)
}
