//! Provisioning over MQTT (mqtt.md section 9).

use std::sync::Arc;

use holdfast_heads::mqtt::{MqttConfig, MqttHead};
use holdfast_heads::tls::TlsSettings;
use holdfast_model::provisioning::REQUEST_BYTES_MAX;
use holdfast_mqtt::codec::{Connect, encode_connect};
use holdfast_ports::clock::SystemClock;
use holdfast_wire::provisioning::{FILTER, format_user_name};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::client::{Client, Got, connect_packet, metrics, publish_packet};
use crate::dps_gateway::{FakeProvisioning, SCOPE};
use crate::gateway::FakeGateway;
use crate::tls::{certificate, client_config, connect, settings};

const REGISTER: &str = "$dps/registrations/PUT/iotdps-register/?$rid=7";
const STATUS: &str = "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=8&operationId=";

struct Service {
    provisioning: Arc<FakeProvisioning>,
    hub: Arc<FakeGateway>,
    address: std::net::SocketAddr,
    stop: watch::Sender<bool>,
    served: tokio::task::JoinHandle<()>,
}

impl Service {
    fn start(tls: Option<Arc<TlsSettings>>) -> Self {
        let (provisioning, hub) = (FakeProvisioning::new(), FakeGateway::new());
        let clock = Arc::new(SystemClock::new());
        let head = MqttHead::new(MqttConfig::default(), hub.clone(), clock, metrics())
            .with_provisioning(provisioning.clone());
        let listener =
            holdfast_heads::listener::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, shutdown) = watch::channel(false);
        let served = tokio::spawn(async move { head.serve(listener, tls, shutdown).await });
        Service {
            provisioning,
            hub,
            address,
            stop,
            served,
        }
    }

    async fn dial(&self) -> Client<TcpStream> {
        Client::new(TcpStream::connect(self.address).await.expect("it listens"))
    }

    /// Logged in and subscribed.
    async fn log_in(&self, id: &str) -> Client<TcpStream> {
        let mut client = self.dial().await;
        client.send(&hello(SCOPE, id, id, Some("good"))).await;
        assert_eq!(client.next().await, Got::ConnAck(false, 0));
        assert_eq!(client.subscribe(1, &[(FILTER, 1)]).await, [1]);
        client
    }
}

fn hello(scope: &str, id: &str, client_id: &str, password: Option<&str>) -> Vec<u8> {
    let user = format_user_name(scope, id, "test");
    let connect = Connect {
        client_id,
        keep_alive: 60,
        username: Some(&user),
        password: password.map(str::as_bytes),
        ..Connect::default()
    };
    let mut out = Vec::new();
    encode_connect(&mut out, &connect).expect("fits");
    out
}

/// The PUBACK, then the answer: topic and body.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<S>, id: u16) -> (String, Value) {
    assert_eq!(client.next().await, Got::PubAck(id), "the PUBACK comes first");
    match client.next().await {
        Got::Publish {
            topic, payload, qos, ..
        } => {
            assert_eq!(qos, 1);
            (topic, serde_json::from_slice(&payload).expect("JSON"))
        }
        other => panic!("no answer: {other:?}"),
    }
}

#[tokio::test]
async fn a_device_registers_and_leaves() {
    let service = Service::start(None);
    let mut client = service.log_in("d-1").await;
    let body = json!({ "registrationId": "D-1", "payload": { "model": 4 } });
    client.publish(REGISTER, body.to_string().as_bytes(), 2).await;
    let (topic, body) = answer(&mut client, 2).await;
    assert_eq!(topic, "$dps/registrations/res/200/?$rid=7");
    assert_eq!(
        (&body["status"], &body["registrationState"]["assignedHub"]),
        (&json!("assigned"), &json!("hub.test"))
    );
    assert_eq!(
        *service.provisioning.payloads.lock(),
        [Some(json!({ "model": 4 }))]
    );
    client.expect_silence().await;
    client.send(&[0xe0, 0]).await;
    client.expect_closed().await;
}

#[tokio::test]
async fn an_operation_is_asked_for_until_it_ends() {
    let service = Service::start(None);
    let mut client = service.log_in("slow").await;
    client.publish(REGISTER, b"", 2).await;
    let (topic, body) = answer(&mut client, 2).await;
    assert_eq!(topic, "$dps/registrations/res/202/?$rid=7&retry-after=2");
    assert_eq!(body["status"], "assigning");
    let operation = body["operationId"].as_str().expect("an operation").to_owned();
    for (id, expected, status) in [
        (3, "$dps/registrations/res/202/?$rid=8&retry-after=2", "assigning"),
        (4, "$dps/registrations/res/200/?$rid=8", "assigned"),
    ] {
        client.publish(&format!("{STATUS}{operation}"), b" ", id).await;
        let (topic, body) = answer(&mut client, id).await;
        assert_eq!((topic.as_str(), &body["status"]), (expected, &json!(status)));
    }
    client.publish(&format!("{STATUS}4.none"), b" ", 5).await;
    let (topic, body) = answer(&mut client, 5).await;
    assert!(topic.starts_with("$dps/registrations/res/404/?$rid=8"), "{topic}");
    assert!(body["trackingId"].is_string(), "{body}");
}

