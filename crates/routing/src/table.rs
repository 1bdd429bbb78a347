//! The route table: definitions checked and compiled, and the decision which endpoints an event goes to (languages.md
//! 2.1, 2.6).

use std::collections::HashMap;

use holdfast_model::event::{EndpointSet, EventSource, EventView};
use holdfast_model::routing::{EVENTS, Route, RouteSource, RoutingDefinition};
use holdfast_query::error::QueryError;
use holdfast_query::route::{Condition, Outcome, Place, Symbols};
use serde_json::Value as Json;

use crate::enrich::BuiltIn;
use crate::message::Message;

/// A route that cannot be put into force.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RouteFault {
    /// Its condition does not compile.
    #[error("the condition of route {route:?}: {fault}")]
    Condition {
        /// The route's name, `$fallback` for the fallback route.
        route: String,
        /// What is wrong, and where.
        fault: QueryError,
    },
    /// It names an endpoint that there is not.
    #[error("route {route:?} names the endpoint {endpoint:?}, which does not exist")]
    Endpoint {
        /// The route's name.
        route: String,
        /// The endpoint's.
        endpoint: String,
    },
}

/// Where an event goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// All endpoints of the routes that it takes.
    pub endpoints: EndpointSet,
    /// Whether a condition was undefined for it; worth a line in the log, since that is rarely meant.
    pub undefined: bool,
}

/// Compiled routes. Immutable: a changed definition makes a new table.
#[derive(Clone, Debug)]
pub struct RouteTable {
    symbols: Symbols,
    sources: HashMap<EventSource, Routes>,
    fallback: Option<Condition>,
    built_in: BuiltIn,
}

#[derive(Clone, Debug, Default)]
struct Routes {
    compiled: Vec<Compiled>,
    /// The decision for every event, if no condition asks for anything.
    constant: Option<EndpointSet>,
}

#[derive(Clone, Debug)]
struct Compiled {
    condition: Condition,
    endpoints: EndpointSet,
}

/// Name of the fallback route in messages.
pub const FALLBACK: &str = "$fallback";

impl RouteTable {
    /// Compiles the enabled routes of a definition, and checks the others too.
    ///
    /// # Errors
    /// The first route that is wrong.
    pub fn compile(definition: &RoutingDefinition) -> Result<Self, RouteFault> {
        let mut symbols = Symbols::default();
        let mut sources: HashMap<EventSource, Routes> = HashMap::new();
        for route in &definition.routes {
            // A route that is off must not make others slower.
            let mut unused = Symbols::default();
            let symbols = if route.is_enabled {
                &mut symbols
            } else {
                &mut unused
            };
            let compiled = Compiled {
                condition: condition(&route.name, &route.condition, route.source, symbols)?,
                endpoints: endpoints(route, definition)?,
            };
            if route.is_enabled {
                sources
                    .entry(route.source.event())
                    .or_default()
                    .compiled
                    .push(compiled);
            }
        }
        let given = &definition.fallback_route;
        let mut unused = Symbols::default();
        let fallback_symbols = if given.is_enabled {
            &mut symbols
        } else {
            &mut unused
        };
        let source = RouteSource::DeviceMessages;
        let fallback = condition(FALLBACK, &given.condition, source, fallback_symbols)?;
        let mut table = RouteTable {
            symbols,
            sources,
            fallback: given.is_enabled.then_some(fallback),
            built_in: BuiltIn::new(&definition.enrichments),
        };
        table.sources.entry(EventSource::Telemetry).or_default();
        table.note_constants();
        Ok(table)
    }

    fn note_constants(&mut self) {
        for (source, routes) in &mut self.sources {
            let fallback = match (&self.fallback, source) {
                (Some(fallback), EventSource::Telemetry) => match fallback.constant() {
                    Some(Outcome::True) => Some(EndpointSet::EVENTS),
                    Some(_) => Some(EndpointSet::NONE),
                    None => None,
                },
                _ => Some(EndpointSet::NONE),
            };
            let taken = routes
                .compiled
                .iter()
                .try_fold(EndpointSet::NONE, |taken, route| {
                    match route.condition.constant()? {
                        Outcome::True => Some(taken.union(route.endpoints)),
                        Outcome::False => Some(taken),
                        // Each such event is worth a line.
                        Outcome::Undefined => None,
                    }
                });
            routes.constant = match taken {
                Some(taken) if taken.is_empty() => fallback,
                taken => taken,
            };
        }
    }

    /// Where every event of a source goes, if that is so.
    #[must_use]
    pub fn constant(&self, source: EventSource) -> Option<EndpointSet> {
        match self.sources.get(&source) {
            Some(routes) => routes.constant,
            None => Some(EndpointSet::NONE),
        }
    }

