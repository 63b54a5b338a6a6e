//! The ways into a jail, from outside: every kind of SSH session, other PAM services, other clients, and what the
//! user finds inside.

#[path = "../common/mod.rs"]
mod common;

mod account;
mod confined;
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
