//! The client's side of MQTT 3.1.1, over any number of connections.
//!
//! [`ClientSession`] outlives connections: with a kept session (`clean_session` off) it holds every QoS 1 message until
//! the server acknowledged it, and [`resend`](ClientSession::resend) sends the rest again after a reconnect.
//!
//! How it is driven:
//!
//! 1. [`connect`](ClientSession::connect) on every new connection; later, decode packets and pass them to
//!    [`handle`](ClientSession::handle);
//! 2. after [`Event::ConnAck`] with code 0, [`resend`](ClientSession::resend), and subscribe again if no session was present;
//! 3. [`publish`](ClientSession::publish) until [`SendError::WindowFull`]; each [`Event::PubAck`] makes room;
//! 4. call [`tick`](ClientSession::tick) when [`next_tick`](ClientSession::next_tick) has come.

use crate::codec::{
    ConnAck, Connect, ConnectCode, Packet, PacketId, Publish, QoS, SubAck, encode_connect, encode_disconnect,
    encode_pingreq, encode_puback, encode_publish, encode_subscribe, encode_unsubscribe,
};
use crate::error::{ClientError, EncodeError, SendError};
use crate::inflight::InFlight;

/// Longest wait for PINGRESP in milliseconds; a shorter keep-alive shortens it.
const PING_TIMEOUT_MAX_MS: u32 = 30_000;

/// What a packet means to the client. Borrows from the packet's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// The server's answer to CONNECT. Anything but code 0 is followed by the end of the connection.
    ConnAck(ConnAck),
    /// A message of QoS 0 or 1. One of QoS 1 is acknowledged already, or waits for
    /// [`acknowledge`](ClientSession::acknowledge) if the client acknowledges by hand.
    Publish(Publish<'a>),
    /// The server took responsibility for the message sent with this token.
    PubAck {
        /// As given to [`ClientSession::publish`].
        token: u64,
    },
    /// PUBACK for nothing in flight: a server may repeat itself after a resend.
    StalePubAck {
        /// The identifier acknowledged.
        packet_id: PacketId,
    },
    /// Answer to [`subscribe`](ClientSession::subscribe).
    SubAck(SubAck<'a>),
    /// Answer to [`unsubscribe`](ClientSession::unsubscribe).
    UnsubAck(PacketId),
    /// Answer to a ping.
    PingResp,
}

/// A message to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Message<'a> {
    /// Topic name.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// QoS 2 is refused.
    pub qos: QoS,
    /// RETAIN.
    pub retain: bool,
    /// Comes back in [`Event::PubAck`]. Unused at QoS 0.
    pub token: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Offline,
    Connecting,
    Open,
}

/// The client's side; see the module documentation.
pub struct ClientSession {
    in_flight: InFlight<Unacked>,
    /// SUBSCRIBE (with its number of filters) and UNSUBSCRIBE (0) waiting for their acknowledgement.
    requests: Vec<(PacketId, u16)>,
    /// When anything was last written.
    sent_ms: u64,
    /// When anything was last read.
    heard_ms: u64,
    /// When the ping that is not answered yet was sent.
    pinged_ms: Option<u64>,
    /// 0: no pings.
    keep_alive_ms: u32,
    window: u16,
    /// Messages at the front of `in_flight` still to be sent on this connection.
    to_resend: u16,
    state: State,
    acknowledge_by_hand: bool,
    /// Unacknowledged messages are kept as bytes, for a session that outlives the connection.
    keep: bool,
    /// The caller keeps its messages itself and publishes them anew.
    caller_resends: bool,
}

struct Unacked {
    token: u64,
    /// The encoded PUBLISH, if the session is kept.
    packet: Option<Box<[u8]>>,
}

impl ClientSession {
    /// A client that lets at most `window` QoS 1 messages wait for PUBACK, and acknowledges received ones at once.
    #[must_use]
    pub fn new(window: u16) -> Self {
        Self {
            in_flight: InFlight::new(0),
            requests: Vec::new(),
            sent_ms: 0,
            heard_ms: 0,
            pinged_ms: None,
            keep_alive_ms: 0,
            window,
            to_resend: 0,
            state: State::Offline,
            acknowledge_by_hand: false,
            keep: false,
            caller_resends: false,
        }
    }

