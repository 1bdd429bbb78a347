//! Routes and the fallback route.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use holdfast_model::Error;
use holdfast_model::routing::{FallbackRoute, Route, RouteSource, RoutingDefinition, is_name};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{check_condition, check_new, invalid, knows_endpoint, not_found, tag};
use crate::Api;
use crate::extract::{body, creates_only, identity_match};
use crate::reply::{Failure, Reply, json_tagged, json_with, no_content};

/// A route.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RouteDto {
    /// Unique name: 1 to 64 letters, digits, `.`, `_`, `-`. In a request for one route that of the path counts.
    #[serde(default)]
    pub(super) name: String,
    /// `DeviceMessages`, `TwinChangeEvents`, `DeviceLifecycleEvents`, `DeviceJobLifecycleEvents`,
    /// `DeviceConnectionStateEvents` or `DigitalTwinChangeEvents`, in any case.
    pub(super) source: String,
    /// Which events take it; default `true`.
    #[serde(default = "always")]
    pub(super) condition: String,
    /// Where they go: one name.
    pub(super) endpoint_names: Vec<String>,
    /// Whether it is in force; default `true`.
    #[serde(default = "yes")]
    pub(super) is_enabled: bool,
}

/// The fallback route: where telemetry goes that takes no route.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct FallbackRouteDto {
    /// Which telemetry; default `true`.
    #[serde(default = "always")]
    pub(super) condition: String,
    /// Whether it is in force; default `true`.
    #[serde(default = "yes")]
    pub(super) is_enabled: bool,
}

fn always() -> String {
    "true".to_owned()
}

fn yes() -> bool {
    true
}

impl From<&Route> for RouteDto {
    fn from(route: &Route) -> Self {
        RouteDto {
            name: route.name.clone(),
            source: route.source.as_str().to_owned(),
            condition: route.condition.clone(),
            endpoint_names: route.endpoint_names.clone(),
            is_enabled: route.is_enabled,
        }
    }
}

impl From<&FallbackRoute> for FallbackRouteDto {
    fn from(route: &FallbackRoute) -> Self {
        FallbackRouteDto {
            condition: route.condition.clone(),
            is_enabled: route.is_enabled,
        }
    }
}

impl RouteDto {
    /// The route, checked but for the existence of its endpoint.
    pub(super) fn route(self) -> Result<Route, Failure> {
        if !is_name(&self.name) {
            let text = format!(
                "the name of route {:?} must be 1 to 64 letters, digits, '.', '_', '-'",
                self.name
            );
            return Err(invalid(text).into());
        }
        let source = source(&self.source)?;
        if self.endpoint_names.len() != 1 {
            return Err(invalid(format!("route {:?} must name exactly one endpoint", self.name)).into());
        }
        check_condition(&self.name, &self.condition, source)?;
        Ok(Route {
            name: self.name,
            source,
            condition: self.condition,
            endpoint_names: self.endpoint_names,
            is_enabled: self.is_enabled,
        })
    }
}

impl FallbackRouteDto {
    pub(super) fn route(self) -> Result<FallbackRoute, Failure> {
        check_condition(
            holdfast_routing::table::FALLBACK,
            &self.condition,
            RouteSource::DeviceMessages,
        )?;
        Ok(FallbackRoute {
            condition: self.condition,
            is_enabled: self.is_enabled,
        })
    }
}

/// The source that a text names.
pub(super) fn source(text: &str) -> Result<RouteSource, Error> {
    RouteSource::parse(text).ok_or_else(|| {
        let known: Vec<&str> = RouteSource::ALL.iter().map(|source| source.as_str()).collect();
        invalid(format!(
            "{text:?} is no source of routes; there are {}",
            known.join(", ")
        ))
    })
}

/// Every endpoint of a route must exist.
pub(super) fn check_endpoints(definition: &RoutingDefinition, route: &Route) -> Result<(), Error> {
    match route
        .endpoint_names
        .iter()
        .find(|name| !knows_endpoint(definition, name))
    {
        None => Ok(()),
        Some(unknown) => Err(invalid(format!(
            "route {:?} names the endpoint {unknown:?}, which does not exist; create it first",
            route.name
        ))),
    }
}

/// Lists routes. Right: RegistryRead.
#[utoipa::path(get, path = "/holdfast/v1/routing/routes", tag = "Routing",
    responses((status = 200, body = Vec<RouteDto>)))]
pub(crate) async fn list(State(api): State<Api>) -> Reply {
    let definition = api.hub.routing().borrow().clone();
    let routes: Vec<_> = definition.routes.iter().map(RouteDto::from).collect();
    json_tagged(&routes, &tag(definition.version))
}

