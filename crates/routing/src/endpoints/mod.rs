//! Endpoints by kind. Each kind is a folder alike: `config` (its settings), `request` (from an event to what is sent),
//! and the endpoint itself; [`KINDS`] is the table of all.

use std::path::PathBuf;
use std::sync::Arc;

use holdfast_model::routing::EndpointDefinition;
use holdfast_ports::clock::Clock;
use holdfast_ports::endpoint::Endpoint;
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
}

/// A kind of endpoint.
pub(crate) struct Kind {
    /// Its name in definitions.
    name: &'static str,
    /// Checks settings and fills in what is not given.
    check: fn(&Value) -> Result<Value, String>,
    /// Makes an endpoint of checked settings.
    make: fn(&EndpointDefinition, &Environment) -> Result<Arc<dyn Endpoint>, String>,
}

/// Every kind that this build knows.
const KINDS: &[Kind] = &[];

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
