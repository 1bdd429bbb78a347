//! Against a PostgreSQL server of Debian, started in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use holdfast_model::event::EventSource;
use holdfast_ports::endpoint::Endpoint as _;
use serde_json::json;

use super::*;
use crate::endpoints::testing::{events, outbound, telemetry};

/// A server, ended with this.
struct Server {
    process: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The newest of the versions that are installed.
fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql");
    let mut found: Vec<PathBuf> = versions
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found
        .pop()
        .expect("these tests need PostgreSQL: apt-get install postgresql")
}

/// PostgreSQL does not run as root.
fn command(program: &Path) -> Command {
    let me = Command::new("id").arg("-u").output().unwrap().stdout;
    if me.trim_ascii() != b"0" {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program);
    command
}

impl Server {
    async fn start() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let bin = programs();
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let data = folder.path().join("data");
        let secret = folder.path().join("password");
        std::fs::write(&secret, "s3cret-word").unwrap();
        let made = command(&bin.join("initdb"))
            .args(["--no-sync", "-U", "owner", "-A", "scram-sha-256", "--pwfile"])
            .arg(&secret)
            .arg("-D")
            .arg(&data)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        // Free now; the test fails, and says so, if somebody else takes it in between.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let process = command(&bin.join("postgres"))
            .args(["-F", "-h", "127.0.0.1", "-p", &port.to_string(), "-k"])
            .arg(folder.path())
            .arg("-D")
            .arg(&data)
            .current_dir(folder.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Server {
            process,
            port,
            _folder: folder,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while let Err(failure) = Connection::open(&server.config("s3cret-word"), None).await {
            assert!(Instant::now() < deadline, "{}", failure.message);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server
    }

    fn settings(&self, password: &str) -> Value {
        json!({
            "host": "127.0.0.1", "port": self.port, "tls": false, "database": "postgres", "username": "owner",
            "password": password,
        })
    }

    fn config(&self, password: &str) -> PostgresConfig {
        PostgresConfig::read(&self.settings(password)).unwrap()
    }

    /// What a query answers, with a bar between the columns.
    fn ask(&self, query: &str) -> Vec<String> {
        let out = Command::new(programs().join("psql"))
            .env("PGPASSWORD", "s3cret-word")
            .args([
                "-h",
                "127.0.0.1",
                "-p",
                &self.port.to_string(),
                "-U",
                "owner",
                "-d",
                "postgres",
                "-At",
                "-c",
                query,
            ])
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout)
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

#[tokio::test]
async fn rows_once_each_and_the_ones_refused_found() {
    let server = Server::start().await;
    let table = PostgresEndpoint::new(&server.settings("s3cret-word")).unwrap();
    let block = telemetry("d1/m1", &["{\"t\": 21.5}", "no json", "{\"z\": \"\\u0000\"}"]);
    let batch = outbound(&block);
    table.deliver(&batch).await.unwrap();
    table.deliver(&batch).await.unwrap();
    let rows = server.ask(
        "SELECT partition, sequence_number, extract(epoch from enqueued_at)::int, source, device_id, module_id, \
         properties, system_properties->>'contentType', encode(body, 'escape'), body_json \
         FROM iothub_events ORDER BY sequence_number",
    );
    let stamps = r#"1000|Telemetry|d1|m1|{"hub": "hub1", "level": "3"}|application/json"#;
    assert_eq!(
        rows,
        [
            format!("1|7|{stamps}|{{\"t\": 21.5}}|{{\"t\": 21.5}}"),
            format!("1|8|{stamps}|no json|"),
            format!("1|9|{stamps}|{{\"z\": \"\\\\u0000\"}}|"),
        ]
    );

    // The server closes the connection: the next batch opens another.
    server.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holdfast'");
    let mut more = telemetry("d1", &["1", "2", "3"]);
    more.first_sequence_number = 100;
    server.ask("ALTER TABLE iothub_events ADD CONSTRAINT small CHECK (body <> '2'::bytea)");
    let batch = outbound(&more);
    let error = table.deliver(&batch).await.unwrap_err();
    assert!(error.refused && error.accepted == 1, "{error:?}");
    assert!(
        error.message.contains("23514") && !error.message.contains("s3cret"),
        "{error}"
    );
    table.deliver(&batch[2..]).await.unwrap();
    assert_eq!(
        server.ask("SELECT sequence_number FROM iothub_events WHERE sequence_number >= 100 ORDER BY 1"),
        ["100", "102"]
    );

    let wrong = PostgresEndpoint::new(&server.settings("other-word")).unwrap();
    let error = wrong.deliver(&batch).await.unwrap_err();
    assert!(!error.refused && error.message.contains("28P01"), "{error}");
    assert!(!error.message.contains("other-word"), "{error}");
}

#[tokio::test]
async fn servers_that_are_not_there_or_hang() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let settings = json!({"host": "127.0.0.1", "port": port, "database": "d", "username": "u", "connectTimeoutSeconds": 1});
    let table = PostgresEndpoint::new(&settings).unwrap();
    let block = telemetry("d1", &["1"]);
    let error = table.deliver(&outbound(&block)).await.unwrap_err();
    assert!(!error.refused && error.message.contains("within 1 s"), "{error}");
    drop(listener);
    let error = table.deliver(&outbound(&block)).await.unwrap_err();
    assert!(error.message.contains("cannot connect to 127.0.0.1"), "{error}");
}

#[test]
fn settings_are_filled_and_wrong_ones_named() {
    let good = json!({"host": "h", "database": "d", "username": "u", "password": "s3cret"});
    let filled = PostgresConfig::check(&good).unwrap();
    assert_eq!(
        (&filled["port"], &filled["table"]),
        (&json!(5432), &json!("iothub_events"))
    );
    let config = PostgresConfig::read(&good).unwrap();
    assert!(!format!("{config:?}").contains("s3cret"));
    for (name, value) in [
        ("host", json!("")),
        ("database", json!("")),
        ("username", json!("")),
        ("table", json!("a.b.c")),
        ("table", json!("a\"; DROP")),
        ("port", json!(0)),
        ("batchEventsMax", json!(0)),
        ("caCertificate", json!("x")),
        ("unknown", json!(1)),
    ] {
        let mut settings = good.clone();
        settings[name] = value;
        let error = PostgresConfig::check(&settings).unwrap_err();
        assert!(error.contains(name), "{settings}: {error}");
    }
}

#[test]
fn events_of_jobs_have_no_device() {
    let block = events(EventSource::JobLifecycle, "job7", &["1"]);
    let events = outbound(&block);
    let rows = super::request::Rows::of(&events);
    assert_eq!((rows.device_id, rows.module_id), (vec![""], vec![None]));
}
