use holdfast_model::event::{AuthMethod, EndpointSet, EventBlock, EventField, Origin};
use holdfast_model::registry::{Authentication, Status};
use holdfast_model::twin::{ChangeMode, TwinChange};

use super::*;

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(1_654_122_470_251_258 + micros)
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().expect("an object")
}

fn change(twin: &Twin, tags: Option<Value>, desired: Option<Value>) -> Twin {
    let mut after = twin.clone();
    let change = TwinChange {
        tags: tags.map(object),
        desired: desired.map(object),
    };
    after.apply(ChangeMode::Patch, &change, at(7)).expect("good");
    after
}

#[test]
fn an_update_tells_what_changed_with_its_metadata() {
    let start = Twin::new(at(0));
    let tags = json!({"tag1": "old", "kept": 1, "gone": 1});
    let first = change(
        &start,
        Some(tags),
        Some(json!({"property1": "old", "kept": 1, "o": {"a": 1, "b": 2}})),
    );
    let after = change(
        &first,
        Some(json!({"tag1": "new value", "gone": null})),
        Some(json!({"property1": "new value", "o": {"b": null}})),
    );
    let stamp = json!({"$lastUpdated": "2022-06-01T22:27:50.2512650Z", "$lastUpdatedVersion": 3});
    let mut metadata = stamp.clone();
    metadata["property1"] = stamp.clone();
    metadata["o"] = stamp;
    assert_eq!(
        twin_update(&first, &after),
        Some(json!({
            "version": 3,
            "tags": {"tag1": "new value", "gone": null},
            "properties": {"desired": {
                "property1": "new value", "o": {"b": null}, "$metadata": metadata, "$version": 3,
            }},
        }))
    );
}

#[test]
fn an_update_of_reported_properties_has_no_versions_in_its_metadata() {
    let before = Twin::new(at(0));
    let mut after = before.clone();
    after.report(&object(json!({"t": 5})), at(7)).expect("good");
    let stamp = json!({"$lastUpdated": "2022-06-01T22:27:50.2512650Z"});
    let mut metadata = stamp.clone();
    metadata["t"] = stamp;
    assert_eq!(
        twin_update(&before, &after),
        Some(json!({
            "version": 1,
            "properties": {"reported": {"t": 5, "$metadata": metadata, "$version": 2}},
        }))
    );
    assert_eq!(twin_update(&after, &after), None);
}

#[test]
fn documents_of_twins() {
    let module = Identity::parse("d/m").expect("an identity");
    let mut twin = Twin::new(Timestamp::NEVER);
    let empty = json!({"$metadata": {"$lastUpdated": "0001-01-01T00:00:00.0000000Z"}, "$version": 1});
    let mut expected = json!({
        "deviceId": "d", "moduleId": "m", "etag": "AAAAAAAAAAE=", "version": 1,
        "properties": {"desired": empty, "reported": empty},
    });
    let record = IdentityRecord {
        identity: module.clone(),
        generation_id: 1,
        version: 2,
        status: Status::Enabled,
        status_reason: None,
        status_updated_at: Timestamp::NEVER,
        authentication: Authentication::CertificateAuthority,
        iot_edge: false,
        device_scope: None,
        parent_scopes: Vec::new(),
        managed_by: None,
        connected: true,
        connection_updated_at: at(0),
        last_activity_at: at(0),
    };
    let mut shown = expected.clone();
    for (name, value) in [
        ("deviceEtag", json!("Mg==")),
        ("status", json!("enabled")),
        ("statusUpdateTime", json!("0001-01-01T00:00:00")),
        ("connectionState", json!("Connected")),
        ("lastActivityTime", json!("2022-06-01T22:27:50.2512580Z")),
        ("cloudToDeviceMessageCount", json!(0)),
        ("authenticationType", json!("certificateAuthority")),
        (
            "x509Thumbprint",
            json!({"primaryThumbprint": null, "secondaryThumbprint": null}),
        ),
    ] {
        shown[name] = value;
    }
    assert_eq!(identity(&record, &twin), shown);
    expected["tags"] = json!({});
    assert_eq!(twin_replacement(&module, &twin), expected);
    twin.tags = object(json!({"a": 1}));
    shown["tags"] = json!({"a": 1});
    assert_eq!(identity(&record, &twin), shown);
}

#[test]
fn sequence_numbers_grow_even_if_the_clock_goes_back() {
    let text = |epoch, connected, at| {
        let body = connection_state(epoch, connected, at);
        body["sequenceNumber"].as_str().expect("a text").to_owned()
    };
    let all = [
        text(1, true, at(9)),
        text(1, false, at(5)),
        text(2, true, at(4)),
        text(1 << 32, true, at(0)),
    ];
    assert!(all.is_sorted_by(|a, b| a < b), "{all:?}");
    assert!(all.iter().all(|text| text.len() == 64), "{all:?}");
}

#[test]
fn the_envelope() {
    let device = Identity::parse("d").expect("an identity");
    let module = Identity::parse("d/m").expect("an identity");
    let envelope = Envelope {
        hub_name: "hub",
        at: Timestamp::from_seconds(1_654_122_470),
        correlation_id: "ab12",
    };
    let fields = |operation, subject| {
        let records = envelope.record(operation, subject, &json!({"a": 1}));
        let origin = Origin {
            source: operation.source(),
            identity: module.clone(),
            generation_id: 0,
            auth: AuthMethod::Hub,
        };
        let mut data = Vec::new();
        origin.encode(EndpointSet::EVENTS, &mut data);
        data.extend_from_slice(records.as_bytes());
        let block = EventBlock {
            partition: 0,
            first_sequence_number: 0,
            count: 1,
            enqueued_at: at(0),
            data: data.into(),
        };
        let event = block.events().next().expect("one").expect("well formed");
        assert_eq!(event.body, br#"{"a":1}"#);
        let text = |field| match field {
            EventField::System(property, value) => format!("{property:?}={value}"),
            EventField::Application(key, value) => format!("{key}={}", value.unwrap_or_default()),
        };
        event.fields().map(text).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        fields(Operation::UpdateTwin, Subject::Identity(&module)),
        "ContentType=application/json ContentEncoding=utf-8 CorrelationId=ab12 UserId=hub hubName=hub deviceId=d \
         moduleId=m operationTimestamp=2022-06-01T22:27:50.0000000Z opType=updateTwin \
         iothub-message-schema=twinChangeNotification"
    );
    assert_eq!(
        fields(Operation::UpdateDigitalTwin, Subject::Identity(&device)),
        "ContentType=application/json-patch+json ContentEncoding=utf-8 CorrelationId=ab12 UserId=hub hubName=hub \
         deviceId=d operationTimestamp=2022-06-01T22:27:50.0000000+00:00 opType=updateTwin \
         iothub-message-schema=digitalTwinChangeNotification"
    );
    assert!(fields(Operation::CreateJob, Subject::Job("j~1")).contains("jobId=j~1"));
}
