//! Tests from the rows of the REST contract, sections 5 to 8, with what each SDK really sends.

use std::time::Duration;

use holdfast_model::c2d::{FeedbackRecord, FeedbackStatus};
use holdfast_model::credential::{SymmetricKey, Thumbprint};
use holdfast_model::method::MethodResponse;
use holdfast_model::registry::{Authentication, IdentityRecord, RegistryStatistics, Status};
use holdfast_model::twin::Twin;
use holdfast_model::{ErrorCode, Identity, Timestamp};
use serde_json::{Value, json};

use super::*;

const K: &str = "MDEyMzQ1Njc4OWFiY2RlZg==";

fn key() -> SymmetricKey {
    SymmetricKey::parse(K).expect("a key")
}

fn sas() -> Authentication {
    Authentication::Sas {
        primary_key: key(),
        secondary_key: key(),
    }
}

fn record(name: &str) -> IdentityRecord {
    IdentityRecord {
        identity: Identity::parse(name).expect("an identity"),
        generation_id: 637_000_000_000_000_001,
        version: 7,
        status: Status::Enabled,
        status_reason: None,
        status_updated_at: Timestamp::NEVER,
        authentication: sas(),
        iot_edge: false,
        device_scope: None,
        parent_scopes: Vec::new(),
        managed_by: None,
        connected: false,
        connection_updated_at: Timestamp::NEVER,
        last_activity_at: Timestamp::from_micros(1_500_000),
    }
}

fn json_of<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("JSON")
}

fn put(body: Value) -> Result<DeviceChanges, Error> {
    from_json::<DevicePut>(body.to_string().as_bytes())?.changes("d1")
}

fn put_auth(authentication: Value) -> Result<AuthenticationChange, Error> {
    put(json!({"deviceId": "d1", "authentication": authentication})).map(|changes| changes.authentication)
}

#[test]
fn device_answers_have_every_member() {
    assert_eq!(
        json_of(&DeviceDto::from_record(&record("d1"), 3)),
        json!({
            "deviceId": "d1", "generationId": "637000000000000001", "etag": "Nw==",
            "connectionState": "Disconnected", "status": "enabled", "statusReason": null,
            "connectionStateUpdatedTime": "0001-01-01T00:00:00",
            "statusUpdatedTime": "0001-01-01T00:00:00",
            "lastActivityTime": "1970-01-01T00:00:01.5000000Z",
            "cloudToDeviceMessageCount": 3,
            "authentication": {
                "type": "sas",
                "symmetricKey": {"primaryKey": K, "secondaryKey": K},
                "x509Thumbprint": {"primaryThumbprint": null, "secondaryThumbprint": null},
            },
            "capabilities": {"iotEdge": false},
            "parentScopes": [],
        })
    );
    let mut edge = record("e1");
    edge.iot_edge = true;
    edge.connected = true;
    edge.device_scope = Some("ms-azure-iot-edge://e1-637000000000000001".into());
    edge.authentication = Authentication::CertificateAuthority;
    let answer = json_of(&DeviceDto::from_record(&edge, 0));
    assert_eq!(answer["deviceScope"], "ms-azure-iot-edge://e1-637000000000000001");
    assert_eq!(answer["connectionState"], "Connected");
    assert_eq!(
        answer["authentication"],
        json!({
            "type": "certificateAuthority",
            "symmetricKey": {"primaryKey": null, "secondaryKey": null},
            "x509Thumbprint": {"primaryThumbprint": null, "secondaryThumbprint": null},
        })
    );
}

#[test]
fn answers_can_be_read_and_put_back() {
    let device = DeviceDto::from_record(&record("d1"), 0);
    let text = serde_json::to_vec(&device).expect("JSON");
    assert_eq!(from_json::<DeviceDto>(&text), Ok(device));
    let changes = from_json::<DevicePut>(&text)
        .and_then(|put| put.changes("d1"))
        .expect("changes");
    assert_eq!(changes.authentication, AuthenticationChange::Set(sas()));
    let module = ModuleDto::from_record(&record("d1/m1"));
    let text = serde_json::to_vec(&module).expect("JSON");
    assert_eq!(from_json::<ModuleDto>(&text), Ok(module));
}

