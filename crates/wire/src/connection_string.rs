//! Connection strings (REST contract, section 2.5).
//!
//! | Form | Keys |
//! |---|---|
//! | service | `HostName`, `SharedAccessKeyName` and `SharedAccessKey`, or `SharedAccessSignature` |
//! | device | `HostName`, `DeviceId`, and `SharedAccessKey`, `SharedAccessSignature` or `x509=true` |
//! | module | device form and `ModuleId` |
//! | Event Hubs | `Endpoint=sb://{host}/`, `SharedAccessKeyName`, `SharedAccessKey`, optionally `EntityPath` |
//!
//! Device and module forms may have a `GatewayHostName`. Reading ignores the case and order of keys; writing uses
//! the exact case and order that the SDKs want.

use std::fmt;

use holdfast_model::credential::{KeyError, SymmetricKey};

/// A parsed connection string. `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectionString {
    /// Host name, with `:port` when one was given.
    pub host: String,
    /// Host to connect to instead of `host`, for devices behind a gateway.
    pub gateway_host: Option<String>,
    /// Who connects.
    pub party: Party,
    /// How it proves itself.
    pub credential: Credential,
}

/// Who a connection string is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Party {
    /// A back end of the hub or of the provisioning service.
    Service,
    /// A device.
    Device {
        /// Its id.
        device_id: String,
    },
    /// A module.
    Module {
        /// Device it belongs to.
        device_id: String,
        /// Its id.
        module_id: String,
    },
    /// A reader of the Event Hubs-compatible endpoint.
    EventHubs {
        /// Event hub name.
        entity_path: Option<String>,
    },
}

/// The secret of a connection string.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// Key of a shared access policy.
    Policy {
        /// Policy name.
        name: String,
        /// Key.
        key: SymmetricKey,
    },
    /// Key of the device or module itself.
    IdentityKey(SymmetricKey),
    /// A ready-made token.
    Signature(String),
    /// A client certificate, given elsewhere.
    X509,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credential::Policy { name, .. } => write!(f, "Policy({name:?}, …)"),
            Credential::IdentityKey(_) => f.write_str("IdentityKey(…)"),
            Credential::Signature(_) => f.write_str("Signature(…)"),
            Credential::X509 => f.write_str("X509"),
        }
    }
}

