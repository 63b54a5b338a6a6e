//! `ojail-shell`: the login shell of jailed users, and the administrator's `ojail-shell --reset USER`.
//!
//! As a login shell it is a safety belt: sshd executes it inside the jail, where it hands over to the user's real shell
//! with the same arguments. On the host, where it would only run if PAM had not jailed the user, it refuses.
//!
//! It runs as the user, who chooses every argument: nothing is parsed but for root on the host.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::unistd::getuid;
use ojail::jail::furnish::Marker;
use ojail::paths;

fn main() -> ExitCode {
    let mut args = env::args_os();
    let name = args.next().unwrap_or_default();
    let args: Vec<OsString> = args.collect();
    let why = match marker() {
        Some(marker) => become_shell(&marker, &name, &args),
        None if getuid().is_root() && args.first().is_some_and(|arg| arg == "--reset") => reset(&args),
        None => "this account works inside a jail only, and this is not one. Please tell the host's administrator.".into(),
    };
    // A closed standard error is no reason to panic: the exit status says it too.
    let _ = writeln!(std::io::stderr(), "ojail-shell: {why}");
    ExitCode::FAILURE
}

/// What the jail says of itself; `None` outside of one.
fn marker() -> Option<Marker> {
    // On a host every id maps to itself. A file alone could be left over, or planted.
    let map = fs::read_to_string("/proc/self/uid_map").ok()?;
    let mut fields = map.split_whitespace();
    if (fields.next(), fields.next(), fields.next()) == (Some("0"), Some("0"), Some("4294967295")) {
        return None;
    }
    serde_json::from_str(&fs::read_to_string(paths::MARKER).ok()?).ok()
}

/// Becomes the user's real shell. Returns only with the reason why it could not.
fn become_shell(marker: &Marker, name: &OsStr, args: &[OsString]) -> String {
    let shell = marker.shell.clone().or_else(passwd_shell).unwrap_or_else(|| PathBuf::from("/bin/sh"));
    if shell.file_name() == Some(OsStr::new("ojail-shell")) {
        return format!("the shell of this account is {} itself; set another one", shell.display());
    }
    // A leading "-" makes a login shell, as sshd and login say it. Everything else goes through as it came.
    let mut argv0 = OsString::new();
    if name.as_bytes().first() == Some(&b'-') {
        argv0.push("-");
    }
    argv0.push(shell.file_name().unwrap_or(shell.as_os_str()));
    let mut command = Command::new(&shell);
    command.arg0(argv0).args(args);
    // `$SHELL` was set to this program, the account's shell on the host. What is started from it should be the real
    // one, like the shells that tmux opens.
    if env::var_os("SHELL").is_none_or(|old| Path::new(&old).ends_with("ojail-shell")) {
        command.env("SHELL", &shell);
    }
    let error = command.exec();
    format!("{}, the shell of this account, cannot be run in this jail: {error}", shell.display())
}

/// The shell in the jail's own `passwd`, which the user can change with `chsh`.
fn passwd_shell() -> Option<PathBuf> {
    let text = fs::read("/etc/passwd").ok()?;
    let uid = getuid().to_string();
    let line =
        text.split(|b| *b == b'\n').find(|line| line.split(|b| *b == b':').nth(2) == Some(uid.as_bytes()))?;
    let shell = line.split(|b| *b == b':').nth(6)?;
    (!shell.is_empty()).then(|| PathBuf::from(OsString::from_vec(shell.to_vec())))
}

/// `ojail-shell --reset USER …` is `ojail reset USER …`.
fn reset(args: &[OsString]) -> String {
    let command = paths::command();
    let error = Command::new(&command).arg("reset").args(&args[1..]).exec();
    format!("cannot run {command}: {error}")
}
