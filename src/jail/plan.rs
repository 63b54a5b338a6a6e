//! Everything about one jail, decided by host root before anything is done, and handed to `ojail-init` as JSON.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::network;
use crate::account::{Account, Membership, Username};
use crate::config::{Bind, Config, Home, Limits, Network, Profile, Publish, Reach, Storage};
use crate::error::{Act, Error, Result};
use crate::ids::{self, Extent};
use crate::layers::{self, Layer};
use crate::runtime::Corner;
use crate::seccomp::Changes;
use crate::store::{self, Upper};
use crate::{account, bases, cgroup, paths, quota};

/// What a running jail must have in common with the configuration, as a number to compare.
///
/// Made of the profile, the generations of its layers and what the account brings into the jail. A jail that is empty and has other terms is
/// replaced at the next login; one that is in use keeps its own until it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms(u64);

/// A jail to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Whose: the name inside.
    pub user: Username,
    /// Where it is in `/run/ojail`, and whose ids and control group it has.
    pub corner: Corner,
    /// The user's id inside; for a user of the host the same outside.
    pub uid: u32,
    /// The primary group's.
    pub gid: u32,
    /// Full name and the like.
    pub gecos: String,
    /// The home directory, at the same path inside and outside.
    pub home: PathBuf,
    /// Where the home directory comes from.
    pub home_from: Home,
    /// The shell for the jail's `passwd`.
    pub shell: PathBuf,
    /// The shell that the profile insists on.
    pub profile_shell: Option<PathBuf>,
    /// The profile's name.
    pub profile: String,
    /// Lower layers, topmost first.
    pub layers: Vec<Layer>,
    /// Where layers and uppers are.
    pub storage: Storage,
    /// The writable layer; `None` in a read-only jail.
    pub upper: Option<Upper>,
    /// Ids inside and outside.
    pub uid_map: Vec<Extent>,
    /// Ids inside and outside.
    pub gid_map: Vec<Extent>,
    /// The groups that exist inside as on the host: the primary one first.
    pub groups: Vec<Membership>,
    /// Whether the user may become root of the jail.
    pub root: bool,
    /// Which network it sees.
    pub network: Network,
    /// Ports of the host's loopback that a private network reaches.
    pub reach: Vec<Reach>,
    /// Ports of the host that lead into a private network.
    pub publish: Vec<Publish>,
    /// How much it may take.
    pub limits: Limits,
    /// What the profile changes of the system call filter; `None`: there is no filter.
    pub seccomp: Option<Changes>,
    /// Host directories and files to show.
    pub binds: Vec<Bind>,
    /// Whether processes outlive the last session.
    pub linger: bool,
    /// How long the empty jail stays, in seconds.
    pub keep_warm: u64,
    /// The host name inside.
    pub host: String,
    /// The host's `resolv.conf`, for jails that reach its resolvers.
    pub resolv_conf: Option<String>,
    /// What it was planned from.
    pub terms: Terms,
}

/// What of an account comes into the jail: the same for the plan and for the terms.
struct Share {
    user: Username,
    /// Those of the profile that the user is in, but for the primary one.
    groups: Vec<Membership>,
    shell: PathBuf,
}

/// The terms of a jail for this account under this profile. Cheap: asked at every login.
///
/// # Errors
/// [`Error::BadName`], [`Error::BadId`].
pub fn terms(config: &Config, profile: &Profile, account: &Account) -> Result<Terms> {
    Ok(share(profile, account)?.terms(config, profile, account))
}

/// Plans the jail. Gives ids and an upper to a user who has none yet; nothing else is changed.
///
/// # Errors
/// Whatever makes the jail impossible as configured.
pub fn make(config: &Config, profile: &Profile, account: &Account) -> Result<Plan> {
    let share = share(profile, account)?;
    let layers = feasible(config, profile, account, &share.user)?;
    let ranges = ids::Registry::default().ranges(&share.user, account, &config.ids)?;
    let (uid_map, gid_map) = share.maps(account, ranges);
    let upper = if profile.writable { Some(store::upper(&config.storage, &share.user)?) } else { None };
    let corner = Corner::of(&share.user);
    put_together(config, profile, account, share, Seat { corner, layers, upper, uid_map, gid_map })
}

