//! What the edge hub does by the clock.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_model::subscription::Channel;
use holdfast_observe::tracing;
use holdfast_ports::session::Downlink;
use holdfast_upstream::port::Reach;

use crate::Broker;
use crate::metrics::Family;

/// How often is looked.
const TICK: Duration = Duration::from_secs(1);
/// How often what came and went of clients is reported.
const CLIENTS_EVERY_MILLIS: u64 = 5_000;
/// Pause after a scope that could not be read.
const SCOPE_RETRY: Duration = Duration::from_secs(60);

/// Tokens, locks, ages, idle conversations.
pub(crate) async fn run(broker: Arc<Broker>) {
    // The list of clients is that of this run.
    broker.report_own(serde_json::json!({ "clients": null })).await;
    let (mut checked, mut reported) = (broker.clock.monotonic_millis(), 0);
    loop {
        tokio::time::sleep(TICK).await;
        let now = broker.clock.monotonic_millis();
        broker.end_expired();
        for module in broker.inputs.expire().await {
            broker
                .sessions
                .push(&module, Channel::Inputs, Downlink::CloudToDevice);
        }
        broker.queues.tick();
        broker.drop_idle_links();
        if u128::from(now.saturating_sub(checked)) >= broker.config.recheck_every.as_millis() {
            checked = now;
            broker.recheck_sessions();
        }
        if now.saturating_sub(reported) >= CLIENTS_EVERY_MILLIS {
            reported = now;
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
    let mut configured_at = broker.clock.monotonic_millis();
    loop {
        let pause = match read_scope(&broker).await {
            true => broker.config.scope_every,
            false => SCOPE_RETRY,
        };
        let now = broker.clock.monotonic_millis();
        let due = broker.config.configuration_every.as_millis();
        if u128::from(now.saturating_sub(configured_at)) >= due {
            configured_at = now;
            broker.read_twin_again(&broker.own).await;
        }
        let until = tokio::time::Instant::now() + pause;
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

/// True when the hub above is back.
fn note_reach(broker: &Broker, state: Reach, offline_since: &mut Option<u64>) -> bool {
    let now = broker.clock.monotonic_millis();
    let own = [broker.own.as_str()];
    match state {
        Reach::Offline { .. } => {
            if offline_since.is_none() {
                *offline_since = Some(now);
                broker.metrics.count(Family::OfflineCount, &own, 1);
                tracing::warn!("the hub above cannot be reached; messages are kept until it can");
            }
            false
        }
        Reach::Online => {
            if let Some(since) = offline_since.take() {
                let took = Duration::from_millis(now.saturating_sub(since));
                broker
                    .metrics
                    .observe_duration(Family::OfflineDuration, &own, took);
                tracing::info!(seconds = took.as_secs(), "the hub above can be reached again");
            }
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
            true
        }
        Err(error) => {
            tracing::warn!(%error, "the scope of the edge hub cannot be read; who was seen before can still log in");
            false
        }
    }
}
