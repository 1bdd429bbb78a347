//! A client over MQTT: one connection, opened when it is wanted, renewed before its token ends.
//!
//! [`MqttClient`] is the callers' side, `task` the life of the connection over all its lives, `connection` one of them.
//! Messages are encoded by the caller that sends them and stay with it until they are acknowledged, so that a connection
//! that breaks costs no copy: whatever was not acknowledged is encoded again on the next one, in order.

mod connection;
mod state;
mod task;

use std::sync::Arc;

use bytes::Bytes;
use holdfast_model::limits::D2C_BYTES_MAX;
use holdfast_model::message::Message;
use holdfast_model::method::MethodResponse;
use holdfast_mqtt::SendError;
use holdfast_mqtt::codec::PacketId;
use holdfast_ports::BoxFuture;
use holdfast_wire::topics;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::Core;
use crate::port::{Account, CloudClient, CloudError, CloudEvent, Interests, SendFailure, Settle};
use crate::pushes::Pushes;
use state::{Answer, Fate, OUT_BYTES_MAX, Phase, REQUESTS_MAX, Request, Shared, State};

/// Longest topic, in bytes (MQTT 1.5.3).
const TOPIC_BYTES_MAX: usize = 65_535;

/// Implements [`CloudClient`] over MQTT.
pub(crate) struct MqttClient {
    shared: Arc<Shared>,
}

impl MqttClient {
    pub(crate) fn new(core: Arc<Core>, account: Account) -> Self {
        let window = core.config.tuning.window;
        let shared = Arc::new(Shared {
            core,
            account,
            state: parking_lot::Mutex::new(State::new(window)),
            changed: Notify::new(),
            progress: Notify::new(),
            pushes: Pushes::default(),
            sending: tokio::sync::Mutex::new(()),
        });
        tokio::spawn(task::run(Arc::clone(&shared)));
        MqttClient { shared }
    }
}

impl Drop for MqttClient {
    fn drop(&mut self) {
        self.shared.state.lock().closing = true;
        self.shared.changed.notify_one();
    }
}

/// How far a batch has come.
struct Progress {
    /// Messages from the front that are acknowledged.
    accepted: usize,
    /// Messages from the front that are on their way on `connection`.
    sent: usize,
    connection: u64,
    /// Token of the message at the index `base_index`, on `connection`.
    base: u64,
    base_index: usize,
}

impl Progress {
    /// Reads off what was acknowledged on the connection that carries the batch, or carried it.
    fn update(&mut self, state: &State) {
        let first_unacked = if state.connection == self.connection {
            state.first_unacked
        } else if state.ended.0 == self.connection {
            state.ended.1
        } else {
            return;
        };
        let acknowledged = first_unacked.saturating_sub(self.base);
        let acknowledged = usize::try_from(acknowledged).unwrap_or(usize::MAX);
        self.accepted = self.accepted.max((self.base_index + acknowledged).min(self.sent));
    }
}

impl Shared {
    /// Why nothing can be sent now and waiting is of no use; asks for the connection otherwise.
    fn blocked(&self, state: &mut State) -> Option<CloudError> {
        if !state.demand && state.phase != Phase::Open {
            state.demand = true;
            self.changed.notify_one();
        }
        match &state.phase {
            Phase::Open => None,
            Phase::Waiting(cause) => Some(cause.clone()),
            Phase::Closed | Phase::Opening if self.core.gate.is_offline() => {
                let host = self.core.route.host();
                Some(CloudError::Unreachable(format!("no connection to {host}")))
            }
            Phase::Closed | Phase::Opening => None,
        }
    }

