//! What a login of this user would come to.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use super::configuration::lacks;
use super::{Report, Setting};
use crate::account::{self, Account, Username};
use crate::config::{Config, Home, Profile};
use crate::ids::Registry;
use crate::jail::login::judge;
use crate::jail::plan;
use crate::policy::Decision;
use crate::{layers, paths};

const SUBJECT: &str = "user";

/// The verdict, as `--json` has it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Verdict {
    user: String,
    jailed: bool,
    profile: Option<String>,
    /// The line of the rule that decided.
    rule: Option<usize>,
    why: Option<String>,
}

pub(super) fn check(report: &mut Report, setting: &Setting, user: &str) -> Verdict {
    let mut verdict = Verdict { user: user.to_owned(), ..Verdict::default() };
    let account = match account::lookup(user) {
        Ok(account) => account,
        Err(e) => {
            report.fault(SUBJECT, &e);
            return verdict;
        }
    };
    let Some(config) = &setting.config else {
        let why = if account.uid == 0 { "uid 0 is always exempt" } else { "every login is refused" };
        report.warn(SUBJECT, format!("{user}: {why}"), "mend the configuration");
        return verdict;
    };
    match judge(config, &account) {
        Err(e) => report.fault(SUBJECT, &e),
        Ok(Decision::Exempt(why)) => {
            verdict.why = Some(why.to_string());
            report.ok(SUBJECT, format!("{user} is not jailed: {why}"));
        }
        Ok(Decision::Jailed { profile, line }) => {
            verdict.jailed = true;
            verdict.profile = Some(profile.name.clone());
            verdict.rule = Some(line);
            report.ok(
                SUBJECT,
                format!("{user} is jailed in profile {}, by the rule at line {line}", profile.name),
            );
            jailed(report, setting, config, profile, &account);
        }
    }
    verdict
}

fn jailed(report: &mut Report, setting: &Setting, config: &Config, profile: &Profile, account: &Account) {
    let user = match Username::parse(&account.name) {
        Ok(user) => user,
        Err(e) => return report.fault(SUBJECT, &e),
    };
    if account.shell == Path::new(&paths::shell()) {
        report.ok(SUBJECT, format!("{user} has the login shell {}", paths::shell()));
    } else {
        report.warn(
            SUBJECT,
            format!(
                "{user} has the login shell {}: where PAM is not asked, the host is open",
                account.shell.display()
            ),
            format!("usermod -s {} {user}", paths::shell()),
        );
    }
    // What a login asks of the account before it asks for anything of the disk.
    if let Err(e) = plan::terms(config, profile, account) {
        report.fault(SUBJECT, &e);
    }
    if profile.home == Home::Host {
        home(report, profile, account);
    }
    if !setting.root {
        return report.needs_root(SUBJECT, "ids and upper");
    }
    match Registry::default().foresee(&user, account) {
        Ok(Some(ranges)) => {
            report.ok(SUBJECT, format!("ids 0-65535 inside are {} and following outside", ranges.uid))
        }
        Ok(None) => report.ok(SUBJECT, "ids will be given from the pool at the first login"),
        Err(e) => report.fault(SUBJECT, &e),
    }
    if profile.writable {
        for (what, dirs) in
            [("changes", &config.storage.upperdirs), ("work directory", &config.storage.workdirs)]
        {
            owned(report, what, &dirs.join(&user));
        }
    }
    shell(report, config, profile, account);
}

/// What is there of an upper belongs to root on disk, whoever's it is.
fn owned(report: &mut Report, what: &str, path: &Path) {
    let shown = path.display();
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => report.error(SUBJECT, format!("cannot examine {shown}: {e}"), "mend the file system"),
        Ok(meta) if !meta.is_dir() => {
            report.error(SUBJECT, format!("{shown} is not a directory"), "move it away");
        }
        Ok(meta) if meta.uid() != 0 => report.error(
            SUBJECT,
            format!("{shown} belongs to uid {}, and must to root: its ids are those of the jail", meta.uid()),
            format!("chown root: {shown}"),
        ),
        Ok(_) => report.ok(SUBJECT, format!("the {what} of the jail: {shown}")),
    }
}

/// The shell that `ojail-shell` would become, where the profile does not name one; that one is the configuration's.
fn shell(report: &mut Report, config: &Config, profile: &Profile, account: &Account) {
    // Resolving makes the directory of layers, and looking must not.
    if profile.shell.is_some() || !config.storage.lowerdirs.is_dir() {
        return;
    }
    let Ok(layers) = layers::resolve(&config.storage, &profile.layers) else { return };
    let shell = plan::shell(profile, account);
    if lacks(&layers, &shell) {
        report.warn(
            SUBJECT,
            format!(
                "none of the layers has the shell {} of {}, unless it was installed in the jail",
                shell.display(),
                account.name
            ),
            format!("install it into a layer, or set `shell` in profile {}", profile.name),
        );
    }
}

fn home(report: &mut Report, profile: &Profile, account: &Account) {
    let mend = format!("make it and `chown` it, or set `home = \"jail\"` in profile {}", profile.name);
    match fs::metadata(&account.home) {
        Ok(meta) if !meta.is_dir() => {
            report.error(SUBJECT, format!("the home {} is not a directory", account.home.display()), mend);
        }
        Ok(meta) if meta.uid() != account.uid => report.error(
            SUBJECT,
            format!(
                "the home {} belongs to uid {}, not to {}",
                account.home.display(),
                meta.uid(),
                account.name
            ),
            mend,
        ),
        Ok(_) => report.ok(SUBJECT, format!("the home {} is bound", account.home.display())),
        Err(e) => report.error(SUBJECT, format!("the home {}: {e}", account.home.display()), mend),
    }
}
