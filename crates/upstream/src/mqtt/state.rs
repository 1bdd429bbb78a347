//! What the task of a client and its callers share.

use std::collections::VecDeque;
use std::mem::Discriminant;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_model::Identity;
use holdfast_mqtt::codec::PacketId;
use holdfast_mqtt::{ClientSession, QoS, SendError, client};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::Core;
use crate::port::{Account, CloudError, Interests};
use crate::pushes::Pushes;

/// Twin requests of one client at a time.
pub(super) const REQUESTS_MAX: usize = 64;
/// Method calls of one client that wait for their answer; the oldest is forgotten when there are more.
const METHODS_MAX: usize = 64;
/// Bytes that may wait to be written; senders wait above.
pub(super) const OUT_BYTES_MAX: usize = 256 * 1024;

pub(super) struct Shared {
    pub(super) core: Arc<Core>,
    pub(super) account: Account,
    pub(super) state: Mutex<State>,
    /// The task is to look at `state`.
    pub(super) changed: Notify,
    /// Callers are to look at `state`.
    pub(super) progress: Notify,
    pub(super) pushes: Pushes,
    /// Held by the caller whose messages are being sent, so that messages stay in order.
    pub(super) sending: tokio::sync::Mutex<()>,
}

/// Where the connection stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Not there, and nobody asked for it.
    Closed,
    /// On its way.
    Opening,
    /// There, subscriptions included.
    Open,
    /// The last attempt failed; the next one comes by itself.
    Waiting(CloudError),
}

pub(super) struct State {
    pub(super) phase: Phase,
    /// A caller wants the connection; until it is open.
    pub(super) demand: bool,
    /// The client was dropped.
    pub(super) closing: bool,
    /// The connection is about to be replaced: nothing new is sent on it.
    pub(super) draining: bool,
    /// Why the task is to give up the connection.
    pub(super) reset: Option<&'static str>,
    /// What kind of failure was told last, so that each retry does not tell it again.
    pub(super) failure_told: Option<Discriminant<CloudError>>,
    pub(super) interests: Interests,
    /// Number of the connection, from 1.
    pub(super) connection: u64,
    pub(super) session: ClientSession,
    pub(super) out: Vec<u8>,
    /// Token of the next message.
    pub(super) next_token: u64,
    /// Token of the first message of this connection.
    pub(super) first_token: u64,
    /// All messages of this connection with smaller tokens are acknowledged.
    pub(super) first_unacked: u64,
    /// The last connection that carried messages, and its `first_unacked`.
    pub(super) ended: (u64, u64),
    pub(super) next_rid: u32,
    pub(super) requests: Vec<Request>,
    /// Method calls that wait for their answer, with the hub's ids.
    pub(super) methods: VecDeque<(u64, Box<str>)>,
    pub(super) next_method: u64,
    /// QoS 1 messages of the hub that are not acknowledged, in order.
    pub(super) deliveries: VecDeque<Delivery>,
}

/// A twin request that waits for its answer.
pub(super) struct Request {
    pub(super) rid: u32,
    pub(super) reply: oneshot::Sender<Answer>,
}

/// The answer to a twin request.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) version: Option<u64>,
    pub(super) body: Bytes,
}

pub(super) struct Delivery {
    pub(super) packet_id: PacketId,
    pub(super) fate: Fate,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Open,
    Acknowledge,
    /// Never acknowledged on this connection, so that the hub delivers it again.
    Leave,
}

impl State {
    pub(super) fn new(window: u16) -> Self {
        State {
            phase: Phase::Closed,
            demand: false,
            closing: false,
            draining: false,
            reset: None,
            failure_told: None,
            interests: Interests::default(),
            connection: 0,
            session: new_session(window),
            out: Vec::new(),
            next_token: 0,
            first_token: 0,
            first_unacked: 0,
            ended: (0, 0),
            next_rid: 0,
            requests: Vec::new(),
            methods: VecDeque::new(),
            next_method: 0,
            deliveries: VecDeque::new(),
        }
    }

    /// Whether the connection should be there.
    pub(super) fn is_wanted(&self) -> bool {
        self.demand || self.interests != Interests::default()
    }

    /// Starts with a connection of its own number.
    pub(super) fn begin(&mut self, window: u16) {
        self.connection += 1;
        self.session = new_session(window);
        self.out.clear();
        self.first_token = self.next_token;
        self.first_unacked = self.next_token;
        self.reset = None;
        self.draining = false;
    }

