//! One error enum per layer. Texts are for logs; match on the variants.

use crate::codec::PacketType;

/// Why received bytes are not a packet. Every one of these closes the connection without an answer (MQTT-4.8.0-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Packet type 0, or 15 in MQTT 3.1.1 (table 2.1).
    #[error("packet type {0} is reserved")]
    PacketType(u8),
    /// The low four bits of the first byte are not what the packet type demands (MQTT-2.2.2-2).
    #[error("fixed header flags {flags:#x} are invalid for {packet_type}")]
    HeaderFlags {
        /// Type in the high four bits.
        packet_type: PacketType,
        /// Value of the low four bits.
        flags: u8,
    },
    /// The remaining length has more than four bytes (2.2.3), or in MQTT 5 a variable byte integer is longer than it needs
    /// to be (v5 MQTT-1.5.5-1).
    #[error("variable length integer is malformed")]
    RemainingLength,
    /// The fixed header announces more than the caller's limit; nothing was buffered for it.
    #[error("packet of {size} bytes is above the limit of {limit}")]
    TooLarge {
        /// Whole packet in bytes, fixed header included.
        size: usize,
        /// The limit passed to `decode`.
        limit: usize,
    },
    /// A field runs over the end of its packet.
    #[error("packet ends inside a field")]
    Truncated,
    /// Bytes are left over after the last field.
    #[error("packet has bytes after its last field")]
    TrailingBytes,
    /// A string is not UTF-8, or encodes surrogates (MQTT-1.5.3-1).
    #[error("string is not valid utf-8")]
    Utf8,
    /// A string contains U+0000 (MQTT-1.5.3-2).
    #[error("string contains the null character")]
    NullCharacter,
    /// Packet identifier 0 (MQTT-2.3.1-1).
    #[error("packet identifier is zero")]
    PacketIdZero,
    /// QoS 3 in a PUBLISH, will or subscription (MQTT-3.3.1-4, MQTT-3.1.2-14, MQTT-3-8.3-4).
    #[error("quality of service 3 does not exist")]
    Qos,
    /// DUP set on a QoS 0 PUBLISH (MQTT-3.3.1-2).
    #[error("dup flag set at quality of service 0")]
    DupAtQosZero,
    /// A topic name or filter without characters (MQTT-4.7.3-1).
    #[error("topic is empty")]
    EmptyTopic,
    /// The protocol name of a CONNECT is neither `MQTT` nor `MQIsdp` (MQTT-3.1.2-1).
    #[error("protocol name is unknown")]
    ProtocolName,
    /// The MQTT 5 decoder met a CONNECT of another level.
    #[error("protocol level {0} is not the one expected")]
    ProtocolLevel(u8),
    /// Bit 0 of the connect flags is set (MQTT-3.1.2-3).
    #[error("reserved connect flag is set")]
    ReservedConnectFlag,
    /// Will QoS or will retain set without the will flag (MQTT-3.1.2-13, MQTT-3.1.2-15).
    #[error("will details without will flag")]
    WillFlags,
    /// Password flag without user name flag (MQTT-3.1.2-22).
    #[error("password without user name")]
    PasswordWithoutUsername,
    /// SUBSCRIBE or UNSUBSCRIBE without filters (MQTT-3.8.3-3, MQTT-3.10.3-2), or an acknowledgement without codes.
    #[error("packet carries no topic filter or code")]
    NoFilters,
    /// Reserved bits in a subscription's options byte (MQTT-3-8.3-4).
    #[error("subscription options {0:#x} use reserved bits")]
    SubscribeOptions(u8),
    /// Reserved bits in the CONNACK flags, or session present with a refusal (MQTT-3.2.2-4).
    #[error("connack flags are invalid")]
    ConnAckFlags,
    /// A return or reason code the packet type does not have.
    #[error("return code {0:#x} is invalid here")]
    ReturnCode(u8),
    /// MQTT 5: property identifier not in table 2-4 (v5 2.2.2.2).
    #[error("property {0} is unknown")]
    PropertyUnknown(u32),
    /// MQTT 5: property of another packet type.
    #[error("property {0} is not allowed in this packet")]
    PropertyMisplaced(u8),
    /// MQTT 5: property that may occur once occurs twice.
    #[error("property {0} is repeated")]
    PropertyRepeated(u8),
    /// MQTT 5: property value outside its range.
    #[error("property {0} has an invalid value")]
    PropertyValue(u8),
}

