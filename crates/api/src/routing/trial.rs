//! Trying routes out on a message (languages.md 2.6, "Test APIs").

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::State;
use holdfast_model::routing::{Route, RouteSource};
use holdfast_query::route::{Outcome, Sample, SystemName};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::routes::{RouteDto, source};
use super::{compilation_errors, compile, fallback_as_route, not_found};
use crate::Api;
use crate::extract::body;
use crate::reply::{Reply, json};

/// A message to try routes on.
#[derive(Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SampleMessage {
    /// The payload: a text, or JSON that is sent as it stands.
    #[schema(value_type = Object)]
    body: Value,
    /// Application properties.
    app_properties: BTreeMap<String, Value>,
    /// System properties by their names in conditions, without `$`: `contentType`, `contentEncoding`,
    /// `connectionDeviceId`; also as `iothub-connection-device-id`. Unknown ones are ignored: no condition can name them.
    system_properties: BTreeMap<String, Value>,
}

/// A route and what to try it on.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TestNew {
    /// Default: an empty message.
    #[serde(default)]
    message: SampleMessage,
    /// The route. Its condition is tried, whether or not it is enabled.
    #[schema(value_type = Object)]
    route: TestedRoute,
    /// Twin of the sender: `tags`, `properties.desired`, `properties.reported`.
    #[serde(default)]
    #[schema(value_type = Object)]
    twin: Value,
}

/// What of a route counts for a test.
#[derive(Deserialize)]
pub(crate) struct TestedRoute {
    source: Option<String>,
    condition: Option<String>,
}

/// What to try all routes on.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TestAll {
    /// Source of the routes to try; default `DeviceMessages`.
    routing_source: Option<String>,
    /// Default: an empty message.
    #[serde(default)]
    message: SampleMessage,
    /// Twin of the sender.
    #[serde(default)]
    #[schema(value_type = Object)]
    twin: Value,
}

/// What a condition says.
#[derive(Serialize, ToSchema)]
pub(crate) struct TestResult {
    /// `true`, `false` or `undefined`.
    result: &'static str,
    /// `compilationErrors`: `message`, `severity`, `location` with `start` and `end`, each with `line` and `column`.
    #[schema(value_type = Object)]
    details: Value,
}

/// Routes that a message takes.
#[derive(Serialize, ToSchema)]
pub(crate) struct TestedRoutes {
    routes: Vec<MatchedRoute>,
}

/// A route that a message takes.
#[derive(Serialize, ToSchema)]
pub(crate) struct MatchedRoute {
    properties: RouteDto,
}

/// As conditions' results are spelled.
pub(super) fn spelled(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::True => "true",
        Outcome::False => "false",
        Outcome::Undefined => "undefined",
    }
}

impl SampleMessage {
    fn sample(self, twin: Value) -> Sample {
        let system = self.system_properties.into_iter();
        Sample {
            properties: self
                .app_properties
                .into_iter()
                .map(|(key, value)| (key, text(value)))
                .collect(),
            system: system
                .filter_map(|(name, value)| Some((system_name(&name)?, text(value))))
                .collect(),
            body: match self.body {
                Value::Null => Vec::new(),
                Value::String(text) => text.into_bytes(),
                json => json.to_string().into_bytes(),
            },
            twin,
        }
    }
}

/// A property's value; other JSON than texts as it is written.
fn text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// A system property in any of its spellings.
fn system_name(name: &str) -> Option<SystemName> {
    let name = name.trim_start_matches('$');
    SystemName::parse(name).or_else(|| {
        let bare: String = name.strip_prefix("iothub-").unwrap_or(name).replace('-', "");
        if bare == "connectionauthgenerationid" {
            return Some(SystemName::ConnectionDeviceGenerationId);
        }
        SystemName::parse(&bare)
    })
}

/// Tries a route on a message. Right: RegistryRead.
#[utoipa::path(post, path = "/routing/routes/$testnew", tag = "Routing", request_body = TestNew,
    responses((status = 200, body = TestResult)))]
