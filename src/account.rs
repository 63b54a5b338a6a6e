//! Users as the host's account data base (NSS) has them.
//!
//! Looked up by the PAM module and by `ojail`, before anything of a jail is touched. The static binaries never ask NSS.

use std::cell::OnceCell;
use std::ffi::CString;
use std::fmt;
use std::path::PathBuf;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use serde::{Deserialize, Serialize};

use crate::error::{Act, Error, Result};

/// One user of the host.
#[derive(Debug, Clone)]
pub struct Account {
    /// The name as the data base spells it; not yet fit for a path, see [`Username`].
    pub name: String,
    /// The user's id.
    pub uid: u32,
    /// The primary group's id.
    pub gid: u32,
    /// Full name and the like.
    pub gecos: String,
    /// The home directory on the host.
    pub home: PathBuf,
    /// The login shell on the host.
    pub shell: PathBuf,
    /// For [`Account::gids`] and [`Account::memberships`].
    pub groups: Groups,
}

impl Account {
    /// The id of every group of the user, the primary one too. Empty for who is in no data base.
    ///
    /// # Errors
    /// [`Error::Act`] if the data base could not answer.
    pub fn gids(&self) -> Result<&[u32]> {
        if let Some(gids) = self.groups.gids.get() {
            return Ok(gids);
        }
        let name = CString::new(self.name.as_str()).map_err(|_| Error::NoSuchUser(self.name.clone()))?;
        let gids = getgrouplist(&name, Gid::from_raw(self.gid)).act("look up the groups of", &self.name)?;
        Ok(self.groups.gids.get_or_init(|| gids.into_iter().map(Gid::as_raw).collect()))
    }

    /// Every group of the user with its name. A question for each of them.
    ///
    /// # Errors
    /// As [`Account::gids`].
    pub fn memberships(&self) -> Result<&[Membership]> {
        if let Some(named) = self.groups.named.get() {
            return Ok(named);
        }
        let named = self.gids()?.iter().map(|gid| membership(*gid)).collect::<Result<_>>()?;
        Ok(self.groups.named.get_or_init(|| named))
    }
}

/// The groups of a user. By default the data base is asked for them, when they matter for the first time: to a directory service
/// these are the dearest of questions.
#[derive(Debug, Clone, Default)]
pub struct Groups {
    gids: OnceCell<Vec<u32>>,
    named: OnceCell<Vec<Membership>>,
}

impl Groups {
    /// These.
    #[must_use]
    pub fn of(gids: Vec<u32>) -> Self {
        Self { gids: OnceCell::from(gids), named: OnceCell::new() }
    }
}

/// A group that a user is in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Membership {
    /// The group's name; its number in digits where it has none.
    pub name: String,
    /// The group's id.
    pub gid: u32,
}

/// A user name that is safe as one file name: the only form in which a name reaches a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Username(String);

impl Username {
    /// Longest name, in bytes. Twice what `useradd` takes, and short enough for a Unix socket's path.
    pub const MAX: usize = 64;

    /// Takes `[A-Za-z0-9_][A-Za-z0-9_.-]*`, with a `$` at the end for Samba's sake.
    ///
    /// # Errors
    /// [`Error::BadName`] for everything else: `..`, `a/b`, `u@realm`, spaces, other scripts, too long.
    pub fn parse(name: &str) -> Result<Self> {
        let body = name.strip_suffix('$').unwrap_or(name);
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if name.len() > Self::MAX
            || body.is_empty()
            || body.starts_with(['.', '-'])
            || !body.chars().all(plain)
        {
            return Err(Error::BadName { name: name.escape_default().to_string(), most: Self::MAX });
        }
        Ok(Self(name.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Username {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<std::path::Path> for Username {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

/// Asks NSS for a user.
///
/// # Errors
/// [`Error::NoSuchUser`]; [`Error::Act`] if the data base could not answer.
pub fn lookup(name: &str) -> Result<Account> {
    let user = User::from_name(name)
        .act("look up the user", name.escape_default().to_string())?
        .ok_or_else(|| Error::NoSuchUser(name.escape_default().to_string()))?;
    Ok(Account {
        name: user.name,
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        gecos: user.gecos.to_string_lossy().into_owned(),
        home: user.dir,
        shell: user.shell,
        groups: Groups::default(),
    })
}

/// Who has this id, if somebody does who can have a jail. To be shown; nothing is decided by it.
#[must_use]
pub fn name_of(uid: u32) -> Option<Username> {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten()?;
    Username::parse(&user.name).ok()
}

fn membership(gid: u32) -> Result<Membership> {
    let group = Group::from_gid(Gid::from_raw(gid)).act("look up the group", gid.to_string())?;
    Ok(Membership { name: group.map_or_else(|| gid.to_string(), |group| group.name), gid })
}

/// The user's primary group. For who is in no data base it has their own name.
///
/// # Errors
/// [`Error::Act`] if the data base could not answer.
pub fn primary(account: &Account) -> Result<Membership> {
    if account.gids()?.contains(&account.gid) {
        return membership(account.gid);
    }
    Ok(Membership { name: account.name.clone(), gid: account.gid })
}

/// Whether the user is in a group. That they are not is confirmed by the group itself: getgrouplist(3) leaves out, without a word,
/// what a directory service could not tell.
///
/// # Errors
/// [`Error::NoSuchGroup`], [`Error::Act`] if the data base could not answer, or answers two ways.
pub fn is_in(account: &Account, group: &str, named_by: &str) -> Result<bool> {
    let found = Group::from_name(group)
        .act("look up the group", group)?
        .ok_or_else(|| Error::NoSuchGroup { named_by: named_by.to_owned(), group: group.to_owned() })?;
    if account.gids()?.contains(&found.gid.as_raw()) {
        return Ok(true);
    }
    // Of two groups with this name, a directory service's and the host's own, the other was found.
    if account.memberships()?.iter().any(|own| own.name == group) {
        return Ok(true);
    }
    if found.gid.as_raw() == account.gid || found.mem.contains(&account.name) {
        let odd = std::io::Error::other(
            "the account data base lists the user in it, but not it among the user's groups",
        );
        return Err(odd).act("tell who is in the group", group);
    }
    Ok(false)
}

/// Whether the host has a group of this name.
///
/// # Errors
/// [`Error::Act`] if the data base could not answer.
pub fn group_exists(name: &str) -> Result<bool> {
    Ok(Group::from_name(name).act("look up the group", name)?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_are_taken() {
        for name in ["alice", "Alice", "_apt", "a.b-c_9", "host$", "7up", &"x".repeat(64)] {
            assert_eq!(Username::parse(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_that_could_be_paths_or_options_are_refused() {
        let long = "x".repeat(255);
        for name in [
            "",
            ".",
            "..",
            "../../etc",
            "a/b",
            "DOM\\u",
            "u@realm",
            "a b",
            "%u",
            "-x",
            ".x",
            "$",
            "é",
            "a\n",
            &long,
        ] {
            assert!(Username::parse(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn root_is_in_every_data_base_and_nobody_of_this_name_is() {
        assert_eq!(lookup("root").unwrap().uid, 0);
        assert!(matches!(lookup("no such user"), Err(Error::NoSuchUser(_))));
    }
}