/// Why a packet cannot be written. Nothing was appended to the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A string or binary field above 65,535 bytes (1.5.3).
    #[error("field is longer than 65535 bytes")]
    FieldTooLong,
    /// Remaining length above 268,435,455 (2.2.3).
    #[error("packet is longer than the protocol allows")]
    PacketTooLong,
    /// A string contains U+0000 (MQTT-1.5.3-2).
    #[error("string contains the null character")]
    NullCharacter,
    /// A topic name or filter without characters (MQTT-4.7.3-1).
    #[error("topic is empty")]
    EmptyTopic,
    /// A QoS 0 PUBLISH with packet identifier or DUP, or a QoS 1 or 2 PUBLISH without identifier (MQTT-2.3.1-1, -5).
    #[error("packet identifier or dup flag does not fit the quality of service")]
    PacketId,
    /// SUBSCRIBE, UNSUBSCRIBE or SUBACK with an empty list (MQTT-3.8.3-3, MQTT-3.10.3-2).
    #[error("packet carries no topic filter or code")]
    NoFilters,
    /// Password without user name (MQTT-3.1.2-22).
    #[error("password without user name")]
    PasswordWithoutUsername,
    /// A packet of another protocol level is decoded only to be refused; it cannot be written.
    #[error("connect of another protocol level cannot be written")]
    UnsupportedLevel,
    /// MQTT 5: a property value outside its range, or a property not allowed in the packet.
    #[error("property is not allowed")]
    Property,
    /// MQTT 5: a reason code the packet type does not have.
    #[error("reason code is not allowed in this packet")]
    ReasonCode,
    /// MQTT 5: no-local on a shared subscription (v5 MQTT-3.8.3-4).
    #[error("no-local on a shared subscription")]
    SharedNoLocal,
}

/// Why a client's packet is against the rules although well-formed. Closes the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The first packet is not CONNECT (MQTT-3.1.0-1).
    #[error("first packet is {0}, not connect")]
    FirstPacket(PacketType),
    /// A second CONNECT (MQTT-3.1.0-2).
    #[error("second connect on one connection")]
    SecondConnect,
    /// CONNECT of another protocol level (MQTT-3.1.2-2). Answer with [`encode_unsupported_level`], then close.
    ///
    /// [`encode_unsupported_level`]: crate::codec::encode_unsupported_level
    #[error("protocol level {level} is not supported")]
    UnsupportedLevel {
        /// 3 for every CONNECT named `MQIsdp`, else the level byte.
        level: u8,
    },
    /// A packet before the caller accepted the CONNECT: the caller's mistake, it must hold later packets back.
    #[error("packet before the connect was accepted")]
    NotAccepted,
    /// A packet only servers send (table 2.1).
    #[error("client sent {0}")]
    ServerPacket(PacketType),
    /// PUBLISH at QoS 2, or a packet of its handshake. The hub offers QoS 0 and 1.
    #[error("quality of service 2 is not supported")]
    QosTwo,
    /// A packet after DISCONNECT (MQTT-3.14.4-2).
    #[error("packet after disconnect")]
    AfterDisconnect,
    /// More unacknowledged QoS 1 PUBLISHes than there are packet identifiers (MQTT-2.3.1-2).
    #[error("more unacknowledged publishes than packet identifiers")]
    TooManyUnacknowledged,
}

/// Why a message was not sent. Nothing was appended and nothing is tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The connection is not (or no longer) established.
    #[error("connection is not established")]
    NotConnected,
    /// The in-flight window is full; wait for a PUBACK.
    #[error("in-flight window is full")]
    WindowFull,
    /// The packet identifier to reuse belongs to a message in flight.
    #[error("packet identifier is in use")]
    PacketIdInUse,
    /// The machines speak QoS 0 and 1.
    #[error("quality of service 2 is not supported")]
    QosTwo,
    /// The message does not fit a packet.
    #[error("message cannot be encoded")]
    Encode(#[source] EncodeError),
}

impl From<EncodeError> for SendError {
    fn from(error: EncodeError) -> Self {
        Self::Encode(error)
    }
}

/// Why a client gives up its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// A packet other than CONNACK answers CONNECT (MQTT-3.2.0-1).
    #[error("first packet is {0}, not connack")]
    FirstPacket(PacketType),
    /// A second CONNACK, or one on a connection that was not asked for.
    #[error("unexpected connack")]
    UnexpectedConnAck,
    /// A packet only clients send (table 2.1).
    #[error("server sent {0}")]
    ClientPacket(PacketType),
    /// PUBLISH at QoS 2 or a packet of its handshake; this client never asks for it (MQTT-3.8.4-6).
    #[error("quality of service 2 was not asked for")]
    QosTwo,
    /// SUBACK or UNSUBACK for no pending request (MQTT-3.8.4-2).
    #[error("acknowledgement for no pending request")]
    UnknownRequest,
    /// SUBACK with another number of codes than the SUBSCRIBE had filters (MQTT-3.8.4-5).
    #[error("suback does not answer every filter")]
    SubAckCount,
    /// No PINGRESP in time (3.1.2.10).
    #[error("server did not answer a ping")]
    PingTimeout,
}
