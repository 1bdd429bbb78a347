//! What every [`crate::registry::RegistryStore`] does.
#![allow(missing_docs, clippy::missing_panics_doc, reason = "the names say it")]

use std::sync::Arc;

use holdfast_model::Identity;
use holdfast_model::credential::Thumbprint;
use holdfast_model::limits::MODULES_PER_DEVICE_MAX;
use holdfast_model::registry::{Authentication, IdentityRecord, RegistryStatistics, Status};
use holdfast_model::subscription::{Channel, Subscriptions};
use holdfast_model::twin::Twin;

use super::StateStore;
use super::fixtures::{LIMITS, at, create, id, is_refusal, key, message, record, refusal, set_reason};
use crate::StoreError;
use crate::assert_fails;
use crate::registry::ConnectionUpdate;

fn keys(records: &[IdentityRecord]) -> Vec<&str> {
    records.iter().map(|record| record.identity.as_str()).collect()
}

pub async fn records_are_kept_whole<S: StateStore>(store: Arc<S>) {
    let thumbprint = Thumbprint::parse(&"ab".repeat(20));
    let authentications = [
        Authentication::Sas {
            primary_key: key(3),
            secondary_key: key(4),
        },
        Authentication::SelfSigned {
            primary_thumbprint: thumbprint.clone(),
            secondary_thumbprint: None,
        },
        Authentication::SelfSigned {
            primary_thumbprint: None,
            secondary_thumbprint: thumbprint,
        },
        Authentication::CertificateAuthority,
        Authentication::None,
    ];
    for (number, authentication) in authentications.into_iter().enumerate() {
        let identity = id(&format!("d{number}-:.+%_#*?!(),=@;$'"));
        let record = IdentityRecord {
            generation_id: u64::MAX - number as u64,
            version: 7,
            status: Status::Disabled,
            status_reason: Some("under repair: \u{1f527}".into()),
            status_updated_at: at(1),
            authentication,
            iot_edge: true,
            device_scope: Some("ms-azure-iot-edge://d-1".into()),
            parent_scopes: vec!["ms-azure-iot-edge://p-1".into(), "\"quoted\"".into()],
            managed_by: Some("IotEdge".into()),
            connected: true,
            connection_updated_at: at(2),
            last_activity_at: at(3),
            ..record(&identity)
        };
        let entry = (record.clone(), Twin::new(at(0)));
        store.create(vec![entry]).await.expect("new");
        assert_eq!(store.get(&identity).await.expect("readable"), Some(record));
    }
    assert_eq!(store.get(&id("unknown")).await.expect("readable"), None);
}

pub async fn an_identity_comes_with_its_twin<S: StateStore>(store: Arc<S>) {
    assert_eq!(store.twin(&id("d1")).await.expect("readable"), None);
    create(&*store, &["d1", "d1/m1"]).await;
    for key in ["d1", "d1/m1"] {
        let twin = store.twin(&id(key)).await.expect("readable");
        assert_eq!(twin, Some(Twin::new(at(0))));
    }
    store.delete(&id("d1/m1"), None).await.expect("it is there");
    assert_eq!(store.twin(&id("d1/m1")).await.expect("readable"), None);
    assert!(store.twin(&id("d1")).await.expect("readable").is_some());
}

pub async fn entries_are_created_all_or_none<S: StateStore>(store: Arc<S>) {
    let entries = |keys: &[&str]| -> Vec<_> {
        keys.iter()
            .map(|key| (record(&id(key)), Twin::new(at(0))))
            .collect()
    };
    create(&*store, &["taken"]).await;
    assert_fails!(
        store.create(entries(&["a", "a/$edgeAgent", "taken"])).await,
        Exists
    );
    assert_fails!(store.create(entries(&["a", "b", "a"])).await, Exists);
    assert_fails!(store.create(entries(&["a", "none/m"])).await, Missing);
    assert_eq!(
        keys(&store.list_devices(None, 10).await.expect("readable")),
        ["taken"]
    );
    assert_eq!(store.twin(&id("a")).await.expect("readable"), None);
    store
        .create(entries(&["a", "a/$edgeAgent", "a/$edgeHub"]))
        .await
        .expect("all are new");
    assert_eq!(
        keys(&store.list_modules(&id("a")).await.expect("readable")),
        ["a/$edgeAgent", "a/$edgeHub"]
    );
    store.create(Vec::new()).await.expect("nothing to refuse");
}

