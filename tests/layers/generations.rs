//! Generations: made, taken by the next raise, gone back to, refused and removed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use lab::{Host, Running, Setup, User};
use serde_json::Value;

use crate::common::{self, SOON, calls, until};

const LOWERDIRS: &str = "/srv/overlay/lowerdirs";

/// Everybody's jail stands on `extra`, which is small and the host's own, on `debian`.
const CONFIG: &str = "[profiles.extra]\nlayers = [\"extra\", \"debian\"]\nhome = \"jail\"\n\n\
                      [[rules]]\ngroup = \"jailed\"\nprofile = \"extra\"\n";

fn setup() -> Setup {
    lab::host()
        .user(User::new("alice").groups(["jailed"]))
        .user(User::new("carl").groups(["jailed"]))
        .layer("debian")
        .config(CONFIG)
        .pam("sshd")
}

/// A host with the layer `extra`, made by hand.
fn by_hand() -> Host {
    let host = setup().start();
    made(&host, "extra", "one");
    host
}

/// A host with the layer `extra`, adopted.
pub(crate) fn adopted() -> Host {
    let host = by_hand();
    host.root("ojail layer adopt extra").ok();
    host
}

/// Makes a directory with a file that tells it from others.
fn made(host: &Host, name: &str, text: &str) {
    let make = format!(
        "set -e; cd {LOWERDIRS}; mkdir -m 755 {name} {name}/etc; echo {text} > {name}/etc/extra; \
         ln {name}/etc/extra {name}/etc/twice; mkdir {name}/closed; chmod 700 {name}/closed"
    );
    host.root(&make).ok();
}

/// Makes another generation of `extra`, as whatever makes layers does in the end. Returns what the link names now.
pub(crate) fn another(host: &Host, text: &str) -> String {
    let text = text.to_owned();
    host.inside(move || {
        let storage = ojail::config::parse(CONFIG).unwrap().storage;
        let workshop = Workshop::open(&storage).unwrap();
        let tree = workshop.place("tree");
        fs::create_dir_all(tree.join("etc")).unwrap();
        fs::write(tree.join("etc/extra"), text).unwrap();
        let made = Made { how: How::Build, command: vec!["a".into(), "test".into()], from: Vec::new() };
        let name = LayerName::parse("extra").unwrap();
        workshop.finish(&name, &tree, made, &ProgressBar::hidden()).unwrap();
    });
    target(host)
}

/// What the link of `extra` names.
pub(crate) fn target(host: &Host) -> String {
    host.root(&format!("readlink {LOWERDIRS}/extra")).text()
}
