//! Device actions: an event is answered by a direct method or a twin patch, on the device or module that it is of, on
//! given ones, or on all that a condition selects.
//!
//! A patch is made at least once, a method is called at most once per delivery. What cannot be done (unknown device,
//! device not connected, no answer) refuses the event; only a hub that is busy or not available makes it come again. How
//! loops are bounded stands in [`bounds`].

mod bounds;
mod config;
mod request;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

pub use bounds::Actions;
use bounds::Rate;
use bytes::Bytes;
use config::{Act, Targets};
pub use config::{ActionConfig, MethodAction, PatchAction};
use holdfast_model::event::EventSource;
use holdfast_model::method::MethodCall;
use holdfast_model::routing::EndpointDefinition;
use holdfast_model::twin::TwinChange;
use holdfast_model::{Error, ErrorCode, Identity};
use holdfast_observe::tracing;
use holdfast_ports::BoxFuture;
use holdfast_ports::clock::Clock;
use holdfast_ports::endpoint::{BatchLimits, DeliveryError, Endpoint, Outbound};
use request::{Template, Values};
use serde_json::{Map, Value};
use tokio::task::JoinSet;

use super::{Environment, Kind, described};

/// The kind's row in the table.
pub(super) const KIND: Kind = Kind {
    name: "action",
    secrets: &[],
    check: ActionConfig::check,
    make,
    described: described::<ActionConfig>,
};

/// One event at a time: what one event asks for may take almost as long as a delivery may.
const EVENTS_MAX: usize = 1;
/// Most bytes of a batch.
const BYTES_MAX: usize = 1 << 20;
/// Longest that one event's actions take: connect and response time-outs of a method, and a little more.
const EVENT_TIME_MAX: Duration = Duration::from_secs(22);

fn make(definition: &EndpointDefinition, environment: &Environment) -> Result<Arc<dyn Endpoint>, String> {
    let endpoint = ActionEndpoint::new(&definition.settings, environment)?;
    Ok(Arc::new(endpoint))
}

/// An action.
pub(crate) struct ActionEndpoint {
    config: ActionConfig,
    act: Act,
    targets: Targets,
    actions: Actions,
    rate: Rate,
    clock: Arc<dyn Clock>,
}

/// An action with everything filled in.
#[derive(Clone)]
enum Ready {
    Call(MethodCall),
    Patch(TwinChange),
}

impl ActionEndpoint {
    pub(crate) fn new(settings: &Value, environment: &Environment) -> Result<Self, String> {
        let config = ActionConfig::read(settings)?;
        let actions = environment.actions.clone();
        Ok(ActionEndpoint {
            act: config.act()?,
            targets: config.targets()?,
            actions: actions.ok_or("this program cannot act on devices")?,
            rate: Rate::new(config.rate_per_minute),
            clock: environment.clock.clone(),
            config,
        })
    }

