//! What conditions refer to, numbered, so that a message is looked at once for all conditions of a table.

use std::collections::HashMap;

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
}

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
