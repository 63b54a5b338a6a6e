//! The view: a jail's merged tree at `/srv/jails/USER`, for the administrator. `ojail mount` opens it, `ojail umount`, and `stop`
//! and `reset` with `--force`, close it. Host root.
//!
//! It is the one act that puts a mount of a jail into the host's mount table. What is attached is a clone of the running jail's
//! root: the same overlay, so there is never a second one on an upper. Of what is mounted inside (`/proc`, the home, binds)
//! nothing comes along. The jail's PID 1 stays for as long as the view is there. Should it be killed, the view keeps the overlay
//! in being and bears no claim on the upper; so where it is stands in the corner, and a raise looks there first.

use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use nix::sys::wait::waitpid;
use rustix::fs::{CWD, Mode, OFlags, StatVfsMountFlags, fstatfs, fstatvfs, openat};
use rustix::mount::{OpenTreeFlags, UnmountFlags, open_tree, unmount};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::door::{Answer, Door, Request};
use super::login;
use super::mounts::attach;
use crate::account::{Account, Username};
use crate::config::{Config, Profile};
use crate::error::{Act, Error, Result};
use crate::log::{Level, Log};
use crate::runtime::{Corner, OVERLAY, private_dir};
use crate::store::roots_own_way;
use crate::sys::{self, Forked, MountAttributes, OneThread};

/// How an act on a view came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was done, at this place.
    Done(PathBuf),
    /// It was so already.
    Already(Option<PathBuf>),
}

/// Shows the jail of a user, raising it if it does not run.
///
/// # Errors
/// Those of a raise; [`Error::ViewOther`], [`Error::ViewLeft`], [`Error::Unfit`], [`Error::NotTheHostsMounts`].
pub fn open(
    config: &Config,
    profile: &Profile,
    account: &Account,
    readonly: bool,
    log: &mut Log,
) -> Result<Outcome> {
    let user = Username::parse(&account.name)?;
    in_the_hosts_mounts("mount", &user)?;
    let corner = Corner::of(&user);
    let _lock = corner.lock()?;
    if let Some(path) = corner.view()? {
        return already(&corner, path, readonly);
    }
    let place = Place::make(&config.storage.jails, &user)?;
    if let Err(error) = attached(config, profile, account, &corner, &place, readonly, log) {
        // A PID 1 that was stopped may still have its descriptor of the mount, which then cannot be unmounted: it stays, and is known.
        if corner.view()?.is_none() {
            place.unmake();
            corner.forget_view()?;
        }
        return Err(error);
    }
    log.event(
        Level::Info,
        "mount",
        &[("user", &user), ("at", &place.path.display()), ("readonly", &readonly)],
    );
    Ok(Outcome::Done(place.path))
}

/// The act itself. After a kill at any moment the jail is mounted and held, or neither: PID 1 has a descriptor of the mount until
/// it has seen how it came out.
fn attached(
    config: &Config,
    profile: &Profile,
    account: &Account,
    corner: &Corner,
    place: &Place,
    readonly: bool,
    log: &mut Log,
) -> Result<()> {
    let door = match held(corner, account)? {
        Some(door) => door,
        None => {
            login::raise(config, profile, account, corner, log)?;
            held(corner, account)?.ok_or_else(|| Error::NotRunning { user: account.name.clone() })?
        }
    };
    let clone = clone_of_root(&door)?;
    let attributes = MountAttributes { readonly, nosuid: true, nodev: true, idmap: None };
    sys::mount_setattr(&clone, attributes).act("set the flags of", &place.path)?;
    fit_to_be_shown(&clone, readonly)?;

    // Known to the next raise, and to PID 1, before it is there.
    corner.note_view(&place.path)?;
    expect_held(corner, door.hand(&Request::Clone, clone.as_fd())?)?;
    attach(&clone, &place.dir).act("attach the jail to", &place.path)?;
    let settled = door.ask(&Request::Settle).and_then(|answer| expect_held(corner, answer));
    drop(clone);
    let shown = settled.and_then(|()| match corner.view()? {
        Some(path) if path == place.path => Ok(()),
        is => {
            let is = is.map_or("nothing".into(), |path| path.display().to_string());
            Err(Error::Surprise { what: "what is mounted", wanted: place.path.display().to_string(), is })
        }
    });
    if shown.is_err() {
        let _ = unmount(&place.path, UnmountFlags::NOFOLLOW);
        let _ = door.tell(&Request::Release);
    }
    shown
}

