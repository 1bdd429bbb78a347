//! The module `$edgeHub`: its desired properties configure the edge hub, its reported ones tell how that went and who is
//! connected, its method refreshes the scope (edge.md section 6, 3.7).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_model::event::{AuthMethod, EventSource, Origin, Records};
use holdfast_model::message::SystemProperty;
use holdfast_model::method::{MethodRequest, MethodResponse};
use holdfast_model::{Identity, Timestamp};
use holdfast_observe::{Repeats, tracing};
use serde_json::{Map, Value, json};

use crate::Broker;
use crate::queue::QueueKey;
use crate::routes::{Definition, RouteTable};
use crate::scope::{RefreshFailed, ScopeChange};

/// The last desired properties that could be used.
const FILE: &str = "desired.json";
/// Longest description of what is wrong with a configuration; a value of a twin may be twice as long.
const DESCRIPTION_BYTES_MAX: usize = 2_048;
/// Longest description of what is wrong with one route in it, so that one does not hide the others.
const FAULT_BYTES_MAX: usize = 300;
/// Before the faults, in the words of the original.
const FAULTY: &str = "Error while parsing desired properties - ";
/// Most devices of one call of the method.
const REFRESH_DEVICES_MAX: usize = 100;

/// What became of the desired properties of `$edgeHub`, as it is reported.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigurationOutcome {
    /// `$version` of them; `None` while they are those that were kept from an earlier start.
    pub version: Option<u64>,
    /// 200; 400 when something in them has a fault.
    pub code: u16,
    /// The faults, each route by its name; empty when there are none.
    pub description: String,
}

impl ConfigurationOutcome {
    /// Of what [`Broker::apply`] returned.
    fn new(version: Option<u64>, applied: Result<Vec<String>, String>) -> Self {
        let description = match applied {
            Ok(faults) if faults.is_empty() => String::new(),
            Ok(faults) => format!("{FAULTY}{}", describe(&faults)),
            Err(error) => format!("{FAULTY}{error}"),
        };
        let end = description.floor_char_boundary(DESCRIPTION_BYTES_MAX);
        ConfigurationOutcome {
            version,
            code: if description.is_empty() { 200 } else { 400 },
            description: description[..end].to_owned(),
        }
    }
}

static NOT_REPORTED: Repeats = Repeats::new();
static NOT_TAKEN: Repeats = Repeats::new();

impl Broker {
    /// Puts the configuration in force that was in force before the restart, if any.
    pub(crate) fn restore_configuration(&self) {
        let kept = match self.files.read(FILE) {
            Ok(Some(content)) => {
                serde_json::from_slice::<Map<String, Value>>(&content).map_err(|error| error.to_string())
            }
            Ok(None) => return,
            Err(error) => Err(error.to_string()),
        };
        match kept {
            Ok(desired) => {
                let applied = self.apply(&desired);
                if let Err(error) = &applied {
                    tracing::error!(%error, "the kept configuration of the edge hub cannot be used");
                }
                *self.configured.lock() = Some(ConfigurationOutcome::new(None, applied));
            }
            Err(error) => tracing::error!(%error, "the kept configuration of the edge hub cannot be read"),
        }
    }

    /// Applies desired properties as they stand in a manifest (`$edgeHub`, `properties.desired`), for an edge hub that has no
    /// hub above it. Returns what is wrong with single routes; the others are in force.
    ///
    /// # Errors
    /// What is wrong with the whole; the configuration before stays in force.
    pub fn apply_desired(&self, desired: &Map<String, Value>) -> Result<Vec<String>, String> {
        let faults = self.apply(desired)?;
        self.keep(desired);
        Ok(faults)
    }

    fn apply(&self, desired: &Map<String, Value>) -> Result<Vec<String>, String> {
        let (definition, mut faults) = Definition::read(desired)?;
        let (table, more) = RouteTable::compile(&definition, |key| self.queue_of(key));
        faults.extend(more);
        let bytes_max = definition.bytes_max.unwrap_or(self.config.queues.bytes_max);
        self.queues.set_bytes_max(bytes_max);
        self.bytes_max.store(bytes_max, Ordering::Relaxed);
        self.routes.store(Arc::new(table));
        self.lanes_changed.store(true, Ordering::Release);
        self.upstream_ready.notify_one();
        Ok(faults)
    }

    /// The queue of a key, with somebody to look after it.
    pub(crate) fn queue_of(&self, key: &QueueKey) -> crate::queue::QueueId {
        let id = self.queues.queue(key);
        self.destine(id, key);
        id
    }

    fn keep(&self, desired: &Map<String, Value>) {
        let content = Value::Object(desired.clone()).to_string();
        if matches!(self.files.read(FILE), Ok(Some(kept)) if kept == content.as_bytes()) {
            return;
        }
        if let Err(error) = self.files.write(FILE, content.as_bytes()) {
            tracing::warn!(%error, "the configuration of the edge hub cannot be kept");
        }
    }

