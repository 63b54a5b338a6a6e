//! Does the configuration say something that can be done? Files, rules, storage, layers, groups, shells.

use std::fs;
use std::path::Path;

use super::{Report, Setting};
use crate::config::{Config, Mistake, Profile};
use crate::{account, layers, paths, store};

const SUBJECT: &str = "configuration";

pub(super) fn check(report: &mut Report, setting: &Setting, config: Result<Config, Mistake>) {
    let config = match config {
        Ok(config) => config,
        Err(mistake) => {
            report.fault(SUBJECT, &mistake);
            return;
        }
    };
    report.ok(SUBJECT, format!("{} is valid", paths::CONFIG));
    if !setting.jails() {
        report.warn(SUBJECT, "no rule jails anybody", format!("add [[rules]] to {}", paths::CONFIG));
    }
    if setting.root {
        storage(report, &config);
    } else {
        report.needs_root(SUBJECT, "storage and layers");
    }
    for rule in &config.rules {
        groups(report, &format!("the rule at line {}", rule.line), &rule.groups);
    }
    for profile in config.profiles.values() {
        groups(report, &format!("profile {}", profile.name), &profile.groups);
        for bind in &profile.binds {
            if let Err(e) = fs::metadata(&bind.source) {
                report.error(
                    SUBJECT,
                    format!("profile {}: the bind's source {}: {e}", profile.name, bind.source.display()),
                    "make it, or take the bind out",
                );
            }
        }
        if setting.root {
            layered(report, &config, profile);
        }
    }
}

fn storage(report: &mut Report, config: &Config) {
    let storage = &config.storage;
    let missing: Vec<_> =
        [&storage.upperdirs, &storage.workdirs].into_iter().filter(|path| !path.exists()).collect();
    if missing.is_empty() {
        match store::check(storage) {
            Ok(()) => report.ok(SUBJECT, format!("{} can hold uppers", storage.upperdirs.display())),
            Err(e) => report.fault(SUBJECT, &e),
        }
    }
    // Looking must not make them; the first login does.
    for path in missing {
        report.ok(SUBJECT, format!("{} will be made at the first login", path.display()));
    }
}

fn groups(report: &mut Report, named_by: &str, names: &[String]) {
    for group in names {
        match account::group_exists(group) {
            Ok(true) => {}
            Ok(false) => report.error(
                SUBJECT,
                format!("{named_by} names the group \"{group}\", which does not exist on this host"),
                format!("`groupadd {group}`, or take it out"),
            ),
            Err(e) => report.fault(SUBJECT, &e),
        }
    }
}

fn layered(report: &mut Report, config: &Config, profile: &Profile) {
    let layers = match layers::resolve(&config.storage, &profile.layers) {
        Ok(layers) => layers,
        Err(e) => {
            report.fault(SUBJECT, &e);
            return;
        }
    };
    let names = layers.iter().map(|layer| layer.name.as_str()).collect::<Vec<_>>().join(" on ");
    report.ok(SUBJECT, format!("profile {}: {names}", profile.name));
    // Only plain directories can be looked into without mounting anything.
    let Some(shell) = &profile.shell else { return };
    if layers.iter().all(|layer| layer.image.is_none()) && !layers.iter().any(|layer| has(&layer.path, shell))
    {
        report.warn(
            SUBJECT,
            format!("profile {}: none of its layers has the shell {}", profile.name, shell.display()),
            "install it into a layer, or name another shell",
        );
    }
}

/// Whether a layer has this path. `/bin` is a link to `usr/bin` in a merged Debian.
fn has(layer: &Path, path: &Path) -> bool {
    let below = path.strip_prefix("/").unwrap_or(path);
    [layer.join(below), layer.join("usr").join(below)].iter().any(|path| fs::symlink_metadata(path).is_ok())
}
