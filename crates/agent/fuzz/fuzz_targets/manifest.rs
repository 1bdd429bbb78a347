//! Desired properties of anybody: refused with a field and a reason, or a deployment whose containers have a body.
#![no_main]

use holdfast_agent::Surroundings;
use holdfast_agent::body::{OWNED_LABELS, body};
use holdfast_agent::identities::ModuleIdentity;
use holdfast_agent::manifest::{parse, read_object};
use holdfast_model::Identity;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(object) = read_object(data) else { return };
    let deployment = match parse(&object, Some("parent.example")) {
        Ok(deployment) => deployment,
        Err(error) => {
            assert!(!error.description().is_empty());
            return;
        }
    };
    let around = Surroundings {
        hub_host: "hub.example".into(),
        device_id: "d".into(),
        gateway_host: "g".into(),
        parent_host: None,
        network: "n".into(),
        gateway_address: [172, 18, 0, 1].into(),
        workload_uri: "unix:///w/s".into(),
        workload_folder: "/f".into(),
        log_level: "info".into(),
        upstream_protocol: None,
        allow_elevated: false,
        log_bounds: None,
    };
    for (name, spec) in &deployment.modules {
        let Ok(identity) = Identity::module("d", name) else { continue };
        let identity = ModuleIdentity {
            identity,
            generation_id: "1".into(),
            managed_by: "IotEdge".into(),
        };
        let body = body(spec, &identity, &around);
        for label in OWNED_LABELS {
            assert!(body["Labels"][label].is_string());
        }
        assert_eq!(body["HostConfig"]["Privileged"], false);
    }
});