pub async fn groups_are_created_apart_from_each_other<S: StateStore>(store: Arc<S>) {
    let group = |keys: &[&str]| -> Vec<_> {
        keys.iter()
            .map(|key| (record(&id(key)), Twin::new(at(0))))
            .collect()
    };
    create(&*store, &["taken"]).await;
    let groups = vec![
        group(&["b"]),
        group(&["taken"]),
        group(&["b/m"]),
        group(&["e", "e/$edgeAgent", "e/$edgeHub"]),
        group(&["x", "x/m", "b"]),
        group(&["none/m"]),
        group(&["b"]),
        Vec::new(),
        group(&["a"]),
    ];
    let results = store.create_many(groups).await.expect("the store works");
    let told: Vec<&str> = results
        .iter()
        .map(|result| match result {
            Ok(()) => "ok",
            Err(StoreError::Exists) => "exists",
            Err(StoreError::Missing) => "missing",
            Err(_) => "another error",
        })
        .collect();
    assert_eq!(
        told,
        [
            "ok", "exists", "ok", "ok", "exists", "missing", "exists", "ok", "ok"
        ]
    );
    let listed = store.list_devices(None, 10).await.expect("readable");
    assert_eq!(keys(&listed), ["a", "b", "e", "taken"]);
    assert_eq!(
        store.twin(&id("x/m")).await.expect("readable"),
        None,
        "a group is created all or none"
    );
    assert_eq!(store.statistics().await.expect("readable").total, 4);
    assert!(
        store
            .create_many(Vec::new())
            .await
            .expect("nothing to do")
            .is_empty()
    );
}

pub async fn identities_are_listed_with_their_twins<S: StateStore>(store: Arc<S>) {
    create(&*store, &["a", "a-b", "a/m", "a/b", "b", "a-b/x", "A"]).await;
    let mut twin = Twin::new(at(5));
    twin.tags.insert("plant".into(), "north".into());
    let entry = (record(&id("c")), twin.clone());
    store.create(vec![entry]).await.expect("new");
    let order = ["A", "a", "a/b", "a/m", "a-b", "a-b/x", "b", "c"];
    for page in [1, 3, 100] {
        let mut after: Option<Identity> = None;
        let mut seen = Vec::new();
        loop {
            let listed = store
                .list_with_twins(after.as_ref(), page)
                .await
                .expect("readable");
            assert!(listed.len() <= page);
            let Some((last, _)) = listed.last() else { break };
            after = Some(last.identity.clone());
            seen.extend(listed);
        }
        let records: Vec<IdentityRecord> = seen.iter().map(|(record, _)| record.clone()).collect();
        assert_eq!(keys(&records), order, "pages of {page}");
        assert_eq!(seen.last().map(|(_, twin)| twin), Some(&twin));
        assert_eq!(seen[0], (record(&id("A")), Twin::new(at(0))));
    }
    let listed = store
        .list_with_twins(Some(&id("a-a")), 2)
        .await
        .expect("readable");
    assert_eq!(listed[0].0.identity, id("a-b"), "the place need not exist");
}

pub async fn a_module_needs_its_device<S: StateStore>(store: Arc<S>) {
    let entry = || vec![(record(&id("d1/m1")), Twin::new(at(0)))];
    assert_fails!(store.create(entry()).await, Missing);
    create(&*store, &["d1"]).await;
    store.create(entry()).await.expect("its device is there");
    assert_fails!(store.create(entry()).await, Exists);
}

