//! Goal: every rule of edge.md 2.2 to 2.5, accepted and refused. Method: one complete manifest, changed in one place.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

fn complete() -> Value {
    json!({
        "$version": 7,
        "schemaVersion": "1.1",
        "runtime": {"type": "docker", "settings": {
            "minDockerVersion": "v1.25", "loggingOptions": "",
            "registryCredentials": {"own": {"address": "r.example:5000", "username": "u", "password": "secret"}}
        }},
        "systemModules": {
            "edgeAgent": {"type": "docker", "settings": {"image": "agent:1"}, "env": {"MaxRestartCount": {"value": 5}}},
            "edgeHub": {"type": "docker", "status": "running", "restartPolicy": "always", "startupOrder": 0,
                        "settings": {"image": "hub:1", "createOptions": "{\"HostConfig\":{}}"}}
        },
        "modules": {
            "sensor": {
                "type": "docker", "version": "1.0", "status": "running", "restartPolicy": "always",
                "imagePullPolicy": "never", "startupOrder": 3,
                "env": {"A": {"value": "x"}, "N": {"value": 1.5}, "B": {"value": true}},
                "settings": {"image": " r.example:5000/sensor:1 ", "createOptions": "{\"Hostname\":\"h\"}"},
                "unknown": {"is": "passed over"}
            },
            "bare": {"type": "docker", "status": "stopped", "settings": {"image": "bare"}}
        }
    })
}

fn read(value: &Value) -> Result<Deployment, ManifestError> {
    parse(value.as_object().unwrap(), Some("parent.example"))
}

/// The complete manifest with one place set to a value (`null` removes nothing, it stands there as null).
fn changed(path: &str, value: Value) -> Value {
    let mut manifest = complete();
    let mut place = &mut manifest;
    for part in path.split('/') {
        place = place
            .as_object_mut()
            .unwrap()
            .entry(part)
            .or_insert_with(|| Value::Object(Map::new()));
    }
    *place = value;
    manifest
}

fn refused(path: &str, value: Value, field: &str, problem: &str) {
    let manifest = changed(path, value);
    let error = read(&manifest).expect_err(path);
    assert_eq!(error.code, StatusCode::ConfigFormat, "{error}");
    assert_eq!(error.field, field, "{error}");
    assert!(error.problem.contains(problem), "{error}");
    assert!(
        error
            .description()
            .starts_with("Agent configuration format is invalid. ")
    );
}

#[test]
fn a_complete_manifest() {
    let deployment = read(&complete()).unwrap();
    assert_eq!(deployment.version, 7);
    assert_eq!(deployment.runtime.min_docker_version, "v1.25");
    let sensor = &deployment.modules["sensor"];
    assert_eq!(sensor.image, "r.example:5000/sensor:1");
    assert_eq!(sensor.startup_order, 3);
    assert_eq!(sensor.pull_policy, PullPolicy::Never);
    assert_eq!(sensor.restart_policy, RestartPolicy::Always);
    assert_eq!(sensor.env["N"], "1.5");
    assert_eq!(sensor.env["B"], "true");
    assert_eq!(&*sensor.create_options, "{\"Hostname\":\"h\"}");
    let bare = &deployment.modules["bare"];
    assert_eq!(bare.image, "bare:latest");
    assert_eq!(bare.restart_policy, RestartPolicy::OnUnhealthy);
    assert_eq!(bare.pull_policy, PullPolicy::OnCreate);
    assert_eq!(bare.startup_order, STARTUP_ORDER_DEFAULT);
    assert_eq!(bare.status, DesiredStatus::Stopped);
    let agent = deployment.edge_agent.unwrap();
    assert_eq!(agent.startup_order, 0);
    assert_eq!(agent.env["MaxRestartCount"], "5");
}

#[test]
fn schema_versions() {
    for good in ["1.0", "1.1", "1.0.0", "1.1.0", " 1.0 ", "1.0.5"] {
        assert!(read(&changed("schemaVersion", json!(good))).is_ok(), "{good}");
    }
    for bad in [
        json!("1.2"),
        json!("2.0"),
        json!("1.1.1"),
        json!("1"),
        json!(""),
        json!("one"),
        json!("1.x"),
        json!(1.0),
        Value::Null,
    ] {
        let error = read(&changed("schemaVersion", bad.clone())).expect_err("refused");
        assert_eq!(error.code, StatusCode::InvalidSchemaVersion, "{bad}");
        assert!(error.description().starts_with("Invalid schema version."));
    }
    let mut missing = complete();
    missing.as_object_mut().unwrap().remove("schemaVersion");
    assert_eq!(read(&missing).unwrap_err().code, StatusCode::InvalidSchemaVersion);
}

