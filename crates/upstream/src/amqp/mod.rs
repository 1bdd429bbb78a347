//! Clients over AMQP: all that prove themselves by keys share one connection ([`Trunk`]), with a token per key and a session
//! per client; a client with a certificate has a connection of its own.
//!
//! [`AmqpClient`] is the callers' side, `task` the life of the connection over all its lives, `connection` one of them,
//! `members` what each client has on it. As over MQTT, messages are encoded by the caller that sends them and stay with it
//! until the hub has accepted them.

mod connection;
mod members;
mod messages;
mod state;
mod task;

use std::sync::Arc;

use bytes::Bytes;
use holdfast_amqp::SendError;
use holdfast_amqp::connection::Outgoing;
use holdfast_amqp::performatives::{DeliveryState, condition};
use holdfast_model::limits::D2C_BYTES_MAX;
use holdfast_model::message::Message;
use holdfast_model::method::MethodResponse;
use holdfast_ports::BoxFuture;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::Core;
use crate::port::{Account, CloudClient, CloudError, CloudEvent, Interests, SendFailure, Settle};
use crate::pushes::Pushes;
use messages::TwinOperation;
use state::{Answer, Flight, Kind, Member, OUT_BYTES_MAX, Phase, REQUESTS_MAX, State};

pub(crate) use state::Trunk;

impl Trunk {
    /// A connection that is opened when a client wants it. `own` is the one client it is for, if its certificate speaks for
    /// the whole connection.
    pub(crate) fn new(core: Arc<Core>, own: Option<Account>) -> Arc<Self> {
        let trunk = Arc::new(Trunk {
            core,
            own,
            state: parking_lot::Mutex::new(State::new()),
            changed: Notify::new(),
        });
        tokio::spawn(task::run(Arc::clone(&trunk)));
        trunk
    }

    /// Ends the connection for good, as soon as it has no clients.
    pub(crate) fn close(&self) {
        self.state.lock().closing = true;
        self.changed.notify_one();
    }

    /// A client of that account.
    pub(crate) fn client(self: &Arc<Self>, account: Account) -> AmqpClient {
        let (progress, pushes) = (Arc::new(Notify::new()), Arc::new(Pushes::default()));
        let is_module = account.identity.is_module();
        let number = {
            let mut state = self.state.lock();
            state.next_member += 1;
            let number = state.next_member;
            let member = Member::new(account, Arc::clone(&progress), Arc::clone(&pushes));
            state.members.insert(number, member);
            number
        };
        AmqpClient {
            trunk: Arc::clone(self),
            number,
            is_module,
            progress,
            pushes,
            sending: tokio::sync::Mutex::new(()),
        }
    }
}

/// Implements [`CloudClient`] over AMQP.
pub(crate) struct AmqpClient {
    trunk: Arc<Trunk>,
    number: u64,
    is_module: bool,
    progress: Arc<Notify>,
    pushes: Arc<Pushes>,
    sending: tokio::sync::Mutex<()>,
}

impl Drop for AmqpClient {
    fn drop(&mut self) {
        {
            let mut state = self.trunk.state.lock();
            state.closing |= self.trunk.own.is_some();
            if let Some(member) = state.members.get_mut(&self.number) {
                member.closing = true;
            }
        }
        self.trunk.changed.notify_one();
    }
}

/// How far a batch has come.
#[derive(Default)]
struct Progress {
    accepted: usize,
    sent: usize,
    epoch: u64,
    base: u64,
    base_index: usize,
}

impl Progress {
    fn update(&mut self, member: &Member) {
        // The end of a life comes first: after it nothing is in flight, which must not pass for accepted.
        let first_unacked = if member.ended.0 == self.epoch {
            member.ended.1
        } else if member.epoch == self.epoch {
            member.first_unacked()
        } else {
            return;
        };
        let accepted = usize::try_from(first_unacked.saturating_sub(self.base)).unwrap_or(usize::MAX);
        self.accepted = self.accepted.max((self.base_index + accepted).min(self.sent));
    }
}

impl AmqpClient {
    /// Why nothing can be done now and waiting is of no use; asks for the links otherwise.
    fn blocked(&self, state: &mut State) -> Option<CloudError> {
        let trunk = state.phase.clone();
        let member = state.members.get_mut(&self.number)?;
        if member.phase == Phase::Open {
            return None;
        }
        if !member.demand {
            member.demand = true;
            self.trunk.changed.notify_one();
        }
        match (&member.phase, trunk) {
            (Phase::Waiting(cause), _) => Some(cause.clone()),
            (_, Phase::Waiting(cause)) => Some(cause),
            (_, Phase::Open) => None,
            _ if self.trunk.core.gate.is_offline() => {
                let host = self.trunk.core.route.host();
                Some(CloudError::Unreachable(format!("no connection to {host}")))
            }
            _ => None,
        }
    }

