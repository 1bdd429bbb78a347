//! The program from outside: exit codes, messages, and the edge hub alone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod program;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, RootCertStore, Stream};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};

use program::{CONNECTION_STRING, code, program, run};

const DEADLINE: Duration = Duration::from_secs(30);
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_configuration_of_the_original_is_imported() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("config.toml").display().to_string();
    let file = dir.path().join("edge.toml").display().to_string();
    let original = format!(
        "hostname = \"edge1.example\"\n\n[provisioning]\nsource = \"manual\"\nconnection_string = \"{CONNECTION_STRING}\"\n\n\
         [agent]\nname = \"edgeAgent\"\ntype = \"docker\"\n\n[moby_runtime]\nnetwork = \"plant\"\n"
    );
    std::fs::write(&from, &original).unwrap();
    let printed = run(&["config", "import", &from, "--file", "-"]);
    assert_eq!(code(&printed), 0, "{}", text(&printed.stderr));
    let shown = text(&printed.stdout);
    assert!(
        shown.contains("network = \"plant\"") && shown.contains("# note: "),
        "{shown}"
    );
    let import = ["config", "import", &from, "--file", &file];
    let written = run(&import);
    assert_eq!(code(&written), 0, "{}", text(&written.stderr));
    assert!(
        text(&written.stdout).contains("agent.name does nothing here"),
        "{}",
        text(&written.stdout)
    );
    assert_eq!(code(&run(&import)), 2, "an existing file is not replaced unasked");
    let checked = run(&["run", "--check-config", "--config", &file]);
    assert_eq!(
        (code(&checked), text(&checked.stdout)),
        (0, format!("{file} is in order\n"))
    );
    // Errors say where, in both forms, whether reading or judging finds them.
    for (content, place) in [
        (original.replace("\"plant\"", "\"pl ant\""), "line 12: engine.network = pl ant"),
        (original.replace("\"edge1.example\"", "7"), "line 1: hostname"),
        (std::fs::read_to_string(&file).unwrap().replace("\"plant\"", "\"pl ant\""), ": engine.network = pl ant"),
        ("[device]\nhostname = \"a b\"\n[provisioning]\nhub = \"h\"\ndevice_id = \"d\"\nkey_file = \"/k\"\n".to_owned(),
         "line 2: hostname = a b"),
    ] {
        std::fs::write(&from, content).unwrap();
        let refused = run(&["run", "--check-config", "--config", &from]);
        assert_eq!(code(&refused), 2, "{place}");
        let said = text(&refused.stderr);
        assert!(said.contains(place) && said.contains(", line "), "{place}: {said}");
    }
}

#[test]
fn a_configuration_is_written_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("edge.toml").display().to_string();
    let mp = [
        "config",
        "mp",
        "--connection-string",
        CONNECTION_STRING,
        "--file",
        &file,
    ];
    assert_eq!(code(&run(&mp)), 0);
    let again = run(&mp);
    assert_eq!(code(&again), 2, "an existing file is not replaced unasked");
    assert!(text(&again.stderr).contains("--force"), "{}", text(&again.stderr));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    let checked = run(&["run", "--check-config", "--config", &file]);
    assert_eq!(
        (code(&checked), text(&checked.stdout)),
        (0, format!("{file} is in order\n"))
    );
    let refused = run(&[
        "config",
        "mp",
        "--connection-string",
        "HostName=h;DeviceId=d;SharedAccessKey=no!",
        "--file",
        &file,
        "--force",
    ]);
    assert_eq!(code(&refused), 2);
    assert!(
        !text(&refused.stderr).contains("no!"),
        "{}",
        text(&refused.stderr)
    );
}

