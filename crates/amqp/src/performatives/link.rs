//! Attach, flow, transfer, disposition and detach.

use super::descriptor;
use super::fields::Fields;
use super::state::{DeliveryState, Error};
use super::terminus::{Source, Target};
use crate::error::DecodeError;
use crate::types::encode::{self, described_list, null, optional};
use crate::types::{Map, Symbols};

/// Which end of a link (AMQP 2.8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The end messages come from.
    Sender,
    /// The end messages go to.
    Receiver,
}

impl Role {
    /// The other end.
    #[must_use]
    pub fn peer(self) -> Self {
        match self {
            Self::Sender => Self::Receiver,
            Self::Receiver => Self::Sender,
        }
    }

    fn field(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        let receiver = fields.boolean()?;
        Ok(if fields.must(receiver)? {
            Self::Receiver
        } else {
            Self::Sender
        })
    }

    fn encode(self, out: &mut Vec<u8>) {
        encode::boolean(out, self == Self::Receiver);
    }
}

/// How a sender settles (AMQP 2.8.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum SenderSettleMode {
    /// All deliveries go out unsettled.
    Unsettled = 0,
    /// All go out settled.
    Settled = 1,
    /// As the sender likes.
    #[default]
    Mixed = 2,
}

/// When a receiver settles (AMQP 2.8.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum ReceiverSettleMode {
    /// By itself.
    #[default]
    First = 0,
    /// After the sender.
    Second = 1,
}

impl SenderSettleMode {
    fn field(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok(match fields.ubyte()? {
            Some(0) => Self::Unsettled,
            Some(1) => Self::Settled,
            Some(2) | None => Self::Mixed,
            Some(_) => return Err(fields.invalid()),
        })
    }
}

impl ReceiverSettleMode {
    fn field(fields: &mut Fields<'_>) -> Result<Option<Self>, DecodeError> {
        Ok(match fields.ubyte()? {
            Some(0) => Some(Self::First),
            Some(1) => Some(Self::Second),
            None => None,
            Some(_) => return Err(fields.invalid()),
        })
    }
}

/// Attaches a link (AMQP 2.7.3).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attach<'a> {
    /// Name of the link.
    pub name: &'a str,
    /// Number of the link at its sender.
    pub handle: u32,
    /// Role of its sender.
    pub role: Role,
    /// Settlement by the sending end.
    pub snd_settle_mode: SenderSettleMode,
    /// Settlement by the receiving end.
    pub rcv_settle_mode: ReceiverSettleMode,
    /// Where messages come from.
    pub source: Option<Source<'a>>,
    /// Where they go.
    pub target: Option<Target<'a>>,
    /// Unsettled deliveries of a link that is resumed.
    pub unsettled: Option<Map<'a>>,
    /// Whether `unsettled` leaves any out.
    pub incomplete_unsettled: bool,
    /// Mandatory from a sender.
    pub initial_delivery_count: Option<u32>,
    /// Largest message its sender takes; 0 and absent: any.
    pub max_message_size: Option<u64>,
    /// Extensions its sender can do.
    pub offered_capabilities: Symbols<'a>,
    /// Extensions its sender would use.
    pub desired_capabilities: Symbols<'a>,
    /// Anything else.
    pub properties: Option<Map<'a>>,
}

impl<'a> Attach<'a> {
    /// A link of this name seen from this role, all else at its default.
    #[must_use]
    pub fn new(name: &'a str, role: Role) -> Self {
        Self {
            name,
            handle: 0,
            role,
            snd_settle_mode: SenderSettleMode::Mixed,
            rcv_settle_mode: ReceiverSettleMode::First,
            source: None,
            target: None,
            unsettled: None,
            incomplete_unsettled: false,
            initial_delivery_count: None,
            max_message_size: None,
            offered_capabilities: Symbols::None,
            desired_capabilities: Symbols::None,
            properties: None,
        }
    }

