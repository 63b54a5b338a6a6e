//! `ojail list`: every jail, running or not. What is gathered here is also what `ojail top` shows.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::object::Columns;
use tabled::settings::{Alignment, Padding, Style};
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

use super::seats::Processes;
use super::status::{Amount, bytes, measured};
use super::{configuration, say};
use crate::account::{self, Account, Username};
use crate::cgroup::{self, Tree};
use crate::config::{Config, LayerName, Limits};
use crate::error::Result;
use crate::jail::door::{Answer, Door, Guest, PATIENCE, Request};
use crate::jail::login::judge;
use crate::jail::plan;
use crate::jail::temporary::{self, Temporary};
use crate::layers::generations::{self, Names};
use crate::policy::Decision;
use crate::{freezer, quota, runtime, store};

/// One jail, as `--json` prints it: `{ "jails": [ … ], "temporary": [ … ] }`.
#[derive(Debug, Serialize)]
pub(super) struct Jail {
    pub(super) user: Username,
    /// Of a temporary one, which is beside the users' own: its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) run: Option<String>,
    /// The profile that it runs with, or would be raised with; `null` if the user is not jailed any more.
    pub(super) profile: Option<String>,
    pub(super) running: bool,
    /// PID 1 of the jail, as the host counts.
    pub(super) pid: Option<i32>,
    /// Seconds since 1970.
    pub(super) since: Option<u64>,
    pub(super) sessions: Vec<Session>,
    pub(super) processes: usize,
    /// What it stands on, or would be raised on, topmost first, with generations; `null` if that cannot be told.
    pub(super) layers: Option<Vec<LayerName>>,
    /// Whether the user has changes on disk.
    pub(super) upper: bool,
    /// Whether the configuration says something else than what the jail was raised with.
    pub(super) outdated: bool,
    /// Bytes. Used: of a running jail, where a control group counts it.
    pub(super) memory: Amount,
    /// Used: as of memory, microseconds of processor time; most: per cent of one processor.
    pub(super) cpu: Amount,
    /// Bytes of the upper. Used: where there is a quota, and with `--sizes`.
    pub(super) disk: Amount,
    /// Files, directories and the rest in the upper. Used: as of the disk.
    pub(super) inodes: Amount,
    /// Where the administrator has it mounted. Where it is not running, that is what its end left.
    pub(super) mounted: Option<PathBuf>,
}

/// One session, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(super) struct Session {
    /// The PAM service, or `enter`.
    pub(super) service: String,
    /// The remote host; empty for a local session.
    pub(super) from: String,
    /// Its terminals as the jail names them, like `pts/0`; `pts/0 of the host` is one that su or login brought along. Several for
    /// a connection with several channels, none for one without a terminal.
    pub(super) terminals: Vec<String>,
    /// The login process, as the host counts.
    pub(super) pid: u32,
    /// Seconds since 1970.
    pub(super) since: u64,
}

impl Session {
    pub(super) fn of(guest: Guest, processes: &Processes) -> Self {
        let terminals =
            processes.terminals(guest.pid, &guest.service).iter().map(ToString::to_string).collect();
        Self { service: guest.service, from: guest.from, terminals, pid: guest.pid, since: guest.since }
    }

    /// Those of one jail.
    pub(super) fn all(guests: Vec<Guest>, processes: &Processes) -> Vec<Self> {
        guests.into_iter().map(|guest| Self::of(guest, processes)).collect()
    }
}

pub(super) fn run(sizes: bool, json: bool) -> Result<ExitCode> {
    // Running jails are worth showing even under a broken configuration, so that is told last.
    let config = configuration();
    let mut eye = Eye::default();
    let mut jails = eye.look(config.as_ref().ok())?;
    let temporary = eye.look_beside(config.as_ref().ok())?;
    if let (true, Ok(config)) = (sizes, &config) {
        for jail in jails.iter_mut().filter(|jail| jail.upper && jail.disk.used.is_none()) {
            let size = measured(&config.storage.upperdirs.join(&jail.user));
            (jail.disk.used, jail.inodes.used) = (size.map(|size| size.bytes), size.map(|size| size.inodes));
        }
    }
    if json {
        say(serde_json::json!({ "jails": jails, "temporary": temporary }));
    } else if jails.is_empty() && temporary.is_empty() {
        say("No jails: nobody of those who are jailed has logged in yet.");
    } else {
        jails.extend(temporary);
        let cpu = |jail: &Jail| jail.cpu.used.map(processor_time).unwrap_or_default();
        for line in table(&jails, cpu, colours(), WIDTH) {
            say(line);
        }
    }
    config.map(|_| ExitCode::SUCCESS)
}

/// Who looks at all jails, once or again and again.
pub(super) struct Eye {
    /// Who was looked up. Directory services are slow, and `ojail top` looks often.
    accounts: BTreeMap<Username, Option<Account>>,
    /// How long one jail may take to answer.
    patience: Duration,
}

