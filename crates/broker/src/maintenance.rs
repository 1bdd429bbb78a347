//! What the edge hub does by the clock.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_model::subscription::Channel;
use holdfast_observe::{Repeats, tracing};
use holdfast_ports::session::{Downlink, SessionHandle};
use holdfast_upstream::port::Reach;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::Broker;
use crate::metrics::Family;

/// How often is looked.
const TICK: Duration = Duration::from_secs(1);
/// How often what came and went of clients is reported.
const CLIENTS_EVERY: Duration = Duration::from_secs(5);
/// Pause after a scope that could not be read.
const SCOPE_RETRY: Duration = Duration::from_secs(60);
/// How often is looked whether the scope has come into use.
const SCOPE_LOOK_EVERY: Duration = Duration::from_secs(5);
/// Identities of one reading that come as often as [`scope_in_use_every`](crate::BrokerConfig::scope_in_use_every) says: some
/// 60 KB. With more of them the readings are rarer, so that the scope takes no more of the link, however large it is.
const READ_IDENTITIES: usize = 100;
/// The same of its pages, of which each edge device below has at least one.
const READ_PAGES: usize = 10;

static SCOPE_NOT_READ: Repeats = Repeats::new();
static AWAY: Repeats = Repeats::new();

/// Tokens, locks, ages, idle conversations.
pub(crate) async fn run(broker: Arc<Broker>) {
    // The list of clients is that of this run.
    broker.report_own(serde_json::json!({ "clients": null })).await;
    let (mut checked, mut reported) = (Instant::now(), Instant::now());
    loop {
        tokio::time::sleep(TICK).await;
        broker.end_expired();
        for module in broker.inputs.expire().await {
            broker
                .sessions
                .push(&module, Channel::Inputs, Downlink::CloudToDevice);
        }
        broker.queues.tick();
        broker.drop_idle_links();
        if checked.elapsed() >= broker.config.recheck_every {
            checked = Instant::now();
            broker.recheck_sessions();
        }
        if reported.elapsed() >= CLIENTS_EVERY {
            reported = Instant::now();
            broker.report_clients().await;
        }
    }
}

/// The scope and the configuration: at the start, from time to time, and when the hub above is back.
pub(crate) async fn follow_above(broker: Arc<Broker>) {
    let Some(mut reach) = broker.links.watch() else {
        return;
    };
    let mut offline_since = None;
    let mut configured_at = Instant::now();
    loop {
        let Some(read) = read_scope_and_watch(&broker, &mut reach, &mut offline_since).await else {
            return;
        };
        let pause = match read {
            true => broker.config.scope_every,
            false => SCOPE_RETRY,
        };
        let in_use_every = broker.config.scope_in_use_every.filter(|_| read);
        if configured_at.elapsed() >= broker.config.configuration_every {
            configured_at = Instant::now();
            broker.read_twin_again(&broker.own).await;
        }
        let read_at = Instant::now();
        let until = read_at + pause;
        let look_every = in_use_every.map_or(SCOPE_LOOK_EVERY, |every| every.min(SCOPE_LOOK_EVERY));
        loop {
            let look_at = until.min(Instant::now() + look_every);
            let changed = tokio::time::timeout_at(look_at, reach.changed()).await;
            match changed {
                Err(_) if look_at == until => break,
                Err(_) => {
                    let (identities, pages) = broker.scope.size();
                    let due = in_use_every.map(|every| read_at + in_use_pause(every, identities, pages));
                    if due.is_some_and(|due| Instant::now() >= due) && broker.is_scope_in_use() {
                        break;
                    }
                }
                Ok(Err(_)) => return,
                Ok(Ok(())) => {
                    let state = *reach.borrow_and_update();
                    if note_reach(&broker, state, &mut offline_since) {
                        break;
                    }
                }
            }
        }
    }
}

/// The time between two readings of a scope in use.
fn in_use_pause(every: Duration, identities: usize, pages: usize) -> Duration {
    let share = (identities as f64 / READ_IDENTITIES as f64).max(pages as f64 / READ_PAGES as f64);
    every.mul_f64(share.max(1.0))
}

impl Broker {
    /// Whether a device other than this one is connected, and the hub above would say if it may be. While the hub is away the
    /// scope is not asked for, since it is read as soon as the hub is back.
    fn is_scope_in_use(&self) -> bool {
        let is_other = |session: &Arc<SessionHandle>| session.identity().device_id() != self.own.device_id();
        !matches!(self.reach(), Reach::Offline { .. }) && self.sessions.all().iter().any(is_other)
    }
}

/// Reads the scope, and begins anew when the hub above is back: what was asked while it was away may hang for long. `None`
/// when there is nothing to watch any more.
async fn read_scope_and_watch(
    broker: &Broker,
    reach: &mut watch::Receiver<Reach>,
    offline_since: &mut Option<u64>,
) -> Option<bool> {
    loop {
        let begun_offline = matches!(*reach.borrow(), Reach::Offline { .. });
        let reading = read_scope(broker);
        tokio::pin!(reading);
        loop {
            tokio::select! {
                read = &mut reading => return Some(read),
                changed = reach.changed() => {
                    changed.ok()?;
                    let state = *reach.borrow_and_update();
                    if note_reach(broker, state, offline_since) && begun_offline {
                        break;
                    }
                }
            }
        }
    }
}

/// True when the hub above is back.
fn note_reach(broker: &Broker, state: Reach, offline_since: &mut Option<u64>) -> bool {
    let now = broker.clock.monotonic_millis();
    let own = [broker.own.as_str()];
    match state {
        Reach::Offline { .. } => {
            if offline_since.is_none() {
                *offline_since = Some(now);
                broker.metrics.count(Family::OfflineCount, &own, 1);
                if let Some(times) = AWAY.happened(broker.own.as_str()) {
                    tracing::warn!(
                        times,
                        "the hub above cannot be reached; messages are kept until it can"
                    );
                }
            }
            false
        }
        Reach::Online => {
            if let Some(since) = offline_since.take() {
                let took = Duration::from_millis(now.saturating_sub(since));
                broker
                    .metrics
                    .observe_duration(Family::OfflineDuration, &own, took);
                if AWAY.over(broker.own.as_str()).is_some() {
                    tracing::info!(seconds = took.as_secs(), "the hub above can be reached again");
                }
            }
            broker.scope.questions.forget();
            broker.twins.sync.notify_one();
            broker.forward_now();
            true
        }
        Reach::Unknown => false,
    }
}

async fn read_scope(broker: &Broker) -> bool {
    match broker.scope.refresh().await {
        Ok(change) => {
            broker.scope_changed(&change);
            broker.scope_fresh.store(true, Ordering::Release);
            if let Some(more) = SCOPE_NOT_READ.over(broker.scope.device_id()) {
                tracing::info!(more, "the scope of the edge hub was read again");
            }
            true
        }
        Err(error) => {
            if let Some(times) = SCOPE_NOT_READ.happened(broker.scope.device_id()) {
                tracing::warn!(%error, times, "the scope of the edge hub cannot be read; who was seen before can still log in");
            }
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_scope_is_read_less_often() {
        let minute = Duration::from_secs(60);
        let pause = |identities, pages| in_use_pause(minute, identities, pages).as_secs();
        assert_eq!(pause(0, 0), 60);
        assert_eq!(pause(100, 2), 60);
        assert_eq!(pause(1_000, 11), 600);
        // Fifty edge devices with one child each.
        assert_eq!(pause(100, 51), 306);
    }
}
