//! The APIs over real unix sockets, with an engine in memory. This process plays the modules' processes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_agent::memory::{MemoryEngine, MemoryIdentities};
use holdfast_ports::clock::SystemClock;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::Notify;

use super::callers::Callers;
use super::identity::IdentityApi;
use super::management::{Control, HubOperation, Management};
use super::server::{self, Served, Throttle};
use super::workload::{Generations, Workload};
use super::*;
use crate::certificates::Certificates;
use crate::keys::{FileKeys, KeyStore, Slot};
use crate::modules::{Modules, SystemImages};
use crate::support::SupportBundle;
use crate::system::SystemInfo;

const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAA==";
const DEADLINE: Duration = Duration::from_secs(20);

struct Fixed;

impl Generations for Fixed {
    fn generation_of(&self, _: &str) -> Option<String> {
        Some("7".to_owned())
    }
}

#[derive(Default)]
struct Counted {
    reprovision: AtomicUsize,
    reconcile: AtomicUsize,
    hub: parking_lot::Mutex<Vec<HubOperation>>,
}

impl Control for Counted {
    fn deployment(&self) -> Value {
        json!({"lastDesiredVersion": 8, "lastDesiredStatus": {"code": 400, "description": "modules: no"}})
    }

    fn reprovision(&self) {
        self.reprovision.fetch_add(1, Ordering::Relaxed);
    }

    fn reconcile(&self) {
        self.reconcile.fetch_add(1, Ordering::Relaxed);
    }

    fn operate_hub(&self, operation: HubOperation) -> BoxFuture<'_, Result<(), String>> {
        self.hub.lock().push(operation);
        Box::pin(async move {
            match operation {
                HubOperation::Start => Err("the port is taken".to_owned()),
                _ => Ok(()),
            }
        })
    }
}

struct Rig {
    dir: tempfile::TempDir,
    engine: Arc<MemoryEngine>,
    modules: Arc<Modules>,
    keys: Arc<FileKeys>,
    control: Arc<Counted>,
    _served: Vec<Served>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("identity")).unwrap();
        let text = format!(
            "device.home = \"{}\"\nprovisioning.connection_string = \"HostName=h;DeviceId=d;SharedAccessKey={KEY}\"",
            dir.path().display()
        );
        let settings = crate::config::parse(&text, "edge.toml").unwrap().settings;
        let clock = Arc::new(SystemClock::new());
        let engine = Arc::new(MemoryEngine::new(clock.clone()));
        for module in ["mine", "other"] {
            engine.put_owned(module, "image:1");
        }
        // This process is in the container of `mine`, and init in that of `other`.
        engine.alter("mine", |container| container.pid = Some(std::process::id()));
        engine.alter("other", |container| container.pid = Some(1));
        let keys = Arc::new(FileKeys::open(&dir.path().join("identity"), None).unwrap());
        let certificates = Arc::new(Certificates::new(&settings, "d", clock));
        let modules = Arc::new(Modules::new(Arc::clone(&engine) as _, crate::time_text::now()));
        modules.set_images(SystemImages {
            agent: "agent:1".to_owned(),
            hub: Some("hub:1".to_owned()),
        });
        let control = Arc::new(Counted::default());
        let workload = Arc::new(Workload {
            callers: Callers::new(Arc::clone(&engine) as _),
            keys: Arc::clone(&keys) as _,
            certificates: Arc::clone(&certificates),
            generations: Arc::new(Fixed),
            modules: Arc::clone(&modules),
            hub: "h".to_owned(),
            device_id: "d".to_owned(),
        });
        let management = Management {
            modules: Arc::clone(&modules),
            identities: Arc::new(MemoryIdentities::new("d")),
            system: Arc::new(SystemInfo::new(&settings).unwrap()),
            bundles: Arc::new(SupportBundle::new(
                Arc::clone(&engine) as _,
                "net".to_owned(),
                dir.path(),
                None,
            )),
            control: Arc::clone(&control) as _,
        };
        let identity = IdentityApi {
            hub: "h".to_owned(),
            gateway: "h".to_owned(),
            device_id: "d".to_owned(),
            authentication: "sas",
            source: "manual",
            certificates,
            control: Arc::clone(&control) as _,
        };
        // Longer than the address of a socket may be.
        let folder = dir.path().join("m".repeat(120));
        let throttle = Throttle::new(10);
        let served = vec![
            server::serve(&folder.join("workload.sock"), 0o666, workload, throttle.clone()).unwrap(),
            server::serve(&dir.path().join("mgmt.sock"), 0o660, management, throttle.clone()).unwrap(),
            server::serve(&dir.path().join("identityd.sock"), 0o660, identity, throttle).unwrap(),
        ];
        std::os::unix::fs::symlink(folder, dir.path().join("w")).unwrap();
        Rig {
            dir,
            engine,
            modules,
            keys,
            control,
            _served: served,
        }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn workload(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        call(&self.socket("w/workload.sock"), method, path, &body.to_string()).await
    }

    async fn manage(&self, method: &str, path: &str) -> (u16, Value) {
        call(&self.socket("mgmt.sock"), method, path, "").await
    }
}

