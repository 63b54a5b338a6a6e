//! A login, from the user's name to the confined process. The PAM module and `ojail enter` call [`open`].

use std::path::Path;
use std::time::Duration;

use super::door::{Answer, Door, Guest, House, Request, now};
use super::join::{self, Ready, Session, join};
use super::plan::{self, Terms};
use super::{confine, start};
use crate::account::{self, Account, Username};
use crate::config::{self, Config, Profile};
use crate::error::{Error, Result};
use crate::log::{Level, Log};
use crate::policy::{Decision, Exempt, decide};
use crate::runtime::{Corner, Layers};
use crate::{paths, runtime};

/// How long a login waits for a jail that is ending; what takes longer than this is told by the claim on the upper.
pub(super) const ENDING: Duration = Duration::from_secs(5);

/// Who wants in, and from where. Nothing of it is trusted but the name, which PAM has authenticated.
#[derive(Debug, Clone)]
pub struct Visitor {
    /// The user's name as PAM has it.
    pub user: String,
    /// The PAM service, or `enter`.
    pub service: String,
    /// The remote host, empty for a local session.
    pub from: String,
}

/// How a login came out.
#[derive(Debug)]
pub enum Login {
    /// Nothing was done: the user stays on the host.
    Exempt(Exempt),
    /// This process is in the jail now, and confined.
    Jailed {
        /// To be kept for as long as the session lasts.
        session: Session,
        /// What the session needs to know.
        house: House,
    },
}

/// The whole of a login. On success the calling process is in the user's jail, or the user is exempt.
///
/// # Errors
/// Any of the library's. The caller must refuse the login: it is not known where this process is.
pub fn open(visitor: &Visitor, log: &mut Log) -> Result<Login> {
    // 1. Who is it? uid 0 is let through before anything else is read: a broken configuration must not lock the
    //    administrator out, and breaks every other login.
    let account = account::lookup(&visitor.user)?;
    if account.uid == 0 {
        return Ok(Login::Exempt(Exempt::Root));
    }
    let config = config::load(paths::CONFIG.as_ref())?;

    // 2. Jailed or exempt?
    let profile = match judge(&config, &account)? {
        Decision::Exempt(why) => return Ok(Login::Exempt(why)),
        Decision::Jailed { profile, .. } => profile,
    };
    if visitor.service == "systemd-user" {
        return Err(Error::UserManager { user: account.name });
    }
    let corner = Corner::of(&Username::parse(&account.name)?);
    let guest = guest(visitor, account.uid, plan::terms(&config, profile, &account)?);

    // 3. A running jail lets us in at once, without any lock. Otherwise raise one.
    let (door, house, ready) = match knock(&corner, &guest)? {
        Some(welcome) => welcome,
        None => raised(&config, profile, &account, &corner, &guest, log)?,
    };

    // 4. Join, then confine: in the jail first, because the capabilities that joining needs are the first to go.
    let session = join(&corner, door, &house, ready)?;
    confine::login(&house)?;
    log.event(
        Level::Info,
        "session-start",
        &[
            ("user", &account.name),
            ("profile", &profile.name),
            ("service", &visitor.service),
            ("from", &visitor.from),
        ],
    );
    Ok(Login::Jailed { session, house })
}

/// Jailed or exempt, as the account data base has it of groups.
///
/// # Errors
/// As [`decide`] and [`account::is_in`].
pub fn judge<'a>(config: &'a Config, account: &Account) -> Result<Decision<'a>> {
    let mut is_in = |line, group: &str| account::is_in(account, group, &format!("the rule at line {line}"));
    decide(config, account, &mut is_in)
}

pub(super) fn guest(visitor: &Visitor, uid: u32, terms: Terms) -> Guest {
    Guest {
        service: visitor.service.clone(),
        from: visitor.from.clone(),
        pid: std::process::id(),
        since: now(),
        uid,
        terms,
    }
}

/// Asks a running jail to let this session in, and makes ready to join it. `None`: there is none, or it is about to end.
pub(super) fn knock(corner: &Corner, guest: &Guest) -> Result<Option<(Door, House, Ready)>> {
    let Some(door) = Door::knock(corner)? else { return Ok(None) };
    match door.ask_and(&Request::Join(guest.clone()), || join::ready(corner))? {
        Some((Answer::Welcome(house), ready)) => Ok(Some((door, house, ready))),
        Some((Answer::Closing, ready)) => {
            // A hold on the upper, which would keep the next raise waiting.
            drop(ready);
            wait(&door)
        }
        None => wait(&door),
        Some((Answer::Stranger { owner }, _)) => {
            Err(Error::Stranger { user: corner.user().to_string(), owner, uid: guest.uid })
        }
        Some((other, _)) => {
            Err(Error::Door { user: corner.user().to_string(), answer: format!("{other:?}") })
        }
    }
}

/// For the end of a jail. The claim on the upper would not wait for its mounts.
fn wait(door: &Door) -> Result<Option<(Door, House, Ready)>> {
    door.wait_for_end(ENDING).map(|_| None)
}

/// Raises the jail, or waits for somebody else who does.
fn raised(
    config: &Config,
    profile: &Profile,
    account: &Account,
    corner: &Corner,
    guest: &Guest,
    log: &mut Log,
) -> Result<(Door, House, Ready)> {
    let _lock = corner.lock()?;
    // Whoever had the lock before may have raised it.
    if let Some(welcome) = knock(corner, guest)? {
        return Ok(welcome);
    }
    raise(config, profile, account, corner, log)?;
    knock(corner, guest)?.ok_or_else(|| Error::NotRunning { user: account.name.clone() })
}

/// Raises the jail. The caller holds the user's lock, and has knocked.
pub(super) fn raise(
    config: &Config,
    profile: &Profile,
    account: &Account,
    corner: &Corner,
    log: &mut Log,
) -> Result<()> {
    // Nothing of the last jail is mounted any more, and nobody else can raise: one upper, one overlay.
    let alive = corner.claim()?;
    // But for a mount of the administrator's, which outlives a PID 1 that was killed, and bears no claim.
    if let Some(path) = corner.view()? {
        return Err(Error::ViewLeft { user: account.name.clone(), path });
    }
    corner.sweep()?;
    // Of two users who publish one port only one may have it, until pasta does.
    let ports = Path::new(paths::RUN).join("ports.lock");
    let _ports = if profile.publish.is_empty() { None } else { Some(runtime::lock_file(&ports)?) };
    // No layer is removed before it is noted that this jail stands on it.
    let _layers = runtime::layers(Layers::Stay)?;
    let plan = plan::make(config, profile, account)?;
    start::start(&plan, alive)?;
    log.event(Level::Info, "jail-raised", &[("user", &account.name), ("profile", &profile.name)]);
    Ok(())
}
