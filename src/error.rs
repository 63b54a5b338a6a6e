//! What can go wrong, in sentences that an administrator can act on.
//!
//! Errors travel up with `?` and are reported once, at the door: in the PAM module's hooks and in each `main`.

use std::io;
use std::path::PathBuf;

/// The result of everything in this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One refusal or failure. `Display` is the whole sentence, cause included.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed: the act, what it was done to, and the kernel's reason.
    #[error("cannot {act} {what}: {source}")]
    Act {
        /// The act, as an infinitive: "open", "clone the mount of".
        act: &'static str,
        /// What it was done to, mostly a path.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },

    /// The configuration has a mistake.
    #[error(transparent)]
    Config(#[from] crate::config::Mistake),

    /// The account data base has no such user.
    #[error("user \"{0}\" does not exist")]
    NoSuchUser(String),

    /// The user's name cannot become the name of a directory.
    #[error(
        "the user name \"{name}\" cannot have a jail: only letters, digits, \"_\", \"-\" and \".\" (not first), at most {most} bytes"
    )]
    BadName {
        /// The name, escaped.
        name: String,
        /// How long one may be, in bytes.
        most: usize,
    },

    /// A rule jails a user that has an id of the system's.
    #[error(
        "{user} has uid {uid}, below ids.min_uid = {min_uid}: system accounts are never jailed; \
         exempt the user with a rule, or lower min_uid"
    )]
    SystemUser {
        /// The user's name.
        user: String,
        /// The user's uid.
        uid: u32,
        /// The configured limit.
        min_uid: u32,
    },

    /// An id that must not map to itself.
    #[error("{user} has the {kind} {id}, which cannot keep its number in a jail: {why}")]
    BadId {
        /// The user's name.
        user: String,
        /// "uid" or "gid".
        kind: &'static str,
        /// The id.
        id: u32,
        /// The reason.
        why: &'static str,
    },

    /// Id ranges that cannot be used. The sentence names the file and the mend.
    #[error("{0}")]
    IdRange(String),

    /// The configuration names a host group that does not exist.
    #[error(
        "{named_by} names the group \"{group}\", which does not exist on this host; `groupadd {group}`, or take it out"
    )]
    NoSuchGroup {
        /// The profile or the rule.
        named_by: String,
        /// The group.
        group: String,
    },

    /// An upper of a user who has no profile, so nothing tells what layers it is of.
    #[error(
        "nothing tells the layers of {user}, who has an upper ({why}); name their profile: `--profile NAME`"
    )]
    NoProfile {
        /// The upper's owner.
        user: String,
        /// Why there is none.
        why: String,
    },

    /// A layer that cannot be used.
    #[error("layer \"{name}\": {why}")]
    Layer {
        /// The layer's name.
        name: String,
        /// What is wrong, and the mend.
        why: String,
    },

    /// Something on disk is not as it must be; nothing was changed.
    #[error("{path}: {why}", path = path.display())]
    Unfit {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong, and the mend.
        why: String,
    },

    /// A mount point of the jail is unusable, because of what the user (or a layer) put there.
    #[error(
        "{path} inside the jail of {user} is unusable as a mount point: {source}; `ojail-shell --reset {user}` clears it"
    )]
    Blocked {
        /// The path inside the jail.
        path: PathBuf,
        /// Whose jail.
        user: String,
        /// The kernel's answer.
        source: io::Error,
    },

    /// A file of the jail that a login needs, and that cannot be read. It is left as it is.
    #[error(
        "{path} inside the jail of {user} cannot be read: {source}; mend it in the upper, or `ojail-shell --reset {user}` clears it"
    )]
    Unreadable {
        /// The path inside the jail.
        path: PathBuf,
        /// Whose jail.
        user: String,
        /// The kernel's answer.
        source: io::Error,
    },

    /// The jail's own network could not be made.
    #[error("no private network for the jail: {why}")]
    Network {
        /// The cause, and the mend.
        why: String,
    },

    /// A port that a profile publishes is taken.
    #[error("port {port} of the host, which profile {profile} publishes, is in use {by}")]
    Published {
        /// Number and protocol.
        port: String,
        /// The profile.
        profile: String,
        /// Who has it.
        by: String,
    },

    /// A limit of the profile that this host cannot hold a jail to.
    #[error("a limit of the profile cannot be enforced: {why}")]
    Limit {
        /// Which one, why, and the mend.
        why: String,
    },

    /// What was set is not what is there. Nothing is believed that was not read back.
    #[error("{what} is {is} after it was set to {wanted}")]
    Surprise {
        /// What was set.
        what: &'static str,
        /// What it was set to.
        wanted: String,
        /// What the kernel says it is.
        is: String,
    },

    /// `ojail-init` could not raise the jail; its own sentence.
    #[error("{0}")]
    NotRaised(String),

    /// The last jail of this user has not ended yet.
    #[error(
        "the last jail of {user} is still ending: processes outside of it hold it; `ojail stop {user}` ends them"
    )]
    StillEnding {
        /// Whose jail.
        user: String,
    },

    /// Someone else acts on this jail for too long.
    #[error("the jail of {user} is busy: another login or command has been at it for {seconds} s")]
    Busy {
        /// Whose jail.
        user: String,
        /// How long was waited.
        seconds: u64,
    },

    /// The user manager runs outside the jail, so a jailed user must not have one.
    #[error("{user} is jailed, and `systemd --user` would run the user's units outside the jail")]
    UserManager {
        /// The user.
        user: String,
    },

    /// The running jail was raised for another person of the same name.
    #[error(
        "the running jail of {user} belongs to uid {owner}, but {user} has uid {uid} now; `ojail stop {user}` ends it"
    )]
    Stranger {
        /// The user's name.
        user: String,
        /// The uid that the jail was raised for.
        owner: u32,
        /// The uid that the name has now.
        uid: u32,
    },

    /// A jail is not running.
    #[error("{user} has no running jail")]
    NotRunning {
        /// The user.
        user: String,
    },

    /// Sessions are open, and the act would end them.
    #[error("sessions of {user} are open ({sessions}); `--force` ends them")]
    InUse {
        /// Whose.
        user: String,
        /// All of them, for people.
        sessions: String,
    },

    /// A running jail that cannot be held still while its upper is copied.
    #[error("the jail of {user} cannot be held still: {why}; `--end` ends it instead")]
    Freeze {
        /// Whose jail.
        user: String,
        /// The reason.
        why: String,
    },

    /// Nobody gets in while the upper is copied.
    #[error("the jail of {user} is held still for a snapshot or a backup at the moment; try again soon")]
    Frozen {
        /// Whose jail.
        user: String,
    },

    /// A name that a snapshot cannot have.
    #[error(
        "a snapshot cannot be called \"{name}\": only letters, digits, \"_\", \"-\" and \".\" (the last two not first), \
         at most 64, and not like a time, which is what `ojail reset` calls things"
    )]
    BadSnapshot {
        /// The name, escaped.
        name: String,
    },

    /// There is nothing to copy.
    #[error("{user} has changed nothing: there is no {path}", path = path.display())]
    NoUpper {
        /// Whose.
        user: String,
        /// Where it would be.
        path: PathBuf,
    },

    /// A user's changes could not be brought to newer layers.
    #[error("{user} stays as they are: {why}")]
    Rebase {
        /// Whose.
        user: String,
        /// The reason, and the mend if there is one.
        why: String,
    },

    /// No such snapshot.
    #[error("{user} has no snapshot \"{name}\"; `ojail snapshot list {user}` shows what there is")]
    NoSnapshot {
        /// Whose.
        user: String,
        /// The name, escaped.
        name: String,
    },

    /// A backup or a layer has no place on a terminal.
    #[error("this is no text for a terminal; lead it to or from a file or another program")]
    Terminal,

    /// A restore would replace something.
    #[error("there already, and not as in the backup: {what}; `--force` sets that aside")]
    Differ {
        /// Everything, for people.
        what: String,
    },

    /// An image that is none, or not what it says.
    #[error("the image {why}")]
    Image {
        /// What is wrong, and the mend if there is one.
        why: String,
    },

    /// skopeo could not carry an image.
    #[error("cannot {act} {what}: {why}")]
    Carried {
        /// "bring" or "take".
        act: &'static str,
        /// Where from or to.
        what: String,
        /// skopeo's own words, or the mend.
        why: String,
    },

    /// An import would replace what a user changed.
    #[error(
        "{user} has changed something already; `--force` sets that aside, and `ojail undo {user}` brings it back"
    )]
    HasChanges {
        /// Whose.
        user: String,
    },

    /// The tar of a layer that cannot be one, or has in it what no layer needs.
    #[error("the layer's tar is refused: {why}")]
    LayerTar {
        /// What is wrong with it, and the mend if there is one.
        why: String,
    },

    /// The name is somebody else's by now.
    #[error(
        "this was set aside when {user} was forgotten, who had uid {then}; {user} has uid {now} now: if that is the same person, \
         correct the uid in {file}/users/{user}.toml",
        file = crate::paths::STATE
    )]
    OtherOwner {
        /// The user.
        user: String,
        /// The uid of whose it is.
        then: u32,
        /// The uid of who has the name.
        now: u32,
    },

    /// Somebody who is to be forgotten can still log in.
    #[error(
        "{user} exists and is jailed (profile {profile}), so the next login would begin anew; `userdel {user}` first, \
         `ojail reset {user}` to clear the changes only, or `--force`"
    )]
    NotGone {
        /// The user.
        user: String,
        /// The profile.
        profile: String,
    },

    /// A copy would not fit.
    #[error("{path} has {free} left, and {needed} are needed; make room first", path = path.display())]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// For people.
        free: String,
        /// For people.
        needed: String,
    },

    /// What a user changed would become everybody's, with secrets in it.
    #[error(
        "there are secrets in what {user} has changed: {what}; `--path` takes a part, and `--allow PATH` takes a secret all the same"
    )]
    Secrets {
        /// Whose.
        user: String,
        /// All of them, for people.
        what: String,
    },

    /// Nothing of this name is set aside.
    #[error("nothing called \"{name}\" is set aside for {user}; `ojail reset --list {user}` shows what is")]
    NotAside {
        /// Whose.
        user: String,
        /// The name, escaped.
        name: String,
    },

    /// Nothing is set aside.
    #[error("nothing is set aside for {user}; there is nothing to undo")]
    NothingAside {
        /// Whose.
        user: String,
    },

    /// A snapshot is copied back, not put back.
    #[error("\"{name}\" is a snapshot of {user}; `ojail snapshot restore {user} {name}` goes back to it")]
    IsSnapshot {
        /// Whose.
        user: String,
        /// Its name.
        name: String,
    },

    /// The configuration has no such profile.
    #[error("there is no profile \"{0}\" in {file}", file = crate::paths::CONFIG)]
    NoSuchProfile(String),

    /// A path inside a jail that cannot be one.
    #[error("{option} {path} {why}")]
    BadPath {
        /// Where it was given.
        option: &'static str,
        /// The path, escaped.
        path: String,
        /// What is wrong, and the mend.
        why: String,
    },

    /// Something of this name is there already.
    #[error("something called \"{name}\" is there already for {user}; choose another name")]
    IsAside {
        /// Whose.
        user: String,
        /// The name.
        name: String,
    },

    /// The administrator has the jail mounted, and the act would end it.
    #[error(
        "the jail of {user} is mounted at {path}; `ojail umount {user}` first, or let `--force` unmount it too",
        path = path.display()
    )]
    ViewOpen {
        /// Whose jail.
        user: String,
        /// Where.
        path: PathBuf,
    },

    /// The jail is mounted already, in the other mode.
    #[error("the jail of {user} is mounted at {path} already, {how}; `ojail umount {user}` first", path = path.display())]
    ViewOther {
        /// Whose jail.
        user: String,
        /// Where.
        path: PathBuf,
        /// "read-only" or "writable".
        how: &'static str,
    },

    /// A jail has ended, and its overlay is still mounted for the administrator: a new jail would be a second one on one upper.
    #[error(
        "the last jail of {user} has ended, but is still mounted at {path}; `ojail umount {user}` lets go of it",
        path = path.display()
    )]
    ViewLeft {
        /// Whose jail.
        user: String,
        /// Where.
        path: PathBuf,
    },

    /// Somebody uses the mount of a jail.
    #[error("{path} is in use: {by}; end what uses it, then `ojail umount {user}` again", path = path.display())]
    ViewBusy {
        /// Whose jail.
        user: String,
        /// Where.
        path: PathBuf,
        /// By whom.
        by: String,
    },

    /// What is mounted here is seen by nobody else.
    #[error(
        "this process has a mount namespace of its own, in which nobody else would see the mount; \
         `nsenter --target 1 --mount ojail {verb} {user}` works in the host's"
    )]
    NotTheHostsMounts {
        /// "mount" or "umount".
        verb: &'static str,
        /// Whose jail.
        user: String,
    },

    /// The user is not jailed, so there is nothing to act on.
    #[error("{user} is not jailed: {why}")]
    NotJailed {
        /// The user.
        user: String,
        /// Exempt, and why.
        why: String,
    },

    /// The jail answered something that this version does not understand.
    #[error(
        "the jail of {user} gave an answer that this version of ojail does not know ({answer}); \
         was it raised by another? `ojail stop {user}` ends it"
    )]
    Door {
        /// Whose jail.
        user: String,
        /// The answer.
        answer: String,
    },

    /// Something that draws was asked to print.
    #[error("`ojail top` draws on a terminal, and standard output is none; `ojail list` prints")]
    NoTerminal,

    /// An administrator's command was given by somebody else.
    #[error("this needs root; try it with sudo")]
    NotRoot,
}

