//! Which job runs when.

use std::sync::Arc;
use std::time::Duration;

use holdfast_model::job::{Job, JobStatus};
use holdfast_observe::Event as _;
use holdfast_ports::StoreResult;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::Jobs;
use super::events::Unavailable;
use super::work::Stop;

/// Longest time without a look at the stored jobs.
const LOOK: Duration = Duration::from_secs(60);

impl Jobs {
    /// Runs jobs until the future is dropped; what they had under way is taken up by the next run.
    pub async fn run(self: Arc<Self>) {
        let mut at_work = JoinSet::new();
        let mut next_retention = Instant::now();
        loop {
            let mut wait = match self.start_due(&mut at_work).await {
                Ok(wait) => wait,
                Err(error) => {
                    Unavailable {
                        operation: "look for jobs",
                        reason: &error.to_string(),
                    }
                    .emit(&self.metrics);
                    self.config.retry_after
                }
            };
            if Instant::now() >= next_retention {
                next_retention = Instant::now() + self.config.retention_interval;
                self.enforce_retention().await;
            }
            wait = wait.min(next_retention.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = self.wake.notified() => {}
                Some(_) = at_work.join_next(), if !at_work.is_empty() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Starts what may start; returns how long until there is something to look for again.
    async fn start_due(self: &Arc<Self>, at_work: &mut JoinSet<()>) -> StoreResult<Duration> {
        let now = self.drivers.clock.now();
        let mut wait = LOOK;
        for job in self.drivers.store.unfinished_jobs().await? {
            if self.at_work.lock().contains_key(&job.id) {
                continue;
            }
            if job.status == JobStatus::Scheduled && job.start_at > now {
                wait = wait.min(job.start_at.since(now));
                continue;
            }
            // One that has ended only has its rows put in order; it takes no place.
            let has_place = job.status.is_final() || self.places_taken() < self.config.concurrent;
            if has_place {
                self.start(job, at_work);
            } else if job.status == JobStatus::Scheduled {
                let queued = self
                    .drivers
                    .store
                    .set_job_status(&job.id, JobStatus::Queued, None, now);
                // Cancelled meanwhile: as good.
                let _ = queued.await;
            }
        }
        Ok(wait)
    }

    fn places_taken(&self) -> usize {
        let at_work = self.at_work.lock();
        at_work.values().filter(|stop| stop.takes_a_place).count()
    }

    fn start(self: &Arc<Self>, job: Job, at_work: &mut JoinSet<()>) {
        let stop = Arc::new(Stop::new(!job.status.is_final()));
        self.at_work.lock().insert(job.id.clone(), Arc::clone(&stop));
        let jobs = Arc::clone(self);
        at_work.spawn(async move {
            let _place = Place {
                jobs: &jobs,
                id: job.id.clone(),
            };
            if let Err(error) = jobs.work(job, &stop).await {
                Unavailable {
                    operation: "run a job",
                    reason: &error.to_string(),
                }
                .emit(&jobs.metrics);
                // It is taken up again from what is stored; not at once, since the store has trouble.
                let _ = timeout(jobs.config.retry_after, stop.asked()).await;
            }
        });
    }
}

/// The place of a job among those at work; it is given back however the work ends.
struct Place<'a> {
    jobs: &'a Jobs,
    id: String,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.jobs.at_work.lock().remove(&self.id);
        self.jobs.wake.notify_one();
    }
}
