//! The device side of the hub as protocol heads see it.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use holdfast_model::c2d::{C2dDelivery, LockToken, Settlement};
use holdfast_model::event::{Origin, Records};
use holdfast_model::method::MethodResponse;
use holdfast_model::subscription::Subscriptions;
use holdfast_model::{Error, Identity, Timestamp};

use crate::BoxFuture;
use crate::event_log::{AppendTicket, LogError};
use crate::service::Grant;
use crate::session::SessionHandle;

/// How a client proves who it is. Borrowed: credentials are not kept.
#[derive(Clone, Copy)]
pub enum Credential<'a> {
    /// A shared access signature, as text.
    Sas(&'a str),
    /// The certificate chain of the TLS handshake, leaf first, DER. Possession of the leaf's key is proven; nothing
    /// else has been checked.
    Certificates(&'a [Bytes]),
    /// Checked before on the same connection ([`crate::service::ServiceGateway::verify_token`]); what may have changed
    /// since is checked again: existence, status, expiry.
    Granted(&'a Grant),
    /// Nothing.
    None,
}

/// What becomes of an identity's stored session, i.e. of subscriptions that outlive the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Persistence {
    /// Restored, or begun (MQTT CleanSession 0).
    Stored,
    /// Forgotten; this session ends with its connection (MQTT CleanSession 1).
    Forgotten,
    /// Left alone: the protocol has no stored sessions (AMQP); this one begins without subscriptions.
    Untouched,
}

/// The certificate chain a client presented in the TLS handshake, leaf first, DER; possession of the leaf's key is
/// proven, nothing else. The HTTPS listener puts it into each request's extensions.
#[derive(Clone, Debug)]
pub struct PeerCertificates(pub Arc<[Bytes]>);

/// The protocol of a connection, for logs and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Protocol {
    /// MQTT over TCP or TLS.
    Mqtt,
    /// MQTT over WebSocket.
    MqttWebSocket,
    /// HTTPS requests.
    Https,
    /// AMQP 1.0.
    Amqp,
    /// AMQP 1.0 over WebSocket.
    AmqpWebSocket,
}

/// Who asks to be let in.
#[derive(Clone, Copy)]
pub struct AccessRequest<'a> {
    /// Device id as the client gave it, not checked yet.
    pub device_id: &'a str,
    /// Module id as the client gave it.
    pub module_id: Option<&'a str>,
    /// Its proof.
    pub credential: Credential<'a>,
    /// `auth-chain` of a gateway that acts for the identity (mqtt.md 2.3), decoded.
    pub auth_chain: Option<&'a str>,
    /// Protocol.
    pub protocol: Protocol,
}

/// A request to open a session.
#[derive(Clone, Copy)]
pub struct ConnectRequest<'a> {
    /// Who, with which proof.
    pub access: AccessRequest<'a>,
    /// What becomes of the stored session.
    pub persistence: Persistence,
    /// Model id announced by the device.
    pub model_id: Option<&'a str>,
    /// SDK name and version as announced (`DeviceClientType`).
    pub client_type: Option<&'a str>,
}

/// An opened session.
#[derive(Clone, Debug)]
pub struct Connected {
    /// The live session; its subscriptions are active already.
    pub session: Arc<SessionHandle>,
    /// Whether a stored session was found.
    pub session_present: bool,
}

/// An identity that proved itself for one request, without a session (HTTPS).
#[derive(Clone, Debug)]
pub struct Admitted {
    /// Who, and the stamps of its telemetry.
    pub origin: Origin,
    /// Partition its telemetry goes to.
    pub partition: u16,
}

/// Why telemetry was not taken.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IngestError {
    /// The log's buffer is full: wait with [`DeviceGateway::poll_durable`] for an earlier ticket of the partition
    /// (`None`: any time soon), then try the same records again.
    #[error("the hub is busy")]
    Busy(Option<AppendTicket>),
    /// The session is fenced: a newer one exists or the engine closed it.
    #[error("the session has ended")]
    Fenced,
    /// A record is larger than a message may be. Heads check this while they read; a session that gets here is broken.
    #[error("a message is larger than the hub takes")]
    TooLarge,
    /// The log has failed; close the connection.
    #[error(transparent)]
    Failed(LogError),
}

/// How a session ended, for the connection event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disconnect {
    /// The client said goodbye.
    Clean,
    /// The connection broke, went silent, or broke the protocol.
    Lost,
    /// The engine asked for it.
    Closed,
}

