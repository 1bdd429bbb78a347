//! Jobs in memory.

use std::collections::BTreeMap;

use holdfast_model::job::{DeviceJob, DeviceJobResult, DeviceJobStatus, Job, JobCounts, JobStatus};
use holdfast_model::{Identity, Timestamp};

use super::MemoryStore;
use crate::job::{History, JobFilter, JobStore, JobTelling, NewJob, Remainder, Targets};
use crate::{BoxFuture, StoreError, StoreResult};

/// Jobs and their targets.
#[derive(Default)]
pub(super) struct Jobs {
    last_number: u64,
    jobs: BTreeMap<u64, Job>,
    /// By job number, device id, module id.
    pub(super) targets: BTreeMap<Key, DeviceJob>,
}

pub(super) type Key = (u64, String, String);

fn key(number: u64, identity: &Identity) -> Key {
    let module = identity.module_id().unwrap_or_default();
    (number, identity.device_id().to_owned(), module.to_owned())
}

impl Jobs {
    fn number(&self, id: &str) -> StoreResult<u64> {
        let found = self.jobs.values().find(|job| job.id == id);
        found.map(|job| job.number).ok_or(StoreError::Missing)
    }

    fn job(&mut self, id: &str) -> StoreResult<&mut Job> {
        let number = self.number(id)?;
        self.jobs.get_mut(&number).ok_or(StoreError::Missing)
    }

    /// Every target of every job, by job number, device id and module id.
    pub(super) fn device_jobs(&self) -> impl Iterator<Item = &DeviceJob> {
        self.targets.values()
    }

    fn of(&mut self, number: u64) -> impl Iterator<Item = &mut DeviceJob> {
        let range = (number, String::new(), String::new())..(number + 1, String::new(), String::new());
        self.targets.range_mut(range).map(|(_, target)| target)
    }

    fn count(&mut self, number: u64) -> JobCounts {
        let mut counts = JobCounts::default();
        let statuses: Vec<DeviceJobStatus> = self.of(number).map(|target| target.status).collect();
        for status in statuses {
            *counts.of(status) += 1;
        }
        if let Some(job) = self.jobs.get_mut(&number) {
            job.counts = counts;
        }
        counts
    }
}

