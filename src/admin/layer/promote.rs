//! `ojail layer promote`: what a user changed, or a part of it, becomes a layer.

use std::ffi::CString;
use std::fs::{self, DirBuilder};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::fstat;

use super::super::reset::{inside, progress};
use super::super::snapshot::room;
use super::super::still::{Choice, Still};
use super::super::{configuration, diff, say, stop, username};
use super::words;
use crate::account::Username;
use crate::error::{Act, Error, Result};
use crate::layers::generations::{self, How, Made, Workshop};
use crate::layers::secrets::{self, Look};
use crate::layers::{self, Layer};
use crate::lower::Lower;
use crate::runtime::Corner;
use crate::{copy, spare, store, walk};

/// Whose changes, and what of them.
#[derive(Debug, clap::Args)]
pub(in crate::admin) struct Promote {
    /// Whose changes
    user: String,
    /// What to call the layer
    name: String,
    /// Only this path inside the jail, and what is below it
    #[arg(long, value_name = "PATH")]
    path: Vec<PathBuf>,
    /// This secret, or what is secret below this path, is meant to be in the layer
    #[arg(long, value_name = "PATH")]
    allow: Vec<PathBuf>,
    /// Tell what it would be, and make nothing
    #[arg(long)]
    dry_run: bool,
    /// The profile whose layers the changes are of, instead of the user's
    #[arg(long, value_name = "PROFILE")]
    profile: Option<String>,
    #[command(flatten)]
    choice: Choice,
}

pub(super) fn run(promote: &Promote) -> Result<ExitCode> {
    let config = configuration()?;
    let user = username(&promote.user)?;
    let name = super::parse(&promote.name)?;
    let paths = inside(&promote.path, "--path")?;
    let allow = inside(&promote.allow, "--allow")?;
    let storage = &config.storage;
    generations::free_for(storage, &name)?;
    stop::known(&user)?;
    let corner = Corner::of(&user);
    // Held to the end: a jail that is not running stays so, and one that is, is ours alone to let go on.
    let _lock = if promote.dry_run { None } else { Some(corner.lock()?) };
    let upper = storage.upperdirs.join(&user);
    if !store::owners(storage)?.contains(&user) {
        return Err(Error::NoUpper { user: user.to_string(), path: upper });
    }
    let profile = diff::profile(&config, &user, promote.profile.as_deref(), true)?;
    let below = layers::resolve(storage, &profile.layers)?;
    let lower = Lower::of(&below)?;

    // Before anybody is held up.
    let look = secrets::look(walk::open(&upper)?, &paths)?;
    if promote.dry_run {
        diff::show(&user, &upper, &lower, &paths)?;
        tell(&look);
        refuse_secrets(&user, &look, &allow)?;
        say(format_args!("Nothing was made; without --dry-run this becomes the layer {name}."));
        return Ok(ExitCode::SUCCESS);
    }
    refuse_secrets(&user, &look, &allow)?;
    let workshop = Workshop::open(storage)?;
    let tree = workshop.place("tree");
    let to = walk::open(tree.parent().unwrap_or(&tree))?;
    if !copy::shares(to.as_fd()) {
        room(&storage.lowerdirs, &to, look.bytes)?;
    }
    let still = promote.choice.hold(&corner)?;
    if matches!(still, Still::Ended) {
        say(format_args!("The jail of {user} has ended."));
    }
    let copied = copied(&storage.upperdirs, &user, &tree, &lower, &paths, look.entries);
    // It goes on at once, also if there is something to complain about.
    let held = still.done();
    copied?;
    held?;
    // What is in the copy is what counts: something may have come since.
    let look = secrets::look(walk::open(&tree)?, &[])?;
    refuse_secrets(&user, &look, &allow)?;
    if look.entries == 0 {
        let what = if paths.is_empty() { "anything" } else { "anything there" };
        return Err(Error::Layer { name: name.to_string(), why: format!("{user} has not changed {what}") });
    }
    let from = below.iter().map(Layer::full).collect();
    let done = super::finish(&workshop, &name, &tree, Made { how: How::Promote, command: words(), from })?;
    tell(&look);
    say(done);
    Ok(ExitCode::SUCCESS)
}

/// Copies the upper, or what is at these paths, into the workshop.
fn copied(
    upperdirs: &Path,
    user: &Username,
    tree: &Path,
    lower: &Lower,
    paths: &[PathBuf],
    entries: u64,
) -> Result<()> {
    if !paths.is_empty() {
        DirBuilder::new().mode(0o755).create(tree).act("create", tree)?;
        // Whatever the umask: this becomes the mode of `/` inside.
        fs::set_permissions(tree, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .act("set the mode of", tree)?;
        let (old, new) = (walk::open(&upperdirs.join(user))?, walk::open(tree)?);
        let unchanged = spare::keep(&old, &new, lower, paths)?;
        return match unchanged.first() {
            // The same changes are the same generation, whenever they are taken.
            None => spare::set_times(&new, &fstat(&old).act("examine", "the upper")?)
                .act("set the times of", tree),
            Some(path) => Err(Error::BadPath {
                option: "--path",
                path: secrets::shown(path),
                why: format!("is as the layers have it; {user} has changed nothing there"),
            }),
        };
    }
    let (from, to) = (walk::open(upperdirs)?, walk::open(tree.parent().unwrap_or(tree))?);
    let name = CString::new(user.as_str()).map_err(std::io::Error::from).act("name", user.as_str())?;
    let bar = progress(usize::try_from(entries).unwrap_or(usize::MAX));
    let done = copy::watched(from.as_fd(), &name, to.as_fd(), c"tree", &mut |_| {
        bar.inc(1);
        Ok(())
    });
    bar.finish_and_clear();
    done
}

/// What an administrator should know of a layer that a user has shaped.
fn tell(look: &Look) {
    if !look.setid.is_empty() {
        let paths: Vec<String> = look.setid.iter().map(|path| secrets::shown(path)).collect();
        say(format_args!("With the rights of their owner or group run: {}.", paths.join(", ")));
    }
}

fn refuse_secrets(user: &Username, look: &Look, allow: &[PathBuf]) -> Result<()> {
    /// Of very many, this is enough to see what is meant.
    const TOLD: usize = 20;
    let allowed = |path: &Path| allow.iter().any(|allowed| path.starts_with(allowed));
    let secrets: Vec<_> = look.secrets.iter().filter(|(path, _)| !allowed(path)).collect();
    if secrets.is_empty() {
        return Ok(());
    }
    let told = secrets.iter().take(TOLD).map(|(path, why)| format!("{} ({why})", secrets::shown(path)));
    let mut what = told.collect::<Vec<_>>().join(", ");
    if secrets.len() > TOLD {
        what.push_str(&format!(" and {} more", secrets.len() - TOLD));
    }
    Err(Error::Secrets { user: user.to_string(), what })
}
