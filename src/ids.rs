//! Ids: which range outside stands for 0–65535 inside, and who owns it.
//!
//! The maps are pure. The ranges come from `/etc/subuid` and `/etc/subgid`, else from a pool, once and for good; what
//! was given is kept in `/var/lib/ojail/users/NAME.toml`. Used, as host root, by whoever plans a jail.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::account::{self, Account, Username};
use crate::config::Ids;
use crate::error::{Act, Error, IfThere, Result};
use crate::{paths, runtime};

/// How many ids a jail has: 0–65535, what Debian's policy knows.
pub const COUNT: u32 = 65_536;

/// The kernel's overflow id: what unmapped ids look like. Nobody may own it.
const OVERFLOW: u32 = 65_534;

/// One line of a `uid_map`: `count` ids from `inside` on are `outside` and the following.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First id in the jail.
    pub inside: u32,
    /// First id on the host.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The map for a jail: 0–65535 to the range at `first`, but `own` ids to themselves.
///
/// The extents are sorted and do not overlap. An own id above 65535 becomes one more extent.
#[must_use]
pub fn map(first: u32, own: &[u32]) -> Vec<Extent> {
    let own: BTreeSet<u32> = own.iter().copied().collect();
    let mut extents = Vec::new();
    let mut next = 0;
    for id in own {
        if id < COUNT && id > next {
            extents.push(Extent { inside: next, outside: first + next, count: id - next });
        }
        if id >= COUNT && next < COUNT {
            extents.push(Extent { inside: next, outside: first + next, count: COUNT - next });
        }
        extents.push(Extent { inside: id, outside: id, count: 1 });
        next = (id + 1).max(next);
    }
    if next < COUNT {
        extents.push(Extent { inside: next, outside: first + next, count: COUNT - next });
    }
    extents
}

/// The id outside of an id inside; the overflow id if the map has none.
#[must_use]
pub fn to_outside(map: &[Extent], inside: u32) -> u32 {
    let extent = map.iter().find(|e| inside >= e.inside && inside - e.inside < e.count);
    extent.map_or(OVERFLOW, |e| e.outside + (inside - e.inside))
}

/// The map as the kernel reads it.
#[must_use]
pub fn lines(map: &[Extent]) -> String {
    map.iter().map(|e| format!("{} {} {}\n", e.inside, e.outside, e.count)).collect()
}

/// Where a user's ids are outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranges {
    /// First uid.
    pub uid: u32,
    /// First gid.
    pub gid: u32,
}

/// What is kept of a user for as long as they have an upper: the proof that it is theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// The uid at the first login. The same name with another uid is another person.
    pub uid: u32,
    /// First id of the range, if it came from the pool.
    pub pool: Option<u32>,
}

/// One range in a file of the subuid(5) format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sub {
    first: u32,
    count: u32,
}

impl Sub {
    fn overlaps(self, other: Self) -> bool {
        let end = |s: Self| u64::from(s.first) + u64::from(s.count);
        u64::from(self.first) < end(other) && u64::from(other.first) < end(self)
    }

    fn contains(self, id: u32) -> bool {
        id >= self.first && u64::from(id) < u64::from(self.first) + u64::from(self.count)
    }
}

/// Host files that this room reads and writes; tests have their own.
#[derive(Debug, Clone)]
pub struct Registry {
    subuid: PathBuf,
    subgid: PathBuf,
    users: PathBuf,
    lock: PathBuf,
}

impl Default for Registry {
    fn default() -> Self {
        Self::at(Path::new("/etc"), Path::new(paths::STATE), Path::new(paths::RUN))
    }
}

impl Registry {
    fn at(etc: &Path, state: &Path, run: &Path) -> Self {
        Self {
            subuid: etc.join("subuid"),
            subgid: etc.join("subgid"),
            users: state.join("users"),
            lock: run.join("ids.lock"),
        }
    }

