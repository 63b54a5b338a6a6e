//! Layers: how they are made, packed, replaced and removed, and what jails that stand on them see of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]
#![allow(clippy::print_stderr, reason = "how much was tried is told, not asserted")]

#[path = "../common/mod.rs"]
mod common;

mod build;
mod derive;
mod fstab;
mod generations;
mod pack;
mod promote;
mod rebase;
mod usage;

use std::time::{Duration, Instant};

use lab::{Host, Output};
use serde_json::Value;

use crate::common::points::Act;

const LOWERDIRS: &str = "/srv/overlay/lowerdirs";

/// A line of `ojail layer list --json`: the generation that this layer is now.
#[track_caller]
fn layer(host: &Host, name: &str) -> Option<Value> {
    let list: Value = serde_json::from_str(&host.root("ojail layer list --json").text()).unwrap();
    let lines = list["layers"].as_array().unwrap();
    lines.iter().find(|line| line["name"] == name && line["current"] == true).cloned()
}

/// The record of the generation that this layer is now.
#[track_caller]
fn record(host: &Host, name: &str) -> Value {
    let generation =
        layer(host, name).unwrap_or_else(|| panic!("there is no layer {name}"))["generation"].clone();
    let path = format!("{LOWERDIRS}/{name}@{}.json", generation.as_str().unwrap());
    serde_json::from_str(&host.root("cat \"$1\"").arg(path).text()).unwrap()
}

/// Everything that the making of a layer could leave behind: in the workshop, beside the uppers, in `/run`, in the register of ids,
/// as processes and mounts.
#[track_caller]
fn remains(host: &Host) -> String {
    let files = host.root(
        "find /srv/overlay/lowerdirs/.making /srv/overlay/asidedirs/.run /srv/overlay/asidedirs/.trash /run/ojail/runs -mindepth 1 \
         2>/dev/null; find /var/lib/ojail -name '*0jail*'; grep -e /srv/overlay/lowerdirs/.making /proc/1/mountinfo; true",
    );
    format!("{}{}", files.text(), common::namespaces(host))
}

/// What the layers are, a line each; a generation that no layer is does not count.
#[track_caller]
fn state(host: &Host) -> String {
    host.root("cd /srv/overlay/lowerdirs && for f in *; do case $f in *@* | '*') ;; *) echo \"$f $(readlink \"$f\")\" ;; esac; done").text()
}

/// Fails with status 1, one line, and this in it; and leaves all layers as they were.
#[track_caller]
fn refused(host: &Host, command: &str, why: &str) {
    let was = state(host);
    let output = host.root(command).fails();
    assert_eq!(output.code(), Some(1), "{output}");
    assert_eq!(output.stderr.trim_end().lines().count(), 1, "{output}");
    assert!(output.stderr.contains(why), "{output}\nlacks: {why}");
    assert_eq!(state(host), was, "{command}");
    assert_eq!(remains(host), "", "{command}");
}

/// The only log of this layer's.
#[track_caller]
fn log_of(host: &Host, name: &str) -> String {
    host.root("test $(stat -c %a /var/log/ojail) = 700; cd /var/log/ojail; test $(ls layer-$1-*.log | wc -l) = 1; test $(stat -c %a layer-$1-*.log) = 600; cat layer-$1-*.log")
        .arg(name)
        .text()
}

/// Kills a command wherever it may have changed something, and looks each time: the layers are as before it or as after it, and the next
/// call of it comes to the end and clears what was left. `begin` makes the layers as before.
#[track_caller]
fn killed(host: &Host, command: &str, begin: &str, state: &dyn Fn() -> String) {
    let act = Act { host, command, begin: begin.into(), state };
    let (old, new) = act.states();
    let (mut before, mut behind) = (0, 0);
    act.kill(|at| {
        let now = state();
        if now == old {
            before += 1;
        } else {
            assert_eq!(now, new, "{at}");
            behind += 1;
        }
        orphans_end(host);
        host.root(command).ok();
        assert_eq!(state(), new, "{at}, and once more");
        let since = Instant::now();
        // Of a jail that was on its way up before.
        while !remains(host).is_empty() && since.elapsed() < common::SOON {
            orphans_end(host);
            host.root("ojail tidy").ok();
        }
        assert_eq!(remains(host), "", "{at}, and once more");
        host.root("ojail layer verify").ok();
    });
    eprintln!("{command}: {before} before the step and {behind} behind it");
    assert!(before > 20 && behind > 0, "{command}: {before} before, {behind} behind");
}

/// Has one system call after the other of a command fail, and looks each time: it is done nevertheless, or it says why not in one line and
/// the layers are as before; and the next call of it comes to the end and clears what was left. `begin` makes the layers as before.
#[track_caller]
fn failed(host: &Host, command: &str, begin: &str, state: &dyn Fn() -> String) {
    let act = Act { host, command, begin: begin.into(), state };
    let (old, new) = act.states();
    let mut left = 0;
    let errors = act.fail_and(|at, output| {
        assert_eq!(state(), if output.status.success() { &*new } else { &*old }, "{at}: {output}");
        orphans_end(host);
        left += usize::from(!remains(host).is_empty());
        host.root(command).ok();
        assert_eq!(state(), new, "{at}, and once more");
        assert_eq!(remains(host), "", "{at}, and once more");
        host.root("ojail layer verify").ok();
    });
    eprintln!("{command}: {left} left something to the next");
    assert!(errors > 20, "{command}: {errors} errors only");
}

/// Waits until no jail is left of a command that was killed. One that nobody had joined yet stays for half a minute; that is not waited
/// for.
#[track_caller]
fn orphans_end(host: &Host) {
    let since = Instant::now();
    common::until("its jail has ended", common::SOON, || {
        if since.elapsed() > Duration::from_secs(4) {
            host.root("pkill -KILL -x ojail-init").run();
        }
        common::namespaces(host).is_empty()
    });
}

/// What a command said on standard error.
fn complaint(output: &Output) -> &str {
    output.stderr.trim_end()
}
