//! Desired properties of `$edgeAgent`: what a deployment asks for (edge.md section 2).
//!
//! Everything is checked before anything is believed: a manifest either becomes a [`Deployment`] whole, or a
//! [`ManifestError`] that says which module and which field is wrong. Sizes and counts are bounded while reading
//! ([`limits`]), before memory is taken for them. What is unknown is passed over.

mod fields;
mod image;
mod json;
mod options;
mod parse;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

pub(crate) use image::credentials;
pub use image::{Registry, registry_of};
pub use json::{merge, read_object};
pub use options::{chunks, write_chunks};
pub use parse::{parse, schema_version};

/// Module name of the agent, which is the daemon itself.
pub const EDGE_AGENT: &str = "edgeAgent";
/// Module name of the edge hub, which is part of the daemon.
pub const EDGE_HUB: &str = "edgeHub";

/// Bounds of a manifest. More is refused with code 400.
pub mod limits {
    /// Bytes of the desired properties as JSON text. Holdfast keeps at most 32 KB in a twin; other hubs and files may bring
    /// more, up to the longest `createOptions` times a few modules.
    pub const DESIRED_BYTES_MAX: usize = 2 * 1024 * 1024;
    /// Nesting of the desired properties.
    pub const DEPTH_MAX: usize = 32;
    /// Values of the desired properties, objects and arrays included.
    pub const VALUES_MAX: usize = 100_000;
    /// Modules of a deployment besides edgeAgent and edgeHub; the original publishes 50.
    pub const MODULES_MAX: usize = 200;
    /// Characters of a module's name.
    pub const MODULE_NAME_MAX: usize = 128;
    /// Characters of an image name.
    pub const IMAGE_MAX: usize = 1024;
    /// Environment variables of a module.
    pub const ENV_MAX: usize = 1024;
    /// Registries with credentials.
    pub const REGISTRIES_MAX: usize = 100;
    /// Pieces of `createOptions` (edge.md 2.3).
    pub const CHUNKS_MAX: usize = 100;
    /// Bytes of all pieces of `createOptions` together.
    pub const CREATE_OPTIONS_BYTES_MAX: usize = 512 * 1024;
}

/// Code of `lastDesiredStatus` (edge.md 2.6).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StatusCode {
    /// Everything was carried out.
    Successful,
    /// The desired properties cannot be read.
    ConfigFormat,
    /// Nothing is known yet, or the agent is not running.
    Unknown,
    /// The schema version is missing, unreadable or not known here.
    InvalidSchemaVersion,
    /// There are no desired properties.
    ConfigEmpty,
    /// Something could not be carried out.
    Failed,
}

impl StatusCode {
    /// As reported.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            StatusCode::Successful => 200,
            StatusCode::ConfigFormat => 400,
            StatusCode::Unknown => 406,
            StatusCode::InvalidSchemaVersion => 412,
            StatusCode::ConfigEmpty => 417,
            StatusCode::Failed => 500,
        }
    }
}

/// Why a manifest is refused. The running modules are left as they are.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ManifestError {
    /// 400, 412 or 417.
    pub code: StatusCode,
    /// Path from the desired properties, e.g. `modules.sensor.settings.image`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl ManifestError {
    /// A field that cannot be read, code 400.
    pub(crate) fn format(field: impl Into<String>, problem: impl Into<String>) -> Self {
        ManifestError {
            code: StatusCode::ConfigFormat,
            field: field.into(),
            problem: problem.into(),
        }
    }

    /// Text for `lastDesiredStatus.description`.
    #[must_use]
    pub fn description(&self) -> String {
        match self.code {
            StatusCode::ConfigEmpty => self.problem.clone(),
            StatusCode::InvalidSchemaVersion => format!("Invalid schema version. {self}"),
            _ => format!("Agent configuration format is invalid. {self}"),
        }
    }
}

