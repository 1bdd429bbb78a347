//! Device provisioning: enrollments, enrollment groups, registrations, linked hubs, rights.
//!
//! The stored forms are here too: the structures serialize to JSON documents, in which keys stand in the clear as they
//! do in every store. `Debug` shows no key.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::credential::SymmetricKey;
use crate::error::{Error, ErrorCode};
use crate::time::Timestamp;

/// Longest registration id or group id.
pub const REGISTRATION_ID_LEN_MAX: usize = 128;
/// Largest request of a device, bytes (rest.md section 19).
pub const REQUEST_BYTES_MAX: usize = 96 * 1024;
/// Most entries of one bulk request.
pub const BULK_ENROLLMENTS_MAX: usize = 10;
/// Most enrollment groups.
pub const GROUPS_MAX: usize = 200;
/// Most entries of each list of an [`AccessList`].
pub const ACCESS_LIST_MAX: usize = 1_000;
/// Most linked hubs.
pub const LINKED_HUBS_MAX: usize = 50;
/// Weights of linked hubs.
pub const HUB_WEIGHT_RANGE: (u32, u32) = (1, 1_000);
/// How the hub of this process is written down. Its host name may change between two starts, this does not.
pub const OWN_HUB: &str = "$own";

/// A registration id or group id, in the case in which it was given. Two that differ only in case are the same.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RegistrationId(Box<str>);

impl RegistrationId {
    /// Checks the length and the characters (languages.md 6.1).
    ///
    /// # Errors
    /// `InvalidRegistrationId`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let characters = text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':'));
        let end = text
            .bytes()
            .last()
            .is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if text.len() <= REGISTRATION_ID_LEN_MAX && characters && end {
            return Ok(RegistrationId(text.into()));
        }
        Err(Error::new(
            ErrorCode::InvalidRegistrationId,
            format!(
                "a registration id has 1 to {REGISTRATION_ID_LEN_MAX} of the characters A-Z a-z 0-9 - . _ : and ends \
                 in a letter, a digit or -"
            ),
        ))
    }

    /// As given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The form to look it up by.
    #[must_use]
    pub fn key(&self) -> String {
        self.0.to_ascii_lowercase()
    }
}

impl PartialEq for RegistrationId {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Eq for RegistrationId {}

impl fmt::Display for RegistrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RegistrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What can be read in a certificate without trusting it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CertificateInfo {
    /// Subject, as a distinguished name.
    pub subject_name: String,
    /// SHA-1 of the DER, upper-case hex.
    pub sha1_thumbprint: String,
    /// SHA-256 of the DER, upper-case hex.
    pub sha256_thumbprint: String,
    /// Issuer, as a distinguished name.
    pub issuer_name: String,
    /// First moment of its life.
    pub not_before: Timestamp,
    /// Last moment of its life.
    pub not_after: Timestamp,
    /// Hex.
    pub serial_number: String,
    /// 1 to 3.
    pub version: u32,
}

/// A certificate of an enrollment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EnrolledCertificate {
    /// DER, base64.
    pub der: String,
    /// What it says.
    pub info: CertificateInfo,
}

/// How a device proves itself to the provisioning service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum Attestation {
    /// By a key; in a group by one derived from it.
    #[serde(rename_all = "camelCase")]
    SymmetricKey {
        /// First key.
        primary_key: SymmetricKey,
        /// Second key.
        secondary_key: SymmetricKey,
    },
    /// By just this certificate (individual enrollments).
    ClientCertificates {
        /// First certificate.
        primary: Option<EnrolledCertificate>,
        /// Second certificate, for rolling.
        secondary: Option<EnrolledCertificate>,
    },
    /// By a certificate issued under one of these (groups).
    SigningCertificates {
        /// First certificate.
        primary: Option<EnrolledCertificate>,
        /// Second certificate, for rolling.
        secondary: Option<EnrolledCertificate>,
    },
    /// By a certificate issued under a verified authority with one of these names.
    AuthorityReferences {
        /// First name.
        primary: Option<String>,
        /// Second name.
        secondary: Option<String>,
    },
    /// By the endorsement key of a TPM 2.0 (individual enrollments).
    #[serde(rename_all = "camelCase")]
    Tpm {
        /// Public area of the endorsement key: a `TPM2B_PUBLIC`, base64.
        endorsement_key: String,
        /// Public area of the storage root key, as the operator noted it; devices may have another one since.
        storage_root_key: Option<String>,
        /// First key of the device on its hub. The device gets it in a form that only its TPM can read.
        primary_key: SymmetricKey,
        /// Second key of the device on its hub.
        secondary_key: SymmetricKey,
    },
}

