//! The identities that share a connection: one session each, from its first link to its last (AMQP contract, 3.8).
//!
//! Requests of one identity are worked off one by one, so that attaching, subscribing and twin requests keep their order;
//! identities do not wait for each other.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;

use futures_util::future::{AbortHandle, Abortable};
use holdfast_amqp::LinkId;
use holdfast_amqp::performatives::{Attach, Performative};
use holdfast_model::subscription::{Channel, Subscriptions};
use holdfast_model::{Error, Identity};
use holdfast_observe::Event as _;
use holdfast_ports::gateway::{
    AccessRequest, ConnectRequest, Connected, Credential, Disconnect, Persistence,
};
use holdfast_ports::service::Holder;
use holdfast_ports::session::{CloseReason, Downlink, SessionHandle};

use super::acks::Acks;
use super::attach::Link;
use super::c2d::C2d;
use super::core::{Core, Done};
use super::failure::{End, Failure, end_of};
use super::outbox::settles;
use super::requests::TwinRequest;
use crate::events::{EndReason, SessionEnded, SessionStarted};

/// Link property of edge hubs that speak for somebody below them.
const AUTH_CHAIN: &str = "com.microsoft:auth-chain";

/// Names a member for the life of the connection.
pub(super) type MemberId = u64;

/// What a link of an identity is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Feature {
    Telemetry,
    Silent,
    /// Cloud-to-device messages, or those for a module's inputs.
    CloudToDevice,
    MethodCalls,
    MethodAnswers,
    TwinRequests,
    TwinAnswers,
}

/// What waits for its turn.
pub(super) enum Work {
    /// A link to be agreed to; its attach, encoded.
    Attach {
        link: LinkId,
        feature: Feature,
        attach: Vec<u8>,
    },
    /// Subscriptions to be brought in line with the links.
    Subscribe,
    /// A twin request.
    Twin(TwinRequest),
}

/// An identity on this connection.
pub(super) struct Member {
    pub(super) identity: Identity,
    /// None while it is being opened.
    pub(super) session: Option<Arc<SessionHandle>>,
    /// The holder of the token it rests on; none with a certificate.
    pub(super) authority: Option<Holder>,
    /// Links attached, and those that wait for it.
    links: usize,
    pub(super) lane: VecDeque<Work>,
    pub(super) busy: bool,
    pub(super) acks: Acks,
    pub(super) c2d: Option<Box<C2d>>,
    /// Calls to the message queue that must end before the session does.
    pub(super) settling: usize,
    pub(super) method_calls: Option<(LinkId, bool)>,
    method_answers: usize,
    pub(super) twin_answers: Option<(LinkId, bool)>,
    /// Changes of desired properties are wanted.
    pub(super) desired: bool,
    downlinks: Option<AbortHandle>,
    /// Downlinks wait until messages of the outbox are gone.
    paused: bool,
    /// All links are gone; the session ends when nothing settles any more.
    ending: Option<Disconnect>,
}

impl Member {
    fn new(identity: Identity, authority: Option<Holder>) -> Self {
        Member {
            identity,
            session: None,
            authority,
            links: 0,
            lane: VecDeque::new(),
            busy: false,
            acks: Acks::default(),
            c2d: None,
            settling: 0,
            method_calls: None,
            method_answers: 0,
            twin_answers: None,
            desired: false,
            downlinks: None,
            paused: false,
            ending: None,
        }
    }

    /// The subscriptions that the links stand for, with one more of `feature`.
    fn wanted(&self, feature: Option<Feature>) -> Subscriptions {
        let has = |wanted| feature == Some(wanted);
        let mut set = Subscriptions::NONE;
        if self.c2d.is_some() || has(Feature::CloudToDevice) {
            let channel = match self.identity.is_module() {
                true => Channel::Inputs,
                false => Channel::CloudToDevice,
            };
            set.insert(channel, true);
        }
        let calls = self.method_calls.is_some() || has(Feature::MethodCalls);
        let answers = self.method_answers > 0 || has(Feature::MethodAnswers);
        if calls && answers {
            set.insert(Channel::Methods, true);
        }
        if self.twin_answers.is_some() && self.desired {
            set.insert(Channel::DesiredProperties, true);
        }
        set
    }
}

