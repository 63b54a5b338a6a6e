//! `ojail snapshot USER [NAME]`, and `ojail snapshot list | restore | remove`: points in time of what a user changed.
//!
//! A snapshot is a copy of the upper on the user's shelf. Its content is shared with the upper where the file system can share files
//! (btrfs, xfs). It is no snapshot of btrfs': uppers are plain directories, so that they change places in one rename.

use std::ffi::CString;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Subcommand;
use rustix::fs::fstatvfs;
use tabled::builder::Builder;
use tabled::settings::Style;

use super::list::local_time;
use super::reset::{ended, nobody_is_in, progress};
use super::status::bytes;
use super::still::{Choice, Still};
use super::{configuration, examples, farewell, profile_of, say, stop, username};
use crate::account::Username;
use crate::aside::{self, Draft, Entry, Record, Shelf, Why};
use crate::bases::Base;
use crate::config::{Config, Storage};
use crate::error::{Act, Error, Result};
use crate::log::{Level, Log};
use crate::runtime::Corner;
use crate::walk::{self, Size};
use crate::{copy, store};

/// What is deleted of a removed snapshot before the command returns. The rest is `ojail tidy`'s.
const TIDY: Duration = Duration::from_secs(1);

/// What to do with snapshots; without a verb, one is made.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Snapshot {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    take: Take,
}

#[derive(Debug, clap::Args)]
struct Take {
    /// Whose changes. A user called like a verb: `ojail snapshot -- list`
    #[arg(required = true)]
    user: Option<String>,
    /// What to call it; else the time
    name: Option<String>,
    #[command(flatten)]
    choice: Choice,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show a user's snapshots
    #[command(after_long_help = examples(&["ojail snapshot list alice"]))]
    List {
        /// Whose
        user: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Go back to a snapshot; what that replaces is set aside, and `ojail undo` puts it back
    #[command(after_long_help = examples(&["ojail snapshot restore alice before-upgrade"]))]
    Restore {
        /// Whose
        user: String,
        /// Which
        name: String,
        /// End open sessions first
        #[arg(long)]
        force: bool,
    },
    /// Delete a snapshot
    #[command(after_long_help = examples(&["ojail snapshot remove alice before-upgrade"]))]
    Remove {
        /// Whose
        user: String,
        /// Which
        name: String,
    },
}

pub(super) fn run(snapshot: &Snapshot) -> Result<ExitCode> {
    let config = configuration()?;
    let known = |user: &str| {
        let user = username(user)?;
        stop::known(&user)?;
        Ok::<_, Error>(user)
    };
    let done = match &snapshot.verb {
        None => {
            let user = known(snapshot.take.user.as_deref().unwrap_or_default())?;
            let name = snapshot.take.name.as_deref().map(parse).transpose()?;
            take(&config, &user, name.as_deref(), &snapshot.take.choice)
        }
        Some(Verb::List { user, json }) => list(&config, &known(user)?, *json),
        Some(Verb::Restore { user, name, force }) => restore(&config, &known(user)?, name, *force),
        Some(Verb::Remove { user, name }) => remove(&config, &known(user)?, name),
    };
    if done.is_err() {
        // Part of a copy may have filled the disk, of everybody's uppers.
        let _ = aside::empty(&config.storage, None);
    }
    done.map(|()| ExitCode::SUCCESS)
}

/// A name that is one file name, no option, and cannot be taken for that of something a reset cleared.
fn parse(name: &str) -> Result<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    // As `aside` has them: 2026-11-24T09.54.46Z.
    let pattern = b"dddd-dd-ddT";
    let like_a_time = name.len() >= pattern.len()
        && name
            .bytes()
            .zip(pattern)
            .all(|(is, &like)| if like == b'd' { is.is_ascii_digit() } else { is == like });
    let bad = name.is_empty() || name.len() > 64 || name.starts_with(['.', '-']) || like_a_time;
    if bad || !name.chars().all(plain) {
        return Err(Error::BadSnapshot { name: name.escape_debug().take(100).collect() });
    }
    Ok(name.to_owned())
}

