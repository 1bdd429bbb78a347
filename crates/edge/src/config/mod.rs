//! What the daemon is told: a file of ours, or the `config.toml` of an installation of the original runtime.
//!
//! Both are read into [`Settings`], which the rest of the program knows; nothing else knows where a value came from.
//! A key that nobody knows is refused in a file of ours, and named in a warning in a file of the original.

pub mod aziot;
mod check;
pub mod import;
pub mod own;
mod place;
pub mod reference;
mod values;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_model::credential::SymmetricKey;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use holdfast_program::failure::Failure;
use holdfast_program::logging::LogSection;
use holdfast_program::toml_error;

/// Files that are tried, in this order, when none is named.
pub const DEFAULT_FILES: [&str; 2] = ["/etc/holdfast/edge.toml", "/etc/aziot/config.toml"];

/// A symmetric key, or where it stands.
#[derive(Clone, PartialEq)]
pub enum KeySource {
    /// In the configuration itself. `Debug` does not show it.
    Value(SymmetricKey),
    /// In a file, as base64 or as the bytes themselves.
    File(PathBuf),
}

impl std::fmt::Debug for KeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            KeySource::Value(_) => f.write_str("Value(…)"),
            KeySource::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

/// A certificate chain and its key, both PEM.
#[derive(Clone, PartialEq, Debug)]
pub struct CertificateFiles {
    /// Leaf first.
    pub certificate: PathBuf,
    /// Unencrypted.
    pub private_key: PathBuf,
}

/// How the device proves who it is.
#[derive(Clone, PartialEq, Debug)]
pub enum Credential {
    /// With a symmetric key.
    Key(KeySource),
    /// With a certificate.
    Certificate(CertificateFiles),
    /// With the TPM of [`Settings::tpm`], in which a provisioning service puts the device's key.
    Tpm,
}

/// The TPM of the machine.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct TpmSettings {
    /// Where it is.
    pub address: holdfast_tpm::Address,
    /// Authorization value of its owner hierarchy.
    pub owner_auth: HierarchyAuth,
    /// Authorization value of its endorsement hierarchy.
    pub endorsement_auth: HierarchyAuth,
}

/// An authorization value of a TPM, or where it stands.
#[derive(Clone, Default, PartialEq)]
pub enum HierarchyAuth {
    /// There is none.
    #[default]
    Empty,
    /// In the configuration itself. `Debug` does not show it.
    Value(Zeroizing<String>),
    /// In a file; an end of line does not belong to it.
    File(PathBuf),
}

impl std::fmt::Debug for HierarchyAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HierarchyAuth::Empty => f.write_str("Empty"),
            HierarchyAuth::Value(_) => f.write_str("Value(…)"),
            HierarchyAuth::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

/// How the device learns which hub it belongs to.
#[derive(Clone, PartialEq, Debug)]
pub enum Provisioning {
    /// It is told.
    Manual {
        /// Host name of the hub.
        hub: String,
        /// Device id.
        device_id: String,
        /// Key or certificate.
        credential: Credential,
    },
    /// It asks a device provisioning service.
    Dps {
        /// `https://host[:port]`.
        endpoint: String,
        /// Id scope.
        id_scope: String,
        /// JSON file that is sent along.
        payload: Option<PathBuf>,
        /// Registration id; taken from the certificate's common name or the TPM's endorsement key when absent.
        registration_id: Option<String>,
        /// Key, certificate or TPM that attests it.
        credential: Credential,
    },
}

/// When the device asks for its hub again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Reprovisioning {
    /// When it is refused, or asked to, and whenever the service answers differently at a start.
    #[default]
    Dynamic,
    /// At every start, and as above.
    AlwaysOnStartup,
    /// Only when it is refused or asked to.
    OnErrorOnly,
}

