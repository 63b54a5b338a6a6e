//! The jail as a boundary: what a user finds inside of the kernel's windows, and how much they may take.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

#[path = "../common/mod.rs"]
mod common;

mod limits;
mod neighbours;
mod programs;
mod windows;
