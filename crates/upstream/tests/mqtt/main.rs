//! The MQTT client against a hub that breaks, delays, refuses and stays silent.

mod hub;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::Identity;
use holdfast_model::credential::{SasToken, SymmetricKey};
use holdfast_model::message::{Message, SystemProperty};
use holdfast_model::method::MethodResponse;
use holdfast_mqtt::codec::ConnectCode;
use holdfast_upstream::port::{
    Account, Cloud as _, CloudClient, CloudError, CloudEvent, Interests, Proof, Reach, Settle,
};
use holdfast_upstream::{KeySigner, Upstream};
use hub::{Script, TestHub};
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_secs(20);

fn account(id: &str) -> Account {
    Account {
        identity: Identity::parse(id).expect("an id"),
        proof: Proof::Key(Arc::new(KeySigner::new(SymmetricKey::generate()))),
        product_info: "test/1".to_owned(),
        model_id: None,
    }
}

fn client(upstream: &Upstream, id: &str) -> Arc<dyn CloudClient> {
    upstream.client(account(id))
}

fn numbered(numbers: impl Iterator<Item = u32>) -> Vec<Message> {
    numbers
        .map(|number| Message {
            body: Bytes::copy_from_slice(&number.to_be_bytes()),
            ..Message::default()
        })
        .collect()
}

fn number(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload.try_into().expect("a number"))
}

async fn event(client: &Arc<dyn CloudClient>) -> CloudEvent {
    timeout(PATIENCE, client.next()).await.expect("an event in time")
}

async fn connected(client: &Arc<dyn CloudClient>) {
    while !matches!(event(client).await, CloudEvent::Connected) {}
}

const ALL: Interests = Interests {
    methods: true,
    desired: true,
    cloud_to_device: true,
};

/// Numbers in the order of their first arrival, and how many came again.
fn arrivals(hub: &TestHub) -> (Vec<u32>, usize) {
    hub.seen(|seen| {
        let mut first = BTreeMap::new();
        let mut order = Vec::new();
        for (_, _, _, payload) in &seen.messages {
            let number = number(payload);
            if first.insert(number, ()).is_none() {
                order.push(number);
            }
        }
        let again = seen.messages.len() - order.len();
        (order, again)
    })
}

#[tokio::test]
async fn messages_arrive_in_order_over_connections_that_break() {
    let hub = TestHub::start(Script {
        close_after: Some(37),
        acknowledge_from: 5,
        ..Script::default()
    })
    .await;
    let upstream = hub.upstream(|tuning| tuning.window = 20);
    let client = client(&upstream, "d1");
    let mut next = 0;
    while next < 600 {
        let batch = numbered(next..(next + 50).min(600));
        let sent = timeout(PATIENCE, client.send(&batch)).await.expect("in time");
        next += match sent {
            Ok(()) => batch.len() as u32,
            // Short-lived connections are backed off from.
            Err(failure) => {
                assert!(matches!(failure.cause, CloudError::Unreachable(_)), "{failure}");
                tokio::time::sleep(Duration::from_millis(20)).await;
                failure.accepted as u32
            }
        };
        if next > 200 {
            hub.script(|script| {
                script.close_after = None;
                script.acknowledge_from = 1;
            });
        }
    }
    let (order, again) = arrivals(&hub);
    assert_eq!(order, (0..600).collect::<Vec<_>>());
    assert!(again > 0, "connections broke with messages in flight");
    // On each connection numbers go up by one.
    hub.seen(|seen| {
        for pair in seen.messages.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            assert_eq!(number(&pair[0].3) + 1, number(&pair[1].3));
        }
    });
}

#[tokio::test]
async fn many_messages_are_in_flight_and_acknowledgements_may_come_in_pieces() {
    let hub = TestHub::start(Script {
        acknowledge_from: 100,
        drip: true,
        ..Script::default()
    })
    .await;
    let upstream = hub.upstream(|tuning| tuning.window = 100);
    let client = client(&upstream, "d1/m1");
    let batch = numbered(0..500);
    timeout(PATIENCE, client.send(&batch))
        .await
        .expect("in time")
        .expect("sent");
    assert_eq!(arrivals(&hub), ((0..500).collect(), 0));
    let topic = hub.seen(|seen| seen.messages[0].2.clone());
    assert_eq!(topic, "devices/d1/modules/m1/messages/events/");
}

