//! A file of ours that says what a file of the original says.

use std::collections::BTreeMap;
use std::path::PathBuf;

use holdfast_program::failure::Failure;
use holdfast_program::units::Span;
use serde_json::Value;

use super::own::{Config, Mode, Protocol, UpstreamSection};
use super::values::environment_proxy;
use super::{
    CertificateFiles, Credential, EdgeCa, HierarchyAuth, KeySource, Loaded, Provisioning, Reprovisioning,
    Settings, UpstreamProtocol, machine_name,
};

/// A configuration in our form.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The file; holds the device's key if the original did.
    pub text: String,
    /// What has no counterpart, or has to be done by hand; sentences.
    pub notes: Vec<String>,
}

/// Writes what was read from a file of the original as a file of ours. Only what differs from the defaults stands there.
///
/// # Errors
/// When it cannot be written as TOML, which a program of ours would have to be told.
pub fn import(loaded: &Loaded) -> Result<Imported, Failure> {
    let mut notes = loaded.warnings.clone();
    let config = own(&loaded.settings, &mut notes);
    let unwritable = |error: toml::ser::Error| Failure::usage(format!("cannot be written: {error}"));
    let mut table = toml::Table::try_from(&config).map_err(unwritable)?;
    let default = toml::Table::try_from(Config::default()).map_err(unwritable)?;
    without_defaults(&mut table, &default);
    let body = toml::to_string(&table).map_err(unwritable)?;
    let source = &loaded.settings.source;
    let text =
        format!("# From {source}. Every key with its default: docs/reference/edge-config.md\n\n{body}");
    Ok(Imported { text, notes })
}

fn without_defaults(table: &mut toml::Table, default: &toml::Table) {
    table.retain(|key, value| {
        let Some(usual) = default.get(key) else {
            return true;
        };
        if let (toml::Value::Table(section), toml::Value::Table(usual)) = (&mut *value, usual) {
            without_defaults(section, usual);
            return !section.is_empty();
        }
        value != usual
    });
}

fn own(settings: &Settings, notes: &mut Vec<String>) -> Config {
    let mut config = Config::default();
    let device = &mut config.device;
    device.hostname = Some(settings.hostname.clone()).filter(|name| *name != machine_name());
    device.parent_hostname.clone_from(&settings.parent_hostname);
    device.home.clone_from(&settings.home);
    device.additional_info.clone_from(&settings.additional_info);
    provisioning(settings, &mut config);
    tpm(settings, &mut config, notes);
    upstream(settings, &mut config.upstream);
    certificates(settings, &mut config);
    engine(settings, &mut config, notes);
    agent(settings, &mut config, notes);
    hub(settings, &mut config);
    let (api, sockets) = (&mut config.api, &settings.sockets);
    api.workload = format!("unix://{}", sockets.workload.display());
    api.management = format!("unix://{}", sockets.management.display());
    api.module_workload = format!("unix://{}", sockets.module_workload.display());
    api.workload_requests_max = sockets.workload_requests_max;
    api.management_requests_max = sockets.management_requests_max;
    let (images, wanted) = (&mut config.images, &settings.images);
    images.remove_unused = wanted.enabled;
    images.every = Span(wanted.every);
    images.unused_for = Span(wanted.age);
    images.at = format!("{:02}:{:02}", wanted.at_minutes / 60, wanted.at_minutes % 60);
    config.observe = settings.observe.clone();
    config
}

fn provisioning(settings: &Settings, config: &mut Config) {
    let section = &mut config.provisioning;
    section.mode = match settings.reprovisioning {
        Reprovisioning::Dynamic => Mode::Dynamic,
        Reprovisioning::AlwaysOnStartup => Mode::AlwaysOnStartup,
        Reprovisioning::OnErrorOnly => Mode::OnErrorOnly,
    };
    let credential = match &settings.provisioning {
        Provisioning::Manual {
            hub,
            device_id,
            credential,
        } => {
            section.hub = Some(hub.clone());
            section.device_id = Some(device_id.clone());
            credential
        }
        Provisioning::Dps {
            endpoint,
            id_scope,
            payload,
            registration_id,
            credential,
        } => {
            section.endpoint = Some(endpoint.clone());
            section.id_scope = Some(id_scope.clone());
            section.payload.clone_from(payload);
            section.registration_id.clone_from(registration_id);
            credential
        }
    };
    match credential {
        Credential::Key(KeySource::Value(key)) => section.key = Some(key.reveal().to_owned()),
        Credential::Key(KeySource::File(path)) => section.key_file = Some(path.clone()),
        Credential::Certificate(files) => {
            (section.certificate, section.private_key) = pair(files);
        }
        Credential::Tpm => section.tpm = true,
    }
}

fn pair(files: &CertificateFiles) -> (Option<PathBuf>, Option<PathBuf>) {
    (Some(files.certificate.clone()), Some(files.private_key.clone()))
}

