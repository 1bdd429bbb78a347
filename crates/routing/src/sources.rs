//! Events that the hub itself makes of what happens in it, while an enabled route takes them (languages.md 2.6, 6.).
//!
//! A [`Teller`] makes the events of one cause; they go through the outbox to the event log, where [`decide`] says to
//! which endpoints. [`holdfast_wire::hub_event`] has their form.

use std::sync::Arc;

use holdfast_dtdl::change::difference;
use holdfast_dtdl::view::{SectionView, digital_twin};
use holdfast_model::event::{AuthMethod, EndpointSet, EventSource, Origin};
use holdfast_model::job::Job;
use holdfast_model::registry::IdentityRecord;
use holdfast_model::twin::{ChangeMode, Section, Twin};
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::outbox::OutboxEvent;
use holdfast_wire::hub_event::{self, Envelope, Operation, Subject};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::table::{Decision, RouteTable};

/// The name of a hub in events and in `$iothubname`: the first label of its host name, as in IoT Hub; of an address all
/// of it.
#[must_use]
pub fn hub_name(host: &str) -> String {
    if host.parse::<std::net::IpAddr>().is_ok() {
        return host.to_owned();
    }
    host.split('.').next().unwrap_or(host).to_owned()
}

/// A twin as conditions and enrichments see it.
#[must_use]
pub fn twin_document(twin: &Twin) -> Value {
    json!({
        "tags": twin.tags,
        "properties": {"desired": twin.desired.properties, "reported": twin.reported.properties},
    })
}

/// Stamps of an event of the hub: nobody has sent it, so there is no generation and no authentication.
#[must_use]
pub fn origin(source: EventSource, identity: Identity) -> Origin {
    Origin {
        source,
        identity,
        generation_id: 0,
        auth: AuthMethod::Hub,
    }
}

/// The twin that came with an event of the outbox, if something asks for it.
#[must_use]
pub fn twin_of(table: &RouteTable, event: &OutboxEvent) -> Option<Value> {
    match &event.twin {
        Some(text) if table.asks_for_twins() => serde_json::from_str(text).ok(),
        _ => None,
    }
}

/// Where an event of the outbox goes, by the routes in force now; `twin` is [`twin_of`] it.
#[must_use]
pub fn decide(table: &RouteTable, event: &OutboxEvent, twin: Option<&Value>, now: Timestamp) -> Decision {
    let origin = origin(event.source, event.identity.clone());
    let mut decision = Decision {
        endpoints: EndpointSet::NONE,
        undefined: false,
    };
    let mut runs = Vec::new();
    event.records.split(&origin, now, &mut runs, |event| {
        decision = table.decide(event, twin);
        decision.endpoints
    });
    decision
}

/// Makes the events of one cause, by the routes in force when it was made.
#[derive(Clone, Debug)]
pub struct Teller {
    table: Arc<RouteTable>,
    hub_name: Arc<str>,
    at: Timestamp,
    correlation_id: String,
}

impl Teller {
    /// A teller of what happens at `at`.
    #[must_use]
    pub fn new(table: Arc<RouteTable>, hub_name: Arc<str>, at: Timestamp) -> Self {
        Teller {
            table,
            hub_name,
            at,
            correlation_id: format!("{:08x}", Uuid::new_v4().as_fields().0),
        }
    }

    /// What is to be told of a changed twin: a twin change, and a change of the digital twin.
    #[must_use]
    pub fn twin_changed(
        &self,
        identity: &Identity,
        mode: ChangeMode,
        before: &Twin,
        after: &Twin,
    ) -> Vec<OutboxEvent> {
        let mut told = Vec::new();
        let document = || Some(twin_document(after));
        if self.table.wants(EventSource::TwinChange)
            && let Some(update) = hub_event::twin_update(before, after)
        {
            let (operation, body) = match mode {
                ChangeMode::Patch => (Operation::UpdateTwin, update),
                ChangeMode::Replace => (
                    Operation::ReplaceTwin,
                    hub_event::twin_replacement(identity, after),
                ),
            };
            told.push(self.event(operation, identity, &body, document));
        }
        if self.table.wants(EventSource::DigitalTwinChange) {
            let patch = difference(&view(identity, before), &view(identity, after));
            if !patch.is_empty() {
                let patch = Value::Array(patch);
                told.push(self.event(Operation::UpdateDigitalTwin, identity, &patch, document));
            }
        }
        told
    }

