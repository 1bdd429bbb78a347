//! A hub of a few hundred lines: knows the devices the tests use, and lets them decide what is durable when.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::c2d::{AckMode, C2dDelivery, C2dMessage, LockToken, ModuleInput, Settlement};
use holdfast_model::event::{AuthMethod, EventBlock, EventField, EventSource, Origin, Records};
use holdfast_model::message::Message;
use holdfast_model::method::MethodResponse;
use holdfast_model::subscription::{Channel, Subscriptions};
use holdfast_model::{Error, ErrorCode, Identity, Timestamp};
use holdfast_ports::BoxFuture;
use holdfast_ports::clock::{Clock, SystemClock};
use holdfast_ports::event_log::{AppendTicket, LogError};
use holdfast_ports::gateway::{
    AccessRequest, Admitted, ConnectRequest, Connected, Credential, DeviceGateway, Disconnect, IngestError,
    Persistence,
};
use holdfast_ports::session::{CloseReason, Downlink, SessionHandle};
use parking_lot::Mutex;

/// A telemetry message as the hub got it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Received {
    pub(crate) identity: String,
    pub(crate) body: Vec<u8>,
    /// `key=value` of all properties, system ones as their debug name.
    pub(crate) properties: Vec<String>,
}

#[derive(Default)]
struct State {
    received: Vec<Received>,
    appends: usize,
    end: u64,
    durable: u64,
    /// Everything is durable at once.
    prompt: bool,
    busy: bool,
    failed: bool,
    wakers: Vec<(u64, Waker)>,
    registrations: usize,
    epoch: u64,
    live: HashMap<Identity, Arc<SessionHandle>>,
    stored: HashMap<Identity, Subscriptions>,
    connects: Vec<(String, Option<String>, Option<String>)>,
    disconnects: Vec<(String, Disconnect)>,
    reported: HashMap<Identity, (u64, Vec<u8>)>,
    method_answers: Vec<(u64, MethodResponse)>,
    queue: VecDeque<C2dDelivery>,
    locked: Vec<C2dDelivery>,
    settled: Vec<(u64, Settlement)>,
    /// How long a delivery is locked; a minute without.
    lock_time: Option<Duration>,
    /// No log-in is answered.
    connects_held: bool,
}

pub(crate) struct FakeGateway {
    state: Mutex<State>,
    /// The head's.
    clock: Arc<dyn Clock>,
}

fn unauthorized() -> Error {
    Error::new(ErrorCode::IotHubUnauthorizedAccess, "Unauthorized")
}

impl FakeGateway {
    pub(crate) fn new() -> Arc<Self> {
        Self::with_clock(Arc::new(SystemClock::new()))
    }

    pub(crate) fn with_clock(clock: Arc<dyn Clock>) -> Arc<Self> {
        let state = State {
            prompt: true,
            ..State::default()
        };
        Arc::new(FakeGateway {
            state: Mutex::new(state),
            clock,
        })
    }

    /// Nothing becomes durable by itself from now on.
    pub(crate) fn hold_durability(&self) {
        self.state.lock().prompt = false;
    }

    /// Everything is durable, and what comes later at once.
    pub(crate) fn make_durable_from_now_on(&self) {
        self.state.lock().prompt = true;
        let end = self.end();
        self.make_durable(end);
    }

    /// Everything appended before `end` is durable.
    pub(crate) fn make_durable(&self, end: u64) {
        let ready: Vec<Waker> = {
            let mut state = self.state.lock();
            state.durable = end;
            let (ready, waiting) = std::mem::take(&mut state.wakers)
                .into_iter()
                .partition(|(at, _)| *at <= end);
            state.wakers = waiting;
            let ready: Vec<(u64, Waker)> = ready;
            ready.into_iter().map(|(_, waker)| waker).collect()
        };
        ready.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn end(&self) -> u64 {
        self.state.lock().end
    }

    /// The log takes nothing until told otherwise.
    pub(crate) fn set_busy(&self, busy: bool) {
        self.state.lock().busy = busy;
    }

    pub(crate) fn fail(&self) {
        self.state.lock().failed = true;
        let end = self.end();
        self.make_durable(end);
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.state.lock().received.clone()
    }

    pub(crate) fn appends(&self) -> usize {
        self.state.lock().appends
    }

    /// Wakers that wait for the log.
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().wakers.len()
    }

