//! The checks.

use std::net::ToSocketAddrs as _;
use std::path::Path;
use std::time::Duration;

use holdfast_agent::runtime::ModuleRuntime as _;
use holdfast_docker::{DockerRuntime, Endpoint};
use holdfast_ports::BoxFuture;
use holdfast_program::failure::{Failure, Kind};
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::Found::{Failed, Ok as Good, Skipped, Warning};
use super::{CheckArgs, Found, reach};
use crate::certificates::pem;
use crate::commands::given_files::{self, Problem};
use crate::commands::{Global, deployment};
use crate::config::{CertificateFiles, Credential, EdgeCa, Listen, Loaded, Provisioning, Settings};
use crate::keys::tpm::{self, DeviceTpm};
use crate::modules::EDGE_HUB;
use crate::system::VERSION;
use crate::time_text;

/// Least free space for what the daemon keeps.
const SPACE_MIN: u64 = 100 * 1024 * 1024;
/// Largest difference of clocks that does no harm: tokens and certificates tolerate some minutes.
const CLOCK_DIFFERENCE_MAX: f64 = 120.0;

/// A check.
pub(super) struct Check {
    /// Name, for `--dont-run` and JSON.
    pub(super) name: &'static str,
    /// What is checked, in words.
    pub(super) about: &'static str,
    pub(super) run: for<'a> fn(&'a Checks) -> BoxFuture<'a, Found>,
}

/// What checks work on.
pub(super) struct Checks {
    global: Global,
    loaded: Result<Loaded, Failure>,
    ntp_server: String,
    hub: Option<String>,
}

macro_rules! check {
    ($name:literal, $about:literal, $run:ident) => {
        Check {
            name: $name,
            about: $about,
            run: |checks| Box::pin(checks.$run()),
        }
    };
}

/// All checks, in the order in which they are run.
pub(super) const ALL: &[Check] = &[
    check!("config-well-formed", "the configuration can be read", config),
    check!("hostname", "the host name can be used by clients", hostname),
    check!(
        "parent_hostname",
        "the parent edge device's name resolves",
        parent
    ),
    check!("home-writable", "the daemon's folder can be written", home),
    check!("storage-space", "there is room for what the daemon keeps", space),
    check!("host-local-time", "the clock is right", time),
    check!("container-engine-uri", "the container engine answers", engine),
    check!(
        "container-engine-dns",
        "containers have a name server of their own",
        engine_dns
    ),
    check!("connect-management-uri", "the daemon answers", daemon),
    check!(
        "aziot-edge-version",
        "daemon and command are of one version",
        version
    ),
    check!(
        "certs-read",
        "given certificates and keys can be read, belong together and are in force",
        certificates
    ),
    check!("tpm-usable", "the TPM can be used", tpm),
    check!(
        "identity-certificate-expiry",
        "the device's certificate is valid",
        identity_expiry
    ),
    check!(
        "local-ca-certificate-expiry",
        "the edge CA is valid",
        edge_ca_expiry
    ),
    check!(
        "edge-ca-trusted",
        "downstream devices know whom to trust",
        edge_ca_kind
    ),
    check!("listen-ports", "the edge hub's ports are open", ports),
    check!("proxy-settings", "the proxy can be used", proxy),
    check!(
        "host-connect-dps-endpoint",
        "the provisioning service is reached",
        dps
    ),
    check!(
        "host-connect-upstream-amqp",
        "the hub is reached over AMQP",
        hub_amqp
    ),
    check!(
        "host-connect-upstream-https",
        "the hub is reached over HTTPS",
        hub_https
    ),
    check!(
        "host-connect-upstream-mqtt",
        "the hub is reached over MQTT",
        hub_mqtt
    ),
    check!(
        "device-accepted",
        "provisioning service and hub accept the device",
        accepted
    ),
    check!(
        "deployment-accepted",
        "the last deployment was accepted and carried out",
        deployment
    ),
    check!(
        "routes-compiled",
        "the edge hub can use its configuration and every route",
        routes
    ),
    check!("modules-healthy", "all modules run", modules),
];

impl Checks {
    pub(super) fn new(global: &Global, args: &CheckArgs) -> Self {
        Checks {
            global: global.clone(),
            loaded: global.load(),
            ntp_server: args.ntp_server.clone(),
            hub: args.iothub_hostname.clone(),
        }
    }

    fn settings(&self) -> Result<&Settings, Found> {
        match &self.loaded {
            Ok(loaded) => Ok(&loaded.settings),
            Err(_) => Err(Skipped("the configuration cannot be read".to_owned())),
        }
    }

