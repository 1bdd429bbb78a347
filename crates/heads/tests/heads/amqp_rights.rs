//! Who may have which link, for how long, and what a lost right takes along.

use std::time::Duration;

use holdfast_amqp::message::{MessageId, Properties, Writer};
use holdfast_amqp::performatives::Attach;
use holdfast_amqp::types::Value;
use holdfast_amqp::{Config, Message};
use holdfast_heads::amqp::AmqpConfig;
use holdfast_ports::gateway::Disconnect;
use holdfast_ports::session::CloseReason;

use crate::amqp_client::{Got, Hub, message, quick};
use crate::client::until;

const UNAUTHORIZED: &str = "amqp:unauthorized-access";

fn refused(condition: &str) -> Result<holdfast_amqp::LinkId, String> {
    Err(condition.to_owned())
}

#[tokio::test]
async fn links_without_rights_are_refused_and_the_others_live_on() {
    let hub = Hub::start();
    let mut peer = hub.log_in(&["device:d1", "policy:registryRead"]).await;
    let telemetry = peer.sender("/devices/d1/messages/events").await.expect("its own");
    for address in [
        "/devices/d2/messages/events",
        "/devices/d1/modules/m1/messages/events",
        "/devices/d11/messages/events",
        "/devices/d2/twin",
        "/messages/deviceBound",
        "events",
        "events/Partitions/0",
        "$management",
    ] {
        assert_eq!(peer.sender(address).await, refused(UNAUTHORIZED), "{address}");
    }
    for address in [
        "/devices/d2/messages/deviceBound",
        "/devices/d2/methods/deviceBound",
        "/messages/serviceBound/feedback",
        "/messages/serviceBound/filenotifications",
        "/messages/events/ConsumerGroups/$Default/Partitions/0",
        "events/ConsumerGroups/$Default/Partitions/0",
    ] {
        assert_eq!(
            peer.receiver(address, 1).await,
            refused(UNAUTHORIZED),
            "{address}"
        );
    }
    for (address, condition) in [
        ("/devices/d1/nonsense", "amqp:not-found"),
        ("/", "amqp:not-found"),
        ("nowhere/else", "amqp:not-found"),
        ("/devices/d1/messages/deviceBound", "amqp:not-allowed"),
    ] {
        assert_eq!(peer.sender(address).await, refused(condition), "{address}");
    }
    let session = peer.session().await;
    let nameless = Attach::new("nameless", holdfast_amqp::performatives::Role::Sender);
    assert_eq!(
        peer.attach(session, &nameless, 0).await,
        refused("amqp:invalid-field")
    );
    assert_eq!(peer.send(telemetry, &message(b"still here")).await, "accepted");
    assert_eq!(hub.gateway.received().len(), 1);
}

#[tokio::test]
async fn services_have_what_their_policy_allows() {
    let hub = Hub::start();
    let mut peer = hub.log_in(&["policy:service"]).await;
    for address in [
        "/messages/deviceBound",
        "events",
        "events/Partitions/1",
        "$management",
    ] {
        assert!(peer.sender(address).await.is_ok(), "{address}");
    }
    for (address, condition) in [
        ("/devices/d1/messages/events", UNAUTHORIZED),
        ("events/Partitions/7", "amqp:not-found"),
        ("/messages/events", "amqp:link:redirect"),
        ("/messages/serviceBound/feedback", "amqp:not-allowed"),
    ] {
        let session = peer.session().await;
        let name = format!("bad {address}");
        let link = peer.attach(session, &Attach::sender(&name, address), 0).await;
        let condition_got = match link {
            Ok(link) => peer.detached(link).await,
            Err(condition) => condition,
        };
        assert_eq!(condition_got, condition, "{address}");
    }
    for (address, condition) in [
        ("events/ConsumerGroups/nosuch/Partitions/0", "amqp:not-found"),
        ("events/ConsumerGroups/$Default/Partitions/9", "amqp:not-found"),
    ] {
        // Agreed to and detached at once: clients in Python do not look at the reason otherwise.
        let link = peer.receiver(address, 1).await.expect("an attach with termini");
        assert_eq!(peer.detached(link).await, condition, "{address}");
    }
    peer.is_alive().await;
}

