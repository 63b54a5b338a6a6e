//! The life of a jail, from outside: sessions, their ends, what stays and what goes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]
#![allow(clippy::print_stderr, reason = "what was covered is told in figures, with --nocapture")]

#[path = "../common/mod.rs"]
mod common;

mod diff;
mod disks;
mod ends;
mod enter;
mod farewell;
mod files;
mod first;
mod ids;
mod log;
mod moments;
mod planted;
mod reset;
mod see;
mod sessions;
mod spare;
mod top;
