//! What conditions refer to, numbered, so that a message is looked at once for all conditions of a table.

use std::collections::HashMap;

use holdfast_model::event::{EventField, EventView};
use holdfast_model::message::SystemProperty;
use smallvec::SmallVec;

use super::path::JsonPath;

/// Number of a reference within its kind.
pub type Slot = u16;

/// System properties that conditions can name (languages.md 2.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SystemName {
    /// `$contentType`
    ContentType,
    /// `$contentEncoding`
    ContentEncoding,
    /// `$messageId`
    MessageId,
    /// `$correlationId`
    CorrelationId,
    /// `$userId`
    UserId,
    /// `$to`
    To,
    /// `$ack`
    Ack,
    /// `$enqueuedTime`: ISO 8601, UTC
    EnqueuedTime,
    /// `$connectionDeviceId`
    ConnectionDeviceId,
    /// `$connectionModuleId`
    ConnectionModuleId,
    /// `$connectionDeviceGenerationId`
    ConnectionDeviceGenerationId,
    /// `$connectionAuthMethod`
    ConnectionAuthMethod,
    /// `$dt-dataschema`: the model id
    DataSchema,
    /// `$dt-subject`, also `$componentName`: the component
    Subject,
    /// `$interfaceId`
    InterfaceId,
    /// `$messageSource`: as in `iothub-message-source`
    MessageSource,
    /// `$messageSchema`
    MessageSchema,
    /// `$outputName`: of a module
    OutputName,
    /// `$inputName`: of a module; an edge hub has none when it decides
    InputName,
    /// `$creationTime`: as the sender wrote it
    CreationTime,
    /// `$absolute-expiry-time`: as the sender wrote it
    ExpiryTime,
    /// `$operation`
    Operation,
    /// `$messageType`: of an edge hub's own messages
    MessageType,
    /// `$edgeMessageId`: given by an edge hub
    EdgeMessageId,
    /// `$edgeHubOriginInterface`: `internal` or `downstream`, given by an edge hub
    OriginInterface,
}

impl SystemName {
    const NAMES: &'static [(&'static str, SystemName)] = &[
        ("contentType", SystemName::ContentType),
        ("contentEncoding", SystemName::ContentEncoding),
        ("messageId", SystemName::MessageId),
        ("correlationId", SystemName::CorrelationId),
        ("userId", SystemName::UserId),
        ("to", SystemName::To),
        ("ack", SystemName::Ack),
        ("enqueuedTime", SystemName::EnqueuedTime),
        ("connectionDeviceId", SystemName::ConnectionDeviceId),
        ("connectionModuleId", SystemName::ConnectionModuleId),
        (
            "connectionDeviceGenerationId",
            SystemName::ConnectionDeviceGenerationId,
        ),
        ("connectionAuthMethod", SystemName::ConnectionAuthMethod),
        ("dt-dataschema", SystemName::DataSchema),
        ("dt-subject", SystemName::Subject),
        ("componentName", SystemName::Subject),
        ("interfaceId", SystemName::InterfaceId),
        ("messageSource", SystemName::MessageSource),
        // Names of edge routes (edge.md 6.4).
        ("cid", SystemName::CorrelationId),
        ("modelId", SystemName::DataSchema),
        ("iothub-interface-id", SystemName::InterfaceId),
        ("messageSchema", SystemName::MessageSchema),
        ("outputName", SystemName::OutputName),
        ("inputName", SystemName::InputName),
        ("creationTime", SystemName::CreationTime),
        ("absolute-expiry-time", SystemName::ExpiryTime),
        ("operation", SystemName::Operation),
        ("messageType", SystemName::MessageType),
        ("edgeMessageId", SystemName::EdgeMessageId),
        ("edgeHubOriginInterface", SystemName::OriginInterface),
    ];

    /// From its spelling without the `$`, in any case.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::NAMES
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, found)| *found)
    }

    /// The property of a message that holds it as its sender wrote it; none for what whoever decides works out.
    #[must_use]
    pub fn as_sent(self) -> Option<SystemProperty> {
        Some(match self {
            SystemName::ContentType => SystemProperty::ContentType,
            SystemName::ContentEncoding => SystemProperty::ContentEncoding,
            SystemName::MessageId => SystemProperty::MessageId,
            SystemName::CorrelationId => SystemProperty::CorrelationId,
            SystemName::UserId => SystemProperty::UserId,
            SystemName::To => SystemProperty::To,
            SystemName::Ack => SystemProperty::Ack,
            SystemName::DataSchema => SystemProperty::DataSchema,
            SystemName::Subject => SystemProperty::Subject,
            SystemName::InterfaceId => SystemProperty::InterfaceId,
            SystemName::MessageSchema => SystemProperty::MessageSchema,
            SystemName::OutputName => SystemProperty::OutputName,
            SystemName::CreationTime => SystemProperty::CreationTimeUtc,
            SystemName::ExpiryTime => SystemProperty::ExpiryTimeUtc,
            SystemName::Operation => SystemProperty::Operation,
            SystemName::EnqueuedTime
            | SystemName::ConnectionDeviceId
            | SystemName::ConnectionModuleId
            | SystemName::ConnectionDeviceGenerationId
            | SystemName::ConnectionAuthMethod
            | SystemName::MessageSource
            | SystemName::InputName
            | SystemName::MessageType
            | SystemName::EdgeMessageId
            | SystemName::OriginInterface => return None,
        })
    }
}

