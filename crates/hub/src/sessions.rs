//! Opening, replacing and ending sessions.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_model::event::{AuthMethod, EventSource, Origin};
use holdfast_model::registry::{IdentityRecord, Status};
use holdfast_model::subscription::{Channel, Subscriptions};
use holdfast_model::{Error, ErrorCode, Identity, Timestamp};
use holdfast_observe::Event as _;
use holdfast_ports::gateway::{ConnectRequest, Connected, Disconnect, Persistence};
use holdfast_ports::registry::ConnectionUpdate;
use holdfast_ports::session::{CloseReason, Downlink, MailboxError, SessionHandle};

use crate::Hub;
use crate::auth::Verified;
use crate::directory::Directory;
use crate::events::{DownlinkDropped, Metrics, SessionEnd, SessionEnded, SessionStarted};
use crate::ingest::partition_of;

/// Connection states saved with one call of the store.
const CONNECTIONS_PER_SAVE: usize = 1_000;

impl Hub {
    /// See `DeviceGateway::connect`. In the usual case: one read of the registry, one signature, one read of the stored
    /// session.
    pub(crate) async fn open_session(&self, request: ConnectRequest<'_>) -> Result<Connected, Error> {
        self.check_serving()?;
        let revocations = self.revocations.load(Ordering::SeqCst);
        let trust_changes = self.trust_changes.load(Ordering::SeqCst);
        let verified = self.verify_access(&request.access).await?;
        let record = &verified.record;
        let stored = self.stored_session(&record.identity, request.persistence).await?;
        self.note_model_id(&record.identity, request.model_id).await?;
        let session = self.new_session(&verified, request.persistence, stored);
        let session = Arc::new(session.with_data_schema(request.model_id));

        let Ok(replaced) = self.sessions.insert(&session) else {
            // Two logins of one identity at once, and the other one is newer.
            return Err(unavailable("a newer connection of the same identity took over"));
        };
        let opening = Opening {
            hub: self,
            session: &session,
        };
        self.note_sender(session.identity()).await?;
        self.note_connection(session.identity(), true, self.now());
        if let Some(older) = &replaced {
            // Its own end finds the newer session in its place and says nothing.
            self.tell_connection(older.identity(), older.epoch, false);
        }
        self.tell_connection(session.identity(), session.epoch, true);
        SessionStarted {
            identity: session.identity().as_str(),
            protocol: request.access.protocol,
            client_type: request.client_type,
            epoch: session.epoch,
        }
        .emit(&self.metrics);
        if let Some(older) = replaced {
            self.take_over(&older).await;
        }
        if self.revocations.load(Ordering::SeqCst) != revocations {
            self.check_unrevoked(&session, record).await?;
        }
        if self.trust_changes.load(Ordering::SeqCst) != trust_changes && depends_on_trust(&session) {
            self.end_session(&session, CloseReason::IdentityChanged);
            return Err(unavailable(
                "policies or certificate authorities have just changed; try again",
            ));
        }
        // A drain that began meanwhile has not seen this session.
        if let Err(stopping) = self.check_serving() {
            self.end_session(&session, CloseReason::ShuttingDown);
            return Err(stopping);
        }
        if session.subscribed(Channel::Methods) {
            self.calls.wake_callers(session.identity());
        }
        if session.subscribed(Channel::CloudToDevice) {
            self.hint_waiting_c2d(&session).await;
        }
        opening.done();
        Ok(Connected {
            session,
            session_present: stored.is_some() && request.persistence == Persistence::Stored,
        })
    }

    fn new_session(
        &self,
        verified: &Verified,
        persistence: Persistence,
        stored: Option<Subscriptions>,
    ) -> SessionHandle {
        let origin = Origin {
            source: EventSource::Telemetry,
            identity: verified.record.identity.clone(),
            generation_id: verified.record.generation_id,
            auth: verified.auth,
        };
        let partition = partition_of(origin.identity.device_id(), self.stores.log.partitions());
        SessionHandle::new(
            origin,
            partition,
            self.next_epoch(),
            verified.expires_at,
            persistence == Persistence::Stored,
            stored
                .filter(|_| persistence == Persistence::Stored)
                .unwrap_or_default(),
        )
    }

    /// The stored session; forgotten if a clean one is asked for, begun if there is none (mqtt.md 2.4).
    async fn stored_session(
        &self,
        identity: &Identity,
        persistence: Persistence,
    ) -> Result<Option<Subscriptions>, Error> {
        if persistence == Persistence::Untouched {
            return Ok(None);
        }
        let store = &self.stores.sessions;
        let stored = store
            .session(identity)
            .await
            .map_err(|error| self.store_error("read session", error))?;
        match (persistence, stored) {
            (Persistence::Forgotten, Some(_)) => store.delete_session(identity).await,
            (Persistence::Stored, None) => store.save_session(identity, Subscriptions::NONE).await,
            _ => Ok(()),
        }
        .map_err(|error| self.store_error("save session", error))?;
        Ok(stored)
    }

