//! The edge hub as protocol heads see it: what clients ask goes to the part that does it; services are refused.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use holdfast_model::c2d::{AckMode, C2dDelivery, FeedbackBatch, LockToken, Settlement};
use holdfast_model::event::{Origin, Records, Run};
use holdfast_model::message::Message;
use holdfast_model::method::MethodResponse;
use holdfast_model::subscription::{Channel, Subscriptions};
use holdfast_model::{Error, ErrorCode, Identity, Timestamp};
use holdfast_ports::BoxFuture;
use holdfast_ports::event_log::{AppendTicket, EventLog, LogError, PartitionInfo};
use holdfast_ports::gateway::{
    AccessRequest, Admitted, ConnectRequest, Connected, DeviceGateway, Disconnect, IngestError,
};
use holdfast_ports::service::{Grant, Holder, ServiceGateway};
use holdfast_ports::session::{Downlink, SessionHandle};

use crate::Broker;

impl DeviceGateway for Broker {
    fn connect<'a>(&'a self, request: ConnectRequest<'a>) -> BoxFuture<'a, Result<Connected, Error>> {
        Box::pin(self.open_session(request))
    }

    fn admit<'a>(&'a self, request: AccessRequest<'a>) -> BoxFuture<'a, Result<Admitted, Error>> {
        Box::pin(async move {
            self.check_serving()?;
            let verified = self.authenticate(&request).await?;
            Ok(Admitted {
                origin: self.origin_of(&verified),
                partition: 0,
            })
        })
    }

    fn renew(&self, session: &Arc<SessionHandle>, expires_at: Timestamp) {
        session.set_expires_at(expires_at);
    }

    fn disconnect(&self, session: &Arc<SessionHandle>, how: Disconnect) {
        self.close_session(session, how);
    }

    fn send(&self, session: &SessionHandle, records: &Records) -> Result<AppendTicket, IngestError> {
        if session.is_ended() {
            return Err(IngestError::Fenced);
        }
        self.ingest(&session.origin, session.data_schema(), records)
    }

    fn send_admitted(&self, admitted: &Admitted, records: &Records) -> Result<AppendTicket, IngestError> {
        self.ingest(&admitted.origin, None, records)
    }

    fn poll_durable(&self, ticket: AppendTicket, context: &mut Context<'_>) -> Poll<Result<(), LogError>> {
        self.queues
            .poll_durable(ticket.end, context)
            .map_err(LogError::Failed)
    }

    fn subscribe<'a>(
        &'a self,
        session: &'a Arc<SessionHandle>,
        subscriptions: Subscriptions,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.change_subscriptions(session, subscriptions))
    }

    fn device_twin<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(self.read_twin(identity))
    }

    fn patch_reported<'a>(
        &'a self,
        identity: &'a Identity,
        patch: &'a [u8],
        expected_version: Option<u64>,
    ) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(self.report(identity, patch, expected_version))
    }

    fn complete_method(&self, session: &SessionHandle, request_id: u64, response: MethodResponse) {
        self.calls.complete(session.epoch, request_id, response);
    }

    fn receive_c2d<'a>(
        &'a self,
        device: &'a Identity,
        session: Option<&'a SessionHandle>,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<C2dDelivery>, Error>> {
        Box::pin(async move {
            let Some(session) = session.filter(|session| !session.is_ended()) else {
                return Ok(Vec::new());
            };
            if !device.is_module() {
                return Ok(self.receive_relayed(session, max));
            }
            if !session.subscribed(Channel::Inputs) {
                return Ok(Vec::new());
            }
            let out = self.inputs.hand_out(device, session.epoch, max).await;
            if session.is_ended() {
                // It ended while messages were read, after its locks were given back.
                self.inputs.release(device, session.epoch);
                return Ok(Vec::new());
            }
            if out.more {
                let _ = session.push(Downlink::CloudToDevice);
            }
            Ok(out.deliveries)
        })
    }

    fn settle_c2d<'a>(
        &'a self,
        device: &'a Identity,
        lock: LockToken,
        settlement: Settlement,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            if !device.is_module() {
                return self.settle_relayed(device, lock, settlement);
            }
            if self.inputs.settle(device, lock, settlement)? {
                self.sessions
                    .push(device, Channel::Inputs, Downlink::CloudToDevice);
            }
            Ok(())
        })
    }

    fn host_names(&self) -> Arc<[String]> {
        Arc::clone(&self.host_names)
    }
}

/// An edge hub serves devices and modules.
fn no_services() -> Error {
    Error::new(
        ErrorCode::IotHubUnauthorizedAccess,
        "an edge hub serves devices and modules only; ask the hub above it",
    )
}

impl ServiceGateway for Broker {
    fn verify_token<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Grant, Error>> {
        Box::pin(self.grant_of_token(token))
    }

    fn verify_policy_key(&self, _: &str, _: &str) -> Result<Grant, Error> {
        Err(no_services())
    }

    fn is_current(&self, grant: &Grant) -> bool {
        match &grant.holder {
            Holder::Identity(identity) => {
                self.scope.get(identity).is_some()
                    && (grant.key.is_none() || self.signer_of(identity, grant.key).is_some())
            }
            Holder::Policy { .. } => false,
        }
    }

    fn send_c2d<'a>(
        &'a self,
        _: &'a Identity,
        _: Message,
        _: AckMode,
        _: Option<Timestamp>,
    ) -> BoxFuture<'a, Result<u64, Error>> {
        Box::pin(async { Err(no_services()) })
    }

    fn receive_feedback(&self) -> BoxFuture<'_, Result<Option<FeedbackBatch>, Error>> {
        Box::pin(async { Err(no_services()) })
    }

    fn settle_feedback(&self, _: LockToken, _: bool) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async { Err(no_services()) })
    }

    fn consumer_groups(&self) -> BoxFuture<'_, Result<Vec<String>, Error>> {
        Box::pin(async { Err(no_services()) })
    }

    fn event_log(&self) -> Arc<dyn EventLog> {
        Arc::new(NoLog)
    }
}

/// The event endpoint that an edge hub does not have: a log without partitions.
struct NoLog;

impl EventLog for NoLog {
    fn partitions(&self) -> u16 {
        0
    }

    fn append_runs(
        &self,
        partition: u16,
        _: &Origin,
        _: &[Run<'_>],
        _: Timestamp,
    ) -> Result<AppendTicket, LogError> {
        Err(LogError::NoSuchPartition(partition))
    }

    fn poll_durable(&self, ticket: AppendTicket, _: &mut Context<'_>) -> Poll<Result<(), LogError>> {
        Poll::Ready(Err(LogError::NoSuchPartition(ticket.partition)))
    }

    fn read(
        &self,
        partition: u16,
        _: u64,
        _: usize,
    ) -> BoxFuture<'_, Result<Vec<holdfast_model::event::EventBlock>, LogError>> {
        Box::pin(async move { Err(LogError::NoSuchPartition(partition)) })
    }

    fn find(&self, partition: u16, _: Timestamp) -> BoxFuture<'_, Result<u64, LogError>> {
        Box::pin(async move { Err(LogError::NoSuchPartition(partition)) })
    }

    fn info(&self, partition: u16) -> Result<PartitionInfo, LogError> {
        Err(LogError::NoSuchPartition(partition))
    }

    fn poll_readable(&self, partition: u16, _: u64, _: &mut Context<'_>) -> Poll<Result<(), LogError>> {
        Poll::Ready(Err(LogError::NoSuchPartition(partition)))
    }
}
