//! A connection to a broker.

use holdfast_mqtt::codec::{self, ConnectCode, PacketId};
use holdfast_mqtt::v5::{self, Property};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::config::Version;
use crate::endpoints::socket::{Address, Socket, told};

/// Largest packet taken from a broker, which has nothing but acknowledgements for us.
const PACKET_MAX: usize = 64 << 10;
/// Silence after which a broker may hang up. Resting connections are closed before.
const KEEP_ALIVE_SECONDS: u16 = 300;

/// What a broker said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// It has taken the message with this identifier.
    Taken(u16),
    /// It will never take it.
    Refused(u16, String),
    /// It does not take it now.
    Busy(u16, String),
    /// The answer to a ping.
    Pong,
}

/// Who connects.
pub(super) struct Account<'a> {
    pub(super) version: Version,
    pub(super) client_id: &'a str,
    pub(super) username: Option<&'a str>,
    pub(super) password: Option<&'a str>,
}

/// An open connection.
pub(super) struct Client {
    socket: Box<dyn Socket>,
    version: Version,
    input: Vec<u8>,
    /// Most messages that the broker lets wait.
    pub(super) receive_max: u16,
    /// Largest packet that it takes.
    pub(super) packet_max: usize,
    /// Whether it takes QoS 1.
    pub(super) takes_qos1: bool,
    /// Whether it takes retained messages.
    pub(super) takes_retained: bool,
}

/// One packet of a broker's.
enum Heard {
    Connected,
    Answer(Answer),
    Other,
}

impl Client {
    /// Connects and logs in.
    ///
    /// # Errors
    /// Which step failed, and what the broker said.
    pub(super) async fn connect(place: &Address, account: &Account<'_>) -> Result<Client, String> {
        let opening = async {
            let mut client = Client {
                socket: place.connect().await?,
                version: account.version,
                input: Vec::new(),
                receive_max: u16::MAX,
                packet_max: usize::MAX,
                takes_qos1: true,
                takes_retained: true,
            };
            let mut out = Vec::new();
            write_connect(account, &mut out)?;
            client.write(&out).await?;
            while !matches!(client.hear().await?, Heard::Connected) {}
            Ok(client)
        };
        match tokio::time::timeout(place.timeout, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(format!(
                "{}:{} did not accept the connection within {} s",
                place.host,
                place.port,
                place.timeout.as_secs_f64()
            )),
        }
    }

