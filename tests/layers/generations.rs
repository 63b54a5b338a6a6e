//! Generations: made, taken by the next raise, gone back to, refused and removed.

use std::fs;
use std::time::Duration;

use lab::{Host, Running, Setup, User};
use serde_json::Value;

use crate::common::points::Act;
use crate::common::{SOON, init, sessions, until};

pub(crate) const LOWERDIRS: &str = "/srv/overlay/lowerdirs";

/// Whole Debians are copied, digested and packed.
const LONG: Duration = Duration::from_secs(400);

/// Everybody's jail stands on `extra`, which is small and the host's own, on `debian`.
const CONFIG: &str = "[profiles.extra]\nlayers = [\"extra\", \"debian\"]\nhome = \"jail\"\n\n\
                      [[rules]]\ngroup = \"jailed\"\nprofile = \"extra\"\n";

pub(crate) fn setup() -> Setup {
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
    let make = format!(
        "set -e; cd {LOWERDIRS}; mkdir -m 755 extra extra/etc; echo one > extra/etc/extra; \
         ln extra/etc/extra extra/etc/twice; mkdir -m 700 extra/closed"
    );
    host.root(&make).ok();
    host
}

/// A host with the layer `extra`, adopted.
pub(crate) fn adopted() -> Host {
    let host = by_hand();
    host.root("ojail layer adopt extra").ok();
    host
}

/// Makes another generation of `extra`: by hand where the link was, and adopted. Returns what the link names now.
pub(crate) fn another(host: &Host, text: &str) -> String {
    make(host, text, &[]);
    target(host)
}

/// The same, with a record that says by which command and on what.
fn make(host: &Host, text: &str, from: &[&str]) {
    let script = format!(
        "set -e; cd {LOWERDIRS}; rm -f extra; mkdir -m 755 extra extra/etc; echo {text} > extra/etc/extra; \
         touch -d @1000000000 extra extra/etc extra/etc/extra; ojail layer adopt extra"
    );
    host.root(&script).ok();
    let path = host.path(LOWERDIRS).join(format!("{}.json", target(host)));
    let mut record: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    if !from.is_empty() {
        record["how"] = "build".into();
        record["command"] = serde_json::json!(["a", "test"]);
        record["from"] = serde_json::json!(from);
        fs::write(&path, record.to_string()).unwrap();
    }
}

/// What the link of `extra` names.
pub(crate) fn target(host: &Host) -> String {
    host.root(&format!("readlink {LOWERDIRS}/extra")).text()
}

/// The lines of `ojail layer list --json` of a layer.
#[track_caller]
pub(crate) fn listed(host: &Host, name: &str) -> Vec<Value> {
    let list = host.root("ojail layer list --json").text();
    let list: Value = serde_json::from_str(&list).unwrap();
    list["layers"].as_array().unwrap().iter().filter(|line| line["name"] == name).cloned().collect()
}

/// Refused with this text, in one line, and nothing in the directory of layers is different.
#[track_caller]
pub(crate) fn refused(host: &Host, command: &str, text: &str) {
    let before = names(host);
    let output = host.root(command).fails();
    assert_eq!(output.code(), Some(1), "{output}");
    assert!(output.stderr.contains(text), "{text:?} is not in {output}");
    assert_eq!(output.stderr.lines().count(), 1, "{output}");
    assert_eq!(names(host), before, "{command}");
}

/// What is in the directory of layers and in workshops, and where links lead.
pub(crate) fn names(host: &Host) -> String {
    host.root(&format!(
        "cd {LOWERDIRS}; find . -maxdepth 1 -printf '%f %y %l\\n' | sort; ls -A .making 2>/dev/null"
    ))
    .text()
}

/// A session that lasts.
fn session<'h>(host: &'h Host, user: &str) -> Running<'h> {
    let open = sessions(host, user);
    let running = host.ssh(user, "echo in; cat").spawn();
    until("a session is open", SOON, || sessions(host, user) > open);
    running
}

