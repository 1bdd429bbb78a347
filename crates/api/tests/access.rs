//! Nobody in without a credential: every operation of the table, without, with wrong, expired and foreign credentials.
//!
//! Goal: an operation that forgets its check, or needs too little, fails here. Method: walk the table of operations that
//! the router is made from; so a new operation is covered without a change of this file.

mod support;

use axum::http::StatusCode;
use holdfast_api::{Needed, Operation, operations};
use holdfast_model::credential::{SymmetricKey, sign_sas};
use holdfast_model::provisioning::ProvisioningRights;
use serde_json::{Value, json};
use support::{HOST, Service, hours_from_now};

/// The path of an operation with parameters filled in.
fn path_of(operation: &Operation) -> String {
    operation
        .path
        .replace("{id}", "d1")
        .replace("{mid}", "m1")
        .replace("{name}", "n1")
        .replace("{component}", "c1")
        .replace("{token}", "01234567-89ab-cdef-fedc-ba9876543210")
}

async fn status(service: &Service, operation: &Operation, token: Option<&str>) -> StatusCode {
    let headers: Vec<(&str, &str)> = token.map(|token| ("authorization", token)).into_iter().collect();
    let path = format!("{}?api-version=2021-04-12", path_of(operation));
    service
        .send(operation.method, &path, &headers, Some(Value::Null))
        .await
        .status()
}

#[tokio::test]
async fn no_operation_lets_a_stranger_in() {
    let service = Service::start().await;
    service.owner("PUT", "/devices/d1", Some(json!({}))).await;
    service.owner("PUT", "/devices/d2", Some(json!({}))).await;
    let owner_key = service
        .api
        .hub
        .policy("iothubowner")
        .expect("a policy")
        .primary_key;
    let stranger = SymmetricKey::generate();
    let foreign_device = service.device_token("d2").await;
    let tokens = [
        ("no token", None),
        ("another scheme", Some("Bearer abc".to_owned())),
        ("garbage", Some("SharedAccessSignature sr=&sig=&se=".to_owned())),
        (
            "wrong key",
            Some(sign_sas(HOST, &stranger, hours_from_now(1), Some("iothubowner"))),
        ),
        (
            "unknown policy",
            Some(sign_sas(HOST, &owner_key, hours_from_now(1), Some("nobody"))),
        ),
        (
            "no policy named",
            Some(sign_sas(HOST, &owner_key, hours_from_now(1), None)),
        ),
        (
            "expired",
            Some(sign_sas(
                HOST,
                &owner_key,
                hours_from_now(-1),
                Some("iothubowner"),
            )),
        ),
        (
            "another host",
            Some(sign_sas(
                "other.test",
                &owner_key,
                hours_from_now(1),
                Some("iothubowner"),
            )),
        ),
        (
            "another resource",
            Some(sign_sas(
                &format!("{HOST}/x"),
                &owner_key,
                hours_from_now(1),
                Some("iothubowner"),
            )),
        ),
        ("another device", Some(foreign_device)),
    ];
    let table = operations(service.api.clone());
    assert!(table.len() >= 63, "the table is the whole API");
    for operation in &table {
        for (what, token) in &tokens {
            let status = status(&service, operation, token.as_deref()).await;
            assert_eq!(
                status,
                StatusCode::UNAUTHORIZED,
                "{} {} with {what}",
                operation.method,
                operation.path
            );
        }
    }
}

#[tokio::test]
async fn every_operation_needs_its_right_and_no_more() {
    let service = Service::start().await;
    for (name, rights) in [
        ("config", ProvisioningRights::SERVICE_CONFIG),
        ("reader", ProvisioningRights::ENROLLMENT_READ),
        ("writer", ProvisioningRights::ENROLLMENT_WRITE),
        ("watcher", ProvisioningRights::REGISTRATION_STATUS_READ),
        ("cleaner", ProvisioningRights::REGISTRATION_STATUS_WRITE),
    ] {
        let made = service
            .api
            .provisioning
            .put_policy(name, rights, None, None)
            .await;
        made.expect("the memory store works");
    }
    for operation in operations(service.api.clone()) {
        for policy in service.api.provisioning.policies() {
            let token = service.provisioning_token(&policy.name);
            let status = status(&service, &operation, Some(&token)).await;
            let allowed = match operation.rights {
                Needed::Provisioning(rights) => policy.rights.allows(rights),
                Needed::Hub(_) | Needed::EdgeHub => false,
            };
            assert_eq!(
                status != StatusCode::UNAUTHORIZED,
                allowed,
                "{} {} with the provisioning policy {}: {status}",
                operation.method,
                operation.path,
                policy.name
            );
        }
        for policy in service.api.hub.policies() {
            let token = service.token(&policy.name);
            let status = status(&service, &operation, Some(&token)).await;
            let allowed = match operation.rights {
                Needed::Hub(rights) => policy.rights.allows(rights),
                Needed::Provisioning(_) | Needed::EdgeHub => false,
            };
            assert_eq!(
                status != StatusCode::UNAUTHORIZED,
                allowed,
                "{} {} with the policy {}: {status}",
                operation.method,
                operation.path,
                policy.name
            );
        }
    }
}

#[tokio::test]
async fn a_device_reaches_its_own_modules_only() {
    let service = Service::start().await;
    for device in ["d1", "d2"] {
        service
            .owner("PUT", &format!("/devices/{device}"), Some(json!({})))
            .await;
    }
    let token = service.device_token("d1").await;
    let own = [("authorization", token.as_str())];
    for operation in operations(service.api.clone()) {
        let status = status(&service, &operation, Some(&token)).await;
        assert_eq!(
            status != StatusCode::UNAUTHORIZED,
            operation.own_modules,
            "{operation:?}: {status}"
        );
    }
    // The sequence of the edge's identity service: create, read the generation, set keys, delete.
    let created = service
        .call(
            "PUT",
            "/devices/d1/modules/m",
            &own,
            Some(json!({"moduleId": "m", "deviceId": "d1"})),
        )
        .await;
    assert_eq!(created.status, StatusCode::OK);
    let key = "MDEyMzQ1Njc4OWFiY2RlZg==";
    let with_keys = json!({"moduleId": "m", "deviceId": "d1", "generationId": created.body["generationId"],
        "authentication": {"type": "sas", "symmetricKey": {"primaryKey": key, "secondaryKey": key}}});
    let headers = [own[0], ("if-match", "*")];
    let updated = service
        .call("PUT", "/devices/d1/modules/m", &headers, Some(with_keys))
        .await;
    assert_eq!(updated.status, StatusCode::OK);
    assert_eq!(updated.body["authentication"]["symmetricKey"]["primaryKey"], key);
    assert_eq!(
        service
            .call("DELETE", "/devices/d1/modules/m", &headers, None)
            .await
            .status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        service
            .call("GET", "/devices/d2/modules", &own, None)
            .await
            .status,
        StatusCode::UNAUTHORIZED
    );
}

#[tokio::test]
async fn the_document_describes_just_the_operations() {
    let service = Service::start().await;
    let document: Value = serde_json::from_str(&holdfast_api::document()).expect("JSON");
    let mut described: Vec<(String, String)> = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            described.push((path.clone(), method.to_uppercase()));
        }
    }
    let mut declared: Vec<(String, String)> = operations(service.api.clone())
        .iter()
        .map(|operation| (operation.path.to_owned(), operation.method.to_owned()))
        .collect();
    described.sort();
    declared.sort();
    assert_eq!(described, declared);
}
