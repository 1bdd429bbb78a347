//! Lines on standard output, which holds what a command was asked for and nothing else.

use std::io::{IsTerminal as _, Write as _};

use serde_json::Value;

/// Narrower widths are taken for it: no terminal is that narrow.
const WIDTH_MIN: usize = 20;

/// Columns for what people read: what `COLUMNS` says, or those of the terminal that standard output is. `None` when it goes to
/// a file or a pipe, for which whole lines are written, for `grep`.
#[must_use]
pub fn width() -> Option<usize> {
    let told = std::env::var("COLUMNS").ok();
    let told = told.and_then(|text| text.trim().parse::<usize>().ok());
    let stdout = std::io::stdout();
    let of_terminal = || {
        let size = stdout
            .is_terminal()
            .then(|| rustix::termios::tcgetwinsize(&stdout));
        let columns = usize::from(size?.ok()?.ws_col);
        (columns > 0).then_some(columns)
    };
    told.filter(|&columns| columns > 0)
        .or_else(of_terminal)
        .map(|columns| columns.max(WIDTH_MIN))
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