fn take(config: &Config, user: &Username, name: Option<&str>, choice: &Choice) -> Result<()> {
    let corner = Corner::of(user);
    // Held to the end: a jail that is not running stays so, and one that is, is ours alone to let go on.
    let _lock = corner.lock()?;
    if !store::owners(&config.storage)?.contains(user) {
        return Err(Error::NoUpper { user: user.to_string(), path: config.storage.upperdirs.join(user) });
    }
    let shelf = Shelf::of(&config.storage, user);
    let draft = match name {
        Some(name) => shelf.draft_called(name)?,
        None => shelf.draft_called(&format!("s-{}", aside::stamp()?))?,
    };
    // Before anybody is held up.
    let upper = config.storage.upperdirs.join(user);
    let size = walk::size(walk::open(&upper)?)?;
    let shared = room_for(&draft, size)?;
    let still = choice.hold(&corner)?;
    if matches!(still, Still::Ended) {
        say(format_args!("The jail of {user} has ended."));
    }
    let copied = copied(&config.storage.upperdirs, user.as_str(), &draft, size);
    // It goes on at once, also if there is something to complain about.
    let held = still.done();
    copied?;
    held?;
    let entry = draft.keep(Record::of(Why::Snapshot, profile_of(config, user)))?;
    let how =
        if shared { ", which shares its space with the changes as long as they are the same" } else { "" };
    say(format_args!(
        "\"{}\" is a snapshot of what {user} has changed ({}, {} files and directories{how}); \
         `ojail snapshot restore {user} {0}` goes back to it.",
        entry.name,
        bytes(size.bytes),
        size.inodes
    ));
    log("snapshot", user, &entry);
    Ok(())
}

/// Refuses what would fill the disk on which everybody's uppers are. Returns whether nothing is needed.
pub(super) fn room_for(draft: &Draft<'_>, size: Size) -> Result<bool> {
    let dir = walk::open(draft.dir())?;
    if copy::shares(dir.as_fd()) {
        return Ok(true);
    }
    room(draft.dir(), &dir, size.bytes)?;
    Ok(false)
}

/// Whether so many bytes fit on the file system of a directory.
pub(super) fn room(path: &Path, dir: impl AsFd, needed: u64) -> Result<()> {
    let stat = fstatvfs(dir).act("ask for the room in", path)?;
    let free = stat.f_bavail * stat.f_frsize;
    if needed <= free {
        return Ok(());
    }
    Err(Error::NoSpace { path: path.to_owned(), free: bytes(free), needed: bytes(needed) })
}

/// Copies an upper into a draft.
fn copied(dir: &Path, name: &str, draft: &Draft<'_>, size: Size) -> Result<()> {
    let (from, to) = (walk::open(dir)?, walk::open(draft.dir())?);
    let name = CString::new(name).map_err(std::io::Error::other).act("name", name)?;
    let bar = progress(usize::try_from(size.inodes).unwrap_or(usize::MAX));
    let done = copy::watched(from.as_fd(), &name, to.as_fd(), aside::UPPER, &mut |_| {
        bar.inc(1);
        Ok(())
    });
    bar.finish_and_clear();
    done
}

fn restore(config: &Config, user: &Username, name: &str, force: bool) -> Result<()> {
    let _lock = Corner::of(user).lock()?;
    let shelf = Shelf::of(&config.storage, user);
    let entry = find(&shelf, user, name)?;
    let replaced = replace(config, user, force, &entry.record.bases, |draft| {
        let size = walk::size(walk::open(&entry.upper())?)?;
        room_for(draft, size)?;
        copied(entry.dir(), &aside::UPPER.to_string_lossy(), draft, size)
    })?;
    say(format_args!(
        "{user} has the changes again that \"{}\" has, of {}.",
        entry.name,
        local_time(entry.record.at)
    ));
    tell_replaced(user, replaced.as_ref());
    log("restore", user, &entry);
    empty(&config.storage);
    Ok(())
}

