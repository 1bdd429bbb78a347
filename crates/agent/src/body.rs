//! Bodies of container-create calls (edge.md section 4): the user's `createOptions` with what a module needs to find its
//! hub, its identity and its network.
//!
//! Pure: the same module, identity and surroundings always make the same body, and the same [`definition`].

use std::net::IpAddr;
use std::path::PathBuf;

use ring::digest;
use serde_json::{Map, Value, json};

use crate::identities::ModuleIdentity;
use crate::manifest::ModuleSpec;
use crate::runtime::{OWNER, OWNER_LABEL};

/// Label with the image as the manifest names it.
pub const IMAGE_LABEL: &str = "net.azure-devices.edge.original-image";
/// Label with the [`definition`] from which a container was made. A container with another one, or none, is made anew; one
/// with the same is adopted by a daemon that starts again.
pub const DEFINITION_LABEL: &str = "io.holdfast.edge.definition";
/// Label with the generation id of the identity for which a container was made.
pub const GENERATION_LABEL: &str = "io.holdfast.edge.generation";
/// Label with the `StopTimeout` of `createOptions` in seconds, if there is one: how long the container may take to end.
pub const STOP_LABEL: &str = "io.holdfast.edge.stop-seconds";

/// Labels that every container of ours has.
pub const OWNED_LABELS: [&str; 4] = [OWNER_LABEL, IMAGE_LABEL, DEFINITION_LABEL, GENERATION_LABEL];

/// Variables that a container always gets; a manifest may not set them with `env` (edge.md 4.1). `createOptions` may.
pub const INJECTED: &[&str] = &[
    "IOTEDGE_WORKLOADURI",
    "IOTEDGE_AUTHSCHEME",
    "IOTEDGE_MODULEGENERATIONID",
    "IOTEDGE_IOTHUBHOSTNAME",
    "IOTEDGE_GATEWAYHOSTNAME",
    "IOTEDGE_PARENTHOSTNAME",
    "IOTEDGE_DEVICEID",
    "IOTEDGE_MODULEID",
    "IOTEDGE_APIVERSION",
];

/// Newest api-version of the workload API, told to modules.
const WORKLOAD_API_VERSION: &str = "2022-08-03";

/// Raised when [`body`] changes in a way for which containers have to be made anew.
const FORM: &str = "1";

/// How much log a container's engine keeps when `createOptions` says nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogBounds {
    /// Size of one file in the engine's spelling, e.g. `10m`.
    pub max_size: String,
    /// Files.
    pub max_files: u32,
}

impl Default for LogBounds {
    fn default() -> Self {
        LogBounds {
            max_size: "10m".to_owned(),
            max_files: 3,
        }
    }
}

/// Where modules of this device run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Surroundings {
    /// Host name of the hub.
    pub hub_host: String,
    /// Device id.
    pub device_id: String,
    /// This device's host name, by which modules and downstream devices reach the edge hub.
    pub gateway_host: String,
    /// Host name of the parent edge device, when nested.
    pub parent_host: Option<String>,
    /// Name of the module network.
    pub network: String,
    /// The host's address in the module network: what `edgeHub`, `edgeAgent` and the host name resolve to.
    pub gateway_address: IpAddr,
    /// `IOTEDGE_WORKLOADURI` as modules see it, e.g. `unix:///var/run/iotedge/workload.sock`.
    pub workload_uri: String,
    /// Folder on the host with a folder per module, in which its workload socket is.
    pub workload_folder: PathBuf,
    /// `RuntimeLogLevel` for modules that set none.
    pub log_level: String,
    /// `UpstreamProtocol` for modules that set none.
    pub upstream_protocol: Option<String>,
    /// `allow_elevated_docker_permissions`.
    pub allow_elevated: bool,
    /// Bound of logs for modules without `LogConfig`; `None` leaves the engine's own.
    pub log_bounds: Option<LogBounds>,
}

