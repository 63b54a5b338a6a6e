//! Are the id ranges of `/etc/subuid` and `/etc/subgid` sound, and has the pool room?

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;

use nix::unistd::{Uid, User};

use super::people::People;
use super::{Report, Setting};
use crate::account::{self, Username};
use crate::config::Config;
use crate::ids::{COUNT, Registry, SubLine, sub_lines};
use crate::jail::login;
use crate::paths;
use crate::policy::Decision;

const SUBJECT: &str = "ids";

/// How many overlaps of a file are told one by one.
const MOST: usize = 10;

pub(super) fn check(report: &mut Report, setting: &Setting, people: &People) {
    let Some(config) = &setting.config else { return };
    let mut told = BTreeSet::new();
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = match fs::read_to_string(file) {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => {
                report.error(SUBJECT, format!("cannot read {file}: {e}"), format!("chmod 644 {file}"));
                continue;
            }
            Ok(text) => text,
        };
        match sub_lines(&text) {
            Ok(lines) => told.append(&mut shared(report, config, file, &lines)),
            // As a login would be refused with.
            Err(why) => {
                report.error(
                    SUBJECT,
                    format!("{file}{why}"),
                    "correct the line: it refuses every jailed user",
                );
            }
        }
    }
    if setting.root {
        given(report, config, people, &told);
    } else {
        report.needs_root(SUBJECT, "what was given from the pool");
    }
}

/// Ranges that two users have. Returns the jailed users among them.
fn shared(report: &mut Report, config: &Config, file: &str, lines: &[SubLine]) -> BTreeSet<String> {
    let mut told = BTreeSet::new();
    let pairs = overlaps(lines, &name);
    if pairs.is_empty() {
        report.ok(SUBJECT, format!("no two users share an id in {file}"));
    }
    for (a, b, at) in pairs.iter().take(MOST) {
        let sentence = format!(
            "{file}: the ranges of {} (line {}) and {} (line {}) overlap at {at}",
            a.owner, a.line, b.owner, b.line
        );
        let mend = "give each a range of their own, in /etc/subuid and /etc/subgid";
        let names = [a, b].map(|line| name(&line.owner));
        let jailed: Vec<String> = names.into_iter().filter(|name| is_jailed(config, name)).collect();
        if jailed.is_empty() {
            report.warn(SUBJECT, sentence, mend);
        } else {
            report.error(SUBJECT, format!("{sentence}: no jail for {}", jailed.join(" and ")), mend);
            told.extend(jailed);
        }
    }
    if let Some(more @ 1..) = pairs.len().checked_sub(MOST) {
        report.warn(
            SUBJECT,
            format!("{file}: {more} more ranges overlap"),
            "mend those above, and look again",
        );
    }
    told
}

/// Overlapping ranges of different owners, and where they begin to overlap. subuid(5) lets an owner be a name or a uid.
fn overlaps<'a>(lines: &'a [SubLine], name: &dyn Fn(&str) -> String) -> Vec<(&'a SubLine, &'a SubLine, u32)> {
    let mut sorted: Vec<&SubLine> = lines.iter().filter(|line| line.count > 0).collect();
    sorted.sort_by_key(|line| (line.first, line.line));
    let mut pairs = Vec::new();
    for (at, a) in sorted.iter().enumerate() {
        let end = u64::from(a.first) + u64::from(a.count);
        for b in sorted[at + 1..].iter().take_while(|b| u64::from(b.first) < end) {
            if a.owner != b.owner && name(&a.owner) != name(&b.owner) {
                pairs.push((*a, *b, b.first));
            }
        }
    }
    pairs
}

/// The owner's name, where the file has a uid.
fn name(owner: &str) -> String {
    let user = owner.parse().ok().and_then(|uid| User::from_uid(Uid::from_raw(uid)).ok().flatten());
    user.map_or_else(|| owner.to_owned(), |user| user.name)
}

fn is_jailed(config: &Config, name: &str) -> bool {
    let Ok(account) = account::lookup(name) else { return false };
    matches!(login::judge(config, &account), Ok(Decision::Jailed { .. }))
}

/// What jailed users would be given, and whether there is enough of it.
fn given(report: &mut Report, config: &Config, people: &People, told: &BTreeSet<String>) {
    let registry = Registry::default();
    let mut newcomers = 0;
    for account in people.jailed.iter().filter(|account| !told.contains(&account.name)) {
        let foreseen = Username::parse(&account.name).and_then(|user| registry.foresee(&user, account));
        match foreseen {
            Ok(Some(_)) => {}
            Ok(None) => newcomers += 1,
            Err(e) => report.fault(SUBJECT, &e),
        }
    }
    match registry.room(&config.ids) {
        Ok(room) if room == 0 || room < newcomers => report.error(
            SUBJECT,
            format!(
                "the pool of ids from {} to {} has room for {room} more users; \
                 {newcomers} whom the rules name have no range yet",
                config.ids.first, config.ids.last
            ),
            format!("raise ids.last in {} by {COUNT} for each", paths::CONFIG),
        ),
        Ok(room) => report.ok(SUBJECT, format!("the pool has room for {room} more users")),
        Err(e) => report.fault(SUBJECT, &e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<(usize, usize, u32)> {
        let lines = sub_lines(text).unwrap();
        let name = |owner: &str| if owner == "1000" { "alice".to_owned() } else { owner.to_owned() };
        overlaps(&lines, &name).iter().map(|(a, b, at)| (a.line, b.line, *at)).collect()
    }

    #[test]
    fn overlaps_of_different_owners_are_found_whatever_their_order() {
        assert_eq!(
            told("bob:165535:65536\nalice:100000:65536\ncarl:100:10\neve:165535:1\n"),
            [(2, 1, 165_535), (2, 4, 165_535), (1, 4, 165_535)]
        );
    }

    #[test]
    fn ranges_that_touch_or_have_one_owner_do_not_overlap() {
        assert_eq!(told("alice:100000:65536\nbob:165536:65536\n"), []);
        assert_eq!(told("alice:100000:65536\nalice:100000:10\n1000:100005:10\n"), []);
        assert_eq!(told("alice:100000:65536\nbob:100000:0\n"), [], "no ids, no overlap");
    }
}
