//! Records, twins and messages for the suites.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_model::c2d::{AckMode, C2dMessage};
use holdfast_model::credential::SymmetricKey;
use holdfast_model::message::{Message, SystemProperty};
use holdfast_model::registry::{Authentication, IdentityRecord, Status};
use holdfast_model::twin::Twin;
use holdfast_model::{Error, ErrorCode, Identity, Timestamp};
use serde_json::json;

use crate::StoreError;
use crate::queue::C2dLimits;
use crate::registry::{RecordMutation, RegistryStore};
use crate::twin::TwinMutation;

/// Limits of the queue suites.
pub const LIMITS: C2dLimits = C2dLimits {
    depth_max: 50,
    delivery_count_max: 3,
};

/// The suites' time, in seconds after an arbitrary instant.
#[must_use]
pub fn at(second: i64) -> Timestamp {
    Timestamp::from_seconds(1_780_000_000 + second)
}

/// An identity from its key.
///
/// # Panics
/// When the key is none.
#[must_use]
pub fn id(key: &str) -> Identity {
    Identity::parse(key).expect("the suite's ids are valid")
}

/// A key, the same for the same `seed`.
///
/// # Panics
/// Never.
#[must_use]
pub fn key(seed: u8) -> SymmetricKey {
    let digit = char::from(b'A' + seed % 26).to_string();
    // The last digit carries two bits that must be zero.
    let text = format!("{}A=", digit.repeat(42));
    SymmetricKey::parse(&text).expect("32 bytes of base64")
}

/// A plain record with symmetric keys.
#[must_use]
pub fn record(identity: &Identity) -> IdentityRecord {
    IdentityRecord {
        identity: identity.clone(),
        generation_id: 638_000_000_000_000_001,
        version: 1,
        status: Status::Enabled,
        status_reason: None,
        status_updated_at: Timestamp::NEVER,
        authentication: Authentication::Sas {
            primary_key: key(0),
            secondary_key: key(1),
        },
        iot_edge: false,
        device_scope: None,
        parent_scopes: Vec::new(),
        managed_by: None,
        connected: false,
        connection_updated_at: Timestamp::NEVER,
        last_activity_at: Timestamp::NEVER,
    }
}

/// Creates plain identities, in the order given.
///
/// # Panics
/// When the store refuses.
pub async fn create<S: RegistryStore>(store: &S, keys: &[&str]) {
    for key in keys {
        store
            .create(vec![(record(&id(key)), Twin::new(at(0)))])
            .await
            .expect("the identity is new");
    }
}

/// A message that wants all feedback and lives for an hour.
#[must_use]
pub fn message(device: &str, message_id: &str) -> C2dMessage {
    let mut message = Message {
        body: Bytes::from(format!("body of {message_id}")),
        ..Message::default()
    };
    message.set_system(SystemProperty::MessageId, message_id);
    C2dMessage {
        device: id(device),
        generation_id: 638_000_000_000_000_001,
        message,
        ack: AckMode::Full,
        enqueued_at: at(0),
        expires_at: at(3_600),
        input: None,
    }
}

/// The message id of a message.
#[must_use]
pub fn message_id(message: &C2dMessage) -> &str {
    message
        .message
        .system(SystemProperty::MessageId)
        .unwrap_or_default()
}

/// A mutation that adds one to the reported property `n` and to the section's version.
#[must_use]
pub fn count_up() -> TwinMutation {
    Arc::new(|twin| {
        let n = twin
            .reported
            .properties
            .get("n")
            .and_then(serde_json::Value::as_u64)
            .unwrap_or(0);
        twin.reported.properties.insert("n".into(), json!(n + 1));
        twin.reported.version += 1;
        Ok(())
    })
}

/// A mutation that sets the free text.
#[must_use]
pub fn set_reason(reason: &str) -> RecordMutation {
    let reason = reason.to_owned();
    Arc::new(move |record| {
        record.status_reason = Some(reason.clone());
        Ok(())
    })
}

/// What a refusing mutation answers.
#[must_use]
pub fn refusal() -> Error {
    Error::new(ErrorCode::PreconditionFailed, "the suite refuses")
}

/// Whether the error is the mutation's own.
#[must_use]
pub fn is_refusal(error: &StoreError) -> bool {
    matches!(error, StoreError::Refused(error) if *error == refusal())
}

/// Checks that a result is the given error.
#[macro_export]
#[doc(hidden)]
macro_rules! assert_fails {
    ($result:expr, $error:ident) => {
        match $result {
            Err($crate::StoreError::$error) => {}
            other => panic!(
                "expected {}, not {other:?}",
                concat!("StoreError::", stringify!($error))
            ),
        }
    };
}

/// Whether an error is a refusal with this code.
#[must_use]
pub fn is_refusal_of(error: &StoreError, code: ErrorCode) -> bool {
    matches!(error, StoreError::Refused(error) if error.code == code)
}