fn tpm(settings: &Settings, config: &mut Config, notes: &mut Vec<String>) {
    config.tpm.tcti = settings.tpm.address.to_string();
    let mut file = |auth: &HierarchyAuth, key: &str| match auth {
        HierarchyAuth::Empty => None,
        HierarchyAuth::File(path) => Some(path.clone()),
        HierarchyAuth::Value(_) => {
            notes.push(format!(
                "tpm.hierarchy_authorization: write the value to a file of mode 0600 and name it as tpm.{key}"
            ));
            None
        }
    };
    config.tpm.owner_auth_file = file(&settings.tpm.owner_auth, "owner_auth_file");
    config.tpm.endorsement_auth_file = file(&settings.tpm.endorsement_auth, "endorsement_auth_file");
}

fn upstream(settings: &Settings, section: &mut UpstreamSection) {
    let wanted = &settings.upstream;
    section.protocol = match wanted.protocol {
        UpstreamProtocol::Amqp => Protocol::Amqp,
        UpstreamProtocol::AmqpWs => Protocol::AmqpWs,
        UpstreamProtocol::Mqtt => Protocol::Mqtt,
        UpstreamProtocol::MqttWs => Protocol::MqttWs,
    };
    section.proxy = wanted
        .proxy
        .clone()
        .filter(|proxy| Some(proxy) != environment_proxy().as_ref());
    section.ca.clone_from(&wanted.ca);
    section.amqp_port = wanted.amqp_port;
    section.mqtt_port = wanted.mqtt_port;
    section.https_port = wanted.https_port;
    section.probe_after = Span(wanted.probe_after);
    section.timeout = Span(wanted.timeout);
    section.retries = wanted.retries;
}

fn certificates(settings: &Settings, config: &mut Config) {
    let section = &mut config.certificates;
    section.trust_bundle.clone_from(&settings.trust_bundle);
    section
        .manifest_trust_bundle
        .clone_from(&settings.manifest_trust_bundle);
    if let Some(KeySource::File(path)) = &settings.encryption_key {
        section.encryption_key_file = Some(path.clone());
    }
    match &settings.edge_ca {
        EdgeCa::Files(files) => (section.edge_ca, section.edge_ca_key) = pair(files),
        EdgeCa::SelfSigned {
            common_name,
            life,
            renew_at_percent,
            retry_percent,
            rotate_key,
        }
        | EdgeCa::LocalCa {
            common_name,
            life,
            renew_at_percent,
            retry_percent,
            rotate_key,
            ..
        } => {
            section.common_name.clone_from(common_name);
            section.life = Span(*life);
            section.renew_at_percent = *renew_at_percent;
            section.retry_percent = *retry_percent;
            section.rotate_key = *rotate_key;
        }
    }
    if let EdgeCa::LocalCa { authority, .. } = &settings.edge_ca {
        (section.local_ca, section.local_ca_key) = pair(authority);
    }
}

fn engine(settings: &Settings, config: &mut Config, notes: &mut Vec<String>) {
    let (section, wanted) = (&mut config.engine, &settings.engine);
    section.socket = format!("unix://{}", wanted.socket.display());
    section.network.clone_from(&wanted.network);
    section.ipv6 = wanted.network_options.get("EnableIPv6") == Some(&Value::Bool(true));
    let ranges = wanted
        .network_options
        .get("IPAM")
        .and_then(|ipam| ipam.get("Config"))
        .and_then(Value::as_array);
    let Some(first) = ranges.and_then(|ranges| ranges.first()) else {
        return;
    };
    let text = |key: &str| first.get(key).and_then(Value::as_str).map(str::to_owned);
    section.subnet = text("Subnet");
    section.gateway = text("Gateway");
    section.ip_range = text("IPRange");
    if ranges.is_some_and(|ranges| ranges.len() > 1) {
        notes.push(format!(
            "moby_runtime.network.ipam.config: only the first range is taken over; make the network {} yourself for more",
            wanted.network
        ));
    }
}

fn agent(settings: &Settings, config: &mut Config, notes: &mut Vec<String>) {
    let (section, wanted) = (&mut config.agent, &settings.agent);
    let mut env: BTreeMap<String, String> = wanted.env.clone();
    if let Some((address, user, password)) = &wanted.registry {
        for (name, value) in [
            ("serverAddress", address),
            ("username", user),
            ("password", password),
        ] {
            env.insert(format!("DockerRegistryAuth__0__{name}"), value.clone());
        }
    }
    section.env = env;
    section.elevated_modules = settings.elevated_modules;
    section.rollback = settings.rollback.enabled;
    section.rollback_after = Span(settings.rollback.after);
    section.prefer_cached_identities = settings.prefer_cached_identities;
    section.watchdog_retries = settings.watchdog_retries;
    if !wanted.image.is_empty() {
        notes.push(format!(
            "agent.config.image ({}) is not taken over: the agent is part of this daemon",
            wanted.image
        ));
    }
}

fn hub(settings: &Settings, config: &mut Config) {
    let (section, wanted) = (&mut config.hub, &settings.listen);
    section.listen.clone_from(&wanted.addresses);
    section.names.clone_from(&wanted.names);
    for (port, on, number) in [
        (wanted.mqtt, &mut section.mqtt, &mut section.mqtt_port),
        (wanted.amqp, &mut section.amqp, &mut section.amqp_port),
        (wanted.https, &mut section.https, &mut section.https_port),
    ] {
        *on = port.is_some();
        *number = port.unwrap_or(*number);
    }
    section.metrics = wanted.metrics.is_some();
    section.metrics_listen = wanted.metrics.unwrap_or(section.metrics_listen);
}
