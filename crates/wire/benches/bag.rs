//! What the hub does with each telemetry PUBLISH: topic and property bag into an event record.
//!
//! The goal of 400,000 messages a second on two cores leaves this step a few hundred nanoseconds.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use holdfast_model::event::Records;
use holdfast_wire::bag;
use holdfast_wire::topics::{DeviceTopic, parse_publish};

const TOPICS: &[(&str, &str)] = &[
    ("empty", "devices/device-000123/messages/events/"),
    (
        "system",
        "devices/device-000123/messages/events/%24.ct=application%2Fjson&%24.ce=utf-8",
    ),
    (
        "python",
        "devices/device-000123/messages/events/%24.mid=0b9f6c62-0b4e-4f0e-9d0c-1f2e3d4c5b6a&%24.ct=application%2Fjson&%24.ce=utf-8&temperatureAlert=false&line=4",
    ),
    (
        "many",
        "devices/device-000123/messages/events/%24.mid=1&a1=1&a2=2&a3=3&a4=4&a5=5&a6=6&a7=7&a8=8&a9=9&a10=10",
    ),
    (
        "duplicates",
        "devices/device-000123/messages/events/%24.mid=1&a=1&b=2&a=3&%24.mid=2",
    ),
];

fn publish_to_record(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("publish_to_record");
    group.throughput(Throughput::Elements(1));
    let body = [b'x'; 256];
    let mut records = Records::new();
    for (name, topic) in TOPICS {
        group.bench_function(*name, |bencher| {
            bencher.iter(|| {
                records.clear();
                if let Ok(DeviceTopic::Telemetry { bag }) =
                    parse_publish(black_box(topic), "device-000123", None)
                {
                    let mut record = records.record();
                    bag::write_record(bag, &mut record);
                    black_box(record.finish(&body));
                }
            });
        });
    }
    group.finish();
}

fn topic_only(criterion: &mut Criterion) {
    let topic = TOPICS[2].1;
    criterion.bench_function("parse_publish", |bencher| {
        bencher.iter(|| parse_publish(black_box(topic), black_box("device-000123"), None));
    });
}

criterion_group!(benches, publish_to_record, topic_only);
criterion_main!(benches);
