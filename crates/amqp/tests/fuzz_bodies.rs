//! Runs the bodies of the fuzz targets over random and mutated input, without a fuzzer.
//!
//! The seed is printed; `HOLDFAST_SEED=<number>` repeats a run, `HOLDFAST_FUZZ_ROUNDS` makes it longer.

#[path = "../fuzz/bodies.rs"]
mod bodies;

use std::hash::{BuildHasher, Hasher, RandomState};

use holdfast_amqp::Value;
use holdfast_amqp::frame::{self, FrameType, Protocol};
use holdfast_amqp::message::{Header, MessageId, Properties, Writer};
use holdfast_amqp::performatives::{
    Attach, Begin, Close, DeliveryState, Detach, Disposition, End, Error, Flow, Performative, Role, Sasl,
    SaslCode, SaslInit, SaslMechanisms, Transfer, condition, selector_filter,
};
use holdfast_amqp::types::{ArrayBuf, DescribedBuf, ListBuf, MapBuf, Symbols, encode_value};

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
}

fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A few samples in a row.
fn some_of(random: &mut Random, samples: &[Vec<u8>], most: usize) -> Vec<u8> {
    let mut data = Vec::new();
    for _ in 0..random.below(most) {
        data.extend_from_slice(&samples[random.below(samples.len())]);
    }
    data
}

/// Damage: flipped bits, lost, doubled or random bytes, cuts.
fn damage(random: &mut Random, mut data: Vec<u8>) -> Vec<u8> {
    for _ in 0..random.below(4) {
        if data.is_empty() {
            break;
        }
        let at = random.below(data.len());
        match random.below(6) {
            0 => data[at] ^= 1 << random.below(8),
            1 | 2 => data[at] = random.next() as u8,
            3 => drop(data.remove(at)),
            4 => data.insert(at, random.next() as u8),
            _ => data.truncate(at),
        }
    }
    data
}

fn noise(random: &mut Random) -> Vec<u8> {
    (0..random.below(64)).map(|_| random.next() as u8).collect()
}

fn run(body: fn(&[u8]), make: impl Fn(&mut Random) -> Vec<u8>) {
    let seed = environment("HOLDFAST_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish());
    let rounds = environment("HOLDFAST_FUZZ_ROUNDS").unwrap_or(50_000);
    eprintln!("HOLDFAST_SEED={seed}");
    let mut random = Random(seed);
    for round in 0..rounds {
        let data = if round % 8 == 0 {
            noise(&mut random)
        } else {
            let data = make(&mut random);
            if round % 2 == 0 {
                damage(&mut random, data)
            } else {
                data
            }
        };
        if std::panic::catch_unwind(|| body(&data)).is_err() {
            panic!("seed {seed}, round {round}, input {data:02x?}");
        }
    }
}

fn values() -> Vec<Vec<u8>> {
    let mut list = ListBuf::new();
    list.push(&Value::Uint(1));
    list.push(&Value::String("é"));
    let mut map = MapBuf::new();
    map.symbol("k", &Value::List(list.as_list()));
    map.string("x", &Value::Double(1.5));
    let array = ArrayBuf::symbols(["a", "b"]);
    let described = DescribedBuf::new(&Value::Ulong(9), &Value::Map(map.as_map()));
    list.push(&Value::Described(described.as_described()));
    let values = [
        Value::Null,
        Value::Bool(true),
        Value::Char('x'),
        Value::Uuid([1; 16]),
        Value::Timestamp(5),
        Value::Binary(b"abc"),
        Value::List(list.as_list()),
        Value::Map(map.as_map()),
        Value::Array(array.as_array()),
        Value::Described(described.as_described()),
    ];
    let mut samples: Vec<Vec<u8>> = values
        .iter()
        .map(|value| {
            let mut bytes = Vec::new();
            encode_value(&mut bytes, value);
            bytes
        })
        .collect();
    samples.push(vec![0xe0, 7, 2, 0, 0x53, 5, 0x50, 1, 2]);
    samples.push(vec![0xe0, 2, 9, 0x41]);
    samples
}

fn amqp(channel: u16, performative: &Performative<'_>, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, FrameType::Amqp, channel, |out| {
        performative.encode(out);
        out.extend_from_slice(payload);
    });
    bytes
}

fn begin(remote_channel: Option<u16>) -> Performative<'static> {
    Performative::Begin(Begin {
        remote_channel,
        incoming_window: 5,
        outgoing_window: 5,
        ..Begin::default()
    })
}

