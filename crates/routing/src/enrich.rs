//! Enrichments: application properties that are added to what goes to an endpoint (languages.md 2.7).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::event::{EventSource, EventView};
use holdfast_model::routing::Enrichment;
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
    source(&enrichment.value, "").map(drop)
}

fn source(value: &str, hub_name: &str) -> Result<Source, EnrichmentFault> {
    if value.eq_ignore_ascii_case("$iothubname") {
        return Ok(Source::Text(hub_name.to_owned()));
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

/// The enrichments of one endpoint.
pub struct Enricher {
    compiled: Vec<Compiled>,
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
        let mine = |enrichment: &&Enrichment| {
            enrichment
                .endpoint_names
                .iter()
                .any(|name| name.eq_ignore_ascii_case(endpoint))
        };
        let compile = |enrichment: &Enrichment| {
            Some(Compiled {
                key: enrichment.key.clone(),
                value: source(&enrichment.value, hub_name).ok()?,
            })
        };
        Enricher {
            compiled: enrichments.iter().filter(mine).filter_map(compile).collect(),
            twins,
            cache: HashMap::new(),
        }
    }

    /// Whether there is anything to read before [`Enricher::enrich`] can say something about an event.
    fn asks_for_twins(&self) -> bool {
        self.compiled
            .iter()
            .any(|compiled| matches!(compiled.value, Source::Twin(..)))
    }

    /// Reads the twins of those senders that are not known, or have been for too long. One that cannot be read counts
    /// as one without values until the next try.
    pub async fn prepare<'a>(&mut self, senders: impl Iterator<Item = &'a str>, now: Timestamp) {
        if !self.asks_for_twins() {
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

    /// What is added to an event; digital twin changes are left as they are.
    #[must_use]
    pub fn enrich(&self, event: &EventView<'_>) -> Vec<(&str, String)> {
        if event.source == EventSource::DigitalTwinChange {
            return Vec::new();
        }
        let twin = self.cache.get(event.identity).map(|(_, twin)| &**twin);
        let value = |source: &Source| match source {
            Source::Text(text) => text.clone(),
            Source::Twin(path, literal) => match twin.and_then(|twin| path.find(twin)) {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Number(number)) => number.to_string(),
                Some(Value::Bool(value)) => value.to_string(),
                _ => literal.clone(),
            },
        };
        self.compiled
            .iter()
            .map(|compiled| (compiled.key.as_str(), value(&compiled.value)))
            .collect()
    }
}