#[test]
fn adopting_gives_a_layer_its_first_generation_and_disturbs_no_jail() {
    lab::require_root!();
    let host = by_hand();
    let before = host.root(&format!("stat -c %i {LOWERDIRS}/extra")).text();
    let alice = session(&host, "alice");
    let pid = init(&host, "alice");
    host.root("ojail layer adopt extra").ok();
    let generation = target(&host);
    assert!(generation.starts_with("extra@") && generation.len() == "extra@".len() + 12, "{generation}");
    assert_eq!(host.root(&format!("stat -c %i {LOWERDIRS}/{generation}")).text(), before);
    assert_eq!(host.ssh("alice", "cat /etc/extra").text(), "one");
    assert_eq!(init(&host, "alice"), pid, "the jail is another");
    let lines = listed(&host, "extra");
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["jails"], serde_json::json!(["alice"]));
    assert_eq!(lines[0]["profiles"], serde_json::json!(["extra"]));
    assert_eq!(lines[0]["how"], "adopt");
    host.root("ojail layer verify extra").ok();
    refused(&host, "ojail layer adopt extra", "has generations already");
    drop(alice);
}

#[test]
fn a_session_keeps_its_generation_and_the_next_raise_takes_the_new() {
    lab::require_root!();
    let host = adopted();
    let first = target(&host);
    let alice = session(&host, "alice");
    let pid = init(&host, "alice");
    let second = another(&host, "two");
    assert_ne!(first, second);
    // Hers while it is in use, for new sessions too; the new one for who comes anew.
    assert_eq!(host.ssh("alice", "cat /etc/extra").text(), "one");
    assert_eq!(host.ssh("carl", "cat /etc/extra").text(), "two");
    let lines = listed(&host, "extra");
    let jails: Vec<(bool, &Value)> =
        lines.iter().map(|line| (line["current"] == true, &line["jails"])).collect();
    assert!(jails.contains(&(true, &serde_json::json!(["carl"]))), "{lines:?}");
    assert!(jails.contains(&(false, &serde_json::json!(["alice"]))), "{lines:?}");
    refused(&host, &format!("ojail layer remove {first}"), "in use by alice");
    // Empty, it makes way, although it was to stay warm.
    drop(alice);
    until("no session is open", SOON, || sessions(&host, "alice") == 0);
    assert_eq!(init(&host, "alice"), pid, "it is warm no more");
    assert_eq!(host.ssh("alice", "cat /etc/extra").text(), "two");
    assert_ne!(init(&host, "alice"), pid);
    host.root(&format!("ojail layer remove {first}")).ok();
    assert_eq!(listed(&host, "extra").len(), 1);
}