    async fn wait(&self, progress: impl Future<Output = ()>, deadline: Instant) -> Result<(), CloudError> {
        let mut reach = self.trunk.core.gate.reach();
        let changed = async {
            tokio::select! {
                () = progress => {}
                _ = reach.changed() => {}
            }
        };
        timeout_at(deadline, changed)
            .await
            .map_err(|_| CloudError::Unreachable("the connection is not there in time".to_owned()))
    }

    async fn opened(&self) -> Result<(), CloudError> {
        let deadline = Instant::now() + self.trunk.core.config.tuning.connect_timeout;
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            {
                let mut state = self.trunk.state.lock();
                let member = state.members.get(&self.number);
                if member.is_some_and(|member| member.phase == Phase::Open) {
                    return Ok(());
                }
                if let Some(cause) = self.blocked(&mut state) {
                    return Err(cause);
                }
            }
            self.wait(progress, deadline).await?;
        }
    }

    async fn send_all(&self, messages: &[Message]) -> Result<(), SendFailure> {
        let _turn = self.sending.lock().await;
        let mut progress = Progress::default();
        let patience = self.trunk.core.config.tuning.acknowledge_timeout;
        let mut deadline = Instant::now() + patience;
        loop {
            let changed = self.progress.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let before = progress.accepted;
            let advanced = self.advance(&mut self.trunk.state.lock(), messages, &mut progress);
            let fail = |progress: &Progress, cause| SendFailure {
                accepted: progress.accepted,
                cause,
            };
            match advanced {
                Ok(true) => self.trunk.changed.notify_one(),
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
                let mut state = self.trunk.state.lock();
                if let Some(member) = state.members.get(&self.number) {
                    progress.update(member);
                }
                if progress.accepted == messages.len() {
                    return Ok(());
                }
                let seconds = patience.as_secs();
                let cause = CloudError::Unreachable(format!("no acknowledgement within {seconds} s"));
                // What is in flight must not be accepted behind the back of whoever sends it again.
                members::fail(&mut state, self.number, &cause, &self.trunk.core);
                self.trunk.changed.notify_one();
                return Err(fail(&progress, cause));
            }
        }
    }

    /// Reads off what was accepted and puts as many messages on their way as fit; says whether the task has work.
    fn advance(
        &self,
        state: &mut State,
        messages: &[Message],
        progress: &mut Progress,
    ) -> Result<bool, CloudError> {
        let Some(member) = state.members.get_mut(&self.number) else {
            return Err(CloudError::Unreachable("the client is closed".to_owned()));
        };
        progress.update(member);
        if progress.accepted == messages.len() {
            return Ok(false);
        }
        if member.phase != Phase::Open {
            return self.blocked(state).map_or(Ok(false), Err);
        }
        if member.epoch != progress.epoch {
            progress.epoch = member.epoch;
            progress.sent = progress.accepted;
            progress.base = member.next_token;
            progress.base_index = progress.accepted;
        }
        if let Some(Flight::Failed(cause)) = member.flight.front().cloned() {
            let ours = member.first_unacked() >= progress.base;
            member.flight.pop_front();
            member.first_token = member.first_token.max(member.first_unacked());
            if ours {
                return Err(cause);
            }
        }
        let Some(link) = member.link(Kind::Telemetry) else {
            return Ok(false);
        };
        let window = usize::from(self.trunk.core.config.tuning.window);
        let before = progress.sent;
        while let Some(message) = messages.get(progress.sent)
            && state.out.len() < OUT_BYTES_MAX
            && member.flight.len() < window
        {
            if message.size() > D2C_BYTES_MAX {
                if progress.accepted < progress.sent {
                    break;
                }
                let message = format!(
                    "the message has {} bytes; at most {D2C_BYTES_MAX} are taken",
                    message.size()
                );
                return Err(CloudError::Refused { status: 413, message });
            }
            let Some(machine) = state.machine.as_deref_mut() else {
                break;
            };
            let outgoing = Outgoing {
                tag: &member.next_token.to_be_bytes(),
                token: member.next_token,
                batchable: true,
                ..Outgoing::default()
            };
            let write = |out: &mut Vec<u8>| messages::write_telemetry(out, message);
            match machine.send_with(link, &outgoing, write, &mut state.out) {
                Ok(_) => {
                    member.flight.push_back(Flight::Open);
                    member.next_token += 1;
                    progress.sent += 1;
                }
                Err(SendError::WindowFull) => {
                    machine.notify_window(link.session());
                    break;
                }
                Err(_) => break,
            }
        }
        Ok(progress.sent > before)
    }

    /// A twin request and its answer; tried a second time when the links break under it.
    async fn request(&self, operation: TwinOperation, body: &[u8]) -> Result<Answer, CloudError> {
        for _ in 0..2 {
            match self.request_once(operation, body).await {
                Err(None) => {}
                Err(Some(cause)) => return Err(cause),
                Ok(answer) => return Ok(answer),
            }
        }
        Err(CloudError::Unreachable("the connection broke".to_owned()))
    }

    /// `Err(None)`: the links broke.
    async fn request_once(
        &self,
        operation: TwinOperation,
        body: &[u8],
    ) -> Result<Answer, Option<CloudError>> {
        self.opened().await?;
        let (reply, answered) = oneshot::channel();
        let rid = {
            let mut state = self.trunk.state.lock();
            let member = state.members.get(&self.number).ok_or(None)?;
            if member.requests.len() >= REQUESTS_MAX {
                let text = format!("{REQUESTS_MAX} twin requests wait already");
                return Err(Some(CloudError::Unreachable(text)));
            }
            members::ask_twin(&mut state, self.number, operation, body, Some(reply)).ok_or(None)?
        };
        self.trunk.changed.notify_one();
        let _forget = Forget { client: self, rid };
        let limit = self.trunk.core.config.tuning.request_timeout;
        let answer = match tokio::time::timeout(limit, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => return Err(None),
            Err(_) => {
                let text = format!("no answer to a twin request within {} s", limit.as_secs());
                return Err(Some(CloudError::Unreachable(text)));
            }
        };
        match answer.status {
            200..=299 => Ok(answer),
            status => Err(Some(crate::https::cloud_error(status, &answer.body))),
        }
    }
}

