//! What the edge agent and the edge hub ask of the hub above them.
//!
//! Contract: [`CloudClient::send`] returns `Ok` only when the hub has acknowledged every message (durable there), and
//! messages of one client arrive in the order in which they were given. Connections are opened by themselves, kept, and
//! opened again with back-off and jitter shared by all clients of one upstream; a caller never needs to reconnect.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_model::message::Message;
use holdfast_model::method::{MethodRequest, MethodResponse};
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::BoxFuture;

/// Signs with a key that never leaves its holder (files now; PKCS#11, TPM).
pub trait TokenSigner: Send + Sync + 'static {
    /// HMAC-SHA256 of `text`.
    ///
    /// # Errors
    /// When the key cannot be used now.
    fn sign<'a>(&'a self, text: &'a [u8]) -> BoxFuture<'a, Result<[u8; 32], CloudError>>;
}

/// A client certificate with its key, for TLS.
#[derive(Clone)]
pub struct ClientCertificate {
    /// Leaf first, DER.
    pub chain: Arc<[Bytes]>,
    /// PKCS#8 DER. Never printed.
    pub private_key: Arc<[u8]>,
}

/// How a client proves who it is.
#[derive(Clone)]
pub enum Proof {
    /// With tokens signed by its own key.
    Key(Arc<dyn TokenSigner>),
    /// With a certificate.
    Certificate(ClientCertificate),
    /// An edge hub speaks for it: tokens of `actor` (`<edge device>/$edgeHub`) and an `auth-chain`
    /// (`target;parent;…;actor device`, edge.md section 9).
    OnBehalf {
        /// The edge hub's own identity.
        actor: Identity,
        /// Its key.
        signer: Arc<dyn TokenSigner>,
        /// The chain, ids joined by `;`.
        chain: String,
    },
}

/// Whom a connection speaks for.
#[derive(Clone)]
pub struct Account {
    /// Device or module.
    pub identity: Identity,
    /// Its proof.
    pub proof: Proof,
    /// Announced as the client's type and version (`DeviceClientType`, product information).
    pub product_info: String,
    /// Model id to announce.
    pub model_id: Option<String>,
}

/// What a client wants pushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Interests {
    /// Direct methods.
    pub methods: bool,
    /// Desired-property changes.
    pub desired: bool,
    /// Cloud-to-device messages (devices only).
    pub cloud_to_device: bool,
}

/// Why a call upstream failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CloudError {
    /// No connection, time-out, throttled, server error: try again later. Nothing is known of the outcome.
    #[error("the hub cannot be reached: {0}")]
    Unreachable(String),
    /// The hub refuses this identity: unknown, disabled, or a wrong credential. Trying again at once is of no use.
    #[error("the hub refuses the identity: {0}")]
    Unauthorized(String),
    /// The hub answered and refused this request for good (bad request, too large).
    #[error("the hub refused the request: {status} {message}")]
    Refused {
        /// Status as in HTTP.
        status: u16,
        /// The hub's words.
        message: String,
    },
}

/// A batch was not taken whole.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{accepted} messages were accepted, then: {cause}")]
pub struct SendFailure {
    /// Messages from the front of the batch that the hub acknowledged.
    pub accepted: usize,
    /// Why the next one was not. After [`CloudError::Refused`] that message is to be dropped.
    pub cause: CloudError,
}

/// A cloud-to-device message under the hub's lock.
#[derive(Clone, Debug)]
pub struct CloudMessage {
    /// Content.
    pub message: Message,
    /// Passed to [`CloudClient::settle`]; valid while the connection it came by lives.
    pub token: u64,
}

/// What becomes of a cloud-to-device message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Settle {
    /// Taken by the device.
    Complete,
    /// Given back.
    Abandon,
    /// Refused by the device. Over MQTT the same as complete.
    Reject,
}

/// What the hub tells a client.
#[derive(Clone, Debug)]
pub enum CloudEvent {
    /// The connection is (again) there: fetch the twin, what was pushed meanwhile is lost.
    Connected,
    /// It is gone; it is being opened again unless the cause is [`CloudError::Unauthorized`], which is retried slowly.
    Disconnected(CloudError),
    /// A direct method; answer with [`CloudClient::answer`].
    Method(MethodRequest),
    /// Desired properties changed.
    Desired {
        /// `$version` of the patch.
        version: u64,
        /// JSON object as the hub sends it: removed keys are null, `$version` may be among the members.
        patch: Bytes,
    },
    /// A cloud-to-device message.
    CloudToDevice(CloudMessage),
}

/// One identity's conversation with the hub. Dropping it closes its connection.
pub trait CloudClient: Send + Sync + 'static {
    /// Changes what is pushed; kept over reconnections. Takes effect in the background.
    fn want(&self, interests: Interests);

    /// Sends in order; `Ok` when the hub has acknowledged all of them. Give hundreds at a time: all of a batch are under way
    /// at once, while batches of one client wait for each other. While the hub cannot be reached it fails at once; wait for
    /// [`CloudEvent::Connected`] or [`Cloud::reach`] then.
    ///
    /// # Errors
    /// [`SendFailure`] says how many were acknowledged.
    fn send<'a>(&'a self, messages: &'a [Message]) -> BoxFuture<'a, Result<(), SendFailure>>;

    /// The twin: JSON `{"desired":{…,"$version":n},"reported":{…,"$version":m}}`.
    ///
    /// # Errors
    /// [`CloudError`].
    fn twin(&self) -> BoxFuture<'_, Result<Bytes, CloudError>>;

    /// Merges a JSON object into the reported properties; returns the new version, 0 when the hub does not tell it (an edge
    /// hub of the original as parent).
    ///
    /// # Errors
    /// [`CloudError`].
    fn patch_reported(&self, patch: Bytes) -> BoxFuture<'_, Result<u64, CloudError>>;

    /// Answers a method. Lost silently when the connection it came by is gone.
    fn answer(&self, request_id: u64, response: MethodResponse);

    /// Settles a cloud-to-device message. Lost silently when the connection is gone; the hub's lock ends then.
    fn settle(&self, token: u64, how: Settle);

    /// The next event, in order. One caller at a time. At most [`EVENTS_MAX`] wait; more close the connection, which heals
    /// by the twin fetch after the next [`CloudEvent::Connected`].
    fn next(&self) -> BoxFuture<'_, CloudEvent>;
}

