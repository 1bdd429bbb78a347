//! What is measured: a hub of our own, a running one, or any MQTT broker.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;

use anyhow::Context as _;
use holdfast_observe::process::{Usage, usage};
use holdfast_program::failure::Failure;
use rustls::pki_types::ServerName;

use super::devices::{self, Accounts};
use super::fleet::{Endpoint, TlsClient, Trust, client_config};
use super::spawn::{EdgeHub, Hub, Mosquitto, WorkDir, mosquitto_version};
use crate::cli::client::Client;
use crate::cli::output;
use crate::cli::profile::{Login, Wanted};

/// Names of the devices of a test.
const DEVICE_PREFIX: &str = "bench-";

/// Which of the hub's protocols devices speak.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Protocol {
    /// MQTT 3.1.1
    #[default]
    Mqtt,
    /// AMQP 1.0
    Amqp,
}

impl Protocol {
    /// As people write it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Protocol::Mqtt => "MQTT",
            Protocol::Amqp => "AMQP",
        }
    }
}

/// What to measure, as the command line says it.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "What is measured")]
pub(crate) struct TargetOptions {
    /// A fresh hub on free ports, which ends with the measurement [the default]
    #[arg(long, conflicts_with_all = ["running", "broker"])]
    spawn: bool,
    /// The running hub that --login, connection.env or the profile names; its devices `bench-…` are deleted at the end
    #[arg(long, conflicts_with = "broker")]
    running: bool,
    /// An MQTT broker that lets anybody in
    #[arg(long, value_name = "HOST:PORT")]
    broker: Option<String>,
    /// Process id of a server on this machine that was not started here, to measure its CPU time and memory
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// Connect with TLS
    #[arg(long)]
    pub(crate) tls: bool,
    /// Directory for the data of a fresh hub; the disk below it is part of the measurement [default: the temporary one]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Set by measurements that know more than one.
    #[arg(skip)]
    pub(crate) protocol: Protocol,
}

/// A server under test.
pub(crate) struct Target {
    /// For reports.
    pub(crate) name: String,
    /// Its name and version, for reports.
    pub(crate) version: String,
    pub(crate) endpoint: Endpoint,
    /// What is spoken there.
    pub(crate) protocol: Protocol,
    /// The hub's REST API.
    pub(crate) client: Option<Client>,
    pid: Option<u32>,
    /// Whether devices must be deleted at the end: the hub stays.
    stays: bool,
    // Dropped in this order: a server before its directory.
    _server: Option<Server>,
    _dir: Option<WorkDir>,
}