/// The edge hub that speaks for somebody else on this link: the one of the last device in its chain.
fn acting_edge_hub(attach: &Attach<'_>) -> Option<Identity> {
    let chain = attach.properties?.get(AUTH_CHAIN)?;
    let mut elements = chain.as_str()?.split(';').filter(|element| !element.is_empty());
    elements.next()?;
    Identity::module(elements.next_back()?, "$edgeHub").ok()
}

impl Core {
    /// A client asks for a link of an identity.
    pub(super) fn attach_member(
        &mut self,
        link: LinkId,
        identity: Identity,
        feature: Feature,
        attach: &Attach<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        // An edge hub attaches links of those below it with its own token (mqtt.md 2.3; AMQP contract, section 8).
        let actor = acting_edge_hub(attach);
        let grant = self
            .login
            .identity_grant(actor.as_ref().unwrap_or(&identity), self.shared.clock.now())
            .cloned();
        if grant.is_none() && (actor.is_some() || self.login.certificates.is_empty()) {
            let failure = Failure::unauthorized(format!("no token on this connection is for {identity}"));
            return self.refuse(link, &failure, out);
        }
        self.used |= grant.is_some();
        let mut bytes = Vec::new();
        attach.encode(&mut bytes);
        let id = match self.by_identity.get(&identity) {
            Some(id) => *id,
            None => self.open_member(identity, grant, attach),
        };
        self.requests += 1;
        self.pending.insert(link, id);
        if let Some(member) = self.members.get_mut(&id) {
            member.links += 1;
            member.lane.push_back(Work::Attach {
                link,
                feature,
                attach: bytes,
            });
        }
        self.run_lane(id, out)
    }

    fn open_member(
        &mut self,
        identity: Identity,
        grant: Option<holdfast_ports::service::Grant>,
        attach: &Attach<'_>,
    ) -> MemberId {
        self.last_member += 1;
        let id = self.last_member;
        let authority = grant.as_ref().map(|grant| grant.holder.clone());
        let member = Member::new(identity.clone(), authority);
        self.by_identity.insert(identity.clone(), id);
        self.members.insert(id, Box::new(member));
        let text = |key: &str| {
            let value = attach.properties.and_then(|map| map.get(key))?;
            value.as_str().map(str::to_owned)
        };
        let model_id = text("com.microsoft:model-id");
        let client_type = text("com.microsoft:client-version");
        let auth_chain = text(AUTH_CHAIN);
        let (gateway, protocol) = (Arc::clone(&self.shared.gateway), self.protocol);
        let certificates = Arc::clone(&self.login.certificates);
        self.wait_critical(async move {
            let credential = match &grant {
                Some(grant) => Credential::Granted(grant),
                None => Credential::Certificates(&certificates),
            };
            let request = ConnectRequest {
                access: AccessRequest {
                    device_id: identity.device_id(),
                    module_id: identity.module_id(),
                    credential,
                    auth_chain: auth_chain.as_deref(),
                    protocol,
                },
                persistence: Persistence::Untouched,
                model_id: model_id.as_deref(),
                client_type: client_type.as_deref(),
            };
            let outcome = gateway.connect(request).await;
            let done: Done = Box::new(move |core, out| core.member_opened(id, outcome, out));
            done
        });
        id
    }

    fn member_opened(
        &mut self,
        id: MemberId,
        outcome: Result<Connected, Error>,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        match (self.members.get_mut(&id), outcome) {
            (Some(member), Ok(connected)) => {
                SessionStarted {
                    peer: self.peer,
                    identity: member.identity.as_str(),
                    protocol: self.protocol,
                }
                .emit(&self.shared.metrics);
                member.session = Some(connected.session);
                self.used = true;
                self.wait_downlink(id);
                self.run_lane(id, out)
            }
            (Some(_), Err(error)) => {
                self.end_member(id, &Failure::from(error), EndReason::IdentityChanged, out)
            }
            (None, Ok(connected)) => {
                // All its links, or the connection, ended meanwhile.
                self.shared
                    .gateway
                    .disconnect(&connected.session, Disconnect::Lost);
                Ok(())
            }
            (None, Err(_)) => Ok(()),
        }
    }

