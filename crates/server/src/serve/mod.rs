//! `holdfast serve`: configuration, data directory, certificates, composition, signals.
//!
//! Order of a start, and why: the configuration is checked before anything is touched; the data directory is locked
//! before anything in it is read; ports are taken before stores are opened, so that a mistake costs nothing; and what
//! clients wait for (`connection.env`, the banner, systemd's READY) comes when everything answers.

pub mod banner;
pub mod certificates;
pub mod config;
pub mod connection_env;
pub mod data_dir;
pub mod files;
mod fleet;
pub mod routing;

mod actions;
mod admin;
mod compose;
mod listen;
mod periodic;
mod provisioning;
mod rsa_key;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use holdfast_program::logging::LogFormat;

use crate::cli::Global;
use crate::cli::output::Format;
use crate::cli::profile::DEFAULT_DATA_DIR;
use certificates::{Certificates, server_names};
use config::Config;
use data_dir::DataDir;

/// Arguments of `holdfast serve`.
#[derive(Args, Debug, Default)]
#[command(
    after_help = "Examples:\n  holdfast serve                                        everything in ./holdfast-data\n  holdfast serve --host hub.plant.example --data-dir /var/lib/holdfast\n  holdfast serve --mqtt-port 0 --amqp-port 0 --https-port 0 --output json   any free ports, told as JSON\n\nSIGTERM and SIGINT end the hub in order, a second one at once; SIGHUP reads the certificates again."
)]
pub struct ServeArgs {
    /// Configuration file (TOML); every key has a default
    #[arg(long, value_name = "FILE", env = "HOLDFAST_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Host names under which clients reach the hub; the first one goes into connection strings
    #[arg(long = "host", value_name = "NAME", num_args = 1..)]
    hosts: Vec<String>,
    /// Address to listen on, may be given several times; all addresses if not given
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<IpAddr>,
    /// Port of MQTT over TLS; 0 takes any free one [default: 8883]
    #[arg(long, value_name = "PORT")]
    mqtt_port: Option<u16>,
    /// Port of AMQP over TLS; 0 takes any free one [default: 5671]
    #[arg(long, value_name = "PORT")]
    amqp_port: Option<u16>,
    /// Port of HTTPS; 0 takes any free one [default: 443]
    #[arg(long, value_name = "PORT")]
    https_port: Option<u16>,
    /// Port of the blob store; 0 takes any free one [default: 10000, or any free one with --https-port 0]
    #[arg(long, value_name = "PORT")]
    blob_port: Option<u16>,
    /// Also listen for MQTT without TLS here, for example on 127.0.0.1:1883
    #[arg(long, value_name = "ADDRESS:PORT")]
    mqtt_plain: Option<SocketAddr>,
    /// Let --mqtt-plain be an address other than loopback
    #[arg(long)]
    mqtt_plain_anywhere: bool,
    /// Also listen for AMQP without TLS here, a loopback address such as 127.0.0.1:5672
    #[arg(long, value_name = "ADDRESS:PORT")]
    amqp_plain: Option<SocketAddr>,
    /// Also answer /healthz, /readyz and /metrics without TLS here
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin: Option<SocketAddr>,
    /// How log lines on standard error look
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// What is logged: error, warn, info, debug, trace, or directives such as info,holdfast_heads=debug
    #[arg(long, value_name = "FILTER", env = "HOLDFAST_LOG", hide_env_values = true)]
    log: Option<String>,
}

impl ServeArgs {
    /// The configuration: file, then flags.
    fn configuration(&self) -> anyhow::Result<Config> {
        let mut config = match &self.config {
            Some(path) => Config::load(path)?,
            None => Config::default(),
        };
        if !self.hosts.is_empty() {
            config.server.hosts.clone_from(&self.hosts);
        }
        if !self.listen.is_empty() {
            config.server.listen.clone_from(&self.listen);
        }
        config.mqtt.port = self.mqtt_port.unwrap_or(config.mqtt.port);
        config.amqp.port = self.amqp_port.unwrap_or(config.amqp.port);
        config.amqp.plain = self.amqp_plain.or(config.amqp.plain);
        config.https.port = self.https_port.unwrap_or(config.https.port);
        config.blob.port = self.blob_port.or(config.blob.port);
        config.mqtt.plain = self.mqtt_plain.or(config.mqtt.plain);
        config.mqtt.plain_anywhere |= self.mqtt_plain_anywhere;
        config.server.admin = self.admin.or(config.server.admin);
        config.observe.format = self.log_format.unwrap_or(config.observe.format);
        if let Some(filter) = &self.log {
            config.observe.filter.clone_from(filter);
        }
        config.check()?;
        Ok(config)
    }
}

/// What a composed hub needs.
struct Settings {
    config: Config,
    /// Names in the certificate and in tokens; the first is the one for connection strings.
    names: Vec<String>,
    data_dir: DataDir,
    certificates: Certificates,
    output: Format,
    profile: bool,
}

/// Runs the hub until a signal ends it.
///
/// # Errors
/// When it cannot start.
pub fn run(global: &Global, args: &ServeArgs) -> anyhow::Result<ExitCode> {
    // The allocator asks for huge pages, with which an idle hub holds 24 MiB; from here on without them it holds 20 (what
    // was touched before this line stays; MIMALLOC_ALLOW_THP=0 in the environment saves that too, for 15). Whether
    // throughput changes was not to be told from noise. An old kernel that cannot do it is no reason to stop.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    let config = args.configuration()?;
    config.observe.start()?;
    let default = PathBuf::from(DEFAULT_DATA_DIR);
    let given = global.data_dir();
    let data_dir = DataDir::open(given.unwrap_or(&default)).map_err(data_dir::unusable)?;
    let names = server_names(&config.server.hosts);
    let certificates = Certificates::new(data_dir.path(), names.clone(), config.tls.clone());
    certificates.ensure().map_err(data_dir::unusable)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("hub")
        .build()?;
    let settings = Settings {
        config,
        names,
        data_dir,
        certificates,
        output: global.output(),
        profile: !global.no_profile(),
    };
    runtime.block_on(compose::run(settings))?;
    // Not waited for: a blocking read that hangs on a broken disk must not hold the process.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}