/// A peer that knows the protocol: what it says mostly fits what it said before.
struct Peer {
    bytes: Vec<u8>,
    /// Handles attached, and whether the peer sends there.
    handles: Vec<(u32, bool)>,
    delivery_id: u32,
    unfinished: Option<(u32, u32)>,
}

impl Peer {
    fn talk(random: &mut Random, start: Vec<u8>, handles: Vec<(u32, bool)>) -> Vec<u8> {
        let mut peer = Self {
            bytes: start,
            handles,
            delivery_id: 0,
            unfinished: None,
        };
        for _ in 0..random.below(40) {
            peer.say(random);
        }
        peer.bytes
    }

    fn put(&mut self, performative: &Performative<'_>, payload: &[u8]) {
        self.bytes.extend(amqp(0, performative, payload));
    }

    fn say(&mut self, random: &mut Random) {
        match random.below(16) {
            0 | 1 => self.attach(random),
            2..=7 => self.transfer(random),
            8..=10 => self.flow(random),
            11..=13 => self.disposition(random),
            14 if random.below(3) == 0 => self.detach(random),
            15 if random.below(10) == 0 => {
                self.put(&Performative::End(End::default()), b"");
                self.put(&begin(None), b"");
                self.handles.clear();
            }
            _ => self.bytes.extend([0, 0, 0, 8, 2, 0, 0, 0]),
        }
    }

    fn attach(&mut self, random: &mut Random) {
        let filter = selector_filter("amqp.annotation.x-opt-offset > '-1'");
        let handle = random.below(6) as u32;
        if self.handles.iter().any(|(used, _)| *used == handle) && random.below(20) > 0 {
            return;
        }
        let sends = random.below(2) == 0;
        let name = ["a", "b", "c", "d"][random.below(4)];
        let mut attach = if sends {
            Attach::sender(name, "to")
        } else {
            Attach::receiver(name, "from")
        };
        attach.handle = handle;
        attach.initial_delivery_count = sends.then_some(0);
        if let (Some(source), 0) = (&mut attach.source, random.below(3)) {
            source.filter = Some(filter.as_map());
        }
        self.put(&Performative::Attach(Box::new(attach)), b"");
        self.handles.push((handle, sends));
    }

    fn handle(&self, random: &mut Random, sends: bool) -> u32 {
        let fitting: Vec<u32> = self
            .handles
            .iter()
            .filter(|(_, s)| *s == sends)
            .map(|(h, _)| *h)
            .collect();
        match fitting.len() {
            0 => 0,
            len => fitting[random.below(len)],
        }
    }

    fn transfer(&mut self, random: &mut Random) {
        let (handle, id, first) = match self.unfinished.take() {
            Some((handle, id)) => (handle, id, false),
            None => {
                self.delivery_id += 1;
                (self.handle(random, true), self.delivery_id, true)
            }
        };
        let more = random.below(4) == 0;
        let transfer = Transfer {
            handle,
            delivery_id: (first || random.below(2) == 0).then_some(id),
            delivery_tag: first.then_some(b"t"),
            settled: Some(random.below(3) == 0),
            more,
            aborted: random.below(12) == 0,
            ..Transfer::default()
        };
        let payload = vec![7; random.below(120)];
        self.put(&Performative::Transfer(transfer), &payload);
        if more && !transfer.aborted {
            self.unfinished = Some((handle, id));
        }
    }

    fn flow(&mut self, random: &mut Random) {
        let sends = random.below(4) == 0;
        let flow = Flow {
            next_incoming_id: Some(random.below(12) as u32),
            incoming_window: random.below(20) as u32,
            handle: (random.below(5) > 0 && !self.handles.is_empty()).then(|| self.handle(random, sends)),
            delivery_count: Some(random.below(8) as u32),
            link_credit: Some(random.below(12) as u32),
            drain: random.below(5) == 0,
            echo: random.below(5) == 0,
            ..Flow::default()
        };
        self.put(&Performative::Flow(flow), b"");
    }

    fn disposition(&mut self, random: &mut Random) {
        let first = random.below(8) as u32;
        let error = Error::new(condition::NOT_FOUND, "x");
        let disposition = Disposition {
            role: if random.below(3) == 0 {
                Role::Sender
            } else {
                Role::Receiver
            },
            first,
            last: Some(first + random.below(6) as u32),
            settled: random.below(2) == 0,
            state: [
                Some(DeliveryState::Accepted),
                Some(DeliveryState::Released),
                Some(DeliveryState::Rejected(Some(error))),
                None,
            ][random.below(4)],
            batchable: false,
        };
        self.put(&Performative::Disposition(disposition), b"");
    }

