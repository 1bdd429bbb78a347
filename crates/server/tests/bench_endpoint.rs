//! `holdfast bench endpoint` as a program: true numbers of a peer of its own.

use std::process::Command;

use serde_json::Value;

fn measure(arguments: &[&str]) -> Value {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command
        .args(["bench", "endpoint"])
        .args(arguments)
        .args(["--events", "20000", "--output", "json", "--work-dir"])
        .arg(dir.path());
    let output = command.output().expect("holdfast starts");
    assert!(output.status.success(), "{output:?}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("the directory").collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn endpoints_are_measured_with_their_peers() {
    for (arguments, has_peer) in [
        // Files smaller than what there is, so that several are written.
        (
            &["storage", "--settings", r#"{"maxChunkSizeInBytes":1000000}"#][..],
            false,
        ),
        (&["http", "--receiver", "parse"], true),
        (&["amqp"], true),
    ] {
        let report = measure(arguments);
        assert_eq!(report["parameters"]["kind"], arguments[0]);
        let result = &report["results"][0];
        assert!(result["eventsPerSecond"].as_f64() > Some(1_000.0), "{report}");
        assert_eq!(result.get("peerCores").is_some(), has_peer, "{report}");
    }
}