#[test]
fn nothing_desired_is_an_empty_configuration() {
    for empty in [json!({}), json!({"$version": 1, "$metadata": {}})] {
        assert_eq!(read(&empty).unwrap_err().code, StatusCode::ConfigEmpty);
    }
}

#[test]
fn wrong_fields_are_named() {
    refused("runtime", Value::Null, "runtime", "missing");
    refused(
        "runtime/type",
        json!("vm"),
        "runtime.type",
        "\"vm\" is not one of docker",
    );
    refused(
        "runtime/settings/registryCredentials/own/password",
        Value::Null,
        "runtime.settings.registryCredentials.own.password",
        "missing",
    );
    refused("modules", json!([]), "modules", "an array instead of an object");
    refused(
        "modules/sensor",
        json!("x"),
        "modules.sensor",
        "a text instead of an object",
    );
    refused(
        "modules/sensor/type",
        Value::Null,
        "modules.sensor.type",
        "missing",
    );
    refused(
        "modules/sensor/status",
        Value::Null,
        "modules.sensor.status",
        "missing",
    );
    refused(
        "modules/sensor/status",
        json!("failed"),
        "modules.sensor.status",
        "is not one of running, stopped",
    );
    refused(
        "modules/sensor/restartPolicy",
        json!("sometimes"),
        "modules.sensor.restartPolicy",
        "never, on-failure, on-unhealthy, always",
    );
    refused(
        "modules/sensor/settings",
        Value::Null,
        "modules.sensor.settings",
        "missing",
    );
    refused(
        "modules/sensor/settings/image",
        json!(5),
        "modules.sensor.settings.image",
        "a number instead of a text",
    );
    refused(
        "systemModules/edgeHub/status",
        Value::Null,
        "systemModules.edgeHub.status",
        "missing",
    );
    for order in [json!(-1), json!(4_294_967_296_u64), json!("1"), json!(1.5)] {
        refused(
            "modules/sensor/startupOrder",
            order,
            "modules.sensor.startupOrder",
            "whole number",
        );
    }
    for name in ["", "-x", "a b", "a/b", "..", "ä", "edgehub", &"n".repeat(129)] {
        let mut manifest = complete();
        manifest["modules"][name] = manifest["modules"]["bare"].clone();
        assert!(read(&manifest).is_err(), "{name:?}");
    }
}

#[test]
fn environment() {
    refused(
        "modules/sensor/env/A",
        json!("x"),
        "modules.sensor.env.A",
        "instead of an object",
    );
    refused(
        "modules/sensor/env/A/value",
        json!([]),
        "modules.sensor.env.A.value",
        "an array",
    );
    refused(
        "modules/sensor/env/A/value",
        Value::Null,
        "modules.sensor.env.A.value",
        "missing",
    );
    refused(
        "modules/sensor/env/A=B",
        json!({"value": 1}),
        "modules.sensor.env.A=B",
        "no =",
    );
    refused(
        "modules/sensor/env/IOTEDGE_DEVICEID",
        json!({"value": "me"}),
        "modules.sensor.env.IOTEDGE_DEVICEID",
        "duplicate env var key",
    );
    let set = changed("modules/sensor/env/RuntimeLogLevel", json!({"value": "debug"}));
    assert!(read(&set).is_ok(), "the agent's own value gives way");
}

#[test]
fn images() {
    let image = |text: &str| {
        read(&changed("modules/sensor/settings/image", json!(text)))
            .map(|deployment| deployment.modules["sensor"].image.clone())
    };
    for (text, expected) in [
        ("x", "x:latest"),
        ("a/b/x:1", "a/b/x:1"),
        ("host:5000/x", "host:5000/x:latest"),
        ("host:5000/x@sha256:aa", "host:5000/x@sha256:aa"),
        ("$upstream:443/x", "parent.example:443/x:latest"),
        ("$upstream:5000/a/x:2", "parent.example:5000/a/x:2"),
    ] {
        assert_eq!(image(text).unwrap(), expected);
    }
    for text in [
        "",
        "  ",
        "a b",
        "x:",
        "host:5000/",
        "$upstream/x",
        "$upstream:0443/x",
        "$upstream:port/x",
        "$upstream:70000/x",
        "$upstream",
    ] {
        let error = image(text).expect_err(text);
        assert_eq!(error.field, "modules.sensor.settings.image");
    }
    let nested = changed("modules/sensor/settings/image", json!("$upstream:443/x"));
    let error = parse(nested.as_object().unwrap(), None).unwrap_err();
    assert!(error.problem.contains("no parent"), "{error}");
}

