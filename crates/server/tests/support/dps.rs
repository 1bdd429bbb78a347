//! Devices that register, over HTTPS as a program would, and over MQTT without TLS as thousands would.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use holdfast_model::Timestamp;
use holdfast_model::credential::{SymmetricKey, sign_sas};
use holdfast_mqtt::client::{Event, Message};
use holdfast_mqtt::codec::{Connect, ConnectCode};
use holdfast_mqtt::{ClientSession, QoS, decode};
use holdfast_server::cli::profile::{Login, Wanted, id_scope};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use serde_json::{Value, json};
use ureq::Agent;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider};

use super::{Hub, PATIENCE};

pub(crate) type Issuer = CertifiedIssuer<'static, KeyPair>;

/// By what a device proves itself.
pub(crate) enum Proof {
    Key(SymmetricKey),
    /// A token as it stands.
    Token(String),
    /// PEM of the chain, leaf first, and of the leaf's key.
    Chain(Vec<String>, String),
    Nothing,
}

/// The device side of a provisioning service.
pub(crate) struct Dps {
    host: String,
    port: u16,
    ca: Vec<u8>,
    pub(crate) id_scope: String,
}

/// Status and body.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
}

/// The login to a hub and its id scope.
pub(crate) fn login(hub: &Hub) -> Login {
    Login::find(&wanted(hub)).unwrap()
}

fn wanted(hub: &Hub) -> Wanted {
    Wanted {
        data_dir: Some(hub.data_dir.clone()),
        no_profile: true,
        ..Wanted::default()
    }
}

/// A connection string that another hub can use: with the port.
pub(crate) fn connection_string(hub: &Hub) -> String {
    let login = login(hub);
    let text = login.connection_string();
    text.replace(
        &format!("HostName={}", login.host),
        &format!("HostName={}:{}", login.host, hub.https_port()),
    )
}

pub(crate) fn token(scope: &str, id: &str, key: &SymmetricKey) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let expiry = Timestamp::from_seconds(i64::try_from(now + 3_600).unwrap());
    let resource = format!("{scope}/registrations/{id}");
    sign_sas(&resource, key, expiry, Some("registration"))
}

impl Dps {
    pub(crate) fn of(hub: &Hub) -> Dps {
        Dps {
            host: login(hub).host,
            port: hub.https_port(),
            ca: std::fs::read(hub.data_dir.join("ca.pem")).unwrap(),
            id_scope: id_scope(&wanted(hub)).unwrap().unwrap(),
        }
    }

