//! The packet types of MQTT 3.1.1, borrowing from the buffer they were decoded from.

use std::fmt;
use std::num::NonZeroU16;

use crate::cursor::Cursor;
use crate::error::DecodeError;

/// A packet identifier: 1 to 65,535 (MQTT-2.3.1-1).
pub type PacketId = NonZeroU16;

/// Quality of service (4.3). Ordered, so that `min(requested, AtLeastOnce)` is what a hub grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum QoS {
    /// 0: no acknowledgement.
    #[default]
    AtMostOnce = 0,
    /// 1: acknowledged by PUBACK.
    AtLeastOnce = 1,
    /// 2: decoded, never spoken by the session machines.
    ExactlyOnce = 2,
}

impl QoS {
    /// From its number on the wire.
    ///
    /// # Errors
    /// [`DecodeError::Qos`] for anything above 2.
    #[inline]
    pub fn from_u8(value: u8) -> Result<Self, DecodeError> {
        match value {
            0 => Ok(Self::AtMostOnce),
            1 => Ok(Self::AtLeastOnce),
            2 => Ok(Self::ExactlyOnce),
            _ => Err(DecodeError::Qos),
        }
    }
}

/// Packet type: the high four bits of the first byte (table 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)] // the names are the specification's
pub enum PacketType {
    Connect = 1,
    ConnAck = 2,
    Publish = 3,
    PubAck = 4,
    PubRec = 5,
    PubRel = 6,
    PubComp = 7,
    Subscribe = 8,
    SubAck = 9,
    Unsubscribe = 10,
    UnsubAck = 11,
    PingReq = 12,
    PingResp = 13,
    Disconnect = 14,
    /// MQTT 5 only.
    Auth = 15,
}

impl PacketType {
    #[inline]
    pub(crate) fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            1 => Self::Connect,
            2 => Self::ConnAck,
            3 => Self::Publish,
            4 => Self::PubAck,
            5 => Self::PubRec,
            6 => Self::PubRel,
            7 => Self::PubComp,
            8 => Self::Subscribe,
            9 => Self::SubAck,
            10 => Self::Unsubscribe,
            11 => Self::UnsubAck,
            12 => Self::PingReq,
            13 => Self::PingResp,
            14 => Self::Disconnect,
            15 => Self::Auth,
            _ => return None,
        })
    }
}

impl fmt::Display for PacketType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::ConnAck => "connack",
            Self::Publish => "publish",
            Self::PubAck => "puback",
            Self::PubRec => "pubrec",
            Self::PubRel => "pubrel",
            Self::PubComp => "pubcomp",
            Self::Subscribe => "subscribe",
            Self::SubAck => "suback",
            Self::Unsubscribe => "unsubscribe",
            Self::UnsubAck => "unsuback",
            Self::PingReq => "pingreq",
            Self::PingResp => "pingresp",
            Self::Disconnect => "disconnect",
            Self::Auth => "auth",
        })
    }
}

/// Any MQTT 3.1.1 packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// 3.1, level 4.
    Connect(Connect<'a>),
    /// A CONNECT of MQTT 3.1, 5 or an unknown level: read only as far as the level, to be refused in its own form with
    /// [`encode_unsupported_level`](super::encode_unsupported_level).
    UnsupportedConnect {
        /// 3 for every CONNECT named `MQIsdp`, else the level byte.
        level: u8,
    },
    /// 3.2
    ConnAck(ConnAck),
    /// 3.3
    Publish(Publish<'a>),
    /// 3.4
    PubAck(PacketId),
    /// 3.5
    PubRec(PacketId),
    /// 3.6
    PubRel(PacketId),
    /// 3.7
    PubComp(PacketId),
    /// 3.8
    Subscribe(Subscribe<'a>),
    /// 3.9
    SubAck(SubAck<'a>),
    /// 3.10
    Unsubscribe(Unsubscribe<'a>),
    /// 3.11
    UnsubAck(PacketId),
    /// 3.12
    PingReq,
    /// 3.13
    PingResp,
    /// 3.14
    Disconnect,
}

impl Packet<'_> {
    /// The packet's type.
    #[must_use]
    pub fn packet_type(&self) -> PacketType {
        match self {
            Self::Connect(_) | Self::UnsupportedConnect { .. } => PacketType::Connect,
            Self::ConnAck(_) => PacketType::ConnAck,
            Self::Publish(_) => PacketType::Publish,
            Self::PubAck(_) => PacketType::PubAck,
            Self::PubRec(_) => PacketType::PubRec,
            Self::PubRel(_) => PacketType::PubRel,
            Self::PubComp(_) => PacketType::PubComp,
            Self::Subscribe(_) => PacketType::Subscribe,
            Self::SubAck(_) => PacketType::SubAck,
            Self::Unsubscribe(_) => PacketType::Unsubscribe,
            Self::UnsubAck(_) => PacketType::UnsubAck,
            Self::PingReq => PacketType::PingReq,
            Self::PingResp => PacketType::PingResp,
            Self::Disconnect => PacketType::Disconnect,
        }
    }
}

/// CONNECT (3.1) of level 4. `Default` is an empty client id, clean session off, no keep-alive.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Connect<'a> {
    /// May be empty here; whether that is allowed is the server's decision (MQTT-3.1.3-8).
    pub client_id: &'a str,
    /// Forget an earlier session, keep none (3.1.2.4).
    pub clean_session: bool,
    /// Seconds; 0 turns keep-alive off (3.1.2.10).
    pub keep_alive: u16,
    /// Message to publish when the connection ends without DISCONNECT.
    pub will: Option<Will<'a>>,
    /// User name.
    pub username: Option<&'a str>,
    /// Password: never printed by `Debug`.
    pub password: Option<&'a [u8]>,
}

impl fmt::Debug for Connect<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("client_id", &self.client_id)
            .field("clean_session", &self.clean_session)
            .field("keep_alive", &self.keep_alive)
            .field("will", &self.will)
            .field("username", &self.username)
            .field("password", &self.password.map(|_| "(hidden)"))
            .finish()
    }
}

