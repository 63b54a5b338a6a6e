//! What a backup says of itself: `manifest.json`, without which the files beside it are nothing.
//!
//! ```text
//! manifest.json                    the last to be written; it names what belongs to the backup
//! layers/NAME-SHA256.tar           a layer that is a directory
//! layers/NAME-SHA256.erofs         … or an image, as it is (.squashfs and .sqsh too)
//! uppers/USER-SHA256.tar           what a user changed
//! configuration-SHA256.toml        the configuration, to read
//! ```
//!
//! A file is called after its content, so nothing is ever overwritten, and what is there already is not written again.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::account::Username;
use crate::bases::Base;
use crate::config::LayerName;
use crate::error::{Act, Error, IfThere, Result};
use crate::ids::Owner;
use crate::layers::generations::Record;

/// The file's name.
pub const NAME: &str = "manifest.json";

/// The version of the layout that this program writes and reads.
const FORMAT: u32 = 1;

/// A backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the layout.
    pub format: u32,
    /// The version of ojail that wrote it.
    pub ojail: String,
    /// Seconds since 1970.
    pub at: u64,
    /// The host that it is of.
    pub host: String,
    /// Layers.
    pub layers: Vec<Layer>,
    /// Users and what they changed.
    pub users: Vec<User>,
    /// The configuration then. Not restored.
    pub configuration: Option<Part>,
}

/// A file of the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Relative to the manifest.
    pub file: String,
    /// Of its content, in hexadecimal.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Its name.
    pub name: String,
    /// The ending of an image; `None` for a directory.
    pub image: Option<String>,
    /// What is known of the generation that it was; `None` for what somebody had made by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<Record>,
    /// Where it is.
    #[serde(flatten)]
    pub part: Part,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// The name.
    pub name: String,
    /// The uid on the host; `None` if the account data base had no such user any more.
    pub uid: Option<u32>,
    /// The profile, if they were jailed.
    pub profile: Option<String>,
    /// The layers of the profile.
    pub layers: Vec<String>,
    /// What `/var/lib/ojail` had of them: to whom the upper belongs, and a range of the pool.
    pub owner: Option<Owner>,
    /// The layers that the upper was on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<Base>,
    /// When the upper was packed, in seconds since 1970.
    pub at: u64,
    /// The upper.
    #[serde(flatten)]
    pub part: Part,
    /// What it takes unpacked, in bytes.
    pub bytes: u64,
    /// Its files and directories.
    pub inodes: u64,
}

impl Manifest {
    /// One of now, with nothing in it.
    #[must_use]
    pub fn new(at: u64) -> Self {
        let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
        Self {
            format: FORMAT,
            ojail: env!("CARGO_PKG_VERSION").into(),
            at,
            host: host.unwrap_or_default(),
            layers: Vec::new(),
            users: Vec::new(),
            configuration: None,
        }
    }

    /// Reads that of a directory; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Unfit`] if it is none of ours, or of a later version; [`Error::Act`].
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(NAME);
        let text = std::fs::read(&path).if_there().act("read", &path)?;
        text.map(|text| Self::parse(&path, &text)).transpose()
    }

    /// Reads the text of one.
    ///
    /// # Errors
    /// [`Error::Unfit`].
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let unfit = |why: String| Error::Unfit { path: path.to_owned(), why };
        let manifest: Self = serde_json::from_slice(text)
            .map_err(|e| unfit(format!("is not the manifest of a backup of ojail's: {e}")))?;
        if manifest.format != FORMAT {
            return Err(unfit(format!(
                "is of format {}, and this version of ojail knows format {FORMAT} only",
                manifest.format
            )));
        }
        // Names become paths, of root's.
        for layer in &manifest.layers {
            let image = layer
                .image
                .as_deref()
                .is_none_or(|ending| crate::layers::IMAGES.iter().any(|(known, _)| *known == ending));
            if LayerName::parse(&layer.name).is_err() || !image {
                return Err(unfit(format!("names a layer that cannot be one: {:?}", layer.name)));
            }
        }
        for user in &manifest.users {
            Username::parse(&user.name)?;
        }
        for part in manifest.parts() {
            let normal = |part| matches!(part, Component::Normal(_));
            let path = Path::new(&part.file);
            if part.file.is_empty() || !path.components().all(normal) || path.components().count() > 2 {
                return Err(unfit(format!("names a file outside of the backup: {:?}", part.file)));
            }
        }
        Ok(manifest)
    }

    /// Every file of the backup but this one.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        let layers = self.layers.iter().map(|layer| &layer.part);
        layers.chain(self.users.iter().map(|user| &user.part)).chain(&self.configuration)
    }

    /// As it stands in the file.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn text(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self).map_err(std::io::Error::other).act("write", NAME)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Replaces that of a directory, in one step, behind everything that it names.
    ///
    /// # Errors
    /// [`Error::Act`]; then the old one is there.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let text = self.text()?;
        let (temporary, place) = (dir.join(".new"), dir.join(NAME));
        let write = || -> std::io::Result<()> {
            // Opened before: behind the rename nothing may fail that can fail here.
            let above = File::open(dir)?;
            let mut file =
                File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&text)?;
            // What it names is on the disk before it is.
            rustix::fs::syncfs(&file)?;
            let how = if place.exists() { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
            match renameat_with(CWD, &temporary, CWD, &place, how) {
                // Not every file system can (NFS): there a failure to sync is told of a manifest that is in place.
                Err(Errno::INVAL) => {
                    std::fs::rename(&temporary, &place)?;
                    return above.sync_all();
                }
                renamed => renamed?,
            }
            if let Err(e) = above.sync_all() {
                // Not known to be on the disk: what is reported as failed has not happened.
                let _ = renameat_with(CWD, &place, CWD, &temporary, how);
                return Err(e);
            }
            if how == RenameFlags::EXCHANGE {
                // The old one. If it stays, the next backup writes over it.
                let _ = std::fs::remove_file(&temporary);
            }
            Ok(())
        };
        write().act("write", place.as_path())
    }
}

