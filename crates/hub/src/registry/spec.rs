//! What a service says about an identity, and what becomes of it in the registry.

use holdfast_model::credential::{SymmetricKey, Thumbprint};
use holdfast_model::registry::{Authentication, IdentityRecord, Status};
use holdfast_model::{Error, Identity, Timestamp};

use crate::failure::invalid;

/// Longest reason of a status, characters.
const STATUS_REASON_MAX: usize = 128;
/// Longest `managedBy`, characters.
const MANAGED_BY_MAX: usize = 128;

/// How an identity is to prove itself (rest.md 5.1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AuthenticationSpec {
    /// By a key. Both or neither: without keys the hub makes two, or keeps the present ones on an update.
    Sas {
        /// First key.
        primary_key: Option<SymmetricKey>,
        /// Second key.
        secondary_key: Option<SymmetricKey>,
    },
    /// By a certificate known by thumbprint; at least one.
    SelfSigned {
        /// First thumbprint.
        primary_thumbprint: Option<Thumbprint>,
        /// Second thumbprint.
        secondary_thumbprint: Option<Thumbprint>,
    },
    /// By a certificate issued under a verified authority.
    CertificateAuthority,
    /// Not at all, for now.
    None,
}

impl Default for AuthenticationSpec {
    /// Keys made by the hub.
    fn default() -> Self {
        AuthenticationSpec::Sas {
            primary_key: None,
            secondary_key: None,
        }
    }
}

/// The writable members of a device or module. A PUT replaces all of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct IdentitySpec {
    /// Devices: whether it may connect.
    pub status: Status,
    /// Devices: free text, at most 128 characters.
    pub status_reason: Option<String>,
    /// How it proves itself.
    pub authentication: AuthenticationSpec,
    /// Devices: whether it is an IoT Edge device.
    pub iot_edge: bool,
    /// Leaf devices: the parent's scope; empty or `None` for no parent, unless `parent_scopes` names one. Ignored for
    /// edge devices, whose own scope the hub makes.
    pub device_scope: Option<String>,
    /// The parent's scope; at most one.
    pub parent_scopes: Vec<String>,
    /// Modules: who manages it, at most 128 characters.
    pub managed_by: Option<String>,
}

/// Which key of an identity or policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyChoice {
    /// The first.
    Primary,
    /// The second.
    Secondary,
    /// Both.
    Both,
}

/// A checked spec with everything random already drawn, so that applying it twice has the same effect.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    spec: IdentitySpec,
    parent_scope: Option<String>,
    fresh: Authentication,
}

impl IdentitySpec {
    /// The one parent scope that is asked for.
    pub(crate) fn parent_scope(&self, is_module: bool) -> Result<Option<&str>, Error> {
        if is_module {
            return Ok(None);
        }
        if self.parent_scopes.len() > 1 {
            return Err(Error::new(
                holdfast_model::ErrorCode::InvalidDeviceScope,
                "parentScopes can name one parent at most",
            ));
        }
        let scope = match (&self.device_scope, self.iot_edge) {
            (Some(scope), false) => Some(scope),
            _ => self.parent_scopes.first(),
        };
        Ok(scope.map(String::as_str).filter(|scope| !scope.is_empty()))
    }

    /// Checks what can be checked without the store.
    pub(crate) fn prepare(&self, parent_scope: Option<String>) -> Result<Prepared, Error> {
        let too_long = |text: &Option<String>, max| text.as_ref().is_some_and(|t| t.chars().count() > max);
        if too_long(&self.status_reason, STATUS_REASON_MAX) {
            return Err(invalid(format!(
                "statusReason can have {STATUS_REASON_MAX} characters at most"
            )));
        }
        if too_long(&self.managed_by, MANAGED_BY_MAX) {
            return Err(invalid(format!(
                "managedBy can have {MANAGED_BY_MAX} characters at most"
            )));
        }
        match &self.authentication {
            AuthenticationSpec::Sas {
                primary_key,
                secondary_key,
            } if primary_key.is_some() != secondary_key.is_some() => {
                return Err(invalid(
                    "authentication.symmetricKey must have both primaryKey and secondaryKey, or neither",
                ));
            }
            AuthenticationSpec::SelfSigned {
                primary_thumbprint: None,
                secondary_thumbprint: None,
            } => {
                return Err(invalid(
                    "authentication.x509Thumbprint must have a primaryThumbprint or a secondaryThumbprint of 40 or 64 hex digits",
                ));
            }
            _ => {}
        }
        Ok(Prepared {
            spec: self.clone(),
            parent_scope,
            fresh: Authentication::generate_sas(),
        })
    }
}

