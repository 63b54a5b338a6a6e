//! Raising a jail: what `ojail-init` does, and how it is started.
//!
//! Three processes: the *caller* (a login process, or `ojail`) starts `ojail-init`, sends it the plan and reads one
//! line back; the *host half* prepares, as host root, what only host root can; the *jail half* becomes root of the
//! new user namespace, builds the jail around itself and stays as its PID 1. `docs/order.md` tells the same steps.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sched::CloneFlags;
use nix::unistd::{Gid, Uid};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, statat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change,
    move_mount, open_tree, unmount,
};
use serde::{Deserialize, Serialize};

use super::plan::Plan;
use super::{confine, door, furnish, life};
use crate::config::{Home, Network};
use crate::error::{Act, Error, Result};
use crate::log::Log;
use crate::runtime::Corner;
use crate::sys::{self, Forked, MountAttributes};
use crate::{ids, paths, runtime};

/// How long the caller waits for `ojail-init`. It takes milliseconds, unless a disk or a network home is slow.
const PATIENCE: Duration = Duration::from_secs(30);

/// What `ojail-init` reports, as one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
enum Outcome {
    Ready,
    Failed(String),
}

/// The caller's part: starts `ojail-init` with the plan, and returns when the jail stands.
///
/// `alive` is the claim on the upper; the jail's PID 1 holds it from now on. The caller holds the user's lock.
///
/// # Errors
/// [`Error::NotRaised`] with `ojail-init`'s own sentence; nothing is left behind then.
pub fn start(plan: &Plan, alive: File) -> Result<()> {
    let program = paths::init();
    let (ours, theirs) = UnixStream::pair().act("make", "a socket pair")?;
    // A fresh program with an empty environment: nothing of the login process' memory gets near the jail. The two
    // descriptors that it needs are its standard input and output; it closes whatever else it inherited.
    let mut init = Command::new(&program)
        .env_clear()
        .current_dir("/")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::from(alive))
        .stderr(Stdio::null())
        .spawn()
        .act("run", &program)?;
    let outcome = converse(&ours, plan);
    // The host half has gone by now, or never will; either way its own exit says nothing that the line does not. In
    // a process that ignores SIGCHLD there is nothing left to wait for.
    if outcome.is_err() {
        let _ = init.kill();
    }
    let _ = init.wait();
    match outcome.act("hear from", &program)? {
        Some(Outcome::Ready) => Ok(()),
        Some(Outcome::Failed(why)) => Err(Error::NotRaised(why)),
        None => Err(Error::NotRaised(format!("{program} ended without a word"))),
    }
}

fn converse(mut socket: &UnixStream, plan: &Plan) -> io::Result<Option<Outcome>> {
    socket.set_read_timeout(Some(PATIENCE))?;
    // An `ojail-init` that died at once is told by the end of file below, not by this write.
    let _ = socket.write_all(&serde_json::to_vec(plan)?);
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let mut line = String::new();
    BufReader::new(socket).read_line(&mut line)?;
    Ok(serde_json::from_str(&line).ok())
}

/// The whole of `ojail-init`. Returns in neither half before all is said and done.
pub fn main() {
    let Ok(socket) = sys::inherited(0).map(UnixStream::from) else { return };
    if let Err(error) = host_half(&socket) {
        report(&socket, &Outcome::Failed(error.to_string()));
    }
}

fn report(mut socket: &UnixStream, outcome: &Outcome) {
    if let Ok(line) = serde_json::to_string(outcome) {
        let _ = socket.write_all(format!("{line}\n").as_bytes());
    }
}

