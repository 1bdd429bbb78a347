//! Trying a condition on the newest messages of the log.

use std::collections::HashMap;

use axum::body::Bytes;
use axum::extract::State;
use holdfast_model::event::{EventBlock, EventView};
use holdfast_model::routing::{EVENTS, FallbackRoute, Route, RoutingDefinition};
use holdfast_model::{Error, ErrorCode, Identity, Timestamp};
use holdfast_ports::event_log::LogError;
use holdfast_query::route::Outcome;
use holdfast_routing::RouteTable;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::routes::source;
use super::trial::{spelled, stored_route};
use super::{check_condition, invalid};
use crate::Api;
use crate::extract::body;
use crate::reply::{Failure, Reply, json as answer};

/// Messages tried when nothing is asked for.
const COUNT: usize = 100;
/// Most messages tried.
const COUNT_MAX: usize = 1_000;
/// Bytes of the log held at once.
const READ_BYTES: usize = 256 * 1024;

/// What to try.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TestLive {
    /// Name of a route that is stored; or give `condition`.
    route: Option<String>,
    /// A condition.
    condition: Option<String>,
    /// Its source; default `DeviceMessages`.
    source: Option<String>,
    /// How many of the newest stored messages to try, at most 1,000; default 100.
    count: Option<usize>,
}

/// What a condition says about stored messages.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LiveResult {
    /// Messages tried.
    tested: usize,
    /// Those for which the condition is true.
    matched: usize,
    /// Those for which it is undefined.
    undefined: usize,
    /// Each message that was tried, newest first. `$twin` conditions see the twin as it is now.
    messages: Vec<LiveMessage>,
}

/// What a condition says about a stored message.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LiveMessage {
    partition: u16,
    sequence_number: u64,
    /// ISO 8601.
    enqueued_time: String,
    device_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    module_id: Option<String>,
    /// `true`, `false` or `undefined`.
    result: &'static str,
    #[serde(skip)]
    at: Timestamp,
}

/// Tries a condition on the newest stored messages. Messages that went nowhere are not stored. Right: RegistryRead.
#[utoipa::path(post, path = "/holdfast/v1/routing/routes/$testlive", tag = "Routing", request_body = TestLive,
    responses((status = 200, body = LiveResult)))]
pub(crate) async fn test_live(State(api): State<Api>, bytes: Bytes) -> Reply {
    let wanted: TestLive = body(&bytes)?;
    let route = tried(&api, &wanted)?;
    let count = wanted.count.unwrap_or(COUNT).min(COUNT_MAX);
    let definition = RoutingDefinition {
        fallback_route: FallbackRoute {
            is_enabled: false,
            ..FallbackRoute::default()
        },
        routes: vec![route.clone()],
        ..RoutingDefinition::default()
    };
    let table = RouteTable::compile(&definition).map_err(|fault| invalid(fault.to_string()))?;
    let mut trial = Trial {
        api: &api,
        table,
        route,
        twins: HashMap::new(),
    };
    let mut messages = Vec::new();
    for partition in 0..api.log.partitions() {
        messages.extend(trial.newest_of(partition, count).await?);
    }
    messages.sort_by_key(|message| std::cmp::Reverse((message.at, message.sequence_number)));
    messages.truncate(count);
    let number = |result| messages.iter().filter(|message| message.result == result).count();
    answer(&LiveResult {
        tested: messages.len(),
        matched: number(spelled(Outcome::True)),
        undefined: number(spelled(Outcome::Undefined)),
        messages,
    })
}

/// The route to try, enabled and to the built-in endpoint.
fn tried(api: &Api, wanted: &TestLive) -> Result<Route, Failure> {
    let route = match (&wanted.route, &wanted.condition) {
        (Some(name), None) => stored_route(api, name)?,
        (None, Some(condition)) => {
            let source = source(wanted.source.as_deref().unwrap_or("DeviceMessages"))?;
            check_condition("$testlive", condition, source)?;
            Route {
                name: "$testlive".to_owned(),
                source,
                condition: condition.clone(),
                endpoint_names: Vec::new(),
                is_enabled: true,
            }
        }
        _ => return Err(invalid("give either route, the name of a stored one, or condition").into()),
    };
    Ok(Route {
        is_enabled: true,
        endpoint_names: vec![EVENTS.to_owned()],
        ..route
    })
}

struct Trial<'a> {
    api: &'a Api,
    table: RouteTable,
    route: Route,
    twins: HashMap<String, Value>,
}

impl Trial<'_> {
    /// Those of our source among the last `count` events of a partition, oldest first.
    async fn newest_of(&mut self, partition: u16, count: usize) -> Result<Vec<LiveMessage>, Failure> {
        let info = self
            .api
            .log
            .info(partition)
            .map_err(|error| log_failure(&error))?;
        let mut next = info.first.max(info.next.saturating_sub(count as u64));
        let mut tried = Vec::new();
        while next < info.next {
            let blocks = self.api.log.read(partition, next, READ_BYTES).await;
            let blocks = blocks.map_err(|error| log_failure(&error))?;
            if blocks.is_empty() {
                break;
            }
            for block in &blocks {
                self.read_twins(block).await?;
                let events = block.events().map_while(Result::ok);
                tried.extend(
                    events
                        .filter(|event| event.sequence_number >= next)
                        .filter(|event| event.source == self.route.source.event())
                        .map(|event| self.try_on(&event)),
                );
                next = next.max(block.end_sequence_number());
            }
        }
        Ok(tried)
    }

    async fn read_twins(&mut self, block: &EventBlock) -> Result<(), Failure> {
        if !self.table.asks_for_twins() {
            return Ok(());
        }
        // All events of a block have one sender.
        let sender = block
            .events()
            .find_map(Result::ok)
            .map(|event| event.identity.to_owned());
        let Some(sender) = sender.filter(|sender| !self.twins.contains_key(sender)) else {
            return Ok(());
        };
        let document = match Identity::parse(&sender) {
            Ok(identity) => match self.api.hub.twin(&identity).await {
                Ok(twin) => json!({
                    "tags": twin.tags,
                    "properties": {"desired": twin.desired.properties, "reported": twin.reported.properties},
                }),
                // Deleted meanwhile.
                Err(_) => Value::Null,
            },
            Err(_) => Value::Null,
        };
        self.twins.insert(sender, document);
        Ok(())
    }

    fn try_on(&self, event: &EventView<'_>) -> LiveMessage {
        let decision = self.table.decide(event, self.twins.get(event.identity));
        let outcome = match (decision.endpoints.is_empty(), decision.undefined) {
            (false, _) => Outcome::True,
            (true, true) => Outcome::Undefined,
            (true, false) => Outcome::False,
        };
        LiveMessage {
            partition: event.partition,
            sequence_number: event.sequence_number,
            enqueued_time: event.enqueued_at.to_string(),
            device_id: event.device_id().to_owned(),
            module_id: event.module_id().map(str::to_owned),
            result: spelled(outcome),
            at: event.enqueued_at,
        }
    }
}

fn log_failure(error: &LogError) -> Failure {
    Error::new(ErrorCode::ServiceUnavailable, error.to_string()).into()
}
