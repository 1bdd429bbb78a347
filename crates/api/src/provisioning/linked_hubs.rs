//! `/holdfast/v1/linkedHubs`: the hubs that devices are assigned to.

use axum::body::Bytes;
use axum::extract::{Path, State};
use holdfast_model::provisioning::LinkedHub;
use holdfast_provisioning::LinkedHubSpec;
use holdfast_wire::connection_string::{ConnectionString, Credential, Party};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::spec::invalid;
use crate::Api;
use crate::extract::body;
use crate::reply::{Failure, Reply, json, no_content};

/// A linked hub; its connection string is not told.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LinkedHubDto {
    /// Host name.
    host_name: String,
    /// Whether it is the hub of this process.
    is_own: bool,
    /// Share of hashed allocation, 1 to 1000.
    allocation_weight: u32,
    /// Whether enrollments that name no hubs may choose it.
    apply_allocation_policy: bool,
    /// For the lowest-latency policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ms: Option<u32>,
    /// What was measured last, if nothing is configured and the hub answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    measured_latency_ms: Option<u32>,
    /// Policy that is used on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    /// Port of its HTTPS.
    https_port: u16,
}

/// A hub to link, or to change. What is missing stays as it is.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct LinkedHubPut {
    /// Service connection string with RegistryWrite and ServiceConnect; not for the hub of this process.
    connection_string: Option<String>,
    /// Share of hashed allocation, 1 to 1000; 1 by default.
    allocation_weight: Option<u32>,
    /// Whether enrollments that name no hubs may choose it; true by default.
    apply_allocation_policy: Option<bool>,
    /// For the lowest-latency policy; measured once a minute if it is not given.
    latency_ms: Option<u32>,
    /// PEM of the authority of its certificate; the system's by default.
    ca_certificate: Option<String>,
}

fn dto(api: &Api, hub: &LinkedHub) -> LinkedHubDto {
    LinkedHubDto {
        host_name: api.provisioning.host_name(&hub.host).to_owned(),
        is_own: hub.is_own(),
        allocation_weight: hub.weight,
        apply_allocation_policy: hub.apply_allocation,
        latency_ms: hub.latency_ms,
        measured_latency_ms: api.provisioning.measured_latency(&hub.host),
        policy: hub.policy.as_ref().map(|(name, _)| name.clone()),
        https_port: hub.https_port,
    }
}

/// Lists linked hubs, the own one first. Right: ServiceConfig.
#[utoipa::path(get, path = "/holdfast/v1/linkedHubs", tag = "Provisioning",
    responses((status = 200, body = Vec<LinkedHubDto>)))]
pub(crate) async fn list(State(api): State<Api>) -> Reply {
    let hubs = api.provisioning.linked_hubs().await?;
    json(&hubs.iter().map(|hub| dto(&api, hub)).collect::<Vec<_>>())
}

/// Reads a linked hub. Right: ServiceConfig.
#[utoipa::path(get, path = "/holdfast/v1/linkedHubs/{name}", tag = "Provisioning",
    responses((status = 200, body = LinkedHubDto)))]
pub(crate) async fn get(State(api): State<Api>, Path(name): Path<String>) -> Reply {
    json(&dto(&api, &api.provisioning.linked_hub(&name).await?))
}

/// Links a hub, or changes a link. Right: ServiceConfig.
#[utoipa::path(put, path = "/holdfast/v1/linkedHubs/{name}", tag = "Provisioning", request_body = LinkedHubPut,
    responses((status = 200, body = LinkedHubDto)))]
pub(crate) async fn put(State(api): State<Api>, Path(name): Path<String>, bytes: Bytes) -> Reply {
    let wanted: LinkedHubPut = body(&bytes)?;
    let (mut policy, mut https_port) = (None, None);
    if let Some(text) = &wanted.connection_string {
        let (key, port) = connection(&name, text)?;
        policy = Some(key);
        https_port = Some(port);
    }
    let spec = LinkedHubSpec {
        weight: wanted.allocation_weight,
        apply_allocation: wanted.apply_allocation_policy,
        latency_ms: wanted.latency_ms,
        policy,
        https_port,
        ca_certificate: wanted.ca_certificate,
    };
    json(&dto(&api, &api.provisioning.put_linked_hub(&name, spec).await?))
}

/// Unlinks a hub. Right: ServiceConfig.
#[utoipa::path(delete, path = "/holdfast/v1/linkedHubs/{name}", tag = "Provisioning",
    responses((status = 204, description = "unlinked")))]
pub(crate) async fn delete(State(api): State<Api>, Path(name): Path<String>) -> Reply {
    api.provisioning.delete_linked_hub(&name).await?;
    no_content()
}

/// Policy and port of a connection string; the text itself is never told, as it holds a key.
fn connection(
    host: &str,
    text: &str,
) -> Result<((String, holdfast_model::credential::SymmetricKey), u16), Failure> {
    let parsed = ConnectionString::parse(text.trim().trim_end_matches(';'))
        .map_err(|error| invalid(&format!("connectionString: {error}")))?;
    let (Party::Service, Credential::Policy { name, key }) = (parsed.party, parsed.credential) else {
        return Err(invalid("connectionString must be one of a shared access policy").into());
    };
    let (named, port) = match parsed.host.rsplit_once(':') {
        Some((named, port)) => (
            named,
            port.parse().map_err(|_| invalid("connectionString: bad port"))?,
        ),
        None => (parsed.host.as_str(), 443),
    };
    if !named.eq_ignore_ascii_case(host) {
        return Err(invalid("connectionString names another host than the path").into());
    }
    Ok(((name, key), port))
}
