//! libpam from the side of a login program: a session opened and closed, and nothing authenticated.
//!
//! Only `ojail prove` is one, as host root, in a process of its own for each service. It holds `unsafe` because libpam is a
//! C library and no crate at hand has just these calls; what is here owns its handle and its strings. The modules run in
//! the calling process, as they would in sshd: whatever they do to it, such as moving it into a jail, is done.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::ptr;

/// libpam's own.
#[repr(C)]
struct RawHandle {
    _opaque: [u8; 0],
}

/// `struct pam_message`.
#[repr(C)]
struct Message {
    style: c_int,
    text: *const c_char,
}

/// `struct pam_response`.
#[repr(C)]
struct Response {
    text: *mut c_char,
    code: c_int,
}

type Converse = extern "C" fn(c_int, *mut *const Message, *mut *mut Response, *mut c_void) -> c_int;

/// `struct pam_conv`.
#[repr(C)]
struct Conversation {
    converse: Converse,
    data: *mut c_void,
}

#[link(name = "pam")]
unsafe extern "C" {
    fn pam_start(
        service: *const c_char,
        user: *const c_char,
        conversation: *const Conversation,
        handle: *mut *mut RawHandle,
    ) -> c_int;
    fn pam_set_item(handle: *mut RawHandle, item: c_int, value: *const c_void) -> c_int;
    fn pam_open_session(handle: *mut RawHandle, flags: c_int) -> c_int;
    fn pam_close_session(handle: *mut RawHandle, flags: c_int) -> c_int;
    fn pam_end(handle: *mut RawHandle, status: c_int) -> c_int;
    fn pam_strerror(handle: *mut RawHandle, code: c_int) -> *const c_char;
}

// security/_pam_types.h.
const PAM_SUCCESS: c_int = 0;
const PAM_BUF_ERR: c_int = 5;
const PAM_CONV_ERR: c_int = 19;
const PAM_PROMPT_ECHO_OFF: c_int = 1;
const PAM_PROMPT_ECHO_ON: c_int = 2;

/// What a login program tells PAM of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Item {
    /// `PAM_TTY`.
    Terminal = 3,
    /// `PAM_RHOST`.
    RemoteHost = 4,
    /// `PAM_RUSER`.
    RemoteUser = 8,
}

/// A login program's PAM handle. Ended when dropped, with the session closed if one was opened.
#[derive(Debug)]
pub(crate) struct Application {
    handle: *mut RawHandle,
    last: c_int,
    open: bool,
}

impl Application {
    /// Reads the service's configuration, for a session of this user.
    ///
    /// # Errors
    /// What libpam says, in its words.
    pub(crate) fn start(service: &str, user: &str) -> io::Result<Self> {
        let (service, user) = (CString::new(service)?, CString::new(user)?);
        let conversation = Conversation { converse, data: ptr::null_mut() };
        let mut handle = ptr::null_mut();
        // SAFETY: strings and structure live across the call, and libpam keeps copies of them.
        let code =
            unsafe { pam_start(service.as_ptr(), user.as_ptr(), &raw const conversation, &raw mut handle) };
        let application = Self { handle, last: code, open: false };
        application.check(code)?;
        Ok(application)
    }

    /// Tells PAM something of the session.
    ///
    /// # Errors
    /// What libpam says, in its words.
    pub(crate) fn tell(&mut self, item: Item, value: &str) -> io::Result<()> {
        let value = CString::new(value)?;
        // SAFETY: the handle is libpam's own, and it copies the string.
        self.last = unsafe { pam_set_item(self.handle, item as c_int, value.as_ptr().cast()) };
        self.check(self.last)
    }

    /// Opens the session: every module of the service's stack has its turn in this process.
    ///
    /// # Errors
    /// What libpam says, in its words: the session is refused.
    pub(crate) fn open_session(&mut self) -> io::Result<()> {
        // SAFETY: the handle is libpam's own.
        self.last = unsafe { pam_open_session(self.handle, 0) };
        self.check(self.last)?;
        self.open = true;
        Ok(())
    }

    fn check(&self, code: c_int) -> io::Result<()> {
        if code == PAM_SUCCESS {
            return Ok(());
        }
        // SAFETY: pam_strerror(3) does not look at the handle, and returns a constant string or null.
        let text = unsafe {
            let text = pam_strerror(self.handle, code);
            if text.is_null() { None } else { Some(CStr::from_ptr(text)) }
        };
        let text =
            text.map_or_else(|| format!("PAM error {code}"), |text| text.to_string_lossy().into_owned());
        Err(io::Error::other(text))
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        if self.handle.is_null() {
            return;
        }
        if self.open {
            // SAFETY: the handle is libpam's own, with a session open on it.
            self.last = unsafe { pam_close_session(self.handle, 0) };
        }
        // SAFETY: the handle is libpam's own, and not used any more.
        unsafe { pam_end(self.handle, self.last) };
    }
}

/// Hears what modules have to say, and answers no question: nobody is there.
extern "C" fn converse(
    count: c_int,
    messages: *mut *const Message,
    responses: *mut *mut Response,
    _data: *mut c_void,
) -> c_int {
    let count = usize::try_from(count).unwrap_or_default();
    for number in 0..count {
        // SAFETY: libpam passes an array of `count` pointers to messages (Linux-PAM's reading of pam_conv(3)).
        let style = unsafe { (**messages.add(number)).style };
        if style == PAM_PROMPT_ECHO_OFF || style == PAM_PROMPT_ECHO_ON {
            return PAM_CONV_ERR;
        }
    }
    // SAFETY: takes numbers only. The caller frees it, as pam_conv(3) says.
    let array = unsafe { libc::calloc(count.max(1), size_of::<Response>()) };
    if array.is_null() {
        return PAM_BUF_ERR;
    }
    // SAFETY: the caller lends a place for one pointer.
    unsafe { *responses = array.cast() };
    PAM_SUCCESS
}