impl Default for Eye {
    fn default() -> Self {
        Self::with_patience(PATIENCE)
    }
}

impl Eye {
    pub(super) fn with_patience(patience: Duration) -> Self {
        Self { accounts: BTreeMap::new(), patience }
    }

    /// Every jail, by the user's name.
    pub(super) fn look(&mut self, config: Option<&Config>) -> Result<Vec<Jail>> {
        let mut jails = BTreeMap::new();
        let mut guests = Vec::new();
        let tree = Tree::find()?;
        let names = config.map(|config| Names::look(&config.storage)).transpose()?.unwrap_or_default();
        let mut mounted = Vec::new();
        for corner in runtime::corners()? {
            if let Ok(Some(path)) = corner.view() {
                mounted.push((corner.user().clone(), path));
            }
            let Some(door) = Door::knock(&corner)? else { continue };
            door.set_patience(self.patience)?;
            let user = corner.user().clone();
            let layers = names.of(&corner.layers()?);
            let mut jail = Jail { running: true, pid: Some(door.pid()), layers, ..resting(user.clone()) };
            if freezer::is_frozen(&corner) {
                // It would not answer before a snapshot or a backup is through with it.
                jails.insert(user, jail);
                continue;
            }
            match door.ask(&Request::Status) {
                Ok(Some(Answer::Status(status))) => {
                    let account = self.account(&user);
                    let now = config.and_then(|config| terms(config, account?));
                    jail.outdated = config.is_some() && now != Some(status.terms);
                    jail.profile = Some(status.profile);
                    jail.since = Some(status.since);
                    jail.processes = status.processes;
                    if let (Some(tree), Some(account)) = (&tree, account) {
                        let cgroup::Use { memory, cpu, .. } = tree.usage(&user, account.uid);
                        (jail.memory.used, jail.cpu.used) = (memory, cpu);
                    }
                    guests.push((user.clone(), status.sessions));
                }
                // Raised by another version of ojail, or stopped: it is there, and more cannot be told. One user's jail must
                // not hide all others.
                Ok(Some(_)) | Err(_) => jail.outdated = true,
                Ok(None) => continue,
            }
            jails.insert(user, jail);
        }
        // The processes after the sessions: those of a session that has just begun are there.
        let processes = if guests.iter().all(|(_, list)| list.is_empty()) {
            Processes::default()
        } else {
            Processes::look()
        };
        for (user, list) in guests {
            if let Some(jail) = jails.get_mut(&user) {
                jail.sessions = Session::all(list, &processes);
            }
        }
        if let Some(config) = config {
            for user in store::owners(&config.storage)? {
                let profile = self.account(&user).and_then(|account| profile(config, account));
                let jail = jails.entry(user.clone()).or_insert_with(|| Jail { profile, ..resting(user) });
                jail.upper = true;
                let used = quota::usage(&config.storage.upperdirs.join(&jail.user));
                (jail.disk.used, jail.inodes.used) =
                    (used.map(|used| used.bytes), used.map(|used| used.inodes));
            }
            for jail in jails.values_mut() {
                let profile = jail.profile.as_ref().and_then(|profile| config.profiles.get(profile));
                let Limits { memory, cpu, disk, inodes, .. } =
                    profile.map(|profile| profile.limits).unwrap_or_default();
                (jail.memory.most, jail.cpu.most, jail.disk.most, jail.inodes.most) =
                    (memory, cpu, disk, inodes);
                if let (Some(profile), false) = (profile, jail.running) {
                    jail.layers = generations::next(&config.storage, &profile.layers).ok();
                }
            }
        }
        for (user, path) in mounted {
            jails.entry(user.clone()).or_insert_with(|| resting(user)).mounted = Some(path);
        }
        Ok(jails.into_values().collect())
    }

    /// The temporary jails that are up, of `ojail run` and `ojail layer derive`.
    pub(super) fn look_beside(&mut self, config: Option<&Config>) -> Result<Vec<Jail>> {
        let mut jails = Vec::new();
        let names = config.map(|config| Names::look(&config.storage)).transpose()?.unwrap_or_default();
        for corner in temporary::corners()? {
            let Some(door) = Door::knock(&corner)? else { continue };
            door.set_patience(self.patience)?;
            let (pid, layers) = (Some(door.pid()), names.of(&corner.layers()?));
            let run = corner.run().map(str::to_owned);
            let mut jail = Jail { run, running: true, pid, layers, ..resting(corner.user().clone()) };
            match door.ask(&Request::Status) {
                Ok(Some(Answer::Status(status))) => {
                    // Whose it is, its one session tells: the corner is called after a process.
                    let uid = status.sessions.first().map(|guest| guest.uid);
                    let uid = uid.filter(|uid| !Temporary::is_nobody(*uid));
                    jail.user = uid.and_then(account::name_of).unwrap_or(jail.user);
                    jail.profile = Some(status.profile);
                    jail.since = Some(status.since);
                    jail.processes = status.processes;
                    jail.sessions = Session::all(status.sessions, &Processes::look());
                }
                Ok(None) => continue,
                // Stopped: it is there, and more cannot be told.
                Ok(Some(_)) | Err(_) => {}
            }
            jails.push(jail);
        }
        jails.sort_by_key(|jail| (jail.since, jail.pid));
        Ok(jails)
    }