/// Where the authority that signs certificates of this device comes from.
#[derive(Clone, PartialEq, Debug)]
pub enum EdgeCa {
    /// Made here, renewed here.
    SelfSigned {
        /// Common name; `aziot-edge CA <device id>` by default.
        common_name: Option<String>,
        /// Life of a certificate.
        life: Duration,
        /// Renewed after this share of its life, in per cent.
        renew_at_percent: u8,
        /// A renewal that failed is tried again after this share of its life, in per cent.
        retry_percent: u8,
        /// Renewed with a new key.
        rotate_key: bool,
    },
    /// Made here, signed by an authority in files.
    LocalCa {
        /// The authority.
        authority: CertificateFiles,
        /// As above.
        common_name: Option<String>,
        /// As above.
        life: Duration,
        /// As above.
        renew_at_percent: u8,
        /// As above.
        retry_percent: u8,
        /// As above.
        rotate_key: bool,
    },
    /// Given. Read again when the files change; never renewed here.
    Files(CertificateFiles),
}

/// The container engine.
#[derive(Clone, PartialEq, Debug)]
pub struct Engine {
    /// Socket of its API.
    pub socket: PathBuf,
    /// Name of the network that modules share.
    pub network: String,
    /// Body of the network-create call besides the name.
    pub network_options: Map<String, Value>,
}

/// What the agent is told.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Agent {
    /// Environment of the original's agent: log level, upstream protocol, proxies, restart limits and so on.
    pub env: BTreeMap<String, String>,
    /// Image name that is reported for the agent; nothing is pulled.
    pub image: String,
    /// Registry credentials that hold for every deployment: address, user, password.
    pub registry: Option<(String, String, String)>,
}

/// Sockets of the local APIs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sockets {
    /// Workload API on the host.
    pub workload: PathBuf,
    /// Management API.
    pub management: PathBuf,
    /// Where a module finds its workload socket, inside its container.
    pub module_workload: PathBuf,
    /// Requests of one user that are served at once on a workload socket; a connection above it is closed unanswered.
    pub workload_requests_max: usize,
    /// The same on the management socket.
    pub management_requests_max: usize,
}

/// Listeners of the edge hub.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listen {
    /// Addresses; empty for all of them.
    pub addresses: Vec<IpAddr>,
    /// MQTT over TLS; `None` turns it off.
    pub mqtt: Option<u16>,
    /// AMQP over TLS.
    pub amqp: Option<u16>,
    /// HTTPS and WebSockets.
    pub https: Option<u16>,
    /// Metrics of both system modules, plain HTTP.
    pub metrics: Option<SocketAddr>,
    /// Names besides the host name in the server certificate.
    pub names: Vec<String>,
}

/// What the edge hub may keep and send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Store {
    /// Most bytes of messages that wait.
    pub bytes_max: u64,
    /// What comes beyond takes the place of the oldest, instead of being refused.
    pub drop_oldest: bool,
    /// Most bytes a second towards the hub.
    pub upstream_bytes_per_second: Option<u64>,
}

/// Protocol towards the hub.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum UpstreamProtocol {
    /// AMQP over TLS, all clients on one connection.
    #[default]
    Amqp,
    /// AMQP over WebSockets.
    AmqpWs,
    /// MQTT over TLS, a connection per client.
    Mqtt,
    /// MQTT over WebSockets.
    MqttWs,
}

/// The way to the hub.
#[derive(Clone, PartialEq, Debug)]
pub struct Upstream {
    /// Protocol.
    pub protocol: UpstreamProtocol,
    /// `http://[user:password@]host:port` of a proxy, for WebSockets and HTTPS.
    pub proxy: Option<String>,
    /// Ports other than 8883, 5671 and 443.
    pub mqtt_port: u16,
    /// As above.
    pub amqp_port: u16,
    /// As above.
    pub https_port: u16,
    /// Authorities to trust for the hub and the provisioning service, instead of those of the system (PEM).
    pub ca: Option<PathBuf>,
    /// How long nothing comes until TCP asks whether the other end is there.
    pub probe_after: Duration,
    /// For one request to the hub's registry or the provisioning service.
    pub timeout: Duration,
    /// How often such a request is repeated.
    pub retries: u32,
}