// Held for its end only.
enum Server {
    Hub(#[expect(dead_code, reason = "ends the child when dropped")] Box<Hub>),
    Mosquitto(#[expect(dead_code, reason = "ends the child when dropped")] Mosquitto),
    EdgeHub(#[expect(dead_code, reason = "ends the child when dropped")] EdgeHub),
}

impl TargetOptions {
    /// Whether the command line names a server that runs already.
    pub(crate) const fn is_given(&self) -> bool {
        self.running || self.broker.is_some()
    }

    /// Starts or finds the server. `resume` lets TLS connections resume earlier sessions.
    pub(crate) fn target(&self, wanted: &Wanted, resume: bool) -> anyhow::Result<Target> {
        if let Some(broker) = &self.broker {
            if self.protocol == Protocol::Amqp {
                return Err(Failure::usage("AMQP is measured on a hub; a broker is one of MQTT").into());
            }
            return self.broker(broker, wanted, resume);
        }
        if self.running || (!self.spawn && asks_for_running(wanted)) {
            return self.running(wanted, resume);
        }
        self.fresh_hub(resume)
    }

    /// As [`TargetOptions::target`], for measurements that need a hub.
    pub(crate) fn hub(&self, wanted: &Wanted) -> anyhow::Result<Target> {
        if self.broker.is_some() {
            return Err(Failure::usage("this measurement needs a hub, not a broker").into());
        }
        self.target(wanted, true)
    }

    /// A hub of our own.
    pub(crate) fn fresh_hub(&self, resume: bool) -> anyhow::Result<Target> {
        let dir = WorkDir::new(self.work_dir.as_deref())?;
        if dir.is_in_memory() {
            eprintln!(
                "warning: {} is in memory, where syncing is free; --work-dir names a directory on a disk",
                dir.path().display()
            );
        }
        let hub = Hub::start(&dir.path().join("data"))?;
        let login = hub.login.clone();
        Ok(Target {
            name: "holdfast".to_owned(),
            version: format!("holdfast {}", env!("CARGO_PKG_VERSION")),
            endpoint: hub_endpoint(&login, self.protocol, self.tls, resume)?,
            protocol: self.protocol,
            client: Some(Client::new(login)?),
            pid: Some(hub.pid()),
            stays: false,
            _server: Some(Server::Hub(Box::new(hub))),
            _dir: Some(dir),
        })
    }

    /// A Mosquitto of our own.
    pub(crate) fn mosquitto(&self) -> anyhow::Result<Target> {
        let dir = WorkDir::new(self.work_dir.as_deref())?;
        let mosquitto = Mosquitto::start(dir.path(), self.tls)?;
        let name = ServerName::try_from("localhost").context("localhost is a name")?;
        Ok(Target {
            name: "mosquitto".to_owned(),
            version: format!("mosquitto {}", mosquitto_version()?),
            endpoint: Endpoint {
                address: mosquitto.address,
                tls: self
                    .tls
                    .then(|| tls_client(Trust::Anyone, name, true))
                    .transpose()?,
            },
            protocol: Protocol::Mqtt,
            client: None,
            pid: Some(mosquitto.pid()),
            stays: false,
            _server: Some(Server::Mosquitto(mosquitto)),
            _dir: Some(dir),
        })
    }

    fn broker(&self, broker: &str, wanted: &Wanted, resume: bool) -> anyhow::Result<Target> {
        let address = resolve(broker)?;
        let host = broker.rsplit_once(':').map_or(broker, |(host, _)| host);
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|_| Failure::usage(format!("{host:?} is no host name")))?;
        let trust = wanted.ca.as_deref().map_or(Trust::Anyone, Trust::Ca);
        Ok(Target {
            name: broker.to_owned(),
            version: broker.to_owned(),
            endpoint: Endpoint {
                address,
                tls: self.tls.then(|| tls_client(trust, name, resume)).transpose()?,
            },
            protocol: Protocol::Mqtt,
            client: None,
            pid: self.server_pid,
            stays: true,
            _server: None,
            _dir: None,
        })
    }

    fn running(&self, wanted: &Wanted, resume: bool) -> anyhow::Result<Target> {
        let login = Login::find(wanted)?;
        Ok(Target {
            name: login.host.clone(),
            version: format!("hub {}", login.host),
            endpoint: hub_endpoint(&login, self.protocol, self.tls, resume)?,
            protocol: self.protocol,
            client: Some(Client::new(login)?),
            pid: self.server_pid,
            stays: true,
            _server: None,
            _dir: None,
        })
    }
}

/// Whether the command line, not the environment, names a hub.
fn asks_for_running(wanted: &Wanted) -> bool {
    let given = |value: Option<&std::ffi::OsStr>, variable: &str| {
        value.is_some_and(|value| std::env::var_os(variable).as_deref() != Some(value))
    };
    given(
        wanted.login.as_deref().map(std::ffi::OsStr::new),
        "HOLDFAST_CONNECTION_STRING",
    ) || given(
        wanted.data_dir.as_deref().map(std::path::Path::as_os_str),
        "HOLDFAST_DATA_DIR",
    )
}

/// Where devices of a hub connect to.
pub(crate) fn hub_endpoint(
    login: &Login,
    protocol: Protocol,
    tls: bool,
    resume: bool,
) -> anyhow::Result<Endpoint> {
    let (plain, port, flag) = match protocol {
        Protocol::Mqtt => (&login.mqtt_plain, login.mqtt_port, "--mqtt-plain 127.0.0.1:1883"),
        Protocol::Amqp => (&login.amqp_plain, login.amqp_port, "--amqp-plain 127.0.0.1:5672"),
    };
    if !tls {
        let plain = plain.as_deref().ok_or_else(|| {
            Failure::usage(format!(
                "the hub has no {} listener without TLS that is known here",
                protocol.name()
            ))
            .hint(format!("add --tls, or start the hub with {flag}"))
        })?;
        return Ok(Endpoint {
            address: resolve(plain)?,
            tls: None,
        });
    }
    let name = ServerName::try_from(login.host.clone())
        .map_err(|_| Failure::usage(format!("{:?} is no host name", login.host)))?;
    let trust = login.ca.as_deref().map_or(Trust::System, Trust::Ca);
    Ok(Endpoint {
        address: resolve(&host_and_port(&login.host, port))?,
        tls: Some(tls_client(trust, name, resume)?),
    })
}

/// `host:port`, with the brackets that an IPv6 address needs.
pub(crate) fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn tls_client(trust: Trust<'_>, name: ServerName<'static>, resume: bool) -> anyhow::Result<TlsClient> {
    Ok(TlsClient {
        config: client_config(trust, resume)?,
        name,
    })
}

/// The first address of a name, IPv4 before IPv6: only there are source addresses plentiful on loopback.
pub(crate) fn resolve(text: &str) -> anyhow::Result<SocketAddr> {
    let addresses = text.to_socket_addrs();
    let addresses: Vec<SocketAddr> = addresses
        .map_err(|error| {
            Failure::usage(format!("{text} cannot be resolved: {error}")).hint("write HOST:PORT")
        })?
        .collect();
    let v4 = addresses.iter().find(|address| address.is_ipv4());
    v4.or(addresses.first())
        .copied()
        .with_context(|| format!("{text} has no address"))
}

impl Target {
    /// An edge hub of our own.
    pub(crate) fn edge(endpoint: Endpoint, hub: EdgeHub, dir: WorkDir) -> Self {
        Target {
            name: "holdfast-edge".to_owned(),
            version: format!("holdfast-edge {}", env!("CARGO_PKG_VERSION")),
            endpoint,
            protocol: Protocol::Mqtt,
            client: None,
            pid: Some(hub.pid()),
            stays: false,
            _server: Some(Server::EdgeHub(hub)),
            _dir: Some(dir),
        }
    }

    /// Whom `count` connections log in as; registers devices when the target is a hub.
    pub(crate) fn accounts(&self, count: usize) -> anyhow::Result<Accounts> {
        let Some(client) = &self.client else {
            return Ok(Accounts::Anonymous);
        };
        let bar = output::progress(count as u64, "devices");
        let devices = devices::register(client, DEVICE_PREFIX, count, |done| bar.inc(done as u64));
        bar.finish_and_clear();
        Ok(Accounts::Devices {
            host: client.login().host.clone(),
            devices: devices?,
        })
    }

    /// Deletes the devices of [`Target::accounts`] from a hub that stays.
    pub(crate) fn clean_up(&self, accounts: &Accounts) -> anyhow::Result<()> {
        match (&self.client, accounts) {
            (Some(client), Accounts::Devices { devices, .. }) if self.stays => {
                devices::delete(client, devices, |_| {})
            }
            _ => Ok(()),
        }
    }

    /// Whether the server was there before, and stays.
    pub(crate) const fn stays(&self) -> bool {
        self.stays
    }

    /// The hub's REST API.
    pub(crate) fn rest(&self) -> anyhow::Result<&Client> {
        self.client.as_ref().context("the target is not a hub")
    }

    /// The data directory of a hub that was started for the measurement.
    pub(crate) fn data_dir(&self) -> Option<PathBuf> {
        let dir = self._dir.as_ref().filter(|_| self.client.is_some());
        dir.map(|dir| dir.path().join("data"))
    }

    /// What the server uses now, if it is a process known here.
    pub(crate) fn usage(&self) -> anyhow::Result<Option<Usage>> {
        let Some(pid) = self.pid else { return Ok(None) };
        let usage = usage(pid).with_context(|| format!("the server process {pid} is gone"))?;
        Ok(Some(usage))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_command_line_turns_the_load_on_a_running_hub() {
        assert!(!asks_for_running(&Wanted::default()));
        let named = Wanted {
            data_dir: Some("/somewhere/else".into()),
            ..Wanted::default()
        };
        assert!(asks_for_running(&named));
    }

    #[test]
    fn addresses_are_resolved() {
        assert_eq!(resolve("127.0.0.1:1883").unwrap().port(), 1883);
        assert!(resolve("localhost:1").unwrap().ip().is_loopback());
        assert!(resolve("nonsense").is_err());
        assert_eq!(host_and_port("::1", 5), "[::1]:5");
    }
}
