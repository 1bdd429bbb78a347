//! What every [`crate::queue::C2dQueue`] does with messages.
#![allow(missing_docs, clippy::missing_panics_doc, reason = "the names say it")]

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_model::Timestamp;
use holdfast_model::c2d::{AckMode, C2dDelivery, C2dMessage, LockToken, Settlement};
use holdfast_model::message::{Message, SystemProperty};

use super::StateStore;
use super::fixtures::{LIMITS, at, create, id, message, message_id};
use crate::queue::C2dLimits;
use crate::{StoreError, StoreResult, assert_fails};

/// Creates `device` and enqueues a message for each id.
async fn fill<S: StateStore>(store: &S, device: &str, ids: &[&str]) {
    create(store, &[device]).await;
    for message_id in ids {
        store
            .enqueue(message(device, message_id), LIMITS)
            .await
            .expect("room");
    }
}

/// Locks up to `max` messages at second `now` for a minute.
async fn lock<S: StateStore>(store: &S, device: &str, max: usize, owner: u64, now: i64) -> Vec<C2dDelivery> {
    store
        .lock_next(&id(device), max, owner, at(now), at(now + 60))
        .await
        .expect("readable")
}

async fn settle<S: StateStore>(
    store: &S,
    delivery: &C2dDelivery,
    settlement: Settlement,
    now: i64,
) -> StoreResult<()> {
    store
        .settle(
            &delivery.message.device,
            delivery.lock,
            settlement,
            LIMITS,
            at(now),
        )
        .await
}

fn ids(deliveries: &[C2dDelivery]) -> Vec<&str> {
    deliveries
        .iter()
        .map(|delivery| message_id(&delivery.message))
        .collect()
}

pub async fn sequence_numbers_count_over_the_whole_store<S: StateStore>(store: Arc<S>) {
    create(&*store, &["a", "b"]).await;
    let narrow = C2dLimits {
        depth_max: 2,
        ..LIMITS
    };
    for (device, expected) in [("a", 1), ("b", 2), ("a", 3)] {
        let number = store.enqueue(message(device, "m"), narrow).await;
        assert_eq!(number.expect("room"), expected);
    }
    // A refused message takes no number, and a number never comes again.
    assert_fails!(store.enqueue(message("a", "m"), narrow).await, Full);
    store.purge(&id("b"), at(1)).await.expect("purged");
    store.purge(&id("a"), at(1)).await.expect("purged");
    assert_eq!(store.enqueue(message("b", "m"), narrow).await.expect("room"), 4);
}

pub async fn messages_are_kept_whole<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    let mut content = Message {
        system: Vec::new(),
        properties: vec![
            ("z".into(), Some("last letter first".into())),
            ("a".into(), None),
            (String::new(), Some("\"\\\u{0}\u{1f527}".into())),
        ],
        body: Bytes::from((0..=255).collect::<Vec<u8>>()),
    };
    for property in SystemProperty::ALL.iter().rev() {
        content.set_system(*property, format!("{property:?} ü"));
    }
    let whole = C2dMessage {
        device: id("d1"),
        generation_id: u64::MAX,
        message: content,
        ack: AckMode::Negative,
        enqueued_at: Timestamp::from_micros(1_780_000_000_123_456),
        expires_at: Timestamp::MAX,
        input: None,
    };
    let empty = C2dMessage {
        message: Message::default(),
        ack: AckMode::None,
        ..whole.clone()
    };
    for message in [&whole, &empty] {
        store.enqueue(message.clone(), LIMITS).await.expect("room");
    }
    let deliveries = lock(&*store, "d1", 10, 1, 0).await;
    assert_eq!(deliveries.len(), 2);
    for (number, (delivery, sent)) in deliveries.iter().zip([&whole, &empty]).enumerate() {
        assert_eq!(delivery.lock.sequence_number, number as u64 + 1);
        assert_eq!((delivery.delivery_count, delivery.redelivered), (0, false));
        assert_eq!(delivery.locked_until, at(60));
        let got = &delivery.message;
        assert_eq!(got.device, sent.device);
        assert_eq!(got.generation_id, sent.generation_id);
        assert_eq!(got.message, sent.message);
        assert_eq!(got.ack, sent.ack);
        assert_eq!(
            (got.enqueued_at, got.expires_at),
            (sent.enqueued_at, sent.expires_at)
        );
    }
}

