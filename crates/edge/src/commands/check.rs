//! `check`: named checks with remedies. Names are those of the original where the check is the same.

mod checks;
mod reach;

use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value, json};

use super::Global;
use super::output::{self, Column, Format};

/// Flags of `check`.
#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    /// Checks to leave out, by name, with commas between; `check-list` tells the names
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    dont_run: Vec<String>,
    /// Time server; a clock that differs by more than 120 seconds is a failure
    #[arg(long, default_value = "pool.ntp.org:123", value_name = "HOST:PORT")]
    ntp_server: String,
    /// Hub to test the connection to; else the one of the configuration
    #[arg(long, value_name = "NAME")]
    iothub_hostname: Option<String>,
    /// Also tell what is in order in detail
    #[arg(long)]
    verbose: bool,
    /// Warnings count as failures
    #[arg(long)]
    warnings_as_errors: bool,
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// In order; what was seen.
    Ok(String),
    /// It works, but an operator should know.
    Warning(String, String),
    /// It does not work; and what to do.
    Failed(String, String),
    /// It does not apply, or could not be told because of another failure.
    Skipped(String),
}

impl Found {
    const fn word(&self) -> &'static str {
        match self {
            Found::Ok(_) => "ok",
            Found::Warning(..) => "warning",
            Found::Failed(..) => "error",
            Found::Skipped(_) => "skipped",
        }
    }
}

/// Runs all checks.
pub(super) fn run(global: &Global, args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let checks = checks::Checks::new(global, args);
    let mut results = Map::new();
    let (mut warnings, mut failures) = (0, 0);
    for check in checks::ALL {
        let found = if args.dont_run.iter().any(|name| name == check.name) {
            Found::Skipped("left out".to_owned())
        } else {
            runtime.block_on((check.run)(&checks))
        };
        match found {
            Found::Warning(..) => warnings += 1,
            Found::Failed(..) => failures += 1,
            Found::Ok(_) | Found::Skipped(_) => {}
        }
        match global.output {
            Format::Table => print(check, &found, args.verbose)?,
            Format::Json => {
                results.insert(check.name.to_owned(), tell(check, &found));
            }
        }
    }
    match global.output {
        Format::Json => output::json(&json!({ "checks": results }))?,
        Format::Table => {
            let fine = checks::ALL.len() - warnings - failures;
            output::paragraph(
                "",
                &format!("{fine} in order or left out, {warnings} warnings, {failures} failures"),
            )?;
        }
    }
    let failed = failures > 0 || (args.warnings_as_errors && warnings > 0);
    Ok(ExitCode::from(u8::from(failed)))
}

/// Behind the word for what was found.
const INDENT: &str = "         ";

fn print(check: &checks::Check, found: &Found, verbose: bool) -> anyhow::Result<()> {
    output::paragraph(
        &format!("{:8} ", found.word()),
        &format!("{} ({})", check.about, check.name),
    )?;
    match found {
        Found::Ok(seen) if verbose && !seen.is_empty() => output::paragraph(INDENT, seen),
        Found::Ok(_) => Ok(()),
        Found::Skipped(why) => output::paragraph(INDENT, why),
        Found::Warning(what, remedy) | Found::Failed(what, remedy) => {
            output::paragraph(INDENT, what)?;
            output::paragraph(&format!("{INDENT}hint: "), remedy)
        }
    }
}

fn tell(check: &checks::Check, found: &Found) -> Value {
    let (details, remedy) = match found {
        Found::Ok(text) | Found::Skipped(text) => (text, None),
        Found::Warning(text, remedy) | Found::Failed(text, remedy) => (text, Some(remedy)),
    };
    json!({
        "description": check.about,
        "result": found.word(),
        "details": [details],
        "remedy": remedy,
    })
}

/// Prints the names of all checks.
pub(super) fn list(global: &Global) -> anyhow::Result<()> {
    if global.output == Format::Json {
        let names: Vec<Value> = checks::ALL
            .iter()
            .map(|check| json!({ "name": check.name, "description": check.about }))
            .collect();
        return output::json(&Value::Array(names));
    }
    let rows: Vec<Vec<String>> = checks::ALL
        .iter()
        .map(|check| vec![check.name.to_owned(), check.about.to_owned()])
        .collect();
    let columns = [Column::whole("NAME"), Column::whole("CHECKS THAT")];
    output::definitions(&columns, &rows)
}