/// The will of a CONNECT (3.1.2.5).
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
}

/// CONNACK (3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnAck {
    /// The server had a session for this client; never with a refusal (MQTT-3.2.2-4).
    pub session_present: bool,
    /// Outcome.
    pub code: ConnectCode,
}

/// CONNACK return code (table 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ConnectCode {
    /// 0
    Accepted = 0,
    /// 1: protocol level not supported.
    UnacceptableProtocolVersion = 1,
    /// 2: client identifier not allowed.
    IdentifierRejected = 2,
    /// 3: try again later.
    ServerUnavailable = 3,
    /// 4: malformed user name or password.
    BadCredentials = 4,
    /// 5: what the hub answers for every failed authentication.
    NotAuthorized = 5,
}

impl ConnectCode {
    pub(crate) fn from_u8(value: u8) -> Result<Self, DecodeError> {
        Ok(match value {
            0 => Self::Accepted,
            1 => Self::UnacceptableProtocolVersion,
            2 => Self::IdentifierRejected,
            3 => Self::ServerUnavailable,
            4 => Self::BadCredentials,
            5 => Self::NotAuthorized,
            other => return Err(DecodeError::ReturnCode(other)),
        })
    }
}

/// PUBLISH (3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Publish<'a> {
    /// Re-delivery; never at QoS 0 (MQTT-3.3.1-2).
    pub dup: bool,
    /// Quality of service.
    pub qos: QoS,
    /// RETAIN.
    pub retain: bool,
    /// Never empty (MQTT-4.7.3-1); may contain wildcard characters, see the module documentation.
    pub topic: &'a str,
    /// Present exactly at QoS 1 and 2.
    pub packet_id: Option<PacketId>,
    /// Possibly empty.
    pub payload: &'a [u8],
}

/// SUBSCRIBE (3.8): at least one filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// To be echoed in SUBACK.
    pub packet_id: PacketId,
    /// Checked by the decoder: filters with their options byte, back to back.
    pub(crate) raw: &'a [u8],
}

impl<'a> Subscribe<'a> {
    /// The filters with the requested QoS, in the order of the packet.
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
    type Item = (&'a str, QoS);

    fn next(&mut self) -> Option<Self::Item> {
        // Errors cannot occur in checked bytes; ending early is the harmless reading of them.
        let filter = self.rest.string().ok()?;
        let qos = QoS::from_u8(self.rest.u8().ok()?).ok()?;
        Some((filter, qos))
    }
}

/// UNSUBSCRIBE (3.10): at least one filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    /// To be echoed in UNSUBACK.
    pub packet_id: PacketId,
    /// Checked by the decoder: filters back to back.
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

/// Iterator over the filters of an UNSUBSCRIBE.
#[derive(Clone)]
pub struct Filters<'a> {
    pub(crate) rest: Cursor<'a>,
}

impl<'a> Iterator for Filters<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<Self::Item> {
        self.rest.string().ok()
    }
}

/// SUBACK (3.9): at least one code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubAck<'a> {
    /// Identifier of the SUBSCRIBE.
    pub packet_id: PacketId,
    /// Checked by the decoder: one code per byte.
    pub(crate) raw: &'a [u8],
}

impl<'a> SubAck<'a> {
    /// The codes in the order of the filters.
    #[must_use]
    pub fn codes(&self) -> SubAckCodes<'a> {
        SubAckCodes {
            rest: self.raw.iter(),
        }
    }
}

/// Iterator over the codes of a SUBACK.
#[derive(Clone)]
pub struct SubAckCodes<'a> {
    rest: std::slice::Iter<'a, u8>,
}

impl Iterator for SubAckCodes<'_> {
    type Item = SubAckCode;

    fn next(&mut self) -> Option<SubAckCode> {
        SubAckCode::from_u8(*self.rest.next()?).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.rest.size_hint()
    }
}

impl ExactSizeIterator for SubAckCodes<'_> {}

/// Outcome for one filter (3.9.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SubAckCode {
    /// Granted at QoS 0.
    GrantedAtMostOnce = 0,
    /// Granted at QoS 1.
    GrantedAtLeastOnce = 1,
    /// Granted at QoS 2; the hub never does.
    GrantedExactlyOnce = 2,
    /// Refused.
    Failure = 0x80,
}

impl SubAckCode {
    pub(crate) fn from_u8(value: u8) -> Result<Self, DecodeError> {
        Ok(match value {
            0 => Self::GrantedAtMostOnce,
            1 => Self::GrantedAtLeastOnce,
            2 => Self::GrantedExactlyOnce,
            0x80 => Self::Failure,
            other => return Err(DecodeError::ReturnCode(other)),
        })
    }
}

impl From<QoS> for SubAckCode {
    fn from(granted: QoS) -> Self {
        match granted {
            QoS::AtMostOnce => Self::GrantedAtMostOnce,
            QoS::AtLeastOnce => Self::GrantedAtLeastOnce,
            QoS::ExactlyOnce => Self::GrantedExactlyOnce,
        }
    }
}