#[tokio::test]
async fn a_devices_token_does_not_do_for_its_connection_what_a_policys_does() {
    let hub = Hub::start();
    let mut peer = hub.log_in(&["policy:device"]).await;
    for id in ["d1", "d2"] {
        let address = format!("/devices/{id}/messages/events");
        let link = peer.sender(&address).await.expect("every device");
        assert_eq!(peer.send(link, &message(b"x")).await, "accepted");
    }
    assert_eq!(peer.sender("/messages/deviceBound").await, refused(UNAUTHORIZED));
    // The identity is looked at for each.
    assert_eq!(
        peer.sender("/devices/nobody/messages/events").await,
        refused(UNAUTHORIZED)
    );
    assert_eq!(
        peer.sender("/devices/stopping/messages/events").await,
        refused("amqp:internal-error")
    );
}

#[tokio::test]
async fn tokens_that_are_none_are_refused_with_401_and_change_nothing() {
    let hub = Hub::start();
    let mut peer = hub.log_in(&["device:d1"]).await;
    let link = peer
        .sender("/devices/d1/messages/events")
        .await
        .expect("attached");
    for token in ["", "nonsense", "policy:nosuch", "device:", "device:d1@never"] {
        assert_eq!(peer.put_token(token).await, 401, "{token:?}");
    }
    assert_eq!(peer.send(link, &message(b"x")).await, "accepted");
}

#[tokio::test]
async fn answers_of_cbs_keep_the_type_of_the_request_id() {
    let hub = Hub::start();
    let mut peer = hub.log_in(&["device:d1"]).await;
    let (requests, answers) = peer.cbs.expect("attached");
    let request = |id: MessageId<'_>, operation: &str| {
        let mut message = Vec::new();
        Writer::new(&mut message)
            .properties(&Properties {
                message_id: Some(id),
                ..Properties::default()
            })
            .application_properties(|map| {
                map.string("operation", &Value::String(operation));
            })
            .value(&Value::String("device:d1"));
        message
    };
    for id in [
        MessageId::Ulong(u64::MAX),
        MessageId::Uuid([3; 16]),
        MessageId::String("text"),
        MessageId::Binary(b"bytes"),
    ] {
        for (operation, status) in [("put-token", 200), ("delete-token", 200), ("drop-table", 400)] {
            assert_eq!(peer.send(requests, &request(id, operation)).await, "accepted");
            let (_, _, answer) = peer.received(answers).await;
            let answer = Message::decode(&answer).expect("a message");
            assert_eq!(answer.properties.correlation_id, Some(id));
            let map = answer.application_properties.expect("properties");
            assert_eq!(map.get("status-code"), Some(Value::Int(status)), "{operation}");
            assert!(matches!(map.get("status-description"), Some(Value::String(_))));
            // A client in Python takes one for a failure, whatever it says.
            assert_eq!(map.get("error-condition").is_some(), status != 200);
        }
    }
    // Whoever has no link for answers gets none, and is let be.
    let mut mute = hub.dial().await;
    let link = mute.sender("$cbs").await.expect("for everyone");
    let sent = mute.send(link, &request(MessageId::Ulong(1), "put-token")).await;
    assert_eq!(sent, "accepted");
    mute.sender("/devices/d1/messages/events")
        .await
        .expect("the token counts");
}

#[tokio::test]
async fn tokens_of_one_connection_are_bounded() {
    let config = AmqpConfig {
        grants_max: 3,
        ..quick()
    };
    let hub = Hub::start_with(config);
    let mut peer = hub.log_in(&["device:d1", "device:d2", "device:d3"]).await;
    assert_eq!(peer.put_token("device:d4").await, 403);
    // Renewal is no further one.
    assert_eq!(peer.put_token("device:d2").await, 200);
    assert!(peer.sender("/devices/d2/messages/events").await.is_ok());
    assert_eq!(
        peer.sender("/devices/d4/messages/events").await,
        refused(UNAUTHORIZED)
    );
}

