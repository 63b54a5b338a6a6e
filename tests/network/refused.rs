//! A jail whose network cannot be made as configured is refused, and the log says why and what mends it.

use lab::Host;
use lab::world::FAR;

use crate::common::{SOON, corner, logged, until};
use crate::{ask, config, pastas, setup, tcp};

/// Tries a login that must be refused, with all of these words in one new line of the log.
#[track_caller]
fn is_refused(host: &Host, user: &str, words: &[&str]) {
    let refused = "event=refused";
    let before = logged(host, refused);
    let running = pastas(host);
    let output = host.ssh(user, "touch /tmp/ran; echo ran").fails();
    assert!(!output.stdout.lines().any(|line| line == "ran"), "{output}");
    assert!(!host.path("/tmp/ran").exists(), "{user}'s command ran on the host");
    until("the refusal is in the log", SOON, || logged(host, refused) > before);
    let log = host.log();
    let line = log.iter().rfind(|line| line.contains(refused)).unwrap();
    for word in words {
        assert!(line.contains(word), "{word:?} is not in {line}");
    }
    until("no pasta is left", SOON, || pastas(host) == running);
    assert_eq!(corner(host, user), "");
}

#[test]
fn without_its_programs_the_packages_are_named() {
    lab::require!(lab::must::tunnels());
    let host = setup("").start();
    for (program, package) in [("/usr/bin/pasta", "passt"), ("/usr/sbin/nft", "nftables")] {
        host.root("mv $1 $1.away").arg(program).ok();
        is_refused(&host, "alice", &[program, &format!("apt-get install {package}")]);
        host.root("mv $1.away $1").arg(program).ok();
    }
    assert_ne!(ask(&host, "alice", &[tcp(FAR[0], 7)]), [""]);
    // It was needed to raise the jail. The one that runs goes on.
    host.root("mv /usr/bin/pasta /usr/bin/pasta.away").ok();
    assert_ne!(ask(&host, "alice", &[tcp(FAR[0], 7)]), [""]);
}

#[test]
fn without_tunnels_it_is_said() {
    lab::require!(lab::must::tunnels());
    let host = setup("").start();
    host.root("chmod 600 /dev/net/tun").ok();
    is_refused(&host, "alice", &["pasta", "tun"]);
    host.root("rm /dev/net/tun").ok();
    is_refused(&host, "alice", &["pasta", "tun"]);
}

#[test]
fn a_port_in_use_is_named() {
    lab::require!(lab::must::tunnels());
    let host = setup("publish = [\"8080:80/tcp\", \"8053:53/udp\"]").start();
    for (server, port) in [
        ("TCP-LISTEN:8080", "8080/tcp"),
        ("TCP-LISTEN:8080,bind=127.0.0.1", "8080/tcp"),
        ("TCP6-LISTEN:8080,ipv6only=1", "8080/tcp"),
        ("UDP-RECV:8053", "8053/udp"),
        ("UDP6-RECV:8053,bind=[::1]", "8053/udp"),
    ] {
        let server = host.exec(["socat", "-u", server, "STDOUT"]).spawn();
        let number = &port[..4];
        until("it listens", SOON, || {
            host.root("ss -Hltun | grep -q \":$1 \"").arg(number).run().code() == Some(0)
        });
        is_refused(&host, "alice", &[port, "profile debian", "another program"]);
        server.kill();
    }
    // What serves TCP is not in the way of UDP.
    let _server = host.exec(["socat", "-u", "TCP-LISTEN:8053", "STDOUT"]).spawn();
    host.ssh("alice", "true").ok();
}

#[test]
fn of_two_users_who_publish_one_port_the_second_is_refused() {
    lab::require!(lab::must::tunnels());
    let other = "[profiles.other]\nlayers = [\"debian\"]\nnetwork = \"private\"\npublish = [\"8081:1/tcp\", \"8080:2/tcp\"]\n\
                 [[rules]]\nuser = \"dave\"\nprofile = \"other\"\n";
    // Before the first rule of all.
    let config =
        config("publish = [\"8080:80/tcp\"]").replacen("\n[[rules]]", &format!("\n{other}[[rules]]"), 1);
    let host = setup("").config(&config).start();
    host.ssh("alice", "true").ok();
    is_refused(&host, "carol", &["8080/tcp", "profile debian", "the jail of alice"]);
    is_refused(&host, "dave", &["8080/tcp", "profile other", "the jail of alice"]);
    // She herself comes and goes.
    host.ssh("alice", "true").ok();
    host.root("ojail stop alice").ok();
    host.ssh("carol", "true").ok();
    is_refused(&host, "alice", &["8080/tcp", "the jail of carol"]);
}