pub async fn modules_of_a_device_are_bounded<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1", "d2"]).await;
    for number in 0..MODULES_PER_DEVICE_MAX {
        create(&*store, &[&format!("d1/m{number}")]).await;
    }
    let entry = |key| vec![(record(&id(key)), Twin::new(at(0)))];
    assert_fails!(store.create(entry("d1/one-more")).await, Full);
    create(&*store, &["d1/$edgeAgent", "d1/$edgeHub", "d2/m"]).await;
    assert_fails!(store.create(entry("d1/one-more")).await, Full);
    assert_fails!(store.create(entry("d1/m0")).await, Exists);
    store.delete(&id("d1/m0"), None).await.expect("it is there");
    create(&*store, &["d1/one-more"]).await;
}

pub async fn ids_are_case_sensitive_and_ordered_bytewise<S: StateStore>(store: Arc<S>) {
    create(&*store, &["b", "B", "a", "a-1", "a0", "_", "$"]).await;
    assert_eq!(
        keys(&store.list_devices(None, 100).await.expect("readable")),
        ["$", "B", "_", "a", "a-1", "a0", "b"]
    );
    assert_eq!(store.get(&id("A")).await.expect("readable"), None);
}

pub async fn a_mutation_raises_the_version<S: StateStore>(store: Arc<S>) {
    assert_fails!(store.mutate(&id("d1"), set_reason("x")).await, Missing);
    create(&*store, &["d1"]).await;
    let changed = store
        .mutate(&id("d1"), set_reason("new"))
        .await
        .expect("it is there");
    assert_eq!(
        (changed.version, changed.status_reason.as_deref()),
        (2, Some("new"))
    );
    assert_eq!(store.get(&id("d1")).await.expect("readable"), Some(changed));
    let again = store
        .mutate(&id("d1"), Arc::new(|_| Ok(())))
        .await
        .expect("it is there");
    assert_eq!(again.version, 3);
}

pub async fn a_refused_mutation_changes_nothing<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    let refused = store
        .mutate(
            &id("d1"),
            Arc::new(|record| {
                record.status_reason = Some("half done".into());
                Err(refusal())
            }),
        )
        .await;
    assert!(is_refusal(&refused.expect_err("refused")));
    let kept = store.get(&id("d1")).await.expect("readable");
    assert_eq!(kept, Some(record(&id("d1"))));
}

pub async fn identity_and_generation_cannot_be_mutated<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    let changed = store
        .mutate(
            &id("d1"),
            Arc::new(|record| {
                record.identity = id("other");
                record.generation_id = 9;
                record.version = 99;
                Ok(())
            }),
        )
        .await
        .expect("it is there");
    let expected = IdentityRecord {
        version: 2,
        ..record(&id("d1"))
    };
    assert_eq!(changed, expected);
    assert_eq!(store.get(&id("d1")).await.expect("readable"), Some(expected));
    assert_eq!(store.get(&id("other")).await.expect("readable"), None);
}

pub async fn a_device_goes_with_all_that_belongs_to_it<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1", "d1/m1", "d1/m2", "d10", "d1-"]).await;
    let mut subscriptions = Subscriptions::NONE;
    subscriptions.insert(Channel::Methods, true);
    for key in ["d1", "d1/m1", "d10"] {
        store.save_session(&id(key), subscriptions).await.expect("saved");
    }
    for key in ["d1", "d10"] {
        store.enqueue(message(key, "one"), LIMITS).await.expect("room");
    }
    let mut deleted = store.delete(&id("d1"), None).await.expect("it is there");
    deleted.sort();
    assert_eq!(deleted, [id("d1"), id("d1/m1"), id("d1/m2")]);
    assert_fails!(store.delete(&id("d1"), None).await, Missing);
    for key in ["d1", "d1/m1", "d1/m2"] {
        assert_eq!(store.get(&id(key)).await.expect("readable"), None);
        assert_eq!(store.twin(&id(key)).await.expect("readable"), None);
    }

    // A new device of the same id starts empty.
    create(&*store, &["d1", "d1/m1"]).await;
    assert_eq!(store.depth(&id("d1")).await.expect("readable"), 0);
    for key in ["d1", "d1/m1"] {
        assert_eq!(store.session(&id(key)).await.expect("readable"), None);
    }
    assert_eq!(
        keys(&store.list_modules(&id("d1")).await.expect("readable")),
        ["d1/m1"]
    );
    // The neighbours keep theirs.
    assert_eq!(store.depth(&id("d10")).await.expect("readable"), 1);
    assert_eq!(
        store.session(&id("d10")).await.expect("readable"),
        Some(subscriptions)
    );
    assert!(store.get(&id("d1-")).await.expect("readable").is_some());
}

