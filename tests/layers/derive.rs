//! `ojail layer derive`.

use std::time::Duration;

use lab::{Host, User};

use crate::common::{SOON, until};
use crate::{LOWERDIRS, complaint, failed, killed, layer, log_of, record, refused, remains, state};

/// What installs takes seconds, and much longer on a busy machine.
const LONG: Duration = Duration::from_secs(200);

const CONFIG: &str = r#"
[profiles.nginx]
layers = ["nginx", "debian"]
root = true
network = "none"

[[rules]]
group = "jailed"
profile = "nginx"
"#;

fn host() -> Host {
    lab::host().user(User::new("alice").groups(["jailed"])).layer("debian").config(CONFIG).pam("sshd").start()
}

/// What a layer has in it besides directories, below its own root.
fn files(host: &Host, name: &str) -> Vec<String> {
    let found = host.root(&format!("cd {LOWERDIRS}/{name}/ && find . ! -type d | sort")).text();
    found.lines().map(|line| line.trim_start_matches("./").to_owned()).collect()
}

#[test]
fn packages_with_users_services_and_capabilities_become_a_clean_layer() {
    lab::require_root!();
    let host = host();
    let mirror = host.mirror();
    // Services that start at once would be seen; and of its own the layer has nothing of whom the jail was.
    let install = format!(
        "echo '{}' > /etc/apt/sources.list && apt-get update && apt-get install -y --no-install-recommends nginx-light iputils-ping libcap2-bin cron && \
         setcap cap_net_raw=ep /usr/bin/ping && adduser --system --group tester && id && ps ax",
        mirror.line()
    );
    let derive = format!("ojail layer derive nginx --from debian -- sh -c \"{install}\"");
    let said = host.root(&derive).within(LONG).ok();
    assert!(said.stdout.starts_with("nginx is nginx@"), "{said}");
    assert_eq!((said.stdout.lines().count(), complaint(&said)), (1, ""), "{said}");
    let log = log_of(&host, "nginx");
    for words in [
        "Setting up nginx-light",
        "uid=0(root) gid=0(root)",
        "invoke-rc.d: policy-rc.d denied execution of start",
    ] {
        assert!(log.contains(words), "{log}\nlacks: {words}");
    }
    for service in ["nginx: master", "/usr/sbin/cron"] {
        assert!(!log.contains(service), "{log}\nhas: {service}");
    }
    let made = record(&host, "nginx");
    assert_eq!((&made["how"], &made["from"]), (&"derive".into(), &serde_json::json!(["debian"])));
    assert_eq!(made["command"][2], "derive");
    assert_eq!(remains(&host), "");

    let files = files(&host, "nginx");
    for path in ["usr/sbin/nginx", "etc/passwd", "var/lib/dpkg/status", "etc/apt/sources.list"] {
        assert!(files.iter().any(|file| file == path), "{path} is not in\n{}", files.join("\n"));
    }
    let noise = [
        "var/cache/apt",
        "var/lib/apt/lists",
        "run",
        "tmp",
        "var/tmp",
        "usr/sbin/policy-rc.d",
        "usr/bin/ojail-shell",
        "home",
        "etc/sudoers.d",
        "etc/resolv.conf",
        "etc/hosts",
        "var/log/dpkg.log",
        "var/log/apt",
        "var/log/alternatives.log",
        "var/lib/dpkg/status-old",
    ];
    let left: Vec<_> = files
        .iter()
        .filter(|file| noise.iter().any(|noise| std::path::Path::new(file).starts_with(noise)))
        .collect();
    assert_eq!(left, Vec::<&String>::new());
    let nobody = host.root(&format!("cd {LOWERDIRS}/nginx/ && grep -rl ojail-run . ; cd etc && grep -c ^tester: passwd group && getcap ../usr/bin/ping"));
    assert_eq!(nobody.text(), "passwd:1\ngroup:1\n../usr/bin/ping cap_net_raw=ep");
    let empty = host
        .root(&format!(
            "cd {LOWERDIRS}/nginx/ && find home srv root run tmp boot media mnt -maxdepth 0 -empty 2>/dev/null; true"
        ))
        .text();
    assert_eq!(empty, "", "directories that were only touched");

    // As a layer it does what it was made for: an owner of a package, a service, a file capability.
    assert_eq!(host.ssh("alice", "sudo nginx && ping -c1 -q 127.0.0.1 >/dev/null && stat -c %U /var/lib/nginx/body && dpkg -l nginx-light | tail -1 | cut -c1-2").text(), "www-data\nii");
}

