//! Terminals: whether something can be pushed into their input, to be run by who reads it next.
//!
//! Tried on a terminal that the probe opens for itself, and on the one at standard input, which is emptied afterwards.

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;

use super::Setting;
use super::raw::{Arg, call, in_child};
use super::report::{Outcome, Report};

/// The kernel's own refusal, where `dev.tty.legacy_tiocsti` is 0.
const OFF: [Errno; 1] = [Errno::EIO];

/// Requests are of 32 bits, so the kernel does not see this one; a filter that compares 64 might.
const HIGH: u64 = 1 << 32;

pub(super) fn attack(report: &mut Report, _setting: &Setting) {
    for (attack, bits) in [("", 0), (", with a high bit set", HIGH), (", with all high bits set", !0 << 32)] {
        report.add(format!("TIOCSTI{attack}"), in_child(|| on_a_terminal(|tty| push(tty, bits))));
        // TIOCL_GETSHIFTSTATE, which changes nothing. That it is for consoles only is the driver's answer.
        let shift = |tty: Arg<'_>| {
            let mut code = [6_u8; 8];
            Outcome::of(call(
                libc::SYS_ioctl,
                [tty, (libc::TIOCLINUX | bits).into(), code.as_mut_slice().into()],
            ))
        };
        report.add(format!("TIOCLINUX{attack}"), in_child(|| on_a_terminal(shift)));
    }
    if std::io::stdin().is_terminal() {
        let push = || {
            let outcome = push(0.into(), 0);
            if !outcome.contained {
                let _ = call(libc::SYS_ioctl, [0.into(), libc::TCFLSH.into(), libc::TCIFLUSH.into()]);
            }
            outcome
        };
        report.add("TIOCSTI on standard input", in_child(push));
    }
}

fn push(tty: Arg<'_>, bits: u64) -> Outcome {
    let byte = b"\0";
    Outcome::of_or(call(libc::SYS_ioctl, [tty, (libc::TIOCSTI | bits).into(), byte.as_slice().into()]), &OFF)
}

/// Makes a terminal the controlling one of a new session, as sshd would, and goes on with it.
fn on_a_terminal(act: impl FnOnce(Arg<'_>) -> Outcome) -> Outcome {
    let Ok(master) = File::options().read(true).write(true).open("/dev/ptmx") else {
        return Outcome::contained("there are no terminals");
    };
    let fd = || Arg::from(master.as_raw_fd());
    let unlock = [0_u8; 4];
    let peer = call(libc::SYS_ioctl, [fd(), libc::TIOCSPTLCK.into(), unlock.as_slice().into()])
        .and_then(|_| nix::unistd::setsid())
        .and_then(|_| {
            call(libc::SYS_ioctl, [fd(), libc::TIOCGPTPEER.into(), (libc::O_RDWR | libc::O_NOCTTY).into()])
        })
        .and_then(|peer| {
            let peer = i32::try_from(peer).unwrap_or(-1);
            call(libc::SYS_ioctl, [peer.into(), libc::TIOCSCTTY.into(), 0.into()]).map(|_| peer)
        });
    // Hanging up would end this process, which leads the terminal's session; it ends by itself.
    std::mem::forget(master);
    match peer {
        Ok(peer) => act(peer.into()),
        Err(e) => Outcome::reached(format!("not tried: a terminal of one's own: {e:?}")),
    }
}
