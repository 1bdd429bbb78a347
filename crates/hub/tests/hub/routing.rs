//! Routing at ingest: where messages go, what is dropped, and twins that conditions ask for.

use holdfast_hub::{IfMatch, ServiceCaller};
use holdfast_model::ErrorCode;
use holdfast_model::event::{EndpointSet, Records};
use holdfast_model::routing::{EndpointDefinition, FallbackRoute, Route, RouteSource, RoutingDefinition};
use holdfast_model::twin::{ChangeMode, TwinChange};
use holdfast_ports::event_log::EventLog as _;
use holdfast_ports::gateway::{Credential, DeviceGateway as _};
use holdfast_ports::session::SessionHandle;
use serde_json::json;

use crate::harness::*;

fn route(endpoint: &str, condition: &str) -> Route {
    Route {
        name: format!("to-{endpoint}"),
        source: RouteSource::DeviceMessages,
        condition: condition.to_owned(),
        endpoint_names: vec![endpoint.to_owned()],
        is_enabled: true,
    }
}

impl TestHub {
    async fn route(&self, routes: Vec<Route>, fallback: bool) {
        let defined = self.hub.change_routing(move |definition| {
            definition.routes = routes;
            definition.fallback_route = FallbackRoute {
                is_enabled: fallback,
                ..FallbackRoute::default()
            };
            definition.endpoints = vec![EndpointDefinition {
                name: "one".to_owned(),
                number: 1,
                created_at: holdfast_model::Timestamp::from_seconds(1),
                kind: "http".to_owned(),
                settings: json!({}),
            }];
            Ok(())
        });
        defined.await.expect("good routes");
    }

    fn send_levels(&self, session: &SessionHandle, levels: &[&str]) {
        let mut records = Records::new();
        for level in levels {
            let mut record = records.record();
            record.property("level", Some(level));
            let _ = record.finish(level.as_bytes());
        }
        self.hub.send(session, &records).expect("room");
    }

    /// Bodies in the log with their endpoints' bits.
    async fn routed(&self, device: &str) -> Vec<(String, u64)> {
        let partition = holdfast_hub::partition_of(device, 4);
        let blocks = self.log.read(partition, 0, 1 << 20).await.expect("readable");
        let events = blocks.iter().flat_map(|block| block.events());
        events
            .map(|event| event.expect("well formed"))
            .map(|event| {
                (
                    String::from_utf8_lossy(event.body).into_owned(),
                    event.endpoints.bits(),
                )
            })
            .collect()
    }

    async fn tag(&self, id: &str, site: &str) {
        let change = TwinChange {
            tags: Some(json(json!({"site": site}))),
            desired: None,
        };
        self.hub
            .change_twin(
                &ServiceCaller::Local,
                &identity(id),
                ChangeMode::Patch,
                change,
                IfMatch::Any,
            )
            .await
            .expect("changed");
    }
}

fn expected(events: &[(&str, u64)]) -> Vec<(String, u64)> {
    events
        .iter()
        .map(|(body, bits)| ((*body).to_owned(), *bits))
        .collect()
}

#[tokio::test]
async fn messages_go_where_their_routes_say() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let session = test.connect("d1").await.session;
    test.send_levels(&session, &["a"]);
    test.route(vec![route("one", "level = 'high'")], true).await;
    test.send_levels(&session, &["high", "high", "low", "high"]);
    test.route(
        vec![route("one", "level = 'high'"), route("events", "level = 'high'")],
        false,
    )
    .await;
    test.send_levels(&session, &["high", "low", "low"]);
    test.route(vec![route("one", "true")], false).await;
    test.send_levels(&session, &["x", "y"]);
    test.route(Vec::new(), false).await;
    test.send_levels(&session, &["lost"]);
    assert_eq!(
        test.routed("d1").await,
        expected(&[
            ("a", 1),
            ("high", 2),
            ("high", 2),
            ("low", 1),
            ("high", 2),
            ("high", 3),
            ("x", 2),
            ("y", 2)
        ])
    );
    assert_eq!(test.metrics.telemetry_messages.get(), 11);
    assert_eq!(test.metrics.telemetry_unrouted.get(), 3);
}

#[tokio::test]
async fn a_run_that_goes_several_ways_is_appended_all_or_not() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let session = test.connect("d1").await.session;
    test.route(vec![route("one", "level = 'high'")], true).await;
    test.log.set_busy(true);
    let mut records = Records::new();
    for level in ["high", "low"] {
        let mut record = records.record();
        record.property("level", Some(level));
        let _ = record.finish(b"x");
    }
    assert!(test.hub.send(&session, &records).is_err());
    test.log.set_busy(false);
    assert!(test.routed("d1").await.is_empty());
}

#[tokio::test]
async fn conditions_follow_the_senders_twin() {
    let test = TestHub::new().await;
    for id in ["d1", "d2"] {
        test.create(id).await;
    }
    let session = test.connect("d1").await.session;
    test.tag("d1", "north").await;
    // Who is connected when the route comes is known to it.
    test.route(vec![route("one", "$twin.tags.site = 'north'")], true)
        .await;
    test.send_levels(&session, &["1"]);
    test.tag("d1", "south").await;
    test.send_levels(&session, &["2"]);
    // A login under the route.
    test.tag("d2", "north").await;
    let second = test.connect("d2").await.session;
    test.send_levels(&second, &["3"]);
    assert_eq!(test.routed("d1").await, expected(&[("1", 2), ("2", 1)]));
    assert_eq!(test.routed("d2").await, expected(&[("3", 2)]));
}

#[tokio::test]
async fn a_sender_without_a_session_has_a_twin_too() {
    let test = TestHub::new().await;
    test.create("d1").await;
    test.tag("d1", "north").await;
    test.route(vec![route("one", "$twin.tags.site = 'north'")], true)
        .await;
    let token = test.token("d1").await;
    for expected in [2, 1] {
        let admitted = test
            .hub
            .admit(access("d1", Credential::Sas(&token)))
            .await
            .expect("good");
        let mut records = Records::new();
        let _ = records.record().finish(b"x");
        test.hub.send_admitted(&admitted, &records).expect("room");
        assert_eq!(test.routed("d1").await.last().expect("an event").1, expected);
        test.tag("d1", "south").await;
    }
}

#[tokio::test]
async fn undefined_conditions_are_counted() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let session = test.connect("d1").await.session;
    test.route(vec![route("one", "missing = 'x'")], true).await;
    test.send_levels(&session, &["a", "b"]);
    assert_eq!(test.metrics.routes_undefined.get(), 2);
    assert_eq!(test.routed("d1").await, expected(&[("a", 1), ("b", 1)]));
}

#[tokio::test]
async fn wrong_definitions_change_nothing() {
    let test = TestHub::new().await;
    test.route(vec![route("one", "true")], true).await;
    let before = test.hub.routing().borrow().clone();
    let change = |routes: Vec<Route>| {
        test.hub
            .change_routing(move |definition: &mut RoutingDefinition| {
                definition.routes = routes;
                Ok(())
            })
    };
    for routes in [
        vec![route("nowhere", "true")],
        vec![route("one", "level >")],
        (0..101).map(|_| route("one", "true")).collect(),
    ] {
        let refused = change(routes).await.expect_err("wrong");
        assert_eq!(refused.code, ErrorCode::ArgumentInvalid);
    }
    assert_eq!(*test.hub.routing().borrow(), before);
    assert_eq!(EndpointSet::of(1).bits(), 2);
}
