//! `bench import`: identities into a hub as one stream of lines, and out of it again.

use std::io::{Read, Write as _};
use std::time::Instant;

use anyhow::Context as _;
use holdfast_model::credential::SymmetricKey;
use holdfast_program::failure::Failure;
use serde_json::Value;

use super::Stage;
use super::report::{Report, Subject, Unit};
use super::target::TargetOptions;
use crate::cli::output::Format;
use crate::cli::profile::Wanted;

/// Bytes taken by one read of the export.
const READ_BYTES: usize = 256 << 10;

/// Seconds to import devices with keys and twins, and to export them again.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Each device has a pair of keys, tags, desired and reported properties: about 500 bytes a line. The lines are made while\nthey are sent, which is part of the time.\n\nExamples:\n  holdfast bench import\n  holdfast bench import --devices 1000000 --work-dir /data\n  holdfast bench import --bare                  identities with keys and nothing else"
)]
pub(crate) struct ImportArgs {
    /// Devices to import
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    devices: u64,
    /// Give the devices keys only, no tags and properties
    #[arg(long)]
    bare: bool,
    #[command(flatten)]
    target: TargetOptions,
}

/// Lines, made as they are read.
struct Lines {
    next: u64,
    devices: u64,
    bare: bool,
    buffer: Vec<u8>,
    at: usize,
    bytes: u64,
}

impl Lines {
    fn make(&mut self) {
        let number = self.next;
        self.next += 1;
        self.buffer.clear();
        self.at = 0;
        let (primary, secondary) = (SymmetricKey::generate(), SymmetricKey::generate());
        // Writing to memory does not fail.
        let _ = write!(
            self.buffer,
            r#"{{"id":"import-{number:08}","status":"enabled","authentication":{{"type":"sas","symmetricKey":{{"primaryKey":"{}","secondaryKey":"{}"}}}}"#,
            primary.reveal(),
            secondary.reveal()
        );
        if !self.bare {
            let _ = write!(
                self.buffer,
                r#","tags":{{"plant":"p{}","floor":{}}},"properties":{{"desired":{{"interval":{},"$version":3}},"reported":{{"firmware":"1.{}.0","battery":{},"$version":7}}}}"#,
                number % 50,
                number % 7,
                number % 60,
                number % 10,
                number % 100
            );
        }
        self.buffer.extend_from_slice(b"}\n");
    }
}

impl Read for Lines {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let mut filled = 0;
        while filled < out.len() {
            if self.at == self.buffer.len() {
                if self.next == self.devices {
                    break;
                }
                self.make();
            }
            let length = (out.len() - filled).min(self.buffer.len() - self.at);
            out[filled..filled + length].copy_from_slice(&self.buffer[self.at..self.at + length]);
            (filled, self.at) = (filled + length, self.at + length);
        }
        self.bytes += filled as u64;
        Ok(filled)
    }
}

impl ImportArgs {
    pub(crate) fn run(self, wanted: &Wanted, format: Format) -> anyhow::Result<()> {
        let stage = Stage::new("import");
        let target = self.target.hub(wanted)?;
        if target.stays() {
            return Err(Failure::usage("this measurement starts a hub of its own")
                .hint("what it imports would stay in a running one")
                .into());
        }
        let mut subject = Subject::new(&target.name, &target.version);
        let mut lines = Lines {
            next: 0,
            devices: self.devices,
            bare: self.bare,
            buffer: Vec::new(),
            at: 0,
            bytes: 0,
        };
        stage.say("importing");
        let (before, begin) = (target.usage()?, Instant::now());
        let call = target.rest()?.post("/holdfast/v1/import").timeout(None);
        let response = call.upload("application/x-ndjson", &mut lines)?;
        let mut text = String::new();
        let mut answer = response.into_body().into_reader();
        answer
            .read_to_string(&mut text)
            .context("the hub's answer broke off")?;
        let seconds = begin.elapsed().as_secs_f64();
        let summary: Value = serde_json::from_str(text.lines().next().unwrap_or_default())
            .context("the hub's answer is not JSON")?;
        anyhow::ensure!(
            summary["imported"].as_u64() == Some(self.devices),
            "the hub did not take every line: {}",
            text.chars().take(500).collect::<String>()
        );
        subject.add("importSeconds", "import, seconds", Unit::Count, seconds);
        let rate = self.devices as f64 / seconds;
        subject.add("identitiesPerSecond", "identities imported/s", Unit::Count, rate);
        if let (Some(before), Some(after)) = (before, target.usage()?) {
            let cores = (after.cpu_seconds() - before.cpu_seconds()) / seconds;
            subject.add("serverCores", "server cores", Unit::Cores, cores);
            let mib = after.rss_bytes as f64 / f64::from(1 << 20);
            subject.add("serverRssMib", "resident memory after it", Unit::Mebibytes, mib);
        }
        stage.say("exporting");
        let begin = Instant::now();
        let exported = export(target.rest()?)?;
        let seconds = begin.elapsed().as_secs_f64();
        anyhow::ensure!(
            exported == self.devices,
            "the export has {exported} lines, not {}",
            self.devices
        );
        subject.add("exportSeconds", "export, seconds", Unit::Count, seconds);
        let rate = self.devices as f64 / seconds;
        subject.add("exportedPerSecond", "identities exported/s", Unit::Count, rate);
        let parameters = serde_json::json!({
            "devices": self.devices,
            "bare": self.bare,
            "lineBytes": lines.bytes / self.devices,
        });
        let mut report = Report::new("import", parameters);
        report.subjects.push(subject);
        drop((stage, target));
        report.print(format)
    }
}

/// Reads an export; gives its lines.
fn export(client: &crate::cli::client::Client) -> anyhow::Result<u64> {
    let response = client.get("/holdfast/v1/export").timeout(None).open()?;
    let mut reader = response.into_body().into_reader();
    let (mut piece, mut lines) = (vec![0; READ_BYTES], 0);
    loop {
        let length = reader.read(&mut piece).context("the export broke off")?;
        if length == 0 {
            return Ok(lines);
        }
        lines += piece[..length].iter().filter(|byte| **byte == b'\n').count() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_are_read() {
        let mut lines = Lines {
            next: 0,
            devices: 3,
            bare: false,
            buffer: Vec::new(),
            at: 0,
            bytes: 0,
        };
        let (mut text, mut piece) = (Vec::new(), [0; 7]);
        loop {
            let length = lines.read(&mut piece).unwrap();
            if length == 0 {
                break;
            }
            text.extend_from_slice(&piece[..length]);
        }
        assert_eq!(lines.bytes, text.len() as u64);
        let text = String::from_utf8(text).unwrap();
        let ids: Vec<String> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].to_string())
            .collect();
        assert_eq!(
            ids,
            [
                "\"import-00000000\"",
                "\"import-00000001\"",
                "\"import-00000002\""
            ]
        );
    }
}
