//! Control groups: what all sessions and processes of one user may take together. Host root.
//!
//! Under systemd the limits are those of the user's own slice (`user-1000.slice`), where logind puts every session, and the
//! jail's PID 1 is in a scope of its own in there, so that the end of the session that raised it is not its end. Without
//! systemd they are those of `ojail/USER` in the cgroup v2 tree. Either way a login process that is elsewhere (cron's, in
//! `cron.service`) is moved beside PID 1 when it joins.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::stat::{major, minor};

use crate::account::Username;
use crate::config::{Limits, Storage};
use crate::error::{Act, Error, Result};
use crate::paths;
use crate::runtime::lock_file;

/// The cgroup v2 tree of this host.
#[derive(Debug, Clone)]
pub struct Tree {
    root: PathBuf,
    systemd: bool,
}

/// The keys of a control group that hold a limit, with the controller that they belong to, and what they must say.
struct Setting {
    controller: &'static str,
    file: &'static str,
    property: String,
    value: String,
}

/// What a user takes at the moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Use {
    /// Bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    /// Microseconds of processor time since the group was made.
    pub cpu: Option<u64>,
}

/// The period of `cpu.max` in microseconds, the kernel's and systemd's default.
const PERIOD: u64 = 100_000;

/// Whether systemd is PID 1 (sd_booted(3)).
fn systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

fn unenforceable(why: impl Into<String>) -> Error {
    Error::Limit { why: why.into() }
}

impl Tree {
    /// Finds it. `None`: no cgroup v2 is mounted here.
    ///
    /// # Errors
    /// [`Error::Act`] if the mount table cannot be read.
    pub fn find() -> Result<Option<Self>> {
        let table = fs::read_to_string("/proc/self/mountinfo").act("read", "/proc/self/mountinfo")?;
        // Fields of proc_pid_mountinfo(5): the fifth is the mount point, the one after "-" the file system.
        let root = table.lines().find_map(|line| {
            let (mount, kind) = line.split_once(" - ")?;
            kind.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
        });
        Ok(root.map(|root| Self { root, systemd: systemd() }))
    }

    /// The tree, if it can hold these limits.
    ///
    /// # Errors
    /// [`Error::Limit`] with what is missing, and the mend.
    pub fn fit_for(limits: &Limits, storage: &Storage) -> Result<Self> {
        let mend = "boot with `systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all`, or take the limit out of the profile";
        let tree = Self::find()?
            .ok_or_else(|| unenforceable(format!("no cgroup v2 is mounted on this host; {mend}")))?;
        let path = tree.root.join("cgroup.controllers");
        let has = fs::read_to_string(&path).act("read", &path)?;
        for setting in settings(limits, storage)? {
            if !has.split_whitespace().any(|controller| controller == setting.controller) {
                let why = format!(
                    "cgroup v2 has no controller \"{}\" on this host (it has: {}); {mend}",
                    setting.controller,
                    has.trim()
                );
                return Err(unenforceable(why));
            }
        }
        Ok(tree)
    }

    /// The group whose limits cover everything of this user.
    fn limited(&self, user: &Username, uid: u32) -> PathBuf {
        if self.systemd {
            self.root.join("user.slice").join(slice(uid))
        } else {
            self.root.join("ojail").join(user)
        }
    }

    /// The group that has all of this user's jail and nothing of anybody else's, if the jail's PID 1 is in one: the user's slice,
    /// or `ojail/USER`.
    ///
    /// # Errors
    /// [`Error::Act`], [`Error::Limit`] if PID 1 is in no group at all.
    pub fn around(&self, user: &Username, init: i32) -> Result<Option<PathBuf>> {
        let path = group_of(&format!("/proc/{init}/cgroup"))?;
        let mut parts = path.split('/');
        let (first, second) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let own = if self.systemd {
            first == "user.slice" && second.starts_with("user-") && second.ends_with(".slice")
        } else {
            first == "ojail" && second == user.as_str()
        };
        Ok(own.then(|| self.root.join(first).join(second)))
    }

    /// Whether a process is in this group or below it.
    ///
    /// # Errors
    /// [`Error::Act`] if there is no such process.
    pub fn holds(&self, group: &Path, pid: i32) -> Result<bool> {
        covers(self, group, &format!("/proc/{pid}/cgroup"))
    }

