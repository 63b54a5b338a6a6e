//! Images as OCI's image layout has them (image-spec, image-layout.md): what is exchanged with skopeo(1). Every blob is named by
//! its SHA-256, and read by it.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use super::packed::Plain;
use super::tar::Tree;
use crate::archive::{self, Digesting};
use crate::error::{Act, Error, Result};

/// Of media types (image-spec, media-types.md).
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Where an index names its images (image-spec, annotations.md).
const REFERENCE: &str = "org.opencontainers.image.ref.name";

/// What an image is called in a layout of ours.
pub const TAG: &str = "layer";

/// The most that a manifest or a configuration may have, in bytes: what registries take of a manifest (distribution-spec, "Pushing
/// Manifests").
const DOCUMENT: u64 = 4 << 20;

/// How layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Compression {
    /// By gzip(1), which everything reads.
    Gzip,
    /// By zstd(1): smaller and faster, and read by newer tools.
    Zstd,
}

/// A blob, by its digest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// The part of an image's configuration that says what its layers are.
#[derive(Debug, Serialize, Deserialize)]
struct Configuration {
    architecture: String,
    os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(default)]
    history: Option<Vec<History>>,
    rootfs: RootFs,
}

#[derive(Debug, Serialize, Deserialize)]
struct History {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created_by: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Vec<String>,
}

/// An image that lies in a layout.
#[derive(Debug)]
pub struct Image {
    blobs: PathBuf,
    manifest: Manifest,
    /// Digests of the layers uncompressed, the lowest first.
    diff_ids: Vec<String>,
    /// Every blob of the image.
    files: Vec<PathBuf>,
}

impl Image {
    /// Reads what a layout says of its one image. Its blobs are in `blobs`, as `sha256/DIGEST`.
    ///
    /// # Errors
    /// [`Error::Image`] if it is no image of layers, or what it says is not what its digest says; [`Error::Act`].
    pub fn open(layout: &Path, blobs: &Path) -> Result<Self> {
        let path = layout.join("index.json");
        let text = fs::read(&path).act("read", &path)?;
        let index: Index = parse(&text, "the index")?;
        let [found] = index.manifests.as_slice() else {
            return Err(bad(format!("has {} manifests where one is expected", index.manifests.len())));
        };
        let mut files = vec![place(blobs, &found.digest)?];
        let manifest: Manifest = parse(&document(blobs, found)?, "the manifest")?;
        files.push(place(blobs, &manifest.config.digest)?);
        let config: Configuration = parse(&document(blobs, &manifest.config)?, "the configuration")?;
        let diff_ids = config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() || diff_ids.is_empty() {
            return Err(bad(format!(
                "has {} layers, and its configuration names {}",
                manifest.layers.len(),
                diff_ids.len()
            )));
        }
        for layer in &manifest.layers {
            files.push(place(blobs, &layer.digest)?);
        }
        Ok(Self { blobs: blobs.to_owned(), manifest, diff_ids, files })
    }

