//! Can this kernel, with these file systems, raise such jails? Found out by doing it.

use super::{Report, Setting};
use crate::jail::probe;

const SUBJECT: &str = "kernel";

pub(super) fn check(report: &mut Report, setting: &Setting) {
    let Some(config) = &setting.config else { return };
    if !setting.root {
        report.needs_root(SUBJECT, "whether a jail can be raised");
        return;
    }
    let limit = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    if limit.trim() == "0" {
        report.error(
            SUBJECT,
            "user namespaces are switched off (user.max_user_namespaces = 0)",
            "sysctl -w user.max_user_namespaces=100000, and the same in /etc/sysctl.d",
        );
        return;
    }
    // A raise would make the directory of layers, and looking must not; that it is missing is told by the configuration's
    // check.
    if !config.storage.lowerdirs.is_dir() {
        return;
    }
    if config.profiles.is_empty() {
        report.warn(
            SUBJECT,
            "whether a jail can be raised was not tried: there is no profile",
            format!("add a profile to {}", crate::paths::CONFIG),
        );
    }
    for profile in config.profiles.values() {
        match probe::raise(config, profile) {
            Ok(()) => report.ok(SUBJECT, format!("raised and ended a jail of profile {}", profile.name)),
            Err(e) => report.fault(SUBJECT, &e),
        }
    }
}
