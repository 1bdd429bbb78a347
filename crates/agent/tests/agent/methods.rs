//! Direct methods of `$edgeAgent` (edge.md section 5).

use std::io::Read as _;
use std::time::Duration;

use base64::Engine as _;
use holdfast_agent::host::UploadError;
use serde_json::{Value, json};

use crate::site::{Run, Site, deployment, module, pass, until};

async fn site() -> (Site, Run) {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let version = site.twin.deploy(&deployment(&[
        ("Sensor", module("a:1", json!({}))),
        ("filter", module("a:1", json!({}))),
    ]));
    site.done(version).await;
    site.engine.say("Sensor", false, "<6> one\n<4> two\n");
    site.engine
        .say("Sensor", true, "<3> 2026-11-21 11:00:00.123 +01:00 three\nfour");
    site.engine.say("filter", false, "five\n");
    (site, run)
}

async fn logs(site: &Site, changes: Value) -> (i64, Value) {
    let mut request = json!({"schemaVersion": "1.0", "items": [{"id": "sensor"}]});
    holdfast_agent::manifest::merge(
        request.as_object_mut().unwrap(),
        changes.as_object().cloned().unwrap(),
    );
    site.twin.method("GetModuleLogs", &request).await
}

#[tokio::test(start_paused = true)]
async fn ping_and_the_unknown() {
    let (site, run) = site().await;
    assert_eq!(site.twin.method("PING", &json!(null)).await.0, 200);
    assert_eq!(
        site.twin.method("ping", &json!({"x": 1})).await,
        (200, Value::Null)
    );
    let (status, body) = site.twin.method("reboot", &json!({})).await;
    assert_eq!(status, 400);
    let message = body["message"].as_str().unwrap();
    for name in [
        "ping",
        "RestartModule",
        "GetModuleLogs",
        "UploadModuleLogs",
        "UploadSupportBundle",
        "GetTaskStatus",
    ] {
        assert!(message.contains(name), "{message}");
    }
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn bad_requests() {
    let (site, run) = site().await;
    for (method, payload, text) in [
        ("GetModuleLogs", json!(null), "no payload"),
        ("GetModuleLogs", json!([]), "not a JSON object"),
        ("GetModuleLogs", json!({}), "schemaVersion is missing"),
        ("GetModuleLogs", json!({"schemaVersion": "2.0"}), "schemaVersion"),
        (
            "GetModuleLogs",
            json!({"schemaVersion": "1.0"}),
            "items is missing",
        ),
        (
            "GetModuleLogs",
            json!({"schemaVersion": "1.0", "items": []}),
            "items is empty",
        ),
        (
            "GetModuleLogs",
            json!({"schemaVersion": "1.0", "items": {"id": "("}}),
            "regular expression",
        ),
        (
            "GetModuleLogs",
            json!({"schemaVersion": "1.0", "items": {"id": "a", "filter": {"tail": -1}}}),
            "tail",
        ),
        (
            "GetModuleLogs",
            json!({"schemaVersion": "1.0", "items": {"id": "a", "filter": {"since": "then"}}}),
            "since",
        ),
        (
            "GetModuleLogs",
            json!({"schemaVersion": "1.0", "items": {"id": "a", "filter": {"loglevel": 8}}}),
            "loglevel",
        ),
        (
            "GetModuleLogs",
            json!({"schemaVersion": "1.0", "items": {"id": "a"}, "encoding": "zip"}),
            "encoding",
        ),
        ("RestartModule", json!({"schemaVersion": "1.0"}), "id is missing"),
        (
            "UploadModuleLogs",
            json!({"schemaVersion": "1.0", "items": {"id": "a"}}),
            "sasUrl is missing",
        ),
        (
            "UploadModuleLogs",
            json!({"schemaVersion": "1.0", "items": {"id": "a"}, "sasUrl": "https://x/y"}),
            "signature",
        ),
        (
            "UploadModuleLogs",
            json!({"schemaVersion": "1.0", "items": {"id": "a"}, "sasUrl": "https://x?s"}),
            "container",
        ),
        (
            "UploadSupportBundle",
            json!({"schemaVersion": "1.0", "sasUrl": "https://$upstream:443/c?s"}),
            "no parent",
        ),
        (
            "GetTaskStatus",
            json!({"schemaVersion": "1.0"}),
            "correlationId is missing",
        ),
    ] {
        let (status, body) = site.twin.method(method, &payload).await;
        assert_eq!(status, 400, "{method} {payload}: {body}");
        assert!(
            body["message"].as_str().unwrap().contains(text),
            "{method} {payload}: {body}"
        );
    }
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn restart_module() {
    let (site, run) = site().await;
    site.engine.take_calls();
    let restart = |id: &str| json!({"schemaVersion": "1.0", "id": id});
    assert_eq!(
        site.twin.method("RestartModule", &restart("Sensor")).await,
        (200, Value::Null)
    );
    assert_eq!(site.engine.take_calls(), ["stop Sensor", "start Sensor"]);
    let (status, body) = site.twin.method("RestartModule", &restart("nobody")).await;
    assert_eq!(status, 500);
    assert!(
        body["message"].as_str().unwrap().contains("no module nobody"),
        "{body}"
    );
    assert_eq!(
        site.twin.method("restartmodule", &restart("edgeHub")).await.0,
        200
    );
    assert_eq!(site.host.take_hub_calls(), ["start", "restart"]);
    let agent = restart("edgeAgent");
    assert_eq!(
        site.twin.method("RestartModule", &agent).await,
        (200, Value::Null)
    );
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn logs_as_text_and_json() {
    let (site, run) = site().await;
    let (status, body) = logs(&site, json!({})).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        body,
        json!([{"id": "Sensor",
            "payload": "<6> one\n<4> two\n<3> 2026-11-21 11:00:00.123 +01:00 three\nfour\n"}])
    );
    let (_, body) = logs(
        &site,
        json!({"contentType": "json", "items": [{"id": "^sen", "filter": {"loglevel": 3}}]}),
    )
    .await;
    let records: Value = serde_json::from_str(body[0]["payload"].as_str().unwrap()).unwrap();
    assert_eq!(
        records,
        json!([{"iothub": "hub.example", "device": "edge1", "id": "Sensor", "stream": "stderr", "loglevel": 3,
            "text": "three", "timestamp": "2026-11-21T10:00:00Z"}])
    );
    // All modules; the first item that fits a module counts.
    let items = json!([{"id": "filter", "filter": {"regex": "nothing"}}, {"id": "all"}]);
    let (_, body) = logs(&site, json!({"items": items})).await;
    let ids: Vec<&str> = body
        .as_array()
        .unwrap()
        .iter()
        .map(|answer| answer["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["Sensor", "filter"]);
    assert_eq!(body[1]["payload"], "");
    // Filters.
    let lines = |filter: Value| {
        let site = &site;
        async move {
            let (status, body) = logs(site, json!({"items": {"id": "sensor", "filter": filter}})).await;
            assert_eq!(status, 200, "{body}");
            body[0]["payload"].as_str().unwrap().lines().count()
        }
    };
    assert_eq!(lines(json!({"loglevel": 4})).await, 2);
    assert_eq!(lines(json!({"regex": "T[WH]"})).await, 2);
    assert_eq!(lines(json!({"regex": "o", "tail": 1})).await, 1);
    assert_eq!(
        lines(json!({"since": "1 day", "until": "2026-11-21T12:00:00Z"})).await,
        4
    );
    let (status, body) = logs(&site, json!({"items": {"id": "nobody"}})).await;
    assert_eq!(status, 500);
    assert!(body["message"].as_str().unwrap().contains("nobody"), "{body}");
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn logs_that_are_too_large_and_compressed() {
    let (site, run) = site().await;
    for number in 0..2_000 {
        site.engine
            .say("Sensor", false, &format!("line {number} {}\n", "x".repeat(90)));
    }
    let (status, body) = logs(&site, json!({})).await;
    assert_eq!(status, 400);
    assert!(body["message"].as_str().unwrap().contains("127000"), "{body}");
    let (status, body) = logs(&site, json!({"encoding": "gzip"})).await;
    assert_eq!(status, 200);
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(body[0]["payloadBytes"].as_str().unwrap())
        .unwrap();
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(&bytes[..])
        .read_to_string(&mut text)
        .unwrap();
    assert!(text.contains(&format!("line 1999 {}\n", "x".repeat(90))));
    run.stop().await;
}

fn task(site: &Site, id: &str) -> impl Future<Output = (i64, Value)> {
    let request = json!({"schemaVersion": "1.0", "correlationId": id});
    let twin = site.twin.clone();
    async move { twin.method("GetTaskStatus", &request).await }
}

async fn ended(site: &Site, body: &Value) -> Value {
    let id = body["correlationId"].as_str().unwrap();
    for _ in 0..1_000 {
        let (_, body) = task(site, id).await;
        if body["status"] == "Completed" || body["status"] == "Failed" {
            return body;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{id} does not end");
}

const SAS: &str = "https://store.example/logs?sv=1&sig=topsecret";

#[tokio::test(start_paused = true)]
async fn uploads_of_text_append() {
    let (site, run) = site().await;
    for number in 0..250 {
        site.engine.say("filter", false, &format!("line {number}\n"));
    }
    site.host.fail_puts(vec![UploadError {
        message: "503".to_owned(),
        transient: true,
    }]);
    let request =
        json!({"schemaVersion": "1.0", "sasUrl": SAS, "encoding": "gzip", "items": {"id": "filter"}});
    let (status, body) = site.twin.method("UploadModuleLogs", &request).await;
    assert_eq!(status, 200);
    let body = ended(&site, &body).await;
    assert_eq!(body["status"], "Completed", "{body}");
    let puts = site.host.puts();
    assert_eq!(puts.len(), 2 + 3, "the blob, tried twice, then three parts");
    let place = "https://store.example/logs/hub.example/edge1/filter-2026-11-21--12-00-";
    assert!(puts.iter().all(|put| put.url.starts_with(place)), "{puts:?}");
    assert!(puts[0].url.ends_with(".log.gz?sv=1&sig=topsecret"));
    assert!(
        puts[0]
            .headers
            .contains(&("x-ms-blob-type", "AppendBlob".to_owned()))
    );
    assert!(
        puts[0]
            .headers
            .contains(&("x-ms-blob-content-encoding", "gzip".to_owned()))
    );
    assert!(puts[4].url.contains("?comp=appendblock&sv=1"));
    let blob: Vec<u8> = puts[2..].iter().flat_map(|put| put.body.to_vec()).collect();
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(&blob[..])
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text.lines().count(), 251);
    assert!(
        !format!("{puts:?}").contains("topsecret"),
        "addresses are credentials"
    );
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn uploads_of_json_are_one_blob() {
    let (site, run) = site().await;
    let request =
        json!({"schemaVersion": "1.0", "sasUrl": SAS, "contentType": "json", "items": {"id": "all"}});
    let (_, body) = site.twin.method("UploadModuleLogs", &request).await;
    assert_eq!(ended(&site, &body).await["status"], "Completed");
    let puts = site.host.puts();
    assert_eq!(puts.len(), 4, "a block and a list for each of two modules");
    assert!(puts[0].url.contains(".json?comp=block&blockid="));
    let records: Value = serde_json::from_slice(&puts[0].body).unwrap();
    assert_eq!(records.as_array().unwrap().len(), 4);
    assert!(puts[1].url.contains("?comp=blocklist&"));
    assert!(
        puts[1]
            .headers
            .contains(&("x-ms-blob-content-type", "application/json".to_owned()))
    );
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn uploads_of_text_are_blocks_where_the_store_cannot_append() {
    let (site, run) = site().await;
    site.host.fail_puts(vec![UploadError {
        message: "400".to_owned(),
        transient: false,
    }]);
    let request = json!({"schemaVersion": "1.0", "sasUrl": SAS, "items": {"id": "filter"}});
    let (_, body) = site.twin.method("UploadModuleLogs", &request).await;
    assert_eq!(ended(&site, &body).await["status"], "Completed");
    let puts = site.host.puts();
    assert_eq!(puts.len(), 3, "the refused blob, a block, the list");
    assert!(puts[1].url.contains(".log?comp=block&blockid="));
    assert!(!puts[1].body.is_empty());
    assert!(puts[2].url.contains(".log?comp=blocklist&"));
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn uploads_that_fail_say_why() {
    let (site, run) = site().await;
    let refused = UploadError {
        message: "403 AuthenticationFailed".to_owned(),
        transient: false,
    };
    // The append blob, and the block that is tried in its place.
    site.host.fail_puts(vec![refused.clone(), refused]);
    let request = json!({"schemaVersion": "1.0", "sasUrl": SAS, "items": {"id": "filter"}});
    let (_, body) = site.twin.method("UploadModuleLogs", &request).await;
    let body = ended(&site, &body).await;
    assert_eq!(body["status"], "Failed");
    let message = body["message"].as_str().unwrap();
    assert!(
        message.contains("403") && !message.contains("topsecret"),
        "{message}"
    );
    let (status, body) = task(&site, "00000000-0000-0000-0000-000000000000").await;
    assert_eq!((status, &body["status"]), (200, &json!("Unknown")));
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn support_bundles_go_up_in_blocks() {
    let (site, run) = site().await;
    let content: Vec<u8> = (0..2_500_000_u32).map(|number| number.to_le_bytes()[0]).collect();
    site.host.set_bundle(&content);
    let request = json!({"schemaVersion": "1.0", "sasUrl": SAS, "since": "2d", "edgeRuntimeOnly": true});
    let (status, body) = site.twin.method("UploadSupportBundle", &request).await;
    assert_eq!(status, 200);
    assert_eq!(ended(&site, &body).await["status"], "Completed");
    let puts = site.host.puts();
    assert_eq!(puts.len(), 4);
    let sent: Vec<u8> = puts[..3].iter().flat_map(|put| put.body.to_vec()).collect();
    assert_eq!(sent, content);
    assert!(
        puts[3]
            .headers
            .contains(&("x-ms-blob-content-type", "application/zip".to_owned()))
    );
    let requests = site.host.bundle_requests();
    assert!(requests[0].edge_runtime_only);
    let since = requests[0].since.unwrap().to_string();
    assert!(since.starts_with("2026-11-19T12:00:0"), "{since}");
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn floods_of_methods_are_bounded() {
    let (site, run) = site().await;
    site.engine.fault(
        "list",
        "*",
        holdfast_agent::memory::Fault::Delay(Duration::from_secs(30)),
        1_000,
    );
    let calls: Vec<_> = (0..40)
        .map(|_| {
            let twin = site.twin.clone();
            tokio::spawn(async move {
                let request = json!({"schemaVersion": "1.0", "items": {"id": "filter"}});
                twin.method("GetModuleLogs", &request).await
            })
        })
        .collect();
    let mut refused = 0;
    for call in calls {
        let (status, body) = call.await.unwrap();
        if status == 500 {
            assert!(body["message"].as_str().unwrap().contains("too many"), "{body}");
            refused += 1;
        }
    }
    assert_eq!(refused, 40 - 16);
    site.engine.heal();
    pass(60).await;
    until("answers again", || true).await;
    assert_eq!(site.twin.method("ping", &json!(null)).await.0, 200);
    run.stop().await;
}
