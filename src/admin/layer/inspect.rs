//! `ojail layer inspect`: what a generation is made of.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use serde::Serialize;

use super::super::list::local_time;
use super::super::status::bytes;
use super::super::{configuration, say};
use super::list::kind;
use crate::config::{LayerName, Storage};
use crate::error::{Act, Error, Result};
use crate::layers;
use crate::layers::generations::{self, Form, How, Workshop};
use crate::walk;

/// A generation, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Inspected {
    /// Name and generation; the name alone of a layer that was made by hand.
    name: String,
    /// Whether a profile that names the layer gets this one.
    current: bool,
    /// SHA-256 of the content as the tar of a layer.
    digest: Option<String>,
    /// Seconds since 1970.
    made: Option<u64>,
    how: Option<How>,
    /// Word by word.
    command: Vec<String>,
    /// What it was made on, topmost first.
    from: Vec<LayerName>,
    /// Bytes that it takes as a directory.
    bytes: Option<u64>,
    inodes: Option<u64>,
    /// The first is the one that is taken.
    forms: Vec<Shape>,
    /// The version that made it.
    ojail: Option<String>,
    profiles: Vec<String>,
    jails: Vec<String>,
    /// The layer below whose packages are left out of `packages`; `null` if there is none, or none any more.
    without_those_of: Option<LayerName>,
    /// What dpkg has noted as installed; `null` if there is nothing of dpkg in the layer.
    packages: Option<Vec<Package>>,
}

