//! `/holdfast/v1/policies`: shared access policies. They hold the keys to the hub, so every operation, reading too,
//! needs all rights.

use axum::body::Bytes;
use axum::extract::{Path, State};
use holdfast_hub::{KeyChoice, PolicyKeys};
use holdfast_model::credential::SymmetricKey;
use holdfast_model::policy::{Policy, Rights};
use holdfast_model::{Error, ErrorCode};
use holdfast_wire::dto::PolicyKeyDto;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Api;
use crate::extract::body;
use crate::reply::{Failure, Reply, json, no_content};

/// A policy with its keys.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyDto {
    /// Name.
    key_name: String,
    /// First key, base64.
    primary_key: String,
    /// Second key, base64.
    secondary_key: String,
    /// For example `RegistryRead, ServiceConnect`.
    rights: String,
}

/// A policy to create or replace.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PolicyPut {
    /// RegistryRead, RegistryWrite, ServiceConnect, DeviceConnect, separated by commas.
    rights: String,
    /// Default: generated.
    primary_key: Option<String>,
    /// Default: generated.
    secondary_key: Option<String>,
}

/// Which keys to make anew.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RegenerateKeys {
    /// `primaryKey`, `secondaryKey` or `both`.
    policy_key: PolicyKeyDto,
}

impl From<&Policy> for PolicyDto {
    fn from(policy: &Policy) -> Self {
        PolicyDto {
            key_name: policy.name.clone(),
            primary_key: policy.primary_key.reveal().to_owned(),
            secondary_key: policy.secondary_key.reveal().to_owned(),
            rights: policy.rights.names(),
        }
    }
}

/// Lists policies with their keys. Right: all.
#[utoipa::path(get, path = "/holdfast/v1/policies", tag = "Policies",
    responses((status = 200, body = Vec<PolicyDto>)))]
pub(crate) async fn list(State(api): State<Api>) -> Reply {
    json(&api.hub.policies().iter().map(PolicyDto::from).collect::<Vec<_>>())
}

/// Reads a policy with its keys. Right: all.
#[utoipa::path(get, path = "/holdfast/v1/policies/{name}", tag = "Policies",
    responses((status = 200, body = PolicyDto)))]
pub(crate) async fn get(State(api): State<Api>, Path(name): Path<String>) -> Reply {
    json(&PolicyDto::from(&api.hub.policy(&name)?))
}

/// Creates or replaces a policy. Right: all.
#[utoipa::path(put, path = "/holdfast/v1/policies/{name}", tag = "Policies", request_body = PolicyPut,
    responses((status = 200, body = PolicyDto)))]
pub(crate) async fn put(State(api): State<Api>, Path(name): Path<String>, bytes: Bytes) -> Reply {
    let wanted: PolicyPut = body(&bytes)?;
    let rights = Rights::parse(&wanted.rights).ok_or_else(|| {
        let text = "rights must be of RegistryRead, RegistryWrite, ServiceConnect, DeviceConnect, with commas between";
        Error::new(ErrorCode::ArgumentInvalid, text)
    })?;
    let keys = PolicyKeys {
        primary_key: key("primaryKey", wanted.primary_key.as_deref())?,
        secondary_key: key("secondaryKey", wanted.secondary_key.as_deref())?,
    };
    json(&PolicyDto::from(&api.hub.put_policy(&name, rights, keys).await?))
}

/// Makes new keys for a policy. Right: all.
#[utoipa::path(post, path = "/holdfast/v1/policies/{name}/regenerate", tag = "Policies",
    request_body = RegenerateKeys, responses((status = 200, body = PolicyDto)))]
pub(crate) async fn regenerate(State(api): State<Api>, Path(name): Path<String>, bytes: Bytes) -> Reply {
    let choice = match body::<RegenerateKeys>(&bytes)?.policy_key {
        PolicyKeyDto::PrimaryKey => KeyChoice::Primary,
        PolicyKeyDto::SecondaryKey => KeyChoice::Secondary,
        PolicyKeyDto::Both => KeyChoice::Both,
    };
    json(&PolicyDto::from(
        &api.hub.regenerate_policy_keys(&name, choice).await?,
    ))
}

/// Deletes a policy. Right: all.
#[utoipa::path(delete, path = "/holdfast/v1/policies/{name}", tag = "Policies",
    responses((status = 204, description = "deleted")))]
pub(crate) async fn delete(State(api): State<Api>, Path(name): Path<String>) -> Reply {
    api.hub.delete_policy(&name).await?;
    no_content()
}

fn key(member: &str, text: Option<&str>) -> Result<Option<SymmetricKey>, Failure> {
    let parse = |text| {
        SymmetricKey::parse(text)
            .map_err(|error| Error::new(ErrorCode::ArgumentInvalid, format!("{member}: {error}")))
    };
    Ok(text.map(parse).transpose()?)
}
