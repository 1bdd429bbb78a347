//! The service side of the small hub. Tokens are words: `device:d1`, `device:d1/m1`, `policy:service`; with `@` and the
//! second at which they end, counted from the beginning of the test.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_model::c2d::{AckMode, FeedbackBatch, LockToken};
use holdfast_model::credential::SymmetricKey;
use holdfast_model::message::Message;
use holdfast_model::policy::Rights;
use holdfast_model::{Error, ErrorCode, Identity, Timestamp};
use holdfast_ports::BoxFuture;
use holdfast_ports::clock::{Clock, SystemClock};
use holdfast_ports::event_log::EventLog;
use holdfast_ports::memory::event_log::MemoryLog;
use holdfast_ports::service::{Grant, Holder, ServiceGateway};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::amqp_client::START;

/// What `PLAIN` policies of old clients prove themselves with.
pub(crate) const POLICY_KEY: &str = "a raw key";

pub(crate) struct FakeServices {
    policies: Mutex<HashMap<String, (Rights, SymmetricKey)>>,
    sent: Mutex<Vec<(String, Vec<u8>)>>,
    feedback: Mutex<Feedback>,
    pub(crate) log: Arc<MemoryLog>,
    judging: watch::Sender<bool>,
    /// The head's.
    clock: Arc<dyn Clock>,
}

/// One record per batch.
#[derive(Default)]
struct Feedback {
    ready: u64,
    next: u64,
    locked: Vec<(LockToken, Timestamp)>,
    complete: u64,
}

fn unauthorized(text: &str) -> Error {
    Error::new(ErrorCode::IotHubUnauthorizedAccess, text.to_owned())
}

impl FakeServices {
    pub(crate) fn new() -> Arc<Self> {
        Self::with_clock(Arc::new(SystemClock::new()))
    }

    pub(crate) fn with_clock(clock: Arc<dyn Clock>) -> Arc<Self> {
        let policies = [
            ("service", Rights::SERVICE_CONNECT),
            ("device", Rights::DEVICE_CONNECT),
            ("registryRead", Rights::REGISTRY_READ),
        ];
        let policies = policies.map(|(name, rights)| (name.to_owned(), (rights, SymmetricKey::generate())));
        Arc::new(FakeServices {
            policies: Mutex::new(HashMap::from(policies)),
            sent: Mutex::default(),
            feedback: Mutex::default(),
            log: Arc::new(MemoryLog::new(2)),
            judging: watch::channel(true).0,
            clock,
        })
    }

    /// Tokens wait for their answer until told otherwise.
    pub(crate) fn hold_tokens(&self, held: bool) {
        self.judging.send_replace(!held);
    }

    /// A new key for a policy.
    pub(crate) fn rotate(&self, policy: &str) {
        if let Some((_, key)) = self.policies.lock().get_mut(policy) {
            *key = SymmetricKey::generate();
        }
    }

    /// Cloud-to-device messages sent: device, body.
    pub(crate) fn sent(&self) -> Vec<(String, Vec<u8>)> {
        self.sent.lock().clone()
    }

    /// Batches of feedback to be received.
    pub(crate) fn make_feedback(&self, batches: u64) {
        self.feedback.lock().ready += batches;
    }

    /// Batches that were completed.
    pub(crate) fn feedback_complete(&self) -> u64 {
        self.feedback.lock().complete
    }

    fn grant(&self, token: &str) -> Result<Grant, Error> {
        let (token, expires_at) = match token.split_once('@') {
            None => (token, Timestamp::MAX),
            Some((token, at)) => {
                let seconds: i64 = at.parse().map_err(|_| unauthorized("no time"))?;
                (token, Timestamp::from_seconds(START + seconds))
            }
        };
        if let Some(name) = token.strip_prefix("policy:") {
            let policies = self.policies.lock();
            let (rights, key) = policies.get(name).ok_or(unauthorized("no such policy"))?;
            return Ok(Grant {
                holder: Holder::Policy {
                    name: name.to_owned(),
                    rights: *rights,
                    scope: String::new(),
                },
                expires_at,
                key: Some(key.fingerprint()),
            });
        }
        let identity = token
            .strip_prefix("device:")
            .and_then(|text| Identity::parse(text).ok())
            .ok_or(unauthorized("not a token"))?;
        Ok(Grant {
            holder: Holder::Identity(identity),
            expires_at,
            key: None,
        })
    }
}

impl ServiceGateway for FakeServices {
    fn verify_token<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Grant, Error>> {
        Box::pin(async move {
            let mut judging = self.judging.subscribe();
            let _ = judging.wait_for(|judging| *judging).await;
            self.grant(token)
        })
    }

    fn verify_policy_key(&self, policy: &str, key: &str) -> Result<Grant, Error> {
        match key == POLICY_KEY {
            true => self.grant(&format!("policy:{policy}")),
            false => Err(unauthorized("not the key")),
        }
    }

    fn is_current(&self, grant: &Grant) -> bool {
        match &grant.holder {
            Holder::Identity(_) => true,
            Holder::Policy { name, rights, .. } => self
                .policies
                .lock()
                .get(name)
                .is_some_and(|(held, key)| held == rights && Some(key.fingerprint()) == grant.key),
        }
    }

    fn send_c2d<'a>(
        &'a self,
        device: &'a Identity,
        message: Message,
        _ack: AckMode,
        _expires_at: Option<Timestamp>,
    ) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            match device.device_id() {
                "nobody" => Err(Error::new(ErrorCode::DeviceNotFound, "no such device")),
                "full" => Err(Error::new(
                    ErrorCode::DeviceMaximumQueueDepthExceeded,
                    "the queue is full",
                )),
                _ => {
                    let mut sent = self.sent.lock();
                    sent.push((device.to_string(), message.body.to_vec()));
                    Ok(sent.len() as u64)
                }
            }
        })
    }

    fn receive_feedback(&self) -> BoxFuture<'_, Result<Option<FeedbackBatch>, Error>> {
        Box::pin(async {
            let now = self.clock.now();
            let mut feedback = self.feedback.lock();
            let before = feedback.locked.len();
            feedback.locked.retain(|(_, until)| *until > now);
            feedback.ready += (before - feedback.locked.len()) as u64;
            if feedback.ready == 0 {
                return Ok(None);
            }
            feedback.ready -= 1;
            feedback.next += 1;
            let lock = LockToken {
                sequence_number: feedback.next,
                nonce: 1,
            };
            let locked_until = now.plus(Duration::from_secs(60));
            feedback.locked.push((lock, locked_until));
            Ok(Some(FeedbackBatch {
                lock,
                locked_until,
                records: Vec::new(),
            }))
        })
    }

    fn settle_feedback(&self, lock: LockToken, complete: bool) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let now = self.clock.now();
            let mut feedback = self.feedback.lock();
            let held = |(token, until): &(LockToken, Timestamp)| *token == lock && *until > now;
            let Some(place) = feedback.locked.iter().position(held) else {
                return Err(Error::new(ErrorCode::DeviceMessageLockLost, "no such lock"));
            };
            feedback.locked.remove(place);
            match complete {
                true => feedback.complete += 1,
                false => feedback.ready += 1,
            }
            Ok(())
        })
    }

    fn consumer_groups(&self) -> BoxFuture<'_, Result<Vec<String>, Error>> {
        Box::pin(async { Ok(vec!["$Default".to_owned()]) })
    }

    fn event_log(&self) -> Arc<dyn EventLog> {
        Arc::clone(&self.log) as Arc<dyn EventLog>
    }
}
