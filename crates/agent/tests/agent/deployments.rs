//! Deploy, change, remove; reports.

use std::time::Duration;

use holdfast_agent::body::{DEFINITION_LABEL, IMAGE_LABEL};
use holdfast_agent::runtime::{ContainerState, OWNER, OWNER_LABEL};
use serde_json::{Value, json};

use crate::site::{Site, deployment, module, one, pass, until};

#[tokio::test(start_paused = true)]
async fn deploy_change_and_remove() {
    let site = Site::new(&["a:1", "b:1", "b:2"]);
    let run = site.start();
    let version = site.twin.deploy(&deployment(&[
        ("a", module("a:1", json!({}))),
        ("b", module("b:1", json!({}))),
    ]));
    site.done(version).await;
    assert_eq!(site.engine.running(), ["a", "b"]);
    let a = site.engine.container("a").unwrap();
    assert_eq!(a.labels[OWNER_LABEL], OWNER);
    assert_eq!(a.labels[IMAGE_LABEL], "a:1");
    assert_eq!(site.module("a")["runtimeStatus"], "running");
    site.engine.take_calls();

    // Only what has changed is touched.
    let version = site.twin.deploy(&deployment(&[
        ("a", module("a:1", json!({}))),
        ("b", module("b:2", json!({}))),
    ]));
    site.done(version).await;
    assert_eq!(
        site.engine.take_calls(),
        ["pull b:2", "stop b", "remove b", "create b", "start b"]
    );
    assert_eq!(site.engine.container("a").unwrap().id, a.id);

    let version = site.twin.deploy(&deployment(&[("a", module("a:1", json!({})))]));
    site.done(version).await;
    until("b is reported gone", || site.module("b").is_null()).await;
    assert_eq!(site.engine.take_calls(), ["stop b", "remove b"]);
    assert_eq!(site.identities.removed(), ["b"]);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_status_is_no_new_container() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let version = site.twin.deploy(&one("a:1"));
    site.done(version).await;
    let id = site.engine.container("m").unwrap().id;
    site.engine.take_calls();
    let version = site
        .twin
        .deploy(&deployment(&[("m", module("a:1", json!({"status": "stopped"})))]));
    site.done(version).await;
    assert_eq!(site.engine.take_calls(), ["stop m"]);
    until("stopped, not failed by the signal", || {
        site.module("m")["runtimeStatus"] == "stopped"
    })
    .await;
    pass(3600).await;
    assert!(site.engine.take_calls().is_empty());
    let begun = tokio::time::Instant::now();
    let version = site.twin.deploy(&one("a:1"));
    site.done(version).await;
    assert_eq!(site.engine.take_calls(), ["start m"]);
    assert!(begun.elapsed() < Duration::from_secs(2), "no pause");
    assert_eq!(site.engine.container("m").unwrap().id, id);
    assert_eq!(site.module("m")["restartCount"], 0);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn every_part_of_a_definition_counts() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let version = site.twin.deploy(&one("a:1"));
    site.done(version).await;
    for change in [
        json!({"version": "2"}),
        json!({"restartPolicy": "never"}),
        json!({"imagePullPolicy": "never"}),
        json!({"startupOrder": 3}),
        json!({"env": {"A": {"value": 1}}}),
        json!({"settings": {"digest": "x"}}),
        json!({"settings": {"createOptions": "{\"Hostname\":\"x\"}"}}),
    ] {
        let before = site.engine.container("m").unwrap().id;
        let version = site
            .twin
            .deploy(&deployment(&[("m", module("a:1", change.clone()))]));
        site.done(version).await;
        assert_ne!(site.engine.container("m").unwrap().id, before, "{change}");
    }
    // The same again, spelled otherwise, is the same.
    let before = site.engine.container("m").unwrap().id;
    let spelled = json!({"settings": {"createOptions": " { \"Hostname\" : \"x\" } "}});
    let version = site.twin.deploy(&deployment(&[("m", module("a:1", spelled))]));
    site.done(version).await;
    assert_eq!(site.engine.container("m").unwrap().id, before);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_change_leads_to_a_start_within_300_ms() {
    let site = Site::new(&["a:1", "a:2"]);
    let run = site.start();
    let version = site.twin.deploy(&one("a:1"));
    site.done(version).await;
    pass(100).await;
    for _ in 0..20 {
        for image in ["a:2", "a:1"] {
            site.engine.take_calls();
            let begun = tokio::time::Instant::now();
            let version = site.twin.deploy(&one(image));
            site.done(version).await;
            let started = site.engine.called_at("start m").expect("started");
            assert!(
                started - begun < Duration::from_millis(300),
                "{:?}",
                started - begun
            );
            pass(7).await;
        }
    }
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn in_the_order_of_startup() {
    let site = Site::new(&["a:1"]);
    site.engine.fault(
        "pull",
        "a:1",
        holdfast_agent::memory::Fault::Delay(Duration::from_secs(2)),
        1,
    );
    let run = site.start();
    let order = |order: u32| {
        module(
            "a:1",
            json!({"startupOrder": order, "imagePullPolicy": "on-create"}),
        )
    };
    let version = site.twin.deploy(&deployment(&[
        ("last", module("a:1", json!({}))),
        ("second", order(1)),
        ("third", order(2)),
        ("first", order(0)),
    ]));
    site.done(version).await;
    let starts: Vec<String> = site
        .engine
        .take_calls()
        .into_iter()
        .filter(|call| call.starts_with("start"))
        .collect();
    assert_eq!(
        starts,
        ["start first", "start second", "start third", "start last"]
    );
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn orphans_go_first_and_strangers_stay() {
    let site = Site::new(&["a:1"]);
    site.engine.put_foreign("database");
    site.engine.put_owned("edgeAgent", "azureiotedge-agent:1.5");
    site.engine.put_owned("old", "old:1");
    let run = site.start();
    let version = site
        .twin
        .deploy(&deployment(&[("m", module("a:1", json!({"startupOrder": 0})))]));
    site.done(version).await;
    let calls = site.engine.take_calls();
    let at = |call: &str| calls.iter().position(|made| made == call).expect(call);
    assert!(at("remove old") < at("create m"));
    assert!(at("remove edgeAgent") < at("create m"));
    assert_eq!(site.engine.running(), ["database", "m"]);
    // The agent's own identity stays.
    assert_eq!(site.identities.removed(), ["old"]);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_a_stranger_has_is_an_error_and_no_more() {
    let site = Site::new(&["a:1"]);
    site.engine.put_foreign("m");
    let before = site.engine.container("m").unwrap();
    let run = site.start();
    site.twin.deploy(&one("a:1"));
    until("the conflict is reported", || site.code() == 500).await;
    assert!(
        site.description().contains("already in use"),
        "{}",
        site.description()
    );
    assert_eq!(site.engine.container("m").unwrap(), before);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn manifests_that_are_refused_change_nothing() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let good = site.twin.deploy(&one("a:1"));
    site.done(good).await;
    pass(60).await;
    site.engine.take_calls();
    let mut no_status = one("a:1");
    no_status["modules"]["m"]
        .as_object_mut()
        .unwrap()
        .remove("status");
    let mut future = one("a:1");
    future["schemaVersion"] = json!("2.0");
    for (desired, code, text) in [
        (no_status, 400, "modules.m.status: missing"),
        (future, 412, "schemaVersion"),
        (json!({}), 417, "empty configuration"),
    ] {
        let version = site.twin.deploy(&desired);
        until("the refusal is reported", || {
            site.code() == code && site.version() == version
        })
        .await;
        assert!(site.description().contains(text), "{}", site.description());
        assert_eq!(site.module("m")["runtimeStatus"], "running");
    }
    assert!(site.engine.take_calls().is_empty());
    // Still looked after.
    site.engine.exit("m", 1);
    until("the module is mended", || !site.engine.take_calls().is_empty()).await;
    let version = site.twin.deploy(&one("a:1"));
    site.done(version).await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn reports_are_patches_of_what_has_changed() {
    let site = Site::new(&["a:1"]);
    site.twin
        .set_reported(&json!({"schemaVersion": "0", "ours": {"x": 1}, "modules": {"gone": {"a": 1}}}));
    let run = site.start();
    let version = site.twin.deploy(&one("a:1"));
    site.done(version).await;
    pass(120).await;
    assert!(site.twin.reported().get("ours").is_none());
    assert!(site.module("gone").is_null());
    site.twin.take_patches();
    pass(7200).await;
    assert!(site.twin.take_patches().is_empty(), "nothing has changed");
    site.engine.exit("m", 9);
    until("the end is reported", || {
        site.module("m")["runtimeStatus"] == "backoff"
    })
    .await;
    let patches = site.twin.take_patches();
    assert_eq!(patches.len(), 1);
    let module = patches[0]["modules"]["m"].as_object().unwrap();
    assert_eq!(module["exitCode"], 9);
    assert!(!module.contains_key("settings"), "{module:?}");
    assert!(patches[0].get("systemModules").is_none());

    // In good order it says goodbye.
    run.stop().await;
    assert_eq!(site.code(), 406);
    assert_eq!(site.description(), "Agent is not running");
    assert_eq!(site.module("m")["runtimeStatus"], "unknown");
    assert_eq!(
        site.twin.reported()["systemModules"]["edgeHub"]["runtimeStatus"],
        "unknown"
    );
    assert_eq!(site.version(), version);
}

#[tokio::test(start_paused = true)]
async fn a_report_that_is_too_large_is_shortened() {
    let site = Site::new(&["a:1"]);
    site.twin.refuse_above(4_000);
    let run = site.start();
    let options = json!({"Labels": {"long": "x".repeat(6_000)}}).to_string();
    let version = site.twin.deploy(&deployment(&[(
        "m",
        module("a:1", json!({"settings": {"createOptions": options}})),
    )]));
    site.done(version).await;
    until("the state is reported", || {
        site.module("m")["runtimeStatus"] == "running"
    })
    .await;
    assert!(site.module("m")["settings"].get("createOptions").is_none());
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn long_create_options_come_back_in_pieces() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let text = json!({"Labels": {"long": "x".repeat(5_000)}}).to_string();
    let mut settings = serde_json::Map::new();
    holdfast_agent::manifest::write_chunks(&mut settings, &text);
    let version = site.twin.deploy(&deployment(&[(
        "m",
        module("a:1", json!({"settings": settings})),
    )]));
    site.done(version).await;
    let reported = site.module("m")["settings"].clone();
    let mut joined = reported["createOptions"].as_str().unwrap().to_owned();
    for number in 1.. {
        match &reported[format!("createOptions{number:02}")] {
            Value::String(piece) => joined.push_str(piece),
            _ => break,
        }
    }
    assert_eq!(joined, text);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn lost_and_doubled_patches_heal() {
    let site = Site::new(&["a:1", "a:2", "a:3"]);
    let run = site.start();
    let first = site.twin.deploy(&one("a:1"));
    site.done(first).await;
    let reads = site.twin.reads();
    site.twin.deploy_silently(&one("a:2"));
    // The next one does not follow the one that is known: the whole twin is read.
    let third = site.twin.deploy(&one("a:3"));
    site.done(third).await;
    assert_eq!(site.twin.reads(), reads + 1);
    assert_eq!(site.engine.container("m").unwrap().image, "a:3");
    // An old one changes nothing.
    site.twin
        .push(first, &json!({"modules": {"m": {"settings": {"image": "a:1"}}}}));
    pass(10).await;
    assert_eq!(site.engine.container("m").unwrap().image, "a:3");
    // One that nobody told of is found when the twin is read by schedule.
    let fourth = site.twin.deploy_silently(&one("a:2"));
    site.done(fourth).await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_was_made_anew_makes_the_module_anew() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let version = site.twin.deploy(&one("a:1"));
    site.done(version).await;
    let before = site.engine.container("m").unwrap();
    run.stop().await;
    site.identities.renew("m");
    let run = site.start();
    until("made anew", || {
        site.engine
            .container("m")
            .is_some_and(|container| container.id != before.id && container.state == ContainerState::Running)
    })
    .await;
    let after = site.engine.container("m").unwrap();
    assert_eq!(after.labels[DEFINITION_LABEL], before.labels[DEFINITION_LABEL]);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn images_that_nobody_uses_are_removed() {
    let site = Site::new(&["a:1", "a:2", "b:1"]);
    let mut settings = site.settings();
    settings.tick = Duration::from_secs(3_600);
    settings.stats_interval = Duration::from_secs(3_600);
    let run = site.start_with(settings);
    for image in ["a:1", "a:2"] {
        let version = site.twin.deploy(&one(image));
        site.done(version).await;
        pass(600).await;
    }
    pass(6 * 86_400).await;
    assert!(!site.engine.take_calls().contains(&"remove_image a:1".to_owned()));
    pass(3 * 86_400).await;
    let removed: Vec<String> = site
        .engine
        .take_calls()
        .into_iter()
        .filter(|call| call.starts_with("remove_image"))
        .collect();
    assert_eq!(removed, ["remove_image a:1"]);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn metrics_tell_what_happened() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let version = site.twin.deploy(&one("a:1"));
    site.done(version).await;
    pass(600).await;
    let text = run.handle.metrics().render();
    for line in [
        "edgeAgent_module_start_total{iothub=\"hub.example\",edge_device=\"edge1\",instance_number=\"1\",module_name=\"m\"",
        "edgeAgent_total_time_running_correctly_seconds{",
        "edgeAgent_total_time_expected_running_seconds{",
        "edgeAgent_deployment_time_seconds_count{",
        "edgeAgent_host_uptime_seconds{",
        "module_name=\"m\",ms_telemetry=\"True\"} 1048576",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    let view = run.handle.view();
    assert_eq!(view.deployment_version, version);
    assert_eq!(
        view.modules.keys().collect::<Vec<_>>(),
        ["edgeAgent", "edgeHub", "m"]
    );
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn containers_get_the_time_to_end_that_they_asked_for() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let slow = json!({"settings": {"createOptions": "{\"StopTimeout\":60}"}});
    let version = site.twin.deploy(&deployment(&[
        ("slow", module("a:1", slow)),
        ("quick", module("a:1", json!({}))),
    ]));
    site.done(version).await;
    let version = site.twin.deploy(&deployment(&[]));
    site.done(version).await;
    assert_eq!(site.engine.grace_of("slow"), Some(Duration::from_secs(60)));
    assert_eq!(site.engine.grace_of("quick"), Some(Duration::from_secs(10)));
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_container_that_goes_away_while_its_update_is_pulled() {
    let site = Site::new(&["a:1", "a:2"]);
    let run = site.start();
    let version = site.twin.deploy(&one("a:1"));
    site.done(version).await;
    let pause = holdfast_agent::memory::Fault::Delay(Duration::from_secs(5));
    site.engine.fault("pull", "a:2", pause, 1);
    let begun = tokio::time::Instant::now();
    let version = site.twin.deploy(&one("a:2"));
    pass(2).await;
    site.engine.lose("m");
    site.done(version).await;
    assert!(begun.elapsed() < Duration::from_secs(8), "nothing has failed");
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn images_are_pulled_with_the_credentials_of_their_registry() {
    let images = ["r.example/a:1", "own.example:5000/b:1", "other.example/c:1"];
    let site = Site::new(&images);
    let mut settings = site.settings();
    for (name, value) in [
        ("DockerRegistryAuth__0__serverAddress", "own.example:5000"),
        ("DockerRegistryAuth__0__username", "daemon"),
        ("DockerRegistryAuth__0__password", "p1"),
        ("DockerRegistryAuth__1__serverAddress", "r.example"),
        ("DockerRegistryAuth__1__username", "not asked"),
        ("DockerRegistryAuth__1__password", "p2"),
    ] {
        settings.env.insert(name.to_owned(), value.to_owned());
    }
    let run = site.start_with(settings);
    let mut desired = deployment(&[
        ("a", module(images[0], json!({}))),
        ("b", module(images[1], json!({}))),
        ("c", module(images[2], json!({}))),
    ]);
    desired["runtime"]["settings"]["registryCredentials"] =
        json!({"mine": {"address": "R.example", "username": "manifest", "password": "p3"}});
    let version = site.twin.deploy(&desired);
    site.done(version).await;
    let user = |image: &str| site.engine.auth_of(image).map(|auth| auth.username);
    assert_eq!(user(images[0]).as_deref(), Some("manifest"));
    assert_eq!(user(images[1]).as_deref(), Some("daemon"));
    assert_eq!(user(images[2]), None);
    let reported = site.twin.reported().to_string();
    for password in ["p1", "p2", "p3"] {
        assert!(!reported.contains(&format!("\"{password}\"")), "{reported}");
    }
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn wait_for_all_pulls_touches_nothing_before_every_image_is_here() {
    let site = Site::new(&["a:1", "b:1", "a:2", "b:2"]);
    let mut settings = site.settings();
    settings.rollback = None;
    let mode = ("ModuleUpdateMode".to_owned(), "WaitForAllPulls".to_owned());
    settings.env.extend([mode]);
    let run = site.start_with(settings);
    let both = |image: u8| {
        deployment(&[
            ("a", module(&format!("a:{image}"), json!({}))),
            ("b", module(&format!("b:{image}"), json!({}))),
        ])
    };
    let version = site.twin.deploy(&both(1));
    site.done(version).await;
    site.engine.take_calls();
    // One image cannot be had: the other module is not touched, and what crashes is started again as it was.
    site.engine.withdraw("b:2");
    site.twin.deploy(&both(2));
    until("the pull has failed", || site.code() == 500).await;
    assert!(site.description().contains("b:2"), "{}", site.description());
    site.engine.exit("a", 3);
    until("the former module runs again", || {
        site.engine.running() == ["a", "b"]
    })
    .await;
    pass(30).await;
    let calls = site.engine.take_calls();
    let touched = |call: &&String| !call.starts_with("pull ") && *call != "start a";
    assert_eq!(calls.iter().filter(touched).count(), 0, "{calls:?}");
    assert_eq!(site.engine.container("a").unwrap().image, "a:1");
    // It comes: now both, and nothing is pulled a second time.
    site.engine.offer(&["b:2"]);
    until("both are new", || {
        ["a", "b"].iter().all(|name| {
            let container = site.engine.container(name);
            container.is_some_and(|container| container.image.ends_with(":2"))
        })
    })
    .await;
    until("it is done", || site.code() == 200).await;
    let calls = site.engine.take_calls();
    let pulls: Vec<&String> = calls.iter().filter(|call| call.starts_with("pull ")).collect();
    assert_eq!(pulls, ["pull b:2"], "{calls:?}");
    run.stop().await;
}
