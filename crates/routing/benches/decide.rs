//! What deciding about a message costs: 100 routes, 10 of them on the body, and 256-byte bodies.

use criterion::{Criterion, criterion_group, criterion_main};
use holdfast_model::event::{AuthMethod, EndpointSet, EventBlock, EventSource, Origin, Records};
use holdfast_model::message::SystemProperty;
use holdfast_model::routing::{Route, RouteSource, RoutingDefinition};
use holdfast_model::{Identity, Timestamp};
use holdfast_routing::RouteTable;

fn routes(count: usize, on_body: usize) -> RouteTable {
    let route = |index: usize| Route {
        name: format!("r{index}"),
        source: RouteSource::DeviceMessages,
        condition: if index < on_body {
            format!("$body.sensor{index}.value > {index}")
        } else {
            format!("kind{} = 'k{index}' AND level = 'high'", index % 20)
        },
        endpoint_names: vec!["events".to_owned()],
        is_enabled: true,
    };
    let definition = RoutingDefinition {
        routes: (0..count).map(route).collect(),
        ..RoutingDefinition::default()
    };
    RouteTable::compile(&definition).expect("compiles")
}

fn block() -> EventBlock {
    let mut records = Records::new();
    let mut record = records.record();
    record.system(SystemProperty::ContentType, "application/json");
    record.system(SystemProperty::ContentEncoding, "utf-8");
    record.property("level", Some("high"));
    record.property("kind7", Some("k27"));
    let mut body =
        String::from(r#"{"sensor1":{"value":0.5,"unit":"C"},"sensor2":{"value":17,"unit":"C"},"note":""#);
    body.push_str(&"x".repeat(256 - body.len() - 2));
    body.push_str("\"}");
    let _ = record.finish(body.as_bytes());
    let origin = Origin {
        source: EventSource::Telemetry,
        identity: Identity::parse("device-000001").expect("an identity"),
        generation_id: 1,
        auth: AuthMethod::IdentityKey,
    };
    let mut data = Vec::new();
    origin.encode(EndpointSet::EVENTS, &mut data);
    data.extend_from_slice(records.as_bytes());
    EventBlock {
        partition: 0,
        first_sequence_number: 0,
        count: 1,
        enqueued_at: Timestamp::from_seconds(1_700_000_000),
        data: data.into(),
    }
}

fn decide(criterion: &mut Criterion) {
    let block = block();
    let event = block.events().next().expect("one").expect("well formed");
    for (name, count, on_body) in [
        ("10 on properties", 10, 0),
        ("100, 10 of them on the body", 100, 10),
        ("none", 0, 0),
    ] {
        let table = routes(count, on_body);
        criterion.bench_function(&format!("decide, routes: {name}"), |bencher| {
            bencher.iter(|| table.decide(std::hint::black_box(&event), None));
        });
    }
}

criterion_group!(benches, decide);
criterion_main!(benches);
