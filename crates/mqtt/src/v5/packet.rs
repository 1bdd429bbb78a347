//! The packet types of MQTT 5, borrowing from the buffer they were decoded from.

use std::fmt;

use super::property::Properties;
use crate::codec::{Filters, PacketId, PacketType, QoS};
use crate::cursor::Cursor;
use crate::error::DecodeError;

/// Any MQTT 5 packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// v5 3.1
    Connect(Connect<'a>),
    /// v5 3.2
    ConnAck(ConnAck<'a>),
    /// v5 3.3
    Publish(Publish<'a>),
    /// v5 3.4
    PubAck(Ack<'a>),
    /// v5 3.5
    PubRec(Ack<'a>),
    /// v5 3.6
    PubRel(Ack<'a>),
    /// v5 3.7
    PubComp(Ack<'a>),
    /// v5 3.8
    Subscribe(Subscribe<'a>),
    /// v5 3.9
    SubAck(SubAck<'a>),
    /// v5 3.10
    Unsubscribe(Unsubscribe<'a>),
    /// v5 3.11
    UnsubAck(SubAck<'a>),
    /// v5 3.12
    PingReq,
    /// v5 3.13
    PingResp,
    /// v5 3.14
    Disconnect(Disconnect<'a>),
    /// v5 3.15
    Auth(Auth<'a>),
}

/// A reason code (v5 table 2-6). From 0x80 on a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ReasonCode(pub u8);

impl ReasonCode {
    /// 0x00; also normal disconnection and granted QoS 0.
    pub const SUCCESS: Self = Self(0x00);
    /// 0x04
    pub const DISCONNECT_WITH_WILL: Self = Self(0x04);
    /// 0x10
    pub const NO_MATCHING_SUBSCRIBERS: Self = Self(0x10);
    /// 0x80
    pub const UNSPECIFIED_ERROR: Self = Self(0x80);
    /// 0x81
    pub const MALFORMED_PACKET: Self = Self(0x81);
    /// 0x82
    pub const PROTOCOL_ERROR: Self = Self(0x82);
    /// 0x84
    pub const UNSUPPORTED_PROTOCOL_VERSION: Self = Self(0x84);
    /// 0x86
    pub const BAD_USER_NAME_OR_PASSWORD: Self = Self(0x86);
    /// 0x87
    pub const NOT_AUTHORIZED: Self = Self(0x87);
    /// 0x8e
    pub const SESSION_TAKEN_OVER: Self = Self(0x8e);

    /// True for a failure.
    #[must_use]
    pub fn is_error(self) -> bool {
        self.0 >= 0x80
    }

    /// Which packets may carry the code: table 2-6 and the tables of each packet.
    pub(crate) fn is_allowed_in(self, packet_type: PacketType) -> bool {
        let code = self.0;
        match packet_type {
            PacketType::ConnAck => matches!(
                code,
                0 | 0x80..=0x8a | 0x8c | 0x90 | 0x95 | 0x97 | 0x99..=0x9d | 0x9f
            ),
            PacketType::PubAck | PacketType::PubRec => {
                matches!(code, 0 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99)
            }
            PacketType::PubRel | PacketType::PubComp => matches!(code, 0 | 0x92),
            PacketType::SubAck => {
                matches!(
                    code,
                    0..=2 | 0x80 | 0x83 | 0x87 | 0x8f | 0x91 | 0x97 | 0x9e | 0xa1 | 0xa2
                )
            }
            PacketType::UnsubAck => matches!(code, 0 | 0x11 | 0x80 | 0x83 | 0x87 | 0x8f | 0x91),
            PacketType::Disconnect => matches!(
                code,
                0 | 4 | 0x80..=0x83 | 0x87 | 0x89 | 0x8b..=0x90 | 0x93..=0x9a | 0x9b..=0xa2
            ),
            PacketType::Auth => matches!(code, 0 | 0x18 | 0x19),
            _ => false,
        }
    }

    pub(crate) fn read(cursor: &mut Cursor<'_>, packet_type: PacketType) -> Result<Self, DecodeError> {
        let code = Self(cursor.u8()?);
        if code.is_allowed_in(packet_type) {
            Ok(code)
        } else {
            Err(DecodeError::ReturnCode(code.0))
        }
    }
}

/// CONNECT of level 5.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Connect<'a> {
    /// May be empty: the server then assigns one.
    pub client_id: &'a str,
    /// Forget an earlier session.
    pub clean_start: bool,
    /// Seconds; 0 turns keep-alive off.
    pub keep_alive: u16,
    /// Properties.
    pub properties: Properties<'a>,
    /// Message to publish when the connection ends without a normal DISCONNECT.
    pub will: Option<Will<'a>>,
    /// User name.
    pub username: Option<&'a str>,
    /// Password, allowed without user name; never printed by `Debug`.
    pub password: Option<&'a [u8]>,
}

impl fmt::Debug for Connect<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("client_id", &self.client_id)
            .field("clean_start", &self.clean_start)
            .field("keep_alive", &self.keep_alive)
            .field("properties", &self.properties)
            .field("will", &self.will)
            .field("username", &self.username)
            .field("password", &self.password.map(|_| "(hidden)"))
            .finish()
    }
}

/// The will of a CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Will<'a> {
    /// Topic to publish to; never empty.
    pub topic: &'a str,
    /// Payload, possibly empty.
    pub payload: &'a [u8],
    /// QoS to publish at.
    pub qos: QoS,
    /// RETAIN of the published message.
    pub retain: bool,
    /// Will delay and what the message will carry.
    pub properties: Properties<'a>,
}

/// CONNACK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnAck<'a> {
    /// The server had a session; never with a failure (v5 MQTT-3.2.2-6).
    pub session_present: bool,
    /// Outcome.
    pub reason: ReasonCode,
    /// Properties.
    pub properties: Properties<'a>,
}

/// PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Publish<'a> {
    /// Re-delivery; never at QoS 0.
    pub dup: bool,
    /// Quality of service.
    pub qos: QoS,
    /// RETAIN.
    pub retain: bool,
    /// Empty only together with a topic alias.
    pub topic: &'a str,
    /// Present exactly at QoS 1 and 2.
    pub packet_id: Option<PacketId>,
    /// Properties.
    pub properties: Properties<'a>,
    /// Possibly empty.
    pub payload: &'a [u8],
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack<'a> {
    /// Identifier of the PUBLISH.
    pub packet_id: PacketId,
    /// Success is left out of the encoding when there are no properties either.
    pub reason: ReasonCode,
    /// Properties.
    pub properties: Properties<'a>,
}

/// What to do with retained messages when subscribing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum RetainHandling {
    /// 0: send them.
    #[default]
    Send = 0,
    /// 1: send them if the subscription is new.
    SendIfNew = 1,
    /// 2: do not send them.
    DoNotSend = 2,
}

/// Options of one subscription (v5 3.8.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SubscribeOptions {
    /// Highest QoS wanted.
    pub qos: QoS,
    /// Do not send back what this client publishes; not for shared subscriptions (v5 MQTT-3.8.3-4).
    pub no_local: bool,
    /// Keep the RETAIN flag as published.
    pub retain_as_published: bool,
    /// Retained messages.
    pub retain_handling: RetainHandling,
}

impl SubscribeOptions {
    pub(crate) fn from_u8(byte: u8) -> Result<Self, DecodeError> {
        let retain_handling = match byte >> 4 {
            0 => RetainHandling::Send,
            1 => RetainHandling::SendIfNew,
            2 => RetainHandling::DoNotSend,
            _ => return Err(DecodeError::SubscribeOptions(byte)),
        };
        Ok(Self {
            qos: QoS::from_u8(byte & 0b11)?,
            no_local: byte & 0b0100 != 0,
            retain_as_published: byte & 0b1000 != 0,
            retain_handling,
        })
    }

    pub(crate) fn to_u8(self) -> u8 {
        self.qos as u8
            | u8::from(self.no_local) << 2
            | u8::from(self.retain_as_published) << 3
            | (self.retain_handling as u8) << 4
    }
}

/// SUBSCRIBE: at least one filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// To be echoed in SUBACK.
    pub packet_id: PacketId,
    /// Properties.
    pub properties: Properties<'a>,
    pub(crate) raw: &'a [u8],
}

impl<'a> Subscribe<'a> {
    /// The filters with their options, in the order of the packet.
    #[must_use]
    pub fn filters(&self) -> Subscriptions<'a> {
        Subscriptions {
            rest: Cursor::new(self.raw),
        }
    }
}

/// Iterator over the filters of a SUBSCRIBE.
#[derive(Clone)]
pub struct Subscriptions<'a> {
    rest: Cursor<'a>,
}

impl<'a> Iterator for Subscriptions<'a> {
    type Item = (&'a str, SubscribeOptions);

    fn next(&mut self) -> Option<Self::Item> {
        let filter = self.rest.string().ok()?;
        let options = SubscribeOptions::from_u8(self.rest.u8().ok()?).ok()?;
        Some((filter, options))
    }
}

/// UNSUBSCRIBE: at least one filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    /// To be echoed in UNSUBACK.
    pub packet_id: PacketId,
    /// Properties.
    pub properties: Properties<'a>,
    pub(crate) raw: &'a [u8],
}

impl<'a> Unsubscribe<'a> {
    /// The filters in the order of the packet.
    #[must_use]
    pub fn filters(&self) -> Filters<'a> {
        Filters {
            rest: Cursor::new(self.raw),
        }
    }
}

/// SUBACK or UNSUBACK: one reason code per filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubAck<'a> {
    /// Identifier of the request.
    pub packet_id: PacketId,
    /// Properties.
    pub properties: Properties<'a>,
    /// The codes, one byte each, in the order of the filters; checked when decoding and when encoding.
    pub codes: Codes<'a>,
}

/// Reason codes, one byte each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Codes<'a>(pub &'a [u8]);

impl<'a> Codes<'a> {
    /// The codes in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = ReasonCode> + 'a {
        self.0.iter().map(|&code| ReasonCode(code))
    }

    pub(crate) fn are_allowed_in(self, packet_type: PacketType) -> Result<(), ReasonCode> {
        match self.iter().find(|code| !code.is_allowed_in(packet_type)) {
            None => Ok(()),
            Some(code) => Err(code),
        }
    }
}

/// DISCONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Disconnect<'a> {
    /// Why.
    pub reason: ReasonCode,
    /// Properties.
    pub properties: Properties<'a>,
}

/// AUTH.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Auth<'a> {
    /// Success, continue (0x18) or re-authenticate (0x19).
    pub reason: ReasonCode,
    /// Properties.
    pub properties: Properties<'a>,
}
