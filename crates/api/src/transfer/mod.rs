//! Import and export: jobs between the hub and blob containers (`/jobs…`, REST contract, section 11), and streams of
//! lines for clients without one (`/holdfast/v1/import`, `/holdfast/v1/export`).

mod lines;

use std::io::Read as _;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream::{self, Stream, StreamExt as _};
use holdfast_fleet::transfer::{
    ImportErrors, ImportOutcome, JobKind, JobRequest, JobStatus, Progress, TransferJob,
};
use holdfast_model::{Error, ErrorCode};
use holdfast_wire::dto::{JobPropertiesDto, TimeDto, TransferTypeDto};
use serde::{Deserialize, Serialize};

use crate::Api;
use crate::extract::body;
use crate::reply::{Reply, json, no_content};

pub use lines::JsonLines;

/// Type of bodies with a JSON document on each line.
const NDJSON: &str = "application/x-ndjson";
/// Size of the pieces in which noted errors are sent.
const PIECE_BYTES: usize = 64 * 1024;

/// Starts an import or export job. Right: RegistryWrite.
#[utoipa::path(post, path = "/jobs/create", tag = "Import and export", request_body = JobPropertiesDto,
    responses((status = 200, body = JobPropertiesDto), (status = 400, description = "a container cannot be used"),
    (status = 403, description = "a job is under way")))]
pub(crate) async fn create_job(State(api): State<Api>, bytes: Bytes) -> Reply {
    let request = job_request(body(&bytes)?)?;
    json(&job_dto(&api.transfer.create(request).await?))
}

/// Lists import and export jobs, newest first. Right: RegistryWrite.
#[utoipa::path(get, path = "/jobs", tag = "Import and export", responses((status = 200, body = Vec<JobPropertiesDto>)))]
pub(crate) async fn list_jobs(State(api): State<Api>) -> Reply {
    json(&api.transfer.list().iter().map(job_dto).collect::<Vec<_>>())
}

/// Reads an import or export job. Right: RegistryWrite.
#[utoipa::path(get, path = "/jobs/{id}", tag = "Import and export",
    responses((status = 200, body = JobPropertiesDto), (status = 404, description = "no such job")))]
pub(crate) async fn get_job(State(api): State<Api>, Path(id): Path<String>) -> Reply {
    json(&job_dto(&api.transfer.get(&id)?))
}

/// Asks an import or export job to stop. What it has done stays. Right: RegistryWrite.
#[utoipa::path(delete, path = "/jobs/{id}", tag = "Import and export",
    responses((status = 204, description = "it stops, or has ended"), (status = 404, description = "no such job")))]
pub(crate) async fn cancel_job(State(api): State<Api>, Path(id): Path<String>) -> Reply {
    api.transfer.cancel(&id)?;
    no_content()
}

/// First line of the answer to an import; each other line is an `ImportLineErrorDto`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImportSummary {
    /// Lines that were not blank.
    lines: u64,
    /// Lines carried out.
    imported: u64,
    /// Lines that were not; so many lines follow, unless `unwritten` says less.
    failed: u64,
    /// Failed lines that are counted only, because their texts were too many.
    #[serde(skip_serializing_if = "is_zero")]
    unwritten: u64,
    /// Why the import ended before the end of the lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Imports the lines of the body, which may be of any length: one `ExportImportDevice` a line, as in an export. The answer
/// comes at the end: a summary on the first line, then a line for each that failed. Right: RegistryWrite.
#[utoipa::path(post, path = "/holdfast/v1/import", tag = "Import and export",
    request_body(content = String, content_type = "application/x-ndjson"),
    responses((status = 200, body = ImportSummary, content_type = "application/x-ndjson"),
    (status = 429, description = "too many at once")))]
pub(crate) async fn import(State(api): State<Api>, request: Request) -> Reply {
    let transfer = api.transfer.transfer();
    let _place = transfer.place()?;
    let input = request.into_body().into_data_stream();
    let input = input.map(|piece| piece.map_err(|error| format!("the body broke off: {error}")));
    let (outcome, stopped) = match transfer.import(input, &Arc::new(Progress::default())).await {
        Ok(outcome) => (outcome, None),
        Err(stopped) => (stopped.so_far, Some(stopped.error.message)),
    };
    let ImportOutcome {
        lines,
        imported,
        errors,
    } = outcome;
    let summary = ImportSummary {
        lines,
        imported,
        failed: errors.count(),
        unwritten: errors.unwritten(),
        stopped,
    };
    let mut head = serde_json::to_vec(&summary).map_err(|error| {
        Error::new(
            ErrorCode::ServerError,
            format!("the answer cannot be written: {error}"),
        )
    })?;
    head.push(b'\n');
    let head = stream::once(async move { Ok(Bytes::from(head)) });
    Ok(lines_response(Body::from_stream(head.chain(error_lines(errors)))))
}

