//! The daemon's own configuration file. The comments of the fields are the text of `docs/reference/edge-config.md`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use holdfast_model::credential::SymmetricKey;
use holdfast_program::failure::Failure;
use holdfast_program::logging::LogSection;
use holdfast_program::units::{Size, Span};
use holdfast_wire::connection_string::{ConnectionString, Credential as StringCredential, Party};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{Ipam, environment_proxy, network_options, socket_path, time_of_day};
use super::{
    Agent, CertificateFiles, Credential, EdgeCa, Engine, HierarchyAuth, ImageGarbageCollection, KeySource,
    Listen, Provisioning, Reprovisioning, Rollback, Settings, Sockets, Store, TpmSettings, Upstream,
    UpstreamProtocol, bad, describe, machine_name, missing, tpm_address,
};

/// A file of ours.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// This device.
    pub device: DeviceSection,
    /// How the device learns its hub and proves who it is: a connection string, or a device provisioning service.
    pub provisioning: ProvisioningSection,
    /// The TPM 2.0 of this machine, for `provisioning.tpm`.
    pub tpm: TpmSection,
    /// The way to the hub, or to the edge device above this one.
    pub upstream: UpstreamSection,
    /// The authority that signs certificates of this device, and what clients are to trust.
    pub certificates: CertificatesSection,
    /// The container engine: Docker, Moby, or Podman with its compatible socket.
    pub engine: EngineSection,
    /// The agent, which runs deployments.
    pub agent: AgentSection,
    /// The edge hub, to which modules and downstream devices connect.
    pub hub: HubSection,
    /// Local APIs on unix sockets.
    pub api: ApiSection,
    /// Removal of images that no module uses any more.
    pub images: ImagesSection,
    /// What the process says about itself on standard error.
    pub observe: LogSection,
}

/// This device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DeviceSection {
    /// Name by which modules and downstream devices reach this device, and which its certificates carry. The name of the
    /// machine by default.
    pub hostname: Option<String>,
    /// Host name of the edge device above this one, when this one has no way to the hub of its own.
    pub parent_hostname: Option<String>,
    /// Folder of everything that the daemon keeps: keys, identities, deployments, messages.
    pub home: PathBuf,
    /// TOML file with key/value pairs that are added to system and product information.
    pub additional_info: Option<PathBuf>,
}

/// Default of `device.home`.
pub const DEFAULT_HOME: &str = "/var/lib/holdfast-edge";

impl Default for DeviceSection {
    fn default() -> Self {
        DeviceSection {
            hostname: None,
            parent_hostname: None,
            home: DEFAULT_HOME.into(),
            additional_info: None,
        }
    }
}

/// Where the device belongs.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProvisioningSection {
    /// Connection string of the device, as `holdfast edge create` prints it. Instead of all other keys of this section.
    pub connection_string: Option<String>,
    /// File that holds the connection string and nothing else.
    pub connection_string_file: Option<PathBuf>,
    /// Host name of the hub, when the device is told its hub but has no connection string (certificates).
    pub hub: Option<String>,
    /// Device id, together with `hub`.
    pub device_id: Option<String>,
    /// Address of a device provisioning service, `https://host[:port]`. A hub of ours is its own.
    pub endpoint: Option<String>,
    /// Id scope, together with `endpoint`.
    pub id_scope: Option<String>,
    /// Registration id, together with `endpoint`; from the certificate's common name or the TPM's endorsement key when
    /// absent.
    pub registration_id: Option<String>,
    /// Symmetric key, base64: of the device, or of the enrollment (for a group: the device's derived key).
    pub key: Option<String>,
    /// File that holds the symmetric key, as base64 or as bytes.
    pub key_file: Option<PathBuf>,
    /// Certificate chain of the device (PEM, leaf first).
    pub certificate: Option<PathBuf>,
    /// Private key of the device's certificate (PEM).
    pub private_key: Option<PathBuf>,
    /// The device is attested by its TPM, in which the provisioning service puts the device's key. `holdfast-edge tpm` prints
    /// what the service must know.
    pub tpm: bool,
    /// JSON file that is sent to the provisioning service, for its custom allocation.
    pub payload: Option<PathBuf>,
    /// When the device asks the service again: whenever it is refused or told to and the service answers differently at a
    /// start (`dynamic`), at every start (`always-on-startup`), or only when refused or told to (`on-error-only`).
    pub mode: Mode,
}

