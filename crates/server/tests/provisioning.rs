//! Provisioning between real processes: devices that move between two hubs, webhooks of every temper, and everybody who
//! must not be let in.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_model::credential::SymmetricKey;
use rcgen::ExtendedKeyUsagePurpose;
use serde_json::{Value, json};
use support::dps::{Dps, Issuer, Proof, authority, connection_string, leaf};
use support::{Hub, text};

/// The name under which the second hub is known; the first one is `localhost`.
const OTHER: &str = "127.0.0.2";

fn start(dir: &Path, name: &str) -> Hub {
    Hub::start(&dir.join(name), &["--listen", "127.0.0.1"])
}

/// Every hub calls itself `localhost` too, so the other one has an address that the first one does not have.
fn start_other(dir: &Path, extra: &[&str]) -> Hub {
    let flags = [&["--listen", OTHER, "--host", OTHER], extra].concat();
    Hub::start(&dir.join("other"), &flags)
}

fn link(hub: &Hub, other: &Hub) {
    let ca = other.data_dir.join("ca.pem");
    hub.json(&[
        "dps",
        "linked-hub",
        "set",
        OTHER,
        "--connection-string",
        &connection_string(other),
        "--hub-ca",
        ca.to_str().unwrap(),
    ]);
}

/// The key of a device in a group.
fn derived(hub: &Hub, group: &str, id: &str) -> SymmetricKey {
    let item = hub.json(&[
        "dps",
        "compute-device-key",
        "--group",
        group,
        "--registration-id",
        id,
    ]);
    SymmetricKey::parse(item["symmetricKey"].as_str().unwrap()).unwrap()
}

fn exists(hub: &Hub, device: &str) -> bool {
    match hub.run(&["device", "show", device]).status.code() {
        Some(0) => true,
        Some(3) => false,
        other => panic!("device show {device}: {other:?}"),
    }
}

