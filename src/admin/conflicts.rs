//! `ojail conflicts USER`: what of a user's is in the way of newer layers. Reads, and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::Style;

use super::diff::profile;
use super::list::local_time;
use super::{configuration, say, username};
use crate::account::Username;
use crate::bases::{self, Base};
use crate::changes::shown;
use crate::config::{Config, LayerName, Profile};
use crate::conflicts::{self, Conflict, Differing, Known, Mine, Owners, Report, Stands, Theirs, Version};
use crate::error::{Error, Result};
use crate::{lower, store};

/// The arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Conflicts {
    /// Whose jail
    user: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Compare with the layers of this profile instead of the user's
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
}

/// All that there is to say of a user's upper and the layers.
#[derive(Debug)]
pub(super) struct Findings<'a> {
    pub(super) profile: &'a Profile,
    pub(super) upper: OwnedFd,
    pub(super) stands: Stands,
    /// `None`: the user has no database of dpkg's of their own.
    pub(super) known: Option<Known>,
    pub(super) differing: Differing,
    /// What dpkg inside says whose a file is.
    pub(super) owners: Owners,
    pub(super) report: Report,
}

/// What dpkg and apt write whenever they are run. The packages are told apart from files.
pub(super) const DATABASES: [&str; 6] = [
    "var/lib/dpkg",
    "var/lib/apt",
    "var/cache/apt",
    "var/cache/debconf",
    "var/cache/ldconfig",
    "etc/ld.so.cache",
];

/// Logs and caches that dpkg and its helpers write anew.
pub(super) const GENERATED: [&str; 12] = [
    "var/log/dpkg.log",
    "var/log/alternatives.log",
    "var/log/apt",
    "etc/alternatives",
    "etc/passwd-",
    "etc/group-",
    "etc/shadow-",
    "etc/gshadow-",
    "etc/subuid-",
    "etc/subgid-",
    "usr/share/info/dir",
    "usr/share/mime/mime.cache",
];

/// Whether something is one of these, or below it.
pub(super) fn is_within(path: &[u8], places: &[&str]) -> bool {
    places.iter().any(|place| {
        path.strip_prefix(place.as_bytes()).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    })
}

/// Looks at a user's upper. It may be in use.
pub(super) fn look<'a>(config: &'a Config, user: &Username, named: Option<&str>) -> Result<Findings<'a>> {
    store::look(&config.storage)?;
    let path = config.storage.upperdirs.join(user);
    if !store::owners(&config.storage)?.contains(user) {
        return Err(Error::NoUpper { user: user.to_string(), path });
    }
    let profile = profile(config, user, named, true)?;
    let stands = Stands::of(&config.storage, bases::of(user)?, &profile.layers)?;
    let upper = lower::view(&path)?;
    let known = conflicts::known(upper.as_fd(), &stands)?;
    let (mut differing, mut owners) = (Differing::default(), Owners::default());
    if let Some(known) = &known {
        differing = known.differing()?;
        owners = Owners::of(Some(upper.as_fd()), &stands.now, known.inside.keys())?;
    }
    let again = lower::view(&path)?;
    let mut report = conflicts::find(again, &stands)?;
    let written = |path: &[u8]| is_within(path, &DATABASES) || is_within(path, &GENERATED);
    report.conflicts.retain(|conflict| !written(&conflict.path));
    report.untold.retain(|path| !written(path));
    Ok(Findings { profile, upper, stands, known, differing, owners, report })
}

pub(super) fn run(arguments: &Conflicts) -> Result<ExitCode> {
    let user = username(&arguments.user)?;
    let config = configuration()?;
    let findings = look(&config, &user, arguments.profile.as_deref())?;
    if arguments.json {
        say(serde_json::to_string_pretty(&findings.json(&user)).unwrap_or_default());
    } else {
        say(findings.text(&user));
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
struct Json<'a> {
    user: &'a str,
    profile: &'a str,
    /// Topmost first.
    layers: &'a [LayerName],
    bases: Vec<JsonBase<'a>>,
    files: Vec<JsonFile<'a>>,
    /// Paths of which it cannot be told what they were made on, escaped as in the text.
    untold: Vec<String>,
    /// `null`: dpkg inside knows what the layers know.
    packages: Option<&'a Differing>,
}

#[derive(Debug, Serialize)]
struct JsonBase<'a> {
    /// Seconds since 1970.
    since: u64,
    layers: &'a [LayerName],
    /// Whether all of them are still there.
    there: bool,
}

#[derive(Debug, Serialize)]
struct JsonFile<'a> {
    /// With the slash in front. What is no UTF-8 is in hexadecimal digits, by the other key.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    user: Mine,
    layers: Theirs,
    /// As dpkg inside has it.
    package: Option<&'a str>,
}