/// What the host half hands to the jail half: descriptors only, all opened by host root.
struct Handover {
    plan: Plan,
    layers: Vec<OwnedFd>,
    storage: Option<OwnedFd>,
    home: Option<OwnedFd>,
    binds: Vec<(OwnedFd, bool)>,
    devices: Vec<(&'static str, OwnedFd)>,
    shell: OwnedFd,
    door: OwnedFd,
    porch: OwnedFd,
    log: Log,
}

/// Device files of every jail, with the host's numbers (Documentation/admin-guide/devices.txt).
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

fn host_half(mut socket: &UnixStream) -> Result<()> {
    // 1. Inherit nothing. The login process may have had limits, ignored signals or descriptors of the host's; the
    //    jail must have none of them, and the steps below must not fail by them. First, because all else opens files.
    sys::close_from(3).act("close", "inherited descriptors")?;
    sys::reset_signals().act("reset", "the signals")?;
    reset_limits()?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let _ = nix::unistd::setsid();

    // 2. Read the plan. It comes from a process that is host root, through a socket that only it holds.
    let mut text = String::new();
    socket.read_to_string(&mut text).act("read", "the plan")?;
    let plan: Plan = serde_json::from_str(&text).map_err(io::Error::from).act("understand", "the plan")?;
    let corner = Corner::of(&plan.user);
    let log = Log::open("ojail-init");

    // 3. Mount images. In the host's mount namespace, so that all jails share one mount; later there is only our own.
    let layers = plan.layers.iter().map(crate::layers::Layer::content).collect::<Result<Vec<_>>>()?;

    // 4. Leave the host's mount namespace. From here on no mount of ours can reach the host's table; and overlayfs
    //    refuses what was opened before this.
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).act("make", "a mount namespace")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .act("make private", "/")?;

    // 5. Clone the mounts that the jail is made of. Only host root can reach them; a clone is a mount of that
    //    directory alone, without a way up. Flags now: later the jail's root holds them.
    let layers = layers.iter().map(|path| clone_tree(path, Links::Refuse)).collect::<Result<Vec<_>>>()?;
    let storage = plan.upper.as_ref().map(|upper| clone_tree(&upper.base, Links::Refuse)).transpose()?;
    let home = match plan.home_from {
        Home::Host => Some(clone_home(&plan)?),
        Home::Jail => None,
    };
    let mut binds = Vec::new();
    for bind in &plan.binds {
        let mount = clone_tree(&bind.source, Links::Refuse)?;
        let attributes = MountAttributes { readonly: !bind.writable, nosuid: true, nodev: true, idmap: None };
        sys::mount_setattr(&mount, attributes).act("set the flags of", &bind.source)?;
        let dir = is_dir(&mount, &bind.source)?;
        binds.push((mount, dir));
    }
    let devices = DEVICES
        .iter()
        .map(|(name, major, minor)| clone_device(name, *major, *minor))
        .collect::<Result<_>>()?;
    let shell = clone_tree(Path::new(&paths::shell()), Links::Follow)?;
    let attributes = MountAttributes { readonly: true, nosuid: true, nodev: true, idmap: None };
    sys::mount_setattr(&shell, attributes).act("set the flags of", paths::shell())?;

