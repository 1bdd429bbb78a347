//! The place of a connection: among those that have proven nothing yet, then among those that have.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;

use holdfast_amqp::performatives::condition;
use holdfast_observe::Event as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::core::Core;
use super::failure::{End, Failure};
use crate::events::{EndReason, LoginRefused, Metrics, RefusalReason};
use crate::lobby::{Guest, Stage};

/// How far a connection has come. Small, since nearly all are inside and idle.
pub(super) enum Entrance {
    /// Nothing is proven.
    Outside(Box<Waiting>),
    /// Something is.
    Inside { _place: OwnedSemaphorePermit },
    /// There was no place inside, or the connection is over.
    Left,
}

/// A connection that has proven nothing.
pub(super) struct Waiting {
    guest: Arc<Guest>,
    evicted: Pin<Box<dyn Future<Output = ()> + Send>>,
    stage: Standing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Silent,
    Speaking,
    /// The hub looks at a token or an identity: that is not interrupted.
    Judged,
}

impl Entrance {
    pub(super) fn new(guest: Guest) -> Self {
        let guest = Arc::new(guest);
        let evicted = Box::pin({
            let guest = Arc::clone(&guest);
            async move { guest.evicted().await }
        });
        Entrance::Outside(Box::new(Waiting {
            guest,
            evicted,
            stage: Standing::Silent,
        }))
    }

    /// Whether the place was given to somebody else. Asks to be woken when it is.
    pub(super) fn poll_evicted(&mut self, context: &mut Context<'_>) -> bool {
        match self {
            Entrance::Outside(waiting) => waiting.evicted.as_mut().poll(context).is_ready(),
            _ => false,
        }
    }

    /// Counts a connection that ends before it has proven anything.
    pub(super) fn count_refusal(&self, end: &End, core: &Core) {
        let Entrance::Outside(_) = self else { return };
        let reason = match end.reason {
            EndReason::KeepAlive => RefusalReason::Timeout,
            EndReason::ProtocolError => RefusalReason::ProtocolError,
            EndReason::ConnectionLost => RefusalReason::ConnectionLost,
            EndReason::TokenExpired => RefusalReason::Unauthorized,
            // In order, or not the client's doing.
            _ => return,
        };
        LoginRefused {
            peer: core.peer,
            client_id: "",
            reason,
            detail: &end.detail,
        }
        .emit(&core.shared.metrics);
    }

    /// Brings the place in line with what the client has done.
    pub(super) fn update(&mut self, core: &mut Core, heard: bool, out: &mut Vec<u8>) -> Result<(), End> {
        let Entrance::Outside(waiting) = self else {
            return Ok(());
        };
        if core.used {
            if !waiting.guest.keep() {
                *self = Entrance::Left;
                return Err(evicted(core, out));
            }
            return self.go_inside(core, out);
        }
        let stage = if core.is_judging() {
            Standing::Judged
        } else if heard || waiting.stage != Standing::Silent {
            Standing::Speaking
        } else {
            Standing::Silent
        };
        if stage == waiting.stage {
            return Ok(());
        }
        waiting.stage = stage;
        match stage {
            Standing::Judged if !waiting.guest.keep() => {
                *self = Entrance::Left;
                return Err(evicted(core, out));
            }
            Standing::Speaking => waiting.guest.wait_as(Stage::Speaking),
            _ => {}
        }
        Ok(())
    }

    fn go_inside(&mut self, core: &mut Core, out: &mut Vec<u8>) -> Result<(), End> {
        match Semaphore::try_acquire_owned(Arc::clone(&core.shared.places)) {
            Ok(place) => {
                *self = Entrance::Inside { _place: place };
                Ok(())
            }
            Err(_) => {
                *self = Entrance::Left;
                let failure = Failure::new(
                    condition::RESOURCE_LIMIT_EXCEEDED,
                    "the hub has as many connections as it allows",
                );
                Err(core.close(&failure, End::crowded(), out))
            }
        }
    }

    /// The connection is over, but for its last words: nothing is judged any more.
    pub(super) fn step_back(&mut self) {
        if let Entrance::Outside(waiting) = self {
            waiting.stage = Standing::Speaking;
            waiting.guest.wait_as(Stage::Speaking);
        }
    }

    /// Gives the place back.
    pub(super) fn leave(&mut self) {
        *self = Entrance::Left;
    }
}

/// Somebody else has the place.
pub(super) fn evicted(core: &mut Core, out: &mut Vec<u8>) -> End {
    refused_for_others(&core.shared.metrics, core.peer);
    let failure = Failure::new(
        condition::CONNECTION_FORCED,
        "too many connections have proven nothing yet, and this was the oldest of them",
    );
    core.close(&failure, End::crowded(), out)
}

pub(super) fn refused_for_others(metrics: &Metrics, peer: SocketAddr) {
    LoginRefused {
        peer,
        client_id: "",
        reason: RefusalReason::Evicted,
        detail: &"too many connections have proven nothing yet, and this was the oldest of them",
    }
    .emit(metrics);
}
