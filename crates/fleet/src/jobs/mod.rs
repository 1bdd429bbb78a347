//! Jobs: a twin update or a direct method at every device or module that a condition targets; scheduled, bounded and
//! restart-safe (rest.md section 10).
//!
//! # How a job runs
//! ```text
//! create ─▶ scheduled ─▶ queued ─▶ running ──────────────────────────────▶ completed | failed | cancelled
//!                                    │ search: pages of targets ─▶ pending rows, with where the search goes on
//!                                    └ work: pending ─▶ (method: running) ─▶ Hub ─▶ results in batches
//! ```
//!
//! # Invariants
//! * A job's targets, what came of each, and how far the search is are stored; the process may end at any moment and
//!   the next one goes on. A twin update is made at least once at each target. A method is called at most once: a call
//!   that was under way when the process ended is recorded as failed, since nobody knows whether the device has run it.
//! * What came of a target is recorded once, whatever is repeated.
//! * At most [`JobsConfig::concurrent`] jobs run, each with so many targets at once; what waits is rows, not memory.

pub mod events;
mod retention;
mod run;
mod spec;
mod work;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_hub::Hub;
use holdfast_model::configuration::check_fleet_id;
use holdfast_model::job::{Job, JobStatus};
use holdfast_model::limits::JOB_HISTORY_SECONDS;
use holdfast_model::{Error, ErrorCode};
use holdfast_observe::Event as _;
use holdfast_ports::clock::Clock;
use holdfast_ports::job::{JobFilter, JobStore, NewJob};
use holdfast_ports::query::QueryStore;
use holdfast_ports::{StoreError, StoreResult};
use parking_lot::Mutex;
use tokio::sync::Notify;

use events::{Metrics, Unavailable};
pub use spec::JobRequest;
use work::Stop;

/// Settings of jobs.
#[derive(Clone, Debug)]
pub struct JobsConfig {
    /// Jobs that run at once. Default: 10.
    pub concurrent: usize,
    /// Most jobs that wait or run. Default: 1,000.
    pub unfinished_max: usize,
    /// Twin updates of one job under way at once. Default: 512.
    pub twin_updates_at_once: usize,
    /// Method calls of one job under way at once. Default: 1,000.
    pub methods_at_once: usize,
    /// How long an ended job is kept. Default: 30 days.
    pub history: Duration,
    /// Most ended jobs kept; the oldest go first. Default: 10,000.
    pub history_jobs_max: u64,
    /// Most targets kept over all jobs; the oldest ended jobs go first. Default: 20,000,000.
    pub history_targets_max: u64,
    /// How often history is looked through. Default: 10 minutes.
    pub retention_interval: Duration,
    /// How long to wait after a store has failed. Default: 5 seconds.
    pub retry_after: Duration,
}

impl Default for JobsConfig {
    fn default() -> Self {
        JobsConfig {
            concurrent: 10,
            unfinished_max: 1_000,
            twin_updates_at_once: 512,
            methods_at_once: 1_000,
            history: Duration::from_secs(JOB_HISTORY_SECONDS),
            history_jobs_max: 10_000,
            history_targets_max: 20_000_000,
            retention_interval: Duration::from_secs(600),
            retry_after: Duration::from_secs(5),
        }
    }
}

/// The driven ports of jobs.
#[derive(Clone)]
pub struct Drivers {
    /// Jobs.
    pub store: Arc<dyn JobStore>,
    /// Finds targets.
    pub query: Arc<dyn QueryStore>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// The engine of jobs. The composition root runs [`Jobs::run`] as long as the hub lives.
pub struct Jobs {
    config: JobsConfig,
    hub: Arc<Hub>,
    drivers: Drivers,
    metrics: Metrics,
    wake: Notify,
    /// Jobs at work in this process, by id.
    at_work: Mutex<HashMap<String, Arc<Stop>>>,
}

impl Jobs {
    /// Makes the engine; nothing happens before [`Jobs::run`].
    #[must_use]
    pub fn new(config: JobsConfig, hub: Arc<Hub>, drivers: Drivers, metrics: Metrics) -> Arc<Self> {
        Arc::new(Jobs {
            config,
            hub,
            drivers,
            metrics,
            wake: Notify::new(),
            at_work: Mutex::default(),
        })
    }

