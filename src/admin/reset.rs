//! `ojail reset USER`, which is also `ojail-shell --reset USER`: clears what the user changed.

use std::process::ExitCode;

use time::OffsetDateTime;
use time::macros::format_description;

use super::list::Session;
use super::{configuration, say, stop, username};
use crate::error::{Act, Error, Result};
use crate::jail::door::{Answer, Door, Request};
use crate::jail::end;
use crate::log::{Level, Log};
use crate::runtime::Corner;
use crate::store;

pub(super) fn run(user: &str, force: bool) -> Result<ExitCode> {
    let user = username(user)?;
    stop::known(&user)?;
    let storage = configuration()?.storage;
    let corner = Corner::of(&user);
    // Held to the end: no login raises a jail on an upper that is on its way out.
    let _lock = corner.lock()?;
    if !force {
        nobody_is_in(&corner)?;
    }
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

/// Refuses while sessions are open: what somebody is at must not vanish by an administrator's slip.
fn nobody_is_in(corner: &Corner) -> Result<()> {
    let Some(door) = Door::knock(corner)? else { return Ok(()) };
    match door.ask(&Request::Status)? {
        None => Ok(()),
        Some(Answer::Status(status)) if status.sessions.is_empty() => Ok(()),
        Some(Answer::Status(status)) => {
            let sessions: Vec<String> =
                status.sessions.into_iter().map(|guest| Session::of(guest).to_string()).collect();
            Err(Error::InUse { user: corner.user().to_string(), sessions: sessions.join("; ") })
        }
        // Raised by another version, which cannot be asked: somebody may be in.
        Some(answer) => Err(Error::Door { user: corner.user().to_string(), answer: format!("{answer:?}") }),
    }
}
