//! Where the uppers are, if a careless administrator has put them below a directory of a user's.

use std::time::Duration;

use crate::common::{config, setup};
use crate::flips::{Flipper, perl, start};

/// The way to the uppers can be bent between the check and the mount, and root of a jail then makes setuid programs of the host's
/// root in a directory that the user reaches on the host.
#[test]
fn uppers_below_a_directory_of_a_users_are_refused() {
    lab::require_root!();
    let host = start(
        setup("root = true"),
        "cd /srv/overlay && mkdir -p team/jails team/mine/upper/alice team/mine/work/alice && chown alice: team && chown -R alice: team/mine",
    );
    let storage = "[storage]\nupperdirs = \"/srv/overlay/team/jails/upper\"\nworkdirs = \"/srv/overlay/team/jails/work\"\n\n";
    host.write("/etc/ojail/ojail.toml", 0o644, &format!("{storage}{}", config("root = true")));
    let check = host.root("ojail check").run();
    let places = ["/srv/overlay/team/jails=+/srv/overlay/team/mine".to_owned()];
    let shell = format!("exec setpriv --reuid alice --regid alice --clear-groups {}", perl(&places));
    let flipper = Flipper::start(host.root(&shell), &places);
    for _ in 0..40 {
        let make = "ojail enter alice -- sh -c 'sudo -n install -m 4755 /usr/bin/id /var/tmp/rootid'";
        host.root(make).within(Duration::from_secs(60)).run();
        host.root("ojail stop alice").run();
        let gained = host.root("cd /srv/overlay/team; for f in */upper/alice/var/tmp/rootid; do setpriv --reuid alice --regid alice --clear-groups $f -u && ls -l $f; done").run();
        assert!(
            !gained.stdout.lines().any(|uid| uid == "0"),
            "alice is root of the host: {gained}\n\nojail check said: {check}"
        );
    }
    flipper.end();
    host.root("ojail enter alice -- true").fails();
    assert!(check.stdout.contains("/srv/overlay/team") && check.code() == Some(2), "{check}");
}
