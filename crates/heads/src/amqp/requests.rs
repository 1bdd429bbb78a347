//! Direct methods and twins (AMQP contract, sections 3.6 and 3.7).

use std::sync::Arc;

use bytes::Bytes;
use holdfast_amqp::connection::Delivery;
use holdfast_amqp::message::{MessageId, MessageIdBuf, Properties, Writer};
use holdfast_amqp::performatives::condition;
use holdfast_amqp::types::Value;
use holdfast_amqp::{LinkId, Message};
use holdfast_model::Error;
use holdfast_model::limits::METHOD_BYTES_MAX;
use holdfast_model::method::{MethodRequest, MethodResponse};
use holdfast_model::subscription::Channel;
use holdfast_ports::session::SessionHandle;
use holdfast_wire::error::{self, Info, TrackingId};

use super::core::{Core, Done};
use super::failure::{End, Failure};
use super::members::{MemberId, Work};
use super::messages::body_of;
use crate::tracking;

/// First half of the correlation ids of method calls, which must be UUIDs; the second half is the request id. Its
/// version and variant bits say "made by someone" (RFC 9562, version 8).
const METHOD_ID_PREFIX: u64 = 0x686f_6c64_6661_8074;
/// The same of the second half, above 62 bits of request id.
const METHOD_ID_VARIANT: u64 = 0x8000_0000_0000_0000;

fn method_id(request_id: u64) -> [u8; 16] {
    let id = u128::from(METHOD_ID_PREFIX) << 64 | u128::from(request_id | METHOD_ID_VARIANT);
    id.to_be_bytes()
}

/// The request id in a correlation id; clients answer with a UUID, or with its text.
fn request_id(id: MessageId<'_>) -> Option<u64> {
    let id = match id {
        MessageId::Uuid(uuid) => u128::from_be_bytes(uuid),
        MessageId::String(text) => {
            let hex: String = text.chars().filter(|c| *c != '-').collect();
            u128::from_str_radix(&hex, 16).ok()?
        }
        _ => return None,
    };
    let (high, low) = ((id >> 64) as u64, id as u64);
    (high == METHOD_ID_PREFIX && low & METHOD_ID_VARIANT != 0).then_some(low & !METHOD_ID_VARIANT)
}

/// What a client wants with its twin.
#[derive(Clone, Debug)]
enum TwinOperation {
    Get,
    Patch { patch: Bytes, version: Option<u64> },
    Observe(bool),
}

/// A twin request that waits for its turn.
pub(super) struct TwinRequest {
    id: Option<MessageIdBuf>,
    operation: TwinOperation,
}

/// What to answer: a status, a new version, a body.
struct Answer {
    status: i32,
    version: Option<i64>,
    body: Bytes,
}

impl Core {
    /// Calls a method of the device.
    pub(super) fn send_method(
        &mut self,
        id: MemberId,
        call: &MethodRequest,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let Some((link, settled)) = self.members.get(&id).and_then(|member| member.method_calls) else {
            return Ok(());
        };
        let mut message = Vec::with_capacity(call.payload.len() + 96);
        // A body must be there even if there is no payload.
        let body: &[u8] = if call.payload.is_empty() {
            b"null"
        } else {
            &call.payload
        };
        Writer::new(&mut message)
            .properties(&Properties {
                correlation_id: Some(MessageId::Uuid(method_id(call.request_id))),
                ..Properties::default()
            })
            .application_properties(|map| {
                map.string("IoThub-methodname", &Value::String(&call.name));
            })
            .data(body);
        self.send(link, message, settled, out);
        Ok(())
    }

