//! `cargo xtask tidy`: house rules that the compiler does not know. Each rule is a pure function from texts to
//! findings, with unit tests on bad examples.

mod changelog;
mod dependencies;
mod sources;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::args::Args;
use crate::paths;
use crate::process::output;
use crate::say;

pub(crate) const HELP: &str = "\
Usage: cargo xtask tidy

Checks the house rules:
  - which own crate depends on which (table in xtask/src/tidy/dependencies.rs)
  - .rs files in crates/ and xtask/ have at most 800 lines
  - no todo!, dbg!, machine paths or private package registries in tracked files
  - every crate has //! docs and takes the workspace lints; none is named util, common or ext
  - unsafe code has a SAFETY comment
  - no clock and no spawning in the pure crates (model, mqtt, wire, query)
  - changelog fragments have a valid name, section and migration note

That generated pages are fresh is checked by `cargo xtask docs --check`, which needs the binary.";

/// A breach of a rule: where, and what to do.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    place: String,
    message: String,
}

impl Finding {
    fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            message: message.into(),
        }
    }

    fn at(file: &str, line: usize, message: impl Into<String>) -> Self {
        Self::new(format!("{file}:{line}"), message)
    }
}

/// A text file of the repository, its path relative to the root with `/`.
struct Source {
    path: String,
    text: String,
}

pub(crate) fn run(args: Args) -> Result<()> {
    args.finish()?;
    let root = paths::root();
    let sources = tracked_files(&root)?;
    let mut findings = Vec::new();
    findings.extend(dependencies::check(&own_metadata()?)?);
    findings.extend(sources::check(&sources, &machine_paths(&root)));
    findings.extend(changelog::check(&sources));
    if findings.is_empty() {
        say(&format!("tidy: {} files, no findings", sources.len()));
        return Ok(());
    }
    for finding in &findings {
        say(&format!("{}: {}", finding.place, finding.message));
    }
    bail!("tidy: {} findings", findings.len())
}

/// `cargo metadata` of the workspace's own packages.
fn own_metadata() -> Result<Value> {
    let text = output(paths::cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    serde_json::from_str(&text).context("cargo metadata is not JSON")
}

/// All text files that git tracks or would track.
fn tracked_files(root: &Path) -> Result<Vec<Source>> {
    let list = output(
        Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root),
    )
    .context("tidy reads the list of files from git")?;
    let mut sources = Vec::new();
    for path in list.split('\0').filter(|path| !path.is_empty()) {
        // A deleted file is still listed, and a binary one has no words.
        let Ok(bytes) = std::fs::read(root.join(path)) else {
            continue;
        };
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        sources.push(Source {
            path: path.to_owned(),
            text,
        });
    }
    Ok(sources)
}

/// Paths of this machine that must not get into a file: the checkout, the home directory.
fn machine_paths(root: &Path) -> Vec<String> {
    let home = std::env::var("HOME").unwrap_or_default();
    let candidates = [root.display().to_string(), home];
    candidates.into_iter().filter(|path| path.len() > 1).collect()
}
