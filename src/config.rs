//! The configuration: `/etc/ojail/ojail.toml`, parsed once at the edge into values that need no second look.
//!
//! [`parse`] is pure: text in, [`Config`] or a [`Mistake`] out, with file, line and key. [`load`] adds the question
//! of who could have written the file. Read by the PAM module at every login, as root, and by `ojail`.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::Spanned;

mod limits;
mod ports;

pub use limits::Limits;
pub use ports::{Protocol, Publish, Reach};

use crate::seccomp::{self, Changes};
use limits::RawLimits;

/// A whole, valid configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where layers and uppers are.
    pub storage: Storage,
    /// How ids are chosen.
    pub ids: Ids,
    /// How long what a reset cleared is kept.
    pub reset: Reset,
    /// Profiles by name.
    pub profiles: BTreeMap<String, Profile>,
    /// Who gets which profile; the first that matches decides.
    pub rules: Vec<Rule>,
}

/// Directories on the host, all absolute and free of `.` and `..`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// Layers, one directory or image each.
    pub lowerdirs: PathBuf,
    /// The users' changes, one directory each.
    pub upperdirs: PathBuf,
    /// The overlay's work directories, on the mount of `upperdirs`.
    pub workdirs: PathBuf,
    /// Uppers that a reset cleared, on the mount of `upperdirs`.
    pub asidedirs: PathBuf,
    /// Where an administrator sees merged jails.
    pub jails: PathBuf,
}

/// The retention of what resets set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reset {
    /// How long each is kept.
    pub keep: Duration,
    /// Bytes that those of one user may take together; the oldest go first.
    pub max_size: Option<u64>,
}

/// The pool of id ranges, and who may be jailed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// First id of the pool.
    pub first: u32,
    /// Last id of the pool, included.
    pub last: u32,
    /// Users below this uid are the system's and never jailed.
    pub min_uid: u32,
}

/// What a jail is made of and what its user may do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Profile {
    /// The profile's own name.
    pub name: String,
    /// Lower layers, topmost first, as overlayfs has it.
    pub layers: Vec<LayerName>,
    /// Whether there is an upper at all.
    pub writable: bool,
    /// Where the home directory comes from.
    pub home: Home,
    /// The shell that `ojail-shell` runs; else the one of the jail's `passwd`.
    pub shell: Option<PathBuf>,
    /// Whether the user may become root of the jail.
    pub root: bool,
    /// Which network the jail sees.
    pub network: Network,
    /// Ports of the host's loopback that a private network reaches.
    pub reach: Vec<Reach>,
    /// Ports of the host that lead into a private network.
    pub publish: Vec<Publish>,
    /// The host name inside, if it is not the host's.
    pub hostname: Option<String>,
    /// How much the jail may take.
    pub limits: Limits,
    /// What the profile changes of the system call filter; `None`: there is no filter.
    pub seccomp: Option<Changes>,
    /// Whether processes outlive the last session.
    pub linger: bool,
    /// How long an empty jail stays raised.
    pub keep_warm: Duration,
    /// Host groups that keep their gid inside, for users who are members.
    pub groups: Vec<String>,
    /// Host files and directories shown inside.
    pub binds: Vec<Bind>,
}

/// The name of a layer: letters, digits, `_`, `-`, `.` (not first). One generation of it is `NAME@GENERATION`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LayerName(String);

/// How many hexadecimal digits of a layer's digest its generation is called after.
pub const GENERATION: usize = 12;

impl LayerName {
    /// Takes a name that can be one file name, and one element of overlayfs' `lowerdir=` list.
    ///
    /// # Errors
    /// The reason, to be appended to the name.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let (name, generation) = text.split_once('@').map_or((text, None), |(name, id)| (name, Some(id)));
        if name.is_empty() || name.len() > 64 {
            return Err("a layer's name has 1 to 64 characters");
        }
        if name.starts_with(['.', '-']) || !name.chars().all(plain) {
            return Err(
                "a layer's name has letters, digits, \"_\", \"-\" and \".\" only, and starts with a letter, a digit or \"_\"",
            );
        }
        let hexadecimal = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        if generation.is_some_and(|id| id.len() != GENERATION || !id.chars().all(hexadecimal)) {
            return Err(
                "behind \"@\" stands a generation, 12 hexadecimal digits as `ojail layer list` shows them",
            );
        }
        Ok(Self(text.to_owned()))
    }

    /// The whole as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name without the generation.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.split('@').next().unwrap_or_default()
    }

    /// The generation, if one is named.
    #[must_use]
    pub fn generation(&self) -> Option<&str> {
        self.0.split_once('@').map(|(_, id)| id)
    }

    /// A generation of this layer.
    #[must_use]
    pub fn at(&self, generation: &str) -> Self {
        Self(format!("{}@{generation}", self.name()))
    }
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a jailed user's home directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Home {
    /// The host's home directory, bound.
    Host,
    /// In the upper; made from the jail's `/etc/skel` at the first login.
    Jail,
}

