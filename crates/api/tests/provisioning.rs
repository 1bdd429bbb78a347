//! The service side of device provisioning, as the SDKs and the command line use it.

mod support;

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use support::Service;

fn by_key() -> Value {
    json!({"attestation": {"type": "symmetricKey"}})
}

#[tokio::test]
async fn an_enrollment_lives() {
    let service = Service::start().await;
    let body = json!({"registrationId": "Dev-1", "deviceId": "press", "attestation": {"type": "SymmetricKey",
        "symmetricKey": {"primaryKey": "", "secondaryKey": null}}, "capabilities": {"iotEdge": true},
        "initialTwin": {"tags": {"a": 1}, "properties": {"desired": {"b": 2, "$version": 3}}},
        "reprovisionPolicy": {"migrateDeviceData": false}, "allocationPolicy": "geolatency"});
    let made = service.provisioner("PUT", "/Enrollments/Dev-1", Some(body)).await;
    assert_eq!(made.status, StatusCode::OK, "{}", made.body);
    let key = made.body["attestation"]["symmetricKey"]["primaryKey"]
        .as_str()
        .expect("a key");
    assert_eq!(key.len(), 88, "64 bytes");
    assert_eq!(made.body["provisioningStatus"], "enabled");
    assert_eq!(made.body["allocationPolicy"], "geoLatency");
    assert_eq!(
        made.body["reprovisionPolicy"],
        json!({"updateHubAssignment": true, "migrateDeviceData": false})
    );
    assert_eq!(made.body["initialTwin"]["properties"]["desired"], json!({"b": 2}));
    let read = service.provisioner("GET", "/enrollments/dev-1", None).await;
    assert_eq!(read.body["registrationId"], "Dev-1");
    assert_eq!(
        read.body["attestation"],
        json!({"type": "symmetricKey", "symmetricKey": {}})
    );
    let tag = read.body["etag"].as_str().expect("a tag");
    assert_eq!(read.header("etag"), format!("\"{tag}\""));
    let keys = service
        .provisioner("POST", "/enrollments/Dev-1/attestationmechanism", None)
        .await;
    assert_eq!(keys.body["symmetricKey"]["primaryKey"], key);
    let token = service.provisioning_token("provisioningserviceowner");
    let with = |tag| [("authorization", token.as_str()), ("if-match", tag)];
    let stale = service
        .call("PUT", "/enrollments/Dev-1", &with("\"abc\""), Some(by_key()))
        .await;
    assert_eq!(stale.status, StatusCode::PRECONDITION_FAILED);
    assert_eq!(stale.body["errorCode"], 412_001);
    assert_eq!(stale.header("x-ms-error-code"), "PreconditionFailed");
    let deleted = service
        .call("DELETE", "/enrollments/Dev-1", &with(tag), None)
        .await;
    assert_eq!(deleted.status, StatusCode::NO_CONTENT);
    let gone = service.provisioner("GET", "/enrollments/Dev-1", None).await;
    assert_eq!(
        (gone.status, &gone.body["errorCode"]),
        (StatusCode::NOT_FOUND, &json!(404_201))
    );
    assert_eq!(gone.header("iothub-errorcode"), "", "that header is the hub's");
}

