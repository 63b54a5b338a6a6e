//! What a jailed user may try against the process that carries the network, and through it.

use lab::Host;
use lab::world::{FAR, HOST};

use crate::common::{SOON, remains, until};
use crate::{ask, heard, pasta, setup, tcp};

/// Sends datagrams to addresses that mean the host's loopback to a process outside, past the jail's own loopback: the kernel
/// lets anybody choose the interface.
const BY_THE_INTERFACE: &str = r#"
import socket, struct
[(index, name)] = [i for i in socket.if_nameindex() if i[1] != "lo"]
IP_UNICAST_IF, IPV6_UNICAST_IF = 50, 76
sent = 0
for address in "127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1":
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for way in "device", "unicast", "source":
        s = socket.socket(family, socket.SOCK_DGRAM)
        try:
            if way == "unicast" and family == socket.AF_INET:
                s.setsockopt(socket.IPPROTO_IP, IP_UNICAST_IF, struct.pack("!I", index))
            elif way == "unicast":
                s.setsockopt(socket.IPPROTO_IPV6, IPV6_UNICAST_IF, struct.pack("!I", index))
            else:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode())
            if way == "source":
                s.bind(("192.0.2.2" if family == socket.AF_INET else "2001:db8:1::2", 0))
            s.sendto(f"{address} by {way}\n".encode(), (address, 9))
        except OSError:
            pass
        sent += 1
print(sent)
"#;

/// The same in frames of one's own making, with the right and with a wrong name for what is in them.
const BY_FRAMES: &str = r#"
import socket, struct
[(_, name)] = [i for i in socket.if_nameindex() if i[1] != "lo"]
IPV4, IPV6, ARP = 0x0800, 0x86DD, 0x0806
SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20

def checksum(data):
    data += bytes(len(data) % 2)
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF

def frame(source, target, text):
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    ends = socket.inet_pton(family, source) + socket.inet_pton(family, target)
    length = 8 + len(text)
    udp = struct.pack("!HHHH", 5000, 9, length, 0) + text
    sum = checksum(ends + struct.pack("!II", length, socket.IPPROTO_UDP) + udp) or 0xFFFF
    udp = udp[:6] + struct.pack("!H", sum) + udp[8:]
    if family == socket.AF_INET6:
        head, kind = struct.pack("!IHBB", 0x60000000, length, socket.IPPROTO_UDP, 64) + ends, IPV6
    else:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 1, 0, 64, socket.IPPROTO_UDP, 0)
        head = head[:10] + struct.pack("!H", checksum(head + ends)) + ends
        kind = IPV4
    return kind, b"\xff" * 6 + b"\x02\0\0\0\0\1" + struct.pack("!H", kind) + head + udp

try:
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
except OSError as e:
    print("no socket:", e.strerror)
    raise SystemExit
