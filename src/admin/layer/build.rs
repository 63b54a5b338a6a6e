//! `ojail layer build`: a whole Debian, by `mmdebstrap` or `debootstrap`, or out of a directory or a tar.

use std::fs::{self, File};
use std::io::{IsTerminal, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::super::import::unpack;
use super::super::reset::progress;
use super::super::snapshot::room;
use super::super::{configuration, say};
use super::errand::{self, Ended};
use super::journal::Journal;
use super::words;
use crate::config::{Config, LayerName};
use crate::error::{Act, Error, Result};
use crate::layers::clean;
use crate::layers::generations::{self, How, Made, Workshop};
use crate::{copy, store, walk};

/// What an SSH jail needs besides Debian's essential packages: sftp and scp, `sudo` where the profile has `root = true`, `ps`; and
/// `apt`, which a mirror's priorities need not bring.
const NEEDED: [&str; 4] = ["apt", "openssh-sftp-server", "sudo", "procps"];

/// Where Debian is, for `debootstrap`; `mmdebstrap` knows by itself, with the archives of updates.
const MIRROR: &str = "http://deb.debian.org/debian";

/// What a build takes before it is cleaned, in bytes: a tree of 200 MiB, its packages and the lists of what there is.
const ROOM: u64 = 512 << 20;

/// What to build, and of what.
#[derive(Debug, clap::Args)]
pub(in crate::admin) struct Build {
    /// What to call the layer
    name: String,
    /// The release of Debian, like bookworm or trixie; else the host's own
    #[arg(long)]
    suite: Option<String>,
    /// More packages; commas between them, or the option several times
    #[arg(long, value_name = "PACKAGE", value_delimiter = ',')]
    include: Vec<String>,
    /// Where to get packages: a URL, or a line of sources.list(5); else Debian's own servers
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Nothing is installed: the layer is a copy of this directory
    #[arg(long, value_name = "DIR", conflicts_with_all = ["suite", "include", "mirror"])]
    from_dir: Option<PathBuf>,
    /// Nothing is installed: the layer is what is in this tar, also compressed by gzip or zstd; `-`: standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["suite", "include", "mirror", "from_dir"])]
    from_tar: Option<PathBuf>,
}

pub(super) fn run(build: &Build) -> Result<ExitCode> {
    let config = configuration()?;
    let name = super::parse(&build.name)?;
    generations::free_for(&config.storage, &name)?;
    match (&build.from_dir, &build.from_tar) {
        (Some(dir), _) => from_dir(&config, &name, dir),
        (None, Some(file)) => from_tar(&config, &name, file),
        (None, None) => install(&config, &name, build),
    }
}

/// By one of Debian's tools.
fn install(config: &Config, name: &LayerName, build: &Build) -> Result<ExitCode> {
    let recipe = Recipe::of(name, build)?;
    let workshop = Workshop::open(&config.storage)?;
    room(&config.storage.lowerdirs, walk::open(&config.storage.lowerdirs)?, ROOM)?;
    let tree = workshop.place("tree");
    let scratch = workshop.place("scratch");
    for dir in [&tree, &scratch] {
        fs::create_dir(dir).act("create", dir)?;
    }
    let tool = Tool::there_is().ok_or_else(|| Error::Layer {
        name: name.to_string(),
        why: "nothing on this host can build a Debian; `apt-get install mmdebstrap`".into(),
    })?;
    let command = tool.command(name, &recipe, &tree)?;
    let mut journal = Journal::open(name, tool.phases())?;
    match errand::run(&command, workshop.lock(), &scratch, &mut journal)? {
        Ended::Itself(status) if status.success() => {}
        Ended::Itself(status) => return Err(journal.failed(&format!("{} failed, {status}", tool.name()))),
        Ended::Interrupted(signal) => return Err(journal.failed(&format!("interrupted by {signal}"))),
    }
    journal.quiet();
    clean::base(&tree)?;
    let made = Made { how: How::Build, command: words(), from: Vec::new() };
    let done = super::finish(&workshop, name, &tree, made)?;
    say(format_args!("{done} All that {} said is in {}.", tool.name(), journal.path().display()));
    Ok(ExitCode::SUCCESS)
}

fn from_dir(config: &Config, name: &LayerName, dir: &Path) -> Result<ExitCode> {
    let bad = |why: String| {
        let path = dir.display().to_string().escape_debug().to_string();
        Err(Error::BadPath { option: "--from-dir", path, why })
    };
    // As it is named from here: links of the administrator's own are followed.
    let dir = match fs::canonicalize(dir) {
        Ok(dir) if dir.is_dir() => dir,
        Ok(_) => return bad("is not a directory".into()),
        Err(e) => return bad(format!("cannot be used: {e}")),
    };
    let storage = &config.storage;
    if storage.lowerdirs.starts_with(&dir) {
        return bad("is above the directory of layers, and cannot be copied into it".into());
    }
    if [&storage.upperdirs, &storage.asidedirs, &storage.workdirs].iter().any(|above| dir.starts_with(above))
    {
        return bad("belongs to a user; `ojail layer promote` makes a layer of what a user changed".into());
    }
    let workshop = Workshop::open(storage)?;
    let size = walk::size(walk::open(&dir)?)?;
    let tree = workshop.place("tree");
    let to = walk::open(tree.parent().unwrap_or(&tree))?;
    if !copy::shares(to.as_fd()) {
        room(&storage.lowerdirs, &to, size.bytes)?;
    }
    let bar = progress(usize::try_from(size.inodes).unwrap_or(usize::MAX));
    let copied = copy::watched(walk::open(&dir)?.as_fd(), c".", to.as_fd(), c"tree", &mut |_| {
        bar.inc(1);
        Ok(())
    });
    bar.finish_and_clear();
    copied?;
    let made = Made { how: How::Build, command: words(), from: Vec::new() };
    say(super::finish(&workshop, name, &tree, made)?);
    Ok(ExitCode::SUCCESS)
}

fn from_tar(config: &Config, name: &LayerName, file: &Path) -> Result<ExitCode> {
    let from: Box<dyn Read + Send> = if file.as_os_str() != "-" {
        Box::new(File::open(file).act("open", file)?)
    } else if std::io::stdin().is_terminal() {
        return Err(Error::Terminal);
    } else {
        Box::new(std::io::stdin())
    };
    let workshop = Workshop::open(&config.storage)?;
    let tree = workshop.place("tree");
    store::fresh(&tree)?;
    // What does not fit is refused when the archive says so; how much that is, it does not say before.
    unpack(from, file, &tree)?;
    let made = Made { how: How::Build, command: words(), from: Vec::new() };
    say(super::finish(&workshop, name, &tree, made)?);
    Ok(ExitCode::SUCCESS)
}

/// What is asked for, looked at: all of it becomes words of a command.
struct Recipe {
    suite: String,
    packages: Vec<String>,
    mirror: Option<String>,
}

impl Recipe {
    fn of(name: &LayerName, build: &Build) -> Result<Self> {
        let bad = |what: &str, is: &str, why: &str| {
            let is: String = is.escape_debug().take(100).collect();
            Err(Error::Layer { name: name.to_string(), why: format!("{what} \"{is}\" {why}") })
        };
        let suite = match &build.suite {
            Some(suite) => suite.clone(),
            None => own_suite().unwrap_or_else(|| "stable".into()),
        };
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        if suite.is_empty() || suite.starts_with(['-', '.']) || !suite.chars().all(plain) {
            return bad("--suite", &suite, "is no release of Debian, like bookworm or trixie");
        }
        let mut packages: Vec<String> = NEEDED.map(str::to_owned).into();
        for package in &build.include {
            // Debian Policy 5.6.1.
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c);
            let first = package.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
            if package.len() < 2 || !first || !package.chars().all(plain) {
                return bad("--include", package, "is no name of a package");
            }
            if !packages.contains(package) {
                packages.push(package.clone());
            }
        }
        if let Some(mirror) = &build.mirror {
            let known = ["http://", "https://", "file:", "copy:", "ftp://", "mirror+", "deb "];
            if !known.iter().any(|known| mirror.starts_with(known))
                || mirror.contains(|c: char| c.is_control())
            {
                return bad(
                    "--mirror",
                    mirror,
                    "is no URL, and no line of sources.list that begins with \"deb \"",
                );
            }
        }
        Ok(Self { suite, packages, mirror: build.mirror.clone() })
    }
}

