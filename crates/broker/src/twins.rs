//! Twins of clients, kept on the disk, sealed (edge.md 7.6).
//!
//! The cloud is the truth of desired properties, the client of its reported ones. What a client reports is checked and merged
//! here, kept with what the hub above does not know yet, and sent as soon as it can be reached, several patches as one.

pub(crate) mod patch;
mod sync;

pub(crate) use sync::run as run_sync;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::subscription::Channel;
use holdfast_model::twin::{Section, Twin, parse_object};
use holdfast_model::{Error, ErrorCode, Identity};
use holdfast_observe::{Repeats, tracing};
use holdfast_ports::session::Downlink;
use holdfast_upstream::port::{CloudError, Reach};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::Notify;

use crate::Broker;
use crate::files::Files;
use crate::metrics::Family;
use crate::sessions::unavailable;

static UNREADABLE: Repeats = Repeats::new();
static NOT_KEPT: Repeats = Repeats::new();
static NO_TWIN: Repeats = Repeats::new();

/// How long a client waits for the hub above before it gets what is kept here.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// The twins.
pub(crate) struct Twins {
    files: Arc<Files>,
    /// One operation at a time on each twin.
    locks: Mutex<HashMap<Identity, Arc<tokio::sync::Mutex<()>>>>,
    /// Twins with something that the hub above does not know.
    unsent: Mutex<std::collections::BTreeSet<Identity>>,
    /// Twins that were wanted from the hub above and could not be had.
    unread: Mutex<std::collections::BTreeSet<Identity>>,
    pub(crate) sync: Notify,
}

/// A twin as it is kept.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    identity: String,
    pub(crate) desired: Map<String, Value>,
    pub(crate) desired_version: u64,
    reported: Map<String, Value>,
    reported_version: u64,
    /// Reported properties as the hub above is known to have them.
    synced: Map<String, Value>,
    /// What it does not know; null for removed members.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pending: Map<String, Value>,
    /// What is being sent to it; after a crash it is sent again with the rest.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    sending: Map<String, Value>,
}

/// A twin as the hub above tells it.
#[derive(Deserialize)]
struct CloudTwin {
    #[serde(default)]
    desired: Map<String, Value>,
    #[serde(default)]
    reported: Map<String, Value>,
}

impl Record {
    fn new(identity: &Identity) -> Self {
        Record {
            identity: identity.as_str().to_owned(),
            desired_version: 1,
            reported_version: 1,
            ..Record::default()
        }
    }

    fn to_device_json(&self) -> Bytes {
        let with_version = |section: &Map<String, Value>, version: u64| {
            let mut section = section.clone();
            section.insert("$version".to_owned(), version.into());
            section
        };
        let twin = serde_json::json!({
            "desired": with_version(&self.desired, self.desired_version),
            "reported": with_version(&self.reported, self.reported_version),
        });
        twin.to_string().into()
    }

    fn unsent(&self) -> bool {
        !self.pending.is_empty() || !self.sending.is_empty()
    }

    /// Takes over what the hub above says. Returns the change of the desired properties, if there is one.
    fn take_cloud(&mut self, cloud: CloudTwin) -> Option<Map<String, Value>> {
        let (desired, desired_version) = split_version(cloud.desired);
        let (reported, reported_version) = split_version(cloud.reported);
        self.reported.clone_from(&reported);
        patch::apply(&mut self.reported, &self.sending);
        patch::apply(&mut self.reported, &self.pending);
        self.synced = reported;
        self.reported_version = reported_version.max(if self.unsent() { self.reported_version } else { 0 });
        let change = patch::difference(&self.desired, &desired);
        let is_new = desired_version != self.desired_version;
        (self.desired, self.desired_version) = (desired, desired_version);
        Some(change).filter(|change| is_new || !change.is_empty())
    }
}