    pub(crate) fn registrations(&self) -> usize {
        self.state.lock().registrations
    }

    pub(crate) fn session(&self, identity: &str) -> Option<Arc<SessionHandle>> {
        let identity = Identity::parse(identity).expect("an identity");
        self.state.lock().live.get(&identity).cloned()
    }

    /// Live sessions.
    pub(crate) fn live(&self) -> usize {
        self.state.lock().live.len()
    }

    pub(crate) fn connects(&self) -> Vec<(String, Option<String>, Option<String>)> {
        self.state.lock().connects.clone()
    }

    pub(crate) fn disconnects(&self) -> Vec<(String, Disconnect)> {
        self.state.lock().disconnects.clone()
    }

    pub(crate) fn method_answers(&self) -> Vec<(u64, MethodResponse)> {
        self.state.lock().method_answers.clone()
    }

    pub(crate) fn settled(&self) -> Vec<(u64, Settlement)> {
        self.state.lock().settled.clone()
    }

    pub(crate) fn reported(&self, identity: &str) -> Option<(u64, Vec<u8>)> {
        let identity = Identity::parse(identity).expect("an identity");
        self.state.lock().reported.get(&identity).cloned()
    }

    /// Log-ins wait for their answer until told otherwise.
    pub(crate) fn hold_connects(&self, held: bool) {
        self.state.lock().connects_held = held;
    }

    /// Deliveries from now on are locked for that long.
    pub(crate) fn set_lock_time(&self, lock_time: Duration) {
        self.state.lock().lock_time = Some(lock_time);
    }

    /// Somebody else completes a message.
    pub(crate) fn complete_elsewhere(&self, number: u64) {
        let mut state = self.state.lock();
        state
            .locked
            .retain(|delivery| delivery.lock.sequence_number != number);
        state.settled.push((number, Settlement::Complete));
    }

    /// Puts a message into the one queue there is, and tells the session.
    pub(crate) fn enqueue(&self, device: &str, message: Message, redelivered: bool) -> u64 {
        self.enqueue_to(
            Identity::device(device).expect("an id"),
            message,
            redelivered,
            None,
        )
    }

    /// As an edge hub: puts a message for a module's input into the queue.
    pub(crate) fn enqueue_input(&self, module: &str, message: Message, input: ModuleInput) -> u64 {
        let module = Identity::parse(module).expect("an identity");
        self.enqueue_to(module, message, false, Some(Box::new(input)))
    }

    fn enqueue_to(
        &self,
        device: Identity,
        message: Message,
        redelivered: bool,
        input: Option<Box<ModuleInput>>,
    ) -> u64 {
        let (number, session) = {
            let mut state = self.state.lock();
            let number = (state.queue.len() + state.locked.len() + state.settled.len() + 1) as u64;
            state.queue.push_back(C2dDelivery {
                lock: LockToken {
                    sequence_number: number,
                    nonce: 7,
                },
                locked_until: self.clock.now(),
                delivery_count: 0,
                redelivered,
                message: C2dMessage {
                    device: device.clone(),
                    generation_id: 1,
                    message,
                    ack: AckMode::None,
                    enqueued_at: Timestamp::from_seconds(1_800_000_000),
                    expires_at: Timestamp::from_seconds(1_800_003_600),
                    input,
                },
            });
            (number, state.live.get(&device).cloned())
        };
        if let Some(session) = session {
            let _ = session.push(Downlink::CloudToDevice);
        }
        number
    }

