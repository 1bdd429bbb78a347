//! The service side of the hub as protocol heads see it: tokens put on a connection, cloud-to-device messages, feedback,
//! and events.

use std::sync::Arc;

use holdfast_model::c2d::{AckMode, FeedbackBatch, LockToken};
use holdfast_model::credential::KeyFingerprint;
use holdfast_model::message::Message;
use holdfast_model::policy::Rights;
use holdfast_model::{Error, Identity, Timestamp};

use crate::BoxFuture;
use crate::event_log::EventLog;

/// What a checked credential lets its holder do. Kept by the head for as long as the connection lives, instead of the
/// credential itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// Whom it speaks for.
    pub holder: Holder,
    /// When it ends.
    pub expires_at: Timestamp,
    /// The policy's key that proved it; it ends with that key. `None` for identities, which their sessions judge.
    pub key: Option<KeyFingerprint>,
}

/// The holder of a [`Grant`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Holder {
    /// A device or module, by a key of its own.
    Identity(Identity),
    /// A shared access policy.
    Policy {
        /// Its name.
        name: String,
        /// Everything it may do.
        rights: Rights,
        /// Path below the host that the token names, lower case, without slashes at its ends; empty for the whole hub.
        scope: String,
    },
}

impl Grant {
    /// Whether it lets its holder do what needs `rights` on `path` (`devices/d1/messages/events`, without leading
    /// slash), compared segment by segment and without regard to case. A grant of an identity is no service's.
    #[must_use]
    pub fn allows_service(&self, rights: Rights, path: &str) -> bool {
        match &self.holder {
            Holder::Identity(_) => false,
            Holder::Policy {
                rights: held, scope, ..
            } => held.allows(rights) && covers(scope, path),
        }
    }

    /// Whether it lets its holder act as `identity`.
    #[must_use]
    pub fn allows_identity(&self, identity: &Identity) -> bool {
        match &self.holder {
            Holder::Identity(own) => own == identity,
            Holder::Policy { .. } => {
                let path = match identity.module_id() {
                    None => format!("devices/{}", identity.device_id()),
                    Some(module_id) => format!("devices/{}/modules/{module_id}", identity.device_id()),
                };
                self.allows_service(Rights::DEVICE_CONNECT, &path)
            }
        }
    }
}

fn covers(scope: &str, path: &str) -> bool {
    let mut wanted = path.trim_matches('/').split('/');
    scope
        .split('/')
        .filter(|segment| !segment.is_empty())
        .all(|segment| {
            wanted
                .next()
                .is_some_and(|other| other.eq_ignore_ascii_case(segment))
        })
}

/// What protocol heads ask of the hub on behalf of services.
pub trait ServiceGateway: Send + Sync + 'static {
    /// Checks a shared access signature as it is put on a connection (AMQP CBS, SASL PLAIN): of a policy, or of a device
    /// or module that its resource names. A host of the event endpoint is a host of the hub.
    ///
    /// # Errors
    /// `IotHubUnauthorized…`; `ServiceUnavailable`.
    fn verify_token<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Grant, Error>>;

    /// Checks the raw key of a policy, as old Event Hubs clients send it in SASL PLAIN.
    ///
    /// # Errors
    /// `IotHubUnauthorizedAccess`.
    fn verify_policy_key(&self, policy: &str, key: &str) -> Result<Grant, Error>;

    /// Whether the policy behind a grant still exists with the same rights and the key that proved it; identities are
    /// judged by their sessions.
    fn is_current(&self, grant: &Grant) -> bool;

    /// Queues a cloud-to-device message, durably; returns its sequence number.
    ///
    /// # Errors
    /// `DeviceNotFound`, `DeviceMaximumQueueDepthExceeded`, `MessageTooLarge`, `ArgumentInvalid`, `ServiceUnavailable`.
    fn send_c2d<'a>(
        &'a self,
        device: &'a Identity,
        message: Message,
        ack: AckMode,
        expires_at: Option<Timestamp>,
    ) -> BoxFuture<'a, Result<u64, Error>>;

    /// Locks a batch of feedback records if one is due.
    ///
    /// # Errors
    /// `ServiceUnavailable`.
    fn receive_feedback(&self) -> BoxFuture<'_, Result<Option<FeedbackBatch>, Error>>;

    /// Removes (`complete`) or gives back a locked feedback batch.
    ///
    /// # Errors
    /// `DeviceMessageLockLost`.
    fn settle_feedback(&self, lock: LockToken, complete: bool) -> BoxFuture<'_, Result<(), Error>>;

    /// All consumer groups of the event log.
    ///
    /// # Errors
    /// `ServiceUnavailable`.
    fn consumer_groups(&self) -> BoxFuture<'_, Result<Vec<String>, Error>>;

    /// The event log, for reading, and for senders to the event endpoint.
    fn event_log(&self) -> Arc<dyn EventLog>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_grants_cover_by_segments() {
        let grant = |scope: &str| Grant {
            holder: Holder::Policy {
                name: "p".to_owned(),
                rights: Rights::SERVICE_CONNECT.union(Rights::DEVICE_CONNECT),
                scope: scope.to_owned(),
            },
            expires_at: Timestamp::MAX,
            key: None,
        };
        let d1 = Identity::device("D1").expect("an id");
        let d11 = Identity::device("D11").expect("an id");
        assert!(grant("").allows_identity(&d1));
        assert!(grant("devices/d1").allows_identity(&d1));
        assert!(!grant("devices/d1").allows_identity(&d11));
        assert!(!grant("devices/d1/messages").allows_identity(&d1));
        assert!(grant("messages").allows_service(Rights::SERVICE_CONNECT, "/messages/deviceBound"));
        assert!(!grant("messages").allows_service(Rights::REGISTRY_READ, "/messages/deviceBound"));
        let own = Grant {
            holder: Holder::Identity(d1.clone()),
            expires_at: Timestamp::MAX,
            key: None,
        };
        assert!(own.allows_identity(&d1) && !own.allows_identity(&d11));
        assert!(!own.allows_service(Rights::NONE, "messages"));
    }
}