    async fn config(&self) -> Found {
        match &self.loaded {
            Ok(loaded) if loaded.warnings.is_empty() => Good(loaded.settings.source.clone()),
            Ok(loaded) => Warning(
                loaded.warnings.join("; "),
                "remove these keys, or see docs/reference/edge-config.md for what replaces them".to_owned(),
            ),
            Err(error) => Failed(error.message.clone(), error.hint.clone().unwrap_or_default()),
        }
    }

    async fn hostname(&self) -> Found {
        let settings = match self.settings() {
            Ok(settings) => settings,
            Err(found) => return found,
        };
        let name = &settings.hostname;
        if name.eq_ignore_ascii_case("localhost") || name.starts_with("127.") {
            return Warning(
                format!("the host name is {name}, by which no other machine reaches this one"),
                "set device.hostname (hostname in config.toml) to a name that downstream devices resolve"
                    .to_owned(),
            );
        }
        if name.len() > 64 {
            return Warning(
                format!("the host name has {} characters", name.len()),
                "some clients look for it in the common name, which has 64".to_owned(),
            );
        }
        Good(name.clone())
    }

    async fn parent(&self) -> Found {
        let parent = match self.settings() {
            Ok(settings) => settings.parent_hostname.clone(),
            Err(found) => return found,
        };
        let Some(parent) = parent else {
            return Skipped("there is no parent edge device".to_owned());
        };
        let resolved = (parent.as_str(), 443)
            .to_socket_addrs()
            .ok()
            .and_then(|mut addresses| addresses.next());
        match resolved {
            Some(_) => Good(parent),
            None => Failed(
                format!("{parent} does not resolve"),
                "enter it in DNS or /etc/hosts of this machine".to_owned(),
            ),
        }
    }

    async fn home(&self) -> Found {
        let home = match self.settings() {
            Ok(settings) => &settings.home,
            Err(found) => return found,
        };
        let probe = home.join(".check");
        match std::fs::create_dir_all(home).and_then(|()| std::fs::write(&probe, b"x")) {
            Ok(()) => {
                let _ = std::fs::remove_file(probe);
                Good(home.display().to_string())
            }
            Err(error) => Failed(
                format!("{}: {error}", home.display()),
                "run the check as root or as the daemon's user; else correct device.home or its rights"
                    .to_owned(),
            ),
        }
    }

    async fn space(&self) -> Found {
        let home = match self.settings() {
            Ok(settings) => &settings.home,
            Err(found) => return found,
        };
        let existing = home
            .ancestors()
            .find(|folder| folder.exists())
            .unwrap_or(Path::new("/"));
        match rustix::fs::statvfs(existing) {
            Ok(state) => {
                let free = state.f_bavail * state.f_frsize;
                let mebibytes = free / (1024 * 1024);
                if free < SPACE_MIN {
                    Failed(
                        format!("{mebibytes} MiB are free at {}", existing.display()),
                        "free space: remove unused images (docker image prune) and old logs".to_owned(),
                    )
                } else {
                    Good(format!("{mebibytes} MiB are free"))
                }
            }
            Err(error) => Skipped(error.to_string()),
        }
    }

    async fn time(&self) -> Found {
        match reach::clock_difference(&self.ntp_server).await {
            Ok(seconds) if seconds.abs() > CLOCK_DIFFERENCE_MAX => Failed(
                format!(
                    "the clock differs by {seconds:.0} s from that of {}",
                    self.ntp_server
                ),
                "set the clock (timedatectl set-ntp true); tokens and certificates depend on it".to_owned(),
            ),
            Ok(seconds) => Good(format!("differs by {seconds:.1} s")),
            Err(error) => Warning(
                format!("{} cannot be asked: {error}", self.ntp_server),
                "name a time server that this machine reaches with --ntp-server".to_owned(),
            ),
        }
    }

