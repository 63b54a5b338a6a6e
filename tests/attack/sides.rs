//! Attacks that need something on the host to be reached.

use lab::{Host, Running};

use crate::common::{SOON, until};
use crate::probe::{Attempts, PROBE, host};

/// Something on the host that says one line to whoever connects.
pub(crate) fn listener<'h>(host: &'h Host, address: &str) -> Running<'h> {
    let listener = host.exec(["socat", &format!("{address},fork"), "SYSTEM:echo from the host"]).spawn();
    let connect = address.replace("-LISTEN", "-CONNECT").replace("bind=", "").replace(",,", ",");
    let connect = match connect.split_once(',') {
        // The address to bind to is the one to connect to.
        Some((kind_and_port, place)) => kind_and_port.replacen(':', &format!(":{place}:"), 1),
        None => connect,
    };
    until("it listens", SOON, || {
        host.exec(["socat", "-u", &connect, "STDOUT"]).run().text() == "from the host"
    });
    listener
}

#[test]
fn an_abstract_socket_of_the_hosts_is_out_of_reach() {
    lab::require_root!();
    for network in ["host", "none"] {
        let host = host(&format!("network = \"{network}\""));
        let _listener = listener(&host, "ABSTRACT-LISTEN:lab");
        let attack = "connect to abstract sockets of the host's";
        let command = format!("{PROBE} --only network --network {network}");
        // bob shows that it is there to be reached.
        assert!(!Attempts::of(&host.ssh("bob", &command).run()).named(attack).contained);
        let attempts = Attempts::of(&host.ssh("alice", &command).run());
        assert!(attempts.named(attack).contained, "{network}: {attempts:#?}");
        // One of the jail's own can be.
        let own = "socat ABSTRACT-LISTEN:own,fork SYSTEM:'echo from the jail' & \
                   until socat -u ABSTRACT-CONNECT:own STDOUT; do sleep 0.05; done 2>/dev/null; kill $!";
        assert_eq!(host.ssh("alice", own).text(), "from the jail", "{network}");
    }
}

#[test]
fn ports_of_the_hosts_answer_in_the_hosts_network_only() {
    lab::require_root!();
    for (network, answers) in [("host", true), ("none", false)] {
        let host = host(&format!("network = \"{network}\""));
        let listeners = [("TCP-LISTEN:7001", "127.0.0.1"), ("TCP6-LISTEN:7002", "[::1]")]
            .map(|(kind, place)| listener(&host, &format!("{kind},bind={place}")));
        for place in ["TCP:127.0.0.1:7001", "TCP6:[::1]:7002"] {
            let said = host.ssh("alice", &format!("socat -u {place} STDOUT")).run().text();
            assert_eq!(said == "from the host", answers, "{network}: {place}");
        }
        drop(listeners);
    }
}

/// Makes an object of every kind of IPC that everybody may use.
const OBJECTS: &str = "ipcmk -Q -S 1 -M 4096 -p 646 > /dev/null; : > /dev/shm/lab; chmod 646 /dev/shm/lab";

/// How many objects with those rights are in sight.
const LOOK: &str = "cat /proc/sysvipc/* | grep -cw 646; ls /dev/shm | grep -c lab";

#[test]
fn ipc_objects_of_the_hosts_are_out_of_reach() {
    lab::require_root!();
    for keys in ["", "root = true", "network = \"none\""] {
        let host = host(keys);
        host.root(OBJECTS).ok();
        let look = |user: &str| host.ssh(user, LOOK).run().text();
        assert_eq!(look("bob"), "3\n1");
        assert_eq!(look("alice"), "0\n0", "{keys}");
        host.ssh("alice", OBJECTS).ok();
        assert_eq!(look("alice"), "3\n1", "her own");
    }
}

#[test]
fn signals_of_a_jail_reach_its_own_processes_only() {
    lab::require_root!();
    let host = host("root = true");
    // Of the same uid, and of root.
    let mut same = host.exec(["setpriv", "--reuid", "alice", "--clear-groups", "sleep", "300"]).spawn();
    let mut roots = host.exec(["sleep", "300"]).spawn();
    let pids =
        [same.pid(), roots.pid()].map(|pid| host.root("cat /proc/$1/status").arg(pid.to_string()).run());
    drop(pids);
    for command in ["kill -9 -1", "sudo -n sh -c 'kill -9 -1'"] {
        // It ends its own session too.
        host.ssh("alice", command).run();
        assert!(same.is_running() && roots.is_running(), "{command}");
        host.ssh("bob", "true").ok();
    }
    assert_eq!(host.ssh("alice", "cat /proc/1/comm").text(), "ojail-init");
}

#[test]
fn nothing_can_be_pushed_into_the_terminal_that_root_came_from() {
    lab::require_root!();
    let host = host("");
    host.root("echo session required pam_ojail.so >> /etc/pam.d/su").ok();
    // A login shell on root's own terminal; with a command, su makes a session without one.
    let attack = |client: &str, user: &str| {
        let mut session = host.exec(["script", "-qec", client, "/dev/null"]).spawn();
        session.write("./ojail-probe --only terminal > printed; echo status=$?; exit\n");
        session.wait_for("status=");
        session.finish();
        let printed = host.path(format!("/home/{user}/printed"));
        let printed: serde_json::Value = serde_json::from_slice(&std::fs::read(printed).unwrap()).unwrap();
        let attempts = printed["attempts"].as_array().unwrap();
        let attempt = attempts.iter().find(|attempt| attempt["attack"] == "TIOCSTI on standard input");
        attempt.unwrap_or_else(|| panic!("not tried: {printed:#}")).clone()
    };
    // A user who is not jailed can, where the kernel lets anybody.
    let off = host.root("cat /proc/sys/dev/tty/legacy_tiocsti").run().text() == "0";
    assert_eq!(attack("su - bob", "bob")["contained"], off);
    for client in ["ojail enter alice", "su - alice"] {
        let attempt = attack(client, "alice");
        assert_eq!(attempt["contained"], true, "{client}: {attempt}");
    }
}
