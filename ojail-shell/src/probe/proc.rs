//! `/proc` and `/sys`: what of the host can be read there, and what can be written.
//!
//! Files are opened for writing and nothing is written.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::statfs;

use super::report::{Outcome, Report};
use super::{Network, Setting};

/// Files by which root of a host has programs run by the kernel, or stops it.
const LEVERS: [&str; 14] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hotplug",
    "/proc/sys/kernel/poweroff_cmd",
    "/proc/sys/kernel/usermodehelper/bset",
    "/proc/sys/kernel/sysrq",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/fs/suid_dumpable",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/sys/fs/binfmt_misc/status",
    "/proc/sysrq-trigger",
    "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/power/state",
];

/// Files and directories that tell of the host's memory, keys and devices (those that runc masks, and more).
const SECRETS: [&str; 18] = [
    "/proc/kcore",
    "/proc/kmsg",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/latency_stats",
    "/proc/slabinfo",
    "/proc/vmallocinfo",
    "/proc/pagetypeinfo",
    "/proc/kpageflags",
    "/proc/kpagecount",
    "/proc/vmcore",
    "/proc/acpi",
    "/proc/asound",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// File systems by which a kernel is run, and which no jail has.
const FORBIDDEN: [&str; 16] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "nfsd",
    "nsfs",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "tracefs",
];

pub(super) fn attack(report: &mut Report, setting: &Setting) {
    for path in LEVERS.into_iter().map(PathBuf::from).chain(release_agents()) {
        report.add(format!("write {}", path.display()), writable(&path));
    }
    report.add("write any file of /proc/sys", Outcome::nothing(&writable_below("/proc/sys", &[])));
    // Who opens a file of /proc/pressure for writing asks to be woken, and changes nothing of anybody's.
    let own = ["self", "thread-self", "sys", "pressure"];
    report.add("write any other file of /proc", Outcome::nothing(&writable_below("/proc", &own)));
    report.add("write any file of /sys", Outcome::nothing(&writable_below("/sys", &[])));
    for path in SECRETS {
        report.add(format!("read {path}"), readable(Path::new(path)));
    }
    report.add("addresses in /proc/kallsyms", addresses("/proc/kallsyms", 0));
    report.add("addresses in /proc/modules", addresses("/proc/modules", 5));
    let limit = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    let outcome = if limit.trim() == "0" { Outcome::contained("0") } else { Outcome::reached(limit.trim()) };
    report.add("user namespaces that may be made", outcome);
    report.add(
        "raise /proc/sys/user/max_user_namespaces",
        writable(Path::new("/proc/sys/user/max_user_namespaces")),
    );
    report.add("/sys of the host", sys(setting));
    maps(report);
    mounts(report);
}

/// Contained if the file cannot be opened for writing, or is none of the kernel's.
fn writable(path: &Path) -> Outcome {
    match open(path, OpenOptions::new().write(true)) {
        Ok(file) if is_mask(&file) => Outcome::contained("masked"),
        Ok(_) => Outcome::reached("open for writing"),
        Err(e) => Outcome::contained(e),
    }
}

fn open(path: &Path, options: &mut OpenOptions) -> Result<File, String> {
    options
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|e| format!("{:?}", super::kernel::errno(&e)))
}

/// Whether something else is in the place of a file of the kernel's: an empty file, or `/dev/null`.
fn is_mask(file: &File) -> bool {
    let kernels = [
        statfs::PROC_SUPER_MAGIC,
        statfs::SYSFS_MAGIC,
        statfs::CGROUP_SUPER_MAGIC,
        statfs::CGROUP2_SUPER_MAGIC,
    ];
    statfs::fstatfs(file).is_ok_and(|stat| !kernels.contains(&stat.filesystem_type()))
}

/// Contained if there is nothing to be read.
fn readable(path: &Path) -> Outcome {
    if path.is_dir() {
        return match fs::read_dir(path) {
            Ok(entries) => match entries.count() {
                0 => Outcome::contained("empty"),
                count => Outcome::reached(format!("{count} entries")),
            },
            Err(e) => Outcome::contained(format!("{:?}", super::kernel::errno(&e))),
        };
    }
    match open(path, OpenOptions::new().read(true)) {
        Ok(file) if is_mask(&file) => Outcome::contained("masked"),
        // To read from it would take the lines away from the host's log.
        Ok(_) if path.ends_with("kmsg") => Outcome::reached("open for reading"),
        // Some give whole words only.
        Ok(mut file) => match file.read(&mut [0; 8]) {
            Ok(0) => Outcome::contained("empty"),
            Ok(_) => Outcome::reached("read"),
            Err(e) => Outcome::contained(format!("{:?}", super::kernel::errno(&e))),
        },
        Err(e) => Outcome::contained(e),
    }
}