    /// The user's ranges; gives one from the pool if nobody gave one before.
    ///
    /// # Errors
    /// [`Error::IdRange`] if the range is too small, overlaps another's, or the registry is damaged; [`Error::BadId`].
    pub fn ranges(&self, user: &Username, account: &Account, ids: &Ids) -> Result<Ranges> {
        // One at a time: two first logins must not be given one range.
        let _lock = runtime::lock_file(&self.lock)?;
        let known = self.known(user, account)?;
        if let Some(ranges) = known.ranges {
            self.alone(user, account, ranges, &known)?;
            if !known.recorded {
                self.keep(user, &Owner { uid: account.uid, pool: None })?;
            }
            return Ok(ranges);
        }
        let first = self.free(user, account.uid, ids, &known)?;
        let ranges = Ranges { uid: first, gid: first };
        self.alone(user, account, ranges, &known)?;
        self.keep(user, &Owner { uid: account.uid, pool: Some(first) })?;
        Ok(ranges)
    }

    /// Lends a range of the pool to a temporary jail, until it is given back. `name` is no user's.
    ///
    /// # Errors
    /// As [`Registry::ranges`].
    pub fn lend(&self, name: &Username, ids: &Ids) -> Result<Ranges> {
        let _lock = runtime::lock_file(&self.lock)?;
        let mut known =
            Known { ranges: None, recorded: false, uids: Vec::new(), gids: Vec::new(), pool: Vec::new() };
        for (path, others) in [(&self.subuid, &mut known.uids), (&self.subgid, &mut known.gids)] {
            let lines = sub_lines(&read_subids(path)?)
                .map_err(|why| Error::IdRange(format!("{}{why}", path.display())))?;
            others.extend(
                lines.into_iter().map(|line| Named {
                    name: line.owner,
                    range: Sub { first: line.first, count: line.count },
                }),
            );
        }
        known.pool = self.pool(Some(name))?;
        // Any id of the range would do for the record; 0 is in none.
        let first = self.free(name, 0, ids, &known)?;
        self.keep(name, &Owner { uid: first, pool: Some(first) })?;
        Ok(Ranges { uid: first, gid: first })
    }

    /// The range that was lent under this name.
    ///
    /// # Errors
    /// [`Error::Act`], [`Error::Unfit`].
    pub fn lent(&self, name: &Username) -> Result<Option<Ranges>> {
        let owner = read_owner(&self.record(name))?;
        Ok(owner.and_then(|owner| owner.pool).map(|first| Ranges { uid: first, gid: first }))
    }

