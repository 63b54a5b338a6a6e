//! What `pam_ojail` does at a login, timed: opens a session for the user named, and prints the microseconds.
//!
//! Run by the benchmark inside a host, as its root. A login cannot be undone, so it is one process a sample.

use std::process::ExitCode;
use std::time::Instant;

use ojail::jail::login::{self, Login, Visitor};
use ojail::log::Log;

fn main() -> ExitCode {
    let user = std::env::args().nth(1).unwrap_or_default();
    // A login process has asked the account data base long before PAM opens the session, and so has its libraries
    // loaded; a fresh process would pay for them here.
    let _ = ojail::account::lookup(&user);
    let since = Instant::now();
    let visitor = Visitor { user, service: "timing".into(), from: String::new() };
    let opened = login::open(&visitor, &mut Log::open("pam_ojail"));
    let took = since.elapsed();
    match opened {
        Ok(Login::Jailed { .. }) => {
            println!("{}", took.as_micros());
            ExitCode::SUCCESS
        }
        other => {
            eprintln!("timing: {other:?}");
            ExitCode::FAILURE
        }
    }
}
