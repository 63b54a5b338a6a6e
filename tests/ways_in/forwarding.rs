//! Forwarded ports, sockets, agents and displays end inside.

use lab::{Host, Running, Setup, User};

use crate::common::config;

/// A host whose jails have socat and python3, and these keys in their profile.
pub(crate) fn setup(keys: &str) -> Setup {
    lab::host()
        .user(User::new("alice").groups(["jailed"]))
        .layer("debian")
        .layer("tools")
        .config(&config(keys).replace("[\"debian\"]", "[\"tools\", \"debian\"]"))
        .pam("sshd")
}

/// Something on the host that says one line to whoever connects.
pub(crate) fn listener<'h>(host: &'h Host, address: &str, line: &str) -> Running<'h> {
    let listener = host.exec(["socat", &format!("{address},fork"), &format!("SYSTEM:echo {line}")]).spawn();
    let connect = address.replace("-LISTEN", "-CONNECT").replace(",bind=127.0.0.1", "");
    let connect = connect.replace("TCP-CONNECT:", "TCP-CONNECT:127.0.0.1:");
    crate::common::until("it listens", crate::common::SOON, || answers(host, &connect) == line);
    listener
}

/// What comes from there to a client on the host; nothing, if there is nobody.
pub(crate) fn answers(host: &Host, address: &str) -> String {
    host.exec(["socat", "-u", address, "STDOUT"]).run().text()
}

/// The same for a client in alice's jail.
fn answers_inside(host: &Host, address: &str) -> String {
    host.ssh("alice", &format!("socat -u {address} STDOUT")).run().text()
}

/// Two listeners in the jail, on the addresses of those of the host.
pub(crate) const LISTEN_INSIDE: &str = "
    socat TCP-LISTEN:7001,bind=127.0.0.1,fork,reuseaddr 'SYSTEM:echo from the jail' &
    socat UNIX-LISTEN:/tmp/socket,fork 'SYSTEM:echo from the jail' &
    until socat -u TCP:127.0.0.1:7001 /dev/null && socat -u UNIX:/tmp/socket /dev/null; do sleep 0.05; done 2>/dev/null
    echo inside; wait
";

#[test]
fn with_a_network_of_its_own_everything_ends_in_the_jail() {
    lab::require_root!();
    let host = setup("network = \"none\"").start();
    let _tcp = listener(&host, "TCP-LISTEN:7001,bind=127.0.0.1", "from the host");
    let _unix = listener(&host, "UNIX-LISTEN:/tmp/socket", "from the host");
    let _other = listener(&host, "UNIX-LISTEN:/tmp/hosts-only", "from the host");
    let session = host
        .ssh("alice", LISTEN_INSIDE)
        .arg("-oExitOnForwardFailure=yes")
        .arg("-L7100:127.0.0.1:7001")
        .arg("-L7101:/tmp/socket")
        .arg("-L7102:/tmp/hosts-only")
        .arg("-L7103:127.0.0.1:22")
        .arg("-L/root/local:/tmp/socket")
        .arg("-R7300:127.0.0.1:7001")
        .arg("-R/tmp/remote:/tmp/socket")
        .arg("-D7200")
        .spawn();
    session.wait_for("inside");

    for way in [
        "TCP:127.0.0.1:7100",
        "TCP:127.0.0.1:7101",
        "UNIX:/root/local",
        "SOCKS4:127.0.0.1:127.0.0.1:7001,socksport=7200",
    ] {
        assert_eq!(answers(&host, way), "from the jail", "{way}");
    }
    assert_eq!(host.ssh("alice", "").arg("-W127.0.0.1:7001").text(), "from the jail");
    // What only the host has is out of reach, its sshd too.
    for way in ["TCP:127.0.0.1:7102", "TCP:127.0.0.1:7103", "SOCKS4:127.0.0.1:127.0.0.1:22,socksport=7200"] {
        assert_eq!(answers(&host, way), "", "{way}");
    }
    // The other way round the listener is in the jail, and the client's side is the host.
    for way in ["TCP:127.0.0.1:7300", "UNIX:/tmp/remote"] {
        assert_eq!(answers_inside(&host, way), "from the host", "{way}");
        assert_eq!(answers(&host, way), "", "{way} is on the host");
    }
    assert!(!host.path("/tmp/remote").exists());
    assert_eq!(host.ssh("alice", "stat -c '%F %U' /tmp/remote").text(), "socket alice");
}

