//! On which layers a user's upper was raised, and since when: what `ojail conflicts` and `ojail rebase` judge a user's files by.
//!
//! `/var/lib/ojail/bases/USER` has a line for each change of the layers. `ojail-init` adds it before the jail stands; whatever gives
//! the user another upper puts the bases of that one there ([`crate::aside`]). It is no more than a note: without it a jail is raised
//! as well, and it is not known what its files were made on.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::account::Username;
use crate::config::LayerName;
use crate::error::{Act, IfThere, Result};
use crate::paths;
use crate::runtime::private_dir;

/// Layers, and from when on an upper was on them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Nanoseconds since 1970.
    pub since: u64,
    /// Topmost first, with the generation where there is one.
    pub layers: Vec<LayerName>,
}

/// The most lines that are kept: the oldest go first.
const MOST: usize = 100;

/// The bases of a user's upper, the oldest first; none if nothing is known.
///
/// # Errors
/// [`crate::Error::Act`] if it cannot be read.
pub fn of(user: &Username) -> Result<Vec<Base>> {
    let path = path(user);
    // What the power cut off is no note.
    let text = fs::read(&path).if_there().act("read", &path)?.unwrap_or_default();
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// Notes that the user's jail is being raised on these layers, topmost first. Cheap where nothing has changed.
///
/// # Errors
/// [`crate::Error::Act`], [`crate::Error::Unfit`].
pub fn note(user: &Username, layers: &[LayerName]) -> Result<()> {
    let mut bases = of(user)?;
    if bases.last().is_some_and(|last| last.layers == layers) {
        return Ok(());
    }
    bases.push(Base { since: now(), layers: layers.to_vec() });
    put(user, &bases)
}

/// Writes the bases of the upper that the user has now; none: it is not known, or there is no upper.
///
/// # Errors
/// [`crate::Error::Act`], [`crate::Error::Unfit`].
pub fn put(user: &Username, bases: &[Base]) -> Result<()> {
    let path = path(user);
    if bases.is_empty() {
        return fs::remove_file(&path).if_there().act("remove", &path).map(drop);
    }
    private_dir(&dir())?;
    let bases = &bases[bases.len().saturating_sub(MOST)..];
    let mut text = Vec::new();
    for base in bases {
        serde_json::to_writer(&mut text, base).map_err(io::Error::from).act("write", &path)?;
        text.push(b'\n');
    }
    // No user is called so.
    let new = dir().join(format!(".{user}"));
    fs::write(&new, text).act("write", &new)?;
    fs::rename(&new, &path).act("put in place", &path)
}

/// Of all users who have any.
///
/// # Errors
/// [`crate::Error::Act`].
pub fn all() -> Result<Vec<(Username, Vec<Base>)>> {
    let dir = dir();
    let Some(entries) = fs::read_dir(&dir).if_there().act("list", &dir)? else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for entry in entries {
        let name = entry.act("list", &dir)?.file_name();
        if let Some(Ok(user)) = name.to_str().map(Username::parse) {
            let bases = of(&user)?;
            all.push((user, bases));
        }
    }
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(all)
}

/// The present, as [`Base::since`] has it.
#[must_use]
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    u64::try_from(since).unwrap_or(u64::MAX)
}

fn parse(text: &str) -> Vec<Base> {
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn dir() -> PathBuf {
    Path::new(paths::STATE).join("bases")
}

fn path(user: &Username) -> PathBuf {
    dir().join(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_off_is_passed_over() {
        let one = Base { since: 5, layers: vec![LayerName::parse("debian").unwrap()] };
        let line = serde_json::to_string(&one).unwrap();
        assert_eq!(line, r#"{"since":5,"layers":["debian"]}"#);
        assert_eq!(parse(&format!("{line}\n{}", &line[..9])), [one]);
        assert_eq!(parse(""), []);
    }
}
