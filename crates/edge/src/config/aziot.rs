//! The `config.toml` of the original runtime (edge.md section 16).

mod known;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_model::credential::SymmetricKey;
use holdfast_program::failure::Failure;
use holdfast_program::logging::LogSection;
use holdfast_program::units::Span;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::own::{self, DEFAULT_HOME, KEY_REMEDY, from_connection_string};
use super::values::{Ipam, environment_proxy, network_options, socket_path, time_of_day};
use super::{
    Agent, CertificateFiles, Credential, EdgeCa, Engine, HierarchyAuth, ImageGarbageCollection, KeySource,
    Listen, Loaded, Provisioning, Reprovisioning, Rollback, Settings, Sockets, TpmSettings, Upstream,
    UpstreamProtocol, bad, describe, machine_name, missing, tpm_address,
};

const DAY: u64 = 86_400;
/// Sockets of the original, which its tools and modules expect.
const RUN_FOLDER: &str = "/var/run/iotedge";

#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    hostname: Option<String>,
    parent_hostname: Option<String>,
    trust_bundle_cert: Option<String>,
    manifest_trust_bundle_cert: Option<String>,
    allow_elevated_docker_permissions: Option<bool>,
    auto_reprovisioning_mode: Option<String>,
    imported_master_encryption_key: Option<PathBuf>,
    additional_info: Option<String>,
    iotedge_max_requests: MaxRequests,
    cloud_timeout_sec: Option<u64>,
    cloud_retries: Option<u32>,
    prefer_module_identity_cache: bool,
    provisioning: ProvisioningSection,
    tpm: TpmSection,
    cert_issuance: CertIssuance,
    agent: AgentSection,
    connect: Uris,
    listen: Uris,
    watchdog: Watchdog,
    edge_ca: EdgeCaSection,
    image_garbage_collection: Images,
    moby_runtime: Moby,
    holdfast: Own,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct MaxRequests {
    management: Option<usize>,
    workload: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ProvisioningSection {
    source: String,
    connection_string: Option<String>,
    iothub_hostname: Option<String>,
    device_id: Option<String>,
    authentication: Option<Proof>,
    global_endpoint: Option<String>,
    id_scope: Option<String>,
    payload: Option<Uri>,
    attestation: Option<Proof>,
}

/// `[provisioning.authentication]` and `[provisioning.attestation]`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Proof {
    method: String,
    device_id_pk: Option<Key>,
    symmetric_key: Option<Key>,
    registration_id: Option<String>,
    identity_pk: Option<String>,
    identity_cert: Option<toml::Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Key {
    value: Option<String>,
    uri: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Uri {
    uri: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TpmSection {
    tcti: String,
    hierarchy_authorization: HierarchyAuthorization,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HierarchyAuthorization {
    owner: String,
    endorsement: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct CertIssuance {
    local_ca: Option<Pair>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Pair {
    cert: Option<String>,
    pk: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AgentSection {
    config: AgentConfig,
    env: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AgentConfig {
    image: Option<String>,
    auth: Option<Auth>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    serveraddress: String,
    username: String,
    password: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Uris {
    workload_uri: Option<String>,
    management_uri: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Watchdog {
    max_retries: Option<toml::Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct EdgeCaSection {
    cert: Option<String>,
    pk: Option<String>,
    method: Option<String>,
    common_name: Option<String>,
    subject: Option<toml::Value>,
    expiry_days: Option<u64>,
    auto_generated_edge_ca_expiry_days: Option<u64>,
    auto_renew: Option<AutoRenew>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AutoRenew {
    rotate_key: Option<bool>,
    threshold: Option<String>,
    retry: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Images {
    enabled: Option<bool>,
    cleanup_recurrence: Option<String>,
    image_age_cleanup_threshold: Option<String>,
    cleanup_time: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Moby {
    uri: Option<String>,
    network: Option<Network>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Network {
    Name(String),
    Settings {
        name: String,
        #[serde(default)]
        ipv6: bool,
        #[serde(default)]
        ipam: IpamSection,
    },
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct IpamSection {
    config: Vec<Ipam>,
}

/// `[holdfast]`: what the original has no key for. Same names as in a file of ours.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Own {
    home: Option<PathBuf>,
    hub: own::HubSection,
    upstream: own::UpstreamSection,
    rollback: Option<bool>,
    rollback_after: Option<Span>,
    observe: LogSection,
}

/// Reads a file of the original.
pub(super) fn read(text: &str, table: &toml::Table, name: &str) -> Result<Loaded, Failure> {
    let file: File = toml::from_str(text).map_err(|error| describe(text, name, &error))?;
    let reader = Reader { name };
    let settings = reader.settings(&file)?;
    let warnings = known::judge(table)
        .into_iter()
        .map(|words| format!("{name}: {words}"))
        .collect();
    Ok(Loaded { settings, warnings })
}

struct Reader<'a> {
    name: &'a str,
}

impl Reader<'_> {
    fn settings(&self, file: &File) -> Result<Settings, Failure> {
        let own = &file.holdfast;
        let trust = |key, uri: &Option<String>| uri.as_deref().map(|uri| self.path(key, uri)).transpose();
        Ok(Settings {
            source: self.name.to_owned(),
            home: own.home.clone().unwrap_or_else(|| DEFAULT_HOME.into()),
            hostname: file.hostname.clone().unwrap_or_else(machine_name),
            parent_hostname: file.parent_hostname.clone(),
            provisioning: self.provisioning(&file.provisioning)?,
            reprovisioning: self.reprovisioning(file.auto_reprovisioning_mode.as_deref())?,
            tpm: self.tpm(&file.tpm)?,
            trust_bundle: trust("trust_bundle_cert", &file.trust_bundle_cert)?,
            manifest_trust_bundle: trust("manifest_trust_bundle_cert", &file.manifest_trust_bundle_cert)?,
            encryption_key: file.imported_master_encryption_key.clone().map(KeySource::File),
            edge_ca: self.edge_ca(&file.edge_ca, &file.cert_issuance)?,
            engine: self.engine(&file.moby_runtime)?,
            agent: agent(&file.agent),
            sockets: self.sockets(file)?,
            listen: self.listen(&own.hub, &file.agent.env)?,
            store: own.hub.store(),
            upstream: self.upstream(file)?,
            images: self.images(&file.image_garbage_collection)?,
            rollback: Rollback {
                enabled: own.rollback.unwrap_or(true),
                after: own.rollback_after.map_or(Duration::from_secs(300), |span| span.0),
            },
            elevated_modules: file.allow_elevated_docker_permissions.unwrap_or(true),
            prefer_cached_identities: file.prefer_module_identity_cache,
            watchdog_retries: self.watchdog(file.watchdog.max_retries.as_ref())?,
            additional_info: trust("additional_info", &file.additional_info)?,
            observe: own.observe.clone(),
        })
    }

    /// The path that a URI of the original names.
    fn path(&self, key: &str, uri: &str) -> Result<PathBuf, Failure> {
        if let Some(path) = uri.strip_prefix("file://") {
            return Ok(path.into());
        }
        if uri.starts_with('/') {
            return Ok(uri.into());
        }
        let why = if uri.starts_with("pkcs11:") {
            "keys in PKCS#11 tokens are not supported"
        } else {
            "is not the URI of a file"
        };
        // Not shown: it may be a pin or a key.
        Err(bad(self.name, key, &"…", why, "write file:///path"))
    }

    fn key(&self, place: &str, key: Option<&Key>) -> Result<KeySource, Failure> {
        match key {
            Some(Key {
                value: Some(text),
                uri: None,
            }) => SymmetricKey::parse(text)
                .map(KeySource::Value)
                .map_err(|error| bad(self.name, place, &"…", &error.to_string(), KEY_REMEDY)),
            Some(Key {
                value: None,
                uri: Some(uri),
            }) => self.path(place, uri).map(KeySource::File),
            _ => Err(missing(
                self.name,
                place,
                "write { value = \"base64\" } or { uri = \"file:///path\" }",
            )),
        }
    }

    fn certificate(&self, section: &str, proof: &Proof) -> Result<Credential, Failure> {
        let (certificate_key, private_key) = (
            format!("{section}.identity_cert"),
            format!("{section}.identity_pk"),
        );
        // Before what is missing: with an issued certificate the original needs no key.
        if proof.identity_cert.as_ref().is_some_and(|given| !given.is_str()) {
            return Err(bad(
                self.name,
                &certificate_key,
                &"a table",
                "device certificates are not issued here (EST, local CA)",
                "issue certificate and key by your own means and write their file URIs",
            ));
        }
        let certificate = proof.identity_cert.as_ref().and_then(toml::Value::as_str);
        let (Some(certificate), Some(pk)) = (certificate, &proof.identity_pk) else {
            return Err(missing(
                self.name,
                &format!("{certificate_key} or {private_key}"),
                "write file URIs of the certificate chain and of its key",
            ));
        };
        Ok(Credential::Certificate(CertificateFiles {
            certificate: self.path(&certificate_key, certificate)?,
            private_key: self.path(&private_key, pk)?,
        }))
    }

    fn provisioning(&self, section: &ProvisioningSection) -> Result<Provisioning, Failure> {
        match section.source.as_str() {
            "manual" => self.manual(section),
            "dps" => self.dps(section),
            other => Err(bad(
                self.name,
                "provisioning.source",
                &other,
                "is not a way to provision",
                "write \"manual\" or \"dps\"",
            )),
        }
    }

    fn manual(&self, section: &ProvisioningSection) -> Result<Provisioning, Failure> {
        if let Some(text) = &section.connection_string {
            return from_connection_string(text, None, self.name, "provisioning.connection_string");
        }
        let (Some(hub), Some(device_id)) = (&section.iothub_hostname, &section.device_id) else {
            return Err(missing(
                self.name,
                "provisioning.connection_string",
                "set it, or iothub_hostname, device_id and [provisioning.authentication]",
            ));
        };
        let place = "provisioning.authentication";
        let proof = section.authentication.as_ref().ok_or_else(|| {
            missing(
                self.name,
                place,
                "write method = \"sas\" with device_id_pk, or method = \"x509\"",
            )
        })?;
        let credential = match proof.method.as_str() {
            "sas" => {
                Credential::Key(self.key(&format!("{place}.device_id_pk"), proof.device_id_pk.as_ref())?)
            }
            "x509" => self.certificate(place, proof)?,
            other => {
                return Err(bad(
                    self.name,
                    &format!("{place}.method"),
                    &other,
                    "is not a way to authenticate",
                    "write \"sas\" or \"x509\"",
                ));
            }
        };
        Ok(Provisioning::Manual {
            hub: hub.clone(),
            device_id: device_id.clone(),
            credential,
        })
    }

    fn dps(&self, section: &ProvisioningSection) -> Result<Provisioning, Failure> {
        let place = "provisioning.attestation";
        let id_scope = section.id_scope.clone().ok_or_else(|| {
            missing(
                self.name,
                "provisioning.id_scope",
                "`holdfast dps show` prints it",
            )
        })?;
        let proof = section.attestation.as_ref().ok_or_else(|| {
            missing(
                self.name,
                place,
                "write method = \"symmetric_key\" with registration_id and symmetric_key, or method = \"x509\" or \"tpm\"",
            )
        })?;
        let credential = match proof.method.as_str() {
            "symmetric_key" => {
                if proof.registration_id.is_none() {
                    let key = format!("{place}.registration_id");
                    return Err(missing(
                        self.name,
                        &key,
                        "a symmetric key does not tell whose it is",
                    ));
                }
                Credential::Key(self.key(&format!("{place}.symmetric_key"), proof.symmetric_key.as_ref())?)
            }
            "x509" => self.certificate(place, proof)?,
            "tpm" => {
                if proof.registration_id.is_none() {
                    let key = format!("{place}.registration_id");
                    let remedy =
                        "`holdfast-edge tpm` prints the one that the SDKs make of an endorsement key";
                    return Err(missing(self.name, &key, remedy));
                }
                Credential::Tpm
            }
            other => {
                return Err(bad(
                    self.name,
                    &format!("{place}.method"),
                    &other,
                    "is not a way to attest",
                    "write \"symmetric_key\", \"x509\" or \"tpm\"",
                ));
            }
        };
        let endpoint = section
            .global_endpoint
            .as_deref()
            .unwrap_or("https://global.azure-devices-provisioning.net");
        let payload = section.payload.as_ref();
        Ok(Provisioning::Dps {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            id_scope,
            payload: payload
                .map(|uri| self.path("provisioning.payload", &uri.uri))
                .transpose()?,
            registration_id: proof.registration_id.clone(),
            credential,
        })
    }

    fn tpm(&self, section: &TpmSection) -> Result<TpmSettings, Failure> {
        let auth = |value: &String| match value.as_str() {
            "" => HierarchyAuth::Empty,
            value => HierarchyAuth::Value(Zeroizing::new(value.to_owned())),
        };
        Ok(TpmSettings {
            address: tpm_address(self.name, &section.tcti)?,
            owner_auth: auth(&section.hierarchy_authorization.owner),
            endorsement_auth: auth(&section.hierarchy_authorization.endorsement),
        })
    }

    fn reprovisioning(&self, mode: Option<&str>) -> Result<Reprovisioning, Failure> {
        match mode {
            None | Some("Dynamic") => Ok(Reprovisioning::Dynamic),
            Some("AlwaysOnStartup") => Ok(Reprovisioning::AlwaysOnStartup),
            Some("OnErrorOnly") => Ok(Reprovisioning::OnErrorOnly),
            Some(other) => Err(bad(
                self.name,
                "auto_reprovisioning_mode",
                &other,
                "is not a mode",
                "write \"Dynamic\", \"AlwaysOnStartup\" or \"OnErrorOnly\"",
            )),
        }
    }

    fn edge_ca(&self, section: &EdgeCaSection, issuance: &CertIssuance) -> Result<EdgeCa, Failure> {
        if section.cert.is_some() || section.pk.is_some() {
            let (Some(certificate), Some(pk)) = (&section.cert, &section.pk) else {
                return Err(missing(
                    self.name,
                    "edge_ca.cert or edge_ca.pk",
                    "certificate and key go together",
                ));
            };
            return Ok(EdgeCa::Files(CertificateFiles {
                certificate: self.path("edge_ca.cert", certificate)?,
                private_key: self.path("edge_ca.pk", pk)?,
            }));
        }
        let common_name = self.common_name(section)?;
        // As the original: 90 days for its quick start, 30 for a method that does not say.
        let default_days = if section.method.is_some() { 30 } else { 90 };
        let days = section
            .expiry_days
            .or(section.auto_generated_edge_ca_expiry_days)
            .unwrap_or(default_days);
        let life = Duration::from_secs(days.saturating_mul(DAY));
        let renew = section.auto_renew.as_ref();
        let renew_at_percent = self.percent(
            "threshold",
            renew.and_then(|renew| renew.threshold.as_deref()),
            80,
        )?;
        let retry_percent = self.percent("retry", renew.and_then(|renew| renew.retry.as_deref()), 4)?;
        let rotate_key = renew.and_then(|renew| renew.rotate_key).unwrap_or(true);
        match section.method.as_deref() {
            None | Some("self_signed") => Ok(EdgeCa::SelfSigned {
                common_name,
                life,
                renew_at_percent,
                retry_percent,
                rotate_key,
            }),
            Some("local_ca") => {
                let pair = issuance.local_ca.as_ref();
                let (Some(certificate), Some(pk)) = (
                    pair.and_then(|pair| pair.cert.as_ref()),
                    pair.and_then(|pair| pair.pk.as_ref()),
                ) else {
                    return Err(missing(
                        self.name,
                        "cert_issuance.local_ca",
                        "edge_ca.method = \"local_ca\" needs its cert and pk",
                    ));
                };
                Ok(EdgeCa::LocalCa {
                    authority: CertificateFiles {
                        certificate: self.path("cert_issuance.local_ca.cert", certificate)?,
                        private_key: self.path("cert_issuance.local_ca.pk", pk)?,
                    },
                    common_name,
                    life,
                    renew_at_percent,
                    retry_percent,
                    rotate_key,
                })
            }
            Some("est") => Err(bad(
                self.name,
                "edge_ca.method",
                &"est",
                "certificates are not fetched over EST yet",
                "use \"self_signed\" or \"local_ca\", or give cert and pk",
            )),
            Some(other) => Err(bad(
                self.name,
                "edge_ca.method",
                &other,
                "is not a way to get a certificate",
                "write \"self_signed\" or \"local_ca\", or give cert and pk",
            )),
        }
    }

    fn common_name(&self, section: &EdgeCaSection) -> Result<Option<String>, Failure> {
        let of_subject = section
            .subject
            .as_ref()
            .and_then(|subject| subject.get("CN"))
            .and_then(toml::Value::as_str);
        match (&section.common_name, of_subject) {
            (Some(_), Some(_)) => Err(bad(
                self.name,
                "edge_ca.subject",
                &"CN",
                "common_name says the same",
                "keep one of them",
            )),
            (Some(name), None) => Ok(Some(name.clone())),
            (None, name) => Ok(name.map(str::to_owned)),
        }
    }

    fn percent(&self, key: &str, text: Option<&str>, default: u8) -> Result<u8, Failure> {
        let Some(text) = text else { return Ok(default) };
        text.strip_suffix('%')
            .and_then(|digits| digits.trim().parse().ok())
            .ok_or_else(|| {
                bad(
                    self.name,
                    &format!("edge_ca.auto_renew.{key}"),
                    &text,
                    "is not a share of the certificate's life",
                    "write per cent such as \"80%\"",
                )
            })
    }

    fn engine(&self, moby: &Moby) -> Result<Engine, Failure> {
        let uri = moby.uri.as_deref().unwrap_or("unix:///var/run/docker.sock");
        let (network, network_options) = match &moby.network {
            None => ("azure-iot-edge".to_owned(), network_options(false, &[])),
            Some(Network::Name(name)) => (name.clone(), network_options(false, &[])),
            Some(Network::Settings { name, ipv6, ipam }) => {
                (name.clone(), network_options(*ipv6, &ipam.config))
            }
        };
        Ok(Engine {
            socket: socket_path(self.name, "moby_runtime.uri", uri)?,
            network,
            network_options,
        })
    }

    fn sockets(&self, file: &File) -> Result<Sockets, Failure> {
        let folder = Path::new(RUN_FOLDER);
        let listen = |key: &str, uri: &Option<String>, socket: &str| match uri.as_deref() {
            // Sockets handed over by systemd stand where the original's units put them.
            None => Ok(folder.join(socket)),
            Some(uri) if uri.starts_with("fd://") => Ok(folder.join(socket)),
            Some(uri) => socket_path(self.name, key, uri),
        };
        let connect = file.connect.workload_uri.as_deref();
        Ok(Sockets {
            workload: listen("listen.workload_uri", &file.listen.workload_uri, "workload.sock")?,
            management: listen("listen.management_uri", &file.listen.management_uri, "mgmt.sock")?,
            module_workload: match connect {
                None => folder.join("workload.sock"),
                Some(uri) => socket_path(self.name, "connect.workload_uri", uri)?,
            },
            workload_requests_max: file.iotedge_max_requests.workload.unwrap_or(10).max(1),
            management_requests_max: file.iotedge_max_requests.management.unwrap_or(50).max(1),
        })
    }

    fn listen(&self, hub: &own::HubSection, env: &BTreeMap<String, String>) -> Result<Listen, Failure> {
        let off = |name: &str| lookup(env, name).is_some_and(|value| value.eq_ignore_ascii_case("false"));
        let metrics = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 9600));
        let metrics = if hub.metrics_listen == metrics {
            metrics
        } else {
            hub.metrics_listen
        };
        Ok(Listen {
            addresses: hub.listen.clone(),
            mqtt: hub.mqtt.then_some(hub.mqtt_port),
            amqp: hub.amqp.then_some(hub.amqp_port),
            https: hub.https.then_some(hub.https_port),
            metrics: (hub.metrics && !off("MetricsEnabled")).then_some(metrics),
            names: hub.names.clone(),
        })
    }

    fn upstream(&self, file: &File) -> Result<Upstream, Failure> {
        let own = &file.holdfast.upstream;
        let env = &file.agent.env;
        let named = lookup(env, "UpstreamProtocol");
        let protocol = match named.map(str::to_ascii_lowercase).as_deref() {
            None => match own.protocol {
                own::Protocol::Amqp => UpstreamProtocol::Amqp,
                own::Protocol::AmqpWs => UpstreamProtocol::AmqpWs,
                own::Protocol::Mqtt => UpstreamProtocol::Mqtt,
                own::Protocol::MqttWs => UpstreamProtocol::MqttWs,
            },
            Some("amqp") => UpstreamProtocol::Amqp,
            Some("amqpws") => UpstreamProtocol::AmqpWs,
            Some("mqtt") => UpstreamProtocol::Mqtt,
            Some("mqttws") => UpstreamProtocol::MqttWs,
            Some(_) => {
                return Err(bad(
                    self.name,
                    "agent.env.UpstreamProtocol",
                    &named.unwrap_or_default(),
                    "is not a protocol towards the hub",
                    "write \"Amqp\", \"AmqpWs\", \"Mqtt\" or \"MqttWs\"",
                ));
            }
        };
        let proxy = own
            .proxy
            .clone()
            .or_else(|| lookup(env, "https_proxy").map(str::to_owned));
        Ok(Upstream {
            protocol,
            proxy: proxy.or_else(environment_proxy),
            mqtt_port: own.mqtt_port,
            amqp_port: own.amqp_port,
            https_port: own.https_port,
            ca: own.ca.clone(),
            probe_after: own.probe_after.0,
            timeout: Duration::from_secs(file.cloud_timeout_sec.unwrap_or(10)),
            retries: file.cloud_retries.unwrap_or(1),
        })
    }

    fn images(&self, section: &Images) -> Result<ImageGarbageCollection, Failure> {
        let span = |key: &str, text: &Option<String>, default: u64| match text.as_deref() {
            None => Ok(Duration::from_secs(default)),
            Some(text) => text.parse::<Span>().map(|span| span.0).map_err(|why| {
                bad(
                    self.name,
                    &format!("image_garbage_collection.{key}"),
                    &text,
                    &why,
                    "days, such as \"7d\"",
                )
            }),
        };
        let time = section.cleanup_time.as_deref().unwrap_or("00:00");
        Ok(ImageGarbageCollection {
            enabled: section.enabled.unwrap_or(true),
            every: span("cleanup_recurrence", &section.cleanup_recurrence, DAY)?,
            age: span(
                "image_age_cleanup_threshold",
                &section.image_age_cleanup_threshold,
                7 * DAY,
            )?,
            at_minutes: time_of_day(time).ok_or_else(|| {
                bad(
                    self.name,
                    "image_garbage_collection.cleanup_time",
                    &time,
                    "is not a time of day",
                    "write HH:MM, such as \"00:00\"",
                )
            })?,
        })
    }

    fn watchdog(&self, value: Option<&toml::Value>) -> Result<Option<u32>, Failure> {
        match value {
            None => Ok(None),
            Some(toml::Value::String(text)) if text == "infinite" => Ok(None),
            Some(toml::Value::Integer(number)) if u32::try_from(*number).is_ok() => {
                Ok(u32::try_from(*number).ok())
            }
            Some(other) => Err(bad(
                self.name,
                "watchdog.max_retries",
                other,
                "is neither a number nor \"infinite\"",
                "the default is \"infinite\"",
            )),
        }
    }
}

fn agent(section: &AgentSection) -> Agent {
    Agent {
        env: section.env.clone(),
        image: section.config.image.clone().unwrap_or_default(),
        registry: section.config.auth.as_ref().map(|auth| {
            (
                auth.serveraddress.clone(),
                auth.username.clone(),
                auth.password.clone(),
            )
        }),
    }
}

/// A variable of the agent; their names ignore case.
fn lookup<'a>(env: &'a BTreeMap<String, String>, name: &str) -> Option<&'a str> {
    env.iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}