#[test]
fn a_live_session_goes_on_across_an_upgrade_of_its_base() {
    lab::require_root!();
    let config = "[profiles.base]\nlayers = [\"base\"]\nroot = true\nhome = \"jail\"\n\n[[rules]]\ngroup = \"jailed\"\nprofile = \"base\"\n";
    let host = setup().config(config).start();
    // A whole Debian, of which an upgrade replaces a file, removes one and brings one.
    let build = "ojail layer build base --from-dir /srv/overlay/tree";
    let first = format!(
        "set -e; mkdir /srv/overlay/tree; cp -a {LOWERDIRS}/debian/. /srv/overlay/tree; cd /srv/overlay/tree/etc; \
         echo one > version; echo text > old; {build}"
    );
    host.root(&first).within(LONG).ok();
    let base = || host.root(&format!("readlink {LOWERDIRS}/base")).text();
    let old = base();

    let mut session = host.ssh("alice", "sh").within(LONG).spawn();
    // It writes all the time: files of its own, and files of the base.
    session.write(
        "exec 3< /etc/old; sudo sh -c 'echo mine >> /etc/motd'; echo begun\n\
         while test ! -e ~/enough; do i=$((i + 1)); echo $i >> ~/lines; sleep 0.01; done & \n",
    );
    session.wait_for("begun");
    let pid = init(&host, "alice");
    let written = || -> usize { host.ssh("alice", "wc -l < lines").text().parse().unwrap() };
    until("the session writes", SOON, || written() > 3);

    let upgrade = format!(
        "set -e; cd /srv/overlay/tree/etc; echo two > version; echo two >> motd; rm old; echo text > new; {build}"
    );
    host.root(&upgrade).within(LONG).ok();
    let new = base();
    assert_ne!(old, new);
    host.root("ojail layer pack base").within(LONG).ok();

    // What was open, what was not, what is changed now: all of it is as it was.
    session.write("cat /etc/version <&3; cat <&3; ls /etc/old /etc/new; sudo sed -i s/one/hers/ /etc/version; cat /etc/version; echo looked\n");
    let told = session.wait_for("looked");
    assert_eq!(told, "begun\none\ntext\n/etc/old\nhers\nlooked\n");
    let then = written();
    until("it goes on writing", SOON, || written() > then);
    assert!(session.is_running());

    // A second session is in the same jail, and the administrator sees on what.
    assert_eq!(host.ssh("alice", "cat /etc/version").text(), "hers");
    assert_eq!(init(&host, "alice"), pid, "the second session is in another jail");
    assert_eq!(crate::common::jail(&host, "alice").unwrap()["layers"], serde_json::json!([old]));
    let list = host.root("ojail list").text();
    assert!(list.contains(&old) && !list.contains(&new), "{list}");
    assert_eq!(
        host.ssh("carl", "cat /etc/version; ls /etc/old /etc/new 2>/dev/null || true").text(),
        "two\n/etc/new"
    );

    // Nobody takes it away meanwhile.
    refused(&host, &format!("ojail layer remove {old}"), "in use by alice; `ojail stop` ends a jail");
    refused(&host, "ojail layer remove base", "profile base names it");
    host.root("ojail layer prune --keep 0").within(LONG).ok();
    assert_eq!(listed(&host, "base").len(), 2);
    host.root("ojail layer verify base").within(LONG).ok();

    // The end of all sessions is the end of the jail; the next login has the new base, and below it the same changes.
    session.write("touch ~/enough; wait; echo $(sort -n ~/lines | uniq | wc -l) $(tail -1 ~/lines)\n");
    let last = session.finish().ok();
    let counted = last.stdout.lines().last().unwrap();
    let (lines, number) = counted.split_once(' ').unwrap();
    assert_eq!(lines, number, "no line was lost");
    until("no session is open", SOON, || sessions(&host, "alice") == 0);
    let after = host
        .ssh("alice", "cat /etc/version; tail -1 /etc/motd; ls /etc/old /etc/new 2>/dev/null; wc -l < lines");
    assert_eq!(after.text(), format!("hers\nmine\n/etc/new\n{lines}"));
    assert_ne!(init(&host, "alice"), pid);
    assert_eq!(crate::common::jail(&host, "alice").unwrap()["layers"], serde_json::json!([new]));
    host.root("ojail layer prune --keep 0").within(LONG).ok();
    assert_eq!(listed(&host, "base").len(), 1);
}

#[test]
fn a_layer_goes_back_and_forth_between_its_generations() {
    lab::require_root!();
    let host = adopted();
    let generations = [target(&host), another(&host, "two"), another(&host, "three")];
    let text = || host.ssh("alice", "cat /etc/extra").text();
    assert_eq!(text(), "three");
    host.root("ojail layer rollback extra").ok();
    assert_eq!((target(&host), text()), (generations[1].clone(), "two".into()));
    host.root("ojail layer rollback extra").ok();
    assert_eq!(text(), "one");
    refused(&host, "ojail layer rollback extra", "no earlier generation");
    let id = generations[2].split('@').nth(1).unwrap();
    host.root(&format!("ojail layer rollback extra --to {id}")).ok();
    assert_eq!(text(), "three");
    refused(&host, "ojail layer rollback extra --to 0123456789ab", "there is no such generation");
    refused(&host, "ojail layer rollback extra --to ../../x", "12 hexadecimal digits");
    refused(&host, &format!("ojail layer rollback {}", generations[0]), "name the layer alone");
    // The same content again would be the same generation again.
    host.root(&format!(
        "set -e; cd {LOWERDIRS}; mv extra link; mkdir extra; cp -a {}/. extra",
        generations[1]
    ))
    .ok();
    refused(&host, "ojail layer adopt extra", "has the same content already");
    host.root(&format!("cd {LOWERDIRS}; rm -r extra; mv link extra")).ok();
    assert_eq!(listed(&host, "extra").len(), 3);
}