    /// What is to be told of a new identity.
    #[must_use]
    pub fn created(&self, record: &IdentityRecord, twin: &Twin) -> Vec<OutboxEvent> {
        self.lifecycle(Operation::CreateIdentity, record, twin)
    }

    /// What is to be told of an identity that goes.
    #[must_use]
    pub fn deleted(&self, record: &IdentityRecord, twin: &Twin) -> Vec<OutboxEvent> {
        self.lifecycle(Operation::DeleteIdentity, record, twin)
    }

    fn lifecycle(&self, operation: Operation, record: &IdentityRecord, twin: &Twin) -> Vec<OutboxEvent> {
        if !self.table.wants(EventSource::DeviceLifecycle) {
            return Vec::new();
        }
        let body = hub_event::identity(record, twin);
        vec![self.event(operation, &record.identity, &body, || Some(twin_document(twin)))]
    }

    /// A session that began or ended. `twin` is what conditions may ask for, if it is known.
    #[must_use]
    pub fn connection(
        &self,
        identity: &Identity,
        epoch: u64,
        connected: bool,
        twin: Option<&Value>,
    ) -> OutboxEvent {
        let operation = match connected {
            true => Operation::Connected,
            false => Operation::Disconnected,
        };
        let body = hub_event::connection_state(epoch, connected, self.at);
        self.event(operation, identity, &body, || twin.cloned())
    }

    /// A job that was created.
    #[must_use]
    pub fn job_created(&self, job: &Job) -> OutboxEvent {
        self.job(Operation::CreateJob, job)
    }

    /// A job that began or ended.
    #[must_use]
    pub fn job_changed(&self, job: &Job) -> OutboxEvent {
        self.job(Operation::UpdateJob, job)
    }

    fn job(&self, operation: Operation, job: &Job) -> OutboxEvent {
        let records = self
            .envelope()
            .record(operation, Subject::Job(&job.id), &hub_event::job(job));
        OutboxEvent {
            source: operation.source(),
            identity: job_identity(&job.id),
            records,
            twin: None,
        }
    }

    fn event(
        &self,
        operation: Operation,
        identity: &Identity,
        body: &Value,
        twin: impl FnOnce() -> Option<Value>,
    ) -> OutboxEvent {
        let records = self
            .envelope()
            .record(operation, Subject::Identity(identity), body);
        let twin = match self.table.asks_for_twins() {
            true => twin().map(|twin| twin.to_string()),
            false => None,
        };
        OutboxEvent {
            source: operation.source(),
            identity: identity.clone(),
            records,
            twin,
        }
    }

    fn envelope(&self) -> Envelope<'_> {
        Envelope {
            hub_name: &self.hub_name,
            at: self.at,
            correlation_id: &self.correlation_id,
        }
    }
}

fn view(identity: &Identity, twin: &Twin) -> Value {
    fn section(section: &Section) -> SectionView<'_> {
        SectionView {
            properties: &section.properties,
            metadata: &section.metadata,
            version: section.version,
        }
    }
    digital_twin(
        identity.device_id(),
        twin.model_id.as_deref(),
        section(&twin.desired),
        section(&twin.reported),
    )
}

/// Under what name a job stands in the log. Job ids may have characters that ids of devices cannot; the event itself
/// carries the id as it is.
fn job_identity(id: &str) -> Identity {
    let fits = |c: char| Identity::device(c.encode_utf8(&mut [0; 4])).is_ok();
    let name: String = id
        .chars()
        .map(|c| if fits(c) { c } else { '-' })
        .take(holdfast_model::limits::ID_LEN_MAX)
        .collect();
    // Only an empty id is none, and no job has that.
    Identity::device(&name)
        .or_else(|_| Identity::device("job"))
        .expect("an id of three letters")
}

#[cfg(test)]
mod tests;
