//! What the session brought along: descriptors that lead out of the jail.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::libc;

use super::Setting;
use super::raw::call;
use super::report::{Outcome, Report};

fn target(number: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{number}")).ok()
}

/// Descriptors above 2 that are open. To be called first.
pub(super) fn inherited() -> Vec<String> {
    let names = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<i32> = names.filter_map(|name| name.file_name().to_str()?.parse().ok()).collect();
    // The one that listed the others is closed by now.
    let open = |number: &i32| call(libc::SYS_fcntl, [(*number).into(), libc::F_GETFD.into()]).is_ok();
    let mut numbers: Vec<i32> = numbers.into_iter().filter(|number| *number > 2).filter(open).collect();
    numbers.sort_unstable();
    let shown = |number| target(number).map_or_else(|| "?".into(), |path| path.display().to_string());
    numbers.into_iter().map(|number| format!("{number} → {}", shown(number))).collect()
}

pub(super) fn attack(report: &mut Report, setting: &Setting) {
    report.add("open descriptors besides 0, 1 and 2", Outcome::nothing(&setting.descriptors));

    let mut outside = Vec::new();
    for number in 0..=2 {
        let (Some(path), Ok(file)) = (target(number), fs::metadata(format!("/proc/self/fd/{number}"))) else {
            continue;
        };
        // Pipes and sockets have no place. What has one must be at that place in here too.
        let id = |file: &fs::Metadata| (file.dev(), file.ino(), file.rdev());
        if path.is_absolute() && fs::metadata(&path).map(|here| id(&here)).ok() != Some(id(&file)) {
            outside.push(format!("{number} → {}", path.display()));
        }
    }
    report.add("files or terminals of the host's at 0, 1 and 2", Outcome::nothing(&outside));
}
