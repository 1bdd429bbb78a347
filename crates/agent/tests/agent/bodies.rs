//! Container-create bodies (edge.md section 4). Goal: what the user wrote stays as it is besides what is documented.

use std::collections::BTreeSet;

use holdfast_agent::Surroundings;
use holdfast_agent::body::{DEFINITION_LABEL, GENERATION_LABEL, body, definition};
use holdfast_agent::identities::ModuleIdentity;
use holdfast_agent::manifest::{ModuleSpec, parse};
use holdfast_model::Identity;
use serde_json::{Map, Value, json};

use crate::site::{deployment, module, surroundings};

fn spec(changes: Value) -> ModuleSpec {
    let desired = deployment(&[("m", module("x:1", changes))]);
    parse(desired.as_object().unwrap(), None)
        .unwrap()
        .modules
        .remove("m")
        .unwrap()
}

fn with_options(options: Value) -> ModuleSpec {
    spec(json!({"settings": {"createOptions": options.to_string()}}))
}

fn around() -> Surroundings {
    Surroundings {
        gateway_address: [172, 18, 0, 1].into(),
        ..surroundings()
    }
}

fn make(spec: &ModuleSpec, around: &Surroundings) -> Value {
    let identity = ModuleIdentity {
        identity: Identity::module("edge1", "m").unwrap(),
        generation_id: "g1".to_owned(),
        managed_by: "IotEdge".to_owned(),
    };
    Value::Object(body(spec, &identity, around))
}

