//! The ways into a jail, from outside: every kind of SSH session, other PAM services, other clients, and what the
//! user finds inside.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

#[path = "../common/mod.rs"]
mod common;

mod account;
mod confined;
mod daily;
mod dropbear;
mod environment;
mod forwarding;
mod neighbours;
mod place;
mod root;
mod services;
mod shell;
mod ssh;
mod terminal;
mod transfer;
