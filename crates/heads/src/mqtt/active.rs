//! State of a connection that exists only while something is in flight.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::c2d::{C2dDelivery, LockToken};
use holdfast_model::event::Records;
use holdfast_model::subscription::Channel;
use holdfast_model::{Error, Timestamp};
use holdfast_mqtt::PacketId;
use holdfast_mqtt::codec::SubAckCode;
use holdfast_ports::BoxFuture;
use tokio::time::Sleep;

use super::acks::Acks;

/// Boxed by the connection, and dropped as soon as [`Active::is_idle`]: an idle session pays eight bytes for it.
#[derive(Default)]
pub(super) struct Active {
    /// Input that is no whole packet yet, or, when `input_ready`, packets that wait for room.
    pub(super) input: Vec<u8>,
    pub(super) input_ready: bool,
    /// Output the client has not taken, from `sent` on.
    pub(super) output: Vec<u8>,
    pub(super) sent: usize,
    pub(super) acks: Acks,
    /// Telemetry the log had no room for.
    pub(super) unsent: Option<Unsent>,
    pub(super) requests: Requests,
    pub(super) c2d: CloudToDevice,
}

impl Active {
    pub(super) fn is_idle(&self) -> bool {
        self.input.is_empty()
            && self.output.is_empty()
            && self.acks.is_empty()
            && self.unsent.is_none()
            && self.requests.is_empty()
            && self.c2d.is_idle()
    }

    /// Bytes of output that wait.
    pub(super) fn output_waiting(&self) -> usize {
        self.output.len() - self.sent
    }
}

/// Records to be offered to the log again.
pub(super) struct Unsent {
    pub(super) records: Records,
    /// Ends when it is worth trying.
    pub(super) wait: BoxFuture<'static, ()>,
}

impl Unsent {
    pub(super) fn poll_wait(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.wait.as_mut().poll(context)
    }
}

/// What a client asks for and waits for. Worked off one by one, in order.
pub(super) enum Request {
    TwinGet {
        rid: Box<str>,
    },
    TwinPatch {
        rid: Box<str>,
        version: Option<u64>,
        patch: Vec<u8>,
    },
    /// Filters in the order of the packet: their channel (`None` for an unknown filter), and whether at-least-once
    /// delivery was asked for.
    Subscribe {
        packet_id: PacketId,
        filters: Vec<(Option<Channel>, bool)>,
    },
    Unsubscribe {
        packet_id: PacketId,
        channels: Vec<Channel>,
    },
}

/// What a request came to.
pub(super) enum Reply {
    Twin {
        rid: Box<str>,
        twin: Result<Bytes, Error>,
    },
    Patched {
        rid: Box<str>,
        version: Result<u64, Error>,
    },
    Subscribed {
        packet_id: PacketId,
        codes: Vec<SubAckCode>,
        outcome: Result<(), Error>,
    },
    Unsubscribed {
        packet_id: PacketId,
        outcome: Result<(), Error>,
    },
}

/// Requests of one connection. `after` is the number of the publish that must be acknowledged before the reply leaves
/// (mqtt.md section 11, item 6); 0 for none.
#[derive(Default)]
pub(super) struct Requests {
    pub(super) waiting: VecDeque<(u64, Request)>,
    /// Bytes of their patches.
    pub(super) bytes: usize,
    pub(super) running: Option<(u64, BoxFuture<'static, Reply>)>,
    pub(super) done: Option<(u64, Reply)>,
}

impl Requests {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_none() && self.done.is_none()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len() + usize::from(self.running.is_some()) + usize::from(self.done.is_some())
    }

    pub(super) fn push(&mut self, after: u64, request: Request) {
        if let Request::TwinPatch { patch, .. } = &request {
            self.bytes += patch.len();
        }
        self.waiting.push_back((after, request));
    }

    pub(super) fn pop(&mut self) -> Option<(u64, Request)> {
        let (after, request) = self.waiting.pop_front()?;
        if let Request::TwinPatch { patch, .. } = &request {
            self.bytes -= patch.len();
        }
        Some((after, request))
    }
}

/// What a call to the message queue came to.
pub(super) enum C2dDone {
    /// Locked messages, and how many were asked for.
    Received(Result<Vec<C2dDelivery>, Error>, usize),
    Settled,
}

/// A message that waits for its PUBACK.
pub(super) struct InFlight {
    pub(super) lock: LockToken,
    pub(super) locked_until: Timestamp,
    /// The lock has ended: the message may come again. A late PUBACK still completes it if nobody else has it by then.
    pub(super) lapsed: bool,
    pub(super) packet_id: PacketId,
}

/// Shortest wait for the end of a lock, so that a wall clock that was set cannot make the timer spin.
const LOCK_WAIT_MIN: Duration = Duration::from_millis(50);

/// Cloud-to-device messages of one connection.
#[derive(Default)]
pub(super) struct CloudToDevice {
    /// Messages may wait in the queue.
    pub(super) hint: bool,
    /// Sent at least once, not acknowledged; the queue's sequence number is the token given to the MQTT machine.
    pub(super) in_flight: Vec<InFlight>,
    /// Ends when the first lock of those does; exists only while one is held.
    lock_timer: Option<Pin<Box<Sleep>>>,
    /// Sent at most once, completed when the socket has taken them.
    pub(super) written: Vec<LockToken>,
    /// To be completed.
    pub(super) complete: Vec<LockToken>,
    pub(super) running: Option<BoxFuture<'static, C2dDone>>,
    /// What runs completes messages.
    pub(super) settling: bool,
}

impl CloudToDevice {
    /// Messages whose locks are held for this client.
    pub(super) fn held(&self) -> usize {
        self.in_flight.iter().filter(|message| !message.lapsed).count()
    }

    /// Where the message with that number is among those in flight.
    pub(super) fn place_of(&self, sequence_number: u64) -> Option<usize> {
        self.in_flight
            .iter()
            .position(|message| message.lock.sequence_number == sequence_number)
    }

    /// Looks for locks that have ended; their messages may be in the queue again. Keeps one timer for the next.
    pub(super) fn watch_locks(&mut self, now: impl Fn() -> Timestamp, context: &mut Context<'_>) {
        while self.lock_timer.is_some() || self.held() > 0 {
            if let Some(timer) = &mut self.lock_timer
                && timer.as_mut().poll(context).is_pending()
            {
                return;
            }
            // Looked at only when the timer ends: a session that acknowledges in time pays one timer for all messages.
            self.lock_timer = None;
            let now = now();
            let mut next = None::<Timestamp>;
            for message in self.in_flight.iter_mut().filter(|message| !message.lapsed) {
                if message.locked_until <= now {
                    message.lapsed = true;
                    self.hint = true;
                } else {
                    next = Some(next.map_or(message.locked_until, |next| next.min(message.locked_until)));
                }
            }
            let Some(next) = next else { return };
            let wait = next.since(now).max(LOCK_WAIT_MIN);
            self.lock_timer = Some(Box::pin(tokio::time::sleep(wait)));
        }
    }

    /// Messages that the client has acknowledged are not completed yet.
    pub(super) fn settles(&self) -> bool {
        self.settling || !self.complete.is_empty()
    }

    fn is_idle(&self) -> bool {
        !self.hint
            && self.in_flight.is_empty()
            && self.written.is_empty()
            && self.complete.is_empty()
            && self.running.is_none()
    }
}