#[tokio::test]
async fn what_the_hub_would_refuse_is_refused_here() {
    let hub = TestHub::start(Script::default()).await;
    let upstream = hub.upstream(|_| {});
    let client = client(&upstream, "d1");
    let mut batch = numbered(0..3);
    batch[2].body = vec![0; 256 * 1024 + 1].into();
    let failure = client.send(&batch).await.expect_err("too large");
    assert_eq!(failure.accepted, 2);
    assert!(matches!(failure.cause, CloudError::Refused { status: 413, .. }));
    batch[2].body = Bytes::new();
    batch[2].set_property("k", Some("ä".repeat(20_000)));
    let failure = client
        .send(&batch[2..])
        .await
        .expect_err("a topic of 120,000 bytes");
    assert!(matches!(failure.cause, CloudError::Refused { status: 413, .. }));
    client.send(&numbered(7..8)).await.expect("the next one is fine");
}

#[tokio::test]
async fn a_hub_that_falls_silent_is_given_up_and_found_again() {
    let hub = TestHub::start(Script::default()).await;
    let upstream = hub.upstream(|tuning| {
        tuning.silence_before_ping = Duration::from_millis(100);
        tuning.silence_after_ping = Duration::from_millis(200);
        tuning.connect_timeout = Duration::from_millis(500);
    });
    let client = client(&upstream, "d1");
    client.want(ALL);
    connected(&client).await;
    client.send(&numbered(0..1)).await.expect("sent");
    hub.script(|script| script.dead = true);
    let started = Instant::now();
    let failure = client.send(&numbered(1..3)).await.expect_err("nobody answers");
    assert_eq!(failure.accepted, 0);
    assert!(matches!(failure.cause, CloudError::Unreachable(_)));
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
    // Offline: answered at once.
    let started = Instant::now();
    client.twin().await.expect_err("offline");
    assert!(started.elapsed() < Duration::from_millis(100));
    assert!(matches!(*upstream.reach().borrow(), Reach::Offline { .. }));
    hub.script(|script| script.dead = false);
    connected(&client).await;
    client.send(&numbered(1..3)).await.expect("sent");
}

#[tokio::test]
async fn an_outage_is_told_and_its_end_is_noticed() {
    let mut hub = TestHub::start(Script::default()).await;
    let upstream = hub.upstream(|_| {});
    let clients: Vec<_> = (0..20).map(|n| client(&upstream, &format!("d{n}"))).collect();
    for client in &clients {
        client.want(ALL);
        connected(client).await;
    }
    hub.stop().await;
    for client in &clients {
        assert!(matches!(
            event(client).await,
            CloudEvent::Disconnected(CloudError::Unreachable(_))
        ));
    }
    let before = hub.seen(|seen| seen.logins.len());
    tokio::time::sleep(Duration::from_millis(500)).await;
    hub.listen().await;
    let started = Instant::now();
    for client in &clients {
        connected(client).await;
    }
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(hub.seen(|seen| seen.logins.len()) - before, 20, "one login each");
    assert_eq!(*upstream.reach().borrow(), Reach::Online);
}

#[tokio::test]
async fn a_refused_identity_waits_and_its_neighbours_go_on() {
    let hub = TestHub::start(Script::default()).await;
    hub.script(|script| {
        script.codes.insert("bad".to_owned(), ConnectCode::NotAuthorized);
    });
    let upstream = hub.upstream(|tuning| tuning.refused_first = Duration::from_secs(60));
    let (good, bad) = (client(&upstream, "good"), client(&upstream, "bad"));
    let failure = bad.send(&numbered(0..1)).await.expect_err("refused");
    assert!(matches!(failure.cause, CloudError::Unauthorized(_)), "{failure}");
    assert!(matches!(
        event(&bad).await,
        CloudEvent::Disconnected(CloudError::Unauthorized(_))
    ));
    good.send(&numbered(0..1)).await.expect("sent");
    assert_eq!(*upstream.reach().borrow(), Reach::Online);
    bad.twin().await.expect_err("still refused");
    assert_eq!(hub.seen(|seen| seen.logins.len()), 2, "not tried again at once");
    hub.script(|script| script.codes.clear());
    upstream.nudge();
    connected(&bad).await;
    bad.send(&numbered(0..1)).await.expect("sent");
}

