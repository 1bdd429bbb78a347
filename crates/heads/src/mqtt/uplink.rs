//! What a client publishes.

use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::Identity;
use holdfast_model::limits::{D2C_BYTES_MAX, METHOD_BYTES_MAX};
use holdfast_model::method::MethodResponse;
use holdfast_mqtt::QoS;
use holdfast_mqtt::codec::Publish;
use holdfast_ports::gateway::IngestError;
use holdfast_ports::session::CloseReason;
use holdfast_wire::bag;
use holdfast_wire::topics::{self, DeviceTopic};

use super::acks::Gate;
use super::active::{Request, Unsent};
use super::connection::Connection;
use super::end::End;
use super::scratch::Scratch;

/// How long to wait when the log is full and names no ticket to wait for.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// The ids of a session's identity, taken apart once per read instead of once per message.
#[derive(Clone, Copy)]
pub(super) struct Names<'a> {
    device_id: &'a str,
    module_id: Option<&'a str>,
}

impl<'a> Names<'a> {
    pub(super) fn of(identity: &'a Identity) -> Self {
        Names {
            device_id: identity.device_id(),
            module_id: identity.module_id(),
        }
    }
}

impl Connection {
    #[inline]
    pub(super) fn take_publish(
        &mut self,
        publish: &Publish<'_>,
        names: Names<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), End> {
        match topics::parse_publish(publish.topic, names.device_id, names.module_id) {
            Ok(DeviceTopic::Telemetry { bag }) => take_telemetry(bag, publish, scratch),
            Ok(other) => self.take_request(other, publish, scratch),
            Err(_) if self.shared.config.tolerant => self.drop_publish(publish, scratch),
            // Closing is the hub's answer to each of them (mqtt.md section 4.1).
            Err(error) => Err(End::topic(error.to_string())),
        }
    }

    /// Acknowledges a publish that goes nowhere, in its turn.
    #[cold]
    fn drop_publish(&mut self, publish: &Publish<'_>, scratch: &mut Scratch) -> Result<(), End> {
        if publish.qos == QoS::AtLeastOnce {
            self.send_records(scratch)?;
            self.active().acks.push(Gate::Open, 1, 0);
        }
        Ok(())
    }

    #[cold]
    fn take_request(
        &mut self,
        topic: DeviceTopic<'_>,
        publish: &Publish<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), End> {
        let mut after = 0;
        if publish.qos == QoS::AtLeastOnce {
            // Acknowledgements keep the order of receipt, so what came before takes its place first.
            self.send_records(scratch)?;
            let acks = &mut self.active().acks;
            acks.push(Gate::Open, 1, 0);
            after = acks.received();
        }
        match topic {
            DeviceTopic::TwinGet { rid } => {
                let rid = rid.into();
                self.active().requests.push(after, Request::TwinGet { rid });
            }
            DeviceTopic::TwinPatchReported { rid, version } => {
                let request = Request::TwinPatch {
                    rid: rid.into(),
                    version,
                    patch: publish.payload.to_vec(),
                };
                self.active().requests.push(after, request);
            }
            DeviceTopic::MethodResponse { status, rid } => {
                self.take_method_response(status, rid, publish.payload)?
            }
            // Handled by the caller, who alone knows the bag.
            DeviceTopic::Telemetry { .. } => {}
        }
        Ok(())
    }

    fn take_method_response(&self, status: i64, rid: &str, payload: &[u8]) -> Result<(), End> {
        if payload.len() > METHOD_BYTES_MAX {
            return Err(End::protocol("the answer to a method is larger than allowed"));
        }
        // An id that answers no call of ours is dropped, as a late one is (mqtt.md section 6.3).
        if let Some(request_id) = topics::parse_method_request_id(rid) {
            let response = MethodResponse {
                status,
                payload: Bytes::copy_from_slice(payload),
            };
            self.shared
                .gateway
                .complete_method(&self.session, request_id, response);
        }
        Ok(())
    }

    /// Hands the telemetry decoded so far to the hub.
    pub(super) fn send_records(&mut self, scratch: &mut Scratch) -> Result<(), End> {
        let count = scratch.records.count();
        if count == 0 {
            return Ok(());
        }
        let ids = std::mem::take(&mut scratch.run_ids);
        let bytes = scratch.records.as_bytes().len();
        match self.shared.gateway.send(&self.session, &scratch.records) {
            Ok(ticket) => {
                if ids > 0 {
                    self.active().acks.push(Gate::Durable(ticket), ids, bytes);
                }
                scratch.records.clear();
                self.shared.metrics.telemetry_messages.add(u64::from(count));
                Ok(())
            }
            Err(IngestError::Busy(ticket)) => {
                let records = std::mem::take(&mut scratch.records);
                let wait = self.room_in_log(ticket);
                let active = self.active();
                active.acks.push(Gate::Unsent, ids, bytes);
                active.unsent = Some(Unsent { records, wait });
                Ok(())
            }
            Err(error) => Err(self.not_taken(error)),
        }
    }

    /// Offers records again that the log had no room for. Nothing is read from the client meanwhile.
    pub(super) fn send_unsent(&mut self, context: &mut Context<'_>) -> Result<(), End> {
        while let Some(active) = &mut self.active
            && let Some(unsent) = &mut active.unsent
        {
            if unsent.poll_wait(context).is_pending() {
                return Ok(());
            }
            match self.shared.gateway.send(&self.session, &unsent.records) {
                Ok(ticket) => {
                    let count = unsent.records.count();
                    self.shared.metrics.telemetry_messages.add(u64::from(count));
                    active.unsent = None;
                    active.acks.sent(ticket);
                }
                Err(IngestError::Busy(ticket)) => {
                    let wait = self.room_in_log(ticket);
                    if let Some(unsent) = &mut self.active().unsent {
                        unsent.wait = wait;
                    }
                }
                Err(error) => return Err(self.not_taken(error)),
            }
        }
        Ok(())
    }

    fn room_in_log(
        &self,
        ticket: Option<holdfast_ports::event_log::AppendTicket>,
    ) -> holdfast_ports::BoxFuture<'static, ()> {
        let gateway = Arc::clone(&self.shared.gateway);
        Box::pin(async move {
            match ticket {
                // A log that has failed says so at the next try.
                Some(ticket) => {
                    let _ = std::future::poll_fn(|context| gateway.poll_durable(ticket, context)).await;
                }
                None => tokio::time::sleep(BUSY_PAUSE).await,
            }
        })
    }

    fn not_taken(&self, error: IngestError) -> End {
        match error {
            IngestError::Failed(error) => End::storage(error.to_string()),
            IngestError::TooLarge => End::protocol("a message with its properties is larger than 256 KB"),
            IngestError::Fenced | IngestError::Busy(_) => {
                End::closed(self.session.close_reason().unwrap_or(CloseReason::TakenOver))
            }
        }
    }
}

#[inline]
fn take_telemetry(bag: &str, publish: &Publish<'_>, scratch: &mut Scratch) -> Result<(), End> {
    if publish.payload.len() > D2C_BYTES_MAX {
        return Err(End::protocol("the message is larger than 256 KB"));
    }
    let mut record = scratch.records.record();
    bag::write_record(bag, &mut record);
    if publish.retain {
        let (key, value) = bag::RETAIN_PROPERTY;
        record.property(key, Some(value));
    }
    let _ = record.finish(publish.payload);
    scratch.run_ids += u32::from(publish.qos == QoS::AtLeastOnce);
    Ok(())
}
