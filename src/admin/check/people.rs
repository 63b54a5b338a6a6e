//! Jailed users, as far as rules and the local account files name them: are they fit for a jail, and what is their login
//! shell?

use std::fs;
use std::path::Path;

use nix::unistd::Group;

use super::{Report, Setting};
use crate::account::{self, Account, Username};
use crate::config::{Config, Rule, Verdict};
use crate::error::Error;
use crate::jail::{login, plan};
use crate::paths;
use crate::policy::Decision;

const SUBJECT: &str = "users";

/// How many are looked at: with a directory service each is a question over the network.
const MOST: usize = 50;

/// Jailed users who were looked at.
#[derive(Debug, Default)]
pub(super) struct People {
    pub(super) jailed: Vec<Account>,
    /// How many more were named.
    pub(super) more: usize,
}

/// The names of users whom a rule may jail. Nobody is looked up: what a shell completes must be there at once.
pub(in crate::admin) fn names(config: &Config) -> Vec<String> {
    candidates(config, &passwd(&fs::read_to_string("/etc/passwd").unwrap_or_default()), &members)
}

/// Finds them, except for `user`, who is looked at more closely elsewhere.
pub(super) fn find(report: &mut Report, setting: &Setting, user: Option<&str>) -> People {
    let Some(config) = &setting.config else { return People::default() };
    let passwd = passwd(&fs::read_to_string("/etc/passwd").unwrap_or_default());
    let names = candidates(config, &passwd, &members);
    let mut people = People { jailed: Vec::new(), more: names.len().saturating_sub(MOST) };
    for name in names.iter().take(MOST).filter(|name| user != Some(name.as_str())) {
        let account = match account::lookup(name) {
            Ok(account) => account,
            // Rules and groups may name whom they like.
            Err(Error::NoSuchUser(_)) => continue,
            Err(e) => {
                report.fault(SUBJECT, &e);
                continue;
            }
        };
        match login::judge(config, &account) {
            Ok(Decision::Jailed { profile, .. }) => match plan::terms(config, profile, &account) {
                Ok(_) => people.jailed.push(account),
                Err(e) => report.fault(SUBJECT, &e),
            },
            // The configuration's check has told this already.
            Ok(Decision::Exempt(_)) | Err(Error::NoSuchGroup { .. }) => {}
            Err(e) => report.fault(SUBJECT, &e),
        }
    }
    people
}

/// Reports whose login shell would not stop them on the host.
pub(super) fn shells(report: &mut Report, people: &People, user: Option<&str>) {
    let ours = paths::shell();
    let other: Vec<&str> = people
        .jailed
        .iter()
        .filter(|account| account.shell != Path::new(&ours) && !is_closed(&account.shell))
        .map(|account| account.name.as_str())
        // What `plan::terms` let through is a plain name, which a shell takes as one word.
        .filter(|name| Username::parse(name).is_ok())
        .collect();
    let rest = match people.more {
        0 => String::new(),
        more => format!(" (of the first {MOST}; {more} more were not looked at: `ojail check USER` does)"),
    };
    match other[..] {
        [] if people.jailed.is_empty() => {}
        [] => {
            let other = if user.is_some() { "other " } else { "" };
            report.ok(SUBJECT, format!("no {other}jailed user has a login shell of the host's{rest}"));
        }
        [name] => report.warn(
            SUBJECT,
            format!(
                "the login shell of {name} is not {ours}: where PAM is not asked, the host is open{rest}"
            ),
            format!("usermod -s {ours} {name}"),
        ),
        _ => report.warn(
            SUBJECT,
            format!(
                "the login shells of {} are not {ours}: where PAM is not asked, the host is open{rest}",
                other.join(", ")
            ),
            format!("for user in {}; do usermod -s {ours} $user; done", other.join(" ")),
        ),
    }
}

/// Whether a login shell lets nobody in.
fn is_closed(shell: &Path) -> bool {
    shell.ends_with("nologin") || shell.ends_with("false")
}

/// A user of `/etc/passwd`.
struct Local {
    name: String,
    uid: u32,
    gid: u32,
    shell: String,
}

/// Reads passwd(5); what is no line of it is left out.
fn passwd(text: &str) -> Vec<Local> {
    let local = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, _, shell] = fields[..] else { return None };
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        Some(Local { name: name.to_owned(), uid, gid, shell: shell.to_owned() })
    };
    text.lines().filter_map(local).collect()
}

/// How a group's gid and the members that it lists are found; tests have their own.
type Members<'a> = &'a dyn Fn(&str) -> Option<(u32, Vec<String>)>;

/// As the account data base has them.
fn members(group: &str) -> Option<(u32, Vec<String>)> {
    let group = Group::from_name(group).ok().flatten()?;
    Some((group.gid.as_raw(), group.mem))
}

/// Everybody whom a rule may jail, in the order of the rules.
fn candidates(config: &Config, passwd: &[Local], members: Members) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut add = |name: &str| {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    };
    let any = |rule: &Rule| rule.users.is_empty() || rule.users.iter().any(|name| name == "*");
    for rule in config.rules.iter().filter(|rule| rule.verdict != Verdict::Exempt) {
        for name in rule.users.iter().filter(|name| *name != "*") {
            add(name);
        }
        if !any(rule) {
            continue;
        }
        for group in &rule.groups {
            let Some((gid, listed)) = members(group) else { continue };
            for name in &listed {
                add(name);
            }
            // Whose primary group it is are not in its list.
            for local in passwd.iter().filter(|local| local.gid == gid) {
                add(&local.name);
            }
        }
        if rule.groups.is_empty() {
            let people = passwd
                .iter()
                .filter(|local| local.uid >= config.ids.min_uid && !is_closed(Path::new(&local.shell)));
            for local in people {
                add(&local.name);
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33::/var/www:/usr/sbin/nologin\n\
                          alice:x:1000:1000::/home/alice:/bin/bash\nbob:x:1001:500::/home/bob:/bin/bash\n\
                          nobody:x:65534:65534::/:/usr/sbin/nologin\n# no line\n";

    fn named(rules: &str) -> Vec<String> {
        let text = format!("[profiles.a]\nlayers = [\"debian\"]\n{rules}");
        let config = crate::config::parse(Path::new("f"), &text).unwrap();
        candidates(&config, &passwd(PASSWD), &|group| {
            (group == "jailed").then(|| (500, vec!["eve".to_owned(), "alice".to_owned()]))
        })
    }

    #[test]
    fn a_group_brings_its_list_and_those_whose_primary_group_it_is() {
        assert_eq!(named("[[rules]]\ngroup = \"jailed\"\nprofile = \"a\"\n"), ["eve", "alice", "bob"]);
    }

    #[test]
    fn everybody_is_who_can_log_in_and_is_no_account_of_the_systems() {
        assert_eq!(named("[[rules]]\nuser = \"*\"\nprofile = \"a\"\n"), ["alice", "bob"]);
    }

    #[test]
    fn a_user_who_must_also_be_in_a_group_is_named_alone_and_the_exempt_are_not() {
        assert_eq!(
            named(
                "[[rules]]\nuser = \"amy\"\nexempt = true\n\
                 [[rules]]\nuser = [\"eve\"]\ngroup = \"jailed\"\nprofile = \"a\"\n"
            ),
            ["eve"]
        );
    }
}
