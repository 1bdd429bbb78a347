//! The life of cloud-to-device messages, with feedback (mqtt.md 6.1, rest.md sections 8 and 15.3).

use std::time::Duration;

use holdfast_hub::C2dSend;
use holdfast_model::ErrorCode;
use holdfast_model::c2d::{AckMode, FeedbackStatus, LockToken, Settlement};
use holdfast_model::message::{Message, SystemProperty};
use holdfast_model::subscription::Channel;
use holdfast_ports::gateway::{DeviceGateway as _, Disconnect};
use holdfast_ports::session::Downlink;

use crate::harness::*;

fn message(id: &str, ack: AckMode) -> C2dSend {
    let mut message = Message {
        body: bytes("hello"),
        ..Message::default()
    };
    message.set_system(SystemProperty::MessageId, id);
    C2dSend {
        message,
        ack,
        expires_at: None,
    }
}

impl TestHub {
    async fn send(&self, id: &str, ack: AckMode) -> u64 {
        self.hub
            .send_c2d(&identity("d1"), message(id, ack))
            .await
            .expect("room")
    }

    /// Takes one message without a session, as HTTPS does.
    async fn take(&self) -> Option<LockToken> {
        let taken = self.hub.receive_c2d(&identity("d1"), None, 1).await;
        taken.expect("a store").first().map(|delivery| delivery.lock)
    }

    async fn settle(&self, lock: LockToken, settlement: Settlement) -> Result<(), ErrorCode> {
        self.hub
            .settle_c2d(&identity("d1"), lock, settlement)
            .await
            .map_err(|error| error.code)
    }

    async fn depth(&self) -> u64 {
        self.hub.c2d_depth(&identity("d1")).await.expect("a store")
    }
}

async fn with_device() -> TestHub {
    let test = TestHub::new().await;
    test.create("d1").await;
    test
}

fn hinted(session: &holdfast_ports::session::SessionHandle) -> bool {
    matches!(next(session), Some(Downlink::CloudToDevice))
}

#[tokio::test]
async fn a_session_is_told_takes_and_completes() {
    let test = with_device().await;
    let session = test.online("d1", &[Channel::CloudToDevice]).await;
    assert!(!hinted(&session), "nothing waits");
    for id in ["1", "2", "3"] {
        test.send(id, AckMode::None).await;
    }
    assert!(hinted(&session) && !hinted(&session), "one hint is enough");
    let taken = test
        .hub
        .receive_c2d(session.identity(), Some(&session), 10)
        .await
        .expect("a store");
    let ids: Vec<_> = taken
        .iter()
        .filter_map(|delivery| delivery.message.message.system(SystemProperty::MessageId))
        .collect();
    assert_eq!(ids, ["1", "2", "3"]);
    assert!(taken.iter().all(|delivery| !delivery.redelivered));
    assert_eq!(
        taken[0].message.expires_at,
        test.now().plus(Duration::from_secs(3_600))
    );
    for delivery in &taken {
        assert_eq!(test.settle(delivery.lock, Settlement::Complete).await, Ok(()));
        assert_eq!(
            test.settle(delivery.lock, Settlement::Complete).await,
            Err(ErrorCode::DeviceMessageLockLost)
        );
    }
    assert_eq!(test.depth().await, 0);
}

#[tokio::test]
async fn what_waits_flows_on_subscription_and_on_restored_sessions() {
    let test = with_device().await;
    test.send("1", AckMode::None).await;
    let session = test.connect("d1").await.session;
    assert!(!hinted(&session));
    test.subscribe(&session, &[Channel::CloudToDevice]).await;
    assert!(hinted(&session));
    // Not new in the set: no second hint.
    test.subscribe(&session, &[Channel::CloudToDevice, Channel::Methods])
        .await;
    assert!(!hinted(&session));
    test.hub.disconnect(&session, Disconnect::Lost);
    let restored = test.connect("d1").await.session;
    assert!(hinted(&restored));
}

