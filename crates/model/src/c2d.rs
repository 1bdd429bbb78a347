//! Cloud-to-device messages and their feedback.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::identity::Identity;
use crate::message::Message;
use crate::time::Timestamp;

/// Which outcomes of a message its sender wants to hear of (`iothub-ack`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AckMode {
    /// None.
    #[default]
    None,
    /// Only success.
    Positive,
    /// Only failure.
    Negative,
    /// Both.
    Full,
}

impl AckMode {
    /// Parses `none|positive|negative|full`, without regard to case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "" | "none" => AckMode::None,
            "positive" => AckMode::Positive,
            "negative" => AckMode::Negative,
            "full" => AckMode::Full,
            _ => return None,
        })
    }

    /// The spelling on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            AckMode::None => "none",
            AckMode::Positive => "positive",
            AckMode::Negative => "negative",
            AckMode::Full => "full",
        }
    }

    /// Whether an outcome of this kind makes a feedback record.
    #[must_use]
    pub const fn wants(self, status: FeedbackStatus) -> bool {
        match self {
            AckMode::None => false,
            AckMode::Full => true,
            AckMode::Positive => matches!(status, FeedbackStatus::Success),
            AckMode::Negative => !matches!(status, FeedbackStatus::Success),
        }
    }
}

/// Names one locked delivery. Printed and parsed as a GUID.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LockToken {
    /// Sequence number of the message in its device's queue.
    pub sequence_number: u64,
    /// Random part, new with every lock, so that a token of an older lock is refused.
    pub nonce: u64,
}

impl LockToken {
    /// Parses the GUID form, with or without quotes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex: String = text.trim_matches('"').chars().filter(|c| *c != '-').collect();
        if hex.len() != 32 || !hex.is_ascii() {
            return None;
        }
        Some(LockToken {
            sequence_number: u64::from_str_radix(&hex[..16], 16).ok()?,
            nonce: u64::from_str_radix(&hex[16..], 16).ok()?,
        })
    }
}

impl fmt::Display for LockToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (high, low) = (self.sequence_number, self.nonce);
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        )
    }
}

/// Where a message for a module's input comes from and goes to (edge.md 7.4).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModuleInput {
    /// Name of the input.
    pub input: String,
    /// Who sent the message.
    pub sender: Identity,
}

/// A cloud-to-device message to be queued; at an edge hub also a message for a module's input, which is handed out, locked
/// and settled in the same way.
#[derive(Clone, Debug)]
pub struct C2dMessage {
    /// Target device.
    pub device: Identity,
    /// Generation of the target, for the feedback record.
    pub generation_id: u64,
    /// Content; `to`, `ack` and the expiry are not in its system list but in the fields below.
    pub message: Message,
    /// Which outcomes make feedback.
    pub ack: AckMode,
    /// When the hub took it.
    pub enqueued_at: Timestamp,
    /// When it dies.
    pub expires_at: Timestamp,
    /// For a module's input. Never set by a hub.
    pub input: Option<Box<ModuleInput>>,
}

/// A message handed to a device under a lock.
#[derive(Clone, Debug)]
pub struct C2dDelivery {
    /// Names this delivery when it is settled.
    pub lock: LockToken,
    /// When the lock ends: from then on the message may be handed out anew.
    pub locked_until: Timestamp,
    /// How often it was abandoned before.
    pub delivery_count: u32,
    /// Whether an earlier delivery may have reached the device (MQTT DUP).
    pub redelivered: bool,
    /// The message.
    pub message: C2dMessage,
}

/// How a receiver settles a delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settlement {
    /// Done; removes the message, positive feedback.
    Complete,
    /// Back to the queue; raises the delivery count, and dead-letters at the limit.
    Abandon,
    /// Refused for good; removes the message, negative feedback.
    Reject,
    /// Back to the queue without raising the delivery count (connection lost before an answer).
    Release,
}

/// Final outcome of a message in a feedback record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FeedbackStatus {
    /// The device completed it.
    Success,
    /// It died of age.
    Expired,
    /// It was abandoned too often.
    DeliveryCountExceeded,
    /// The device rejected it.
    Rejected,
    /// A service purged the queue.
    Purged,
}

/// One feedback record (rest.md section 8).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FeedbackRecord {
    /// Message id chosen by the sender; empty when it chose none.
    pub original_message_id: String,
    /// When the outcome came about.
    pub enqueued_time_utc: Timestamp,
    /// The outcome.
    pub status_code: FeedbackStatus,
    /// The outcome as a sentence or word.
    pub description: String,
    /// Device id.
    pub device_id: String,
    /// Generation of the device.
    pub device_generation_id: String,
}

/// Feedback records handed out under a lock.
#[derive(Clone, Debug)]
pub struct FeedbackBatch {
    /// Names the batch when it is settled.
    pub lock: LockToken,
    /// When the lock ends, and the batch may come again.
    pub locked_until: Timestamp,
    /// Its records, oldest first.
    pub records: Vec<FeedbackRecord>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_tokens_round_trip_as_guid() {
        let token = LockToken {
            sequence_number: 0x0123_4567_89ab_cdef,
            nonce: 0xfedc_ba98_7654_3210,
        };
        assert_eq!(token.to_string(), "01234567-89ab-cdef-fedc-ba9876543210");
        assert_eq!(LockToken::parse(&token.to_string()), Some(token));
        assert_eq!(LockToken::parse(&format!("\"{token}\"")), Some(token));
        assert_eq!(LockToken::parse("x"), None);
    }
}