    /// Leaves PUBACK of received messages to [`acknowledge`](Self::acknowledge).
    #[must_use]
    pub fn acknowledge_by_hand(mut self) -> Self {
        self.acknowledge_by_hand = true;
        self
    }

    /// Keeps no copy of what is not acknowledged, for a caller that publishes it anew on the next connection: a client
    /// whose messages stand in a store of its own. Holds with a kept session too.
    #[must_use]
    pub fn without_copies(mut self) -> Self {
        self.caller_resends = true;
        self
    }

    /// Starts on a new connection: appends CONNECT. Whatever the old connection was doing is over. With `clean_session`
    /// the unacknowledged messages are forgotten (MQTT-3.1.2-6); look at [`in_flight_tokens`](Self::in_flight_tokens)
    /// before if they matter.
    ///
    /// # Errors
    /// [`EncodeError`] if a field does not fit; the client is then offline.
    pub fn connect(&mut self, connect: &Connect<'_>, now: u64, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.connection_lost();
        encode_connect(out, connect)?;
        // What a clean session sent has no session to be sent again in.
        if connect.clean_session || !self.keep {
            self.in_flight.clear();
        }
        self.keep = !connect.clean_session && !self.caller_resends;
        self.keep_alive_ms = u32::from(connect.keep_alive) * 1_000;
        self.sent_ms = now;
        self.heard_ms = now;
        self.state = State::Connecting;
        Ok(())
    }

    /// The connection is gone. Messages in flight stay for the next one; pending subscribe requests do not.
    pub fn connection_lost(&mut self) {
        self.state = State::Offline;
        self.requests.clear();
        self.pinged_ms = None;
        self.to_resend = 0;
    }

