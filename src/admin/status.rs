//! `ojail status USER`: one jail in full, and what it takes of what it may.

use std::fs::File;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{Mode, OFlags, ResolveFlags, fstatvfs, openat2};
use serde::Serialize;

use super::list::{Session, local_time};
use super::seats::Processes;
use super::{configuration, jailed, say, username};
use crate::account::Account;
use crate::aside::{Shelf, Why};
use crate::cgroup::Tree;
use crate::config::{Config, LayerName, Network, Profile};
use crate::error::{Error, Result};
use crate::jail::door::{Answer, Door, Request};
use crate::jail::plan;
use crate::layers::generations::{self, Names};
use crate::runtime::Corner;
use crate::walk::{self, Size};
use crate::{ids, quota};

/// A jail, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Status {
    user: String,
    /// The profile that the configuration gives the user now.
    profile: String,
    /// What it stands on, or would be raised on, topmost first, with generations.
    layers: Vec<LayerName>,
    network: Network,
    reach: Vec<String>,
    publish: Vec<String>,
    running: bool,
    /// PID 1 of the jail, as the host counts.
    pid: Option<i32>,
    /// Seconds since 1970.
    since: Option<u64>,
    /// Where the administrator has it mounted.
    mounted: Option<PathBuf>,
    sessions: Vec<Session>,
    processes: usize,
    /// Whether the configuration says something else than what the jail was raised with.
    outdated: bool,
    /// First uid and gid of the 65536 that are the jail's; `null` before the first login.
    ids: Option<(u32, u32)>,
    memory: Amount,
    tasks: Amount,
    /// Used: microseconds of processor time; most: per cent of one processor.
    cpu: Amount,
    /// Most: bytes a second, each way. What is used is not counted.
    io: Amount,
    /// Bytes of the upper: the quota's figure, which has the work directory in it, or what a walk counts.
    disk: Amount,
    /// Files, directories and the rest in the upper; as of the disk.
    inodes: Amount,
    /// Bytes in `/tmp`, `/run` and `/dev/shm`.
    in_memory: Amount,
    /// When the last reset was, as far as what it cleared is still set aside; seconds since 1970.
    last_reset: Option<u64>,
}

/// What is used of something, and the most that may be. `null`: not known, and not limited.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Amount {
    pub(super) used: Option<u64>,
    pub(super) most: Option<u64>,
}

pub(super) fn run(user: &str, json: bool) -> Result<ExitCode> {
    let user = username(user)?;
    let config = configuration()?;
    let (account, profile) = jailed(&config, user.as_str())?;
    let status = status(&config, profile, &account)?;
    if json {
        say(serde_json::json!(status));
    } else {
        say(text(&status));
    }
    Ok(ExitCode::SUCCESS)
}

fn status(config: &Config, profile: &Profile, account: &Account) -> Result<Status> {
    let user = username(&account.name)?;
    let limits = profile.limits;
    let used = match Tree::find()? {
        Some(tree) => tree.usage(&user, account.uid),
        None => crate::cgroup::Use::default(),
    };
    let path = config.storage.upperdirs.join(&user);
    let upper = match quota::usage(&path) {
        Some(used) => Some(Size { bytes: used.bytes, inodes: used.inodes }),
        None => measured(&path),
    };
    let shelf = Shelf::of(&config.storage, &user).entries()?;
    let reset = shelf.iter().find(|entry| entry.record.why == Why::Reset);
    let mut status = Status {
        profile: profile.name.clone(),
        layers: match Names::look(&config.storage)?.of(&Corner::of(&user).layers()?) {
            Some(layers) => layers,
            None => {
                generations::next(&config.storage, &profile.layers).unwrap_or_else(|_| profile.layers.clone())
            }
        },
        network: profile.network,
        reach: profile.reach.iter().map(ToString::to_string).collect(),
        publish: profile.publish.iter().map(ToString::to_string).collect(),
        running: false,
        pid: None,
        since: None,
        mounted: Corner::of(&user).view()?,
        sessions: Vec::new(),
        processes: 0,
        outdated: false,
        ids: ids::Registry::default().foresee(&user, account)?.map(|ranges| (ranges.uid, ranges.gid)),
        memory: Amount { used: used.memory, most: limits.memory },
        tasks: Amount { used: used.tasks, most: limits.tasks },
        cpu: Amount { used: used.cpu, most: limits.cpu },
        io: Amount { used: None, most: limits.io },
        disk: Amount { used: upper.map(|used| used.bytes), most: limits.disk },
        inodes: Amount { used: upper.map(|used| used.inodes), most: limits.inodes },
        in_memory: Amount { used: None, most: limits.disk },
        last_reset: reset.map(|entry| entry.record.at),
        user: user.to_string(),
    };
    let Some(door) = Door::knock(&Corner::of(&user))? else { return Ok(status) };
    match door.ask(&Request::Status)? {
        Some(Answer::Status(told)) => {
            status.running = true;
            status.pid = Some(door.pid());
            status.since = Some(told.since);
            status.processes = told.processes;
            status.outdated = plan::terms(config, profile, account)? != told.terms;
            status.sessions = Session::all(told.sessions, &Processes::look());
            status.in_memory.used = in_memory(door.pid());
            Ok(status)
        }
        None => Ok(status),
        Some(answer) => Err(Error::Door { user: status.user, answer: format!("{answer:?}") }),
    }
}

