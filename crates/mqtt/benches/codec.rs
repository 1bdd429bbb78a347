//! Cost per message of the hot path: a pipelined window of QoS 1 publishes through decoder, session and PUBACK.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use holdfast_mqtt::client::Message;
use holdfast_mqtt::codec::{Connect, Packet, Publish, QoS, encode_puback, encode_publish};
use holdfast_mqtt::server::ServerLimits;
use holdfast_mqtt::{ClientSession, PacketId, ServerSession, decode};

const WINDOW: u16 = 32;
const TOPIC: &str =
    "devices/device-000123/messages/events/%24.mid=4711&%24.ct=application%2Fjson&%24.ce=utf-8";
const PAYLOAD: [u8; 256] = [b'x'; 256];
const LIMIT: usize = 262_144;

fn window() -> Vec<u8> {
    let mut stream = Vec::new();
    for id in 1..=WINDOW {
        let publish = Publish {
            topic: TOPIC,
            payload: &PAYLOAD,
            qos: QoS::AtLeastOnce,
            packet_id: PacketId::new(id),
            ..Publish::default()
        };
        encode_publish(&mut stream, &publish).expect("fits");
    }
    stream
}

fn open_server() -> ServerSession {
    let mut session = ServerSession::new(&ServerLimits::default(), 0);
    session
        .handle(Packet::Connect(Connect::default()), 0)
        .expect("connect");
    session.accept(false, &mut Vec::new());
    session
}

fn open_client() -> ClientSession {
    let mut client = ClientSession::new(WINDOW);
    let connect = Connect {
        clean_session: true,
        ..Connect::default()
    };
    client.connect(&connect, 0, &mut Vec::new()).expect("connect");
    let (connack, _) = decode(b"\x20\x02\x00\x00", LIMIT)
        .expect("valid")
        .expect("complete");
    client.handle(connack, 0, &mut Vec::new()).expect("accepted");
    client
}

fn codec(criterion: &mut Criterion) {
    let stream = window();
    let mut group = criterion.benchmark_group("window of 32");
    group.throughput(Throughput::Elements(WINDOW.into()));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| {
            let mut rest = black_box(&stream[..]);
            while let Some((packet, used)) = decode(rest, LIMIT).expect("valid") {
                black_box(packet);
                rest = &rest[used..];
            }
        });
    });
    let mut session = open_server();
    let mut out = Vec::new();
    group.bench_function("decode, server session, puback", |bencher| {
        bencher.iter(|| {
            let mut rest = black_box(&stream[..]);
            while let Some((packet, used)) = decode(rest, LIMIT).expect("valid") {
                black_box(session.handle(packet, 1).expect("within the rules"));
                rest = &rest[used..];
            }
            out.clear();
            session.acknowledge(usize::MAX, &mut out)
        });
    });
    let mut client = open_client();
    let mut pubacks = Vec::new();
    group.bench_function("client publish and puback", |bencher| {
        bencher.iter(|| {
            out.clear();
            pubacks.clear();
            let message = Message {
                topic: TOPIC,
                payload: &PAYLOAD,
                qos: QoS::AtLeastOnce,
                ..Message::default()
            };
            while let Ok(Some(id)) = client.publish(&message, 1, &mut out) {
                encode_puback(&mut pubacks, id);
            }
            let mut rest = &pubacks[..];
            while let Some((packet, used)) = decode(rest, LIMIT).expect("valid") {
                black_box(client.handle(packet, 1, &mut out).expect("within the rules"));
                rest = &rest[used..];
            }
        });
    });
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
