//! Provisioning over MQTT: short sessions, one request after the other.
//!
//! A session subscribes to one filter, publishes requests and gets an answer to each, the PUBACK first: the C# SDK takes
//! nothing else in between. Every session is a clean one, whatever the client asks for.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::provisioning::REQUEST_BYTES_MAX;
use holdfast_model::{Error, ErrorCode};
use holdfast_mqtt::codec::{
    Connect, ConnectCode, SubAckCode, encode_pingresp, encode_suback, encode_unsuback,
};
use holdfast_mqtt::server::{Delivery, Event as MqttEvent};
use holdfast_mqtt::{QoS, ServerSession, decode};
use holdfast_ports::clock::Clock;
use holdfast_ports::gateway::{Credential, Protocol};
use holdfast_ports::provisioning::{ProvisioningGateway, Registrant, RegistrationAccess};
use holdfast_wire::dto::provisioning::operation_json;
use holdfast_wire::error;
use holdfast_wire::provisioning::{DeviceRequest, FILTER, UserName, parse_publish, response_topic};
use tokio::io::ReadBuf;

use crate::transport::Transport;

/// Largest packet: a request with its topic.
const PACKET_BYTES_MAX: usize = REQUEST_BYTES_MAX + 4 * 1024;
/// Bytes read at once; most requests fit.
const READ_BYTES: usize = 1_024;
/// How long a client may take to read its answers.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a session that reads nothing looks whether the process stops, or its client is silent for too long.
const LOOK: Duration = Duration::from_secs(1);

/// What a log-in is told, and what the log is told.
pub(crate) struct Refusal {
    pub(crate) code: ConnectCode,
    pub(crate) is_unavailable: bool,
    pub(crate) detail: String,
}

/// Judges a log-in.
pub(crate) async fn admit(
    gateway: &dyn ProvisioningGateway,
    name: UserName<'_>,
    connect: &Connect<'_>,
    certificates: &[Bytes],
    protocol: Protocol,
) -> Result<Registrant, Refusal> {
    let malformed = |detail: &str| Refusal {
        code: ConnectCode::NotAuthorized,
        is_unavailable: false,
        detail: detail.to_owned(),
    };
    if !connect.client_id.eq_ignore_ascii_case(name.registration_id) {
        return Err(malformed("client id and user name name different registrations"));
    }
    let credential = match connect.password {
        Some(password) => match std::str::from_utf8(password) {
            Ok(token) => Credential::Sas(token),
            Err(_) => return Err(malformed("the password is not UTF-8")),
        },
        None if certificates.is_empty() => Credential::None,
        None => Credential::Certificates(certificates),
    };
    let access = RegistrationAccess {
        id_scope: name.id_scope,
        registration_id: name.registration_id,
        credential,
        protocol,
    };
    gateway.authenticate(access).await.map_err(|error| {
        let later = error::row(error.code).connack == ConnectCode::ServerUnavailable as u8;
        Refusal {
            code: match later {
                true => ConnectCode::ServerUnavailable,
                false => ConnectCode::NotAuthorized,
            },
            is_unavailable: later,
            detail: error.message,
        }
    })
}

/// A device that was let in.
pub(crate) struct Session {
    pub(crate) transport: Transport,
    pub(crate) machine: ServerSession,
    pub(crate) registrant: Registrant,
    pub(crate) gateway: Arc<dyn ProvisioningGateway>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) peer: SocketAddr,
    /// Whether the process stops.
    pub(crate) stopping: Box<dyn Fn() -> bool + Send + Sync>,
    /// What came after CONNECT.
    pub(crate) input: Vec<u8>,
    /// What is to be sent.
    pub(crate) output: Vec<u8>,
    /// QoS of the subscription, once there is one.
    pub(crate) granted: Option<QoS>,
}

/// What a packet asks for.
enum Step {
    /// Nothing more than what is in the output already.
    Done,
    /// An answer of the gateway.
    Ask { request: DeviceRequest, body: Vec<u8> },
    /// The end.
    Leave,
}

impl Session {
    /// Runs until the client leaves.
    pub(crate) async fn run(mut self) {
        self.machine.accept(false, &mut self.output);
        if let Err(error) = self.serve().await {
            holdfast_observe::tracing::debug!(
                peer = %self.peer,
                registration = %self.registrant.registration_id,
                %error,
                "provisioning session ended"
            );
        }
        // Whether the client hears the goodbye of TLS or WebSocket does not matter.
        let goodbye = poll_fn(|context| self.transport.poll_shutdown(context));
        let _ = tokio::time::timeout(LOOK, goodbye).await;
    }

    async fn serve(&mut self) -> io::Result<()> {
        loop {
            while let Some(step) = self.next()? {
                match step {
                    Step::Done => {}
                    Step::Leave => return Ok(()),
                    Step::Ask { request, body } => {
                        // The PUBACK leaves before the work begins.
                        self.write().await?;
                        self.answer(request, &body).await?;
                    }
                }
            }
            self.write().await?;
            if !self.read().await? {
                return Ok(());
            }
        }
    }

