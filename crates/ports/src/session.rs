//! Live device sessions: the handle that head and engine share, and its mailbox.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use holdfast_model::event::Origin;
use holdfast_model::limits::MAILBOX_ITEMS_MAX;
use holdfast_model::method::MethodRequest;
use holdfast_model::subscription::{Channel, Subscriptions};
use holdfast_model::{Identity, Timestamp};
use parking_lot::Mutex;

/// Why the engine ends a session (mqtt.md section 7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CloseReason {
    /// A newer connection of the same identity took over.
    TakenOver,
    /// The token's time has come.
    TokenExpired,
    /// The identity was disabled, deleted, or its credentials changed.
    IdentityChanged,
    /// The hub is stopping.
    ShuttingDown,
    /// The hub cannot store events any more.
    StorageFailed,
}

/// What the engine hands to a session. Nothing of it is stored: state is the truth, and a lost hint heals on reconnect.
#[derive(Clone, Debug)]
pub enum Downlink {
    /// Call a direct method; the answer goes to `DeviceGateway::complete_method`.
    Method(MethodRequest),
    /// Desired properties changed.
    Desired {
        /// The section's new version.
        version: u64,
        /// JSON object of the changes with `$version`; a removed key is null.
        patch: Bytes,
    },
    /// Cloud-to-device messages, or at an edge hub messages for a module's inputs, may be waiting: call
    /// `DeviceGateway::receive_c2d`.
    CloudToDevice,
}

/// The mailbox holds [`MAILBOX_ITEMS_MAX`] items already, or the session has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MailboxError {
    /// The session does not keep up.
    Full,
    /// The session has ended.
    Closed,
}

/// One live connection of an identity, shared between its protocol head and the engine.
///
/// Small on purpose: a hub keeps tens of thousands of them, and an idle one may cost one KiB in all. The queue of the
/// mailbox is allocated on first use and freed when empty.
pub struct SessionHandle {
    /// Who, and the stamps of its telemetry.
    pub origin: Origin,
    /// Partition its telemetry goes to.
    pub partition: u16,
    /// Number of this session, unique over the life of the store and growing; a takeover has a higher one.
    pub epoch: u64,
    /// When its credential ends, in microseconds.
    expires_at: AtomicI64,
    /// Whether its subscriptions outlive the connection.
    pub persistent: bool,
    /// Model id announced at the login; boxed twice, so that the many without one pay a single pointer.
    #[allow(clippy::box_collection, reason = "eight bytes for the session without one")]
    data_schema: Option<Box<Box<str>>>,
    /// Second of the hub's monotonic clock at which the head last heard of the client.
    last_activity: AtomicU32,
    subscriptions: AtomicU32,
    /// Set, under the mailbox's lock, by [`SessionHandle::close`] and [`SessionHandle::retire`]; read without it.
    ended: AtomicBool,
    mailbox: Mutex<Mailbox>,
}

#[derive(Default)]
struct Mailbox {
    // Boxed: an empty VecDeque inline would be 32 bytes, and nearly every session is idle.
    #[allow(clippy::box_collection, reason = "eight bytes for the idle session")]
    items: Option<Box<VecDeque<Downlink>>>,
    waker: Option<Waker>,
    closed: Option<CloseReason>,
}

impl SessionHandle {
    /// A live session.
    #[must_use]
    pub fn new(
        origin: Origin,
        partition: u16,
        epoch: u64,
        expires_at: Timestamp,
        persistent: bool,
        subscriptions: Subscriptions,
    ) -> Self {
        SessionHandle {
            origin,
            partition,
            epoch,
            expires_at: AtomicI64::new(expires_at.as_micros()),
            persistent,
            data_schema: None,
            last_activity: AtomicU32::new(0),
            subscriptions: AtomicU32::new(u32::from(subscriptions.bits())),
            ended: AtomicBool::new(false),
            mailbox: Mutex::new(Mailbox::default()),
        }
    }

    /// For the engine: with the model id that the client announced.
    #[must_use]
    pub fn with_data_schema(mut self, model_id: Option<&str>) -> Self {
        self.data_schema = model_id.filter(|id| !id.is_empty()).map(|id| Box::new(id.into()));
        self
    }

    /// Model id that the client announced at its login; its telemetry carries it (languages.md 7.3).
    #[must_use]
    pub fn data_schema(&self) -> Option<&str> {
        self.data_schema.as_ref().map(|id| &***id)
    }

    /// Whether the session has ended, by the engine or by its head. One atomic load: the hot path asks it for every
    /// run of telemetry.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// For the engine, when the head has reported the end of the connection: nothing is pushed from now on, and what
    /// waits is dropped. There is no close reason; the head must not poll again. True when this call ended it.
    pub fn retire(&self) -> bool {
        let mut mailbox = self.mailbox.lock();
        mailbox.items = None;
        mailbox.waker = None;
        !self.ended.swap(true, Ordering::AcqRel)
    }

