use holdfast_model::event::{EventField, EventView};
use holdfast_model::job::{JobCounts, JobSpec, JobStatus, JobWork};
use holdfast_model::routing::{Route, RouteSource, RoutingDefinition};
use holdfast_model::twin::TwinChange;
use serde_json::Map;

use super::*;

const AT: i64 = 1_780_272_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(AT + seconds)
}

fn table(routes: &[(RouteSource, &str)]) -> Arc<RouteTable> {
    let routes = routes.iter().enumerate();
    let definition = RoutingDefinition {
        routes: routes
            .map(|(number, (source, condition))| Route {
                name: format!("r{number}"),
                source: *source,
                condition: (*condition).to_owned(),
                endpoint_names: vec!["events".to_owned()],
                is_enabled: true,
            })
            .collect(),
        ..RoutingDefinition::default()
    };
    Arc::new(RouteTable::compile(&definition).expect("good routes"))
}

fn teller(routes: &[(RouteSource, &str)]) -> Teller {
    Teller::new(table(routes), "hub".into(), at(5))
}

fn device() -> Identity {
    Identity::device("d1").expect("an id")
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().expect("an object")
}

fn changed(twin: &Twin, mode: ChangeMode, tags: Value, desired: Value) -> Twin {
    let mut after = twin.clone();
    let change = TwinChange {
        tags: Some(object(tags)),
        desired: Some(object(desired)),
    };
    after.apply(mode, &change, at(1)).expect("good");
    after
}

