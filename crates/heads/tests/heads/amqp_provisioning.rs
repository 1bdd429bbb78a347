//! Provisioning over AMQP: proofs, requests, answers, refusals, and what no device would send.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_amqp::connection::Outgoing;
use holdfast_amqp::message::{MessageId, Properties, Writer};
use holdfast_amqp::performatives::{DeliveryState, SaslCode, SaslInit};
use holdfast_amqp::types::Value;
use holdfast_amqp::{Config, Connection, Event, LinkId, Message};
use holdfast_heads::amqp::AmqpHead;
use holdfast_model::provisioning::{Registration, RegistrationId, RegistrationStatus};
use holdfast_model::{Error, ErrorCode, Timestamp};
use holdfast_ports::BoxFuture;
use holdfast_ports::clock::ManualClock;
use holdfast_ports::gateway::{Credential, Protocol};
use holdfast_ports::provisioning::{
    EntryId, Proof, ProvisioningGateway, Registrant, RegistrationAccess, TpmAccess,
};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::amqp_client::{Got, Hub, Peer, START, body, quick};
use crate::amqp_services::FakeServices;
use crate::client::{PATIENCE, metrics};
use crate::gateway::FakeGateway;

const SCOPE: &str = "0neTEST";
const ADDRESS: &str = "0neTEST/registrations/d-1";
/// As long as the blobs of the engine.
const BLOB: [u8; 800] = [0xab; 800];

/// Knows one token and one TPM, and remembers what it was asked.
#[derive(Default)]
struct FakeProvisioning {
    failure: Mutex<Option<ErrorCode>>,
    status: Mutex<Option<RegistrationStatus>>,
    asked: Mutex<Vec<String>>,
}

impl FakeProvisioning {
    fn check(&self) -> Result<(), Error> {
        match *self.failure.lock() {
            Some(code) => Err(Error::new(code, "switched off by the test")),
            None => Ok(()),
        }
    }

    fn answer(&self, registrant: &Registrant) -> Result<Registration, Error> {
        self.check()?;
        let status = self.status.lock().unwrap_or(RegistrationStatus::Assigned);
        Ok(Registration {
            registration_id: registrant.registration_id.clone(),
            group_id: None,
            operation_id: "4.0.x".into(),
            status,
            substatus: None,
            hub: Some("hub.test".into()),
            device_id: Some("d-1".into()),
            failure: None,
            payload: None,
            certificate: None,
            plan: None,
            authentication_key: None,
            created_at: Timestamp::from_seconds(START),
            updated_at: Timestamp::from_seconds(START),
            version: 1,
        })
    }
}

impl ProvisioningGateway for FakeProvisioning {
    fn authenticate<'a>(
        &'a self,
        access: RegistrationAccess<'a>,
    ) -> BoxFuture<'a, Result<Registrant, Error>> {
        Box::pin(async move {
            self.check()?;
            assert_eq!(access.protocol, Protocol::Amqp);
            let registration_id = RegistrationId::parse(access.registration_id)?;
            match access.credential {
                Credential::Sas("good") if access.id_scope == SCOPE => Ok(Registrant {
                    proof: Proof::Key {
                        id: access.registration_id.to_owned(),
                    },
                    registration_id,
                    entry: EntryId::Individual,
                }),
                _ => Err(Error::new(ErrorCode::IotHubUnauthorizedAccess, "Unauthorized")),
            }
        })
    }

    fn challenge<'a>(&'a self, access: TpmAccess<'a>) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            self.check()?;
            let known = (
                &access.keys.endorsement_key[..],
                &access.keys.storage_root_key[..],
            );
            match (access.id_scope, access.registration_id, known) {
                (SCOPE, "d-1", (b"\0ek\0", b"\0srk")) => Ok(Bytes::from_static(&BLOB)),
                _ => Err(Error::new(ErrorCode::IotHubUnauthorizedAccess, "Unauthorized")),
            }
        })
    }

    fn register<'a>(
        &'a self,
        registrant: &'a Registrant,
        payload: Option<serde_json::Value>,
    ) -> BoxFuture<'a, Result<Registration, Error>> {
        Box::pin(async move {
            self.asked.lock().push(format!("register {payload:?}"));
            self.answer(registrant)
        })
    }

    fn operation<'a>(
        &'a self,
        registrant: &'a Registrant,
        operation_id: &'a str,
    ) -> BoxFuture<'a, Result<Registration, Error>> {
        Box::pin(async move {
            self.asked.lock().push(format!("operation {operation_id}"));
            self.answer(registrant)
        })
    }

    fn last_registration<'a>(
        &'a self,
        registrant: &'a Registrant,
    ) -> BoxFuture<'a, Result<Registration, Error>> {
        Box::pin(async move { self.answer(registrant) })
    }

    fn id_scope(&self) -> &str {
        SCOPE
    }
}

