//! The nine performatives (AMQP 2.7), SASL frame bodies (AMQP 5.3), termini and delivery states (AMQP 2.8, 3.4, 3.5).
//!
//! All are views of the frame they were read from, and `Copy`. Writing always puts every field there is, trailing nulls
//! included, and never a `list0`: azure-eventhub for Python takes fields by their position.

mod fields;
mod link;
mod sasl;
mod state;
mod terminus;
#[cfg(test)]
mod tests;
mod transport;

pub(crate) use fields::{Fields, composite};
pub(crate) use link::Arriving;
pub use link::{Attach, Detach, Disposition, Flow, ReceiverSettleMode, Role, SenderSettleMode, Transfer};
pub use sasl::{Sasl, SaslCode, SaslInit, SaslMechanisms};
pub use state::{DeliveryState, Error, condition};
pub use terminus::{Durability, ExpiryPolicy, SELECTOR_FILTER, Source, Target, selector_filter};
pub use transport::{Begin, Close, End, Open};

use crate::error::DecodeError;
use crate::types::Reader;

/// Descriptor codes of the performatives and SASL frame bodies.
pub mod descriptor {
    /// `amqp:open:list`
    pub const OPEN: u8 = 0x10;
    /// `amqp:begin:list`
    pub const BEGIN: u8 = 0x11;
    /// `amqp:attach:list`
    pub const ATTACH: u8 = 0x12;
    /// `amqp:flow:list`
    pub const FLOW: u8 = 0x13;
    /// `amqp:transfer:list`
    pub const TRANSFER: u8 = 0x14;
    /// `amqp:disposition:list`
    pub const DISPOSITION: u8 = 0x15;
    /// `amqp:detach:list`
    pub const DETACH: u8 = 0x16;
    /// `amqp:end:list`
    pub const END: u8 = 0x17;
    /// `amqp:close:list`
    pub const CLOSE: u8 = 0x18;
    /// `amqp:error:list`
    pub const ERROR: u8 = 0x1d;
    /// `amqp:received:list`
    pub const RECEIVED: u8 = 0x23;
    /// `amqp:accepted:list`
    pub const ACCEPTED: u8 = 0x24;
    /// `amqp:rejected:list`
    pub const REJECTED: u8 = 0x25;
    /// `amqp:released:list`
    pub const RELEASED: u8 = 0x26;
    /// `amqp:modified:list`
    pub const MODIFIED: u8 = 0x27;
    /// `amqp:source:list`
    pub const SOURCE: u8 = 0x28;
    /// `amqp:target:list`
    pub const TARGET: u8 = 0x29;
    /// `amqp:coordinator:list`, a target for transactions.
    pub const COORDINATOR: u8 = 0x30;
    /// `amqp:sasl-mechanisms:list`
    pub const SASL_MECHANISMS: u8 = 0x40;
    /// `amqp:sasl-init:list`
    pub const SASL_INIT: u8 = 0x41;
    /// `amqp:sasl-challenge:list`
    pub const SASL_CHALLENGE: u8 = 0x42;
    /// `amqp:sasl-response:list`
    pub const SASL_RESPONSE: u8 = 0x43;
    /// `amqp:sasl-outcome:list`
    pub const SASL_OUTCOME: u8 = 0x44;
}

/// Any performative.
#[derive(Debug, Clone, PartialEq)]
pub enum Performative<'a> {
    /// Opens the connection.
    Open(Box<Open<'a>>),
    /// Begins a session.
    Begin(Begin<'a>),
    /// Attaches a link.
    Attach(Box<Attach<'a>>),
    /// Updates session and link flow state.
    Flow(Flow<'a>),
    /// Carries a message, or a part of one.
    Transfer(Transfer<'a>),
    /// Tells of outcomes and settlement.
    Disposition(Disposition<'a>),
    /// Detaches a link.
    Detach(Detach<'a>),
    /// Ends a session.
    End(End<'a>),
    /// Closes the connection.
    Close(Close<'a>),
}

impl<'a> Performative<'a> {
    /// Reads the performative at the head of an AMQP frame's body. The rest of the body, empty but for a transfer, is the
    /// payload.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(body: &'a [u8]) -> Result<(Self, &'a [u8]), DecodeError> {
        let mut reader = Reader::new(body);
        let (code, fields) = composite(&mut reader)?;
        let performative = match code {
            descriptor::OPEN => Self::Open(Box::new(Open::read(fields)?)),
            descriptor::BEGIN => Self::Begin(Begin::read(fields)?),
            descriptor::ATTACH => Self::Attach(Box::new(Attach::read(fields)?)),
            descriptor::FLOW => Self::Flow(Flow::read(fields)?),
            descriptor::TRANSFER => Self::Transfer(Transfer::read(fields)?),
            descriptor::DISPOSITION => Self::Disposition(Disposition::read(fields)?),
            descriptor::DETACH => Self::Detach(Detach::read(fields)?),
            descriptor::END => Self::End(End::read(fields)?),
            descriptor::CLOSE => Self::Close(Close::read(fields)?),
            other => return Err(DecodeError::Descriptor(other.into())),
        };
        Ok((performative, reader.rest()))
    }

    /// Appends the performative.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Open(open) => open.encode(out),
            Self::Begin(begin) => begin.encode(out),
            Self::Attach(attach) => attach.encode(out),
            Self::Flow(flow) => flow.encode(out),
            Self::Transfer(transfer) => transfer.encode(out),
            Self::Disposition(disposition) => disposition.encode(out),
            Self::Detach(detach) => detach.encode(out),
            Self::End(end) => end.encode(out),
            Self::Close(close) => close.encode(out),
        }
    }
}
