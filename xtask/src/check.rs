//! `cargo xtask check`: the quick loop. Its steps are also suites of `cargo xtask test`.

use anyhow::{Result, bail};

use crate::args::Args;
use crate::paths;
use crate::process::{output, run as run_command};
use crate::say;
use crate::{setup, tidy};

pub(crate) const HELP: &str = "\
Usage: cargo xtask check [--fix]

Formatting, house rules and clippy (which includes what `cargo check` finds) for the whole workspace.

Options:
  --fix   format instead of only checking the format";

pub(crate) fn run(mut args: Args) -> Result<()> {
    let fix = args.flag("--fix");
    args.finish()?;
    if fix {
        run_command(paths::cargo().args(["fmt", "--all"]))?;
    } else {
        fmt()?;
    }
    tidy::run(Args::new("tidy", Vec::new()))?;
    setup::compiler()?;
    clippy()?;
    say("check: all well");
    Ok(())
}

/// Fails when a file is not formatted.
pub(crate) fn fmt() -> Result<()> {
    if output(paths::cargo().args(["fmt", "--version"])).is_err() {
        bail!("rustfmt is missing; run: rustup component add rustfmt");
    }
    let list = output(paths::cargo().args(["fmt", "--all", "--check", "--", "--files-with-diff"]));
    let Err(error) = list else { return Ok(()) };
    bail!("these files are not formatted; run: cargo fmt --all\n{error:#}")
}

/// Fails on any warning of the compiler or clippy, tests included.
pub(crate) fn clippy() -> Result<()> {
    if output(paths::cargo().args(["clippy", "--version"])).is_err() {
        bail!("clippy is missing; run: rustup component add clippy");
    }
    run_command(paths::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))
}
