//! Tables that fit their terminal: as they are, then without empty columns and fractions of seconds, then with long cells on
//! several lines, and where that does not help either a paragraph for each row. Nothing else is cut off.

use comfy_table::presets::NOTHING;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width};

/// What stands for no value.
pub(super) const EMPTY: &str = "-";
/// Between two columns.
const GAP: usize = 2;
/// Cells up to this width, as are times, are never put on several lines.
const WHOLE: usize = 28;
/// Least width of a column whose cells are.
const NARROW: usize = 20;
/// The same for the first column, by which a row is known.
const FIRST: usize = 40;
/// Least width of a value beside its name.
const VALUE: usize = 30;

/// A table with a row of titles. `width` is that of the terminal, if it goes to one.
pub(super) fn list(titles: &[String], rows: &[Vec<String>], width: Option<usize>) -> String {
    let all: Vec<usize> = (0..titles.len()).collect();
    let natural = widths(titles, rows);
    let Some(width) = width.filter(|&width| total(&natural) > width) else {
        return grid(titles, rows, &all, None);
    };
    let filled: Vec<usize> = all
        .into_iter()
        .filter(|&column| column == 0 || rows.iter().any(|row| row[column] != EMPTY))
        .collect();
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| coarse(cell)).collect())
        .collect();
    let natural = widths(titles, &rows);
    let natural: Vec<usize> = filled.iter().map(|&column| natural[column]).collect();
    match fit(&natural, width) {
        Some(fitted) => grid(titles, &rows, &filled, Some(&fitted)),
        None => paragraphs(titles, &rows, width),
    }
}

/// A time without its fraction of a second; anything else as it is.
fn coarse(cell: &str) -> String {
    let shape = b"0000-00-00T00:00:00.";
    let alike = |(byte, like): (u8, &u8)| {
        if *like == b'0' {
            byte.is_ascii_digit()
        } else {
            byte == *like
        }
    };
    match cell.split_at_checked(shape.len()) {
        Some((time, fraction))
            if time.bytes().zip(shape).all(alike)
                && fraction
                    .strip_suffix('Z')
                    .is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit())) =>
        {
            format!("{}Z", time.trim_end_matches('.'))
        }
        _ => cell.to_owned(),
    }
}

/// A row per name and value. As [`list`], with the value below its name where both do not fit beside each other.
pub(super) fn members(rows: &[(String, String)], width: Option<usize>) -> String {
    let titles = [String::new(), String::new()];
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|(name, value)| vec![name.clone(), value.clone()])
        .collect();
    let natural = widths(&titles, &cells);
    let Some(width) = width.filter(|&width| total(&natural) > width) else {
        return rowed(&cells, None);
    };
    let cells: Vec<Vec<String>> = cells
        .iter()
        .map(|row| row.iter().map(|cell| coarse(cell)).collect())
        .collect();
    let beside = width.saturating_sub(natural[0] + GAP);
    if beside >= VALUE {
        return rowed(&cells, Some(&[natural[0], beside]));
    }
    let mut lines = Vec::new();
    for row in cells {
        let (name, value) = (row[0].clone(), row[1].clone());
        let row = [row];
        if total(&widths(&titles, &row)) <= width {
            lines.push(rowed(&row, Some(&[natural[0].min(width), beside.max(1)])));
            continue;
        }
        lines.push(name);
        let below = rowed(&[vec![value]], Some(&[width.saturating_sub(GAP).max(1)]));
        lines.extend(below.lines().map(|line| format!("{:GAP$}{line}", "")));
    }
    lines.join("\n")
}

/// A text on lines of at most `width`, broken between words.
pub(super) fn paragraph(text: &str, width: Option<usize>) -> String {
    let row = [vec![text.to_owned()]];
    rowed(
        &row,
        width
            .map(|width| [width.max(1)])
            .as_ref()
            .map(<[usize; 1]>::as_slice),
    )
}

fn paragraphs(titles: &[String], rows: &[Vec<String>], width: usize) -> String {
    let paragraph = |row: &Vec<String>| {
        let filled: Vec<(String, String)> = titles
            .iter()
            .zip(row)
            .enumerate()
            .filter(|(column, (_, value))| *column == 0 || *value != EMPTY)
            .map(|(_, (title, value))| (title.to_lowercase(), value.clone()))
            .collect();
        let names = filled.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let cells: Vec<Vec<String>> = filled
            .into_iter()
            .map(|(name, value)| vec![name, value])
            .collect();
        let beside = width.saturating_sub(names + GAP).max(1);
        rowed(&cells, Some(&[names, beside]))
    };
    rows.iter().map(paragraph).collect::<Vec<_>>().join("\n\n")
}

