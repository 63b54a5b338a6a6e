//! What a user can change has been changed when root looks again: files and directories that are exchanged for symbolic
//! links, all the time, while sessions join and jails are raised (CVE-2025-6020, CVE-2025-31133, CVE-2025-52565).
//!
//! `OJAIL_RACES` is the number of rounds, [`ROUNDS`] if not said. In a round each test makes [`JOINS`] joins and one of another
//! kind, or four raises (half of one, where the jail is killed and reset). 160 rounds on two busy cores took 9 minutes: 8.3 million
//! flips, 14 400 quick joins, 480 of the other kinds, and 2 080 raises, of which 818 were refused. 10⁵ joins would be 1 100 rounds,
//! about an hour; that many have not been run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]
#![allow(clippy::print_stdout, reason = "a long run is told in figures, with --nocapture")]

#[path = "../common/mod.rs"]
mod common;

mod control;
mod flips;
mod joins;
mod raises;
mod storage;

/// Few, for everyday.
const ROUNDS: usize = 12;

/// Quick joins a round, besides one of another kind.
const JOINS: usize = 30;

fn rounds() -> usize {
    match std::env::var("OJAIL_RACES") {
        Ok(number) => number.parse().expect("OJAIL_RACES is a number of rounds"),
        Err(_) => ROUNDS,
    }
}
