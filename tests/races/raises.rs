//! Flips while jails are raised: by a process of the user's on the host, which has their home in common with the jail, and by a
//! jail that is killed in the middle of it and leaves the upper as it happened to be.

use std::collections::BTreeMap;
use std::time::Duration;

use lab::{Host, User};

use crate::common::{SOON, config, init, logged, setup, until};
use crate::flips::{Flipper, Seen, comes_to_rest, perl, root_of, root_of_host, start};
use crate::rounds;

/// The flipper as a user's process on the host.
fn on_the_host<'h>(host: &'h Host, user: &str, places: &[String]) -> Flipper<'h> {
    let shell = format!("exec setpriv --reuid {user} --regid {user} --clear-groups {}", perl(places));
    Flipper::start(host.root(&shell), places)
}

/// A directory and a file of alice's that are bound inside, and mount points in her home, which root of the jail makes.
const BINDS: &str = r#"binds = [
    { source = "/home/alice/shared", target = "/mnt/shared", writable = true },
    { source = "/home/alice/note", target = "/mnt/note" },
    { source = "/home/alice/way/shared", target = "/mnt/way" },
    { source = "/srv/data", target = "/home/alice/data" },
    { source = "/srv/data", target = "/home/alice/deep/er/data" },
]"#;

const LOOK: &str = "stat -c %d:%i /; cat /proc/1/comm; cat /mnt/note; cat /mnt/shared/* /mnt/way/*; ls /home/alice/data /home/alice/deep/er/data";

#[test]
fn what_a_user_flips_on_the_host_during_raises_brings_nothing_else_inside_and_moves_nothing() {
    lab::require_root!();
    let host = start(
        setup(BINDS),
        "set -e; cd /home/alice; mkdir -p shared way/shared deep/er data spare/er
         echo mine | tee shared/own way/shared/own > note; chown -R alice: .; mkdir /srv/data; echo data > /srv/data/data",
    );
    let look = host.root(&format!("ojail enter alice -- sh -c '{LOOK}'")).text();
    assert!(
        look.ends_with(
            "ojail-init\nmine\nmine\nmine\n/home/alice/data:\ndata\n\n/home/alice/deep/er/data:\ndata"
        ),
        "{look}"
    );
    host.root("ojail stop alice").ok();
    let before = Seen::of(&host, &["/home/bob", "/srv/data"]);
    let of_host = root_of_host(&host);

    let places: Vec<String> = [
        "/home/alice/shared=/srv/secret",
        "/home/alice/note=/etc/shadow",
        "/home/alice/way=/srv/secret",
        "/home/alice/data=/srv/secret",
        "/home/alice/deep=/srv/secret",
        "/home/alice/spare/er=/home/bob",
        "/home/alice/.ssh=/root/.ssh",
    ]
    .map(String::from)
    .into();
    let flipper = on_the_host(&host, "alice", &places);
    let mut tally = BTreeMap::<&str, usize>::new();
    for number in 0..rounds() * 4 {
        let output = if number % 3 == 0 {
            host.ssh("alice", LOOK).within(Duration::from_secs(60)).run()
        } else {
            host.root(&format!("ojail enter alice -- sh -c '{LOOK}'")).within(Duration::from_secs(60)).run()
        };
        let inside = output.stdout.contains("ojail-init");
        if inside {
            // What is there may be gone a moment later, but is never anything else.
            for word in output.stdout.lines().filter(|line| !line.is_empty()).skip(1) {
                let known = [
                    "ojail-init",
                    "mine",
                    "data",
                    "/home/alice/data:",
                    "/home/alice/deep/er/data:",
                    "/home/alice/data",
                ];
                assert!(known.contains(&word), "{word:?}: {output}");
            }
            assert_ne!(output.stdout.lines().next(), Some(of_host.as_str()));
        } else {
            assert!(!output.status.success() && !output.stdout.contains(&of_host), "{output}");
        }
        *tally.entry(if inside { "raised" } else { "refused" }).or_default() += 1;
        host.root("ojail stop alice").ok();
    }
    let refused = logged(&host, "event=refused user=alice ");
    println!("outside: {} flips, {tally:?}, {refused} refusals", flipper.end());
    assert!(tally.contains_key("raised") && tally.contains_key("refused"), "{tally:?}");
    before.is_the_same(&Seen::of(&host, &["/home/bob", "/srv/data"]));
    // What root of the jail has made on the way is in her own home.
    let made = host.root("find / -xdev -newer /etc/ssh/everybody -uid +99999 -not -path '/home/alice/*' -not -path '/srv/overlay/*' -not -path '/run/*' -not -path '/proc/*'").text();
    assert_eq!(made, "");
}

