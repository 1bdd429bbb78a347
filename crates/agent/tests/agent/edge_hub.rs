//! The edge hub as a module: stopped, started and restarted as the deployment and people say, and when it fails.

use std::time::Duration;

use holdfast_agent::memory::{Fault, MemoryTwin};
use holdfast_agent::runtime::RuntimeError;
use serde_json::{Value, json};

use crate::site::{Site, deployment, module, pass, until};

/// A deployment of one module and an edge hub with these changes; `null`: none.
fn with_hub(changes: Value) -> Value {
    let mut wanted = deployment(&[("m", module("a:1", json!({})))]);
    let system = wanted["systemModules"].as_object_mut().unwrap();
    if changes.is_null() {
        system.remove("edgeHub");
    } else {
        let hub = system["edgeHub"].as_object_mut().unwrap();
        holdfast_agent::manifest::merge(hub, changes.as_object().cloned().unwrap());
    }
    wanted
}

fn hub(twin: &MemoryTwin) -> Value {
    twin.reported()["systemModules"]["edgeHub"].clone()
}

async fn hub_is(site: &Site, status: &str) {
    until(&format!("edgeHub is {status}"), || {
        hub(&site.twin)["runtimeStatus"] == status
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nothing_deployed_runs_no_edge_hub() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    pass(5).await;
    assert_eq!(site.host.take_hub_calls(), Vec::<String>::new());
    assert_eq!(hub(&site.twin), Value::Null);
    let version = site.twin.deploy(&with_hub(json!(null)));
    site.done(version).await;
    assert_eq!(site.host.take_hub_calls(), Vec::<String>::new());
    assert_eq!(hub(&site.twin), Value::Null);
    let version = site.twin.deploy(&with_hub(json!({})));
    site.done(version).await;
    hub_is(&site, "running").await;
    // Taken out of the deployment again, it is gone from the report, too.
    let version = site.twin.deploy(&with_hub(json!(null)));
    site.done(version).await;
    until("edgeHub is gone", || hub(&site.twin).is_null()).await;
    assert_eq!(site.host.take_hub_calls(), ["start", "stop"]);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_status_stops_and_starts_it() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    site.twin.deploy(&with_hub(json!({})));
    hub_is(&site, "running").await;
    let version = site.twin.deploy(&with_hub(json!({"status": "stopped"})));
    hub_is(&site, "stopped").await;
    site.done(version).await;
    let stopped = hub(&site.twin);
    assert_eq!(stopped["status"], "stopped");
    assert_eq!(stopped["exitCode"], 0);
    assert_eq!(stopped["restartCount"], 0);
    assert_ne!(stopped["lastExitTimeUtc"], "0001-01-01T00:00:00Z");
    // It stays so, also over a restart of the daemon.
    pass(1_000).await;
    assert_eq!(site.host.take_hub_calls(), ["start", "stop"]);
    run.stop().await;
    let run = site.start();
    hub_is(&site, "stopped").await;
    pass(100).await;
    assert_eq!(site.host.take_hub_calls(), Vec::<String>::new());
    assert_eq!(site.engine.running(), ["m"], "modules go on");
    let version = site.twin.deploy(&with_hub(json!({})));
    site.done(version).await;
    hub_is(&site, "running").await;
    assert_eq!(site.host.take_hub_calls(), ["start"]);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_change_of_its_environment_restarts_it_and_nothing_else_does() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let env = |count: &str| json!({"env": {"MaxConnectedClients": {"value": count}}});
    let version = site.twin.deploy(&with_hub(env("5")));
    site.done(version).await;
    assert_eq!(site.host.take_hub_calls(), ["start MaxConnectedClients=5"]);
    let mut other_image = env("5");
    other_image["settings"] = json!({"image": "hub:2"});
    let version = site.twin.deploy(&with_hub(other_image));
    site.done(version).await;
    assert_eq!(site.host.take_hub_calls(), Vec::<String>::new());
    assert_eq!(hub(&site.twin)["settings"]["image"], "hub:2");
    let version = site.twin.deploy(&with_hub(env("6")));
    site.done(version).await;
    assert_eq!(site.host.take_hub_calls(), ["restart MaxConnectedClients=6"]);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restart_by_hand_is_not_counted() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let version = site.twin.deploy(&with_hub(json!({})));
    site.done(version).await;
    hub_is(&site, "running").await;
    let before = hub(&site.twin);
    let restart = json!({"schemaVersion": "1.0", "id": "edgeHub"});
    let answer = site.twin.method("RestartModule", &restart).await;
    assert_eq!(answer, (200, Value::Null));
    until("the restart is reported", || {
        hub(&site.twin)["lastStartTimeUtc"] != before["lastStartTimeUtc"]
    })
    .await;
    let after = hub(&site.twin);
    assert_eq!(after["runtimeStatus"], "running");
    assert_eq!(after["restartCount"], 0);
    assert_eq!(after["lastRestartTimeUtc"], "0001-01-01T00:00:00Z");
    assert_ne!(after["lastExitTimeUtc"], "0001-01-01T00:00:00Z");
    let version = site.twin.deploy(&with_hub(json!({"status": "stopped"})));
    site.done(version).await;
    hub_is(&site, "stopped").await;
    site.host.take_hub_calls();
    let (status, body) = site.twin.method("RestartModule", &restart).await;
    assert_eq!(status, 500);
    assert!(
        body["message"]
            .as_str()
            .unwrap()
            .contains("wants edgeHub stopped"),
        "{body}"
    );
    assert_eq!(site.host.take_hub_calls(), Vec::<String>::new());
    let version = site.twin.deploy(&with_hub(json!(null)));
    site.done(version).await;
    let (status, body) = site.twin.method("RestartModule", &restart).await;
    assert_eq!(status, 500);
    assert!(body["message"].as_str().unwrap().contains("no edgeHub"), "{body}");
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_ends_is_started_again_with_pauses_that_are_counted() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let version = site.twin.deploy(&with_hub(json!({})));
    site.done(version).await;
    site.host.take_hub_calls();
    for (count, seconds) in [(1, 10), (2, 20), (3, 40)] {
        site.host.crash_hub(101);
        let begun = tokio::time::Instant::now();
        hub_is(&site, "backoff").await;
        assert_eq!(hub(&site.twin)["exitCode"], 101);
        hub_is(&site, "running").await;
        assert_eq!(begun.elapsed().as_secs(), seconds, "restart {count}");
        assert_eq!(hub(&site.twin)["restartCount"], count);
        assert_eq!(site.host.take_hub_calls(), ["start"]);
    }
    // It has run long enough.
    pass(601).await;
    until("its restarts are forgotten", || {
        hub(&site.twin)["restartCount"] == 0
    })
    .await;
    assert_eq!(site.engine.running(), ["m"]);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_be_started_is_told_and_tried_again() {
    let site = Site::new(&["a:1"]);
    site.host.fail_hub_starts(2);
    let run = site.start();
    let begun = tokio::time::Instant::now();
    let version = site.twin.deploy(&with_hub(json!({})));
    hub_is(&site, "backoff").await;
    assert_eq!(hub(&site.twin)["statusDescription"], "the port is taken");
    assert_eq!(hub(&site.twin)["exitCode"], 1);
    // The deployment has been carried out all the same, and modules run.
    site.done(version).await;
    assert_eq!(site.engine.running(), ["m"]);
    hub_is(&site, "running").await;
    assert!(
        begun.elapsed() >= Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(hub(&site.twin)["restartCount"], 2);
    assert_eq!(hub(&site.twin).get("statusDescription"), None);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_deployment_with_which_it_cannot_be_started_is_taken_back() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let good = site.twin.deploy(&with_hub(json!({})));
    site.done(good).await;
    pass(60).await;
    site.host.fail_hub_starts(1_000);
    let bad = json!({"env": {"httpSettings__port": {"value": "22"}}});
    let version = site.twin.deploy(&with_hub(bad));
    until("it is taken back", || {
        site.code() == 500 && site.version() == version && site.description().contains("taken back")
    })
    .await;
    assert!(
        site.description().contains("edgeHub: the port is taken"),
        "{}",
        site.description()
    );
    site.host.fail_hub_starts(0);
    hub_is(&site, "running").await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn it_needs_no_container_engine() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let version = site.twin.deploy(&with_hub(json!({})));
    site.done(version).await;
    run.stop().await;
    site.host.take_hub_calls();
    let gone = RuntimeError::Unavailable {
        endpoint: "/run/engine.sock".to_owned(),
        cause: "connection refused".to_owned(),
    };
    for operation in ["list", "ensure_network", "info"] {
        let fault = Fault::Fail(gone.clone());
        site.engine.fault(operation, "*", fault, u32::MAX);
    }
    let run = site.start();
    hub_is(&site, "running").await;
    site.twin.deploy(&with_hub(json!({"status": "stopped"})));
    hub_is(&site, "stopped").await;
    assert_eq!(site.host.take_hub_calls(), ["start", "stop"]);
    run.stop().await;
}
