//! Endpoints and their health.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use holdfast_model::event::EndpointSet;
use holdfast_model::routing::{
    ENDPOINTS_MAX, EndpointDefinition, RESERVED_NAMES, RoutingDefinition, is_name,
};
use holdfast_model::{Error, ErrorCode, Timestamp};
use holdfast_ports::clock::{Clock, SystemClock};
use holdfast_routing::dispatchers::EndpointFactory;
use holdfast_routing::endpoints::{Endpoints, secret};
use holdfast_routing::health::Health;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{check_new, invalid, not_found, tag};
use crate::Api;
use crate::consumer_groups::unavailable;
use crate::extract::{body, creates_only, identity_match};
use crate::reply::{Failure, Reply, json, json_tagged, json_with, no_content};

/// An endpoint.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct EndpointPut {
    /// Unique name: 1 to 64 letters, digits, `.`, `_`, `-`. In a request for one endpoint that of the path counts.
    #[serde(default)]
    pub(super) name: String,
    /// Its kind, such as `http`.
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// Settings of the kind. A secret given as `***` stays as it is stored.
    #[schema(value_type = Object)]
    pub(super) settings: Value,
    /// Ignored: as answers have it.
    #[serde(default, rename = "createdAt")]
    #[schema(value_type = Option<String>)]
    _created_at: Option<Value>,
}

/// An endpoint as it is stored, without secrets.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointDto {
    name: String,
    /// Its kind.
    #[serde(rename = "type")]
    kind: String,
    /// When it was made, ISO 8601.
    created_at: String,
    /// Settings of the kind, with defaults; secrets are `***`.
    #[schema(value_type = Object)]
    settings: Value,
}

/// How an endpoint is doing.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointHealthDto {
    /// Its name.
    endpoint_id: String,
    /// `unknown`, `healthy`, `unhealthy` or `dead`.
    health_status: &'static str,
    /// What it said when it last failed; empty if it never has.
    last_known_error: String,
    /// When that was, ISO 8601.
    last_known_error_time: Option<String>,
    /// When it last took something.
    last_successful_send_attempt_time: Option<String>,
    /// When something was last tried.
    last_send_attempt_time: Option<String>,
    /// Since when every attempt has failed.
    failing_since: Option<String>,
    /// Events delivered since the hub started.
    delivered: u64,
    /// Events given up, as they are kept now.
    dead_letters: u64,
    /// Events between its place and the end of the log, those of other endpoints included.
    lag: u64,
}

/// Health in the shape of the management API.
#[derive(Serialize, ToSchema)]
pub(crate) struct EndpointHealthList {
    value: Vec<EndpointHealthDto>,
}

impl From<&EndpointDefinition> for EndpointDto {
    fn from(endpoint: &EndpointDefinition) -> Self {
        EndpointDto {
            name: endpoint.name.clone(),
            kind: endpoint.kind.clone(),
            created_at: endpoint.created_at.to_string(),
            settings: Endpoints::without_secrets(&endpoint.kind, &endpoint.settings),
        }
    }
}

impl EndpointPut {
    /// The endpoint, in place of the one of that name if there is one in `definition`.
    pub(super) fn endpoint(
        self,
        definition: &RoutingDefinition,
        taken: EndpointSet,
        factory: &dyn EndpointFactory,
        now: Timestamp,
    ) -> Result<EndpointDefinition, Error> {
        check_name(&self.name)?;
        let known = find(definition, &self.name);
        let stored = known.filter(|known| known.kind == self.kind);
        let given = match stored {
            Some(stored) => Endpoints::with_secrets_of(&self.kind, &self.settings, &stored.settings),
            None => self.settings,
        };
        if holds_hidden(&given) {
            return Err(invalid(format!(
                "endpoint {:?}: {:?} stands for a secret that is stored, and there is none; give the secret itself",
                self.name,
                secret::HIDDEN
            )));
        }
        let settings = factory
            .check(&self.kind, &given)
            .map_err(|error| invalid(format!("endpoint {:?}: {error}", self.name)))?;
        let number = match known {
            Some(known) => known.number,
            None => free_number(taken)?,
        };
        Ok(EndpointDefinition {
            name: known.map_or(self.name, |known| known.name.clone()),
            number,
            created_at: known.map_or(now, |known| known.created_at),
            kind: self.kind,
            settings,
        })
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    if !is_name(name) {
        return Err(invalid(format!(
            "the name of endpoint {name:?} must be 1 to 64 letters, digits, '.', '_', '-'"
        )));
    }
    if RESERVED_NAMES
        .iter()
        .any(|reserved| reserved.eq_ignore_ascii_case(name))
    {
        return Err(invalid(format!(
            "the name {name:?} is the hub's own; take another"
        )));
    }
    Ok(())
}

fn holds_hidden(value: &Value) -> bool {
    match value {
        Value::String(text) => text == secret::HIDDEN,
        Value::Object(members) => members.values().any(holds_hidden),
        _ => false,
    }
}

pub(super) fn find<'a>(definition: &'a RoutingDefinition, name: &str) -> Option<&'a EndpointDefinition> {
    let mut endpoints = definition.endpoints.iter();
    endpoints.find(|endpoint| endpoint.name.eq_ignore_ascii_case(name))
}

