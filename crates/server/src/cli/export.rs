//! `holdfast export`: everything the hub knows of devices and modules, as a stream of lines.

use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use holdfast_fleet::transfer::BlobWriter;
use holdfast_program::failure::Failure;
use serde_json::json;

use super::Global;
use super::import::{address, blob_client, is_url, unreadable};
use super::output;

#[derive(Args, Debug)]
#[command(
    after_help = "The file has one device or module a line, with keys and twins, and can be imported into this or another hub. It holds secrets unless --exclude-keys is given.\n\nExamples:\n  holdfast export devices.txt\n  holdfast export - | gzip > devices.txt.gz\n  holdfast export 'https://account.blob.core.windows.net/box/devices.txt?sv=...&sig=...'"
)]
pub(super) struct ExportArgs {
    /// File, - for standard output, or the URL of a blob (with a shared access signature)
    #[arg(value_name = "FILE|URL")]
    target: String,
    /// Leave symmetric keys out
    #[arg(long)]
    exclude_keys: bool,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

/// Where lines go. What ends early leaves nothing behind.
enum Output {
    Stdout(std::io::Stdout),
    File(tempfile::NamedTempFile, PathBuf),
    Blob(Box<dyn BlobWriter>),
}

impl ExportArgs {
    pub(super) fn run(&self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let mut out = self.open(global)?;
        let call = client
            .get("/holdfast/v1/export")
            .query("excludeKeys", self.exclude_keys.then_some(true));
        let response = call.timeout(None).open()?;
        let total = client.get("/statistics/devices").send()?["totalDeviceCount"].as_u64();
        let bar = output::progress(total.unwrap_or(0), "exporting");
        let mut reader = response.into_body().into_reader();
        let (mut piece, mut lines) = (vec![0; 256 * 1024], 0u64);
        loop {
            let length = reader
                .read(&mut piece)
                .context("the export broke off before its end")?;
            if length == 0 {
                break;
            }
            let piece = &piece[..length];
            out.writer().write_all(piece).context("cannot write the export")?;
            lines += line_ends(piece);
            // Modules have lines too, so the bar may be full early.
            bar.set_position(lines.min(total.unwrap_or(lines)));
        }
        bar.finish_and_clear();
        let to_stdout = matches!(out, Output::Stdout(_));
        out.finish(self.force)?;
        if to_stdout {
            return Ok(());
        }
        let place = self.target.split('?').next().unwrap_or_default();
        global.output().outcome(
            &format!("{lines} lines exported to {place}"),
            &json!({ "lines": lines, "target": place, "keys": !self.exclude_keys }),
        )
    }

    fn open(&self, global: &Global) -> anyhow::Result<Output> {
        if self.target == "-" {
            return Ok(Output::Stdout(std::io::stdout()));
        }
        if is_url(&self.target) {
            let writer = blob_client(global)?.create(address(&self.target)?);
            return Ok(Output::Blob(Box::new(writer)));
        }
        let path = PathBuf::from(&self.target);
        if path.exists() && !self.force {
            return Err(exists(&path).into());
        }
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        // Only its owner may read it: there are keys in it.
        let file = tempfile::NamedTempFile::new_in(dir)
            .map_err(|error| Failure::usage(format!("cannot write into {}: {error}", dir.display())))?;
        Ok(Output::File(file, path))
    }
}

impl Output {
    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Output::Stdout(out) => out,
            Output::File(file, _) => file,
            Output::Blob(blob) => blob,
        }
    }

    fn finish(self, force: bool) -> anyhow::Result<()> {
        match self {
            Output::Stdout(mut out) => out.flush().context("cannot write the export"),
            Output::File(file, path) => {
                file.as_file().sync_all().context("cannot write the export")?;
                let kept = if force {
                    file.persist(&path)
                } else {
                    file.persist_noclobber(&path)
                };
                match kept {
                    Ok(_) => Ok(()),
                    Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {
                        Err(exists(&path).into())
                    }
                    Err(error) => Err(error.error).context("cannot write the export"),
                }
            }
            Output::Blob(blob) => Ok(blob.finish().map_err(unreadable)?),
        }
    }
}

fn exists(path: &Path) -> Failure {
    Failure::usage(format!("{} exists already", path.display())).hint("--force replaces it")
}

fn line_ends(piece: &[u8]) -> u64 {
    piece.iter().filter(|byte| **byte == b'\n').count() as u64
}