    fn detach(&mut self, random: &mut Random) {
        if self.handles.is_empty() {
            return;
        }
        let (handle, _) = self.handles.swap_remove(random.below(self.handles.len()));
        let detach = Detach {
            handle,
            closed: random.below(2) == 0,
            error: (random.below(2) == 0).then_some(Error::new(condition::DETACH_FORCED, "x")),
        };
        self.put(&Performative::Detach(detach), b"");
        self.unfinished = None;
    }
}

fn sasl(body: &Sasl<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, FrameType::Sasl, 0, |out| body.encode(out));
    bytes
}

fn opened(remote_channel: Option<u16>) -> Vec<u8> {
    let mut first = Protocol::Amqp.header().to_vec();
    first.extend(amqp(0, &Performative::Open(Box::default()), b""));
    first.extend(amqp(0, &begin(remote_channel), b""));
    first
}

#[test]
fn value() {
    let samples = values();
    run(bodies::value, |random| some_of(random, &samples, 3));
}

#[test]
fn performatives() {
    let init = SaslInit {
        mechanism: "PLAIN",
        initial_response: Some(b"\0a\0b"),
        hostname: None,
    };
    let samples = [
        amqp(0, &Performative::Open(Box::default()), b""),
        amqp(0, &Performative::Close(Close::default()), b""),
        sasl(&Sasl::Init(init)),
    ];
    run(bodies::performatives, |random| {
        let start = some_of(random, &samples, 3);
        Peer::talk(random, start, vec![(0, true), (1, false)])
    });
}

#[test]
fn message() {
    let mut samples = Vec::new();
    let mut add = |write: &dyn Fn(&mut Writer<'_>)| {
        let mut bytes = Vec::new();
        write(&mut Writer::new(&mut bytes));
        samples.push(bytes);
    };
    add(&|writer| {
        writer.header(&Header::default()).data(b"data");
    });
    add(&|writer| {
        writer.properties(&Properties {
            message_id: Some(MessageId::Uuid([3; 16])),
            content_type: Some("text/plain"),
            creation_time: Some(1),
            ..Properties::default()
        });
    });
    add(&|writer| {
        writer.application_properties(|map| {
            map.string("k", &Value::String("v"));
        });
    });
    add(&|writer| {
        writer.message_annotations(|map| {
            map.symbol("k", &Value::Long(1));
        });
    });
    add(&|writer| {
        writer.data_message(|inner| {
            inner.data(b"inner");
        });
    });
    add(&|writer| {
        writer.value(&Value::String("v"));
    });
    run(bodies::message, |random| some_of(random, &samples, 6));
}

#[test]
fn server_connection() {
    run(bodies::server_connection, |random| {
        Peer::talk(random, opened(None), Vec::new())
    });
}

#[test]
fn server_connection_from_the_start() {
    let init = SaslInit {
        mechanism: "PLAIN",
        initial_response: Some(b"\0a\0b"),
        hostname: None,
    };
    let samples = [
        Protocol::Sasl.header().to_vec(),
        Protocol::Amqp.header().to_vec(),
        amqp(0, &Performative::Open(Box::default()), b""),
        amqp(0, &begin(None), b""),
        sasl(&Sasl::Init(init)),
        sasl(&Sasl::Response(b"x")),
    ];
    run(bodies::server_connection, |random| some_of(random, &samples, 8));
}

/// The answers to begin and attach come first.
#[test]
fn client_connection() {
    run(bodies::client_connection, |random| {
        let mut start = vec![0];
        start.extend(opened(Some(0)));
        let receiver = Attach::receiver("s", "a");
        let sender = Attach {
            handle: 1,
            initial_delivery_count: Some(0),
            ..Attach::sender("r", "a")
        };
        for attach in [receiver, sender] {
            start.extend(amqp(0, &Performative::Attach(Box::new(attach)), b""));
        }
        Peer::talk(random, start, vec![(0, false), (1, true)])
    });
}

/// The server's part of a SASL exchange.
#[test]
fn client_connection_with_sasl() {
    let offer = Sasl::Mechanisms(SaslMechanisms {
        mechanisms: Symbols::Slice(&["ANONYMOUS"]),
    });
    let samples = [
        Protocol::Sasl.header().to_vec(),
        sasl(&offer),
        sasl(&Sasl::Challenge(b"x")),
        sasl(&Sasl::Outcome(SaslCode::Ok, None)),
        opened(None),
    ];
    run(bodies::client_connection, |random| {
        let mut start = vec![1];
        start.extend(some_of(random, &samples, 7));
        start
    });
}