/// Gives a failed system call its sentence: `open(path).act("open", path)?`.
pub trait Act<T> {
    /// Names the act and its object.
    ///
    /// # Errors
    /// [`Error::Act`] with the cause, if there was one.
    fn act(self, act: &'static str, what: impl What) -> Result<T>;
}

/// Tells that nothing is there from what went wrong: `fs::read_dir(dir).if_there().act("list", dir)?`.
pub trait IfThere<T> {
    /// `None`: there is nothing of this name.
    ///
    /// # Errors
    /// Every other one: what cannot be looked at is not taken for absent.
    fn if_there(self) -> io::Result<Option<T>>;
}

impl<T> IfThere<T> for io::Result<T> {
    fn if_there(self) -> io::Result<Option<T>> {
        match self {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found.map(Some),
        }
    }
}

/// What an act can be done to.
pub trait What {
    /// As it stands in the sentence.
    fn name(self) -> String;
}

impl What for &str {
    fn name(self) -> String {
        self.to_owned()
    }
}

impl What for String {
    fn name(self) -> String {
        self
    }
}

impl What for &String {
    fn name(self) -> String {
        self.clone()
    }
}

impl What for &std::path::Path {
    fn name(self) -> String {
        self.display().to_string()
    }
}

impl What for &PathBuf {
    fn name(self) -> String {
        self.display().to_string()
    }
}

impl<T, E: Into<io::Error>> Act<T> for std::result::Result<T, E> {
    fn act(self, act: &'static str, what: impl What) -> Result<T> {
        self.map_err(|source| Error::Act { act, what: what.name(), source: source.into() })
    }
}
