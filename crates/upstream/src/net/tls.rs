//! How TLS is spoken upstream. Certificates and names are always verified.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::config::Trust;
use crate::port::ClientCertificate;

/// Where systems keep the authorities they trust.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Largest file of authorities that is read, in bytes.
const ROOTS_BYTES_MAX: u64 = 8 << 20;
/// TLS sessions kept for resumption: a few hosts at most are ever dialled.
const SESSIONS_KEPT: usize = 8;

/// Makes configurations for the accounts of one upstream.
pub(crate) struct TlsSettings {
    roots: Arc<RootCertStore>,
    /// For everybody who proves himself by tokens.
    plain: Arc<ClientConfig>,
}

impl TlsSettings {
    /// # Errors
    /// What is wrong with the authorities.
    pub(crate) fn new(trust: &Trust) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for authority in &trust.authorities {
            roots
                .add(authority.clone())
                .map_err(|error| format!("an authority of the trust bundle cannot be used: {error}"))?;
        }
        if trust.system || trust.authorities.is_empty() {
            add_system_roots(&mut roots);
        }
        if roots.is_empty() {
            return Err(
                "no authority is trusted: give a trust bundle, or install the system's (ca-certificates)"
                    .to_owned(),
            );
        }
        let roots = Arc::new(roots);
        let plain = Arc::new(configuration(&roots, None)?);
        Ok(TlsSettings { roots, plain })
    }

    /// # Errors
    /// When certificate and key cannot be used.
    pub(crate) fn of(&self, certificate: Option<&ClientCertificate>) -> Result<Arc<ClientConfig>, String> {
        match certificate {
            None => Ok(Arc::clone(&self.plain)),
            Some(certificate) => Ok(Arc::new(configuration(&self.roots, Some(certificate))?)),
        }
    }
}

fn configuration(
    roots: &Arc<RootCertStore>,
    certificate: Option<&ClientCertificate>,
) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?
        .with_root_certificates(Arc::clone(roots));
    let mut config = match certificate {
        None => builder.with_no_client_auth(),
        Some(certificate) => {
            let chain = certificate.chain.iter();
            let chain = chain.map(|der| CertificateDer::from(der.to_vec())).collect();
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certificate.private_key.to_vec()));
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| format!("the client certificate and its key cannot be used: {error}"))?
        }
    };
    config.resumption = Resumption::in_memory_sessions(SESSIONS_KEPT);
    Ok(config)
}

/// The authorities of the system; `SSL_CERT_FILE` names another file. Certificates that cannot be read are left out.
fn add_system_roots(roots: &mut RootCertStore) {
    let named = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
    let system = SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists());
    let Some(path) = named.or(system.map(Path::to_owned)) else {
        return;
    };
    let small = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= ROOTS_BYTES_MAX);
    if small && let Ok(pem) = std::fs::read(&path) {
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
    }
}
