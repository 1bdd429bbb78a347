//! Open, begin, end and close.

use super::descriptor;
use super::fields::Fields;
use super::state::Error;
use crate::error::DecodeError;
use crate::types::encode::{self, described_list, null, optional};
use crate::types::{Map, Symbols};

/// Opens a connection (AMQP 2.7.1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Open<'a> {
    /// Who sends it.
    pub container_id: &'a str,
    /// The host the peer thinks it is talking to.
    pub hostname: Option<&'a str>,
    /// Largest frame its sender takes. Always written; absent means 4,294,967,295.
    pub max_frame_size: u32,
    /// Highest channel number; absent means 65,535.
    pub channel_max: u16,
    /// Milliseconds of silence its sender bears; 0 and absent: any.
    pub idle_time_out: Option<u32>,
    /// Locales for text its sender writes.
    pub outgoing_locales: Symbols<'a>,
    /// Locales its sender wants, in falling order.
    pub incoming_locales: Symbols<'a>,
    /// Extensions its sender can do.
    pub offered_capabilities: Symbols<'a>,
    /// Extensions its sender would use.
    pub desired_capabilities: Symbols<'a>,
    /// Anything else.
    pub properties: Option<Map<'a>>,
}

impl Default for Open<'_> {
    fn default() -> Self {
        Self {
            container_id: "",
            hostname: None,
            max_frame_size: u32::MAX,
            channel_max: u16::MAX,
            idle_time_out: None,
            outgoing_locales: Symbols::None,
            incoming_locales: Symbols::None,
            offered_capabilities: Symbols::None,
            desired_capabilities: Symbols::None,
            properties: None,
        }
    }
}

impl<'a> Open<'a> {
    pub(crate) fn read(fields: Fields<'a>) -> Result<Self, DecodeError> {
        let mut fields = fields.of("open");
        let container_id = fields.text()?;
        Ok(Self {
            container_id: fields.must(container_id)?,
            hostname: fields.text()?,
            max_frame_size: fields.uint()?.unwrap_or(u32::MAX),
            channel_max: fields.ushort()?.unwrap_or(u16::MAX),
            idle_time_out: fields.uint()?,
            outgoing_locales: fields.symbols()?,
            incoming_locales: fields.symbols()?,
            offered_capabilities: fields.symbols()?,
            desired_capabilities: fields.symbols()?,
            properties: fields.map()?,
        })
    }

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        described_list(out, descriptor::OPEN, |out| {
            encode::string(out, self.container_id);
            optional(out, self.hostname, encode::string);
            encode::uint(out, self.max_frame_size);
            encode::ushort(out, self.channel_max);
            optional(out, self.idle_time_out, encode::uint);
            encode::symbols(out, self.outgoing_locales);
            encode::symbols(out, self.incoming_locales);
            encode::symbols(out, self.offered_capabilities);
            encode::symbols(out, self.desired_capabilities);
            optional(out, self.properties, encode::map);
            10
        });
    }
}

/// Begins a session, or answers to that (AMQP 2.7.2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Begin<'a> {
    /// In an answer: the channel of the begin it answers.
    pub remote_channel: Option<u16>,
    /// Id of the first transfer its sender will send.
    pub next_outgoing_id: u32,
    /// Transfers its sender takes.
    pub incoming_window: u32,
    /// Transfers its sender means to send.
    pub outgoing_window: u32,
    /// Highest handle its sender takes; absent means 4,294,967,295. Always written.
    pub handle_max: u32,
    /// Extensions its sender can do.
    pub offered_capabilities: Symbols<'a>,
    /// Extensions its sender would use.
    pub desired_capabilities: Symbols<'a>,
    /// Anything else.
    pub properties: Option<Map<'a>>,
}

impl Default for Begin<'_> {
    fn default() -> Self {
        Self {
            remote_channel: None,
            next_outgoing_id: 0,
            incoming_window: 0,
            outgoing_window: 0,
            handle_max: u32::MAX,
            offered_capabilities: Symbols::None,
            desired_capabilities: Symbols::None,
            properties: None,
        }
    }
}

impl<'a> Begin<'a> {
    pub(crate) fn read(fields: Fields<'a>) -> Result<Self, DecodeError> {
        let mut fields = fields.of("begin");
        let remote_channel = fields.ushort()?;
        let next_outgoing_id = fields.uint()?;
        let next_outgoing_id = fields.must(next_outgoing_id)?;
        let incoming_window = fields.uint()?;
        let incoming_window = fields.must(incoming_window)?;
        let outgoing_window = fields.uint()?;
        let outgoing_window = fields.must(outgoing_window)?;
        Ok(Self {
            remote_channel,
            next_outgoing_id,
            incoming_window,
            outgoing_window,
            handle_max: fields.uint()?.unwrap_or(u32::MAX),
            offered_capabilities: fields.symbols()?,
            desired_capabilities: fields.symbols()?,
            properties: fields.map()?,
        })
    }

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        described_list(out, descriptor::BEGIN, |out| {
            optional(out, self.remote_channel, encode::ushort);
            encode::uint(out, self.next_outgoing_id);
            encode::uint(out, self.incoming_window);
            encode::uint(out, self.outgoing_window);
            encode::uint(out, self.handle_max);
            encode::symbols(out, self.offered_capabilities);
            encode::symbols(out, self.desired_capabilities);
            optional(out, self.properties, encode::map);
            8
        });
    }
}

/// Ends a session (AMQP 2.7.8).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct End<'a> {
    /// Why, if it is not in good order.
    pub error: Option<Error<'a>>,
}

impl<'a> End<'a> {
    pub(crate) fn read(fields: Fields<'a>) -> Result<Self, DecodeError> {
        let mut fields = fields.of("end");
        let error = Error::field(&mut fields)?;
        Ok(Self { error })
    }

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        one_error(out, descriptor::END, self.error);
    }
}

/// Closes a connection (AMQP 2.7.9).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Close<'a> {
    /// Why, if it is not in good order.
    pub error: Option<Error<'a>>,
}

impl<'a> Close<'a> {
    pub(crate) fn read(fields: Fields<'a>) -> Result<Self, DecodeError> {
        let mut fields = fields.of("close");
        let error = Error::field(&mut fields)?;
        Ok(Self { error })
    }

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        one_error(out, descriptor::CLOSE, self.error);
    }
}

fn one_error(out: &mut Vec<u8>, descriptor: u8, error: Option<Error<'_>>) {
    described_list(out, descriptor, |out| {
        match error {
            Some(error) => error.encode(out),
            None => null(out),
        }
        1
    });
}