impl Findings<'_> {
    fn json<'a>(&'a self, user: &'a Username) -> Json<'a> {
        let base = |stand: &'a conflicts::Stand| JsonBase {
            since: seconds(&stand.base),
            layers: &stand.base.layers,
            there: stand.lower.is_some(),
        };
        let file = |conflict: &'a Conflict| {
            let text = std::str::from_utf8(&conflict.path).ok().map(|path| format!("/{path}"));
            let hex =
                || conflict.path.iter().fold(String::from("2f"), |hex, byte| hex + &format!("{byte:02x}"));
            JsonFile {
                path_hex: text.is_none().then(hex),
                path: text,
                user: conflict.mine,
                layers: conflict.theirs,
                package: self.owners.of_path(&conflict.path),
            }
        };
        Json {
            user: user.as_str(),
            profile: &self.profile.name,
            layers: &self.stands.layers,
            bases: self.stands.old.iter().map(base).collect(),
            files: self.report.conflicts.iter().map(file).collect(),
            untold: self.report.untold.iter().map(|path| format!("/{}", shown(path))).collect(),
            packages: self.known.is_some().then_some(&self.differing),
        }
    }

    /// Packages of which dpkg inside and the layers believe different things, by what it is, and how many files are in conflict.
    pub(super) fn packages(&self) -> Vec<(&'static str, &Version, usize)> {
        let mut files: BTreeMap<&str, usize> = BTreeMap::new();
        for conflict in &self.report.conflicts {
            if let Some(package) = self.owners.of_path(&conflict.path) {
                *files.entry(package).or_default() += 1;
            }
        }
        let Differing { installed, upgraded, removed, behind, dropped } = &self.differing;
        let kinds = [
            ("installed by the user", installed),
            ("upgraded by the user", upgraded),
            ("removed by the user", removed),
            ("newer in the layers", behind),
            ("gone from the layers", dropped),
        ];
        let rows = kinds.iter().flat_map(|(what, versions)| versions.iter().map(|version| (*what, version)));
        rows.map(|(what, version)| (what, version, files.get(version.name.as_str()).copied().unwrap_or(0)))
            .collect()
    }

    /// Conflicts that are not a matter of packages which are the user's as a whole.
    pub(super) fn files(&self) -> impl Iterator<Item = &Conflict> {
        let Differing { installed, upgraded, removed, dropped, .. } = &self.differing;
        let whole: BTreeSet<&str> = [installed, upgraded, removed, dropped]
            .into_iter()
            .flatten()
            .map(|version| version.name.as_str())
            .collect();
        self.report.conflicts.iter().filter(move |conflict| {
            self.owners.of_path(&conflict.path).is_none_or(|owner| !whole.contains(owner))
        })
    }

    /// Whether all that the user has was made on the layers of now.
    pub(super) fn is_there_already(&self) -> bool {
        let old = &self.stands.old;
        !old.is_empty()
            && old.iter().all(|stand| stand.base.layers == self.stands.layers)
            && self.differing.behind.is_empty()
            && self.differing.dropped.is_empty()
    }

    fn text(&self, user: &Username) -> String {
        let mut parts = Vec::new();
        let names = |layers: &[LayerName]| {
            layers.iter().map(|layer| shown(layer.as_str().as_bytes())).collect::<Vec<_>>().join(" ")
        };
        let mut bases: Vec<String> = Vec::new();
        for stand in self.stands.old.iter().filter(|stand| stand.base.layers != self.stands.layers) {
            let gone = if stand.lower.is_some() { "" } else { " (not there any more)" };
            bases.push(format!(
                "{}{gone} since {}",
                names(&stand.base.layers),
                local_time(seconds(&stand.base))
            ));
        }
        match bases.is_empty() {
            true => parts.push(format!("{user} is on the layers {}.", names(&self.stands.layers))),
            false => parts.push(format!(
                "{user} was on the layers {}; they are {} now.",
                bases.join(", then on "),
                names(&self.stands.layers)
            )),
        }
        let packages = self.packages();
        if !packages.is_empty() {
            let none = || "-".to_owned();
            let version =
                |version: &Option<String>| version.as_deref().map_or_else(none, |v| shown(v.as_bytes()));
            parts.push(table(
                ["PACKAGE", "INSIDE", "LAYERS", "", "FILES"],
                packages.iter().map(|(what, package, files)| {
                    [
                        shown(package.name.as_bytes()),
                        version(&package.inside),
                        version(&package.layers),
                        (*what).to_owned(),
                        if *files == 0 { String::new() } else { files.to_string() },
                    ]
                }),
            ));
        }
        let files: Vec<[String; 4]> = self.files().map(|conflict| self.row(conflict)).collect();
        if !files.is_empty() {
            parts.push(table(["PATH", "USER", "LAYERS", "PACKAGE"], files.into_iter()));
        }
        if let Some(first) = self.report.untold.first() {
            let why = if self.stands.old.is_empty() { "was never noted" } else { "is not there any more" };
            parts.push(format!(
                "Of {} files it cannot be told, the first of them /{}: what they were made on {why}.",
                self.report.untold.len(),
                shown(first)
            ));
        }
        parts.push(if self.report == Report::default() && packages.is_empty() {
            format!("Nothing that {user} changed is in the way of the layers.")
        } else if self.is_there_already() {
            format!("What {user} installed and removed was made on these layers: nothing is in the way.")
        } else if packages.is_empty() {
            format!("`ojail reset {user} --only PATH` gives what the layers have at a path.")
        } else {
            format!("`ojail rebase {user} --dry-run` tells how the packages would come to the new layers.")
        });
        parts.join("\n\n")
    }

    /// A conflict as a line of a table.
    pub(super) fn row(&self, conflict: &Conflict) -> [String; 4] {
        let mine = match conflict.mine {
            Mine::Changed => "changed",
            Mine::Deleted => "deleted",
            Mine::Replaced => "replaced",
        };
        let theirs = match conflict.theirs {
            Theirs::Changed => "changed",
            Theirs::Added => "added",
            Theirs::Removed => "removed",
        };
        let package = self.owners.of_path(&conflict.path).unwrap_or_default();
        [format!("/{}", shown(&conflict.path)), mine.to_owned(), theirs.to_owned(), shown(package.as_bytes())]
    }
}

fn seconds(base: &Base) -> u64 {
    base.since / 1_000_000_000
}

/// A table for people.
pub(super) fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut builder = Builder::default();
    builder.push_record(head);
    rows.for_each(|row| builder.push_record(row));
    let table = builder.build().with(Style::blank()).to_string();
    table.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}