#[test]
fn modules_have_no_status() {
    let mut module = record("d1/m1");
    module.managed_by = Some("IotEdge".into());
    let answer = json_of(&ModuleDto::from_record(&module));
    assert_eq!(
        (&answer["moduleId"], &answer["deviceId"]),
        (&json!("m1"), &json!("d1"))
    );
    assert_eq!(answer["managedBy"], "IotEdge");
    assert!(answer.get("status").is_none());
    // What aziot-identityd sends, first without and then with keys.
    let create: ModulePut = from_json(br#"{"moduleId":"m1","deviceId":"d1"}"#).expect("a module");
    let changes = create.changes("d1", "m1").expect("changes");
    assert_eq!(changes.authentication, AuthenticationChange::GenerateKeys);
    let update = json!({
        "moduleId": "m1", "deviceId": "d1", "generationId": "1",
        "authentication": {"symmetricKey": {"primaryKey": K, "secondaryKey": K}, "type": "sas"},
    });
    let update: ModulePut = from_json(update.to_string().as_bytes()).expect("a module");
    assert_eq!(
        update.changes("d1", "m1").expect("changes").authentication,
        AuthenticationChange::Set(sas())
    );
    assert!(update.changes("d1", "m2").is_err());
    assert!(update.changes("d2", "m1").is_err());
}

#[test]
fn authentication_types_and_keys() {
    use AuthenticationChange as C;
    for generated in [
        json!(null),
        json!({}),
        json!({"type": "sas"}),
        json!({"type": null, "symmetricKey": null, "x509Thumbprint": null}),
        json!({"type": "SAS", "symmetricKey": {"primaryKey": null, "secondaryKey": null}}),
        // Node sends empty texts.
        json!({"type": "sas", "symmetricKey": {"primaryKey": "", "secondaryKey": ""}}),
        json!({"symmetricKey": {}, "x509Thumbprint": {"primaryThumbprint": "", "secondaryThumbprint": null}}),
    ] {
        assert_eq!(put_auth(generated.clone()), Ok(C::GenerateKeys), "{generated}");
    }
    let keys = json!({"primaryKey": K, "secondaryKey": K});
    assert_eq!(put_auth(json!({"symmetricKey": keys})), Ok(C::Set(sas())));
    let sha1 = "AB".repeat(20);
    let signed = C::Set(Authentication::SelfSigned {
        primary_thumbprint: Thumbprint::parse(&sha1),
        secondary_thumbprint: None,
    });
    let thumbprints = json!({"primaryThumbprint": sha1.to_lowercase(), "secondaryThumbprint": null});
    assert_eq!(
        put_auth(json!({"x509Thumbprint": thumbprints})),
        Ok(signed.clone())
    );
    assert_eq!(
        put_auth(json!({"type": "SelfSigned", "x509Thumbprint": thumbprints})),
        Ok(signed)
    );
    assert_eq!(
        put_auth(json!({"type": "certificateauthority", "symmetricKey": keys})),
        Ok(C::Set(Authentication::CertificateAuthority))
    );
    assert_eq!(
        put_auth(json!({"type": "none"})),
        Ok(C::Set(Authentication::None))
    );
}

#[test]
fn unusable_authentication_is_refused_without_repeating_keys() {
    let secret = "c2VjcmV0";
    for bad in [
        json!({"symmetricKey": {"primaryKey": K}}),
        json!({"symmetricKey": {"primaryKey": "", "secondaryKey": K}}),
        json!({"symmetricKey": {"primaryKey": secret, "secondaryKey": secret}}),
        json!({"symmetricKey": {"primaryKey": "%%", "secondaryKey": K}}),
        json!({"type": "selfSigned"}),
        json!({"type": "selfSigned", "x509Thumbprint": {"primaryThumbprint": "12"}}),
    ] {
        let error = put_auth(bad.clone()).expect_err("refused");
        assert_eq!(error.code, ErrorCode::ArgumentInvalid, "{bad}");
        assert!(
            !error.message.contains(secret) && !error.message.contains(K),
            "{error}"
        );
    }
    let error = put_auth(json!({"type": "magic"})).expect_err("refused");
    assert_eq!(error.code, ErrorCode::IotHubFormatError);
}

#[test]
fn generated_keys_are_not_rolled_by_an_update() {
    let generate = || AuthenticationChange::GenerateKeys;
    assert_eq!(generate().resolve(Some(&sas())), sas());
    for current in [None, Some(&Authentication::None)] {
        let Authentication::Sas {
            primary_key,
            secondary_key,
        } = generate().resolve(current)
        else {
            panic!("keys must be generated");
        };
        assert_ne!(primary_key, secondary_key);
    }
    let set = AuthenticationChange::Set(Authentication::CertificateAuthority);
    assert_eq!(set.resolve(Some(&sas())), Authentication::CertificateAuthority);
}

#[test]
fn device_put_rules() {
    let changes = put(json!({})).expect("changes");
    assert_eq!(
        (
            changes.status,
            changes.iot_edge,
            changes.parent_scope,
            changes.status_reason
        ),
        (Status::Enabled, false, None, None)
    );
    let full = json!({
        "deviceId": "d1", "etag": "*", "status": "Disabled", "statusReason": "lost",
        "connectionState": 5, "lastActivityTime": "soon", "unknown": [],
        "capabilities": {"iotEdge": null}, "parentScopes": null,
    });
    let changes = put(full).expect("read-only members are ignored");
    assert_eq!(changes.status, Status::Disabled);
    assert_eq!(changes.status_reason.as_deref(), Some("lost"));
    for (body, parent) in [
        (json!({"deviceScope": "s"}), Some("s")),
        (json!({"deviceScope": ""}), None),
        (json!({"deviceScope": "", "parentScopes": ["old"]}), None),
        (
            json!({"deviceScope": "new", "parentScopes": ["old"]}),
            Some("new"),
        ),
        (json!({"parentScopes": ["s"]}), Some("s")),
        (
            json!({"capabilities": {"iotEdge": true}, "deviceScope": "own"}),
            None,
        ),
        (
            json!({"capabilities": {"iotEdge": true}, "deviceScope": "own", "parentScopes": ["p"]}),
            Some("p"),
        ),
        (
            json!({"capabilities": {"iotEdge": true}, "parentScopes": []}),
            None,
        ),
    ] {
        assert_eq!(
            put(body.clone()).expect("changes").parent_scope.as_deref(),
            parent,
            "{body}"
        );
    }
    for (bad, code) in [
        (json!({"deviceId": "D1"}), ErrorCode::ArgumentInvalid),
        (
            json!({"statusReason": "x".repeat(129)}),
            ErrorCode::ArgumentInvalid,
        ),
        (
            json!({"capabilities": {"iotEdge": true}, "parentScopes": ["a", "b"]}),
            ErrorCode::ArgumentInvalid,
        ),
        (json!({"status": "maybe"}), ErrorCode::IotHubFormatError),
        (json!({"statusReason": {}}), ErrorCode::IotHubFormatError),
        (json!([]), ErrorCode::IotHubFormatError),
    ] {
        assert_eq!(put(bad.clone()).expect_err("refused").code, code, "{bad}");
    }
    assert_eq!(
        from_json::<DevicePut>(b"{").expect_err("refused").code,
        ErrorCode::DeserializationError
    );
}

#[test]
fn twin_documents() {
    let now = Timestamp::from_seconds(0);
    let mut twin = Twin::new(now);
    twin.tags.insert("site".into(), json!("berlin"));
    twin.desired.properties.insert("a".into(), json!({"b": 1}));
    twin.desired.version = 4;
    let device = record("d1");
    let document = json_of(&TwinDto::new(&device, &twin, 2));
    assert_eq!(document["etag"], "AAAAAAAAAAE=");
    assert_eq!(document["deviceEtag"], "Nw==");
    assert_eq!(document["version"], 1);
    assert_eq!(document["authenticationType"], "sas");
    assert_eq!(
        document["x509Thumbprint"],
        json!({"primaryThumbprint": null, "secondaryThumbprint": null})
    );
    assert_eq!(document["cloudToDeviceMessageCount"], 2);
    assert_eq!(document["statusUpdateTime"], "0001-01-01T00:00:00");
    assert_eq!(document["tags"], json!({"site": "berlin"}));
    assert_eq!(document["properties"]["desired"]["a"], json!({"b": 1}));
    assert_eq!(document["properties"]["desired"]["$version"], 4);
    assert!(document["properties"]["reported"]["$metadata"]["$lastUpdated"].is_string());
    assert_eq!(document["parentScopes"], json!([]));
    for absent in [
        "moduleId",
        "generationId",
        "connectionStateUpdatedTime",
        "configurations",
        "deviceScope",
    ] {
        assert!(document.get(absent).is_none(), "{absent}");
    }
    let module = record("d1/m1");
    let mut document = TwinDto::new(&module, &twin, 0);
    document
        .configurations
        .insert("c1".into(), json!({"status": "Applied"}));
    let document = json_of(&document);
    assert_eq!(document["moduleId"], "m1");
    assert_eq!(document["configurations"]["c1"]["status"], "Applied");
}

#[test]
fn twin_changes() {
    let change = |body: Value| parse_twin_change(body.to_string().as_bytes());
    // What the command line extension sends: the whole twin.
    let whole = change(json!({
        "deviceId": "d1", "etag": "*", "version": 5, "status": "enabled",
        "tags": {"site": "berlin", "$version": 3},
        "properties": {
            "desired": {"a": null, "$metadata": {}, "$version": 4, "nested": {"b": [1, 2]}},
            "reported": {"$version": 1},
        },
    }))
    .expect("a change");
    assert_eq!(
        Value::Object(whole.tags.expect("tags")),
        json!({"site": "berlin"})
    );
    assert_eq!(
        Value::Object(whole.desired.expect("desired")),
        json!({"a": null, "nested": {"b": [1, 2]}})
    );
    for empty in [
        json!({}),
        json!({"tags": null}),
        json!({"properties": null}),
        json!({"properties": {"desired": null}}),
    ] {
        assert_eq!(change(empty.clone()), Ok(Default::default()), "{empty}");
    }
    for bad in [
        json!([]),
        json!({"tags": []}),
        json!({"properties": {"desired": 5}}),
    ] {
        assert_eq!(
            change(bad.clone()).expect_err("refused").code,
            ErrorCode::IotHubFormatError,
            "{bad}"
        );
    }
    assert_eq!(
        parse_twin_change(b"{").expect_err("refused").code,
        ErrorCode::DeserializationError
    );
}

#[test]
fn reported_patches() {
    let patch = parse_reported_patch(br#"{"a":null,"$version":3,"$metadata":{}}"#).expect("a patch");
    assert_eq!(patch.version, Some(3));
    assert_eq!(Value::Object(patch.properties), json!({"a": null}));
    for bad in ["", "5", "[]", "{", "null"] {
        let error = parse_reported_patch(bad.as_bytes()).expect_err("refused");
        assert_eq!(error.code, ErrorCode::ArgumentInvalid, "{bad}");
    }
}

fn call(body: Value) -> Result<holdfast_model::method::MethodCall, Error> {
    from_json::<MethodRequestDto>(body.to_string().as_bytes())?.call()
}

#[test]
fn method_calls() {
    let plain = call(json!({"methodName": "reboot"})).expect("a call");
    assert_eq!((plain.name.as_str(), &plain.payload[..]), ("reboot", &b""[..]));
    assert_eq!(plain.response_timeout, Duration::from_secs(30));
    assert_eq!(plain.connect_timeout, Duration::ZERO);
    for (payload, text) in [
        (json!(null), "null"),
        (json!(""), "\"\""),
        (json!({"a": 1}), "{\"a\":1}"),
        (json!([1]), "[1]"),
    ] {
        let body = json!({"methodName": "m", "payload": payload, "connectTimeoutInSeconds": 60,
            "responseTimeoutInSeconds": 300});
        let call = call(body).expect("a call");
        assert_eq!(call.payload, text.as_bytes());
        assert_eq!(call.connect_timeout, Duration::from_secs(60));
    }
    for (seconds, fits) in [(4, false), (5, true), (300, true), (301, false), (-1, false)] {
        let outcome = call(json!({"methodName": "m", "responseTimeoutInSeconds": seconds}));
        assert_eq!(outcome.is_ok(), fits, "{seconds}");
        if let Err(error) = outcome {
            assert_eq!(error.code, ErrorCode::ArgumentInvalid);
            assert_eq!(error.message, "responseTimeoutInSeconds must be within [5; 300].");
        }
    }
    assert!(call(json!({"methodName": "m", "connectTimeoutInSeconds": 301})).is_err());
    assert!(call(json!({"methodName": "a/b"})).is_err());
    assert!(call(json!({})).is_err());
    let large = json!({"methodName": "m", "payload": "x".repeat(128 * 1024)});
    assert_eq!(call(large).expect_err("refused").code, ErrorCode::MessageTooLarge);
}

#[test]
fn method_answers() {
    let answer = |payload: &'static [u8]| {
        method_response_json(&MethodResponse {
            status: 500,
            payload: bytes::Bytes::from_static(payload),
        })
        .map(|body| String::from_utf8(body).expect("UTF-8"))
    };
    assert_eq!(
        answer(b"{\"a\": 1.10}").as_deref(),
        Ok(r#"{"status":500,"payload":{"a": 1.10}}"#)
    );
    assert_eq!(answer(b"").as_deref(), Ok(r#"{"status":500,"payload":null}"#));
    assert_eq!(answer(b" ").as_deref(), Ok(r#"{"status":500,"payload":null}"#));
    for bad in [&b"oops"[..], b"{", b"\xff"] {
        assert_eq!(
            answer(bad).expect_err("refused").code,
            ErrorCode::GenericBadGateway
        );
    }
}

#[test]
fn bulk_entries_of_every_sdk() {
    for (text, mode) in [
        (r#"{"id":"d1"}"#, ImportMode::CreateOrUpdate),
        (r#"{"id":"d1","importMode":null}"#, ImportMode::CreateOrUpdate),
        (r#"{"id":"d1","importMode":"create"}"#, ImportMode::Create),
        // Node.
        (r#"{"id":"d1","importMode":"Update"}"#, ImportMode::Update),
        (
            r#"{"id":"d1","importMode":"UpdateIfMatchETag","eTag":"MQ=="}"#,
            ImportMode::UpdateIfMatchETag,
        ),
        (r#"{"id":"d1","importMode":"Delete"}"#, ImportMode::Delete),
        (
            r#"{"id":"d1","importMode":"DeleteIfMatchETag"}"#,
            ImportMode::DeleteIfMatchETag,
        ),
        (
            r#"{"id":"d1","importMode":"updateTwinIfMatchETag"}"#,
            ImportMode::UpdateTwinIfMatchETag,
        ),
    ] {
        let entry: ExportImportDevice = from_json(text.as_bytes()).expect("an entry");
        assert_eq!(entry.import_mode, mode, "{text}");
        let again: ExportImportDevice =
            from_json(&serde_json::to_vec(&entry).expect("JSON")).expect("an entry");
        assert_eq!(again, entry);
        assert!(entry.device_changes().is_ok() && entry.module_changes().is_ok());
    }
    let entry: ExportImportDevice = from_json(
        br#"{"id":"d1","moduleId":"m1","status":"disabled","tags":{"a":1},"properties":{"desired":{"b":2}}}"#,
    )
    .expect("an entry");
    assert_eq!(entry.device_changes().expect("changes").status, Status::Disabled);
    let known = BulkRegistryErrorDto::new(&entry, &Error::new(ErrorCode::DeviceNotFound, "no device"));
    let chosen = BulkRegistryErrorDto::new(&entry, &Error::new(ErrorCode::InvalidDeviceScope, "no scope"));
    let warning = BulkRegistryWarningDto::without_twin("d1", "too large");
    let result = BulkRegistryOperationResult::new(vec![known, chosen], vec![warning]);
    assert_eq!(
        json_of(&result),
        json!({
            "isSuccessful": false,
            "errors": [
                {"deviceId": "d1", "moduleId": "m1", "errorCode": "DeviceNotFound", "errorStatus": "no device",
                 "operation": "createOrUpdate"},
                {"deviceId": "d1", "moduleId": "m1", "errorCode": 400_901, "errorStatus": "no scope",
                 "operation": "createOrUpdate"},
            ],
            "warnings": [{"deviceId": "d1", "warningCode": "DeviceRegisteredWithoutTwin", "warningStatus": "too large"}],
        })
    );
    assert!(BulkRegistryOperationResult::new(Vec::new(), Vec::new()).is_successful);
    let list = |text: &str| list_from_json::<ExportImportDevice>(text.as_bytes(), 2);
    assert_eq!(list(r#"[{"id":"a"},{"id":"b"}]"#).map(|list| list.len()), Ok(2));
    for (bad, code) in [
        ("[{},{},{}]", ErrorCode::ArgumentInvalid),
        ("[[]]", ErrorCode::IotHubFormatError),
        ("{}", ErrorCode::IotHubFormatError),
        ("[", ErrorCode::DeserializationError),
    ] {
        assert_eq!(list(bad).expect_err("refused").code, code, "{bad}");
    }
    for mode in ImportMode::SPELLINGS {
        assert_eq!(json_of(&mode.1), mode.0);
    }
}

#[test]
fn small_answers() {
    let statistics = RegistryStatistics {
        total: 3,
        enabled: 2,
        disabled: 1,
    };
    assert_eq!(
        json_of(&RegistryStatisticsDto::from(statistics)),
        json!({"totalDeviceCount": 3, "enabledDeviceCount": 2, "enableDeviceCount": 2, "disabledDeviceCount": 1})
    );
    assert_eq!(
        json_of(&PurgeResultDto::new("d1", 5)),
        json!({"deviceId": "d1", "moduleId": null, "totalMessagesPurged": 5})
    );
    let feedback = FeedbackRecord {
        original_message_id: "m".into(),
        enqueued_time_utc: Timestamp::from_micros(1_500_000),
        status_code: FeedbackStatus::DeliveryCountExceeded,
        description: "Delivery count exceeded".into(),
        device_id: "d1".into(),
        device_generation_id: "1".into(),
    };
    assert_eq!(
        serde_json::from_slice::<Value>(&feedback_json(&[feedback])).expect("JSON"),
        json!([{
            "originalMessageId": "m", "enqueuedTimeUtc": "1970-01-01T00:00:01.5000000Z",
            "statusCode": "DeliveryCountExceeded", "description": "Delivery count exceeded",
            "deviceId": "d1", "deviceGenerationId": "1",
        }])
    );
}

#[test]
fn key_regeneration() {
    let request: KeyRegenerationRequestDto =
        from_json(br#"{"policyKey":"PrimaryKey","devices":[{"id":"d1"},{"id":"d1","moduleId":"m1"}]}"#)
            .expect("a request");
    assert_eq!(request.policy_key, PolicyKeyDto::PrimaryKey);
    assert_eq!(request.devices[1].module_id.as_deref(), Some("m1"));
    let rotated = RotatedKeyDto {
        id: "d1".into(),
        module_id: None,
        primary_key: K.into(),
        secondary_key: K.into(),
    };
    assert!(!format!("{rotated:?}").contains(K));
    let failed = KeyRegenerationErrorDto {
        id: "d2".into(),
        module_id: None,
        error_code: ErrorCode::DeviceNotFound.into(),
        error_status: "no device".into(),
    };
    for (rotated_keys, errors, status) in [
        (vec![rotated.clone()], vec![], 200),
        (vec![rotated], vec![failed.clone()], 207),
        (vec![], vec![failed], 400),
        (vec![], vec![], 200),
    ] {
        let result = KeyRegenerationResultDto {
            policy_key: PolicyKeyDto::Both,
            rotated_keys,
            errors,
        };
        assert_eq!(result.http_status(), status);
    }
}

/// Every DTO has a schema that names its members as its JSON does.
#[test]
fn schemas_name_what_is_sent() {
    use utoipa::PartialSchema;
    let schema = json_of(&DeviceDto::schema());
    let sent = json_of(&DeviceDto::from_record(&record("d1"), 0));
    for member in sent.as_object().expect("an object").keys() {
        assert!(schema["properties"].get(member).is_some(), "{member}");
    }
    assert!(
        json_of(&TwinDto::schema())["properties"]
            .get("properties")
            .is_some()
    );
    assert!(
        json_of(&MethodRequestDto::schema())["properties"]
            .get("methodName")
            .is_some()
    );
}
