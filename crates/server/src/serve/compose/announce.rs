//! What a hub tells once it answers: `connection.env`, the user's profile, the banner, systemd.

use std::path::Path;

use anyhow::Context as _;
use holdfast_model::credential::SymmetricKey;
use holdfast_model::provisioning::OWNER_POLICY;
use holdfast_program::process::{NotifyState, notify};
use holdfast_wire::connection_string::{ConnectionString, Credential, Party};
use holdfast_wire::links::EVENT_HUB_NAME;

use super::Parts;
use crate::cli::profile::write_user_profile;
use crate::serve::Settings;
use crate::serve::banner::{Addresses, Banner};
use crate::serve::connection_env::{self as variables, ConnectionEnv};

/// Policy whose key goes into `connection.env`.
const OWNER: &str = "iothubowner";

/// Writes `connection.env` and the profile, prints the banner, tells systemd.
pub(super) fn announce(settings: &Settings, parts: &Parts, addresses: Addresses) -> anyhow::Result<()> {
    let env_path = settings.data_dir.join(variables::FILE_NAME);
    let ca = settings.certificates.ca_path();
    connection_env(settings, parts, &addresses, ca.as_deref())?
        .write(&env_path)
        .with_context(|| format!("cannot write {}", env_path.display()))?;
    if settings.profile
        && let Err(error) = write_user_profile(settings.data_dir.path())
    {
        tracing::warn!(%error, "cannot write the user's profile; other commands need --data-dir");
    }
    let banner = Banner {
        data_dir: settings.data_dir.path().to_owned(),
        connection_env: env_path,
        ca,
        first_start: settings.data_dir.is_fresh(),
        found_by_commands: settings.profile,
        addresses,
    };
    tracing::info!(
        host = banner.addresses.host,
        mqtt_port = banner.addresses.mqtt_port,
        amqp_port = banner.addresses.amqp_port,
        https_port = banner.addresses.https_port,
        "ready"
    );
    // Nobody reads it: no reason not to serve.
    if let Err(error) = banner.print(settings.output) {
        tracing::debug!(%error, "the banner could not be printed");
    }
    notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
    Ok(())
}

fn connection_env(
    settings: &Settings,
    parts: &Parts,
    addresses: &Addresses,
    ca: Option<&Path>,
) -> anyhow::Result<ConnectionEnv> {
    let mut env = ConnectionEnv::new();
    env.set(
        variables::HOST,
        &addresses.host,
        "Host name, as it stands in connection strings",
    );
    match parts.hub.policy(OWNER) {
        Ok(policy) => {
            let events = format!(
                "Endpoint=sb://{}/;SharedAccessKeyName={};SharedAccessKey={};EntityPath={EVENT_HUB_NAME}",
                addresses.host,
                policy.name,
                policy.primary_key.reveal()
            );
            env.set(
                variables::EH_CS,
                events,
                "Event Hubs-compatible connection string, for reading events",
            );
            let owner = service_string(&addresses.host, policy.name, policy.primary_key);
            env.set(
                variables::OWNER_CS,
                owner.reveal(),
                "Service connection string with every right",
            );
        }
        Err(_) => tracing::warn!("the policy {OWNER} was deleted: connection.env has no connection string"),
    }
    if let Some(ca) = ca {
        env.set(
            variables::CA,
            ca.to_string_lossy(),
            "Certificate authority that clients must trust, PEM",
        );
    }
    env.set(
        variables::DPS_HOST,
        &addresses.host,
        "Host name for device provisioning",
    );
    if let Ok(policy) = parts.provisioning.policy(OWNER_POLICY) {
        let owner = service_string(&addresses.host, policy.name, policy.primary_key);
        env.set(
            variables::DPS_CS,
            owner.reveal(),
            "Provisioning service connection string with every right",
        );
    }
    env.set(
        variables::ID_SCOPE,
        settings.data_dir.id_scope(),
        "Id scope of this hub for device provisioning",
    );
    if let Some(blobs) = &parts.uploads.connection_string {
        env.set(
            variables::BLOB_CS,
            blobs.clone(),
            "Connection string of the embedded blob store, for Azure Storage clients",
        );
    }
    if addresses.https_port != 443 {
        env.set(
            variables::HTTPS_PORT,
            addresses.https_port.to_string(),
            "Port of HTTPS; SDKs know only 443",
        );
    }
    if addresses.mqtt_port != 8883 {
        env.set(
            variables::MQTT_PORT,
            addresses.mqtt_port.to_string(),
            "Port of MQTT over TLS; SDKs know only 8883",
        );
    }
    if addresses.amqp_port != 5671 {
        env.set(
            variables::AMQP_PORT,
            addresses.amqp_port.to_string(),
            "Port of AMQP over TLS; SDKs know only 5671",
        );
    }
    if let Some(plain) = addresses.amqp_plain {
        env.set(variables::AMQP_PLAIN, plain.to_string(), "AMQP without TLS");
    }
    if let Some(plain) = addresses.mqtt_plain {
        env.set(variables::MQTT_PLAIN, plain.to_string(), "MQTT without TLS");
    }
    Ok(env)
}

/// Connection string of a service that signs with the key of a policy.
fn service_string(host: &str, name: String, key: SymmetricKey) -> ConnectionString {
    ConnectionString {
        host: host.to_owned(),
        gateway_host: None,
        party: Party::Service,
        credential: Credential::Policy { name, key },
    }
}