/// `/srv/users/carol` is carol's, and so is what her home's name leads to.
#[test]
fn a_home_whose_way_is_flipped_during_raises_is_the_users_own_directory_or_refused() {
    lab::require_root!();
    let host = start(
        setup("").user(User::new("carol").groups(["jailed"])),
        "mkdir -p /srv/users && usermod -m -d /srv/users/carol carol && cd /srv/users/carol && mkdir home other
         echo home > home/which; echo other > other/which; chown -R carol: . && usermod -d /srv/users/carol/home carol",
    );
    let carol = host.root("id -u carol").text();
    host.root("ojail enter carol -- true && ojail stop carol").ok();
    let before = Seen::of(&host, &["/home"]);
    let places: Vec<String> = ["/srv/users/carol/home=/root".to_owned()].into();
    let more: Vec<String> = [
        "/srv/users/carol/home=/srv/secret".to_owned(),
        // Another one that is hers.
        "/srv/users/carol/home=+/srv/users/carol/other".to_owned(),
    ]
    .into();
    let flippers = [on_the_host(&host, "carol", &places), on_the_host(&host, "carol", &more)];
    let look = "stat -c %u:%n ~; cat /proc/1/comm; ls ~; cat ~/which";
    let mut tally = BTreeMap::<String, usize>::new();
    for _ in 0..rounds() * 4 {
        let output =
            host.root(&format!("ojail enter carol -- sh -c '{look}'")).within(Duration::from_secs(60)).run();
        if output.stdout.contains("ojail-init") {
            assert!(
                output.stdout.starts_with(&format!("{carol}:/srv/users/carol/home\nojail-init\n")),
                "{output}"
            );
            assert!(!output.stdout.contains("secret"), "{output}");
            let which = output.stdout.lines().next_back().unwrap_or_default().to_owned();
            assert!(["home", "other"].contains(&which.as_str()), "{output}");
            *tally.entry(which).or_default() += 1;
        } else {
            assert!(!output.status.success(), "{output}");
            *tally.entry("refused".to_owned()).or_default() += 1;
        }
        host.root("ojail stop carol").ok();
    }
    println!("home: {} flips, {tally:?}", flippers.map(Flipper::end).into_iter().sum::<usize>());
    assert!(tally.contains_key("home") && tally.contains_key("refused"), "{tally:?}");
    before.is_the_same(&Seen::of(&host, &["/home"]));
}

