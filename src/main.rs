//! `ojail`: the administrator's command. Parses its arguments and prints what [`ojail::admin`] has to say.

use std::process::ExitCode;

fn main() -> ExitCode {
    ojail::admin::main()
}
