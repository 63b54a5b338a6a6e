//! Raising a jail: what `ojail-init` does.
//!
//! The caller ([`super::start`]) sent it the plan and waits for one line. The *host half* prepares, as host root, what
//! only host root can; the *jail half* becomes root of the new user namespace, builds the jail around itself and stays
//! as its PID 1. `docs/order.md` tells the same steps.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::mount::{
    MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change,
    move_mount, open_tree, unmount,
};

use super::mounts::{Links, attach_at, clone_place, clone_tree, new_mount, overlay};
use super::plan::Plan;
use super::start::Outcome;
use super::tree::Tree;
use super::{confine, door, fresh, furnish, life, network};
use crate::account::Username;
use crate::config::{Home, Network};
use crate::error::{Act, Error, Result};
use crate::log::{Level, Log};
use crate::sys::{self, Forked, MountAttributes};
use crate::{cgroup, ids, paths, quota};

/// The whole of `ojail-init`. Returns in neither half before all is said and done.
pub fn main() {
    let Ok(socket) = sys::inherited(0).map(UnixStream::from) else { return };
    if let Err(error) = host_half(&socket) {
        report(&socket, &Outcome::Failed(error.to_string()));
    }
}

/// Tells the caller. `false`: there is nobody to be told any more.
fn report(mut socket: &UnixStream, outcome: &Outcome) -> bool {
    serde_json::to_string(outcome).is_ok_and(|line| socket.write_all(format!("{line}\n").as_bytes()).is_ok())
}

/// The user of the jail, and their uid, as the caller told them. `None`: this is the new beginning of step 1.
fn whose() -> Option<(Username, u32)> {
    let mut arguments = std::env::args().skip(1);
    let user = Username::parse(&arguments.next()?).ok()?;
    Some((user, arguments.next()?.parse().ok()?))
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
    // 1. Inherit nothing. The login process may have had limits, ignored signals or descriptors of the host's, and, in
    //    su, the real uid of whoever called it, who could stop us; the jail must have none of them, and the steps below
    //    must not fail by them. First, because all else opens files. The session's control group goes last: under systemd
    //    this ends in a new beginning, in a scope of our own, and comes by here once more.
    sys::close_from(3).act("close", "inherited descriptors")?;
    confine::become_root(&[])?;
    sys::reset_signals().act("reset", "the signals")?;
    reset_limits()?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let _ = nix::unistd::setsid();
    if let Some((user, uid)) = whose() {
        cgroup::leave_session(&user, uid, socket)?;
    }

    // 2. Read the plan. It comes from a process that is host root, through a socket that only it holds.
    let mut text = String::new();
    socket.read_to_string(&mut text).act("read", "the plan")?;
    let plan: Plan = serde_json::from_str(&text).map_err(io::Error::from).act("understand", "the plan")?;
    let corner = plan.corner.clone();
    let mut log = Log::open("ojail-init");

    // 3. Hold the limits, and read them back: this process and all that it starts in the user's control group, the upper
    //    under its quota. Before anything is mounted: a limit that cannot be held is a jail that is not raised.
    cgroup::settle(corner.user(), plan.outside_uid(), &plan.limits, &plan.storage)?;
    if let Some(upper) = &plan.upper {
        quota::apply(upper, corner.user(), &plan.storage, &plan.limits, ids::to_outside(&plan.uid_map, 0))?;
    }

    // 4. Mount images. In the host's mount namespace, so that all jails share one mount; later there is only our own.
    //    Before that it is noted which ones the jail stands on, for whoever would remove them; here, where no limit of the
    //    login process' forbids to write.
    plan.note_layers()?;
    if let Err(e) = plan.note_bases() {
        // Nobody is kept out for that.
        log.event(Level::Error, "bases-not-noted", &[("user", &plan.user), ("why", &e)]);
    }
    let layers = plan.layers.iter().map(crate::layers::Layer::content).collect::<Result<Vec<_>>>()?;

    // 5. Leave the host's mount namespace. From here on no mount of ours can reach the host's table; and overlayfs
    //    refuses what was opened before this.
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).act("make", "a mount namespace")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .act("make private", "/")?;

    // 6. Clone the mounts that the jail is made of. Only host root can reach them; a clone is a mount of that
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

    // 7. Hang the door: bind the socket where only host root comes. The porch around it is the jail's, so that PID 1
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

    // 8. Fork into the new namespaces, all owned by the new user namespace. One clone(2), so none of them is ever
    //    the host's child for a moment.
    let mut flags = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if plan.network != Network::Host {
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

    // 9. Write the id maps, from outside: only host root may map more than one id.
    let proc = PathBuf::from(format!("/proc/{child}"));
    for (file, map) in [("uid_map", &plan.uid_map), ("gid_map", &plan.gid_map)] {
        let path = proc.join(file);
        fs::write(&path, ids::lines(map)).act("write", &path)?;
    }

    // 10. Id-map layers and storage to the jail's user namespace. What is on disk stays unshifted: root's files belong
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

    // 11. Connect a private network. The last act of the host half, which gives up the host's root for it: pasta must be in the
    //     jail's PID namespace, to end with it. Before the jail half goes on, which may not stand without its network.
    if plan.network == Network::Private {
        network::start(&plan, child)?;
    }

    // 12. Go. The jail half reports for itself from here; if we die before this, it reads an end of file and ends.
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
        // A caller that lost its patience has told everybody that there is no jail, and taken the door away.
        Ok(Some((house, porch, log))) if report(socket, &Outcome::Ready) => {
            // The caller waits for the line only; what it holds of us must not be more than that.
            let _ = socket.shutdown(std::net::Shutdown::Both);
            life::run(house, &porch, log);
        }
        Ok(_) => {}
        Err(error) => {
            report(socket, &Outcome::Failed(error.to_string()));
        }
    }
}

