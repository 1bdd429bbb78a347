//! The examples of languages.md 2.8 and 3.3, and what bodies and properties may do to them.

use holdfast_model::event::{AuthMethod, EndpointSet, EventBlock, EventSource, Origin, Records};
use holdfast_model::message::SystemProperty;
use holdfast_model::registry::{Authentication, IdentityRecord, Status};
use holdfast_model::twin::Twin;
use holdfast_model::{Identity, Timestamp};
use serde_json::{Value, json};

use super::*;

fn block(
    source: EventSource,
    auth: AuthMethod,
    identity: &str,
    fill: impl FnOnce(&mut Records),
) -> EventBlock {
    let origin = Origin {
        source,
        identity: Identity::parse(identity).unwrap(),
        generation_id: 637,
        auth,
    };
    let mut records = Records::new();
    fill(&mut records);
    let mut data = Vec::new();
    origin.encode(EndpointSet::of(3), &mut data);
    data.extend_from_slice(records.as_bytes());
    EventBlock {
        partition: 2,
        first_sequence_number: 9,
        count: records.count(),
        enqueued_at: Timestamp::parse("2019-09-26T17:46:09.887Z").unwrap(),
        data: data.into(),
    }
}

fn telemetry(content: Option<(&str, &str)>, properties: &[(&str, Option<&str>)], body: &[u8]) -> EventBlock {
    block(EventSource::Telemetry, AuthMethod::IdentityKey, "d", |records| {
        let mut record = records.record();
        if let Some((content_type, encoding)) = content {
            record.system(SystemProperty::ContentType, content_type);
            record.system(SystemProperty::ContentEncoding, encoding);
        }
        for (key, value) in properties {
            record.property(key, *value);
        }
        let _ = record.finish(body);
    })
}

const JSON: Option<(&str, &str)> = Some(("application/json", "utf-8"));

fn written(
    block: &EventBlock,
    enrichments: &[(&str, String)],
    write: impl Fn(Routed<'_>, &mut Vec<u8>),
) -> Value {
    let event = block.events().next().unwrap().unwrap();
    let routed = Routed {
        event: &event,
        enrichments,
    };
    let mut out = b"before".to_vec();
    write(routed, &mut out);
    let text = std::str::from_utf8(&out).unwrap().strip_prefix("before").unwrap();
    assert!(!text.contains('\n'), "{text}");
    serde_json::from_str(text).unwrap()
}

fn stored(block: &EventBlock, enrichments: &[(&str, String)]) -> Value {
    written(block, enrichments, storage::write)
}

fn grid(block: &EventBlock) -> Value {
    written(block, &[], |event, out| {
        event_grid::write(event, &event_grid::topic("hub1"), "hub1", out)
    })
}

fn cloud(block: &EventBlock) -> Value {
    written(block, &[], |event, out| {
        cloud_events::write(event, "/hub1", "hub1", out)
    })
}

#[test]
fn the_storage_record_of_the_contract() {
    let block = telemetry(JSON, &[("a", Some("1"))], b"{\"t\": 21.50}");
    let auth = r#"{"scope":"device","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}"#;
    assert_eq!(
        stored(&block, &[]),
        json!({
            "EnqueuedTimeUtc": "2019-09-26T17:46:09.8870000Z",
            "Properties": {"a": "1"},
            "SystemProperties": {
                "connectionDeviceId": "d", "connectionAuthMethod": auth, "connectionDeviceGenerationId": "637",
                "contentType": "application/json", "contentEncoding": "utf-8",
                "enqueuedTime": "2019-09-26T17:46:09.8870000Z",
            },
            "Body": {"t": 21.50},
        })
    );
}

#[test]
fn bodies_are_inline_only_when_they_say_and_are_json() {
    let body = |content, body: &[u8]| stored(&telemetry(content, &[], body), &[])["Body"].clone();
    assert_eq!(body(JSON, b"[1,\n 2]"), json!([1, 2]));
    assert_eq!(
        body(Some(("Application/JSON; charset=utf-8", "UTF-8")), b"1"),
        json!(1)
    );
    assert_eq!(
        body(Some(("application/json-patch+json", "utf-8")), b"[]"),
        json!([])
    );
    assert_eq!(body(None, b"{}"), json!("e30="));
    assert_eq!(body(Some(("application/json", "utf-16")), b"{}"), json!("e30="));
    assert_eq!(body(JSON, b"{"), json!("ew=="));
    assert_eq!(body(JSON, &[0xff]), json!("/w=="));
    assert_eq!(body(JSON, b""), json!(""));
    let deep = "[".repeat(10_000) + &"]".repeat(10_000);
    assert!(body(JSON, deep.as_bytes()).is_string());
}

#[test]
fn each_property_stands_once_and_enrichments_win() {
    let twice = [("a", Some("1")), ("b", None), ("a", Some("2"))];
    let block = telemetry(None, &twice, b"");
    assert_eq!(stored(&block, &[])["Properties"], json!({"a": "2", "b": null}));
    let added = [("a", "3".to_owned()), ("c", "4".to_owned())];
    assert_eq!(
        stored(&block, &added)["Properties"],
        json!({"a": "3", "b": null, "c": "4"})
    );
    let names: Vec<String> = (0..40).map(|number| format!("k{}", number % 20)).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), Some("x"))).collect();
    assert_eq!(
        stored(&telemetry(None, &many, b""), &added)["Properties"]
            .as_object()
            .unwrap()
            .len(),
        22
    );
}