/// The numbers of all endpoints of a definition.
pub(super) fn numbers(definition: &RoutingDefinition) -> EndpointSet {
    let numbers = definition.endpoints.iter();
    numbers.fold(EndpointSet::EVENTS, |set, endpoint| {
        set.union(EndpointSet::of(endpoint.number))
    })
}

fn free_number(taken: EndpointSet) -> Result<u8, Error> {
    (1..EndpointSet::SIZE)
        .find(|number| !taken.contains(*number))
        .ok_or_else(|| invalid(format!("a hub has at most {ENDPOINTS_MAX} endpoints")))
}

/// Lists endpoints, without secrets. Right: RegistryRead.
#[utoipa::path(get, path = "/holdfast/v1/routing/endpoints", tag = "Routing",
    responses((status = 200, body = Vec<EndpointDto>)))]
pub(crate) async fn list(State(api): State<Api>) -> Reply {
    let definition = api.hub.routing().borrow().clone();
    let endpoints: Vec<_> = definition.endpoints.iter().map(EndpointDto::from).collect();
    json_tagged(&endpoints, &tag(definition.version))
}

/// Reads an endpoint, without secrets. Right: RegistryRead.
#[utoipa::path(get, path = "/holdfast/v1/routing/endpoints/{name}", tag = "Routing",
    responses((status = 200, body = EndpointDto), (status = 404, description = "no such endpoint")))]
pub(crate) async fn get(State(api): State<Api>, Path(name): Path<String>) -> Reply {
    let definition = api.hub.routing().borrow().clone();
    let endpoint = find(&definition, &name).ok_or_else(|| not_found("endpoint", &name))?;
    json_tagged(&EndpointDto::from(endpoint), &tag(definition.version))
}

/// Creates an endpoint, which takes events from now on, or changes its settings. Right: RegistryWrite.
#[utoipa::path(put, path = "/holdfast/v1/routing/endpoints/{name}", tag = "Routing", request_body = EndpointPut,
    responses((status = 200, body = EndpointDto), (status = 201, body = EndpointDto),
        (status = 412, description = "If-Match does not match, or If-None-Match: * and it exists")))]
pub(crate) async fn put(
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    let mut wanted: EndpointPut = body(&bytes)?;
    if !wanted.name.is_empty() && !wanted.name.eq_ignore_ascii_case(&name) {
        let text = format!("the body names the endpoint {:?}, the path {name:?}", wanted.name);
        return Err(invalid(text).into());
    }
    wanted.name = name;
    let (factory, now) = (api.routing.factory.clone(), SystemClock::new().now());
    let only_new = creates_only(&headers);
    let change = move |definition: &mut RoutingDefinition| {
        let exists = find(definition, &wanted.name).is_some();
        check_new(only_new, exists, &format!("an endpoint {:?}", wanted.name))?;
        let endpoint = wanted.endpoint(definition, numbers(definition), factory.as_ref(), now)?;
        let answer = EndpointDto::from(&endpoint);
        let mut endpoints = definition.endpoints.iter_mut();
        Ok(match endpoints.find(|known| known.name == endpoint.name) {
            Some(known) => {
                *known = endpoint;
                (StatusCode::OK, answer)
            }
            None => {
                definition.endpoints.push(endpoint);
                (StatusCode::CREATED, answer)
            }
        })
    };
    let changed = api.hub.change_routing_if(identity_match(&headers), change);
    let ((status, answer), version) = changed.await?;
    json_with(status, &answer, Some(&tag(version)))
}

