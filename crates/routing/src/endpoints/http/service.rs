//! Requests to one web service over one kept connection.

use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::config::Place;
use crate::endpoints::socket::Address;

/// Most bytes of an answer that are looked at.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Most bytes of an answer's headers.
const ANSWER_HEAD_BYTES_MAX: usize = 16 << 10;

/// What a service answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: http::HeaderMap,
    /// Its beginning, if it is long.
    pub(super) body: Vec<u8>,
}

/// One connection, closed when this is dropped.
struct Connection {
    requests: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A service.
pub(super) struct Service {
    pub(super) address: Address,
    pub(super) place: Place,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) timeout: Duration,
    /// The connection while nothing is under way on it.
    rest: Mutex<Option<Connection>>,
}

impl Service {
    pub(super) fn new(
        address: Address,
        place: Place,
        headers: Vec<(HeaderName, HeaderValue)>,
        timeout: Duration,
    ) -> Self {
        Service {
            address,
            place,
            headers,
            timeout,
            rest: Mutex::new(None),
        }
    }

    /// Closes the connection.
    pub(super) fn close(&self) {
        self.rest.lock().take();
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// Which step failed.
    pub(super) async fn send(
        &self,
        method: Method,
        extra: &[(HeaderName, HeaderValue)],
        body: Bytes,
    ) -> Result<Answer, String> {
        // A connection that rested may have been closed by the service in the meantime; that is not worth a failure.
        let rested = self.rest.lock().take();
        if let Some(connection) = rested
            && !connection.requests.is_closed()
            && let Ok(answer) = self.ask(connection, method.clone(), extra, body.clone()).await
        {
            return Ok(answer);
        }
        let connection = self.connect().await?;
        self.ask(connection, method, extra, body)
            .await
            .map_err(|error| format!("{} {}: {error}", method_name(&self.place), self.place.authority))
    }

    async fn connect(&self) -> Result<Connection, String> {
        let socket = self.address.connect().await?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(ANSWER_HEAD_BYTES_MAX);
        let (requests, connection) = builder
            .handshake(TokioIo::new(socket))
            .await
            .map_err(|error| format!("cannot speak HTTP with {}: {error}", self.place.authority))?;
        // Its errors come out of the request as well.
        let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        Ok(Connection { requests, driver })
    }

    async fn ask(
        &self,
        mut connection: Connection,
        method: Method,
        extra: &[(HeaderName, HeaderValue)],
        body: Bytes,
    ) -> Result<Answer, String> {
        let request = self.request(method, extra, body)?;
        let exchange = async {
            connection.requests.ready().await.map_err(|error| cause(&error))?;
            let answer = connection.requests.send_request(request).await;
            read(answer.map_err(|error| cause(&error))?).await
        };
        let (answer, whole) = tokio::time::timeout(self.timeout, exchange)
            .await
            .map_err(|_| format!("no answer within {} s", self.timeout.as_secs_f64()))??;
        if whole {
            *self.rest.lock() = Some(connection);
        }
        Ok(answer)
    }

    fn request(
        &self,
        method: Method,
        extra: &[(HeaderName, HeaderValue)],
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, String> {
        let mut request = Request::builder()
            .method(method)
            .uri(&self.place.path)
            .header(http::header::HOST, &self.place.authority)
            .header(
                http::header::USER_AGENT,
                concat!("holdfast/", env!("CARGO_PKG_VERSION")),
            );
        for (name, value) in self.headers.iter().chain(extra) {
            request = request.header(name, value);
        }
        request.body(Full::new(body)).map_err(|error| error.to_string())
    }
}

fn method_name(place: &Place) -> &'static str {
    if place.tls { "https" } else { "http" }
}

/// Reads an answer, within bounds; whether it was read to its end.
async fn read(answer: Response<Incoming>) -> Result<(Answer, bool), String> {
    let (head, mut incoming) = answer.into_parts();
    let mut body = Vec::new();
    let mut whole = true;
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| cause(&error))?;
        let Some(data) = frame.data_ref() else { continue };
        let room = ANSWER_BYTES_MAX - body.len();
        body.extend_from_slice(&data[..data.len().min(room)]);
        if data.len() > room {
            whole = false;
            break;
        }
    }
    let answer = Answer {
        status: head.status,
        headers: head.headers,
        body,
    };
    Ok((answer, whole))
}

/// The error with what it came from: hyper's own text leaves that out.
fn cause(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
