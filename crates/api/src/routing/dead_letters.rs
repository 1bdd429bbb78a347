//! What endpoints did not take: listed with the events, cleared, and put back.

use std::collections::BTreeMap;

use axum::extract::{Path, Query, State};
use holdfast_model::event::{EndpointSet, EventBlock, EventField, EventView, Origin, Records};
use holdfast_model::{Error, ErrorCode, Identity};
use holdfast_ports::clock::{Clock, SystemClock};
use holdfast_ports::dead_letters::{DEAD_LETTERS_MAX, DeadLetter};
use holdfast_ports::event_log::{AppendTicket, LogError, durable};
use holdfast_wire::event_json::EventJson;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{endpoints, not_found};
use crate::Api;
use crate::consumer_groups::unavailable;
use crate::reply::{Failure, Reply, json};

/// Letters listed when nothing is asked for.
const TOP: usize = 100;
/// Most letters listed at once.
const TOP_MAX: usize = 1_000;
/// Bytes of the answer above which no further event is put into it.
const EVENT_BYTES_MAX: usize = 16 << 20;
/// Events put back before waiting until they are durable.
const REPLAY_STEP: usize = 100;

/// How many letters to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Top {
    /// Newest letters to list, at most 1,000; default 100.
    top: Option<usize>,
}

/// An event that an endpoint did not take.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeadLetterDto {
    partition: u16,
    sequence_number: u64,
    device_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    module_id: Option<String>,
    /// When it was given up, ISO 8601.
    time: String,
    /// What the endpoint said.
    reason: String,
    /// The event as the event stream has it; null when the log does not keep it any more, or the answer is full.
    #[schema(value_type = Option<Object>)]
    event: Option<Value>,
}

/// What clearing has done.
#[derive(Serialize, ToSchema)]
pub(crate) struct Cleared {
    /// Letters removed.
    cleared: u64,
}

/// What a replay has done.
#[derive(Serialize, ToSchema)]
pub(crate) struct Replayed {
    /// Events that were put back and whose letters were removed.
    replayed: u64,
    /// Letters whose events the log does not keep any more; they stay.
    gone: u64,
}

/// Lists events that an endpoint did not take, newest first. Right: RegistryRead.
#[utoipa::path(get, path = "/holdfast/v1/routing/endpoints/{name}/deadLetters", tag = "Routing", params(Top),
    responses((status = 200, body = Vec<DeadLetterDto>), (status = 404, description = "no such endpoint")))]
pub(crate) async fn list(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(wanted): Query<Top>,
) -> Reply {
    let (name, _) = endpoint(&api, &name)?;
    let top = wanted.top.unwrap_or(TOP).min(TOP_MAX);
    let mut listed = Vec::new();
    let mut bytes = 0;
    for letter in letters(&api, &name, top).await? {
        let event = if bytes < EVENT_BYTES_MAX {
            let block = stored(&api, &letter).await?;
            block
                .as_ref()
                .and_then(|block| event_of(block, &letter))
                .and_then(|event| {
                    bytes += event.body.len() + event.encoded_fields().len();
                    serde_json::to_value(EventJson(&event)).ok()
                })
        } else {
            None
        };
        let (device_id, module_id) = match letter.identity.split_once('/') {
            Some((device, module)) => (device.to_owned(), Some(module.to_owned())),
            None => (letter.identity.clone(), None),
        };
        listed.push(DeadLetterDto {
            partition: letter.partition,
            sequence_number: letter.sequence_number,
            device_id,
            module_id,
            time: letter.at.to_string(),
            reason: letter.reason,
            event,
        });
    }
    json(&listed)
}

/// Forgets what an endpoint did not take. The events stay in the log for as long as it keeps them. Right: RegistryWrite.
#[utoipa::path(delete, path = "/holdfast/v1/routing/endpoints/{name}/deadLetters", tag = "Routing",
    responses((status = 200, body = Cleared), (status = 404, description = "no such endpoint")))]
pub(crate) async fn clear(State(api): State<Api>, Path(name): Path<String>) -> Reply {
    let (name, _) = endpoint(&api, &name)?;
    let cleared = api.routing.dead_letters.clear_dead_letters(&name).await;
    json(&Cleared {
        cleared: cleared.map_err(|error| unavailable(&error))?,
    })
}

