//! A jail for nobody, raised and ended at once: whether this host can do it at all. Called by `ojail check`.
//!
//! It is the real raise, in a mount namespace of its own with a `/run` of its own, so the host sees nothing of it and
//! nothing is left. Only the upper is missing, which would be a change on disk; that its file system can be id-mapped
//! is tried apart.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sched::CloneFlags;
use nix::sys::wait::waitpid;
use rustix::mount::{MountAttrFlags, MountPropagationFlags, MoveMountFlags, mount_change, move_mount};

use super::door::{Door, Request};
use super::mounts::{Links, clone_tree, new_mount};
use super::{plan, start};
use crate::config::{Config, Profile};
use crate::error::{Act, Error, Result};
use crate::runtime::Corner;
use crate::sys::{self, Forked, MountAttributes, OneThread};

/// Raises a jail of this profile and ends it.
///
/// # Errors
/// What a login would be refused with.
pub fn raise(config: &Config, profile: &Profile) -> Result<()> {
    let alone = OneThread::prove().act("fork", "a process with several threads")?;
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).act("make", "a pipe")?;
    match sys::fork_into(alone, CloneFlags::empty()).act("fork", "a process to try it")? {
        Forked::Child => {
            drop(read);
            let said = try_it(config, profile).err().map(|e| e.to_string()).unwrap_or_default();
            let _ = File::from(write).write_all(said.as_bytes());
            // Not back into the caller's story, which goes on in the parent.
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
            Ok(())
        }
        Forked::Parent(child) => {
            drop(write);
            let mut said = String::new();
            File::from(read).read_to_string(&mut said).act("hear from", "the process that tries it")?;
            waitpid(child, None).act("wait for", "the process that tries it")?;
            if said.is_empty() { Ok(()) } else { Err(Error::NotRaised(said)) }
        }
    }
}

fn try_it(config: &Config, profile: &Profile) -> Result<()> {
    let plan = plan::of_nobody(config, profile)?;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).act("make", "a mount namespace")?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .act("make private", "/")?;
    let run = new_mount("tmpfs", &[("mode", "0755")], MountAttrFlags::empty())?;
    move_mount(&run, "", rustix::fs::CWD, "/run", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .act("attach", "a /run of our own")?;

    let corner = Corner::of(&plan.user);
    let _lock = corner.lock()?;
    let alive = corner.claim()?;
    corner.sweep()?;
    start::start(&plan, alive)?;
    let door = Door::knock(&corner)?.ok_or_else(|| Error::NotRunning { user: plan.user.to_string() })?;
    let mapped = if profile.writable { storage(config, door.pid()) } else { Ok(()) };
    door.tell(&Request::Stop)?;
    door.wait_for_end(std::time::Duration::from_secs(5))?;
    mapped
}

/// Whether the mount of the uppers can be id-mapped.
fn storage(config: &Config, init: i32) -> Result<()> {
    let upperdirs: &Path = &config.storage.upperdirs;
    // The deepest directory that exists: the first login makes the rest on the same file system.
    let there = upperdirs.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let userns = File::open(format!("/proc/{init}/ns/user")).act("open", "the jail's user namespace")?;
    let userns = OwnedFd::from(userns);
    let mount = clone_tree(there, Links::Refuse)?;
    let attributes = MountAttributes { idmap: Some(&userns), ..MountAttributes::default() };
    sys::mount_setattr(&mount, attributes)
        .act("id-map (this file system or kernel may not be able to)", upperdirs)
}
