//! What layers cost and save: on hosts of their own, which may change theirs.

use std::time::Duration;

use lab::mirror::Mirror;
use lab::{Host, User};
use serde_json::Value;

use super::{PAIRS, Samples, took};

/// Whole Debians are built and packed.
const LONG: Duration = Duration::from_secs(600);

const DERIVATIONS: usize = 9;
const COUNTS: usize = 15;

/// For the jails whose changes are counted, each with some files.
const JAILS: usize = 1000;
const FILES: usize = 100;

/// The jails of the article: two with nginx on Debian, and one with Debian alone.
const ARTICLE: &str = r#"[profiles.debian]
layers = ["debian"]
[profiles.nginx]
layers = ["nginx", "debian"]
[[rules]]
user = ["nginx1", "nginx2"]
profile = "nginx"
[[rules]]
user = "debian1"
profile = "debian"
"#;

const INSTALL: &str = "apt-get update && apt-get install -y --no-install-recommends nginx-light";

/// What the article's jails take: as three copies, with shared layers, and with these packed either way.
pub(crate) fn sizes() {
    let users = ["nginx1", "nginx2", "debian1"];
    let host = users
        .into_iter()
        .fold(lab::host(), |host, user| host.user(User::new(user)))
        .builder()
        .config(ARTICLE)
        .pam("sshd")
        .start();
    let _mirror = build(&host);
    host.root(&format!("ojail layer derive nginx --from debian -- sh -c '{INSTALL}'")).within(LONG).ok();
    for user in users {
        host.ssh(user, "true").ok();
        host.root(&format!("ojail stop {user}")).ok();
    }
    println!();
    row(&host, "one_by_one", "three jails, one by one");
    row(&host, "shared", "  with shared layers");
    for format in ["squashfs", "erofs"] {
        for layer in ["debian", "nginx"] {
            host.root(&format!("ojail layer pack {layer} --format {format}")).within(LONG).ok();
        }
        row(&host, "packed", &format!("  … packed by {format}"));
    }
}

/// One of the sums of `ojail usage`.
fn row(host: &Host, sum: &str, name: &str) {
    let told = json(host);
    let bytes = |sum: &str| told[sum].as_f64().expect("every layer is there in this form");
    println!("{name:<44} {:>8.1} MB  {:>8.1} %", bytes(sum) / 1e6, 100.0 * bytes(sum) / bytes("one_by_one"));
}

fn json(host: &Host) -> Value {
    serde_json::from_str(&host.root("ojail usage --json").text()).expect("--json prints JSON")
}

/// The layer `debian`, of the lab's mirror, which the host needs as long as it wants packages.
fn build(host: &Host) -> Mirror {
    let mirror = host.mirror();
    host.root("ojail layer build debian --mirror \"$1\"").arg(mirror.line()).within(LONG).ok();
    mirror
}

/// Logins of one user, by turns to a jail on directories and to one on images, once to raise it and once more.
pub(crate) fn packed() {
    let ways = ["directories", "erofs", "squashfs"];
    let config = |way: &str| {
        let profile = |name: &str| format!("[profiles.{name}]\nlayers = [\"{name}\"]\n");
        // Others' jails stand on each all the time.
        let rule =
            |user: &str, profile: &str| format!("[[rules]]\nuser = \"{user}\"\nprofile = \"{profile}\"\n");
        let others: String = ways.iter().map(|way| profile(way) + &rule(&format!("on-{way}"), way)).collect();
        others + &rule("alice", way)
    };
    let host = ways
        .into_iter()
        .fold(lab::host().user(User::new("alice")), |host, way| host.user(User::new(&format!("on-{way}"))))
        .own_layer("debian")
        .config(&config("directories"))
        .pam("sshd")
        .start();
    // Of the same tree, each packed as ojail packs.
    let script = "set -e; cd /srv/overlay/lowerdirs; mv debian directories; for way in erofs squashfs; do \
                  cp -a directories $way; ojail layer adopt $way; ojail layer pack $way --format $way; done; \
                  ojail layer adopt directories";
    host.root(script).within(LONG).ok();
    for way in ways {
        host.ssh(&format!("on-{way}"), "true").ok();
    }
    let (mut raised, mut warm): ([Vec<f64>; 3], [Vec<f64>; 3]) = Default::default();
    for round in 0..=PAIRS {
        for turn in 0..ways.len() {
            let number = (round + turn) % ways.len();
            host.write("/etc/ojail/ojail.toml", 0o644, &config(ways[number]));
            let times = [took(host.ssh("alice", "true")), took(host.ssh("alice", "true"))];
            // The first round fills caches.
            if round > 0 {
                raised[number].push(times[0]);
                warm[number].push(times[1]);
            }
        }
    }
    let raises = host.log().iter().filter(|line| line.contains("event=jail-raised user=alice")).count();
    assert_eq!(raises, ways.len() * (PAIRS + 1), "every other login raises a jail");

    println!();
    for (what, took) in [("warm", &warm), ("raising the jail", &raised)] {
        Samples::new(took[0].clone()).row(&format!("SSH login, layer a directory ({what})"), "ms");
        for (number, way) in ways.iter().enumerate().skip(1) {
            Samples::new(took[number].clone()).row(&format!("  an image of {way}"), "ms");
            ratios(&took[number], &took[0]);
        }
    }
}

