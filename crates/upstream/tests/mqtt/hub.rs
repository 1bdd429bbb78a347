//! A hub that does as it is told: MQTT over TLS, written with the codec alone, so that it can also do what no honest
//! hub does.

#![allow(unreachable_pub, reason = "a module of one test program")]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_mqtt::codec::{
    ConnAck, ConnectCode, Publish, SubAckCode, encode_connack, encode_pingresp, encode_puback,
    encode_publish, encode_suback, encode_unsuback,
};
use holdfast_mqtt::{Packet, PacketId, QoS, decode};
use holdfast_ports::clock::SystemClock;
use holdfast_upstream::{Metrics, Ports, Trust, Tuning, Upstream, UpstreamConfig};
use parking_lot::Mutex;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

/// How the hub behaves from now on.
#[derive(Clone, Debug)]
pub struct Script {
    /// CONNACK for clients by id; others are accepted.
    pub codes: HashMap<String, ConnectCode>,
    pub session_present: bool,
    /// Acknowledges a message only when so many wait.
    pub acknowledge_from: usize,
    /// Closes after so many messages of a connection; what is not acknowledged then never is.
    pub close_after: Option<usize>,
    /// Answers to twin requests: status, body. `None`: silent.
    pub twin: Option<(u16, &'static str)>,
    /// Closes instead of answering so many twin requests.
    pub close_on_twin: usize,
    /// Takes bytes and says nothing at all.
    pub dead: bool,
    /// Writes byte by byte.
    pub drip: bool,
    /// Ends the older connection of a client when a newer one comes.
    pub takeover: bool,
}

impl Default for Script {
    fn default() -> Self {
        Script {
            codes: HashMap::new(),
            session_present: false,
            acknowledge_from: 1,
            close_after: None,
            twin: Some((200, r#"{"desired":{"$version":1},"reported":{"$version":1}}"#)),
            close_on_twin: 0,
            dead: false,
            drip: false,
            takeover: false,
        }
    }
}

/// What the hub has seen.
#[derive(Default)]
pub struct Seen {
    /// (connection, client, topic, payload)
    pub messages: Vec<(usize, String, String, Vec<u8>)>,
    /// (when, client, user name, password)
    pub logins: Vec<(Instant, String, String, String)>,
    pub subscribed: Vec<String>,
    pub unsubscribed: Vec<String>,
    /// Identifiers of acknowledged deliveries.
    pub acknowledged: Vec<u16>,
    /// Connections that ended with DISCONNECT.
    pub goodbyes: usize,
}

struct Live {
    number: usize,
    push: mpsc::UnboundedSender<Push>,
}

enum Push {
    Message(String, Vec<u8>, Option<PacketId>),
    Close,
}

struct Inner {
    script: Mutex<Script>,
    seen: Mutex<Seen>,
    live: Mutex<HashMap<String, Live>>,
}

pub struct TestHub {
    inner: Arc<Inner>,
    acceptor: TlsAcceptor,
    pub pem: String,
    pub port: u16,
    listener: Option<JoinHandle<()>>,
}

impl TestHub {
    pub async fn start(script: Script) -> Self {
        let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        let pem = key.cert.pem();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![key.cert.der().clone()], private)
            .expect("a configuration");
        let mut hub = TestHub {
            inner: Arc::new(Inner {
                script: Mutex::new(script),
                seen: Mutex::new(Seen::default()),
                live: Mutex::new(HashMap::new()),
            }),
            acceptor: TlsAcceptor::from(Arc::new(config)),
            pem,
            port: 0,
            listener: None,
        };
        hub.listen().await;
        hub
    }

    /// Listens (again), at the same port.
    pub async fn listen(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.expect("a port");
        self.port = listener.local_addr().expect("bound").port();
        let (inner, acceptor) = (Arc::clone(&self.inner), self.acceptor.clone());
        self.listener = Some(tokio::spawn(async move {
            let mut number = 0;
            loop {
                let (tcp, _) = listener.accept().await.expect("accepts");
                number += 1;
                tokio::spawn(serve(Arc::clone(&inner), acceptor.clone(), tcp, number));
            }
        }));
    }

    /// Stops listening and closes every connection.
    pub async fn stop(&mut self) {
        if let Some(listener) = self.listener.take() {
            listener.abort();
            let _ = listener.await;
        }
        for (_, live) in self.inner.live.lock().drain() {
            let _ = live.push.send(Push::Close);
        }
    }

    pub fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.inner.script.lock());
    }

