use std::time::Duration;

use holdfast_model::c2d::Settlement;
use holdfast_model::message::SystemProperty;
use holdfast_model::subscription::Channel;
use holdfast_ports::gateway::{DeviceGateway, IngestError};
use serde_json::json;

use crate::edge::{Draft, Edge, bodies, records};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_where_routes_lead() {
    let edge = Edge::alone();
    let faults = edge.route(json!({
        "hot": "FROM /messages/modules/a/outputs/hot WHERE level = 'high' INTO BrokeredEndpoint(\"/modules/b/inputs/alarm\")",
        "body": "FROM /messages/modules/A/* WHERE $body.t > 30 INTO BrokeredEndpoint('/modules/b/inputs/warm')",
        "leaf": "FROM /messages/* WHERE NOT is_defined($connectionModuleId) INTO BrokeredEndpoint(\"/modules/c/inputs/leaf\")",
        "down": "FROM /messages/* WHERE $edgeHubOriginInterface = 'downstream' AND length($edgeMessageId) = 36 INTO BrokeredEndpoint(\"/modules/c/inputs/down\")",
        "bad": "FROM /messages/* WHERE level = 3 INTO $upstream",
        "worse": "nonsense",
    }));
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(
        faults
            .iter()
            .any(|fault| fault.starts_with("route bad: ") && fault.contains("column 24")),
        "{faults:?}"
    );
    let (a, b, c, leaf) = (
        edge.client("edge/a").await,
        edge.client("edge/b").await,
        edge.client("edge/c").await,
        edge.client("leaf").await,
    );
    b.subscribe(&[Channel::Inputs]).await;
    c.subscribe(&[Channel::Inputs]).await;
    let json_body = [(SystemProperty::ContentType, "application/json")];
    a.send(&[
        Draft {
            body: "1",
            output: Some("hot"),
            properties: vec![("level", "high")],
            ..Draft::default()
        },
        Draft {
            body: "2",
            output: Some("hot"),
            properties: vec![("level", "low")],
            ..Draft::default()
        },
        Draft {
            body: "3",
            output: Some("cold"),
            properties: vec![("level", "high")],
            ..Draft::default()
        },
        Draft {
            body: "{\"t\":31}",
            system: json_body.to_vec(),
            ..Draft::default()
        },
        Draft {
            body: "{\"t\":29}",
            system: json_body.to_vec(),
            ..Draft::default()
        },
        Draft {
            body: "{\"t\":32}",
            ..Draft::default()
        },
    ])
    .await
    .unwrap();
    leaf.say(None, &["4"]).await;

    let got = b.fetch(2).await;
    let mut by_input: Vec<(String, String)> = got
        .iter()
        .map(|delivery| delivery.message.input.as_ref().unwrap().input.clone())
        .zip(bodies(&got))
        .collect();
    by_input.sort();
    assert_eq!(
        by_input,
        [
            ("alarm".to_owned(), "1".to_owned()),
            ("warm".to_owned(), "{\"t\":31}".to_owned())
        ]
    );
    let alarm = got
        .iter()
        .find(|delivery| delivery.message.input.as_ref().unwrap().input == "alarm")
        .unwrap();
    assert_eq!(alarm.message.input.as_ref().unwrap().sender.as_str(), "edge/a");
    assert_eq!(
        alarm.message.message.system(SystemProperty::OutputName),
        Some("hot")
    );
    assert_eq!(
        alarm.message.message.properties,
        [("level".to_owned(), Some("high".to_owned()))]
    );
    let leafs = c.fetch(2).await;
    assert!(
        leafs
            .iter()
            .all(|delivery| delivery.message.input.as_ref().unwrap().sender.as_str() == "leaf")
    );
    assert_eq!(bodies(&leafs), ["4", "4"]);
    let text = edge.broker.metrics_text(&[]);
    assert!(
        text.contains(
            "edgehub_messages_dropped_total{reason=\"no_route\",from=\"edge/a\",from_route_output=\"hot\"} 1"
        ),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_copy_for_each_endpoint_with_the_best_priority() {
    let edge = Edge::alone();
    edge.route(json!({
        "low": {"route": "FROM /messages/* INTO BrokeredEndpoint(\"/modules/b/inputs/in\")", "priority": 7},
        "high": {"route": "FROM /messages/* WHERE urgent = 'yes' INTO BrokeredEndpoint(\"/modules/b/inputs/in\")", "priority": 1},
        "other": "FROM /messages/* INTO BrokeredEndpoint(\"/modules/b/inputs/other\")",
    }));
    let (a, b) = (edge.client("edge/a").await, edge.client("edge/b").await);
    let urgent = |body, urgent| Draft {
        body,
        properties: vec![("urgent", urgent)],
        ..Draft::default()
    };
    a.send(&[
        urgent("1", "no"),
        urgent("2", "yes"),
        urgent("3", "no"),
        urgent("4", "yes"),
    ])
    .await
    .unwrap();
    b.subscribe(&[Channel::Inputs]).await;
    let all = b.fetch(8).await;
    assert!(b.take(10).await.is_empty());
    let of = |input: &str| -> Vec<String> {
        let fits = all
            .iter()
            .filter(|delivery| delivery.message.input.as_ref().unwrap().input == input);
        bodies(&fits.cloned().collect::<Vec<_>>())
    };
    assert_eq!(of("in"), ["2", "4", "1", "3"], "the better priority first");
    assert_eq!(of("other"), ["1", "2", "3", "4"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_twins_are_messages_and_catch_all_routes_are_for_clients() {
    let edge = Edge::alone();
    edge.route(json!({
        "twins": "FROM /twinChangeNotifications WHERE twin_change_includes(properties.reported.state) INTO BrokeredEndpoint(\"/modules/b/inputs/twins\")",
        "all": "FROM /* INTO BrokeredEndpoint(\"/modules/b/inputs/all\")",
        "who": "FROM /deviceConnectionStateEvents WHERE opType = 'deviceConnected' INTO BrokeredEndpoint(\"/modules/b/inputs/who\")",
    }));
    let b = edge.client("edge/b").await;
    b.subscribe(&[Channel::Inputs]).await;
    let a = edge.client("edge/a").await;
    for patch in [&b"{\"state\":\"on\"}"[..], b"{\"other\":1}"] {
        edge.broker
            .patch_reported(a.session.identity(), patch, None)
            .await
            .unwrap();
    }
    let all = b.fetch(5).await;
    assert!(b.take(10).await.is_empty());
    let of = |input: &str| -> Vec<_> {
        all.iter()
            .filter(|delivery| delivery.message.input.as_ref().unwrap().input == input)
            .collect()
    };
    assert_eq!((of("twins").len(), of("all").len(), of("who").len()), (1, 2, 2));
    let change = &of("twins")[0].message;
    assert_eq!(&change.message.body[..], b"{\"state\":\"on\"}");
    assert_eq!(
        change.message.system(SystemProperty::MessageSchema),
        Some("twinChangeNotification")
    );
    assert!(
        change
            .message
            .properties
            .contains(&("rpSenderModuleId".to_owned(), Some("a".to_owned())))
    );
    assert_eq!(change.input.as_ref().unwrap().sender.as_str(), "edge/$edgeHub");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_wait_for_their_module_and_come_in_order() {
    let edge = Edge::alone();
    edge.route(json!({ "in": "FROM /messages/modules/a/* INTO BrokeredEndpoint(\"/modules/b/inputs/in\")" }));
    let a = edge.client("edge/a").await;
    let numbers: Vec<String> = (0..500).map(|number| number.to_string()).collect();
    let texts: Vec<&str> = numbers.iter().map(String::as_str).collect();
    a.say(Some("out"), &texts).await;
    let b = edge.client("edge/b").await;
    assert!(b.take(10).await.is_empty(), "no input is subscribed");
    b.subscribe(&[Channel::Inputs]).await;
    // A window, settled out of order; then the connection breaks.
    let window = b.fetch(10).await;
    assert_eq!(bodies(&window), texts[..10]);
    for at in [0, 1, 5, 9] {
        b.settle(&window[at], Settlement::Complete).await.unwrap();
    }
    b.settle(&window[2], Settlement::Abandon).await.unwrap();
    let again = b.take(2).await;
    assert_eq!(bodies(&again), ["2", "10"], "what came back goes first");
    assert!(again[0].redelivered && again[0].delivery_count == 1 && !again[1].redelivered);
    assert_eq!(again[0].lock.sequence_number, window[2].lock.sequence_number);
    assert!(
        b.settle(&window[2], Settlement::Complete).await.is_err(),
        "an older lock"
    );
    b.leave();
    let b = edge.client("edge/b").await;
    b.subscribe(&[Channel::Inputs]).await;
    assert_eq!(b.consume(8).await, ["2", "3", "4", "6", "7", "8", "10", "11"]);
    assert_eq!(b.consume(488).await, texts[12..]);
    assert!(b.take(1).await.is_empty());
    edge.until("an empty store", || edge.broker.queue_bytes() == 0)
        .await;
    // What comes while it is there is told.
    a.say(Some("out"), &["later"]).await;
    assert_eq!(b.consume(1).await, ["later"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_ends_and_a_rejected_message_is_gone() {
    let clock = crate::edge::manual();
    let mut config = crate::edge::settings();
    config.local_identities = crate::edge::scope();
    let disk = std::sync::Arc::new(holdfast_store::log::sim::SimDisk::new());
    let edge = Edge::open(config, disk, clock.clone(), None);
    edge.route(json!({ "in": "FROM /messages/* INTO BrokeredEndpoint(\"/modules/b/inputs/in\")" }));
    let (a, b) = (edge.client("edge/a").await, edge.client("edge/b").await);
    b.subscribe(&[Channel::Inputs]).await;
    a.say(None, &["1", "2", "3"]).await;
    let first = b.fetch(2).await;
    b.settle(&first[0], Settlement::Reject).await.unwrap();
    clock.advance(Duration::from_secs(31));
    let again = b.fetch(2).await;
    assert_eq!(bodies(&again), ["2", "3"]);
    assert!(again[0].redelivered);
    assert!(
        b.settle(&first[1], Settlement::Complete).await.is_err(),
        "its lock has ended"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_end_with_their_time_and_their_space_comes_back() {
    let clock = crate::edge::manual();
    let mut config = crate::edge::settings();
    config.local_identities = crate::edge::scope();
    let disk = holdfast_store::log::sim::SimDisk::new();
    let edge = Edge::open(config, std::sync::Arc::new(disk.clone()), clock.clone(), None);
    edge.route_with(
        json!({
            "short": {"route": "FROM /messages/* INTO BrokeredEndpoint(\"/modules/b/inputs/short\")", "timeToLiveSecs": 10, "priority": 0},
            "common": {"route": "FROM /messages/* INTO BrokeredEndpoint(\"/modules/b/inputs/common\")", "timeToLiveSecs": 0},
            "up": {"route": "FROM /messages/* INTO $upstream", "timeToLiveSecs": 20},
        }),
        json!({ "timeToLiveSecs": 100 }),
    );
    let a = edge.client("edge/a").await;
    for _ in 0..20 {
        a.say(None, &["x"; 50]).await;
    }
    let full = edge.broker.queue_bytes();
    clock.advance(Duration::from_secs(11));
    edge.until("a third", || edge.broker.queue_bytes() < full * 3 / 4)
        .await;
    a.say(None, &["late"]).await;
    clock.advance(Duration::from_secs(5));
    let b = edge.client("edge/b").await;
    b.subscribe(&[Channel::Inputs]).await;
    let first = b.fetch(1).await;
    assert_eq!(
        bodies(&first),
        ["late"],
        "the input whose messages have ended holds the newer one"
    );
    b.settle(&first[0], Settlement::Complete).await.unwrap();
    clock.advance(Duration::from_secs(90));
    b.leave();
    edge.until("nothing but the newest", || {
        edge.broker
            .queue_lengths()
            .iter()
            .map(|(_, length)| length)
            .sum::<u64>()
            <= 1
    })
    .await;
    clock.advance(Duration::from_secs(90));
    edge.until("an empty store", || edge.broker.queue_bytes() == 0)
        .await;
    let expired = edge.broker.metrics().total(
        holdfast_broker::metrics::Family::MessagesDropped,
        Some("ttl_expiry"),
    );
    assert!((3_001.0..=3_002.0).contains(&expired), "{expired}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_is_not_acknowledged_and_goes_on_when_there_is_room() {
    let edge = Edge::alone();
    edge.route_with(
        json!({ "in": "FROM /messages/* INTO BrokeredEndpoint(\"/modules/b/inputs/in\")" }),
        json!({ "timeToLiveSecs": -1, "storeLimits": {"maxSizeBytes": 100_000} }),
    );
    let (a, b) = (edge.client("edge/a").await, edge.client("edge/b").await);
    let large = "x".repeat(1_000);
    let mut taken = 0;
    let refused = loop {
        match a
            .send(&[Draft {
                body: &large,
                ..Draft::default()
            }])
            .await
        {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, IngestError::Busy(None));
    assert!(taken > 80 && edge.broker.queue_bytes() <= 100_000, "{taken}");
    let unacknowledged = edge
        .broker
        .metrics()
        .total(holdfast_broker::metrics::Family::MessagesUnacknowledged, None);
    assert!(unacknowledged >= 1.0);
    b.subscribe(&[Channel::Inputs]).await;
    b.consume(taken).await;
    edge.until("room", || {
        let drafts = [Draft {
            body: &large,
            ..Draft::default()
        }];
        edge.broker.send(&a.session, &records(&drafts)).is_ok()
    })
    .await;
    b.consume(1).await;
    // Larger than a message may be is refused at once.
    let huge = "x".repeat(300_000);
    assert_eq!(
        a.send(&[Draft {
            body: &huge,
            ..Draft::default()
        }])
        .await,
        Err(IngestError::TooLarge)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_accepted_survives_a_restart_with_its_configuration() {
    let disk = holdfast_store::log::sim::SimDisk::new();
    let open = || {
        let mut config = crate::edge::settings();
        config.local_identities = crate::edge::scope();
        Edge::open(
            config,
            std::sync::Arc::new(disk.clone()),
            crate::edge::manual(),
            None,
        )
    };
    let edge = open();
    edge.route(json!({ "in": "FROM /messages/* INTO BrokeredEndpoint(\"/modules/b/inputs/in\")" }));
    edge.client("edge/a").await.say(None, &["1", "2"]).await;
    edge.broker.stop().await;
    let edge = open();
    edge.client("edge/a").await.say(None, &["3"]).await;
    let b = edge.client("edge/b").await;
    b.subscribe(&[Channel::Inputs]).await;
    assert_eq!(b.consume(3).await, ["1", "2", "3"]);
    // A configuration that is no good leaves the last good one.
    let bad = json!({ "schemaVersion": "9" });
    assert!(edge.broker.apply_desired(bad.as_object().unwrap()).is_err());
    edge.client("edge/a").await.say(None, &["4"]).await;
    assert_eq!(b.consume(1).await, ["4"]);
}
