//! The runtime against a real engine. Run by `cargo xtask test --only edge`, which starts engine and registry; these tests
//! fail when there is none.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_agent::runtime::{
    Container, ContainerState, Health, LogQuery, ModuleRuntime, NetworkSpec, OWNER, OWNER_LABEL,
    PullProgress, RegistryAuth, RuntimeError,
};
use holdfast_docker::{DockerRuntime, Endpoint};
use serde_json::{Map, Value, json};

const GRACE: Duration = Duration::from_secs(5);

fn variable(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run these tests with `cargo xtask test --only edge`"))
}

fn runtime() -> DockerRuntime {
    DockerRuntime::new(Endpoint::parse(&variable("HOLDFAST_TEST_DOCKER")).unwrap())
}

fn image() -> String {
    format!("{}/python-module:1", variable("HOLDFAST_TEST_REGISTRY"))
}

fn auth() -> RegistryAuth {
    RegistryAuth {
        server_address: variable("HOLDFAST_TEST_REGISTRY"),
        username: variable("HOLDFAST_TEST_REGISTRY_USER"),
        password: variable("HOLDFAST_TEST_REGISTRY_PASSWORD"),
    }
}

async fn pulled(runtime: &DockerRuntime) {
    if runtime.image_id(&image()).await.unwrap().is_none() {
        runtime.pull(&image(), Some(&auth()), &|_| {}).await.unwrap();
    }
}

/// Removes its container when dropped, by the engine's own command: a failed test leaves nothing behind.
struct Named(String);

