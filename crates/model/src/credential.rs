//! Credentials: symmetric keys, shared access signatures, certificate thumbprints.
//!
//! A shared access signature is verified over the `sr` text exactly as it stands in the token (clients.md
//! section 5): decoding and encoding it again breaks most SDKs.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use ring::hmac;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroize;

use crate::time::Timestamp;

/// A symmetric key, kept in its base64 form. Never printed by `Debug`.
#[derive(Clone)]
pub struct SymmetricKey(Box<str>);

/// Why a text is not a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyError {
    /// Not base64.
    #[error("the key is not base64")]
    Base64,
    /// Decoded length outside 16 to 64 bytes.
    #[error("the key must have 16 to 64 bytes, base64-encoded")]
    Length,
}

impl SymmetricKey {
    /// Decoded bytes of generated keys.
    const GENERATED_BYTES: usize = 32;

    /// A new random key of 32 bytes.
    ///
    /// # Panics
    /// When the operating system has no random source.
    #[must_use]
    #[allow(clippy::expect_used, reason = "a hub that cannot make keys must not go on")]
    pub fn generate() -> Self {
        let mut bytes = [0u8; Self::GENERATED_BYTES];
        getrandom::fill(&mut bytes).expect("the operating system's random source works");
        let key = SymmetricKey(STANDARD.encode(bytes).into());
        bytes.zeroize();
        key
    }

    /// Takes a base64 text of 16 to 64 bytes.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let bytes = STANDARD.decode(text).map_err(|_| KeyError::Base64)?;
        if (16..=64).contains(&bytes.len()) {
            Ok(SymmetricKey(text.into()))
        } else {
            Err(KeyError::Length)
        }
    }

    /// The base64 text. A secret: for connection strings and the registry API only.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// HMAC-SHA256 of `parts` one after the other.
    #[must_use]
    pub fn sign(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.hmac_key());
        for part in parts {
            context.update(part);
        }
        let mut signature = [0u8; 32];
        signature.copy_from_slice(context.sign().as_ref());
        signature
    }

    /// The key of a device in an enrollment group that has this key: HMAC-SHA256 of the registration id (languages.md
    /// 6.4).
    #[must_use]
    pub fn derive(&self, registration_id: &str) -> SymmetricKey {
        SymmetricKey(STANDARD.encode(self.sign(&[registration_id.as_bytes()])).into())
    }

    /// What tells it apart from other keys.
    #[must_use]
    pub fn fingerprint(&self) -> KeyFingerprint {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.sign(&[b"fingerprint"])[..16]);
        KeyFingerprint(bytes)
    }

    fn hmac_key(&self) -> hmac::Key {
        // A stored key always decodes: every constructor checked it.
        let mut bytes = STANDARD.decode(self.0.as_bytes()).unwrap_or_default();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &bytes);
        bytes.zeroize();
        key
    }
}

/// Tells keys apart without being one: for whoever must notice that a key was replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyFingerprint([u8; 16]);

impl Drop for SymmetricKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PartialEq for SymmetricKey {
    /// Constant time in the content.
    fn eq(&self, other: &Self) -> bool {
        constant_time_eq(self.0.as_bytes(), other.0.as_bytes())
    }
}

impl Eq for SymmetricKey {}

impl fmt::Debug for SymmetricKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SymmetricKey(…)")
    }
}

impl Serialize for SymmetricKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SymmetricKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        SymmetricKey::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Compares in a time that depends on the lengths only.
#[must_use]
pub fn constant_time_eq(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len() && left.iter().zip(right).fold(0u8, |acc, (a, b)| acc | (a ^ b)) == 0
}

/// SHA-1 or SHA-256 fingerprint of a certificate, upper-case hex without separators.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Thumbprint(Box<str>);