    /// Works off what waits for an identity until something takes time.
    pub(super) fn run_lane(&mut self, id: MemberId, out: &mut Vec<u8>) -> Result<(), End> {
        loop {
            let Some(member) = self.members.get_mut(&id) else {
                return Ok(());
            };
            let Some(session) = member.session.clone() else {
                return Ok(());
            };
            if member.busy {
                return Ok(());
            }
            let Some(work) = member.lane.pop_front() else {
                // Links come once: an idle identity keeps no room for more.
                member.lane = VecDeque::new();
                return Ok(());
            };
            let wanted = match &work {
                Work::Attach { feature, .. } => member.wanted(Some(*feature)),
                Work::Subscribe => member.wanted(None),
                Work::Twin(_) => session.subscriptions(),
            };
            if let Work::Twin(request) = work {
                member.busy = true;
                self.begin_twin(id, &session, request);
            } else if wanted == session.subscriptions() {
                self.finish_work(id, work, Ok(()), out)?;
            } else {
                member.busy = true;
                let gateway = Arc::clone(&self.shared.gateway);
                self.wait(async move {
                    let outcome = gateway.subscribe(&session, wanted).await;
                    let done: Done = Box::new(move |core, out| {
                        core.lane_free(id);
                        core.finish_work(id, work, outcome, out)?;
                        core.run_lane(id, out)
                    });
                    done
                });
            }
        }
    }

    pub(super) fn lane_free(&mut self, id: MemberId) {
        if let Some(member) = self.members.get_mut(&id) {
            member.busy = false;
        }
    }

    fn finish_work(
        &mut self,
        id: MemberId,
        work: Work,
        outcome: Result<(), Error>,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let Work::Attach {
            link,
            feature,
            attach,
        } = work
        else {
            if let Err(error) = outcome {
                return self.end_member(id, &Failure::from(error), EndReason::StorageFailed, out);
            }
            return Ok(());
        };
        self.requests = self.requests.saturating_sub(1);
        if self.pending.remove(&link).is_none() {
            // The client did not wait for the answer; what was subscribed for it is taken back.
            return self.member_left(id, out);
        }
        if let Err(error) = outcome {
            self.refuse(link, &Failure::from(error), out)?;
            return self.member_left(id, out);
        }
        match Performative::decode(&attach) {
            Ok((Performative::Attach(attach), _)) => self.agree_member(id, link, feature, &attach, out),
            // It was encoded by us.
            _ => Ok(()),
        }
    }

    fn agree_member(
        &mut self,
        id: MemberId,
        link: LinkId,
        feature: Feature,
        attach: &Attach<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let Some(member) = self.members.get_mut(&id) else {
            return Ok(());
        };
        let settled = settles(attach);
        // The newest receiver wins: there is one queue, and one client that listens.
        let older = match feature {
            Feature::CloudToDevice => member.c2d.as_ref().map(|c2d| c2d.link),
            Feature::MethodCalls => member.method_calls.map(|(link, _)| link),
            Feature::TwinAnswers => member.twin_answers.map(|(link, _)| link),
            _ => None,
        };
        if let Some(older) = older {
            self.detach(older, &Failure::from(CloseReason::TakenOver), out)?;
        }
        let Some(member) = self.members.get_mut(&id) else {
            return Ok(());
        };
        let kind = match feature {
            Feature::Telemetry => Link::Telemetry { member: id },
            Feature::Silent => Link::SilentMember { member: id },
            Feature::CloudToDevice => {
                member.c2d = Some(Box::new(C2d::new(link, is_settled(attach))));
                Link::CloudToDevice { member: id }
            }
            Feature::MethodCalls => {
                member.method_calls = Some((link, settled));
                Link::MethodCalls { member: id }
            }
            Feature::MethodAnswers => {
                member.method_answers += 1;
                Link::MethodAnswers { member: id }
            }
            Feature::TwinAnswers => {
                member.twin_answers = Some((link, settled));
                Link::TwinAnswers { member: id }
            }
            Feature::TwinRequests => Link::TwinRequests { member: id },
        };
        let config = &self.shared.config;
        let bytes_max = match feature {
            Feature::Telemetry => config.telemetry_bytes_max,
            _ => config.request_bytes_max,
        };
        self.accept_attach(link, kind, attach, bytes_max, out);
        if older.is_some() {
            // The detached link took its subscription with it.
            self.push_work(id, Work::Subscribe, out)?;
        }
        Ok(())
    }

