//! `/enrollments`: individual enrollments.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use holdfast_model::Error;
use holdfast_model::provisioning::BULK_ENROLLMENTS_MAX;
use holdfast_provisioning::BulkMode;
use holdfast_wire::dto::provisioning::{
    AttestationMechanismDto, BulkEnrollmentErrorDto, BulkEnrollmentsDto, BulkEnrollmentsResultDto,
    BulkModeDto, EnrollmentDto, EnrollmentPut,
};
use holdfast_wire::{error, etag};
use serde_json::Value;

use super::query::{self, Page};
use super::{expected, spec};
use crate::Api;
use crate::extract::body;
use crate::reply::{Reply, json, json_tagged, no_content};

/// Reads an enrollment; without its keys. Right: EnrollmentRead.
#[utoipa::path(get, path = "/enrollments/{id}", tag = "Provisioning", responses((status = 200, body = EnrollmentDto)))]
pub(crate) async fn get(State(api): State<Api>, Path(id): Path<String>) -> Reply {
    let enrollment = api.provisioning.enrollment(&id).await?;
    let state = api.provisioning.registration(&id).await.ok();
    let dto = EnrollmentDto::individual(&enrollment, state.as_ref(), false);
    json_tagged(&dto, &etag::of_identity(enrollment.enrollment.version))
}

/// Creates or replaces an enrollment; keys that are missing are made. Right: EnrollmentWrite.
#[utoipa::path(put, path = "/enrollments/{id}", tag = "Provisioning", request_body = EnrollmentPut,
    responses((status = 200, body = EnrollmentDto)))]
pub(crate) async fn put(
    State(api): State<Api>,
    Path(id): Path<String>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    let wanted: EnrollmentPut = body(&bytes)?;
    spec::check_id(&id, wanted.registration_id.as_deref())?;
    let wanted = spec::individual(wanted)?;
    let enrollment = api
        .provisioning
        .put_enrollment(&id, wanted, expected(&headers))
        .await?;
    let dto = EnrollmentDto::individual(&enrollment, None, true);
    json_tagged(&dto, &etag::of_identity(enrollment.enrollment.version))
}

/// Deletes an enrollment with its registration. Right: EnrollmentWrite.
#[utoipa::path(delete, path = "/enrollments/{id}", tag = "Provisioning", responses((status = 204, description = "deleted")))]
pub(crate) async fn delete(State(api): State<Api>, Path(id): Path<String>, headers: HeaderMap) -> Reply {
    api.provisioning
        .delete_enrollment(&id, expected(&headers))
        .await?;
    no_content()
}

/// Reads how a device proves itself, with its keys. Right: EnrollmentWrite.
#[utoipa::path(post, path = "/enrollments/{id}/attestationmechanism", tag = "Provisioning",
    responses((status = 200, body = AttestationMechanismDto)))]
pub(crate) async fn attestation(State(api): State<Api>, Path(id): Path<String>) -> Reply {
    let enrollment = api.provisioning.enrollment(&id).await?.enrollment;
    json(&AttestationMechanismDto::of(&enrollment.attestation, true))
}

/// Lists enrollments in pages. Right: EnrollmentRead.
#[utoipa::path(post, path = "/enrollments/query", tag = "Provisioning", request_body = query::QueryDto,
    responses((status = 200, body = Vec<EnrollmentDto>)))]
pub(crate) async fn list(State(api): State<Api>, headers: HeaderMap, bytes: Bytes) -> Reply {
    query::check(&bytes, &["enrollments"])?;
    let page = Page::of(&headers)?;
    let items = api
        .provisioning
        .list_enrollments(page.after.as_deref(), page.wanted())
        .await?;
    page.answer(
        items,
        "enrollment",
        |item| item.registration_id.key(),
        |item| EnrollmentDto::individual(item, None, false),
    )
}

/// Creates, updates or deletes up to ten enrollments. Right: EnrollmentWrite.
#[utoipa::path(post, path = "/enrollments", tag = "Provisioning", request_body = BulkEnrollmentsDto,
    responses((status = 200, body = BulkEnrollmentsResultDto)))]
pub(crate) async fn bulk(State(api): State<Api>, bytes: Bytes) -> Reply {
    let request: BulkEnrollmentsDto = body(&bytes)?;
    check_size(request.enrollments.len())?;
    let mut errors = Vec::new();
    for entry in request.enrollments {
        let id = id_of(&entry, "registrationId");
        if let Err(error) = one(&api, request.mode, &id, entry).await {
            errors.push(failed(Some(id), None, &error));
        }
    }
    json(&result(errors))
}

async fn one(api: &Api, mode: BulkModeDto, id: &str, entry: Value) -> Result<(), Error> {
    let tag = entry.get("etag").and_then(Value::as_str);
    let expected = engine_mode(mode).expected(version_of(tag));
    if mode == BulkModeDto::Delete {
        return api.provisioning.delete_enrollment(id, expected).await;
    }
    let wanted = spec::individual(parse(entry)?)?;
    api.provisioning
        .put_enrollment(id, wanted, expected)
        .await
        .map(drop)
}

pub(super) fn check_size(entries: usize) -> Result<(), Error> {
    match entries {
        1..=BULK_ENROLLMENTS_MAX => Ok(()),
        _ => Err(spec::invalid(&format!(
            "a bulk request has 1 to {BULK_ENROLLMENTS_MAX} entries"
        ))),
    }
}

pub(super) fn id_of(entry: &Value, member: &str) -> String {
    let id = entry.get(member).and_then(Value::as_str);
    id.unwrap_or_default().to_owned()
}

/// The version of an entry's own tag; one that was never given out matches nothing.
pub(super) fn version_of(tag: Option<&str>) -> Option<u64> {
    match etag::IfMatch::identity(tag) {
        etag::IfMatch::Absent | etag::IfMatch::Any => None,
        etag::IfMatch::Version(version) => Some(version),
        etag::IfMatch::Other(_) => Some(u64::MAX),
    }
}

pub(super) fn parse(entry: Value) -> Result<EnrollmentPut, Error> {
    holdfast_wire::dto::from_json(entry.to_string().as_bytes())
}

pub(super) fn engine_mode(mode: BulkModeDto) -> BulkMode {
    match mode {
        BulkModeDto::Create => BulkMode::Create,
        BulkModeDto::Update => BulkMode::Update,
        BulkModeDto::UpdateIfMatchETag => BulkMode::UpdateIfMatchETag,
        BulkModeDto::Delete => BulkMode::Delete,
    }
}

pub(super) fn failed(
    registration_id: Option<String>,
    enrollment_group_id: Option<String>,
    error: &Error,
) -> BulkEnrollmentErrorDto {
    BulkEnrollmentErrorDto {
        registration_id,
        enrollment_group_id,
        error_code: error::row(error.code).number,
        error_status: error.message.clone(),
    }
}

pub(super) fn result(errors: Vec<BulkEnrollmentErrorDto>) -> BulkEnrollmentsResultDto {
    BulkEnrollmentsResultDto {
        is_successful: errors.is_empty(),
        errors,
    }
}