#[test]
fn what_cannot_be_derived_is_refused_in_a_sentence_and_leaves_nothing() {
    lab::require_root!();
    let host = host();
    host.ssh("alice", "true").run();
    host.root("mkdir -p /srv/overlay/upperdirs/alice; chmod 700 /srv/overlay/upperdirs; mkdir /srv/overlay/lowerdirs/hand").ok();
    host.root("ojail layer derive made --from debian -- touch /made").ok();
    host.root("ojail stop alice").run();
    for (command, why) in [
        (
            "ojail layer derive x --from nowhere -- true",
            "\"nowhere\": there is no /srv/overlay/lowerdirs/nowhere",
        ),
        ("ojail layer derive x --from made@0123456789ab,debian -- true", "made@0123456789ab"),
        ("ojail layer derive a/b --from debian -- true", "\"a/b\": a layer's name has letters"),
        ("ojail layer derive made@0123456789ab --from debian -- true", "named without \"@\""),
        ("ojail layer derive hand --from debian -- true", "\"hand\": is there already, made by hand"),
        ("ojail layer derive made --from made,debian -- true", "cannot be derived from itself"),
        ("ojail layer derive x --from debian,debian -- true", "is named twice"),
        ("ojail layer derive x --from alice,debian -- true", "`ojail layer promote alice NAME`"),
        (
            "ojail layer derive x --from /srv/overlay/upperdirs/alice -- true",
            "`ojail layer promote alice NAME`",
        ),
        (
            "ojail layer derive x --from debian -- sh -c 'touch /x; echo E: no >&2; exit 7'",
            "the command failed with status 7 (E: no); all that was said is in /var/log/ojail/layer-x-",
        ),
        ("ojail layer derive x --from debian -- nonsense", "the command failed with status 127"),
        ("ojail layer derive x --from debian -- sh -c 'kill -9 $$'", "the command failed with status 137"),
    ] {
        refused(&host, command, why);
    }
    assert_eq!(host.root("ojail layer derive x --from debian").fails().code(), Some(2));
    let small = lab::host().config(CONFIG).small_disk("40M").start();
    small
        .root("mkdir -p /srv/overlay/upperdirs /srv/overlay/lowerdirs/debian; chmod 700 /srv/overlay/*dirs")
        .ok();
    refused(&small, "ojail layer derive x --from debian -- true", "are needed; make room first");
}

#[test]
fn a_layer_is_derived_again_on_generations_and_without_a_network() {
    lab::require_root!();
    let host = host();
    host.root("ojail layer derive one --from debian --network none -- sh -c 'cat /proc/net/dev | wc -l > /lines; rm /etc/issue; echo a > /etc/motd'").ok();
    assert_eq!(files(&host, "one"), ["etc/issue", "etc/motd", "lines"]);
    // Two lines of a head, and the loopback.
    assert_eq!(
        host.root(&format!("cat {LOWERDIRS}/one/lines; stat -c %F {LOWERDIRS}/one/etc/issue")).text(),
        "3\ncharacter special file"
    );
    host.root(
        "ojail layer derive two --from one,debian -- sh -c 'test ! -e /etc/issue; cat /etc/motd > /copy'",
    )
    .ok();
    let one = layer(&host, "one").unwrap()["generation"].as_str().unwrap().to_owned();
    assert_eq!(record(&host, "two")["from"], serde_json::json!([format!("one@{one}"), "debian"]));
    host.root("ojail layer derive one --from debian -- sh -c 'echo b > /etc/motd'").ok();
    assert_ne!(layer(&host, "one").unwrap()["generation"], one.as_str());
    host.root(&format!(
        "ojail layer derive three --from one@{one},debian -- sh -c 'grep a /etc/motd > /copy'"
    ))
    .ok();
    // What changes nothing is an empty layer.
    host.root("ojail layer derive nothing --from debian -- sh -c 'touch /tmp/x /run/x; getent passwd root'")
        .ok();
    assert_eq!(host.root(&format!("find {LOWERDIRS}/nothing/ -mindepth 1")).text(), "");
}