    /// Waits for the connection.
    async fn opened(&self) -> Result<(), CloudError> {
        let deadline = Instant::now() + self.core.config.tuning.connect_timeout;
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            {
                let mut state = self.state.lock();
                if state.phase == Phase::Open && !state.draining {
                    return Ok(());
                }
                if let Some(cause) = self.blocked(&mut state) {
                    return Err(cause);
                }
            }
            self.wait(progress, deadline).await?;
        }
    }

    /// Waits until something has changed; fails at `deadline`.
    async fn wait(&self, progress: impl Future<Output = ()>, deadline: Instant) -> Result<(), CloudError> {
        let mut reach = self.core.gate.reach();
        let changed = async {
            tokio::select! {
                () = progress => {}
                // Offline: there is nothing to wait for.
                _ = reach.changed() => {}
            }
        };
        timeout_at(deadline, changed)
            .await
            .map_err(|_| CloudError::Unreachable("the connection is not there in time".to_owned()))
    }

    async fn send_all(&self, messages: &[Message]) -> Result<(), SendFailure> {
        let _turn = self.sending.lock().await;
        let mut progress = Progress {
            accepted: 0,
            sent: 0,
            connection: 0,
            base: 0,
            base_index: 0,
        };
        let patience = self.core.config.tuning.acknowledge_timeout;
        let mut deadline = Instant::now() + patience;
        let mut topic = String::new();
        loop {
            let changed = self.progress.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let before = progress.accepted;
            let wake = {
                let mut state = self.state.lock();
                self.advance(&mut state, messages, &mut progress, &mut topic)
            };
            let fail = |progress: &Progress, cause| SendFailure {
                accepted: progress.accepted,
                cause,
            };
            match wake {
                Ok(true) => self.changed.notify_one(),
                Ok(false) => {}
                Err(cause) => return Err(fail(&progress, cause)),
            }
            if progress.accepted == messages.len() {
                return Ok(());
            }
            if progress.accepted > before {
                deadline = Instant::now() + patience;
            }
            if self.wait(changed, deadline).await.is_err() {
                let mut state = self.state.lock();
                progress.update(&state);
                if progress.accepted == messages.len() {
                    return Ok(());
                }
                // What is in flight must not be acknowledged behind the back of whoever sends it again.
                state.reset = Some("messages were not acknowledged in time");
                self.changed.notify_one();
                let seconds = patience.as_secs();
                let cause = CloudError::Unreachable(format!("no acknowledgement within {seconds} s"));
                return Err(fail(&progress, cause));
            }
        }
    }

    /// Reads off acknowledgements and puts as many messages on their way as fit; says whether the task has work.
    fn advance(
        &self,
        state: &mut State,
        messages: &[Message],
        progress: &mut Progress,
        topic: &mut String,
    ) -> Result<bool, CloudError> {
        progress.update(state);
        if progress.accepted == messages.len() {
            return Ok(false);
        }
        if state.phase != Phase::Open {
            return self.blocked(state).map_or(Ok(false), Err);
        }
        if state.draining {
            return Ok(false);
        }
        if state.connection != progress.connection {
            progress.connection = state.connection;
            progress.sent = progress.accepted;
            progress.base = state.next_token;
            progress.base_index = progress.accepted;
        }
        let before = progress.sent;
        while let Some(message) = messages.get(progress.sent)
            && state.out.len() < OUT_BYTES_MAX
        {
            match self.put(state, message, topic) {
                Ok(()) => progress.sent += 1,
                Err(Unsent::Full) => break,
                // What stands before it is acknowledged first, so that the count is right.
                Err(Unsent::Refused(_)) if progress.accepted < progress.sent => break,
                Err(Unsent::Refused(cause)) => return Err(cause),
            }
        }
        Ok(progress.sent > before)
    }

    fn put(&self, state: &mut State, message: &Message, topic: &mut String) -> Result<(), Unsent> {
        let refused = |message: String| Unsent::Refused(CloudError::Refused { status: 413, message });
        if message.size() > D2C_BYTES_MAX {
            let size = message.size();
            return Err(refused(format!(
                "the message has {size} bytes; at most {D2C_BYTES_MAX} are taken"
            )));
        }
        topic.clear();
        topics::telemetry(topic, self.identity(), message);
        if topic.len() > TOPIC_BYTES_MAX {
            return Err(refused(format!(
                "the properties need more than {TOPIC_BYTES_MAX} bytes"
            )));
        }
        match state.publish(topic, &message.body, self.now()) {
            Ok(()) => Ok(()),
            Err(SendError::Encode(error)) => Err(Unsent::Refused(CloudError::Refused {
                status: 400,
                message: error.to_string(),
            })),
            Err(_) => Err(Unsent::Full),
        }
    }

    /// A twin request and its answer; tried a second time when the connection breaks under it.
    async fn request(&self, topic: fn(&mut String, u32), body: &[u8]) -> Result<Answer, CloudError> {
        match self.request_once(topic, body).await {
            Err(None) => match self.request_once(topic, body).await {
                Err(None) => Err(CloudError::Unreachable("the connection broke".to_owned())),
                Err(Some(cause)) => Err(cause),
                Ok(answer) => Ok(answer),
            },
            Err(Some(cause)) => Err(cause),
            Ok(answer) => Ok(answer),
        }
    }

    /// `Err(None)`: the connection broke.
    async fn request_once(
        &self,
        topic: fn(&mut String, u32),
        body: &[u8],
    ) -> Result<Answer, Option<CloudError>> {
        self.opened().await?;
        let (rid, answered) = self.ask(topic, body)?;
        self.changed.notify_one();
        let limit = self.core.config.tuning.request_timeout;
        let forget = Forget { shared: self, rid };
        let answer = match tokio::time::timeout(limit, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => return Err(None),
            Err(_) => {
                let seconds = limit.as_secs();
                let text = format!("no answer to a twin request within {seconds} s");
                return Err(Some(CloudError::Unreachable(text)));
            }
        };
        std::mem::forget(forget);
        match answer.status {
            200..=299 => Ok(answer),
            status => Err(Some(refusal(status, &answer.body))),
        }
    }

    fn ask(
        &self,
        topic: fn(&mut String, u32),
        body: &[u8],
    ) -> Result<(u32, oneshot::Receiver<Answer>), Option<CloudError>> {
        let mut state = self.state.lock();
        if state.phase != Phase::Open {
            return Err(None);
        }
        if state.requests.len() >= REQUESTS_MAX {
            let text = format!("{REQUESTS_MAX} twin requests wait already");
            return Err(Some(CloudError::Unreachable(text)));
        }
        state.next_rid = state.next_rid.wrapping_add(1).max(1);
        let rid = state.next_rid;
        let mut text = String::with_capacity(64);
        topic(&mut text, rid);
        state.tell(&text, body, self.now()).map_err(|error| match error {
            SendError::Encode(error) => Some(CloudError::Refused {
                status: 400,
                message: error.to_string(),
            }),
            _ => None,
        })?;
        let (reply, answered) = oneshot::channel();
        state.requests.push(Request { rid, reply });
        Ok((rid, answered))
    }
}

