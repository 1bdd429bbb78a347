//! What every [`crate::file::FileStore`] does.
#![allow(missing_docs, clippy::missing_panics_doc, reason = "the names say it")]

use std::sync::Arc;

use holdfast_model::c2d::{LockToken, Settlement};
use holdfast_model::file::{FileNotification, FileNotificationDelivery, Upload};

use super::StateStore;
use super::fixtures::{at, create, id};
use crate::assert_fails;
use crate::file::EXPIRED_UPLOADS_MAX;

fn upload(device: &str, correlation_id: &str, expires: i64) -> Upload {
    Upload {
        correlation_id: correlation_id.to_owned(),
        device: id(device),
        blob_name: format!("{device}/ü {correlation_id}"),
        begun_at: at(1),
        expires_at: at(expires),
    }
}

fn notification(name: &str, expires: i64) -> FileNotification {
    FileNotification {
        device_id: "d1".to_owned(),
        blob_uri: format!("https://a.test/box/d1/{name}"),
        blob_name: format!("d1/{name}"),
        blob_size: 5 << 32,
        blob_updated_at: at(3),
        enqueued_at: at(4),
        expires_at: at(expires),
    }
}

async fn told<S: StateStore>(store: &S, name: &str, expires: i64) {
    store
        .add_upload(upload("d1", name, 100), 10, at(1))
        .await
        .expect("room");
    store
        .end_upload(&id("d1"), name, Some(notification(name, expires)))
        .await
        .expect("it is there");
}

async fn take<S: StateStore>(store: &S, now: i64) -> Option<FileNotificationDelivery> {
    store
        .lock_file_notification(at(now), at(now + 60))
        .await
        .expect("readable")
}

pub async fn uploads_are_kept_whole_and_end_once<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1", "d2"]).await;
    let begun = upload("d1", "c1", 60);
    store.add_upload(begun.clone(), 10, at(1)).await.expect("room");
    assert_eq!(
        store.upload(&id("d1"), "c1").await.expect("readable"),
        Some(begun)
    );
    assert_eq!(store.upload(&id("d2"), "c1").await.expect("readable"), None);
    assert_eq!(store.upload(&id("d1"), "c2").await.expect("readable"), None);
    assert_fails!(
        store
            .end_upload(&id("d2"), "c1", Some(notification("x", 9)))
            .await,
        Missing
    );
    assert_fails!(
        store
            .end_upload(&id("d1"), "c2", Some(notification("x", 9)))
            .await,
        Missing
    );
    assert!(take(&*store, 5).await.is_none(), "a refused end tells nothing");
    store
        .end_upload(&id("d1"), "c1", None)
        .await
        .expect("it is there");
    assert_eq!(store.upload(&id("d1"), "c1").await.expect("readable"), None);
    assert_fails!(
        store
            .end_upload(&id("d1"), "c1", Some(notification("x", 9)))
            .await,
        Missing
    );
    assert!(take(&*store, 5).await.is_none(), "a failed upload tells nothing");
    assert_fails!(store.add_upload(upload("d3", "c3", 60), 10, at(1)).await, Missing);
}

pub async fn uploads_of_a_device_are_bounded<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1", "d2"]).await;
    for number in 0..3 {
        let begun = upload("d1", &format!("c{number}"), 60 + number);
        store.add_upload(begun, 3, at(1)).await.expect("room");
    }
    assert_fails!(store.add_upload(upload("d1", "c3", 60), 3, at(59)).await, Full);
    store
        .add_upload(upload("d2", "e1", 60), 3, at(59))
        .await
        .expect("another device");
    // At 60 the first has ended.
    store
        .add_upload(upload("d1", "c3", 120), 3, at(60))
        .await
        .expect("room");
    assert_fails!(store.add_upload(upload("d1", "c4", 120), 3, at(60)).await, Full);
    store
        .end_upload(&id("d1"), "c3", None)
        .await
        .expect("it is there");
    // It is still known, until there are too many of its kind.
    assert!(store.upload(&id("d1"), "c0").await.expect("readable").is_some());
    for number in 0..EXPIRED_UPLOADS_MAX as i64 {
        let begun = upload("d1", &format!("f{number}"), 200 + number);
        store.add_upload(begun, 100, at(190)).await.expect("room");
    }
    store
        .add_upload(upload("d1", "last", 400), 100, at(300))
        .await
        .expect("room");
    let known = ["c0", "c1", "c2", "f0", "last"].map(|name| (name, name == "f0" || name == "last"));
    for (name, known) in known {
        let found = store.upload(&id("d1"), name).await.expect("readable");
        assert_eq!(found.is_some(), known, "{name}");
    }
    store.delete(&id("d1"), None).await.expect("it is there");
    create(&*store, &["d1"]).await;
    assert_eq!(store.upload(&id("d1"), "last").await.expect("readable"), None);
}

