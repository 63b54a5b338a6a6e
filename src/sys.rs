//! The only `unsafe` of the library: system calls for which no crate at hand has a safe function.
//!
//! Each function is as narrow as its one use, and says in its `SAFETY` comment what the callee requires.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use nix::unistd::Pid;

use crate::seccomp::Instruction;

/// The two sides of a fork.
#[derive(Debug)]
pub enum Forked {
    /// The old process, with the new one's pid.
    Parent(Pid),
    /// The new process.
    Child,
}

/// The proof that this process has one thread: forking it, or moving it to other namespaces, leaves none behind.
#[derive(Debug, Clone, Copy)]
pub struct OneThread(());

impl OneThread {
    /// Asks the kernel.
    ///
    /// # Errors
    /// `EBUSY` if this process has other threads.
    pub fn prove() -> io::Result<Self> {
        // It does nothing where there is one thread, and is invalid where there are more (unshare(2)).
        match nix::sched::unshare(nix::sched::CloneFlags::CLONE_THREAD) {
            Ok(()) => Ok(Self(())),
            Err(nix::errno::Errno::EINVAL) => Err(io::Error::from_raw_os_error(libc::EBUSY)),
            Err(other) => Err(other.into()),
        }
    }
}

/// Forks a child into new namespaces, all owned by its new user namespace if that is among `flags`.
///
/// # Errors
/// What clone(2) says.
pub fn fork_into(_proof: OneThread, flags: nix::sched::CloneFlags) -> io::Result<Forked> {
    let flags = libc::c_long::from(flags.bits()) | libc::c_long::from(libc::SIGCHLD);
    let null = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: clone(2) without CLONE_VM and with a null stack is fork(2): both sides go on with their own copy of the
    // address space. There is one thread, as the proof says, so no lock of another thread stays locked in the child.
    match unsafe { libc::syscall(libc::SYS_clone, flags, null, null, null, null) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => i32::try_from(pid)
            .map(|pid| Forked::Parent(Pid::from_raw(pid)))
            .map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW)),
    }
}

/// What may be set on a detached mount.
#[derive(Debug, Clone, Copy, Default)]
pub struct MountAttributes<'a> {
    /// Ids on disk are ids of this user namespace.
    pub idmap: Option<&'a OwnedFd>,
    /// Nothing can be written through it.
    pub readonly: bool,
    /// setuid, setgid and file capabilities have no effect.
    pub nosuid: bool,
    /// Device files cannot be opened.
    pub nodev: bool,
}

/// Sets attributes on a mount, and on those below it where it was cloned with them.
///
/// # Errors
/// What `mount_setattr(2)` says; `EINVAL` if the file system cannot be id-mapped by this kernel.
pub fn mount_setattr(mount: impl AsFd, attributes: MountAttributes<'_>) -> io::Result<()> {
    let mut set = 0;
    let mut userns_fd = 0;
    if let Some(userns) = attributes.idmap {
        set |= libc::MOUNT_ATTR_IDMAP;
        userns_fd = u64::try_from(userns.as_raw_fd()).unwrap_or_default();
    }
    for (wanted, flag) in [
        (attributes.readonly, libc::MOUNT_ATTR_RDONLY),
        (attributes.nosuid, libc::MOUNT_ATTR_NOSUID),
        (attributes.nodev, libc::MOUNT_ATTR_NODEV),
    ] {
        if wanted {
            set |= flag;
        }
    }
    let attr = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd };
    // SAFETY: the path is an empty C string, `attr` lives across the call, and its size is the one that is passed.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes every descriptor from `first` on. Only for a process that owns none of them, right after it was executed.
///
/// # Errors
/// What `close_range(2)` says.
pub fn close_from(first: u32) -> io::Result<()> {
    close_range(first, 0)
}