/// The widths of columns in `width`, when that can be done.
fn fit(natural: &[usize], width: usize) -> Option<Vec<usize>> {
    let least = |(column, &natural): (usize, &usize)| {
        let whole = if column == 0 { FIRST } else { WHOLE };
        if natural <= whole { natural } else { NARROW }
    };
    let mut fitted: Vec<usize> = natural.iter().enumerate().map(least).collect();
    let mut left = width.checked_sub(total(&fitted))?;
    // What is left goes to those that lack something, a character each in turn.
    while left > 0 {
        let before = left;
        for (fitted, natural) in fitted.iter_mut().zip(natural) {
            if left > 0 && *fitted < *natural {
                *fitted += 1;
                left -= 1;
            }
        }
        if left == before {
            break;
        }
    }
    Some(fitted)
}

fn total(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1)
}

fn plain() -> Table {
    let mut table = Table::new();
    table
        .load_preset(NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// How wide the columns are by themselves.
fn widths(titles: &[String], rows: &[Vec<String>]) -> Vec<usize> {
    let mut table = plain();
    table.set_header(titles);
    table.add_rows(rows);
    table
        .column_max_content_widths()
        .into_iter()
        .map(usize::from)
        .collect()
}

fn grid(titles: &[String], rows: &[Vec<String>], columns: &[usize], fitted: Option<&[usize]>) -> String {
    let pick = |row: &[String]| {
        columns
            .iter()
            .map(|&column| row[column].clone())
            .collect::<Vec<_>>()
    };
    let mut table = plain();
    table.set_header(pick(titles));
    table.add_rows(rows.iter().map(|row| pick(row)));
    text(table, fitted)
}

fn rowed(rows: &[Vec<String>], fitted: Option<&[usize]>) -> String {
    let mut table = plain();
    table.add_rows(rows);
    text(table, fitted)
}

fn text(mut table: Table, fitted: Option<&[usize]>) -> String {
    if let Some(fitted) = fitted {
        let narrow = |width: usize| u16::try_from(width).unwrap_or(u16::MAX);
        // The paddings on both sides count, too.
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(narrow(total(fitted) + GAP));
        for (index, width) in fitted.iter().enumerate() {
            if let Some(column) = table.column_mut(index) {
                column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(narrow(width + GAP))));
            }
        }
    }
    // The preset puts one space before every line; what stands behind it is the indentation of nested values.
    let unpad = |line: String| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned();
    table.lines().map(unpad).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(row: &[&str]) -> Vec<String> {
        row.iter().map(|&cell| cell.to_owned()).collect()
    }

    const IMAGE: &str = "registry.plant.example:5000/line-4/temperature-filter:1.17.3-amd64";
    const SAID: &str = "the container ended with exit code 137 and is started again in 40 seconds";

    fn modules() -> (Vec<String>, Vec<Vec<String>>) {
        let titles = [
            "MODULE",
            "WANTED",
            "REPORTED",
            "EXIT",
            "RESTARTS",
            "CONNECTION",
            "STARTED",
            "IMAGE",
            "DESCRIPTION",
        ];
        let time = "2026-03-01T10:00:00.1234567Z";
        let rows = [
            [
                "edgeAgent",
                "running",
                "running",
                "0",
                "-",
                "Connected",
                time,
                "agent:1.5",
                "-",
            ],
            [
                "filter",
                "running",
                "backoff",
                "137",
                "12",
                "Disconnected",
                time,
                IMAGE,
                SAID,
            ],
        ];
        (cells(&titles), rows.iter().map(|row| cells(row)).collect())
    }

    /// No line is longer than the terminal, and no word of any cell is lost.
    fn check(text: &str, width: usize, rows: &[Vec<String>]) {
        for line in text.lines() {
            assert!(
                line.chars().count() <= width,
                "{} > {width}: {line}\n{text}",
                line.chars().count()
            );
        }
        let squeeze = |text: &str| text.split_whitespace().collect::<String>();
        let all = squeeze(text);
        for cell in rows
            .iter()
            .flatten()
            .map(|cell| cell.trim_end_matches(".1234567Z"))
            .filter(|cell| *cell != EMPTY)
        {
            // Cells beside each other on several lines are found by their first word.
            let first: String = cell
                .chars()
                .take_while(|c| !c.is_whitespace())
                .take(NARROW)
                .collect();
            assert!(all.contains(&squeeze(&first)), "{cell}\n{text}");
        }
    }

    #[test]
    fn a_table_fits_terminals_of_any_width() {
        let (titles, rows) = modules();
        for width in [40, 60, 80, 100, 120, 160, 200, 300] {
            check(&list(&titles, &rows, Some(width)), width, &rows);
        }
    }

    #[test]
    fn a_wide_terminal_and_a_file_get_a_line_per_row() {
        let (titles, rows) = modules();
        for width in [None, Some(300)] {
            let text = list(&titles, &rows, width);
            assert_eq!(text.lines().count(), 3, "{text}");
            assert!(text.contains(IMAGE) && text.contains(SAID), "{text}");
        }
    }

    #[test]
    fn a_narrow_terminal_gets_a_paragraph_per_row() {
        let (titles, rows) = modules();
        let text = list(&titles, &rows, Some(40));
        assert!(
            text.starts_with("module      edgeAgent\nwanted      running\n"),
            "{text}"
        );
        assert!(text.contains("\n\nmodule       filter\n"), "{text}");
        // What is empty is left out, and the description goes on under its beginning.
        assert!(!text.contains(" -"), "{text}");
        assert!(
            text.contains("description  the container ended with\n             exit code 137"),
            "{text}"
        );
    }

    #[test]
    fn empty_columns_go_before_anything_is_put_on_several_lines() {
        let titles = cells(&["DEVICE", "CONNECTION", "CODE", "VERSION", "LAST ACTIVITY"]);
        let rows = vec![cells(&[
            "gateway-of-the-press-hall",
            "Disconnected",
            "-",
            "-",
            "never",
        ])];
        let text = list(&titles, &rows, Some(60));
        assert_eq!(
            text,
            "DEVICE                     CONNECTION    LAST ACTIVITY\ngateway-of-the-press-hall  Disconnected  never"
        );
        assert!(list(&titles, &rows, Some(80)).contains("CODE"));
    }

    #[test]
    fn names_and_values_fit_too() {
        let rows = vec![
            ("deviceId".to_owned(), "e1".to_owned()),
            ("lastDesiredVersion".to_owned(), "12".to_owned()),
            (
                "settings".to_owned(),
                format!("{{\n  \"image\": \"{IMAGE}\",\n  \"said\": \"{SAID}\"\n}}"),
            ),
        ];
        let cells: Vec<Vec<String>> = rows.iter().map(|(n, v)| vec![n.clone(), v.clone()]).collect();
        for width in [40, 60, 80, 120] {
            check(&members(&rows, Some(width)), width, &cells);
        }
        let narrow = members(&rows, Some(40));
        assert!(
            narrow.starts_with("deviceId            e1\nlastDesiredVersion  12\nsettings\n  {"),
            "{narrow}"
        );
        assert!(members(&rows, None).contains(IMAGE));
        let time = [(
            "last activity".to_owned(),
            "2026-03-01T10:00:00.1234567Z".to_owned(),
        )];
        assert_eq!(members(&time, Some(40)), "last activity  2026-03-01T10:00:00Z");
        assert!(members(&time, Some(60)).ends_with("00.1234567Z"));
    }

    #[test]
    fn times_lose_their_fractions_only_where_there_is_no_room() {
        assert_eq!(coarse("2026-03-01T10:00:00.1234567Z"), "2026-03-01T10:00:00Z");
        for other in [
            "2026-03-01T10:00:00Z",
            "2026-03-01T10:00:00.1+01:00",
            "x",
            "-",
            "2026-03-01T10:00:0ä.1Z",
        ] {
            assert_eq!(coarse(other), other);
        }
        let titles = cells(&["DEVICE", "LAST ACTIVITY"]);
        let rows = vec![cells(&["gateway", "2026-03-01T10:00:00.1234567Z"])];
        assert!(list(&titles, &rows, Some(60)).contains("00.1234567Z"));
        assert!(list(&titles, &rows, Some(30)).ends_with("\ngateway  2026-03-01T10:00:00Z"));
    }

    #[test]
    fn texts_break_between_words() {
        assert_eq!(paragraph("one two three", Some(8)), "one two\nthree");
        assert_eq!(paragraph("one two three", None), "one two three");
    }
}
