//! The edge hub with nothing around it: identities and routes from files, offline from the first start.
//!
//! Each module of the manifest gets a key, derived from one that is kept, and a file `modules/<module>.env` with the
//! variables that module SDKs read outside a container: `EdgeHubConnectionString` and `EdgeModuleCACertificateFile`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use holdfast_broker::{Broker, BrokerConfig, SealingKey};
use holdfast_heads::events::Metrics;
use holdfast_model::Identity;
use holdfast_observe::Registry;
use holdfast_ports::clock::{Clock, SystemClock};
use holdfast_program::failure::Failure;
use holdfast_program::files::{self, PRIVATE, PUBLIC};
use holdfast_program::process::raise_file_limit;
use holdfast_program::signals::{Asked, Signals};
use holdfast_store::log::disk::RealDisk;
use holdfast_upstream::port::{ScopeAuthentication, ScopeIdentity};
use holdfast_wire::connection_string::{ConnectionString, Credential, Party};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::hub::{self, EdgeHub, Listeners, Names, apply_store};
use super::{FAREWELL, UPKEEP, runtime};
use crate::certificates::Certificates;
use crate::commands::Format;
use crate::config::{self, Settings};
use crate::keys::{FileKeys, KeyStore as _, Slot};
use crate::memory::Thrift;

/// Member of a manifest.
const DESIRED: &str = "properties.desired";
/// Generation of identities that no hub made.
const GENERATION: &str = "1";

/// What is wanted.
pub struct Standalone {
    /// Deployment manifest.
    pub manifest: PathBuf,
    /// Further identities.
    pub identities: Option<PathBuf>,
    /// Edge device.
    pub device_id: String,
    /// Name of the hub that is not there.
    pub hub_host: String,
    /// Own name.
    pub hostname: String,
    /// Folder of everything.
    pub data_dir: PathBuf,
    /// MQTT, AMQP, HTTPS.
    pub ports: [u16; 3],
    /// How the start is told.
    pub output: Format,
}

/// Runs until a signal ends it.
///
/// # Errors
/// When files cannot be used or ports not be had.
pub fn run(wanted: &Standalone) -> anyhow::Result<ExitCode> {
    raise_file_limit();
    let runtime = runtime()?;
    runtime.block_on(serve(wanted))?;
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

/// What of a manifest matters here.
#[derive(Debug)]
struct Manifest {
    modules: BTreeSet<String>,
    hub: Map<String, Value>,
    /// Desired properties of modules for which the manifest has some.
    desired: Vec<(String, Map<String, Value>)>,
}

async fn serve(wanted: &Standalone) -> anyhow::Result<()> {
    let mut signals = Signals::listen().context("cannot listen to signals")?;
    let manifest = read_manifest(&wanted.manifest)?;
    let settings = settings(wanted)?;
    let _home = super::home::take(&settings)?;
    let keys = FileKeys::open(&settings.identity_folder(), None)
        .map_err(|error| Failure::storage(error.to_string()))?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let certificates = Arc::new(Certificates::new(
        &settings,
        &wanted.device_id,
        Arc::clone(&clock),
    ));
    certificates.ensure()?;
    let listeners = Listeners::bind(&settings.listen)?;
    let ports = listeners.ports();

    let mut config = BrokerConfig::new(
        &wanted.device_id,
        &wanted.hub_host,
        settings.home.join("hub"),
        SealingKey::new(keys.secret("edge hub")),
    );
    let names = Names::new(&settings);
    config.gateway_hosts.clone_from(&names.0);
    apply_store(&mut config, settings.store);
    config.local_identities = identities(wanted, &manifest, &keys).await?;
    let broker = Broker::open(config, Arc::new(RealDisk), Arc::clone(&clock), None)
        .context("cannot open the edge hub's store")?;
    let faults = broker.apply_desired(&manifest.hub).map_err(|error| {
        Failure::usage(format!("{}: $edgeHub: {error}", wanted.manifest.display()))
            .hint("correct the manifest; the message names what is wrong")
    })?;
    for fault in faults {
        tracing::error!("{fault}; the other routes are in force");
    }
    for (module, desired) in &manifest.desired {
        let identity = module_identity(wanted, module)?;
        let kept = broker.apply_module_desired(&identity, desired).await;
        kept.with_context(|| format!("cannot keep the desired properties of {module}"))?;
    }
    let hub = Arc::new(EdgeHub::new(
        &wanted.device_id,
        names,
        certificates,
        clock,
        broker,
    )?);
    let variables = write_variables(wanted, &settings, &manifest, &keys, &hub).await?;
    let (stop, stopped) = watch::channel(false);
    let mut heads = JoinSet::new();
    let mut registry = Registry::new();
    let metrics = Metrics::register(&mut registry);
    hub::serve(&mut heads, &hub, None, listeners, metrics, &stopped);
    hub.broker().start();
    announce(wanted, ports, &variables)?;

    let mut tick = tokio::time::interval(UPKEEP);
    let mut thrift = Thrift::start();
    loop {
        tokio::select! {
            () = thrift.due() => thrift.carry_out(),
            asked = signals.next() => if asked == Asked::Stop { break },
            _ = tick.tick() => {
                let renewed = hub.certificates().ensure().map_err(anyhow::Error::from);
                if let Err(error) = renewed.and_then(|_| hub.renew_certificate()) {
                    tracing::error!(error = format!("{error:#}"), "certificates cannot be renewed; trying again");
                }
            }
        }
    }
    let _ = stop.send(true);
    let farewell = async {
        while heads.join_next().await.is_some() {}
        hub.broker().stop().await;
    };
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
    Ok(())
}

fn read_manifest(path: &Path) -> Result<Manifest, Failure> {
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::usage(format!("cannot use the manifest {}: {error}", path.display()))
            .hint("give a deployment manifest with modulesContent, $edgeAgent and $edgeHub")
    };
    let text = std::fs::read(path).map_err(|error| unusable(&error))?;
    manifest(&text).map_err(|error| unusable(&error))
}

