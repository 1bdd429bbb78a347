//! What the task of a connection and the callers of its clients share.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use holdfast_amqp::message::MessageIdBuf;
use holdfast_amqp::{Connection, LinkId, SessionId};
use holdfast_model::Identity;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::messages::TwinOperation;
use crate::Core;
use crate::port::{Account, CloudError, Interests};
use crate::pushes::Pushes;

/// Twin requests of one client at a time.
pub(super) const REQUESTS_MAX: usize = 64;
/// Method calls of one client that wait for their answer; the oldest is forgotten when there are more.
const METHODS_MAX: usize = 64;
/// Bytes that may wait to be written; senders wait above.
pub(super) const OUT_BYTES_MAX: usize = 256 * 1024;

/// A connection that clients share.
pub(crate) struct Trunk {
    pub(super) core: Arc<Core>,
    /// Of the one client that has a connection of its own, since certificates speak for a whole connection.
    pub(super) own: Option<Account>,
    pub(super) state: Mutex<State>,
    /// The task is to look at `state`.
    pub(super) changed: Notify,
}

/// Where something stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Not there, and nobody asked for it.
    Closed,
    /// On its way.
    Opening,
    /// There.
    Open,
    /// The last attempt failed; the next one comes by itself.
    Waiting(CloudError),
}

pub(super) struct State {
    pub(super) phase: Phase,
    /// Nobody can make clients any more; it is over when there are none.
    pub(super) closing: bool,
    pub(super) machine: Option<Box<Connection>>,
    pub(super) out: Vec<u8>,
    /// Senders and answers of tokens.
    pub(super) token_link: Option<LinkId>,
    pub(super) tokens: Vec<Token>,
    pub(super) links: HashMap<LinkId, (u64, Kind)>,
    pub(super) members: BTreeMap<u64, Member>,
    pub(super) next_member: u64,
    /// Number of the connection, from 1.
    pub(super) connection: u64,
}

/// What a link is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Tokens,
    Telemetry,
    TwinRequests,
    TwinAnswers,
    MethodAnswers,
    MethodCalls,
    CloudToDevice,
}

/// A token on the connection.
pub(super) struct Token {
    /// Whose.
    pub(super) identity: Identity,
    pub(super) standing: Standing,
    pub(super) renew_at: Instant,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// Put; the answer is not there.
    Asked,
    Good,
    Refused(CloudError),
}

/// A client on the connection.
pub(super) struct Member {
    pub(super) account: Account,
    pub(super) phase: Phase,
    /// A caller wants it; until it is open.
    pub(super) demand: bool,
    pub(super) closing: bool,
    pub(super) interests: Interests,
    /// What links stand for now.
    pub(super) subscribed: Interests,
    /// Attempts so far; tells one life of its links from the next.
    pub(super) epoch: u64,
    pub(super) session: Option<SessionId>,
    pub(super) links: Vec<(Kind, LinkId)>,
    /// Links whose attach is not answered.
    pub(super) unanswered: usize,
    pub(super) retry_at: Option<Instant>,
    pub(super) failures: u32,
    pub(super) next_token: u64,
    /// Token of the first message of this life.
    pub(super) first_token: u64,
    /// Messages sent and not accepted, oldest first, numbered without gaps.
    pub(super) flight: VecDeque<Flight>,
    /// The last life that carried messages, and its first message that was not accepted.
    pub(super) ended: (u64, u64),
    pub(super) next_rid: u32,
    pub(super) requests: Vec<Request>,
    pub(super) methods: VecDeque<(u64, MessageIdBuf)>,
    pub(super) deliveries: Vec<(u64, LinkId, u32)>,
    pub(super) next_number: u64,
    pub(super) failure_told: bool,
    /// Callers are to look.
    pub(super) progress: Arc<Notify>,
    pub(super) pushes: Arc<Pushes>,
}

/// How a sent message stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Flight {
    Open,
    Accepted,
    Failed(CloudError),
}

/// A twin request that waits for its answer.
pub(super) struct Request {
    pub(super) rid: u32,
    pub(super) operation: TwinOperation,
    /// Nobody waits for the answer to a subscription but the client itself.
    pub(super) reply: Option<oneshot::Sender<Answer>>,
}

/// The answer to a twin request.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) version: Option<u64>,
    pub(super) body: Bytes,
}