#[test]
fn a_device_moves_between_two_running_hubs() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(dir.path(), "first");
    let second = start_other(dir.path(), &[]);
    link(&first, &second);
    first.json(&[
        "dps",
        "group",
        "create",
        "line-4",
        "--allocation",
        "static",
        "--hub",
        "localhost",
        "--tags",
        r#"{"line":4}"#,
        "--desired",
        r#"{"interval":5}"#,
    ]);
    let dps = Dps::of(&first);
    let proof = Proof::Key(derived(&first, "line-4", "press-4"));
    let answer = dps.register("press-4", &proof);
    let state = &answer.body["registrationState"];
    assert_eq!(
        (&state["assignedHub"], &state["substatus"]),
        (&json!("localhost"), &json!("initialAssignment")),
        "{}",
        answer.body
    );
    let twin = first.json(&["twin", "show", "press-4"]);
    assert_eq!(
        (&twin["tags"], &twin["properties"]["desired"]["interval"]),
        (&json!({"line": 4}), &json!(5))
    );
    first.json(&["twin", "update", "press-4", "--desired", r#"{"interval":60}"#]);

    // To the other hub, with the twin as it is now.
    first.json(&["dps", "group", "update", "line-4", "--hub", OTHER]);
    let answer = dps.register("press-4", &proof);
    let state = &answer.body["registrationState"];
    assert_eq!(
        (&state["assignedHub"], &state["substatus"]),
        (&json!(OTHER), &json!("deviceDataMigrated")),
        "{}",
        answer.body
    );
    let twin = second.json(&["twin", "show", "press-4"]);
    assert_eq!(
        (&twin["tags"], &twin["properties"]["desired"]["interval"]),
        (&json!({"line": 4}), &json!(60))
    );
    assert!(!exists(&first, "press-4"), "the old hub keeps nothing");
    let keys = second.json(&["device", "keys", "press-4"]);
    let Proof::Key(key) = &proof else { unreachable!() };
    assert_eq!(keys["primaryKey"], key.reveal(), "it logs in with its own key");

    // Back, and reset.
    let reset = ["--reprovision", "reset", "--hub", "localhost"];
    first.json(&[&["dps", "group", "update", "line-4"], &reset[..]].concat());
    let answer = dps.register("press-4", &proof);
    let state = &answer.body["registrationState"];
    assert_eq!(
        (&state["assignedHub"], &state["substatus"]),
        (&json!("localhost"), &json!("deviceDataReset")),
        "{}",
        answer.body
    );
    let twin = first.json(&["twin", "show", "press-4"]);
    assert_eq!(twin["properties"]["desired"]["interval"], 5, "the initial twin");
    assert!(!exists(&second, "press-4"));

    // Never: the hub stays, whatever the group says.
    let never = ["--reprovision", "never", "--hub", OTHER];
    first.json(&[&["dps", "group", "update", "line-4"], &never[..]].concat());
    let answer = dps.register("press-4", &proof);
    assert_eq!(answer.body["registrationState"]["assignedHub"], "localhost");
}

#[test]
fn a_hub_that_is_away_delays_a_registration_and_loses_none() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(dir.path(), "first");
    let second = start_other(dir.path(), &[]);
    let port = second.https_port().to_string();
    link(&first, &second);
    let allocation = ["--allocation", "static", "--hub", OTHER];
    first.json(&[&["dps", "group", "create", "g"], &allocation[..]].concat());
    let dps = Dps::of(&first);
    let proof = Proof::Key(derived(&first, "g", "d"));
    second.kill();
    let answer = dps.put(&dps.id_scope, "d", &proof, r#"{"registrationId":"d"}"#);
    assert_eq!(answer.status, 503, "{}", answer.body);
    let second = start_other(dir.path(), &["--https-port", &port]);
    let answer = dps.register("d", &proof);
    assert_eq!(
        answer.body["registrationState"]["assignedHub"], OTHER,
        "{}",
        answer.body
    );
    assert!(exists(&second, "d"));
    let (_, log) = first.stop();
    let delayed = |line: &str| line.contains("registration delayed") && line.contains("\"d\"");
    assert!(log.lines().any(delayed), "{log}");
}

#[test]
fn the_nearest_hub_is_measured_unless_it_is_configured() {
    let dir = tempfile::tempdir().unwrap();
    let first = start(dir.path(), "first");
    let second = start_other(dir.path(), &[]);
    link(&first, &second);
    let measured = support::wait_for("a measured latency", || {
        let hub = first.json(&["dps", "linked-hub", "show", OTHER]);
        hub["measuredLatencyMs"].as_u64()
    });
    assert!(measured < 5_000, "{measured}");
    first.json(&["dps", "group", "create", "g", "--allocation", "geo-latency"]);
    first.json(&["dps", "linked-hub", "set", "localhost", "--latency", "60000"]);
    let dps = Dps::of(&first);
    let register = |id: &str| {
        let proof = Proof::Key(derived(&first, "g", id));
        dps.register(id, &proof).body["registrationState"]["assignedHub"].clone()
    };
    assert_eq!(register("a"), OTHER, "measured {measured} ms against 60 s");
    first.json(&["dps", "linked-hub", "set", OTHER, "--latency", "60001"]);
    assert_eq!(register("b"), "localhost");
    assert_eq!(register("a"), "localhost", "and it moves when that changes");
}

/// A webhook that does what its path says, and keeps what it was asked.
struct Webhook {
    url: String,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Webhook {
    fn start() -> Webhook {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, kept) = (stream.unwrap(), Arc::clone(&kept));
                std::thread::spawn(move || Self::answer(stream, &kept));
            }
        });
        Webhook { url, asked }
    }

    fn answer(mut stream: std::net::TcpStream, kept: &Mutex<Vec<Value>>) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let path = line.split(' ').nth(1)?.to_owned();
        let mut length = 0;
        loop {
            line.clear();
            reader.read_line(&mut line).ok()?;
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        kept.lock().ok()?.push(serde_json::from_slice(&body).ok()?);
        let good = json!({ "iotHubHostName": "localhost", "payload": { "site": 7 },
            "initialTwin": { "tags": { "by": "webhook" }, "properties": { "desired": { "x": 1 } } } });
        let (status, body) = match path.split('?').next()? {
            "/good" => (200, good.to_string()),
            "/nonsense" => (200, "<html>".to_owned()),
            "/no-hub" => (200, "{}".to_owned()),
            "/unknown-hub" => (200, json!({ "iotHubHostName": "other.example" }).to_string()),
            "/bad-twin" => (
                200,
                json!({ "iotHubHostName": "localhost", "initialTwin": { "tags": 5 } }).to_string(),
            ),
            "/failing" => (500, good.to_string()),
            "/away" => (302, String::new()),
            "/huge" => {
                // For as long as it is read.
                let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
                stream.write_all(head.as_bytes()).ok()?;
                while stream.write_all(&[b' '; 65_536]).is_ok() {}
                return None;
            }
            "/hanging" => {
                std::thread::sleep(Duration::from_secs(60));
                return None;
            }
            _ => return None,
        };
        let head = format!(
            "HTTP/1.1 {status} X\r\nlocation: /good\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body.as_bytes()).ok()
    }
}

