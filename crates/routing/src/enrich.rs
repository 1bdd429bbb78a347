//! Enrichments: application properties that are added to what goes to an endpoint (languages.md 2.7).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::event::{EventSource, EventView};
use holdfast_model::routing::{EVENTS, Enrichment};
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::twin::TwinStore;
use holdfast_query::route::JsonPath;
use serde_json::Value;

use crate::sources::twin_document;

/// How long a twin that was read serves: enrichments may be this old. The contract allows five minutes.
const TWIN_AGE_MAX: Duration = Duration::from_secs(60);
/// Most twins kept.
const TWINS_MAX: usize = 10_000;

/// A key with where its value comes from.
#[derive(Clone, Debug)]
struct Compiled {
    key: String,
    value: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Text(String),
    HubName,
    /// A path into the sender's twin, and the literal that stands for a value that is not there.
    Twin(JsonPath, String),
}

/// Why an enrichment cannot be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EnrichmentFault {
    /// Its key has other characters than letters, digits, `-`, `_`, `.`, or none.
    #[error("the enrichment key {0:?} must be letters, digits, '-', '_' and '.'")]
    Key(String),
    /// Its value looks like a path into the twin and is none.
    #[error(
        "the enrichment value {0:?} is no path such as $twin.tags.site or $twin.properties.reported.version"
    )]
    Path(String),
    /// It names no endpoint.
    #[error("the enrichment {0:?} names no endpoint")]
    NoEndpoint(String),
}

/// Checks an enrichment.
///
/// # Errors
/// What is wrong with it.
pub fn check(enrichment: &Enrichment) -> Result<(), EnrichmentFault> {
    let key = &enrichment.key;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if key.is_empty() || key.len() > 256 || !key.bytes().all(fits) {
        return Err(EnrichmentFault::Key(key.clone()));
    }
    if enrichment.endpoint_names.is_empty() {
        return Err(EnrichmentFault::NoEndpoint(key.clone()));
    }
    source(&enrichment.value).map(drop)
}

fn source(value: &str) -> Result<Source, EnrichmentFault> {
    if value.eq_ignore_ascii_case("$iothubname") {
        return Ok(Source::HubName);
    }
    let prefix = "$twin.";
    match value.get(..prefix.len()) {
        Some(start) if start.eq_ignore_ascii_case(prefix) => {
            let path = JsonPath::parse(&value[prefix.len()..]);
            let known = |path: &JsonPath| {
                let text = path.to_string();
                ["tags.", "properties.desired.", "properties.reported."]
                    .iter()
                    .any(|start| text.starts_with(start))
            };
            match path.filter(known) {
                Some(path) => Ok(Source::Twin(path, value.to_owned())),
                None => Err(EnrichmentFault::Path(value.to_owned())),
            }
        }
        _ => Ok(Source::Text(value.to_owned())),
    }
}

/// Those of `enrichments` that are for `endpoint`. One that [`check`] refuses is left out.
fn compile(enrichments: &[Enrichment], endpoint: &str) -> Vec<Compiled> {
    let mine = |enrichment: &&Enrichment| {
        let mut names = enrichment.endpoint_names.iter();
        names.any(|name| name.eq_ignore_ascii_case(endpoint))
    };
    let compile = |enrichment: &Enrichment| {
        Some(Compiled {
            key: enrichment.key.clone(),
            value: source(&enrichment.value).ok()?,
        })
    };
    enrichments.iter().filter(mine).filter_map(compile).collect()
}

/// Whether a value comes from the sender's twin.
fn asks_for_twins(compiled: &[Compiled]) -> bool {
    compiled
        .iter()
        .any(|compiled| matches!(compiled.value, Source::Twin(..)))
}

/// What is added to an event of `source` whose sender has this twin; digital twin changes are left as they are.
fn added<'a>(
    compiled: &'a [Compiled],
    source: EventSource,
    hub_name: &str,
    twin: Option<&Value>,
) -> Vec<(&'a str, String)> {
    if source == EventSource::DigitalTwinChange {
        return Vec::new();
    }
    let value = |source: &Source| match source {
        Source::Text(text) => text.clone(),
        Source::HubName => hub_name.to_owned(),
        Source::Twin(path, literal) => match twin.and_then(|twin| path.find(twin)) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            Some(Value::Bool(value)) => value.to_string(),
            _ => literal.clone(),
        },
    };
    compiled
        .iter()
        .map(|compiled| (compiled.key.as_str(), value(&compiled.value)))
        .collect()
}

/// The enrichments of the built-in endpoint. Its readers read the log itself, so they are added when an event is
/// appended, in a block of its own.
#[derive(Clone, Debug, Default)]
pub struct BuiltIn {
    compiled: Vec<Compiled>,
}

impl BuiltIn {
    pub(crate) fn new(enrichments: &[Enrichment]) -> Self {
        BuiltIn {
            compiled: compile(enrichments, EVENTS),
        }
    }

    pub(crate) fn asks_for_twins(&self) -> bool {
        asks_for_twins(&self.compiled)
    }

    /// What is added to events of `source`; mostly nothing. `twin` is the document of the sender, if it is known.
    #[must_use]
    pub fn added(&self, source: EventSource, hub_name: &str, twin: Option<&Value>) -> Vec<(&str, String)> {
        if self.compiled.is_empty() {
            return Vec::new();
        }
        added(&self.compiled, source, hub_name, twin)
    }
}

/// The enrichments of one other endpoint.
pub struct Enricher {
    compiled: Vec<Compiled>,
    hub_name: String,
    twins: Arc<dyn TwinStore>,
    cache: HashMap<String, (Timestamp, Arc<Value>)>,
}

impl Enricher {
    /// Those of `enrichments` that are for `endpoint`. One that [`check`] refuses is left out.
    #[must_use]
    pub fn new(
        enrichments: &[Enrichment],
        endpoint: &str,
        hub_name: &str,
        twins: Arc<dyn TwinStore>,
    ) -> Self {
        Enricher {
            compiled: compile(enrichments, endpoint),
            hub_name: hub_name.to_owned(),
            twins,
            cache: HashMap::new(),
        }
    }

    /// Reads the twins of those senders that are not known, or have been for too long. One that cannot be read counts
    /// as one without values until the next try.
    pub async fn prepare<'a>(&mut self, senders: impl Iterator<Item = &'a str>, now: Timestamp) {
        if !asks_for_twins(&self.compiled) {
            return;
        }
        if self.cache.len() > TWINS_MAX {
            self.cache.clear();
        }
        for sender in senders {
            let fresh = |(read_at, _): &(Timestamp, Arc<Value>)| now.since(*read_at) < TWIN_AGE_MAX;
            if self.cache.get(sender).is_some_and(fresh) {
                continue;
            }
            let twin = match Identity::parse(sender) {
                Ok(identity) => self.twins.twin(&identity).await.ok().flatten(),
                Err(_) => None,
            };
            let document = twin.map_or(Value::Null, |twin| twin_document(&twin));
            self.cache.insert(sender.to_owned(), (now, Arc::new(document)));
        }
    }

    /// What is added to an event.
    #[must_use]
    pub fn enrich(&self, event: &EventView<'_>) -> Vec<(&str, String)> {
        let twin = self.cache.get(event.identity).map(|(_, twin)| &**twin);
        added(&self.compiled, event.source, &self.hub_name, twin)
    }
}