/// What of an export is wanted.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(rename_all = "camelCase", default)]
#[into_params(parameter_in = Query)]
pub(crate) struct ExportQuery {
    /// Leaves keys out.
    exclude_keys: bool,
}

/// Exports all identities with their twins, one `ExportImportDevice` a line, by device id. Each is as it stands when it is
/// read. An answer that ends properly is whole. Right: RegistryWrite, as it holds keys.
#[utoipa::path(get, path = "/holdfast/v1/export", tag = "Import and export", params(ExportQuery),
    responses((status = 200, description = "lines", content_type = "application/x-ndjson"),
    (status = 429, description = "too many at once")))]
pub(crate) async fn export(State(api): State<Api>, Query(query): Query<ExportQuery>) -> Reply {
    let transfer = api.transfer.transfer();
    let place = transfer.place()?;
    let lines = transfer.export(query.exclude_keys, &Arc::new(Progress::default()));
    // The place is free when the stream ends, also when the client went away.
    let lines = lines.map(move |piece| {
        let _held = &place;
        piece
    });
    Ok(lines_response(Body::from_stream(lines)))
}

fn lines_response(body: Body) -> Response {
    let mut response = body.into_response();
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    response
}

/// The noted errors, read as fast as the client takes them. They lie in a working file of the hub, whose pages are as good
/// as in memory, so they are read where they are asked for.
fn error_lines(errors: ImportErrors) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    let opened = stream::once(async move { errors.into_file() });
    opened.flat_map(|opened| {
        let (file, failed) = match opened {
            Ok(file) => (file, None),
            Err(error) => (None, Some(Err(error))),
        };
        let pieces = stream::unfold(file, async |file| {
            let mut file = file?;
            let mut piece = vec![0; PIECE_BYTES];
            match file.read(&mut piece) {
                Ok(0) => None,
                Ok(length) => {
                    piece.truncate(length);
                    Some((Ok(Bytes::from(piece)), Some(file)))
                }
                Err(error) => Some((Err(error), None)),
            }
        });
        stream::iter(failed).chain(pieces)
    })
}

fn job_request(dto: JobPropertiesDto) -> Result<JobRequest, Error> {
    let kind = dto.check_request()?;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let needed = |member: &str, uri: Option<String>| {
        given(uri).ok_or_else(|| {
            Error::new(
                ErrorCode::BlobContainerValidationError,
                format!("{member} is missing: a container URI with a shared access signature"),
            )
        })
    };
    let output = needed("outputBlobContainerUri", dto.output_blob_container_uri)?;
    Ok(match kind {
        TransferTypeDto::Import => JobRequest::Import {
            input: needed("inputBlobContainerUri", dto.input_blob_container_uri)?,
            blob: given(dto.input_blob_name),
            output,
        },
        TransferTypeDto::Export => JobRequest::Export {
            output,
            blob: given(dto.output_blob_name),
            exclude_keys: dto.exclude_keys_in_export.unwrap_or(false),
        },
    })
}

fn job_dto(job: &TransferJob) -> JobPropertiesDto {
    let is_export = job.kind == JobKind::Export;
    JobPropertiesDto {
        kind: Some(match job.kind {
            JobKind::Import => TransferTypeDto::Import,
            JobKind::Export => TransferTypeDto::Export,
        }),
        job_id: Some(job.id.clone()),
        status: Some(job.status.as_str().to_owned()),
        progress: Some(job.progress),
        start_time_utc: Some(TimeDto(job.started_at())),
        end_time_utc: job.ended_at().map(TimeDto),
        input_blob_container_uri: job.input_container.clone(),
        input_blob_name: job.input_blob.clone(),
        output_blob_container_uri: Some(job.output_container.clone()),
        output_blob_name: job.output_blob.clone(),
        exclude_keys_in_export: is_export.then_some(job.exclude_keys),
        storage_authentication_type: Some("keyBased".to_owned()),
        failure_reason: job.reason.clone().or_else(|| {
            (job.status == JobStatus::Failed)
                .then(|| "the job has failed; the hub's log has the details".to_owned())
        }),
        ..JobPropertiesDto::default()
    }
}
