//! The `holdfast` program: `serve` and the operator's command line.

use std::process::ExitCode;

/// Small and steady where the system's allocator fragments under many short-lived buffers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    holdfast_server::cli::main()
}
