//! Import and export: lines over HTTP, and jobs between the hub and blobs.

mod support;

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};
use support::Service;
use tower::ServiceExt as _;

/// Sends lines; gives the summary and the bad lines.
async fn import(service: &Service, body: impl Into<Body>) -> (Value, Vec<Value>) {
    let request = Request::builder()
        .method("POST")
        .uri("/holdfast/v1/import")
        .header("authorization", service.token("iothubowner"))
        .body(body.into())
        .expect("a request");
    let response = service.router.clone().oneshot(request).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    let text = lines_of(response).await;
    let mut lines = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON on each line"));
    (lines.next().expect("a summary"), lines.collect())
}

async fn lines_of(response: axum::response::Response) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), 64 << 20)
        .await
        .expect("a body");
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

async fn export(service: &Service, query: &str) -> String {
    let token = service.token("iothubowner");
    let path = format!("/holdfast/v1/export{query}");
    let response = service
        .send("GET", &path, &[("authorization", &token)], None)
        .await;
    assert_eq!(response.status(), StatusCode::OK);
    lines_of(response).await
}

/// Lines without what every hub makes anew: entity tags and the times of metadata.
fn essence(lines: &str) -> Vec<Value> {
    lines
        .lines()
        .map(|line| {
            let mut line: Value = serde_json::from_str(line).expect("JSON on each line");
            for member in ["eTag", "twinETag"] {
                assert!(line[member].is_string());
                line[member] = Value::Null;
            }
            for section in ["desired", "reported"] {
                assert!(line["properties"][section]["$metadata"]["$lastUpdated"].is_string());
                line["properties"][section]["$metadata"] = Value::Null;
            }
            line
        })
        .collect()
}

fn key(letter: char) -> String {
    format!("{}A=", letter.to_string().repeat(42))
}

