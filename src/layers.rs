//! Layers: names become directories, images become one mount each for the whole host. Host root only.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::config::{LayerName, Storage};
use crate::error::{Act, Error, Result};
use crate::{paths, runtime, store};

/// Where a layer comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Its name.
    pub name: LayerName,
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

/// Whether there is anything of this name.
///
/// # Errors
/// [`Error::Act`] if that cannot be told.
pub fn exists(storage: &Storage, name: &LayerName) -> Result<bool> {
    let images = IMAGES.iter().map(|(ending, _)| format!("{name}.{ending}"));
    for file in std::iter::once(name.to_string()).chain(images) {
        let path = storage.lowerdirs.join(file);
        match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            meta => return meta.act("examine", &path).map(|_| true),
        }
    }
    Ok(false)
}

fn find(storage: &Storage, name: &LayerName) -> Result<Layer> {
    let dir = storage.lowerdirs.join(name.as_str());
    let bad = |why: String| Err(Error::Layer { name: name.to_string(), why });
    match fs::symlink_metadata(&dir) {
        Ok(meta) if meta.is_dir() => {
            if meta.uid() != 0 || meta.mode() & 0o022 != 0 {
                return bad(format!(
                    "{} can be written by others than root; `chown root: {0} && chmod go-w {0}`",
                    dir.display()
                ));
            }
            return Ok(Layer { name: name.clone(), path: dir, image: None });
        }
        Ok(_) => return bad(format!("{} is not a directory", dir.display())),
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e).act("examine", &dir),
    }
    for (ending, format) in IMAGES {
        let path = storage.lowerdirs.join(format!("{name}.{ending}"));
        match fs::symlink_metadata(&path) {
            Ok(meta) if !meta.is_file() => return bad(format!("{} is not a plain file", path.display())),
            Ok(meta) if meta.uid() != 0 || meta.mode() & 0o022 != 0 => {
                return bad(format!("{} can be written by others than root", path.display()));
            }
            Ok(_) => return Ok(Layer { name: name.clone(), path, image: Some(format) }),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e).act("examine", &path),
        }
    }
    bad(format!(
        "there is no {0}, and no {0}.erofs or {0}.squashfs either; make one, or correct `layers` in {1}",
        dir.display(),
        paths::CONFIG
    ))
}

impl Layer {
    /// The directory of the layer's content. An image is mounted for this, once for the whole host: all jails share
    /// the mount's page cache, and the host's mount table has one line an image, however many jails there are.
    ///
    /// To be called in the host's mount namespace, before a private one is made.
    ///
    /// # Errors
    /// [`Error::Layer`] if the image cannot be mounted, with what `mount` said.
    pub fn content(&self) -> Result<PathBuf> {
        let Some(format) = self.image else { return Ok(self.path.clone()) };
        let meta = fs::metadata(&self.path).act("examine", &self.path)?;
        // An image that was replaced has another number or time, and so gets a mount of its own; running jails keep
        // the one that they have.
        let images = Path::new(paths::RUN).join("images");
        let point =
            images.join(format!("{}@{:x}.{:x}.{:x}", self.name, meta.dev(), meta.ino(), meta.mtime_nsec()));
        runtime::private_dir(&images)?;
        let _lock = runtime::lock_file(&images.join(".lock"))?;
        if is_mounted(&point)? {
            return Ok(point);
        }
        runtime::private_dir(&point)?;
        let said = Command::new("mount")
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .args(["-t", format.name(), "-o", "loop,ro,nosuid,nodev"])
            .args([&self.path, &point])
            .output()
            .act("run", "mount")?;
        if said.status.success() {
            return Ok(point);
        }
        let _ = fs::remove_dir(&point);
        let said = String::from_utf8_lossy(&said.stderr).trim().replace('\n', "; ");
        Err(Error::Layer {
            name: self.name.to_string(),
            why: format!("{} cannot be mounted as {}: {said}", self.path.display(), format.name()),
        })
    }
}

/// A directory is a mount point if it is on another device than its parent.
fn is_mounted(point: &Path) -> Result<bool> {
    let parent = point.parent().unwrap_or(point);
    match fs::symlink_metadata(point) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        meta => Ok(meta.act("examine", point)?.dev() != fs::metadata(parent).act("examine", parent)?.dev()),
    }
}