#[test]
fn a_profile_may_name_one_generation() {
    lab::require_root!();
    let host = adopted();
    let first = target(&host);
    host.write("/etc/ojail/ojail.toml", 0o644, &CONFIG.replace("\"extra\", ", &format!("\"{first}\", ")));
    another(&host, "two");
    assert_eq!(host.ssh("alice", "cat /etc/extra").text(), "one");
    refused(&host, "ojail layer remove extra", "profile extra names it");
    refused(&host, &format!("ojail layer remove {first}"), "profile extra names it");
    // Packed it is the same generation, and the jail is not replaced for that.
    let pid = init(&host, "alice");
    host.root(&format!("ojail layer pack {first}")).ok();
    assert_eq!(host.ssh("alice", "cat /etc/extra").text(), "one");
    assert_eq!(init(&host, "alice"), pid);
    host.root("ojail stop alice").ok();
    host.root("ojail layer prune --keep 0").ok();
    assert_eq!(host.ssh("alice", "cat /etc/extra").text(), "one");
    let kinds = listed(&host, "extra").into_iter().find(|line| line["current"] == false).unwrap();
    assert_eq!(kinds["profiles"], serde_json::json!(["extra"]));
    let twice = CONFIG.replace("\"extra\", ", &format!("\"{first}\", \"extra\", "));
    host.write("/etc/ojail/ojail.toml", 0o644, &twice);
    host.ssh("carl", "true").fails();
    host.wait_for_log("is named twice");
    host.write("/etc/ojail/ojail.toml", 0o644, &CONFIG.replace("\"extra\", ", "\"extra@0123456789ab\", "));
    host.ssh("carl", "true").fails();
    host.wait_for_log("there is no /srv/overlay/lowerdirs/extra@0123456789ab");
}

#[test]
fn old_generations_go_and_what_is_needed_stays() {
    lab::require_root!();
    let host = adopted();
    let mut all = vec![target(&host)];
    let alice = session(&host, "alice");
    for text in ["two", "three", "four", "five"] {
        all.push(another(&host, text));
    }
    // "one" is in use, "two" is pinned, "five" is current, "four" for a rollback.
    let pinned = CONFIG
        .replace("[[rules]]", &format!("[profiles.old]\nlayers = [\"{}\", \"debian\"]\n\n[[rules]]", all[1]));
    host.write("/etc/ojail/ojail.toml", 0o644, &pinned);
    let is = || all.iter().map(|name| host.path(LOWERDIRS).join(name).exists()).collect::<Vec<_>>();
    let dry = host.root("ojail layer prune --dry-run").text();
    assert!(dry.contains(&format!("{} (directory, ", all[2])) && dry.lines().count() == 2, "{dry}");
    assert_eq!(is(), [true; 5]);
    host.root("ojail layer prune extra --keep 2").ok();
    assert_eq!(is(), [true; 5]);
    host.root("ojail layer prune").ok();
    assert_eq!(is(), [true, true, false, true, true]);
    // After a rollback nothing is old that was made later.
    host.root("ojail layer rollback extra && ojail layer prune --keep 0").ok();
    assert_eq!(is(), [true, true, false, true, true]);
    drop(alice);
    // What alice's upper was last raised on is what `ojail conflicts` compares with.
    host.root("ojail stop alice && ojail layer prune --keep 0").ok();
    assert_eq!(is(), [true, true, false, true, true]);
    host.root("ojail reset alice && ojail layer prune --keep 0").ok();
    assert_eq!(is(), [false, true, false, true, true]);
    let left = host.root(&format!("cd {LOWERDIRS}; ls -d *.json | wc -l; ls -A .making")).text();
    assert_eq!(left, "3");
}

