//! Tables for people, JSON for scripts.

use std::io::IsTerminal;
use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{ColumnConstraint, ContentArrangement, Table};
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
        let mut table = new_table();
        table.set_header(columns.iter().map(|(title, _)| title.to_uppercase()));
        for item in items {
            table.add_row(columns.iter().map(|(_, path)| cell(item.pointer(path))));
        }
        keep_short_columns(&mut table);
        print_table(&table)
    }

    /// Prints one object: a row per member as a table (nested objects as indented JSON), or whole as JSON.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn object(self, item: &Value) -> anyhow::Result<()> {
        let (Format::Table, Some(members)) = (self, item.as_object()) else {
            return json(item);
        };
        let mut table = new_table();
        for (name, value) in members {
            let text = match value {
                Value::Object(_) | Value::Array(_) => serde_json::to_string_pretty(value)?,
                _ => cell(Some(value)),
            };
            table.add_row([name.clone(), text]);
        }
        print_table(&table)
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

/// Widest content of a column that is not wrapped.
const SHORT: u16 = 12;
/// Around each cell.
const PADDING: u16 = 2;
/// Least width of other columns.
const LONG_MIN: u16 = 9;

fn new_table() -> Table {
    let mut table = Table::new();
    table
        .load_preset(NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    if !std::io::stdout().is_terminal() {
        // A script that greps wants lines, not wrapped cells.
        table.set_content_arrangement(ContentArrangement::Disabled);
    }
    table
}

/// Short columns are not wrapped as long as that leaves room for the long ones.
fn keep_short_columns(table: &mut Table) {
    let Some(available) = table.width() else {
        return;
    };
    let widths = table.column_max_content_widths();
    let taken: u16 = widths
        .iter()
        .map(|&width| if width <= SHORT { width + PADDING } else { LONG_MIN })
        .sum();
    if taken > available {
        return;
    }
    for (index, _) in widths.iter().enumerate().filter(|&(_, &width)| width <= SHORT) {
        if let Some(column) = table.column_mut(index) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
}

fn print_table(table: &Table) -> anyhow::Result<()> {
    // The preset puts one space before every line; what stands behind it is the indentation of nested values.
    let unpad = |line: String| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned();
    let text: Vec<String> = table.lines().map(unpad).collect();
    line(&text.join("\n"))
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) if text.is_empty() => "-".to_owned(),
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