impl std::fmt::Debug for ProvisioningSection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProvisioningSection")
            .field("hub", &self.hub)
            .field("device_id", &self.device_id)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// When the device asks for its hub again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// When refused or told to, and at a start if the service answers.
    #[default]
    Dynamic,
    /// At every start.
    AlwaysOnStartup,
    /// Only when refused or told to.
    OnErrorOnly,
}

/// Protocol towards the hub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// AMQP: one connection for all clients.
    #[default]
    Amqp,
    /// AMQP over WebSockets.
    AmqpWs,
    /// MQTT: a connection per client.
    Mqtt,
    /// MQTT over WebSockets.
    MqttWs,
}

/// The TPM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TpmSection {
    /// Where it is: `device:/dev/tpmrm0` or another device node, or a software TPM at `swtpm:path=/run/swtpm.sock` or
    /// `swtpm:host=localhost,port=2321`.
    pub tcti: String,
    /// File that holds the authorization value of the owner hierarchy, if one is set.
    pub owner_auth_file: Option<PathBuf>,
    /// File that holds the authorization value of the endorsement hierarchy, if one is set.
    pub endorsement_auth_file: Option<PathBuf>,
}

impl Default for TpmSection {
    fn default() -> Self {
        TpmSection {
            tcti: holdfast_tpm::Address::default().to_string(),
            owner_auth_file: None,
            endorsement_auth_file: None,
        }
    }
}

impl TpmSection {
    fn read(&self, name: &str) -> Result<TpmSettings, Failure> {
        let auth = |file: &Option<PathBuf>| file.clone().map_or(HierarchyAuth::Empty, HierarchyAuth::File);
        Ok(TpmSettings {
            address: tpm_address(name, &self.tcti)?,
            owner_auth: auth(&self.owner_auth_file),
            endorsement_auth: auth(&self.endorsement_auth_file),
        })
    }
}

/// The way up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpstreamSection {
    /// Protocol towards the hub.
    pub protocol: Protocol,
    /// HTTP proxy, `http://[user:password@]host:port`; used for WebSockets and HTTPS. From `https_proxy` of the
    /// environment when absent.
    pub proxy: Option<String>,
    /// Authorities of the hub and of the provisioning service (PEM), instead of those of the system.
    pub ca: Option<PathBuf>,
    /// Port of AMQP over TLS at the hub.
    pub amqp_port: u16,
    /// Port of MQTT over TLS at the hub.
    pub mqtt_port: u16,
    /// Port of HTTPS and WebSockets at the hub.
    pub https_port: u16,
    /// A connection on which nothing came for this long is asked by TCP (keep-alive) whether the other end is still there, and
    /// given up 9 seconds later when nothing answers. The question and its answer take about 100 bytes of the link; a longer
    /// time saves them where bytes cost money.
    pub probe_after: Span,
    /// How long a request to the hub's registry or to the provisioning service may take.
    pub timeout: Span,
    /// How often a request to the hub's registry or to the provisioning service is repeated.
    pub retries: u32,
}

impl Default for UpstreamSection {
    fn default() -> Self {
        UpstreamSection {
            protocol: Protocol::Amqp,
            proxy: None,
            ca: None,
            amqp_port: 5671,
            mqtt_port: 8883,
            https_port: 443,
            probe_after: Span::seconds(10),
            timeout: Span::seconds(10),
            retries: 1,
        }
    }
}

/// Certificates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CertificatesSection {
    /// Certificate of an edge CA of your own (PEM). Without one the device makes its own, which downstream devices must be
    /// told to trust (`home`/identity/ca.pem).
    pub edge_ca: Option<PathBuf>,
    /// Its private key (PEM).
    pub edge_ca_key: Option<PathBuf>,
    /// Certificate of an authority of the site that signs the edge CA which the device makes (PEM).
    pub local_ca: Option<PathBuf>,
    /// Its private key (PEM).
    pub local_ca_key: Option<PathBuf>,
    /// Common name of an edge CA made here; `aziot-edge CA <device id>` when absent.
    pub common_name: Option<String>,
    /// Life of an edge CA made here.
    pub life: Span,
    /// An edge CA made here is renewed after this share of its life, in per cent.
    pub renew_at_percent: u8,
    /// A failed renewal is tried again after this share of its life, in per cent.
    pub retry_percent: u8,
    /// A renewed edge CA gets a new key.
    pub rotate_key: bool,
    /// Authorities that modules and downstream devices are to trust besides the edge CA (PEM).
    pub trust_bundle: Option<PathBuf>,
    /// Authorities of signed manifests (PEM); handed out to modules that ask, not used here.
    pub manifest_trust_bundle: Option<PathBuf>,
    /// File with the key behind the workload API's `encrypt` and `decrypt` (base64 or bytes), instead of one made here.
    pub encryption_key_file: Option<PathBuf>,
}

