//! `/jobs/v2`: scheduled jobs (REST contract, section 10). Results at each device: `SELECT * FROM devices.jobs`.

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_fleet::jobs::JobRequest;
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::job::JobFilter;
use holdfast_wire::dto::{JobRequestDto, JobResponseDto, parse_kind, parse_status};
use holdfast_wire::headers::{self, ItemType};
use serde::Deserialize;

use crate::Api;
use crate::extract::body;
use crate::reply::{Reply, json};

/// Items of a page if the client does not say, and most items of a page.
const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1_000;

/// Which jobs to list.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Wanted {
    job_type: Option<String>,
    job_status: Option<String>,
}

/// Schedules a job. Right: ServiceConnect.
#[utoipa::path(put, path = "/jobs/v2/{id}", tag = "Jobs", request_body = JobRequestDto,
    responses((status = 200, body = JobResponseDto), (status = 409, description = "JobAlreadyExists")))]
pub(crate) async fn create(State(api): State<Api>, Path(id): Path<String>, bytes: Bytes) -> Reply {
    let wanted: JobRequestDto = body(&bytes)?;
    wanted.check_id(&id)?;
    let request = JobRequest {
        work: wanted.work()?,
        start_at: wanted.start_at()?,
        max_execution: wanted.max_execution()?,
        condition: wanted.query_condition.unwrap_or_default(),
    };
    json(&JobResponseDto::new(&api.jobs.create(&id, request).await?))
}

/// Reads a job with its progress. Right: ServiceConnect.
#[utoipa::path(get, path = "/jobs/v2/{id}", tag = "Jobs",
    responses((status = 200, body = JobResponseDto), (status = 404, description = "JobNotFound")))]
pub(crate) async fn get(State(api): State<Api>, Path(id): Path<String>) -> Reply {
    json(&JobResponseDto::new(&api.jobs.get(&id).await?))
}

/// Cancels a job. Right: ServiceConnect.
#[utoipa::path(post, path = "/jobs/v2/{id}/cancel", tag = "Jobs",
    responses((status = 200, body = JobResponseDto), (status = 400, description = "it has ended"),
    (status = 404, description = "JobNotFound")))]
pub(crate) async fn cancel(State(api): State<Api>, Path(id): Path<String>) -> Reply {
    json(&JobResponseDto::new(&api.jobs.cancel(&id).await?))
}

/// Lists jobs in pages, newest first. Right: ServiceConnect.
#[utoipa::path(get, path = "/jobs/v2/query", tag = "Jobs",
    params(
        ("jobType" = Option<String>, Query, description = "scheduleUpdateTwin or scheduleDeviceMethod"),
        ("jobStatus" = Option<String>, Query, description = "Status of the jobs"),
        ("x-ms-max-item-count" = Option<u32>, Header, description = "Most items of the page: 100 if absent, at most 1000"),
        ("x-ms-continuation" = Option<String>, Header, description = "As the page before gave it"),
    ),
    responses((status = 200, body = Vec<JobResponseDto>)))]
pub(crate) async fn list(State(api): State<Api>, Query(wanted): Query<Wanted>, fields: HeaderMap) -> Reply {
    let (before, limit) = (before(&fields)?, limit(&fields)?);
    let mut jobs = match filter(&wanted)? {
        Some(filter) => api.jobs.list(filter, before, limit + 1).await?,
        None => Vec::new(),
    };
    let more = jobs.len() > limit;
    jobs.truncate(limit);
    let mut response = json(&jobs.iter().map(JobResponseDto::new).collect::<Vec<_>>())?;
    let answered = response.headers_mut();
    let item_type = HeaderValue::from_static(ItemType::JobResponse.as_str());
    answered.insert(headers::ITEM_TYPE, item_type);
    let last = jobs.last().filter(|_| more);
    let token = last.map(|job| STANDARD.encode(job.number.to_string()));
    if let Some(token) = token.and_then(|token| HeaderValue::from_str(&token).ok()) {
        answered.insert(headers::CONTINUATION, token);
    }
    Ok(response)
}

/// `None` when it asks for kinds or statuses that jobs here never have, such as those of imports.
fn filter(wanted: &Wanted) -> Result<Option<JobFilter>, Error> {
    const OTHER_KINDS: &[&str] = &["unknown", "import", "export", "backup"];
    const OTHER_STATUSES: &[&str] = &["unknown"];
    let is_one_of = |text: &str, others: &[&str]| others.iter().any(|other| other.eq_ignore_ascii_case(text));
    let mut filter = JobFilter::default();
    if let Some(text) = wanted.job_type.as_deref().filter(|text| !text.is_empty()) {
        filter.kind = parse_kind(text);
        if filter.kind.is_none() {
            let known = is_one_of(text, OTHER_KINDS);
            return known.then_some(None).ok_or_else(|| {
                invalid(&format!(
                    "jobType must be scheduleUpdateTwin or scheduleDeviceMethod, not {text:?}"
                ))
            });
        }
    }
    if let Some(text) = wanted.job_status.as_deref().filter(|text| !text.is_empty()) {
        filter.status = parse_status(text);
        if filter.status.is_none() {
            let known = is_one_of(text, OTHER_STATUSES);
            return known.then_some(None).ok_or_else(|| {
                invalid(&format!(
                    "jobStatus must be scheduled, queued, running, completed, failed or cancelled, not {text:?}"
                ))
            });
        }
    }
    Ok(Some(filter))
}

fn text<'a>(fields: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let value = fields.get(name).map(|value| value.to_str().unwrap_or("?").trim());
    value.filter(|text| !text.is_empty())
}

fn before(fields: &HeaderMap) -> Result<Option<u64>, Error> {
    let Some(token) = text(fields, headers::CONTINUATION) else {
        return Ok(None);
    };
    let number = STANDARD
        .decode(token)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok());
    number
        .map(Some)
        .ok_or_else(|| invalid("x-ms-continuation is not a token of this list"))
}

fn limit(fields: &HeaderMap) -> Result<usize, Error> {
    match text(fields, headers::MAX_ITEM_COUNT).map(str::parse::<i64>) {
        None | Some(Ok(-1)) => Ok(PAGE_DEFAULT),
        Some(Ok(count @ 1..)) => Ok(usize::try_from(count).unwrap_or(PAGE_MAX).min(PAGE_MAX)),
        Some(_) => Err(invalid("x-ms-max-item-count must be a whole number above 0")),
    }
}

fn invalid(text: &str) -> Error {
    Error::new(ErrorCode::ArgumentInvalid, text)
}
