//! What each client has on the connection: a session, links, requests under way.

use std::time::Duration;

use holdfast_amqp::connection::{Delivery, Outgoing};
use holdfast_amqp::performatives::{
    Attach, DeliveryState, Error, ReceiverSettleMode, Role, SenderSettleMode, Source, Target,
};
use holdfast_amqp::types::{MapBuf, Value};
use holdfast_amqp::{LinkId, Message as Encoded};
use holdfast_model::Identity;
use holdfast_model::method::{MethodRequest, MethodResponse};
use holdfast_observe::Event as _;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::messages::{self, TwinOperation};
use super::state::{Answer, Flight, Kind, Member, Phase, Request, Standing, State};
use crate::Core;
use crate::events::{Connected, Disconnected};
use crate::gate::{backoff, jittered};
use crate::login::API_VERSION;
use crate::port::{CloudError, CloudEvent, CloudMessage, Interests, Proof};

/// Credit for answers, calls and messages of the hub.
const CREDIT: u32 = 64;
/// Longest wait of a client that fails for another reason than its identity.
const TROUBLE_MAX: Duration = Duration::from_secs(15);

/// Brings a client a step further; `Some` is the identity whose token is needed first.
pub(super) fn step(state: &mut State, number: u64, core: &Core) -> Option<Identity> {
    let own_connection = |member: &Member| matches!(member.account.proof, Proof::Certificate(_));
    let member = state.members.get_mut(&number)?;
    if member.closing {
        leave(state, number);
        return None;
    }
    match member.phase {
        Phase::Open => follow_interests(state, number),
        Phase::Opening => {}
        Phase::Closed | Phase::Waiting(_) if !member.is_wanted() => {}
        Phase::Closed | Phase::Waiting(_) => {
            if member.retry_at.is_some_and(|at| Instant::now() < at) {
                return None;
            }
            if own_connection(member) {
                attach_first(state, number, core);
                return None;
            }
            let identity = member.account.signer_identity().clone();
            let standing = state.token_of(&identity).map(|token| token.standing.clone());
            match standing {
                None => return Some(identity),
                Some(Standing::Asked) => {}
                Some(Standing::Good) => attach_first(state, number, core),
                Some(Standing::Refused(cause)) => {
                    // The next attempt is with a new token.
                    state.tokens.retain(|token| token.identity != identity);
                    fail(state, number, &cause, core);
                }
            }
        }
    }
    None
}

/// When a client is to be looked at again by itself.
pub(super) fn due(member: &Member) -> Option<Instant> {
    member
        .retry_at
        .filter(|_| member.is_wanted() && member.phase != Phase::Open)
}

fn attach_first(state: &mut State, number: u64, core: &Core) {
    let (Some(member), Some(machine)) = (state.members.get_mut(&number), state.machine.as_deref_mut()) else {
        return;
    };
    member.phase = Phase::Opening;
    member.retry_at = None;
    member.epoch += 1;
    match machine.begin(&mut state.out) {
        Ok(session) => member.session = Some(session),
        Err(error) => {
            let cause = CloudError::Unreachable(format!("cannot begin a session: {error}"));
            return fail(state, number, &cause, core);
        }
    }
    let interests = member.interests;
    let mut kinds = vec![Kind::Telemetry, Kind::TwinRequests, Kind::TwinAnswers];
    kinds.extend(
        interests
            .methods
            .then_some([Kind::MethodAnswers, Kind::MethodCalls])
            .into_iter()
            .flatten(),
    );
    kinds.extend(interests.cloud_to_device.then_some(Kind::CloudToDevice));
    member.subscribed = Interests {
        desired: false,
        ..interests
    };
    for kind in kinds {
        attach(state, number, kind);
    }
}

