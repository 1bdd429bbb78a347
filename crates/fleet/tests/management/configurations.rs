//! Automatic device management: changes, restarts, failures, bounds.

use holdfast_fleet::configurations::{ConfigurationSpec, MetricValue};
use holdfast_fleet::jobs::JobsConfig;
use holdfast_hub::{CHANGED_IDENTITIES_MAX, IfMatch};
use holdfast_model::ErrorCode;
use holdfast_model::configuration::{ConfigurationStatus, Content};
use holdfast_ports::configuration::ConfigurationStore as _;
use serde_json::{Value, json};

use crate::harness::{World, id, object, until};

fn device(condition: &str, priority: u32, content: Value) -> ConfigurationSpec {
    ConfigurationSpec {
        content: Some(Content::Device(object(content))),
        target_condition: Some(condition.to_owned()),
        priority: Some(priority),
        ..ConfigurationSpec::default()
    }
}

fn base(condition: &str, priority: u32, image: &str) -> ConfigurationSpec {
    let modules = json!({
        "$edgeAgent": {"properties.desired": {"modules": {"m": {"image": image}}}},
        "$edgeHub": {"properties.desired": {"routes": {}}},
        "m": {"properties.desired": {"image": image}},
    });
    ConfigurationSpec {
        content: Some(Content::Edge(serde_json::from_value(modules).expect("modules"))),
        ..device(condition, priority, json!({}))
    }
}

