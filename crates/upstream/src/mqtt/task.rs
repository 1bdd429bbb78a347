//! The life of a client over all its connections.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::connection::{Connection, End};
use super::state::{Phase, Shared};
use crate::events::{Connected, Disconnected};
use crate::gate::{backoff, jittered};
use crate::port::CloudError;
use holdfast_observe::Event as _;

/// A connection that lived shorter than this counts as trouble of its own: two clients that take over from each other,
/// or a hub that accepts logins and nothing else.
const SHORT_LIFE: Duration = Duration::from_secs(20);
/// Longest wait of a client whose connections do not live.
const TROUBLE_MAX: Duration = Duration::from_secs(15);

/// Runs until the client is dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut trouble = 0u32;
    let mut refusals = 0u32;
    while wanted(&shared).await {
        set_phase(&shared, Phase::Opening);
        match attempt(&shared).await {
            None => break,
            Some(Ok(connection)) => {
                refusals = 0;
                let born = Instant::now();
                let end = serve(&shared, connection).await;
                match end {
                    End::Closing => break,
                    End::Idle | End::Renewal => trouble = 0,
                    End::Lost(cause) => {
                        trouble = if born.elapsed() < SHORT_LIFE {
                            trouble + 1
                        } else {
                            0
                        };
                        if trouble > 0 && !back_off_from_trouble(&shared, trouble, cause).await {
                            break;
                        }
                    }
                }
            }
            Some(Err(cause)) => {
                told_of_failure(&shared, &cause);
                let config = &shared.core.config;
                let wait = if matches!(cause, CloudError::Unauthorized(_)) {
                    refusals += 1;
                    config.refused_pause(refusals - 1)
                } else if shared.core.gate.is_offline() {
                    // The gate makes everybody wait.
                    Duration::ZERO
                } else {
                    trouble += 1;
                    jittered(backoff(config.tuning.retry_first, TROUBLE_MAX, trouble - 1))
                };
                if !rest(&shared, wait).await {
                    break;
                }
            }
        }
    }
}

async fn back_off_from_trouble(shared: &Shared, trouble: u32, cause: CloudError) -> bool {
    // The first time may be chance: a hub that restarts takes everybody's connection once.
    if trouble == 1 {
        return true;
    }
    set_phase(shared, Phase::Waiting(cause));
    let wait = backoff(shared.core.config.tuning.retry_first, TROUBLE_MAX, trouble - 2);
    rest(shared, jittered(wait)).await
}

/// Waits until a connection is wanted; `false` when the client was dropped.
async fn wanted(shared: &Shared) -> bool {
    loop {
        let changed = shared.changed.notified();
        {
            let mut state = shared.state.lock();
            if state.closing {
                return false;
            }
            if state.is_wanted() {
                return true;
            }
            state.phase = Phase::Closed;
        }
        changed.await;
    }
}

/// Waits; `false` when the client was dropped. A nudge ends it early.
async fn rest(shared: &Shared, time: Duration) -> bool {
    let until = Instant::now() + time;
    let mut nudges = shared.core.gate.nudges();
    nudges.mark_unchanged();
    loop {
        if shared.state.lock().closing {
            return false;
        }
        tokio::select! {
            () = tokio::time::sleep_until(until) => return true,
            () = shared.changed.notified() => {}
            _ = nudges.changed() => return true,
        }
    }
}

/// One attempt to connect, when its turn has come; `None` when the client was dropped meanwhile.
async fn attempt(shared: &Arc<Shared>) -> Option<Result<Connection, CloudError>> {
    let opening = async {
        let turn = shared.core.gate.turn().await;
        let opened = Connection::open(shared).await;
        match &opened {
            Ok(_) | Err(CloudError::Unauthorized(_) | CloudError::Refused { .. }) => turn.succeeded(),
            Err(CloudError::Unreachable(_)) => turn.failed(),
        }
        opened
    };
    tokio::pin!(opening);
    loop {
        tokio::select! {
            opened = &mut opening => return Some(opened),
            () = shared.changed.notified() => {
                if shared.state.lock().closing {
                    return None;
                }
            }
        }
    }
}

fn told_of_failure(shared: &Shared, cause: &CloudError) {
    let identity = shared.identity();
    Disconnected { identity, cause }.emit(&shared.core.metrics);
    let news = {
        let mut state = shared.state.lock();
        state.end();
        let kind = std::mem::discriminant(cause);
        state.phase = Phase::Waiting(cause.clone());
        state.failure_told.replace(kind) != Some(kind)
    };
    shared.progress.notify_waiters();
    if news {
        shared.pushes.disconnected(cause.clone());
    }
}

async fn serve(shared: &Arc<Shared>, mut connection: Connection) -> End {
    let live = shared.core.gate.live();
    let identity = shared.identity();
    let protocol = shared.core.config.protocol.as_str();
    Connected { identity, protocol }.emit(&shared.core.metrics);
    {
        let mut state = shared.state.lock();
        state.phase = Phase::Open;
        state.demand = false;
        state.failure_told = None;
    }
    shared.pushes.connected();
    shared.progress.notify_waiters();
    let end = connection.serve(shared).await;
    drop(live);
    if connection.is_silent() {
        shared.core.gate.fell_silent();
    }
    {
        let mut state = shared.state.lock();
        state.end();
        state.phase = match end {
            End::Idle => Phase::Closed,
            _ => Phase::Opening,
        };
        // Whoever lost it while it was of use gets it back.
        state.demand |= matches!(end, End::Renewal);
    }
    if let End::Lost(cause) = &end {
        Disconnected { identity, cause }.emit(&shared.core.metrics);
        shared.pushes.disconnected(cause.clone());
    }
    shared.progress.notify_waiters();
    end
}

fn set_phase(shared: &Shared, phase: Phase) {
    let mut state = shared.state.lock();
    // Callers are told the cause of the last failure until there is a connection again.
    if phase != Phase::Opening || !matches!(state.phase, Phase::Waiting(_)) {
        state.phase = phase;
    }
    drop(state);
    shared.progress.notify_waiters();
}