impl Default for CertificatesSection {
    fn default() -> Self {
        CertificatesSection {
            edge_ca: None,
            edge_ca_key: None,
            local_ca: None,
            local_ca_key: None,
            common_name: None,
            life: Span::seconds(90 * 86_400),
            renew_at_percent: 80,
            retry_percent: 4,
            rotate_key: true,
            trust_bundle: None,
            manifest_trust_bundle: None,
            encryption_key_file: None,
        }
    }
}

/// The engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EngineSection {
    /// Socket of the engine's API.
    pub socket: String,
    /// Network that modules share; made when missing.
    pub network: String,
    /// The network has IPv6.
    pub ipv6: bool,
    /// Subnet of the network, such as `172.20.0.0/16`; chosen by the engine when absent.
    pub subnet: Option<String>,
    /// Address of this machine in the network.
    pub gateway: Option<String>,
    /// Range of addresses of modules.
    pub ip_range: Option<String>,
}

impl Default for EngineSection {
    fn default() -> Self {
        EngineSection {
            socket: "unix:///var/run/docker.sock".to_owned(),
            network: "azure-iot-edge".to_owned(),
            ipv6: false,
            subnet: None,
            gateway: None,
            ip_range: None,
        }
    }
}

/// The agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AgentSection {
    /// Variables as the original's agent knows them (`MaxRestartCount`, `ConfigRefreshFrequencySecs`, `RuntimeLogLevel`,
    /// `DockerRegistryAuth__0__serverAddress` and so on), and what modules get of them.
    pub env: BTreeMap<String, String>,
    /// Modules may be privileged and may ask for capabilities.
    pub elevated_modules: bool,
    /// A deployment whose modules do not become healthy is taken back to the last good one.
    pub rollback: bool,
    /// How long modules have to become healthy before that.
    pub rollback_after: Span,
    /// Identities of modules are taken from the disk first and from the hub only when they are not known.
    pub prefer_cached_identities: bool,
    /// Errors in a row after which the daemon ends, so that its supervisor starts it again. Without it: never.
    pub watchdog_retries: Option<u32>,
}

impl Default for AgentSection {
    fn default() -> Self {
        AgentSection {
            env: BTreeMap::new(),
            elevated_modules: true,
            rollback: true,
            rollback_after: Span::seconds(300),
            prefer_cached_identities: false,
            watchdog_retries: None,
        }
    }
}

/// The edge hub.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HubSection {
    /// Addresses to listen on; all of them when empty. Modules come by the module network.
    pub listen: Vec<IpAddr>,
    /// MQTT over TLS is served.
    pub mqtt: bool,
    /// Its port; 0 takes any free one.
    pub mqtt_port: u16,
    /// AMQP over TLS is served.
    pub amqp: bool,
    /// Its port.
    pub amqp_port: u16,
    /// HTTPS and WebSockets are served.
    pub https: bool,
    /// Their port.
    pub https_port: u16,
    /// Metrics of agent and edge hub are served, plain HTTP.
    pub metrics: bool,
    /// Address of the metrics.
    pub metrics_listen: SocketAddr,
    /// Names besides the host name that the server certificate carries.
    pub names: Vec<String>,
    /// Most bytes of messages that wait on the disk; `storeLimits` of a deployment goes before it.
    pub store: Size,
    /// What becomes of a message for which there is no room.
    pub when_full: Full,
    /// Most bytes of messages a second towards the hub, so that a drain leaves room on a thin line. No bound when absent.
    pub upstream_bytes_per_second: Option<Size>,
}

/// What becomes of a message for which there is no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Full {
    /// It is not acknowledged; its sender keeps it and sends it again.
    #[default]
    RefuseNew,
    /// The oldest of the least important ones are dropped for it.
    DropOldest,
}

impl HubSection {
    pub(super) fn store(&self) -> Store {
        Store {
            bytes_max: self.store.0,
            drop_oldest: self.when_full == Full::DropOldest,
            upstream_bytes_per_second: self.upstream_bytes_per_second.map(|size| size.0),
        }
    }
}