    /// A sender to `target`.
    #[must_use]
    pub fn sender(name: &'a str, target: &'a str) -> Self {
        Self {
            source: Some(Source::default()),
            target: Some(Target::new(target)),
            ..Self::new(name, Role::Sender)
        }
    }

    /// A receiver from `source`.
    #[must_use]
    pub fn receiver(name: &'a str, source: &'a str) -> Self {
        Self {
            source: Some(Source::new(source)),
            target: Some(Target::default()),
            ..Self::new(name, Role::Receiver)
        }
    }

    /// The answer that agrees: other role, termini and settle modes as asked.
    #[must_use]
    pub fn agree(&self) -> Self {
        Self {
            snd_settle_mode: self.snd_settle_mode,
            rcv_settle_mode: self.rcv_settle_mode,
            source: self.source,
            target: self.target,
            ..Self::new(self.name, self.role.peer())
        }
    }

    pub(crate) fn read(fields: Fields<'a>) -> Result<Self, DecodeError> {
        let mut fields = fields.of("attach");
        let name = fields.text()?;
        let name = fields.must(name)?;
        let handle = fields.uint()?;
        let handle = fields.must(handle)?;
        let role = Role::field(&mut fields)?;
        Ok(Self {
            name,
            handle,
            role,
            snd_settle_mode: SenderSettleMode::field(&mut fields)?,
            rcv_settle_mode: ReceiverSettleMode::field(&mut fields)?.unwrap_or_default(),
            source: Source::field(&mut fields)?,
            target: Target::field(&mut fields)?,
            unsettled: fields.map()?,
            incomplete_unsettled: fields.boolean()?.unwrap_or(false),
            initial_delivery_count: fields.uint()?,
            max_message_size: fields.ulong()?,
            offered_capabilities: fields.symbols()?,
            desired_capabilities: fields.symbols()?,
            properties: fields.map()?,
        })
    }

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        described_list(out, descriptor::ATTACH, |out| {
            encode::string(out, self.name);
            encode::uint(out, self.handle);
            self.role.encode(out);
            encode::ubyte(out, self.snd_settle_mode as u8);
            encode::ubyte(out, self.rcv_settle_mode as u8);
            match &self.source {
                Some(source) => source.encode(out),
                None => null(out),
            }
            match &self.target {
                Some(target) => target.encode(out),
                None => null(out),
            }
            optional(out, self.unsettled, encode::map);
            encode::boolean(out, self.incomplete_unsettled);
            optional(out, self.initial_delivery_count, encode::uint);
            optional(out, self.max_message_size, encode::ulong);
            encode::symbols(out, self.offered_capabilities);
            encode::symbols(out, self.desired_capabilities);
            optional(out, self.properties, encode::map);
            14
        });
    }
}

/// Updates flow state (AMQP 2.7.4).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Flow<'a> {
    /// Id of the transfer its sender awaits next; absent before it saw our begin.
    pub next_incoming_id: Option<u32>,
    /// Transfers its sender takes.
    pub incoming_window: u32,
    /// Id of the next transfer it will send.
    pub next_outgoing_id: u32,
    /// Transfers it means to send.
    pub outgoing_window: u32,
    /// The link meant; absent: the session alone.
    pub handle: Option<u32>,
    /// Deliveries begun on the link so far.
    pub delivery_count: Option<u32>,
    /// Deliveries the receiver takes on top of `delivery_count`.
    pub link_credit: Option<u32>,
    /// Messages waiting at the sender.
    pub available: Option<u32>,
    /// Use up the credit, or give it back.
    pub drain: bool,
    /// Answer with the own flow state.
    pub echo: bool,
    /// Anything else.
    pub properties: Option<Map<'a>>,
}