    // 6. Hang the door: bind the socket where only host root comes. The porch around it is the jail's, so that PID 1
    //    can take the socket away when the jail ends; it is cloned too, so PID 1 holds no way up from it.
    let porch_path = corner.porch();
    let first_uid = ids::to_outside(&plan.uid_map, 0);
    let door = door::hang(&corner.door()).act("bind", corner.door().as_path())?;
    let porch =
        open_tree(CWD, &porch_path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
            .and_then(|tree| {
                openat(&tree, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            })
            .act("clone the mount of", &porch_path)?;
    std::os::unix::fs::lchown(&porch_path, Some(first_uid), None).act("give away", &porch_path)?;

    // 7. Fork into the new namespaces, all owned by the new user namespace. One clone(2), so none of them is ever
    //    the host's child for a moment.
    let mut flags = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if plan.network == Network::None {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    let (go_read, go_write) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).act("make", "a pipe")?;
    let alone = sys::OneThread::prove().act("fork", "a process with several threads")?;
    let child = match sys::fork_into(alone, flags).act("make", "the jail's namespaces")? {
        Forked::Child => {
            drop(go_write);
            let handover = Handover { plan, layers, storage, home, binds, devices, shell, door, porch, log };
            jail_half(socket, go_read, handover);
            return Ok(());
        }
        Forked::Parent(child) => child,
    };
    drop(go_read);

    // 8. Write the id maps, from outside: only host root may map more than one id.
    let proc = PathBuf::from(format!("/proc/{child}"));
    for (file, map) in [("uid_map", &plan.uid_map), ("gid_map", &plan.gid_map)] {
        let path = proc.join(file);
        fs::write(&path, ids::lines(map)).act("write", &path)?;
    }

    // 9. Id-map layers and storage to the jail's user namespace. What is on disk stays unshifted: root's files belong
    //    to uid 0 there, and to the jail's root inside. Must be before the jail half attaches them.
    let userns = File::open(proc.join("ns/user")).act("open", "the jail's user namespace")?;
    let userns = OwnedFd::from(userns);
    let attributes = MountAttributes { idmap: Some(&userns), ..MountAttributes::default() };
    for (mount, layer) in layers.iter().zip(&plan.layers) {
        sys::mount_setattr(mount, attributes)
            .map_err(|e| not_mappable(&layer.name.to_string(), layer.image, &e))?;
    }
    if let (Some(mount), Some(upper)) = (&storage, &plan.upper) {
        sys::mount_setattr(mount, attributes)
            .act("id-map (this file system or kernel may not be able to)", &upper.base)?;
    }

    // 10. Go. The jail half reports for itself from here; if we die before this, it reads an end of file and ends.
    rustix::io::write(&go_write, b"g").act("start", "the jail half")?;
    Ok(())
}

fn not_mappable(name: &str, image: Option<crate::layers::Format>, error: &io::Error) -> Error {
    let kind = image.map_or("the file system of its directory", crate::layers::Format::name);
    let mend = match image {
        Some(crate::layers::Format::Squashfs) => "; use an erofs image or a directory, or a newer kernel",
        _ => "; use ext4, xfs, btrfs or erofs",
    };
    Error::Layer { name: name.to_owned(), why: format!("this kernel cannot id-map {kind} ({error}){mend}") }
}

/// The jail half: PID 1 of the jail, root of its user namespace and nobody outside.
fn jail_half(socket: &UnixStream, go: OwnedFd, handover: Handover) {
    match build(go, handover) {
        Ok((house, porch, log)) => {
            report(socket, &Outcome::Ready);
            // The caller waits for the line only; what it holds of us must not be more than that.
            let _ = socket.shutdown(std::net::Shutdown::Both);
            life::run(house, &porch, log);
        }
        Err(error) => report(socket, &Outcome::Failed(error.to_string())),
    }
}

fn build(go: OwnedFd, handover: Handover) -> Result<(life::House, OwnedFd, Log)> {
    let Handover { plan, layers, storage, home, binds, devices, shell, door, porch, log } = handover;

    // 11. Wait for the id maps, then become root of the jail. Before, every file made would belong to nobody.
    if rustix::io::read(&go, &mut [0u8; 1][..]).act("wait for", "the id maps")? == 0 {
        return Err(Error::NotRaised("the host half of ojail-init ended early".into()));
    }
    drop(go);
    confine::become_jail_root(&[])?;

    // 12. Lay out a staging tmpfs over the old /run, and work inside of it: overlayfs of older kernels takes short
    //     relative paths only, and only of mounts that are attached. Not over /: the old root must stay the topmost
    //     mount there, or step 19 would detach the staging instead.
    let staging = new_mount("tmpfs", &[("mode", "0755")], MountAttrFlags::empty())?;
    move_mount(&staging, "", CWD, "/run", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .act("attach", "the staging tmpfs")?;
    rustix::process::fchdir(&staging).act("enter", "the staging tmpfs")?;
    let mut lowers = Vec::new();
    for (number, mount) in layers.iter().enumerate() {
        let name = number.to_string();
        attach_at(mount, &name)?;
        lowers.push(name);
    }
    if let Some(mount) = &storage {
        attach_at(mount, "s")?;
    }
    drop((layers, storage));

    // 13. Furnish: a small top layer with the account lines and the mount points of this jail, so that neither
    //     layers nor upper need them. Made from what the jail will show, which a read-only preview tells.
    mkdirat(CWD, "f", Mode::from_raw_mode(0o755)).act("create", "the furniture")?;
    mkdirat(CWD, "empty", Mode::from_raw_mode(0o755)).act("create", "an empty directory")?;
    let upper = plan.upper.as_ref().map(|upper| Path::new("s").join(&upper.upper));
    let furniture = {
        let mut all: Vec<String> = upper.iter().map(|upper| upper.display().to_string()).collect();
        all.extend(lowers.iter().cloned());
        all.push("empty".into());
        let preview = overlay(&all, None)?;
        furnish::Furniture::choose(&plan, &preview)?
    };
    furniture.place_lower("f")?;

    // 14. Mount the overlay. By the jail's root, not the host's: host root has no id in an id-mapped upper, and the
    //     kernel would silently make the mount read-only. Hence also the look at what came of it.
    let mut all = vec!["f".to_owned()];
    all.extend(lowers);
    if plan.upper.is_none() {
        all.push("empty".into());
    }
    let work = plan.upper.as_ref().map(|upper| Path::new("s").join(&upper.work));
    let root = overlay(&all, upper.as_deref().zip(work.as_deref()))?;
    let readonly = rustix::fs::fstatvfs(&root)
        .act("examine", "the overlay")?
        .f_flag
        .contains(rustix::fs::StatVfsMountFlags::RDONLY);
    if readonly && plan.upper.is_some() {
        return Err(Error::Surprise {
            what: "the overlay",
            wanted: "writable".into(),
            is: "read-only".into(),
        });
    }
    mkdirat(CWD, "m", Mode::from_raw_mode(0o755)).act("create", "the mount point of the overlay")?;
    attach_at(&root, "m")?;
    let tree = Tree { root, user: plan.user.to_string() };

    // 15. Mount what every jail has fresh. /proc while the host's full one is still in sight: the kernel refuses a new
    //     one afterwards. Mount points are found without following any link: the user may have planted one.
    let nothing = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let noexec = nothing | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    tree.mount(&new_mount("proc", &[], noexec)?, "proc")?;
    tree.mount(&new_mount("tmpfs", &[("mode", "0755")], MountAttrFlags::MOUNT_ATTR_NOSUID)?, "dev")?;
    for (name, device) in &devices {
        tree.file(&format!("dev/{name}"))?;
        tree.mount_on(device, &format!("dev/{name}"), OFlags::empty())?;
    }
    // Group 5 is tty in Debian (base-passwd).
    let pts = [("mode", "0620"), ("ptmxmode", "0666"), ("gid", "5"), ("newinstance", "")];
    tree.mount(&new_mount("devpts", &pts, noexec & !MountAttrFlags::MOUNT_ATTR_NODEV)?, "dev/pts")?;
    tree.mount(&new_mount("tmpfs", &[("mode", "1777")], nothing)?, "dev/shm")?;
    tree.mount(&new_mount("mqueue", &[], noexec)?, "dev/mqueue")?;
    for (link, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
    ] {
        tree.link(&format!("dev/{link}"), target)?;
    }
    tree.mount(&new_mount("tmpfs", &[("mode", "1777")], nothing)?, "tmp")?;
    tree.mount(&new_mount("tmpfs", &[("mode", "0755")], nothing)?, "run")?;

    // 16. Bring in the host's directories: home, binds, the login shell. After the fresh ones, or they would be
    //     hidden.
    if let Some(home) = &home {
        tree.mount(home, relative(&plan.home))?;
    }
    for ((mount, dir), bind) in binds.iter().zip(&plan.binds) {
        let target = relative(&bind.target);
        if *dir {
            tree.mount(mount, target)?;
        } else {
            tree.file(target)?;
            tree.mount_on(mount, target, OFlags::empty())?;
        }
    }
    let shell_path = paths::shell();
    tree.file(relative(Path::new(&shell_path)))?;
    tree.mount_on(&shell, relative(Path::new(&shell_path)), OFlags::empty())?;
    drop((home, binds, devices, shell));

    // 17. Finish the furniture where the upper shadows it, make /run's inhabitants and a home in the upper.
    furniture.settle(&plan, &tree)?;

    // 18. Set the jail's own kernel settings, while we still may: no user namespaces inside, loopback up.
    let limit = "proc/sys/user/max_user_namespaces";
    tree.write(limit, "0")?;
    let is = tree.read(limit)?;
    if is.trim() != "0" {
        return Err(Error::Surprise { what: limit, wanted: "0".into(), is });
    }
    if plan.network == Network::None {
        sys::loopback_up().act("bring up", "the loopback interface")?;
    }

    // 19. Make the overlay the root and let go of the host's. Nothing of the host can be reached by path afterwards.
    rustix::process::fchdir(&tree.root).act("enter", "the overlay")?;
    rustix::process::pivot_root(".", ".").act("pivot to", "the overlay")?;
    unmount(".", UnmountFlags::DETACH).act("detach", "the host's root")?;
    rustix::process::chdir("/").act("enter", "/")?;
    nothing_left_of_the_host()?;
    drop((tree, staging));

    // 20. Let go of the last of the host and of every privilege but the one to end what is inside: /dev/null for
    //     standard output and error (the claim on the upper moves to a number of its own), then the capabilities.
    let null = openat(CWD, "/dev/null", OFlags::RDWR, Mode::empty()).act("open", "/dev/null")?;
    let alive = sys::inherited(1).act("keep", "the claim on the upper")?;
    let kept = rustix::io::fcntl_dupfd_cloexec(&alive, 3).act("keep", "the claim on the upper")?;
    for number in [1, 2] {
        let mut target =
            std::mem::ManuallyDrop::new(sys::inherited(number).act("replace", "a standard stream")?);
        rustix::io::dup2(&null, &mut target).act("replace", "a standard stream")?;
    }
    std::mem::forget(alive);
    confine::become_init()?;

    // 21. Open the door. listen(2) last: it stamps the socket with what we are now, and only a whole jail may answer.
    door::open(&door).act("open", "the door")?;
    Ok((life::House::new(plan, door, kept), porch, log))
}

/// Whether links in a path are followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Links {
    /// No: an administrator's path that is a link is a surprise.
    Refuse,
    /// Yes: the path is our own, and only root can change it.
    Follow,
}

/// A detached clone of the mount at `path`, that directory or file being its root.
fn clone_tree(path: &Path, links: Links) -> Result<OwnedFd> {
    let resolve = ResolveFlags::NO_MAGICLINKS
        | if links == Links::Refuse { ResolveFlags::NO_SYMLINKS } else { ResolveFlags::empty() };
    let place = openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
    let place = place.map_err(|e| match e {
        rustix::io::Errno::LOOP => Error::Unfit {
            path: path.to_owned(),
            why: "has a symbolic link in it; name the real path in the configuration".into(),
        },
        e => Error::Act { act: "open", what: path.display().to_string(), source: e.into() },
    })?;
    clone_place(&place, path)
}

fn clone_place(place: &OwnedFd, path: &Path) -> Result<OwnedFd> {
    // Without what is mounted below it: no directory brings more of the host than the configuration names.
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(place, "", flags).act("clone the mount of", path)
}

/// The host's home directory, if it is the user's. Links on the way are followed (many hosts have /home elsewhere):
/// whoever could bend the way can only lead to a directory that belongs to the same user.
fn clone_home(plan: &Plan) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = openat2(CWD, &plan.home, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
        .act("open the home directory", &plan.home)?;
    let owner = rustix::fs::fstat(&place).act("examine", &plan.home)?.st_uid;
    if owner != plan.uid {
        return Err(Error::Unfit {
            path: plan.home.clone(),
            why: format!(
                "is the home of {} but belongs to uid {owner}; `chown {0}`, or set `home = \"jail\"` in profile {}",
                plan.user, plan.profile
            ),
        });
    }
    let mount = clone_place(&place, &plan.home)?;
    let attributes = MountAttributes { nosuid: true, nodev: true, ..MountAttributes::default() };
    sys::mount_setattr(&mount, attributes).act("set the flags of", &plan.home)?;
    Ok(mount)
}

/// One of the host's device files, if it is the device that its name says.
fn clone_device(name: &'static str, major: u32, minor: u32) -> Result<(&'static str, OwnedFd)> {
    let path = PathBuf::from("/dev").join(name);
    let mount = clone_tree(&path, Links::Refuse)?;
    let stat = rustix::fs::fstat(&mount).act("examine", &path)?;
    let is = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::CharacterDevice
        || is != (major, minor)
    {
        let why = format!("is not the character device {major}:{minor}");
        return Err(Error::Unfit { path, why });
    }
    Ok((name, mount))
}

fn is_dir(mount: &OwnedFd, path: &Path) -> Result<bool> {
    let stat = rustix::fs::fstat(mount).act("examine", path)?;
    Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory)
}

/// A new, detached file system of the kernel's.
fn new_mount(kind: &'static str, options: &[(&str, &str)], flags: MountAttrFlags) -> Result<OwnedFd> {
    let mount = || -> rustix::io::Result<OwnedFd> {
        let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in options {
            if value.is_empty() {
                fsconfig_set_flag(&fs, *key)?
            } else {
                fsconfig_set_string(&fs, *key, *value)?
            }
        }
        fsconfig_create(&fs)?;
        fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, flags)
    };
    mount().act("mount a new", kind)
}