    /// Ends the connection: what waits on it fails, what it brought can no longer be answered.
    pub(super) fn end(&mut self) {
        if self.next_token > self.first_token {
            self.ended = (self.connection, self.first_unacked);
        }
        self.session.connection_lost();
        self.out = Vec::new();
        self.requests = Vec::new();
        self.methods = VecDeque::new();
        self.deliveries = VecDeque::new();
        self.draining = false;
    }

    /// Reads off which messages are acknowledged now.
    pub(super) fn note_acknowledged(&mut self) {
        let oldest = self.session.in_flight_tokens().next();
        self.first_unacked = oldest.map_or(self.next_token, |(_, token)| token);
    }

    /// Puts a message of QoS 1 on its way.
    pub(super) fn publish(&mut self, topic: &str, payload: &[u8], now: u64) -> Result<(), SendError> {
        let message = client::Message {
            topic,
            payload,
            qos: QoS::AtLeastOnce,
            retain: false,
            token: self.next_token,
        };
        self.session.publish(&message, now, &mut self.out)?;
        self.next_token += 1;
        Ok(())
    }

    /// Puts a message of QoS 0 on its way.
    pub(super) fn tell(&mut self, topic: &str, payload: &[u8], now: u64) -> Result<(), SendError> {
        let message = client::Message {
            topic,
            payload,
            ..client::Message::default()
        };
        self.session.publish(&message, now, &mut self.out).map(|_| ())
    }

    /// Files a method call; returns the number it is answered by.
    pub(super) fn file_method(&mut self, rid: &str) -> u64 {
        if self.methods.len() == METHODS_MAX {
            self.methods.pop_front();
        }
        self.next_method += 1;
        self.methods.push_back((self.next_method, rid.into()));
        self.next_method
    }

    /// The hub's id of a method call.
    pub(super) fn take_method(&mut self, number: u64) -> Option<Box<str>> {
        let at = self.methods.iter().position(|(known, _)| *known == number)?;
        self.methods.remove(at).map(|(_, rid)| rid)
    }

    /// Decides over a delivery, and acknowledges what may be now: acknowledgements leave in the order of receipt
    /// (MQTT-4.6.0-2).
    pub(super) fn decide(&mut self, packet_id: PacketId, fate: Fate, now: u64) {
        if let Some(delivery) = self
            .deliveries
            .iter_mut()
            .find(|known| known.packet_id == packet_id)
        {
            delivery.fate = fate;
        }
        while let Some(first) = self.deliveries.front() {
            match first.fate {
                Fate::Open => return,
                Fate::Acknowledge => self.session.acknowledge(first.packet_id, now, &mut self.out),
                Fate::Leave => {}
            }
            self.deliveries.pop_front();
        }
    }
}

fn new_session(window: u16) -> ClientSession {
    ClientSession::new(window).acknowledge_by_hand().without_copies()
}

impl Shared {
    pub(super) fn identity(&self) -> &Identity {
        &self.account.identity
    }

    /// Milliseconds for the session machine.
    pub(super) fn now(&self) -> u64 {
        self.core.monotonic_millis()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: u16) -> PacketId {
        PacketId::new(id).expect("not zero")
    }

    #[test]
    fn deliveries_are_acknowledged_in_order_whatever_the_order_of_decisions() {
        let mut state = State::new(4);
        for number in 1..=4 {
            state.deliveries.push_back(Delivery {
                packet_id: id(number),
                fate: Fate::Open,
            });
        }
        state.decide(id(2), Fate::Acknowledge, 0);
        state.decide(id(3), Fate::Leave, 0);
        assert!(state.out.is_empty());
        state.decide(id(1), Fate::Acknowledge, 0);
        assert_eq!(state.out, [0x40, 2, 0, 1, 0x40, 2, 0, 2]);
        assert_eq!(state.deliveries.len(), 1);
    }

    #[test]
    fn method_calls_that_are_never_answered_are_bounded() {
        let mut state = State::new(4);
        let first = state.file_method("a");
        let last = (0..METHODS_MAX)
            .map(|_| state.file_method("b"))
            .last()
            .expect("some");
        assert_eq!(state.methods.len(), METHODS_MAX);
        assert_eq!(state.take_method(first), None);
        assert_eq!(state.take_method(last).as_deref(), Some("b"));
    }
}
