//! Without the hub, after power cuts, with a damaged disk.

use std::time::Duration;

use holdfast_agent::memory::Fault;
use holdfast_agent::runtime::RuntimeError;
use serde_json::json;

use crate::site::{Site, deployment, module, one, pass, until};

fn no_registry(image: &str) -> Fault {
    Fault::Fail(RuntimeError::Pull {
        image: image.to_owned(),
        cause: "dial tcp: lookup r.example: no such host".to_owned(),
    })
}

#[tokio::test(start_paused = true)]
async fn starts_from_disk_without_the_hub() {
    let site = Site::new(&["a:1", "b:1"]);
    let run = site.start();
    let version = site.twin.deploy(&deployment(&[
        ("a", module("a:1", json!({}))),
        ("b", module("b:1", json!({}))),
    ]));
    site.done(version).await;
    run.kill().await;

    // The machine was off; containers are gone; neither hub nor registry nor identities can be reached.
    site.twin.disconnect();
    site.identities.set_offline(true);
    site.engine.lose("a");
    site.engine.exit("b", 255);
    site.engine.fault("pull", "*", no_registry("x"), 1_000);
    let mut settings = site.settings();
    settings.boot = "boot-2".to_owned();
    let begun = tokio::time::Instant::now();
    let run = site.start_with(settings);
    until("both run", || site.engine.running() == ["a", "b"]).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());

    // A module that is lost now is made again from what is here.
    site.engine.lose("b");
    until("made again", || site.engine.running() == ["a", "b"]).await;
    pass(3600).await;

    site.engine.heal();
    site.identities.set_offline(false);
    site.twin.connect();
    site.done(version).await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn adopts_what_runs() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let version = site.twin.deploy(&one("a:1"));
    site.done(version).await;
    let before = site.engine.container("m").unwrap();
    for offline in [false, true, false] {
        site.engine.take_calls();
        if offline {
            site.twin.disconnect();
        }
        let run = site.start();
        pass(200).await;
        let calls = site.engine.take_calls();
        assert!(
            calls.iter().all(|call| call.starts_with("ensure_network")),
            "{calls:?}"
        );
        run.kill().await;
        site.twin.connect();
    }
    assert_eq!(site.engine.container("m").unwrap(), before);
    run.kill().await;
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_is_away_is_no_obstacle_for_what_was_good() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let version = site.twin.deploy(&one("a:1"));
    site.done(version).await;
    pass(60).await;
    site.engine.fault("pull", "a:1", no_registry("a:1"), 1_000);
    // The hub is there, the registry is not, the container is lost.
    site.engine.lose("m");
    until("made again of the image that is here", || {
        site.engine.running() == ["m"]
    })
    .await;
    assert_eq!(site.code(), 200);
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_module_that_was_never_here_waits_for_the_hub() {
    let site = Site::new(&["a:1"]);
    site.identities.set_offline(true);
    let run = site.start();
    site.twin.deploy(&one("a:1"));
    until("reported", || site.code() == 500).await;
    assert!(
        site.description().contains("identity of m"),
        "{}",
        site.description()
    );
    pass(400).await;
    site.twin.disconnect();
    pass(10).await;
    site.identities.set_offline(false);
    let begun = tokio::time::Instant::now();
    site.twin.connect();
    until("it runs", || site.engine.running() == ["m"]).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "no pause is waited for");
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_identity_is_removed_when_the_hub_is_back() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let version = site.twin.deploy(&one("a:1"));
    site.done(version).await;
    site.identities.set_offline(true);
    let version = site.twin.deploy(&deployment(&[]));
    site.done(version).await;
    assert!(site.identities.removed().is_empty());
    site.identities.set_offline(false);
    site.twin.disconnect();
    site.twin.connect();
    until("removed", || site.identities.removed() == ["m"]).await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_damaged_disk_is_survived() {
    let site = Site::new(&["a:1"]);
    let run = site.start();
    let version = site.twin.deploy(&one("a:1"));
    site.done(version).await;
    pass(60).await;
    run.kill().await;
    for name in ["deployment.json", "restarts.json", "images.json", "rollback.json"] {
        std::fs::write(site.folder().join(name), b"{\"torn").unwrap();
    }
    site.twin.disconnect();
    site.engine.exit("m", 1);
    let run = site.start();
    // The accepted deployment cannot be read, the last good one can.
    until("it runs", || site.engine.running() == ["m"]).await;
    run.kill().await;
    std::fs::remove_dir_all(site.folder()).unwrap();
    let run = site.start();
    pass(100).await;
    assert_eq!(
        site.engine.running(),
        ["m"],
        "nothing is known, nothing is touched"
    );
    site.twin.connect();
    site.done(version).await;
    run.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_does_not_stop_the_agent() {
    let site = Site::new(&["a:1", "a:2"]);
    let run = site.start();
    let version = site.twin.deploy(&one("a:1"));
    site.done(version).await;
    // No file can be made where a folder of its name is.
    for name in ["deployment.json.new", "restarts.json.new", "images.json.new"] {
        std::fs::create_dir(site.folder().join(name)).unwrap();
    }
    let version = site.twin.deploy(&one("a:2"));
    site.done(version).await;
    assert_eq!(site.engine.container("m").unwrap().image, "a:2");
    for name in ["deployment.json.new", "restarts.json.new", "images.json.new"] {
        std::fs::remove_dir(site.folder().join(name)).unwrap();
    }
    // Written as soon as there is room.
    until("written", || {
        std::fs::read_to_string(site.folder().join("deployment.json")).is_ok_and(|text| text.contains("a:2"))
    })
    .await;
    run.stop().await;
}
