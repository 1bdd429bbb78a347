//! Behaviour of the service API that the SDK suites do not reach: framing, headers, error shapes, limits.

mod support;

use axum::http::StatusCode;
use serde_json::{Value, json};
use support::Service;

#[tokio::test]
async fn paths_are_taken_in_any_case_and_with_a_trailing_slash() {
    let service = Service::start().await;
    for path in ["/devices/Mixed", "/Devices/Mixed", "/DEVICES/Mixed/"] {
        let answer = service
            .owner("PUT", path, Some(json!({"deviceId": "Mixed"})))
            .await;
        let expected = if path == "/devices/Mixed" {
            StatusCode::OK
        } else {
            StatusCode::CONFLICT
        };
        assert_eq!(answer.status, expected, "{path}");
    }
    assert_eq!(
        service.owner("GET", "/devices/mixed", None).await.status,
        StatusCode::NOT_FOUND,
        "ids keep their case"
    );
    assert_eq!(
        service.owner("GET", "/devices/?top=1", None).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn unusual_ids_round_trip() {
    let service = Service::start().await;
    for id in [
        "a%b", "a+b", "a#b", "a?b", "a=b;c", "$x", "modules", "devices", "keys",
    ] {
        let encoded: String = id.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = service
            .owner(
                "PUT",
                &format!("/devices/{encoded}"),
                Some(json!({"deviceId": id})),
            )
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{id}: {}", answer.body);
        let answer = service.owner("GET", &format!("/devices/{encoded}"), None).await;
        assert_eq!(answer.body["deviceId"], id);
    }
}

#[tokio::test]
async fn answers_carry_the_contracts_headers() {
    let service = Service::start().await;
    let created = service.owner("PUT", "/devices/d1", Some(json!({}))).await;
    assert_eq!(created.header("content-type"), "application/json; charset=utf-8");
    assert_eq!(
        created.header("etag"),
        format!("\"{}\"", created.body["etag"].as_str().expect("a tag"))
    );
    assert_eq!(created.header("x-ms-request-id").len(), 36);
    assert_eq!(created.body["parentScopes"], json!([]));

    let missing = service.owner("GET", "/devices/nobody", None).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    assert_eq!(missing.header("iothub-errorcode"), "DeviceNotFound");
    assert!(
        missing.body["Message"]
            .as_str()
            .expect("a message")
            .starts_with("ErrorCode:DeviceNotFound;")
    );
    assert!(
        missing.body["ExceptionMessage"]
            .as_str()
            .expect("a message")
            .starts_with("Tracking ID:")
    );
    assert_eq!(missing.header("content-type"), "application/json; charset=utf-8");

    let nowhere = service.owner("GET", "/nowhere", None).await;
    assert_eq!(
        (nowhere.status, nowhere.header("iothub-errorcode").is_empty()),
        (StatusCode::NOT_FOUND, false)
    );
    let method = service.owner("DELETE", "/statistics/devices", None).await;
    assert_eq!(method.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn the_api_version_is_asked_for() {
    let service = Service::start().await;
    let token = service.token("iothubowner");
    let headers = [("authorization", token.as_str())];
    for (path, number) in [
        ("/devices", "InvalidProtocolVersion"),
        ("/devices?api-version=x", "InvalidProtocolVersion"),
    ] {
        let answer = service.raw("GET", path, &headers, None).await;
        assert_eq!(
            (answer.status, answer.header("iothub-errorcode")),
            (StatusCode::BAD_REQUEST, number)
        );
    }
    assert_eq!(
        service
            .raw("GET", "/devices?API-Version=2016-11-14", &headers, None)
            .await
            .status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn bodies_that_are_not_what_they_should_be() {
    let service = Service::start().await;
    service.owner("PUT", "/devices/d1", Some(json!({}))).await;
    let deep = (0..200).fold(json!(1), |inner, _| json!({ "a": inner }));
    let cases = [
        ("PUT", "/devices/d2", json!([])),
        ("PUT", "/devices/d2", json!({"deviceId": "other"})),
        (
            "PUT",
            "/devices/d2",
            json!({"authentication": {"symmetricKey": {"primaryKey": "AAAA"}}}),
        ),
        (
            "PUT",
            "/devices/d2",
            json!({"authentication": {"type": "selfSigned"}}),
        ),
        ("PUT", "/devices/d2", json!({"status": "sleepy"})),
        (
            "PUT",
            "/devices/d2",
            json!({"deviceScope": "ms-azure-iot-edge://nobody-1"}),
        ),
        ("PATCH", "/twins/d1", json!({"tags": []})),
        (
            "PATCH",
            "/twins/d1",
            json!({"properties": {"desired": {"a.b": 1}}}),
        ),
        ("PATCH", "/twins/d1", json!({"properties": {"desired": deep}})),
        ("POST", "/twins/d1/methods", json!({"methodName": "a b"})),
        (
            "POST",
            "/twins/d1/methods",
            json!({"methodName": "a", "responseTimeoutInSeconds": 301}),
        ),
        (
            "POST",
            "/holdfast/v1/devices/d1/messages",
            json!({"body": "?", "base64": true}),
        ),
        ("POST", "/holdfast/v1/devices/d1/messages", json!({"unknown": 1})),
        ("PUT", "/holdfast/v1/policies/p", json!({"rights": "Everything"})),
        (
            "PUT",
            "/holdfast/v1/certificates/c",
            json!({"certificate": "AAAA"}),
        ),
    ];
    for (method, path, body) in cases {
        let answer = service.owner(method, path, Some(body.clone())).await;
        assert_eq!(
            answer.status,
            StatusCode::BAD_REQUEST,
            "{method} {path}: {body:.80} gives {}",
            answer.body
        );
        assert!(!answer.header("iothub-errorcode").is_empty());
    }
    let huge = service
        .owner("PUT", "/devices/d2", Some(Value::String("x".repeat(5 << 20))))
        .await;
    assert_eq!(
        (huge.status, huge.header("iothub-errorcode")),
        (StatusCode::PAYLOAD_TOO_LARGE, "MessageTooLarge")
    );
    let token = service.token("iothubowner");
    let announced = [("authorization", &*token), ("content-length", "4194305")];
    let refused = service
        .raw("PUT", "/devices/d2?api-version=2020-09-30", &announced, None)
        .await;
    assert_eq!(
        refused.status,
        StatusCode::PAYLOAD_TOO_LARGE,
        "before a byte is read"
    );
    // An import is read as it comes, however long it says it is.
    let path = "/holdfast/v1/import";
    let taken = service.raw("POST", path, &announced, None).await;
    assert_eq!(taken.status, StatusCode::OK, "{}", taken.body);
}

#[tokio::test]
async fn java_sends_patch_as_post() {
    let service = Service::start().await;
    service.owner("PUT", "/devices/d1", Some(json!({}))).await;
    let token = service.token("service");
    let headers = [
        ("authorization", token.as_str()),
        ("x-http-method-override", "PATCH"),
    ];
    let answer = service
        .call("POST", "/twins/d1", &headers, Some(json!({"tags": {"a": 1}})))
        .await;
    assert_eq!(
        (answer.status, &answer.body["tags"]["a"]),
        (StatusCode::OK, &json!(1))
    );
}

#[tokio::test]
async fn cloud_to_device_queue_is_bounded_and_purged() {
    let service = Service::start().await;
    service.owner("PUT", "/devices/d1", Some(json!({}))).await;
    let path = "/holdfast/v1/devices/d1/messages";
    for n in 0..50 {
        let answer = service
            .owner("POST", path, Some(json!({"body": n.to_string(), "ack": "full"})))
            .await;
        assert_eq!(answer.status, StatusCode::CREATED);
    }
    let full = service
        .owner("POST", path, Some(json!({"body": "one more"})))
        .await;
    assert_eq!(
        (full.status, full.header("iothub-errorcode")),
        (StatusCode::FORBIDDEN, "DeviceMaximumQueueDepthExceeded")
    );
    let purged = service.owner("DELETE", "/devices/d1/commands", None).await;
    assert_eq!(
        purged.body,
        json!({"deviceId": "d1", "moduleId": null, "totalMessagesPurged": 50})
    );
    let again = service.owner("DELETE", "/devices/d1/commands", None).await;
    assert_eq!(again.body["totalMessagesPurged"], 0);
    let large = service
        .owner("POST", path, Some(json!({"body": "x".repeat(65 * 1024)})))
        .await;
    assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn keys_are_regenerated_one_by_one() {
    let service = Service::start().await;
    let before = service.owner("PUT", "/devices/d1", Some(json!({}))).await.body;
    let body = json!({"policyKey": "secondaryKey", "devices": [{"id": "d1"}, {"id": "nobody"}]});
    let answer = service
        .owner("POST", "/devices/keys/regenerate", Some(body))
        .await;
    assert_eq!(answer.status, StatusCode::MULTI_STATUS);
    let keys = &before["authentication"]["symmetricKey"];
    assert_eq!(answer.body["rotatedKeys"][0]["primaryKey"], keys["primaryKey"]);
    assert_ne!(
        answer.body["rotatedKeys"][0]["secondaryKey"],
        keys["secondaryKey"]
    );
    assert_eq!(answer.body["errors"][0]["id"], "nobody");
}

#[tokio::test]
async fn checkpoints_belong_to_a_group_and_never_lie_ahead() {
    let service = Service::start().await;
    let path = "/holdfast/v1/consumerGroups/dash/checkpoints";
    assert_eq!(
        service.owner("GET", path, None).await.status,
        StatusCode::NOT_FOUND
    );
    assert_eq!(
        service
            .owner("PUT", "/holdfast/v1/consumerGroups/dash", None)
            .await
            .status,
        StatusCode::CREATED
    );
    assert_eq!(
        service
            .owner("PUT", "/holdfast/v1/consumerGroups/dash", None)
            .await
            .status,
        StatusCode::CONFLICT
    );
    let ahead = service
        .owner("PUT", path, Some(json!([{"partition": 0, "next": 1}])))
        .await;
    assert_eq!(ahead.status, StatusCode::BAD_REQUEST);
    let saved = service
        .owner("PUT", path, Some(json!([{"partition": 0, "next": 0}])))
        .await;
    assert_eq!(saved.status, StatusCode::NO_CONTENT);
    assert_eq!(
        service.owner("GET", path, None).await.body,
        json!([{"partition": 0, "next": 0}])
    );
    assert_eq!(
        service
            .owner("DELETE", "/holdfast/v1/consumerGroups/dash", None)
            .await
            .status,
        StatusCode::NO_CONTENT
    );
}