    /// Takes a range back that was lent. Nobody has an id of it any more.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn give_back(&self, name: &Username) -> Result<()> {
        let _lock = runtime::lock_file(&self.lock)?;
        // The draft, too: a kill may have come before the record was one.
        for path in [self.draft(name), self.record(name)] {
            fs::remove_file(&path).if_there().act("remove", &path)?;
        }
        Ok(())
    }

    /// Everybody whose record begins with this.
    ///
    /// # Errors
    /// As [`Registry::ranges`], where it does not depend on a user.
    pub fn owners(&self, prefix: &str) -> Result<Vec<String>> {
        let names = self.pool(None)?.into_iter().map(|(name, _)| name);
        Ok(names.filter(|name| name.starts_with(prefix)).collect())
    }

    /// The user's ranges as a login would find them; `None` if the pool would give one. Changes nothing.
    ///
    /// # Errors
    /// As [`Registry::ranges`].
    pub fn foresee(&self, user: &Username, account: &Account) -> Result<Option<Ranges>> {
        let known = self.known(user, account)?;
        if let Some(ranges) = known.ranges {
            self.alone(user, account, ranges, &known)?;
        }
        Ok(known.ranges)
    }

    /// How many more users the pool can give a range. Changes nothing.
    ///
    /// # Errors
    /// As [`Registry::ranges`], where it does not depend on a user.
    pub fn room(&self, ids: &Ids) -> Result<u32> {
        let mut taken = Vec::new();
        for path in [&self.subuid, &self.subgid] {
            let lines = self.sub_lines(path)?;
            taken.extend(lines.iter().map(|line| Sub { first: line.first, count: line.count }));
        }
        for (_, owner) in self.pool(None)? {
            taken.extend(owner.pool.map(|first| Sub { first, count: COUNT }));
            taken.push(Sub { first: owner.uid, count: 1 });
        }
        let slots = (u64::from(ids.last) + 1 - u64::from(ids.first)) / u64::from(COUNT);
        // The pool's slots, counted from its start, that each of them lies in.
        let mut used = BTreeSet::new();
        for range in taken.iter().filter(|range| range.count > 0) {
            let slot = |id: u64| id.saturating_sub(u64::from(ids.first)) / u64::from(COUNT);
            let last = u64::from(range.first) + u64::from(range.count) - 1;
            if last >= u64::from(ids.first) {
                used.extend(slot(range.first.into())..=slot(last).min(slots));
            }
        }
        let used = used.range(..slots).count() as u64;
        Ok(u32::try_from(slots - used).unwrap_or(u32::MAX))
    }

    /// What is kept of a user. Changes nothing.
    ///
    /// # Errors
    /// [`Error::Unfit`] if the record is damaged.
    pub fn owner(&self, user: &Username) -> Result<Option<Owner>> {
        read_owner(&self.record(user))
    }

    /// Keeps of a user what was kept before, or elsewhere. A range that somebody else has by now is left out; the next login gives
    /// another. Returns what is kept.
    ///
    /// # Errors
    /// As [`Registry::ranges`], where it does not depend on the configuration.
    pub fn adopt(&self, user: &Username, owner: &Owner) -> Result<Owner> {
        let _lock = runtime::lock_file(&self.lock)?;
        let mut taken = Vec::new();
        for path in [&self.subuid, &self.subgid] {
            let lines = self.sub_lines(path)?;
            taken.extend(lines.iter().map(|line| Sub { first: line.first, count: line.count }));
        }
        for (_, other) in self.pool(Some(user))? {
            taken.extend(other.pool.map(|first| Sub { first, count: COUNT }));
            taken.push(Sub { first: other.uid, count: 1 });
        }
        let free = |first: &u32| {
            let range = Sub { first: *first, count: COUNT };
            *first >= COUNT
                && first.checked_add(COUNT).is_some()
                && !taken.iter().any(|other| other.count > 0 && other.overlaps(range))
        };
        let owner = Owner { uid: owner.uid, pool: owner.pool.filter(free) };
        self.keep(user, &owner)?;
        Ok(owner)
    }

    /// Forgets what is kept of a user, whose range others may have then. Returns what it was.
    ///
    /// # Errors
    /// [`Error::Unfit`] if the record is damaged; [`Error::Act`].
    pub fn release(&self, user: &Username) -> Result<Option<Owner>> {
        let _lock = runtime::lock_file(&self.lock)?;
        let path = self.record(user);
        let owner = read_owner(&path)?;
        if owner.is_some() {
            fs::remove_file(&path).act("remove", &path)?;
            fs::File::open(&self.users).and_then(|dir| dir.sync_all()).act("sync", &self.users)?;
        }
        Ok(owner)
    }

    /// The lines of `/etc/subuid` and `/etc/subgid` that are a user's, as `FILE:LINE`.
    ///
    /// # Errors
    /// [`Error::IdRange`] if a file is damaged.
    pub fn lines(&self, user: &Username, uid: Option<u32>) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for path in [&self.subuid, &self.subgid] {
            for line in self.sub_lines(path)? {
                if line.owner == user.as_str() || uid.is_some_and(|uid| line.owner.parse() == Ok(uid)) {
                    lines.push(format!("{}:{}", path.display(), line.line));
                }
            }
        }
        Ok(lines)
    }

    fn sub_lines(&self, path: &Path) -> Result<Vec<SubLine>> {
        sub_lines(&read_subids(path)?).map_err(|why| Error::IdRange(format!("{}{why}", path.display())))
    }

    fn known(&self, user: &Username, account: &Account) -> Result<Known> {
        if account.uid == OVERFLOW {
            return Err(Error::BadId {
                user: user.to_string(),
                kind: "uid",
                id: account.uid,
                why: "it is the kernel's overflow id",
            });
        }
        let kept = read_owner(&self.record(user))?;
        if let Some(owner) = kept.as_ref().filter(|owner| owner.uid != account.uid) {
            return Err(Error::Unfit {
                path: self.record(user),
                why: format!(
                    "the upper of {user} belongs to uid {}, but {user} has uid {} now; \
                     if this is the same person, correct the uid in this file, \
                     else move the upper away and remove this file",
                    owner.uid, account.uid
                ),
            });
        }
        let uids = subids(&self.subuid, user, account.uid)?;
        let gids = subids(&self.subgid, user, account.uid)?;
        let ranges = match (uids.own, gids.own) {
            (Some(uid), Some(gid)) => Some(Ranges { uid: uid.first, gid: gid.first }),
            (None, None) => {
                kept.as_ref().and_then(|owner| owner.pool).map(|first| Ranges { uid: first, gid: first })
            }
            (uid, _) => {
                let (has, lacks) =
                    if uid.is_some() { (&self.subuid, &self.subgid) } else { (&self.subgid, &self.subuid) };
                return Err(Error::IdRange(format!(
                    "{user} has a range in {} but none in {}; add one of {COUNT} ids to both",
                    has.display(),
                    lacks.display()
                )));
            }
        };
        Ok(Known {
            ranges,
            recorded: kept.is_some(),
            uids: uids.others,
            gids: gids.others,
            pool: self.pool(Some(user))?,
        })
    }

    fn record(&self, user: &Username) -> PathBuf {
        self.users.join(format!("{user}.toml"))
    }

    /// The record while it is written.
    fn draft(&self, user: &Username) -> PathBuf {
        self.users.join(format!(".{user}.new"))
    }

    /// Writes the record so that a crash leaves the old or the new, never a part.
    fn keep(&self, user: &Username, owner: &Owner) -> Result<()> {
        runtime::private_dir(&self.users)?;
        let path = self.record(user);
        let temp = self.draft(user);
        // The uid is last, and must be there: a file that was cut short at the end of a line is still known for damaged.
        let pool = owner.pool.map(|first| format!("pool = {first}\n")).unwrap_or_default();
        let text = format!("{pool}uid = {}\n", owner.uid);
        let _limit = SizeLimit::lift(text.len() as u64).act("write", &temp)?;
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temp)
            .act("create", &temp)?;
        file.write_all(text.as_bytes()).act("write", &temp)?;
        file.sync_all().act("sync", &temp)?;
        fs::rename(&temp, &path).act("rename to", &path)?;
        fs::File::open(&self.users).and_then(|dir| dir.sync_all()).act("sync", &self.users)
    }

    /// Every range that the pool gave to somebody else, with its owner.
    ///
    /// A damaged record is an error: its range is unknown, so no other can be called free.
    fn pool(&self, user: Option<&Username>) -> Result<Vec<(String, Owner)>> {
        let Some(entries) = fs::read_dir(&self.users).if_there().act("list", &self.users)? else {
            return Ok(Vec::new());
        };
        let mut owners = Vec::new();
        for entry in entries {
            let path = entry.act("list", &self.users)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(name) = name.strip_suffix(".toml") else { continue };
            if user.is_some_and(|user| name == user.as_str()) {
                continue;
            }
            if let Some(owner) = read_owner(&path)? {
                owners.push((name.to_owned(), owner));
            }
        }
        Ok(owners)
    }

    /// The first free range of the pool.
    fn free(&self, user: &Username, uid: u32, ids: &Ids, known: &Known) -> Result<u32> {
        let pool =
            known.pool.iter().filter_map(|(_, owner)| owner.pool).map(|first| Sub { first, count: COUNT });
        // Real uids of jailed users, when a directory service gives them from within the pool.
        let real =
            known.pool.iter().map(|(_, owner)| owner.uid).chain([uid]).map(|first| Sub { first, count: 1 });
        let others = known.uids.iter().chain(&known.gids).map(|other| other.range);
        let taken: Vec<Sub> = pool.chain(real).chain(others).collect();
        let mut first = ids.first;
        while u64::from(first) + u64::from(COUNT) - 1 <= u64::from(ids.last) {
            let range = Sub { first, count: COUNT };
            let Some(other) = taken.iter().find(|other| other.overlaps(range)) else { return Ok(first) };
            // On to the first range, counted from the pool's start, behind the one in the way.
            let past = u64::from(other.first) + u64::from(other.count) - u64::from(ids.first);
            let next = u64::from(ids.first) + past.div_ceil(u64::from(COUNT)) * u64::from(COUNT);
            first = u32::try_from(next).unwrap_or(u32::MAX);
        }
        Err(Error::IdRange(format!(
            "the pool of ids from {} to {} is used up, so {user} gets none; raise ids.last in {}",
            ids.first,
            ids.last,
            paths::CONFIG
        )))
    }

    /// Nobody else may own an id of the ranges: not another's subordinate range, not the pool's, not a real user.
    fn alone(&self, user: &Username, account: &Account, ranges: Ranges, known: &Known) -> Result<()> {
        // Two jails of one uid would share limits and, seen from the host, be one user. One who is gone shares nothing.
        for (name, _) in known.pool.iter().filter(|(_, owner)| owner.uid == account.uid) {
            match account::lookup(name) {
                Ok(other) if other.uid == account.uid => {
                    return Err(Error::IdRange(format!(
                        "{user} and {name}, who has a jail, are both uid {}; give one of them another, or exempt {user} with a rule",
                        account.uid
                    )));
                }
                Ok(_) | Err(Error::NoSuchUser(_)) => {}
                Err(e) => return Err(e),
            }
        }
        for (first, file, others) in
            [(ranges.uid, &self.subuid, &known.uids), (ranges.gid, &self.subgid, &known.gids)]
        {
            let range = Sub { first, count: COUNT };
            if first < COUNT {
                return Err(Error::IdRange(format!(
                    "{}: the range of {user} starts at {first}, among the host's own ids; \
                     it must start at {COUNT} or above",
                    file.display()
                )));
            }
            if let Some(other) = others.iter().find(|other| other.range.overlaps(range)) {
                return Err(Error::IdRange(format!(
                    "{}: the ranges of {user} and {} overlap at {}; give each a range of their own",
                    file.display(),
                    other.name,
                    first.max(other.range.first)
                )));
            }
            for (name, owner) in &known.pool {
                let given = owner.pool.map(|first| Sub { first, count: COUNT });
                if range.contains(owner.uid) || given.is_some_and(|given| range.overlaps(given)) {
                    return Err(Error::IdRange(format!(
                        "the range of {user} at {first} overlaps the ids of {name} (see {}); \
                         give {user} another range in {}",
                        self.users.display(),
                        file.display()
                    )));
                }
                if given.is_some_and(|given| given.contains(account.uid)) {
                    return Err(Error::IdRange(format!(
                        "the uid {} of {user} lies in the range that {name} was given; move the pool with ids.first in {}",
                        account.uid,
                        paths::CONFIG
                    )));
                }
            }
        }
        Ok(())
    }
}

