//! Files: attributes that mean something to the kernel or to an overlay, and files of the host's that are in sight.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;

use super::Setting;
use super::kernel::errno;
use super::raw::{call, in_child};
use super::report::{Outcome, Report};
use super::scratch::Scratch;

// linux/fs.h, as all but a few machines have it.
const FS_IOC_GETFLAGS: u64 = 0x8008_6601;
const FS_IOC_SETFLAGS: u64 = 0x4008_6602;
const FS_IOC_FSGETXATTR: u64 = 0x801c_581f;
const FS_IOC_FSSETXATTR: u64 = 0x401c_5820;
const FS_IMMUTABLE: u64 = 0x10;
const FS_APPEND: u64 = 0x20;

/// What a file system says that has no such thing. Ids of projects are for the host's own user namespace, and for others a
/// wrong argument.
const NOT_HERE: [Errno; 4] = [Errno::EOPNOTSUPP, Errno::ENOTTY, Errno::EINVAL, Errno::EROFS];

pub(super) fn attack(report: &mut Report, setting: &Setting) {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    for place in [Path::new("/tmp"), Path::new("/var/tmp"), &home] {
        let Some(scratch) = Scratch::make_in(place, "files") else { continue };
        let file = scratch.path().join("attributes");
        if fs::write(&file, "").is_err() {
            continue;
        }
        let shown = place.display();
        for (name, flag) in [("chattr +i", FS_IMMUTABLE), ("chattr +a", FS_APPEND)] {
            report.add(format!("{name} in {shown}"), in_child(|| flags(&file, flag)));
        }
        report.add(format!("another project's id in {shown}"), in_child(|| project(&file)));
        for name in [c"trusted.overlay.opaque", c"trusted.overlay.redirect", c"trusted.ojail"] {
            let attack = format!("{} in {shown}", name.to_string_lossy());
            report.add(attack, in_child(|| attribute(&file, name, b"y")));
        }
        if !setting.am_root {
            // Version 2, the effective bit, and DAC_OVERRIDE, as setcap(8) writes it.
            let value: Vec<u8> =
                [0x0200_0001_u32, 2, 0, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
            let set = || attribute(&file, c"security.capability", &value);
            report.add(format!("file capabilities in {shown}"), in_child(set));
        }
    }
    let shell = ojail::paths::shell();
    let write = OpenOptions::new().write(true).open(&shell).map_err(|e| errno(&e));
    report.add(
        format!("write {shell}, a file of the host's"),
        Outcome::of_or(write, &[Errno::EROFS, Errno::ENOENT]),
    );
}

fn flags(path: &Path, flag: u64) -> Outcome {
    let change = || -> Result<(), Errno> {
        let file = File::open(path).map_err(|e| errno(&e))?;
        let fd = || file.as_raw_fd().into();
        let mut flags = [0; 8];
        call(libc::SYS_ioctl, [fd(), FS_IOC_GETFLAGS.into(), flags.as_mut_slice().into()])?;
        let with = (u64::from_ne_bytes(flags) | flag).to_ne_bytes();
        call(libc::SYS_ioctl, [fd(), FS_IOC_SETFLAGS.into(), with.as_slice().into()])?;
        call(libc::SYS_ioctl, [fd(), FS_IOC_SETFLAGS.into(), flags.as_slice().into()]).map(drop)
    };
    Outcome::of_or(change(), &NOT_HERE)
}

fn project(path: &Path) -> Outcome {
    let change = || -> Result<(), Errno> {
        let file = File::open(path).map_err(|e| errno(&e))?;
        let fd = || file.as_raw_fd().into();
        // struct fsxattr: flags, extent size, extents, the project's id, …
        let mut attributes = [0; 28];
        call(libc::SYS_ioctl, [fd(), FS_IOC_FSGETXATTR.into(), attributes.as_mut_slice().into()])?;
        let mut other = attributes;
        other[12..16].copy_from_slice(&4711_u32.to_ne_bytes());
        call(libc::SYS_ioctl, [fd(), FS_IOC_FSSETXATTR.into(), other.as_slice().into()])?;
        call(libc::SYS_ioctl, [fd(), FS_IOC_FSSETXATTR.into(), attributes.as_slice().into()]).map(drop)
    };
    Outcome::of_or(change(), &NOT_HERE)
}

fn attribute(path: &Path, name: &CStr, value: &[u8]) -> Outcome {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return Outcome::reached("not tried") };
    let arguments =
        [path.as_c_str().into(), name.into(), value.into(), (value.len() as u64).into(), 0.into()];
    let done = call(libc::SYS_setxattr, arguments);
    if done.is_ok() {
        let _ = call(libc::SYS_removexattr, [path.as_c_str().into(), name.into()]);
    }
    Outcome::of_or(done, &NOT_HERE)
}