/// Properties without `$…` members, and `$version`.
fn split_version(mut section: Map<String, Value>) -> (Map<String, Value>, u64) {
    let version = section.get("$version").and_then(Value::as_u64).unwrap_or(1);
    section.retain(|key, _| !key.starts_with('$'));
    (section, version)
}

impl Twins {
    /// Looks which twins have something to be sent.
    pub(crate) fn open(files: Arc<Files>) -> io::Result<Self> {
        let twins = Twins {
            files,
            locks: Mutex::default(),
            unsent: Mutex::default(),
            unread: Mutex::default(),
            sync: Notify::new(),
        };
        for name in twins.files.names()? {
            if let Some(record) = twins.load_file(&name)
                && record.unsent()
                && let Ok(identity) = Identity::parse(&record.identity)
            {
                twins.unsent.lock().insert(identity);
            }
        }
        Ok(twins)
    }

    /// Where twins are kept.
    pub(crate) fn files(&self) -> Arc<Files> {
        Arc::clone(&self.files)
    }

    /// A damaged file is told and counts as none: the cloud has the twin.
    fn load_file(&self, name: &str) -> Option<Record> {
        let read = self.files.read_sealed(name).and_then(|content| {
            content
                .map(|content| serde_json::from_slice::<Record>(&content).map_err(io::Error::from))
                .transpose()
        });
        match read {
            Ok(record) => record,
            Err(error) => {
                if let Some(times) = UNREADABLE.happened(name) {
                    tracing::error!(file = name, %error, times, "a twin kept by the edge hub cannot be read");
                }
                None
            }
        }
    }

    pub(crate) fn load(&self, identity: &Identity) -> Option<Record> {
        self.load_file(&file_name(identity))
            .filter(|record| record.identity == identity.as_str())
    }

    async fn save(&self, identity: &Identity, record: &Record) -> Result<(), Error> {
        let content = serde_json::to_vec(record).unwrap_or_default();
        let (files, name) = (Arc::clone(&self.files), file_name(identity));
        let written = tokio::task::spawn_blocking(move || files.write_sealed(&name, content)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                if let Some(times) = NOT_KEPT.happened(identity.as_str()) {
                    tracing::error!(identity = identity.as_str(), %error, times, "a twin cannot be kept");
                }
                return Err(unavailable(
                    "the twin cannot be stored; check the disk of the edge device",
                ));
            }
            Err(_) => return Err(unavailable("the twin cannot be stored")),
        }
        let mut unsent = self.unsent.lock();
        if record.unsent() {
            unsent.insert(identity.clone());
        } else {
            unsent.remove(identity);
        }
        Ok(())
    }

    /// Waits for the one place at a twin.
    async fn lock(&self, identity: &Identity) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock();
            // Whoever holds or awaits one has a clone of it.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(identity.clone()).or_default())
        };
        lock.lock_owned().await
    }

    pub(crate) fn forget(&self, identity: &Identity) {
        self.unsent.lock().remove(identity);
        self.unread.lock().remove(identity);
        if let Err(error) = self.files.remove(&file_name(identity)) {
            tracing::warn!(identity = identity.as_str(), %error, "a twin cannot be removed");
        }
    }
}

/// Ids are too long and too free for names of files.
fn file_name(identity: &Identity) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, identity.as_str().as_bytes());
    let hex: String = digest.as_ref()[..20]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{hex}.twin")
}

impl Broker {
    /// See `DeviceGateway::device_twin`: from the hub above when it can be reached, else at once what is kept here.
    pub(crate) async fn read_twin(&self, identity: &Identity) -> Result<Bytes, Error> {
        let begun = self.clock.monotonic_millis();
        let fetched = self.fetch_twin(identity).await;
        let source = if fetched.is_some() { "upstream" } else { "edge_hub" };
        let record = match fetched {
            Some(record) => record,
            None => self.twins.load(identity).unwrap_or_else(|| Record::new(identity)),
        };
        let took = Duration::from_millis(self.clock.monotonic_millis().saturating_sub(begun));
        let labels = [source, identity.as_str()];
        self.metrics.count(Family::GetTwin, &labels, 1);
        self.metrics
            .observe_duration(Family::GetTwinDuration, &labels, took);
        Ok(record.to_device_json())
    }

