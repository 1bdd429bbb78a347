//! `/enrollmentGroups`: enrollments of many devices.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use holdfast_model::Error;
use holdfast_wire::dto::provisioning::{
    AttestationMechanismDto, BulkEnrollmentsDto, BulkEnrollmentsResultDto, BulkModeDto, EnrollmentDto,
    EnrollmentPut,
};
use holdfast_wire::etag;
use serde_json::Value;

use super::enrollments::{check_size, engine_mode, failed, id_of, parse, result, version_of};
use super::query::{self, Page};
use super::{expected, spec};
use crate::Api;
use crate::extract::body;
use crate::reply::{Reply, json, json_tagged, no_content};

/// Reads a group; without its keys. Right: EnrollmentRead.
#[utoipa::path(get, path = "/enrollmentGroups/{id}", tag = "Provisioning", responses((status = 200, body = EnrollmentDto)))]
pub(crate) async fn get(State(api): State<Api>, Path(id): Path<String>) -> Reply {
    let group = api.provisioning.group(&id).await?;
    let dto = EnrollmentDto::group(&group, false);
    json_tagged(&dto, &etag::of_identity(group.enrollment.version))
}

/// Creates or replaces a group; keys that are missing are made. Right: EnrollmentWrite.
#[utoipa::path(put, path = "/enrollmentGroups/{id}", tag = "Provisioning", request_body = EnrollmentPut,
    responses((status = 200, body = EnrollmentDto)))]
pub(crate) async fn put(
    State(api): State<Api>,
    Path(id): Path<String>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    let wanted: EnrollmentPut = body(&bytes)?;
    spec::check_id(&id, wanted.enrollment_group_id.as_deref())?;
    let wanted = spec::enrollment(wanted)?;
    let group = api
        .provisioning
        .put_group(&id, wanted, expected(&headers))
        .await?;
    let dto = EnrollmentDto::group(&group, true);
    json_tagged(&dto, &etag::of_identity(group.enrollment.version))
}

/// Deletes a group with its registrations. Right: EnrollmentWrite.
#[utoipa::path(delete, path = "/enrollmentGroups/{id}", tag = "Provisioning",
    responses((status = 204, description = "deleted")))]
pub(crate) async fn delete(State(api): State<Api>, Path(id): Path<String>, headers: HeaderMap) -> Reply {
    api.provisioning.delete_group(&id, expected(&headers)).await?;
    no_content()
}

/// Reads how devices prove themselves, with the keys. Right: EnrollmentWrite.
#[utoipa::path(post, path = "/enrollmentGroups/{id}/attestationmechanism", tag = "Provisioning",
    responses((status = 200, body = AttestationMechanismDto)))]
pub(crate) async fn attestation(State(api): State<Api>, Path(id): Path<String>) -> Reply {
    let group = api.provisioning.group(&id).await?.enrollment;
    json(&AttestationMechanismDto::of(&group.attestation, true))
}

/// Lists groups in pages. Right: EnrollmentRead.
#[utoipa::path(post, path = "/enrollmentGroups/query", tag = "Provisioning", request_body = query::QueryDto,
    responses((status = 200, body = Vec<EnrollmentDto>)))]
pub(crate) async fn list(State(api): State<Api>, headers: HeaderMap, bytes: Bytes) -> Reply {
    query::check(&bytes, &["enrollmentGroups", "enrollments"])?;
    let page = Page::of(&headers)?;
    let items = api
        .provisioning
        .list_groups(page.after.as_deref(), page.wanted())
        .await?;
    page.answer(
        items,
        "enrollmentGroup",
        |item| item.group_id.key(),
        |item| EnrollmentDto::group(item, false),
    )
}

/// Creates, updates or deletes up to ten groups. Right: EnrollmentWrite.
#[utoipa::path(post, path = "/enrollmentGroups", tag = "Provisioning", request_body = BulkEnrollmentsDto,
    responses((status = 200, body = BulkEnrollmentsResultDto)))]
pub(crate) async fn bulk(State(api): State<Api>, bytes: Bytes) -> Reply {
    let request: BulkEnrollmentsDto = body(&bytes)?;
    check_size(request.enrollment_groups.len())?;
    let mut errors = Vec::new();
    for entry in request.enrollment_groups {
        let id = id_of(&entry, "enrollmentGroupId");
        if let Err(error) = one(&api, request.mode, &id, entry).await {
            errors.push(failed(None, Some(id), &error));
        }
    }
    json(&result(errors))
}

async fn one(api: &Api, mode: BulkModeDto, id: &str, entry: Value) -> Result<(), Error> {
    let tag = entry.get("etag").and_then(Value::as_str);
    let expected = engine_mode(mode).expected(version_of(tag));
    if mode == BulkModeDto::Delete {
        return api.provisioning.delete_group(id, expected).await;
    }
    let wanted = spec::enrollment(parse(entry)?)?;
    api.provisioning.put_group(id, wanted, expected).await.map(drop)
}