impl Thumbprint {
    /// Takes 40 or 64 hex digits, with or without colons and spaces; `None` otherwise.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex: String = text
            .chars()
            .filter(|c| !matches!(c, ':' | ' '))
            .map(|c| c.to_ascii_uppercase())
            .collect();
        let fits = matches!(hex.len(), 40 | 64) && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        fits.then(|| Thumbprint(hex.into()))
    }

    /// Upper-case hex.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the DER certificate has this fingerprint.
    #[must_use]
    pub fn matches(&self, certificate_der: &[u8]) -> bool {
        let algorithm = if self.0.len() == 40 {
            &ring::digest::SHA1_FOR_LEGACY_USE_ONLY
        } else {
            &ring::digest::SHA256
        };
        let digest = ring::digest::digest(algorithm, certificate_der);
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        constant_time_eq(hex.as_bytes(), self.0.as_bytes())
    }
}

/// Why a text is not a shared access signature.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SasParseError {
    /// The scheme word is missing.
    #[error("the token does not start with `SharedAccessSignature `")]
    Scheme,
    /// A needed field is missing.
    #[error("the token lacks the field `{0}`")]
    Missing(&'static str),
    /// A field is not what it should be.
    #[error("the token's field `{0}` is malformed")]
    Malformed(&'static str),
}

/// A parsed shared access signature (rest.md 2.1), borrowing the token's text.
#[derive(Clone, PartialEq, Eq)]
pub struct SasToken<'a> {
    /// `sr` as it stands in the token; this is what was signed.
    raw_resource: &'a str,
    /// `sr` decoded.
    resource: Cow<'a, str>,
    signature: Vec<u8>,
    raw_expiry: &'a str,
    expiry: Timestamp,
    policy: Option<Cow<'a, str>>,
}

impl<'a> SasToken<'a> {
    /// The scheme word and its space.
    pub const SCHEME: &'static str = "SharedAccessSignature ";

    /// Parses `SharedAccessSignature sr=…&sig=…&se=…[&skn=…]` in any order of fields.
    ///
    /// # Errors
    /// [`SasParseError`].
    pub fn parse(token: &'a str) -> Result<Self, SasParseError> {
        let fields = token.strip_prefix(Self::SCHEME).ok_or(SasParseError::Scheme)?;
        let (mut sr, mut sig, mut se, mut skn) = (None, None, None, None);
        for field in fields.split('&') {
            let Some((name, value)) = field.split_once('=') else {
                continue;
            };
            let slot = match name {
                n if n.eq_ignore_ascii_case("sr") => &mut sr,
                n if n.eq_ignore_ascii_case("sig") => &mut sig,
                n if n.eq_ignore_ascii_case("se") => &mut se,
                n if n.eq_ignore_ascii_case("skn") => &mut skn,
                _ => continue,
            };
            slot.get_or_insert(value);
        }
        let raw_resource = sr.ok_or(SasParseError::Missing("sr"))?;
        let raw_expiry = se.ok_or(SasParseError::Missing("se"))?;
        let signature_text =
            decode(sig.ok_or(SasParseError::Missing("sig"))?).ok_or(SasParseError::Malformed("sig"))?;
        let signature = STANDARD
            .decode(signature_text.as_bytes())
            .map_err(|_| SasParseError::Malformed("sig"))?;
        let seconds = raw_expiry
            .parse::<i64>()
            .map_err(|_| SasParseError::Malformed("se"))?;
        let policy = match skn {
            None | Some("") => None,
            Some(name) => Some(decode(name).ok_or(SasParseError::Malformed("skn"))?),
        };
        Ok(SasToken {
            raw_resource,
            resource: decode_resource(raw_resource).ok_or(SasParseError::Malformed("sr"))?,
            signature,
            raw_expiry,
            expiry: Timestamp::from_seconds(seconds),
            policy,
        })
    }

    /// The resource, decoded: `host[/devices/{d}[/modules/{m}]]`, case as sent.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// When the token ends.
    #[must_use]
    pub const fn expiry(&self) -> Timestamp {
        self.expiry
    }

