//! Protocol headers and the SASL layer (AMQP 2.2, 5.3).

use super::{Connection, Event, Phase, Side};
use crate::error::{ConnectionError, DecodeError};
use crate::frame::{self, FrameType, HEADER_LEN, Protocol};
use crate::performatives::{Open, Sasl, SaslCode, SaslInit, SaslMechanisms, composite, descriptor};
use crate::types::{Reader, Symbols};

impl Connection {
    /// Reads a protocol header. Returns false if it is not all there.
    pub(super) fn read_header(
        &mut self,
        input: &mut &[u8],
        out: &mut Vec<u8>,
    ) -> Result<bool, ConnectionError> {
        let Some(header) = input.first_chunk::<HEADER_LEN>() else {
            // Whoever does not begin like AMQP need not be waited for.
            let known = input.len().min(4);
            if input[..known] == Protocol::Amqp.header()[..known] {
                return Ok(false);
            }
            return Err(self.wrong_header(out));
        };
        let wanted = match (self.phase, Protocol::from_header(*header)) {
            (Phase::FirstHeader, Some(Protocol::Sasl)) if !self.config.mechanisms.is_empty() => {
                self.offer_mechanisms(out);
                Phase::SaslInit
            }
            (Phase::FirstHeader, Some(Protocol::Amqp)) => {
                self.send_header(out);
                Phase::Open
            }
            (Phase::AmqpHeader, Some(Protocol::Amqp)) => {
                if self.side == Side::Server {
                    self.send_header(out);
                }
                Phase::Open
            }
            (Phase::SaslHeader, Some(Protocol::Sasl)) => Phase::SaslMechanisms,
            _ => return Err(self.wrong_header(out)),
        };
        *input = &input[HEADER_LEN..];
        self.phase = wanted;
        Ok(true)
    }

    /// A server answers with a header it does know (AMQP 2.2).
    fn wrong_header(&mut self, out: &mut Vec<u8>) -> ConnectionError {
        if self.side == Side::Server {
            out.extend_from_slice(&Protocol::Amqp.header());
        }
        self.header_sent = false;
        ConnectionError::Header
    }

    fn offer_mechanisms(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&Protocol::Sasl.header());
        let mechanisms = Symbols::Slice(self.config.mechanisms);
        put_sasl(out, &Sasl::Mechanisms(SaslMechanisms { mechanisms }));
    }

    pub(super) fn on_sasl<'a>(
        &mut self,
        body: &'a [u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Event<'a>>, ConnectionError> {
        let sasl = Sasl::decode(body)?;
        let (phase, event) = match (self.phase, sasl) {
            (Phase::SaslInit, Sasl::Init(init)) => (Phase::SaslHeld, Event::SaslInit(init)),
            (Phase::SaslResponse, Sasl::Response(bytes)) => (Phase::SaslHeld, Event::SaslResponse(bytes)),
            (Phase::SaslMechanisms, Sasl::Mechanisms(offer)) => {
                (Phase::SaslHeld, Event::SaslMechanisms(offer))
            }
            (Phase::SaslOutcome, Sasl::Challenge(bytes)) => (Phase::SaslHeld, Event::SaslChallenge(bytes)),
            (Phase::SaslOutcome, Sasl::Outcome(SaslCode::Ok, _)) => {
                self.send_header(out);
                (Phase::AmqpHeader, Event::SaslOutcome(SaslCode::Ok))
            }
            (Phase::SaslOutcome, Sasl::Outcome(code, _)) => (Phase::Closed, Event::SaslOutcome(code)),
            (_, sasl) => return Err(ConnectionError::OutOfOrder(sasl.code())),
        };
        self.phase = phase;
        Ok(Some(event))
    }

    /// Server: asks the client on. Does nothing unless an answer of the caller is due.
    pub fn sasl_challenge(&mut self, challenge: &[u8], out: &mut Vec<u8>) {
        if self.phase == Phase::SaslHeld && self.side == Side::Server {
            put_sasl(out, &Sasl::Challenge(challenge));
            self.phase = Phase::SaslResponse;
        }
    }

    /// Server: ends the exchange. After anything but `Ok`, write `out` and close the socket. Does nothing unless an answer
    /// of the caller is due.
    pub fn sasl_outcome(&mut self, code: SaslCode, out: &mut Vec<u8>) {
        if self.phase == Phase::SaslHeld && self.side == Side::Server {
            put_sasl(out, &Sasl::Outcome(code, None));
            self.phase = if code == SaslCode::Ok {
                Phase::AmqpHeader
            } else {
                Phase::Closed
            };
        }
    }

    /// Client: chooses a mechanism. Does nothing unless an answer of the caller is due.
    pub fn sasl_init(&mut self, init: &SaslInit<'_>, out: &mut Vec<u8>) {
        if self.phase == Phase::SaslHeld && self.side == Side::Client {
            put_sasl(out, &Sasl::Init(*init));
            self.phase = Phase::SaslOutcome;
        }
    }

    /// Client: answers a challenge. Does nothing unless an answer of the caller is due.
    pub fn sasl_response(&mut self, response: &[u8], out: &mut Vec<u8>) {
        if self.phase == Phase::SaslHeld && self.side == Side::Client {
            put_sasl(out, &Sasl::Response(response));
            self.phase = Phase::SaslOutcome;
        }
    }

    /// Reads the first frame after the header, which must be open (AMQP 2.4.1). Heartbeats are let pass.
    pub(super) fn on_open_frame<'a>(
        &mut self,
        body: &'a [u8],
        now: u64,
    ) -> Result<Option<Event<'a>>, ConnectionError> {
        if body.is_empty() {
            return Ok(None);
        }
        let (code, fields) = composite(&mut Reader::new(body))?;
        if code != descriptor::OPEN {
            return Err(match code {
                descriptor::BEGIN..=descriptor::CLOSE => ConnectionError::OutOfOrder(code),
                other => ConnectionError::Decode(DecodeError::Descriptor(other.into())),
            });
        }
        let open = Open::read(fields)?;
        if open.max_frame_size < frame::MIN_MAX_FRAME_SIZE {
            return Err(ConnectionError::FrameSizeTooSmall(open.max_frame_size));
        }
        self.peer_max_frame = open.max_frame_size;
        self.peer_channel_max = open.channel_max;
        self.peer_idle_ms = open.idle_time_out.unwrap_or(0);
        self.heard_ms = now;
        self.ticked_ms = now;
        self.phase = if self.open_sent {
            Phase::Opened
        } else {
            Phase::OpenHeld
        };
        Ok(Some(Event::Open(Box::new(open))))
    }
}

fn put_sasl(out: &mut Vec<u8>, sasl: &Sasl<'_>) {
    frame::encode(out, FrameType::Sasl, 0, |out| sasl.encode(out));
}