#[test]
fn telemetry_in_the_event_grid_schema() {
    let value = grid(&telemetry(JSON, &[("a", Some("1"))], b"{\"t\":1}"));
    assert_eq!(value["eventType"], "Microsoft.Devices.DeviceTelemetry");
    assert_eq!(value["subject"], "devices/d");
    assert_eq!(
        (&value["dataVersion"], &value["metadataVersion"]),
        (&json!(""), &json!("1"))
    );
    assert!(
        value["topic"]
            .as_str()
            .unwrap()
            .ends_with("/PROVIDERS/MICROSOFT.DEVICES/IOTHUBS/HUB1")
    );
    let data = &value["data"];
    assert_eq!(
        (&data["properties"], &data["body"]),
        (&json!({"a": "1"}), &json!({"t": 1}))
    );
    let system = &data["systemProperties"];
    assert_eq!(system["iothub-content-type"], "application/json");
    assert_eq!(system["iothub-connection-device-id"], "d");
    assert_eq!(system["iothub-connection-auth-generation-id"], "637");
    assert_eq!(system["iothub-enqueuedtime"], "2019-09-26T17:46:09.8870000Z");
    assert_eq!(system["iothub-message-source"], "Telemetry");
}

fn hub_event(source: EventSource, operation: &str, identity: &str, body: &str) -> EventBlock {
    block(source, AuthMethod::Hub, identity, |records| {
        let mut record = records.record();
        record.system(SystemProperty::ContentType, "application/json");
        record.system(SystemProperty::ContentEncoding, "utf-8");
        record.property("opType", Some(operation));
        let _ = record.finish(body.as_bytes());
    })
}

