//! `holdfast dps`, and provisioning in `simulate` and `bench`, against a running hub.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;

use rcgen::{CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};
use support::dps::{authority, params};
use support::{Hub, holdfast, text};

fn hub(flags: &[&str]) -> (tempfile::TempDir, Hub) {
    let dir = tempfile::tempdir().unwrap();
    let flags = [&["--listen", "127.0.0.1"], flags].concat();
    let hub = Hub::start(&dir.path().join("data"), &flags);
    (dir, hub)
}

fn code(hub: &Hub, args: &[&str]) -> (i32, String) {
    let output = hub.run(args);
    (output.status.code().unwrap_or(-1), text(&output.stderr))
}

fn table(hub: &Hub, args: &[&str]) -> String {
    let output = hub.run(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn enrollments_live_and_die() {
    let (_dir, hub) = hub(&[]);
    assert!(table(&hub, &["dps", "enrollment", "list"]).starts_with("no enrollments"));
    let made = hub.json(&[
        "dps",
        "enrollment",
        "create",
        "press-4",
        "--device-id",
        "p4",
        "--desired",
        r#"{"interval":5}"#,
        "--edge",
        "true",
        "--reprovision",
        "reset",
    ]);
    assert_eq!(
        (
            &made["deviceId"],
            &made["capabilities"],
            &made["reprovisionPolicy"]
        ),
        (
            &json!("p4"),
            &json!({ "iotEdge": true }),
            &json!({ "updateHubAssignment": true, "migrateDeviceData": false })
        )
    );
    let keys = hub.json(&["dps", "enrollment", "keys", "press-4"]);
    let primary = keys["symmetricKey"]["primaryKey"].as_str().unwrap();
    let shown = table(&hub, &["dps", "enrollment", "show", "press-4"]);
    assert!(shown.contains("press-4") && !shown.contains(primary), "{shown}");
    let updated = hub.json(&["dps", "enrollment", "update", "press-4", "--enabled", "false"]);
    assert_eq!(
        (
            &updated["provisioningStatus"],
            &updated["initialTwin"]["properties"]["desired"]
        ),
        (&json!("disabled"), &json!({ "interval": 5 })),
        "the rest stays"
    );
    assert!(!updated.to_string().contains(primary), "an update tells no key");
    assert_eq!(hub.json(&["dps", "enrollment", "keys", "press-4"]), keys);
    let listed = table(&hub, &["dps", "enrollment", "list"]);
    assert!(
        listed.starts_with("REGISTRATION") && listed.contains("disabled"),
        "{listed}"
    );
    assert_eq!(code(&hub, &["dps", "enrollment", "create", "press-4"]).0, 5);
    assert_eq!(code(&hub, &["dps", "enrollment", "show", "nobody"]).0, 3);
    assert_eq!(code(&hub, &["dps", "registration", "show", "press-4"]).0, 3);
    let (bad, message) = code(&hub, &["dps", "enrollment", "create", "a b"]);
    assert_eq!(bad, 1, "{message}");
    let secondary = ["dps", "enrollment", "create", "x", "--secondary-key", "QUJD"];
    assert_eq!(code(&hub, &secondary).0, 2);
    assert_eq!(
        hub.json(&["dps", "enrollment", "delete", "press-4"])["deleted"],
        true
    );
    assert_eq!(code(&hub, &["dps", "enrollment", "delete", "press-4"]).0, 3);
}

#[test]
fn device_keys_are_derived_here_and_from_the_group() {
    let (_dir, hub) = hub(&[]);
    // The vector of the documentation (languages.md 6.4); no hub is asked.
    let key = "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw==";
    let id = "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6";
    let expected = "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc=";
    let alone = holdfast()
        .args(["dps", "compute-device-key", "--key", key, "--registration-id", id])
        .output()
        .unwrap();
    assert_eq!(text(&alone.stdout).trim(), expected, "{}", text(&alone.stderr));
    hub.json(&["dps", "group", "create", "line-4", "--primary-key", key]);
    let args = [
        "dps",
        "compute-device-key",
        "--group",
        "line-4",
        "--registration-id",
        id,
    ];
    assert_eq!(table(&hub, &args).trim(), expected);
    assert_eq!(hub.json(&args)["symmetricKey"], expected);
    let bad = ["dps", "compute-device-key", "--key", "?", "--registration-id", id];
    assert_eq!(code(&hub, &bad).0, 2);
    assert_eq!(
        code(&hub, &["dps", "compute-device-key", "--registration-id", id]).0,
        2
    );
}

#[test]
fn linked_hubs_are_known_by_host() {
    let (_dir, hub) = hub(&[]);
    let own = hub.json(&[
        "dps",
        "linked-hub",
        "set",
        "localhost",
        "--weight",
        "3",
        "--latency",
        "20",
    ]);
    assert_eq!(
        (&own["isOwn"], &own["allocationWeight"], &own["latencyMs"]),
        (&json!(true), &json!(3), &json!(20))
    );
    let cs = "HostName=other.example;SharedAccessKeyName=o;SharedAccessKey=MDEyMzQ1Njc4OWFiY2RlZg==";
    let set = ["dps", "linked-hub", "set", "other.example"];
    assert_eq!(code(&hub, &set).0, 1, "it needs a connection string");
    let linked = hub.json(&[&set[..], &["--connection-string", cs, "--apply", "false"]].concat());
    assert_eq!(
        (&linked["policy"], &linked["applyAllocationPolicy"]),
        (&json!("o"), &json!(false))
    );
    assert!(!linked.to_string().contains("MDEyMzQ1"), "the key is not told");
    let changed = hub.json(&[&set[..], &["--weight", "7"]].concat());
    assert_eq!(
        (&changed["allocationWeight"], &changed["policy"]),
        (&json!(7), &json!("o"))
    );
    assert_eq!(code(&hub, &[&set[..], &["--weight", "0"]].concat()).0, 1);
    let listed = table(&hub, &["dps", "linked-hub", "list"]);
    assert!(
        listed.contains("localhost") && listed.contains("other.example"),
        "{listed}"
    );
    let (refused, message) = code(&hub, &["dps", "linked-hub", "delete", "localhost"]);
    assert!(refused == 1 && message.contains("always linked"), "{message}");
    hub.json(&["dps", "linked-hub", "delete", "other.example"]);
    assert_eq!(code(&hub, &["dps", "linked-hub", "show", "other.example"]).0, 3);
}

/// A certificate for the verification code.
fn proof(code: &str, issuer: &CertifiedIssuer<'static, KeyPair>) -> String {
    let key = KeyPair::generate().unwrap();
    params(code, 1).signed_by(&key, issuer).unwrap().pem()
}

#[test]
fn authorities_are_verified_by_proof() {
    let (dir, hub) = hub(&[]);
    let file = |name: &str, pem: String| {
        let path = dir.path().join(name);
        fs::write(&path, pem).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let plant = authority("plant-ca", None);
    let pem = file("plant.pem", plant.pem());
    let upload = ["dps", "certificate", "upload", "plant-ca", "--certificate", &pem];
    assert_eq!(hub.json(&upload)["properties"]["isVerified"], false);
    let answer = hub.json(&["dps", "certificate", "verify", "plant-ca"]);
    let verification = answer["properties"]["verificationCode"].as_str().unwrap();
    let verify = |certificate: &str| {
        let args = [
            "dps",
            "certificate",
            "verify",
            "plant-ca",
            "--certificate",
            certificate,
        ];
        code(&hub, &args).0
    };
    assert_ne!(verify(&file("a.pem", proof("something else", &plant))), 0);
    let stranger = authority("plant-ca", None);
    assert_ne!(verify(&file("b.pem", proof(verification, &stranger))), 0);
    assert_eq!(verify(&file("c.pem", proof(verification, &plant))), 0);
    let shown = hub.json(&["dps", "certificate", "show", "plant-ca"]);
    assert_eq!(shown["properties"]["isVerified"], true);
    // It is the hub's too.
    assert_eq!(
        hub.json(&["ca", "show", "plant-ca"])["properties"]["isVerified"],
        true
    );
    hub.json(&["dps", "group", "create", "line-4", "--ca-name", "plant-ca"]);
    assert!(table(&hub, &["dps", "certificate", "list"]).contains("plant-ca"));
    hub.json(&["dps", "certificate", "delete", "plant-ca"]);
    assert_eq!(code(&hub, &["dps", "certificate", "show", "plant-ca"]).0, 3);
    let mut leaf = CertificateParams::new(Vec::new()).unwrap();
    leaf.distinguished_name.push(DnType::CommonName, "leaf");
    leaf.is_ca = IsCa::ExplicitNoCa;
    let leaf = leaf.self_signed(&KeyPair::generate().unwrap()).unwrap();
    let pem = file("leaf.pem", leaf.pem());
    let upload = ["dps", "certificate", "upload", "leaf", "--certificate", &pem];
    assert_eq!(code(&hub, &upload).0, 1, "it is no authority");
}

#[test]
fn simulated_devices_come_through_provisioning() {
    let (_dir, hub) = hub(&[]);
    let simulate = |args: &[&str]| hub.json(&[&["simulate", "--provision", "--count", "2"], args].concat());
    let run = simulate(&["-n", "40", "--rate", "50"]);
    assert_eq!(
        (
            &run["acknowledged"],
            &run["connected"],
            &run["provisioning"]["hubs"]
        ),
        (&json!(80), &json!(40), &json!({ "localhost": 40 }))
    );
    let listed = ["dps", "registration", "list", "--group", "simulated-group"];
    assert_eq!(hub.json(&listed).as_array().map(Vec::len), Some(40));
    let run = simulate(&[
        "-n",
        "5",
        "--rate",
        "50",
        "--attestation",
        "x509",
        "--prefix",
        "x-",
        "--cleanup",
    ]);
    assert_eq!((&run["acknowledged"], &run["failed"]), (&json!(10), &json!(0)));
    assert_eq!(hub.json(&["statistics"])["totalDeviceCount"], 40, "cleaned up");
    assert_eq!(code(&hub, &["dps", "group", "show", "x-group"]).0, 3);
    hub.json(&["dps", "group", "create", "mine"]);
    simulate(&["-n", "3", "--rate", "50", "--prefix", "y-", "--group", "mine"]);
    let mine: Value = hub.json(&["dps", "registration", "list", "--group", "mine"]);
    assert_eq!(mine.as_array().map(Vec::len), Some(3));
    assert_eq!(
        code(&hub, &["simulate", "--provision", "-n", "1", "--group", "none"]).0,
        3
    );
}

#[test]
fn the_measurement_counts_devices_that_are_there() {
    let (_dir, hub) = hub(&["--mqtt-plain", "127.0.0.1:0"]);
    for flags in [
        &["--protocol", "https"][..],
        &["--protocol", "mqtt"],
        &["--protocol", "mqtt", "--plain"],
        &["--protocol", "mqtt", "--attestation", "x509"],
        &["--protocol", "https", "--attestation", "x509"],
    ] {
        let args = [
            &[
                "bench",
                "provision",
                "--count",
                "40",
                "--warm-up",
                "10",
                "--at-once",
                "4",
            ],
            flags,
        ]
        .concat();
        let report = hub.json(&args);
        let subject = &report["results"][0];
        assert!(
            subject["registrations"].as_f64() >= Some(25.0),
            "{flags:?}: {report}"
        );
        assert!(subject["registrationsPerSecond"].as_f64() > Some(1.0), "{report}");
        // A hub that stays is left as it was.
        assert_eq!(hub.json(&["statistics"])["totalDeviceCount"], 0, "{flags:?}");
    }
}