/// A head with provisioning on a loopback port.
struct Service {
    fake: Arc<FakeProvisioning>,
    address: std::net::SocketAddr,
    _stop: watch::Sender<bool>,
}

impl Service {
    fn start() -> Self {
        let fake = Arc::new(FakeProvisioning::default());
        let clock = Arc::new(ManualClock::at(Timestamp::from_seconds(START)));
        let head = AmqpHead::new(quick(), FakeGateway::new(), FakeServices::new(), clock, metrics())
            .with_provisioning(fake.clone());
        let listener =
            holdfast_heads::listener::bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, shutdown) = watch::channel(false);
        tokio::spawn(async move { head.serve(listener, None, shutdown).await });
        Service {
            fake,
            address,
            _stop: stop,
        }
    }

    async fn socket(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("the head listens")
    }

    /// What becomes of a log-in by token.
    async fn plain(&self, user: &str, token: &str) -> (Peer<TcpStream>, SaslCode) {
        let mut peer = Peer::new(self.socket().await, Config::default(), true);
        let response = format!("\0{user}\0{token}");
        let code = peer.sasl("PLAIN", response.as_bytes()).await;
        (peer, code)
    }

    /// A device with both links.
    async fn device(&self) -> Device {
        let (mut peer, code) = self.plain(ADDRESS, "good").await;
        assert_eq!(code, SaslCode::Ok);
        peer.open().await;
        let answers = peer.receiver(ADDRESS, 10).await.expect("its own");
        let requests = peer.sender(ADDRESS).await.expect("its own");
        Device {
            peer,
            requests,
            answers,
        }
    }
}

struct Device {
    peer: Peer<TcpStream>,
    requests: LinkId,
    answers: LinkId,
}

/// A refusal, in full.
#[derive(Debug)]
struct Refusal {
    condition: String,
    description: serde_json::Value,
    retry_after: Vec<(String, i32)>,
}

impl Device {
    async fn send(&mut self, message: &[u8]) -> String {
        self.peer.send(self.requests, message).await
    }

    /// Sends what must be refused.
    async fn refused(&mut self, message: &[u8]) -> Refusal {
        let token = self.peer.post(self.requests, message, false);
        self.peer.flush().await;
        let mut input = Vec::new();
        loop {
            let mut chunk = [0; 4_096];
            let length = tokio::time::timeout(PATIENCE, self.peer.stream.read(&mut chunk))
                .await
                .expect("an answer in time")
                .expect("a connection");
            input.extend_from_slice(&chunk[..length]);
            let mut rest = &input[..];
            while let Some(event) = self
                .peer
                .machine
                .next_event(&mut rest, 0, &mut self.peer.out)
                .expect("the head keeps the rules")
            {
                if let Event::Outcome {
                    token: of,
                    state: Some(DeliveryState::Rejected(Some(error))),
                    ..
                } = event
                    && of == token
                {
                    let info = error.info.into_iter().flat_map(|info| info.iter());
                    let seconds = |value| match value {
                        Value::Int(seconds) => Some(seconds),
                        _ => None,
                    };
                    return Refusal {
                        condition: error.condition.to_owned(),
                        description: error
                            .description
                            .and_then(|text| serde_json::from_str(text).ok())
                            .unwrap_or_default(),
                        retry_after: info
                            .filter_map(|(name, value)| Some((name.as_str()?.to_owned(), seconds(value)?)))
                            .collect(),
                    };
                }
            }
            input = rest.to_vec();
        }
    }
}

