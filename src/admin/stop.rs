//! `ojail stop USER`: ends the jail; what the user changed stays.

use std::process::ExitCode;

use super::{configuration, farewell, mount, say, username};
use crate::account::{self, Username};
use crate::error::{Error, Result};
use crate::jail::end;
use crate::runtime::Corner;
use crate::{aside, store};

pub(super) fn run(user: &str, force: bool) -> Result<ExitCode> {
    let user = username(user)?;
    known(&user)?;
    let corner = Corner::of(&user);
    let _lock = corner.lock()?;
    if force {
        mount::take_along(&corner)?;
    } else {
        end::not_mounted(&corner)?;
    }
    farewell::bid(&corner, farewell::STOP);
    if end::end(&corner)? {
        say(format_args!("The jail of {user} has ended. What {user} changed is kept."));
    } else {
        say(format_args!("{user} has no running jail; there was nothing to stop."));
    }
    Ok(ExitCode::SUCCESS)
}

/// A name that is neither a user's nor one of an upper, set aside or not, is a slip of the pen, and must not look like success.
pub(super) fn known(user: &Username) -> Result<()> {
    match account::lookup(user.as_str()) {
        Ok(_) => Ok(()),
        // Somebody who is gone, whose upper is not.
        Err(Error::NoSuchUser(name)) => {
            let storage = configuration()?.storage;
            if store::owners(&storage)?.contains(user) || aside::owners(&storage)?.contains(user) {
                Ok(())
            } else {
                Err(Error::NoSuchUser(name))
            }
        }
        Err(e) => Err(e),
    }
}
