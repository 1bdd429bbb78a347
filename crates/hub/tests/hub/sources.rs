//! Events of the hub's own doing: what is made of what, in which order it comes to the log, and what happens when it
//! cannot.

use std::sync::Arc;
use std::time::Duration;

use holdfast_hub::{BulkEntry, HubConfig, IdentitySpec, IfMatch, ImportEntry, ImportMode, ServiceCaller};
use holdfast_model::ErrorCode;
use holdfast_model::event::{AuthMethod, EventField, EventSource, EventView, Records};
use holdfast_model::routing::{EndpointDefinition, Enrichment, FallbackRoute, Route, RouteSource};
use holdfast_model::twin::{ChangeMode, TwinChange};
use holdfast_ports::event_log::EventLog as _;
use holdfast_ports::gateway::{DeviceGateway as _, Disconnect};
use holdfast_ports::outbox::{OUTBOX_EVENTS_MAX, OutboxEvent, OutboxStore as _};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::harness::*;

/// What a test looks at of an event.
#[derive(Clone, Debug, PartialEq)]
struct Told {
    source: EventSource,
    identity: String,
    operation: String,
    endpoints: u64,
    body: Value,
}

fn told(event: &EventView<'_>) -> Told {
    assert_eq!(event.auth, AuthMethod::Hub);
    assert_eq!(event.generation_id, 0);
    let property = |name: &str| {
        let mut fields = event.fields();
        fields.find_map(|field| match field {
            EventField::Application(key, value) if key == name => value.map(str::to_owned),
            _ => None,
        })
    };
    assert_eq!(property("hubName").as_deref(), Some("hub"));
    if event.source.concerns_identity() {
        assert_eq!(property("deviceId").as_deref(), Some(event.device_id()));
        assert_eq!(property("moduleId").as_deref(), event.module_id());
    }
    Told {
        source: event.source,
        identity: event.identity.to_owned(),
        operation: property("opType").expect("an operation"),
        endpoints: event.endpoints.bits(),
        body: serde_json::from_slice(event.body).expect("JSON"),
    }
}

fn route(source: RouteSource, endpoint: &str, condition: &str) -> Route {
    Route {
        name: format!("{}-{endpoint}", source.as_str()),
        source,
        condition: condition.to_owned(),
        endpoint_names: vec![endpoint.to_owned()],
        is_enabled: true,
    }
}

/// Ends with the test.
struct Relay(JoinHandle<()>);

