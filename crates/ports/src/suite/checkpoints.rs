//! What every [`crate::settings::CheckpointStore`] does.
#![allow(missing_docs, clippy::missing_panics_doc, reason = "the names say it")]

use std::sync::Arc;

use super::StateStore;
use crate::assert_fails;
use crate::settings::DEFAULT_CONSUMER_GROUP;

pub async fn the_default_group_always_exists<S: StateStore>(store: Arc<S>) {
    let groups = store.consumer_groups().await.expect("readable");
    assert_eq!(groups, [DEFAULT_CONSUMER_GROUP]);
    assert_fails!(store.create_consumer_group(DEFAULT_CONSUMER_GROUP).await, Exists);
    assert_fails!(store.delete_consumer_group(DEFAULT_CONSUMER_GROUP).await, Missing);
    assert_eq!(
        store.consumer_groups().await.expect("readable"),
        [DEFAULT_CONSUMER_GROUP]
    );
}

pub async fn groups_are_listed_by_name<S: StateStore>(store: Arc<S>) {
    for name in ["b", "A", "#first-by-byte", "a"] {
        store.create_consumer_group(name).await.expect("new");
    }
    assert_fails!(store.create_consumer_group("a").await, Exists);
    assert_eq!(
        store.consumer_groups().await.expect("readable"),
        [DEFAULT_CONSUMER_GROUP, "#first-by-byte", "A", "a", "b"]
    );
    store.delete_consumer_group("A").await.expect("it is there");
    assert_fails!(store.delete_consumer_group("A").await, Missing);
    assert_eq!(store.consumer_groups().await.expect("readable").len(), 4);
}

pub async fn groups_are_bounded<S: StateStore>(store: Arc<S>) {
    for number in 1..20 {
        store
            .create_consumer_group(&format!("g{number}"))
            .await
            .expect("room");
    }
    assert_fails!(store.create_consumer_group("one-more").await, Full);
    assert_fails!(store.create_consumer_group("g1").await, Exists);
    store.delete_consumer_group("g1").await.expect("it is there");
    store.create_consumer_group("one-more").await.expect("room again");
}

pub async fn checkpoints_belong_to_a_reader_and_a_partition<S: StateStore>(store: Arc<S>) {
    assert_eq!(store.checkpoint("r", 0).await.expect("readable"), None);
    store.save_checkpoint("r", 0, 5).await.expect("saved");
    store.save_checkpoint("r", 3, u64::MAX).await.expect("saved");
    store.save_checkpoint("R", 0, 7).await.expect("saved");
    store.save_checkpoint("r", 0, 6).await.expect("saved");
    for (reader, partition, next) in [
        ("r", 0, Some(6)),
        ("r", 3, Some(u64::MAX)),
        ("R", 0, Some(7)),
        ("r", 1, None),
    ] {
        assert_eq!(store.checkpoint(reader, partition).await.expect("readable"), next);
    }
    store.delete_checkpoints("r").await.expect("deleted");
    store.delete_checkpoints("r").await.expect("nothing to delete");
    for (reader, partition, next) in [("r", 0, None), ("r", 3, None), ("R", 0, Some(7))] {
        assert_eq!(store.checkpoint(reader, partition).await.expect("readable"), next);
    }
}

pub async fn a_group_goes_with_its_checkpoints<S: StateStore>(store: Arc<S>) {
    for name in ["g", "h"] {
        store.create_consumer_group(name).await.expect("new");
        store.save_checkpoint(name, 0, 5).await.expect("saved");
        store.save_checkpoint(name, 1, 5).await.expect("saved");
    }
    store.delete_consumer_group("g").await.expect("it is there");
    store.create_consumer_group("g").await.expect("new again");
    assert_eq!(store.checkpoint("g", 0).await.expect("readable"), None);
    assert_eq!(store.checkpoint("g", 1).await.expect("readable"), None);
    assert_eq!(store.checkpoint("h", 1).await.expect("readable"), Some(5));
}