/// What is on record before anything is given.
struct Known {
    ranges: Option<Ranges>,
    /// Whether the user's own record is there.
    recorded: bool,
    /// Subordinate ranges of others.
    uids: Vec<Named>,
    gids: Vec<Named>,
    /// What others were given from the pool.
    pool: Vec<(String, Owner)>,
}

fn read_owner(path: &Path) -> Result<Option<Owner>> {
    let Some(text) = fs::read_to_string(path).if_there().act("read", path)? else { return Ok(None) };
    // The last byte that `keep` writes: without it the file was cut short, even if what is left would parse.
    let owner = if text.ends_with('\n') { toml::from_str(&text).ok() } else { None };
    owner.map(Some).ok_or_else(|| Error::Unfit {
        path: path.to_owned(),
        why: "is damaged, so it is unknown which ids are taken; restore it from a backup \
              (`pool = …` if the range came from the pool, then `uid = …`, a line each)"
            .into(),
    })
}

/// A range with its owner's name.
struct Named {
    name: String,
    range: Sub,
}

struct Subids {
    own: Option<Sub>,
    others: Vec<Named>,
}

/// Reads a file of the subuid(5) format: `NAME-OR-UID:FIRST:COUNT` a line. A missing file has no ranges.
fn subids(path: &Path, user: &Username, uid: u32) -> Result<Subids> {
    parse_subids(&read_subids(path)?, user, uid)
        .map_err(|why| Error::IdRange(format!("{}{why}", path.display())))
}

