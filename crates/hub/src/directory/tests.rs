//! Goal: the directory is a map from identity to the session with the highest epoch. Method: random actions on it and
//! on an ordinary map, compared after each.

use std::collections::BTreeMap;

use holdfast_model::Identity;
use holdfast_model::event::{AuthMethod, EventSource, Origin};
use holdfast_model::subscription::Subscriptions;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn session(id: &str, epoch: u64, expires_at: i64) -> Arc<SessionHandle> {
    let origin = Origin {
        source: EventSource::Telemetry,
        identity: Identity::parse(id).expect("an id"),
        generation_id: 1,
        auth: AuthMethod::IdentityKey,
    };
    let expires_at = Timestamp::from_seconds(expires_at);
    Arc::new(SessionHandle::new(
        origin,
        0,
        epoch,
        expires_at,
        true,
        Subscriptions::NONE,
    ))
}

#[derive(Clone, Debug)]
enum Action {
    Insert { id: String, epoch: u64, expires_at: i64 },
    Remove { id: String, epoch: u64 },
    Expire { deadline: i64 },
}

fn action() -> impl Strategy<Value = Action> {
    let id =
        || (0..6u8, any::<bool>()).prop_map(|(n, module)| format!("d{n}{}", if module { "/m" } else { "" }));
    prop_oneof![
        4 => (id(), 0..20u64, 0..100i64).prop_map(|(id, epoch, expires_at)| Action::Insert { id, epoch, expires_at }),
        2 => (id(), 0..20u64).prop_map(|(id, epoch)| Action::Remove { id, epoch }),
        1 => (0..100i64).prop_map(|deadline| Action::Expire { deadline }),
    ]
}

proptest! {
    #[test]
    fn behaves_like_a_map(actions in vec(action(), 1..200)) {
        let directory = Directory::new();
        let mut model: BTreeMap<String, Arc<SessionHandle>> = BTreeMap::new();
        for action in actions {
            match action {
                Action::Insert { id, epoch, expires_at } => {
                    let new = session(&id, epoch, expires_at);
                    let outcome = directory.insert(&new);
                    if model.get(&id).is_some_and(|old| old.epoch > epoch) {
                        prop_assert!(outcome.is_err());
                    } else {
                        let replaced = outcome.expect("not outdated").map(|old| old.epoch);
                        prop_assert_eq!(replaced, model.insert(id, new).map(|old| old.epoch));
                    }
                }
                Action::Remove { id, epoch } => {
                    let fits = model.get(&id).is_some_and(|old| old.epoch == epoch);
                    prop_assert_eq!(directory.remove(&session(&id, epoch, 0)), fits);
                    if fits {
                        model.remove(&id);
                    }
                }
                Action::Expire { deadline } => {
                    let deadline = Timestamp::from_seconds(deadline);
                    let mut expired: Vec<String> = directory
                        .expired(deadline, usize::MAX)
                        .iter()
                        .map(|session| {
                            prop_assert!(directory.remove(session));
                            Ok(session.identity().as_str().to_owned())
                        })
                        .collect::<Result<_, TestCaseError>>()?;
                    expired.sort_unstable();
                    let (gone, left): (BTreeMap<_, _>, BTreeMap<_, _>) =
                        model.into_iter().partition(|(_, session)| session.expires_at() <= deadline);
                    prop_assert_eq!(expired, gone.into_keys().collect::<Vec<_>>());
                    model = left;
                }
            }
            for n in 0..6u8 {
                for id in [format!("d{n}"), format!("d{n}/m")] {
                    prop_assert_eq!(
                        directory.get(&id).map(|session| session.epoch),
                        model.get(&id).map(|session| session.epoch)
                    );
                }
            }
            let modules = model.keys().filter(|id| id.contains('/')).count();
            prop_assert_eq!(directory.counts(), (model.len() - modules, modules));
            prop_assert_eq!(directory.select(|_| true).len(), model.len());
        }
    }
}

#[test]
fn an_entry_is_one_pointer() {
    let directory = Directory::new();
    for number in 0..100_000u64 {
        directory
            .insert(&session(&format!("d{number}"), number, 0))
            .expect("new");
    }
    let slots: usize = directory
        .shards
        .iter()
        .map(|shard| shard.lock().sessions.capacity())
        .sum();
    // Eight bytes and one control byte each, over seven eighths of the slots that can be used.
    let bytes = slots * (size_of::<Arc<SessionHandle>>() + 1) * 8 / 7;
    assert!(bytes / 100_000 <= 24, "{bytes} bytes");
}

#[test]
fn passing_over_shards_costs_no_scan() {
    let directory = Directory::new();
    for number in 0..1_000u64 {
        directory
            .insert(&session(&format!("d{number}"), number, 1_000))
            .expect("new");
    }
    assert!(directory.expired(Timestamp::from_seconds(999), 0).is_empty());
    assert_eq!(
        directory
            .expired(Timestamp::from_seconds(1_000), usize::MAX)
            .len(),
        1_000
    );
}
