//! `system` and `support-bundle`.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use clap::{Args, Subcommand};
use holdfast_program::failure::{Failure, Kind};
use serde_json::Value;

use super::Global;
use super::output::{self, Format};
use crate::time_text;

/// Name of the service.
const UNIT: &str = "holdfast-edge";

/// Verbs of `system`.
#[derive(Subcommand, Debug)]
pub(super) enum SystemCommand {
    /// What is known of this machine
    Info,
    /// Use of processors, memory and disks
    Resources,
    /// Ask for this device's hub again, and start anew
    Reprovision,
    /// State of the service (systemctl status)
    Status,
    /// The daemon's log (journalctl); further arguments are passed on
    Logs {
        /// Arguments of journalctl
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Restart the service; modules run on
    Restart,
    /// Stop the service; modules run on
    Stop,
}

/// Flags of `support-bundle`.
#[derive(Args, Debug)]
pub(super) struct BundleArgs {
    /// File to write; - for standard output
    #[arg(long, default_value = "support_bundle.zip", value_name = "FILE")]
    file: PathBuf,
    /// Logs from then on: a time, Unix seconds, or how long ago
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
        SystemCommand::Info => show(global, "/systeminfo"),
        SystemCommand::Resources => show(global, "/systeminfo/resources"),
        SystemCommand::Reprovision => {
            global.client()?.post("/device/reprovision")?;
            output::line("reprovisioning; the daemon starts anew")
        }
        SystemCommand::Status => service("systemctl", &["status", "--no-pager", UNIT], &[]),
        SystemCommand::Restart => service("systemctl", &["restart", UNIT], &[]),
        SystemCommand::Stop => service("systemctl", &["stop", UNIT], &[]),
        SystemCommand::Logs { arguments } => service("journalctl", &["-u", UNIT], arguments),
    }
}

fn show(global: &Global, path: &str) -> anyhow::Result<()> {
    let told = global.client()?.get(path)?;
    if global.output == Format::Json {
        return output::json(&told);
    }
    let rows: Vec<Vec<String>> = told
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            vec![name.clone(), text]
        })
        .collect();
    output::table(&["NAME", "VALUE"], &rows)
}

/// Hands over to a tool of systemd.
fn service(program: &str, arguments: &[&str], more: &[String]) -> anyhow::Result<()> {
    let status = Command::new(program)
        .args(arguments)
        .args(more)
        .status()
        .map_err(|error| {
            Failure::new(Kind::Unavailable, format!("cannot run {program}: {error}"))
                .hint("without systemd, use the tools of whatever started the daemon")
        })?;
    // `systemctl status` says 3 of a service that does not run, which is an answer.
    if status.success() || (arguments[0] == "status" && status.code() == Some(3)) {
        return Ok(());
    }
    Err(Failure::new(Kind::Failed, format!("{program} failed ({status})")).into())
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
