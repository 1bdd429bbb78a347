//! Provisioning over HTTPS (rest.md section 17).

use std::sync::Arc;

use axum::Router;
use holdfast_heads::dps::ProvisioningHttps;
use holdfast_heads::https::{HttpsConfig, HttpsHead};
use holdfast_heads::tls::TlsSettings;
use holdfast_model::provisioning::REQUEST_BYTES_MAX;
use holdfast_ports::clock::SystemClock;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::client::metrics;
use crate::dps_gateway::{FakeProvisioning, SCOPE};
use crate::https_device::{Answer, ask};
use crate::tls::{certificate, client_config, connect, settings};

const GOOD: &str = "authorization: good\r\n";
const VERSION: &str = "api-version=2019-03-31";

struct Port {
    provisioning: Arc<FakeProvisioning>,
    address: std::net::SocketAddr,
    _stop: watch::Sender<bool>,
}

impl Port {
    fn start(tls: Option<Arc<TlsSettings>>) -> Self {
        let provisioning = FakeProvisioning::new();
        let router = Router::new().fallback(async || (http::StatusCode::IM_A_TEAPOT, "the router"));
        let clock = Arc::new(SystemClock::new());
        let service = ProvisioningHttps::new(provisioning.clone(), clock, metrics());
        let head =
            HttpsHead::new(HttpsConfig::default(), router, None, None, metrics()).with_provisioning(service);
        let listener =
            holdfast_heads::listener::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, shutdown) = watch::channel(false);
        tokio::spawn(async move { head.serve(listener, tls, shutdown).await });
        Port {
            provisioning,
            address,
            _stop: stop,
        }
    }

    async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("it listens")
    }

    async fn ask(&self, request: &str, fields: &str, body: &[u8]) -> Answer {
        ask(&mut self.dial().await, request, fields, body).await
    }

    async fn register(&self, id: &str, fields: &str, body: &[u8]) -> Answer {
        let request = format!("PUT /{SCOPE}/registrations/{id}/register?{VERSION}");
        self.ask(&request, fields, body).await
    }
}

fn json_of(answer: &Answer) -> Value {
    serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
}

