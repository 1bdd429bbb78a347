//! Twins through the engine: preconditions, protection, what devices are told (rest.md section 6).

use std::sync::Arc;

use holdfast_hub::{IdentitySpec, IfMatch, ServiceCaller};
use holdfast_model::ErrorCode;
use holdfast_model::policy::Rights;
use holdfast_model::subscription::Channel;
use holdfast_model::twin::{ChangeMode, TwinChange};
use holdfast_ports::gateway::DeviceGateway as _;
use serde_json::{Value, json};

use crate::harness::*;

fn service() -> ServiceCaller {
    ServiceCaller::Policy {
        name: "service".to_owned(),
        rights: Rights::SERVICE_CONNECT,
    }
}

fn desired_change(value: Value) -> TwinChange {
    TwinChange {
        tags: None,
        desired: Some(json(value)),
    }
}

impl TestHub {
    async fn patch(&self, id: &str, desired: Value) -> u64 {
        self.hub
            .change_twin(
                &service(),
                &identity(id),
                ChangeMode::Patch,
                desired_change(desired),
                IfMatch::Absent,
            )
            .await
            .expect("a valid patch")
            .desired
            .version
    }
}

#[tokio::test]
async fn changes_meet_their_precondition() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let d1 = identity("d1");
    let change = |if_match| {
        let test = &test;
        let d1 = &d1;
        async move {
            test.hub
                .change_twin(
                    &service(),
                    d1,
                    ChangeMode::Patch,
                    desired_change(json!({"a": 1})),
                    if_match,
                )
                .await
                .map(|twin| twin.version)
                .map_err(|error| error.code)
        }
    };
    assert_eq!(change(IfMatch::Version(1)).await, Ok(2));
    assert_eq!(
        change(IfMatch::Version(1)).await,
        Err(ErrorCode::PreconditionFailed)
    );
    assert_eq!(change(IfMatch::Never).await, Err(ErrorCode::PreconditionFailed));
    assert_eq!(change(IfMatch::Any).await, Ok(3));
    assert_eq!(change(IfMatch::Absent).await, Ok(4));
    // What the device reports does not touch the tag.
    test.hub
        .patch_reported(&d1, b"{\"r\":1}", None)
        .await
        .expect("valid");
    assert_eq!(change(IfMatch::Version(4)).await, Ok(5));
}

#[tokio::test]
async fn unknown_identities_and_bad_content() {
    let test = TestHub::new().await;
    test.create_with(
        "e1",
        &IdentitySpec {
            iot_edge: true,
            ..IdentitySpec::default()
        },
    )
    .await;
    for (id, change, expected) in [
        ("ghost", json!({"a": 1}), ErrorCode::DeviceNotFound),
        ("e1/ghost", json!({"a": 1}), ErrorCode::ModuleNotFound),
        ("e1", json!({"a.b": 1}), ErrorCode::ArgumentInvalid),
        (
            "e1/$edgeHub",
            json!({"a": 1}),
            ErrorCode::SystemModuleModifyUnauthorizedAccess,
        ),
        (
            "e1/$edgeAgent",
            json!({"a": 1}),
            ErrorCode::SystemModuleModifyUnauthorizedAccess,
        ),
    ] {
        for mode in [ChangeMode::Patch, ChangeMode::Replace] {
            let result = test
                .hub
                .change_twin(
                    &service(),
                    &identity(id),
                    mode,
                    desired_change(change.clone()),
                    IfMatch::Absent,
                )
                .await;
            assert_eq!(result.expect_err("refused").code, expected, "{id}");
        }
    }
    // Reading them is fine, and they report like any module.
    test.hub.twin(&identity("e1/$edgeHub")).await.expect("a twin");
    test.hub
        .patch_reported(&identity("e1/$edgeHub"), b"{\"a\":1}", None)
        .await
        .expect("valid");
}

