//! The server's side of one MQTT 3.1.1 connection.
//!
//! [`ServerSession`] judges what a single packet cannot show: that CONNECT comes first and once, that only a client's
//! packets come from the client, that QoS 2 is not used; and it keeps the two lists the protocol needs, inbound packet
//! identifiers waiting for their PUBACK in order (MQTT-4.6.0-2) and outbound messages waiting for the client's PUBACK.
//!
//! A hub holds one of these per connection, most of them idle. So both lists live in a box that exists only while
//! something is in flight, and the session itself stays below 64 bytes.
//!
//! How a head drives it:
//!
//! 1. decode a packet, pass it to [`handle`](ServerSession::handle) with the time, act on the [`Event`];
//! 2. after [`Event::Connect`], hold further packets back until the client is authenticated, then
//!    [`accept`](ServerSession::accept) or [`refuse`](ServerSession::refuse);
//! 3. when the oldest QoS 1 publishes are durable, [`acknowledge`](ServerSession::acknowledge) that many;
//! 4. close the connection when [`deadline`](ServerSession::deadline) has passed;
//! 5. at the end, publish the will unless [`ended_cleanly`](ServerSession::ended_cleanly), and release what
//!    [`in_flight_tokens`](ServerSession::in_flight_tokens) still lists.

use std::collections::VecDeque;

use crate::codec::{
    ConnAck, Connect, ConnectCode, Packet, PacketId, Publish, QoS, Subscribe, Unsubscribe, encode_connack,
    encode_puback, encode_publish,
};
use crate::error::{ProtocolError, SendError};
use crate::inflight::InFlight;

/// More identifiers than these cannot be outstanding (MQTT-2.3.1-2). A bound against a client that never lets go of an
/// identifier; the head should stop reading long before.
pub const INBOUND_MAX: usize = 65_535;

/// First room of the list of identifiers to acknowledge: a read usually holds a window of publishes, not one.
const INBOUND_ROOM: usize = 32;

/// What the head decides once for all its sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Messages that may wait for the client's PUBACK at once. Default 50, the length of a device's command queue.
    pub outbound_window: u16,
    /// Milliseconds a connection may take to send CONNECT. Default 60,000.
    pub connect_timeout_ms: u32,
    /// Longest silence in milliseconds: a cap on 1.5 times the client's keep-alive, and what counts when the client turned
    /// keep-alive off. Default 1,767,000, the hub's; the edge hub uses 600,000.
    pub silence_max_ms: u32,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            outbound_window: 50,
            connect_timeout_ms: 60_000,
            silence_max_ms: 1_767_000,
        }
    }
}

