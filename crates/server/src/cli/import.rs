//! `holdfast import`: lines of an export into a hub, as a stream.

use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Read, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use holdfast_program::failure::{Failure, Kind};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::Global;
use super::client::roots;
use super::output::{self, Format};
use crate::blobs::{BlobAddress, BlobClient};

/// Bad lines that are printed; `--errors` gets all.
const PRINTED_MAX: usize = 20;

#[derive(Args, Debug)]
#[command(
    after_help = "Each line is one device or module as `holdfast export` and the export jobs of IoT Hub write it. Lines that fail are told by number, the others are done. importMode in a line says what to do with it; without one it creates, or updates what exists.\n\nExamples:\n  holdfast import devices.txt\n  holdfast import 'https://account.blob.core.windows.net/box/devices.txt?sv=...&sig=...'\n  zcat devices.txt.gz | holdfast import - --errors bad.jsonl"
)]
pub(super) struct ImportArgs {
    /// File, - for standard input, or the URL of a blob (with its shared access signature)
    #[arg(value_name = "FILE|URL")]
    source: String,
    /// Write every bad line's number and reason here, one JSON object a line
    #[arg(long, value_name = "FILE")]
    errors: Option<PathBuf>,
}

/// What to read, and how much that is.
struct Input {
    reader: Box<dyn Read + Send>,
    size: Option<u64>,
}

impl ImportArgs {
    pub(super) fn run(&self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let input = open(&self.source, global)?;
        // Before anything is sent: an import that cannot tell its errors should not begin.
        let mut errors = self.errors.as_ref().map(create).transpose()?;
        let bar = bar(input.size);
        let mut reader = bar.wrap_read(input.reader);
        let response = client
            .post("/holdfast/v1/import")
            .timeout(None)
            .upload("application/x-ndjson", &mut reader)?;
        bar.finish_and_clear();
        let mut lines = BufReader::new(response.into_body().into_reader()).lines();
        let summary = lines.next().context("the hub's answer is empty")?;
        let summary: Value = serde_json::from_str(&summary.context("the hub's answer broke off")?)
            .context("the hub's answer is not JSON")?;
        let mut shown = Vec::new();
        for line in lines {
            let line = line.context("the hub's answer broke off")?;
            if let Some(file) = &mut errors {
                writeln!(file, "{line}").context("cannot write the bad lines")?;
            }
            if shown.len() < PRINTED_MAX {
                shown.push(serde_json::from_str(&line).context("the hub's answer is not JSON")?);
            }
        }
        if let Some(file) = &mut errors {
            file.flush().context("cannot write the bad lines")?;
        }
        self.report(global.output(), &summary, &shown)
    }

    fn report(&self, format: Format, summary: &Value, shown: &[Value]) -> anyhow::Result<()> {
        let number = |name: &str| summary[name].as_u64().unwrap_or(0);
        let (imported, failed) = (number("imported"), number("failed"));
        if format == Format::Json {
            let mut whole = summary.clone();
            whole["errors"] = json!(shown);
            output::json(&whole)?;
        } else {
            for error in shown {
                eprintln!("{}", error_line(error));
            }
            let left = failed.saturating_sub(shown.len() as u64);
            if left > 0 {
                let hint = if self.errors.is_some() {
                    ""
                } else {
                    "; --errors FILE keeps all"
                };
                eprintln!("… and {left} more{hint}");
            }
            output::line(&format!("{imported} lines imported, {failed} failed"))?;
        }
        if let Some(why) = summary["stopped"].as_str() {
            return Err(
                Failure::new(Kind::Unavailable, format!("the import stopped early: {why}"))
                    .hint("what was imported stays; the same file can be imported again")
                    .into(),
            );
        }
        if failed > 0 {
            return Err(Failure::new(Kind::Failed, format!("{failed} lines were not imported")).into());
        }
        Ok(())
    }
}

fn error_line(error: &Value) -> String {
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    let mut whom = text("id");
    if let Some(module) = error["moduleId"].as_str() {
        whom = format!("{whom}/{module}");
    }
    if !whom.is_empty() {
        whom.push_str(": ");
    }
    format!("line {}: {whom}{}", error["line"], text("errorStatus"))
}

fn open(source: &str, global: &Global) -> anyhow::Result<Input> {
    if source == "-" {
        return Ok(Input {
            reader: Box::new(std::io::stdin()),
            size: None,
        });
    }
    if is_url(source) {
        let blob = blob_client(global)?.open(address(source)?).map_err(unreadable)?;
        return Ok(Input {
            reader: blob.bytes,
            size: blob.size,
        });
    }
    let failed = |error: std::io::Error| Failure::usage(format!("cannot read {source}: {error}"));
    let file = File::open(source).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if about.is_dir() {
        return Err(Failure::usage(format!("{source} is a folder")).into());
    }
    Ok(Input {
        reader: Box::new(file),
        size: about.is_file().then_some(about.len()),
    })
}

fn create(path: &PathBuf) -> anyhow::Result<BufWriter<File>> {
    File::create(path)
        .map(BufWriter::new)
        .map_err(|error| Failure::usage(format!("cannot write {}: {error}", path.display())).into())
}

pub(super) fn is_url(text: &str) -> bool {
    text.starts_with("https://") || text.starts_with("http://")
}

pub(super) fn address(url: &str) -> anyhow::Result<BlobAddress> {
    BlobAddress::parse(url).map_err(|why| Failure::usage(format!("the URL cannot be used: {why}")).into())
}

/// Blob stores are not the hub: they are known by the system's authorities, and by `--ca` if that is given.
pub(super) fn blob_client(global: &Global) -> anyhow::Result<BlobClient> {
    Ok(BlobClient::new(roots(global.wanted().ca.as_deref())?))
}

pub(super) fn unreadable(why: String) -> Failure {
    Failure::new(Kind::Unavailable, why).hint(
        "the URL must be that of the blob itself, with a signature that has not expired and allows this",
    )
}

/// A bar over bytes, or a spinner when nobody knows how many there are.
fn bar(size: Option<u64>) -> ProgressBar {
    let bar = match size {
        Some(size) => output::progress(size, "importing"),
        None => ProgressBar::new_spinner(),
    };
    let template = match size {
        Some(_) => "{prefix} {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {elapsed_precise}",
        None => "{spinner} {bytes} {bytes_per_sec} {elapsed_precise}",
    };
    if let Ok(style) = indicatif::ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_lines_are_readable() {
        let error =
            json!({"line": 7, "id": "d1", "moduleId": "m", "errorCode": 400_901, "errorStatus": "no parent"});
        assert_eq!(error_line(&error), "line 7: d1/m: no parent");
        let error = json!({"line": 8, "errorCode": "X", "errorStatus": "not JSON"});
        assert_eq!(error_line(&error), "line 8: not JSON");
    }
}
