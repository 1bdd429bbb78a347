//! What every [`crate::queue::C2dQueue`] tells the senders of messages.
#![allow(missing_docs, clippy::missing_panics_doc, reason = "the names say it")]

use std::sync::Arc;

use holdfast_model::Timestamp;
use holdfast_model::c2d::{
    AckMode, C2dDelivery, C2dMessage, FeedbackBatch, FeedbackRecord, FeedbackStatus, LockToken, Settlement,
};
use holdfast_model::limits::FEEDBACK_BATCH_MAX;

use super::StateStore;
use super::fixtures::{LIMITS, at, create, id, message};
use crate::assert_fails;

/// Locks whatever feedback there is at second `now` for a minute.
async fn take<S: StateStore>(store: &S, now: i64) -> Option<FeedbackBatch> {
    store
        .lock_feedback(at(now), at(now + 60), Timestamp::MAX)
        .await
        .expect("readable")
}

async fn lock_one<S: StateStore>(store: &S, now: i64) -> C2dDelivery {
    let mut deliveries = store
        .lock_next(&id("d1"), 1, 1, at(now), at(now + 60))
        .await
        .expect("readable");
    deliveries.pop().expect("a message waits")
}

/// Lets `number` messages of d1 be completed at second `now`; d1 exists.
async fn complete<S: StateStore>(store: &S, number: usize, now: i64) {
    for index in 0..number {
        let message = message("d1", &format!("{now}-{index}"));
        store.enqueue(message, LIMITS).await.expect("room");
        let delivery = lock_one(store, now).await;
        store
            .settle(&id("d1"), delivery.lock, Settlement::Complete, LIMITS, at(now))
            .await
            .expect("held");
    }
}

/// Ends one message in the way that leads to `status`.
async fn end<S: StateStore>(store: &S, message: C2dMessage, status: FeedbackStatus) {
    let device = id("d1");
    store.enqueue(message, LIMITS).await.expect("room");
    let settlements = match status {
        FeedbackStatus::Success => vec![Settlement::Complete],
        FeedbackStatus::Rejected => vec![Settlement::Reject],
        FeedbackStatus::DeliveryCountExceeded => {
            vec![Settlement::Abandon; LIMITS.delivery_count_max as usize]
        }
        FeedbackStatus::Expired | FeedbackStatus::Purged => Vec::new(),
    };
    for settlement in settlements {
        let delivery = lock_one(store, 1).await;
        store
            .settle(&device, delivery.lock, settlement, LIMITS, at(2))
            .await
            .expect("held");
    }
    match status {
        FeedbackStatus::Expired => assert_eq!(store.expire(at(4_000)).await.expect("swept"), 1),
        FeedbackStatus::Purged => {
            assert_eq!(store.purge(&device, at(2)).await.expect("purged"), 1);
        }
        _ => {}
    }
    assert_eq!(store.depth(&device).await.expect("readable"), 0);
}

pub async fn outcomes_make_the_feedback_asked_for<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    let outcomes = [
        (FeedbackStatus::Success, "Success"),
        (FeedbackStatus::Rejected, "Rejected"),
        (FeedbackStatus::DeliveryCountExceeded, "DeliveryCountExceeded"),
        (FeedbackStatus::Expired, "Expired"),
        (FeedbackStatus::Purged, "Purged"),
    ];
    let modes = [AckMode::None, AckMode::Positive, AckMode::Negative, AckMode::Full];
    let mut expected = Vec::new();
    for ack in modes {
        for (status, description) in outcomes {
            let name = format!("{ack:?} {status:?}");
            let message = C2dMessage {
                ack,
                ..message("d1", &name)
            };
            end(&*store, message, status).await;
            if ack.wants(status) {
                expected.push(FeedbackRecord {
                    original_message_id: name,
                    enqueued_time_utc: at(if status == FeedbackStatus::Expired {
                        4_000
                    } else {
                        2
                    }),
                    status_code: status,
                    description: description.into(),
                    device_id: "d1".into(),
                    device_generation_id: "638000000000000001".into(),
                });
            }
        }
    }
    // Expiry on the way to the next message counts as well; a message without an id is told without one.
    let nameless = C2dMessage {
        message: holdfast_model::message::Message::default(),
        expires_at: at(10),
        ..message("d1", "")
    };
    store.enqueue(nameless, LIMITS).await.expect("room");
    let none = store
        .lock_next(&id("d1"), 1, 1, at(11), at(60))
        .await
        .expect("readable");
    assert!(none.is_empty());
    expected.push(FeedbackRecord {
        original_message_id: String::new(),
        enqueued_time_utc: at(11),
        status_code: FeedbackStatus::Expired,
        description: "Expired".into(),
        device_id: "d1".into(),
        device_generation_id: "638000000000000001".into(),
    });
    let batch = take(&*store, 5_000).await.expect("feedback waits");
    assert_eq!(batch.records, expected);
}