/// What a repeated registration may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReprovisionPolicy {
    /// The hub is chosen again.
    pub update_hub_assignment: bool,
    /// The twin goes along; otherwise it begins anew.
    pub migrate_device_data: bool,
}

impl Default for ReprovisionPolicy {
    fn default() -> Self {
        ReprovisionPolicy {
            update_hub_assignment: true,
            migrate_device_data: true,
        }
    }
}

/// How a hub is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AllocationPolicy {
    /// By the registration id, in proportion to the weights.
    #[default]
    Hashed,
    /// The one with the least latency.
    GeoLatency,
    /// The one that the enrollment names.
    Static,
    /// A webhook says.
    Custom,
}

/// Whom to ask for a hub.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CustomAllocation {
    /// `http` or `https`; the query is kept.
    pub webhook_url: String,
    /// Version of the request's schema.
    pub api_version: String,
}

/// What a twin begins with.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct InitialTwin {
    /// Tags.
    pub tags: Map<String, Value>,
    /// Desired properties.
    pub desired: Map<String, Value>,
}

/// What individual enrollments and groups have in common.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Enrollment {
    /// How devices prove themselves.
    pub attestation: Attestation,
    /// Whether devices may register.
    pub enabled: bool,
    /// What a repeated registration may change; the default when `None`.
    pub reprovision: Option<ReprovisionPolicy>,
    /// How the hub is chosen; hashed when `None`.
    pub allocation: Option<AllocationPolicy>,
    /// The one hub of a static allocation.
    pub hub_host_name: Option<String>,
    /// Hubs to choose from; all linked hubs when empty.
    pub hubs: Vec<String>,
    /// For [`AllocationPolicy::Custom`].
    pub custom: Option<CustomAllocation>,
    /// What a new twin begins with.
    pub initial_twin: Option<InitialTwin>,
    /// Whether devices are IoT Edge devices.
    pub iot_edge: bool,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
    /// Raised with every change. Begins with the time, so that an entry made anew has no version of an older one.
    pub version: u64,
}

impl Enrollment {
    /// The policy that holds.
    #[must_use]
    pub fn reprovision(&self) -> ReprovisionPolicy {
        self.reprovision.unwrap_or_default()
    }
}

/// An enrollment of one device.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct IndividualEnrollment {
    /// Its id.
    pub registration_id: RegistrationId,
    /// Device id on the hub; the registration id when `None`.
    pub device_id: Option<String>,
    /// Free JSON for the operator.
    pub device_information: Option<Value>,
    /// The rest.
    pub enrollment: Enrollment,
}

/// An enrollment of many devices.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct EnrollmentGroup {
    /// Its id.
    pub group_id: RegistrationId,
    /// Which of the devices that prove themselves are let in.
    #[serde(default, skip_serializing_if = "AccessList::is_empty")]
    pub access: AccessList,
    /// The rest.
    pub enrollment: Enrollment,
}

/// Which devices of a group are let in: those whose registration id is allowed and not denied. An entry is an id in any
/// case, in which `*` stands for any characters.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct AccessList {
    /// Who may register; everybody when empty.
    pub allow: Vec<String>,
    /// Who may not, even if allowed.
    pub deny: Vec<String>,
}

impl AccessList {
    /// Whether everybody is let in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// Checks the number, length and characters of the entries.
    ///
    /// # Errors
    /// `ArgumentInvalid`.
    pub fn check(&self) -> Result<(), Error> {
        let invalid = |text: String| Err(Error::new(ErrorCode::ArgumentInvalid, text));
        for (name, list) in [("allow", &self.allow), ("deny", &self.deny)] {
            if list.len() > ACCESS_LIST_MAX {
                return invalid(format!("{name} can have {ACCESS_LIST_MAX} entries at most"));
            }
            let fits = |entry: &&String| {
                let byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:*".contains(&byte);
                (1..=REGISTRATION_ID_LEN_MAX).contains(&entry.len()) && entry.bytes().all(byte)
            };
            if let Some(bad) = list.iter().find(|entry| !fits(entry)) {
                return invalid(format!(
                    "{name}: {bad:?} is no registration id, nor one with * in it"
                ));
            }
        }
        Ok(())
    }

    /// Whether a device is let in.
    #[must_use]
    pub fn admits(&self, id: &RegistrationId) -> bool {
        let key = id.key();
        let named = |list: &[String]| list.iter().any(|entry| matches_pattern(entry, &key));
        (self.allow.is_empty() || named(&self.allow)) && !named(&self.deny)
    }
}

