//! Tables for people, JSON for scripts.

pub(super) use holdfast_program::output::{json, line};

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Format {
    /// Columns.
    #[default]
    #[value(alias = "text")]
    Table,
    /// JSON with every member, for scripts.
    Json,
}

/// Prints a result that people read as a sentence and scripts as JSON.
pub(super) fn outcome(format: Format, sentence: &str, item: &serde_json::Value) -> anyhow::Result<()> {
    match format {
        Format::Table => line(sentence),
        Format::Json => json(item),
    }
}

/// Prints rows below a header, columns as wide as their widest cell; the last one is not padded.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> anyhow::Result<()> {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells.chain([header[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let header: Vec<String> = header.iter().map(|&title| title.to_owned()).collect();
    for row in std::iter::once(&header).chain(rows) {
        let mut text = String::new();
        for (column, cell) in row.iter().enumerate() {
            text.push_str(cell);
            let padding = widths[column] - cell.chars().count() + 2;
            text.push_str(&" ".repeat(padding));
        }
        line(text.trim_end())?;
    }
    Ok(())
}