    /// The policy that signed it; `None` for a device or module key.
    #[must_use]
    pub fn policy(&self) -> Option<&str> {
        self.policy.as_deref()
    }

    /// Whether `key` signed the token in the way of Event Hubs clients, which take the base64 text itself for the secret;
    /// constant time in the signature.
    #[must_use]
    pub fn verify_as_text(&self, key: &SymmetricKey) -> bool {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key.0.as_bytes()));
        for part in [self.raw_resource.as_bytes(), b"\n", self.raw_expiry.as_bytes()] {
            context.update(part);
        }
        constant_time_eq(context.sign().as_ref(), &self.signature)
    }

    /// Whether `key` signed the token; constant time in the signature.
    #[must_use]
    pub fn verify(&self, key: &SymmetricKey) -> bool {
        let expected = key.sign(&[self.raw_resource.as_bytes(), b"\n", self.raw_expiry.as_bytes()]);
        constant_time_eq(&expected, &self.signature)
    }

    /// Whether the token's resource covers `path` (`devices/d1/modules/m1`) on one of `hosts`.
    ///
    /// Compared segment by segment as a prefix: `host/devices/a` covers `host/devices/a/modules/m` and not
    /// `host/devices/ab`. Case is ignored, since two SDKs lower-case the whole URI; the identity used for the key
    /// look-up is the exact one of the request.
    #[must_use]
    pub fn covers<S: AsRef<str>>(&self, hosts: &[S], path: &str) -> bool {
        let mut scope = self.resource.trim_end_matches('/').split('/');
        let host = scope.next().unwrap_or_default();
        if !hosts
            .iter()
            .any(|known| known.as_ref().eq_ignore_ascii_case(host))
        {
            return false;
        }
        let mut wanted = path.trim_matches('/').split('/');
        scope.all(|segment| {
            wanted
                .next()
                .is_some_and(|other| other.to_lowercase() == segment.to_lowercase())
        })
    }
}

impl fmt::Debug for SasToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SasToken")
            .field("resource", &self.resource)
            .field("expiry", &self.expiry)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// Makes a token for `resource` (not yet encoded), signed with `key`, for `policy` or an identity's own key.
#[must_use]
pub fn sign_sas(resource: &str, key: &SymmetricKey, expiry: Timestamp, policy: Option<&str>) -> String {
    let resource = utf8_percent_encode(resource, NON_ALPHANUMERIC).to_string();
    let expiry = expiry.as_seconds().to_string();
    let signature = STANDARD.encode(key.sign(&[resource.as_bytes(), b"\n", expiry.as_bytes()]));
    let signature = utf8_percent_encode(&signature, NON_ALPHANUMERIC);
    let mut token = format!("{}sr={resource}&sig={signature}&se={expiry}", SasToken::SCHEME);
    if let Some(policy) = policy {
        token.push_str("&skn=");
        token.extend(utf8_percent_encode(policy, NON_ALPHANUMERIC));
    }
    token
}

fn decode(text: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(text).decode_utf8().ok()
}

