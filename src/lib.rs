//! The library of ojail: everything that the PAM module, the two static binaries and the `ojail` command share.
//!
//! Rooms, from pure to kernel; each knows only those above it:
//!
//! * [`config`], [`account`], [`policy`], [`seccomp`]: what should be. Values in, values out.
//! * [`ids`], [`store`], [`bases`], `aside`, `archive`, `manifest`, `packages`, [`walk`], [`copy`], [`layers`], [`lower`], `changes`, `conflicts`, `oci`, [`quota`], [`cgroup`], [`freezer`], [`runtime`]: what is on disk, in
//!   control groups and in `/run`.
//! * [`jail`]: the story of a login: plan, raise, join, confine; and the life of a jail.
//! * `admin`: one file per verb of the `ojail` command (feature `cli`).
//! * [`sys`]: the only `unsafe`, but for `pam`: libpam for `ojail prove`, which opens sessions as login programs do.
//!
//! The rest of the library knows nothing of PAM.

#![deny(unsafe_code)]

pub mod account;
#[cfg(feature = "cli")]
pub mod admin;
#[cfg(feature = "cli")]
pub mod archive;
#[cfg(feature = "cli")]
pub mod aside;
pub mod bases;
pub mod cgroup;
#[cfg(feature = "cli")]
pub mod changes;
pub mod config;
#[cfg(feature = "cli")]
pub mod conflicts;
pub mod copy;
pub mod error;
pub mod freezer;
pub mod ids;
pub mod jail;
pub mod layers;
pub mod log;
pub mod lower;
#[cfg(feature = "cli")]
pub mod manifest;
#[cfg(feature = "cli")]
pub mod oci;
#[cfg(feature = "cli")]
pub mod packages;
#[cfg(feature = "cli")]
#[allow(unsafe_code)]
mod pam;
pub mod paths;
pub mod policy;
pub mod quota;
pub mod runtime;
pub mod seccomp;
pub mod spare;
pub mod store;
#[allow(unsafe_code)]
pub mod sys;
pub mod walk;

pub use error::{Error, Result};