pub async fn deletion_makes_no_feedback<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    complete(&*store, 1, 1).await;
    store.enqueue(message("d1", "left"), LIMITS).await.expect("room");
    store.delete(&id("d1"), None).await.expect("it is there");
    // What had been told before the deletion stays.
    let batch = take(&*store, 2).await.expect("feedback waits");
    assert_eq!(batch.records.len(), 1);
    assert_eq!(batch.records[0].original_message_id, "1-0");
}

pub async fn a_batch_closes_when_full<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    let unripe = || store.lock_feedback(at(20), at(80), at(5));
    complete(&*store, FEEDBACK_BATCH_MAX - 1, 10).await;
    assert!(unripe().await.expect("readable").is_none());
    complete(&*store, 3, 11).await;
    let batch = unripe().await.expect("readable").expect("it is full");
    assert_eq!(batch.records.len(), FEEDBACK_BATCH_MAX);
    assert_eq!(batch.records[0].original_message_id, "10-0");
    assert_eq!(batch.records[FEEDBACK_BATCH_MAX - 1].original_message_id, "11-0");
    assert!(
        unripe().await.expect("readable").is_none(),
        "two are left, and they are young"
    );
    let rest = take(&*store, 20).await.expect("two are left");
    assert_eq!(rest.records.len(), 2);
    assert!(take(&*store, 20).await.is_none());
}

pub async fn a_batch_closes_when_ripe<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    assert!(take(&*store, 0).await.is_none());
    complete(&*store, 1, 10).await;
    complete(&*store, 1, 12).await;
    let lock = |ripe_before| store.lock_feedback(at(20), at(80), at(ripe_before));
    assert!(lock(9).await.expect("readable").is_none());
    assert!(lock(10).await.expect("readable").is_none(), "not from before");
    let batch = lock(11).await.expect("readable").expect("the oldest is ripe");
    assert_eq!(batch.records.len(), 2, "the younger one goes with it");
}

pub async fn a_batch_is_settled_once<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    complete(&*store, 2, 1).await;
    let unknown = LockToken {
        sequence_number: 1,
        nonce: 1,
    };
    assert_fails!(store.settle_feedback(unknown, true).await, Missing);
    let batch = take(&*store, 2).await.expect("feedback waits");
    assert!(take(&*store, 2).await.is_none(), "it is held");
    store
        .settle_feedback(batch.lock, false)
        .await
        .expect("it is held");
    assert_fails!(store.settle_feedback(batch.lock, true).await, Missing);
    let again = take(&*store, 3).await.expect("it was returned");
    assert_eq!(again.records, batch.records);
    assert_ne!(again.lock, batch.lock);
    complete(&*store, 1, 4).await;
    store.settle_feedback(again.lock, true).await.expect("it is held");
    assert_fails!(store.settle_feedback(again.lock, false).await, Missing);
    let rest = take(&*store, 5).await.expect("one came meanwhile");
    assert_eq!(rest.records[0].original_message_id, "4-0");
}

pub async fn a_batch_comes_again_when_its_lock_ends<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    complete(&*store, 2, 1).await;
    let batch = take(&*store, 2).await.expect("feedback waits");
    complete(&*store, 1, 3).await;
    assert!(
        store
            .lock_feedback(at(61), at(120), at(2))
            .await
            .expect("readable")
            .is_none(),
        "the old ones are held, the young one is not ripe"
    );
    let again = take(&*store, 62).await.expect("the lock has ended");
    assert_eq!(again.records.len(), 3);
    assert_eq!(again.records[..2], batch.records[..]);
    assert_fails!(store.settle_feedback(batch.lock, true).await, Missing);
    store.settle_feedback(again.lock, true).await.expect("it is held");
}
