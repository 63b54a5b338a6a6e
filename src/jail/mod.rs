//! The story of a login, in the order in which it happens.
//!
//! * [`login`]: decide, raise if needed, join, confine. Read this first.
//! * [`plan`]: everything about one jail, decided before anything is done.
//! * [`start`]: the caller's part of a raise: runs `ojail-init`, and hears how it came out.
//! * [`raise`]: `ojail-init` makes the jail, of [`mounts`] on a [`tree`]; [`furnish`] puts the account lines and the like into it,
//!   [`fresh`] what every jail has of its own: `/proc`, `/dev`, `/tmp`. [`network`] connects it, if it has a private one.
//! * [`life`]: what the jail's PID 1 does afterwards; [`door`] is how others talk to it.
//! * [`join`] and [`confine`]: what the login process does to itself.
//! * [`end`]: stopping a jail from outside. [`probe`]: whether one can be raised here at all.

pub mod confine;
pub mod door;
pub mod end;
mod fresh;
pub mod furnish;
pub mod join;
pub mod life;
pub mod login;
mod mounts;
pub mod network;
pub mod plan;
pub mod probe;
pub mod raise;
pub mod start;
#[cfg(feature = "cli")]
pub mod temporary;
mod tree;
pub mod view;
