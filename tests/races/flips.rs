//! The flipper, and what must be the same before and after.

use std::time::Duration;

use lab::{Host, Run, Running, Setup};

use crate::common::{digest, until};

const FLIP: &str = include_str!("flip.pl");

/// Longer than any run.
const LONG: Duration = Duration::from_secs(4 * 3600);

/// A flipper that runs.
pub(crate) struct Flipper<'h>(Running<'h>);

impl<'h> Flipper<'h> {
    /// `shell` gives its words to perl somehow; `places` are PLACE=TARGET. All of them can be flipped, or the test tests nothing.
    #[track_caller]
    pub(crate) fn start(shell: Run<'h>, places: &[String]) -> Self {
        let running = shell.stdin(FLIP).within(LONG).spawn();
        running.wait_for("flipping ");
        let said = running.wait_for("\n");
        assert!(said.contains(&format!("flipping {}\n", places.len())), "{said}");
        Self(running)
    }

    /// It is still at it.
    #[track_caller]
    pub(crate) fn runs(&mut self) {
        assert!(self.0.is_running(), "nobody flips any more");
    }

    /// Kills the client, or the flipper itself if it is not in a jail. Returns how many flips it told of.
    pub(crate) fn end(self) -> usize {
        let output = self.0.kill();
        output.stdout.lines().next_back().and_then(|line| line.parse().ok()).unwrap_or(0)
    }
}

/// The words that run the flipper, for a shell.
pub(crate) fn perl(places: &[String]) -> String {
    let mut words = "perl -".to_owned();
    for place in places {
        words.push_str(&format!(" '{place}'"));
    }
    words
}

/// The host with everything that is flipped against, and what `prepare` makes there; every login has a key that no flip can
/// take away.
pub(crate) fn start(setup: Setup, prepare: &str) -> Host {
    let host = setup
        .sshd_config(
            "AuthorizedKeysFile .ssh/authorized_keys /etc/ssh/everybody\nMaxStartups 200\nLoginGraceTime 20",
        )
        .pam("su")
        .start();
    host.root("cp /root/.ssh/id_ed25519.pub /etc/ssh/everybody && chmod 644 /etc/ssh/everybody").ok();
    host.root(
        "mkdir -p /srv/secret/shared /srv/secret/er/data && cd /srv/secret
         echo the-hosts-secret | tee secret shared/secret > er/data/secret",
    )
    .ok();
    host.root(prepare).ok();
    // What the first login and the first reset make is there from now on.
    host.ssh("alice", "true").ok();
    host.root("ojail reset --force alice").ok();
    host
}

/// All of the host that a mistake could have changed. `homes`: of those who flip nothing in them.
pub(crate) struct Seen(Vec<(String, String)>);

impl Seen {
    pub(crate) fn of(host: &Host, homes: &[&str]) -> Self {
        let mut seen = vec![("the mount table".to_owned(), host.mountinfo())];
        for dir in ["/etc", "/root", "/srv/secret", "/var/lib/ojail/users"].iter().chain(homes) {
            seen.push(((*dir).to_owned(), digest(host, dir)));
        }
        for (what, command) in [
            (
                "names",
                r"find / /dev /home /mnt /opt /srv /tmp /usr /usr/bin /var /var/tmp /var/lib /srv/overlay -maxdepth 1 -printf '%p %y %m %U:%G %l\n' | sort",
            ),
            (
                "layers",
                r"find /srv/overlay/lowerdirs -printf '%p %y %m %U:%G %s %T@ %l\n' | sort | sha256sum",
            ),
            (
                "the host's /run",
                "find /run -xdev -path /run/ojail -prune -o -path /run/sshd.pid -prune -o -printf '%p %y %m %U:%G\n' | sort",
            ),
        ] {
            seen.push((what.to_owned(), host.root(command).text()));
        }
        Self(seen)
    }

    /// What is not as it was, in words.
    pub(crate) fn differences(&self, after: &Self) -> String {
        let pairs = self.0.iter().zip(&after.0).filter(|(before, after)| before != after);
        pairs
            .map(|((what, before), (_, after))| format!("{what} changed:\n{}\n", difference(before, after)))
            .collect()
    }

    #[track_caller]
    pub(crate) fn is_the_same(&self, after: &Self) {
        let differences = self.differences(after);
        assert!(differences.is_empty(), "{differences}");
    }
}

fn difference(before: &str, after: &str) -> String {
    let missing = before
        .lines()
        .filter(|line| !after.lines().any(|other| other == *line))
        .map(|line| format!("-{line}"));
    let added = after
        .lines()
        .filter(|line| !before.lines().any(|other| other == *line))
        .map(|line| format!("+{line}"));
    missing.chain(added).collect::<Vec<_>>().join("\n")
}

/// Device and inode of `/` in the jail, which no other place has. `None`: the login was refused, or did not work.
#[track_caller]
pub(crate) fn root_of(host: &Host, user: &str) -> Option<String> {
    let output = host.root("exec ojail enter \"$1\" -- /usr/bin/stat -c %d:%i /").arg(user).run();
    let words = output.text();
    if output.status.success() { Some(words).filter(|words| !words.is_empty()) } else { None }
}

/// The same of the host.
pub(crate) fn root_of_host(host: &Host) -> String {
    host.root("stat -c %d:%i /").text()
}

/// After all flips: the next login works, or is refused with a sentence. A reset always makes it work.
#[track_caller]
pub(crate) fn comes_to_rest(host: &Host, user: &str) {
    until("the flipper has ended", Duration::from_secs(20), || {
        host.root("ojail stop \"$1\"; ! pgrep -x perl").arg(user).run().status.success()
    });
    let output = host.ssh(user, "cat /proc/1/comm").run();
    let refused = output.code() == Some(254)
        && output
            .stdout
            .trim_end()
            .ends_with("This host could not open your session. Please tell its administrator.");
    // A jail that has no shell or no account file is a jail, of the user's own making.
    let inside = output.text() == "ojail-init" || output.stdout.is_empty();
    assert!(refused || inside, "{output}");
    host.root("ojail-shell --reset --force \"$1\"").arg(user).ok();
    assert_eq!(host.ssh(user, "cat /proc/1/comm; id -un").text(), format!("ojail-init\n{user}"));
}
