//! What a running hub does by the clock: housekeeping of the engine, retention, watching the disk, certificates.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_heads::tls::TlsSettings;
use holdfast_hub::Hub;
use holdfast_observe::Health;
use holdfast_ports::clock::Clock;
use holdfast_ports::event_log::{AppendTicket, durable};
use holdfast_ports::query::QueryStore;
use holdfast_program::process::{NotifyState, notify, watchdog_enabled};
use holdfast_store::log::EmbeddedLog;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};

use super::certificates::Certificates;
use super::compose::server_certificates;

const TICK: Duration = Duration::from_secs(1);
const DISK_CHECK: Duration = Duration::from_secs(10);
/// How long the upkeep of query indexes rests when there was nothing to do, between two steps (the writer serves others
/// meanwhile), and after a failure.
const INDEX_REST: (Duration, Duration, Duration) = (
    Duration::from_secs(2),
    Duration::from_millis(5),
    Duration::from_secs(30),
);
const RETENTION: Duration = Duration::from_secs(60);
const CERTIFICATE_CHECK: Duration = Duration::from_secs(24 * 3_600);

/// Free bytes of the data directory's disk below which the hub says that it is not ready, so that load goes elsewhere
/// before appends begin to fail. The log reserves space ahead of its writing, so this is not yet the end.
const FREE_BYTES_MIN: u64 = 64 << 20;

/// Everything that the periodic tasks touch.
#[derive(Clone)]
pub(super) struct Periodic {
    pub(super) hub: Arc<Hub>,
    pub(super) log: Arc<EmbeddedLog>,
    pub(super) queries: Arc<dyn QueryStore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) health: Health,
    pub(super) certificates: Certificates,
    pub(super) tls: Arc<TlsSettings>,
    pub(super) data_dir: PathBuf,
}

impl Periodic {
    /// Starts the tasks; they end with the set.
    pub(super) fn start(&self) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn(self.clone().tick());
        tasks.spawn(self.clone().watch_log());
        tasks.spawn(self.clone().watch_disk());
        tasks.spawn(self.clone().enforce_retention());
        tasks.spawn(self.clone().maintain_query_indexes());
        tasks.spawn(self.clone().renew_certificates());
        tasks.spawn(self.clone().relay_events());
        if let Some(watchdog) = watchdog_enabled() {
            tasks.spawn(self.clone().feed_watchdog(watchdog));
        }
        tasks
    }

    async fn tick(self) {
        let mut ticks = interval(TICK);
        // After the machine slept, one tick makes up for all.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.hub.tick().await;
        }
    }

    /// Takes the hub's own events to the event log.
    async fn relay_events(self) {
        self.hub.relay_events().await;
    }

    /// Makes and drops the indexes of queries, a step at a time.
    async fn maintain_query_indexes(self) {
        loop {
            let rest = match self.queries.maintain_indexes(self.clock.now()).await {
                Ok(true) => INDEX_REST.1,
                Ok(false) => INDEX_REST.0,
                Err(error) => {
                    tracing::warn!(%error, "indexes of queries are not kept up; queries may be slow");
                    INDEX_REST.2
                }
            };
            tokio::time::sleep(rest).await;
        }
    }

    /// Waits for the log to fail. The ticket asks for an event that never comes, so the answer can only be a failure.
    async fn watch_log(self) {
        let never = AppendTicket {
            partition: 0,
            end: u64::MAX,
        };
        if let Err(error) = durable(self.log.as_ref(), never).await {
            self.health.set("log", Err(error.to_string()));
            self.health.fail(format!(
                "{error}; nothing more is acknowledged, what was acknowledged can still be read. Free or replace the disk of {}, then start the hub again",
                self.data_dir.display()
            ));
        }
    }

    async fn watch_disk(self) {
        let mut ticks = interval(DISK_CHECK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let state = match rustix::fs::statvfs(&self.data_dir) {
                Ok(disk) => match disk.f_bavail.saturating_mul(disk.f_frsize) {
                    free if free < FREE_BYTES_MIN => Err(format!(
                        "only {} MiB are free on the disk of {}",
                        free >> 20,
                        self.data_dir.display()
                    )),
                    _ => Ok(()),
                },
                Err(error) => Err(format!(
                    "the data directory {} cannot be used: {error}",
                    self.data_dir.display()
                )),
            };
            self.health.set("disk", state);
            let state = self.hub.registry_statistics().await;
            self.health
                .set("state", state.map(drop).map_err(|error| error.to_string()));
        }
    }

    async fn enforce_retention(self) {
        let mut ticks = interval(RETENTION);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let (log, now) = (Arc::clone(&self.log), self.clock.now());
            if tokio::task::spawn_blocking(move || log.enforce_retention(now))
                .await
                .is_err()
            {
                tracing::error!("retention of the event log has panicked; it is tried again");
            }
        }
    }

    /// At once for the RSA key, which a first start does not wait for; then daily.
    async fn renew_certificates(self) {
        if self.certificates.lacks_rsa() {
            self.refresh(Certificates::ensure_rsa).await;
        }
        let mut ticks = interval_at(Instant::now() + CERTIFICATE_CHECK, CERTIFICATE_CHECK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.refresh(Certificates::ensure).await;
        }
    }

    /// Reads the certificates again, as SIGHUP asks.
    pub(super) async fn reload_certificates(&self) {
        notify(&[NotifyState::Reloading]);
        // Whatever `ensure` found, the files may have been changed by others.
        self.refresh(|certificates| certificates.ensure().map(|_| true))
            .await;
        notify(&[NotifyState::Ready]);
    }

    async fn refresh(&self, renew: fn(&Certificates) -> anyhow::Result<bool>) {
        let certificates = self.certificates.clone();
        let loaded = tokio::task::spawn_blocking(move || match renew(&certificates)? {
            true => certificates.load().map(Some),
            false => Ok(None),
        });
        let loaded = match loaded.await {
            Ok(loaded) => loaded,
            Err(error) => Err(error.into()),
        };
        let applied = match loaded {
            Ok(None) => return,
            Ok(Some(identities)) => {
                let not_after = identities.not_after;
                self.tls
                    .reload(server_certificates(identities))
                    .map(|()| not_after)
                    .map_err(Into::into)
            }
            Err(error) => Err(error),
        };
        match applied {
            Ok(not_after) => {
                let until = holdfast_model::Timestamp::from_seconds(not_after);
                tracing::info!(%until, "certificates loaded");
            }
            Err(error) => {
                tracing::error!("cannot load the certificates, the old ones stay in use: {error:#}")
            }
        }
    }

    async fn feed_watchdog(self, timeout: Duration) {
        let mut ticks = interval(timeout / 2);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // A hub that only a restart can heal gets one.
            if self.health.is_alive() {
                notify(&[NotifyState::Watchdog]);
            }
        }
    }
}
