//! `/holdfast/v1/provisioningPolicies`: shared access policies of the provisioning service. They hold its keys, so every
//! operation, reading too, needs all rights.

use axum::body::Bytes;
use axum::extract::{Path, State};
use holdfast_model::provisioning::{ProvisioningPolicy, ProvisioningRights};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::spec::{invalid, key};
use crate::Api;
use crate::extract::body;
use crate::reply::{Reply, json, no_content};

/// A policy with its keys.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProvisioningPolicyDto {
    /// Name.
    key_name: String,
    /// First key, base64.
    primary_key: String,
    /// Second key, base64.
    secondary_key: String,
    /// For example `EnrollmentRead, RegistrationStatusRead`.
    rights: String,
}

/// A policy to create or replace.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ProvisioningPolicyPut {
    /// ServiceConfig, EnrollmentRead, EnrollmentWrite, RegistrationStatusRead, RegistrationStatusWrite, separated by
    /// commas.
    rights: String,
    /// Default: generated.
    primary_key: Option<String>,
    /// Default: generated.
    secondary_key: Option<String>,
}

impl From<&ProvisioningPolicy> for ProvisioningPolicyDto {
    fn from(policy: &ProvisioningPolicy) -> Self {
        ProvisioningPolicyDto {
            key_name: policy.name.clone(),
            primary_key: policy.primary_key.reveal().to_owned(),
            secondary_key: policy.secondary_key.reveal().to_owned(),
            rights: policy.rights.names(),
        }
    }
}

/// Lists policies with their keys. Right: all.
#[utoipa::path(get, path = "/holdfast/v1/provisioningPolicies", tag = "Provisioning",
    responses((status = 200, body = Vec<ProvisioningPolicyDto>)))]
pub(crate) async fn list(State(api): State<Api>) -> Reply {
    let policies = api.provisioning.policies();
    json(
        &policies
            .iter()
            .map(ProvisioningPolicyDto::from)
            .collect::<Vec<_>>(),
    )
}

/// Reads a policy with its keys. Right: all.
#[utoipa::path(get, path = "/holdfast/v1/provisioningPolicies/{name}", tag = "Provisioning",
    responses((status = 200, body = ProvisioningPolicyDto)))]
pub(crate) async fn get(State(api): State<Api>, Path(name): Path<String>) -> Reply {
    json(&ProvisioningPolicyDto::from(&api.provisioning.policy(&name)?))
}

/// Creates or replaces a policy. Right: all.
#[utoipa::path(put, path = "/holdfast/v1/provisioningPolicies/{name}", tag = "Provisioning",
    request_body = ProvisioningPolicyPut, responses((status = 200, body = ProvisioningPolicyDto)))]
pub(crate) async fn put(State(api): State<Api>, Path(name): Path<String>, bytes: Bytes) -> Reply {
    let wanted: ProvisioningPolicyPut = body(&bytes)?;
    let rights = ProvisioningRights::parse(&wanted.rights).ok_or_else(|| {
        invalid("rights must be of ServiceConfig, EnrollmentRead, EnrollmentWrite, RegistrationStatusRead, RegistrationStatusWrite, with commas between")
    })?;
    let policy = api
        .provisioning
        .put_policy(
            &name,
            rights,
            key("primaryKey", wanted.primary_key.as_deref())?,
            key("secondaryKey", wanted.secondary_key.as_deref())?,
        )
        .await?;
    json(&ProvisioningPolicyDto::from(&policy))
}

/// Deletes a policy. Right: all.
#[utoipa::path(delete, path = "/holdfast/v1/provisioningPolicies/{name}", tag = "Provisioning",
    responses((status = 204, description = "deleted")))]
pub(crate) async fn delete(State(api): State<Api>, Path(name): Path<String>) -> Reply {
    api.provisioning.delete_policy(&name).await?;
    no_content()
}
