//! Who is at the other end: SASL, and tokens put on the connection (AMQP contract, sections 1.4, 1.5 and 2).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_amqp::connection::Delivery;
use holdfast_amqp::message::{MessageIdBuf, Properties, Writer};
use holdfast_amqp::performatives::{SaslCode, SaslInit};
use holdfast_amqp::types::Value;
use holdfast_amqp::{LinkId, Message};
use holdfast_model::policy::Rights;
use holdfast_model::{Error, ErrorCode, Identity, Timestamp};
use holdfast_ports::service::{Grant, Holder, ServiceGateway};
use holdfast_wire::error;
use holdfast_wire::links::PlainUser;

use super::Shared;
use super::attach::Link;
use super::core::{Core, Done};
use super::failure::{End, Failure};
use super::members::{Member, MemberId};
use crate::events::EndReason;

/// A token to be judged.
struct Request {
    link: LinkId,
    delivery: u32,
    settled: bool,
    id: Option<MessageIdBuf>,
    token: Option<String>,
}

/// What is proven on a connection.
pub(super) struct Login {
    /// The client's TLS certificates, leaf first; empty without.
    pub(super) certificates: Arc<[Bytes]>,
    grants: Vec<Grant>,
    /// How long after its end a token still counts for new links.
    skew: Duration,
    waiting: VecDeque<Request>,
    running: bool,
    look_at: u64,
    /// Nothing is proven any more; the client has been told on its links.
    lapsed: bool,
}

impl Login {
    pub(super) fn new(certificates: Arc<[Bytes]>, skew: Duration) -> Self {
        Login {
            certificates,
            grants: Vec::new(),
            skew,
            waiting: VecDeque::new(),
            running: false,
            look_at: 0,
            lapsed: false,
        }
    }

    /// A token for acting as `identity`; a token of its own before one of a policy.
    pub(super) fn identity_grant(&self, identity: &Identity, now: Timestamp) -> Option<&Grant> {
        let fits = |grant: &&Grant| !is_over(grant, self.skew, now) && grant.allows_identity(identity);
        let own = |grant: &&Grant| matches!(grant.holder, Holder::Identity(_));
        let mut fitting = self.grants.iter().filter(fits);
        let first = fitting.next()?;
        match own(&first) {
            true => Some(first),
            false => fitting.find(own).or(Some(first)),
        }
    }

    /// A token for what needs `rights` on `path`.
    pub(super) fn service_grant(&self, rights: Rights, path: &str, now: Timestamp) -> Option<&Grant> {
        self.service_grant_within(self.skew, rights, path, now)
    }

    /// As [`Login::service_grant`], with another patience.
    fn service_grant_within(
        &self,
        tolerance: Duration,
        rights: Rights,
        path: &str,
        now: Timestamp,
    ) -> Option<&Grant> {
        let mut grants = self.grants.iter();
        grants.find(|grant| !is_over(grant, tolerance, now) && grant.allows_service(rights, path))
    }

    /// Whether what rests on `holder` has lost it: its policy has changed. Identities are judged by their sessions.
    fn has_lost(&self, holder: &Holder) -> bool {
        matches!(holder, Holder::Policy { .. }) && !self.grants.iter().any(|grant| grant.holder == *holder)
    }

    /// Keeps a token, in place of an earlier one of its holder.
    fn keep(&mut self, grant: Grant, max: usize) -> Result<(), Error> {
        if let Some(earlier) = self.grants.iter_mut().find(|other| other.holder == grant.holder) {
            *earlier = grant;
            return Ok(());
        }
        if self.grants.len() >= max {
            return Err(Error::new(
                ErrorCode::IotHubQuotaExceeded,
                format!("a connection can hold {max} tokens"),
            ));
        }
        if self.grants.is_empty() {
            // Most connections are those of one device.
            self.grants.reserve_exact(1);
        }
        self.grants.push(grant);
        Ok(())
    }
}

fn is_over(grant: &Grant, tolerance: Duration, now: Timestamp) -> bool {
    grant.expires_at.plus(tolerance) < now
}

impl Core {
    /// The client has chosen a mechanism.
    pub(super) fn take_sasl(&mut self, init: &SaslInit<'_>, out: &mut Vec<u8>) -> Result<(), End> {
        match init.mechanism.to_ascii_uppercase().as_str() {
            // Tokens follow on `$cbs`, or the TLS certificate speaks for itself.
            "MSSBCBS" | "ANONYMOUS" | "EXTERNAL" => {
                self.end_sasl(SaslCode::Ok, out);
                Ok(())
            }
            "PLAIN" => self.take_plain(init.initial_response.unwrap_or_default(), out),
            "TPM" if self.shared.provisioning.is_some() => {
                self.take_tpm_init(init.initial_response.unwrap_or_default(), out)
            }
            _ => Err(self.refuse_sasl("the SASL mechanism is not one of those offered", out)),
        }
    }

    pub(super) fn end_sasl(&mut self, code: SaslCode, out: &mut Vec<u8>) {
        self.machine.sasl_outcome(code, out);
        self.release_hold();
    }

