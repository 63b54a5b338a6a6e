//! What `pam_ojail` does at a login, timed: opens a session for the user named, and prints the microseconds. With a second
//! argument, `confine`, it prints those of the last step alone, in a jail that is running. `timing getppid` is for inside: a
//! program that is nothing but system calls.
//!
//! Run by the benchmark inside a host, as its root. A login cannot be undone, so it is one process a sample.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use ojail::account::{self, Username};
use ojail::config;
use ojail::error::{Error, Result};
use ojail::jail::door::{Answer, Door, Guest, Request};
use ojail::jail::join::{join, ready};
use ojail::jail::login::{self, Login, Visitor, judge};
use ojail::jail::{confine, plan};
use ojail::log::Log;
use ojail::paths;
use ojail::policy::Decision;
use ojail::runtime::Corner;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let user = words.next().unwrap_or_default();
    if user == "getppid" {
        for _ in 0..10_000_000 {
            std::hint::black_box(std::os::unix::process::parent_id());
        }
        return ExitCode::SUCCESS;
    }
    let measure = if words.next().as_deref() == Some("confine") { confining } else { whole };
    // A login process has asked the account data base long before PAM opens the session, and so has its libraries
    // loaded; a fresh process would pay for them here.
    let _ = account::lookup(&user);
    match measure(&user) {
        Ok(took) => {
            println!("{}", took.as_micros());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("timing: {error}");
            ExitCode::FAILURE
        }
    }
}

fn whole(user: &str) -> Result<Duration> {
    let since = Instant::now();
    let visitor = Visitor { user: user.into(), service: "timing".into(), from: String::new() };
    match login::open(&visitor, &mut Log::open("pam_ojail"))? {
        Login::Jailed { .. } => Ok(since.elapsed()),
        Login::Exempt(why) => Err(Error::NotJailed { user: user.into(), why: why.to_string() }),
    }
}

fn confining(user: &str) -> Result<Duration> {
    let config = config::load(paths::CONFIG.as_ref())?;
    let account = account::lookup(user)?;
    let Decision::Jailed { profile, .. } = judge(&config, &account)? else {
        return Err(Error::NotJailed { user: user.into(), why: "the configuration says so".into() });
    };
    let corner = Corner::of(&Username::parse(user)?);
    let not_running = || Error::NotRunning { user: user.into() };
    let door = Door::knock(&corner)?.ok_or_else(not_running)?;
    let guest = Guest {
        service: "timing".into(),
        from: String::new(),
        pid: std::process::id(),
        since: 0,
        uid: account.uid,
        terms: plan::terms(&config, profile, &account)?,
    };
    let Some(Answer::Welcome(house)) = door.ask(&Request::Join(guest))? else { return Err(not_running()) };
    let _session = join(&corner, door, &house, ready(&corner)?)?;
    let since = Instant::now();
    confine::login(&house)?;
    Ok(since.elapsed())
}
