//! The life of a shared connection over all its lives.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::connection::{Connection, End, set_phase};
use super::members;
use super::state::{Phase, Trunk};
use crate::gate::{backoff, jittered};
use crate::port::CloudError;

/// A connection that lived shorter than this counts as trouble of its own.
const SHORT_LIFE: Duration = Duration::from_secs(20);
/// Longest wait after connections that do not live.
const TROUBLE_MAX: Duration = Duration::from_secs(15);

/// Runs until the connection is closed for good.
pub(super) async fn run(trunk: Arc<Trunk>) {
    let mut trouble = 0u32;
    while wanted(&trunk).await {
        set_phase(&trunk, Phase::Opening);
        let Some(opened) = attempt(&trunk).await else {
            break;
        };
        let cause = match opened {
            Ok(connection) => {
                let born = Instant::now();
                match serve(&trunk, connection).await {
                    End::Closing => break,
                    End::Idle => {
                        trouble = 0;
                        continue;
                    }
                    End::Lost(cause) => {
                        trouble = if born.elapsed() < SHORT_LIFE {
                            trouble + 1
                        } else {
                            0
                        };
                        // The first time may be chance: a hub that restarts takes everybody's connection once.
                        if trouble <= 1 {
                            continue;
                        }
                        cause
                    }
                }
            }
            Err(cause) => {
                trouble += 1;
                cause
            }
        };
        told_of_failure(&trunk, &cause);
        let config = &trunk.core.config;
        let failures = trouble.saturating_sub(1);
        let wait = match cause {
            CloudError::Unreachable(_) if trunk.core.gate.is_offline() => Duration::ZERO,
            CloudError::Unreachable(_) => jittered(backoff(config.tuning.retry_first, TROUBLE_MAX, failures)),
            _ => config.refused_pause(failures),
        };
        if !rest(&trunk, wait).await {
            break;
        }
    }
    let cause = CloudError::Unreachable("the connection is closed".to_owned());
    members::end_all(&mut trunk.state.lock(), &cause, &trunk.core);
}

async fn wanted(trunk: &Trunk) -> bool {
    loop {
        let changed = trunk.changed.notified();
        {
            let mut state = trunk.state.lock();
            if state.is_over() {
                return false;
            }
            state.members.retain(|_, member| !member.closing);
            if state.is_wanted() {
                return true;
            }
            state.phase = Phase::Closed;
        }
        changed.await;
    }
}

/// Waits; `false` when the connection was closed for good. A nudge ends it early.
async fn rest(trunk: &Trunk, time: Duration) -> bool {
    let until = Instant::now() + time;
    let mut nudges = trunk.core.gate.nudges();
    nudges.mark_unchanged();
    loop {
        if trunk.state.lock().is_over() {
            return false;
        }
        tokio::select! {
            () = tokio::time::sleep_until(until) => return true,
            () = trunk.changed.notified() => {}
            _ = nudges.changed() => return true,
        }
    }
}

async fn attempt(trunk: &Trunk) -> Option<Result<Connection, CloudError>> {
    let opening = async {
        let turn = trunk.core.gate.turn().await;
        // Whoever waits here hears of it when the gate says so; the attempt itself may wake on its own changes.
        let opened = Connection::open(trunk).await;
        match &opened {
            Ok(_) | Err(CloudError::Unauthorized(_) | CloudError::Refused { .. }) => turn.succeeded(),
            Err(CloudError::Unreachable(_)) => turn.failed(),
        }
        opened
    };
    let opened = opening.await;
    (!trunk.state.lock().is_over()).then_some(opened)
}

fn told_of_failure(trunk: &Trunk, cause: &CloudError) {
    let mut state = trunk.state.lock();
    members::end_all(&mut state, cause, &trunk.core);
    state.phase = Phase::Waiting(cause.clone());
    members::tell_all(&mut state, cause, &trunk.core);
    members::wake_all(&state);
}

async fn serve(trunk: &Trunk, mut connection: Connection) -> End {
    let live = trunk.core.gate.live();
    set_phase(trunk, Phase::Open);
    let end = connection.serve(trunk).await;
    drop(live);
    if connection.is_silent() {
        trunk.core.gate.fell_silent();
    }
    let mut state = trunk.state.lock();
    state.phase = match end {
        End::Lost(_) => Phase::Opening,
        End::Closing | End::Idle => Phase::Closed,
    };
    let cause = match &end {
        End::Lost(cause) => cause.clone(),
        End::Closing | End::Idle => CloudError::Unreachable("the connection is closed".to_owned()),
    };
    members::end_all(&mut state, &cause, &trunk.core);
    end
}