/// Events that wait for [`CloudClient::next`].
pub const EVENTS_MAX: usize = 256;

/// Keys or thumbprints as the hub's registry keeps them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ScopeAuthentication {
    /// Base64 keys. Print nothing of them.
    Keys {
        /// Primary.
        primary: holdfast_model::credential::SymmetricKey,
        /// Secondary.
        secondary: holdfast_model::credential::SymmetricKey,
    },
    /// SHA-1 or SHA-256 thumbprints, hex.
    Thumbprints {
        /// Primary.
        primary: String,
        /// Secondary.
        secondary: String,
    },
    /// A certificate of a known authority, common name = device id.
    Authority,
    /// No credential: cannot connect.
    None,
}

/// An identity in an edge device's scope (edge.md section 8).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScopeIdentity {
    /// Device or module.
    pub identity: Identity,
    /// Generation id.
    pub generation_id: String,
    /// Whether it may connect. Modules follow their device.
    pub enabled: bool,
    /// Its credentials.
    pub authentication: ScopeAuthentication,
    /// An edge device itself.
    pub iot_edge: bool,
    /// `deviceScope` of a device.
    pub device_scope: Option<String>,
    /// `parentScopes` of a device.
    pub parent_scopes: Vec<String>,
}

/// A page of a scope.
#[derive(Clone, Debug, Default)]
pub struct ScopePage {
    /// Devices first, then modules, as the hub lists them.
    pub identities: Vec<ScopeIdentity>,
    /// Pass it back for the next page.
    pub continuation: Option<String>,
}

/// A module identity as the registry tells it (edge.md 3.5).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModuleIdentity {
    /// Module id (`$edgeHub`, not `edgeHub`).
    pub module_id: String,
    /// Generation id.
    pub generation_id: String,
    /// `managedBy`.
    pub managed_by: String,
    /// Entity tag.
    pub etag: String,
}

/// Registry calls of an edge device, signed by the account given at construction: the device (module identities) or its
/// `$edgeHub` (scopes).
pub trait CloudRegistry: Send + Sync + 'static {
    /// Modules of the edge device.
    ///
    /// # Errors
    /// [`CloudError`].
    fn modules(&self) -> BoxFuture<'_, Result<Vec<ModuleIdentity>, CloudError>>;

    /// Creates a module identity, or answers the one that exists.
    ///
    /// # Errors
    /// [`CloudError`].
    fn create_module<'a>(
        &'a self,
        module_id: &'a str,
        managed_by: &'a str,
    ) -> BoxFuture<'a, Result<ModuleIdentity, CloudError>>;

    /// Sets the keys that the device chose for a module.
    ///
    /// # Errors
    /// [`CloudError`].
    fn set_module_keys<'a>(
        &'a self,
        module: &'a ModuleIdentity,
        primary: &'a holdfast_model::credential::SymmetricKey,
        secondary: &'a holdfast_model::credential::SymmetricKey,
    ) -> BoxFuture<'a, Result<ModuleIdentity, CloudError>>;

    /// Deletes a module identity; one that is gone already is no error.
    ///
    /// # Errors
    /// [`CloudError`].
    fn delete_module<'a>(&'a self, module_id: &'a str) -> BoxFuture<'a, Result<(), CloudError>>;

    /// A page of the identities below `target` (the edge device itself, or a child edge device with its chain).
    ///
    /// # Errors
    /// [`CloudError`].
    fn scope_page<'a>(
        &'a self,
        target: &'a str,
        auth_chain: &'a str,
        continuation: Option<&'a str>,
    ) -> BoxFuture<'a, Result<ScopePage, CloudError>>;

    /// One identity below the edge device; empty when the hub does not know it or it is not below.
    ///
    /// # Errors
    /// [`CloudError`].
    fn scope_identity<'a>(
        &'a self,
        target: &'a Identity,
        auth_chain: &'a str,
    ) -> BoxFuture<'a, Result<Vec<ScopeIdentity>, CloudError>>;
}

/// Whether the hub can be reached, as the connections of one upstream see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Nothing has been tried yet.
    Unknown,
    /// Some connection lives, or the last attempt succeeded.
    Online,
    /// The last attempt failed.
    Offline {
        /// Since when.
        since: Timestamp,
    },
}

/// The way to one hub (or parent edge device).
pub trait Cloud: Send + Sync + 'static {
    /// A conversation for an account. Its connection is opened when there is something to send or to want.
    fn client(&self, account: Account) -> Arc<dyn CloudClient>;

    /// Whether the hub can be reached; changes are told.
    fn reach(&self) -> tokio::sync::watch::Receiver<Reach>;

    /// The network may be back (an address changed, a child reported): the next attempt is made now.
    fn nudge(&self);
}

/// `$version` of a desired-property patch.
pub(crate) fn version_in(patch: &[u8]) -> u64 {
    #[derive(serde::Deserialize)]
    struct Versioned {
        #[serde(rename = "$version", default)]
        version: u64,
    }
    serde_json::from_slice(patch).map_or(0, |patch: Versioned| patch.version)
}
