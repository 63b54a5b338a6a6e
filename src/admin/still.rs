//! How a running jail keeps still while its upper is copied: frozen, or ended. For `ojail snapshot`, `ojail backup` and `ojail export`.
//!
//! Frozen, every write(2) that has begun has returned, and what was written, through a mapping too, is what a copy of the upper
//! reads: an overlay's files have no cache of their own but that of the upper's. So the copy is as the disk would be after the power
//! had failed at that moment, but for what was not written back yet, which is in it. What programs had in their own memory, and
//! asynchronous direct I/O under way, is not. Root of the host, who may write through `ojail mount`, is not held up.

use std::time::Duration;

use super::{farewell, reset};
use crate::error::{Error, Result};
use crate::freezer::{self, Frozen};
use crate::jail::door::Door;
use crate::jail::end;
use crate::runtime::Corner;

/// How long what is left of a jail has to be gone.
const ENDING: Duration = Duration::from_secs(6);

/// What is done with a jail that is running.
#[derive(Debug, clap::Args)]
pub(super) struct Choice {
    /// Freeze a running jail for as long as the copy takes (the default)
    #[arg(long, conflicts_with = "end")]
    freeze: bool,
    /// End a running jail first; refused while sessions are open
    #[arg(long)]
    end: bool,
    /// With --end: end open sessions too
    #[arg(long, requires = "end")]
    force: bool,
}

/// A jail that writes nothing.
#[derive(Debug)]
pub(super) enum Still {
    /// None is running, and the caller's lock keeps it so.
    Gone,
    /// It was ended for this.
    Ended,
    /// It goes on when this is dropped.
    Frozen(Frozen),
}

impl Choice {
    /// As the flags of a verb say that has flags of its own.
    pub(super) fn of(end: bool, force: bool) -> Self {
        Self { freeze: !end, end, force: end && force }
    }

    /// Sees to it that nothing of this user's writes. The caller holds the user's lock for as long as it must stay so.
    pub(super) fn hold(&self, corner: &Corner) -> Result<Still> {
        let user = corner.user();
        if self.end {
            return Ok(if reset::ended(corner, self.force, farewell::COPY)? {
                Still::Ended
            } else {
                Still::Gone
            });
        }
        if let Some(door) = Door::knock(corner)? {
            return Ok(Still::Frozen(freezer::freeze(corner, door.pid(), || end::members(&door))?));
        }
        // PID 1 may be dead, and the overlay still where an administrator looks at it.
        if let Some(path) = corner.view()? {
            return Err(Error::ViewOpen { user: user.to_string(), path });
        }
        // Or its login processes not yet.
        if corner.gone(ENDING)? {
            Ok(Still::Gone)
        } else {
            Err(Error::StillEnding { user: user.to_string() })
        }
    }
}

impl Still {
    /// Lets the jail go on. Only after this is it known that nothing was written meanwhile.
    pub(super) fn done(self) -> Result<()> {
        match self {
            Self::Gone | Self::Ended => Ok(()),
            Self::Frozen(frozen) => frozen.thaw(),
        }
    }
}
