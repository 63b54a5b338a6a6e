//! Who is jailed, and how: configuration and account in, decision out. No kernel, no files.

use crate::account::Account;
use crate::config::{Config, Profile, Rule, Verdict};
use crate::error::{Error, Result};

/// What the rules say of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Stays on the host.
    Exempt(Exempt),
    /// Gets a jail.
    Jailed {
        /// The profile that the rule names.
        profile: &'a Profile,
        /// The line of the rule that decided.
        line: usize,
    },
}

/// Why a user stays on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exempt {
    /// uid 0, whatever the rules say: a broken configuration must not lock the administrator out.
    Root,
    /// The rule at this line says so.
    Rule(usize),
    /// No rule matches.
    NoRule,
}

impl std::fmt::Display for Exempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Root => f.write_str("uid 0 is always exempt"),
            Self::Rule(line) => write!(f, "the rule at line {line} exempts the user"),
            Self::NoRule => f.write_str("no rule matches"),
        }
    }
}

/// Applies the rules; the first match decides. `is_in` tells whether the account is in a group, for the rule at a line; it is asked
/// of groups that matter only.
///
/// # Errors
/// [`Error::SystemUser`] if a rule jails a uid below `ids.min_uid`. And what `is_in` says: while a directory service is away, a
/// jailed user must not look like one whom no rule matches.
pub fn decide<'a>(
    config: &'a Config,
    account: &Account,
    is_in: &mut dyn FnMut(usize, &str) -> Result<bool>,
) -> Result<Decision<'a>> {
    if account.uid == 0 {
        return Ok(Decision::Exempt(Exempt::Root));
    }
    for rule in &config.rules {
        if !matches(rule, account, is_in)? {
            continue;
        }
        let profile = match &rule.verdict {
            Verdict::Exempt => return Ok(Decision::Exempt(Exempt::Rule(rule.line))),
            Verdict::Profile(name) => &config.profiles[name],
        };
        if account.uid < config.ids.min_uid {
            return Err(Error::SystemUser {
                user: account.name.clone(),
                uid: account.uid,
                min_uid: config.ids.min_uid,
            });
        }
        return Ok(Decision::Jailed { profile, line: rule.line });
    }
    Ok(Decision::Exempt(Exempt::NoRule))
}

fn matches(
    rule: &Rule,
    account: &Account,
    is_in: &mut dyn FnMut(usize, &str) -> Result<bool>,
) -> Result<bool> {
    let user = rule.users.is_empty() || rule.users.iter().any(|name| name == "*" || *name == account.name);
    if !user || rule.groups.is_empty() {
        return Ok(user);
    }
    for group in &rule.groups {
        if is_in(rule.line, group)? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Groups;
    use std::path::Path;

    fn config(rules: &str) -> Config {
        let text =
            format!("[profiles.a]\nlayers = [\"debian\"]\n[profiles.b]\nlayers = [\"debian\"]\n{rules}");
        crate::config::parse(Path::new("f"), &text).unwrap()
    }

    /// Name, uid and groups.
    type Who = (&'static str, u32, &'static [&'static str]);

    fn account(name: &str, uid: u32) -> Account {
        Account {
            name: name.into(),
            uid,
            gid: uid,
            gecos: String::new(),
            home: format!("/home/{name}").into(),
            shell: "/bin/bash".into(),
            groups: Groups::of(Vec::new()),
        }
    }

    fn decided<'a>(config: &'a Config, (name, uid, groups): Who, asked: &mut Vec<String>) -> Decision<'a> {
        let mut is_in = |_, group: &str| {
            asked.push(group.into());
            Ok(groups.contains(&group))
        };
        decide(config, &account(name, uid), &mut is_in).unwrap()
    }

    fn profile(config: &Config, who: Who) -> Option<&str> {
        match decided(config, who, &mut Vec::new()) {
            Decision::Jailed { profile, .. } => Some(&profile.name),
            Decision::Exempt(_) => None,
        }
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let config = config(
            "[[rules]]\nuser = \"eve\"\nprofile = \"b\"\n[[rules]]\ngroup = \"jailed\"\nprofile = \"a\"\n\
             [[rules]]\nuser = \"*\"\nexempt = true\n",
        );
        assert_eq!(profile(&config, ("eve", 1000, &["jailed"])), Some("b"));
        assert_eq!(profile(&config, ("bob", 1001, &["jailed"])), Some("a"));
        assert_eq!(profile(&config, ("amy", 1002, &["staff"])), None);
    }

    #[test]
    fn user_and_group_in_one_rule_must_both_match() {
        let config = config("[[rules]]\nuser = \"eve\"\ngroup = \"jailed\"\nprofile = \"a\"\n");
        assert_eq!(profile(&config, ("eve", 1000, &["staff"])), None);
        assert_eq!(profile(&config, ("eve", 1000, &["jailed"])), Some("a"));
    }

    #[test]
    fn root_is_exempt_by_uid_not_by_name() {
        let config = config("[[rules]]\nuser = \"*\"\nprofile = \"a\"\n");
        assert_eq!(decided(&config, ("toor", 0, &[]), &mut Vec::new()), Decision::Exempt(Exempt::Root));
        assert_eq!(profile(&config, ("root", 1000, &[])), Some("a"));
    }

    #[test]
    fn only_groups_that_matter_are_asked_for_and_what_cannot_be_told_is_an_error() {
        let config = config(
            "[[rules]]\ngroup = [\"one\", \"more\"]\nprofile = \"a\"\n[[rules]]\nuser = \"eve\"\nexempt = true\n\
             [[rules]]\nuser = \"amy\"\ngroup = \"hers\"\nprofile = \"a\"\n[[rules]]\ngroup = \"two\"\nprofile = \"a\"\n",
        );
        let asked = |who| {
            let mut asked = Vec::new();
            decided(&config, who, &mut asked);
            asked.join(" ")
        };
        assert_eq!(asked(("eve", 1000, &[])), "one more");
        assert_eq!(asked(("bob", 1001, &[])), "one more two");
        assert_eq!(asked(("amy", 1002, &[])), "one more hers two");
        assert_eq!(asked(("amy", 1002, &["one"])), "one");
        assert_eq!(asked(("toor", 0, &[])), "");
        let mut away = |line: usize, group: &str| match group {
            "more" => Err(Error::NoSuchGroup { named_by: line.to_string(), group: group.into() }),
            _ => Ok(false),
        };
        let failed = decide(&config, &account("eve", 1000), &mut away);
        assert!(matches!(failed, Err(Error::NoSuchGroup { .. })), "{failed:?}");
    }

    #[test]
    fn a_system_account_is_refused_not_exempted() {
        let config = config("[[rules]]\nuser = \"*\"\nprofile = \"a\"\n");
        let decided = decide(&config, &account("www-data", 33), &mut |_, _| Ok(false));
        assert!(matches!(decided, Err(Error::SystemUser { uid: 33, .. })));
    }
}