pub async fn deletion_checks_the_version<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1", "d1/m1"]).await;
    store
        .mutate(&id("d1"), set_reason("x"))
        .await
        .expect("it is there");
    assert_fails!(store.delete(&id("d1"), Some(1)).await, Conflict);
    assert!(store.get(&id("d1/m1")).await.expect("readable").is_some());
    assert_fails!(store.delete(&id("d2"), Some(1)).await, Missing);
    let deleted = store.delete(&id("d1"), Some(2)).await.expect("the version fits");
    assert_eq!(deleted.len(), 2);
}

pub async fn devices_are_listed_in_pages<S: StateStore>(store: Arc<S>) {
    assert!(store.list_devices(None, 10).await.expect("readable").is_empty());
    create(&*store, &["a", "a/m", "a/n", "b", "c", "c/m", "d"]).await;
    let page = store.list_devices(None, 2).await.expect("readable");
    assert_eq!(keys(&page), ["a", "b"]);
    let page = store.list_devices(Some("b"), 2).await.expect("readable");
    assert_eq!(keys(&page), ["c", "d"]);
    assert!(
        store
            .list_devices(Some("d"), 2)
            .await
            .expect("readable")
            .is_empty()
    );
    // The device after which to go on may be gone.
    let page = store.list_devices(Some("bb"), 1).await.expect("readable");
    assert_eq!(keys(&page), ["c"]);
    assert!(store.list_devices(None, 0).await.expect("readable").is_empty());
    assert_eq!(
        store
            .list_devices(None, usize::MAX)
            .await
            .expect("readable")
            .len(),
        4
    );
}

pub async fn modules_are_listed_by_device<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d", "d/b", "d/B", "d/$edgeHub", "d0", "d0/x", "d-"]).await;
    assert_eq!(
        keys(&store.list_modules(&id("d")).await.expect("readable")),
        ["d/$edgeHub", "d/B", "d/b"]
    );
    for none in ["d-", "unknown", "d/b"] {
        assert!(store.list_modules(&id(none)).await.expect("readable").is_empty());
    }
}

pub async fn devices_are_counted<S: StateStore>(store: Arc<S>) {
    let expect = |total, disabled| RegistryStatistics {
        total,
        enabled: total - disabled,
        disabled,
    };
    assert_eq!(store.statistics().await.expect("readable"), expect(0, 0));
    create(&*store, &["a", "b", "c", "a/m"]).await;
    let disable = IdentityRecord {
        status: Status::Disabled,
        ..record(&id("e"))
    };
    store
        .create(vec![(disable, Twin::new(at(0)))])
        .await
        .expect("new");
    assert_eq!(store.statistics().await.expect("readable"), expect(4, 1));
    for status in [Status::Disabled, Status::Disabled] {
        store
            .mutate(
                &id("a"),
                Arc::new(move |record| {
                    record.status = status;
                    Ok(())
                }),
            )
            .await
            .expect("it is there");
    }
    assert_eq!(store.statistics().await.expect("readable"), expect(4, 2));
    store.delete(&id("a"), None).await.expect("it is there");
    store.delete(&id("b"), None).await.expect("it is there");
    assert_eq!(store.statistics().await.expect("readable"), expect(2, 1));
}

