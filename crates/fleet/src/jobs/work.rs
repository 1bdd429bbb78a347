//! One job at work: the search for its targets, and what it does at each.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use holdfast_hub::{IfMatch, ServiceCaller};
use holdfast_model::job::{
    DeviceJobResult, DeviceJobStatus, Job, JobCounts, JobError, JobKind, JobStatus, MethodOutcome,
};
use holdfast_model::method::{MethodCall, MethodResponse};
use holdfast_model::policy::Rights;
use holdfast_model::twin::{ChangeMode, TwinChange};
use holdfast_model::{Error, ErrorCode, Identity};
use holdfast_observe::Event as _;
use holdfast_ports::job::{Remainder, Targets};
use holdfast_ports::{StoreError, StoreResult};
use holdfast_query::twin::Cursor;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::Jobs;
use super::events::{Ended, Started};
use super::spec::read_condition;

/// Targets added in one step of the search.
const SEARCH_PAGE: usize = 1_000;
/// Results recorded in one step.
const RECORD_MAX: usize = 512;
/// How long a result may wait for others to be recorded with.
const RECORD_WAIT: Duration = Duration::from_millis(50);
/// Targets given a final status in one step when a job ends early.
const FINISH_PAGE: usize = 5_000;

/// Asks a job at work to stop.
pub(super) struct Stop {
    /// Whether it counts among the jobs that run at once.
    pub(super) takes_a_place: bool,
    asked: AtomicBool,
    wake: Notify,
}

impl Stop {
    pub(super) fn new(takes_a_place: bool) -> Self {
        Stop {
            takes_a_place,
            asked: AtomicBool::new(false),
            wake: Notify::new(),
        }
    }

    pub(super) fn now(&self) {
        self.asked.store(true, Ordering::Release);
        self.wake.notify_waiters();
    }

    /// Returns when it is asked for.
    pub(super) async fn asked(&self) {
        loop {
            let woken = self.wake.notified();
            tokio::pin!(woken);
            // Listen first, look second.
            woken.as_mut().enable();
            if self.asked.load(Ordering::Acquire) {
                return;
            }
            woken.await;
        }
    }
}

/// How the work at targets came to its end.
enum Outcome {
    /// All have been tried.
    Done,
    /// Somebody cancelled the job.
    Cancelled,
    /// Its time is over.
    TimedOut,
    /// The search cannot be made.
    Impossible(String),
}

/// The search for targets, as the work sees it.
#[derive(Default)]
struct Search {
    complete: AtomicBool,
    progress: Notify,
}

type Attempt<'a> = Pin<Box<dyn Future<Output = DeviceJobResult> + Send + 'a>>;

/// What a job does at a target, shared by all attempts.
enum Deed {
    Update(TwinChange),
    Call(MethodCall),
}

impl Jobs {
    /// Runs a job to its end, from wherever it stands.
    pub(super) async fn work(&self, job: Job, stop: &Stop) -> StoreResult<()> {
        if job.status.is_final() {
            return self.put_in_order(&job, None).await;
        }
        let job = match self.set_status(&job.id, JobStatus::Running, None).await {
            Ok(job) => job,
            // Cancelled a moment ago.
            Err(StoreError::Conflict | StoreError::Missing) => return Ok(()),
            Err(error) => return Err(error),
        };
        Started { id: &job.id }.emit(&self.metrics);
        self.give_up_interrupted(&job).await?;
        let search = Search::default();
        let outcome = {
            let searching = self.search(&job, &search);
            let trying = self.try_targets(&job, &search, stop);
            tokio::pin!(searching, trying);
            // The search may end first with all well, or with a reason to end the job; the work ends the rest.
            tokio::select! {
                outcome = &mut trying => outcome?,
                found = &mut searching => match found? {
                    Some(reason) => Outcome::Impossible(reason),
                    None => trying.await?,
                },
            }
        };
        let (status, failure) = match outcome {
            Outcome::Done => (JobStatus::Completed, None),
            Outcome::Cancelled => (JobStatus::Cancelled, None),
            Outcome::TimedOut => {
                let seconds = job.spec.max_execution_seconds;
                let text = format!("the job did not end within maxExecutionTimeInSeconds ({seconds} s)");
                (JobStatus::Failed, Some(text))
            }
            Outcome::Impossible(reason) => (JobStatus::Failed, Some(reason)),
        };
        let told = match self.set_status(&job.id, status, failure).await {
            Ok(job) => Some(job.counts),
            Err(StoreError::Conflict | StoreError::Missing) => None,
            Err(error) => return Err(error),
        };
        // As it is stored: a cancellation may have come first.
        match self.drivers.store.job(&job.id).await? {
            Some(job) => self.put_in_order(&job, told).await,
            None => Ok(()),
        }
    }