/// Whether there is a note of a view that is gone: by other means than `ojail umount`, or by one that was killed before it could say
/// so. In a mount namespace of one's own that cannot be told.
///
/// # Errors
/// [`Error::Act`].
pub fn is_stale(corner: &Corner) -> Result<bool> {
    Ok(corner.place_of_view()?.is_some()
        && corner.view()?.is_none()
        && in_the_hosts_mounts("umount", corner.user()).is_ok())
}

/// Tells PID 1 of a view that is gone, and clears what is left of it. The caller holds the user's lock.
///
/// # Errors
/// [`Error::Act`].
pub fn forget(corner: &Corner) -> Result<()> {
    if is_stale(corner)? {
        close(corner, &mut Log::none())?;
    }
    Ok(())
}

/// Hides the jail of a user again.
///
/// # Errors
/// [`Error::ViewBusy`] with who uses it; [`Error::NotTheHostsMounts`]. The caller holds the user's lock.
pub fn close(corner: &Corner, log: &mut Log) -> Result<Outcome> {
    let Some(place) = corner.place_of_view()? else { return Ok(Outcome::Already(None)) };
    in_the_hosts_mounts("umount", corner.user())?;
    let is_mounted = corner.view()?.is_some();
    let door = Door::knock(corner)?;
    if is_mounted {
        roots_own_way(&place)?;
        match unmount(&place, UnmountFlags::NOFOLLOW) {
            Err(rustix::io::Errno::BUSY) => {
                let by = users_of(&place, door.as_ref())?;
                return Err(Error::ViewBusy { user: corner.user().to_string(), path: place, by });
            }
            unmounted => unmounted.act("unmount", &place)?,
        }
        // If that cannot be told, unmount(2) has said it.
        if matches!(corner.view(), Ok(Some(_))) {
            let is = "still mounted".into();
            return Err(Error::Surprise { what: "the jail", wanted: "unmounted".into(), is });
        }
    }
    // Also after a kill between the two: the mount is gone, and PID 1 does not know yet.
    if let Some(door) = door {
        door.ask(&Request::Release)?;
    }
    // Made for the mount; one in which anything is stays.
    let _ = fs::remove_dir(&place);
    corner.forget_view()?;
    if !is_mounted {
        return Ok(Outcome::Already(None));
    }
    log.event(Level::Info, "umount", &[("user", corner.user()), ("from", &place.display())]);
    Ok(Outcome::Done(place))
}

/// A mount that is there already, if it is what is asked for.
fn already(corner: &Corner, path: PathBuf, readonly: bool) -> Result<Outcome> {
    let user = corner.user().to_string();
    let dir = open_dir(&path)?;
    let shown = rustix::fs::fstat(&dir).act("examine", &path)?.st_dev;
    // The jail that runs may be a later one only if somebody cleared /run; it is not the one that is shown then.
    let runs = match Door::knock(corner)? {
        Some(door) => fs::metadata(format!("/proc/{}/root", door.pid())).ok().map(|meta| meta.dev()),
        None => None,
    };
    if runs != Some(shown) {
        return Err(Error::ViewLeft { user, path });
    }
    let is_readonly = flags(&dir)?.contains(StatVfsMountFlags::RDONLY);
    if is_readonly != readonly && !(is_readonly && sb_is_readonly(&path)?) {
        let how = if is_readonly { "read-only" } else { "writable" };
        return Err(Error::ViewOther { user, path, how });
    }
    Ok(Outcome::Already(Some(path)))
}

/// The door of a jail that will stay for as long as the door is held. `None`: there is none, or it is about to end.
fn held(corner: &Corner, account: &Account) -> Result<Option<Door>> {
    let Some(door) = Door::knock(corner)? else { return Ok(None) };
    let user = corner.user().to_string();
    match door.ask(&Request::Hold { uid: account.uid })? {
        Some(Answer::Held(true)) => Ok(Some(door)),
        Some(Answer::Stranger { owner }) => Err(Error::Stranger { user, owner, uid: account.uid }),
        // A PID 1 of a version that knows no such request hangs up, too.
        Some(Answer::Closing) | None if door.wait_for_end(login::ENDING)? => Ok(None),
        None => Err(Error::Door { user, answer: "none".into() }),
        Some(Answer::Closing) => Err(Error::StillEnding { user }),
        Some(other) => Err(Error::Door { user, answer: format!("{other:?}") }),
    }
}

