//! What people run goes on running under the system call filter.

use lab::{Host, User};

use crate::common::config;

fn host(keys: &str) -> Host {
    lab::host()
        .user(User::new("alice").groups(["jailed"]))
        .layer("debian")
        .layer("languages")
        .config(&config(keys).replace("[\"debian\"]", "[\"languages\", \"debian\"]"))
        .pam("sshd")
        .start()
}

const NODE: &str = r#"
const http = require("http"), { Worker } = require("worker_threads"), { execSync } = require("child_process");
new Worker("require('worker_threads').parentPort.postMessage(6 * 7)", { eval: true }).on("message", (n) => {
    const server = http.createServer((_, answer) => answer.end(String(n))).listen(0, "127.0.0.1", () => {
        http.get({ port: server.address().port, host: "127.0.0.1" }, (answer) => {
            answer.on("data", (text) => { console.log(text + execSync("echo -n !")); process.exit(0); });
        });
    });
});
"#;

const PYTHON: &str = r#"
import asyncio, concurrent.futures, os, subprocess, threading, tempfile, mmap, socket, signal
async def sleep(): await asyncio.sleep(0.01)
asyncio.run(sleep())
threading.Thread(target=lambda: None).start()
with concurrent.futures.ProcessPoolExecutor(2) as pool: assert list(pool.map(abs, [-1, -2])) == [1, 2]
assert subprocess.run(["echo", "x"], capture_output=True).stdout == b"x\n"
with tempfile.TemporaryFile() as f:
    f.write(b"x" * 4096); f.flush(); mmap.mmap(f.fileno(), 0).close()
a, b = socket.socketpair(); a.send(b"x"); assert b.recv(1) == b"x"
os.memfd_create("x"); signal.setitimer(signal.ITIMER_REAL, 0)
print("ok")
"#;

#[test]
fn programs_in_all_languages_run() {
    lab::require_root!();
    let host = host("");
    for (command, stdin, said) in [
        ("printf 'one\\ntwo\\n' | fzf -f tw", "", "two"),
        ("rg -c root /etc/passwd", "", "1"),
        ("node -", NODE, "42!"),
        ("python3 -", PYTHON, "ok"),
        ("java -Xmx64m -version 2>&1 | grep -c Runtime", "", "1"),
    ] {
        assert_eq!(host.ssh("alice", command).stdin(stdin).text(), said, "{command}");
    }
}

#[test]
fn own_processes_can_be_debugged() {
    lab::require_root!();
    for keys in ["", "root = true"] {
        let host = host(keys);
        let run = host.ssh("alice", "gdb -q -batch -ex 'catch syscall exit_group' -ex run -ex 'info registers rip' /bin/true 2>&1").text();
        assert!(run.contains("rip") || run.contains("pc"), "{keys}: {run}");
        assert!(!run.contains("Operation not permitted"), "{keys}: {run}");
        let attach = "sleep 300 & p=$!; gdb -q -batch -p $p -ex 'info proc' -ex detach 2>&1; strace -f -p $p -o /tmp/out & \
                      until grep -q SIGCONT /tmp/out 2>/dev/null; do sleep 0.05; kill -CONT $p; done; kill $p; echo traced";
        let attached = host.ssh("alice", attach).text();
        assert!(
            attached.contains("detached")
                && attached.contains("traced")
                && !attached.contains("not permitted"),
            "{keys}: {attached}"
        );
        assert!(host.ssh("alice", "strace -fc ls / 2>&1 >/dev/null").text().contains("execve"), "{keys}");
    }
}

#[test]
fn a_profile_changes_the_filter_by_name() {
    lab::require_root!();
    // perl is in every Debian; 250 is keyctl, 39 getpid (x86-64).
    let call = |name: &str| {
        format!(
            "perl -e 'require \"syscall.ph\"; ' 2>/dev/null; perl -e '$! = 0; syscall({name}); print $!+0'"
        )
    };
    let [keyctl, ptrace, getcpu] = if cfg!(target_arch = "x86_64") {
        ["250, 0, -3, 0", "101, 99, 0, 0, 0", "309, 0, 0, 0"]
    } else {
        ["219, 0, -3, 0", "117, 99, 0, 0, 0", "168, 0, 0, 0"]
    };
    let (refused, none) = ("1", "0");
    let plain = host("");
    assert_eq!(plain.ssh("alice", &call(keyctl)).text(), refused);
    assert_ne!(plain.ssh("alice", &call(ptrace)).text(), refused);
    assert_eq!(plain.ssh("alice", "grep Seccomp: /proc/self/status").text(), "Seccomp:\t2");
    let changed = host("seccomp = { allow = [\"keyctl\"], deny = [\"ptrace\", \"getcpu\"] }");
    assert_eq!(changed.ssh("alice", &call(keyctl)).text(), none);
    assert_eq!(changed.ssh("alice", &call(ptrace)).text(), refused);
    assert_eq!(changed.ssh("alice", &call(getcpu)).text(), refused);
    let off = host("seccomp = false");
    assert_eq!(off.ssh("alice", "grep Seccomp: /proc/self/status").text(), "Seccomp:\t0");
    assert_eq!(off.ssh("alice", &call(keyctl)).text(), none);
}

#[test]
fn the_session_keyring_of_the_login_process_stays_outside() {
    lab::require_root!();
    lab::require!(if cfg!(target_arch = "x86_64") {
        Ok(())
    } else {
        Err("its system calls are numbered for x86-64")
    });
    // Root makes a session keyring with a key in it, becomes alice by su, and looks for the key by name. With keyctl allowed, or
    // there would be no way to ask.
    let search = "perl -e '($type, $name) = (\"user\", \"secret\"); \
                  print syscall(250, 10, -3, $type, $name, 0) > 0 ? \"found\" : \"none\"'";
    let su = |user: &str| {
        format!(
            "perl -e '($type, $name, $value) = (\"user\", \"secret\", \"x\"); syscall(250, 1, 0); \
             $key = syscall(248, $type, $name, $value, 1, -3); $key > 0 or die $!; \
             syscall(250, 5, $key, 0x3f3f3f3f); syscall(250, 5, syscall(250, 0, -3, 0), 0x3f3f3f3f); \
             exec \"su\", \"{user}\", \"-c\", $ARGV[0]' \"$1\""
        )
    };
    let host = lab::host()
        .user(User::new("alice").groups(["jailed"]))
        .user("bob")
        .layer("debian")
        .config(&config("seccomp = { allow = [\"keyctl\"] }"))
        .pam("su")
        .start();
    assert_eq!(host.root(&su("bob")).arg(search).text(), "found", "a user who is not jailed inherits it");
    assert_eq!(host.root(&su("alice")).arg(search).text(), "none");
}