pub async fn a_scope_finds_its_edge_device<S: StateStore>(store: Arc<S>) {
    let scope = "ms-azure-iot-edge://edge-1";
    let edge = IdentityRecord {
        iot_edge: true,
        device_scope: Some(scope.into()),
        ..record(&id("edge"))
    };
    // A child carries its parent's scope and does not own it.
    let leaf = IdentityRecord {
        device_scope: Some(scope.into()),
        parent_scopes: vec![scope.into()],
        ..record(&id("a-leaf"))
    };
    for record in [leaf, edge.clone()] {
        store.create(vec![(record, Twin::new(at(0)))]).await.expect("new");
    }
    assert_eq!(store.find_scope(scope).await.expect("readable"), Some(edge));
    assert_eq!(
        store
            .find_scope("ms-azure-iot-edge://edge-2")
            .await
            .expect("readable"),
        None
    );
}

pub async fn children_are_found_by_the_scope_of_their_parent<S: StateStore>(store: Arc<S>) {
    let scope = "ms-azure-iot-edge://edge-\"1\"";
    let child = |key: &str, scope: &str| IdentityRecord {
        parent_scopes: vec![scope.into()],
        ..record(&id(key))
    };
    for record in [
        child("c", scope),
        child("a", scope),
        child("b", scope),
        child("other", "ms-azure-iot-edge://edge-2"),
        record(&id("orphan")),
    ] {
        store.create(vec![(record, Twin::new(at(0)))]).await.expect("new");
    }
    create(&*store, &["a/m"]).await;
    let list = async |after: Option<&str>, limit| {
        let children = store.list_children(scope, after, limit).await.expect("readable");
        let ids = children.iter().map(|record| record.identity.as_str().to_owned());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(list(None, 10).await, ["a", "b", "c"]);
    assert_eq!(list(None, 2).await, ["a", "b"]);
    assert_eq!(list(Some("a"), 1).await, ["b"]);
    assert!(list(Some("c"), 10).await.is_empty());
}

pub async fn connections_are_saved_without_a_version<S: StateStore>(store: Arc<S>) {
    create(&*store, &["a", "a/m", "b"]).await;
    let update = |key, connected| ConnectionUpdate {
        identity: id(key),
        connected,
        updated_at: at(5),
        last_activity_at: at(6),
    };
    store
        .save_connections(vec![update("gone", true), update("a", true), update("a/m", true)])
        .await
        .expect("saved");
    store
        .save_connections(vec![update("a/m", false)])
        .await
        .expect("saved");
    for (key, connected) in [("a", true), ("a/m", false)] {
        let expected = IdentityRecord {
            connected,
            connection_updated_at: at(5),
            last_activity_at: at(6),
            ..record(&id(key))
        };
        assert_eq!(store.get(&id(key)).await.expect("readable"), Some(expected));
    }
    let untouched = store.get(&id("b")).await.expect("readable");
    assert_eq!(untouched, Some(record(&id("b"))));
    assert_eq!(store.get(&id("gone")).await.expect("readable"), None);
}

pub async fn one_of_many_creations_wins<S: StateStore>(store: Arc<S>) {
    let mut tasks = Vec::new();
    for generation_id in 0..16 {
        let store = Arc::clone(&store);
        tasks.push(tokio::spawn(async move {
            let record = IdentityRecord {
                generation_id,
                ..record(&id("d1"))
            };
            let result = store.create(vec![(record, Twin::new(at(0)))]).await;
            result.is_ok().then_some(generation_id)
        }));
    }
    let mut winners = Vec::new();
    for task in tasks {
        winners.extend(task.await.expect("no panic"));
    }
    assert_eq!(winners.len(), 1);
    let kept: Option<IdentityRecord> = store.get(&id("d1")).await.expect("readable");
    assert_eq!(kept.map(|record| record.generation_id), winners.pop());
}

pub async fn concurrent_mutations_all_count<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1"]).await;
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let store = Arc::clone(&store);
        tasks.push(tokio::spawn(async move {
            let device: Identity = id("d1");
            for _ in 0..10 {
                let add = Arc::new(|record: &mut IdentityRecord| {
                    record.parent_scopes.push("one more".into());
                    Ok(())
                });
                store.mutate(&device, add).await.expect("it is there");
            }
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    let kept = store
        .get(&id("d1"))
        .await
        .expect("readable")
        .expect("it is there");
    assert_eq!((kept.parent_scopes.len(), kept.version), (80, 81));
}
