//! Bulk registry operations (rest.md 5.4).

use holdfast_hub::{BulkEntry, IdentitySpec, IfMatch, ImportMode};
use holdfast_model::ErrorCode;
use holdfast_model::registry::Status;
use holdfast_model::twin::TwinChange;
use serde_json::json;

use crate::harness::*;

fn entry(id: &str, mode: ImportMode) -> BulkEntry {
    let (device_id, module_id) = match id.split_once('/') {
        None => (id, None),
        Some((device_id, module_id)) => (device_id, Some(module_id.to_owned())),
    };
    BulkEntry {
        device_id: device_id.to_owned(),
        module_id,
        mode,
        ..BulkEntry::default()
    }
}

fn disabled(mut entry: BulkEntry) -> BulkEntry {
    entry.spec = IdentitySpec {
        status: Status::Disabled,
        ..IdentitySpec::default()
    };
    entry
}

fn matching(mut entry: BulkEntry, if_match: IfMatch) -> BulkEntry {
    entry.if_match = if_match;
    entry.twin_if_match = if_match;
    entry
}

fn tagged(mut entry: BulkEntry, site: &str) -> BulkEntry {
    entry.twin = TwinChange {
        tags: Some(json(json!({ "site": site }))),
        desired: Some(json(json!({"rate": 1}))),
    };
    entry
}

/// Runs the entries; answers the codes of the failures by id.
async fn run(test: &TestHub, entries: Vec<BulkEntry>) -> Vec<(String, ErrorCode)> {
    let failures = test.hub.bulk(&OWNER, entries).await.expect("a valid request");
    failures
        .into_iter()
        .map(|failure| (failure.device_id, failure.error.code))
        .collect()
}

#[tokio::test]
async fn good_entries_are_done_and_bad_ones_named() {
    let test = TestHub::new().await;
    test.create("old").await;
    let failures = run(
        &test,
        vec![
            // Modules may stand before their device.
            entry("new/m1", ImportMode::Create),
            tagged(entry("new", ImportMode::Create), "north"),
            entry("old", ImportMode::Create),
            entry("bad id", ImportMode::Create),
            entry("gone", ImportMode::Delete),
            disabled(entry("ghost", ImportMode::Update)),
        ],
    )
    .await;
    assert_eq!(
        failures,
        [
            ("old".to_owned(), ErrorCode::DeviceAlreadyExists),
            ("bad id".to_owned(), ErrorCode::ArgumentInvalid),
            ("gone".to_owned(), ErrorCode::DeviceNotFound),
            ("ghost".to_owned(), ErrorCode::DeviceNotFound),
        ]
    );
    test.record("new/m1").await;
    let twin = test.hub.twin(&identity("new")).await.expect("a twin");
    assert_eq!(twin.tags["site"], "north");
    assert_eq!(twin.desired.properties["rate"], 1);
    assert_eq!(
        (twin.version, twin.desired.version),
        (1, 1),
        "its first content is version 1"
    );
}

#[tokio::test]
async fn create_or_update_does_either() {
    let test = TestHub::new().await;
    for (status, site, version) in [(Status::Enabled, "north", 1), (Status::Disabled, "south", 2)] {
        let mut entry = tagged(entry("d1", ImportMode::CreateOrUpdate), site);
        entry.spec.status = status;
        assert_eq!(run(&test, vec![entry]).await, []);
        let record = test.record("d1").await;
        assert_eq!((record.status, record.version), (status, version));
        let twin = test.hub.twin(&identity("d1")).await.expect("a twin");
        assert_eq!(twin.tags["site"], site);
    }
}

#[tokio::test]
async fn tags_are_checked_where_the_mode_says_so() {
    let test = TestHub::new().await;
    test.create("d1").await;
    for mode in [
        ImportMode::UpdateIfMatchETag,
        ImportMode::DeleteIfMatchETag,
        ImportMode::UpdateTwinIfMatchETag,
    ] {
        for (if_match, expected) in [
            (IfMatch::Absent, ErrorCode::ArgumentInvalid),
            (IfMatch::Version(9), ErrorCode::PreconditionFailed),
            (IfMatch::Never, ErrorCode::PreconditionFailed),
        ] {
            let entry = tagged(matching(entry("d1", mode), if_match), "north");
            assert_eq!(
                run(&test, vec![entry]).await,
                [("d1".to_owned(), expected)],
                "{mode:?}"
            );
        }
    }
    let stale = matching(
        entry("d1", ImportMode::CreateOrUpdateIfMatchETag),
        IfMatch::Version(9),
    );
    assert_eq!(
        run(&test, vec![stale]).await,
        [("d1".to_owned(), ErrorCode::PreconditionFailed)]
    );
    let exists = matching(
        entry("d1", ImportMode::CreateOrUpdateIfMatchETag),
        IfMatch::Absent,
    );
    assert_eq!(
        run(&test, vec![exists]).await,
        [("d1".to_owned(), ErrorCode::DeviceAlreadyExists)]
    );
    let good = [
        disabled(matching(
            entry("d1", ImportMode::UpdateIfMatchETag),
            IfMatch::Version(1),
        )),
        tagged(
            matching(
                entry("d1", ImportMode::UpdateTwinIfMatchETag),
                IfMatch::Version(1),
            ),
            "north",
        ),
        tagged(entry("d1", ImportMode::UpdateTwin), "south"),
        matching(entry("d1", ImportMode::DeleteIfMatchETag), IfMatch::Version(2)),
    ];
    for entry in good {
        assert_eq!(run(&test, vec![entry]).await, []);
    }
    assert!(test.hub.identity(&identity("d1")).await.is_err());
}

#[tokio::test]
async fn whole_requests_can_be_refused() {
    let test = TestHub::new().await;
    let many = |count| -> Vec<BulkEntry> {
        (0..count)
            .map(|index| entry(&format!("d{index}"), ImportMode::Create))
            .collect()
    };
    let refused = test.hub.bulk(&OWNER, many(101)).await.expect_err("too many");
    assert_eq!(refused.code, ErrorCode::ArgumentInvalid);
    let mut twice = many(3);
    twice.push(entry("d1", ImportMode::Delete));
    let refused = test.hub.bulk(&OWNER, twice).await.expect_err("twice");
    assert_eq!(refused.code, ErrorCode::DeviceDefinedMultipleTimes);
    assert_eq!(test.hub.registry_statistics().await.expect("counts").total, 0);
    assert_eq!(run(&test, many(100)).await, []);
    assert_eq!(test.hub.registry_statistics().await.expect("counts").total, 100);
}

#[test]
fn modes_are_spelt_as_on_the_wire() {
    for text in ["createOrUpdate", "UPDATE", "deleteIfMatchETag", "updateTwin"] {
        let mode = ImportMode::parse(text).expect("a mode");
        assert!(mode.as_str().eq_ignore_ascii_case(text));
    }
    assert_eq!(ImportMode::parse("replace"), None);
}