impl Default for HubSection {
    fn default() -> Self {
        HubSection {
            listen: Vec::new(),
            mqtt: true,
            mqtt_port: 8883,
            amqp: true,
            amqp_port: 5671,
            https: true,
            https_port: 443,
            metrics: true,
            metrics_listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 9600)),
            names: Vec::new(),
            store: Size(1 << 30),
            when_full: Full::default(),
            upstream_bytes_per_second: None,
        }
    }
}

/// Local APIs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApiSection {
    /// Socket of the workload API on this machine. Each module has one of its own besides.
    pub workload: String,
    /// Socket of the management API, for this program's commands and for `iotedge`.
    pub management: String,
    /// Where a module finds its workload socket, inside its container.
    pub module_workload: String,
    /// Requests of one user that are served at once on a workload socket; a connection above it is closed unanswered.
    pub workload_requests_max: usize,
    /// Requests of one user that are served at once on the management socket.
    pub management_requests_max: usize,
}

impl Default for ApiSection {
    fn default() -> Self {
        ApiSection {
            workload: "unix:///run/holdfast-edge/workload.sock".to_owned(),
            management: "unix:///run/holdfast-edge/mgmt.sock".to_owned(),
            module_workload: "unix:///var/run/iotedge/workload.sock".to_owned(),
            workload_requests_max: 10,
            management_requests_max: 50,
        }
    }
}

/// Removal of images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImagesSection {
    /// Images that this device pulled and that no module uses are removed.
    pub remove_unused: bool,
    /// How often.
    pub every: Span,
    /// How long an image must not have been used.
    pub unused_for: Span,
    /// Time of day of the first removal, `HH:MM`, UTC.
    pub at: String,
}

impl Default for ImagesSection {
    fn default() -> Self {
        ImagesSection {
            remove_unused: true,
            every: Span::seconds(86_400),
            unused_for: Span::seconds(7 * 86_400),
            at: "00:00".to_owned(),
        }
    }
}

/// Reads a file of ours.
pub(super) fn read(text: &str, name: &str, folder: &Path) -> Result<Settings, Failure> {
    let mut config: Config = toml::from_str(text).map_err(|error| describe(text, name, &error))?;
    if let Some(path) = &mut config.provisioning.connection_string_file {
        *path = folder.join(&*path);
    }
    config.settings(name)
}

impl Config {
    /// What the daemon does with it.
    ///
    /// # Errors
    /// Naming key, value and remedy.
    pub fn settings(&self, name: &str) -> Result<Settings, Failure> {
        let (device, agent, hub, api) = (&self.device, &self.agent, &self.hub, &self.api);
        Ok(Settings {
            source: name.to_owned(),
            home: device.home.clone(),
            hostname: device.hostname.clone().unwrap_or_else(machine_name),
            parent_hostname: device.parent_hostname.clone(),
            provisioning: self.provisioning.read(name)?,
            reprovisioning: match self.provisioning.mode {
                Mode::Dynamic => Reprovisioning::Dynamic,
                Mode::AlwaysOnStartup => Reprovisioning::AlwaysOnStartup,
                Mode::OnErrorOnly => Reprovisioning::OnErrorOnly,
            },
            tpm: self.tpm.read(name)?,
            trust_bundle: self.certificates.trust_bundle.clone(),
            manifest_trust_bundle: self.certificates.manifest_trust_bundle.clone(),
            encryption_key: self.certificates.encryption_key_file.clone().map(KeySource::File),
            edge_ca: self.certificates.edge_ca(name)?,
            engine: self.engine.read(name)?,
            agent: Agent {
                env: agent.env.clone(),
                image: String::new(),
                registry: None,
            },
            sockets: Sockets {
                workload: socket_path(name, "api.workload", &api.workload)?,
                management: socket_path(name, "api.management", &api.management)?,
                module_workload: socket_path(name, "api.module_workload", &api.module_workload)?,
                workload_requests_max: api.workload_requests_max.max(1),
                management_requests_max: api.management_requests_max.max(1),
            },
            listen: Listen {
                addresses: hub.listen.clone(),
                mqtt: hub.mqtt.then_some(hub.mqtt_port),
                amqp: hub.amqp.then_some(hub.amqp_port),
                https: hub.https.then_some(hub.https_port),
                metrics: hub.metrics.then_some(hub.metrics_listen),
                names: hub.names.clone(),
            },
            store: hub.store(),
            upstream: self.upstream.read(),
            images: self.images.read(name)?,
            rollback: Rollback {
                enabled: agent.rollback,
                after: agent.rollback_after.0,
            },
            elevated_modules: agent.elevated_modules,
            prefer_cached_identities: agent.prefer_cached_identities,
            watchdog_retries: agent.watchdog_retries,
            additional_info: device.additional_info.clone(),
            observe: self.observe.clone(),
        })
    }
}

