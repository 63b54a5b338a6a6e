//! `ojail conflicts` and `ojail rebase`: what an upgrade of a layer means for who has changed what it has.

use std::time::Duration;

use lab::{Host, User};
use serde_json::Value;

use crate::common::points::Act;
use crate::common::{digest, until};
use crate::{complaint, remains};

/// What installs takes seconds, and much longer on a busy machine.
const LONG: Duration = Duration::from_secs(200);

const CONFIG: &str = r#"
[profiles.site]
layers = ["site", "debian"]
root = true
network = "none"

[[rules]]
group = "jailed"
profile = "site"
"#;

/// Makes an archive of packages in `/opt/repo`, and installs those of its arguments. `$VERSION` is that of the package `site`.
const SITE: &str = r#"
set -e
pack() { # NAME VERSION DEPENDS: the tree in ./NAME
    mkdir -p $1/DEBIAN
    printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: lab <lab@localhost>\nDescription: %s\n' $1 $2 $1 > $1/DEBIAN/control
    [ -z "$3" ] || echo "Depends: $3" >> $1/DEBIAN/control
    (cd $1; find etc -type f 2>/dev/null | sed s,^,/,) > conffiles
    [ ! -s conffiles ] || cp conffiles $1/DEBIAN/conffiles
    (cd $1; find . -path ./DEBIAN -prune -o -path ./etc -prune -o -type f -print | sed s,^./,, | sort | xargs -r md5sum) > $1/DEBIAN/md5sums
    dpkg-deb --root-owner-group -b $1 /opt/repo/$1_$2.deb > /dev/null
}
mkdir -p /opt/repo; cd $(mktemp -d)
mkdir -p site/etc site/usr/share/site; echo "site $VERSION" > site/etc/site.conf
for f in data doc same; do echo "$f $VERSION" > site/usr/share/site/$f; done; echo same > site/usr/share/site/same
pack site $VERSION ''
mkdir -p extra/etc extra/usr/share/extra extra/DEBIAN; echo extra > extra/etc/extra.conf; echo extra > extra/usr/share/extra/data
printf '#!/bin/sh\nid extra >/dev/null 2>&1 || useradd --system extra\n' > extra/DEBIAN/postinst; chmod 755 extra/DEBIAN/postinst
pack extra 1 libextra
mkdir -p libextra/usr/lib/extra; echo lib > libextra/usr/lib/extra/lib
pack libextra 1 ''
mkdir -p unwanted/usr/share/unwanted; echo x > unwanted/usr/share/unwanted/x
pack unwanted 1 ''
for v in 1 2 3; do
    rm -rf linked; mkdir -p linked/usr/lib/linked; echo $v > linked/usr/lib/linked/lib.$v; ln -s lib.$v linked/usr/lib/linked/lib
    pack linked $v ''
done
mkdir -p again/usr/share/again; echo a > again/usr/share/again/a; echo b > again/usr/share/again/b
pack again 1 ''
cd /opt/repo
[ $VERSION = 2 ] || rm linked_3.deb
for deb in *.deb; do
    dpkg-deb -f $deb; echo "Filename: ./$deb"; echo "Size: $(stat -c %s $deb)"; echo "SHA256: $(sha256sum $deb | cut -d' ' -f1)"; echo
done > Packages
rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*
echo 'deb [trusted=yes] file:/opt/repo ./' > /etc/apt/sources.list
apt-get update
apt-get install -y site unwanted again linked=$((2 * VERSION - 1))
[ $VERSION = 1 ] || { groupadd --gid 990 site2; useradd --system --uid 990 --gid 990 site2; echo new > /etc/new.conf; }
"#;

fn derive(host: &Host, version: u32) {
    host.write("/site.sh", 0o700, SITE);
    let derive = format!(
        "ojail layer derive site --from debian --network none -- env VERSION={version} sh -c \"$(cat /site.sh)\""
    );
    host.root(&derive).within(LONG).ok();
}

/// A host with the first generation of the layer `site`.
fn host() -> Host {
    let host = lab::host()
        .user(User::new("alice").uid(1001).groups(["jailed"]))
        .layer("debian")
        .config(CONFIG)
        .pam("sshd")
        .start();
    derive(&host, 1);
    host
}