#[test]
fn the_command_is_confined_as_a_users_root_is() {
    lab::require_root!();
    let host = host();
    let tries = "mount -t tmpfs none /mnt; mknod /x c 1 3; chroot /proc/1/root true; cat /srv/overlay/lowerdirs/debian/etc/shadow; \
                 unshare -U true; cat /proc/self/status; ls /home; cat /proc/self/uid_map";
    host.root(&format!("ojail layer derive x --from debian -- sh -c '{tries}; true'")).ok();
    let log = log_of(&host, "x");
    for words in [
        "mount:",
        "mknod:",
        "cat: /srv/overlay/lowerdirs/debian",
        "unshare:",
        "Seccomp:\t2",
        "CapEff:\t00000000a00425fb",
    ] {
        assert!(log.contains(words), "{log}\nlacks: {words}");
    }
    assert_eq!(files(&host, "x"), Vec::<String>::new());
}

#[test]
fn of_the_logs_the_newest_twenty_are_kept_and_nothing_else_is_removed() {
    lab::require_root!();
    let host = host();
    host.root(
        "mkdir -m 700 /var/log/ojail; cd /var/log/ojail; echo x > other.log; touch -d 2001-01-01 other.log; \
         for n in $(seq 10 39); do echo $n > layer-old-$n.log; touch -d 2001-01-$((n - 9)) layer-old-$n.log; done",
    )
    .ok();
    host.root("ojail layer derive x --from debian -- false").fails();
    let kept = host.root("ls /var/log/ojail").text();
    let old: Vec<&str> = kept.lines().filter(|name| name.starts_with("layer-old-")).collect();
    assert_eq!((old.len(), old[0]), (19, "layer-old-21.log"), "{kept}");
    assert!(kept.contains("layer-x-") && kept.contains("other.log"), "{kept}");
}

#[test]
fn a_derive_that_is_interrupted_leaves_no_trace_and_the_log_says_why() {
    lab::require_root!();
    let host = host();
    for signal in ["INT", "TERM", "HUP"] {
        // Also where the command takes it for its own end and is content.
        for command in [
            "sh -c 'touch /x; echo ready; sleep 100'",
            "sh -c 'trap \"exit 0\" INT TERM HUP; touch /x; echo ready; while :; do sleep 0.1; done'",
        ] {
            host.root("rm -rf /var/log/ojail").ok();
            let running = host
                .root(&format!("echo $$ > /tmp/pid; exec ojail layer derive x --from debian -- {command}"))
                .spawn();
            until("it runs", SOON, || {
                host.root("grep -qs ^ready /var/log/ojail/layer-x-*.log").run().status.success()
            });
            host.root(&format!("kill -{signal} $(cat /tmp/pid)")).ok();
            let output = running.finish();
            assert_eq!(output.code(), Some(1), "{output}");
            assert!(complaint(&output).contains(&format!("\"x\": interrupted by SIG{signal}")), "{output}");
            assert!(log_of(&host, "x").ends_with(&format!("ojail: interrupted by SIG{signal}")));
            assert_eq!((state(&host), remains(&host)), ("debian".to_owned(), String::new()));
        }
    }
}

#[test]
fn a_kill_or_an_error_at_any_moment_of_a_derive_leaves_the_old_or_the_new_and_the_next_clears_up() {
    lab::require_root!();
    let host = host();
    host.root("ojail layer derive t --from debian -- sh -c 'echo one > /etc/t'").ok();
    let first = layer(&host, "t").unwrap();
    let begin = format!("ojail layer rollback t --to {}", first["generation"].as_str().unwrap());
    // Times are part of a generation's name, and differ each time; its content does not.
    let content = || host.root(&format!("cat {LOWERDIRS}/t/etc/t; find {LOWERDIRS}/t/ | wc -l")).text();
    killed(&host, "ojail layer derive t --from debian -- sh -c 'echo two > /etc/t'", &begin, &content);
    failed(&host, "ojail layer derive t --from debian -- sh -c 'echo two > /etc/t'", &begin, &content);
}
