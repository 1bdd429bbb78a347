//! Lines on standard output, which holds what a command was asked for and nothing else.

use std::io::{IsTerminal as _, Write as _};

use serde_json::Value;

/// Columns of the terminal that standard output is. `None` when it is none: into a file or a pipe whole lines are written, for
/// `grep`.
#[must_use]
pub fn terminal_width() -> Option<usize> {
    let stdout = std::io::stdout();
    let size = stdout
        .is_terminal()
        .then(|| rustix::termios::tcgetwinsize(&stdout));
    let columns = usize::from(size?.ok()?.ws_col);
    (columns > 0).then_some(columns)
}

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
