//! Layers: how they are made, packed, replaced and removed, and what jails that stand on them see of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]
#![allow(clippy::print_stderr, reason = "how much was tried is told, not asserted")]

#[path = "../common/mod.rs"]
mod common;

mod generations;
mod pack;