    /// Judges the next packet from the server. Appends PUBACK to `out` where it is due at once.
    ///
    /// # Errors
    /// [`ClientError`]: the server is against the protocol; close the connection.
    #[inline]
    pub fn handle<'a>(
        &mut self,
        packet: Packet<'a>,
        now: u64,
        out: &mut Vec<u8>,
    ) -> Result<Event<'a>, ClientError> {
        if self.state != State::Open {
            return self.handle_unopened(packet, now);
        }
        self.heard_ms = now;
        match packet {
            Packet::PubAck(packet_id) => Ok(match self.in_flight.remove(packet_id) {
                Some(unacked) => Event::PubAck { token: unacked.token },
                None => Event::StalePubAck { packet_id },
            }),
            Packet::Publish(publish) => {
                match (publish.qos, publish.packet_id) {
                    (QoS::ExactlyOnce, _) => return Err(ClientError::QosTwo),
                    (QoS::AtLeastOnce, Some(id)) if !self.acknowledge_by_hand => {
                        encode_puback(out, id);
                        self.sent_ms = now;
                    }
                    _ => {}
                }
                Ok(Event::Publish(publish))
            }
            Packet::SubAck(suback) => {
                let filters = self.take_request(suback.packet_id)?;
                if filters == 0 {
                    return Err(ClientError::UnknownRequest);
                }
                if usize::from(filters) != suback.codes().len() {
                    return Err(ClientError::SubAckCount);
                }
                Ok(Event::SubAck(suback))
            }
            Packet::UnsubAck(packet_id) => match self.take_request(packet_id)? {
                0 => Ok(Event::UnsubAck(packet_id)),
                _ => Err(ClientError::UnknownRequest),
            },
            Packet::PingResp => {
                self.pinged_ms = None;
                Ok(Event::PingResp)
            }
            Packet::ConnAck(_) => Err(ClientError::UnexpectedConnAck),
            Packet::PubRec(_) | Packet::PubRel(_) | Packet::PubComp(_) => Err(ClientError::QosTwo),
            Packet::Connect(_)
            | Packet::UnsupportedConnect { .. }
            | Packet::Subscribe(_)
            | Packet::Unsubscribe(_)
            | Packet::PingReq
            | Packet::Disconnect => Err(ClientError::ClientPacket(packet.packet_type())),
        }
    }

    fn handle_unopened<'a>(&mut self, packet: Packet<'a>, now: u64) -> Result<Event<'a>, ClientError> {
        match (self.state, packet) {
            (State::Connecting, Packet::ConnAck(connack)) => {
                self.heard_ms = now;
                if connack.code == ConnectCode::Accepted {
                    self.state = State::Open;
                    self.to_resend = u16::try_from(self.in_flight.len()).unwrap_or(u16::MAX);
                } else {
                    self.state = State::Offline;
                }
                Ok(Event::ConnAck(connack))
            }
            (State::Offline, Packet::ConnAck(_)) => Err(ClientError::UnexpectedConnAck),
            (_, packet) => Err(ClientError::FirstPacket(packet.packet_type())),
        }
    }

    fn take_request(&mut self, packet_id: PacketId) -> Result<u16, ClientError> {
        let position = self.requests.iter().position(|(id, _)| *id == packet_id);
        position
            .map(|at| self.requests.swap_remove(at).1)
            .ok_or(ClientError::UnknownRequest)
    }

    /// Sends every message left over from the last connection again, in the order of the first sending, with DUP
    /// (MQTT-4.4.0-1, MQTT-4.6.0-1, MQTT-3.3.1-1). Returns how many. Call it once after CONNACK, before publishing; it does
    /// so also when the server had lost the session, because at-least-once is the caller's promise, not the server's.
    pub fn resend(&mut self, now: u64, out: &mut Vec<u8>) -> usize {
        if self.state != State::Open {
            return 0;
        }
        let mut sent = 0;
        for (_, unacked) in self.in_flight.iter().take(usize::from(self.to_resend)) {
            if let Some(packet) = &unacked.packet {
                let start = out.len();
                out.extend_from_slice(packet);
                out[start] |= 0b1000;
                sent += 1;
            }
        }
        self.to_resend = 0;
        if sent > 0 {
            self.sent_ms = now;
        }
        sent
    }

    /// Sends a message. Returns its packet identifier at QoS 1.
    ///
    /// # Errors
    /// [`SendError`]; nothing was appended. `WindowFull` ends when a PUBACK comes.
    #[inline]
    pub fn publish(
        &mut self,
        message: &Message<'_>,
        now: u64,
        out: &mut Vec<u8>,
    ) -> Result<Option<PacketId>, SendError> {
        if self.state != State::Open {
            return Err(SendError::NotConnected);
        }
        let Message {
            topic,
            payload,
            qos,
            retain,
            token,
        } = *message;
        let mut publish = Publish {
            topic,
            payload,
            qos,
            retain,
            ..Publish::default()
        };
        match qos {
            QoS::AtMostOnce => encode_publish(out, &publish)?,
            QoS::ExactlyOnce => return Err(SendError::QosTwo),
            QoS::AtLeastOnce => {
                if self.in_flight.len() >= usize::from(self.window) {
                    return Err(SendError::WindowFull);
                }
                let candidate = self.free_id().ok_or(SendError::WindowFull)?;
                publish.packet_id = Some(candidate.id);
                let start = out.len();
                encode_publish(out, &publish)?;
                let packet = self.keep.then(|| out[start..].into());
                self.in_flight.push(&candidate, Unacked { token, packet });
            }
        }
        self.sent_ms = now;
        Ok(publish.packet_id)
    }

    #[inline]
    fn free_id(&self) -> Option<crate::inflight::Candidate> {
        self.in_flight
            .candidate(|id| self.requests.iter().any(|(request, _)| *request == id))
    }

    /// Asks for subscriptions. The identifier returned comes back in [`Event::SubAck`].
    ///
    /// # Errors
    /// [`SendError`]; nothing was appended.
    pub fn subscribe(
        &mut self,
        filters: &[(&str, QoS)],
        now: u64,
        out: &mut Vec<u8>,
    ) -> Result<PacketId, SendError> {
        if filters.iter().any(|(_, qos)| *qos == QoS::ExactlyOnce) {
            return Err(SendError::QosTwo);
        }
        let count =
            u16::try_from(filters.len()).map_err(|_| SendError::Encode(EncodeError::PacketTooLong))?;
        self.request(count, now, |id| encode_subscribe(out, id, filters))
    }

    /// Gives subscriptions up. The identifier returned comes back in [`Event::UnsubAck`].
    ///
    /// # Errors
    /// [`SendError`]; nothing was appended.
    pub fn unsubscribe(
        &mut self,
        filters: &[&str],
        now: u64,
        out: &mut Vec<u8>,
    ) -> Result<PacketId, SendError> {
        self.request(0, now, |id| encode_unsubscribe(out, id, filters))
    }

    fn request(
        &mut self,
        filters: u16,
        now: u64,
        encode: impl FnOnce(PacketId) -> Result<(), EncodeError>,
    ) -> Result<PacketId, SendError> {
        if self.state != State::Open {
            return Err(SendError::NotConnected);
        }
        let candidate = self.free_id().ok_or(SendError::WindowFull)?;
        encode(candidate.id)?;
        self.in_flight.advance(&candidate);
        self.requests.push((candidate.id, filters));
        self.sent_ms = now;
        Ok(candidate.id)
    }

    /// Acknowledges a received QoS 1 message, for a client that does so by hand. Acknowledge in the order received
    /// (MQTT-4.6.0-2), and only on the connection that brought the message.
    pub fn acknowledge(&mut self, packet_id: PacketId, now: u64, out: &mut Vec<u8>) {
        encode_puback(out, packet_id);
        self.sent_ms = now;
    }

    /// Appends DISCONNECT; the client is offline then.
    pub fn disconnect(&mut self, out: &mut Vec<u8>) {
        if self.state == State::Open {
            encode_disconnect(out);
        }
        self.connection_lost();
    }

    /// When to call [`tick`](Self::tick), in the milliseconds of `now`; `None` without keep-alive or connection. Sending
    /// and receiving move it to later, so a timer that fires early only has to ask again.
    #[must_use]
    pub fn next_tick(&self) -> Option<u64> {
        if self.state != State::Open || self.keep_alive_ms == 0 {
            return None;
        }
        Some(match self.pinged_ms {
            Some(pinged) => pinged + u64::from(self.keep_alive_ms.min(PING_TIMEOUT_MAX_MS)),
            // Silence of the server counts too: a client that only sends would not notice a dead peer.
            None => self.sent_ms.min(self.heard_ms) + u64::from(self.keep_alive_ms),
        })
    }

    /// Appends PINGREQ if it is due (MQTT-3.1.2-23).
    ///
    /// # Errors
    /// [`ClientError::PingTimeout`] if the last ping got no answer in the keep-alive time, at most 30 s.
    pub fn tick(&mut self, now: u64, out: &mut Vec<u8>) -> Result<(), ClientError> {
        match self.next_tick() {
            Some(due) if now >= due => {}
            _ => return Ok(()),
        }
        if self.pinged_ms.is_some() {
            return Err(ClientError::PingTimeout);
        }
        encode_pingreq(out);
        self.sent_ms = now;
        self.pinged_ms = Some(now);
        Ok(())
    }

    /// QoS 1 messages waiting for PUBACK.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Identifiers and tokens of the messages waiting for PUBACK, oldest first.
    pub fn in_flight_tokens(&self) -> impl Iterator<Item = (PacketId, u64)> + '_ {
        self.in_flight.iter().map(|(id, unacked)| (id, unacked.token))
    }

    /// True between an accepting CONNACK and the end of the connection.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Gives back memory that a past burst left behind.
    pub fn shrink(&mut self) {
        self.in_flight.shrink();
        self.requests.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests;
