//! Files of `tests/config`: `good_` ones are read with exactly the warnings that they name (`# warning: …`), `bad_` ones are
//! refused with the words that they name (`# expect: …`), a remedy, and no secret.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::*;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/config")
}

fn files(prefix: &str) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| {
            (
                entry.file_name().to_string_lossy().into_owned(),
                fs::read_to_string(entry.path()).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

fn load_good(name: &str) -> Loaded {
    let text = fs::read_to_string(folder().join(format!("good_{name}.toml"))).unwrap();
    parse(&text, "file").unwrap()
}

fn good(name: &str) -> Settings {
    load_good(name).settings
}

#[test]
fn good_files_are_read_with_the_warnings_they_name() {
    let files = files("good_");
    assert!(files.len() >= 6);
    for (name, text) in files {
        let loaded = parse(&text, &name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let wanted: Vec<String> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# warning: "))
            .map(|warning| format!("{name}: {warning}"))
            .collect();
        assert_eq!(loaded.warnings, wanted, "{name}");
    }
}

#[test]
fn bad_files_are_refused_with_the_words_they_name() {
    let files = files("bad_");
    assert!(files.len() >= 20);
    for (name, text) in files {
        let wanted = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("# expect: "))
            .unwrap();
        let error = match parse(&text, &name) {
            Ok(_) => panic!("{name} was taken"),
            Err(error) => error,
        };
        assert!(error.message.contains(wanted), "{name}: {}", error.message);
        assert!(error.message.starts_with(&name), "{name}: {}", error.message);
        assert!(
            error.hint.is_some_and(|hint| !hint.is_empty()),
            "{name}: no remedy"
        );
        for secret in ["topsecret", "pin-value", "AAAAAAAA"] {
            assert!(!error.message.contains(secret), "{name}: {}", error.message);
        }
    }
}

#[test]
fn a_connection_string_is_enough() {
    let settings = good("minimal");
    let Provisioning::Manual { hub, device_id, .. } = &settings.provisioning else {
        panic!("{settings:?}");
    };
    assert_eq!((hub.as_str(), device_id.as_str()), ("hub.example", "edge-1"));
    assert_eq!(settings.home, PathBuf::from("/var/lib/holdfast-edge"));
    assert_eq!(
        (settings.listen.mqtt, settings.listen.amqp, settings.listen.https),
        (Some(8883), Some(5671), Some(443))
    );
    assert!(settings.rollback.enabled && settings.elevated_modules);
    assert!(!format!("{settings:?}").contains("AAAA"), "keys are not printed");
}

#[test]
fn own_files_say_everything() {
    let settings = good("own_dps_x509");
    let Provisioning::Dps {
        endpoint,
        registration_id,
        credential: Credential::Certificate(files),
        ..
    } = &settings.provisioning
    else {
        panic!("{settings:?}");
    };
    assert_eq!(endpoint, "https://hub.example:8443");
    assert_eq!(
        (registration_id, &files.certificate),
        (&None, &PathBuf::from("/etc/device.pem"))
    );
    assert_eq!(settings.reprovisioning, Reprovisioning::OnErrorOnly);
    assert!(matches!(settings.edge_ca, EdgeCa::Files(_)));
    assert_eq!(settings.engine.socket, PathBuf::from("/run/podman/podman.sock"));
    assert_eq!(
        serde_json::Value::Object(settings.engine.network_options),
        json!({"EnableIPv6": true, "IPAM": {"Config": [{"Subnet": "172.30.0.0/16", "Gateway": "172.30.0.1"}]}})
    );
    assert_eq!(settings.listen.amqp, None);
    let store = Store {
        bytes_max: 64 << 20,
        drop_oldest: true,
        upstream_bytes_per_second: Some(100_000),
    };
    assert_eq!(settings.store, store);
    assert_eq!(settings.upstream.protocol, UpstreamProtocol::MqttWs);
    assert!(!settings.rollback.enabled);
}

#[test]
fn files_of_the_original_say_what_they_said() {
    let manual = good("aziot_manual");
    assert_eq!(manual.reprovisioning, Reprovisioning::OnErrorOnly);
    assert_eq!(manual.upstream.protocol, UpstreamProtocol::AmqpWs);
    assert_eq!(
        manual.upstream.proxy.as_deref(),
        Some("http://proxy.example:3128")
    );
    assert_eq!(
        manual
            .agent
            .registry
            .as_ref()
            .map(|(address, ..)| address.as_str()),
        Some("registry.example")
    );
    assert_eq!(
        manual.sockets.management,
        PathBuf::from("/var/run/iotedge/mgmt.sock")
    );

    let sas = good("aziot_manual_sas");
    assert_eq!(sas.trust_bundle, Some(PathBuf::from("/etc/root.pem")));
    let Provisioning::Manual {
        credential: Credential::Key(KeySource::File(path)),
        ..
    } = &sas.provisioning
    else {
        panic!("{sas:?}");
    };
    assert_eq!(path, &PathBuf::from("/var/secrets/device.key"));
    assert!(matches!(sas.edge_ca, EdgeCa::Files(_)));

    let x509 = good("aziot_manual_x509");
    assert_eq!(x509.engine.network, "plant");
    assert!(matches!(
        x509.provisioning,
        Provisioning::Manual {
            credential: Credential::Certificate(_),
            ..
        }
    ));
}

#[test]
fn both_kinds_of_files_name_a_tpm() {
    let own = good("own_dps_tpm");
    let Provisioning::Dps {
        registration_id: None,
        credential: Credential::Tpm,
        ..
    } = &own.provisioning
    else {
        panic!("{own:?}");
    };
    assert_eq!(own.tpm.address.to_string(), "device:/dev/tpmrm0");
    assert_eq!(own.tpm.owner_auth, HierarchyAuth::File("owner.auth".into()));
    assert_eq!(own.tpm.endorsement_auth, HierarchyAuth::Empty);

    let original = good("aziot_dps_tpm");
    let Provisioning::Dps {
        registration_id: Some(id),
        credential: Credential::Tpm,
        ..
    } = &original.provisioning
    else {
        panic!("{original:?}");
    };
    assert_eq!(id, "press-4");
    assert_eq!(original.tpm.address.to_string(), "swtpm:host=127.0.0.1,port=2345");
    let HierarchyAuth::Value(owner) = &original.tpm.owner_auth else {
        panic!("{original:?}");
    };
    assert_eq!(owner.as_str(), "topsecret");
    assert!(!format!("{original:?}").contains("topsecret"), "not printed");
}

#[test]
fn files_of_authorization_values_are_below_the_files_folder() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("edge.toml");
    fs::copy(folder().join("good_own_dps_tpm.toml"), &file).unwrap();
    let settings = load(Some(&file)).unwrap().settings;
    let owner = dir.path().join("owner.auth");
    assert_eq!(settings.tpm.owner_auth, HierarchyAuth::File(owner));
}

#[test]
fn every_section_of_the_original_is_obeyed() {
    let settings = good("aziot_dps_key");
    assert_eq!(settings.parent_hostname.as_deref(), Some("parent.example"));
    assert!(!settings.elevated_modules && settings.prefer_cached_identities);
    assert_eq!(
        (settings.upstream.timeout, settings.upstream.retries),
        (Duration::from_secs(30), 3)
    );
    assert_eq!(
        (
            settings.sockets.management_requests_max,
            settings.sockets.workload_requests_max
        ),
        (20, 5)
    );
    assert_eq!(settings.sockets.workload, PathBuf::from("/run/w/workload.sock"));
    assert_eq!(
        settings.sockets.module_workload,
        PathBuf::from("/run/w/workload.sock")
    );
    assert_eq!(settings.watchdog_retries, Some(7));
    assert_eq!(
        settings.images,
        ImageGarbageCollection {
            enabled: true,
            every: Duration::from_secs(2 * 86_400),
            age: Duration::from_secs(30 * 86_400),
            at_minutes: 210,
        }
    );
    let EdgeCa::LocalCa {
        common_name,
        life,
        renew_at_percent,
        retry_percent,
        rotate_key,
        ..
    } = &settings.edge_ca
    else {
        panic!("{settings:?}");
    };
    assert_eq!(
        (
            common_name.as_deref(),
            life.as_secs() / 86_400,
            *renew_at_percent,
            *retry_percent,
            *rotate_key
        ),
        (Some("line 4"), 60, 50, 2, false)
    );
    assert_eq!(
        settings.engine.network_options["IPAM"]["Config"][0]["IPRange"],
        json!("172.20.1.0/24")
    );
    assert!(!settings.rollback.enabled);
    assert_eq!(settings.listen.https, None);
}

#[test]
fn relative_paths_are_below_the_files_folder() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("cs"),
        format!("HostName=h;DeviceId=d;SharedAccessKey={}\n", "A".repeat(43) + "="),
    )
    .unwrap();
    let file = dir.path().join("edge.toml");
    fs::write(
        &file,
        "provisioning.connection_string_file = \"cs\"\nupstream.ca = \"ca.pem\"\ncertificates.trust_bundle = \"/abs.pem\"\n",
    )
    .unwrap();
    let settings = load(Some(&file)).unwrap().settings;
    assert_eq!(settings.upstream.ca, Some(dir.path().join("ca.pem")));
    assert_eq!(settings.trust_bundle, Some(PathBuf::from("/abs.pem")));
}