    /// Judges the next packet, if a whole one is there.
    fn next(&mut self) -> io::Result<Option<Step>> {
        let protocol =
            |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
        let (packet, length) = match decode(&self.input, PACKET_BYTES_MAX) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            Err(error) => return Err(protocol(&error)),
        };
        let now = self.clock.monotonic_millis();
        let step = match self
            .machine
            .handle(packet, now)
            .map_err(|error| protocol(&error))?
        {
            MqttEvent::Publish(publish) => {
                let request = parse_publish(publish.topic)
                    .ok_or_else(|| protocol(&"a publish to a topic that is not of provisioning"))?;
                let body = publish.payload.to_vec();
                if publish.qos == QoS::AtLeastOnce {
                    self.machine.acknowledge(1, &mut self.output);
                }
                Step::Ask { request, body }
            }
            MqttEvent::Subscribe(subscribe) => {
                let mut codes = Vec::new();
                for (filter, qos) in subscribe.filters() {
                    if filter != FILTER {
                        codes.push(SubAckCode::Failure);
                        continue;
                    }
                    let granted = match qos {
                        QoS::AtMostOnce => QoS::AtMostOnce,
                        _ => QoS::AtLeastOnce,
                    };
                    self.granted = Some(granted);
                    codes.push(SubAckCode::from(granted));
                }
                encode_suback(&mut self.output, subscribe.packet_id, &codes)
                    .map_err(|error| protocol(&error))?;
                Step::Done
            }
            MqttEvent::Unsubscribe(unsubscribe) => {
                if unsubscribe.filters().any(|filter| filter == FILTER) {
                    self.granted = None;
                }
                encode_unsuback(&mut self.output, unsubscribe.packet_id);
                Step::Done
            }
            MqttEvent::PingReq => {
                encode_pingresp(&mut self.output);
                Step::Done
            }
            MqttEvent::PubAck { .. } | MqttEvent::StalePubAck { .. } => Step::Done,
            MqttEvent::Disconnect | MqttEvent::Connect(_) => Step::Leave,
        };
        self.input.drain(..length);
        Ok(Some(step))
    }

    async fn answer(&mut self, request: DeviceRequest, body: &[u8]) -> io::Result<()> {
        let (rid, outcome) = match request {
            DeviceRequest::Register { rid } => (rid, self.register(body).await),
            DeviceRequest::Status { rid, operation_id } => {
                let asked = self.gateway.operation(&self.registrant, &operation_id).await;
                (rid, asked)
            }
        };
        let (status, retry_after, body) = match outcome {
            Ok(registration) => {
                let (status, retry_after) = super::standing(&registration);
                (status, retry_after, operation_json(&registration, true))
            }
            Err(error) => super::failure(&error, self.clock.now()),
        };
        // Who did not subscribe wants no answer.
        let Some(qos) = self.granted else { return Ok(()) };
        let delivery = Delivery {
            topic: &response_topic(status, &rid, retry_after),
            payload: body.as_bytes(),
            qos,
            token: 0,
            redelivery_of: None,
        };
        self.machine
            .publish(&delivery, &mut self.output)
            .map(drop)
            .map_err(|error| io::Error::other(error.to_string()))
    }

    async fn register(&self, body: &[u8]) -> Result<holdfast_model::provisioning::Registration, Error> {
        let request = match body.len() {
            0..=REQUEST_BYTES_MAX => super::registration_body(&self.registrant, body),
            _ => Err(Error::new(
                ErrorCode::MessageTooLarge,
                "a request has at most 96 KB",
            )),
        };
        let request = request.inspect_err(|error| {
            let id = self.registrant.registration_id.as_str();
            self.gateway.note_refusal(id, error);
        })?;
        self.gateway.register(&self.registrant, request.payload).await
    }

    /// Reads once; `false` at the end of the stream, when the client was silent for too long, or the process stops.
    async fn read(&mut self) -> io::Result<bool> {
        let filled = self.input.len();
        self.input.resize(filled + READ_BYTES, 0);
        let received = loop {
            let mut buffer = ReadBuf::new(&mut self.input[filled..]);
            let read = poll_fn(|context| self.transport.poll_read(context, &mut buffer));
            match tokio::time::timeout(LOOK, read).await {
                Ok(outcome) => {
                    outcome?;
                    break buffer.filled().len();
                }
                Err(_) if (self.stopping)() => break 0,
                Err(_) if self.clock.monotonic_millis() > self.machine.deadline() => break 0,
                Err(_) => {}
            }
        };
        self.input.truncate(filled + received);
        Ok(received > 0)
    }

    async fn write(&mut self) -> io::Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        let transport = &mut self.transport;
        let output = &self.output;
        let written = async {
            let mut sent = 0;
            while sent < output.len() {
                match poll_fn(|context| transport.poll_write(context, &output[sent..])).await? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    more => sent += more,
                }
            }
            poll_fn(|context| transport.poll_flush(context)).await
        };
        tokio::time::timeout(WRITE_TIMEOUT, written)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        self.output.clear();
        Ok(())
    }
}