/// The one event of the records.
fn look<T>(event: &OutboxEvent, look: impl FnOnce(&EventView<'_>) -> T) -> T {
    let origin = origin(event.source, event.identity.clone());
    let (mut runs, mut look, mut seen) = (Vec::new(), Some(look), None);
    event.records.split(&origin, at(0), &mut runs, |event| {
        seen = look.take().map(|look| look(event));
        EndpointSet::NONE
    });
    seen.expect("one event")
}

fn decided(table: &RouteTable, event: &OutboxEvent) -> Decision {
    decide(table, event, twin_of(table, event).as_ref(), at(0))
}

fn operation(event: &OutboxEvent) -> String {
    look(event, |event| {
        let mut fields = event.fields();
        let found = fields.find_map(|field| match field {
            EventField::Application("opType", value) => value.map(str::to_owned),
            _ => None,
        });
        found.expect("an operation")
    })
}

fn body(event: &OutboxEvent) -> Value {
    look(event, |event| serde_json::from_slice(event.body).expect("JSON"))
}

#[test]
fn hubs_are_called_by_their_first_label() {
    assert_eq!(hub_name("plant.example.com"), "plant");
    assert_eq!(hub_name("localhost"), "localhost");
    assert_eq!(hub_name("192.0.2.7"), "192.0.2.7");
}

#[test]
fn only_what_a_route_wants_is_made() {
    let before = Twin::new(at(0));
    let after = changed(&before, ChangeMode::Patch, json!({"a": 1}), json!({"b": 1}));
    let told = |routes: &[(RouteSource, &str)]| {
        let told = teller(routes).twin_changed(&device(), ChangeMode::Patch, &before, &after);
        told.iter().map(|event| event.source).collect::<Vec<_>>()
    };
    assert!(told(&[(RouteSource::DeviceMessages, "true")]).is_empty());
    assert_eq!(
        told(&[(RouteSource::TwinChangeEvents, "true")]),
        [EventSource::TwinChange]
    );
    let both = [
        (RouteSource::TwinChangeEvents, "true"),
        (RouteSource::DigitalTwinChangeEvents, "true"),
    ];
    assert_eq!(
        told(&both),
        [EventSource::TwinChange, EventSource::DigitalTwinChange]
    );
}

#[test]
fn patches_replacements_and_changes_that_do_not_show() {
    let teller = teller(&[(RouteSource::TwinChangeEvents, "true")]);
    let before = Twin::new(at(0));
    let after = changed(&before, ChangeMode::Patch, json!({"a": 1}), json!({}));
    let patched = teller.twin_changed(&device(), ChangeMode::Patch, &before, &after);
    assert_eq!(operation(&patched[0]), "updateTwin");
    assert_eq!(body(&patched[0])["tags"], json!({"a": 1}));
    assert!(body(&patched[0]).get("deviceId").is_none());
    let replaced = teller.twin_changed(&device(), ChangeMode::Replace, &before, &after);
    assert_eq!(operation(&replaced[0]), "replaceTwin");
    assert_eq!(body(&replaced[0])["deviceId"], "d1");
    assert!(patched[0].twin.is_none(), "no condition asks for it");
    let mut announced = after.clone();
    announced.model_id = Some("dtmi:a;1".to_owned());
    let silent = teller.twin_changed(&device(), ChangeMode::Patch, &after, &announced);
    assert!(silent.is_empty(), "the twin's document has no such member");
}

#[test]
fn digital_twins_change_by_json_patch() {
    let teller = teller(&[(RouteSource::DigitalTwinChangeEvents, "true")]);
    let before = Twin::new(at(0));
    let after = changed(&before, ChangeMode::Patch, json!({}), json!({"target": 20}));
    let told = teller.twin_changed(&device(), ChangeMode::Patch, &before, &after);
    assert_eq!(
        body(&told[0]),
        json!([{"op": "add", "path": "/$metadata/target", "value": {"desiredValue": 20, "desiredVersion": 2}}])
    );
    let tagged = changed(&after, ChangeMode::Patch, json!({"a": 1}), json!({}));
    // Tags are no part of a digital twin.
    let tags_only = Twin {
        desired: after.desired.clone(),
        ..tagged
    };
    let told = teller.twin_changed(&device(), ChangeMode::Patch, &after, &tags_only);
    assert!(told.is_empty());
}

#[test]
fn conditions_see_the_twin_as_it_was_after_the_change() {
    let routes = table(&[
        (RouteSource::TwinChangeEvents, "$twin.tags.site = 'north'"),
        (
            RouteSource::DeviceLifecycleEvents,
            "opType = 'deleteDeviceIdentity'",
        ),
    ]);
    let teller = Teller::new(Arc::clone(&routes), "hub".into(), at(0));
    let before = Twin::new(at(0));
    for (site, endpoints) in [("north", EndpointSet::EVENTS), ("south", EndpointSet::NONE)] {
        let after = changed(&before, ChangeMode::Patch, json!({"site": site}), json!({}));
        let told = teller.twin_changed(&device(), ChangeMode::Patch, &before, &after);
        assert_eq!(decided(&routes, &told[0]).endpoints, endpoints, "{site}");
    }
    let orphan = teller.connection(&device(), 1, true, None);
    let decision = decided(&routes, &orphan);
    assert!(decision.endpoints.is_empty(), "no route takes connections");
}

#[test]
fn jobs_keep_their_names() {
    let teller = teller(&[(RouteSource::DeviceJobLifecycleEvents, "true")]);
    let job = Job {
        number: 1,
        id: "roll~out/7".to_owned(),
        spec: JobSpec {
            condition: "*".to_owned(),
            work: JobWork::UpdateTwin {
                tags: None,
                desired: None,
            },
            max_execution_seconds: 60,
        },
        status: JobStatus::Queued,
        created_at: at(0),
        start_at: at(0),
        started_at: None,
        ended_at: None,
        failure: None,
        cursor: None,
        expanded: false,
        counts: JobCounts::default(),
    };
    let created = teller.job_created(&job);
    assert_eq!(created.identity.as_str(), "roll-out-7");
    assert_eq!(operation(&created), "createJob");
    assert_eq!(operation(&teller.job_changed(&job)), "updateJob");
    assert_eq!(body(&created)["jobId"], "roll~out/7");
    let undefined = table(&[(
        RouteSource::DeviceJobLifecycleEvents,
        "is_defined($connectionDeviceId)",
    )]);
    assert!(decided(&undefined, &created).endpoints.is_empty());
    assert_eq!(job_identity("").as_str(), "job");
}
