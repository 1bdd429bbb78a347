//! Link addresses, log-in names and selectors of AMQP (AMQP contract, sections 1.5, 3.3, 4 and 5).
//!
//! Texts only: whoever owns the connection knows the role of a link, the settle modes and the grants.

mod login;
mod selector;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use holdfast_model::Identity;

use crate::percent;

pub use login::PlainUser;
pub use selector::{SELECTOR_CODE, SELECTOR_NAME, SelectorError, StartPosition, parse_selector};

/// Name of the one event hub, a single path segment. Part of connection strings that people keep: it never changes.
pub const EVENT_HUB_NAME: &str = "events";
/// Port in redirects; a client's parser wants to see it.
pub const REDIRECT_PORT: u16 = 5671;

const CBS: &str = "$cbs";
const MANAGEMENT: &str = "$management";

/// What a link is about. The role of the client decides what may be done there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// `/devices/{d}[/modules/{m}]/messages/events`: telemetry to a sender, module inputs to a receiver.
    Events(Identity),
    /// `/devices/{d}[/modules/{m}]/messages/deviceBound`
    CloudToDevice(Identity),
    /// `/devices/{d}[/modules/{m}]/methods/deviceBound`
    Methods(Identity),
    /// `/devices/{d}[/modules/{m}]/twin`
    Twin(Identity),
    /// `/messages/deviceBound`
    ServiceCloudToDevice,
    /// `/messages/serviceBound/feedback`
    ServiceFeedback,
    /// `/messages/serviceBound/filenotifications`
    ServiceFileNotifications,
    /// `messages/events…` of the hub: the event hub has it. What follows, with its leading slash or empty.
    Redirected {
        /// `/ConsumerGroups/{group}/Partitions/{n}`, `/$management`, empty.
        rest: String,
    },
    /// `{hub}/ConsumerGroups/{group}/Partitions/{n}`
    Partition {
        /// Consumer group as written.
        consumer_group: String,
        /// Partition.
        partition: u16,
    },
    /// `{hub}`, `{hub}/Partitions/{n}`
    Publish {
        /// `None`: by key, or any.
        partition: Option<u16>,
    },
    /// `$management`, `{hub}/$management`
    Management,
    /// `$cbs`
    Cbs,
}

/// A text is no address of this hub.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no such address on this hub")]
pub struct UnknownAddress;

impl Address {
    /// Parses an address: a full URI, a path with a leading slash, or without. Literals are compared without case, ids
    /// are percent-decoded.
    ///
    /// # Errors
    /// [`UnknownAddress`].
    ///
    /// ```
    /// use holdfast_wire::links::Address;
    /// let address = Address::parse("amqps://hub.test:5671/devices/d%401/messages/deviceBound")?;
    /// assert!(matches!(address, Address::CloudToDevice(device) if device.as_str() == "d@1"));
    /// # Ok::<(), holdfast_wire::links::UnknownAddress>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, UnknownAddress> {
        let path = path_of(text).trim_matches('/');
        let mut segments = path.split('/');
        let first = segments.next().unwrap_or_default();
        if first.eq_ignore_ascii_case("devices") {
            return device_address(&segments.collect::<Vec<_>>());
        }
        if first.eq_ignore_ascii_case("messages") {
            return service_address(path, &segments.collect::<Vec<_>>());
        }
        let rest: Vec<&str> = segments.collect();
        match rest.as_slice() {
            [] if first.eq_ignore_ascii_case(CBS) => Ok(Address::Cbs),
            [] if first.eq_ignore_ascii_case(MANAGEMENT) => Ok(Address::Management),
            rest if first.eq_ignore_ascii_case(EVENT_HUB_NAME) => event_hub_address(rest),
            _ => Err(UnknownAddress),
        }
    }

    /// The identity whose link it is.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            Address::Events(identity)
            | Address::CloudToDevice(identity)
            | Address::Methods(identity)
            | Address::Twin(identity) => Some(identity),
            _ => None,
        }
    }

    /// The path that a token of a service must cover; `None` for what belongs to an identity, and for `$cbs`.
    #[must_use]
    pub fn service_path(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Address::Events(_)
            | Address::CloudToDevice(_)
            | Address::Methods(_)
            | Address::Twin(_)
            | Address::Cbs => return None,
            Address::ServiceCloudToDevice => "messages/deviceBound".into(),
            Address::ServiceFeedback => "messages/serviceBound/feedback".into(),
            Address::ServiceFileNotifications => "messages/serviceBound/filenotifications".into(),
            Address::Redirected { rest } => format!("messages/events{rest}").into(),
            Address::Partition {
                consumer_group,
                partition,
            } => format!("{EVENT_HUB_NAME}/ConsumerGroups/{consumer_group}/Partitions/{partition}").into(),
            Address::Publish { partition: None } => EVENT_HUB_NAME.into(),
            Address::Publish {
                partition: Some(partition),
            } => format!("{EVENT_HUB_NAME}/Partitions/{partition}").into(),
            Address::Management => format!("{EVENT_HUB_NAME}/{MANAGEMENT}").into(),
        })
    }
}

