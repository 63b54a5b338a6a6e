//! A host's system log: a socket at `/dev/log`, and a thread that keeps what comes in.

use std::fs::{self, Permissions};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::namespaces::Namespaces;

/// Longer than any line that syslog(3) sends.
const LONGEST_LINE: usize = 64 * 1024;

#[derive(Default)]
struct Lines {
    so_far: Mutex<Vec<String>>,
    more: Condvar,
    ended: AtomicBool,
}

pub(crate) struct Syslog {
    socket: UnixDatagram,
    lines: Arc<Lines>,
    reader: Option<JoinHandle<()>>,
}

impl Syslog {
    pub(crate) fn listen(inside: &Namespaces) -> Self {
        let socket = inside.enter(|| {
            let socket = UnixDatagram::bind("/dev/log").expect("the host's /dev is ours");
            fs::set_permissions("/dev/log", Permissions::from_mode(0o666)).expect("the socket is ours");
            socket
        });
        let lines = Arc::<Lines>::default();
        let reader = thread::spawn({
            let socket = socket.try_clone().expect("a socket can be cloned");
            let lines = Arc::clone(&lines);
            move || keep_lines(&socket, &lines)
        });
        Self { socket, lines, reader: Some(reader) }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.so_far.lock().unwrap().clone()
    }

    /// Waits until a line contains the text, and gives that line.
    pub(crate) fn wait_for(&self, text: &str, limit: Duration) -> Option<String> {
        let find = |lines: &[String]| lines.iter().find(|line| line.contains(text)).cloned();
        let lines = self.lines.so_far.lock().unwrap();
        let (lines, _) =
            self.lines.more.wait_timeout_while(lines, limit, |lines| find(lines).is_none()).unwrap();
        find(&lines)
    }
}

impl Drop for Syslog {
    fn drop(&mut self) {
        self.lines.ended.store(true, Ordering::Release);
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn keep_lines(socket: &UnixDatagram, lines: &Lines) {
    let mut buffer = vec![0; LONGEST_LINE];
    while let Ok(length) = socket.recv(&mut buffer) {
        // An empty line is either somebody's empty datagram or the socket shut down.
        if lines.ended.load(Ordering::Acquire) {
            return;
        }
        let line = String::from_utf8_lossy(&buffer[..length]);
        let line = without_priority(line.trim_end_matches(['\0', '\n'])).to_owned();
        lines.so_far.lock().unwrap().push(line);
        lines.more.notify_all();
    }
}

/// `<86>Nov  1 12:00:00 sshd[7]: …` without the number.
fn without_priority(line: &str) -> &str {
    match line.strip_prefix('<').and_then(|rest| rest.split_once('>')) {
        Some((number, rest)) if number.bytes().all(|byte| byte.is_ascii_digit()) => rest,
        _ => line,
    }
}
