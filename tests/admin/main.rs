//! The administrator's acts on a jail that nobody has to log in for: to look into it, and to run something in it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]
#![allow(clippy::print_stderr, reason = "how much was tried is told, not asserted")]

#[path = "../common/mod.rs"]
mod common;

mod mount;
mod run;