/// Reads a manifest, whole or of a layer, bare or as the `content` of a deployment.
fn manifest(text: &[u8]) -> Result<Manifest, String> {
    // Editors of other systems begin files with a byte order mark.
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let manifest: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let content = manifest
        .pointer("/modulesContent")
        .or_else(|| manifest.pointer("/content/modulesContent"))
        .and_then(Value::as_object)
        .ok_or("modulesContent is missing")?;
    let of = |module: &str| content.get(module).and_then(desired);
    let mut hub = of("$edgeHub").ok_or("modulesContent.$edgeHub[\"properties.desired\"] is missing")?;
    if content["$edgeHub"].get(DESIRED).is_none() {
        // A layer leaves the version to the deployment below it, which is not here.
        hub.entry("schemaVersion").or_insert_with(|| "1.1".into());
    }
    let agent = of("$edgeAgent").unwrap_or_default();
    let of_agent = agent.get("modules").and_then(Value::as_object);
    let named = of_agent.into_iter().flat_map(Map::keys).chain(content.keys());
    let modules: BTreeSet<String> = named.filter(|name| !name.starts_with('$')).cloned().collect();
    let with_desired = |module: &String| Some((module.clone(), of(module)?));
    let desired = modules.iter().filter_map(with_desired).collect();
    Ok(Manifest {
        modules,
        hub,
        desired,
    })
}

/// Desired properties of a module as a manifest has them: `properties.desired`, and in layers
/// `properties.desired.path.to.member`.
fn desired(module: &Value) -> Option<Map<String, Value>> {
    let members = module.as_object()?;
    let mut desired = members.get(DESIRED).and_then(Value::as_object).cloned();
    for (key, value) in members {
        if let Some(path) = key.strip_prefix(DESIRED).and_then(|rest| rest.strip_prefix('.')) {
            put(desired.get_or_insert_default(), path, value);
        }
    }
    desired
}

fn put(object: &mut Map<String, Value>, path: &str, value: &Value) {
    let Some((first, rest)) = path.split_once('.') else {
        object.insert(path.to_owned(), value.clone());
        return;
    };
    let slot = object.entry(first).or_insert(Value::Null);
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    if let Value::Object(inner) = slot {
        put(inner, rest, value);
    }
}

fn module_identity(wanted: &Standalone, module: &str) -> Result<Identity, Failure> {
    Identity::module(&wanted.device_id, module)
        .map_err(|error| Failure::usage(format!("module {module}: {error}")))
}

/// Settings of a daemon that is only an edge hub.
fn settings(wanted: &Standalone) -> Result<Settings, Failure> {
    let mut file = config::own::Config::default();
    file.device.home.clone_from(&wanted.data_dir);
    file.device.hostname = Some(wanted.hostname.clone());
    file.provisioning.hub = Some(wanted.hub_host.clone());
    file.provisioning.device_id = Some(wanted.device_id.clone());
    // Nobody asks for it: there is no hub above.
    file.provisioning.key_file = Some(wanted.data_dir.join("none"));
    [file.hub.mqtt_port, file.hub.amqp_port, file.hub.https_port] = wanted.ports;
    let settings = file.settings("the command line")?;
    config::check(&settings)?;
    Ok(settings)
}

