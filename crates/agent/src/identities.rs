//! Port to the identities of modules.

use holdfast_model::Identity;
use holdfast_ports::BoxFuture;

/// A module's identity, ready for its container.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModuleIdentity {
    /// Device and module id (`$edgeHub`, not `edgeHub`).
    pub identity: Identity,
    /// Generation id; a new one means that the identity was made anew and the container must be, too.
    pub generation_id: String,
    /// `managedBy` as the hub keeps it.
    pub managed_by: String,
}

/// Why an identity cannot be had.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IdentityError {
    /// The hub cannot be reached and nothing is cached.
    #[error("the hub cannot be reached and the identity of {module} is not known here: {cause}")]
    Offline {
        /// Module id.
        module: String,
        /// Why.
        cause: String,
    },
    /// The hub refused.
    #[error("the hub refused the identity of {module}: {cause}")]
    Refused {
        /// Module id.
        module: String,
        /// Its words.
        cause: String,
    },
}

/// Creates, refreshes and deletes module identities.
///
/// Keys are derived on the device and uploaded (edge.md 3.5). Every identity that was ever had is kept on disk: offline the
/// kept one is answered.
///
/// An identity goes with a workload socket: whoever implements this listens on `<workload folder>/<module>/workload.sock`
/// (module name without `$`) from [`ModuleIdentities::ensure`] on. A container gets the *folder* `<workload folder>/<module>`
/// mounted at the folder of the path in `IOTEDGE_WORKLOADURI` (`/var/run/iotedge`), not the socket itself: a daemon that
/// starts again makes the socket anew, and a container that it adopts would keep a bind-mounted file that nobody listens on.
pub trait ModuleIdentities: Send + Sync + 'static {
    /// The identity of a module: made, if the hub has none; from the disk, if the hub cannot be reached.
    ///
    /// # Errors
    /// [`IdentityError`].
    fn ensure<'a>(&'a self, module_id: &'a str) -> BoxFuture<'a, Result<ModuleIdentity, IdentityError>>;

    /// All identities of this device that are known, from the hub or, offline, from the disk.
    ///
    /// # Errors
    /// [`IdentityError`].
    fn list(&self) -> BoxFuture<'_, Result<Vec<ModuleIdentity>, IdentityError>>;

    /// Removes an identity that IoT Edge manages; others are left alone.
    ///
    /// # Errors
    /// [`IdentityError`].
    fn remove<'a>(&'a self, module_id: &'a str) -> BoxFuture<'a, Result<(), IdentityError>>;
}
