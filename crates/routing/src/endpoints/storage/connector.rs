//! HTTP for `object_store`: its own client would bring aws-lc, HTTP/2 and a second certificate verifier. Files are
//! few and large, so that each request has a connection of its own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::header::{HOST, HeaderValue};
use http_body_util::{BodyExt as _, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use rustls::ClientConfig;

use crate::endpoints::DELIVERY_TIME_MAX;
use crate::endpoints::socket::{self, Address};

/// For TCP and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of an answer: to writes, answers are short.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// Makes connections.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    tls: Arc<ClientConfig>,
}

impl Connector {
    pub(super) fn new(ca: Option<&str>) -> Result<Self, String> {
        Ok(Connector {
            tls: socket::tls(ca, None)?,
        })
    }

    async fn ask(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (address, request) = self.addressed(request)?;
        let socket = address
            .connect()
            .await
            .map_err(|text| failed(HttpErrorKind::Connect, io::Error::other(text)))?;
        let (mut requests, connection) = http1::handshake(TokioIo::new(socket))
            .await
            .map_err(|error| failed(HttpErrorKind::Connect, error))?;
        // Ends with the connection when this call is dropped.
        let mut driver = tokio::task::JoinSet::new();
        driver.spawn(async move { drop(connection.await) });
        let answer = requests
            .send_request(request)
            .await
            .map_err(|error| failed(HttpErrorKind::Request, error))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| HttpError::new_boxed(HttpErrorKind::Decode, error))?;
        Ok(HttpResponse::from_parts(head, body.to_bytes().into()))
    }

    /// Where a request goes; the request itself names its path only, as HTTP/1.1 has it.
    fn addressed(&self, mut request: HttpRequest) -> Result<(Address, HttpRequest), HttpError> {
        let invalid = |text: &'static str| failed(HttpErrorKind::Unknown, io::Error::other(text));
        let uri = request.uri().clone();
        let authority = uri
            .authority()
            .ok_or_else(|| invalid("the address has no host"))?;
        let tls = uri.scheme_str() == Some("https");
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let address = Address {
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            tls: tls.then(|| self.tls.clone()),
            timeout: CONNECT_TIMEOUT,
        };
        if !request.headers().contains_key(HOST) {
            let host = HeaderValue::from_str(authority.as_str())
                .map_err(|_| invalid("the host cannot stand in a header"))?;
            request.headers_mut().insert(HOST, host);
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse().map_err(|_| invalid("the path cannot be sent"))?;
        Ok((address, request))
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        match tokio::time::timeout(DELIVERY_TIME_MAX, self.ask(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(failed(
                HttpErrorKind::Timeout,
                io::Error::from(io::ErrorKind::TimedOut),
            )),
        }
    }
}

fn failed(kind: HttpErrorKind, error: impl std::error::Error + Send + Sync + 'static) -> HttpError {
    HttpError::new(kind, error)
}
