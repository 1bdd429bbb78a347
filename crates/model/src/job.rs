//! Jobs: one twin update or direct method over many devices or modules (rest.md section 10).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::identity::Identity;
use crate::method::MethodCall;
use crate::time::Timestamp;
use crate::twin::TwinChange;

/// What a job does at each of its targets.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "type")]
pub enum JobWork {
    /// Patches tags and desired properties.
    #[serde(rename_all = "camelCase")]
    UpdateTwin {
        /// Changes of the tags.
        tags: Option<Map<String, Value>>,
        /// Changes of the desired properties.
        desired: Option<Map<String, Value>>,
    },
    /// Calls a direct method.
    #[serde(rename_all = "camelCase")]
    Method {
        /// Its name.
        name: String,
        /// JSON text handed to the device; empty for none.
        payload: String,
        /// How long to wait for an answer, seconds.
        response_timeout: u64,
        /// How long to wait for the device to connect, seconds.
        connect_timeout: u64,
    },
}

impl JobWork {
    /// What kind of job it makes.
    #[must_use]
    pub const fn kind(&self) -> JobKind {
        match self {
            JobWork::UpdateTwin { .. } => JobKind::UpdateTwin,
            JobWork::Method { .. } => JobKind::Method,
        }
    }

    /// The change of each twin, for a twin job.
    #[must_use]
    pub fn twin_change(&self) -> Option<TwinChange> {
        match self {
            JobWork::UpdateTwin { tags, desired } => Some(TwinChange {
                tags: tags.clone(),
                desired: desired.clone(),
            }),
            JobWork::Method { .. } => None,
        }
    }

    /// The call to each target, for a method job.
    #[must_use]
    pub fn call(&self) -> Option<MethodCall> {
        match self {
            JobWork::UpdateTwin { .. } => None,
            JobWork::Method {
                name,
                payload,
                response_timeout,
                connect_timeout,
            } => Some(MethodCall {
                name: name.clone(),
                payload: payload.clone().into(),
                connect_timeout: Duration::from_secs(*connect_timeout),
                response_timeout: Duration::from_secs(*response_timeout),
            }),
        }
    }
}

/// Kind of a job.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum JobKind {
    /// `scheduleUpdateTwin`.
    UpdateTwin,
    /// `scheduleDeviceMethod`.
    Method,
}

impl JobKind {
    /// As clients spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            JobKind::UpdateTwin => "scheduleUpdateTwin",
            JobKind::Method => "scheduleDeviceMethod",
        }
    }

    /// Both, for readers.
    pub const ALL: [JobKind; 2] = [JobKind::UpdateTwin, JobKind::Method];
}

/// How far a job is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum JobStatus {
    /// Its time has not come.
    Scheduled,
    /// Its time has come; as many jobs as may be are running.
    Queued,
    /// At work.
    Running,
    /// Every target has been tried.
    Completed,
    /// It could not be carried out, or not in the time it was given.
    Failed,
    /// Cancelled by a service.
    Cancelled,
}

impl JobStatus {
    /// Every status.
    pub const ALL: [JobStatus; 6] = [
        JobStatus::Scheduled,
        JobStatus::Queued,
        JobStatus::Running,
        JobStatus::Completed,
        JobStatus::Failed,
        JobStatus::Cancelled,
    ];

    /// As clients spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            JobStatus::Scheduled => "scheduled",
            JobStatus::Queued => "queued",
            JobStatus::Running => "running",
            JobStatus::Completed => "completed",
            JobStatus::Failed => "failed",
            JobStatus::Cancelled => "cancelled",
        }
    }

    /// Whether nothing happens any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(
            self,
            JobStatus::Completed | JobStatus::Failed | JobStatus::Cancelled
        )
    }
}

/// How far a job is at one target.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DeviceJobStatus {
    /// Not tried yet.
    Pending,
    /// A method call is under way.
    Running,
    /// Done; a device may have answered a method with any status.
    Completed,
    /// Not done; the error says why.
    Failed,
    /// Not tried, since the job was cancelled.
    Canceled,
}

impl DeviceJobStatus {
    /// Every status.
    pub const ALL: [DeviceJobStatus; 5] = [
        DeviceJobStatus::Pending,
        DeviceJobStatus::Running,
        DeviceJobStatus::Completed,
        DeviceJobStatus::Failed,
        DeviceJobStatus::Canceled,
    ];