    fn account(&mut self, user: &Username) -> Option<&Account> {
        let look_up = || account::lookup(user.as_str()).ok();
        self.accounts.entry(user.clone()).or_insert_with(look_up).as_ref()
    }
}

/// The terms on which a jail would be raised.
fn terms(config: &Config, account: &Account) -> Option<plan::Terms> {
    match judge(config, account).ok()? {
        Decision::Jailed { profile, .. } => plan::terms(config, profile, account).ok(),
        Decision::Exempt(_) => None,
    }
}

/// The profile with which a jail would be raised.
fn profile(config: &Config, account: &Account) -> Option<String> {
    match judge(config, account).ok()? {
        Decision::Jailed { profile, .. } => Some(profile.name.clone()),
        Decision::Exempt(_) => None,
    }
}

fn resting(user: Username) -> Jail {
    Jail {
        user,
        run: None,
        profile: None,
        running: false,
        pid: None,
        since: None,
        sessions: Vec::new(),
        processes: 0,
        layers: None,
        upper: false,
        outdated: false,
        memory: Amount::default(),
        cpu: Amount::default(),
        disk: Amount::default(),
        inodes: Amount::default(),
        mounted: None,
    }
}

/// What a line of the list may take, in columns of a terminal.
const WIDTH: usize = 120;

/// The table's lines, its head first. Columns in which nothing stands are left away; a line ends at `width`.
pub(super) fn table(
    jails: &[Jail],
    cpu: impl Fn(&Jail) -> String,
    colours: bool,
    width: usize,
) -> Vec<String> {
    const HEAD: [&str; 11] = [
        "USER",
        "PROFILE",
        "STATE",
        "SESSIONS",
        "PROCESSES",
        "MEMORY",
        "CPU",
        "UPPER",
        "SINCE",
        "FROM",
        "LAYERS",
    ];
    let size = |amount: Amount| amount.used.map(bytes).unwrap_or_default();
    let rows: Vec<[String; 11]> = jails
        .iter()
        .map(|jail| {
            let mut from: Vec<&str> = jail.sessions.iter().map(origin).collect();
            from.sort_unstable();
            from.dedup();
            [
                jail.user.to_string(),
                jail.profile
                    .clone()
                    .unwrap_or_else(|| if jail.running { "?" } else { "(not jailed)" }.into()),
                state(jail).0.to_owned(),
                count(jail.running, jail.sessions.len()),
                count(jail.running, jail.processes),
                size(jail.memory),
                cpu(jail),
                size(jail.disk),
                jail.since.map(local_time).unwrap_or_default(),
                printable(&from.join(" ")),
                jail.layers.iter().flatten().map(LayerName::as_str).collect::<Vec<_>>().join(" "),
            ]
        })
        .collect();
    let shown: Vec<usize> =
        (0..HEAD.len()).filter(|column| rows.iter().any(|row| !row[*column].is_empty())).collect();
    let mut builder = Builder::default();
    builder.push_record(shown.iter().map(|column| HEAD[*column]));
    for row in &rows {
        builder.push_record(shown.iter().map(|column| row[*column].as_str()));
    }
    let mut table = builder.build();
    table.with(Style::empty()).with(Padding::new(1, 1, 0, 0));
    for (place, _) in shown.iter().enumerate().filter(|(_, column)| (3..8).contains(*column)) {
        table.modify(Columns::one(place), Alignment::right());
    }
    let cut = |line: &str| {
        let line = line.trim_end();
        if line.chars().count() <= width {
            return line.to_owned();
        }
        line.chars().take(width.saturating_sub(1)).chain(['…']).collect()
    };
    let mut lines: Vec<String> = table.to_string().lines().map(cut).collect();
    if colours {
        for (line, jail) in lines.iter_mut().skip(1).zip(jails) {
            let (text, colour) = state(jail);
            // After the name and the profile, which may be such a word themselves.
            let before = 1 + jail.user.as_str().len();
            if let Some(at) = line.get(before..).and_then(|rest| rest.find(&format!(" {text}"))) {
                let at = before + at + 1;
                line.replace_range(at..at + text.len(), &format!("\x1b[{colour}m{text}\x1b[0m"));
            }
        }
    }
    lines
}

