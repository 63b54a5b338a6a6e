//! `ojail tidy`: deletes what is past its retention. Run by a timer, and by hand.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use super::{configuration, say};
use crate::account::Username;
use crate::aside::{self, Record, Shelf, Why};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::jail::door::Door;
use crate::jail::{temporary, view};
use crate::runtime::{Corner, corners};
use crate::{freezer, runtime, walk};

pub(super) fn run(dry_run: bool) -> Result<ExitCode> {
    let config = configuration()?;
    let mut failed = false;
    let mut complain = |what: &dyn std::fmt::Display| {
        failed = true;
        let _ = writeln!(std::io::stderr(), "ojail: {what}");
    };
    for corner in runtime::corners()? {
        freezer::thaw_abandoned(&corner);
    }
    let mut number = 0;
    for user in aside::owners(&config.storage)? {
        let corner = Corner::of(&user);
        let had_corner = corner.exists();
        // Held for a few renames only: a login must not wait for a deletion.
        let tidy = || {
            let _lock = corner.lock()?;
            let names = discard(&config, &user, dry_run)?;
            if !dry_run {
                aside::tidy(&config.storage, &user);
            }
            // A place in /run for who has none is for the lock only.
            if !had_corner && Door::knock(&corner)?.is_none() && corner.gone(Duration::ZERO)? {
                corner.remove()?;
            }
            Ok::<_, Error>(names)
        };
        match tidy() {
            Ok(names) => {
                number += names.len();
                for name in names {
                    let would = if dry_run { "would delete" } else { "deleting" };
                    say(format_args!("{user}: {would} what was set aside as {name}"));
                }
            }
            Err(e) => complain(&format_args!("{user}: {e}")),
        }
    }
    if !dry_run {
        temporary::sweep(&config.storage);
        for corner in corners()? {
            let forget = || match view::is_stale(&corner)? {
                true => corner.lock().and_then(|_lock| view::forget(&corner)),
                false => Ok(()),
            };
            if let Err(e) = forget() {
                complain(&format_args!("{}: {e}", corner.user()));
            }
        }
        for error in aside::empty(&config.storage, None)? {
            complain(&error);
        }
    }
    if number == 0 && !failed {
        say("Nothing is past its retention.");
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Takes what is past its retention off a user's shelf, and returns the names. The caller holds the user's lock.
pub(super) fn discard(config: &Config, user: &Username, dry_run: bool) -> Result<Vec<String>> {
    let shelf = Shelf::of(&config.storage, user);
    if !dry_run {
        shelf.settle()?;
    }
    let now = Record::of(Why::Reset, None).at;
    let size = |entry: &aside::Entry| Ok(walk::size(walk::open(&entry.upper())?)?.bytes);
    let expired = aside::expired(shelf.entries()?, now, config.reset.keep, config.reset.max_size, size)?;
    let mut names = Vec::new();
    for entry in expired {
        if !dry_run {
            shelf.discard(&entry)?;
        }
        names.push(entry.name);
    }
    Ok(names)
}