#[tokio::test]
async fn a_device_registers_on_one_connection() {
    let port = Port::start(None);
    let mut stream = port.dial().await;
    let request = format!("PUT /{SCOPE}/registrations/d-1/register?{VERSION}");
    let body = json!({ "registrationId": "d-1", "payload": [1] }).to_string();
    let answer = ask(&mut stream, &request, GOOD, body.as_bytes()).await;
    // 202 even when it is assigned at once: C# and the edge's identity service take nothing else.
    assert_eq!(
        (answer.status, answer.field("retry-after")),
        (202, Some("2")),
        "{answer:?}"
    );
    assert_eq!(json_of(&answer)["status"], "assigning");
    let operation = json_of(&answer)["operationId"].as_str().expect("one").to_owned();
    let path = format!("/{SCOPE}/registrations/d-1/operations/{operation}");
    assert_eq!(answer.field("location"), Some(path.as_str()));
    assert_eq!(answer.field("x-ms-request-id").map(str::len), Some(36));
    // The Node.js SDK sends a body along.
    let answer = ask(&mut stream, &format!("GET {path}?{VERSION}"), GOOD, b"{}").await;
    assert_eq!(
        (answer.status, answer.field("retry-after")),
        (200, None),
        "{answer:?}"
    );
    let state = json_of(&answer);
    assert_eq!(
        (&state["status"], &state["registrationState"]["assignedHub"]),
        (&json!("assigned"), &json!("hub.test"))
    );
    let last = format!("POST /{SCOPE}/registrations/d-1?{VERSION}");
    let answer = ask(&mut stream, &last, GOOD, br#"{"registrationId":"d-1"}"#).await;
    assert_eq!(
        (answer.status, &json_of(&answer)["deviceId"]),
        (200, &json!("d-1"))
    );
    assert_eq!(*port.provisioning.payloads.lock(), [Some(json!([1]))]);
}

#[tokio::test]
async fn an_operation_is_asked_for_until_it_ends() {
    let port = Port::start(None);
    let answer = port.register("slow", GOOD, b"").await;
    let operation = json_of(&answer)["operationId"].as_str().expect("one").to_owned();
    let request = format!("GET /{SCOPE}/registrations/slow/operations/{operation}?{VERSION}");
    let answer = port.ask(&request, GOOD, b"").await;
    assert_eq!(
        (answer.status, answer.field("retry-after")),
        (202, Some("2")),
        "{answer:?}"
    );
    assert_eq!(json_of(&answer)["registrationState"]["registrationId"], "slow");
    assert_eq!(port.ask(&request, GOOD, b"").await.status, 200);
    let answer = port
        .ask(
            &format!("GET /{SCOPE}/registrations/slow/operations/4.none?{VERSION}"),
            GOOD,
            b"",
        )
        .await;
    assert_eq!(answer.status, 404, "{answer:?}");
}

#[tokio::test]
async fn refusals_have_status_code_and_the_flat_shape() {
    let port = Port::start(None);
    let large = vec![b' '; REQUEST_BYTES_MAX + 1];
    let register = |id: &str| format!("PUT /{SCOPE}/registrations/{id}/register?{VERSION}");
    for (what, request, fields, body, status, code) in [
        (
            "a bad token",
            register("d"),
            "authorization: bad\r\n",
            &b"{}"[..],
            401,
            401_002,
        ),
        ("no token", register("d"), "", b"{}", 401, 401_002),
        (
            "a token that is no text",
            register("d"),
            "authorization: \u{e4}\r\n",
            b"{}",
            401,
            401_002,
        ),
        (
            "another scope",
            register("d").replace(SCOPE, "0neOTHER"),
            GOOD,
            b"{}",
            404,
            404_201,
        ),
        (
            "no version",
            format!("PUT /{SCOPE}/registrations/d/register"),
            GOOD,
            b"{}",
            400,
            400_001,
        ),
        ("no JSON", register("d"), GOOD, b"nonsense", 400, 400_012),
        (
            "another id",
            register("d"),
            GOOD,
            br#"{"registrationId":"e"}"#,
            400,
            400_202,
        ),
        ("too large", register("d"), GOOD, &large, 413, 413_001),
        (
            "no storage",
            register("d"),
            "authorization: later\r\n",
            b"{}",
            503,
            503_001,
        ),
        ("throttled", register("throttled"), GOOD, b"{}", 429, 429_001),
    ] {
        let answer = port.ask(&request, fields, body).await;
        let body = json_of(&answer);
        assert_eq!(
            (answer.status, &body["errorCode"]),
            (status, &json!(code)),
            "{what}: {answer:?}"
        );
        for member in ["trackingId", "message", "timestampUtc"] {
            assert!(body[member].is_string(), "{what}: {body}");
        }
        let again = matches!(status, 429 | 503);
        assert_eq!(answer.field("retry-after").is_some(), again, "{what}: {answer:?}");
    }
    assert_eq!(
        port.provisioning.payloads.lock().len(),
        1,
        "only the throttled one got through"
    );
    // No token, no JSON, another id, too large: the head's own refusals are told to the service, which logs them.
    assert_eq!(*port.provisioning.noted.lock(), ["d", "d", "d", "d"]);
    let last = format!("POST /{SCOPE}/registrations/new?{VERSION}");
    assert_eq!(port.ask(&last, GOOD, b"").await.status, 404);
}

#[tokio::test]
async fn a_disabled_enrollment_is_told_at_once() {
    let port = Port::start(None);
    let answer = port.register("disabled", GOOD, b"").await;
    let body = json_of(&answer);
    assert_eq!(
        (
            answer.status,
            &body["status"],
            &body["registrationState"]["status"]
        ),
        (202, &json!("disabled"), &json!("disabled"))
    );
}

#[tokio::test]
async fn a_certificate_proves_a_device_and_other_paths_are_the_routers() {
    let port = Port::start(Some(settings(vec![certificate("hub")])));
    let config = client_config(&rustls::version::TLS12, Some(certificate("d")));
    let mut stream = connect(port.dial().await, &config, "hub.test").await;
    let request = format!("PUT /{SCOPE}/registrations/d/register?{VERSION}");
    let answer = ask(&mut stream, &request, "", b"{}").await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let answer = ask(
        &mut stream,
        "GET /registrations/d?api-version=2019-03-31",
        "",
        b"",
    )
    .await;
    assert_eq!(answer.status, 418, "{answer:?}");
}