    /// Calls that were under way when the process before this one ended.
    async fn give_up_interrupted(&self, job: &Job) -> StoreResult<()> {
        let remainder = Remainder {
            status: DeviceJobStatus::Failed,
            error: Some(JobError {
                code: "Interrupted".to_owned(),
                description:
                    "the hub was restarted while the method was being called; whether the device has run it \
                              is not known"
                        .to_owned(),
            }),
            at: self.drivers.clock.now(),
        };
        self.finish(job, DeviceJobStatus::Running, remainder).await
    }

    /// Gives the targets that an ended job has left their last status. `told` are the counts that were told with its
    /// end, if they are known; others are told now.
    async fn put_in_order(&self, job: &Job, told: Option<JobCounts>) -> StoreResult<()> {
        let (status, error) = match job.status {
            JobStatus::Cancelled => (DeviceJobStatus::Canceled, None),
            _ => {
                let reason = job.failure.clone().unwrap_or_default();
                let error = JobError {
                    code: "JobEnded".to_owned(),
                    description: reason,
                };
                (DeviceJobStatus::Failed, Some(error))
            }
        };
        let remainder = Remainder {
            status,
            error,
            at: self.drivers.clock.now(),
        };
        self.finish(job, DeviceJobStatus::Running, remainder.clone())
            .await?;
        self.finish(job, DeviceJobStatus::Pending, remainder).await?;
        Ended {
            id: &job.id,
            status: job.status.as_str(),
        }
        .emit(&self.metrics);
        if let Some(job) = self.drivers.store.job(&job.id).await?
            && told.as_ref() != Some(&job.counts)
        {
            // That it has ended was told with its status; if this is lost, only the last counts are. The engine logs why.
            let _ = self.hub.tell_job_changed(&job).await;
        }
        Ok(())
    }

