//! Sessions of clients: opening, replacing, ending; subscriptions that outlive a connection.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_model::event::{EventSource, Origin};
use holdfast_model::limits::CLOCK_SKEW_SECONDS;
use holdfast_model::subscription::{Channel, Subscriptions};
use holdfast_model::{Error, ErrorCode, Identity};
use holdfast_observe::{Repeats, tracing};
use holdfast_ports::gateway::{ConnectRequest, Connected, Disconnect, Persistence};
use holdfast_ports::session::{CloseReason, Downlink, SessionHandle};
use parking_lot::Mutex;

use crate::Broker;
use crate::auth::{Proof, Refusal, Verified};
use crate::files::Files;
use crate::metrics::Family;

static NOT_STORED: Repeats = Repeats::new();
/// By identity and reason.
static ENDED: Repeats = Repeats::new();

const FILE: &str = "sessions.json";
/// Most stored sessions; the scope is what really bounds them.
const STORED_MAX: usize = 20_000;

/// A live session with what it rests on.
struct Live {
    session: Arc<SessionHandle>,
    proof: Proof,
}

/// The live sessions, and the stored subscriptions.
pub(crate) struct Sessions {
    live: Mutex<HashMap<Identity, Live>>,
    stored: Mutex<BTreeMap<String, u16>>,
    files: Arc<Files>,
    /// Held while the stored subscriptions are written, so that a newer file is not replaced by an older one.
    saving: tokio::sync::Mutex<()>,
}

impl Sessions {
    pub(crate) fn open(files: Arc<Files>) -> Self {
        let stored = match files.read(FILE) {
            Ok(Some(content)) => serde_json::from_slice(&content).unwrap_or_else(|error| {
                tracing::error!(%error, "stored sessions of the edge hub cannot be read");
                BTreeMap::new()
            }),
            Ok(None) => BTreeMap::new(),
            Err(error) => {
                tracing::error!(%error, "stored sessions of the edge hub cannot be read");
                BTreeMap::new()
            }
        };
        Sessions {
            live: Mutex::default(),
            stored: Mutex::new(stored),
            files,
            saving: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn get(&self, identity: &Identity) -> Option<Arc<SessionHandle>> {
        self.live
            .lock()
            .get(identity)
            .map(|live| Arc::clone(&live.session))
    }

    pub(crate) fn count(&self) -> usize {
        self.live.lock().len()
    }

    pub(crate) fn all(&self) -> Vec<Arc<SessionHandle>> {
        self.live
            .lock()
            .values()
            .map(|live| Arc::clone(&live.session))
            .collect()
    }

    /// Hands an item to the session of an identity if it has subscribed to the channel.
    pub(crate) fn push(&self, identity: &Identity, channel: Channel, item: Downlink) -> bool {
        self.get(identity)
            .filter(|session| session.subscribed(channel))
            .is_some_and(|session| session.push(item).is_ok())
    }

    /// Writes the stored subscriptions after a change of them.
    async fn store(&self, identity: &Identity, subscriptions: Option<Subscriptions>) -> Result<(), Error> {
        let _one = self.saving.lock().await;
        let content = {
            let mut stored = self.stored.lock();
            let before = stored.get(identity.as_str()).copied();
            if before == subscriptions.map(Subscriptions::bits) {
                return Ok(());
            }
            match subscriptions {
                Some(subscriptions) if before.is_some() || stored.len() < STORED_MAX => {
                    stored.insert(identity.as_str().to_owned(), subscriptions.bits());
                }
                Some(_) => return Err(unavailable("the edge hub keeps as many sessions as it may")),
                None => {
                    stored.remove(identity.as_str());
                }
            }
            serde_json::to_vec(&*stored).unwrap_or_default()
        };
        let files = Arc::clone(&self.files);
        let written = tokio::task::spawn_blocking(move || files.write(FILE, &content)).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                if let Some(times) = NOT_STORED.happened(FILE) {
                    tracing::error!(%error, times, "stored sessions of the edge hub cannot be written");
                }
                Err(unavailable("the session cannot be stored"))
            }
            Err(_) => Err(unavailable("the session cannot be stored")),
        }
    }
}

impl Broker {
    /// See `DeviceGateway::connect`.
    pub(crate) async fn open_session(&self, request: ConnectRequest<'_>) -> Result<Connected, Error> {
        self.check_serving()?;
        let verified = self.authenticate(&request.access).await?;
        let identity = verified.entry.identity.clone();
        let stored = self.sessions.stored.lock().get(identity.as_str()).copied();
        let stored = stored.map(Subscriptions::from_bits);
        match request.persistence {
            Persistence::Stored if stored.is_none() => {
                self.sessions.store(&identity, Some(Subscriptions::NONE)).await?;
            }
            Persistence::Forgotten => self.sessions.store(&identity, None).await?,
            Persistence::Stored | Persistence::Untouched => {}
        }
        let persistent = request.persistence == Persistence::Stored;
        let subscriptions = stored.filter(|_| persistent).unwrap_or_default();
        let session = Arc::new(
            self.new_session(&verified, persistent, subscriptions)
                .with_data_schema(request.model_id),
        );
        let replaced = self.insert(&session, verified.proof)?;
        self.metrics
            .count(Family::ConnectSuccess, &[identity.as_str()], 1);
        tracing::debug!(identity = identity.as_str(), protocol = ?request.access.protocol, "client of the edge hub connected");
        if let Some(older) = replaced {
            self.ended(&older, CloseReason::TakenOver);
        }
        // The scope may have changed while this login was under way.
        self.recheck_session(&identity);
        match session.close_reason() {
            None => {}
            Some(CloseReason::IdentityChanged) => return Err(Refusal::Disabled.into_error()),
            Some(CloseReason::TakenOver) => {
                return Err(unavailable("a newer connection of the same identity took over"));
            }
            Some(_) => return Err(unavailable("the session has ended")),
        }
        self.connected(&session);
        self.channels_changed(&session, Subscriptions::NONE, subscriptions);
        Ok(Connected {
            session,
            session_present: stored.is_some() && persistent,
        })
    }

