//! Mounting, by the old calls and the new ones.

use nix::libc;

use super::Setting;
use super::kernel::bytes;
use super::raw::{Arg, call, in_child};
use super::report::{Outcome, Report};

pub(super) fn attack(report: &mut Report, setting: &Setting) {
    let path = setting.scratch.c_path();
    let here = path.as_c_str();
    let none = || Arg::from(0);

    // What a mount of the caller's own would be made from.
    for (attack, source, kind, flags) in [
        ("mount: a tmpfs", c"none", c"tmpfs", 0),
        ("mount: a proc", c"none", c"proc", 0),
        ("mount: a sysfs", c"none", c"sysfs", 0),
        ("mount: a cgroup2", c"none", c"cgroup2", 0),
        ("mount: a bind of /etc", c"/etc", c"none", libc::MS_BIND),
    ] {
        let mount = || {
            let arguments = [source.into(), here.into(), kind.into(), flags.into(), none()];
            let done = call(libc::SYS_mount, arguments);
            if done.is_ok() {
                let _ = call(libc::SYS_umount2, [here.into(), libc::MNT_DETACH.into()]);
            }
            Outcome::of(done)
        };
        report.add(attack, in_child(mount));
    }
    // What changes one: of a directory on which nothing is mounted, so that nothing can change.
    for (attack, flags) in [
        ("mount: remount", libc::MS_REMOUNT | libc::MS_BIND),
        ("mount: make shared", libc::MS_SHARED),
        ("mount: move", libc::MS_MOVE),
    ] {
        let change = || {
            let source = if flags == libc::MS_MOVE { Arg::from(here) } else { none() };
            Outcome::of(call(libc::SYS_mount, [source, here.into(), none(), flags.into(), none()]))
        };
        report.add(attack, in_child(change));
    }
    let umount = |flags: i32| Outcome::of(call(libc::SYS_umount2, [here.into(), flags.into()]));
    report.add("umount", in_child(|| umount(0)));
    report.add("umount: detach", in_child(|| umount(libc::MNT_DETACH)));
    let pivot = || Outcome::of(call(libc::SYS_pivot_root, [here.into(), here.into()]));
    report.add("pivot_root", in_child(pivot));

    for kind in [c"tmpfs", c"proc", c"overlay"] {
        let open = || Outcome::of(call(libc::SYS_fsopen, [kind.into(), 0.into()]));
        report.add(format!("fsopen({})", kind.to_string_lossy()), in_child(open));
    }
    // Descriptors of nothing: the right is asked first.
    let set = || Outcome::of(call(libc::SYS_fsconfig, [(-1).into(), 0.into(), c"ro".into(), none(), none()]));
    report.add("fsconfig", in_child(set));
    report.add("fsmount", in_child(|| Outcome::of(call(libc::SYS_fsmount, [(-1).into(), none(), none()]))));
    let pick = || Outcome::of(call(libc::SYS_fspick, [libc::AT_FDCWD.into(), c"/".into(), none()]));
    report.add("fspick", in_child(pick));
    let clone = || {
        let flags = libc::OPEN_TREE_CLONE | libc::O_CLOEXEC as u32;
        Outcome::of(call(libc::SYS_open_tree, [libc::AT_FDCWD.into(), c"/".into(), u64::from(flags).into()]))
    };
    report.add("open_tree: clone", in_child(clone));
    let arguments = || [(-1).into(), c"".into(), (-1).into(), c"".into(), none()];
    report.add("move_mount", in_child(|| Outcome::of(call(libc::SYS_move_mount, arguments()))));
    let nothing = bytes(&[0; 4]);
    let set = || {
        let size = nothing.len() as u64;
        let arguments = [libc::AT_FDCWD.into(), here.into(), none(), nothing.as_slice().into(), size.into()];
        Outcome::of(call(libc::SYS_mount_setattr, arguments))
    };
    report.add("mount_setattr, of nothing", in_child(set));
}
