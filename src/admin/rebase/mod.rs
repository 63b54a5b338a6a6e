//! `ojail rebase USER`: a user's changes on newer layers. The user's own files come along, and their packages are installed again.
//!
//! All of it happens on a copy, in a temporary jail; the user's upper changes places with it in one step at the end
//! ([`crate::aside`]), so that whatever fails before has changed nothing.

mod accounts;
mod own;

use std::collections::BTreeSet;
use std::ffi::{CString, OsString};
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use own::Sorted;

use super::conflicts::{Findings, look, table};
use super::layer::derive::policy;
use super::layer::journal::Journal;
use super::reset::{ended, nobody_is_in, progress};
use super::session::{self, Job, Outcome};
use super::snapshot::{empty, room};
use super::terminal::hold;
use super::{configuration, farewell, jailed, run, say, stop, username};
use crate::account::{Account, Username};
use crate::aside::{self, Entry, Record, Shelf, Why};
use crate::bases::{self, Base};
use crate::changes::shown;
use crate::config::{Config, Profile};
use crate::conflicts::{Differing, Version, read};
use crate::error::{Act, Error, IfThere, Result};
use crate::jail::temporary::{Temporary, Whose};
use crate::log::{Level, Log};
use crate::packages::{self, EXTENDED};
use crate::runtime::{Corner, private_dir};
use crate::{copy, store, walk};

/// Whose changes, and what of them.
#[derive(Debug, clap::Args)]
pub(super) struct Rebase {
    /// Whose changes
    user: String,
    /// Tell what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// End open sessions first
    #[arg(long)]
    force: bool,
    /// Do not install this package again; commas between them, or the option several times
    #[arg(long, value_name = "PACKAGE", value_delimiter = ',', conflicts_with = "files_only")]
    without: Vec<String>,
    /// Install no package again: only the user's own files come along
    #[arg(long)]
    files_only: bool,
}

/// What is told to apt-get, by names of packages.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    install: Vec<String>,
    /// Of these, what nobody asked for by name.
    automatic: Vec<String>,
    remove: Vec<String>,
    /// What is left out by `--without`, or cannot be named.
    without: Vec<String>,
}

/// By `sh`, as root of the jail, with the names of packages to install and (with a `-` behind them) to remove, in one transaction, and to
/// mark as automatic. What is the user's own may be libraries.
const REPLAY: &str = r#"
set -e
apt-get -q update
apt-get -q -y -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold install $1
[ -z "$2" ] || apt-mark auto $2
ldconfig
apt-get -q clean
"#;

pub(super) fn run(rebase: &Rebase) -> Result<ExitCode> {
    let user = username(&rebase.user)?;
    let config = configuration()?;
    stop::known(&user)?;
    let corner = Corner::of(&user);
    // Held to the end: no login raises a jail on an upper that is on its way out.
    let _lock = if rebase.dry_run { None } else { Some(corner.lock()?) };
    let findings = look(&config, &user, None)?;
    let Some(known) = &findings.known else {
        say(format_args!(
            "{user} has installed and removed nothing: dpkg in the jail knows what the layers know, and needs no rebase. \
             `ojail conflicts {user}` tells what of their files is in the way."
        ));
        return Ok(ExitCode::SUCCESS);
    };
    if findings.is_there_already() {
        say(format_args!("{user} is on the layers as they are now; there is nothing to do."));
        return Ok(ExitCode::SUCCESS);
    }
    let plan = Plan::of(&findings, rebase)?;
    let sorted = own::sort(&findings, known, &plan.again(&findings, rebase))?;
    if rebase.dry_run {
        say(told(&user, &findings, &plan, &sorted, rebase));
        if let Err(e) = nobody_is_in(&corner) {
            say(format_args!("\nRefused at the moment: {e}."));
        }
        say("\nNothing was done.");
        return Ok(ExitCode::SUCCESS);
    }
    let (account, _) = jailed(&config, user.as_str())?;
    if !findings.profile.writable {
        let why = format!("profile {} is not writable, so the changes are in no use", findings.profile.name);
        return Err(Error::Rebase { user: user.to_string(), why });
    }
    if !plan.is_empty() && !findings.profile.root {
        let why = format!(
            "profile {} has no root, so packages cannot be installed again; `--files-only` brings the user's own files to the new layers without them",
            findings.profile.name
        );
        return Err(Error::Rebase { user: user.to_string(), why });
    }
    if !rebase.force {
        nobody_is_in(&corner)?;
    }
    let asidedirs = &config.storage.asidedirs;
    store::roots_own_way(asidedirs)?;
    private_dir(asidedirs)?;
    let aside = walk::open(asidedirs)?;
    if !copy::shares(aside.as_fd()) {
        let size = walk::size(walk::open(&config.storage.upperdirs.join(&user))?)?;
        room(asidedirs, &aside, size.bytes)?;
    }
    if ended(&corner, rebase.force, farewell::REBASE)? {
        say(format_args!("The jail of {user} has ended."));
    }
    // What was changed between the first look and the end of the jail.
    let findings = look(&config, &user, None)?;
    let Some(known) = &findings.known else {
        let why = "dpkg's database has just been removed in the jail; try again".into();
        return Err(Error::Rebase { user: user.to_string(), why });
    };
    let plan = Plan::of(&findings, rebase)?;
    let sorted = own::sort(&findings, known, &plan.again(&findings, rebase))?;
    let told = told(&user, &findings, &plan, &sorted, rebase);
    let moved = Move { config: &config, user: &user, findings: &findings, sorted: &sorted };
    let done = if plan.is_empty() { moved.files() } else { moved.packages(&account, &plan) };
    let entry = match done {
        Ok(Done::Host(entry)) => entry,
        // The jail, and all else, is for the other process.
        Ok(Done::Jail(status)) => return Ok(ExitCode::from(status)),
        Err(error) => {
            // Part of a copy may have filled the disk, of everybody's uppers.
            let _ = aside::empty(&config.storage, None);
            return Err(error);
        }
    };
    say(told);
    tell(&config, &user, entry.as_ref());
    Ok(ExitCode::SUCCESS)
}

