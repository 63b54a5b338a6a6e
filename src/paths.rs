//! Where things are on the host. One place, so that the docs, the Makefile and the code agree.

/// The configuration, root-owned; refused if others can write it.
pub const CONFIG: &str = "/etc/ojail/ojail.toml";

/// What must survive a reboot: who owns which upper and which id range. Mode 0700.
pub const STATE: &str = "/var/lib/ojail";

/// Locks, doors of running jails, mounted images. Mode 0700, on a tmpfs.
pub const RUN: &str = "/run/ojail";

/// What tools said that made layers. Mode 0700.
pub const LOGS: &str = "/var/log/ojail";

/// Inside a jail: what `ojail-shell` reads to know that it is in one, and which shell to run.
pub const MARKER: &str = "/run/ojail/jail.json";

/// The installation prefix, fixed when the programs are built (`make PREFIX=…`).
pub const PREFIX: &str = match option_env!("OJAIL_PREFIX") {
    Some(prefix) => prefix,
    None => "/usr",
};

/// The first process of a jail: a static program, started by whoever raises the jail.
#[must_use]
pub fn init() -> String {
    format!("{PREFIX}/libexec/ojail/ojail-init")
}

/// The probe that attacks a jail from inside, for `ojail prove`.
#[must_use]
pub fn probe() -> String {
    format!("{PREFIX}/libexec/ojail/ojail-probe")
}

/// What keeps services from being started while a layer is derived.
#[must_use]
pub fn policy() -> String {
    format!("{PREFIX}/libexec/ojail/policy-rc.d")
}

/// The login shell. sshd looks at it on the host and executes it inside the jail, so it is at this path in both.
#[must_use]
pub fn shell() -> String {
    format!("{PREFIX}/bin/ojail-shell")
}

/// The administrator's command.
#[must_use]
pub fn command() -> String {
    format!("{PREFIX}/sbin/ojail")
}