/// The files below that can be opened for writing. Links are not followed, and of processes nothing is asked here.
fn writable_below(top: &str, except: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::from(top)];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let of_a_process = name.bytes().all(|byte| byte.is_ascii_digit());
            if directory == Path::new(top) && (except.contains(&&*name) || top == "/proc" && of_a_process) {
                continue;
            }
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => todo.push(path),
                Ok(kind) if kind.is_symlink() => {}
                Ok(_) if !writable(&path).contained => found.push(path.display().to_string()),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

fn release_agents() -> Vec<PathBuf> {
    let top = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path());
    hierarchies.chain([top.to_owned()]).map(|path| path.join("release_agent")).collect()
}

/// The kernel shows zeros to those who may not know.
fn addresses(path: &str, field: usize) -> Outcome {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) => return Outcome::contained(format!("{:?}", super::kernel::errno(&e))),
    };
    let address = |line: &str| {
        let word = line.split_whitespace().nth(field)?;
        u64::from_str_radix(word.trim_start_matches("0x"), 16).ok()
    };
    if text.lines().filter_map(address).any(|address| address != 0) {
        Outcome::reached("addresses")
    } else {
        Outcome::contained("none")
    }
}

/// With the host's network the kernel shows the host's devices there, so there must be nothing.
fn sys(setting: &Setting) -> Outcome {
    match fs::read_dir("/sys").map(Iterator::count) {
        Err(e) if e.kind() == ErrorKind::NotFound => Outcome::contained("absent"),
        Err(e) => Outcome::contained(format!("{:?}", super::kernel::errno(&e))),
        Ok(0) => Outcome::contained("empty"),
        Ok(_) if setting.network == Network::Host => Outcome::reached("it has entries"),
        Ok(_) => {
            // … and of an own network, its interfaces, to be read.
            let flags = nix::sys::statvfs::statvfs("/sys").map(|stat| stat.flags());
            let is_readonly = flags.is_ok_and(|flags| flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY));
            if is_readonly { Outcome::contained("read-only") } else { Outcome::reached("writable") }
        }
    }
}

/// Ids of the host that this user namespace has: only such as are nobody's, but for the user's own and their groups.
fn maps(report: &mut Report) {
    for file in ["uid_map", "gid_map"] {
        let text = fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
        let of_the_host = |line: &&str| {
            let fields: Vec<u64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
            match fields[..] {
                // One id that is itself: the user's own, or a group of the profile's; never root's.
                [inside, outside, 1] => outside == 0 || inside != outside,
                [_, outside, _] => outside < 65_536,
                _ => true,
            }
        };
        let mut found: Vec<String> = text.lines().filter(of_the_host).map(String::from).collect();
        if text.is_empty() {
            found.push("no map at all".into());
        }
        report.add(format!("ids of the host's in {file}"), Outcome::nothing(&found));
    }
}

/// What the mount table tells of the host.
fn mounts(report: &mut Report) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let (mut roots, mut forbidden, mut paths) = (Vec::new(), Vec::new(), Vec::new());
    for line in table.lines() {
        // proc_pid_mountinfo(5): the fifth field is the mount point; behind the dash kind, source and options.
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let point = before.split(' ').nth(4).unwrap_or_default();
        let mut after = after.split(' ');
        let (kind, source, options) = (after.next(), after.next(), after.next());
        let (kind, source, options) =
            (kind.unwrap_or_default(), source.unwrap_or_default(), options.unwrap_or_default());
        if point == "/" {
            roots.push(kind.to_owned());
        }
        if FORBIDDEN.contains(&kind) {
            forbidden.push(format!("{kind} at {point}"));
        }
        // Layers and upper have names of the raise there, not the host's paths.
        let named = options.split(',').filter_map(|option| option.split_once('='));
        let named = named.filter(|(key, _)| ["lowerdir", "upperdir", "workdir", "lowerdir+"].contains(key));
        if point == "/" && (source.contains('/') || named.clone().any(|(_, value)| value.starts_with('/'))) {
            paths.push(format!("{source} {options}"));
        }
    }
    let outcome = if roots == ["overlay"] {
        Outcome::contained("one overlay")
    } else {
        Outcome::reached(format!("mounted at /: {}", roots.join(", ")))
    };
    report.add("another root below this one", outcome);
    report.add("file systems that run the kernel", Outcome::nothing(&forbidden));
    report.add("paths of the host in the mount table", Outcome::nothing(&paths));

    let mut outside = Vec::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    for link in processes.flat_map(|process| ["cwd", "root"].map(|name| process.join(name))) {
        let (Ok(is), Ok(target)) = (fs::metadata(&link), fs::read_link(&link)) else { continue };
        let here = fs::metadata(&target).is_ok_and(|here| (here.dev(), here.ino()) == (is.dev(), is.ino()));
        if !here && !target.to_string_lossy().ends_with(" (deleted)") {
            outside.push(format!("{} → {}", link.display(), target.display()));
        }
    }
    report.add("root and working directories that are not at their place", Outcome::nothing(&outside));
    let id = |path: &str| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let outcome =
        if id("/") == id("/..") { Outcome::contained("the same") } else { Outcome::reached("more") };
    report.add("what is above /", outcome);
}
