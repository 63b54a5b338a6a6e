//! What layers save, counted.

use std::time::Duration;

use lab::{Host, User};
use serde_json::Value;

use crate::generations::LOWERDIRS;

/// Whole Debians are digested and packed.
const LONG: Duration = Duration::from_secs(400);

/// The jails of the article: two with nginx on Debian, one with Debian alone.
const CONFIG: &str = "[profiles.debian]\nlayers = [\"debian\"]\n\n[profiles.nginx]\nlayers = [\"nginx\", \"debian\"]\n\n\
                      [[rules]]\nuser = [\"nginx1\", \"nginx2\"]\nprofile = \"nginx\"\n\n[[rules]]\nuser = \"debian1\"\nprofile = \"debian\"\n";

fn three() -> Host {
    ["nginx1", "nginx2", "debian1"]
        .into_iter()
        .fold(lab::host(), |host, user| host.user(User::new(user)))
        .own_layer("debian")
        .own_layer("nginx")
        .config(CONFIG)
        .pam("sshd")
        .start()
}

fn usage(host: &Host) -> Value {
    serde_json::from_str(&host.root("ojail usage --json").text()).unwrap()
}

/// As du(1) counts.
fn du(host: &Host, path: &str) -> u64 {
    let said = host.root(&format!("du -sx --block-size=1 {path} | cut -f1")).text();
    said.parse().unwrap()
}

#[test]
fn usage_counts_as_du_does_and_knows_nothing_that_it_cannot_count() {
    lab::require_root!();
    let host = three();
    assert!(host.root("ojail usage").text().starts_with("No jails"));
    for user in ["nginx1", "nginx2", "debian1"] {
        host.ssh(user, "true").ok();
    }
    host.root(
        "cd /srv/overlay/upperdirs/nginx1; head -c 3000000 /dev/urandom > large; ln large twice; ln -s / root; \
         mkdir m; mount -t tmpfs m m; head -c 1000000 /dev/zero > m/x; truncate -s 1G holes",
    )
    .ok();
    let upper = |user: &str| du(&host, &format!("/srv/overlay/upperdirs/{user}"));
    let (debian, nginx) =
        (du(&host, &format!("{LOWERDIRS}/debian")), du(&host, &format!("{LOWERDIRS}/nginx")));
    let uppers = upper("nginx1") + upper("nginx2") + upper("debian1");
    let told = usage(&host);
    assert_eq!(told["one_by_one"], 3 * debian + 2 * nginx + uppers);
    assert_eq!(told["shared"], debian + nginx + uppers);
    assert_eq!(told["now"], told["shared"]);
    assert_eq!((&told["packed"], &told["packed_percent"]), (&Value::Null, &Value::Null));
    let nginx1 = told["users"].as_array().unwrap().iter().find(|user| user["user"] == "nginx1").unwrap();
    assert_eq!(nginx1["one_by_one"], debian + nginx + upper("nginx1"));
    assert!(host.root("ojail usage").text().contains("not known"));

    // Packed, what it would be as directories is known still.
    host.root("ojail layer adopt debian && ojail layer adopt nginx").within(LONG).ok();
    host.root("ojail layer pack nginx").within(LONG).ok();
    assert_eq!(usage(&host)["packed"], Value::Null);
    host.root("ojail stop nginx1; ojail stop nginx2; ojail stop debian1").ok();
    host.root("ojail layer prune; ojail layer pack debian --format squashfs --compression gzip")
        .within(LONG)
        .ok();
    let told = usage(&host);
    assert_eq!(told["one_by_one"], 3 * debian + 2 * nginx + uppers);
    assert_eq!(told["shared"], debian + nginx + uppers);
    assert_eq!(
        told["packed"],
        du(&host, &format!("{LOWERDIRS}/*.erofs {LOWERDIRS}/*.squashfs -c | tail -1")) + uppers
    );
    assert_eq!(told["now"], told["packed"]);
    assert!(told["packed_percent"].as_f64().unwrap() < 25.0, "{told}");
    let layers = told["layers"].as_array().unwrap();
    assert!(layers.iter().any(|layer| layer["image_format"] == "squashfs" && layer["jails"] == 3), "{told}");

    // An image that somebody made by hand is counted from its mount: no more than a block a file from what du says.
    host.root(&format!("cd {LOWERDIRS}; i=$(readlink nginx); rm nginx nginx@*.json; mv $i nginx.erofs")).ok();
    let told = usage(&host);
    let counted = told["layers"].as_array().unwrap().iter().find(|layer| layer["name"] == "nginx").unwrap();
    let counted = counted["directory"].as_u64().unwrap();
    assert!(counted.abs_diff(nginx) * 50 < nginx, "{counted} is not about {nginx}");

    // Who is gone, or not jailed any more, has changes still.
    host.root("userdel nginx2").ok();
    let told = usage(&host);
    let gone = told["users"].as_array().unwrap().iter().find(|user| user["user"] == "nginx2").unwrap();
    assert_eq!(gone["profile"], Value::Null);
    assert_eq!(gone["one_by_one"], upper("nginx2"));
}

#[test]
fn list_status_and_check_tell_generations() {
    lab::require_root!();
    let host = crate::generations::adopted();
    let first = crate::generations::target(&host);
    host.ssh("alice", "true").ok();
    let second = crate::generations::another(&host, "two");
    let layers = |user: &str| {
        let status: Value =
            serde_json::from_str(&host.root(&format!("ojail status {user} --json")).text()).unwrap();
        let jail = crate::common::jail(&host, user);
        if let Some(jail) = jail {
            assert_eq!(jail["layers"], status["layers"]);
        }
        status["layers"].clone()
    };
    assert_eq!(layers("alice"), serde_json::json!([first, "debian"]));
    assert_eq!(layers("carl"), serde_json::json!([second, "debian"]));
    let list = host.root("ojail list").text();
    assert!(list.contains("LAYERS") && list.contains(&first), "{list}");
    host.root("ojail stop alice").ok();
    assert_eq!(layers("alice"), serde_json::json!([second, "debian"]));

    // Made on the first, and the base is the second.
    host.root(&format!(
        "cd {LOWERDIRS}; mkdir -m 755 top; ojail layer adopt top; sed -i 's/\"from\": \\[\\]/\"from\": [\"{first}\"]/' top@*.json"
    ))
    .ok();
    host.write(
        "/etc/ojail/ojail.toml",
        0o644,
        "[profiles.extra]\nlayers = [\"top\", \"extra\", \"debian\"]\n\n[[rules]]\ngroup = \"jailed\"\nprofile = \"extra\"\n",
    );
    let warned = || host.root("ojail check").run().stdout;
    let told = warned();
    assert!(told.contains(&format!("was made on {first}, and stands on {second}")), "{told}");
    assert!(told.contains("make top anew on extra"), "{told}");
    host.root(&format!("ojail layer rollback extra --to {}", first.split('@').nth(1).unwrap())).ok();
    assert!(!warned().contains("and stands on"));
    // Names for shells.
    let names = host.root("ojail complete layers").text();
    for name in ["debian", "extra", "top", &first, &second] {
        assert!(names.lines().any(|line| line == name), "{name}: {names}");
    }
}
