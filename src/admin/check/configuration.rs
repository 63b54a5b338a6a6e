//! Does the configuration say something that can be done? Files, rules, storage, layers, groups, shells.

use std::fs;
use std::path::Path;

use super::{Report, Setting};
use crate::config::{Config, Mistake, Profile};
use crate::layers::generations;
use crate::layers::{self, Layer};
use crate::{account, paths, runtime, store};

const SUBJECT: &str = "configuration";

pub(super) fn check(report: &mut Report, setting: &Setting, config: Result<Config, Mistake>) {
    let config = match config {
        Ok(config) => config,
        Err(mistake) => {
            report.fault(SUBJECT, &mistake);
            report.warn(
                SUBJECT,
                "kernel, storage, layers, ids and users could not be looked at without a configuration",
                "mend it, and run `ojail check` again",
            );
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
            let source = bind.source.display();
            if let Err(e) = store::no_links(&bind.source) {
                report.fault(SUBJECT, &e);
            } else if let Err(e) = fs::symlink_metadata(&bind.source) {
                report.error(
                    SUBJECT,
                    format!("profile {}: the bind's source {source}: {e}", profile.name),
                    "make it, or take the bind out",
                );
            }
        }
        if setting.root && config.storage.lowerdirs.is_dir() {
            layered(report, &config, profile);
        }
    }
}

fn storage(report: &mut Report, config: &Config) {
    let storage = &config.storage;
    if !storage.lowerdirs.is_dir() {
        report.error(
            SUBJECT,
            format!("there is no directory {}, so there are no layers", storage.lowerdirs.display()),
            format!("`install -d -m 0700 {}`, and make a layer in it", storage.lowerdirs.display()),
        );
    }
    // Uppers that a reset cleared are as dangerous as those in use: setuid programs of root's, for whoever gets in.
    if storage.asidedirs.exists() {
        let private = store::roots_own_way(&storage.asidedirs);
        if let Err(e) = private.and_then(|()| runtime::private_dir(&storage.asidedirs)) {
            report.fault(SUBJECT, &e);
        }
    }
    if !config.profiles.values().any(|profile| profile.writable) {
        return;
    }
    match store::look(storage) {
        Ok(missing) if missing.is_empty() => {
            report.ok(SUBJECT, format!("{} can hold uppers", storage.upperdirs.display()));
        }
        // Looking must not make them; the first login does.
        Ok(missing) => {
            for path in missing {
                report.ok(SUBJECT, format!("{} will be made at the first login", path.display()));
            }
        }
        Err(e) => report.fault(SUBJECT, &e),
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
    let names = layers.iter().map(|layer| layer.full().to_string()).collect::<Vec<_>>().join(" on ");
    report.ok(SUBJECT, format!("profile {}: {names}", profile.name));
    bases(report, config, profile, &layers);
    let Some(shell) = &profile.shell else { return };
    if lacks(&layers, shell) {
        report.warn(
            SUBJECT,
            format!("profile {}: none of its layers has the shell {}", profile.name, shell.display()),
            "install it into a layer, or name another shell",
        );
    }
}

/// A layer that was made on others says what has changed on them. On another generation of one of these, its package lists and libraries
/// may not fit what is below.
fn bases(report: &mut Report, config: &Config, profile: &Profile, layers: &[Layer]) {
    for (place, layer) in layers.iter().enumerate() {
        let Ok(generation) = generations::one(&config.storage, &layer.full()) else { continue };
        let Some(record) = generation.record else { continue };
        for base in record.from.iter().filter(|base| base.generation().is_some()) {
            let below = layers[place + 1..].iter().find(|other| other.name.name() == base.name());
            let Some(below) = below.map(Layer::full).filter(|below| below != base) else { continue };
            let command = match record.command.as_slice() {
                [] => String::new(),
                words => format!(" (it was made by: {})", words.join(" ").escape_debug()),
            };
            report.warn(
                SUBJECT,
                format!(
                    "profile {}: {} was made on {base}, and stands on {below}",
                    profile.name,
                    layer.full()
                ),
                format!(
                    "make {} anew on {}{command}, or name \"{base}\" in `layers`",
                    layer.name.name(),
                    base.name()
                ),
            );
        }
    }
}

/// Whether a path is in none of the layers. Images are not looked into: that would take mounting them.
pub(super) fn lacks(layers: &[Layer], path: &Path) -> bool {
    layers.iter().all(|layer| layer.image.is_none()) && !layers.iter().any(|layer| has(&layer.path, path))
}

/// Whether a layer has this path. `/bin` is a link to `usr/bin` in a merged Debian.
fn has(layer: &Path, path: &Path) -> bool {
    let below = path.strip_prefix("/").unwrap_or(path);
    [layer.join(below), layer.join("usr").join(below)].iter().any(|path| fs::symlink_metadata(path).is_ok())
}
