//! `ojail-init`: raises a jail, then is its PID 1. Started by the PAM module or by `ojail`, never by hand.
//!
//! Static, so that it needs nothing of the host's libraries once the host's root is gone, and so that it stays small.

fn main() {
    ojail::jail::raise::main();
}