/// A fleet of every kind, with children that come before their parents.
fn fleet() -> String {
    let edge = |id: &str| format!("ms-azure-iot-edge://{id}-638000000000000001");
    let sas = |letter| json!({"type": "sas", "symmetricKey": {"primaryKey": key(letter), "secondaryKey": key('Z')}});
    let lines = [
        json!({"id": "a-child", "authentication": sas('A'), "status": "enabled", "deviceScope": edge("gateway"),
            "capabilities": {"iotEdge": false}}),
        json!({"id": "a-child", "moduleId": "m1", "authentication": sas('B'), "managedBy": "somebody",
            "properties": {"desired": {"x": 1, "$version": 4}, "reported": {"y": [1, {"z": true}], "$version": 9}}}),
        json!({"id": "b-inner-gateway", "authentication": sas('C'), "capabilities": {"iotEdge": true},
            "deviceScope": edge("b-inner-gateway"), "parentScopes": [edge("gateway")]}),
        json!({"id": "gateway", "authentication": sas('D'), "capabilities": {"iotEdge": true},
            "deviceScope": edge("gateway")}),
        json!({"id": "gateway", "moduleId": "$edgeAgent", "authentication": sas('E'), "managedBy": "IotEdge",
            "properties": {"desired": {"schemaVersion": "1.1"}, "reported": {"version": {"version": "1.5"}}}}),
        json!({"id": "off", "status": "disabled", "statusReason": "stolen", "authentication": sas('F'),
            "tags": {"plant": "north", "floor": 3}, "modelId": "dtmi:com:example:Thermostat;1",
            "properties": {"desired": {"interval": 5, "$version": 12, "$metadata": {}},
                "reported": {"interval": {"value": 5, "ac": 200, "av": 12}, "$version": 40}}}),
        json!({"id": "x-ca", "authentication": {"type": "certificateAuthority"}}),
        json!({"id": "x-self", "authentication": {"type": "selfSigned",
            "x509Thumbprint": {"primaryThumbprint": "AB".repeat(20), "secondaryThumbprint": "CD".repeat(32)}}}),
    ];
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[tokio::test]
async fn a_fleet_moves_with_all_that_it_is() {
    let first = Service::start().await;
    let (summary, errors) = import(&first, fleet()).await;
    assert_eq!(
        summary,
        json!({"lines": 8, "imported": 8, "failed": 0}),
        "{errors:?}"
    );
    let exported = export(&first, "").await;

    let second = Service::start().await;
    let (summary, errors) = import(&second, exported.clone()).await;
    let lines = exported.lines().count() as u64;
    assert_eq!(
        summary,
        json!({"lines": lines, "imported": lines, "failed": 0}),
        "{errors:?}"
    );
    let again = export(&second, "").await;
    let (before, after) = (essence(&exported), essence(&again));
    let ids = |lines: &[Value]| -> Vec<String> {
        lines
            .iter()
            .map(|line| format!("{}{}", line["id"], line["moduleId"]))
            .collect()
    };
    assert_eq!(ids(&before), ids(&after));
    for (mut before, mut after) in before.into_iter().zip(after) {
        if before["moduleId"].as_str().is_some_and(|id| id.starts_with('$')) {
            // The hub makes these with their device, so that the import changes them.
            before["properties"]["desired"]["$version"] = Value::Null;
            after["properties"]["desired"]["$version"] = Value::Null;
        }
        assert_eq!(before, after);
    }

    // And it is what was given.
    let device = second.owner("GET", "/devices/a-child", None).await.body;
    assert_eq!(device["authentication"]["symmetricKey"]["primaryKey"], key('A'));
    assert_eq!(
        device["deviceScope"],
        "ms-azure-iot-edge://gateway-638000000000000001"
    );
    let twin = second.owner("GET", "/twins/off", None).await.body;
    assert_eq!(twin["modelId"], "dtmi:com:example:Thermostat;1");
    assert_eq!(twin["properties"]["desired"]["$version"], 12);
    assert_eq!(
        twin["properties"]["desired"]["$metadata"]["interval"]["$lastUpdatedVersion"],
        12
    );
    assert_eq!(twin["properties"]["reported"]["$version"], 40);
    assert_eq!(twin["tags"], json!({"plant": "north", "floor": 3}));
    let agent = second
        .owner("GET", "/twins/gateway/modules/$edgeAgent", None)
        .await
        .body;
    assert_eq!(agent["properties"]["reported"]["version"]["version"], "1.5");
    let inner = second.owner("GET", "/devices/b-inner-gateway", None).await.body;
    assert_eq!(
        inner["parentScopes"],
        json!(["ms-azure-iot-edge://gateway-638000000000000001"])
    );
}

#[tokio::test]
async fn exports_can_leave_keys_out() {
    let service = Service::start().await;
    import(&service, fleet()).await;
    let with = export(&service, "").await;
    let without = export(&service, "?excludeKeys=true").await;
    assert_eq!(with.lines().count(), without.lines().count());
    assert!(with.contains(&key('A')));
    assert!(!without.contains(&key('A')) && !without.contains(&key('Z')));
    // Fingerprints are no secret.
    assert!(without.contains(&"AB".repeat(20)) || without.contains(&"ab".repeat(20)));
    let token = service.token("registryRead");
    let refused = service
        .send("GET", "/holdfast/v1/export", &[("authorization", &token)], None)
        .await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn bad_lines_are_named_and_the_others_done() {
    let service = Service::start().await;
    service.owner("PUT", "/devices/old", Some(json!({}))).await;
    let lines = [
        json!({"id": "good", "importMode": "create"}).to_string(),
        "not json".to_owned(),
        String::new(),
        json!([1]).to_string(),
        json!({"id": "bad id"}).to_string(),
        json!({"status": "enabled"}).to_string(),
        json!({"id": "old", "importMode": "create"}).to_string(),
        json!({"id": "nobody", "importMode": "update"}).to_string(),
        json!({"id": "half", "authentication": {"symmetricKey": {"primaryKey": key('A')}}}).to_string(),
        json!({"id": "orphan", "moduleId": "m"}).to_string(),
        json!({"id": "lost", "deviceScope": "ms-azure-iot-edge://none-1"}).to_string(),
        json!({"id": "deep", "tags": {"a.b": 1}}).to_string(),
        json!({"id": "odd", "importMode": "sometimes"}).to_string(),
        json!({"id": "old", "importMode": "updateIfMatchETag", "eTag": "Nzc="}).to_string(),
        format!(
            "{{\"id\":\"long\",\"tags\":{{\"x\":\"{}\"}}}}",
            "y".repeat(3 << 20)
        ),
        json!({"id": "last"}).to_string(),
    ];
    let (summary, errors) = import(&service, lines.join("\n")).await;
    assert_eq!(
        summary,
        json!({"lines": 15, "imported": 2, "failed": 13}),
        "{errors:#?}"
    );
    let mut told: Vec<(u64, String)> = errors
        .iter()
        .map(|error| {
            let id = error["id"].as_str().unwrap_or("-");
            (
                error["line"].as_u64().unwrap_or(0),
                format!("{id} {} {}", error["errorCode"], error["errorStatus"]),
            )
        })
        .collect();
    told.sort();
    for ((line, text), (expected, words)) in told.iter().zip([
        (2, "the line cannot be read"),
        (4, "not an array"),
        (5, "has the character"),
        (6, "no id"),
        (7, "old \"DeviceAlreadyExists\""),
        (8, "nobody \"DeviceNotFound\""),
        (9, "half \"ArgumentInvalid\" \"primaryKey and"),
        (10, "orphan \"DeviceNotFound\""),
        (11, "lost 400901"),
        (12, "tags"),
        (13, "sometimes"),
        (14, "old \"PreconditionFailed\""),
        (15, "longer than 2097152 bytes"),
    ]) {
        assert!(
            *line == expected && text.contains(words),
            "line {line}: {text}; expected {expected} {words}"
        );
    }
    for (id, status) in [
        ("good", 200),
        ("last", 200),
        ("old", 200),
        ("nobody", 404),
        ("long", 404),
    ] {
        assert_eq!(
            service.owner("GET", &format!("/devices/{id}"), None).await.status,
            status,
            "{id}"
        );
    }
}

#[tokio::test]
async fn lines_take_effect_in_their_order() {
    let service = Service::start().await;
    let lines = [
        json!({"id": "d", "tags": {"n": 1}}),
        json!({"id": "d", "tags": {"n": 2}}),
        json!({"id": "d", "importMode": "delete"}),
        json!({"id": "d", "importMode": "create", "tags": {"n": 3}}),
        json!({"id": "d", "moduleId": "m"}),
        json!({"id": "d", "importMode": "updateTwin", "tags": {"m": 4}}),
        json!({"id": "e"}),
        json!({"id": "e", "moduleId": "m"}),
        json!({"id": "e", "importMode": "delete"}),
    ];
    let text: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let (summary, errors) = import(&service, text).await;
    assert_eq!(summary["imported"], 9, "{errors:?}");
    let twin = service.owner("GET", "/twins/d", None).await.body;
    assert_eq!(twin["tags"], json!({"n": 3, "m": 4}));
    assert_eq!(
        service.owner("GET", "/devices/d/modules/m", None).await.status,
        200
    );
    assert_eq!(service.owner("GET", "/devices/e", None).await.status, 404);
}

#[tokio::test]
async fn an_import_that_cannot_be_stored_stops_and_says_so() {
    let service = Service::start().await;
    service.store.set_unavailable(true);
    let (summary, errors) = import(&service, fleet()).await;
    assert!(
        summary["stopped"]
            .as_str()
            .is_some_and(|why| why.contains("storage")),
        "{summary}"
    );
    assert_eq!((summary["imported"].as_u64(), errors.len()), (Some(0), 0));
    service.store.set_unavailable(false);
    let broken = futures_util::stream::iter([
        Ok(axum::body::Bytes::from_static(b"{\"id\":\"one\"}\n{\"id\":\"tw")),
        Err(std::io::Error::other("gone")),
    ]);
    let (summary, _) = import(&service, Body::from_stream(broken)).await;
    assert!(
        summary["stopped"]
            .as_str()
            .is_some_and(|why| why.contains("broke off")),
        "{summary}"
    );
}

#[tokio::test]
async fn many_lines_come_in_batches() {
    let service = Service::start().await;
    let lines: String = (0..3_500).map(|n| format!("{{\"id\":\"d{n:05}\"}}\n")).collect();
    let (summary, _) = import(&service, lines).await;
    assert_eq!(summary, json!({"lines": 3500, "imported": 3500, "failed": 0}));
    assert_eq!(export(&service, "").await.lines().count(), 3_500);
    let counts = service.owner("GET", "/statistics/devices", None).await.body;
    assert_eq!(counts["totalDeviceCount"], 3500);
}

/// Waits until a job has ended.
async fn ended(service: &Service, id: &str) -> Value {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let job = service.owner("GET", &format!("/jobs/{id}"), None).await.body;
        if job["status"] != "running" {
            return job;
        }
        assert!(tokio::time::Instant::now() < deadline, "still running: {job}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn create(service: &Service, job: Value) -> Value {
    let answer = service.owner("POST", "/jobs/create", Some(job)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body
}

fn blob(service: &Service, name: &str) -> Option<String> {
    let blobs = service.files.blobs.lock().expect("not poisoned");
    blobs
        .get(name)
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

fn put_blob(service: &Service, name: &str, text: &str) {
    let mut blobs = service.files.blobs.lock().expect("not poisoned");
    blobs.insert(name.to_owned(), text.as_bytes().to_vec());
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_export_to_blobs_and_import_from_them() {
    let first = Service::start().await;
    import(&first, fleet()).await;
    let job = create(
        &first,
        json!({"type": "export", "outputBlobContainerUri": "mem://out?sig=SECRET", "excludeKeysInExport": false}),
    )
    .await;
    assert_eq!(job["type"], "export");
    assert_eq!(
        job["outputBlobContainerUri"], "mem://out",
        "the signature is not shown"
    );
    let id = job["jobId"].as_str().expect("an id");
    let job = ended(&first, id).await;
    assert_eq!(
        (job["status"].as_str(), job["progress"].as_u64()),
        (Some("completed"), Some(100)),
        "{job}"
    );
    assert!(job["endTimeUtc"].is_string() && job["failureReason"].is_null());
    let lines = blob(&first, "mem://out/devices.txt").expect("the export");
    assert_eq!(essence(&lines), essence(&export(&first, "").await));

    let second = Service::start().await;
    put_blob(&second, "mem://in/fleet.txt", &format!("{lines}nonsense\n"));
    let job = create(
        &second,
        json!({"type": "Import", "inputBlobContainerUri": "mem://in?sig=SECRET", "inputBlobName": "fleet.txt",
            "outputBlobContainerUri": "mem://log?sig=SECRET", "storageAuthenticationType": "keyBased"}),
    )
    .await;
    let job = ended(&second, job["jobId"].as_str().expect("an id")).await;
    assert_eq!(job["status"], "completed", "{job}");
    assert!(
        job["failureReason"]
            .as_str()
            .is_some_and(|why| why.starts_with("1 lines failed")),
        "{job}"
    );
    let errors = blob(&second, "mem://log/importErrors.log").expect("the log");
    let error: Value = serde_json::from_str(&errors).expect("one line");
    assert_eq!(error["line"], lines.lines().count() as u64 + 1);
    assert_eq!(essence(&export(&second, "").await).len(), lines.lines().count());
    let listed = second.owner("GET", "/jobs", None).await.body;
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
    assert!(!listed.to_string().contains("SECRET"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_job_runs_at_a_time_and_can_be_cancelled() {
    let service = Service::start().await;
    let request = json!({"type": "import", "inputBlobContainerUri": "mem://in?sig=s", "inputBlobName": "blocked",
        "outputBlobContainerUri": "mem://log?sig=s"});
    let job = create(&service, request.clone()).await;
    let second = service.owner("POST", "/jobs/create", Some(request)).await;
    assert_eq!(second.status, 403);
    assert_eq!(second.header("iothub-errorcode"), "JobQuotaExceeded");
    let id = job["jobId"].as_str().expect("an id");
    assert_eq!(
        service.owner("DELETE", &format!("/jobs/{id}"), None).await.status,
        204
    );
    put_blob(&service, "mem://in/blocked", "{\"id\":\"d1\"}\n");
    let job = ended(&service, id).await;
    assert_eq!(job["status"], "cancelled", "{job}");
    assert_eq!(service.owner("GET", "/devices/d1", None).await.status, 404);
    // It stays cancelled, and others may run.
    assert_eq!(
        service.owner("DELETE", &format!("/jobs/{id}"), None).await.status,
        204
    );
    let next = create(
        &service,
        json!({"type": "export", "outputBlobContainerUri": "mem://out?sig=s"}),
    )
    .await;
    assert_eq!(
        ended(&service, next["jobId"].as_str().expect("an id")).await["status"],
        "completed"
    );
    assert_eq!(
        service.owner("GET", &format!("/jobs/{id}"), None).await.body["status"],
        "cancelled"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_cannot_work_say_why() {
    let service = Service::start().await;
    for (request, code, words) in [
        (json!({}), "ArgumentNull", "type is missing"),
        (
            json!({"type": "export"}),
            "BlobContainerValidationError",
            "outputBlobContainerUri",
        ),
        (
            json!({"type": "import", "outputBlobContainerUri": "mem://x"}),
            "BlobContainerValidationError",
            "inputBlobContainerUri",
        ),
        (
            json!({"type": "export", "outputBlobContainerUri": "https://x"}),
            "BlobContainerValidationError",
            "mem://",
        ),
        (
            json!({"type": "export", "outputBlobContainerUri": format!("mem://{}", "x".repeat(9_000))}),
            "BlobContainerValidationError",
            "8192",
        ),
        (
            json!({"type": "export", "outputBlobContainerUri": "mem://x", "storageAuthenticationType": "identityBased"}),
            "ArgumentInvalid",
            "keyBased",
        ),
        (
            json!({"type": "export", "outputBlobContainerUri": "mem://x", "includeConfigurations": true}),
            "ArgumentInvalid",
            "includeConfigurations",
        ),
        (json!({"type": "shuffle"}), "IotHubFormatError", "shuffle"),
    ] {
        let answer = service.owner("POST", "/jobs/create", Some(request)).await;
        assert_eq!(answer.header("iothub-errorcode"), code, "{}", answer.body);
        assert!(
            answer.body.to_string().contains(words),
            "{words}: {}",
            answer.body
        );
    }
    assert_eq!(
        service
            .owner("GET", "/jobs/none", None)
            .await
            .header("iothub-errorcode"),
        "JobNotFound"
    );
    assert_eq!(service.owner("DELETE", "/jobs/none", None).await.status, 404);

    let missing = json!({"type": "import", "inputBlobContainerUri": "mem://in?sig=SECRET",
        "outputBlobContainerUri": "mem://log"});
    let job = create(&service, missing).await;
    let job = ended(&service, job["jobId"].as_str().expect("an id")).await;
    assert_eq!(job["status"], "failed");
    let why = job["failureReason"].as_str().expect("a reason");
    assert!(
        why.contains("there is no blob mem://in/devices.txt") && !why.contains("SECRET"),
        "{why}"
    );

    let unwritable = json!({"type": "export", "outputBlobContainerUri": "mem://readonly"});
    let job = create(&service, unwritable).await;
    let job = ended(&service, job["jobId"].as_str().expect("an id")).await;
    assert!(
        job["failureReason"]
            .as_str()
            .is_some_and(|why| why.contains("cannot be written")),
        "{job}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_a_stop_cut_off_has_failed() {
    let service = Service::start().await;
    let request = json!({"type": "import", "inputBlobContainerUri": "mem://in?sig=s", "inputBlobName": "blocked",
        "outputBlobContainerUri": "mem://log?sig=s"});
    let job = create(&service, request).await;
    let id = job["jobId"].as_str().expect("an id").to_owned();
    // What the next start finds in the store.
    let next = service.restarted_jobs().await;
    let job = next.get(&id).expect("it is remembered");
    assert_eq!(job.status.as_str(), "failed");
    assert!(
        job.reason
            .as_ref()
            .is_some_and(|why| why.contains("the hub was stopped while the job ran"))
    );
    put_blob(&service, "mem://in/blocked", "");
}
