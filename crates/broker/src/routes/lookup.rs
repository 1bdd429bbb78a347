//! A message as conditions of edge routes see it. Everything is worked out when it is first asked for.

use std::cell::OnceCell;

use holdfast_model::event::EventView;
use holdfast_model::message::SystemProperty;
use holdfast_query::route::{JsonPath, Lookup, Slot, SlottedProperties, Symbols, SystemName, parse_body};
use holdfast_query::value::Value;
use serde_json::Value as Json;

/// A message on its way in.
pub(crate) struct Incoming<'a> {
    event: &'a EventView<'a>,
    symbols: &'a Symbols,
    /// Number from which its id is made.
    number: u128,
    /// Whether it comes from a module of this device.
    internal: bool,
    properties: OnceCell<SlottedProperties<'a>>,
    body: OnceCell<Json>,
    change: OnceCell<Json>,
    enqueued_time: OnceCell<String>,
    generation: OnceCell<String>,
    message_id: OnceCell<String>,
}

impl<'a> Incoming<'a> {
    pub(crate) fn new(event: &'a EventView<'a>, symbols: &'a Symbols, number: u128, internal: bool) -> Self {
        Incoming {
            event,
            symbols,
            number,
            internal,
            properties: OnceCell::new(),
            body: OnceCell::new(),
            change: OnceCell::new(),
            enqueued_time: OnceCell::new(),
            generation: OnceCell::new(),
            message_id: OnceCell::new(),
        }
    }

    /// The body, or null when it cannot be asked. Here UTF-8 is meant when no encoding is named (edge.md 6.4).
    fn json(&self) -> &Json {
        self.body.get_or_init(|| {
            let content_type = self.event.system(SystemProperty::ContentType);
            let encoding = self
                .event
                .system(SystemProperty::ContentEncoding)
                .unwrap_or("utf-8");
            parse_body(content_type, Some(encoding), self.event.body).unwrap_or(Json::Null)
        })
    }

    fn message_id(&self) -> &str {
        self.message_id.get_or_init(|| guid(self.number))
    }
}

/// A number as a GUID.
fn guid(number: u128) -> String {
    let hex = format!("{number:032x}");
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

impl Lookup for Incoming<'_> {
    fn property(&self, slot: Slot) -> Option<&str> {
        let properties = self
            .properties
            .get_or_init(|| self.symbols.properties_of(self.event));
        properties.get(usize::from(slot)).copied().flatten()
    }

    fn system(&self, slot: Slot) -> Option<&str> {
        let event = self.event;
        match self.symbols.systems().get(usize::from(slot))? {
            SystemName::MessageType => event.system(SystemProperty::MessageSchema),
            SystemName::EnqueuedTime => {
                Some(self.enqueued_time.get_or_init(|| event.enqueued_at.to_string()))
            }
            SystemName::ConnectionDeviceId => Some(event.device_id()),
            SystemName::ConnectionModuleId => event.module_id(),
            SystemName::ConnectionDeviceGenerationId => {
                Some(self.generation.get_or_init(|| event.generation_id.to_string()))
            }
            SystemName::EdgeMessageId => Some(self.message_id()),
            SystemName::OriginInterface => Some(if self.internal { "internal" } else { "downstream" }),
            SystemName::MessageSource => Some(event.source.as_str()),
            // The input is known when a message is delivered, and the edge hub does not tell how a client proved itself.
            SystemName::InputName | SystemName::ConnectionAuthMethod => None,
            name => event.system(name.as_sent()?),
        }
    }

    fn body(&self, slot: Slot) -> Value<'_> {
        let path = self.symbols.body_paths().get(usize::from(slot));
        path.map_or(Value::Undefined, |path| path.value(self.json()))
    }

    fn twin(&self, _: Slot) -> Value<'_> {
        Value::Undefined
    }

    /// The body is the reported patch itself; paths begin at the twin.
    fn change_includes(&self, path: &JsonPath) -> bool {
        let change = self
            .change
            .get_or_init(|| serde_json::json!({ "properties": { "reported": self.json() } }));
        path.find(change).is_some()
    }
}
