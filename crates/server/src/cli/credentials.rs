//! The credential flags of devices and modules, and the registry's JSON for them.

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use holdfast_program::failure::Failure;

/// How a device or module proves who it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Auth {
    /// Symmetric keys; the hub makes them unless they are given
    Sas,
    /// Certificates known by their thumbprints
    #[value(name = "x509-thumbprint", alias = "x509_thumbprint")]
    X509Thumbprint,
    /// Certificates issued by a known authority (see `holdfast ca`)
    #[value(name = "x509-ca", alias = "x509_ca")]
    X509Ca,
}

#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Credentials")]
pub(crate) struct CredentialArgs {
    /// Kind of credential; the default is sas, or x509-thumbprint when a thumbprint is given
    #[arg(long, value_enum)]
    auth: Option<Auth>,
    /// First key, base64 of 16 to 64 bytes
    #[arg(long, value_name = "KEY", requires = "secondary_key")]
    primary_key: Option<String>,
    /// Second key
    #[arg(long, value_name = "KEY", requires = "primary_key")]
    secondary_key: Option<String>,
    /// First thumbprint, SHA-1 or SHA-256 in hex
    #[arg(long, value_name = "HEX")]
    primary_thumbprint: Option<String>,
    /// Second thumbprint
    #[arg(long, value_name = "HEX")]
    secondary_thumbprint: Option<String>,
}

impl CredentialArgs {
    /// The member `authentication`; `None` when no flag was given.
    pub(crate) fn authentication(&self) -> anyhow::Result<Option<Value>> {
        let thumbprints = self.primary_thumbprint.is_some() || self.secondary_thumbprint.is_some();
        let keys = self.primary_key.is_some();
        if self.auth.is_none() && !thumbprints && !keys {
            return Ok(None);
        }
        let auth = self.auth.unwrap_or(if thumbprints {
            Auth::X509Thumbprint
        } else {
            Auth::Sas
        });
        if auth != Auth::X509Thumbprint && thumbprints {
            return Err(Failure::usage("thumbprints go with --auth x509-thumbprint").into());
        }
        if auth != Auth::Sas && keys {
            return Err(Failure::usage("keys go with --auth sas").into());
        }
        Ok(Some(match auth {
            Auth::Sas => json!({
                "type": "sas",
                "symmetricKey": { "primaryKey": self.primary_key, "secondaryKey": self.secondary_key },
            }),
            Auth::X509Thumbprint if !thumbprints => {
                return Err(
                    Failure::usage("--auth x509-thumbprint needs --primary-thumbprint")
                        .hint("openssl x509 -in cert.pem -noout -fingerprint -sha256")
                        .into(),
                );
            }
            Auth::X509Thumbprint => json!({
                "type": "selfSigned",
                "x509Thumbprint": {
                    "primaryThumbprint": self.primary_thumbprint.as_deref().map(bare_hex),
                    "secondaryThumbprint": self.secondary_thumbprint.as_deref().map(bare_hex),
                },
            }),
            Auth::X509Ca => json!({ "type": "certificateAuthority" }),
        }))
    }
}

/// openssl prints colons; the registry wants none.
fn bare_hex(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).collect()
}

/// Which key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum KeyName {
    /// The first key
    Primary,
    /// The second key
    Secondary,
    /// Both keys
    Both,
}

impl KeyName {
    /// Spelling in the registry's key operations.
    pub(crate) const fn as_policy_key(self) -> &'static str {
        match self {
            KeyName::Primary => "primaryKey",
            KeyName::Secondary => "secondaryKey",
            KeyName::Both => "both",
        }
    }
}
