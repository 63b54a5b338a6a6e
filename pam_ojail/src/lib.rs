//! The PAM session module: a thin door to [`ojail::jail::login`], with no policy of its own.
//!
//! It runs as root inside the login process (sshd, su, cron, login), after authentication and before that process
//! becomes the user. On success the process is in the jail; on any error the session is refused.

mod handle;

use std::ffi::CStr;

use handle::Handle;
use ojail::error::Error;
use ojail::jail::join::Session;
use ojail::jail::login::{self, Login, Visitor};
use ojail::log::{Level, Log};
use pam::constants::{PamFlag, PamResultCode};
use pam::module::{PamHandle, PamHooks};

/// The module.
#[derive(Debug)]
pub struct PamOjail;

#[allow(missing_docs, clippy::undocumented_unsafe_blocks, reason = "the macro's code")]
mod hooks {
    use super::PamOjail;
    pam::pam_hooks!(PamOjail);
}

/// The key under which PAM keeps the session for us, and by which a second line of ours in a stack knows the first.
const SESSION: &str = "ojail_session";

/// What the user is told when they are refused. The reason is for the administrator, in the log.
const REFUSAL: &str = "This host could not open your session. Please tell its administrator.";

impl PamHooks for PamOjail {
    fn sm_open_session(pamh: &mut PamHandle, _args: Vec<&CStr>, _flags: PamFlag) -> PamResultCode {
        if Handle(pamh).has_session() {
            return PamResultCode::PAM_SUCCESS;
        }
        let mut log = Log::open("pam_ojail");
        let mut user = String::new();
        match open(pamh, &mut user, &mut log) {
            Ok(code) => code,
            Err(error) => {
                log.event(Level::Error, "refused", &[("user", &user), ("why", &error)]);
                Handle(pamh).tell(REFUSAL);
                PamResultCode::PAM_SESSION_ERR
            }
        }
    }

    fn sm_close_session(_pamh: &mut PamHandle, _args: Vec<&CStr>, _flags: PamFlag) -> PamResultCode {
        // The session ends when its descriptor is closed, by PAM's own clean-up or by the end of the process. Nothing
        // depends on this call: sshd may have been killed.
        PamResultCode::PAM_SUCCESS
    }
}

fn open(pamh: &mut PamHandle, name: &mut String, log: &mut Log) -> Result<PamResultCode, Error> {
    let mut handle = Handle(pamh);
    *name = handle.user()?;
    let visitor = Visitor { user: name.clone(), service: handle.service(), from: handle.remote_host() };
    match login::open(&visitor, log)? {
        Login::Exempt(_) => Ok(PamResultCode::PAM_IGNORE),
        Login::Jailed { session, house } => {
            handle.set_env("XDG_RUNTIME_DIR", &house.runtime_dir)?;
            // pam_systemd set it for the host's session bus, which is not in the jail.
            handle.unset_env("DBUS_SESSION_BUS_ADDRESS")?;
            handle.keep::<Session>(SESSION, session)?;
            Ok(PamResultCode::PAM_SUCCESS)
        }
    }
}
