//! `holdfast query`.

use clap::Args;
use holdfast_program::failure::{Failure, Kind};
use holdfast_query::error::QueryError;
use holdfast_query::twin::{ItemType, parse};
use serde_json::{Value, json};

use super::Global;
use super::client::Client;
use super::input;

/// Rows fetched at once.
const PAGE: u64 = 1_000;

/// Most columns of a table; what does not fit is for `--output json`.
const COLUMNS_MAX: usize = 12;

/// Asks for twins, modules or rows of jobs.
#[derive(Args, Debug)]
#[command(
    after_help = "Names with other characters than letters, digits and _ are written as [[name]], and so are keywords: tags.[[group]].\nORDER BY path [ASC|DESC] is an extension of the language: missing < null < booleans < numbers < texts.\n\nExamples:\n  holdfast query \"SELECT * FROM devices WHERE tags.site = 'north'\"\n  holdfast query \"SELECT deviceId, properties.reported.firmware AS firmware FROM devices\" --top 20\n  holdfast query \"SELECT tags.site AS site, COUNT() AS devices FROM devices GROUP BY tags.site\" -o json\n  holdfast query \"SELECT * FROM devices.modules WHERE moduleId = '\\$edgeAgent'\"\n  holdfast query @query.txt"
)]
pub(super) struct QueryArgs {
    /// The query, @FILE or - for standard input
    query: String,
    /// Print at most so many rows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    top: Option<u64>,
}

impl QueryArgs {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let text = input::text(&self.query)?;
        let text = text.trim();
        // Checked here too, so that the place of a mistake can be shown.
        let select = parse(text).map_err(|error| wrong("query", text, &error))?;
        let client = global.client()?;
        let rows = rows(&client, text, self.top)?;
        print(global, select.item_type(), &rows)
    }
}

/// The rows of a query, page by page, at most `top` of them.
pub(super) fn rows(client: &Client, text: &str, top: Option<u64>) -> anyhow::Result<Vec<Value>> {
    let mut rows = Vec::new();
    let mut continuation: Option<String> = None;
    loop {
        let left = top.map_or(PAGE, |top| top - rows.len() as u64);
        let mut call = client
            .post("/devices/query")
            .header("x-ms-max-item-count", left.min(PAGE).to_string())
            .json(json!({ "query": text }));
        if let Some(token) = &continuation {
            call = call.header("x-ms-continuation", token.clone());
        }
        let (page, fields) = call.send_with_headers()?;
        if let Value::Array(page) = page {
            rows.extend(page);
        }
        let next = fields
            .get("x-ms-continuation")
            .and_then(|value| value.to_str().ok());
        continuation = next.map(str::to_owned);
        if continuation.is_none() || top.is_some_and(|top| rows.len() as u64 >= top) {
            return Ok(rows);
        }
    }
}

fn print(global: &Global, item_type: ItemType, rows: &[Value]) -> anyhow::Result<()> {
    let columns: Vec<(String, String)> = match item_type {
        ItemType::Twin => [
            ("device", "/deviceId"),
            ("module", "/moduleId"),
            ("status", "/status"),
            ("connection", "/connectionState"),
            ("tags", "/tags"),
        ]
        .into_iter()
        .filter(|(_, path)| *path != "/moduleId" || rows.iter().any(|row| row.get("moduleId").is_some()))
        .map(|(title, path)| (title.to_owned(), path.to_owned()))
        .collect(),
        ItemType::DeviceJob => [
            "jobId",
            "deviceId",
            "jobType",
            "status",
            "lastUpdatedDateTimeUtc",
            "error",
        ]
        .map(|name| (name.to_owned(), format!("/{name}")))
        .to_vec(),
        ItemType::Raw => raw_columns(rows),
    };
    let columns: Vec<(&str, &str)> = columns
        .iter()
        .map(|(title, path)| (title.as_str(), path.as_str()))
        .collect();
    global.output().list(rows, &columns)
}

/// Every key that a row has, in the order of their first appearance.
fn raw_columns(rows: &[Value]) -> Vec<(String, String)> {
    let mut names: Vec<&String> = Vec::new();
    for row in rows.iter().filter_map(Value::as_object) {
        for name in row.keys() {
            if !names.contains(&name) && names.len() < COLUMNS_MAX {
                names.push(name);
            }
        }
    }
    let pointer = |name: &str| format!("/{}", name.replace('~', "~0").replace('/', "~1"));
    names
        .into_iter()
        .map(|name| (name.clone(), pointer(name)))
        .collect()
}

/// The line with the mistake, and a mark below it. `what` is the text's name, such as "query".
pub(super) fn wrong(what: &str, text: &str, error: &QueryError) -> Failure {
    let line = text
        .lines()
        .nth(error.start.line as usize - 1)
        .unwrap_or_default();
    let before = error.start.column as usize - 1;
    let length = if error.end.line == error.start.line {
        (error.end.column - error.start.column).max(1) as usize
    } else {
        line.chars().count().saturating_sub(before).max(1)
    };
    // A tab before the mistake stays a tab, so that the mark stands below it.
    let indent: String = line
        .chars()
        .take(before)
        .map(|c| if c == '\t' { '\t' } else { ' ' })
        .collect();
    Failure::new(
        Kind::Usage,
        format!(
            "the {what} is wrong: {error}\n\n  {line}\n  {indent}{}",
            "^".repeat(length)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_stands_below_the_mistake() {
        let text = "SELECT *\nFROM devices WHERE tags.group = 1";
        let error = parse(text).expect_err("a keyword");
        let message = wrong("query", text, &error).message;
        let lines: Vec<&str> = message.lines().collect();
        assert_eq!(lines[2], "  FROM devices WHERE tags.group = 1");
        assert_eq!(lines[3], "                          ^^^^^");
    }

    #[test]
    fn columns_are_all_keys() {
        let rows = [json!({"a": 1}), json!({"b/c": 1, "a": 2})];
        let columns = raw_columns(&rows);
        assert_eq!(
            columns,
            [("a".into(), "/a".into()), ("b/c".into(), "/b~1c".into())]
        );
        assert_eq!(rows[1].pointer(&columns[1].1), Some(&json!(1)));
    }
}
