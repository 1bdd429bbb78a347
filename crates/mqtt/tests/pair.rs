//! A client and a server joined in memory, with connections that break at random: every message arrives at least once, in
//! both directions, and first arrivals are in order.

use std::collections::VecDeque;

use holdfast_mqtt::client::{self, Message};
use holdfast_mqtt::codec::{Connect, QoS};
use holdfast_mqtt::server::{self, Delivery, ServerLimits};
use holdfast_mqtt::{ClientSession, PacketId, ServerSession, decode};
use proptest::prelude::*;

const MESSAGES: u64 = 60;

/// Both ends, the bytes between them, and what each has seen.
struct World {
    client: ClientSession,
    server: ServerSession,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    now: u64,
    /// Tokens the client has still to send.
    upstream: VecDeque<u64>,
    acknowledged_up: Vec<u64>,
    arrived_up: Vec<u64>,
    /// The server's queue: tokens not completed, with the identifier once sent.
    queue: VecDeque<(u64, Option<PacketId>, bool)>,
    arrived_down: Vec<u64>,
    last_id: u16,
    random: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            client: ClientSession::new(8),
            server: ServerSession::new(&ServerLimits::default(), 0),
            to_server: Vec::new(),
            to_client: Vec::new(),
            now: 0,
            upstream: (0..MESSAGES).collect(),
            acknowledged_up: Vec::new(),
            arrived_up: Vec::new(),
            queue: (0..MESSAGES).map(|token| (token, None, false)).collect(),
            arrived_down: Vec::new(),
            last_id: 0,
            random: seed | 1,
        }
    }

    fn chance(&mut self, of: u64) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random.is_multiple_of(of)
    }

    /// What was under way is lost with the connection; both ends start over with their kept state.
    fn reconnect(&mut self) {
        self.last_id = self.server.last_packet_id();
        for entry in &mut self.queue {
            entry.2 = false;
        }
        self.to_server.clear();
        self.to_client.clear();
        let limits = ServerLimits {
            outbound_window: 5,
            ..ServerLimits::default()
        };
        self.server = ServerSession::new(&limits, self.now);
        let connect = Connect {
            client_id: "d1",
            keep_alive: 60,
            ..Connect::default()
        };
        self.client
            .connect(&connect, self.now, &mut self.to_server)
            .expect("fits");
    }

    fn server_reads(&mut self, limit: usize) {
        let input = std::mem::take(&mut self.to_server);
        let mut rest = &input[..];
        for _ in 0..limit {
            let Some((packet, used)) = decode(rest, 4096).expect("valid") else {
                break;
            };
            rest = &rest[used..];
            match self.server.handle(packet, self.now).expect("within the rules") {
                server::Event::Connect(_) => {
                    self.server.continue_packet_ids(self.last_id);
                    self.server.accept(true, &mut self.to_client);
                }
                server::Event::Publish(publish) => self.arrived_up.push(number(publish.payload)),
                server::Event::PubAck { token } => self.queue.retain(|entry| entry.0 != token),
                server::Event::StalePubAck { .. } => panic!("nothing outlives a connection here"),
                other => panic!("unexpected {other:?}"),
            }
        }
        self.to_server = rest.to_vec();
        let some = self.random as usize % 4;
        self.server.acknowledge(some, &mut self.to_client);
        self.deliver();
    }

    fn deliver(&mut self) {
        for entry in self.queue.iter_mut().filter(|entry| !entry.2) {
            let delivery = Delivery {
                topic: "down",
                payload: &entry.0.to_be_bytes(),
                qos: QoS::AtLeastOnce,
                token: entry.0,
                redelivery_of: entry.1,
            };
            match self.server.publish(&delivery, &mut self.to_client) {
                Ok(id) => (entry.1, entry.2) = (id, true),
                Err(_) => break,
            }
        }
    }

    fn client_reads(&mut self, limit: usize) {
        let input = std::mem::take(&mut self.to_client);
        let mut rest = &input[..];
        for _ in 0..limit {
            let Some((packet, used)) = decode(rest, 4096).expect("valid") else {
                break;
            };
            rest = &rest[used..];
            match self
                .client
                .handle(packet, self.now, &mut self.to_server)
                .expect("within the rules")
            {
                client::Event::ConnAck(_) => drop(self.client.resend(self.now, &mut self.to_server)),
                client::Event::Publish(publish) => self.arrived_down.push(number(publish.payload)),
                client::Event::PubAck { token } => self.acknowledged_up.push(token),
                other => panic!("unexpected {other:?}"),
            }
        }
        self.to_client = rest.to_vec();
        while let Some(&token) = self.upstream.front() {
            let payload = token.to_be_bytes();
            let message = Message {
                topic: "up",
                payload: &payload,
                qos: QoS::AtLeastOnce,
                retain: false,
                token,
            };
            if self
                .client
                .publish(&message, self.now, &mut self.to_server)
                .is_err()
            {
                break;
            }
            self.upstream.pop_front();
        }
    }

    fn done(&self) -> bool {
        self.upstream.is_empty() && self.client.in_flight() == 0 && self.queue.is_empty()
    }
}

fn number(payload: &[u8]) -> u64 {
    u64::from_be_bytes(payload.try_into().expect("eight bytes"))
}

/// The first arrival of each message, in order of arrival.
fn first_arrivals(arrived: &[u64]) -> Vec<u64> {
    let mut seen = Vec::new();
    for token in arrived {
        if !seen.contains(token) {
            seen.push(*token);
        }
    }
    seen
}

proptest! {
    #[test]
    fn everything_arrives_in_order(seed in any::<u64>(), breaks in 0..40u32) {
        let mut world = World::new(seed);
        world.reconnect();
        let mut breaks = breaks;
        for _ in 0..10_000 {
            if world.done() {
                break;
            }
            world.now += 10;
            if breaks > 0 && world.chance(6) {
                breaks -= 1;
                world.reconnect();
            }
            let limit = if world.chance(2) { 1 } else { 20 };
            world.server_reads(limit);
            let limit = if world.chance(2) { 1 } else { 20 };
            world.client_reads(limit);
        }
        prop_assert!(world.done(), "not done in time");
        let all: Vec<u64> = (0..MESSAGES).collect();
        prop_assert_eq!(first_arrivals(&world.arrived_up), all.clone());
        prop_assert_eq!(first_arrivals(&world.arrived_down), all.clone());
        let mut acknowledged = world.acknowledged_up.clone();
        acknowledged.sort_unstable();
        prop_assert_eq!(acknowledged, all, "each token comes back exactly once");
    }
}
