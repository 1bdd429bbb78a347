//! Cloud-to-device messages: Holdfast's way to send one over HTTPS (the SDKs use AMQP), and IoT Hub's purge.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_hub::C2dSend;
use holdfast_model::c2d::AckMode;
use holdfast_model::message::{Message, SystemProperty};
use holdfast_model::{Error, ErrorCode, Timestamp};
use holdfast_ports::clock::{Clock, SystemClock};
use holdfast_wire::dto::PurgeResultDto;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Api;
use crate::extract::{body, identity};
use crate::reply::{Reply, json, json_with};

/// A message to a device.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct SendMessage {
    /// Payload: text, or base64 with `base64: true`.
    body: String,
    /// Whether `body` is base64.
    base64: bool,
    /// Default: a new GUID.
    message_id: Option<String>,
    correlation_id: Option<String>,
    user_id: Option<String>,
    /// For example `application/json`.
    content_type: Option<String>,
    /// For example `utf-8`.
    content_encoding: Option<String>,
    /// `none` (default), `positive`, `negative` or `full`: which outcomes make feedback.
    ack: Option<String>,
    /// When the message dies, ISO 8601; or `ttlSeconds`. Default one hour from now, at most two days.
    expiry_time_utc: Option<String>,
    /// Seconds until the message dies.
    ttl_seconds: Option<u64>,
    /// Application properties.
    properties: BTreeMap<String, Option<String>>,
}

/// What became of a message.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MessageSent {
    /// Id of the message, for matching feedback.
    message_id: String,
    /// Its number in the queues of this hub.
    sequence_number: u64,
}

impl SendMessage {
    fn message(self) -> Result<(C2dSend, String), Error> {
        let invalid = |text: &str| Error::new(ErrorCode::ArgumentInvalid, text);
        let bytes = if self.base64 {
            STANDARD
                .decode(&self.body)
                .map_err(|_| invalid("body is not base64"))?
        } else {
            self.body.into_bytes()
        };
        let ack = AckMode::parse(self.ack.as_deref().unwrap_or_default())
            .ok_or_else(|| invalid("ack must be none, positive, negative or full"))?;
        let expires_at = match (self.expiry_time_utc, self.ttl_seconds) {
            (Some(_), Some(_)) => return Err(invalid("give expiryTimeUtc or ttlSeconds, not both")),
            (Some(text), None) => {
                let parsed = Timestamp::parse(&text);
                Some(parsed.ok_or_else(|| invalid("expiryTimeUtc is not an ISO 8601 time"))?)
            }
            (None, Some(seconds)) => Some(SystemClock::new().now().plus(Duration::from_secs(seconds))),
            (None, None) => None,
        };
        let message_id = self
            .message_id
            .unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let mut message = Message {
            body: bytes.into(),
            ..Message::default()
        };
        message.set_system(SystemProperty::MessageId, message_id.clone());
        for (property, value) in [
            (SystemProperty::CorrelationId, self.correlation_id),
            (SystemProperty::UserId, self.user_id),
            (SystemProperty::ContentType, self.content_type),
            (SystemProperty::ContentEncoding, self.content_encoding),
        ] {
            if let Some(value) = value {
                message.set_system(property, value);
            }
        }
        message.properties = self.properties.into_iter().collect();
        Ok((
            C2dSend {
                message,
                ack,
                expires_at,
            },
            message_id,
        ))
    }
}

/// Sends a cloud-to-device message. Right: ServiceConnect.
#[utoipa::path(post, path = "/holdfast/v1/devices/{id}/messages", tag = "Cloud-to-device messages",
    request_body = SendMessage, responses((status = 201, body = MessageSent),
    (status = 403, description = "50 messages are waiting already"), (status = 413, description = "above 64 KB")))]
pub(crate) async fn send(State(api): State<Api>, Path(device_id): Path<String>, bytes: Bytes) -> Reply {
    let device = identity(&device_id, None)?;
    let (send, message_id) = body::<SendMessage>(&bytes)?.message()?;
    let sequence_number = api.hub.send_c2d(&device, send).await?;
    json_with(
        StatusCode::CREATED,
        &MessageSent {
            message_id,
            sequence_number,
        },
        None,
    )
}

/// Removes all waiting cloud-to-device messages of a device. Right: ServiceConnect.
#[utoipa::path(delete, path = "/devices/{id}/commands", tag = "Cloud-to-device messages",
    responses((status = 200, body = PurgeResultDto)))]
pub(crate) async fn purge(State(api): State<Api>, Path(device_id): Path<String>) -> Reply {
    let device = identity(&device_id, None)?;
    let purged = api.hub.purge_c2d(&device).await?;
    json(&PurgeResultDto::new(&device_id, purged))
}
