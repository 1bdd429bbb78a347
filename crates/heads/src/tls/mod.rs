//! TLS as every port of the hub speaks it.
//!
//! TLS 1.2 and 1.3 with the `ring` provider. Session tickets are on and shared by all listeners, since a reconnect storm
//! is won by resumption. A client certificate is asked for but optional, and not judged here: the handshake proves
//! possession of its key, and the log-in decides what it is worth (mqtt.md section 1). Which server certificate is
//! shown depends on what the client can read: ECDSA is several times cheaper, old C builds know only RSA.

mod certificates;
mod stream;
mod tickets;
mod verifier;

use std::sync::Arc;

use arc_swap::ArcSwap;
use holdfast_ports::clock::Clock;
use rustls::ServerConfig;
use rustls::server::NoServerSessionStorage;

pub use certificates::ServerCertificate;
pub use stream::TlsStream;
pub use tickets::TicketSecret;

/// Tickets sent after a full TLS 1.3 handshake. One is enough: a client uses it once, and gets a new one each time.
const TICKETS_PER_HANDSHAKE: usize = 1;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// There is no certificate to show.
    #[error("no server certificate is configured")]
    NoCertificate,
    /// A private key cannot be used, or does not belong to its certificate.
    #[error("server certificate {index} cannot be used")]
    Certificate {
        /// Place in the list, from 0.
        index: usize,
        /// What `rustls` says.
        #[source]
        source: rustls::Error,
    },
    /// The provider refused the set-up.
    #[error("the TLS configuration was refused")]
    Configuration(#[source] rustls::Error),
}

/// Server certificates and session tickets, shared by all TLS listeners. Reloadable while they serve.
pub struct TlsSettings {
    current: ArcSwap<ServerConfig>,
    tickets: Arc<tickets::Tickets>,
}

impl TlsSettings {
    /// Settings that show `certificates`, usually one of P-256 and one of RSA; the first usable one in the list wins.
    ///
    /// `secret` keeps session tickets valid over restarts and on every node that has the same one.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn new(
        certificates: Vec<ServerCertificate>,
        secret: &TicketSecret,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, TlsError> {
        let tickets = Arc::new(tickets::Tickets::new(secret, clock));
        let config = configuration(certificates, &tickets)?;
        Ok(Arc::new(TlsSettings {
            current: ArcSwap::from_pointee(config),
            tickets,
        }))
    }

    /// Shows other certificates to connections accepted from now on. Tickets given out before stay good.
    ///
    /// # Errors
    /// [`TlsError`]; the old certificates stay in use then.
    pub fn reload(&self, certificates: Vec<ServerCertificate>) -> Result<(), TlsError> {
        let config = configuration(certificates, &self.tickets)?;
        self.current.store(Arc::new(config));
        Ok(())
    }

    /// What a connection accepted now uses.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }
}

impl std::fmt::Debug for TlsSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsSettings").finish_non_exhaustive()
    }
}

fn configuration(
    certificates: Vec<ServerCertificate>,
    tickets: &Arc<tickets::Tickets>,
) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let resolver = certificates::Resolver::new(certificates, &provider)?;
    let verifier = verifier::PossessionOnly::new(&provider);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Configuration)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(resolver));
    config.ticketer = Arc::clone(tickets) as Arc<_>;
    config.send_tls13_tickets = TICKETS_PER_HANDSHAKE;
    // The client keeps the session, not we: nothing to store per connection, and any node can resume it.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}
