//! MQTT over TLS to the gateway.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Error, Result, anyhow, bail};
use holdfast_model::Timestamp;
use holdfast_model::message::{Message, SystemProperty};
use holdfast_mqtt::client::{ClientSession, Event, Message as Publication};
use holdfast_mqtt::codec::{Connect, ConnectCode, QoS};
use holdfast_mqtt::decode;
use holdfast_wire::topics::{self, HubTopic, METHODS_FILTER, parse_delivery};
use holdfast_wire::username;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};

use crate::reading::Machine;
use crate::say;
use crate::settings::Settings;
use crate::workload;

const PATIENCE: Duration = Duration::from_secs(30);
/// Tokens live this long; the connection is made anew before.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
const RENEWAL: Duration = Duration::from_secs(3300);
const KEEP_ALIVE_SECONDS: u16 = 60;
/// How long a read waits, so that time-outs are seen.
const TICK: Duration = Duration::from_millis(50);
const PACKET_BYTES_MAX: usize = 300 << 10;
const API_VERSION: &str = "2021-04-12";

/// An open connection.
pub(crate) struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    session: ClientSession,
    begun: Instant,
    read: Vec<u8>,
    out: Vec<u8>,
}

/// What a packet asks for.
enum Happened {
    Nothing,
    Acknowledged,
    Input(String, Vec<u8>),
    Method(String, String),
}

impl Connection {
    pub(crate) fn open(settings: &Settings) -> Result<Self> {
        let bundle = workload::trust_bundle(settings).context("trust bundle")?;
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let token = workload::token(settings, now.as_secs(), TOKEN_LIFETIME).context("signature")?;
        let stream = connect(settings, &bundle)?;
        let mut connection = Self {
            stream,
            session: ClientSession::new(1),
            begun: Instant::now(),
            read: Vec::new(),
            out: Vec::new(),
        };
        let client_id = settings.identity.to_string();
        let user = username::format(
            &settings.hub,
            &settings.identity,
            API_VERSION,
            "holdfast-simulated-sensor",
        );
        let connect = Connect {
            client_id: &client_id,
            clean_session: false,
            keep_alive: KEEP_ALIVE_SECONDS,
            will: None,
            username: Some(&user),
            password: Some(token.as_bytes()),
        };
        connection
            .session
            .connect(&connect, connection.now(), &mut connection.out)?;
        connection.wait_for_answer()?;
        let inputs = format!("{}/#", devices_path(settings));
        let filters = [
            (inputs.as_str(), QoS::AtLeastOnce),
            (METHODS_FILTER, QoS::AtMostOnce),
        ];
        let now = connection.now();
        connection.session.subscribe(&filters, now, &mut connection.out)?;
        connection.flush()?;
        Ok(connection)
    }

    fn wait_for_answer(&mut self) -> Result<()> {
        self.flush()?;
        loop {
            let mut code = None;
            self.fill()?;
            self.take_packets(|event| {
                if let Event::ConnAck(answer) = event {
                    code = Some(answer.code);
                }
            })?;
            match code {
                Some(ConnectCode::Accepted) => return Ok(()),
                Some(code) => bail!("the edge hub refused the connection: {code:?}"),
                None if self.begun.elapsed() > PATIENCE => bail!("no answer to CONNECT within {PATIENCE:?}"),
                None => {}
            }
        }
    }

    /// Sends until the connection ends; says why it did.
    pub(crate) fn run(&mut self, settings: &Settings, machine: &mut Machine) -> Error {
        match self.run_until_error(settings, machine) {
            Ok(()) => anyhow!("it is time for a new token"),
            Err(error) => error,
        }
    }

    fn run_until_error(&mut self, settings: &Settings, machine: &mut Machine) -> Result<()> {
        let mut next = Instant::now();
        let mut waiting = None;
        while self.begun.elapsed() < RENEWAL || waiting.is_some() {
            if waiting.is_none() && machine.is_due() && Instant::now() >= next {
                self.send(settings, machine)?;
                waiting = Some(Instant::now());
                next = Instant::now() + settings.delay;
            }
            if waiting.is_some_and(|since: Instant| since.elapsed() > PATIENCE) {
                bail!("a message was not acknowledged within {PATIENCE:?}");
            }
            self.flush()?;
            self.fill()?;
            for happened in self.take_all()? {
                match happened {
                    Happened::Nothing => {}
                    Happened::Acknowledged => {
                        waiting = None;
                        machine.acknowledged();
                        say(&format!("message {} acknowledged", machine.sent()));
                    }
                    Happened::Input(input, body) => control(&input, &body, machine),
                    Happened::Method(name, rid) => self.answer(&name, &rid, machine)?,
                }
            }
            let now = self.now();
            if self.session.next_tick().is_some_and(|at| at <= now) {
                self.session.tick(now, &mut self.out)?;
            }
        }
        Ok(())
    }

    fn send(&mut self, settings: &Settings, machine: &mut Machine) -> Result<()> {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let body = machine.read(Timestamp::from_millis(
            i64::try_from(now.as_millis()).unwrap_or(i64::MAX),
        ));
        let mut message = Message::default();
        message.set_system(SystemProperty::OutputName, "temperatureOutput");
        message.set_system(SystemProperty::ContentType, "application/json");
        message.set_system(SystemProperty::ContentEncoding, "utf-8");
        message.set_property("sequenceNumber", Some((machine.sent() + 1).to_string()));
        let mut topic = String::new();
        topics::telemetry(&mut topic, &settings.identity, &message);
        let publication = Publication {
            topic: &topic,
            payload: body.as_bytes(),
            qos: QoS::AtLeastOnce,
            ..Publication::default()
        };
        let now = self.now();
        self.session.publish(&publication, now, &mut self.out)?;
        Ok(())
    }