    /// The device answers a method call. What answers no call of ours is accepted and dropped, as a late one is.
    pub(super) fn take_method_answer(
        &mut self,
        link: LinkId,
        id: MemberId,
        delivery: &Delivery<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let Some(message) = self.decode(link, delivery, out) else {
            return Ok(());
        };
        let request_id = message.properties.correlation_id.and_then(request_id);
        let status = message
            .application_properties
            .and_then(|map| map.get("IoThub-status"))
            .and_then(|value| value.as_i64());
        let body = match body_of(&message) {
            Ok(body) if body.len() <= METHOD_BYTES_MAX => body,
            Ok(_) => {
                let failure = Failure::new(
                    condition::MESSAGE_SIZE_EXCEEDED,
                    "the answer to a method is larger than allowed",
                );
                self.reject(link, delivery.id, &failure, out);
                return Ok(());
            }
            Err(error) => {
                let failure = Failure::new(condition::NOT_IMPLEMENTED, error.to_string());
                self.reject(link, delivery.id, &failure, out);
                return Ok(());
            }
        };
        let session = self.members.get(&id).and_then(|member| member.session.as_ref());
        if let (Some(request_id), Some(session)) = (request_id, session) {
            let response = MethodResponse {
                status: status.unwrap_or_default(),
                payload: Bytes::copy_from_slice(&body),
            };
            self.shared.gateway.complete_method(session, request_id, response);
        }
        self.accept_one(link, delivery, out);
        Ok(())
    }

    /// A twin request: settled, then put into the lane of its identity.
    pub(super) fn take_twin_request(
        &mut self,
        link: LinkId,
        id: MemberId,
        delivery: &Delivery<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let Some(message) = self.decode(link, delivery, out) else {
            return Ok(());
        };
        let Some(operation) = twin_operation(&message) else {
            let failure = Failure::new(condition::NOT_ALLOWED, "not an operation on twins");
            self.reject(link, delivery.id, &failure, out);
            return Ok(());
        };
        self.accept_one(link, delivery, out);
        let request = TwinRequest {
            id: message.properties.correlation_id.map(|id| id.to_buf()),
            operation,
        };
        self.requests += 1;
        self.push_work(id, Work::Twin(request), out)
    }

    /// Begins a twin request; the lane is busy until it is answered.
    pub(super) fn begin_twin(&mut self, id: MemberId, session: &Arc<SessionHandle>, request: TwinRequest) {
        let gateway = Arc::clone(&self.shared.gateway);
        let session = Arc::clone(session);
        let TwinRequest {
            id: correlation,
            operation,
        } = request;
        let observe = match &operation {
            TwinOperation::Observe(observe) => Some(*observe),
            _ => None,
        };
        self.wait(async move {
            let outcome = match operation {
                TwinOperation::Get => gateway.device_twin(session.identity()).await.map(|body| Answer {
                    status: 200,
                    version: None,
                    body,
                }),
                TwinOperation::Patch { patch, version } => gateway
                    .patch_reported(session.identity(), &patch, version)
                    .await
                    .map(|version| Answer {
                        status: 204,
                        version: i64::try_from(version).ok(),
                        body: Bytes::new(),
                    }),
                TwinOperation::Observe(observe) => {
                    let mut wanted = session.subscriptions();
                    wanted.remove(Channel::DesiredProperties);
                    if observe {
                        wanted.insert(Channel::DesiredProperties, true);
                    }
                    gateway.subscribe(&session, wanted).await.map(|()| Answer {
                        status: 200,
                        version: None,
                        body: Bytes::new(),
                    })
                }
            };
            let done: Done = Box::new(move |core, out| {
                core.requests = core.requests.saturating_sub(1);
                core.lane_free(id);
                if let (Some(observe), true) = (observe, outcome.is_ok())
                    && let Some(member) = core.members.get_mut(&id)
                {
                    member.desired = observe;
                }
                core.answer_twin(id, correlation, outcome, out);
                core.run_lane(id, out)
            });
            done
        });
    }

