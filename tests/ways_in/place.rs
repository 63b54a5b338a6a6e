//! Where something is: on the host, or in which jail. The device and inode of `/` tell.

use lab::Host;

/// A shell command that says where it runs.
pub(crate) const WHERE: &str = "stat -c %d:%i /";

/// Where the user's commands run; never the host. The jail must be warm, or the next session is in another one.
#[track_caller]
pub(crate) fn inside(host: &Host, user: &str) -> String {
    let inside = host.ssh(user, WHERE).text();
    assert_ne!(inside, outside(host), "{user} is on the host");
    inside
}

/// The host's own root.
#[track_caller]
pub(crate) fn outside(host: &Host) -> String {
    host.root(WHERE).text()
}

/// Where the user's processes are, all of them, as the host sees it: one place each, no place twice.
#[track_caller]
pub(crate) fn of_processes(host: &Host, user: &str) -> Vec<String> {
    let places = "for pid in $(pgrep -u $1); do stat -Lc %d:%i /proc/$pid/root; done | sort -u";
    host.root(places).arg(user).text().lines().map(String::from).collect()
}
