//! `holdfast-edge`: the edge runtime in one daemon, and its commands.

use clap::Parser;

/// The edge runtime: runs modules, keeps their identities, routes and stores their messages.
#[derive(Parser)]
#[command(name = "holdfast-edge", version)]
struct Arguments {}

fn main() -> anyhow::Result<()> {
    Arguments::parse();
    Ok(())
}
