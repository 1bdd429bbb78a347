//! One HTTP/1.1 connection to the engine: requests one after the other, each answer bounded in time and size.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use holdfast_agent::runtime::RuntimeError;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::endpoint::Endpoint;

/// How long the engine may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// To accept a connection; 5 s.
    pub connect: Duration,
    /// For a question that changes nothing; 15 s. (`stats` waits a second or two for its second sample.)
    pub question: Duration,
    /// For creating, starting, removing, and for stopping beyond its grace; 60 s.
    pub change: Duration,
    /// Between two pieces of a pull's progress or of a log that is not followed; 120 s.
    pub silence: Duration,
    /// For a pull as a whole; 1 h.
    pub pull: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            question: Duration::from_secs(15),
            change: Duration::from_secs(60),
            silence: Duration::from_secs(120),
            pull: Duration::from_secs(3600),
        }
    }
}

/// Answers larger than this are refused. An inspected container has some 10 KiB; its `createOptions` are in it twice.
pub(crate) const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Error answers are cut here.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 10;
/// hyper's buffer, which also bounds an answer's header lines.
const BUFFER_BYTES: usize = 64 << 10;

/// What a request carries.
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    /// With the API version and query, percent-encoded.
    pub(crate) path: String,
    /// Value of `X-Registry-Auth`.
    pub(crate) registry_auth: Option<&'a str>,
    /// JSON.
    pub(crate) body: Option<Bytes>,
}

/// An open connection. Dropping it ends it, and with it whatever the engine still streams.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
    endpoint: Endpoint,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    pub(crate) async fn open(endpoint: &Endpoint, timeouts: &Timeouts) -> Result<Self, RuntimeError> {
        let unavailable = |cause: String| RuntimeError::Unavailable {
            endpoint: endpoint.to_string(),
            cause,
        };
        let open = async {
            match endpoint {
                Endpoint::Unix(path) => {
                    let stream = UnixStream::connect(path)
                        .await
                        .map_err(|error| unavailable(explain(&error)))?;
                    Self::begin(endpoint, stream).await
                }
                Endpoint::Tcp { host, port } => {
                    let stream = TcpStream::connect((host.as_str(), *port))
                        .await
                        .map_err(|error| unavailable(explain(&error)))?;
                    Self::begin(endpoint, stream).await
                }
            }
        };
        timeout(timeouts.connect, open)
            .await
            .map_err(|_| unavailable(format!("no connection within {:?}", timeouts.connect)))?
    }

    async fn begin<S>(endpoint: &Endpoint, stream: S) -> Result<Self, RuntimeError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(BUFFER_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| RuntimeError::Unavailable {
                endpoint: endpoint.to_string(),
                cause: error.to_string(),
            })?;
        // What goes wrong on it is told to the request under way.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self {
            sender,
            driver,
            endpoint: endpoint.clone(),
        })
    }

    /// Sends a request and waits for the answer's head.
    pub(crate) async fn send(
        &mut self,
        call: Call<'_>,
        within: Duration,
    ) -> Result<Response<Incoming>, RuntimeError> {
        let what = format!("{} {}", call.method, shown(&call.path));
        let mut request = Request::builder()
            .method(call.method)
            .uri(&call.path)
            .header("host", self.endpoint.authority())
            .header("user-agent", concat!("holdfast-edge/", env!("CARGO_PKG_VERSION")));
        if let Some(auth) = call.registry_auth {
            request = request.header("x-registry-auth", auth);
        }
        if call.body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let request = request
            .body(Full::new(call.body.unwrap_or_default()))
            .map_err(|error| self.failed(&what, &error))?;
        let exchange = async {
            self.sender.ready().await?;
            self.sender.send_request(request).await
        };
        let outcome = timeout(within, exchange).await;
        match outcome {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.failed(&what, &error)),
            Err(_) => Err(self.late(&what, within)),
        }
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn ask(
        &mut self,
        call: Call<'_>,
        within: Duration,
    ) -> Result<(StatusCode, Bytes), RuntimeError> {
        let what = format!("{} {}", call.method, shown(&call.path));
        let exchange = async {
            let response = self.send(call, within).await?;
            let status = response.status();
            let body = self.body(response.into_body(), &what, status).await?;
            Ok((status, body))
        };
        let outcome = timeout(within, exchange).await;
        outcome.unwrap_or_else(|_| Err(self.late(&what, within)))
    }

    async fn body(&self, mut body: Incoming, what: &str, status: StatusCode) -> Result<Bytes, RuntimeError> {
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.failed(what, &error))?;
            let Ok(data) = frame.into_data() else { continue };
            if whole.len() + data.len() > ANSWER_BYTES_MAX {
                return Err(RuntimeError::Unavailable {
                    endpoint: self.endpoint.to_string(),
                    cause: format!("its answer to {what} has more than {ANSWER_BYTES_MAX} bytes"),
                });
            }
            whole.extend_from_slice(&data);
            if !status.is_success() && whole.len() > MESSAGE_BYTES_MAX {
                // The rest of it would only be thrown away, and this connection is not used again.
                break;
            }
        }
        Ok(whole.freeze())
    }

    pub(crate) fn failed(&self, what: &str, error: &dyn std::error::Error) -> RuntimeError {
        let mut cause = format!("{what}: {error}");
        let mut source = error.source();
        while let Some(inner) = source {
            cause.push_str(&format!(": {inner}"));
            source = inner.source();
        }
        RuntimeError::Unavailable {
            endpoint: self.endpoint.to_string(),
            cause,
        }
    }

    pub(crate) fn late(&self, what: &str, within: Duration) -> RuntimeError {
        RuntimeError::Unavailable {
            endpoint: self.endpoint.to_string(),
            cause: format!("it did not answer {what} within {within:?}"),
        }
    }
}

/// A path without its query, for messages.
fn shown(path: &str) -> &str {
    path.split('?').next().unwrap_or(path)
}

fn explain(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            "there is no such socket; is the engine installed and started?".to_owned()
        }
        std::io::ErrorKind::ConnectionRefused => "nobody listens there; is the engine started?".to_owned(),
        std::io::ErrorKind::PermissionDenied => {
            "permission denied; run as root or as a member of the socket's group".to_owned()
        }
        _ => error.to_string(),
    }
}
