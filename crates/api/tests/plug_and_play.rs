//! Digital twins, and models kept by the hub.

mod support;

use axum::http::StatusCode;
use serde_json::{Value, json};
use support::{Answer, Service};

async fn patch(service: &Service, if_match: Option<&str>, body: Value) -> Answer {
    let token = service.token("service");
    let mut headers = vec![("authorization", token.as_str())];
    headers.extend(if_match.map(|tag| ("if-match", tag)));
    service
        .call("PATCH", "/digitaltwins/d1", &headers, Some(body))
        .await
}

#[tokio::test]
async fn a_digital_twin_is_a_view_of_the_twin() {
    let service = Service::start().await;
    let line = json!({"id": "d1", "modelId": "dtmi:ex:A;1", "properties": {
        "desired": {"target": 20}, "reported": {"serial": "s", "t1": {"__t": "c", "temp": 21.5}}}});
    service.import_line(&line).await;
    let answer = service.owner("GET", "/digitaltwins/d1", None).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("etag"), "\"AAAAAAAAAAE=\"");
    let twin = answer.body;
    assert_eq!(twin["$dtId"], "d1");
    assert_eq!(twin["$metadata"]["$model"], "dtmi:ex:A;1");
    assert_eq!(twin["serial"], "s");
    assert!(twin["$metadata"]["serial"]["lastUpdateTime"].is_string());
    assert_eq!(
        twin["$metadata"]["target"],
        json!({"desiredValue": 20, "desiredVersion": 1})
    );
    assert_eq!(twin["t1"]["temp"], 21.5);
    assert!(twin["t1"]["$metadata"]["temp"]["lastUpdateTime"].is_string());
    assert!(twin["t1"].get("__t").is_none());
    let missing = service.owner("GET", "/digitaltwins/nobody", None).await;
    assert_eq!(missing.header("iothub-errorcode"), "DeviceNotFound");
}

#[tokio::test]
async fn patches_become_desired_properties() {
    let service = Service::start().await;
    service.owner("PUT", "/devices/d1", Some(json!({}))).await;
    let change = json!([{"op": "add", "path": "/target", "value": 21},
        {"op": "add", "path": "/t1/limit", "value": 5}]);
    let answer = patch(&service, None, change).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.body);
    assert_eq!(answer.header("location"), "/digitaltwins/d1");
    let tag = answer.header("etag").to_owned();
    assert_eq!(tag, "\"AAAAAAAAAAI=\"");
    let twin = service.owner("GET", "/twins/d1", None).await.body;
    assert_eq!(twin["properties"]["desired"]["target"], 21);
    assert_eq!(
        twin["properties"]["desired"]["t1"],
        json!({"__t": "c", "limit": 5})
    );

    let change = json!([{"op": "remove", "path": "/target"}]);
    let stale = patch(&service, Some("\"AAAAAAAAAAE=\""), change.clone()).await;
    assert_eq!(
        (stale.status.as_u16(), stale.header("iothub-errorcode")),
        (412, "PreconditionFailed")
    );
    assert_eq!(
        patch(&service, Some(&tag), change.clone()).await.status,
        StatusCode::ACCEPTED
    );
    assert_eq!(
        patch(&service, Some("\"*\""), json!([])).await.status,
        StatusCode::ACCEPTED
    );
    for (bad, code) in [
        (change, "ArgumentInvalid"),
        (json!({"op": "add"}), "ArgumentInvalid"),
        (
            json!([{"op": "move", "path": "/a", "from": "/b"}]),
            "ArgumentInvalid",
        ),
        (
            json!([{"op": "add", "path": "/$metadata/x", "value": 1}]),
            "ArgumentInvalid",
        ),
        (
            json!([{"op": "add", "path": "/bad key", "value": 1}]),
            "ArgumentInvalid",
        ),
    ] {
        let answer = patch(&service, None, bad.clone()).await;
        assert_eq!(answer.header("iothub-errorcode"), code, "{bad} {}", answer.body);
    }
    let twin = service.owner("GET", "/twins/d1", None).await.body;
    assert!(twin["properties"]["desired"].get("target").is_none());
}

#[tokio::test]
async fn commands_to_nobody_are_methods_to_nobody() {
    let service = Service::start().await;
    service.owner("PUT", "/devices/d1", Some(json!({}))).await;
    for path in [
        "/digitaltwins/d1/commands/reboot",
        "/digitaltwins/d1/components/t1/commands/reboot",
    ] {
        let answer = service.owner("POST", path, Some(json!({"delay": 1}))).await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("iothub-errorcode")),
            (404, "DeviceNotOnline")
        );
        let slow = format!("{path}?responseTimeoutInSeconds=1");
        let answer = service.owner("POST", &slow, None).await;
        assert_eq!(answer.header("iothub-errorcode"), "ArgumentInvalid");
    }
}

