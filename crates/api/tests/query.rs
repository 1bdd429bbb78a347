//! `POST /devices/query`: shapes, headers, paging and errors.

mod support;

use std::collections::BTreeMap;

use axum::http::StatusCode;
use holdfast_model::Identity;
use holdfast_model::Timestamp;
use holdfast_model::twin::{ConfigurationStatus, Twin};
use holdfast_ports::query::TwinItem;
use holdfast_ports::suite::fixtures::record;
use holdfast_query::twin::{Path, Root, Row as _, Source};
use holdfast_wire::dto::TwinDto;
use serde_json::{Value, json};
use support::{Answer, Service};

async fn query(service: &Service, text: &str, headers: &[(&str, &str)]) -> Answer {
    let token = service.token("iothubowner");
    let mut all = vec![("authorization", token.as_str())];
    all.extend_from_slice(headers);
    service
        .call("POST", "/devices/query", &all, Some(json!({ "query": text })))
        .await
}

async fn fleet(service: &Service, count: usize) {
    for n in 0..count {
        let path = format!("/devices/d{n}");
        assert_eq!(
            service.owner("PUT", &path, Some(json!({}))).await.status,
            StatusCode::OK
        );
        let tags = json!({"tags": {"n": n, "even": n % 2 == 0}});
        let path = format!("/twins/d{n}");
        assert_eq!(
            service.owner("PATCH", &path, Some(tags)).await.status,
            StatusCode::OK
        );
    }
}

#[tokio::test]
async fn documents_are_those_of_the_twins() {
    let service = Service::start().await;
    fleet(&service, 1).await;
    let answer = query(&service, "SELECT * FROM devices", &[]).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert_eq!(answer.header("x-ms-item-type"), "Twin");
    let twin = service.owner("GET", "/twins/d0", None).await;
    assert_eq!(answer.body, json!([twin.body]));
}

/// What a query finds at a place is what the document shows there.
#[test]
fn places_hold_what_documents_show() {
    let now = Timestamp::from_micros(1_780_000_000_250_000);
    for key in ["d1", "d1/m1"] {
        let mut record = record(&Identity::parse(key).expect("an id"));
        record.status_reason = Some("broken".into());
        record.device_scope = Some("ms-azure-iot-edge://d1-1".into());
        record.parent_scopes = vec!["ms-azure-iot-edge://p-1".into()];
        record.iot_edge = true;
        record.last_activity_at = now;
        let mut twin = Twin::new(now);
        twin.version = 77;
        twin.model_id = Some("dtmi:com:example:Thermostat;1".into());
        twin.tags.insert("a".into(), json!({"b": [1, "x"]}));
        twin.desired.properties.insert("d".into(), json!(1));
        twin.configurations = BTreeMap::from([("c".into(), ConfigurationStatus::Targeted)]);
        let item = TwinItem {
            record,
            twin,
            waiting: 3,
        };
        let document = TwinDto::new(&item.record, &item.twin, item.waiting);
        let document = serde_json::to_value(document).expect("JSON");
        let members = document.as_object().expect("an object");
        let source = if key == "d1" {
            Source::Devices
        } else {
            Source::Modules
        };
        for root in Root::ALL.iter().filter(|root| root.is_of(source)) {
            let found = item
                .row()
                .get(&Path::root(*root))
                .map(std::borrow::Cow::into_owned);
            assert_eq!(found.as_ref(), members.get(root.name()), "{key} {}", root.name());
        }
        for name in members.keys() {
            assert!(
                Root::ALL.iter().any(|root| root.name() == name),
                "no query can reach {name}"
            );
        }
    }
}

#[tokio::test]
async fn pages_follow_each_other_by_header() {
    let service = Service::start().await;
    fleet(&service, 5).await;
    let text = "SELECT deviceId FROM devices WHERE tags.n >= 1";
    let mut found = Vec::new();
    let mut token = None::<String>;
    for page in 1.. {
        let mut headers = vec![("x-ms-max-item-count", "2")];
        if let Some(token) = &token {
            headers.push(("x-ms-continuation", token));
        }
        let answer = query(&service, text, &headers).await;
        assert_eq!(
            (answer.status, answer.header("x-ms-item-type")),
            (StatusCode::OK, "Raw")
        );
        found.extend(answer.body.as_array().expect("an array").clone());
        token = answer
            .headers
            .get("x-ms-continuation")
            .map(|value| value.to_str().expect("text").to_owned());
        if token.is_none() {
            assert_eq!(page, 2, "four rows fill two pages");
            break;
        }
    }
    let ids: Vec<&str> = found.iter().filter_map(|row| row["deviceId"].as_str()).collect();
    assert_eq!(ids, ["d1", "d2", "d3", "d4"]);
}

