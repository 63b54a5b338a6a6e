//! Can this host hold jails to the limits of their profiles, and keep them from its network? Looked at, not tried: a group or a
//! quota would be a change.

use super::{Report, Setting};
use crate::cgroup;
use crate::config::{Network, Profile};
use crate::jail::confine;
use crate::quota;

const SUBJECT: &str = "limits and network";

pub(super) fn check(report: &mut Report, setting: &Setting) {
    let Some(config) = &setting.config else { return };
    if !setting.root {
        return;
    }
    for profile in config.profiles.values() {
        if profile.limits.of_processes() || profile.limits.of_upper() {
            let processes = if profile.limits.of_processes() {
                cgroup::Tree::fit_for(&profile.limits, &config.storage).map(drop)
            } else {
                Ok(())
            };
            let upper = quota::look(&config.storage, &profile.limits);
            let held = processes.is_ok() && upper.is_ok();
            for fault in [processes.err(), upper.err()].into_iter().flatten() {
                report.fault(SUBJECT, &fault);
            }
            if held {
                report.ok(SUBJECT, format!("the limits of profile {} can be held", profile.name));
            }
        } else {
            report.ok(SUBJECT, format!("profile {} has no limits", profile.name));
        }
    }
    let on_the_hosts = |profile: &&Profile| profile.network == Network::Host;
    if let Some(profile) = config.profiles.values().find(on_the_hosts) {
        if !confine::abstract_sockets_can_be_kept_out() {
            report.warn(
                SUBJECT,
                format!(
                    "jails of profile {} reach the host's abstract sockets: this kernel's Landlock has no scopes",
                    profile.name
                ),
                "network = \"private\" or \"none\", or a kernel of 6.12 or newer",
            );
        }
    }
}