#[test]
fn whose_credentials() {
    let registry = |address: &str| Registry {
        name: String::new(),
        address: address.to_owned(),
        username: address.to_owned(),
        password: "secret".to_owned(),
    };
    let entries = [
        registry("R.Example"),
        registry("https://index.docker.io/v1/"),
        registry("r.example:5000"),
        registry("r.example:5000"),
    ];
    let of = |image: &str| credentials(image, entries.iter()).map(|auth| auth.username);
    assert_eq!(of("r.example/x:1").as_deref(), Some("R.Example"));
    assert_eq!(of("r.example:5000/x:1").as_deref(), Some("r.example:5000"));
    assert_eq!(of("me/x:1").as_deref(), Some("https://index.docker.io/v1/"));
    assert_eq!(of("x:1"), None);
    assert_eq!(of("other.example/x:1"), None);
    assert!(!format!("{:?} {:?}", entries[0], entries[0].auth()).contains("secret"));
}

#[test]
fn create_options() {
    let options = |settings: Value| {
        read(&changed("modules/sensor/settings", settings))
            .map(|deployment| deployment.modules["sensor"].create_options.to_string())
    };
    for empty in [
        json!({"image": "x"}),
        json!({"image": "x", "createOptions": ""}),
        json!({"image": "x", "createOptions": "null"}),
        json!({"image": "x", "createOptions": "  {} "}),
    ] {
        assert_eq!(options(empty).unwrap(), "{}");
    }
    let chunked =
        json!({"image": "x", "createOptions": "{\"He", "createOptions02": "\":1}", "createOptions01": "llo"});
    assert_eq!(options(chunked).unwrap(), "{\"Hello\":1}");
    let object = json!({"image": "x", "createOptions": {"B": 1, "A": 2}});
    assert_eq!(options(object).unwrap(), "{\"A\":2,\"B\":1}");
    for (settings, problem) in [
        (json!({"image": "x", "createOptions": "{"}), "EOF"),
        (json!({"image": "x", "createOptions": "[]"}), "not a JSON object"),
        (
            json!({"image": "x", "createOptions": "{\"A\":1,\"A\":2}"}),
            "\"A\" appears twice",
        ),
        (
            json!({"image": "x", "createOptions": "{}", "createOptions1": "", "createOptions01": ""}),
            "piece 1",
        ),
        (json!({"image": "x", "createOptions": 5}), "a number"),
        (
            json!({"image": "x", "createOptions": "{\"Env\":{}}"}),
            "array of texts",
        ),
        (
            json!({"image": "x", "createOptions": "{\"HostConfig\":{\"Binds\":[1]}}"}),
            "array of texts",
        ),
        (
            json!({"image": "x", "createOptions": "{\"NetworkingConfig\":[]}"}),
            "instead of an object",
        ),
    ] {
        let error = options(settings.clone()).expect_err("refused");
        assert!(error.problem.contains(problem), "{settings}: {error}");
        assert!(
            error.field.starts_with("modules.sensor.settings.createOptions"),
            "{error}"
        );
    }
    let mut many = json!({"image": "x"});
    for number in 0..=100 {
        many[format!("createOptions{number}")] = json!("");
    }
    assert!(
        options(many)
            .unwrap_err()
            .problem
            .contains("more than 100 pieces")
    );
}