async fn put(world: &World, id: &str, spec: ConfigurationSpec) {
    let made = world.configurations.put(id, spec, IfMatch::Absent).await;
    made.expect("a new configuration");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crash_left_undone_is_found_at_start() {
    let mut world = World::new().await;
    world.create("d1", false).await;
    world.create("d2", false).await;
    world.tag("d1", json!({"a": 1})).await;
    // Nothing runs: stored, but not applied.
    put(
        &world,
        "c",
        device("tags.a = 1", 1, json!({"properties.desired.x": 1})),
    )
    .await;
    assert_eq!(world.desired("d1").await, json!({}));

    let mut second = World::on(world.store.clone(), JobsConfig::default()).await;
    second.run();
    until("the configuration to be applied", async || {
        second.desired("d1").await == json!({"x": 1})
    })
    .await;
    assert_eq!(second.desired("d2").await, json!({}));
    second.kill().await;

    // The next one begins with a configuration that has gone meanwhile.
    world
        .store
        .delete_configuration("c", holdfast_ports::enrollment::Expected::Whatever)
        .await
        .expect("it is there");
    world = World::on(world.store.clone(), JobsConfig::default()).await;
    world.run();
    until("the properties to be removed", async || {
        world.desired("d1").await == json!({})
    })
    .await;
    assert!(world.twin("d1").await.configurations.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reported_properties_and_deletion_count() {
    let mut world = World::new().await;
    world.run();
    world.create("d1", false).await;
    let condition = "properties.reported.ready = true";
    put(
        &world,
        "c",
        device(condition, 1, json!({"properties.desired.x": 1})),
    )
    .await;
    let report = |ready: bool| {
        let store = world.store.clone();
        let world = &world;
        async move {
            // As a device does it, by way of the hub.
            use holdfast_ports::gateway::DeviceGateway as _;
            let _ = store;
            let patch = json!({"ready": ready}).to_string();
            world
                .hub
                .patch_reported(&id("d1"), patch.as_bytes(), None)
                .await
                .expect("it is there");
        }
    };
    report(true).await;
    until("the device to be configured", async || {
        world.desired("d1").await == json!({"x": 1})
    })
    .await;
    report(false).await;
    until("the end", async || world.desired("d1").await == json!({})).await;
    report(true).await;
    world
        .hub
        .delete_identity(&id("d1"), IfMatch::Absent)
        .await
        .expect("it is there");
    let count = async || {
        let view = world.configurations.get("c").await.expect("it is there");
        view.system.iter().map(|metric| metric.result).collect::<Vec<_>>()
    };
    until("the deleted device to count no more", async || {
        count().await == [MetricValue::Count(0), MetricValue::Count(0)]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_changes_than_are_remembered_are_made_up_for() {
    let mut world = World::new().await;
    world.create("last", false).await;
    put(
        &world,
        "c",
        device("tags.a = 1", 1, json!({"properties.desired.x": 1})),
    )
    .await;
    // Nobody takes the changes out. The set is full of others when the one that counts comes.
    for number in 0..=CHANGED_IDENTITIES_MAX {
        world.create(&format!("d{number}"), false).await;
    }
    world.tag("last", json!({"a": 1})).await;
    world.run();
    until("the device that was left out", async || {
        world.desired("last").await == json!({"x": 1})
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_is_tried_again() {
    let mut world = World::new().await;
    world.create("d1", false).await;
    world.tag("d1", json!({"a": 1})).await;
    put(
        &world,
        "c",
        device("tags.a = 1", 1, json!({"properties.desired.x": 1})),
    )
    .await;
    world.store.set_unavailable(true);
    world.run();
    until("the first look to fail", async || {
        world.metrics.unavailable.get() > 0
    })
    .await;
    let listed = world.configurations.list(9).await;
    assert_eq!(
        listed.expect_err("the store is off").code,
        ErrorCode::ServiceUnavailable
    );
    world.store.set_unavailable(false);
    until("the store to be tried again", async || {
        world.desired("d1").await == json!({"x": 1})
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_a_twin_cannot_hold_waits() {
    let mut world = World::new().await;
    world.run();
    world.create("d1", false).await;
    let text = "x".repeat(4_000);
    let full: Value = (0..7)
        .map(|n| (format!("k{n}"), Value::from(text.as_str())))
        .collect();
    let change = holdfast_model::twin::TwinChange {
        tags: None,
        desired: Some(object(full)),
    };
    world
        .hub
        .change_twin(
            &holdfast_hub::ServiceCaller::Local,
            &id("d1"),
            holdfast_model::twin::ChangeMode::Patch,
            change,
            IfMatch::Absent,
        )
        .await
        .expect("it fits");
    let more = json!({"properties.desired.a": text, "properties.desired.b": text});
    put(&world, "c", device("*", 1, more)).await;
    until("the configuration to be shown", async || {
        world.twin("d1").await.configurations.contains_key("c")
    })
    .await;
    let twin = world.twin("d1").await;
    assert_eq!(twin.configurations["c"], ConfigurationStatus::Targeted);
    assert!(!twin.desired.properties.contains_key("a"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_makes_its_modules_and_takes_back_what_was_set_by_hand() {
    let mut world = World::new().await;
    world.run();
    world.create("e1", true).await;
    world.create("leaf", false).await;
    put(&world, "b", base("*", 1, "one")).await;
    until("the deployment", async || {
        world.twin("e1/$edgeAgent").await.configurations.contains_key("b")
    })
    .await;
    assert_eq!(world.desired("e1/m").await, json!({"image": "one"}));
    assert!(world.twin("leaf").await.configurations.is_empty());

    let modules = json!({"m": {"properties.desired": {"image": "by hand"}}});
    let content = Content::Edge(serde_json::from_value(modules).expect("modules"));
    world
        .configurations
        .apply_content(&id("e1"), &content)
        .await
        .expect("an edge device");
    until("the deployment to win again", async || {
        world.desired("e1/m").await == json!({"image": "one"})
    })
    .await;

    put(&world, "b2", base("*", 2, "two")).await;
    until("the other base", async || {
        world.desired("e1/m").await == json!({"image": "two"})
    })
    .await;
    // A device that becomes an edge device is deployed to.
    let spec = holdfast_hub::IdentitySpec {
        iot_edge: true,
        ..holdfast_hub::IdentitySpec::default()
    };
    let caller = holdfast_hub::ServiceCaller::Local;
    world
        .hub
        .update_identity(&caller, &id("leaf"), &spec, IfMatch::Any)
        .await
        .expect("it is there");
    until("the new edge device", async || {
        world
            .hub
            .twin(&id("leaf/m"))
            .await
            .is_ok_and(|twin| twin.desired.properties.get("image") == Some(&json!("two")))
    })
    .await;
}

#[tokio::test]
async fn configurations_and_deployments_are_bounded() {
    let world = World::new().await;
    for number in 0..100 {
        let spec = device("", 1, json!({"properties.desired.x": 1}));
        put(&world, &format!("c{number}"), spec).await;
        put(&world, &format!("e{number}"), base("", 1, "i")).await;
    }
    for (name, spec) in [
        ("more", device("", 1, json!({"properties.desired.x": 1}))),
        ("more", base("", 1, "i")),
    ] {
        let error = world.configurations.put(name, spec, IfMatch::Absent).await;
        assert_eq!(
            error.expect_err("the 101st").code,
            ErrorCode::ConfigurationCountLimitExceeded
        );
    }
    world
        .configurations
        .delete("c0", IfMatch::Any)
        .await
        .expect("it is there");
    put(&world, "more", device("", 1, json!({"properties.desired.x": 1}))).await;
}