/// Removal of images that nobody uses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageGarbageCollection {
    /// Whether it is done.
    pub enabled: bool,
    /// How often.
    pub every: Duration,
    /// How long an image must not have been used.
    pub age: Duration,
    /// Minutes after midnight, UTC, of the first time of a day.
    pub at_minutes: u16,
}

/// Taking back a deployment whose modules do not become healthy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rollback {
    /// Whether it is done.
    pub enabled: bool,
    /// How long modules have to become healthy.
    pub after: Duration,
}

/// Everything the daemon is told, from whichever file.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// The file, for messages.
    pub source: String,
    /// Folder of everything that is kept.
    pub home: PathBuf,
    /// Name of this device, which clients dial and certificates carry.
    pub hostname: String,
    /// Edge device above this one.
    pub parent_hostname: Option<String>,
    /// The hub.
    pub provisioning: Provisioning,
    /// When it asks again.
    pub reprovisioning: Reprovisioning,
    /// The machine's TPM, used if the device is attested by it.
    pub tpm: TpmSettings,
    /// Authorities that modules and downstream devices are to trust besides the edge CA.
    pub trust_bundle: Option<PathBuf>,
    /// Authorities of signed manifests; only handed out.
    pub manifest_trust_bundle: Option<PathBuf>,
    /// Key behind `encrypt` and `decrypt` of the workload API, instead of one made here.
    pub encryption_key: Option<KeySource>,
    /// The edge CA.
    pub edge_ca: EdgeCa,
    /// The engine.
    pub engine: Engine,
    /// The agent.
    pub agent: Agent,
    /// Local APIs.
    pub sockets: Sockets,
    /// Edge hub.
    pub listen: Listen,
    /// What it may keep and send.
    pub store: Store,
    /// The way up.
    pub upstream: Upstream,
    /// Images.
    pub images: ImageGarbageCollection,
    /// Taking deployments back.
    pub rollback: Rollback,
    /// Modules may be privileged and have added capabilities.
    pub elevated_modules: bool,
    /// Identities of modules are taken from the disk first.
    pub prefer_cached_identities: bool,
    /// Errors after which the daemon gives up restarting what it needs; `None`: never.
    pub watchdog_retries: Option<u32>,
    /// Key/value pairs for system and product information (TOML).
    pub additional_info: Option<PathBuf>,
    /// Log.
    pub observe: LogSection,
}

impl Settings {
    /// Puts relative paths of files below a folder.
    fn anchor(&mut self, folder: &Path) {
        let put = |path: &mut PathBuf| *path = folder.join(&*path);
        let put_key = |source: &mut KeySource| {
            if let KeySource::File(path) = source {
                put(path);
            }
        };
        let put_pair = |files: &mut CertificateFiles| {
            put(&mut files.certificate);
            put(&mut files.private_key);
        };
        let (Provisioning::Manual { credential, .. } | Provisioning::Dps { credential, .. }) =
            &mut self.provisioning;
        match credential {
            Credential::Key(source) => put_key(source),
            Credential::Certificate(files) => put_pair(files),
            Credential::Tpm => {}
        }
        for auth in [&mut self.tpm.owner_auth, &mut self.tpm.endorsement_auth] {
            if let HierarchyAuth::File(path) = auth {
                put(path);
            }
        }
        if let Provisioning::Dps {
            payload: Some(payload),
            ..
        } = &mut self.provisioning
        {
            put(payload);
        }
        match &mut self.edge_ca {
            EdgeCa::Files(files) => put_pair(files),
            EdgeCa::LocalCa { authority, .. } => put_pair(authority),
            EdgeCa::SelfSigned { .. } => {}
        }
        self.encryption_key.iter_mut().for_each(put_key);
        for path in [
            &mut self.trust_bundle,
            &mut self.manifest_trust_bundle,
            &mut self.upstream.ca,
            &mut self.additional_info,
        ] {
            path.iter_mut().for_each(put);
        }
    }

    /// Folder with a folder per module for its workload socket.
    #[must_use]
    pub fn workload_folders(&self) -> PathBuf {
        self.home.join("mnt")
    }

