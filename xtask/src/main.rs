//! The only task runner of the project: `cargo xtask COMMAND`.
//!
//! Each command is a module with a `HELP` text and a `run` function. Nothing here knows the product's code:
//! what needs it is a command of the `holdfast` binary, which `xtask` builds and runs.

mod args;
mod bench;
mod check;
mod demo;
mod deny;
mod docs;
mod edge;
mod fuzz;
mod lock;
mod paths;
mod process;
mod setup;
mod test;
mod tidy;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::args::Args;

/// A command: name, one line about it, its help page, and what it does.
struct Command {
    name: &'static str,
    summary: &'static str,
    help: &'static str,
    run: fn(Args) -> Result<()>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "demo",
        summary: "set up all that is needed and show the hub working",
        help: demo::HELP,
        run: demo::run,
    },
    Command {
        name: "test",
        summary: "set up all that is needed and run every test",
        help: test::HELP,
        run: test::run,
    },
    Command {
        name: "check",
        summary: "quick loop: fmt, tidy, clippy",
        help: check::HELP,
        run: check::run,
    },
    Command {
        name: "tidy",
        summary: "check the house rules",
        help: tidy::HELP,
        run: tidy::run,
    },
    Command {
        name: "docs",
        summary: "regenerate reference pages, or check that they are fresh",
        help: docs::HELP,
        run: docs::run,
    },
    Command {
        name: "bench",
        summary: "measure the numbers of SPECIFICATION.md",
        help: bench::HELP,
        run: bench::run,
    },
    Command {
        name: "fuzz",
        summary: "run the fuzz targets",
        help: fuzz::HELP,
        run: fuzz::run,
    },
    Command {
        name: "deny",
        summary: "check the licences of all dependencies",
        help: deny::HELP,
        run: deny::run,
    },
];

/// A failure that the command has told in full, so that nothing is printed after its last line.
#[derive(Debug)]
struct Reported;

impl std::fmt::Display for Reported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("failed, as told above")
    }
}

impl std::error::Error for Reported {}

fn main() -> ExitCode {
    match dispatch(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is::<Reported>() {
                eprintln!("error: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn dispatch(mut arguments: Vec<String>) -> Result<()> {
    if arguments.is_empty() || matches!(arguments[0].as_str(), "help" | "--help" | "-h") {
        say(&overview());
        return Ok(());
    }
    let name = arguments.remove(0);
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        bail!("there is no command {name:?}\n\n{}", overview());
    };
    let mut args = Args::new(command.name, arguments);
    if args.flag("--help") || args.flag("-h") {
        say(command.help);
        return Ok(());
    }
    (command.run)(args)
}

fn overview() -> String {
    let mut text = String::from("Usage: cargo xtask COMMAND [OPTIONS]\n\nCommands:\n");
    for command in COMMANDS {
        text.push_str(&format!("  {:<6} {}\n", command.name, command.summary));
    }
    text.push_str("\n`cargo xtask COMMAND --help` says more. Variables: CARGO_TARGET_DIR puts build output elsewhere;\n");
    text.push_str(
        "HOLDFAST_BIN has demo, bench and client suites run this program instead of building one;\n",
    );
    text.push_str("HOLDFAST_EDGE_BIN and HOLDFAST_EDGE_IMAGES do the same for the edge runtime and the images of modules.");
    text
}

/// Prints to standard output, which is what a person or a CI log reads here.
#[expect(clippy::print_stdout, reason = "a task runner talks on standard output")]
fn say(text: &str) {
    println!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_help() {
        for command in COMMANDS {
            assert!(
                command.help.contains(&format!("cargo xtask {}", command.name)),
                "{}",
                command.name
            );
            assert!(overview().contains(command.summary));
        }
    }

    #[test]
    fn an_unknown_command_lists_the_known() {
        let error = dispatch(vec!["dmeo".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("dmeo") && error.contains("demo"), "{error}");
    }
}