#[tokio::test]
async fn an_expired_token_opens_nothing_and_renewal_goes_on() {
    let config = AmqpConfig {
        clock_skew: Duration::from_secs(5),
        token_grace: Duration::from_secs(100),
        token_interval: Duration::from_secs(1),
        ..quick()
    };
    let hub = Hub::start_with(config);
    let mut peer = hub.log_in(&["device:d1@60", "policy:service@60"]).await;
    let telemetry = peer
        .sender("/devices/d1/messages/events")
        .await
        .expect("attached");
    let c2d = peer.sender("/messages/deviceBound").await.expect("attached");
    // Within the tolerance of clocks.
    hub.clock.advance(Duration::from_secs(64));
    assert!(peer.receiver("/devices/d1/messages/deviceBound", 1).await.is_ok());
    hub.clock.advance(Duration::from_secs(2));
    assert_eq!(peer.sender("/devices/d1/twin").await, refused(UNAUTHORIZED));
    assert_eq!(peer.sender("events").await, refused(UNAUTHORIZED));
    // What is open stays for a while, and a new token tells the hub.
    assert_eq!(peer.send(telemetry, &message(b"x")).await, "accepted");
    assert_eq!(peer.put_token("device:d1@3600").await, 200);
    let session = hub.gateway.session("d1").expect("a session");
    assert_eq!(
        session.expires_at().as_micros() / 1_000_000,
        crate::amqp_client::START + 3_600
    );
    assert!(peer.sender("/devices/d1/twin").await.is_ok());
    // The service did not renew.
    hub.clock.advance(Duration::from_secs(100));
    assert_eq!(peer.detached(c2d).await, UNAUTHORIZED);
    assert_eq!(peer.send(telemetry, &message(b"y")).await, "accepted");
}

#[tokio::test]
async fn the_last_right_takes_the_connection_along() {
    let config = AmqpConfig {
        token_grace: Duration::ZERO,
        clock_skew: Duration::ZERO,
        token_interval: Duration::from_secs(1),
        ..quick()
    };
    let hub = Hub::start_with(config);
    let mut peer = hub.log_in(&["policy:service@60"]).await;
    let link = peer.sender("/messages/deviceBound").await.expect("attached");
    hub.clock.advance(Duration::from_secs(62));
    assert_eq!(peer.detached(link).await, UNAUTHORIZED);
    // A moment later, so that a client may close by itself, or put a new token.
    assert_eq!(
        peer.closed_in_time(&hub, Duration::from_secs(1)).await,
        UNAUTHORIZED
    );

    let mut peer = hub.log_in(&["device:d1@120"]).await;
    let link = peer
        .sender("/devices/d1/messages/events")
        .await
        .expect("attached");
    // The engine watches over the tokens of identities.
    hub.gateway
        .session("d1")
        .expect("a session")
        .close(CloseReason::TokenExpired);
    assert_eq!(peer.detached(link).await, UNAUTHORIZED);
    assert_eq!(
        peer.closed_in_time(&hub, Duration::from_secs(20)).await,
        UNAUTHORIZED
    );
}

#[tokio::test]
async fn a_rotated_policy_key_ends_what_was_opened_with_it() {
    let config = AmqpConfig {
        token_interval: Duration::from_secs(1),
        ..quick()
    };
    let hub = Hub::start_with(config);
    let mut peer = hub
        .log_in(&["policy:service", "policy:device", "device:own"])
        .await;
    let sends = peer.sender("/messages/deviceBound").await.expect("attached");
    let rests = peer
        .sender("/devices/d1/messages/events")
        .await
        .expect("attached");
    let owns = peer
        .sender("/devices/own/messages/events")
        .await
        .expect("attached");
    hub.services.rotate("service");
    hub.clock.advance(Duration::from_secs(2));
    assert_eq!(peer.detached(sends).await, UNAUTHORIZED);
    assert_eq!(peer.send(rests, &message(b"x")).await, "accepted");
    hub.services.rotate("device");
    // At once for what is new, at the next look for what is open.
    assert_eq!(peer.sender("/messages/deviceBound").await, refused(UNAUTHORIZED));
    hub.clock.advance(Duration::from_secs(2));
    assert_eq!(peer.detached(rests).await, UNAUTHORIZED);
    assert_eq!(peer.send(owns, &message(b"x")).await, "accepted");
    // A token of the new key begins anew.
    assert_eq!(peer.put_token("policy:service").await, 200);
    assert!(peer.sender("/messages/deviceBound").await.is_ok());
}

