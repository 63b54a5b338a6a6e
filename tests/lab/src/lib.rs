//! Throw-away Debian hosts for ojail's tests, demo and benchmark.
//!
//! A host is a set of namespaces with a stock Debian on a file system of its own: OpenSSH, PAM, sudo and
//! cron as everybody has them, ojail installed by the project's own `make install`, users, layers and a
//! network that is nothing but loopback, unless one is asked for. It starts in a fraction of a second, many run side by side, and
//! dropping it leaves nothing behind. Nothing of the machine that runs the tests is changed or looked at.
//!
//! ```no_run
//! use lab::User;
//!
//! let host = lab::host()
//!     .user(User::new("alice").uid(1001).groups(["jailed"]))
//!     .layer("debian")
//!     .config("[profiles.debian]\nlayers = [\"debian\"]\n")
//!     .pam("sshd")
//!     .start();
//!
//! assert_eq!(host.ssh("alice", "id -u").text(), "1001");
//! host.ssh("alice", "cat /etc/shadow").fails();
//! host.root("ojail status alice").ok();
//! ```
//!
//! | room | what is there |
//! |---|---|
//! | [`image`] | the Debian trees and layers, built once and cached |
//! | [`Setup`], [`Host`] | what a host should be, and the host that runs |
//! | [`Machine`] | the same with a kernel and systemd of its own, emulated, for what namespaces cannot show |
//! | [`mirror`] | a few Debian packages, for hosts that build layers |
//! | [`world`] | what a host with a network is plugged into: a gateway, and far addresses with servers |
//! | [`Run`], [`Running`], [`Output`] | a command in a host, while it runs, and what came of it |
//! | [`must`] | skip a test where it cannot run, or insist |
//!
//! A host needs root. Environment: `OJAIL_LAB_SUITE`, `OJAIL_LAB_CACHE`, `OJAIL_LAB_RUN`, `OJAIL_MUST_WORK`.

mod files;
mod host;
pub mod image;
mod machine;
pub mod mirror;
pub mod must;
mod namespaces;
mod root;
mod run;
mod rundir;
mod setup;
mod syslog;
pub mod world;

pub use host::Host;
pub use machine::{FileSystem, Hardware, Machine, Shared};
pub use run::{Output, Run, Running};
pub use setup::{PASSWORD, Setup, User, host};