    /// How many layers it has.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.diff_ids.len()
    }

    /// Bytes of all layers, as they are.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.manifest.layers.iter().map(|layer| layer.size).sum()
    }

    /// What an annotation of the manifest says.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.manifest.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// Reads a layer into a tree, counted from the lowest. Its digests, as it is and uncompressed, are compared when it has come
    /// to its end.
    ///
    /// # Errors
    /// [`Error::Image`] if it is not what its digest says; those of [`Tree::add`].
    pub fn unpack(
        &self,
        number: usize,
        into: &mut Tree,
        marks: super::tar::Marks,
        bar: &ProgressBar,
    ) -> Result<()> {
        let (Some(layer), Some(diff_id)) = (self.manifest.layers.get(number), self.diff_ids.get(number))
        else {
            return Err(bad("has fewer layers".into()));
        };
        let path = place(&self.blobs, &layer.digest)?;
        let file = File::open(&path).act("open", &path)?;
        let hidden = ProgressBar::hidden();
        let mut plain = Digesting::new(Plain::of(Digesting::new(file, bar))?, &hidden);
        let added = into.add(&mut plain, marks);
        // Damage is the better reason.
        let (plain, is) = plain.into_inner();
        let read = added.and_then(|()| plain.end());
        let damaged = |what: &str, is: &str, said: &str| {
            bad(format!("is damaged: {what} has the digest {is}, and {said} is expected; try again"))
        };
        match read {
            Ok(mut packed) => {
                // What a program leaves behind the end.
                io::copy(&mut packed, &mut io::sink()).act("read", &path)?;
                let (_, digest) = packed.into_inner();
                if format!("sha256:{digest}") != layer.digest {
                    return Err(damaged("a layer", &digest, &layer.digest));
                }
                if format!("sha256:{is}") != *diff_id {
                    return Err(damaged("a layer, uncompressed,", &is, diff_id));
                }
                Ok(())
            }
            Err(e) => {
                let (digest, _) = archive::digest(&path, &hidden)?;
                if format!("sha256:{digest}") != layer.digest {
                    return Err(damaged("a layer", &digest, &layer.digest));
                }
                Err(e)
            }
        }
    }

    /// Removes its blobs: what is left over when a layer was made of it.
    pub fn discard(&self) {
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
    }
}

/// An image that is being made of the tar of one layer, in parts.
#[derive(Debug)]
pub struct Draft {
    dir: PathBuf,
    blobs: PathBuf,
    compression: Compression,
    layers: Vec<Descriptor>,
    diff_ids: Vec<String>,
    /// The part that is being written.
    part: Option<(Digesting<ChildStdin>, Child)>,
}

/// A part that is being compressed.
const PART: &str = ".part";