for bypass in 0, 1:
    s.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, bypass)
    for source, target in [
        ("192.0.2.2", "127.0.0.1"), ("192.0.2.77", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("192.0.2.2", "127.1.2.3"),
        ("192.0.2.2", "0.0.0.0"), ("2001:db8:1::2", "::1"), ("2001:db8:1::77", "::1"), ("::1", "::1"), ("2001:db8:1::2", "::"),
    ]:
        kind, data = frame(source, target, f"{source} to {target}\n".encode())
        for said in kind, ARP:
            try:
                s.sendto(data, (name, said))
            except OSError:
                pass
print("sent")
"#;

/// What reached the host's loopback on UDP port 9 while this ran, asked of a listener on every address.
#[track_caller]
fn heard_on_the_loopback(host: &Host, act: impl FnOnce()) -> String {
    const LISTEN: &str = "
        socat -u UDP4-RECV:9,bind=127.0.0.1 OPEN:/root/heard,creat,append & four=$!
        socat -u UDP4-RECV:9,bind=127.1.2.3 OPEN:/root/heard,creat,append & other=$!
        socat -u UDP6-RECV:9,bind=[::1],ipv6only=1 OPEN:/root/heard,creat,append & six=$!
        until [ $(ss -Hlun 'sport = 9' | wc -l) = 3 ]; do sleep 0.02; done
        echo listening; wait";
    host.root("rm -f /root/heard").ok();
    let listener = host.root(LISTEN).spawn();
    listener.wait_for("listening");
    act();
    // Datagrams of one socket keep their order: when this has come, all has.
    for address in ["127.0.0.1", "127.1.2.3", "::1"] {
        host.exec(["bash", "-c", "echo the end of $0 > /dev/udp/$0/9", address]).ok();
        let end = format!("the end of {address}");
        until("the last datagram has come", SOON, || {
            host.root("cat /root/heard").run().stdout.contains(&end)
        });
    }
    listener.kill();
    let heard = host.root("grep -a -v '^the end of' /root/heard").run();
    heard.stdout
}

#[test]
fn nothing_reaches_the_hosts_loopback_by_the_interface() {
    lab::require!(lab::must::tunnels());
    let host = setup("").start();
    let heard = heard_on_the_loopback(&host, || {
        assert_eq!(host.ssh("alice", "python3 -").stdin(BY_THE_INTERFACE).text(), "18");
        // What pasta forwards, it forwards in order: this answer comes after all of the above.
        assert_eq!(ask(&host, "alice", &[crate::udp(FAR[0], 7)]), [crate::heard(HOST[0])]);
    });
    assert_eq!(heard, "");
}

#[test]
fn nothing_reaches_the_hosts_loopback_in_frames_of_roots_own() {
    lab::require!(lab::must::tunnels());
    for keys in ["root = true", "root = true\nseccomp = false"] {
        let host = setup(keys).start();
        let heard = heard_on_the_loopback(&host, || {
            for before in ["", "sudo "] {
                let said = host.ssh("alice", &format!("{before}python3 -")).stdin(BY_FRAMES).text();
                // With the filter there is no such socket, and without it root has no right to one (NET_RAW) either.
                assert!(said.starts_with("no socket"), "{keys}: {before}{said}");
            }
            assert_eq!(host.ssh("alice", "sudo python3 -").stdin(BY_THE_INTERFACE).text(), "18");
            assert_eq!(ask(&host, "alice", &[crate::udp(FAR[0], 7)]), [crate::heard(HOST[0])]);
        });
        assert_eq!(heard, "", "{keys}");
    }
}

#[test]
fn pasta_is_an_unprivileged_process_of_the_host() {
    lab::require!(lab::must::tunnels());
    let host = setup("root = true").start();
    host.ssh("alice", "true").ok();
    let pid = pasta(&host);
    let uid: u32 = host.root(&format!("ps -o uid= -p {pid}")).text().parse().unwrap();
    assert!(uid >= 100_000, "it is uid {uid} on the host");
    let namespace = |of: &str, kind: &str| host.root(&format!("readlink /proc/{of}/ns/{kind}")).text();
    for kind in ["user", "pid", "mnt", "ipc", "uts"] {
        assert_ne!(namespace(&pid.to_string(), kind), namespace("1", kind), "{kind}");
    }
    let status = host.root(&format!("cat /proc/{pid}/status")).text();
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    // Nothing of whoever raised the jail is open in it: no file, no directory, nothing of the claim on the upper.
    let open = host.root(&format!("find /proc/{pid}/fd -type l -printf '%l\\n' | sort -u")).text();
    for target in open.lines() {
        // As seen from its own empty root, the devices have lost the front of their names.
        let own = ["socket:", "pipe:", "anon_inode:", "net:", "/null", "/net/tun"];
        let of_its_own_network = target.starts_with("/proc/") && target.contains("/net/");
        assert!(
            own.iter().any(|known| target.starts_with(known)) || of_its_own_network,
            "{target} is open in pasta"
        );
    }
}

#[test]
fn the_user_can_do_nothing_to_pasta_and_root_can_only_end_it() {
    lab::require!(lab::must::tunnels());
    let host = setup("root = true\nseccomp = false").start();
    host.ssh("alice", "true").ok();
    let outside = pasta(&host);
    let inside = host.root(&format!("awk '/^NSpid:/ {{ print $3 }}' /proc/{outside}/status")).text();
    for before in ["", "sudo "] {
        for attempt in [
            format!("strace -p {inside}"),
            format!("ls /proc/{inside}/fd/0"),
            format!("cat /proc/{inside}/environ"),
            format!("cat /proc/{inside}/maps"),
            format!("nsenter --net=/proc/{inside}/ns/net true"),
            format!("nsenter --target {inside} --net true"),
            format!("ls /proc/{inside}/root/etc"),
        ] {
            host.ssh("alice", &format!("{before}timeout 10 {attempt}")).fails();
        }
    }
    host.ssh("alice", &format!("kill -KILL {inside}")).fails();
    assert_eq!(ask(&host, "alice", &[tcp(FAR[0], 7)]), [heard(HOST[0])]);
    // It ends the jail, not the user's confinement.
    host.ssh("alice", &format!("sudo kill -KILL {inside}; sleep 10; echo still here")).fails();
    until("the jail has ended", SOON, || remains(&host, "alice").is_empty());
}

#[test]
fn the_hosts_connections_are_not_shown() {
    lab::require!(lab::must::tunnels());
    let host = setup("root = true").start();
    // 0x1B59 is 7001; 0x0016 is the sshd's, whose connections come from 127.0.0.1 to port 22.
    host.serve(&["echo@127.0.0.1#7001", "echo@::1#7001"]);
    host.root("grep -q :1B59 /proc/net/tcp /proc/net/tcp6 /proc/net/udp").ok();
    for before in ["", "sudo "] {
        let shown = host
            .ssh(
                "alice",
                &format!(
                    "{before}sh -c 'cat /proc/net/* /proc/[0-9]*/net/* /proc/[0-9]*/task/*/net/* 2>/dev/null'"
                ),
            )
            .run();
        for secret in [":1B59", "0100007F:0016", "/run/ojail", "/dev/log"] {
            assert!(!shown.stdout.contains(secret), "{before}{secret} is shown inside");
        }
    }
}
