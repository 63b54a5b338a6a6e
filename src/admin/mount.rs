//! `ojail mount USER` and `ojail umount USER`: the running jail's file system for the administrator, in the host's mount table.

use std::process::ExitCode;

use super::{configuration, jailed, say, stop, username};
use crate::error::Result;
use crate::jail::view::{self, Outcome};
use crate::log::Log;
use crate::runtime::Corner;

pub(super) fn mount(user: &str, readonly: bool) -> Result<ExitCode> {
    let config = configuration()?;
    let (account, profile) = jailed(&config, user)?;
    let how = if readonly { ", read-only" } else { "" };
    match view::open(&config, profile, &account, readonly, &mut Log::open("ojail"))? {
        Outcome::Done(path) => {
            say(format_args!("The jail of {} is mounted at {}{how}.", account.name, path.display()));
        }
        Outcome::Already(path) => {
            let path = path.unwrap_or_default();
            say(format_args!("The jail of {} is mounted at {}{how} already.", account.name, path.display()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn umount(user: &str) -> Result<ExitCode> {
    let user = username(user)?;
    stop::known(&user)?;
    let corner = Corner::of(&user);
    let _lock = corner.lock()?;
    match view::close(&corner, &mut Log::open("ojail"))? {
        Outcome::Done(path) => {
            say(format_args!("The jail of {user} is not mounted at {} any more.", path.display()))
        }
        Outcome::Already(_) => {
            say(format_args!("The jail of {user} is not mounted; there was nothing to unmount."));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Before a jail is ended by force. The caller holds the user's lock.
pub(super) fn take_along(corner: &Corner) -> Result<()> {
    if let Outcome::Done(path) = view::close(corner, &mut Log::open("ojail"))? {
        say(format_args!("The jail of {} is not mounted at {} any more.", corner.user(), path.display()));
    }
    Ok(())
}
