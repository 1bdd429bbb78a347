//! A client and a server joined in memory, with small frames, small windows and bytes that arrive in random pieces: every
//! message arrives whole, once and in order on its link, every delivery is settled once, and neither end ever breaks a
//! rule of the other, which each of them checks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use holdfast_amqp::connection::Outgoing;
use holdfast_amqp::performatives::{Attach, DeliveryState, Open, Role, SaslCode, SaslInit};
use holdfast_amqp::{Config, Connection, Event, LinkId, SendError, SessionId};
use proptest::prelude::*;

const MESSAGES: u64 = 30;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// One end with what it sends and what it has received.
struct End {
    connection: Connection,
    input: Vec<u8>,
    out: Vec<u8>,
    /// Messages still to be sent by link.
    senders: BTreeMap<LinkId, VecDeque<u64>>,
    /// What came on each receiving link.
    arrived: BTreeMap<LinkId, Vec<u64>>,
    /// Received and not answered.
    unanswered: Vec<(LinkId, u32)>,
    /// Answered without settling: the sender must settle.
    awaited: Vec<u32>,
    /// Tokens of which the outcome came, with their number of settlements.
    outcomes: BTreeMap<u64, u32>,
    window: u32,
    /// Links that were asked to drain.
    draining: u32,
}

impl End {
    fn new(connection: Connection, window: u32) -> Self {
        Self {
            connection,
            input: Vec::new(),
            out: Vec::new(),
            senders: BTreeMap::new(),
            arrived: BTreeMap::new(),
            unanswered: Vec::new(),
            awaited: Vec::new(),
            outcomes: BTreeMap::new(),
            window,
            draining: 0,
        }
    }

    fn link(&mut self, link: LinkId, role: Role) {
        if role == Role::Sender {
            // The number within the connection is the high part of the tokens.
            let base = (self.senders.len() as u64 + 1) << 32;
            self.senders.insert(link, (base..base + MESSAGES).collect());
        } else {
            self.arrived.insert(link, Vec::new());
        }
    }

    /// Handles up to `limit` events of what has arrived.
    fn read(&mut self, limit: usize, random: &mut Random) {
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        for _ in 0..limit {
            let event = self.connection.next_event(&mut rest, 0, &mut self.out);
            let Some(event) = event.expect("within the rules") else {
                break;
            };
            self.on(event, random);
        }
        self.input = rest.to_vec();
    }

    fn on(&mut self, event: Event<'_>, random: &mut Random) {
        let out = &mut self.out;
        match event {
            Event::SaslInit(init) => {
                assert_eq!(init.mechanism, "ANONYMOUS");
                self.connection.sasl_challenge(b"?", out);
            }
            Event::SaslMechanisms(offer) => {
                assert!(offer.mechanisms.contains("ANONYMOUS"));
                let init = SaslInit {
                    mechanism: "ANONYMOUS",
                    initial_response: None,
                    hostname: None,
                };
                self.connection.sasl_init(&init, out);
            }
            Event::SaslChallenge(bytes) => self.connection.sasl_response(bytes, out),
            Event::SaslResponse(_) => self.connection.sasl_outcome(SaslCode::Ok, out),
            Event::SaslOutcome(code) => assert_eq!(code, SaslCode::Ok),
            Event::Open(_) => self.connection.open(&Open::default(), out),
            Event::Begin { .. } | Event::Credit { drain: false, .. } | Event::WindowOpen { .. } => {}
            Event::Credit {
                link, drain: true, ..
            } => {
                if random.below(2) == 0 {
                    self.send(random);
                }
                self.connection.drained(link, &mut self.out);
            }
            Event::Drained { link } => {
                self.draining -= 1;
                self.connection.set_window(link, self.window, out);
            }
            Event::Attach { link, attach } => {
                let answer = attach.agree();
                self.connection.accept_link(link, &answer, self.window, out);
                self.link(link, answer.role);
            }
            Event::Attached { link, attach } => self.link(link, attach.role.peer()),
            Event::Transfer { link, delivery } => {
                let number = check(&delivery.payload);
                self.arrived
                    .get_mut(&link)
                    .expect("a receiving link")
                    .push(number);
                assert_eq!(delivery.tag[..], number.to_be_bytes());
                if !delivery.settled {
                    self.unanswered.push((link, delivery.id));
                }
            }
            Event::Outcome {
                link,
                delivery_id,
                token,
                state,
                settled,
            } => {
                assert!(state.is_some());
                if settled {
                    *self.outcomes.entry(token).or_default() += 1;
                } else {
                    self.connection
                        .settle_sent(link, delivery_id, Some(&DeliveryState::Accepted), out);
                    *self.outcomes.entry(token).or_default() += 1;
                }
            }
            Event::Settled {
                delivery_id, state, ..
            } => {
                assert_eq!(state, Some(DeliveryState::Accepted));
                let at = self.awaited.iter().position(|id| *id == delivery_id);
                self.awaited.remove(at.expect("an answer without settlement"));
            }
            other => panic!("{other:?}"),
        }
    }