impl Draft {
    /// Begins one in a directory that is not there yet.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn begin(dir: &Path, compression: Compression) -> Result<Self> {
        let blobs = dir.join("blobs");
        for dir in [dir, &blobs, &blobs.join("sha256")] {
            DirBuilder::new().mode(0o700).create(dir).act("create", dir)?;
        }
        let mut draft = Self {
            dir: dir.to_owned(),
            blobs,
            compression,
            layers: Vec::new(),
            diff_ids: Vec::new(),
            part: None,
        };
        draft.cut()?;
        Ok(draft)
    }

    /// Ends a part, and begins the next.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn cut(&mut self) -> Result<()> {
        self.complete()?;
        let path = self.dir.join(PART);
        let to = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
        // Without name and time, so that the same part gives the same blob, which a registry then has already.
        let (program, arguments): (_, &[&str]) = match self.compression {
            Compression::Gzip => ("gzip", &["-cn"]),
            Compression::Zstd => ("zstd", &["-qc"]),
        };
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C").args(arguments);
        command.stdin(Stdio::piped()).stdout(to.act("create", &path)?).stderr(Stdio::null());
        let mut child = command.spawn().act("run", program)?;
        let into =
            child.stdin.take().ok_or_else(|| io::Error::other("it has no input")).act("run", program)?;
        self.part = Some((Digesting::new(into, &ProgressBar::hidden()), child));
        Ok(())
    }

    fn complete(&mut self) -> Result<()> {
        let Some((into, mut child)) = self.part.take() else { return Ok(()) };
        let path = self.dir.join(PART);
        let (into, diff_id) = into.into_inner();
        drop(into);
        let status = child.wait().act("wait for", "a compressor")?;
        if !status.success() {
            return Err(io::Error::other(format!("it ended with {status}"))).act("compress", "a layer");
        }
        let (digest, size) = archive::digest(&path, &ProgressBar::hidden())?;
        let ending = match self.compression {
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        };
        self.layers.push(Descriptor {
            media_type: format!("{LAYER}+{ending}"),
            digest: format!("sha256:{digest}"),
            size,
            annotations: BTreeMap::new(),
        });
        self.diff_ids.push(format!("sha256:{diff_id}"));
        let blob = self.blobs.join("sha256").join(digest);
        fs::rename(&path, &blob).act("rename to", &blob)
    }

    /// Completes it: made when (as RFC 3339), by what, and annotations of the manifest. Returns the manifest's digest, and the
    /// number of parts.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn finish(
        mut self,
        created: &str,
        by: &str,
        annotations: BTreeMap<String, String>,
    ) -> Result<(String, usize)> {
        self.complete()?;
        let history = |_: &String| History { created: Some(created.into()), created_by: Some(by.into()) };
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = Configuration {
            architecture: architecture.into(),
            os: "linux".into(),
            created: Some(created.into()),
            history: Some(self.diff_ids.iter().map(history).collect()),
            rootfs: RootFs { kind: "layers".into(), diff_ids: self.diff_ids.clone() },
        };
        let parts = self.layers.len();
        let config = self.document(CONFIG, &config)?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: MANIFEST.into(),
            config,
            layers: std::mem::take(&mut self.layers),
            annotations: Some(annotations),
        };
        let mut manifest = self.document(MANIFEST, &manifest)?;
        let digest = manifest.digest.clone();
        manifest.annotations.insert(REFERENCE.into(), TAG.into());
        let index = Index { schema_version: 2, manifests: vec![manifest] };
        self.write("index.json", &text(&index)?)?;
        self.write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok((digest, parts))
    }

    fn document(&self, media_type: &str, content: &impl Serialize) -> Result<Descriptor> {
        let content = text(content)?;
        let mut digesting = Digesting::new(content.as_slice(), &ProgressBar::hidden());
        io::copy(&mut digesting, &mut io::sink()).act("read", media_type)?;
        let (digest, size) = digesting.end();
        self.write(&format!("blobs/sha256/{digest}"), &content)?;
        let digest = format!("sha256:{digest}");
        Ok(Descriptor { media_type: media_type.into(), digest, size, annotations: BTreeMap::new() })
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(content)).act("write", &path)
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.part {
            Some((into, _)) => into.write(bytes),
            None => Err(io::Error::other("no part was begun")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.part.as_mut().map_or(Ok(()), |(into, _)| into.flush())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some((into, mut child)) = self.part.take() {
            drop(into);
            let _ = child.wait();
        }
    }
}

fn text(content: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(content).map_err(io::Error::from).act("write", "an image")
}

fn parse<'a, T: Deserialize<'a>>(text: &'a [u8], what: &str) -> Result<T> {
    serde_json::from_slice(text).map_err(|e| bad(format!("cannot be understood: {what}: {e}")))
}

fn bad(why: String) -> Error {
    Error::Image { why }
}

/// Where a blob is. Its digest comes from elsewhere, and becomes a path.
fn place(blobs: &Path, digest: &str) -> Result<PathBuf> {
    let hex = digest.strip_prefix("sha256:").filter(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    });
    let name = || digest.escape_debug().take(100).collect::<String>();
    let hex = hex.ok_or_else(|| bad(format!("names something by {:?}, which is no SHA-256", name())))?;
    Ok(blobs.join("sha256").join(hex))
}

/// A manifest or a configuration, which is what its digest says.
fn document(blobs: &Path, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let path = place(blobs, &descriptor.digest)?;
    let file = File::open(&path).act("open", &path)?;
    let mut content = Vec::new();
    let mut digesting = Digesting::new(file.take(DOCUMENT), &ProgressBar::hidden());
    digesting.read_to_end(&mut content).act("read", &path)?;
    let digest = digesting.end().0;
    if format!("sha256:{digest}") != descriptor.digest {
        return Err(bad(format!(
            "is damaged: what should have the digest {} has {digest}; try again",
            descriptor.digest
        )));
    }
    Ok(content)
}