fn expect_held(corner: &Corner, answer: Option<Answer>) -> Result<()> {
    let user = corner.user().to_string();
    match answer {
        Some(Answer::Held(true)) => Ok(()),
        None => Err(Error::NotRunning { user }),
        Some(other) => Err(Error::Door { user, answer: format!("{other:?}") }),
    }
}

/// A detached clone of the root of the jail behind this door, without what is mounted below it. A child goes into the jail's mount
/// namespace for it, by the descriptor that the door has proven to be PID 1, and touches nothing else there.
fn clone_of_root(door: &Door) -> Result<OwnedFd> {
    let alone = OneThread::prove().act("fork", "a process with several threads")?;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .act("make", "a socket pair")?;
    match sys::fork_into(alone, CloneFlags::empty()).act("fork", "a process for the jail")? {
        Forked::Child => {
            drop(ours);
            if let Err(error) = send_clone(door, &theirs) {
                let _ = rustix::net::send(&theirs, error.to_string().as_bytes(), SendFlags::NOSIGNAL);
            }
            // Not back into the caller's story, which goes on in the parent.
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
            Err(Error::NotRaised("the process for the jail goes on after its end".into()))
        }
        Forked::Parent(child) => {
            drop(theirs);
            let received = receive_clone(&ours);
            waitpid(child, None).act("wait for", "the process for the jail")?;
            received
        }
    }
}

fn send_clone(door: &Door, to: &OwnedFd) -> Result<()> {
    nix::sched::setns(door.init(), CloneFlags::CLONE_NEWNS).act("join", "the mount namespace of the jail")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clone = open_tree(CWD, "/", flags).act("clone", "the root of the jail")?;
    let fds = [clone.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(to, &[IoSlice::new(b"\0")], &mut control, SendFlags::NOSIGNAL)
        .act("hand over", "the root of the jail")?;
    Ok(())
}

fn receive_clone(from: &OwnedFd) -> Result<OwnedFd> {
    let mut text = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(from, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .act("receive", "the root of the jail")?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut rights) = message {
            if let Some(clone) = rights.next() {
                return Ok(clone);
            }
        }
    }
    let text = String::from_utf8_lossy(&text[..got.bytes]).into_owned();
    Err(Error::NotRaised(if text.is_empty() {
        "the root of the jail could not be cloned".into()
    } else {
        text
    }))
}

/// Reads back what is about to be attached: an overlay, and nothing in it has a power on the host.
fn fit_to_be_shown(clone: &OwnedFd, readonly: bool) -> Result<()> {
    #[allow(clippy::unnecessary_cast, reason = "f_type has another width on some architectures")]
    let kind = fstatfs(clone).act("examine", "the root of the jail")?.f_type as i64;
    if kind != OVERLAY {
        let is = format!("a file system of type {kind:x}");
        return Err(Error::Surprise { what: "the root of the jail", wanted: "an overlay".into(), is });
    }
    let mut wanted = StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV;
    wanted.set(StatVfsMountFlags::RDONLY, readonly);
    let is = flags(clone)?;
    if is.contains(wanted) {
        return Ok(());
    }
    Err(Error::Surprise {
        what: "the flags of the mount",
        wanted: format!("{wanted:?}"),
        is: format!("{is:?}"),
    })
}

fn flags(dir: &OwnedFd) -> Result<StatVfsMountFlags> {
    Ok(fstatvfs(dir).act("examine", "the mount of the jail")?.f_flag)
}

/// Whether the overlay itself is read-only, as that of a profile without an upper is.
fn sb_is_readonly(path: &Path) -> Result<bool> {
    Ok(mounts()?.iter().any(|mount| {
        mount.point == path && mount.options.split(',').all(|option| !option.starts_with("upperdir="))
    }))
}

fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).act("open", path)
}

/// The directory that a jail is shown at.
struct Place {
    path: PathBuf,
    dir: OwnedFd,
    made: bool,
}