/// The host's release, if it is Debian.
fn own_suite() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    if !release.lines().any(|line| line == "ID=debian") {
        return None;
    }
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(codename.trim_matches('"').to_owned())
}

/// What builds.
#[derive(Debug, Clone, Copy)]
enum Tool {
    Mmdebstrap,
    Debootstrap,
}

impl Tool {
    /// The one that this host has; the quicker one if it has both.
    fn there_is() -> Option<Self> {
        let there = |tool: &Self| {
            ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"]
                .iter()
                .any(|dir| Path::new(dir).join(tool.name()).exists())
        };
        [Self::Mmdebstrap, Self::Debootstrap].into_iter().find(there)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Mmdebstrap => "mmdebstrap",
            Self::Debootstrap => "debootstrap",
        }
    }

    /// By what it says at the beginning of each.
    fn phases(self) -> &'static [&'static str] {
        match self {
            Self::Mmdebstrap => &[
                "I: running apt-get update",
                "I: downloading packages",
                "I: extracting archives",
                "I: installing essential packages",
                "I: installing remaining packages",
                "I: cleaning package lists",
                "I: success",
            ],
            Self::Debootstrap => &[
                "I: Retrieving InRelease",
                "I: Resolving dependencies",
                "I: Retrieving ",
                "I: Extracting ",
                "I: Installing core packages",
                "I: Unpacking required packages",
                "I: Configuring required packages",
                "I: Unpacking the base system",
                "I: Configuring the base system",
                "I: Base system installed",
            ],
        }
    }

    /// As a command. Both make `minbase`: the essential packages, and `apt`.
    fn command(self, name: &LayerName, recipe: &Recipe, tree: &Path) -> Result<Vec<String>> {
        let include = format!("--include={}", recipe.packages.join(","));
        let mut words = vec![self.name().to_owned(), "--variant=minbase".into(), include];
        match (self, &recipe.mirror) {
            (Self::Debootstrap, Some(line)) if line.starts_with("deb ") => {
                return Err(Error::Layer {
                    name: name.to_string(),
                    why: "debootstrap takes a URL for --mirror, and no line of sources.list; \
                          `apt-get install mmdebstrap` for that"
                        .into(),
                });
            }
            (Self::Debootstrap, mirror) => {
                words.extend([recipe.suite.clone(), tree.display().to_string()]);
                words.push(mirror.clone().unwrap_or_else(|| MIRROR.into()));
            }
            (Self::Mmdebstrap, mirror) => {
                // All that apt and dpkg say, and root of the host as it is.
                words.extend(["--verbose", "--mode=root", "--format=directory"].map(str::to_owned));
                words.extend([recipe.suite.clone(), tree.display().to_string()]);
                words.extend(mirror.clone());
            }
        }
        Ok(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(suite: Option<&str>, include: &[&str], mirror: Option<&str>) -> Result<Recipe> {
        let build = Build {
            name: "x".into(),
            suite: suite.map(str::to_owned),
            include: include.iter().map(|package| (*package).to_owned()).collect(),
            mirror: mirror.map(str::to_owned),
            from_dir: None,
            from_tar: None,
        };
        Recipe::of(&LayerName::parse("x").unwrap(), &build)
    }

    #[test]
    fn what_is_asked_for_becomes_words_and_never_an_option() {
        let recipe1 =
            recipe(Some("trixie"), &["nginx-light", "g++", "sudo"], Some("http://a/debian")).unwrap();
        let name = LayerName::parse("x").unwrap();
        let words = Tool::Mmdebstrap.command(&name, &recipe1, Path::new("/t")).unwrap().join(" ");
        assert!(words.contains("--include=apt,openssh-sftp-server,sudo,procps,nginx-light,g++ "), "{words}");
        assert!(words.ends_with("trixie /t http://a/debian"), "{words}");
        for suite in ["", "-x", "a b", "../x", "a\n"] {
            assert!(recipe(Some(suite), &[], None).is_err(), "{suite:?}");
        }
        for package in ["", "a", "-x", "a b", "A", "a,b", "a/b", "?essential"] {
            assert!(recipe(Some("trixie"), &[package], None).is_err(), "{package:?}");
        }
        for mirror in ["", "-x", "/etc/passwd", "deb", "http://a\nb", "--hook=x"] {
            assert!(recipe(Some("trixie"), &[], Some(mirror)).is_err(), "{mirror:?}");
        }
    }

    #[test]
    fn debootstrap_takes_no_line_of_sources_list() {
        let name = LayerName::parse("x").unwrap();
        let recipe = recipe(Some("trixie"), &[], Some("deb [trusted=yes] http://a trixie main")).unwrap();
        assert!(Tool::Debootstrap.command(&name, &recipe, Path::new("/t")).is_err());
        assert!(Tool::Mmdebstrap.command(&name, &recipe, Path::new("/t")).is_ok());
    }
}