    /// Reads a twin above and keeps it; tells the client of desired properties that it has not seen.
    /// What could not be read is read again by [`sync::run`]: meanwhile pushes may have been lost.
    async fn fetch_twin(&self, identity: &Identity) -> Option<Record> {
        let fetched = self.try_fetch_twin(identity).await;
        if fetched.is_some() {
            self.twins.unread.lock().remove(identity);
        } else if self.has_above() && self.twins.unread.lock().insert(identity.clone()) {
            self.twins.sync.notify_one();
        }
        fetched
    }

    async fn try_fetch_twin(&self, identity: &Identity) -> Option<Record> {
        if matches!(self.reach(), Reach::Offline { .. }) {
            return None;
        }
        let link = self.link(identity)?;
        let answer = match tokio::time::timeout(FETCH_TIMEOUT, link.client.twin()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                tracing::debug!(identity = identity.as_str(), %error, "the twin cannot be read above");
                return None;
            }
            Err(_) => return None,
        };
        let cloud: CloudTwin = match serde_json::from_slice(&answer) {
            Ok(cloud) => cloud,
            Err(error) => {
                if let Some(times) = NO_TWIN.happened(identity.as_str()) {
                    tracing::warn!(identity = identity.as_str(), %error, times, "the hub above answered something else than a twin");
                }
                return None;
            }
        };
        let _one = self.twins.lock(identity).await;
        let known = self.twins.load(identity);
        let mut record = known.clone().unwrap_or_else(|| Record::new(identity));
        let change = record.take_cloud(cloud);
        if known.as_ref() != Some(&record) && self.twins.save(identity, &record).await.is_err() {
            tracing::debug!(
                identity = identity.as_str(),
                "the twin is as it is above, and not kept"
            );
        }
        if let Some(change) = change.filter(|_| known.is_some()) {
            self.push_desired(identity, change, record.desired_version);
        }
        Some(record)
    }

    /// Sets the desired properties of a module or device as they stand in a manifest, for an edge hub that has no hub above
    /// it and no clients yet: nobody is told. Their version is raised when they differ from those that are kept.
    ///
    /// # Errors
    /// When the twin cannot be stored.
    pub async fn apply_module_desired(
        &self,
        identity: &Identity,
        desired: &Map<String, Value>,
    ) -> Result<(), Error> {
        let _one = self.twins.lock(identity).await;
        let (desired, _) = split_version(desired.clone());
        let kept = self.twins.load(identity);
        let mut record = kept.clone().unwrap_or_else(|| Record::new(identity));
        if kept.is_some() && record.desired != desired {
            record.desired_version += 1;
        }
        record.desired = desired;
        if kept.as_ref() == Some(&record) {
            return Ok(());
        }
        self.twins.save(identity, &record).await
    }

    /// Whether somebody here waits for desired properties of this twin.
    fn wants_desired(&self, identity: &Identity) -> bool {
        *identity == self.own
            || self
                .sessions
                .get(identity)
                .is_some_and(|session| session.subscribed(Channel::DesiredProperties))
    }

    /// After the conversation with the hub above began anew: what was pushed meanwhile is lost.
    pub(crate) async fn read_twin_again(&self, identity: &Identity) {
        if !self.wants_desired(identity) {
            return;
        }
        let own = *identity == self.own;
        let fetched = self.fetch_twin(identity).await;
        self.twins.sync.notify_one();
        if own && let Some(record) = fetched {
            self.configure(&record.desired, record.desired_version).await;
        }
    }

    /// The hub above changed desired properties. A gap is closed by reading the twin anew.
    pub(crate) async fn desired_pushed(&self, identity: &Identity, version: u64, change: &[u8]) {
        let merged = {
            let _one = self.twins.lock(identity).await;
            match (
                self.twins.load(identity),
                serde_json::from_slice::<Map<String, Value>>(change),
            ) {
                // Known already.
                (Some(record), Ok(_)) if version <= record.desired_version => return,
                (Some(mut record), Ok(change)) if version == record.desired_version + 1 => {
                    let (change, _) = split_version(change);
                    patch::apply(&mut record.desired, &change);
                    record.desired_version = version;
                    if self.twins.save(identity, &record).await.is_err() {
                        tracing::debug!(identity = identity.as_str(), "the change of a twin is not kept");
                    }
                    self.push_desired(identity, change, version);
                    Some(record)
                }
                _ => None,
            }
        };
        let had = merged.is_some() || self.twins.load(identity).is_some();
        let record = match merged {
            Some(record) => Some(record),
            None => self.fetch_twin(identity).await,
        };
        if *identity == self.own {
            if let Some(record) = record {
                self.configure(&record.desired, record.desired_version).await;
            }
        } else if !had && let Ok(patch) = serde_json::from_slice::<Map<String, Value>>(change) {
            // The client never asked for its twin, so none was kept: it gets what came.
            self.push_desired(identity, split_version(patch).0, version);
        }
    }

    fn push_desired(&self, identity: &Identity, mut change: Map<String, Value>, version: u64) {
        change.insert("$version".to_owned(), version.into());
        let patch = Bytes::from(Value::Object(change).to_string());
        self.sessions.push(
            identity,
            Channel::DesiredProperties,
            Downlink::Desired { version, patch },
        );
    }

    /// See `DeviceGateway::patch_reported`.
    pub(crate) async fn report(
        &self,
        identity: &Identity,
        patch: &[u8],
        expected_version: Option<u64>,
    ) -> Result<u64, Error> {
        let patch = parse_object(patch, "the reported patch")?;
        let begun = self.clock.monotonic_millis();
        let version = self.merge_reported(identity, &patch, expected_version).await?;
        self.twins.sync.notify_one();
        if *identity != self.own {
            self.tell_twin_change(identity, &patch);
        }
        let took = Duration::from_millis(self.clock.monotonic_millis().saturating_sub(begun));
        let labels = ["edge_hub", identity.as_str()];
        self.metrics.count(Family::ReportedProperties, &labels, 1);
        self.metrics
            .observe_duration(Family::ReportedDuration, &labels, took);
        Ok(version)
    }

    async fn merge_reported(
        &self,
        identity: &Identity,
        patch: &Map<String, Value>,
        expected_version: Option<u64>,
    ) -> Result<u64, Error> {
        let _one = self.twins.lock(identity).await;
        let mut record = self.twins.load(identity).unwrap_or_else(|| Record::new(identity));
        if let Some(expected) = expected_version.filter(|expected| *expected != record.reported_version) {
            let is = record.reported_version;
            let text = format!("the reported properties are at version {is}, not {expected}");
            return Err(Error::new(ErrorCode::ArgumentInvalid, text));
        }
        // The hub's own rules, so that it takes what is taken here.
        let now = self.clock.now();
        let mut twin = Twin::new(now);
        twin.reported = Section {
            properties: std::mem::take(&mut record.reported),
            version: record.reported_version,
            ..Section::empty(now)
        };
        let version = twin.report(patch, now)?;
        if version == record.reported_version {
            return Ok(version);
        }
        record.reported = twin.reported.properties;
        record.reported_version = version;
        let (patch, _) = split_version(patch.clone());
        let mut known = record.synced.clone();
        patch::apply(&mut known, &record.sending);
        patch::merge(&mut record.pending, &patch, &known);
        self.twins.save(identity, &record).await?;
        Ok(version)
    }
}

/// Why a patch was not taken above, as far as it matters here.
pub(crate) fn is_final(error: &CloudError) -> bool {
    matches!(error, CloudError::Refused { status, .. } if (400..500).contains(status) && *status != 429 && *status != 408)
}
