//! Member `authentication` of devices and modules.

use holdfast_model::Error;
use holdfast_model::credential::{SymmetricKey, Thumbprint};
use holdfast_model::registry::Authentication;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{invalid, read_any_case};

/// How an identity proves itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum AuthenticationTypeDto {
    /// Shared access signature.
    Sas,
    /// Certificate known by thumbprint.
    SelfSigned,
    /// Certificate of a known CA.
    CertificateAuthority,
    /// Not on its own.
    None,
}

impl AuthenticationTypeDto {
    const SPELLINGS: &'static [(&'static str, Self)] = &[
        ("sas", AuthenticationTypeDto::Sas),
        ("selfSigned", AuthenticationTypeDto::SelfSigned),
        (
            "certificateAuthority",
            AuthenticationTypeDto::CertificateAuthority,
        ),
        ("none", AuthenticationTypeDto::None),
    ];
}
read_any_case!(AuthenticationTypeDto);

/// Two symmetric keys, base64. `Debug` shows none.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SymmetricKeyDto {
    /// First key. In a request `null` and `""` ask for a generated one.
    pub primary_key: Option<String>,
    /// Second key.
    pub secondary_key: Option<String>,
}

impl std::fmt::Debug for SymmetricKeyDto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SymmetricKeyDto(…)")
    }
}

/// Two certificate fingerprints, SHA-1 or SHA-256 in hexadecimal.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct X509ThumbprintDto {
    /// First fingerprint.
    pub primary_thumbprint: Option<String>,
    /// Second fingerprint.
    pub secondary_thumbprint: Option<String>,
}

/// How an identity proves itself, with its keys or fingerprints. Answers always hold all three members.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthenticationDto {
    /// Kind; absent in a request: `selfSigned` when a fingerprint is given, else `sas`.
    #[serde(rename = "type")]
    pub kind: Option<AuthenticationTypeDto>,
    /// Keys, for `sas`.
    pub symmetric_key: Option<SymmetricKeyDto>,
    /// Fingerprints, for `selfSigned`.
    pub x509_thumbprint: Option<X509ThumbprintDto>,
}

/// What a request makes of an identity's authentication.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AuthenticationChange {
    /// `sas` without keys: the hub makes them.
    GenerateKeys,
    /// What was given.
    Set(Authentication),
}

impl AuthenticationChange {
    /// The authentication to store. Keys are generated on creation (`current` is `None`), or when the identity did
    /// not use keys so far; a replacement that names no keys keeps the present ones, so that no device in the field
    /// is locked out by an update of its status.
    #[must_use]
    pub fn resolve(self, current: Option<&Authentication>) -> Authentication {
        match (self, current) {
            (AuthenticationChange::Set(authentication), _) => authentication,
            (AuthenticationChange::GenerateKeys, Some(sas @ Authentication::Sas { .. })) => sas.clone(),
            (AuthenticationChange::GenerateKeys, _) => Authentication::generate_sas(),
        }
    }
}

/// A member that is `null`, absent or empty says nothing.
fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

impl AuthenticationDto {
    /// The answer's form of a stored authentication: all three members, `null` for what does not apply.
    #[must_use]
    pub fn from_model(authentication: &Authentication) -> Self {
        let (mut keys, mut thumbprints) = (SymmetricKeyDto::default(), X509ThumbprintDto::default());
        let kind = match authentication {
            Authentication::Sas {
                primary_key,
                secondary_key,
            } => {
                keys.primary_key = Some(primary_key.reveal().to_owned());
                keys.secondary_key = Some(secondary_key.reveal().to_owned());
                AuthenticationTypeDto::Sas
            }
            Authentication::SelfSigned {
                primary_thumbprint,
                secondary_thumbprint,
            } => {
                let text =
                    |thumbprint: &Option<Thumbprint>| thumbprint.as_ref().map(|t| t.as_str().to_owned());
                thumbprints.primary_thumbprint = text(primary_thumbprint);
                thumbprints.secondary_thumbprint = text(secondary_thumbprint);
                AuthenticationTypeDto::SelfSigned
            }
            Authentication::CertificateAuthority => AuthenticationTypeDto::CertificateAuthority,
            Authentication::None => AuthenticationTypeDto::None,
        };
        AuthenticationDto {
            kind: Some(kind),
            symmetric_key: Some(keys),
            x509_thumbprint: Some(thumbprints),
        }
    }

    /// What a request asks for (REST contract, section 5.1).
    ///
    /// # Errors
    /// [`holdfast_model::ErrorCode::ArgumentInvalid`]: one key without the other, a key that is not base64 of 16 to
    /// 64 bytes, `selfSigned` without a fingerprint, a fingerprint that is not 40 or 64 hexadecimal digits.
    pub fn change(&self) -> Result<AuthenticationChange, Error> {
        let no_thumbprints = X509ThumbprintDto::default();
        let thumbprints = self.x509_thumbprint.as_ref().unwrap_or(&no_thumbprints);
        let has_thumbprint = given(&thumbprints.primary_thumbprint)
            .or(given(&thumbprints.secondary_thumbprint))
            .is_some();
        let kind = self.kind.unwrap_or(if has_thumbprint {
            AuthenticationTypeDto::SelfSigned
        } else {
            AuthenticationTypeDto::Sas
        });
        match kind {
            AuthenticationTypeDto::Sas => self.sas_change(),
            AuthenticationTypeDto::SelfSigned if !has_thumbprint => {
                Err(invalid("authentication type selfSigned needs a thumbprint"))
            }
            AuthenticationTypeDto::SelfSigned => Ok(AuthenticationChange::Set(Authentication::SelfSigned {
                primary_thumbprint: thumbprint("primaryThumbprint", &thumbprints.primary_thumbprint)?,
                secondary_thumbprint: thumbprint("secondaryThumbprint", &thumbprints.secondary_thumbprint)?,
            })),
            AuthenticationTypeDto::CertificateAuthority => {
                Ok(AuthenticationChange::Set(Authentication::CertificateAuthority))
            }
            AuthenticationTypeDto::None => Ok(AuthenticationChange::Set(Authentication::None)),
        }
    }

    fn sas_change(&self) -> Result<AuthenticationChange, Error> {
        let no_keys = SymmetricKeyDto::default();
        let keys = self.symmetric_key.as_ref().unwrap_or(&no_keys);
        match (given(&keys.primary_key), given(&keys.secondary_key)) {
            (None, None) => Ok(AuthenticationChange::GenerateKeys),
            (Some(primary), Some(secondary)) => Ok(AuthenticationChange::Set(Authentication::Sas {
                primary_key: key("primaryKey", primary)?,
                secondary_key: key("secondaryKey", secondary)?,
            })),
            _ => Err(invalid(
                "primaryKey and secondaryKey must both be given, or neither to have them generated",
            )),
        }
    }
}

/// The text of the error names the member and never its value, which may be nearly a key.
fn key(member: &str, text: &str) -> Result<SymmetricKey, Error> {
    SymmetricKey::parse(text).map_err(|error| invalid(format!("{member}: {error}")))
}

fn thumbprint(member: &str, text: &Option<String>) -> Result<Option<Thumbprint>, Error> {
    match given(text) {
        None => Ok(None),
        Some(text) => match Thumbprint::parse(text) {
            Some(thumbprint) => Ok(Some(thumbprint)),
            None => Err(invalid(format!("{member} must have 40 or 64 hexadecimal digits"))),
        },
    }
}
