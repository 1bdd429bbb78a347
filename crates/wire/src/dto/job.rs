//! Scheduled jobs (REST contract, section 10).

use std::time::Duration;

use holdfast_model::job::{Job, JobKind, JobStatus, JobWork};
use holdfast_model::twin::TwinChange;
use holdfast_model::{Error, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::method::MethodRequestDto;
use super::twin::parse_twin_change;
use super::{TimeDto, invalid};

/// Body of a PUT.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobRequestDto {
    /// As in the path.
    #[serde(default)]
    pub job_id: Option<String>,
    /// `scheduleDeviceMethod` or `scheduleUpdateTwin`.
    #[serde(default, rename = "type")]
    pub kind: Option<String>,
    /// The call, for a method job.
    #[serde(default)]
    pub cloud_to_device_method: Option<MethodRequestDto>,
    /// The patch, for a twin job.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub update_twin: Option<Box<RawValue>>,
    /// Condition on devices, or `FROM devices.modules WHERE` and one on modules; `*` is all devices.
    #[serde(default)]
    pub query_condition: Option<String>,
    /// Null: now.
    #[serde(default)]
    pub start_time: Option<String>,
    /// 1 to 172,800; default 3,600.
    #[serde(default)]
    pub max_execution_time_in_seconds: Option<i64>,
}

impl JobRequestDto {
    /// Checks that the body is about the resource of the path.
    ///
    /// # Errors
    /// [`holdfast_model::ErrorCode::ArgumentInvalid`].
    pub fn check_id(&self, id: &str) -> Result<(), Error> {
        match self.job_id.as_deref() {
            None | Some("") => Ok(()),
            Some(own) if own == id => Ok(()),
            Some(own) => Err(invalid(format!(
                "the body has the jobId {own:?}, the path {id:?}"
            ))),
        }
    }

    /// What the job is to do.
    ///
    /// # Errors
    /// [`holdfast_model::ErrorCode::ArgumentInvalid`] for an unknown type or one without its member, and as
    /// [`MethodRequestDto::call`] and [`parse_twin_change`].
    pub fn work(&self) -> Result<JobWork, Error> {
        let text = self.kind.as_deref().unwrap_or_default();
        match parse_kind(text) {
            Some(JobKind::Method) => {
                let method = self.cloud_to_device_method.as_ref();
                let method = method.ok_or_else(|| invalid("cloudToDeviceMethod is missing"))?;
                let call = method.call()?;
                Ok(JobWork::Method {
                    name: call.name,
                    payload: String::from_utf8_lossy(&call.payload).into_owned(),
                    response_timeout: call.response_timeout.as_secs(),
                    connect_timeout: call.connect_timeout.as_secs(),
                })
            }
            Some(JobKind::UpdateTwin) => {
                let patch = self.update_twin.as_ref();
                let patch = patch.ok_or_else(|| invalid("updateTwin is missing"))?;
                let TwinChange { tags, desired } = parse_twin_change(patch.get().as_bytes())?;
                Ok(JobWork::UpdateTwin { tags, desired })
            }
            None => Err(invalid(format!(
                "type must be scheduleUpdateTwin or scheduleDeviceMethod, not {text:?}"
            ))),
        }
    }

    /// When it is to start.
    ///
    /// # Errors
    /// [`holdfast_model::ErrorCode::ArgumentInvalid`].
    pub fn start_at(&self) -> Result<Option<Timestamp>, Error> {
        match self.start_time.as_deref().map(str::trim) {
            None | Some("") => Ok(None),
            Some(text) => Timestamp::parse(text)
                .map(Some)
                .ok_or_else(|| invalid(format!("startTime {text:?} is not an ISO 8601 time"))),
        }
    }

    /// How long it may run.
    ///
    /// # Errors
    /// [`holdfast_model::ErrorCode::ArgumentInvalid`] for a negative number.
    pub fn max_execution(&self) -> Result<Option<Duration>, Error> {
        let Some(seconds) = self.max_execution_time_in_seconds else {
            return Ok(None);
        };
        u64::try_from(seconds)
            .map(|seconds| Some(Duration::from_secs(seconds)))
            .map_err(|_| invalid("maxExecutionTimeInSeconds must not be negative"))
    }
}

