//! skopeo(1) carries images: to and from registries with credentials of the usual `auth.json` and TLS, and out of archives. It
//! compares every blob with its digest.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use super::layout::{Image, TAG};
use crate::config::Storage;
use crate::error::{Act, Error, IfThere, Result};
use crate::runtime::{self, private_dir};
use crate::store;

/// Where an image is, as skopeo names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    name: String,
    /// Not in a file or a directory.
    registry: bool,
}

impl std::fmt::Display for Place {
    /// As a person gives it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name.strip_prefix("docker://").unwrap_or(&self.name))
    }
}

/// Stored images, by the word before the colon (containers-transports(5)).
const STORED: [&str; 3] = ["oci:", "oci-archive:", "docker-archive:"];

impl Place {
    /// `REGISTRY/REPO:TAG`, also with `docker://` before it.
    ///
    /// # Errors
    /// A sentence.
    pub fn registry(text: &str) -> Result<Self, String> {
        let reference = text.strip_prefix("docker://").unwrap_or(text);
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-:/@".contains(c);
        let host = reference.split_once('/').map_or("", |(host, _)| host);
        // As every tool tells a registry from the beginning of a repository's name (distribution/reference).
        let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
        let is_port = |port: &str| port.parse::<u16>().is_ok();
        let is_host = !name.is_empty()
            && port.is_none_or(is_port)
            && (name == "localhost" || name.contains('.') || port.is_some());
        if !reference.chars().all(plain) || !is_host || host.starts_with(['.', '-']) || text.ends_with('/') {
            return Err("is no REGISTRY/REPO:TAG, such as registry.example/layers/debian:12".into());
        }
        Ok(Self { name: format!("docker://{reference}"), registry: true })
    }

    /// As [`Place::registry`], or `oci:DIR`, `oci-archive:FILE` or `docker-archive:FILE`.
    ///
    /// # Errors
    /// A sentence.
    pub fn image(text: &str) -> Result<Self, String> {
        if STORED.iter().any(|word| text.strip_prefix(word).is_some_and(|rest| !rest.is_empty())) {
            return Ok(Self { name: text.into(), registry: false });
        }
        Self::registry(text)
            .map_err(|why| format!("{why}, and no oci:DIR, oci-archive:FILE or docker-archive:FILE either"))
    }
}

/// Blobs that have come whole, so that what was cut is not carried twice. One process at a time holds it.
#[derive(Debug)]
pub struct Downloads {
    dir: PathBuf,
    _lock: File,
}

/// In the directory of layers. No layer is called so.
const DOWNLOADS: &str = ".downloads";

/// How long a blob of which no layer was made is kept.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

impl Downloads {
    /// Opens the place, and removes what has been there for a week.
    ///
    /// # Errors
    /// [`Error::Act`], [`Error::Unfit`].
    pub fn open(storage: &Storage) -> Result<Self> {
        store::roots_own_way(&storage.lowerdirs)?;
        private_dir(&storage.lowerdirs)?;
        let dir = storage.lowerdirs.join(DOWNLOADS);
        private_dir(&dir)?;
        let lock = runtime::lock_file(&dir.join(".lock"))?;
        let blobs = dir.join("sha256");
        for entry in fs::read_dir(&blobs).if_there().act("list", &blobs)?.into_iter().flatten() {
            let path = entry.act("list", &blobs)?.path();
            let meta = fs::symlink_metadata(&path).act("examine", &path)?;
            let old = SystemTime::now().duration_since(meta.modified().act("examine", &path)?);
            if old.is_ok_and(|old| old > KEPT) {
                fs::remove_file(&path).act("remove", &path)?;
            }
        }
        Ok(Self { dir, _lock: lock })
    }

    /// Brings an image here: what of it has come before is not asked for again. `work` is for what is not complete,
    /// a directory that is not there yet.
    ///
    /// # Errors
    /// [`Error::Carried`] with what skopeo says; those of [`Image::open`].
    pub fn bring(&self, from: &Place, insecure: bool, work: &Path) -> Result<Image> {
        let layout = work.join("image");
        let to = format!("oci:{}:{TAG}", layout.display());
        let mut skopeo = skopeo(work)?;
        if insecure && from.registry {
            skopeo.arg("--src-tls-verify=false");
        }
        skopeo.arg("--dest-shared-blob-dir").arg(&self.dir).args([&from.name, &to]);
        run(skopeo, "bring", from)?;
        Image::open(&layout, &self.dir)
    }
}