    /// Applies desired properties that came from above, and reports how that went.
    pub(crate) async fn configure(&self, desired: &Map<String, Value>, version: u64) {
        let applied = self.apply(desired);
        if applied.is_ok() {
            self.keep(desired);
        }
        let outcome = ConfigurationOutcome::new(Some(version), applied);
        let ConfigurationOutcome {
            code, description, ..
        } = &outcome;
        if desired.is_empty() {
            tracing::info!(version, "the edge hub has no configuration yet");
        } else if *code != 200 {
            tracing::error!(
                version,
                description,
                "the configuration of the edge hub has faults"
            );
        } else {
            tracing::info!(version, "the edge hub is configured");
        }
        *self.configured.lock() = (!desired.is_empty()).then(|| outcome.clone());
        self.report_own(json!({
            "schemaVersion": "1.0",
            "version": {"version": env!("CARGO_PKG_VERSION"), "build": "", "commit": ""},
            "lastDesiredVersion": version,
            "lastDesiredStatus": {"code": code, "description": description},
        }))
        .await;
    }

    /// What became of the desired properties that came last from above, or were kept; `None` when there are none.
    #[must_use]
    pub fn configuration(&self) -> Option<ConfigurationOutcome> {
        self.configured.lock().clone()
    }

    /// Merges into the reported properties of `$edgeHub`, which are sent like anybody's.
    pub(crate) async fn report_own(&self, patch: Value) {
        if self.links.watch().is_none() {
            return;
        }
        if let Err(error) = self.report(&self.own, patch.to_string().as_bytes(), None).await
            && let Some(times) = NOT_REPORTED.happened(self.own.as_str())
        {
            tracing::warn!(%error, times, "the edge hub cannot report");
        }
    }

    /// Notes that a client has come or gone, to be reported and routed.
    pub(crate) fn note_client(&self, identity: &Identity, connected: bool) {
        if *identity == self.own {
            return;
        }
        let now = self.clock.now();
        self.clients_seen
            .lock()
            .insert(identity.clone(), (connected, now));
        self.tell_own(
            EventSource::ConnectionState,
            identity,
            if connected {
                "deviceConnected"
            } else {
                "deviceDisconnected"
            },
        );
    }

    /// Reports the clients that came and went since the last call.
    pub(crate) async fn report_clients(&self) {
        let seen = std::mem::take(&mut *self.clients_seen.lock());
        if seen.is_empty() {
            return;
        }
        let clients: Map<String, Value> = seen
            .into_iter()
            .map(|(identity, (connected, at))| {
                (client_key(&identity), client_entry(&identity, connected, at))
            })
            .collect();
        self.report_own(json!({ "clients": clients })).await;
    }

    /// Identities that came into the scope or left it.
    pub(crate) fn tell_lifecycle(&self, change: &ScopeChange) {
        for identity in change.removed.iter().chain(&change.changed) {
            self.links.drop_link(identity);
            self.interests_changed(identity);
        }
        if !self.scope_fresh.load(Ordering::Acquire) {
            // The first look at the scope is no news.
            return;
        }
        for (identities, operation) in [
            (&change.added, "createDeviceIdentity"),
            (&change.removed, "deleteDeviceIdentity"),
        ] {
            for identity in identities {
                self.tell_own(EventSource::DeviceLifecycle, identity, operation);
            }
        }
    }

    /// Routes a message of the edge hub's own making about a client.
    fn tell_own(&self, source: EventSource, about: &Identity, operation: &str) {
        let mut body = json!({ "deviceId": about.device_id() });
        if let (Some(body), Some(module)) = (body.as_object_mut(), about.module_id()) {
            body.insert("moduleId".to_owned(), module.into());
        }
        let now = self.clock.now().to_string();
        let mut records = Records::new();
        let mut record = records.record();
        record.system(SystemProperty::ContentType, "application/json");
        record.system(SystemProperty::ContentEncoding, "utf-8");
        record.property("opType", Some(operation));
        record.property("operationTimestamp", Some(&now));
        record.property("deviceId", Some(about.device_id()));
        if let Some(module) = about.module_id() {
            record.property("moduleId", Some(module));
        }
        let _ = record.finish(body.to_string().as_bytes());
        self.send_own(source, &records);
    }

    /// Routes a change of reported properties (edge.md 6.4, last paragraph).
    pub(crate) fn tell_twin_change(&self, of: &Identity, patch: &Map<String, Value>) {
        let mut records = Records::new();
        let mut record = records.record();
        record.system(SystemProperty::ContentType, "application/json");
        record.system(SystemProperty::ContentEncoding, "utf-8");
        record.system(SystemProperty::MessageSchema, "twinChangeNotification");
        record.property("rpSenderDeviceId", Some(of.device_id()));
        if let Some(module) = of.module_id() {
            record.property("rpSenderModuleId", Some(module));
        }
        let _ = record.finish(Value::Object(patch.clone()).to_string().as_bytes());
        self.send_own(EventSource::TwinChange, &records);
    }