#[test]
fn what_is_wrong_has_an_exit_code_and_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("edge.toml");
    std::fs::write(&file, "[devise]\n").unwrap();
    let file = file.display().to_string();
    for (arguments, wanted) in [
        (vec!["run", "--config", &file], 2),
        (vec!["run", "--config", "/does/not/exist"], 2),
        (vec!["list", "--host", "unix:///does/not/exist"], 6),
        (vec!["list", "--host", "tcp://x"], 2),
        (
            vec![
                "logs",
                "m",
                "--since",
                "yesterday",
                "--host",
                "unix:///does/not/exist",
            ],
            2,
        ),
        (vec!["broker", "--manifest", "/does/not/exist"], 2),
    ] {
        let output = run(&arguments);
        assert_eq!(code(&output), wanted, "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains("error: "), "{arguments:?}");
    }
    let checks: Value = serde_json::from_slice(&run(&["check-list", "--output", "json"]).stdout).unwrap();
    assert!(checks.as_array().unwrap().len() >= 20);
    let found = run(&[
        "check",
        "--config",
        &file,
        "--output",
        "json",
        "--ntp-server",
        "127.0.0.1:1",
    ]);
    assert_eq!(code(&found), 1);
    let found: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(found["checks"]["config-well-formed"]["result"], "error");
    assert_eq!(found["checks"]["hostname"]["result"], "skipped");
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts the edge hub alone; returns what it said of itself.
    fn start(dir: &Path) -> (Running, Value) {
        let mut child = program()
            .args([
                "broker",
                "--output",
                "json",
                "--log",
                "warn",
                "--mqtt-port",
                "0",
                "--amqp-port",
                "0",
                "--https-port",
                "0",
            ])
            .arg("--manifest")
            .arg(dir.join("manifest.json"))
            .arg("--data-dir")
            .arg(dir.join("data"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        (
            Running(child),
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}")),
        )
    }

    fn terminate(mut self) -> i32 {
        let pid = self.0.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        let begun = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code().unwrap();
            }
            assert!(begun.elapsed() < DEADLINE, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Opens TLS with only these roots, and sends something that is no MQTT; the server hangs up.
fn greet(port: u64, roots_pem: &[u8], name: &str) -> std::io::Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(roots_pem).map(Result::unwrap));
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut tcp = TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap()))?;
    tcp.set_read_timeout(Some(DEADLINE))?;
    let mut stream = Stream::new(&mut tls, &mut tcp);
    stream.write_all(b"no MQTT at all")?;
    let mut answer = Vec::new();
    // How it hangs up does not matter.
    let _ = stream.read_to_end(&mut answer);
    Ok(())
}

#[test]
fn the_edge_hub_alone_serves_and_keeps_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = json!({"modulesContent": {
        "$edgeAgent": {"properties.desired": {"modules": {"filter": {}, "sensor": {}}}},
        "$edgeHub": {"properties.desired": {
            "schemaVersion": "1.1",
            "routes": {"r": "FROM /messages/modules/sensor/* INTO BrokeredEndpoint(\"/modules/filter/inputs/in\")"},
            "storeAndForwardConfiguration": {"timeToLiveSecs": 60},
        }},
    }});
    std::fs::write(dir.path().join("manifest.json"), manifest.to_string()).unwrap();
    let (running, told) = Running::start(dir.path());
    let roots = std::fs::read(dir.path().join("data/ca.pem")).unwrap();
    for port in ["mqttPort", "amqpPort", "httpsPort"] {
        greet(told[port].as_u64().unwrap(), &roots, "localhost").unwrap();
    }
    greet(told["mqttPort"].as_u64().unwrap(), &roots, "edgehub").unwrap();
    assert!(greet(told["mqttPort"].as_u64().unwrap(), &roots, "elsewhere").is_err());
    let variables = |module: &str| {
        std::fs::read_to_string(dir.path().join(format!("data/modules/{module}.env"))).unwrap()
    };
    let (sensor, filter) = (variables("sensor"), variables("filter"));
    assert!(sensor.starts_with("EdgeHubConnectionString='HostName=localhost;DeviceId=edge;ModuleId=sensor;"));
    assert_ne!(sensor, filter);
    assert_eq!(running.terminate(), 0);

    let (running, _) = Running::start(dir.path());
    assert_eq!(variables("sensor"), sensor, "keys are kept");
    assert_eq!(
        std::fs::read(dir.path().join("data/ca.pem")).unwrap(),
        roots,
        "so is the authority"
    );
    assert_eq!(running.terminate(), 0);
}

#[test]
fn a_manifest_without_routes_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("manifest.json");
    for (text, words) in [
        ("{", "cannot use the manifest"),
        ("{}", "modulesContent is missing"),
        (
            r#"{"modulesContent":{"$edgeHub":{"properties.desired":{"schemaVersion":"9"}}}}"#,
            "schemaVersion",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let data = dir.path().join("data").display().to_string();
        let output = run(&[
            "broker",
            "--manifest",
            &file.display().to_string(),
            "--data-dir",
            &data,
            "--mqtt-port",
            "0",
            "--amqp-port",
            "0",
            "--https-port",
            "0",
        ]);
        assert_eq!(code(&output), 2, "{text}: {}", text_of(&output));
        assert!(text_of(&output).contains(words), "{text}: {}", text_of(&output));
    }
}

fn text_of(output: &Output) -> String {
    text(&output.stderr)
}
