//! `config`: writing and checking configurations.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use holdfast_program::failure::Failure;
use holdfast_program::files::{self, PRIVATE};
use serde_json::json;

use super::{Format, Global, output};
use crate::config;

/// Verbs of `config`.
#[derive(Subcommand, Debug)]
pub(super) enum ConfigCommand {
    /// Write a configuration for a device whose connection string is known
    Mp {
        /// As `holdfast edge create` prints it
        #[arg(
            long,
            short = 's',
            value_name = "CONNECTION_STRING",
            env = "HOLDFAST_EDGE_CONNECTION_STRING",
            hide_env_values = true
        )]
        connection_string: String,
        /// File to write
        #[arg(long = "file", default_value = config::DEFAULT_FILES[0], value_name = "FILE")]
        file: PathBuf,
        /// Replace an existing file
        #[arg(long, short)]
        force: bool,
    },
    /// Write the configuration of the original runtime as one of ours, and say what of it has no counterpart
    Import {
        /// config.toml of the original
        #[arg(value_name = "FILE", default_value = config::DEFAULT_FILES[1])]
        from: PathBuf,
        /// File to write; `-` for standard output
        #[arg(long = "file", default_value = config::DEFAULT_FILES[0], value_name = "FILE")]
        file: PathBuf,
        /// Replace an existing file
        #[arg(long, short)]
        force: bool,
    },
    /// Check a configuration, and say what in it does nothing
    Check,
    /// Check a configuration and put it where the daemon looks first; restart the daemon for it to take effect
    Apply {
        /// The configuration: of ours, or config.toml of the original
        #[arg(value_name = "FILE")]
        from: PathBuf,
        /// File to write
        #[arg(long = "file", default_value = config::DEFAULT_FILES[0], value_name = "FILE")]
        file: PathBuf,
    },
}

pub(super) fn run(global: &Global, command: &ConfigCommand) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Mp {
            connection_string,
            file,
            force,
        } => {
            let text = manual(connection_string)?;
            if file.exists() && !force {
                return Err(Failure::usage(format!("{} exists", file.display()))
                    .hint("--force replaces it, --file names another")
                    .into());
            }
            write(file, &text)?;
            output::line(&format!(
                "wrote {}; start the daemon: systemctl restart holdfast-edge",
                file.display()
            ))
        }
        ConfigCommand::Import { from, file, force } => import(from, file, *force),
        ConfigCommand::Check => {
            let loaded = global.load()?;
            let source = &loaded.settings.source;
            if global.output == Format::Json {
                return output::json(&json!({ "file": source, "warnings": loaded.warnings }));
            }
            for warning in &loaded.warnings {
                output::line(&format!("warning: {warning}"))?;
            }
            output::line(&format!("{source} is in order"))
        }
        ConfigCommand::Apply { from, file } => {
            let loaded = config::load(Some(from))?;
            for warning in &loaded.warnings {
                output::line(&format!("warning: {warning}"))?;
            }
            let text = std::fs::read_to_string(from)
                .map_err(|error| Failure::usage(format!("cannot read {}: {error}", from.display())))?;
            write(file, &text)?;
            output::line(&format!(
                "wrote {}; restart the daemon: systemctl restart holdfast-edge",
                file.display()
            ))
        }
    }
}

fn import(from: &Path, file: &Path, force: bool) -> anyhow::Result<()> {
    let loaded = config::load(Some(from))?;
    let imported = config::import::import(&loaded)?;
    // What is written is what was read: the daemon must not learn of a mistake of ours.
    config::parse(&imported.text, &file.display().to_string())?;
    if file == Path::new("-") {
        output::line(imported.text.trim_end())?;
        for note in &imported.notes {
            output::line(&format!("# note: {note}"))?;
        }
        return Ok(());
    }
    if file.exists() && !force {
        return Err(Failure::usage(format!("{} exists", file.display()))
            .hint("--force replaces it, --file names another, --file - prints")
            .into());
    }
    write(file, &imported.text)?;
    for note in &imported.notes {
        output::line(&format!("note: {note}"))?;
    }
    output::line(&format!(
        "wrote {}; stop the original runtime and start the daemon: systemctl restart holdfast-edge",
        file.display()
    ))
}

fn manual(connection_string: &str) -> Result<String, Failure> {
    let quoted = toml::Value::String(connection_string.trim().to_owned()).to_string();
    let text = format!(
        "# Every key with its default: docs/reference/edge-config.md\n\n[provisioning]\nconnection_string = {quoted}\n"
    );
    config::parse(&text, "the connection string")?;
    Ok(text)
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    if let Some(folder) = file.parent() {
        files::make_dir(folder, 0o755)?;
    }
    files::write(file, text.as_bytes(), PRIVATE).map_err(|error| {
        Failure::storage(format!("cannot write {}: {error}", file.display()))
            .hint("run as root, or name another file")
    })
}