impl<'a> Flow<'a> {
    pub(crate) fn read(fields: Fields<'a>) -> Result<Self, DecodeError> {
        let mut fields = fields.of("flow");
        let next_incoming_id = fields.uint()?;
        let incoming_window = fields.uint()?;
        let incoming_window = fields.must(incoming_window)?;
        let next_outgoing_id = fields.uint()?;
        let next_outgoing_id = fields.must(next_outgoing_id)?;
        let outgoing_window = fields.uint()?;
        let outgoing_window = fields.must(outgoing_window)?;
        Ok(Self {
            next_incoming_id,
            incoming_window,
            next_outgoing_id,
            outgoing_window,
            handle: fields.uint()?,
            delivery_count: fields.uint()?,
            link_credit: fields.uint()?,
            available: fields.uint()?,
            drain: fields.boolean()?.unwrap_or(false),
            echo: fields.boolean()?.unwrap_or(false),
            properties: fields.map()?,
        })
    }

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        described_list(out, descriptor::FLOW, |out| {
            optional(out, self.next_incoming_id, encode::uint);
            encode::uint(out, self.incoming_window);
            encode::uint(out, self.next_outgoing_id);
            encode::uint(out, self.outgoing_window);
            optional(out, self.handle, encode::uint);
            optional(out, self.delivery_count, encode::uint);
            optional(out, self.link_credit, encode::uint);
            optional(out, self.available, encode::uint);
            encode::boolean(out, self.drain);
            encode::boolean(out, self.echo);
            optional(out, self.properties, encode::map);
            11
        });
    }
}

/// Carries a message or a part of one (AMQP 2.7.5); the payload follows it in the frame.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Transfer<'a> {
    /// The link.
    pub handle: u32,
    /// Mandatory in the first transfer of a delivery.
    pub delivery_id: Option<u32>,
    /// Mandatory in the first transfer of a delivery.
    pub delivery_tag: Option<&'a [u8]>,
    /// Mandatory in the first transfer of a delivery.
    pub message_format: Option<u32>,
    /// Whether the sender settled; absent means no, and in later transfers as before.
    pub settled: Option<bool>,
    /// Whether the message goes on.
    pub more: bool,
    /// Settle mode for this delivery alone.
    pub rcv_settle_mode: Option<ReceiverSettleMode>,
    /// State at the sender.
    pub state: Option<DeliveryState<'a>>,
    /// Whether it was sent before on a link that was resumed.
    pub resume: bool,
    /// Forget what came of this delivery.
    pub aborted: bool,
    /// The receiver need not hurry with its disposition.
    pub batchable: bool,
}

impl<'a> Transfer<'a> {
    #[inline]
    pub(crate) fn read(fields: Fields<'a>) -> Result<Self, DecodeError> {
        let mut fields = fields.of("transfer");
        let handle = fields.uint()?;
        Ok(Self {
            handle: fields.must(handle)?,
            delivery_id: fields.uint()?,
            delivery_tag: fields.binary()?,
            message_format: fields.uint()?,
            settled: fields.boolean()?,
            more: fields.boolean()?.unwrap_or(false),
            rcv_settle_mode: ReceiverSettleMode::field(&mut fields)?,
            state: DeliveryState::field(&mut fields)?,
            resume: fields.boolean()?.unwrap_or(false),
            aborted: fields.boolean()?.unwrap_or(false),
            batchable: fields.boolean()?.unwrap_or(false),
        })
    }

    /// Appends it.
    #[inline]
    pub fn encode(&self, out: &mut Vec<u8>) {
        described_list(out, descriptor::TRANSFER, |out| {
            encode::uint(out, self.handle);
            optional(out, self.delivery_id, encode::uint);
            optional(out, self.delivery_tag, encode::binary);
            optional(out, self.message_format, encode::uint);
            optional(out, self.settled, encode::boolean);
            encode::boolean(out, self.more);
            optional(out, self.rcv_settle_mode.map(|mode| mode as u8), encode::ubyte);
            match &self.state {
                Some(state) => state.encode(out),
                None => null(out),
            }
            encode::boolean(out, self.resume);
            encode::boolean(out, self.aborted);
            encode::boolean(out, self.batchable);
            11
        });
    }
}

