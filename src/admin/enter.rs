//! `ojail enter USER [-- COMMAND]`: a session in the jail without SSH, on a terminal of the jail's own.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use super::session::{self, Job, Side};
use super::{configuration, jailed};
use crate::account::Account;
use crate::error::{Error, Result};
use crate::jail::door::House;
use crate::jail::join::Session;
use crate::jail::login::{self, Login, Visitor};
use crate::log::Log;

pub(super) fn run(user: &str, command: &[OsString]) -> Result<ExitCode> {
    let config = configuration()?;
    let (account, _) = jailed(&config, user)?;
    let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let job = Job { account: &account, command, terminal, environment: &[] };
    match session::run(&job, || join(&account, "enter"))? {
        Side::Host(status) | Side::Jail(status) => Ok(status),
    }
}

/// Moves this process into the user's own jail, raising it if need be.
pub(super) fn join(account: &Account, service: &str) -> Result<(Session, House)> {
    let visitor = Visitor { user: account.name.clone(), service: service.into(), from: String::new() };
    match login::open(&visitor, &mut Log::open("ojail"))? {
        Login::Jailed { session, house } => Ok((session, house)),
        Login::Exempt(why) => Err(Error::NotJailed { user: account.name.clone(), why: why.to_string() }),
    }
}