    fn new_session(
        &self,
        verified: &Verified,
        persistent: bool,
        subscriptions: Subscriptions,
    ) -> SessionHandle {
        SessionHandle::new(
            self.origin_of(verified),
            0,
            self.epochs.fetch_add(1, Ordering::Relaxed),
            verified.expires_at,
            persistent,
            subscriptions,
        )
    }

    pub(crate) fn origin_of(&self, verified: &Verified) -> Origin {
        Origin {
            source: EventSource::Telemetry,
            identity: verified.entry.identity.clone(),
            generation_id: verified.entry.generation_id.parse().unwrap_or(0),
            auth: verified.auth,
        }
    }

    /// Puts a session in; a newer one is never replaced by an older one.
    fn insert(
        &self,
        session: &Arc<SessionHandle>,
        proof: Proof,
    ) -> Result<Option<Arc<SessionHandle>>, Error> {
        let mut live = self.sessions.live.lock();
        let identity = session.identity();
        match live.get(identity) {
            Some(other) if other.session.epoch > session.epoch => {
                return Err(unavailable("a newer connection of the same identity took over"));
            }
            None if live.len() >= self.config.clients_max => {
                drop(live);
                return Err(self.refused(identity.as_str(), Refusal::TooManyClients));
            }
            _ => {}
        }
        let entry = Live {
            session: Arc::clone(session),
            proof,
        };
        Ok(live.insert(identity.clone(), entry).map(|older| older.session))
    }

    /// See `DeviceGateway::disconnect`.
    pub(crate) fn close_session(&self, session: &Arc<SessionHandle>, how: Disconnect) {
        if session.retire() {
            self.forget(session);
            tracing::debug!(
                identity = session.identity().as_str(),
                ?how,
                "client of the edge hub disconnected"
            );
        }
    }

    /// Ends a session from the engine's side.
    pub(crate) fn ended(&self, session: &Arc<SessionHandle>, reason: CloseReason) {
        if session.close(reason) {
            self.forget(session);
            let identity = session.identity().as_str();
            match reason {
                // The whole edge hub stops.
                CloseReason::ShuttingDown => {}
                // Each client comes to that once an hour or so.
                CloseReason::TokenExpired => tracing::debug!(identity, ?reason, "edge hub ended a session"),
                _ => {
                    if let Some(times) = ENDED.happened(&format!("{identity} {reason:?}")) {
                        tracing::info!(identity, ?reason, times, "edge hub ended a session");
                    }
                }
            }
        }
    }

    /// Drops everything that is kept of an ended session.
    fn forget(&self, session: &Arc<SessionHandle>) {
        let identity = session.identity();
        let was_current = {
            let mut live = self.sessions.live.lock();
            let current = live
                .get(identity)
                .is_some_and(|live| live.session.epoch == session.epoch);
            if current {
                live.remove(identity);
            }
            current
        };
        self.metrics.count(Family::Disconnect, &[identity.as_str()], 1);
        self.calls.drop_session(session.epoch);
        self.inputs.release(identity, session.epoch);
        self.release_relayed(session);
        if was_current {
            self.disconnected(identity);
        }
    }

    /// See `DeviceGateway::subscribe`.
    pub(crate) async fn change_subscriptions(
        &self,
        session: &Arc<SessionHandle>,
        subscriptions: Subscriptions,
    ) -> Result<(), Error> {
        if session.is_ended() {
            return Err(unavailable("the session has ended"));
        }
        let before = session.subscriptions();
        if session.persistent && before != subscriptions {
            self.sessions
                .store(session.identity(), Some(subscriptions))
                .await?;
        }
        session.set_subscriptions(subscriptions);
        self.channels_changed(session, before, subscriptions);
        Ok(())
    }

    fn channels_changed(&self, session: &Arc<SessionHandle>, before: Subscriptions, now: Subscriptions) {
        let is_new = |channel| now.contains(channel) && !before.contains(channel);
        if is_new(Channel::Methods) {
            self.calls.wake_callers(session.identity());
        }
        if is_new(Channel::Inputs) || is_new(Channel::CloudToDevice) {
            // What waits is looked for; a hint too many costs one look.
            let _ = session.push(Downlink::CloudToDevice);
        }
        if before != now {
            self.interests_changed(session.identity());
        }
    }

    /// Ends the sessions whose token is over, and those that are not proven any more.
    pub(crate) fn end_expired(&self) {
        let now = self.clock.now();
        let skew = Duration::from_secs(CLOCK_SKEW_SECONDS);
        for session in self.sessions.all() {
            if session.expires_at().plus(skew) < now {
                self.ended(&session, CloseReason::TokenExpired);
            }
        }
    }

    /// Looks at all sessions again; neighbours of one that has to go are not touched.
    pub(crate) fn recheck_sessions(&self) {
        let identities: Vec<Identity> = self.sessions.live.lock().keys().cloned().collect();
        for identity in identities {
            self.recheck_session(&identity);
        }
    }

    fn recheck_session(&self, identity: &Identity) {
        let found = {
            let live = self.sessions.live.lock();
            live.get(identity)
                .map(|live| (Arc::clone(&live.session), live.proof.clone()))
        };
        if let Some((session, proof)) = found
            && !self.still_proven(identity, &proof)
        {
            self.ended(&session, CloseReason::IdentityChanged);
        }
    }
}

pub(crate) fn unavailable(why: &str) -> Error {
    Error::new(ErrorCode::ServiceUnavailable, why)
}