impl ProvisioningSection {
    fn read(&self, name: &str) -> Result<Provisioning, Failure> {
        let text = match (&self.connection_string, &self.connection_string_file) {
            (Some(_), Some(_)) => {
                return Err(bad(
                    name,
                    "provisioning.connection_string_file",
                    &"…",
                    "connection_string stands there, too",
                    "keep one of the two",
                ));
            }
            (Some(text), None) => Some(text.clone()),
            (None, Some(path)) => Some(std::fs::read_to_string(path).map_err(|error| {
                bad(
                    name,
                    "provisioning.connection_string_file",
                    &path.display(),
                    &error.to_string(),
                    "put the connection string of the device there, readable by this user",
                )
            })?),
            (None, None) => None,
        };
        if let Some(text) = text {
            let others = [
                &self.hub,
                &self.device_id,
                &self.endpoint,
                &self.id_scope,
                &self.key,
            ];
            if self.tpm || others.iter().any(|other| other.is_some()) {
                return Err(bad(
                    name,
                    "provisioning.connection_string",
                    &"…",
                    "other keys of the section say the same",
                    "keep either the connection string or the other keys",
                ));
            }
            return from_connection_string(&text, self.files(), name, "provisioning.connection_string");
        }
        let credential = self.credential(name)?;
        match (&self.hub, &self.device_id, &self.endpoint, &self.id_scope) {
            (Some(_), ..) if credential == Credential::Tpm => Err(bad(
                name,
                "provisioning.tpm",
                &true,
                "a TPM gets the device's key from a provisioning service, and the configuration names a hub",
                "set endpoint and id_scope in place of hub and device_id",
            )),
            (Some(hub), Some(device_id), None, None) => Ok(Provisioning::Manual {
                hub: hub.clone(),
                device_id: device_id.clone(),
                credential,
            }),
            (None, None, Some(endpoint), Some(id_scope)) => {
                if self.registration_id.is_none() && matches!(credential, Credential::Key(_)) {
                    return Err(missing(
                        name,
                        "provisioning.registration_id",
                        "a symmetric key does not tell whose it is; name the registration",
                    ));
                }
                Ok(Provisioning::Dps {
                    endpoint: endpoint.trim_end_matches('/').to_owned(),
                    id_scope: id_scope.clone(),
                    payload: self.payload.clone(),
                    registration_id: self.registration_id.clone(),
                    credential,
                })
            }
            _ => Err(missing(
                name,
                "provisioning",
                "set connection_string, or hub and device_id, or endpoint and id_scope",
            )),
        }
    }

    fn files(&self) -> Option<CertificateFiles> {
        Some(CertificateFiles {
            certificate: self.certificate.clone()?,
            private_key: self.private_key.clone()?,
        })
    }

    fn credential(&self, name: &str) -> Result<Credential, Failure> {
        match (&self.key, &self.key_file, self.files()) {
            (None, None, None) if self.tpm => Ok(Credential::Tpm),
            (Some(text), None, None) if !self.tpm => {
                let key = SymmetricKey::parse(text)
                    .map_err(|error| bad(name, "provisioning.key", &"…", &error.to_string(), KEY_REMEDY))?;
                Ok(Credential::Key(KeySource::Value(key)))
            }
            (None, Some(path), None) if !self.tpm => Ok(Credential::Key(KeySource::File(path.clone()))),
            (None, None, Some(files)) if !self.tpm => Ok(Credential::Certificate(files)),
            (None, None, None) => Err(missing(
                name,
                "provisioning: the device's credential",
                "set connection_string, or key, key_file, or certificate and private_key, or tpm",
            )),
            _ => Err(bad(
                name,
                "provisioning",
                &"key, key_file, certificate, tpm",
                "say the same twice",
                "keep one of them",
            )),
        }
    }
}

pub(super) const KEY_REMEDY: &str = "give 16 to 64 bytes in base64, as the hub shows the key";

