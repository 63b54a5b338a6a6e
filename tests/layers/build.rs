//! `ojail layer build`.

use std::time::Duration;

use lab::User;

use crate::common::points::Act;
use crate::common::{SOON, until};
use crate::{LOWERDIRS, complaint, failed, killed, layer, log_of, record, refused, remains, state};

/// A build takes some ten seconds, and much longer on a busy machine.
const LONG: Duration = Duration::from_secs(300);

const CONFIG: &str = "[profiles.debian]\nlayers = [\"debian\"]\nroot = true\n\n[[rules]]\ngroup = \"jailed\"\nprofile = \"debian\"\n";

#[test]
fn a_debian_is_built_whole_and_clean_and_somebody_logs_in_to_it() {
    lab::require_root!();
    let host =
        lab::host().user(User::new("alice").groups(["jailed"])).builder().config(CONFIG).pam("sshd").start();
    let mirror = host.mirror();
    let build = format!(
        "ojail layer build debian --suite {} --include cron --mirror '{}'",
        mirror.suite(),
        mirror.line()
    );
    let said = host.root(&build).within(LONG).ok();
    assert!(said.stdout.starts_with("debian is debian@"), "{said}");
    assert_eq!((said.stdout.lines().count(), complaint(&said)), (1, ""), "{said}");

    let generation = layer(&host, "debian").unwrap();
    assert_eq!((&generation["how"], &generation["from"]), (&"build".into(), &serde_json::json!([])));
    let command = record(&host, "debian")["command"].clone();
    assert_eq!(command.as_array().unwrap().len(), 10, "{command}");
    let log = log_of(&host, "debian");
    for words in ["mmdebstrap", "I: extracting archives", "Setting up sudo", "I: success"] {
        assert!(log.contains(words), "{log}\nlacks: {words}");
    }
    let left = host.root(&format!(
        "cd {LOWERDIRS}/debian && find run tmp var/tmp var/lib/apt/lists var/cache/apt var/log -type f ! -empty ; cat etc/hostname etc/resolv.conf"
    ));
    let left = left.text();
    let left: Vec<&str> =
        left.lines().filter(|line| !line.ends_with("/faillog") && !line.ends_with("/lastlog")).collect();
    assert_eq!(left, ["localhost"]);
    assert_eq!(remains(&host), "");
    assert_eq!(
        host.ssh("alice", "sudo id -u; dpkg -s cron | grep ^Status").text(),
        "0\nStatus: install ok installed"
    );
    host.sftp("alice", "ls /usr/bin/sudo").ok();

    // Once more it is another generation; who is in keeps what they have.
    host.root(&build).within(LONG).ok();
    assert_ne!(layer(&host, "debian").unwrap()["generation"], generation["generation"]);
    host.ssh("alice", "true").ok();
}

#[test]
fn what_cannot_be_built_is_refused_in_a_sentence_and_leaves_nothing() {
    lab::require_root!();
    let host = lab::host().user("alice").builder().layer("debian").config(CONFIG).small_disk("64M").start();
    host.root("mkdir -p /srv/tree /srv/overlay/upperdirs/alice; chmod 700 /srv/overlay/upperdirs; touch /srv/file; head -c 80M /dev/urandom > /srv/tree/big; tar -C /srv -cf /srv/big.tar tree")
        .ok();
    for (command, why) in [
        (
            "ojail layer build debian",
            "\"debian\": is there already, made by hand; `ojail layer adopt debian`",
        ),
        ("ojail layer build a/b", "\"a/b\": a layer's name has letters"),
        ("ojail layer build debian@0123456789ab", "named without \"@\""),
        ("ojail layer build x --suite ../x", "--suite \"../x\" is no release"),
        ("ojail layer build x --include 'vim,-x'", "--include \"-x\" is no name of a package"),
        ("ojail layer build x --mirror /srv", "--mirror \"/srv\" is no URL"),
        ("ojail layer build x", "left, and 512 MiB are needed; make room first"),
        ("ojail layer build x --from-dir /nowhere", "--from-dir /nowhere cannot be used"),
        ("ojail layer build x --from-dir /srv/file", "--from-dir /srv/file is not a directory"),
        ("ojail layer build x --from-dir /", "is above the directory of layers"),
        ("ojail layer build x --from-dir /srv/overlay/upperdirs/alice", "`ojail layer promote`"),
        ("ojail layer build x --from-dir /srv/tree", "are needed; make room first"),
        ("ojail layer build x --from-dir /dev", "something is mounted on it"),
        ("ojail layer build x --from-tar /nowhere", "cannot open /nowhere"),
        ("ojail layer build x --from-tar /srv/file", "/srv/file: is refused"),
        ("ojail layer build x --from-tar /srv/big.tar", "/srv/big.tar: is refused"),
    ] {
        refused(&host, command, why);
    }
    assert_eq!(host.root("ojail layer build x --from-dir /srv/tree --suite trixie").fails().code(), Some(2));
    let alone = lab::host().config(CONFIG).start();
    refused(&alone, "ojail layer build x", "`apt-get install mmdebstrap`");
}

