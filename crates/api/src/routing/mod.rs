//! `/holdfast/v1/routing`: routes, the fallback route, enrichments, endpoints with their health and dead letters; and the
//! documented operations that try routes out (languages.md 2.6).

pub(crate) mod dead_letters;
pub(crate) mod definition;
pub(crate) mod endpoints;
pub(crate) mod enrichments;
pub(crate) mod live;
pub(crate) mod routes;
pub(crate) mod trial;

use std::sync::Arc;

use holdfast_model::routing::{EVENTS, FallbackRoute, Route, RouteSource, RoutingDefinition};
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::dead_letters::DeadLetterStore;
use holdfast_query::error::{Position, QueryError};
use holdfast_query::route::{Condition, Place, Symbols};
use holdfast_routing::dispatchers::{EndpointFactory, HealthBoard};
use holdfast_wire::etag;
use serde_json::{Value, json};

use crate::reply::Failure;

/// What the operations on routing work with, besides the engine.
#[derive(Clone)]
pub struct Routing {
    /// Checks settings of endpoints.
    pub factory: Arc<dyn EndpointFactory>,
    /// How endpoints are doing.
    pub board: HealthBoard,
    /// What endpoints did not take.
    pub dead_letters: Arc<dyn DeadLetterStore>,
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::ArgumentInvalid, message)
}

/// The tag of everything about routing. Routes, enrichments and endpoints have no other one: they are stored together.
fn tag(version: u64) -> String {
    etag::of_identity(version)
}

/// Refuses a request that is only to create what is there.
fn check_new(creates_only: bool, exists: bool, what: &str) -> Result<(), Error> {
    match creates_only && exists {
        true => Err(Error::new(
            ErrorCode::PreconditionFailed,
            format!("there is {what} already, and If-None-Match: * asks that there is none"),
        )),
        false => Ok(()),
    }
}

fn not_found(what: &str, name: &str) -> Error {
    Error::new(
        ErrorCode::ResourceNotFound,
        format!("there is no {what} {name:?}"),
    )
}

/// Reads a condition of a source, with the symbols that it asks for.
fn compile(text: &str, source: RouteSource) -> Result<(Condition, Symbols), QueryError> {
    let mut symbols = Symbols::default();
    let place = Place {
        twin_changes: source == RouteSource::TwinChangeEvents,
        no_twin: false,
    };
    Ok((Condition::compile(text, &mut symbols, place)?, symbols))
}

/// The list of compilation errors, as the contract has it.
fn compilation_errors(fault: &QueryError) -> Value {
    let place = |position: Position| json!({"line": position.line, "column": position.column});
    json!({"compilationErrors": [{
        "message": fault.message,
        "severity": "error",
        "location": {"start": place(fault.start), "end": place(fault.end)},
    }]})
}

/// A route with a condition that does not compile is refused, with the list of [`compilation_errors`].
fn check_condition(name: &str, condition: &str, source: RouteSource) -> Result<(), Failure> {
    compile(condition, source).map(drop).map_err(|fault| {
        let error = invalid(format!("the condition of route {name:?}: {fault}"));
        Failure::with_details(error, compilation_errors(&fault))
    })
}

/// The fallback route in the shape of a route.
fn fallback_as_route(fallback: &FallbackRoute) -> Route {
    Route {
        name: holdfast_routing::table::FALLBACK.to_owned(),
        source: RouteSource::DeviceMessages,
        condition: fallback.condition.clone(),
        endpoint_names: vec![EVENTS.to_owned()],
        is_enabled: fallback.is_enabled,
    }
}

/// Whether an endpoint with this name can be named by routes.
fn knows_endpoint(definition: &RoutingDefinition, name: &str) -> bool {
    name.eq_ignore_ascii_case(EVENTS)
        || definition
            .endpoints
            .iter()
            .any(|endpoint| endpoint.name.eq_ignore_ascii_case(name))
}