#[test]
fn what_cannot_be_is_refused_with_a_sentence() {
    lab::require_root!();
    let host = adopted();
    for verb in ["adopt", "rollback", "verify", "remove", "pack", "unpack", "inspect", "prune"] {
        refused(&host, &format!("ojail layer {verb} nothing"), "layer \"nothing\"");
        refused(&host, &format!("ojail layer {verb} ../../etc"), "letters, digits");
        refused(&host, &format!("ojail layer {verb} extra@x"), "12 hexadecimal digits");
        refused(&host, &format!("ojail layer {verb} a/b"), "letters, digits");
    }
    refused(&host, "ojail layer prune extra@0123456789ab", "name the layer alone");
    refused(&host, "ojail layer remove extra", "profile extra names it");
    // Mounted from elsewhere, as the lab's layers are.
    refused(&host, "ojail layer adopt debian", "it is a mount point");
    for verb in ["pack", "rollback", "remove", "verify"] {
        refused(&host, &format!("ojail layer {verb} debian"), "ojail layer adopt debian");
    }
    // The one that the layer is, while there are others.
    host.write("/etc/ojail/ojail.toml", 0o644, &CONFIG.replace("\"extra\", ", ""));
    let second = another(&host, "two");
    refused(&host, &format!("ojail layer remove {second}"), "is what the layer is now");
    host.root("ojail layer remove extra").ok();
    assert_eq!(names(&host), ". d \n.making d \ndebian d");
    // A link that is none of ours.
    host.root(&format!("ln -s /etc {LOWERDIRS}/out")).ok();
    host.write("/etc/ojail/ojail.toml", 0o644, &CONFIG.replace("\"extra\", ", "\"out\", "));
    host.ssh("alice", "true").fails();
    host.wait_for_log("is a link to /etc");
}

#[test]
fn verify_tells_what_is_not_as_it_was_made() {
    lab::require_root!();
    let host = adopted();
    let first = target(&host);
    another(&host, "two");
    assert!(host.root("ojail layer verify").text().contains("as it was made"));
    host.root(&format!("chmod 711 {LOWERDIRS}/{first}/closed")).ok();
    let output = host.root("ojail layer verify --json").fails();
    let verdicts: Value = serde_json::from_str(&output.stdout).unwrap();
    let bad: Vec<&Value> =
        verdicts["layers"].as_array().unwrap().iter().filter(|verdict| verdict["good"] == false).collect();
    assert_eq!(bad.len(), 1);
    assert_eq!(bad[0]["name"], *first);
    assert!(bad[0]["why"].as_str().unwrap().contains("CHANGED"));
    // Neither packed, so that the image would be what nobody made.
    refused(&host, &format!("ojail layer pack {first}"), "is not what it was made to be");
    host.root(&format!("chmod 700 {LOWERDIRS}/{first}/closed; ojail layer verify")).ok();
}

#[test]
fn inspect_tells_what_a_layer_is_made_of() {
    lab::require_root!();
    let host = by_hand();
    let status = |packages: &[&str]| {
        let paragraph = |package: &&str| {
            format!("Package: {package}\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n")
        };
        packages.iter().map(paragraph).collect::<Vec<_>>().join("\n")
    };
    let base = format!("{LOWERDIRS}/base/var/lib/dpkg/status");
    host.write(&base, 0o644, &status(&["bash", "dpkg"]));
    host.root(&format!("chmod 755 {LOWERDIRS}/base; ojail layer adopt base")).ok();
    let base = host.root(&format!("readlink {LOWERDIRS}/base")).text();
    host.root(&format!("rm -r {LOWERDIRS}/extra")).ok();
    make(&host, "one", &[&base]);
    let inspect = |name: &str| -> Value {
        serde_json::from_str(&host.root(&format!("ojail layer inspect {name} --json")).text()).unwrap()
    };
    let told = inspect("extra");
    assert_eq!(told["how"], "build");
    assert_eq!(told["command"], serde_json::json!(["a", "test"]));
    assert_eq!(told["from"], serde_json::json!([base]));
    assert_eq!(told["packages"], Value::Null);
    // As one that was derived from it is.
    let own = format!("{LOWERDIRS}/{}/var/lib/dpkg/status", target(&host));
    host.write(&own, 0o644, &status(&["bash", "dpkg", "nginx"]));
    let told = inspect("extra");
    assert_eq!(told["without_those_of"], *base);
    assert_eq!(
        told["packages"],
        serde_json::json!([{"name": "nginx", "version": "1", "architecture": "all"}])
    );
    let text = host.root("ojail layer inspect extra").text();
    assert!(text.contains("nginx 1 all") && text.contains("a test"), "{text}");
    assert_eq!(inspect("base")["packages"].as_array().unwrap().len(), 2);
    // A link in a layer leads to the layer's files.
    host.write("/etc/outside", 0o644, &status(&["outside"]));
    host.root(&format!("ln -sf /etc/outside {own}")).ok();
    assert_eq!(inspect("extra")["packages"], Value::Null);
    assert_eq!(inspect("debian")["made"], Value::Null);
    assert!(inspect("debian")["packages"].as_array().unwrap().len() > 50);
}