    /// Sends packets that are encoded.
    ///
    /// # Errors
    /// The connection broke.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), String> {
        let written = self.socket.write_all(bytes).await;
        written.map_err(|error| format!("the connection broke: {error}"))
    }

    /// Sends a ping.
    ///
    /// # Errors
    /// The connection broke.
    pub(super) async fn ping(&mut self) -> Result<(), String> {
        // The same in both versions (MQTT 3.12).
        self.write(&[0xc0, 0]).await
    }

    /// Waits for what the broker says next.
    ///
    /// # Errors
    /// The connection broke or the broker ended it.
    pub(super) async fn answer(&mut self) -> Result<Answer, String> {
        loop {
            if let Heard::Answer(answer) = self.hear().await? {
                return Ok(answer);
            }
        }
    }

    /// Says good-bye.
    pub(super) async fn close(mut self) {
        let _ = self.write(&[0xe0, 0]).await;
        let _ = self.socket.shutdown().await;
    }

    async fn hear(&mut self) -> Result<Heard, String> {
        loop {
            let bytes = std::mem::take(&mut self.input);
            let heard = match self.version {
                Version::V3 => hear_v3(&bytes),
                Version::V5 => self.hear_v5(&bytes),
            }?;
            self.input = bytes;
            if let Some((heard, length)) = heard {
                self.input.drain(..length);
                return Ok(heard);
            }
            match self.socket.read_buf(&mut self.input).await {
                Ok(0) => return Err("the broker closed the connection".to_owned()),
                Ok(_) => {}
                Err(error) => return Err(format!("the connection broke: {error}")),
            }
        }
    }

    fn hear_v5(&mut self, bytes: &[u8]) -> Result<Option<(Heard, usize)>, String> {
        let decoded = v5::decode(bytes, PACKET_MAX);
        let Some((packet, length)) =
            decoded.map_err(|error| format!("the broker broke the protocol: {error}"))?
        else {
            return Ok(None);
        };
        let heard = match packet {
            v5::Packet::ConnAck(connack) if connack.reason.is_error() => {
                return Err(format!(
                    "the broker refused the connection: reason {:#04x} {}",
                    connack.reason.0,
                    said(connack.properties)
                ));
            }
            v5::Packet::ConnAck(connack) => {
                for property in connack.properties.iter() {
                    match property {
                        Property::ReceiveMaximum(most) => self.receive_max = most,
                        Property::MaximumPacketSize(most) => self.packet_max = most as usize,
                        Property::MaximumQos(qos1) => self.takes_qos1 = qos1,
                        Property::RetainAvailable(retained) => self.takes_retained = retained,
                        _ => {}
                    }
                }
                Heard::Connected
            }
            v5::Packet::PubAck(ack) => {
                let id = ack.packet_id.get();
                let text = format!(
                    "the broker answered reason {:#04x} {}",
                    ack.reason.0,
                    said(ack.properties)
                );
                Heard::Answer(match ack.reason.0 {
                    ..0x80 => Answer::Taken(id),
                    // Topic name invalid, packet too large, payload format invalid: they speak of the message.
                    0x90 | 0x95 | 0x99 => Answer::Refused(id, text),
                    _ => Answer::Busy(id, text),
                })
            }
            v5::Packet::PingResp => Heard::Answer(Answer::Pong),
            v5::Packet::Disconnect(disconnect) => {
                return Err(format!(
                    "the broker ended the connection: reason {:#04x} {}",
                    disconnect.reason.0,
                    said(disconnect.properties)
                ));
            }
            _ => Heard::Other,
        };
        Ok(Some((heard, length)))
    }
}

fn hear_v3(bytes: &[u8]) -> Result<Option<(Heard, usize)>, String> {
    let decoded = codec::decode(bytes, PACKET_MAX);
    let Some((packet, length)) =
        decoded.map_err(|error| format!("the broker broke the protocol: {error}"))?
    else {
        return Ok(None);
    };
    let heard = match packet {
        codec::Packet::ConnAck(connack) if connack.code == ConnectCode::Accepted => Heard::Connected,
        codec::Packet::ConnAck(connack) => {
            return Err(format!("the broker refused the connection: {:?}", connack.code));
        }
        codec::Packet::PubAck(id) => Heard::Answer(Answer::Taken(id.get())),
        codec::Packet::PingResp => Heard::Answer(Answer::Pong),
        _ => Heard::Other,
    };
    Ok(Some((heard, length)))
}

fn write_connect(account: &Account<'_>, out: &mut Vec<u8>) -> Result<(), String> {
    let password = account.password.map(str::as_bytes);
    let written = match account.version {
        Version::V3 => codec::encode_connect(
            out,
            &codec::Connect {
                client_id: account.client_id,
                clean_session: true,
                keep_alive: KEEP_ALIVE_SECONDS,
                username: account.username,
                password,
                will: None,
            },
        ),
        Version::V5 => v5::Packet::Connect(v5::Connect {
            client_id: account.client_id,
            clean_start: true,
            keep_alive: KEEP_ALIVE_SECONDS,
            username: account.username,
            password,
            ..v5::Connect::default()
        })
        .encode(out),
    };
    written.map_err(|error| format!("CONNECT: {error}"))
}

fn said(properties: v5::Properties<'_>) -> String {
    let reason = properties.iter().find_map(|property| match property {
        Property::ReasonString(text) => Some(told(text)),
        _ => None,
    });
    reason.unwrap_or_default()
}

/// The identifier of the message at this place of a batch, which has fewer messages than there are identifiers.
pub(super) fn packet_id(at: usize) -> Option<PacketId> {
    PacketId::new(u16::try_from(at + 1).ok()?)
}
