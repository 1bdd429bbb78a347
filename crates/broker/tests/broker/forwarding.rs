use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_broker::metrics::Family;
use holdfast_store::log::sim::SimDisk;
use holdfast_upstream::port::CloudEvent;
use serde_json::json;

use crate::cloud::FakeCloud;
use crate::edge::{Draft, Edge, above, scope, settings};

const UP: &str = "FROM /messages/* INTO $upstream";

async fn below(online: bool) -> (Arc<FakeCloud>, Edge) {
    let cloud = FakeCloud::new(true);
    cloud.state.lock().scope = scope();
    let edge = Edge::below(&cloud, Arc::new(SimDisk::new())).await;
    edge.route(json!({ "up": UP }));
    cloud.set_online(online);
    (cloud, edge)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_up_as_their_senders_in_order() {
    let (cloud, edge) = below(true).await;
    let senders = ["edge/a", "edge/b", "leaf", "leaf2"];
    let numbers: Vec<String> = (0..300).map(|number| number.to_string()).collect();
    for sender in senders {
        let client = edge.client(sender).await;
        for chunk in numbers.chunks(7) {
            let texts: Vec<&str> = chunk.iter().map(String::as_str).collect();
            client.say(Some("out"), &texts).await;
        }
    }
    for sender in senders {
        edge.until("all", || cloud.bodies(sender).len() == 300).await;
        assert_eq!(cloud.bodies(sender), numbers, "{sender}");
    }
    {
        let state = cloud.state.lock();
        assert_eq!(
            (state.chains["edge/a"].as_str(), state.chains["leaf"].as_str()),
            ("edge/a;edge", "leaf;edge")
        );
        let outputs = state
            .received
            .iter()
            .filter(|(_, message)| !message.system.is_empty())
            .count();
        assert_eq!(outputs, 0, "outputs are not the hub's business");
    }
    edge.until("an empty store", || edge.broker.queue_bytes() == 0)
        .await;
    let text = edge.broker.metrics_text(&[("iothub", "hub.test")]);
    assert!(
        text.contains("edgehub_messages_sent_total{iothub=\"hub.test\",from=\"leaf\",to=\"upstream\",from_route_output=\"out\",to_route_input=\"\",priority=\"2000000000\"} 300"),
        "{text}"
    );
    assert!(
        text.contains(
            "edgehub_queue_length{iothub=\"hub.test\",endpoint=\"iothub\",priority=\"2000000000\"} 0"
        ),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_bridged_and_the_return_noticed_at_once() {
    let (cloud, edge) = below(false).await;
    edge.route(json!({
        "low": {"route": "FROM /messages/modules/a/* INTO $upstream", "priority": 8},
        "high": {"route": "FROM /messages/modules/b/* INTO $upstream", "priority": 0},
    }));
    let (a, b) = (edge.client("edge/a").await, edge.client("edge/b").await);
    let numbers: Vec<String> = (0..1_000).map(|number| number.to_string()).collect();
    let texts: Vec<&str> = numbers.iter().map(String::as_str).collect();
    a.say(None, &texts).await;
    b.say(None, &texts).await;
    assert_eq!(
        edge.broker
            .queue_lengths()
            .iter()
            .map(|(_, length)| length)
            .sum::<u64>(),
        2_000
    );
    cloud.state.lock().break_after = Some((123, 17));
    let begun = Instant::now();
    cloud.set_online(true);
    edge.until("all", || {
        cloud.bodies("edge/a").len() >= 1_000 && cloud.bodies("edge/b").len() >= 1_000
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(cloud.bodies("edge/a"), numbers);
    // Those whose acknowledgement was lost came twice, in their order.
    let twice = cloud.bodies("edge/b");
    assert_eq!(twice.len(), 1_017);
    assert_eq!([&twice[..123], &twice[140..]].concat(), numbers);
    let state = cloud.state.lock();
    let last_high = state
        .received
        .iter()
        .rposition(|(sender, _)| sender == "edge/b")
        .unwrap();
    let first_low = state
        .received
        .iter()
        .position(|(sender, _)| sender == "edge/a")
        .unwrap();
    assert!(
        last_high < first_low,
        "important ones first: {last_high}, {first_low}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_is_refused_does_not_hold_up_others() {
    let (cloud, edge) = below(true).await;
    cloud.state.lock().unauthorized.insert("leaf".to_owned());
    let (leaf, a) = (edge.client("leaf").await, edge.client("edge/a").await);
    let numbers: Vec<String> = (0..400).map(|number| number.to_string()).collect();
    for chunk in numbers.chunks(10) {
        let texts: Vec<&str> = chunk.iter().map(String::as_str).collect();
        leaf.say(None, &texts).await;
        a.say(None, &texts).await;
    }
    edge.until("the neighbour's", || cloud.bodies("edge/a").len() == 400)
        .await;
    assert!(cloud.bodies("leaf").is_empty());
    edge.until("the parking", || {
        edge.broker
            .queue_lengths()
            .iter()
            .any(|(key, length)| key.name == "parked/leaf" && *length == 400)
    })
    .await;
    // It is let in again, with everything that it sent, in order.
    cloud.state.lock().unauthorized.clear();
    leaf.say(None, &["last"]).await;
    cloud.set_online(false);
    cloud.set_online(true);
    edge.until("the parked ones", || cloud.bodies("leaf").len() == 401)
        .await;
    assert_eq!(cloud.bodies("leaf")[..400], numbers);
    assert_eq!(cloud.bodies("leaf")[400], "last");
    edge.until("an empty store", || edge.broker.queue_bytes() == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_is_let_in_again_does_not_wait_for_its_pause() {
    let (cloud, edge) = below(true).await;
    cloud.state.lock().unauthorized.insert("leaf".to_owned());
    let leaf = edge.client("leaf").await;
    leaf.say(None, &["1"]).await;
    let is_refused = || edge.broker.metrics().total(Family::OperationRetry, Some("leaf")) > 0.0;
    edge.until("the refusal", is_refused).await;
    let refused_at = Instant::now();
    cloud.state.lock().unauthorized.clear();
    // Its conversation is open again: less than the first pause, of 6 to 8 seconds, has gone by.
    assert!(cloud.push("leaf", CloudEvent::Connected));
    edge.until("its message", || cloud.bodies("leaf") == ["1"]).await;
    assert!(
        refused_at.elapsed() < Duration::from_secs(5),
        "{:?}",
        refused_at.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_refused_for_good_is_dropped_and_counted() {
    let (cloud, edge) = below(true).await;
    cloud.state.lock().refused.insert(b"2".to_vec());
    let a = edge.client("edge/a").await;
    a.say(Some("o"), &["1", "2", "3"]).await;
    edge.until("the others", || cloud.bodies("edge/a") == ["1", "3"])
        .await;
    assert_eq!(
        edge.broker
            .metrics()
            .total(Family::MessagesDropped, Some("refused_upstream")),
        1.0
    );
    // A sender that was removed above: its messages go too.
    cloud.set_online(false);
    let leaf = edge.client("leaf").await;
    leaf.say(None, &["x"]).await;
    cloud
        .state
        .lock()
        .scope
        .retain(|entry| entry.identity.as_str() != "leaf");
    cloud.set_online(true);
    edge.until("an empty store", || edge.broker.queue_bytes() == 0)
        .await;
    assert!(cloud.bodies("leaf").is_empty() && leaf.session.is_ended());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn senders_go_side_by_side_and_bandwidth_is_bounded() {
    let cloud = FakeCloud::new(true);
    let mut identities = scope();
    identities.extend((0..30).map(|number| crate::edge::entry(&format!("d{number}"))));
    cloud.state.lock().scope = identities;
    let edge = Edge::below(&cloud, Arc::new(SimDisk::new())).await;
    edge.route(json!({ "up": UP }));
    cloud.set_online(false);
    for number in 0..30 {
        edge.client(&format!("d{number}"))
            .await
            .say(None, &["x"; 20])
            .await;
    }
    cloud.set_online(true);
    edge.until("all", || cloud.state.lock().received.len() == 600)
        .await;
    let most = cloud.state.lock().sending_max;
    assert!((2..=10).contains(&most), "{most} at once");

    let mut config = settings();
    config.upstream_bytes_per_second = Some(100_000);
    config.batch_messages_max = 10;
    let cloud = FakeCloud::new(true);
    cloud.state.lock().scope = scope();
    // The time of this one passes, for the bound is one of time.
    let clock: Arc<dyn holdfast_ports::clock::Clock> = Arc::new(holdfast_ports::clock::SystemClock::new());
    let broker = holdfast_broker::Broker::open(
        config,
        Arc::new(SimDisk::new()),
        Arc::clone(&clock),
        Some(above(&cloud)),
    )
    .unwrap();
    broker.start();
    broker.refresh_scope().await.unwrap();
    let edge = Edge { broker, clock };
    edge.route(json!({ "up": UP }));
    let a = edge.client("edge/a").await;
    let body = "x".repeat(1_000);
    let begun = Instant::now();
    for _ in 0..10 {
        let draft = Draft {
            body: &body,
            ..Draft::default()
        };
        a.send(&vec![draft; 10]).await.unwrap();
    }
    edge.until("all", || cloud.bodies("edge/a").len() == 100).await;
    let took = begun.elapsed();
    assert!(
        (Duration::from_millis(850)..Duration::from_secs(10)).contains(&took),
        "{took:?} for 100 KB at 100 KB/s"
    );
}
