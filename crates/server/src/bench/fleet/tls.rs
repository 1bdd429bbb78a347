//! TLS for clients under test: a CA, the system's roots, or anything at all.

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, Error, NamedGroup, RootCertStore, SignatureScheme};

/// Tickets kept for later connections; more than any number of handshakes under way at once.
const TICKETS_MAX: usize = 4_096;

/// Files in which systems keep the certificates they trust.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Whom to trust.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trust<'a> {
    /// Certificates of the CAs in this PEM file.
    Ca(&'a Path),
    /// The system's CAs.
    System,
    /// Every certificate. For measuring: the cost of checking is the generator's, not the server's.
    Anyone,
}

/// A client configuration; `resume` keeps session tickets for later connections, else every handshake is a full one.
pub(crate) fn client_config(trust: Trust<'_>, resume: bool) -> anyhow::Result<Arc<ClientConfig>> {
    client_config_with(trust, resume, None)
}

/// As [`client_config`], for a client that proves itself by a certificate.
pub(crate) fn client_config_with(
    trust: Trust<'_>,
    resume: bool,
    certificate: Option<Arc<CertifiedKey>>,
) -> anyhow::Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .context("no usable TLS version")?;
    let builder = match trust {
        Trust::Ca(path) => builder.with_root_certificates(roots(path)?),
        Trust::System => builder.with_root_certificates(system_roots()?),
        Trust::Anyone => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(TrustAnyone(provider))),
    };
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some(certified) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified))),
    };
    config.resumption = if resume {
        Resumption::store(Arc::new(Tickets::default()))
    } else {
        Resumption::disabled()
    };
    Ok(Arc::new(config))
}

fn roots(path: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path)
        .with_context(|| format!("cannot read the CA certificate {}", path.display()))?;
    for certificate in certificates {
        let certificate = certificate.with_context(|| format!("{} is not PEM", path.display()))?;
        roots
            .add(certificate)
            .with_context(|| format!("{} holds an unusable certificate", path.display()))?;
    }
    anyhow::ensure!(!roots.is_empty(), "{} holds no PEM certificate", path.display());
    Ok(roots)
}

fn system_roots() -> anyhow::Result<RootCertStore> {
    let found = SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists());
    let path =
        found.context("this system has no file of trusted CA certificates; name the hub's with --ca")?;
    let mut roots = RootCertStore::empty();
    // Some systems ship certificates that rustls cannot use; those are left out.
    roots.add_parsable_certificates(CertificateDer::pem_file_iter(path)?.filter_map(Result::ok));
    Ok(roots)
}

/// Accepts every certificate, but checks that the peer has its key, as any client would.
#[derive(Debug)]
struct TrustAnyone(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Tickets of one server. The store of rustls keeps eight, which many handshakes at once use up.
#[derive(Default)]
struct Tickets {
    state: Mutex<TicketState>,
}

#[derive(Default)]
struct TicketState {
    tickets: VecDeque<Tls13ClientSessionValue>,
    /// A TLS 1.2 session may be used any number of times.
    tls12: Option<Tls12ClientSessionValue>,
    group: Option<NamedGroup>,
}

impl Tickets {
    fn with<R>(&self, action: impl FnOnce(&mut TicketState) -> R) -> R {
        action(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tickets(…)")
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _server_name: ServerName<'static>, group: NamedGroup) {
        self.with(|state| state.group = Some(group));
    }

    fn kx_hint(&self, _server_name: &ServerName<'_>) -> Option<NamedGroup> {
        self.with(|state| state.group)
    }

    fn set_tls12_session(&self, _server_name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.with(|state| state.tls12 = Some(value));
    }

    fn tls12_session(&self, _server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.with(|state| state.tls12.clone())
    }

    fn remove_tls12_session(&self, _server_name: &ServerName<'static>) {
        self.with(|state| state.tls12 = None);
    }

    fn insert_tls13_ticket(&self, _server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.with(|state| {
            if state.tickets.len() == TICKETS_MAX {
                state.tickets.pop_front();
            }
            state.tickets.push_back(value);
        });
    }

    fn take_tls13_ticket(&self, _server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.with(|state| state.tickets.pop_front())
    }
}
