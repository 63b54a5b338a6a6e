//! The few things that are asked of libpam, with the two that `pam-bindings` lacks.

use std::ffi::{CString, c_char, c_int};
use std::io;

use ojail::error::{Act, Error};
use pam::constants::{PAM_ERROR_MSG, PamResultCode};
use pam::conv::Conv;
use pam::items::{RHost, Service};
use pam::module::PamHandle;

use crate::SESSION;

unsafe extern "C" {
    fn pam_putenv(pamh: *mut PamHandle, name_value: *const c_char) -> c_int;
    fn pam_getenv(pamh: *mut PamHandle, name: *const c_char) -> *const c_char;
}

/// A PAM handle, as this module uses it.
pub(crate) struct Handle<'a>(pub(crate) &'a mut PamHandle);

impl Handle<'_> {
    /// The user that is logging in.
    pub(crate) fn user(&mut self) -> Result<String, Error> {
        self.0.get_user(None).map_err(code).act("ask PAM for", "the user")
    }

    /// The service's name; empty if PAM has none.
    pub(crate) fn service(&self) -> String {
        let item = self.0.get_item::<Service>().ok().flatten();
        item.map(|service| service.0.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The remote host; empty for a local session.
    pub(crate) fn remote_host(&self) -> String {
        let item = self.0.get_item::<RHost>().ok().flatten();
        item.map(|host| host.0.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Says one line to the user, if the application has a way to show it.
    pub(crate) fn tell(&self, line: &str) {
        if let Ok(Some(conversation)) = self.0.get_item::<Conv<'_>>() {
            let _ = conversation.send(PAM_ERROR_MSG, line);
        }
    }

    /// Sets a variable of the session's environment.
    pub(crate) fn set_env(&mut self, name: &str, value: &str) -> Result<(), Error> {
        self.putenv(&format!("{name}={value}")).act("set", name)
    }

    /// Removes a variable of the session's environment, if it is there.
    pub(crate) fn unset_env(&mut self, name: &str) -> Result<(), Error> {
        let cname = CString::new(name).map_err(io::Error::from).act("unset", name)?;
        // Asked first: libpam logs a complaint about removing what is not there.
        // SAFETY: the handle is the one that PAM called us with; the result is only compared.
        let there = unsafe { !pam_getenv(&raw mut *self.0, cname.as_ptr()).is_null() };
        if there { self.putenv(name).act("unset", name) } else { Ok(()) }
    }

    fn putenv(&mut self, text: &str) -> io::Result<()> {
        let text = CString::new(text)?;
        // SAFETY: the handle is the one that PAM called us with, and libpam copies the string.
        match unsafe { pam_putenv(&raw mut *self.0, text.as_ptr()) } {
            0 => Ok(()),
            result => Err(io::Error::other(format!("libpam says {result}"))),
        }
    }

    /// Gives a value to PAM, which drops it when the session's handle ends.
    pub(crate) fn keep<T: 'static>(&mut self, key: &str, value: T) -> Result<(), Error> {
        self.0.set_data(key, Box::new(value)).map_err(code).act("keep", "the session")
    }

    /// Whether this module has opened a session on this handle already.
    pub(crate) fn has_session(&self) -> bool {
        // SAFETY: this key is set by this module only, always to this type.
        unsafe { self.0.get_data::<ojail::jail::join::Session>(SESSION) }.is_ok()
    }
}

fn code(code: PamResultCode) -> io::Error {
    io::Error::other(format!("libpam says {code:?}"))
}
