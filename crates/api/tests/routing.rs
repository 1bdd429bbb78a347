//! Routes, endpoints, enrichments, dead letters, and trying routes out.

mod support;

use axum::http::StatusCode;
use holdfast_model::event::{AuthMethod, EventSource, Origin, Records};
use holdfast_model::message::SystemProperty;
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::dead_letters::{DeadLetter, DeadLetterStore as _};
use holdfast_ports::event_log::durable;
use serde_json::{Value, json};
use support::Service;

const ROUTING: &str = "/holdfast/v1/routing";

async fn webhook(service: &Service, name: &str) {
    let body =
        json!({"type": "http", "settings": {"url": "http://127.0.0.1:9/x", "bearerToken": "top-secret"}});
    let made = service
        .owner("PUT", &format!("{ROUTING}/endpoints/{name}"), Some(body))
        .await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
}

/// Stores a message of d1 in partition 0; returns its sequence number.
async fn store(service: &Service, level: &str, body: &Value) -> u64 {
    let mut records = Records::new();
    let mut record = records.record();
    record.system(SystemProperty::ContentType, "application/json");
    record.system(SystemProperty::ContentEncoding, "utf-8");
    record.property("level", Some(level));
    let _ = record.finish(body.to_string().as_bytes());
    let origin = Origin {
        source: EventSource::Telemetry,
        identity: Identity::parse("d1").expect("an identity"),
        generation_id: 7,
        auth: AuthMethod::IdentityKey,
    };
    let log = &service.api.log;
    let ticket = log
        .append(0, &origin, &records, Timestamp::from_seconds(1_700_000_000))
        .expect("appended");
    durable(log.as_ref(), ticket).await.expect("durable");
    ticket.end - 1
}