/// A kind of job, in any case.
#[must_use]
pub fn parse_kind(text: &str) -> Option<JobKind> {
    JobKind::ALL
        .into_iter()
        .find(|kind| kind.as_str().eq_ignore_ascii_case(text))
}

/// Statuses of a job that a filter names, in any case; `None` for an unknown word. `enqueued` is what other versions of
/// the contract call `queued`.
#[must_use]
pub fn parse_status(text: &str) -> Option<JobStatus> {
    if text.eq_ignore_ascii_case("enqueued") {
        return Some(JobStatus::Queued);
    }
    JobStatus::ALL
        .into_iter()
        .find(|status| status.as_str().eq_ignore_ascii_case(text))
}

/// A job in an answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobResponseDto {
    /// Its id.
    pub job_id: String,
    /// `scheduleDeviceMethod` or `scheduleUpdateTwin`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `scheduled`, `queued`, `running`, `completed`, `failed` or `cancelled`.
    pub status: &'static str,
    /// Which targets.
    pub query_condition: String,
    /// When it was created.
    pub created_time: TimeDto,
    /// When it is to start, or was started.
    pub start_time: TimeDto,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_time: Option<TimeDto>,
    /// How long it may run.
    pub max_execution_time_in_seconds: u64,
    /// The call, of a method job.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub cloud_to_device_method: Option<Value>,
    /// The patch, of a twin job.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub update_twin: Option<Value>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_reason: Option<String>,
    /// The same, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_message: Option<String>,
    /// Its targets by status.
    pub device_job_statistics: DeviceJobStatisticsDto,
}

/// Targets of a job by status. Those that a cancelled job left out count as devices only.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeviceJobStatisticsDto {
    /// Found so far.
    pub device_count: u64,
    /// Not done.
    pub failed_count: u64,
    /// Done.
    pub succeeded_count: u64,
    /// Under way.
    pub running_count: u64,
    /// Not tried yet.
    pub pending_count: u64,
}

impl JobResponseDto {
    /// The answer about a job.
    #[must_use]
    pub fn new(job: &Job) -> Self {
        let counts = &job.counts;
        let (method, twin) = match &job.spec.work {
            JobWork::UpdateTwin { tags, desired } => (None, Some(twin_json(tags.as_ref(), desired.as_ref()))),
            JobWork::Method {
                name,
                payload,
                response_timeout,
                connect_timeout,
            } => (
                Some(json!({
                    "methodName": name,
                    "payload": serde_json::from_str::<Value>(payload).unwrap_or(Value::Null),
                    "responseTimeoutInSeconds": response_timeout,
                    "connectTimeoutInSeconds": connect_timeout,
                })),
                None,
            ),
        };
        JobResponseDto {
            job_id: job.id.clone(),
            kind: job.spec.work.kind().as_str(),
            status: job.status.as_str(),
            query_condition: job.spec.condition.clone(),
            created_time: TimeDto(job.created_at),
            start_time: TimeDto(job.started_at.unwrap_or(job.start_at)),
            end_time: job.ended_at.map(TimeDto),
            max_execution_time_in_seconds: job.spec.max_execution_seconds,
            cloud_to_device_method: method,
            update_twin: twin,
            failure_reason: job.failure.clone(),
            status_message: job.failure.clone(),
            device_job_statistics: DeviceJobStatisticsDto {
                device_count: counts.total(),
                failed_count: counts.failed,
                succeeded_count: counts.succeeded,
                running_count: counts.running,
                pending_count: counts.pending,
            },
        }
    }
}

fn twin_json(tags: Option<&Map<String, Value>>, desired: Option<&Map<String, Value>>) -> Value {
    let mut twin = Map::new();
    twin.insert("etag".into(), "*".into());
    if let Some(tags) = tags {
        twin.insert("tags".into(), Value::Object(tags.clone()));
    }
    if let Some(desired) = desired {
        twin.insert("properties".into(), json!({ "desired": desired }));
    }
    Value::Object(twin)
}