/// Whether `text`, in lower case, matches a pattern with `*`, in any case. Linear in both but for the number of stars.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    let pattern = pattern.to_ascii_lowercase();
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let Some(last) = pattern.rsplit_once('*').map(|(_, last)| last) else {
        return rest.is_empty();
    };
    let middle: Vec<&str> = parts.collect();
    for part in &middle[..middle.len() - 1] {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Where a registration stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RegistrationStatus {
    /// A hub is being chosen, or the device moved.
    Assigning,
    /// The device is on its hub.
    Assigned,
    /// It could not be.
    Failed,
    /// The enrollment is disabled. Never stored.
    Disabled,
}

impl RegistrationStatus {
    /// Spelling on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            RegistrationStatus::Assigning => "assigning",
            RegistrationStatus::Assigned => "assigned",
            RegistrationStatus::Failed => "failed",
            RegistrationStatus::Disabled => "disabled",
        }
    }
}

/// How an assignment came about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Substatus {
    /// The device was not on a hub, or stayed where it was.
    InitialAssignment,
    /// It moved, with its twin.
    DeviceDataMigrated,
    /// Its twin began anew.
    DeviceDataReset,
}

impl Substatus {
    /// Spelling on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Substatus::InitialAssignment => "initialAssignment",
            Substatus::DeviceDataMigrated => "deviceDataMigrated",
            Substatus::DeviceDataReset => "deviceDataReset",
        }
    }
}

/// What happens to the twin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TwinPlan {
    /// A twin that is there stays; a new one begins with the initial twin.
    Keep,
    /// It begins anew with the initial twin.
    Reset,
    /// It comes from the hub that the device leaves.
    Migrate,
}

/// What was decided for a registration under way: stored before anything is done, so that whoever goes on after a crash
/// does the same.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Hub the device goes to, as in [`Registration::hub`].
    pub target: String,
    /// Hub it leaves.
    pub source: Option<String>,
    /// Its twin.
    pub twin: TwinPlan,
    /// What a new twin begins with; a webhook may have chosen it.
    pub initial_twin: Option<InitialTwin>,
    /// For the device, from a webhook.
    pub payload: Option<Value>,
}

/// The state of one device's registration.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Registration {
    /// As the device first gave it.
    pub registration_id: RegistrationId,
    /// The group it came through; `None` for an individual enrollment.
    pub group_id: Option<RegistrationId>,
    /// The operation that made this state.
    pub operation_id: String,
    /// Where it stands.
    pub status: RegistrationStatus,
    /// How it got there.
    pub substatus: Option<Substatus>,
    /// Hub of the device: a host name, or [`OWN_HUB`].
    pub hub: Option<String>,
    /// Its id there.
    pub device_id: Option<String>,
    /// Why it failed: number and text.
    pub failure: Option<(u32, String)>,
    /// For the device, from a webhook.
    pub payload: Option<Value>,
    /// The certificate by which the device proved itself; `None` for keys.
    pub certificate: Option<CertificateInfo>,
    /// While it is under way.
    pub plan: Option<Plan>,
    /// The device's key on its hub, base64, readable by the device's TPM alone. Made for each answer to the device, never
    /// stored.
    #[serde(skip)]
    pub authentication_key: Option<String>,
    /// First registration.
    pub created_at: Timestamp,
    /// Last change.
    pub updated_at: Timestamp,
    /// As in [`Enrollment::version`].
    pub version: u64,
}

/// A hub that devices may be assigned to.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct LinkedHub {
    /// Host name, lower case, or [`OWN_HUB`].
    pub host: String,
    /// Share of hashed allocation.
    pub weight: u32,
    /// Whether enrollments that name no hubs may choose it.
    pub apply_allocation: bool,
    /// For the lowest-latency policy.
    pub latency_ms: Option<u32>,
    /// Policy of the hub; `None` for the own one.
    pub policy: Option<(String, SymmetricKey)>,
    /// Port of its HTTPS.
    pub https_port: u16,
    /// PEM of the authority of its certificate; the system's roots when `None`.
    pub ca_certificate: Option<String>,
}

impl LinkedHub {
    /// The hub of this process, as it is linked by default.
    #[must_use]
    pub fn own() -> Self {
        LinkedHub {
            host: OWN_HUB.to_owned(),
            weight: 1,
            apply_allocation: true,
            latency_ms: None,
            policy: None,
            https_port: 443,
            ca_certificate: None,
        }
    }

    /// Whether it is the hub of this process.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.host == OWN_HUB
    }
}

/// A set of rights at the provisioning service (rest.md 2.2). A right to write implies the right to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProvisioningRights(u8);

impl ProvisioningRights {
    /// No right.
    pub const NONE: Self = Self(0);
    /// Settings of the service: linked hubs.
    pub const SERVICE_CONFIG: Self = Self(1);
    /// Read enrollments.
    pub const ENROLLMENT_READ: Self = Self(2);
    /// Change enrollments, and see their keys.
    pub const ENROLLMENT_WRITE: Self = Self(6);
    /// Read registrations.
    pub const REGISTRATION_STATUS_READ: Self = Self(8);
    /// Delete registrations.
    pub const REGISTRATION_STATUS_WRITE: Self = Self(24);
    /// Every right.
    pub const ALL: Self = Self(31);