    /// Ends the older session of the same identity; what it holds locked is free again when this returns.
    async fn take_over(&self, older: &Arc<SessionHandle>) {
        self.end_session(older, CloseReason::TakenOver);
        self.release_c2d(older).await;
    }

    /// An identity was disabled, deleted or re-keyed while this login was under way: look again.
    async fn check_unrevoked(
        &self,
        session: &Arc<SessionHandle>,
        seen: &IdentityRecord,
    ) -> Result<(), Error> {
        let current = self
            .stores
            .registry
            .get(session.identity())
            .await
            .map_err(|error| self.store_error("read identity", error));
        let owner_enabled = match (&current, session.identity().is_module()) {
            (Ok(_), true) => self
                .stores
                .registry
                .get(&session.identity().owner())
                .await
                .map_err(|error| self.store_error("read identity", error))
                .map(|owner| owner.is_some_and(|owner| owner.status == Status::Enabled)),
            _ => Ok(true),
        };
        let outcome = match (current, owner_enabled) {
            (Err(error), _) | (_, Err(error)) => Err(error),
            (Ok(Some(now)), Ok(true))
                if now.generation_id == seen.generation_id
                    && now.status == Status::Enabled
                    && now.authentication == seen.authentication =>
            {
                Ok(())
            }
            _ => Err(Error::new(ErrorCode::IotHubUnauthorizedAccess, "Unauthorized")),
        };
        if outcome.is_err() {
            self.end_session(session, CloseReason::IdentityChanged);
        }
        outcome
    }

    /// See `DeviceGateway::disconnect`.
    pub(crate) fn close_session(&self, session: &Arc<SessionHandle>, how: Disconnect) {
        // A session that the engine has ended was counted then.
        if session.retire() {
            let reason = match how {
                Disconnect::Clean => SessionEnd::Clean,
                Disconnect::Lost | Disconnect::Closed => SessionEnd::Lost,
            };
            self.forget(session, reason);
        }
        self.release_later(session);
    }

    /// Ends a session from the engine's side. The head reports the end of the connection afterwards.
    pub(crate) fn end_session(&self, session: &Arc<SessionHandle>, reason: CloseReason) {
        if !session.close(reason) {
            return;
        }
        let end = match reason {
            CloseReason::TakenOver => SessionEnd::TakenOver,
            CloseReason::TokenExpired => SessionEnd::TokenExpired,
            CloseReason::IdentityChanged => SessionEnd::IdentityChanged,
            CloseReason::ShuttingDown => SessionEnd::ShuttingDown,
            CloseReason::StorageFailed => SessionEnd::StorageFailed,
        };
        self.forget(session, end);
    }

