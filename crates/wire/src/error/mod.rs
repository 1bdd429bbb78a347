//! The error table, and the bodies that carry an error to a client (REST contract, section 4).
//!
//! Three shapes of body exist:
//!
//! | Shape | Used for | Function |
//! |---|---|---|
//! | A | registry, twins, configurations, authorization, device endpoints | [`legacy_body`] |
//! | B | everything about direct methods | [`nested_body`] |
//! | C | twin errors over MQTT | [`flat_body`] |
//!
//! With A and B goes the header [`crate::headers::ERROR_CODE`] with the error's name.

use std::fmt;
use std::time::Duration;

use holdfast_model::{Error, ErrorCode, Timestamp};
use serde::Serialize;

mod table;

pub use table::row;

/// How one error code looks in each protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorRow {
    /// Name, for the header `iothub-errorcode` and the body.
    pub name: &'static str,
    /// HTTP status.
    pub http_status: u16,
    /// Azure's number: the status followed by three digits.
    pub number: u32,
    /// Whether the number is Azure's own; else it is Holdfast's choice (see [`row`]).
    pub number_verified: bool,
    /// CONNACK return code of MQTT 3.1.1: 5 (not authorized), or 3 (server unavailable) when the client is to try
    /// again later. The C SDK never tries again after 2 or 4.
    pub connack: u8,
    /// AMQP error condition.
    pub amqp_condition: &'static str,
}

/// Names one failed request: `{32 hex}-G:{n}-TimeStamp:{MM/DD/YYYY HH:MM:SS}`.
///
/// The caller draws the 128 bits and logs the id together with the internal cause.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrackingId {
    /// Random.
    pub id: u128,
    /// Number of the node that answered.
    pub node: u16,
    /// When.
    pub at: Timestamp,
}

impl fmt::Display for TrackingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = Timestamp::from_seconds(self.at.as_seconds()).to_string();
        write!(f, "{:032x}-G:{}-TimeStamp:", self.id, self.node)?;
        // `YYYY-MM-DDTHH:MM:SSZ`, since the fraction is zero.
        match (text.get(0..4), text.get(5..7), text.get(8..10), text.get(11..19)) {
            (Some(year), Some(month), Some(day), Some(time)) => write!(f, "{month}/{day}/{year} {time}"),
            _ => f.write_str(&text),
        }
    }
}

/// Shape A: `{"Message":"ErrorCode:{Name};{text}","ExceptionMessage":"Tracking ID:{tracking id}"}`.
///
/// The Node SDK takes the code from before the first `;` and the text from after it.
#[must_use]
pub fn legacy_body(error: &Error, tracking: TrackingId) -> String {
    let row = row(error.code);
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Body {
        message: String,
        exception_message: String,
    }
    to_json(&Body {
        message: format!("ErrorCode:{};{}", row.name, error.message),
        exception_message: format!("Tracking ID:{tracking}"),
    })
}

/// Member `info` of shapes B and C.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Info {
    /// `{}`
    #[default]
    Empty,
    /// `{"timeout":"HH:MM:SS"}`: the connect timeout of a method whose target was not online.
    Timeout(Duration),
}

impl Info {
    /// What belongs to a failed method call with this connect timeout.
    #[must_use]
    pub fn of_method(code: ErrorCode, connect_timeout: Duration) -> Self {
        match code {
            ErrorCode::DeviceNotOnline => Info::Timeout(connect_timeout),
            _ => Info::Empty,
        }
    }
}

impl Serialize for Info {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        let mut map = serializer.serialize_map(None)?;
        if let Info::Timeout(timeout) = self {
            let seconds = timeout.as_secs();
            let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
            let text = format!("{hours:02}:{minutes:02}:{:02}", seconds % 60);
            map.serialize_entry("timeout", &text)?;
        }
        map.end()
    }
}

/// Shape B: `{"Message":"{shape C as text}","ExceptionMessage":""}`.
#[must_use]
pub fn nested_body(error: &Error, tracking: TrackingId, info: Info) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Body {
        message: String,
        exception_message: &'static str,
    }
    to_json(&Body {
        message: flat_body(error, tracking, info),
        exception_message: "",
    })
}

/// Shape C: `{"errorCode":{number},"trackingId":"…","message":"…","info":{…},"timestampUtc":"…"}`.
///
/// Sent in every twin error over MQTT: Node looks at nothing but the body's `errorCode` and `message`.
#[must_use]
pub fn flat_body(error: &Error, tracking: TrackingId, info: Info) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        error_code: u32,
        tracking_id: String,
        message: &'a str,
        info: Info,
        timestamp_utc: String,
    }
    to_json(&Body {
        error_code: row(error.code).number,
        tracking_id: tracking.to_string(),
        message: &error.message,
        info,
        timestamp_utc: tracking.at.to_string(),
    })
}

fn to_json<T: Serialize>(body: &T) -> String {
    // Strings and numbers always serialize.
    serde_json::to_string(body).unwrap_or_default()
}

#[cfg(test)]
mod tests;