impl Named {
    fn new(what: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(format!(
            "t{}-{what}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = std::process::Command::new("docker")
            .env("DOCKER_HOST", variable("HOLDFAST_TEST_DOCKER"))
            .args(["rm", "--force", &self.0])
            .output();
    }
}

fn body(script: &str, more: Value) -> Map<String, Value> {
    let mut body = json!({
        "Image": image(),
        "Cmd": ["sh", "-c", script],
        "Labels": {OWNER_LABEL: OWNER},
    });
    let (Value::Object(body), Value::Object(more)) = (&mut body, more) else {
        panic!("not objects");
    };
    body.extend(more);
    body.clone()
}

async fn state(runtime: &DockerRuntime, name: &str, wanted: impl Fn(&Container) -> bool) -> Container {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let found = runtime
            .list()
            .await
            .unwrap()
            .into_iter()
            .find(|container| container.name == name);
        if let Some(container) = found.as_ref().filter(|container| wanted(container)) {
            return container.clone();
        }
        assert!(tokio::time::Instant::now() < deadline, "{name} is {found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn read_log(runtime: &DockerRuntime, name: &str, query: LogQuery) -> (String, String) {
    let mut log = runtime.logs(name, &query).await.unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    while let Some(chunk) = log.next().await.unwrap() {
        let text = String::from_utf8_lossy(&chunk.bytes).into_owned();
        if chunk.stderr { &mut err } else { &mut out }.push_str(&text);
    }
    (out, err)
}

#[tokio::test]
#[ignore = "needs a container engine; cargo xtask test --only edge"]
async fn the_engine_tells_of_itself() {
    let info = runtime().info().await.unwrap();
    assert_eq!(info.os, "linux");
    assert!(
        ["x86_64", "aarch64", "armv7l"].contains(&info.architecture.as_str()),
        "{info:?}"
    );
    assert!(
        !info.version.is_empty() && info.api_version.starts_with("1."),
        "{info:?}"
    );
}

#[tokio::test]
#[ignore = "needs a container engine; cargo xtask test --only edge"]
async fn a_container_lives_from_create_to_remove() {
    let runtime = runtime();
    pulled(&runtime).await;
    let name = Named::new("life");
    let id = runtime
        .create(&name.0, &body("exec sleep 60", json!({"Env": ["A=ü"]})))
        .await
        .unwrap();
    let made = state(&runtime, &name.0, |_| true).await;
    assert_eq!(
        (made.state, made.id.as_str(), made.pid),
        (ContainerState::Created, id.as_str(), None)
    );
    assert_eq!(made.image, image());
    assert_eq!(Some(made.image_id), runtime.image_id(&image()).await.unwrap());
    assert_eq!((made.started_at, made.finished_at), (None, None));
    let taken = runtime
        .create(&name.0, &body("true", json!({})))
        .await
        .unwrap_err();
    assert!(matches!(taken, RuntimeError::Conflict(_)), "{taken:?}");

    runtime.start(&name.0).await.unwrap();
    runtime.start(&name.0).await.unwrap();
    let running = state(&runtime, &name.0, |container| {
        container.state == ContainerState::Running
    })
    .await;
    let pid = running.pid.unwrap();
    assert!(running.started_at.is_some());
    assert_eq!(runtime.processes(&name.0).await.unwrap(), [pid]);
    assert_eq!(runtime.inspect(&name.0).await.unwrap()["Config"]["Env"][0], "A=ü");

    // A shell that ignores the signal is killed after its grace.
    runtime.stop(&name.0, Duration::from_secs(1)).await.unwrap();
    runtime.stop(&name.0, GRACE).await.unwrap();
    let ended = state(&runtime, &name.0, |container| {
        container.state == ContainerState::Exited
    })
    .await;
    assert!(
        ended.exit_code == 137 || ended.exit_code == 143,
        "{}",
        ended.exit_code
    );
    assert!(ended.finished_at >= ended.started_at);
    assert!(runtime.processes(&name.0).await.unwrap().is_empty());

    runtime.remove(&name.0).await.unwrap();
    runtime.remove(&name.0).await.unwrap();
    let gone = runtime.start(&name.0).await.unwrap_err();
    assert!(matches!(gone, RuntimeError::NotFound(_)), "{gone:?}");
}

#[tokio::test]
#[ignore = "needs a container engine; cargo xtask test --only edge"]
async fn a_running_container_is_removed_by_force() {
    let runtime = runtime();
    pulled(&runtime).await;
    let name = Named::new("force");
    runtime
        .create(&name.0, &body("sleep 60", json!({})))
        .await
        .unwrap();
    runtime.start(&name.0).await.unwrap();
    runtime.remove(&name.0).await.unwrap();
    assert!(
        runtime
            .list()
            .await
            .unwrap()
            .iter()
            .all(|container| container.name != name.0)
    );
}

#[tokio::test]
#[ignore = "needs a container engine; cargo xtask test --only edge"]
async fn foreign_containers_are_neither_shown_nor_touched() {
    let runtime = runtime();
    pulled(&runtime).await;
    let name = Named::new("foreign");
    runtime
        .create(
            &name.0,
            &body("sleep 60", json!({"Labels": {OWNER_LABEL: "somebody"}})),
        )
        .await
        .unwrap();
    assert!(
        runtime
            .list()
            .await
            .unwrap()
            .iter()
            .all(|container| container.name != name.0)
    );
    assert!(matches!(
        runtime.start(&name.0).await.unwrap_err(),
        RuntimeError::NotFound(_)
    ));
    runtime.remove(&name.0).await.unwrap();
    let taken = runtime
        .create(&name.0, &body("true", json!({})))
        .await
        .unwrap_err();
    assert!(matches!(taken, RuntimeError::Conflict(_)), "{taken:?}");
}

#[tokio::test]
#[ignore = "needs a container engine; cargo xtask test --only edge"]
async fn exit_codes_and_health_are_told() {
    let runtime = runtime();
    pulled(&runtime).await;
    let failing = Named::new("exit");
    runtime
        .create(&failing.0, &body("exit 3", json!({})))
        .await
        .unwrap();
    runtime.start(&failing.0).await.unwrap();
    let ended = state(&runtime, &failing.0, |container| {
        container.state == ContainerState::Exited
    })
    .await;
    assert_eq!(ended.exit_code, 3);

    let sick = Named::new("sick");
    let check = json!({"Healthcheck": {"Test": ["CMD", "false"], "Interval": 200_000_000, "Retries": 1}});
    runtime.create(&sick.0, &body("sleep 60", check)).await.unwrap();
    runtime.start(&sick.0).await.unwrap();
    state(&runtime, &sick.0, |container| {
        container.health == Some(Health::Unhealthy)
    })
    .await;
}

#[tokio::test]
#[ignore = "needs a container engine; cargo xtask test --only edge"]
async fn logs_with_frames_terminal_tail_and_follow() {
    let runtime = runtime();
    pulled(&runtime).await;
    let script = "echo one; echo two; echo oops >&2; sleep 2; echo last";
    let plain = Named::new("log");
    runtime.create(&plain.0, &body(script, json!({}))).await.unwrap();
    runtime.start(&plain.0).await.unwrap();
    let follow = LogQuery {
        follow: true,
        ..LogQuery::default()
    };
    let (out, err) = read_log(&runtime, &plain.0, follow).await;
    assert_eq!((out.as_str(), err.as_str()), ("one\ntwo\nlast\n", "oops\n"));
    let tail = LogQuery {
        tail: Some(1),
        timestamps: true,
        ..LogQuery::default()
    };
    let (out, _) = read_log(&runtime, &plain.0, tail).await;
    assert!(out.ends_with("Z last\n") && out.starts_with("20"), "{out}");
    let last = state(&runtime, &plain.0, |container| {
        container.state == ContainerState::Exited
    })
    .await;
    let since = LogQuery {
        since: last.started_at.map(|at| at.plus(Duration::from_millis(1500))),
        ..LogQuery::default()
    };
    assert_eq!(read_log(&runtime, &plain.0, since).await.0, "last\n");

    let terminal = Named::new("tty");
    runtime
        .create(&terminal.0, &body("echo bare", json!({"Tty": true})))
        .await
        .unwrap();
    runtime.start(&terminal.0).await.unwrap();
    state(&runtime, &terminal.0, |container| {
        container.state == ContainerState::Exited
    })
    .await;
    assert_eq!(
        read_log(&runtime, &terminal.0, LogQuery::default()).await.0,
        "bare\r\n"
    );
}

#[tokio::test]
#[ignore = "needs a container engine; cargo xtask test --only edge"]
async fn a_long_log_comes_whole() {
    let runtime = runtime();
    pulled(&runtime).await;
    let name = Named::new("long");
    runtime
        .create(&name.0, &body("seq 1 200000", json!({})))
        .await
        .unwrap();
    runtime.start(&name.0).await.unwrap();
    state(&runtime, &name.0, |container| {
        container.state == ContainerState::Exited
    })
    .await;
    let (out, _) = read_log(&runtime, &name.0, LogQuery::default()).await;
    assert_eq!(out.lines().count(), 200_000);
    assert!(out.ends_with("200000\n"));
}

#[tokio::test]
#[ignore = "needs a container engine; cargo xtask test --only edge"]
async fn use_of_resources() {
    let runtime = runtime();
    pulled(&runtime).await;
    let name = Named::new("stats");
    runtime
        .create(&name.0, &body("while :; do :; done", json!({})))
        .await
        .unwrap();
    runtime.start(&name.0).await.unwrap();
    let stats = runtime.stats(&name.0).await.unwrap();
    assert!(
        stats.memory_bytes > 0 && stats.memory_limit_bytes > stats.memory_bytes,
        "{stats:?}"
    );
    assert!(
        stats.cpu_percent > 10.0 && stats.cpu_percent < 400.0,
        "{}",
        stats.cpu_percent
    );
    assert!(stats.pids >= 1);
    assert!(stats.raw["memory_stats"].is_object());
}

#[tokio::test]
#[ignore = "needs a container engine; cargo xtask test --only edge"]
async fn changes_are_told() {
    let runtime = runtime();
    pulled(&runtime).await;
    let name = Named::new("events");
    // The stream opens.
    runtime.changed().await;
    runtime.create(&name.0, &body("exit 0", json!({}))).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), runtime.changed())
        .await
        .unwrap();
    runtime.start(&name.0).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), runtime.changed())
        .await
        .unwrap();
}

