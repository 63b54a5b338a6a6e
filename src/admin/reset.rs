//! `ojail reset USER`, which is also `ojail-shell --reset USER`: clears what the user changed; and what came of resets.

use std::ffi::{CString, OsStr};
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tabled::builder::Builder;
use tabled::settings::Style;

use super::list::{Session, local_time};
use super::seats::Processes;
use super::status::bytes;
use super::{configuration, farewell, jailed, mount, profile_of, say, stop, username};
use crate::account::Username;
use crate::aside::{self, Draft, Entry, Record, Shelf, Why};
use crate::config::Config;
use crate::error::{Act, Error, Result};
use crate::jail::door::{Answer, Door, Guest, Request};
use crate::jail::end::{self, Ended};
use crate::log::{Level, Log};
use crate::lower::Lower;
use crate::runtime::Corner;
use crate::{bases, layers, spare, store, walk};

/// What a reset deletes of older ones' uppers before it returns. The rest is `ojail tidy`'s.
const TIDY: Duration = Duration::from_secs(1);

/// What and how to clear.
#[derive(Debug, clap::Args)]
pub(super) struct Reset {
    /// Whose jail
    #[arg(required_unless_present = "all")]
    user: Option<String>,
    /// End open sessions first, and unmount what `ojail mount` has mounted
    #[arg(long)]
    force: bool,
    /// Keep what the user changed at this path inside the jail, deletions too; may be repeated
    #[arg(long, value_name = "PATH", conflicts_with_all = ["only", "all"])]
    keep: Vec<PathBuf>,
    /// Clear this path inside the jail and keep all else; may be repeated
    #[arg(long, value_name = "PATH", conflicts_with = "all")]
    only: Vec<PathBuf>,
    /// Tell what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Everybody who has changed something
    #[arg(long, conflicts_with = "user")]
    all: bool,
    /// With --all: only those whose profile this is
    #[arg(long, requires = "all", conflicts_with = "user")]
    profile: Option<String>,
    /// Show what is set aside and can be put back with `ojail undo`
    #[arg(long, conflicts_with_all = ["all", "keep", "only", "dry_run", "force"])]
    list: bool,
    /// With --list: print JSON
    #[arg(long, requires = "list")]
    json: bool,
}

pub(super) fn run(reset: &Reset) -> Result<ExitCode> {
    let config = configuration()?;
    let Some(user) = &reset.user else { return all(&config, reset) };
    let user = username(user)?;
    stop::known(&user)?;
    if reset.list {
        return list(&Shelf::of(&config.storage, &user), &user, reset.json);
    }
    let paths = Paths { keep: inside(&reset.keep, "--keep")?, only: inside(&reset.only, "--only")? };
    if reset.dry_run {
        foretell(&config, &user, &paths)?;
        return Ok(ExitCode::SUCCESS);
    }
    let cleared = clear(&config, &user, reset.force, paths)?;
    if cleared.ended {
        say(format_args!("The jail of {user} has ended."));
    }
    for path in &cleared.unchanged {
        say(format_args!("{user} has not changed {}.", path.display()));
    }
    match &cleared.aside {
        Some(entry) => say(format_args!(
            "{user} has the layers as they are again{}. The changes are set aside in {}; `ojail undo {user}` puts them back.",
            match (entry.record.keep.is_empty(), entry.record.only.is_empty()) {
                (false, _) => format!(", but for {}", names(&entry.record.keep)),
                (_, false) => format!(" at {}", names(&entry.record.only)),
                _ => String::new(),
            },
            entry.upper().display(),
        )),
        None => say(format_args!("{user} has changed nothing; there was nothing to clear.")),
    }
    tidy(&config, &user, Some(Instant::now() + TIDY));
    Ok(ExitCode::SUCCESS)
}

/// Paths inside the jail that a reset treats differently.
#[derive(Debug, Default)]
struct Paths {
    keep: Vec<PathBuf>,
    only: Vec<PathBuf>,
}

/// How a reset came out.
struct Cleared {
    /// Whether a running jail was ended for it.
    ended: bool,
    /// Where the changes went; `None`: there were none.
    aside: Option<Entry>,
    /// Named paths at which there was no change.
    unchanged: Vec<PathBuf>,
}

