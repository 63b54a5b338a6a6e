//! Objects of System V and POSIX IPC that are not ours.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::Setting;
use super::processes::OVERFLOW;
use super::report::{Outcome, Report};

pub(super) fn attack(report: &mut Report, setting: &Setting) {
    for (kind, name) in [("msg", "message queues"), ("sem", "semaphores"), ("shm", "shared memory")] {
        let table = fs::read_to_string(format!("/proc/sysvipc/{kind}")).unwrap_or_default();
        report.add(format!("System V {name} of others"), Outcome::nothing(&foreign(&table, setting)));
    }
    for (place, name) in [("/dev/mqueue", "message queues"), ("/dev/shm", "shared memory and semaphores")] {
        let entries = fs::read_dir(place).into_iter().flatten().flatten();
        let others =
            entries.filter(|entry| entry.metadata().is_ok_and(|meta| is_foreign(meta.uid(), setting)));
        let found: Vec<String> = others.map(|entry| entry.path().display().to_string()).collect();
        report.add(format!("POSIX {name} of others"), Outcome::nothing(&found));
    }
}

/// In a jail without root there is nobody else. With it, there are users of the jail's own; of the host nobody has a name.
fn is_foreign(uid: u32, setting: &Setting) -> bool {
    if setting.root { uid == OVERFLOW } else { uid != setting.uid }
}

/// The lines of a table of proc_sysvipc(5) that are somebody else's.
fn foreign(table: &str, setting: &Setting) -> Vec<String> {
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let heads = lines.next().unwrap_or_default();
    let Some(owner) = heads.iter().position(|head| *head == "cuid") else { return Vec::new() };
    let is_foreign = |fields: &Vec<&str>| {
        fields.get(owner).and_then(|uid| uid.parse().ok()).is_none_or(|uid| is_foreign(uid, setting))
    };
    lines.filter(is_foreign).map(|fields| format!("key {}", fields.first().unwrap_or(&"?"))).collect()
}
