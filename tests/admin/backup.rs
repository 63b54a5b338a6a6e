//! Everything to a directory or a stream, and back, also on a bare host.

use std::fs;

use lab::{Host, User};
use serde_json::Value;

use crate::common::{config, runs, setup};
use crate::{alone, assert_same, everything, whole};

const ALICE: &str = "/srv/overlay/upperdirs/alice";
const DORA: &str = "/srv/overlay/upperdirs/dora";

/// A host with a layer that is a directory and small, and may be changed.
fn small() -> Host {
    let host = lab::host()
        .user(User::new("alice").uid(1001).groups(["jailed"]))
        .user(User::new("dora").uid(1002).groups(["jailed"]))
        .config(&config(""))
        .pam("sshd")
        .start();
    host.root("mkdir -m 755 /srv/overlay/lowerdirs/debian; mkdir -m 700 -p /srv/overlay/upperdirs/alice /srv/overlay/upperdirs/dora /srv/overlay/asidedirs; chmod 700 /srv/overlay/*dirs; chmod 755 /srv/overlay/upperdirs/*").ok();
    host.exec(["python3", "-c", crate::EVERYTHING, "/srv/overlay/lowerdirs/debian"]).ok();
    host.exec(["python3", "-c", crate::EVERYTHING, ALICE]).ok();
    host.root("echo 1 > /srv/overlay/upperdirs/dora/number; mkdir -p /var/lib/ojail/users; chmod 700 /var/lib/ojail/users; \
               printf 'pool = 524288\\nuid = 1001\\n' > /var/lib/ojail/users/alice.toml; printf 'uid = 1002\\n' > /var/lib/ojail/users/dora.toml").ok();
    // No tar has a place for sockets, nor for several names of one whiteout.
    host.root("find /srv/overlay -type s -delete; rm /srv/overlay/*/*/closed/whiteout").ok();
    host
}

fn manifest(host: &Host, dir: &str) -> Value {
    serde_json::from_slice(&fs::read(host.path(format!("{dir}/manifest.json"))).unwrap()).unwrap()
}

/// Every file of a backup, with its number, which a file that is written again does not keep.
fn files(host: &Host, dir: &str) -> Vec<String> {
    let list = host
        .root(&format!("cd {dir}; find . -type f ! -name manifest.json -printf '%p %i\\n' | sort"))
        .text();
    list.lines().map(str::to_owned).collect()
}

/// A host as it was when ojail was installed, with the configuration, and the backup of another in `/backup`.
fn bare(from: &Host, users: &[(&str, u32)]) -> Host {
    let mut setup = lab::host().config(&config("")).pam("sshd");
    for (name, uid) in users {
        setup = setup.user(User::new(name).uid(*uid).groups(["jailed"]));
    }
    let host = setup.start();
    let packed = from.root("tar -cf - /backup").run();
    host.root("tar -xf - -C /").stdin(&packed.bytes).ok();
    host
}