#[tokio::test]
async fn failures_are_told_in_the_answer() {
    let service = Service::start(None);
    for (id, status, again) in [("throttled", "429", true), ("deleted", "401", false)] {
        let mut client = service.log_in(id).await;
        client.publish(REGISTER, b"{}", 2).await;
        let (topic, body) = answer(&mut client, 2).await;
        let expected = format!("$dps/registrations/res/{status}/?$rid=7");
        assert!(topic.starts_with(&expected), "{topic}");
        assert_eq!(topic.contains("&retry-after="), again, "{topic}");
        assert!(
            body["errorCode"].is_u64() && body["message"].is_string(),
            "{body}"
        );
    }
    let mut client = service.log_in("failing").await;
    client.publish(REGISTER, b"{}", 2).await;
    let (topic, body) = answer(&mut client, 2).await;
    assert_eq!(topic, "$dps/registrations/res/200/?$rid=7");
    assert_eq!(body["registrationState"]["errorCode"], 400_207);
    let mut client = service.log_in("disabled").await;
    client.publish(REGISTER, b"{}", 2).await;
    assert_eq!(answer(&mut client, 2).await.1["status"], "disabled");
}

#[tokio::test]
async fn bad_bodies_are_refused_and_the_session_goes_on() {
    let service = Service::start(None);
    let mut client = service.log_in("d").await;
    let large = vec![b' '; REQUEST_BYTES_MAX + 1];
    for (id, body, status) in [
        (2, &b"nonsense"[..], "400"),
        (3, br#"{"registrationId":"e"}"#, "400"),
        (4, &large, "413"),
    ] {
        client.publish(REGISTER, body, id).await;
        let (topic, _) = answer(&mut client, id).await;
        assert!(
            topic.starts_with(&format!("$dps/registrations/res/{status}/")),
            "{topic}"
        );
    }
    assert!(
        service.provisioning.payloads.lock().is_empty(),
        "none got through"
    );
    assert_eq!(*service.provisioning.noted.lock(), ["d", "d", "d"]);
    client.publish(REGISTER, b"", 5).await;
    assert_eq!(answer(&mut client, 5).await.1["status"], "assigned");
}

#[tokio::test]
async fn log_ins_are_refused_with_the_right_code() {
    let service = Service::start(None);
    for (what, packet, code) in [
        ("a bad token", hello(SCOPE, "d", "d", Some("bad")), 5),
        ("no token", hello(SCOPE, "d", "d", None), 5),
        ("another scope", hello("0neOTHER", "d", "d", Some("good")), 5),
        ("another client id", hello(SCOPE, "d", "e", Some("good")), 5),
        ("an id that is none", hello(SCOPE, "d d", "d d", Some("good")), 5),
        ("no storage", hello(SCOPE, "d", "d", Some("later")), 3),
    ] {
        let mut client = service.dial().await;
        client.send(&packet).await;
        assert_eq!(client.next().await, Got::ConnAck(false, code), "{what}");
        client.expect_closed().await;
    }
}

#[tokio::test]
async fn what_is_not_provisioning_ends_the_session() {
    let service = Service::start(None);
    for topic in [
        "devices/d/messages/events/",
        "$iothub/twin/GET/?$rid=1",
        "$dps/registrations/PUT/iotdps-register/",
        "$dps/registrations/PUT/iotdps-register/?$rid=a$b",
        "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=1",
    ] {
        let mut client = service.log_in("d").await;
        client.publish(topic, b"", 2).await;
        client.expect_closed().await;
    }
    assert!(service.hub.received().is_empty());
    // A packet that announces more than a request may have is not waited for.
    let mut client = service.log_in("d").await;
    client.send(&[0x32, 0xff, 0xff, 0xff, 0x7f]).await;
    client.expect_closed().await;
}

#[tokio::test]
async fn filters_and_quality_of_service() {
    let service = Service::start(None);
    let mut client = service.dial().await;
    client.send(&hello(SCOPE, "d", "d", Some("good"))).await;
    assert_eq!(client.next().await, Got::ConnAck(false, 0));
    // Who has not subscribed gets no answer.
    client.publish(REGISTER, b"", 1).await;
    assert_eq!(client.next().await, Got::PubAck(1));
    client.expect_silence().await;
    let filters = [("$iothub/methods/POST/#", 1), (FILTER, 0), ("#", 0)];
    assert_eq!(client.subscribe(2, &filters).await, [0x80, 0, 0x80]);
    // C and Java publish at QoS 0.
    client.send(&publish_packet(REGISTER, b"", 0)).await;
    match client.next().await {
        Got::Publish { qos: 0, topic, .. } => assert_eq!(topic, "$dps/registrations/res/200/?$rid=7"),
        other => panic!("no answer: {other:?}"),
    }
    assert_eq!(client.subscribe(3, &[(FILTER, 2)]).await, [1], "2 becomes 1");
}

#[tokio::test]
async fn a_certificate_proves_a_device() {
    let service = Service::start(Some(settings(vec![certificate("hub")])));
    let config = client_config(&rustls::version::TLS13, Some(certificate("d")));
    let tcp = TcpStream::connect(service.address).await.expect("it listens");
    let mut client = Client::new(connect(tcp, &config, "hub.test").await);
    client.send(&hello(SCOPE, "d", "d", None)).await;
    assert_eq!(client.next().await, Got::ConnAck(false, 0));
    assert_eq!(client.subscribe(1, &[(FILTER, 1)]).await, [1]);
    client.publish(REGISTER, b"", 2).await;
    assert_eq!(answer(&mut client, 2).await.1["status"], "assigned");
    // Hub devices use the same port.
    let tcp = TcpStream::connect(service.address).await.expect("it listens");
    let config = client_config(&rustls::version::TLS13, None);
    let mut device = Client::new(connect(tcp, &config, "hub.test").await);
    device.send(&connect_packet("d1", Some("good"))).await;
    assert_eq!(device.next().await, Got::ConnAck(false, 0));
}

#[tokio::test]
async fn sessions_end_with_the_process() {
    let service = Service::start(None);
    let mut client = service.log_in("d").await;
    service.stop.send(true).expect("it serves");
    client.expect_closed().await;
    tokio::time::timeout(crate::client::PATIENCE, service.served)
        .await
        .expect("in time")
        .expect("no panic");
}