fn attach(state: &mut State, number: u64, kind: Kind) {
    let (Some(member), Some(machine)) = (state.members.get_mut(&number), state.machine.as_deref_mut()) else {
        return;
    };
    let Some(session) = member.session else { return };
    let identity = &member.account.identity;
    let root = match identity.module_id() {
        None => format!("/devices/{}", identity.device_id()),
        Some(module_id) => format!("/devices/{}/modules/{module_id}", identity.device_id()),
    };
    let (role, path, feature) = match kind {
        Kind::Telemetry | Kind::Tokens => (Role::Sender, "messages/events", None),
        Kind::TwinRequests => (Role::Sender, "twin", Some("twin")),
        Kind::TwinAnswers => (Role::Receiver, "twin", Some("twin")),
        Kind::MethodAnswers => (Role::Sender, "methods/devicebound", Some("methods")),
        Kind::MethodCalls => (Role::Receiver, "methods/devicebound", Some("methods")),
        Kind::CloudToDevice => (Role::Receiver, "messages/devicebound", None),
    };
    let address = format!("{root}/{path}");
    let name = format!("{number:x}-{:x}-{kind:?}", member.epoch);
    let correlation = feature.map(|feature| format!("{feature}:{number:x}-{:x}", member.epoch));
    let mut properties = MapBuf::new();
    properties.symbol(
        "com.microsoft:client-version",
        &Value::String(&member.account.product_info),
    );
    properties.symbol("com.microsoft:api-version", &Value::String(API_VERSION));
    if let Some(correlation) = &correlation {
        properties.symbol(
            "com.microsoft:channel-correlation-id",
            &Value::String(correlation),
        );
    }
    if let Some(model_id) = &member.account.model_id {
        properties.symbol("com.microsoft:model-id", &Value::String(model_id));
    }
    if let Proof::OnBehalf { chain, .. } = &member.account.proof {
        properties.symbol("com.microsoft:auth-chain", &Value::String(chain));
    }
    let settled = matches!(
        kind,
        Kind::TwinRequests | Kind::TwinAnswers | Kind::MethodAnswers | Kind::MethodCalls
    );
    let attach = Attach {
        snd_settle_mode: if settled {
            SenderSettleMode::Settled
        } else {
            SenderSettleMode::Unsettled
        },
        rcv_settle_mode: ReceiverSettleMode::First,
        source: Some(match role {
            Role::Receiver => Source::new(&address),
            Role::Sender => Source::new(identity.as_str()),
        }),
        target: Some(match role {
            Role::Sender => Target::new(&address),
            Role::Receiver => Target::new(identity.as_str()),
        }),
        properties: Some(properties.as_map()),
        ..Attach::new(&name, role)
    };
    let window = if role == Role::Receiver { CREDIT } else { 0 };
    // It fails only when the connection is about to end, which is told by itself.
    if let Ok(link) = machine.attach(session, &attach, window, &mut state.out) {
        member.links.push((kind, link));
        member.unanswered += 1;
        state.links.insert(link, (number, kind));
    }
}

/// A link was agreed to (or refused, which a detach tells).
pub(super) fn attached(state: &mut State, link: LinkId, agreed: bool, core: &Core) {
    let Some((number, _)) = state.links.get(&link).copied() else {
        return;
    };
    let Some(member) = state.members.get_mut(&number).filter(|_| agreed) else {
        return;
    };
    member.unanswered = member.unanswered.saturating_sub(1);
    try_open(state, number, core);
}

/// Opens the client when its links are there and can be used.
pub(super) fn try_open(state: &mut State, number: u64, core: &Core) {
    let Some(member) = state.members.get(&number) else {
        return;
    };
    if member.phase != Phase::Opening || member.unanswered > 0 || member.session.is_none() {
        return;
    }
    let (wants_desired, has_desired) = (member.interests.desired, member.subscribed.desired);
    let has_credit = |kind| {
        let link = member.link(kind);
        let machine = state.machine.as_deref();
        link.zip(machine)
            .is_some_and(|(link, machine)| machine.credit(link) > 0)
    };
    if !has_credit(Kind::Telemetry) || !has_credit(Kind::TwinRequests) {
        return;
    }
    let subscribing = |request: &Request| request.operation == TwinOperation::Subscribe;
    if wants_desired && !has_desired {
        if !member.requests.iter().any(subscribing) {
            ask_twin(state, number, TwinOperation::Subscribe, b"", None);
        }
        return;
    }
    let Some(member) = state.members.get_mut(&number) else {
        return;
    };
    member.phase = Phase::Open;
    member.demand = false;
    member.failures = 0;
    member.failure_told = false;
    let protocol = core.config.protocol.as_str();
    let identity = &member.account.identity;
    Connected { identity, protocol }.emit(&core.metrics);
    member.pushes.connected();
    member.progress.notify_waiters();
}