/// `None`: the host half failed, and reports that itself.
fn build(go: OwnedFd, handover: Handover) -> Result<Option<(life::House, OwnedFd, Log)>> {
    let Handover { plan, layers, storage, home, binds, devices, shell, door, porch, log } = handover;

    // 13. Wait for the id maps, then become root of the jail. Before, every file made would belong to nobody.
    if rustix::io::read(&go, &mut [0u8; 1][..]).act("wait for", "the id maps")? == 0 {
        return Ok(None);
    }
    drop(go);
    confine::become_root(&[])?;

    // 14. Lay out a staging tmpfs over the old /run, and work inside of it: overlayfs of older kernels takes short
    //     relative paths only, and only of mounts that are attached. Not over /: the old root must stay the topmost
    //     mount there, or step 22 would detach the staging instead.
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

    // 15. Furnish: a small top layer with the account lines and the mount points of this jail, so that neither
    //     layers nor upper need them. Made from what the jail will show, which a read-only preview tells.
    mkdirat(CWD, "f", Mode::from_raw_mode(0o755)).act("create", "the furniture")?;
    mkdirat(CWD, "empty", Mode::from_raw_mode(0o755)).act("create", "an empty directory")?;
    let upper = plan.upper.as_ref().map(|upper| upper.mounted_at("s"));
    let furniture = {
        let mut all: Vec<String> = upper.iter().map(|upper| upper.upper.display().to_string()).collect();
        all.extend(lowers.iter().cloned());
        all.push("empty".into());
        let preview = overlay(&all, None, false)?;
        let bind_is_dir: Vec<bool> = binds.iter().map(|(_, is_dir)| *is_dir).collect();
        furnish::Furniture::choose(&plan, &preview, &bind_is_dir)?
    };
    furniture.place_lower("f")?;

    // 16. Mount the overlay. By the jail's root, not the host's: host root has no id in an id-mapped upper, and the
    //     kernel would silently make the mount read-only. Hence also the look at what came of it.
    let mut all = vec!["f".to_owned()];
    all.extend(lowers);
    if plan.upper.is_none() {
        all.push("empty".into());
    }
    let root = overlay(&all, upper.as_ref(), plan.root)?;
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
    let tree = Tree::at(root, plan.user.as_str());

    // 17. Mount what every jail has fresh: /proc, /sys, /dev, /tmp, /run. /proc and /sys while the host's full ones are
    //     still in sight: the kernel refuses new ones afterwards.
    let fresh = fresh::mount(&plan, &tree, &devices)?;

    // 18. Bring in the host's directories: home, binds, the login shell. After the fresh ones, or they would be
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

    // 19. Finish the furniture where the upper shadows it, make /run's inhabitants and a home in the upper.
    furniture.settle(&plan, &tree)?;

    // 20. Set the jail's own kernel settings, while we still may: its name, no user namespaces inside, its network's.
    nix::unistd::sethostname(&plan.host).act("set the host name to", &plan.host)?;
    let is = nix::unistd::gethostname().act("read", "the host name")?;
    if is.to_str() != Some(&plan.host) {
        return Err(Error::Surprise { what: "the host name", wanted: plan.host, is: format!("{is:?}") });
    }
    let limit = "proc/sys/user/max_user_namespaces";
    tree.write(limit, "0")?;
    let is = tree.read(limit)?;
    if is.trim() != "0" {
        return Err(Error::Surprise { what: limit, wanted: "0".into(), is });
    }
    if plan.network != Network::Host {
        // ping(8) without privileges, for the user's own gid and all that are the jail's (icmp(7)).
        let groups = format!("{} {}", plan.gid, plan.gid.max(65_535));
        tree.write("proc/sys/net/ipv4/ping_group_range", &groups)?;
    }
    match plan.network {
        Network::Host => {}
        Network::None => sys::loopback_up().act("bring up", "the loopback interface")?,
        Network::Private => network::shield(&plan)?,
    }

    // 21. Mask what of /proc and /sys is not the jail's business. After 20, which writes to what is read-only from here.
    fresh.mask(&tree)?;
    if plan.network == Network::Private {
        fresh.hide_processes(&tree)?;
    }

    // 22. Make the overlay the root and let go of the host's. Nothing of the host can be reached by path afterwards.
    rustix::process::fchdir(&tree.root).act("enter", "the overlay")?;
    rustix::process::pivot_root(".", ".").act("pivot to", "the overlay")?;
    unmount(".", UnmountFlags::DETACH).act("detach", "the host's root")?;
    rustix::process::chdir("/").act("enter", "/")?;
    nothing_left_of_the_host()?;
    drop((tree, staging));

    // 23. Let go of the last of the host and of every privilege but the one to end what is inside: /dev/null for
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
    // Nobody has come in yet: whatever is here is the network's.
    let network = life::others().unwrap_or_default();
    if (plan.network == Network::Private) == network.is_empty() {
        return Err(Error::Network { why: "it has ended while the jail was raised".into() });
    }

    // 24. Open the door. listen(2) last: it stamps the socket with what we are now, and only a whole jail may answer.
    door::open(&door).act("open", "the door")?;
    Ok(Some((life::House::new(plan, network, door, kept), porch, log)))
}

/// The host's home directory, if it is the user's. Links on the way are followed (many hosts have /home elsewhere):
/// whoever could bend the way can only lead to a directory that belongs to the same user.
fn clone_home(plan: &Plan) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = openat2(CWD, &plan.home, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
        .act("open the home directory", &plan.home)?;
    // A link to a process of the user's on the host would lead to a directory of theirs too.
    const PROC: i64 = 0x9fa0;
    #[allow(clippy::unnecessary_cast, reason = "f_type has another width on some architectures")]
    if rustix::fs::fstatfs(&place).act("examine the file system of", &plan.home)?.f_type as i64 == PROC {
        let why = "leads to /proc, which is no home".into();
        return Err(Error::Unfit { path: plan.home.clone(), why });
    }
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
