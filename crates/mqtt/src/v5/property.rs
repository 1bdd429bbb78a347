//! Properties (v5 2.2.2).

use crate::codec::PacketType;
use crate::cursor::{Cursor, VARINT_MAX, check_binary, check_string, put_binary, put_varint, varint_len};
use crate::error::{DecodeError, EncodeError};

/// Where properties stand: a packet, or the will inside a CONNECT. Doubles as a bit of the table below.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(u16);

impl Place {
    pub(crate) const WILL: Self = Self(1);

    pub(crate) const fn of(packet_type: PacketType) -> Self {
        Self(1 << packet_type as u16)
    }
}

/// One property. The variants carry the names and types of table 2-4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the specification's
pub enum Property<'a> {
    PayloadFormatIndicator(bool),
    /// Seconds.
    MessageExpiryInterval(u32),
    ContentType(&'a str),
    ResponseTopic(&'a str),
    CorrelationData(&'a [u8]),
    /// 1 to 268,435,455.
    SubscriptionIdentifier(u32),
    /// Seconds; `u32::MAX` never ends.
    SessionExpiryInterval(u32),
    AssignedClientIdentifier(&'a str),
    /// Seconds.
    ServerKeepAlive(u16),
    AuthenticationMethod(&'a str),
    AuthenticationData(&'a [u8]),
    RequestProblemInformation(bool),
    /// Seconds.
    WillDelayInterval(u32),
    RequestResponseInformation(bool),
    ResponseInformation(&'a str),
    ServerReference(&'a str),
    ReasonString(&'a str),
    /// Not 0.
    ReceiveMaximum(u16),
    TopicAliasMaximum(u16),
    /// Not 0.
    TopicAlias(u16),
    /// False: QoS 0 only; true: up to QoS 1.
    MaximumQos(bool),
    RetainAvailable(bool),
    /// Name and value; may repeat.
    UserProperty(&'a str, &'a str),
    /// Bytes, not 0.
    MaximumPacketSize(u32),
    WildcardSubscriptionAvailable(bool),
    SubscriptionIdentifierAvailable(bool),
    SharedSubscriptionAvailable(bool),
}

const USER_PROPERTY: u8 = 0x26;
const SUBSCRIPTION_IDENTIFIER: u8 = 0x0b;

impl<'a> Property<'a> {
    /// The identifier of table 2-4.
    #[must_use]
    pub fn id(&self) -> u8 {
        match self {
            Self::PayloadFormatIndicator(_) => 0x01,
            Self::MessageExpiryInterval(_) => 0x02,
            Self::ContentType(_) => 0x03,
            Self::ResponseTopic(_) => 0x08,
            Self::CorrelationData(_) => 0x09,
            Self::SubscriptionIdentifier(_) => SUBSCRIPTION_IDENTIFIER,
            Self::SessionExpiryInterval(_) => 0x11,
            Self::AssignedClientIdentifier(_) => 0x12,
            Self::ServerKeepAlive(_) => 0x13,
            Self::AuthenticationMethod(_) => 0x15,
            Self::AuthenticationData(_) => 0x16,
            Self::RequestProblemInformation(_) => 0x17,
            Self::WillDelayInterval(_) => 0x18,
            Self::RequestResponseInformation(_) => 0x19,
            Self::ResponseInformation(_) => 0x1a,
            Self::ServerReference(_) => 0x1c,
            Self::ReasonString(_) => 0x1f,
            Self::ReceiveMaximum(_) => 0x21,
            Self::TopicAliasMaximum(_) => 0x22,
            Self::TopicAlias(_) => 0x23,
            Self::MaximumQos(_) => 0x24,
            Self::RetainAvailable(_) => 0x25,
            Self::UserProperty(..) => USER_PROPERTY,
            Self::MaximumPacketSize(_) => 0x27,
            Self::WildcardSubscriptionAvailable(_) => 0x28,
            Self::SubscriptionIdentifierAvailable(_) => 0x29,
            Self::SharedSubscriptionAvailable(_) => 0x2a,
        }
    }

    fn read(cursor: &mut Cursor<'a>) -> Result<Self, DecodeError> {
        let id = cursor.varint()?;
        let id = u8::try_from(id).map_err(|_| DecodeError::PropertyUnknown(id as u32))?;
        Ok(match id {
            0x01 => Self::PayloadFormatIndicator(read_bool(cursor, id)?),
            0x02 => Self::MessageExpiryInterval(cursor.u32()?),
            0x03 => Self::ContentType(cursor.string()?),
            0x08 => Self::ResponseTopic(cursor.string()?),
            0x09 => Self::CorrelationData(cursor.binary()?),
            SUBSCRIPTION_IDENTIFIER => match cursor.varint()? {
                0 => return Err(DecodeError::PropertyValue(id)),
                value => Self::SubscriptionIdentifier(value as u32),
            },
            0x11 => Self::SessionExpiryInterval(cursor.u32()?),
            0x12 => Self::AssignedClientIdentifier(cursor.string()?),
            0x13 => Self::ServerKeepAlive(cursor.u16()?),
            0x15 => Self::AuthenticationMethod(cursor.string()?),
            0x16 => Self::AuthenticationData(cursor.binary()?),
            0x17 => Self::RequestProblemInformation(read_bool(cursor, id)?),
            0x18 => Self::WillDelayInterval(cursor.u32()?),
            0x19 => Self::RequestResponseInformation(read_bool(cursor, id)?),
            0x1a => Self::ResponseInformation(cursor.string()?),
            0x1c => Self::ServerReference(cursor.string()?),
            0x1f => Self::ReasonString(cursor.string()?),
            0x21 => Self::ReceiveMaximum(not_zero(cursor.u16()?, id)?),
            0x22 => Self::TopicAliasMaximum(cursor.u16()?),
            0x23 => Self::TopicAlias(not_zero(cursor.u16()?, id)?),
            0x24 => Self::MaximumQos(read_bool(cursor, id)?),
            0x25 => Self::RetainAvailable(read_bool(cursor, id)?),
            USER_PROPERTY => Self::UserProperty(cursor.string()?, cursor.string()?),
            0x27 => match cursor.u32()? {
                0 => return Err(DecodeError::PropertyValue(id)),
                value => Self::MaximumPacketSize(value),
            },
            0x28 => Self::WildcardSubscriptionAvailable(read_bool(cursor, id)?),
            0x29 => Self::SubscriptionIdentifierAvailable(read_bool(cursor, id)?),
            0x2a => Self::SharedSubscriptionAvailable(read_bool(cursor, id)?),
            other => return Err(DecodeError::PropertyUnknown(other.into())),
        })
    }

    /// Appends the property. The caller has checked it.
    fn write(&self, out: &mut Vec<u8>) {
        out.push(self.id());
        match *self {
            Self::PayloadFormatIndicator(value)
            | Self::RequestProblemInformation(value)
            | Self::RequestResponseInformation(value)
            | Self::MaximumQos(value)
            | Self::RetainAvailable(value)
            | Self::WildcardSubscriptionAvailable(value)
            | Self::SubscriptionIdentifierAvailable(value)
            | Self::SharedSubscriptionAvailable(value) => out.push(value.into()),
            Self::ServerKeepAlive(value)
            | Self::ReceiveMaximum(value)
            | Self::TopicAliasMaximum(value)
            | Self::TopicAlias(value) => out.extend_from_slice(&value.to_be_bytes()),
            Self::MessageExpiryInterval(value)
            | Self::SessionExpiryInterval(value)
            | Self::WillDelayInterval(value)
            | Self::MaximumPacketSize(value) => out.extend_from_slice(&value.to_be_bytes()),
            Self::SubscriptionIdentifier(value) => put_varint(out, value as usize),
            Self::ContentType(value)
            | Self::ResponseTopic(value)
            | Self::AssignedClientIdentifier(value)
            | Self::AuthenticationMethod(value)
            | Self::ResponseInformation(value)
            | Self::ServerReference(value)
            | Self::ReasonString(value) => put_binary(out, value.as_bytes()),
            Self::CorrelationData(value) | Self::AuthenticationData(value) => put_binary(out, value),
            Self::UserProperty(name, value) => {
                put_binary(out, name.as_bytes());
                put_binary(out, value.as_bytes());
            }
        }
    }

    fn check(&self) -> Result<(), EncodeError> {
        match *self {
            Self::SubscriptionIdentifier(value) if value == 0 || value as usize > VARINT_MAX => {
                Err(EncodeError::Property)
            }
            Self::ReceiveMaximum(0) | Self::TopicAlias(0) | Self::MaximumPacketSize(0) => {
                Err(EncodeError::Property)
            }
            Self::ContentType(value)
            | Self::ResponseTopic(value)
            | Self::AssignedClientIdentifier(value)
            | Self::AuthenticationMethod(value)
            | Self::ResponseInformation(value)
            | Self::ServerReference(value)
            | Self::ReasonString(value) => check_string(value).map(drop),
            Self::CorrelationData(value) | Self::AuthenticationData(value) => check_binary(value).map(drop),
            Self::UserProperty(name, value) => {
                check_string(name)?;
                check_string(value).map(drop)
            }
            _ => Ok(()),
        }
    }
}

fn read_bool(cursor: &mut Cursor<'_>, id: u8) -> Result<bool, DecodeError> {
    match cursor.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::PropertyValue(id)),
    }
}

fn not_zero(value: u16, id: u8) -> Result<u16, DecodeError> {
    if value == 0 {
        Err(DecodeError::PropertyValue(id))
    } else {
        Ok(value)
    }
}

/// Table 2-4: the packets that may carry a property, one bit per packet type and bit 0 for the will.
fn places(id: u8) -> u16 {
    use PacketType::{
        Auth, ConnAck, Connect, Disconnect, PubAck, PubComp, PubRec, PubRel, Publish, SubAck, Subscribe,
        UnsubAck,
    };
    const fn set(types: &[PacketType]) -> u16 {
        let mut bits = 0;
        let mut index = 0;
        while index < types.len() {
            bits |= 1 << types[index] as u16;
            index += 1;
        }
        bits
    }
    const MESSAGE: u16 = set(&[Publish]) | Place::WILL.0;
    const EVERYWHERE: u16 = !set(&[PacketType::PingReq, PacketType::PingResp]);
    match id {
        0x01 | 0x02 | 0x03 | 0x08 | 0x09 => MESSAGE,
        SUBSCRIPTION_IDENTIFIER => set(&[Publish, Subscribe]),
        0x11 => set(&[Connect, ConnAck, Disconnect]),
        0x15 | 0x16 => set(&[Connect, ConnAck, Auth]),
        0x17 | 0x19 => set(&[Connect]),
        0x18 => Place::WILL.0,
        0x1c => set(&[ConnAck, Disconnect]),
        0x1f => set(&[
            ConnAck, PubAck, PubRec, PubRel, PubComp, SubAck, UnsubAck, Disconnect, Auth,
        ]),
        0x21 | 0x22 | 0x27 => set(&[Connect, ConnAck]),
        0x23 => set(&[Publish]),
        0x12 | 0x13 | 0x1a | 0x24 | 0x25 | 0x28 | 0x29 | 0x2a => set(&[ConnAck]),
        USER_PROPERTY => EVERYWHERE,
        _ => 0,
    }
}

/// The properties of one packet, in encoded form. `Default` is none.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Properties<'a> {
    raw: &'a [u8],
}

impl<'a> Properties<'a> {
    /// The properties in the order of the packet.
    #[must_use]
    pub fn iter(&self) -> PropertyIter<'a> {
        PropertyIter {
            rest: Cursor::new(self.raw),
        }
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// Reads the length and the properties, and checks them for `place`.
    pub(crate) fn read(cursor: &mut Cursor<'a>, place: Place) -> Result<Self, DecodeError> {
        let len = cursor.varint()?;
        let properties = Self {
            raw: cursor.take(len)?,
        };
        properties.check(place)?;
        Ok(properties)
    }

    fn check(self, place: Place) -> Result<(), DecodeError> {
        let mut seen = 0u64;
        let mut rest = Cursor::new(self.raw);
        while !rest.is_empty() {
            let id = Property::read(&mut rest)?.id();
            if places(id) & place.0 == 0 {
                return Err(DecodeError::PropertyMisplaced(id));
            }
            let repeats = id == USER_PROPERTY
                || (id == SUBSCRIPTION_IDENTIFIER && place == Place::of(PacketType::Publish));
            if seen & 1 << id != 0 && !repeats {
                return Err(DecodeError::PropertyRepeated(id));
            }
            seen |= 1 << id;
        }
        Ok(())
    }

    /// Encoded size with the length, if the properties are allowed at `place`.
    pub(crate) fn check_len(self, place: Place) -> Result<usize, EncodeError> {
        self.check(place).map_err(|_| EncodeError::Property)?;
        if self.raw.len() > VARINT_MAX {
            return Err(EncodeError::PacketTooLong);
        }
        Ok(varint_len(self.raw.len()) + self.raw.len())
    }

    pub(crate) fn write(self, out: &mut Vec<u8>) {
        put_varint(out, self.raw.len());
        out.extend_from_slice(self.raw);
    }
}

impl std::fmt::Debug for Properties<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> IntoIterator for Properties<'a> {
    type Item = Property<'a>;
    type IntoIter = PropertyIter<'a>;

    fn into_iter(self) -> PropertyIter<'a> {
        self.iter()
    }
}

/// Iterator over properties.
#[derive(Clone)]
pub struct PropertyIter<'a> {
    rest: Cursor<'a>,
}

impl<'a> Iterator for PropertyIter<'a> {
    type Item = Property<'a>;

    fn next(&mut self) -> Option<Property<'a>> {
        // Checked on the way in; at the end of the bytes reading fails, which ends the iteration.
        Property::read(&mut self.rest).ok()
    }
}

/// Owner of properties under construction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PropertyList {
    bytes: Vec<u8>,
}

impl PropertyList {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a property.
    ///
    /// # Errors
    /// A value outside its range, above 65,535 bytes, or with U+0000. Whether a packet may carry the property is checked
    /// when the packet is encoded.
    pub fn push(&mut self, property: &Property<'_>) -> Result<&mut Self, EncodeError> {
        property.check()?;
        property.write(&mut self.bytes);
        Ok(self)
    }

    /// To put into a packet.
    #[must_use]
    pub fn as_properties(&self) -> Properties<'_> {
        Properties { raw: &self.bytes }
    }
}