#[tokio::test]
async fn routes_are_created_changed_and_deleted() {
    let service = Service::start().await;
    let path = format!("{ROUTING}/routes/Hot");
    let body =
        json!({"source": "devicemessages", "condition": "level = 'high'", "endpointNames": ["events"]});
    let made = service.owner("PUT", &path, Some(body.clone())).await;
    assert_eq!(made.status, StatusCode::CREATED);
    let expected = json!({"name": "Hot", "source": "DeviceMessages", "condition": "level = 'high'",
        "endpointNames": ["events"], "isEnabled": true});
    assert_eq!(made.body, expected);
    let again = service.owner("PUT", &path, Some(expected.clone())).await;
    assert_eq!(again.status, StatusCode::OK);
    let shown = service.owner("GET", &format!("{ROUTING}/routes/hot"), None).await;
    assert_eq!(shown.body, expected);
    let all = service.owner("GET", &format!("{ROUTING}/routes"), None).await;
    assert_eq!(all.body, json!([expected]));
    for (what, bad) in [
        (
            "source",
            json!({"source": "Invalid", "endpointNames": ["events"]}),
        ),
        (
            "endpoint",
            json!({"source": "DeviceMessages", "endpointNames": ["nowhere"]}),
        ),
        (
            "no endpoint",
            json!({"source": "DeviceMessages", "endpointNames": []}),
        ),
        (
            "two endpoints",
            json!({"source": "DeviceMessages", "endpointNames": ["events", "events"]}),
        ),
        (
            "another name",
            json!({"name": "x", "source": "DeviceMessages", "endpointNames": ["events"]}),
        ),
    ] {
        let refused = service.owner("PUT", &path, Some(bad)).await;
        assert_eq!(
            refused.status,
            StatusCode::BAD_REQUEST,
            "{what}: {}",
            refused.body
        );
    }
    let gone = service.owner("DELETE", &path, None).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    let gone = service.owner("DELETE", &path, None).await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_condition_that_does_not_compile_is_refused_with_its_place() {
    let service = Service::start().await;
    let body = json!({"source": "DeviceMessages", "condition": "level = 'a' AND\nkey = 3", "endpointNames": ["events"]});
    let refused = service
        .owner("PUT", &format!("{ROUTING}/routes/r"), Some(body))
        .await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    let error = &refused.body["details"]["compilationErrors"][0];
    assert_eq!(error["severity"], "error");
    assert_eq!(error["location"]["start"]["line"], 2, "{}", refused.body);
    assert!(
        refused.body["Message"]
            .as_str()
            .expect("a message")
            .contains("ArgumentInvalid")
    );
    let fallback = json!({"condition": "(", "isEnabled": true});
    let refused = service
        .owner("PUT", &format!("{ROUTING}/fallbackRoute"), Some(fallback))
        .await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn endpoints_hide_their_secrets_and_stay_while_they_are_named() {
    let service = Service::start().await;
    webhook(&service, "hook").await;
    let path = format!("{ROUTING}/endpoints/hook");
    let shown = service.owner("GET", &path, None).await;
    assert_eq!(shown.body["settings"]["bearerToken"], "***", "{}", shown.body);
    assert!(shown.body.get("number").is_none());
    // What was read can be written back, and the secret stays.
    let back = service.owner("PUT", &path, Some(shown.body.clone())).await;
    assert_eq!(back.status, StatusCode::OK, "{}", back.body);
    let stored = service.api.hub.routing().borrow().endpoints[0].clone();
    assert_eq!(
        (stored.number, &stored.settings["bearerToken"]),
        (1, &json!("top-secret"))
    );
    // Elsewhere there is no such secret.
    let other = format!("{ROUTING}/endpoints/other");
    let body = json!({"type": "http", "settings": shown.body["settings"]});
    let refused = service.owner("PUT", &other, Some(body)).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.body);
    for (what, name, body) in [
        ("kind", "a", json!({"type": "nothing", "settings": {}})),
        (
            "reserved name",
            "Events",
            json!({"type": "http", "settings": {"url": "http://a/"}}),
        ),
        (
            "unknown setting",
            "a",
            json!({"type": "http", "settings": {"url": "http://a/", "x": 1}}),
        ),
    ] {
        let refused = service
            .owner("PUT", &format!("{ROUTING}/endpoints/{name}"), Some(body))
            .await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{what}");
    }
    let route = json!({"source": "DeviceMessages", "endpointNames": ["HOOK"]});
    let made = service
        .owner("PUT", &format!("{ROUTING}/routes/r"), Some(route))
        .await;
    assert_eq!(made.status, StatusCode::CREATED);
    let refused = service.owner("DELETE", &path, None).await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    service
        .owner("DELETE", &format!("{ROUTING}/routes/r"), None)
        .await;
    let gone = service.owner("DELETE", &path, None).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn enrichments_name_endpoints_that_exist() {
    let service = Service::start().await;
    webhook(&service, "hook").await;
    let path = format!("{ROUTING}/enrichments/site");
    let body = json!({"value": "$twin.tags.site", "endpointNames": ["hook"]});
    let made = service.owner("PUT", &path, Some(body)).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.body);
    for bad in [
        json!({"value": "$twin.nothing", "endpointNames": ["hook"]}),
        json!({"value": "x", "endpointNames": ["nowhere"]}),
        json!({"value": "x", "endpointNames": []}),
    ] {
        let refused = service.owner("PUT", &path, Some(bad)).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.body);
    }
    let built_in = json!({"value": "x", "endpointNames": ["hook", "events"]});
    let changed = service.owner("PUT", &path, Some(built_in)).await;
    assert_eq!(changed.status, StatusCode::OK, "{}", changed.body);
    let refused = service
        .owner("DELETE", &format!("{ROUTING}/endpoints/hook"), None)
        .await;
    assert_eq!(refused.status, StatusCode::CONFLICT);
    let gone = service.owner("DELETE", &path, None).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn the_definition_is_exported_and_imported_as_one() {
    let service = Service::start().await;
    webhook(&service, "hook").await;
    let route = json!({"source": "DeviceMessages", "condition": "level = 'high'", "endpointNames": ["hook"]});
    service
        .owner("PUT", &format!("{ROUTING}/routes/r"), Some(route))
        .await;
    let path = format!("{ROUTING}/definition");
    let document = service.owner("GET", &path, None).await.body;
    let mut changed = document.clone();
    changed["fallbackRoute"]["isEnabled"] = json!(false);
    let done = service.owner("PUT", &path, Some(changed.clone())).await;
    assert_ne!(done.body["etag"], changed["etag"]);
    changed["etag"] = done.body["etag"].clone();
    assert_eq!((done.status, &done.body), (StatusCode::OK, &changed));
    let secret = service.api.hub.routing().borrow().endpoints[0].settings["bearerToken"].clone();
    assert_eq!(secret, json!("top-secret"));
    // A route to nowhere changes nothing.
    let mut wrong = document;
    wrong["endpoints"] = json!([]);
    let refused = service.owner("PUT", &path, Some(wrong)).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert_eq!(service.owner("GET", &path, None).await.body, changed);
}

#[tokio::test]
async fn changes_can_be_meant_for_what_was_read() {
    let service = Service::start().await;
    webhook(&service, "hook").await;
    let owner = service.token("iothubowner");
    let route = json!({"source": "TwinChangeEvents", "endpointNames": ["hook"]});
    let enrichment = json!({"value": "x", "endpointNames": ["hook"]});
    let endpoint = json!({"type": "http", "settings": {"url": "http://127.0.0.1:9/y"}});
    let changes = [
        ("PUT", "routes/r", Some(route)),
        ("PUT", "enrichments/e", Some(enrichment)),
        ("PUT", "endpoints/other", Some(endpoint)),
        ("PUT", "fallbackRoute", Some(json!({"isEnabled": false}))),
        ("DELETE", "routes/r", None),
        ("DELETE", "enrichments/e", None),
        ("DELETE", "endpoints/other", None),
        ("PUT", "definition", Some(json!({}))),
    ];
    for (method, path, body) in changes {
        let path = format!("{ROUTING}/{path}");
        let before = service.owner("GET", &format!("{ROUTING}/definition"), None).await;
        let tag = before.header("etag").to_owned();
        assert_eq!(tag, format!("{:?}", before.body["etag"].as_str().expect("a tag")));
        for read in [
            "routes",
            "enrichments",
            "endpoints",
            "fallbackRoute",
            "endpoints/hook",
        ] {
            let read = service.owner("GET", &format!("{ROUTING}/{read}"), None).await;
            assert_eq!(read.header("etag"), tag);
        }
        let call = async |tag: &str| {
            let headers = [("authorization", owner.as_str()), ("if-match", tag)];
            service.call(method, &path, &headers, body.clone()).await
        };
        for wrong in ["\"MA==\"", "\"stranger\""] {
            let refused = call(wrong).await;
            assert_eq!(refused.status, StatusCode::PRECONDITION_FAILED, "{method} {path}");
        }
        let done = call(&tag).await;
        assert!(done.status.is_success(), "{method} {path}: {}", done.body);
        assert_ne!(done.header("etag"), tag);
    }
}

#[tokio::test]
async fn what_is_only_to_be_created_changes_nothing_that_is_there() {
    let service = Service::start().await;
    webhook(&service, "hook").await;
    let owner = service.token("iothubowner");
    let headers = [("authorization", owner.as_str()), ("if-none-match", "*")];
    let endpoint = json!({"type": "http", "settings": {"url": "http://127.0.0.1:9/y"}});
    let requests = [
        (
            "routes/r",
            json!({"source": "TwinChangeEvents", "endpointNames": ["hook"]}),
            false,
        ),
        (
            "enrichments/e",
            json!({"value": "x", "endpointNames": ["hook"]}),
            false,
        ),
        ("endpoints/other", endpoint, false),
        ("fallbackRoute", json!({"isEnabled": false}), true),
        ("definition", json!({}), true),
    ];
    let definition = format!("{ROUTING}/definition");
    for (path, body, exists) in requests {
        let path = format!("{ROUTING}/{path}");
        if !exists {
            let made = service.call("PUT", &path, &headers, Some(body.clone())).await;
            assert_eq!(made.status, StatusCode::CREATED, "{path}: {}", made.body);
        }
        let before = service.owner("GET", &definition, None).await.body;
        // Names of routes and endpoints are the same in any case.
        let again = path.replace("other", "Other").replace("routes/r", "routes/R");
        let refused = service.call("PUT", &again, &headers, Some(body.clone())).await;
        assert_eq!(refused.status, StatusCode::PRECONDITION_FAILED, "{path}");
        let message = refused.body["Message"].as_str().expect("a message");
        assert!(message.starts_with("ErrorCode:PreconditionFailed;"), "{message}");
        assert_eq!(service.owner("GET", &definition, None).await.body, before);
        let replaced = service.owner("PUT", &path, Some(body)).await;
        assert_eq!(replaced.status, StatusCode::OK, "{path}: {}", replaced.body);
    }
}

#[tokio::test]
async fn a_route_is_tried_on_a_message() {
    let service = Service::start().await;
    let json_body = json!({"contentType": "application/json", "contentEncoding": "utf-8"});
    for (condition, message, twin, expected) in [
        (
            "$body.t > 30",
            json!({"body": "{\"t\":31}", "systemProperties": json_body}),
            Value::Null,
            "true",
        ),
        (
            "$body.t > 30",
            json!({"body": {"t": 30}, "systemProperties": json_body}),
            Value::Null,
            "false",
        ),
        (
            "$body.t > 30",
            json!({"body": "{\"t\":31}"}),
            Value::Null,
            "undefined",
        ),
        (
            "level = 'high'",
            json!({"appProperties": {"Level": "high"}}),
            Value::Null,
            "true",
        ),
        (
            "$connectionDeviceId = 'd1'",
            json!({"systemProperties": {"iothub-connection-device-id": "d1"}}),
            Value::Null,
            "true",
        ),
        (
            "$twin.tags.floor = 1",
            json!({}),
            json!({"tags": {"floor": 1}}),
            "true",
        ),
        ("", json!({}), Value::Null, "undefined"),
    ] {
        let body = json!({"message": message, "twin": twin,
            "route": {"name": "r", "source": "DeviceMessages", "condition": condition, "endpointNames": ["events"], "isEnabled": true}});
        for path in ["/routing/routes/$testnew", "/holdfast/v1/routing/routes/$testnew"] {
            let answer = service.owner("POST", path, Some(body.clone())).await;
            assert_eq!(answer.body["result"], expected, "{condition}: {}", answer.body);
            assert_eq!(answer.body["details"]["compilationErrors"], json!([]));
        }
    }
    let body = json!({"message": {}, "route": {"source": "DeviceMessages", "condition": "a = = b"}});
    let answer = service
        .owner("POST", "/routing/routes/$testnew", Some(body))
        .await;
    assert_eq!(answer.body["result"], "undefined");
    let error = &answer.body["details"]["compilationErrors"][0];
    assert_eq!(
        error["location"]["start"],
        json!({"line": 1, "column": 5}),
        "{}",
        answer.body
    );
}

#[tokio::test]
async fn all_routes_are_tried_on_a_message() {
    let service = Service::start().await;
    for (name, condition, enabled) in [
        ("high", "level = 'high'", true),
        ("off", "true", false),
        ("low", "level = 'low'", true),
    ] {
        let body = json!({"source": "DeviceMessages", "condition": condition, "endpointNames": ["events"], "isEnabled": enabled});
        service
            .owner("PUT", &format!("{ROUTING}/routes/{name}"), Some(body))
            .await;
    }
    let names = async |body: Value| {
        let answer = service
            .owner("POST", "/routing/routes/$testall", Some(body))
            .await;
        let routes = answer.body["routes"].as_array().expect("routes").clone();
        let name = |route: &Value| route["properties"]["name"].as_str().expect("a name").to_owned();
        routes.iter().map(name).collect::<Vec<_>>()
    };
    let high = json!({"routingSource": "DeviceMessages", "message": {"appProperties": {"level": "high"}}});
    assert_eq!(names(high).await, ["high"]);
    assert_eq!(names(json!({"message": {}})).await, ["$fallback"]);
    assert!(
        names(json!({"routingSource": "TwinChangeEvents"}))
            .await
            .is_empty()
    );
    let fallback = json!({"isEnabled": false});
    service
        .owner("PUT", &format!("{ROUTING}/fallbackRoute"), Some(fallback))
        .await;
    assert!(names(json!({"message": {}})).await.is_empty());
}

#[tokio::test]
async fn a_condition_is_tried_on_the_newest_stored_messages() {
    let service = Service::start().await;
    service.owner("PUT", "/devices/d1", Some(json!({}))).await;
    for number in 0..5 {
        let level = if number % 2 == 0 { "high" } else { "low" };
        store(&service, level, &json!({"t": number})).await;
    }
    let path = format!("{ROUTING}/routes/$testlive");
    let body = json!({"condition": "level = 'high'", "count": 3});
    let answer = service.owner("POST", &path, Some(body)).await;
    assert_eq!(
        (&answer.body["tested"], &answer.body["matched"]),
        (&json!(3), &json!(2)),
        "{}",
        answer.body
    );
    assert_eq!(answer.body["messages"][0]["sequenceNumber"], 4);
    let body = json!({"condition": "$twin.tags.site = 'north'"});
    let answer = service.owner("POST", &path, Some(body.clone())).await;
    assert_eq!(answer.body["undefined"], 5, "{}", answer.body);
    service
        .owner("PATCH", "/twins/d1", Some(json!({"tags": {"site": "north"}})))
        .await;
    let answer = service.owner("POST", &path, Some(body)).await;
    assert_eq!(answer.body["matched"], 5, "{}", answer.body);
}

#[tokio::test]
async fn dead_letters_are_listed_put_back_and_cleared() {
    let service = Service::start().await;
    webhook(&service, "hook").await;
    let number = store(&service, "high", &json!({"t": 1})).await;
    let letter = |sequence_number| DeadLetter {
        endpoint: "hook".to_owned(),
        partition: 0,
        sequence_number,
        identity: "d1".to_owned(),
        at: Timestamp::from_seconds(1_700_000_100),
        reason: "answered 400".to_owned(),
    };
    service
        .store
        .bury(vec![letter(number), letter(9_999)])
        .await
        .expect("buried");
    let path = format!("{ROUTING}/endpoints/hook/deadLetters");
    let listed = service.owner("GET", &path, None).await.body;
    assert_eq!(listed[0]["event"], Value::Null, "the log does not have it");
    assert_eq!(listed[1]["event"]["body"]["t"], 1, "{listed}");
    assert_eq!(listed[1]["reason"], "answered 400");
    let done = service.owner("POST", &format!("{path}/replay"), None).await;
    assert_eq!(done.body, json!({"replayed": 1, "gone": 1}));
    // It stands at the end again, for the endpoint only.
    let blocks = service.api.log.read(0, number + 1, 1).await.expect("read");
    let event = blocks[0].events().next().expect("one").expect("well formed");
    assert!(event.endpoints.contains(1) && !event.endpoints.has_events());
    assert_eq!((event.identity, event.body), ("d1", &br#"{"t":1}"#[..]));
    let health = service.owner("GET", "/routingEndpointsHealth", None).await.body;
    assert_eq!(health["value"][0]["endpointId"], "hook", "{health}");
    assert_eq!(health["value"][0]["deadLetters"], 1);
    let cleared = service.owner("DELETE", &path, None).await;
    assert_eq!(cleared.body, json!({"cleared": 1}));
    let missing = service
        .owner("GET", &format!("{ROUTING}/endpoints/none/deadLetters"), None)
        .await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
}
