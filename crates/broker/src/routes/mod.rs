//! Routes: which messages go where (edge.md 6.4).

pub(crate) mod definition;
mod lookup;

use std::fmt::Write as _;
use std::time::Duration;

use holdfast_model::event::{EventSource, EventView};
use holdfast_model::message::SystemProperty;
use holdfast_query::route::{Condition, EdgeRoute, Outcome, Sink, Symbols};
use smallvec::SmallVec;

use crate::queue::{QueueId, QueueKey};

pub use definition::{Definition, RouteDefinition};
pub(crate) use lookup::Incoming;

/// Most routes of an edge hub.
pub const ROUTES_MAX: usize = 500;

/// Where a copy of a message goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    pub(crate) queue: QueueId,
    /// How long it lives; `None` for ever.
    pub(crate) time_to_live: Option<Duration>,
}

/// All copies of a message: one for each endpoint.
pub(crate) type Targets = SmallVec<[Target; 2]>;

/// Compiled routes.
#[derive(Default)]
pub(crate) struct RouteTable {
    symbols: Symbols,
    routes: Vec<Route>,
}

struct Route {
    source: String,
    condition: Condition,
    /// What the condition says of every message, if it does.
    constant: Option<Outcome>,
    /// Number of its endpoint among those of the table.
    endpoint: usize,
    priority: u32,
    target: Target,
}

/// The name of a sink's queues.
pub(crate) fn queue_name(sink: &Sink) -> String {
    match sink {
        Sink::Upstream => crate::UPSTREAM.to_owned(),
        Sink::Input { module, input } => format!("input/{module}/{input}"),
    }
}

impl RouteTable {
    /// Compiles what can be compiled; the rest is told. `queue` gives the queue of a key.
    pub(crate) fn compile(
        definition: &Definition,
        mut queue: impl FnMut(&QueueKey) -> QueueId,
    ) -> (Self, Vec<String>) {
        let mut table = RouteTable::default();
        let mut endpoints: Vec<Sink> = Vec::new();
        let mut faults = Vec::new();
        for route in &definition.routes {
            if table.routes.len() >= ROUTES_MAX {
                faults.push(format!("there are more than {ROUTES_MAX} routes"));
                break;
            }
            let compiled = match EdgeRoute::compile(&route.text, &mut table.symbols) {
                Ok(compiled) => compiled,
                Err(error) => {
                    faults.push(format!("route {}: {error}", route.name));
                    continue;
                }
            };
            let name = queue_name(&compiled.sink);
            if name.len() > crate::queue::NAME_BYTES_MAX {
                faults.push(format!("route {}: the endpoint's name is too long", route.name));
                continue;
            }
            let endpoint = endpoints
                .iter()
                .position(|known| *known == compiled.sink)
                .unwrap_or_else(|| {
                    endpoints.push(compiled.sink.clone());
                    endpoints.len() - 1
                });
            table.routes.push(Route {
                source: compiled.source,
                constant: compiled.condition.constant(),
                condition: compiled.condition,
                endpoint,
                priority: route.priority,
                target: Target {
                    queue: queue(&QueueKey {
                        name,
                        priority: route.priority,
                    }),
                    time_to_live: route.time_to_live.or(definition.time_to_live),
                },
            });
        }
        (table, faults)
    }

    /// Where a message goes. `path` is that of [`path_of`]; `number` is the number of its id. True beside the answer when it
    /// is the same for every message of that path.
    pub(crate) fn decide(
        &self,
        event: &EventView<'_>,
        path: &str,
        number: u128,
        internal: bool,
    ) -> (Targets, bool) {
        let incoming = Incoming::new(event, &self.symbols, number, internal);
        let mut best: SmallVec<[(usize, u32, Target); 2]> = SmallVec::new();
        let mut constant = true;
        for route in self.routes.iter().filter(|route| covers(&route.source, path)) {
            let outcome = route.constant.unwrap_or_else(|| {
                constant = false;
                route.condition.decide(&incoming)
            });
            if outcome != Outcome::True {
                continue;
            }
            match best.iter_mut().find(|(endpoint, ..)| *endpoint == route.endpoint) {
                None => best.push((route.endpoint, route.priority, route.target)),
                Some(known) if route.priority < known.1 => {
                    *known = (route.endpoint, route.priority, route.target);
                }
                Some(_) => {}
            }
        }
        (best.into_iter().map(|(_, _, target)| target).collect(), constant)
    }
}

/// Messages of the edge hub's own making are taken only by routes that name their source: `/*` was written for messages of
/// clients.
fn covers(source: &str, path: &str) -> bool {
    path.starts_with(source)
        && (source != "/" || !path.starts_with(LIFECYCLE) && !path.starts_with(CONNECTION))
}

const LIFECYCLE: &str = "/devicelifecycleevents/";
const CONNECTION: &str = "/deviceconnectionstateevents/";

/// Writes the path by which sources name a message, in lower case.
pub(crate) fn path_of(source: EventSource, module: Option<&str>, output: Option<&str>, path: &mut String) {
    path.clear();
    match source {
        EventSource::TwinChange => path.push_str("/twinchangenotifications/"),
        EventSource::DeviceLifecycle => path.push_str(LIFECYCLE),
        EventSource::ConnectionState => path.push_str(CONNECTION),
        _ => {
            path.push_str("/messages/");
            if let Some(module) = module {
                let _ = write!(path, "modules/{module}/");
                if let Some(output) = output {
                    let _ = write!(path, "outputs/{output}/");
                }
                path.make_ascii_lowercase();
            }
        }
    }
}

/// The output that a message was sent to.
pub(crate) fn output_of<'a>(event: &EventView<'a>) -> Option<&'a str> {
    event
        .system(SystemProperty::OutputName)
        .filter(|output| !output.is_empty())
}
