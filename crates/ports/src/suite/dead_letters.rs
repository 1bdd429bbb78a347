//! What every store of dead letters does.

use holdfast_model::Timestamp;

use crate::dead_letters::{DEAD_LETTERS_MAX, DeadLetter, DeadLetterStore};

fn letter(endpoint: &str, sequence_number: u64, reason: &str) -> DeadLetter {
    DeadLetter {
        endpoint: endpoint.to_owned(),
        partition: 1,
        sequence_number,
        identity: "d1/m1".to_owned(),
        at: Timestamp::from_seconds(5),
        reason: reason.to_owned(),
    }
}

/// Letters of an endpoint are kept, replaced and cleared.
pub async fn letters_are_kept_newest_first(store: std::sync::Arc<impl DeadLetterStore>) {
    assert_eq!(store.count_dead_letters("one").await.expect("count"), 0);
    let first = letter("one", 7, "no");
    let second = letter("one", 9, "no");
    store
        .bury(vec![first.clone(), second.clone()])
        .await
        .expect("buried");
    store.bury(vec![letter("two", 7, "other")]).await.expect("buried");
    let listed = store.dead_letters("one", 10).await.expect("listed");
    assert_eq!(listed, [second.clone(), first.clone()]);
    assert_eq!(
        store.dead_letters("one", 1).await.expect("listed"),
        std::slice::from_ref(&second)
    );
    // Given up again after a crash: the newer word counts.
    let again = letter("one", 7, "still no");
    store.bury(vec![again.clone()]).await.expect("buried");
    assert_eq!(
        store.dead_letters("one", 10).await.expect("listed"),
        [again, second]
    );
    let removed = store.remove_dead_letters("one", vec![(1, 9), (1, 8), (0, 7)]);
    assert_eq!(removed.await.expect("removed"), 1);
    store.bury(vec![letter("one", 9, "no")]).await.expect("buried");
    assert_eq!(store.clear_dead_letters("one").await.expect("cleared"), 2);
    assert_eq!(store.count_dead_letters("one").await.expect("count"), 0);
    assert_eq!(store.count_dead_letters("two").await.expect("count"), 1);
}

/// At the bound the oldest letters go.
pub async fn the_oldest_go_when_there_are_too_many(store: std::sync::Arc<impl DeadLetterStore>) {
    let letters = (0..DEAD_LETTERS_MAX as u64 + 5).map(|number| letter("one", number, "no"));
    for chunk in letters.collect::<Vec<_>>().chunks(1_000) {
        store.bury(chunk.to_vec()).await.expect("buried");
    }
    assert_eq!(
        store.count_dead_letters("one").await.expect("count"),
        DEAD_LETTERS_MAX as u64
    );
    let newest = store.dead_letters("one", 1).await.expect("listed");
    assert_eq!(newest[0].sequence_number, DEAD_LETTERS_MAX as u64 + 4);
}
