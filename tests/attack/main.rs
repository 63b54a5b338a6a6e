//! Attacks on jails: `ojail-probe` inside, and what needs somebody on the host as well. And the probe itself is tried where
//! nothing holds it, or nobody would know that it can see.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

#[path = "../common/mod.rs"]
mod common;

mod control;
mod descriptors;
mod inside;
mod names;
mod overlay;
mod probe;
mod prove;
mod sides;
mod start;
mod watcher;
