//! Certificates of this device: its authorities, the edge hub's server certificate, certificates for modules.
//!
//! ```text
//! device root (made here, until 2049)   or   authority of the site (local CA)   or   whatever signed the given edge CA
//!   └ edge CA (90 days, renewed at 80 % with a new key)                              └ edge CA (files, never renewed)
//!       ├ server certificate of the edge hub (30 days)
//!       └ certificates that modules ask for (30 days)
//! ```
//!
//! The original's quick start has no device root: its edge CA is what clients trust, so every renewal restarts all modules
//! and must be carried to all downstream devices. Here they trust the root, which stays, and an edge CA comes and goes
//! without anybody noticing (docs/adr/0072).
//!
//! Files, below `identity/`: `ca.pem` and `ca.key` (device root), `edge-ca.pem` (chain) and `edge-ca.key`.

mod authority;
mod issue;
pub mod pem;

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use holdfast_ports::clock::Clock;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;

pub use authority::Authority;
use holdfast_program::failure::Failure;
pub use issue::{Issued, Request, Usage};

use crate::config::{EdgeCa, Settings};

/// Where certificates come from.
pub struct Certificates {
    folder: PathBuf,
    source: EdgeCa,
    trust_bundle: Option<PathBuf>,
    manifest_trust_bundle: Option<PathBuf>,
    device_id: String,
    clock: Arc<dyn Clock>,
    current: ArcSwapOption<Authority>,
    /// Held while an authority is made or renewed; when a renewal failed, the second before which it is not tried again.
    making: Mutex<Option<i64>>,
}

impl Certificates {
    /// Certificates of a device; nothing is read or made yet.
    #[must_use]
    pub fn new(settings: &Settings, device_id: &str, clock: Arc<dyn Clock>) -> Self {
        Certificates {
            folder: settings.identity_folder(),
            source: settings.edge_ca.clone(),
            trust_bundle: settings.trust_bundle.clone(),
            manifest_trust_bundle: settings.manifest_trust_bundle.clone(),
            device_id: device_id.to_owned(),
            clock,
            current: ArcSwapOption::empty(),
            making: Mutex::new(None),
        }
    }

    /// Opens the edge CA: reads it, makes it when there is none, renews it when that is due. Returns whether it is another
    /// one than before. Cheap when nothing is to be done.
    ///
    /// # Errors
    /// When files cannot be read or written. The authority in use stays in use, and the renewal is tried again after the
    /// share of its life that `retry` says; at once when it has ended.
    pub fn ensure(&self) -> Result<bool, Failure> {
        let mut retry_at = self.making.lock();
        let now = self.clock.now().as_seconds();
        let old = self.current.load_full();
        if let Some(old) = old.as_ref().filter(|_| !self.is_given()) {
            let pause = (old.not_after - old.not_before) / 100 * i64::from(self.retry_percent());
            // A clock that was set back does not make it wait for longer.
            let waits = retry_at.is_some_and(|at| now < at && at - now <= pause);
            if !old.is_due(now, self.renew_at_percent()) || waits && old.is_in_force(now) {
                return Ok(false);
            }
            *retry_at = Some(now.saturating_add(pause));
        }
        let new = authority::open(&self.folder, &self.source, &self.device_id, now)?;
        *retry_at = None;
        let changed = old.is_none_or(|old| old.chain != new.chain);
        if changed {
            self.current.store(Some(Arc::new(new)));
        }
        Ok(changed)
    }

    fn is_given(&self) -> bool {
        matches!(self.source, EdgeCa::Files(_))
    }

    fn renew_at_percent(&self) -> u8 {
        match &self.source {
            EdgeCa::SelfSigned { renew_at_percent, .. } | EdgeCa::LocalCa { renew_at_percent, .. } => {
                *renew_at_percent
            }
            EdgeCa::Files(_) => 100,
        }
    }

    fn retry_percent(&self) -> u8 {
        match &self.source {
            EdgeCa::SelfSigned { retry_percent, .. } | EdgeCa::LocalCa { retry_percent, .. } => {
                *retry_percent
            }
            EdgeCa::Files(_) => 0,
        }
    }

    /// The edge CA in use.
    ///
    /// # Errors
    /// When it was never opened and cannot be now.
    pub fn authority(&self) -> Result<Arc<Authority>, Failure> {
        if self.current.load().is_none() {
            self.ensure()?;
        }
        self.current
            .load_full()
            .ok_or_else(|| Failure::storage("there is no edge CA"))
    }

    /// Signs a certificate. Makes a key, so it takes a moment.
    ///
    /// # Errors
    /// When there is no edge CA.
    pub fn issue(&self, request: &Request<'_>) -> Result<Issued, Failure> {
        // An authority whose time is over because the clock was set right would sign what nobody believes.
        let now = self.clock.now().as_seconds();
        if let Err(error) = self.ensure() {
            // A renewal that fails is the daemon's trouble and not yet the modules'.
            let current = self.current.load_full();
            if self.is_given() || !current.is_some_and(|current| current.is_in_force(now)) {
                return Err(error);
            }
        }
        issue::issue(&*self.authority()?, request, now)
            .map_err(|error| Failure::storage(format!("a certificate could not be made: {error:#}")))
    }

    /// What modules and downstream devices are to trust: root and edge CA, and what the configuration adds.
    ///
    /// # Errors
    /// When there is no edge CA or the configured file cannot be read.
    pub fn trust_bundle(&self) -> Result<String, Failure> {
        let authority = self.authority()?;
        // The root first: some clients read only the first certificate.
        let own: Vec<CertificateDer<'_>> = authority.chain.iter().rev().cloned().collect();
        let mut bundle = pem::encode_chain(&own);
        if let Some(path) = &self.trust_bundle {
            bundle.push_str(&pem::encode_chain(&pem::read_chain(path)?));
        }
        Ok(bundle)
    }

    /// Authorities of signed manifests; empty when none are configured.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn manifest_trust_bundle(&self) -> Result<String, Failure> {
        match &self.manifest_trust_bundle {
            None => Ok(String::new()),
            Some(path) => Ok(pem::encode_chain(&pem::read_chain(path)?)),
        }
    }
}

#[cfg(test)]
mod tests;
