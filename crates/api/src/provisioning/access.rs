//! `/holdfast/v1/enrollmentGroups/{id}/access`: which devices of a group are let in. Apart from the group itself, because
//! service SDKs write groups back without members they do not know.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use holdfast_model::provisioning::{AccessList, EnrollmentGroup};
use holdfast_wire::etag;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::expected;
use crate::Api;
use crate::extract::body;
use crate::reply::{Reply, json_tagged};

/// Allow and deny list of a group. An entry is a registration id, in which `*` stands for any characters.
#[derive(Serialize, ToSchema)]
pub(crate) struct AccessDto {
    /// Who may register; everybody when empty.
    allow: Vec<String>,
    /// Who may not, even if allowed.
    deny: Vec<String>,
    /// Entity tag of the group.
    etag: String,
}

/// Lists to set; one that is missing is empty.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccessPut {
    /// Who may register, up to 1000 entries.
    #[serde(default)]
    allow: Vec<String>,
    /// Who may not, up to 1000 entries.
    #[serde(default)]
    deny: Vec<String>,
}

fn answer(group: EnrollmentGroup) -> Reply {
    let tag = etag::of_identity(group.enrollment.version);
    let dto = AccessDto {
        allow: group.access.allow,
        deny: group.access.deny,
        etag: tag.clone(),
    };
    json_tagged(&dto, &tag)
}

/// Reads the allow and deny list of a group. Right: EnrollmentRead.
#[utoipa::path(get, path = "/holdfast/v1/enrollmentGroups/{id}/access", tag = "Provisioning",
    responses((status = 200, body = AccessDto)))]
pub(crate) async fn get(State(api): State<Api>, Path(id): Path<String>) -> Reply {
    answer(api.provisioning.group(&id).await?)
}

/// Replaces the allow and deny list of a group. Right: EnrollmentWrite.
#[utoipa::path(put, path = "/holdfast/v1/enrollmentGroups/{id}/access", tag = "Provisioning",
    request_body = AccessPut, responses((status = 200, body = AccessDto)))]
pub(crate) async fn put(
    State(api): State<Api>,
    Path(id): Path<String>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    let AccessPut { allow, deny } = body(&bytes)?;
    let lists = AccessList { allow, deny };
    let group = api
        .provisioning
        .put_group_access(&id, lists, expected(&headers))
        .await?;
    answer(group)
}