pub async fn notifications_are_locked_and_settled<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    assert!(take(&*store, 5).await.is_none());
    told(&*store, "a", 1_000).await;
    told(&*store, "b", 1_000).await;
    let first = take(&*store, 5).await.expect("one waits");
    assert_eq!(first.notification, notification("a", 1_000));
    assert_eq!((first.delivery_count, first.locked_until), (0, at(65)));
    let second = take(&*store, 5).await.expect("one waits");
    assert_eq!(second.notification, notification("b", 1_000));
    assert!(take(&*store, 5).await.is_none(), "both are held");
    let wrong = LockToken {
        nonce: first.lock.nonce ^ 1,
        ..first.lock
    };
    assert_fails!(
        store
            .settle_file_notification(wrong, Settlement::Complete, 3)
            .await,
        Missing
    );
    let settle = |lock, settlement| store.settle_file_notification(lock, settlement, 3);
    settle(first.lock, Settlement::Complete).await.expect("held");
    assert_fails!(settle(first.lock, Settlement::Complete).await, Missing);
    settle(second.lock, Settlement::Release).await.expect("held");
    for count in 0..3 {
        let again = take(&*store, 6).await.expect("it was given back");
        assert_eq!(again.delivery_count, count, "only abandoning counts");
        assert_fails!(settle(second.lock, Settlement::Complete).await, Missing);
        settle(again.lock, Settlement::Abandon).await.expect("held");
    }
    assert!(take(&*store, 6).await.is_none(), "abandoned too often");
    told(&*store, "c", 1_000).await;
    let third = take(&*store, 7).await.expect("one waits");
    settle(third.lock, Settlement::Reject).await.expect("held");
    assert!(take(&*store, 8).await.is_none());
}

pub async fn a_notification_comes_again_when_its_lock_ends<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    told(&*store, "a", 1_000).await;
    let first = take(&*store, 5).await.expect("one waits");
    assert!(take(&*store, 64).await.is_none(), "it is held");
    let again = take(&*store, 65).await.expect("its lock has ended");
    assert_eq!(again.delivery_count, 0);
    assert_ne!(again.lock, first.lock);
    assert_fails!(
        store
            .settle_file_notification(first.lock, Settlement::Complete, 3)
            .await,
        Missing
    );
    // What was told before the deletion stays.
    store.delete(&id("d1"), None).await.expect("it is there");
    store
        .settle_file_notification(again.lock, Settlement::Complete, 3)
        .await
        .expect("held");
}

pub async fn files_expire<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    told(&*store, "a", 50).await;
    told(&*store, "b", 60).await;
    store
        .add_upload(upload("d1", "u1", 30), 9, at(1))
        .await
        .expect("room");
    store
        .add_upload(upload("d1", "u2", 40), 9, at(1))
        .await
        .expect("room");
    assert_eq!(store.expire_files(at(49), at(30)).await.expect("writable"), 0);
    assert!(store.upload(&id("d1"), "u1").await.expect("readable").is_some());
    assert_eq!(store.expire_files(at(50), at(31)).await.expect("writable"), 1);
    assert!(store.upload(&id("d1"), "u1").await.expect("readable").is_none());
    assert!(store.upload(&id("d1"), "u2").await.expect("readable").is_some());
    assert!(
        take(&*store, 60).await.is_none(),
        "it is not handed out when it has expired"
    );
    assert_eq!(store.expire_files(at(70), at(1)).await.expect("writable"), 0);
}