    fn send(&mut self, random: &mut Random) {
        for (link, messages) in &mut self.senders {
            while let Some(&token) = messages.front() {
                let payload = payload(token, random);
                let settled = random.below(4) == 0;
                let outgoing = Outgoing {
                    tag: &token.to_be_bytes(),
                    settled,
                    token,
                    ..Outgoing::default()
                };
                let credit = self.connection.can_send(*link);
                match self.connection.send(*link, &outgoing, &payload, &mut self.out) {
                    Ok(_) => {
                        assert!(credit > 0);
                        messages.pop_front();
                        if settled {
                            self.outcomes.insert(token, 1);
                        }
                    }
                    Err(SendError::NotAttached | SendError::NoCredit | SendError::WindowFull) => {
                        assert_eq!(credit, 0);
                        break;
                    }
                    Err(SendError::TooManyUnsettled) => break,
                    Err(error) => panic!("{error}"),
                }
                if random.below(5) == 0 {
                    break;
                }
            }
        }
    }

    /// Answers some deliveries, in any order.
    fn answer(&mut self, random: &mut Random) {
        while !self.unanswered.is_empty() && random.below(3) > 0 {
            let at = random.below(self.unanswered.len() as u64) as usize;
            let (link, _) = self.unanswered[at];
            let mut ids: Vec<u32> = Vec::new();
            let session: SessionId = link.session();
            self.unanswered.retain(|(other, id)| {
                let take = other.session() == session && ids.len() < 4;
                if take {
                    ids.push(*id);
                }
                !take
            });
            let settled = random.below(3) > 0;
            let state = if random.below(4) == 0 {
                DeliveryState::Released
            } else {
                DeliveryState::Accepted
            };
            let count = ids.len();
            if !settled {
                self.awaited.extend(&ids);
            }
            let told = self
                .connection
                .settle(session, ids, &state, settled, &mut self.out);
            assert_eq!(told, count);
        }
        if let Some((link, _)) = self.arrived.iter().nth(random.below(8) as usize)
            && random.below(40) == 0
            && self.draining == 0
        {
            self.connection.drain(*link, 3, &mut self.out);
            self.draining += 1;
        }
    }

    fn done(&self) -> bool {
        self.senders.values().all(VecDeque::is_empty)
            && self.unanswered.is_empty()
            && self.awaited.is_empty()
            && self.connection.in_flight().count() == 0
    }
}

/// A payload of random length that says which it is.
fn payload(token: u64, random: &mut Random) -> Vec<u8> {
    let len = if random.below(4) == 0 {
        random.below(4_000)
    } else {
        random.below(100)
    };
    let mut payload = token.to_be_bytes().to_vec();
    payload.extend((0..len).map(|at| (at ^ token) as u8));
    payload
}

fn check(payload: &[u8]) -> u64 {
    let (token, rest) = payload.split_first_chunk::<8>().expect("a number");
    let token = u64::from_be_bytes(*token);
    for (at, byte) in rest.iter().enumerate() {
        assert_eq!(*byte, (at as u64 ^ token) as u8, "byte {at} of {token:#x}");
    }
    token
}

/// Moves a random part of what was written to the other end.
fn carry(from: &mut Vec<u8>, to: &mut Vec<u8>, random: &mut Random) {
    let len = match random.below(4) {
        0 => random.below(20) as usize,
        1 => random.below(600) as usize,
        _ => from.len(),
    };
    to.extend(from.drain(..len.min(from.len())));
}