fn follow_interests(state: &mut State, number: u64) {
    let Some(member) = state.members.get_mut(&number) else {
        return;
    };
    let (wanted, had) = (member.interests, member.subscribed);
    if wanted == had {
        return;
    }
    member.subscribed = wanted;
    for (kinds, wanted, had) in [
        (
            &[Kind::MethodAnswers, Kind::MethodCalls][..],
            wanted.methods,
            had.methods,
        ),
        (
            &[Kind::CloudToDevice][..],
            wanted.cloud_to_device,
            had.cloud_to_device,
        ),
    ] {
        for kind in kinds.iter().filter(|_| wanted != had) {
            if wanted {
                attach(state, number, *kind);
            } else {
                detach(state, number, *kind);
            }
        }
    }
    if wanted.desired != had.desired {
        let operation = if wanted.desired {
            TwinOperation::Subscribe
        } else {
            TwinOperation::Unsubscribe
        };
        ask_twin(state, number, operation, b"", None);
    }
}

fn detach(state: &mut State, number: u64, kind: Kind) {
    let (Some(member), Some(machine)) = (state.members.get_mut(&number), state.machine.as_deref_mut()) else {
        return;
    };
    if let Some(link) = member.link(kind) {
        member.links.retain(|(_, known)| *known != link);
        member.deliveries.retain(|(_, known, _)| *known != link);
        state.links.remove(&link);
        machine.detach(link, None, &mut state.out);
    }
}

/// Ends the links of a client whose caller is gone, and the client.
fn leave(state: &mut State, number: u64) {
    if let Some(session) = release(state, number)
        && let Some(machine) = state.machine.as_deref_mut()
    {
        machine.end(session, None, &mut state.out);
    }
    state.members.remove(&number);
}

/// Forgets the links of a client; returns its session.
fn release(state: &mut State, number: u64) -> Option<holdfast_amqp::SessionId> {
    state.links.retain(|_, (owner, _)| *owner != number);
    let member = state.members.get_mut(&number)?;
    let session = member.session;
    member.end();
    session
}

/// A client cannot go on: its links end, and it waits before it tries again.
pub(super) fn fail(state: &mut State, number: u64, cause: &CloudError, core: &Core) {
    if let Some(session) = release(state, number)
        && let Some(machine) = state.machine.as_deref_mut()
    {
        machine.end(session, None, &mut state.out);
    }
    let Some(member) = state.members.get_mut(&number) else {
        return;
    };
    let config = &core.config;
    let wait = match cause {
        CloudError::Unauthorized(_) | CloudError::Refused { .. } => config.refused_pause(member.failures),
        CloudError::Unreachable(_) => {
            jittered(backoff(config.tuning.retry_first, TROUBLE_MAX, member.failures))
        }
    };
    member.failures = member.failures.saturating_add(1);
    member.retry_at = Some(Instant::now() + wait);
    tell_end(member, cause, Phase::Waiting(cause.clone()), core);
}

/// The connection is gone, and with it the links of every client.
pub(super) fn end_all(state: &mut State, cause: &CloudError, core: &Core) {
    state.machine = None;
    state.out = Vec::new();
    state.token_link = None;
    state.tokens = Vec::new();
    state.links.clear();
    state.members.retain(|_, member| !member.closing);
    for member in state.members.values_mut() {
        let was = member.phase.clone();
        member.end();
        match was {
            Phase::Open | Phase::Opening => {
                member.retry_at = None;
                tell_end(member, cause, Phase::Closed, core);
            }
            // What was refused waits on.
            Phase::Closed | Phase::Waiting(_) => member.progress.notify_waiters(),
        }
    }
}

