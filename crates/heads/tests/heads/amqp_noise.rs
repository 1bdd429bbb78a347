//! Whole conversations of devices and services, damaged at random: the hub answers or hangs up, never panics, and keeps
//! nothing of them. What is accepted was received.
//!
//! The seed is printed; `HOLDFAST_SEED=<number>` repeats a run, `HOLDFAST_FUZZ_ROUNDS` makes it longer.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use holdfast_amqp::frame::{self, FrameType, Protocol};
use holdfast_amqp::message::{MessageId, Properties, Writer};
use holdfast_amqp::performatives::{
    DeliveryState, Detach, Disposition, End, Flow, Performative, Role, Sasl, SaslInit, Transfer,
};
use holdfast_amqp::types::Value;
use holdfast_amqp::{Config, Message};
use holdfast_heads::amqp::AmqpConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::amqp_client::{Hub, amqp, attach, begin, message, open, quick, with_payload};
use crate::client::until;

/// Conversations of one run.
const ROUNDS: u64 = 300;

static PANICS: AtomicUsize = AtomicUsize::new(0);
static HOOK: Once = Once::new();

/// Counts panics of the hub's tasks, which the runtime would swallow.
fn count_panics() {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let ours = info
                .location()
                .is_some_and(|at| !at.file().contains("tests/") && at.file().contains("crates/"));
            if ours {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            before(info);
        }));
    });
}

/// SplitMix64: enough randomness for choosing bytes, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

const ADDRESSES: &[&str] = &[
    "$cbs",
    "/devices/d1/messages/events",
    "/devices/d1/messages/deviceBound",
    "/devices/d1/methods/deviceBound",
    "/devices/d1/twin",
    "/devices/d2/modules/m1/twin",
    "/devices/d2/modules/m1/messages/events",
    "/messages/deviceBound",
    "/messages/serviceBound/feedback",
    "/messages/events/ConsumerGroups/$Default/Partitions/0",
    "events",
    "events/Partitions/1",
    "events/ConsumerGroups/$Default/Partitions/0",
    "$management",
    "/devices/nobody/messages/events",
    "/nonsense",
];

/// A client that says what might be said next, without listening.
struct Talker {
    random: Random,
    /// Names of the links of the session on channel 0, by handle; whether the client sends on it.
    links: Vec<bool>,
    next_delivery: u32,
    frames: Vec<Vec<u8>>,
}

impl Talker {
    fn talk(seed: u64) -> Vec<Vec<u8>> {
        let mut talker = Talker {
            random: Random(seed),
            links: Vec::new(),
            next_delivery: 0,
            frames: Vec::new(),
        };
        talker.log_in();
        for _ in 0..talker.random.below(60) {
            match talker.random.below(12) {
                0 | 1 => talker.attach(),
                2..=5 => talker.transfer(),
                6 | 7 => talker.credit(),
                8 => talker.outcome(),
                9 => talker.detach(),
                10 if talker.random.below(6) == 0 => {
                    talker.put(&Performative::End(End { error: None }));
                    talker.put(&begin());
                    talker.links.clear();
                    talker.next_delivery = 0;
                }
                _ => talker.frames.push(vec![0, 0, 0, 8, 2, 0, 0, 0]),
            }
        }
        talker.frames
    }

    fn put(&mut self, performative: &Performative<'_>) {
        self.frames.push(amqp(0, performative));
    }

    fn log_in(&mut self) {
        let user = self.random.one_of(&[
            "\0d1@sas.hub\0device:d1",
            "\0service@sas.root.hub\0policy:service",
            "\0device@sas.root.hub\0policy:device",
            "",
        ]);
        if !user.is_empty() {
            let mut init = Protocol::Sasl.header().to_vec();
            frame::encode(&mut init, FrameType::Sasl, 0, |out| {
                Sasl::Init(SaslInit {
                    mechanism: "PLAIN",
                    initial_response: Some(user.as_bytes()),
                    hostname: None,
                })
                .encode(out);
            });
            self.frames.push(init);
        }
        self.frames.push(Protocol::Amqp.header().to_vec());
        self.put(&open());
        self.put(&begin());
    }

