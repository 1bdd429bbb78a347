//! The `holdfast-edge` program: the edge runtime and its commands.

use std::process::ExitCode;

fn main() -> ExitCode {
    holdfast_edge::commands::main()
}
