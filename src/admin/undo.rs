//! `ojail undo USER`: puts back what a reset cleared.

use std::process::ExitCode;

use super::list::local_time;
use super::{configuration, farewell, profile_of, reset, say, stop, username};
use crate::aside::{Record, Shelf, Why};
use crate::error::{Error, Result};
use crate::ids;
use crate::log::{Level, Log};
use crate::runtime::Corner;

pub(super) fn run(user: &str, name: Option<&str>, force: bool) -> Result<ExitCode> {
    let user = username(user)?;
    stop::known(&user)?;
    let config = configuration()?;
    let corner = Corner::of(&user);
    let _lock = corner.lock()?;
    let shelf = Shelf::of(&config.storage, &user);
    let entry = match name {
        Some(name) => shelf.entry(name)?,
        None => shelf
            .entries()?
            .into_iter()
            .find(|entry| entry.record.why != Why::Snapshot)
            .ok_or_else(|| Error::NothingAside { user: user.to_string() })?,
    };
    if entry.record.why == Why::Snapshot {
        return Err(Error::IsSnapshot { user: user.to_string(), name: entry.name });
    }
    // Who was forgotten, and who has the name by now, may be two.
    let registry = ids::Registry::default();
    let (then, now) = (entry.record.owner, registry.owner(&user)?);
    if let (Some(then), Some(now)) = (then, now) {
        if then.uid != now.uid {
            return Err(Error::OtherOwner { user: user.to_string(), then: then.uid, now: now.uid });
        }
    }
    if reset::ended(&corner, force, farewell::UNDO)? {
        say(format_args!("The jail of {user} has ended."));
    }
    let back = entry.upper();
    if let (Some(then), None) = (then, now) {
        // Before the upper is somebody's, it is known whose.
        registry.adopt(&user, &then)?;
    }
    let replaced = shelf.put_back(&entry, Record::of(Why::Undo, profile_of(&config, &user)))?;
    say(format_args!("{user} has the changes again that were set aside on {}.", local_time(entry.record.at)));
    if let Some(replaced) = replaced {
        say(format_args!("What they replace is set aside in {}.", replaced.upper().display()));
    }
    Log::open("ojail").event(Level::Info, "undo", &[("user", &user), ("from", &back.display())]);
    Ok(ExitCode::SUCCESS)
}