/// Lets no descriptor from `first` on survive the next exec.
///
/// # Errors
/// What `close_range(2)` says.
pub fn cloexec_from(first: u32) -> io::Result<()> {
    close_range(first, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: u32, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: takes numbers only. Callers of `close_from` own no descriptor in the range yet.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether a capability, by its number, is in the bounding set of this thread; `None` if the kernel knows none of that
/// number, nor any higher one.
#[must_use]
pub fn bounding_set_has(number: u32) -> Option<bool> {
    // SAFETY: PR_CAPBSET_READ takes a number only.
    match unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(number), 0, 0, 0) } {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// Drops a capability, by its number, from the bounding set of this thread.
///
/// # Errors
/// What `prctl(2)` says.
pub fn drop_from_bounding_set(number: u32) -> io::Result<()> {
    // SAFETY: PR_CAPBSET_DROP takes a number only.
    match unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives this process a session keyring of its own, an empty one, instead of the one that it inherited.
///
/// # Errors
/// What `keyctl(2)` says.
pub fn new_session_keyring() -> io::Result<()> {
    let no_name = std::ptr::null::<libc::c_char>();
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING takes a name or a null pointer.
    match unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, no_name) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Puts a system call filter on this thread, and on all that it will fork and exec. It stays; more can only be added.
/// `rustix::thread::secure_computing_mode` reads back whether there is one.
///
/// # Errors
/// `EACCES` with neither `no_new_privs` nor `SYS_ADMIN` in the user namespace; what else `seccomp(2)` says.
pub fn seccomp(program: &[Instruction]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SPEC_ALLOW: before Linux 5.16, a filter would also switch on the costly protection against speculative store bypass for
    // every process below. Newer kernels do not by default, and neither do container runtimes.
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW);
    // SAFETY: the kernel reads `len` instructions at `filter`, which is a slice of that length, copies them, and writes
    // nothing. What it does not understand it refuses.
    match unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes over a descriptor that was inherited by number.
///
/// # Errors
/// `EBADF` if it is not open.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD takes a number only.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, as asked above, and each number is taken over once, at the start of a program.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Every signal back to its default action and none blocked, whatever the login process had.
///
/// # Errors
/// What `sigaction(2)` says.
pub fn reset_signals() -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: SIG_DFL installs no handler, so there is no code of ours that could run in a signal's context.
        unsafe { sigaction(signal, &default) }?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// A project's quota and what it uses of it.
#[derive(Debug, Clone, Copy)]
pub struct Quota {
    /// Bytes used.
    pub bytes: u64,
    /// Inodes used.
    pub inodes: u64,
    most: (u64, u64),
}

impl Quota {
    /// The hard limits, in bytes and inodes; 0 is none.
    #[must_use]
    pub fn limits(&self) -> (u64, u64) {
        self.most
    }
}

/// quotactl(2)'s unit of space.
const QUOTA_BLOCK: u64 = 1024;

/// The quota of a project on the file system of this directory (`quotactl_fd(2)`, Linux 5.14).
///
/// # Errors
/// `ESRCH` if project quotas are off, `ENOENT` if the project has none, and what else the kernel says.
pub fn project_quota(dir: impl AsFd, project: u32) -> io::Result<Quota> {
    // SAFETY: an all-zero dqblk is a valid value of this plain C struct.
    let mut block: libc::dqblk = unsafe { std::mem::zeroed() };
    quotactl(dir, libc::Q_GETQUOTA, project, &mut block)?;
    Ok(Quota {
        bytes: block.dqb_curspace,
        inodes: block.dqb_curinodes,
        most: (block.dqb_bhardlimit * QUOTA_BLOCK, block.dqb_ihardlimit),
    })
}

/// Sets the hard limits of a project, in bytes and inodes; 0 is none.
///
/// # Errors
/// As [`project_quota`].
pub fn set_project_quota(dir: impl AsFd, project: u32, bytes: u64, inodes: u64) -> io::Result<()> {
    // SAFETY: as above.
    let mut block: libc::dqblk = unsafe { std::mem::zeroed() };
    block.dqb_bhardlimit = bytes.div_ceil(QUOTA_BLOCK);
    block.dqb_ihardlimit = inodes;
    block.dqb_valid = QIF_LIMITS;
    quotactl(dir, libc::Q_SETQUOTA, project, &mut block)
}

/// The kind of quota (linux/quota.h).
const PRJQUOTA: libc::c_int = 2;

/// Both kinds of limits are valid in a dqblk (linux/quota.h: `QIF_BLIMITS | QIF_ILIMITS`).
const QIF_LIMITS: u32 = 1 | 4;

fn quotactl(dir: impl AsFd, command: libc::c_int, project: u32, block: &mut libc::dqblk) -> io::Result<()> {
    // QCMD of linux/quota.h.
    let command = (command << 8) | PRJQUOTA;
    let block: *mut libc::dqblk = block;
    // SAFETY: both commands read or write one dqblk, which lives across the call.
    let done =
        unsafe { libc::syscall(libc::SYS_quotactl_fd, dir.as_fd().as_raw_fd(), command, project, block) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether project quotas are enforced on the file system of this directory, and not only counted (`Q_XGETQSTATV`).
///
/// # Errors
/// As [`project_quota`].
pub fn project_quotas_hold(dir: impl AsFd) -> io::Result<bool> {
    // `struct fs_quota_statv` of linux/dqblk_xfs.h: a version (1), a pad, 16 bits of flags, and numbers; less than 256 bytes.
    const Q_XGETQSTATV: libc::c_int = 0x5808;
    const FS_QUOTA_PDQ_ENFD: u16 = 1 << 5;
    let mut state = [0u8; 256];
    state[0] = 1;
    let command = (Q_XGETQSTATV << 8) | PRJQUOTA;
    // SAFETY: the command writes one fs_quota_statv, for which there is room, and which lives across the call.
    let done = unsafe {
        libc::syscall(libc::SYS_quotactl_fd, dir.as_fd().as_raw_fd(), command, 0, state.as_mut_ptr())
    };
    if done == 0 {
        Ok(u16::from_ne_bytes([state[2], state[3]]) & FS_QUOTA_PDQ_ENFD != 0)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    padding: [u8; 8],
}

/// New files inherit the project (linux/fs.h).
const PROJINHERIT: u32 = 0x200;

#[allow(missing_docs, reason = "the macros' functions")]
mod ioctl {
    use super::FsXattr;
    nix::ioctl_read!(fs_get_xattr, b'X', 31, FsXattr);
    nix::ioctl_write_ptr!(fs_set_xattr, b'X', 32, FsXattr);
}

/// The project of a file or directory, and whether new files below inherit it.
///
/// # Errors
/// `ENOTTY` if the file system knows none.
pub fn project(file: impl AsFd) -> io::Result<(u32, bool)> {
    let mut attributes = FsXattr::default();
    // SAFETY: FS_IOC_FSGETXATTR fills an fsxattr, which lives across the call.
    unsafe { ioctl::fs_get_xattr(file.as_fd().as_raw_fd(), &raw mut attributes) }?;
    Ok((attributes.projid, attributes.xflags & PROJINHERIT != 0))
}

/// Gives a file or directory to a project; below a directory new files inherit it.
///
/// # Errors
/// As [`project`].
pub fn set_project(file: impl AsFd, project: u32) -> io::Result<()> {
    let file = file.as_fd();
    let is_dir = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode)
        == rustix::fs::FileType::Directory;
    let mut attributes = FsXattr::default();
    // SAFETY: as above; FS_IOC_FSSETXATTR reads one.
    unsafe { ioctl::fs_get_xattr(file.as_raw_fd(), &raw mut attributes) }?;
    if attributes.projid == project && (!is_dir || attributes.xflags & PROJINHERIT != 0) {
        return Ok(());
    }
    attributes.projid = project;
    if is_dir {
        attributes.xflags |= PROJINHERIT;
    }
    // SAFETY: as above.
    unsafe { ioctl::fs_set_xattr(file.as_raw_fd(), &raw const attributes) }?;
    Ok(())
}

/// Brings the loopback interface of this network namespace up.
///
/// # Errors
/// What the ioctls say.
pub fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: an all-zero ifreq is a valid value of this plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes_with_nul()) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which lives across the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_several_threads_is_told() {
        // As any is in which tests run; that one with a single thread is not refused, every login shows.
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv());
        let proof = OneThread::prove();
        drop(done);
        let _ = other.join();
        assert_eq!(proof.err().and_then(|e| e.raw_os_error()), Some(libc::EBUSY));
    }
}
