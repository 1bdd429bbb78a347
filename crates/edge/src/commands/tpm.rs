//! `tpm`: what a provisioning service must know of this device's TPM.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use holdfast_program::failure::Failure;
use serde_json::json;

use super::Global;
use super::output::{self, Format};
use crate::config::{Provisioning, Settings, TpmSettings};
use crate::keys::tpm::{self, DeviceTpm};

/// Flags of `tpm`.
#[derive(Args, Debug)]
pub(super) struct TpmArgs {
    /// The TPM: device:/dev/tpmrm0, swtpm:path=/run/swtpm.sock or swtpm:host=localhost,port=2321; else that of the
    /// configuration
    #[arg(long, value_name = "ADDRESS")]
    tcti: Option<String>,
}

pub(super) fn run(global: &Global, args: &TpmArgs) -> anyhow::Result<()> {
    // An enrollment is made before there is a whole configuration.
    let settings = global.settings()?;
    let mut machine = settings
        .as_ref()
        .map_or_else(TpmSettings::default, |settings| settings.tpm.clone());
    if let Some(text) = &args.tcti {
        machine.address = text.parse().map_err(|error| {
            Failure::usage(format!("--tcti {text}: {error}")).hint(
                "write device:/dev/tpmrm0, swtpm:path=/run/swtpm.sock or swtpm:host=localhost,port=2321",
            )
        })?;
    }
    let chip = Arc::new(DeviceTpm::new(&machine)?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let read = runtime.block_on(async { Ok((chip.describe().await?, chip.public_keys().await?)) });
    let (told, keys) = read.map_err(|error| tpm::failure(&error))?;
    let id = registration_id(settings.as_ref()).unwrap_or_else(|| tpm::registration_id(&keys.endorsement));
    let endorsement_key = STANDARD.encode(&keys.endorsement);
    let address = machine.address.to_string();
    if global.output == Format::Json {
        return output::json(&json!({
            "registrationId": id,
            "endorsementKey": endorsement_key,
            "storageRootKey": STANDARD.encode(&keys.storage_root),
            "tpm": {
                "address": address,
                "manufacturer": told.manufacturer,
                "model": told.model,
                "firmware": told.firmware,
            },
        }));
    }
    let maker = format!("{} {}", told.manufacturer, told.model);
    output::line(&format!("registration id: {id}"))?;
    output::line(&format!("endorsement key: {endorsement_key}"))?;
    output::line(&format!(
        "TPM: {}, firmware {}, at {address}",
        maker.trim(),
        told.firmware
    ))?;
    output::line(&format!(
        "enroll it with: holdfast dps enrollment create {id} --edge true --endorsement-key KEY"
    ))
}

/// The one of the configuration.
fn registration_id(settings: Option<&Settings>) -> Option<String> {
    match &settings?.provisioning {
        Provisioning::Dps { registration_id, .. } => registration_id.clone(),
        Provisioning::Manual { .. } => None,
    }
}
