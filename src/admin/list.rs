//! `ojail list`: every jail, running or not.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::process::ExitCode;

use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::Style;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

use super::{configuration, say};
use crate::account::{self, Username};
use crate::config::Config;
use crate::error::Result;
use crate::jail::door::{Answer, Door, Guest, Request, Status};
use crate::jail::plan;
use crate::policy::{Decision, decide};
use crate::{runtime, store};

/// One jail, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Jail {
    user: Username,
    /// The profile that it runs with, or would be raised with; `null` if the user is not jailed any more.
    profile: Option<String>,
    running: bool,
    /// PID 1 of the jail, as the host counts.
    pid: Option<i32>,
    /// Seconds since 1970.
    since: Option<u64>,
    sessions: Vec<Session>,
    processes: usize,
    /// Whether the user has changes on disk.
    upper: bool,
    /// Whether the configuration says something else than what the jail was raised with.
    outdated: bool,
}

/// One session, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Session {
    /// The PAM service, or `enter`.
    pub(super) service: String,
    /// The remote host; empty for a local session.
    pub(super) from: String,
    /// The login process, as the host counts.
    pub(super) pid: u32,
    /// Seconds since 1970.
    pub(super) since: u64,
}

impl Session {
    pub(super) fn of(guest: Guest) -> Self {
        Self { service: guest.service, from: guest.from, pid: guest.pid, since: guest.since }
    }
}

pub(super) fn run(json: bool) -> Result<ExitCode> {
    // Running jails are worth showing even under a broken configuration, so that is told last.
    let config = configuration();
    let mut jails = BTreeMap::new();
    for corner in runtime::corners()? {
        let Some(door) = Door::knock(&corner)? else { continue };
        let user = corner.user().clone();
        match door.ask(&Request::Status) {
            Ok(Some(Answer::Status(status))) => {
                jails.insert(user.clone(), running(user, door.pid(), status, config.as_ref().ok()));
            }
            // Raised by another version of ojail, or stopped: it is there, and more cannot be told. One user's jail must
            // not hide all others.
            Ok(Some(_)) | Err(_) => {
                jails.insert(
                    user.clone(),
                    Jail { pid: Some(door.pid()), running: true, outdated: true, ..resting(user) },
                );
            }
            Ok(None) => {}
        }
    }
    if let Ok(config) = &config {
        for user in store::owners(&config.storage)? {
            jails
                .entry(user.clone())
                .or_insert_with(|| Jail { profile: profile(&user, config), ..resting(user) })
                .upper = true;
        }
    }
    let jails: Vec<Jail> = jails.into_values().collect();
    if json {
        say(serde_json::json!({ "jails": jails }));
    } else if jails.is_empty() {
        say("No jails: nobody of those who are jailed has logged in yet.");
    } else {
        say(table(&jails));
    }
    config.map(|_| ExitCode::SUCCESS)
}

fn running(user: Username, pid: i32, status: Status, config: Option<&Config>) -> Jail {
    let now = config.and_then(|config| {
        let account = account::lookup(user.as_str()).ok()?;
        match decide(config, &account).ok()? {
            Decision::Jailed { profile, .. } => plan::terms(profile, &account).ok(),
            Decision::Exempt(_) => None,
        }
    });
    Jail {
        user,
        profile: Some(status.profile),
        running: true,
        pid: Some(pid),
        since: Some(status.since),
        sessions: status.sessions.into_iter().map(Session::of).collect(),
        processes: status.processes,
        upper: false,
        outdated: config.is_some() && now != Some(status.terms),
    }
}

/// The profile with which a jail would be raised.
fn profile(user: &Username, config: &Config) -> Option<String> {
    let account = account::lookup(user.as_str()).ok()?;
    match decide(config, &account).ok()? {
        Decision::Jailed { profile, .. } => Some(profile.name.clone()),
        Decision::Exempt(_) => None,
    }
}

fn resting(user: Username) -> Jail {
    Jail {
        user,
        profile: None,
        running: false,
        pid: None,
        since: None,
        sessions: Vec::new(),
        processes: 0,
        upper: false,
        outdated: false,
    }
}

fn table(jails: &[Jail]) -> String {
    let mut builder = Builder::default();
    builder.push_record(["USER", "PROFILE", "STATE", "SESSIONS", "PROCESSES", "SINCE", "FROM"]);
    for jail in jails {
        let mut from: Vec<&str> = jail.sessions.iter().map(origin).collect();
        from.dedup();
        builder.push_record([
            jail.user.to_string(),
            jail.profile.clone().unwrap_or_else(|| if jail.running { "?" } else { "(not jailed)" }.into()),
            state(jail),
            count(jail.running, jail.sessions.len()),
            count(jail.running, jail.processes),
            jail.since.map(local_time).unwrap_or_default(),
            // What a remote host calls itself is not ours to trust with a terminal.
            from.join(" ").chars().filter(|c| !c.is_control()).collect(),
        ]);
    }
    let text = builder.build().with(Style::blank()).to_string();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// For people. What a remote host calls itself is not ours to trust with a terminal.
impl std::fmt::Display for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.service)?;
        if !self.from.is_empty() {
            let from: String = self.from.chars().filter(|c| !c.is_control()).collect();
            write!(f, " from {from}")?;
        }
        write!(f, ", since {}, pid {}", local_time(self.since), self.pid)
    }
}

fn origin(session: &Session) -> &str {
    if session.from.is_empty() { &session.service } else { &session.from }
}

fn state(jail: &Jail) -> String {
    let (text, colour) = match (jail.running, jail.outdated) {
        (true, false) => ("running", "32"),
        (true, true) => ("running, outdated", "33"),
        (false, _) => ("not running", "2"),
    };
    let colours =
        std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    if colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

fn count(running: bool, number: usize) -> String {
    if running { number.to_string() } else { String::new() }
}

pub(super) fn local_time(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    let offset = UtcOffset::current_local_offset().unwrap_or(UtcOffset::UTC);
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]");
    time.and_then(|time| time.to_offset(offset).format(&format).ok()).unwrap_or_default()
}