#[tokio::test]
async fn the_item_type_is_spelled_exactly() {
    let service = Service::start().await;
    for (text, expected) in [
        ("SELECT * FROM devices", "Twin"),
        ("select * from devices.modules", "Twin"),
        ("SELECT TOP 3 * FROM devices", "Twin"),
        ("SELECT deviceId FROM devices", "Raw"),
        ("SELECT COUNT() AS n FROM devices", "Raw"),
        (
            "SELECT TOP 1 status, COUNT() AS n FROM devices GROUP BY status",
            "Raw",
        ),
        ("SELECT * FROM devices.jobs", "DeviceJob"),
    ] {
        let answer = query(&service, text, &[]).await;
        assert_eq!(
            (answer.status, answer.header("x-ms-item-type")),
            (StatusCode::OK, expected),
            "{text}"
        );
        assert!(answer.headers.get("x-ms-continuation").is_none(), "{text}");
    }
}

#[tokio::test]
async fn mistakes_are_explained() {
    let service = Service::start().await;
    fleet(&service, 3).await;
    let refused = async |text: &str, headers: &[(&str, &str)], says: &str| {
        let answer = query(&service, text, headers).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{text}");
        assert_eq!(answer.header("iothub-errorcode"), "ArgumentInvalid");
        let message = answer.body["Message"].as_str().expect("a message");
        assert!(message.contains(says), "{message}");
    };
    refused(
        "SELECT * FROM devices WHERE STARTS_WITH(deviceId, 'x')",
        &[],
        "The query is invalid: STARTS_WITH is of routing queries; here use STARTSWITH (line 1, column 29)",
    )
    .await;
    refused(
        "SELECT * FROM devices WHERE tags.group = 1",
        &[],
        "written [[group]]",
    )
    .await;
    refused(
        &format!("SELECT * FROM devices{}", " ".repeat(8_172)),
        &[],
        "longer than 8192 characters",
    )
    .await;
    for count in ["0", "-2", "ten", "1.5"] {
        refused(
            "SELECT * FROM devices",
            &[("x-ms-max-item-count", count)],
            "x-ms-max-item-count",
        )
        .await;
    }
    refused(
        "SELECT * FROM devices",
        &[("x-ms-continuation", "nonsense")],
        "x-ms-continuation",
    )
    .await;
    let first = query(&service, "SELECT * FROM devices", &[("x-ms-max-item-count", "1")]).await;
    let token = first.header("x-ms-continuation").to_owned();
    let headers = [("x-ms-continuation", token.as_str())];
    refused(
        "SELECT * FROM devices WHERE tags.n = 1",
        &headers,
        "not a token of this query",
    )
    .await;
    let last = query(
        &service,
        "SELECT * FROM devices",
        &[headers[0], ("x-ms-max-item-count", "5000")],
    )
    .await;
    assert_eq!(
        last.body.as_array().map(Vec::len),
        Some(2),
        "a count above the most is the most"
    );
    for body in [json!({}), json!({"query": null}), json!([])] {
        assert_eq!(
            service.owner("POST", "/devices/query", Some(body)).await.status,
            StatusCode::BAD_REQUEST
        );
    }
}

#[tokio::test]
async fn a_device_may_be_called_query() {
    let service = Service::start().await;
    let created = service
        .owner("PUT", "/devices/query", Some(json!({"deviceId": "query"})))
        .await;
    assert_eq!(created.status, StatusCode::OK, "{}", created.body);
    let found = service.owner("GET", "/devices/query", None).await;
    assert_eq!(found.body["deviceId"], Value::from("query"));
    let answer = query(&service, "SELECT deviceId FROM devices", &[]).await;
    assert_eq!(answer.body, json!([{"deviceId": "query"}]));
    assert_eq!(
        service.owner("DELETE", "/devices/query", None).await.status,
        StatusCode::NO_CONTENT
    );
}
