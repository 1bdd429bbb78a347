//! Cost per message of the hot paths: telemetry into a server that accepts it, and events out of a server to one reader.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use holdfast_amqp::connection::Outgoing;
use holdfast_amqp::message::{Properties, Writer};
use holdfast_amqp::performatives::{Attach, DeliveryState, Open};
use holdfast_amqp::{Config, Connection, Event, LinkId, Message, Value};

const WINDOW: u32 = 32;
const PAYLOAD: [u8; 256] = [b'x'; 256];

/// Client and server, joined by one link on which the first or the second sends.
struct Joined {
    client: Connection,
    server: Connection,
    link: LinkId,
}

fn joined(attach: &Attach<'_>, window: u32) -> Joined {
    let config = Arc::new(Config::default());
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let mut client = Connection::client(config.clone(), false, 0, &mut up);
    let mut server = Connection::server(config, 0);
    client.open(&Open::default(), &mut up);
    let session = client.begin(&mut up).expect("begun");
    let link = client.attach(session, attach, window, &mut up).expect("attached");
    let mut at_server = link;
    for _ in 0..3 {
        let mut rest = &up[..];
        while let Some(event) = server.next_event(&mut rest, 0, &mut down).expect("valid") {
            match event {
                Event::Open(_) => server.open(&Open::default(), &mut down),
                Event::Attach { link, attach } => {
                    at_server = link;
                    server.accept_link(link, &attach.agree(), window, &mut down);
                }
                _ => {}
            }
        }
        up.clear();
        let mut rest = &down[..];
        while client.next_event(&mut rest, 0, &mut up).expect("valid").is_some() {}
        down.clear();
    }
    let link = if attach.role == holdfast_amqp::performatives::Role::Sender {
        link
    } else {
        at_server
    };
    Joined { client, server, link }
}

fn telemetry(out: &mut Vec<u8>) {
    Writer::new(out)
        .properties(&Properties {
            content_type: Some("application/json"),
            content_encoding: Some("utf-8"),
            ..Properties::default()
        })
        .application_properties(|map| {
            map.string("level", &Value::String("storm"));
        })
        .data(&PAYLOAD);
}

fn event(out: &mut Vec<u8>, number: u64) {
    Writer::new(out)
        .message_annotations(|map| {
            map.symbol("x-opt-sequence-number", &Value::Long(number.cast_signed()))
                .symbol("x-opt-offset", &Value::String("123456789"))
                .symbol("x-opt-enqueued-time", &Value::Timestamp(1_700_000_000_000))
                .symbol("iothub-connection-device-id", &Value::String("device-000123"))
                .symbol(
                    "iothub-connection-auth-method",
                    &Value::String(
                        r#"{"scope":"device","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}"#,
                    ),
                )
                .symbol("iothub-message-source", &Value::String("Telemetry"));
        })
        .data(&PAYLOAD);
}

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("window of 32");
    group.throughput(Throughput::Elements(WINDOW.into()));
    let mut payload = Vec::new();
    telemetry(&mut payload);

    group.bench_function("decode a message", |bencher| {
        bencher.iter(|| {
            for _ in 0..WINDOW {
                let message = Message::decode(black_box(&payload)).expect("valid");
                black_box(message.body.as_bytes());
            }
        });
    });

    let (mut up, mut down) = (Vec::new(), Vec::new());
    let mut ids = Vec::new();
    let mut pair = joined(&Attach::sender("up", "to"), 2 * WINDOW);
    group.bench_function(
        "telemetry: client send, server receive and accept, client outcome",
        |bencher| {
            bencher.iter(|| {
                for token in 0..WINDOW {
                    let outgoing = Outgoing {
                        tag: &token.to_be_bytes(),
                        token: token.into(),
                        ..Outgoing::default()
                    };
                    pair.client
                        .send(pair.link, &outgoing, &payload, &mut up)
                        .expect("credit");
                }
                let mut rest = &up[..];
                let mut session = None;
                while let Some(event) = pair.server.next_event(&mut rest, 0, &mut down).expect("valid") {
                    if let Event::Transfer { link, delivery } = event {
                        let message = Message::decode(&delivery.payload).expect("valid");
                        black_box(message.body.as_bytes());
                        ids.push(delivery.id);
                        session = Some(link.session());
                    }
                }
                if let Some(session) = session {
                    let accepted = DeliveryState::Accepted;
                    pair.server
                        .settle(session, ids.drain(..), &accepted, true, &mut down);
                }
                up.clear();
                let mut rest = &down[..];
                while let Some(event) = pair.client.next_event(&mut rest, 0, &mut up).expect("valid") {
                    black_box(&event);
                }
                down.clear();
            });
        },
    );

    let mut pair = joined(&Attach::receiver("down", "from"), 2 * WINDOW);
    let mut number = 0u64;
    group.bench_function("endpoint: server send, settled", |bencher| {
        bencher.iter(|| {
            for _ in 0..WINDOW {
                number += 1;
                let outgoing = Outgoing {
                    tag: &number.to_be_bytes(),
                    settled: true,
                    ..Outgoing::default()
                };
                pair.server
                    .send_with(pair.link, &outgoing, |out| event(out, number), &mut down)
                    .expect("credit");
            }
            // The reader gives credit again; that is part of the path.
            let mut rest = &down[..];
            while let Some(event) = pair.client.next_event(&mut rest, 0, &mut up).expect("valid") {
                black_box(&event);
            }
            down.clear();
            let mut rest = &up[..];
            while pair
                .server
                .next_event(&mut rest, 0, &mut down)
                .expect("valid")
                .is_some()
            {}
            up.clear();
        });
    });
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
