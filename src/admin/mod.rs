//! The administrator's command: one file per verb. Each runs as host root, says what it did on standard output, and
//! fails with one line on standard error. Exit status: 0 done, 1 refused or failed, 2 wrong usage; `check` has its own.

mod backup;
mod check;
mod complete;
mod conflicts;
mod diff;
mod enter;
mod export;
mod farewell;
mod forget;
mod fstab;
mod import;
mod layer;
mod list;
mod mount;
mod prove;
mod rebase;
mod reset;
mod restore;
mod run;
mod seats;
mod session;
mod snapshot;
mod status;
mod still;
mod stop;
mod terminal;
mod tidy;
mod top;
mod undo;
mod usage;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::account::{self, Account, Username};
use crate::config::{self, Config, Profile};
use crate::error::{Error, Result};
use crate::freezer;
use crate::jail::login::judge;
use crate::paths;
use crate::policy::Decision;
use crate::runtime::Corner;

/// A Debian of their own for every user who logs in over SSH.
#[derive(Debug, Parser)]
#[command(name = "ojail", version, disable_help_subcommand = true, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Find what is wrong, and say how to mend it: kernel, configuration, layers, PAM, sshd
    ///
    /// Exit status: 0 all is well, 1 there are warnings, 2 there are errors.
    #[command(after_long_help = examples(&[
        "ojail check",
        "ojail check alice",
        "ojail check --json | jq '.findings[] | select(.severity != \"ok\")'",
    ]))]
    Check {
        /// Also tell whether this user is jailed, in which profile, and by which rule
        user: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Open a session for a user as every PAM service would, and attack the jail from inside
    ///
    /// Nothing is authenticated. The user's jail is raised, and PAM's modules do what they do for a session. Exit status: 0
    /// every session is jailed or refused and every attack contained, 1 otherwise.
    #[command(after_long_help = examples(&["ojail prove alice"]))]
    Prove {
        /// A jailed user
        user: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the jails: running or not, sessions, what they take, since when
    #[command(after_long_help = examples(&[
        "ojail list",
        "ojail list --sizes",
        "ojail list --json | jq -r '.jails[] | select(.running) | .user'",
    ]))]
    List {
        /// Walk over every upper for its size, also where no quota tells it; takes as long as `du`
        #[arg(long)]
        sizes: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the list on a terminal, live: who takes what of the processors and the memory
    ///
    /// Keys: c, m and u sort by cpu, memory and user; q quits. CPU is in per cent of one processor since the last look.
    #[command(after_long_help = examples(&["ojail top", "ojail top --every 10s"]))]
    Top {
        /// How often to look
        #[arg(long, value_name = "TIME", default_value = "2s", value_parser = top::interval)]
        every: Duration,
    },
    /// Show one jail in full: sessions, network, and what it takes of what it may
    #[command(after_long_help = examples(&["ojail status alice"]))]
    Status {
        /// Whose jail
        user: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what a user changed, compared with the layers
    ///
    /// A line each: A (added), M (changed) or D (deleted), and the path inside the jail. In parentheses stands what it is, or in
    /// what it differs from the layers. A deleted directory is one line. Control characters in names are escaped as in Rust
    /// (`\n`, `\u{1b}`, `\xff`), and a backslash is doubled. The user may be at work meanwhile. Exit status: 0 when it is told,
    /// changes or not.
    #[command(after_long_help = examples(&["ojail diff alice", "ojail diff alice /etc --content"]))]
    Diff(diff::Diff),
    /// Show what of a user's is in the way of newer layers: packages, and files
    ///
    /// After a layer has a new generation. A file is judged by the layers that the user was on when it was last changed, if these are
    /// still there. Packages that the user installed on top of the old layers are named, and what dpkg in the jail does not know of
    /// the new ones. Nothing is changed. Exit status: 0 when it is told, conflicts or not.
    #[command(after_long_help = examples(&["ojail conflicts alice", "ojail conflicts alice --json | jq '.files[].path'"]))]
    Conflicts(conflicts::Conflicts),
    /// Bring a user's changes to newer layers: files come along, packages are installed anew
    ///
    /// For who has installed packages on layers that have newer generations since. A copy of the changes loses what dpkg and apt put
    /// there, and apt-get installs the user's packages again, in a temporary jail; if all went well, the copy takes the place of the
    /// changes in one step, and `ojail undo` brings these back. Edited files of configuration stay. What apt-get says is in
    /// /var/log/ojail/rebase-USER-TIME.log. Nobody can log in to the jail meanwhile.
    #[command(after_long_help = examples(&[
        "ojail rebase alice --dry-run",
        "ojail rebase alice",
        "ojail rebase alice --force --without gone-package",
    ]))]
    Rebase(rebase::Rebase),
    /// Open a session in a user's jail, on a terminal of its own
    #[command(after_long_help = examples(&["ojail enter alice", "ojail enter alice -- ps aux"]))]
    Enter {
        /// Whose jail
        user: String,
        /// A command instead of the user's shell
        #[arg(last = true)]
        command: Vec<OsString>,
    },
    /// Run a command in a jail, without SSH and without a terminal of its own
    ///
    /// Standard input, output and error are carried through; SIGINT, SIGTERM, SIGHUP and SIGQUIT are handed on. The exit status is
    /// the command's: 128 and the signal's number if one ended it, 127 if there is no such command, 126 if it cannot be run.
    #[command(after_long_help = examples(&[
        "ojail run alice -- make test",
        "ojail run alice --ephemeral -- apt list --installed",
        "ojail run --profile debian -- dpkg --audit",
    ]))]
    Run(run::Run),
    /// Show a user's jail at /srv/jails/USER, raising it if it is not running
    ///
    /// `jails` in the configuration says where. It is the running jail's own file system, without what is mounted in it (a home of the host's, /tmp, /proc). Owners are the
    /// jail's ids as the host has them, so root of the host can change and remove what is there but makes new files only as one
    /// of these. Links that begin with / lead to the host's files. The jail stays raised while it is mounted.
    #[command(after_long_help = examples(&["ojail mount alice", "ojail mount alice --read-only"]))]
    Mount {
        /// Whose jail
        user: String,
        /// Let nothing be written
        #[arg(long)]
        read_only: bool,
    },
    /// Take the mount of a user's jail away again
    ///
    /// Refused while something uses it, which is named.
    #[command(after_long_help = examples(&["ojail umount alice"]))]
    Umount {
        /// Whose jail
        user: String,
    },
    /// End a user's jail and every process in it; what they changed stays
    #[command(after_long_help = examples(&["ojail stop alice", "ojail stop alice --force"]))]
    Stop {
        /// Whose jail
        user: String,
        /// Unmount it first where `ojail mount` has it mounted
        #[arg(long)]
        force: bool,
    },
    /// Clear a user's changes: the next login finds the layers as they are
    ///
    /// The changes are set aside, not deleted; `ojail undo` puts them back. A home directory of the host's is not touched. Refused
    /// while sessions are open.
    #[command(after_long_help = examples(&[
        "ojail reset alice",
        "ojail reset alice --keep /etc/nginx --dry-run",
        "ojail reset --all --profile debian --force",
        "ojail reset --list alice",
    ]))]
    Reset(reset::Reset),
    /// Put back what a reset cleared; what that replaces is set aside in turn
    #[command(after_long_help = examples(&["ojail undo alice", "ojail undo alice 2026-11-24T09.54.46Z"]))]
    Undo {
        /// Whose jail
        user: String,
        /// Not the last, but the one of this name (`ojail reset --list USER`)
        name: Option<String>,
        /// End open sessions first, and unmount what `ojail mount` has mounted
        #[arg(long)]
        force: bool,
    },
    /// Save a point in time of a user's changes, to go back to
    ///
    /// A copy of the changes on the user's shelf. A running jail is frozen for as long as that takes. Snapshots stay until they are
    /// removed by name.
    #[command(after_long_help = examples(&[
        "ojail snapshot alice before-upgrade",
        "ojail snapshot alice --end --force",
        "ojail snapshot -- list",
    ]))]
    Snapshot(snapshot::Snapshot),
    /// Write jails to a directory or a stream: layers once, changes each time
    ///
    /// Plain tar files and images, called after their content, so that a second backup to the same directory writes only what is
    /// new, and tools like restic and borg find the rest again. Homes on the host are not in it. A running jail is frozen while its
    /// changes are packed.
    #[command(after_long_help = examples(&[
        "ojail backup /srv/backup && restic backup /srv/backup",
        "ojail backup /srv/backup alice bob",
        "ojail backup - | ssh archive.example 'cat > jails.tar'",
    ]))]
    Backup(backup::Backup),
    /// Make the jails of a backup, on this host or a bare one
    ///
    /// Everything is verified before anything is put in place. What is there already and differs is a refusal, unless with --force.
    #[command(after_long_help = examples(&[
        "ojail restore /srv/backup",
        "ojail restore /srv/backup alice --force",
        "ojail restore - < jails.tar",
    ]))]
    Restore(restore::Restore),
    /// Make, show and change the layers that jails stand on
    #[command(subcommand, after_long_help = examples(&["ojail layer list"]))]
    Layer(layer::Layer),
    /// Write what a user changed as a layer that every tool for OCI images understands
    ///
    /// A tar of one layer (image-spec of OCI), uncompressed, with whiteouts, opaque directories, extended attributes, capabilities and
    /// hard links: the same changes give the same bytes. Times are whole seconds; sockets are not in it, and flags of chattr(1). A
    /// running jail is frozen meanwhile. It belongs on top of the layers of the user's profile.
    #[command(after_long_help = examples(&[
        "ojail export alice /root/alice.tar",
        "ojail export alice - | zstd | ssh other.example 'cat > alice.tar.zst'",
    ]))]
    Export(export::Export),
    /// Give a user the changes of a layer's tar, from `ojail export` or another tool
    ///
    /// Read and verified to its end before anything changes. What the user had is set aside; `ojail undo` puts it back. Refused is a
    /// tar with names that lead out of it or through a link, with devices but the usual ones, or with more than fits on the disk.
    /// Owners are numbers, as they were in the jail: the user should have the same uid on both hosts.
    #[command(after_long_help = examples(&[
        "ojail import alice /root/alice.tar",
        "ssh other.example ojail export alice - | ojail import alice - --force",
    ]))]
    Import(import::Import),
    /// Show what jails take: as if one by one, with shared layers, and with packed ones
    ///
    /// Of all users who have changes on disk. Files are counted once, as du(1) does, and nothing is estimated: a layer that is not packed
    /// has no packed size.
    #[command(after_long_help = examples(&["ojail usage", "ojail usage --json | jq .packed_percent"]))]
    Usage {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print lines for fstab(5) that mount jails without ojail
    ///
    /// A line for each image, and one for the overlay of each user. Nothing is changed. A jail that is mounted so must not run under
    /// ojail at the same time.
    #[command(after_long_help = examples(&["ojail fstab", "ojail fstab nginx1 nginx2"]))]
    Fstab {
        /// Whose jails; else of all who have changes on disk
        #[arg(value_name = "USER")]
        users: Vec<String>,
    },
    /// Let go of what is kept of a user who is gone: changes, work directory, id range
    ///
    /// The changes are set aside; `ojail undo` brings them back until `ojail tidy` deletes them.
    #[command(after_long_help = examples(&["userdel alice && ojail forget alice", "ojail forget alice --snapshots"]))]
    Forget {
        /// Who
        user: String,
        /// Also a user who exists and is jailed, and one whose sessions are open
        #[arg(long)]
        force: bool,
        /// Remove the user's snapshots, too
        #[arg(long)]
        snapshots: bool,
    },
    /// Holds a jail still for `snapshot` and `backup`, and thaws it when they end, however they do
    #[command(name = freezer::GUARD, hide = true)]
    HoldStill {
        /// Whose jail
        user: String,
        /// Its control group
        group: PathBuf,
    },
    /// Delete what is set aside and past its retention (`[reset]` in the configuration)
    ///
    /// A systemd timer does this every day.
    #[command(after_long_help = examples(&["ojail tidy --dry-run"]))]
    Tidy {
        /// Tell what would be deleted, and delete nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Print names, one a line, for the completions of shells
    #[command(hide = true)]
    Complete {
        /// Which names
        what: complete::What,
    },
}

/// What stands below a verb's long help and in its section of the manual. Tests parse each line as the command would.
fn examples(lines: &[&str]) -> String {
    format!("Examples:\n  {}", lines.join("\n  "))
}

/// The one definition of verbs and flags, from which the manual and the completions are made too.
#[must_use]
pub fn command() -> clap::Command {
    <Arguments as clap::CommandFactory>::command()
}

/// The whole of the command.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // clap's own text, to standard output for --help and to standard error for mistakes.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let done = match arguments.verb {
        Verb::Check { user, json } => check::run(user.as_deref(), json),
        Verb::Prove { user, json } => as_root().and_then(|()| prove::run(&user, json)),
        Verb::List { sizes, json } => as_root().and_then(|()| list::run(sizes, json)),
        Verb::Top { every } => as_root().and_then(|()| top::run(every)),
        Verb::Status { user, json } => as_root().and_then(|()| status::run(&user, json)),
        Verb::Diff(diff) => as_root().and_then(|()| diff::run(&diff)),
        Verb::Conflicts(conflicts) => as_root().and_then(|()| conflicts::run(&conflicts)),
        Verb::Rebase(rebase) => as_root().and_then(|()| rebase::run(&rebase)),
        Verb::Enter { user, command } => as_root().and_then(|()| enter::run(&user, &command)),
        Verb::Run(run) => as_root().and_then(|()| run::run(&run)),
        Verb::Mount { user, read_only } => as_root().and_then(|()| mount::mount(&user, read_only)),
        Verb::Umount { user } => as_root().and_then(|()| mount::umount(&user)),
        Verb::Stop { user, force } => as_root().and_then(|()| stop::run(&user, force)),
        Verb::Reset(reset) => as_root().and_then(|()| reset::run(&reset)),
        Verb::Undo { user, name, force } => as_root().and_then(|()| undo::run(&user, name.as_deref(), force)),
        Verb::Snapshot(snapshot) => as_root().and_then(|()| snapshot::run(&snapshot)),
        Verb::Backup(backup) => as_root().and_then(|()| backup::run(&backup)),
        Verb::Layer(layer) => as_root().and_then(|()| layer::run(&layer)),
        Verb::Usage { json } => as_root().and_then(|()| usage::run(json)),
        Verb::Fstab { users } => as_root().and_then(|()| fstab::run(&users)),
        Verb::Restore(restore) => as_root().and_then(|()| restore::run(&restore)),
        Verb::Export(export) => as_root().and_then(|()| export::run(&export)),
        Verb::Import(import) => as_root().and_then(|()| import::run(&import)),
        Verb::Forget { user, force, snapshots } => {
            as_root().and_then(|()| forget::run(&user, force, snapshots))
        }
        Verb::HoldStill { user, group } => as_root().and_then(|()| {
            freezer::guard(&Corner::of(&username(&user)?), &group);
            Ok(ExitCode::SUCCESS)
        }),
        Verb::Tidy { dry_run } => as_root().and_then(|()| tidy::run(dry_run)),
        Verb::Complete { what } => complete::run(what),
    };
    done.unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "ojail: {error}");
        ExitCode::FAILURE
    })
}

fn as_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(Error::NotRoot) }
}

/// Prints a line, or lets it be: a pipe that was closed is no error of ours.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The name as it can be a jail's. The user need not exist any more: an administrator clears up after those too.
fn username(name: &str) -> Result<Username> {
    Username::parse(name)
}

fn configuration() -> Result<Config> {
    Ok(config::load(paths::CONFIG.as_ref())?)
}

/// The profile of a jailed user.
fn jailed<'a>(config: &'a Config, user: &str) -> Result<(Account, &'a Profile)> {
    let account = account::lookup(user)?;
    match judge(config, &account)? {
        Decision::Jailed { profile, .. } => Ok((account, profile)),
        Decision::Exempt(why) => Err(Error::NotJailed { user: account.name, why: why.to_string() }),
    }
}

/// The name of a user's profile; `None` for who is not jailed, or gone.
fn profile_of(config: &Config, user: &Username) -> Option<String> {
    let (_, profile) = jailed(config, user.as_str()).ok()?;
    Some(profile.name.clone())
}