impl Drop for Relay {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl TestHub {
    async fn routes(&self, routes: Vec<Route>) {
        let defined = self.hub.change_routing(move |definition| {
            definition.routes = routes;
            definition.fallback_route = FallbackRoute::default();
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

    fn relay(&self) -> Relay {
        let hub = Arc::clone(&self.hub);
        Relay(tokio::spawn(async move { hub.relay_events().await }))
    }

    async fn logged(&self) -> Vec<Told> {
        let mut all = Vec::new();
        for partition in 0..4 {
            let blocks = self.log.read(partition, 0, 64 << 20).await.expect("readable");
            for event in blocks.iter().flat_map(|block| block.events()) {
                let event = event.expect("well formed");
                if event.source != EventSource::Telemetry {
                    let partition = holdfast_hub::partition_of(event.device_id(), 4);
                    assert_eq!(event.partition, partition, "beside the telemetry of its device");
                    all.push(told(&event));
                }
            }
        }
        all
    }

    /// Waits until so many events have come and the outbox is empty.
    async fn events(&self, count: usize) -> Vec<Told> {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            let logged = self.logged().await;
            let waiting = self.store.outbox(1, 1).await.expect("listed");
            if logged.len() >= count && waiting.is_empty() {
                assert_eq!(logged.len(), count, "{logged:#?}");
                return logged;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "{} of {count} events, waiting: {waiting:?}",
                logged.len()
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn change(&self, id: &str, mode: ChangeMode, tags: Value) {
        let change = TwinChange {
            tags: Some(json(tags)),
            desired: None,
        };
        self.hub
            .change_twin(&OWNER, &identity(id), mode, change, IfMatch::Any)
            .await
            .expect("changed");
    }
}

fn outline(events: &[Told]) -> Vec<(&str, &str)> {
    events
        .iter()
        .map(|told| (told.identity.as_str(), told.operation.as_str()))
        .collect()
}

#[tokio::test]
async fn twin_changes_come_in_order_and_only_while_a_route_wants_them() {
    let test = TestHub::new().await;
    let _relay = test.relay();
    test.create("d1").await;
    test.change("d1", ChangeMode::Patch, json!({"a": 0})).await;
    test.routes(vec![
        route(RouteSource::TwinChangeEvents, "one", "true"),
        route(
            RouteSource::TwinChangeEvents,
            "events",
            "twin_change_includes(tags.a)",
        ),
    ])
    .await;
    test.change("d1", ChangeMode::Patch, json!({"a": 1})).await;
    let session = test.connect("d1").await.session;
    test.hub
        .patch_reported(session.identity(), br#"{"t": 5}"#, None)
        .await
        .expect("taken");
    test.change("d1", ChangeMode::Replace, json!({"a": 2})).await;
    let events = test.events(3).await;
    let seen: Vec<_> = events
        .iter()
        .map(|told| (told.operation.as_str(), told.endpoints))
        .collect();
    assert_eq!(seen, [("updateTwin", 3), ("updateTwin", 2), ("replaceTwin", 3)]);
    assert_eq!(events[0].body["tags"], json!({"a": 1}));
    assert_eq!(events[1].body["properties"]["reported"]["t"], 5);
    assert_eq!(events[2].body["tags"], json!({"a": 2}));
    assert_eq!(events[2].body["deviceId"], "d1");
    test.routes(Vec::new()).await;
    test.change("d1", ChangeMode::Patch, json!({"a": 3})).await;
    assert!(test.store.outbox(1, 1).await.expect("listed").is_empty());
    test.events(3).await;
}

#[tokio::test]
async fn a_twin_condition_sees_the_changed_twin() {
    let test = TestHub::new().await;
    let _relay = test.relay();
    test.create("d1").await;
    test.routes(vec![route(
        RouteSource::TwinChangeEvents,
        "events",
        "$twin.tags.site = 'north'",
    )])
    .await;
    for site in ["south", "north", "south"] {
        test.change("d1", ChangeMode::Patch, json!({"site": site})).await;
    }
    let events = test.events(1).await;
    assert_eq!(events[0].body["tags"]["site"], "north");
}

#[tokio::test]
async fn identities_come_and_go() {
    let test = TestHub::new().await;
    let _relay = test.relay();
    test.routes(vec![route(RouteSource::DeviceLifecycleEvents, "events", "true")])
        .await;
    test.create("d1").await;
    test.create("d1/m1").await;
    let edge = IdentitySpec {
        iot_edge: true,
        ..IdentitySpec::default()
    };
    test.hub
        .update_identity(&OWNER, &identity("d1"), &edge, IfMatch::Any)
        .await
        .expect("updated");
    let events = test.events(4).await;
    assert_eq!(
        outline(&events),
        [
            ("d1", "createDeviceIdentity"),
            ("d1/m1", "createDeviceIdentity"),
            ("d1/$edgeAgent", "createDeviceIdentity"),
            ("d1/$edgeHub", "createDeviceIdentity"),
        ]
    );
    assert_eq!(events[1].body["moduleId"], "m1");
    assert_eq!(events[0].body["status"], "enabled");
    test.hub
        .delete_identity(&identity("d1"), IfMatch::Any)
        .await
        .expect("deleted");
    let events = test.events(8).await;
    assert_eq!(events[4].operation, "deleteDeviceIdentity");
    assert_eq!(events[4].identity, "d1");
    let import = |id: &str, mode: ImportMode| ImportEntry {
        entry: BulkEntry {
            device_id: id.to_owned(),
            mode,
            ..BulkEntry::default()
        },
        ..ImportEntry::default()
    };
    let imported = test
        .hub
        .import(&[
            import("d1", ImportMode::Create),
            import("d1", ImportMode::CreateOrUpdate),
        ])
        .await;
    assert!(imported.iter().all(Result::is_ok), "{imported:?}");
    let events = test.events(9).await;
    assert_eq!(outline(&events)[8], ("d1", "createDeviceIdentity"));
}

#[tokio::test]
async fn connections_have_growing_sequence_numbers() {
    let test = TestHub::new().await;
    let _relay = test.relay();
    test.create("d1").await;
    test.routes(vec![route(
        RouteSource::DeviceConnectionStateEvents,
        "events",
        "true",
    )])
    .await;
    let first = test.connect("d1").await.session;
    let second = test.connect("d1").await.session;
    // The head of the replaced session learns of its end afterwards.
    test.hub.disconnect(&first, Disconnect::Closed);
    test.hub.disconnect(&second, Disconnect::Clean);
    let third = test.connect("d1").await.session;
    test.hub.drain().await;
    drop(third);
    let events = test.events(6).await;
    let operations: Vec<_> = events.iter().map(|told| told.operation.as_str()).collect();
    assert_eq!(
        operations,
        [
            "deviceConnected",
            "deviceDisconnected",
            "deviceConnected",
            "deviceDisconnected",
            "deviceConnected",
            "deviceDisconnected",
        ]
    );
    let numbers: Vec<_> = events
        .iter()
        .map(|told| told.body["sequenceNumber"].as_str().expect("a text"))
        .collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
}

#[tokio::test]
async fn a_stopping_hub_tells_of_the_sessions_it_ends() {
    let test = TestHub::new().await;
    test.create("d1").await;
    test.routes(vec![route(
        RouteSource::DeviceConnectionStateEvents,
        "events",
        "true",
    )])
    .await;
    let _session = test.connect("d1").await.session;
    // Nobody relays but the drain itself.
    test.hub.drain().await;
    let events = test.events(2).await;
    assert_eq!(
        outline(&events),
        [("d1", "deviceConnected"), ("d1", "deviceDisconnected")]
    );
}

#[tokio::test]
async fn a_full_log_holds_events_up_and_loses_none() {
    let test = TestHub::new().await;
    let _relay = test.relay();
    test.create("d1").await;
    test.routes(vec![route(RouteSource::TwinChangeEvents, "events", "true")])
        .await;
    test.log.set_busy(true);
    for number in 0..50 {
        test.change("d1", ChangeMode::Patch, json!({"n": number})).await;
    }
    assert!(test.logged().await.is_empty());
    assert!(!test.store.outbox(1, 1).await.expect("listed").is_empty());
    test.log.set_busy(false);
    let numbers: Vec<_> = test.events(50).await;
    for (number, told) in numbers.iter().enumerate() {
        assert_eq!(told.body["tags"]["n"], number);
    }
}

#[tokio::test]
async fn changes_are_refused_while_too_many_events_wait() {
    let config = HubConfig {
        outbox_wait: Duration::from_millis(100),
        ..HubConfig::default()
    };
    let test = TestHub::with(config).await;
    test.create("d1").await;
    test.routes(vec![route(RouteSource::TwinChangeEvents, "events", "true")])
        .await;
    let mut records = Records::new();
    let mut record = records.record();
    record.property("hubName", Some("hub"));
    record.property("deviceId", Some("d2"));
    record.property("opType", Some("x"));
    let _ = record.finish(b"{}");
    let event = OutboxEvent {
        source: EventSource::ConnectionState,
        identity: identity("d2"),
        records,
        twin: None,
    };
    let started = std::time::Instant::now();
    let many = vec![event; OUTBOX_EVENTS_MAX as usize];
    test.store.add_to_outbox(many).await.expect("room");
    let change = || TwinChange {
        tags: Some(json(json!({"a": 1}))),
        desired: None,
    };
    let patch = async |caller: &ServiceCaller| {
        test.hub
            .change_twin(caller, &identity("d1"), ChangeMode::Patch, change(), IfMatch::Any)
            .await
    };
    let refused = patch(&OWNER).await.expect_err("no room");
    assert_eq!(refused.code, ErrorCode::ThrottlingException);
    // Nobody is told of that one.
    test.create("d3").await;
    assert!(
        test.hub
            .twin(&identity("d1"))
            .await
            .expect("there")
            .tags
            .is_empty()
    );
    // No route takes what waits, so the relay only clears it away, and the change finds room while it waits.
    let _relay = test.relay();
    while patch(&OWNER).await.is_err() {
        assert!(started.elapsed() < Duration::from_secs(30));
    }
    test.events(1).await;
}

/// The enriched copy is for readers of the built-in endpoint only; others get the event as it was sent.
#[tokio::test]
async fn enrichments_of_the_built_in_endpoint_are_added_when_an_event_is_appended() {
    let test = TestHub::new().await;
    let _relay = test.relay();
    test.create("d1").await;
    test.change("d1", ChangeMode::Patch, json!({"site": "north"}))
        .await;
    let session = test.connect("d1").await.session;
    let both = |source| [route(source, "one", "true"), route(source, "events", "true")];
    test.routes(
        [
            both(RouteSource::DeviceMessages),
            both(RouteSource::TwinChangeEvents),
            both(RouteSource::DigitalTwinChangeEvents),
        ]
        .concat(),
    )
    .await;
    let enriched = test.hub.change_routing(|definition| {
        let enrichment = |key: &str, value: &str, endpoint: &str| Enrichment {
            key: key.to_owned(),
            value: value.to_owned(),
            endpoint_names: vec![endpoint.to_owned()],
        };
        definition.enrichments = vec![
            enrichment("stage", "test", "Events"),
            enrichment("site", "$twin.tags.site", "events"),
            enrichment("none", "$twin.tags.none", "events"),
            enrichment("hub", "$iothubname", "events"),
            enrichment("other", "x", "one"),
        ];
        Ok(())
    });
    enriched.await.expect("good enrichments");
    let mut records = Records::new();
    let mut record = records.record();
    record.property("stage", Some("sent"));
    let _ = record.finish(b"1");
    let _ = records
        .record()
        .finish(&vec![b'2'; holdfast_model::limits::D2C_BYTES_MAX - 10]);
    test.hub.send(&session, &records).expect("room");
    test.hub
        .patch_reported(session.identity(), br#"{"t": 5}"#, None)
        .await
        .expect("taken");
    let partition = holdfast_hub::partition_of("d1", 4);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let blocks = loop {
        let blocks = test.log.read(partition, 0, 64 << 20).await.expect("readable");
        if blocks.len() == 5 {
            break blocks;
        }
        assert!(std::time::Instant::now() < deadline, "{} blocks", blocks.len());
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    let events: Vec<_> = blocks
        .iter()
        .flat_map(|block| block.events())
        .map(|event| event.expect("well formed"))
        .collect();
    let outline: Vec<_> = events
        .iter()
        .map(|event| (event.source, event.endpoints.bits(), event.body.len().min(9)))
        .collect();
    assert_eq!(
        outline,
        [
            (EventSource::Telemetry, 1, 1),
            (EventSource::Telemetry, 2, 1),
            (EventSource::Telemetry, 2, 9),
            (EventSource::TwinChange, 1, 9),
            (EventSource::TwinChange, 2, 9),
            (EventSource::DigitalTwinChange, 3, 9),
        ]
    );
    assert_eq!(test.metrics.enriched_too_large.get(), 1);
    let property = |event: &EventView<'_>, name: &str| {
        let values: Vec<_> = event
            .fields()
            .filter_map(|field| match field {
                EventField::Application(key, value) if key == name => value.map(str::to_owned),
                _ => None,
            })
            .collect();
        values.join("|")
    };
    let added = |event| ["stage", "site", "none", "hub", "other"].map(|name| property(event, name));
    let all = ["test", "north", "$twin.tags.none", "hub", ""];
    assert_eq!(added(&events[0]), all);
    assert_eq!(added(&events[1]), ["sent", "", "", "", ""]);
    assert_eq!(added(&events[3]), all);
    assert_eq!(added(&events[4]), ["", "", "", "", ""]);
    assert_eq!(added(&events[5]), ["", "", "", "", ""]);
}