    fn answer_twin(
        &mut self,
        id: MemberId,
        correlation: Option<MessageIdBuf>,
        outcome: Result<Answer, Error>,
        out: &mut Vec<u8>,
    ) {
        let Some((link, settled)) = self.members.get(&id).and_then(|member| member.twin_answers) else {
            return;
        };
        let answer = outcome.unwrap_or_else(|error| self.twin_error(&error));
        let mut message = Vec::with_capacity(answer.body.len() + 96);
        Writer::new(&mut message)
            .message_annotations(|map| {
                map.symbol("status", &Value::Int(answer.status));
                if let Some(version) = answer.version {
                    map.symbol("version", &Value::Long(version));
                }
            })
            .properties(&Properties {
                correlation_id: correlation.as_ref().map(MessageIdBuf::as_id),
                ..Properties::default()
            })
            .data(&answer.body);
        self.send(link, message, settled, out);
    }

    fn twin_error(&self, error: &Error) -> Answer {
        let tracking = TrackingId {
            id: tracking::random(),
            node: 0,
            at: self.shared.clock.now(),
        };
        Answer {
            status: i32::from(error::row(error.code).http_status),
            version: None,
            body: error::flat_body(error, tracking, Info::Empty).into(),
        }
    }

    /// Tells of changed desired properties: a message without correlation id.
    pub(super) fn send_desired(&mut self, id: MemberId, patch: &Bytes, out: &mut Vec<u8>) -> Result<(), End> {
        let Some((link, settled)) = self.members.get(&id).and_then(|member| member.twin_answers) else {
            return Ok(());
        };
        let mut message = Vec::with_capacity(patch.len() + 64);
        Writer::new(&mut message)
            .message_annotations(|map| {
                map.symbol("resource", &Value::String("/properties/desired"));
            })
            .data(patch);
        self.send(link, message, settled, out);
        Ok(())
    }

    /// The message of a delivery; one that is none is rejected.
    pub(super) fn decode<'d>(
        &mut self,
        link: LinkId,
        delivery: &'d Delivery<'_>,
        out: &mut Vec<u8>,
    ) -> Option<Message<'d>> {
        match Message::decode(&delivery.payload) {
            Ok(message) => Some(message),
            Err(error) => {
                let failure = Failure::new(condition::DECODE_ERROR, error.to_string());
                self.reject(link, delivery.id, &failure, out);
                None
            }
        }
    }

    pub(super) fn accept_one(&mut self, link: LinkId, delivery: &Delivery<'_>, out: &mut Vec<u8>) {
        if !delivery.settled {
            self.accept(link, delivery.id, delivery.id, out);
        }
    }
}

fn twin_operation(message: &Message<'_>) -> Option<TwinOperation> {
    let annotations = message.message_annotations?;
    let text = |key| annotations.get(key).and_then(|value| value.as_str());
    let resource = text("resource").unwrap_or_default();
    let is = |wanted: &str| resource.trim_end_matches('/').eq_ignore_ascii_case(wanted);
    match text("operation")?.to_ascii_uppercase().as_str() {
        "GET" => Some(TwinOperation::Get),
        "PATCH" if is("/properties/reported") => Some(TwinOperation::Patch {
            patch: Bytes::from(body_of(message).ok()?.into_owned()),
            version: annotations
                .get("version")
                .and_then(|value| value.as_i64())
                .and_then(|version| u64::try_from(version).ok()),
        }),
        "PUT" if is("/notifications/twin/properties/desired") => Some(TwinOperation::Observe(true)),
        "DELETE" if is("/notifications/twin/properties/desired") => Some(TwinOperation::Observe(false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn method_ids_are_uuids_that_come_back() {
        let id = method_id(7);
        assert_eq!(id[6] >> 4, 8, "version");
        assert_eq!(id[8] >> 6, 0b10, "variant");
        assert_eq!(request_id(MessageId::Uuid(id)), Some(7));
        let text = "686F6C64-6661-8074-8000-000000000007";
        assert_eq!(request_id(MessageId::String(text)), Some(7));
        assert_eq!(request_id(MessageId::Uuid([0; 16])), None);
        assert_eq!(request_id(MessageId::String("7")), None);
        assert_eq!(request_id(MessageId::Ulong(7)), None);
    }
}