/// One request on a connection of its own; the body as JSON, or as text when it is none.
async fn call(socket: &Path, method: &str, path: &str, body: &str) -> (u16, Value) {
    let (status, body) = raw(socket, method, path, body.as_bytes()).await;
    let value = serde_json::from_slice(&body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
    (status, value)
}

async fn raw(socket: &Path, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // A refused body may not be read to its end.
    let _ = stream.write_all(body).await;
    let mut answer = Vec::new();
    let reading = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
    let _ = reading.expect("an answer in time");
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .unwrap_or_else(|| panic!("no head: {answer:?}"));
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut rest = &answer[end + 4..];
    if !head.contains("transfer-encoding: chunked") {
        return (status, rest.to_vec());
    }
    let mut whole = Vec::new();
    loop {
        let line = rest.windows(2).position(|window| window == b"\r\n").unwrap();
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        if length == 0 {
            return (status, whole);
        }
        whole.extend_from_slice(&rest[line + 2..line + 2 + length]);
        rest = &rest[line + 4 + length..];
    }
}

const V: &str = "api-version=2018-06-28";

#[tokio::test]
async fn a_module_signs_with_its_key_and_only_its_own() {
    let rig = Rig::new();
    let body =
        json!({"keyId": "primary", "algo": "HMACSHA256", "data": STANDARD.encode("h%2Fdevices%2Fd\n123")});
    for version in ["2018-06-28", "2022-08-03"] {
        let path = format!("/modules/mine/genid/old/sign?api-version={version}");
        let (status, answer) = rig.workload("POST", &path, &body).await;
        let key = rig.keys.module_key("mine", "7", Slot::Primary).await.unwrap();
        let digest = STANDARD.encode(key.sign(&[b"h%2Fdevices%2Fd\n123"]));
        assert_eq!((status, &answer["digest"]), (200, &json!(digest)));
    }
    for other in ["other", "nobody", "%24edgeHub", "edgeAgent"] {
        let (status, answer) = rig
            .workload("POST", &format!("/modules/{other}/genid/7/sign?{V}"), &body)
            .await;
        assert_eq!(
            (status, &answer),
            (403, &json!({"message": "forbidden"})),
            "{other}"
        );
    }
    // What was learnt of this process does not hold for another container.
    rig.engine.alter("mine", |container| container.pid = None);
    assert_eq!(
        rig.workload("POST", &format!("/modules/mine/genid/7/sign?{V}"), &body)
            .await
            .0,
        200
    );
    assert_eq!(
        rig.workload("POST", &format!("/modules/other/genid/7/sign?{V}"), &body)
            .await
            .0,
        403
    );
}

#[tokio::test]
async fn what_is_wrong_is_told_as_the_original_tells_it() {
    let rig = Rig::new();
    let sign = "/modules/mine/genid/7/sign";
    let good = json!({"data": ""});
    for (method, path, body, status) in [
        ("POST", sign.to_owned(), good.clone(), 400),
        (
            "POST",
            format!("{sign}?api-version=2017-01-01"),
            good.clone(),
            400,
        ),
        ("GET", format!("{sign}?{V}"), good.clone(), 400),
        (
            "POST",
            format!("/modules/mine/genid/7/stamp?{V}"),
            good.clone(),
            404,
        ),
        ("POST", format!("{sign}?{V}"), json!({"data": "not base64!"}), 400),
        ("POST", format!("{sign}?{V}"), json!({"data": 7}), 422),
        ("POST", format!("{sign}?{V}"), json!("{"), 422),
        (
            "POST",
            format!("/modules/mine/genid/7/decrypt?{V}"),
            json!({"ciphertext": "AAAA", "initializationVector": ""}),
            400,
        ),
        (
            "POST",
            format!("/modules/mine/genid/7/certificate/server?{V}"),
            json!({"commonName": ""}),
            400,
        ),
    ] {
        let (found, answer) = rig.workload(method, &path, &body).await;
        assert_eq!(found, status, "{method} {path}: {answer}");
        assert!(answer["message"].is_string(), "{answer}");
    }
    let (status, _) = raw(
        &rig.socket("w/workload.sock"),
        "POST",
        &format!("{sign}?{V}"),
        &vec![b' '; 5 << 20],
    )
    .await;
    assert_eq!(status, 413);
}

#[tokio::test]
async fn a_module_encrypts_and_decrypts() {
    let rig = Rig::new();
    let (plain, vector) = (STANDARD.encode("secret"), STANDARD.encode("any length of vector"));
    let path = |verb: &str| format!("/modules/mine/genid/7/{verb}?{V}");
    let body = json!({"plaintext": plain, "initializationVector": vector});
    let (status, sealed) = rig.workload("POST", &path("encrypt"), &body).await;
    assert_eq!(status, 200);
    let body = json!({"ciphertext": sealed["ciphertext"], "initializationVector": vector});
    let (status, opened) = rig.workload("POST", &path("decrypt"), &body).await;
    assert_eq!((status, opened), (200, json!({"plaintext": plain})));
}

#[tokio::test]
async fn certificates_and_trust_belong_together() {
    let rig = Rig::new();
    let body = json!({"commonName": "host.example", "expiration": "2030-01-01T00:00:00Z"});
    let path = format!("/modules/mine/genid/7/certificate/server?{V}");
    let (status, server) = rig.workload("POST", &path, &body).await;
    assert_eq!((status, &server["privateKey"]["type"]), (201, &json!("key")));
    assert!(
        server["privateKey"]["bytes"]
            .as_str()
            .unwrap()
            .starts_with("-----BEGIN PRIVATE KEY-----\n")
    );
    assert!(server["expiration"].as_str().unwrap().ends_with('Z'));
    let (status, identity) = rig
        .workload(
            "POST",
            &format!("/modules/mine/certificate/identity?{V}"),
            &json!({}),
        )
        .await;
    assert_eq!(status, 201);
    let (status, bundle) = rig
        .workload("GET", &format!("/trust-bundle?{V}"), &Value::Null)
        .await;
    assert_eq!(status, 200);
    let count = |value: &Value| {
        let text = value["certificate"].as_str().unwrap().as_bytes();
        CertificateDer::pem_slice_iter(text)
            .map(Result::unwrap)
            .collect::<Vec<_>>()
    };
    let (server, identity, bundle) = (count(&server), count(&identity), count(&bundle));
    assert_eq!((server.len(), identity.len(), bundle.len()), (2, 2, 2));
    assert_eq!(server[1], bundle[1], "the edge CA stands in both");
    let (status, manifest) = rig
        .workload("GET", &format!("/manifest-trust-bundle?{V}"), &Value::Null)
        .await;
    assert_eq!((status, manifest), (200, json!({"certificate": ""})));
}

#[tokio::test]
async fn modules_are_listed_with_the_two_that_are_this_process() {
    let rig = Rig::new();
    let (status, list) = rig.manage("GET", &format!("/modules?{V}")).await;
    assert_eq!(status, 200);
    let modules: BTreeMap<&str, &Value> = list["modules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|module| (module["name"].as_str().unwrap(), module))
        .collect();
    assert_eq!(
        modules.keys().copied().collect::<Vec<_>>(),
        ["edgeAgent", "edgeHub", "mine", "other"]
    );
    assert_eq!(modules["edgeHub"]["config"]["settings"]["image"], "hub:1");
    assert_eq!(modules["mine"]["type"], "docker");
    let (status, one) = rig.manage("GET", &format!("/modules/mine?{V}")).await;
    assert_eq!((status, &one), (200, modules["mine"]));
    assert_eq!(rig.manage("GET", &format!("/modules/none?{V}")).await.0, 404);
    // The workload API has the list, too.
    assert_eq!(
        rig.workload("GET", &format!("/modules?{V}"), &Value::Null).await,
        (200, list.clone())
    );
}

#[tokio::test]
async fn an_operator_starts_stops_and_reads() {
    let rig = Rig::new();
    for (operation, running) in [("stop", false), ("start", true), ("restart", true)] {
        let (status, answer) = rig
            .manage("POST", &format!("/modules/mine/{operation}?{V}"))
            .await;
        assert_eq!(status, 204, "{operation}: {answer}");
        assert_eq!(
            rig.engine.running().contains(&"mine".to_owned()),
            running,
            "{operation}"
        );
    }
    assert_eq!(
        rig.manage("POST", &format!("/modules/none/restart?{V}")).await.0,
        404
    );
    for (operation, expected) in [("stop", 204), ("restart", 204), ("start", 500)] {
        let (status, answer) = rig
            .manage("POST", &format!("/modules/edgeHub/{operation}?{V}"))
            .await;
        assert_eq!(status, expected, "{operation}: {answer}");
    }
    let [stop, restart, start] = [HubOperation::Stop, HubOperation::Restart, HubOperation::Start];
    assert_eq!(*rig.control.hub.lock(), [stop, restart, start]);
    assert_eq!(
        rig.manage("POST", &format!("/modules/edgeAgent/stop?{V}"))
            .await
            .0,
        409
    );
    assert_eq!(
        rig.manage("POST", &format!("/modules/edgeAgent/restart?{V}"))
            .await
            .0,
        204
    );
    assert_eq!(rig.control.reconcile.load(Ordering::Relaxed), 1);

    rig.engine.say("mine", false, "one\n");
    rig.engine.say("mine", true, "two\n");
    let (status, log) = raw(
        &rig.socket("mgmt.sock"),
        "GET",
        &format!("/modules/mine/logs?{V}&tail=all"),
        b"",
    )
    .await;
    assert_eq!(status, 200);
    assert_eq!(log, b"\x01\0\0\0\0\0\0\x04one\n\x02\0\0\0\0\0\0\x04two\n");
    for bad in ["tail=some", "since=yesterday", "follow=perhaps"] {
        assert_eq!(
            rig.manage("GET", &format!("/modules/mine/logs?{V}&{bad}"))
                .await
                .0,
            400,
            "{bad}"
        );
    }
}

#[tokio::test]
async fn what_the_deployment_wants_stopped_is_not_started() {
    let rig = Rig::new();
    rig.modules
        .set_stopped(["mine", "edgeHub"].map(str::to_owned).into());
    for name in ["mine", "edgeHub"] {
        assert_eq!(
            rig.manage("POST", &format!("/modules/{name}/stop?{V}")).await.0,
            204
        );
        for operation in ["start", "restart"] {
            let (status, answer) = rig
                .manage("POST", &format!("/modules/{name}/{operation}?{V}"))
                .await;
            assert_eq!(status, 409, "{name}: {answer}");
            assert!(
                answer["message"].as_str().unwrap().contains("stopped"),
                "{answer}"
            );
        }
    }
    assert!(!rig.engine.running().contains(&"mine".to_owned()));
    assert_eq!(*rig.control.hub.lock(), [HubOperation::Stop]);
    rig.modules.set_stopped(BTreeSet::new());
    assert_eq!(
        rig.manage("POST", &format!("/modules/mine/restart?{V}")).await.0,
        204
    );
}

#[tokio::test]
async fn what_became_of_the_deployment_is_told_on_the_management_socket() {
    let rig = Rig::new();
    let (status, told) = rig.manage("GET", &format!("/deployment?{V}")).await;
    assert_eq!((status, &told["lastDesiredStatus"]["code"]), (200, &json!(400)));
    assert_eq!(rig.manage("POST", &format!("/deployment?{V}")).await.0, 400);
    let (status, _) = rig
        .workload("GET", &format!("/deployment?{V}"), &Value::Null)
        .await;
    assert_eq!(status, 404, "modules are not told");
}

#[tokio::test]
async fn what_is_the_agents_is_refused_to_others() {
    let rig = Rig::new();
    for (method, path) in [
        ("POST", "/modules"),
        ("PUT", "/modules/mine"),
        ("DELETE", "/modules/mine"),
        ("POST", "/identities"),
        ("PUT", "/identities/mine"),
        ("DELETE", "/identities/mine"),
    ] {
        assert_eq!(
            rig.manage(method, &format!("{path}?{V}")).await.0,
            403,
            "{method} {path}"
        );
    }
    assert_eq!(
        rig.manage("POST", "/modules/mine/prepareupdate?api-version=2019-01-30")
            .await
            .0,
        403
    );
    assert_eq!(rig.manage("PATCH", &format!("/modules?{V}")).await.0, 400);
    assert!(rig.engine.running().contains(&"mine".to_owned()));
}

#[tokio::test]
async fn the_machine_and_the_device_are_told() {
    let rig = Rig::new();
    let (status, info) = rig.manage("GET", &format!("/systeminfo?{V}")).await;
    assert_eq!(
        (status, &info["osType"], &info["provisioning"]["type"]),
        (200, &json!("linux"), &json!("manual"))
    );
    // Younger than the version that is asked for.
    assert_eq!(
        rig.manage("GET", &format!("/systeminfo/resources?{V}")).await.0,
        404
    );
    let (status, resources) = rig
        .manage("GET", "/systeminfo/resources?api-version=2019-11-05")
        .await;
    assert_eq!(status, 200);
    assert!(resources["total_ram"].as_u64().unwrap() > resources["used_ram"].as_u64().unwrap());
    let stats: Value = serde_json::from_str(resources["docker_stats"].as_str().unwrap()).unwrap();
    assert!(stats.is_array());

    assert_eq!(
        rig.manage("POST", &format!("/device/reprovision?{V}")).await.0,
        404
    );
    assert_eq!(
        rig.manage("POST", "/device/reprovision?api-version=2019-10-22")
            .await
            .0,
        204
    );
    assert_eq!(rig.control.reprovision.load(Ordering::Relaxed), 1);
    let identityd = rig.socket("identityd.sock");
    let (status, device) = call(
        &identityd,
        "GET",
        "/identities/identity?api-version=2020-09-01",
        "",
    )
    .await;
    assert_eq!((status, &device["spec"]["deviceId"]), (200, &json!("d")));
    assert_eq!(
        call(&identityd, "GET", &format!("/identities/identity?{V}"), "")
            .await
            .0,
        400
    );
}

#[tokio::test]
async fn a_support_bundle_holds_logs_and_inspections() {
    let rig = Rig::new();
    rig.engine.say("mine", false, "hello\n");
    let path = "/systeminfo/supportbundle?api-version=2020-07-07&since=1%20day";
    let (status, zip) = raw(&rig.socket("mgmt.sock"), "GET", path, b"").await;
    assert_eq!((status, &zip[..4]), (200, &b"PK\x03\x04"[..]));
    let names = [
        "logs/mine_log.txt",
        "logs/holdfast-edge.txt",
        "inspect/other.json",
        "network/net.json",
    ];
    for name in names {
        assert!(
            zip.windows(name.len()).any(|window| window == name.as_bytes()),
            "{name}"
        );
    }
}

/// Answers when it is let.
struct Gate(Arc<Notify>, Arc<AtomicUsize>);

impl Api for Gate {
    fn answer<'a>(&'a self, _: Call) -> BoxFuture<'a, Answer> {
        Box::pin(async move {
            self.1.fetch_add(1, Ordering::SeqCst);
            self.0.notified().await;
            Answer::empty(204)
        })
    }
}

#[tokio::test]
async fn one_request_too_many_is_closed_without_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (gate, inside) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let path = dir.path().join("x.sock");
    let api = Gate(Arc::clone(&gate), Arc::clone(&inside));
    let _served = server::serve(&path, 0o600, api, Throttle::new(3)).unwrap();
    let begin = async || {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        stream
    };
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(begin().await);
    }
    let all_in = async {
        while inside.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, all_in).await.unwrap();
    let mut answer = Vec::new();
    let mut refused = begin().await;
    let reading = tokio::time::timeout(DEADLINE, refused.read_to_end(&mut answer)).await;
    let _ = reading.expect("the connection is closed");
    assert!(answer.is_empty());
    gate.notify_waiters();
    for mut stream in waiting {
        answer.clear();
        tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 204"));
    }
    // There is room again.
    let mut stream = begin().await;
    gate.notify_one();
    answer.clear();
    tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 204"));
}
