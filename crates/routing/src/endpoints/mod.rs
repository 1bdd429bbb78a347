//! Endpoints by kind. Each kind is a folder alike: `config` (its settings), `request` (from an event to what is sent),
//! and the endpoint itself; [`KINDS`] is the table of all.

pub mod action;
#[cfg(feature = "amqp")]
pub mod amqp;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "mqtt")]
pub mod mqtt;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod secret;
#[allow(dead_code, reason = "each kind uses a part of it, and kinds are features")]
pub(crate) mod socket;
#[cfg(feature = "storage")]
pub mod storage;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::event::EventView;
use holdfast_model::routing::EndpointDefinition;
use holdfast_ports::clock::Clock;
use holdfast_ports::endpoint::{Endpoint, Outbound};
use holdfast_wire::routed::Routed;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::dispatchers::EndpointFactory;

/// What endpoints need of the hub.
#[derive(Clone)]
pub struct Environment {
    /// Name of the hub, as it stands in file names, sources of CloudEvents and the like.
    pub hub_name: String,
    /// Folder below which endpoints may write files.
    pub data_dir: PathBuf,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// For actions on devices; `None` in a program that only checks settings.
    pub actions: Option<action::Actions>,
}

/// A kind of endpoint.
pub(crate) struct Kind {
    /// Its name in definitions.
    name: &'static str,
    /// Settings that nobody is shown once they are stored; members of objects stay named.
    secrets: &'static [&'static str],
    /// Checks settings and fills in what is not given.
    check: fn(&Value) -> Result<Value, String>,
    /// Makes an endpoint of checked settings.
    make: Make,
    /// Schema and defaults of the settings.
    described: fn() -> (Value, Value),
}

type Make = fn(&EndpointDefinition, &Environment) -> Result<Arc<dyn Endpoint>, String>;

/// Every kind that this build knows.
const KINDS: &[Kind] = &[
    action::KIND,
    #[cfg(feature = "http")]
    http::KIND,
    #[cfg(feature = "amqp")]
    amqp::KIND,
    #[cfg(feature = "mqtt")]
    mqtt::KIND,
    #[cfg(feature = "storage")]
    storage::KIND,
    #[cfg(feature = "nats")]
    nats::KIND,
    #[cfg(feature = "kafka")]
    kafka::KIND,
    #[cfg(feature = "postgres")]
    postgres::KIND,
];

/// What the reference page says of a kind.
#[derive(Clone, PartialEq, Debug)]
pub struct KindReference {
    /// Its name in definitions.
    pub name: &'static str,
    /// JSON schema of its settings, with their documentation.
    pub schema: Value,
    /// The settings that hold where none is given.
    pub defaults: Value,
}

/// How long an endpoint may take for one batch before it tells what it has got rid of: less than dispatchers wait
/// ([`DeliveryPolicy::timeout`](crate::DeliveryPolicy)), so that a slow peer makes progress.
pub(crate) const DELIVERY_TIME_MAX: Duration = Duration::from_secs(25);

/// Makes endpoints of every kind that this build knows.
pub struct Endpoints {
    environment: Environment,
}

impl Endpoints {
    /// A factory for the endpoints of one hub.
    #[must_use]
    pub fn new(environment: Environment) -> Self {
        Endpoints { environment }
    }

    /// Names of all kinds.
    pub fn kinds() -> impl Iterator<Item = &'static str> {
        KINDS.iter().map(|kind| kind.name)
    }

    /// The settings of each kind, for the reference page.
    pub fn reference() -> impl Iterator<Item = KindReference> {
        KINDS.iter().map(|kind| {
            let (schema, defaults) = (kind.described)();
            KindReference {
                name: kind.name,
                schema,
                defaults,
            }
        })
    }

    /// Settings as operators may see them: each secret is [`secret::HIDDEN`]. Of a kind that this build does not know
    /// nothing is shown.
    #[must_use]
    pub fn without_secrets(kind: &str, settings: &Value) -> Value {
        let Ok(kind) = find(kind) else {
            return Value::Object(serde_json::Map::new());
        };
        let mut shown = settings.clone();
        for name in kind.secrets {
            match shown.get_mut(name) {
                None | Some(Value::Null) => {}
                Some(Value::Object(members)) => members.values_mut().for_each(hide),
                Some(value) => hide(value),
            }
        }
        shown
    }

    /// Settings that an operator has changed after [`Endpoints::without_secrets`]: what is still hidden is taken from
    /// the stored ones.
    #[must_use]
    pub fn with_secrets_of(kind: &str, given: &Value, stored: &Value) -> Value {
        let mut merged = given.clone();
        for name in find(kind).map_or(&[][..], |kind| kind.secrets) {
            let (Some(value), Some(stored)) = (merged.get_mut(name), stored.get(name)) else {
                continue;
            };
            match (value, stored) {
                (Value::Object(members), Value::Object(stored)) => {
                    for (name, member) in members {
                        restore(member, stored.get(name));
                    }
                }
                (value, stored) => restore(value, Some(stored)),
            }
        }
        merged
    }
}

impl EndpointFactory for Endpoints {
    fn check(&self, kind: &str, settings: &Value) -> Result<Value, String> {
        (find(kind)?.check)(settings)
    }

    fn make(&self, definition: &EndpointDefinition) -> Result<Arc<dyn Endpoint>, String> {
        (find(&definition.kind)?.make)(definition, &self.environment)
    }
}

fn find(name: &str) -> Result<&'static Kind, String> {
    KINDS.iter().find(|kind| kind.name == name).ok_or_else(|| {
        let known: Vec<_> = Endpoints::kinds().collect();
        format!(
            "there is no kind of endpoint {name:?}; known are {}",
            known.join(", ")
        )
    })
}

/// Settings of a kind from their JSON. Unknown names are refused by the types themselves.
pub(crate) fn settings<T: DeserializeOwned>(given: &Value) -> Result<T, String> {
    serde_json::from_value(given.clone()).map_err(|error| format!("settings: {error}"))
}

/// Settings with their defaults filled in, as they are stored.
pub(crate) fn filled<T: Serialize>(settings: &T) -> Result<Value, String> {
    serde_json::to_value(settings).map_err(|error| format!("settings: {error}"))
}

/// Schema and defaults of settings.
pub(crate) fn described<T: JsonSchema + Serialize + Default>() -> (Value, Value) {
    let defaults = serde_json::to_value(T::default()).unwrap_or_default();
    (schemars::schema_for!(T).to_value(), defaults)
}

/// An event for the functions of [`holdfast_wire::routed`].
pub(crate) fn routed<'a>(event: &'a Outbound<'a>) -> Routed<'a> {
    Routed {
        event: &event.event,
        enrichments: &event.enrichments,
    }
}

/// The device that an event is of. Jobs and producers stand in the log under names of their own, which are no devices'.
pub(crate) fn device_of<'a>(event: &EventView<'a>) -> Option<&'a str> {
    event.source.concerns_identity().then(|| event.device_id())
}

/// Checks that a number is within its bounds.
pub(crate) fn bounded(name: &str, value: u64, least: u64, most: u64) -> Result<(), String> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(format!("{name} must be between {least} and {most}, not {value}"))
    }
}

fn hide(value: &mut Value) {
    *value = Value::String(secret::HIDDEN.to_owned());
}

fn restore(value: &mut Value, stored: Option<&Value>) {
    if value.as_str() == Some(secret::HIDDEN)
        && let Some(stored) = stored
    {
        *value = stored.clone();
    }
}