#[tokio::test]
async fn unacknowledged_messages_come_again_after_a_takeover() {
    let test = with_device().await;
    let older = test.online("d1", &[Channel::CloudToDevice]).await;
    test.send("1", AckMode::None).await;
    let taken = test
        .hub
        .receive_c2d(older.identity(), Some(&older), 10)
        .await
        .expect("a store");
    let newer = test.connect("d1").await.session;
    assert!(hinted(&newer), "free again before the login returns");
    let again = test
        .hub
        .receive_c2d(newer.identity(), Some(&newer), 10)
        .await
        .expect("a store");
    assert_eq!((again.len(), again[0].redelivered), (1, true));
    assert_eq!(again[0].delivery_count, taken[0].delivery_count, "not an abandon");
    assert_eq!(
        test.settle(taken[0].lock, Settlement::Complete).await,
        Err(ErrorCode::DeviceMessageLockLost)
    );
    let fenced = test.hub.receive_c2d(older.identity(), Some(&older), 10).await;
    assert!(fenced.expect("a store").is_empty());
    assert_eq!(test.settle(again[0].lock, Settlement::Complete).await, Ok(()));
}

#[tokio::test]
async fn unacknowledged_messages_come_again_after_a_lost_connection() {
    let test = with_device().await;
    let session = test.online("d1", &[Channel::CloudToDevice]).await;
    test.send("1", AckMode::None).await;
    let taken = test.hub.receive_c2d(session.identity(), Some(&session), 10).await;
    assert_eq!(taken.expect("a store").len(), 1);
    test.hub.disconnect(&session, Disconnect::Lost);
    // The locks go back in a task of their own.
    tokio::task::yield_now().await;
    assert!(test.take().await.is_some());
}

#[tokio::test]
async fn locks_end_and_abandons_are_counted() {
    let test = with_device().await;
    test.send("1", AckMode::Full).await;
    let first = test.take().await.expect("a message");
    assert_eq!(test.take().await, None, "locked");
    test.clock.advance(Duration::from_secs(61));
    let second = test.take().await.expect("the lock has ended");
    assert_eq!(
        test.settle(first, Settlement::Complete).await,
        Err(ErrorCode::DeviceMessageLockLost)
    );
    assert_eq!(test.settle(second, Settlement::Release).await, Ok(()));
    for _ in 0..10 {
        let lock = test.take().await.expect("still there");
        assert_eq!(test.settle(lock, Settlement::Abandon).await, Ok(()));
    }
    assert_eq!(test.take().await, None, "abandoned too often");
    test.clock.advance(Duration::from_secs(16));
    let batch = test
        .hub
        .receive_feedback()
        .await
        .expect("a store")
        .expect("a batch");
    assert_eq!(batch.records.len(), 1);
    assert_eq!(
        batch.records[0].status_code,
        FeedbackStatus::DeliveryCountExceeded
    );
}

#[tokio::test]
async fn every_outcome_makes_feedback_if_asked_for() {
    let test = with_device().await;
    let generation = test.record("d1").await.generation_id.to_string();
    for (id, ack) in [
        ("done", AckMode::Full),
        ("done-silent", AckMode::Negative),
        ("rejected", AckMode::Negative),
        ("rejected-silent", AckMode::Positive),
    ] {
        test.send(id, ack).await;
        let lock = test.take().await.expect("a message");
        let settlement = if id.starts_with("done") {
            Settlement::Complete
        } else {
            Settlement::Reject
        };
        assert_eq!(test.settle(lock, settlement).await, Ok(()));
    }
    test.send("old", AckMode::Negative).await;
    test.clock.advance(Duration::from_secs(3_601));
    test.hub.tick().await;
    assert_eq!(test.depth().await, 0);
    assert_eq!(test.metrics.c2d_expired.get(), 1);
    test.send("purged", AckMode::Full).await;
    assert_eq!(test.hub.purge_c2d(&identity("d1")).await, Ok(1));

    let batch = test
        .hub
        .receive_feedback()
        .await
        .expect("a store")
        .expect("a batch");
    let outcomes: Vec<_> = batch
        .records
        .iter()
        .map(|record| (record.original_message_id.as_str(), record.status_code))
        .collect();
    assert_eq!(
        outcomes,
        [
            ("done", FeedbackStatus::Success),
            ("rejected", FeedbackStatus::Rejected),
            ("old", FeedbackStatus::Expired),
            ("purged", FeedbackStatus::Purged),
        ]
    );
    assert!(
        batch
            .records
            .iter()
            .all(|record| record.device_id == "d1" && record.device_generation_id == generation)
    );
    assert!(
        test.hub.receive_feedback().await.expect("a store").is_none(),
        "locked"
    );
    test.hub
        .settle_feedback(batch.lock, false)
        .await
        .expect("locked by us");
    let again = test
        .hub
        .receive_feedback()
        .await
        .expect("a store")
        .expect("given back");
    test.hub
        .settle_feedback(again.lock, true)
        .await
        .expect("locked by us");
    for lock in [batch.lock, again.lock] {
        let lost = test.hub.settle_feedback(lock, true).await;
        assert_eq!(lost.expect_err("gone").code, ErrorCode::DeviceMessageLockLost);
    }
    assert!(test.hub.receive_feedback().await.expect("a store").is_none());
}