/// What a walk over an upper counts. `None`: there is none, or it is changed faster than it can be walked over.
pub(super) fn measured(upper: &Path) -> Option<Size> {
    // A directory that its user moves meanwhile ends a walk.
    (0..3).find_map(|_| walk::size(walk::open(upper).ok()?).ok())
}

/// Bytes in the jail's memory file system. Its `/tmp` is a mount point, so nobody inside can have put a link in its place; none
/// would be followed.
fn in_memory(init: i32) -> Option<u64> {
    let root = File::open(format!("/proc/{init}/root")).ok()?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let dir =
        openat2(&root, "tmp", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve);
    let stat = fstatvfs(dir.ok()?).ok()?;
    Some((stat.f_blocks - stat.f_bfree) * stat.f_frsize)
}

fn text(status: &Status) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("  {name:<12}{value}"));
        }
    };
    line("profile", status.profile.clone());
    line("layers", status.layers.iter().map(LayerName::as_str).collect::<Vec<_>>().join(", "));
    line(
        "state",
        match status.since {
            Some(since) => {
                let outdated = if status.outdated { ", outdated (`ojail stop` ends it)" } else { "" };
                format!("running since {}, {} processes{outdated}", local_time(since), status.processes)
            }
            None => "not running".into(),
        },
    );
    if let Some(path) = &status.mounted {
        let left = if status.running { "" } else { " (its jail has ended; `ojail umount` lets go of it)" };
        line("mounted at", format!("{}{left}", path.display()));
    }
    for session in &status.sessions {
        line("session", session.to_string());
    }
    let mut network = vec![
        match status.network {
            Network::Host => "the host's",
            Network::None => "none",
            Network::Private => "private",
        }
        .to_owned(),
    ];
    network.extend(status.reach.iter().map(|port| format!("reaches {port} of the host")));
    network.extend(status.publish.iter().map(|ports| format!("publishes {ports}")));
    line("network", network.join("; "));
    if let Some((uid, gid)) = status.ids {
        let range = |first: u32| format!("{first}–{}", u64::from(first) + 65_535);
        let same = uid == gid;
        line("ids", if same { range(uid) } else { format!("uids {}, gids {}", range(uid), range(gid)) });
    }
    line("memory", amount(status.memory, bytes, bytes));
    line("tasks", amount(status.tasks, count, count));
    line(
        "cpu",
        amount(
            status.cpu,
            |us| format!("{}.{} s", us / 1_000_000, us / 100_000 % 10),
            |most| format!("{most} %"),
        ),
    );
    line("io", amount(status.io, bytes, |most| format!("{}/s", bytes(most))));
    line("upper", amount(status.disk, bytes, bytes));
    line("inodes", amount(status.inodes, count, count));
    line("/tmp, /run", amount(status.in_memory, bytes, bytes));
    line("last reset", status.last_reset.map(local_time).unwrap_or_default());
    let bold = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let title = if bold { format!("\x1b[1m{}\x1b[0m", status.user) } else { status.user.clone() };
    format!("{title}\n{}", lines.join("\n"))
}

fn amount(amount: Amount, used: impl Fn(u64) -> String, most: impl Fn(u64) -> String) -> String {
    match (amount.used, amount.most) {
        (Some(is), Some(limit)) => format!("{} of {}", used(is), most(limit)),
        (Some(is), None) => format!("{}, no limit", used(is)),
        (None, Some(limit)) => format!("at most {}", most(limit)),
        (None, None) => String::new(),
    }
}

fn count(number: u64) -> String {
    number.to_string()
}

/// With a binary unit, as the configuration writes them.
pub(super) fn bytes(number: u64) -> String {
    let (mut whole, mut rest, mut unit) = (number, 0, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if whole < 1024 {
            break;
        }
        (rest, whole, unit) = (whole % 1024, whole / 1024, next);
    }
    let tenth = rest * 10 / 1024;
    if tenth == 0 { format!("{whole} {unit}") } else { format!("{whole}.{tenth} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_with_binary_units() {
        for (number, told) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1 << 30, "1 GiB"),
            (5 << 39, "2.5 TiB"),
        ] {
            assert_eq!(bytes(number), told);
        }
    }

    #[test]
    fn an_amount_tells_what_is_known() {
        let told = |used, most| amount(Amount { used, most }, count, count);
        assert_eq!(told(Some(5), Some(300)), "5 of 300");
        assert_eq!(told(Some(5), None), "5, no limit");
        assert_eq!(told(None, Some(300)), "at most 300");
        assert_eq!(told(None, None), "");
    }
}