#[tokio::test]
async fn a_busy_hub_is_tried_again() {
    let hub = TestHub::start(Script::default()).await;
    hub.script(|script| {
        script
            .codes
            .insert("d1".to_owned(), ConnectCode::ServerUnavailable);
    });
    let upstream = hub.upstream(|_| {});
    let client = client(&upstream, "d1");
    let failure = client.send(&numbered(0..1)).await.expect_err("busy");
    assert!(matches!(failure.cause, CloudError::Unreachable(_)));
    hub.script(|script| script.codes.clear());
    connected(&client).await;
    client.send(&numbered(0..1)).await.expect("sent");
}

#[tokio::test]
async fn two_clients_of_one_identity_do_not_storm() {
    let hub = TestHub::start(Script {
        takeover: true,
        ..Script::default()
    })
    .await;
    let upstream = hub.upstream(|tuning| tuning.retry_first = Duration::from_millis(100));
    let (one, two) = (client(&upstream, "d1"), client(&upstream, "d1"));
    one.want(ALL);
    two.want(ALL);
    connected(&one).await;
    connected(&two).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let logins = hub.seen(|seen| seen.logins.len());
    assert!((3..25).contains(&logins), "{logins} logins in 3 s");
}

#[tokio::test]
async fn tokens_are_renewed_without_losing_or_repeating_a_message() {
    let hub = TestHub::start(Script::default()).await;
    let upstream = hub.upstream(|tuning| tuning.token_life = Duration::from_secs(2));
    let client = client(&upstream, "d1");
    let started = Instant::now();
    let mut next = 0;
    while started.elapsed() < Duration::from_secs(4) {
        client.send(&numbered(next..next + 20)).await.expect("sent");
        next += 20;
    }
    assert_eq!(arrivals(&hub), ((0..next).collect(), 0));
    hub.seen(|seen| {
        assert!(seen.logins.len() >= 3, "{} logins", seen.logins.len());
        assert_eq!(seen.goodbyes, seen.logins.len() - 1);
        let token = SasToken::parse(&seen.logins[0].3).expect("a token");
        assert_eq!(token.resource(), "hub.test/devices/d1");
        assert!(
            seen.logins[0].2.starts_with("hub.test/d1/?api-version="),
            "{}",
            seen.logins[0].2
        );
        assert_ne!(seen.logins[0].3, seen.logins.last().expect("some").3);
    });
}

