//! What every [`crate::settings::SettingsStore`] and [`crate::settings::SessionStore`] does.
#![allow(missing_docs, clippy::missing_panics_doc, reason = "the names say it")]

use std::sync::Arc;

use bytes::Bytes;
use holdfast_model::policy::{DEFAULT_POLICIES, Policy, Rights};
use holdfast_model::subscription::{Channel, Subscriptions};

use super::StateStore;
use super::fixtures::{at, create, id, key};
use crate::assert_fails;
use crate::settings::CertificateAuthority;

pub async fn policies_are_replaced_by_name<S: StateStore>(store: Arc<S>) {
    assert!(store.policies().await.expect("readable").is_empty());
    for (name, rights) in DEFAULT_POLICIES.iter().chain([&("nothing", Rights::NONE)]) {
        let policy = Policy {
            name: (*name).into(),
            primary_key: key(0),
            secondary_key: key(1),
            rights: *rights,
        };
        store.put_policy(policy).await.expect("stored");
    }
    let replaced = Policy {
        name: "device".into(),
        primary_key: key(7),
        secondary_key: key(8),
        rights: Rights::REGISTRY_READ,
    };
    store.put_policy(replaced).await.expect("stored");
    store.delete_policy("service").await.expect("it is there");
    assert_fails!(store.delete_policy("service").await, Missing);
    let mut policies = store.policies().await.expect("readable");
    policies.sort_by(|left, right| left.name.cmp(&right.name));
    let names: Vec<&str> = policies.iter().map(|policy| policy.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "device",
            "iothubowner",
            "nothing",
            "registryRead",
            "registryReadWrite"
        ]
    );
    let device = &policies[0];
    assert_eq!(device.rights, Rights::REGISTRY_READ);
    assert!(device.primary_key == key(7) && device.secondary_key == key(8));
    assert_eq!(policies[1].rights, DEFAULT_POLICIES[0].1);
    assert_eq!(policies[2].rights, Rights::NONE);
}

pub async fn authorities_are_replaced_by_name<S: StateStore>(store: Arc<S>) {
    let authority = |name: &str| CertificateAuthority {
        name: name.into(),
        certificate: Bytes::from_static(b"\0der\xff"),
        verified: false,
        verification_code: Some("code".into()),
        created_at: at(1),
        updated_at: at(2),
        version: 1,
    };
    for name in ["one", "two", "One"] {
        store.put_authority(authority(name)).await.expect("stored");
    }
    let proven = CertificateAuthority {
        verified: true,
        verification_code: None,
        updated_at: at(3),
        version: 2,
        ..authority("two")
    };
    store.put_authority(proven.clone()).await.expect("stored");
    store.delete_authority("one").await.expect("it is there");
    assert_fails!(store.delete_authority("one").await, Missing);
    let mut authorities = store.authorities().await.expect("readable");
    authorities.sort_by(|left, right| left.name.cmp(&right.name));
    assert_eq!(authorities, [authority("One"), proven]);
}

pub async fn values_are_replaced_by_key<S: StateStore>(store: Arc<S>) {
    assert_eq!(store.value("id-scope").await.expect("readable"), None);
    store.set_value("id-scope", "0ne1").await.expect("stored");
    store.set_value("id-scope", "0ne2").await.expect("stored");
    store.set_value("empty", "").await.expect("stored");
    assert_eq!(
        store.value("id-scope").await.expect("readable").as_deref(),
        Some("0ne2")
    );
    assert_eq!(store.value("empty").await.expect("readable").as_deref(), Some(""));
    assert_eq!(store.value("ID-SCOPE").await.expect("readable"), None);
}

pub async fn sessions_are_stored_and_forgotten<S: StateStore>(store: Arc<S>) {
    create(&*store, &["d1", "d1/m1"]).await;
    let mut subscriptions = Subscriptions::NONE;
    subscriptions.insert(Channel::CloudToDevice, true);
    subscriptions.insert(Channel::ModuleCloudToDevice, false);
    let device = id("d1");
    assert_eq!(store.session(&device).await.expect("readable"), None);
    store
        .delete_session(&device)
        .await
        .expect("no error when there is none");
    store.save_session(&device, subscriptions).await.expect("stored");
    assert_eq!(
        store.session(&device).await.expect("readable"),
        Some(subscriptions)
    );
    assert_eq!(store.session(&id("d1/m1")).await.expect("readable"), None);
    // An empty session is a session too.
    store
        .save_session(&device, Subscriptions::NONE)
        .await
        .expect("stored");
    assert_eq!(
        store.session(&device).await.expect("readable"),
        Some(Subscriptions::NONE)
    );
    store.delete_session(&device).await.expect("forgotten");
    assert_eq!(store.session(&device).await.expect("readable"), None);

    let unknown = id("unknown");
    store
        .save_session(&unknown, subscriptions)
        .await
        .expect("skipped");
    assert_eq!(store.session(&unknown).await.expect("readable"), None);
    create(&*store, &["unknown"]).await;
    assert_eq!(store.session(&unknown).await.expect("readable"), None);
}
