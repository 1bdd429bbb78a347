//! Messages with their system and application properties.

use bytes::Bytes;
/// System properties that a sender may set (mqtt.md 3.1, rest.md 15.1).
///
/// The discriminant is the stored form and never changes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum SystemProperty {
    /// `$.mid`
    MessageId = 1,
    /// `$.cid`
    CorrelationId = 2,
    /// `$.uid`
    UserId = 3,
    /// `$.to`
    To = 4,
    /// `$.ct`
    ContentType = 5,
    /// `$.ce`
    ContentEncoding = 6,
    /// `$.exp`, as the sender wrote it (ISO 8601)
    ExpiryTimeUtc = 7,
    /// `$.ctime`, as the sender wrote it (ISO 8601)
    CreationTimeUtc = 8,
    /// `$.on`: output of a module
    OutputName = 9,
    /// `$.sub`: component of a plug-and-play device (`dt-subject`)
    Subject = 10,
    /// `$.ifid`: interface id of security messages
    InterfaceId = 11,
    /// `$.schema`
    MessageSchema = 12,
    /// `$.diagid`
    DiagnosticId = 13,
    /// `$.diagctx`
    DiagnosticContext = 14,
    /// `iothub-ack`
    Ack = 15,
    /// `iothub-operation`
    Operation = 16,
    /// Model id announced at connect (`dt-dataschema`), stamped by the hub
    DataSchema = 17,
    /// Partition key chosen by a producer at the event endpoint (`x-opt-partition-key`)
    PartitionKey = 18,
}

impl SystemProperty {
    /// Every property.
    pub const ALL: &'static [SystemProperty] = &[
        SystemProperty::MessageId,
        SystemProperty::CorrelationId,
        SystemProperty::UserId,
        SystemProperty::To,
        SystemProperty::ContentType,
        SystemProperty::ContentEncoding,
        SystemProperty::ExpiryTimeUtc,
        SystemProperty::CreationTimeUtc,
        SystemProperty::OutputName,
        SystemProperty::Subject,
        SystemProperty::InterfaceId,
        SystemProperty::MessageSchema,
        SystemProperty::DiagnosticId,
        SystemProperty::DiagnosticContext,
        SystemProperty::Ack,
        SystemProperty::Operation,
        SystemProperty::DataSchema,
        SystemProperty::PartitionKey,
    ];

    /// From the stored discriminant.
    #[must_use]
    pub fn from_stored(value: u8) -> Option<Self> {
        Self::ALL.get(usize::from(value).wrapping_sub(1)).copied()
    }
}

/// An owned message, used where messages are few (cloud-to-device). Telemetry takes the allocation-free way of
/// [`crate::event::Records`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Message {
    /// System properties in the order set; at most one of each.
    pub system: Vec<(SystemProperty, String)>,
    /// Application properties; `None` is a key without a value.
    pub properties: Vec<(String, Option<String>)>,
    /// Payload.
    pub body: Bytes,
}

impl Message {
    /// The value of a system property.
    #[must_use]
    pub fn system(&self, property: SystemProperty) -> Option<&str> {
        self.system
            .iter()
            .find(|(known, _)| *known == property)
            .map(|(_, value)| value.as_str())
    }

    /// Sets a system property, replacing an earlier value.
    pub fn set_system(&mut self, property: SystemProperty, value: impl Into<String>) {
        let value = value.into();
        match self.system.iter_mut().find(|(known, _)| *known == property) {
            Some(entry) => entry.1 = value,
            None => self.system.push((property, value)),
        }
    }

    /// Sets an application property, replacing an earlier value.
    pub fn set_property(&mut self, key: impl Into<String>, value: Option<String>) {
        let key = key.into();
        match self.properties.iter_mut().find(|(known, _)| *known == key) {
            Some(entry) => entry.1 = value,
            None => self.properties.push((key, value)),
        }
    }

    /// Bytes that count against size limits: body, and names and values of properties.
    #[must_use]
    pub fn size(&self) -> usize {
        self.body.len()
            + self.system.iter().map(|(_, value)| value.len()).sum::<usize>()
            + self
                .properties
                .iter()
                .map(|(key, value)| key.len() + value.as_ref().map_or(0, String::len))
                .sum::<usize>()
    }
}
