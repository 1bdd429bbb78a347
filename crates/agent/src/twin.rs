//! Port to the twin and the direct methods of `$edgeAgent`.

use bytes::Bytes;
use holdfast_model::method::{MethodRequest, MethodResponse};
use holdfast_ports::BoxFuture;

/// What the hub tells the agent.
#[derive(Clone, Debug)]
pub enum TwinEvent {
    /// The connection is (again) there. The agent fetches the twin, since what was pushed meanwhile is lost.
    Connected,
    /// It is gone; it is being opened again by itself.
    Disconnected(String),
    /// Desired properties changed.
    Desired {
        /// `$version` of the patch.
        version: u64,
        /// JSON object; removed keys are null.
        patch: Bytes,
    },
    /// A direct method, to be answered with [`AgentTwin::answer`].
    Method(MethodRequest),
}

/// Why a call failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TwinError {
    /// No connection or no answer in time; nothing is known of the outcome.
    #[error("the hub cannot be reached: {0}")]
    Unreachable(String),
    /// The hub refused for good.
    #[error("the hub refused: {0}")]
    Refused(String),
}

/// The twin of `$edgeAgent`, as a client of the hub above has it.
///
/// Implementers keep the connection and the interest in desired properties and methods by themselves.
pub trait AgentTwin: Send + Sync + 'static {
    /// The next event, in order. One caller at a time. After start the first is [`TwinEvent::Connected`] as soon as there
    /// is a connection.
    fn next(&self) -> BoxFuture<'_, TwinEvent>;

    /// The whole twin: JSON `{"desired":{…,"$version":n},"reported":{…,"$version":m}}`.
    ///
    /// # Errors
    /// [`TwinError`].
    fn twin(&self) -> BoxFuture<'_, Result<Bytes, TwinError>>;

    /// Merges a JSON object into the reported properties.
    ///
    /// # Errors
    /// [`TwinError`].
    fn report(&self, patch: Bytes) -> BoxFuture<'_, Result<(), TwinError>>;

    /// Answers a method; lost silently when the connection by which it came is gone.
    fn answer(&self, request_id: u64, response: MethodResponse);
}
