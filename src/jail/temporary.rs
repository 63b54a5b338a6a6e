//! Temporary jails: beside the users' own, for one command, with an upper that goes with them unless the caller takes it. For
//! `ojail run --ephemeral` and `--profile`, and for whatever else runs a command on some layers. Host root.
//!
//! Each has a corner of its own (`/run/ojail/runs/NAME`), which is the claim on all that belongs to it: an upper in
//! `asidedirs/.run/NAME`, and a range of the pool's ids if it is nobody's. Whoever made it holds the corner's lock until all of this
//! is gone. What a kill leaves is cleared by the next, once nobody holds the lock nor the overlay ([`sweep`]).

use std::ffi::CString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::syncfs;

use super::door::House;
use super::join::{Session, join};
use super::login::{self, Visitor};
use super::plan::{self, Plan, Who};
use super::{confine, end, start};
use crate::account::{Account, Groups, Username};
use crate::config::{Config, Home, Profile, Storage};
use crate::error::{Act, Error, IfThere, Result};
use crate::ids::{self, Registry};
use crate::log::{Level, Log};
use crate::runtime::{self, Corner, Layers, Tried, private_dir};
use crate::{cgroup, quota, store, walk};

/// Whom the command runs as, and so whose ids the jail has.
#[derive(Debug, Clone, Copy)]
pub enum Whose<'a> {
    /// A user of the host: the same ids and limits as in the user's own jail.
    User(&'a Account),
    /// Nobody of the host's.
    Nobody,
}

/// The made-up user of a jail that is nobody's. Debian gives the id 59999 to nobody before 58999 others have one; outside it is an
/// id of the range that was lent.
const NOBODY: (&str, u32) = ("ojail-run", 59_999);

/// How the names of ranges begin that are lent. No user is called so.
const LENT: &str = "0jail.run.";

/// A temporary jail that stands. To be ended by [`Temporary::end`]; if that is left out, by the next [`sweep`].
#[derive(Debug)]
pub struct Temporary {
    name: Name,
    corner: Corner,
    plan: Plan,
    storage: Storage,
}

impl Temporary {
    /// Raises one with the layers, limits and confinement of this profile.
    ///
    /// # Errors
    /// Those of a raise; nothing is left then.
    pub fn raise(config: &Config, profile: &Profile, whose: Whose<'_>, log: &mut Log) -> Result<Self> {
        Self::raise_on(config, profile, whose, log, |_| Ok(()))
    }

    /// As [`Temporary::raise`], on an upper that `prepare` has filled: it gets the empty directory.
    ///
    /// # Errors
    /// As [`Temporary::raise`], and those of `prepare`.
    pub fn raise_on(
        config: &Config,
        profile: &Profile,
        whose: Whose<'_>,
        log: &mut Log,
        prepare: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        // First the left-overs of others: they may be what this one lacks, ids or space.
        sweep(&config.storage);
        let name = Name::take()?;
        let raised = raise(config, profile, whose, &name, prepare);
        match raised {
            Ok((corner, plan)) => {
                let (user, run) = (corner.user().to_string(), name.text.clone());
                log.event(
                    Level::Info,
                    "jail-raised",
                    &[("user", &user), ("run", &run), ("profile", &profile.name)],
                );
                Ok(Self { name, corner, plan, storage: config.storage.clone() })
            }
            Err(error) => {
                let _ = clear(&name, &config.storage);
                Err(error)
            }
        }
    }

    /// Whom the command runs as if it is not root.
    #[must_use]
    pub fn account(&self) -> Account {
        Account {
            name: self.plan.user.to_string(),
            uid: self.plan.uid,
            gid: self.plan.gid,
            gecos: self.plan.gecos.clone(),
            home: self.plan.home.clone(),
            shell: self.plan.shell.clone(),
            groups: Groups::of(self.plan.groups.iter().map(|group| group.gid).collect()),
        }
    }