/// Reads a route. Right: RegistryRead.
#[utoipa::path(get, path = "/holdfast/v1/routing/routes/{name}", tag = "Routing",
    responses((status = 200, body = RouteDto), (status = 404, description = "no such route")))]
pub(crate) async fn get(State(api): State<Api>, Path(name): Path<String>) -> Reply {
    let definition = api.hub.routing().borrow().clone();
    let route = definition
        .routes
        .iter()
        .find(|route| route.name.eq_ignore_ascii_case(&name));
    let route = route.ok_or_else(|| not_found("route", &name))?;
    json_tagged(&RouteDto::from(route), &tag(definition.version))
}

/// Creates or replaces a route. It is in force for the next event. Right: RegistryWrite.
#[utoipa::path(put, path = "/holdfast/v1/routing/routes/{name}", tag = "Routing", request_body = RouteDto,
    responses((status = 200, body = RouteDto), (status = 201, body = RouteDto),
        (status = 412, description = "If-Match does not match, or If-None-Match: * and it exists"),
        (status = 400, description = "what is wrong; details.compilationErrors says where in the condition")))]
pub(crate) async fn put(
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Reply {
    let mut wanted: RouteDto = body(&bytes)?;
    if !wanted.name.is_empty() && !wanted.name.eq_ignore_ascii_case(&name) {
        let text = format!("the body names the route {:?}, the path {name:?}", wanted.name);
        return Err(invalid(text).into());
    }
    wanted.name = name;
    let route = wanted.route()?;
    let answer = RouteDto::from(&route);
    let only_new = creates_only(&headers);
    let change = move |definition: &mut RoutingDefinition| {
        let mut routes = definition.routes.iter();
        let exists = routes.any(|known| known.name.eq_ignore_ascii_case(&route.name));
        check_new(only_new, exists, &format!("a route {:?}", route.name))?;
        check_endpoints(definition, &route)?;
        let known = definition
            .routes
            .iter_mut()
            .find(|known| known.name.eq_ignore_ascii_case(&route.name));
        Ok(match known {
            Some(known) => {
                *known = route;
                StatusCode::OK
            }
            None => {
                definition.routes.push(route);
                StatusCode::CREATED
            }
        })
    };
    let changed = api.hub.change_routing_if(identity_match(&headers), change);
    let (status, version) = changed.await?;
    json_with(status, &answer, Some(&tag(version)))
}

/// Deletes a route. Right: RegistryWrite.
#[utoipa::path(delete, path = "/holdfast/v1/routing/routes/{name}", tag = "Routing",
    responses((status = 204, description = "deleted"), (status = 404, description = "no such route"),
        (status = 412, description = "If-Match does not match")))]
pub(crate) async fn delete(State(api): State<Api>, Path(name): Path<String>, headers: HeaderMap) -> Reply {
    let change = move |definition: &mut RoutingDefinition| {
        let before = definition.routes.len();
        definition
            .routes
            .retain(|route| !route.name.eq_ignore_ascii_case(&name));
        if definition.routes.len() == before {
            return Err(not_found("route", &name));
        }
        Ok(())
    };
    api.hub
        .change_routing_if(identity_match(&headers), change)
        .await?;
    no_content()
}

/// Reads the fallback route. Right: RegistryRead.
#[utoipa::path(get, path = "/holdfast/v1/routing/fallbackRoute", tag = "Routing",
    responses((status = 200, body = FallbackRouteDto)))]
pub(crate) async fn get_fallback(State(api): State<Api>) -> Reply {
    let definition = api.hub.routing().borrow().clone();
    let route = FallbackRouteDto::from(&definition.fallback_route);
    json_tagged(&route, &tag(definition.version))
}

/// Changes the fallback route. Right: RegistryWrite.
#[utoipa::path(put, path = "/holdfast/v1/routing/fallbackRoute", tag = "Routing", request_body = FallbackRouteDto,
    responses((status = 200, body = FallbackRouteDto),
        (status = 412, description = "If-Match does not match, or If-None-Match: *: there always is one")))]
pub(crate) async fn put_fallback(State(api): State<Api>, headers: HeaderMap, bytes: Bytes) -> Reply {
    let route = body::<FallbackRouteDto>(&bytes)?.route()?;
    let answer = FallbackRouteDto::from(&route);
    let only_new = creates_only(&headers);
    let change = move |definition: &mut RoutingDefinition| {
        check_new(only_new, true, "a fallback route")?;
        definition.fallback_route = route;
        Ok(())
    };
    let changed = api.hub.change_routing_if(identity_match(&headers), change);
    let ((), version) = changed.await?;
    json_tagged(&answer, &tag(version))
}
