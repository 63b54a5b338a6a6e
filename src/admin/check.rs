//! stub being written
use std::process::ExitCode;
use crate::error::Result;
pub(super) fn run(_user: Option<&str>, _json: bool) -> Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