    pub(super) fn refuse_sasl(
        &mut self,
        why: impl Into<std::borrow::Cow<'static, str>>,
        out: &mut Vec<u8>,
    ) -> End {
        self.end_sasl(SaslCode::Auth, out);
        End::refused(why)
    }

    fn take_plain(&mut self, response: &[u8], out: &mut Vec<u8>) -> Result<(), End> {
        let mut parts = response.splitn(3, |byte| *byte == 0);
        let text =
            |part: Option<&[u8]>| part.and_then(|part| std::str::from_utf8(part).ok().map(str::to_owned));
        let (_, user, password) = (parts.next(), text(parts.next()), text(parts.next()));
        let (Some(user), Some(password)) = (user, password) else {
            return Err(self.refuse_sasl("a malformed PLAIN response", out));
        };
        if self.take_plain_registration(&user, &password) {
            return Ok(());
        }
        let Ok(user) = PlainUser::parse(&user) else {
            return Err(self.refuse_sasl("an unknown form of user name", out));
        };
        let shared = Arc::clone(&self.shared);
        self.wait(async move {
            let outcome = judge_plain(&*shared.services, user, &password).await;
            let done: Done = Box::new(move |core, out| match outcome {
                Ok(grant) => {
                    core.used = true;
                    // The first token of the connection always fits.
                    let _ = core.login.keep(grant, core.shared.config.grants_max.max(1));
                    core.end_sasl(SaslCode::Ok, out);
                    Ok(())
                }
                Err(error) => Err(core.refuse_sasl(error.message, out)),
            });
            done
        });
        Ok(())
    }

    /// A request on `$cbs`.
    pub(super) fn take_token(
        &mut self,
        link: LinkId,
        delivery: &Delivery<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let mut request = Request {
            link,
            delivery: delivery.id,
            settled: delivery.settled,
            id: None,
            token: None,
        };
        let message = match Message::decode(&delivery.payload) {
            Ok(message) => message,
            Err(error) => {
                let failure = Failure::new("amqp:decode-error", error.to_string());
                self.reject(link, delivery.id, &failure, out);
                return Ok(());
            }
        };
        request.id = message.properties.message_id.map(|id| id.to_buf());
        let operation = message
            .application_properties
            .and_then(|map| map.get("operation"))
            .and_then(|value| value.as_str())
            .unwrap_or_default()
            .to_owned();
        if operation.eq_ignore_ascii_case("put-token") {
            let body = message
                .body
                .as_bytes()
                .and_then(|body| std::str::from_utf8(body).ok());
            request.token = Some(body.unwrap_or_default().to_owned());
        } else if !operation.eq_ignore_ascii_case("delete-token") {
            let error = Error::new(ErrorCode::InvalidOperation, "the operation is not put-token");
            self.answer_token(request, Err(error), out);
            return Ok(());
        }
        self.requests += 1;
        self.login.waiting.push_back(request);
        self.next_token(out);
        Ok(())
    }

    /// Judges tokens one by one: their answers keep the order of the requests.
    fn next_token(&mut self, out: &mut Vec<u8>) {
        while !self.login.running {
            let Some(mut request) = self.login.waiting.pop_front() else {
                self.login.waiting = VecDeque::new();
                return;
            };
            let Some(token) = request.token.take() else {
                // Tokens end by themselves; nothing is to be deleted.
                self.requests -= 1;
                self.answer_token(request, Ok(()), out);
                continue;
            };
            self.login.running = true;
            let shared = Arc::clone(&self.shared);
            self.wait(async move {
                let outcome = shared.services.verify_token(&token).await;
                let done: Done = Box::new(move |core, out| {
                    core.login.running = false;
                    core.requests -= 1;
                    let outcome = outcome.and_then(|grant| core.put_grant(grant));
                    core.answer_token(request, outcome, out);
                    core.next_token(out);
                    Ok(())
                });
                done
            });
        }
    }

    /// Keeps a token; sessions that rest on an earlier one of its holder go on with this one.
    fn put_grant(&mut self, grant: Grant) -> Result<(), Error> {
        self.used = true;
        self.login.lapsed = false;
        for member in self.members.values() {
            if member.authority.as_ref() == Some(&grant.holder)
                && let Some(session) = &member.session
            {
                self.shared.gateway.renew(session, grant.expires_at);
            }
        }
        self.login.keep(grant, self.shared.config.grants_max)
    }

    /// Settles the request, then answers: a client takes an answer that comes first for a failure.
    fn answer_token(&mut self, request: Request, outcome: Result<(), Error>, out: &mut Vec<u8>) {
        if !request.settled {
            self.accept(request.link, request.delivery, request.delivery, out);
        }
        let (status, text) = match &outcome {
            Ok(()) => (200, "OK"),
            Err(error) => (
                i32::from(error::row(error.code).http_status),
                error.message.as_str(),
            ),
        };
        let condition = outcome
            .as_ref()
            .err()
            .map(|error| error::row(error.code).amqp_condition);
        let mut message = Vec::new();
        Writer::new(&mut message)
            .properties(&Properties {
                correlation_id: request.id.as_ref().map(MessageIdBuf::as_id),
                ..Properties::default()
            })
            .application_properties(|map| {
                map.string("status-code", &Value::Int(status));
                map.string("status-description", &Value::String(text));
                if let Some(condition) = condition {
                    map.string("error-condition", &Value::Symbol(condition));
                }
            })
            .value(&Value::Null);
        let answers = |kind: &Link| matches!(kind, Link::CbsAnswers { .. });
        if let Some((link, settled)) = self.answers_for(request.link, None, answers) {
            self.send(link, message, settled, out);
        }
    }

