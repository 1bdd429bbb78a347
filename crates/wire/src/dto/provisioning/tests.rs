use super::*;
use holdfast_model::Timestamp;
use holdfast_model::provisioning::{RegistrationId, Substatus};

fn registration() -> Registration {
    let id = |text| RegistrationId::parse(text).expect("an id");
    Registration {
        registration_id: id("d"),
        group_id: Some(id("Crew")),
        operation_id: "4.0.x".into(),
        status: RegistrationStatus::Assigned,
        substatus: Some(Substatus::InitialAssignment),
        hub: Some("hub.test".into()),
        device_id: Some("d".into()),
        failure: None,
        payload: None,
        certificate: None,
        plan: None,
        authentication_key: None,
        created_at: Timestamp::from_seconds(0),
        updated_at: Timestamp::from_seconds(1),
        version: 7,
    }
}

#[test]
fn devices_are_answered_as_the_sdks_want_it() {
    let begun: Value = serde_json::from_str(&operation_json(&registration(), false)).expect("JSON");
    assert_eq!(begun, json!({"operationId": "4.0.x", "status": "assigned"}));
    let done: Value = serde_json::from_str(&operation_json(&registration(), true)).expect("JSON");
    assert_eq!(
        done["registrationState"],
        json!({"registrationId": "d", "createdDateTimeUtc": "1970-01-01T00:00:00Z", "assignedHub": "hub.test",
            "deviceId": "d", "status": "assigned", "substatus": "initialAssignment",
            "lastUpdatedDateTimeUtc": "1970-01-01T00:00:01Z", "etag": "Nw==",
            "symmetricKey": {"enrollmentGroupId": "Crew"}})
    );
    let failed = Registration {
        status: RegistrationStatus::Failed,
        failure: Some((400_207, "why".into())),
        ..registration()
    };
    let failed: Value = serde_json::from_str(&state_json(&failed)).expect("JSON");
    assert_eq!(
        (
            &failed["errorCode"],
            &failed["errorMessage"],
            failed.get("assignedHub")
        ),
        (&json!(400_207), &json!("why"), None)
    );
}

#[test]
fn tpms_are_challenged_and_get_their_key() {
    let challenge: Value = serde_json::from_str(&challenge_json(b"blob")).expect("JSON");
    assert_eq!(
        (&challenge["authenticationKey"], &challenge["keyName"]),
        (&json!("YmxvYg=="), &json!("registration"))
    );
    assert!(challenge["message"].is_string());
    let sealed = Registration {
        group_id: None,
        authentication_key: Some("a2V5".into()),
        ..registration()
    };
    let told: Value = serde_json::from_str(&state_json(&sealed)).expect("JSON");
    assert_eq!(told["tpm"], json!({"authenticationKey": "a2V5"}));
    // Stored forms and those of the service API have no such member.
    assert!(!serde_json::to_string(&sealed).expect("JSON").contains("a2V5"));
    let service = json!(DeviceRegistrationStateDto::from(&sealed));
    assert!(!service.to_string().contains("a2V5"));
    let request = br#"{"registrationId":"d","tpm":{"endorsementKey":"ZWs=","storageRootKey":"c3Jr"}}"#;
    let request = parse_device_registration(request).expect("a body");
    let tpm = request.tpm.expect("keys");
    assert_eq!(
        (&*tpm.endorsement_key, tpm.storage_root_key.as_deref()),
        ("ZWs=", Some("c3Jr"))
    );
}

#[test]
fn bodies_of_devices() {
    for (body, id) in [
        (&b""[..], None),
        (b" ", None),
        (br#"{"payload":{"a":1}}"#, None),
        (br#"{"payload":null,"registrationId":"d"}"#, Some("d")),
    ] {
        let parsed = parse_device_registration(body).expect("a body");
        assert_eq!(parsed.registration_id.as_deref(), id);
    }
    assert!(parse_device_registration(b"[]").is_err());
    assert!(parse_device_registration(b"{").is_err());
}