/// What a remote host calls itself is not ours to trust with a terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// For people.
impl std::fmt::Display for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.service)?;
        if !self.from.is_empty() {
            write!(f, " from {}", printable(&self.from))?;
        }
        if !self.terminals.is_empty() {
            write!(f, " on {}", self.terminals.join(", "))?;
        }
        write!(f, ", since {}, pid {}", local_time(self.since), self.pid)
    }
}

fn origin(session: &Session) -> &str {
    if session.from.is_empty() { &session.service } else { &session.from }
}

/// The state in a word or two, and its colour.
fn state(jail: &Jail) -> (&'static str, &'static str) {
    if jail.run.is_some() {
        return ("temporary", "32");
    }
    match (jail.running, jail.outdated, jail.mounted.is_some()) {
        (true, false, false) => ("running", "32"),
        (true, false, true) => ("running, mounted", "32"),
        (true, true, false) => ("running, outdated", "33"),
        (true, true, true) => ("running, outdated, mounted", "33"),
        (false, _, false) => ("not running", "2"),
        (false, _, true) => ("ended, but mounted", "31"),
    }
}

fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

fn count(running: bool, number: usize) -> String {
    if running { number.to_string() } else { String::new() }
}

/// Microseconds of processor time.
pub(super) fn processor_time(used: u64) -> String {
    let tenths = used / 100_000;
    match tenths {
        0..600 => format!("{}.{} s", tenths / 10, tenths % 10),
        600..36_000 => format!("{} min", tenths / 600),
        _ => format!("{}.{} h", tenths / 36_000, tenths % 36_000 / 3_600),
    }
}

pub(super) fn local_time(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
    let offset = UtcOffset::current_local_offset().unwrap_or(UtcOffset::UTC);
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]");
    time.and_then(|time| time.to_offset(offset).format(&format).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jail(user: &str) -> Jail {
        Jail { profile: Some("debian".into()), ..resting(Username::parse(user).unwrap()) }
    }

    fn session(from: &str) -> Session {
        Session { service: "sshd".into(), from: from.into(), terminals: Vec::new(), pid: 1, since: 0 }
    }

    #[test]
    fn columns_in_which_nothing_stands_are_left_away() {
        let none = |_: &Jail| String::new();
        assert!(table(&[], none, false, WIDTH).is_empty());
        let resting = table(&[jail("alice")], none, false, WIDTH);
        assert_eq!(resting, [" USER   PROFILE  STATE", " alice  debian   not running"]);
        let running =
            Jail { running: true, sessions: vec![session("10.0.0.7")], processes: 3, ..jail("alice") };
        let lines = table(&[running, jail("running")], none, false, WIDTH);
        assert_eq!(
            lines,
            [
                " USER     PROFILE  STATE        SESSIONS  PROCESSES  FROM",
                " alice    debian   running             1          3  10.0.0.7",
                " running  debian   not running"
            ]
        );
    }

    #[test]
    fn a_full_line_fits_and_a_longer_one_is_cut() {
        let mut full = Jail {
            running: true,
            sessions: vec![session("192.168.100.200")],
            processes: 300,
            since: Some(1_800_000_000),
            ..jail("nginx-test")
        };
        full.memory.used = Some(1_503_238_553);
        full.disk.used = Some(107_374_182_400);
        let cpu = |_: &Jail| "59.9 s".to_owned();
        let lines = table(&[full], cpu, false, WIDTH);
        assert!(lines.iter().all(|line| line.chars().count() < 120 && !line.ends_with('…')), "{lines:#?}");
        let many: Vec<Session> = (0..20).map(|n| session(&format!("2001:db8::{n:x}"))).collect();
        let lines = table(&[Jail { running: true, sessions: many, ..jail("alice") }], cpu, false, WIDTH);
        assert!(lines[1].chars().count() == 120 && lines[1].ends_with('…'), "{lines:#?}");
    }

    #[test]
    fn the_state_is_coloured_and_nothing_that_is_called_like_it() {
        let lines = table(&[Jail { running: true, ..jail("running") }], |_| String::new(), true, WIDTH);
        assert!(lines[1].starts_with(" running  debian   \x1b[32mrunning\x1b[0m"), "{lines:?}");
    }

    #[test]
    fn processor_time_has_a_unit_that_fits() {
        let told = [(0, "0.0 s"), (59_940_000, "59.9 s"), (60_000_000, "1 min"), (5_400_000_000, "1.5 h")];
        for (used, text) in told {
            assert_eq!(processor_time(used), text);
        }
    }

    #[test]
    fn a_remote_host_cannot_write_to_the_terminal_of_the_administrator() {
        let told = Session { terminals: vec!["pts/0".into()], ..session("\x1b[2J\u{9b}evil") }.to_string();
        assert!(told.starts_with("sshd from [2Jevil on pts/0, since "), "{told}");
    }
}