/// The connection cannot be opened.
pub(super) fn tell_all(state: &mut State, cause: &CloudError, core: &Core) {
    for member in state.members.values_mut() {
        if member.is_wanted() {
            let phase = member.phase.clone();
            tell_end(member, cause, phase, core);
        }
    }
}

fn tell_end(member: &mut Member, cause: &CloudError, phase: Phase, core: &Core) {
    member.phase = phase;
    // Each retry fails the same way.
    if !std::mem::replace(&mut member.failure_told, true) {
        let identity = &member.account.identity;
        Disconnected { identity, cause }.emit(&core.metrics);
        member.pushes.disconnected(cause.clone());
    }
    member.progress.notify_waiters();
}

/// The hub ended a link or a session.
pub(super) fn cut(state: &mut State, number: u64, error: Option<&Error<'_>>, core: &Core) {
    let cause = error.map_or_else(
        || CloudError::Unreachable("the hub ended a link".to_owned()),
        |error| super::cloud_error(error.condition, error.description.unwrap_or_default()),
    );
    fail(state, number, &cause, core);
}

/// Sends a twin request; returns its number.
pub(super) fn ask_twin(
    state: &mut State,
    number: u64,
    operation: TwinOperation,
    body: &[u8],
    reply: Option<oneshot::Sender<Answer>>,
) -> Option<u32> {
    let member = state.members.get_mut(&number)?;
    let machine = state.machine.as_deref_mut()?;
    let link = member.link(Kind::TwinRequests)?;
    member.next_rid = member.next_rid.wrapping_add(1).max(1);
    let rid = member.next_rid;
    let outgoing = Outgoing {
        tag: &rid.to_be_bytes(),
        settled: true,
        ..Outgoing::default()
    };
    let write = |out: &mut Vec<u8>| messages::write_twin_request(out, operation, &rid.to_string(), body);
    machine.send_with(link, &outgoing, write, &mut state.out).ok()?;
    member.requests.push(Request {
        rid,
        operation,
        reply,
    });
    Some(rid)
}

pub(super) fn answer_method(state: &mut State, number: u64, request: u64, response: &MethodResponse) {
    let (Some(member), Some(machine)) = (state.members.get_mut(&number), state.machine.as_deref_mut()) else {
        return;
    };
    let Some(at) = member.methods.iter().position(|(known, _)| *known == request) else {
        return;
    };
    let (Some((_, id)), Some(link)) = (member.methods.remove(at), member.link(Kind::MethodAnswers)) else {
        return;
    };
    let outgoing = Outgoing {
        tag: &request.to_be_bytes(),
        settled: true,
        ..Outgoing::default()
    };
    let write = |out: &mut Vec<u8>| {
        messages::write_method_answer(out, id.as_id(), response.status, &response.payload);
    };
    // It fails only when the link is gone, and the call with it.
    let _ = machine.send_with(link, &outgoing, write, &mut state.out);
}

/// A message of the hub for a client.
pub(super) fn take(
    state: &mut State,
    number: u64,
    kind: Kind,
    link: LinkId,
    delivery: &Delivery<'_>,
    core: &Core,
) {
    let accept = |state: &mut State| {
        if !delivery.settled
            && let Some(machine) = state.machine.as_deref_mut()
        {
            machine.settle(
                link.session(),
                [delivery.id],
                &DeliveryState::Accepted,
                true,
                &mut state.out,
            );
        }
    };
    let Ok(encoded) = Encoded::decode(&delivery.payload) else {
        return accept(state);
    };
    let Some(member) = state.members.get_mut(&number) else {
        return;
    };
    let event = match kind {
        Kind::TwinAnswers => {
            accept(state);
            return take_twin(state, number, &encoded, core);
        }
        Kind::MethodCalls => method_call(member, &encoded).map(CloudEvent::Method),
        Kind::CloudToDevice => {
            member.next_number += 1;
            let token = member.next_number;
            member.deliveries.push((token, link, delivery.id));
            let message = messages::read_message(&encoded);
            Some(CloudEvent::CloudToDevice(CloudMessage { message, token }))
        }
        Kind::Tokens | Kind::Telemetry | Kind::TwinRequests | Kind::MethodAnswers => None,
    };
    let overflow = event.is_some_and(|event| !member.pushes.push(event));
    if kind != Kind::CloudToDevice {
        accept(state);
    }
    if overflow {
        let cause = CloudError::Unreachable("nobody takes what the hub sends".to_owned());
        fail(state, number, &cause, core);
    }
}

