//! Registering: assignment, repetition, moves, webhooks, crashes.

use std::sync::Arc;

use holdfast_model::provisioning::{
    AllocationPolicy, CustomAllocation, RegistrationStatus as Status, Substatus,
};
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::enrollment::{Expected, HubCredential};
use holdfast_ports::provisioning::ProvisioningGateway as _;
use serde_json::json;

use crate::harness::{HOST, NEVER, RESET, Rig, by_key, twin, unavailable};

#[tokio::test]
async fn a_device_is_assigned_with_its_key_and_twin() {
    let rig = Rig::start().await;
    let key = rig
        .enroll("Dev-1", |spec| {
            spec.device_id = Some("press".into());
            spec.enrollment.iot_edge = true;
            spec.enrollment.initial_twin = twin(json!({"interval": 5, "$version": 7}));
        })
        .await;
    let done = rig.register("dEV-1", &key).await.expect("assigned");
    assert_eq!(
        (done.status, done.hub.as_deref(), done.device_id.as_deref()),
        (Status::Assigned, Some(HOST), Some("press"))
    );
    assert_eq!(done.substatus, Some(Substatus::InitialAssignment));
    let own = rig.own();
    assert_eq!(own.twin_of("press")["desired"], json!({"interval": 5}));
    let device = own.devices.lock()["press"].clone();
    assert!(device.iot_edge);
    assert!(matches!(device.credential, HubCredential::Keys { primary, .. } if primary == key));
    // Again: the same device, its twin untouched.
    own.set_desired("press", json!({"interval": 6}));
    let again = rig.register("dev-1", &key).await.expect("assigned");
    assert_eq!(again.substatus, Some(Substatus::InitialAssignment));
    assert_ne!(again.operation_id, done.operation_id);
    assert_eq!(own.twin_of("press")["desired"], json!({"interval": 6}));
    assert_eq!(*own.created.lock(), 1);
}

#[tokio::test]
async fn devices_of_a_group_get_derived_keys() {
    let rig = Rig::start().await;
    let group = rig.group("Crew", |_| {}).await;
    for (id, form) in [("Sn-1", "Sn-1"), ("Sn-2", "sn-2")] {
        let derived = group.derive(form);
        let done = rig.register(id, &derived).await.expect("assigned");
        assert_eq!(done.device_id.as_deref(), Some(id));
        assert_eq!(done.group_id.expect("a group").as_str(), "Crew");
        let device = rig.own().devices.lock()[id].clone();
        assert!(matches!(device.credential, HubCredential::Keys { primary, .. } if primary == derived));
    }
    let refused = rig
        .register("sn-3", &group)
        .await
        .expect_err("not the group's own key");
    assert_eq!(refused.code, ErrorCode::IotHubUnauthorizedAccess);
    let listed = rig.engine.list_registrations("crew", None, 10).await;
    assert_eq!(listed.expect("readable").len(), 2);
}

#[tokio::test]
async fn a_disabled_enrollment_is_told_and_decides_before_groups() {
    let rig = Rig::start().await;
    let group = rig.group("crew", |_| {}).await;
    let key = rig.enroll("d", |spec| spec.enrollment.enabled = false).await;
    let told = rig.register("d", &key).await.expect("an answer");
    assert_eq!(told.status, Status::Disabled);
    assert!(rig.own().devices.lock().is_empty());
    let refused = rig.register("d", &group.derive("d")).await;
    assert_eq!(
        refused.expect_err("its own enrollment decides").code,
        ErrorCode::IotHubUnauthorizedAccess
    );
}