/// The kernel says that they are the user's: a process' directory, and what in it leads to the host's root.
#[test]
fn a_home_that_leads_to_a_process_of_the_users_on_the_host_gives_no_way_to_the_host() {
    lab::require_root!();
    for keys in ["", "root = true"] {
        let host = start(
            setup(keys).user(User::new("carol").groups(["jailed"])),
            "mkdir -p /srv/users/carol && chown carol: /srv/users/carol && usermod -d /srv/users/carol/home carol",
        );
        let process = host
            .root("exec setpriv --reuid carol --regid carol --clear-groups sh -c 'echo $$; exec sleep 600'")
            .spawn();
        let pid = process.wait_for("\n").trim().to_owned();
        host.root(&format!("ln -s /proc/{pid} /srv/users/carol/home")).ok();
        let become_root = if keys.is_empty() { "" } else { "sudo -n " };
        let look = format!(
            "cat /proc/1/comm; cd /srv/users/carol/home && cat comm
             for f in root/srv/secret/secret cwd/../etc/passwd environ mem fd/0 map_files/*; do {become_root}head -c 9 $f && echo reached; done
             {become_root}/usr/sbin/chroot root /bin/true && echo reached"
        );
        let output = host.root("exec ojail enter carol -- sh -c \"$1\"").arg(&look).run();
        // Names in there may be seen; what they lead to is not for anybody of another user namespace.
        assert!(["ojail-init\nsleep", ""].contains(&output.text().as_str()), "{output}");
        process.kill();
    }
}

/// What a raise reads, replaces or mounts on in an upper.
const OF_AN_UPPER: [&str; 7] = [
    "/etc/passwd=/srv/secret/secret",
    "/etc/group=../../../etc/group",
    "/etc/shadow=/etc/shadow",
    "/etc/hosts=/srv/secret/secret",
    "/etc/resolv.conf=/proc/1/root",
    "/etc/sudoers.d=/etc",
    "/home/alice=/home/bob",
];

#[test]
fn a_jail_that_is_killed_amid_flips_is_raised_on_whatever_they_left_or_refused() {
    lab::require_root!();
    let keys =
        "root = true\nhome = \"jail\"\nbinds = [{ source = \"/srv/data\", target = \"/opt/way/data\" }]";
    let host = start(setup(keys), "mkdir /srv/data && echo data > /srv/data/data");
    // What an overlay shows of a layer cannot be renamed; a copy can.
    const PREPARE: &str = "set -e; touch /etc/resolv.conf
        cp -a /etc/sudoers.d /etc/sudoers.new; rm -r /etc/sudoers.d; mv /etc/sudoers.new /etc/sudoers.d";
    let before = Seen::of(&host, &["/home"]);
    let mut tally = BTreeMap::<&str, usize>::new();
    let mut flips = 0;
    let places: Vec<String> = OF_AN_UPPER.map(String::from).into();
    for number in 0..rounds().div_ceil(2) {
        host.ssh("alice", "sudo -n sh").stdin(PREPARE).ok();
        let flipper = Flipper::start(host.ssh("alice", &format!("sudo -n {}", perl(&places))), &places);
        let root = root_of(&host, "alice");
        // Wherever they are: the kill is not at the same place of the loop each time.
        std::thread::sleep(Duration::from_millis((number as u64 * 7) % 40));
        let pid = init(&host, "alice");
        host.root(&format!("kill -9 {pid}")).ok();
        let output = host.ssh("alice", "cat /proc/1/comm").within(Duration::from_secs(60)).run();
        flips += flipper.end();
        let told = if output.text() == "ojail-init" {
            "raised"
        } else if output.code() == Some(254) {
            "refused"
        } else {
            // A jail, but without a shell or an account of the user's.
            assert!(!output.status.success() && output.stdout.is_empty(), "{output}");
            "inside, and broken"
        };
        *tally.entry(told).or_default() += 1;
        assert_ne!(root, Some(root_of_host(&host)));
        until("the flipper has ended", SOON, || !host.root("pgrep -x perl").run().status.success());
        comes_to_rest(&host, "alice");
    }
    println!("killed: {flips} flips, {tally:?}");
    for line in host.log().iter().filter(|line| line.contains("event=refused")) {
        assert!(line.contains("is unusable as a mount point") || line.contains("cannot be read"), "{line}");
    }
    host.root("rm -rf /srv/overlay/asidedirs/alice").ok();
    before.is_the_same(&Seen::of(&host, &["/home"]));
}

/// In an upper, whose `/etc`, `/home` and `/opt` are all its own.
const WAYS: [&str; 7] = [
    "/etc/passwd=/srv/secret/secret",
    "/etc/shadow=/etc/shadow",
    "/etc/group=/srv/secret/secret",
    "/etc=/srv/secret",
    "/home/alice=/home/bob",
    "/opt/way=/srv/secret",
    "/home=../../../../srv",
];

#[test]
fn what_is_left_of_an_old_jail_flips_in_the_upper_while_it_is_raised_anew_and_moves_nothing() {
    lab::require_root!();
    let keys = "root = true\nhome = \"jail\"\n";
    let host = start(setup(keys), "mkdir /srv/data && echo data > /srv/data/data");
    const PREPARE: &str =
        "set -e; for d in /etc /home /opt; do cp -a $d $d.new; rm -rf $d; mv $d.new $d; done
        mkdir -p /opt/way/data";
    host.ssh("alice", "sudo -n sh").stdin(PREPARE).ok();
    let places: Vec<String> = WAYS.map(String::from).into();
    // As what a login process executes in its own place: in the jail's mounts, without a claim on them, and not in its PID
    // namespace. No end of the jail is an end of this.
    let first = init(&host, "alice");
    let left = host.root(&format!("exec nsenter -t {first} -U -m {}", perl(&places)));
    let mut flipper = Flipper::start(left, &places);
    // In the jail that holds the flipper nothing is mounted there, or it could not flip it.
    let bind = "binds = [{ source = \"/srv/data\", target = \"/opt/way/data\" }]";
    host.write("/etc/ojail/ojail.toml", 0o644, &config(&format!("{keys}{bind}")));
    host.root(&format!("kill -9 {first}")).ok();
    let before = Seen::of(&host, &["/home", "/srv/data"]);
    let of_host = root_of_host(&host);

    let mut tally = BTreeMap::<&str, usize>::new();
    for _ in 0..rounds() * 4 {
        // Names, not the shell's work: there may be no shell.
        let look = "ojail enter alice -- /usr/bin/stat -c '%d:%i %n' / /proc/1 /opt/way/data/data /srv/data /srv/secret /opt/way/secret";
        let output = host.root(look).within(Duration::from_secs(60)).run();
        assert!(!output.stdout.contains(&of_host), "{output}");
        assert!(!output.stdout.contains("/srv/") && !output.stdout.contains("secret"), "{output}");
        let told = if output.stdout.contains("data") {
            "raised"
        } else if output.stdout.contains("/proc/1") {
            "raised, and the way is a link by now"
        } else {
            assert!(!output.status.success(), "{output}");
            assert!(
                output.stderr.contains("is unusable as a mount point")
                    || output.stderr.contains("cannot be read"),
                "{output}"
            );
            "refused"
        };
        *tally.entry(told).or_default() += 1;
        host.root("ojail stop alice").ok();
    }
    flipper.runs();
    println!("an old jail: {} flips, {tally:?}", flipper.end());
    assert!(tally.len() > 1, "{tally:?}");
    comes_to_rest(&host, "alice");
    host.root("rm -rf /srv/overlay/asidedirs/alice").ok();
    before.is_the_same(&Seen::of(&host, &["/home", "/srv/data"]));
}