    fn append(&self, origin: &Origin, records: &Records) -> Result<AppendTicket, IngestError> {
        let mut state = self.state.lock();
        if state.failed {
            return Err(IngestError::Failed(LogError::Failed("test".into())));
        }
        if state.busy {
            return Err(IngestError::Busy(None));
        }
        let mut data = Vec::new();
        origin.encode(holdfast_model::event::EndpointSet::EVENTS, &mut data);
        data.extend_from_slice(records.as_bytes());
        let block = EventBlock {
            partition: 0,
            first_sequence_number: state.end,
            count: records.count(),
            enqueued_at: Timestamp::from_seconds(0),
            data: data.into(),
        };
        for event in block.events() {
            let event = event.expect("a well-formed block");
            let received = Received {
                identity: event.identity.to_owned(),
                body: event.body.to_vec(),
                properties: event
                    .fields()
                    .map(|field| match field {
                        EventField::System(property, value) => format!("{property:?}={value}"),
                        EventField::Application(key, value) => format!("{key}={}", value.unwrap_or("-")),
                    })
                    .collect(),
            };
            state.received.push(received);
        }
        state.appends += 1;
        state.end += u64::from(records.count());
        if state.prompt {
            state.durable = state.end;
        }
        Ok(AppendTicket {
            partition: 0,
            end: state.end,
        })
    }

    fn judge(&self, access: &AccessRequest<'_>) -> Result<Origin, Error> {
        let identity = Identity::new(access.device_id, access.module_id).map_err(|_| unauthorized())?;
        let auth = match access.credential {
            Credential::Sas("good") => AuthMethod::IdentityKey,
            Credential::Granted(grant) if grant.allows_identity(&identity) => AuthMethod::IdentityKey,
            Credential::Certificates([leaf, ..]) if !leaf.is_empty() => AuthMethod::Thumbprint,
            _ => return Err(unauthorized()),
        };
        match access.device_id {
            "stopping" => Err(Error::new(ErrorCode::ServiceUnavailable, "the hub is stopping")),
            "nobody" => Err(unauthorized()),
            _ => Ok(Origin {
                source: EventSource::Telemetry,
                identity,
                generation_id: 1,
                auth,
            }),
        }
    }
}