#[derive(Debug, Serialize)]
struct Shape {
    /// `directory`, `erofs`, `squashfs`.
    kind: &'static str,
    path: PathBuf,
    /// Bytes on disk.
    bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Package {
    name: String,
    version: String,
    architecture: String,
}

pub(super) fn run(name: &LayerName, json: bool) -> Result<ExitCode> {
    let inspected = inspect(name)?;
    if json {
        say(serde_json::json!(inspected));
    } else {
        say(text(&inspected));
    }
    Ok(ExitCode::SUCCESS)
}

fn inspect(name: &LayerName) -> Result<Inspected> {
    let config = configuration()?;
    let storage = &config.storage;
    let used = generations::in_use()?;
    let workshop = Workshop::open(storage)?;
    let mut inspected = Inspected {
        name: name.to_string(),
        current: true,
        digest: None,
        made: None,
        how: None,
        command: Vec::new(),
        from: Vec::new(),
        bytes: None,
        inodes: None,
        forms: Vec::new(),
        ojail: None,
        profiles: Vec::new(),
        jails: Vec::new(),
        without_those_of: None,
        packages: None,
    };
    let forms = match generations::one(storage, name) {
        Ok(generation) => {
            inspected.profiles =
                generations::profiles_of(&config, &generation).into_iter().map(str::to_owned).collect();
            inspected.name = generation.name.to_string();
            inspected.current = generation.current;
            if let Some(record) = generation.record {
                inspected.digest = Some(record.digest);
                inspected.made = Some(record.at);
                inspected.how = Some(record.how);
                inspected.command = record.command;
                inspected.from = record.from;
                inspected.bytes = Some(record.size.bytes);
                inspected.inodes = Some(record.size.inodes);
                inspected.ojail = Some(record.ojail);
            }
            generation.forms
        }
        // Made by hand, or nothing.
        Err(error) => by_hand(storage, name).ok_or(error)?,
    };
    for form in &forms {
        inspected.jails.extend(generations::users_of(&used, [&*form.path])?);
        let bytes = walk::taken(&form.path)?;
        inspected.forms.push(Shape { kind: kind(form.image), path: form.path.clone(), bytes });
    }
    let Some(form) = forms.first() else { return Ok(inspected) };
    let Some(mut packages) = packages(workshop.content(form)?.path())? else { return Ok(inspected) };
    // The first below that has any: it has those of the layers below itself as well.
    for base in &inspected.from {
        let forms = generations::one(storage, base).map(|base| base.forms).ok();
        let Some(form) = forms.or_else(|| by_hand(storage, base)).and_then(|forms| forms.into_iter().next())
        else {
            break;
        };
        if let Some(below) = self::packages(workshop.content(&form)?.path())? {
            packages.retain(|package| !below.contains(package));
            inspected.without_those_of = Some(base.clone());
            break;
        }
    }
    inspected.packages = Some(packages.into_iter().collect());
    Ok(inspected)
}

/// What a layer that somebody made by hand is.
fn by_hand(storage: &Storage, name: &LayerName) -> Option<Vec<Form>> {
    let layer = layers::resolve(storage, std::slice::from_ref(name)).ok()?.pop()?;
    Some(vec![Form { path: layer.path, image: layer.image }])
}

/// What dpkg has noted as installed in a tree; `None` if there is nothing of dpkg.
fn packages(tree: &Path) -> Result<Option<BTreeSet<Package>>> {
    const STATUS: &str = "var/lib/dpkg/status";
    // Links in a layer lead to files of the layer.
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat2(walk::open(tree)?, STATUS, flags, Mode::empty(), inside) {
        // No device is a list of packages.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::NXIO) => return Ok(None),
        file => File::from(file.act("open", tree.join(STATUS).as_path())?),
    };
    let meta = file.metadata().act("examine", tree.join(STATUS).as_path())?;
    // A hundred thousand packages would be half of that.
    if !meta.is_file() || meta.len() > 256 << 20 {
        let why = "is no list of packages".into();
        return Err(Error::Unfit { path: tree.join(STATUS), why });
    }
    let mut text = Vec::new();
    file.take(meta.len()).read_to_end(&mut text).act("read", tree.join(STATUS).as_path())?;
    Ok(Some(installed(&String::from_utf8_lossy(&text))))
}

/// The packages in dpkg's status file whose state is "installed" (dpkg-query(1)).
fn installed(text: &str) -> BTreeSet<Package> {
    let mut packages = BTreeSet::new();
    for paragraph in text.split("\n\n") {
        let field = |name: &str| {
            let mut lines = paragraph.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        if field("Status").and_then(|status| status.split(' ').next_back()) != Some("installed") {
            continue;
        }
        // A layer may have been made by anybody: no control character of it reaches a terminal.
        let plain = |name| field(name).unwrap_or_default().escape_debug().to_string();
        packages.insert(Package {
            name: plain("Package"),
            version: plain("Version"),
            architecture: plain("Architecture"),
        });
    }
    packages
}

fn text(inspected: &Inspected) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("{name:<10} {value}"));
        }
    };
    let now = if inspected.current { "" } else { " (not what the layer is now)" };
    line("layer", format!("{}{now}", inspected.name));
    line("digest", inspected.digest.as_ref().map(|digest| format!("sha256:{digest}")).unwrap_or_default());
    let how =
        inspected.how.map(|how| format!(" ({})", format!("{how:?}").to_lowercase())).unwrap_or_default();
    line("made", inspected.made.map_or_else(|| "by hand".into(), |at| format!("{}{how}", local_time(at))));
    line("command", inspected.command.join(" ").escape_debug().to_string());
    let from: Vec<&str> = inspected.from.iter().map(LayerName::as_str).collect();
    line("from", from.join(" on "));
    for Shape { kind, path, bytes: size } in &inspected.forms {
        line(kind, format!("{}, {}", path.display(), bytes(*size)));
    }
    if let (Some(size), Some(inodes)) = (inspected.bytes, inspected.inodes) {
        line("content", format!("{} in {inodes} files and directories", bytes(size)));
    }
    line("profiles", inspected.profiles.join(" "));
    line("jails", inspected.jails.join(" "));
    match &inspected.packages {
        None => line("packages", "dpkg has noted nothing in this layer".into()),
        Some(packages) => {
            let besides = match (&inspected.without_those_of, inspected.from.first()) {
                (Some(base), _) => format!(" that {base} has not"),
                (None, Some(base)) => format!(" ({base} is not there to compare with)"),
                (None, None) => String::new(),
            };
            line("packages", format!("{}{besides}", packages.len()));
            for Package { name, version, architecture } in packages {
                lines.push(format!("  {name} {version} {architecture}"));
            }
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_that_are_installed_are_told_and_no_others() {
        let text = "Package: bash\nStatus: install ok installed\nVersion: 5.2-1\nArchitecture: amd64\n\n\
                    Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                    Package: od\u{1b}d\nStatus: hold ok installed\nVersion: 2\nArchitecture: all\n";
        let told: Vec<String> =
            installed(text).into_iter().map(|p| format!("{} {}", p.name, p.version)).collect();
        assert_eq!(told, ["bash 5.2-1", "od\\u{1b}d 2"]);
        assert!(installed("").is_empty());
    }
}
