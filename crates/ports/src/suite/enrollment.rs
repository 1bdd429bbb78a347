//! What every [`crate::enrollment::EnrollmentStore`] does.
#![allow(missing_docs, clippy::missing_panics_doc, reason = "the names say it")]

use std::sync::Arc;

use holdfast_model::provisioning::{
    AccessList, AllocationPolicy, Attestation, Enrollment, EnrollmentGroup, IndividualEnrollment,
    InitialTwin, LinkedHub, Plan, ProvisioningPolicy, ProvisioningRights, Registration, RegistrationId,
    RegistrationStatus, Substatus, TwinPlan,
};
use serde_json::json;

use super::StateStore;
use super::fixtures::{at, key};
use crate::assert_fails;
use crate::enrollment::Expected;

/// A registration id.
#[must_use]
pub fn registration_id(text: &str) -> RegistrationId {
    RegistrationId::parse(text).expect("the suite's ids are valid")
}

fn entry(version: u64) -> Enrollment {
    let object = |value: serde_json::Value| value.as_object().cloned().unwrap_or_default();
    Enrollment {
        attestation: Attestation::SymmetricKey {
            primary_key: key(1),
            secondary_key: key(2),
        },
        enabled: true,
        reprovision: None,
        allocation: Some(AllocationPolicy::GeoLatency),
        hub_host_name: None,
        hubs: vec!["hub.test".into()],
        custom: None,
        initial_twin: Some(InitialTwin {
            tags: object(json!({"floor": 3})),
            desired: object(json!({"interval": {"s": 5.5}})),
        }),
        iot_edge: true,
        created_at: at(1),
        updated_at: at(2),
        version,
    }
}

/// An individual enrollment.
#[must_use]
pub fn individual(id: &str, version: u64) -> IndividualEnrollment {
    IndividualEnrollment {
        registration_id: registration_id(id),
        device_id: Some(format!("device-{id}")),
        device_information: Some(json!({"note": "ä"})),
        enrollment: entry(version),
    }
}

/// A group.
#[must_use]
pub fn group(id: &str, version: u64) -> EnrollmentGroup {
    EnrollmentGroup {
        group_id: registration_id(id),
        access: AccessList {
            allow: vec!["press-*".into()],
            deny: vec!["press-13".into()],
        },
        enrollment: entry(version),
    }
}

/// A registration under way.
#[must_use]
pub fn registration(id: &str, group: Option<&str>, version: u64) -> Registration {
    Registration {
        registration_id: registration_id(id),
        group_id: group.map(registration_id),
        operation_id: "4.x".into(),
        status: RegistrationStatus::Assigning,
        substatus: Some(Substatus::DeviceDataMigrated),
        hub: Some("hub.test".into()),
        device_id: Some(id.into()),
        failure: Some((400_207, "why".into())),
        payload: Some(json!([1, null])),
        certificate: None,
        plan: Some(Plan {
            target: "a".into(),
            source: Some("b".into()),
            twin: TwinPlan::Migrate,
            initial_twin: Some(InitialTwin::default()),
            payload: None,
        }),
        authentication_key: None,
        created_at: at(1),
        updated_at: at(2),
        version,
    }
}

pub async fn enrollments_are_kept_whole_and_found_without_case<S: StateStore>(store: Arc<S>) {
    let first = individual("Dev-1", 7);
    store
        .put_enrollment(first.clone(), Expected::Absent)
        .await
        .expect("new");
    assert_eq!(store.enrollment("dev-1").await.expect("readable"), Some(first));
    assert_eq!(store.enrollment("dev-2").await.expect("readable"), None);
    let crew = group("Crew", 8);
    store
        .put_group(crew.clone(), Expected::Whatever)
        .await
        .expect("new");
    assert_eq!(store.group("crew").await.expect("readable"), Some(crew));
}

