//! What the edge hub does by the clock.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_model::subscription::Channel;
use holdfast_observe::{Repeats, tracing};
use holdfast_ports::session::Downlink;
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
        if configured_at.elapsed() >= broker.config.configuration_every {
            configured_at = Instant::now();
            broker.read_twin_again(&broker.own).await;
        }
        let until = Instant::now() + pause;
        loop {
            let changed = tokio::time::timeout_at(until, reach.changed()).await;
            match changed {
                Err(_) => break,
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
