//! The command line.
pub mod failure;
pub mod output;
/// Runs.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
pub mod client;
pub mod profile;