    /// Ends the sessions of an identity and, for a device, of its modules.
    pub(crate) fn end_sessions_of<'a>(&self, identities: impl IntoIterator<Item = &'a Identity>) {
        for identity in identities {
            if let Some(session) = self.sessions.get(identity.as_str()) {
                self.end_session(&session, CloseReason::IdentityChanged);
            }
        }
    }

    /// Ends the sessions that a policy or an authority has let in, after one of those changed. A session does not
    /// remember which one it was; those whose proof is still good come back at once.
    pub(crate) fn end_trusted_sessions(&self, auth: AuthMethod) {
        self.trust_changes.fetch_add(1, Ordering::SeqCst);
        for session in self.sessions.select(|session| session.origin.auth == auth) {
            self.end_session(&session, CloseReason::IdentityChanged);
        }
    }

    /// Ends all sessions.
    pub(crate) fn close_all(&self, reason: CloseReason) {
        for session in self.sessions.select(|_| true) {
            self.end_session(&session, reason);
        }
    }

    /// Drops everything the hub keeps of an ended session.
    fn forget(&self, session: &Arc<SessionHandle>, reason: SessionEnd) {
        self.calls.drop_session(session.epoch);
        if self.sessions.remove(session) {
            self.tell_connection(session.identity(), session.epoch, false);
            self.routing.senders.forget(session.identity());
            self.note_connection(session.identity(), false, self.last_heard(session));
        }
        SessionEnded {
            identity: session.identity().as_str(),
            epoch: session.epoch,
            reason,
        }
        .emit(&self.metrics);
    }

    /// Gives back what the session holds locked, without keeping its head waiting. Should the store fail, the locks end
    /// by themselves.
    fn release_later(&self, session: &Arc<SessionHandle>) {
        if session.identity().is_module() || !session.subscribed(Channel::CloudToDevice) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let queue = Arc::clone(&self.stores.c2d);
        let sessions = Arc::clone(&self.sessions);
        let (identity, epoch) = (session.identity().clone(), session.epoch);
        runtime.spawn(async move {
            // Looking is cheaper than a write, and mostly nothing waits.
            if matches!(queue.depth(&identity).await, Ok(0)) {
                return;
            }
            let released = queue.release(&identity, epoch).await;
            // A session that began meanwhile found these messages locked.
            if released.is_ok()
                && let Some(newer) = sessions.get(identity.as_str())
                && newer.subscribed(Channel::CloudToDevice)
            {
                let _ = newer.push(Downlink::CloudToDevice);
            }
        });
    }

    /// See `DeviceGateway::subscribe`.
    pub(crate) async fn change_subscriptions(
        &self,
        session: &Arc<SessionHandle>,
        subscriptions: Subscriptions,
    ) -> Result<(), Error> {
        if session.is_ended() {
            // A late change must not overwrite what the session that took over has stored.
            return Err(unavailable("the session has ended"));
        }
        let before = session.subscriptions();
        if session.persistent && before != subscriptions {
            self.stores
                .sessions
                .save_session(session.identity(), subscriptions)
                .await
                .map_err(|error| self.store_error("save session", error))?;
        }
        session.set_subscriptions(subscriptions);
        let is_new = |channel| subscriptions.contains(channel) && !before.contains(channel);
        if is_new(Channel::Methods) {
            self.calls.wake_callers(session.identity());
        }
        if is_new(Channel::CloudToDevice) {
            self.hint_waiting_c2d(session).await;
        }
        Ok(())
    }

    /// See [`push`].
    pub(crate) fn push_to(&self, identity: &Identity, channel: Channel, what: &'static str, item: Downlink) {
        push(&self.sessions, &self.metrics, identity, channel, what, item);
    }

    /// When the head of a session last heard of its client, in wall clock time.
    pub(crate) fn last_heard(&self, session: &SessionHandle) -> Timestamp {
        let second = self.stores.clock.monotonic_millis() / 1_000;
        let last = u64::from(session.last_activity());
        if last == 0 {
            return self.now();
        }
        self.now()
            .minus(std::time::Duration::from_secs(second.saturating_sub(last)))
    }

    fn note_connection(&self, identity: &Identity, connected: bool, last_activity_at: Timestamp) {
        let update = ConnectionUpdate {
            identity: identity.clone(),
            connected,
            updated_at: self.now(),
            last_activity_at,
        };
        self.connections.lock().insert(identity.clone(), update);
    }

    /// Saves the connection states noted since the last call. What cannot be saved is kept for the next call.
    pub(crate) async fn save_connections(&self) {
        let noted = std::mem::take(&mut *self.connections.lock());
        let mut updates: Vec<ConnectionUpdate> = noted.into_values().collect();
        while !updates.is_empty() {
            let batch = updates.split_off(updates.len().saturating_sub(CONNECTIONS_PER_SAVE));
            if let Err(error) = self.stores.registry.save_connections(batch.clone()).await {
                let _ = self.store_error("save connection states", error);
                updates.extend(batch);
                break;
            }
        }
        let mut connections = self.connections.lock();
        for update in updates {
            // A newer state may have been noted meanwhile.
            connections.entry(update.identity.clone()).or_insert(update);
        }
    }
}

/// A login under way whose session is in the directory already. If the head gives up waiting, the session would stay
/// there with nobody to end it; so it ends with this.
struct Opening<'a> {
    hub: &'a Hub,
    session: &'a Arc<SessionHandle>,
}

impl Opening<'_> {
    /// The head has the session from here on.
    fn done(self) {
        std::mem::forget(self);
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.hub.close_session(self.session, Disconnect::Lost);
    }
}

/// Whether a session was let in by a policy or a certificate authority, not by what its own record says.
pub(crate) fn depends_on_trust(session: &SessionHandle) -> bool {
    matches!(
        session.origin.auth,
        AuthMethod::PolicyKey | AuthMethod::CertificateAuthority
    )
}

fn unavailable(why: &str) -> Error {
    Error::new(ErrorCode::ServiceUnavailable, why)
}

/// Hands `item` to the live session of an identity if it has subscribed to `channel`. A full mailbox loses it.
pub(crate) fn push(
    sessions: &Directory,
    metrics: &Metrics,
    identity: &Identity,
    channel: Channel,
    what: &'static str,
    item: Downlink,
) {
    let Some(session) = sessions
        .get(identity.as_str())
        .filter(|session| session.subscribed(channel))
    else {
        return;
    };
    if session.push(item) == Err(MailboxError::Full) {
        DownlinkDropped {
            identity: identity.as_str(),
            what,
        }
        .emit(metrics);
    }
}