    fn attach(&mut self) {
        let handle = u32::try_from(self.links.len()).expect("few");
        let sends = self.random.below(2) == 0;
        let role = if sends { Role::Sender } else { Role::Receiver };
        let address = self.random.one_of(ADDRESSES);
        // Names come again now and then, which steals the link.
        let name = format!("link {}", self.random.below(12));
        self.put(&attach(&name, handle, role, address));
        self.links.push(sends);
    }

    fn handle(&mut self, sends: bool) -> u32 {
        let fitting: Vec<usize> = (0..self.links.len())
            .filter(|at| self.links[*at] == sends)
            .collect();
        match fitting.len() {
            0 => 0,
            count => fitting[self.random.below(count)] as u32,
        }
    }

    fn transfer(&mut self) {
        let handle = self.handle(true);
        let payload = self.payload();
        let id = self.next_delivery;
        self.next_delivery += 1;
        let cut = self.random.below(payload.len() + 1);
        let pieces = match self.random.below(4) {
            0 => vec![&payload[..cut], &payload[cut..]],
            _ => vec![&payload[..]],
        };
        let last = pieces.len() - 1;
        let settled = self.random.below(5) == 0;
        let batch = self.random.below(6) == 0;
        for (number, piece) in pieces.into_iter().enumerate() {
            let transfer = Transfer {
                handle,
                delivery_id: Some(id),
                delivery_tag: Some(b"tag"),
                message_format: Some(if batch { 0x8001_3700 } else { 0 }),
                settled: Some(settled),
                more: number < last,
                ..Transfer::default()
            };
            self.frames
                .push(with_payload(0, &Performative::Transfer(transfer), piece));
        }
    }

    fn payload(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        let properties = Properties {
            message_id: Some(MessageId::String("id")),
            correlation_id: Some(MessageId::Uuid([8; 16])),
            to: Some("/devices/d1/messages/deviceBound"),
            ..Properties::default()
        };
        match self.random.below(5) {
            0 => return message(&vec![7; self.random.below(3_000)]),
            1 => {
                let operation = self.random.one_of(&["GET", "PATCH", "PUT", "DELETE", "?"]);
                let resource = self
                    .random
                    .one_of(&["/properties/reported", "/notifications/twin/properties/desired"]);
                writer
                    .message_annotations(|map| {
                        map.symbol("operation", &Value::String(operation));
                        map.symbol("resource", &Value::String(resource));
                    })
                    .properties(&properties)
                    .data(b"{\"a\":1}");
            }
            2 => {
                let token = self
                    .random
                    .one_of(&["device:d2/m1", "policy:service", "device:d1", "nonsense"]);
                writer
                    .properties(&properties)
                    .application_properties(|map| {
                        map.string("operation", &Value::String("put-token"));
                        map.string("IoThub-status", &Value::Int(200));
                    })
                    .value(&Value::String(token));
            }
            3 => {
                writer
                    .properties(&properties)
                    .application_properties(|map| {
                        map.string("operation", &Value::String("READ"));
                        map.string("type", &Value::String("com.microsoft:eventhub"));
                        map.string("name", &Value::String("events"));
                    })
                    .data(b"[]");
            }
            _ => {
                let inner = message(b"inner");
                writer.data(&inner).data(&inner);
            }
        }
        out
    }

    fn credit(&mut self) {
        let flow = Flow {
            next_incoming_id: Some(0),
            incoming_window: 1_000,
            outgoing_window: 1_000,
            handle: Some(self.handle(false)),
            delivery_count: Some(0),
            link_credit: Some(self.random.below(20) as u32),
            drain: self.random.below(4) == 0,
            echo: self.random.below(4) == 0,
            ..Flow::default()
        };
        self.put(&Performative::Flow(flow));
    }

    fn outcome(&mut self) {
        let first = self.random.below(5) as u32;
        let state = self.random.one_of(&[
            DeliveryState::Accepted,
            DeliveryState::Released,
            DeliveryState::Rejected(None),
        ]);
        let disposition = Disposition {
            role: Role::Receiver,
            first,
            last: Some(first + self.random.below(4) as u32),
            settled: self.random.below(2) == 0,
            state: Some(state),
            batchable: false,
        };
        self.put(&Performative::Disposition(disposition));
    }

