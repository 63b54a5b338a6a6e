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

/// Applies the rules; the first match decides.
///
/// # Errors
/// [`Error::SystemUser`] if a rule jails a uid below `ids.min_uid`, [`Error::BadId`] for the kernel's overflow id.
pub fn decide<'a>(config: &'a Config, account: &Account) -> Result<Decision<'a>> {
    if account.uid == 0 {
        return Ok(Decision::Exempt(Exempt::Root));
    }
    let Some(rule) = config.rules.iter().find(|rule| matches(rule, account)) else {
        return Ok(Decision::Exempt(Exempt::NoRule));
    };
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
    Ok(Decision::Jailed { profile, line: rule.line })
}

/// Groups whose rules were passed over because the account is not in them, up to the rule that decided. Whether that is
/// so is for the account data base to confirm: to it, a group that it cannot reach looks like one without members.
pub fn passed_over<'a>(config: &'a Config, account: &Account) -> impl Iterator<Item = (usize, &'a str)> {
    let deciding = config.rules.iter().position(|rule| matches(rule, account)).unwrap_or(config.rules.len());
    let groups = |rule: &'a Rule| rule.groups.iter().map(|group| (rule.line, group.as_str()));
    config.rules[..deciding].iter().flat_map(groups)
}

fn matches(rule: &Rule, account: &Account) -> bool {
    let user = rule.users.is_empty() || rule.users.iter().any(|name| name == "*" || *name == account.name);
    let member = |group: &String| account.groups.iter().any(|own| own.name == *group);
    let group = rule.groups.is_empty() || rule.groups.iter().any(member);
    user && group
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Membership;
    use std::path::Path;

    fn config(rules: &str) -> Config {
        let text =
            format!("[profiles.a]\nlayers = [\"debian\"]\n[profiles.b]\nlayers = [\"debian\"]\n{rules}");
        crate::config::parse(Path::new("f"), &text).unwrap()
    }

    fn account(name: &str, uid: u32, groups: &[&str]) -> Account {
        Account {
            name: name.into(),
            uid,
            gid: uid,
            gecos: String::new(),
            home: format!("/home/{name}").into(),
            shell: "/bin/bash".into(),
            groups: groups.iter().map(|g| Membership { name: (*g).into(), gid: 500 }).collect(),
        }
    }

    fn profile<'a>(config: &'a Config, account: &Account) -> Option<&'a str> {
        match decide(config, account).unwrap() {
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
        assert_eq!(profile(&config, &account("eve", 1000, &["jailed"])), Some("b"));
        assert_eq!(profile(&config, &account("bob", 1001, &["jailed"])), Some("a"));
        assert_eq!(profile(&config, &account("amy", 1002, &["staff"])), None);
    }

    #[test]
    fn user_and_group_in_one_rule_must_both_match() {
        let config = config("[[rules]]\nuser = \"eve\"\ngroup = \"jailed\"\nprofile = \"a\"\n");
        assert_eq!(profile(&config, &account("eve", 1000, &["staff"])), None);
        assert_eq!(profile(&config, &account("eve", 1000, &["jailed"])), Some("a"));
    }

    #[test]
    fn root_is_exempt_by_uid_not_by_name() {
        let config = config("[[rules]]\nuser = \"*\"\nprofile = \"a\"\n");
        assert_eq!(decide(&config, &account("toor", 0, &[])).unwrap(), Decision::Exempt(Exempt::Root));
        assert!(
            decide(&config, &account("root", 1000, &[])).is_ok_and(|d| matches!(d, Decision::Jailed { .. }))
        );
    }

    #[test]
    fn groups_of_rules_that_did_not_match_are_to_be_confirmed() {
        let config = config(
            "[[rules]]\ngroup = \"one\"\nprofile = \"a\"\n[[rules]]\nuser = \"eve\"\nexempt = true\n\
             [[rules]]\ngroup = \"two\"\nprofile = \"a\"\n",
        );
        let groups = |account| passed_over(&config, &account).map(|(_, group)| group).collect::<Vec<_>>();
        assert_eq!(groups(account("eve", 1000, &[])), ["one"]);
        assert_eq!(groups(account("bob", 1001, &[])), ["one", "two"]);
        assert!(groups(account("amy", 1002, &["one"])).is_empty());
    }

    #[test]
    fn a_system_account_is_refused_not_exempted() {
        let config = config("[[rules]]\nuser = \"*\"\nprofile = \"a\"\n");
        assert!(matches!(
            decide(&config, &account("www-data", 33, &[])),
            Err(Error::SystemUser { uid: 33, .. })
        ));
    }
}
