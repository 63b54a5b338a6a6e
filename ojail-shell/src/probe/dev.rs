//! `/dev`: what is there, whether it is what its name says, and whether a device can be made.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::libc;

use super::Setting;
use super::processes::OVERFLOW;
use super::raw::{call, in_child};
use super::report::{Outcome, Report};

/// All that a jail has in `/dev`, and the numbers of its devices (Documentation/admin-guide/devices.txt).
const KNOWN: [(&str, Option<(u32, u32)>); 14] = [
    ("null", Some((1, 3))),
    ("zero", Some((1, 5))),
    ("full", Some((1, 7))),
    ("random", Some((1, 8))),
    ("urandom", Some((1, 9))),
    ("tty", Some((5, 0))),
    ("ptmx", None),
    ("pts", None),
    ("shm", None),
    ("mqueue", None),
    ("fd", None),
    ("stdin", None),
    ("stdout", None),
    ("stderr", None),
];

pub(super) fn attack(report: &mut Report, setting: &Setting) {
    let mut strange = Vec::new();
    for entry in fs::read_dir("/dev").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let numbers = KNOWN.iter().find(|(known, _)| *known == name).map(|(_, numbers)| numbers);
        let is = entry.metadata().ok().filter(|meta| meta.file_type().is_char_device());
        match (numbers, is) {
            (None, _) => strange.push(name),
            (Some(Some((major, minor))), Some(meta)) if meta.rdev() == libc::makedev(*major, *minor) => {}
            (Some(None), None) => {}
            (Some(_), _) => strange.push(format!("{name}, which is not what it says")),
        }
    }
    strange.sort();
    report.add("devices that no jail needs", Outcome::nothing(&strange));

    let mut terminals = Vec::new();
    for entry in fs::read_dir("/dev/pts").into_iter().flatten().flatten() {
        // A terminal of the host's would belong to somebody who is nobody in here.
        if entry.metadata().is_ok_and(|meta| meta.uid() == OVERFLOW) {
            terminals.push(entry.path().display().to_string());
        }
    }
    report.add("terminals of the host's", Outcome::nothing(&terminals));

    // A tape and a disk, the memory, and null, which would be harmless and is refused all the same.
    for (name, kind, major, minor) in [
        ("null", libc::S_IFCHR, 1, 3),
        ("mem", libc::S_IFCHR, 1, 1),
        ("kmsg", libc::S_IFCHR, 1, 11),
        ("a disk", libc::S_IFBLK, 8, 0),
    ] {
        for place in [setting.scratch.path(), Path::new("/dev"), Path::new("/var/tmp")] {
            let path = place.join(format!("ojail-probe-{}", std::process::id()));
            let make = || {
                let Ok(path) = std::ffi::CString::new(path.display().to_string()) else {
                    return Outcome::reached("not tried");
                };
                let device = libc::makedev(major, minor);
                let mode = u64::from(kind | 0o600);
                let arguments = [libc::AT_FDCWD.into(), path.as_c_str().into(), mode.into(), device.into()];
                let done = call(libc::SYS_mknodat, arguments);
                if done.is_ok() {
                    let _ = fs::remove_file(path.to_string_lossy().as_ref());
                }
                Outcome::of_or(done, &[nix::errno::Errno::EROFS])
            };
            report.add(format!("mknod: {name} in {}", shown(place, setting)), in_child(make));
        }
    }
}

fn shown(place: &Path, setting: &Setting) -> String {
    let place = if place == setting.scratch.path() { place.parent().unwrap_or(place) } else { place };
    place.display().to_string()
}