/// The network of a jail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The host's own.
    Host,
    /// A loopback and nothing else.
    None,
    /// One of its own, that reaches the world but not the host's loopback.
    Private,
}

/// One host file or directory shown inside.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Bind {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path inside.
    pub target: PathBuf,
    /// Whether the jail may write to it.
    pub writable: bool,
}

/// Who gets what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Matches these names; `*` is everybody. Empty: any name.
    pub users: Vec<String>,
    /// Matches members of these groups. Empty: any groups.
    pub groups: Vec<String>,
    /// What a match means.
    pub verdict: Verdict,
    /// Where it stands in the file, for people.
    pub line: usize,
}

/// What a matching rule says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Jailed with this profile, which exists.
    Profile(String),
    /// Not jailed.
    Exempt,
}

/// A mistake in the configuration: one sentence with file, line and key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1, where one is to blame.
    pub line: Option<usize>,
    /// The key, like `profiles.nginx.layers`, where one is to blame.
    pub key: Option<String>,
    /// What is wrong, and the mend.
    pub why: String,
}

impl std::error::Error for Mistake {}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.why)
    }
}

/// A configuration is small; more than this is a mistake or an attack.
const MAX_SIZE: u64 = 1 << 20;

/// Reads and parses the configuration, after asking who could have written it.
///
/// # Errors
/// A [`Mistake`] if the file is missing, is not a plain file of root's, can be written by others, or does not parse.
pub fn load(path: &Path) -> Result<Config, Mistake> {
    let mistake = |why: String| Mistake { file: path.to_owned(), line: None, key: None, why };
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        // No symbolic link, and no waiting for the writer of a fifo.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(|e| match e.raw_os_error() {
            Some(libc::ELOOP) => mistake("is a symbolic link; it must be the file itself".into()),
            _ => mistake(format!("cannot be opened: {e}")),
        })?;
    let meta = file.metadata().map_err(|e| mistake(format!("cannot be examined: {e}")))?;
    if !meta.is_file() {
        return Err(mistake("is not a plain file".into()));
    }
    trusted(path, &meta).map_err(mistake)?;
    if let Some(parent) = path.parent() {
        let meta = std::fs::symlink_metadata(parent)
            .map_err(|e| mistake(format!("its directory cannot be examined: {e}")))?;
        trusted(parent, &meta).map_err(mistake)?;
    }
    // Known beforehand, or it would be read by the half line.
    let mut text = String::with_capacity(meta.len().min(MAX_SIZE) as usize + 1);
    file.by_ref()
        .take(MAX_SIZE + 1)
        .read_to_string(&mut text)
        .map_err(|e| mistake(format!("cannot be read: {e}")))?;
    if text.len() as u64 > MAX_SIZE {
        return Err(mistake(format!("is larger than {MAX_SIZE} bytes")));
    }
    parse(path, &text)
}

/// Root owns it and nobody else can write it.
fn trusted(path: &Path, meta: &std::fs::Metadata) -> Result<(), String> {
    if meta.uid() != 0 {
        return Err(format!("{} belongs to uid {}; `chown root {0}`", path.display(), meta.uid()));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(format!(
            "{} can be written by others than root (mode {:04o}); `chmod go-w {0}`",
            path.display(),
            meta.mode() & 0o7777
        ));
    }
    Ok(())
}

