//! `ojail fstab`: lines for fstab(5), for hosts that mount jails without ojail. Prints, and changes nothing.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{configuration, jailed, say, username};
use crate::account::Username;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::layers::{self, Layer};
use crate::store;

/// Where images are mounted, beside the directory of layers: its links and images are no mount points.
const IMAGES: &str = "images";

pub(super) fn run(users: &[String]) -> Result<ExitCode> {
    let config = configuration()?;
    let owners = if users.is_empty() {
        store::owners(&config.storage)?
    } else {
        users.iter().map(|user| username(user)).collect::<Result<_>>()?
    };
    say(lines(&config, &owners, !users.is_empty())?);
    Ok(ExitCode::SUCCESS)
}

/// One line an image, and one a user, with what must be made before.
fn lines(config: &Config, owners: &[Username], by_name: bool) -> Result<String> {
    let storage = &config.storage;
    let images = storage.lowerdirs.parent().unwrap_or(&storage.lowerdirs).join(IMAGES);
    let mut made = BTreeSet::new();
    let (mut mounts, mut overlays) = (Vec::new(), Vec::new());
    for user in owners {
        let profile = match jailed(config, user.as_str()) {
            Ok((_, profile)) => profile,
            // Of those who are gone there may be an upper, and nothing that says on what.
            Err(e) if by_name => return Err(e),
            Err(_) => continue,
        };
        if !profile.writable {
            if by_name {
                let why = format!("{user} has no upper: profile {} is read-only", profile.name);
                return Err(Error::Unfit { path: storage.upperdirs.join(user), why });
            }
            continue;
        }
        let mut lowers = Vec::new();
        let mut needed = Vec::new();
        for layer in layers::resolve(storage, &profile.layers)? {
            let Layer { image: Some(format), path, .. } = &layer else {
                lowers.push(layer.path.clone());
                continue;
            };
            let point = images.join(layer.full().as_str());
            if made.insert(point.clone()) {
                mounts.push(format!(
                    "{} {} {} loop,ro,nodev 0 0",
                    escaped(path),
                    escaped(&point),
                    format.name()
                ));
            }
            needed.push(format!(",x-systemd.requires-mounts-for={}", escaped(&point)));
            lowers.push(point);
        }
        let point = storage.jails.join(user);
        let lowers: Vec<String> = lowers.iter().map(|path| escaped(path)).collect();
        overlays.push(format!(
            "overlay {} overlay noauto,x-systemd.automount,lowerdir={},upperdir={},workdir={},userxattr,nodev{} 0 0",
            escaped(&point),
            lowers.join(":"),
            escaped(&storage.upperdirs.join(user)),
            escaped(&storage.workdirs.join(user)),
            needed.concat()
        ));
        made.insert(point);
    }
    let mut text = String::from(
        "# Jails mounted without ojail. Never while ojail has the same one running: two overlays on one upper destroy it.\n",
    );
    if !made.is_empty() {
        let dirs: Vec<String> = made.iter().map(|path: &PathBuf| path.display().to_string()).collect();
        // Closed to others, like the layers and the uppers: there are setuid programs in them.
        let above: BTreeSet<String> =
            made.iter().filter_map(|path| Some(path.parent()?.display().to_string())).collect();
        let above: Vec<String> = above.into_iter().collect();
        let _ =
            writeln!(text, "# First: install -d -m 0700 {} && mkdir -p {}", above.join(" "), dirs.join(" "));
    }
    text.push_str(&[mounts, overlays].concat().join("\n"));
    Ok(text.trim_end().to_owned())
}

/// As fstab(5) wants blanks and the like in a field.
fn escaped(path: &Path) -> String {
    let mut text = String::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' | b'#' => {
                let _ = write!(text, "\\{byte:03o}");
            }
            byte if byte.is_ascii() => text.push(char::from(*byte)),
            byte => {
                let _ = write!(text, "\\{byte:03o}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_and_the_like_are_escaped() {
        assert_eq!(escaped(Path::new("/a b\tc#d\\e/é")), "/a\\040b\\011c\\043d\\134e/\\303\\251");
    }
}