pub async fn messages_need_their_device<S: StateStore>(store: Arc<S>) {
    assert_fails!(store.enqueue(message("d1", "m"), LIMITS).await, Missing);
    let unknown = id("d1");
    assert!(lock(&*store, "d1", 10, 1, 0).await.is_empty());
    assert_eq!(store.depth(&unknown).await.expect("readable"), 0);
    assert_eq!(store.purge(&unknown, at(0)).await.expect("nothing to do"), 0);
    store.release(&unknown, 1).await.expect("nothing to do");
    let token = LockToken {
        sequence_number: 1,
        nonce: 1,
    };
    let settled = store
        .settle(&unknown, token, Settlement::Complete, LIMITS, at(0))
        .await;
    assert_fails!(settled, Missing);
}

pub async fn a_queue_is_bounded<S: StateStore>(store: Arc<S>) {
    let three = C2dLimits {
        depth_max: 3,
        ..LIMITS
    };
    fill(&*store, "d1", &["1", "2", "3"]).await;
    create(&*store, &["d2"]).await;
    assert_fails!(store.enqueue(message("d1", "4"), three).await, Full);
    store
        .enqueue(message("d2", "1"), three)
        .await
        .expect("another queue");
    let held = lock(&*store, "d1", 2, 1, 0).await;
    assert_eq!(store.depth(&id("d1")).await.expect("readable"), 3);
    assert_fails!(store.enqueue(message("d1", "4"), three).await, Full);
    settle(&*store, &held[0], Settlement::Complete, 1)
        .await
        .expect("held");
    store
        .enqueue(message("d1", "4"), three)
        .await
        .expect("room again");
    assert_eq!(store.depth(&id("d1")).await.expect("readable"), 3);
}

pub async fn a_queue_is_bounded_under_concurrency<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    let mut tasks = Vec::new();
    for task in 0..8 {
        let store = Arc::clone(&store);
        tasks.push(tokio::spawn(async move {
            let mut numbers = Vec::new();
            for number in 0..10 {
                match store
                    .enqueue(message("d1", &format!("{task}-{number}")), LIMITS)
                    .await
                {
                    Ok(number) => numbers.push(number),
                    Err(StoreError::Full) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(numbers.is_sorted());
            numbers
        }));
    }
    let mut numbers = Vec::new();
    for task in tasks {
        numbers.extend(task.await.expect("no panic"));
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=50).collect::<Vec<u64>>());
    assert_eq!(store.depth(&id("d1")).await.expect("readable"), 50);
    let order: Vec<u64> = lock(&*store, "d1", 100, 1, 0)
        .await
        .iter()
        .map(|delivery| delivery.lock.sequence_number)
        .collect();
    assert_eq!(order, numbers);
}

pub async fn messages_come_oldest_first_and_once<S: StateStore>(store: Arc<S>) {
    fill(&*store, "d1", &["1", "2", "3", "4"]).await;
    fill(&*store, "d2", &["other"]).await;
    assert!(lock(&*store, "d1", 0, 1, 0).await.is_empty());
    assert_eq!(ids(&lock(&*store, "d1", 1, 1, 0).await), ["1"]);
    assert_eq!(ids(&lock(&*store, "d1", 2, 2, 0).await), ["2", "3"]);
    assert_eq!(ids(&lock(&*store, "d1", 9, 1, 0).await), ["4"]);
    assert!(lock(&*store, "d1", 9, 1, 59).await.is_empty());
    assert_eq!(store.depth(&id("d1")).await.expect("readable"), 4);
}

pub async fn a_lock_ends<S: StateStore>(store: Arc<S>) {
    fill(&*store, "d1", &["1", "2"]).await;
    let first = lock(&*store, "d1", 1, 1, 0).await;
    assert_eq!(ids(&lock(&*store, "d1", 9, 1, 30).await), ["2"]);
    let again = lock(&*store, "d1", 9, 2, 60).await;
    assert_eq!(ids(&again), ["1"]);
    assert!(again[0].redelivered);
    assert_eq!(again[0].delivery_count, 0, "only an abandon counts");
    assert_ne!(again[0].lock, first[0].lock);
    assert_eq!(ids(&lock(&*store, "d1", 9, 2, 500).await), ["1", "2"]);
}

