//! Which certificate a client is shown.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, SignatureAlgorithm};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::TlsError;

/// A server certificate with its key.
pub struct ServerCertificate {
    /// Leaf first, DER. The whole chain is sent.
    pub chain: Vec<CertificateDer<'static>>,
    /// Private key of the leaf.
    pub key: PrivateKeyDer<'static>,
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCertificate")
            .field("chain", &self.chain.len())
            .finish_non_exhaustive()
    }
}

/// Chooses by what the client can verify, never by name: clients dial hub and gateway names, addresses, and names in
/// hosts files, and check the name themselves (clients.md section 2).
#[derive(Debug)]
pub(super) struct Resolver {
    certificates: Vec<Arc<CertifiedKey>>,
}

impl Resolver {
    pub(super) fn new(
        certificates: Vec<ServerCertificate>,
        provider: &CryptoProvider,
    ) -> Result<Self, TlsError> {
        let certificates = certificates
            .into_iter()
            .enumerate()
            .map(|(index, certificate)| {
                CertifiedKey::from_der(certificate.chain, certificate.key, provider)
                    .map(Arc::new)
                    .map_err(|source| TlsError::Certificate { index, source })
            })
            .collect::<Result<Vec<_>, _>>()?;
        if certificates.is_empty() {
            return Err(TlsError::NoCertificate);
        }
        Ok(Resolver { certificates })
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certificates
            .iter()
            .find(|certificate| {
                certificate
                    .key
                    .choose_scheme(client_hello.signature_schemes())
                    .is_some()
                    && suites_allow(client_hello.cipher_suites(), certificate.key.algorithm())
            })
            // Nothing fits: the handshake then fails with the alert for exactly that.
            .or_else(|| self.certificates.last())
            .cloned()
    }
}

/// In TLS 1.2 the suite names the kind of certificate; the suites of TLS 1.3 say nothing of it.
fn suites_allow(suites: &[CipherSuite], algorithm: SignatureAlgorithm) -> bool {
    suites.iter().any(|suite| match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS13_AES_256_GCM_SHA384
        | CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => true,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => {
            algorithm == SignatureAlgorithm::ECDSA
        }
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => algorithm == SignatureAlgorithm::RSA,
        _ => false,
    })
}