/// Takes an image of ours to a registry. What of it is there already is not carried again.
///
/// # Errors
/// [`Error::Carried`] with what skopeo says.
pub fn take(layout: &Path, to: &Place, insecure: bool, work: &Path) -> Result<()> {
    let mut skopeo = skopeo(work)?;
    if insecure {
        skopeo.arg("--dest-tls-verify=false");
    }
    // What is there afterwards is what was made here, to the byte.
    skopeo.arg("--preserve-digests");
    skopeo.args([&format!("oci:{}:{TAG}", layout.display()), &to.name]);
    run(skopeo, "take", to)
}

/// `skopeo copy`, with the environment of whoever calls: it says where credentials are, and proxies.
fn skopeo(work: &Path) -> Result<Command> {
    let temporary = work.join("temporary");
    DirBuilder::new().mode(0o700).recursive(true).create(&temporary).act("create", &temporary)?;
    // Ends with us, also if we are killed: or it would go on in a directory that the next one clears.
    let mut skopeo = Command::new("setpriv");
    skopeo.args(["--pdeathsig", "KILL", "--", "skopeo", "copy", "--quiet"]);
    skopeo.env("TMPDIR", temporary).stdin(Stdio::null()).stdout(Stdio::null());
    Ok(skopeo)
}

fn run(mut skopeo: Command, act: &'static str, place: &Place) -> Result<()> {
    let said = skopeo.output().act("run", "skopeo")?;
    if said.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&said.stderr);
    let why = match said.status.code() {
        // As a shell has it: there is no such program.
        Some(127) => "skopeo is not installed; `apt-get install skopeo`".into(),
        _ => reason(&text).unwrap_or_else(|| format!("skopeo ended with {}", said.status)),
    };
    Err(Error::Carried { act, what: place.to_string().escape_debug().to_string(), why })
}

/// The last of what it says: `time="…" level=fatal msg="…"`, of which a registry may have written a part.
fn reason(text: &str) -> Option<String> {
    let last = text.lines().rev().find(|line| !line.trim().is_empty())?;
    let message = last.split_once(" msg=").map_or(last, |(_, message)| message);
    let message = message.strip_prefix('"').and_then(|message| message.strip_suffix('"')).unwrap_or(message);
    let message = message.replace("\\\"", "\"").replace("\\n", "; ");
    Some(message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(500).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        for text in [
            "registry.example/debian:12",
            "localhost/x",
            "127.0.0.1:5000/a/b:c",
            "docker://r.example/x@sha256:ab",
        ] {
            let place = Place::image(text).unwrap();
            assert!(place.registry && place.name.starts_with("docker://"), "{text}");
            assert_eq!(Place::registry(text), Ok(place));
        }
        for text in ["oci:/srv/image:tag", "oci-archive:x.tar", "docker-archive:x.tar:a/b:c"] {
            assert_eq!(Place::image(text), Ok(Place { name: text.into(), registry: false }));
            assert!(Place::registry(text).is_err(), "{text}");
        }
        for text in [
            "",
            "debian",
            "debian:12",
            "oci:",
            "./image.tar",
            "/image.tar",
            "docker-daemon:x",
            "docker-daemon:/x",
            ":5000/x",
            "a.b/",
            "-x.y/z",
            "r.example/a b",
        ] {
            assert!(Place::image(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_reason_is_one_line_without_control_characters() {
        let said = "time=\"x\" level=warning msg=\"w\"\ntime=\"x\" level=fatal msg=\"reading \\\"a\\\":\\nno \u{1b}[31m\"\n\n";
        assert_eq!(reason(said).unwrap(), "reading \"a\":; no  [31m");
        assert_eq!(reason("setpriv: failed").unwrap(), "setpriv: failed");
        assert_eq!(reason(""), None);
    }
}