#[test]
fn a_build_that_fails_is_interrupted_or_killed_leaves_nothing_and_says_where_its_log_is() {
    lab::require_root!();
    let host = lab::host().builder().config(CONFIG).start();
    refused(
        &host,
        "ojail layer build x --suite bookworm --mirror http://127.0.0.1:9/",
        "mmdebstrap failed, exit status: ",
    );
    assert!(log_of(&host, "x").contains("ojail: mmdebstrap failed"));

    let mirror = host.mirror();
    let build = format!("ojail layer build y --suite {} --mirror '{}'", mirror.suite(), mirror.line());
    let begun = || {
        let running = host.root(&format!("echo $$ > /tmp/pid; exec {build}")).within(LONG).spawn();
        until("packages are unpacked", LONG, || {
            host.root("grep -qs 'Unpacking' /var/log/ojail/layer-y-*.log").run().status.success()
        });
        running
    };
    let running = begun();
    host.root("kill -INT $(cat /tmp/pid)").ok();
    let output = running.finish();
    assert_eq!(output.code(), Some(1), "{output}");
    assert!(complaint(&output).contains("\"y\": interrupted by SIGINT"), "{output}");
    assert!(complaint(&output).contains("all that was said is in /var/log/ojail/layer-y-"), "{output}");
    assert!(log_of(&host, "y").ends_with("ojail: interrupted by SIGINT"));
    assert_eq!((state(&host), remains(&host)), (String::new(), String::new()));
    assert_eq!(host.root("ps -ef | grep '[m]mdebstrap'").run().text(), "");

    host.root("rm /var/log/ojail/layer-y-*").ok();
    let running = begun();
    host.root("kill -KILL $(cat /tmp/pid)").ok();
    running.finish();
    until("the tool has ended with it", SOON, || {
        host.root("ps -ef | grep '[m]mdebstrap'").run().text().is_empty()
    });
    assert_eq!(state(&host), "");
    assert_ne!(remains(&host), "", "what was built is not there, so nothing shows that it is cleared");
    host.root("mkdir /srv/small; echo x > /srv/small/x; ojail layer build z --from-dir /srv/small").ok();
    assert_eq!(remains(&host), "");
}

#[test]
fn all_processes_of_the_tool_have_ended_before_its_tree_is_cleared() {
    lab::require_root!();
    let host = lab::host().config(CONFIG).start();
    // Writes with fifty processes until it is killed, which takes them unlike long; they have nothing of their parent's open.
    host.root(
        r#"cat > /usr/local/sbin/mmdebstrap <<'END' && chmod +x /usr/local/sbin/mmdebstrap
#!/bin/sh
for tree; do :; done
for i in $(seq 50); do
    (for fd in $(ls /proc/self/fd); do eval "exec $fd>&-"; done
     while :; do mkdir -p "$tree/$i"; echo x > "$tree/$i/x"; rm -r "$tree/$i"; done) &
done
echo I: extracting archives
wait
END"#,
    )
    .ok();
    for signal in ["INT", "TERM", "HUP"] {
        let build = "echo $$ > /tmp/pid; exec ojail layer build x --suite bookworm";
        let running = host.root(build).within(LONG).spawn();
        until("it writes", LONG, || {
            host.root("cd /srv/overlay/lowerdirs/.making/*/tree/50").run().status.success()
        });
        host.root(&format!("kill -{signal} $(cat /tmp/pid)")).ok();
        let output = running.finish();
        assert_eq!(output.code(), Some(1), "{output}");
        assert_eq!((state(&host), remains(&host)), (String::new(), String::new()), "SIG{signal}");
    }
}

