//! The engine's loops: after changes, and over everybody.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::StreamExt as _;
use futures_util::stream;
use holdfast_model::Identity;
use holdfast_observe::Event as _;
use holdfast_ports::{StoreError, StoreResult};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Configurations;
use super::events::{Rescanned, Unavailable};

/// Identities asked for in one step of a pass.
const PAGE: usize = 1_000;

impl Configurations {
    /// Keeps twins at their configurations until the future is dropped.
    pub async fn run(self: Arc<Self>) {
        let follow = self.follow_changes();
        let rescan = self.rescan_again_and_again();
        tokio::join!(follow, rescan);
    }

    async fn follow_changes(&self) {
        loop {
            let changed = self.hub.changed().await;
            let next_look = Instant::now() + self.config.changes_interval;
            if changed.overflowed {
                self.rescan_wanted.notify_one();
            }
            if !self.evaluate_all(changed.identities).await {
                // The store has failed; a pass over everybody finds those that were missed.
                sleep(self.config.retry_after).await;
                self.rescan_wanted.notify_one();
            }
            sleep_until(next_look).await;
        }
    }

    async fn rescan_again_and_again(&self) {
        loop {
            let wait = match self.rescan().await {
                Ok(true) => self.config.rescan_interval,
                Ok(false) => self.config.retry_after,
                Err(error) => {
                    Unavailable {
                        operation: "find what configurations target",
                        reason: &error.to_string(),
                    }
                    .emit(&self.metrics);
                    self.config.retry_after
                }
            };
            // Either way it goes on: asked for, or the time has come.
            let _ = timeout(wait, self.rescan_wanted.notified()).await;
        }
    }

    /// Looks at all that the conditions target and at all that show a configuration. A change of the configurations ends
    /// it early: the next pass has been asked for then. Returns whether every evaluation worked out.
    async fn rescan(&self) -> StoreResult<bool> {
        let active = self.active();
        let outdated = || self.generation.load(Ordering::Acquire) != active.generation;
        let (mut worked, mut evaluated) = (true, 0);
        for condition in active.conditions() {
            let mut cursor = None;
            loop {
                let page = self.drivers.query.find_targets(&condition, cursor, PAGE).await?;
                evaluated += page.identities.len() as u64;
                worked &= self.evaluate_all(page.identities).await;
                cursor = page.next;
                if outdated() {
                    return Ok(worked);
                }
                if cursor.is_none() {
                    break;
                }
            }
        }
        let mut after: Option<String> = None;
        loop {
            let page = self.drivers.store.configured(after.as_deref(), PAGE).await?;
            evaluated += page.identities.len() as u64;
            worked &= self.evaluate_all(page.identities).await;
            after = page.next;
            if after.is_none() || outdated() {
                break;
            }
        }
        Rescanned { evaluated }.emit(&self.metrics);
        Ok(worked)
    }

    /// Returns whether every evaluation worked out.
    async fn evaluate_all(&self, identities: impl IntoIterator<Item = Identity>) -> bool {
        let (worked, failed) = (AtomicBool::new(true), AtomicU64::new(0));
        stream::iter(identities)
            .for_each_concurrent(self.config.evaluations_at_once, async |identity| {
                if !self.evaluate_in_turn(identity).await {
                    worked.store(false, Ordering::Relaxed);
                    failed.fetch_add(1, Ordering::Relaxed);
                }
            })
            .await;
        let failed = failed.into_inner();
        if failed > 0 {
            Unavailable {
                operation: "evaluate",
                reason: &StoreError::Unavailable(format!("{failed} devices or modules could not be brought to their configuration; tried again later")).to_string(),
            }
            .emit(&self.metrics);
        }
        worked.into_inner()
    }
}