    pub(super) fn push_work(&mut self, id: MemberId, work: Work, out: &mut Vec<u8>) -> Result<(), End> {
        if let Some(member) = self.members.get_mut(&id) {
            member.lane.push_back(work);
        }
        self.run_lane(id, out)
    }

    /// A link that was not agreed to yet is gone.
    pub(super) fn pending_gone(&mut self, link: LinkId, _out: &mut Vec<u8>) -> Result<(), End> {
        // Its place in the lane is found empty when its turn comes.
        self.pending.remove(&link);
        Ok(())
    }

    /// A link of an identity is gone.
    pub(super) fn member_link_gone(
        &mut self,
        id: MemberId,
        link: LinkId,
        kind: &Link,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let Some(member) = self.members.get_mut(&id) else {
            return Ok(());
        };
        let is = |held: &Option<(LinkId, bool)>| held.is_some_and(|(held, _)| held == link);
        match kind {
            Link::MethodAnswers { .. } => member.method_answers = member.method_answers.saturating_sub(1),
            Link::MethodCalls { .. } if is(&member.method_calls) => member.method_calls = None,
            Link::TwinAnswers { .. } if is(&member.twin_answers) => {
                member.twin_answers = None;
                member.desired = false;
            }
            Link::CloudToDevice { .. } if member.c2d.as_ref().is_some_and(|c2d| c2d.link == link) => {
                if let Some(c2d) = member.c2d.take() {
                    self.release_c2d(id, &c2d);
                }
            }
            _ => {}
        }
        self.resume_member(id);
        self.member_left(id, out)
    }

    /// An identity has one link less; without any its session ends.
    fn member_left(&mut self, id: MemberId, out: &mut Vec<u8>) -> Result<(), End> {
        let Some(member) = self.members.get_mut(&id) else {
            return Ok(());
        };
        member.links = member.links.saturating_sub(1);
        if member.links > 0 {
            return self.push_work(id, Work::Subscribe, out);
        }
        self.close_member(id, Disconnect::Clean, EndReason::Goodbye, "the last link is gone");
        Ok(())
    }

    /// The hub ends an identity's session: its links are detached, those of others live on.
    pub(super) fn end_member(
        &mut self,
        id: MemberId,
        failure: &Failure,
        reason: EndReason,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let links: Vec<LinkId> = self
            .links
            .iter()
            .filter(|(_, kind)| kind.member() == Some(id))
            .map(|(link, _)| *link)
            .collect();
        for link in links {
            self.links.remove(&link);
            self.outbox.forget(link);
            let machine = &mut self.machine;
            failure.tell(self.shared.clock.now(), |error| {
                machine.detach(link, Some(error), out)
            });
        }
        let pending: Vec<LinkId> = self
            .pending
            .iter()
            .filter(|(_, member)| **member == id)
            .map(|(link, _)| *link)
            .collect();
        for link in pending {
            self.pending.remove(&link);
            self.refuse(link, failure, out)?;
        }
        self.close_member(id, Disconnect::Closed, reason, &failure.text);
        Ok(())
    }

