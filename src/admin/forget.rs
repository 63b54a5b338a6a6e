//! `ojail forget USER`: lets go of what is kept of a user who is gone. The changes are set aside first, for as long as the retention.
//!
//! After a kill, the next `forget` goes on where this one stopped: each step finds what is left to do.

use std::ffi::CString;
use std::fs;
use std::os::fd::AsFd;
use std::process::ExitCode;

use super::reset::ended;
use super::snapshot::empty;
use super::{configuration, farewell, jailed, say, stop, username};
use crate::account::{self, Username};
use crate::aside::{Record, Shelf, Why};
use crate::config::Config;
use crate::error::{Act, Error, IfThere, Result};
use crate::ids::Registry;
use crate::log::{Level, Log};
use crate::runtime::Corner;
use crate::{bases, store, walk};

pub(super) fn run(user: &str, force: bool, snapshots: bool) -> Result<ExitCode> {
    let user = username(user)?;
    let config = configuration()?;
    let registry = Registry::default();
    // Somebody of whom only the id range is left can be forgotten, too.
    if registry.owner(&user)?.is_none() {
        stop::known(&user)?;
    }
    if !force {
        is_gone(&config, &user)?;
    }
    let corner = Corner::of(&user);
    let lock = corner.lock()?;
    if ended(&corner, force, farewell::FORGET)? {
        say(format_args!("The jail of {user} has ended."));
    }
    let mut nothing = true;
    let mut done = |what: std::fmt::Arguments<'_>| {
        nothing = false;
        say(what);
    };
    let shelf = Shelf::of(&config.storage, &user);
    let owner = registry.owner(&user)?;
    if store::owners(&config.storage)?.contains(&user) {
        let mut record =
            Record::of(Why::Forget, jailed(&config, user.as_str()).ok().map(|(_, p)| p.name.clone()));
        record.owner = owner;
        if let Some(entry) = shelf.draft()?.commit(record, &[])? {
            done(format_args!(
                "The changes of {user} are set aside in {}; `ojail undo {user}` puts them back.",
                entry.upper().display()
            ));
        }
    }
    if remove_work(&config, &user)? {
        done(format_args!("The work directory of {user} is removed."));
    }
    if let Some(owner) = registry.release(&user)? {
        match owner.pool {
            Some(first) => done(format_args!("The ids from {first} on are free for others.")),
            None => done(format_args!("It is not on record any more whose the name {user} is.")),
        }
    }
    for line in registry.lines(&user, owner.map(|owner| owner.uid))? {
        say(format_args!("{line} is not ojail's to take out; `userdel` and `usermod --del-subuids` do."));
    }
    let kept: Vec<_> =
        shelf.entries()?.into_iter().filter(|entry| entry.record.why == Why::Snapshot).collect();
    for entry in &kept {
        if snapshots {
            shelf.discard(entry)?;
            done(format_args!("The snapshot \"{}\" is removed.", entry.name));
        } else {
            say(format_args!(
                "The snapshot \"{}\" stays; `ojail snapshot remove {user} {0}` removes it.",
                entry.name
            ));
        }
    }
    if nothing {
        say(format_args!("There is nothing of {user} to forget."));
    } else {
        Log::open("ojail").event(Level::Info, "forget", &[("user", &user)]);
    }
    bases::put(&user, &[])?;
    // The lock last: it is in there.
    corner.remove()?;
    drop(lock);
    empty(&config.storage);
    Ok(ExitCode::SUCCESS)
}

/// Whether nobody can log in to a jail by this name any more.
fn is_gone(config: &Config, user: &Username) -> Result<()> {
    match account::lookup(user.as_str()) {
        Err(Error::NoSuchUser(_)) => return Ok(()),
        found => found?,
    };
    match jailed(config, user.as_str()) {
        Ok((_, profile)) => Err(Error::NotGone { user: user.to_string(), profile: profile.name.clone() }),
        Err(Error::NotJailed { .. }) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Removes overlayfs' work directory. Returns whether there was one.
fn remove_work(config: &Config, user: &Username) -> Result<bool> {
    let dirs = &config.storage.workdirs;
    let path = dirs.join(user);
    if fs::symlink_metadata(&path).if_there().act("examine", &path)?.is_none() {
        return Ok(false);
    }
    store::roots_own_way(&path)?;
    let name = CString::new(user.as_str()).map_err(std::io::Error::other).act("name", user.as_str())?;
    walk::remove(walk::open(dirs)?.as_fd(), &name, None)
}