/// Gives a user another upper, which `fill` puts together and which was made on these bases. What it replaces is set aside. The caller holds the user's lock.
pub(super) fn replace(
    config: &Config,
    user: &Username,
    force: bool,
    bases: &[Base],
    fill: impl FnOnce(&Draft<'_>) -> Result<()>,
) -> Result<Option<Entry>> {
    let corner = Corner::of(user);
    // Once before the work; it is asked for again when the jail is to end.
    if !force {
        nobody_is_in(&corner)?;
    }
    let shelf = Shelf::of(&config.storage, user);
    let draft = shelf.draft()?;
    fill(&draft)?;
    if ended(&corner, force, farewell::RESTORE)? {
        say(format_args!("The jail of {user} has ended."));
    }
    draft.commit(Record::of(Why::Restore, profile_of(config, user)), bases)
}

pub(super) fn tell_replaced(user: &Username, replaced: Option<&Entry>) {
    if let Some(entry) = replaced {
        say(format_args!(
            "What they replace is set aside in {}; `ojail undo {user}` puts it back.",
            entry.upper().display()
        ));
    }
}

fn remove(config: &Config, user: &Username, name: &str) -> Result<()> {
    {
        let _lock = Corner::of(user).lock()?;
        let shelf = Shelf::of(&config.storage, user);
        let entry = find(&shelf, user, name)?;
        shelf.discard(&entry)?;
        log("snapshot-removed", user, &entry);
    }
    say(format_args!("The snapshot \"{name}\" of {user} is removed."));
    empty(&config.storage);
    Ok(())
}

/// Deletes what was thrown away, for a moment. What resists is `ojail tidy`'s to tell.
pub(super) fn empty(storage: &Storage) {
    if let Err(e) = aside::empty(storage, Some(Instant::now() + TIDY)) {
        let _ = writeln!(std::io::stderr(), "ojail: {e}");
    }
}

fn find(shelf: &Shelf<'_>, user: &Username, name: &str) -> Result<Entry> {
    let entry = shelf.entries()?.into_iter().find(|entry| entry.name == name);
    entry.filter(|entry| entry.record.why == Why::Snapshot).ok_or_else(|| Error::NoSnapshot {
        user: user.to_string(),
        name: name.escape_debug().take(100).collect(),
    })
}

fn list(config: &Config, user: &Username, json: bool) -> Result<()> {
    let mut rows = Vec::new();
    for entry in Shelf::of(&config.storage, user).entries()? {
        if entry.record.why == Why::Snapshot {
            let size = walk::size(walk::open(&entry.upper())?)?;
            rows.push((entry, size));
        }
    }
    if json {
        let snapshots: Vec<_> = rows
            .iter()
            .map(|(entry, size)| {
                serde_json::json!({
                    "name": entry.name, "at": entry.record.at, "profile": entry.record.profile,
                    "upper": entry.upper(), "bytes": size.bytes, "inodes": size.inodes,
                })
            })
            .collect();
        say(serde_json::json!({ "user": user, "snapshots": snapshots }));
    } else if rows.is_empty() {
        say(format_args!("There is no snapshot of {user}."));
    } else {
        let mut builder = Builder::default();
        builder.push_record(["NAME", "MADE", "SIZE", "FILES", "PROFILE"]);
        for (Entry { name, record, .. }, size) in &rows {
            let profile = record.profile.clone().unwrap_or_default();
            builder.push_record([
                name.clone(),
                local_time(record.at),
                bytes(size.bytes),
                size.inodes.to_string(),
                profile,
            ]);
        }
        let text = builder.build().with(Style::blank()).to_string();
        say(text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n"));
    }
    Ok(())
}

fn log(event: &str, user: &Username, entry: &Entry) {
    Log::open("ojail").event(Level::Info, event, &[("user", user), ("name", &entry.name)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_no_times() {
        for name in ["before-upgrade", "s-2026-11-24T09.54.46Z", "1", "2026-11-24", "a.b_c", &"x".repeat(64)]
        {
            assert_eq!(parse(name).unwrap(), name);
        }
        let long = "x".repeat(65);
        for name in ["", ".", "..", "-x", ".x", "a/b", "a b", "é", "a\n", "2026-11-24T09.54.46Z", &long] {
            assert!(parse(name).is_err(), "{name:?}");
        }
    }
}
