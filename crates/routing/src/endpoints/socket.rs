//! Connections to peers: TCP, with TLS where asked for. Certificates and names are verified always.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where systems keep the authorities they trust.
const SYSTEM_ROOTS: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Largest file of authorities that is read, in bytes.
const ROOTS_BYTES_MAX: u64 = 8 << 20;

/// A connection.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// How to speak TLS: trusts the system's authorities and, if given, those of a PEM text; shows a certificate if given
/// (certificate chain and key, both PEM).
///
/// # Errors
/// Which of the texts cannot be used.
pub(crate) fn tls(ca: Option<&str>, identity: Option<(&str, &str)>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = system_roots();
    if let Some(pem) = ca {
        let mut found = 0;
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| format!("caCertificate: {error}"))?;
            roots
                .add(certificate)
                .map_err(|error| format!("caCertificate: {error}"))?;
            found += 1;
        }
        if found == 0 {
            return Err("caCertificate holds no PEM certificate".to_owned());
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?
        .with_root_certificates(roots);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
            let chain = chain.map_err(|error| format!("clientCertificate: {error}"))?;
            if chain.is_empty() {
                return Err("clientCertificate holds no PEM certificate".to_owned());
            }
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                // The text is a secret, so the message tells nothing of it.
                .map_err(|_| "clientKey holds no PEM private key".to_owned())?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| format!("clientCertificate and clientKey: {error}"))?
        }
    };
    Ok(Arc::new(config))
}

/// The authorities of the system; `SSL_CERT_FILE` names another file. Certificates that cannot be read are left out.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let named = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
    let system = SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists());
    let Some(path) = named.or(system.map(Path::to_owned)) else {
        return roots;
    };
    let small = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= ROOTS_BYTES_MAX);
    if small && let Ok(pem) = std::fs::read(&path) {
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
    }
    roots
}

/// Where a peer is, and how to get there.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    /// Name or IP address, without brackets.
    pub(crate) host: String,
    /// Port.
    pub(crate) port: u16,
    /// TLS, if it is spoken; the certificate must be for `host`.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    /// For TCP and TLS together.
    pub(crate) timeout: Duration,
}

impl Address {
    /// Connects.
    ///
    /// # Errors
    /// What failed, with host and port.
    pub(crate) async fn connect(&self) -> Result<Box<dyn Socket>, String> {
        let place = format!("{}:{}", self.host, self.port);
        match tokio::time::timeout(self.timeout, self.open()).await {
            Ok(Ok(socket)) => Ok(socket),
            Ok(Err(error)) => Err(format!("cannot connect to {place}: {error}")),
            Err(_) => Err(format!(
                "cannot connect to {place} within {} s",
                self.timeout.as_secs_f64()
            )),
        }
    }

    async fn open(&self) -> io::Result<Box<dyn Socket>> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            return Ok(Box::new(tcp));
        };
        let name = ServerName::try_from(self.host.clone())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let stream = TlsConnector::from(tls.clone()).connect(name, tcp).await?;
        Ok(Box::new(stream))
    }
}

/// Text of a peer for our messages: one line, bounded, without control characters.
pub(crate) fn told(text: &str) -> String {
    const CHARS_MAX: usize = 200;
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(CHARS_MAX)
        .collect();
    line.trim().to_owned()
}

/// Splits `host[:port]`, where an IPv6 address stands in brackets; `None` if it is anything else.
pub(crate) fn host_and_port(text: &str, default: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, rest.strip_prefix(':').or(rest.is_empty().then_some(""))?)
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    let named = !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']);
    let port = if port.is_empty() {
        default
    } else {
        port.parse().ok()?
    };
    named.then(|| (host.to_owned(), port))
}