    async fn deliver_all(&self, batch: &[Outbound<'_>]) -> Result<(), DeliveryError> {
        for (at, outbound) in batch.iter().enumerate() {
            self.answer(outbound).await.map_err(|error| error.after(at))?;
        }
        Ok(())
    }

    /// Does what one event asks for.
    async fn answer(&self, outbound: &Outbound<'_>) -> Result<(), DeliveryError> {
        let event = &outbound.event;
        let values = Values::of(outbound);
        let hops = match (event.source, values.twin_version()) {
            (EventSource::TwinChange, Some(version)) => self.actions.trail.hops(event.identity, version),
            _ => 0,
        };
        if hops > self.config.hops_max {
            tracing::debug!(
                identity = event.identity,
                hops,
                "a twin change of an action is not answered again"
            );
            return Ok(());
        }
        let targets = self.find(outbound).await?;
        let ready = self.ready(&values);
        let now = self.clock.now();
        let mut under_way = JoinSet::new();
        let mut failed = Vec::new();
        for target in &targets {
            if !self.rate.admit(target.as_str(), now) {
                let most = self.config.rate_per_minute;
                failed.push((false, format!("{target}: more than {most} actions in a minute")));
                continue;
            }
            under_way.spawn(act(self.actions.clone(), target.clone(), ready.clone(), hops + 1));
        }
        let all = async {
            while let Some(done) = under_way.join_next().await {
                match done {
                    Ok(None) => {}
                    Ok(Some(failure)) => failed.push(failure),
                    Err(error) => failed.push((true, error.to_string())),
                }
            }
        };
        let in_time = tokio::time::timeout(EVENT_TIME_MAX, all).await.is_ok();
        if !in_time {
            failed.push((false, format!("not done within {} s", EVENT_TIME_MAX.as_secs())));
        }
        let Some((_, first)) = failed.first() else {
            return Ok(());
        };
        let message = match (failed.len(), targets.len()) {
            (1, 1) => first.clone(),
            (failed, all) => format!("{failed} of {all} targets failed, such as {first}"),
        };
        // Coming again would call methods twice at those that were reached.
        if failed.iter().all(|(passing, _)| *passing) && failed.len() == targets.len() {
            return Err(DeliveryError::retry(message));
        }
        Err(DeliveryError::refused(message))
    }

    async fn find(&self, outbound: &Outbound<'_>) -> Result<Vec<Identity>, DeliveryError> {
        match &self.targets {
            Targets::These(identities) => Ok(identities.clone()),
            Targets::Source => {
                let identity = outbound.event.identity;
                let parsed = Identity::parse(identity)
                    .ok()
                    .filter(|_| outbound.event.source.concerns_identity());
                let refused = || DeliveryError::refused(format!("{identity:?} is no device or module"));
                parsed.map(|identity| vec![identity]).ok_or_else(refused)
            }
            Targets::Query(condition) => {
                let most = self.config.targets_max;
                let found = self.actions.port.select(condition, most + 1).await;
                let found = found.map_err(|error| {
                    let text = format!("query: {}", error.message);
                    if passes(&error) {
                        DeliveryError::retry(text)
                    } else {
                        DeliveryError::refused(text)
                    }
                })?;
                if found.len() > most {
                    return Err(DeliveryError::refused(format!(
                        "query selects more than {most} targets"
                    )));
                }
                Ok(found)
            }
        }
    }

    fn ready(&self, values: &Values) -> Ready {
        match &self.act {
            Act::Call { method, payload } => {
                let payload = match payload.fill(values) {
                    Value::Null => Bytes::new(),
                    payload => payload.to_string().into(),
                };
                Ready::Call(MethodCall {
                    name: method.name.clone(),
                    payload,
                    connect_timeout: Duration::from_secs(method.connect_timeout_seconds),
                    response_timeout: Duration::from_secs(method.response_timeout_seconds),
                })
            }
            Act::Patch { tags, desired } => {
                let section = |template: &Option<Template>| -> Option<Map<String, Value>> {
                    match template.as_ref()?.fill(values) {
                        Value::Object(members) => Some(members),
                        _ => None,
                    }
                };
                Ready::Patch(TwinChange {
                    tags: section(tags),
                    desired: section(desired),
                })
            }
        }
    }
}

/// Acts on one target; a failure with whether it passes by itself.
async fn act(actions: Actions, target: Identity, ready: Ready, hops: u8) -> Option<(bool, String)> {
    let outcome = match ready {
        Ready::Call(call) => actions.port.call(&target, call).await.map(drop),
        Ready::Patch(change) => actions.port.patch(&target, change).await.map(|version| {
            actions.trail.note(target.as_str(), version, hops);
        }),
    };
    let error = outcome.err()?;
    Some((passes(&error), format!("{target}: {}", error.message)))
}

fn passes(error: &Error) -> bool {
    matches!(
        error.code,
        ErrorCode::ThrottlingException | ErrorCode::ServiceUnavailable
    )
}

impl Endpoint for ActionEndpoint {
    fn limits(&self) -> BatchLimits {
        BatchLimits {
            events_max: EVENTS_MAX,
            bytes_max: BYTES_MAX,
            wait_max: Duration::ZERO,
        }
    }

    fn deliver<'a>(&'a self, batch: &'a [Outbound<'a>]) -> BoxFuture<'a, Result<(), DeliveryError>> {
        Box::pin(self.deliver_all(batch))
    }
}
