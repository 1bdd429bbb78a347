//! `check`
use std::process::ExitCode;
use clap::Args;
use super::Global;
/// Flags of `check`.
#[derive(Args, Debug)]
pub struct CheckArgs {}
pub(super) fn run(_: &Global, _: &CheckArgs) -> anyhow::Result<ExitCode> { Ok(ExitCode::SUCCESS) }
pub(super) fn list(_: &Global) -> anyhow::Result<()> { Ok(()) }