    /// Schedules a job.
    ///
    /// # Errors
    /// `JobAlreadyExists`; `ArgumentInvalid` with the place of the fault; `ThrottlingMaxActiveJobCountExceeded`;
    /// `ServiceUnavailable`.
    pub async fn create(&self, id: &str, request: JobRequest) -> Result<Job, Error> {
        check_fleet_id("job id", id)?;
        let now = self.drivers.clock.now();
        let start_at = request.start_at.unwrap_or(now);
        let spec = request.check(now)?;
        let status = match start_at > now {
            true => JobStatus::Scheduled,
            false => JobStatus::Queued,
        };
        let job = NewJob {
            id: id.to_owned(),
            spec,
            created_at: now,
            start_at: start_at.max(now),
            status,
        };
        let deadline = self.hub.room_deadline();
        let made = loop {
            let telling = self.hub.job_creation_telling();
            let store = &self.drivers.store;
            let made = store.create_job_telling(job.clone(), self.config.unfinished_max, telling);
            match made.await {
                Err(error) if self.hub.waited_for_room(&error, deadline).await => {}
                made => break made,
            }
        };
        let made = made.map_err(|error| match error {
            StoreError::Exists => Error::new(
                ErrorCode::JobAlreadyExists,
                format!("the job {id:?} exists already; jobs are kept for 30 days, so choose another id"),
            ),
            StoreError::Full => Error::new(
                ErrorCode::ThrottlingMaxActiveJobCountExceeded,
                format!(
                    "{} jobs are waiting or running, as many as may be; try again later",
                    self.config.unfinished_max
                ),
            ),
            other => self.store_error("create job", id, other),
        })?;
        self.metrics.created.inc();
        self.hub.told();
        self.wake.notify_one();
        Ok(made)
    }

    /// A job.
    ///
    /// # Errors
    /// `JobNotFound`, `ServiceUnavailable`.
    pub async fn get(&self, id: &str) -> Result<Job, Error> {
        let found = self.drivers.store.job(id).await;
        let found = found.map_err(|error| self.store_error("read job", id, error))?;
        found.ok_or_else(|| not_found(id))
    }

    /// Up to `limit` jobs with numbers below `before`, newest first.
    ///
    /// # Errors
    /// `ServiceUnavailable`.
    pub async fn list(
        &self,
        filter: JobFilter,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Job>, Error> {
        let listed = self.drivers.store.jobs(filter, before, limit).await;
        listed.map_err(|error| self.store_error("list jobs", "", error))
    }

    /// Cancels a job: what is under way at targets comes to its end where it can, the others are not tried. A job that
    /// was cancelled before stays so.
    ///
    /// # Errors
    /// `JobNotFound`; `InvalidOperation` for a job that has ended otherwise; `ServiceUnavailable`.
    pub async fn cancel(&self, id: &str) -> Result<Job, Error> {
        match self.set_status(id, JobStatus::Cancelled, None).await {
            Ok(job) => {
                if let Some(stop) = self.at_work.lock().get(id) {
                    stop.now();
                }
                self.wake.notify_one();
                Ok(job)
            }
            Err(StoreError::Conflict) => {
                let job = self.get(id).await?;
                if job.status == JobStatus::Cancelled {
                    return Ok(job);
                }
                Err(Error::new(
                    ErrorCode::InvalidOperation,
                    format!(
                        "the job {id:?} has ended ({}); it cannot be cancelled",
                        job.status.as_str()
                    ),
                ))
            }
            Err(error) => Err(self.store_error("cancel job", id, error)),
        }
    }

    /// Moves a job to another status, and tells of it.
    async fn set_status(&self, id: &str, status: JobStatus, failure: Option<String>) -> StoreResult<Job> {
        let deadline = self.hub.room_deadline();
        loop {
            let telling = self.hub.job_change_telling();
            let (store, now) = (&self.drivers.store, self.drivers.clock.now());
            let changed = store.set_job_status_telling(id, status, failure.clone(), now, telling);
            match changed.await {
                Err(error) if self.hub.waited_for_room(&error, deadline).await => {}
                changed => {
                    self.hub.told();
                    return changed;
                }
            }
        }
    }

    fn store_error(&self, operation: &'static str, id: &str, error: StoreError) -> Error {
        let reason = match error {
            StoreError::Refused(error) => return error,
            StoreError::Missing => return not_found(id),
            StoreError::Unavailable(reason) => reason,
            other => other.to_string(),
        };
        Unavailable {
            operation,
            reason: &reason,
        }
        .emit(&self.metrics);
        Error::new(
            ErrorCode::ServiceUnavailable,
            "the hub cannot reach its storage; try again later",
        )
    }
}

fn not_found(id: &str) -> Error {
    Error::new(ErrorCode::JobNotFound, format!("there is no job {id:?}"))
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jobs")
            .field("at_work", &self.at_work.lock().len())
            .finish_non_exhaustive()
    }
}
