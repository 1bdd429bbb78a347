use holdfast_model::Timestamp;
use serde_json::{Value, json};

use super::*;

fn configuration(id: &str, priority: u32, created: i64, content: Content) -> Arc<Configuration> {
    Arc::new(Configuration {
        id: id.into(),
        schema_version: None,
        labels: BTreeMap::new(),
        content,
        target_condition: "*".into(),
        priority,
        metrics: BTreeMap::new(),
        created_at: Timestamp::from_seconds(created),
        updated_at: Timestamp::from_seconds(created),
        version: 1,
    })
}

fn device(id: &str, priority: u32, created: i64, value: i64) -> Arc<Configuration> {
    let content = json!({"properties.desired.a": value});
    configuration(
        id,
        priority,
        created,
        Content::Device(content.as_object().cloned().unwrap_or_default()),
    )
}

fn edge(id: &str, priority: u32, created: i64, modules: Value) -> Arc<Configuration> {
    let content: Content = Content::Edge(serde_json::from_value(modules).expect("modules"));
    content.check().expect("valid content");
    configuration(id, priority, created, content)
}

fn base(id: &str, priority: u32, created: i64) -> Arc<Configuration> {
    edge(
        id,
        priority,
        created,
        json!({
            "$edgeAgent": {"properties.desired": {"runtime": {"by": id}, "modules": {"m": {"image": id}}}},
            "$edgeHub": {"properties.desired": {"routes": {"r": id}}},
        }),
    )
}

fn layer(id: &str, priority: u32, created: i64, module: &str) -> Arc<Configuration> {
    let agent = format!("properties.desired.modules.{module}");
    edge(
        id,
        priority,
        created,
        json!({"$edgeAgent": {agent: {"image": id}}, module: {"properties.desired.level": id}}),
    )
}

fn carried_out(plan: &ManagedPlan) -> Twin {
    let mut twin = Twin::new(Timestamp::from_seconds(1));
    twin.manage(plan, Timestamp::from_seconds(2)).expect("valid");
    twin
}

#[test]
fn the_highest_priority_wins_and_of_equals_the_newest() {
    let plan = single(&[
        device("low", 1, 9, 1),
        device("old", 5, 1, 2),
        device("new", 5, 2, 3),
    ]);
    let twin = carried_out(&plan);
    assert_eq!(twin.desired.properties["a"], 3);
    let status = |id: &str| plan.statuses[id];
    assert_eq!(
        (status("low"), status("old"), status("new")),
        (
            ConfigurationStatus::Targeted,
            ConfigurationStatus::Targeted,
            ConfigurationStatus::Applied
        )
    );
    assert_eq!(single(&[]), ManagedPlan::default());
}

#[test]
fn layers_above_the_base_are_merged_in_the_order_of_their_priority() {
    let chosen = EdgePlan::choose(&[
        layer("below", 1, 1, "x"),
        base("weak", 2, 1),
        base("base", 3, 1),
        layer("level", 3, 9, "y"),
        layer("second", 9, 1, "m"),
        layer("first", 8, 1, "n"),
        layer("over-first", 9, 0, "n"),
    ]);
    let twin = Twin::new(Timestamp::from_seconds(1));
    let plan = chosen.module(EDGE_AGENT, &twin, &[]);
    let agent = carried_out(&plan);
    assert_eq!(
        Value::Object(agent.desired.properties.clone()),
        json!({"runtime": {"by": "base"}, "modules": {"m": {"image": "second"}, "n": {"image": "over-first"}}})
    );
    let applied: Vec<&str> = agent
        .configurations
        .iter()
        .filter(|(_, status)| **status == ConfigurationStatus::Applied)
        .map(|(id, _)| id.as_str())
        .collect();
    assert_eq!(applied, ["base", "first", "over-first", "second"]);
    assert_eq!(agent.configurations.len(), 7, "the others are targeted");
    assert_eq!(
        chosen.modules(),
        ["$edgeAgent", "$edgeHub", "m", "n"].into_iter().collect()
    );
    let n = carried_out(&chosen.module("n", &twin, &[]));
    assert_eq!(n.desired.properties["level"], "over-first");
    assert_eq!(n.configurations.len(), 2);
}