#[tokio::test]
async fn devices_that_share_a_connection_end_apart() {
    let hub = Hub::start();
    let ids: Vec<String> = (0..10).map(|number| format!("d{number}")).collect();
    let tokens: Vec<String> = ids.iter().map(|id| format!("device:{id}")).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let mut peer = hub.log_in(&tokens).await;
    // As .NET does: a session each, with the same link names.
    let mut links = Vec::new();
    for id in &ids {
        let session = peer.begin().await;
        let address = format!("/devices/{id}/messages/events");
        let sends = peer
            .attach(session, &Attach::sender("TelemetrySenderLink", &address), 0)
            .await
            .expect("attached");
        peer.wait("credit", |got| matches!(got, Got::Credit(of, _) if *of == sends))
            .await;
        let address = format!("/devices/{id}/methods/deviceBound");
        let calls = peer
            .attach(session, &Attach::receiver("MethodsReceiverLink", &address), 5)
            .await
            .expect("attached");
        links.push((sends, calls));
    }
    let closed = |id: &str, reason| hub.gateway.session(id).expect("a session").close(reason);
    closed("d3", CloseReason::IdentityChanged);
    assert_eq!(peer.detached(links[3].0).await, UNAUTHORIZED);
    assert_eq!(peer.detached(links[3].1).await, UNAUTHORIZED);
    // Detached by the client, the last link ends the session.
    peer.machine.detach(links[5].0, None, &mut peer.out);
    peer.machine.detach(links[5].1, None, &mut peer.out);
    // So does the end of the AMQP session.
    peer.machine.end(links[6].0.session(), None, &mut peer.out);
    peer.flush().await;
    for id in ["d5", "d6"] {
        let clean = (id.to_owned(), Disconnect::Clean);
        until("a clean end", || hub.gateway.disconnects().contains(&clean)).await;
    }
    for (number, (sends, _)) in links.iter().enumerate() {
        if ![3, 5, 6].contains(&number) {
            let body = ids[number].as_bytes();
            assert_eq!(peer.send(*sends, &message(body)).await, "accepted");
        }
    }
    let received = hub.gateway.received();
    assert_eq!(received.len(), 7);
    assert!(
        received
            .iter()
            .all(|event| event.identity.as_bytes() == event.body)
    );
    // Its token is still good for a new session.
    assert!(peer.sender("/devices/d3/messages/events").await.is_ok());
}

#[tokio::test]
async fn a_newer_connection_takes_the_device_over() {
    let hub = Hub::start();
    let mut older = hub.log_in(&["device:d1", "device:d2"]).await;
    let taken = older
        .sender("/devices/d1/messages/events")
        .await
        .expect("attached");
    let kept = older
        .sender("/devices/d2/messages/events")
        .await
        .expect("attached");
    hub.gateway.hold_durability();
    let waiting = older.post(taken, &message(b"before"), false);
    older.flush().await;
    until("it is appended", || hub.gateway.appends() == 1).await;
    let mut newer = hub.log_in(&["device:d1"]).await;
    let link = newer
        .sender("/devices/d1/messages/events")
        .await
        .expect("attached");
    assert_eq!(older.detached(taken).await, "amqp:link:stolen");
    // Not durable, so never accepted: the sender knows no more than before.
    let left = older.outcome_or_lost(waiting);
    assert_eq!(left, "none");
    hub.gateway.make_durable(100);
    assert_eq!(older.send(kept, &message(b"x")).await, "accepted");
    assert_eq!(newer.send(link, &message(b"after")).await, "accepted");
}

#[tokio::test]
async fn many_devices_on_one_session_send_at_once() {
    // More windows than the session has room for: the session's window slows the client down, nobody is thrown out.
    const DEVICES: usize = 100;
    const EACH: usize = 30;
    let config = AmqpConfig {
        machine: Config {
            max_received: 500,
            ..Config::default()
        },
        ..quick()
    };
    let hub = Hub::start_with(config);
    let mut peer = hub.log_in(&["policy:device"]).await;
    let mut links = Vec::new();
    for number in 0..DEVICES {
        let address = format!("/devices/d{number}/messages/events");
        links.push(peer.sender(&address).await.expect("attached"));
    }
    hub.gateway.hold_durability();
    let mut waiting = Vec::new();
    let mut stalled = false;
    for round in 0..EACH {
        for link in &links {
            while peer.machine.can_send(*link) == 0 {
                if !stalled {
                    stalled = true;
                    assert!(waiting.len() <= 500, "{} of round {round}", waiting.len());
                    hub.gateway.make_durable_from_now_on();
                }
                peer.read_more().await;
            }
            waiting.push(peer.post(*link, &message(b"x"), false));
            peer.flush().await;
        }
    }
    assert!(stalled, "the window has closed");
    for token in waiting {
        assert_eq!(peer.outcome(token).await, "accepted");
    }
    assert_eq!(hub.gateway.received().len(), DEVICES * EACH);
}
