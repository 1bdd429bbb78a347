//! Telemetry: stamps, durability, back-pressure, a log that fails.

use std::task::{Context, Poll, Waker};

use holdfast_model::event::{EventSource, Records};
use holdfast_model::limits::D2C_BYTES_MAX;
use holdfast_model::message::SystemProperty;
use holdfast_ports::event_log::EventLog as _;
use holdfast_ports::gateway::{ConnectRequest, Credential, DeviceGateway as _, IngestError, Persistence};
use holdfast_ports::session::CloseReason;

use crate::harness::*;

fn records(bodies: &[&[u8]]) -> Records {
    let mut records = Records::new();
    for body in bodies {
        let mut record = records.record();
        record.system(SystemProperty::MessageId, "m");
        let _ = record.finish(body);
    }
    records
}

fn is_durable(test: &TestHub, ticket: holdfast_ports::event_log::AppendTicket) -> bool {
    test.hub
        .poll_durable(ticket, &mut Context::from_waker(Waker::noop()))
        .is_ready()
}

#[tokio::test]
async fn telemetry_carries_the_stamps_of_its_session() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let module = test.create("d1/m1").await;
    let session = test.connect("d1/m1").await.session;
    test.log.hold();
    let ticket = test
        .hub
        .send(&session, &records(&[b"one", b"two"]))
        .expect("room");
    assert_eq!(ticket.partition, holdfast_hub::partition_of("d1", 4));
    assert!(!is_durable(&test, ticket));
    test.log.release();
    assert!(is_durable(&test, ticket));

    let token = test.token("d1").await;
    let admitted = test
        .hub
        .admit(access("d1", Credential::Sas(&token)))
        .await
        .expect("good");
    let ticket = test
        .hub
        .send_admitted(&admitted, &records(&[b"three"]))
        .expect("room");
    assert!(is_durable(&test, ticket));

    let blocks = test
        .log
        .read(ticket.partition, 0, 1 << 20)
        .await
        .expect("readable");
    let events: Vec<_> = blocks
        .iter()
        .flat_map(|block| block.events())
        .collect::<Result<_, _>>()
        .expect("well formed");
    let seen: Vec<_> = events.iter().map(|event| (event.identity, event.body)).collect();
    assert_eq!(
        seen,
        [("d1/m1", &b"one"[..]), ("d1/m1", b"two"), ("d1", b"three")]
    );
    assert!(events.iter().all(|event| event.source == EventSource::Telemetry));
    assert_eq!(events[0].generation_id, module.generation_id);
    assert_eq!(events[0].enqueued_at, test.now());
    assert_eq!(test.metrics.telemetry_messages.get(), 3);
}

#[tokio::test]
async fn a_busy_log_names_what_to_wait_for() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let session = test.connect("d1").await.session;
    test.log.hold();
    test.hub.send(&session, &records(&[b"one"])).expect("room");
    test.log.set_busy(true);
    let Err(IngestError::Busy(Some(ticket))) = test.hub.send(&session, &records(&[b"two"])) else {
        panic!("busy with a ticket");
    };
    assert!(!is_durable(&test, ticket));
    test.log.set_busy(false);
    test.log.release();
    assert!(is_durable(&test, ticket));
    test.hub.send(&session, &records(&[b"two"])).expect("room");
    assert_eq!(test.metrics.telemetry_waits.get(), 1);
}

#[tokio::test]
async fn the_hub_is_the_last_guard_of_the_message_limit() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let session = test.connect("d1").await.session;
    let large = vec![0; 256 * 1024];
    let refused = test.hub.send(&session, &records(&[b"small", &large]));
    assert_eq!(refused, Err(IngestError::TooLarge));
    let half = vec![0; 200 * 1024];
    test.hub
        .send(&session, &records(&[&half, &half]))
        .expect("a long run of messages within the limit");
}

#[tokio::test]
async fn a_failed_log_ends_every_session_and_takes_nobody() {
    let test = TestHub::new().await;
    test.create("d1").await;
    test.create("d2").await;
    let token = test.token("d1").await;
    let sender = test.connect("d1").await.session;
    let other = test.connect("d2").await.session;
    test.log.fail("disk gone");
    assert!(matches!(
        test.hub.send(&sender, &records(&[b"one"])),
        Err(IngestError::Failed(_))
    ));
    test.hub.tick().await;
    for session in [&sender, &other] {
        assert_eq!(closed(session), Some(CloseReason::StorageFailed));
    }
    assert!(test.connect_with("d1", Credential::Sas(&token)).await.is_err());
}

#[tokio::test]
async fn a_failure_seen_while_waiting_counts_too() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let session = test.connect("d1").await.session;
    test.log.hold();
    let ticket = test.hub.send(&session, &records(&[b"one"])).expect("room");
    test.log.fail("disk gone");
    let polled = test
        .hub
        .poll_durable(ticket, &mut Context::from_waker(Waker::noop()));
    assert!(matches!(polled, Poll::Ready(Err(_))));
    test.hub.tick().await;
    assert!(session.is_ended());
}

#[tokio::test]
async fn telemetry_of_plug_and_play_devices_carries_their_model() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let token = test.token("d1").await;
    let mut sent = Vec::new();
    for announced in [Some("dtmi:com:ex:Thermostat;1"), None] {
        let session = test
            .hub
            .connect(ConnectRequest {
                access: access("d1", Credential::Sas(&token)),
                persistence: Persistence::Forgotten,
                model_id: announced,
                client_type: None,
            })
            .await
            .expect("good")
            .session;
        // The stamp does not count against the sender's limit.
        let full = vec![b'x'; D2C_BYTES_MAX - 1];
        sent.push(test.hub.send(&session, &records(&[b"one", &full])).expect("room"));
    }
    let blocks = test
        .log
        .read(sent[0].partition, 0, 1 << 20)
        .await
        .expect("readable");
    let schemas: Vec<_> = blocks
        .iter()
        .flat_map(|block| block.events())
        .map(|event| {
            let event = event.expect("well formed");
            let own = event.system(SystemProperty::MessageId).map(str::to_owned);
            let schema = event.system(SystemProperty::DataSchema).map(str::to_owned);
            (own, schema, event.body.len())
        })
        .collect();
    let message_id = || Some("m".to_owned());
    let model = || Some("dtmi:com:ex:Thermostat;1".to_owned());
    assert_eq!(
        schemas,
        [
            (message_id(), model(), 3),
            (message_id(), model(), D2C_BYTES_MAX - 1),
            (message_id(), None, 3),
            (message_id(), None, D2C_BYTES_MAX - 1),
        ]
    );
}