    async fn finish(&self, job: &Job, status: DeviceJobStatus, remainder: Remainder) -> StoreResult<()> {
        loop {
            let store = &self.drivers.store;
            let finished = store.finish_targets(&job.id, status, remainder.clone(), FINISH_PAGE);
            match finished.await {
                Ok(FINISH_PAGE) => {}
                Ok(_) | Err(StoreError::Missing) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Adds targets page by page, from where the search stands. Returns why it cannot be made, if so.
    async fn search(&self, job: &Job, search: &Search) -> StoreResult<Option<String>> {
        let condition = match read_condition(&job.spec.condition) {
            Ok(condition) => condition,
            Err(error) => return Ok(Some(error.message)),
        };
        let mut cursor = job.cursor.as_deref().and_then(Cursor::from_token);
        let mut complete = job.expanded;
        while !complete {
            let page = self
                .drivers
                .query
                .find_targets(&condition, cursor, SEARCH_PAGE)
                .await;
            let page = match page {
                Ok(page) => page,
                Err(StoreError::Refused(error)) if error.code == ErrorCode::ThrottlingException => {
                    sleep(self.config.retry_after).await;
                    cursor = self.stored_cursor(job).await?;
                    continue;
                }
                Err(StoreError::Refused(error)) => return Ok(Some(error.message)),
                Err(error) => return Err(error),
            };
            complete = page.next.is_none();
            let targets = Targets {
                found: page.identities,
                cursor: page.next.as_ref().map(Cursor::to_token),
                complete,
                at: self.drivers.clock.now(),
            };
            cursor = page.next;
            match self.drivers.store.add_targets(&job.id, targets).await {
                Ok(_) => {}
                // Cancelled meanwhile; the work hears of it on its own.
                Err(StoreError::Conflict | StoreError::Missing) => break,
                Err(error) => return Err(error),
            }
            search.progress.notify_one();
        }
        search.complete.store(true, Ordering::Release);
        search.progress.notify_one();
        Ok(None)
    }

    async fn stored_cursor(&self, job: &Job) -> StoreResult<Option<Cursor>> {
        let stored = self.drivers.store.job(&job.id).await?;
        Ok(stored
            .and_then(|job| job.cursor)
            .and_then(|text| Cursor::from_token(&text)))
    }

    /// Tries every target once, as many at once as may be.
    async fn try_targets(&self, job: &Job, search: &Search, stop: &Stop) -> StoreResult<Outcome> {
        let (deed, at_once) = match (job.spec.work.twin_change(), job.spec.work.call()) {
            (Some(change), _) => (Deed::Update(change), self.config.twin_updates_at_once),
            (_, Some(call)) => (Deed::Call(call), self.config.methods_at_once),
            (None, None) => return Ok(Outcome::Impossible("the job has nothing to do".to_owned())),
        };
        let mut attempts: FuturesUnordered<Attempt<'_>> = FuturesUnordered::new();
        let mut waiting: VecDeque<Identity> = VecDeque::new();
        // Taken from the store and not recorded yet.
        let mut taken: HashSet<Identity> = HashSet::new();
        let mut results: Vec<DeviceJobResult> = Vec::new();
        let mut record_by = Instant::now();
        // Whether every target has been taken.
        let mut exhausted = false;
        let left = job.deadline().since(self.drivers.clock.now());
        let time_out = sleep(left);
        tokio::pin!(time_out);
        loop {
            // Asked before the look, so that what is added after it is seen in the next round.
            let was_complete = search.complete.load(Ordering::Acquire);
            if waiting.is_empty() && attempts.len() < at_once && !exhausted {
                waiting = self.take(job, &mut taken, at_once).await?;
                exhausted = was_complete && waiting.is_empty();
            }
            while attempts.len() < at_once {
                let Some(identity) = waiting.pop_front() else {
                    break;
                };
                attempts.push(Box::pin(self.attempt(&deed, identity)));
            }
            if attempts.is_empty() && results.is_empty() && exhausted {
                return Ok(Outcome::Done);
            }
            tokio::select! {
                biased;
                () = stop.asked() => {
                    return self.wind_up(job, &deed, attempts, results).await.map(|()| Outcome::Cancelled);
                }
                () = &mut time_out => {
                    return self.wind_up(job, &deed, attempts, results).await.map(|()| Outcome::TimedOut);
                }
                Some(result) = attempts.next(), if !attempts.is_empty() => {
                    if results.is_empty() {
                        record_by = Instant::now() + RECORD_WAIT;
                    }
                    results.push(result);
                }
                () = sleep_until(record_by), if !results.is_empty() => {}
                () = search.progress.notified(), if !was_complete => {}
            }
            let due = results.len() >= RECORD_MAX || Instant::now() >= record_by || attempts.is_empty();
            if due && !results.is_empty() {
                let done = std::mem::take(&mut results);
                let identities: Vec<Identity> = done.iter().map(|result| result.identity.clone()).collect();
                self.drivers.store.record_targets(&job.id, done).await?;
                for identity in &identities {
                    taken.remove(identity);
                }
            }
        }
    }

    /// Takes pending targets that nobody works at; notes calls before they are made.
    async fn take(
        &self,
        job: &Job,
        taken: &mut HashSet<Identity>,
        wanted: usize,
    ) -> StoreResult<VecDeque<Identity>> {
        let store = &self.drivers.store;
        // Those that are taken may stand in front.
        let limit = taken.len() + wanted;
        let pending = store
            .job_targets(&job.id, DeviceJobStatus::Pending, None, limit)
            .await;
        let mut fresh: Vec<Identity> = match pending {
            Ok(pending) => pending,
            Err(StoreError::Missing) => Vec::new(),
            Err(error) => return Err(error),
        };
        fresh.retain(|identity| !taken.contains(identity));
        fresh.truncate(wanted);
        if job.spec.work.kind() == JobKind::Method && !fresh.is_empty() {
            fresh = store
                .begin_targets(&job.id, fresh, self.drivers.clock.now())
                .await?;
        }
        taken.extend(fresh.iter().cloned());
        Ok(fresh.into())
    }

    /// Ends early: twin updates under way come to their end, for they take no time; calls are left alone.
    async fn wind_up(
        &self,
        job: &Job,
        deed: &Deed,
        mut attempts: FuturesUnordered<Attempt<'_>>,
        mut results: Vec<DeviceJobResult>,
    ) -> StoreResult<()> {
        if matches!(deed, Deed::Update(_)) {
            while let Some(result) = attempts.next().await {
                results.push(result);
            }
        }
        match self.drivers.store.record_targets(&job.id, results).await {
            Ok(_) | Err(StoreError::Missing) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn attempt(&self, deed: &Deed, identity: Identity) -> DeviceJobResult {
        let started_at = self.drivers.clock.now();
        let done = match deed {
            Deed::Update(change) => self.update(&identity, change).await.map(|()| None),
            Deed::Call(call) => {
                let answer = self.hub.invoke_method(&identity, call.clone()).await;
                answer.and_then(outcome).map(Some)
            }
        };
        self.metrics.targets_tried.inc();
        let (status, outcome, error) = match done {
            Ok(outcome) => (DeviceJobStatus::Completed, outcome, None),
            Err(error) => (DeviceJobStatus::Failed, None, Some(job_error(&error))),
        };
        DeviceJobResult {
            identity,
            status,
            started_at,
            ended_at: self.drivers.clock.now(),
            outcome,
            error,
        }
    }

    /// A store that fails now may work in a moment, and a job is in no hurry.
    async fn update(&self, identity: &Identity, change: &TwinChange) -> Result<(), Error> {
        const TRIES: u32 = 3;
        let caller = ServiceCaller::Policy {
            name: "job".to_owned(),
            rights: Rights::SERVICE_CONNECT,
        };
        let mut tries = 0;
        loop {
            tries += 1;
            let changed = self.hub.change_twin(
                &caller,
                identity,
                ChangeMode::Patch,
                change.clone(),
                IfMatch::Absent,
            );
            match changed.await {
                Err(error)
                    if matches!(
                        error.code,
                        ErrorCode::ServiceUnavailable | ErrorCode::ThrottlingException
                    ) && tries < TRIES =>
                {
                    sleep(self.config.retry_after).await;
                }
                other => return other.map(drop),
            }
        }
    }
}

fn outcome(answer: MethodResponse) -> Result<MethodOutcome, Error> {
    let blank = answer.payload.iter().all(u8::is_ascii_whitespace);
    let payload = match blank {
        true => Value::Null,
        false => serde_json::from_slice(&answer.payload).map_err(|_| {
            Error::new(
                ErrorCode::GenericBadGateway,
                "the device answered with something that is not JSON",
            )
        })?,
    };
    Ok(MethodOutcome {
        status: answer.status,
        payload,
    })
}

fn job_error(error: &Error) -> JobError {
    JobError {
        code: format!("{:?}", error.code),
        description: error.message.clone(),
    }
}
