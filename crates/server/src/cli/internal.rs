//! `holdfast internal`: what building Holdfast needs; hidden from the help.

use std::path::PathBuf;

use clap::Subcommand;

use super::reference;

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Write the reference pages that are made from the code
    Docs {
        /// Directory to write to
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

impl Command {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let Command::Docs { out } = self;
        reference::write_all(&out)
    }
}
