//! What `ojail mount` has mounted of jails that have ended: their users cannot log in.

use super::{Report, Setting};
use crate::error::Error;
use crate::jail::door::Door;
use crate::runtime::corners;

const SUBJECT: &str = "mounts";

pub(super) fn check(report: &mut Report, setting: &Setting) {
    // As anybody else, nothing of /run/ojail can be seen; that root is needed is told by other subjects.
    if !setting.root {
        return;
    }
    let corners = match corners() {
        Ok(corners) => corners,
        Err(e) => return report.fault(SUBJECT, &e),
    };
    for corner in corners {
        match corner.view() {
            Ok(None) => {}
            Ok(Some(path)) => {
                // That a jail which cannot be asked has ended is not said.
                if matches!(Door::knock(&corner), Ok(None)) {
                    report.fault(SUBJECT, &Error::ViewLeft { user: corner.user().to_string(), path });
                }
            }
            Err(e) => report.fault(SUBJECT, &e),
        }
    }
}