/// What a receiver needs of a [`Transfer`]. The machine's way in: small enough for registers, while a whole transfer goes
/// through memory, which shows.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Arriving<'a> {
    pub(crate) handle: u32,
    pub(crate) delivery_id: Option<u32>,
    pub(crate) delivery_tag: Option<&'a [u8]>,
    pub(crate) message_format: Option<u32>,
    pub(crate) settled: Option<bool>,
    pub(crate) more: bool,
    pub(crate) aborted: bool,
}

impl<'a> Arriving<'a> {
    /// Reads a transfer, with the checks of [`Transfer::read`].
    #[inline]
    pub(crate) fn read(fields: Fields<'a>) -> Result<Self, DecodeError> {
        let mut fields = fields.of("transfer");
        let handle = fields.uint()?;
        let handle = fields.must(handle)?;
        let delivery_id = fields.uint()?;
        let delivery_tag = fields.binary()?;
        let message_format = fields.uint()?;
        let settled = fields.boolean()?;
        let more = fields.boolean()?.unwrap_or(false);
        ReceiverSettleMode::field(&mut fields)?;
        if !fields.skip_null() {
            DeliveryState::field(&mut fields)?;
        }
        fields.boolean()?;
        let aborted = fields.boolean()?.unwrap_or(false);
        fields.boolean()?;
        Ok(Self {
            handle,
            delivery_id,
            delivery_tag,
            message_format,
            settled,
            more,
            aborted,
        })
    }
}

/// Tells of state and settlement of deliveries (AMQP 2.7.6).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Disposition<'a> {
    /// Role of its sender: whose deliveries are meant.
    pub role: Role,
    /// First delivery meant.
    pub first: u32,
    /// Last delivery meant; absent: `first`.
    pub last: Option<u32>,
    /// Whether its sender settled.
    pub settled: bool,
    /// State at its sender.
    pub state: Option<DeliveryState<'a>>,
    /// No hurry to answer.
    pub batchable: bool,
}

impl<'a> Disposition<'a> {
    pub(crate) fn read(fields: Fields<'a>) -> Result<Self, DecodeError> {
        let mut fields = fields.of("disposition");
        let role = Role::field(&mut fields)?;
        let first = fields.uint()?;
        let first = fields.must(first)?;
        Ok(Self {
            role,
            first,
            last: fields.uint()?,
            settled: fields.boolean()?.unwrap_or(false),
            state: DeliveryState::field(&mut fields)?,
            batchable: fields.boolean()?.unwrap_or(false),
        })
    }

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        described_list(out, descriptor::DISPOSITION, |out| {
            self.role.encode(out);
            encode::uint(out, self.first);
            optional(out, self.last, encode::uint);
            encode::boolean(out, self.settled);
            match &self.state {
                Some(state) => state.encode(out),
                None => null(out),
            }
            encode::boolean(out, self.batchable);
            6
        });
    }
}

/// Detaches a link (AMQP 2.7.7).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Detach<'a> {
    /// The link.
    pub handle: u32,
    /// Whether it is gone for good.
    pub closed: bool,
    /// Why, if it is not in good order.
    pub error: Option<Error<'a>>,
}

impl<'a> Detach<'a> {
    pub(crate) fn read(fields: Fields<'a>) -> Result<Self, DecodeError> {
        let mut fields = fields.of("detach");
        let handle = fields.uint()?;
        Ok(Self {
            handle: fields.must(handle)?,
            closed: fields.boolean()?.unwrap_or(false),
            error: Error::field(&mut fields)?,
        })
    }

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        described_list(out, descriptor::DETACH, |out| {
            encode::uint(out, self.handle);
            encode::boolean(out, self.closed);
            match &self.error {
                Some(error) => error.encode(out),
                None => null(out),
            }
            3
        });
    }
}
