//! Tests that cannot run everywhere: they say so, or fail where all must run.
//!
//! A skipped test prints `SKIPPED name: reason` on standard error, past the test harness. With
//! `OJAIL_MUST_WORK=1` it panics instead, so that a machine meant to run everything cannot pass by
//! skipping.

use std::path::Path;
use std::thread;

use crate::files::say;

/// Leaves the test unless the given `Result` is `Ok`; its error is the reason.
///
/// ```no_run
/// lab::require!(lab::must::loop_devices());
/// lab::require!(if cfg!(target_arch = "x86_64") { Ok(()) } else { Err("x32 is x86's") });
/// ```
#[macro_export]
macro_rules! require {
    ($can:expr) => {
        if let Err(reason) = $can {
            $crate::must::skip(&reason);
            return;
        }
    };
}

/// Leaves the test unless it runs as root.
#[macro_export]
macro_rules! require_root {
    () => {
        $crate::require!($crate::must::root())
    };
}

/// Root, without which there is no host.
pub fn root() -> Result<(), String> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err("a host needs root".into()) }
}

/// Loop devices, for images and small disks.
pub fn loop_devices() -> Result<(), String> {
    root()?;
    if Path::new("/dev/loop-control").exists() { Ok(()) } else { Err("no loop devices here".into()) }
}

/// A kernel that knows this kind of file system.
pub fn file_system(kind: &str) -> Result<(), String> {
    root()?;
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.trim() == kind) {
        Ok(())
    } else {
        Err(format!("this kernel has no {kind}"))
    }
}

/// The kernel's tunnels, for networks of jails.
pub fn tunnels() -> Result<(), String> {
    root()?;
    match std::fs::File::open("/dev/net/tun") {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("no network tunnels here: /dev/net/tun: {error}")),
    }
}

/// Landlock's scopes: ABI 6, of kernel 6.12 (Documentation/userspace-api/landlock.rst).
pub fn landlock_scopes() -> Result<(), String> {
    const VERSION: libc::c_long = 1;
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: asked for its version, the call takes a null pointer and a length of zero.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0, VERSION) };
    if abi >= 6 { Ok(()) } else { Err("this kernel's Landlock has no scopes".into()) }
}

/// An emulator, for machines.
pub fn machines() -> Result<(), String> {
    root()?;
    if cfg!(not(target_arch = "x86_64")) {
        return Err("the machines of these tests are x86-64".into());
    }
    let is_there = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|directory| directory.join(crate::machine::EMULATOR).exists());
    if is_there { Ok(()) } else { Err(format!("{} is not installed", crate::machine::EMULATOR)) }
}

/// Says that this test is skipped and why, or panics if everything must work.
pub fn skip(reason: &dyn std::fmt::Display) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("a test");
    assert!(
        std::env::var_os("OJAIL_MUST_WORK").is_none_or(|value| value != "1"),
        "{name} must work here: {reason}"
    );
    say(&format!("SKIPPED {name}: {reason}"));
}