#[test]
fn create_options_are_spelled_as_the_engine_spells_them() {
    let given = json!({
        "env": ["A=1"], "IMAGE": "other", "hostname": "h",
        "ho\u{17f}tConfig": {"privileged": true, "binds": ["/a:/b"], "memory": 5},
        "networkingConfig": {"endpointsConfig": {}},
    });
    let manifest = changed("modules/sensor/settings/createOptions", given);
    let deployment = read(&manifest).unwrap();
    let expected = json!({
        "Env": ["A=1"], "Image": "other", "hostname": "h",
        "HostConfig": {"Privileged": true, "Binds": ["/a:/b"], "memory": 5},
        "NetworkingConfig": {"EndpointsConfig": {}},
    });
    assert_eq!(Value::Object(deployment.modules["sensor"].options()), expected);
    refused(
        "modules/sensor/settings/createOptions",
        json!({"HostConfig": {}, "hostConfig": {"privileged": true}}),
        "modules.sensor.settings.createOptions.hostConfig",
        "appears twice, also as HostConfig",
    );
}

#[test]
fn too_much_is_refused_before_it_is_kept() {
    let long = vec![b' '; limits::DESIRED_BYTES_MAX + 1];
    assert!(read_object(&long).unwrap_err().contains("bytes"));
    let deep = "{\"a\":".repeat(40) + "1" + &"}".repeat(40);
    assert!(
        read_object(deep.as_bytes())
            .unwrap_err()
            .contains("nested deeper")
    );
    let many = format!("{{\"a\":[{}0]}}", "0,".repeat(limits::VALUES_MAX));
    assert!(read_object(many.as_bytes()).unwrap_err().contains("more than"));
    let mut modules = complete();
    for number in 0..limits::MODULES_MAX {
        modules["modules"][format!("m{number}")] = modules["modules"]["bare"].clone();
    }
    assert!(
        read(&modules)
            .unwrap_err()
            .problem
            .contains("more than 200 modules")
    );
    let long = changed(
        "modules/sensor/settings/createOptions",
        json!(format!("{{\"A\":\"{}\"}}", "x".repeat(600_000))),
    );
    assert!(read(&long).unwrap_err().problem.contains("longer than"));
}

#[test]
fn secrets_are_not_printed() {
    let mut manifest = complete();
    manifest["modules"]["sensor"]["env"]["TOKEN"] = json!({"value": "hidden"});
    let text = format!("{:?}", read(&manifest).unwrap());
    assert!(!text.contains("hidden") && !text.contains("secret"), "{text}");
}

proptest! {
    #[test]
    fn chunks_of_any_text_join_to_it(text in "\\PC{0,2000}") {
        let pieces: Vec<&str> = chunks(&text).collect();
        prop_assert_eq!(pieces.concat(), text.clone());
        prop_assert!(pieces.iter().all(|piece| piece.chars().count() <= 512));
        let mut settings = Map::new();
        write_chunks(&mut settings, &text);
        prop_assert_eq!(settings.len(), pieces.len());
    }

    #[test]
    fn create_options_survive_being_cut(sizes in prop::collection::vec(0_usize..60_000, 1..4)) {
        let options: Map<String, Value> = sizes
            .iter()
            .enumerate()
            .map(|(number, size)| (format!("Key{number}"), json!("é".repeat(size / 2))))
            .collect();
        let text = Value::Object(options).to_string();
        prop_assume!(text.chars().count() <= 51_200);
        let mut settings = Map::new();
        settings.insert("image".to_owned(), json!("x"));
        write_chunks(&mut settings, &text);
        let deployment = read(&changed("modules/sensor/settings", Value::Object(settings))).unwrap();
        prop_assert_eq!(&*deployment.modules["sensor"].create_options, text.as_str());
    }

    #[test]
    fn no_bytes_make_it_fall_over(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(object) = read_object(&bytes) {
            let _ = parse(&object, None);
        }
    }

    #[test]
    fn nothing_in_any_place_makes_it_fall_over(place in 0_usize..14, value in prop_oneof![
        Just(Value::Null), Just(json!(true)), Just(json!(-1)), Just(json!("")), Just(json!([1])), Just(json!({"a": {}}))]) {
        let places = ["runtime", "runtime/type", "runtime/settings", "runtime/settings/registryCredentials",
            "systemModules", "systemModules/edgeAgent", "systemModules/edgeHub/settings", "modules", "modules/sensor",
            "modules/sensor/env", "modules/sensor/settings", "modules/sensor/settings/createOptions",
            "modules/sensor/settings/image", "modules/sensor/imagePullPolicy"];
        if let Err(error) = read(&changed(places[place], value)) {
            prop_assert_eq!(error.code, StatusCode::ConfigFormat);
        }
    }
}