/// Takes the request out of the list when its caller gives up.
struct Forget<'a> {
    shared: &'a Shared,
    rid: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.shared
            .state
            .lock()
            .requests
            .retain(|request| request.rid != self.rid);
    }
}

enum Unsent {
    Full,
    Refused(CloudError),
}

/// What a status that is no success means.
fn refusal(status: u16, body: &[u8]) -> CloudError {
    crate::https::cloud_error(status, body)
}

impl CloudClient for MqttClient {
    fn want(&self, interests: Interests) {
        let mut interests = interests;
        interests.cloud_to_device &= !self.shared.identity().is_module();
        let changed = {
            let mut state = self.shared.state.lock();
            std::mem::replace(&mut state.interests, interests) != interests
        };
        if changed {
            self.shared.changed.notify_one();
        }
    }

    fn send<'a>(&'a self, messages: &'a [Message]) -> BoxFuture<'a, Result<(), SendFailure>> {
        Box::pin(self.shared.send_all(messages))
    }

    fn twin(&self) -> BoxFuture<'_, Result<Bytes, CloudError>> {
        Box::pin(async {
            let answer = self.shared.request(topics::twin_get, b" ").await?;
            Ok(answer.body)
        })
    }

    fn patch_reported(&self, patch: Bytes) -> BoxFuture<'_, Result<u64, CloudError>> {
        Box::pin(async move {
            let answer = self.shared.request(topics::twin_patch_reported, &patch).await?;
            Ok(answer.version.unwrap_or(0))
        })
    }

    fn answer(&self, request_id: u64, response: MethodResponse) {
        {
            let mut state = self.shared.state.lock();
            let Some(rid) = state.take_method(request_id) else {
                return;
            };
            let mut topic = String::with_capacity(64);
            topics::method_response(&mut topic, response.status, &rid);
            // It fails only when the connection is gone, and the call with it.
            let _ = state.tell(&topic, &response.payload, self.shared.now());
        }
        self.shared.changed.notify_one();
    }

    fn settle(&self, token: u64, how: Settle) {
        {
            let mut state = self.shared.state.lock();
            let (connection, packet_id) = (token >> 16, (token & 0xffff) as u16);
            let Some(packet_id) = PacketId::new(packet_id).filter(|_| connection == state.connection) else {
                return;
            };
            let fate = match how {
                Settle::Complete | Settle::Reject => Fate::Acknowledge,
                Settle::Abandon => Fate::Leave,
            };
            state.decide(packet_id, fate, self.shared.now());
        }
        self.shared.changed.notify_one();
    }

    fn next(&self) -> BoxFuture<'_, CloudEvent> {
        Box::pin(self.shared.pushes.next())
    }
}
