use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::c2d::Settlement;
use holdfast_model::message::Message;
use holdfast_model::method::{MethodCall, MethodRequest, MethodResponse};
use holdfast_model::subscription::Channel;
use holdfast_model::{ErrorCode, Identity};
use holdfast_ports::gateway::DeviceGateway;
use holdfast_ports::session::Downlink;
use holdfast_store::log::sim::SimDisk;
use holdfast_upstream::port::{CloudEvent, CloudMessage, Settle};
use serde_json::{Value, json};

use crate::cloud::FakeCloud;
use crate::edge::{Edge, scope, settings};

async fn below(online: bool) -> (Arc<FakeCloud>, SimDisk, Edge) {
    let cloud = FakeCloud::new(online);
    cloud.state.lock().scope = scope();
    let disk = SimDisk::new();
    let edge = Edge::below(&cloud, Arc::new(disk.clone())).await;
    (cloud, disk, edge)
}

async fn twin(edge: &Edge, identity: &str) -> Value {
    let identity = Identity::parse(identity).unwrap();
    let json = edge.broker.device_twin(&identity).await.unwrap();
    serde_json::from_slice(&json).unwrap()
}

async fn report(edge: &Edge, identity: &str, patch: Value) -> Result<u64, ErrorCode> {
    let identity = Identity::parse(identity).unwrap();
    let patch = patch.to_string();
    edge.broker
        .patch_reported(&identity, patch.as_bytes(), None)
        .await
        .map_err(|error| error.code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twins_are_kept_reported_and_merged_after_an_offline_time() {
    let (cloud, disk, edge) = below(true).await;
    cloud.desire("edge/a", json!({"rate": 5, "old": 1}), false);
    assert_eq!(twin(&edge, "edge/a").await["desired"]["rate"], 5);
    report(&edge, "edge/a", json!({"state": {"x": 1, "y": 2}, "n": 1}))
        .await
        .unwrap();
    edge.until("the report above", || cloud.reported("edge/a")["state"]["y"] == 2)
        .await;

    cloud.set_online(false);
    report(&edge, "edge/a", json!({"n": 2, "state": null}))
        .await
        .unwrap();
    report(&edge, "edge/a", json!({"state": {"z": 3}})).await.unwrap();
    let begun = std::time::Instant::now();
    let offline = twin(&edge, "edge/a").await;
    assert!(begun.elapsed() < Duration::from_secs(2), "at once, offline");
    assert_eq!(offline["reported"]["state"], json!({"z": 3}));
    assert_eq!(
        (&offline["desired"]["rate"], &offline["reported"]["n"]),
        (&json!(5), &json!(2))
    );
    assert!(
        twin(&edge, "edge/b").await["desired"].is_object(),
        "an empty one, when none was ever seen"
    );
    for (bad, why) in [
        ((0..12).fold(json!(1), |inner, _| json!({ "a": inner })), "depth"),
        (json!({"a.b": 1}), "name"),
        (json!({"a": "x".repeat(5_000)}), "text"),
        (json!({"a": [null]}), "null in a list"),
        (json!({"a": 9_007_199_254_740_993_i64}), "integer"),
    ] {
        assert_eq!(
            report(&edge, "edge/a", bad).await,
            Err(ErrorCode::ArgumentInvalid),
            "{why}"
        );
    }
    edge.broker.stop().await;

    // The process is new, the network still down: nothing reported is forgotten.
    let edge = Edge::below(&cloud, Arc::new(disk.clone())).await;
    assert_eq!(twin(&edge, "edge/a").await["reported"], offline["reported"]);
    cloud.set_online(true);
    edge.until("the reports above", || {
        cloud.reported("edge/a") == json!({"n": 2, "state": {"z": 3}})
    })
    .await;
    assert_eq!(twin(&edge, "edge/a").await["reported"]["state"], json!({"z": 3}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn desired_changes_reach_the_client_and_a_gap_is_closed() {
    let (cloud, _, edge) = below(true).await;
    cloud.desire("edge/a", json!({"v": 1, "gone": 1}), false);
    let a = edge.client("edge/a").await;
    a.subscribe(&[Channel::DesiredProperties, Channel::TwinResponses])
        .await;
    assert_eq!(twin(&edge, "edge/a").await["desired"]["v"], 1);
    edge.until("the interest", || {
        cloud
            .state
            .lock()
            .interests
            .get("edge/a")
            .is_some_and(|wanted| wanted.desired)
    })
    .await;
    let next = async || match a.pushed().await {
        Downlink::Desired { version, patch } => (version, serde_json::from_slice::<Value>(&patch).unwrap()),
        other => panic!("{other:?}"),
    };
    cloud.desire("edge/a", json!({"v": 2}), true);
    assert_eq!(next().await, (2, json!({"v": 2, "$version": 2})));
    // A change whose push is lost, then one that comes: the client learns both.
    cloud.desire("edge/a", json!({"lost": 1, "gone": null}), false);
    cloud.desire("edge/a", json!({"v": 3}), true);
    assert_eq!(
        next().await,
        (4, json!({"v": 3, "lost": 1, "gone": null, "$version": 4}))
    );
    // What changed while offline comes with the reconnection.
    cloud.set_online(false);
    cloud.desire("edge/a", json!({"v": 4}), false);
    cloud.set_online(true);
    cloud.push("edge/a", CloudEvent::Connected);
    assert_eq!(next().await, (5, json!({"v": 4, "$version": 5})));
    cloud.set_online(false);
    assert_eq!(
        twin(&edge, "edge/a").await["desired"],
        json!({"v": 4, "lost": 1, "$version": 5})
    );
}

fn call(name: &str, connect: u64, response: u64) -> MethodCall {
    MethodCall {
        name: name.to_owned(),
        payload: Bytes::from_static(b"{\"x\":1}"),
        connect_timeout: Duration::from_secs(connect),
        response_timeout: Duration::from_secs(response),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn methods_between_modules() {
    let edge = Edge::alone();
    let target = Identity::parse("leaf").unwrap();
    let broker = Arc::clone(&edge.broker);
    let invoke = |connect, response| {
        let (broker, target) = (Arc::clone(&broker), target.clone());
        tokio::spawn(async move {
            broker
                .invoke_method("edge/a", &target, call("go", connect, response))
                .await
        })
    };
    let error = |outcome: Result<MethodResponse, holdfast_model::Error>| outcome.expect_err("no answer").code;
    assert_eq!(error(invoke(0, 30).await.unwrap()), ErrorCode::DeviceNotOnline);
    assert_eq!(error(invoke(0, 3).await.unwrap()), ErrorCode::ArgumentInvalid);
    // It comes while somebody waits.
    let waiting = invoke(20, 30);
    let leaf = edge.client("leaf").await;
    leaf.subscribe(&[Channel::Methods]).await;
    let Downlink::Method(request) = leaf.pushed().await else {
        panic!("a method")
    };
    assert_eq!(
        (request.name.as_str(), &request.payload[..]),
        ("go", &b"{\"x\":1}"[..])
    );
    let answer = MethodResponse {
        status: 207,
        payload: Bytes::from_static(b"[1]"),
    };
    edge.broker
        .complete_method(&leaf.session, request.request_id, answer.clone());
    assert_eq!(waiting.await.unwrap(), Ok(answer));
    // It goes while somebody waits; and it stays and says nothing.
    let waiting = invoke(0, 30);
    leaf.pushed().await;
    leaf.leave();
    assert_eq!(
        error(waiting.await.unwrap()),
        ErrorCode::DeviceConnectionClosedRemotely
    );
    let leaf = edge.client("leaf").await;
    leaf.subscribe(&[Channel::Methods]).await;
    assert_eq!(error(invoke(0, 5).await.unwrap()), ErrorCode::GatewayTimeout);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn methods_and_messages_from_above_reach_clients() {
    let (cloud, _, edge) = below(true).await;
    let leaf = edge.client("leaf").await;
    leaf.subscribe(&[Channel::Methods, Channel::CloudToDevice]).await;
    edge.until("the interest", || {
        cloud
            .state
            .lock()
            .interests
            .get("leaf")
            .is_some_and(|wanted| wanted.methods && wanted.cloud_to_device)
    })
    .await;
    let request = MethodRequest {
        request_id: 77,
        name: "go".to_owned(),
        payload: Bytes::from_static(b"1"),
    };
    cloud.push("leaf", CloudEvent::Method(request));
    let request = loop {
        // A hint to look for messages may come first.
        if let Downlink::Method(request) = leaf.pushed().await {
            break request;
        }
    };
    edge.broker.complete_method(
        &leaf.session,
        request.request_id,
        MethodResponse {
            status: 200,
            payload: Bytes::new(),
        },
    );
    edge.until("the answer above", || {
        cloud
            .state
            .lock()
            .answers
            .iter()
            .any(|(id, answer)| *id == 77 && answer.status == 200)
    })
    .await;

    let message = |token: u64| {
        CloudEvent::CloudToDevice(CloudMessage {
            message: Message {
                body: Bytes::from(token.to_string()),
                ..Message::default()
            },
            token,
        })
    };
    for token in 1..=3 {
        cloud.push("leaf", message(token));
    }
    let got = leaf.fetch(3).await;
    leaf.settle(&got[0], Settlement::Complete).await.unwrap();
    leaf.settle(&got[1], Settlement::Reject).await.unwrap();
    assert!(leaf.settle(&got[0], Settlement::Complete).await.is_err());
    leaf.leave();
    let settled = || cloud.state.lock().settled.clone();
    edge.until("three answers", || settled().len() == 3).await;
    assert_eq!(
        settled(),
        [(1, Settle::Complete), (2, Settle::Reject), (3, Settle::Abandon)]
    );
    // Nobody is there: it goes back.
    cloud.push("leaf", message(4));
    edge.until("the fourth back", || settled().contains(&(4, Settle::Abandon)))
        .await;
    edge.until("no interest", || {
        cloud.state.lock().interests["leaf"] == holdfast_upstream::port::Interests::default()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_twin_of_the_edge_hub_configures_it() {
    let cloud = FakeCloud::new(true);
    cloud.state.lock().scope = scope();
    let route = |text: &str| json!({"schemaVersion": "1.1", "routes": {"in": text}, "storeAndForwardConfiguration": {"timeToLiveSecs": 7200}});
    cloud.desire(
        "edge/$edgeHub",
        route("FROM /messages/* INTO BrokeredEndpoint(\"/modules/b/inputs/in\")"),
        false,
    );
    let disk = SimDisk::new();
    let edge = Edge::below(&cloud, Arc::new(disk.clone())).await;
    let status = || cloud.reported("edge/$edgeHub")["lastDesiredStatus"]["code"].clone();
    edge.until("the report", || status() == 200).await;
    assert_eq!(cloud.reported("edge/$edgeHub")["lastDesiredVersion"], 1);
    let (a, b) = (edge.client("edge/a").await, edge.client("edge/b").await);
    b.subscribe(&[Channel::Inputs]).await;
    a.say(None, &["1"]).await;
    assert_eq!(b.consume(1).await, ["1"]);
    // One bad route: the others go on, and it is told.
    let both = json!({"schemaVersion": "1.1", "routes": {
        "in": "FROM /messages/* INTO BrokeredEndpoint(\"/modules/b/inputs/other\")",
        "bad": "FROM /messages/* INTO nowhere",
        "worse": "FROM /messages/* WHERE level = 3 INTO $upstream"}});
    cloud.desire("edge/$edgeHub", both, true);
    edge.until("the fault above", || status() == 400).await;
    let description = cloud.reported("edge/$edgeHub")["lastDesiredStatus"]["description"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        description.starts_with("Error while parsing desired properties - route bad: "),
        "{description}"
    );
    let (bad, worse) = description
        .split_once("; route worse: ")
        .expect("each by its name");
    let told = edge.broker.configuration().expect("an outcome");
    assert_eq!(
        (told.version, told.code, &told.description),
        (Some(2), 400, &description)
    );
    for fault in [bad, worse] {
        assert!(fault.contains("(line 1, column 2"), "where it is: {description}");
    }
    a.say(None, &["2"]).await;
    let got = b.fetch(1).await;
    assert_eq!(got[0].message.input.as_ref().unwrap().input, "other");
    // Clients are listed, under keys that a twin may have; a leaf device that is gone is not.
    let leaf = edge.client("leaf").await;
    edge.until("the clients", || {
        cloud.reported("edge/$edgeHub")["clients"]["leaf"]["status"] == "Connected"
    })
    .await;
    leaf.leave();
    a.leave();
    edge.until("who is gone", || {
        let clients = cloud.reported("edge/$edgeHub")["clients"].clone();
        clients["edge/a"]["status"] == "Disconnected" && clients.get("leaf").is_none()
    })
    .await;
    // Its method.
    let ask = |payload: &'static [u8], id| {
        let request = MethodRequest {
            request_id: id,
            name: "refreshDeviceScopeIdentityCache".to_owned(),
            payload: Bytes::from_static(payload),
        };
        cloud.push("edge/$edgeHub", CloudEvent::Method(request));
    };
    let answer = |id| {
        cloud
            .state
            .lock()
            .answers
            .iter()
            .find(|(known, _)| *known == id)
            .map(|(_, answer)| answer.status)
    };
    ask(b"{\"deviceIds\":[\"leaf2\"]}", 1);
    ask(b"{\"devices\":1}", 2);
    edge.until("answers", || answer(1) == Some(200) && answer(2) == Some(400))
        .await;
    // A start without a network has the last good routes.
    edge.broker.stop().await;
    cloud.set_online(false);
    let edge = Edge::open(
        settings(),
        Arc::new(disk),
        crate::edge::manual(),
        Some(crate::edge::above(&cloud)),
    );
    let kept = edge.broker.configuration().expect("the kept outcome");
    assert_eq!((kept.version, &kept.description), (None, &description));
    edge.client("edge/a").await.say(None, &["3"]).await;
    let b = edge.client("edge/b").await;
    b.subscribe(&[Channel::Inputs]).await;
    assert_eq!(b.consume(2).await, ["2", "3"]);
}