    /// The link for answers to requests on `link`: of the same session; among several, the one that the request names.
    pub(super) fn answers_for(
        &self,
        link: LinkId,
        reply_to: Option<&str>,
        is_answers: impl Fn(&Link) -> bool,
    ) -> Option<(LinkId, bool)> {
        let mut found: Option<(u8, LinkId, bool)> = None;
        for (candidate, kind) in self.links.iter().filter(|(_, kind)| is_answers(kind)) {
            let (Link::CbsAnswers { settled, target } | Link::ManagementAnswers { settled, target }) = kind
            else {
                continue;
            };
            let named = reply_to.is_some_and(|name| target.as_deref() == Some(name));
            let rank = u8::from(candidate.session() == link.session()) + 2 * u8::from(named);
            if found.is_none_or(|(best, other, _)| (best, other) < (rank, *candidate)) {
                found = Some((rank, *candidate, *settled));
            }
        }
        found.map(|(_, link, settled)| (link, settled))
    }

    /// Ends what rests on a token that is over, or on a policy that has changed. Sessions of identities whose own token or
    /// state is over are ended by the engine.
    pub(super) fn tick_login(&mut self, out: &mut Vec<u8>) -> Result<(), End> {
        let nothing = self.login.grants.is_empty() && !self.login.lapsed;
        if nothing || self.now < self.login.look_at {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let config = &shared.config;
        self.login.look_at = self.now + config.token_interval.as_millis() as u64;
        let now = shared.clock.now();
        let longest = config.token_grace.max(config.clock_skew);
        let services = &shared.services;
        self.login
            .grants
            .retain(|grant| !is_over(grant, longest, now) && services.is_current(grant));
        let failure = Failure::unauthorized("the token has expired, or its policy has changed");
        for link in self.service_links_lost(config.token_grace, now) {
            self.detach(link, &failure, out)?;
        }
        let login = &self.login;
        let lost = |member: &Member| {
            member
                .authority
                .as_ref()
                .is_some_and(|holder| login.has_lost(holder))
        };
        let members = self.members.iter().filter(|(_, member)| lost(member));
        let members: Vec<MemberId> = members.map(|(id, _)| *id).collect();
        for id in members {
            self.end_member(id, &failure, EndReason::TokenExpired, out)?;
        }
        if self.login.grants.is_empty() && self.members.is_empty() && self.login.certificates.is_empty() {
            // Not in the breath that detaches the links: the SDKs for Node.js close in answer to that by themselves, and
            // take 45 seconds over it when our close comes between.
            if std::mem::replace(&mut self.login.lapsed, true) {
                return Err(self.close(&failure, End::refused("no token is left"), out));
            }
        }
        Ok(())
    }

    /// Links of services that no token is for any more.
    fn service_links_lost(&self, grace: Duration, now: Timestamp) -> Vec<LinkId> {
        let services = self.links.iter().filter(|(_, kind)| kind.is_service());
        let lost = services.filter(|(link, _)| {
            self.services.path(**link).is_some_and(|path| {
                let rights = Rights::SERVICE_CONNECT;
                self.login
                    .service_grant_within(grace, rights, path, now)
                    .is_none()
            })
        });
        lost.map(|(link, _)| *link).collect()
    }

    pub(super) fn next_login_tick(&self) -> Option<u64> {
        (self.login.lapsed || !self.login.grants.is_empty()).then_some(self.login.look_at)
    }
}

async fn judge_plain(services: &dyn ServiceGateway, user: PlainUser, password: &str) -> Result<Grant, Error> {
    let foreign = || {
        Error::new(
            ErrorCode::IotHubUnauthorizedAccess,
            "the token is not one of the user named",
        )
    };
    match user {
        PlainUser::PolicyKey(policy) => services.verify_policy_key(&policy, password),
        PlainUser::Policy(name) => {
            let grant = services.verify_token(password).await?;
            match &grant.holder {
                Holder::Policy { name: holder, .. } if *holder == name => Ok(grant),
                _ => Err(foreign()),
            }
        }
        PlainUser::Identity(identity) => {
            let grant = services.verify_token(password).await?;
            match grant.allows_identity(&identity) {
                true => Ok(grant),
                false => Err(foreign()),
            }
        }
    }
}

/// The first label of the hub's host name: how services call the hub.
pub(super) fn hub_name(shared: &Shared) -> String {
    let names = shared.gateway.host_names();
    let first = names.first().map_or("", |name| name.as_str());
    first.split('.').next().unwrap_or_default().to_owned()
}