    /// Moves the calling process into the jail and confines it, as a login does.
    ///
    /// # Errors
    /// Those of a login. The caller must end: it is not known where this process is.
    pub fn enter(&self, service: &str) -> Result<(Session, House)> {
        let visitor =
            Visitor { user: self.plan.user.to_string(), service: service.into(), from: String::new() };
        let guest = login::guest(&visitor, self.plan.uid, self.plan.terms);
        let (door, house, ready) = login::knock(&self.corner, &guest)?
            .ok_or_else(|| Error::NotRunning { user: self.corner.user().to_string() })?;
        let session = join(&self.corner, door, &house, ready)?;
        confine::login(&house)?;
        Ok((session, house))
    }

    /// Ends the jail, if it has not ended by itself, and takes away all of it.
    ///
    /// # Errors
    /// [`Error::StillEnding`]; [`Error::Act`] if something cannot be removed. The next [`sweep`] tries again.
    pub fn end(self) -> Result<()> {
        end::end(&self.corner)?;
        clear(&self.name, &self.storage)
    }

    /// Ends the jail, and shows its upper, synced, to `take`, which may move it away. The rest goes then, and if something of it
    /// resists, with the next [`sweep`].
    ///
    /// # Errors
    /// [`Error::StillEnding`], and those of `take`.
    pub fn end_and<T>(self, take: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        end::end(&self.corner)?;
        let upper = store::throw_away(&self.storage).join(&self.name.text).join("upper");
        let taken = synced(&upper).and_then(|()| take(&upper));
        let _ = clear(&self.name, &self.storage);
        taken
    }

    /// The name of the made-up user of a jail that is nobody's.
    #[must_use]
    pub fn nobody() -> &'static str {
        NOBODY.0
    }

    /// Whether this is the id of that user.
    #[must_use]
    pub fn is_nobody(uid: u32) -> bool {
        uid == NOBODY.1
    }
}

fn raise(
    config: &Config,
    profile: &Profile,
    whose: Whose<'_>,
    name: &Name,
    prepare: impl FnOnce(&Path) -> Result<()>,
) -> Result<(Corner, Plan)> {
    let mut profile = profile.clone();
    // It lives as long as its command, and what is published belongs to the user's own jail.
    (profile.linger, profile.keep_warm) = (false, Duration::ZERO);
    profile.publish.clear();
    let (account, who, owner) = match whose {
        Whose::User(account) => (account.clone(), Who::User(account), Username::parse(&account.name)?),
        Whose::Nobody => {
            (profile.home, profile.groups) = (Home::Jail, Vec::new());
            let lent = Username::parse(&format!("{LENT}{}", name.text))?;
            let ranges = Registry::default().lend(&lent, &config.ids)?;
            (nobody(), Who::Nobody(ranges), lent)
        }
    };
    let corner = Corner::of_run(&owner, &name.text);
    let alive = corner.claim()?;
    corner.sweep()?;
    let upper = if profile.writable {
        let above = store::throw_away(&config.storage);
        store::roots_own_way(&above)?;
        private_dir(&config.storage.asidedirs)?;
        private_dir(&above)?;
        let upper = store::upper_at(&above.join(&name.text))?;
        prepare(&above.join(&name.text).join("upper"))?;
        Some(upper)
    } else {
        None
    };
    // No layer is removed before it is noted that this jail stands on it.
    let _layers = runtime::layers(Layers::Stay)?;
    let plan = plan::temporary(config, &profile, &account, &who, corner.clone(), upper)?;
    start::start(&plan, alive)?;
    Ok((corner, plan))
}

/// Waits for the disk, for which nothing inside has waited.
fn synced(upper: &Path) -> Result<()> {
    syncfs(walk::open(upper)?).act("sync", upper)
}

fn nobody() -> Account {
    let (name, id) = NOBODY;
    Account {
        name: name.into(),
        uid: id,
        gid: id,
        gecos: String::new(),
        home: Path::new("/home").join(name),
        shell: PathBuf::new(),
        groups: Groups::of(Vec::new()),
    }
}

/// The name of a temporary jail, held by the lock in its corner.
#[derive(Debug)]
struct Name {
    text: String,
    _lock: File,
}

