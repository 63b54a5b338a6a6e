//! `ojail import USER FILE|-`: a user's upper from the tar of an OCI layer, which `ojail export` has written, or anything else.
//!
//! All of it is read into a draft on the user's shelf before anything of theirs is touched; then the two change places in one
//! rename ([`crate::aside`]).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::backup::progress;
use super::export::log;
use super::snapshot::{empty, replace, tell_replaced};
use super::{configuration, say, stop, username};
use crate::account::Username;
use crate::archive::Digesting;
use crate::aside;
use crate::config::Config;
use crate::error::{Act, Error, Result};
use crate::oci::packed::Plain;
use crate::oci::tar::{Allowance, Taken, read};
use crate::runtime::Corner;
use crate::{store, walk};

#[derive(Debug, clap::Args)]
pub(super) struct Import {
    /// Who gets the changes
    user: String,
    /// The tar of a layer, also compressed by gzip or zstd, or `-` for standard input
    #[arg(value_name = "FILE")]
    from: PathBuf,
    /// Set aside what the user has changed, and end open sessions
    #[arg(long)]
    force: bool,
}

pub(super) fn run(import: &Import) -> Result<ExitCode> {
    let user = username(&import.user)?;
    stop::known(&user)?;
    let config = configuration()?;
    let done = put(&config, &user, import);
    if done.is_err() {
        // Part of it may have filled the disk, of everybody's uppers.
        let _ = aside::empty(&config.storage, None);
    }
    done.map(|()| ExitCode::SUCCESS)
}

fn put(config: &Config, user: &Username, import: &Import) -> Result<()> {
    let stream = import.from.as_os_str() == OsStr::new("-");
    if stream && io::stdin().is_terminal() {
        return Err(Error::Terminal);
    }
    let name = if stream { Path::new("standard input") } else { &import.from };
    // Opened before anything is done: most mistakes are here.
    let from: Box<dyn Read + Send> =
        if stream { Box::new(io::stdin()) } else { Box::new(File::open(name).act("open", name)?) };
    let corner = Corner::of(user);
    let _lock = corner.lock()?;
    if !import.force && has_changes(config, user)? {
        return Err(Error::HasChanges { user: user.to_string() });
    }
    let mut taken = (Taken::default(), String::new());
    let replaced = replace(config, user, import.force, &[], |draft| {
        let upper = draft.upper();
        store::fresh(&upper)?;
        taken = unpack(from, name, &upper)?;
        Ok(())
    })?;
    let (Taken { entries, .. }, digest) = taken;
    say(format_args!(
        "{user} has the changes of the layer sha256:{digest} now ({entries} files and directories)."
    ));
    tell_replaced(user, replaced.as_ref());
    log("import", user, name);
    empty(&config.storage);
    Ok(())
}

/// Whether there is anything in the user's upper. One is there after the first login.
fn has_changes(config: &Config, user: &Username) -> Result<bool> {
    let upper = config.storage.upperdirs.join(user);
    if !store::owners(&config.storage)?.contains(user) {
        return Ok(false);
    }
    Ok(std::fs::read_dir(&upper).act("list", &upper)?.next().is_some())
}

/// Reads a layer into an empty directory. Returns what it was, and the SHA-256 of the layer uncompressed.
pub(super) fn unpack(from: Box<dyn Read + Send>, name: &Path, into: &Path) -> Result<(Taken, String)> {
    // A sentence about a tar names the file.
    let named = |e| match e {
        Error::LayerTar { why } => Error::Unfit { path: name.to_owned(), why: format!("is refused: {why}") },
        e => e,
    };
    let bar = progress();
    bar.set_length(std::fs::metadata(name).map_or(0, |meta| meta.len()));
    let dir = walk::open(into)?;
    let mut plain = Digesting::new(Plain::of(bar.wrap_read(from))?, &indicatif::ProgressBar::hidden());
    let taken = read(&mut plain, dir.as_fd(), Allowance::of(&dir)?).map_err(named)?;
    let (plain, digest) = plain.into_inner();
    plain.end().map_err(named)?;
    bar.finish_and_clear();
    Ok((taken, digest))
}