    /// Whether events of a source are to be made at all: telemetry always, others while an enabled route takes them.
    #[must_use]
    pub fn wants(&self, source: EventSource) -> bool {
        self.sources.contains_key(&source)
    }

    /// Whether events of any source but telemetry are to be made.
    #[must_use]
    pub fn wants_hub_events(&self) -> bool {
        // Telemetry is always there.
        self.sources.len() > 1
    }

    /// Whether a condition, or an enrichment of the built-in endpoint, asks for the sender's twin.
    #[must_use]
    pub fn asks_for_twins(&self) -> bool {
        !self.symbols.twin_paths().is_empty() || self.built_in.asks_for_twins()
    }

    /// The enrichments of the built-in endpoint.
    #[must_use]
    pub fn built_in(&self) -> &BuiltIn {
        &self.built_in
    }

    /// Where an event goes. `twin` is the document of its sender, with `tags` and `properties`; without it what
    /// conditions ask of it is undefined. Pure.
    #[must_use]
    pub fn decide(&self, event: &EventView<'_>, twin: Option<&Json>) -> Decision {
        let nothing = Decision {
            endpoints: EndpointSet::NONE,
            undefined: false,
        };
        let Some(routes) = self.sources.get(&event.source) else {
            return nothing;
        };
        if let Some(endpoints) = routes.constant {
            return Decision { endpoints, ..nothing };
        }
        let message = Message::new(event, &self.symbols, twin);
        let mut decision = nothing;
        for route in &routes.compiled {
            match route.condition.decide(&message) {
                Outcome::True => decision.endpoints = decision.endpoints.union(route.endpoints),
                Outcome::False => {}
                Outcome::Undefined => decision.undefined = true,
            }
        }
        let fallback = self
            .fallback
            .as_ref()
            .filter(|_| decision.endpoints.is_empty() && event.source == EventSource::Telemetry);
        match fallback.map(|fallback| fallback.decide(&message)) {
            Some(Outcome::True) => decision.endpoints = EndpointSet::EVENTS,
            Some(Outcome::Undefined) => decision.undefined = true,
            Some(Outcome::False) | None => {}
        }
        decision
    }
}

/// Decides about the events of one append: one sender, one time. Telemetry of a device mostly has the same properties
/// again and again, so the last decision is kept and holds for the next event unless a condition looks into bodies.
#[derive(Debug)]
pub struct Decider<'t, 'e> {
    table: &'t RouteTable,
    twin: Option<&'t Json>,
    last: Option<(&'e [u8], Decision)>,
}

impl<'t, 'e> Decider<'t, 'e> {
    /// A decider for one append. `twin` as in [`RouteTable::decide`].
    #[must_use]
    pub fn new(table: &'t RouteTable, twin: Option<&'t Json>) -> Self {
        Decider {
            table,
            twin,
            last: None,
        }
    }

    /// Where the next event goes.
    pub fn decide(&mut self, event: &EventView<'e>) -> Decision {
        if let Some((fields, decision)) = self.last
            && fields == event.encoded_fields()
        {
            return decision;
        }
        let decision = self.table.decide(event, self.twin);
        if self.table.symbols.body_paths().is_empty() && event.source == EventSource::Telemetry {
            self.last = Some((event.encoded_fields(), decision));
        }
        decision
    }
}

fn condition(
    route: &str,
    text: &str,
    source: RouteSource,
    symbols: &mut Symbols,
) -> Result<Condition, RouteFault> {
    let place = Place {
        twin_changes: source == RouteSource::TwinChangeEvents,
        no_twin: false,
    };
    Condition::compile(text, symbols, place).map_err(|fault| RouteFault::Condition {
        route: route.to_owned(),
        fault,
    })
}

fn endpoints(route: &Route, definition: &RoutingDefinition) -> Result<EndpointSet, RouteFault> {
    let mut set = EndpointSet::NONE;
    for name in &route.endpoint_names {
        let known = definition
            .endpoints
            .iter()
            .find(|endpoint| endpoint.name.eq_ignore_ascii_case(name));
        set = set.union(match known {
            Some(endpoint) => EndpointSet::of(endpoint.number),
            None if name.eq_ignore_ascii_case(EVENTS) => EndpointSet::EVENTS,
            None => {
                return Err(RouteFault::Endpoint {
                    route: route.name.clone(),
                    endpoint: name.clone(),
                });
            }
        });
    }
    Ok(set)
}

#[cfg(test)]
mod tests;