#[tokio::test]
async fn feedback_waits_until_it_is_ripe() {
    let test = with_device().await;
    test.send("1", AckMode::Full).await;
    let lock = test.take().await.expect("a message");
    assert_eq!(test.settle(lock, Settlement::Complete).await, Ok(()));
    test.clock.advance(Duration::from_secs(14));
    assert!(test.hub.receive_feedback().await.expect("a store").is_none());
    test.clock.advance(Duration::from_secs(2));
    assert!(test.hub.receive_feedback().await.expect("a store").is_some());
}

#[tokio::test]
async fn queues_are_bounded() {
    let test = with_device().await;
    for index in 0..50 {
        test.send(&index.to_string(), AckMode::None).await;
    }
    let full = test
        .hub
        .send_c2d(&identity("d1"), message("51", AckMode::None))
        .await;
    assert_eq!(
        full.expect_err("full").code,
        ErrorCode::DeviceMaximumQueueDepthExceeded
    );
    let lock = test.take().await.expect("a message");
    let full = test
        .hub
        .send_c2d(&identity("d1"), message("51", AckMode::None))
        .await;
    assert!(full.is_err(), "locked messages count");
    assert_eq!(test.settle(lock, Settlement::Complete).await, Ok(()));
    test.send("51", AckMode::None).await;
    assert_eq!(test.depth().await, 50);
}

#[tokio::test]
async fn messages_are_checked() {
    let test = with_device().await;
    test.create("d1/m1").await;
    let sized = |body: usize| C2dSend {
        message: Message {
            body: vec![0; body].into(),
            ..Message::default()
        },
        ..C2dSend::default()
    };
    let send = |id: &'static str, send: C2dSend| {
        let hub = test.hub.clone();
        async move {
            hub.send_c2d(&identity(id), send)
                .await
                .map(drop)
                .map_err(|error| error.code)
        }
    };
    assert_eq!(send("d1", sized(64 * 1024)).await, Ok(()));
    assert_eq!(
        send("d1", sized(64 * 1024 + 1)).await,
        Err(ErrorCode::MessageTooLarge)
    );
    assert_eq!(send("ghost", sized(1)).await, Err(ErrorCode::DeviceNotFound));
    assert_eq!(send("d1/m1", sized(1)).await, Err(ErrorCode::ArgumentInvalid));
    let purge = test.hub.purge_c2d(&identity("ghost")).await;
    assert_eq!(purge.expect_err("no device").code, ErrorCode::DeviceNotFound);

    // A far expiry is cut, a past one dies in the queue.
    test.hub.purge_c2d(&identity("d1")).await.expect("purged");
    let expiring = |at| C2dSend {
        expires_at: Some(at),
        ..sized(1)
    };
    let day = Duration::from_secs(24 * 3_600);
    assert_eq!(send("d1", expiring(test.now().plus(3 * day))).await, Ok(()));
    assert_eq!(send("d1", expiring(test.now().minus(day))).await, Ok(()));
    let taken = test
        .hub
        .receive_c2d(&identity("d1"), None, 10)
        .await
        .expect("a store");
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].message.expires_at, test.now().plus(2 * day));
}