    pub fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.inner.seen.lock())
    }

    pub fn push(&self, client: &str, topic: &str, payload: &[u8], packet_id: Option<u16>) {
        let live = self.inner.live.lock();
        let push = Push::Message(
            topic.to_owned(),
            payload.to_vec(),
            packet_id.and_then(PacketId::new),
        );
        live[client].push.send(push).expect("connected");
    }

    /// Waits until what was seen satisfies `enough`.
    pub async fn until(&self, what: &str, enough: impl Fn(&Seen) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.seen(&enough) {
            assert!(Instant::now() < deadline, "not in time: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn upstream(&self, tune: impl FnOnce(&mut Tuning)) -> Upstream {
        let mut config = UpstreamConfig::new("hub.test");
        config.connect_host = Some("localhost".to_owned());
        config.ports = Ports {
            mqtt: self.port,
            ..Ports::default()
        };
        config.trust = Trust::from_pem(self.pem.as_bytes()).expect("a bundle");
        config.tuning = Tuning {
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
            retry_first: Duration::from_millis(20),
            retry_max: Duration::from_millis(200),
            ..Tuning::default()
        };
        tune(&mut config.tuning);
        Upstream::new(config, Arc::new(SystemClock::new()), Metrics::default()).expect("an upstream")
    }
}

async fn serve(inner: Arc<Inner>, acceptor: TlsAcceptor, tcp: TcpStream, number: usize) {
    let Ok(mut stream) = acceptor.accept(tcp).await else {
        return;
    };
    let (push, mut pushes) = mpsc::unbounded_channel();
    let mut connection = Served {
        inner,
        number,
        client: String::new(),
        push,
        taken: 0,
        waiting: Vec::new(),
    };
    let mut input = Vec::new();
    let mut out = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        tokio::select! {
            read = stream.read(&mut chunk) => match read {
                Ok(count) if count > 0 => input.extend_from_slice(&chunk[..count]),
                _ => break,
            },
            push = pushes.recv() => match push {
                Some(Push::Message(topic, payload, packet_id)) => {
                    let qos = if packet_id.is_some() { QoS::AtLeastOnce } else { QoS::AtMostOnce };
                    let publish = Publish { topic: &topic, payload: &payload, qos, packet_id, ..Publish::default() };
                    encode_publish(&mut out, &publish).expect("fits");
                }
                Some(Push::Close) | None => break,
            },
        }
        let mut used = 0;
        let mut go_on = true;
        while go_on && let Some((packet, length)) = decode(&input[used..], 1 << 20).expect("an honest client")
        {
            go_on = connection.take(packet, &mut out);
            used += length;
        }
        input.drain(..used);
        let script = connection.inner.script.lock().clone();
        if script.dead {
            out.clear();
        }
        if script.drip {
            for byte in &out {
                if stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err() {
                    break;
                }
            }
        } else if stream.write_all(&out).await.is_err() || stream.flush().await.is_err() {
            break;
        }
        out.clear();
        if !go_on {
            break;
        }
    }
    let mut live = connection.inner.live.lock();
    if live
        .get(&connection.client)
        .is_some_and(|live| live.number == number)
    {
        live.remove(&connection.client);
    }
}

struct Served {
    inner: Arc<Inner>,
    number: usize,
    client: String,
    push: mpsc::UnboundedSender<Push>,
    taken: usize,
    waiting: Vec<PacketId>,
}

impl Served {
    /// Whether the connection goes on.
    fn take(&mut self, packet: Packet<'_>, out: &mut Vec<u8>) -> bool {
        let mut script = self.inner.script.lock();
        let mut seen = self.inner.seen.lock();
        match packet {
            Packet::Connect(connect) => {
                self.client = connect.client_id.to_owned();
                let text =
                    |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
                let user = connect.username.unwrap_or_default().to_owned();
                let login = (Instant::now(), self.client.clone(), user, text(connect.password));
                seen.logins.push(login);
                let code = script
                    .codes
                    .get(&self.client)
                    .copied()
                    .unwrap_or(ConnectCode::Accepted);
                let session_present = script.session_present;
                encode_connack(
                    out,
                    ConnAck {
                        session_present,
                        code,
                    },
                );
                let live = Live {
                    number: self.number,
                    push: self.push.clone(),
                };
                let older = self.inner.live.lock().insert(self.client.clone(), live);
                if let Some(older) = older.filter(|_| script.takeover) {
                    let _ = older.push.send(Push::Close);
                }
                code == ConnectCode::Accepted
            }
            Packet::Subscribe(subscribe) => {
                let filters: Vec<_> = subscribe.filters().collect();
                let codes = vec![SubAckCode::GrantedAtMostOnce; filters.len()];
                seen.subscribed
                    .extend(filters.iter().map(|(filter, _)| (*filter).to_owned()));
                encode_suback(out, subscribe.packet_id, &codes).expect("fits");
                true
            }
            Packet::Unsubscribe(unsubscribe) => {
                seen.unsubscribed.extend(unsubscribe.filters().map(str::to_owned));
                encode_unsuback(out, unsubscribe.packet_id);
                true
            }
            Packet::Publish(publish) if publish.topic.starts_with("$iothub/twin/") => {
                if script.close_on_twin > 0 {
                    script.close_on_twin -= 1;
                    return false;
                }
                let message = (
                    self.number,
                    self.client.clone(),
                    publish.topic.to_owned(),
                    publish.payload.to_vec(),
                );
                seen.messages.push(message);
                let (_, rid) = publish.topic.split_once("$rid=").expect("a request");
                if let Some((status, body)) = script.twin {
                    let topic = format!("$iothub/twin/res/{status}/?$rid={rid}&$version=9");
                    let answer = Publish {
                        topic: &topic,
                        payload: body.as_bytes(),
                        ..Publish::default()
                    };
                    encode_publish(out, &answer).expect("fits");
                }
                true
            }
            Packet::Publish(publish) => {
                let message = (
                    self.number,
                    self.client.clone(),
                    publish.topic.to_owned(),
                    publish.payload.to_vec(),
                );
                seen.messages.push(message);
                self.taken += 1;
                if script.close_after.is_some_and(|most| self.taken > most) {
                    return false;
                }
                self.waiting.extend(publish.packet_id);
                if self.waiting.len() >= script.acknowledge_from {
                    self.waiting.drain(..).for_each(|id| encode_puback(out, id));
                }
                true
            }
            Packet::PubAck(id) => {
                seen.acknowledged.push(id.get());
                true
            }
            Packet::PingReq => {
                encode_pingresp(out);
                true
            }
            Packet::Disconnect => {
                seen.goodbyes += 1;
                false
            }
            other => panic!("no client sends {:?}", other.packet_type()),
        }
    }
}
