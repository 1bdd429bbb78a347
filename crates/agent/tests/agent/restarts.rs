//! Restart policies with their pauses, over restarts of the daemon and of the machine.

use std::time::Duration;

use holdfast_agent::memory::Behaviour;
use holdfast_agent::runtime::{ContainerState, Health};
use holdfast_model::Timestamp;
use serde_json::json;

use crate::site::{Site, deployment, module, one, pass, until};

/// Times of starts of `m` in seconds from now on, while `seconds` pass.
async fn starts(site: &Site, seconds: u64) -> Vec<u64> {
    let begun = tokio::time::Instant::now();
    let mut times = Vec::new();
    site.engine.take_calls();
    while begun.elapsed() < Duration::from_secs(seconds) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for call in site.engine.take_calls() {
            if call == "start m" {
                times.push(begun.elapsed().as_secs());
            }
        }
    }
    times
}

fn with_policy(policy: &str) -> serde_json::Value {
    deployment(&[("m", module("a:1", json!({"restartPolicy": policy})))])
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_is_slowed_down_and_then_given_up() {
    let site = Site::new(&["a:1", "b:1"]);
    site.engine.behave(
        "a:1",
        Behaviour::Exit {
            after: Duration::ZERO,
            code: 3,
        },
    );
    let run = site.start();
    let both = deployment(&[("m", module("a:1", json!({}))), ("n", module("b:1", json!({})))]);
    site.twin.deploy(&both);
    until("the first start", || {
        site.engine.take_calls().contains(&"start m".to_owned())
    })
    .await;
    let times = starts(&site, 7_200).await;
    let pauses: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(times.len(), 20, "{times:?}");
    assert_eq!(times[0], 10);
    assert_eq!(&pauses[..6], [20, 40, 80, 160, 300, 300], "{times:?}");
    assert_eq!(site.module("m")["runtimeStatus"], "failed");
    assert_eq!(site.module("m")["restartCount"], 20);
    assert_eq!(site.module("n")["runtimeStatus"], "running");
    // By hand it begins anew.
    let (status, _) = site
        .twin
        .method("RestartModule", &json!({"schemaVersion": "1.0", "id": "m"}))
        .await;
    assert_eq!(status, 200);
    assert_eq!(starts(&site, 60).await.len(), 2);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_wanted_stopped_is_not_restarted_by_hand() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let version = site
        .twin
        .deploy(&deployment(&[("m", module("a:1", json!({"status": "stopped"})))]));
    site.done(version).await;
    site.engine.take_calls();
    let (status, body) = site
        .twin
        .method("RestartModule", &json!({"schemaVersion": "1.0", "id": "m"}))
        .await;
    assert_eq!(status, 500);
    assert!(
        body["message"].as_str().unwrap().contains("wants m stopped"),
        "{body}"
    );
    assert_eq!(site.engine.take_calls(), Vec::<String>::new());
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn never_and_good_ends() {
    let site = Site::new(&["a:1"]);
    let end = |code| Behaviour::Exit {
        after: Duration::from_secs(1),
        code,
    };
    site.engine.behave("a:1", end(0));
    let run = site.start();
    site.twin.deploy(&with_policy("never"));
    until("it has ended", || site.module("m")["runtimeStatus"] == "stopped").await;
    assert!(starts(&site, 3_600).await.is_empty());

    site.twin.deploy(&with_policy("on-failure"));
    let times = starts(&site, 900).await;
    let pauses: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(
        &pauses[..6],
        [1, 11, 21, 41, 81, 161],
        "the first at once: {times:?}"
    );
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn unhealthy_modules_are_restarted_where_the_policy_says_so() {
    for (policy, expected) in [("on-failure", 0), ("on-unhealthy", 3), ("always", 3)] {
        let site = Site::new(&["a:1"]);
        site.engine.behave("a:1", Behaviour::Health(Health::Unhealthy));
        let mut settings = site.settings();
        settings.rollback = None;
        let run = site.start_with(settings);
        site.twin.deploy(&with_policy(policy));
        until("it runs", || site.engine.running() == ["m"]).await;
        let times = starts(&site, 75).await;
        assert_eq!(times.len(), expected, "{policy}: {times:?}");
        let status = site.module("m")["runtimeStatus"].clone();
        assert_eq!(status, if expected == 0 { "unhealthy" } else { "backoff" });
        run.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn counts_survive_the_daemon_and_end_after_intensive_care() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let version = site.twin.deploy(&one("a:1"));
    site.done(version).await;
    for _ in 0..3 {
        site.engine.exit("m", 1);
        until("started again", || site.engine.running() == ["m"]).await;
    }
    until("reported", || site.module("m")["restartCount"] == 3).await;
    run.kill().await;
    let run = site.start();
    site.engine.take_calls();
    pass(30).await;
    let calls = site.engine.take_calls();
    assert_eq!(
        calls,
        ["ensure_network azure-iot-edge"],
        "a module that runs is adopted"
    );
    assert_eq!(site.module("m")["restartCount"], 3);
    site.engine.exit("m", 1);
    assert_eq!(starts(&site, 100).await, [80], "the fourth pause");
    pass(610).await;
    until("well again", || site.module("m")["restartCount"] == 0).await;
    site.engine.exit("m", 1);
    assert_eq!(starts(&site, 100).await, [10]);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_wrong_clock_stops_nothing() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let version = site.twin.deploy(&one("a:1"));
    site.done(version).await;
    for year in [
        "1970-01-02T00:00:00Z",
        "2090-01-01T00:00:00Z",
        "2020-01-01T00:00:00Z",
    ] {
        site.clock.set(Timestamp::parse(year).unwrap());
        site.engine.exit("m", 1);
        let times = starts(&site, 700).await;
        assert_eq!(times.len(), 1, "{year}");
        assert!(times[0] <= 10, "{year}: {times:?}");
        pass(700).await;
    }
    // Over a restart of the daemon, too.
    site.engine.exit("m", 1);
    run.kill().await;
    site.clock.set(Timestamp::parse("1999-01-01T00:00:00Z").unwrap());
    let run = site.start();
    assert_eq!(starts(&site, 60).await, [0]);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn power_cuts_do_not_count() {
    let site = Site::new(&["a:1"]);
    let mut run = site.start();
    let version = site.twin.deploy(&one("a:1"));
    site.done(version).await;
    for boot in 0..30 {
        run.kill().await;
        site.engine.power_off();
        site.engine.take_calls();
        let mut settings = site.settings();
        settings.boot = format!("boot-{}", boot + 2);
        let begun = tokio::time::Instant::now();
        run = site.start_with(settings);
        until("started", || site.engine.running() == ["m"]).await;
        assert!(begun.elapsed() < Duration::from_secs(1));
        pass(20).await;
    }
    assert_eq!(site.module("m")["restartCount"], 0);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_others_did_is_mended() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let version = site.twin.deploy(&one("a:1"));
    site.done(version).await;
    site.engine.lose("m");
    until("made again", || site.engine.running() == ["m"]).await;
    site.engine
        .alter("m", |container| container.state = ContainerState::Dead);
    until("made again", || site.engine.running() == ["m"]).await;
    site.engine
        .alter("m", |container| container.state = ContainerState::Paused);
    until("woken", || site.engine.running() == ["m"]).await;
    run.stop().await;
}