fn tell(config: &Config, user: &Username, entry: Option<&Entry>) {
    if let Some(entry) = entry {
        say(format_args!(
            "\n{user} is on the new layers. The changes as they were are set aside in {}; `ojail undo {user}` puts them back.",
            entry.upper().display()
        ));
        let aside = entry.upper();
        Log::open("ojail").event(Level::Info, "rebase", &[("user", user), ("aside", &aside.display())]);
    }
    empty(&config.storage);
}

impl Plan {
    fn of(findings: &Findings<'_>, rebase: &Rebase) -> Result<Self> {
        let mut plan = Self::default();
        if rebase.files_only {
            return Ok(plan);
        }
        let automatic = read(findings.upper.as_fd(), EXTENDED)?.map(|text| packages::automatic(&text));
        let automatic = automatic.unwrap_or_default();
        let plain = |version: &Version| version.name.split(':').next().unwrap_or_default().to_owned();
        let differing = &findings.differing;
        let named: BTreeSet<String> =
            differing.installed.iter().chain(&differing.upgraded).map(plain).collect();
        if let Some(name) = rebase.without.iter().find(|name| !named.contains(*name)) {
            let why = format!(
                "--without \"{}\": that is none of the packages to install again; `--dry-run` shows them",
                shown(name.as_bytes())
            );
            return Err(Error::Rebase { user: rebase.user.clone(), why });
        }
        let mut install = |version: &Version, asked: bool| {
            let name = plain(version);
            if rebase.without.contains(&name) || !packages::is_name(&version.name) {
                plan.without.push(version.name.clone());
            } else if asked {
                plan.install.push(version.name.clone());
            }
        };
        // What came for others comes for them again.
        differing.installed.iter().for_each(|version| install(version, !automatic.contains(&plain(version))));
        differing.upgraded.iter().for_each(|version| install(version, true));
        let marked = differing.upgraded.iter().filter(|version| automatic.contains(&plain(version)));
        plan.automatic =
            marked.map(|version| version.name.clone()).filter(|name| plan.install.contains(name)).collect();
        plan.remove = differing
            .removed
            .iter()
            .map(|version| version.name.clone())
            .filter(|name| packages::is_name(name))
            .collect();
        Ok(plan)
    }

    /// The packages whose files come again.
    fn again<'a>(&self, findings: &'a Findings<'_>, rebase: &Rebase) -> BTreeSet<&'a str> {
        let Differing { installed, upgraded, .. } = &findings.differing;
        installed
            .iter()
            .chain(upgraded)
            .map(|version| version.name.as_str())
            .filter(|name| !rebase.files_only && !self.without.iter().any(|without| without == name))
            .collect()
    }

    fn is_empty(&self) -> bool {
        self.install.is_empty() && self.remove.is_empty()
    }

