//! The property bag in an MQTT topic: `key=value&key=value…`, percent-encoded (MQTT contract, section 3).
//!
//! Reading takes everything the five SDKs send:
//!
//! - system properties as `%24.mid` (Python, Node, C, C#) or `$.mid` (Java), before or after the others;
//! - raw `/`, `:` and spaces inside values (C does not encode), so a bag is never split at `/`;
//! - one trailing `/` (Java modules, C#, Node outputs) and one leading `?`, both cut off;
//! - `+` as a plus sign; a pair without `=` as a key without value; `k=` as an empty value;
//! - invalid escapes, and escapes that are not UTF-8 when decoded, stay as they were sent;
//! - of equal keys the last one counts. Empty pairs and pairs with an empty key are skipped.
//!
//! Writing follows the stricter rules of section 3.2; see [`BagWriter`].

mod read;
mod write;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use holdfast_model::message::SystemProperty;

pub use read::{Bag, parse, read_message, write_record};
pub use write::BagWriter;

/// Application property that marks a message published with RETAIN; the hub keeps no retained message.
pub const RETAIN_PROPERTY: (&str, &str) = ("mqtt-retain", "true");
/// Application property that marks the will of a connection.
pub const WILL_PROPERTY: (&str, &str) = ("iothub-MessageType", "Will");

/// The key of a pair.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BagKey<'a> {
    /// A system property a sender may set.
    System(SystemProperty),
    /// Any other key, decoded.
    Application(Cow<'a, str>),
}

/// One pair of a bag.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BagEntry<'a> {
    /// Its key.
    pub key: BagKey<'a>,
    /// Its value, decoded; `None` for a key without `=`.
    pub value: Option<Cow<'a, str>>,
}

/// System keys after `$.`; see the table of section 3.1.
const SYSTEM_KEYS: &[(&str, SystemProperty)] = &[
    ("ct", SystemProperty::ContentType),
    ("ce", SystemProperty::ContentEncoding),
    ("mid", SystemProperty::MessageId),
    ("cid", SystemProperty::CorrelationId),
    ("uid", SystemProperty::UserId),
    ("to", SystemProperty::To),
    ("exp", SystemProperty::ExpiryTimeUtc),
    ("ctime", SystemProperty::CreationTimeUtc),
    ("on", SystemProperty::OutputName),
    ("sub", SystemProperty::Subject),
    ("ifid", SystemProperty::InterfaceId),
    ("schema", SystemProperty::MessageSchema),
    ("diagid", SystemProperty::DiagnosticId),
    ("diagctx", SystemProperty::DiagnosticContext),
];

/// System keys without a prefix.
const PLAIN_KEYS: &[(&str, SystemProperty)] = &[
    ("iothub-ack", SystemProperty::Ack),
    ("iothub-operation", SystemProperty::Operation),
];

/// What a key means.
enum Meaning {
    System(SystemProperty),
    /// `$.cdid` or `$.cmid`: stamped by the hub from the connection, so never taken from the sender.
    Connection,
    Application,
}

/// Meaning of a decoded key.
fn meaning(key: &str) -> Meaning {
    if let Some(name) = key.strip_prefix("$.") {
        return prefixed_meaning(name);
    }
    // Nearly every key fails this comparison of one byte, the others are looked up.
    if key.as_bytes().first() == Some(&b'i')
        && let Some((_, property)) = PLAIN_KEYS.iter().find(|(known, _)| *known == key)
    {
        return Meaning::System(*property);
    }
    Meaning::Application
}

/// Meaning of a key by its part after `$.`.
fn prefixed_meaning(name: &str) -> Meaning {
    if let Some((_, property)) = SYSTEM_KEYS.iter().find(|(known, _)| *known == name) {
        return Meaning::System(*property);
    }
    if matches!(name, "cdid" | "cmid") {
        return Meaning::Connection;
    }
    Meaning::Application
}
