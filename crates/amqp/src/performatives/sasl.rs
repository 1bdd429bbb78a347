//! Bodies of SASL frames (AMQP 5.3.3).

use super::descriptor;
use super::fields::composite;
use crate::error::DecodeError;
use crate::types::encode::{self, described_list, optional};
use crate::types::{Reader, Symbols};

/// Result of an authentication (AMQP 5.3.3.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SaslCode {
    /// Authenticated.
    Ok = 0,
    /// Wrong credentials.
    Auth = 1,
    /// A fault of the server.
    Sys = 2,
    /// A fault that will not go away.
    SysPerm = 3,
    /// A fault that may go away.
    SysTemp = 4,
}

/// The mechanisms on offer (AMQP 5.3.3.1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SaslMechanisms<'a> {
    /// Their names; always written as an array.
    pub mechanisms: Symbols<'a>,
}

/// The client's choice (AMQP 5.3.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaslInit<'a> {
    /// Name of the mechanism.
    pub mechanism: &'a str,
    /// What the mechanism begins with; a secret, as a rule.
    pub initial_response: Option<&'a [u8]>,
    /// The host the client wants.
    pub hostname: Option<&'a str>,
}

/// Any SASL frame body.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sasl<'a> {
    /// Server: what is on offer.
    Mechanisms(SaslMechanisms<'a>),
    /// Client: the choice.
    Init(SaslInit<'a>),
    /// Server: a question.
    Challenge(&'a [u8]),
    /// Client: the answer.
    Response(&'a [u8]),
    /// Server: the result, with data of the mechanism.
    Outcome(SaslCode, Option<&'a [u8]>),
}

impl<'a> Sasl<'a> {
    /// Reads the body of a SASL frame.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let (code, fields) = composite(&mut reader)?;
        let mut fields = fields.of("sasl frame");
        let sasl = match code {
            descriptor::SASL_MECHANISMS => Self::Mechanisms(SaslMechanisms {
                mechanisms: fields.symbols()?,
            }),
            descriptor::SASL_INIT => {
                let mechanism = fields.text()?;
                Self::Init(SaslInit {
                    mechanism: fields.must(mechanism)?,
                    initial_response: fields.binary()?,
                    hostname: fields.text()?,
                })
            }
            descriptor::SASL_CHALLENGE => {
                let challenge = fields.binary()?;
                Self::Challenge(fields.must(challenge)?)
            }
            descriptor::SASL_RESPONSE => {
                let response = fields.binary()?;
                Self::Response(fields.must(response)?)
            }
            descriptor::SASL_OUTCOME => {
                let code = fields.ubyte()?;
                let code = match fields.must(code)? {
                    0 => SaslCode::Ok,
                    1 => SaslCode::Auth,
                    2 => SaslCode::Sys,
                    3 => SaslCode::SysPerm,
                    4 => SaslCode::SysTemp,
                    _ => return Err(fields.invalid()),
                };
                Self::Outcome(code, fields.binary()?)
            }
            other => return Err(DecodeError::Descriptor(other.into())),
        };
        if reader.is_empty() {
            Ok(sasl)
        } else {
            Err(DecodeError::Size)
        }
    }

    /// The descriptor's code.
    #[must_use]
    pub fn code(&self) -> u8 {
        match self {
            Self::Mechanisms(_) => descriptor::SASL_MECHANISMS,
            Self::Init(_) => descriptor::SASL_INIT,
            Self::Challenge(_) => descriptor::SASL_CHALLENGE,
            Self::Response(_) => descriptor::SASL_RESPONSE,
            Self::Outcome(..) => descriptor::SASL_OUTCOME,
        }
    }

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        described_list(out, self.code(), |out| match self {
            Self::Mechanisms(offer) => {
                encode::symbols(out, offer.mechanisms);
                1
            }
            Self::Init(init) => {
                encode::symbol(out, init.mechanism);
                optional(out, init.initial_response, encode::binary);
                optional(out, init.hostname, encode::string);
                3
            }
            Self::Challenge(bytes) | Self::Response(bytes) => {
                encode::binary(out, bytes);
                1
            }
            Self::Outcome(code, data) => {
                encode::ubyte(out, *code as u8);
                optional(out, *data, encode::binary);
                2
            }
        });
    }
}