// What the file may hold, as written. Everything below here becomes a value above or a mistake.

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    storage: RawStorage,
    #[serde(default)]
    ids: RawIds,
    #[serde(default)]
    reset: RawReset,
    #[serde(default)]
    profiles: BTreeMap<Spanned<String>, RawProfile>,
    #[serde(default)]
    rules: Vec<Spanned<RawRule>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawStorage {
    lowerdirs: Option<Spanned<String>>,
    upperdirs: Option<Spanned<String>>,
    workdirs: Option<Spanned<String>>,
    asidedirs: Option<Spanned<String>>,
    jails: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawIds {
    first: Option<Spanned<u32>>,
    last: Option<Spanned<u32>>,
    min_uid: Option<Spanned<u32>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawReset {
    keep: Option<Spanned<String>>,
    max_size: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProfile {
    layers: Spanned<Vec<Spanned<String>>>,
    writable: Option<bool>,
    home: Option<Home>,
    shell: Option<Spanned<String>>,
    root: Option<bool>,
    network: Option<Spanned<String>>,
    reach: Option<Spanned<Vec<Spanned<String>>>>,
    publish: Option<Spanned<Vec<Spanned<String>>>>,
    hostname: Option<Spanned<String>>,
    limits: Option<Spanned<RawLimits>>,
    seccomp: Option<Spanned<toml::Value>>,
    linger: Option<bool>,
    keep_warm: Option<Spanned<String>>,
    #[serde(default)]
    groups: Vec<Spanned<String>>,
    #[serde(default)]
    binds: Vec<RawBind>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBind {
    source: Spanned<String>,
    target: Spanned<String>,
    #[serde(default)]
    writable: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    #[serde(default)]
    user: Names,
    #[serde(default)]
    group: Names,
    profile: Option<Spanned<String>>,
    #[serde(default)]
    exempt: bool,
}

/// One name or a list of them.
#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Names {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

impl Names {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::None => Vec::new(),
            Self::One(name) => vec![name],
            Self::Many(names) => names,
        }
    }
}

/// Parses a configuration. `file` is only named in mistakes.
///
/// # Errors
/// The first [`Mistake`].
pub fn parse(file: &Path, text: &str) -> Result<Config, Mistake> {
    let source = Source { file, text };
    if text.trim().is_empty() {
        return Err(source.mistake(None, "is empty; it needs at least one profile and one rule"));
    }
    let raw: RawConfig = toml::from_str(text).map_err(|e| source.syntax(&e))?;
    let storage = source.storage(raw.storage)?;
    let ids = source.ids(&raw.ids)?;
    let reset = source.reset(&raw.reset)?;
    let mut profiles = BTreeMap::new();
    for (name, raw) in raw.profiles {
        let profile = source.profile(name.get_ref(), name.span(), raw)?;
        profiles.insert(profile.name.clone(), profile);
    }
    let rules = raw.rules.into_iter().map(|rule| source.rule(rule, &profiles)).collect::<Result<_, _>>()?;
    Ok(Config { storage, ids, reset, profiles, rules })
}

/// The text that is parsed, to turn a place in it into a line and a key.
struct Source<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn mistake(&self, span: Option<Range<usize>>, why: impl Into<String>) -> Mistake {
        let line = span.map(|span| self.line(span.start));
        let key = line.and_then(|line| self.key(line));
        Mistake { file: self.file.to_owned(), line, key, why: why.into() }
    }

    fn line(&self, offset: usize) -> usize {
        self.text.as_bytes()[..offset.min(self.text.len())].iter().filter(|b| **b == b'\n').count() + 1
    }

    /// The key that a person sees on a line: its table's header, and what stands before `=`.
    fn key(&self, line: usize) -> Option<String> {
        let mut table = "";
        let mut key = None;
        for text in self.text.lines().take(line) {
            let text = text.trim();
            key = None;
            if text.starts_with('[') {
                let header = text.split('#').next().unwrap_or_default().trim();
                table = header.trim_matches(['[', ']', ' ']);
            } else if let Some((name, _)) = text.split_once('=') {
                key = Some(name.trim());
            }
        }
        match (table, key) {
            ("", None) => None,
            ("", Some(key)) => Some(key.to_owned()),
            (table, None) => Some(table.to_owned()),
            (table, Some(key)) => Some(format!("{table}.{key}")),
        }
    }

    fn syntax(&self, error: &toml::de::Error) -> Mistake {
        let message = error.message();
        let mut words = message.split('`');
        let why = match (words.next(), words.next()) {
            (Some("unknown field "), Some(key)) => {
                let (_, known) = message.split_once(", expected ").unwrap_or_default();
                format!("unknown key `{key}`; known here: {}", known.trim_start_matches("one of "))
            }
            _ => message.replace('\n', " "),
        };
        self.mistake(error.span(), why)
    }

    /// An absolute path without `.`, `..`, or what overlayfs' option string would misread.
    fn path(&self, value: &Spanned<String>) -> Result<PathBuf, Mistake> {
        let refuse =
            |why: &str| Err(self.mistake(Some(value.span()), format!("\"{}\" {why}", value.get_ref())));
        let path = Path::new(value.get_ref());
        if !path.is_absolute() {
            return refuse("is not an absolute path");
        }
        if value.get_ref().split('/').any(|part| part == "." || part == "..") {
            return refuse("contains \".\" or \"..\"; write the path out");
        }
        if let Some(bad) = value.get_ref().chars().find(|c| ":,\\\"".contains(*c) || c.is_control()) {
            return refuse(&format!(
                "contains {bad:?}, which overlayfs would misread; use another directory"
            ));
        }
        // Collects the components, so that "//" and a trailing "/" are gone.
        Ok(path.components().collect())
    }

    fn storage(&self, raw: RawStorage) -> Result<Storage, Mistake> {
        let or = |value: Option<Spanned<String>>, default: &str| match value {
            Some(value) => self.path(&value),
            None => Ok(PathBuf::from(default)),
        };
        let upperdirs = or(raw.upperdirs, "/srv/overlay/upperdirs")?;
        let beside = upperdirs.with_file_name("asidedirs");
        let storage = Storage {
            lowerdirs: or(raw.lowerdirs, "/srv/overlay/lowerdirs")?,
            workdirs: or(raw.workdirs, "/srv/overlay/workdirs")?,
            asidedirs: raw.asidedirs.map_or(Ok(beside), |value| self.path(&value))?,
            jails: or(raw.jails, "/srv/jails")?,
            upperdirs,
        };
        let all =
            [&storage.lowerdirs, &storage.upperdirs, &storage.workdirs, &storage.asidedirs, &storage.jails];
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                if i != j && a.starts_with(b) {
                    let why = format!(
                        "{} and {} overlap; each needs a directory of its own",
                        a.display(),
                        b.display()
                    );
                    return Err(Mistake { key: Some("storage".into()), ..self.mistake(None, why) });
                }
            }
        }
        Ok(storage)
    }

    fn reset(&self, raw: &RawReset) -> Result<Reset, Mistake> {
        let keep = raw.keep.as_ref().map_or(Ok(DEFAULT_RESET_KEEP), |text| self.duration(text))?;
        Ok(Reset { keep, max_size: self.size("reset.max_size", raw.max_size.as_ref(), 0)? })
    }

    fn duration(&self, text: &Spanned<String>) -> Result<Duration, Mistake> {
        duration(text.get_ref()).ok_or_else(|| {
            let why = format!(
                "\"{}\" is no duration; write it like \"90s\", \"15m\", \"12h\" or \"7d\"",
                text.get_ref()
            );
            self.mistake(Some(text.span()), why)
        })
    }

    fn ids(&self, raw: &RawIds) -> Result<Ids, Mistake> {
        let value = |v: &Option<Spanned<u32>>, default| v.as_ref().map_or(default, |v| *v.get_ref());
        let ids = Ids {
            first: value(&raw.first, 524_288),
            last: value(&raw.last, 1_879_048_191),
            min_uid: value(&raw.min_uid, 1000),
        };
        let at = |v: &Option<Spanned<u32>>| v.as_ref().map(Spanned::span);
        if ids.first < 65_536 {
            return Err(
                self.mistake(at(&raw.first), "ids.first must be 65536 or more: ids below are the host's own")
            );
        }
        if u64::from(ids.last) < u64::from(ids.first) + 65_535 {
            return Err(self.mistake(
                at(&raw.last).or(at(&raw.first)),
                "the pool from ids.first to ids.last has no room for one range of 65536 ids",
            ));
        }
        if ids.last > u32::MAX - 65_536 {
            return Err(self.mistake(at(&raw.last), "ids.last must leave the highest 65536 ids alone"));
        }
        if ids.min_uid == 0 {
            return Err(self.mistake(at(&raw.min_uid), "min_uid must be 1 or more: root is never jailed"));
        }
        Ok(ids)
    }

    fn profile(&self, name: &str, at: Range<usize>, raw: RawProfile) -> Result<Profile, Mistake> {
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c)) {
            return Err(self.mistake(Some(at), "a profile's name has letters, digits, \"_\" and \"-\" only"));
        }
        let mut layers: Vec<LayerName> = Vec::new();
        for layer in raw.layers.get_ref() {
            let name = layer.get_ref();
            let parsed = LayerName::parse(name)
                .map_err(|why| self.mistake(Some(layer.span()), format!("layer \"{name}\": {why}")))?;
            if layers.iter().any(|other| other.name() == parsed.name()) {
                return Err(self.mistake(Some(layer.span()), format!("layer \"{name}\" is named twice")));
            }
            layers.push(parsed);
        }
        if layers.is_empty() {
            return Err(self.mistake(Some(raw.layers.span()), "a profile needs at least one layer"));
        }
        // overlayfs takes 500 lower layers; the option string of older kernels takes 256 bytes, of which each of
        // ours needs at most four.
        if layers.len() > 48 {
            return Err(self.mistake(Some(raw.layers.span()), "more than 48 layers"));
        }
        let network = match raw.network.as_ref().map(|n| (n, n.get_ref().as_str())) {
            None | Some((_, "host")) => Network::Host,
            Some((_, "none")) => Network::None,
            Some((_, "private")) => Network::Private,
            Some((at, other)) => {
                let why = format!("unknown network \"{other}\"; known: \"host\", \"none\", \"private\"");
                return Err(self.mistake(Some(at.span()), why));
            }
        };
        for (key, value) in [("reach", &raw.reach), ("publish", &raw.publish)] {
            if let (Some(value), true) = (value, network != Network::Private) {
                let why = format!("`{key}` needs `network = \"private\"`");
                return Err(self.mistake(Some(value.span()), why));
            }
        }
        let writable = raw.writable.unwrap_or(true);
        let limits = raw.limits.as_ref().map(|limits| self.limits(limits.get_ref())).transpose()?;
        let limits = limits.unwrap_or_default();
        if let (Some(at), Network::Private, Some(memory)) = (&raw.limits, network, limits.memory) {
            if memory < limits::WITH_PASTA {
                let why =
                    "limits.memory must be 64M or more with `network = \"private\"`: pasta takes half of it";
                return Err(self.mistake(Some(at.span()), why));
            }
        }
        if let (Some(at), true, false) = (&raw.limits, limits.of_upper(), writable) {
            let why = "limits.disk and limits.inodes need `writable = true`: a read-only jail has no upper";
            return Err(self.mistake(Some(at.span()), why));
        }
        let keep_warm = raw.keep_warm.as_ref().map_or(Ok(DEFAULT_KEEP_WARM), |text| self.duration(text))?;
        let binds = raw.binds.iter().map(|bind| self.bind(bind)).collect::<Result<Vec<_>, _>>()?;
        for (i, bind) in binds.iter().enumerate() {
            if binds[..i].iter().any(|other| other.target == bind.target) {
                let why = format!("two binds have the target {}", bind.target.display());
                return Err(self.mistake(Some(raw.binds[i].target.span()), why));
            }
        }
        for group in &raw.groups {
            if group.get_ref().is_empty() || group.get_ref() == "root" {
                return Err(self.mistake(Some(group.span()), "the group root cannot keep its gid inside"));
            }
        }
        Ok(Profile {
            name: name.to_owned(),
            layers,
            writable,
            home: raw.home.unwrap_or(Home::Host),
            shell: raw.shell.as_ref().map(|shell| self.path(shell)).transpose()?,
            root: raw.root.unwrap_or(false),
            network,
            reach: raw.reach.as_ref().map(|ports| self.reach(ports)).transpose()?.unwrap_or_default(),
            publish: raw.publish.as_ref().map(|ports| self.publish(ports)).transpose()?.unwrap_or_default(),
            hostname: raw.hostname.as_ref().map(|name| self.hostname(name)).transpose()?,
            limits,
            seccomp: match &raw.seccomp {
                None => Some(Changes::default()),
                Some(value) => self.seccomp(value)?,
            },
            linger: raw.linger.unwrap_or(true),
            keep_warm,
            groups: raw.groups.into_iter().map(Spanned::into_inner).collect(),
            binds,
        })
    }

    /// A host name as hostname(7) has it: what every program inside may take for granted.
    fn hostname(&self, name: &Spanned<String>) -> Result<String, Mistake> {
        let label = |label: &str| {
            !label.is_empty()
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // The kernel's limit (__NEW_UTS_LEN).
        if name.get_ref().len() <= 64 && name.get_ref().split('.').all(label) {
            return Ok(name.get_ref().clone());
        }
        let why = format!(
            "{:?} is no host name: letters, digits and \"-\", in parts with \".\" between, 64 characters at most",
            name.get_ref()
        );
        Err(self.mistake(Some(name.span()), why))
    }

    /// `false`, or `{ allow = […], deny = […] }` with names of system calls.
    fn seccomp(&self, value: &Spanned<toml::Value>) -> Result<Option<Changes>, Mistake> {
        let refuse = |why: String| self.mistake(Some(value.span()), why);
        let table = match value.get_ref() {
            toml::Value::Boolean(true) => return Ok(Some(Changes::default())),
            toml::Value::Boolean(false) => return Ok(None),
            toml::Value::Table(table) => table,
            _ => {
                return Err(refuse(
                    "`seccomp` is `{ allow = […], deny = […] }`, or `false` for no filter".into(),
                ));
            }
        };
        let mut changes = Changes::default();
        for (key, names) in table {
            let set = match key.as_str() {
                "allow" => &mut changes.allow,
                "deny" => &mut changes.deny,
                _ => return Err(refuse(format!("unknown key `{key}`; known: `allow`, `deny`"))),
            };
            let names =
                names.as_array().map(|names| names.iter().map(toml::Value::as_str).collect::<Vec<_>>());
            for name in names.unwrap_or_else(|| vec![None]) {
                let name =
                    name.ok_or_else(|| refuse(format!("`{key}` is a list of names of system calls")))?;
                set.insert(seccomp::name(name).map_err(refuse)?);
            }
        }
        changes.check().map_err(refuse)?;
        Ok(Some(changes))
    }

    fn bind(&self, raw: &RawBind) -> Result<Bind, Mistake> {
        let bind =
            Bind { source: self.path(&raw.source)?, target: self.path(&raw.target)?, writable: raw.writable };
        if bind.target.parent().is_none() {
            return Err(
                self.mistake(Some(raw.target.span()), "the root of the jail cannot be a bind's target")
            );
        }
        let first = bind.target.components().nth(1);
        if let Some(Component::Normal(first)) = first {
            if ["proc", "dev", "sys", "run", "tmp"].iter().any(|own| first == *own) {
                let why = format!(
                    "{} is in a directory that every jail gets fresh; choose another target",
                    bind.target.display()
                );
                return Err(self.mistake(Some(raw.target.span()), why));
            }
        }
        Ok(bind)
    }

    fn rule(&self, raw: Spanned<RawRule>, profiles: &BTreeMap<String, Profile>) -> Result<Rule, Mistake> {
        let at = raw.span();
        let raw = raw.into_inner();
        let line = self.line(at.start);
        let users = raw.user.into_vec();
        let groups = raw.group.into_vec();
        if users.is_empty() && groups.is_empty() {
            let why = "a rule needs `user` or `group`; `user = \"*\"` is everybody";
            return Err(self.mistake(Some(at), why));
        }
        let verdict = match (raw.profile, raw.exempt) {
            (None, true) => Verdict::Exempt,
            (Some(profile), false) => {
                if !profiles.contains_key(profile.get_ref()) {
                    let known = profiles.keys().cloned().collect::<Vec<_>>().join(", ");
                    let why = format!("there is no profile \"{}\"; known: {known}", profile.get_ref());
                    return Err(self.mistake(Some(profile.span()), why));
                }
                Verdict::Profile(profile.into_inner())
            }
            _ => return Err(self.mistake(Some(at), "a rule has either `profile` or `exempt = true`")),
        };
        Ok(Rule { users, groups, verdict, line })
    }
}