impl DeviceGateway for FakeGateway {
    fn connect<'a>(&'a self, request: ConnectRequest<'a>) -> BoxFuture<'a, Result<Connected, Error>> {
        Box::pin(async move {
            while self.state.lock().connects_held {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let origin = self.judge(&request.access)?;
            let identity = origin.identity.clone();
            let mut state = self.state.lock();
            state.connects.push((
                identity.to_string(),
                request.model_id.map(str::to_owned),
                request.client_type.map(str::to_owned),
            ));
            if request.persistence == Persistence::Forgotten {
                state.stored.remove(&identity);
            }
            let stored = state.stored.get(&identity).copied();
            state.epoch += 1;
            let session = Arc::new(SessionHandle::new(
                origin,
                0,
                state.epoch,
                Timestamp::MAX,
                request.persistence == Persistence::Stored,
                stored.unwrap_or_default(),
            ));
            let older = state.live.insert(identity, Arc::clone(&session));
            drop(state);
            if let Some(older) = older {
                older.close(CloseReason::TakenOver);
            }
            Ok(Connected {
                session,
                session_present: stored.is_some(),
            })
        })
    }

    fn admit<'a>(&'a self, request: AccessRequest<'a>) -> BoxFuture<'a, Result<Admitted, Error>> {
        Box::pin(async move {
            Ok(Admitted {
                origin: self.judge(&request)?,
                partition: 0,
            })
        })
    }

    fn renew(&self, session: &Arc<SessionHandle>, expires_at: Timestamp) {
        session.set_expires_at(expires_at);
    }

    fn disconnect(&self, session: &Arc<SessionHandle>, how: Disconnect) {
        let mut state = self.state.lock();
        state.disconnects.push((session.identity().to_string(), how));
        if state
            .live
            .get(session.identity())
            .is_some_and(|live| Arc::ptr_eq(live, session))
        {
            state.live.remove(session.identity());
        }
        session.retire();
    }

    fn send(&self, session: &SessionHandle, records: &Records) -> Result<AppendTicket, IngestError> {
        if session.is_ended() {
            return Err(IngestError::Fenced);
        }
        self.append(&session.origin, records)
    }

    fn send_admitted(&self, admitted: &Admitted, records: &Records) -> Result<AppendTicket, IngestError> {
        self.append(&admitted.origin, records)
    }

    fn poll_durable(&self, ticket: AppendTicket, context: &mut Context<'_>) -> Poll<Result<(), LogError>> {
        let mut state = self.state.lock();
        if state.failed {
            return Poll::Ready(Err(LogError::Failed("test".into())));
        }
        if state.durable >= ticket.end {
            return Poll::Ready(Ok(()));
        }
        state.registrations += 1;
        state.wakers.push((ticket.end, context.waker().clone()));
        Poll::Pending
    }

    fn subscribe<'a>(
        &'a self,
        session: &'a Arc<SessionHandle>,
        subscriptions: Subscriptions,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let is_new =
                !session.subscribed(Channel::CloudToDevice) && subscriptions.contains(Channel::CloudToDevice);
            session.set_subscriptions(subscriptions);
            let mut state = self.state.lock();
            if session.persistent {
                state.stored.insert(session.identity().clone(), subscriptions);
            }
            if is_new && !state.queue.is_empty() {
                let _ = session.push(Downlink::CloudToDevice);
            }
            Ok(())
        })
    }

    fn device_twin<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            if identity.device_id() == "twinless" {
                return Err(Error::new(ErrorCode::ThrottlingException, "too fast"));
            }
            Ok(Bytes::from_static(
                br#"{"desired":{"$version":1},"reported":{"$version":1}}"#,
            ))
        })
    }

    fn patch_reported<'a>(
        &'a self,
        identity: &'a Identity,
        patch: &'a [u8],
        expected_version: Option<u64>,
    ) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut state = self.state.lock();
            let (version, stored) = state.reported.entry(identity.clone()).or_insert((1, Vec::new()));
            if !patch.starts_with(b"{") || expected_version.is_some_and(|expected| expected != *version) {
                return Err(Error::new(ErrorCode::ArgumentInvalid, "the patch is bad"));
            }
            *version += 1;
            *stored = patch.to_vec();
            Ok(*version)
        })
    }

    fn complete_method(&self, _session: &SessionHandle, request_id: u64, response: MethodResponse) {
        self.state.lock().method_answers.push((request_id, response));
    }

    fn receive_c2d<'a>(
        &'a self,
        _device: &'a Identity,
        _session: Option<&'a SessionHandle>,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<C2dDelivery>, Error>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut state = self.state.lock();
            let now = self.clock.now();
            let locked_until = now.plus(state.lock_time.unwrap_or(Duration::from_secs(60)));
            let mut taken: Vec<C2dDelivery> = Vec::new();
            for delivery in &mut state.locked {
                if taken.len() < max && delivery.locked_until <= now {
                    delivery.lock.nonce += 1;
                    delivery.locked_until = locked_until;
                    delivery.redelivered = true;
                    taken.push(delivery.clone());
                }
            }
            while taken.len() < max
                && let Some(mut delivery) = state.queue.pop_front()
            {
                delivery.locked_until = locked_until;
                state.locked.push(delivery.clone());
                taken.push(delivery);
            }
            Ok(taken)
        })
    }

    fn settle_c2d<'a>(
        &'a self,
        _device: &'a Identity,
        lock: LockToken,
        settlement: Settlement,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut state = self.state.lock();
            let Some(place) = state.locked.iter().position(|delivery| delivery.lock == lock) else {
                return Err(Error::new(ErrorCode::DeviceMessageLockLost, "no such lock"));
            };
            state.locked.remove(place);
            state.settled.push((lock.sequence_number, settlement));
            Ok(())
        })
    }

    fn host_names(&self) -> Arc<[String]> {
        Arc::from(["hub.test".to_owned()])
    }
}