/// What alice does on it: packages, and files of her own and of others.
fn change(host: &Host) {
    let change = "set -e; sudo apt-get -q update; sudo apt-get -q -y install extra; sudo apt-get -q -y remove unwanted; sudo apt-get -q -y install linked
        sudo apt-get -q -y purge again; sudo apt-get -q -y install again; sudo sh -ec '
        echo mine > /usr/share/again/a
        echo mine >> /etc/extra.conf; echo mine >> /etc/site.conf; echo mine > /usr/share/site/data; rm /usr/share/site/doc
        echo mine > /opt/mine; echo mine > /etc/new.conf; echo mine > /usr/share/extra/data; ln -s mine /opt/link; chmod 744 /opt/mine
        ln /etc/passwd /opt/accounts; cp /etc/passwd /opt/accounts.then'
        id -u extra; echo hers > ~/notes";
    host.ssh("alice", change).within(LONG).ok();
    host.root("ojail stop alice").ok();
}

fn conflicts(host: &Host) -> Value {
    serde_json::from_str(&host.root("ojail conflicts alice --json").text()).unwrap()
}

fn names(packages: &Value) -> Vec<&str> {
    packages.as_array().unwrap().iter().map(|package| package["name"].as_str().unwrap()).collect()
}

const UPPER: &str = "/srv/overlay/upperdirs/alice";

