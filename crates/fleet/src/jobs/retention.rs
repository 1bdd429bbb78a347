//! Ended jobs are kept for a while, and not more than so many.

use holdfast_model::Timestamp;
use holdfast_observe::Event as _;
use holdfast_ports::StoreResult;

use super::Jobs;
use super::events::{Forgotten, Unavailable};

/// Jobs looked at in one step.
const PAGE: usize = 100;
/// Targets deleted in one step, so that others get to write in between.
const DELETE_PAGE: usize = 5_000;

impl Jobs {
    pub(super) async fn enforce_retention(&self) {
        match self.forget().await {
            Ok(0) => {}
            Ok(count) => Forgotten { count }.emit(&self.metrics),
            Err(error) => Unavailable {
                operation: "delete the history of jobs",
                reason: &error.to_string(),
            }
            .emit(&self.metrics),
        }
    }

    /// Returns how many jobs went.
    pub(super) async fn forget(&self) -> StoreResult<u64> {
        let store = &self.drivers.store;
        let mut forgotten = 0;
        loop {
            let oldest_kept = self.drivers.clock.now().minus(self.config.history);
            let mut history = store.history(oldest_kept, PAGE).await?;
            let too_many = history.ended > self.config.history_jobs_max
                || history.device_jobs > self.config.history_targets_max;
            if history.expired.is_empty() && too_many {
                history = store.history(Timestamp::MAX, 1).await?;
            }
            if history.expired.is_empty() {
                return Ok(forgotten);
            }
            for id in &history.expired {
                while store.delete_history(id, DELETE_PAGE).await? > 0 {}
                forgotten += 1;
            }
        }
    }
}
