//! `ojail reset USER`, which is also `ojail-shell --reset USER`: clears what the user changed.

use std::process::ExitCode;

use time::OffsetDateTime;
use time::macros::format_description;

use super::{configuration, say, stop, username};
use crate::error::{Act, Result};
use crate::jail::end;
use crate::log::{Level, Log};
use crate::runtime::Corner;
use crate::store;

pub(super) fn run(user: &str) -> Result<ExitCode> {
    let user = username(user)?;
    stop::known(&user)?;
    let storage = configuration()?.storage;
    let corner = Corner::of(&user);
    // Held to the end: no login raises a jail on an upper that is on its way out.
    let _lock = corner.lock()?;
    if end::end(&corner)? {
        say(format_args!("The jail of {user} has ended."));
    }
    let stamp = OffsetDateTime::now_utc()
        .format(format_description!("[year]-[month]-[day]T[hour].[minute].[second]Z"))
        .map_err(std::io::Error::other)
        .act("write", "the time")?;
    match store::set_aside(&storage, &user, &stamp)? {
        Some(aside) => {
            say(format_args!(
                "{user} has the layers as they are again. The changes are set aside in {}.",
                aside.display()
            ));
            Log::open("ojail").event(Level::Info, "reset", &[("user", &user), ("aside", &aside.display())]);
        }
        None => say(format_args!("{user} has changed nothing; there was nothing to clear.")),
    }
    Ok(ExitCode::SUCCESS)
}