fn method_call(member: &mut Member, encoded: &Encoded<'_>) -> Option<MethodRequest> {
    let id = encoded.properties.correlation_id.as_ref()?;
    let name = encoded.application_properties?.get("IoThub-methodname")?;
    Some(MethodRequest {
        name: name.as_str()?.to_owned(),
        request_id: member.file_method(id.to_buf()),
        payload: messages::body(encoded),
    })
}

fn take_twin(state: &mut State, number: u64, encoded: &Encoded<'_>, core: &Core) {
    let Some(member) = state.members.get_mut(&number) else {
        return;
    };
    let annotation = |key: &str| encoded.message_annotations.and_then(|map| map.get(key));
    let integer = |key: &str| annotation(key).and_then(|value| value.as_i64());
    let version = integer("version").and_then(|version| u64::try_from(version).ok());
    let body = messages::body(encoded);
    let Some(id) = &encoded.properties.correlation_id else {
        let version = version.unwrap_or_else(|| crate::port::version_in(&body));
        if !member.pushes.push(CloudEvent::Desired { version, patch: body }) {
            let cause = CloudError::Unreachable("nobody takes what the hub sends".to_owned());
            fail(state, number, &cause, core);
        }
        return;
    };
    let rid: Option<u32> = messages::id_text(id).parse().ok();
    let Some(at) = member
        .requests
        .iter()
        .position(|request| Some(request.rid) == rid)
    else {
        return;
    };
    let request = member.requests.swap_remove(at);
    let status = integer("status")
        .and_then(|status| u16::try_from(status).ok())
        .unwrap_or(200);
    match request.reply {
        // Nobody listens when the caller gave up this instant.
        Some(reply) => drop(reply.send(Answer {
            status,
            version,
            body,
        })),
        None if !(200..300).contains(&status) => {
            let cause = crate::https::cloud_error(status, &body);
            fail(state, number, &cause, core);
        }
        None => {
            if member.phase == Phase::Opening {
                member.subscribed.desired = request.operation == TwinOperation::Subscribe;
            }
            try_open(state, number, core);
        }
    }
}

/// What became of a message of a client.
pub(super) fn note_outcome(state: &mut State, link: LinkId, token: u64, outcome: Option<DeliveryState<'_>>) {
    let Some((number, Kind::Telemetry)) = state.links.get(&link).copied() else {
        return;
    };
    let Some(member) = state.members.get_mut(&number) else {
        return;
    };
    let fate = match outcome {
        Some(DeliveryState::Accepted) => Flight::Accepted,
        Some(DeliveryState::Rejected(error)) => Flight::Failed(error.map_or_else(
            || CloudError::Unreachable("the hub rejected the message".to_owned()),
            |error| super::cloud_error(error.condition, error.description.unwrap_or_default()),
        )),
        Some(_) => Flight::Failed(CloudError::Unreachable("the hub released the message".to_owned())),
        // The link ends, which is told by itself.
        None => return,
    };
    member.note(token, fate);
    member.progress.notify_waiters();
}

/// Whether somebody waits for something of the hub.
pub(super) fn is_awaiting(state: &State) -> bool {
    let waits = |member: &Member| {
        member.phase == Phase::Opening || !member.flight.is_empty() || !member.requests.is_empty()
    };
    state.members.values().any(waits)
}

/// Progress of every client, after credit or windows have changed.
pub(super) fn wake_all(state: &State) {
    for member in state.members.values() {
        member.progress.notify_waiters();
    }
}
