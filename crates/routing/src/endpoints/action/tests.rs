//! Against an engine that notes what it is asked.

use holdfast_model::Timestamp;
use holdfast_model::method::MethodResponse;
use holdfast_ports::action::DeviceActions;
use holdfast_ports::clock::ManualClock;
use holdfast_query::twin::Condition;
use parking_lot::Mutex;
use serde_json::json;

use super::*;
use crate::endpoints::testing::{environment, events, outbound, telemetry};

/// Devices `d1` to `d9` exist; `d8` is not connected, `d9` throttles.
#[derive(Default)]
struct Engine {
    done: Mutex<Vec<String>>,
    selected: Mutex<Vec<&'static str>>,
}

impl Engine {
    fn judge(&self, identity: &Identity, what: String) -> Result<(), Error> {
        match identity.as_str() {
            "d8" => return Err(Error::new(ErrorCode::DeviceNotOnline, "d8 is not connected")),
            "d9" => return Err(Error::new(ErrorCode::ThrottlingException, "too much")),
            _ => {}
        }
        self.done.lock().push(format!("{identity} {what}"));
        Ok(())
    }

    fn done(&self) -> Vec<String> {
        let mut done = std::mem::take(&mut *self.done.lock());
        done.sort();
        done
    }
}

impl DeviceActions for Engine {
    fn call<'a>(
        &'a self,
        identity: &'a Identity,
        call: MethodCall,
    ) -> BoxFuture<'a, Result<MethodResponse, Error>> {
        let payload = String::from_utf8_lossy(&call.payload).into_owned();
        let outcome = self.judge(identity, format!("{}({payload})", call.name));
        Box::pin(std::future::ready(outcome.map(|()| MethodResponse {
            status: 200,
            payload: Bytes::new(),
        })))
    }

    fn patch<'a>(&'a self, identity: &'a Identity, change: TwinChange) -> BoxFuture<'a, Result<u64, Error>> {
        let text = json!({"tags": change.tags, "desired": change.desired}).to_string();
        let outcome = self.judge(identity, text);
        Box::pin(std::future::ready(outcome.map(|()| 17)))
    }

    fn select<'a>(
        &'a self,
        condition: &'a Condition,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Identity>, Error>> {
        assert!(condition.ids().is_some());
        let found = self.selected.lock();
        let found = found
            .iter()
            .take(limit)
            .map(|id| Identity::parse(id).unwrap())
            .collect();
        Box::pin(std::future::ready(Ok(found)))
    }
}

struct Stage {
    engine: Arc<Engine>,
    clock: Arc<ManualClock>,
    environment: Environment,
}

impl Stage {
    fn new() -> Self {
        let engine = Arc::new(Engine::default());
        let clock = Arc::new(ManualClock::at(Timestamp::from_seconds(2_000)));
        let port: Arc<dyn DeviceActions> = engine.clone();
        let environment = Environment {
            clock: clock.clone(),
            actions: Some(Actions::new(port)),
            ..environment()
        };
        Stage {
            engine,
            clock,
            environment,
        }
    }

    fn endpoint(&self, settings: Value) -> ActionEndpoint {
        ActionEndpoint::new(&settings, &self.environment).unwrap()
    }
}

async fn send(endpoint: &ActionEndpoint, identity: &str, body: &str) -> Result<(), DeliveryError> {
    let block = telemetry(identity, &[body]);
    endpoint.deliver(&outbound(&block)).await
}

async fn twin_change(endpoint: &ActionEndpoint, identity: &str, version: u64) -> Result<(), DeliveryError> {
    let body = json!({"version": version, "tags": {"a": 1}}).to_string();
    let block = events(EventSource::TwinChange, identity, &[&body]);
    endpoint.deliver(&outbound(&block)).await
}