/// Plans a temporary jail, which shares nothing with the user's own but ids and limits. `upper` is where its changes go.
///
/// # Errors
/// As [`make`].
#[cfg(feature = "cli")]
pub(super) fn temporary(
    config: &Config,
    profile: &Profile,
    account: &Account,
    who: &Who<'_>,
    corner: Corner,
    upper: Option<Upper>,
) -> Result<Plan> {
    let share = share(profile, account)?;
    let layers = feasible(config, profile, account, &share.user)?;
    let (uid_map, gid_map) = match who {
        Who::User(account) => {
            share.maps(account, ids::Registry::default().ranges(&share.user, account, &config.ids)?)
        }
        // Nobody of the host's: no id is the same inside and outside.
        Who::Nobody(ranges) => (ids::map(ranges.uid, &[]), ids::map(ranges.gid, &[])),
    };
    put_together(config, profile, account, share, Seat { corner, layers, upper, uid_map, gid_map })
}

/// Whose ids a temporary jail has.
#[cfg(feature = "cli")]
pub(super) enum Who<'a> {
    /// Those of a user of the host.
    User(&'a Account),
    /// Those that were lent to it.
    Nobody(ids::Ranges),
}

/// The layers, if this host can hold such a jail. Before ids and upper: a profile that cannot work leaves nothing on disk.
fn feasible(config: &Config, profile: &Profile, account: &Account, user: &Username) -> Result<Vec<Layer>> {
    for group in &profile.groups {
        if !account.memberships()?.iter().any(|own| own.name == *group) && !account::group_exists(group)? {
            return Err(Error::NoSuchGroup {
                named_by: format!("profile {}", profile.name),
                group: group.clone(),
            });
        }
    }
    let layers = layers::resolve(&config.storage, &profile.layers)?;
    if profile.limits.of_processes() {
        cgroup::Tree::fit_for(&profile.limits, &config.storage)?;
    }
    quota::look(&config.storage, &profile.limits)?;
    if profile.network == Network::Private {
        network::look()?;
        network::ports_are_free(profile, user)?;
    }
    if profile.writable {
        store::check(&config.storage)?;
    }
    Ok(layers)
}

/// What is a jail's own.
struct Seat {
    corner: Corner,
    layers: Vec<Layer>,
    upper: Option<Upper>,
    uid_map: Vec<Extent>,
    gid_map: Vec<Extent>,
}

fn put_together(
    config: &Config,
    profile: &Profile,
    account: &Account,
    share: Share,
    seat: Seat,
) -> Result<Plan> {
    let terms = share.terms(config, profile, account);
    Ok(Plan {
        uid: account.uid,
        gid: account.gid,
        gecos: account.gecos.replace([':', '\n'], " "),
        home: account.home.clone(),
        home_from: profile.home,
        shell: share.shell,
        profile_shell: profile.shell.clone(),
        profile: profile.name.clone(),
        corner: seat.corner,
        layers: seat.layers,
        storage: config.storage.clone(),
        upper: seat.upper,
        uid_map: seat.uid_map,
        gid_map: seat.gid_map,
        groups: [vec![account::primary(account)?], share.groups].concat(),
        root: profile.root,
        network: profile.network,
        reach: profile.reach.clone(),
        publish: profile.publish.clone(),
        limits: profile.limits,
        seccomp: profile.seccomp.clone(),
        binds: profile.binds.clone(),
        linger: profile.linger,
        keep_warm: profile.keep_warm.as_secs(),
        host: match &profile.hostname {
            Some(name) => name.clone(),
            None => nix::unistd::gethostname().act("read", "the host's name")?.to_string_lossy().into_owned(),
        },
        resolv_conf: match profile.network {
            Network::Host => std::fs::read_to_string("/etc/resolv.conf").ok(),
            Network::Private => match std::fs::read_to_string("/etc/resolv.conf") {
                Ok(text) => Some(network::resolv_conf(&text, &network::own_addresses()?)),
                Err(_) => None,
            },
            Network::None => None,
        },
        user: share.user,
        terms,
    })
}

/// A read-only jail of this profile for nobody in particular, to see whether it can be raised. Nothing is given to
/// anybody, and nothing changes on disk.
///
/// # Errors
/// As [`make`], as far as they do not depend on a user.
pub(super) fn of_nobody(config: &Config, profile: &Profile) -> Result<Plan> {
    // In a /run of its own, so that a user of this name would not be disturbed either.
    let user = Username::parse("0jail.check")?;
    let id = 65_533;
    let first = config.ids.first;
    Ok(Plan {
        uid: id,
        gid: id,
        gecos: String::new(),
        home: "/home/0jail.check".into(),
        home_from: Home::Jail,
        shell: "/bin/sh".into(),
        profile_shell: None,
        profile: profile.name.clone(),
        layers: layers::resolve(&config.storage, &profile.layers)?,
        storage: config.storage.clone(),
        upper: None,
        uid_map: ids::map(first, &[id]),
        gid_map: ids::map(first, &[id]),
        groups: vec![Membership { name: user.to_string(), gid: id }],
        root: profile.root,
        network: profile.network,
        reach: profile.reach.clone(),
        // Those of a running jail would be in use.
        publish: Vec::new(),
        limits: Limits::default(),
        seccomp: profile.seccomp.clone(),
        binds: profile.binds.clone(),
        linger: false,
        keep_warm: 0,
        host: profile.hostname.clone().unwrap_or_else(|| "localhost".into()),
        resolv_conf: None,
        terms: Terms(0),
        corner: Corner::of(&user),
        user,
    })
}