pub async fn a_token_works_until_its_message_is_locked_anew<S: StateStore>(store: Arc<S>) {
    fill(&*store, "d1", &["1", "2"]).await;
    let held = lock(&*store, "d1", 2, 1, 0).await;
    // Late, but nobody else has it.
    settle(&*store, &held[0], Settlement::Complete, 1_000)
        .await
        .expect("not locked anew");
    let anew = lock(&*store, "d1", 2, 2, 1_000).await;
    assert_eq!(ids(&anew), ["2"]);
    for settlement in [
        Settlement::Complete,
        Settlement::Reject,
        Settlement::Abandon,
        Settlement::Release,
    ] {
        assert_fails!(settle(&*store, &held[1], settlement, 1_001).await, Missing);
    }
    settle(&*store, &anew[0], Settlement::Complete, 1_001)
        .await
        .expect("held");
    assert_fails!(
        settle(&*store, &anew[0], Settlement::Complete, 1_002).await,
        Missing
    );
}

pub async fn a_token_opens_its_own_queue_only<S: StateStore>(store: Arc<S>) {
    fill(&*store, "d1", &["1"]).await;
    create(&*store, &["d2"]).await;
    let held = lock(&*store, "d1", 1, 1, 0).await;
    let foreign = store
        .settle(&id("d2"), held[0].lock, Settlement::Complete, LIMITS, at(1))
        .await;
    assert_fails!(foreign, Missing);
    let guessed = LockToken {
        nonce: held[0].lock.nonce.wrapping_add(1),
        ..held[0].lock
    };
    let guessed = store
        .settle(&id("d1"), guessed, Settlement::Complete, LIMITS, at(1))
        .await;
    assert_fails!(guessed, Missing);
    assert_eq!(store.depth(&id("d1")).await.expect("readable"), 1);
}

pub async fn complete_and_reject_remove<S: StateStore>(store: Arc<S>) {
    fill(&*store, "d1", &["1", "2", "3"]).await;
    let held = lock(&*store, "d1", 3, 1, 0).await;
    settle(&*store, &held[1], Settlement::Complete, 1)
        .await
        .expect("held");
    settle(&*store, &held[0], Settlement::Reject, 1)
        .await
        .expect("held");
    assert_eq!(store.depth(&id("d1")).await.expect("readable"), 1);
    assert_eq!(ids(&lock(&*store, "d1", 9, 1, 100).await), ["3"]);
}

pub async fn abandon_raises_the_count_up_to_the_limit<S: StateStore>(store: Arc<S>) {
    fill(&*store, "d1", &["1", "2"]).await;
    for abandons in 0..LIMITS.delivery_count_max {
        let held = lock(&*store, "d1", 1, 1, 0).await;
        assert_eq!(ids(&held), ["1"], "an abandoned message keeps its place");
        assert_eq!(held[0].delivery_count, abandons);
        assert_eq!(held[0].redelivered, abandons > 0);
        settle(&*store, &held[0], Settlement::Abandon, 0)
            .await
            .expect("held");
    }
    assert_eq!(ids(&lock(&*store, "d1", 9, 1, 0).await), ["2"]);
    assert_eq!(store.depth(&id("d1")).await.expect("readable"), 1);
}

pub async fn release_returns_without_counting<S: StateStore>(store: Arc<S>) {
    fill(&*store, "d1", &["1", "2"]).await;
    for _ in 0..LIMITS.delivery_count_max + 1 {
        let held = lock(&*store, "d1", 1, 1, 0).await;
        settle(&*store, &held[0], Settlement::Release, 0)
            .await
            .expect("held");
    }
    let held = lock(&*store, "d1", 9, 1, 0).await;
    assert_eq!(ids(&held), ["1", "2"]);
    assert_eq!((held[0].delivery_count, held[0].redelivered), (0, true));
    assert!(!held[1].redelivered);
}

pub async fn a_session_releases_only_its_own<S: StateStore>(store: Arc<S>) {
    fill(&*store, "d1", &["1", "2", "3", "4"]).await;
    let mine = lock(&*store, "d1", 1, 7, 0).await;
    lock(&*store, "d1", 1, 8, 0).await;
    lock(&*store, "d1", 1, 7, 0).await;
    store.release(&id("d1"), 7).await.expect("released");
    store
        .release(&id("d1"), 7)
        .await
        .expect("nothing left to release");
    assert_fails!(settle(&*store, &mine[0], Settlement::Complete, 0).await, Missing);
    let again = lock(&*store, "d1", 9, 9, 0).await;
    assert_eq!(ids(&again), ["1", "3", "4"]);
    let redelivered: Vec<bool> = again.iter().map(|delivery| delivery.redelivered).collect();
    assert_eq!(redelivered, [true, true, false]);
    assert!(again.iter().all(|delivery| delivery.delivery_count == 0));
}