/// Puts events back that an endpoint did not take, oldest first: each stands once more at the end of its partition, for
/// this endpoint only, with a new sequence number and time. Right: RegistryWrite.
#[utoipa::path(post, path = "/holdfast/v1/routing/endpoints/{name}/deadLetters/replay", tag = "Routing",
    responses((status = 200, body = Replayed), (status = 404, description = "no such endpoint")))]
pub(crate) async fn replay(State(api): State<Api>, Path(name): Path<String>) -> Reply {
    let (name, number) = endpoint(&api, &name)?;
    let mut waiting = letters(&api, &name, DEAD_LETTERS_MAX).await?;
    waiting.reverse();
    let mut outcome = Replayed { replayed: 0, gone: 0 };
    for step in waiting.chunks(REPLAY_STEP) {
        let mut tickets: BTreeMap<u16, AppendTicket> = BTreeMap::new();
        let mut put_back = Vec::new();
        let mut busy = false;
        for letter in step {
            let block = stored(&api, letter).await?;
            match block.as_ref().and_then(|block| event_of(block, letter)) {
                None => outcome.gone += 1,
                Some(event) => match append(&api, &event, number) {
                    Ok(ticket) => {
                        tickets.insert(ticket.partition, ticket);
                        put_back.push((letter.partition, letter.sequence_number));
                    }
                    Err(LogError::Busy) => {
                        busy = true;
                        break;
                    }
                    Err(error) => return Err(log_failure(&error)),
                },
            }
        }
        for ticket in tickets.into_values() {
            durable(api.log.as_ref(), ticket)
                .await
                .map_err(|error| log_failure(&error))?;
        }
        outcome.replayed += put_back.len() as u64;
        let removed = api
            .routing
            .dead_letters
            .remove_dead_letters(&name, put_back)
            .await;
        removed.map_err(|error| unavailable(&error))?;
        if busy {
            let text = format!(
                "{} events were put back, then the log was busy; ask again for the rest",
                outcome.replayed
            );
            return Err(Error::new(ErrorCode::ServiceUnavailable, text).into());
        }
    }
    json(&outcome)
}

/// Name and number of an endpoint.
fn endpoint(api: &Api, name: &str) -> Result<(String, u8), Failure> {
    let definition = api.hub.routing().borrow().clone();
    let known = endpoints::find(&definition, name).ok_or_else(|| not_found("endpoint", name))?;
    Ok((known.name.clone(), known.number))
}

async fn letters(api: &Api, name: &str, limit: usize) -> Result<Vec<DeadLetter>, Failure> {
    let letters = api.routing.dead_letters.dead_letters(name, limit).await;
    letters.map_err(|error| unavailable(&error))
}

/// The block that holds the event of a letter.
async fn stored(api: &Api, letter: &DeadLetter) -> Result<Option<EventBlock>, Failure> {
    let blocks = api.log.read(letter.partition, letter.sequence_number, 1).await;
    let blocks = blocks.map_err(|error| log_failure(&error))?;
    Ok(blocks.into_iter().next())
}

fn event_of<'a>(block: &'a EventBlock, letter: &DeadLetter) -> Option<EventView<'a>> {
    let mut events = block.events();
    events.skip_to(letter.sequence_number);
    let event = events.next()?.ok()?;
    (event.sequence_number == letter.sequence_number).then_some(event)
}

/// Appends a copy of an event for one endpoint.
fn append(api: &Api, event: &EventView<'_>, number: u8) -> Result<AppendTicket, LogError> {
    let mut records = Records::new();
    let mut record = records.record();
    for field in event.fields() {
        match field {
            EventField::System(property, value) => record.system(property, value),
            EventField::Application(key, value) => record.property(key, value),
        }
    }
    // It was within the limit when it came.
    let _ = record.finish(event.body);
    let identity = Identity::parse(event.identity).map_err(|error| {
        LogError::Failed(format!("an event has the sender {:?}: {error}", event.identity))
    })?;
    let origin = Origin {
        source: event.source,
        identity,
        generation_id: event.generation_id,
        auth: event.auth,
    };
    let run = records.run(EndpointSet::of(number));
    api.log
        .append_runs(event.partition, &origin, &[run], SystemClock::new().now())
}

fn log_failure(error: &LogError) -> Failure {
    Error::new(ErrorCode::ServiceUnavailable, error.to_string()).into()
}