impl Place {
    /// Makes it, or takes one that is empty.
    fn make(jails: &Path, user: &Username) -> Result<Self> {
        roots_own_way(jails)?;
        // What is in a jail is between its user and the administrator.
        private_dir(jails)?;
        let path = jails.join(user);
        let made = match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => false,
            made => made.act("create", &path).map(|()| true)?,
        };
        match Self::fit(jails, &path) {
            Ok(dir) => Ok(Self { path, dir, made }),
            Err(error) => {
                if made {
                    let _ = fs::remove_dir(&path);
                }
                Err(error)
            }
        }
    }

    /// Opens it if it can be mounted on.
    fn fit(jails: &Path, path: &Path) -> Result<OwnedFd> {
        let unfit = |why: &str| Err(Error::Unfit { path: path.to_owned(), why: why.into() });
        let meta = fs::symlink_metadata(path).act("examine", path)?;
        if !meta.is_dir() {
            return unfit("is not a directory; move it away");
        }
        if meta.dev() != fs::metadata(jails).act("examine", jails)?.dev() {
            return unfit("has something else mounted on it; unmount that first");
        }
        if fs::read_dir(path).act("list", path)?.next().is_some() {
            return unfit("is not empty, and the mount would hide what is in it; move that away");
        }
        open_dir(path)
    }

    fn unmake(self) {
        if self.made {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Refuses in a mount namespace other than that of the host's PID 1.
fn in_the_hosts_mounts(verb: &'static str, user: &Username) -> Result<()> {
    let namespace = |pid: &str| {
        let path = format!("/proc/{pid}/ns/mnt");
        fs::metadata(&path).act("examine", &path).map(|meta| (meta.dev(), meta.ino()))
    };
    if namespace("self")? == namespace("1")? {
        return Ok(());
    }
    Err(Error::NotTheHostsMounts { verb, user: user.to_string() })
}

/// One line of mountinfo.
struct Mount {
    point: PathBuf,
    /// Of the file system.
    options: String,
}

fn mounts() -> Result<Vec<Mount>> {
    let path = "/proc/self/mountinfo";
    let table = fs::read_to_string(path).act("read", path)?;
    // Fields of proc_pid_mountinfo(5): the fifth is the mount point, the third after "-" the options.
    let mount = |line: &str| {
        let (mount, kind) = line.split_once(" - ")?;
        Some(Mount { point: mount.split(' ').nth(4)?.into(), options: kind.split(' ').nth(2)?.to_owned() })
    };
    Ok(table.lines().filter_map(mount).collect())
}

/// How many are named.
const MOST: usize = 5;

/// Who uses what is below this mount, in words.
fn users_of(place: &Path, door: Option<&Door>) -> Result<String> {
    let mut users: Vec<String> = mounts()?
        .iter()
        .filter(|mount| mount.point != place && mount.point.starts_with(place))
        .map(|mount| format!("{} is mounted in it", shown(&mount.point.display().to_string())))
        .collect();
    let namespace =
        |pid: &str| fs::metadata(format!("/proc/{pid}/ns/mnt")).ok().map(|meta| (meta.dev(), meta.ino()));
    // Inside the jail the same path would be another place.
    let inside = door.and_then(|door| namespace(&door.pid().to_string()));
    let own = std::process::id().to_string();
    for entry in fs::read_dir("/proc").act("list", "/proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) else {
            continue;
        };
        if pid == own || (inside.is_some() && namespace(pid) == inside) {
            continue;
        }
        if uses(&entry.path(), place) {
            let command = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            users.push(format!("process {pid} ({})", shown(command.trim_end())));
        }
    }
    if users.is_empty() {
        users.push("a process that cannot be told, perhaps in another mount namespace".into());
    }
    let more = users.len().saturating_sub(MOST);
    users.truncate(MOST);
    if more > 0 {
        users.push(format!("and {more} more"));
    }
    Ok(users.join(", "))
}

fn shown(text: &str) -> String {
    text.escape_debug().to_string()
}

/// Whether a process has its directories, a file, or its program there.
fn uses(process: &Path, place: &Path) -> bool {
    let leads_there = |link: PathBuf| fs::read_link(link).is_ok_and(|path| path.starts_with(place));
    if ["cwd", "root", "exe"].iter().any(|link| leads_there(process.join(link))) {
        return true;
    }
    ["fd", "map_files"].iter().any(|dir| {
        let entries = fs::read_dir(process.join(dir)).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| leads_there(entry.path()))
    })
}
