//! stub being written
use crate::error::Result;
use std::process::ExitCode;
pub(super) fn run(_user: Option<&str>, _json: bool) -> Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
