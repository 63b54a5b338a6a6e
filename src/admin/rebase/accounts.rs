//! The account files of an upper on newer layers: a user's `/etc/passwd` hides the accounts that the layers have got since.

use std::collections::{BTreeMap, BTreeSet};

/// Files in `/etc` with a line for each account or group, and which field of it is its number.
pub(super) const FILES: [(&str, Option<usize>); 6] = [
    ("passwd", Some(2)),
    ("group", Some(2)),
    ("shadow", None),
    ("gshadow", None),
    ("subuid", None),
    ("subgid", None),
];

/// The most that such a file may have to be taken apart, in bytes: ten thousand accounts.
pub(super) const MOST: usize = 1 << 20;

/// A file with everything that belongs in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Merged {
    pub(super) text: String,
    /// Accounts that the layers have and that cannot be taken in, because somebody inside has their number.
    pub(super) left_out: Vec<String>,
    /// Accounts that keep their number inside, though the layers have another for them now.
    pub(super) other_number: Vec<String>,
}

/// Puts the lines of the layers of now into the user's. `was`: of the layers before, of which the likest is what the user began with.
///
/// The user's lines stay, but for those that they have never changed. What the user removed stays away.
pub(super) fn merge(mine: &str, was: &[String], now: &str, number: Option<usize>) -> Merged {
    let own: BTreeSet<&str> = mine.lines().collect();
    let names: BTreeSet<&str> = mine.lines().map(key).collect();
    let likeness = |was: &&String| {
        let missing = was.lines().filter(|line| !names.contains(key(line))).count();
        (was.lines().filter(|line| own.contains(line)).count() as i64) - missing as i64
    };
    let origin = was.iter().max_by_key(likeness);
    let knew: BTreeSet<&str> = origin.into_iter().flat_map(|was| was.lines()).map(key).collect();
    let had: BTreeSet<&str> = was.iter().flat_map(|was| was.lines()).collect();
    let new: BTreeMap<&str, &str> = now.lines().map(|line| (key(line), line)).collect();
    let (mut lines, mut other_number): (Vec<&str>, Vec<String>) = (Vec::new(), Vec::new());
    for line in mine.lines() {
        let newer = new.get(key(line)).copied();
        let same_number =
            newer.is_none_or(|newer| number.is_none_or(|at| field(line, at) == field(newer, at)));
        if !same_number {
            other_number.push(key(line).to_owned());
        }
        lines.push(newer.filter(|_| had.contains(line) && same_number).unwrap_or(line));
    }
    let mut numbers: BTreeSet<&str> =
        number.map(|at| lines.iter().map(|line| field(line, at)).collect()).unwrap_or_default();
    let mut left_out = Vec::new();
    for line in now.lines().filter(|line| !names.contains(key(line)) && !knew.contains(key(line))) {
        if number.is_some_and(|at| !numbers.insert(field(line, at))) {
            left_out.push(key(line).to_owned());
        } else {
            lines.push(line);
        }
    }
    let mut text = lines.join("\n");
    text.push('\n');
    Merged { text, left_out, other_number }
}

fn key(line: &str) -> &str {
    line.split(':').next().unwrap_or_default()
}

fn field(line: &str, at: usize) -> &str {
    line.split(':').nth(at).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAS: &str = "root:x:0:0::/root:/bin/sh\nmail:x:8:8::/var/mail:/bin/sh\ngames:x:5:60::/:/bin/sh\n";

    #[test]
    fn the_layers_bring_their_new_accounts_and_the_user_keeps_theirs() {
        let mine =
            "root:x:0:0::/root:/bin/zsh\nmail:x:8:8::/var/mail:/bin/sh\nredis:x:105:108::/:/bin/false\n";
        let now = "root:x:0:0::/root:/bin/bash\nmail:x:8:8::/var/mail:/usr/sbin/nologin\ngames:x:5:60::/:/bin/sh\n\
                   sshd:x:104:65534::/run/sshd:/usr/sbin/nologin\n_chrony:x:105:110::/:/usr/sbin/nologin\n";
        let merged = merge(mine, &[WAS.to_owned()], now, Some(2));
        assert_eq!(
            merged.text,
            "root:x:0:0::/root:/bin/zsh\nmail:x:8:8::/var/mail:/usr/sbin/nologin\nredis:x:105:108::/:/bin/false\n\
             sshd:x:104:65534::/run/sshd:/usr/sbin/nologin\n"
        );
        // What was removed stays away, and two do not share a number.
        assert_eq!(merged.left_out, ["_chrony"]);
        // What came later is not what was removed.
        let later = format!("{WAS}sshd:x:104:65534::/run/sshd:/usr/sbin/nologin\n");
        assert_eq!(merge(mine, &[WAS.to_owned(), later], now, Some(2)), merged);
    }

    #[test]
    fn without_the_layers_before_nothing_of_the_users_is_lost() {
        let merged = merge("a:x:1:\n", &[], "a:x:2:\nb:x:1:\n", Some(2));
        assert_eq!((merged.text.as_str(), merged.left_out), ("a:x:1:\n", vec!["b".to_owned()]));
        assert_eq!(merged.other_number, ["a"]);
        assert_eq!(merge("a:*\n", &[], "a:!\nb:!\n", None).text, "a:*\nb:!\n");
    }
}