    /// These are told once: when there is no room for one it is counted as not taken.
    fn send_own(&self, source: EventSource, records: &Records) {
        let origin = Origin {
            source,
            identity: self.own.clone(),
            generation_id: 0,
            auth: AuthMethod::Hub,
        };
        if let Err(error) = self.ingest(&origin, None, records)
            && let Some(times) = NOT_TAKEN.happened(self.own.as_str())
        {
            tracing::warn!(%error, times, "a message of the edge hub itself was not taken");
        }
    }

    /// Methods of `$edgeHub`.
    pub(crate) async fn answer_own(&self, request: &MethodRequest) -> MethodResponse {
        let (status, payload) = if request
            .name
            .eq_ignore_ascii_case("RefreshDeviceScopeIdentityCache")
        {
            self.refresh_devices(&request.payload).await
        } else {
            (
                404,
                json!({ "message": format!("$edgeHub has no method {}", request.name) }),
            )
        };
        let payload = if payload.is_null() {
            String::new()
        } else {
            payload.to_string()
        };
        MethodResponse {
            status,
            payload: payload.into(),
        }
    }

    async fn refresh_devices(&self, payload: &[u8]) -> (i64, Value) {
        let bad = |why: &str| (400, json!({ "message": why }));
        let Ok(body) = serde_json::from_slice::<Value>(payload) else {
            return bad("the payload is not JSON; expected {\"deviceIds\":[\"id\"]}");
        };
        let ids = body.get("deviceIds").and_then(Value::as_array);
        let ids: Option<Vec<Identity>> =
            ids.and_then(|ids| ids.iter().map(|id| Identity::parse(id.as_str()?).ok()).collect());
        let Some(ids) = ids.filter(|ids| ids.len() <= REFRESH_DEVICES_MAX) else {
            return bad("expected {\"deviceIds\":[\"id\"]} with at most 100 ids");
        };
        for id in &ids {
            match self.scope.refresh_one(id, None).await {
                Ok(applied) => self.scope_changed(&applied.change),
                Err(RefreshFailed::Cloud(error)) => {
                    return (500, json!({ "message": format!("{id}: {error}") }));
                }
                Err(error) => return (500, json!({ "message": error.to_string() })),
            }
        }
        (200, Value::Null)
    }

    /// Reads the whole scope now; an operator's wish.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn refresh_scope(&self) -> Result<(), String> {
        let change = self.scope.refresh().await.map_err(|error| error.to_string())?;
        self.scope_changed(&change);
        // Another reading may have learned of a change this instant, and not have said so yet.
        self.recheck_sessions();
        self.scope_fresh.store(true, Ordering::Release);
        Ok(())
    }
}

/// What is wrong with routes, one after the other, and how many more there are when not all fit.
fn describe(faults: &[String]) -> String {
    // For what stands before and behind.
    let room = DESCRIPTION_BYTES_MAX - 100;
    let mut text = String::new();
    for (number, fault) in faults.iter().enumerate() {
        let short = &fault[..fault.floor_char_boundary(FAULT_BYTES_MAX)];
        let cut = if short.len() < fault.len() { "…" } else { "" };
        let between = if number > 0 { "; " } else { "" };
        if text.len() + between.len() + short.len() + cut.len() > room {
            let more = faults.len() - number;
            text.push_str(&format!("; and {more} more routes with faults"));
            break;
        }
        text.extend([between, short, cut]);
    }
    text
}

/// A client's key in the reported properties.
fn client_key(identity: &Identity) -> String {
    identity
        .as_str()
        .replace('%', "%25")
        .replace('.', "%2E")
        .replace('$', "%24")
        .replace(' ', "%20")
        .replace('#', "%23")
}

/// Leaf devices that are gone are not listed; modules stay.
fn client_entry(identity: &Identity, connected: bool, at: Timestamp) -> Value {
    match (connected, identity.is_module()) {
        (true, _) => json!({ "status": "Connected", "lastConnectedTimeUtc": at.to_string() }),
        (false, true) => json!({ "status": "Disconnected", "lastDisconnectedTimeUtc": at.to_string() }),
        (false, false) => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_route_has_its_place_in_the_description() {
        let faults: Vec<String> = (0..3).map(|number| format!("route r{number}: no")).collect();
        assert_eq!(describe(&faults), "route r0: no; route r1: no; route r2: no");
        let long = [
            format!("route a: {}", "ä".repeat(4_000)),
            "route b: no".to_owned(),
        ];
        let text = describe(&long);
        assert!(text.len() < 330 && text.ends_with("…; route b: no"), "{text}");
        let many: Vec<String> = (0..1_000)
            .map(|number| format!("route r{number}: not right"))
            .collect();
        let text = describe(&many);
        assert!(text.len() <= DESCRIPTION_BYTES_MAX - 50, "{}", text.len());
        let told = text.matches("route r").count();
        assert!(
            text.ends_with(&format!("; and {} more routes with faults", 1_000 - told)),
            "{text}"
        );
    }
}