#[tokio::test]
async fn a_device_moves_with_its_twin() {
    let rig = Rig::start().await;
    rig.link("Other.test").await;
    let only = |host: &'static str| {
        move |spec: &mut holdfast_provisioning::IndividualSpec| {
            spec.enrollment.hubs = vec![host.into()];
            spec.enrollment.initial_twin = twin(json!({"fresh": true}));
        }
    };
    let key = rig.enroll("d", only("localhost")).await;
    let first = rig.register("d", &key).await.expect("assigned");
    assert_eq!(first.hub.as_deref(), Some(HOST));
    rig.own().set_desired("d", json!({"worn": 1}));
    rig.enroll("d", only("other.TEST")).await;
    let moved = rig.register("d", &key).await.expect("assigned");
    assert_eq!(
        (moved.hub.as_deref(), moved.substatus),
        (Some("other.test"), Some(Substatus::DeviceDataMigrated))
    );
    let other = rig.hubs.of("other.test");
    assert_eq!(other.twin_of("d")["desired"], json!({"worn": 1}));
    assert!(rig.own().devices.lock().is_empty());
    // And back, beginning anew.
    rig.enroll("d", |spec| {
        only("dps.test")(spec);
        spec.enrollment.reprovision = Some(RESET);
    })
    .await;
    let back = rig.register("d", &key).await.expect("assigned");
    assert_eq!(back.substatus, Some(Substatus::DeviceDataReset));
    assert_eq!(rig.own().twin_of("d")["desired"], json!({"fresh": true}));
    assert!(other.devices.lock().is_empty());
    // Never: it stays, whatever the enrollment names.
    rig.enroll("d", |spec| {
        only("other.test")(spec);
        spec.enrollment.reprovision = Some(NEVER);
    })
    .await;
    let stays = rig.register("d", &key).await.expect("assigned");
    assert_eq!(stays.hub.as_deref(), Some(HOST));
}

#[tokio::test]
async fn a_reset_on_the_same_hub_renews_the_twin() {
    let rig = Rig::start().await;
    let key = rig
        .enroll("d", |spec| {
            spec.enrollment.reprovision = Some(RESET);
            spec.enrollment.initial_twin = twin(json!({"fresh": true}));
        })
        .await;
    rig.register("d", &key).await.expect("assigned");
    rig.own().set_desired("d", json!({"worn": 1}));
    let again = rig.register("d", &key).await.expect("assigned");
    assert_eq!(again.substatus, Some(Substatus::DeviceDataReset));
    assert_eq!(rig.own().twin_of("d")["desired"], json!({"fresh": true}));
}

#[tokio::test]
async fn the_nearest_hub_and_the_one_hub() {
    let rig = Rig::start().await;
    rig.link("far.test").await;
    let key = rig
        .enroll("d", |spec| {
            spec.enrollment.allocation = Some(AllocationPolicy::GeoLatency)
        })
        .await;
    assert_eq!(
        rig.register("d", &key).await.expect("assigned").hub.as_deref(),
        Some(HOST)
    );
    let one = |spec: &mut holdfast_provisioning::IndividualSpec| {
        spec.enrollment.allocation = Some(AllocationPolicy::Static);
        spec.enrollment.hub_host_name = Some("far.test".into());
    };
    let key = rig.enroll("s", one).await;
    assert_eq!(
        rig.register("s", &key).await.expect("assigned").hub.as_deref(),
        Some("far.test")
    );
    rig.engine.delete_linked_hub("FAR.test").await.expect("linked");
    rig.engine
        .delete_registration("s", Expected::Whatever)
        .await
        .expect("there");
    let failed = rig.register("s", &key).await.expect("an answer");
    assert_eq!(
        (failed.status, failed.failure.expect("a failure").0),
        (Status::Failed, 400_208)
    );
}