impl State {
    pub(super) fn new() -> Self {
        State {
            phase: Phase::Closed,
            closing: false,
            machine: None,
            out: Vec::new(),
            token_link: None,
            tokens: Vec::new(),
            links: HashMap::new(),
            members: BTreeMap::new(),
            next_member: 0,
            connection: 0,
        }
    }

    /// Whether it is over for good.
    pub(super) fn is_over(&self) -> bool {
        self.closing && self.members.values().all(|member| member.closing)
    }

    /// Whether the connection should be there.
    pub(super) fn is_wanted(&self) -> bool {
        self.members.values().any(Member::is_wanted)
    }

    pub(super) fn token_of(&mut self, identity: &Identity) -> Option<&mut Token> {
        self.tokens.iter_mut().find(|token| token.identity == *identity)
    }
}

impl Member {
    pub(super) fn new(account: Account, progress: Arc<Notify>, pushes: Arc<Pushes>) -> Self {
        Member {
            account,
            phase: Phase::Closed,
            demand: false,
            closing: false,
            interests: Interests::default(),
            subscribed: Interests::default(),
            epoch: 0,
            session: None,
            links: Vec::new(),
            unanswered: 0,
            retry_at: None,
            failures: 0,
            next_token: 0,
            first_token: 0,
            flight: VecDeque::new(),
            ended: (0, 0),
            next_rid: 0,
            requests: Vec::new(),
            methods: VecDeque::new(),
            deliveries: Vec::new(),
            next_number: 0,
            failure_told: false,
            progress,
            pushes,
        }
    }

    pub(super) fn is_wanted(&self) -> bool {
        !self.closing && (self.demand || self.interests != Interests::default())
    }

    pub(super) fn link(&self, kind: Kind) -> Option<LinkId> {
        self.links
            .iter()
            .find(|(known, _)| *known == kind)
            .map(|(_, link)| *link)
    }

    /// Token of the oldest message that is not accepted.
    pub(super) fn first_unacked(&self) -> u64 {
        self.next_token - self.flight.len() as u64
    }

    /// Notes the fate of a message.
    pub(super) fn note(&mut self, token: u64, fate: Flight) {
        let first = self.first_unacked();
        let at = token.checked_sub(first).and_then(|at| usize::try_from(at).ok());
        if let Some(flight) = at.and_then(|at| self.flight.get_mut(at)) {
            *flight = fate;
        }
        while self.flight.front() == Some(&Flight::Accepted) {
            self.flight.pop_front();
        }
        if self.flight.is_empty() {
            self.flight.shrink_to(64);
        }
    }

    /// Ends a life of its links: what waits on them fails.
    pub(super) fn end(&mut self) {
        if self.next_token > self.first_token {
            self.ended = (self.epoch, self.first_unacked());
        }
        self.flight = VecDeque::new();
        self.first_token = self.next_token;
        self.session = None;
        self.links = Vec::new();
        self.unanswered = 0;
        self.subscribed = Interests::default();
        self.requests = Vec::new();
        self.methods = VecDeque::new();
        self.deliveries = Vec::new();
    }

    /// Files a method call; returns the number it is answered by.
    pub(super) fn file_method(&mut self, id: MessageIdBuf) -> u64 {
        if self.methods.len() == METHODS_MAX {
            self.methods.pop_front();
        }
        self.next_number += 1;
        self.methods.push_back((self.next_number, id));
        self.next_number
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use holdfast_model::credential::SymmetricKey;

    use super::*;
    use crate::port::Proof;
    use crate::token::KeySigner;

    #[test]
    fn messages_count_as_accepted_from_the_front() {
        let account = Account {
            identity: Identity::device("d1").expect("an id"),
            proof: Proof::Key(Arc::new(KeySigner::new(SymmetricKey::generate()))),
            product_info: String::new(),
            model_id: None,
        };
        let mut member = Member::new(account, Arc::default(), Arc::default());
        for _ in 0..4 {
            member.flight.push_back(Flight::Open);
            member.next_token += 1;
        }
        member.note(1, Flight::Accepted);
        assert_eq!(member.first_unacked(), 0);
        member.note(0, Flight::Accepted);
        assert_eq!(member.first_unacked(), 2);
        member.note(9, Flight::Accepted);
        member.note(0, Flight::Accepted);
        assert_eq!(member.first_unacked(), 2);
        member.epoch = 3;
        member.end();
        assert_eq!(member.ended, (3, 2));
        assert_eq!(member.first_unacked(), 4);
    }
}
