//! Sources and targets (AMQP 3.5.3, 3.5.4).

use super::descriptor;
use super::fields::Fields;
use super::state::DeliveryState;
use crate::error::DecodeError;
use crate::types::encode::{self, described_list, null, optional};
use crate::types::{DescribedBuf, Map, MapBuf, Symbols, Value};

/// Name and symbolic descriptor of the selector filter.
pub const SELECTOR_FILTER: &str = "apache.org:selector-filter:string";

/// What of a terminus outlives its link (AMQP 3.5.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Durability {
    /// Nothing.
    #[default]
    None = 0,
    /// That it exists.
    Configuration = 1,
    /// Its unsettled deliveries too.
    UnsettledState = 2,
}

/// When a terminus begins to expire (AMQP 3.5.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExpiryPolicy {
    /// With the link.
    LinkDetach,
    /// With the session.
    #[default]
    SessionEnd,
    /// With the connection.
    ConnectionClose,
    /// Never.
    Never,
}

impl Durability {
    fn field(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok(match fields.uint()? {
            None | Some(0) => Self::None,
            Some(1) => Self::Configuration,
            Some(2) => Self::UnsettledState,
            Some(_) => return Err(fields.invalid()),
        })
    }
}

impl ExpiryPolicy {
    fn name(self) -> &'static str {
        match self {
            Self::LinkDetach => "link-detach",
            Self::SessionEnd => "session-end",
            Self::ConnectionClose => "connection-close",
            Self::Never => "never",
        }
    }

    fn field(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Ok(match fields.text()? {
            Some("link-detach") => Self::LinkDetach,
            None | Some("session-end") => Self::SessionEnd,
            Some("connection-close") => Self::ConnectionClose,
            Some("never") => Self::Never,
            Some(_) => return Err(fields.invalid()),
        })
    }
}

/// Where messages come from (AMQP 3.5.3).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Source<'a> {
    /// The node; strings only.
    pub address: Option<&'a str>,
    /// What outlives the link.
    pub durable: Durability,
    /// When it expires.
    pub expiry_policy: ExpiryPolicy,
    /// Seconds it takes to expire.
    pub timeout: u32,
    /// Make a node for this link.
    pub dynamic: bool,
    /// Properties of that node.
    pub dynamic_node_properties: Option<Map<'a>>,
    /// `move` or `copy`.
    pub distribution_mode: Option<&'a str>,
    /// Which messages; see [`selector`](Self::selector).
    pub filter: Option<Map<'a>>,
    /// Outcome of deliveries that are settled without one.
    pub default_outcome: Option<DeliveryState<'a>>,
    /// Outcomes that can be chosen.
    pub outcomes: Symbols<'a>,
    /// Extensions.
    pub capabilities: Symbols<'a>,
}

impl<'a> Source<'a> {
    /// A source with nothing but an address.
    #[must_use]
    pub fn new(address: &'a str) -> Self {
        Self {
            address: Some(address),
            ..Self::default()
        }
    }

    /// The expression of the selector filter, whichever descriptor it has: clients write its symbol or its number.
    #[must_use]
    pub fn selector(&self) -> Option<&'a str> {
        match self.filter?.get(SELECTOR_FILTER)? {
            Value::Described(described) => described.value().as_str(),
            value => value.as_str(),
        }
    }

    pub(crate) fn field(fields: &mut Fields<'a>) -> Result<Option<Self>, DecodeError> {
        let Some((code, fields)) = fields.composite()? else {
            return Ok(None);
        };
        if code != descriptor::SOURCE {
            return Err(DecodeError::Descriptor(code.into()));
        }
        let mut fields = fields.of("source");
        Ok(Some(Self {
            address: fields.text()?,
            durable: Durability::field(&mut fields)?,
            expiry_policy: ExpiryPolicy::field(&mut fields)?,
            timeout: fields.uint()?.unwrap_or(0),
            dynamic: fields.boolean()?.unwrap_or(false),
            dynamic_node_properties: fields.map()?,
            distribution_mode: fields.text()?,
            filter: fields.map()?,
            default_outcome: DeliveryState::field(&mut fields)?,
            outcomes: fields.symbols()?,
            capabilities: fields.symbols()?,
        }))
    }

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        described_list(out, descriptor::SOURCE, |out| {
            optional(out, self.address, encode::string);
            encode::uint(out, self.durable as u32);
            encode::symbol(out, self.expiry_policy.name());
            encode::uint(out, self.timeout);
            encode::boolean(out, self.dynamic);
            optional(out, self.dynamic_node_properties, encode::map);
            optional(out, self.distribution_mode, encode::symbol);
            optional(out, self.filter, encode::map);
            match &self.default_outcome {
                Some(state) => state.encode(out),
                None => null(out),
            }
            encode::symbols(out, self.outcomes);
            encode::symbols(out, self.capabilities);
            11
        });
    }
}

/// Where messages go (AMQP 3.5.4).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Target<'a> {
    /// The node; strings only.
    pub address: Option<&'a str>,
    /// What outlives the link.
    pub durable: Durability,
    /// When it expires.
    pub expiry_policy: ExpiryPolicy,
    /// Seconds it takes to expire.
    pub timeout: u32,
    /// Make a node for this link.
    pub dynamic: bool,
    /// Properties of that node.
    pub dynamic_node_properties: Option<Map<'a>>,
    /// Extensions.
    pub capabilities: Symbols<'a>,
    /// It is a transaction coordinator (AMQP 4.5.1): nothing but `capabilities` is there.
    pub coordinator: bool,
}

impl<'a> Target<'a> {
    /// A target with nothing but an address.
    #[must_use]
    pub fn new(address: &'a str) -> Self {
        Self {
            address: Some(address),
            ..Self::default()
        }
    }

    pub(crate) fn field(fields: &mut Fields<'a>) -> Result<Option<Self>, DecodeError> {
        let Some((code, fields)) = fields.composite()? else {
            return Ok(None);
        };
        let mut fields = fields.of("target");
        match code {
            descriptor::TARGET => Ok(Some(Self {
                address: fields.text()?,
                durable: Durability::field(&mut fields)?,
                expiry_policy: ExpiryPolicy::field(&mut fields)?,
                timeout: fields.uint()?.unwrap_or(0),
                dynamic: fields.boolean()?.unwrap_or(false),
                dynamic_node_properties: fields.map()?,
                capabilities: fields.symbols()?,
                coordinator: false,
            })),
            descriptor::COORDINATOR => Ok(Some(Self {
                capabilities: fields.symbols()?,
                coordinator: true,
                ..Self::default()
            })),
            other => Err(DecodeError::Descriptor(other.into())),
        }
    }

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        if self.coordinator {
            return described_list(out, descriptor::COORDINATOR, |out| {
                encode::symbols(out, self.capabilities);
                1
            });
        }
        described_list(out, descriptor::TARGET, |out| {
            optional(out, self.address, encode::string);
            encode::uint(out, self.durable as u32);
            encode::symbol(out, self.expiry_policy.name());
            encode::uint(out, self.timeout);
            encode::boolean(out, self.dynamic);
            optional(out, self.dynamic_node_properties, encode::map);
            encode::symbols(out, self.capabilities);
            7
        });
    }
}

/// A filter map with one selector, for a receiver's source.
#[must_use]
pub fn selector_filter(expression: &str) -> MapBuf {
    let filter = DescribedBuf::new(&Value::Symbol(SELECTOR_FILTER), &Value::String(expression));
    let mut map = MapBuf::new();
    map.symbol(SELECTOR_FILTER, &Value::Described(filter.as_described()));
    map
}