    fn detach(&mut self) {
        let sends = self.random.below(2) == 0;
        let handle = self.handle(sends);
        self.put(&Performative::Detach(Detach {
            handle,
            closed: true,
            error: None,
        }));
    }
}

/// Flips, drops, doubles, exchanges or cuts.
fn damage(random: &mut Random, frames: &mut Vec<Vec<u8>>) {
    for _ in 0..random.below(3) {
        let at = random.below(frames.len());
        match random.below(6) {
            0 => drop(frames.remove(at)),
            1 => {
                let copy = frames[at].clone();
                frames.insert(at, copy);
            }
            2 => {
                let other = random.below(frames.len());
                frames.swap(at, other);
            }
            3 => {
                let length = random.below(frames[at].len() + 1);
                frames[at].truncate(length);
            }
            _ => {
                let frame = &mut frames[at];
                if !frame.is_empty() {
                    let byte = random.below(frame.len());
                    frame[byte] ^= 1 << random.below(8);
                }
            }
        }
        if frames.is_empty() {
            return;
        }
    }
}

fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

async fn converse(hub: &Hub, frames: Vec<Vec<u8>>, hang_up: bool) {
    let socket = hub.socket().await;
    let (mut read, mut write) = socket.into_split();
    let reads = tokio::spawn(async move {
        let mut heard = vec![0; 65_536];
        while matches!(read.read(&mut heard).await, Ok(1..)) {}
    });
    for frame in frames {
        if write.write_all(&frame).await.is_err() {
            break;
        }
    }
    if hang_up {
        reads.abort();
    } else {
        let _ = write.shutdown().await;
    }
    drop(write);
    let _ = tokio::time::timeout(Duration::from_secs(5), reads).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_conversations_leave_nothing() {
    count_panics();
    let seed = environment("HOLDFAST_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish());
    let rounds = environment("HOLDFAST_FUZZ_ROUNDS").unwrap_or(ROUNDS);
    println!("HOLDFAST_SEED={seed}");
    let config = AmqpConfig {
        machine: Config {
            max_frame_size: 4_096,
            incoming_window: 20,
            max_received: 16,
            max_links: 12,
            handle_max: 15,
            max_reassembly: 8_000,
            ..Config::default()
        },
        link_window: 8,
        requests_max: 4,
        ..quick()
    };
    let hub = Hub::start_with(config);
    for n in 0..50 {
        hub.gateway
            .enqueue("d1", holdfast_model::message::Message::default(), n % 2 == 0);
    }
    for round in 0..rounds {
        let mut random = Random(seed.wrapping_add(round.wrapping_mul(0x1234_5678_9abc_def1)));
        let mut frames = Talker::talk(random.next());
        if random.below(4) > 0 {
            damage(&mut random, &mut frames);
        }
        let hang_up = random.below(2) == 0;
        converse(&hub, frames, hang_up).await;
        assert_eq!(PANICS.load(Ordering::SeqCst), 0, "round {round} of seed {seed}");
    }
    let none = || hub.head.connections() == 0;
    // Whoever was cut off in a farewell.
    hub.clock.advance(Duration::from_secs(3));
    until("no connection is left", none).await;
    until("no session is left", || hub.gateway.live() == 0).await;
    // It still works.
    let mut peer = hub.log_in(&["device:d1", "policy:service"]).await;
    let link = peer
        .sender("/devices/d1/messages/events")
        .await
        .expect("attached");
    assert_eq!(peer.send(link, &message(b"x")).await, "accepted");
    let events = peer
        .receiver("events/ConsumerGroups/$Default/Partitions/1", 1)
        .await
        .expect("attached");
    let sends = peer.sender("events/Partitions/1").await.expect("attached");
    assert_eq!(peer.send(sends, &message(b"x")).await, "accepted");
    let (_, _, event) = peer.received(events).await;
    assert!(Message::decode(&event).is_ok());
}