#[test]
fn a_layer_is_upgraded_and_the_users_packages_and_files_come_along() {
    lab::require_root!();
    let host = host();
    change(&host);
    let quiet = conflicts(&host);
    assert_eq!(
        (&quiet["files"], &quiet["untold"]),
        (&serde_json::json!([]), &serde_json::json!([])),
        "{quiet}"
    );
    assert_eq!(names(&quiet["packages"]["behind"]), [""; 0]);
    assert_eq!(names(&quiet["packages"]["upgraded"]), ["linked"]);
    let said = host.root("ojail rebase alice").text();
    assert_eq!(said, "alice is on the layers as they are now; there is nothing to do.");

    derive(&host, 2);
    let told = conflicts(&host);
    assert_eq!(told["bases"][0]["there"], true);
    let packages = &told["packages"];
    assert_eq!(names(&packages["installed"]), ["extra", "libextra"], "{told:#}");
    assert_eq!(names(&packages["removed"]), ["unwanted"]);
    assert_eq!(names(&packages["upgraded"]), [""; 0]);
    assert_eq!(
        packages["behind"],
        serde_json::json!([
            { "name": "linked", "inside": "2", "layers": "3" },
            { "name": "site", "inside": "1", "layers": "2" },
        ])
    );
    let files: Vec<String> = told["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| {
            let word = |key: &str| file[key].as_str().unwrap_or("-").to_owned();
            format!("{} {} {} {}", word("path"), word("user"), word("layers"), word("package"))
        })
        .filter(|line| {
            !["group", "passwd", "shadow", "gshadow", "sub"]
                .iter()
                .any(|name| line.starts_with(&format!("/etc/{name}")))
        })
        .collect();
    assert_eq!(
        files,
        [
            "/etc/new.conf changed added -",
            "/etc/site.conf changed changed site",
            "/usr/lib/linked/lib changed changed linked",
            "/usr/share/site/data changed changed site",
            "/usr/share/site/doc deleted changed site",
        ],
        "{told:#}"
    );
    let text = host.root("ojail conflicts alice").text();
    for words in [
        "alice was on the layers site@",
        "installed by the user",
        "/etc/new.conf",
        "`ojail rebase alice --dry-run`",
    ] {
        assert!(text.contains(words), "{text}\nlacks: {words}");
    }

    // The layers that she was on last are kept for it.
    let said = host.root("ojail layer prune --keep 0").text();
    assert!(said.starts_with("Nothing is old"), "{said}");

    let before = digest(&host, UPPER);
    let said = host.root("ojail rebase alice --dry-run").text();
    for words in [
        "installed by the user: installed again",
        "installed by the user: as others need it",
        "removed by the user: removed again",
        "newer in the layers: as in the layers",
        "/etc/extra.conf",
        "Nothing was done.",
    ] {
        assert!(said.contains(words), "{said}\nlacks: {words}");
    }
    assert_eq!(digest(&host, UPPER), before);

    // A jail that runs is in the way of nobody, but a session is.
    let session = host.ssh("alice", "echo in; sleep 1000").spawn();
    until("alice is in", crate::common::SOON, || crate::common::sessions(&host, "alice") == 1);
    let refused = host.root("ojail rebase alice").fails();
    assert!(complaint(&refused).contains("alice"), "{refused}");
    drop(session);
    let said = host.root("ojail rebase alice --force").within(LONG).text();
    assert!(said.contains("alice is on the new layers"), "{said}");
    assert_eq!(remains(&host), "");
    let log = host.root("cat /var/log/ojail/rebase-alice-*.log").text();
    assert!(log.contains("Setting up extra (1)"), "{log}");

    let look = "dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\n' site extra libextra unwanted 2>/dev/null | grep -v not-installed
        apt-mark showauto | grep -x libextra; cat /etc/extra.conf /etc/site.conf /usr/share/site/data /usr/share/extra/data /opt/mine /etc/new.conf
        cmp /opt/accounts /opt/accounts.then; cat /usr/share/site/doc; readlink /opt/link; stat -c %a /opt/mine; getent passwd extra site2 | cut -d: -f1; cat ~/notes
        cat /usr/lib/linked/lib /usr/share/again/a /usr/share/again/b; ls /usr/lib/linked
        sudo dpkg --audit; sudo apt-get -q -y check >/dev/null && echo whole";
    let seen = host.ssh("alice", look).run();
    assert_eq!(
        seen.stdout.trim_end(),
        "extra 1 installed\nlibextra 1 installed\nsite 2 installed\nlibextra\nextra\nmine\nsite 1\nmine\nmine\nextra\nmine\nmine\n\
         mine\n744\nextra\nsite2\nhers\n3\nmine\nb\nlib\nlib.3\nwhole",
        "{seen}"
    );
    host.root("ojail stop alice").ok();
    let now = conflicts(&host);
    assert_eq!((&now["files"], &now["untold"]), (&serde_json::json!([]), &serde_json::json!([])), "{now:#}");
    assert_eq!(names(&now["packages"]["installed"]), ["extra", "libextra"]);
    let said = host.root("ojail reset --list alice").text();
    assert!(said.contains("rebase"), "{said}");
    host.root("ojail undo alice").ok();
    assert_eq!(digest(&host, UPPER), before);
    assert_eq!(conflicts(&host)["files"], told["files"], "what it was made on came back with it");
}