    /// Ends a member whose links are gone.
    fn close_member(&mut self, id: MemberId, how: Disconnect, reason: EndReason, detail: &str) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        self.uplink.bytes -= member.acks.forget();
        let waiting = member
            .lane
            .drain(..)
            .filter(|work| !matches!(work, Work::Subscribe))
            .count();
        self.requests = self.requests.saturating_sub(waiting);
        if let Some(downlinks) = member.downlinks.take() {
            downlinks.abort();
        }
        if self.by_identity.get(&member.identity) == Some(&id) {
            self.by_identity.remove(&member.identity);
        }
        if member.session.is_some() {
            SessionEnded {
                identity: member.identity.as_str(),
                reason,
                detail: &detail,
            }
            .emit(&self.shared.metrics);
        }
        member.ending = Some(how);
        self.end_if_settled(id);
    }

    /// Ends a session that only waited for its settlements.
    pub(super) fn end_if_settled(&mut self, id: MemberId) {
        let Some(member) = self.members.get(&id) else {
            return;
        };
        let Some(how) = member.ending.filter(|_| member.settling == 0) else {
            return;
        };
        if let Some(member) = self.members.remove(&id)
            && let Some(session) = &member.session
        {
            self.shared.gateway.disconnect(session, how);
        }
    }

    /// All sessions of a connection that is over.
    pub(super) fn take_sessions(&mut self, end: &End) -> Vec<Arc<SessionHandle>> {
        let members = std::mem::take(&mut self.members);
        self.by_identity.clear();
        let mut sessions = Vec::new();
        for member in members.into_values() {
            if let Some(downlinks) = member.downlinks {
                downlinks.abort();
            }
            let Some(session) = member.session else { continue };
            if member.ending.is_none() {
                SessionEnded {
                    identity: member.identity.as_str(),
                    reason: end.reason,
                    detail: &end.detail,
                }
                .emit(&self.shared.metrics);
            }
            sessions.push(session);
        }
        sessions
    }

    pub(super) fn disconnect_all(&self, sessions: &[Arc<SessionHandle>], how: Disconnect) {
        for session in sessions {
            self.shared.gateway.disconnect(session, how);
        }
    }

    /// Waits for what the engine has for an identity.
    fn wait_downlink(&mut self, id: MemberId) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let Some(session) = member.session.clone() else {
            return;
        };
        let (handle, registration) = AbortHandle::new_pair();
        member.downlinks = Some(handle);
        let next = poll_fn(move |context| session.poll_next(context));
        let next = Abortable::new(next, registration);
        self.wait(async move {
            let item = next.await;
            let done: Done = Box::new(move |core, out| match item {
                Ok(item) => core.take_downlink(id, item, out),
                // The session has ended.
                Err(_) => Ok(()),
            });
            done
        });
    }

    fn take_downlink(
        &mut self,
        id: MemberId,
        item: Result<Downlink, CloseReason>,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        match item {
            Ok(Downlink::Method(call)) => self.send_method(id, &call, out)?,
            Ok(Downlink::Desired { patch, .. }) => self.send_desired(id, &patch, out)?,
            Ok(Downlink::CloudToDevice) => {
                if let Some(c2d) = self.members.get_mut(&id).and_then(|member| member.c2d.as_mut()) {
                    c2d.hint = true;
                }
                self.receive_c2d(id);
            }
            Err(CloseReason::ShuttingDown) => {
                self.draining = true;
                return Ok(());
            }
            Err(reason) => return self.session_closed(id, reason, out),
        }
        let Some(member) = self.members.get_mut(&id) else {
            return Ok(());
        };
        let waits =
            |link: &Option<(LinkId, bool)>| link.is_some_and(|(link, _)| self.outbox.is_waiting(link));
        member.paused = waits(&member.method_calls) || waits(&member.twin_answers);
        if !member.paused {
            self.wait_downlink(id);
        }
        Ok(())
    }

    /// The engine has ended the session.
    fn session_closed(&mut self, id: MemberId, reason: CloseReason, out: &mut Vec<u8>) -> Result<(), End> {
        let failure = Failure::from(reason);
        self.end_member(id, &failure, end_of(reason), out)?;
        match reason {
            CloseReason::StorageFailed => {
                Err(self.close(&failure, End::storage("the hub cannot store events"), out))
            }
            // A connection on which nobody valid is left is closed with the next look at its tokens.
            _ => Ok(()),
        }
    }

    /// A link's messages are gone: what its identity was kept waiting for goes on.
    pub(super) fn resume_downlinks(&mut self, link: LinkId) {
        if let Some(id) = self.links.get(&link).and_then(Link::member) {
            self.resume_member(id);
        }
    }

    fn resume_member(&mut self, id: MemberId) {
        if let Some(member) = self.members.get_mut(&id)
            && std::mem::take(&mut member.paused)
        {
            self.wait_downlink(id);
        }
    }
}

/// Whether the client wants deliveries settled by us.
fn is_settled(attach: &Attach<'_>) -> bool {
    attach.snd_settle_mode == holdfast_amqp::performatives::SenderSettleMode::Settled
}