    /// Who.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.origin.identity
    }

    /// When its credential ends; [`Timestamp::MAX`] for certificates.
    #[must_use]
    pub fn expires_at(&self) -> Timestamp {
        Timestamp::from_micros(self.expires_at.load(Ordering::Relaxed))
    }

    /// For the engine: the credential was renewed.
    pub fn set_expires_at(&self, expires_at: Timestamp) {
        self.expires_at.store(expires_at.as_micros(), Ordering::Relaxed);
    }

    /// What it has subscribed to. Changed only through `DeviceGateway::subscribe`.
    #[must_use]
    pub fn subscriptions(&self) -> Subscriptions {
        Subscriptions::from_bits(self.subscriptions.load(Ordering::Acquire) as u16)
    }

    /// Whether `channel` is subscribed.
    #[must_use]
    pub fn subscribed(&self, channel: Channel) -> bool {
        self.subscriptions().contains(channel)
    }

    /// For the engine: makes a changed set visible.
    pub fn set_subscriptions(&self, subscriptions: Subscriptions) {
        self.subscriptions
            .store(u32::from(subscriptions.bits()), Ordering::Release);
    }

    /// For the head: notes that the client was heard of, in seconds of the hub's monotonic clock.
    pub fn touch(&self, monotonic_second: u32) {
        self.last_activity.store(monotonic_second, Ordering::Relaxed);
    }

    /// Second of the hub's monotonic clock at which the client was last heard of.
    #[must_use]
    pub fn last_activity(&self) -> u32 {
        self.last_activity.load(Ordering::Relaxed)
    }

    /// For the engine: hands `item` to the head.
    ///
    /// # Errors
    /// [`MailboxError`]; the item is lost then.
    pub fn push(&self, item: Downlink) -> Result<(), MailboxError> {
        let waker = {
            let mut mailbox = self.mailbox.lock();
            if self.is_ended() {
                return Err(MailboxError::Closed);
            }
            let items = mailbox.items.get_or_insert_default();
            // A second hint to look into the queue says nothing new.
            let repeated = matches!(item, Downlink::CloudToDevice)
                && items
                    .iter()
                    .any(|waiting| matches!(waiting, Downlink::CloudToDevice));
            if repeated {
                return Ok(());
            }
            if items.len() >= MAILBOX_ITEMS_MAX {
                return Err(MailboxError::Full);
            }
            items.push_back(item);
            mailbox.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// For the engine: ends the session. The first reason stays. True when this call ended it.
    pub fn close(&self, reason: CloseReason) -> bool {
        let (first, waker) = {
            let mut mailbox = self.mailbox.lock();
            mailbox.closed.get_or_insert(reason);
            mailbox.items = None;
            (!self.ended.swap(true, Ordering::AcqRel), mailbox.waker.take())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        first
    }

    /// Why the engine ended the session, if it did.
    #[must_use]
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.mailbox.lock().closed
    }

    /// For the head: the next item, or the reason why there will be none. Registers the task's waker when pending.
    pub fn poll_next(&self, context: &mut Context<'_>) -> Poll<Result<Downlink, CloseReason>> {
        let mut mailbox = self.mailbox.lock();
        if let Some(reason) = mailbox.closed {
            return Poll::Ready(Err(reason));
        }
        if let Some(items) = &mut mailbox.items
            && let Some(item) = items.pop_front()
        {
            if items.is_empty() {
                mailbox.items = None;
            }
            return Poll::Ready(Ok(item));
        }
        match &mut mailbox.waker {
            Some(waker) => waker.clone_from(context.waker()),
            slot => *slot = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl fmt::Debug for SessionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionHandle")
            .field("identity", &self.origin.identity)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use holdfast_model::event::{AuthMethod, EventSource};

    use super::*;

    fn session() -> SessionHandle {
        let origin = Origin {
            source: EventSource::Telemetry,
            identity: Identity::device("d1").expect("an id"),
            generation_id: 1,
            auth: AuthMethod::IdentityKey,
        };
        SessionHandle::new(origin, 0, 1, Timestamp::MAX, true, Subscriptions::NONE)
    }

    #[test]
    fn stays_small() {
        assert!(
            size_of::<SessionHandle>() <= 128,
            "{}",
            size_of::<SessionHandle>()
        );
    }

    #[test]
    fn mailbox_is_bounded_and_ordered() {
        let session = session();
        let mut context = Context::from_waker(Waker::noop());
        assert!(session.poll_next(&mut context).is_pending());
        for version in 0..MAILBOX_ITEMS_MAX as u64 {
            session
                .push(Downlink::Desired {
                    version,
                    patch: Bytes::new(),
                })
                .expect("room");
        }
        assert_eq!(session.push(Downlink::CloudToDevice), Err(MailboxError::Full));
        for expected in 0..MAILBOX_ITEMS_MAX as u64 {
            let Poll::Ready(Ok(Downlink::Desired { version, .. })) = session.poll_next(&mut context) else {
                panic!("an item is waiting");
            };
            assert_eq!(version, expected);
        }
        session.push(Downlink::CloudToDevice).expect("room");
        session
            .push(Downlink::CloudToDevice)
            .expect("a repeated hint is dropped");
        assert!(session.poll_next(&mut context).is_ready());
        assert!(session.poll_next(&mut context).is_pending());
    }

    #[test]
    fn a_retired_session_takes_nothing() {
        let session = session();
        session.push(Downlink::CloudToDevice).expect("room");
        assert!(!session.is_ended());
        session.retire();
        assert!(session.is_ended());
        assert_eq!(session.push(Downlink::CloudToDevice), Err(MailboxError::Closed));
        assert_eq!(session.close_reason(), None);
    }

    #[test]
    fn the_first_close_reason_stays() {
        let session = session();
        session.close(CloseReason::TakenOver);
        session.close(CloseReason::ShuttingDown);
        assert_eq!(session.close_reason(), Some(CloseReason::TakenOver));
        assert!(session.is_ended());
        assert_eq!(session.push(Downlink::CloudToDevice), Err(MailboxError::Closed));
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(Err(CloseReason::TakenOver)) = session.poll_next(&mut context) else {
            panic!("closed");
        };
    }
}
