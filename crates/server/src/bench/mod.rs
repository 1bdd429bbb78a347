//! `holdfast bench`: measures a hub, or a broker beside it, over real sockets.
//!
//! The command line calls [`BenchCommand::run`] with the login options and the output format that are common to all
//! commands.
//!
//! Every measurement starts a hub of its own, with this executable and a data directory that goes away afterwards, unless
//! the command line names a running one. A load test of the hub that `./holdfast-data` or the profile happens to point at
//! would be a surprise, so those are used only when `--login` or `--data-dir` asks for them.

use crate::cli::output::Format;
use crate::cli::profile::Wanted;

/// Arguments of `holdfast bench`.
#[derive(clap::Args, Debug)]
pub struct BenchCommand {
    #[command(subcommand)]
    measurement: Measurement,
}

#[derive(clap::Subcommand, Debug)]
enum Measurement {}

impl BenchCommand {
    /// Runs the measurement and prints its report.
    ///
    /// # Errors
    /// When a hub or broker cannot be started or reached, or the load did not get through.
    pub fn run(self, wanted: &Wanted, format: Format) -> anyhow::Result<()> {
        let _ = (wanted, format);
        match self.measurement {}
    }
}
