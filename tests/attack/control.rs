//! The probe on a host, where nothing holds it: it must see that, or its silence in a jail means nothing.

use std::collections::BTreeSet;

use crate::common::{SOON, until};
use crate::probe::{Attempt, Attempts, PROBE, host};

/// What it must find even as a user, whatever the host's kernel has.
const BY_A_USER: [&str; 8] = [
    "a PID 1 that is not the jail's",
    "system calls without a filter",
    "new privileges by an exec",
    "capabilities in CapBnd",
    "securebits that let go",
    "ids of the host's in uid_map",
    "ids of the host's in gid_map",
    "devices that no jail needs",
];

/// What an attack hears of something that this kernel has not.
const ABSENT: [&str; 8] =
    ["ENOSYS", "ENOENT", "ENOEXEC", "EAFNOSUPPORT", "EPROTONOSUPPORT", "EOPNOTSUPP", "ENOTTY", "empty"];

/// What cannot be found on a host of these tests, and why.
const UNSEEN: [(&str, &str); 12] = [
    ("mkdir, chroot, fchdir and up", "this host is in no chroot; another test has it in one"),
    ("write any file of /sys", "the /sys of these hosts is read-only, for it is the machine's"),
    ("write /sys/power/state", "the same"),
    ("write /sys/kernel/mm/transparent_hugepage/enabled", "the same"),
    ("/sys of the host", "the same"),
    ("another root below this one", "the root of these hosts is an overlay too"),
    ("what is above /", "nothing is above the root of a mount namespace, but by a mistake of the kernel's"),
    (
        "processes that /proc does not list",
        "what a PID namespace shows is what it has, but by a mistake of the kernel's",
    ),
    ("write /proc/self/uid_map", "the first user namespace has no map to be written"),
    ("write /proc/self/gid_map", "the same"),
    // The machine may be a container itself.
    ("raise /proc/sys/user/max_user_namespaces", "takes SYS_RESOURCE"),
    ("setrlimit: more descriptors", "takes SYS_RESOURCE"),
];

/// The same, by how the name of an attack ends.
const UNSEEN_KINDS: [(&str, &str); 2] = [
    (" of others", "to root of the host nobody is another; what is tried is tried of PID 1 too"),
    ("oom_score_adj of -1000", "takes SYS_RESOURCE"),
];

#[test]
fn on_a_host_the_probe_of_a_user_reaches_much() {
    lab::require_root!();
    let host = host("");
    let attempts = Attempts::of(&host.ssh("bob", PROBE).run());
    let reached: BTreeSet<&str> =
        attempts.reached().filter_map(|a| Some(a.attack.split_once(": ")?.1)).collect();
    for attack in BY_A_USER {
        assert!(reached.contains(attack), "{attack:?} is not seen: {attempts:#?}");
    }
    assert!(reached.len() >= 25, "{reached:#?}");
}

/// Things of others to be found: objects of IPC, an abstract socket, a process and a terminal of nobody's, a mount.
const BAIT: &str = r#"
    setpriv --reuid bob --clear-groups sh -c '
        ipcmk -Q -S 1 -M 4096 > /dev/null
        : > /dev/shm/lab
        exec socat ABSTRACT-LISTEN:lab,fork SYSTEM:true' &
    mkdir -p /dev/mqueue /mnt/cgroup
    mount -t mqueue mqueue /dev/mqueue
    setpriv --reuid bob --clear-groups touch /dev/mqueue/lab
    mount -t cgroup2 cgroup2 /mnt/cgroup || mount -t cgroup cgroup /mnt/cgroup
    setpriv --reuid 65534 --clear-groups sleep 300 &
    script -qec 'chown 65534 $(tty); sleep 300' /dev/null > /dev/null &
    until grep -q @lab /proc/net/unix && [ "$(stat -c %u /dev/pts/0)" = 65534 ]; do sleep 0.05; done
    echo ready
    wait
"#;

/// With a descriptor too many, an input that has no place any more, and capabilities that are handed on.
const CARELESS: &str = r#"
    cd /home/bob
    echo x > input
    exec 7< /etc < input
    rm input
    exec setpriv --inh-caps +chown --ambient-caps +chown ./ojail-probe
"#;

#[test]
fn on_a_host_the_probe_of_root_reaches_all_that_the_kernel_has() {
    lab::require_root!();
    let host = host("");
    let bait = host.root(BAIT).spawn();
    bait.wait_for("ready");
    // A process whose working directory is in no mount of the host's.
    let session = host.ssh("alice", "echo inside; exec sleep 300").spawn();
    session.wait_for("inside");
    until("the session has settled", SOON, || host.root("pgrep -u alice -x sleep").run().code() == Some(0));

    let attempts = Attempts::of(&host.root(CARELESS).run());
    let is_explained = |attempt: &&Attempt| {
        let name = attempt.attack.split_once(": ").map_or("", |(_, name)| name);
        attempt.answer.split(' ').any(|word| ABSENT.contains(&word))
            || UNSEEN.iter().any(|(unseen, _)| *unseen == name)
            || UNSEEN_KINDS.iter().any(|(end, _)| name.ends_with(end))
                && !name.contains("V ")
                && !name.contains("X ")
    };
    let unseen: Vec<String> = attempts
        .all()
        .iter()
        .filter(|attempt| attempt.contained && !is_explained(attempt))
        .map(Attempt::shown)
        .collect();
    assert!(
        unseen.is_empty(),
        "contained on a host, so that nobody knows what they can see:\n{}",
        unseen.join("\n")
    );
    // Whatever it did is undone.
    let left = "find / -xdev -name 'ojail-*' -newer /home/bob/ojail-probe ! -path '/proc/*'; hostname; cat /proc/mounts";
    let left = host.root(left).text();
    assert!(left.starts_with("lab\n") && !left.contains("ojail-probe"), "{left}");
}

#[test]
fn in_a_chroot_the_probe_of_root_finds_the_way_out() {
    lab::require_root!();
    let host = host("");
    host.root("mkdir -p /srv/root/tmp; cp /usr/libexec/ojail/ojail-probe /srv/root").ok();
    let attempts = Attempts::of(&host.root("chroot /srv/root /ojail-probe --only kernel").run());
    assert!(!attempts.named("mkdir, chroot, fchdir and up").contained, "{attempts:#?}");
}