/// A quarter of an hour: what was put into `/tmp` by one `scp` is still there for the `ssh` after it.
const DEFAULT_KEEP_WARM: Duration = Duration::from_secs(15 * 60);

/// A week: long enough for somebody to come back from a weekend and miss something.
const DEFAULT_RESET_KEEP: Duration = Duration::from_secs(7 * 86_400);

/// Reads `0`, `90s`, `15m`, `12h`, `7d`; at most a year.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None if text == "0" => ("0", "s"),
        None => return None,
    };
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    let seconds = number.parse::<u64>().ok()?.checked_mul(unit)?;
    (seconds <= 366 * 86_400).then_some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[profiles.debian]
layers = ["debian"]

[profiles.nginx]
layers = ["nginx", "debian"]
home = "jail"
keep_warm = "90s"
binds = [{ source = "/srv/data", target = "/data" }]

[[rules]]
user = "backup"
exempt = true
[[rules]]
group = ["jailed", "students"]
profile = "nginx"
"#;

    fn mistake(text: &str) -> String {
        parse(Path::new("ojail.toml"), text).unwrap_err().to_string()
    }

    fn with(line: &str) -> String {
        GOOD.replace("home = \"jail\"", line)
    }

    #[test]
    fn a_good_file_becomes_values() {
        let config = parse(Path::new("f"), GOOD).unwrap();
        let nginx = &config.profiles["nginx"];
        assert_eq!(nginx.layers.iter().map(LayerName::as_str).collect::<Vec<_>>(), ["nginx", "debian"]);
        assert_eq!(nginx.keep_warm, Duration::from_secs(90));
        assert!(nginx.writable && nginx.linger && !nginx.root);
        assert_eq!(config.storage.asidedirs, Path::new("/srv/overlay/asidedirs"));
        assert_eq!(config.rules[1].groups, ["jailed", "students"]);
        assert_eq!(config.rules[0].verdict, Verdict::Exempt);
    }

    #[test]
    fn an_unknown_key_names_file_line_and_key() {
        let text = mistake(&with("hmoe = \"jail\""));
        assert!(text.starts_with("ojail.toml:7: profiles.nginx.hmoe: unknown key `hmoe`"), "{text}");
    }

    #[test]
    fn the_retention_of_resets_has_a_duration_and_a_size() {
        let parse = |text: &str| {
            parse(Path::new("ojail.toml"), &format!("{text}\n{}", with(""))).map(|config| config.reset)
        };
        assert_eq!(parse("").unwrap(), Reset { keep: Duration::from_secs(7 * 86_400), max_size: None });
        let some = parse("[reset]\nkeep = \"12h\"\nmax_size = \"2G\"").unwrap();
        assert_eq!(some, Reset { keep: Duration::from_secs(43_200), max_size: Some(2 << 30) });
        let why = parse("[reset]\nkeep = \"soon\"").unwrap_err().to_string();
        assert!(why.starts_with("ojail.toml:2: reset.keep: \"soon\" is no duration"), "{why}");
        let why = parse("[reset]\nmax_size = \"much\"").unwrap_err().to_string();
        assert!(why.contains("reset.max_size: \"much\" is no size"), "{why}");
    }

    #[test]
    fn a_wrong_type_names_its_line() {
        let text = mistake(&with("root = \"yes\""));
        assert!(text.starts_with("ojail.toml:7: profiles.nginx.root: "), "{text}");
    }

    #[test]
    fn an_empty_or_cut_file_is_refused() {
        assert!(mistake("").contains("is empty"));
        assert!(mistake("  \n").contains("is empty"));
        assert!(parse(Path::new("f"), &GOOD[..GOOD.len() / 2]).is_err());
    }

    #[test]
    fn layers_must_exist_once_and_have_plain_names() {
        let layers = |l: &str| mistake(&GOOD.replace("[\"nginx\", \"debian\"]", l));
        assert!(layers("[\"debian\", \"debian\"]").contains("named twice"));
        assert!(layers("[]").contains("at least one layer"));
        for bad in ["../debian", "a/b", "a:b", "a,b", ".hidden", "", "-x"] {
            assert!(layers(&format!("[\"{bad}\"]")).contains("a layer's name"), "{bad}");
        }
    }

    #[test]
    fn paths_must_be_absolute_and_plain() {
        let storage = |value: &str| mistake(&format!("[storage]\nupperdirs = '{value}'\n{GOOD}"));
        for (bad, why) in [
            ("srv/up", "not an absolute path"),
            ("/srv/../up", "\"..\""),
            ("/srv/a:b", "overlayfs would misread"),
            ("/srv/a,b", "overlayfs would misread"),
            ("/srv/a\\b", "overlayfs would misread"),
        ] {
            let text = storage(bad);
            assert!(
                text.starts_with("ojail.toml:2: storage.upperdirs: ") && text.contains(why),
                "{bad}: {text}"
            );
        }
        assert!(storage("/srv/overlay/workdirs/u").contains("overlap"));
    }

    #[test]
    fn a_rule_needs_a_subject_and_one_verdict() {
        let rule = |text: &str| mistake(&format!("{GOOD}\n[[rules]]\n{text}"));
        assert!(rule("profile = \"nginx\"").contains("needs `user` or `group`"));
        assert!(rule("user = \"a\"").contains("either `profile` or `exempt"));
        assert!(rule("user = \"a\"\nprofile = \"nginx\"\nexempt = true").contains("either `profile` or"));
        assert!(rule("user = \"a\"\nprofile = \"ngnix\"").contains("there is no profile \"ngnix\""));
    }

    #[test]
    fn limits_are_sizes_counts_and_shares() {
        let limits = |text: &str| parse(Path::new("f"), &with(&format!("limits = {{ {text} }}")));
        let all = r#"memory = "1G", tasks = 300, cpu = "150%", io = "50M", disk = "2G", inodes = 200000"#;
        let is = limits(all).unwrap().profiles["nginx"].limits;
        assert_eq!((is.memory, is.tasks, is.cpu), (Some(1 << 30), Some(300), Some(150)));
        assert_eq!((is.io, is.disk, is.inodes), (Some(50 << 20), Some(2 << 30), Some(200_000)));
        for (bad, why) in [
            ("memory = \"0\"", "limits.memory: \"0\" is too little"),
            ("memory = \"1Q\"", "limits.memory: \"1Q\" is no size"),
            ("tasks = 0", "limits.tasks: 0 is too little"),
            ("tasks = -1", "limits.tasks: -1 is too little"),
            ("cpu = \"0%\"", "limits.cpu: \"0%\" is no share"),
            ("cpu = \"1.5\"", "limits.cpu: \"1.5\" is no share"),
            ("disk = \"\"", "limits.disk: \"\" is no size"),
            ("inodes = 1", "limits.inodes: 1 is too little"),
            ("pids = 3", "unknown key `pids`"),
        ] {
            let text = limits(bad).unwrap_err().to_string();
            assert!(text.starts_with("f:7: profiles.nginx.limits: ") && text.contains(why), "{bad}: {text}");
        }
        let text = mistake(&with("writable = false\nlimits = { disk = \"1G\" }"));
        assert!(text.contains("need `writable = true`"), "{text}");
    }

    #[test]
    fn the_doors_of_a_private_network_are_ports() {
        let private = |text: &str| parse(Path::new("f"), &with(&format!("network = \"private\"\n{text}")));
        let config = private("reach = [\"5432/tcp\"]\npublish = [\"8080:80/tcp\", \"8080:53/udp\"]").unwrap();
        let nginx = &config.profiles["nginx"];
        assert_eq!(nginx.reach[0].to_string(), "5432/tcp");
        assert_eq!(nginx.publish[1].to_string(), "8080:53/udp");
        for (bad, why) in [
            ("reach = []", "names no port"),
            ("reach = [\"\"]", "is no port"),
            ("reach = [\"1/tcp\", \"1/tcp\"]", "is named twice"),
            ("publish = [\"80:80/tcp\"]", "would take the host's port 80"),
            ("publish = [\"8080/tcp\"]", "is no pair of ports"),
            ("publish = [\"8080:1/tcp\", \"8080:2/tcp\"]", "is published twice"),
        ] {
            let text = private(bad).unwrap_err().to_string();
            assert!(text.starts_with("f:8: profiles.nginx.") && text.contains(why), "{bad}: {text}");
        }
        let small = private("limits = { memory = \"32M\" }").unwrap_err().to_string();
        assert!(small.starts_with("f:8: ") && small.contains("64M or more"), "{small}");
        assert!(mistake(&with("reach = [\"1/tcp\"]")).contains("needs `network = \"private\"`"));
        assert!(mistake(&with("network = \"bridge\"")).contains("unknown network \"bridge\""));
    }

    #[test]
    fn the_filter_is_changed_by_names_of_system_calls() {
        let changes = |text: &str| {
            let config = parse(Path::new("f"), &with(text)).unwrap();
            config.profiles["nginx"].seccomp.clone()
        };
        assert_eq!(changes(""), Some(Changes::default()));
        assert_eq!(changes("seccomp = false"), None);
        let some = changes("seccomp = { allow = [\"keyctl\"], deny = [\"ptrace\", \"chroot\"] }").unwrap();
        assert_eq!((some.allow.len(), some.deny.len()), (1, 2));
        for (bad, why) in [
            ("{ allow = [\"umount\"] }", "there is no system call \"umount\"; is it umount2?"),
            ("{ deny = [\"execve\"] }", "cannot be denied"),
            ("{ deny = [\"bpf\"], allow = [\"bpf\"] }", "both allowed and denied"),
            ("{ alow = [\"bpf\"] }", "unknown key `alow`"),
            ("{ allow = \"bpf\" }", "is a list of names"),
            ("{ allow = [1] }", "is a list of names"),
            ("\"off\"", "or `false` for no filter"),
        ] {
            let text = mistake(&with(&format!("seccomp = {bad}")));
            assert!(
                text.starts_with("ojail.toml:7: profiles.nginx.seccomp: ") && text.contains(why),
                "{bad}: {text}"
            );
        }
    }

    #[test]
    fn a_host_name_is_one() {
        for good in ["box", "a.b-c.example", "7"] {
            assert!(parse(Path::new("f"), &with(&format!("hostname = \"{good}\""))).is_ok(), "{good}");
        }
        for bad in ["", ".", "a..b", "-a", "a_b", "a b", "a\\u0007b", "ä", &"a".repeat(65)] {
            let text = mistake(&with(&format!("hostname = \"{bad}\"")));
            assert!(text.starts_with("ojail.toml:7: profiles.nginx.hostname: "), "{bad}: {text}");
            assert!(text.contains("is no host name") && !text.contains('\u{7}'), "{bad}: {text}");
        }
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("0"), Some(Duration::ZERO));
        assert_eq!(duration("12h"), Some(Duration::from_secs(43_200)));
        for bad in ["", "5", "m", "5 m", "-5m", "5w", "99999999999999999999s", "400d"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_file_that_others_can_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ojail.toml");
        std::fs::write(&path, GOOD).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let text = load(&path).unwrap_err().to_string();
        assert!(text.contains("can be written by others") || text.contains("belongs to uid"), "{text}");
        let link = dir.path().join("link.toml");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(load(&link).unwrap_err().to_string().contains("symbolic link"));
        assert!(load(&dir.path().join("none")).unwrap_err().to_string().contains("cannot be opened"));
    }
}