async fn identities(
    wanted: &Standalone,
    manifest: &Manifest,
    keys: &FileKeys,
) -> anyhow::Result<Vec<ScopeIdentity>> {
    let mut identities = match &wanted.identities {
        None => Vec::new(),
        Some(path) => {
            let unusable = |error: &dyn std::fmt::Display| {
                Failure::usage(format!(
                    "cannot use the identities in {}: {error}",
                    path.display()
                ))
                .hint("write {\"identities\":[{\"id\":\"device or device/module\",\"keys\":[\"base64\"]}]}")
            };
            let text = std::fs::read(path).map_err(|error| unusable(&error))?;
            holdfast_broker::read_identities(&text).map_err(|error| unusable(&error))?
        }
    };
    for module in &manifest.modules {
        let identity = module_identity(wanted, module)?;
        if identities.iter().any(|known| known.identity == identity) {
            continue;
        }
        identities.push(ScopeIdentity {
            identity,
            generation_id: GENERATION.to_owned(),
            enabled: true,
            authentication: ScopeAuthentication::Keys {
                primary: keys.module_key(module, GENERATION, Slot::Primary).await?,
                secondary: keys.module_key(module, GENERATION, Slot::Secondary).await?,
            },
            iot_edge: false,
            device_scope: None,
            parent_scopes: Vec::new(),
        });
    }
    Ok(identities)
}

/// Writes the variables of each module; returns the files.
async fn write_variables(
    wanted: &Standalone,
    settings: &Settings,
    manifest: &Manifest,
    keys: &FileKeys,
    hub: &EdgeHub,
) -> anyhow::Result<Vec<PathBuf>> {
    let bundle = settings.home.join("ca.pem");
    files::write(&bundle, hub.certificates().trust_bundle()?.as_bytes(), PUBLIC)
        .with_context(|| format!("cannot write {}", bundle.display()))?;
    let folder = settings.home.join("modules");
    files::make_dir(&folder, 0o700)?;
    let mut written = Vec::new();
    for module in &manifest.modules {
        let string = ConnectionString {
            host: wanted.hub_host.clone(),
            gateway_host: Some(wanted.hostname.clone()),
            party: Party::Module {
                device_id: wanted.device_id.clone(),
                module_id: module.clone(),
            },
            credential: Credential::IdentityKey(keys.module_key(module, GENERATION, Slot::Primary).await?),
        };
        let text = format!(
            "EdgeHubConnectionString='{}'\nEdgeModuleCACertificateFile='{}'\n",
            string.reveal(),
            bundle.display()
        );
        let path = folder.join(format!("{module}.env"));
        files::write(&path, text.as_bytes(), PRIVATE)
            .with_context(|| format!("cannot write {}", path.display()))?;
        written.push(path);
    }
    Ok(written)
}

/// Tells where everything is, once on standard output.
fn announce(wanted: &Standalone, ports: [Option<u16>; 3], variables: &[PathBuf]) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    match wanted.output {
        Format::Json => writeln!(
            out,
            "{}",
            json!({
                "host": wanted.hostname,
                "mqttPort": ports[0],
                "amqpPort": ports[1],
                "httpsPort": ports[2],
                "modules": variables,
            })
        )?,
        Format::Table => {
            let port = |port: Option<u16>| port.map_or_else(|| "-".to_owned(), |port| port.to_string());
            writeln!(
                out,
                "edge hub {} is up: MQTT {}, AMQP {}, HTTPS {}",
                wanted.hostname,
                port(ports[0]),
                port(ports[1]),
                port(ports[2])
            )?;
            for path in variables {
                writeln!(out, "  set -a; . {}; set +a", path.display())?;
            }
        }
    }
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_read_whole_and_in_layers() {
        let whole = json!({"modulesContent": {
            "$edgeAgent": {"properties.desired": {"modules": {"filter": {}}}},
            "$edgeHub": {"properties.desired": {"schemaVersion": "1.2", "routes": {"a": "FROM /* INTO $upstream"}}},
            "sensor": {"properties.desired": {"interval": 5}},
        }});
        let layer = json!({"content": {"modulesContent": {
            "$edgeAgent": {"properties.desired.modules.filter": {"type": "docker"}},
            "$edgeHub": {"properties.desired.routes.a": "FROM /* INTO $upstream"},
            "sensor": {"properties.desired.interval": 5},
        }}});
        for (text, version) in [(whole.to_string(), "1.2"), (format!("\u{feff}{layer}"), "1.1")] {
            let read = manifest(text.as_bytes()).unwrap();
            assert_eq!(
                read.modules,
                BTreeSet::from(["filter".to_owned(), "sensor".to_owned()])
            );
            let hub = json!({"schemaVersion": version, "routes": {"a": "FROM /* INTO $upstream"}});
            assert_eq!(Value::Object(read.hub), hub);
            let [(module, desired)] = read.desired.as_slice() else {
                panic!("{:?}", read.desired);
            };
            assert_eq!((module.as_str(), &desired["interval"]), ("sensor", &json!(5)));
        }
        assert!(
            manifest(br#"{"modulesContent":{}}"#)
                .unwrap_err()
                .contains("$edgeHub")
        );
    }
}