    fn command(&self) -> Vec<OsString> {
        let away = self.remove.iter().map(|name| format!("{name}-"));
        let words = [self.install.iter().cloned().chain(away).collect(), self.automatic.clone()];
        let words = words.map(|names: Vec<String>| names.join(" "));
        ["/bin/sh", "-c", REPLAY, "rebase"].iter().map(Into::into).chain(words.map(Into::into)).collect()
    }
}

/// What it comes to, for people.
fn told(user: &Username, findings: &Findings<'_>, plan: &Plan, sorted: &Sorted, rebase: &Rebase) -> String {
    let mut parts = Vec::new();
    let rows: Vec<[String; 4]> = findings
        .packages()
        .iter()
        .map(|(what, version, _)| {
            let known =
                |version: &Option<String>| version.as_deref().map_or("-".to_owned(), |v| shown(v.as_bytes()));
            let done = match *what {
                "newer in the layers" => "as in the layers",
                "gone from the layers" => "gone",
                _ if plan.install.contains(&version.name) => "installed again",
                _ if plan.remove.contains(&version.name) => "removed again",
                _ if plan.without.contains(&version.name) || rebase.files_only => "not installed",
                "removed by the user" => "as in the layers",
                _ => "as others need it",
            };
            [
                shown(version.name.as_bytes()),
                known(&version.inside),
                known(&version.layers),
                format!("{what}: {done}"),
            ]
        })
        .collect();
    if !rows.is_empty() {
        parts.push(table(["PACKAGE", "INSIDE", "LAYERS", ""], rows.into_iter()));
    }
    parts.push(format!(
        "{} files of {user}'s own come along; {} of packages' stay behind.",
        sorted.own,
        sorted.behind.len()
    ));
    let list = |what: &str, paths: &[Vec<u8>]| {
        let lines = paths.iter().map(|path| format!("  /{}", shown(path)));
        format!("{what}\n{}", lines.collect::<Vec<_>>().join("\n"))
    };
    if !sorted.edited.is_empty() {
        parts.push(list("Files of packages that come along, because they were edited:", &sorted.edited));
    }
    if !sorted.lost.is_empty() {
        parts.push(list(
            "Changed by hand, and brought anew by packages that are installed again:",
            &sorted.lost,
        ));
    }
    let left: Vec<Vec<u8>> = findings
        .report
        .conflicts
        .iter()
        .map(|conflict| &conflict.path)
        .filter(|path| !sorted.behind.contains(*path) && !is_account(path))
        .cloned()
        .collect();
    if !left.is_empty() {
        parts.push(list("In the way of what the layers have there now, and to be looked at:", &left));
    }
    let unknown =
        findings.stands.old.iter().any(|stand| stand.lower.is_none()) || findings.stands.old.is_empty();
    if unknown && !findings.differing.installed.is_empty() {
        parts.push(format!(
            "Not all of the layers that {user} was on are still there: of the packages above, some may have been these layers'."
        ));
    }
    for (file, merged) in &sorted.accounts {
        if !merged.other_number.is_empty() {
            let names: Vec<String> = merged.other_number.iter().map(|name| shown(name.as_bytes())).collect();
            parts.push(format!(
                "/etc/{file} keeps the numbers of {}, for which the layers have others now.",
                names.join(", ")
            ));
        }
        if !merged.left_out.is_empty() {
            let names: Vec<String> = merged.left_out.iter().map(|name| shown(name.as_bytes())).collect();
            parts.push(format!(
                "/etc/{file} does without {} of the layers: somebody inside has the number.",
                names.join(", ")
            ));
        }
    }
    parts.join("\n\n")
}

/// Whether this is put together of both sides.
fn is_account(path: &[u8]) -> bool {
    path.strip_prefix(b"etc/")
        .is_some_and(|name| accounts::FILES.iter().any(|(file, _)| file.as_bytes() == name))
}

/// How it came out, and in which process.
#[allow(clippy::large_enum_variant, reason = "there is one, and it is moved once")]
enum Done {
    Host(Option<Entry>),
    Jail(u8),
}

/// The act itself.
struct Move<'a> {
    config: &'a Config,
    user: &'a Username,
    findings: &'a Findings<'a>,
    sorted: &'a Sorted,
}