#[tokio::test]
async fn groups_are_queried_in_pages() {
    let service = Service::start().await;
    for id in ["a", "B", "c"] {
        let made = service
            .provisioner("PUT", &format!("/enrollmentGroups/{id}"), Some(by_key()))
            .await;
        assert_eq!(made.body["enrollmentGroupId"], id);
    }
    let token = service.provisioning_token("provisioningserviceowner");
    let query = json!({"query": "SELECT * FROM enrollmentGroups"});
    let mut found: Vec<Value> = Vec::new();
    let mut continuation = String::new();
    for _ in 0..2 {
        let headers = [
            ("authorization", token.as_str()),
            ("x-ms-max-item-count", "2"),
            ("x-ms-continuation", continuation.as_str()),
        ];
        let page = service
            .call("POST", "/enrollmentGroups/query", &headers, Some(query.clone()))
            .await;
        assert_eq!(page.header("x-ms-item-type"), "enrollmentGroup");
        found.extend(page.body.as_array().cloned().expect("a list"));
        continuation = page.header("x-ms-continuation").to_owned();
    }
    assert_eq!(continuation, "");
    let ids: Vec<&str> = found
        .iter()
        .filter_map(|group| group["enrollmentGroupId"].as_str())
        .collect();
    assert_eq!(ids, ["a", "B", "c"]);
    let bad = json!({"query": "SELECT * FROM devices"});
    let refused = service
        .provisioner("POST", "/enrollmentGroups/query", Some(bad))
        .await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    let none = service.provisioner("POST", "/registrations/a/query", None).await;
    assert_eq!((none.status, &none.body), (StatusCode::OK, &json!([])));
    assert_eq!(none.header("x-ms-item-type"), "deviceRegistration");
    let none = service.provisioner("GET", "/registrations/x", None).await;
    assert_eq!(none.body["errorCode"], 404_202);
    let wrong = service.provisioner("PUT", "/enrollments", Some(by_key())).await;
    assert_eq!(wrong.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn many_at_once() {
    let service = Service::start().await;
    let entry = |id: &str| {
        let mut entry = by_key();
        entry["registrationId"] = id.into();
        entry
    };
    let bulk = async |mode: &str, entries: Vec<Value>| {
        let body = json!({"mode": mode, "enrollments": entries});
        service.provisioner("POST", "/enrollments", Some(body)).await
    };
    let made = bulk("Create", vec![entry("a"), entry("b")]).await;
    assert_eq!(made.body, json!({"isSuccessful": true, "errors": []}));
    let again = bulk(
        "create",
        vec![entry("c"), entry("b"), json!({"registrationId": "d"})],
    )
    .await;
    assert_eq!(again.body["isSuccessful"], false);
    assert_eq!(again.body["errors"][0]["registrationId"], "b");
    assert_eq!(again.body["errors"][0]["errorCode"], 409_201);
    assert_eq!(again.body["errors"][1]["registrationId"], "d");
    let mut tagged = entry("a");
    tagged["etag"] = "\"abc\"".into();
    let stale = bulk("updateIfMatchETag", vec![tagged]).await;
    assert_eq!(stale.body["errors"][0]["errorCode"], 412_001);
    let gone = bulk("delete", vec![entry("a"), entry("b"), entry("c")]).await;
    assert_eq!(gone.body["isSuccessful"], true);
    let too_many = bulk("create", (0..11).map(|n| entry(&format!("e{n}"))).collect()).await;
    assert_eq!(too_many.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn certificates_are_told_by_what_they_say() {
    let service = Service::start().await;
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).expect("a certificate").pem();
    let put = |path: &'static str, member: &'static str, certificate: Value| {
        let body = json!({"attestation": {"type": "x509", "x509": {member: {"primary": {"certificate": certificate}}}}});
        service.provisioner("PUT", path, Some(body))
    };
    let made = put("/enrollmentGroups/g", "signingCertificates", pem.clone().into()).await;
    assert_eq!(made.status, StatusCode::OK, "{}", made.body);
    let primary = &made.body["attestation"]["x509"]["signingCertificates"]["primary"];
    assert_eq!(primary["certificate"], Value::Null);
    assert_eq!(primary["info"].as_object().map(serde_json::Map::len), Some(8));
    // Sent back as it was read, it stays.
    let again = put("/enrollmentGroups/g", "signingCertificates", Value::Null).await;
    assert_eq!(again.body["attestation"], made.body["attestation"]);
    let wrong = put("/enrollments/d", "signingCertificates", pem.into()).await;
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
    let tpm = json!({"attestation": {"type": "tpm", "tpm": {"endorsementKey": "x"}}});
    let tpm = service.provisioner("PUT", "/enrollments/d", Some(tpm)).await;
    assert_eq!(tpm.status, StatusCode::BAD_REQUEST);
}

/// A `TPM2B_PUBLIC` of an RSA 2048 storage key that is fixed to its TPM; nobody has the other half of this one.
fn endorsement_key() -> String {
    let mut area = vec![
        0, 1, 0, 0x0b, 0, 3, 0, 0xb2, 0, 0, 0, 6, 0, 128, 0, 0x43, 0, 0x10, 8, 0, 0, 0, 0, 0, 1, 0,
    ];
    area.extend_from_slice(&[0xff; 256]);
    let size = u16::try_from(area.len()).expect("short").to_be_bytes();
    STANDARD.encode([&size[..], &area].concat())
}

#[tokio::test]
async fn tpms_are_enrolled_and_read_without_keys() {
    let service = Service::start().await;
    let key = endorsement_key();
    let body =
        json!({"attestation": {"type": "TPM", "tpm": {"endorsementKey": key, "storageRootKey": null}}});
    let made = service
        .provisioner("PUT", "/enrollments/d", Some(body.clone()))
        .await;
    assert_eq!(made.status, StatusCode::OK, "{}", made.body);
    let expected = json!({"type": "tpm", "tpm": {"endorsementKey": key}});
    assert_eq!(made.body["attestation"], expected);
    // Not even who may see keys sees those of the device on its hub.
    let mechanism = service
        .provisioner("POST", "/enrollments/d/attestationmechanism", None)
        .await;
    assert_eq!(mechanism.body, expected);
    let group = service
        .provisioner("PUT", "/enrollmentGroups/g", Some(body))
        .await;
    assert_eq!(group.status, StatusCode::BAD_REQUEST);
    for (what, tpm) in [
        ("no member", json!({"type": "tpm"})),
        ("no key", json!({"type": "tpm", "tpm": {}})),
        (
            "no base64",
            json!({"type": "tpm", "tpm": {"endorsementKey": "%"}}),
        ),
        (
            "half a key",
            json!({"type": "tpm", "tpm": {"endorsementKey": &key[..100]}}),
        ),
        (
            "no storage root key",
            json!({"type": "tpm", "tpm": {"endorsementKey": key, "storageRootKey": "AAAA"}}),
        ),
    ] {
        let refused = service
            .provisioner("PUT", "/enrollments/d", Some(json!({"attestation": tpm})))
            .await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{what}");
        assert!(
            refused.body.to_string().contains("attestation.tpm."),
            "{what}: {}",
            refused.body
        );
    }
}

#[tokio::test]
async fn hubs_are_linked() {
    let service = Service::start().await;
    let list = service.provisioner("GET", "/holdfast/v1/linkedHubs", None).await;
    assert_eq!(list.body[0]["hostName"], support::HOST);
    let key = "MDEyMzQ1Njc4OWFiY2RlZg==";
    let text = format!("HostName=far.test:8443;SharedAccessKeyName=p;SharedAccessKey={key}");
    let body = json!({"connectionString": text, "allocationWeight": 9});
    let linked = service
        .provisioner("PUT", "/holdfast/v1/linkedHubs/Far.test", Some(body.clone()))
        .await;
    assert_eq!(linked.body["httpsPort"], 8443, "{}", linked.body);
    assert!(!linked.body.to_string().contains(key));
    let other = service
        .provisioner("PUT", "/holdfast/v1/linkedHubs/other.test", Some(body))
        .await;
    assert_eq!(other.status, StatusCode::BAD_REQUEST);
    let changed = service
        .provisioner(
            "PUT",
            "/holdfast/v1/linkedHubs/far.test",
            Some(json!({"latencyMs": 7})),
        )
        .await;
    assert_eq!(
        (&changed.body["latencyMs"], &changed.body["allocationWeight"]),
        (&json!(7), &json!(9))
    );
    let own = service
        .provisioner(
            "DELETE",
            &format!("/holdfast/v1/linkedHubs/{}", support::HOST),
            None,
        )
        .await;
    assert_eq!(own.status, StatusCode::BAD_REQUEST);
    let gone = service
        .provisioner("DELETE", "/holdfast/v1/linkedHubs/far.test", None)
        .await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
}
