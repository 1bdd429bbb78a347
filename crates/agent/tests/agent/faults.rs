//! Engines that hang or fail, pulls that never end: others are not affected.

use std::time::Duration;

use holdfast_agent::memory::Fault;
use holdfast_agent::runtime::RuntimeError;
use serde_json::json;

use crate::site::{Site, deployment, module, one, pass, until};

fn away() -> Fault {
    Fault::Fail(RuntimeError::Unavailable {
        endpoint: "unix:///var/run/docker.sock".to_owned(),
        cause: "connection refused".to_owned(),
    })
}

#[tokio::test(start_paused = true)]
async fn a_pull_that_hangs_delays_nobody_else() {
    let site = Site::new(&["a:1", "b:1", "c:1"]);
    site.engine.fault("pull", "b:1", Fault::Hang, 1);
    let run = site.start();
    site.twin.deploy(&deployment(&[
        ("a", module("a:1", json!({"startupOrder": 5}))),
        ("b", module("b:1", json!({"startupOrder": 1}))),
        ("c", module("c:1", json!({"startupOrder": 0}))),
    ]));
    let begun = tokio::time::Instant::now();
    until("c runs", || site.engine.running() == ["c"]).await;
    assert!(begun.elapsed() < Duration::from_secs(1));
    until("a runs, too", || site.engine.running() == ["a", "c"]).await;
    assert!(
        begun.elapsed() < Duration::from_secs(31),
        "the bounded wait of its order"
    );
    // Crash and mend while the pull hangs.
    site.engine.exit("a", 1);
    until("a is mended", || site.engine.running() == ["a", "c"]).await;
    assert_eq!(site.module("b")["runtimeStatus"], "unknown");
    // A newer deployment gives the pull up.
    let version = site.twin.deploy(&deployment(&[
        ("a", module("a:1", json!({"startupOrder": 5}))),
        ("b", module("c:1", json!({"startupOrder": 1}))),
    ]));
    site.done(version).await;
    assert_eq!(site.engine.running(), ["a", "b"]);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn pulls_side_by_side_within_a_bound() {
    let images: Vec<String> = (0..9).map(|number| format!("i{number}:1")).collect();
    let names: Vec<&str> = images.iter().map(String::as_str).collect();
    let site = Site::new(&names);
    for image in &images {
        site.engine
            .fault("pull", image, Fault::Delay(Duration::from_secs(60)), 1);
    }
    let run = site.start();
    let modules: Vec<(String, serde_json::Value)> = images
        .iter()
        .enumerate()
        .map(|(number, image)| (format!("m{number}"), module(image, json!({}))))
        .collect();
    let modules: Vec<(&str, serde_json::Value)> = modules
        .iter()
        .map(|(name, module)| (name.as_str(), module.clone()))
        .collect();
    let begun = tokio::time::Instant::now();
    let version = site.twin.deploy(&deployment(&modules));
    site.done(version).await;
    assert_eq!(site.engine.pulls_at_once(), 3);
    assert!(
        (180..190).contains(&begun.elapsed().as_secs()),
        "{:?}",
        begun.elapsed()
    );
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn commands_that_fail_are_tried_again_after_growing_pauses() {
    let site = Site::new(&["a:1", "b:1"]);
    let broken = RuntimeError::Refused {
        status: 500,
        message: "no space left on device".to_owned(),
    };
    site.engine.fault("create", "a", Fault::Fail(broken), 4);
    let run = site.start();
    let begun = tokio::time::Instant::now();
    let version = site.twin.deploy(&deployment(&[
        ("a", module("a:1", json!({}))),
        ("b", module("b:1", json!({}))),
    ]));
    until("reported", || site.code() == 500).await;
    assert_eq!(site.version(), version);
    assert!(
        site.description()
            .contains("a: the container cannot be made: the container engine answered 500: no space left"),
        "{}",
        site.description()
    );
    until("b runs", || site.engine.running() == ["b"]).await;
    site.done(version).await;
    let took = begun.elapsed().as_secs();
    assert!((150..155).contains(&took), "10 + 20 + 40 + 80 s, not {took}");
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_engine_that_is_away_or_hangs() {
    let site = Site::new(&["a:1", "a:2"]);
    site.engine.fault("ensure_network", "*", away(), 3);
    let run = site.start();
    let version = site.twin.deploy(&one("a:1"));
    until("reported", || site.code() == 500).await;
    assert!(site.description().contains("connection refused"));
    site.done(version).await;
    // It goes away and comes back with its containers ended.
    site.engine.fault("list", "*", away(), 20);
    pass(61).await;
    until("reported", || site.code() == 500).await;
    site.engine.power_off();
    until("mended", || site.engine.running() == ["m"]).await;
    site.done(version).await;
    // A start that hangs holds up this module only; methods are answered.
    site.engine.fault("start", "m", Fault::Hang, 1);
    site.engine.exit("m", 1);
    pass(20).await;
    let (status, _) = site.twin.method("ping", &json!(null)).await;
    assert_eq!(status, 200);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_not_there_is_an_error_with_its_name() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    site.twin.deploy(&deployment(&[
        ("a", module("a:1", json!({}))),
        ("b", module("none:1", json!({}))),
        ("c", module("a:9", json!({"imagePullPolicy": "never"}))),
    ]));
    until("both are reported", || {
        let description = site.description();
        site.code() == 500
            && description.contains("b: image none:1 cannot be pulled: manifest unknown")
            && description.contains("c: the container cannot be made: No such image: a:9")
    })
    .await;
    assert_eq!(site.engine.running(), ["a"]);
    // It appears in the registry: found with the next attempt.
    site.engine.offer(&["none:1"]);
    until("b runs", || site.engine.running() == ["a", "b"]).await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn many_deployments_leave_nothing_behind() {
    let site = Site::new(&["a:1", "a:2"]);
    let run = site.start();
    // Memory over more of them is measured with real containers; here it is what is kept that counts.
    for number in 0..200_u32 {
        let name = format!("m{number}");
        let image = if number % 2 == 0 { "a:1" } else { "a:2" };
        let version = site.twin.deploy(&deployment(&[
            ("fixed", module(image, json!({}))),
            (&name, module(image, json!({}))),
        ]));
        site.done(version).await;
    }
    assert_eq!(site.engine.running(), ["fixed", "m199"]);
    let text = run.handle.metrics().render();
    assert!(!text.contains("\"m50\""), "modules of the past have no metrics");
    assert!(text.len() < 20_000, "{}", text.len());
    let restarts = std::fs::read_to_string(site.folder().join("restarts.json")).unwrap();
    assert!(restarts.len() < 1_000, "{restarts}");
    run.stop().await;
}
