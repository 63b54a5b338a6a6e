//! The life of a jail, from outside: sessions, their ends, what stays and what goes.

#[path = "../common/mod.rs"]
mod common;

mod ends;
mod enter;
mod files;
mod first;
mod ids;
mod log;
mod planted;
mod reset;
mod sessions;
