//! An event as conditions see it. Everything is worked out when it is first asked for.

use std::cell::OnceCell;

use holdfast_model::event::{AuthMethod, EventView};
use holdfast_model::message::SystemProperty;
use holdfast_query::route::{JsonPath, Lookup, Slot, SlottedProperties, Symbols, SystemName, parse_body};
use holdfast_query::value::Value;
use holdfast_wire::annotations::auth_method_json;
use serde_json::Value as Json;

/// An event, and the twin of its sender if there is one at hand.
pub(crate) struct Message<'a> {
    event: &'a EventView<'a>,
    symbols: &'a Symbols,
    twin: Option<&'a Json>,
    properties: OnceCell<SlottedProperties<'a>>,
    body: OnceCell<Json>,
    enqueued_time: OnceCell<String>,
    generation: OnceCell<String>,
}

impl<'a> Message<'a> {
    pub(crate) fn new(event: &'a EventView<'a>, symbols: &'a Symbols, twin: Option<&'a Json>) -> Self {
        Message {
            event,
            symbols,
            twin,
            properties: OnceCell::new(),
            body: OnceCell::new(),
            enqueued_time: OnceCell::new(),
            generation: OnceCell::new(),
        }
    }

    /// The body, or null when it cannot be asked: then every path is undefined.
    fn json(&self) -> &Json {
        self.body.get_or_init(|| {
            let content_type = self.event.system(SystemProperty::ContentType);
            let encoding = self.event.system(SystemProperty::ContentEncoding);
            parse_body(content_type, encoding, self.event.body).unwrap_or(Json::Null)
        })
    }
}

impl Lookup for Message<'_> {
    fn property(&self, slot: Slot) -> Option<&str> {
        let properties = self
            .properties
            .get_or_init(|| self.symbols.properties_of(self.event));
        properties.get(usize::from(slot)).copied().flatten()
    }

    fn system(&self, slot: Slot) -> Option<&str> {
        let event = self.event;
        match self.symbols.systems().get(usize::from(slot))? {
            SystemName::EnqueuedTime => {
                Some(self.enqueued_time.get_or_init(|| event.enqueued_at.to_string()))
            }
            // Of a job or a producer there is no device.
            SystemName::ConnectionDeviceId => event.source.concerns_identity().then(|| event.device_id()),
            SystemName::ConnectionModuleId => event.module_id(),
            // Nobody has sent what the hub made.
            SystemName::ConnectionDeviceGenerationId if event.auth == AuthMethod::Hub => None,
            SystemName::ConnectionDeviceGenerationId => {
                Some(self.generation.get_or_init(|| event.generation_id.to_string()))
            }
            SystemName::ConnectionAuthMethod => auth_method_json(event.auth, event.module_id().is_some()),
            SystemName::MessageSource => Some(event.source.as_str()),
            // Of an edge hub.
            SystemName::InputName
            | SystemName::MessageType
            | SystemName::EdgeMessageId
            | SystemName::OriginInterface => None,
            name => event.system(name.as_sent()?),
        }
    }

    fn body(&self, slot: Slot) -> Value<'_> {
        let path = self.symbols.body_paths().get(usize::from(slot));
        path.map_or(Value::Undefined, |path| path.value(self.json()))
    }

    fn twin(&self, slot: Slot) -> Value<'_> {
        match (self.twin, self.symbols.twin_paths().get(usize::from(slot))) {
            (Some(twin), Some(path)) => path.value(twin),
            _ => Value::Undefined,
        }
    }

    fn change_includes(&self, path: &JsonPath) -> bool {
        path.find(self.json()).is_some()
    }
}
