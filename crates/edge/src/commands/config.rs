//! `config`: writing and checking configurations.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use holdfast_program::failure::{self, Failure, Kind};
use holdfast_program::files::{self, PRIVATE};
use serde_json::{Value, json};

use super::given_files::{self, Looked};
use super::{Format, Global, output};
use crate::config::{self, Loaded};

/// Verbs of `config`.
#[derive(Subcommand, Debug)]
pub(super) enum ConfigCommand {
    /// Write a configuration for a device whose connection string is known
    #[command(
        after_help = "Examples:\n  holdfast-edge config mp -s 'HostName=hub.example;DeviceId=edge1;SharedAccessKey=…'\n  holdfast-edge config mp -s 'HostName=…' --file edge.toml --force"
    )]
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
    #[command(
        after_help = "Examples:\n  holdfast-edge config import                                    /etc/aziot/config.toml\n  holdfast-edge config import old.toml --file -                  print it only"
    )]
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
    /// Check a configuration and the files that it names, and say what in it does nothing
    ///
    /// Certificates and keys are read, compared and looked at for their time; nothing is changed, and no network is needed.
    /// What the daemon makes itself need not be there yet.
    #[command(
        after_help = "Examples:\n  holdfast-edge config check                      the file that the daemon reads\n  holdfast-edge config check --config edge.toml\n  holdfast-edge config check --output json        {\"inOrder\": …, \"problems\": [{\"file\", \"reason\", \"remedy\"}]}\n\nExit codes: 0 in order, perhaps with warnings; 2 the configuration or a file that it names cannot be used."
    )]
    Check,
    /// Check a configuration and put it where the daemon looks first; restart the daemon for it to take effect
    #[command(
        after_help = "Examples:\n  holdfast-edge config apply edge.toml && systemctl restart holdfast-edge"
    )]
    Apply {
        /// The configuration: of ours, or config.toml of the original
        #[arg(value_name = "FILE")]
        from: PathBuf,
        /// File to write
        #[arg(long = "file", default_value = config::DEFAULT_FILES[0], value_name = "FILE")]
        file: PathBuf,
    },
}

pub(super) fn run(global: &Global, command: &ConfigCommand) -> anyhow::Result<ExitCode> {
    let done = |outcome: anyhow::Result<()>| outcome.map(|()| ExitCode::SUCCESS);
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
            done(output::outcome(
                global.output,
                &format!(
                    "wrote {}; start the daemon: systemctl restart holdfast-edge",
                    file.display()
                ),
                &json!({ "wrote": file }),
            ))
        }
        ConfigCommand::Import { from, file, force } => done(import(from, file, *force)),
        ConfigCommand::Check => check(&global.load()?, global.output),
        ConfigCommand::Apply { from, file } => done(apply(global, from, file)),
    }
}

/// Says what is wrong with a configuration that could be read: with its keys, and with the files that it names.
pub(super) fn check(loaded: &Loaded, format: Format) -> anyhow::Result<ExitCode> {
    let source = &loaded.settings.source;
    let Looked { problems, .. } = given_files::look(&loaded.settings);
    let faulty = problems.iter().filter(|problem| problem.is_fault).count();
    if format == Format::Json {
        let told: Vec<Value> = problems.iter().map(given_files::Problem::tell).collect();
        output::json(&json!({
            "file": source,
            "inOrder": faulty == 0,
            "warnings": loaded.warnings,
            "problems": told,
        }))?;
        return Ok(ExitCode::from(if faulty == 0 { 0 } else { Kind::Usage as u8 }));
    }
    for warning in &loaded.warnings {
        output::line(&format!("warning: {warning}"))?;
    }
    let mut code = ExitCode::SUCCESS;
    for problem in &problems {
        if problem.is_fault {
            let failure = Failure::usage(&problem.reason).hint(&problem.remedy);
            code = failure::report(&failure.into());
        } else {
            output::line(&format!("warning: {}; {}", problem.reason, problem.remedy))?;
        }
    }
    match faulty {
        0 => output::line(&format!("{source} is in order"))?,
        _ => output::line(&format!(
            "{source} can be read, but not all files that it names can be used"
        ))?,
    }
    Ok(code)
}

fn apply(global: &Global, from: &Path, file: &Path) -> anyhow::Result<()> {
    let loaded = config::load(Some(from))?;
    let text = std::fs::read_to_string(from)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", from.display())))?;
    write(file, &text)?;
    let mut warnings = loaded.warnings;
    // As the daemon will read it: relative paths are those beside the written file.
    match config::load(Some(file)) {
        Ok(written) => {
            let problems = given_files::look(&written.settings).problems;
            let told = problems.iter();
            warnings.extend(told.map(|problem| format!("{}; {}", problem.reason, problem.remedy)));
        }
        Err(failure) => warnings.push(failure.message),
    }
    if global.output == Format::Json {
        return output::json(&json!({ "wrote": file, "warnings": warnings }));
    }
    for warning in &warnings {
        output::line(&format!("warning: {warning}"))?;
    }
    output::line(&format!(
        "wrote {}; restart the daemon: systemctl restart holdfast-edge",
        file.display()
    ))
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
