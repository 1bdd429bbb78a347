//! The twin of `$edgeAgent` over its conversation with the hub.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_agent::twin::{AgentTwin, TwinError, TwinEvent};
use holdfast_model::method::MethodResponse;
use holdfast_ports::BoxFuture;
use holdfast_upstream::port::{CloudClient, CloudError, CloudEvent};
use tokio::sync::{Notify, watch};

/// The conversation; there is none before the identity of `$edgeAgent` is known, and another one when that changes.
pub(super) type Conversation = watch::Receiver<Option<Arc<dyn CloudClient>>>;

/// Implements the agent's port.
pub(super) struct CloudTwin {
    conversation: Conversation,
    /// Told when the hub refuses `$edgeAgent`.
    refused: Arc<Notify>,
}

impl CloudTwin {
    pub(super) fn new(conversation: Conversation, refused: Arc<Notify>) -> Self {
        CloudTwin {
            conversation,
            refused,
        }
    }

    fn client(&self) -> Result<Arc<dyn CloudClient>, TwinError> {
        let unknown = || TwinError::Unreachable("the identity of $edgeAgent is not known yet".to_owned());
        self.conversation.borrow().clone().ok_or_else(unknown)
    }

    fn failed(&self, error: CloudError) -> TwinError {
        match error {
            CloudError::Unreachable(cause) => TwinError::Unreachable(cause),
            CloudError::Unauthorized(cause) => {
                self.refused.notify_one();
                TwinError::Unreachable(format!("the hub refuses $edgeAgent: {cause}"))
            }
            CloudError::Refused { status, message } => TwinError::Refused(format!("{status} {message}")),
        }
    }
}

impl AgentTwin for CloudTwin {
    fn next(&self) -> BoxFuture<'_, TwinEvent> {
        Box::pin(async move {
            let mut conversation = self.conversation.clone();
            loop {
                let client = conversation.borrow_and_update().clone();
                let Some(client) = client else {
                    if conversation.changed().await.is_err() {
                        // The daemon is ending.
                        std::future::pending::<()>().await;
                    }
                    continue;
                };
                let event = tokio::select! {
                    event = client.next() => event,
                    Ok(()) = conversation.changed() => continue,
                };
                match event {
                    CloudEvent::Connected => return TwinEvent::Connected,
                    CloudEvent::Disconnected(cause) => {
                        if let CloudError::Unauthorized(_) = cause {
                            self.refused.notify_one();
                        }
                        return TwinEvent::Disconnected(cause.to_string());
                    }
                    CloudEvent::Method(request) => return TwinEvent::Method(request),
                    CloudEvent::Desired { version, patch } => return TwinEvent::Desired { version, patch },
                    // Modules have none.
                    CloudEvent::CloudToDevice(_) => {}
                }
            }
        })
    }

    fn twin(&self) -> BoxFuture<'_, Result<Bytes, TwinError>> {
        Box::pin(async move { self.client()?.twin().await.map_err(|error| self.failed(error)) })
    }

    fn report(&self, patch: Bytes) -> BoxFuture<'_, Result<(), TwinError>> {
        Box::pin(async move {
            let reported = self.client()?.patch_reported(patch).await;
            reported.map(drop).map_err(|error| self.failed(error))
        })
    }

    fn answer(&self, request_id: u64, response: MethodResponse) {
        if let Ok(client) = self.client() {
            client.answer(request_id, response);
        }
    }
}