/// Refuses the directory of a backup in which anybody but root could exchange what is there: it has layers, and so programs that
/// will be root's.
///
/// # Errors
/// [`Error::Unfit`] with the mend; [`Error::Act`].
pub fn roots_own(dir: &Path) -> Result<()> {
    // The administrator names the first, maybe by a link; the others are ours.
    let top = std::fs::metadata(dir).act("examine", dir)?;
    let mut places = vec![(dir.to_owned(), top)];
    for name in ["layers", "uppers"] {
        let path = dir.join(name);
        let meta = std::fs::symlink_metadata(&path).if_there().act("examine", &path)?;
        places.extend(meta.map(|meta| (path, meta)));
    }
    for (path, meta) in places {
        let why = if !meta.is_dir() {
            "is not a directory".to_owned()
        } else if meta.uid() != 0 {
            format!("belongs to uid {}; `chown root {}`", meta.uid(), path.display())
        } else if meta.mode() & 0o022 != 0 {
            format!("can be written by others than root; `chmod go-w {}`", path.display())
        } else {
            continue;
        };
        return Err(Error::Unfit { path, why });
    }
    Ok(())
}

impl Part {
    /// Where it is.
    #[must_use]
    pub fn path(&self, dir: &Path) -> PathBuf {
        dir.join(&self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(file: &str) -> Part {
        Part { file: file.into(), sha256: "ab".into(), size: 5 }
    }

    fn manifest() -> Manifest {
        let mut manifest = Manifest::new(7);
        manifest.layers.push(Layer {
            name: "debian".into(),
            image: Some("erofs".into()),
            record: None,
            part: part("layers/x"),
        });
        manifest.users.push(User {
            name: "alice".into(),
            uid: Some(1000),
            profile: None,
            layers: Vec::new(),
            owner: Some(Owner { uid: 1000, pool: Some(524_288) }),
            bases: Vec::new(),
            at: 7,
            part: part("uppers/alice.tar"),
            bytes: 9,
            inodes: 2,
        });
        manifest
    }

    fn parse(manifest: &Manifest) -> Result<Manifest> {
        Manifest::parse(Path::new("/backup/manifest.json"), &manifest.text().unwrap())
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(parse(&manifest()).unwrap(), manifest());
    }

    #[test]
    fn what_would_lead_elsewhere_or_is_of_another_time_is_refused() {
        let refused = |change: fn(&mut Manifest), why: &str| {
            let mut manifest = manifest();
            change(&mut manifest);
            let error = parse(&manifest).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        refused(|m| m.format = 2, "is of format 2");
        refused(|m| m.users[0].name = "../alice".into(), "cannot have a jail");
        refused(|m| m.layers[0].name = ".x".into(), "a layer that cannot be one");
        refused(|m| m.layers[0].image = Some("erofs/x".into()), "a layer that cannot be one");
        for file in ["/etc/shadow", "../x", "uppers/../../x", "a/b/c", ""] {
            let mut manifest = manifest();
            manifest.users[0].part.file = file.into();
            assert!(parse(&manifest).unwrap_err().to_string().contains("outside of the backup"), "{file}");
        }
        let none = Manifest::parse(Path::new("m"), b"{}").unwrap_err().to_string();
        assert!(none.contains("is not the manifest of a backup"), "{none}");
    }
}