fn env(body: &Value) -> BTreeSet<String> {
    body["Env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn what_every_module_gets() {
    let body = make(&spec(json!({"env": {"MINE": {"value": 1}}})), &around());
    let expected: BTreeSet<String> = [
        "MINE=1",
        "IOTEDGE_WORKLOADURI=unix:///var/run/iotedge/workload.sock",
        "IOTEDGE_AUTHSCHEME=sasToken",
        "IOTEDGE_MODULEGENERATIONID=g1",
        "IOTEDGE_IOTHUBHOSTNAME=hub.example",
        "IOTEDGE_GATEWAYHOSTNAME=gate.local",
        "IOTEDGE_DEVICEID=edge1",
        "IOTEDGE_MODULEID=m",
        "IOTEDGE_APIVERSION=2022-08-03",
        "RuntimeLogLevel=info",
    ]
    .map(str::to_owned)
    .into();
    assert_eq!(env(&body), expected);
    assert_eq!(body["Image"], "x:1");
    assert_eq!(
        body["HostConfig"]["Binds"],
        json!(["/var/lib/edge/mnt/m:/var/run/iotedge"])
    );
    assert_eq!(
        body["NetworkingConfig"]["EndpointsConfig"],
        json!({"azure-iot-edge": {}})
    );
    assert_eq!(body["HostConfig"]["NetworkMode"], "azure-iot-edge");
    assert_eq!(
        body["HostConfig"]["ExtraHosts"],
        json!([
            "edgeHub:172.18.0.1",
            "edgeAgent:172.18.0.1",
            "gate.local:172.18.0.1"
        ])
    );
    assert_eq!(
        body["HostConfig"]["LogConfig"],
        json!({"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}})
    );
    let labels = body["Labels"].as_object().unwrap();
    assert_eq!(
        labels["net.azure-devices.edge.owner"],
        "Microsoft.Azure.Devices.Edge.Agent"
    );
    assert_eq!(labels["net.azure-devices.edge.original-image"], "x:1");
    assert_eq!(labels[GENERATION_LABEL], "g1");
    assert_eq!(labels[DEFINITION_LABEL].as_str().unwrap().len(), 64);
    assert!(body["HostConfig"].get("Privileged").is_none());
}

#[test]
fn nested_and_with_a_protocol() {
    let mut around = around();
    around.parent_host = Some("parent.local".to_owned());
    around.upstream_protocol = Some("AmqpWs".to_owned());
    let given = spec(json!({"env": {"RuntimeLogLevel": {"value": "debug"}}}));
    let env = env(&make(&given, &around));
    assert!(env.contains("IOTEDGE_PARENTHOSTNAME=parent.local"));
    assert!(env.contains("UpstreamProtocol=AmqpWs"));
    assert!(env.contains("RuntimeLogLevel=debug") && !env.contains("RuntimeLogLevel=info"));
}

#[test]
fn create_options_win() {
    let spec = with_options(json!({
        "Image": "other:1",
        "Env": ["IOTEDGE_MODULEID=me", "PLAIN", "RuntimeLogLevel=trace"],
        "Labels": {"mine": "1", "net.azure-devices.edge.owner": "me"},
        "HostConfig": {
            "Binds": ["/a:/b"], "ExtraHosts": ["edgehub:10.0.0.9", "x:1.2.3.4"],
            "LogConfig": {"Type": "journald"}, "Privileged": true, "CapAdd": ["NET_ADMIN"],
            "PortBindings": {"80/tcp": [{"HostPort": "8080"}]}, "Memory": 1_048_576,
            "RestartPolicy": {"Name": "always"}
        },
        "NetworkingConfig": {"EndpointsConfig": {"own": {"Aliases": ["a"]}}},
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 1_000_000_000_i64},
        "Cmd": ["run"], "StopTimeout": 60
    }));
    let body = make(&spec, &around());
    assert_eq!(body["Image"], "x:1");
    let env = env(&body);
    assert!(
        env.contains("IOTEDGE_MODULEID=me") && env.contains("PLAIN") && env.contains("RuntimeLogLevel=trace")
    );
    assert!(!env.contains("IOTEDGE_MODULEID=m") && !env.contains("RuntimeLogLevel=info"));
    assert_eq!(body["Labels"]["mine"], "1");
    assert_eq!(
        body["Labels"]["net.azure-devices.edge.owner"],
        "Microsoft.Azure.Devices.Edge.Agent"
    );
    let host = &body["HostConfig"];
    assert_eq!(
        host["Binds"],
        json!(["/a:/b", "/var/lib/edge/mnt/m:/var/run/iotedge"])
    );
    assert_eq!(
        host["ExtraHosts"],
        json!([
            "edgehub:10.0.0.9",
            "x:1.2.3.4",
            "edgeAgent:172.18.0.1",
            "gate.local:172.18.0.1"
        ])
    );
    assert_eq!(host["LogConfig"], json!({"Type": "journald"}));
    assert_eq!(host["Privileged"], true);
    assert_eq!(host["CapAdd"], json!(["NET_ADMIN"]));
    assert!(host.get("NetworkMode").is_none());
    assert_eq!(
        body["NetworkingConfig"]["EndpointsConfig"],
        json!({"own": {"Aliases": ["a"]}})
    );
    for (path, value) in [
        (
            "/HostConfig/PortBindings",
            json!({"80/tcp": [{"HostPort": "8080"}]}),
        ),
        ("/HostConfig/Memory", json!(1_048_576)),
        ("/HostConfig/RestartPolicy", json!({"Name": "always"})),
        ("/Healthcheck/Interval", json!(1_000_000_000_i64)),
        ("/Cmd", json!(["run"])),
        ("/StopTimeout", json!(60)),
    ] {
        assert_eq!(body.pointer(path), Some(&value), "{path}");
    }
}

#[test]
fn networks_of_ones_own() {
    for mode in ["host", "none", "container:other", "bridge"] {
        let body = make(
            &with_options(json!({"HostConfig": {"NetworkMode": mode}})),
            &around(),
        );
        assert!(body.get("NetworkingConfig").is_none(), "{mode}");
        assert_eq!(body["HostConfig"]["NetworkMode"], mode);
        let has_names = body["HostConfig"].get("ExtraHosts").is_some();
        assert_eq!(has_names, mode == "host" || mode == "bridge", "{mode}");
    }
}

#[test]
fn without_elevated_permissions() {
    let mut around = around();
    around.allow_elevated = false;
    let given = with_options(json!({"HostConfig": {
        "Privileged": true, "CapAdd": ["CHOWN", "NET_ADMIN"], "CapDrop": ["setuid", "MKNOD"]}}));
    let host = make(&given, &around)["HostConfig"].clone();
    assert_eq!(host["Privileged"], false);
    assert!(host.get("CapAdd").is_none());
    assert_eq!(host["CapDrop"], json!(["setuid", "MKNOD", "CHOWN"]));
}

#[test]
fn other_ways_to_the_workload_api_and_logs() {
    let mut around = around();
    around.workload_uri = "http://172.18.0.1:15580".to_owned();
    around.log_bounds = None;
    let host = make(&spec(json!({})), &around)["HostConfig"].clone();
    assert!(host.get("Binds").is_none());
    assert!(host.get("LogConfig").is_none());
}

#[test]
fn definitions_change_with_what_matters() {
    let base = definition(&spec(json!({})), &around());
    assert_eq!(base, definition(&spec(json!({})), &around()));
    let stopped = spec(json!({"status": "stopped"}));
    assert_eq!(base, definition(&stopped, &around()), "a status is no definition");
    let mut louder = around();
    louder.log_level = "debug".to_owned();
    assert_eq!(base, definition(&spec(json!({})), &louder));
    let changes: [fn(&mut Surroundings); 6] = [
        |around| around.hub_host = "x".to_owned(),
        |around| around.device_id = "x".to_owned(),
        |around| around.gateway_host = "x".to_owned(),
        |around| around.parent_host = Some("x".to_owned()),
        |around| around.gateway_address = [10, 0, 0, 1].into(),
        |around| around.allow_elevated = false,
    ];
    let mut seen = BTreeSet::from([base]);
    for change in changes {
        let mut other = around();
        change(&mut other);
        assert!(seen.insert(definition(&spec(json!({})), &other)));
    }
}

#[test]
fn the_same_body_every_time() {
    let options: Map<String, Value> = (0..40).map(|n| (format!("K{n}"), json!(n))).collect();
    let spec = with_options(Value::Object(options));
    assert_eq!(
        make(&spec, &around()).to_string(),
        make(&spec, &around()).to_string()
    );
}