#[tokio::test]
#[ignore = "needs a container engine; cargo xtask test --only edge"]
async fn the_network_is_made_once_and_its_gateway_is_this_machine() {
    let runtime = runtime();
    let name = format!("t{}-net", std::process::id());
    let options = json!({"IPAM": {"Config": [{"Subnet": "10.213.240.0/24"}]}, "Labels": {"a": "b"}});
    let spec = NetworkSpec {
        name: name.clone(),
        options: options.as_object().unwrap().clone(),
    };
    let address = runtime.ensure_network(&spec).await.unwrap();
    assert_eq!(address.to_string(), "10.213.240.1");
    assert_eq!(runtime.ensure_network(&spec).await.unwrap(), address);
    std::net::TcpListener::bind((address, 0)).unwrap();
    let told = runtime.inspect_network(&name).await.unwrap();
    assert_eq!(told["Labels"]["a"], "b");
    let removed = std::process::Command::new("docker")
        .env("DOCKER_HOST", variable("HOLDFAST_TEST_DOCKER"))
        .args(["network", "rm", &name])
        .output()
        .unwrap();
    assert!(removed.status.success());
}

#[tokio::test]
#[ignore = "needs a container engine; cargo xtask test --only edge"]
async fn pulls_want_the_right_credentials_and_an_image_that_exists() {
    let runtime = runtime();
    let registry = variable("HOLDFAST_TEST_REGISTRY");
    let sensor = format!("{registry}/holdfast-simulated-sensor:1");
    let error = runtime.pull(&sensor, None, &|_| {}).await.unwrap_err();
    assert!(
        matches!(&error, RuntimeError::Pull { cause, .. } if cause.contains("no basic auth")),
        "{error:?}"
    );
    let wrong = RegistryAuth {
        password: "wrong".to_owned(),
        ..auth()
    };
    let error = runtime.pull(&sensor, Some(&wrong), &|_| {}).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Pull { .. }), "{error:?}");
    let missing = format!("{registry}/no-such-image:1");
    let error = runtime.pull(&missing, Some(&auth()), &|_| {}).await.unwrap_err();
    assert!(
        matches!(&error, RuntimeError::Pull { cause, .. } if cause.contains("manifest unknown")),
        "{error:?}"
    );
    let nobody = "127.0.0.1:1/x:1";
    let error = runtime.pull(nobody, None, &|_| {}).await.unwrap_err();
    assert!(
        matches!(&error, RuntimeError::Pull { cause, .. } if cause.contains("refused")),
        "{error:?}"
    );

    let most = parking_lot::Mutex::new(PullProgress::default());
    let note = |progress: PullProgress| *most.lock() = progress;
    runtime.pull(&sensor, Some(&auth()), &note).await.unwrap();
    let most = *most.lock();
    assert!(most.total > 0 && most.current <= most.total, "{most:?}");
    let id = runtime.image_id(&sensor).await.unwrap().unwrap();
    assert!(id.starts_with("sha256:"));
    let images = runtime.images().await.unwrap();
    assert!(
        images
            .iter()
            .any(|image| image.id == id && image.tags.contains(&sensor) && image.size_bytes > 0)
    );
    runtime.remove_image(&sensor).await.unwrap();
    runtime.remove_image(&sensor).await.unwrap();
    assert_eq!(runtime.image_id(&sensor).await.unwrap(), None);
}

