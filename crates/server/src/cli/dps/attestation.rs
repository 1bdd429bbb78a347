//! The flags that say how devices prove themselves to provisioning.

use std::path::{Path, PathBuf};

use clap::Args;
use holdfast_program::failure::Failure;
use serde_json::{Map, Value, json};

use super::super::ca::certificate_text;

#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Attestation")]
pub(in crate::cli) struct AttestationArgs {
    /// First key, base64 of 16 to 64 bytes; made by the service unless given
    #[arg(long, value_name = "KEY")]
    primary_key: Option<String>,
    /// Second key
    #[arg(long, value_name = "KEY")]
    secondary_key: Option<String>,
    /// Certificate, PEM or DER: of the device, or for a group of the authority that signs
    #[arg(long, value_name = "FILE", conflicts_with_all = ["primary_key", "secondary_key"])]
    certificate: Option<PathBuf>,
    /// Second certificate, for rolling
    #[arg(long, value_name = "FILE", requires = "certificate")]
    secondary_certificate: Option<PathBuf>,
    /// Name of a verified authority of the hub (see `holdfast dps certificate`) that signs the certificates of devices
    #[arg(long, value_name = "NAME", conflicts_with_all = ["primary_key", "secondary_key", "certificate"])]
    ca_name: Option<String>,
    /// Endorsement key of the device's TPM 2.0, base64 of its public area, as the samples of the SDKs print it
    /// (`tpm2_createek --format tss` writes it in binary). For single devices
    #[arg(long, value_name = "KEY", conflicts_with_all = ["primary_key", "secondary_key", "certificate", "ca_name"])]
    endorsement_key: Option<String>,
}

impl AttestationArgs {
    /// The member `attestation`; `None` when no flag was given. `member` is where certificates go.
    pub(super) fn attestation(&self, member: &str) -> anyhow::Result<Option<Value>> {
        if let Some(name) = &self.ca_name {
            return Ok(Some(
                json!({ "type": "x509", "x509": { "caReferences": { "primary": name } } }),
            ));
        }
        if let Some(key) = &self.endorsement_key {
            return Ok(Some(json!({ "type": "tpm", "tpm": { "endorsementKey": key } })));
        }
        if let Some(path) = &self.certificate {
            let mut pair = Map::new();
            pair.insert("primary".into(), certificate(path)?);
            if let Some(path) = &self.secondary_certificate {
                pair.insert("secondary".into(), certificate(path)?);
            }
            return Ok(Some(json!({ "type": "x509", "x509": { member: pair } })));
        }
        if self.primary_key.is_none() && self.secondary_key.is_none() {
            return Ok(None);
        }
        if self.primary_key.is_none() {
            return Err(Failure::usage("--secondary-key needs --primary-key").into());
        }
        Ok(Some(json!({
            "type": "symmetricKey",
            "symmetricKey": { "primaryKey": self.primary_key, "secondaryKey": self.secondary_key },
        })))
    }
}

fn certificate(path: &Path) -> anyhow::Result<Value> {
    Ok(json!({ "certificate": certificate_text(path)? }))
}