/// What a file of the original says is what its import says, besides what the notes name.
#[test]
fn imports_say_the_same() {
    for name in [
        "aziot_dps_key",
        "aziot_dps_tpm",
        "aziot_manual",
        "aziot_manual_sas",
        "aziot_manual_x509",
    ] {
        let loaded = load_good(name);
        let imported = import::import(&loaded).unwrap();
        let again = parse(&imported.text, "imported").unwrap();
        assert_eq!(again.warnings, Vec::<String>::new(), "{name}:\n{}", imported.text);
        let (mut before, mut after) = (loaded.settings.clone(), again.settings);
        for settings in [&mut before, &mut after] {
            settings.source.clear();
            settings.agent.image.clear();
            // A value becomes a file that the operator writes.
            for auth in [&mut settings.tpm.owner_auth, &mut settings.tpm.endorsement_auth] {
                if let HierarchyAuth::Value(_) = auth {
                    *auth = HierarchyAuth::Empty;
                    assert!(
                        imported.notes.iter().any(|note| note.contains("_auth_file")),
                        "{name}"
                    );
                }
            }
        }
        if let Some((address, user, password)) = before.agent.registry.take() {
            for (key, value) in [
                ("serverAddress", address),
                ("username", user),
                ("password", password),
            ] {
                before
                    .agent
                    .env
                    .insert(format!("DockerRegistryAuth__0__{key}"), value);
            }
        }
        assert_eq!(after, before, "{name}:\n{}", imported.text);
        for warning in &loaded.warnings {
            assert!(imported.notes.contains(warning), "{name}: {warning}");
        }
    }
}

#[test]
fn an_import_holds_what_differs_from_the_defaults() {
    let imported = import::import(&load_good("aziot_manual")).unwrap();
    assert!(imported.text.starts_with("# From "), "{}", imported.text);
    assert!(!imported.text.contains("[images]") && !imported.text.contains("mqtt_port"));
    assert!(
        imported.text.contains("mode = \"on-error-only\""),
        "{}",
        imported.text
    );
    assert!(
        imported.text.contains("protocol = \"amqp-ws\""),
        "{}",
        imported.text
    );
    assert!(
        imported
            .notes
            .iter()
            .any(|note| note.contains("agent.config.image")),
        "{:?}",
        imported.notes
    );
}