#[tokio::test]
#[ignore = "needs a container engine; cargo xtask test --only edge"]
async fn an_image_in_use_is_not_removed() {
    let runtime = runtime();
    pulled(&runtime).await;
    let name = Named::new("use");
    runtime
        .create(&name.0, &body("sleep 60", json!({})))
        .await
        .unwrap();
    runtime.start(&name.0).await.unwrap();
    // Not by its name: when the engine knows it by another name as well, it only forgets this one.
    let id = runtime.image_id(&image()).await.unwrap().unwrap();
    let error = runtime.remove_image(&id).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Conflict(_)), "{error:?}");
}

#[tokio::test]
#[ignore = "needs a container engine; cargo xtask test --only edge"]
async fn a_body_that_the_engine_refuses() {
    let runtime = runtime();
    let name = Named::new("refused");
    let error = runtime
        .create(&name.0, &body("true", json!({"HostConfig": {"Memory": "much"}})))
        .await
        .unwrap_err();
    // Older engines call it 500.
    assert!(
        matches!(&error, RuntimeError::Refused { status: 400 | 500, message } if message.contains("Memory")),
        "{error:?}"
    );
    let mut missing = body("true", json!({}));
    missing.insert("Image".to_owned(), Value::from("no-such-image:1"));
    let error = runtime.create(&name.0, &missing).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NotFound(_)), "{error:?}");
}