/// Why a text is not a connection string. Never repeats a value, since that may be a key.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConnectionStringError {
    /// A part is not `key=value`.
    #[error("part {0} of the connection string is not of the form `Key=value`")]
    Pair(usize),
    /// A key that no form has.
    #[error("the connection string has the unknown key `{0}`")]
    UnknownKey(String),
    /// A key stands twice.
    #[error("the connection string has the key `{0}` twice")]
    Repeated(&'static str),
    /// A needed key is missing.
    #[error("the connection string lacks `{0}`")]
    Missing(&'static str),
    /// A key has an unusable value.
    #[error("the value of `{0}` in the connection string is malformed")]
    Malformed(&'static str),
    /// The key is not usable.
    #[error("the `SharedAccessKey` of the connection string is unusable")]
    Key(#[source] KeyError),
    /// Keys that exclude each other.
    #[error("the connection string has both `{0}` and `{1}`")]
    Conflict(&'static str, &'static str),
}

const HOST_NAME: &str = "HostName";
const ENDPOINT: &str = "Endpoint";
const GATEWAY: &str = "GatewayHostName";
const DEVICE_ID: &str = "DeviceId";
const MODULE_ID: &str = "ModuleId";
const KEY_NAME: &str = "SharedAccessKeyName";
const KEY: &str = "SharedAccessKey";
const SIGNATURE: &str = "SharedAccessSignature";
const X509: &str = "x509";
const ENTITY_PATH: &str = "EntityPath";
const KEYS: [&str; 10] = [
    HOST_NAME,
    ENDPOINT,
    GATEWAY,
    DEVICE_ID,
    MODULE_ID,
    KEY_NAME,
    KEY,
    SIGNATURE,
    X509,
    ENTITY_PATH,
];

/// The values by key.
struct Parts<'a>([Option<&'a str>; KEYS.len()]);

impl<'a> Parts<'a> {
    fn read(text: &'a str) -> Result<Self, ConnectionStringError> {
        let mut values = [None; KEYS.len()];
        for (index, part) in text.trim().trim_end_matches(';').split(';').enumerate() {
            let (key, value) = part
                .split_once('=')
                .ok_or(ConnectionStringError::Pair(index + 1))?;
            let (key, value) = (key.trim(), value.trim());
            let Some(known) = KEYS.iter().position(|known| known.eq_ignore_ascii_case(key)) else {
                return Err(ConnectionStringError::UnknownKey(key.to_owned()));
            };
            if values[known].is_some() {
                return Err(ConnectionStringError::Repeated(KEYS[known]));
            }
            if value.is_empty() {
                return Err(ConnectionStringError::Malformed(KEYS[known]));
            }
            values[known] = Some(value);
        }
        Ok(Parts(values))
    }

    fn get(&self, key: &'static str) -> Option<&'a str> {
        let index = KEYS.iter().position(|known| *known == key)?;
        self.0[index]
    }

    fn need(&self, key: &'static str) -> Result<&'a str, ConnectionStringError> {
        self.get(key).ok_or(ConnectionStringError::Missing(key))
    }

    fn exclude(&self, one: &'static str, others: &[&'static str]) -> Result<(), ConnectionStringError> {
        match others.iter().find(|other| self.get(other).is_some()) {
            Some(other) if self.get(one).is_some() => Err(ConnectionStringError::Conflict(one, other)),
            _ => Ok(()),
        }
    }

    fn key(&self) -> Result<SymmetricKey, ConnectionStringError> {
        SymmetricKey::parse(self.need(KEY)?).map_err(ConnectionStringError::Key)
    }

    fn policy(&self) -> Result<Credential, ConnectionStringError> {
        Ok(Credential::Policy {
            name: self.need(KEY_NAME)?.to_owned(),
            key: self.key()?,
        })
    }
}

impl ConnectionString {
    /// Parses any of the forms. A trailing semicolon and spaces around keys and values are tolerated.
    ///
    /// # Errors
    /// [`ConnectionStringError`].
    ///
    /// ```
    /// use holdfast_wire::connection_string::{ConnectionString, Party};
    /// let text = "HostName=hub.test;DeviceId=d1;SharedAccessKey=MDEyMzQ1Njc4OWFiY2RlZg==";
    /// let parsed = ConnectionString::parse(text)?;
    /// assert_eq!(parsed.party, Party::Device { device_id: "d1".into() });
    /// assert_eq!(parsed.reveal(), text);
    /// # Ok::<(), holdfast_wire::connection_string::ConnectionStringError>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, ConnectionStringError> {
        let parts = Parts::read(text)?;
        parts.exclude(ENDPOINT, &[HOST_NAME, DEVICE_ID, MODULE_ID, GATEWAY, X509])?;
        parts.exclude(KEY, &[SIGNATURE, X509])?;
        parts.exclude(SIGNATURE, &[X509])?;
        if parts.get(ENDPOINT).is_some() {
            return Self::event_hubs(&parts);
        }
        let host = parts.need(HOST_NAME)?.to_owned();
        let gateway_host = parts.get(GATEWAY).map(str::to_owned);
        let party = match (parts.get(DEVICE_ID), parts.get(MODULE_ID)) {
            (None, None) => Party::Service,
            (None, Some(_)) => return Err(ConnectionStringError::Missing(DEVICE_ID)),
            (Some(device_id), None) => Party::Device {
                device_id: device_id.to_owned(),
            },
            (Some(device_id), Some(module_id)) => Party::Module {
                device_id: device_id.to_owned(),
                module_id: module_id.to_owned(),
            },
        };
        let credential = if let Some(signature) = parts.get(SIGNATURE) {
            Credential::Signature(signature.to_owned())
        } else if party == Party::Service || parts.get(KEY_NAME).is_some() {
            parts.policy()?
        } else if let Some(x509) = parts.get(X509) {
            if !x509.eq_ignore_ascii_case("true") {
                return Err(ConnectionStringError::Malformed(X509));
            }
            Credential::X509
        } else {
            Credential::IdentityKey(parts.key()?)
        };
        Ok(ConnectionString {
            host,
            gateway_host,
            party,
            credential,
        })
    }

    fn event_hubs(parts: &Parts<'_>) -> Result<Self, ConnectionStringError> {
        let endpoint = parts.need(ENDPOINT)?;
        let scheme = endpoint.get(..5).filter(|s| s.eq_ignore_ascii_case("sb://"));
        let host = scheme.map(|_| endpoint[5..].trim_end_matches('/'));
        let Some(host) = host.filter(|host| !host.is_empty() && !host.contains('/')) else {
            return Err(ConnectionStringError::Malformed(ENDPOINT));
        };
        let credential = match parts.get(SIGNATURE) {
            Some(signature) => Credential::Signature(signature.to_owned()),
            None => parts.policy()?,
        };
        Ok(ConnectionString {
            host: host.to_owned(),
            gateway_host: None,
            party: Party::EventHubs {
                entity_path: parts.get(ENTITY_PATH).map(str::to_owned),
            },
            credential,
        })
    }

    /// The text form, in the case and order that the SDKs want. It holds the secret.
    #[must_use]
    pub fn reveal(&self) -> String {
        let mut text = match &self.party {
            Party::EventHubs { .. } => format!("{ENDPOINT}=sb://{}/", self.host),
            _ => format!("{HOST_NAME}={}", self.host),
        };
        let mut add = |key: &str, value: &str| {
            text.extend([";", key, "=", value]);
        };
        if let Party::Device { device_id } | Party::Module { device_id, .. } = &self.party {
            add(DEVICE_ID, device_id);
        }
        if let Party::Module { module_id, .. } = &self.party {
            add(MODULE_ID, module_id);
        }
        match &self.credential {
            Credential::Policy { name, key } => {
                add(KEY_NAME, name);
                add(KEY, key.reveal());
            }
            Credential::IdentityKey(key) => add(KEY, key.reveal()),
            Credential::Signature(signature) => add(SIGNATURE, signature),
            Credential::X509 => add(X509, "true"),
        }
        if let Some(gateway_host) = &self.gateway_host {
            add(GATEWAY, gateway_host);
        }
        if let Party::EventHubs {
            entity_path: Some(path),
        } = &self.party
        {
            add(ENTITY_PATH, path);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: &str = "MDEyMzQ1Njc4OWFiY2RlZg==";

    #[test]
    fn every_form_round_trips() {
        for text in [
            format!("HostName=h;SharedAccessKeyName=iothubowner;SharedAccessKey={K}"),
            "HostName=h;SharedAccessSignature=SharedAccessSignature sr=h&sig=a%3D&se=1&skn=p".to_owned(),
            format!("HostName=h;DeviceId=d=1;SharedAccessKey={K}"),
            format!("HostName=h;DeviceId=d;ModuleId=$edgeHub;SharedAccessKey={K};GatewayHostName=g"),
            "HostName=h;DeviceId=d;x509=true".to_owned(),
            format!("HostName=h;DeviceId=d;SharedAccessKeyName=device;SharedAccessKey={K}"),
            format!("Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey={K};EntityPath=messages/events"),
            format!("Endpoint=sb://h:5671/;SharedAccessKeyName=n;SharedAccessKey={K}"),
        ] {
            let parsed = ConnectionString::parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(parsed.reveal(), text);
            assert!(!format!("{parsed:?}").contains(K), "{parsed:?}");
        }
    }

    #[test]
    fn order_and_case_are_free() {
        let text = format!(" sharedaccesskey={K} ; MODULEID=m;deviceid=d;HOSTNAME=h:443; ");
        // The space before the end is a part of its own only when something stands in it.
        let parsed = ConnectionString::parse(text.trim().trim_end_matches(';')).expect("a string");
        assert_eq!(parsed.host, "h:443");
        assert_eq!(
            parsed.party,
            Party::Module {
                device_id: "d".into(),
                module_id: "m".into()
            }
        );
        assert!(ConnectionString::parse(&format!("HostName=h;DeviceId=d;SharedAccessKey={K};")).is_ok());
    }

    #[test]
    fn faults_are_named() {
        use ConnectionStringError as E;
        let key = format!("SharedAccessKey={K}");
        for (text, expected) in [
            ("", E::Pair(1)),
            ("HostName=h;what", E::Pair(2)),
            ("HostName=h;Colour=red", E::UnknownKey("Colour".into())),
            ("HostName=h;hostname=i", E::Repeated("HostName")),
            ("DeviceId=d", E::Missing("HostName")),
            ("HostName=h", E::Missing("SharedAccessKeyName")),
            ("HostName=h;SharedAccessKeyName=n", E::Missing("SharedAccessKey")),
            ("HostName=h;ModuleId=m", E::Missing("DeviceId")),
            ("HostName=h;DeviceId=", E::Malformed("DeviceId")),
            ("HostName=h;DeviceId=d;x509=no", E::Malformed("x509")),
            (
                "HostName=h;DeviceId=d;SharedAccessKey=%%",
                E::Key(KeyError::Base64),
            ),
            ("Endpoint=h", E::Malformed("Endpoint")),
            ("Endpoint=sb:///", E::Malformed("Endpoint")),
            ("Endpoint=sb://h;HostName=h", E::Conflict("Endpoint", "HostName")),
            (
                &*format!("HostName=h;DeviceId=d;x509=true;{key}"),
                E::Conflict("SharedAccessKey", "x509"),
            ),
        ] {
            assert_eq!(ConnectionString::parse(text), Err(expected), "{text}");
        }
    }
}