    const NAMES: &'static [(Self, &'static str)] = &[
        (Self::SERVICE_CONFIG, "ServiceConfig"),
        (Self::ENROLLMENT_READ, "EnrollmentRead"),
        (Self::ENROLLMENT_WRITE, "EnrollmentWrite"),
        (Self::REGISTRATION_STATUS_READ, "RegistrationStatusRead"),
        (Self::REGISTRATION_STATUS_WRITE, "RegistrationStatusWrite"),
    ];

    /// The union of both sets.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every right of `needed` is held.
    #[must_use]
    pub const fn allows(self, needed: Self) -> bool {
        self.0 & needed.0 == needed.0
    }

    /// The names, joined by comma and space.
    #[must_use]
    pub fn names(self) -> String {
        let held = Self::NAMES.iter().filter(|(right, _)| self.allows(*right));
        held.map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
    }

    /// Parses names separated by commas, without regard to case and spaces; `None` on an unknown name.
    #[must_use]
    pub fn parse(names: &str) -> Option<Self> {
        let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
        names
            .map(|name| {
                Self::NAMES
                    .iter()
                    .find(|(_, known)| known.eq_ignore_ascii_case(name))
            })
            .try_fold(Self::NONE, |rights, found| Some(rights.union(found?.0)))
    }
}

/// A named pair of keys with rights at the provisioning service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProvisioningPolicy {
    /// Name, 1 to 64 characters of letters, digits and `_ - @ .`.
    pub name: String,
    /// First key.
    pub primary_key: SymmetricKey,
    /// Second key, for rolling.
    pub secondary_key: SymmetricKey,
    /// What the holder may do.
    pub rights: ProvisioningRights,
}

/// The policy a new provisioning service starts with.
pub const OWNER_POLICY: &str = "provisioningserviceowner";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_lists_let_in_whom_they_name() {
        let list = |allow: &[&str], deny: &[&str]| AccessList {
            allow: allow.iter().map(|text| (*text).to_owned()).collect(),
            deny: deny.iter().map(|text| (*text).to_owned()).collect(),
        };
        let id = |text: &str| RegistrationId::parse(text).unwrap();
        for (allow, deny, who, expected) in [
            (&[][..], &[][..], "a", true),
            (&["a"], &[], "A", true),
            (&["a"], &[], "ab", false),
            (&["press-*"], &[], "Press-4", true),
            (&["press-*"], &[], "press-", true),
            (&["press-*"], &[], "pres", false),
            (&["*-4", "x"], &[], "press-4", true),
            (&["p*s*4"], &[], "press-4", true),
            (&["p*s*4"], &[], "pre-4", false),
            (&["ab*b"], &[], "ab", false),
            (&["*"], &["press-4"], "press-4", false),
            (&[], &["press-4"], "press-5", true),
            (&[], &["*"], "x", false),
        ] {
            assert_eq!(
                list(allow, deny).admits(&id(who)),
                expected,
                "{allow:?} {deny:?} {who}"
            );
        }
        assert!(list(&["a b"], &[]).check().is_err());
        assert!(list(&[], &[""]).check().is_err());
        assert!(list(&["a*"; ACCESS_LIST_MAX + 1], &[]).check().is_err());
        assert!(list(&["a:1_b.*"], &["-"]).check().is_ok());
    }

    #[test]
    fn registration_ids_are_checked_and_compared_without_case() {
        for good in ["a", "SN-007.x_y:z", "a-", &"x".repeat(128)] {
            assert!(RegistrationId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "a.", "a b", "a/b", "ä", "a+b", &"x".repeat(129)] {
            assert!(RegistrationId::parse(bad).is_err(), "{bad}");
        }
        let id = RegistrationId::parse("Dev-1").expect("an id");
        assert_eq!(id, RegistrationId::parse("dEV-1").expect("an id"));
        assert_eq!((id.as_str(), id.key().as_str()), ("Dev-1", "dev-1"));
    }

    #[test]
    fn rights_round_trip() {
        let all = ProvisioningRights::ALL;
        assert_eq!(ProvisioningRights::parse(&all.names()), Some(all));
        assert!(ProvisioningRights::ENROLLMENT_WRITE.allows(ProvisioningRights::ENROLLMENT_READ));
        assert!(!ProvisioningRights::ENROLLMENT_READ.allows(ProvisioningRights::ENROLLMENT_WRITE));
        assert_eq!(ProvisioningRights::parse("enrollmentwrite, x"), None);
    }
}
