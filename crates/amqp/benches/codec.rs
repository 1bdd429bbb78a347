//! Cost of an event of the event endpoint: written for a reader, and read by one.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use holdfast_amqp::message::{Message, Writer};
use holdfast_amqp::types::Value;

const PAYLOAD: [u8; 256] = [b'x'; 256];

/// What the event endpoint puts on every event of a device.
fn write_event(out: &mut Vec<u8>, sequence_number: i64) {
    Writer::new(out)
        .message_annotations(|annotations| {
            annotations.symbol("x-opt-sequence-number", &Value::Long(sequence_number));
            annotations.symbol("x-opt-offset", &Value::String("4711"));
            annotations.symbol("x-opt-enqueued-time", &Value::Timestamp(1_795_000_000_000));
            annotations.symbol("iothub-connection-device-id", &Value::String("device-000123"));
        })
        .application_properties(|properties| {
            properties.string("level", &Value::String("critical"));
        })
        .data(&PAYLOAD);
}

fn events(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("event of 256 bytes");
    group.throughput(Throughput::Elements(1));
    let mut out = Vec::new();
    group.bench_function("write", |bencher| {
        bencher.iter(|| {
            out.clear();
            write_event(&mut out, black_box(7));
            out.len()
        });
    });
    let mut event = Vec::new();
    write_event(&mut event, 7);
    group.bench_function("read", |bencher| {
        bencher.iter(|| Message::decode(black_box(&event)).expect("an event"));
    });
    group.finish();
}

criterion_group!(benches, events);
criterion_main!(benches);