/// What a packet means to the head. Borrows from the packet's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// The client wants in: authenticate, then `accept` or `refuse`.
    Connect(Connect<'a>),
    /// A message of QoS 0 or 1. One of QoS 1 waits for `acknowledge`.
    Publish(Publish<'a>),
    /// Answer with [`encode_suback`](crate::codec::encode_suback).
    Subscribe(Subscribe<'a>),
    /// Answer with [`encode_unsuback`](crate::codec::encode_unsuback).
    Unsubscribe(Unsubscribe<'a>),
    /// The client has the message that was sent with this token.
    PubAck {
        /// As given to [`ServerSession::publish`].
        token: u64,
    },
    /// A PUBACK for nothing in flight. Harmless: a client with a kept session may acknowledge what an earlier connection
    /// brought.
    StalePubAck {
        /// The identifier acknowledged.
        packet_id: PacketId,
    },
    /// Answer with [`encode_pingresp`](crate::codec::encode_pingresp) (MQTT-3.12.4-1).
    PingReq,
    /// The client leaves: close without publishing the will (MQTT-3.14.4-3).
    Disconnect,
}

/// A message for the client. RETAIN is never set: the hub has no retained messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery<'a> {
    /// Topic name.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// At most what was granted to the subscription; QoS 2 is refused.
    pub qos: QoS,
    /// Comes back in [`Event::PubAck`]. Unused at QoS 0.
    pub token: u64,
    /// `Some` for a message that went out before: its identifier (MQTT-4.4.0-1). It then carries DUP. While that
    /// identifier still waits for its PUBACK, only the same token may use it again. Unused at QoS 0.
    pub redelivery_of: Option<PacketId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing received.
    Fresh,
    /// CONNECT received, not judged.
    Connecting,
    /// Accepted.
    Open,
    /// DISCONNECT received.
    Left,
    /// Refused.
    Refused,
}

/// The server's side of one connection; see the module documentation.
pub struct ServerSession {
    active: Option<Box<Active>>,
    /// When the last packet came.
    heard_ms: u64,
    /// Silence allowed after that.
    silence_ms: u32,
    silence_max_ms: u32,
    outbound_window: u16,
    /// Last outbound identifier, kept here while `active` does not exist.
    last_id: u16,
    state: State,
}

/// What is in flight; exists only while something is.
struct Active {
    /// Identifiers to acknowledge, in the order received.
    inbound: VecDeque<PacketId>,
    outbound: InFlight<u64>,
}

impl ServerSession {
    /// A connection accepted at `now` (milliseconds).
    #[must_use]
    pub fn new(limits: &ServerLimits, now: u64) -> Self {
        Self {
            active: None,
            heard_ms: now,
            silence_ms: limits.connect_timeout_ms,
            silence_max_ms: limits.silence_max_ms,
            outbound_window: limits.outbound_window,
            last_id: 0,
            state: State::Fresh,
        }
    }

    /// Judges the next packet from the client.
    ///
    /// # Errors
    /// [`ProtocolError`]: close the connection; for [`ProtocolError::UnsupportedLevel`] send the refusal before.
    #[inline]
    pub fn handle<'a>(&mut self, packet: Packet<'a>, now: u64) -> Result<Event<'a>, ProtocolError> {
        if self.state != State::Open {
            return self.handle_unopened(packet, now);
        }
        self.heard_ms = now;
        match packet {
            Packet::Publish(publish) => {
                match publish.qos {
                    QoS::AtMostOnce => {}
                    QoS::AtLeastOnce => self.await_acknowledgement(publish.packet_id)?,
                    QoS::ExactlyOnce => return Err(ProtocolError::QosTwo),
                }
                Ok(Event::Publish(publish))
            }
            Packet::PubAck(packet_id) => Ok(self.complete(packet_id)),
            Packet::Subscribe(subscribe) => Ok(Event::Subscribe(subscribe)),
            Packet::Unsubscribe(unsubscribe) => Ok(Event::Unsubscribe(unsubscribe)),
            Packet::PingReq => Ok(Event::PingReq),
            Packet::Disconnect => {
                self.state = State::Left;
                Ok(Event::Disconnect)
            }
            Packet::Connect(_) | Packet::UnsupportedConnect { .. } => Err(ProtocolError::SecondConnect),
            Packet::PubRec(_) | Packet::PubRel(_) | Packet::PubComp(_) => Err(ProtocolError::QosTwo),
            Packet::ConnAck(_) | Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::PingResp => {
                Err(ProtocolError::ServerPacket(packet.packet_type()))
            }
        }
    }

    fn handle_unopened<'a>(&mut self, packet: Packet<'a>, now: u64) -> Result<Event<'a>, ProtocolError> {
        match (self.state, packet) {
            (State::Fresh, Packet::Connect(connect)) => {
                self.state = State::Connecting;
                self.heard_ms = now;
                self.keep_alive(connect.keep_alive);
                Ok(Event::Connect(connect))
            }
            (State::Fresh, Packet::UnsupportedConnect { level }) => {
                Err(ProtocolError::UnsupportedLevel { level })
            }
            (State::Fresh, packet) => Err(ProtocolError::FirstPacket(packet.packet_type())),
            (State::Left | State::Refused, _) => Err(ProtocolError::AfterDisconnect),
            (_, Packet::Connect(_) | Packet::UnsupportedConnect { .. }) => Err(ProtocolError::SecondConnect),
            _ => Err(ProtocolError::NotAccepted),
        }
    }

    /// 1.5 times the client's seconds, capped (MQTT-3.1.2-24); the cap alone if the client turned keep-alive off.
    fn keep_alive(&mut self, seconds: u16) {
        self.silence_ms = match seconds {
            0 => self.silence_max_ms,
            seconds => (u32::from(seconds) * 1_500).min(self.silence_max_ms),
        };
    }

    /// Accepts the CONNECT: appends CONNACK with code 0. Does nothing in any other state.
    pub fn accept(&mut self, session_present: bool, out: &mut Vec<u8>) {
        if self.state == State::Connecting {
            self.state = State::Open;
            encode_connack(
                out,
                ConnAck {
                    session_present,
                    code: ConnectCode::Accepted,
                },
            );
        }
    }

    /// Refuses the CONNECT: appends CONNACK with `code`. Close the connection once it is sent (3.1.4). Does nothing in any
    /// other state.
    pub fn refuse(&mut self, code: ConnectCode, out: &mut Vec<u8>) {
        if self.state == State::Connecting {
            self.state = State::Refused;
            encode_connack(
                out,
                ConnAck {
                    session_present: false,
                    code,
                },
            );
        }
    }

    #[inline]
    fn await_acknowledgement(&mut self, packet_id: Option<PacketId>) -> Result<(), ProtocolError> {
        // The decoder guarantees the identifier at QoS 1; without one there is nothing to acknowledge.
        let Some(packet_id) = packet_id else { return Ok(()) };
        let inbound = &mut self.active().inbound;
        if inbound.capacity() == 0 {
            inbound.reserve(INBOUND_ROOM);
        } else if inbound.len() >= INBOUND_MAX {
            return Err(ProtocolError::TooManyUnacknowledged);
        }
        inbound.push_back(packet_id);
        Ok(())
    }

    #[inline]
    fn active(&mut self) -> &mut Active {
        let last_id = self.last_id;
        self.active.get_or_insert_with(|| {
            Box::new(Active {
                inbound: VecDeque::new(),
                outbound: InFlight::new(last_id),
            })
        })
    }

    /// Frees the lists when both are empty.
    #[inline]
    fn settle(&mut self) {
        if let Some(active) = &self.active
            && active.inbound.is_empty()
            && active.outbound.is_empty()
        {
            self.last_id = active.outbound.last_id();
            self.active = None;
        }
    }

    fn complete<'a>(&mut self, packet_id: PacketId) -> Event<'a> {
        let token = self
            .active
            .as_mut()
            .and_then(|active| active.outbound.remove(packet_id));
        match token {
            Some(token) => {
                self.settle();
                Event::PubAck { token }
            }
            None => Event::StalePubAck { packet_id },
        }
    }

    /// Appends the PUBACKs of the oldest `count` unacknowledged QoS 1 publishes, in the order they were received
    /// (MQTT-4.6.0-2). Returns how many there were, at most `count`.
    pub fn acknowledge(&mut self, count: usize, out: &mut Vec<u8>) -> usize {
        let Some(active) = &mut self.active else { return 0 };
        let count = count.min(active.inbound.len());
        out.reserve(4 * count);
        for packet_id in active.inbound.drain(..count) {
            encode_puback(out, packet_id);
        }
        self.settle();
        count
    }

    /// QoS 1 publishes of the client that are not acknowledged yet. A head bounds its memory by not reading while this is
    /// above its window.
    #[must_use]
    pub fn unacknowledged(&self) -> usize {
        self.active.as_ref().map_or(0, |active| active.inbound.len())
    }

    /// Sends a message. Returns its packet identifier at QoS 1.
    ///
    /// # Errors
    /// [`SendError`]; nothing was appended. `WindowFull` ends when a PUBACK comes.
    pub fn publish(
        &mut self,
        delivery: &Delivery<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Option<PacketId>, SendError> {
        if self.state != State::Open {
            return Err(SendError::NotConnected);
        }
        let Delivery {
            topic,
            payload,
            qos,
            token,
            redelivery_of,
        } = *delivery;
        let mut publish = Publish {
            topic,
            payload,
            qos,
            ..Publish::default()
        };
        match qos {
            QoS::AtMostOnce => {
                encode_publish(out, &publish)?;
                return Ok(None);
            }
            QoS::AtLeastOnce => {}
            QoS::ExactlyOnce => return Err(SendError::QosTwo),
        }
        if self.in_flight() >= usize::from(self.outbound_window) {
            return Err(SendError::WindowFull);
        }
        let outbound = &mut self.active().outbound;
        let sent = match redelivery_of {
            Some(id) if outbound.contains(id) => {
                if outbound.iter().any(|(used, &by)| used == id && by == token) {
                    publish.packet_id = Some(id);
                    publish.dup = true;
                    encode_publish(out, &publish).map_err(SendError::Encode)
                } else {
                    Err(SendError::PacketIdInUse)
                }
            }
            Some(id) => {
                publish.packet_id = Some(id);
                publish.dup = true;
                encode_publish(out, &publish)
                    .map(|()| outbound.push_reused(id, token))
                    .map_err(SendError::Encode)
            }
            None => match outbound.candidate(|_| false) {
                None => Err(SendError::WindowFull),
                Some(candidate) => {
                    publish.packet_id = Some(candidate.id);
                    encode_publish(out, &publish)
                        .map(|()| outbound.push(&candidate, token))
                        .map_err(SendError::Encode)
                }
            },
        };
        self.settle();
        sent.map(|()| publish.packet_id)
    }

    /// Messages waiting for the client's PUBACK.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.active.as_ref().map_or(0, |active| active.outbound.len())
    }

    /// Identifiers and tokens of the messages waiting for the client's PUBACK, oldest first: what to give back to its
    /// queue when the connection ends.
    pub fn in_flight_tokens(&self) -> impl Iterator<Item = (PacketId, u64)> + '_ {
        self.active
            .iter()
            .flat_map(|active| active.outbound.iter().map(|(id, &token)| (id, token)))
    }

    /// The packet identifier issued last, 0 before the first.
    #[must_use]
    pub fn last_packet_id(&self) -> u16 {
        self.active
            .as_ref()
            .map_or(self.last_id, |active| active.outbound.last_id())
    }

    /// Issues packet identifiers from the one after `last`. A session that outlives its connection should go on where the
    /// last connection stopped, so that a late PUBACK from then cannot meet another message's identifier.
    pub fn continue_packet_ids(&mut self, last: u16) {
        self.last_id = last;
        if let Some(active) = &mut self.active {
            active.outbound.set_last_id(last);
        }
    }

    /// When to give the client up, in the milliseconds of `now`: the end of the connect timeout before CONNECT, then 1.5
    /// times the keep-alive after the last packet (MQTT-3.1.2-24), capped. It only moves to later.
    #[must_use]
    pub fn deadline(&self) -> u64 {
        self.heard_ms.saturating_add(u64::from(self.silence_ms))
    }

    /// True once the CONNECT was accepted, until DISCONNECT.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// True if the client sent DISCONNECT, so that no will is due (MQTT-3.14.4-3).
    #[must_use]
    pub fn ended_cleanly(&self) -> bool {
        self.state == State::Left
    }
}

#[cfg(test)]
mod tests;