    /// What the user takes. Empty where there is no such group.
    #[must_use]
    pub fn usage(&self, user: &Username, uid: u32) -> Use {
        let group = self.limited(user, uid);
        let number = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse().ok();
        let cpu = fs::read_to_string(group.join("cpu.stat")).ok().and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse().ok())
        });
        Use { memory: number("memory.current"), tasks: number("pids.current"), cpu }
    }
}

fn slice(uid: u32) -> String {
    format!("user-{uid}.slice")
}

/// In `ojail-init`, which is as clean as it will be, with what it was started with. Under systemd it starts itself anew, as the
/// same process, in a scope of its own in the user's slice; what systemd has against it goes to the caller.
///
/// By systemd-run, which also works on a host without a D-Bus daemon, where busctl does not.
///
/// # Errors
/// [`Error::Act`], [`Error::Limit`]. Returns only then, or where there is no systemd.
pub fn leave_session(user: &Username, uid: u32, caller: &UnixStream) -> Result<()> {
    if !systemd() {
        return Ok(());
    }
    let caller = caller.try_clone().act("keep", "the way to the caller")?;
    let mut command = Command::new(SYSTEMD_RUN);
    command.args(["--scope", "--quiet", "--collect", "--slice", &slice(uid)]);
    // A name of its own each time: of the last jail a login process may not have ended yet.
    command.args(["--unit", &format!("ojail-{user}-{}.scope", std::process::id())]);
    command.args(["--description", &format!("The jail of {user}")]);
    // A process that the kernel ends for lack of memory must not take the whole jail along (systemd's default for scopes since
    // version 253, which also brought the setting).
    if systemd_version()? >= 253 {
        command.args(["--property", "OOMPolicy=continue"]);
    }
    command.args(["--", &paths::init()]).stderr(OwnedFd::from(caller)).env_clear();
    Err(command.exec()).act("run", SYSTEMD_RUN)
}

const SYSTEMD_RUN: &str = "/usr/bin/systemd-run";

fn systemd_version() -> Result<u32> {
    // "systemd 252 (252.38-1~deb12u1)"
    let text = said(SYSTEMD_RUN, ["--version"])?;
    Ok(text.split_whitespace().nth(1).and_then(|version| version.parse().ok()).unwrap_or(0))
}

/// What [`settle`] may set on a slice.
const PROPERTIES: [&str; 6] =
    ["MemoryMax", "MemorySwapMax", "TasksMax", "CPUQuota", "IOReadBandwidthMax", "IOWriteBandwidthMax"];

/// Has systemd set the limits on the user's slice, and take away those of an earlier raise that the profile has not any more.
fn set_on_slice(uid: u32, settings: &[Setting]) -> Result<()> {
    let mut properties: Vec<String> = settings.iter().map(|setting| setting.property.clone()).collect();
    // systemd keeps one file a property there.
    let kept = PathBuf::from("/run/systemd/system.control").join(format!("{}.d", slice(uid)));
    for name in PROPERTIES {
        let stale = kept.join(format!("50-{name}.conf")).exists();
        if stale && !properties.iter().any(|property| property.split('=').next() == Some(name)) {
            properties.push(format!("{name}="));
        }
    }
    if properties.is_empty() {
        return Ok(());
    }
    let words = ["set-property".to_owned(), "--runtime".to_owned(), slice(uid)];
    said("/usr/bin/systemctl", words.into_iter().chain(properties)).map(drop)
}

/// Runs a tool of systemd's to its end, and returns what it says.
fn said<S: AsRef<OsStr>>(tool: &str, arguments: impl IntoIterator<Item = S>) -> Result<String> {
    let output =
        Command::new(tool).args(arguments).env_clear().stdin(Stdio::null()).output().act("run", tool)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(unenforceable(format!("{tool}: {why}")))
}