/// Whether a module should run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DesiredStatus {
    /// It should.
    Running,
    /// It should be there and not run.
    Stopped,
}

impl DesiredStatus {
    /// As written in a manifest.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            DesiredStatus::Running => "running",
            DesiredStatus::Stopped => "stopped",
        }
    }
}

/// When a module that should run and does not is started again (edge.md 3.4, ADR 0070).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RestartPolicy {
    /// Not at all.
    Never,
    /// When it ended.
    OnFailure,
    /// When it ended, or its health check fails.
    OnUnhealthy,
    /// As [`RestartPolicy::OnUnhealthy`], with a pause also after an end with exit code 0.
    Always,
}

impl RestartPolicy {
    /// As written in a manifest.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            RestartPolicy::Never => "never",
            RestartPolicy::OnFailure => "on-failure",
            RestartPolicy::OnUnhealthy => "on-unhealthy",
            RestartPolicy::Always => "always",
        }
    }
}

/// When an image is pulled.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PullPolicy {
    /// Before a container is made.
    OnCreate,
    /// Never: it has to be there.
    Never,
}

impl PullPolicy {
    /// As written in a manifest.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            PullPolicy::OnCreate => "on-create",
            PullPolicy::Never => "never",
        }
    }
}

/// `startupOrder` of a module that names none: after all others.
pub const STARTUP_ORDER_DEFAULT: u32 = u32::MAX;

/// A module as a manifest describes it.
#[derive(Clone, PartialEq, Eq)]
pub struct ModuleSpec {
    /// Module name, which is the container's name.
    pub name: String,
    /// The user's label; a change alone makes the module anew.
    pub version: String,
    /// Image with tag or digest, `$upstream` replaced.
    pub image: String,
    /// Content-trust digest; carried and reported.
    pub digest: Option<String>,
    /// Body of the engine's container-create call as compact JSON text with sorted keys; an object. Parsed where it is
    /// used, since a tree of values takes a multiple of the text's memory.
    pub create_options: Box<str>,
    /// Environment, values as text.
    pub env: BTreeMap<String, String>,
    /// Whether it should run.
    pub status: DesiredStatus,
    /// What happens when it does not.
    pub restart_policy: RestartPolicy,
    /// When its image is pulled.
    pub pull_policy: PullPolicy,
    /// Lower is started first.
    pub startup_order: u32,
}

impl ModuleSpec {
    /// `createOptions` as an object.
    #[must_use]
    pub fn options(&self) -> Map<String, Value> {
        serde_json::from_str(&self.create_options).unwrap_or_default()
    }
}

impl std::fmt::Debug for ModuleSpec {
    /// Without environment and `createOptions`: users keep secrets there.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "ModuleSpec({} {} {})",
            self.name,
            self.image,
            self.status.as_str()
        )
    }
}

/// `runtime.settings`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RuntimeSettings {
    /// Told back, never checked.
    pub min_docker_version: String,
    /// Told back, not applied.
    pub logging_options: String,
    /// Credentials, in the order of their names.
    pub registries: Vec<Registry>,
}

/// What a deployment asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deployment {
    /// `$version` of the desired properties.
    pub version: u64,
    /// `runtime.settings`.
    pub runtime: RuntimeSettings,
    /// `systemModules.edgeAgent`: reported, its `env` has settings of the agent; never a container.
    pub edge_agent: Option<ModuleSpec>,
    /// `systemModules.edgeHub`: reported, its `env` has settings of the edge hub; never a container.
    pub edge_hub: Option<ModuleSpec>,
    /// `modules`, by name.
    pub modules: BTreeMap<String, ModuleSpec>,
}

impl Deployment {
    /// Whether two deployments ask for the same, whatever their versions.
    #[must_use]
    pub fn same_content(&self, other: &Deployment) -> bool {
        self.runtime == other.runtime
            && self.edge_agent == other.edge_agent
            && self.edge_hub == other.edge_hub
            && self.modules == other.modules
    }
}