fn read_subids(path: &Path) -> Result<String> {
    Ok(fs::read_to_string(path).if_there().act("read", path)?.unwrap_or_default())
}

/// One line of a file of the subuid(5) format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubLine {
    /// Where it stands, from 1.
    pub line: usize,
    /// A user's name, or a uid in digits.
    pub owner: String,
    /// First id.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// Reads the text of a file of the subuid(5) format.
///
/// # Errors
/// The first line that is none, as `:LINE: why`, to be appended to the file's name.
pub fn sub_lines(text: &str) -> Result<Vec<SubLine>, String> {
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut fields = line.split(':');
        let parsed = (|| {
            let owner = fields.next()?.to_owned();
            let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            let fits = u64::from(first) + u64::from(count) <= u64::from(u32::MAX);
            (fields.next().is_none() && fits).then_some(SubLine { line: number, owner, first, count })
        })();
        lines.push(parsed.ok_or_else(|| format!(":{number}: not of the form NAME:FIRST:COUNT: \"{line}\""))?);
    }
    Ok(lines)
}

fn parse_subids(text: &str, user: &Username, uid: u32) -> Result<Subids, String> {
    let mut own: Option<Sub> = None;
    let mut small = None;
    let mut others = Vec::new();
    for SubLine { line, owner, first, count } in sub_lines(text)? {
        let range = Sub { first, count };
        if owner != user.as_str() && owner.parse() != Ok(uid) {
            others.push(Named { name: owner, range });
        } else if range.count < COUNT {
            small = small.or(Some((line, range.count)));
        } else {
            own = own.or(Some(range));
        }
    }
    match (own, small) {
        (None, Some((number, count))) => {
            Err(format!(":{number}: the range of {user} has {count} ids; a jail needs {COUNT}"))
        }
        _ => Ok(Subids { own, others }),
    }
}