#[test]
fn events_of_the_hub_in_the_event_grid_schema() {
    let lifecycle = |operation| {
        hub_event(
            EventSource::DeviceLifecycle,
            operation,
            "d",
            r#"{"deviceId":"d","version":2}"#,
        )
    };
    let created = grid(&lifecycle("createDeviceIdentity"));
    assert_eq!(created["eventType"], "Microsoft.Devices.DeviceCreated");
    assert_eq!(
        created["data"],
        json!({"twin": {"deviceId": "d", "version": 2}, "hubName": "hub1", "deviceId": "d"})
    );
    assert_eq!(created["dataVersion"], "1");
    assert_eq!(
        grid(&lifecycle("deleteDeviceIdentity"))["eventType"],
        "Microsoft.Devices.DeviceDeleted"
    );
    let connection = |operation| {
        hub_event(
            EventSource::ConnectionState,
            operation,
            "d/m",
            r#"{"sequenceNumber":"07"}"#,
        )
    };
    let gone = grid(&connection("deviceDisconnected"));
    assert_eq!(gone["eventType"], "Microsoft.Devices.DeviceDisconnected");
    assert_eq!(gone["subject"], "devices/d/modules/m");
    let info = json!({"sequenceNumber": "07"});
    assert_eq!(
        gone["data"],
        json!({"deviceConnectionStateEventInfo": info, "hubName": "hub1", "deviceId": "d", "moduleId": "m"})
    );
    assert_eq!(
        grid(&connection("deviceConnected"))["eventType"],
        "Microsoft.Devices.DeviceConnected"
    );
    let twin = hub_event(EventSource::TwinChange, "updateTwin", "d", r#"{"version":7}"#);
    assert_eq!(grid(&twin)["eventType"], "Holdfast.Devices.TwinChanged");
    assert_eq!(grid(&twin)["data"]["body"], json!({"version": 7}));
}

/// All members of `data.twin` that languages.md 3.3 names.
#[test]
fn a_created_device_comes_with_its_whole_twin() {
    let record = IdentityRecord {
        identity: Identity::parse("d").unwrap(),
        generation_id: 1,
        version: 1,
        status: Status::Disabled,
        status_reason: None,
        status_updated_at: Timestamp::NEVER,
        authentication: Authentication::CertificateAuthority,
        iot_edge: false,
        device_scope: None,
        parent_scopes: Vec::new(),
        managed_by: None,
        connected: false,
        connection_updated_at: Timestamp::NEVER,
        last_activity_at: Timestamp::NEVER,
    };
    let body = crate::hub_event::identity(&record, &Twin::new(Timestamp::NEVER)).to_string();
    let event = hub_event(EventSource::DeviceLifecycle, "createDeviceIdentity", "d", &body);
    let twin = grid(&event)["data"]["twin"].clone();
    let mut names: Vec<&String> = twin.as_object().unwrap().keys().collect();
    names.sort();
    assert_eq!(
        names,
        [
            "authenticationType",
            "cloudToDeviceMessageCount",
            "connectionState",
            "deviceEtag",
            "deviceId",
            "etag",
            "lastActivityTime",
            "properties",
            "status",
            "statusUpdateTime",
            "version",
            "x509Thumbprint",
        ]
    );
    assert_eq!(
        (&twin["status"], &twin["connectionState"]),
        (&json!("disabled"), &json!("Disconnected"))
    );
}

#[test]
fn jobs_are_no_devices() {
    let job = block(EventSource::JobLifecycle, AuthMethod::Hub, "j-1", |records| {
        let mut record = records.record();
        record.property("jobId", Some("j~1"));
        let _ = record.finish(b"{}");
    });
    let event = grid(&job);
    assert_eq!(
        (&event["subject"], &event["eventType"]),
        (&json!("jobs/j~1"), &json!("Holdfast.Devices.JobChanged"))
    );
    let system = event["data"]["systemProperties"].as_object().unwrap();
    assert!(
        system.keys().all(|name| !name.starts_with("iothub-connection")),
        "{system:?}"
    );
    let event = job.events().next().unwrap().unwrap();
    let stored = storage::system_properties(Routed {
        event: &event,
        enrichments: &[],
    });
    assert!(
        stored.iter().all(|(name, _)| !name.starts_with("connection")),
        "{stored:?}"
    );
    let shown = crate::event_json::EventJson(&event).text();
    assert!(
        !shown.contains("deviceId") && !shown.contains("Generation"),
        "{shown}"
    );
}

#[test]
fn cloud_events_carry_the_same_data() {
    let block = telemetry(JSON, &[], b"1");
    let value = cloud(&block);
    assert_eq!(value["specversion"], "1.0");
    assert_eq!(
        (&value["source"], &value["subject"]),
        (&json!("/hub1"), &json!("devices/d"))
    );
    assert_eq!(value["type"], "Microsoft.Devices.DeviceTelemetry");
    assert_eq!(value["time"], "2019-09-26T17:46:09.8870000Z");
    assert_eq!(value["data"], grid(&block)["data"]);
    assert_eq!(value["id"], grid(&block)["id"]);
}

#[test]
fn the_handshake_repeats_the_code() {
    let bytes = event_grid::validation("/t", "1", "code-7", Timestamp::from_seconds(0));
    let value: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(value[0]["eventType"], event_grid::VALIDATION_TYPE);
    assert_eq!(value[0]["data"]["validationCode"], "code-7");
    assert_eq!(value[0]["eventTime"], "1970-01-01T00:00:00.0000000Z");
    assert!(event_grid::is_validated(
        br#"{"validationResponse":"code-7"}"#,
        "code-7"
    ));
    for wrong in [&br#"{"validationResponse":"code-8"}"#[..], b"{}", b"code-7", b""] {
        assert!(!event_grid::is_validated(wrong, "code-7"));
    }
}