pub async fn writes_of_enrollments_are_conditional<S: StateStore>(store: Arc<S>) {
    let put = |version, expected| store.put_enrollment(individual("a", version), expected);
    assert_fails!(put(1, Expected::Present).await, Missing);
    assert_fails!(put(1, Expected::Version(1)).await, Missing);
    put(1, Expected::Absent).await.expect("new");
    assert_fails!(put(2, Expected::Absent).await, Exists);
    assert_fails!(put(2, Expected::Version(9)).await, Conflict);
    put(2, Expected::Version(1)).await.expect("it matches");
    put(3, Expected::Present).await.expect("it is there");
    assert_fails!(store.delete_enrollment("a", Expected::Version(2)).await, Conflict);
    store
        .delete_enrollment("a", Expected::Version(3))
        .await
        .expect("it matches");
    assert_fails!(store.delete_enrollment("a", Expected::Whatever).await, Missing);
    assert_fails!(store.delete_group("a", Expected::Whatever).await, Missing);
    assert_fails!(store.delete_registration("a", Expected::Whatever).await, Missing);
}

pub async fn enrollments_are_listed_in_pages<S: StateStore>(store: Arc<S>) {
    for id in ["b", "A", "c"] {
        store
            .put_enrollment(individual(id, 1), Expected::Absent)
            .await
            .expect("new");
        store
            .put_group(group(id, 1), Expected::Absent)
            .await
            .expect("new");
    }
    let first = store.list_enrollments(None, 2).await.expect("readable");
    let ids: Vec<&str> = first.iter().map(|item| item.registration_id.as_str()).collect();
    assert_eq!(ids, ["A", "b"]);
    let rest = store.list_enrollments(Some("b"), 2).await.expect("readable");
    assert_eq!(rest.len(), 1);
    let groups = store.list_groups(Some("a"), 9).await.expect("readable");
    assert_eq!(groups.len(), 2);
}

pub async fn registrations_belong_to_their_entry<S: StateStore>(store: Arc<S>) {
    store
        .put_enrollment(individual("solo", 1), Expected::Absent)
        .await
        .expect("new");
    store
        .put_group(group("Crew", 1), Expected::Absent)
        .await
        .expect("new");
    let all = [
        registration("solo", None, 1),
        registration("X1", Some("Crew"), 1),
        registration("x2", Some("crew"), 1),
        registration("y", Some("other"), 1),
    ];
    for one in all.clone() {
        store.put_registration(one, Expected::Absent).await.expect("new");
    }
    assert_eq!(
        store.registration("x1").await.expect("readable").as_ref(),
        Some(&all[1])
    );
    let listed = store.list_registrations("crew", None, 9).await.expect("readable");
    assert_eq!(listed, all[1..3]);
    let after = store
        .list_registrations("crew", Some("x1"), 9)
        .await
        .expect("readable");
    assert_eq!(after, all[2..3]);
    store
        .delete_enrollment("solo", Expected::Whatever)
        .await
        .expect("it is there");
    assert_eq!(store.registration("solo").await.expect("readable"), None);
    store
        .delete_group("crew", Expected::Whatever)
        .await
        .expect("it is there");
    assert_eq!(store.registration("x2").await.expect("readable"), None);
    assert!(store.registration("y").await.expect("readable").is_some());
}

pub async fn linked_hubs_and_policies_are_replaced_by_name<S: StateStore>(store: Arc<S>) {
    let hub = |weight| LinkedHub {
        host: "hub.test".into(),
        weight,
        policy: Some(("p".into(), key(3))),
        ..LinkedHub::own()
    };
    store.put_linked_hub(hub(1)).await.expect("stored");
    store.put_linked_hub(hub(5)).await.expect("stored");
    assert_eq!(store.linked_hubs().await.expect("readable"), [hub(5)]);
    store.delete_linked_hub("hub.test").await.expect("it is there");
    assert_fails!(store.delete_linked_hub("hub.test").await, Missing);
    let policy = |rights| ProvisioningPolicy {
        name: "p".into(),
        primary_key: key(1),
        secondary_key: key(2),
        rights,
    };
    let (some, all) = (ProvisioningRights::ENROLLMENT_READ, ProvisioningRights::ALL);
    store.put_provisioning_policy(policy(some)).await.expect("stored");
    store.put_provisioning_policy(policy(all)).await.expect("stored");
    assert_eq!(
        store.provisioning_policies().await.expect("readable"),
        [policy(all)]
    );
    store.delete_provisioning_policy("p").await.expect("it is there");
    assert_fails!(store.delete_provisioning_policy("p").await, Missing);
}