#[test]
fn with_the_hosts_network_ports_are_the_hosts_and_sockets_are_the_jails() {
    lab::require_root!();
    let host = setup("network = \"host\"").start();
    let _tcp = listener(&host, "TCP-LISTEN:7001,bind=127.0.0.1", "from the host");
    let _unix = listener(&host, "UNIX-LISTEN:/tmp/socket", "from the host");
    let session = host
        .ssh("alice", "echo inside; exec sleep 300")
        .arg("-oExitOnForwardFailure=yes")
        .arg("-L7100:127.0.0.1:7001")
        .arg("-L7101:/tmp/socket")
        .arg("-R7300:127.0.0.1:7001")
        .arg("-R/tmp/remote:127.0.0.1:7001")
        .arg("-D7200")
        .spawn();
    session.wait_for("inside");
    for way in ["TCP:127.0.0.1:7100", "TCP:127.0.0.1:7300", "SOCKS4:127.0.0.1:127.0.0.1:7001,socksport=7200"]
    {
        assert_eq!(answers(&host, way), "from the host", "{way}");
    }
    assert_eq!(host.ssh("alice", "").arg("-W127.0.0.1:7001").text(), "from the host");
    assert_eq!(answers(&host, "TCP:127.0.0.1:7101"), "", "a socket of the host's /tmp was reached");
    assert_eq!(answers_inside(&host, "UNIX:/tmp/remote"), "from the host");
    assert!(!host.path("/tmp/remote").exists());
}

/// Asks the agent for its keys; prints its socket, the kind of answer (12 is a list) and the number of keys.
const ASK_AGENT: &str = r#"
import os, socket
path = os.environ["SSH_AUTH_SOCK"]
agent = socket.socket(socket.AF_UNIX)
agent.connect(path)
agent.sendall(b"\0\0\0\x01\x0b")
answer = b""
while len(answer) < 9:
    answer += agent.recv(4096)
print(path, answer[4], int.from_bytes(answer[5:9], "big"))
"#;

#[test]
fn a_forwarded_agent_answers_in_the_jail() {
    lab::require_root!();
    let host = setup("").start();
    let ask = "eval $(ssh-agent) > /dev/null
        ssh-add -q
        ssh -A alice@127.0.0.1 'python3 -; stat -c %F:%U $SSH_AUTH_SOCK; touch ~/asked; until [ -e ~/seen ]; do sleep 0.02; done'
        kill $SSH_AGENT_PID";
    let session = host.root(ask).stdin(ASK_AGENT);
    let said = std::thread::scope(|scope| {
        let asked = scope.spawn(|| session.text());
        // While it is open, the host has the agent's own socket only.
        let asked_yet = host.path("/home/alice/asked");
        crate::common::until("the agent was asked", crate::common::SOON, || asked_yet.exists());
        let sockets = host.root("find /tmp -type s").text();
        assert_eq!(sockets.lines().count(), 1, "{sockets}");
        host.root("touch /home/alice/seen").ok();
        asked.join().expect("the session works")
    });
    let (answer, kind) = said.split_once('\n').expect("two lines");
    let words: Vec<&str> = answer.split(' ').collect();
    assert!(words[0].starts_with("/tmp/ssh-"), "{said}");
    assert_eq!((words[1], words[2], kind), ("12", "1", "socket:alice"), "{said}");
    assert!(!host.path(words[0]).exists());
}

#[test]
fn a_forwarded_display_listens_in_the_jail() {
    lab::require_root!();
    // Without an X server there is nothing to show: only the place of the listener counts.
    let host = setup("network = \"none\"").sshd_config("XAuthLocation /usr/bin/true").start();
    let session = host
        .ssh("alice", "echo display=$DISPLAY; ss -Hltn; exec sleep 300")
        .arg("-Y")
        .arg("-oXAuthLocation=/usr/bin/true")
        .env("DISPLAY", "127.0.0.1:5")
        .spawn();
    session.wait_for("display=localhost:10.0");
    session.wait_for("127.0.0.1:6010");
    let host_side = host.root("ss -Hltn").text();
    assert!(!host_side.contains(":6010"), "{host_side}");
}