#[test]
fn a_backup_on_a_bare_host_gives_the_same_jails() {
    lab::require_root!();
    let host = small();
    let (layer, alice, dora) =
        (whole(&host, "/srv/overlay/lowerdirs/debian"), whole(&host, ALICE), whole(&host, DORA));
    let said = host.root("ojail backup /backup").text();
    assert!(said.starts_with("2 of 2 users and 1 layers are in the backup ("), "{said}");
    assert_eq!(host.root("stat -c %a /backup /backup/manifest.json").text(), "700\n600");
    assert_same(&whole(&host, ALICE), &alice);

    let other = bare(&host, &[("alice", 1001)]);
    // The range of alice's has been given to somebody else there.
    other.root("mkdir -p /var/lib/ojail/users; chmod 700 /var/lib/ojail/users; printf 'pool = 524288\\nuid = 1999\\n' > /var/lib/ojail/users/zoe.toml").ok();
    let said = other.root("ojail restore /backup").text();
    for part in [
        "Layer debian is restored.",
        "The id range that alice had is taken here",
        "This host has no user dora; with `useradd --uid 1002 dora`",
        "1 layers and 2 users are restored, 0 were there already, 0 failed.",
    ] {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
    assert_same(&whole(&other, "/srv/overlay/lowerdirs/debian"), &layer);
    assert_same(&whole(&other, ALICE), &alice);
    assert_same(&whole(&other, DORA), &dora);
    assert_eq!(other.root("cat /var/lib/ojail/users/alice.toml").text(), "uid = 1001");
    assert_eq!(other.root("stat -c %a /srv/overlay/*dirs | sort -u").text(), "700");
    assert_eq!(
        other.root("ls -A /srv/overlay/asidedirs /srv/overlay/lowerdirs").text(),
        "/srv/overlay/asidedirs:\n.trash\nalice\ndora\n\n/srv/overlay/lowerdirs:\ndebian"
    );
    // Again, there is nothing to do.
    let said = other.root("ojail restore /backup").text();
    assert_eq!(said, "0 layers and 0 users are restored, 3 were there already, 0 failed.");
    // As a stream, to a third.
    let stream = host.root("ojail backup -").ok();
    assert!(
        stream.stderr.starts_with("ojail: 2 of 2 users and 1 layers are in the backup"),
        "{}",
        stream.stderr
    );
    let third = lab::host().config(&config("")).start();
    third.root("ojail restore -").stdin(&stream.bytes).ok();
    assert_same(&whole(&third, ALICE), &alice);
    assert_same(&whole(&third, "/srv/overlay/lowerdirs/debian"), &layer);
    assert_eq!(third.root("cat /var/lib/ojail/users/alice.toml").text(), "pool = 524288\nuid = 1001");
    assert!(!third.path("/srv/overlay/asidedirs/.restore").exists());
    // It is a plain tar, with the same files.
    third.root("mkdir /plain; tar -xf - -C /plain").stdin(&stream.bytes).ok();
    let names = |host: &Host, dir: &str| host.root(&format!("cd {dir}; find . -type f | sort")).text();
    assert_eq!(names(&third, "/plain"), names(&host, "/backup"));
}

const LOWERDIRS: &str = "/srv/overlay/lowerdirs";

/// Two generations of one layer, of which a profile names the older one, and a packed layer; and somebody who stands on them.
fn of_generations() -> Host {
    let host = lab::host().user(User::new("alice").uid(1001).groups(["jailed"])).config(&config("")).start();
    host.root("cd /srv/overlay; mkdir -m 755 one; mkdir -m 700 upperdirs; mkdir -m 755 upperdirs/alice").ok();
    host.exec(["python3", "-c", crate::EVERYTHING, "/srv/overlay/one"]).ok();
    host.root(
        r#"set -e
        echo 1 > /srv/overlay/upperdirs/alice/number; find /srv/overlay/one -type s -delete; rm /srv/overlay/one/closed/whiteout /srv/overlay/one/sparse
        ojail layer build debian --from-dir /srv/overlay/one
        mkdir /srv/two; echo packed > /srv/two/packed; ojail layer build packed --from-dir /srv/two; ojail layer pack packed
        old=$(readlink /srv/overlay/lowerdirs/debian)
        echo 2 > /srv/overlay/one/two; ojail layer build debian --from-dir /srv/overlay/one
        sed -i 's/"debian"\]/"packed", "debian"]/' /etc/ojail/ojail.toml
        printf '[profiles.old]\nlayers = ["%s"]\n' $old >> /etc/ojail/ojail.toml"#,
    )
    .ok();
    host
}

/// Links, and records byte for byte.
fn generations(host: &Host) -> String {
    host.root("cd /srv/overlay/lowerdirs; for f in *; do [ ! -L $f ] || echo $f $(readlink $f); done; sha256sum *.json").text()
}

#[test]
fn generations_come_back_as_what_they_were_with_their_records_and_links() {
    lab::require_root!();
    lab::require!(lab::must::loop_devices());
    let host = of_generations();
    let (links, content) = (generations(&host), whole(&host, &format!("{LOWERDIRS}/debian/")));
    assert!(links.contains("packed packed@") && links.contains(".erofs"), "{links}");
    host.root("ojail backup /backup").ok();
    let layers = manifest(&host, "/backup")["layers"].as_array().unwrap().clone();
    assert_eq!(layers.len(), 3, "{layers:?}");
    assert!(layers.iter().all(|layer| layer["record"]["how"] == "build"), "{layers:?}");

    let bare = || {
        let other = bare(&host, &[("alice", 1001)]);
        other
            .root("cat > /etc/ojail/ojail.toml")
            .stdin(fs::read(host.path("/etc/ojail/ojail.toml")).unwrap())
            .ok();
        other
    };
    let other = bare();
    other.root("ojail restore /backup").ok();
    let is_restored = |other: &Host| {
        assert_same(&generations(other), &links);
        assert_same(&whole(other, &format!("{LOWERDIRS}/debian/")), &content);
        other.root("ojail layer verify").ok();
        let said = other.root("ojail restore /backup").text();
        assert_eq!(said, "0 layers and 0 users are restored, 4 were there already, 0 failed.");
    };
    is_restored(&other);
    assert_eq!(other.root("ls -A /srv/overlay/lowerdirs/.making").text(), "");

    // Another generation since: a refusal, and with force a step back to the one that is still there.
    other.root("echo 3 > /srv/three; mkdir /srv/o; mv /srv/three /srv/o; ojail layer build debian --from-dir /srv/o").ok();
    let refused = other.root("ojail restore /backup").fails();
    assert!(refused.stderr.contains("not as in the backup: layer debian; `--force`"), "{refused}");
    other.root("ojail restore --force /backup").ok();
    assert_same(&whole(&other, &format!("{LOWERDIRS}/debian/")), &content);
    other.root("ojail layer verify").ok();

    // Packed otherwise, it is the same.
    let third = bare();
    third.root("ojail restore /backup; ojail layer unpack packed; ojail layer pack debian").ok();
    let said = third.root("ojail restore /backup").text();
    assert_eq!(said, "0 layers and 0 users are restored, 4 were there already, 0 failed.");

    // Changed by hand, which no generation may be: it is set aside. The packed one was cut short.
    let fourth = bare();
    fourth.root("ojail restore /backup; cd /srv/overlay/lowerdirs; echo x > debian/two; truncate -s -4096 packed@*.erofs").ok();
    fourth.root("ojail layer verify").fails();
    let said = fourth.root("ojail restore --force /backup").text();
    assert_eq!(said.matches("What it replaces is /srv/overlay/lowerdirs/").count(), 2, "{said}");
    assert_eq!(fourth.root("cat /srv/overlay/lowerdirs/debian-2*/two").text(), "x");
    is_restored(&fourth);

    // In the place of some that somebody made by hand.
    let fifth = bare();
    fifth.root("mkdir -m 700 -p /srv/overlay/lowerdirs; cd /srv/overlay/lowerdirs; mkdir -m 755 debian packed; echo hand > debian/hand").ok();
    fifth.root("ojail restore --force /backup").ok();
    assert_eq!(fifth.root("cat /srv/overlay/lowerdirs/debian-2*/hand").text(), "hand");
    is_restored(&fifth);
}

#[test]
fn users_go_on_after_a_real_backup_and_restore() {
    lab::require_root!();
    lab::require!(lab::must::loop_devices());
    let keys = "root = true";
    let start = || {
        lab::host().user(User::new("alice").uid(1001).groups(["jailed"])).config(&config(keys)).pam("sshd")
    };
    let host = start().image("debian.erofs").start();
    host.ssh("alice", "sudo sh -c 'rm -r /usr/share/doc/bash; echo mine > /etc/issue; chown alice /opt'")
        .ok();
    everything(&host, "alice");
    host.ssh("alice", "true").ok();
    // Running, and in no group that could be frozen.
    let refused = host.root("ojail backup /backup").fails();
    assert!(refused.stderr.contains("alice: the jail of alice cannot be held still"), "{refused}");
    assert!(refused.text().starts_with("0 of 1 users and 1 layers"), "{refused}");
    alone(&host, "alice");
    host.root("ojail backup /backup --end").ok();
    assert!(!runs(&host, "alice"));
    let image = manifest(&host, "/backup")["layers"][0]["file"].as_str().unwrap().to_owned();
    assert!(image.ends_with(".erofs"), "{image}");
    host.root(&format!("cmp /backup/{image} /srv/overlay/lowerdirs/debian.erofs")).ok();

    let other = start().start();
    let stream = host.root("tar -cf - /backup").run();
    other.root("tar -xf - -C /").stdin(&stream.bytes).ok();
    other.root("ojail restore /backup").ok();
    let seen = other.ssh("alice", "cat /etc/issue; ls -d /usr/share/doc/bash; stat -c %U /opt; sudo id -u");
    assert_eq!(seen.run().text(), "mine\nalice\n0");
}

#[test]
fn what_has_not_changed_is_not_written_again_and_what_is_old_goes() {
    lab::require_root!();
    let host = small();
    host.root("ojail backup /backup").ok();
    let first = files(&host, "/backup");
    assert_eq!(first.len(), 4, "{first:?}");
    host.root("ojail backup /backup").ok();
    let names = |files: &[String]| -> Vec<String> {
        files.iter().map(|file| file.split(' ').next().unwrap().to_owned()).collect()
    };
    let second = files(&host, "/backup");
    assert_eq!(names(&first), names(&second));
    let layer = |files: &[String]| files.iter().find(|file| file.contains("layers/")).cloned();
    assert_eq!(layer(&first), layer(&second), "the layer was written again");
    // One user; what there is of the others stays.
    host.root("echo 2 > /srv/overlay/upperdirs/dora/number; ojail backup /backup dora").ok();
    let third = files(&host, "/backup");
    assert_eq!(third.len(), 4);
    let differ =
        third.iter().filter(|file| !names(&second).contains(&file.split(' ').next().unwrap().into()));
    assert_eq!(differ.count(), 1, "{third:?}");
    let users = manifest(&host, "/backup")["users"].as_array().unwrap().len();
    assert_eq!(users, 2);
    // Bytes that are the same are the same bytes: what a tool that looks for pieces finds.
    host.root("echo 3 > /srv/overlay/upperdirs/dora/zz; ojail backup /backup").ok();
    host.root("sha256sum -c")
        .stdin(
            manifest(&host, "/backup")["users"]
                .as_array()
                .unwrap()
                .iter()
                .map(|user| {
                    format!(
                        "{}  /backup/{}\n",
                        user["sha256"].as_str().unwrap(),
                        user["file"].as_str().unwrap()
                    )
                })
                .collect::<String>(),
        )
        .ok();
}

#[test]
fn what_is_there_and_differs_is_refused_and_set_aside_by_force() {
    lab::require_root!();
    let host = small();
    host.root("ojail backup /backup").ok();
    let alice = whole(&host, ALICE);
    host.root("echo new > /srv/overlay/upperdirs/alice/new; echo new > /srv/overlay/lowerdirs/debian/new")
        .ok();
    let (changed, layer) = (whole(&host, ALICE), whole(&host, "/srv/overlay/lowerdirs"));
    let refused = host.root("ojail restore /backup").fails();
    assert!(
        refused.stderr.contains(
            "there already, and not as in the backup: layer debian, the changes of alice; `--force`"
        ),
        "{refused}"
    );
    assert_same(&whole(&host, ALICE), &changed);
    assert_same(&whole(&host, "/srv/overlay/lowerdirs"), &layer);
    let said = host.root("ojail restore /backup alice --force").text();
    assert!(
        said.contains("`ojail undo alice` puts it back")
            && said.contains("What it replaces is /srv/overlay/lowerdirs/debian-2"),
        "{said}"
    );
    assert_same(&whole(&host, ALICE), &alice);
    assert!(!host.path("/srv/overlay/lowerdirs/debian/new").exists());
    assert_eq!(host.root("cat /srv/overlay/lowerdirs/debian-*/new").text(), "new");
    host.root("ojail undo alice").ok();
    assert_same(&whole(&host, ALICE), &changed);
}

#[test]
fn a_damaged_or_foreign_backup_changes_nothing() {
    lab::require_root!();
    let host = small();
    host.root("ojail backup /backup; ojail backup - > /stream; rm -r /srv/overlay/upperdirs/alice").ok();
    let state = || {
        let shelf = host.root("ls -lAR /srv/overlay/asidedirs | grep -v '^total'").text();
        format!("{}{}{shelf}", whole(&host, "/srv/overlay/upperdirs"), whole(&host, "/srv/overlay/lowerdirs"))
    };
    let before = state();
    let damage = |what: &str| host.root(&format!("rm -rf /bad; cp -a /backup /bad; cd /bad; {what}")).ok();
    for (what, command, why) in [
        (
            "printf x | dd of=$(ls uppers/dora*) bs=1 seek=1000 conv=notrunc",
            "ojail restore /bad",
            "is damaged: its digest is",
        ),
        ("truncate -s -512 $(ls layers/*)", "ojail restore /bad", "is damaged"),
        ("rm uppers/dora*", "ojail restore /bad", "cannot open /bad/uppers/dora-"),
        ("rm manifest.json", "ojail restore /bad", "is no backup: there is no manifest.json"),
        ("echo {} > manifest.json", "ojail restore /bad", "is not the manifest of a backup"),
        (
            "sed -i 's/\"format\": 1/\"format\": 9/' manifest.json",
            "ojail restore /bad",
            "knows format 1 only",
        ),
        (
            "sed -i 's|\"file\": \"uppers/|\"file\": \"../../|' manifest.json",
            "ojail restore /bad",
            "names a file outside of the backup",
        ),
        ("true", "ojail restore /bad nobody", "has no user nobody"),
        ("true", "ojail restore /bad ../alice", "cannot have a jail"),
        ("true", "ojail restore /missing", "cannot examine /missing"),
        ("chown 1001 .", "ojail restore /bad", "/bad: belongs to uid 1001"),
        (
            "chmod 777 uppers",
            "ojail restore /bad",
            "can be written by others than root; `chmod go-w /bad/uppers`",
        ),
        ("chmod 1777 .", "ojail backup /bad", "can be written by others than root"),
        ("true", "head -c 20000 /stream | ojail restore -", "standard input"),
        ("true", "tar -cf - -C / etc/hostname | ojail restore -", "standard input: is no backup of ojail's"),
        ("true", "true | ojail restore -", "is no backup: there is no manifest.json"),
        ("true", "ojail backup /etc", "is no backup, and not empty"),
        ("true", "ojail backup /new nobody", "nobody"),
        ("true", "ojail backup /new alcie", "user \"alcie\" does not exist"),
    ] {
        damage(what);
        let refused = host.root(command).fails();
        assert!(refused.stderr.contains(why), "{what}; {command}: {refused}");
        assert_eq!(refused.stderr.lines().count(), 1, "{what}; {command}: {refused}");
        assert_same(&state(), &before);
    }
}

#[test]
fn a_full_disk_and_a_kill_leave_the_last_good_backup() {
    lab::require_root!();
    lab::require!(lab::must::loop_devices());
    let host = small();
    host.root("truncate -s 40M /disk; mkfs.ext4 -q -F /disk; mkdir /backup; mount -o loop /disk /backup")
        .ok();
    host.root("ojail backup /backup").ok();
    let good = host.root("cat /backup/manifest.json").text();
    let intact = |at: &str| {
        assert_eq!(host.root("cat /backup/manifest.json").text(), good, "{at}");
        host.root("rm -rf /srv/overlay/lowerdirs/debian-*; ojail restore --force /backup").ok();
    };
    // It is asked first.
    host.root("head -c 60M /dev/urandom > /srv/overlay/upperdirs/dora/large").ok();
    let refused = host.root("ojail backup /backup").fails();
    assert!(
        refused.stderr.contains("/backup has ") && refused.stderr.contains("are needed; make room first"),
        "{refused}"
    );
    intact("too large");
    // And if that was wrong.
    host.root("head -c 20M /dev/urandom > /srv/overlay/upperdirs/dora/large").ok();
    for call in ["write", "fsync", "syncfs", "rename"] {
        let inject = format!(
            "strace -qq -o /dev/null -P /backup/uppers/.new -P /backup/.new -e inject={call}:error=ENOSPC:when=1+ ojail backup /backup"
        );
        let refused = host.root(&inject).fails();
        assert!(
            refused.stderr.contains("No space left on device") && refused.stderr.lines().count() == 1,
            "{call}: {refused}"
        );
        assert_eq!(host.root("cat /backup/manifest.json").text(), good, "{call}");
    }
    for call in ["rename", "fsync", "syncfs", "unlink"] {
        for number in 1..4 {
            let kill = format!(
                "strace -qq -o /dev/null -e inject={call}:signal=KILL:when={number} ojail backup /backup dora"
            );
            host.root(&kill).run();
            // The old or the new, and either is whole.
            host.root("ojail restore --force /backup dora").ok();
            let size =
                host.root("stat -c %s /srv/overlay/upperdirs/dora/large 2>/dev/null || echo none").text();
            assert!(["none", "20971520"].contains(&&*size), "{call} {number}: {size}");
            host.root("head -c 20M /dev/urandom > /srv/overlay/upperdirs/dora/large").ok();
        }
    }
}

#[test]
fn a_user_who_cannot_be_backed_up_now_keeps_what_the_last_backup_has() {
    lab::require_root!();
    let host = setup("").start();
    host.ssh("alice", "echo 1 > /var/tmp/number").ok();
    alone(&host, "alice");
    host.root("ojail backup /backup --end").ok();
    let session = host.ssh("alice", "echo 2 > /var/tmp/number; echo inside; sleep 300").spawn();
    session.wait_for("inside");
    let refused = host.root("ojail backup /backup --end").fails();
    assert!(refused.stderr.contains("sessions of alice are open"), "{refused}");
    assert!(refused.stderr.contains("what the last backup has of them stays"), "{refused}");
    assert!(runs(&host, "alice"));
    assert_eq!(manifest(&host, "/backup")["users"].as_array().unwrap().len(), 1);
    session.kill();
    host.root("ojail stop alice; ojail restore --force /backup").ok();
    assert_eq!(host.ssh("alice", "cat /var/tmp/number").text(), "1");
}
