//! Tables and texts for people, as wide as their terminal; JSON for scripts.
//!
//! Not with a crate for tables, which the daemon would carry for a few commands.

use holdfast_program::output::terminal_width;
pub(super) use holdfast_program::output::{json, line};

/// Narrower widths are taken for it: no terminal is that narrow.
const WIDTH_MIN: usize = 20;
/// Between columns.
const GAP: usize = 2;
/// In place of what is cut off.
const CUT: char = '…';

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Format {
    /// Columns, as wide as the terminal.
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

/// A column of a table. Columns stand in the order of their importance: where there is no room, the last ones are cut first,
/// then left out.
pub(super) struct Column {
    title: &'static str,
    /// Fewest characters that are still worth showing.
    least: usize,
    /// What is cut off is its beginning: the end of an image's name tells more.
    from_start: bool,
}

impl Column {
    /// Is shown whole or not at all.
    pub(super) const fn whole(title: &'static str) -> Self {
        Self::cut_to(title, usize::MAX)
    }

    /// May lose its end.
    pub(super) const fn cut_to(title: &'static str, least: usize) -> Self {
        Column {
            title,
            least,
            from_start: false,
        }
    }

    /// May lose its beginning.
    pub(super) const fn end_of(title: &'static str, least: usize) -> Self {
        Column {
            title,
            least,
            from_start: true,
        }
    }
}

/// Columns of the terminal; where there is none, what `COLUMNS` says.
fn width() -> Option<usize> {
    let told = || std::env::var("COLUMNS").ok()?.trim().parse().ok();
    terminal_width()
        .or_else(|| told().filter(|&columns| columns > 0))
        .map(|columns| columns.max(WIDTH_MIN))
}

/// Prints rows below a header.
pub(super) fn table(columns: &[Column], rows: &[Vec<String>]) -> anyhow::Result<()> {
    for text in lay_out(columns, rows, width()) {
        line(&text)?;
    }
    Ok(())
}

/// Prints names with what is to be said of each; below each other where there is no room beside.
pub(super) fn definitions(columns: &[Column; 2], rows: &[Vec<String>]) -> anyhow::Result<()> {
    let fits = width().is_none_or(|width| natural(columns, rows).iter().sum::<usize>() + GAP <= width);
    if fits {
        return table(columns, rows);
    }
    for row in rows {
        let mut cells = row.iter();
        if let (Some(name), Some(text)) = (cells.next(), cells.next()) {
            line(name)?;
            paragraph("  ", text)?;
        }
    }
    Ok(())
}

/// Prints a value per line behind its name, long ones on several lines.
pub(super) fn fields(pairs: &[(String, String)]) -> anyhow::Result<()> {
    let widest = pairs.iter().map(|(name, _)| name.chars().count()).max();
    let indent = widest.unwrap_or_default() + GAP;
    for (name, value) in pairs {
        paragraph(&format!("{name:indent$}"), value)?;
    }
    Ok(())
}

/// Prints a text behind `head`, its further lines indented as far.
pub(super) fn paragraph(head: &str, text: &str) -> anyhow::Result<()> {
    for text in wrap(head, text, width()) {
        line(&text)?;
    }
    Ok(())
}

/// Breaks a text between words. A word that is too long stays whole: paths and names are copied from the terminal.
fn wrap(head: &str, text: &str, width: Option<usize>) -> Vec<String> {
    let Some(width) = width else {
        return vec![format!("{head}{text}").trim_end().to_owned()];
    };
    let indent = head.chars().count();
    let mut lines = Vec::new();
    let mut current = head.to_owned();
    let mut empty = true;
    for word in text.split_whitespace() {
        let needed = current.chars().count() + usize::from(!empty) + word.chars().count();
        if !empty && needed > width {
            lines.push(current.trim_end().to_owned());
            current = " ".repeat(indent);
            empty = true;
        }
        if !empty {
            current.push(' ');
        }
        current.push_str(word);
        empty = false;
    }
    lines.push(current.trim_end().to_owned());
    lines
}

/// Width of each column when nothing is cut.
fn natural(columns: &[Column], rows: &[Vec<String>]) -> Vec<usize> {
    let width = |(index, column): (usize, &Column)| {
        let cells = rows.iter().filter_map(|row| row.get(index));
        let cells = cells.map(|cell| cell.chars().count());
        cells.chain([column.title.chars().count()]).max().unwrap_or(0)
    };
    columns.iter().enumerate().map(width).collect()
}

/// Widths of the columns that are shown.
fn fit(columns: &[Column], natural: &[usize], width: usize) -> Vec<usize> {
    let least: Vec<usize> = columns
        .iter()
        .zip(natural)
        .map(|(column, &natural)| column.least.min(natural))
        .collect();
    let total = |widths: &[usize]| widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
    let mut shown = columns.len();
    while shown > 1 && total(&least[..shown]) > width {
        shown -= 1;
    }
    let mut widths = natural[..shown].to_vec();
    for index in (0..shown).rev() {
        let over = total(&widths).saturating_sub(width);
        widths[index] -= over.min(widths[index] - least[index]);
    }
    // Only the first one is left, and is too wide.
    if let [only] = widths.as_mut_slice() {
        *only = (*only).min(width);
    }
    widths
}

/// The lines of a table; the last column is not padded.
fn lay_out(columns: &[Column], rows: &[Vec<String>], width: Option<usize>) -> Vec<String> {
    let natural = natural(columns, rows);
    let widths = match width {
        Some(width) => fit(columns, &natural, width),
        None => natural,
    };
    let header: Vec<String> = columns.iter().map(|column| column.title.to_owned()).collect();
    let text = |row: &Vec<String>| {
        let mut text = String::new();
        for ((cell, column), &width) in row.iter().zip(columns).zip(&widths) {
            let cell = cut(cell, width, column.from_start);
            let padding = width.saturating_sub(cell.chars().count()) + GAP;
            text.push_str(&cell);
            text.push_str(&" ".repeat(padding));
        }
        text.trim_end().to_owned()
    };
    std::iter::once(&header).chain(rows).map(text).collect()
}

/// A cell with at most so many characters.
fn cut(cell: &str, width: usize, from_start: bool) -> String {
    let length = cell.chars().count();
    if length <= width {
        return cell.to_owned();
    }
    let kept = width.saturating_sub(1);
    if from_start {
        std::iter::once(CUT)
            .chain(cell.chars().skip(length - kept))
            .collect()
    } else {
        cell.chars().take(kept).chain([CUT]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[Column] = &[
        Column::cut_to("NAME", 16),
        Column::whole("STATUS"),
        Column::cut_to("DESCRIPTION", 12),
        Column::end_of("CONFIG", 18),
    ];

    fn rows() -> Vec<Vec<String>> {
        let row = |cells: [&str; 4]| cells.map(str::to_owned).to_vec();
        vec![
            row([
                "edgeAgent",
                "running",
                "Up 3 minutes",
                "mcr.microsoft.com/azureiotedge-agent:1.5",
            ]),
            row([
                "simulated-temperature-sensor",
                "failed",
                "Failed (137) 42 seconds ago",
                "registry.plant.example:5000/sensors/temperature:2.0",
            ]),
        ]
    }

    #[test]
    fn tables_fit_every_width() {
        for width in 20..140 {
            for text in lay_out(LIST, &rows(), Some(width)) {
                assert!(text.chars().count() <= width, "{width}: {text}");
            }
        }
        let at = |width| lay_out(LIST, &rows(), Some(width)).join("\n");
        assert_eq!(
            at(40),
            "NAME               STATUS   DESCRIPTION\n\
             edgeAgent          running  Up 3 minutes\n\
             simulated-temper…  failed   Failed (137…"
        );
        assert_eq!(
            at(60),
            "NAME               STATUS   DESCRIPTION   CONFIG\n\
             edgeAgent          running  Up 3 minutes  …iotedge-agent:1.5\n\
             simulated-temper…  failed   Failed (137…  …s/temperature:2.0"
        );
        assert_eq!(
            at(80),
            "NAME                          STATUS   DESCRIPTION            CONFIG\n\
             edgeAgent                     running  Up 3 minutes           …iotedge-agent:1.5\n\
             simulated-temperature-sensor  failed   Failed (137) 42 seco…  …s/temperature:2.0"
        );
        let whole = lay_out(LIST, &rows(), None).join("\n");
        assert_eq!(at(140), whole);
        assert!(
            at(120).contains("Failed (137) 42 seconds ago") && !whole.contains(CUT),
            "{whole}"
        );
    }

    #[test]
    fn texts_are_broken_between_words_and_nowhere_else() {
        assert_eq!(
            wrap("ok  ", "the clock is right (host-local-time)", Some(24)),
            ["ok  the clock is right", "    (host-local-time)"]
        );
        let path = "/var/lib/holdfast-edge/identity/edge-ca.pem";
        assert_eq!(
            wrap("x ", &format!("{path} ends"), Some(20)),
            [format!("x {path}"), "  ends".to_owned()]
        );
        assert_eq!(wrap("x ", "one two", None), ["x one two"]);
        assert_eq!(wrap("name  ", "", Some(40)), ["name"]);
    }
}