fn request(properties: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    Writer::new(&mut message)
        .properties(&Properties {
            correlation_id: Some(MessageId::String("c-1")),
            ..Properties::default()
        })
        .application_properties(|map| {
            for (name, value) in properties {
                map.string(name, &Value::String(value));
            }
            map.string("iotdps-forceRegistration", &Value::Bool(false));
        })
        .data(body);
    message
}

fn register(body: &[u8]) -> Vec<u8> {
    request(&[("iotdps-operation-type", "iotdps-register")], body)
}

const STATUS: (&str, &str) = ("iotdps-operation-type", "iotdps-get-operationstatus");

#[tokio::test]
async fn a_device_registers_and_follows_its_registration() {
    let service = Service::start();
    let mut device = service.device().await;
    *service.fake.status.lock() = Some(RegistrationStatus::Assigning);
    assert_eq!(
        device
            .send(&register(br#"{"registrationId":"D-1","payload":[1]}"#))
            .await,
        "accepted"
    );
    let (_, _, answer) = device.peer.received(device.answers).await;
    let message = Message::decode(&answer).expect("a message");
    assert_eq!(message.properties.correlation_id, Some(MessageId::String("c-1")));
    let properties = message.application_properties.expect("properties");
    for name in ["retry-after", "Retry-After"] {
        assert_eq!(properties.get(name), Some(Value::Int(2)), "{name}");
    }
    let told: serde_json::Value = serde_json::from_slice(&body(&answer)).expect("JSON");
    assert_eq!(
        (&told["operationId"], &told["status"]),
        (&"4.0.x".into(), &"assigning".into())
    );
    *service.fake.status.lock() = None;
    assert_eq!(
        device
            .send(&request(&[STATUS, ("iotdps-operation-id", "4.0.x")], b""))
            .await,
        "accepted"
    );
    let (_, _, answer) = device.peer.received(device.answers).await;
    let told: serde_json::Value = serde_json::from_slice(&body(&answer)).expect("JSON");
    assert_eq!(told["registrationState"]["assignedHub"], "hub.test");
    let message = Message::decode(&answer).expect("a message");
    let properties = message.application_properties.unwrap_or_default();
    assert_eq!(properties.get("retry-after"), None);
    let asked = service.fake.asked.lock().clone();
    assert_eq!(asked, ["register Some(Array [Number(1)])", "operation 4.0.x"]);
}

#[tokio::test]
async fn addresses_and_user_names_of_every_sdk() {
    let service = Service::start();
    for address in [
        "/0neTEST/registrations/d-1",
        "amqps://dps.test/0neTEST/registrations/D-1",
    ] {
        let (mut peer, code) = service.plain(ADDRESS, "good").await;
        assert_eq!(code, SaslCode::Ok);
        peer.open().await;
        assert!(peer.sender(address).await.is_ok(), "{address}");
    }
    for (user, token, expected) in [
        (ADDRESS, "wrong", SaslCode::Auth),
        ("0neOTHER/registrations/d-1", "good", SaslCode::Auth),
        ("0neTEST/registrations/d%2F1", "good", SaslCode::Auth),
        ("0neTEST/registrations/", "good", SaslCode::Auth),
        ("0neTEST/devices/d-1", "good", SaslCode::Auth),
        ("", "", SaslCode::Auth),
    ] {
        assert_eq!(service.plain(user, token).await.1, expected, "{user}");
    }
    *service.fake.failure.lock() = Some(ErrorCode::ServiceUnavailable);
    assert_eq!(service.plain(ADDRESS, "good").await.1, SaslCode::SysTemp);
}

#[tokio::test]
async fn only_the_registration_that_was_proven() {
    let service = Service::start();
    let mut stranger = Peer::new(service.socket().await, Config::default(), false);
    stranger.open().await;
    assert_eq!(
        stranger.sender(ADDRESS).await,
        Err("amqp:unauthorized-access".to_owned())
    );
    let mut device = service.device().await;
    for other in ["0neTEST/registrations/d-2", "0neOTHER/registrations/d-1"] {
        let refused = device.peer.receiver(other, 1).await;
        assert_eq!(refused, Err("amqp:unauthorized-access".to_owned()), "{other}");
    }
    assert!(device.peer.sender("/devices/d-1/messages/events").await.is_err());
    assert!(
        device
            .peer
            .receiver("events/ConsumerGroups/$Default/Partitions/0", 1)
            .await
            .is_err()
    );
    // A head that has nothing to do with provisioning.
    let hub = Hub::start();
    let mut peer = hub.dial().await;
    assert_eq!(peer.sender(ADDRESS).await, Err("amqp:not-found".to_owned()));
}

#[tokio::test]
async fn refusals_say_what_the_sdks_look_for() {
    let service = Service::start();
    let mut device = service.device().await;
    let both = [("retry-after".to_owned(), 2), ("Retry-After".to_owned(), 2)];
    for (code, condition, number, again) in [
        (
            ErrorCode::ServiceUnavailable,
            "amqp:internal-error",
            503_001,
            true,
        ),
        (
            ErrorCode::ThrottlingException,
            "com.microsoft:device-container-throttled",
            429_001,
            true,
        ),
        (
            ErrorCode::IotHubUnauthorizedAccess,
            "amqp:unauthorized-access",
            401_002,
            false,
        ),
        (
            ErrorCode::AsyncOperationNotFound,
            "amqp:not-found",
            404_000,
            false,
        ),
    ] {
        *service.fake.failure.lock() = Some(code);
        let refusal = device.refused(&register(b"")).await;
        assert_eq!(refusal.condition, condition, "{code:?}");
        let told = refusal.description["errorCode"].as_u64().expect("a number");
        assert_eq!(told / 1_000, number / 1_000, "{code:?} {refusal:?}");
        for member in ["trackingId", "message", "timestampUtc"] {
            assert!(refusal.description[member].is_string(), "{member}: {refusal:?}");
        }
        let expected = if again { &both[..] } else { &[] };
        assert_eq!(refusal.retry_after, expected, "{code:?}");
    }
    // The link lives on.
    *service.fake.failure.lock() = None;
    assert_eq!(device.send(&register(b"")).await, "accepted");
}

#[tokio::test]
async fn requests_that_no_device_would_send() {
    let service = Service::start();
    let mut device = service.device().await;
    let argument = "com.microsoft:argument-error";
    for (what, message, condition) in [
        ("no operation", request(&[], b""), "amqp:not-allowed"),
        (
            "another operation",
            request(&[("iotdps-operation-type", "iotdps-delete")], b""),
            "amqp:not-allowed",
        ),
        ("no operation id", request(&[STATUS], b""), argument),
        (
            "an empty operation id",
            request(&[STATUS, ("iotdps-operation-id", "")], b""),
            argument,
        ),
        ("not JSON", register(b"{"), argument),
        ("not an object", register(b"[1]"), argument),
        ("another id", register(br#"{"registrationId":"d-2"}"#), argument),
        ("not a message", b"\x00\x53".to_vec(), "amqp:decode-error"),
        (
            "too large",
            register(&vec![b' '; 97 * 1024]),
            "amqp:link:message-size-exceeded",
        ),
    ] {
        let outcome = device.send(&message).await;
        assert_eq!(outcome, format!("rejected {condition}"), "{what}");
    }
    assert!(service.fake.asked.lock().is_empty());
    // Our own client keeps to the size that the link announces.
    let huge = register(&vec![b' '; 128 * 1024]);
    assert!(
        device
            .peer
            .machine
            .send(device.requests, &Default::default(), &huge, &mut Vec::new())
            .is_err()
    );
    // No more than a few at once.
    let fifth = (0..5).map(|_| {
        let outgoing = Outgoing {
            tag: b"x",
            ..Outgoing::default()
        };
        device
            .peer
            .machine
            .send(device.requests, &outgoing, &register(b""), &mut Vec::new())
    });
    assert!(fifth.last().expect("five").is_err(), "without credit");
    // Without a link for answers a request is carried out all the same.
    let (mut peer, _) = service.plain(ADDRESS, "good").await;
    peer.open().await;
    let requests = peer.sender(ADDRESS).await.expect("its own");
    assert_eq!(peer.send(requests, &register(b"")).await, "accepted");
    assert_eq!(service.fake.asked.lock().len(), 1);
}

/// The client's side of the TPM mechanism, step by step.
struct TpmClient {
    stream: TcpStream,
    machine: Connection,
    input: Vec<u8>,
}

#[derive(PartialEq, Eq, Debug)]
enum Step {
    Offered(Vec<String>),
    Challenge(Vec<u8>),
    Outcome(SaslCode),
    HungUp,
}

impl TpmClient {
    async fn connect(service: &Service) -> Self {
        let mut out = Vec::new();
        let machine = Connection::client(Arc::new(Config::default()), true, 0, &mut out);
        let mut stream = service.socket().await;
        stream.write_all(&out).await.expect("sent");
        let mut client = TpmClient {
            stream,
            machine,
            input: Vec::new(),
        };
        match client.step().await {
            Step::Offered(names) => assert!(names.iter().any(|name| name == "TPM"), "{names:?}"),
            other => panic!("{other:?}"),
        }
        client
    }

    async fn step(&mut self) -> Step {
        loop {
            let input = std::mem::take(&mut self.input);
            let (mut rest, mut out) = (&input[..], Vec::new());
            let event = self.machine.next_event(&mut rest, 0, &mut out);
            let step = match event.expect("the head keeps the rules") {
                Some(Event::SaslMechanisms(offer)) => Some(Step::Offered(
                    offer.mechanisms.iter().map(str::to_owned).collect(),
                )),
                Some(Event::SaslChallenge(bytes)) => Some(Step::Challenge(bytes.to_vec())),
                Some(Event::SaslOutcome(code)) => Some(Step::Outcome(code)),
                Some(other) => panic!("{other:?}"),
                None => None,
            };
            self.input = rest.to_vec();
            if let Some(step) = step {
                return step;
            }
            let mut chunk = [0; 4_096];
            match tokio::time::timeout(PATIENCE, self.stream.read(&mut chunk))
                .await
                .expect("in time")
            {
                Ok(0) | Err(_) => return Step::HungUp,
                Ok(length) => self.input.extend_from_slice(&chunk[..length]),
            }
        }
    }

    async fn init(&mut self, response: &[u8]) -> Step {
        let mut out = Vec::new();
        let init = SaslInit {
            mechanism: "TPM",
            initial_response: Some(response),
            hostname: Some(ADDRESS),
        };
        self.machine.sasl_init(&init, &mut out);
        self.stream.write_all(&out).await.expect("sent");
        self.step().await
    }

    async fn respond(&mut self, response: &[u8]) -> Step {
        let mut out = Vec::new();
        self.machine.sasl_response(response, &mut out);
        self.stream.write_all(&out).await.expect("sent");
        self.step().await
    }
}

/// With zeros in the key, which are no separators.
const INIT: &[u8] = b"\x000neTEST\0d-1\0\0ek\0";

#[tokio::test]
async fn a_tpm_is_challenged_in_the_sasl_layer() {
    let service = Service::start();
    let mut client = TpmClient::connect(&service).await;
    assert_eq!(client.init(INIT).await, Step::Challenge(vec![0]));
    let Step::Challenge(first) = client.respond(b"\0\0srk").await else {
        panic!("no challenge");
    };
    let Step::Challenge(second) = client.respond(b"\0").await else {
        panic!("no second part");
    };
    // The Java SDK wants just these.
    assert_eq!((first[0], second[0]), (0x80, 0xc1));
    assert_eq!([&first[1..], &second[1..]].concat(), BLOB);
    assert!(first.len() < 480 && second.len() < 480);
    assert_eq!(client.respond(b"\0good").await, Step::Outcome(SaslCode::Ok));
}

#[tokio::test]
async fn tpms_that_are_refused() {
    let service = Service::start();
    let refused = Step::Outcome(SaslCode::Auth);
    for init in [
        &b""[..],
        b"\0",
        b"0neTEST\0d-1\0ek",
        b"\x000neTEST\0d-1",
        b"\x00\xff\xfe\0d-1\0ek",
    ] {
        let mut client = TpmClient::connect(&service).await;
        assert_eq!(client.init(init).await, refused, "{init:?}");
    }
    // Another key, no storage root key, no leading zero.
    for (init, response) in [
        (&b"\x000neTEST\0d-1\0other"[..], &b"\0\0srk"[..]),
        (INIT, b"\0"),
        (INIT, b""),
        (INIT, b"srk"),
    ] {
        let mut client = TpmClient::connect(&service).await;
        assert_eq!(client.init(init).await, Step::Challenge(vec![0]));
        assert_eq!(client.respond(response).await, refused, "{response:?}");
    }
    for token in [&b"\0wrong"[..], b"\0", b"\0\xff\xff", b"good"] {
        let mut client = TpmClient::connect(&service).await;
        client.init(INIT).await;
        client.respond(b"\0\0srk").await;
        client.respond(b"\0").await;
        assert_eq!(client.respond(token).await, refused, "{token:?}");
    }
    *service.fake.failure.lock() = Some(ErrorCode::ThrottlingException);
    let mut client = TpmClient::connect(&service).await;
    client.init(INIT).await;
    assert_eq!(client.respond(b"\0\0srk").await, Step::Outcome(SaslCode::SysTemp));
    // A response to nothing: after the outcome the connection is over.
    let mut client = TpmClient::connect(&service).await;
    let mut out = Vec::new();
    holdfast_amqp::frame::encode(&mut out, holdfast_amqp::frame::FrameType::Sasl, 0, |out| {
        holdfast_amqp::performatives::Sasl::Response(b"\0x").encode(out);
    });
    client.stream.write_all(&out).await.expect("sent");
    assert_eq!(client.step().await, Step::HungUp);
}

#[tokio::test]
async fn devices_that_leave_in_the_middle_harm_nobody() {
    let service = Service::start();
    for steps in 0..4 {
        let mut client = TpmClient::connect(&service).await;
        if steps > 0 {
            client.init(INIT).await;
        }
        if steps > 1 {
            client.respond(b"\0\0srk").await;
        }
        if steps > 2 {
            client.respond(b"\0").await;
        }
    }
    let mut device = service.device().await;
    device.peer.post(device.requests, &register(b""), false);
    device.peer.flush().await;
    drop(device);
    tokio::time::timeout(Duration::from_secs(10), async {
        let mut device = service.device().await;
        assert_eq!(device.send(&register(b"")).await, "accepted");
        let answer = device
            .peer
            .wait("an answer", |got| matches!(got, Got::Transfer { .. }))
            .await;
        assert!(matches!(answer, Got::Transfer { .. }));
    })
    .await
    .expect("others are served");
}