#[test]
fn webhooks_choose_and_fail() {
    let dir = tempfile::tempdir().unwrap();
    let hub = start(dir.path(), "data");
    let webhook = Webhook::start();
    let key = SymmetricKey::generate();
    let enroll = |id: &str, url: &str| {
        hub.json(&[
            "dps",
            "enrollment",
            "create",
            id,
            "--primary-key",
            key.reveal(),
            "--allocation",
            "custom",
            "--webhook",
            url,
        ]);
    };
    let dps = Dps::of(&hub);
    let proof = Proof::Key(key.clone());
    enroll("good", &format!("{}/good?code=1", webhook.url));
    let body = json!({ "registrationId": "good", "payload": { "model": "m4" } });
    let answer = dps.register_with("good", &proof, &body);
    let state = &answer.body["registrationState"];
    assert_eq!(
        (&state["status"], &state["payload"]),
        (&json!("assigned"), &json!({ "site": 7 })),
        "{}",
        answer.body
    );
    let twin = hub.json(&["twin", "show", "good"]);
    assert_eq!(
        (&twin["tags"], &twin["properties"]["desired"]["x"]),
        (&json!({"by": "webhook"}), &json!(1))
    );
    let asked = webhook.asked.lock().unwrap()[0].clone();
    assert_eq!(asked["deviceRuntimeContext"]["registrationId"], "good");
    assert_eq!(asked["deviceRuntimeContext"]["payload"], json!({ "model": "m4" }));
    assert_eq!(asked["deviceRuntimeContext"]["symmetricKey"], json!({}));
    assert_eq!(asked["individualEnrollment"]["registrationId"], "good");
    assert_eq!(asked["linkedHubs"], json!(["localhost"]));
    assert!(!asked.to_string().contains(key.reveal()), "no key leaves");
    dps.register("good", &proof);
    let again = webhook.asked.lock().unwrap()[1].clone();
    assert_eq!(
        (
            &again["deviceRuntimeContext"]["currentIotHubHostName"],
            &again["deviceRuntimeContext"]["currentDeviceId"]
        ),
        (&json!("localhost"), &json!("good"))
    );

    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/", listener.local_addr().unwrap())
    };
    let path = |path: &str| format!("{}{path}", webhook.url);
    for (id, url, code) in [
        ("nonsense", path("/nonsense"), 400_207),
        ("no-hub", path("/no-hub"), 400_208),
        ("unknown-hub", path("/unknown-hub"), 400_208),
        ("bad-twin", path("/bad-twin"), 400_207),
        ("failing", path("/failing"), 400_207),
        ("away", path("/away"), 400_207),
        ("huge", path("/huge"), 400_207),
        ("hanging", path("/hanging"), 400_207),
        ("closing", path("/closing"), 400_207),
        ("gone", gone, 400_207),
    ] {
        enroll(id, &url);
        let answer = dps.register(id, &proof);
        assert_eq!(
            (answer.status, &answer.body["status"], answer.code()),
            (200, &json!("failed"), json!(code)),
            "{id}: {}",
            answer.body
        );
        assert!(!exists(&hub, id));
        let shown = hub.json(&["dps", "registration", "show", id]);
        assert_eq!(
            (&shown["status"], &shown["errorCode"]),
            (&json!("failed"), &json!(code))
        );
    }
    let (_, log) = hub.stop();
    for id in ["nonsense", "unknown-hub", "hanging", "huge", "gone"] {
        let named = |line: &&str| line.contains("registration failed") && line.contains(&format!("\"{id}\""));
        assert!(
            log.lines().any(|line| named(&line)),
            "{id} is not in the log:\n{log}"
        );
    }
    assert!(!log.contains(key.reveal()));
}

