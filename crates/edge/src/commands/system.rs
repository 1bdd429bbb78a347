//! `system` and `support-bundle`.

mod machine;
mod service;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use holdfast_program::failure::Failure;
use serde_json::{Value, json};

use super::Global;
use super::output::{self, Format};
use crate::time_text;

/// Verbs of `system`.
#[derive(Subcommand, Debug)]
pub(super) enum SystemCommand {
    /// What is known of this machine
    #[command(
        after_help = "Examples:\n  holdfast-edge system info\n  holdfast-edge system info --output json | jq .kernel_release"
    )]
    Info,
    /// Use of processors, memory and disks, of the machine and of each module
    ///
    /// Sizes are in KiB, MiB and GiB (1,024 bytes each). CPU of the machine is the share of all processors over a quarter
    /// of a second; that of a module is as `docker stats` shows it, where 100 % is one processor. With --output json, sizes
    /// are in bytes, times in seconds, and docker_stats is the engine's own answer as text.
    #[command(
        after_help = "Examples:\n  holdfast-edge system resources\n  holdfast-edge system resources --output json | jq '.docker_stats | fromjson'"
    )]
    Resources,
    /// Ask for this device's hub again, and start anew
    #[command(
        after_help = "Example:\n  sudo holdfast-edge system reprovision            modules run on, unless the hub is another one"
    )]
    Reprovision,
    /// State of the service, as systemd tells it
    #[command(
        after_help = "Examples:\n  holdfast-edge system status\n  holdfast-edge system status --output json | jq -r .activeState"
    )]
    Status,
    /// The daemon's log (journalctl); further arguments are passed on
    #[command(
        after_help = "Examples:\n  holdfast-edge system logs --follow\n  holdfast-edge system logs --since today --lines 100\n  holdfast-edge --output json system logs          a JSON object per line"
    )]
    Logs {
        /// Arguments of journalctl; behind -- where this program has such a flag, too (-- --output=cat)
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Restart the service; modules run on
    #[command(after_help = "Example:\n  sudo holdfast-edge system restart")]
    Restart,
    /// Stop the service; modules run on
    #[command(after_help = "Example:\n  sudo holdfast-edge system stop")]
    Stop,
}

/// Flags of `support-bundle`.
#[derive(Args, Debug)]
pub(super) struct BundleArgs {
    /// File to write; - for standard output
    #[arg(long, default_value = "support_bundle.zip", value_name = "FILE")]
    file: PathBuf,
    /// Logs from then on: a time, Unix seconds, or how long ago ("90m", "1 day")
    #[arg(long, default_value = "1 day", value_name = "TIME")]
    since: String,
    /// Logs until then
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only of the runtime itself, without logs of modules
    #[arg(long, short)]
    edge_runtime_only: bool,
    /// Say nothing
    #[arg(long, short)]
    quiet: bool,
}

pub(super) fn run(global: &Global, command: &SystemCommand) -> anyhow::Result<()> {
    match command {
        SystemCommand::Info => {
            let told = global.client()?.get("/systeminfo")?;
            match global.output {
                Format::Json => output::json(&told),
                Format::Table => output::fields(&machine::info(&told)),
            }
        }
        SystemCommand::Resources => {
            let told = global.client()?.get("/systeminfo/resources")?;
            match global.output {
                Format::Json => output::json(&told),
                Format::Table => machine::print_resources(&told),
            }
        }
        SystemCommand::Reprovision => {
            global.client()?.post("/device/reprovision")?;
            output::outcome(
                global.output,
                "reprovisioning; the daemon starts anew",
                &json!({ "reprovisioning": true }),
            )
        }
        SystemCommand::Status => service::status(global.output),
        SystemCommand::Logs { arguments } => service::logs(global.output, arguments),
        SystemCommand::Restart => service::operate(global.output, "restart", "restarted"),
        SystemCommand::Stop => service::operate(global.output, "stop", "stopped"),
    }
}

pub(super) fn bundle(global: &Global, args: &BundleArgs) -> anyhow::Result<()> {
    let mut path = format!(
        "/systeminfo/supportbundle?edge_runtime_only={}",
        args.edge_runtime_only
    );
    for (name, text) in [("since", Some(&args.since)), ("until", args.until.as_ref())] {
        if let Some(text) = text {
            let at = time_text::parse(text, time_text::now())
                .ok_or_else(|| Failure::usage(format!("--{name} {text}: {}", time_text::EXPECTED)))?;
            path.push_str(&format!("&{name}={}", at.as_seconds()));
        }
    }
    let client = global.client()?;
    if args.file.as_os_str() == "-" {
        return client.stream(&path, |piece| Ok(std::io::stdout().lock().write_all(piece)?));
    }
    let unwritable = |error: std::io::Error| {
        Failure::storage(format!("cannot write {}: {error}", args.file.display()))
            .hint("name another file with --file; an existing one is not replaced")
    };
    // Logs of modules are nobody else's business.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&args.file)
        .map_err(unwritable)?;
    let written = client.stream(&path, |piece| Ok(file.write_all(piece).map_err(unwritable)?));
    if written.is_err() {
        let _ = std::fs::remove_file(&args.file);
        return written;
    }
    if args.quiet {
        return Ok(());
    }
    match global.output {
        Format::Json => output::json(&Value::from(args.file.display().to_string())),
        Format::Table => output::line(&format!("wrote {}", args.file.display())),
    }
}
