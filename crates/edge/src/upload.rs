//! Uploads to blob services: one PUT per call, over HTTPS or plain HTTP.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_agent::host::{Put, UploadError};
use holdfast_upstream::Trust;
use http::{Request, Uri, header};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::http::Body;
use crate::upstream;

/// For a whole PUT: a block of a few mebibytes over a slow line.
const TIMEOUT: Duration = Duration::from_secs(300);
/// For TCP and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Uploads.
pub struct Uploader {
    trust: Trust,
}

impl Uploader {
    /// Trusts these authorities.
    #[must_use]
    pub fn new(trust: Trust) -> Self {
        Uploader { trust }
    }

    /// Carries out a PUT; success is a 2xx.
    ///
    /// # Errors
    /// [`UploadError`], without the address's query.
    pub async fn put(&self, put: &Put) -> Result<(), UploadError> {
        tokio::time::timeout(TIMEOUT, self.exchange(put))
            .await
            .unwrap_or_else(|_| Err(transient("no answer in time".to_owned())))
    }

    async fn exchange(&self, put: &Put) -> Result<(), UploadError> {
        let uri: Uri = put.url.parse().map_err(|_| permanent("the address is no URL"))?;
        let host = uri
            .host()
            .ok_or_else(|| permanent("the address has no host"))?
            .to_owned();
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(permanent("the address is neither https:// nor http://")),
        };
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, async {
            let tcp = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
            std::io::Result::Ok(tcp)
        });
        let unreachable =
            |error: &dyn std::fmt::Display| transient(format!("cannot connect to {host}:{port}: {error}"));
        let tcp = connecting
            .await
            .map_err(|error| unreachable(&error))?
            .map_err(|error| unreachable(&error))?;
        if !tls {
            return send(tcp, put, &uri).await;
        }
        // Made for each upload: they are rare, and the system's authorities take half a megabyte.
        let config = upstream::client_tls(&self.trust).map_err(|error| permanent(&error))?;
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|_| permanent("the address has no host name"))?;
        let shaking = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, shaking)
            .await
            .map_err(|error| unreachable(&error))?
            .map_err(|error| unreachable(&error))?;
        send(stream, put, &uri).await
    }
}

async fn send<S>(stream: S, put: &Put, uri: &Uri) -> Result<(), UploadError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |error: hyper::Error| transient(format!("the connection broke off: {error}"));
    let (mut sender, connection) = http1::handshake::<_, Body>(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    // Ends with the sender.
    let driving = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let mut request = Request::put(path).header(header::HOST, host);
    for (name, value) in &put.headers {
        request = request.header(*name, value);
    }
    let request = request
        .header(header::CONTENT_LENGTH, put.body.len())
        .body(Body::Whole(Bytes::clone(&put.body)))
        .map_err(|_| permanent("the address or a header is malformed"))?;
    let answer: http::Response<Incoming> = sender.send_request(request).await.map_err(broken)?;
    driving.abort();
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    Err(UploadError {
        message: format!("the blob service answered {status}"),
        transient: matches!(status.as_u16(), 408 | 429 | 500..=599),
    })
}

fn permanent(message: &str) -> UploadError {
    UploadError {
        message: message.to_owned(),
        transient: false,
    }
}

fn transient(message: String) -> UploadError {
    UploadError {
        message,
        transient: true,
    }
}