    /// As clients spell it (one l, unlike the status of a job).
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            DeviceJobStatus::Pending => "pending",
            DeviceJobStatus::Running => "running",
            DeviceJobStatus::Completed => "completed",
            DeviceJobStatus::Failed => "failed",
            DeviceJobStatus::Canceled => "canceled",
        }
    }

    /// Whether nothing happens any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        !matches!(self, DeviceJobStatus::Pending | DeviceJobStatus::Running)
    }
}

/// How many targets a job has in each status.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct JobCounts {
    /// Not tried yet.
    pub pending: u64,
    /// Method calls under way.
    pub running: u64,
    /// Done.
    pub succeeded: u64,
    /// Not done.
    pub failed: u64,
    /// Not tried, since the job was cancelled.
    pub canceled: u64,
}

impl JobCounts {
    /// All targets found so far.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.pending + self.running + self.succeeded + self.failed + self.canceled
    }

    /// Targets that are not done.
    #[must_use]
    pub const fn unfinished(&self) -> u64 {
        self.pending + self.running
    }

    /// The count of a status.
    pub fn of(&mut self, status: DeviceJobStatus) -> &mut u64 {
        match status {
            DeviceJobStatus::Pending => &mut self.pending,
            DeviceJobStatus::Running => &mut self.running,
            DeviceJobStatus::Completed => &mut self.succeeded,
            DeviceJobStatus::Failed => &mut self.failed,
            DeviceJobStatus::Canceled => &mut self.canceled,
        }
    }

    /// Moves `count` targets from one status to another.
    pub fn shift(&mut self, from: DeviceJobStatus, to: DeviceJobStatus, count: u64) {
        let of = self.of(from);
        *of = of.saturating_sub(count);
        *self.of(to) += count;
    }
}

/// What a job is to do; never changes.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobSpec {
    /// What to do at each target.
    pub work: JobWork,
    /// Which targets: a condition as of a configuration, `*` for all.
    pub condition: String,
    /// How long it may run from its start, seconds.
    pub max_execution_seconds: u64,
}

/// A job.
#[derive(Clone, PartialEq, Debug)]
pub struct Job {
    /// Given by the store: later jobs have greater numbers.
    pub number: u64,
    /// Given by the creator.
    pub id: String,
    /// What it does.
    pub spec: JobSpec,
    /// How far it is.
    pub status: JobStatus,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it is to start.
    pub start_at: Timestamp,
    /// When it was started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why it failed.
    pub failure: Option<String>,
    /// Where the search for targets goes on, in terms of the store; `None` at its beginning.
    pub cursor: Option<String>,
    /// Whether all targets have been found.
    pub expanded: bool,
    /// Its targets by status.
    pub counts: JobCounts,
}

impl Job {
    /// When it has to end, once it has started.
    #[must_use]
    pub fn deadline(&self) -> Timestamp {
        self.started_at.map_or(Timestamp::MAX, |at| {
            at.plus(Duration::from_secs(self.spec.max_execution_seconds))
        })
    }
}

/// Why a job failed at a target.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JobError {
    /// Name of the error.
    pub code: String,
    /// What happened.
    pub description: String,
}

/// What a device answered to the method of a job.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MethodOutcome {
    /// Its status.
    pub status: i64,
    /// Its payload.
    pub payload: Value,
}

/// A job at one of its targets.
#[derive(Clone, PartialEq, Debug)]
pub struct DeviceJob {
    /// Number of the job; with the identity it is the order of all device jobs.
    pub number: u64,
    /// Id of the job.
    pub job_id: String,
    /// Kind of the job.
    pub kind: JobKind,
    /// The target.
    pub identity: Identity,
    /// How far it is.
    pub status: DeviceJobStatus,
    /// When the target was found.
    pub created_at: Timestamp,
    /// When it was tried.
    pub started_at: Option<Timestamp>,
    /// When it was done.
    pub ended_at: Option<Timestamp>,
    /// When this last changed.
    pub updated_at: Timestamp,
    /// What the device answered.
    pub outcome: Option<MethodOutcome>,
    /// Why it failed.
    pub error: Option<JobError>,
}

/// What came of a job at one target.
#[derive(Clone, PartialEq, Debug)]
pub struct DeviceJobResult {
    /// The target.
    pub identity: Identity,
    /// A final status.
    pub status: DeviceJobStatus,
    /// When it was tried.
    pub started_at: Timestamp,
    /// When it was done.
    pub ended_at: Timestamp,
    /// What the device answered.
    pub outcome: Option<MethodOutcome>,
    /// Why it failed.
    pub error: Option<JobError>,
}
