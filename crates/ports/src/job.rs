//! Store of jobs and of what came of them at each target.

use std::sync::Arc;

use holdfast_model::job::{
    DeviceJob, DeviceJobResult, DeviceJobStatus, Job, JobCounts, JobError, JobKind, JobSpec, JobStatus,
};
use holdfast_model::{Identity, Timestamp};

use crate::outbox::OutboxEvent;
use crate::{BoxFuture, StoreResult};

/// What is to be told of a job that was created or has changed; may be called several times for one change.
pub type JobTelling = Arc<dyn Fn(&Job) -> Vec<OutboxEvent> + Send + Sync>;

/// A job to be stored.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Its id.
    pub id: String,
    /// What it does.
    pub spec: JobSpec,
    /// Now.
    pub created_at: Timestamp,
    /// When it is to start.
    pub start_at: Timestamp,
    /// Its first status.
    pub status: JobStatus,
}

/// Which jobs are listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct JobFilter {
    /// Of this kind.
    pub kind: Option<JobKind>,
    /// In this status.
    pub status: Option<JobStatus>,
}

/// Targets found by a step of the search.
#[derive(Clone, Debug)]
pub struct Targets {
    /// The targets.
    pub found: Vec<Identity>,
    /// Where the search goes on.
    pub cursor: Option<String>,
    /// Whether that was all.
    pub complete: bool,
    /// Now.
    pub at: Timestamp,
}

/// What becomes of the targets that a job has not done when it ends.
#[derive(Clone, Debug)]
pub struct Remainder {
    /// Their status.
    pub status: DeviceJobStatus,
    /// Why.
    pub error: Option<JobError>,
    /// Now.
    pub at: Timestamp,
}

/// Store of jobs. The counts of a job change in the same step as its targets.
pub trait JobStore: Send + Sync + 'static {
    /// Adds a job.
    ///
    /// # Errors
    /// `Exists`; `Full` when `unfinished_max` jobs have not ended.
    fn create_job(&self, job: NewJob, unfinished_max: usize) -> BoxFuture<'_, StoreResult<Job>> {
        self.create_job_telling(job, unfinished_max, None)
    }

    /// As [`JobStore::create_job`]; what `telling` says goes into the outbox in the same transaction.
    ///
    /// # Errors
    /// As [`JobStore::create_job`], and [`crate::outbox::full`].
    fn create_job_telling(
        &self,
        job: NewJob,
        unfinished_max: usize,
        telling: Option<JobTelling>,
    ) -> BoxFuture<'_, StoreResult<Job>>;

    /// A job by its id.
    fn job<'a>(&'a self, id: &'a str) -> BoxFuture<'a, StoreResult<Option<Job>>>;

    /// Up to `limit` jobs with numbers below `before`, newest first.
    fn jobs(
        &self,
        filter: JobFilter,
        before: Option<u64>,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<Job>>>;

    /// Jobs with work left, oldest first: those that have not ended, and ended ones with targets that are still pending
    /// or running.
    fn unfinished_jobs(&self) -> BoxFuture<'_, StoreResult<Vec<Job>>>;

    /// Moves a job to another status, if it is not in a final one; notes the time of the start or the end with it.
    /// Returns the job as it is then.
    ///
    /// # Errors
    /// `Missing`; `Conflict` for a job in a final status.
    fn set_job_status<'a>(
        &'a self,
        id: &'a str,
        status: JobStatus,
        failure: Option<String>,
        at: Timestamp,
    ) -> BoxFuture<'a, StoreResult<Job>> {
        self.set_job_status_telling(id, status, failure, at, None)
    }

    /// As [`JobStore::set_job_status`]; what `telling` says of the job as it is then goes into the outbox in the same
    /// transaction.
    ///
    /// # Errors
    /// As [`JobStore::set_job_status`], and [`crate::outbox::full`].
    fn set_job_status_telling<'a>(
        &'a self,
        id: &'a str,
        status: JobStatus,
        failure: Option<String>,
        at: Timestamp,
        telling: Option<JobTelling>,
    ) -> BoxFuture<'a, StoreResult<Job>>;

    /// Adds pending targets and notes how far the search is. Targets that are there already are skipped.
    ///
    /// # Errors
    /// `Missing`; `Conflict` for a job in a final status.
    fn add_targets<'a>(&'a self, id: &'a str, targets: Targets) -> BoxFuture<'a, StoreResult<Job>>;

    /// Up to `limit` targets in a status after `after`, by device id and module id.
    fn job_targets<'a>(
        &'a self,
        id: &'a str,
        status: DeviceJobStatus,
        after: Option<&'a Identity>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Identity>>>;

    /// Notes that the method is about to be called at these targets. Returns those that were pending.
    ///
    /// # Errors
    /// `Missing`.
    fn begin_targets<'a>(
        &'a self,
        id: &'a str,
        targets: Vec<Identity>,
        at: Timestamp,
    ) -> BoxFuture<'a, StoreResult<Vec<Identity>>>;

    /// Records what came of targets. A target with a final status keeps what was recorded first.
    ///
    /// # Errors
    /// `Missing`.
    fn record_targets<'a>(
        &'a self,
        id: &'a str,
        results: Vec<DeviceJobResult>,
    ) -> BoxFuture<'a, StoreResult<JobCounts>>;

    /// Gives up to `limit` unfinished targets in `status` the status of the remainder. Returns how many.
    ///
    /// # Errors
    /// `Missing`.
    fn finish_targets<'a>(
        &'a self,
        id: &'a str,
        status: DeviceJobStatus,
        remainder: Remainder,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<usize>>;

    /// The oldest jobs that ended before `before`, at most `limit`, with the number of all ended jobs and of all device
    /// jobs: for retention.
    fn history(&self, before: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<History>>;

    /// Deletes up to `limit` device jobs of an ended job; returns how many. When none is left, the job itself goes.
    fn delete_history<'a>(&'a self, id: &'a str, limit: usize) -> BoxFuture<'a, StoreResult<usize>>;

    /// Up to `limit` device jobs by job number, device id and module id, after `after`; of one job, or of all.
    fn device_jobs<'a>(
        &'a self,
        job: Option<&'a str>,
        after: Option<(u64, Identity)>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<DeviceJob>>>;
}

/// What retention has to judge.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct History {
    /// Ids of ended jobs, the one that ended first in front.
    pub expired: Vec<String>,
    /// Jobs that have ended.
    pub ended: u64,
    /// Targets of all jobs.
    pub device_jobs: u64,
}