pub(crate) async fn test_new(bytes: Bytes) -> Reply {
    let wanted: TestNew = body(&bytes)?;
    let source = source(wanted.route.source.as_deref().unwrap_or("DeviceMessages"))?;
    let condition = wanted.route.condition.as_deref().unwrap_or("true");
    let sample = wanted.message.sample(wanted.twin);
    json(&match compile(condition, source) {
        Ok((condition, symbols)) => TestResult {
            result: spelled(condition.decide(&sample.with(&symbols))),
            details: serde_json::json!({"compilationErrors": []}),
        },
        Err(fault) => TestResult {
            result: spelled(Outcome::Undefined),
            details: compilation_errors(&fault),
        },
    })
}

/// Tells which routes a message takes: the enabled ones of its source, else the fallback route. Right: RegistryRead.
#[utoipa::path(post, path = "/routing/routes/$testall", tag = "Routing", request_body = TestAll,
    responses((status = 200, body = TestedRoutes)))]
pub(crate) async fn test_all(State(api): State<Api>, bytes: Bytes) -> Reply {
    let wanted: TestAll = body(&bytes)?;
    let source = source(wanted.routing_source.as_deref().unwrap_or("DeviceMessages"))?;
    let sample = wanted.message.sample(wanted.twin);
    let definition = api.hub.routing().borrow().clone();
    let takes = |route: &Route| {
        route.is_enabled
            && route.source == source
            && compile(&route.condition, source)
                .is_ok_and(|(condition, symbols)| condition.decide(&sample.with(&symbols)) == Outcome::True)
    };
    let mut routes: Vec<&Route> = definition.routes.iter().filter(|route| takes(route)).collect();
    let fallback = fallback_as_route(&definition.fallback_route);
    if routes.is_empty() && source == RouteSource::DeviceMessages && takes(&fallback) {
        routes.push(&fallback);
    }
    json(&TestedRoutes {
        routes: routes
            .into_iter()
            .map(|route| MatchedRoute {
                properties: RouteDto::from(route),
            })
            .collect(),
    })
}

/// As `/routing/routes/$testnew`. Right: RegistryRead.
#[utoipa::path(post, path = "/holdfast/v1/routing/routes/$testnew", tag = "Routing", request_body = TestNew,
    responses((status = 200, body = TestResult)))]
pub(crate) async fn own_test_new(bytes: Bytes) -> Reply {
    test_new(bytes).await
}

/// As `/routing/routes/$testall`. Right: RegistryRead.
#[utoipa::path(post, path = "/holdfast/v1/routing/routes/$testall", tag = "Routing", request_body = TestAll,
    responses((status = 200, body = TestedRoutes)))]
pub(crate) async fn own_test_all(state: State<Api>, bytes: Bytes) -> Reply {
    test_all(state, bytes).await
}

/// A stored route by name, for those who test by name.
pub(super) fn stored_route(api: &Api, name: &str) -> Result<Route, holdfast_model::Error> {
    let definition = api.hub.routing().borrow().clone();
    let mut routes = definition.routes.iter();
    let route = routes.find(|route| route.name.eq_ignore_ascii_case(name));
    route.cloned().ok_or_else(|| not_found("route", name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_properties_have_several_spellings() {
        for (name, expected) in [
            ("contentType", SystemName::ContentType),
            ("$contentType", SystemName::ContentType),
            ("content-type", SystemName::ContentType),
            ("iothub-connection-device-id", SystemName::ConnectionDeviceId),
            (
                "iothub-connection-auth-generation-id",
                SystemName::ConnectionDeviceGenerationId,
            ),
            ("iothub-enqueuedtime", SystemName::EnqueuedTime),
            ("dt-dataschema", SystemName::DataSchema),
        ] {
            assert_eq!(system_name(name), Some(expected), "{name}");
        }
        assert_eq!(system_name("x-opt-offset"), None);
    }
}
