//! `ojail run USER -- COMMAND` and `ojail run --profile P -- COMMAND`: a command in a jail, for pipes, cron and CI.

use std::ffi::OsString;
use std::process::ExitCode;

use super::session::{self, Job, Side};
use super::{configuration, enter, jailed};
use crate::account::{Account, Groups};
use crate::config::{Config, Profile};
use crate::error::{Error, Result};
use crate::jail::temporary::{Temporary, Whose};
use crate::log::Log;

/// What to run, and where.
#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// Whose jail
    #[arg(required_unless_present = "profile")]
    user: Option<String>,
    /// Not in the user's own jail, but in a new one of the same kind, whose changes are thrown away. A home of the host's and
    /// directories that the profile shows are the real ones
    #[arg(long)]
    ephemeral: bool,
    /// In a new jail of this profile that is nobody's, and whose changes are thrown away: as its root where the profile has `root =
    /// true`, else as a made-up user
    #[arg(long, conflicts_with = "user")]
    profile: Option<String>,
    /// The command
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

pub(super) fn run(run: &Run) -> Result<ExitCode> {
    let config = configuration()?;
    if let Some(name) = &run.profile {
        let profile =
            config.profiles.get(name).ok_or_else(|| Error::NoSuchProfile(name.escape_debug().to_string()))?;
        return temporary(&config, profile, None, &run.command);
    }
    let (account, profile) = jailed(&config, run.user.as_deref().unwrap_or_default())?;
    if run.ephemeral {
        return temporary(&config, profile, Some(&account), &run.command);
    }
    let job = Job { account: &account, command: &run.command, terminal: false, environment: &[] };
    match session::run(&job, || enter::join(&account, "run"))? {
        Side::Host(status) | Side::Jail(status) => Ok(status),
    }
}

/// In a jail that is thrown away.
fn temporary(
    config: &Config,
    profile: &Profile,
    user: Option<&Account>,
    command: &[OsString],
) -> Result<ExitCode> {
    let whose = user.map_or(Whose::Nobody, Whose::User);
    let jail = Temporary::raise(config, profile, whose, &mut Log::open("ojail"))?;
    let account = match user {
        Some(account) => account.clone(),
        None if profile.root => root(jail.account()),
        None => jail.account(),
    };
    let job = Job { account: &account, command, terminal: false, environment: &[] };
    match session::run(&job, || jail.enter("run")) {
        // The jail is for the other process to end.
        Ok(Side::Jail(status)) => Ok(status),
        Ok(Side::Host(status)) => jail.end().map(|()| status),
        Err(error) => {
            // The first thing that went wrong is the one to tell; what is left is cleared by the next run.
            let _ = jail.end();
            Err(error)
        }
    }
}

/// Root of the jail.
pub(super) fn root(account: Account) -> Account {
    Account {
        name: "root".into(),
        uid: 0,
        gid: 0,
        home: "/root".into(),
        groups: Groups::of(Vec::new()),
        ..account
    }
}
