//! HTTPS requests to a hub, a parent edge device or a provisioning service.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, IF_MATCH, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Method};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::time::{Instant, timeout};

use crate::gate::{backoff, jittered};
use crate::net::Route;
use crate::port::CloudError;

/// Largest answer, in bytes: a page of a scope is far below.
const BODY_BYTES_MAX: usize = 4 << 20;
/// A connection is used again for this long …
const REUSE: Duration = Duration::from_secs(5);
/// … and closed after this long in any case, so that an idle device holds none.
const CONNECTION_LIFE: Duration = Duration::from_secs(30);
/// Longest text of a refusal that is passed on.
const TEXT_BYTES_MAX: usize = 512;
/// First and longest pause before a request is sent again.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));

/// A client of one host.
pub(crate) struct HttpsClient {
    route: Route,
    port: u16,
    tls: Arc<ClientConfig>,
    timeout: Duration,
    kept: parking_lot::Mutex<Option<Kept>>,
}

struct Kept {
    sender: SendRequest<Full<Bytes>>,
    since: Instant,
}

pub(crate) struct Call {
    pub(crate) method: Method,
    /// With its query, encoded.
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) if_match_any: bool,
    pub(crate) user_agent: String,
    /// JSON.
    pub(crate) body: Option<Bytes>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) body: Bytes,
}

impl HttpsClient {
    pub(crate) fn new(route: Route, port: u16, tls: Arc<ClientConfig>, timeout: Duration) -> Self {
        HttpsClient {
            route,
            port,
            tls,
            timeout,
            kept: parking_lot::Mutex::new(None),
        }
    }

    /// Sends a request, and again after a pause if nothing came back, `retries` times. Every call upstream may be repeated.
    pub(crate) async fn call_again(&self, call: &Call, retries: u32) -> Result<Answer, CloudError> {
        for failures in 0..retries {
            match self.call(call).await {
                Ok(answer) if answer.status < 500 && answer.status != 429 => return Ok(answer),
                Ok(_) | Err(CloudError::Unreachable(_)) => {
                    tokio::time::sleep(jittered(backoff(RETRY_PAUSE.0, RETRY_PAUSE.1, failures))).await;
                }
                Err(cause) => return Err(cause),
            }
        }
        self.call(call).await
    }

    pub(crate) async fn call(&self, call: &Call) -> Result<Answer, CloudError> {
        match timeout(self.timeout, self.exchange(call)).await {
            Ok(answer) => answer,
            Err(_) => {
                let (host, seconds) = (self.route.host(), self.timeout.as_secs_f32());
                Err(CloudError::Unreachable(format!(
                    "{host} did not answer within {seconds} s"
                )))
            }
        }
    }

    async fn exchange(&self, call: &Call) -> Result<Answer, CloudError> {
        let kept = self.kept.lock().take();
        if let Some(mut kept) = kept
            && kept.since.elapsed() < REUSE
            && kept.sender.is_ready()
            && let Ok(answer) = self.send(&mut kept.sender, call).await
        {
            *self.kept.lock() = Some(kept);
            return Ok(answer);
        }
        let mut sender = self.connect().await?;
        let since = Instant::now();
        let answer = self.send(&mut sender, call).await?;
        *self.kept.lock() = Some(Kept { sender, since });
        Ok(answer)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, CloudError> {
        let failed = |error: &dyn std::fmt::Display| {
            let host = self.route.host();
            CloudError::Unreachable(format!("cannot connect to {host}:{}: {error}", self.port))
        };
        let opening = self.route.connect(self.port, Arc::clone(&self.tls));
        let stream = opening.await.map_err(|error| failed(&error))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        tokio::spawn(async move {
            // How it ends is seen by the request.
            let _ = timeout(CONNECTION_LIFE, connection).await;
        });
        Ok(sender)
    }

    async fn send(&self, sender: &mut SendRequest<Full<Bytes>>, call: &Call) -> Result<Answer, CloudError> {
        let broken = |error: &dyn std::fmt::Display| {
            CloudError::Unreachable(format!("{}: {error}", self.route.host()))
        };
        let answer = sender
            .send_request(self.request(call)?)
            .await
            .map_err(|error| broken(&error))?;
        let status = answer.status().as_u16();
        let retry_after = answer
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
        let body = body.map_err(|error| broken(&error))?.to_bytes();
        Ok(Answer {
            status,
            retry_after,
            body,
        })
    }

    fn request(&self, call: &Call) -> Result<http::Request<Full<Bytes>>, CloudError> {
        let unusable = |error: http::Error| CloudError::Refused {
            status: 400,
            message: error.to_string(),
        };
        let host = match self.port {
            443 => self.route.host().to_owned(),
            port => format!("{}:{port}", self.route.host()),
        };
        let mut request = http::Request::builder()
            .method(call.method.clone())
            .uri(&call.path)
            .header(HOST, host);
        if let Some(token) = &call.authorization {
            let mut value = HeaderValue::from_str(token).map_err(|error| unusable(error.into()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        if call.if_match_any {
            request = request.header(IF_MATCH, "*");
        }
        if !call.user_agent.is_empty() {
            request = request.header(USER_AGENT, call.user_agent.as_str());
        }
        if call.body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json; charset=utf-8");
        }
        request
            .body(Full::new(call.body.clone().unwrap_or_default()))
            .map_err(unusable)
    }
}

/// What an answer that is no success means.
pub(crate) fn cloud_error(status: u16, body: &[u8]) -> CloudError {
    let message = message_in(body);
    match status {
        401 | 403 => CloudError::Unauthorized(format!("{status} {message}")),
        408 | 429 | 500..=599 => CloudError::Unreachable(format!("{status} {message}")),
        _ => CloudError::Refused { status, message },
    }
}

/// The words of an error body, in the forms that hubs and edge hubs have.
fn message_in(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Words {
        #[serde(alias = "Message", alias = "errorMessage", alias = "ErrorMessage")]
        message: Option<String>,
    }
    let words = serde_json::from_slice::<Words>(body)
        .ok()
        .and_then(|words| words.message);
    let text = words.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    let end = text.floor_char_boundary(TEXT_BYTES_MAX.min(text.len()));
    text[..end].trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart() {
        let refused = cloud_error(
            404,
            br#"{"Message":"ErrorCode:DeviceNotFound;gone","ExceptionMessage":""}"#,
        );
        let CloudError::Refused { status: 404, message } = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(message, "ErrorCode:DeviceNotFound;gone");
        assert!(matches!(cloud_error(401, b""), CloudError::Unauthorized(_)));
        assert!(matches!(cloud_error(429, b""), CloudError::Unreachable(_)));
        assert!(matches!(cloud_error(503, b"<html>"), CloudError::Unreachable(_)));
        let long = vec![0xc3; 4000];
        assert!(
            matches!(cloud_error(400, &long), CloudError::Refused { message, .. } if message.len() <= 512)
        );
    }
}