/// The act itself: lock, end, prepare, one step, record.
fn clear(config: &Config, user: &Username, force: bool, paths: Paths) -> Result<Cleared> {
    let corner = Corner::of(user);
    // Held to the end: no login raises a jail on an upper that is on its way out.
    let _lock = corner.lock()?;
    if !force {
        nobody_is_in(&corner)?;
    }
    let shelf = Shelf::of(&config.storage, user);
    let changed = store::owners(&config.storage)?.contains(user);
    // Before anything ends: what cannot be begun, on a full disk for one, ends nobody's work.
    let draft = if changed { Some(shelf.draft()?) } else { None };
    let ended = ended(&corner, force, farewell::RESET)?;
    let mut cleared = Cleared { ended, aside: None, unchanged: Vec::new() };
    let Some(draft) = draft else { return Ok(cleared) };
    if !(paths.keep.is_empty() && paths.only.is_empty()) {
        cleared.unchanged = spared(config, user, &draft, &paths)?;
    }
    let mut record = Record::of(Why::Reset, profile_of(config, user));
    (record.keep, record.only) = (paths.keep, paths.only);
    // What is spared was made on what all of it was.
    let bases = if record.keep.is_empty() && record.only.is_empty() { Vec::new() } else { bases::of(user)? };
    cleared.aside = draft.commit(record, &bases)?;
    if let Some(entry) = &cleared.aside {
        let aside = entry.upper();
        Log::open("ojail").event(Level::Info, "reset", &[("user", user), ("aside", &aside.display())]);
    }
    Ok(cleared)
}

/// Puts into the draft what is to be spared. Returns named paths at which there was nothing.
fn spared(config: &Config, user: &Username, draft: &Draft<'_>, paths: &Paths) -> Result<Vec<PathBuf>> {
    let (_, profile) = jailed(config, user.as_str())?;
    let lower = Lower::of(&layers::resolve(&config.storage, &profile.layers)?)?;
    if !paths.keep.is_empty() {
        let old = walk::open(&config.storage.upperdirs.join(user))?;
        store::fresh(&draft.upper())?;
        return spare::keep(&old, &walk::open(&draft.upper())?, &lower, &paths.keep);
    }
    let (uppers, shelf) = (walk::open(&config.storage.upperdirs)?, walk::open(draft.dir())?);
    let name = CString::new(user.as_str()).map_err(std::io::Error::other).act("name", user.as_str())?;
    spare::all_but((uppers.as_fd(), &name), (shelf.as_fd(), aside::UPPER), &lower, &paths.only)
}

/// Refuses while sessions are open: what somebody is at must not vanish by an administrator's slip. One may begin right
/// after this; [`ended`] sees that one too.
pub(super) fn nobody_is_in(corner: &Corner) -> Result<()> {
    let Some(door) = Door::knock(corner)? else { return Ok(()) };
    match door.ask(&Request::Status)? {
        None => Ok(()),
        Some(Answer::Status(status)) if status.sessions.is_empty() => Ok(()),
        Some(Answer::Status(status)) => Err(in_use(corner, status.sessions)),
        // Raised by another version, which cannot be asked: somebody may be in.
        Some(answer) => Err(Error::Door { user: corner.user().to_string(), answer: format!("{answer:?}") }),
    }
}

/// Ends the jail, with open sessions only by force, and then with a last line to them. Returns whether there was one.
pub(super) fn ended(corner: &Corner, force: bool, line: &'static str) -> Result<bool> {
    if force {
        mount::take_along(corner)?;
        farewell::bid(corner, line);
        return end::end(corner);
    }
    match end::end_if_empty(corner)? {
        Ended::Now => Ok(true),
        Ended::Before => Ok(false),
        Ended::Not(sessions) => Err(in_use(corner, sessions)),
    }
}

fn in_use(corner: &Corner, sessions: Vec<Guest>) -> Error {
    let sessions = Session::all(sessions, &Processes::look());
    let sessions: Vec<String> = sessions.iter().map(ToString::to_string).collect();
    Error::InUse { user: corner.user().to_string(), sessions: sessions.join("; ") }
}

/// `--dry-run`.
fn foretell(config: &Config, user: &Username, paths: &Paths) -> Result<()> {
    let corner = Corner::of(user);
    if let Some(path) = corner.view()? {
        say(format_args!("Refused at the moment: {}.", Error::ViewOpen { user: user.to_string(), path }));
    } else if let Err(e) = nobody_is_in(&corner) {
        say(format_args!("Refused at the moment: {e}."));
    } else if Door::knock(&corner)?.is_some() {
        say(format_args!("The jail of {user} would be ended; no session is open."));
    }
    let upper = config.storage.upperdirs.join(user);
    if !store::owners(&config.storage)?.contains(user) {
        say(format_args!("{user} has changed nothing; there would be nothing to clear."));
        return Ok(());
    }
    let size = walk::size(walk::open(&upper)?)?;
    let what = match (paths.keep.is_empty(), paths.only.is_empty()) {
        (false, _) => format!("all but {} of the changes", names(&paths.keep)),
        (_, false) => format!("{} of the changes", names(&paths.only)),
        _ => "the changes".into(),
    };
    say(format_args!(
        "Would clear {what} in {} ({}, {} files and directories), and keep a whole copy aside. Nothing was done.",
        upper.display(),
        bytes(size.bytes),
        size.inodes
    ));
    Ok(())
}