    fn agent(&self, proof: &Proof) -> Agent {
        let roots = [Certificate::from_pem(&self.ca).unwrap()];
        let mut tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::from(roots.into_iter()))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
        if let Proof::Chain(chain, key) = proof {
            let chain: Vec<_> = chain
                .iter()
                .map(|pem| Certificate::from_pem(pem.as_bytes()).unwrap())
                .collect();
            let key = PrivateKey::from_pem(key.as_bytes()).unwrap();
            tls = tls.client_cert(Some(ClientCert::new_with_certs(&chain, key)));
        }
        Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .proxy(None)
            .build()
            .new_agent()
    }

    fn send(&self, agent: &Agent, method: &str, path: &str, token: Option<&str>, body: &str) -> Answer {
        let url = format!(
            "https://{}:{}/{path}?api-version=2021-06-01",
            self.host, self.port
        );
        let mut request = ureq::http::Request::builder().method(method).uri(url);
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        let request = request
            .header("content-type", "application/json")
            .body(body.to_owned());
        let mut response = agent.run(request.unwrap()).unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        Answer {
            status: response.status().as_u16(),
            body: serde_json::from_str(&text).unwrap_or(Value::String(text)),
        }
    }

    /// PUT, in a scope and with a body of the caller's choice.
    pub(crate) fn put(&self, scope: &str, id: &str, proof: &Proof, body: &str) -> Answer {
        let path = format!("{scope}/registrations/{id}/register");
        let token = self.token(scope, id, proof);
        self.send(&self.agent(proof), "PUT", &path, token.as_deref(), body)
    }

    fn token(&self, scope: &str, id: &str, proof: &Proof) -> Option<String> {
        match proof {
            Proof::Key(key) => Some(token(scope, id, key)),
            Proof::Token(token) => Some(token.clone()),
            Proof::Chain(..) | Proof::Nothing => None,
        }
    }

    /// Registers and follows the operation to its end, whatever that is: the last answer.
    pub(crate) fn register(&self, id: &str, proof: &Proof) -> Answer {
        self.register_with(id, proof, &json!({ "registrationId": id }))
    }

    pub(crate) fn register_with(&self, id: &str, proof: &Proof, body: &Value) -> Answer {
        let agent = self.agent(proof);
        let token = self.token(&self.id_scope, id, proof);
        let path = format!("{}/registrations/{id}/register", self.id_scope);
        let answer = self.send(&agent, "PUT", &path, token.as_deref(), &body.to_string());
        let operation = answer.body["operationId"].as_str().map(str::to_owned);
        let (202, Some(operation)) = (answer.status, operation) else {
            return answer;
        };
        if answer.body["status"] != "assigning" {
            return answer;
        }
        self.follow(&agent, id, token.as_deref(), &operation)
    }

    fn follow(&self, agent: &Agent, id: &str, token: Option<&str>, operation: &str) -> Answer {
        let deadline = Instant::now() + PATIENCE;
        let path = format!("{}/registrations/{id}/operations/{operation}", self.id_scope);
        loop {
            let answer = self.send(agent, "GET", &path, token, "");
            // 503: a hub is away; the SDKs ask again too.
            if !matches!(answer.status, 202 | 429 | 500 | 503) {
                return answer;
            }
            assert!(
                Instant::now() < deadline,
                "{id} is still assigning: {}",
                answer.body
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Answer {
    /// The number of a refusal, wherever it stands.
    pub(crate) fn code(&self) -> Value {
        let state = &self.body["registrationState"]["errorCode"];
        let code = if state.is_null() {
            &self.body["errorCode"]
        } else {
            state
        };
        code.clone()
    }
}

/// Registers over MQTT without TLS, once: the body of the answer with status 200.
pub(crate) fn register_over_mqtt(
    address: &str,
    scope: &str,
    id: &str,
    key: &SymmetricKey,
) -> std::io::Result<Value> {
    let failed = |text: String| std::io::Error::other(text);
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let username = holdfast_wire::provisioning::format_user_name(scope, id, "test");
    let password = token(scope, id, key);
    let mut session = ClientSession::new(4);
    let mut out = Vec::new();
    let connect = Connect {
        client_id: id,
        clean_session: true,
        keep_alive: 60,
        username: Some(&username),
        password: Some(password.as_bytes()),
        ..Connect::default()
    };
    session.connect(&connect, 0, &mut out).unwrap();
    let (mut input, mut chunk) = (Vec::new(), [0; 4_096]);
    let publish = |session: &mut ClientSession, out: &mut Vec<u8>, topic: &str| {
        let message = Message {
            topic,
            payload: b"{}",
            qos: QoS::AtLeastOnce,
            ..Message::default()
        };
        session.publish(&message, 0, out).unwrap();
    };
    loop {
        socket.write_all(&out)?;
        out.clear();
        match socket.read(&mut chunk)? {
            0 => return Err(failed("closed".to_owned())),
            length => input.extend_from_slice(&chunk[..length]),
        }
        let mut taken = 0;
        while let Some((packet, length)) = decode(&input[taken..], 1 << 20).unwrap() {
            taken += length;
            match session.handle(packet, 0, &mut out).unwrap() {
                Event::ConnAck(connack) if connack.code == ConnectCode::Accepted => {
                    let filter = holdfast_wire::provisioning::FILTER;
                    session
                        .subscribe(&[(filter, QoS::AtLeastOnce)], 0, &mut out)
                        .unwrap();
                }
                Event::ConnAck(connack) => return Err(failed(format!("{:?}", connack.code))),
                Event::SubAck(_) => publish(
                    &mut session,
                    &mut out,
                    "$dps/registrations/PUT/iotdps-register/?$rid=1",
                ),
                Event::Publish(answer) => {
                    let status = answer.topic.strip_prefix("$dps/registrations/res/").unwrap();
                    let body: Value = serde_json::from_slice(answer.payload).unwrap();
                    match &status[..3] {
                        "200" => return Ok(body),
                        "202" => {
                            let operation = body["operationId"].as_str().unwrap();
                            let topic = format!(
                                "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2&operationId={operation}"
                            );
                            std::thread::sleep(Duration::from_millis(50));
                            publish(&mut session, &mut out, &topic);
                        }
                        _ => return Err(failed(format!("{status}: {body}"))),
                    }
                }
                _ => {}
            }
        }
        input.drain(..taken);
    }
}

/// An authority; valid until tomorrow.
pub(crate) fn authority(name: &str, parent: Option<&Issuer>) -> Issuer {
    let mut params = params(name, 1);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    match parent {
        None => CertifiedIssuer::self_signed(params, key).unwrap(),
        Some(parent) => CertifiedIssuer::signed_by(params, key, parent).unwrap(),
    }
}

/// The certificate of a device that ends in so many days, with the key.
pub(crate) fn leaf(
    name: &str,
    days: i64,
    purpose: Option<ExtendedKeyUsagePurpose>,
    issuer: &Issuer,
) -> (String, String) {
    let mut params = params(name, days);
    params.extended_key_usages.extend(purpose);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    (certificate.pem(), key.serialize_pem())
}

pub(crate) fn params(name: &str, days: i64) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    let day = Duration::from_secs(86_400);
    params.not_before = (now - 10 * day).into();
    params.not_after = match u32::try_from(days) {
        Ok(days) => (now + days * day).into(),
        Err(_) => (now - day * u32::try_from(-days).unwrap()).into(),
    };
    params
}
