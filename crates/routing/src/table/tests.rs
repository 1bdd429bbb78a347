use holdfast_model::event::{AuthMethod, EventBlock, Origin, Records};
use holdfast_model::message::SystemProperty;
use holdfast_model::routing::{EndpointDefinition, FallbackRoute};
use holdfast_model::{Identity, Timestamp};
use serde_json::json;

use super::*;

const EVENTS_SET: EndpointSet = EndpointSet::EVENTS;

fn definition(routes: &[(&str, RouteSource, &str)], fallback: Option<&str>) -> RoutingDefinition {
    let endpoint = |(name, number): (&str, u8)| EndpointDefinition {
        name: name.to_owned(),
        number,
        created_at: Timestamp::from_seconds(1),
        kind: "http".to_owned(),
        settings: json!({}),
    };
    let route = |(index, (endpoint, source, condition)): (usize, &(&str, RouteSource, &str))| Route {
        name: format!("r{index}"),
        source: *source,
        condition: (*condition).to_owned(),
        endpoint_names: vec![(*endpoint).to_owned()],
        is_enabled: true,
    };
    RoutingDefinition {
        routes: routes.iter().enumerate().map(route).collect(),
        fallback_route: FallbackRoute {
            condition: fallback.unwrap_or("true").to_owned(),
            is_enabled: fallback.is_some(),
        },
        endpoints: [("one", 1), ("two", 2)].map(endpoint).into(),
        ..RoutingDefinition::default()
    }
}

fn table(routes: &[(&str, RouteSource, &str)], fallback: Option<&str>) -> RouteTable {
    RouteTable::compile(&definition(routes, fallback)).expect("compiles")
}

