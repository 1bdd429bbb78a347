//! What the runtime makes of an engine that misbehaves. The engine is a script on a unix socket: it answers each request
//! with bytes that the test chose.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_agent::runtime::{LogQuery, ModuleRuntime, NetworkSpec, RegistryAuth, RuntimeError};
use holdfast_docker::{DockerRuntime, Endpoint, Timeouts};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// What the engine does with a request.
enum Act {
    /// Sends these bytes and keeps the connection.
    Answer(Vec<u8>),
    /// Sends these bytes and closes.
    AnswerAndClose(Vec<u8>),
    /// Sends these bytes and then nothing more, for ever.
    AnswerAndHang(Vec<u8>),
    /// Sends these bytes over and over until the other side has had enough.
    Flood(Vec<u8>, Vec<u8>),
}

struct Engine {
    socket: PathBuf,
    requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
    _dir: Option<tempfile::TempDir>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn http(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn ok(body: &str) -> Act {
    Act::Answer(http("200 OK", body))
}

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

const VERSION: &str =
    r#"{"Version":"20.10.24","ApiVersion":"1.41","MinAPIVersion":"1.12","Os":"linux","Arch":"amd64"}"#;
const OWNED: &str = r#"{"Id":"0123","Name":"/sensor","Image":"sha256:1","State":{"Status":"running","Pid":7},
    "Config":{"Image":"i","Labels":{"net.azure-devices.edge.owner":"Microsoft.Azure.Devices.Edge.Agent"}}}"#;

impl Engine {
    /// Answers requests in order, over however many connections; past the last it hangs.
    fn start(acts: Vec<Act>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut engine = Self::start_at(dir.path().join("engine.sock"), acts);
        engine._dir = Some(dir);
        engine
    }

    fn start_at(socket: PathBuf, acts: Vec<Act>) -> Self {
        let listener = UnixListener::bind(&socket).unwrap();
        let acts = Arc::new(Mutex::new(VecDeque::from(acts)));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&acts), Arc::clone(&seen)));
            }
        });
        Self {
            socket,
            requests,
            task,
            _dir: None,
        }
    }

    fn runtime(&self) -> DockerRuntime {
        runtime_at(&self.socket)
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().clone()
    }
}

fn runtime_at(socket: &std::path::Path) -> DockerRuntime {
    let short = Duration::from_millis(300);
    DockerRuntime::with_timeouts(
        Endpoint::Unix(socket.to_owned()),
        Timeouts {
            connect: short,
            question: short,
            change: short,
            silence: short,
            pull: Duration::from_secs(2),
        },
    )
}

async fn serve(mut stream: UnixStream, acts: Arc<Mutex<VecDeque<Act>>>, requests: Arc<Mutex<Vec<String>>>) {
    while let Some(request) = read_request(&mut stream).await {
        requests.lock().push(request);
        let act = acts.lock().pop_front();
        let goes_on = match act {
            Some(Act::Answer(bytes)) => stream.write_all(&bytes).await.is_ok(),
            Some(Act::AnswerAndClose(bytes)) => {
                let _ = stream.write_all(&bytes).await;
                false
            }
            Some(Act::AnswerAndHang(bytes)) => {
                let _ = stream.write_all(&bytes).await;
                std::future::pending::<bool>().await
            }
            Some(Act::Flood(first, again)) => {
                let mut goes_on = stream.write_all(&first).await.is_ok();
                while goes_on {
                    goes_on = stream.write_all(&again).await.is_ok();
                }
                false
            }
            None => std::future::pending().await,
        };
        if !goes_on {
            return;
        }
    }
}

/// Head and body of a request, as text.
async fn read_request(stream: &mut UnixStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse::<usize>().ok())?
            });
            if body.len() >= length.unwrap_or(0) {
                return Some(text);
            }
        }
        let mut piece = [0_u8; 4096];
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
        }
    }
}

