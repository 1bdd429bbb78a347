//! Tables for people, JSON for scripts.

mod table;

use std::time::Duration;

use holdfast_program::output::terminal_width;
pub use holdfast_program::output::{json, line};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Format {
    /// Columns that fit the terminal.
    #[default]
    Table,
    /// JSON with every member, for scripts.
    Json,
}

impl Format {
    /// Prints a list: `columns` of each item as a table, or the items whole as JSON.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn list(self, items: &[Value], columns: &[(&str, &str)]) -> anyhow::Result<()> {
        if self == Format::Json {
            return json(&Value::Array(items.to_vec()));
        }
        let titles: Vec<String> = columns.iter().map(|(title, _)| title.to_uppercase()).collect();
        let cells = |item: &Value| columns.iter().map(|(_, path)| cell(item.pointer(path))).collect();
        let rows: Vec<Vec<String>> = items.iter().map(cells).collect();
        line(&table::list(&titles, &rows, terminal_width()))
    }

    /// Prints one object: a row per member as a table (nested objects as indented JSON), or whole as JSON.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn object(self, item: &Value) -> anyhow::Result<()> {
        let (Format::Table, Some(members)) = (self, item.as_object()) else {
            return json(item);
        };
        let mut rows = Vec::with_capacity(members.len());
        for (name, value) in members {
            let text = match value {
                Value::Object(_) | Value::Array(_) => serde_json::to_string_pretty(value)?,
                _ => cell(Some(value)),
            };
            rows.push((name.clone(), text));
        }
        line(&table::members(&rows, terminal_width()))
    }

    /// Prints a result that people read as a sentence and scripts as JSON.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn outcome(self, sentence: &str, item: &Value) -> anyhow::Result<()> {
        match self {
            Format::Table => line(sentence),
            Format::Json => json(item),
        }
    }
}

/// Prints a row per name and value.
///
/// # Errors
/// When standard output is closed.
pub fn members(rows: &[(String, String)]) -> anyhow::Result<()> {
    line(&table::members(rows, terminal_width()))
}

/// Prints a text on lines that fit the terminal.
///
/// # Errors
/// When standard output is closed.
pub fn paragraph(text: &str) -> anyhow::Result<()> {
    line(&table::paragraph(text, terminal_width()))
}

/// A line on standard error that changes while something is waited for; invisible when that is not a terminal.
#[must_use]
pub fn spinner() -> ProgressBar {
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(200));
    spinner
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => table::EMPTY.to_owned(),
        Some(Value::String(text)) if text.is_empty() => table::EMPTY.to_owned(),
        Some(Value::String(text)) if text.starts_with("0001-01-01T00:00:00") => "never".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// A progress bar on standard error; invisible when that is not a terminal.
#[must_use]
pub fn progress(total: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if let Ok(style) =
        ProgressStyle::with_template("{prefix} {bar:40} {pos}/{len} {per_sec} {elapsed_precise} {msg}")
    {
        bar.set_style(style);
    }
    bar.set_prefix(what);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_readable() {
        assert_eq!(cell(None), "-");
        assert_eq!(cell(Some(&Value::from("0001-01-01T00:00:00Z"))), "never");
        assert_eq!(cell(Some(&Value::from(3))), "3");
    }
}