#[test]
fn what_cannot_be_brought_to_newer_layers_stays_as_it_is() {
    lab::require_root!();
    let host = host();
    let none = host.root("ojail rebase alice").fails();
    assert!(complaint(&none).contains("alice"), "{none}");
    host.ssh("alice", "echo mine > ~/mine").ok();
    host.root("ojail stop alice").ok();
    let said = host.root("ojail rebase alice").text();
    assert!(said.starts_with("alice has installed and removed nothing"), "{said}");
    change(&host);
    derive(&host, 2);
    let before = digest(&host, UPPER);
    let refused = |command: &str, why: &str| {
        let refused = host.root(command).within(LONG).fails();
        assert!(complaint(&refused).contains(why), "{refused}\nlacks: {why}");
        assert_eq!(complaint(&refused).lines().count(), 1, "{refused}");
        assert_eq!(digest(&host, UPPER), before, "{command}");
        assert_eq!(remains(&host), "", "{command}");
    };
    refused("ojail rebase nobody", "nobody");
    refused("ojail rebase ../x", "../x");
    refused("ojail rebase alice --without nothing", "--without \"nothing\": that is none of the packages");
    // A package that is nowhere any more.
    host.root(&format!("mkdir -p {UPPER}/opt/repo; cp /srv/overlay/lowerdirs/site/opt/repo/Packages {UPPER}/opt/repo/Packages; sed -i 's/^Package: extra$/Package: other/' {UPPER}/opt/repo/Packages")).ok();
    let before = digest(&host, UPPER);
    let failed = host.root("ojail rebase alice").within(LONG).fails();
    assert!(complaint(&failed).contains("alice stays as they are: apt-get failed with status 100 (E: Unable to locate package extra); all that was said is in /var/log/ojail/rebase-alice-"), "{failed}");
    assert_eq!((digest(&host, UPPER), remains(&host)), (before.clone(), String::new()));
    let said = host.root("ojail rebase alice --without extra --dry-run").text();
    assert!(said.contains("installed by the user: not installed"), "{said}");
    host.root("ojail rebase alice --without extra").within(LONG).ok();
    let look =
        "dpkg-query -W site extra libextra unwanted 2>/dev/null; cat /opt/mine /usr/share/extra/data ~/notes";
    assert_eq!(
        host.ssh("alice", look).run().stdout.trim_end(),
        "site\t2\nmine\nmine\nhers",
        "what the user changed in a package that does not come again stays"
    );
    host.root("ojail stop alice; ojail undo alice").ok();
    assert_eq!(digest(&host, UPPER), before);
    // A profile without a root.
    host.root("sed -i 's/^root = true/root = false/' /etc/ojail/ojail.toml").ok();
    let refused = host.root("ojail rebase alice").fails();
    assert!(
        complaint(&refused).contains("profile site has no root")
            && complaint(&refused).contains("--files-only"),
        "{refused}"
    );
    assert_eq!(digest(&host, UPPER), before);
    host.root("ojail rebase alice --files-only").ok();
    assert_eq!(
        host.ssh("alice", "dpkg-query -W site extra 2>/dev/null; cat /opt/mine ~/notes")
            .run()
            .stdout
            .trim_end(),
        "site\t2\nmine\nhers"
    );
    // Layers that are gone: it is told that nothing can be told.
    host.root("ojail stop alice; ojail undo alice; old=$(ojail layer list --json | grep -o '\"generation\": \"[0-9a-f]*\"' | cut -d'\"' -f4 | sort -u); \
               now=$(readlink /srv/overlay/lowerdirs/site); for g in $old; do [ site@$g = $now ] || ojail layer remove site@$g; done").ok();
    let told = conflicts(&host);
    assert_eq!(told["bases"][0]["there"], false, "{told:#}");
    let untold: Vec<&str> =
        told["untold"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
    assert!(untold.contains(&"/etc/site.conf") && !untold.contains(&"/opt/mine"), "{told:#}");
    assert!(names(&told["packages"]["behind"]).contains(&"site"), "{told:#}");
}

#[test]
fn a_hostile_database_leads_nobody_astray() {
    lab::require_root!();
    let host = lab::host()
        .user(User::new("alice").uid(1001).groups(["jailed"]))
        .config(&CONFIG.replace("[\"site\", \"debian\"]", "[\"small\"]"))
        .start();
    host.root("mkdir -p -m 700 /srv/overlay/lowerdirs /srv/overlay/upperdirs; mkdir -m 755 /srv/overlay/lowerdirs/small; cd /srv/overlay/lowerdirs/small; \
               mkdir -p etc var/lib/dpkg/info; echo root:x:0: > etc/group; ojail layer adopt small; echo precious > /etc/precious; echo precious > /precious").ok();
    let outside = || format!("{}{}", digest(&host, "/etc"), digest(&host, "/srv/overlay/lowerdirs"));
    host.root(&format!("mkdir -m 755 {UPPER}; mkdir -p {UPPER}/var/lib {UPPER}/etc; ln -s /etc {UPPER}/var/lib/dpkg; ln -s /etc/passwd {UPPER}/etc/passwd")).ok();
    let before = outside();
    let said = host.root("ojail rebase alice").text();
    assert!(said.starts_with("alice has installed and removed nothing"), "a link is no database: {said}");
    host.root(&format!(
        r"cd {UPPER}/var/lib; rm dpkg; mkdir -p dpkg/info; cd dpkg; \
          printf 'Package: ../../../../etc/x\nStatus: install ok installed\nVersion: 1\n\nPackage: -oDir=/\nStatus: install ok installed\nVersion: --help\n\n' > status; \
          printf 'Package: plain\nStatus: install ok installed\nVersion: 1\nConffiles:\n /../../etc/precious d41d8cd98f00b204e9800998ecf8427e\n\n' >> status; \
          printf '/../../../etc/precious\n/etc/../../precious\n/etc/passwd\n//etc/precious\n/\x01\n' > info/plain.list; \
          ln -s /etc/precious info/plain.md5sums; ln -s /etc/shadow ../../../etc/shadow; mkfifo ../../../etc/gshadow; echo no colon > ../../../etc/group; \
          printf '\377\376\n' > ../../../etc/subuid"
    ))
    .ok();
    let said = host.root("ojail conflicts alice").text();
    assert!(said.contains("plain") && !said.contains('\u{1}'), "{said}");
    let said = host.root("ojail rebase alice --dry-run").text();
    assert!(
        said.contains("installed by the user: not installed"),
        "what is no name is not installed: {said}"
    );
    host.root("ojail rebase alice --files-only").ok();
    assert_eq!(outside(), before);
    assert_eq!(host.root("cat /precious /etc/precious").text(), "precious\nprecious");
    assert_eq!(
        host.root(&format!("cd {UPPER}; ls etc; cat etc/group")).text(),
        "group\ngshadow\nshadow\nsubuid\nno colon\nroot:x:0:"
    );
    // More than any database has is not read.
    host.root(&format!("mkdir -p {UPPER}/var/lib/dpkg; truncate -s 1G {UPPER}/var/lib/dpkg/status")).ok();
    let refused = host.root("ojail conflicts alice").fails();
    assert!(
        complaint(&refused).contains("var/lib/dpkg/status")
            && complaint(&refused).contains("no such file has"),
        "{refused}"
    );
}

#[test]
fn a_kill_anywhere_in_a_rebase_leaves_the_old_or_the_new() {
    lab::require_root!();
    let host = host();
    change(&host);
    derive(&host, 2);
    host.root(&format!("mkdir /srv/overlay/kept; cp -a {UPPER} /srv/overlay/kept/upper; cp -a /var/lib/ojail/bases/alice /srv/overlay/kept/bases")).ok();
    let begin = format!(
        "rm -rf {UPPER} /srv/overlay/asidedirs/alice; cp -a /srv/overlay/kept/upper {UPPER}; cp -a /srv/overlay/kept/bases /var/lib/ojail/bases/alice"
    );
    // Of a copy the times are new: all of it is as if it had been changed on the last layers that are noted.
    let state = || {
        host.root(&format!("cd {UPPER}; find . ! -path './var/*' | sort; cat opt/mine; test -s var/lib/dpkg/status && echo dpkg; true")).text()
    };
    let with = "ojail rebase alice";
    let newest = host.root("basename $(readlink /srv/overlay/lowerdirs/site)").text();
    for (command, manieth) in [("ojail rebase alice --files-only", 20), (with, 60)] {
        let act = Act { host: &host, command, begin: begin.clone(), state: &state };
        let (old, new) = act.states();
        let (mut before, mut behind) = (0, 0);
        act.kill_at_each(manieth, |at| {
            let now = state();
            assert!(now == old || now == new, "{at}:\n{now}");
            if now == old {
                before += 1;
            } else {
                behind += 1;
            }
            crate::orphans_end(&host);
            host.root("ojail tidy").ok();
            assert_eq!(state(), now, "{at}, and a tidy");
            let base = host.root("tail -n 1 /var/lib/ojail/bases/alice").text();
            assert_eq!(base.contains(&newest), now == new, "{at}: what is noted of its layers: {base}");
        });
        eprintln!("{command}: {before} before the step and {behind} behind it");
        assert!(before > 3 && behind > 0, "{before} before, {behind} behind");
    }
    host.root(&begin).ok();
    host.root(with).within(LONG).ok();
    assert_eq!(remains(&host), "");
    assert_eq!(host.ssh("alice", "cat /opt/mine; dpkg-query -W -f '${Version}' site").text(), "mine\n2");
}
