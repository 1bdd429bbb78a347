//! Shared access policies: named keys with rights.

use serde::{Deserialize, Serialize};

use crate::credential::SymmetricKey;
use crate::error::{Error, ErrorCode};

/// A set of rights (rest.md 2.2). RegistryWrite implies RegistryRead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rights(u8);

impl Rights {
    /// No right.
    pub const NONE: Rights = Rights(0);
    /// Read identities.
    pub const REGISTRY_READ: Rights = Rights(1);
    /// Create, change and delete identities; implies reading them.
    pub const REGISTRY_WRITE: Rights = Rights(3);
    /// Use the service side: twins, methods, cloud-to-device, events.
    pub const SERVICE_CONNECT: Rights = Rights(4);
    /// Use the device side as any device.
    pub const DEVICE_CONNECT: Rights = Rights(8);

    /// The union of both sets.
    #[must_use]
    pub const fn union(self, other: Rights) -> Rights {
        Rights(self.0 | other.0)
    }

    /// Whether every right of `needed` is held.
    #[must_use]
    pub const fn allows(self, needed: Rights) -> bool {
        self.0 & needed.0 == needed.0
    }

    /// The names in management-plane spelling, e.g. `RegistryRead, RegistryWrite`.
    #[must_use]
    pub fn names(self) -> String {
        let mut names = Vec::new();
        for (right, name) in [
            (Rights::REGISTRY_READ, "RegistryRead"),
            (Rights::REGISTRY_WRITE, "RegistryWrite"),
            (Rights::SERVICE_CONNECT, "ServiceConnect"),
            (Rights::DEVICE_CONNECT, "DeviceConnect"),
        ] {
            if self.allows(right) {
                names.push(name);
            }
        }
        names.join(", ")
    }

    /// Parses names separated by commas, without regard to case and spaces; `None` on an unknown name.
    #[must_use]
    pub fn parse(names: &str) -> Option<Rights> {
        let mut rights = Rights::NONE;
        for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            rights = rights.union(match name.to_ascii_lowercase().as_str() {
                "registryread" => Rights::REGISTRY_READ,
                "registrywrite" => Rights::REGISTRY_WRITE,
                "serviceconnect" => Rights::SERVICE_CONNECT,
                "deviceconnect" => Rights::DEVICE_CONNECT,
                _ => return None,
            });
        }
        Some(rights)
    }
}

/// A named pair of keys with rights.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// Name, 1 to 64 characters of letters, digits and `_ - @ .`.
    pub name: String,
    /// First key.
    pub primary_key: SymmetricKey,
    /// Second key, for rolling.
    pub secondary_key: SymmetricKey,
    /// What the holder may do.
    pub rights: Rights,
}

/// Longest policy name, characters.
const NAME_LEN_MAX: usize = 64;

/// Checks the name of a policy, of a hub or of a provisioning service.
///
/// # Errors
/// [`ErrorCode::ArgumentInvalid`].
pub fn check_policy_name(name: &str) -> Result<(), Error> {
    let fits = !name.is_empty()
        && name.len() <= NAME_LEN_MAX
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'@' | b'.'));
    if fits {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::ArgumentInvalid,
        format!("a policy's name must have 1 to {NAME_LEN_MAX} of the characters A-Z a-z 0-9 _ - @ ."),
    ))
}

/// The policies a new hub starts with (rest.md 2.2).
pub const DEFAULT_POLICIES: &[(&str, Rights)] = &[
    (
        "iothubowner",
        Rights::REGISTRY_WRITE
            .union(Rights::SERVICE_CONNECT)
            .union(Rights::DEVICE_CONNECT),
    ),
    ("service", Rights::SERVICE_CONNECT),
    ("device", Rights::DEVICE_CONNECT),
    ("registryRead", Rights::REGISTRY_READ),
    ("registryReadWrite", Rights::REGISTRY_WRITE),
];