impl JobStore for MemoryStore {
    fn create_job_telling(
        &self,
        job: NewJob,
        unfinished_max: usize,
        telling: Option<JobTelling>,
    ) -> BoxFuture<'_, StoreResult<Job>> {
        self.run(move |state| {
            let all = &mut state.jobs;
            if all.number(&job.id).is_ok() {
                return Err(StoreError::Exists);
            }
            let unfinished = all.jobs.values().filter(|job| !job.status.is_final()).count();
            if unfinished >= unfinished_max {
                return Err(StoreError::Full);
            }
            let job = Job {
                number: all.last_number + 1,
                id: job.id,
                spec: job.spec,
                status: job.status,
                created_at: job.created_at,
                start_at: job.start_at,
                started_at: None,
                ended_at: None,
                failure: None,
                cursor: None,
                expanded: false,
                counts: JobCounts::default(),
            };
            state.outbox.tell(telling.as_ref(), &job)?;
            let all = &mut state.jobs;
            all.last_number = job.number;
            all.jobs.insert(job.number, job.clone());
            Ok(job)
        })
    }

    fn job<'a>(&'a self, id: &'a str) -> BoxFuture<'a, StoreResult<Option<Job>>> {
        self.run(move |state| Ok(state.jobs.job(id).ok().cloned()))
    }

    fn jobs(
        &self,
        filter: JobFilter,
        before: Option<u64>,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<Job>>> {
        self.run(move |state| {
            let wanted = state
                .jobs
                .jobs
                .range(..before.unwrap_or(u64::MAX))
                .rev()
                .map(|(_, job)| job)
                .filter(|job| filter.kind.is_none_or(|kind| job.spec.work.kind() == kind))
                .filter(|job| filter.status.is_none_or(|status| job.status == status));
            Ok(wanted.take(limit).cloned().collect())
        })
    }

    fn unfinished_jobs(&self) -> BoxFuture<'_, StoreResult<Vec<Job>>> {
        self.run(move |state| {
            let jobs = state.jobs.jobs.values();
            let left = jobs.filter(|job| !job.status.is_final() || job.counts.unfinished() > 0);
            Ok(left.cloned().collect())
        })
    }

    fn set_job_status_telling<'a>(
        &'a self,
        id: &'a str,
        status: JobStatus,
        failure: Option<String>,
        at: Timestamp,
        telling: Option<JobTelling>,
    ) -> BoxFuture<'a, StoreResult<Job>> {
        self.run(move |state| {
            let mut job = state.jobs.job(id)?.clone();
            if job.status.is_final() {
                return Err(StoreError::Conflict);
            }
            if status == JobStatus::Running {
                job.started_at.get_or_insert(at);
            }
            if status.is_final() {
                job.ended_at = Some(at);
            }
            job.status = status;
            job.failure = failure;
            state.outbox.tell(telling.as_ref(), &job)?;
            state.jobs.jobs.insert(job.number, job.clone());
            Ok(job)
        })
    }

    fn add_targets<'a>(&'a self, id: &'a str, targets: Targets) -> BoxFuture<'a, StoreResult<Job>> {
        self.run(move |state| {
            let job = state.jobs.job(id)?;
            if job.status.is_final() {
                return Err(StoreError::Conflict);
            }
            job.cursor = targets.cursor;
            job.expanded = targets.complete;
            let job = job.clone();
            for identity in targets.found {
                let found = state.jobs.targets.entry(key(job.number, &identity));
                found.or_insert_with(|| DeviceJob {
                    number: job.number,
                    job_id: job.id.clone(),
                    kind: job.spec.work.kind(),
                    identity,
                    status: DeviceJobStatus::Pending,
                    created_at: targets.at,
                    started_at: None,
                    ended_at: None,
                    updated_at: targets.at,
                    outcome: None,
                    error: None,
                });
            }
            state.jobs.count(job.number);
            state.jobs.job(id).cloned()
        })
    }

    fn job_targets<'a>(
        &'a self,
        id: &'a str,
        status: DeviceJobStatus,
        after: Option<&'a Identity>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Identity>>> {
        self.run(move |state| {
            let number = state.jobs.number(id)?;
            let after = after.map(|after| key(number, after));
            let found = state
                .jobs
                .of(number)
                .filter(|target| target.status == status)
                .filter(|target| {
                    after
                        .as_ref()
                        .is_none_or(|after| key(number, &target.identity) > *after)
                });
            Ok(found.map(|target| target.identity.clone()).take(limit).collect())
        })
    }

    fn begin_targets<'a>(
        &'a self,
        id: &'a str,
        targets: Vec<Identity>,
        at: Timestamp,
    ) -> BoxFuture<'a, StoreResult<Vec<Identity>>> {
        self.run(move |state| {
            let number = state.jobs.number(id)?;
            let mut begun = Vec::new();
            for identity in targets {
                let Some(target) = state.jobs.targets.get_mut(&key(number, &identity)) else {
                    continue;
                };
                if target.status == DeviceJobStatus::Pending {
                    target.status = DeviceJobStatus::Running;
                    target.started_at = Some(at);
                    target.updated_at = at;
                    begun.push(identity);
                }
            }
            state.jobs.count(number);
            Ok(begun)
        })
    }

    fn record_targets<'a>(
        &'a self,
        id: &'a str,
        results: Vec<DeviceJobResult>,
    ) -> BoxFuture<'a, StoreResult<JobCounts>> {
        self.run(move |state| {
            let number = state.jobs.number(id)?;
            for result in results {
                let Some(target) = state.jobs.targets.get_mut(&key(number, &result.identity)) else {
                    continue;
                };
                if !target.status.is_final() {
                    target.status = result.status;
                    target.started_at = Some(result.started_at);
                    target.ended_at = Some(result.ended_at);
                    target.updated_at = result.ended_at;
                    target.outcome = result.outcome;
                    target.error = result.error;
                }
            }
            Ok(state.jobs.count(number))
        })
    }

    fn finish_targets<'a>(
        &'a self,
        id: &'a str,
        status: DeviceJobStatus,
        remainder: Remainder,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<usize>> {
        self.run(move |state| {
            let number = state.jobs.number(id)?;
            let mut count = 0;
            let left = state.jobs.of(number).filter(|target| target.status == status);
            for target in left.take(limit) {
                target.status = remainder.status;
                target.ended_at = Some(remainder.at);
                target.updated_at = remainder.at;
                target.error.clone_from(&remainder.error);
                count += 1;
            }
            state.jobs.count(number);
            Ok(count)
        })
    }

    fn history(&self, before: Timestamp, limit: usize) -> BoxFuture<'_, StoreResult<History>> {
        self.run(move |state| {
            let ended = state.jobs.jobs.values().filter(|job| job.status.is_final());
            let mut expired: Vec<(Timestamp, &Job)> = ended
                .clone()
                .filter_map(|job| Some((job.ended_at?, job)))
                .filter(|(at, _)| *at < before)
                .collect();
            expired.sort_by_key(|(at, job)| (*at, job.number));
            Ok(History {
                expired: expired
                    .iter()
                    .take(limit)
                    .map(|(_, job)| job.id.clone())
                    .collect(),
                ended: ended.count() as u64,
                device_jobs: state.jobs.targets.len() as u64,
            })
        })
    }

    fn delete_history<'a>(&'a self, id: &'a str, limit: usize) -> BoxFuture<'a, StoreResult<usize>> {
        self.run(move |state| {
            let number = state.jobs.number(id)?;
            if !state.jobs.jobs[&number].status.is_final() {
                return Ok(0);
            }
            let keys: Vec<Key> = state
                .jobs
                .of(number)
                .map(|target| key(number, &target.identity))
                .take(limit)
                .collect();
            for key in &keys {
                state.jobs.targets.remove(key);
            }
            if keys.is_empty() {
                state.jobs.jobs.remove(&number);
            }
            Ok(keys.len())
        })
    }

    fn device_jobs<'a>(
        &'a self,
        job: Option<&'a str>,
        after: Option<(u64, Identity)>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<DeviceJob>>> {
        self.run(move |state| {
            let number = match job {
                None => None,
                Some(id) => match state.jobs.number(id) {
                    Ok(number) => Some(number),
                    Err(_) => return Ok(Vec::new()),
                },
            };
            let after = after.map(|(number, identity)| key(number, &identity));
            let found = state
                .jobs
                .targets
                .iter()
                .filter(|(key, _)| number.is_none_or(|number| key.0 == number))
                .filter(|(key, _)| after.as_ref().is_none_or(|after| *key > after));
            Ok(found.map(|(_, target)| target.clone()).take(limit).collect())
        })
    }
}