/// Everybody who is refused: `(registration id, proof, body, scope, status, code)`.
struct Refusal {
    id: &'static str,
    proof: Proof,
    body: String,
    scope: Option<&'static str>,
    status: u16,
    code: u32,
}

fn refusal(id: &'static str, proof: Proof, status: u16, code: u32) -> Refusal {
    Refusal {
        id,
        proof,
        body: json!({ "registrationId": id }).to_string(),
        scope: None,
        status,
        code,
    }
}

fn chain(leaf: (String, String), more: &[&Issuer]) -> Proof {
    let mut chain = vec![leaf.0];
    chain.extend(more.iter().map(|issuer| issuer.pem()));
    Proof::Chain(chain, leaf.1)
}

/// Two authorities that vouch for each other, and for nobody else.
fn circle() -> (Issuer, Issuer) {
    let root = authority("circle-a", None);
    let second = authority("circle-b", Some(&root));
    // The same name and key as `root`, but issued by `second`.
    let key = rcgen::KeyPair::from_pem(&root.key().serialize_pem()).unwrap();
    let mut params = support::dps::params("circle-a", 1);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let closed = rcgen::CertifiedIssuer::signed_by(params, key, &second).unwrap();
    (closed, second)
}

#[test]
fn nobody_is_let_in_who_must_not() {
    let dir = tempfile::tempdir().unwrap();
    let hub = start(dir.path(), "data");
    let key = SymmetricKey::generate();
    for id in [
        "disabled",
        "wrong-key",
        "foreign",
        "large",
        "other-body",
        "no-proof",
    ] {
        let enrollment = ["dps", "enrollment", "create", id, "--primary-key", key.reveal()];
        hub.json(&enrollment);
    }
    hub.json(&["dps", "enrollment", "update", "disabled", "--enabled", "false"]);
    let root = authority("plant-root", None);
    let middle = authority("plant-middle", Some(&root));
    let stranger = authority("stranger", None);
    let file = dir.path().join("root.pem");
    std::fs::write(&file, root.pem()).unwrap();
    hub.json(&[
        "dps",
        "group",
        "create",
        "x",
        "--certificate",
        file.to_str().unwrap(),
    ]);
    let client = || Some(ExtendedKeyUsagePurpose::ClientAuth);
    let (circle_a, circle_b) = circle();
    let mut long: Vec<&Issuer> = vec![&circle_a, &circle_b];
    long.extend(std::iter::repeat_n(&circle_b, 6));
    let mut cases = vec![
        refusal("wrong-key", Proof::Key(SymmetricKey::generate()), 401, 401_002),
        refusal("no-proof", Proof::Nothing, 401, 401_002),
        refusal("unknown-device", Proof::Key(key.clone()), 404, 404_201),
        refusal(
            "expired",
            chain(leaf("expired", -1, client(), &root), &[]),
            401,
            401_002,
        ),
        refusal(
            "someone",
            chain(leaf("someone-else", 1, client(), &root), &[]),
            401,
            401_002,
        ),
        refusal(
            "server-cert",
            chain(
                leaf("server-cert", 1, Some(ExtendedKeyUsagePurpose::ServerAuth), &root),
                &[],
            ),
            401,
            401_002,
        ),
        refusal(
            "stranger",
            chain(leaf("stranger", 1, client(), &stranger), &[&stranger]),
            401,
            401_002,
        ),
        refusal(
            "cut-chain",
            chain(leaf("cut-chain", 1, client(), &middle), &[]),
            401,
            401_002,
        ),
        refusal(
            "circle",
            chain(leaf("circle", 1, client(), &circle_a), &long),
            401,
            401_002,
        ),
    ];
    cases.push(Refusal {
        scope: Some("0ne0000FFFF"),
        ..refusal("foreign", Proof::Key(key.clone()), 404, 404_201)
    });
    cases.push(Refusal {
        body: json!({ "registrationId": "large", "payload": "x".repeat(100_000) }).to_string(),
        ..refusal("large", Proof::Key(key.clone()), 413, 413_001)
    });
    cases.push(Refusal {
        body: json!({ "registrationId": "somebody" }).to_string(),
        ..refusal("other-body", Proof::Key(key.clone()), 400, 400_202)
    });
    let dps = Dps::of(&hub);
    for case in &cases {
        let scope = case.scope.unwrap_or(&dps.id_scope);
        let answer = dps.put(scope, case.id, &case.proof, &case.body);
        assert_eq!(
            (answer.status, answer.code()),
            (case.status, json!(case.code)),
            "{}: {}",
            case.id,
            answer.body
        );
        assert!(
            answer.body["trackingId"].is_string(),
            "{}: {}",
            case.id,
            answer.body
        );
        assert!(!exists(&hub, case.id));
    }
    // A disabled enrollment is told as a state, since the SDKs fail on nothing else in a useful way.
    let answer = dps.register("disabled", &Proof::Key(key.clone()));
    assert_eq!(answer.body["status"], "disabled", "{}", answer.body);
    assert!(!exists(&hub, "disabled"));

    // The same authority lets in whom it should: with the whole chain.
    let proof = chain(leaf("press-4", 1, client(), &middle), &[&middle]);
    let answer = dps.register("press-4", &proof);
    assert_eq!(answer.body["status"], "assigned", "{}", answer.body);

    let (_, log) = hub.stop();
    for id in cases.iter().map(|case| case.id).chain(["disabled"]) {
        assert!(
            log.lines()
                .any(|line| line.contains("\"WARN\"") && line.contains(&format!("\"{id}\""))),
            "{id} is not in the log:\n{log}"
        );
    }
    assert!(!log.contains(key.reveal()), "a key is in the log");
}

#[test]
fn groups_admit_whom_their_lists_say() {
    let dir = tempfile::tempdir().unwrap();
    let hub = start(dir.path(), "data");
    hub.json(&["dps", "group", "create", "line-4"]);
    let lists = hub.json(&[
        "dps", "group", "access", "line-4", "--allow", "press-*", "--deny", "press-13",
    ]);
    assert_eq!(lists["allow"], json!(["press-*"]));
    // What the lists are is no member of the group, so a change of the group by an SDK does not end them.
    hub.json(&["dps", "group", "update", "line-4", "--edge", "true"]);
    let dps = Dps::of(&hub);
    let status = |id: &str| {
        let proof = Proof::Key(derived(&hub, "line-4", id));
        dps.register(id, &proof).body["status"].clone()
    };
    assert_eq!(
        (status("press-4"), status("press-13"), status("robot-1")),
        (json!("assigned"), json!("disabled"), json!("disabled"))
    );
    hub.json(&["dps", "group", "access", "line-4", "--clear"]);
    assert_eq!(status("robot-1"), "assigned");
    let refused = hub.run(&["dps", "group", "access", "line-4", "--allow", "no spaces"]);
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused.stderr));
}