/// Reads a device's connection string; `files` are for one that says `x509=true`.
pub(super) fn from_connection_string(
    text: &str,
    files: Option<CertificateFiles>,
    name: &str,
    key: &str,
) -> Result<Provisioning, Failure> {
    let remedy =
        "give HostName=…;DeviceId=…;SharedAccessKey=… of an edge device, as `holdfast edge create` prints it";
    let string = ConnectionString::parse(text.trim())
        .map_err(|error| bad(name, key, &"…", &error.to_string(), remedy))?;
    let Party::Device { device_id } = string.party else {
        return Err(bad(name, key, &"…", "is not that of a device", remedy));
    };
    let credential = match (string.credential, files) {
        (StringCredential::IdentityKey(own), _) => Credential::Key(KeySource::Value(own)),
        (StringCredential::X509, Some(files)) => Credential::Certificate(files),
        (StringCredential::X509, None) => {
            return Err(missing(
                name,
                "provisioning.certificate and provisioning.private_key",
                "the connection string says x509=true",
            ));
        }
        _ => return Err(bad(name, key, &"…", "holds no key of the device", remedy)),
    };
    Ok(Provisioning::Manual {
        hub: string.host,
        device_id,
        credential,
    })
}

impl CertificatesSection {
    fn edge_ca(&self, name: &str) -> Result<EdgeCa, Failure> {
        let own = pair(name, "certificates.edge_ca", &self.edge_ca, &self.edge_ca_key)?;
        let local = pair(name, "certificates.local_ca", &self.local_ca, &self.local_ca_key)?;
        let life = self.life.0;
        let (renew_at_percent, retry_percent) = (self.renew_at_percent, self.retry_percent);
        match (own, local) {
            (Some(_), Some(_)) => Err(bad(
                name,
                "certificates.local_ca",
                &"…",
                "an edge CA of your own is not signed here",
                "keep edge_ca or local_ca",
            )),
            (Some(files), None) => Ok(EdgeCa::Files(files)),
            (None, Some(authority)) => Ok(EdgeCa::LocalCa {
                authority,
                common_name: self.common_name.clone(),
                life,
                renew_at_percent,
                retry_percent,
                rotate_key: self.rotate_key,
            }),
            (None, None) => Ok(EdgeCa::SelfSigned {
                common_name: self.common_name.clone(),
                life,
                renew_at_percent,
                retry_percent,
                rotate_key: self.rotate_key,
            }),
        }
    }
}

fn pair(
    name: &str,
    key: &str,
    certificate: &Option<PathBuf>,
    private_key: &Option<PathBuf>,
) -> Result<Option<CertificateFiles>, Failure> {
    match (certificate, private_key) {
        (Some(certificate), Some(private_key)) => Ok(Some(CertificateFiles {
            certificate: certificate.clone(),
            private_key: private_key.clone(),
        })),
        (None, None) => Ok(None),
        _ => Err(missing(
            name,
            &format!("{key} or {key}_key"),
            "certificate and private key go together",
        )),
    }
}

impl EngineSection {
    fn read(&self, name: &str) -> Result<Engine, Failure> {
        Ok(Engine {
            socket: socket_path(name, "engine.socket", &self.socket)?,
            network: self.network.clone(),
            network_options: network_options(
                self.ipv6,
                &[Ipam {
                    subnet: self.subnet.clone(),
                    gateway: self.gateway.clone(),
                    ip_range: self.ip_range.clone(),
                }],
            ),
        })
    }
}

impl UpstreamSection {
    fn read(&self) -> Upstream {
        Upstream {
            protocol: match self.protocol {
                Protocol::Amqp => UpstreamProtocol::Amqp,
                Protocol::AmqpWs => UpstreamProtocol::AmqpWs,
                Protocol::Mqtt => UpstreamProtocol::Mqtt,
                Protocol::MqttWs => UpstreamProtocol::MqttWs,
            },
            proxy: self.proxy.clone().or_else(environment_proxy),
            mqtt_port: self.mqtt_port,
            amqp_port: self.amqp_port,
            https_port: self.https_port,
            ca: self.ca.clone(),
            probe_after: self.probe_after.0,
            timeout: self.timeout.0,
            retries: self.retries,
        }
    }
}

impl ImagesSection {
    fn read(&self, name: &str) -> Result<ImageGarbageCollection, Failure> {
        Ok(ImageGarbageCollection {
            enabled: self.remove_unused,
            every: self.every.0,
            age: self.unused_for.0,
            at_minutes: time_of_day(&self.at).ok_or_else(|| {
                bad(
                    name,
                    "images.at",
                    &self.at,
                    "is not a time of day",
                    "write HH:MM, such as \"00:00\"",
                )
            })?,
        })
    }
}