fn ratios(these: &[f64], those: &[f64]) {
    let ratios = these.iter().zip(those).map(|(this, that)| this / that).collect();
    Samples::new(ratios).row("  ratio of pairs", "");
}

/// `ojail usage` against du(1), of the same uppers.
pub(crate) fn usage() {
    let host = lab::host()
        .own_layer("debian")
        .config("[profiles.many]\nlayers = [\"debian\"]\n[[rules]]\ngroup = \"many\"\nprofile = \"many\"\n")
        .start();
    host.root("ojail layer adopt debian && ojail layer pack debian").within(LONG).ok();
    let users: String =
        (0..JAILS).map(|i| format!("many{i}:x:{}:2000::/home/many{i}:/bin/bash\n", 3000 + i)).collect();
    host.root("printf 'many:x:2000:\\n' >> /etc/group; cat >> /etc/passwd").stdin(users).ok();
    let script = format!(
        "set -e; install -d -m 700 /srv/overlay/upperdirs; cd /srv/overlay/upperdirs; mkdir many0; cd many0; \
         for d in $(seq 10); do mkdir -p etc/$d; for f in $(seq {}); do echo $d $f > etc/$d/$f; done; done; cd ..; \
         for i in $(seq {}); do cp -a many0 many$i; done",
        FILES / 10,
        JAILS - 1
    );
    host.root(&script).within(LONG).ok();
    let ways = ["du -sx /srv/overlay/upperdirs", "ojail usage --json"];
    let mut took: [Vec<f64>; 2] = Default::default();
    for round in 0..=COUNTS {
        for turn in 0..2 {
            let number = (round + turn) % 2;
            let time = super::took(host.root(ways[number]).within(LONG));
            if round > 0 {
                took[number].push(time);
            }
        }
    }
    // Less the directory that the uppers are in.
    let du = host.root("cd /srv/overlay/upperdirs; du -csx --block-size=1 * | tail -1 | cut -f1").text();
    let users = json(&host)["users"].as_array().cloned().unwrap_or_default();
    let ojail: u64 = users.iter().filter_map(|user| user["upper"].as_u64()).sum();
    assert_eq!((users.len(), ojail.to_string()), (JAILS, du), "both count the same");

    println!();
    let [du, ojail] = &took;
    Samples::new(du.clone()).row(&format!("du -sx, {JAILS} uppers of {FILES} files"), "ms");
    Samples::new(ojail.clone()).row("ojail usage, of the same", "ms");
    ratios(ojail, du);
}

/// Makes the layer nginx, against apt-get in a plain copy of the Debian.
pub(crate) fn derive() {
    let host = lab::host().builder().config(ARTICLE).start();
    let _mirror = build(&host);
    let fresh = "set -e; rm -rf /srv/overlay/plain; cp -a /srv/overlay/lowerdirs/debian/ /srv/overlay/plain; \
                 install -m 755 /usr/libexec/ojail/policy-rc.d /srv/overlay/plain/usr/sbin/; sync -f /srv/overlay";
    let plain = format!(
        "mount -t proc proc /srv/overlay/plain/proc && DEBIAN_FRONTEND=noninteractive chroot /srv/overlay/plain \
         sh -c '{INSTALL}' > /tmp/plain.log 2>&1 && umount /srv/overlay/plain/proc"
    );
    let derive = format!("ojail layer derive nginx --from debian -- sh -c '{INSTALL}'");
    let mut took: [Vec<f64>; 2] = Default::default();
    for round in 0..=DERIVATIONS {
        for turn in 0..2 {
            let number = (round + turn) % 2;
            let before = [fresh, "ojail layer remove nginx 2>/dev/null; sync -f /srv/overlay"][number];
            host.root(before).within(LONG).ok();
            let time = super::took(host.root([&plain, &derive][number]).within(LONG));
            if round > 0 {
                took[number].push(time);
            }
        }
    }
    println!();
    let [plain, derived] = &took;
    Samples::new(plain.clone()).row("nginx, by apt-get in a plain chroot", "ms");
    Samples::new(derived.clone()).row("  by ojail layer derive", "ms");
    ratios(derived, plain);
}