pub async fn purge_empties_one_queue<S: StateStore>(store: Arc<S>) {
    fill(&*store, "d1", &["1", "2", "3"]).await;
    fill(&*store, "d2", &["1"]).await;
    let held = lock(&*store, "d1", 1, 1, 0).await;
    assert_eq!(store.purge(&id("d1"), at(1)).await.expect("purged"), 3);
    assert_fails!(settle(&*store, &held[0], Settlement::Complete, 1).await, Missing);
    assert_eq!(store.purge(&id("d1"), at(1)).await.expect("purged"), 0);
    assert_eq!(store.depth(&id("d1")).await.expect("readable"), 0);
    assert_eq!(store.depth(&id("d2")).await.expect("readable"), 1);
}

/// As [`message`], with its own expiry.
fn mortal(device: &str, message_id: &str, expires_at: i64) -> C2dMessage {
    C2dMessage {
        expires_at: at(expires_at),
        ..message(device, message_id)
    }
}

pub async fn expired_messages_are_not_delivered<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    for (message_id, expires_at) in [("1", 10), ("2", 500), ("3", 10), ("4", 500)] {
        store
            .enqueue(mortal("d1", message_id, expires_at), LIMITS)
            .await
            .expect("room");
    }
    let held = lock(&*store, "d1", 1, 1, 0).await;
    assert_eq!(ids(&held), ["1"]);
    // "1" is dead of age, but its receiver still holds it and may complete it.
    assert_eq!(ids(&lock(&*store, "d1", 9, 2, 20).await), ["2", "4"]);
    assert_eq!(
        store.depth(&id("d1")).await.expect("readable"),
        3,
        "the expired one is gone"
    );
    settle(&*store, &held[0], Settlement::Abandon, 30)
        .await
        .expect("held");
    assert!(lock(&*store, "d1", 9, 2, 31).await.is_empty());
    assert_eq!(store.depth(&id("d1")).await.expect("readable"), 2);
}

pub async fn a_sweep_expires_in_all_queues<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1", "d2"]).await;
    for (device, message_id, expires_at) in [
        ("d1", "1", 10),
        ("d1", "2", 500),
        ("d2", "3", 20),
        ("d2", "held", 10),
    ] {
        store
            .enqueue(mortal(device, message_id, expires_at), LIMITS)
            .await
            .expect("room");
    }
    assert_eq!(store.expire(at(5)).await.expect("swept"), 0);
    let held = lock(&*store, "d2", 2, 1, 5).await;
    settle(&*store, &held[0], Settlement::Release, 5)
        .await
        .expect("held");
    assert_eq!(store.expire(at(30)).await.expect("swept"), 2);
    assert_eq!(store.expire(at(30)).await.expect("swept"), 0);
    assert_eq!(store.depth(&id("d1")).await.expect("readable"), 1);
    assert_eq!(
        store.depth(&id("d2")).await.expect("readable"),
        1,
        "a held message waits for its lock to end"
    );
    assert_eq!(store.expire(at(65)).await.expect("swept"), 1);
    assert_fails!(settle(&*store, &held[1], Settlement::Complete, 66).await, Missing);
}

pub async fn concurrent_receivers_share_without_doubles<S: StateStore>(store: Arc<S>) {
    let all: Vec<String> = (0..50).map(|number| number.to_string()).collect();
    let borrowed: Vec<&str> = all.iter().map(String::as_str).collect();
    fill(&*store, "d1", &borrowed).await;
    let mut tasks = Vec::new();
    for owner in 0..8 {
        let store = Arc::clone(&store);
        tasks.push(tokio::spawn(async move {
            let mut taken = Vec::new();
            loop {
                let deliveries = lock(&*store, "d1", 3, owner, 0).await;
                if deliveries.is_empty() {
                    return taken;
                }
                for delivery in deliveries {
                    settle(&*store, &delivery, Settlement::Complete, 1)
                        .await
                        .expect("held");
                    taken.push(message_id(&delivery.message).to_owned());
                }
            }
        }));
    }
    let mut taken = Vec::new();
    for task in tasks {
        taken.extend(task.await.expect("no panic"));
    }
    assert_eq!(taken.len(), 50);
    let distinct: BTreeSet<String> = taken.into_iter().collect();
    assert_eq!(distinct, all.into_iter().collect());
    assert_eq!(store.depth(&id("d1")).await.expect("readable"), 0);
}