/// What protocol heads ask of the hub on behalf of devices and modules.
///
/// The engine implements it; heads never see the engine. `send` and `poll_durable` are the hot path: they do not
/// allocate, do not block, and take whole runs of records.
pub trait DeviceGateway: Send + Sync + 'static {
    /// Checks a credential and opens a session: stored subscriptions are active, an older session of the identity is
    /// closed, before this returns. A failed call leaves an older session alone.
    ///
    /// # Errors
    /// `IotHubUnauthorized…` for every failed proof and for unknown or disabled identities; `ServiceUnavailable` when
    /// the hub cannot tell or is stopping.
    fn connect<'a>(&'a self, request: ConnectRequest<'a>) -> BoxFuture<'a, Result<Connected, Error>>;

    /// Checks a credential for one request without a session.
    ///
    /// # Errors
    /// As [`DeviceGateway::connect`].
    fn admit<'a>(&'a self, request: AccessRequest<'a>) -> BoxFuture<'a, Result<Admitted, Error>>;

    /// Notes that the session's credential was renewed and now ends at `expires_at`.
    fn renew(&self, session: &Arc<SessionHandle>, expires_at: Timestamp);

    /// Ends a session: its locks return to the queue, and the connection event is noted. Call exactly once.
    fn disconnect(&self, session: &Arc<SessionHandle>, how: Disconnect);

    /// Appends telemetry of a session. Acknowledge it to the client only when the ticket is durable.
    ///
    /// # Errors
    /// [`IngestError`]; nothing is appended then.
    fn send(&self, session: &SessionHandle, records: &Records) -> Result<AppendTicket, IngestError>;

    /// As [`DeviceGateway::send`], for a request without session.
    ///
    /// # Errors
    /// [`IngestError`].
    fn send_admitted(&self, admitted: &Admitted, records: &Records) -> Result<AppendTicket, IngestError>;

    /// Ready once everything before `ticket.end` is durable.
    ///
    /// # Errors
    /// [`LogError::Failed`] when it will never be; close the connection without acknowledging.
    fn poll_durable(&self, ticket: AppendTicket, context: &mut Context<'_>) -> Poll<Result<(), LogError>>;

    /// Replaces the session's subscriptions; stored durably first when the session is persistent. When
    /// `CloudToDevice` is new in the set and messages wait, the session gets a [`crate::session::Downlink::CloudToDevice`].
    ///
    /// # Errors
    /// `ServiceUnavailable`.
    fn subscribe<'a>(
        &'a self,
        session: &'a Arc<SessionHandle>,
        subscriptions: Subscriptions,
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// The twin as its device sees it: JSON `{"desired":{…,"$version":n},"reported":{…,"$version":m}}`.
    ///
    /// # Errors
    /// As the twin rules of mqtt.md 6.2.
    fn device_twin<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Bytes, Error>>;

    /// Merges a JSON object into the reported properties, durably; returns the section's new version. With
    /// `expected_version`, only if it matches.
    ///
    /// # Errors
    /// `ArgumentInvalid` for bad JSON, rule breaks and a version mismatch.
    fn patch_reported<'a>(
        &'a self,
        identity: &'a Identity,
        patch: &'a [u8],
        expected_version: Option<u64>,
    ) -> BoxFuture<'a, Result<u64, Error>>;

    /// Hands in the answer to a method call. Unknown or late request ids are dropped.
    fn complete_method(&self, session: &SessionHandle, request_id: u64, response: MethodResponse);

    /// Locks up to `max` waiting messages for this session (or, with `None`, for a request without session). At an edge
    /// hub also those for a module's inputs; their sequence numbers are unique over all inputs of the module.
    ///
    /// # Errors
    /// `ServiceUnavailable`.
    fn receive_c2d<'a>(
        &'a self,
        device: &'a Identity,
        session: Option<&'a SessionHandle>,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<C2dDelivery>, Error>>;

    /// Settles a delivery, durably.
    ///
    /// # Errors
    /// `DeviceMessageLockLost` for an unknown or ended lock.
    fn settle_c2d<'a>(
        &'a self,
        device: &'a Identity,
        lock: LockToken,
        settlement: Settlement,
    ) -> BoxFuture<'a, Result<(), Error>>;

    /// Host names under which this hub is known, for user names and token scopes.
    fn host_names(&self) -> Arc<[String]>;
}