#[tokio::test]
async fn methods_and_patches_with_values_of_the_event() {
    let stage = Stage::new();
    let call = stage.endpoint(json!({"method": {"name": "cool", "payload": {
        "to": "{{body.limits.1}}", "why": "{{deviceId}}: {{ body.t }}°, level {{properties.level}}", "none": "{{body.x}}",
    }}}));
    send(&call, "d1/m1", r#"{"t": 21.5, "limits": [1, 2]}"#)
        .await
        .unwrap();
    let call = stage.engine.done();
    let (whom, payload) = call[0].split_once(" cool(").unwrap();
    let payload: Value = serde_json::from_str(payload.trim_end_matches(')')).unwrap();
    assert_eq!(
        (whom, payload),
        (
            "d1/m1",
            json!({"to": 2, "why": "d1: 21.5°, level 3", "none": null})
        )
    );

    let patch = stage.endpoint(json!({"patch": {"desired": {"fan": "{{body}}"}}, "devices": ["d2", "d3/m"]}));
    send(&patch, "d1", "true").await.unwrap();
    assert_eq!(
        stage.engine.done(),
        [
            r#"d2 {"desired":{"fan":true},"tags":null}"#,
            r#"d3/m {"desired":{"fan":true},"tags":null}"#,
        ]
    );
    send(&stage.endpoint(json!({"method": {"name": "ping"}})), "d1", "1")
        .await
        .unwrap();
    assert_eq!(stage.engine.done(), ["d1 ping()"]);
}

#[tokio::test]
async fn queries_are_bounded() {
    let stage = Stage::new();
    *stage.engine.selected.lock() = vec!["d1", "d2", "d3"];
    let settings = |most| json!({"method": {"name": "x"}, "query": "tags.floor = 1", "targetsMax": most});
    send(&stage.endpoint(settings(3)), "d5", "1").await.unwrap();
    assert_eq!(stage.engine.done(), ["d1 x()", "d2 x()", "d3 x()"]);
    let error = send(&stage.endpoint(settings(2)), "d5", "1").await.unwrap_err();
    assert!(error.refused && error.message.contains("more than 2"), "{error}");
    assert!(stage.engine.done().is_empty(), "nobody is acted on then");
}

#[tokio::test]
async fn failures_refuse_and_busy_hubs_are_asked_again() {
    let stage = Stage::new();
    let source = stage.endpoint(json!({"method": {"name": "x"}}));
    let error = send(&source, "d8", "1").await.unwrap_err();
    assert!(
        error.refused && error.message.contains("not connected"),
        "{error}"
    );
    let error = send(&source, "d9", "1").await.unwrap_err();
    assert!(!error.refused && error.message.contains("too much"), "{error}");
    let some = stage.endpoint(json!({"method": {"name": "x"}, "devices": ["d1", "d9"]}));
    let error = send(&some, "d5", "1").await.unwrap_err();
    assert!(
        error.refused && error.message.contains("1 of 2"),
        "a method is not called twice: {error}"
    );
    assert_eq!(stage.engine.done(), ["d1 x()"]);
}

#[tokio::test]
async fn own_twin_changes_are_not_answered() {
    let stage = Stage::new();
    let patch = json!({"patch": {"tags": {"a": 1}}});
    let endpoint = stage.endpoint(patch.clone());
    twin_change(&endpoint, "d1", 16).await.unwrap();
    assert_eq!(stage.engine.done().len(), 1, "somebody else's change is answered");
    twin_change(&endpoint, "d1", 17).await.unwrap();
    assert_eq!(stage.engine.done().len(), 0, "version 17 is the action's own");
    twin_change(&stage.endpoint(patch), "d1", 17).await.unwrap();
    assert_eq!(stage.engine.done().len(), 0, "other actions know it too");
    twin_change(&endpoint, "d2", 17).await.unwrap();
    assert_eq!(stage.engine.done().len(), 1, "the version of another twin");
}

#[tokio::test]
async fn hops_are_counted() {
    let stage = Stage::new();
    let endpoint = stage.endpoint(json!({"patch": {"tags": {"a": 1}}, "hopsMax": 2}));
    twin_change(&endpoint, "d1", 3).await.unwrap();
    for hop in [1, 2] {
        twin_change(&endpoint, "d1", 17).await.unwrap();
        assert_eq!(
            stage.engine.done().len(),
            if hop == 1 { 2 } else { 1 },
            "hop {hop}"
        );
    }
    twin_change(&endpoint, "d1", 17).await.unwrap();
    assert_eq!(stage.engine.done().len(), 0, "three actions in a row");
}

#[tokio::test]
async fn each_target_has_a_rate() {
    let stage = Stage::new();
    let endpoint = stage.endpoint(json!({"method": {"name": "x"}, "ratePerMinute": 2}));
    for _ in 0..2 {
        send(&endpoint, "d1", "1").await.unwrap();
    }
    let error = send(&endpoint, "d1", "1").await.unwrap_err();
    assert!(
        error.refused && error.message.contains("2 actions in a minute"),
        "{error}"
    );
    send(&endpoint, "d2", "1").await.unwrap();
    stage.clock.advance(Duration::from_secs(60));
    send(&endpoint, "d1", "1").await.unwrap();
    assert_eq!(stage.engine.done().len(), 4);
}

#[test]
fn what_is_remembered_is_bounded() {
    let trail = bounds::Trail::default();
    for version in 0..20_000 {
        trail.note("d1", version, 1);
    }
    assert_eq!((trail.hops("d1", 0), trail.hops("d1", 19_999)), (0, 1));
    let rate = Rate::new(1);
    let now = Timestamp::from_seconds(0);
    let admitted = (0..20_000)
        .filter(|number| rate.admit(&format!("d{number}"), now))
        .count();
    assert_eq!(admitted, 10_000);
    assert!(
        rate.admit("other", Timestamp::from_seconds(60)),
        "old windows make room"
    );
}

#[test]
fn faults_in_settings_are_named() {
    let method = json!({"name": "x"});
    for (settings, names) in [
        (json!({}), "method or patch"),
        (
            json!({"method": method, "patch": {"tags": {}}}),
            "method or patch",
        ),
        (json!({"patch": {}}), "tags or desired"),
        (json!({"method": {"name": "a b"}}), "method.name"),
        (json!({"method": {"name": "x", "payload": "{{who}}"}}), "{{who}}"),
        (
            json!({"method": {"name": "x", "payload": ["{{body"]}}),
            "without }}",
        ),
        (
            json!({"method": {"name": "x", "responseTimeoutSeconds": 300}}),
            "responseTimeoutSeconds",
        ),
        (json!({"method": method, "devices": []}), "number of devices"),
        (json!({"method": method, "devices": ["a b"]}), "a b"),
        (json!({"method": method, "query": "tags. ="}), "query"),
        (
            json!({"method": method, "devices": ["d"], "query": "*"}),
            "together",
        ),
        (json!({"method": method, "ratePerMinute": 0}), "ratePerMinute"),
        (json!({"method": method, "targetsMax": 101}), "targetsMax"),
    ] {
        let error = ActionConfig::check(&settings).unwrap_err();
        assert!(error.contains(names), "{names}: {error}");
    }
    let filled = ActionConfig::check(&json!({"method": method})).unwrap();
    assert_eq!(filled["ratePerMinute"], 10);
    assert_eq!(ActionConfig::check(&filled).unwrap(), filled);
    let error = ActionEndpoint::new(&json!({"method": method}), &environment())
        .err()
        .unwrap();
    assert!(error.contains("cannot act"), "{error}");
}