/// Hash of everything for which a container has to be made anew when it changes: the module's definition (edge.md 2.4, all
/// but `status`) and its surroundings, besides log levels and protocols that are only handed on. Hexadecimal.
#[must_use]
pub fn definition(spec: &ModuleSpec, around: &Surroundings) -> String {
    let text = json!([
        FORM,
        spec.name,
        spec.version,
        spec.image,
        spec.digest,
        spec.create_options,
        spec.env,
        spec.restart_policy.as_str(),
        spec.pull_policy.as_str(),
        spec.startup_order,
        around.hub_host,
        around.device_id,
        around.gateway_host,
        around.parent_host,
        around.network,
        around.gateway_address,
        around.workload_uri,
        around.workload_folder.display().to_string(),
        around.allow_elevated,
    ])
    .to_string();
    let hash = digest::digest(&digest::SHA256, text.as_bytes());
    hash.as_ref().iter().fold(String::new(), |mut hex, byte| {
        use std::fmt::Write as _;
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// The container-create body of a module.
#[must_use]
pub fn body(spec: &ModuleSpec, identity: &ModuleIdentity, around: &Surroundings) -> Map<String, Value> {
    let mut body = spec.options();
    body.insert("Image".to_owned(), Value::String(spec.image.clone()));
    environment(&mut body, spec, identity, around);
    labels(&mut body, spec, identity, around);
    network(&mut body, around);
    let host = object(&mut body, "HostConfig");
    workload(host, spec, around);
    names(host, around);
    permissions(host, around);
    if let Some(bounds) = &around.log_bounds
        && absent(host, "LogConfig")
    {
        let config = json!({"max-size": bounds.max_size, "max-file": bounds.max_files.to_string()});
        host.insert(
            "LogConfig".to_owned(),
            json!({"Type": "json-file", "Config": config}),
        );
    }
    body
}

/// Names of the variables of `createOptions`, then ours that are not among them.
fn environment(
    body: &mut Map<String, Value>,
    spec: &ModuleSpec,
    identity: &ModuleIdentity,
    around: &Surroundings,
) {
    let given: Vec<Value> = match body.remove("Env") {
        Some(Value::Array(given)) => given,
        _ => Vec::new(),
    };
    let is_given = |name: &str| {
        given
            .iter()
            .filter_map(Value::as_str)
            .any(|entry| entry.split('=').next() == Some(name))
    };
    let module_id = identity.identity.module_id().unwrap_or(&spec.name);
    let mut ours: Vec<(&str, &str)> = spec.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    ours.extend([
        ("IOTEDGE_WORKLOADURI", around.workload_uri.as_str()),
        ("IOTEDGE_AUTHSCHEME", "sasToken"),
        ("IOTEDGE_MODULEGENERATIONID", &identity.generation_id),
        ("IOTEDGE_IOTHUBHOSTNAME", &around.hub_host),
        ("IOTEDGE_GATEWAYHOSTNAME", &around.gateway_host),
        ("IOTEDGE_DEVICEID", &around.device_id),
        ("IOTEDGE_MODULEID", module_id),
        ("IOTEDGE_APIVERSION", WORKLOAD_API_VERSION),
    ]);
    if let Some(parent) = &around.parent_host {
        ours.push(("IOTEDGE_PARENTHOSTNAME", parent));
    }
    if !spec.env.contains_key("RuntimeLogLevel") {
        ours.push(("RuntimeLogLevel", &around.log_level));
    }
    if let Some(protocol) = &around.upstream_protocol
        && !spec.env.contains_key("UpstreamProtocol")
    {
        ours.push(("UpstreamProtocol", protocol));
    }
    let mut env: Vec<Value> = ours
        .into_iter()
        .filter(|(name, _)| !is_given(name))
        .map(|(name, value)| Value::String(format!("{name}={value}")))
        .collect();
    env.extend(given);
    body.insert("Env".to_owned(), Value::Array(env));
}

fn labels(
    body: &mut Map<String, Value>,
    spec: &ModuleSpec,
    identity: &ModuleIdentity,
    around: &Surroundings,
) {
    let stop = body.get("StopTimeout").and_then(Value::as_u64);
    let labels = object(body, "Labels");
    if let Some(seconds) = stop {
        labels.insert(STOP_LABEL.to_owned(), Value::String(seconds.to_string()));
    }
    for (name, value) in [
        (OWNER_LABEL, OWNER.to_owned()),
        (IMAGE_LABEL, spec.image.clone()),
        (DEFINITION_LABEL, definition(spec, around)),
        (GENERATION_LABEL, identity.generation_id.clone()),
    ] {
        labels.insert(name.to_owned(), Value::String(value));
    }
}

/// The module network, for a module that chooses none itself.
fn network(body: &mut Map<String, Value>, around: &Surroundings) {
    let chosen = body
        .get("NetworkingConfig")
        .and_then(|networking| networking.get("EndpointsConfig"))
        .and_then(Value::as_object)
        .is_some_and(|endpoints| !endpoints.is_empty());
    if chosen || !matches!(mode(body), "" | "default") {
        return;
    }
    let mut endpoints = Map::new();
    endpoints.insert(around.network.clone(), json!({}));
    object(body, "NetworkingConfig").insert("EndpointsConfig".to_owned(), Value::Object(endpoints));
    object(body, "HostConfig").insert("NetworkMode".to_owned(), Value::String(around.network.clone()));
}

fn mode(body: &Map<String, Value>) -> &str {
    body.get("HostConfig")
        .and_then(|host| host.get("NetworkMode"))
        .and_then(Value::as_str)
        .unwrap_or("")
}

/// The folder with the workload socket. A folder, because a socket that is made anew is another file.
fn workload(host: &mut Map<String, Value>, spec: &ModuleSpec, around: &Surroundings) {
    let Some(path) = around.workload_uri.strip_prefix("unix://") else {
        return;
    };
    let Some((target, _)) = path.rsplit_once('/').filter(|(target, _)| !target.is_empty()) else {
        return;
    };
    let source = around.workload_folder.join(&spec.name);
    append(host, "Binds", format!("{}:{target}", source.display()));
}

/// `edgeHub`, `edgeAgent` and this device's name, which are all the daemon on the host.
fn names(host: &mut Map<String, Value>, around: &Surroundings) {
    let mode = host.get("NetworkMode").and_then(Value::as_str).unwrap_or("");
    if mode == "none" || mode.starts_with("container:") {
        return;
    }
    for name in ["edgeHub", "edgeAgent", &around.gateway_host] {
        let is_given = array(host, "ExtraHosts")
            .iter()
            .filter_map(Value::as_str)
            .any(|entry| {
                entry
                    .split([':', '='])
                    .next()
                    .is_some_and(|given| given.eq_ignore_ascii_case(name))
            });
        if !is_given {
            append(host, "ExtraHosts", format!("{name}:{}", around.gateway_address));
        }
    }
}

/// edge.md 2.3: without permission nothing is privileged, no capability is added, and two are dropped.
fn permissions(host: &mut Map<String, Value>, around: &Surroundings) {
    if around.allow_elevated {
        return;
    }
    host.insert("Privileged".to_owned(), Value::Bool(false));
    host.remove("CapAdd");
    for capability in ["CHOWN", "SETUID"] {
        let is_dropped = array(host, "CapDrop")
            .iter()
            .filter_map(Value::as_str)
            .any(|given| given.eq_ignore_ascii_case(capability));
        if !is_dropped {
            append(host, "CapDrop", capability.to_owned());
        }
    }
}

fn absent(object: &Map<String, Value>, name: &str) -> bool {
    object.get(name).is_none_or(Value::is_null)
}

fn object<'a>(parent: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let slot = parent.entry(name).or_insert(Value::Null);
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut().expect("an object was just put there")
}

fn array<'a>(parent: &'a Map<String, Value>, name: &str) -> &'a [Value] {
    parent
        .get(name)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn append(parent: &mut Map<String, Value>, name: &str, text: String) {
    let slot = parent.entry(name).or_insert(Value::Null);
    if !slot.is_array() {
        *slot = Value::Array(Vec::new());
    }
    if let Value::Array(items) = slot {
        items.push(Value::String(text));
    }
}