#[track_caller]
fn assert_unavailable<T: std::fmt::Debug>(outcome: Result<T, RuntimeError>, words: &str) {
    let error = outcome.unwrap_err();
    assert!(matches!(error, RuntimeError::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains(words), "{error}");
}

#[tokio::test]
async fn no_engine_at_all() {
    let runtime = runtime_at(std::path::Path::new("/nonexistent/engine.sock"));
    assert_unavailable(runtime.list().await, "is the engine installed and started");
}

#[tokio::test]
async fn an_engine_that_hangs_makes_an_error_in_time() {
    let engine = Engine::start(vec![]);
    let runtime = engine.runtime();
    let begun = Instant::now();
    assert_unavailable(runtime.info().await, "did not answer GET /version within");
    assert_unavailable(runtime.start("sensor").await, "did not answer");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn an_engine_that_hangs_in_the_middle_of_an_answer() {
    let half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[{\"Id\"".to_vec();
    let engine = Engine::start(vec![ok(VERSION), Act::AnswerAndHang(half)]);
    assert_unavailable(engine.runtime().list().await, "did not answer");
}

#[tokio::test]
async fn half_an_answer_is_no_answer() {
    let half = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[]".to_vec();
    let engine = Engine::start(vec![ok(VERSION), Act::AnswerAndClose(half)]);
    assert_unavailable(engine.runtime().list().await, "/containers/json");
}

#[tokio::test]
async fn garbage_is_told_as_such() {
    let engine = Engine::start(vec![Act::AnswerAndClose(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec())]);
    assert_unavailable(engine.runtime().list().await, "GET /version");
    let engine = Engine::start(vec![ok("<html>welcome</html>")]);
    let error = engine.runtime().list().await.unwrap_err().to_string();
    assert!(error.contains("cannot be read"), "{error}");
    let engine = Engine::start(vec![ok(VERSION), ok(r#"{"not":"a list"}"#)]);
    let error = engine.runtime().list().await.unwrap_err().to_string();
    assert!(error.contains("cannot be read"), "{error}");
}

#[tokio::test]
async fn a_huge_answer_is_cut_off() {
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    let engine = Engine::start(vec![
        ok(VERSION),
        Act::Flood(head, chunk(&" ".repeat(64 << 10)).into_bytes()),
    ]);
    let runtime = DockerRuntime::new(Endpoint::Unix(engine.socket.clone()));
    assert_unavailable(runtime.list().await, "more than 4194304 bytes");
}

#[tokio::test]
async fn header_lines_without_end_are_cut_off() {
    let head = b"HTTP/1.1 200 OK\r\n".to_vec();
    let engine = Engine::start(vec![Act::Flood(
        head,
        b"X-More: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n".to_vec(),
    )]);
    let runtime = DockerRuntime::new(Endpoint::Unix(engine.socket.clone()));
    assert_unavailable(runtime.list().await, "GET /version");
}

#[tokio::test]
async fn an_error_with_a_huge_text_is_an_error_with_a_bounded_one() {
    let text = "x".repeat(1 << 20);
    let engine = Engine::start(vec![
        ok(VERSION),
        Act::Answer(http("500 Internal Server Error", &text)),
    ]);
    match engine.runtime().list().await.unwrap_err() {
        RuntimeError::Refused { status: 500, message } => assert!(message.len() <= 16 << 10),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn refusals_keep_the_engines_words() {
    let engine = Engine::start(vec![
        ok(VERSION),
        Act::Answer(http(
            "409 Conflict",
            r#"{"message":"The container name \"/sensor\" is already in use"}"#,
        )),
        Act::Answer(http("404 Not Found", r#"{"message":"No such image: x:latest"}"#)),
        Act::Answer(http(
            "500 Internal Server Error",
            r#"{"message":"no space left on device"}"#,
        )),
    ]);
    let runtime = engine.runtime();
    let body = serde_json::json!({"Image": "x"}).as_object().unwrap().clone();
    let error = runtime.create("sensor", &body).await.unwrap_err();
    assert!(
        matches!(&error, RuntimeError::Conflict(words) if words.contains("already in use")),
        "{error:?}"
    );
    let error = runtime.create("sensor", &body).await.unwrap_err();
    assert_eq!(
        error,
        RuntimeError::NotFound("No such image: x:latest".to_owned())
    );
    let error = runtime.create("sensor", &body).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the container engine answered 500: no space left on device"
    );
}

#[tokio::test]
async fn create_options_pass_untouched() {
    let engine = Engine::start(vec![
        ok(VERSION),
        Act::Answer(http("201 Created", r#"{"Id":"ab","Warnings":null}"#)),
    ]);
    let text =
        r#"{"Image":"x","Unknown":{"b":[1,2.50,null],"a":"ü"},"HostConfig":{"Memory":9007199254740993}}"#;
    let body: serde_json::Value = serde_json::from_str(text).unwrap();
    let id = engine
        .runtime()
        .create("a-b", body.as_object().unwrap())
        .await
        .unwrap();
    assert_eq!(id, "ab");
    let request = engine.requests().pop().unwrap();
    assert!(
        request.starts_with("POST /v1.41/containers/create?name=a-b HTTP/1.1\r\n"),
        "{request}"
    );
    let sent: serde_json::Value = serde_json::from_str(request.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(sent, body);
}

#[tokio::test]
async fn a_failure_inside_a_pull_is_a_failure() {
    let stream = format!(
        "{CHUNKED}{}{}0\r\n\r\n",
        chunk("{\"status\":\"Pulling from x\"}\r\n"),
        chunk("{\"errorDetail\":{\"message\":\"no space left on device\"},\"error\":\"e\"}\r\n")
    );
    let engine = Engine::start(vec![ok(VERSION), Act::Answer(stream.into_bytes())]);
    let error = engine
        .runtime()
        .pull("r:5000/x", None, &|_| {})
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "image r:5000/x cannot be pulled: no space left on device"
    );
}

#[tokio::test]
async fn a_pull_that_is_refused_cut_off_or_hangs() {
    let engine = Engine::start(vec![
        ok(VERSION),
        Act::Answer(http("404 Not Found", r#"{"message":"pull access denied for x"}"#)),
        Act::AnswerAndClose(format!("{CHUNKED}{}", chunk("{\"status\":\"Pulling\"}\r\n")).into_bytes()),
        ok(VERSION),
        Act::AnswerAndHang(format!("{CHUNKED}{}", chunk("{\"status\":\"Pulling\"}\r\n")).into_bytes()),
    ]);
    let runtime = engine.runtime();
    let auth = RegistryAuth {
        server_address: "r".to_owned(),
        username: "u".to_owned(),
        password: "p".to_owned(),
    };
    let error = runtime.pull("x", Some(&auth), &|_| {}).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "image x cannot be pulled: pull access denied for x"
    );
    let request = engine.requests().pop().unwrap();
    assert!(request.contains("fromImage=x%3Alatest"), "{request}");
    assert!(
        request.to_ascii_lowercase().contains("\r\nx-registry-auth: "),
        "{request}"
    );
    assert_unavailable(runtime.pull("x", None, &|_| {}).await, "pulling");
    let request = engine.requests().pop().unwrap();
    assert!(
        !request.to_ascii_lowercase().contains("x-registry-auth"),
        "{request}"
    );
    assert_unavailable(runtime.pull("x", None, &|_| {}).await, "the next step of a pull");
}

#[tokio::test]
async fn a_pull_that_trickles_for_ever_ends() {
    let head = format!("{CHUNKED}{}", chunk("{\"status\":\"Waiting\"}\r\n"));
    let engine = Engine::start(vec![
        ok(VERSION),
        Act::Flood(head.into_bytes(), chunk("{}\n").into_bytes()),
    ]);
    let begun = Instant::now();
    let error = engine.runtime().pull("x", None, &|_| {}).await.unwrap_err();
    assert!(error.to_string().contains("not done within 2s"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn foreign_containers_are_not_touched() {
    let foreign = OWNED.replace("Microsoft", "Somebody");
    let beginning_of_an_id = OWNED.replace("/sensor", "/other");
    let engine = Engine::start(vec![
        ok(VERSION),
        ok(&foreign),
        ok(&foreign),
        ok(&foreign),
        ok(&beginning_of_an_id),
    ]);
    let runtime = engine.runtime();
    let error = runtime.stop("sensor", Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(
        error,
        RuntimeError::NotFound("no such container: sensor".to_owned())
    );
    runtime.remove("sensor").await.unwrap();
    assert!(runtime.logs("sensor", &LogQuery::default()).await.is_err());
    assert!(runtime.start("sensor").await.is_err());
    assert!(
        engine
            .requests()
            .iter()
            .all(|request| request.starts_with("GET "))
    );
}

#[tokio::test]
async fn what_is_so_already_is_no_error() {
    let engine = Engine::start(vec![
        ok(VERSION),
        ok(OWNED),
        Act::Answer(b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec()),
        ok(OWNED),
        Act::Answer(b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec()),
        ok(OWNED),
        Act::Answer(http(
            "409 Conflict",
            r#"{"message":"removal of container 0123 is already in progress"}"#,
        )),
        ok(OWNED),
        Act::Answer(http("404 Not Found", r#"{"message":"No such container"}"#)),
        Act::Answer(http("404 Not Found", r#"{"message":"No such container"}"#)),
    ]);
    let runtime = engine.runtime();
    runtime.start("sensor").await.unwrap();
    runtime.stop("sensor", Duration::from_millis(1500)).await.unwrap();
    assert!(
        engine
            .requests()
            .iter()
            .any(|request| request.contains("/containers/0123/stop?t=2"))
    );
    runtime.remove("sensor").await.unwrap();
    runtime.remove("sensor").await.unwrap();
}

#[tokio::test]
async fn a_container_that_goes_between_list_and_inspect_is_left_out() {
    let engine = Engine::start(vec![
        ok(VERSION),
        ok(r#"[{"Id":"gone"},{"Id":"0123"}]"#),
        Act::Answer(http("404 Not Found", r#"{"message":"No such container: gone"}"#)),
        ok(OWNED),
    ]);
    let containers = engine.runtime().list().await.unwrap();
    assert_eq!(containers.len(), 1);
    assert_eq!(containers[0].name, "sensor");
}

#[tokio::test]
async fn logs_out_of_frame_are_refused() {
    let engine = Engine::start(vec![
        ok(VERSION),
        ok(OWNED),
        Act::Answer(http("200 OK", "this is no frame at all")),
        ok(OWNED),
        Act::AnswerAndClose(b"HTTP/1.1 200 OK\r\n\r\n\x01\0\0\0\0\0\0\x09abc".to_vec()),
    ]);
    let runtime = engine.runtime();
    let mut log = runtime.logs("sensor", &LogQuery::default()).await.unwrap();
    assert!(
        log.next()
            .await
            .unwrap_err()
            .to_string()
            .contains("not in frames")
    );
    let mut log = runtime.logs("sensor", &LogQuery::default()).await.unwrap();
    assert_eq!(log.next().await.unwrap().unwrap().bytes, "abc");
    assert!(
        log.next()
            .await
            .unwrap_err()
            .to_string()
            .contains("middle of a frame")
    );
}

#[tokio::test]
async fn a_network_that_somebody_else_makes_meanwhile() {
    let network = r#"{"Name":"edge","IPAM":{"Config":[{"Subnet":"172.20.0.0/16","Gateway":"172.20.0.1"}]}}"#;
    let engine = Engine::start(vec![
        ok(VERSION),
        // The beginning of another network's id.
        ok(&network.replace("\"edge\"", "\"other\"")),
        Act::Answer(http(
            "409 Conflict",
            r#"{"message":"network with name edge already exists"}"#,
        )),
        ok(network),
    ]);
    let spec = NetworkSpec {
        name: "edge".to_owned(),
        options: serde_json::Map::new(),
    };
    let address = engine.runtime().ensure_network(&spec).await.unwrap();
    assert_eq!(address.to_string(), "172.20.0.1");
}

#[tokio::test]
async fn another_engine_that_comes_back_is_asked_its_version_again() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("engine.sock");
    let first = Engine::start_at(socket.clone(), vec![ok(VERSION), ok("[]")]);
    let runtime = first.runtime();
    assert!(runtime.list().await.unwrap().is_empty());
    drop(first);
    std::fs::remove_file(&socket).unwrap();
    assert_unavailable(runtime.list().await, "no such socket");
    let newer = VERSION.replace("1.41", "1.52").replace("1.12", "1.44");
    let second = Engine::start_at(socket, vec![ok(&newer), ok("[]")]);
    assert!(runtime.list().await.unwrap().is_empty());
    assert!(second.requests()[1].starts_with("GET /v1.44/containers/json"));
}

#[tokio::test]
async fn changes_are_told_and_gaps_count_as_changes() {
    let event = chunk("{\"Type\":\"container\",\"Action\":\"die\"}\n");
    let engine = Engine::start(vec![
        ok(VERSION),
        Act::AnswerAndClose(format!("{CHUNKED}{event}").into_bytes()),
        ok(VERSION),
        Act::AnswerAndHang(CHUNKED.as_bytes().to_vec()),
    ]);
    let runtime = engine.runtime();
    let within = Duration::from_secs(5);
    // Just opened: what was before is not known.
    tokio::time::timeout(within, runtime.changed()).await.unwrap();
    // The event.
    tokio::time::timeout(within, runtime.changed()).await.unwrap();
    // The end of the stream, and a new one.
    tokio::time::timeout(within, runtime.changed()).await.unwrap();
    let request = engine.requests().pop().unwrap();
    assert!(request.starts_with("GET /v1.41/events?filters=%7B"), "{request}");
    // Nothing happens, and nothing is told; a wait that is given up does no harm.
    assert!(
        tokio::time::timeout(Duration::from_millis(200), runtime.changed())
            .await
            .is_err()
    );
    assert!(
        tokio::time::timeout(Duration::from_millis(200), runtime.changed())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn changes_of_an_engine_that_is_gone_do_not_spin() {
    let runtime = runtime_at(std::path::Path::new("/nonexistent/engine.sock"));
    let begun = Instant::now();
    for _ in 0..4 {
        runtime.changed().await;
    }
    // 0, 250, 500 and 1,000 ms.
    assert!(
        begun.elapsed() >= Duration::from_millis(1750),
        "{:?}",
        begun.elapsed()
    );
}