/// Values of application properties, by slot.
pub type SlottedProperties<'a> = SmallVec<[Option<&'a str>; 8]>;

/// References of all conditions that were compiled with it.
#[derive(Clone, Default, Debug)]
pub struct Symbols {
    properties: Interned<String>,
    /// Slots of properties by the length of their names.
    by_length: Vec<Vec<Slot>>,
    systems: Interned<SystemName>,
    body: Interned<JsonPath>,
    twin: Interned<JsonPath>,
}

impl Symbols {
    /// Names of application properties, in lower case, by slot. They are compared without regard to case.
    #[must_use]
    pub fn properties(&self) -> &[String] {
        &self.properties.list
    }

    /// The slot of an application property.
    #[must_use]
    pub fn property_slot(&self, name: &str) -> Option<Slot> {
        let properties = &self.properties.list;
        // A handful at most: comparing beats hashing.
        let at = properties
            .iter()
            .position(|known| known.eq_ignore_ascii_case(name))?;
        Slot::try_from(at).ok()
    }

    /// The application properties of an event that conditions ask for, by slot. Of two with the same name the later one
    /// counts, as it does for whoever reads the message into a map.
    #[must_use]
    pub fn properties_of<'a>(&self, event: &EventView<'a>) -> SlottedProperties<'a> {
        let mut found = SmallVec::from_elem(None, self.properties.list.len());
        for field in event.fields() {
            if let EventField::Application(key, value) = field
                && let Some(slot) = self.property_slot(key)
            {
                found[usize::from(slot)] = value;
            }
        }
        found
    }

    /// System properties, by slot.
    #[must_use]
    pub fn systems(&self) -> &[SystemName] {
        &self.systems.list
    }

    /// Paths into the body, by slot.
    #[must_use]
    pub fn body_paths(&self) -> &[JsonPath] {
        &self.body.list
    }

    /// Paths into the sender's twin, by slot.
    #[must_use]
    pub fn twin_paths(&self) -> &[JsonPath] {
        &self.twin.list
    }

    pub(super) fn property(&mut self, name: &str) -> Option<Slot> {
        let slot = self.properties.intern(name.to_ascii_lowercase())?;
        if self.by_length.len() <= name.len() {
            self.by_length.resize(name.len() + 1, Vec::new());
        }
        let same_length = &mut self.by_length[name.len()];
        if !same_length.contains(&slot) {
            same_length.push(slot);
        }
        Some(slot)
    }

    pub(super) fn system(&mut self, name: SystemName) -> Option<Slot> {
        self.systems.intern(name)
    }

    pub(super) fn body(&mut self, path: JsonPath) -> Option<Slot> {
        self.body.intern(path)
    }

    pub(super) fn twin(&mut self, path: JsonPath) -> Option<Slot> {
        self.twin.intern(path)
    }
}

#[derive(Clone, Debug)]
struct Interned<T> {
    list: Vec<T>,
    slots: HashMap<T, Slot>,
}

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Interned {
            list: Vec::new(),
            slots: HashMap::new(),
        }
    }
}

impl<T: Clone + Eq + std::hash::Hash> Interned<T> {
    /// `None` when there are too many.
    fn intern(&mut self, item: T) -> Option<Slot> {
        if let Some(slot) = self.slots.get(&item) {
            return Some(*slot);
        }
        let slot = Slot::try_from(self.list.len()).ok()?;
        self.list.push(item.clone());
        self.slots.insert(item, slot);
        Some(slot)
    }
}
