//! Deployments that do not become healthy are taken back.

use holdfast_agent::memory::Behaviour;
use holdfast_agent::runtime::Health;
use serde_json::json;

use std::time::Duration;

use crate::site::{Run, Site, deployment, module, one, pass, until};

/// A site whose last good deployment is one module of `a:1`.
async fn good() -> (Site, Run, u64) {
    let site = Site::new(&["a:1", "a:2", "a:3"]);
    let run = site.start();
    let version = site.twin.deploy(&one("a:1"));
    site.done(version).await;
    pass(30).await;
    (site, run, version)
}

fn crashing(site: &Site, image: &str) {
    site.engine.behave(
        image,
        Behaviour::Exit {
            after: Duration::from_secs(1),
            code: 7,
        },
    );
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_is_taken_back_and_reported() {
    let (site, run, first) = good().await;
    crashing(&site, "a:2");
    let begun = tokio::time::Instant::now();
    let second = site.twin.deploy(&one("a:2"));
    until("taken back", || {
        site.engine.container("m").is_some_and(|m| m.image == "a:1")
            && site.code() == 500
            && site.version() == second
    })
    .await;
    let took = begun.elapsed().as_secs();
    assert!((295..330).contains(&took), "{took} s");
    let description = site.description();
    assert!(
        description.contains(&format!(
            "Deployment {second} was taken back to deployment {first}"
        )) && description.contains("m is backoff, exit code 7"),
        "{description}"
    );
    // It stays so, also over a restart of the daemon and a read of the twin.
    run.kill().await;
    let run = site.start();
    pass(4_000).await;
    assert_eq!(site.engine.running(), ["m"]);
    assert_eq!(site.engine.container("m").unwrap().image, "a:1");
    assert_eq!((site.code(), site.version()), (500, second));
    // A newer deployment is tried.
    let third = site.twin.deploy(&one("a:3"));
    site.done(third).await;
    assert_eq!(site.engine.container("m").unwrap().image, "a:3");
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn images_that_do_not_exist_and_health_that_never_comes() {
    let (site, run, _) = good().await;
    let before = site.engine.container("m").unwrap().id;
    site.twin.deploy(&one("none:1"));
    until("reported", || site.code() == 500).await;
    assert!(site.description().contains("none:1"), "{}", site.description());
    // Meanwhile the former container is looked after.
    assert_eq!(site.engine.running(), ["m"]);
    site.engine.exit("m", 1);
    until("mended", || site.engine.running() == ["m"]).await;
    until("taken back", || site.description().contains("was taken back")).await;
    assert_eq!(site.engine.container("m").unwrap().id, before);

    site.engine.behave("a:2", Behaviour::Health(Health::Starting));
    site.twin.deploy(&one("a:2"));
    until("tried", || {
        site.engine.container("m").is_some_and(|m| m.image == "a:2")
    })
    .await;
    until("taken back", || {
        site.engine.container("m").is_some_and(|m| m.image == "a:1")
    })
    .await;
    assert!(
        site.description().contains("health check does not pass"),
        "{}",
        site.description()
    );
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn switched_off_it_stays_broken() {
    let (site, run, _) = good().await;
    run.stop().await;
    let mut settings = site.settings();
    settings.rollback = None;
    let run = site.start_with(settings);
    crashing(&site, "a:2");
    site.twin.deploy(&one("a:2"));
    pass(7_200).await;
    assert_eq!(site.engine.container("m").unwrap().image, "a:2");
    assert_eq!(site.module("m")["runtimeStatus"], "failed");
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_first_deployment_has_nothing_to_go_back_to() {
    let site = Site::new(&["a:1"]);
    crashing(&site, "a:1");
    let run = site.start();
    let version = site.twin.deploy(&one("a:1"));
    pass(1_000).await;
    assert_eq!(site.version(), version);
    assert_eq!(site.module("m")["runtimeStatus"], "backoff");
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn slow_pulls_and_time_offline_do_not_count() {
    let (site, run, _) = good().await;
    site.engine.fault(
        "pull",
        "a:2",
        holdfast_agent::memory::Fault::Delay(Duration::from_secs(3_000)),
        1,
    );
    let version = site.twin.deploy(&one("a:2"));
    pass(2_000).await;
    until("progress is shown", || {
        site.module("m")["statusDescription"]
            .as_str()
            .is_some_and(|text| text == "pulling the image: 25 % of 100 MB")
    })
    .await;
    site.done(version).await;
    pass(60).await;

    site.identities.set_offline(true);
    let offline = deployment(&[("m", module("a:2", json!({}))), ("n", module("a:3", json!({})))]);
    let version = site.twin.deploy(&offline);
    until("tried", || site.code() == 500).await;
    site.twin.disconnect();
    pass(20_000).await;
    site.identities.set_offline(false);
    site.twin.connect();
    site.done(version).await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_brings_the_daemon_down_is_taken_back() {
    let (site, mut run, first) = good().await;
    let second = site.twin.deploy(&one("a:2"));
    site.done(second).await;
    for _ in 0..5 {
        pass(5).await;
        run.kill().await;
        run = site.start();
    }
    until("taken back", || {
        site.engine.container("m").is_some_and(|m| m.image == "a:1")
    })
    .await;
    until("reported", || {
        site.description().contains(&format!(
            "Deployment {second} was taken back to deployment {first}"
        ))
    })
    .await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn jobs_that_have_done_their_work_are_healthy() {
    let (site, run, _) = good().await;
    site.engine.behave(
        "a:2",
        Behaviour::Exit {
            after: Duration::from_secs(1),
            code: 0,
        },
    );
    let job = module("a:2", json!({"restartPolicy": "never"}));
    let version = site.twin.deploy(&deployment(&[("job", job)]));
    site.done(version).await;
    pass(2_000).await;
    assert_eq!((site.code(), site.version()), (200, version));
    assert_eq!(site.module("job")["runtimeStatus"], "stopped");
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_is_cut_short_counts_if_all_was_well() {
    let site = Site::new(&["a:1", "a:2", "a:3"]);
    let run = site.start();
    let first = site.twin.deploy(&one("a:1"));
    site.done(first).await;
    // At once the next, which crashes, and is followed by another that crashes.
    crashing(&site, "a:2");
    let second = site.twin.deploy(&one("a:2"));
    until("tried", || site.version() == second).await;
    pass(30).await;
    crashing(&site, "a:3");
    let third = site.twin.deploy(&one("a:3"));
    until("taken back past both", || {
        site.description().contains(&format!(
            "Deployment {third} was taken back to deployment {first}"
        ))
    })
    .await;
    until("the first runs", || {
        site.engine.container("m").is_some_and(|m| m.image == "a:1")
    })
    .await;
    // The disk says so, too.
    pass(5).await;
    run.kill().await;
    site.twin.disconnect();
    let run = site.start();
    pass(600).await;
    assert_eq!(site.engine.container("m").unwrap().image, "a:1");
    run.stop().await;
}