/// The limit on the size of files, which is lifted for as long as this lives. pam_limits may have set the user's in a login process, and
/// a write beyond it is its end (SIGXFSZ), without a word.
struct SizeLimit {
    soft: u64,
    hard: u64,
}

impl SizeLimit {
    /// `None` if so many bytes may be written already.
    fn lift(size: u64) -> std::io::Result<Option<Self>> {
        const FSIZE: Resource = Resource::RLIMIT_FSIZE;
        let (soft, hard) = getrlimit(FSIZE)?;
        if soft >= size {
            return Ok(None);
        }
        let limit = Self { soft, hard };
        // To raise the hard limit takes SYS_RESOURCE, which host root in a container may lack.
        if setrlimit(FSIZE, RLIM_INFINITY, RLIM_INFINITY).is_err() {
            setrlimit(FSIZE, hard, hard)?;
        }
        if getrlimit(FSIZE)?.0 < size {
            return Err(std::io::Error::from_raw_os_error(libc::EFBIG));
        }
        Ok(Some(limit))
    }
}

impl Drop for SizeLimit {
    fn drop(&mut self) {
        // Lower than what is: nothing is needed for that.
        let _ = setrlimit(Resource::RLIMIT_FSIZE, self.soft, self.hard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Groups;

    fn extent(inside: u32, outside: u32, count: u32) -> Extent {
        Extent { inside, outside, count }
    }

    #[test]
    fn own_ids_map_to_themselves_and_the_rest_to_the_range() {
        let map = map(524_288, &[1000, 1005]);
        assert_eq!(
            map,
            [
                extent(0, 524_288, 1000),
                extent(1000, 1000, 1),
                extent(1001, 525_289, 4),
                extent(1005, 1005, 1),
                extent(1006, 525_294, 64_530),
            ]
        );
        assert_eq!(map.iter().map(|e| e.count).sum::<u32>(), COUNT);
    }

    #[test]
    fn ids_above_the_range_and_at_its_edges_work() {
        assert_eq!(map(100_000, &[1_000_600]), [extent(0, 100_000, COUNT), extent(1_000_600, 1_000_600, 1)]);
        let edge = map(100_000, &[65_535, 1, 1]);
        assert_eq!(edge[1], extent(1, 1, 1));
        assert_eq!(edge.last(), Some(&extent(65_535, 65_535, 1)));
        assert_eq!(lines(&edge).lines().count(), 4);
    }

    #[test]
    fn extents_never_overlap() {
        for own in [vec![0], vec![5, 6, 7], vec![65_534, 65_535, 65_536], vec![70_000, 80_000]] {
            let map = map(524_288, &own);
            for pair in map.windows(2) {
                assert!(pair[0].inside + pair[0].count <= pair[1].inside, "{own:?}: {map:?}");
            }
        }
    }

    fn account(name: &str, uid: u32) -> Account {
        Account {
            name: name.into(),
            uid,
            gid: uid,
            gecos: String::new(),
            home: "/home".into(),
            shell: "/bin/sh".into(),
            groups: Groups::of(Vec::new()),
        }
    }

    struct Bench {
        dir: tempfile::TempDir,
        registry: Registry,
        ids: Ids,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let registry = Registry::at(dir.path(), &dir.path().join("state"), &dir.path().join("run"));
            Self { dir, registry, ids: Ids { first: 524_288, last: 524_288 + 10 * COUNT - 1, min_uid: 1000 } }
        }

        fn sub(&self, text: &str) {
            fs::write(self.dir.path().join("subuid"), text).unwrap();
            fs::write(self.dir.path().join("subgid"), text).unwrap();
        }

        fn ranges(&self, name: &str, uid: u32) -> Result<Ranges> {
            self.registry.ranges(&Username::parse(name).unwrap(), &account(name, uid), &self.ids)
        }
    }

    #[test]
    fn a_range_of_subuid_is_taken_and_one_too_small_is_refused() {
        let bench = Bench::new();
        bench.sub("alice:100000:65536\n1002:300000:65536\nbob:165536:1000\n");
        assert_eq!(bench.ranges("alice", 1000).unwrap().uid, 100_000);
        assert_eq!(bench.ranges("carl", 1002).unwrap().gid, 300_000);
        let text = bench.ranges("bob", 1001).unwrap_err().to_string();
        assert!(text.contains("subuid:3: the range of bob has 1000 ids"), "{text}");
    }

    #[test]
    fn overlapping_ranges_are_refused_for_both() {
        let bench = Bench::new();
        bench.sub("alice:100000:65536\nbob:165535:65536\n");
        assert!(bench.ranges("alice", 1000).unwrap_err().to_string().contains("overlap at 165535"));
        assert!(bench.ranges("bob", 1001).unwrap_err().to_string().contains("overlap at 165535"));
        bench.sub("alice:1000:65536\n");
        assert!(bench.ranges("alice", 1000).unwrap_err().to_string().contains("host's own ids"));
    }

    #[test]
    fn the_pool_gives_once_keeps_and_steps_around_others() {
        let bench = Bench::new();
        bench.sub("rootless:530000:65536\n");
        let first = bench.ranges("alice", 1000).unwrap();
        assert_eq!(first.uid, 524_288 + 2 * COUNT, "the first two would overlap rootless' range");
        assert_eq!(bench.ranges("alice", 1000).unwrap(), first);
        assert_eq!(bench.ranges("bob", 1001).unwrap().uid, 524_288 + 3 * COUNT);
    }

    #[test]
    fn the_room_of_the_pool_is_what_it_will_give() {
        for sub in ["", "rootless:530000:65536\n", "a:1:524288\nc:1000000:4000000000\n"] {
            let bench = Bench::new();
            bench.sub(sub);
            bench
                .registry
                .ranges(&Username::parse("early").unwrap(), &account("early", 900), &bench.ids)
                .unwrap();
            let room = bench.registry.room(&bench.ids).unwrap();
            for left in (0..room).rev() {
                bench.ranges(&format!("u{left}"), 1000 + left).unwrap();
                assert_eq!(bench.registry.room(&bench.ids).unwrap(), left, "{sub:?}");
            }
            assert!(bench.ranges("late", 2000).unwrap_err().to_string().contains("is used up"), "{sub:?}");
        }
    }

    #[test]
    fn the_pool_ends_with_a_sentence() {
        let bench = Bench::new();
        for i in 0..10 {
            bench.ranges(&format!("u{i}"), 1000 + i).unwrap();
        }
        assert!(bench.ranges("late", 2000).unwrap_err().to_string().contains("is used up"));
    }

    #[test]
    fn a_hundred_first_logins_at_once_get_a_hundred_ranges() {
        let bench = Bench::new();
        let ids = Ids { last: 524_288 + 200 * COUNT, ..bench.ids };
        let ranges: Vec<u32> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..100)
                .map(|i| {
                    let (registry, ids) = (bench.registry.clone(), ids.clone());
                    scope.spawn(move || {
                        let name = format!("u{i}");
                        registry
                            .ranges(&Username::parse(&name).unwrap(), &account(&name, 1000 + i), &ids)
                            .unwrap()
                            .uid
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(ranges.iter().collect::<BTreeSet<_>>().len(), 100);
    }

    #[test]
    fn a_record_cut_short_refuses_its_owner_and_every_new_user() {
        let bench = Bench::new();
        bench.ranges("alice", 1000).unwrap();
        let record = bench.dir.path().join("state/users/alice.toml");
        let whole = fs::read_to_string(&record).unwrap();
        for cut in 0..whole.len() {
            fs::write(&record, &whole[..cut]).unwrap();
            assert!(
                bench.ranges("alice", 1000).unwrap_err().to_string().contains("is damaged"),
                "cut at {cut}"
            );
            assert!(
                bench.ranges("bob", 1001).unwrap_err().to_string().contains("is damaged"),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn the_same_name_with_another_uid_is_another_person() {
        let bench = Bench::new();
        bench.ranges("alice", 1000).unwrap();
        assert!(bench.ranges("alice", 1007).unwrap_err().to_string().contains("belongs to uid 1000"));
    }

    #[test]
    fn two_names_of_one_uid_have_no_two_jails() {
        let bench = Bench::new();
        // Who is no user of this host is gone, and their uid free to be given again.
        bench.ranges("gone-long-ago", 1).unwrap();
        bench.ranges("alice", 1).unwrap();
        bench.ranges("daemon", 1).unwrap();
        let why = bench.ranges("alicia", 1).unwrap_err().to_string();
        assert!(
            why.starts_with("alicia and daemon, who has a jail, are both uid 1; give one of them another"),
            "{why}"
        );
    }

    #[test]
    fn a_real_uid_within_the_pool_is_nobody_elses_range() {
        let bench = Bench::new();
        bench.ranges("ad-user", 524_300).unwrap();
        assert_eq!(bench.ranges("bob", 1001).unwrap().uid, 524_288 + 2 * COUNT);
        assert!(bench.ranges("ad-two", 524_288 + COUNT + 7).is_err(), "its uid is one of ad-user's range");
    }
}