#[tokio::test]
async fn a_webhook_chooses() {
    let rig = Rig::start().await;
    rig.link("a.test").await;
    let custom = |spec: &mut holdfast_provisioning::IndividualSpec| {
        spec.enrollment.allocation = Some(AllocationPolicy::Custom);
        spec.enrollment.custom = Some(CustomAllocation {
            webhook_url: "https://hook.test/x?code=1".into(),
            api_version: "2021-10-01".into(),
        });
    };
    let key = rig.enroll("d", custom).await;
    let answer = json!({"iotHubHostName": "A.test", "payload": {"hello": 1},
        "initialTwin": {"tags": {"t": 1}, "properties": {"desired": {"x": 2}}}});
    *rig.webhook.answer.lock() = Some((200, answer.to_string()));
    let registrant = rig.prove_key("d", &key).await.expect("in");
    let done = rig
        .engine
        .register(&registrant, Some(json!({"model": "m"})))
        .await;
    let done = done.expect("assigned");
    assert_eq!(
        (done.hub.as_deref(), done.payload.clone()),
        (Some("a.test"), Some(json!({"hello": 1})))
    );
    assert_eq!(
        rig.hubs.of("a.test").twin_of("d"),
        json!({"tags": {"t": 1}, "desired": {"x": 2}})
    );
    let asked = rig.webhook.asked.lock().remove(0);
    assert_eq!(asked["deviceRuntimeContext"]["payload"], json!({"model": "m"}));
    assert_eq!(asked["deviceRuntimeContext"]["registrationId"], "d");
    assert_eq!(
        asked["individualEnrollment"]["attestation"],
        json!({"type": "symmetricKey"})
    );
    assert_eq!(asked["linkedHubs"], json!([HOST, "a.test"]));
    assert!(!asked.to_string().contains(key.reveal()));
    for (answer, number) in [
        (None, 400_207),
        (Some((500, String::new())), 400_207),
        (Some((200, "nonsense".into())), 400_207),
        (
            Some((200, r#"{"iotHubHostName":"stranger.test"}"#.into())),
            400_208,
        ),
        (
            Some((
                200,
                r#"{"iotHubHostName":"a.test","initialTwin":{"tags":3}}"#.into(),
            )),
            400_207,
        ),
    ] {
        *rig.webhook.answer.lock() = answer.clone();
        let failed = rig.register("d", &key).await.expect("an answer");
        assert_eq!(failed.status, Status::Failed, "{answer:?}");
        assert_eq!(failed.failure.expect("a failure").0, number, "{answer:?}");
    }
    let asked = rig.webhook.asked.lock().pop().expect("asked");
    assert_eq!(asked["deviceRuntimeContext"]["currentIotHubHostName"], "a.test");
}

#[tokio::test]
async fn retries_join_the_registration_under_way() {
    let rig = Rig::start().await;
    let key = rig.enroll("d", |_| {}).await;
    let own = rig.own();
    let held = own.gate.acquire_many(1_000).await.expect("open");
    let registrant = Arc::new(rig.prove_key("d", &key).await.expect("in"));
    let first = rig.engine.register(&registrant, None).await.expect("an answer");
    let second = rig.engine.register(&registrant, None).await.expect("an answer");
    assert_eq!(
        (first.status, second.status),
        (Status::Assigning, Status::Assigning)
    );
    assert_eq!(first.operation_id, second.operation_id);
    let polled = rig.engine.operation(&registrant, &first.operation_id).await;
    assert_eq!(polled.expect("an answer").status, Status::Assigning);
    drop(held);
    let polled = rig.engine.operation(&registrant, &first.operation_id).await;
    assert_eq!(polled.expect("an answer").status, Status::Assigned);
    assert_eq!(*own.created.lock(), 1);
    let stranger = rig
        .engine
        .operation(&registrant, "4.0.x")
        .await
        .expect_err("unknown");
    assert_eq!(stranger.code, ErrorCode::AsyncOperationNotFound);
}

/// Goal: killed between any two steps, a device ends on one hub, the one that was decided first. Method: the hub breaks
/// off the work after the plan is stored, the engine starts anew, and the webhook would now choose another hub.
#[tokio::test]
async fn a_cut_registration_goes_on_as_planned() {
    let mut rig = Rig::start().await;
    rig.link("a.test").await;
    rig.link("b.test").await;
    let key = rig
        .enroll("d", |spec| {
            spec.enrollment.allocation = Some(AllocationPolicy::Custom);
            spec.enrollment.custom = Some(CustomAllocation {
                webhook_url: "http://hook.test".into(),
                api_version: "2021-10-01".into(),
            });
        })
        .await;
    *rig.webhook.answer.lock() = Some((200, r#"{"iotHubHostName":"a.test"}"#.into()));
    *rig.hubs.of("a.test").failure.lock() = Some(unavailable());
    let cut = rig.register("d", &key).await.expect_err("it may be tried again");
    assert_eq!(cut.code, ErrorCode::ServiceUnavailable);
    rig.restart().await;
    *rig.webhook.answer.lock() = Some((200, r#"{"iotHubHostName":"b.test"}"#.into()));
    *rig.hubs.of("a.test").failure.lock() = None;
    let stored = rig.stored("d").await.expect("the plan");
    assert_eq!(stored.status, Status::Assigning);
    // The device polls the operation it knows.
    let registrant = rig.prove_key("d", &key).await.expect("in");
    let done = rig.engine.operation(&registrant, &stored.operation_id).await;
    let done = done.expect("an answer");
    assert_eq!(
        (done.status, done.hub.as_deref()),
        (Status::Assigned, Some("a.test"))
    );
    assert!(rig.hubs.of("b.test").devices.lock().is_empty());
    // A move that is cut after the new hub has the device keeps its twin.
    rig.hubs.of("a.test").set_desired("d", json!({"worn": 1}));
    *rig.hubs.of("b.test").failure.lock() = Some(unavailable());
    rig.register("d", &key).await.expect_err("cut before the new hub");
    rig.restart().await;
    *rig.hubs.of("b.test").failure.lock() = None;
    let done = rig.register("d", &key).await.expect("assigned");
    assert_eq!(
        (done.hub.as_deref(), done.substatus),
        (Some("b.test"), Some(Substatus::DeviceDataMigrated))
    );
    assert_eq!(rig.hubs.of("b.test").twin_of("d")["desired"], json!({"worn": 1}));
    assert!(rig.hubs.of("a.test").devices.lock().is_empty());
}

#[tokio::test]
async fn a_hub_that_refuses_fails_the_registration() {
    let rig = Rig::start().await;
    let key = rig.enroll("d", |_| {}).await;
    *rig.own().failure.lock() = Some(Error::new(ErrorCode::TooManyDevices, "full"));
    let failed = rig.register("d", &key).await.expect("an answer");
    assert_eq!(failed.status, Status::Failed);
    assert_eq!(
        rig.stored("d").await.map(|stored| stored.status),
        Some(Status::Failed)
    );
    *rig.own().failure.lock() = None;
    assert_eq!(
        rig.register("d", &key).await.expect("an answer").status,
        Status::Assigned
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_devices_register_once_each() {
    let rig = Arc::new(Rig::start().await);
    let group = rig.group("crew", |_| {}).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200 {
        for _ in 0..3 {
            let (rig, group) = (Arc::clone(&rig), group.clone());
            tasks.spawn(async move {
                let id = format!("d{n}");
                let done = rig.register(&id, &group.derive(&id)).await.expect("assigned");
                assert_eq!(done.status, Status::Assigned);
            });
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no panic");
    }
    let own = rig.own();
    assert_eq!((own.devices.lock().len(), *own.created.lock()), (200, 200));
}

#[tokio::test]
async fn entries_are_checked_and_kept() {
    let rig = Rig::start().await;
    let engine = &rig.engine;
    let mut spec = by_key();
    spec.initial_twin = twin(json!({"a.b": 1}));
    let bad = engine
        .put_group("g", spec, Expected::Whatever)
        .await
        .expect_err("a bad key");
    assert_eq!(bad.code, ErrorCode::ArgumentInvalid);
    let bad = engine
        .put_group("g.", by_key(), Expected::Whatever)
        .await
        .expect_err("a bad id");
    assert_eq!(bad.code, ErrorCode::InvalidEnrollmentGroupId);
    let mut spec = by_key();
    spec.allocation = Some(AllocationPolicy::Static);
    engine
        .put_group("g", spec, Expected::Whatever)
        .await
        .expect_err("no hub named");
    let made = engine
        .put_group("g", by_key(), Expected::Absent)
        .await
        .expect("new");
    let exists = engine
        .put_group("G", by_key(), Expected::Absent)
        .await
        .expect_err("it is there");
    assert_eq!(exists.code, ErrorCode::EnrollmentGroupConflict);
    let version = made.enrollment.version;
    let mut spec = by_key();
    spec.enabled = false;
    let updated = engine
        .put_group("g", spec, Expected::Version(version))
        .await
        .expect("it matches");
    assert_eq!(
        updated.enrollment.attestation, made.enrollment.attestation,
        "keys stay"
    );
    let stale = engine
        .put_group("g", by_key(), Expected::Version(version))
        .await
        .expect_err("stale");
    assert_eq!(stale.code, ErrorCode::PreconditionFailed);
    engine.delete_group("G", Expected::Present).await.expect("there");
    let gone = engine.group("g").await.expect_err("gone");
    assert_eq!(gone.code, ErrorCode::EnrollmentGroupNotFound);
}