/// A block with one message: `level=high`, a JSON body.
fn block(source: EventSource) -> EventBlock {
    let mut records = Records::new();
    let mut record = records.record();
    record.system(SystemProperty::ContentType, "application/json");
    record.system(SystemProperty::ContentEncoding, "utf-8");
    record.property("level", Some("high"));
    let _ = record.finish(br#"{"temperature": 30, "properties": {"reported": {"a": 1}}}"#);
    let origin = Origin {
        source,
        identity: Identity::parse("d1/m1").expect("an identity"),
        generation_id: 7,
        auth: AuthMethod::IdentityKey,
    };
    let mut data = Vec::new();
    origin.encode(EVENTS_SET, &mut data);
    data.extend_from_slice(records.as_bytes());
    EventBlock {
        partition: 0,
        first_sequence_number: 0,
        count: 1,
        enqueued_at: Timestamp::from_seconds(1_700_000_000),
        data: data.into(),
    }
}

fn decide(table: &RouteTable, source: EventSource, twin: Option<&Json>) -> Decision {
    let block = block(source);
    let event = block.events().next().expect("one").expect("well formed");
    table.decide(&event, twin)
}

fn goes(table: &RouteTable) -> EndpointSet {
    decide(table, EventSource::Telemetry, None).endpoints
}

#[test]
fn without_routes_telemetry_falls_back_and_nothing_else_is_made() {
    let table = RouteTable::compile(&RoutingDefinition::default()).expect("compiles");
    assert_eq!(table.constant(EventSource::Telemetry), Some(EVENTS_SET));
    assert_eq!(goes(&table), EVENTS_SET);
    for source in [EventSource::TwinChange, EventSource::DeviceLifecycle] {
        assert!(!table.wants(source));
        assert_eq!(decide(&table, source, None).endpoints, EndpointSet::NONE);
    }
    assert_eq!(goes(&super::tests::table(&[], None)), EndpointSet::NONE);
}

#[test]
fn an_event_goes_to_an_endpoint_once_and_falls_back_only_if_it_goes_nowhere() {
    use RouteSource::DeviceMessages as D;
    let one = EndpointSet::of(1);
    let two = EndpointSet::of(2);
    for (routes, fallback, expected) in [
        (
            &[("one", D, "level = 'high'"), ("ONE", D, "true")][..],
            Some("true"),
            one,
        ),
        (
            &[("one", D, "level = 'high'"), ("two", D, "$body.temperature > 20")],
            None,
            one.union(two),
        ),
        (&[("one", D, "level = 'low'")], Some("true"), EVENTS_SET),
        (
            &[("one", D, "level = 'low'")],
            Some("level = 'low'"),
            EndpointSet::NONE,
        ),
        (&[("one", D, "level = 'low'")], None, EndpointSet::NONE),
        (&[("one", D, "missing = 'x'")], Some("true"), EVENTS_SET),
        (
            &[("events", D, "true"), ("two", D, "true")],
            None,
            EVENTS_SET.union(two),
        ),
        (&[("one", D, "false")], Some("true"), EVENTS_SET),
        (
            &[(
                "one",
                D,
                "$connectionDeviceId = 'd1' AND $connectionModuleId = 'm1'",
            )],
            None,
            one,
        ),
        (
            &[(
                "one",
                D,
                "$enqueuedTime > '2023-11-14' AND $connectionDeviceGenerationId = '7'",
            )],
            None,
            one,
        ),
        (
            &[("one", D, "contains($connectionAuthMethod, 'module')")],
            None,
            one,
        ),
    ] {
        assert_eq!(goes(&table(routes, fallback)), expected, "{routes:?}");
    }
}

#[test]
fn undefined_conditions_are_told() {
    let table = table(
        &[("one", RouteSource::DeviceMessages, "missing = 'x'")],
        Some("true"),
    );
    let decision = decide(&table, EventSource::Telemetry, None);
    assert_eq!((decision.endpoints, decision.undefined), (EVENTS_SET, true));
}

#[test]
fn twins_are_asked_only_when_a_route_in_force_does() {
    let routes = [("one", RouteSource::DeviceMessages, "$twin.tags.site = 'n'")];
    let table = table(&routes, Some("true"));
    assert!(table.asks_for_twins());
    let twin = json!({"tags": {"site": "n"}});
    assert_eq!(
        decide(&table, EventSource::Telemetry, Some(&twin)).endpoints,
        EndpointSet::of(1)
    );
    assert!(decide(&table, EventSource::Telemetry, None).undefined);
    let mut off = definition(&routes, Some("true"));
    off.routes[0].is_enabled = false;
    let off = RouteTable::compile(&off).expect("compiles");
    assert!(!off.asks_for_twins());
    assert_eq!(off.constant(EventSource::Telemetry), Some(EVENTS_SET));
}

#[test]
fn other_sources_never_fall_back() {
    let condition = "twin_change_includes(properties.reported.b)";
    let table = table(&[("one", RouteSource::TwinChangeEvents, condition)], Some("true"));
    assert!(table.wants(EventSource::TwinChange));
    assert_eq!(
        decide(&table, EventSource::TwinChange, None).endpoints,
        EndpointSet::NONE
    );
}

#[test]
fn wrong_routes_are_named() {
    let fault = |routes: &[_], fallback| {
        let fault = RouteTable::compile(&definition(routes, fallback)).expect_err("wrong");
        fault.to_string()
    };
    let source = RouteSource::DeviceMessages;
    let text = fault(&[("one", source, "true"), ("one", source, "a =")], None);
    assert!(
        text.starts_with("the condition of route \"r1\"") && text.contains("line 1, column 4"),
        "{text}"
    );
    assert!(fault(&[("three", source, "true")], None).contains("three"));
    assert!(fault(&[], Some("a >")).contains("$fallback"));
    let mut off = definition(&[("one", source, "a =")], None);
    off.routes[0].is_enabled = false;
    assert!(
        RouteTable::compile(&off).is_err(),
        "a route that is off is checked too"
    );
}

#[test]
fn a_decision_is_kept_for_equal_properties_unless_bodies_count() {
    let mut records = Records::new();
    for (level, body) in [
        ("high", "{\"t\":1}"),
        ("high", "{\"t\":9}"),
        ("low", "{\"t\":9}"),
        ("high", "{}"),
    ] {
        let mut record = records.record();
        record.system(SystemProperty::ContentType, "application/json");
        record.system(SystemProperty::ContentEncoding, "utf-8");
        record.property("level", Some(level));
        let _ = record.finish(body.as_bytes());
    }
    let origin = Origin {
        source: EventSource::Telemetry,
        identity: Identity::parse("d1").expect("an identity"),
        generation_id: 7,
        auth: AuthMethod::IdentityKey,
    };
    let source = RouteSource::DeviceMessages;
    for (condition, expected) in [
        ("level = 'high'", [true, true, false, true]),
        ("level = 'high' AND $body.t > 5", [false, true, false, false]),
    ] {
        let table = table(&[("one", source, condition)], None);
        let mut decider = Decider::new(&table, None);
        let mut taken = Vec::new();
        records.split(&origin, Timestamp::from_seconds(1), &mut Vec::new(), |event| {
            let endpoints = decider.decide(event).endpoints;
            taken.push(endpoints.contains(1));
            endpoints
        });
        assert_eq!(taken, expected, "{condition}");
    }
}
