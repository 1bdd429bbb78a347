//! Goal: the document of edge.md 2.6 and patches that lead to it.

use proptest::prelude::*;

use super::*;
use crate::manifest::{merge, parse};

fn deployment() -> Deployment {
    let desired = json!({
        "$version": 3, "schemaVersion": "1.1",
        "runtime": {"type": "docker", "settings": {"minDockerVersion": "v1.25",
            "registryCredentials": {"own": {"address": "r.example", "username": "u", "password": "secret"}}}},
        "systemModules": {
            "edgeAgent": {"type": "docker", "settings": {"image": "agent:1", "createOptions": "{}"}},
            "edgeHub": {"type": "docker", "status": "running", "settings": {"image": "hub:1"}}},
        "modules": {"m": {"type": "docker", "version": "2", "status": "running", "startupOrder": 4,
            "env": {"A": {"value": 1}}, "settings": {"image": "m:1", "digest": "d",
            "createOptions": format!("{{\"A\":\"{}\"}}", "x".repeat(600))}}}
    });
    parse(desired.as_object().unwrap(), None).unwrap()
}

fn document(deployment: Option<&Deployment>, brief: bool) -> Value {
    let mut modules = BTreeMap::new();
    for name in ["edgeAgent", "edgeHub", "m"] {
        let mut state = ModuleState::unknown(name, &format!("{name}:1"));
        state.status = RuntimeStatus::Running;
        modules.insert(name.to_owned(), state);
    }
    let state = modules.get_mut("m").unwrap();
    state.status = RuntimeStatus::Backoff;
    state.exit_code = 3;
    state.image_id = "sha256:1".to_owned();
    state.restart_count = 2;
    state.description = Some("pause".to_owned());
    state.started_at = Timestamp::from_seconds(1_790_000_000);
    let report = Report {
        version: &AgentVersion {
            version: "1".to_owned(),
            build: "b".to_owned(),
            commit: "c".to_owned(),
        },
        platform: &Platform {
            os: "linux".to_owned(),
            architecture: "x86_64".to_owned(),
            version: "1".to_owned(),
        },
        status: &DeploymentStatus {
            version: 3,
            code: StatusCode::Successful,
            description: String::new(),
        },
        deployment,
        modules: &modules,
        brief,
    };
    Value::Object(report.document())
}

#[test]
fn the_whole_document() {
    let document = document(Some(&deployment()), false);
    let expected = json!({
        "schemaVersion": "1.0",
        "version": {"version": "1", "build": "b", "commit": "c"},
        "lastDesiredVersion": 3,
        "lastDesiredStatus": {"code": 200, "description": ""},
        "runtime": {"type": "docker",
            "settings": {"minDockerVersion": "v1.25", "loggingOptions": "", "registryCredentials":
                {"own": {"address": "r.example", "username": "u", "password": "******"}}},
            "platform": {"os": "linux", "architecture": "x86_64", "version": "1"}},
        "systemModules": {
            "edgeAgent": {"type": "docker", "imagePullPolicy": "on-create", "startupOrder": 0,
                "settings": {"image": "edgeAgent:1", "imageHash": "", "createOptions": "{}"}, "env": {},
                "exitCode": 0, "lastStartTimeUtc": "0001-01-01T00:00:00Z",
                "lastExitTimeUtc": "0001-01-01T00:00:00Z", "runtimeStatus": "running"},
            "edgeHub": {"type": "docker", "status": "running", "restartPolicy": "always",
                "imagePullPolicy": "on-create",
                "settings": {"image": "edgeHub:1", "imageHash": "", "createOptions": "{}"}, "env": {},
                "exitCode": 0, "lastStartTimeUtc": "0001-01-01T00:00:00Z",
                "lastExitTimeUtc": "0001-01-01T00:00:00Z", "runtimeStatus": "running", "restartCount": 0,
                "lastRestartTimeUtc": "0001-01-01T00:00:00Z"}},
        "modules": {"m": {"type": "docker", "status": "running", "restartPolicy": "on-unhealthy",
            "imagePullPolicy": "on-create", "version": "2", "startupOrder": 4,
            "settings": {"image": "m:1", "imageHash": "sha256:1", "digest": "d",
                "createOptions": format!("{{\"A\":\"{}", "x".repeat(506)),
                "createOptions01": format!("{}\"}}", "x".repeat(94))},
            "env": {"A": {"value": "1"}}, "exitCode": 3, "statusDescription": "pause",
            "lastStartTimeUtc": "2026-09-21T14:13:20Z",
            "lastExitTimeUtc": "0001-01-01T00:00:00Z", "runtimeStatus": "backoff", "restartCount": 2,
            "lastRestartTimeUtc": "0001-01-01T00:00:00Z"}}
    });
    // The image is the state's, which is the deployed one.
    let mut document = document;
    document["modules"]["m"]["settings"]["image"] = json!("m:1");
    assert_eq!(document, expected);
    assert!(!document.to_string().contains("secret"));
}

#[test]
fn before_any_deployment() {
    let document = document(None, false);
    assert_eq!(document["runtime"]["type"], "Unknown");
    assert!(document["runtime"].get("settings").is_none());
    assert_eq!(document["systemModules"]["edgeHub"]["runtimeStatus"], "running");
}

#[test]
fn a_brief_document_has_the_states() {
    let document = document(Some(&deployment()), true);
    assert_eq!(document["modules"]["m"]["runtimeStatus"], "backoff");
    assert!(document["modules"]["m"].get("env").is_none());
    assert!(
        document["modules"]["m"]["settings"]
            .get("createOptions")
            .is_none()
    );
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z]{0,3}".prop_map(Value::from),
        Just(json!([1, 2])),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop::collection::btree_map("[a-d]", inner, 0..4).prop_map(|map| json!(map))
    })
}

fn objects() -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::btree_map("[a-d]", values(), 0..5).prop_map(|map| map.into_iter().collect())
}

proptest! {
    #[test]
    fn patches_lead_there(from in objects(), to in objects()) {
        let patch = difference(&from, &to);
        let mut patched = from.clone();
        merge(&mut patched, patch.clone());
        prop_assert_eq!(&patched, &to);
        prop_assert_eq!(patch.is_empty(), from == to);
        prop_assert!(difference(&patched, &to).is_empty());
    }
}

#[test]
fn the_hubs_own_members_are_left_alone() {
    let from = json!({"$version": 4, "a": 1});
    let to = json!({"a": 1});
    assert!(difference(from.as_object().unwrap(), to.as_object().unwrap()).is_empty());
}