#[test]
fn without_a_base_no_layer_counts() {
    let chosen = EdgePlan::choose(&[layer("a", 1, 1, "m")]);
    let twin = Twin::new(Timestamp::from_seconds(1));
    let plan = chosen.module(EDGE_AGENT, &twin, &[]);
    assert_eq!(plan.statuses["a"], ConfigurationStatus::Targeted);
    assert!(plan.writes.is_empty() && plan.name.is_empty() && chosen.modules().is_empty());
}

#[test]
fn a_device_that_loses_its_last_deployment_keeps_its_modules() {
    let twin = Twin::new(Timestamp::from_seconds(1));
    let mut agent = carried_out(&EdgePlan::choose(&[base("b", 1, 1)]).module(EDGE_AGENT, &twin, &[]));
    let before = agent.desired.clone();
    let none = EdgePlan::choose(&[]).module(EDGE_AGENT, &agent, &[]);
    agent.manage(&none, Timestamp::from_seconds(3)).expect("valid");
    assert_eq!(agent.desired, before);
    assert!(agent.configurations.is_empty() && agent.managed.is_none());
}

#[test]
fn a_module_that_loses_its_layer_loses_what_that_wrote() {
    let twin = Twin::new(Timestamp::from_seconds(1));
    let all = [base("b", 1, 1), layer("l", 2, 1, "n")];
    let mut n = carried_out(&EdgePlan::choose(&all).module("n", &twin, &[]));
    assert_eq!(n.desired.properties["level"], "l");
    let plan = EdgePlan::choose(&all[..1]).module("n", &n, &[]);
    n.manage(&plan, Timestamp::from_seconds(3)).expect("valid");
    assert!(n.desired.properties.is_empty());
}

#[test]
fn configurations_of_modules_stand_above_deployments() {
    let own = configuration(
        "own",
        1,
        1,
        Content::Module(
            json!({"properties.desired.own": 1})
                .as_object()
                .cloned()
                .unwrap_or_default(),
        ),
    );
    let twin = Twin::new(Timestamp::from_seconds(1));
    let chosen = EdgePlan::choose(&[base("b", 1, 1), layer("l", 2, 1, "n")]);
    let n = carried_out(&chosen.module("n", &twin, std::slice::from_ref(&own)));
    assert_eq!(
        Value::Object(n.desired.properties.clone()),
        json!({"level": "l", "own": 1})
    );
    assert_eq!(n.configurations.len(), 2);
    // Alone, it takes its properties away with it.
    let mut alone = carried_out(&EdgePlan::default().module("n", &twin, &[own]));
    let plan = EdgePlan::default().module("n", &alone, &[]);
    alone.manage(&plan, Timestamp::from_seconds(3)).expect("valid");
    assert!(alone.desired.properties.is_empty());
}

#[test]
fn content_that_does_not_fit_leaves_the_last_plan() {
    let mut twin = carried_out(&single(&[device("small", 1, 1, 1)]));
    let big = single(&[device("small", 1, 1, 1), device("big", 2, 1, 2)]);
    let fallback = without_content(&big, &twin);
    twin.manage(&fallback, Timestamp::from_seconds(3)).expect("valid");
    assert_eq!(twin.desired.properties["a"], 1);
    assert!(twin.managed.is_some(), "it is still known what was written");
    assert!(
        twin.configurations
            .values()
            .all(|status| *status == ConfigurationStatus::Targeted)
    );
    let none = single(&[]);
    twin.manage(&none, Timestamp::from_seconds(4)).expect("valid");
    assert!(twin.desired.properties.is_empty());
}