impl Prepared {
    pub(crate) fn iot_edge(&self) -> bool {
        self.spec.iot_edge
    }

    /// A new record.
    pub(crate) fn create(&self, identity: &Identity, generation_id: u64, now: Timestamp) -> IdentityRecord {
        let mut record = IdentityRecord {
            identity: identity.clone(),
            generation_id,
            version: 1,
            status: Status::Enabled,
            status_reason: None,
            status_updated_at: Timestamp::NEVER,
            authentication: self.authentication(None),
            iot_edge: false,
            device_scope: None,
            parent_scopes: Vec::new(),
            managed_by: None,
            connected: false,
            connection_updated_at: Timestamp::NEVER,
            last_activity_at: Timestamp::NEVER,
        };
        self.apply(&mut record, now);
        record
    }

    /// Replaces the writable members of a record.
    pub(crate) fn apply(&self, record: &mut IdentityRecord, now: Timestamp) {
        record.authentication = self.authentication(Some(&record.authentication));
        if record.identity.is_module() {
            record.managed_by.clone_from(&self.spec.managed_by);
            return;
        }
        if record.status != self.spec.status {
            record.status_updated_at = now;
        }
        record.status = self.spec.status;
        record.status_reason.clone_from(&self.spec.status_reason);
        record.parent_scopes = self.parent_scope.iter().cloned().collect();
        record.device_scope = match (self.spec.iot_edge, record.iot_edge) {
            // The scope of an edge device never changes.
            (true, true) => record.device_scope.take(),
            (true, false) => Some(edge_scope(&record.identity, record.generation_id)),
            (false, _) => self.parent_scope.clone(),
        };
        record.iot_edge = self.spec.iot_edge;
    }

    fn authentication(&self, present: Option<&Authentication>) -> Authentication {
        match &self.spec.authentication {
            AuthenticationSpec::Sas {
                primary_key: Some(primary_key),
                secondary_key: Some(secondary_key),
            } => Authentication::Sas {
                primary_key: primary_key.clone(),
                secondary_key: secondary_key.clone(),
            },
            // An update that says nothing about keys must not lock the device out.
            AuthenticationSpec::Sas { .. } => match present {
                Some(keys @ Authentication::Sas { .. }) => keys.clone(),
                _ => self.fresh.clone(),
            },
            AuthenticationSpec::SelfSigned {
                primary_thumbprint,
                secondary_thumbprint,
            } => Authentication::SelfSigned {
                primary_thumbprint: primary_thumbprint.clone(),
                secondary_thumbprint: secondary_thumbprint.clone(),
            },
            AuthenticationSpec::CertificateAuthority => Authentication::CertificateAuthority,
            AuthenticationSpec::None => Authentication::None,
        }
    }
}

/// Whether this is a scope that a hub made for this device: [`edge_scope`] with whatever generation. So no two devices
/// can have the same.
pub(crate) fn is_edge_scope_of(scope: &str, device: &Identity) -> bool {
    scope
        .strip_prefix("ms-azure-iot-edge://")
        .and_then(|rest| rest.strip_prefix(device.device_id()))
        .and_then(|rest| rest.strip_prefix('-'))
        .is_some_and(|ticks| {
            (1..=20).contains(&ticks.len()) && ticks.bytes().all(|byte| byte.is_ascii_digit())
        })
}

/// Scope of an edge device; its text ends in the ticks of the generation (rest.md 5.1).
fn edge_scope(device: &Identity, generation_id: u64) -> String {
    format!("ms-azure-iot-edge://{}-{generation_id}", device.device_id())
}