/// Deletes an endpoint with its checkpoint and dead letters. Right: RegistryWrite.
#[utoipa::path(delete, path = "/holdfast/v1/routing/endpoints/{name}", tag = "Routing",
    responses((status = 204, description = "deleted"), (status = 404, description = "no such endpoint"),
        (status = 409, description = "a route or an enrichment names it"),
        (status = 412, description = "If-Match does not match")))]
pub(crate) async fn delete(State(api): State<Api>, Path(name): Path<String>, headers: HeaderMap) -> Reply {
    let change = move |definition: &mut RoutingDefinition| {
        let known = find(definition, &name).ok_or_else(|| not_found("endpoint", &name))?;
        let name = known.name.clone();
        let users = users(definition, &name);
        if !users.is_empty() {
            let text = format!(
                "endpoint {name:?} is named by {}; delete or change these first",
                users.join(", ")
            );
            return Err(Error::new(ErrorCode::ResourceConflict, text));
        }
        definition.endpoints.retain(|endpoint| endpoint.name != name);
        Ok(())
    };
    api.hub
        .change_routing_if(identity_match(&headers), change)
        .await?;
    no_content()
}

/// Routes and enrichments that name an endpoint.
fn users(definition: &RoutingDefinition, name: &str) -> Vec<String> {
    let names_it = |names: &[String]| names.iter().any(|named| named.eq_ignore_ascii_case(name));
    let routes = definition
        .routes
        .iter()
        .filter(|route| names_it(&route.endpoint_names));
    let enrichments = definition.enrichments.iter();
    let enrichments = enrichments.filter(|enrichment| names_it(&enrichment.endpoint_names));
    routes
        .map(|route| format!("route {:?}", route.name))
        .chain(enrichments.map(|enrichment| format!("enrichment {:?}", enrichment.key)))
        .collect()
}

/// How every endpoint is doing. Right: RegistryRead.
#[utoipa::path(get, path = "/holdfast/v1/routing/health", tag = "Routing",
    responses((status = 200, body = Vec<EndpointHealthDto>)))]
pub(crate) async fn health(State(api): State<Api>) -> Reply {
    json(&all_health(&api).await?)
}

/// How every endpoint is doing, in the shape of the management API. Right: RegistryRead.
#[utoipa::path(get, path = "/routingEndpointsHealth", tag = "Routing",
    responses((status = 200, body = EndpointHealthList)))]
pub(crate) async fn health_list(State(api): State<Api>) -> Reply {
    json(&EndpointHealthList {
        value: all_health(&api).await?,
    })
}

async fn all_health(api: &Api) -> Result<Vec<EndpointHealthDto>, Failure> {
    let definition = api.hub.routing().borrow().clone();
    let mut all = Vec::new();
    for endpoint in &definition.endpoints {
        let health = api.routing.board.get(&endpoint.name).unwrap_or_default();
        let letters = api.routing.dead_letters.count_dead_letters(&endpoint.name).await;
        all.push(health_dto(
            &endpoint.name,
            &health,
            letters.map_err(|error| unavailable(&error))?,
        ));
    }
    Ok(all)
}

fn health_dto(name: &str, health: &Health, dead_letters: u64) -> EndpointHealthDto {
    let text = |time: Option<Timestamp>| time.map(|time| time.to_string());
    EndpointHealthDto {
        endpoint_id: name.to_owned(),
        health_status: health.status.as_str(),
        last_known_error: health.last_known_error.clone().unwrap_or_default(),
        last_known_error_time: text(health.last_known_error_at),
        last_successful_send_attempt_time: text(health.last_success_at),
        last_send_attempt_time: text(health.last_attempt_at),
        failing_since: text(health.failing_since),
        delivered: health.delivered,
        dead_letters,
        lag: health.lag,
    }
}