impl Name {
    /// A name that nobody has: the number of this process, which no other has while it lives.
    fn take() -> Result<Self> {
        let pid = std::process::id();
        for number in 1.. {
            let text = if number == 1 { pid.to_string() } else { format!("{pid}-{number}") };
            private_dir(&runtime::runs())?;
            match fs::DirBuilder::new().mode(0o700).create(runtime::runs().join(&text)) {
                // What an earlier process of this number left, and what belongs to it may still live.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                made => made.act("create", &runtime::runs().join(&text))?,
            }
            // Whoever clears up may have taken the new corner for a left-over.
            match Self::hold(&text) {
                Ok(Some(name)) => return Ok(name),
                Ok(None) => {}
                Err(error) => {
                    let _ = fs::remove_dir(runtime::runs().join(&text));
                    return Err(error);
                }
            }
        }
        Err(Error::Busy { user: pid.to_string(), seconds: 0 })
    }

    /// Holds a name if nobody else does, and nothing of its jail lives. The lock is on the corner's directory, so that there is none to
    /// be made in one that somebody removes.
    fn hold(text: &str) -> Result<Option<Self>> {
        let dir = runtime::runs().join(text);
        let Tried::Locked(lock) = runtime::try_lock(&dir)? else { return Ok(None) };
        // Given up at once: nobody takes it anew without the lock.
        match runtime::try_lock(&dir.join("alive"))? {
            Tried::Busy => Ok(None),
            Tried::Locked(_) | Tried::Missing => Ok(Some(Self { text: text.to_owned(), _lock: lock })),
        }
    }
}

/// Clears what temporary jails left that were killed together with whoever made them. What cannot be cleared stays for the next time.
pub fn sweep(storage: &Storage) {
    if private_dir(&runtime::runs()).is_err() {
        return;
    }
    for text in left_over(storage) {
        // To be held, it needs a corner.
        let _ = fs::DirBuilder::new().mode(0o700).create(runtime::runs().join(&text));
        if let Ok(Some(name)) = Name::hold(&text) {
            let _ = clear(&name, storage);
        }
    }
}

/// The corners of temporary jails, whosever they are.
///
/// # Errors
/// [`Error::Act`].
pub fn corners() -> Result<Vec<Corner>> {
    let dir = runtime::runs();
    let Some(entries) = fs::read_dir(&dir).if_there().act("list", &dir)? else { return Ok(Vec::new()) };
    let nobody = Username::parse(NOBODY.0)?;
    let mut corners = Vec::new();
    for entry in entries {
        let name = entry.act("list", &dir)?.file_name();
        corners.extend(name.to_str().map(|name| Corner::of_run(&nobody, name)));
    }
    Ok(corners)
}

/// All names of which there is anything: a corner, an upper, a range of ids. After a reboot there are no corners.
fn left_over(storage: &Storage) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for dir in [runtime::runs(), store::throw_away(storage)] {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        names.extend(entries.filter_map(|entry| entry.file_name().into_string().ok()));
    }
    let lent = Registry::default().owners(LENT).unwrap_or_default();
    names.extend(lent.iter().filter_map(|name| name.strip_prefix(LENT).map(str::to_owned)));
    // Ours only: a number, and a second one at most.
    names.retain(|name| name.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') && !name.is_empty());
    names.sort();
    names.dedup();
    names
}

/// Takes away what belongs to a jail that has ended. The ids last but one, when nothing of theirs is left; the corner last, because it
/// is the claim on all else.
fn clear(name: &Name, storage: &Storage) -> Result<()> {
    let above = store::throw_away(storage);
    let base = above.join(&name.text);
    if fs::symlink_metadata(&base).if_there().act("examine", &base)?.is_some() {
        quota::forget(&base.join("upper"));
        let dir = walk::open(&above)?;
        let text = CString::new(name.text.as_str()).map_err(std::io::Error::from).act("name", &base)?;
        walk::remove(dir.as_fd(), &text, None)?;
    }
    let lent = Username::parse(&format!("{LENT}{}", name.text))?;
    let registry = Registry::default();
    if let Some(ranges) = registry.lent(&lent)? {
        cgroup::forget(&lent, ids::to_outside(&ids::map(ranges.uid, &[]), NOBODY.1));
    }
    registry.give_back(&lent)?;
    let corner = runtime::runs().join(&name.text);
    fs::remove_dir_all(&corner).if_there().act("remove", &corner).map(drop)
}