/// Takes the request out of the list when its caller gives up.
struct Forget<'a> {
    client: &'a AmqpClient,
    rid: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let mut state = self.client.trunk.state.lock();
        if let Some(member) = state.members.get_mut(&self.client.number) {
            member.requests.retain(|request| request.rid != self.rid);
        }
    }
}

impl CloudClient for AmqpClient {
    fn want(&self, interests: Interests) {
        let mut interests = interests;
        interests.cloud_to_device &= !self.is_module;
        if let Some(member) = self.trunk.state.lock().members.get_mut(&self.number) {
            member.interests = interests;
        }
        self.trunk.changed.notify_one();
    }

    fn send<'a>(&'a self, messages: &'a [Message]) -> BoxFuture<'a, Result<(), SendFailure>> {
        Box::pin(self.send_all(messages))
    }

    fn twin(&self) -> BoxFuture<'_, Result<Bytes, CloudError>> {
        Box::pin(async { Ok(self.request(TwinOperation::Get, b"").await?.body) })
    }

    fn patch_reported(&self, patch: Bytes) -> BoxFuture<'_, Result<u64, CloudError>> {
        Box::pin(async move {
            let answer = self.request(TwinOperation::PatchReported, &patch).await?;
            Ok(answer.version.unwrap_or(0))
        })
    }

    fn answer(&self, request_id: u64, response: MethodResponse) {
        members::answer_method(&mut self.trunk.state.lock(), self.number, request_id, &response);
        self.trunk.changed.notify_one();
    }

    fn settle(&self, token: u64, how: Settle) {
        let outcome = match how {
            Settle::Complete => DeliveryState::Accepted,
            Settle::Abandon => DeliveryState::Released,
            Settle::Reject => DeliveryState::Rejected(None),
        };
        {
            let mut state = self.trunk.state.lock();
            let state = &mut *state;
            let (Some(member), Some(machine)) =
                (state.members.get_mut(&self.number), state.machine.as_deref_mut())
            else {
                return;
            };
            let Some(at) = member.deliveries.iter().position(|(known, ..)| *known == token) else {
                return;
            };
            let (_, link, id) = member.deliveries.swap_remove(at);
            machine.settle(link.session(), [id], &outcome, true, &mut state.out);
        }
        self.trunk.changed.notify_one();
    }

    fn next(&self) -> BoxFuture<'_, CloudEvent> {
        Box::pin(self.pushes.next())
    }
}

/// What a condition of the hub means (AMQP contract, section 7).
fn cloud_error(condition: &str, description: &str) -> CloudError {
    let text = format!("{condition}: {description}");
    match condition {
        condition::UNAUTHORIZED_ACCESS | condition::NOT_FOUND => CloudError::Unauthorized(text),
        condition::NOT_ALLOWED
        | condition::NOT_IMPLEMENTED
        | condition::INVALID_FIELD
        | condition::DECODE_ERROR
        | "amqp:link:message-size-exceeded"
        | "com.microsoft:argument-error" => CloudError::Refused {
            status: 400,
            message: text,
        },
        _ => CloudError::Unreachable(text),
    }
}