    /// Folder of keys, certificates and what is known of identities.
    #[must_use]
    pub fn identity_folder(&self) -> PathBuf {
        self.home.join("identity")
    }
}

/// Settings with what is to be said about the file that they came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Checked.
    pub settings: Settings,
    /// Sentences for the operator: keys that are unknown or do nothing here.
    pub warnings: Vec<String>,
}

/// Finds and reads the configuration: the named file, else the first of [`DEFAULT_FILES`] that exists.
///
/// # Errors
/// When there is none, it cannot be read, or something in it is wrong. The text names file, key, value and remedy.
pub fn load(named: Option<&Path>) -> Result<Loaded, Failure> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => {
            let found = DEFAULT_FILES.iter().map(PathBuf::from).find(|path| path.exists());
            found.ok_or_else(|| {
                Failure::usage(format!("there is no configuration: neither {} exists", DEFAULT_FILES.join(" nor ")))
                    .hint("`holdfast-edge config mp --connection-string …` writes one, --config FILE names another, and `holdfast edge create` of the hub prints the connection string")
            })?
        }
    };
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Failure::usage(format!(
            "cannot read the configuration file {}: {error}",
            path.display()
        ))
        .hint("check the path given with --config or in HOLDFAST_EDGE_CONFIG, and that this user may read it")
    })?;
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let folder = std::path::absolute(&folder).unwrap_or(folder);
    parse_in(&text, &path.display().to_string(), &folder)
}

/// Parses the text of a file called `name`; which of the two kinds it is shows `provisioning.source`, which every file of
/// the original has and none of ours.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, name: &str) -> Result<Loaded, Failure> {
    parse_in(text, name, Path::new(""))
}

/// As [`parse`]; relative paths of certificates and keys are below `folder`.
fn parse_in(text: &str, name: &str, folder: &Path) -> Result<Loaded, Failure> {
    let table: toml::Table = toml::from_str(text).map_err(|error| describe(text, name, &error))?;
    let of_the_original = table
        .get("provisioning")
        .and_then(|section| section.get("source"))
        .is_some();
    let read = if of_the_original {
        aziot::read(text, &table, name)
    } else {
        own::read(text, name, folder).map(|settings| Loaded {
            settings,
            warnings: Vec::new(),
        })
    };
    let checked = read.and_then(|mut loaded| {
        loaded.settings.anchor(folder);
        check(&loaded.settings)?;
        Ok(loaded)
    });
    checked.map_err(|failure| place::locate(text, name, failure))
}

/// Rules across values and ranges; also for settings that flags have changed.
///
/// # Errors
/// As [`load`].
pub fn check(settings: &Settings) -> Result<(), Failure> {
    check::check(settings, &settings.source)
}

/// The name of this machine.
fn machine_name() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_lowercase();
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name
    }
}

/// A value that cannot be, with file and key.
fn bad(name: &str, key: &str, value: &dyn std::fmt::Display, why: &str, remedy: &str) -> Failure {
    Failure::usage(format!("{name}: {key} = {value}: {why}")).hint(remedy)
}

/// The address of a TPM.
fn tpm_address(name: &str, tcti: &str) -> Result<holdfast_tpm::Address, Failure> {
    let remedy = "write device:/dev/tpmrm0, swtpm:path=/run/swtpm.sock or swtpm:host=localhost,port=2321";
    tcti.parse()
        .map_err(|error: holdfast_tpm::AddressError| bad(name, "tpm.tcti", &tcti, &error.to_string(), remedy))
}

/// A key that must be there.
fn missing(name: &str, key: &str, remedy: &str) -> Failure {
    Failure::usage(format!("{name}: {key} is missing")).hint(remedy)
}

/// Turns a parser's error into one that names line, key and remedy. Never shows a value: it may be a secret.
fn describe(text: &str, name: &str, error: &toml::de::Error) -> Failure {
    let source = toml_error::Source {
        name,
        text,
        reference: "docs/reference/edge-config.md",
        show_values: false,
    };
    source.describe(error)
}