/// `--all`: one after the other; one who is refused does not stop the others.
fn all(config: &Config, reset: &Reset) -> Result<ExitCode> {
    if let Some(profile) = &reset.profile {
        if !config.profiles.contains_key(profile) {
            return Err(Error::NoSuchProfile(profile.escape_debug().to_string()));
        }
    }
    let mut users = store::owners(&config.storage)?;
    users.retain(|user| reset.profile.is_none() || profile_of(config, user) == reset.profile);
    if reset.dry_run {
        for user in &users {
            foretell(config, user, &Paths::default())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let bar = progress(users.len());
    let (mut cleared, mut nothing, mut refused) = (0, 0, 0);
    for user in &users {
        bar.set_message(user.to_string());
        match clear(config, user, reset.force, Paths::default()) {
            Ok(Cleared { aside: Some(_), .. }) => cleared += 1,
            Ok(_) => nothing += 1,
            Err(e) => {
                refused += 1;
                bar.suspend(|| {
                    let _ = writeln!(std::io::stderr(), "ojail: {user}: {e}");
                });
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    say(format_args!("{cleared} cleared, {nothing} had changed nothing, {refused} refused."));
    for user in &users {
        tidy(config, user, Some(Instant::now()));
    }
    Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A bar on a terminal, and nothing elsewhere.
pub(super) fn progress(length: usize) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}");
    ProgressBar::with_draw_target(Some(length as u64), target)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// `--list`.
fn list(shelf: &Shelf<'_>, user: &Username, json: bool) -> Result<ExitCode> {
    let entries = shelf.entries()?;
    if json {
        let entries: Vec<_> = entries
            .iter()
            .map(|entry| serde_json::json!({ "name": entry.name, "upper": entry.upper(), "record": entry.record }))
            .collect();
        say(serde_json::json!({ "user": user, "aside": entries }));
    } else if entries.is_empty() {
        say(format_args!("Nothing is set aside for {user}."));
    } else {
        let mut builder = Builder::default();
        builder.push_record(["NAME", "SET ASIDE", "BY", "PROFILE", "PATHS"]);
        for Entry { name, record, .. } in &entries {
            let by = match record.why {
                Why::Reset => "reset",
                Why::Undo => "undo",
                Why::Restore => "restore",
                Why::Rebase => "rebase",
                Why::Forget => "forget",
                Why::Snapshot => "snapshot",
            };
            let paths = match (record.keep.is_empty(), record.only.is_empty()) {
                (false, _) => format!("kept {}", names(&record.keep)),
                (_, false) => format!("cleared {}", names(&record.only)),
                _ => String::new(),
            };
            let profile = record.profile.clone().unwrap_or_default();
            builder.push_record([name.clone(), local_time(record.at), by.into(), profile, paths]);
        }
        let text = builder.build().with(Style::blank()).to_string();
        say(text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Discards what of a user's is past its retention, and deletes what was discarded until the time is up. What does not work is no
/// failure of the act before: `ojail tidy` will tell.
fn tidy(config: &Config, user: &Username, until: Option<Instant>) {
    let corner = Corner::of(user);
    if let Ok(_lock) = corner.lock() {
        let _ = super::tidy::discard(config, user, false);
    }
    let _ = aside::empty(&config.storage, until);
}

/// Paths inside a jail, as an administrator gives them: absolute, and free of `.` and `..`.
pub(super) fn inside(paths: &[PathBuf], option: &'static str) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in paths {
        let bad = |why: &str| {
            Err(Error::BadPath {
                option,
                path: path.display().to_string().escape_debug().to_string(),
                why: why.into(),
            })
        };
        let mut clean = PathBuf::from("/");
        let mut parts = path.components();
        if parts.next() != Some(Component::RootDir) {
            return bad("is not absolute; name it as it is inside the jail, like /etc/nginx");
        }
        for part in parts {
            match part {
                Component::Normal(name) => clean.push(name),
                _ => return bad("leads out of the jail; name it without \"..\""),
            }
        }
        if clean == Path::new("/") {
            return bad(match option {
                "--keep" => "is everything; there would be nothing to clear",
                "--allow" => "is everything; name what is meant",
                "--only" => "is everything; leave --only out",
                _ => "is everything; leave the option out",
            });
        }
        if !all.contains(&clean) {
            all.push(clean);
        }
    }
    Ok(all)
}

fn names(paths: &[PathBuf]) -> String {
    let names: Vec<String> = paths.iter().map(|path| shown(path.as_os_str())).collect();
    names.join(", ")
}

fn shown(name: &OsStr) -> String {
    name.to_string_lossy().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_inside_a_jail_are_absolute_and_stay_there() {
        let parse = |path: &str| inside(&[path.into()], "--keep");
        assert_eq!(parse("/etc/nginx/").unwrap(), [PathBuf::from("/etc/nginx")]);
        assert_eq!(parse("//etc/./nginx").unwrap(), [PathBuf::from("/etc/nginx")]);
        for bad in ["etc", "", "../etc", "/etc/../..", "/"] {
            assert!(parse(bad).unwrap_err().to_string().contains("--keep"), "{bad}");
        }
        let twice = inside(&["/etc".into(), "/etc/".into()], "--only").unwrap();
        assert_eq!(twice.len(), 1);
    }
}