fn run(seed: u64) {
    let mut random = Random(seed);
    let random = &mut random;
    let mut config = || Config {
        max_frame_size: 512 + random.below(700) as u32,
        incoming_window: 1 + random.below(12) as u32,
        max_unsettled: 4 + random.below(30) as u32,
        ..Config::default()
    };
    let (for_client, for_server) = (Arc::new(config()), Arc::new(config()));
    let sasl = random.below(2) == 0;
    let mut first = Vec::new();
    let client = Connection::client(for_client.clone(), sasl, 0, &mut first);

    let mut client = End::new(
        client,
        1 + random.below(u64::from(for_client.max_unsettled) / 2) as u32,
    );
    client.out = first;
    let server = Connection::server(for_server.clone(), 0);
    let mut server = End::new(
        server,
        1 + random.below(u64::from(for_server.max_unsettled) / 2) as u32,
    );
    let sessions = 1 + random.below(3);
    let mut begun = false;
    for _ in 0..20_000 {
        if !begun && (!sasl || client.connection.is_open()) {
            client.connection.open(&Open::default(), &mut client.out);
            begin(&mut client, sessions);
            begun = true;
        } else if sasl && !begun {
            client.connection.open(&Open::default(), &mut client.out);
        }
        carry(&mut client.out, &mut server.input, random);
        carry(&mut server.out, &mut client.input, random);
        for end in [&mut client, &mut server] {
            let limit = 1 + random.below(20) as usize;
            end.read(limit, random);
            end.send(random);
            end.answer(random);
        }
        let links = 2 * sessions as usize;
        // Settled messages leave no trace at their sender, so those that came are counted too.
        let all = |end: &End| {
            let came: usize = end.arrived.values().map(Vec::len).sum();
            end.senders.len() + end.arrived.len() == links
                && came == end.arrived.len() * MESSAGES as usize
                && end.done()
        };
        if all(&client) && all(&server) {
            break;
        }
    }
    assert!(client.done() && server.done(), "not done in time");
    for (from, to) in [(&client, &server), (&server, &client)] {
        assert_eq!(from.senders.len(), to.arrived.len());
        let tokens = 1..=from.senders.len() as u64;
        let expected: Vec<Vec<u64>> = tokens
            .map(|link| ((link << 32)..(link << 32) + MESSAGES).collect())
            .collect();
        let mut arrived: Vec<_> = to.arrived.values().cloned().collect();
        arrived.sort_unstable();
        assert_eq!(arrived, expected, "whole, once, in order");
        assert_eq!(from.outcomes.len() as u64, MESSAGES * from.senders.len() as u64);
        assert!(from.outcomes.values().all(|count| *count == 1), "settled once");
    }
}

/// In each session a sender and a receiver.
fn begin(client: &mut End, sessions: u64) {
    for _ in 0..sessions {
        let session = client.connection.begin(&mut client.out).expect("begun");
        for attach in [Attach::sender("up", "a"), Attach::receiver("down", "a")] {
            client
                .connection
                .attach(session, &attach, client.window, &mut client.out)
                .expect("attached");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn everything_arrives_and_settles(seed in any::<u64>()) {
        run(seed);
    }
}

/// The frames of a message in parts never exceed what the peer takes, whatever the size of the head.
#[test]
fn a_large_message_through_small_frames() {
    let small = Arc::new(Config {
        max_frame_size: 512,
        ..Config::default()
    });
    let mut out = Vec::new();
    let client = Connection::client(small, false, 0, &mut out);
    let mut client = End::new(client, 10);
    client.out = out;
    client.connection.open(&Open::default(), &mut client.out);
    begin(&mut client, 1);
    let mut server = End::new(Connection::server(Arc::new(Config::default()), 0), 10);
    let mut random = Random(1);
    for _ in 0..400 {
        server.input.append(&mut client.out);
        client.input.append(&mut server.out);
        client.read(usize::MAX, &mut random);
        server.read(usize::MAX, &mut random);
        server.send(&mut random);
        client.send(&mut random);
        client.answer(&mut random);
        server.answer(&mut random);
    }
    assert!(client.done() && server.done());
}
