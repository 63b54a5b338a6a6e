//! `ojail-probe`: tries, from inside of a jail, everything that a jail must refuse, and says what came of it.
//!
//! Started by `ojail prove` and by the tests, as the jailed user and with no privilege of its own. It undoes what
//! succeeds, so that it does no harm where nothing holds it: on a host it merely finds much.

#![deny(unsafe_code)]

#[path = "../probe/mod.rs"]
mod probe;

fn main() -> std::process::ExitCode {
    probe::main()
}