impl Plan {
    /// The user's id as the host has it.
    #[must_use]
    pub fn outside_uid(&self) -> u32 {
        ids::to_outside(&self.uid_map, self.uid)
    }

    /// Notes in the jail's corner what it stands on.
    ///
    /// # Errors
    /// [`Error::Act`].
    pub fn note_layers(&self) -> Result<()> {
        self.corner.note_layers(&self.layers.iter().map(|layer| layer.path.as_path()).collect::<Vec<_>>())
    }

    /// Notes which layers the user's own upper is on from now on.
    ///
    /// # Errors
    /// [`Error::Act`], [`Error::Unfit`].
    pub fn note_bases(&self) -> Result<()> {
        // A temporary jail's upper is thrown away, or becomes something else.
        if self.upper.is_none() || self.corner.run().is_some() {
            return Ok(());
        }
        bases::note(&self.user, &self.layers.iter().map(Layer::full).collect::<Vec<_>>())
    }

    /// The user's `XDG_RUNTIME_DIR`, at the place where everybody looks for it.
    #[must_use]
    pub fn runtime_dir(&self) -> PathBuf {
        format!("/run/user/{}", self.uid).into()
    }
}

fn share(profile: &Profile, account: &Account) -> Result<Share> {
    let user = Username::parse(&account.name)?;
    let bad = |kind, id, why| Err(Error::BadId { user: user.to_string(), kind, id, why });
    if account.gid == 0 {
        return bad("gid", 0, "it is root's group; give the user another primary group");
    }
    // Nobody is asked for names if none is looked for.
    let own = if profile.groups.is_empty() { &[] } else { account.memberships()? };
    let named = own.iter().filter(|own| own.gid != account.gid && profile.groups.contains(&own.name));
    let groups: Vec<Membership> = named.cloned().collect();
    if groups.iter().any(|group| group.gid == 0) {
        return bad("gid", 0, "it is root's group; take it out of the profile");
    }
    if !account.home.is_absolute() || account.home.parent().is_none() {
        return Err(Error::Unfit {
            path: account.home.clone(),
            why: format!(
                "is the home directory of {user}; a jailed user needs one of their own, like /home/{user}"
            ),
        });
    }
    Ok(Share { user, groups, shell: shell(profile, account) })
}

/// The shell inside: the profile's, else the host's where it is a shell and not our own stand-in, else bash.
#[must_use]
pub fn shell(profile: &Profile, account: &Account) -> PathBuf {
    let stand_in = account.shell.as_os_str().is_empty() || account.shell.ends_with("ojail-shell");
    let host_shell = if stand_in { PathBuf::from("/bin/bash") } else { account.shell.clone() };
    profile.shell.clone().unwrap_or(host_shell)
}

impl Share {
    /// The maps of a user of the host: own uid and groups stay what they are.
    fn maps(&self, account: &Account, ranges: ids::Ranges) -> (Vec<Extent>, Vec<Extent>) {
        let named = self.groups.iter().map(|group| group.gid);
        let gids: Vec<u32> = std::iter::once(account.gid).chain(named).collect();
        (ids::map(ranges.uid, &[account.uid]), ids::map(ranges.gid, &gids))
    }

    fn terms(&self, config: &Config, profile: &Profile, account: &Account) -> Terms {
        let mut hasher = DefaultHasher::new();
        // Which generation each layer is: an empty jail makes way for a newer one.
        layers::links(&config.storage, &profile.layers).hash(&mut hasher);
        profile.hash(&mut hasher);
        (account.uid, account.gid, &account.home, &self.groups, &self.shell).hash(&mut hasher);
        // Another version of ojail may raise another jail from the same words.
        (env!("CARGO_PKG_VERSION"), paths::PREFIX).hash(&mut hasher);
        Terms(hasher.finish())
    }
}