    fn answer(&mut self, name: &str, rid: &str, machine: &mut Machine) -> Result<()> {
        let (status, body) = if name == "reset" {
            machine.reset();
            say("reset by a direct method");
            (200, "{}")
        } else {
            (404, "{\"message\":\"the only method is reset\"}")
        };
        let mut topic = String::new();
        topics::method_response(&mut topic, status, rid);
        let publication = Publication {
            topic: &topic,
            payload: body.as_bytes(),
            ..Publication::default()
        };
        let now = self.now();
        self.session.publish(&publication, now, &mut self.out)?;
        Ok(())
    }

    fn take_all(&mut self) -> Result<Vec<Happened>> {
        let mut all = Vec::new();
        self.take_packets(|event| {
            all.push(match event {
                Event::PubAck { .. } => Happened::Acknowledged,
                Event::Publish(publish) => delivery(publish.topic, publish.payload),
                _ => Happened::Nothing,
            });
        })?;
        Ok(all)
    }

    fn take_packets(&mut self, mut each: impl FnMut(Event<'_>)) -> Result<()> {
        let now = self.now();
        let mut taken = 0;
        while let Some((packet, length)) = decode(&self.read[taken..], PACKET_BYTES_MAX)? {
            each(self.session.handle(packet, now, &mut self.out)?);
            taken += length;
        }
        self.read.drain(..taken);
        Ok(())
    }

    /// Reads what is there, waiting for [`TICK`] at most.
    fn fill(&mut self) -> Result<()> {
        let mut bytes = [0_u8; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => bail!("the edge hub closed the connection"),
            Ok(count) => self.read.extend_from_slice(&bytes[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if !self.out.is_empty() {
            self.stream.write_all(&self.out)?;
            self.stream.flush()?;
            self.out.clear();
        }
        Ok(())
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn devices_path(settings: &Settings) -> String {
    let module = settings.identity.module_id().unwrap_or_default();
    format!(
        "devices/{}/modules/{module}/inputs",
        settings.identity.device_id()
    )
}

fn delivery(topic: &str, payload: &[u8]) -> Happened {
    if let Some((_, rest)) = topic.split_once("/inputs/") {
        let input = rest.split('/').next().unwrap_or_default();
        return Happened::Input(input.to_owned(), payload.to_vec());
    }
    // The identity matters for messages of a device only, which a module has none of.
    let Ok(nobody) = holdfast_model::Identity::module("d", "m") else {
        return Happened::Nothing;
    };
    match parse_delivery(topic, &nobody) {
        Some(HubTopic::Method { name, rid }) => Happened::Method(name.to_owned(), rid.to_owned()),
        _ => Happened::Nothing,
    }
}

fn control(input: &str, body: &[u8], machine: &mut Machine) {
    let command: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    // One command, or an array of them as the tutorials' sensor takes it.
    let commands = command.as_array().cloned().unwrap_or_else(|| vec![command]);
    let wants_reset = commands.iter().any(|command| {
        command["command"]
            .as_str()
            .is_some_and(|word| word.eq_ignore_ascii_case("reset"))
    });
    if input == "control" && wants_reset {
        machine.reset();
        say("reset by a message");
    } else {
        say(&format!("a message to input {input} asks for nothing known"));
    }
}

fn connect(settings: &Settings, bundle: &str) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(bundle.as_bytes()).filter_map(Result::ok));
    if roots.is_empty() {
        bail!("the trust bundle holds no certificate");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(settings.gateway.clone())
        .with_context(|| format!("IOTEDGE_GATEWAYHOSTNAME is {:?}, no host name", settings.gateway))?;
    let addresses = (settings.gateway.as_str(), settings.port)
        .to_socket_addrs()
        .with_context(|| format!("cannot resolve {}", settings.gateway))?;
    let mut last = anyhow!("{} has no address", settings.gateway);
    for address in addresses {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(TICK))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                let tls = ClientConnection::new(Arc::new(config), name)?;
                return Ok(StreamOwned::new(tls, stream));
            }
            Err(error) => last = Error::from(error).context(format!("cannot connect to {address}")),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_and_methods_are_told_apart() {
        let Happened::Input(input, body) = delivery("devices/e/modules/s/inputs/control/%24.cdid=e", b"x")
        else {
            panic!("not an input");
        };
        assert_eq!((input.as_str(), body.as_slice()), ("control", &b"x"[..]));
        let Happened::Method(name, rid) = delivery("$iothub/methods/POST/reset/?$rid=7", b"") else {
            panic!("not a method");
        };
        assert_eq!((name.as_str(), rid.as_str()), ("reset", "7"));
        assert!(matches!(delivery("devices/e/x", b""), Happened::Nothing));
    }

    #[test]
    fn only_control_resets() {
        let mut machine = Machine::new(Some(1));
        machine.acknowledged();
        control("other", br#"{"command":"reset"}"#, &mut machine);
        control("control", b"nonsense", &mut machine);
        assert!(!machine.is_due());
        control("control", br#"[{"command":"Reset"}]"#, &mut machine);
        assert!(machine.is_due());
    }
}
