//! Lines on standard output, which holds what a command was asked for and nothing else.

use std::io::Write as _;

use serde_json::Value;

/// Prints indented JSON.
///
/// # Errors
/// When standard output is closed.
pub fn json(value: &Value) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(value)?)
}

/// Prints a line.
///
/// # Errors
/// When standard output is closed.
pub fn line(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()?;
    Ok(())
}