/// A detached overlay of the directories `lowers`, topmost first, and of an upper and work directory if there are any.
/// All paths are relative to the working directory.
fn overlay(lowers: &[String], upper: Option<(&Path, &Path)>) -> Result<OwnedFd> {
    let mount = || -> rustix::io::Result<OwnedFd> {
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&fs, "source", "ojail")?;
        fsconfig_set_string(&fs, "lowerdir", lowers.join(":"))?;
        if let Some((upper, work)) = upper {
            fsconfig_set_string(&fs, "upperdir", upper)?;
            fsconfig_set_string(&fs, "workdir", work)?;
        }
        // user.overlay.* instead of trusted.*: what the jail's root may write, and all that it may plant.
        fsconfig_set_flag(&fs, "userxattr")?;
        fsconfig_create(&fs)?;
        let readonly =
            if upper.is_none() { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
        fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV | readonly)
    };
    mount().act("mount", "the overlay of the jail")
}

fn attach(mount: &OwnedFd, place: &OwnedFd) -> rustix::io::Result<()> {
    move_mount(
        mount,
        "",
        place,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// Makes a directory of the working directory and attaches the mount there.
fn attach_at(mount: &OwnedFd, name: &str) -> Result<()> {
    if statat(CWD, name, AtFlags::SYMLINK_NOFOLLOW).is_err() {
        mkdirat(CWD, name, Mode::from_raw_mode(0o755)).act("create", name)?;
    }
    move_mount(mount, "", CWD, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).act("attach", name)
}

fn relative(path: &Path) -> &str {
    let path = path.strip_prefix("/").unwrap_or(path);
    std::str::from_utf8(path.as_os_str().as_bytes()).unwrap_or_default()
}

/// Looks whether the overlay is the one mount at `/`: a process that joins is put on the topmost one.
fn nothing_left_of_the_host() -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").act("read", "the jail's mount table")?;
    // Fields of proc_pid_mountinfo(5): the fifth is the mount point, the one after "-" the file system.
    let at_root = |line: &&str| line.split(' ').nth(4) == Some("/");
    let roots: Vec<&str> = table
        .lines()
        .filter(at_root)
        .filter_map(|line| line.split_once(" - ")?.1.split(' ').next())
        .collect();
    if roots == ["overlay"] {
        return Ok(());
    }
    Err(Error::Surprise {
        what: "what is mounted at / of the jail",
        wanted: "overlay".into(),
        is: roots.join(", "),
    })
}

/// No limit of the login process reaches the jail's PID 1: pam_limits may have set the user's already.
fn reset_limits() -> Result<()> {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
    for (resource, soft, hard) in [
        (Resource::RLIMIT_FSIZE, RLIM_INFINITY, RLIM_INFINITY),
        (Resource::RLIMIT_NPROC, RLIM_INFINITY, RLIM_INFINITY),
        (Resource::RLIMIT_DATA, RLIM_INFINITY, RLIM_INFINITY),
        (Resource::RLIMIT_AS, RLIM_INFINITY, RLIM_INFINITY),
        (Resource::RLIMIT_CPU, RLIM_INFINITY, RLIM_INFINITY),
        // Sessions are descriptors of PID 1; this is the kernel's default ceiling (fs/file.c, sysctl fs.nr_open).
        (Resource::RLIMIT_NOFILE, 65_536, 65_536),
        (Resource::RLIMIT_CORE, 0, 0),
    ] {
        // Raising a hard limit takes SYS_RESOURCE, which host root in a container may lack: then as high as can be.
        if setrlimit(resource, soft, hard).is_err() {
            let (_, most) = getrlimit(resource).act("read", format!("{resource:?}"))?;
            setrlimit(resource, soft.min(most), most).act("reset", format!("{resource:?}"))?;
        }
    }
    Ok(())
}

/// The jail's file system from outside of it: everything is found below its root, and no link is followed.
pub(super) struct Tree {
    root: OwnedFd,
    user: String,
}

impl Tree {
    /// Never out of the root, never through a link, be it the last part or one on the way.
    const RESOLVE: ResolveFlags =
        ResolveFlags::IN_ROOT.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

    /// A tree for looking only.
    pub(super) fn at(root: OwnedFd, user: &str) -> Self {
        Self { root, user: user.to_owned() }
    }

    fn open(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), Self::RESOLVE)
    }

    fn blocked(&self, path: &str, source: impl Into<io::Error>) -> Error {
        Error::Blocked { path: Path::new("/").join(path), user: self.user.clone(), source: source.into() }
    }

    /// The parent's descriptor and the last part of the path. Missing directories are made.
    fn parent<'a>(&self, path: &'a str) -> Result<(OwnedFd, &'a str)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.dir(parent)?, name))
    }

    /// A directory, made with its parents if it is missing.
    pub(super) fn dir(&self, path: &str) -> Result<OwnedFd> {
        let open = || self.open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW);
        match open() {
            Err(rustix::io::Errno::NOENT) => {
                let (parent, name) = self.parent(path)?;
                match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => open().map_err(|e| self.blocked(path, e)),
                    Err(e) => Err(self.blocked(path, e)),
                }
            }
            dir => dir.map_err(|e| self.blocked(path, e)),
        }
    }

    /// A plain file, made empty if it is missing, for something to be mounted on.
    pub(super) fn file(&self, path: &str) -> Result<()> {
        match self.open(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(self.blocked(path, e)),
        }
        let (parent, name) = self.parent(path)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop).map_err(|e| self.blocked(path, e))
    }

    fn mount(&self, mount: &OwnedFd, path: &str) -> Result<()> {
        self.dir(path)?;
        self.mount_on(mount, path, OFlags::DIRECTORY)
    }

    fn mount_on(&self, mount: &OwnedFd, path: &str, kind: OFlags) -> Result<()> {
        let place =
            self.open(path, OFlags::PATH | OFlags::NOFOLLOW | kind).map_err(|e| self.blocked(path, e))?;
        attach(mount, &place).map_err(|e| self.blocked(path, e))
    }

    fn link(&self, path: &str, target: &str) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        rustix::fs::symlinkat(target, &parent, name).map_err(|e| self.blocked(path, e))
    }

    /// The text of a plain file; `None` if there is none, or if it is anything else.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        // O_NONBLOCK: a fifo in the place of a file must not hold the login.
        let file = self.open(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK).ok()?;
        let mut file = File::from(file);
        let plain = file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= 1 << 20);
        let mut text = Vec::new();
        (plain && file.read_to_end(&mut text).is_ok()).then(|| String::from_utf8_lossy(&text).into_owned())
    }

    /// Whether anything is at this path, a link included.
    pub(super) fn exists(&self, path: &str) -> bool {
        !matches!(self.open(path, OFlags::PATH | OFlags::NOFOLLOW), Err(rustix::io::Errno::NOENT))
    }

    /// Whether there is a directory at this path.
    pub(super) fn is_dir(&self, path: &str) -> bool {
        self.open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW).is_ok()
    }

    /// Whether there is a symbolic link at this path, or on the way.
    pub(super) fn is_link(&self, path: &str) -> bool {
        matches!(self.open(path, OFlags::PATH | OFlags::NOFOLLOW), Err(rustix::io::Errno::LOOP))
    }

    /// Puts a plain file there in one step: whoever reads sees the old one or the new.
    pub(super) fn replace(&self, path: &str, text: &str, mode: u32, owner: (u32, u32)) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        let temp = format!(".{name}.ojail");
        let replace = || -> io::Result<()> {
            let _ = rustix::fs::unlinkat(&parent, temp.as_str(), AtFlags::empty());
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(openat(&parent, temp.as_str(), flags, Mode::from_raw_mode(0o600))?);
            file.write_all(text.as_bytes())?;
            nix::unistd::fchown(&file, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))?;
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            Ok(rustix::fs::renameat(&parent, temp.as_str(), &parent, name)?)
        };
        replace().map_err(|e| self.blocked(path, e))
    }

    /// A directory with this mode and owner.
    pub(super) fn owned_dir(&self, path: &str, mode: u32, owner: (u32, u32)) -> Result<()> {
        self.dir(path)?;
        let own = || -> io::Result<()> {
            let dir = File::from(self.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)?);
            nix::unistd::fchown(&dir, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))?;
            dir.set_permissions(fs::Permissions::from_mode(mode))
        };
        own().map_err(|e| self.blocked(path, e))
    }

    /// Names and modes of the plain files in a directory; none if there is no such directory.
    pub(super) fn files(&self, path: &str) -> Vec<(String, u32)> {
        let Ok(dir) = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) else {
            return Vec::new();
        };
        let Ok(entries) = rustix::fs::Dir::read_from(&dir) else { return Vec::new() };
        let mut files = Vec::new();
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().to_str() else { continue };
            if let Ok(stat) = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile {
                    files.push((name.to_owned(), stat.st_mode & 0o777));
                }
            }
        }
        files
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let mut file = File::from(self.open(path, OFlags::WRONLY).act("open", path)?);
        file.write_all(text.as_bytes()).act("write", path)
    }

    fn read(&self, path: &str) -> Result<String> {
        let mut text = String::new();
        let mut file = File::from(self.open(path, OFlags::RDONLY).act("open", path)?);
        file.read_to_string(&mut text).act("read", path)?;
        Ok(text)
    }
}

/// Prepares the corner of `/run/ojail` in which the jail will hang its door.
///
/// # Errors
/// [`Error::Act`].
pub fn sweep_porch(corner: &Corner) -> Result<()> {
    let porch = corner.porch();
    match fs::symlink_metadata(&porch) {
        // What an ended jail owned is root's again, until the next one takes it over.
        Ok(meta) if meta.is_dir() => {
            if meta.uid() != 0 {
                std::os::unix::fs::lchown(&porch, Some(0), None).act("take back", &porch)?;
            }
            Ok(())
        }
        _ => runtime::private_dir(&porch),
    }
}