    async fn engine(&self) -> Found {
        let settings = match self.settings() {
            Ok(settings) => settings,
            Err(found) => return found,
        };
        let address = format!("unix://{}", settings.engine.socket.display());
        let asked = match Endpoint::parse(&address) {
            Ok(endpoint) => DockerRuntime::new(endpoint)
                .info()
                .await
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match asked {
            Ok(info) => Good(format!("{} (API {})", info.version, info.api_version)),
            Err(error) => Failed(
                error,
                "start the engine (systemctl start docker), or correct engine.socket (moby_runtime.uri); the user needs the right to use the socket".to_owned(),
            ),
        }
    }

    async fn engine_dns(&self) -> Found {
        let text = std::fs::read_to_string("/etc/docker/daemon.json").unwrap_or_default();
        let has = serde_json::from_str::<Value>(&text).is_ok_and(|config| config.get("dns").is_some());
        if has {
            return Good("/etc/docker/daemon.json".to_owned());
        }
        Warning(
            "the engine has no name server set, and hands on that of the machine".to_owned(),
            "when modules cannot resolve names, set \"dns\" in /etc/docker/daemon.json".to_owned(),
        )
    }

    async fn ask(&self, path: &'static str) -> Result<Value, Failure> {
        let global = self.global.clone();
        // The client has a runtime of its own.
        let asked = tokio::task::spawn_blocking(move || global.client()?.get(path)).await;
        asked.unwrap_or_else(|error| Err(Failure::usage(error.to_string())))
    }

    async fn daemon(&self) -> Found {
        match self.ask("/systeminfo").await {
            Ok(_) => Good(String::new()),
            // Which of the daemons of this machine is meant stands in the file that was named.
            Err(_) if self.loaded.is_err() && self.global.config.is_some() => {
                Skipped("the configuration cannot be read".to_owned())
            }
            Err(error) => Failed(error.message, error.hint.unwrap_or_default()),
        }
    }

    async fn version(&self) -> Found {
        let Ok(info) = self.ask("/systeminfo").await else {
            return Skipped("the daemon does not answer".to_owned());
        };
        match info["version"].as_str() {
            Some(VERSION) => Good(VERSION.to_owned()),
            Some(other) => Warning(
                format!("the daemon is {other}, this command {VERSION}"),
                "restart the daemon after an update: systemctl restart holdfast-edge".to_owned(),
            ),
            None => Skipped("the daemon tells no version".to_owned()),
        }
    }

    async fn certificates(&self) -> Found {
        let settings = match self.settings() {
            Ok(settings) => settings,
            Err(found) => return found,
        };
        let looked = given_files::look(settings);
        let faults: Vec<&Problem> = looked
            .problems
            .iter()
            .filter(|problem| problem.is_fault)
            .collect();
        let problems = if faults.is_empty() {
            looked.problems.iter().collect()
        } else {
            faults.clone()
        };
        let reasons: Vec<&str> = problems.iter().map(|problem| problem.reason.as_str()).collect();
        let mut remedies: Vec<&str> = problems.iter().map(|problem| problem.remedy.as_str()).collect();
        remedies.dedup();
        let (what, remedy) = (reasons.join("; "), remedies.join("; "));
        match (problems.is_empty(), faults.is_empty()) {
            (true, _) => Good(format!("{} looked at", looked.files)),
            (_, true) => Warning(what, remedy),
            (_, false) => Failed(what, remedy),
        }
    }

    async fn tpm(&self) -> Found {
        let settings = match self.settings() {
            Ok(settings) => settings,
            Err(found) => return found,
        };
        if *credential(settings) != Credential::Tpm {
            return Skipped("the device is not attested by a TPM".to_owned());
        }
        let seen = async {
            let chip = DeviceTpm::new(&settings.tpm)?;
            let told = chip.describe().await.map_err(|error| tpm::failure(&error))?;
            let keys = chip.public_keys().await;
            keys.map_err(|error| tpm::failure(&error))?;
            Ok::<_, Failure>(told)
        };
        match seen.await {
            Ok(told) => Good(format!(
                "{} {}, firmware {}, at {}",
                told.manufacturer, told.model, told.firmware, settings.tpm.address
            )),
            Err(error) => Failed(error.message, error.hint.unwrap_or_default()),
        }
    }

    async fn identity_expiry(&self) -> Found {
        let settings = match self.settings() {
            Ok(settings) => settings,
            Err(found) => return found,
        };
        match device_certificate(settings) {
            Some(files) => expiry(&files.certificate, "issue a new one and put it in its place"),
            None => Skipped("the device has no certificate".to_owned()),
        }
    }

    async fn edge_ca_expiry(&self) -> Found {
        let settings = match self.settings() {
            Ok(settings) => settings,
            Err(found) => return found,
        };
        match &settings.edge_ca {
            EdgeCa::Files(files) => expiry(
                &files.certificate,
                "issue a new one and put it in its place; the daemon reads it by itself",
            ),
            _ => {
                let own = settings.identity_folder().join("edge-ca.pem");
                match own.exists() {
                    true => expiry(&own, "the daemon renews it by itself while it runs"),
                    false => Skipped("it has not been made yet, or this user may not read it".to_owned()),
                }
            }
        }
    }

    async fn edge_ca_kind(&self) -> Found {
        match self
            .settings()
            .map(|settings| (&settings.edge_ca, settings.identity_folder()))
        {
            Err(found) => found,
            Ok((EdgeCa::SelfSigned { .. }, folder)) => Warning(
                "the device is its own authority".to_owned(),
                format!(
                    "give {} to downstream devices, or set an edge CA of your own (certificates.edge_ca)",
                    folder.join("ca.pem").display()
                ),
            ),
            Ok(_) => Good("an authority of the site".to_owned()),
        }
    }

    async fn ports(&self) -> Found {
        let settings = match self.settings() {
            Ok(settings) => settings,
            Err(found) => return found,
        };
        let listen = &settings.listen;
        // A module like others: without a deployment that wants it there is none.
        let answer = self.ask("/modules").await;
        if let Err(Failure {
            kind: Kind::Unavailable,
            ..
        }) = answer
        {
            return free(&settings.listen).await;
        }
        if let Ok(answer) = answer {
            let mut modules = answer["modules"].as_array().into_iter().flatten();
            let hub = modules.find(|module| module["name"] == EDGE_HUB);
            match hub.and_then(|hub| hub["status"]["runtimeStatus"]["status"].as_str()) {
                None => return Skipped("the deployment has no edgeHub".to_owned()),
                Some("stopped") => return Skipped("the deployment wants edgeHub stopped".to_owned()),
                Some(_) => {}
            }
        }
        let mut open = Vec::new();
        for port in [listen.mqtt, listen.amqp, listen.https]
            .into_iter()
            .flatten()
            .filter(|port| *port != 0)
        {
            if let Err(error) = reach::tcp("localhost", port).await {
                return Failed(
                    format!("nobody listens on port {port}: {error}"),
                    "start the daemon; its log tells when a port is taken by another program".to_owned(),
                );
            }
            open.push(port.to_string());
        }
        Good(open.join(", "))
    }

    async fn proxy(&self) -> Found {
        let settings = match self.settings() {
            Ok(settings) => settings,
            Err(found) => return found,
        };
        match crate::upstream::proxy(settings) {
            Ok(None) => Skipped("there is none".to_owned()),
            Ok(Some(proxy)) => match reach::tcp(&proxy.host, proxy.port).await {
                Ok(()) => Good(format!("{proxy:?}")),
                Err(error) => Failed(
                    format!("{proxy:?} cannot be reached: {error}"),
                    "correct upstream.proxy, or https_proxy in the environment".to_owned(),
                ),
            },
            Err(error) => Failed(error.message, error.hint.unwrap_or_default()),
        }
    }

    async fn dps(&self) -> Found {
        let settings = match self.settings() {
            Ok(settings) => settings,
            Err(found) => return found,
        };
        let Provisioning::Dps { endpoint, .. } = &settings.provisioning else {
            return Skipped("the device is told its hub".to_owned());
        };
        match crate::provisioning::host_and_port(endpoint) {
            Some((host, port)) => reached(settings, host, port).await,
            None => Failed(
                format!("{endpoint} is not an address"),
                "write https://host[:port]".to_owned(),
            ),
        }
    }

    async fn hub_amqp(&self) -> Found {
        self.hub(|settings| settings.upstream.amqp_port).await
    }

    async fn hub_https(&self) -> Found {
        self.hub(|settings| settings.upstream.https_port).await
    }

    async fn hub_mqtt(&self) -> Found {
        self.hub(|settings| settings.upstream.mqtt_port).await
    }

    async fn hub(&self, port: fn(&Settings) -> u16) -> Found {
        let settings = match self.settings() {
            Ok(settings) => settings,
            Err(found) => return found,
        };
        let told = match &settings.provisioning {
            Provisioning::Manual { hub, .. } => Some(hub.clone()),
            Provisioning::Dps { .. } => None,
        };
        let assigned = || {
            let account = std::fs::read(settings.identity_folder().join("account.json")).ok()?;
            let account: Value = serde_json::from_slice(&account).ok()?;
            Some(account["hub"].as_str()?.to_owned())
        };
        let host = settings
            .parent_hostname
            .clone()
            .or_else(|| self.hub.clone())
            .or(told)
            .or_else(assigned);
        match host {
            Some(host) => reached(settings, &host, port(settings)).await,
            None => Skipped(
                "the device has not been assigned to a hub yet; name one with --iothub-hostname".to_owned(),
            ),
        }
    }

    async fn accepted(&self) -> Found {
        let settings = match self.settings() {
            Ok(settings) => settings,
            Err(found) => return found,
        };
        match crate::provisioning::verify(settings).await {
            Ok(seen) => Good(seen),
            Err(error) => Failed(error.message, error.hint.unwrap_or_default()),
        }
    }

    async fn deployment(&self) -> Found {
        self.told_of_deployment(deployment::accepted).await
    }

    async fn routes(&self) -> Found {
        self.told_of_deployment(deployment::routes).await
    }

    async fn told_of_deployment(&self, judge: fn(&Value) -> Found) -> Found {
        match self.ask("/deployment").await {
            Ok(told) => judge(&told),
            Err(Failure {
                kind: Kind::NotFound, ..
            }) => Skipped("the daemon does not tell; it is of another version".to_owned()),
            Err(_) => Skipped("the daemon does not answer".to_owned()),
        }
    }

    async fn modules(&self) -> Found {
        let Ok(answer) = self.ask("/modules").await else {
            return Skipped("the daemon does not answer".to_owned());
        };
        let modules = answer["modules"].as_array().cloned().unwrap_or_default();
        let bad: Vec<String> = modules
            .iter()
            .filter(|module| module["status"]["runtimeStatus"]["status"] != "running")
            .map(|module| {
                let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
                format!(
                    "{} is {}",
                    text(&module["name"]),
                    text(&module["status"]["runtimeStatus"]["status"])
                )
            })
            .collect();
        if bad.is_empty() {
            return Good(format!("{} modules", modules.len()));
        }
        Warning(
            bad.join(", "),
            "holdfast-edge logs MODULE tells why, unless the deployment wants it so".to_owned(),
        )
    }
}

/// Without the daemon nobody may listen on the edge hub's ports.
async fn free(listen: &Listen) -> Found {
    for port in [listen.mqtt, listen.amqp, listen.https].into_iter().flatten() {
        if port != 0 && reach::tcp("localhost", port).await.is_ok() {
            return Failed(
                format!("another program listens on port {port}"),
                format!(
                    "stop it (ss -ltnp 'sport = :{port}'), or give the edge hub another port (hub.mqtt_port, hub.amqp_port, hub.https_port)"
                ),
            );
        }
    }
    Skipped("the daemon does not answer; the ports are free for it".to_owned())
}

async fn reached(settings: &Settings, host: &str, port: u16) -> Found {
    match reach::tls(settings, host, port).await {
        Ok(()) => Good(format!("{host}:{port}")),
        Err(error) => Failed(
            format!("{host}:{port}: {error}"),
            "open the port in the firewall, correct the name, or name the authority of the hub (upstream.ca)"
                .to_owned(),
        ),
    }
}

fn credential(settings: &Settings) -> &Credential {
    let (Provisioning::Manual { credential, .. } | Provisioning::Dps { credential, .. }) =
        &settings.provisioning;
    credential
}

fn device_certificate(settings: &Settings) -> Option<&CertificateFiles> {
    match credential(settings) {
        Credential::Certificate(files) => Some(files),
        Credential::Key(_) | Credential::Tpm => None,
    }
}

fn expiry(path: &Path, remedy: &str) -> Found {
    let chain: Vec<CertificateDer<'_>> = match pem::read_chain(path) {
        Ok(chain) => chain,
        Err(error) => return Failed(error.message, error.hint.unwrap_or_default()),
    };
    let Ok((_, leaf)) = X509Certificate::from_der(&chain[0]) else {
        return Failed(format!("{} is damaged", path.display()), remedy.to_owned());
    };
    let now = time_text::now().as_seconds();
    let left = leaf.validity().not_after.timestamp() - now;
    let days = Duration::from_secs(left.unsigned_abs()).as_secs() / 86_400;
    if left <= 0 {
        Failed(
            format!("{} ended {days} days ago", path.display()),
            remedy.to_owned(),
        )
    } else if leaf.validity().not_before.timestamp() > now {
        Failed(
            format!("{} is not valid yet", path.display()),
            "set the clock, or issue it anew".to_owned(),
        )
    } else if left < given_files::EXPIRY_WARNING {
        Warning(
            format!("{} ends in {days} days", path.display()),
            remedy.to_owned(),
        )
    } else {
        Good(format!("{days} days left"))
    }
}