/// The device or module that the `to` of a service's message names.
///
/// # Errors
/// [`UnknownAddress`].
pub fn parse_to(to: &str) -> Result<Identity, UnknownAddress> {
    match Address::parse(to)? {
        Address::CloudToDevice(identity) => Ok(identity),
        _ => Err(UnknownAddress),
    }
}

/// The `to` that a device finds in its message.
#[must_use]
pub fn to_of(identity: &Identity) -> String {
    let mut to = String::from("/devices/");
    percent::encode_into(&mut to, identity.device_id());
    if let Some(module_id) = identity.module_id() {
        to.push_str("/modules/");
        percent::encode_into(&mut to, module_id);
    }
    to.push_str("/messages/devicebound");
    to
}

/// The `address` of a redirect to the event hub (AMQP contract, section 5.1). `rest` is that of
/// [`Address::Redirected`]; without one the client asks for the management node.
#[must_use]
pub fn redirect_address(host: &str, rest: &str) -> String {
    let rest = if rest.is_empty() { "/$management" } else { rest };
    format!("amqps://{host}:{REDIRECT_PORT}/{EVENT_HUB_NAME}{rest}")
}

/// Without scheme and authority.
pub(crate) fn path_of(text: &str) -> &str {
    let text = text.trim();
    match text.split_once("://") {
        Some((scheme, rest)) if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            rest.split_once('/').map_or("", |(_, path)| path)
        }
        _ => text,
    }
}

fn device_address(segments: &[&str]) -> Result<Address, UnknownAddress> {
    let (device_id, module_id, rest) = match segments {
        [device_id, modules, module_id, rest @ ..] if modules.eq_ignore_ascii_case("modules") => {
            (device_id, Some(module_id), rest)
        }
        [device_id, rest @ ..] => (device_id, None, rest),
        [] => return Err(UnknownAddress),
    };
    let device_id = percent::decode(device_id);
    let module_id = module_id.map(|module_id| percent::decode(module_id));
    let identity = Identity::new(&device_id, module_id.as_deref()).map_err(|_| UnknownAddress)?;
    let is = |literals: &[&str]| {
        rest.len() == literals.len()
            && rest
                .iter()
                .zip(literals)
                .all(|(segment, literal)| segment.eq_ignore_ascii_case(literal))
    };
    if is(&["messages", "events"]) {
        Ok(Address::Events(identity))
    } else if is(&["messages", "deviceBound"]) {
        Ok(Address::CloudToDevice(identity))
    } else if is(&["methods", "deviceBound"]) {
        Ok(Address::Methods(identity))
    } else if is(&["twin"]) {
        Ok(Address::Twin(identity))
    } else {
        Err(UnknownAddress)
    }
}

fn service_address(path: &str, segments: &[&str]) -> Result<Address, UnknownAddress> {
    match segments {
        [one] if one.eq_ignore_ascii_case("deviceBound") => Ok(Address::ServiceCloudToDevice),
        [one, two] if one.eq_ignore_ascii_case("serviceBound") => match () {
            () if two.eq_ignore_ascii_case("feedback") => Ok(Address::ServiceFeedback),
            () if two.eq_ignore_ascii_case("filenotifications") => Ok(Address::ServiceFileNotifications),
            () => Err(UnknownAddress),
        },
        [one, ..] if one.eq_ignore_ascii_case("events") => Ok(Address::Redirected {
            rest: path["messages/events".len()..].to_owned(),
        }),
        _ => Err(UnknownAddress),
    }
}

fn event_hub_address(segments: &[&str]) -> Result<Address, UnknownAddress> {
    let number = |text: &str| text.parse().map_err(|_| UnknownAddress);
    match segments {
        [] => Ok(Address::Publish { partition: None }),
        [one] if one.eq_ignore_ascii_case(MANAGEMENT) => Ok(Address::Management),
        [one, partition] if one.eq_ignore_ascii_case("Partitions") => Ok(Address::Publish {
            partition: Some(number(partition)?),
        }),
        [one, group, two, partition]
            if one.eq_ignore_ascii_case("ConsumerGroups") && two.eq_ignore_ascii_case("Partitions") =>
        {
            Ok(Address::Partition {
                consumer_group: percent::decode(group).into_owned(),
                partition: number(partition)?,
            })
        }
        _ => Err(UnknownAddress),
    }
}
