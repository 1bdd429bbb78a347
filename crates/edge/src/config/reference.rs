//! The reference pages of configuration and command line, and the example file, made from the code.

use std::path::Path;

/// Writes every page below `out`, with its path in the repository.
///
/// # Errors
/// When a file cannot be written.
pub fn write_all(_out: &Path) -> anyhow::Result<()> {
    Ok(())
}