#[tokio::test]
async fn subscribed_devices_are_told() {
    let test = TestHub::new().await;
    test.create("d1").await;
    test.create("d2").await;
    let subscribed = test.online("d1", &[Channel::DesiredProperties]).await;
    let other = test.online("d2", &[Channel::Methods]).await;
    assert_eq!(
        test.patch("d1", json!({"a": {"x": 1}, "b": 1, "$version": 5}))
            .await,
        2
    );
    assert_eq!(test.patch("d1", json!({"b": null})).await, 3);
    test.patch("d2", json!({"a": 1})).await;
    assert_eq!(
        desired(&subscribed),
        [
            (2, json!({"a": {"x": 1}, "b": 1, "$version": 2})),
            (3, json!({"b": null, "$version": 3})),
        ]
    );
    assert_eq!(desired(&other), []);

    // A replacement tells the whole content, and null for what is gone.
    test.hub
        .change_twin(
            &service(),
            &identity("d1"),
            ChangeMode::Replace,
            desired_change(json!({"c": true})),
            IfMatch::Any,
        )
        .await
        .expect("valid");
    assert_eq!(
        desired(&subscribed),
        [(4, json!({"a": null, "c": true, "$version": 4}))]
    );

    // Tags, empty patches and refused changes are nobody's business.
    let tags = TwinChange {
        tags: Some(json(json!({"site": 1}))),
        desired: Some(json(json!({}))),
    };
    test.hub
        .change_twin(&service(), &identity("d1"), ChangeMode::Patch, tags, IfMatch::Any)
        .await
        .expect("valid");
    let refused = test
        .hub
        .change_twin(
            &service(),
            &identity("d1"),
            ChangeMode::Patch,
            desired_change(json!({"c": 1})),
            IfMatch::Never,
        )
        .await;
    assert!(refused.is_err());
    assert_eq!(desired(&subscribed), []);
    assert_eq!(test.patch("d1", json!({"d": 1})).await, 5);
    assert_eq!(desired(&subscribed).len(), 1, "a refused change holds nothing up");
}

#[tokio::test]
async fn a_full_mailbox_loses_the_hint_and_not_the_state() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let session = test.online("d1", &[Channel::DesiredProperties]).await;
    for value in 0..70 {
        test.patch("d1", json!({ "n": value })).await;
    }
    assert_eq!(test.metrics.downlinks_dropped.get(), 6);
    assert_eq!(desired(&session).len(), 64);
    let twin = test.hub.device_twin(&identity("d1")).await.expect("a twin");
    let twin: Value = serde_json::from_slice(&twin).expect("JSON");
    assert_eq!(twin["desired"], json!({"n": 69, "$version": 71}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_at_once_arrive_in_the_order_of_their_versions() {
    let test = Arc::new(TestHub::new().await);
    test.create("d1").await;
    let session = test.online("d1", &[Channel::DesiredProperties]).await;
    let mut device = json!({});
    for round in 0..20 {
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let test = Arc::clone(&test);
                tokio::spawn(async move { test.patch("d1", json!({"value": round * 8 + writer})).await })
            })
            .collect();
        for writer in writers {
            writer.await.expect("no panic");
        }
        let told = desired(&session);
        assert!(told.is_sorted_by_key(|(version, _)| *version), "{told:?}");
        assert_eq!(told.len(), 8);
        device["value"] = told[7].1["value"].clone();
    }
    let twin = test.hub.twin(&identity("d1")).await.expect("a twin");
    assert_eq!(twin.desired.properties["value"], device["value"]);
}

#[tokio::test]
async fn devices_report() {
    let test = TestHub::new().await;
    test.create("d1").await;
    let d1 = identity("d1");
    let report = |patch: &'static [u8], expected| {
        let test = &test;
        let d1 = &d1;
        async move {
            test.hub
                .patch_reported(d1, patch, expected)
                .await
                .map_err(|error| error.code)
        }
    };
    assert_eq!(report(b"{\"t\":21.5,\"gone\":null}", None).await, Ok(2));
    assert_eq!(report(b"{\"t\":22}", Some(2)).await, Ok(3));
    assert_eq!(
        report(b"{\"t\":23}", Some(2)).await,
        Err(ErrorCode::ArgumentInvalid)
    );
    assert_eq!(report(b"{\"$version\":3}", None).await, Ok(3), "nothing in it");
    for bad in [
        &b"[]"[..],
        b"",
        b" ",
        b"{",
        b"{\"a\":[null]}",
        b"null",
        b"{\"a\":\"\xff\"}",
    ] {
        assert_eq!(report(bad, None).await, Err(ErrorCode::ArgumentInvalid));
    }
    let twin: Value =
        serde_json::from_slice(&test.hub.device_twin(&d1).await.expect("a twin")).expect("JSON");
    assert_eq!(
        twin,
        json!({"desired": {"$version": 1}, "reported": {"t": 22, "$version": 3}})
    );
    let missing = test.hub.device_twin(&identity("ghost")).await;
    assert_eq!(missing.expect_err("no twin").code, ErrorCode::DeviceNotFound);
    test.store.set_unavailable(true);
    assert_eq!(report(b"{}", None).await, Err(ErrorCode::ServiceUnavailable));
}
