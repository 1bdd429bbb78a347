//! Everything about routing as one document, for keeping it in a repository and for moving it to another hub.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use holdfast_model::Error;
use holdfast_model::routing::{Enrichment, FallbackRoute, Route, RoutingDefinition};
use holdfast_ports::clock::{Clock, SystemClock};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::endpoints::{EndpointDto, EndpointPut, numbers};
use super::enrichments::EnrichmentDto;
use super::routes::{FallbackRouteDto, RouteDto};
use super::{check_new, enrichments, invalid, routes, tag};
use crate::Api;
use crate::extract::{body, creates_only, identity_match};
use crate::reply::{Failure, Reply, json_tagged};

/// Everything about routing, without secrets.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DefinitionDto {
    routes: Vec<RouteDto>,
    fallback_route: FallbackRouteDto,
    enrichments: Vec<EnrichmentDto>,
    endpoints: Vec<EndpointDto>,
    /// Changes with every change of anything here; what `If-Match` takes.
    etag: String,
}

/// Everything about routing, in place of what there is.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DefinitionPut {
    /// Default none.
    #[serde(default)]
    routes: Vec<RouteDto>,
    /// Default: all telemetry that takes no route.
    fallback_route: Option<FallbackRouteDto>,
    /// Default none.
    #[serde(default)]
    enrichments: Vec<EnrichmentDto>,
    /// Default none. Secrets given as `***` stay as they are stored for the endpoint of that name and kind.
    #[serde(default)]
    endpoints: Vec<EndpointPut>,
    /// Ignored: as answers have it.
    #[serde(default, rename = "etag")]
    #[schema(value_type = Option<String>)]
    _etag: Option<serde_json::Value>,
}

impl From<&RoutingDefinition> for DefinitionDto {
    fn from(definition: &RoutingDefinition) -> Self {
        DefinitionDto {
            routes: definition.routes.iter().map(RouteDto::from).collect(),
            fallback_route: FallbackRouteDto::from(&definition.fallback_route),
            enrichments: definition.enrichments.iter().map(EnrichmentDto::from).collect(),
            endpoints: definition.endpoints.iter().map(EndpointDto::from).collect(),
            etag: tag(definition.version),
        }
    }
}

/// Reads everything about routing, without secrets. Right: RegistryRead.
#[utoipa::path(get, path = "/holdfast/v1/routing/definition", tag = "Routing",
    responses((status = 200, body = DefinitionDto)))]
pub(crate) async fn get(State(api): State<Api>) -> Reply {
    let definition = api.hub.routing().borrow().clone();
    json_tagged(
        &DefinitionDto::from(definition.as_ref()),
        &tag(definition.version),
    )
}

/// Replaces everything about routing, or nothing if something is wrong. Endpoints that keep their name keep their place
/// in the log. Right: RegistryWrite.
#[utoipa::path(put, path = "/holdfast/v1/routing/definition", tag = "Routing", request_body = DefinitionPut,
    responses((status = 200, body = DefinitionDto),
        (status = 412, description = "If-Match does not match, or If-None-Match: *: there always is one")))]
pub(crate) async fn put(State(api): State<Api>, headers: HeaderMap, bytes: Bytes) -> Reply {
    let wanted: DefinitionPut = body(&bytes)?;
    let given = Given::read(wanted.routes, wanted.fallback_route, wanted.enrichments)?;
    let (factory, now) = (api.routing.factory.clone(), SystemClock::new().now());
    let only_new = creates_only(&headers);
    let change = move |definition: &mut RoutingDefinition| {
        check_new(only_new, true, "a definition")?;
        let mut made: Vec<holdfast_model::routing::EndpointDefinition> = Vec::new();
        let mut taken = numbers(definition);
        for endpoint in wanted.endpoints {
            let endpoint = endpoint.endpoint(definition, taken, factory.as_ref(), now)?;
            taken = taken.union(holdfast_model::event::EndpointSet::of(endpoint.number));
            made.push(endpoint);
        }
        check_unique("endpoint", made.iter().map(|endpoint| endpoint.name.as_str()))?;
        definition.endpoints = made;
        for route in &given.routes {
            routes::check_endpoints(definition, route)?;
        }
        for enrichment in &given.enrichments {
            enrichments::check_endpoints(definition, enrichment)?;
        }
        definition.routes = given.routes;
        definition.fallback_route = given.fallback_route;
        definition.enrichments = given.enrichments;
        Ok(DefinitionDto::from(&*definition))
    };
    let changed = api.hub.change_routing_if(identity_match(&headers), change);
    let (mut answer, version) = changed.await?;
    answer.etag = tag(version);
    json_tagged(&answer, &tag(version))
}

/// What does not depend on the stored definition.
struct Given {
    routes: Vec<Route>,
    fallback_route: FallbackRoute,
    enrichments: Vec<Enrichment>,
}

impl Given {
    fn read(
        routes: Vec<RouteDto>,
        fallback_route: Option<FallbackRouteDto>,
        enrichments: Vec<EnrichmentDto>,
    ) -> Result<Self, Failure> {
        let routes: Vec<Route> = routes
            .into_iter()
            .map(RouteDto::route)
            .collect::<Result<_, _>>()?;
        check_unique("route", routes.iter().map(|route| route.name.as_str()))?;
        let enrichments: Vec<Enrichment> = enrichments
            .into_iter()
            .map(EnrichmentDto::enrichment)
            .collect::<Result<_, _>>()?;
        check_unique(
            "enrichment",
            enrichments.iter().map(|enrichment| enrichment.key.as_str()),
        )?;
        let fallback_route = match fallback_route {
            Some(given) => given.route()?,
            None => FallbackRoute::default(),
        };
        Ok(Given {
            routes,
            fallback_route,
            enrichments,
        })
    }
}

fn check_unique<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<(), Error> {
    let mut known = std::collections::HashSet::new();
    for name in names {
        if !known.insert(name.to_ascii_lowercase()) {
            return Err(invalid(format!("there are two of the {what} {name:?}")));
        }
    }
    Ok(())
}