#[test]
fn a_directory_becomes_a_layer_as_it_is_and_a_kill_or_an_error_at_any_moment_leaves_the_old_or_the_new() {
    lab::require_root!();
    let host = lab::host().config(CONFIG).start();
    host.root("mkdir -p /srv/a/etc && cd /srv/a && echo one > etc/x && chown 7:8 etc/x && chmod 4755 etc/x && ln etc/x y && cp -a /srv/a /srv/b && echo two > /srv/b/etc/x").ok();
    host.root("ojail layer build t --from-dir /srv/a").ok();
    let first = layer(&host, "t").unwrap();
    assert_eq!(
        host.root(&format!("cd {LOWERDIRS}/t && stat -c '%n %a %u:%g %h' etc/x y")).text(),
        "etc/x 4755 7:8 2\ny 4755 7:8 2"
    );
    // The same content is the same generation, from wherever.
    host.root("cp -a /srv/a /srv/c; cd /srv && ojail layer build t --from-dir c").ok();
    assert_eq!(layer(&host, "t").unwrap()["generation"], first["generation"]);
    let begin = format!("ojail layer rollback t --to {}", first["generation"].as_str().unwrap());
    host.root("ojail layer build t --from-dir /srv/b").ok();
    killed(&host, "ojail layer build t --from-dir /srv/b", &begin, &|| state(&host));
    failed(&host, "ojail layer build t --from-dir /srv/b", &begin, &|| state(&host));
    // Where there was none. What is there of it is not there: not even as a generation that no layer is.
    let none = "rm -rf /srv/overlay/lowerdirs/t*";
    let all = || host.root("cd /srv/overlay/lowerdirs && ls -d t* 2>/dev/null | grep -v json; true").text();
    failed(&host, "ojail layer build t --from-dir /srv/b", none, &all);
    // After a kill, too, if only the next call is another one.
    let act = Act {
        host: &host,
        command: "ojail layer build t --from-dir /srv/b",
        begin: none.into(),
        state: &all,
    };
    let (old, new) = act.states();
    let mut taken = 0;
    act.kill(|at| {
        let before = all();
        host.root("ojail layer build u --from-dir /srv/a").ok();
        let now = all();
        assert!(now == old || now == new, "{at}: {now}");
        taken += usize::from(now != before);
        host.root("ojail layer verify").ok();
    });
    assert!(taken > 0, "nothing had to be taken away again");
}

#[test]
fn a_tar_becomes_a_layer_compressed_or_not() {
    lab::require_root!();
    let host = lab::host().config(CONFIG).start();
    host.root("mkdir -p /srv/a/etc && cd /srv/a && echo one > etc/x && chown 7:8 etc/x && ln -s x etc/y && : > etc/.wh.issue && tar -czf /srv/a.tar.gz . && tar -cf /srv/a.tar .").ok();
    host.root("ojail layer build t --from-tar /srv/a.tar.gz").ok();
    let found = host.root(&format!("cd {LOWERDIRS}/t/etc && stat -c '%n %F %u:%g' *")).text();
    assert_eq!(found, "issue character special file 0:0\nx regular file 7:8\ny symbolic link 0:0");
    let first = layer(&host, "t").unwrap();
    host.root("ojail layer build t --from-tar - < /srv/a.tar").ok();
    assert_eq!(layer(&host, "t").unwrap()["generation"], first["generation"]);
    host.root("head -c 1700 /srv/a.tar > /srv/short.tar; head -c 100 /srv/a.tar.gz > /srv/short.tar.gz").ok();
    for file in ["/srv/short.tar", "/srv/short.tar.gz"] {
        refused(&host, &format!("ojail layer build t --from-tar {file}"), file);
    }
}
