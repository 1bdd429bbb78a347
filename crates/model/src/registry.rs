//! What the identity registry knows of a device or module.

use serde::{Deserialize, Serialize};

use crate::credential::{SymmetricKey, Thumbprint};
use crate::identity::Identity;
use crate::time::Timestamp;

/// Whether a device may connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Status {
    /// May connect.
    #[default]
    Enabled,
    /// May not connect; live sessions are closed.
    Disabled,
}

/// How an identity proves itself (rest.md 5.1).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum Authentication {
    /// Shared access signature with either of two keys.
    #[serde(rename_all = "camelCase")]
    Sas {
        /// First key.
        primary_key: SymmetricKey,
        /// Second key, for rolling.
        secondary_key: SymmetricKey,
    },
    /// A certificate known by thumbprint; at least one is set.
    #[serde(rename_all = "camelCase")]
    SelfSigned {
        /// First thumbprint.
        primary_thumbprint: Option<Thumbprint>,
        /// Second thumbprint, for rolling.
        secondary_thumbprint: Option<Thumbprint>,
    },
    /// A certificate that chains to an uploaded and verified CA, subject CN = identity.
    CertificateAuthority,
    /// Cannot authenticate on its own (modules managed by an edge device before they have keys).
    None,
}

impl Authentication {
    /// A new pair of random keys.
    #[must_use]
    pub fn generate_sas() -> Self {
        Authentication::Sas {
            primary_key: SymmetricKey::generate(),
            secondary_key: SymmetricKey::generate(),
        }
    }
}

/// A device or module in the registry.
#[derive(Clone, PartialEq, Debug)]
pub struct IdentityRecord {
    /// Who.
    pub identity: Identity,
    /// New with every creation of the same id.
    pub generation_id: u64,
    /// Raised with every change of this record; its text form is the entity tag.
    pub version: u64,
    /// Whether it may connect. Modules are always enabled; their device's status counts.
    pub status: Status,
    /// Free text of the operator, at most 128 characters.
    pub status_reason: Option<String>,
    /// When the status last changed.
    pub status_updated_at: Timestamp,
    /// How it proves itself.
    pub authentication: Authentication,
    /// Whether the device is an IoT Edge device.
    pub iot_edge: bool,
    /// Edge: own scope; leaf: the parent's scope; else `None`.
    pub device_scope: Option<String>,
    /// Scopes of the parents.
    pub parent_scopes: Vec<String>,
    /// Modules: who manages it (`IotEdge` or free text).
    pub managed_by: Option<String>,
    /// Last stored connection state; live state is the engine's.
    pub connected: bool,
    /// When the connection state last changed.
    pub connection_updated_at: Timestamp,
    /// Last time the identity was heard of.
    pub last_activity_at: Timestamp,
}

/// Counts over the registry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RegistryStatistics {
    /// Devices, modules not counted.
    pub total: u64,
    /// Devices that may connect.
    pub enabled: u64,
    /// Devices that may not.
    pub disabled: u64,
}