impl Move<'_> {
    /// Without packages.
    fn files(&self) -> Result<Done> {
        let shelf = Shelf::of(&self.config.storage, self.user);
        let draft = shelf.draft()?;
        self.fill(&draft.upper())?;
        draft.commit(self.record(), &self.bases()).map(Done::Host)
    }

    /// Fills a directory, which may be there and is empty then, with what is the user's own.
    fn fill(&self, upper: &Path) -> Result<()> {
        let bar = progress(usize::try_from(self.sorted.own).unwrap_or(usize::MAX));
        let name = |name: &std::ffi::OsStr| {
            use std::os::unix::ffi::OsStrExt;
            CString::new(name.as_bytes()).map_err(std::io::Error::other).act("name", upper)
        };
        fs::remove_dir(upper).if_there().act("remove", upper)?;
        let (from, to) =
            (walk::open(&self.config.storage.upperdirs)?, walk::open(upper.parent().unwrap_or(upper))?);
        let new = name(upper.file_name().unwrap_or_default())?;
        let copied =
            copy::watched(from.as_fd(), &name(self.user.as_str().as_ref())?, to.as_fd(), &new, &mut |_| {
                bar.inc(1);
                Ok(())
            });
        bar.finish_and_clear();
        copied?;
        own::strip(&walk::open(upper)?, self.findings, self.sorted)
    }

    /// With packages, in a temporary jail.
    fn packages(&self, account: &Account, plan: &Plan) -> Result<Done> {
        let mut journal =
            Journal::of("rebase", self.user.as_str(), &[], |user, why| Error::Rebase { user, why })?;
        let profile = self.profile();
        // From here on an interruption is the command's to hear, once it is there, and all comes to an end in order.
        hold()?;
        let mut log = Log::open("ojail");
        let jail = Temporary::raise_on(self.config, &profile, Whose::User(account), &mut log, |upper| {
            self.fill(upper)
        })
        .map_err(|e| journal.failed(&e.to_string()))?;
        let root = run::root(account.clone());
        let command = plan.command();
        // Nobody is there to answer questions. And nothing of the administrator's: what is run is the user's.
        let environment = [("DEBIAN_FRONTEND".into(), "noninteractive".into())];
        let job = Job { account: &root, command: &command, terminal: false, environment: &environment };
        let done = session::heard(&job, || jail.enter("rebase"), &mut |bytes| journal.hear(bytes));
        let why = match done {
            Ok(Outcome::Jail(status)) => return Ok(Done::Jail(status)),
            Ok(Outcome::Host { signal: Some(signal), .. }) => format!("interrupted by {signal}"),
            Ok(Outcome::Host { status: 0, .. }) => {
                journal.quiet();
                return self.keep(jail, plan).map(Done::Host).map_err(|e| journal.failed(&e.to_string()));
            }
            Ok(Outcome::Host { status, .. }) => format!("apt-get failed with status {status}"),
            Err(error) => error.to_string(),
        };
        let error = journal.failed(&why);
        // The first thing that went wrong is the one to tell; what is left is cleared by the next temporary jail.
        let _ = jail.end();
        Err(error)
    }

    /// Makes the temporary jail's upper the user's.
    fn keep(&self, jail: Temporary, plan: &Plan) -> Result<Option<Entry>> {
        jail.end_and(|upper| {
            self.compare(upper, plan)?;
            let shelf = Shelf::of(&self.config.storage, self.user);
            let draft = shelf.draft()?;
            fs::rename(upper, draft.upper()).act("move", upper)?;
            draft.commit(self.record(), &self.bases())
        })
    }

    /// Refuses what apt-get has made of it, if it is not what was planned.
    fn compare(&self, upper: &Path, plan: &Plan) -> Result<()> {
        let Some(known) = &self.findings.known else { return Ok(()) };
        let status = read(walk::open(upper)?.as_fd(), packages::STATUS)?;
        let there = status.map_or_else(|| known.now.clone(), |text| packages::parse(&text));
        let wanted = plan.install.iter().chain(known.now.keys()).filter(|name| !plan.remove.contains(name));
        let missing: Vec<String> =
            wanted.filter(|name| !there.contains_key(*name)).map(|name| shown(name.as_bytes())).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let why = format!(
            "without {} it would not be what it was; apt-get removed that for others",
            missing.join(", ")
        );
        Err(Error::Rebase { user: self.user.to_string(), why })
    }

    /// The user's own, but that no service is started.
    fn profile(&self) -> Profile {
        let mut profile = self.findings.profile.clone();
        // What was found, not what its link says a moment later.
        profile.layers.clone_from(&self.findings.stands.layers);
        profile.binds.push(policy());
        profile
    }

    fn record(&self) -> Record {
        Record::of(Why::Rebase, Some(self.findings.profile.name.clone()))
    }

    fn bases(&self) -> [Base; 1] {
        [Base { since: bases::now(), layers: self.findings.stands.layers.clone() }]
    }
}
