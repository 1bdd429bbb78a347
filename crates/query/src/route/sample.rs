//! A whole message in memory, for trying conditions out.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::body::{self, BodyFault};
use super::evaluate::Lookup;
use super::path::JsonPath;
use super::symbols::{Slot, Symbols, SystemName};
use crate::value::Value;

/// A message with its properties and the twin of its sender.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Application properties.
    pub properties: BTreeMap<String, String>,
    /// System properties.
    pub system: Vec<(SystemName, String)>,
    /// Payload.
    pub body: Vec<u8>,
    /// Twin document with `tags` and `properties`.
    pub twin: Json,
}

impl Sample {
    /// The body, if it can be asked.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn body(&self) -> Result<Json, BodyFault> {
        let system = |wanted| {
            let found = self.system.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, value)| value.as_str())
        };
        body::parse(
            system(SystemName::ContentType),
            system(SystemName::ContentEncoding),
            &self.body,
        )
    }

    /// Itself with the references of `symbols` to ask for.
    #[must_use]
    pub fn with<'a>(&'a self, symbols: &'a Symbols) -> impl Lookup + 'a {
        Bound {
            sample: self,
            symbols,
            body: self.body().unwrap_or(Json::Null),
        }
    }
}

struct Bound<'a> {
    sample: &'a Sample,
    symbols: &'a Symbols,
    body: Json,
}

impl Lookup for Bound<'_> {
    fn property(&self, slot: Slot) -> Option<&str> {
        let name = self.symbols.properties().get(usize::from(slot))?;
        let found = self
            .sample
            .properties
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    fn system(&self, slot: Slot) -> Option<&str> {
        let wanted = self.symbols.systems().get(usize::from(slot))?;
        let found = self.sample.system.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.as_str())
    }

    fn body(&self, slot: Slot) -> Value<'_> {
        let path = self.symbols.body_paths().get(usize::from(slot));
        path.map_or(Value::Undefined, |path| path.value(&self.body))
    }

    fn twin(&self, slot: Slot) -> Value<'_> {
        let path = self.symbols.twin_paths().get(usize::from(slot));
        path.map_or(Value::Undefined, |path| path.value(&self.sample.twin))
    }

    fn change_includes(&self, path: &JsonPath) -> bool {
        path.find(&self.body).is_some()
    }
}