/// In `ojail-init`, before it leaves the host: sees to it that this process, and all that it will start, is under the limits.
/// Under systemd it is in the user's slice by now. Reads everything back.
///
/// # Errors
/// [`Error::Limit`], [`Error::Act`], [`Error::Surprise`].
pub fn settle(user: &Username, uid: u32, limits: &Limits, storage: &Storage) -> Result<()> {
    let settings = settings(limits, storage)?;
    if systemd() {
        set_on_slice(uid, &settings)?;
    }
    if !limits.of_processes() {
        return Ok(());
    }
    let tree = Tree::fit_for(limits, storage)?;
    let group = tree.limited(user, uid);
    if !tree.systemd {
        // A temporary jail of this user's may come or go at the same time.
        let _lock = lock_file(&Path::new(paths::RUN).join("cgroup.lock"))?;
        let above = tree.root.join("ojail");
        // What an ended jail left may have limits that the profile has not any more.
        let _ = fs::remove_dir(&group);
        fs::create_dir_all(&group).act("create", &group)?;
        for setting in &settings {
            // From the root down: a group has the controllers that the one above it hands on.
            for dir in [&tree.root, &above] {
                let path = dir.join("cgroup.subtree_control");
                fs::write(&path, format!("+{}", setting.controller)).act("write", &path)?;
            }
            let path = group.join(setting.file);
            fs::write(&path, &setting.value).act("write", &path)?;
        }
        enter(&group)?;
    }
    if !covers(&tree, &group, "/proc/self/cgroup")? {
        let is = fs::read_to_string("/proc/self/cgroup").unwrap_or_default().trim().to_owned();
        return Err(Error::Surprise {
            what: "the control group of PID 1",
            wanted: group.display().to_string(),
            is,
        });
    }
    for setting in &settings {
        let path = group.join(setting.file);
        let is = fs::read_to_string(&path).act("read", &path)?;
        if !is.lines().any(|line| same(line, &setting.value)) {
            return Err(Error::Surprise {
                what: setting.file,
                wanted: setting.value.clone(),
                is: is.trim().to_owned(),
            });
        }
    }
    Ok(())
}

/// Puts this login process under the limits of the jail that it is about to join: beside the jail's PID 1, unless it is below
/// the user's slice already.
///
/// # Errors
/// [`Error::Act`], [`Error::Limit`] if there is no cgroup v2 any more.
pub fn join(user: &Username, uid: u32, init: i32) -> Result<()> {
    let tree = Tree::find()?.ok_or_else(|| unenforceable("no cgroup v2 is mounted on this host any more"))?;
    if covers(&tree, &tree.limited(user, uid), "/proc/self/cgroup")? {
        return Ok(());
    }
    let group = group_of(&format!("/proc/{init}/cgroup"))?;
    enter(&tree.root.join(group))
}

fn enter(group: &Path) -> Result<()> {
    let path = group.join("cgroup.procs");
    // 0 is whoever writes it (Documentation/admin-guide/cgroup-v2.rst).
    fs::write(&path, "0").act("enter", &path)
}

/// Takes an empty group away again. One in which anything is stays.
pub fn tidy(user: &Username) {
    if let (false, Ok(Some(tree))) = (systemd(), Tree::find()) {
        let group = tree.root.join("ojail").join(user);
        if group.exists() {
            let _lock = lock_file(&Path::new(paths::RUN).join("cgroup.lock"));
            let _ = fs::remove_dir(group);
        }
    }
}

/// Takes away what is left of one who was never a user of the host.
pub fn forget(user: &Username, uid: u32) {
    tidy(user);
    let kept = PathBuf::from("/run/systemd/system.control").join(format!("{}.d", slice(uid)));
    if systemd() && kept.exists() {
        let _ = said("/usr/bin/systemctl", ["revert", &slice(uid)]);
    }
}

/// Whether a process is in this group or below.
fn covers(tree: &Tree, group: &Path, proc_file: &str) -> Result<bool> {
    Ok(tree.root.join(group_of(proc_file)?).starts_with(group))
}

/// A process' group in the v2 tree, relative to its root.
fn group_of(proc_file: &str) -> Result<String> {
    let text = fs::read_to_string(proc_file).act("read", proc_file)?;
    // "0::/user.slice/…": number 0 is cgroup v2 (cgroups(7)).
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    path.map(str::to_owned).ok_or_else(|| unenforceable(format!("{proc_file} names no cgroup v2")))
}