#[tokio::test]
async fn twins_are_read_and_changed() {
    let hub = TestHub::start(Script::default()).await;
    let upstream = hub.upstream(|tuning| tuning.request_timeout = Duration::from_millis(300));
    let client = client(&upstream, "d1");
    let twin = client.twin().await.expect("a twin");
    assert!(twin.starts_with(b"{\"desired\""));
    // The connection breaks under a request: it is repeated.
    hub.script(|script| script.close_on_twin = 1);
    client.twin().await.expect("a twin");
    let version = client
        .patch_reported(Bytes::from_static(b"{\"a\":1}"))
        .await
        .expect("changed");
    assert_eq!(version, 9);
    let refuse = |status| move |script: &mut Script| script.twin = Some((status, r#"{"message":"no"}"#));
    hub.script(refuse(400));
    let refused = client
        .patch_reported(Bytes::from_static(b"[]"))
        .await
        .expect_err("refused");
    assert_eq!(
        refused,
        CloudError::Refused {
            status: 400,
            message: "no".to_owned()
        }
    );
    hub.script(refuse(429));
    assert!(matches!(client.twin().await, Err(CloudError::Unreachable(_))));
    hub.script(|script| script.twin = None);
    assert!(
        matches!(client.twin().await, Err(CloudError::Unreachable(_))),
        "no answer"
    );
}

#[tokio::test]
async fn pushes_reach_the_client_and_are_answered() {
    let hub = TestHub::start(Script::default()).await;
    let upstream = hub.upstream(|_| {});
    let client = client(&upstream, "d1");
    client.want(ALL);
    connected(&client).await;
    hub.push("d1", "$iothub/methods/POST/reboot/?$rid=ab-1", b"{}", None);
    let CloudEvent::Method(call) = event(&client).await else {
        panic!("a method")
    };
    assert_eq!(
        (call.name.as_str(), call.payload.as_ref()),
        ("reboot", &b"{}"[..])
    );
    let response = |status| MethodResponse {
        status,
        payload: Bytes::from_static(b"1"),
    };
    client.answer(call.request_id, response(207));
    client.answer(call.request_id, response(500));
    let answer = |topic: &str| topic.starts_with("$iothub/methods/res/");
    hub.until("the answer", |seen| {
        seen.messages.iter().any(|message| answer(&message.2))
    })
    .await;
    hub.push(
        "d1",
        "$iothub/twin/PATCH/properties/desired/?$version=5",
        b"{\"a\":null,\"$version\":5}",
        None,
    );
    assert!(matches!(
        event(&client).await,
        CloudEvent::Desired { version: 5, .. }
    ));
    let topic = "devices/d1/messages/devicebound/%24.mid=m-1&colour=blue";
    for id in 1..=3 {
        hub.push("d1", topic, b"hello", Some(id));
    }
    let mut tokens = Vec::new();
    for _ in 0..3 {
        let CloudEvent::CloudToDevice(message) = event(&client).await else {
            panic!("a message")
        };
        assert_eq!(message.message.system(SystemProperty::MessageId), Some("m-1"));
        assert_eq!(
            message.message.properties,
            [("colour".to_owned(), Some("blue".to_owned()))]
        );
        tokens.push(message.token);
    }
    client.settle(tokens[2], Settle::Complete);
    client.settle(tokens[1], Settle::Abandon);
    client.settle(tokens[0], Settle::Complete);
    hub.until("acknowledgements", |seen| seen.acknowledged == [1, 3])
        .await;
    let answers = hub.seen(|seen| seen.messages.iter().filter(|message| answer(&message.2)).count());
    assert_eq!(answers, 1, "a call is answered once");
    assert!(hub.seen(|seen| {
        seen.messages
            .iter()
            .any(|message| message.2 == "$iothub/methods/res/207/?$rid=ab-1")
    }));
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_not_a_memory_leak() {
    let hub = TestHub::start(Script::default()).await;
    let upstream = hub.upstream(|_| {});
    let client = client(&upstream, "d1");
    client.want(ALL);
    hub.until("login", |seen| seen.subscribed.len() == 4).await;
    for _ in 0..400 {
        hub.push(
            "d1",
            "$iothub/twin/PATCH/properties/desired/?$version=5",
            b"{}",
            None,
        );
    }
    hub.until("a new connection", |seen| seen.logins.len() == 2).await;
    connected(&client).await;
    client.twin().await.expect("it goes on");
}

#[tokio::test]
async fn interests_are_followed_and_stored_ones_given_up() {
    let hub = TestHub::start(Script {
        session_present: true,
        ..Script::default()
    })
    .await;
    let upstream = hub.upstream(|_| {});
    let client = client(&upstream, "d1");
    client.want(Interests {
        methods: true,
        ..Interests::default()
    });
    connected(&client).await;
    hub.seen(|seen| {
        assert_eq!(seen.subscribed, ["$iothub/twin/res/#", "$iothub/methods/POST/#"]);
        // An earlier connection's: nobody wants them now.
        let stored = [
            "$iothub/twin/PATCH/properties/desired/#",
            "devices/d1/messages/devicebound/#",
        ];
        assert_eq!(seen.unsubscribed, stored);
    });
    client.want(Interests {
        desired: true,
        ..Interests::default()
    });
    hub.until("the change", |seen| {
        seen.subscribed
            .last()
            .is_some_and(|filter| filter.contains("desired"))
            && seen
                .unsubscribed
                .last()
                .is_some_and(|filter| filter.contains("methods"))
    })
    .await;
}

#[tokio::test]
async fn a_dropped_client_says_goodbye() {
    let hub = TestHub::start(Script::default()).await;
    let upstream = hub.upstream(|_| {});
    let client = client(&upstream, "d1");
    client.twin().await.expect("a twin");
    drop(client);
    hub.until("the goodbye", |seen| seen.goodbyes == 1).await;
}

#[tokio::test]
async fn an_unused_connection_is_closed_and_opened_again() {
    let hub = TestHub::start(Script::default()).await;
    let upstream = hub.upstream(|tuning| tuning.idle_close = Duration::from_millis(50));
    let client = client(&upstream, "d1");
    client.twin().await.expect("a twin");
    hub.until("the goodbye", |seen| seen.goodbyes == 1).await;
    client.twin().await.expect("a twin");
    assert_eq!(hub.seen(|seen| seen.logins.len()), 2);
}
