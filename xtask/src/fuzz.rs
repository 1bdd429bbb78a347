//! `cargo xtask fuzz`: runs the fuzz targets of all crates for a while.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::paths;
use crate::process::{output, run as run_command};
use crate::say;

pub(crate) const HELP: &str = "\
Usage: cargo xtask fuzz [--seconds N] [--only TARGET]

Runs each fuzz target in crates/*/fuzz for N seconds (default 30). Needs a nightly toolchain and cargo-fuzz.
A crash leaves its input in crates/CRATE/fuzz/artifacts and fails the run.

Options:
  --seconds N     time for each target
  --only TARGET   run one target";

const INSTALL: &str =
    "rustup toolchain install nightly --profile minimal && cargo install cargo-fuzz --locked";

pub(crate) fn run(mut args: Args) -> Result<()> {
    let seconds = args.number("--seconds")?.unwrap_or(30);
    let only = args.value("--only")?;
    args.finish()?;
    if output(paths::cargo().args(["fuzz", "--version"])).is_err() {
        bail!("cargo-fuzz is missing; run: {INSTALL}");
    }
    let mut targets = Vec::new();
    for krate in fuzzed_crates()? {
        let list = output(cargo_fuzz("list").current_dir(&krate)).context("cannot list fuzz targets")?;
        targets.extend(
            list.lines()
                .map(|target| (krate.clone(), target.trim().to_owned())),
        );
    }
    targets.retain(|(_, target)| only.as_ref().is_none_or(|only| only == target));
    if targets.is_empty() {
        bail!("there is no such fuzz target");
    }
    for (index, (krate, target)) in targets.iter().enumerate() {
        say(&format!(
            "[{}/{}] {target} for {seconds} s",
            index + 1,
            targets.len()
        ));
        let mut command = cargo_fuzz("run");
        command
            .arg(target)
            .arg("--")
            .arg(format!("-max_total_time={seconds}"));
        run_command(command.current_dir(krate))
            .with_context(|| format!("fuzz target {target} failed; its input is in fuzz/artifacts"))?;
    }
    say(&format!("fuzz: {} targets, no crash", targets.len()));
    Ok(())
}

fn cargo_fuzz(verb: &str) -> std::process::Command {
    // Through rustup's proxy: the cargo that runs us is one fixed toolchain.
    let mut command = std::process::Command::new("cargo");
    command
        .args(["+nightly", "fuzz", verb])
        .env_remove("CARGO")
        .env_remove("RUSTUP_TOOLCHAIN");
    command
}

fn fuzzed_crates() -> Result<Vec<PathBuf>> {
    let dir = paths::root().join("crates");
    let entries = std::fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut crates: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    crates.retain(|path| path.join("fuzz/Cargo.toml").is_file());
    crates.sort();
    if crates.is_empty() {
        bail!("no crate has fuzz targets");
    }
    Ok(crates)
}