fn model(id: &str, contents: Value) -> Value {
    json!({"@context": "dtmi:dtdl:context;2", "@id": id, "@type": "Interface", "contents": contents})
}

#[tokio::test]
async fn models_are_kept_and_twins_checked_against_them() {
    let service = Service::start().await;
    let thermostat = model(
        "dtmi:ex:Thermostat;1",
        json!([{"@type": "Property", "name": "target", "schema": "double", "writable": true}]),
    );
    let controller = model(
        "dtmi:ex:Controller;1",
        json!([{"@type": "Property", "name": "serial", "schema": "string"},
            {"@type": "Component", "name": "t1", "schema": "dtmi:ex:Thermostat;1"}]),
    );
    let path = |id: &str| format!("/holdfast/v1/models/{id}");
    let early = service
        .owner("PUT", &path("dtmi:ex:Controller;1"), Some(controller.clone()))
        .await;
    assert_eq!(early.status, 400);
    assert_eq!(
        early.body["faults"][0]["rule"],
        "the interface dtmi:ex:Thermostat;1 is not there"
    );
    let put = service
        .owner("PUT", &path("dtmi:ex:Thermostat;1"), Some(thermostat.clone()))
        .await;
    assert_eq!((put.status.as_u16(), &put.body["valid"]), (200, &json!(true)));
    assert_eq!(
        service
            .owner("PUT", &path("dtmi:ex:Controller;1"), Some(controller.clone()))
            .await
            .status,
        200
    );
    let other = service
        .owner("PUT", &path("dtmi:ex:Other;1"), Some(controller.clone()))
        .await;
    assert_eq!(other.header("iothub-errorcode"), "ArgumentInvalid");
    let odd = service
        .owner("PUT", &path("..%2f..%2fetc"), Some(controller.clone()))
        .await;
    assert_eq!(odd.header("iothub-errorcode"), "ArgumentInvalid");
    let listed = service.owner("GET", "/holdfast/v1/models", None).await.body;
    assert_eq!(
        listed,
        json!([{"id": "dtmi:ex:Controller;1"}, {"id": "dtmi:ex:Thermostat;1"}])
    );
    assert_eq!(
        service
            .owner("GET", &path("dtmi:ex:Controller;1"), None)
            .await
            .body,
        controller
    );
    let bad = model(
        "dtmi:ex:Bad;1",
        json!([{"@type": "Telemetry", "name": "x", "schema": "fast"}]),
    );
    let checked = service
        .owner("POST", "/holdfast/v1/models/validate", Some(bad))
        .await
        .body;
    assert_eq!(checked["valid"], false);
    assert_eq!(
        checked["faults"][0]["place"],
        "dtmi:ex:Bad;1 contents[0] \"x\" schema"
    );

    service.owner("PUT", "/devices/plain", Some(json!({}))).await;
    let none = service
        .owner("GET", "/holdfast/v1/devices/plain/modelCheck", None)
        .await;
    assert_eq!(none.header("iothub-errorcode"), "InvalidOperation");
    let line = json!({"id": "d1", "modelId": "dtmi:ex:Controller;1", "properties": {
        "desired": {"t1": {"__t": "c", "target": "warm"}}, "reported": {"serial": "s", "speed": 1}}});
    service.import_line(&line).await;
    let checked = service
        .owner("GET", "/holdfast/v1/devices/d1/modelCheck", None)
        .await
        .body;
    assert_eq!(checked["modelId"], "dtmi:ex:Controller;1");
    assert_eq!(checked["faults"].as_array().map(Vec::len), Some(2), "{checked}");
    assert_eq!(checked["faults"][0]["place"], "desired.t1.target");
    assert_eq!(checked["faults"][1]["place"], "reported.speed");

    assert_eq!(
        service
            .owner("DELETE", &path("dtmi:ex:Thermostat;1"), None)
            .await
            .status,
        204
    );
    assert_eq!(
        service
            .owner("DELETE", &path("dtmi:ex:Thermostat;1"), None)
            .await
            .status,
        404
    );
    let broken = service
        .owner("GET", "/holdfast/v1/devices/d1/modelCheck", None)
        .await;
    assert_eq!(broken.header("iothub-errorcode"), "InvalidOperation");
}