/// What of `extra` an administrator and jails see: what it is now, its generations, and what they have in them.
fn state(host: &Host) -> String {
    let script = format!(
        "cd {LOWERDIRS}; cat extra/etc/extra; readlink extra; for f in extra*; do [ -L $f ] || echo $f; done; \
         cat extra@*/etc/extra; cat extra@*.json | grep digest"
    );
    host.root(&script).run().stdout
}

/// Kills a command at each call, and then has its calls fail: the layer is one of the two all the time, the next call of it comes to the
/// end, and leaves nothing.
pub(crate) fn interrupted(
    host: &Host,
    command: &str,
    begin: &str,
    state: &dyn Fn() -> String,
    usable: &dyn Fn(&str),
) {
    let begin =
        format!("find {LOWERDIRS} -mindepth 1 -maxdepth 1 ! -name debian -exec rm -rf {{}} +; {begin}");
    let act = Act { host, command, begin, state };
    let (old, new) = act.states();
    let look = |at: &str| {
        usable(at);
        let now = state();
        let again = host.root(command).run();
        assert!(again.status.success() || now == new, "{at}: {again}");
        // Whatever comes next clears.
        host.root("ojail layer verify").ok();
        assert_eq!(state(), new, "{at}, and once more; before {old}, between {now}");
        assert_eq!(host.root(&format!("ls -A {LOWERDIRS}/.making")).text(), "", "{at}, and once more");
        assert!(!host.mountinfo().contains("/.making/"), "{at}");
    };
    let points = act.kill(look);
    assert!(points > 10, "{points} points");
    let errors = act.fail_and(|at, output| {
        if output.status.success() {
            assert_eq!(state(), new, "{at}: {output}");
        }
        look(&format!("{at}: {output}"));
    });
    assert!(errors > 20, "{errors} errors");
}

/// A copy of a host's layers, and how to have them again.
pub(crate) fn kept(host: &Host, name: &str) -> String {
    host.root(&format!("mkdir /srv/overlay/{name}; cp -a {LOWERDIRS}/extra* /srv/overlay/{name}")).ok();
    format!("cp -a /srv/overlay/{name}/. {LOWERDIRS}; chmod 700 {LOWERDIRS}")
}

#[test]
fn a_kill_or_an_error_at_any_moment_of_adopt_rollback_prune_and_remove_leaves_the_old_or_the_new() {
    lab::require_root!();
    let host = by_hand();
    let by_hand = kept(&host, "by-hand");
    let state = || state(&host);
    let is = |texts: &'static [&str]| {
        let host = &host;
        move |at: &str| {
            let text = host.root(&format!("cat {LOWERDIRS}/extra/etc/extra")).run().text();
            assert!(texts.contains(&&*text), "{at}: {text:?}");
        }
    };
    interrupted(&host, "ojail layer adopt extra", &by_hand, &state, &is(&["one"]));
    host.root(&format!("rm -rf {LOWERDIRS}/extra*; {by_hand}; ojail layer adopt extra")).ok();
    for text in ["two", "three"] {
        another(&host, text);
    }
    let three = kept(&host, "three");
    // Not to the one before: once more would be one too many.
    let first = listed(&host, "extra").pop().unwrap();
    let to = format!("ojail layer rollback extra --to {}", first["generation"].as_str().unwrap());
    interrupted(&host, &to, &three, &state, &is(&["one", "three"]));
    interrupted(&host, "ojail layer prune --keep 0", &three, &state, &is(&["three"]));
    host.write("/etc/ojail/ojail.toml", 0o644, &CONFIG.replace("\"extra\", ", ""));
    interrupted(&host, "ojail layer remove extra", &three, &state, &is(&["three", ""]));
}