/// As [`decode`]; `+` in `sr` is a space for the SDKs that use form encoding, but ids may hold a plus sign that
/// others leave as it is. Ids cannot hold spaces, so a plus sign stays one.
fn decode_resource(text: &str) -> Option<Cow<'_, str>> {
    decode(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SymmetricKey {
        SymmetricKey::parse("MDEyMzQ1Njc4OWFiY2RlZg==").expect("a key")
    }

    #[test]
    fn event_hubs_clients_sign_with_the_text_of_the_key() {
        // As azure-eventhub 5.15.1 makes it: hmac(key.encode("utf-8"), quote_plus(uri) + "\n" + expiry).
        let token = SasToken::parse(
            "SharedAccessSignature sr=sb%3A%2F%2Fhub.test%2Fevents&sig=qaDkbteHmXo6zjweZqJTagJFMLIbn%2BPRebASR1dgTik%3D&se=1900000000&skn=reader",
        )
        .expect("a token");
        let key = SymmetricKey::parse("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").expect("a key");
        assert!(token.verify_as_text(&key));
        assert!(!token.verify(&key));
        let other = SymmetricKey::parse("AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").expect("a key");
        assert!(!token.verify_as_text(&other));
    }

    #[test]
    fn signs_and_verifies() {
        let token = sign_sas(
            "hub.test/devices/d 1",
            &key(),
            Timestamp::from_seconds(2_000_000_000),
            None,
        );
        let parsed = SasToken::parse(&token).expect("a token");
        assert!(parsed.verify(&key()));
        assert!(!parsed.verify(&SymmetricKey::generate()));
        assert_eq!(parsed.resource(), "hub.test/devices/d 1");
        assert_eq!(parsed.policy(), None);
        let forged = token.replace("2000000000", "2000000001");
        assert!(!SasToken::parse(&forged).expect("a token").verify(&key()));
    }

    #[test]
    fn derives_the_documented_device_key() {
        let group =
            "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw==";
        let group = SymmetricKey::parse(group).expect("a key");
        let derived = group.derive("sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6");
        assert_eq!(derived.reveal(), "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc=");
    }

    #[test]
    fn signs_what_was_sent() {
        // Lower-case hex, unencoded host, other field order: the signed text is the raw `sr`.
        for sr in [
            "hub.test%2fdevices%2fd1",
            "HUB.test/devices/d1",
            "hub.test%2Fdevices%2Fd1",
        ] {
            let signature = STANDARD.encode(key().sign(&[sr.as_bytes(), b"\n1900000000"]));
            let signature = utf8_percent_encode(&signature, NON_ALPHANUMERIC);
            let token = format!("SharedAccessSignature skn=&se=1900000000&sig={signature}&sr={sr}");
            let parsed = SasToken::parse(&token).expect("a token");
            assert!(parsed.verify(&key()), "{sr}");
            assert!(parsed.covers(&["hub.test"], "devices/d1"));
            assert_eq!(parsed.policy(), None);
        }
    }

    #[test]
    fn scope_is_a_segment_prefix() {
        let token = sign_sas("Hub.test/devices/Ab", &key(), Timestamp::MAX, None);
        let parsed = SasToken::parse(&token).expect("a token");
        assert!(parsed.covers(&["hub.test"], "devices/Ab"));
        assert!(parsed.covers(&["hub.test"], "devices/Ab/modules/m"));
        assert!(parsed.covers(&["hub.test"], "devices/ab"));
        assert!(!parsed.covers(&["hub.test"], "devices/Abc"));
        assert!(!parsed.covers(&["hub.test"], "devices"));
        assert!(!parsed.covers(&["other.test"], "devices/Ab"));
    }

    #[test]
    fn bad_tokens_are_named() {
        assert_eq!(SasToken::parse("Bearer x"), Err(SasParseError::Scheme));
        assert_eq!(
            SasToken::parse("SharedAccessSignature sr=a&se=1"),
            Err(SasParseError::Missing("sig"))
        );
        assert_eq!(
            SasToken::parse("SharedAccessSignature sr=a&sig=AAAA&se=soon"),
            Err(SasParseError::Malformed("se"))
        );
    }

    #[test]
    fn thumbprints_are_normalised_and_matched() {
        let der = b"not really a certificate";
        let digest = ring::digest::digest(&ring::digest::SHA256, der);
        let hex: Vec<String> = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let thumbprint = Thumbprint::parse(&hex.join(":")).expect("a thumbprint");
        assert!(thumbprint.matches(der));
        assert!(!thumbprint.matches(b"other"));
        assert!(Thumbprint::parse("12").is_none());
        assert!(Thumbprint::parse(&"g".repeat(40)).is_none());
    }
}
