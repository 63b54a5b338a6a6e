//! What a kernel with cgroups and quotas can limit a jail by.

use crate::{MACHINE, bring, lasting};

#[test]
fn a_limit_on_a_users_slice_holds_for_all_their_sessions_together() {
    lab::require!(lab::must::machines());
    let machine = MACHINE.get();
    let _first = lasting(&machine, "tess");
    let all = "systemctl set-property --runtime user-1006.slice TasksMax=30 MemoryMax=64M MemorySwapMax=0";
    machine.root(all).ok();

    // Two sessions, each of which has room for 20 alone.
    let twenty = "for i in $(seq 20); do sleep 200 & done; echo done; wait";
    let one = machine.ssh("tess", twenty).spawn();
    one.wait_for("done");
    let two = machine.ssh("tess", twenty).run();
    assert!(two.stderr.contains("fork: Resource temporarily unavailable"), "{two}");
    one.kill();
    machine.ssh("tess", "pkill -f 'sleep 200'").run();

    let eats = |mib: u32| format!("head -c {mib}M /dev/zero | tail | wc -c");
    assert_eq!(machine.ssh("tess", &eats(16)).text(), (16 << 20).to_string());
    assert_eq!(machine.ssh("tess", &eats(100)).text(), "0");
    machine.wait_for_log("oom_memcg=/user.slice/user-1006.slice");
}

#[test]
fn a_project_quota_holds_in_a_jail_and_its_root_cannot_leave_the_project() {
    lab::require!(lab::must::machines());
    let machine = MACHINE.get();
    let enter = |command: &str| machine.root("exec ojail enter quinn -- sh -c \"$1\"").arg(command);
    enter("mkdir /var/tmp/mine").ok();
    machine.root("ojail stop quinn").ok();
    let limit = "cd /srv/overlay && chattr -R -p 1007 +P upperdirs/quinn workdirs/quinn && setquota -P 1007 0 20480 0 300 .";
    machine.root(limit).ok();
    bring(&machine, "chattr", "/home/quinn/e2fsprogs");
    let inside = |command: &str| enter(&format!("cd /var/tmp/mine && {command}"));

    assert_eq!(inside("df --output=size -m / | tail -n1").text(), "20");
    for who in ["", "sudo "] {
        let full = inside(&format!("{who}sh -c 'head -c 40M /dev/zero > big; rm big'")).run();
        assert!(full.stderr.contains("Disk quota exceeded"), "{full}");
        let many =
            inside(&format!("{who}sh -c 'set -e; mkdir d; for i in $(seq 400); do echo > d/$i; done'"))
                .fails();
        assert!(many.stderr.contains("Disk quota exceeded"), "{many}");
        inside(&format!("{who}rm -r d")).ok();
        // Project 0 has no limit.
        inside("touch file").ok();
        for leave in ["-p 0 file", "-p 5 file", "-P ."] {
            let tools = "/home/quinn/e2fsprogs";
            let stays = inside(&format!("{who}env LD_LIBRARY_PATH={tools} {tools}/chattr {leave}")).fails();
            assert!(stays.stderr.contains("Invalid argument"), "{stays}");
        }
    }

    // Full to the brim, it cannot be raised again: overlayfs tries some files when it is mounted.
    inside("sh -c 'set -e; for i in $(seq 400); do echo > $i; done'").fails();
    machine.root("ojail stop quinn").ok();
    machine.ssh("quinn", "true").fails();
    let why = "event=refused user=quinn why=\"cannot mount the overlay of the jail: Disk quota exceeded";
    machine.wait_for_log(why);
    machine.root("setquota -P 1007 0 20480 0 310 /srv/overlay").ok();
    machine.ssh("quinn", "rm /var/tmp/mine/[0-9]*").ok();
}
