//! The hub as protocol heads see it. Everything here hands on to the part that does the work.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use holdfast_model::c2d::{AckMode, C2dDelivery, FeedbackBatch, LockToken, Settlement};
use holdfast_model::event::{EventSource, Origin, Records};
use holdfast_model::message::Message;
use holdfast_model::method::MethodResponse;
use holdfast_model::subscription::Subscriptions;
use holdfast_model::{Error, Identity, Timestamp};
use holdfast_ports::BoxFuture;
use holdfast_ports::event_log::{AppendTicket, EventLog, LogError};
use holdfast_ports::gateway::{
    AccessRequest, Admitted, ConnectRequest, Connected, DeviceGateway, Disconnect, IngestError,
};
use holdfast_ports::service::{Grant, ServiceGateway};
use holdfast_ports::session::SessionHandle;

use crate::Hub;
use crate::c2d::C2dSend;
use crate::ingest::partition_of;

impl DeviceGateway for Hub {
    fn connect<'a>(&'a self, request: ConnectRequest<'a>) -> BoxFuture<'a, Result<Connected, Error>> {
        Box::pin(self.open_session(request))
    }

    fn admit<'a>(&'a self, request: AccessRequest<'a>) -> BoxFuture<'a, Result<Admitted, Error>> {
        Box::pin(async move {
            self.check_serving()?;
            let verified = self.verify_access(&request).await?;
            self.note_admitted(&verified.record.identity).await?;
            let partition = partition_of(verified.record.identity.device_id(), self.stores.log.partitions());
            Ok(Admitted {
                origin: Origin {
                    source: EventSource::Telemetry,
                    identity: verified.record.identity,
                    generation_id: verified.record.generation_id,
                    auth: verified.auth,
                },
                partition,
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
        self.ingest(session, records)
    }

    fn send_admitted(&self, admitted: &Admitted, records: &Records) -> Result<AppendTicket, IngestError> {
        self.ingest_admitted(admitted, records)
    }

    fn poll_durable(&self, ticket: AppendTicket, context: &mut Context<'_>) -> Poll<Result<(), LogError>> {
        let polled = self.stores.log.poll_durable(ticket, context);
        if let Poll::Ready(Err(error)) = &polled {
            self.note_log_failure(error);
        }
        polled
    }

    fn subscribe<'a>(
        &'a self,
        session: &'a Arc<SessionHandle>,
        subscriptions: Subscriptions,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.change_subscriptions(session, subscriptions))
    }

    fn device_twin<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(self.read_device_twin(identity))
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
        self.answer_method(session, request_id, response);
    }

    fn receive_c2d<'a>(
        &'a self,
        device: &'a Identity,
        session: Option<&'a SessionHandle>,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<C2dDelivery>, Error>> {
        Box::pin(self.lock_c2d(device, session, max))
    }

    fn settle_c2d<'a>(
        &'a self,
        device: &'a Identity,
        lock: LockToken,
        settlement: Settlement,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.settle_delivery(device, lock, settlement))
    }

    fn host_names(&self) -> Arc<[String]> {
        Arc::clone(&self.host_names)
    }
}

impl ServiceGateway for Hub {
    fn verify_token<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Grant, Error>> {
        Box::pin(self.grant_of_token(token))
    }

    fn verify_policy_key(&self, policy: &str, key: &str) -> Result<Grant, Error> {
        self.grant_of_policy_key(policy, key)
    }

    fn is_current(&self, grant: &Grant) -> bool {
        self.grant_is_current(grant)
    }

    fn send_c2d<'a>(
        &'a self,
        device: &'a Identity,
        message: Message,
        ack: AckMode,
        expires_at: Option<Timestamp>,
    ) -> BoxFuture<'a, Result<u64, Error>> {
        let send = C2dSend {
            message,
            ack,
            expires_at,
        };
        Box::pin(Hub::send_c2d(self, device, send))
    }

    fn receive_feedback(&self) -> BoxFuture<'_, Result<Option<FeedbackBatch>, Error>> {
        Box::pin(Hub::receive_feedback(self))
    }

    fn settle_feedback(&self, lock: LockToken, complete: bool) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(Hub::settle_feedback(self, lock, complete))
    }

    fn consumer_groups(&self) -> BoxFuture<'_, Result<Vec<String>, Error>> {
        Box::pin(Hub::consumer_groups(self))
    }

    fn event_log(&self) -> Arc<dyn EventLog> {
        Arc::clone(&self.stores.log)
    }
}