/// Numbers are rounded to pages by the kernel, and an absent swap controller says "max" to zero swap.
fn same(is: &str, wanted: &str) -> bool {
    let page = |text: &str| text.parse::<u64>().map(|bytes| bytes / 4096).ok();
    is == wanted
        || (page(is).is_some_and(|is| is > 0) && page(is) == page(wanted))
        || is.split(' ').next() == wanted.split(' ').next()
            && wanted.split(' ').all(|word| is.split(' ').any(|is| is == word))
}

fn settings(limits: &Limits, storage: &Storage) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    let mut add = |controller, file, property: String, value: String| {
        settings.push(Setting { controller, file, property, value });
    };
    if let Some(bytes) = limits.memory {
        add("memory", "memory.max", format!("MemoryMax={bytes}"), bytes.to_string());
        // As much swap again, as with Docker: a jail that sleeps should not keep memory from others.
        if Path::new("/proc/swaps").exists() {
            add("memory", "memory.swap.max", format!("MemorySwapMax={bytes}"), bytes.to_string());
        }
    }
    if let Some(tasks) = limits.tasks {
        add("pids", "pids.max", format!("TasksMax={tasks}"), tasks.to_string());
    }
    if let Some(per_cent) = limits.cpu {
        let value = format!("{} {PERIOD}", per_cent * PERIOD / 100);
        add("cpu", "cpu.max", format!("CPUQuota={per_cent}%"), value);
    }
    if let Some(bytes) = limits.io {
        for (major, minor) in disks(storage)? {
            let device = format!("/dev/block/{major}:{minor}");
            let value = format!("{major}:{minor} rbps={bytes} wbps={bytes}");
            add("io", "io.max", format!("IOReadBandwidthMax={device} {bytes}"), value.clone());
            add("io", "io.max", format!("IOWriteBandwidthMax={device} {bytes}"), value);
        }
    }
    Ok(settings)
}

/// The whole disks on which layers and uppers lie: `io.max` takes no partitions.
fn disks(storage: &Storage) -> Result<Vec<(u64, u64)>> {
    let mut disks = Vec::new();
    for path in [&storage.lowerdirs, &storage.upperdirs] {
        let stat = match nix::sys::stat::stat(path) {
            Err(nix::errno::Errno::ENOENT) => continue,
            stat => stat.act("examine", path)?,
        };
        let device = (major(stat.st_dev), minor(stat.st_dev));
        let entry = PathBuf::from(format!("/sys/dev/block/{}:{}", device.0, device.1));
        let disk = whole(&entry).map_err(|_| {
            unenforceable(format!(
                "limits.io: {} is on no disk of its own (device {}:{}); use ext4 or xfs, or take the limit out",
                path.display(),
                device.0,
                device.1
            ))
        })?;
        if !disks.contains(&disk) {
            disks.push(disk);
        }
    }
    Ok(disks)
}

/// The disk of a block device's entry in sysfs: itself, what a volume (LVM, LUKS) lies on if that is one device, and what that is a
/// partition of. As systemd finds it.
fn whole(entry: &Path) -> io::Result<(u64, u64)> {
    let mut real = fs::canonicalize(entry)?;
    loop {
        let below: Vec<_> = fs::read_dir(real.join("slaves")).into_iter().flatten().flatten().collect();
        let [only] = below.as_slice() else { break };
        real = fs::canonicalize(only.path())?;
    }
    let disk = if real.join("partition").exists() { real.parent().unwrap_or(&real) } else { &real };
    let text = fs::read_to_string(disk.join("dev"))?;
    let numbers = text.trim().split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    numbers.ok_or_else(|| io::Error::other("no device number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_back_may_be_rounded_to_pages_and_have_more_words() {
        assert!(same("1073741824", "1073741824"));
        assert!(same("1073741824", "1073741999"));
        assert!(!same("1073741824", "2073741824"));
        assert!(same("8:0 rbps=1000 wbps=1000 riops=max wiops=max", "8:0 rbps=1000 wbps=1000"));
        assert!(!same("8:0 rbps=1000 wbps=max riops=max wiops=max", "8:0 rbps=1000 wbps=1000"));
        assert!(same("150000 100000", "150000 100000"));
        assert!(!same("max 100000", "150000 100000"));
        assert!(!same("max", "300"));
        assert!(!same("100", "300"), "small numbers are not rounded");
    }
}
